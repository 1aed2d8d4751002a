"""Sets of attestors: the digest of a rotation, the history from the genesis set, and bundles of a later set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import CUT_TIME, World, address_of, commit, sign_compact, typed
from test_proofs_bundle import at, changed, failures, outcomes, scalars

from proofs import statement
from proofs.__main__ import main
from proofs.bundle import Bundle, encode_rotation, parse_bundle, parse_rotation, render_bundle
from proofs.document import canonical_json
from proofs.errors import BundleError, FieldError, ProofError, QuorumError
from proofs.hashing import keccak256
from proofs.links import SharesTerms, shares_digest
from proofs.permits import (
    HOLD_TYPE,
    PERMIT_TYPE,
    REQUEST_TYPE,
    Hold,
    Permit,
    hold_digest,
    permit_digest,
    request_digest,
)
from proofs.sets import (
    ROTATE_TYPE,
    AttestorSet,
    Rotation,
    genesis_set,
    rotation_digest,
    set_at,
    verify_history,
)
from proofs.verify import verify_bundle

NEW_KEYS = tuple(PrivateKey(keccak256(b"new attestor %d" % i)) for i in range(7))
EPOCH = CUT_TIME // 2

words = st.binary(min_size=32, max_size=32)
uint64 = st.integers(0, 2**64 - 1)
amounts = st.integers(0, 2**128 - 1)


def second_set(**changes: Any) -> AttestorSet:
    members = tuple(address_of(key) for key in NEW_KEYS)
    return replace(AttestorSet(2, members, 5, EPOCH, CUT_TIME + 80 * 86_400), **changes)


def rotate(world: World, to: AttestorSet, signers: tuple[int, ...] = (0, 1, 3)) -> Rotation:
    digest = rotation_digest(to, world.id)
    return Rotation(to, tuple(sign_compact(world.attestors[i], digest, i) for i in signers))


@pytest.fixture(scope="module")
def rotated(bundle: Bundle, world: World) -> Bundle:
    """The bundle's statement as set 2 signs it from its very epoch on; set 1 signed the statement before."""
    third = AttestorSet(3, second_set().members[:4], 3, EPOCH + 1000, CUT_TIME + 90 * 86_400)
    handed = rotation_digest(third, world.id)
    to_come = Rotation(third, tuple(sign_compact(NEW_KEYS[i], handed, i) for i in range(5)))
    return knowing(bundle, world, (rotate(world, second_set()), to_come))


def knowing(bundle: Bundle, world: World, rotations: tuple[Rotation, ...], set_id: int = 2) -> Bundle:
    """Return the bundle with a history that its state names, signed by five of the new set."""
    state, _ = commit(bundle.links, [rotation.to for rotation in rotations])
    body = replace(bundle.statement.body, state_digest=keccak256(state.encode()))
    header = replace(bundle.statement.header, set_id=set_id, body=statement.body_hash(body))
    digest = statement.digest(header, world.id)
    signatures = tuple(sign_compact(NEW_KEYS[i], digest, i) for i in (0, 2, 3, 4, 6))
    certified = replace(bundle.statement, header=header, body=body, signatures=signatures)
    return replace(bundle, statement=certified, rotations=rotations, preimages=replace(bundle.preimages, state=state))


# --- digests: eth_account's own EIP-712 is the reference --------------------------------------------------------------


@given(
    words,
    st.lists(st.binary(min_size=20, max_size=20).filter(any), min_size=1, max_size=32, unique=True),
    uint64,
    uint64,
)
def test_a_rotation_is_the_typed_data_that_wallets_sign(
    deployment: bytes, members: list[bytes], activation: int, not_after: int
) -> None:
    to = AttestorSet(2, tuple(members), len(members), activation, not_after)
    addresses = ["0x" + member.hex() for member in members]
    values = (2, addresses, len(members), activation, not_after)
    assert rotation_digest(to, deployment) == typed(deployment, ROTATE_TYPE, values)


@given(words, words, words, words, uint64, uint64)
def test_a_hold_is_the_typed_data_that_wallets_sign(
    deployment: bytes, account: bytes, chain: bytes, vault: bytes, until: int, epoch: int
) -> None:
    found = hold_digest(Hold(account, chain, vault, until, epoch), deployment)
    assert found == typed(deployment, HOLD_TYPE, (account, chain, vault, until, epoch))


