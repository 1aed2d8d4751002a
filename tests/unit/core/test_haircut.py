"""The loss law: published check values, closed forms, degenerate cases, and the exit gate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm, poisson

from aggregator.core.haircut import (
    CAUSES,
    condense,
    expected_shortfall,
    expected_shortfall_up,
    explain_loss,
    gate_open,
    haircut_table,
    hold_bound,
    hold_law,
    liquidity_coefficient,
    liquidity_haircut,
)
from aggregator.domain.latency import Law
from aggregator.domain.policy import JumpRow
from aggregator.domain.rows import LatencyLeg
from tests.strategies import RISKY, STABLE, asset_policy

JUMPS = (JumpRow(rate=6, recovery=0.92), JumpRow(rate=0.5, recovery=0.75))
YEAR = 365 * 86_400
HAZARDOUS = RISKY.model_copy(
    update={
        "jumps": (
            *RISKY.jumps,
            JumpRow(rate=0.2, recovery=0.9, cause="depeg"),
            JumpRow(rate=0.05, recovery=0.5, cause="wrapper"),
            JumpRow(rate=0.05, recovery=0.0, cause="bridge"),
        )
    }
)


def shortfall(seconds: float, alpha: float, sigma: float = 0.8, jumps: tuple[JumpRow, ...] = JUMPS) -> float:
    return expected_shortfall(([seconds], [1.0]), sigma, jumps, alpha)


@pytest.mark.parametrize(
    ("seconds", "at_99", "at_999", "tolerance"),
    [
        (120, 0.0044, 0.0074, 5e-5),
        (900, 0.0129, 0.0291, 5e-5),
        (3_600, 0.028, 0.077, 5e-4),
        (86_400, 0.140, 0.266, 5e-4),
        (7 * 86_400, 0.31, 0.40, 5e-3),
    ],
)
def test_check_values_of_the_specification(seconds: float, at_99: float, at_999: float, tolerance: float) -> None:
    assert shortfall(seconds, 0.99) == pytest.approx(at_99, abs=tolerance)
    assert shortfall(seconds, 0.999) == pytest.approx(at_999, abs=tolerance)


def test_a_longer_validity_costs_haircut() -> None:
    assert shortfall(15 * 60, 0.999) == pytest.approx(0.029, abs=5e-4)
    assert shortfall(75 * 60, 0.999) == pytest.approx(0.089, abs=5e-4)


@pytest.mark.parametrize("seconds", [1, 900, 86_400, 30 * 86_400])
@pytest.mark.parametrize("alpha", [0.95, 0.999])
def test_the_mixture_solver_meets_the_closed_forms(seconds: float, alpha: float) -> None:
    tail, s = 1 - alpha, 0.8 * math.sqrt(seconds / YEAR)
    split = ([seconds, seconds], [0.25, 0.75])
    assert expected_shortfall(split, 0.8, (), alpha) == pytest.approx(
        1 - norm.cdf(norm.ppf(tail) - s) / tail, rel=1e-7, abs=1e-12
    )
    assert expected_shortfall_up(split, 0.8, alpha) == pytest.approx(
        norm.cdf(norm.ppf(tail) + s) / tail - 1, rel=1e-7, abs=1e-12
    )


def test_the_mixture_solver_meets_brute_force() -> None:
    # ES = E[(v - V)+] rearranged, with the quantile searched on a fine grid: no code and no idea in common.
    tau, alpha, sigma = 3 * 86_400 / YEAR, 0.99, 0.6
    jump = JumpRow(rate=20, recovery=0.9)
    z = (np.arange(200_000) + 0.5) / 200_000
    normal = np.exp(-(sigma**2) * tau / 2 + sigma * math.sqrt(tau) * norm.ppf(z))
    counts = np.arange(12)
    value = np.concatenate([normal * jump.recovery**n for n in counts])
    weight = np.concatenate([np.full(len(z), p / len(z)) for p in poisson.pmf(counts, jump.rate * tau)])
    order = np.argsort(value)
    value, weight = value[order], weight[order]
    tail = 1 - alpha
    inside = np.minimum(np.cumsum(weight), tail)
    part = np.diff(inside, prepend=0.0)
    assert shortfall(3 * 86_400, alpha, sigma, (jump,)) == pytest.approx(1 - float(part @ value) / tail, rel=1e-4)


def test_degenerate_laws() -> None:
    assert shortfall(0, 0.999) == pytest.approx(0, abs=1e-12)
    assert shortfall(86_400, 0.99, sigma=0.0, jumps=()) == 0
    ruin = JumpRow(rate=100, recovery=0.0)
    assert shortfall(86_400, 0.99, jumps=(ruin,)) == 1
    # σ = 0: V is a step. P(one jump or more) = 1 − e^−1 fills the whole tail, so ES is about the jump's own loss.
    step = JumpRow(rate=365, recovery=0.5)
    tail, chances = 0.01, poisson.pmf(np.arange(40), 1.0)
    worst = np.arange(40)[::-1]
    part = np.diff(np.minimum(np.cumsum(chances[::-1]), tail), prepend=0.0)
    assert shortfall(86_400, 0.99, 0.0, (step,)) == pytest.approx(1 - float(part @ 0.5**worst) / tail, abs=1e-9)


def test_partial_ruin_is_charged_in_full() -> None:
    # a total loss of mass m inside a tail of 1 %: m/0.01 of the tail is lost outright, and nothing else can be (σ = 0)
    rare = JumpRow(rate=1.0, recovery=0.0)
    mass = -math.expm1(-1 / 365)
    assert shortfall(86_400, 0.99, 0.0, (rare,)) == pytest.approx(mass / 0.01, rel=1e-9)


def test_the_table_is_the_scalar_law_rounded_up() -> None:
    policies = [RISKY, STABLE, asset_policy(0.3, ()), asset_policy(0.0), HAZARDOUS]
    laws = [([900.0, 4_500.0, 90_000.0], [0.9, 0.099, 0.001]), ([0.0, 1.0, 2.0], [1.0, 0.0, 0.0])]
    shape = (len(policies), len(laws), 3)
    horizon, chance = (np.broadcast_to(np.array([law[i] for law in laws]), shape) for i in range(2))
    assets, debts, hedged = haircut_table(policies, horizon, chance)
    for p, policy in enumerate(policies):
        own = [jump for jump in policy.jumps if jump.cause != "market"]
        for column, nodes in enumerate(laws):
            for level, row in enumerate((policy.initial, policy.maintenance)):
                loss = expected_shortfall(nodes, policy.volatility, policy.jumps, row.confidence)
                rise = expected_shortfall_up(nodes, policy.volatility, row.confidence)
                alone = expected_shortfall(nodes, 0.0, own, row.confidence)
                for table, value in ((assets, loss), (debts, rise), (hedged, alone)):
                    assert -1e-12 <= table[p, column, level] - value <= 2.1e-12 + 1e-9 * value
                    assert float(f"{table[p, column, level]:.12f}") == table[p, column, level]
    assert (hedged <= assets).all()
    assert (hedged[4, 0] > 0).all()
    assert (hedged[:4] == 0).all()


@pytest.mark.parametrize(
    ("horizon", "chance", "name"),
    [
        ([-1.0], [1.0], "horizon"),
        ([math.inf], [1.0], "horizon"),
        ([math.nan], [1.0], "horizon"),
        ([1.0, 2.0], [0.5, 0.4], "chance"),
        ([1.0, 2.0], [1.5, -0.5], "chance"),
        ([1.0], [math.nan], "chance"),
    ],
)
def test_a_horizon_is_a_distribution_on_finite_seconds(horizon: list[float], chance: list[float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        expected_shortfall((horizon, chance), 0.8, JUMPS, 0.99)
    with pytest.raises(ValueError, match=name):
        expected_shortfall_up((horizon, chance), 0.8, 0.99)
    with pytest.raises(ValueError, match=name):
        haircut_table([RISKY], np.array([horizon]), np.array(chance))


@pytest.mark.parametrize(
    ("sigma", "alpha", "name"),
    [
        *((sigma, 0.99, "sigma") for sigma in (-0.1, math.nan, math.inf)),
        *((0.8, alpha, "alpha") for alpha in (0.0, 1.0, math.nan)),
    ],
)
def test_a_law_without_meaning_is_refused(sigma: float, alpha: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        expected_shortfall(([900.0], [1.0]), sigma, JUMPS, alpha)
    with pytest.raises(ValueError, match=name):
        expected_shortfall_up(([900.0], [1.0]), sigma, alpha)


def test_jumps_without_end_are_a_total_loss() -> None:
    assert shortfall(YEAR, 0.99, jumps=(JumpRow(rate=10_000, recovery=0.999999),)) == 1


def test_a_century_is_a_total_loss_at_most() -> None:
    assert 0.99 < shortfall(100 * YEAR, 0.99) <= 1


# --- an independent oracle: quadrature over the payoff, and simulation -----------------------------------------------


def by_quadrature(law: tuple[list[float], list[float]], sigma: float, jumps: Sequence[JumpRow], alpha: float) -> float:
    """ES as ``(1/(1−α)) ∫₀^{1−α} (1 − Q(u)) du``, the quantile found by bisection at every point of a quadrature."""
    parts: list[tuple[float, float, float]] = []
    for seconds, chance in zip(*law, strict=True):
        tau = seconds / YEAR
        for counts in itertools.product(range(5), repeat=len(jumps)):
            part = chance * math.prod(
                float(poisson.pmf(n, jump.rate * tau)) for n, jump in zip(counts, jumps, strict=True)
            )
            shift = sum(n * math.log(jump.recovery) for n, jump in zip(counts, jumps, strict=True))
            if part > 1e-15:
                parts.append((part, shift - sigma**2 * tau / 2, sigma * math.sqrt(tau)))
    weight, mean, deviation = (np.array(column) for column in zip(*parts, strict=True))

    def quantile(u: float) -> float:
        return float(brentq(lambda y: weight @ norm.cdf((y - mean) / deviation) - u, -20, 5, xtol=1e-13))

    tail = 1 - alpha
    # u = tail·e^−x spreads the steep end out
    value, _ = quad(lambda x: tail * math.exp(-x) * -math.expm1(quantile(tail * math.exp(-x))), 0, 30, epsrel=1e-6)
    return value / tail


LAW = ([700.0, 1_100.0, 4_000.0, 90_000.0], [0.8, 0.18, 0.0199, 0.0001])


def test_the_mixture_over_horizons_meets_quadrature() -> None:
    alpha = 0.999
    expected = by_quadrature(LAW, 0.8, JUMPS, alpha)
    assert expected_shortfall(LAW, 0.8, JUMPS, alpha) == pytest.approx(expected, rel=2e-5)


def test_the_mixture_over_horizons_meets_simulation() -> None:
    rng, count, sigma, alpha = np.random.default_rng(4), 2_000_000, 0.8, 0.99
    tau = rng.choice(LAW[0], size=count, p=LAW[1]) / YEAR
    path = sigma * np.sqrt(tau) * rng.standard_normal(count) - sigma**2 * tau / 2
    for jump in JUMPS:
        path += rng.poisson(jump.rate * tau) * math.log(jump.recovery)
    worst = np.sort(path)[: round(count * (1 - alpha))]
    loss = -np.expm1(worst)
    error = loss.std() / math.sqrt(len(loss))
    assert abs(expected_shortfall(LAW, sigma, JUMPS, alpha) - loss.mean()) < 4 * error
    best = np.expm1(np.sort(sigma * np.sqrt(tau) * rng.standard_normal(count) - sigma**2 * tau / 2)[-len(worst) :])
    error = best.std() / math.sqrt(len(best))
    assert abs(expected_shortfall_up(LAW, sigma, alpha) - best.mean()) < 4 * error


# --- the law of the horizon ------------------------------------------------------------------------------------------


def a_measured_law() -> Law:
    """Return legs as they are measured, heavy-tailed, added up exactly."""
    rng = np.random.default_rng(1)
    seconds, counts = np.unique(np.ceil(rng.lognormal(6, 1.2, 20_000)), return_counts=True)
    return Law(tuple(int(s) for s in seconds), tuple((counts / counts.sum()).tolist()))


def test_few_bins_at_their_means_charge_too_little_and_ours_never_do() -> None:
    law = a_measured_law()
    exact = expected_shortfall(law, 0.8, JUMPS, 0.999)
    # Five equal bins at their means, the obvious way: they lose the tail, where the loss is.
    seconds = np.repeat(law.seconds, np.rint(np.array(law.chance) * 20_000).astype(int))
    means = [float(part.mean()) for part in np.array_split(np.sort(seconds), 5)]
    naive = expected_shortfall((means, [0.2] * 5), 0.8, JUMPS, 0.999)
    ours = expected_shortfall(condense(law), 0.8, JUMPS, 0.999)
    finer = [*np.linspace(1, 0.1, 41)[1:], *(0.1 * 10 ** (-k / 6) for k in range(1, 25)), 0.0]
    nearer = expected_shortfall(condense(law, finer), 0.8, JUMPS, 0.999)
    assert naive < 0.97 * exact
    assert exact <= nearer <= ours <= 1.25 * exact  # of a law whose 99% is 16 times its median
    assert nearer <= 1.06 * exact


def test_a_condensed_law_keeps_an_outage_where_it_is() -> None:
    law = condense(Law((60, 90, 7_290), (0.5, 0.4999, 0.0001)))
    assert law.seconds == (60, 90, 7_290)
    assert law.chance == pytest.approx((0.45, 0.5499, 0.0001))
    assert condense(Law((60,), (1.0,))) == Law((60,), (pytest.approx(1.0),))  # type: ignore[arg-type]
    between = condense(Law((60, 7_260), (1 - 5e-5, 5e-5)))
    assert between.seconds == (60, 7_260)
    assert 5e-5 <= between.chance[1] <= 1e-4 * (1 + 1e-9)


# --- what it is made of ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1])
def test_a_haircut_is_the_sum_of_its_causes(level: int) -> None:
    nodes = ([960.0, 8_160.0], [0.9999, 0.0001])
    shares = explain_loss(HAZARDOUS, nodes, level)
    assert tuple(shares) == CAUSES
    assert all(share > 0 for share in shares.values())
    table = haircut_table([HAZARDOUS], np.array([[nodes[0]]]), np.array(nodes[1])).assets
    assert sum(Decimal(f"{share:.12f}") for share in shares.values()) == Decimal(f"{table[0, 0, level]:.12f}")
    alone = expected_shortfall(([600.0], [1.0]), HAZARDOUS.volatility, (), (0.999, 0.99)[level])
    assert shares["diffusion"] == pytest.approx(alone, abs=2e-12)
    fixed = expected_shortfall(([600.0], [1.0]), 0.8, HAZARDOUS.jumps, (0.999, 0.99)[level])
    assert shares["latency"] == pytest.approx(float(table[0, 0, level]) - fixed, abs=2e-12)


def test_with_nothing_to_wait_for_latency_costs_nothing() -> None:
    shares = explain_loss(STABLE, ([600.0], [1.0]), 0)
    assert shares["latency"] == shares["depeg"] == shares["wrapper"] == shares["bridge"] == 0
    assert shares["market jumps"] > 0
    with pytest.raises(ValueError, match="liquidation_seconds"):
        explain_loss(STABLE, ([599.0], [1.0]), 0)


def test_liquidity_follows_the_square_root_law() -> None:
    x = 0.5 * (0.8 / math.sqrt(365)) * math.sqrt(1e6 / 1e8)
    coefficient = liquidity_coefficient(1e8, 0.5, 0.8)
    assert liquidity_haircut(np.array([1e6]), coefficient)[0] == pytest.approx(1 - 1 / (1 + x), rel=1e-12)
    assert liquidity_haircut(np.array([0.0]), coefficient)[0] == 0


LEGS = (
    LatencyLeg(typical=60, outage=600, outage_probability=1e-3),
    LatencyLeg(typical=30, outage=3_600, outage_probability=1e-3),
)


def test_the_law_of_a_hold_is_the_convolution_of_its_legs() -> None:
    law = hold_law(LEGS)
    assert law == pytest.approx({90: 0.999**2, 690: 1e-3 * 0.999, 3_690: 0.999 * 1e-3, 4_290: 1e-6})
    assert math.fsum(law.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("remaining", "epsilon", "expected"),
    [
        (4_291, 1e-4, True),
        (3_691, 1e-4, True),  # only both outages at once (1e-6) take longer
        (3_690, 1e-4, False),  # landing at the very moment of leaving is too late
        (3_691, 1e-7, False),
        (4_291, 1e-9, True),
        (0, 1e-4, False),
        (-60, 0.5, False),
        (91, 0.01, True),
    ],
)
def test_the_gate_reads_the_whole_law(remaining: float, epsilon: float, expected: bool) -> None:
    assert gate_open(LEGS, remaining, epsilon) is expected


MEASURED = Law((20, 45, 3_600), (0.9, 0.0995, 0.0005))


def test_measured_and_configured_legs_convolve_to_one_law() -> None:
    law = hold_law((MEASURED, LEGS[0]))
    assert law == pytest.approx(
        {
            80: 0.9 * 0.999,
            105: 0.0995 * 0.999,
            680: 0.9 * 1e-3,
            706: 0.0995 * 1e-3,  # 705, rounded up to 9 significant bits
            3_664: 0.0005 * 0.999,  # 3,660
            4_272: 0.0005 * 1e-3,  # 4,260
        }
    )
    assert hold_law((LEGS[0], MEASURED)) == law
    assert math.fsum(law.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("epsilon", "bound"), [(0.5, 80), (0.1, 105), (0.01, 105), (1e-3, 680), (5.5e-4, 706), (1e-4, 3_664), (1e-7, 4_272)]
)
def test_the_bound_of_a_measured_hold_is_its_last_value_above_epsilon(epsilon: float, bound: int) -> None:
    assert hold_bound((MEASURED, LEGS[0]), epsilon) == bound
    assert not gate_open((MEASURED, LEGS[0]), bound, epsilon)
    assert gate_open((MEASURED, LEGS[0]), bound + 1, epsilon)


def test_a_measured_two_atom_law_is_the_configured_leg() -> None:
    as_law = [Law((leg.typical, leg.typical + leg.outage), (0.999, 0.001)) for leg in LEGS]
    for epsilon in (0.5, 1e-2, 1e-4, 1e-7):
        exact = hold_bound(LEGS, epsilon)
        assert exact <= hold_bound(as_law, epsilon) <= exact * (1 + 2 / 256)


@pytest.mark.parametrize("law", [Law((), ()), Law((1, 2), (1.0,))])
def test_a_law_needs_a_chance_for_each_value(law: Law) -> None:
    with pytest.raises(ValueError, match="one chance for each value"):
        hold_law([law])
