"""How long things take, as one party measures them: kept in memory, in the store, in a histogram, and in tables."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from prometheus_client import Histogram

from aggregator.core.latency import GRID, NEWEST, REFRESH, WINDOW, build_tables, describe, select
from aggregator.domain.certificate import Posting
from aggregator.domain.errors import UnknownError
from aggregator.domain.latency import EVERYWHERE, LatencyReport, LatencyTables, Leg, Sample
from aggregator.domain.rows import ChainRow, DestinationRow
from aggregator.ports import Clock, Latencies
from aggregator.service import telemetry

LANDED = ("confirmed", "final")
REMEMBERED = 512
"""Epochs whose time of production is kept for postings that are still under way."""
UNWRITTEN = 16_384
"""Measurements that wait for a store in trouble; beyond, the oldest are given up."""


class LatencyMeter:
    """Takes one party's measurements and turns those of the last day into the tables that statements commit to.

    Args:
        clock: injected time.
        chains, destinations: as configured; measurements of other legs and chains are left out.
        store: where measurements survive a restart; None keeps them in memory only.
        histogram: told of every measurement; None where another meter of the process tells it already.

    Nothing here raises for what it is told: a measurement must not cost an epoch or a posting.
    """

    def __init__(
        self,
        clock: Clock,
        chains: Sequence[ChainRow],
        destinations: Sequence[DestinationRow],
        store: Latencies | None = None,
        *,
        histogram: Histogram | None = telemetry.LATENCY,
    ) -> None:
        self._clock, self._chains, self._destinations = clock, chains, destinations
        self._store, self._histogram = store, histogram
        self.configured: LatencyTables = build_tables((), chains, destinations)
        """The tables that follow from the configuration alone: the least that anyone's must be."""
        self._series = {(law.chain, law.leg): deque[Sample](maxlen=NEWEST) for law in self.configured}
        self._unwritten: deque[Sample] = deque(maxlen=UNWRITTEN)
        self._landings = Landings()
        self._tables: tuple[int, LatencyTables] | None = None  # the period they are of
        self._trimmed = -1

    async def load(self) -> None:
        """Take up what the store remembers of the window; once, before the first measurement."""
        if self._store is not None:
            for sample in await self._store.window(int(self._clock.now()) - WINDOW):
                self._remember(sample)

    def measure(self, leg: Leg, chain: str, seconds: float) -> None:
        """Record that ``leg`` took ``seconds`` just now.

        Args:
            chain: CAIP-2, or ``EVERYWHERE``.
            seconds: negative ones, of a clock that was set back, count as 0; what is no number is left out.
        """
        self._add(Sample(leg, chain, seconds, int(self._clock.now())))

    def certified(self, epoch: int, produced_at: int) -> None:
        """Note when an epoch that will be posted was produced (``header.produced_at``)."""
        self._landings.certified(epoch, produced_at)

    def posted(self, posting: Posting) -> None:
        """Measure ``relay`` and ``lifetime`` by a posting's change of state; the relayer's ``on_posting``."""
        for sample in self._landings.posted(posting):
            self._add(sample)

    async def flush(self) -> None:
        """Write what was measured since the last time, and forget what has left the window.

        What a failing store does not take is kept for the next time.
        """
        if self._store is None:
            self._unwritten.clear()
            return
        batch = tuple(self._unwritten)
        await self._store.record(batch)
        for _ in batch:
            self._unwritten.popleft()
        now = self._clock.now()
        if (period := int(now // REFRESH)) != self._trimmed:
            await self._store.forget(int(now) - WINDOW, NEWEST)
            self._trimmed = period

    def tables(self, now: float | None = None) -> LatencyTables:
        """Return the tables at ``now`` (default: the clock's); they change at whole multiples of ``REFRESH`` only."""
        now = self._clock.now() if now is None else now
        period = int(now // REFRESH)
        if self._tables is None or self._tables[0] != period:
            samples = select((sample for series in self._series.values() for sample in series), now)
            self._tables = period, build_tables(samples, self._chains, self._destinations)
        return self._tables[1]

    def _add(self, sample: Sample) -> None:
        if not math.isfinite(sample.seconds):
            return
        sample = sample._replace(seconds=min(max(sample.seconds, 0.0), float(GRID[-1])))
        if self._remember(sample):
            self._unwritten.append(sample)
            if self._histogram is not None:
                self._histogram.labels(sample.leg, sample.chain).observe(sample.seconds)

    def _remember(self, sample: Sample) -> bool:
        series = self._series.get((sample.chain, sample.leg))
        if series is None:
            return False
        series.append(sample)
        return True


async def report_latency(
    store: Latencies,
    chains: Sequence[ChainRow],
    destinations: Sequence[DestinationRow],
    *,
    now: float,
    epsilon: float,
    seconds: int = WINDOW,
    chain: str | None = None,
    leg: Leg | None = None,
) -> LatencyReport:
    """Return what the store remembers of the last ``seconds``, and the laws that follow from the whole window.

    Args:
        epsilon: the policy's ``exit_epsilon``.
        chain: CAIP-2, name, or ``EVERYWHERE``; None for all.

    Raises:
        UnknownError: names ``chain``.
    """
    if chain is not None and chain != EVERYWHERE:
        found = next((row.id for row in chains if chain in (row.id, row.name)), None)
        if found is None:
            known = ", ".join(row.name for row in chains)
            raise UnknownError("chain", chain, f"configured are {known}; {EVERYWHERE} is for legs of no chain")
        chain = found
    samples = await store.window(int(now) - WINDOW - REFRESH)
    return describe(
        samples, chains, destinations, now=now, since=int(now) - seconds, epsilon=epsilon, only=(chain, leg)
    )


class Landings:
    """Derives ``relay`` and ``lifetime`` from what becomes of postings.

    ``relay``: from the production of a statement to the first time its posting was seen confirmed. ``lifetime``: how
    long a certificate was the newest confirmed on a destination. Both ends are whole seconds, cut off, so that a relay
    may have taken up to a second longer than they are apart: that second is added.
    """

    def __init__(self) -> None:
        self._produced: dict[int, int] = {}  # by epoch
        self._newest: dict[str, tuple[int, int]] = {}  # by destination: epoch, first seen confirmed
        self._landed: dict[tuple[str, int], None] = {}  # (destination, epoch), in order

    def certified(self, epoch: int, produced_at: int) -> None:
        """Note when an epoch was produced."""
        self._produced[epoch] = produced_at
        if len(self._produced) > REMEMBERED:
            del self._produced[next(iter(self._produced))]

    def posted(self, posting: Posting) -> tuple[Sample, ...]:
        """Return what a posting's change of state tells, nothing for most."""
        chain, epoch, at = posting.destination, posting.epoch, posting.updated_at
        newest = self._newest.get(chain)
        if posting.state not in LANDED:
            # Dropped by a reorganisation: it was not on the destination after all, and may take longer to be.
            self._landed.pop((chain, epoch), None)
            if newest is not None and newest[0] == epoch:
                del self._newest[chain]
            return ()
        if (chain, epoch) in self._landed:
            return ()
        self._landed[chain, epoch] = None
        if len(self._landed) > REMEMBERED * max(1, len(self._newest)):
            del self._landed[next(iter(self._landed))]
        samples: list[Sample] = []
        produced_at = self._produced.get(epoch)
        if produced_at is not None:
            samples.append(Sample("relay", chain, float(max(0, at - produced_at) + 1), at))
        if newest is None or epoch > newest[0]:
            self._newest[chain] = (epoch, at)
            if newest is not None:
                samples.append(Sample("lifetime", chain, float(max(0, at - newest[1])), at))
        return tuple(samples)
