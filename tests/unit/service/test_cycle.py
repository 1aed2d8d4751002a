"""Epochs over simulated chains that mine, fork, lie, go dark and halt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NoReturn

import pytest
from prometheus_client import REGISTRY

from aggregator.core.reconcile import reconcile
from aggregator.domain.certificate import EpochRecord, State
from aggregator.domain.errors import RefusedError
from aggregator.domain.policy import canonical_policy
from aggregator.domain.report import AccountMargin, Flag, LeafValues
from aggregator.domain.snapshot import Account, ChainView, Cut, Reading
from aggregator.service.collect import lag_allowed
from proofs.hashing import keccak256
from tests.worlds.chains import inflated, unreadable
from tests.worlds.documents import ALPHA, BETA, BETA_USDC, EPOCH_SECONDS, RPC_SECRET, SOL, WETH
from tests.worlds.world import FIRST_EPOCH, EvmPerson, SimulatedWorld

MAX_AGE = 14


def margin_of(record: EpochRecord, account: Account) -> AccountMargin:
    return next(m for m in record.margins if m.account == account.id)


def view_of(record: EpochRecord, chain: str) -> ChainView:
    return next(v for v in record.chains if v.chain == chain)


def leaves_of(record: EpochRecord, account: Account) -> list[LeafValues]:
    return [leaf for leaf in record.leaves if leaf.account == account.id]


async def test_an_epoch_is_certified_by_all_stored_and_offered(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    record = await world.epoch(FIRST_EPOCH)
    assert [a.index for a in record.attestations] == [0, 1, 2, 3]
    assert record.refusals == ()
    assert world.offered == [record]
    assert (await world.store.epoch()) == record
    assert {v.status for v in record.chains} == {"ok"}
    ada = margin_of(record, accounts["ada"])
    assert ada.status == "healthy"
    assert ada.free_collateral > 0
    home = next(leaf for leaf in ada.leaves if leaf.budget)
    assert home.budget == home.assets_initial, "a consumer holds its own debt against the budget: not charged twice"
    assert ada.free_collateral == home.assets_initial - home.requirement_initial < home.budget
    assert [leaf.budget for leaf in ada.leaves if leaf is not home] == [0, 0]
    assert margin_of(record, accounts["watched"]).flags == Flag.MONITORED
    assert all(leaf.budget == 0 for leaf in leaves_of(record, accounts["watched"]))


async def test_every_party_reads_with_its_own_eyes(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    await world.epoch(FIRST_EPOCH)
    for chain in world.chains:
        pinned = {tuple(reader.reads) for reader in world.everyone(chain)}
        assert len(pinned) == 1, "everybody reads the proposer's block"
        assert len(next(iter(pinned))) == 1


async def test_a_dead_chain_keeps_its_last_reading_and_ages(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    first = await world.epoch(FIRST_EPOCH)
    before, seen = margin_of(first, accounts["ada"]), view_of(first, BETA)
    for reader in world.everyone(BETA):
        reader.dark = True
    ages, haircuts = [], []
    for number in range(FIRST_EPOCH + 1, FIRST_EPOCH + 1 + MAX_AGE // EPOCH_SECONDS + 2):
        record = await world.epoch(number)
        assert record.attestations, record.refusals
        view, margin = view_of(record, BETA), margin_of(record, accounts["ada"])
        leg = next(c for c in margin.components if c.position.asset == BETA_USDC)
        assert leg.position.amount == 5_000 * 10**6, "the last reading, never an empty one"
        assert view.block == seen.block
        assert margin.as_of == seen.block.time if seen.block else None
        ages.append(view.age)
        haircuts.append(leg.initial.market)
        late = view.age > lag_allowed(world.readers["coordinator"][BETA].row)
        assert view.cause.startswith("dark: ") == late
        if not late and view.age <= MAX_AGE:
            assert not margin.flags & Flag.STALE
            assert margin.free_collateral > 0
        else:
            assert margin.flags & Flag.STALE
            assert (view.status, leg.counted_initial, leg.counted_maintenance) == ("stale", 0, 0)
            assert "cannot be reached" in view.cause
            assert "stale" in leg.reason
        cleo = margin_of(record, accounts["cleo"])
        assert not cleo.flags & Flag.STALE, "who does not depend on the chain goes on"
    assert ages == sorted(ages)
    assert ages[-1] > MAX_AGE
    assert haircuts == sorted(haircuts)
    assert haircuts[-1] > before.components[-1].initial.market

    for reader in world.everyone(BETA):
        reader.dark = False
    record = await world.epoch(FIRST_EPOCH + 40)
    assert view_of(record, BETA).status == "ok"
    assert not margin_of(record, accounts["ada"]).flags & Flag.STALE


async def test_an_rpc_that_never_answers_costs_its_chain_only(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    await world.epoch(FIRST_EPOCH)
    for reader in world.everyone(SOL):
        reader.hangs = True
    record = await world.epoch(FIRST_EPOCH + 1)
    assert record.attestations
    assert view_of(record, SOL).age > view_of(record, ALPHA).age
    assert margin_of(record, accounts["cleo"]).equity > 0


async def test_a_chain_that_dies_between_two_reads_stops_nobody(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    """The coordinator saw a block that no attestor will ever see: it goes back to the one they agreed on."""
    first = await world.epoch(FIRST_EPOCH)
    for name, readers in world.readers.items():
        readers[BETA].dark = name not in ("coordinator", "attestor-0")
    torn = await world.epoch(FIRST_EPOCH + 1)
    assert [who for who, why, *_ in torn.refusals if why.startswith("unreadable-block: ")] == [
        f"attestor-{i}" for i in (1, 2, 3)
    ]
    assert not torn.attestations
    for reader in world.everyone(BETA):
        reader.dark = True
    for number in (2, 3):
        record = await world.epoch(FIRST_EPOCH + number)
        assert len(record.attestations) == 4, record.refusals
        assert view_of(record, BETA).block == view_of(first, BETA).block
        assert view_of(record, BETA).age > view_of(first, BETA).age


@pytest.mark.parametrize("fault", ["dark", "wrong_chain"])
async def test_a_chain_never_read_is_missing_and_flagged(
    world: SimulatedWorld, accounts: dict[str, Account], fault: str
) -> None:
    for reader in world.everyone(BETA):
        setattr(reader, fault, True)
    record = await world.epoch(FIRST_EPOCH)
    assert record.attestations, record.refusals
    view = view_of(record, BETA)
    assert (view.status, view.block) == ("missing", None)
    assert ("cannot be reached" if fault == "dark" else "answers for chain 666") in view.cause
    for name in ("ada", "cleo"):
        margin = margin_of(record, accounts[name])
        assert margin.flags & Flag.PARTIAL, "anybody may owe something on a chain that nobody has seen"
        assert margin.status == "unknown"
        assert all(leaf.budget == 0 for leaf in margin.leaves)
    assert BETA_USDC not in {c.position.asset for c in margin_of(record, accounts["ada"]).components}


async def test_a_halted_chain_says_so(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    await world.epoch(FIRST_EPOCH)
    world.chains[BETA].halted = True
    record = await world.epoch(FIRST_EPOCH + 20)
    view = view_of(record, BETA)
    assert view.status == "stale"
    assert view.cause.startswith("halted")
    assert margin_of(record, accounts["ada"]).flags & Flag.HALTED_CHAIN
    assert not margin_of(record, accounts["cleo"]).flags & Flag.HALTED_CHAIN
    assert record.attestations, record.refusals


async def test_quotes_of_a_dead_chain_age_until_they_are_absent(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    def quotes(record: EpochRecord) -> dict[str, int]:
        listed = json.loads(record.preimages["prices"])["quotes"]
        return {q["source"]: q["publish_time"] for q in listed if q["name"] == "ETH/USD"}

    first = await world.epoch(FIRST_EPOCH)
    for reader in world.everyone(BETA):
        reader.dark = True
    record = await world.epoch(FIRST_EPOCH + 20)
    assert quotes(record)["chainlink-beta"] == quotes(first)["chainlink-beta"], "stamped when it was said"
    assert quotes(record)["chainlink-alpha"] > quotes(first)["chainlink-alpha"]
    bands = {b["feed"]: b for b in json.loads(record.preimages["risk"])["bands"]}
    assert bands["ETH/USD"]["present"] == 3
    record = await world.epoch(FIRST_EPOCH + 40)
    bands = {b["feed"]: b for b in json.loads(record.preimages["risk"])["bands"]}
    assert bands["ETH/USD"]["present"] == 2
    assert "chainlink-beta" in bands["ETH/USD"]["detail"]
    assert record.attestations


async def test_an_attestor_who_sees_less_refuses_and_three_certify(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    world.readers["attestor-2"][ALPHA].lie = lambda reading: replace(reading, positions=reading.positions[1:])
    record = await world.epoch(FIRST_EPOCH)
    assert [a.index for a in record.attestations] == [0, 1, 3]
    [(who, why, *_)] = record.refusals
    assert who == "attestor-2"
    assert why.startswith("leaves: ")
    assert "proposed" in why
    assert "found" in why


async def test_a_lying_coordinator_finds_no_quorum(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    world.readers["coordinator"][ALPHA].lie = inflated(2)
    record = await world.epoch(FIRST_EPOCH)
    assert record.attestations == ()
    assert record.certificate is None
    assert [who for who, *_ in record.refusals] == [f"attestor-{i}" for i in range(4)]
    assert all(why.startswith("leaves: ") for _, why, *_ in record.refusals)
    assert world.offered == []
    assert await world.store.epoch() is None, "what is not certified is nobody's newest"
    assert (await world.store.epoch(FIRST_EPOCH, certified=False)) == record


async def test_only_of_a_certified_epoch_is_told_what_it_was_computed_from(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    """What answers questions about the newest epoch must not know one that nobody signed."""
    told: list[int] = []
    world.cycle.on_computed = lambda computed, quotes, latency: told.append(computed.report.epoch)
    world.readers["coordinator"][ALPHA].lie = inflated(2)
    assert (await world.epoch(FIRST_EPOCH)).certificate is None
    assert told == []
    world.readers["coordinator"][ALPHA].lie = None
    assert (await world.epoch(FIRST_EPOCH + 1)).certificate is not None
    assert told == [FIRST_EPOCH + 1]


async def test_the_policy_is_committed_as_it_is_in_every_epoch(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    first, second = await world.epoch(FIRST_EPOCH), await world.epoch(FIRST_EPOCH + 1)
    text = first.preimages["policy"]
    assert keccak256(text.encode()) == first.body.policy_digest == second.body.policy_digest
    assert second.preimages["policy"] == text
    assert json.loads(text)["policy"] == json.loads(canonical_policy(world.settings.policy))
    assert list(first.preimages) == ["cut", "prices", "policy", "risk", "state"]


async def test_a_cut_without_a_visible_chain_is_refused(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    world.readers["coordinator"][BETA].dark = True
    record = await world.epoch(FIRST_EPOCH)
    assert record.attestations == ()
    for _, why, *_ in record.refusals:
        assert why.startswith("cut-omits-chain: ")
        assert BETA in why


async def test_a_cut_that_lags_is_refused(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    await world.epoch(FIRST_EPOCH)
    reader = world.readers["coordinator"][SOL]
    reader.behind = int(lag_allowed(reader.row) / reader.row.block_seconds) + 2
    record = await world.epoch(FIRST_EPOCH + 30)
    assert record.attestations == ()
    for _, why, *_ in record.refusals:
        assert why.startswith("cut-too-old: ")
        assert SOL in why


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"time": +900}, "cut-block"),  # a halted chain passed off as fresh
        ({"time": -1}, "cut-block"),
        ({"parent": "0x" + "66" * 32}, "cut-block"),
        ({"height": +2}, "cut-not-final"),
    ],
)
async def test_a_block_that_is_not_what_it_is_said_to_be_is_refused(
    world: SimulatedWorld, accounts: dict[str, Account], change: dict[str, int | str], rule: str
) -> None:
    world.tick(FIRST_EPOCH)
    known = await world.store.accounts()
    seen = await world.observers["coordinator"].collect(FIRST_EPOCH, FIRST_EPOCH * EPOCH_SECONDS, known)
    ((field, value),) = change.items()
    blocks = [
        b._replace(**{field: getattr(b, field) + value if isinstance(value, int) else value}) if b.chain == ALPHA else b
        for b in seen.cut.blocks
    ]
    with pytest.raises(RefusedError, match=rule):
        await world.observers["attestor-0"].collect_at(replace(seen.cut, blocks=tuple(blocks)), known)


async def test_a_cut_older_than_what_is_certified_is_refused(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    """Going back to before a loan would hide it."""
    known = await world.store.accounts()
    world.tick(FIRST_EPOCH)
    old = await world.observers["coordinator"].collect(FIRST_EPOCH, FIRST_EPOCH * EPOCH_SECONDS, known)
    await world.epoch(FIRST_EPOCH + 1)
    later = await world.epoch(FIRST_EPOCH + 2)
    assert later.attestations
    again = replace(old.cut, epoch=FIRST_EPOCH + 2, cut_time=(FIRST_EPOCH + 2) * EPOCH_SECONDS)
    with pytest.raises(RefusedError, match="cut-regresses"):
        await world.observers["attestor-0"].collect_at(again, known)


async def test_a_chain_only_the_coordinator_cannot_see_stops_nobody(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    await world.epoch(FIRST_EPOCH)
    world.readers["coordinator"][BETA].dark = True
    lag = int(lag_allowed(world.readers["coordinator"][BETA].row) / EPOCH_SECONDS)
    for turn in range(1, lag + 6):
        record = await world.epoch(FIRST_EPOCH + turn)
        assert len(record.attestations) == 4, (turn, record.refusals)
    [beta] = [view for view in record.chains if view.chain == BETA]
    assert beta.status == "stale"
    assert beta.cause.startswith("dark: ")


async def test_an_account_younger_than_the_last_reading_is_never_healthy(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    """Of what it holds or owes on a chain that has been dark since before it was opened nothing is known."""
    await world.epoch(FIRST_EPOCH)
    for reader in world.everyone(BETA):
        reader.dark = True
    late = await world.book.open_account(EvmPerson("late").address, "0x" + "77" * 32, "risk-bearing", None, "late")
    record = await world.epoch(FIRST_EPOCH + 1)
    assert len(record.attestations) == 4
    margin = margin_of(record, late)
    assert margin.status == "unknown"
    assert margin.flags & Flag.PARTIAL
    assert all(leaf.budget == 0 for leaf in margin.leaves)
    assert margin_of(record, accounts["ada"]).status == "healthy"


async def test_uncertified_epochs_do_not_make_attestors_forget(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    """However many epochs fail, a chain that goes dark is still known at its last certified block."""
    await world.epoch(FIRST_EPOCH)
    world.readers["coordinator"][ALPHA].lie = inflated(2)
    for turn in range(1, 6):
        assert not (await world.epoch(FIRST_EPOCH + turn)).attestations
    world.readers["coordinator"][ALPHA].lie = None
    for reader in world.everyone(BETA):
        reader.dark = True
    assert len((await world.epoch(FIRST_EPOCH + 6)).attestations) == 4


async def test_an_account_opened_while_an_epoch_runs_costs_no_quorum(
    world: SimulatedWorld, accounts: dict[str, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, opened = world.store.state, []

    async def state() -> State:
        found = await honest()
        if not opened:  # right after the coordinator looked
            opened.append(1)
            await world.book.open_account(EvmPerson("late").address, "0x" + "77" * 32, "risk-bearing", None, "late")
        return found

    monkeypatch.setattr(world.store, "state", state)
    record = await world.epoch(FIRST_EPOCH)
    assert len(record.attestations) == 4
    assert len(record.margins) == len(accounts)
    following = await world.epoch(FIRST_EPOCH + 1)
    assert len(following.margins) == len(accounts) + 1


async def test_a_link_that_nobody_signed_is_not_attested(
    world: SimulatedWorld, accounts: dict[str, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the database cannot make four attestors believe it."""
    honest = world.store.state

    async def forged() -> State:
        found = await honest()
        first = found.links[0]._replace(nonce=99)
        return replace(found, links=(first, *found.links[1:]))

    monkeypatch.setattr(world.store, "state", forged)
    record = await world.epoch(FIRST_EPOCH)
    assert record.attestations == ()
    assert all(why.startswith("state: link ") for _, why, *_ in record.refusals)


