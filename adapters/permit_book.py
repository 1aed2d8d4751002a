"""Withdrawal permits that a party signed or gave out: a small SQLite file of its own.

An attestor notes a permit before its signature exists, the coordinator before it asks anybody, so that what may be
withdrawn is never forgotten. See :mod:`adapters.durable`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from adapters.durable import DurableFile, transaction
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import RefusedError
from aggregator.domain.permits import SignedPermit


class SqlitePermitBook:
    """Implements ``aggregator.ports.PermitBook``.

    Args:
        path: the file; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._file = DurableFile(path, "permits", _prepare)

    async def note(self, permit: PermitRecord, attestations: Sequence[Attestation] = ()) -> None:
        """Remember a permit, durably on return; again with ``attestations`` once a quorum has signed it.

        Raises:
            RefusedError: rule ``nonce``; another permit of the account has it.
        """
        signatures: list[list[int | str]] = [[a.index, a.r.hex(), a.vs.hex()] for a in attestations]
        await self._file.run(lambda: self._note(permit, signatures))

    async def since(self, expiry: int, account: str | None = None) -> tuple[SignedPermit, ...]:
        """Return the permits, of one account or all, that expire at ``expiry`` (Unix seconds) or later, ascending."""
        return await self._file.run(lambda: self._since(expiry, account))

    async def drop(self, permit: PermitRecord) -> None:
        """Forget a permit that nobody signed."""
        statement = "DELETE FROM permits WHERE account = ? AND nonce = ? AND signatures = '[]'"
        await self._file.run(lambda: self._change(statement, permit.account, permit.nonce))

    async def forget(self, before: int) -> None:
        """Forget the permits that expired before a time, Unix seconds."""
        await self._file.run(lambda: self._change("DELETE FROM permits WHERE expiry < ?", before))

    async def close(self) -> None:
        """Close the file and end the thread."""
        await self._file.close()

    def _note(self, permit: PermitRecord, signatures: list[list[int | str]]) -> None:
        terms = json.dumps(list(permit))
        with transaction(self._file.open()) as connection:
            row = connection.execute(
                "SELECT terms FROM permits WHERE account = ? AND nonce = ?", (permit.account, permit.nonce)
            ).fetchone()
            if row is not None and row[0] != terms:
                raise RefusedError("nonce", f"{permit.nonce} is of the permit {row[0]}, not of {terms}")
            if row is None or signatures:
                values = (permit.account, permit.nonce, permit.expiry, terms, json.dumps(signatures))
                connection.execute("INSERT OR REPLACE INTO permits VALUES (?, ?, ?, ?, ?)", values)

    def _since(self, expiry: int, account: str | None) -> tuple[SignedPermit, ...]:
        rows = self._file.open().execute(
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
        self._file.open().execute(statement, values)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS permits (account TEXT NOT NULL, nonce TEXT NOT NULL,"
        " expiry INTEGER NOT NULL, terms TEXT NOT NULL, signatures TEXT NOT NULL,"
        " PRIMARY KEY (account, nonce)) WITHOUT ROWID"
    )
