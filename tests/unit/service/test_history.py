"""Histories that change: reorganisations above and below finality, supersession, halts, carried readings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import RefusedError
from aggregator.domain.report import Flag
from aggregator.domain.snapshot import FROZEN, REORGED, Carried, Reorg
from aggregator.service.memory import last_read, restore
from tests.unit.service.test_cycle import leaves_of, margin_of, view_of
from tests.worlds.documents import ALPHA, BETA, BETA_USDC, SOL, USDC, WETH
from tests.worlds.world import DOLLAR, ETHER, FIRST_EPOCH, SimulatedWorld, loan, vault

ROUND = 4  # epochs in which everybody is read anew


@pytest.fixture
async def deep(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    """A world whose EVM chains promise more below their finality."""

    def adapt(document: dict[str, Any]) -> None:
        for row in document["chains"][:2]:
            row["irreversible"] = {"depth": 8}

    async with SimulatedWorld(tmp_path, adapt=adapt) as world:
        yield world


@pytest.fixture
async def carrying(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    """A world in which an account that nothing touches is read every fourth epoch."""
    async with SimulatedWorld(tmp_path, {"service": {"reread_epochs": ROUND, "full_read_below": 0}}) as world:
        yield world


def cut_of(record: EpochRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(record.preimages["cut"])
    return found


def verify_certified(record: EpochRecord) -> None:
    """Nobody disagreed; a busy machine may make somebody late."""
    assert record.attestations, record.refusals
    assert all(why.startswith("late: ") for _, why, *_ in record.refusals), record.refusals


async def run_to(world: SimulatedWorld, first: int, last: int) -> EpochRecord:
    for number in range(first, last + 1):
        record = await world.epoch(number)
    return record


# A1: certified, and gone


async def test_a_reorganisation_of_a_certified_block_is_answered_by_a_floor(deep: SimulatedWorld) -> None:
    accounts = await deep.populate()
    first = await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    gone = view_of(first, ALPHA).block
    assert gone is not None
    deep.chains[ALPHA].put(vault(accounts["ada"].id, WETH, 4 * ETHER), loan(accounts["ada"].id, USDC, 3_000 * DOLLAR))
    deep.chains[ALPHA].reorg(6)
    record = await deep.epoch(FIRST_EPOCH + 4)
    verify_certified(record)
    assert record.header.floor == record.header.epoch, "everything certified before is void"
    (reorg,) = cut_of(record)["reorgs"]
    assert (reorg["chain"], reorg["height"], reorg["was"]) == (ALPHA, gone.height, gone.hash)
    assert reorg["now"] != gone.hash
    assert view_of(record, ALPHA).status == "ok", "no irreversible block changed: the chain is read afresh"
    assert margin_of(record, accounts["ada"]).equity < margin_of(first, accounts["ada"]).equity
    again = await deep.epoch(FIRST_EPOCH + 5)
    verify_certified(again)
    assert again.header.floor == record.header.floor, "answered once"
    assert cut_of(again)["reorgs"] == []


async def test_a_deposit_that_a_reorganisation_removes_is_not_counted(deep: SimulatedWorld) -> None:
    accounts = await deep.populate()
    ada = accounts["ada"].id
    before = await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    held = deep.chains[ALPHA].states[-1]
    deep.chains[ALPHA].put(*held, vault(ada, WETH, 90 * ETHER, origin="elsewhere"))
    rich = await run_to(deep, FIRST_EPOCH + 4, FIRST_EPOCH + 6)
    assert margin_of(rich, accounts["ada"]).equity > margin_of(before, accounts["ada"]).equity
    deep.chains[ALPHA].put(*held)
    deep.chains[ALPHA].reorg(7)
    record = await deep.epoch(FIRST_EPOCH + 7)
    assert record.header.floor == record.header.epoch
    assert {c.position.amount for c in margin_of(record, accounts["ada"]).components if c.position.asset == WETH} == {
        10 * ETHER
    }
    others = [m for m in record.margins if m.account != ada]
    assert [m.equity for m in others] != []


async def test_a_reorganisation_of_blocks_nobody_pinned_changes_nothing(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    deep.chains[ALPHA].reorg(2)
    record = await deep.epoch(FIRST_EPOCH + 4)
    verify_certified(record)
    assert record.header.floor == 0
    assert cut_of(record)["reorgs"] == []


def settle(world: SimulatedWorld, record: EpochRecord) -> None:
    """Tell everybody that ``record`` is certified, as the next proposal would."""
    for observer in world.observers.values():
        observer.certified(record.digest, record.header.epoch, record.header.floor)


async def test_an_attestor_names_a_reorganisation_that_the_cut_conceals(deep: SimulatedWorld) -> None:
    await deep.populate()
    settle(deep, await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3))
    deep.chains[ALPHA].reorg(6)
    deep.tick(FIRST_EPOCH + 4)
    known = await deep.store.accounts()
    seen = await deep.observers["coordinator"].collect(FIRST_EPOCH + 4, deep.cut_time, known)
    (named,) = seen.cut.reorgs
    assert named.chain == ALPHA
    with pytest.raises(RefusedError, match="reorg-unnamed"):
        await deep.observers["attestor-0"].collect_at(replace(seen.cut, reorgs=()), known)
    # A floor voids what everybody relies on: nothing but what was certified, and is gone, may raise it.
    certified = view_of(await deep.store.epoch(), BETA).block  # type: ignore[arg-type]
    assert certified is not None
    for invented, problem in (
        (Reorg(BETA, 3, deep.chains[BETA].blocks[3].hash, "0x" + "00" * 32), "no statement known"),
        (Reorg(BETA, 10**12, "0x" + "11" * 32, ""), "no statement known"),
        (Reorg(BETA, certified.height, certified.hash, "0x" + "00" * 32), "is 0x"),
    ):
        with pytest.raises(RefusedError, match=f"reorg: {BETA}: .*{problem}"):
            await deep.observers["attestor-1"].collect_at(replace(seen.cut, reorgs=(named, invented)), known)
    lie = replace(seen.cut, reorgs=(named._replace(now="0x" + "00" * 32),))
    with pytest.raises(RefusedError, match=f"reorg: {ALPHA}"):
        await deep.observers["attestor-1"].collect_at(lie, known)
    with pytest.raises(RefusedError, match="names a chain twice"):
        await deep.observers["attestor-1"].collect_at(replace(seen.cut, reorgs=(named, named)), known)
    await deep.observers["attestor-2"].collect_at(seen.cut, known)


async def test_whoever_notices_late_does_not_ask_for_another_answer(deep: SimulatedWorld) -> None:
    """The old history was all that one attestor's node had while the others answered the reorganisation."""
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    deep.chains[ALPHA].reorg(6)
    deep.readers["attestor-3"][ALPHA].dark = True
    answered = await deep.epoch(FIRST_EPOCH + 4)
    assert answered.header.floor == answered.header.epoch
    deep.readers["attestor-3"][ALPHA].dark = False
    for number in (5, 6, 7):
        record = await deep.epoch(FIRST_EPOCH + number)
        verify_certified(record)
        assert record.header.floor == answered.header.floor