@given(words, st.tuples(words, words, words, words), amounts, words, words, uint64, uint64)
def test_a_permit_and_its_request_are_the_typed_data_that_wallets_sign(
    deployment: bytes, ids: tuple[bytes, ...], amount: int, to: bytes, nonce: bytes, epoch: int, expiry: int
) -> None:
    values = (*ids, amount, to, nonce, epoch, expiry)
    permit = Permit(*values)  # type: ignore[arg-type]
    assert permit_digest(permit, deployment) == typed(deployment, PERMIT_TYPE, values)
    assert request_digest(permit, deployment) == typed(deployment, REQUEST_TYPE, values)
    assert len({permit_digest(permit, deployment), request_digest(permit, deployment)}) == 2


@given(words, words, uint64, uint64)
def test_budget_shares_are_the_typed_data_that_wallets_sign(
    deployment: bytes, account: bytes, nonce: int, expiry: int
) -> None:
    controller, shares = "eip155:1:0x" + "ab" * 20, "eip155:1=7000,solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp=3000"
    type_ = "BudgetShares(bytes32 account,string controller,string shares,uint64 nonce,uint64 expiry)"
    found = shares_digest(deployment, SharesTerms(account, controller, shares, nonce, expiry))
    assert found == typed(deployment, type_, (account, controller, shares, nonce, expiry))


# --- history ----------------------------------------------------------------------------------------------------------


def test_the_epoch_alone_decides_the_set(world: World) -> None:
    sets = verify_history(world.deployment, (rotate(world, second_set()),))
    assert sets == (genesis_set(world.deployment), second_set())
    assert [set_at(sets, e).set_id for e in (0, EPOCH - 1, EPOCH, 2**64 - 1)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "signers", "field"),
    [
        ({"set_id": 3}, (0, 1, 2), "rotations[0].setId"),
        ({"set_id": 1}, (0, 1, 2), "rotations[0].setId"),
        ({"activation_epoch": 0}, (0, 1, 2), "rotations[0].activationEpoch"),
        ({}, (0, 1), "rotations[0].signatures"),
        ({}, (0, 1, 1), "rotations[0].signatures[2].index"),
        ({}, (1, 0, 2), "rotations[0].signatures[1].index"),
    ],
)
def test_a_rotation_that_may_not_follow_is_named(
    world: World, changes: dict[str, Any], signers: tuple[int, ...], field: str
) -> None:
    with pytest.raises(ProofError) as refusal:
        verify_history(world.deployment, (rotate(world, second_set(**changes), signers),))
    assert refusal.value.field == field


def test_a_rotation_signed_by_anybody_else_is_refused(world: World) -> None:
    to = second_set()
    digest = rotation_digest(to, world.id)
    by_the_new = Rotation(to, tuple(sign_compact(NEW_KEYS[i], digest, i) for i in range(3)))
    with pytest.raises(QuorumError, match=r"rotations\[0\].signatures\[0\]: recovers to"):
        verify_history(world.deployment, (by_the_new,))
    elsewhere = rotation_digest(to, bytes(32))
    other = Rotation(to, tuple(sign_compact(world.attestors[i], elsewhere, i) for i in range(3)))
    with pytest.raises(QuorumError, match=r"rotations\[0\].signatures\[0\]"):
        verify_history(world.deployment, (other,))


