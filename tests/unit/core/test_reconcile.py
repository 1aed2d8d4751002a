"""One consistent world: what is kept, what is taken out, and that each says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest

from aggregator.core.reconcile import reconcile
from aggregator.domain.snapshot import (
    DARK,
    FROZEN,
    REORGED,
    Account,
    Block,
    Carried,
    ChainView,
    Cut,
    Finding,
    Position,
    Reading,
    Snapshot,
    Subject,
)
from tests.strategies import CUT_TIME, ETH, EVM, SOL, SOLANA, account_id, chain_row, debt, position

HOLDER = "0x" + "aa" * 20
BLOCK = Block(EVM, 100, "0xb0", "0xaf", CUT_TIME - 10)
SLOT = Block(SOLANA, 900, "slot", "before", CUT_TIME - 4)
CUT = Cut(7, CUT_TIME, (BLOCK, SLOT))
ONE = Account(account_id(1), f"{EVM}:{HOLDER}", "risk-bearing", EVM, links=(f"{EVM}:{HOLDER}",))
TWO = Account(account_id(2), f"{EVM}:0x{'bb' * 20}", "monitored", EVM)
CHAINS = (chain_row(EVM), chain_row(SOLANA))


def seen(
    evm: Reading | None,
    *,
    previous: dict[str, Reading] | None = None,
    accounts: tuple[Account, ...] = (ONE, TWO),
    causes: dict[str, str] | None = None,
    cut: Cut = CUT,
) -> Snapshot:
    readings = {EVM: evm, SOLANA: Reading(SLOT, ())}
    return reconcile(cut, readings, previous or {}, accounts, CHAINS, CUT_TIME + 300, causes or {})


def evm_view(found: Snapshot) -> ChainView:
    return next(view for view in found.chains if view.chain == EVM)


def codes(found: Snapshot) -> list[str]:
    return [finding.code for finding in found.findings]


def test_a_fresh_reading_is_taken_whole_and_in_order() -> None:
    rows = (position(2, ETH, 2.0), position(1, ETH, 1.0))
    found = seen(Reading(BLOCK, rows), accounts=(TWO, ONE))
    assert found.positions == tuple(sorted(rows))
    assert found.accounts == (ONE, TWO)
    assert evm_view(found) == ChainView(EVM, "ok", "", BLOCK, 10)
    assert (found.epoch, found.cut_time, found.valid_until, found.findings) == (7, CUT_TIME, CUT_TIME + 300, ())


@pytest.mark.parametrize(("age", "status"), [(300, "ok"), (301, "stale")])
def test_a_chain_not_read_keeps_its_last_reading_until_it_is_too_old(age: int, status: str) -> None:
    last = Reading(replace_time(BLOCK, CUT_TIME - age), (position(1, ETH, 1.0),))
    found = seen(None, previous={EVM: last}, causes={EVM: "no node answers"})
    assert evm_view(found) == ChainView(EVM, status, "no node answers", last.block, age)  # type: ignore[arg-type]
    assert found.positions == last.positions


def replace_time(block: Block, time: int) -> Block:
    return block._replace(time=time)


def test_a_chain_that_answers_but_does_not_advance_is_halted() -> None:
    old = replace_time(BLOCK, CUT_TIME - 400)
    found = seen(Reading(old, ()), cut=Cut(7, CUT_TIME, (old, SLOT)))
    assert evm_view(found).status == "stale"
    assert evm_view(found).cause.startswith("halted")


def test_a_chain_never_read_is_missing() -> None:
    found = seen(None, cut=replace(CUT, gaps=((EVM, "wrong chain id"),)))
    assert evm_view(found) == ChainView(EVM, "missing", "wrong chain id")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(BLOCK._replace(hash="0xff"), id="another block"),
        pytest.param(BLOCK._replace(height=101), id="another height"),
        pytest.param(BLOCK._replace(chain=SOLANA), id="another chain"),
    ],
)
def test_a_reading_that_is_not_at_the_cut_is_refused(block: Block) -> None:
    last = Reading(replace_time(BLOCK, CUT_TIME - 70), (position(1, ETH, 1.0),))
    found = seen(Reading(block, (position(1, ETH, 50.0),)), previous={EVM: last})
    assert codes(found) == ["reading-refused"]
    assert found.positions == last.positions
    assert evm_view(found).age == 70


def test_a_block_after_the_cut_is_refused() -> None:
    late = replace_time(BLOCK, CUT_TIME + 1)
    found = seen(Reading(late, ()), cut=Cut(7, CUT_TIME, (late, SLOT)))
    assert codes(found) == ["reading-refused"]
    assert evm_view(found).status == "missing"


def test_positions_of_strangers_and_of_other_chains_are_dropped() -> None:
    rows = (position(9, ETH, 1.0), position(1, SOL, 1.0), position(1, ETH, 1.0))
    found = seen(Reading(BLOCK, rows))
    assert found.positions == rows[2:]
    assert sorted(codes(found)) == ["unknown-account", "wrong-chain"]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param([position(1, ETH, 1.0), position(1, ETH, 2.0)], 0, id="the smaller asset"),
        pytest.param([debt(1, ETH, 1.0), debt(1, ETH, 2.0)], 1, id="the larger debt"),
        pytest.param([position(1, ETH, 1.0), position(1, ETH, 1.0, pending=5)], 1, id="the one under withdrawal"),
        pytest.param([position(1, ETH, 1.0), position(1, ETH, 1.0, control="none")], 1, id="the one out of reach"),
        pytest.param([position(1, ETH, 1.0), position(1, ETH, 1.0)], 0, id="the same twice"),
    ],
)
def test_a_duplicate_counts_once_at_its_worst(rows: list[Position], kept: int) -> None:
    for order in permutations(rows):
        found = seen(Reading(BLOCK, tuple(order)))
        assert found.positions == (rows[kept],)
        assert codes(found) == ["duplicate-position"]


@pytest.mark.parametrize("make", [position, debt])
def test_two_contracts_with_one_token_are_no_duplicates(make: Callable[..., Position]) -> None:
    rows = tuple(make(1, ETH, amount, origin=origin) for amount, origin in ((1.0, "0x01"), (2.0, "0x02")))
    found = seen(Reading(BLOCK, rows))
    assert set(found.positions) == set(rows)
    assert codes(found) == []


def test_an_address_backs_one_account_only() -> None:
    thief = replace(TWO, links=(f"{EVM}:{HOLDER}",))
    rows = (
        position(1, ETH, 1.0, venue="wallet", address=HOLDER),
        position(2, ETH, 1.0, venue="wallet", address=HOLDER),
        debt(2, ETH, 0.5, address=HOLDER),
    )
    found = seen(Reading(BLOCK, rows), accounts=(thief, ONE))
    assert found.positions == (rows[0], rows[2])  # the second claim holds nothing; its debts stay
    assert [(f.code, f.scope) for f in found.findings] == [("double-claim", account_id(2))]


def test_what_was_read_of_an_address_before_its_link_ended_counts_no_more() -> None:
    """A carried reading still holds it; its holder may back somebody else by now."""
    gone = "0x" + "cc" * 20
    older = Block(EVM, 90, "0x90", "0x89", CUT_TIME - 60)
    carried = (Carried(older, (ONE.id, TWO.id)),)
    rows = tuple(
        make(n, ETH, 1.0, venue=venue, address=gone, seen=older.height)
        for n in (1, 2)
        for make, venue in ((position, "wallet"), (debt, "aave-v3"))
    )
    kept = position(1, ETH, 3.0, venue="wallet", address=HOLDER, seen=older.height)
    cut = replace(CUT, carried=carried)
    found = seen(Reading(BLOCK, (*rows, kept), carried=carried), cut=cut)
    assert set(found.positions) == {rows[1], rows[3], kept}, "assets count for nobody, debts stay"
    assert codes(found) == []
    heir = replace(TWO, links=(f"{EVM}:{gone}",))
    inherited = seen(Reading(BLOCK, (*rows, kept), carried=carried), cut=cut, accounts=(ONE, heir))
    assert set(inherited.positions) == {*rows[1:], kept}
    assert codes(inherited) == []


@pytest.mark.parametrize("state", [DARK, REORGED, FROZEN])
def test_a_chain_that_cannot_be_relied_on_is_stale_at_once(state: str) -> None:
    found = seen(Reading(BLOCK, ()), causes={EVM: f"{state}: so it is"})
    assert evm_view(found) == ChainView(EVM, "stale", f"{state}: so it is", BLOCK, 10)


@pytest.mark.parametrize("text", ["frozen: the sequencer is down", "the sequencer is down"])
def test_a_reading_says_itself_that_its_chain_is_frozen(text: str) -> None:
    for causes in ({}, {EVM: "one provider is slow"}):
        found = seen(Reading(BLOCK, (position(1, ETH, 1.0),), frozen=text), causes=causes)
        assert evm_view(found) == ChainView(EVM, "stale", "frozen: the sequencer is down", BLOCK, 10)
        assert len(found.positions) == 1
    reorged = seen(Reading(BLOCK, (), frozen=text), causes={EVM: "reorged: block 90 was replaced"})
    assert evm_view(reorged).cause.startswith(REORGED)


def test_who_was_read_does_not_depend_on_how_a_link_was_sealed() -> None:
    read = (Subject(ONE.id, None), Subject(ONE.id, HOLDER, "0xseal"), Subject(TWO.id, None))
    assert codes(seen(Reading(BLOCK, (), subjects=read))) == []
    assert codes(seen(Reading(BLOCK, (), subjects=read[::2]))) == ["not-read-yet"]


# --- carried readings -----------------------------------------------------------------------------------------------

OLD = Block(EVM, 90, "0x90", "0x89", CUT_TIME - 120)
OLDER = Block(EVM, 80, "0x80", "0x79", CUT_TIME - 310)
ANEW, SINCE_OLD, SINCE_OLDER = (
    position(1, ETH, 1.0),
    position(2, ETH, 2.0, seen=90),
    position(2, ETH, 3.0, seen=80),
)


def merged(*carried: Carried, rows: tuple[Position, ...] = (), **given: object) -> Snapshot:
    reading = Reading(BLOCK, rows, carried=carried)
    return seen(reading, cut=replace(CUT, carried=carried), **given)  # type: ignore[arg-type]


def test_a_merged_reading_has_a_view_for_every_block_it_rests_on() -> None:
    older, old = Carried(OLDER, ()), Carried(OLD, (TWO.id,))
    found = merged(older, old, rows=(SINCE_OLD, ANEW))
    assert found.positions == (ANEW, SINCE_OLD)
    assert evm_view(found) == ChainView(EVM, "ok", "", BLOCK, 10)
    assert found.carried == (
        ChainView(EVM, "stale", "last read anew 310 s before the cut", OLDER, 310),
        ChainView(EVM, "ok", "", OLD, 120),
    )
    assert codes(found) == []


@pytest.mark.parametrize("cause", ["dark: no answer", "reorged: block 95 was replaced", "frozen: sequencer down"])
def test_what_is_carried_is_stale_with_its_chain(cause: str) -> None:
    found = merged(Carried(OLD, (TWO.id,)), rows=(SINCE_OLD,), causes={EVM: cause})
    assert found.carried == (ChainView(EVM, "stale", cause, OLD, 120),)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        pytest.param(OLD._replace(height=101), "newer than the reading's own block 100", id="higher"),
        pytest.param(OLD._replace(time=BLOCK.time + 1), "newer than the reading's own block 100", id="later"),
        pytest.param(OLD._replace(time=CUT_TIME + 5), "5 s after the cut", id="after the cut"),
        pytest.param(OLD._replace(height=100), "of which there are two", id="another block at the newest height"),
        pytest.param(OLD._replace(chain=SOLANA), f"which is not on {EVM}", id="another chain"),
        pytest.param(OLD._replace(height=0), "which no position can name", id="height 0"),
    ],
)
def test_nothing_is_carried_from_a_block_that_is_not_older(block: Block, why: str) -> None:
    rows = (ANEW, position(2, ETH, 2.0, seen=block.height), debt(2, ETH, 1.0, seen=block.height))
    carried = (Carried(block, (TWO.id,)),)
    cut = replace(CUT, carried=carried if block.chain == EVM else ())
    found = seen(Reading(BLOCK, rows if block.height else rows[:1], carried=carried), cut=cut)
    if block.chain != EVM:
        assert codes(found) == ["reading-refused"]  # the cut cannot say the same
        return
    assert found.positions == (ANEW,)
    assert found.carried == ()
    assert Finding("not-read-yet", TWO.id, f"{EVM}: carried from block {block.height}, {why}") in found.findings


def test_two_blocks_at_one_height_carry_nothing() -> None:
    twin = OLD._replace(hash="0xff")
    found = merged(Carried(OLD, (ONE.id,)), Carried(twin, (TWO.id,)), rows=(SINCE_OLD,))
    assert (found.positions, found.carried) == ((), ())
    assert {(f.code, f.scope) for f in found.findings} == {("not-read-yet", ONE.id), ("not-read-yet", TWO.id)}


@pytest.mark.parametrize(
    "carried",
    [
        pytest.param((), id="no block"),
        pytest.param((Carried(OLDER, (TWO.id,)),), id="another block"),
        pytest.param((Carried(OLD, (ONE.id,)),), id="another account"),
    ],
)
def test_a_position_carried_from_nowhere_is_dropped_and_its_account_unread(carried: tuple[Carried, ...]) -> None:
    found = merged(*carried, rows=(ANEW, SINCE_OLD))
    assert found.positions == (ANEW,)
    assert [(f.code, f.scope) for f in found.findings] == [("not-read-yet", TWO.id)]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param((), id="nothing carried"),
        pytest.param((Carried(OLD, (ONE.id, TWO.id)),), id="more accounts"),
        pytest.param((Carried(OLD._replace(hash="0xff"), (TWO.id,)),), id="another hash"),
        pytest.param((Carried(OLD, (TWO.id,)), Carried(OLDER, (ONE.id,))), id="one block more"),
    ],
)
def test_a_reading_that_does_not_carry_what_the_cut_says_is_refused(said: tuple[Carried, ...]) -> None:
    reading = Reading(BLOCK, (SINCE_OLD,), carried=(Carried(OLD, (TWO.id,)),))
    found = seen(reading, cut=replace(CUT, carried=said))
    assert codes(found) == ["reading-refused"]
    assert (found.positions, found.carried, evm_view(found).status) == ((), (), "missing")


def test_a_remembered_reading_keeps_what_it_carried() -> None:
    last = Reading(BLOCK, (ANEW, SINCE_OLD), carried=(Carried(OLD, (TWO.id,)),))
    found = seen(None, previous={EVM: last}, causes={EVM: "no node answers"})
    assert found.positions == (ANEW, SINCE_OLD)
    assert found.carried == (ChainView(EVM, "ok", "no node answers", OLD, 120),)


def test_a_duplicate_counts_at_the_older_block() -> None:
    rows = (position(2, ETH, 2.0), SINCE_OLD, position(2, ETH, 2.5, seen=80))
    for order in permutations(rows):
        found = merged(Carried(OLDER, (TWO.id,)), Carried(OLD, (TWO.id,)), rows=order)
        assert found.positions == (SINCE_OLD._replace(seen=80),)


# --- links that end -------------------------------------------------------------------------------------------------


def test_an_ending_link_takes_its_assets_along_and_leaves_its_debts() -> None:
    rows = (
        position(1, ETH, 1.0),
        position(1, ETH, 2.0, venue="wallet", address=HOLDER),
        debt(1, ETH, 0.5, address=HOLDER),
    )
    leaving = replace(ONE, ending=ONE.links)
    assert seen(Reading(BLOCK, rows)).positions == tuple(sorted(rows))
    found = seen(Reading(BLOCK, rows), accounts=(leaving, TWO))
    assert found.positions == tuple(sorted((rows[0], rows[2])))
    assert [(f.code, f.scope) for f in found.findings] == [("link-ending", ONE.id)]
    assert f"{EVM}:{HOLDER}" in found.findings[0].detail


def test_an_ending_link_frees_its_address_for_nobody_yet() -> None:
    leaving, other = replace(ONE, ending=ONE.links), replace(TWO, links=ONE.links)
    rows = tuple(position(n, ETH, 1.0, venue="wallet", address=HOLDER) for n in (1, 2))
    found = seen(Reading(BLOCK, rows), accounts=(other, leaving))
    assert found.positions == ()
    assert {(f.code, f.scope) for f in found.findings} == {("double-claim", TWO.id), ("link-ending", ONE.id)}
