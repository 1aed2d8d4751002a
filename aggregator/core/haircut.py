"""What collateral may lose before it can be sold, given how late it is seen (risk.md §2).

The loss law over a horizon τ (years) is ``V/V0 = exp(-σ²τ/2 + σ√τ Z) · Π k_j^N_j`` with ``N_j ~ Poisson(λ_j τ)`` and
jumps not compensated: a finite mixture of lognormals over (horizon node, jump counts). Haircuts are its expected
shortfall, never its value at risk, which is not monotone in σ.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

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
MOST_JUMPS = 4_096
"""So many jumps of one sort, or more, count as total loss."""
SURVIVAL = (0.775, 0.55, 0.325, 0.1, 5e-2, 2e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 0.0)
"""Chances of exceeding the nodes of a condensed law: equal counts up to the 90th percentile, then geometric. They are
the same for all laws: with levels fitted to a law, a longer one could get shorter nodes."""
Nodes = tuple[Sequence[float], Sequence[float]]
"""Horizons in seconds, and their probabilities."""
Cause = Literal["diffusion", "market jumps", "depeg", "wrapper", "bridge", "latency"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
_JUMPS: Mapping[str, Cause] = {"market": "market jumps", "depeg": "depeg", "wrapper": "wrapper", "bridge": "bridge"}
_NEGLIGIBLE = 1e-14  # components less likely than this share of the tail are counted as total loss, not enumerated
_MAX_STEPS = 200
_BATCH = 16_384  # numbers per batch of laws: what a cache holds
_TOLERANCE = 1e-14  # of an expected shortfall


def expected_shortfall(nodes: Nodes, sigma: float, jumps: Sequence[JumpRow], alpha: float) -> float:
    """Compute ES_α of the loss 1 − V/V0 of an asset.

    Args:
        nodes: horizons in seconds, and their probabilities (summing to 1).
        sigma: volatility per sqrt(year).
        jumps: downward jumps, rates per year.
        alpha: confidence in (0, 1).

    Returns:
        The haircut in [0, 1]; non-decreasing in every horizon, σ, jump rate, jump severity and α. 0 at τ = 0;
        with σ = 0 that of the jumps alone. Jump counts from :data:`MOST_JUMPS` on count as total loss.

    Raises:
        ValueError: ``nodes`` is no distribution on finite non-negative numbers, ``sigma`` is negative or not finite, or
            ``alpha`` is outside (0, 1).
    """
    tau, chance = _nodes(nodes)
    _check("sigma", sigma, 0 <= sigma < math.inf, "a finite volatility from 0")
    _check("alpha", alpha, 0 < alpha < 1, "a confidence between 0 and 1")
    return float(_mixture_loss(tau, chance, sigma, jumps, np.array([1 - alpha]))[0, 0])


def expected_shortfall_up(nodes: Nodes, sigma: float, alpha: float) -> float:
    """Compute ES_α of the rise V/V0 − 1 of a debt; downward jumps would only help and are left out.

    Raises:
        ValueError: as :func:`expected_shortfall`.
    """
    tau, chance = _nodes(nodes)
    _check("sigma", sigma, 0 <= sigma < math.inf, "a finite volatility from 0")
    _check("alpha", alpha, 0 < alpha < 1, "a confidence between 0 and 1")
    return float(_mixture_rise(tau, chance, sigma, np.array([1 - alpha]))[0, 0])


class LossTable(NamedTuple):
    """Expected shortfalls by (policy, ..., level), level 0 initial and 1 maintenance; 12 decimals, rounded up."""

    assets: Floats  # of the loss, in [0, 1]
    debts: Floats  # of the rise
    hedged: Floats  # of the loss from idiosyncratic jumps alone; at most that of ``assets``


def haircut_table(policies: Sequence[AssetPolicyRow], horizon: Floats, chance: Floats) -> LossTable:
    """Compute the market haircuts of every (policy, cell, level), vectorised over the cells of a policy.

    ``hedged`` is for collateral that enters a scenario grid as a hedge: the grid moves the price, so diffusion and
    market jumps are dropped (σ = 0), and depeg, wrapper and bridge failures stay (risk.md §2, "no double charge").

    Args:
        policies: P rows of risk parameters.
        horizon: nodes of τ in seconds, shape (P, ..., M); finite and non-negative.
        chance: of each node, broadcastable to the shape of ``horizon``; sums to 1 over the last axis, unused nodes 0.

    Returns:
        Tables of shape (P, ..., 2).

    Raises:
        ValueError: a horizon is negative or not finite, or chances are no distribution.
    """
    chance = np.broadcast_to(chance, horizon.shape)
    _check_nodes(horizon, chance)
    shape, width = (*horizon.shape[:-1], 2), horizon.shape[-1]
    assets, debts, hedged = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for index, policy in enumerate(policies):
        laws = np.concatenate([horizon[index] / SECONDS_PER_YEAR, chance[index]], axis=-1).reshape(-1, 2 * width)
        laws, inverse = np.unique(laws, axis=0, return_inverse=True)  # blocks often share a time, and bounds always
        tau, parts, inverse = laws[:, :width], laws[:, width:], inverse.ravel()
        tails = 1 - np.array([policy.initial.confidence, policy.maintenance.confidence])
        own = [jump for jump in policy.jumps if jump.cause != "market"]
        for table, found in (
            (assets, _mixture_loss(tau, parts, policy.volatility, policy.jumps, tails)),
            (debts, _mixture_rise(tau, parts, policy.volatility, tails)),
            (hedged, _mixture_loss(tau, parts, 0.0, own, tails)),
        ):
            table[index] = found[inverse].reshape(shape[1:])
    assets = np.minimum(_quantised(assets), 1.0)
    return LossTable(assets, _quantised(debts), np.minimum(_quantised(hedged), assets))


def explain_loss(policy: AssetPolicyRow, nodes: Nodes, level: int, total: float | None = None) -> dict[Cause, float]:
    """Split ``h_mkt`` at a law of the horizon into what causes it.

    The loss law is built up step by step, and each step's share is what it adds to ES: at the policy's time to
    liquidate alone, with nothing to wait for, first diffusion, then market jumps, depegs, wrapper failures and bridge
    failures; and last, as ``latency``, the actual law of the horizon instead of that time. ES grows with every step, so
    no share is negative; shares depend on this order, in which what latency costs is what would be saved by having
    none.

    Args:
        nodes: horizons in seconds, and their probabilities; none below ``policy.liquidation_seconds``.
        level: 0 initial, 1 maintenance.
        total: h_mkt as published, whose last digits depend on the cells it was computed among; by default it is
            computed anew.

    Returns:
        Shares of h_mkt in the order of :data:`CAUSES`, multiples of 1e-12 that add up to it, exactly so as decimals.

    Raises:
        ValueError: ``nodes`` is no distribution on finite non-negative numbers, or one is below the time to liquidate.
    """
    _check("nodes", min(nodes[0]), min(nodes[0]) >= policy.liquidation_seconds, "nothing below liquidation_seconds")
    alpha = (policy.initial, policy.maintenance)[level].confidence
    at_once: Nodes = ((policy.liquidation_seconds,), (1.0,))
    steps: list[tuple[Cause, Nodes, Sequence[JumpRow]]] = [("diffusion", at_once, ())]
    jumps: tuple[JumpRow, ...] = ()
    for cause, name in _JUMPS.items():
        jumps += tuple(jump for jump in policy.jumps if jump.cause == cause)
        steps.append((name, at_once, jumps))
    steps.append(("latency", nodes, policy.jumps))
    unit, before = 10**DECIMALS, 0
    end = unit if total is None else round(total * unit)
    shares: dict[Cause, float] = {}
    for name, law, among in steps:
        if name == "latency" and total is not None:
            after = end
        else:
            loss = expected_shortfall(law, policy.volatility, among, alpha)
            # In whole units of the last decimal, so that the shares add up without a remainder.
            after = max(before, min(end, round(float(_quantised(np.array([loss]))[0]) * unit)))
        shares[name], before = (after - before) / unit, after
    return shares


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


def liquidity_divisor(
    root: Floats, coefficient: Floats | float, out: Floats | None = None, least: Floats | None = None
) -> Floats:
    """Compute ``1 + x``, by which liquidity divides a value, from the square root of the notional; into ``out``.

    Args:
        least: what x is at least. A constant takes nothing from other parts, so that what is said of parts at
            :func:`liquidity_haircut` still holds.
    """
    x: Floats = np.multiply(root, coefficient, out=out)
    if least is not None:
        np.maximum(x, least, out=x)
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


def condense(law: Law, survival: Sequence[float] = SURVIVAL) -> Law:
    """Return a law of few values that dominates ``law``: each value stands for a bin of chances at its upper end.

    A value is the least that is exceeded with a chance of at most the bin's lower survival, so that a stochastically
    longer law has no shorter value anywhere. An atom, an outage say, stays where it is; its chance grows to the next
    level at most.

    Args:
        survival: descending, from below 1 to 0.
    """
    beyond = np.append(np.cumsum(np.array(law.chance)[::-1])[::-1][1:], 0.0)  # chance of more, exact in the tail
    masses: dict[int, float] = {}
    for before, level in pairwise([1.0, *survival]):
        value = law.seconds[int(np.argmax(beyond <= level * (1 + 1e-9)))]  # 1e-4 written twice may differ by rounding
        masses[value] = masses.get(value, 0.0) + before - level
    return Law(tuple(masses), tuple(masses.values()))


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
    return law_bound(hold_law(hold), epsilon)


def law_bound(law: Mapping[int, float], epsilon: float) -> int:
    """Return the last value, of an ascending law, that is reached with a chance above ``epsilon``."""
    seconds, chances = list(law), list(law.values())
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


def _check(name: str, value: object, fine: bool, expected: str) -> None:
    if not fine:
        raise ValueError(f"{name}: {value} is not allowed; give {expected}")


def _check_nodes(seconds: Floats, chance: Floats) -> None:
    fine = bool(np.isfinite(seconds).all() and (seconds >= 0).all())
    _check("horizon", "what holds a negative or infinite number of seconds", fine, "finite numbers from 0")
    fine = bool((chance >= 0).all() and (np.abs(chance.sum(axis=-1) - 1) <= 1e-9).all())
    _check("chance", "what does not add up to 1 in non-negative parts", fine, "a distribution over the nodes")


def _nodes(nodes: Nodes) -> tuple[Floats, Floats]:
    """Return years and chances as one row of nodes each, shape (1, M)."""
    seconds, chance = (np.asarray(part, dtype=np.float64)[None, :] for part in nodes)
    _check("nodes", f"{seconds.size} horizons with {chance.size} chances", seconds.shape == chance.shape, "one each")
    _check_nodes(seconds, chance)
    return seconds / SECONDS_PER_YEAR, chance


def _quantised(values: Floats) -> Floats:
    # The twentieth keeps a value that already has 12 decimals from moving up by what the solver leaves open.
    result: Floats = np.maximum(np.ceil(values * 10.0**DECIMALS - 0.05), 0.0) / 10.0**DECIMALS + 0.0
    return result


def _mixture_loss(tau: Floats, chance: Floats, sigma: float, jumps: Sequence[JumpRow], tails: Floats) -> Floats:
    """Return ES of the loss of R laws at L tails, shape (R, L).

    Args:
        tau: nodes in years, shape (R, M).
        chance: of each node, shape (R, M).
        tails: 1 − α, shape (L,).
    """
    count, width = tau.shape
    live = _live(jumps)
    if not live and sigma == 0:
        return np.zeros((count, len(tails)))
    if not live and width == 1:
        return _diffusion_loss(sigma * np.sqrt(tau), tails)
    least = _NEGLIGIBLE * float(tails.min())
    mass, shift = _jump_law(tau.ravel(), jumps, least)
    mass = mass.reshape(count, width, -1) * chance[:, :, None]
    if sigma == 0:
        return _step_loss(mass.sum(axis=1), shift, tails)
    spread = np.repeat(sigma * np.sqrt(tau), len(shift), axis=1)
    mass, shift = mass.reshape(count, -1), np.tile(shift, width)
    keep = mass.max(axis=0) > least
    mass, shift, spread = mass[:, keep], shift[keep], spread[:, keep]
    levels, batch = len(tails), 1 + _BATCH // max(1, mass.shape[1])
    loss = np.empty((count, levels))
    for start in range(0, count, batch):
        here = slice(start, start + batch)
        tail = np.tile(tails, len(mass[here]))
        found = _loss(mass[here].repeat(levels, 0), shift, spread[here].repeat(levels, 0), tail)
        loss[here] = found.reshape(-1, levels)
    return loss


def _mixture_rise(tau: Floats, chance: Floats, sigma: float, tails: Floats) -> Floats:
    """Return ES of the rise of R laws at L tails, shape (R, L); arguments as :func:`_mixture_loss`."""
    scale = sigma * np.sqrt(tau)
    count, width = tau.shape
    if width == 1 or sigma == 0:
        return _diffusion_rise(scale[:, -1:], tails)
    levels = len(tails)
    tail = np.tile(tails, count)
    mean = _tail_mean(chance.repeat(levels, 0), np.zeros(width), scale.repeat(levels, 0), tail, upper=True)
    rise: Floats = np.maximum(mean - 1, 0.0).reshape(count, levels)
    return rise


def _step_loss(mass: Floats, shift: Floats, tails: Floats) -> Floats:
    """Return ES of the loss where σ = 0: V takes finitely many values e^shift, shape (R, L). Lost mass is total loss.

    Args:
        mass: chance of each value, shape (R, K).
        shift: of each value, shape (K,); −∞ is total loss.
    """
    order = np.argsort(shift)
    mass, value = mass[:, order], np.exp(shift[order])
    ruin = np.maximum(0.0, 1 - mass.sum(axis=1, keepdims=True))
    ruin[ruin < 1e-15] = 0.0  # the rounding error of the sum, not a loss
    below = np.minimum((ruin + np.cumsum(mass, axis=1))[:, None, :], tails[None, :, None])  # (R, L, K)
    part = np.diff(below, prepend=np.minimum(ruin[:, None, :], tails[None, :, None]), axis=2)
    lost = np.minimum(ruin, tails) + (part * (1 - value)).sum(axis=2)
    loss: Floats = np.clip(lost / tails, 0.0, 1.0)
    return loss


def _diffusion_loss(scale: Floats, tail: Floats) -> Floats:
    """Closed form of one node without jumps: ``ES = 1 − Φ(−z_α − s)/(1−α)``."""
    loss: Floats = np.where(scale > 0, np.clip(1 - ndtr(ndtri(tail) - scale) / tail, 0.0, 1.0), 0.0)
    return loss


def _diffusion_rise(scale: Floats, tail: Floats) -> Floats:
    """Closed form of one node: ``ES_up = Φ(s − z_α)/(1−α) − 1``."""
    rise: Floats = np.where(scale > 0, np.maximum(ndtr(scale + ndtri(tail)) / tail - 1, 0.0), 0.0)
    return rise


def _jump_law(tau: Floats, jumps: Sequence[JumpRow], least: float) -> tuple[Floats, Floats]:
    """Enumerate jump counts down to a chance of ``least``: chances (len(tau), K), and ``Σ n ln k`` of shape (K,)."""
    mass, shift = np.ones((len(tau), 1)), np.zeros(1)
    for jump in jumps:
        if not _live((jump,)):
            continue
        mean = jump.rate * tau[:, None]
        most = float(mean.max(initial=0.0))
        count = np.arange(min(MOST_JUMPS, math.ceil(most + 10 * math.sqrt(most) + 12)), dtype=np.float64)
        chance = np.exp(xlogy(count, mean) - mean - gammaln(count + 1))
        likely = chance.max(axis=0) > least
        count, chance = count[likely], chance[:, likely]
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(count > 0, count * np.log(jump.recovery), 0.0)
        mass = (mass[:, :, None] * chance[:, None, :]).reshape(len(tau), -1)
        shift = (shift[:, None] + step).ravel()
        keep = mass.max(axis=0) > least
        mass, shift = mass[:, keep], shift[keep]
    return mass, shift


def _loss(mass: Floats, shift: Floats, spread: Floats, tail: Floats) -> Floats:
    """Return ES of the loss per row; mass missing from 1 and mass at shift −∞ is total loss."""
    alive = np.isfinite(shift)
    mass, shift, spread = mass[:, alive], shift[alive], spread[:, alive]
    ruin = np.maximum(0.0, 1 - mass.sum(axis=1))
    ruin[ruin < 1e-15] = 0.0  # the rounding error of the sum, not a loss
    certain = ruin >= tail
    rest = np.where(certain, tail, tail - ruin)
    loss = np.ones(len(tail))
    if not certain.all():
        some = ~certain
        kept = _tail_mean(mass[some], shift, spread[some], rest[some], upper=False) * rest[some] / tail[some]
        loss[some] = np.clip(1 - kept, 0.0, 1.0)
    return loss


def _tail_mean(mass: Floats, shift: Floats, spread: Floats, tail: Floats, *, upper: bool) -> Floats:
    """Return the mean of a lognormal mixture over its lower (upper) tail of mass ``tail``, row by row.

    Solves ``Σ p Φ(±(y − ℓ + s²/2)/s) = tail`` by Newton's method on its logarithm, inside a bracket that bisection
    shrinks. The mean is stationary in y and any y errs toward safety (Rockafellar and Uryasev), by at most the gap in
    the equation times the width of the bracket (times e^y/tail): a row is done once that is nothing.

    Args:
        mass: p, shape (R, C).
        shift: ℓ, shape (C,).
        spread: s, shape (R, C).
        tail: shape (R,).
    """
    sign = -1.0 if upper else 1.0
    smooth = spread > 1e-12  # else a step, which has no slope to follow
    scale = np.where(smooth, spread, 1e-300)
    used = mass > 0
    widest = np.where(used, spread, 0.0).max(axis=1)
    low = np.where(used, shift, np.inf).min(axis=1) - 10 * widest - widest**2 - 1
    high = np.where(used, shift, -np.inf).max(axis=1) + 10 * widest + 1
    heaviest = np.arange(len(mass)), mass.argmax(axis=1)
    y = shift[heaviest[1]] - spread[heaviest] ** 2 / 2 + sign * spread[heaviest] * ndtri(np.minimum(tail, 0.5))
    y = np.clip(y, low, high)
    previous = high - low
    rows = np.arange(len(mass))  # those not done, of which the arrays below are
    p, one, deep, goal, root = mass, scale, smooth, tail, y.copy()
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for _ in range(_MAX_STEPS):
            z = (y[:, None] - shift) / one + one / 2
            reached = (p * ndtr(sign * z)).sum(axis=1)
            gap = sign * (reached - goal)
            slope = np.where(deep, p * np.exp(-0.5 * z * z) / one, 0.0).sum(axis=1) / math.sqrt(2 * math.pi)
            high, low = np.where(gap > 0, y, high), np.where(gap > 0, low, y)
            root[rows] = y
            live = (high - low > 1e-14) & (np.abs(gap) * (high - low) > _TOLERANCE * goal)
            if not live.any():
                break
            step = sign * np.log(reached / goal) * reached / slope
            guess = y - step
            bisect = ~((guess > low) & (guess < high) & (np.abs(step) < previous / 2))
            guess = np.where(bisect, (low + high) / 2, guess)
            previous, y = np.abs(guess - y), guess
            if not live.all():
                rows, p, one, deep, goal = rows[live], p[live], one[live], deep[live], goal[live]
                y, low, high, previous = y[live], low[live], high[live], previous[live]
        y = root
        z = (y[:, None] - shift) / scale
        inside = (mass * ndtr(sign * (z + scale / 2))).sum(axis=1)
        partial = (mass * np.exp(shift) * ndtr(sign * (z - scale / 2))).sum(axis=1)
        mean: Floats = (partial + (tail - inside) * np.exp(y)) / tail
    return mean
