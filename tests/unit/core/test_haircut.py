"""The loss law: published check values, closed forms, degenerate cases, and the exit gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, poisson

from aggregator.core.haircut import (
    expected_shortfall,
    expected_shortfall_up,
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
    policies = [RISKY, STABLE, asset_policy(0.3, ())]
    horizon = np.array([[900.0, 4_500.0], [900.0, 900.0], [0.0, 86_400.0]])
    assets, debts = haircut_table(policies, horizon)
    for p, policy in enumerate(policies):
        for column in range(2):
            for level, row in enumerate((policy.initial, policy.maintenance)):
                nodes = ([horizon[p, column]], [1.0])
                loss = expected_shortfall(nodes, policy.volatility, policy.jumps, row.confidence)
                rise = expected_shortfall_up(nodes, policy.volatility, row.confidence)
                assert -1e-14 <= assets[p, column, level] - loss <= 1.1e-12 + 1e-9 * loss
                assert -1e-14 <= debts[p, column, level] - rise <= 1.1e-12 + 1e-9 * rise
                assert float(f"{assets[p, column, level]:.12f}") == assets[p, column, level]


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
