"""Joint moves by simulation: a t copula over margins of filtered history with Pareto tails (risk.md §5).

Margins are the empirical law of filtered returns between two thresholds, and generalised Pareto laws beyond them, so
that a simulation reaches farther than its history. The copula is that of ``X = Z/√(W/ν)``, Z normal with correlation P
and W ~ χ²_ν common to all: what crashes together does so more often than normal correlation says. P comes from
Kendall's τ, ``ρ = sin(πτ/2)``; ν from the likelihood of the ranks. Draws are a scrambled Sobol sequence, the same for
the same seed.

Sources: McNeil, Frey and Embrechts, *Quantitative Risk Management* (2015), §7.3, §7.5; Demarta and McNeil (2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gammaincinv, gammaln, ndtri, stdtr, stdtrit
from scipy.stats import kendalltau, qmc

from aggregator.core.risk.tails import ParetoTail, fit_pareto_tail
from aggregator.domain.units import Floats

TAIL = 0.10
"""Share of the returns on either side that belongs to a Pareto tail."""
LARGEST = math.log(11.0)
"""Simulated log returns stay within ±LARGEST: from −91% to tenfold and one more."""
DEGREES = (2.1, 60.0)
"""Between these ν is searched; at the upper end the copula is nearly normal."""


class Margin(NamedTuple):
    """The law of one underlying's log return."""

    body: Floats  # sorted returns
    lower: ParetoTail  # of the losses
    upper: ParetoTail

    def quantile(self, u: Floats) -> Floats:
        """Return the quantiles at chances in (0, 1): interpolated order statistics between the tails."""
        n = len(self.body)
        inner = np.interp(u, (np.arange(n) + 0.5) / n, self.body)
        low = -_beyond(self.lower, u)
        high = _beyond(self.upper, 1 - u)
        return np.where(u < self.lower.share, low, np.where(1 - u < self.upper.share, high, inner))


def _beyond(tail: ParetoTail, chance: Floats) -> Floats:
    """Return the loss that is exceeded with so small a chance."""
    log = np.log(np.minimum(chance / tail.share, 1.0))
    if abs(tail.shape) < 1e-12:
        return tail.threshold - tail.scale * log
    return np.asarray(tail.threshold + tail.scale * np.expm1(-tail.shape * log) / tail.shape, dtype=np.float64)


class Copula(NamedTuple):
    """Dependence."""

    correlation: Floats  # (U, U)
    degrees: float  # ν


def fit_margin(returns: Floats) -> Margin:
    """Fit one margin to log returns (n,), n ≥ 100.

    Raises:
        ValueError: there are too few, or they do not vary.
    """
    given = np.sort(np.asarray(returns, dtype=np.float64))
    if given.ndim != 1 or len(given) < 100 or not np.isfinite(given).all():
        raise ValueError("returns: at least 100 finite ones are needed to tell body from tails")
    low, high = (float(x) for x in np.quantile(given, [TAIL, 1 - TAIL]))
    return Margin(given, fit_pareto_tail(-given, -low), fit_pareto_tail(given, high))


