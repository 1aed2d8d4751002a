"""The cross model: positions of an account net where they are the same thing, and only there.

Perps of an underlying, linear and inverse together, net to q units and are charged ``|q|·S·max(r, 0.8·r + imf·√|q|)``
(risk.md §4). Options net by instrument; what remains short is charged as ``contracts.short_option_charges`` says, what
remains long nothing. Options offset neither perps nor one another; hedging spot changes nothing.
"""

from __future__ import annotations

import numpy as np

from aggregator.core.contracts import (
    linear_units,
    net_by,
    plain_requirement,
    short_option_charges,
    verify_portfolios,
)
from aggregator.core.weights import liability_weight
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the model requires of every portfolio, USD; see the module.

    A row's allocation carries its sign: what offsets within a net is credited.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    verify_portfolios(portfolios, market)
    row, of = portfolios.instrument, portfolios.instruments.underlying[portfolios.instrument]
    units, spot = linear_units(portfolios), market.spot[of]
    net = net_by(portfolios.account, of, units)
    ratio = np.array([(row.perp_initial, row.perp_maintenance) for row in market.rows]).reshape(-1, 2).T
    size_factor = np.array([row.size_factor for row in market.rows])
    charges = np.stack(
        [units * np.sign(net) * spot * liability_weight(level[of], np.abs(net), size_factor[of]) for level in ratio]
    )
    short = net_by(portfolios.account, row, portfolios.size) < 0
    charges += short_option_charges(portfolios.instruments, market)[:, row] * -portfolios.size * short
    return plain_requirement(portfolios, charges, market)
