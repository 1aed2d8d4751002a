"""The Halts port over the store's database: an append-only log in which an open line is a standing halt."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from aggregator.domain.errors import ConflictError, InputError
from aggregator.ports import Halt
from aggregator.store.sql import SqlStore
from aggregator.store.tables import HaltTable, ReadingTable


class SqlHalts:
    """Implement :class:`aggregator.ports.Halts`; durable on return, as everything in the store is."""

    def __init__(self, store: SqlStore) -> None:
        engine = store.engine
        self._reads = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
        self._writes = async_sessionmaker(
            engine.execution_options(write=True), class_=AsyncSession, expire_on_commit=False
        )

    async def standing(self, party: str) -> Mapping[str, Halt]:
        """Return the halts in force for ``party``, by chain."""
        query = select(HaltTable).where(HaltTable.party == party, col(HaltTable.resumed_at).is_(None))
        async with self._reads() as session:
            return {row.chain: _halt(row) for row in await session.exec(query)}

    async def halt(self, party: str, chain: str, cause: str, now: int) -> Halt:
        """Set the flag durably; one that stands already is returned unchanged."""
        try:
            async with self._writes.begin() as session:
                row = await _standing(session, party, chain)
                if row is None:
                    row = HaltTable(party=party, chain=chain, cause=cause, halted_at=now)
                    session.add(row)
                    await session.flush()
                return _halt(row)
        except IntegrityError:  # another writer of a database without BEGIN IMMEDIATE was first
            async with self._reads() as session:
                row = await _standing(session, party, chain)
            if row is None:
                raise
            return _halt(row)

    async def resume(self, chain: str, reason: str, by: str, now: int) -> tuple[Halt, ...]:
        """Clear every party's flag on ``chain``; return what was cleared, as logged.

        Raises:
            InputError: ``reason`` is empty. ConflictError: no halt stands on ``chain``.
        """
        if not reason.strip():
            raise InputError("reason", "is empty", "say what was checked before the chain is trusted again")
        query = (
            select(HaltTable)
            .where(HaltTable.chain == chain, col(HaltTable.resumed_at).is_(None))
            .order_by(col(HaltTable.id))
        )
        async with self._writes.begin() as session:
            rows = (await session.exec(query)).all()
            if not rows:
                raise ConflictError("chain", f"{chain} is not halted", "`crossmargin chains` lists those that are")
            for row in rows:
                row.resumed_at, row.resumed_by, row.reason = now, by, reason.strip()
                session.add(row)
            # What was read of the replaced history must not be what a restart begins with.
            await session.exec(delete(ReadingTable).where(col(ReadingTable.chain) == chain))
        return tuple(_halt(row) for row in rows)

    async def log(self, limit: int = 100) -> tuple[Halt, ...]:
        """Return halts, newest first."""
        query = select(HaltTable).order_by(col(HaltTable.id).desc()).limit(limit)
        async with self._reads() as session:
            return tuple(_halt(row) for row in await session.exec(query))


async def _standing(session: AsyncSession, party: str, chain: str) -> HaltTable | None:
    query = select(HaltTable).where(
        HaltTable.party == party, HaltTable.chain == chain, col(HaltTable.resumed_at).is_(None)
    )
    return (await session.exec(query)).one_or_none()


def _halt(row: HaltTable) -> Halt:
    assert row.id is not None  # it was read from the database, or flushed to it
    return Halt(row.id, row.party, row.chain, row.cause, row.halted_at, row.resumed_at, row.resumed_by, row.reason)