async def test_a_cut_on_a_fork_is_refused(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    """The coordinator believes a block final that the attestors' chain does not have."""
    world.tick(FIRST_EPOCH)
    seen = await world.observers["coordinator"].collect(
        FIRST_EPOCH, FIRST_EPOCH * EPOCH_SECONDS, await world.store.accounts()
    )
    world.chains[ALPHA].reorg(6)
    with pytest.raises(RefusedError, match="cut-block"):
        await world.observers["attestor-0"].collect_at(seen.cut, await world.store.accounts())


async def test_a_cut_with_a_foreign_chain_is_refused(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    cut = Cut(FIRST_EPOCH, FIRST_EPOCH * EPOCH_SECONDS, (), (("eip155:10", "never heard of"),))
    with pytest.raises(RefusedError, match=r"unknown-chain.*eip155:10"):
        await world.observers["attestor-0"].collect_at(cut, ())


async def test_without_price_updates_prices_are_unknown_and_the_epoch_is_certified(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    world.prices.dark = True
    record = await world.epoch(FIRST_EPOCH)
    assert len(record.attestations) == 4
    unknown = {f.scope for f in record.findings if f.code == "price-unknown"}
    assert unknown == {"ETH/USD", "SOL/USD", "USDC/USD"}
    for margin in record.margins:
        assert margin.flags & Flag.PARTIAL
        for leaf in margin.leaves:
            assert (leaf.assets_initial, leaf.assets_maintenance, leaf.budget) == (0, 0, 0)
    ada = margin_of(record, accounts["ada"])
    assert ada.status == "unknown"
    assert ada.leaves[0].requirement_maintenance > 0, "a debt does not vanish with its price"


async def test_a_forged_price_update_is_no_price(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    """Garbage from the publisher is like silence; nobody signs over it."""
    honest = world.prices.build

    def forged(published: object) -> bytes:
        raw = bytearray(honest(published))  # type: ignore[arg-type]
        raw[-30] ^= 1
        return bytes(raw)

    world.tick(FIRST_EPOCH)
    world.prices.build = forged  # type: ignore[method-assign, assignment]
    record = await world.cycle.run_epoch(FIRST_EPOCH)
    assert len(record.attestations) == 4
    assert json.loads(record.preimages["prices"])["updates"] == []
    assert {f.code for f in record.findings} == {"price-unknown"}


async def test_one_unreadable_position_changes_no_other_leaf(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    """Invariant 26, and: what cannot be read is flagged, not zero."""
    world.tick(FIRST_EPOCH)
    state_accounts = await world.store.accounts()
    observer = world.observers["coordinator"]
    cut_time = FIRST_EPOCH * EPOCH_SECONDS
    updates = await world.prices.fetch(cut_time)
    state = await world.store.state()

    async def leaves(who: str) -> dict[tuple[str, str], LeafValues]:
        seen = await world.observers[who].collect(FIRST_EPOCH, cut_time, state_accounts)
        quotes = (*world.prices.decode(updates, cut_time), *seen.quotes)
        computed = world.workbench.compute(seen, quotes, updates, state, observer.last)
        return {(leaf.account, leaf.destination): leaf for leaf in computed.leaves}

    whole = await leaves("coordinator")
    world.readers["attestor-0"][ALPHA].lie = unreadable(accounts["ada"].id, WETH)
    broken = await leaves("attestor-0")
    assert whole.keys() == broken.keys()
    for key, leaf in broken.items():
        if key[0] == accounts["ada"].id:
            assert leaf.flags & Flag.PARTIAL
            assert leaf.assets_maintenance < whole[key].assets_maintenance
        else:
            assert leaf == whole[key]


def _run_epochs(world: SimulatedWorld, count: int, each: Callable[[int], None]) -> tuple[asyncio.Event, list[str]]:
    """Prepare the loop to run ``count`` epochs; ``each`` is called before one. Return the stop event and problems."""
    stop, problems, first = asyncio.Event(), list[str](), FIRST_EPOCH

    def woken(now: float) -> None:
        problems.append(world.cycle.last_problem)
        number = int(now // EPOCH_SECONDS)
        if number == first + count:
            stop.set()
            return
        each(number - first)
        world.tick(number)

    each(0)
    world.tick(first)
    world.clock.woken = woken
    return stop, problems


async def test_the_loop_outlives_refusals_and_defects(
    world: SimulatedWorld, accounts: dict[str, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = world.workbench.compute

    def defect(*_: object) -> NoReturn:
        raise ZeroDivisionError(RPC_SECRET)

    def each(turn: int) -> None:
        world.readers["coordinator"][ALPHA].lie = inflated(2) if turn == 1 else None
        monkeypatch.setattr(world.workbench.__class__, "compute", defect if turn == 2 else honest.__func__)  # type: ignore[attr-defined]

    stop, problems = _run_epochs(world, 4, each)
    await world.cycle.run(stop)
    assert problems[0] == problems[3] == ""
    assert "has no quorum: 0 of the 3 signatures needed (attestor-0: leaves: " in problems[1]
    assert "ZeroDivisionError" in problems[2]
    assert RPC_SECRET not in problems[2]
    certified = [e.epoch for e in await world.store.epochs() if e.signers]
    assert certified == [FIRST_EPOCH + 3, FIRST_EPOCH]


async def test_without_accounts_the_loop_waits_and_says_for_what(world: SimulatedWorld) -> None:
    stop, problems = _run_epochs(world, 2, lambda _: None)
    await world.cycle.run(stop)
    assert [p for p in problems if "crossmargin accounts open" in p] == problems != []
    assert await world.store.epochs() == ()


async def test_the_log_links_back_over_an_uncertified_epoch(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    first = await world.epoch(FIRST_EPOCH)
    world.readers["coordinator"][ALPHA].lie = inflated(3)
    failed = await world.epoch(FIRST_EPOCH + 1)
    world.readers["coordinator"][ALPHA].lie = None
    third = await world.epoch(FIRST_EPOCH + 2)
    assert first.body.previous == bytes(32)
    assert not failed.attestations
    assert third.attestations
    assert third.body.previous == first.digest


async def test_a_restart_while_a_chain_is_down_still_certifies(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    before = await world.epoch(FIRST_EPOCH)
    assert before.attestations
    for reader in world.everyone(BETA):
        reader.dark = True
    await world.restart()
    after = await world.epoch(FIRST_EPOCH + 1)
    assert len(after.attestations) == 4
    assert {v.chain: v.cause != "" for v in after.chains}[BETA]
    assert after.body.previous == before.digest


async def test_a_chain_called_halted_that_is_not_is_refused(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    world.tick(FIRST_EPOCH)
    cut_time, known = FIRST_EPOCH * EPOCH_SECONDS, await world.store.accounts()
    seen = await world.observers["coordinator"].collect(FIRST_EPOCH, cut_time, known)
    lie = replace(seen.cut, gaps=((BETA, "halted: says the proposer"),))
    with pytest.raises(RefusedError, match="not-late"):
        await world.observers["attestor-0"].collect_at(lie, known)


async def test_after_a_restart_the_coordinator_remembers_a_dead_chain(
    world: SimulatedWorld, accounts: dict[str, Account]
) -> None:
    await world.epoch(FIRST_EPOCH)
    await world.restart()
    world.readers["coordinator"][BETA].dark = True
    seen = await world.observers["coordinator"].collect(
        FIRST_EPOCH + 1, (FIRST_EPOCH + 1) * EPOCH_SECONDS, await world.store.accounts()
    )
    reading = seen.readings[BETA]
    assert reading is not None
    assert [p.asset for p in reading.positions] == [BETA_USDC]
    assert "cannot be reached" in seen.causes[BETA]


async def test_a_reading_of_another_block_is_refused(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    world.tick(FIRST_EPOCH)
    cut_time = FIRST_EPOCH * EPOCH_SECONDS
    seen = await world.observers["coordinator"].collect(FIRST_EPOCH, cut_time, await world.store.accounts())
    other = {
        chain: replace(r, block=r.block._replace(hash="0x" + "66" * 32)) for chain, r in seen.readings.items() if r
    }
    snapshot = reconcile(
        seen.cut, other, {}, await world.store.accounts(), world.settings.chains, cut_time + 60, seen.causes
    )
    assert {v.status for v in snapshot.chains} == {"missing"}
    assert {f.code for f in snapshot.findings} == {"reading-refused"}


async def test_a_store_that_keeps_no_readings_costs_neither_epoch_nor_posting(
    world: SimulatedWorld, accounts: dict[str, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = world.store.save_readings

    async def full(reader: str, readings: Iterable[Reading]) -> None:
        if reader == "coordinator":
            raise OSError(28, "no space left")
        await kept(reader, readings)

    monkeypatch.setattr(world.store, "save_readings", full)
    labels = {"what": "readings"}
    before = REGISTRY.get_sample_value("crossmargin_not_kept_total", labels) or 0
    record = await world.epoch(FIRST_EPOCH)
    assert record.attestations, record.refusals
    assert world.offered == [record]
    assert REGISTRY.get_sample_value("crossmargin_not_kept_total", labels) == before + 1
    assert await world.latencies.window(0), "measurements are kept all the same"