async def test_a_history_that_comes_back_is_no_reorganisation(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    chain = deep.chains[ALPHA]
    before = list(chain.blocks), list(chain.states), list(chain.quotes)
    chain.reorg(6)
    for reader in deep.everyone(SOL):
        reader.wrong_chain = True  # something else fails the epoch in which everybody noticed
    known = await deep.store.accounts()
    deep.tick(FIRST_EPOCH + 4)
    for name in ("coordinator", "attestor-0"):
        seen = await deep.observers[name].collect(FIRST_EPOCH + 4, deep.cut_time, known)
        assert [r.chain for r in seen.cut.reorgs] == [ALPHA]
    for reader in deep.everyone(SOL):
        reader.wrong_chain = False
    chain.blocks, chain.states, chain.quotes = before
    for number in (5, 6):
        record = await deep.epoch(FIRST_EPOCH + number)
        verify_certified(record)
        assert (record.header.floor, cut_of(record)["reorgs"]) == (0, [])


async def test_nodes_that_fall_behind_have_replaced_nothing(deep: SimulatedWorld) -> None:
    """What is not there (any more) may only be late: a floor or a halt needs another block in its place."""
    await deep.populate()
    first = await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 4)
    for reader in deep.everyone(ALPHA):
        reader.behind = 9
    record = await deep.epoch(FIRST_EPOCH + 5)
    verify_certified(record)
    assert (record.header.floor, cut_of(record)["reorgs"]) == (0, [])
    assert view_of(record, ALPHA).block == view_of(first, ALPHA).block
    for reader in deep.everyone(ALPHA):
        reader.behind = 0
    record = await deep.epoch(FIRST_EPOCH + 6)
    verify_certified(record)
    assert (view_of(record, ALPHA).status, record.header.floor) == ("ok", 0)
    assert await deep.halts.log() == ()


