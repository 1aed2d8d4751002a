"""Accounts in a bundle: the state commits to each with all of its entries, shares among them, and to nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from proofs_world import CUT_TIME, World, commit, sign_wallet
from test_proofs_bundle import changed, failures
from test_proofs_revokes import revoke

from proofs import statement
from proofs.bundle import Bundle, SignedLink, parse_bundle, render_bundle
from proofs.errors import BundleError
from proofs.hashing import keccak256
from proofs.links import ChainConsent, SharesTerms, shares_digest
from proofs.verify import verify_bundle

NOW = CUT_TIME - 150


def shares(world: World, link: SignedLink, text: str = "eip155:1=7000,eip155:31337=3000", nonce: int = 0) -> SignedLink:
    terms = SharesTerms(link.terms.account, link.terms.controller, text, nonce, NOW + 50)
    signed = sign_wallet(world.controller, shares_digest(world.id, terms))
    return SignedLink(terms, link.salt, signed, None, NOW, "shares")


def committed(world: World, bundle: Bundle, links: Sequence[SignedLink], /, **document: object) -> Bundle:
    """Return the bundle with other entries and another document, which its state commits to."""
    state, accounts = commit(links, (), **document)
    body = replace(bundle.statement.body, state_digest=keccak256(state.encode()))
    header = replace(bundle.statement.header, body=statement.body_hash(body))
    preimages = replace(bundle.preimages, state=state)
    certified = world.certify(header, body, (0, 1, 2))
    made = replace(bundle, statement=certified, preimages=preimages, links=tuple(links), accounts=accounts)
    assert parse_bundle(render_bundle(made)) == made
    return made


def test_shares_signed_by_the_controller_pass_and_are_counted(world: World, bundle: Bundle) -> None:
    link = bundle.links[0]
    made = committed(world, bundle, [link, shares(world, link), shares(world, link, "eip155:1=1", 1)])
    assert failures(made) == {}
    assert (
        "1 committed links signed by both sides, shared out 2 times by the controller" in verify_bundle(made)[6].detail
    )


def test_shares_that_another_signed_or_too_late_fail_step_7(world: World, bundle: Bundle) -> None:
    link = bundle.links[0]
    good = shares(world, link)
    assert isinstance(good.terms, SharesTerms)
    forged = replace(good, terms=replace(good.terms, shares="eip155:1=10000"))
    late = replace(good, accepted_at=NOW + 50)
    by_contract = replace(good, invite=ChainConsent("eip1271", b"\x01"))
    assert "links[1].signature: not signed by" in failures(committed(world, bundle, [link, forged]))[7]
    assert "links[1].expiry" in failures(committed(world, bundle, [link, late]))[7]
    assert failures(committed(world, bundle, [link, by_contract])) == {}
    assert "rests on chain state" in verify_bundle(committed(world, bundle, [link, by_contract]))[6].detail


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"links": []}, "accounts[0].document.links: [] given, its entries make it ['solana:"),
        ({"ending": ["eip155:1:0x" + "11" * 20]}, "accounts[0].document.ending: ['eip155"),
        ({"shares": ""}, "accounts[0].document.shares: '' given, its entries make it 'eip155:1=7000"),
        ({"controller": "eip155:1:0x" + "11" * 20}, "links[0].controller: "),
        ({"id": "0x" + "11" * 32}, "accounts[0].document.links"),
        ({"id": 5}, "accounts[0].document.id: text expected"),
        ({"label": "x"}, "accounts[0].document.label: unknown key"),
    ],
)
def test_a_document_that_its_entries_do_not_make_is_named(
    world: World, bundle: Bundle, document: dict[str, object], says: str
) -> None:
    link = bundle.links[0]
    found = failures(committed(world, bundle, [link, shares(world, link)], **document))
    assert found.keys() == {7}
    assert found[7].startswith(says)


def test_a_document_follows_revokes_and_ends(world: World, bundle: Bundle) -> None:
    link = bundle.links[0]
    gone = revoke(world, "member", link)
    end = replace(gone, accept=None, kind="end", accepted_at=NOW + 100)
    member = gone.terms.member  # type: ignore[union-attr]
    assert failures(committed(world, bundle, [link, gone], links=[member], ending=[member])) == {}
    assert failures(committed(world, bundle, [link, gone, end], links=[], ending=[])) == {}
    assert "document.ending: [] given" in failures(committed(world, bundle, [link, gone], ending=[]))[7]


def test_no_entry_can_be_left_out_added_or_moved(world: World, bundle: Bundle) -> None:
    link = bundle.links[0]
    first, second = shares(world, link), shares(world, link, nonce=1)
    made = committed(world, bundle, [link, first, second])
    assert failures(made) == {}
    for links in ([link, second], [first, second, link], [link, second, first], [link, first, second, second]):
        found = failures(replace(made, links=tuple(links)))
        assert found.keys() == {7}
        assert found[7].startswith("accounts[0].path: does not lead from this document and these")


def test_an_account_is_where_the_state_has_it_or_nowhere(bundle: Bundle) -> None:
    (account,) = bundle.accounts
    for accounts, says in (
        ((replace(account, index=account.index + 1),), "accounts[0].path: does not lead"),
        ((replace(account, index=3),), "accounts[0].index: 3 is not one of 3 entries"),
        ((replace(account, index=-1),), "accounts[0].index: -1 is not one of 3"),
        ((replace(account, path=account.path[:-1]),), "accounts[0].path: does not lead"),
        ((replace(account, path=()),), "accounts[0].path: does not lead"),
        ((replace(account, path=account.path[::-1]),), "accounts[0].path: does not lead"),
        ((account, account), "accounts[1].document.id: is given twice"),
        ((), "leaves[0].leaf.account: no entry of accounts shows that the state commits to it"),
    ):
        found = failures(replace(bundle, accounts=accounts))
        assert found.keys() == {7}
        assert found[7].startswith(says)
    assert "links[0].account: no entry" in failures(replace(bundle, accounts=(), leaves=()))[7]
    assert failures(replace(bundle, accounts=(), leaves=(), links=())) == {}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("accounts",), None, "accounts"),
        (("accounts", 0, "surprise"), 1, "accounts[0].surprise"),
        (("accounts", 0, "document"), {}, "accounts[0].document"),
        (("accounts", 0, "document"), "{", "accounts[0].document"),
        (("accounts", 0, "index"), "0", "accounts[0].index"),
        (("accounts", 0, "path", 0), "0x00", "accounts[0].path[0]"),
        (("links", 1, "member"), "eip155:1:0x" + "11" * 20, "links[1].member"),
        (("links", 1, "shares"), "eip155:1=0", "links[1].shares"),
        (("links", 1, "shares"), 5, "links[1].shares"),
        (("links", 1, "invite"), None, "links[1]"),
        (("links", 1, "kind"), "revoke", "links[1].shares"),
        (("links", 0, "shares"), "eip155:1=1", "links[0].shares"),
    ],
)
def test_a_malformed_account_or_share_is_named_by_its_path(
    world: World, bundle: Bundle, path: tuple[Any, ...], value: object, field: str
) -> None:
    made = committed(world, bundle, [bundle.links[0], shares(world, bundle.links[0])])
    with pytest.raises(BundleError) as refusal:
        parse_bundle(json.dumps(changed(json.loads(render_bundle(made)), path, value)))
    assert refusal.value.field == field


def test_shares_that_only_another_accepted_are_refused_at_the_door(world: World, bundle: Bundle) -> None:
    made = committed(world, bundle, [bundle.links[0], shares(world, bundle.links[0])])
    document = json.loads(render_bundle(made))
    document["links"][1]["accept"] = document["links"][1].pop("invite")
    with pytest.raises(BundleError, match=r"links\[1\].invite: missing: the controller alone signs shares"):
        parse_bundle(json.dumps(document))
