"""Haircuts: in [0, 1] and monotone in everything that makes a loss worse (risk.md §2, invariant 7)."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.haircut import (
    SURVIVAL,
    condense,
    expected_shortfall,
    expected_shortfall_up,
    explain_loss,
    gate_open,
    haircut_table,
    hold_bound,
    liquidity_haircut,
)
from aggregator.core.latency import dominates
from aggregator.domain.latency import Law
from aggregator.domain.policy import JumpRow
from aggregator.domain.rows import LatencyLeg
from tests.strategies import asset_policy

NOISE = 1e-11  # rounding of sums near 1, divided by a tail mass down to 1e-5
seconds = st.floats(0, 30 * 86_400)
sigmas = st.floats(0, 3)
rates = st.floats(0, 50)
recoveries = st.floats(0, 1)
alphas = st.floats(0.9, 0.9999)


def ordered(draw: tuple[float, float]) -> tuple[float, float]:
    return min(draw), max(draw)


def loss(tau: float, sigma: float, rate: float, recovery: float, alpha: float) -> float:
    jumps = (JumpRow(rate=rate, recovery=recovery), JumpRow(rate=0.5, recovery=0.75))
    return expected_shortfall(([tau], [1.0]), sigma, jumps, alpha)


@given(seconds, sigmas, rates, recoveries, alphas, st.integers(0, 4), st.data())
def test_the_loss_grows_with_every_hazard(
    tau: float, sigma: float, rate: float, recovery: float, alpha: float, which: int, data: st.DataObject
) -> None:
    mild = [tau, sigma, rate, recovery, alpha]
    harsh = list(mild)
    limit = (60 * 86_400.0, 5.0, 100.0, 0.0, 0.99999)[which]
    low, high = ordered((mild[which], limit))
    harsh[which] = data.draw(st.floats(low, high))
    if which == 3:
        mild[3], harsh[3] = max(mild[3], harsh[3]), min(mild[3], harsh[3])
    first, second = loss(*mild), loss(*harsh)
    assert 0 <= first <= 1
    assert first <= second + NOISE


@given(seconds, seconds, sigmas, sigmas, alphas)
def test_the_rise_grows_with_every_hazard(tau: float, later: float, sigma: float, wilder: float, alpha: float) -> None:
    (tau, later), (sigma, wilder) = ordered((tau, later)), ordered((sigma, wilder))
    first = expected_shortfall_up(([tau], [1.0]), sigma, alpha)
    assert 0 <= first <= expected_shortfall_up(([later], [1.0]), sigma, alpha) + NOISE
    assert first <= expected_shortfall_up(([tau], [1.0]), wilder, alpha) + NOISE


@given(st.lists(seconds, min_size=1, max_size=6), sigmas, rates, recoveries, alphas)
def test_a_mixture_of_horizons_is_no_milder_than_its_least(
    nodes: list[float], sigma: float, rate: float, recovery: float, alpha: float
) -> None:
    jumps = (JumpRow(rate=rate, recovery=recovery),)
    even = [1 / len(nodes)] * len(nodes)
    found = expected_shortfall((nodes, even), sigma, jumps, alpha)
    least = expected_shortfall(([min(nodes)], [1.0]), sigma, jumps, alpha)
    most = expected_shortfall(([max(nodes)], [1.0]), sigma, jumps, alpha)
    assert least - NOISE <= found <= most + NOISE


@st.composite
def laws(draw: st.DrawFn, most: int = 8) -> Law:
    times = draw(st.lists(st.integers(0, 90_000), min_size=1, max_size=most, unique=True).map(sorted))
    weights = draw(st.lists(st.integers(1, 1_000) | st.floats(1e-6, 1e-3), min_size=len(times), max_size=len(times)))
    return Law(tuple(times), tuple(weight / math.fsum(weights) for weight in weights))


@st.composite
def longer(draw: st.DrawFn, law: Law) -> Law:
    """Return a law that exceeds every length at least as likely: every value is moved up, or part of its mass is."""
    masses: dict[int, float] = {}
    for seconds, chance in zip(*law, strict=True):
        moved = draw(st.sampled_from((0.0, 0.001, 0.5, 1.0)))
        further = seconds + draw(st.integers(0, 90_000))
        for value, part in ((seconds, chance * (1 - moved)), (further, chance * moved)):
            masses[value] = masses.get(value, 0.0) + part
    kept = sorted(value for value, part in masses.items() if part > 0)
    return Law(tuple(kept), tuple(masses[value] for value in kept))


@given(laws(), sigmas, st.floats(0, 20), recoveries, alphas, st.data())
def test_a_longer_law_never_charges_less(
    law: Law, sigma: float, rate: float, recovery: float, alpha: float, data: st.DataObject
) -> None:
    jumps, later = (JumpRow(rate=rate, recovery=recovery),), data.draw(longer(law))
    for shape in (lambda x: x, condense):
        first, second = shape(law), shape(later)
        assert expected_shortfall(first, sigma, jumps, alpha) <= (
            expected_shortfall(second, sigma, jumps, alpha) + NOISE
        )
        assert (
            expected_shortfall_up(first, sigma, alpha)
            <= expected_shortfall_up(second, sigma, alpha) * (1 + NOISE) + NOISE
        )
    assert dominates(condense(later), condense(law))


@given(laws(30), sigmas, st.floats(0, 20), recoveries, alphas, st.sets(st.floats(1e-6, 0.99), max_size=12))
def test_fewer_nodes_err_on_the_high_side(
    law: Law, sigma: float, rate: float, recovery: float, alpha: float, more: set[float]
) -> None:
    jumps = (JumpRow(rate=rate, recovery=recovery),)
    finer = sorted({*SURVIVAL, *more}, reverse=True)
    coarse, fine = condense(law), condense(law, finer)
    assert dominates(coarse, fine)
    assert dominates(fine, law)
    assert len(coarse.seconds) <= len(SURVIVAL)
    assert set(coarse.seconds) <= set(law.seconds)
    assert coarse.seconds[-1] == law.seconds[-1]
    exact, near, far = (expected_shortfall(x, sigma, jumps, alpha) for x in (law, fine, coarse))
    assert exact - NOISE <= near <= far + NOISE


@given(st.lists(seconds, min_size=2, max_size=6), laws(5), sigmas, rates, recoveries)
def test_the_published_table_grows_with_age(
    ages: list[float], law: Law, sigma: float, rate: float, recovery: float
) -> None:
    policy = asset_policy(sigma, ((rate, recovery),))
    jump = JumpRow(rate=rate / 10, recovery=recovery, cause="depeg")
    policy = policy.model_copy(update={"jumps": (*policy.jumps, jump)})
    horizon = np.array(sorted(ages))[None, :, None] + np.array(law.seconds)
    assets, debts, hedged = haircut_table([policy], horizon, np.array(law.chance))
    assert ((assets >= 0) & (assets <= 1)).all()
    assert ((hedged >= 0) & (hedged <= assets)).all()
    for table in (assets, debts, hedged):
        slack = NOISE * (1 + table[0].max())
        assert (np.diff(table[0], axis=0) >= -slack).all()
        assert (table[0, :, 0] >= table[0, :, 1] - slack).all()  # initial is no looser


causes = st.sampled_from(("market", "depeg", "wrapper", "bridge"))
hazards = st.lists(st.builds(JumpRow, rate=st.floats(0, 20), recovery=recoveries, cause=causes), max_size=4)


@given(hazards, sigmas, laws(5), st.integers(0, 3_600), st.integers(0, 1))
def test_causes_add_up_and_none_takes_away(
    jumps: list[JumpRow], sigma: float, law: Law, selling: int, level: int
) -> None:
    policy = asset_policy(sigma).model_copy(update={"jumps": tuple(jumps), "liquidation_seconds": selling})
    nodes = [selling + later for later in law.seconds]
    table = haircut_table([policy], np.array([[nodes]]), np.array(law.chance)).assets
    published = float(table[0, 0, level])
    shares = explain_loss(policy, (nodes, law.chance), level, published)
    total = sum(Decimal(f"{share:.12f}") for share in shares.values())
    assert total == Decimal(f"{published:.12f}")
    assert shares["latency"] == pytest.approx(explain_loss(policy, (nodes, law.chance), level)["latency"], abs=2e-11)
    assert all(share >= 0 for share in shares.values())
    for cause, name in (("market", "market jumps"), ("depeg", "depeg"), ("wrapper", "wrapper"), ("bridge", "bridge")):
        if not any(jump.cause == cause and jump.rate > 0 and jump.recovery < 1 for jump in jumps):
            assert shares[name] <= 1e-11  # type: ignore[index]


@given(st.lists(st.tuples(st.floats(0, 1e15), st.floats(0, 1e-3)), min_size=1, max_size=5), st.data())
def test_more_in_a_pool_never_counts_less(parts: list[tuple[float, float]], data: st.DataObject) -> None:
    sizes, coefficients = (np.array(column) for column in zip(*parts, strict=True))
    more = sizes.copy()
    more[data.draw(st.integers(0, len(parts) - 1))] += data.draw(st.floats(0, 1e15))
    before, after = (
        float((part * (1 - liquidity_haircut(np.full(len(parts), part.sum()), coefficients))).sum())
        for part in (sizes, more)
    )
    assert after >= before * (1 - 1e-12)


legs = st.lists(
    st.builds(
        LatencyLeg, typical=st.integers(0, 600), outage=st.integers(0, 7_200), outage_probability=st.floats(0, 0.01)
    ),
    min_size=1,
    max_size=5,
)


@given(
    legs, st.integers(0, 40_000), st.integers(0, 40_000), st.floats(1e-9, 0.5), st.integers(0, 4), st.integers(1, 600)
)
def test_the_gate_only_opens_with_more_delay_and_shuts_with_more_latency(
    hold: list[LatencyLeg], delay: int, extra: int, epsilon: float, which: int, slower: int
) -> None:
    if gate_open(hold, delay, epsilon):
        assert gate_open(hold, delay + extra, epsilon)
        assert delay > sum(leg.typical for leg in hold)
    else:
        late = list(hold)
        leg = late[which % len(late)]
        late[which % len(late)] = leg.model_copy(update={"typical": leg.typical + slower})
        assert not gate_open(late, delay, epsilon)


@st.composite
def measured(draw: st.DrawFn) -> Law:
    seconds = draw(st.lists(st.integers(0, 90_000), min_size=1, max_size=6, unique=True).map(sorted))
    weights = draw(st.lists(st.integers(1, 1_000), min_size=len(seconds), max_size=len(seconds)))
    return Law(tuple(seconds), tuple(weight / sum(weights) for weight in weights))


@given(st.lists(legs.map(lambda x: x[0]) | measured(), min_size=1, max_size=3), st.floats(1e-6, 0.5), st.data())
def test_a_hold_takes_no_less_long_with_a_longer_leg_and_about_what_its_legs_add_up_to(
    hold: list[LatencyLeg | Law], epsilon: float, data: st.DataObject
) -> None:
    bound = hold_bound(hold, epsilon)
    exact = {0: 1.0}
    for leg in hold:
        atoms = (
            list(zip(*leg, strict=True))
            if isinstance(leg, Law)
            else [(leg.typical, 1 - leg.outage_probability), (leg.typical + leg.outage, leg.outage_probability)]
        )
        longer: dict[int, float] = {}
        for seconds, chance in exact.items():
            for further, part in atoms:
                longer[seconds + further] = longer.get(seconds + further, 0.0) + chance * part
        exact = longer
    least = max(s for s in exact if math.fsum(c for other, c in exact.items() if other >= s) > epsilon * (1 + 1e-9))
    most = max(s for s in exact if math.fsum(c for other, c in exact.items() if other >= s) > epsilon * (1 - 1e-9))
    assert least <= bound <= most * (1 + 1 / 256) ** 3
    which, slower = data.draw(st.integers(0, len(hold) - 1)), data.draw(st.integers(1, 5_000))
    late: list[LatencyLeg | Law] = list(hold)
    leg = late[which]
    late[which] = (
        leg._replace(seconds=tuple(s + slower for s in leg.seconds))
        if isinstance(leg, Law)
        else leg.model_copy(update={"typical": leg.typical + slower})
    )
    assert hold_bound(late, epsilon * (1 - 1e-9)) >= bound
