"""Links: both sides' signatures over the same terms, addresses with one spelling, expiry before acceptance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from coincurve import PrivateKey
from eth_account import Account
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import SOLANA, World, address_of, sign_wallet, typed
from solders.pubkey import Pubkey

from proofs.errors import FieldError, LinkError
from proofs.hashing import keccak256
from proofs.links import (
    LinkTerms,
    account_id,
    decode_base58,
    decode_evm_address,
    encode_base58,
    link_digest,
    link_text,
    parse_caip10,
    verify_link,
)

ALICE = "eip155:1:0x" + "ab" * 20
NOW = 1_760_000_000


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_the_digests_are_eth_accounts(deployment_id: bytes, nonce: int, expiry: int) -> None:
    terms = LinkTerms(keccak256(b"a"), ALICE, ALICE, nonce, expiry)
    values = (terms.account, terms.controller, terms.member, nonce, expiry)
    members = "(bytes32 account,string controller,string member,uint64 nonce,uint64 expiry)"
    assert link_digest(deployment_id, "invite", terms) == typed(deployment_id, f"LinkInvite{members}", values)
    assert link_digest(deployment_id, "accept", terms) == typed(deployment_id, f"LinkAccept{members}", values)


def test_the_solana_text_is_the_documented_one() -> None:
    member = f"{SOLANA}:{'1' * 32}"
    terms = LinkTerms(b"\x02" * 32, ALICE, member, 3, 4)
    assert link_text(b"\x01" * 32, "accept", terms).decode() == (
        f"crossmargin link accept\ndeployment: 0x{'01' * 32}\naccount: 0x{'02' * 32}\n"
        f"controller: {ALICE}\nmember: {member}\nnonce: 3\nexpiry: 4"
    )


def test_a_link_between_an_evm_controller_and_a_solana_member_verifies_until_its_expiry(world: World) -> None:
    link = world.link(accepted_at=NOW, expiry=NOW + 1)
    verify_link(world.id, link.terms, link.invite, link.accept, NOW, salt=link.salt)
    with pytest.raises(LinkError, match="expiry: must be accepted before"):
        verify_link(world.id, link.terms, link.invite, link.accept, NOW + 1)


def test_a_wallet_made_by_eth_account_can_be_a_member(world: World) -> None:
    wallet = Account.from_key(keccak256(b"wallet"))
    controller = f"eip155:31337:0x{address_of(world.controller).hex()}"
    terms = LinkTerms(account_id(controller, bytes(32)), controller, f"eip155:10:{wallet.address.lower()}", 0, NOW + 1)
    invite = sign_wallet(world.controller, link_digest(world.id, "invite", terms))
    accept = bytes(wallet.unsafe_sign_hash(link_digest(world.id, "accept", terms)).signature)
    verify_link(world.id, terms, invite, accept, NOW, salt=bytes(32))


@pytest.mark.parametrize(
    "changed", ["deployment", "account", "nonce", "expiry", "swapped", "stranger", "short", "salt"]
)
def test_a_link_that_was_not_signed_so_is_refused(world: World, changed: str) -> None:
    link = world.link(accepted_at=NOW, expiry=NOW + 10)
    deployment_id, terms, invite, accept, salt = world.id, link.terms, link.invite, link.accept, link.salt
    field = "invite"
    match changed:
        case "deployment":
            deployment_id = bytes(32)
        case "account":
            terms, salt = replace(terms, account=bytes(32)), None
        case "nonce":
            terms = replace(terms, nonce=terms.nonce + 1)
        case "expiry":
            terms = replace(terms, expiry=terms.expiry + 1)
        case "swapped":
            invite = sign_wallet(world.controller, link_digest(world.id, "accept", terms))
        case "stranger":
            invite = sign_wallet(PrivateKey(keccak256(b"stranger")), link_digest(world.id, "invite", terms))
        case "short":
            field, accept = "accept", accept[:-1]
        case "salt":
            field, salt = "account", bytes(32)
    with pytest.raises(LinkError) as refusal:
        verify_link(deployment_id, terms, invite, accept, NOW, salt=salt)
    assert refusal.value.field == field


@given(st.binary(min_size=20, max_size=20))
def test_checksummed_and_lower_case_are_one_address_and_a_wrong_checksum_is_none(address: bytes) -> None:
    checksummed = to_checksum_address(address)
    assert decode_evm_address(checksummed) == decode_evm_address(checksummed.lower()) == address
    letters = [i for i, c in enumerate(checksummed) if i > 1 and c.isalpha()]
    for i in letters[:1]:
        wrong = checksummed[:i] + checksummed[i].swapcase() + checksummed[i + 1 :]
        if wrong[2:] != wrong[2:].lower():
            with pytest.raises(FieldError, match="checksum"):
                decode_evm_address(wrong)


@given(st.binary(min_size=32, max_size=32) | st.binary(max_size=28).map(lambda b: bytes(32 - len(b)) + b))
def test_base58_is_solanas(key: bytes) -> None:
    text = str(Pubkey.from_bytes(key))
    assert encode_base58(key) == text
    assert decode_base58(text, 32) == key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not CAIP-10"),
        ("0x" + "ab" * 20, "not CAIP-10"),
        ("eip155:01:0x" + "ab" * 20, "chain id"),
        ("eip155:x:0x" + "ab" * 20, "chain id"),
        ("eip155:1:0x" + "ab" * 19, "40 hex digits"),
        ("eip155:1:0X" + "ab" * 20, "40 hex digits"),
        ("eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD".replace("5aA", "5AA"), "checksum"),
        ("bip122:000000000019d6689c085ae165831e93:128Lkh3S7CkDTBZ8W7BbpsN3YYizJMp8p6", "unknown namespace"),
        ("solana:devnet:11111111111111111111111111111111", "genesis hash"),
        (f"{SOLANA}:0OIl", "outside the alphabet"),
        (f"{SOLANA}:111", "3 bytes, 32 expected"),
        (f"{SOLANA}:{'z' * 500}", "not base58 of 32 bytes"),
    ],
)
def test_a_malformed_address_is_named_with_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(FieldError, match=says) as refusal:
        parse_caip10(text, "member")
    assert refusal.value.field == "member"


def test_terms_hold_canonical_addresses_only_and_account_ids_ignore_the_spelling() -> None:
    checksummed = "eip155:1:0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    with pytest.raises(FieldError, match="write eip155:1:0x5aaeb6"):
        LinkTerms(bytes(32), checksummed, ALICE, 0, 0)
    salt = b"\x05" * 32
    assert account_id(checksummed, salt) == account_id(checksummed.lower(), salt)
    assert account_id(ALICE, salt) == keccak256(b"crossmargin/account/1" + ALICE.encode() + salt)
