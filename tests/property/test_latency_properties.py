"""Laws of latency err toward longer, whatever was measured and configured (risk.md §2, invariants 7 and 28)."""

from __future__ import annotations

import math
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.haircut import hold_bound
from aggregator.core.latency import (
    FEWEST,
    GRID,
    HOLD_LEGS,
    NODES,
    build_tables,
    combine,
    convolve,
    discretise,
    dominates,
    hold_legs,
    parse_tables,
    quantile,
    round_up,
    survival,
    tables_json,
    within_band,
)
from aggregator.domain.latency import EVERYWHERE, LatencyTables, Law, Leg, Sample
from aggregator.domain.rows import DestinationRow, LatencyLeg
from tests.strategies import EVM, SOLANA, chain_row

LEVELS = (0.01, 0.5, 0.9, 0.99, 0.9999, 1.0)
durations = st.one_of(st.floats(0, 20), st.floats(0, 100_000), st.integers(0, 3_000).map(float))
measurements = st.lists(durations, min_size=1, max_size=120)
enough = st.lists(durations, min_size=FEWEST, max_size=120)
configured_leg = st.builds(
    LatencyLeg,
    typical=st.integers(0, 2_000),
    outage=st.integers(0, 10_000),
    outage_probability=st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 0.5)),
)
holds = st.lists(configured_leg, min_size=1, max_size=4)
DESTINATIONS = (
    DestinationRow(chain=EVM, kind="evm-registry", address="0x" + "11" * 20, clock_bound=5, payer_key="payer"),
)


@st.composite
def laws(draw: st.DrawFn, most: int = 6, longest: int = 2_000) -> Law:
    seconds = sorted(draw(st.sets(st.integers(0, longest), min_size=1, max_size=most)))
    weights = [draw(st.integers(1, 1_000)) for _ in seconds]
    return Law(tuple(seconds), tuple(weight / sum(weights) for weight in weights))


def is_law(law: Law) -> bool:
    ascending = list(law.seconds) == sorted(set(law.seconds))
    return ascending and min(law.chance) > 0 and abs(math.fsum(law.chance) - 1) < 1e-12


def empirical(seconds: list[float]) -> Law:
    """Return every measurement as it is, in whole seconds upwards."""
    values = sorted(math.ceil(value) for value in seconds)
    return Law(tuple(sorted(set(values))), tuple(values.count(value) / len(values) for value in sorted(set(values))))


@given(st.floats(0, GRID[-1]))
def test_rounding_goes_up_once(seconds: float) -> None:
    value = round_up(seconds)
    assert value >= seconds
    assert round_up(value) == value
    assert value <= max(1.0, 1.34 * math.ceil(seconds)) or value <= 2


@given(measurements)
def test_a_law_is_never_shorter_than_its_measurements(seconds: list[float]) -> None:
    law = discretise(seconds)
    assert is_law(law)
    assert dominates(law, empirical(seconds))
    assert all(survival(law, value) >= sum(s >= value for s in seconds) / len(seconds) - 1e-12 for value in seconds)
    assert law.seconds[-1] == round_up(max(seconds))
    assert len(law.seconds) <= 18 + math.ceil(math.log2(len(seconds) + 1))


