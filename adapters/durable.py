"""A small SQLite file that keeps its word: what was committed is there after a crash or a loss of power.

A rollback journal commits by unlinking itself, and only ``synchronous=EXTRA`` syncs the folder afterwards: with
``FULL`` the journal may be back after a power loss, and would undo the newest commit. Not WAL, so that at rest the one
file is everything, whoever copies it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class DurableFile:
    """One connection, opened at its first use, and the one thread that owns it: what is done is serial.

    Args:
        path: the file; made when missing. Two processes on one file exclude each other per transaction.
        name: of the thread.
        prepare: makes the tables in a transaction, and may refuse the file by raising.
    """

    def __init__(self, path: Path, name: str, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self.path, self._prepare = path, prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the thread; only there may it :meth:`open`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def open(self) -> sqlite3.Connection:
        """Return the connection."""
        if self._connection is None:
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            try:
                connection.execute("PRAGMA journal_mode=DELETE")
                connection.execute("PRAGMA synchronous=EXTRA")
                with transaction(connection):
                    self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    async def close(self) -> None:
        """Close the file and end the thread; nothing is possible afterwards."""
        await self.run(self._close)
        self._thread.shutdown()  # nothing is queued behind `_close`

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Commit at the end, roll back should anything be raised."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
