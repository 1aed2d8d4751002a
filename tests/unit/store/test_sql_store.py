"""The store on real SQLite files: what goes in comes out bit for bit, rules hold under races, the log is kept."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, event

from aggregator.domain.certificate import LinkRecord, Posting, Refusal
from aggregator.domain.errors import ConflictError, InputError, RefusedError, UnknownError
from aggregator.domain.report import Flag, Haircuts
from aggregator.domain.snapshot import Carried
from aggregator.store import SqlStore
from aggregator.store.tables import U256, Table
from tests.api.synthetic_epochs import (
    CHAIN_A,
    CHAIN_B,
    CUT_TIME,
    UNKNOWN_PRICE,
    account_id,
    make_account,
    make_component,
    make_margin,
    make_reading,
    make_record,
)

ALICE, BOB = make_account("alice"), make_account("bob", kind="monitored")
MEMBER = f"{CHAIN_A}:0x{'22' * 20}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(f"sqlite:///{path}")
    yield opened
    await opened.close()


def make_link(account: str = ALICE.id, *, member: str = MEMBER, nonce: int = 1) -> LinkRecord:
    return LinkRecord(0, account, ALICE.controller, member, nonce, 2**64 - 1, "0x" + "aa" * 65, "0xbb", CUT_TIME)


# opening


async def test_opening_migrates_and_opening_again_keeps_everything(store: SqlStore, path: Path) -> None:
    await store.add_account(ALICE, bytes(32))
    again = await SqlStore.open(f"sqlite+aiosqlite:///{path}")
    assert await again.accounts() == (ALICE,)
    await again.close()


async def test_models_and_migrations_agree(store: SqlStore, path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
    engine.dispose()


async def test_two_openers_at_once_migrate_once(path: Path) -> None:
    first, second = await asyncio.gather(SqlStore.open(f"sqlite:///{path}"), SqlStore.open(f"sqlite:///{path}"))
    await first.add_account(ALICE, bytes(32))
    assert await second.accounts() == (ALICE,)
    await first.close()
    await second.close()


async def test_a_database_of_a_newer_version_is_refused(store: SqlStore, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InputError, match=r"store: a newer version wrote it .*9999"):
        await SqlStore.open(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["nonsense", "mysql://user:hunter2@host/db"])
async def test_an_unusable_url_is_named_without_its_password(url: str) -> None:
    with pytest.raises(InputError, match=r"^store: ") as caught:
        await SqlStore.open(url)
    assert "hunter2" not in str(caught.value)


async def test_durable_and_strict_settings_are_in_force(store: SqlStore) -> None:
    async with store._engine.connect() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == value


# accounts


async def test_accounts_are_found_by_id_prefix_and_label(store: SqlStore) -> None:
    await store.add_account(ALICE, b"\x01" * 32)
    await store.add_account(BOB, b"\x02" * 32)
    for reference in (ALICE.id, ALICE.id[:10], ALICE.id[:20].upper().replace("0X", "0x"), "alice"):
        assert await store.account(reference) == ALICE
    assert await store.accounts() == tuple(sorted((ALICE, BOB), key=lambda a: a.id))
    assert await store.salt(BOB.id) == b"\x02" * 32


@pytest.mark.parametrize("reference", ["carol", ALICE.id[:9], "0x" + "0" * 64, "", "0x", "%", "alic_", "x" * 10_000])
async def test_an_unknown_account_names_the_field_and_how_to_list(store: SqlStore, reference: str) -> None:
    await store.add_account(ALICE, bytes(32))
    with pytest.raises(UnknownError) as caught:
        await store.account(reference)
    assert caught.value.field == "account"
    assert "crossmargin accounts" in caught.value.remedy


async def test_an_ambiguous_prefix_is_an_error_not_a_guess(store: SqlStore) -> None:
    twins = [make_account("x", label=name) for name in ("one", "two")]
    ids = ["0x12345678" + c * 56 for c in "ab"]
    for twin, id_ in zip(twins, ids, strict=True):
        await store.add_account(type(twin)(id_, twin.controller, twin.kind, twin.home, twin.label), bytes(32))
    with pytest.raises(InputError, match="give more digits") as caught:
        await store.account("0x12345678")
    assert caught.value.field == "account"
    assert not isinstance(caught.value, UnknownError)
    assert (await store.account("0x12345678a")).label == "one"


async def test_ids_and_labels_are_unique_and_labels_do_not_read_like_ids(store: SqlStore) -> None:
    await store.add_account(ALICE, bytes(32))
    with pytest.raises(InputError, match=r"^salt: .*exists already"):
        await store.add_account(ALICE, bytes(32))
    with pytest.raises(InputError, match=r"^label: 'alice' is taken"):
        await store.add_account(make_account("carol", label="alice"), bytes(32))
    for label in ("0x12345678", "a/b", "x" * 65, "<b>", "\ud800"):
        with pytest.raises(InputError, match=r"^label: must be 1 to 64"):
            await store.add_account(make_account("carol", label=label), bytes(32))
    for name in ("dave", "erin"):  # no label is not a label twice
        await store.add_account(make_account(name, label=""), bytes(32))


# links


async def test_links_are_logged_in_order_and_show_on_the_account(store: SqlStore) -> None:
    await store.add_account(ALICE, bytes(32))
    first = await store.append_link(make_link())
    second = await store.append_link(make_link(member=f"{CHAIN_A}:0x{'11' * 20}", nonce=2**64 - 1))
    renewed = await store.append_link(make_link(nonce=7))
    assert [link.position for link in (first, second, renewed)] == [1, 2, 3]
    assert await store.links(ALICE.id) == await store.links() == (first, second, renewed)
    assert (await store.account("alice")).links == (f"{CHAIN_A}:0x{'11' * 20}", MEMBER)


async def test_one_address_backs_one_account(store: SqlStore) -> None:
    await store.add_account(ALICE, bytes(32))
    await store.add_account(BOB, bytes(32))
    await store.append_link(make_link())
    with pytest.raises(InputError, match=f"backs account {ALICE.id}") as caught:
        await store.append_link(make_link(BOB.id, nonce=2))
    assert caught.value.field == "member"
    assert len(await store.links()) == 1


@pytest.mark.parametrize("nonce", [0, 4, 5])
async def test_nonces_only_rise(store: SqlStore, nonce: int) -> None:
    await store.add_account(ALICE, bytes(32))
    await store.append_link(make_link(nonce=5))
    with pytest.raises(InputError, match=f"{nonce} is not above 5") as caught:
        await store.append_link(make_link(nonce=nonce))
    assert caught.value.field == "nonce"


async def test_a_link_of_an_unknown_account_is_refused(store: SqlStore) -> None:
    with pytest.raises(UnknownError, match="crossmargin accounts") as caught:
        await store.append_link(make_link())
    assert caught.value.field == "account"


async def test_of_two_processes_linking_one_address_one_wins(store: SqlStore, path: Path) -> None:
    await store.add_account(ALICE, bytes(32))
    await store.add_account(BOB, bytes(32))
    other = await SqlStore.open(f"sqlite:///{path}")
    outcomes = await asyncio.gather(
        *(
            s.append_link(make_link(account, nonce=nonce))
            for nonce in range(1, 5)
            for s, account in ((store, ALICE.id), (other, BOB.id))
        ),
        return_exceptions=True,
    )
    await other.close()
    assert {type(outcome) for outcome in outcomes} <= {LinkRecord, ConflictError}
    logged = await store.links()
    assert logged
    assert len({link.account for link in logged}) == 1
    assert [link.position for link in logged] == list(range(1, len(logged) + 1))


async def test_the_whole_state_is_read_in_one_moment_whatever_its_size(store: SqlStore, path: Path) -> None:
    statements: list[str] = []

    def note(c: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    event.listen(store._engine.sync_engine, "before_cursor_execute", note)
    counts = []
    for number in range(12):
        name = f"trader {number}"
        await store.add_account(make_account(name), bytes([number]) * 32)
        await store.append_link(make_link(account_id(name), member=f"{CHAIN_A}:0x{number:040x}"))
        statements.clear()
        state = await store.state()
        accounts, links, salts = state.accounts, state.links, state.salts
        counts.append((statements.count("BEGIN"), len(statements)))
    assert len(set(counts)) == 1
    assert counts[0][0] == 1
    assert accounts == await store.accounts()
    assert links == await store.links()
    assert len(links) == 12
    assert salts == {account.id: await store.salt(account.id) for account in accounts}


# readings


async def test_readings_are_kept_per_block_while_something_is_carried_from_it(store: SqlStore) -> None:
    first, second, third = (make_reading(CHAIN_A, height) for height in (1, 2, 3))
    await store.save_readings("coordinator", [first])
    await store.save_readings("coordinator", [replace(second, carried=(Carried(first.block, (ALICE.id,)),))])
    assert await store.readings("coordinator") == {CHAIN_A: (second, first)}
    await store.save_readings("attestor-1", [third])
    await store.save_readings(
        "coordinator", [replace(third, carried=(Carried(second.block, (ALICE.id,)),)), make_reading(CHAIN_B, 9)]
    )
    kept = await store.readings("coordinator")
    assert kept == {CHAIN_A: (third, second), CHAIN_B: (make_reading(CHAIN_B, 9),)}
    await store.save_readings("coordinator", [first])  # a chain that cannot be read goes back to what was agreed
    assert (await store.readings("coordinator"))[CHAIN_A] == (first,)
    assert await store.readings("attestor-1") == {CHAIN_A: (third,)}
    assert await store.readings("nobody") == {}


# epochs


async def test_an_epoch_comes_back_exactly(store: SqlStore) -> None:
    component = make_component(
        ALICE.id, amount=2**256 - 1, value=2**128 - 1, counted_initial=2**53 + 1, **UNKNOWN_PRICE
    )
    margins = (
        make_margin(ALICE.id, 7, components=(component,), health=(0.1, None, 1e308), equity=-(2**127)),
        make_margin(BOB.id, 7, status="unknown", flags=Flag.STALE | Flag.MONITORED),
    )
    record = make_record(7, margins)
    await store.save_epoch(record)
    stored = await store.epoch(7)
    assert stored == record
    assert isinstance(stored.margins[0].flags, Flag)
    assert (await store.epochs())[0].signers == (0, 1, 2)


# Each example has its own event loop, so each opens its own store.
@settings(max_examples=25, deadline=None)
@given(
    haircut=st.tuples(*[st.floats(0, 1)] * 4),
    amount=st.integers(0, 2**256 - 1),
    health=st.one_of(st.none(), st.floats(allow_nan=False)),
)
def test_every_float_and_integer_round_trips(
    tmp_path_factory: pytest.TempPathFactory, haircut: tuple[float, ...], amount: int, health: float | None
) -> None:
    component = make_component(ALICE.id, initial=Haircuts(*haircut))
    component = component._replace(position=component.position._replace(amount=amount))
    record = make_record(1, (make_margin(ALICE.id, 1, components=(component,), health=(health, health, health)),))

    async def round_trip() -> None:
        store = await SqlStore.open(f"sqlite:///{tmp_path_factory.mktemp('round') / 'trip.db'}")
        await store.save_epoch(record)
        assert await store.epoch(1) == record
        await store.close()

    asyncio.run(round_trip())


async def test_the_newest_certified_epoch_is_the_default(store: SqlStore) -> None:
    assert await store.epoch() is None
    certified = make_record(1, (make_margin(ALICE.id, 1),))
    pending = make_record(2, (make_margin(ALICE.id, 2),), certified=False)
    await store.save_epoch(certified)
    await store.save_epoch(pending)
    assert await store.epoch() == certified
    assert await store.epoch(2) is None
    assert await store.epoch(2, certified=False) == await store.epoch(certified=False) == pending
    assert [(s.epoch, s.signers) for s in await store.epochs()] == [(2, ()), (1, (0, 1, 2))]
    assert [s.epoch for s in await store.epochs(limit=5, before=2)] == [1]


async def test_the_newest_margins_are_those_of_the_newest_epoch_that_has_some(store: SqlStore) -> None:
    """Of an epoch that was learned from others only leaves are known."""
    known, learned = make_record(1, (make_margin(ALICE.id, 1),)), make_record(2, (make_margin(ALICE.id, 2),))
    await store.save_epoch(known)
    await store.save_epoch(replace(learned, margins=()))
    await store.save_epoch(make_record(3, (make_margin(ALICE.id, 3),), certified=False))
    found = await store.margin(ALICE.id)
    assert found is not None
    assert (found[0].header.epoch, found[1]) == (1, known.margins[0])
    assert await store.margin(ALICE.id, 2) is None
    newest, whole = await store.epoch(), await store.epoch(margins=True)
    assert newest is not None
    assert whole is not None
    assert (newest.header.epoch, whole.header.epoch) == (2, 1)
    assert newest.leaves == learned.leaves


async def test_signatures_of_refusals_are_kept_and_older_ones_are_read(store: SqlStore, path: Path) -> None:
    signed = Refusal("attestor-1", "leaves: x", "0x" + "22" * 32, "0x" + "11" * 64)
    record = replace(make_record(1, (make_margin(ALICE.id, 1),)), refusals=(signed, Refusal("attestor-2", "late: x")))
    await store.save_epoch(record)
    assert await store.epoch(1) == record
    assert (await store.epochs())[0].refusals == record.refusals
    with sqlite3.connect(path) as connection:
        connection.execute("""UPDATE epoch SET refusals = '[["attestor-3", "late: x"]]'""")
    read = await store.epoch(1)
    assert read is not None
    assert read.refusals == (Refusal("attestor-3", "late: x"),)


async def test_a_certificate_alone_costs_one_row(store: SqlStore) -> None:
    assert await store.certificate() is None
    certified = make_record(1, (make_margin(ALICE.id, 1),))
    await store.save_epoch(certified)
    await store.save_epoch(make_record(2, (make_margin(ALICE.id, 2),), certified=False))
    statements: list[str] = []
    event.listen(
        store._engine.sync_engine,
        "before_cursor_execute",
        lambda c, cursor, statement, *rest: statements.append(statement),
    )
    assert await store.certificate() == await store.certificate(1) == certified.certificate
    assert await store.certificate(2) is None
    assert not any("FROM leaves" in s or "FROM margin" in s or "preimage" in s for s in statements)


async def test_an_uncertified_epoch_gives_way_and_a_certified_one_does_not(store: SqlStore) -> None:
    await store.save_epoch(make_record(1, (make_margin(ALICE.id, 1), make_margin(BOB.id, 1)), certified=False))
    final = make_record(1, (make_margin(ALICE.id, 1),))
    await store.save_epoch(final)
    await store.save_epoch(final)  # a repeat is harmless
    with pytest.raises(RefusedError, match="epoch 1 is certified as 0x"):
        await store.save_epoch(make_record(1, (make_margin(BOB.id, 1),)))
    with pytest.raises(RefusedError, match="has a quorum"):
        await store.save_epoch(make_record(1, (make_margin(ALICE.id, 1),), certified=False))
    assert await store.epoch(1) == final


async def test_one_margin_is_one_indexed_row(store: SqlStore) -> None:
    names = [f"account {i}" for i in range(30)]
    record = make_record(1, tuple(make_margin(account_id(name), 1) for name in names))
    await store.save_epoch(record)
    statements: list[tuple[str, object]] = []
    event.listen(
        store._engine.sync_engine,
        "before_cursor_execute",
        lambda c, cursor, statement, parameters, *rest: statements.append((statement, parameters)),
    )
    found = await store.margin(account_id("account 3"))
    assert found is not None
    epoch, margin = found
    assert margin == next(m for m in record.margins if m.account == account_id("account 3"))
    assert epoch.margins == (margin,)
    assert epoch.leaves == record.leaves
    reads = [(s, p) for s, p in statements if "FROM margin" in s]
    assert len(reads) == 2, "which epoch has any, and the row"
    for statement, parameters in reads:
        async with store._engine.connect() as connection:
            plan = (await connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement, parameters)).all()  # type: ignore[arg-type]
        of_margins = [str(row) for row in plan if "margin" in str(row)]
        assert of_margins
        assert all("SEARCH margin USING" in row and "INDEX" in row for row in of_margins), plan


async def test_no_margin_is_none(store: SqlStore) -> None:
    assert await store.margin(ALICE.id) is None
    await store.save_epoch(make_record(1, (make_margin(ALICE.id, 1),)))
    assert await store.margin(BOB.id) is None
    assert await store.margin(ALICE.id, 2) is None


async def test_texts_shared_by_epochs_are_stored_once(store: SqlStore, path: Path) -> None:
    for number in (1, 2, 3):
        await store.save_epoch(make_record(number, (make_margin(ALICE.id, number),)))
    with sqlite3.connect(path) as connection:
        (policies,) = connection.execute("SELECT count(*) FROM preimage WHERE content LIKE '%devnet-1%'").fetchone()
        (uses,) = connection.execute("SELECT count(*) FROM epoch_preimage WHERE name = 'policy'").fetchone()
    assert (policies, uses) == (1, 3)


async def test_pruning_keeps_the_log(store: SqlStore, path: Path) -> None:
    records = [make_record(number, (make_margin(ALICE.id, number),)) for number in range(1, 6)]
    for record in records:
        await store.save_epoch(record)
    assert await store.prune(keep_epochs=2) == 3
    assert await store.prune(keep_epochs=2) == 0
    old, kept = await store.epoch(1), await store.epoch(4)
    assert old is not None
    assert old.certificate == records[0].certificate
    assert (old.margins, old.leaves, old.preimages) == ((), (), {})
    assert kept == records[3]
    assert len(await store.epochs()) == 5
    assert await store.margin(ALICE.id, 1) is None
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM preimage WHERE content LIKE '%devnet-1%'").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM preimage WHERE content LIKE '%\"epoch\": 1,%'").fetchone() == (
            0,
        )
    with pytest.raises(InputError, match="keep at least 1"):
        await store.prune(keep_epochs=0)


async def test_an_outage_does_not_push_the_certified_epochs_out(store: SqlStore) -> None:
    certified = [make_record(number, (make_margin(ALICE.id, number),)) for number in (1, 2, 3)]
    pending = [make_record(number, (make_margin(ALICE.id, number),), certified=False) for number in range(4, 10)]
    for record in (*certified, *pending):
        await store.save_epoch(record)
    assert await store.prune(keep_epochs=2) == 1 + 4
    assert await store.epoch() == certified[2]
    assert await store.epoch(2) == certified[1]
    kept = [number for number in range(1, 10) if (found := await store.epoch(number, certified=False)) and found.leaves]
    assert kept == [2, 3, 8, 9]


async def test_a_writer_killed_mid_epoch_leaves_the_epoch_before(store: SqlStore, path: Path) -> None:
    await store.save_epoch(make_record(1, (make_margin(ALICE.id, 1),)))
    script = textwrap.dedent(
        """
        import asyncio, os, signal, sys
        from sqlalchemy import event
        from aggregator.store import SqlStore
        from tests.api.synthetic_epochs import account_id, make_margin, make_record

        async def main():
            store = await SqlStore.open("sqlite:///" + sys.argv[1])
            def kill(connection, cursor, statement, *rest):
                if "INTO leaves" in statement:  # the header and the margins are written, the commit is not
                    os.kill(os.getpid(), signal.SIGKILL)
            event.listen(store._engine.sync_engine, "after_cursor_execute", kill)
            await store.save_epoch(make_record(2, (make_margin(account_id("alice"), 2),)))

        asyncio.run(main())
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script, str(path)], env=environment, check=False)  # noqa: ASYNC221
    assert killed.returncode == -signal.SIGKILL
    survivor = await SqlStore.open(f"sqlite:///{path}")
    assert [summary.epoch for summary in await survivor.epochs()] == [1]
    await survivor.save_epoch(make_record(2, (make_margin(ALICE.id, 2),)))
    assert await survivor.margin(ALICE.id, 2) is not None
    await survivor.close()


