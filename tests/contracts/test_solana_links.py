"""The links program in the real SVM: a PDA agrees through its own program, and readers find out when it does not."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from eth_utils import keccak
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.layouts import LayoutError, RawAccount
from adapters.solana.members import Members
from adapters.solana.programs import (
    LinkConsent,
    LinksRefusal,
    build_link_accept,
    build_link_revoke,
    decode_link,
    link_address,
)
from aggregator.domain.certificate import LinkRecord
from aggregator.domain.snapshot import Subject
from aggregator.service.seals import questions, seal_of
from infra.devnet.svm.build_programs import BuildError, build_program, read_compiler
from tests.contracts.solana_reference import NOW, PROGRAMS, Refused, World

HERE = Path(__file__).parent / "programs"
SOLANA = "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z"
DEPLOYMENT, ACCOUNT = keccak(b"a deployment"), keccak(b"an account")
CONTROLLER = "eip155:31337:0x" + "ab" * 20
CONTROLLER_HASH = keccak(CONTROLLER.encode())


class LinksWorld(World):
    """A world with the links program, and a program that owns a PDA and lets it sign."""

    def __init__(self) -> None:
        super().__init__("links")
        self.program = self.ids["links"]
        self.puppeteer = Pubkey.new_unique()
        self.svm.add_program(self.puppeteer, (HERE / "puppet.so").read_bytes())
        self.puppet, self.bump = Pubkey.find_program_address([b"puppet"], self.puppeteer)
        self.record = link_address(self.program, DEPLOYMENT, self.puppet, ACCOUNT)

    def through_its_program(self, call: Instruction) -> Instruction:
        """Wrap a call so that the puppet's program makes it, with the puppet's signature."""
        metas = [AccountMeta(m.pubkey, m.is_signer and m.pubkey != self.puppet, m.is_writable) for m in call.accounts]
        called = AccountMeta(call.program_id, is_signer=False, is_writable=False)
        return Instruction(self.puppeteer, bytes([self.bump]) + bytes(call.data), [called, *metas])

    def accept(self, nonce: int = 1, expiry: int = NOW + 60, member: Pubkey | None = None) -> Instruction:
        who = member or self.puppet
        return build_link_accept(
            self.program, self.payer.pubkey(), who, DEPLOYMENT, ACCOUNT, CONTROLLER_HASH, nonce, expiry
        )

    def revoke(self, nonce: int = 2, expiry: int = NOW + 60) -> Instruction:
        return build_link_revoke(self.program, self.puppet, self.record, nonce, expiry)

    def puppet_does(self, call: Instruction) -> None:
        self.run(self.through_its_program(call))

    def raw(self, key: Pubkey) -> RawAccount | None:
        account = self.svm.get_account(key)
        return None if account is None else RawAccount(account.lamports, str(account.owner), bytes(account.data))

    def consent(self) -> LinkConsent:
        raw = self.raw(self.record)
        assert raw is not None
        return decode_link(str(self.record), raw, self.program)

    def disowned(self, *subjects: Subject) -> dict[Subject, str]:
        """Read as the reader of the chain does."""
        flow = Members(str(self.program)).flow(subjects)
        try:
            keys = next(flow)
            flow.send(tuple(self.raw(Pubkey.from_string(key)) for key in keys))
        except StopIteration as stop:
            failed: dict[Subject, str] = stop.value
            return failed
        raise AssertionError("asks once")


@pytest.fixture
def world() -> LinksWorld:
    return LinksWorld()


def refuses(code: LinksRefusal, action: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code, caught.value.text


def swap(call: Instruction, at: int, key: Pubkey, **changes: bool) -> Instruction:
    """Return the call with another account at one position."""
    metas = list(call.accounts)
    signer, writable = metas[at].is_signer, metas[at].is_writable
    metas[at] = AccountMeta(key, changes.get("is_signer", signer), changes.get("is_writable", writable))
    return Instruction(call.program_id, call.data, metas)


def test_a_pda_accepts_revokes_and_accepts_again(world: LinksWorld) -> None:
    world.puppet_does(world.accept())
    agreed = LinkConsent(DEPLOYMENT, str(world.puppet), ACCOUNT, CONTROLLER_HASH, 1, NOW + 60, None)
    assert world.consent() == agreed
    world.puppet_does(world.revoke())
    assert world.consent() == replace(agreed, revoked=(2, NOW + 60))
    refuses(LinksRefusal.REVOKED_ALREADY, lambda: world.puppet_does(world.revoke(3)))
    for used in (1, 2):
        refuses(LinksRefusal.NONCE_USED, lambda used=used: world.puppet_does(world.accept(used)))
    world.puppet_does(world.accept(3, NOW + 90))
    assert world.consent() == replace(agreed, nonce=3, expiry=NOW + 90)
    refuses(LinksRefusal.NONCE_USED, lambda: world.puppet_does(world.revoke(3)))


def test_nobody_but_its_program_signs_for_a_pda(world: LinksWorld) -> None:
    unsigned = swap(world.accept(), 1, world.puppet, is_signer=False)
    refuses(LinksRefusal.MEMBER_NOT_SIGNER, lambda: world.run(unsigned))
    thief = Keypair()
    theirs = swap(world.accept(), 1, thief.pubkey())
    refuses(LinksRefusal.ADDRESS_WRONG, lambda: world.run(theirs, signers=[thief]))
    world.puppet_does(world.accept())
    refuses(LinksRefusal.MEMBER_NOT_SIGNER, lambda: world.run(swap(world.revoke(), 0, world.puppet, is_signer=False)))
    refuses(LinksRefusal.RECORD_WRONG, lambda: world.run(swap(world.revoke(), 0, thief.pubkey()), signers=[thief]))
    assert world.consent().revoked is None


def test_what_is_malformed_or_too_late_is_refused(world: LinksWorld) -> None:
    good = world.accept()
    stranger = Pubkey.new_unique()
    for code, call in (
        (LinksRefusal.INSTRUCTION_MALFORMED, Instruction(world.program, bytes(good.data)[:-1], good.accounts)),
        (LinksRefusal.INSTRUCTION_MALFORMED, Instruction(world.program, b"\x07", good.accounts)),
        (LinksRefusal.INSTRUCTION_MALFORMED, Instruction(world.program, b"", good.accounts)),
        (LinksRefusal.ACCOUNTS_WRONG, Instruction(world.program, good.data, good.accounts[:-1])),
        (LinksRefusal.ACCOUNTS_WRONG, swap(good, 2, world.record, is_writable=False)),
        (LinksRefusal.SYSTEM_PROGRAM_WRONG, swap(good, 3, stranger)),
        (LinksRefusal.ADDRESS_WRONG, swap(good, 2, stranger)),
        (LinksRefusal.EXPIRED, world.accept(expiry=NOW)),
        (LinksRefusal.PAYER_NOT_SIGNER, swap(good, 0, stranger, is_signer=False)),
    ):
        refuses(code, lambda call=call: world.puppet_does(call))
    world.puppet_does(good)
    late = world.revoke(expiry=NOW)
    for code, call in (
        (LinksRefusal.EXPIRED, late),
        (LinksRefusal.INSTRUCTION_MALFORMED, Instruction(world.program, bytes(late.data)[:-1], late.accounts)),
        (LinksRefusal.ACCOUNTS_WRONG, Instruction(world.program, late.data, late.accounts[:-1])),
        (LinksRefusal.ACCOUNTS_WRONG, swap(late, 1, world.record, is_writable=False)),
        (LinksRefusal.RECORD_WRONG, swap(late, 1, stranger)),
    ):
        refuses(code, lambda call=call: world.puppet_does(call))


def test_lamports_sent_ahead_do_not_block_a_record(world: LinksWorld) -> None:
    world.svm.airdrop(world.record, 1_000_000)
    world.puppet_does(world.accept())
    assert world.consent().nonce == 1


def test_a_forged_record_is_no_record(world: LinksWorld) -> None:
    """An account of another program with the very bytes of a record, and a record at another address."""
    world.puppet_does(world.accept())
    raw = world.raw(world.record)
    assert raw is not None
    world.svm.set_account(world.record, Account(raw.lamports, raw.data, Pubkey.new_unique()))
    refuses(LinksRefusal.RECORD_WRONG, lambda: world.puppet_does(world.revoke()))
    with pytest.raises(LayoutError, match="owner"):
        world.consent()


# What a reader makes of it


def entry(world: LinksWorld, **changes: object) -> LinkRecord:
    member = f"{SOLANA}:{world.puppet}"
    signature = f"pda:{world.record}"
    made = LinkRecord(1, f"0x{ACCOUNT.hex()}", CONTROLLER, member, 1, NOW + 60, "0xaa", signature, NOW)
    return made._replace(**changes)  # type: ignore[arg-type]


def subject(world: LinksWorld, **changes: object) -> Subject:
    return Subject(f"0x{ACCOUNT.hex()}", str(world.puppet), seal_of(DEPLOYMENT, entry(world, **changes)))


def test_a_reader_believes_a_record_that_says_what_was_agreed(world: LinksWorld) -> None:
    good = subject(world)
    assert "no such account" in world.disowned(good)[good]
    world.puppet_does(world.accept())
    keyed = Subject(good.account, "1" * 32)
    assert world.disowned(good, keyed) == {}
    for changes, says in (
        ({"nonce": 2}, "terms"),
        ({"expiry": NOW + 61}, "terms"),
        ({"controller": "eip155:31337:0x" + "ac" * 20}, "controller"),
        ({"accept_signature": f"pda:{Pubkey.new_unique()}"}, "address"),
    ):
        other = subject(world, **changes)
        assert says in world.disowned(other)[other]
    for other in (
        good._replace(account=f"0x{keccak(b'another account').hex()}"),
        good._replace(address=str(Pubkey.new_unique())),
    ):
        assert "address" in world.disowned(other)[other]
    elsewhere = Subject(good.account, good.address, seal_of(keccak(b"another deployment"), entry(world)))
    assert "address" in world.disowned(elsewhere)[elsewhere]
    contract = good._replace(seal="eip1271:" + "00" * 32 + ":aa")
    assert "no form" in world.disowned(contract)[contract]
    assert world.disowned(good, contract).keys() == {contract}


def test_a_revoke_on_chain_counts_at_once_and_can_be_shown(world: LinksWorld) -> None:
    world.puppet_does(world.accept())
    good = subject(world)
    gone = entry(world, kind="revoke", nonce=2, invite_signature="")
    ((side, chain, asked),) = questions(DEPLOYMENT, gone)
    assert (side, chain) == ("member", SOLANA)
    assert "revoke" in world.disowned(asked)[asked], "nothing is revoked yet"
    world.puppet_does(world.revoke())
    assert "revoke" in world.disowned(good)[good]
    assert world.disowned(asked) == {}
    other = asked._replace(seal=asked.seal.replace(":2:", ":3:"))
    assert world.disowned(other).keys() == {other}


def test_an_account_of_somebody_elses_choice_is_not_asked_for(world: LinksWorld) -> None:
    """It may be the largest on the chain."""
    other = subject(world, accept_signature=f"pda:{Pubkey.new_unique()}")
    with pytest.raises(StopIteration) as stopped:
        next(Members(str(world.program)).flow([other]))
    assert list(stopped.value.value) == [other]


def test_without_a_links_program_no_seal_is_believed(world: LinksWorld) -> None:
    flow = Members(None).flow([subject(world)])
    with pytest.raises(StopIteration) as stopped:
        next(flow)
    assert list(stopped.value.value) == [subject(world)]


# The committed files


def test_refusals_mirror_the_source() -> None:
    source = (PROGRAMS / "links.c").read_text()
    table = dict(re.findall(r"^  ([A-Z_0-9]+) = (\d+), +/\*", source, re.MULTILINE))
    assert {name: int(code) for name, code in table.items()} == {one.name: one.value for one in LinksRefusal}


def test_the_test_program_is_built_from_its_source() -> None:
    recorded = json.loads((HERE / "puppet.json").read_text())
    program = (HERE / "puppet.so").read_bytes()
    assert hashlib.sha256(program).hexdigest() == recorded["sha256"]
    assert hashlib.sha256((HERE / "puppet.c").read_bytes()).hexdigest() == recorded["source"]
    try:
        _, version = read_compiler()
    except BuildError as error:
        pytest.skip(f"{error}, to check that puppet.so is built from its source")
    if recorded["compiler"] != f"clang {version}":
        pytest.skip(f"puppet.so was built by {recorded['compiler']}")
    assert build_program("puppet", HERE) == program
