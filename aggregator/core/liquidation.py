"""Closed forms of liquidations: how much must be closed, and what an auction asks for it (risk.md §9, §11). Pure."""

from __future__ import annotations

import math

from aggregator.core.instruments.arguments import not_negative


def liquidation_size(
    shortage: float,
    price: float,
    margin_ratio: float,
    liquidation_fee: float,
    insurance_fee: float = 0.0,
    quote_price: float = 1.0,
) -> float:
    """Return how many units of one perp must be closed to make good a shortage of margin.

    ``size = shortage / (p·p_quote·(margin_ratio − liquidation_fee − insurance_fee))``: every unit closed frees its
    margin and costs the fees. Source: Drift protocol v2, ``math/liquidation``.

    Args:
        shortage: USD that the margin lacks.
        price: p, quote units per unit.
        margin_ratio: margin per notional.
        liquidation_fee, insurance_fee: paid per notional.
        quote_price: USD per quote unit.

    Returns:
        Units, not bounded by what the position holds; infinite where the fees take all the margin that closing frees,
        so that no size is enough; 0 without a shortage.

    Raises:
        ValueError: names the argument that is not finite or negative, or the price that is 0.
    """
    for name, value in (
        ("shortage", shortage), ("price", price), ("margin_ratio", margin_ratio), ("quote_price", quote_price),
        ("liquidation_fee", liquidation_fee), ("insurance_fee", insurance_fee),
    ):  # fmt: skip
        not_negative(name, value)
    if price == 0 or quote_price == 0:
        raise ValueError(f"{'price' if price == 0 else 'quote_price'}: must be positive")
    if shortage == 0:
        return 0.0
    freed = margin_ratio - liquidation_fee - insurance_fee
    return shortage / (price * quote_price * freed) if freed > 0 else math.inf


def auction_discount(t: float, start: float, cutoff: float, fast: float, slow: float) -> float:
    """Return the share of the mark-to-market at which a solvent auction sells, t seconds after it began.

    While t < fast: ``start − (start − cutoff)·t/fast``; then ``max(0, cutoff·(1 − (t − fast)/slow))``. Continuous and
    not rising. Source: Derive v2-core, ``DutchAuction``.

    Args:
        t: seconds since the beginning.
        start, cutoff: shares at the beginning and at the end of the fast phase, ``start ≥ cutoff``.
        fast, slow: seconds that the phases take; a phase of 0 seconds is skipped.

    Raises:
        ValueError: names the argument that is negative or not finite, or a cutoff above the start.
    """
    for name, value in (("t", t), ("start", start), ("cutoff", cutoff), ("fast", fast), ("slow", slow)):
        not_negative(name, value)
    if cutoff > start:
        raise ValueError("cutoff: must not be above start; an auction's price falls")
    if t < fast:
        return start - (start - cutoff) * t / fast
    return max(0.0, cutoff * (1 - (t - fast) / slow)) if slow else 0.0
