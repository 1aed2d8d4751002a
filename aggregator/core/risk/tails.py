"""Value at risk and expected shortfall: closed forms, samples, and tails that samples are too short for (risk.md §5).

Losses are positive numbers. α is the confidence, in (0, 1): VaR_α is the α-quantile of the loss, ES_α the mean of the
losses from there on, ``(1−α)⁻¹ ∫_α^1 VaR_u du``.

Sources: McNeil, Frey and Embrechts, *Quantitative Risk Management* (2015), §2.3 closed forms, §5.2 generalised Pareto;
Acerbi and Tasche (2002) for the estimator; Cornish and Fisher (1938) and Maillard (2012) for the expansion.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtri, stdtrit

from aggregator.domain.units import Floats

_ROUNDING = 1e-9  # n·(1−α) this near above or below a whole number is that number
LEAST_EXCESSES = 10
"""Fewer exceedances of its threshold tell nothing of a tail's shape."""


def require_confidence(alpha: float) -> float:
    """Return ``alpha`` if it lies in (0, 1).

    Raises:
        ValueError: it does not, or is NaN.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: {alpha!r} is no confidence between 0 and 1, both excluded")
    return alpha


def _require_scale(sd: float) -> float:
    if not 0 <= sd < math.inf:
        raise ValueError(f"sd: {sd!r} must be a finite number of at least 0")
    return sd


def _require_degrees(nu: float) -> float:
    if not 2 < nu < math.inf:
        raise ValueError(f"nu: {nu!r} must be above 2, or the standard deviation is infinite")
    return nu


def normal_var(sd: float, alpha: float, mean: float = 0.0) -> float:
    """Return VaR of a normal loss, ``mean + sd·z_α``."""
    return mean + _require_scale(sd) * float(ndtri(require_confidence(alpha)))


def normal_es(sd: float, alpha: float, mean: float = 0.0) -> float:
    """Return ES of a normal loss, ``mean + sd·φ(z_α)/(1−α)``."""
    z = float(ndtri(require_confidence(alpha)))
    return mean + _require_scale(sd) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / (1 - alpha)


def student_var(sd: float, nu: float, alpha: float, mean: float = 0.0) -> float:
    """Return VaR of a Student t loss with ``nu`` degrees of freedom and standard deviation ``sd``.

    ``mean + sd·√((ν−2)/ν)·q``, q the α-quantile of the standard t: its own standard deviation is √(ν/(ν−2)).
    """
    scale = _require_scale(sd) * math.sqrt((_require_degrees(nu) - 2) / nu)
    return mean + scale * float(stdtrit(nu, require_confidence(alpha)))


def student_es(sd: float, nu: float, alpha: float, mean: float = 0.0) -> float:
    """Return ES of a Student t loss: ``mean + sd·√((ν−2)/ν)·f_ν(q)/(1−α)·(ν+q²)/(ν−1)``, f_ν the density."""
    scale = _require_scale(sd) * math.sqrt((_require_degrees(nu) - 2) / nu)
    q = float(stdtrit(nu, require_confidence(alpha)))
    peak = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(nu * math.pi)
    density = peak * math.exp(-(nu + 1) / 2 * math.log1p(q * q / nu))
    return mean + scale * density / (1 - alpha) * (nu + q * q) / (nu - 1)


class Tail(NamedTuple):
    """Weights that make the mean of the sorted losses their ES: the ``whole`` greatest count 1, the next ``part``."""

    whole: int
    part: float  # in [0, 1)

    @property
    def mass(self) -> float:
        """n(1−α)."""
        return self.whole + self.part


def tail_of(n: int, alpha: float) -> Tail:
    """Return how many of n losses lie beyond VaR_α.

    Raises:
        ValueError: n < 1, or alpha is not in (0, 1).
    """
    if n < 1:
        raise ValueError("losses: none are given; at least one is needed")
    mass = n * (1 - require_confidence(alpha))
    whole = min(math.floor(mass + _ROUNDING), n)
    part = mass - whole
    return Tail(whole, part if part > _ROUNDING else 0.0)


def expected_shortfall(losses: Floats, alpha: float) -> Floats:
    """Estimate ES: ``(n(1−α))⁻¹ [Σ_{i≤⌊n(1−α)⌋} L_(i) + frac·L_next]``, L_(1) ≥ L_(2) ≥ … the sorted losses.

    It is the exact integral of the empirical quantile, hence coherent for every n and α. With n(1−α) < 1 it is the
    greatest loss.

    Args:
        losses: shape (..., n), finite.
        alpha: confidence.

    Returns:
        Shape (...).
    """
    tail, worst = _worst(losses, alpha)
    total = worst[..., : tail.whole].sum(axis=-1)
    if tail.part:
        total = total + tail.part * worst[..., tail.whole]
    return np.asarray(total / tail.mass, dtype=np.float64)


def value_at_risk(losses: Floats, alpha: float) -> Floats:
    """Estimate VaR by the empirical quantile ``inf{x: F_n(x) ≥ α}``, the loss L_(⌊n(1−α)⌋+1), over the last axis."""
    tail, worst = _worst(losses, alpha)
    return np.asarray(worst[..., min(tail.whole, worst.shape[-1] - 1)], dtype=np.float64)


def _worst(losses: Floats, alpha: float) -> tuple[Tail, Floats]:
    """Return the tail and at least its losses, greatest first."""
    given = np.asarray(losses, dtype=np.float64)
    if not np.isfinite(given).all():
        raise ValueError("losses: must be finite")
    n = given.shape[-1] if given.ndim else 0
    tail = tail_of(n, alpha)
    keep = min(tail.whole + 1, n)
    cut = np.partition(given, n - keep, axis=-1)[..., n - keep :]
    return tail, -np.sort(-cut, axis=-1)


def tail_weights(losses: Floats, alpha: float) -> Floats:
    """Return the weights w ≥ 0, adding up to 1, with ``ES_α = Σ w_i L_i``; shape (n,).

    They allocate: a part's ES contribution is the w-mean of its own losses (Tasche 1999). Among equal losses the first
    count first.
    """
    given = np.asarray(losses, dtype=np.float64)
    if given.ndim != 1 or not np.isfinite(given).all():
        raise ValueError("losses: must be one finite series")
    tail = tail_of(len(given), alpha)
    order = np.argsort(-given, kind="stable")
    weights = np.zeros(len(given))
    weights[order[: tail.whole]] = 1.0
    if tail.part:
        weights[order[tail.whole]] = tail.part
    return np.asarray(weights / tail.mass, dtype=np.float64)


def cornish_fisher_quantile(skew: float, excess_kurtosis: float, p: float) -> float:
    """Return the p-quantile of a standardised law with this skewness S and excess kurtosis K, to third order:

    ``z + (z²−1)S/6 + (z³−3z)K/24 − (2z³−5z)S²/36``, z the normal quantile.
    """
    z = float(ndtri(require_confidence(p)))
    if not (math.isfinite(skew) and math.isfinite(excess_kurtosis)):
        raise ValueError("skew, excess_kurtosis: must be finite")
    return z + (z * z - 1) * skew / 6 + (z**3 - 3 * z) * excess_kurtosis / 24 - (2 * z**3 - 5 * z) * skew**2 / 36


def cornish_fisher_is_a_quantile(skew: float, excess_kurtosis: float) -> bool:
    """Say whether the expansion rises everywhere, as a quantile must (Maillard 2012).

    Its slope is a quadratic in z that must have no two roots:
    ``S²/9 − 4·(K/8 − S²/6)·(1 − K/8 + 5S²/36) ≤ 0``. Elsewhere a VaR by it may fall as the confidence rises.
    """
    s2 = skew * skew
    lead, level = excess_kurtosis / 8 - s2 / 6, 1 - excess_kurtosis / 8 + 5 * s2 / 36
    return s2 / 9 - 4 * lead * level <= 0 and lead >= 0 and level > 0


def cornish_fisher_var(mean: float, sd: float, skew: float, excess_kurtosis: float, alpha: float) -> float:
    """Return VaR from the first four moments of the *PnL*: ``−(mean + sd·w(1−α))``, w the expansion's quantile.

    For VaR only: the expansion has no density, so it has no ES.
    """
    quantile = cornish_fisher_quantile(skew, excess_kurtosis, 1 - require_confidence(alpha))
    return -(mean + _require_scale(sd) * quantile)


class ParetoTail(NamedTuple):
    """A generalised Pareto tail: ``P(L > u + y) = share·(1 + ξy/β)^(−1/ξ)``, ``share·e^(−y/β)`` for ξ = 0."""

    threshold: float  # u
    shape: float  # ξ
    scale: float  # β > 0
    share: float  # of the losses that exceed u

    def quantile(self, alpha: float) -> float:
        """Return VaR_α, for α beyond the threshold's own confidence."""
        ratio = (1 - require_confidence(alpha)) / self.share
        if ratio > 1 + _ROUNDING:
            raise ValueError(f"alpha: {alpha:g} lies below the threshold; the tail begins at {1 - self.share:g}")
        if abs(self.shape) < 1e-12:
            return self.threshold - self.scale * math.log(ratio)
        return self.threshold + self.scale * math.expm1(-self.shape * math.log(ratio)) / self.shape

    def shortfall(self, alpha: float) -> float:
        """Return ES_α, ``(VaR + β − ξu)/(1 − ξ)``; infinite for ξ ≥ 1, where the mean of the tail is."""
        value = self.quantile(alpha)
        if self.shape >= 1:
            return math.inf
        return (value + self.scale - self.shape * self.threshold) / (1 - self.shape)