async def test_an_attestor_that_missed_the_answer_goes_on_with_the_next_epoch(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    deep.chains[ALPHA].reorg(6)
    deep.readers["attestor-3"][SOL].hangs = True  # what it knows of alpha is not asked
    answered = await deep.epoch(FIRST_EPOCH + 4)
    assert len(answered.attestations) == 3
    deep.readers["attestor-3"][SOL].hangs = False
    record = await run_to(deep, FIRST_EPOCH + 5, FIRST_EPOCH + 6)
    verify_certified(record)


# A2: below finality


async def test_a_reorganisation_below_finality_halts_the_chain_until_it_is_resumed(
    deep: SimulatedWorld,
) -> None:
    accounts = await deep.populate()
    before = await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 6)
    deep.chains[ALPHA].put(vault(accounts["ada"].id, WETH, 50 * ETHER))
    deep.chains[ALPHA].reorg(20)
    record = await deep.epoch(FIRST_EPOCH + 7)
    verify_certified(record)
    view = view_of(record, ALPHA)
    assert (view.status, view.block) == ("stale", view_of(before, ALPHA).block)
    assert view.cause.startswith(f"{REORGED} below finality: block")
    assert record.header.floor == record.header.epoch
    ada, cleo = margin_of(record, accounts["ada"]), margin_of(record, accounts["cleo"])
    assert ada.flags & Flag.HALTED_CHAIN
    (weth,) = [c for c in ada.components if c.position.asset == WETH]
    assert (weth.counted_initial, weth.counted_maintenance) == (0, 0)
    assert ada.free_collateral < margin_of(before, accounts["ada"]).free_collateral
    assert any(leaf.budget > 0 for leaf in leaves_of(record, accounts["cleo"])), "it holds nothing there"
    assert cleo.flags == margin_of(before, accounts["cleo"]).flags
    # It stays so, also for a service that was killed and came back.
    await deep.restart()
    record = await run_to(deep, FIRST_EPOCH + 8, FIRST_EPOCH + 9)
    verify_certified(record)
    assert view_of(record, ALPHA).cause == view.cause
    assert {h.party for h in await deep.halts.log()} == {"coordinator", *(f"attestor-{i}" for i in range(4))}
    # An operator has looked.
    await deep.halts.resume(ALPHA, "the fork is the chain's own, announced", "ops", int(deep.clock.now()))
    record = await deep.epoch(FIRST_EPOCH + 10)
    verify_certified(record)
    assert view_of(record, ALPHA).status == "ok"
    ada = margin_of(record, accounts["ada"])
    assert {c.position.amount for c in ada.components if c.position.asset == WETH} == {50 * ETHER}


