"""From measured legs to the laws that a statement commits to (risk.md §2). Everything errs toward longer.

A *law* is a distribution on whole seconds. Measurements become one by equal-count bins up to the 90th percentile and
bins that halve what is left beyond it, each at its upper end, then rounded up to a coarse geometric grid, so that
parties who measure for themselves get equal or neighbouring values. Edges follow ranks, never values: a leg that takes
longer can only give a longer law.

What is configured is the floor of what is measured. ``ChainRow.hold`` lists, in their order in time, the legs until a
Hold lands on a chain: the first is that of ``finality``, the sum of the others that of ``relay``; ``read`` and
``attest`` have no configured part. With too few measurements a leg's law is the configured one. Else no value is below
the configured typical length, and each configured outage is one atom beyond the longest value, with its configured
chance: outages are too rare to be measured, and are never believed away. Leg by leg the law therefore dominates both
the measurements and the configuration stochastically, and so does the sum of a chain's legs, however ``hold`` is cut
into legs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain as chained
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from aggregator.core.haircut import hold_bound
from aggregator.domain.errors import InputError
from aggregator.domain.latency import (
    EVERYWHERE,
    LEGS,
    HoldReport,
    LatencyReport,
    LatencyTables,
    Law,
    Leg,
    LegLaw,
    LegReport,
    OutageAtom,
    Sample,
)
from aggregator.domain.rows import ChainRow, DestinationRow, LatencyLeg
from aggregator.domain.units import Floats

WINDOW = 86_400
"""Seconds that a measurement counts for."""
NEWEST = 4_096
"""Measurements of one (leg, chain) that count at most; the newest ones."""
REFRESH = 60
"""Tables change at whole multiples of this many seconds, at every party's at once."""
FEWEST = 32
"""With fewer measurements a leg's law is the configured one."""
STEPS = 2
"""How many grid steps a proposer's law may be shorter than one's own."""
NODES = 64
"""The most values of one law."""
HOLD_LEGS: tuple[Leg, ...] = ("finality", "read", "attest", "relay")
"""What has to pass, one after the other, before a Hold lands."""
GRID: tuple[int, ...] = (
    *range(7),
    8,
    *(step * 10**k for k in range(8) for step in (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)),
)
"""Seconds: each about 1.25 times the one before, but for whole seconds below 10; the last is 25 years."""

_BODY = 18  # equal-count bins up to the 90th percentile: 5% each
_WIDEST = 1_024  # values of a sum under way; a proposer's tables must not cost an attestor seconds
_QUANTILES = ((0.5, "50%"), (0.9, "90%"), (0.99, "99%"))
_NOISE = 1e-12  # of sums of chances
_LARGEST = 2**53  # seconds and counts that every JSON reader holds exactly
_OUTAGES = 24  # values of the sum of one leg's outages; with the bins of a measured law that stays below NODES
_Key = tuple[str, Leg]  # chain, leg
_Seconds = npt.NDArray[np.int64]


def round_up(seconds: float) -> int:
    """Return the least grid value that is not below ``seconds``; 0 for what a clock that was set back made negative.

    Raises:
        ValueError: beyond the grid, or not a number.
    """
    if not seconds <= GRID[-1]:
        raise ValueError(f"{seconds} seconds is beyond the grid, which ends at {GRID[-1]}")
    return GRID[bisect_left(GRID, seconds)]


def discretise(seconds: Sequence[float], least: int = 0) -> Law:
    """Return the law of measurements, in any order: it dominates them stochastically and has few values.

    Args:
        seconds: at least one.
        least: what is shorter counts as this long.

    Raises:
        ValueError: there are none, or one is beyond the grid.
    """
    ordered, ends = sorted(seconds), _bin_ends(len(seconds))
    counts: dict[int, int] = {}
    for start, end in pairwise([0, *ends]):
        value = max(round_up(ordered[end - 1]), least)
        counts[value] = counts.get(value, 0) + end - start
    if not counts:
        raise ValueError("a law needs at least one measurement")
    return _law((value, count / len(ordered)) for value, count in counts.items())


