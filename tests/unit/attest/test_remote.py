"""An attestor behind a wire: what is believed of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from aggregator.domain.budgets import Grant
from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import Garbage, RefusedError, Unreachable
from aggregator.service import envelope
from aggregator.service.attest import collect_quorum
from aggregator.service.envelope import (
    Answer,
    Counts,
    Need,
    Seen,
    Status,
    decode_epoch,
    encode_answer,
    encode_status,
    sign_refusal,
)
from aggregator.service.remote import RULES, AttestorClient, ClientLimits, Fences, Parcels, SignedRefusalError
from proofs.errors import FieldError
from proofs.refusals import verify_refusal
from proofs.sets import genesis_set
from tests.unit.attest.statements import certify, make_deployment, make_proposal, make_signers

DEPLOYMENT = make_deployment(4)
ID = DEPLOYMENT.deployment_id()
SIGNERS = make_signers(4)
PROPOSAL = make_proposal(DEPLOYMENT, 900_000_000)
EPOCH = PROPOSAL.header.epoch
HAVE = Counts(0, 0, 0)


class Scripted:
    """A wire that answers from a list, the last entry for ever."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, bytes]] = []
        self.closed = False

    async def call(self, method: str, path: str, body: bytes = b"", *, seconds: float, limit: int) -> bytes:
        self.asked.append((method, path, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed = True


def make_client(wire: Any, index: int = 0, **options: Any) -> AttestorClient:
    options = {"fences": Fences(), "parcels": Parcels(), **options}
    member = bytes.fromhex(SIGNERS[index].address[2:])
    return AttestorClient(f"attestor-{index}", index, member, wire, deployment_id=ID, **options)


def answer(result: Any, index: int = 0, starts: int = 1) -> bytes:
    return encode_answer(Answer(index, starts, result))


def signature(index: int = 0) -> Attestation:
    return Attestation(index, *SIGNERS[index].sign(PROPOSAL.digest))


def refusal(text: str, *, signer: int = 0, epoch: int = EPOCH, digest: bytes = PROPOSAL.digest) -> bytes:
    rule, _, reason = text.partition(": ")
    return answer(sign_refusal(SIGNERS[signer], ID, epoch, digest, RefusedError(rule, reason)))


async def test_a_signature_comes_back_from_one_request() -> None:
    wire, fences = Scripted(answer(signature(), starts=4)), Fences()
    assert await make_client(wire, fences=fences).attest(PROPOSAL) == signature()
    ((method, path, body),) = wire.asked
    assert (method, path) == ("POST", "/v1/attest/epoch")
    assert decode_epoch(body).leaves is None
    assert fences.seen() == (Seen(0, 4, EPOCH),)


async def test_what_is_needed_is_added_until_it_is_enough() -> None:
    have = Counts(0, 0, 0)
    wire = Scripted(answer(Need(("levels", "log"), have)), answer(Need(("leaves",), have)), answer(signature()))
    assert await make_client(wire).attest(PROPOSAL) == signature()
    sent = [decode_epoch(body) for _, _, body in wire.asked]
    assert [(r.leaves is not None, r.levels is not None, r.tail is not None) for r in sent] == [
        (False, False, False),
        (False, True, True),
        (True, True, True),
    ]
    assert sent[2].leaves == PROPOSAL.leaves


async def test_who_never_has_enough_is_given_up() -> None:
    wire = Scripted(answer(Need(("leaves",), HAVE)))
    with pytest.raises(Garbage, match="still needs leaves, which it was sent"):
        await make_client(wire).attest(PROPOSAL)
    assert len(wire.asked) == 2
    wire = Scripted(*(answer(Need(("log",), Counts(i, 0, 0))) for i in range(9)))
    with pytest.raises(Garbage, match="still needs log"):
        await make_client(wire).attest(PROPOSAL)
    assert len(wire.asked) == 4


async def test_a_refusal_is_raised_with_its_proof() -> None:
    wire = Scripted(refusal("reorged: eip155:1: the Cut says 0x1, 0x2 here"))
    with pytest.raises(SignedRefusalError, match=r"^reorged: eip155:1: the Cut says 0x1, 0x2 here$") as error:
        await make_client(wire).attest(PROPOSAL)
    assert (error.value.rule, error.value.index) == ("reorged", 0)
    envelope.verify_refusal(error.value.refusal, bytes.fromhex(SIGNERS[0].address[2:]), ID)


async def test_a_refusal_is_kept_with_its_signature_and_its_claims() -> None:
    claim = Grant("0x" + "01" * 32, "0x" + "ab" * 32, 6, 10, 99)
    said = "grants: 0x01 at 0xab: 0 listed, 10 of epoch 6 signed"
    signed = sign_refusal(SIGNERS[1], ID, EPOCH, PROPOSAL.digest, RefusedError(*said.split(": ", 1)))
    strange = sign_refusal(SIGNERS[2], ID, EPOCH, PROPOSAL.digest, RefusedError("<b>", "x"))
    clients = [
        make_client(Scripted(answer(signature()))),
        make_client(Scripted(encode_answer(Answer(1, 1, signed, (claim,)))), 1),
        make_client(Scripted(answer(strange, 2)), 2),
        make_client(Scripted(Unreachable("attestor-3", "no answer")), 3),
    ]
    quorum = await collect_quorum(PROPOSAL, clients, genesis_set(DEPLOYMENT), timeout=20, grace=20)
    assert [r.reason for r in quorum.refusals] == [said, "<b>: x", "attestor-3: no answer"]
    assert quorum.rules == ("grants", "refused", "attestor-3")
    members = DEPLOYMENT.members
    assert quorum.claims == {members[1]: (claim,)}
    assert (quorum.signers, quorum.refused) == ({members[0]}, {members[1], members[2]})
    for index, kept in enumerate(quorum.refusals[:2], 1):
        digest, proof = bytes.fromhex(kept.digest[2:]), bytes.fromhex(kept.signature[2:])
        assert digest == PROPOSAL.digest
        verify_refusal(EPOCH, digest, kept.reason, proof, members[index], ID)
        for wrong in ((EPOCH + 1, digest, kept.reason), (EPOCH, bytes(32), kept.reason), (EPOCH, digest, "another")):
            with pytest.raises(FieldError, match=r"^refusal\.signature: recovers to"):
                verify_refusal(*wrong, proof, members[index], ID)
        with pytest.raises(FieldError, match=r"^refusal\.signature: 63 bytes"):
            verify_refusal(EPOCH, digest, kept.reason, proof[:63], members[index], ID)
    assert quorum.refusals[2][2:] == ("", "")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (refusal("leaves: no", signer=1), "its refusal is not its own"),
        (refusal("leaves: no", epoch=EPOCH - 1), "refuses something else"),
        (refusal("leaves: no", digest=bytes(32)), "refuses something else"),
        (answer(signature(), index=1), "is attestor 0 and answers as 1"),
        (b"", "its answer cannot be read: body"),
        (b"\x78\x9c garbage", "its answer cannot be read: body"),
        (encode_status(Status(0, 1, 1, HAVE, None)), "its answer cannot be read: kind"),
    ],
)
async def test_a_wrong_answer_is_garbage(given: bytes, why: str) -> None:
    with pytest.raises(Garbage, match=f"^attestor-0: .*{why}"):
        await make_client(Scripted(given)).attest(PROPOSAL)


