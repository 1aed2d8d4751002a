"""What collateral may lose before it can be sold, given how late it is seen (risk.md §2).

The loss law over a horizon τ (years) is ``V/V0 = exp(-σ²τ/2 + σ√τ Z) · Π k_j^N_j`` with ``N_j ~ Poisson(λ_j τ)`` and
jumps not compensated: a finite mixture of lognormals over (horizon node, jump counts). Haircuts are its expected
shortfall, never its value at risk, which is not monotone in σ.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtr, ndtri, xlogy

from aggregator.domain.latency import Law
from aggregator.domain.policy import AssetPolicyRow, JumpRow
from aggregator.domain.rows import LatencyLeg
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

DECIMALS = 12
"""Published haircuts have this many decimals, rounded up; ``riskDigest`` commits to them."""
LARGEST_IMPACT = 7.0
SUM_BITS = 9
"""Sums of measured legs are exact up to 511 s and at most 1/256 too long beyond."""
_NEGLIGIBLE = 1e-18  # jump counts less likely than this are counted as total loss instead of being enumerated
_MAX_STEPS = 200


def expected_shortfall(
    nodes: tuple[Sequence[float], Sequence[float]], sigma: float, jumps: Sequence[JumpRow], alpha: float
) -> float:
    """Compute ES_α of the loss 1 − V/V0 of an asset.

    Args:
        nodes: horizons in seconds, and their probabilities (summing to 1).
        sigma: volatility per sqrt(year).
        jumps: downward jumps, rates per year.
        alpha: confidence in (0, 1).

    Returns:
        The haircut in [0, 1]; non-decreasing in every horizon, σ, jump rate, jump severity and α.
    """
    tau, chance = _nodes(nodes)
    scale = sigma * np.sqrt(tau)
    if len(tau) == 1 and not _live(jumps):
        return float(_diffusion_loss(scale, np.array([1 - alpha]))[0])
    mass, shift = _jump_law(tau, jumps)
    mass = mass * chance[:, None]
    spread = np.broadcast_to(scale[:, None], mass.shape)
    shift = np.broadcast_to(shift, mass.shape)
    return float(_loss(mass.reshape(1, -1), shift.reshape(1, -1), spread.reshape(1, -1), np.array([1 - alpha]))[0])


def expected_shortfall_up(nodes: tuple[Sequence[float], Sequence[float]], sigma: float, alpha: float) -> float:
    """Compute ES_α of the rise V/V0 − 1 of a debt; downward jumps would only help and are left out."""
    tau, chance = _nodes(nodes)
    scale = sigma * np.sqrt(tau)
    if len(tau) == 1:
        return float(_diffusion_rise(scale, np.array([1 - alpha]))[0])
    shift = np.zeros((1, len(tau)))
    return float(_tail_mean(chance[None, :], shift, scale[None, :], np.array([1 - alpha]), upper=True)[0]) - 1


def haircut_table(policies: Sequence[AssetPolicyRow], horizon: Floats) -> tuple[Floats, Floats]:
    """Compute the market haircuts of every (policy, horizon, level) in one vectorised solve.

    Args:
        policies: P rows of risk parameters.
        horizon: τ in seconds, shape (P, ...).

    Returns:
        (assets, debts), each of shape (P, ..., 2) with level 0 initial and 1 maintenance: ES of the loss, and ES of
        the rise. Both have 12 decimals, rounded up.
    """
    shape = (*horizon.shape, 2)
    assets, debts = np.zeros(shape), np.zeros(shape)
    solve: list[tuple[Floats, Floats, Floats, Floats]] = []
    places: list[tuple[int, npt.NDArray[np.intp], int]] = []
    for index, policy in enumerate(policies):
        tau, inverse = np.unique(horizon[index].ravel() / SECONDS_PER_YEAR, return_inverse=True)
        tails = 1 - np.array([policy.initial.confidence, policy.maintenance.confidence])
        scale = np.repeat(policy.volatility * np.sqrt(tau), 2)
        tail = np.tile(tails, len(tau))
        debts[index] = _diffusion_rise(scale, tail).reshape(-1, 2)[inverse].reshape(shape[1:])
        if _live(policy.jumps):
            mass, shift = _jump_law(tau, policy.jumps)
            solve.append((np.repeat(mass, 2, axis=0), shift, scale, tail))
            places.append((index, inverse, len(tau)))
        else:
            assets[index] = _diffusion_loss(scale, tail).reshape(-1, 2)[inverse].reshape(shape[1:])
    if solve:
        rows, width = sum(len(tail) for *_, tail in solve), max(mass.shape[1] for mass, *_ in solve)
        mass_all, shift_all = np.zeros((rows, width)), np.zeros((rows, width))
        start = 0
        for mass, shift, _, tail in solve:
            mass_all[start : start + len(tail), : mass.shape[1]] = mass
            shift_all[start : start + len(tail), : mass.shape[1]] = shift
            start += len(tail)
        spread = np.broadcast_to(np.concatenate([s for _, _, s, _ in solve])[:, None], mass_all.shape)
        losses = _loss(mass_all, shift_all, spread, np.concatenate([t for *_, t in solve]))
        start = 0
        for index, where, count in places:
            chunk = losses[start : start + 2 * count].reshape(-1, 2)
            assets[index] = chunk[where].reshape(shape[1:])
            start += 2 * count
    return np.minimum(_quantised(assets), 1.0), _quantised(debts)


def liquidity_haircut(notional: Floats, coefficient: Floats | float) -> Floats:
    """Compute ``h_liq = 1 − 1/(1+x)``, ``x = min(coefficient·√notional, 7)``.

    Hyperbolic, so that ``notional·(1−h_liq)`` grows with the notional: more collateral never counts less. With parts of
    one notional under different coefficients that still holds, thanks to the bound: a part keeps at least 1/8 of what
    it adds, and takes at most ``max x/2(1+x)² = 1/8`` of that from the others.

    Args:
        notional: USD, non-negative.
        coefficient: from :func:`liquidity_coefficient`.
    """
    return 1 - 1 / liquidity_divisor(np.sqrt(notional), coefficient)


def liquidity_divisor(root: Floats, coefficient: Floats | float) -> Floats:
    """Compute ``1 + x``, by which liquidity divides a value, from the square root of the notional."""
    x: Floats = root * coefficient
    np.minimum(x, LARGEST_IMPACT, out=x)
    x += 1  # in place: this runs once per end, level and destination over all groups
    return x


def liquidity_coefficient(daily_volume: float, impact: float, sigma: float) -> float:
    """Return ``Y·σ_day/√ADV``, per sqrt(USD)."""
    return impact * sigma / math.sqrt(365 * daily_volume)


def hold_law(hold: Sequence[LatencyLeg | Law]) -> Mapping[int, float]:
    """Convolve independent legs into the law of their sum (seconds → chance).

    A configured leg is {typical, typical + outage}, a measured one its whole law. Legs that are configured keep the law
    exact; with a measured one sums are rounded up to :data:`SUM_BITS` significant bits, since the number of exact sums
    grows with the product of the legs' sizes.

    Raises:
        ValueError: a measured law has no values, or not one chance for each.
    """
    seconds: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    chances: Floats = np.ones(1)
    for leg in sorted(hold, key=lambda leg: isinstance(leg, Law)):  # the exact ones first, in the order given
        longer, parts = _atoms(leg)
        sums = np.add.outer(seconds, longer).ravel()
        if isinstance(leg, Law):
            # A longer Hold never gets a shorter sum: rounding up keeps the order.
            step = np.int64(1) << np.maximum(np.frexp(sums.astype(np.float64))[1].astype(np.int64) - SUM_BITS, 0)
            sums = -(-sums // step) * step
        seconds, place = np.unique(sums, return_inverse=True)
        chances = np.bincount(place, np.multiply.outer(chances, parts).ravel()).astype(np.float64, copy=False)
    return dict(zip(seconds.tolist(), chances.tolist(), strict=True))


def gate_open(hold: Sequence[LatencyLeg | Law], remaining_delay: float, epsilon: float) -> bool:
    """Say whether a Hold lands before the owner can leave, but for a chance of at most ``epsilon``.

    Args:
        hold: the legs until a Hold lands on the chain.
        remaining_delay: seconds before the owner can remove the collateral: the removal delay less the age of the
            block it was seen in, since a request may have followed that block at once.
        epsilon: the accepted chance that τ ≥ remaining_delay.
    """
    return remaining_delay > hold_bound(hold, epsilon)


def hold_bound(hold: Sequence[LatencyLeg | Law], epsilon: float) -> int:
    """Return the most seconds that a Hold takes with a chance above ``epsilon``: the gate is open beyond them."""
    law = hold_law(hold)
    seconds, chances = list(law), list(law.values())  # ascending
    # The chance of at least so many seconds falls along them: find the last place above epsilon.
    return seconds[bisect_left(range(1, len(seconds)), True, key=lambda i: math.fsum(chances[i:]) <= epsilon)]


def _atoms(leg: LatencyLeg | Law) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the values of a leg, seconds, and the chance of each."""
    if isinstance(leg, LatencyLeg):
        seconds: Sequence[int] = (leg.typical, leg.typical + leg.outage)
        chance: Sequence[float] = (1 - leg.outage_probability, leg.outage_probability)
    else:
        seconds, chance = leg
        if not seconds or len(seconds) != len(chance):
            raise ValueError(f"law: {len(seconds)} values with {len(chance)} chances; give one chance for each value")
    return np.array(seconds, dtype=np.int64), np.array(chance, dtype=np.float64)


