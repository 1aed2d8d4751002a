"""How an owner shares margin out among destinations: signed, recorded, attested, proven."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data

from adapters.grants import SqliteGrants
from aggregator.domain.budgets import NO_LEVELS, Grant, Level, Levels, Share, levels_text
from aggregator.domain.certificate import LinkRecord, State
from aggregator.domain.errors import ConflictError, InputError, RefusedError, UnknownError
from aggregator.domain.links import backings, shares_of
from aggregator.domain.snapshot import Account
from aggregator.service.accounts import shares_message
from aggregator.service.committed import Committed, verify_levels
from aggregator.service.seals import questions, to_shares
from aggregator.service.state_rules import StateRules
from proofs.errors import FieldError, LinkError
from proofs.hashing import keccak256
from proofs.links import ChainConsent, SharesTerms, parse_shares, shares_digest, shares_text, verify_shares
from proofs.merkle import verify_accounts_inclusion
from tests.worlds.documents import ALPHA, BETA, SOL
from tests.worlds.world import FIRST_EPOCH, EvmPerson, Person, SimulatedWorld, SolanaPerson

SALT = "0x" + "07" * 32
OWNER, SOLANA_OWNER, MEMBER = EvmPerson("controller"), SolanaPerson("controller"), EvmPerson("member", BETA)
LATER = 2**63


def sign(person: Person, deployment_id: bytes, terms: SharesTerms) -> str:
    if isinstance(person, SolanaPerson):
        return str(person.key.sign_message(shares_text(deployment_id, terms)))
    signature = person.key.sign_recoverable(shares_digest(deployment_id, terms), hasher=None)
    return "0x" + (signature[:64] + bytes([27 + signature[64]])).hex()


async def share(world: SimulatedWorld, account: Account, person: Person, text: str, nonce: int = 1) -> LinkRecord:
    id = world.deployment.deployment_id()
    terms = SharesTerms(bytes.fromhex(account.id[2:]), account.controller, text, nonce, LATER)
    return await world.book.set_shares(account.id, account.controller, text, nonce, LATER, sign(person, id, terms))


def whole(world: SimulatedWorld) -> str:
    return ",".join(f"{chain}={5_000}" for chain in sorted(d.chain for d in world.settings.destinations)[:2])


@pytest.mark.parametrize("owner", [OWNER, SOLANA_OWNER], ids=["evm", "solana"])
async def test_an_owner_shares_out_and_shares_out_anew(world: SimulatedWorld, owner: Person) -> None:
    account = await world.book.open_account(owner.address, SALT, "risk-bearing", None, "mine")
    entry = await share(world, account, owner, whole(world))
    assert (entry.kind, entry.member, entry.accept_signature) == ("shares", "", "")
    first = tuple(Share(*pair) for pair in parse_shares(whole(world)))
    assert (await world.store.account("mine")).shares == first
    home = f"{account.home}=10000"
    await share(world, account, owner, home, nonce=2)
    (known,) = [a for a in (await world.store.state()).accounts if a.id == account.id]
    assert known.shares == (Share(account.home, 10_000),)
    with pytest.raises(ConflictError, match="nonce"):
        await share(world, account, owner, home, nonce=2)


async def test_the_message_is_what_is_signed(world: SimulatedWorld) -> None:
    account = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "")
    message = await world.book.shares_message(account.id, f"{ALPHA}=10000")
    assert (message.verb, message.signer, message.nonce) == ("shares", OWNER.address, 1)
    assert message.typed is not None
    assert "0x" + _hash_eip191_message(encode_typed_data(full_message=message.typed)).hex() == message.digest
    other = Account("0x" + "05" * 32, SOLANA_OWNER.address, "risk-bearing", SOL)
    text = shares_message(b"\x01" * 32, other, f"{SOL}=1", 3, 4).text
    assert text == (
        f"crossmargin budget shares\ndeployment: 0x{'01' * 32}\naccount: {other.id}\n"
        f"controller: {other.controller}\nshares: {SOL}=1\nnonce: 3\nexpiry: 4"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "CAIP-10"),
        ("eip155:1", "parts"),
        ("eip155:1=0", "parts"),
        ("eip155:1=01", "parts"),
        ("eip155:1=10001", "a whole"),
        ("eip155:1=-5", "parts"),
        ("eip155:1=5000,eip155:1=1", "ascend"),
        ("eip155:2=1,eip155:1=1", "ascend"),
        ("eip155:1=6000,eip155:2=4001", "10001 parts"),
        ("eip155:01=1", "chain id"),
        ("cosmos:hub=1", "namespace"),
        (",".join(f"eip155:{i}=1" for i in range(10, 27)), "17 destinations"),
    ],
)
def test_shares_that_are_none_name_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(FieldError, match=says) as caught:
        parse_shares(text)
    assert caught.value.field == "shares"


async def test_shares_that_cannot_be_recorded_name_the_field(world: SimulatedWorld) -> None:
    account = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "")
    id, text = world.deployment.deployment_id(), f"{account.home}=10000"
    terms = SharesTerms(bytes.fromhex(account.id[2:]), OWNER.address, text, 1, LATER)
    good: dict[str, Any] = {
        "account": account.id, "controller": OWNER.address, "shares": text, "nonce": 1, "expiry": LATER,
        "signature": sign(OWNER, id, terms),
    }  # fmt: skip
    wrong: Sequence[tuple[dict[str, Any], str]] = (
        ({"controller": MEMBER.address}, "controller"),
        ({"shares": "eip155:99=1"}, "shares"),
        ({"shares": "nonsense"}, "shares"),
        ({"shares": f"{account.home}=9999"}, "signature"),
        ({"nonce": 2}, "signature"),
        ({"expiry": 1}, "expiry"),
        ({"signature": sign(MEMBER, id, terms)}, "signature"),
        ({"signature": "0x12"}, "signature"),
        ({"account": "0x" + "99" * 32}, "account"),
    )
    for change, field in wrong:
        with pytest.raises((InputError, UnknownError)) as caught:
            await world.book.set_shares(**(good | change))
        assert caught.value.field == field, change
    assert await world.store.links() == ()


def test_a_program_derived_address_signs_no_shares_and_a_contract_is_asked() -> None:
    terms = SharesTerms(b"\x05" * 32, OWNER.address, f"{ALPHA}=1", 1, LATER)
    with pytest.raises(LinkError, match="no record of shares"):
        verify_shares(bytes(32), terms, ChainConsent("pda", bytes(32)), 1, ask_chain=True)
    with pytest.raises(LinkError, match="not asked"):
        verify_shares(bytes(32), terms, ChainConsent("eip1271", b"\x01"), 1)
    record = LinkRecord(
        1, "0x" + "05" * 32, OWNER.address, "", 1, LATER, "eip1271:0x01", "", 1, "shares", f"{ALPHA}=1"
    )  # fmt: skip
    ((side, chain, subject),) = questions(bytes(32), record)
    assert (side, chain) == ("controller", ALPHA)
    assert subject.seal == f"eip1271:{shares_digest(bytes(32), to_shares(record)).hex()}:01"
    assert questions(bytes(32), record._replace(invite_signature="0x" + "11" * 65)) == []


async def test_shares_say_nothing_of_links(world: SimulatedWorld) -> None:
    account = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "mine")
    await share(world, account, OWNER, f"{ALPHA}=10000")
    await world.link(account, OWNER, MEMBER)
    log = await world.store.links()
    assert list(backings(log)) == [MEMBER.address]
    assert list(shares_of(log)) == [account.id]


async def test_shares_are_attested_and_budgets_follow_them(world: SimulatedWorld, accounts: dict[str, Account]) -> None:
    """Everybody verifies the entry, and the next statement commits to it."""
    await world.epoch(FIRST_EPOCH)
    account = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "mine")
    await share(world, account, OWNER, whole(world))
    record = await world.epoch(FIRST_EPOCH + 1)
    assert len(record.attestations) == 4
    found = next(margin for margin in record.margins if margin.account == account.id)
    assert [budget.share for budget in found.budgets if budget.share] == [5_000, 5_000]


# --- what attestors demand -------------------------------------------------------------------------------------------


LEFT = Levels(5, (Level("0x" + "05" * 32, 1, 2),), (("ETH/USD", 3),))


def proposal(state: State, previous_state: str | None = None, digest: bytes | None = None) -> Any:
    text = previous_state or ""
    body = SimpleNamespace(state_digest=keccak256(text.encode()) if digest is None else digest)
    return SimpleNamespace(
        state=state,
        cut=SimpleNamespace(cut_time=1_000, epoch=9),
        header=SimpleNamespace(produced_at=1_003),
        previous=None if previous_state is None else SimpleNamespace(body=body),
        previous_state=text,
    )


def test_levels_must_be_those_that_the_statement_before_left() -> None:
    text, _ = Committed().text(State((), (), {}), LEFT)
    check = StateRules._verify_levels
    check(proposal(State((), (), {}, levels=LEFT), text))
    check(proposal(State((), (), {})))
    assert verify_levels(NO_LEVELS, Committed().text(State((), (), {}), None)[0])
    wrong = (
        proposal(State((), (), {}, levels=replace(LEFT, window=4)), text),
        proposal(State((), (), {}), text),  # forgetting them would let an asset grow twice
        proposal(State((), (), {}, levels=LEFT)),
        proposal(State((), (), {}), Committed().text(State((), (), {}), None)[0], digest=bytes(32)),
        proposal(State((), (), {}, levels=LEFT), Committed().text(State((), (), {}), None)[0]),
    )
    for given in wrong:
        with pytest.raises(RefusedError, match="levels"):
            check(given)
    assert json.loads(text)["levels"] == "0x" + keccak256(levels_text(LEFT).encode()).hex()


async def test_grants_must_not_fall_short_of_what_one_signed(tmp_path: Path) -> None:
    one, here = "0x" + "01" * 32, "0x" + "aa" * 32
    signed = LinkRecord(1, one, OWNER.address, "", 1, LATER, "0x", "", 1, "shares", f"{ALPHA}=1")
    book = SqliteGrants(tmp_path / "grants.db", 30)
    rules = StateRules(bytes(32), 60, None, book)
    mine = Grant(one, here, 7, 500, 1_100)
    await book.learn([mine, mine._replace(epoch=9, budget=9_000)])  # of this very epoch, signed already: a repeat
    shared = State((), (signed,), {})
    await rules._verify_grants(proposal(replace(shared, grants=(mine,))))
    await rules._verify_grants(proposal(replace(shared, grants=(mine._replace(epoch=8, budget=501),))))
    await rules._verify_grants(proposal(State((), (), {})))  # never shared out: a budget at home alone
    for short in ((), (mine._replace(budget=499),), (mine._replace(valid_until=1_099),), (mine._replace(epoch=6),)):
        with pytest.raises(RefusedError, match=f"grants: {one} at {here}: .* 500 of epoch 7 signed"):
            await rules._verify_grants(proposal(replace(shared, grants=short)))
    await book.close()


async def test_grants_that_nobody_can_have_signed_are_refused(tmp_path: Path) -> None:
    """Listed by one faulty proposer, they would lower what strangers may draw."""
    one, here, dropped = "0x" + "01" * 32, "0x" + "aa" * 32, "0x" + "de" * 32
    signed = LinkRecord(1, one, OWNER.address, "", 1, LATER, "0x", "", 1, "shares", f"{ALPHA}=1")
    book = SqliteGrants(tmp_path / "grants.db", 30)
    rules = StateRules(bytes(32), 60, None, book, 120, frozenset({here}))
    shared, good = State((), (signed,), {}), Grant(one, here, 8, 500, 1_123)
    await rules._verify_grants(proposal(replace(shared, grants=(good, good._replace(valid_until=971)))))
    unreal = (
        good._replace(account="0x" + "02" * 32),  # never shared out
        good._replace(destination=dropped),
        good._replace(epoch=9),
        good._replace(epoch=0),
        good._replace(valid_until=1_124),
        good._replace(valid_until=970),
    )
    for bad in unreal:
        with pytest.raises(
            RefusedError, match=rf"grants: {bad.account} at {bad.destination}: 500 of epoch {bad.epoch} "
        ):
            await rules._verify_grants(proposal(replace(shared, grants=(good, bad))))
    still = good._replace(destination=dropped, budget=1)
    await book.learn([still])  # signed before the destination was dropped
    await rules._verify_grants(proposal(replace(shared, grants=(good, good._replace(destination=dropped)))))
    await book.close()


async def test_shares_that_nobody_signed_are_not_attested(world: SimulatedWorld) -> None:
    account = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "mine")
    entry = await share(world, account, OWNER, f"{account.home}=10000")
    rules = StateRules(world.deployment.deployment_id(), 60)
    salt = bytes.fromhex(SALT[2:])
    rules._verify_signatures(entry, salt)
    forged = (
        entry._replace(shares=f"{account.home}=1"),
        entry._replace(invite_signature="0x" + "11" * 65),
        entry._replace(controller=MEMBER.address),
        entry._replace(invite_signature=""),
        entry._replace(accept_signature=entry.invite_signature),
        entry._replace(member=MEMBER.address),
    )
    for wrong in forged:
        with pytest.raises(RefusedError, match=f"state: link {entry.position}"):
            rules._verify_signatures(wrong, salt)


# --- what is committed -----------------------------------------------------------------------------------------------


async def test_every_account_is_provable_with_all_its_entries(world: SimulatedWorld) -> None:
    mine = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "mine")
    for number in range(4):
        await world.book.open_account(OWNER.address, "0x" + f"{number:064x}", "risk-bearing", None, "")
    await world.link(mine, OWNER, MEMBER)
    await share(world, mine, OWNER, f"{mine.home}=10000")
    state = await world.store.state()
    made = Committed()
    text, digest = made.text(state, None)
    assert digest == keccak256(text.encode())
    assert Committed().text(state, None) == (text, digest) == made.text(state, None)
    committed = json.loads(text)
    for account in state.accounts:
        proof = made.prove(state, account.id)
        document = json.loads(proof.document)
        assert document["id"] == account.id
        assert document["shares"] == (f"{mine.home}=10000" if account.id == mine.id else "")
        entries = [made._entries[link] for link in state.links if link.account == account.id]
        line = bytes.fromhex(account.id[2:]) + keccak256(proof.document.encode()) + keccak256(b"".join(entries))
        root = bytes.fromhex(committed["accounts"]["root"][2:])
        verify_accounts_inclusion(line, proof.index, committed["accounts"]["count"], proof.path, root)
    changed = replace(state, links=state.links[:-1])
    assert json.loads(made.text(changed, None)[0])["links"] != committed["links"]
    with pytest.raises(KeyError):
        made.prove(state, "0x" + "99" * 32)
