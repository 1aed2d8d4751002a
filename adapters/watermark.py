"""One attestor's durable record of what it signed: a small SQLite file of its own.

The record is on disk before the signature exists, so a crash in between costs a signature, never a second one for the
same epoch (:mod:`adapters.durable`).

A record can be exported and merged into another one, in the manner of EIP-3076: what is merged only ever raises.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any, Final, NamedTuple

from adapters.durable import DurableFile, transaction
from aggregator.domain.errors import InputError, RefusedError
from aggregator.ports import RefusalNote
from proofs.document import Node
from proofs.errors import FieldError
from proofs.fields import require_uint

INTERCHANGE_VERSION: Final = "1"
KEPT_EPOCHS: Final = 100_000
"""Epochs on record; only the newest decides, the others are for export and for whoever asks what was signed."""
KEPT_REFUSALS: Final = 1_000
MISSED_STARTS: Final = 1 << 20
"""Starts by which a record may be behind what others saw."""
_UNKNOWN: Final = b""
"""The digest of an epoch that somebody saw signed, nobody knows as what: nothing equals it."""
_DIGEST_LENGTH: Final = 32
_HIGHEST: Final = 1 << 62  # SQLite's integers are signed, and starts must be countable further
_KIND: Final = re.compile(r"[a-z][a-z-]{0,31}")
_KEY: Final = re.compile(r"[!-~]{1,200}")
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS signed (epoch INTEGER PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS claimed (kind TEXT, key TEXT, digest BLOB NOT NULL, PRIMARY KEY (kind, key))"
    " WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS refused (id INTEGER PRIMARY KEY, noted_at INTEGER, kind TEXT, key TEXT, reason TEXT)",
)


class Owner(NamedTuple):
    """Whose record a file is."""

    deployment_id: bytes  # 32
    member: str  # the address that signs, 0x lower-case


class SqliteWatermark:
    """Implements ``aggregator.ports.Record``, and so ``Watermark``, for one attestor.

    Args:
        path: the file; made when missing. Two processes on one file exclude each other per claim.
        owner: kept in the file at the first use; a file of another owner is refused. Needed to export and import.
    """

    def __init__(self, path: Path, owner: Owner | None = None) -> None:
        self._owner = owner
        self._file = DurableFile(path, "watermark", self._prepare)

    async def claim(self, epoch: int, digest: bytes) -> None:
        """Record the intent to sign ``digest`` (32 bytes) for ``epoch``, durably; an identical repeat is allowed.

        Raises:
            RefusedError: another digest is on record for ``epoch``, or a higher epoch was signed.
        """
        await self._file.run(lambda: self._claim(epoch, digest))

    async def claim_once(self, kind: str, key: str, digest: bytes) -> None:
        """Record the intent to sign ``digest`` (32 bytes) as the one document of (``kind``, ``key``), durably.

        Args:
            kind: lower-case letters and dashes, at most 32. key: 1 to 200 visible ASCII characters.

        Raises:
            RefusedError: another digest is on record for them; or ``kind`` or ``key`` is no name.
        """
        if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key) or len(digest) != _DIGEST_LENGTH:
            problem = f"{kind[:40]!r} {key[:80]!r} with a digest of {len(digest)} bytes is no document"
            raise RefusedError("watermark", problem)
        await self._file.run(lambda: self._claim_once(kind, key, digest))

    async def highest(self) -> int | None:
        """Return the highest epoch ever claimed, None before the first."""
        return await self._file.run(self._highest)

    async def begin(self) -> int:
        """Count one more start, durably, and return the fencing number."""
        return await self._file.run(self._begin)

    async def starts(self) -> int:
        """Return the newest start's fencing number, 0 before the first."""
        return await self._file.run(lambda: self._starts(self._file.open()))

    async def raise_to(self, *, starts: int = 0, epoch: int = 0) -> None:
        """Learn from others that this member started, or signed, more than is on record; what is lower is ignored.

        Of starts at most ``MISSED_STARTS`` more are believed, so that nobody can use the numbers up by a lie. An epoch
        is believed: whoever asks must know that it is not in the future.

        Raises:
            RefusedError: beyond any epoch there can be.
        """
        await self._file.run(lambda: self._raise_to(starts, epoch))

    async def note_refusal(self, note: RefusalNote) -> None:
        """Keep a refusal; of more than ``KEPT_REFUSALS`` the oldest are forgotten."""
        await self._file.run(lambda: self._note(note))

    async def refusals(self, limit: int = 100) -> tuple[RefusalNote, ...]:
        """Return refusals, newest first."""
        query = "SELECT noted_at, kind, key, reason FROM refused ORDER BY id DESC LIMIT ?"
        rows = await self._file.run(lambda: self._file.open().execute(query, (limit,)).fetchall())
        return tuple(RefusalNote(*row) for row in rows)

    async def export(self) -> dict[str, Any]:
        """Return the record as a JSON document; refusals, which bind nobody, are not in it.

        Raises:
            InputError: the record has no owner.
        """
        return await self._file.run(self._export)

    async def import_(self, document: object) -> None:
        """Merge an exported record into this one, all of it or nothing; what is here already is never lowered.

        Raises:
            InputError: names the field: malformed, of another deployment or member, or a digest that contradicts the
                one on record, which means that the key has signed, or was about to sign, two statements.
        """
        await self._file.run(lambda: self._import(document))

    async def close(self) -> None:
        """Close the file and end the thread; no claim is possible afterwards."""
        await self._file.close()

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for table in _TABLES:
            connection.execute(table)
        self._check_owner(connection)

    def _check_owner(self, connection: sqlite3.Connection) -> None:
        if self._owner is None:
            return
        for name, value in self._owner._asdict().items():
            kept = _fact(connection, name, None)
            if kept is None:
                _set_fact(connection, name, value)
            elif kept != value:
                was, now = (x if isinstance(x, str) else "0x" + bytes(x).hex() for x in (kept, value))
                raise RefusedError("record", f"{self._file.path.name} is of {name.replace('_', ' ')} {was}, not {now}")

    def _claim(self, epoch: int, digest: bytes) -> None:
        if not 0 <= epoch <= _HIGHEST or len(digest) != _DIGEST_LENGTH:
            raise RefusedError("watermark", f"epoch {epoch} with a digest of {len(digest)} bytes is no statement")
        with transaction(self._file.open()) as connection:
            row = connection.execute("SELECT epoch, digest FROM signed ORDER BY epoch DESC LIMIT 1").fetchone()
            if row is not None and epoch < row[0]:
                raise RefusedError("watermark", f"epoch {epoch} is below {row[0]}, which was signed already")
            if row is not None and epoch == row[0]:
                if row[1] != digest:
                    raise RefusedError(
                        "watermark", f"epoch {epoch} was signed as {_shown(row[1])}, not as 0x{digest.hex()}"
                    )
            else:
                connection.execute("INSERT INTO signed VALUES (?, ?)", (epoch, digest))
                connection.execute("DELETE FROM signed WHERE epoch <= ?", (epoch - KEPT_EPOCHS,))

    def _claim_once(self, kind: str, key: str, digest: bytes) -> None:
        with transaction(self._file.open()) as connection:
            query = "SELECT digest FROM claimed WHERE kind = ? AND key = ?"
            row = connection.execute(query, (kind, key)).fetchone()
            if row is None:
                connection.execute("INSERT INTO claimed VALUES (?, ?, ?)", (kind, key, digest))
            elif row[0] != digest:
                raise RefusedError("watermark", f"{kind} {key} was signed as {_shown(row[0])}, not as 0x{digest.hex()}")

    def _highest(self) -> int | None:
        row = self._file.open().execute("SELECT max(epoch) FROM signed").fetchone()
        return None if row[0] is None else int(row[0])

    @staticmethod
    def _starts(connection: sqlite3.Connection) -> int:
        return int(_fact(connection, "starts", 0))

    def _begin(self) -> int:
        with transaction(self._file.open()) as connection:
            number = self._starts(connection) + 1
            _set_fact(connection, "starts", number)
        return number

    def _raise_to(self, starts: int, epoch: int) -> None:
        if epoch > _HIGHEST:
            raise RefusedError("record", f"nobody signs epoch {epoch}")
        with transaction(self._file.open()) as connection:
            own = self._starts(connection)
            if starts > own:
                _set_fact(connection, "starts", min(starts, own + MISSED_STARTS))
            if epoch > (self._highest() or 0):
                connection.execute("INSERT INTO signed VALUES (?, ?)", (epoch, _UNKNOWN))

    def _note(self, note: RefusalNote) -> None:
        with transaction(self._file.open()) as connection:
            connection.execute("INSERT INTO refused (noted_at, kind, key, reason) VALUES (?, ?, ?, ?)", note)
            connection.execute("DELETE FROM refused WHERE id <= (SELECT max(id) FROM refused) - ?", (KEPT_REFUSALS,))

    def _export(self) -> dict[str, Any]:
        owner = self._require_owner()
        with transaction(self._file.open()) as connection:
            epochs = connection.execute("SELECT epoch, digest FROM signed ORDER BY epoch").fetchall()
            claims = connection.execute("SELECT kind, key, digest FROM claimed ORDER BY kind, key").fetchall()
            starts = self._starts(connection)
        return {
            "metadata": {
                "interchange_format_version": INTERCHANGE_VERSION,
                "deployment_id": "0x" + owner.deployment_id.hex(),
                "member": owner.member,
            },
            "epochs": [{"epoch": epoch, "digest": "0x" + digest.hex() if digest else None} for epoch, digest in epochs],
            "claims": [{"kind": kind, "key": key, "digest": "0x" + digest.hex()} for kind, key, digest in claims],
            "starts": starts,
        }

    def _import(self, document: object) -> None:
        owner = self._require_owner()
        try:
            epochs, claims, starts = _decode(document, owner)
        except FieldError as error:
            raise InputError(error.field, error.reason, "import what was exported, unchanged") from None
        with transaction(self._file.open()) as connection:
            for epoch, digest in epochs.items():
                row = connection.execute("SELECT digest FROM signed WHERE epoch = ?", (epoch,)).fetchone()
                if row is not None and row[0] and digest and row[0] != digest:
                    raise _contradiction(f"epoch {epoch}", row[0], digest)
                if row is None:
                    connection.execute("INSERT INTO signed VALUES (?, ?)", (epoch, digest))
                elif row[0] != digest:  # known to one and not to the other: then as good as two
                    connection.execute("UPDATE signed SET digest = ? WHERE epoch = ?", (_UNKNOWN, epoch))
            for (kind, key), digest in claims.items():
                query = "SELECT digest FROM claimed WHERE kind = ? AND key = ?"
                row = connection.execute(query, (kind, key)).fetchone()
                if row is None:
                    connection.execute("INSERT INTO claimed VALUES (?, ?, ?)", (kind, key, digest))
                elif row[0] != digest:
                    raise _contradiction(f"{kind} {key}", row[0], digest)
            if starts > self._starts(connection):
                _set_fact(connection, "starts", starts)

    def _require_owner(self) -> Owner:
        if self._owner is None:
            raise InputError("owner", "the record is nobody's", "open it for a deployment and a member")
        return self._owner