async def test_rules_that_label_metrics_are_not_made_up_without_end() -> None:
    client = make_client(Scripted(b""))

    async def rule_of(text: str) -> str:
        client._wire.answers = [refusal(text)]  # type: ignore[attr-defined]
        with pytest.raises(SignedRefusalError) as error:
            await client.attest(PROPOSAL)
        assert text in str(error.value)
        return error.value.rule

    for strange in ("no rule at all", "<b>: x", "ünï: x", "x" * 41 + ": x", "-: x", "1: x"):
        assert await rule_of(strange) == "refused"
    names = [f"rule-{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(RULES)]
    for name in names:
        assert await rule_of(f"{name}: x") == name
    assert await rule_of("another: x") == "refused"
    assert await rule_of(f"{names[0]}: x") == names[0]


async def test_a_lower_fencing_number_is_refused_whatever_it_comes_with() -> None:
    fences = Fences()
    await make_client(Scripted(answer(signature(), starts=5)), fences=fences).attest(PROPOSAL)
    for given in (answer(signature(), starts=4), answer(Need(("log",), HAVE), starts=4), refusal("leaves: x")):
        with pytest.raises(RefusedError, match=r"^fence: attestor 0 answers with start [14], start 5 was seen"):
            await make_client(Scripted(given), fences=fences).attest(PROPOSAL)
    with pytest.raises(RefusedError, match=r"^fence: "):
        await make_client(Scripted(encode_status(Status(0, 4, 1, HAVE, None))), fences=fences).status()
    await make_client(Scripted(answer(signature(), starts=5)), fences=fences).attest(PROPOSAL)
    assert fences.seen() == (Seen(0, 5, EPOCH),)


async def test_status_and_certificates() -> None:
    status = Status(0, 3, 7, Counts(1, 2, 3), certify(DEPLOYMENT, PROPOSAL), (Seen(1, 2, 3),))
    wire = Scripted(encode_status(status))
    client = make_client(wire)
    assert await client.status() == status
    wire.answers = [b""]
    assert status.certificate is not None
    await client.tell(status.certificate)
    assert wire.asked[1][:2] == ("POST", "/v1/certificates")
    assert envelope.decode_certificate(wire.asked[1][2]) == status.certificate
    for given, why in ((encode_status(replace(status, index=1)), "says it is 1"), (b"x", "its status cannot be read")):
        with pytest.raises(Garbage, match=why):
            await make_client(Scripted(given)).status()
    await client.close()
    assert wire.closed


async def test_documents_are_asked_for_by_kind() -> None:
    document = {"account": "0x11", "amount": "5"}
    wire = Scripted(answer(signature()))
    client = make_client(wire)
    assert await client.ask("permit", document) == signature()
    assert wire.asked[0][1] == "/v1/attest/permit"
    assert envelope.decode_document("permit", wire.asked[0][2]) == document
    digest = envelope.document_digest("permit", document)
    wire.answers = [refusal("margin: short", epoch=0, digest=digest)]
    with pytest.raises(SignedRefusalError, match="margin: short"):
        await client.ask("permit", document)
    with pytest.raises(Garbage, match="refuses something else"):
        await client.ask("hold", document)
    wire.answers = [answer(Need(("leaves",), HAVE))]
    with pytest.raises(Garbage, match="of which a document has none"):
        await client.ask("permit", document)
    with pytest.raises(RefusedError, match=r"^envelope: document.a: float given"):
        await client.ask("permit", {"a": 0.5})


async def test_a_proposal_beyond_encoding_is_refused_by_field() -> None:
    leaf = PROPOSAL.leaves[0]._replace(budget=2**128)
    client = make_client(Scripted(answer(Need(("leaves",), HAVE))))
    with pytest.raises(RefusedError, match=r"^envelope: leaves\[0\]\.budget"):
        await client.attest(replace(PROPOSAL, leaves=(leaf,)))


async def test_a_slow_attestor_is_late() -> None:
    class Stuck(Scripted):
        async def call(self, *arguments: Any, **options: Any) -> bytes:
            await asyncio.Event().wait()
            return b""

    with pytest.raises(RefusedError, match=r"^late: attestor-0 took more than 0\.05 s"):
        await make_client(Stuck(b""), limits=ClientLimits(epoch_seconds=0.05)).attest(PROPOSAL)


async def test_one_encoding_serves_all_who_need_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    real = envelope.encode_epoch

    def watched(proposal: Any, parts: Sequence[Any], *more: Any) -> bytes:
        made.append(tuple(parts))
        return real(proposal, parts, *more)

    monkeypatch.setattr(envelope, "encode_epoch", watched)
    parcels = Parcels()
    answers = (answer(Need(("leaves",), HAVE), i) for i in range(4))
    clients = [
        make_client(Scripted(need, answer(signature(i), i)), i, parcels=parcels) for i, need in enumerate(answers)
    ]
    quorum = await collect_quorum(PROPOSAL, clients, genesis_set(DEPLOYMENT), timeout=20, grace=20)
    assert [a.index for a in quorum.attestations] == [0, 1, 2, 3]
    assert sorted(made) == [(), ("leaves",)]


async def test_the_order_of_opening_is_asked_for_only_with_the_log() -> None:
    calls = 0

    async def order() -> Sequence[str]:
        nonlocal calls
        calls += 1
        return ()

    parcels = Parcels(order)
    await parcels.encode(PROPOSAL)
    assert calls == 0
    await parcels.encode(PROPOSAL, ("log",))
    assert calls == 1


@pytest.mark.parametrize(
    "bad",
    [lambda: Unreachable("attestor-3", "cannot be reached"), lambda: b"garbage", lambda: answer(signature(2), 3)],
)
async def test_one_bad_attestor_costs_its_own_place_only(bad: Callable[[], Any]) -> None:
    clients = [make_client(Scripted(answer(signature(i), i)), i) for i in range(3)]
    clients.append(make_client(Scripted(bad()), 3))
    quorum = await collect_quorum(PROPOSAL, clients, genesis_set(DEPLOYMENT), timeout=20, grace=20)
    assert [a.index for a in quorum.attestations] == [0, 1, 2]
    assert [who for who, *_ in quorum.refusals] == ["attestor-3"]