def test_a_rotation_comes_back_from_its_text(world: World) -> None:
    rotation = rotate(world, second_set())
    assert parse_rotation(canonical_json(encode_rotation(rotation))) == rotation


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"set_id": 2**32}, "setId"),
        ({"members": ()}, "members"),
        ({"members": tuple(bytes([i + 1]) * 20 for i in range(33)), "threshold": 33}, "members"),
        ({"members": (bytes(20),), "threshold": 1}, "members[0]"),
        ({"members": (b"\x01" * 20,) * 2, "threshold": 2}, "members[1]"),
        ({"members": (b"\x01" * 19,), "threshold": 1}, "members[0]"),
        ({"threshold": 4}, "threshold"),
        ({"threshold": 8}, "threshold"),
        ({"activation_epoch": 2**64}, "activationEpoch"),
        ({"not_after": -1}, "notAfter"),
    ],
)
def test_a_set_that_no_registry_takes_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as refusal:
        second_set(**changes)
    assert refusal.value.field == field


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_a_bundle_of_a_later_set_passes_and_says_which_set_signed(rotated: Bundle) -> None:
    steps = verify_bundle(rotated)
    assert {n: o for n, o in outcomes(steps).items() if o == "fail"} == {}
    assert "5 of 7 signed (threshold 5), set 2 of 3, each signed by the one before it" in steps[1].detail
    assert outcomes(steps)[8] == "pass"  # the statement before it is set 1's
    assert parse_bundle(render_bundle(rotated)) == rotated


def test_every_scalar_of_a_rotated_bundle_is_under_a_check(rotated: Bundle) -> None:
    document = json.loads(render_bundle(rotated))
    paths = [path for path in scalars(document) if path[0] in ("rotations", "header", "signatures", "deployment")]
    assert sum(path[0] == "rotations" for path in paths) > 40
    for path in paths:
        value = at(document, path)
        other = value + 1 if isinstance(value, int) else value[:-1] + ("0" if value[-1] != "0" else "1")
        try:
            found = failures(parse_bundle(json.dumps(changed(document, path, other))))
        except BundleError:
            continue
        assert 2 in found, f"{path} can be changed unnoticed"
        if path[0] == "rotations":
            assert found[2].startswith((f"rotations[{path[1]}].", "header.setId")), (path, found[2])


def test_a_history_that_is_cut_short_or_mixed_up_fails_step_2(rotated: Bundle, bundle: Bundle, world: World) -> None:
    first, second = rotated.rotations
    for rotations, says in (
        ((), "rotations: 0 given, preimages.state.rotations names 2"),
        ((first,), "rotations: 1 given, preimages.state.rotations names 2"),  # it would pass otherwise
        ((second,), "rotations[0].setId: 3 follows 1"),
        ((second, first), "rotations[0].setId: 3 follows 1"),
        ((first, first), "rotations[1].setId: 2 follows 2"),
    ):
        assert failures(replace(rotated, rotations=rotations))[2].startswith(says)
    of_the_old = knowing(bundle, world, rotated.rotations, set_id=1)
    assert f"header.setId: 1 given, epoch {EPOCH} demands set 2 of the 3 known" in failures(of_the_old)[2]
    named = knowing(bundle, world, (first, rotate(world, replace(second.to, not_after=CUT_TIME))))
    assert failures(replace(named, rotations=rotated.rotations))[2].startswith("rotations[1]: not the set that")


