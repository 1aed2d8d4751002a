"""The links log in the store: links, revokes and ends follow each other as they may, under races too."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

import aggregator.store
from aggregator.domain.certificate import LinkRecord
from aggregator.domain.errors import ConflictError, InputError
from aggregator.domain.links import backings, with_links
from aggregator.store import SqlStore
from tests.api.synthetic_epochs import CHAIN_A, CUT_TIME, make_account

ALICE, BOB = make_account("alice"), make_account("bob")
MEMBER = f"{CHAIN_A}:0x{'22' * 20}"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    await opened.add_account(ALICE, bytes(32))
    await opened.add_account(BOB, b"\x01" * 32)
    yield opened
    await opened.close()


def link(account: str, nonce: int, member: str = MEMBER) -> LinkRecord:
    return LinkRecord(-1, account, ALICE.controller, member, nonce, 2**64 - 1, "0xaa", "0xbb", CUT_TIME)


def revoke(account: str, nonce: int) -> LinkRecord:
    return link(account, nonce)._replace(accept_signature="", kind="revoke")


def end(account: str, nonce: int) -> LinkRecord:
    return revoke(account, nonce)._replace(invite_signature="", kind="end")


async def test_a_link_is_revoked_ends_and_frees_its_address(store: SqlStore) -> None:
    written = [await store.append_link(link(ALICE.id, 1)), await store.append_link(revoke(ALICE.id, 2))]
    ending = await store.account(ALICE.id)
    assert (ending.links, ending.ending) == ((MEMBER,), (MEMBER,))
    with pytest.raises(ConflictError, match="backs account") as caught:
        await store.append_link(link(BOB.id, 1))
    assert caught.value.field == "member"
    written.append(await store.append_link(end(ALICE.id, 2)))
    gone = await store.account(ALICE.id)
    assert (gone.links, gone.ending) == ((), ())
    written.append(await store.append_link(link(BOB.id, 1)))
    assert (await store.account(BOB.id)).links == (MEMBER,)
    assert await store.links() == tuple(written)
    assert [entry.kind for entry in written] == ["link", "revoke", "end", "link"]
    state = await store.state()
    assert state.accounts == await store.accounts() == with_links(state.accounts, state.links)


async def test_both_sides_may_sign_anew_while_a_link_is_ending(store: SqlStore) -> None:
    for entry in (link(ALICE.id, 1), revoke(ALICE.id, 2), link(ALICE.id, 3)):
        await store.append_link(entry)
    account = await store.account(ALICE.id)
    assert (account.links, account.ending) == ((MEMBER,), ())
    with pytest.raises(ConflictError, match="no revoke"):
        await store.append_link(end(ALICE.id, 2))


@pytest.mark.parametrize(
    ("before", "entry", "field", "says"),
    [
        ([], revoke(ALICE.id, 1), "member", "does not back"),
        ([], end(ALICE.id, 1), "member", "no revoke"),
        ([link(ALICE.id, 1)], end(ALICE.id, 1), "member", "no revoke"),
        ([link(ALICE.id, 1)], revoke(ALICE.id, 1), "nonce", "sign with nonce 2"),
        ([link(ALICE.id, 1)], revoke(BOB.id, 2), "member", "backs account"),
        ([link(ALICE.id, 1), revoke(ALICE.id, 2)], revoke(ALICE.id, 3), "member", "revoked already"),
        ([link(ALICE.id, 1), revoke(ALICE.id, 2)], end(ALICE.id, 1), "member", "no revoke"),
        ([link(ALICE.id, 1), revoke(ALICE.id, 2)], link(ALICE.id, 2), "nonce", "sign with nonce 3"),
        ([link(ALICE.id, 1), revoke(ALICE.id, 2), end(ALICE.id, 2)], end(ALICE.id, 2), "member", "no revoke"),
        # What was recorded once cannot be replayed after the end.
        ([link(ALICE.id, 1), revoke(ALICE.id, 2), end(ALICE.id, 2)], link(ALICE.id, 1), "nonce", "nonce 3"),
    ],
)
async def test_what_may_not_follow_is_refused(
    store: SqlStore, before: list[LinkRecord], entry: LinkRecord, field: str, says: str
) -> None:
    for earlier in before:
        await store.append_link(earlier)
    with pytest.raises(ConflictError, match=says) as caught:
        await store.append_link(entry)
    assert caught.value.field == field
    assert len(await store.links()) == len(before)


async def test_one_controller_cannot_use_up_the_nonces_of_another(store: SqlStore) -> None:
    for entry in (link(ALICE.id, 1), revoke(ALICE.id, 2**64 - 1), end(ALICE.id, 2**64 - 1), link(BOB.id, 1)):
        await store.append_link(entry)
    assert (await store.account(BOB.id)).links == (MEMBER,)


async def test_after_an_end_one_of_many_takes_the_address(store: SqlStore, tmp_path: Path) -> None:
    """Two processes append ends, links and revokes at once; whatever wins, the log makes sense from its start."""
    for entry in (link(ALICE.id, 1), revoke(ALICE.id, 2)):
        await store.append_link(entry)
    other = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    attempts = [end(ALICE.id, 2), link(ALICE.id, 3), link(BOB.id, 1), link(BOB.id, 2), revoke(ALICE.id, 4)]
    outcomes = await asyncio.gather(
        *(one.append_link(entry) for entry in attempts for one in (store, other)), return_exceptions=True
    )
    await other.close()
    assert {type(outcome) for outcome in outcomes} <= {LinkRecord, ConflictError}
    log = await store.links()
    assert [entry.position for entry in log] == list(range(1, len(log) + 1))
    holders: set[str] = set()
    for i in range(1, len(log) + 1):
        held = backings(log[:i]).get(MEMBER)
        holders |= {held.link.account} if held else set()
        if log[i - 1].kind == "link":
            assert held is not None
            assert held.link == log[i - 1], "a link in the log had no effect"
    assert (len([e for e in log if e.kind == "end"]), len(holders)) in {(0, 1), (1, 1), (1, 2)}


async def test_the_time_of_an_entry_is_taken_when_nobody_else_can_write(store: SqlStore, tmp_path: Path) -> None:
    """Else it might be committed long after its time, and whoever read the log in between would seem to hide it."""
    times: list[float] = []

    def now() -> float:
        times.append(CUT_TIME + 7.9)
        return times[-1]

    writer = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.append_link(link(ALICE.id, 1), now))
    await asyncio.sleep(0.2)
    assert times == []
    writer.execute("COMMIT")
    writer.close()
    assert (await waiting).recorded_at == CUT_TIME + 7


async def test_times_rise_with_positions_when_a_clock_steps_back(store: SqlStore) -> None:
    first = await store.append_link(link(ALICE.id, 1), lambda: CUT_TIME + 30)
    second = await store.append_link(revoke(ALICE.id, 2), lambda: CUT_TIME + 10)
    assert (first.recorded_at, second.recorded_at) == (CUT_TIME + 30, CUT_TIME + 30)
    assert await store.links() == (first, second)


async def test_what_expires_before_it_is_written_is_refused(store: SqlStore) -> None:
    brief = link(ALICE.id, 1)._replace(expiry=CUT_TIME + 5)
    with pytest.raises(InputError, match="has passed") as caught:
        await store.append_link(brief, lambda: CUT_TIME + 5)
    assert caught.value.field == "expiry"
    assert await store.links() == ()
    await store.append_link(brief, lambda: CUT_TIME + 4.9)
    await store.append_link(revoke(ALICE.id, 2), lambda: CUT_TIME + 4)
    late = end(ALICE.id, 2)._replace(expiry=CUT_TIME + 5)
    assert (await store.append_link(late, lambda: CUT_TIME + 99)).recorded_at == CUT_TIME + 99, "it was signed in time"


def migrate(path: Path, revision: str, *, down: bool = False) -> None:
    """Bring a database to one revision of the schema."""
    config = Config()
    config.set_main_option("script_location", str(Path(aggregator.store.__file__).with_name("migrations")))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)
    engine.dispose()


async def test_links_of_the_version_before_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    migrate(path, "0003")
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(
            text("INSERT INTO account VALUES (:id, :salt, :controller, 'risk-bearing', :home, 'alice')"),
            {"id": ALICE.id, "salt": "0x" + "00" * 32, "controller": ALICE.controller, "home": ALICE.home},
        )
        connection.execute(
            text("INSERT INTO link VALUES (1, :account, :controller, :member, :one, :expiry, '0xaa', '0xbb', 7)"),
            {
                "account": ALICE.id,
                "controller": ALICE.controller,
                "member": MEMBER,
                "one": f"{1:078d}",
                "expiry": f"{9:078d}",
            },
        )
        connection.execute(
            text("INSERT INTO backing VALUES (:member, :account, :one)"),
            {"member": MEMBER, "account": ALICE.id, "one": f"{1:078d}"},
        )
    engine.dispose()
    opened = await SqlStore.open(f"sqlite:///{path}")
    assert (await opened.account("alice")).links == (MEMBER,)
    assert [(entry.kind, entry.nonce) for entry in await opened.links()] == [("link", 1)]
    await opened.append_link(revoke(ALICE.id, 2))
    await opened.close()
    migrate(path, "0003", down=True)  # a revoke is nothing the version before knows
    migrate(path, "head")
    opened = await SqlStore.open(f"sqlite:///{path}")
    account = await opened.account("alice")
    assert (account.links, account.ending) == ((MEMBER,), ())
    await opened.close()