def combine(seconds: Sequence[float], configured: Sequence[LatencyLeg]) -> Law:
    """Return the law of a leg: measured, nowhere below the configured typical, with the configured outages.

    Args:
        seconds: measurements; with fewer than ``FEWEST`` the law is the configured one.
        configured: the legs of ``ChainRow.hold`` that this leg stands for; their lengths add up.
    """
    typical = sum(leg.typical for leg in configured)
    usual = discretise(seconds, typical) if len(seconds) >= FEWEST else Law((typical,), (1.0,))
    atoms = [((0, 1 - leg.outage_probability), (leg.outage, leg.outage_probability)) for leg in configured]
    outages = convolve([_law(pairs) for pairs in atoms], _OUTAGES)
    # One atom per outage: on top of the longest usual length it is no shorter than on top of any.
    pairs = [(usual.seconds[-1] + outage, chance) for outage, chance in zip(*outages, strict=True) if outage]
    usually = 1 - math.fsum(chance for _, chance in pairs)
    return _law([*pairs, *((value, chance * usually) for value, chance in zip(*usual, strict=True))])


def build_tables(
    samples: Iterable[Sample], chains: Sequence[ChainRow], destinations: Sequence[DestinationRow]
) -> LatencyTables:
    """Return every leg's law that the configuration asks for; samples of other legs and chains are left out.

    Samples count whatever their age: :func:`select` picks those that should.
    """
    configured = _configured(chains, destinations)
    measured: dict[_Key, list[float]] = {key: [] for key in configured}
    for sample in samples:
        if (key := (sample.chain, sample.leg)) in measured:
            measured[key].append(sample.seconds)
    return tuple(
        LegLaw(leg, chain, combine(seconds, configured[chain, leg]), len(seconds) if len(seconds) >= FEWEST else 0)
        for (chain, leg), seconds in sorted(measured.items())
    )


