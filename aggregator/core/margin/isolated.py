"""The isolated model: every position by itself, nothing nets.

A perp is charged ``|q|·S·max(r, 0.8·r + imf·√|q|)`` (risk.md §4, "perp size ratio"), a short option the published
charge of ``contracts.short_option_charges``, a long option nothing: it can lose no more than it is worth, which the
account's balance carries. Hedging spot changes nothing.
"""

from __future__ import annotations

import numpy as np

from aggregator.core.contracts import linear_units, plain_requirement, short_option_charges, verify_portfolios
from aggregator.core.weights import perp_margin
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the model requires of every portfolio, USD; see the module.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    verify_portfolios(portfolios, market)
    row, of = portfolios.instrument, portfolios.instruments.underlying[portfolios.instrument]
    units, spot = linear_units(portfolios), market.spot[of]
    ratio = np.array([(row.perp_initial, row.perp_maintenance) for row in market.rows]).reshape(-1, 2).T
    size_factor = np.array([row.size_factor for row in market.rows])
    short = np.maximum(-portfolios.size, 0.0)
    options = short_option_charges(portfolios.instruments, market)[:, row] * short
    charges = options + np.stack([perp_margin(units, spot, level[of], size_factor[of]) for level in ratio])
    return plain_requirement(portfolios, charges, market)
