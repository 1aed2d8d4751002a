"""The reader of what was drawn at a Solana registry: the accounts are those of the real SVM."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_utils import keccak
from solders.pubkey import Pubkey

from adapters.solana.layouts import RawAccount, Result
from adapters.solana.programs import margin_address
from adapters.solana.registry import Registry
from aggregator.domain.budgets import Drawn
from aggregator.domain.snapshot import DEBT_UNREADABLE, Position, Subject
from tests.contracts.solana_registry_world import (
    ACCOUNT,
    EPOCH,
    NOW,
    PARAMETERS,
    RegistryWorld,
    make_leaf,
    make_set,
    post_leaf,
    sign_rotation,
)

CHAIN = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
HELD, NEW = Subject("0x" + ACCOUNT.hex(), None), Subject("0x" + keccak(b"a new account").hex(), None)


def read(
    world: RegistryWorld, subjects: tuple[Subject, ...], changes: dict[str, RawAccount | None], now: float = NOW
) -> Result:
    """Drive the reader over the world's accounts, some of them changed from the second round on."""
    flow = Registry(CHAIN, str(world.registry), PARAMETERS.epoch_seconds, lambda: now).flow(subjects)
    keys = next(flow)
    asked = 0
    while True:
        asked += 1
        answers = []
        for key in keys:
            there = world.svm.get_account(Pubkey.from_string(key))
            found = None if there is None else RawAccount(there.lamports, str(there.owner), bytes(there.data))
            answers.append(changes[key] if key in changes and asked > 1 else found)
        try:
            keys = flow.send(tuple(answers))
        except StopIteration as stop:
            result: Result = stop.value
            return result


@pytest.fixture
def world() -> RegistryWorld:
    """A registry where 600 of ACCOUNT's 1,000 have been drawn."""
    made = RegistryWorld()
    made.list_consumer()
    leaf = make_leaf(budget=1_000, flags=0)
    made.apply(leaf, post_leaf(made, leaf))
    made.draw(600)
    return made


def position(world: RegistryWorld, subject: Subject, used: int, drawn: Drawn) -> Position:
    asset = f"{CHAIN}/registry:{world.registry}"
    origin = str(world.registry)
    return Position(
        subject.account, CHAIN, "registry", asset, used, asset, used, side="debt", origin=origin, drawn=drawn
    )


def test_every_account_has_a_position(world: RegistryWorld) -> None:
    positions, findings = read(world, (HELD, NEW), {})
    drawn = Drawn(posted=EPOCH, set_id=1)
    assert positions == (position(world, HELD, 600, drawn), position(world, NEW, 0, drawn))
    assert findings == ()


def test_the_newest_epoch_and_set_are_told() -> None:
    world = RegistryWorld()
    assert read(world, (NEW,), {})[0] == (position(world, NEW, 0, Drawn(0, 1)),)
    to = make_set(2, 4, EPOCH + 10)
    world.stage(to)
    world.rotate(to, sign_rotation(to, world.id, (0, 1, 2)))
    assert read(world, (NEW,), {})[0] == (position(world, NEW, 0, Drawn(0, 2)),)


def test_an_epoch_that_cannot_be_posted_yet_may_hide_any_debt(world: RegistryWorld) -> None:
    """Believed, it would say that no budget given so far can be drawn any more."""
    latest = NOW - 2 * PARAMETERS.epoch_seconds
    assert read(world, (HELD,), {}, latest)[0][0].drawn.posted == EPOCH
    positions, findings = read(world, (HELD, NEW), {}, latest - PARAMETERS.epoch_seconds)
    assert positions == ()
    assert [(f.code, f.scope) for f in findings] == [(DEBT_UNREADABLE, s.account) for s in (HELD, NEW)]
    assert f"{EPOCH} found, the newest that can be is {EPOCH - 1}" in findings[0].detail


def test_lamports_that_a_stranger_sent_are_no_debt(world: RegistryWorld) -> None:
    key = margin_address(world.program, world.registry, bytes.fromhex(NEW.account[2:]))
    world.svm.airdrop(key, 10_000_000)
    positions, findings = read(world, (NEW,), {})
    assert (positions[0].amount, findings) == (0, ())


def test_what_cannot_be_read_may_be_any_debt(world: RegistryWorld) -> None:
    registry = str(world.registry)
    good = world.raw(world.registry)
    for bad in (
        None,
        replace(good, owner=str(Pubkey.new_unique())),
        replace(good, data=good.data[:-1]),
        replace(good, data=b"x" + good.data[1:]),
        replace(good, data=good.data[:104] + bytes([3]) + good.data[105:]),  # not its own address
    ):
        positions, findings = read(world, (HELD, NEW), {registry: bad})
        assert positions == ()
        assert [(f.code, f.scope) for f in findings] == [(DEBT_UNREADABLE, s.account) for s in (HELD, NEW)]
        assert registry in findings[0].detail
    mine = margin_address(world.program, world.registry, ACCOUNT)
    good = world.raw(mine)
    for bad in (
        replace(good, owner=str(Pubkey.new_unique())),
        replace(good, data=good.data[:-1]),
        replace(good, data=b""),
        replace(good, data=b"x" + good.data[1:]),
        replace(good, data=good.data[:8] + bytes(32) + good.data[40:]),
        replace(good, data=good.data[:40] + bytes(32) + good.data[72:]),
    ):
        positions, findings = read(world, (HELD, NEW), {str(mine): bad})
        assert [p.account for p in positions] == [NEW.account]
        assert [(f.code, f.scope) for f in findings] == [(DEBT_UNREADABLE, HELD.account)]
        assert str(mine) in findings[0].detail


def test_a_chain_without_the_registry_says_so(world: RegistryWorld) -> None:
    flow = Registry(CHAIN, str(world.registry), PARAMETERS.epoch_seconds).flow((HELD,))
    next(flow)
    with pytest.raises(StopIteration) as stop:
        flow.send((None,))
    positions, findings = stop.value.value
    assert (positions, findings[0].code) == ((), DEBT_UNREADABLE)