async def test_a_halt_that_only_the_proposer_claims_is_refused(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    deep.tick(FIRST_EPOCH + 4)
    known = await deep.store.accounts()
    seen = await deep.observers["coordinator"].collect(FIRST_EPOCH + 4, deep.cut_time, known)
    claimed = replace(seen.cut, gaps=((ALPHA, f"{REORGED} below finality: so they say"),))
    with pytest.raises(RefusedError, match=r"reorged: .*sees no block replaced"):
        await deep.observers["attestor-0"].collect_at(claimed, known)


async def test_a_halt_of_one_party_costs_its_chain_and_no_more(deep: SimulatedWorld) -> None:
    """What is irreversible depends on when one looked: only some may find such a block replaced."""
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 6)
    for name in ("attestor-1", "attestor-2"):  # they have older blocks for irreversible
        memory = deep.observers[name]._memory[ALPHA]
        memory.irreversible = deep.chains[ALPHA].blocks[10]
        memory.pins.clear()
    deep.chains[ALPHA].reorg(12)
    record = await deep.epoch(FIRST_EPOCH + 7)
    verify_certified(record)
    assert len(record.attestations) == 4
    assert view_of(record, ALPHA).cause.startswith(REORGED)
    assert {h.party for h in await deep.halts.log()} == {"coordinator", "attestor-0", "attestor-3"}
    record = await deep.epoch(FIRST_EPOCH + 8)
    verify_certified(record)
    await deep.halts.resume(ALPHA, "seen", "ops", 1)
    verify_certified(await deep.epoch(FIRST_EPOCH + 9))


async def test_the_coordinator_yields_to_attestors_that_saw_more(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 6)
    memory = deep.observers["coordinator"]._memory[ALPHA]
    memory.irreversible = deep.chains[ALPHA].blocks[10]
    memory.pins.clear()
    deep.chains[ALPHA].reorg(12)
    refused = await deep.epoch(FIRST_EPOCH + 7)
    assert not refused.attestations
    record = await deep.epoch(FIRST_EPOCH + 8)
    verify_certified(record)
    assert view_of(record, ALPHA).cause.startswith(REORGED)


async def test_a_halt_that_could_not_be_written_is_no_resume(
    deep: SimulatedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 6)
    deep.chains[ALPHA].reorg(20)
    write = deep.halts.halt

    async def full(*_: object) -> NoReturn:
        raise OSError(28, "no space left")

    monkeypatch.setattr(deep.halts, "halt", full)
    with pytest.raises(OSError, match="no space"):
        await deep.epoch(FIRST_EPOCH + 7)
    monkeypatch.setattr(deep.halts, "halt", write)
    for number in (8, 9):
        record = await deep.epoch(FIRST_EPOCH + number)
    assert view_of(record, ALPHA).cause.startswith(REORGED)
    assert any(h.party == "coordinator" for h in await deep.halts.log())


async def test_a_chain_resumed_while_the_service_was_stopped_is_read_afresh(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 6)
    deep.chains[ALPHA].reorg(20)
    await run_to(deep, FIRST_EPOCH + 7, FIRST_EPOCH + 8)
    await deep.halts.resume(ALPHA, "seen", "ops", 1)
    await deep.restart()
    record = await deep.epoch(FIRST_EPOCH + 9)
    verify_certified(record)
    assert view_of(record, ALPHA).status == "ok"


async def test_nobody_freezes_a_chain_by_saying_so(deep: SimulatedWorld) -> None:
    await deep.populate()
    await run_to(deep, FIRST_EPOCH, FIRST_EPOCH + 3)
    deep.tick(FIRST_EPOCH + 4)
    known = await deep.store.accounts()
    seen = await deep.observers["coordinator"].collect(FIRST_EPOCH + 4, deep.cut_time, known)
    with pytest.raises(RefusedError, match="frozen: "):
        await deep.observers["attestor-0"].collect_at(
            replace(seen.cut, gaps=((ALPHA, f"{FROZEN}: so they say"),)), known
        )
    with pytest.raises(RefusedError, match="cut: "):
        await deep.observers["attestor-0"].collect_at(replace(seen.cut, gaps=((ALPHA, "x" * 10_000),)), known)