def test_a_recovered_set_rests_on_governance_and_only_where_it_is_known_as_such(
    bundle: Bundle, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = rotation_digest(second_set(), world.id)
    recovered = knowing(bundle, world, (Rotation(second_set(), ()),))
    assert parse_bundle(render_bundle(recovered)) == recovered
    says = f"rotations[0].signatures: none, and 0x{digest.hex()} is not known to be a set that governance recovered"
    for known in ((), (bytes(32), rotation_digest(second_set(threshold=6), world.id))):
        found = failures(recovered, recovered=known)
        assert found == {2: says, 8: says}
    steps = verify_bundle(recovered, recovered=[digest])
    assert [s.number for s in steps if s.outcome == "fail"] == []
    assert steps[1].outcome == "not provable yet"
    assert steps[1].detail.startswith("rests on governance's recovery of set 2 (not signed by set 1); 5 of 7 signed")
    assert steps[7].outcome == "pass"
    # Set 1's own statements rest on nobody's recovery.
    later = knowing(bundle, world, (Rotation(to := second_set(activation_epoch=EPOCH + 1), ()),), set_id=1)
    header_digest = statement.digest(later.statement.header, world.id)
    by_the_first = tuple(sign_compact(world.attestors[i], header_digest, i) for i in (0, 1, 3))
    later = replace(later, statement=replace(later.statement, signatures=by_the_first))
    assert verify_bundle(later, recovered=[rotation_digest(to, world.id)])[1].outcome == "pass"
    file = tmp_path / "bundle.json"
    file.write_text(render_bundle(recovered))
    assert main(["verify", str(file)]) == 1
    assert main(["verify", str(file), "--recovered", "0x" + digest.hex()]) == 0
    assert "rests on governance's recovery of set 2" in capsys.readouterr().out


def test_a_recovered_set_obeys_every_other_rule_and_signs_for_the_next(world: World) -> None:
    def known(digest: bytes) -> bool:
        return True

    for changes, field in (
        ({"set_id": 3}, "rotations[0].setId"),
        ({"activation_epoch": 0}, "rotations[0].activationEpoch"),
    ):
        with pytest.raises(FieldError) as refusal:
            verify_history(world.deployment, (Rotation(second_set(**changes), ()),), known)
        assert refusal.value.field == field
    third = AttestorSet(3, second_set().members[:4], 3, EPOCH + 1000, CUT_TIME + 90 * 86_400)
    handed = rotation_digest(third, world.id)
    after = Rotation(third, tuple(sign_compact(NEW_KEYS[i], handed, i) for i in range(5)))
    sets = verify_history(world.deployment, (Rotation(second_set(), ()), after), known)
    assert [s.set_id for s in sets] == [1, 2, 3]
    by_few = replace(after, signatures=after.signatures[:1])
    with pytest.raises(QuorumError, match=r"rotations\[1\]"):
        verify_history(world.deployment, (Rotation(second_set(), ()), by_few), known)
    # What is signed is checked as such, whatever is known.
    with pytest.raises(QuorumError, match=r"rotations\[0\].signatures: 1 given"):
        verify_history(world.deployment, (rotate(world, second_set(), (0,)),), known)


def test_a_set_signs_neither_before_its_epoch_nor_after_its_end(rotated: Bundle, world: World) -> None:
    later = knowing(rotated, world, (rotate(world, second_set(activation_epoch=EPOCH + 1)),))
    assert "demands set 1" in failures(later)[2]
    ended = knowing(rotated, world, (rotate(world, second_set(not_after=CUT_TIME - 1)),))
    assert failures(ended)[2] == f"header.producedAt: {CUT_TIME}, the set ended at {CUT_TIME - 1}"


def test_the_old_set_alone_cannot_certify_what_the_new_one_must(rotated: Bundle, world: World) -> None:
    header = rotated.statement.header
    forged = replace(rotated, statement=world.certify(header, rotated.statement.body, (0, 1, 2)))
    assert "signatures: 3 given, the set's threshold is 5" in failures(forged)[2]
    mixed = world.certify(header, rotated.statement.body, (0, 1, 2)).signatures + rotated.statement.signatures[-2:]
    swapped = replace(rotated, statement=replace(rotated.statement, signatures=mixed))
    assert "signatures[0]: recovers to" in failures(swapped)[2]


def test_earlier_statements_are_held_to_the_set_of_their_epoch(rotated: Bundle, world: World) -> None:
    early = knowing(rotated, world, (rotate(world, second_set(activation_epoch=EPOCH - 1)),))
    assert failures(early).keys() == {8}
    assert "history[0].header.setId: 1 given" in failures(early)[8]


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("rotations",), None, "rotations"),
        (("rotations",), {}, "rotations"),
        (("rotations", 0, "surprise"), 1, "rotations[0].surprise"),
        (("rotations", 0, "setId"), "2", "rotations[0].setId"),
        (("rotations", 0, "members", 1), "0x00", "rotations[0].members[1]"),
        (("rotations", 0, "members"), [], "rotations[0].members"),
        (("rotations", 0, "threshold"), 4, "rotations[0].threshold"),
        (("rotations", 0, "notAfter"), 2**64, "rotations[0].notAfter"),
        (("rotations", 0, "signatures"), 1, "rotations[0].signatures"),
        (("rotations", 1, "signatures", 0, "vs"), "0x", "rotations[1].signatures[0].vs"),
    ],
)
def test_a_malformed_rotation_is_named_by_its_path(
    rotated: Bundle, path: tuple[Any, ...], value: object, field: str
) -> None:
    with pytest.raises(BundleError) as refusal:
        parse_bundle(json.dumps(changed(json.loads(render_bundle(rotated)), path, value)))
    assert refusal.value.field == field