def _live(jumps: Sequence[JumpRow]) -> bool:
    return any(jump.rate > 0 and jump.recovery < 1 for jump in jumps)


def _nodes(nodes: tuple[Sequence[float], Sequence[float]]) -> tuple[Floats, Floats]:
    return np.asarray(nodes[0], dtype=np.float64) / SECONDS_PER_YEAR, np.asarray(nodes[1], dtype=np.float64)


def _quantised(values: Floats) -> Floats:
    # The thousandth keeps a value that already has 12 decimals from moving up by its rounding error.
    result: Floats = np.maximum(np.ceil(values * 10.0**DECIMALS - 1e-3), 0.0) / 10.0**DECIMALS + 0.0
    return result


def _diffusion_loss(scale: Floats, tail: Floats) -> Floats:
    """Closed form of one node without jumps: ``ES = 1 − Φ(−z_α − s)/(1−α)``."""
    loss: Floats = np.where(scale > 0, np.clip(1 - ndtr(ndtri(tail) - scale) / tail, 0.0, 1.0), 0.0)
    return loss


def _diffusion_rise(scale: Floats, tail: Floats) -> Floats:
    """Closed form of one node: ``ES_up = Φ(s − z_α)/(1−α) − 1``."""
    rise: Floats = np.where(scale > 0, np.maximum(ndtr(scale + ndtri(tail)) / tail - 1, 0.0), 0.0)
    return rise