# Carried readings


async def test_what_nothing_touches_is_carried_at_its_age(carrying: SimulatedWorld) -> None:
    accounts = await carrying.populate()
    records = [await carrying.epoch(number) for number in range(FIRST_EPOCH, FIRST_EPOCH + 2 * ROUND)]
    for record in records:
        verify_certified(record)
    assert any(cut_of(record)["carried"] for record in records)
    ages = [
        next(c.age for c in margin_of(record, accounts["ada"]).components if c.position.asset == WETH)
        for record in records
    ]
    fresh = view_of(records[-1], ALPHA).age
    assert min(ages) == fresh
    assert max(ages) > fresh, "a carried position shows the age of the block it was read at"
    asked = [len(subjects) for subjects in carrying.readers["coordinator"][ALPHA].asked]
    assert min(asked[1:]) < asked[0], "not everybody is read in every epoch"


async def test_what_a_log_touches_is_read_at_once(carrying: SimulatedWorld) -> None:
    accounts = await carrying.populate()
    await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + 2)
    ada = accounts["ada"].id
    carrying.chains[ALPHA].put(vault(ada, WETH, 7 * ETHER), loan(ada, USDC, 3_000 * DOLLAR))
    record = await run_to(carrying, FIRST_EPOCH + 3, FIRST_EPOCH + 5)
    amounts = {c.position.amount for c in margin_of(record, accounts["ada"]).components if c.position.asset == WETH}
    assert amounts == {7 * ETHER}


@pytest.mark.parametrize("trouble", ["deaf", "untold"])
async def test_a_missed_log_costs_freshness_and_no_more(carrying: SimulatedWorld, trouble: str) -> None:
    accounts = await carrying.populate()
    await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + 2)
    for reader in carrying.everyone(ALPHA):
        setattr(reader, trouble, True)
    ada = accounts["ada"].id
    carrying.chains[ALPHA].put(vault(ada, WETH, 7 * ETHER), loan(ada, USDC, 3_000 * DOLLAR))
    late = 0
    for number in range(FIRST_EPOCH + 3, FIRST_EPOCH + 3 + 2 * ROUND):
        record = await carrying.epoch(number)
        verify_certified(record)
        (leg,) = [c for c in margin_of(record, accounts["ada"]).components if c.position.asset == WETH]
        if leg.position.amount != 7 * ETHER:
            late += 1
            truth = carrying.chains[ALPHA].states[leg.position.seen or view_of(record, ALPHA).block.height]  # type: ignore[union-attr]
            assert leg.position.amount in {p.amount for p in truth}, "true at the block it names"
    assert late <= ROUND + 1
    assert leg.position.amount == 7 * ETHER, "the rolling sample found it"


async def test_an_attestor_follows_the_partition_and_bounds_it(carrying: SimulatedWorld) -> None:
    await carrying.populate()
    await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + 2)
    carrying.tick(FIRST_EPOCH + 3)
    known = await carrying.store.accounts()
    seen = await carrying.observers["coordinator"].collect(FIRST_EPOCH + 3, carrying.cut_time, known)
    assert seen.cut.carried
    mine = await carrying.observers["attestor-0"].collect_at(seen.cut, known)
    for chain, reading in seen.readings.items():
        assert reading is not None
        other = mine.readings[chain]
        assert other is not None
        assert sorted(other.positions) == sorted(reading.positions)
    ancient = Carried(carrying.chains[ALPHA].blocks[1], (known[0].id,))
    rest = tuple(c for c in seen.cut.carried if c.block.chain != ALPHA)
    with pytest.raises(RefusedError, match="carried-too-old"):
        await carrying.observers["attestor-1"].collect_at(replace(seen.cut, carried=(ancient, *rest)), known)
    stranger = Carried(seen.cut.carried[0].block, ("0x" + "77" * 32,))
    with pytest.raises(RefusedError, match="carried: "):
        await carrying.observers["attestor-2"].collect_at(replace(seen.cut, carried=(stranger,)), known)