# postings


async def test_postings_move_on_and_the_latest_landed_is_known(store: SqlStore) -> None:
    for epoch, state in ((1, "final"), (2, "confirmed"), (3, "submitted"), (4, "failed")):
        await store.save_posting(Posting(epoch, CHAIN_A, "waiting"))
        await store.save_posting(Posting(epoch, CHAIN_A, state, "0xabc", 21_000, "", CUT_TIME))  # type: ignore[arg-type]
    await store.save_posting(Posting(1, CHAIN_B, "final", "5sig"))
    latest = await store.latest_postings()
    assert {chain: posting.epoch for chain, posting in latest.items()} == {CHAIN_A: 2, CHAIN_B: 1}
    assert [p.epoch for p in await store.postings()] == [4, 3, 2, 1, 1]
    assert [p.destination for p in await store.postings(epoch=1)] == [CHAIN_A, CHAIN_B]
    assert len(await store.postings(limit=2)) == 2


# columns


@given(st.lists(st.integers(0, 2**256 - 1), min_size=1))
def test_u256_text_orders_as_the_numbers_do(values: list[int]) -> None:
    column = U256()
    texts = [column.process_bind_param(value, None) for value in values]  # type: ignore[arg-type]
    assert [column.process_result_value(text, None) for text in texts] == values  # type: ignore[arg-type]
    assert sorted(texts) == [column.process_bind_param(value, None) for value in sorted(values)]  # type: ignore[arg-type, type-var]


@pytest.mark.parametrize("value", [-1, 2**256])
def test_u256_refuses_what_it_cannot_hold(value: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        U256().process_bind_param(value, None)  # type: ignore[arg-type]