def _jump_law(tau: Floats, jumps: Sequence[JumpRow]) -> tuple[Floats, Floats]:
    """Enumerate jump counts: chances of shape (len(tau), M), and ``Σ n ln k`` of shape (M,)."""
    mass, shift = np.ones((len(tau), 1)), np.zeros(1)
    for jump in jumps:
        if not _live((jump,)):
            continue
        mean = jump.rate * tau[:, None]
        most = float(mean.max(initial=0.0))
        count = np.arange(math.ceil(most + 10 * math.sqrt(most) + 12), dtype=np.float64)
        chance = np.exp(xlogy(count, mean) - mean - gammaln(count + 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(count > 0, count * np.log(jump.recovery), 0.0)
        mass = (mass[:, :, None] * chance[:, None, :]).reshape(len(tau), -1)
        shift = (shift[:, None] + step).ravel()
        keep = mass.max(axis=0) > _NEGLIGIBLE
        mass, shift = mass[:, keep], shift[keep]
    return mass, shift


def _loss(mass: Floats, shift: Floats, spread: Floats, tail: Floats) -> Floats:
    """Return ES of the loss per row; mass missing from 1 and mass at shift −∞ is total loss."""
    alive = np.isfinite(shift)
    mass = np.where(alive, mass, 0.0)
    shift = np.where(alive, shift, 0.0)
    ruin = np.maximum(0.0, 1 - mass.sum(axis=1))
    ruin[ruin < 1e-15] = 0.0  # the rounding error of the sum, not a loss
    certain = ruin >= tail
    rest = np.where(certain, tail, tail - ruin)
    kept = _tail_mean(mass, shift, spread, rest, upper=False) * rest / tail
    return np.where(certain, 1.0, np.clip(1 - kept, 0.0, 1.0))


def _tail_mean(mass: Floats, shift: Floats, spread: Floats, tail: Floats, *, upper: bool) -> Floats:
    """Return the mean of a lognormal mixture over its lower (upper) tail of mass ``tail``, row by row.

    Solves ``Σ p Φ(±(y − ℓ + s²/2)/s) = tail`` by Newton's method inside a bracket that bisection shrinks. The mean is
    stationary in y and any y errs toward safety (Rockafellar and Uryasev), so the step tolerance is enough.
    """
    sign = -1.0 if upper else 1.0
    smooth = spread > 1e-12  # else a step, which has no slope to follow
    scale = np.where(smooth, spread, 1e-300)
    used = mass > 0
    widest = np.where(used, spread, 0.0).max(axis=1)
    low = np.where(used, shift, np.inf).min(axis=1) - 10 * widest - widest**2 - 1
    high = np.where(used, shift, -np.inf).max(axis=1) + 10 * widest + 1
    heaviest = np.arange(len(mass)), mass.argmax(axis=1)
    y = shift[heaviest] - spread[heaviest] ** 2 / 2 + sign * spread[heaviest] * ndtri(np.minimum(tail, 0.5))
    y = np.clip(y, low, high)
    previous = high - low
    tolerance = 1e-9 * widest + 1e-14
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for _ in range(_MAX_STEPS):
            z = (y[:, None] - shift) / scale + scale / 2
            gap = sign * ((mass * ndtr(sign * z)).sum(axis=1) - tail)
            slope = np.where(smooth, mass * np.exp(-0.5 * z * z) / scale, 0.0).sum(axis=1) / math.sqrt(2 * math.pi)
            high = np.where(gap > 0, y, high)
            low = np.where(gap > 0, low, y)
            step = gap / slope
            guess = y - step
            bisect = ~((guess > low) & (guess < high) & (np.abs(step) < previous / 2))
            guess = np.where(bisect, (low + high) / 2, guess)
            previous = np.abs(guess - y)
            y = guess
            # A short step alone proves nothing: it may only cross a narrow, steep node among wide ones.
            if np.all((high - low <= tolerance) | ((previous <= tolerance) & (np.abs(gap) <= 1e-9 * tail))):
                break
        z = (y[:, None] - shift) / scale
        inside = (mass * ndtr(sign * (z + scale / 2))).sum(axis=1)
        partial = (mass * np.exp(shift) * ndtr(sign * (z - scale / 2))).sum(axis=1)
        mean: Floats = (partial + (tail - inside) * np.exp(y)) / tail
    return mean
