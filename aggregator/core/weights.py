"""Weights and ratios that depend on size: the larger a position, the less it counts, or the more it needs. Pure.

Q is the size in whole tokens (in USD for unrealised profit), ``imf`` a factor per square root of that unit. All
functions are vectorised over numpy arrays and broadcast; scalars give scalars.

Sources: Drift protocol v2, ``math/margin`` (asset and liability weights, perp ratio, deposits); OKX position tiers
(bands); ISDA SIMM (curvature). Published numbers: risk.md §11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aggregator.core.instruments.arguments import finite, not_negative
from aggregator.domain.units import Floats

NUMERATOR = 1.1
"""Of the asset weight: positions whose imf·√Q is below 0.1/w lose nothing."""
BASE = 0.8
"""Part of a liability's ratio that stays beside the term of size."""
SIMM_DAYS = 14.0


def asset_weight(weight: float | Floats, size: float | Floats, imf: float | Floats) -> Floats:
    """Return ``min(w, 1.1 / (1 + imf·√Q))``: what an asset counts, falling with its size.

    Raises:
        ValueError: names the argument that is negative, NaN or infinite.
    """
    not_negative("weight", weight)
    not_negative("size", size)
    not_negative("imf", imf)
    counted: Floats = np.minimum(weight, NUMERATOR / (1 + np.multiply(imf, np.sqrt(size))))
    return counted


def liability_weight(weight: float | Floats, size: float | Floats, imf: float | Floats) -> Floats:
    """Return ``max(r, 0.8 r + imf·√Q)``: the ratio (perps) or weight (debts) r, rising with the size.

    Raises:
        ValueError: names the argument that is negative, NaN or infinite.
    """
    not_negative("weight", weight)
    not_negative("size", size)
    not_negative("imf", imf)
    counted: Floats = np.maximum(weight, np.multiply(BASE, weight) + np.multiply(imf, np.sqrt(size)))
    return counted


def perp_margin(size: float | Floats, price: float | Floats, ratio: float | Floats, imf: float | Floats) -> Floats:
    """Return ``|q|·p·max(r, 0.8 r + imf·√|q|)``, in the unit of ``price``.

    Args:
        size: q, signed whole units of the underlying.
        price: p, per whole unit.
        ratio: r, initial or maintenance.
        imf: per square root of a unit.
    """
    finite("size", size)
    not_negative("price", price)
    units = np.abs(size)
    return (units * price * liability_weight(ratio, units, imf))[()]


def deposit_weight(weight: float | Floats, scale_start: float | Floats, deposits: float | Floats) -> Floats:
    """Return ``w·min(1, scale_start/deposits)``: a weight scaled down once all deposits of a token pass a value.

    Args:
        weight: w.
        scale_start: value of deposits from which it falls; 0 = it never does.
        deposits: value of all deposits, in the same unit.
    """
    not_negative("weight", weight)
    not_negative("scale_start", scale_start)
    not_negative("deposits", deposits)
    start, total = np.asarray(scale_start, dtype=np.float64), np.asarray(deposits, dtype=np.float64)
    scaled = (start > 0) & (total > start)
    return (weight * np.where(scaled, start / np.where(scaled, total, 1.0), 1.0))[()]


def band_sum(widths: Sequence[float] | Floats, rates: Sequence[float] | Floats) -> float:
    """Return Σ width·rate: the margin of a notional that fills these bands.

    Raises:
        ValueError: the two differ in length, or one is negative, NaN or infinite.
    """
    not_negative("widths", widths)
    not_negative("rates", rates)
    if len(widths) != len(rates):
        raise ValueError(f"rates: {len(rates)} for {len(widths)} bands; give one each")
    return math.fsum(width * rate for width, rate in zip(widths, rates, strict=True))


def banded(notional: float | Floats, ends: Sequence[float], rates: Sequence[float]) -> Floats:
    """Return what bands ask of a notional: each part of it at the rate of its band; the last rate goes on beyond.

    Continuous, and never falling in the notional.

    Args:
        notional: of any shape, not negative.
        ends: where the bands end, ascending and positive; at least one.
        rates: one per band.

    Raises:
        ValueError: names the argument at fault.
    """
    not_negative("notional", notional)
    not_negative("ends", ends)
    not_negative("rates", rates)
    if not ends or len(ends) != len(rates):
        raise ValueError(f"rates: {len(rates)} for {len(ends)} bands; give one each, at least one")
    total = np.zeros_like(np.asarray(notional, dtype=np.float64))
    begin = 0.0
    for number, (end, rate) in enumerate(zip(ends, rates, strict=True)):
        if end <= begin:
            raise ValueError(f"ends: {end:g} does not lie above {begin:g}")
        last = number == len(ends) - 1
        total = total + rate * (np.clip(notional, begin, np.inf if last else end) - begin)
        begin = end
    return total[()]


def simm_curvature(days: float | Floats) -> Floats:
    """Return SIMM's scaling of curvature, ``½·min(1, 14/days)``, by the days to expiry; 0 days count like 14.

    Source: ISDA SIMM methodology, curvature margin.
    """
    not_negative("days", days)
    return (0.5 * np.minimum(1.0, SIMM_DAYS / np.maximum(days, SIMM_DAYS)))[()]
