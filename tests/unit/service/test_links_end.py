"""How a link ends: revoked by one side, it counts nothing at once, and stands until nothing is left to answer for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from aggregator.bootstrap import build_bundle
from aggregator.domain.certificate import EpochRecord, LinkRecord, State
from aggregator.domain.errors import ConflictError, InputError, SourceError, Unavailable
from aggregator.domain.links import endable, with_links
from aggregator.domain.report import Flag
from aggregator.domain.snapshot import Account, ChainView, Position, Subject
from aggregator.service import state_rules
from aggregator.service.accounts import AccountBook
from aggregator.service.seals import seal_of, seals
from aggregator.service.state_rules import LOG_SLACK
from proofs.bundle import parse_bundle
from proofs.links import LinkTerms, encode_base58, link_digest, link_text
from proofs.verify import verify_bundle
from tests.api.synthetic_epochs import CHAIN_A, CUT_TIME, make_account, make_component, make_margin
from tests.worlds.documents import ALPHA, EPOCH_SECONDS, SOL, USDC
from tests.worlds.world import DOLLAR, FIRST_EPOCH, EvmPerson, SimulatedWorld, SolanaPerson

COOLDOWN = 40
LATER = FIRST_EPOCH + COOLDOWN // EPOCH_SECONDS
WALLET = "eip1271:0xdead"
SALT = "0x" + "07" * 32

# The rule, alone

MEMBER = f"{CHAIN_A}:0x{'22' * 20}"
ALICE = make_account("alice")
LINK = LinkRecord(1, ALICE.id, ALICE.controller, MEMBER, 1, 2**63, "0xaa", "0xbb", CUT_TIME - 100)
REVOKE = LINK._replace(position=2, nonce=2, accept_signature="", recorded_at=CUT_TIME - COOLDOWN, kind="revoke")
STATE = State((ALICE,), (LINK, REVOKE), {ALICE.id: bytes(32)})
FRESH = (ChainView(CHAIN_A, "ok"),)


def due(margin: Any = None, chains: Any = FRESH, state: State = STATE, now: int = CUT_TIME, **given: Any) -> int:
    return len(endable([margin or make_margin(ALICE.id, 1)], chains, state, now, COOLDOWN, **given))


def test_the_end_names_the_revoke_it_completes() -> None:
    (end,) = endable([make_margin(ALICE.id, 1)], FRESH, STATE, CUT_TIME, COOLDOWN)
    assert end == REVOKE._replace(position=-1, invite_signature="", recorded_at=0, kind="end")


def test_a_link_ends_only_when_nothing_is_left_to_answer_for() -> None:
    margin = make_margin(ALICE.id, 1)
    owed = make_component(ALICE.id, side="debt")
    theirs = owed._replace(position=owed.position._replace(chain=CHAIN_A, address=MEMBER.rpartition(":")[2]))
    assert due() == 1
    assert due(now=CUT_TIME - 1) == 0, "the cool-down has not passed"
    assert due(chains=(ChainView(CHAIN_A, "stale", "dark: no answer"),)) == 0, "its chain was not read"
    assert due(chains=()) == 0
    assert due(replace(margin, components=(theirs,))) == 0, "it owes"
    assert due(replace(margin, flags=Flag.PARTIAL)) == 0, "something is unknown"
    assert due(replace(margin, free_collateral=-1)) == 0, "the account does not stand without it"
    assert due(replace(margin, free_collateral=-1), slack=True) == 1
    assert due(replace(margin, free_collateral=-1_000_000), slack=True) == 0
    assert due(replace(margin, account="0x" + "00" * 32)) == 0, "the epoch does not hold the account"
    renewed = replace(STATE, links=(LINK, REVOKE, LINK._replace(position=3, nonce=3)))
    assert due(state=renewed) == 0
    assert due(state=replace(STATE, links=(LINK,))) == 0


def test_where_entries_contradict_each_other_the_earlier_counts() -> None:
    other = make_account("bob")
    stolen = LINK._replace(position=2, account=other.id)
    foreign = REVOKE._replace(position=3, account=other.id)
    alice, bob = with_links((ALICE, other), (LINK, stolen, foreign))
    assert (alice.links, alice.ending, bob.links) == ((MEMBER,), (), ())


# In a running service


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    changes = {"service": {"link_cooldown": COOLDOWN, "max_lifetime": 20}, "policy": {"lifetime": 15}}
    async with SimulatedWorld(tmp_path, changes) as made:
        yield made


@pytest.fixture
async def watched(world: SimulatedWorld) -> Account:
    """A monitored account with one wallet: 2 WETH."""
    await world.populate()
    return await world.store.account("watched")


async def revoke(world: SimulatedWorld, account: Account, by: str, nonce: int = 2, /, **changes: Any) -> LinkRecord:
    """Have the watched wallet, which also controls its account, revoke its link."""
    expiry = int(world.clock.now()) + 600
    who = world.watched
    terms = LinkTerms(bytes.fromhex(account.id[2:]), who.address, who.address, nonce, expiry)
    given = {"controller": who.address, "member": who.address, "nonce": nonce, "expiry": expiry, "by": by}
    given["signature"] = who.sign(world.deployment.deployment_id(), "revoke", terms)
    return await world.book.revoke_link(account.id, **(given | changes))


def equity(record: EpochRecord, account: Account) -> int:
    return next(m.equity for m in record.margins if m.account == account.id)


@pytest.mark.parametrize("by", ["controller", "member"])
async def test_a_revoked_link_counts_nothing_and_ends(world: SimulatedWorld, watched: Account, by: str) -> None:
    assert equity(await world.epoch(FIRST_EPOCH), watched) > 3_000 * 10**8
    await revoke(world, watched, by)
    record = await world.epoch(FIRST_EPOCH + 1)
    assert len(record.attestations) == 4, record.refusals
    assert equity(record, watched) == 0
    assert any(f.code == "link-ending" for f in record.findings)
    (shown,) = parse_bundle(await build_bundle(world.store, world.deployment, record, watched.id)).accounts
    assert json.loads(shown.document)["ending"] == [world.watched.address]
    before = await world.epoch(LATER - 1)
    assert [entry.kind for entry in await world.store.links(watched.id)] == ["link", "revoke"], before.refusals
    await world.epoch(LATER)
    assert [entry.kind for entry in await world.store.links(watched.id)] == ["link", "revoke", "end"]
    after = await world.epoch(LATER + 1)
    assert len(after.attestations) == 4, after.refusals
    assert (await world.store.account("watched")).links == ()

    text = await build_bundle(world.store, world.deployment, after, watched.id)
    steps = verify_bundle(parse_bundle(text), deployment_id=world.deployment.deployment_id())
    assert all(step.outcome != "fail" for step in steps), steps
    assert "1 revoked by one of them, 1 ended" in steps[6].detail
    other = await world.book.open_account(EvmPerson("other").address, SALT, "monitored", None, "other")
    await world.link(other, EvmPerson("other"), world.watched)
    assert len((await world.epoch(LATER + 2)).attestations) == 4


async def test_a_link_with_debt_does_not_end_until_it_is_paid(world: SimulatedWorld, watched: Account) -> None:
    address = world.watched.address.rpartition(":")[2]
    debt = Position(watched.id, ALPHA, "aave-v3", USDC, DOLLAR, USDC, DOLLAR, side="debt", address=address)
    world.chains[ALPHA].put(debt)
    world.tick(FIRST_EPOCH + 5)
    await revoke(world, watched, "member")
    record = await world.epoch(LATER + 10)
    assert equity(record, watched) < 0, "the debt stands"
    assert [entry.kind for entry in await world.store.links(watched.id)] == ["link", "revoke"]

    forged = (await world.store.links(watched.id))[-1]._replace(invite_signature="", accept_signature="", kind="end")
    await world.store.append_link(forged._replace(recorded_at=int(world.clock.now())))
    refused = await world.epoch(LATER + 11)
    assert refused.attestations == ()
    assert all("could not be let go" in why for _, why, *_ in refused.refusals), refused.refusals


async def test_an_end_before_its_time_is_not_attested(world: SimulatedWorld, watched: Account) -> None:
    await world.epoch(FIRST_EPOCH)
    entry = await revoke(world, watched, "controller")
    early = entry._replace(invite_signature="", kind="end", recorded_at=entry.recorded_at + COOLDOWN - 1)
    await world.store.append_link(early)
    record = await world.epoch(FIRST_EPOCH + 1)
    assert record.attestations == ()
    assert all(f"the cool-down is {COOLDOWN} s" in why for _, why, *_ in record.refusals), record.refusals


async def test_attestors_that_forgot_go_by_the_cooldown(world: SimulatedWorld, watched: Account) -> None:
    await world.epoch(FIRST_EPOCH)
    await revoke(world, watched, "controller")
    await world.epoch(LATER + 1)
    assert (await world.store.links(watched.id))[-1].kind == "end"
    await world.restart()
    record = await world.epoch(LATER + 2)
    assert len(record.attestations) == 4, record.refusals


async def test_both_sides_may_change_their_minds(world: SimulatedWorld, watched: Account) -> None:
    await revoke(world, watched, "member")
    with pytest.raises(ConflictError, match="revoked already"):
        await revoke(world, watched, "controller", 3)
    await world.link(watched, world.watched, world.watched, 3)
    record = await world.epoch(LATER + 1)
    assert equity(record, watched) > 3_000 * 10**8
    assert (await world.store.account("watched")).ending == ()


async def test_a_revoke_that_is_wrong_in_one_place_names_it(world: SimulatedWorld, watched: Account) -> None:
    before = await world.store.links()
    stranger = EvmPerson("stranger")
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"by": "me"}, "by", "controller or member"),
        ({"signature": "0x1234"}, "signature", "65 bytes"),
        ({"signature": "0x" + "11" * 65}, "signature", "not signed by"),
        ({"signature": "pda:" + "1" * 32}, "signature", "pda is for addresses of solana"),
        ({"signature": "eip1271:0x1"}, "signature", "in pairs"),
        ({"nonce": 3}, "signature", "not signed by"),
        ({"expiry": 9}, "expiry", "later expiry"),
        ({"controller": stranger.address}, "controller", "does not control"),
        ({"member": "x"}, "member", "CAIP-10"),
    ]
    for changes, field, says in wrong:
        with pytest.raises(InputError, match=says) as caught:
            await revoke(world, watched, "controller", **changes)
        assert caught.value.field == field
    with pytest.raises(ConflictError) as conflict:
        await revoke(world, watched, "controller", 1)
    assert conflict.value.field == "nonce"
    assert await world.store.links() == before


async def test_a_revoke_that_nobody_signed_is_not_attested(
    world: SimulatedWorld, watched: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.epoch(FIRST_EPOCH)
    entry = await revoke(world, watched, "controller")
    honest = world.store.state

    async def forged() -> State:
        found = await honest()
        swapped = entry._replace(invite_signature="", accept_signature="0x" + "11" * 65)
        return replace(found, links=(*found.links[:-1], swapped))

    monkeypatch.setattr(world.store, "state", forged)
    record = await world.epoch(FIRST_EPOCH + 1)
    assert record.attestations == ()
    assert all(why.startswith(f"state: link {entry.position}: signature") for _, why, *_ in record.refusals)


# Addresses without a key


async def add_keyless(world: SimulatedWorld, account: Account, member: EvmPerson, **changes: Any) -> LinkRecord:
    return await world.link(account, world.ada, member, **({"accept_signature": WALLET} | changes))


async def test_a_contract_is_asked_before_it_backs_an_account(world: SimulatedWorld, watched: Account) -> None:
    ada, wallet = await world.store.account("ada"), EvmPerson("contract")
    world.disowned.add(wallet.address)
    with pytest.raises(InputError, match=r"agree on its own chain") as caught:
        await add_keyless(world, ada, wallet)
    assert caught.value.field == "accept_signature"
    world.disowned.clear()
    record = await add_keyless(world, ada, wallet)
    deployment_id = world.deployment.deployment_id()
    terms = LinkTerms(bytes.fromhex(ada.id[2:]), ada.controller, wallet.address, record.nonce, record.expiry)
    seal = f"eip1271:{link_digest(deployment_id, 'accept', terms).hex()}:dead"
    assert seal_of(deployment_id, record) == seal
    assert seals(deployment_id, await world.store.links()) == {wallet.address: seal}
    revoked = record._replace(nonce=9, kind="revoke")
    assert seals(deployment_id, (*await world.store.links(), revoked)) == {}
    first = await world.epoch(FIRST_EPOCH)
    assert len(first.attestations) == 4, first.refusals


async def test_nobody_believes_a_contract_unasked(world: SimulatedWorld, watched: Account) -> None:
    ada, deployment_id = await world.store.account("ada"), world.deployment.deployment_id()
    deaf = AccountBook(world.store, world.clock, deployment_id, list(world.chains), list(world.chains))
    terms = LinkTerms(bytes.fromhex(ada.id[2:]), ada.controller, EvmPerson("c").address, 1, 2**40)
    invite = world.ada.sign(deployment_id, "invite", terms)
    with pytest.raises(InputError, match="must be asked") as caught:
        await deaf.add_link(ada.id, ada.controller, terms.member, 1, 2**40, invite, WALLET)
    assert caught.value.field == "accept_signature"


async def revoke_keyless(world: SimulatedWorld, account: Account, member: EvmPerson, nonce: int) -> LinkRecord:
    expiry = int(world.clock.now()) + 600
    return await world.book.revoke_link(account.id, account.controller, member.address, nonce, expiry, "member", WALLET)


@pytest.mark.parametrize("role", ["member", "controller", "revoking member"])
async def test_a_contract_that_changes_its_mind_stops_no_epoch(
    world: SimulatedWorld, watched: Account, role: str
) -> None:
    """It agreed when the coordinator asked and denies it to every attestor, for ever; whoever deploys it chooses."""
    contract, ada = EvmPerson("contract"), await world.store.account("ada")
    await world.epoch(FIRST_EPOCH)
    if role == "controller":
        owned = await world.book.open_account(contract.address, SALT, "risk-bearing", None, "owned by a contract")
        await world.link(owned, contract, SolanaPerson("member"), invite_signature=WALLET)
    else:
        await add_keyless(world, ada, contract)
        if role == "revoking member":
            assert (await world.epoch(FIRST_EPOCH + 1)).attestations
            await revoke_keyless(world, ada, contract, 2)
    world.disowned.add(contract.address)
    newest = (await world.store.links())[-1].position
    with capture_logs() as lines:
        record = await world.epoch(FIRST_EPOCH + 2)
        for rules in world.state_rules.values():
            await rules.asked()
    assert len(record.attestations) == 4, record.refusals
    denied = [(line["link"], line["side"]) for line in lines if line["event"] == "denied by its chain"]
    assert denied == 4 * [(newest, role.split()[-1])], "each attestor says so"
    await world.restart()
    assert (await world.epoch(FIRST_EPOCH + 3)).attestations


async def test_chains_are_asked_together_and_nobody_waits_for_them(
    world: SimulatedWorld, watched: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may link contracts that take for ever to answer."""
    ada = await world.store.account("ada")
    await world.epoch(FIRST_EPOCH)
    entries = [await add_keyless(world, ada, EvmPerson(f"contract {i}")) for i in range(20)]
    rounds: list[list[tuple[str, int]]] = []

    async def endless(chain: str, asked: Sequence[tuple[Subject, int]]) -> list[str | SourceError]:
        rounds.append([(f"{chain}:{subject.address}", at) for subject, at in asked])
        await asyncio.Event().wait()
        raise AssertionError

    attestor = next(iter(world.state_rules.values()))
    monkeypatch.setattr(attestor, "_witness", endless)
    monkeypatch.setattr(state_rules, "ASKING_SECONDS", 0.01)
    assert len((await world.epoch(FIRST_EPOCH + 1)).attestations) == 4
    await attestor.asked()
    assert rounds == [[(entry.member, entry.recorded_at) for entry in entries]]