def select(samples: Iterable[Sample], now: float) -> tuple[Sample, ...]:
    """Return the samples that the tables at ``now`` rest on: at most ``NEWEST`` per (leg, chain), of one window.

    The window ends at a whole multiple of ``REFRESH``, so that tables stay the same for a while, and change at every
    party's at the same time.
    """
    end = int(now // REFRESH) * REFRESH
    series: dict[_Key, list[Sample]] = {}
    for sample in samples:
        if end - WINDOW <= sample.measured_at < end:
            series.setdefault((sample.chain, sample.leg), []).append(sample)
    newest = (sorted(among, key=lambda sample: sample.measured_at)[-NEWEST:] for among in series.values())
    return tuple(chained.from_iterable(newest))


def hold_legs(tables: LatencyTables, chains: Sequence[ChainRow]) -> Mapping[str, tuple[Law, ...]]:
    """Return, per chain, the laws of what passes before a Hold lands there; independent, so that their sum counts.

    Raises:
        InputError: a leg is missing.
    """
    laws = {(leg.chain, leg.leg): leg.law for leg in tables}
    held: dict[str, tuple[Law, ...]] = {}
    for row in chains:
        keys = [(EVERYWHERE if leg == "attest" else row.id, leg) for leg in HOLD_LEGS]
        for chain, leg in keys:
            if (chain, leg) not in laws:
                raise InputError("latency", f"{leg} on {chain} is missing", "take tables of the same configuration")
        held[row.id] = tuple(laws[key] for key in keys)
    return held


def convolve(laws: Sequence[Law], limit: int = NODES) -> Law:
    """Return the law of a sum of independent legs; with more than ``limit`` values, some are merged upwards.

    Args:
        laws: any number; of none, the sum is 0.
        limit: at least 1.
    """
    values, masses = np.zeros(1, dtype=np.int64), np.ones(1)
    for law in laws:
        sums = np.add.outer(values, np.array(law.seconds, dtype=np.int64)).ravel()
        values, masses = _add_up(sums, np.multiply.outer(masses, np.array(law.chance)).ravel())
        values, masses = _merge(values, masses, _WIDEST)
    values, masses = _merge(values, masses, limit)
    return _law(zip(values.tolist(), masses.tolist(), strict=True))


def quantile(law: Law, level: float) -> int:
    """Return the least value that is not exceeded with a chance of at least ``level``, in seconds."""
    total = 0.0
    for value, chance in zip(*law, strict=True):
        total += chance
        if total >= level - _NOISE:
            return value
    return law.seconds[-1]


def survival(law: Law, seconds: float) -> float:
    """Return the chance that a leg takes ``seconds`` or more."""
    return math.fsum(chance for value, chance in zip(*law, strict=True) if value >= seconds)


def dominates(longer: Law, law: Law) -> bool:
    """Say whether ``longer`` exceeds every length at least as likely as ``law`` does."""
    return all(survival(longer, value) >= survival(law, value) - _NOISE for value in law.seconds)


def within_band(theirs: LatencyTables, mine: LatencyTables, configured: LatencyTables, steps: int = STEPS) -> str:
    """Say what makes a proposer's tables unacceptable, "" if nothing does. Longer laws are.

    Refused are tables that :func:`parse_tables` would refuse, that lack a leg or add one; a law that does not dominate
    the configured one, outages included; a law that is more than ``steps`` grid steps shorter than one's own at its
    median, 90th or 99th percentile. One's own law counts once it rests on twice ``FEWEST`` measurements: until then
    the proposer may still lack some. Where the proposer has measured more than oneself, after a restart say, its other
    measurements may all have been short: then only what one's own alone rule out is refused, so that whoever has
    measured the same, and more, never is.

    Args:
        configured: what ``build_tables`` makes of no samples.
    """
    try:
        parse_tables(tables_json(theirs))
    except InputError as error:
        return str(error)
    laws = {(leg.chain, leg.leg): (leg.law, leg.samples) for leg in theirs}
    own = {(leg.chain, leg.leg): leg for leg in mine}
    floor = {(leg.chain, leg.leg): leg.law for leg in configured}
    if unmatched := sorted(floor.keys() ^ laws.keys()):
        chain, leg = unmatched[0]
        return f"{leg} on {chain} is {'missing' if (chain, leg) in floor else 'not a leg of this configuration'}"
    for (chain, leg), (law, samples) in laws.items():
        least = floor[chain, leg]
        for value in least.seconds:
            if survival(law, value) < (needed := survival(least, value)) - _NOISE:
                return (
                    f"{leg} on {chain} takes {value} s or more with a chance of {survival(law, value):.6g}, "
                    f"configured are {needed:.6g}"
                )
        measured = own.get((chain, leg))
        if measured is None or measured.samples < 2 * FEWEST:
            continue
        # More than ``NEWEST`` cannot count, so that a proposer that boasts of more dilutes one's own no further.
        share = measured.samples / max(measured.samples, min(samples, NEWEST))
        for level, name in _QUANTILES:
            their = quantile(law, level)
            if share == 1:
                my = quantile(measured.law, level)
            else:
                my = _surely(measured.law, (1 - level) / share, measured.samples)
            if bisect_left(GRID, my) - bisect_left(GRID, their) > steps:
                return f"{leg} on {chain} takes at most {their} s in {name} of cases, measured here are {my} s"
    return ""


def tables_json(tables: LatencyTables) -> list[dict[str, Any]]:
    """Return tables as JSON without floats: chances are shortest decimal text, which reads back bit for bit."""
    return [
        {
            "leg": leg.leg,
            "chain": leg.chain,
            "samples": leg.samples,
            "seconds": list(leg.law.seconds),
            "chance": [repr(chance) for chance in leg.law.chance],
        }
        for leg in tables
    ]


def parse_tables(document: object) -> LatencyTables:
    """Return the tables that :func:`tables_json` wrote.

    Raises:
        InputError: names the first field that is not as it writes it.
    """
    if not isinstance(document, list):
        raise InputError("latency", "is not a list", "give one object per leg")
    tables = tuple(_parse_leg(f"latency[{i}]", item) for i, item in enumerate(document))
    for i, (first, second) in enumerate(pairwise(tables)):
        if (first.chain, first.leg) >= (second.chain, second.leg):
            raise InputError(f"latency[{i + 1}]", "is not above the one before by (chain, leg)", "sort, each leg once")
    return tables


def describe(
    samples: Sequence[Sample],
    chains: Sequence[ChainRow],
    destinations: Sequence[DestinationRow],
    *,
    now: float,
    since: float,
    epsilon: float,
    only: tuple[str | None, Leg | None] = (None, None),
) -> LatencyReport:
    """Summarise the remembered samples and the laws that follow from them at ``now``.

    Args:
        samples: the whole window, oldest first.
        since: Unix seconds; older samples are behind the laws, but in no figure shown.
        epsilon: the policy's ``exit_epsilon``.
        only: the chain (CAIP-2) and the leg to show; None for all.
    """
    names = {EVERYWHERE: "everywhere"} | {row.id: row.name for row in chains}
    configured = _configured(chains, destinations)
    tables = build_tables(select(samples, now), chains, destinations)
    shown: dict[_Key, list[Sample]] = {key: [] for key in configured}
    for sample in samples:
        if sample.measured_at >= since and (key := (sample.chain, sample.leg)) in shown:
            shown[key].append(sample)
    wanted = [t for t in tables if only[0] in (None, t.chain) and only[1] in (None, t.leg)]
    held = hold_legs(tables, chains)
    return LatencyReport(
        now=int(now),
        since=int(since),
        epsilon=epsilon,
        legs=tuple(
            _leg_report(t, names[t.chain], shown[t.chain, t.leg], configured[t.chain, t.leg])
            for t in sorted(wanted, key=lambda t: (t.chain, LEGS.index(t.leg)))
        ),
        holds=tuple(
            _hold_report(row, held[row.id], epsilon)
            for row in sorted(chains, key=lambda row: row.id)
            if only[0] in (None, row.id) and only[1] in (None, *HOLD_LEGS)
        ),
    )


def _leg_report(table: LegLaw, name: str, samples: Sequence[Sample], configured: Sequence[LatencyLeg]) -> LegReport:
    ordered = sorted(sample.seconds for sample in samples)

    def at(level: float) -> float | None:
        return ordered[max(0, math.ceil(level * len(ordered)) - 1)] if ordered else None

    return LegReport(
        chain=table.chain,
        name=name,
        leg=table.leg,
        samples=len(ordered),
        p50=at(0.5),
        p90=at(0.9),
        p99=at(0.99),
        longest=at(1.0),
        last=samples[-1].seconds if samples else None,
        last_at=samples[-1].measured_at if samples else None,
        typical=sum(leg.typical for leg in configured),
        outages=tuple(OutageAtom(leg.outage, leg.outage_probability) for leg in configured if _has_outage(leg)),
        law_samples=table.samples,
        law_seconds=table.law.seconds,
        law_chances=table.law.chance,
    )


def _hold_report(row: ChainRow, legs: Sequence[Law], epsilon: float) -> HoldReport:
    law = convolve(legs)
    return HoldReport(
        row.id,
        row.name,
        quantile(law, 0.5),
        quantile(law, 0.9),
        quantile(law, 0.99),
        law.seconds[-1],
        hold_bound(legs, epsilon),
    )


def _configured(
    chains: Sequence[ChainRow], destinations: Sequence[DestinationRow]
) -> dict[_Key, tuple[LatencyLeg, ...]]:
    """Return what is configured of every leg that tables hold."""
    legs: dict[_Key, tuple[LatencyLeg, ...]] = {(EVERYWHERE, "attest"): ()}
    for row in chains:
        legs |= {(row.id, "block"): (), (row.id, "read"): ()}
        legs |= {(row.id, "finality"): row.hold[:1], (row.id, "relay"): row.hold[1:]}
    return legs | {(row.chain, "lifetime"): () for row in destinations}


def _has_outage(leg: LatencyLeg) -> bool:
    return leg.outage > 0 and leg.outage_probability > 0


def _bin_ends(count: int) -> list[int]:
    """Return the ranks, from 1, at which bins of ``count`` ordered values end."""
    body = -(-9 * count // 10)
    ends = sorted({-(-body * i // _BODY) for i in range(1, _BODY + 1)} - {0})
    rank = body
    while rank < count:
        rank = count - (count - rank) // 2
        ends.append(rank)
    return ends


def _surely(law: Law, chance: float, count: int) -> int:
    """Return the longest value that more than ``chance`` of the ``count`` measurements behind a law reach, 0 if none.

    A value stands for its bin's longest, which the bin's others may not reach: at most a twentieth of all, and beyond
    the 90th percentile half of those that are left.
    """
    known, left = 0, 1.0
    for value, mass in zip(*law, strict=True):
        if left - min(0.9 / _BODY + 1 / count, left / 2) <= chance + _NOISE * NODES:
            break
        known, left = value, left - mass
    return known


def _law(pairs: Iterable[tuple[int, float]]) -> Law:
    """Return a law of (seconds, chance) pairs; equal seconds add up, and what cannot happen is left out."""
    masses: dict[int, float] = {}
    for value, chance in pairs:
        if chance > 0:
            masses[value] = masses.get(value, 0.0) + chance
    ascending = sorted(masses)
    return Law(tuple(ascending), tuple(masses[value] for value in ascending))


def _merge(values: _Seconds, masses: Floats, limit: int) -> tuple[_Seconds, Floats]:
    """Move mass upwards, first to the grid and then to every so many-th value, until ``limit`` values are left."""
    if len(values) > limit:
        grid = np.array(GRID, dtype=np.int64)
        longest = values[-1]  # stays: nothing takes longer than it did before
        values = np.minimum(np.append(grid, longest)[np.searchsorted(grid, values)], longest)
        values, masses = _add_up(values, masses)
    if len(values) > limit:
        group = -(-len(values) // limit)
        last = np.minimum(np.arange(len(values)) // group * group + group - 1, len(values) - 1)
        values, masses = _add_up(values[last], masses)
    return values, masses


def _add_up(values: _Seconds, masses: Floats) -> tuple[_Seconds, Floats]:
    """Return distinct values, ascending, with the sums of their masses."""
    distinct, place = np.unique(values, return_inverse=True)
    sums = np.zeros(len(distinct))
    np.add.at(sums, place.ravel(), masses)
    return distinct, sums


def _parse_leg(field: str, item: object) -> LegLaw:
    def refuse(name: str, problem: str, remedy: str) -> InputError:
        return InputError(f"{field}.{name}" if name else field, problem, remedy)

    keys = {"leg", "chain", "samples", "seconds", "chance"}
    if not isinstance(item, dict) or item.keys() != keys:
        raise refuse("", "is not an object of exactly " + ", ".join(sorted(keys)), "give one per leg")
    if item["leg"] not in LEGS:
        raise refuse("leg", "is not known", f"give one of {', '.join(LEGS)}")
    if not isinstance(item["chain"], str):
        raise refuse("chain", "is no text", f"give a CAIP-2 id, or {EVERYWHERE!r}")
    if not _is_count(item["samples"]):
        raise refuse("samples", "is no count", "give an integer from 0")
    seconds, chance = item["seconds"], item["chance"]
    if not isinstance(seconds, list) or not 1 <= len(seconds) <= NODES or not all(map(_is_count, seconds)):
        raise refuse("seconds", f"is not a list of 1 to {NODES} whole numbers of seconds", "give them ascending")
    if any(first >= second for first, second in pairwise(seconds)):
        raise refuse("seconds", "does not ascend", "give every value once, ascending")
    if not isinstance(chance, list) or len(chance) != len(seconds) or not all(isinstance(c, str) for c in chance):
        raise refuse("chance", "is not a list of one decimal text per value", "give as many as seconds")
    try:
        chances = tuple(float(text) for text in chance)
    except ValueError:
        raise refuse("chance", "holds a text that is no number", "give shortest decimal texts") from None
    if [repr(value) for value in chances] != chance:
        raise refuse("chance", "holds a text that is not the shortest of its number", "give shortest decimal texts")
    if not all(value > 0 for value in chances) or abs(math.fsum(chances) - 1) > _NOISE * NODES:
        raise refuse("chance", "does not add up to 1 in positive parts", "give a distribution")
    return LegLaw(cast(Leg, item["leg"]), item["chain"], Law(tuple(seconds), chances), item["samples"])


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
