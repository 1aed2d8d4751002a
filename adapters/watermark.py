"""One attestor's durable record of what it signed: a small SQLite file of its own.

The record is on disk before the signature exists, so a crash in between costs a signature, never a second one for the
same epoch. A rollback journal commits by unlinking itself, and only ``synchronous=EXTRA`` syncs the folder afterwards:
with ``FULL`` the journal may be back after a power loss, and would undo the newest claim. Not WAL, so that at rest the
one file is the whole record, whoever copies it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aggregator.domain.errors import RefusedError


class SqliteWatermark:
    """Implements ``aggregator.ports.Watermark`` for one attestor.

    Args:
        path: the file; made when missing. Two processes on one file exclude each other per claim.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # One thread owns the connection: claims of one attestor are serial anyway.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watermark")
        self._connection: sqlite3.Connection | None = None

    async def claim(self, epoch: int, digest: bytes) -> None:
        """Record the intent to sign ``digest`` (32 bytes) for ``epoch``, durably; an identical repeat is allowed.

        Raises:
            RefusedError: another digest is on record for ``epoch``, or a higher epoch was signed.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._claim, epoch, digest)

    async def highest(self) -> int | None:
        """Return the highest epoch ever claimed, None before the first."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._highest)

    async def close(self) -> None:
        """Close the file and end the thread; no claim is possible afterwards."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()  # nothing is queued behind `_close`

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=10)
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS signed (epoch INTEGER PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID"
            )
            self._connection = connection
        return self._connection

    def _claim(self, epoch: int, digest: bytes) -> None:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute("SELECT epoch, digest FROM signed ORDER BY epoch DESC LIMIT 1").fetchone()
            if row is not None and epoch < row[0]:
                raise RefusedError("watermark", f"epoch {epoch} is below {row[0]}, which was signed already")
            if row is not None and epoch == row[0]:
                if row[1] != digest:
                    raise RefusedError(
                        "watermark", f"epoch {epoch} was signed as 0x{row[1].hex()}, not as 0x{digest.hex()}"
                    )
            else:
                connection.execute("INSERT INTO signed VALUES (?, ?)", (epoch, digest))
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _highest(self) -> int | None:
        row = self._open().execute("SELECT max(epoch) FROM signed").fetchone()
        return None if row[0] is None else int(row[0])

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
