"""The Store over SQLAlchemy: SQLite through aiosqlite now, PostgreSQL through psycopg by its URL.

Durability: on SQLite ``journal_mode=WAL`` lets the API read while the service writes, and ``synchronous=FULL`` makes
every commit reach the disk before it is reported, as PostgreSQL does by default. In WAL mode the cheaper ``NORMAL`` may
lose the last commits on power loss, and those are exactly what must not be lost: a link acknowledged to its signer, a
transaction that was signed and perhaps sent. The price is one fsync per commit, a few per epoch.

Writers take the write lock at once (``BEGIN IMMEDIATE``), so that what they checked still holds when they write, also
against another process; PostgreSQL relies on the constraints and a retry.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, event, insert, inspect, text
from sqlalchemy import select as sa_select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlmodel import col, func, select
from sqlmodel.ext.asyncio.session import AsyncSession

from aggregator.domain.budgets import NO_LEVELS, parse_levels
from aggregator.domain.certificate import (
    Attestation,
    Certificate,
    EpochRecord,
    EpochSummary,
    LinkRecord,
    Posting,
    PostingState,
    Refusal,
    State,
)
from aggregator.domain.errors import ConflictError, InputError, RefusedError, UnknownError
from aggregator.domain.links import verify_append, with_links
from aggregator.domain.report import AccountMargin, LeafValues
from aggregator.domain.snapshot import Account, ChainView, Finding, Reading
from aggregator.store.tables import (
    AccountTable,
    EpochPreimageTable,
    EpochTable,
    LeavesTable,
    LinkTable,
    MarginTable,
    PostingTable,
    PreimageTable,
    ReadingTable,
    RotationTable,
)
from proofs.hashing import keccak256
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, Rotation
from proofs.statement import Header, StatementBody

T = TypeVar("T")

_MIGRATIONS = Path(__file__).with_name("migrations")
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_BUSY_MILLISECONDS = 10_000  # how long a writer waits for another process's transaction
_OPENINGS, _OPENING_SECONDS = 40, 0.05
_ATTEMPTS = 3  # of a write that lost a race on a constraint; the next attempt sees the winner and says so
_CHUNK = 500  # rows per IN list; SQLite allows 32,766 parameters

_READING = TypeAdapter(Reading)
_MARGIN = TypeAdapter(AccountMargin)
_LEAVES = TypeAdapter(tuple[LeafValues, ...])
_CHAINS = TypeAdapter(tuple[ChainView, ...])
_FINDINGS = TypeAdapter(tuple[Finding, ...])
_REFUSALS = TypeAdapter(tuple[Refusal, ...])  # of two texts before they were signed
_LABEL = re.compile(r"(?!0x)[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")  # safe in a URL's path, and in any terminal
_ID_PREFIX = re.compile("0x[0-9a-f]{8,64}")
_LIST_ACCOUNTS = "`crossmargin accounts` lists them"


class SqlStore:
    """Implement :class:`aggregator.ports.Store` over one SQL database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # A read is a snapshot: SQLite's are, PostgreSQL must be told.
        snapshots = engine.execution_options(isolation_level="REPEATABLE READ") if _is_postgresql(engine) else engine
        self._reads = async_sessionmaker(snapshots, class_=AsyncSession, expire_on_commit=False)
        self._writes = async_sessionmaker(
            engine.execution_options(write=True), class_=AsyncSession, expire_on_commit=False
        )

    @classmethod
    async def open(cls, url: str) -> SqlStore:
        """Open the database at ``url`` and bring its tables up to date.

        Args:
            url: ``sqlite:///path.db`` or ``postgresql://host/name``; a driver may be named.

        Raises:
            InputError: the URL is not usable, or a newer version wrote the database.
        """
        engine = _create_engine(url)
        try:
            for attempt in range(_OPENINGS):
                try:
                    async with engine.execution_options(write=True).begin() as connection:
                        await connection.run_sync(_migrate)
                    break
                except OperationalError as error:
                    # SQLite does not wait for another opener that turns the new file to WAL at this moment.
                    if "database is locked" not in str(error.orig) or attempt == _OPENINGS - 1:
                        raise
                    await asyncio.sleep(_OPENING_SECONDS)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for the other ports that live in the same database."""
        return self._engine

    async def close(self) -> None:
        await self._engine.dispose()

    # accounts and links

    async def add_account(self, account: Account, salt: bytes) -> None:
        """Record a new account.

        Raises:
            InputError: the label is not one.
            ConflictError: the account exists (``salt``), or the label is taken (``label``).
        """
        if account.label and not _LABEL.fullmatch(account.label):
            raise InputError(
                "label",
                "must be 1 to 64 letters, digits, spaces, '.', '_' or '-', and not begin with 0x like an account id",
                "choose another label",
            )

        async def write(session: AsyncSession) -> None:
            if await session.get(AccountTable, account.id) is not None:
                raise ConflictError("salt", f"account {account.id} exists already", "choose another salt")
            if account.label and await _by_label(session, account.label) is not None:
                raise ConflictError("label", f"{account.label!r} is taken", "choose another label")
            session.add(
                AccountTable(
                    id=account.id,
                    salt=_hex(salt),
                    controller=account.controller,
                    kind=account.kind,
                    home=account.home,
                    label=account.label or None,
                )
            )

        await self._write(write)

    async def accounts(self) -> tuple[Account, ...]:
        async with self._reads() as session:
            return with_links([account for account, _ in await _accounts(session)], await _links(session))

    async def account(self, reference: str) -> Account:
        """Find by id, unambiguous id prefix (0x + 8 hex or more) or label.

        Raises:
            UnknownError: nothing matches; names ``account``.
            InputError: several accounts match; names ``account``.
        """
        async with self._reads() as session:
            row = await _by_label(session, reference) or await _by_id(session, reference)
            return with_links([_account(row)], await _links(session, row.id))[0]

    async def salt(self, account: str) -> bytes:
        async with self._reads() as session:
            row = await session.get(AccountTable, account)
        if row is None:
            raise UnknownError("account", account, _LIST_ACCOUNTS)
        return _bytes(row.salt)

    async def append_link(self, link: LinkRecord, now: Callable[[], float] | None = None) -> LinkRecord:
        """Append to the links log at the next position, from 1, and return the record with it.

        Args:
            now: the clock (Unix seconds) that gives ``recorded_at`` when the position is taken, so that times rise with
                positions and none is much older than its commit; None keeps the record's. Never below the last entry's.

        Raises:
            UnknownError: no such account. InputError: ``expiry`` has passed by then.
            ConflictError: the log does not allow it (:func:`aggregator.domain.links.verify_append`): ``member`` backs
                another account, ``nonce`` is not above the last one of the pair, there is nothing to revoke or end.
        """

        async def write(session: AsyncSession) -> LinkRecord:
            # First of all: whoever appends after this takes the position, so what is checked below still holds then.
            newest = select(LinkTable.position, LinkTable.recorded_at).order_by(col(LinkTable.position).desc()).limit(1)
            last, last_time = (await session.exec(newest)).first() or (0, 0)
            if await session.get(AccountTable, link.account) is None:
                raise UnknownError("account", link.account, _LIST_ACCOUNTS)
            if link.kind == "shares":
                verify_append(await _links(session, link.account, member=""), link)
            else:
                verify_append(await _links(session, member=link.member), link)
            time = max(last_time, link.recorded_at if now is None else int(now()))
            if link.kind != "end" and time >= link.expiry:
                raise InputError("expiry", f"{link.expiry} has passed, it is {time}", "sign again with a later expiry")
            record = link._replace(position=last + 1, recorded_at=time)
            session.add(LinkTable(**record._asdict()))
            return record

        return await self._write(write)

    async def adopt(self, state: State) -> None:
        """Append, in one transaction, the accounts and entries of the links log that ``state`` has beyond this store.

        For a copy of another store's log: what may follow has been checked. Labels are not taken over.

        Raises:
            ConflictError: ``links``: the log does not begin as this one does.
        """

        async def write(session: AsyncSession) -> None:
            known = {account.id for account, _ in await _accounts(session)}
            for account in state.accounts:
                if account.id not in known:
                    salt, fields = _hex(state.salts[account.id]), (account.controller, account.kind, account.home)
                    controller, kind, home = fields
                    session.add(AccountTable(id=account.id, salt=salt, controller=controller, kind=kind, home=home))
            await session.flush()
            last = (await session.exec(select(func.max(LinkTable.position)))).one() or 0
            if [link.position for link in state.links] != list(range(1, len(state.links) + 1)) or len(
                state.links
            ) < last:
                raise ConflictError("links", f"entries 1 to {last} at least are expected", "send the whole log")
            for link in state.links[last:]:
                session.add(LinkTable(**link._asdict()))

        await self._write(write)
        await self.save_rotations(state.rotations)

    async def save_rotations(self, rotations: Sequence[Rotation]) -> None:
        """Keep verified rotations; those that are kept already stay as they are.

        Raises:
            ConflictError: ``rotations``: another set is kept under the same number.
        """

        async def write(session: AsyncSession) -> None:
            for rotation in rotations:
                kept = await session.get(RotationTable, rotation.to.set_id)
                if kept is None:
                    session.add(_rotation_row(rotation))
                elif _rotation(kept).to != rotation.to:
                    raise ConflictError("rotations", f"another set {rotation.to.set_id} is on record")

        if rotations:
            await self._write(write)

    async def rotations(self) -> tuple[Rotation, ...]:
        """Return the rotations that are kept, sets 2, 3, … in order."""
        async with self._reads() as session:
            return await _rotations(session)

    async def links(self, account: str | None = None) -> tuple[LinkRecord, ...]:
        async with self._reads() as session:
            return await _links(session, account)

    async def state(self) -> State:
        """Return every account with its links, the whole links log, the salts by account id, the rotations, and the
        levels that the newest certified statement left, of one moment."""
        async with self._reads() as session:
            accounts = await _accounts(session)
            links = await _links(session)
            levels, rotations = await _preimage(session, "levels"), await _rotations(session)
        known = with_links((account for account, _ in accounts), links)
        salts = {account.id: salt for account, salt in accounts}
        return State(known, links, salts, rotations, levels=parse_levels(levels) if levels else NO_LEVELS)

    async def preimage(self, name: str) -> str:
        """Return a text that the newest certified epoch rests on, by its name; "" if there is none."""
        async with self._reads() as session:
            return await _preimage(session, name)

    # readings

    async def save_readings(self, reader: str, readings: Iterable[Reading]) -> None:
        """Remember what a party read anew of each chain, and forget blocks that nothing is carried from any more.

        Args:
            readings: one per chain, holding only what was read at its block; ``carried`` names the blocks to keep.
        """
        rows = [
            (
                {reading.block.height, *(c.block.height for c in reading.carried)},
                ReadingTable(
                    reader=reader,
                    chain=reading.block.chain,
                    height=reading.block.height,
                    time=reading.block.time,
                    content=_dump(_READING, replace(reading, carried=())),
                ),
            )
            for reading in readings
        ]

        async def write(session: AsyncSession) -> None:
            for kept, row in rows:
                await session.merge(row)
                await session.flush()
                await session.exec(
                    delete(ReadingTable).where(
                        col(ReadingTable.reader) == reader,
                        col(ReadingTable.chain) == row.chain,
                        col(ReadingTable.height).not_in(kept),
                    )
                )

        await self._write(write)

    async def readings(self, reader: str) -> Mapping[str, tuple[Reading, ...]]:
        """Return, by chain, what a party read at each block that is kept, the newest first."""
        query = select(ReadingTable).where(ReadingTable.reader == reader).order_by(col(ReadingTable.height).desc())
        found: dict[str, list[Reading]] = {}
        async with self._reads() as session:
            for row in await session.exec(query):
                found.setdefault(row.chain, []).append(_READING.validate_json(row.content))
        return {chain: tuple(parts) for chain, parts in found.items()}

    # epochs

    async def save_epoch(self, record: EpochRecord) -> None:
        """Store an epoch whole, in one transaction. A record without a quorum may be replaced.

        Raises:
            RefusedError: the epoch is certified already, and ``record`` has another digest or no attestations.
        """
        number = record.header.epoch

        async def write(session: AsyncSession) -> None:
            stored = await session.get(EpochTable, number)
            if stored is not None and stored.certified:
                if stored.digest != _hex(record.digest):
                    raise RefusedError(
                        "epoch-certified", f"epoch {number} is certified as {stored.digest}, not {_hex(record.digest)}"
                    )
                if not record.attestations:
                    raise RefusedError("epoch-certified", f"epoch {number} has a quorum, the new record has none")
            await _delete_details(session, (number,))
            await session.merge(_epoch_row(record))
            await session.flush()
            margins = [
                {"epoch": number, "account": margin.account, "ordinal": i, "content": _dump(_MARGIN, margin)}
                for i, margin in enumerate(record.margins)
            ]
            if margins:
                await session.exec(insert(MarginTable), params=margins)
            session.add(LeavesTable(epoch=number, content=_dump(_LEAVES, record.leaves)))
            for name, content in sorted(record.preimages.items()):
                digest = _hex(keccak256(content.encode()))
                if await session.get(PreimageTable, digest) is None:
                    session.add(PreimageTable(digest=digest, content=content))
                    await session.flush()
                session.add(EpochPreimageTable(epoch=number, name=name, digest=digest))

        await self._write(write)

    async def epoch(
        self, number: int | None = None, *, certified: bool = True, margins: bool = False
    ) -> EpochRecord | None:
        """Return one epoch, by default the newest; None if there is none.

        A pruned epoch comes without margins, leaves and preimages; one learned from others without margins. With
        ``margins`` those that have none are passed over.
        """
        async with self._reads() as session:
            row = await _find_epoch(session, number, certified, margins=margins)
            if row is None:
                return None
            query = select(MarginTable.content).where(MarginTable.epoch == row.epoch).order_by(col(MarginTable.ordinal))
            found = tuple(_MARGIN.validate_json(content) for content in await session.exec(query))
            return await _record(session, row, found)

    async def certificate(self, number: int | None = None) -> Certificate | None:
        """Return one epoch's certificate, by default the newest; None if there is none. Reads one row."""
        async with self._reads() as session:
            row = await _find_epoch(session, number, True)
        return None if row is None else Certificate(_header(row), _body(row), _bytes(row.digest), _attestations(row))

    async def epochs(self, limit: int = 20, before: int | None = None) -> tuple[EpochSummary, ...]:
        query = select(EpochTable).order_by(col(EpochTable.epoch).desc()).limit(limit)
        if before is not None:
            query = query.where(EpochTable.epoch < before)
        async with self._reads() as session:
            return tuple(_summary(row) for row in await session.exec(query))

    async def margin(self, account: str, epoch: int | None = None) -> tuple[EpochRecord, AccountMargin] | None:
        """Return one account's margin by the account's full id, and its epoch with no other margin in it.

        Args:
            epoch: by default the newest certified one that has margins: of one learned from others only leaves are
                known, and the reader sees by its epoch that the margin is older.
        """
        async with self._reads() as session:
            row = await _find_epoch(session, epoch, True, margins=epoch is None)
            if row is None:
                return None
            found = await session.get(MarginTable, (row.epoch, account))
            if found is None:
                return None
            margin = _MARGIN.validate_json(found.content)
            return await _record(session, row, (margin,)), margin

    async def prune(self, *, keep_epochs: int) -> int:
        """Drop margins, leaves and preimages of old epochs; return how many epochs lost them.

        The newest ``keep_epochs`` certified epochs keep theirs, however many without a quorum came after. Of those
        without one, the ones among the newest ``keep_epochs`` of all do: a long outage must not fill the disk.
        Headers, bodies, certificates, refusals, postings and links stay: they are the log.

        Raises:
            InputError: ``keep_epochs`` is below 1.
        """
        if keep_epochs < 1:
            raise InputError("keep_epochs", f"{keep_epochs} would drop the newest epoch", "keep at least 1")

        async def write(session: AsyncSession) -> int:
            newest = select(EpochTable.epoch).order_by(col(EpochTable.epoch).desc()).limit(keep_epochs)
            kept = set(await session.exec(newest))
            kept.update(await session.exec(newest.where(col(EpochTable.certified).is_(True))))
            old = [number for number in await session.exec(select(LeavesTable.epoch)) if number not in kept]
            if not old:
                return 0
            for start in range(0, len(old), _CHUNK):
                await _delete_details(session, old[start : start + _CHUNK])
            referenced = select(EpochPreimageTable.digest)
            await session.exec(delete(PreimageTable).where(col(PreimageTable.digest).not_in(referenced)))
            return len(old)

        return await self._write(write)

    # postings

    async def save_posting(self, posting: Posting) -> None:
        async def write(session: AsyncSession) -> None:
            await session.merge(PostingTable(**posting._asdict()))

        await self._write(write)

    async def postings(self, epoch: int | None = None, limit: int = 100) -> tuple[Posting, ...]:
        """Return postings, newest epoch first."""
        query = select(PostingTable).order_by(col(PostingTable.epoch).desc(), col(PostingTable.destination))
        if epoch is not None:
            query = query.where(PostingTable.epoch == epoch)
        async with self._reads() as session:
            return tuple(_posting(row) for row in await session.exec(query.limit(limit)))

    async def latest_postings(self) -> Mapping[str, Posting]:
        landed = col(PostingTable.state).in_(("confirmed", "final"))
        newest = (
            select(PostingTable.destination, func.max(PostingTable.epoch).label("epoch"))
            .where(landed)
            .group_by(PostingTable.destination)
            .subquery()
        )
        query = select(PostingTable).join(
            newest,
            (col(PostingTable.destination) == newest.c.destination) & (col(PostingTable.epoch) == newest.c.epoch),
        )
        async with self._reads() as session:
            return {row.destination: _posting(row) for row in await session.exec(query)}

    async def _write(self, work: Callable[[AsyncSession], Awaitable[T]]) -> T:
        """Run ``work`` in one transaction; whoever loses a race on a constraint looks again."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._writes.begin() as session:
                    return await work(session)
            except IntegrityError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")


def _create_engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # Not repeated in the message: a URL may carry a password.
        raise InputError("store", "is not a database URL", "for example sqlite:///crossmargin.db") from None
    if parsed.get_backend_name() not in _DRIVERS:
        raise InputError(
            "store", f"{parsed.get_backend_name()!r} is not supported", "use sqlite:///... or postgresql://..."
        )
    if parsed.drivername in _DRIVERS:
        parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    engine = create_async_engine(parsed)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _is_postgresql(engine: AsyncEngine) -> bool:
    return engine.dialect.name == "postgresql"


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; _begin_sqlite does
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={_BUSY_MILLISECONDS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(connection: Connection) -> None:
    if inspect(connection).has_table("alembic_version"):
        written = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if written == max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")):
            return  # as almost always, without loading what migrates
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise InputError("store", f"a newer version wrote it (revision {current})", "run that version")
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('crossmargin'))"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _dump(adapter: TypeAdapter[T], value: T) -> str:
    # Python's json keeps integers of any size, every float bit for bit, and infinite prices.
    return json.dumps(adapter.dump_python(value), ensure_ascii=False, separators=(",", ":"))


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))


async def _accounts(session: AsyncSession) -> list[tuple[Account, bytes]]:
    """Return every account without its links, and its salt, ascending by id."""
    rows = await session.exec(select(AccountTable).order_by(col(AccountTable.id)))
    return [(_account(row), _bytes(row.salt)) for row in rows]


async def _links(
    session: AsyncSession, account: str | None = None, *, member: str | None = None
) -> tuple[LinkRecord, ...]:
    # Plain rows: there are as many as accounts, and every epoch needs them all.
    query = sa_select(*(col(getattr(LinkTable, name)) for name in LinkRecord._fields)).order_by(col(LinkTable.position))
    if account is not None:
        query = query.where(col(LinkTable.account) == account)
    if member is not None:
        query = query.where(col(LinkTable.member) == member)
    connection = await session.connection()
    return tuple(LinkRecord(*row) for row in await connection.execute(query))


async def _by_label(session: AsyncSession, label: str) -> AccountTable | None:
    return (await session.exec(select(AccountTable).where(AccountTable.label == label))).one_or_none()


async def _by_id(session: AsyncSession, reference: str) -> AccountTable:
    prefix = reference.lower()
    if not _ID_PREFIX.fullmatch(prefix):
        raise UnknownError("account", reference, _LIST_ACCOUNTS)
    matches = (
        await session.exec(
            select(AccountTable)
            .where(col(AccountTable.id) >= prefix, col(AccountTable.id) < prefix + "g")  # "g" sorts after every digit
            .order_by(col(AccountTable.id))
            .limit(3)
        )
    ).all()
    if not matches:
        raise UnknownError("account", reference, _LIST_ACCOUNTS)
    if len(matches) > 1:
        raise InputError(
            "account", f"{reference!r} matches {', '.join(row.id for row in matches[:2])}", "give more digits"
        )
    return matches[0]


async def _rotations(session: AsyncSession) -> tuple[Rotation, ...]:
    return tuple(
        _rotation(row) for row in await session.exec(select(RotationTable).order_by(col(RotationTable.set_id)))
    )


def _rotation_row(rotation: Rotation) -> RotationTable:
    to = rotation.to
    return RotationTable(
        set_id=to.set_id,
        activation_epoch=to.activation_epoch,
        not_after=to.not_after,
        threshold=to.threshold,
        members=json.dumps([_hex(member) for member in to.members]),
        signatures=json.dumps([[s.index, _hex(s.r), _hex(s.vs)] for s in rotation.signatures]),
    )


def _rotation(row: RotationTable) -> Rotation:
    members = tuple(_bytes(member) for member in json.loads(row.members))
    signatures = tuple(IndexedSignature(i, _bytes(r), _bytes(vs)) for i, r, vs in json.loads(row.signatures))
    return Rotation(AttestorSet(row.set_id, members, row.threshold, row.activation_epoch, row.not_after), signatures)


def _account(row: AccountTable) -> Account:
    kind = cast(Literal["risk-bearing", "monitored"], row.kind)
    return Account(row.id, row.controller, kind, row.home, row.label or "")


async def _delete_details(session: AsyncSession, epochs: Iterable[int]) -> None:
    numbers = tuple(epochs)
    for table in (MarginTable, LeavesTable, EpochPreimageTable):
        await session.exec(delete(table).where(col(table.epoch).in_(numbers)))


async def _find_epoch(
    session: AsyncSession, number: int | None, certified: bool, *, margins: bool = False
) -> EpochTable | None:
    query = select(EpochTable).order_by(col(EpochTable.epoch).desc()).limit(1)
    if number is not None:
        query = query.where(EpochTable.epoch == number)
    if certified:
        query = query.where(col(EpochTable.certified).is_(True))
    if margins:
        query = query.where(select(MarginTable.epoch).where(col(MarginTable.epoch) == col(EpochTable.epoch)).exists())
    return (await session.exec(query)).one_or_none()


async def _preimage(session: AsyncSession, name: str) -> str:
    """Return a text that the newest certified epoch rests on, "" if there is none."""
    row = await _find_epoch(session, None, True)
    if row is None:
        return ""
    query = (
        select(PreimageTable.content)
        .join(EpochPreimageTable, col(EpochPreimageTable.digest) == col(PreimageTable.digest))
        .where(EpochPreimageTable.epoch == row.epoch, EpochPreimageTable.name == name)
    )
    return (await session.exec(query)).one_or_none() or ""


def _epoch_row(record: EpochRecord) -> EpochTable:
    header, body = record.header, record.body
    return EpochTable(
        epoch=header.epoch,
        certified=bool(record.attestations),
        cut_time=record.cut_time,
        root=_hex(header.root),
        floor=header.floor,
        set_id=header.set_id,
        produced_at=header.produced_at,
        valid_until=header.valid_until,
        body=_hex(header.body),
        cut_digest=_hex(body.cut_digest),
        price_digest=_hex(body.price_digest),
        policy_digest=_hex(body.policy_digest),
        risk_digest=_hex(body.risk_digest),
        state_digest=_hex(body.state_digest),
        accounts_root=_hex(body.accounts_root),
        leaf_count=body.leaf_count,
        previous=_hex(body.previous),
        digest=_hex(record.digest),
        attestations=json.dumps([[a.index, _hex(a.r), _hex(a.vs)] for a in record.attestations]),
        refusals=_dump(_REFUSALS, record.refusals),
        chains=_dump(_CHAINS, record.chains),
        findings=_dump(_FINDINGS, record.findings),
    )


def _header(row: EpochTable) -> Header:
    return Header(
        epoch=row.epoch,
        root=_bytes(row.root),
        floor=row.floor,
        set_id=row.set_id,
        produced_at=row.produced_at,
        valid_until=row.valid_until,
        body=_bytes(row.body),
    )


def _body(row: EpochTable) -> StatementBody:
    return StatementBody(
        cut_digest=_bytes(row.cut_digest),
        price_digest=_bytes(row.price_digest),
        policy_digest=_bytes(row.policy_digest),
        risk_digest=_bytes(row.risk_digest),
        state_digest=_bytes(row.state_digest),
        accounts_root=_bytes(row.accounts_root),
        leaf_count=row.leaf_count,
        previous=_bytes(row.previous),
    )


def _attestations(row: EpochTable) -> tuple[Attestation, ...]:
    return tuple(Attestation(i, _bytes(r), _bytes(vs)) for i, r, vs in json.loads(row.attestations))


async def _record(session: AsyncSession, row: EpochTable, margins: tuple[AccountMargin, ...]) -> EpochRecord:
    leaves = await session.get(LeavesTable, row.epoch)
    preimages = await session.exec(
        select(EpochPreimageTable.name, PreimageTable.content)
        .join(PreimageTable, col(PreimageTable.digest) == col(EpochPreimageTable.digest))
        .where(EpochPreimageTable.epoch == row.epoch)
        .order_by(col(EpochPreimageTable.name))
    )
    return EpochRecord(
        header=_header(row),
        body=_body(row),
        digest=_bytes(row.digest),
        cut_time=row.cut_time,
        attestations=_attestations(row),
        refusals=_REFUSALS.validate_json(row.refusals),
        chains=_CHAINS.validate_json(row.chains),
        findings=_FINDINGS.validate_json(row.findings),
        margins=margins,
        leaves=() if leaves is None else _LEAVES.validate_json(leaves.content),
        preimages=dict(preimages.all()),
    )


def _summary(row: EpochTable) -> EpochSummary:
    return EpochSummary(
        epoch=row.epoch,
        cut_time=row.cut_time,
        produced_at=row.produced_at,
        valid_until=row.valid_until,
        root=row.root,
        digest=row.digest,
        leaf_count=row.leaf_count,
        signers=tuple(index for index, _, _ in json.loads(row.attestations)),
        refusals=_REFUSALS.validate_json(row.refusals),
        floor=row.floor,
    )


def _posting(row: PostingTable) -> Posting:
    return Posting(
        epoch=row.epoch,
        destination=row.destination,
        state=cast(PostingState, row.state),
        transaction=row.transaction,
        cost=row.cost,
        detail=row.detail,
        updated_at=row.updated_at,
    )
