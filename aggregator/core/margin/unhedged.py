"""The floor where no model of contracts is chosen: the whole notional, nothing netting.

The health model knows assets and debts only, so that whatever a contract may lose is asked for in full: ``|q|·S`` of
every perp and every short option, nothing of a long option or of spot.
"""

from __future__ import annotations

import numpy as np

from aggregator.core.contracts import is_option, linear_units, plain_requirement, verify_portfolios
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the model requires of every portfolio, USD, alike at both levels; see the module.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    verify_portfolios(portfolios, market)
    row, of = portfolios.instrument, portfolios.instruments.underlying[portfolios.instrument]
    short = np.maximum(-portfolios.size, 0.0) * is_option(portfolios.instruments)[row]
    charge = (np.abs(linear_units(portfolios)) + short) * market.spot[of]
    return plain_requirement(portfolios, np.stack([charge, charge]), market)