def _fact(connection: sqlite3.Connection, name: str, default: Any) -> Any:
    row = connection.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
    return default if row is None else row[0]


def _set_fact(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute(
        "INSERT INTO fact VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
    )


def _shown(digest: bytes) -> str:
    return f"0x{digest.hex()}" if digest else "something unknown"


def _contradiction(what: str, here: bytes, given: bytes) -> InputError:
    problem = f"{what} is 0x{here.hex()} on record and 0x{given.hex()} in the import"
    return InputError("import", problem, "find out which process signed the other one before the key is used again")


def _decode(document: object, owner: Owner) -> tuple[dict[int, bytes], dict[tuple[str, str], bytes], int]:
    node = Node(document)
    node.only("metadata", "epochs", "claims", "starts")
    metadata = node.member("metadata")
    metadata.only("interchange_format_version", "deployment_id", "member")
    for name, expected in (
        ("interchange_format_version", INTERCHANGE_VERSION),
        ("deployment_id", "0x" + owner.deployment_id.hex()),
        ("member", owner.member),
    ):
        given = metadata.member(name)
        if given.text() != expected:
            raise FieldError(given.path, f"{given.text()[:80]!r} given, this record is of {expected!r}")
    epochs: dict[int, bytes] = {}
    for row in node.member("epochs").items():
        row.only("epoch", "digest")
        epoch = require_uint(row.member("epoch").path, row.member("epoch").value, 62)
        digest = row.optional("digest")
        signed = _UNKNOWN if digest is None else digest.hex_bytes(32)
        if epochs.setdefault(epoch, signed) != signed:
            raise FieldError(row.path, f"epoch {epoch} is given with two digests")
    claims: dict[tuple[str, str], bytes] = {}
    for row in node.member("claims").items():
        row.only("kind", "key", "digest")
        kind, key = row.member("kind").text(), row.member("key").text()
        if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key):
            raise FieldError(row.path, f"{kind[:40]!r} {key[:80]!r} does not name a document")
        digest_ = row.member("digest").hex_bytes(32)
        if claims.setdefault((kind, key), digest_) != digest_:
            raise FieldError(row.path, f"{kind} {key} is given with two digests")
    return epochs, claims, require_uint("starts", node.member("starts").value, 62)
