"""Revokes, ends, and the word of addresses without a key: what proves it, and what only a chain can say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import CUT_TIME, SOLANA, World, commit, sign_wallet, typed

from proofs import statement
from proofs.bundle import Bundle, SignedLink, parse_bundle, render_bundle
from proofs.errors import BundleError, FieldError, LinkError
from proofs.hashing import keccak256
from proofs.links import (
    CONTRACT_SIGNATURE_LIMIT,
    ChainConsent,
    LinkTerms,
    link_digest,
    link_text,
    parse_chain_consent,
    verify_link,
    verify_revoke,
)
from proofs.verify import Step, verify_bundle

ALICE = "eip155:1:0x" + "ab" * 20
NOW = CUT_TIME - 150
CONTRACT = ChainConsent("eip1271", b"\x01\x02")
RECORD = ChainConsent("pda", b"\x07" * 32)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_the_digest_of_a_revoke_is_eth_accounts(deployment_id: bytes, nonce: int, expiry: int) -> None:
    terms = LinkTerms(keccak256(b"a"), ALICE, ALICE, nonce, expiry)
    members = "(bytes32 account,string controller,string member,uint64 nonce,uint64 expiry)"
    values = (terms.account, terms.controller, terms.member, nonce, expiry)
    assert link_digest(deployment_id, "revoke", terms) == typed(deployment_id, f"LinkRevoke{members}", values)
    assert link_text(deployment_id, "revoke", terms).startswith(b"crossmargin link revoke\ndeployment: 0x")


def revoke(world: World, by: str, link: SignedLink, nonce: int = 8) -> SignedLink:
    terms = replace(link.terms, nonce=nonce)
    if by == "controller":
        signed = sign_wallet(world.controller, link_digest(world.id, "revoke", terms))
        return SignedLink(terms, link.salt, signed, None, NOW + 10, "revoke")
    signed = bytes(world.member.sign_message(link_text(world.id, "revoke", terms)))
    return SignedLink(terms, link.salt, None, signed, NOW + 10, "revoke")


def test_either_side_alone_revokes_and_nobody_else(world: World) -> None:
    link = world.link(NOW, NOW + 50)
    mine, theirs = revoke(world, "controller", link), revoke(world, "member", link)
    assert mine.invite is not None
    assert theirs.accept is not None
    verify_revoke(world.id, mine.terms, "controller", mine.invite, NOW, salt=link.salt)
    verify_revoke(world.id, theirs.terms, "member", theirs.accept, NOW, salt=link.salt)
    with pytest.raises(LinkError, match="signature: not signed by solana:"):
        verify_revoke(world.id, mine.terms, "member", mine.invite, NOW)
    with pytest.raises(LinkError, match="signature: not signed by eip155:"):
        verify_revoke(world.id, mine.terms, "controller", sign_wallet(world.controller, bytes(32)), NOW)
    invite = sign_wallet(world.controller, link_digest(world.id, "invite", mine.terms))
    with pytest.raises(LinkError, match="signature: not signed by"):
        verify_revoke(world.id, mine.terms, "controller", invite, NOW)
    with pytest.raises(LinkError, match="expiry"):
        verify_revoke(world.id, mine.terms, "controller", mine.invite, NOW + 50)
    with pytest.raises(LinkError, match="account"):
        verify_revoke(world.id, mine.terms, "controller", mine.invite, NOW, salt=bytes(32))


def test_a_word_that_only_a_chain_can_confirm_needs_somebody_who_asks_it(world: World) -> None:
    link = world.link(NOW, NOW + 50)
    with pytest.raises(LinkError, match="invite: rests on the state of eip155:31337, which was not asked"):
        verify_link(world.id, link.terms, CONTRACT, link.accept or b"", NOW)
    verify_link(world.id, link.terms, CONTRACT, RECORD, NOW, ask_chain=True)
    for invite, accept, field in ((RECORD, RECORD, "invite"), (CONTRACT, CONTRACT, "accept")):
        with pytest.raises(LinkError) as refusal:
            verify_link(world.id, link.terms, invite, accept, NOW, ask_chain=True)
        assert refusal.value.field == field
    with pytest.raises(LinkError, match="signature: eip1271 is for addresses of eip155"):
        verify_revoke(world.id, link.terms, "member", CONTRACT, NOW, ask_chain=True)


@given(st.binary(max_size=300) | st.just(bytes(CONTRACT_SIGNATURE_LIMIT)), st.binary(min_size=32, max_size=32))
def test_a_chains_word_is_read_as_it_is_written(signature: bytes, record: bytes) -> None:
    for consent in (ChainConsent("eip1271", signature), ChainConsent("pda", record)):
        assert parse_chain_consent(str(consent)) == consent


@pytest.mark.parametrize(
    "text",
    [
        *("eip1271:", "eip1271:0", "eip1271:0x0", "eip1271:0xzz", "eip1271:12", "eip1271:0X12", "eip1271:0x 1"),
        *("pda:", "pda:0", "pda:111", f"eip1271:0x{'00' * (CONTRACT_SIGNATURE_LIMIT + 1)}"),
    ],
)
def test_a_malformed_word_is_named(text: str) -> None:
    with pytest.raises(FieldError) as refusal:
        parse_chain_consent(text, "accept_signature")
    assert refusal.value.field == "accept_signature"


def test_a_keys_signature_is_no_chains_word() -> None:
    assert [parse_chain_consent(text) for text in ("0x" + "11" * 65, "1" * 64, "")] == [None] * 3


# In a bundle


def with_links(world: World, bundle: Bundle, links: Sequence[SignedLink]) -> Bundle:
    """Return the bundle with other links, which its state commits to."""
    state, accounts = commit(links)
    body = replace(bundle.statement.body, state_digest=keccak256(state.encode()))
    header = replace(bundle.statement.header, body=statement.body_hash(body))
    certified = world.certify(header, body, (0, 1, 2))
    preimages = replace(bundle.preimages, state=state)
    changed = replace(bundle, links=tuple(links), preimages=preimages, statement=certified, accounts=accounts)
    assert parse_bundle(render_bundle(changed)) == changed
    return changed


def step7(bundle: Bundle, **given: Any) -> Step:
    return verify_bundle(bundle, **given)[6]


def test_revokes_and_ends_are_checked_like_links(world: World, bundle: Bundle) -> None:
    link = bundle.links[0]
    gone = revoke(world, "member", link)
    end = replace(gone, accept=None, kind="end", accepted_at=NOW + 100)
    step = step7(with_links(world, bundle, [link, gone, end]))
    assert step.outcome == "not provable yet"
    assert "1 committed links signed by both sides, 1 revoked by one of them, 1 ended" in step.detail
    forged = replace(gone, accept=bytes(64))
    renewed = replace(link, terms=replace(link.terms, nonce=9))
    renewed = replace(
        renewed,
        invite=sign_wallet(world.controller, link_digest(world.id, "invite", renewed.terms)),
        accept=bytes(world.member.sign_message(link_text(world.id, "accept", renewed.terms))),
    )
    for links, says in (
        ([link, forged], "links[1].signature"),
        ([link, end], "links[1].nonce"),
        ([link, gone, end, end], "links[3].nonce"),
        ([link, gone, replace(end, terms=link.terms)], "links[2].nonce"),
        ([link, gone, renewed, end], "links[3].nonce"),  # both signed anew: nothing ends
        ([link, replace(gone, accepted_at=gone.terms.expiry)], "links[1].expiry"),
    ):
        step = step7(with_links(world, bundle, links))
        assert (step.outcome, says in step.detail) == ("fail", True), step.detail


def test_what_rests_on_chain_state_is_said_and_never_passes(world: World, bundle: Bundle) -> None:
    link = bundle.links[0]
    leaf = bundle.leaves[0].leaf
    assert step7(bundle, recompute=lambda _: [leaf]).outcome == "pass"
    kept = with_links(world, bundle, [replace(link, accept=RECORD)])
    step = step7(kept, recompute=lambda _: [leaf])
    assert step.outcome == "not provable yet"
    assert f"consent of {link.terms.member} rests on chain state, not provable offline" in step.detail
    assert SOLANA in step.detail
    wrong = with_links(world, bundle, [replace(link, accept=CONTRACT)])
    assert step7(wrong).outcome == "fail"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "link"}, "links[0].kind"),
        ({"kind": "rebate"}, "links[0].kind"),
        ({"kind": "revoke"}, "links[0]"),  # two signatures
        ({"kind": "end"}, "links[0]"),
        ({"invite": "eip1271:0x1"}, "links[0].invite"),
        ({"invite": "eip1271:0xAB"}, "links[0].invite"),  # one spelling only
        ({"accept": "pda:1"}, "links[0].accept"),
        ({"accept": "signed"}, "links[0].accept"),
    ],
)
def test_a_malformed_entry_is_named_by_its_path(bundle: Bundle, changes: dict[str, str], field: str) -> None:
    document = json.loads(render_bundle(bundle))
    document["links"][0] |= changes
    with pytest.raises(BundleError) as refusal:
        parse_bundle(json.dumps(document))
    assert refusal.value.field == field
