"""Laws of latency: what is measured is never shortened, what is configured is never believed away."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import pytest

from aggregator.core.commitment import digest_text
from aggregator.core.haircut import hold_bound
from aggregator.core.latency import (
    FEWEST,
    GRID,
    NEWEST,
    NODES,
    REFRESH,
    WINDOW,
    build_tables,
    combine,
    convolve,
    describe,
    discretise,
    hold_legs,
    parse_tables,
    quantile,
    round_up,
    select,
    tables_json,
    within_band,
)
from aggregator.domain.errors import InputError
from aggregator.domain.latency import EVERYWHERE, LatencyTables, Law, Leg, OutageAtom, Sample
from aggregator.domain.rows import DestinationRow, LatencyLeg
from tests.strategies import EVM, SOLANA, chain_row

NOW = 1_760_000_080  # not a multiple of the time between two refreshes
EVM_ROW = chain_row(
    EVM,
    name="alpha",
    hold=(LatencyLeg(typical=12), LatencyLeg(typical=3), LatencyLeg(typical=4, outage=900, outage_probability=0.001)),
)
SOLANA_ROW = chain_row(SOLANA, name="sol", hold=(LatencyLeg(typical=1),))
CHAINS = (EVM_ROW, SOLANA_ROW)
DESTINATIONS = (
    DestinationRow(chain=EVM, kind="evm-registry", address="0x" + "11" * 20, clock_bound=5, payer_key="payer"),
)


def series(leg: Leg, chain: str, seconds: Sequence[float]) -> list[Sample]:
    return [Sample(leg, chain, value, NOW - 1_000 - i) for i, value in enumerate(seconds)]


def tables(*measured: tuple[Leg, str, Sequence[float]]) -> LatencyTables:
    return build_tables([s for one in measured for s in series(*one)], CHAINS, DESTINATIONS)


def law_of(made: LatencyTables, leg: Leg, chain: str) -> Law:
    return next(t.law for t in made if (t.leg, t.chain) == (leg, chain))


# the grid and the bins


def test_the_grid_is_whole_seconds_about_a_quarter_apart() -> None:
    assert GRID[:20] == (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120)
    assert all(1.15 < high / low < 1.35 for low, high in pairwise(GRID[5:]))
    assert [round_up(value) for value in (-3.0, 0.0, 0.001, 6.5, 8, 8.01, 101)] == [0, 0, 1, 8, 8, 10, 120]
    for unusable in (float("nan"), float("inf"), GRID[-1] + 1):
        with pytest.raises(ValueError, match="beyond the grid"):
            round_up(unusable)


def test_bins_are_equal_counts_to_the_90th_percentile_then_halves_of_what_is_left() -> None:
    law = discretise([float(rank) for rank in range(1, 4_001)])
    assert law.seconds[-1] == 4_000  # a grid value: the longest is not moved
    body = [200.0 * i for i in range(1, 19)]
    tail = [3_800.0, 3_900, 3_950, 3_975, 3_988, 3_994, 3_997, 3_999, 4_000]
    expected: dict[int, float] = {}
    before = 0.0
    for end in body + tail:
        expected[round_up(end)] = expected.get(round_up(end), 0.0) + (end - before) / 4_000
        before = end
    assert dict(zip(*law, strict=True)) == pytest.approx(expected)


def test_a_law_needs_a_measurement() -> None:
    with pytest.raises(ValueError, match="at least one"):
        discretise([])


def test_one_outlier_of_many_keeps_its_own_chance() -> None:
    law = discretise([1.0] * 4_095 + [600.0])
    assert law == Law((1, 600), (4_095 / 4_096, 1 / 4_096))
    assert hold_bound([law], 1e-4) == 600
    assert hold_bound([law], 1e-3) == 1


# measured and configured


def test_too_few_measurements_change_nothing() -> None:
    configured = tables()
    assert tables(("relay", EVM, [500.0] * (FEWEST - 1))) == configured
    assert all(t.samples == 0 for t in configured)
    assert law_of(configured, "finality", EVM) == Law((12,), (1.0,))
    assert law_of(configured, "relay", EVM) == Law((7, 907), (0.999, 0.001))
    assert law_of(configured, "relay", SOLANA) == Law((0,), (1.0,))
    enough = tables(("relay", EVM, [500.0] * FEWEST))
    assert law_of(enough, "relay", EVM) == Law((500, 1400), (0.999, 0.001))
    assert [t.samples for t in enough if t.samples] == [FEWEST]


def test_tables_hold_every_leg_of_the_configuration_ascending() -> None:
    legs = [(t.chain, t.leg) for t in tables(("relay", "eip155:999", [1.0] * 50))]
    assert legs == sorted(
        [(EVERYWHERE, "attest")]
        + [(chain, leg) for chain in (EVM, SOLANA) for leg in ("block", "finality", "read", "relay")]
        + [(EVM, "lifetime")]
    )


def test_measured_below_the_typical_counts_as_typical_and_keeps_the_outage() -> None:
    fast = tables(("relay", EVM, [0.2] * 1_000))
    assert law_of(fast, "relay", EVM) == Law((7, 907), (0.999, 0.001))
    mixed = law_of(tables(("relay", EVM, [0.2] * 950 + [45.0] * 50)), "relay", EVM)
    assert mixed.seconds == (7, 50, 950)
    assert mixed.chance == pytest.approx((0.95 * 0.999, 0.05 * 0.999, 0.001))


def test_several_outages_are_an_atom_each_and_one_for_both() -> None:
    legs = [
        LatencyLeg(typical=2, outage=100, outage_probability=0.1),
        LatencyLeg(typical=3, outage=900, outage_probability=0.2),
    ]
    law = combine([], legs)
    assert law.seconds == (5, 105, 905, 1005)
    assert law.chance == pytest.approx((0.72, 0.08, 0.18, 0.02))
    certain = combine([9.0] * 50, [LatencyLeg(typical=2, outage=100, outage_probability=1.0)])
    assert certain == Law((110,), (1.0,))


def test_the_legs_of_a_hold_are_finality_read_attest_and_relay_of_the_chain() -> None:
    made = tables(("read", EVM, [2.5] * 40), ("attest", EVERYWHERE, [0.4] * 40), ("block", EVM, [999.0] * 40))
    held = hold_legs(made, CHAINS)
    assert held[EVM] == (
        Law((12,), (1.0,)),
        Law((3,), (1.0,)),
        Law((1,), (1.0,)),
        Law((7, 907), (0.999, 0.001)),
    )
    assert convolve(held[EVM]) == Law((23, 923), (0.999, 0.001))
    assert convolve(held[SOLANA]) == Law((2,), (1.0,))
    with pytest.raises(InputError, match=f"latency: relay on {EVM} is missing"):
        hold_legs(tuple(t for t in made if t.leg != "relay"), CHAINS)


# sums


def test_a_sum_is_that_of_all_combinations() -> None:
    laws = [Law((0, 3), (0.25, 0.75)), Law((1, 2, 5), (0.5, 0.25, 0.25)), Law((2, 900), (0.875, 0.125))]
    expected: dict[int, float] = {}
    for path in product(*(list(zip(*law, strict=True)) for law in laws)):
        seconds, chance = sum(value for value, _ in path), 1.0
        for _, part in path:
            chance *= part
        expected[seconds] = expected.get(seconds, 0.0) + chance
    law = convolve(laws)
    assert dict(zip(*law, strict=True)) == pytest.approx(expected, abs=1e-15)
    assert convolve([]) == Law((0,), (1.0,))
    assert convolve([laws[1]]) == laws[1]


def test_merging_reaches_every_limit_and_never_exceeds_the_longest() -> None:
    wide = Law(tuple(range(0, 7_000, 7)), (1 / 1_000,) * 1_000)
    for limit in (NODES, 10, 1):
        law = convolve([wide], limit)
        assert len(law.seconds) <= limit
        assert law.seconds[-1] == wide.seconds[-1]
    assert convolve([wide], 1).chance == pytest.approx((1.0,))


# which samples count


def test_the_window_moves_in_whole_steps_and_keeps_the_newest() -> None:
    end = NOW // REFRESH * REFRESH
    inside = [Sample("read", EVM, float(i), end - WINDOW + i) for i in range(3)]
    outside = [Sample("read", EVM, 99.0, end - WINDOW - 1), Sample("read", EVM, 99.0, end)]
    assert select([*outside, *inside], NOW) == tuple(inside)
    assert select([*outside, *inside], end + REFRESH - 1) == select([*outside, *inside], NOW)
    assert outside[1] in select([*outside, *inside], end + REFRESH)
    many = [Sample("read", EVM, float(i), end - 10_000 + i) for i in range(NEWEST + 5)]
    assert select([*many, *inside], NOW)[-NEWEST:] == tuple(many[5:])


# another's tables


def measured(read: float, count: int = 1_000) -> LatencyTables:
    return tables(("read", EVM, [read] * count))


def test_neighbouring_and_longer_laws_are_accepted() -> None:
    configured = tables()
    mine = measured(10.0)
    for theirs in (6.0, 8.0, 10.0, 12.0, 10_000.0):
        assert within_band(measured(theirs), mine, configured) == ""
    assert within_band(mine, configured, configured) == ""
    assert within_band(configured, configured, configured) == ""


@pytest.mark.parametrize(("share", "name"), [(0.6, "50%"), (0.2, "90%"), (0.05, "99%")])
def test_a_law_shorter_by_more_than_two_steps_at_one_quantile_is_refused(share: float, name: str) -> None:
    slow = int(1_000 * share)
    mine = tables(("read", EVM, [2.0] * (1_000 - slow) + [10.0] * slow))
    theirs = tables(("read", EVM, [2.0] * (1_000 - slow) + [5.0] * slow))
    why = within_band(theirs, mine, tables())
    assert why == f"read on {EVM} takes at most 5 s in {name} of cases, measured here are 10 s"
    assert within_band(theirs, mine, tables(), steps=3) == ""


def test_a_proposer_that_cannot_have_measured_enough_yet_is_not_refused() -> None:
    assert within_band(tables(), measured(500.0, 2 * FEWEST - 1), tables()) == ""
    assert "measured here are 500 s" in within_band(tables(), measured(500.0, 2 * FEWEST), tables())


def test_after_a_restart_in_a_slow_hour_a_proposer_that_remembers_the_day_is_not_refused() -> None:
    """An attestor that lost its measurements, with 70 slow ones since, beside a day of 1,440 that ends in those."""
    day = tables(("read", EVM, [2.0] * 1_370 + [40.0] * 70))
    hour = measured(40.0, 70)
    assert within_band(day, hour, tables()) == ""
    assert within_band(hour, day, tables()) == ""
    forgot = tables(("read", EVM, [2.0] * 1_440))  # a twentieth of the day cannot have been left out unseen
    assert (
        within_band(forgot, hour, tables())
        == f"read on {EVM} takes at most 2 s in 99% of cases, measured here are 40 s"
    )


def test_a_proposer_gains_little_by_boasting_of_measurements() -> None:
    mine = tables(("read", EVM, [2.0] * 1_200 + [10.0] * 240))
    for samples in (1_441, NEWEST, 2**53):
        theirs = tuple(t._replace(samples=samples) if t.leg == "read" else t for t in measured(5.0))
        assert "of cases, measured here are 10 s" in within_band(theirs, mine, tables())


def test_a_weaker_outage_is_refused_whatever_was_measured() -> None:
    configured = tables()
    for law, says in (
        (Law((7,), (1.0,)), "takes 907 s or more with a chance of 0, configured are 0.001"),
        (Law((7, 907), (0.9995, 0.0005)), "takes 907 s or more with a chance of 0.0005, configured are 0.001"),
        (Law((7, 906), (0.999, 0.001)), "takes 907 s or more with a chance of 0, configured are 0.001"),
        (Law((6, 907), (0.999, 0.001)), "takes 7 s or more with a chance of 0.001, configured are 1"),
    ):
        theirs = tuple(t._replace(law=law) if (t.leg, t.chain) == ("relay", EVM) else t for t in configured)
        assert within_band(theirs, configured, configured) == f"relay on {EVM} {says}"


def test_missing_and_added_legs_are_refused() -> None:
    configured = tables()
    assert within_band(configured[1:], configured, configured) == "attest on * is missing"
    extra = (*configured, configured[-1]._replace(chain="solana:zzz"))
    assert within_band(extra, configured, configured) == "relay on solana:zzz is not a leg of this configuration"


@pytest.mark.parametrize("chance", [float("nan"), 1.5, 0.5])
def test_what_is_no_law_is_refused_before_it_is_compared(chance: float) -> None:
    configured = tables()
    theirs = tuple(t._replace(law=Law((9_999,), (chance,))) for t in configured)
    assert within_band(theirs, configured, configured).startswith("latency[0].chance: does not add up to 1")
    assert "is not above the one before" in within_band(configured[::-1], configured, configured)


# JSON


def test_tables_survive_json_bit_for_bit() -> None:
    made = tables(("read", EVM, [0.1 * i for i in range(100)]), ("relay", EVM, [float(i % 37) for i in range(999)]))
    document = tables_json(made)
    digest_text(document)  # refuses floats and anything else without one canonical text
    assert parse_tables(document) == made
    assert tables_json(parse_tables(document)) == document


def test_tables_that_are_not_as_written_are_refused_by_the_field() -> None:
    good = tables_json(tables())
    first: dict[str, Any] = good[0]
    for change, says in (
        ({"leg": "walk"}, r"latency\[0\].leg: is not known"),
        ({"chain": 5}, r"latency\[0\].chain: is no text"),
        ({"samples": -1}, r"latency\[0\].samples: is no count"),
        ({"samples": True}, r"latency\[0\].samples: is no count"),
        ({"seconds": []}, r"latency\[0\].seconds: is not a list"),
        ({"seconds": [1.5]}, r"latency\[0\].seconds: is not a list"),
        ({"seconds": list(range(NODES + 1))}, r"latency\[0\].seconds: is not a list"),
        ({"seconds": [2, 2], "chance": ["0.5", "0.5"]}, r"latency\[0\].seconds: does not ascend"),
        ({"chance": [1.0]}, r"latency\[0\].chance: is not a list of one decimal text"),
        ({"chance": ["1.00"]}, r"latency\[0\].chance: holds a text that is not the shortest"),
        ({"chance": ["one"]}, r"latency\[0\].chance: holds a text that is no number"),
        ({"chance": ["nan"]}, r"latency\[0\].chance: does not add up"),
        ({"chance": ["0.9"]}, r"latency\[0\].chance: does not add up"),
        ({"seconds": [1, 2], "chance": ["1.5", "-0.5"]}, r"latency\[0\].chance: does not add up"),
        ({"more": 1}, r"latency\[0\]: is not an object of exactly"),
    ):
        with pytest.raises(InputError, match=says):
            parse_tables([first | change, *good[1:]])
    with pytest.raises(InputError, match=r"latency\[1\]: is not above the one before"):
        parse_tables([first, first])
    with pytest.raises(InputError, match="latency: is not a list"):
        parse_tables({})


# for people


def test_a_report_tells_what_was_measured_and_what_counts_because_of_it() -> None:
    samples = [Sample("relay", EVM, float(i), NOW - 200 + i) for i in range(1, 101)]
    report = describe(samples, CHAINS, DESTINATIONS, now=NOW, since=NOW - 150, epsilon=1e-4)
    relay = next(leg for leg in report.legs if (leg.chain, leg.leg) == (EVM, "relay"))
    assert (relay.name, relay.samples, relay.p50, relay.p90, relay.p99) == ("alpha", 51, 75.0, 95.0, 100.0)
    assert (relay.longest, relay.last, relay.last_at) == (100.0, 100.0, NOW - 100)
    assert (relay.typical, relay.outages) == (7, (OutageAtom(900, 0.001),))
    assert relay.law_samples == 100  # also those before `since`
    assert (relay.law_seconds[-1], relay.law_chances[-1]) == (1_000, 0.001)
    hold = next(hold for hold in report.holds if hold.chain == EVM)
    assert (hold.name, hold.bound, hold.longest) == ("alpha", 1_012, 1_012)
    quiet = next(leg for leg in report.legs if (leg.chain, leg.leg) == (SOLANA, "read"))
    assert (quiet.samples, quiet.p50, quiet.last, quiet.last_at) == (0, None, None, None)
    only = describe(samples, CHAINS, DESTINATIONS, now=NOW, since=0, epsilon=1e-4, only=(EVM, "relay"))
    assert [(leg.chain, leg.leg) for leg in only.legs] == [(EVM, "relay")]
    assert [hold.chain for hold in only.holds] == [EVM]


def test_quantiles_are_least_values() -> None:
    law = Law((1, 2, 3), (0.5, 0.4, 0.1))
    assert [quantile(law, level) for level in (0.0, 0.5, 0.500001, 0.9, 0.99, 1.0)] == [1, 1, 2, 2, 3, 3]
