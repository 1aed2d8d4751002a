"""The health model: weighted assets against weighted debts (risk.md §6).

``H = W+/W-`` and ``ME = W+ − W-`` at maintenance, ``FC = W+ − W-`` at initial margin, each over an interval: ``low``
holds everything uncertain against the account and alone may open risk, ``high`` alone may call an account liquidatable.
Without derivatives, haircuts and the exit gate, H is Aave's health factor.
"""

from __future__ import annotations

import numpy as np

from aggregator.domain.book import Bools, Ints
from aggregator.domain.report import HIGH, LOW, MAINTENANCE, MID
from aggregator.domain.units import SAFETY, USD, Floats

HEALTHY, UNHEALTHY, UNKNOWN = range(3)


def round_down(values: Floats) -> Floats:
    """Return 1e-8 USD moved 2**-40 relative and rounded down, as integral floats: ``units.usd_down`` in columns."""
    down: Floats = np.floor((values - np.abs(values) * SAFETY) * USD)
    return down


def round_up(values: Floats) -> Floats:
    """Return 1e-8 USD moved 2**-40 relative and rounded up, as integral floats: ``units.usd_up`` in columns."""
    up: Floats = np.ceil((values + np.abs(values) * SAFETY) * USD)
    return up


def ratio(assets: float, debts: float) -> float | None:
    """Return H = W+/W-, or None (infinite) where nothing is owed."""
    return assets / debts if debts > 0 else None


def status_of(assets: Floats, debts: Floats, *, unsure: Bools, unpriced: Bools, unread: Bools) -> tuple[Ints, Bools]:
    """Decide every account's status from the interval.

    Args:
        assets, debts: W+ and W- in USD, shape (end, level, A).
        unsure: something of the account is stale or unknown, shape (A,).
        unpriced: an asset has no price or could not be read, so that ``high`` is no upper bound, shape (A,).
        unread: a chain was never read, so that neither end is a bound: debts may stand there too, shape (A,).

    Returns:
        (codes of ``report.STATUSES``, liquidatable), each of shape (A,). Healthy iff ME ≥ 0 at ``low`` as attested,
        after rounding toward safety; liquidatable iff ME < 0 at ``high``.
    """
    excess = assets[:, MAINTENANCE] - debts[:, MAINTENANCE]
    healthy = (round_down(assets[LOW, MAINTENANCE]) >= round_up(debts[LOW, MAINTENANCE])) & ~unread
    liquidatable = (round_up(excess[HIGH]) < 0) & ~unpriced & ~unread
    unhealthy = liquidatable | ((round_up(excess[MID]) < 0) & ~unsure)
    codes = np.where(healthy, HEALTHY, np.where(unhealthy, UNHEALTHY, UNKNOWN)).astype(np.int64)
    return codes, liquidatable
