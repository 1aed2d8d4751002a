"""The Latencies port over the store's database: samples come in by the dozen and are read by the window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from sqlalchemy import delete, func, insert, or_
from sqlmodel import col, select

from aggregator.domain.latency import Leg, Sample
from aggregator.store.sql import SqlStore
from aggregator.store.tables import LatencyTable


class SqlLatencies:
    """Implement :class:`aggregator.ports.Latencies`."""

    def __init__(self, store: SqlStore) -> None:
        self._reads = store.engine
        self._writes = store.engine.execution_options(write=True)

    async def record(self, samples: Sequence[Sample]) -> None:
        """Remember samples, in one transaction and durably."""
        if samples:
            async with self._writes.begin() as connection:
                await connection.execute(insert(LatencyTable), [sample._asdict() for sample in samples])

    async def window(self, since: int) -> tuple[Sample, ...]:
        """Return samples measured at or after ``since``, oldest first; of one second, in the order of recording."""
        table = LatencyTable
        query = (
            select(table.leg, table.chain, table.seconds, table.measured_at)
            .where(col(table.measured_at) >= since)
            .order_by(col(table.measured_at), col(table.id))
        )
        async with self._reads.connect() as connection:
            rows = await connection.execute(query)
            return tuple(Sample(cast(Leg, leg), chain, seconds, at) for leg, chain, seconds, at in rows)

    async def forget(self, before: int, keep: int) -> int:
        """Drop samples measured before, and all but the ``keep`` newest of every (leg, chain); return how many."""
        table = LatencyTable
        newest_first = (col(table.measured_at).desc(), col(table.id).desc())
        place = func.row_number().over(partition_by=(col(table.chain), col(table.leg)), order_by=newest_first)
        ranked = select(table.id, place.label("place")).subquery()
        surplus = select(ranked.c.id).where(ranked.c.place > keep)
        async with self._writes.begin() as connection:
            done = await connection.execute(
                delete(table).where(or_(col(table.measured_at) < before, col(table.id).in_(surplus)))
            )
        return int(done.rowcount)
