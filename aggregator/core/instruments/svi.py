"""Implied volatility from the policy's SVI surface (risk.md §3).

One slice is Gatheral's raw parametrisation of total variance ``w = vol²·τ`` in log-moneyness ``k = ln(K/F)``:
``w(k) = a + b(ρ(k−m) + √((k−m)² + σ²))`` (J. Gatheral, A. Jacquier, "Arbitrage-free SVI volatility surfaces",
Quantitative Finance 14 (2014), §3.1). Beyond ``|k| = 4√(a + bσ)``, some four standard deviations, a slice is held flat:
nothing is quoted there, and the wings must not run away with the margin.

Between two tenors total variance is linear in the tenor at fixed k, which keeps a surface free of calendar arbitrage
wherever its slices do not cross; before the first and after the last tenor the *volatility* is held.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aggregator.core.instruments.arguments import finite, not_negative, positive
from aggregator.domain.policy import SviRow
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

WIDTH = 4.0
"""A slice is flat beyond this many √(a + bσ)."""
_ROUNDING = 1e-12  # a least variance of 0 may come out this much below it


def vol(strike: npt.ArrayLike, forward: npt.ArrayLike, t: npt.ArrayLike, rows: Sequence[SviRow]) -> Floats:
    """Read implied volatilities off a surface, per sqrt(year), shaped as the arguments broadcast.

    Args:
        strike, forward: USD, not negative. A strike or forward of 0 reads the flat end of the slice.
        t: years to expiry, not negative; at 0 the first slice's volatility.
        rows: slices, ascending in tenor.

    Raises:
        ValueError: an argument is NaN, infinite or negative; no rows, or rows out of order.
    """
    strike, forward, t = not_negative("strike", strike), not_negative("forward", forward), not_negative("t", t)
    if not rows:
        raise ValueError("rows must hold at least one slice")
    tenor, a, b, rho, m, sigma = np.array(
        [(row.tenor / SECONDS_PER_YEAR, row.a, row.b, row.rho, row.m, row.sigma) for row in rows]
    ).T
    if (np.diff(tenor) <= 0).any():
        raise ValueError("rows must ascend in tenor")
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.log(strike) - np.log(forward)
    k = np.where(np.isnan(k), 0.0, k)  # 0/0: at the money
    held = np.clip(t, tenor[0], tenor[-1])
    upper = np.searchsorted(tenor, held)  # the first slice at or after t
    lower = np.maximum(upper - 1, 0)
    ends = [_variance(_clipped(k, a[i], b[i], sigma[i]), a[i], b[i], rho[i], m[i], sigma[i]) for i in (lower, upper)]
    gap = tenor[upper] - tenor[lower]
    weight = np.divide(held - tenor[lower], gap, out=np.ones_like(held), where=gap > 0)
    return np.asarray(np.sqrt(((1 - weight) * ends[0] + weight * ends[1]) / held))


def total_variance(k: npt.ArrayLike, row: SviRow) -> Floats:
    """Compute w(k) of one slice, clipped; ``k`` may be infinite (a strike or forward of 0).

    Raises:
        ValueError: ``k`` is NaN.
    """
    return _variance(_clipped(_moneyness(k), row.a, row.b, row.sigma), row.a, row.b, row.rho, row.m, row.sigma)


def slice_vol(
    k: npt.ArrayLike,
    tau: npt.ArrayLike,
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    rho: npt.ArrayLike,
    m: npt.ArrayLike,
    sigma: npt.ArrayLike,
    clip: bool = True,
) -> Floats:
    """Compute ``√(w(k)/τ)`` of slices given by their parameters, shaped as the arguments broadcast.

    Args:
        k: ln(K/F); infinite only if clipped.
        tau: years, positive.
        a, b, rho, m, sigma: raw SVI parameters; b and sigma not negative, |rho| at most 1.
        clip: hold the slice flat beyond ±4√(a + bσ).

    Raises:
        ValueError: an argument is NaN, infinite or out of its range, or the total variance is negative.
    """
    k, tau = (_moneyness(k) if clip else finite("k", k)), positive("tau", tau)
    a, m, b, sigma = finite("a", a), finite("m", m), not_negative("b", b), not_negative("sigma", sigma)
    rho = finite("rho", rho)
    if (np.abs(rho) > 1).any():
        raise ValueError("rho must be in [-1, 1]")
    if clip:
        if (a + b * sigma < 0).any():
            raise ValueError("a + b·sigma must not be negative")
        k = _clipped(k, a, b, sigma)
    return np.sqrt(_variance(k, a, b, rho, m, sigma) / tau)


def _moneyness(k: npt.ArrayLike) -> Floats:
    array = np.asarray(k, dtype=np.float64)
    if np.isnan(array).any():
        raise ValueError("k must not be NaN")
    return array


def _clipped(k: Floats, a: Floats | float, b: Floats | float, sigma: Floats | float) -> Floats:
    """Return k within the part of the slice that is not flat."""
    end = WIDTH * np.sqrt(a + b * sigma)
    return np.clip(k, -end, end)


def _variance(
    k: Floats, a: Floats | float, b: Floats | float, rho: Floats | float, m: Floats | float, sigma: Floats | float
) -> Floats:
    """Compute raw w(k)."""
    x = k - m
    w = np.asarray(a + b * (rho * x + np.hypot(x, sigma)))
    if (w < -_ROUNDING).any():
        raise ValueError("a: the slice's total variance is negative")
    return np.maximum(w, 0.0)
