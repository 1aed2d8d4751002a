"""Volatility by EWMA and GARCH(1,1), and returns filtered by it (risk.md §5).

Returns are per period, whatever the period is; so are variances. A variance at index t is the forecast for return t
from those before it; the one after the last return is the forecast for the period to come. The first :data:`SEED` are
no forecasts: their start is the mean square of as many returns, their own and later ones among them.

Sources: J.P. Morgan/Reuters, *RiskMetrics* (1996), λ = 0.94 for daily data; Bollerslev (1986); Barone-Adesi, Bourgoin
and Giannopoulos (1998) and Hull and White (1998) for filtered historical simulation.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.signal import lfilter

from aggregator.domain.units import Floats

DECAY = 0.94
SEED = 30
"""So many returns start the recursions: their mean square is the first variance."""
LEAST_RETURNS = 250
"""With fewer, GARCH is not fitted."""
MOST_PERSISTENT = 0.9995
"""α + β at or beyond it is no longer told from 1: the long-run variance does not exist."""


def _series(returns: Floats, least: int = 1) -> Floats:
    given = np.asarray(returns, dtype=np.float64)
    if given.ndim not in (1, 2) or given.shape[0] < least:
        raise ValueError(f"returns: {given.shape} given; at least {least} by time, with or without columns, are needed")
    if not np.isfinite(given).all():
        raise ValueError("returns: must be finite")
    return given


def _recursion(squares: Floats, constant: float, weight: float, memory: float, first: Floats) -> Floats:
    """Compute ``v_t = constant + weight·squares_{t−1} + memory·v_{t−1}`` for t = 0 … n from v_0 = ``first``."""
    drive = constant + weight * squares
    rest, _ = lfilter([1.0], [1.0, -memory], drive, axis=0, zi=memory * np.asarray(first)[None, ...])
    return np.concatenate([np.asarray(first)[None, ...], rest])


def ewma_variance(returns: Floats, decay: float = DECAY) -> Floats:
    """Compute ``σ²_t = λσ²_{t−1} + (1−λ)r²_{t−1}``.

    Args:
        returns: shape (n,) or (n, U), in time order.
        decay: λ in (0, 1).

    Returns:
        Shape (n+1,) or (n+1, U); σ²_0 is the mean square of the first :data:`SEED` returns.
    """
    if not 0 < decay < 1:
        raise ValueError(f"decay: {decay!r} must lie between 0 and 1, both excluded")
    squares = _series(returns) ** 2
    return _recursion(squares, 0.0, 1 - decay, decay, squares[:SEED].mean(axis=0))


class VolatilityModel(NamedTuple):
    """``σ²_t = ω + a·r²_{t−1} + b·σ²_{t−1}``; EWMA is the case ω = 0, a = 1−λ, b = λ."""

    kind: Literal["garch", "ewma"]
    omega: float
    arch: float  # a
    garch: float  # b
    variance: Floats  # (n+1,) conditional variances; the last is the forecast for the next period
    reason: str = ""  # why EWMA stands in for GARCH

    @property
    def persistence(self) -> float:
        """a + b, below 1 for GARCH and 1 for EWMA."""
        return self.arch + self.garch

    @property
    def long_run(self) -> float:
        """The variance per period that forecasts tend to; for EWMA the present one."""
        if self.kind == "ewma":
            return float(self.variance[-1])
        return self.omega / (1 - self.persistence)

    def forecast(self, periods: int) -> float:
        """Return the expected variance of the sum of the next ``periods`` returns.

        ``Σ_{j<h} [v + (a+b)^j (σ²_T − v)] = hv + (σ²_T − v)(1 − (a+b)^h)/(1 − a − b)``; hσ²_T for EWMA.
        """
        if periods < 1:
            raise ValueError(f"periods: {periods!r}; at least one is needed")
        now, level, p = float(self.variance[-1]), self.long_run, self.persistence
        if self.kind == "ewma":
            return periods * now
        return periods * level + (now - level) * (1 - p**periods) / (1 - p)


def fit_ewma(returns: Floats, decay: float = DECAY, reason: str = "") -> VolatilityModel:
    """Return EWMA as a model, for one series (n,)."""
    return VolatilityModel("ewma", 0.0, 1 - decay, decay, ewma_variance(returns, decay), reason)


def fit_garch(returns: Floats, decay: float = DECAY) -> VolatilityModel:
    """Fit GARCH(1,1) to one series by Gaussian quasi maximum likelihood.

    Parameters are searched as (long-run variance, persistence p = a+b, share a/p), which makes ω > 0, a, b ≥ 0 and
    a + b < 1 plain bounds. Where there is no fit to trust EWMA stands in, with the reason: fewer than
    :data:`LEAST_RETURNS` returns, no variance, no convergence, or persistence at its bound.

    Args:
        returns: shape (n,), finite; a mean near 0 is assumed, as for daily data or finer.
    """
    given = _series(returns)
    if given.ndim != 1:
        raise ValueError("returns: one series is expected")
    if len(given) < LEAST_RETURNS:
        return fit_ewma(given, decay, f"{len(given)} returns, and GARCH needs {LEAST_RETURNS}")
    level = float(np.mean(given**2))
    if level <= 0:
        return fit_ewma(given, decay, "the series does not move")
    squares = given**2 / level  # of unit variance, so that the search is well scaled
    first = np.float64(squares[:SEED].mean())

    def unpack(x: Floats) -> tuple[float, float, float]:
        scale, persistence, share = math.exp(x[0]), float(x[1]), float(x[2])
        return scale * (1 - persistence), persistence * share, persistence * (1 - share)

    def cost(x: Floats) -> float:
        variance = np.maximum(_recursion(squares, *unpack(x), np.asarray(first))[:-1], 1e-12)
        return float(np.mean(np.log(variance) + squares / variance)) / 2

    bounds = [(-5.0, 5.0), (1e-4, MOST_PERSISTENT), (0.0, 1.0)]
    starts = ((0.0, 0.97, 0.08), (0.0, 0.8, 0.25))
    found = min((minimize(cost, start, method="L-BFGS-B", bounds=bounds) for start in starts), key=lambda f: f.fun)
    if not found.success or not math.isfinite(found.fun):
        return fit_ewma(given, decay, f"the likelihood has no maximum that the search found: {found.message}")
    if found.x[1] >= MOST_PERSISTENT - 1e-6:
        return fit_ewma(given, decay, "the fit is not stationary: a + b is 1")
    omega, arch, garch = unpack(found.x)
    variance = level * _recursion(squares, omega, arch, garch, np.asarray(first))
    return VolatilityModel("garch", omega * level, arch, garch, variance)


def filtered_returns(returns: Floats, variance: Floats) -> Floats:
    """Scale every past return to the volatility of today: ``r*_t = r_t·σ_T/σ_t``.

    Columns are scaled one by one, rows stay together: what moved jointly on a date still does.

    Args:
        returns: shape (n,) or (n, U).
        variance: shape (n+1,) or (n+1, U), σ²_0 … σ²_T; where σ_t is 0 the return is left as it is.

    Returns:
        The shape of ``returns``.
    """
    given, square = _series(returns), np.asarray(variance, dtype=np.float64)
    if square.shape != (given.shape[0] + 1, *given.shape[1:]):
        raise ValueError(f"variance: shape {square.shape} does not fit returns of shape {given.shape}")
    if not (np.isfinite(square) & (square >= 0)).all():
        raise ValueError("variance: must be finite and not negative")
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(square[-1] / square[:-1])
    return given * np.where(square[:-1] > 0, scale, 1.0)
