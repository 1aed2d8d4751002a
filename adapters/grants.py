"""One signer's durable record of budgets that may still be drawn: a small SQLite file beside its record of signatures.

A statement's budgets are on disk before it is signed or asked for, so that whoever makes the next one charges them,
certified or not (``aggregator.ports.GrantBook``). Each statement is one row, sorted by account: few accounts are looked
up, and all must be kept, as any owner may share out anew tomorrow. See
:mod:`adapters.durable` for how.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from adapters.durable import DurableFile, transaction
from aggregator.domain.budgets import Grant, staircase
from aggregator.domain.report import LeafValues

_ACCOUNT, _AMOUNT = 32, 16
_LINE = _ACCOUNT + 1 + _AMOUNT  # account, number of the destination in the row's list, budget


class _Row(NamedTuple):
    """One statement as kept."""

    epoch: int
    valid_until: int
    digest: bytes  # of the rest, by which a repeat is known
    destinations: bytes  # 32 each
    lines: bytes  # ascending


class SqliteGrants:
    """Implement ``aggregator.ports.GrantBook``.

    Args:
        path: the file; made when missing.
        slack: seconds after its end for which a budget is remembered: the largest clock bound of all destinations, and
            the largest ``max_age`` of all chains, as a draw just before the end is seen so much later at most.
    """

    def __init__(self, path: Path, slack: int) -> None:
        self.slack = slack
        self._file = DurableFile(path, "grants", _prepare)

    async def note(self, epoch: int, valid_until: int, leaves: Sequence[LeafValues]) -> None:
        """Keep the nonzero budgets of a statement's leaves, durably on return. A repeat is harmless.

        Raises:
            ValueError: a budget does not fit 128 bits, or the statement has more than 256 destinations.
        """
        given = [(leaf.account, leaf.destination, leaf.budget) for leaf in leaves if leaf.budget]
        await self._file.run(lambda: self._add([_pack(epoch, valid_until, given)]))

    async def learn(self, grants: Sequence[Grant]) -> None:
        """Keep what another signer's record holds, durably on return."""
        ordered = sorted(grants, key=_statement)
        rows = [
            _pack(*key, [(g.account, g.destination, g.budget) for g in group])
            for key, group in groupby(ordered, key=_statement)
        ]
        await self._file.run(lambda: self._add(rows))

    async def outstanding(self, now: int, accounts: Collection[str], before: int) -> tuple[Grant, ...]:
        """Return the staircase of what ``accounts`` may still draw at ``now`` by epochs below ``before``, ascending."""
        wanted = sorted(bytes.fromhex(account[2:]) for account in accounts)
        return await self._file.run(lambda: self._outstanding(now, wanted, before))

    async def forget(self, now: int) -> None:
        """Drop what has expired everywhere by ``now`` (Unix seconds, this machine's clock)."""
        await self._file.run(lambda: self._forget(now))

    async def close(self) -> None:
        """Close the file and end the thread."""
        await self._file.close()

    def _add(self, rows: Sequence[_Row]) -> None:
        with transaction(self._file.open()) as connection:
            for row in rows:
                if row.lines:
                    connection.execute("INSERT OR IGNORE INTO statement VALUES (?, ?, ?, ?, ?)", row)

    def _outstanding(self, now: int, wanted: Sequence[bytes], before: int) -> tuple[Grant, ...]:
        query = "SELECT * FROM statement WHERE valid_until > ? AND epoch < ? ORDER BY epoch DESC"
        rows = self._file.open().execute(query, (now - self.slack, before)) if wanted else ()
        return staircase(grant for row in rows for grant in _find(_Row(*row), wanted))

    def _forget(self, now: int) -> None:
        self._file.open().execute("DELETE FROM statement WHERE valid_until <= ?", (now - self.slack,))


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS statement (epoch INTEGER NOT NULL, valid_until INTEGER NOT NULL, "
        "digest BLOB NOT NULL, destinations BLOB NOT NULL, lines BLOB NOT NULL, "
        "UNIQUE (epoch, valid_until, digest))"
    )


def _statement(grant: Grant) -> tuple[int, int]:
    return grant.epoch, grant.valid_until


def _pack(epoch: int, valid_until: int, given: Sequence[tuple[str, str, int]]) -> _Row:
    destinations = sorted({destination for _, destination, _ in given})
    number = {destination: i for i, destination in enumerate(destinations)}
    if len(number) > 1 << 8:
        raise ValueError(f"leaves: {len(number)} destinations, at most 256 can be kept")
    try:
        lines = sorted(
            bytes.fromhex(account[2:]) + bytes((number[destination],)) + budget.to_bytes(_AMOUNT, "big")
            for account, destination, budget in given
        )
    except OverflowError:
        raise ValueError("leaves: a budget is negative or does not fit 128 bits") from None
    places, content = b"".join(bytes.fromhex(d[2:]) for d in destinations), b"".join(lines)
    return _Row(epoch, valid_until, hashlib.sha256(places + content).digest(), places, content)


def _find(row: _Row, wanted: Sequence[bytes]) -> Iterator[Grant]:
    count = len(row.lines) // _LINE
    for account in wanted:
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if row.lines[middle * _LINE : middle * _LINE + _ACCOUNT] < account:
                low = middle + 1
            else:
                high = middle
        while low < count and row.lines[(at := low * _LINE) : at + _ACCOUNT] == account:
            d = row.lines[at + _ACCOUNT] * 32
            budget = int.from_bytes(row.lines[at + _ACCOUNT + 1 : at + _LINE], "big")
            place = "0x" + row.destinations[d : d + 32].hex()
            yield Grant("0x" + account.hex(), place, row.epoch, budget, row.valid_until)
            low += 1
