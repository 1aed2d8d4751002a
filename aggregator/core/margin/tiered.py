"""The tiered model: bands of notional, each at its rate, the last going on (risk.md §6).

The notional of an underlying is S times its net perps, linear and inverse together, and its short options, net by
instrument. Bands and rates are ``UnderlyingRow.tiers``; an underlying without tiers is charged ``perp_initial`` and
``perp_maintenance`` of the whole. Bands are marginal, as on OKX: one unit more never costs a jump.
"""

from __future__ import annotations

import numpy as np

from aggregator.core.contracts import is_option, linear_units, net_by, plain_requirement, verify_portfolios
from aggregator.core.weights import banded
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the model requires of every portfolio, USD; see the module.

    Rows share an underlying's charge by their part of its notional, of which an offsetting row has a negative one.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    verify_portfolios(portfolios, market)
    row, of = portfolios.instrument, portfolios.instruments.underlying[portfolios.instrument]
    units = linear_units(portfolios)
    short = is_option(portfolios.instruments)[row] & (net_by(portfolios.account, row, portfolios.size) < 0)
    part = (units * np.sign(net_by(portfolios.account, of, units)) - portfolios.size * short) * market.spot[of]
    notional = np.maximum(net_by(portfolios.account, of, part), 0.0)
    charges = np.zeros((2, len(row)))
    for u in np.unique(of[notional > 0]):
        here = np.flatnonzero((of == u) & (notional > 0))
        tiers, bare = market.rows[u].tiers, market.rows[u]
        ends = [tier.up_to for tier in tiers] or [1.0]
        for level, rates in enumerate(
            (
                [tier.initial for tier in tiers] or [bare.perp_initial],
                [tier.maintenance for tier in tiers] or [bare.perp_maintenance],
            )
        ):
            charges[level, here] = banded(notional[here], ends, rates) * (part[here] / notional[here])
    return plain_requirement(portfolios, charges, market)
