"""Handing over to another set of attestors: every rule of who signs, and what is collected from all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.approvals import FileApprovals
from adapters.keys import KeySigner
from aggregator.domain.certificate import Attestation, PostingStatus, SignedPosting
from aggregator.domain.errors import InputError, PostingError, RefusedError, Unreachable
from aggregator.service.attest import Sets
from aggregator.service.rotation import (
    KIND,
    MAX_TERM,
    RECOVERY,
    RotationRules,
    adopt_set,
    collect_rotation,
    describe_sets,
    plan_set,
    submit_rotations,
    verify_terms,
)
from proofs.bundle import encode_set, parse_rotation, parse_set
from proofs.document import canonical_json
from proofs.errors import FieldError
from proofs.hashing import keccak256
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, Rotation, genesis_set, rotation_digest, verify_history
from proofs.statement import DEVNET, MAINNET, Deployment

SECONDS = 12
NOW = 1_900_000_008
EPOCH = NOW // SECONDS
SIGNERS = [KeySigner(keccak256(b"member %d" % i)) for i in range(6)]
MEMBERS = tuple(bytes.fromhex(s.address[2:]) for s in SIGNERS)
DEPLOYMENT = Deployment(MAINNET, MEMBERS[:4], 3, NOW + 30 * 86_400, bytes(32))


def terms(**changes: Any) -> AttestorSet:
    start = EPOCH + 100
    to = AttestorSet(2, (*MEMBERS[:3], MEMBERS[4]), 3, start, start * SECONDS + 80 * 86_400)
    return replace(to, **changes)


def signed(to: AttestorSet, signers: Sequence[int] = (0, 1, 2), deployment: Deployment = DEPLOYMENT) -> Rotation:
    digest = rotation_digest(to, deployment.deployment_id())
    return Rotation(to, tuple(IndexedSignature(i, *SIGNERS[i].sign(digest)) for i in signers))


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class Claims:
    """Keeps claims, and what was signed by then."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    async def claim_once(self, kind: str, key: str, digest: bytes) -> None:
        if self.kept.setdefault((kind, key), digest) != digest:
            raise RefusedError("watermark", f"{kind} {key} was signed as 0x{self.kept[kind, key].hex()}")


class Seat:
    """One attestor with its rules, a record and approvals of its own."""

    def __init__(self, folder: Path, i: int, rotations: Sequence[Rotation] = (), now: float = NOW) -> None:
        self.name, self.member = f"attestor-{i}", MEMBERS[i]
        self.claims, self.clock, self.signer = Claims(), Clock(now), SIGNERS[i]
        self.approvals = FileApprovals(folder / self.name)

        async def known() -> Sequence[Rotation]:
            return rotations

        self.rules = RotationRules(
            self.signer,
            self.claims,
            self.approvals,
            known,
            deployment=DEPLOYMENT,
            epoch_seconds=SECONDS,
            clock=self.clock,
        )

    def approve(self, to: AttestorSet) -> None:
        digest = rotation_digest(to, DEPLOYMENT.deployment_id())
        self.approvals.approve(KIND, digest, encode_set(to), now=NOW, by="ada")

    async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
        assert kind == KIND
        return await self.rules.sign(document)


async def test_an_approved_rotation_is_signed_and_claimed_and_verifies(tmp_path: Path) -> None:
    seats = [Seat(tmp_path, i) for i in range(4)]
    for seat in seats[1:]:
        seat.approve(terms())
    found = await collect_rotation(terms(), seats, (), DEPLOYMENT)
    assert found.rotation is not None
    assert verify_history(DEPLOYMENT, (found.rotation,))[-1] == terms()
    assert [s.index for s in found.rotation.signatures] == [1, 2, 3]
    assert found.signed == ("attestor-1", "attestor-2", "attestor-3")
    ((name, reason),) = found.refusals
    assert name == "attestor-0"
    assert reason.startswith("approval: 0x")
    digest = rotation_digest(terms(), DEPLOYMENT.deployment_id())
    assert seats[1].claims.kept == {(KIND, "2"): digest}
    assert seats[0].claims.kept == {}
    again = await collect_rotation(terms(), seats, (), DEPLOYMENT)
    assert again == found  # a repeat is allowed, and signs the same


