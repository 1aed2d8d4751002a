"""How much contracts move: delta, gamma, vega, theta and rho (risk.md §3, §6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aggregator.core.contracts import (
    implied_vols,
    is_option,
    linear_units,
    option_values,
    verify_portfolios,
    years_left,
)
from aggregator.core.instruments.option import bsm_greeks
from aggregator.domain.contracts import CALL, Market, Portfolios
from aggregator.domain.units import Floats


class Greeks(NamedTuple):
    """Sensitivities of N rows at p̂, times their signed sizes; those of an account are sums. Each of shape (N,)."""

    delta: Floats  # units of the underlying: USD per USD of spot
    gamma: Floats  # delta per USD of spot
    vega: Floats  # USD per 1.00 of volatility
    theta: Floats  # USD per year that passes
    rho: Floats  # USD per 1.00 of r
    mark: Floats  # USD: of one option, or of one unit of a perp's underlying
    volatility: Floats  # implied, per sqrt(year); 0 for perps


def row_greeks(portfolios: Portfolios, market: Market) -> Greeks:
    """Return the greeks of every row; spot that hedges beside them has a delta of its units.

    Options are Black-Scholes-Merton on spot, at the volatility of their strike. Perps have a delta only: their units,
    ``size/entry`` for inverse perps. An option at or past its expiry has the delta of its intrinsic value (half of it
    at the strike) and no other greek: it has no time left for a volatility, a rate or its decay to act on.

    Raises:
        ValueError: an argument is out of its range, or an option has no mark; the message names it.
    """
    verify_portfolios(portfolios, market)
    of = portfolios.instruments
    vols, mark = implied_vols(of, market), np.where(is_option(of), 0.0, market.spot[of.underlying])
    columns = np.zeros((5, len(of.kind)))
    options = np.flatnonzero(is_option(of))
    u, t = of.underlying[options], years_left(of, market.now)[options]
    found = bsm_greeks(
        market.spot[u],
        of.strike[options],
        t,
        vols[options],
        np.array([row.rate for row in market.rows])[u],
        np.array([row.carry for row in market.rows])[u],
        of.kind[options] == CALL,
    )
    columns[:, options] = found.delta, found.gamma, found.vega, found.theta, found.rho
    columns[1:, options[t == 0]] = 0.0
    mark[options] = option_values(of, market, market.spot, vols)[options]
    row = portfolios.instrument
    delta, gamma, vega, theta, rho = columns[:, row] * portfolios.size
    return Greeks(delta + linear_units(portfolios), gamma, vega, theta, rho, mark[row], vols[row])