def fit_pareto_tail(losses: Floats, threshold: float) -> ParetoTail:
    """Fit a generalised Pareto law to the exceedances of ``threshold`` by maximum likelihood.

    Grimshaw's (1993) reduction: with θ = ξ/β the likelihood is greatest at ``ξ(θ) = mean ln(1+θy)``, which leaves one
    bounded search over θ. ξ is kept at −½ or more, below which the likelihood has no interior maximum.

    Args:
        losses: shape (n,), finite.
        threshold: u; at least :data:`LEAST_EXCESSES` losses must exceed it.

    Raises:
        ValueError: too few do, or all exceedances are equal.
    """
    given = np.asarray(losses, dtype=np.float64)
    if given.ndim != 1 or not np.isfinite(given).all() or not math.isfinite(threshold):
        raise ValueError("losses, threshold: must be one finite series and a finite number")
    excess = given[given > threshold] - threshold
    if len(excess) < LEAST_EXCESSES:
        raise ValueError(f"threshold: {len(excess)} losses exceed {threshold:g}; a fit needs {LEAST_EXCESSES}")
    mean, most = float(excess.mean()), float(excess.max())
    if most - float(excess.min()) <= 1e-12 * most:
        raise ValueError("losses: all exceedances are equal; they have no law to fit")
    scaled = excess / mean

    def shape_at(theta: float) -> float:
        return float(np.log1p(theta * scaled).mean())

    def cost(theta: float) -> float:
        """Negative log-likelihood per exceedance, of the scaled ones."""
        shape = shape_at(theta)
        scale = shape / theta if abs(theta) > 1e-9 else 1.0
        return math.log(scale) + shape + 1

    # The likelihood is smooth in log(θ − θ_min); θ_min = −1/max is where the support would end at the greatest loss.
    least = -mean / most
    grid = least * (1 - np.geomspace(1e-6, 1e5, 120))
    grid = grid[[shape_at(float(theta)) >= -0.5 for theta in grid]]
    costs = [cost(float(theta)) for theta in grid]
    at = int(np.argmin(costs))
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    found = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    theta = float(found.x) if found.fun <= costs[at] else float(grid[at])
    shape = shape_at(theta)
    scale = shape / theta if abs(theta) > 1e-9 else 1.0
    return ParetoTail(threshold, shape, scale * mean, len(excess) / len(given))
