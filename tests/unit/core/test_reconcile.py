"""One consistent world: what is kept, what is taken out, and that each says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest

from aggregator.core.reconcile import reconcile
from aggregator.domain.snapshot import Account, Block, ChainView, Cut, Position, Reading, Snapshot
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


def test_two_readers_of_one_address_without_links_do_not_double_it() -> None:
    rows = tuple(position(n, ETH, 1.0, venue="wallet", address="0x" + "cc" * 20) for n in (2, 1))
    found = seen(Reading(BLOCK, rows))
    assert found.positions == (rows[1],)
    assert codes(found) == ["double-claim"]
