"""The health model: weighted assets against weighted debts (risk.md §6).

``H = W+/W-`` and ``ME = W+ − W-`` at maintenance, ``FC = W+ − W-`` at initial margin, each over an interval: ``low``
holds everything uncertain against the account and alone may open risk, ``high`` alone may call an account liquidatable.
Without derivatives, haircuts and the exit gate, H is Aave's health factor.
"""

from __future__ import annotations

import numpy as np

from aggregator.core.instruments.arguments import not_negative
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


def weighted_excess(asset: float, liability: float, asset_weight: float, liability_weight: float) -> float:
    """Return weighted assets less weighted liabilities, USD: healthy iff not negative.

    ``asset·aw − liability·lw``, W+ − W- of risk.md §6 for one collateral and one debt. Source: marginfi v2, risk guide.
    """
    _require_sides(asset, liability)
    _require_weights(asset_weight, liability_weight)
    return asset * asset_weight - liability * liability_weight


def weighted_usage(asset: float, liability: float, asset_weight: float, liability_weight: float) -> float | None:
    """Return how much of the weighted assets is used, ``liability·lw / (asset·aw)``: healthy iff at most 1.

    It is 1/H. None (infinite) where something is owed against nothing, 0 where nothing is owed. Source: as above.
    """
    _require_sides(asset, liability)
    _require_weights(asset_weight, liability_weight)
    owed, held = liability * liability_weight, asset * asset_weight
    return 0.0 if owed == 0 else ratio(owed, held)


def greatest_loan_to_value(asset_weight: float, liability_weight: float) -> float:
    """Return the most that may be owed per value of collateral, ``aw/lw``. Source: as above.

    Raises:
        ValueError: a weight is negative or not finite, or the liability's is 0.
    """
    _require_weights(asset_weight, liability_weight)
    if liability_weight == 0:
        raise ValueError("liability_weight: must be positive")
    return asset_weight / liability_weight


def health_factor(collateral: Floats, thresholds: Floats, debt: float) -> float | None:
    """Return Aave's health factor, ``Σ collateral·threshold / debt``: healthy iff at least 1; None without debt.

    It is H of risk.md §6 without derivatives, haircuts and the exit gate.

    Args:
        collateral: USD by asset, shape (n,).
        thresholds: liquidation thresholds in [0, 1], broadcast against it.
        debt: USD.

    Source: Aave v3, ``GenericLogic.calculateUserAccountData``.
    """
    not_negative("collateral", collateral)
    not_negative("thresholds", thresholds)
    if np.any(np.greater(thresholds, 1)):
        raise ValueError("thresholds: must be at most 1")
    not_negative("debt", debt)
    return ratio(float(np.sum(np.multiply(collateral, thresholds))), debt)


def _require_sides(asset: float, liability: float) -> None:
    not_negative("asset", asset)
    not_negative("liability", liability)


def _require_weights(asset_weight: float, liability_weight: float) -> None:
    not_negative("asset_weight", asset_weight)
    not_negative("liability_weight", liability_weight)