async def test_too_few_approvals_make_no_rotation(tmp_path: Path) -> None:
    seats = [Seat(tmp_path, i) for i in range(4)]
    for seat in seats[:2]:
        seat.approve(terms())
    found = await collect_rotation(terms(), seats, (), DEPLOYMENT)
    assert (found.rotation, len(found.signed), len(found.refusals)) == (None, 2, 2)


async def test_a_second_set_of_the_same_number_is_not_signed_even_if_approved(tmp_path: Path) -> None:
    seat, other = Seat(tmp_path, 0), terms(threshold=4)
    for to in (terms(), other):
        seat.approve(to)
    await seat.rules.sign(encode_set(terms()))
    with pytest.raises(RefusedError, match="watermark: rotation 2 was signed"):
        await seat.rules.sign(encode_set(other))


async def test_a_claim_comes_before_the_signature(tmp_path: Path) -> None:
    seat = Seat(tmp_path, 0)
    seat.approve(terms())
    order: list[str] = []

    class Watched:
        address = seat.signer.address

        def sign(self, digest: bytes) -> tuple[bytes, bytes]:
            order.append("claimed" if seat.claims.kept else "not claimed")
            return seat.signer.sign(digest)

    seat.rules._signer = Watched()
    await seat.rules.sign(encode_set(terms()))
    assert order == ["claimed"]


