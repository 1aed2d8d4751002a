"""What one attestor signs, and above all what it does not."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import RefusedError, Unreachable
from aggregator.domain.snapshot import Cut
from aggregator.service.attest import Attestor, Proposal, Recomputed, collect_quorum
from aggregator.service.envelope import REASON_LIMIT
from proofs.quorum import IndexedSignature, verify_quorum
from proofs.sets import genesis_set
from proofs.signing import recover
from tests.unit.attest.statements import (
    CHAIN,
    EPOCH_SECONDS,
    LIFETIME,
    ManualClock,
    MemoryWatermark,
    certify,
    make_attestor,
    make_deployment,
    make_leaf,
    make_proposal,
    make_signers,
    recompute_as,
)

EPOCH = 900_000_000
NOW = EPOCH * EPOCH_SECONDS + 0.5
DEPLOYMENT = make_deployment(4)
DOLLAR = 10**8


def attest(proposal: Proposal, now: float = NOW, **options: Any) -> Attestation:
    return asyncio.run(make_attestor(DEPLOYMENT, 0, ManualClock(now), **options).attest(proposal))


def refusal(proposal: Proposal, now: float = NOW, **options: Any) -> RefusedError:
    watermark = MemoryWatermark()
    with pytest.raises(RefusedError) as caught:
        attest(proposal, now, watermark=watermark, **options)
    assert not watermark.signed or caught.value.rule == "expired"  # a refusal leaves no record behind
    return caught.value


def test_an_honest_proposal_is_signed_by_the_member() -> None:
    proposal = make_proposal(DEPLOYMENT, EPOCH)
    attestation = attest(proposal)
    assert recover(proposal.digest, attestation.r, attestation.vs) == DEPLOYMENT.members[0]


@pytest.mark.parametrize(
    ("rule", "said", "overrides"),
    [
        ("digest", "proposed", {"digest": b"\x11" * 32}),
        ("digest", "header.body", {"header": {"body": b"\x11" * 32}}),
        ("clock", "beyond", {"header": {"produced_at": int(NOW) + 7}}),
        (
            "clock",
            "before the cut",
            {"header": {"produced_at": EPOCH * EPOCH_SECONDS - 1, "valid_until": int(NOW) + 9}},
        ),
        ("expired", "validUntil", {"header": {"valid_until": int(NOW)}}),
        ("lifetime", f"{LIFETIME + 1} s", {"header": {"valid_until": EPOCH * EPOCH_SECONDS + LIFETIME + 1}}),
        ("lifetime", "-1 s", {"header": {"produced_at": int(NOW) + 3, "valid_until": int(NOW) + 2}}),
        ("epoch", "header", {"header": {"epoch": EPOCH + 1}}),
        ("epoch", "by the cut's time", {"cut": Cut(EPOCH, (EPOCH - 1) * EPOCH_SECONDS, ())}),
        ("set", "setId 2", {"header": {"set_id": 2}}),
        ("floor", f"{EPOCH + 1} proposed", {"header": {"floor": EPOCH + 1}}),
        ("previous", "the log ends with", {"body": {"previous": b"\x11" * 32}}),
        ("root", "over the proposed leaves", {"header": {"root": b"\x11" * 32}}),
        ("root", "leafCount 3", {"body": {"leaf_count": 3}}),
        ("accounts-root", "over the leaves", {"body": {"accounts_root": b"\x11" * 32}}),
    ],
)
def test_each_rule_of_a_statement_refuses_and_names_itself(rule: str, said: str, overrides: dict[str, Any]) -> None:
    error = refusal(make_proposal(DEPLOYMENT, EPOCH, **overrides))
    assert (error.rule, said in error.reason) == (rule, True), str(error)


@pytest.mark.parametrize(
    ("rule", "digest"),
    [
        ("cut", "cut_digest"),
        ("prices", "price_digest"),
        ("policy", "policy_digest"),
        ("risk", "risk_digest"),
        ("state", "state_digest"),
        ("accounts-root", "accounts_root"),
    ],
)
def test_each_digest_must_be_the_attestors_own(rule: str, digest: str) -> None:
    error = refusal(make_proposal(DEPLOYMENT, EPOCH), recompute=recompute_as(**{digest: b"\x22" * 32}))
    assert error.rule == rule
    assert "22" * 32 in error.reason


@pytest.mark.parametrize(
    ("field", "sign"),
    [
        ("assets_initial", 1),
        ("assets_maintenance", 1),
        ("budget", 1),
        ("requirement_initial", -1),
        ("requirement_maintenance", -1),
    ],
)
def test_amounts_may_differ_in_the_accounts_favour_by_one_quantum_only(field: str, sign: int) -> None:
    own = make_leaf(EPOCH, equity=3_000 * DOLLAR)
    quantum = 1  # the relative part vanishes below 10,000 USD
    amount = getattr(own, field)
    for difference in (sign * quantum, -sign * 500 * DOLLAR):
        attest(
            make_proposal(DEPLOYMENT, EPOCH, (own._replace(**{field: amount + difference}),)),
            recompute=recompute_as((own,)),
        )
    proposed = own._replace(**{field: amount + sign * (quantum + 1)})
    error = refusal(make_proposal(DEPLOYMENT, EPOCH, (proposed,)), recompute=recompute_as((own,)))
    assert error.rule == "leaves"
    assert f"{field} {amount + sign * (quantum + 1)} proposed, {amount} found" in error.reason


@pytest.mark.parametrize(("field", "flags"), [("equity", 0), ("equity", 32), ("assets_initial", 32)])
def test_what_only_informs_may_differ_by_a_little_more(field: str, flags: int) -> None:
    """A wallet that pays fees between two looks must not stop an epoch; a number nobody lends on may say so."""
    own = make_leaf(EPOCH, equity=3_000 * DOLLAR, flags=flags)
    for difference, accepted in ((DOLLAR, True), (3 * DOLLAR, False)):
        proposed = own._replace(**{field: getattr(own, field) + difference})
        proposal = make_proposal(DEPLOYMENT, EPOCH, (proposed,))
        if accepted:
            attest(proposal, recompute=recompute_as((own,)))
        else:
            assert refusal(proposal, recompute=recompute_as((own,))).rule == "leaves"


def test_the_quantum_grows_with_the_amount() -> None:
    own = make_leaf(EPOCH, assets_initial=5 * 10**20)
    allowed = own._replace(assets_initial=5 * 10**20 + 1 + 5 * 10**8)
    attest(make_proposal(DEPLOYMENT, EPOCH, (allowed,)), recompute=recompute_as((own,)))
    beyond = allowed._replace(assets_initial=allowed.assets_initial + 1)
    assert refusal(make_proposal(DEPLOYMENT, EPOCH, (beyond,)), recompute=recompute_as((own,))).rule == "leaves"


@pytest.mark.parametrize("change", [{"as_of": 1}, {"valid_until": 2_000_000_000}, {"flags": 8}, {"epoch": EPOCH - 1}])
def test_times_and_flags_must_be_equal(change: dict[str, int]) -> None:
    own = make_leaf(EPOCH)
    proposal = make_proposal(DEPLOYMENT, EPOCH, (own._replace(**change),))
    error = refusal(proposal, recompute=recompute_as((own,)))
    assert error.rule == "leaves"
    assert next(iter(change)) in error.reason


def test_accounts_must_be_the_same() -> None:
    one, two = make_leaf(EPOCH, 1), make_leaf(EPOCH, 2)
    for proposed, found in (((one,), (one, two)), ((one, two), (one,)), ((one,), (two,))):
        assert refusal(make_proposal(DEPLOYMENT, EPOCH, proposed), recompute=recompute_as(found)).rule == "leaves"


def test_one_pair_of_account_and_destination_has_one_leaf() -> None:
    one = make_leaf(EPOCH)
    proposal = replace(make_proposal(DEPLOYMENT, EPOCH, (one,)), leaves=(one, one._replace(budget=0)))
    assert "2 leaves for 1" in refusal(proposal, recompute=recompute_as((one,))).reason


def test_a_destination_may_be_named_by_its_chain() -> None:
    proposal = make_proposal(DEPLOYMENT, EPOCH)
    named = replace(proposal, leaves=tuple(leaf._replace(destination=CHAIN) for leaf in proposal.leaves))

    async def recompute(given: Proposal) -> Any:
        found = await recompute_as()(proposal)
        return found._replace(leaves=given.leaves)

    assert attest(named, recompute=recompute)


def test_the_log_goes_on_where_it_ended() -> None:
    first = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, EPOCH - 2, header={"floor": 5}))
    second = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, EPOCH - 1, previous=first, header={"floor": 7}))
    proposal = make_proposal(DEPLOYMENT, EPOCH, previous=second, header={"floor": 7})
    attest(proposal)  # a newcomer believes the quorum
    attest(proposal, last=first)  # one that missed an epoch catches up
    attest(proposal, last=second)
    error = refusal(make_proposal(DEPLOYMENT, EPOCH, previous=first, header={"floor": 7}), last=second)
    assert error.rule == "previous"
    assert second.digest.hex() in error.reason
    assert refusal(make_proposal(DEPLOYMENT, EPOCH), last=second).rule == "previous"
    assert refusal(make_proposal(DEPLOYMENT, EPOCH, previous=second, header={"floor": 6})).rule == "floor"
    again = make_proposal(DEPLOYMENT, EPOCH - 1, previous=second, header={"floor": 7})
    assert refusal(again).rule == "epoch"


def test_a_previous_statement_without_its_quorum_is_not_believed() -> None:
    genuine = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, EPOCH - 1))
    short = replace(genuine, attestations=genuine.attestations[:-1])
    forged = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, EPOCH - 1), make_signers(5)[1:])
    renamed = replace(genuine, digest=b"\x11" * 32)
    for previous in (short, forged, renamed):
        assert refusal(make_proposal(DEPLOYMENT, EPOCH, previous=previous)).rule == "previous"


def test_a_previous_statement_that_is_not_the_head_is_not_passed_on() -> None:
    """Its floor would make an attestor forget a reorganisation that nobody answered."""
    last = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, EPOCH - 1))
    older = make_proposal(DEPLOYMENT, EPOCH - 3, header={"floor": EPOCH - 3})
    fake = certify(DEPLOYMENT, older, make_signers(5)[1:])
    proposal = make_proposal(DEPLOYMENT, EPOCH, previous=last)
    seen: list[Proposal] = []

    async def recompute(given: Proposal) -> Recomputed:
        seen.append(given)
        return await recompute_as(given.leaves)(given)

    assert refusal(replace(proposal, previous=fake), last=last, recompute=recompute).rule == "previous"
    assert seen == []
    attest(replace(proposal, previous=None), last=last, recompute=recompute)
    assert [p.previous for p in seen] == [last]


def test_nothing_is_signed_once_the_statement_has_expired_meanwhile() -> None:
    clock = ManualClock(NOW)
    watermark = MemoryWatermark()

    async def slow(proposal: Proposal) -> Any:
        clock.time = proposal.header.valid_until
        return await recompute_as()(proposal)

    attestor = make_attestor(DEPLOYMENT, 0, clock, recompute=slow, watermark=watermark)
    with pytest.raises(RefusedError, match=r"^expired"):
        asyncio.run(attestor.attest(make_proposal(DEPLOYMENT, EPOCH)))


def test_an_ended_set_signs_nothing() -> None:
    deployment = make_deployment(4, not_after=int(NOW) - 1)
    with pytest.raises(RefusedError, match=r"^set"):
        asyncio.run(make_attestor(deployment, 0, ManualClock(NOW)).attest(make_proposal(deployment, EPOCH)))


def test_after_a_start_it_waits_out_what_it_may_have_signed_before() -> None:
    delay = EPOCH_SECONDS + LIFETIME
    clock = ManualClock(NOW)
    attestor = make_attestor(DEPLOYMENT, 0, clock, start_delay=delay)
    last_refused = int(NOW + delay) // EPOCH_SECONDS
    for epoch, allowed in ((EPOCH, False), (last_refused, False), (last_refused + 1, True)):
        clock.time = epoch * EPOCH_SECONDS + 0.5
        proposal = make_proposal(DEPLOYMENT, epoch)
        if allowed:
            asyncio.run(attestor.attest(proposal))
        else:
            with pytest.raises(RefusedError, match=r"^start"):
                asyncio.run(attestor.attest(proposal))


def test_only_a_devnet_may_start_without_the_wait() -> None:
    deployment = make_deployment(4, network_class=2)
    with pytest.raises(RefusedError, match=r"^start"):
        make_attestor(deployment, 0, ManualClock(NOW))


def test_it_signs_only_above_what_the_chains_hold() -> None:
    assert refusal(make_proposal(DEPLOYMENT, EPOCH), chain_highest=EPOCH).rule == "chain-highest"
    attest(make_proposal(DEPLOYMENT, EPOCH), chain_highest=EPOCH - 1)


def test_a_key_that_is_not_the_members_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"^member"):
        make_attestor(DEPLOYMENT, 0, ManualClock(NOW), signer=make_signers(2)[1])


def test_a_second_statement_of_an_epoch_is_refused_and_an_identical_repeat_is_not() -> None:
    attestor = make_attestor(DEPLOYMENT, 0, ManualClock(NOW))
    first = make_proposal(DEPLOYMENT, EPOCH)
    other = make_proposal(DEPLOYMENT, EPOCH, (make_leaf(EPOCH, 3),))

    async def run() -> None:
        attestation = await attestor.attest(first)
        assert await attestor.attest(first) == attestation
        with pytest.raises(RefusedError, match=r"^watermark"):
            await attestor.attest(other)

    asyncio.run(run())


# -- the quorum


class Scripted:
    """An attestor that answers as told."""

    def __init__(self, index: int, answer: Any, name: str = "") -> None:
        self.name, self.member = name or f"scripted-{index}", DEPLOYMENT.members[index]
        self._answer = answer

    async def attest(self, proposal: Proposal) -> Attestation:
        return await self._answer(proposal)


def honest(index: int) -> Attestor:
    return make_attestor(DEPLOYMENT, index, ManualClock(NOW))


def collect(attestors: list[Any], proposal: Proposal | None = None, timeout: float = 5.0, grace: float = 1.0) -> Any:
    return asyncio.run(
        collect_quorum(
            proposal or make_proposal(DEPLOYMENT, EPOCH),
            attestors,
            genesis_set(DEPLOYMENT),
            timeout=timeout,
            grace=grace,
        )
    )


async def _never(_: Proposal) -> Attestation:
    await asyncio.Event().wait()
    raise AssertionError


async def _garbage(_: Proposal) -> Attestation:
    return Attestation(3, b"\x01" * 32, b"\x7f" * 32)


async def _crash(_: Proposal) -> Attestation:
    raise ZeroDivisionError("secret detail")


async def _unreachable(_: Proposal) -> Attestation:
    raise Unreachable("ethereum", "no answer")


async def _by_another_key(proposal: Proposal) -> Attestation:
    return Attestation(3, *make_signers(5)[4].sign(proposal.digest))


async def _as_another_member(proposal: Proposal) -> Attestation:
    return Attestation(0, *make_signers(1)[0].sign(proposal.digest))


async def _another_digest(_: Proposal) -> Attestation:
    return Attestation(3, *make_signers(4)[3].sign(b"\x11" * 32))


async def _high_s(proposal: Proposal) -> Attestation:
    r, vs = make_signers(4)[3].sign(proposal.digest)
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    return Attestation(3, r, (order - (int.from_bytes(vs, "big") & (2**255 - 1))).to_bytes(32, "big"))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_never, "late"),
        (_garbage, "signature"),
        (_crash, "failed: ZeroDivisionError"),
        (_unreachable, "ethereum: no answer"),
        (_by_another_key, "signature: recovers to"),
        (_as_another_member, "index"),
        (_another_digest, "signature: recovers to"),
        (_high_s, "signature"),
    ],
)
def test_no_answer_of_one_breaks_the_certificate_of_three(answer: Any, reason: str) -> None:
    proposal = make_proposal(DEPLOYMENT, EPOCH)
    quorum = collect([Scripted(3, answer), honest(2), honest(0), honest(1)], proposal)
    assert [a.index for a in quorum.attestations] == [0, 1, 2]
    signatures = [IndexedSignature(a.index, a.r, a.vs) for a in quorum.attestations]
    verify_quorum(proposal.digest, signatures, DEPLOYMENT.members, DEPLOYMENT.threshold)
    ((name, said, *_),) = quorum.refusals
    assert name == "scripted-3"
    assert said.startswith(reason)
    assert "secret detail" not in said


def test_everyone_who_answers_in_time_signs() -> None:
    quorum = collect([honest(i) for i in range(4)], grace=1.0)
    assert [a.index for a in quorum.attestations] == [0, 1, 2, 3]
    assert quorum.refusals == ()


def test_below_the_threshold_there_is_no_certificate() -> None:
    quorum = collect([honest(0), honest(1), Scripted(2, _unreachable), Scripted(3, _never)], timeout=0.1)
    assert quorum.attestations == ()
    assert [name for name, *_ in quorum.refusals] == ["scripted-2", "scripted-3"]


def test_answering_twice_counts_once() -> None:
    async def copy(proposal: Proposal) -> Attestation:
        return Attestation(0, *make_signers(1)[0].sign(proposal.digest))

    quorum = collect([honest(0), Scripted(0, copy, "twin"), honest(1)], timeout=0.2)
    assert quorum.attestations == ()
    assert [reason.partition(":")[0] for _, reason, *_ in quorum.refusals] == ["index"]


@given(st.permutations(range(4)), st.sets(st.integers(0, 3), max_size=1))
def test_order_of_asking_does_not_matter(order: list[int], silent: set[int]) -> None:
    attestors = [Scripted(i, _unreachable) if i in silent else honest(i) for i in order]
    quorum = collect(attestors, grace=1.0)
    assert [a.index for a in quorum.attestations] == sorted(set(range(4)) - silent)


def test_an_honest_disagreement_names_every_difference() -> None:
    own = (make_leaf(EPOCH), make_leaf(EPOCH, 2))
    theirs = (
        own[0]._replace(budget=own[0].budget + 100, requirement_initial=1, as_of=own[0].as_of - 1),
        own[1]._replace(equity=own[1].equity * 2),
    )
    error = refusal(make_proposal(DEPLOYMENT, EPOCH, theirs), recompute=recompute_as(own))
    first, second = (str((leaf.account, leaf.destination)) for leaf in own)
    assert str(error) == (
        f"leaves: {first}: budget {theirs[0].budget} proposed, {own[0].budget} found; "
        f"{first}: requirement_initial 1 proposed, {own[0].requirement_initial} found; "
        f"{first}: as_of {theirs[0].as_of} proposed, {own[0].as_of} found; "
        f"{second}: equity {theirs[1].equity} proposed, {own[1].equity} found"
    )


def test_of_many_differences_twenty_are_named_and_the_rest_counted() -> None:
    own = tuple(make_leaf(EPOCH, i) for i in range(1, 15))
    theirs = tuple(leaf._replace(budget=2**127, assets_initial=2**127) for leaf in own[:12]) + own[13:]
    error = refusal(make_proposal(DEPLOYMENT, EPOCH, theirs), recompute=recompute_as(own))
    assert error.reason.startswith(f"missing {(own[12].account, own[12].destination)}; ")
    assert error.reason.count(" proposed, ") == 19
    assert error.reason.endswith("; and 5 more")
    assert len(str(error)) < REASON_LIMIT


def test_a_key_that_takes_its_time_holds_nobody_up() -> None:
    asking, go_on = threading.Event(), threading.Event()

    class Token:
        address = make_signers(1)[0].address

        def sign(self, digest: bytes) -> tuple[bytes, bytes]:
            asking.set()
            assert go_on.wait(20)
            return make_signers(1)[0].sign(digest)

    async def run() -> Attestation:
        attestor = make_attestor(DEPLOYMENT, 0, ManualClock(NOW), signer=Token())
        signing = asyncio.create_task(attestor.attest(make_proposal(DEPLOYMENT, EPOCH)))
        await asyncio.to_thread(asking.wait, 20)
        go_on.set()  # the loop gets here while the token is at work
        return await signing

    assert asyncio.run(run()).index == 0
