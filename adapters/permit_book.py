"""Withdrawal permits that a party signed or gave out: a small SQLite file of its own.

An attestor notes a permit before its signature exists, the coordinator before it asks anybody, so that what may be
withdrawn is never forgotten. Journal and sync are those of the watermark, for the same reason.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import RefusedError
from aggregator.domain.permits import SignedPermit

T = TypeVar("T")


class SqlitePermitBook:
    """Implements ``aggregator.ports.PermitBook``.

    Args:
        path: the file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="permits")
        self._connection: sqlite3.Connection | None = None

    async def note(self, permit: PermitRecord, attestations: Sequence[Attestation] = ()) -> None:
        """Remember a permit, durably on return; again with ``attestations`` once a quorum has signed it.

        Raises:
            RefusedError: rule ``nonce``; another permit of the account has it.
        """
        signatures: list[list[int | str]] = [[a.index, a.r.hex(), a.vs.hex()] for a in attestations]
        await self._run(lambda: self._note(permit, signatures))

    async def since(self, expiry: int, account: str | None = None) -> tuple[SignedPermit, ...]:
        """Return the permits, of one account or all, that expire at ``expiry`` (Unix seconds) or later, ascending."""
        return await self._run(lambda: self._since(expiry, account))

    async def drop(self, permit: PermitRecord) -> None:
        """Forget a permit that nobody signed."""
        statement = "DELETE FROM permits WHERE account = ? AND nonce = ? AND signatures = '[]'"
        await self._run(lambda: self._change(statement, permit.account, permit.nonce))

    async def forget(self, before: int) -> None:
        """Forget the permits that expired before a time, Unix seconds."""
        await self._run(lambda: self._change("DELETE FROM permits WHERE expiry < ?", before))

    async def close(self) -> None:
        """Close the file and end the thread."""
        await self._run(self._close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=10)
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS permits (account TEXT NOT NULL, nonce TEXT NOT NULL,"
                " expiry INTEGER NOT NULL, terms TEXT NOT NULL, signatures TEXT NOT NULL,"
                " PRIMARY KEY (account, nonce)) WITHOUT ROWID"
            )
            self._connection = connection
        return self._connection

    def _note(self, permit: PermitRecord, signatures: list[list[int | str]]) -> None:
        connection, terms = self._open(), json.dumps(list(permit))
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute(
                "SELECT terms FROM permits WHERE account = ? AND nonce = ?", (permit.account, permit.nonce)
            ).fetchone()
            if row is not None and row[0] != terms:
                raise RefusedError("nonce", f"{permit.nonce} is of the permit {row[0]}, not of {terms}")
            if row is None or signatures:
                values = (permit.account, permit.nonce, permit.expiry, terms, json.dumps(signatures))
                connection.execute("INSERT OR REPLACE INTO permits VALUES (?, ?, ?, ?, ?)", values)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _since(self, expiry: int, account: str | None) -> tuple[SignedPermit, ...]:
        rows = self._open().execute(
            "SELECT terms, signatures FROM permits WHERE expiry >= ? AND (? IS NULL OR account = ?)"
            " ORDER BY account, nonce",
            (expiry, account, account),
        )
        return tuple(
            SignedPermit(
                PermitRecord(*json.loads(terms)),
                tuple(Attestation(i, bytes.fromhex(r), bytes.fromhex(vs)) for i, r, vs in json.loads(signatures)),
            )
            for terms, signatures in rows
        )

    def _change(self, statement: str, *values: str | int) -> None:
        self._open().execute(statement, values)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