def fit_copula(returns: Floats, degrees: float | None = None) -> Copula:
    """Fit the copula to joint returns, shape (n, U); ν too unless it is given."""
    given = np.asarray(returns, dtype=np.float64)
    if given.ndim != 2 or len(given) < 20 or not np.isfinite(given).all():
        raise ValueError("returns: at least 20 joint, finite rows are needed")
    width = given.shape[1]
    rho = np.eye(width)
    for i in range(width):
        for j in range(i):
            tau = float(kendalltau(given[:, i], given[:, j]).statistic)
            rho[i, j] = rho[j, i] = math.sin(math.pi / 2 * tau) if math.isfinite(tau) else 0.0
    rho = nearest_correlation(rho)
    if degrees is not None:
        if not DEGREES[0] <= degrees < math.inf:
            raise ValueError(f"degrees: {degrees!r} must be at least {DEGREES[0]} and finite")
        return Copula(rho, degrees)
    if width == 1:
        return Copula(rho, DEGREES[1])  # nothing to depend on
    ranks = (np.argsort(np.argsort(given, axis=0), axis=0) + 1) / (len(given) + 1)
    inverse, log_det = np.linalg.inv(rho), float(np.linalg.slogdet(rho)[1])

    def cost(nu: float) -> float:
        x = stdtrit(nu, ranks)
        joint = gammaln((nu + width) / 2) + (width - 1) * gammaln(nu / 2) - width * gammaln((nu + 1) / 2) - log_det / 2
        quadratic = np.einsum("ni,ij,nj->n", x, inverse, x)
        terms = -(nu + width) / 2 * np.log1p(quadratic / nu) + (nu + 1) / 2 * np.log1p(x * x / nu).sum(axis=1)
        return -float(joint + terms.mean())

    found = minimize_scalar(cost, bounds=DEGREES, method="bounded", options={"xatol": 1e-3})
    return Copula(rho, float(found.x))


def nearest_correlation(matrix: Floats) -> Floats:
    """Return a correlation matrix near a symmetric one: negative eigenvalues raised, the diagonal scaled back to 1."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, dtype=np.float64))
    raised = vectors @ np.diag(np.maximum(values, 1e-8)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(raised))
    made = raised * np.outer(scale, scale)
    np.fill_diagonal(made, 1.0)
    return np.asarray((made + made.T) / 2, dtype=np.float64)


def sobol(count: int, width: int, seed: int) -> Floats:
    """Return ``count`` (a power of two) points of a scrambled Sobol sequence inside (0, 1)^width."""
    if count < 2 or count & (count - 1):
        raise ValueError(f"count: {count!r} must be a power of two, or the sequence loses its balance")
    points = qmc.Sobol(width, scramble=True, rng=np.random.default_rng(seed)).random(count)
    return np.asarray(np.clip(points, 2.0**-40, 1 - 2.0**-40), dtype=np.float64)


def simulate_uniforms(copula: Copula, count: int, seed: int) -> Floats:
    """Draw from a t copula, shape (count, U): one dimension of the sequence for each Z, and one for W."""
    points = sobol(count, len(copula.correlation) + 1, seed)
    z = ndtri(points[:, :-1]) @ np.linalg.cholesky(nearest_correlation(copula.correlation)).T
    w = 2 * gammaincinv(copula.degrees / 2, points[:, -1:])  # χ²_ν
    return np.asarray(stdtr(copula.degrees, z / np.sqrt(w / copula.degrees)), dtype=np.float64)


def simulate_moves(copula: Copula, margins: Sequence[Margin], count: int, seed: int) -> Floats:
    """Simulate joint relative moves ``e^x − 1``, shape (count, U), above −1.

    Args:
        margins: one per underlying, of log returns.
        count: a power of two.
        seed: of the scrambling; the same gives the same moves.
    """
    if len(margins) != len(copula.correlation):
        raise ValueError(f"margins: {len(margins)} for a copula of {len(copula.correlation)}")
    u = np.clip(simulate_uniforms(copula, count, seed), 1e-15, 1 - 1e-15)
    x = np.column_stack([margin.quantile(u[:, i]) for i, margin in enumerate(margins)])
    return np.asarray(np.expm1(np.clip(x, -LARGEST, LARGEST)), dtype=np.float64)


def simulate_normal(covariance: Floats, count: int, seed: int) -> Floats:
    """Simulate normal relative moves x ~ N(0, Σ), none below −0.99, shape (count, U)."""
    sigma = np.asarray(covariance, dtype=np.float64)
    sd = np.sqrt(np.diag(sigma))
    safe = np.where(sd > 0, sd, 1.0)
    root = np.linalg.cholesky(nearest_correlation(sigma / np.outer(safe, safe)))
    z = ndtri(sobol(count, len(sigma), seed)) @ root.T
    return np.asarray(np.maximum(z * sd, -0.99), dtype=np.float64)