async def test_who_cannot_tell_is_asked_again_until_the_entry_is_certified(
    world: SimulatedWorld, watched: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.epoch(FIRST_EPOCH)
    await add_keyless(world, await world.store.account("ada"), EvmPerson("contract"))
    answers: list[list[str | SourceError]] = [[Unavailable("alpha", "missing trie node")], [""], ["never asked"]]
    attestor = next(iter(world.state_rules.values()))

    async def pruned(chain: str, asked: Sequence[tuple[Subject, int]]) -> list[str | SourceError]:
        return answers.pop(0)

    monkeypatch.setattr(attestor, "_witness", pruned)
    world.attestors[1:] = []  # no quorum: the entry stays fresh
    for number in range(1, 5):
        record = await world.epoch(FIRST_EPOCH + number)
        await attestor.asked()
        assert record.attestations == ()
    assert answers == [["never asked"]]


# What is recorded while an epoch begins


@pytest.mark.parametrize(("before", "signed"), [(1, True), (LOG_SLACK, True), (LOG_SLACK + 1, False)])
async def test_an_entry_committed_after_the_log_was_read_may_wait_an_epoch(
    world: SimulatedWorld, watched: Account, monkeypatch: pytest.MonkeyPatch, before: int, signed: bool
) -> None:
    await world.epoch(FIRST_EPOCH)
    world.tick(FIRST_EPOCH + 1)
    world.clock.time = world.cut_time - before + 0.5
    early = [await world.store.state()]
    entry = await revoke(world, watched, "controller")
    honest = world.store.state

    async def state() -> State:  # the proposer reads first
        return early.pop() if early else await honest()

    monkeypatch.setattr(world.store, "state", state)
    record = await world.epoch(FIRST_EPOCH + 1)
    assert (len(record.attestations) == 4) == signed, record.refusals
    assert all(f"link {entry.position} is older than the cut" in why for _, why, *_ in record.refusals)
    assert (await world.epoch(FIRST_EPOCH + 2)).attestations


async def test_an_entry_has_the_time_at_which_it_was_written(
    world: SimulatedWorld, watched: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain may take long to answer; what expired by then is not recorded, or no attestor could accept it."""
    ada, took = await world.store.account("ada"), 30.0

    async def slow(chain: str, asked: Sequence[tuple[Subject, int]]) -> list[str | SourceError]:
        world.clock.time += took
        return [""]

    monkeypatch.setattr(world.book, "_witness", slow)
    began = world.clock.now()
    assert (await add_keyless(world, ada, EvmPerson("contract"))).recorded_at == int(began + took)
    took = 600.0
    with pytest.raises(InputError, match="has passed") as caught:
        await add_keyless(world, ada, EvmPerson("another"))
    assert caught.value.field == "expiry"


def test_the_seal_of_a_record_names_all_its_terms() -> None:
    account = bytes.fromhex(ALICE.id[2:])
    member = f"{SOL}:{encode_base58(b'm' * 32)}"
    place = encode_base58(b"r" * 32)
    record = LINK._replace(member=member, accept_signature=f"pda:{place}", controller=EvmPerson("x").address)
    kind, where, verb, deployment, controller, nonce, expiry = seal_of(b"\x01" * 32, record).split(":")
    assert (kind, where, verb, deployment, nonce, expiry) == ("pda", place, "accept", "01" * 32, "1", str(2**63))
    assert len(controller) == 64
    text = link_text(b"\x01" * 32, "accept", LinkTerms(account, record.controller, member, 1, 2**63))
    assert member.encode() in text