async def test_nobody_is_carried_from_before_what_is_certified(carrying: SimulatedWorld) -> None:
    """Else a loan that a certified epoch shows could be hidden again for a round."""
    await carrying.populate()
    settle(carrying, await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + ROUND))
    carrying.tick(FIRST_EPOCH + ROUND + 1)
    known = await carrying.store.accounts()
    seen = await carrying.observers["coordinator"].collect(FIRST_EPOCH + ROUND + 1, carrying.cut_time, known)
    newest = carrying.observers["attestor-0"]._memory[ALPHA].agreed
    assert newest is not None
    account, block = max(last_read(newest).items(), key=lambda item: item[1].height)
    older = carrying.chains[ALPHA].blocks[block.height - 1]
    others = tuple(
        Carried(c.block, rest)
        for c in seen.cut.carried
        if (rest := tuple(a for a in c.accounts if c.block.chain != ALPHA or a != account))
        and c.block.height != older.height
    )
    moved = tuple(sorted((*others, Carried(older, (account,))), key=lambda c: (c.block.chain, c.block.height)))
    with pytest.raises(RefusedError, match="carried-regresses"):
        await carrying.observers["attestor-0"].collect_at(replace(seen.cut, carried=moved), known)


async def test_whoever_was_away_comes_back_though_old_blocks_are_pruned(carrying: SimulatedWorld) -> None:
    await carrying.populate()
    await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + 1)
    reader = carrying.readers["attestor-3"][ALPHA]
    reader.dark = True
    await run_to(carrying, FIRST_EPOCH + 2, FIRST_EPOCH + 1 + ROUND)
    reader.dark, reader.pruned_before = False, carrying.chains[ALPHA].head.height - 3
    signed = [
        {a.index for a in (await carrying.epoch(number)).attestations}
        for number in range(FIRST_EPOCH + 2 + ROUND, FIRST_EPOCH + 4 + 3 * ROUND)
    ]
    assert 3 in signed[-1]


async def test_what_is_carried_survives_a_restart(carrying: SimulatedWorld) -> None:
    accounts = await carrying.populate()
    await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + 2)
    kept = await carrying.store.readings("coordinator")
    before = carrying.observers["coordinator"].last
    for chain, parts in kept.items():
        merged = restore(parts)
        assert sorted(merged.positions) == sorted(before[chain].positions)
        assert merged.carried == before[chain].carried
    await carrying.restart()
    record = await carrying.epoch(FIRST_EPOCH + 3)
    verify_certified(record)
    assert margin_of(record, accounts["ada"]).equity > 0
    asked = carrying.readers["coordinator"][BETA].asked
    assert len(asked[-1]) < len(asked[0])


async def test_new_links_are_read_at_once(carrying: SimulatedWorld) -> None:
    accounts = await carrying.populate()
    await run_to(carrying, FIRST_EPOCH, FIRST_EPOCH + 1)
    dora = await carrying.book.open_account(carrying.bob.address, "0x" + "99" * 32, "risk-bearing", None, "dora")
    carrying.chains[BETA].put(vault(dora.id, BETA_USDC, 70 * DOLLAR), vault(accounts["ada"].id, BETA_USDC, DOLLAR))
    record = await run_to(carrying, FIRST_EPOCH + 2, FIRST_EPOCH + 4)
    assert margin_of(record, dora).equity == pytest.approx(70 * 10**8, rel=0.01)