@given(measurements, st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_matter(seconds: list[float], random: object) -> None:
    shuffled = list(seconds)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert discretise(shuffled) == discretise(seconds)


@given(st.lists(st.tuples(durations, st.floats(0, 5_000)), min_size=FEWEST, max_size=120), holds)
def test_longer_measurements_give_a_longer_law(pairs: list[tuple[float, float]], hold: list[LatencyLeg]) -> None:
    shorter, longer = [value for value, _ in pairs], [value + more for value, more in pairs]
    assert dominates(discretise(longer), discretise(shorter))
    assert dominates(combine(longer, hold), combine(shorter, hold))


@given(measurements)
def test_a_law_of_its_own_values_is_itself(seconds: list[float]) -> None:
    law = discretise(seconds)
    assert Law(tuple(round_up(value) for value in law.seconds), law.chance) == law
    assert convolve([law]) == law


@given(st.lists(durations, max_size=100), holds)
def test_a_leg_is_no_shorter_than_configured_nor_than_measured(seconds: list[float], hold: list[LatencyLeg]) -> None:
    law = combine(seconds, hold)
    assert is_law(law)
    assert len(law.seconds) <= NODES
    assert dominates(law, combine([], hold))
    assert law.seconds[0] >= sum(leg.typical for leg in hold)
    if len(seconds) >= FEWEST:
        assert dominates(law, empirical(seconds))
    else:
        assert law == combine([], hold)


@given(st.lists(durations, max_size=100), holds, configured_leg)
def test_an_outage_more_never_shortens_any_quantile(
    seconds: list[float], hold: list[LatencyLeg], more: LatencyLeg
) -> None:
    outage = more.model_copy(update={"typical": 0})
    before, after = combine(seconds, hold), combine(seconds, [*hold, outage])
    assert all(quantile(after, level) >= quantile(before, level) for level in LEVELS)
    worse = hold[0].model_copy(update={"outage": hold[0].outage + more.outage})
    assert dominates(combine(seconds, [worse, *hold[1:]]), before)


@given(st.lists(laws(), max_size=4))
def test_a_sum_equals_that_of_all_combinations(parts: list[Law]) -> None:
    expected: dict[int, float] = {}
    for path in product(*(list(zip(*law, strict=True)) for law in parts)):
        value = sum(seconds for seconds, _ in path)
        expected[value] = expected.get(value, 0.0) + math.prod(chance for _, chance in path)
    law = convolve(parts, 10_000)
    assert is_law(law)
    assert list(law.seconds) == sorted(expected)
    assert all(math.isclose(expected[v], c, abs_tol=1e-13) for v, c in zip(*law, strict=True))


@given(st.lists(laws(most=30, longest=10**6), min_size=1, max_size=4), st.integers(1, NODES))
def test_merging_loses_nothing_and_shortens_nothing(parts: list[Law], limit: int) -> None:
    whole, merged = convolve(parts, 10**6), convolve(parts, limit)
    assert is_law(merged)
    assert len(merged.seconds) <= limit
    assert dominates(merged, whole)
    assert merged.seconds[-1] == sum(law.seconds[-1] for law in parts)


@given(holds, st.dictionaries(st.sampled_from(HOLD_LEGS), enough), st.floats(1e-6, 0.2))
def test_a_hold_is_never_bounded_below_what_is_configured(
    hold: list[LatencyLeg], measured: dict[Leg, list[float]], epsilon: float
) -> None:
    chains = (chain_row(EVM, hold=tuple(hold)),)
    samples = [
        Sample(leg, EVERYWHERE if leg == "attest" else EVM, value, 1)
        for leg, values in measured.items()
        for value in values
    ]
    made, configured = build_tables(samples, chains, DESTINATIONS), build_tables((), chains, DESTINATIONS)
    law, least = convolve(hold_legs(made, chains)[EVM]), convolve(hold_legs(configured, chains)[EVM])
    assert dominates(law, least)
    assert hold_bound([law], epsilon) >= hold_bound([least], epsilon)
    assert within_band(made, configured, configured) == ""
    assert parse_tables(tables_json(made)) == made


@given(enough, st.lists(st.floats(0, 100), min_size=FEWEST, max_size=FEWEST), holds)
def test_whoever_measures_more_refuses_nobody_who_measures_longer(
    seconds: list[float], more: list[float], hold: list[LatencyLeg]
) -> None:
    chains = (chain_row(EVM, hold=tuple(hold)), chain_row(SOLANA))

    def tables(values: list[float]) -> LatencyTables:
        return build_tables([Sample("relay", EVM, value, 1) for value in values], chains, DESTINATIONS)

    longer = [value + more[i % len(more)] for i, value in enumerate(seconds)]
    configured = build_tables((), chains, DESTINATIONS)
    assert within_band(tables(longer), tables(seconds), configured) == ""


@given(enough, st.lists(st.floats(0, 1_000), min_size=1, max_size=400), holds)
def test_whoever_measured_all_of_it_and_more_is_not_refused(
    seconds: list[float], more: list[float], hold: list[LatencyLeg]
) -> None:
    """Whatever the measurements are that one party alone has: after a restart another has few, of one hour only."""
    chains = (chain_row(EVM, hold=tuple(hold)), chain_row(SOLANA))

    def tables(values: list[float]) -> LatencyTables:
        return build_tables([Sample("finality", EVM, value, 1) for value in values], chains, DESTINATIONS)

    own = [*seconds, *seconds]  # enough of them to count
    assert within_band(tables([*own, *more]), tables(own), build_tables((), chains, DESTINATIONS)) == ""