START = terms().activation_epoch * SECONDS


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"set_id": 1}, "set: set 1 proposed, 2 is next"),
        ({"set_id": 3}, "set: set 3 proposed, 2 is next"),
        ({"members": MEMBERS[:3], "threshold": 3}, "terms: 3 members proposed, at least 4"),
        ({"activation_epoch": EPOCH}, "activation: epoch .* proposed, it is epoch"),
        ({"activation_epoch": EPOCH - 1}, "activation: epoch .* proposed, it is epoch"),
        ({"activation_epoch": EPOCH + MAX_TERM // SECONDS + 1}, "activation: .* is more than 90 days ahead"),
        ({"activation_epoch": EPOCH + 31 * 86_400 // SECONDS}, "activation: .* nobody would sign between"),
        ({"not_after": START}, "not-after: .* proposed, after"),
        ({"not_after": START + MAX_TERM + 1}, "not-after: .* proposed, after"),
    ],
)
async def test_terms_that_may_not_follow_are_refused_even_if_approved(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    seat, to = Seat(tmp_path, 0), terms(**changes)
    seat.approve(to)
    with pytest.raises(RefusedError, match=says):
        await seat.rules.sign(encode_set(to))
    assert seat.claims.kept == {}


async def test_the_widest_terms_are_signed(tmp_path: Path) -> None:
    seat, to = Seat(tmp_path, 0), terms(activation_epoch=EPOCH + 1, not_after=(EPOCH + 1) * SECONDS + MAX_TERM)
    seat.approve(to)
    assert (await seat.rules.sign(encode_set(to))).index == 0


async def test_who_is_not_in_the_set_or_whose_set_ended_does_not_sign(tmp_path: Path) -> None:
    outsider = Seat(tmp_path, 4)
    outsider.approve(terms())
    with pytest.raises(RefusedError, match=f"member: {SIGNERS[4].address} is not in set 1, which must sign"):
        await outsider.rules.sign(encode_set(terms()))
    late = Seat(tmp_path, 0, now=DEPLOYMENT.not_after + 1)
    to = terms(activation_epoch=EPOCH + 31 * 86_400 // SECONDS, not_after=NOW + 100 * 86_400)
    late.approve(to)
    with pytest.raises(RefusedError, match="not-after: set 1 ended at"):
        await late.rules.sign(encode_set(to))


async def test_a_set_that_is_yet_to_come_hands_over_to_nobody(tmp_path: Path) -> None:
    first = signed(terms())
    to = terms(set_id=3, activation_epoch=EPOCH + 200)
    early = Seat(tmp_path, 4, (first,))
    early.approve(to)
    with pytest.raises(RefusedError, match=r"set: set 2 signs from epoch \d+ on, it is epoch"):
        await early.rules.sign(encode_set(to))
    active = Seat(tmp_path, 4, (first,), now=START)
    given = await active.rules.sign(encode_set(to))
    assert given.index == 3  # its place in set 2
    gone = Seat(tmp_path, 3, (first,), now=START)
    gone.approve(to)
    with pytest.raises(RefusedError, match=r"member: .* is not in set 2"):
        await gone.rules.sign(encode_set(to))


async def test_a_history_that_does_not_verify_is_no_ground_to_sign_on(tmp_path: Path) -> None:
    forged = replace(signed(terms()), signatures=signed(terms(), (0, 1)).signatures)
    seat = Seat(tmp_path, 4, (forged,), now=START)
    with pytest.raises(RefusedError, match=r"does not verify: rotations\[0\].signatures: 2 given"):
        await seat.rules.sign(encode_set(terms(set_id=3, activation_epoch=EPOCH + 200)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"threshold": 2}, "terms: threshold: 2 of 4 given"),
        ({"members": ["0x00"]}, r"terms: members\[0\]"),
        ({"members": ["0x" + "00" * 20] * 4}, r"terms: members\[0\]: the zero address"),
        ({"setId": "2"}, "terms: setId: an integer expected"),
        ({"surprise": 1}, "terms: surprise: unknown key"),
        ({"notAfter": 2**64}, "terms: notAfter"),
        ({"notAfter": float("nan")}, "terms: are no JSON object"),
        ({"notAfter": b""}, "terms: are no JSON object"),
    ],
)
async def test_unreadable_terms_are_refused_by_field(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        await Seat(tmp_path, 0).rules.sign(encode_set(terms()) | change)


async def test_wrong_late_and_failing_answers_cost_their_sender_its_place_only(tmp_path: Path) -> None:
    seats = [Seat(tmp_path, i) for i in range(4)]
    for seat in seats:
        seat.approve(terms())

    async def other(kind: str, document: Mapping[str, Any]) -> Attestation:
        return Attestation(0, *SIGNERS[1].sign(rotation_digest(terms(), DEPLOYMENT.deployment_id())))

    async def never(kind: str, document: Mapping[str, Any]) -> Attestation:
        await asyncio.Event().wait()
        raise AssertionError

    async def down(kind: str, document: Mapping[str, Any]) -> Attestation:
        raise Unreachable("attestor-0", "no answer")

    async def garbage(kind: str, document: Mapping[str, Any]) -> Attestation:
        return Attestation(0, bytes(32), bytes(32))

    answers: tuple[tuple[Callable[..., Any], str], ...] = (
        (other, "signature: is another's"),
        (never, "late: no answer in time"),
        (down, "attestor-0: no answer"),
        (garbage, r"r: outside"),
    )
    for ask, says in answers:
        seats[0].ask = ask  # type: ignore[method-assign]
        found = await collect_rotation(terms(), seats, (), DEPLOYMENT, timeout=0.05)
        assert found.rotation is not None
        assert found.refusals[0][1].startswith(says)
    with pytest.raises(RefusedError, match="set: set 2 given, 3 is next"):
        await collect_rotation(terms(), seats, (signed(terms()),), DEPLOYMENT)


def test_a_plan_changes_what_it_says_and_keeps_the_order() -> None:
    sets = [genesis_set(DEPLOYMENT)]
    when = {"activation_epoch": EPOCH + 5, "not_after": NOW + 9_999}
    planned = plan_set(sets, replace={MEMBERS[1]: MEMBERS[5]}, add=[MEMBERS[4]], remove=[MEMBERS[0]], **when)
    assert planned.members == (MEMBERS[5], MEMBERS[2], MEMBERS[3], MEMBERS[4])
    assert (planned.set_id, planned.threshold) == (2, 3)
    for change, field in (
        ({"replace": {MEMBERS[5]: MEMBERS[4]}}, "member: 0x.* is not in set 1"),
        ({"replace": {}, "remove": [MEMBERS[5]]}, "member: 0x.* is not in set 1"),
        ({"replace": {}, "add": [MEMBERS[0]]}, r"members\[4\]: .* is listed twice"),
        ({"replace": {}, "threshold": 2}, "threshold: 2 of 4"),
    ):
        with pytest.raises(InputError, match=field):
            plan_set(sets, **{**when, **change})  # type: ignore[arg-type]


def test_sets_are_described_as_of_now() -> None:
    sets = verify_history(DEPLOYMENT, (signed(terms()),))
    for now, states in (
        (NOW, ["active", "to come"]),
        (START, ["past", "active"]),
        (terms().not_after + 1, ["past", "ended"]),
    ):
        assert [state for _, state in describe_sets(sets, now, SECONDS)] == states


def test_a_devnet_may_have_fewer_members_and_nobody_else() -> None:
    small = replace(DEPLOYMENT, network_class=DEVNET, members=MEMBERS[:1], threshold=1)
    to = terms(members=(MEMBERS[4],), threshold=1)
    assert verify_terms(to, [genesis_set(small)], small, now=NOW, epoch_seconds=SECONDS).set_id == 1
    assert verify_history(small, (signed(to, (0,), small),))[-1] == to
    with pytest.raises(FieldError, match=r"rotations\[0\].members: 1 given, at least 4 expected outside a devnet"):
        verify_history(DEPLOYMENT, (signed(to),))


def test_terms_come_back_from_their_text() -> None:
    assert parse_set(canonical_json(encode_set(terms()))) == terms()
    for text, field in (("[]", "document"), ("{}", "setId"), ('{"setId":2}', "members"), ("{", "document")):
        with pytest.raises(FieldError) as refusal:
            parse_set(text)
        assert refusal.value.field == field
        with pytest.raises(FieldError):
            parse_rotation(text)


# --- recovery ---------------------------------------------------------------------------------------------------------


def approve_recovery(approvals: FileApprovals, to: AttestorSet) -> None:
    digest = rotation_digest(to, DEPLOYMENT.deployment_id())
    approvals.approve(RECOVERY, digest, encode_set(to), now=NOW, by="ada")


def test_a_recovered_set_is_adopted_only_where_exactly_it_was_approved_as_such(tmp_path: Path) -> None:
    to, other = terms(members=MEMBERS[2:6]), terms()
    approvals = FileApprovals(tmp_path / "approvals")

    def recovered(digest: bytes) -> bool:
        return approvals.approved(RECOVERY, digest)

    digest = rotation_digest(to, DEPLOYMENT.deployment_id())
    approvals.approve(KIND, digest, encode_set(to), now=NOW, by="ada")  # to be signed, not to be believed
    approve_recovery(approvals, other)
    with pytest.raises(RefusedError, match=f"approval: 0x{digest.hex()} is not approved on this machine"):
        adopt_set(to, (), DEPLOYMENT, recovered, now=NOW)
    approve_recovery(approvals, to)
    rotation = adopt_set(to, (), DEPLOYMENT, recovered, now=NOW)
    assert rotation == Rotation(to, ())
    assert verify_history(DEPLOYMENT, (rotation,), recovered)[-1] == to
    with pytest.raises(FieldError, match="is not known to be a set that governance recovered"):
        verify_history(DEPLOYMENT, (rotation,))
    with pytest.raises(RefusedError, match="set: set 2 given, 3 is next"):
        adopt_set(to, (rotation,), DEPLOYMENT, recovered, now=NOW)
    with pytest.raises(RefusedError, match="not-after: set 2 ended"):
        adopt_set(to, (), DEPLOYMENT, recovered, now=to.not_after + 1)
    early = terms(activation_epoch=0)
    approve_recovery(approvals, early)
    with pytest.raises(RefusedError, match=r"terms: rotations\[0\].activationEpoch"):
        adopt_set(early, (), DEPLOYMENT, recovered, now=NOW)


async def test_a_recovered_set_hands_over_like_any_other(tmp_path: Path) -> None:
    recovered = Rotation(terms(), ())
    to = terms(set_id=3, activation_epoch=EPOCH + 200, not_after=START + 85 * 86_400)
    seats = [Seat(tmp_path, i, (recovered,), now=START) for i in (0, 1, 2, 4)]
    for seat in seats:
        seat.approve(to)
    with pytest.raises(RefusedError, match=r"set: the history on record does not verify: rotations\[0\].signatures"):
        await seats[0].rules.sign(encode_set(to))
    for seat in seats:
        approve_recovery(seat.approvals, terms())
    known = {rotation_digest(terms(), DEPLOYMENT.deployment_id())}.__contains__
    found = await collect_rotation(to, seats, (recovered,), DEPLOYMENT, recovered=known)
    assert found.rotation is not None
    assert len(found.signed) == 4
    with pytest.raises(FieldError, match="is not known to be a set that governance recovered"):
        await collect_rotation(to, seats, (recovered,), DEPLOYMENT)


def test_an_attestor_follows_a_recovered_set_only_if_its_operator_approved_it(tmp_path: Path) -> None:
    approvals = FileApprovals(tmp_path / "approvals")
    sets = Sets(DEPLOYMENT, recovered=lambda digest: approvals.approved(RECOVERY, digest))
    proposed = (Rotation(terms(), ()),)
    with pytest.raises(RefusedError, match=r"rotations: rotations\[0\].signatures: none"):
        sets.learn(proposed)
    assert sets.at(2**40).set_id == 1
    approve_recovery(approvals, terms())
    assert sets.learn(proposed)
    assert sets.at(2**40).set_id == 2


async def test_what_governance_recovers_is_not_sent_by_anybody_else() -> None:
    history = (Rotation(terms(), ()), signed(terms(set_id=3, activation_epoch=EPOCH + 200)))
    places = {"recovered": Place("landed", newest=2), "not yet": Place()}
    there, missing = await submit_rotations(history, places, Clock(), timeout=30)
    assert (there.state, there.newest_set) == ("known", 3)
    assert (missing.state, missing.newest_set, places["not yet"].sent) == ("failed", 1, [])
    assert missing.detail == "set 2 has no signatures: governance must recover it there"


# --- destinations -----------------------------------------------------------------------------------------------------


class Place:
    """A destination with a script: what becomes of each transaction that is sent to it."""

    def __init__(self, *outcomes: str | Exception, newest: int = 1) -> None:
        self.outcomes, self.newest, self.sent = list(outcomes), newest, list[int]()

    async def read_newest_set(self) -> int:
        return self.newest

    async def sign_rotation(self, rotation: Rotation) -> SignedPosting:
        if isinstance(self.outcomes[0], Exception):
            raise self.outcomes.pop(0)  # type: ignore[misc]
        return SignedPosting(f"0x{len(self.sent)}", str(rotation.to.set_id))

    async def submit(self, posting: SignedPosting) -> None:
        self.sent.append(int(posting.raw))

    async def status(self, posting: SignedPosting) -> PostingStatus:
        outcome = self.outcomes[0]
        if outcome != "pending":
            self.outcomes.pop(0)
        if outcome == "landed":
            self.newest = int(posting.raw)
            return PostingStatus("confirmed")
        return PostingStatus("confirmed" if outcome == "staged" else outcome, detail="why")  # type: ignore[arg-type]


async def test_every_destination_is_told_what_it_does_not_know_whatever_the_others_do() -> None:
    history = (signed(terms()), signed(terms(set_id=3, activation_epoch=EPOCH + 200)))
    places = {
        "knows": Place(newest=3),
        "lacks one": Place("landed", newest=2),
        "lacks both": Place("landed", "landed"),
        "in two steps": Place("staged", "landed", "staged", "landed"),
        "displaced": Place("failed", "expired", "landed", "landed"),
        "busy": Place(PostingError("busy", "underpriced", retryable=True), "landed", "landed"),
        "refuses": Place(PostingError("refuses", "set 1 ended")),
        "down": Place("landed", Unreachable("down", "no answer")),
        "slow": Place("pending"),
        "never": Place(*["failed"] * 99),
    }
    found = await submit_rotations(history, places, Clock(), timeout=30)
    assert {f.destination: (f.newest_set, f.state) for f in found} == {
        **dict.fromkeys(("knows", "lacks one", "lacks both", "in two steps", "displaced", "busy"), (3, "known")),
        "refuses": (1, "failed"),
        "down": (2, "failed"),
        "slow": (1, "pending"),
        "never": (1, "failed"),
    }
    sent = {name: place.sent for name, place in places.items()}
    assert sent["knows"] == []
    assert sent["lacks one"] == [3]
    assert sent["in two steps"] == [2, 2, 3, 3]
    assert sent["displaced"] == [2, 2, 2, 3]
    assert 1 < len(sent["never"]) < 20
    details = {f.destination: f.detail for f in found}
    assert details["refuses"] == "refuses: set 1 ended"
    assert details["down"] == "down: no answer"
    assert details["slow"] == "not there after 30 s"
    assert details["never"] == "why"


async def test_without_rotations_the_genesis_set_is_known_everywhere() -> None:
    (found,) = await submit_rotations((), {"a": Place()}, Clock())
    assert (found.state, found.newest_set, found.transaction) == ("known", 1, "")


# --- approvals --------------------------------------------------------------------------------------------------------


def test_an_approval_is_of_one_digest_and_can_be_withdrawn(tmp_path: Path) -> None:
    approvals = FileApprovals(tmp_path / "approvals")
    one, other = keccak256(b"1"), keccak256(b"2")
    assert not approvals.approved(KIND, one)
    assert approvals.list() == ()
    approvals.approve(KIND, one, {"setId": 2}, now=5, by="ada")
    approvals.approve(KIND, one, {"setId": 2}, now=9, by="bob")
    assert approvals.approved(KIND, one)
    assert not approvals.approved(KIND, other)
    assert not approvals.approved("permit", one)
    (kept,) = approvals.list()
    assert (kept.digest, kept.approved_at, kept.by, kept.document) == ("0x" + one.hex(), 5, "ada", {"setId": 2})
    assert approvals.withdraw(KIND, one)
    assert not approvals.withdraw(KIND, one)
    assert not approvals.approved(KIND, one)


def test_an_approval_that_others_could_have_written_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "approvals"
    approvals, digest = FileApprovals(folder), keccak256(b"1")
    approvals.approve(KIND, digest, {}, now=5, by="ada")
    (file,) = folder.iterdir()
    for path, mode in ((file, 0o620), (folder, 0o777)):
        path.chmod(mode)
        with pytest.raises(InputError, match="may have been written by others"):
            approvals.approved(KIND, digest)
        path.chmod(0o700)
    assert approvals.approved(KIND, digest)
    file.write_text("{}")
    with pytest.raises(InputError, match="is no approval"):
        approvals.list()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        FileApprovals(tmp_path / "file" / "approvals").approve(KIND, digest, {}, now=5, by="ada")
    assert os.listdir(folder) == [file.name]
