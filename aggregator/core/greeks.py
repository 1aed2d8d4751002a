"""How much whole accounts move: delta, gamma, vega, theta and rho by underlying (risk.md §3, §6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aggregator.core.contracts import implied_vols, is_option, linear_units, sum_by, verify_portfolios, years_left
from aggregator.core.instruments.option import bsm_greeks
from aggregator.domain.contracts import CALL, Market, Portfolios
from aggregator.domain.units import Floats


class Greeks(NamedTuple):
    """Sensitivities of what accounts hold, each of shape (A, U)."""

    delta: Floats  # units of the underlying: USD per USD of spot
    gamma: Floats  # delta per USD of spot
    vega: Floats  # USD per 1.00 of volatility
    theta: Floats  # USD per year that passes
    rho: Floats  # USD per 1.00 of r


def account_greeks(portfolios: Portfolios, market: Market) -> Greeks:
    """Add up the greeks of every account's options, perps and hedging spot.

    Options are Black-Scholes-Merton on spot, at the volatility of their strike. Perps and spot have a delta only: their
    units, ``size/entry`` for inverse perps. An option at or past its expiry has the delta of its intrinsic value (half
    of it at the strike) and no other greek: it has no time left for a volatility, a rate or its decay to act on.

    Raises:
        ValueError: an argument is out of its range, or an option has no mark; the message names it.
    """
    verify_portfolios(portfolios, market)
    of = portfolios.instruments
    count, wide = len(of.kind), len(market.feeds)
    each = np.zeros((len(Greeks._fields), count))
    options = np.flatnonzero(is_option(of))
    u, t = of.underlying[options], years_left(of, market.now)[options]
    greeks = bsm_greeks(
        market.spot[u],
        of.strike[options],
        t,
        implied_vols(of, market)[options],
        np.array([row.rate for row in market.rows])[u],
        np.array([row.carry for row in market.rows])[u],
        of.kind[options] == CALL,
    )
    for index, name in enumerate(Greeks._fields):
        column: Floats = getattr(greeks, name)
        each[index, options] = column if name == "delta" else np.where(t > 0, column, 0.0)
    place = portfolios.account * wide + of.underlying[portfolios.instrument]
    sums = np.stack(
        [sum_by(place, column[portfolios.instrument] * portfolios.size, portfolios.accounts * wide) for column in each]
    ).reshape(-1, portfolios.accounts, wide)
    units = sum_by(place, linear_units(portfolios), portfolios.accounts * wide).reshape(-1, wide)
    return Greeks(sums[0] + units + portfolios.spot, *sums[1:])
