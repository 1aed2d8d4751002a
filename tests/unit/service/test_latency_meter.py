"""The meter: what is told comes out in tables and in the store, and nothing it is told can hurt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from aggregator.core.latency import FEWEST, NEWEST, REFRESH, WINDOW
from aggregator.domain.certificate import Posting, PostingState
from aggregator.domain.latency import EVERYWHERE, Law, Leg, Sample
from aggregator.domain.rows import DestinationRow, LatencyLeg
from aggregator.service.latency import REMEMBERED, UNWRITTEN, Landings, LatencyMeter
from aggregator.store import SqlStore
from aggregator.store.latencies import SqlLatencies
from tests.strategies import EVM, SOLANA, chain_row
from tests.worlds.world import HandClock

START = 1_760_000_080  # 40 s into a period
CHAINS = (
    chain_row(EVM, hold=(LatencyLeg(typical=1), LatencyLeg(typical=2, outage=60, outage_probability=0.001))),
    chain_row(SOLANA, hold=(LatencyLeg(typical=1),)),
)
DESTINATIONS = (
    DestinationRow(chain=EVM, kind="evm-registry", address="0x" + "11" * 20, clock_bound=5, payer_key="payer"),
)


def make_meter(clock: HandClock, store: SqlLatencies | None = None) -> LatencyMeter:
    return LatencyMeter(clock, CHAINS, DESTINATIONS, store)


def law(meter: LatencyMeter, leg: Leg, chain: str) -> Law:
    return next(t.law for t in meter.tables() if (t.leg, t.chain) == (leg, chain))


def feed(meter: LatencyMeter, leg: Leg, chain: str, seconds: float, count: int = FEWEST) -> None:
    for _ in range(count):
        meter.measure(leg, chain, seconds)


def test_tables_change_at_whole_periods_only() -> None:
    clock = HandClock(START)
    meter = make_meter(clock)
    assert meter.tables() == meter.configured
    feed(meter, "attest", EVERYWHERE, 4.0)
    clock.time += 19
    assert meter.tables() == meter.configured
    clock.time += 1
    assert law(meter, "attest", EVERYWHERE) == Law((4,), (1.0,))
    feed(meter, "attest", EVERYWHERE, 50.0)
    clock.time += REFRESH - 1
    assert law(meter, "attest", EVERYWHERE) == Law((4,), (1.0,))
    clock.time += 1
    assert law(meter, "attest", EVERYWHERE) == Law((4, 50), (29 / 64, 35 / 64))  # a bin with both counts as 50


def test_what_is_older_than_the_window_no_longer_counts() -> None:
    clock = HandClock(START)
    meter = make_meter(clock)
    feed(meter, "read", EVM, 30.0)
    clock.time += WINDOW
    assert law(meter, "read", EVM) == Law((30,), (1.0,))
    clock.time += REFRESH
    assert meter.tables() == meter.configured


def test_a_series_keeps_its_newest_only() -> None:
    clock = HandClock(START)
    meter = make_meter(clock)
    feed(meter, "read", EVM, 600.0, NEWEST)
    feed(meter, "read", EVM, 2.0, NEWEST)
    clock.time += REFRESH
    assert law(meter, "read", EVM) == Law((2,), (1.0,))


def test_unusable_and_unknown_measurements_are_left_out() -> None:
    clock = HandClock(START)
    meter = make_meter(clock)
    for seconds in (math.nan, math.inf, -math.inf):
        feed(meter, "read", EVM, seconds)
    feed(meter, "read", "eip155:999", 5.0)
    feed(meter, "lifetime", SOLANA, 5.0)  # no destination
    clock.time += REFRESH
    assert meter.tables() == meter.configured
    feed(meter, "read", EVM, -7.0)
    feed(meter, "relay", EVM, 1e300)
    clock.time += REFRESH
    assert law(meter, "read", EVM) == Law((0,), (1.0,))
    assert law(meter, "relay", EVM).seconds[0] == 800_000_000


def test_measurements_reach_the_histogram() -> None:
    def count() -> float:
        labels = {"leg": "attest", "chain": EVERYWHERE, "le": "0.5"}
        return REGISTRY.get_sample_value("crossmargin_latency_seconds_bucket", labels) or 0.0

    before = count()
    make_meter(HandClock(START)).measure("attest", EVERYWHERE, 0.4)
    LatencyMeter(HandClock(START), CHAINS, DESTINATIONS, histogram=None).measure("attest", EVERYWHERE, 0.4)
    assert count() == before + 1


# the store


async def test_measurements_survive_a_restart(tmp_path: Path) -> None:
    clock = HandClock(START)
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    meter = make_meter(clock, SqlLatencies(store))
    feed(meter, "read", EVM, 3.0)
    await meter.flush()
    await meter.flush()  # again: nothing is written twice
    feed(meter, "attest", EVERYWHERE, 2.0)  # lost: never flushed
    clock.time += REFRESH
    restarted = make_meter(clock, SqlLatencies(store))
    await restarted.load()
    assert law(restarted, "read", EVM) == Law((3,), (1.0,))
    assert law(restarted, "attest", EVERYWHERE) == Law((0,), (1.0,))
    assert len(await SqlLatencies(store).window(0)) == FEWEST
    await store.close()


async def test_the_store_is_trimmed_once_a_period(tmp_path: Path) -> None:
    clock = HandClock(START)
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    latencies = SqlLatencies(store)
    meter = make_meter(clock, latencies)
    await meter.flush()
    await latencies.record([Sample("read", EVM, 1.0, START - WINDOW - 1), Sample("read", EVM, 1.0, START)])
    await meter.flush()
    assert len(await latencies.window(0)) == 2
    clock.time += REFRESH
    await meter.flush()
    assert await latencies.window(0) == (Sample("read", EVM, 1.0, START),)
    await store.close()


class FullDisk:
    """A store that takes nothing until it is told to; no real disk fills up on command."""

    def __init__(self) -> None:
        self.full, self.taken = True, list[Sample]()

    async def record(self, samples: Sequence[Sample]) -> None:
        if self.full:
            raise OSError("no space left on device")
        self.taken += samples

    async def window(self, since: int) -> tuple[Sample, ...]:
        return ()

    async def forget(self, before: int, keep: int) -> int:
        return 0


async def test_what_a_full_disk_refuses_is_written_later() -> None:
    disk = FullDisk()
    meter = LatencyMeter(HandClock(START), CHAINS, DESTINATIONS, disk)
    meter.measure("read", EVM, 1.0)
    with pytest.raises(OSError, match="no space"):
        await meter.flush()
    meter.measure("read", EVM, 2.0)
    disk.full = False
    await meter.flush()
    assert [sample.seconds for sample in disk.taken] == [1.0, 2.0]
    disk.full = True
    for i in range(UNWRITTEN + 3):
        meter.measure("read", EVM, float(i))
    disk.full, disk.taken = False, []
    await meter.flush()
    assert [sample.seconds for sample in disk.taken] == [float(i) for i in range(3, UNWRITTEN + 3)]


# postings


def post(landings: Landings, epoch: int, state: PostingState, at: int, chain: str = EVM) -> tuple[Sample, ...]:
    return landings.posted(Posting(epoch, chain, state, "0x00", 0, "", at))


def test_a_posting_tells_how_long_the_relay_took_and_the_one_before_was_newest() -> None:
    landings = Landings()
    for epoch, produced_at in ((1, 100), (2, 110), (3, 120)):
        landings.certified(epoch, produced_at)
    for state in ("waiting", "signed", "submitted"):
        assert post(landings, 1, state, 101) == ()
    assert post(landings, 1, "confirmed", 104) == (Sample("relay", EVM, 5.0, 104),)
    assert post(landings, 1, "final", 170) == ()
    assert post(landings, 1, "confirmed", 106, SOLANA) == (Sample("relay", SOLANA, 7.0, 106),)
    assert post(landings, 3, "final", 131) == (Sample("relay", EVM, 12.0, 131), Sample("lifetime", EVM, 27.0, 131))
    assert post(landings, 2, "confirmed", 140) == (Sample("relay", EVM, 31.0, 140),)  # late: never the newest
    assert post(landings, 9, "confirmed", 200) == (Sample("lifetime", EVM, 69.0, 200),)  # production not known


def test_a_posting_that_a_reorganisation_dropped_counts_when_it_lands_again() -> None:
    landings = Landings()
    landings.certified(1, 100)
    landings.certified(2, 110)
    post(landings, 1, "confirmed", 101)
    assert post(landings, 1, "submitted", 103) == ()
    assert post(landings, 1, "confirmed", 109) == (Sample("relay", EVM, 10.0, 109),)
    assert post(landings, 2, "confirmed", 119)[1] == Sample("lifetime", EVM, 10.0, 119)


def test_a_posting_that_failed_tells_nothing() -> None:
    landings = Landings()
    landings.certified(1, 100)
    assert post(landings, 1, "failed", 150) == ()
    assert post(landings, 1, "superseded", 150) == ()


def test_memory_of_postings_is_bounded_and_keeps_the_newest() -> None:
    landings = Landings()
    last = 3 * REMEMBERED
    for epoch in range(last + 1):
        landings.certified(epoch, 10 * epoch)
        post(landings, epoch, "confirmed", 10 * epoch + 3)
    assert post(landings, last, "final", 10 * last + 9) == ()
    assert post(landings, 1, "submitted", 9) == ()
    assert post(landings, 1, "confirmed", 10 * last + 9) == ()  # its production is forgotten


def test_the_meter_measures_postings() -> None:
    clock = HandClock(START)
    meter = make_meter(clock)
    for epoch in range(FEWEST + 1):
        meter.certified(epoch, START + epoch)
        meter.posted(Posting(epoch, EVM, "confirmed", "0x00", 0, "", START + epoch + 4))
    clock.time += 2 * REFRESH
    assert law(meter, "relay", EVM) == Law((5, 65), (0.999, 0.001))
    assert law(meter, "lifetime", EVM) == Law((1,), (1.0,))
