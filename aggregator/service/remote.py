"""One attestor behind a wire: what it is asked, what is believed of its answers, and its fencing number.

Nothing it says is trusted further than its signature: lengths, indices and texts are bounded when they are decoded, and
whatever is wrong with an answer is that attestor's failure alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregator.domain.budgets import Grant
from aggregator.domain.certificate import Attestation, Certificate, EpochRecord
from aggregator.domain.errors import DissentError, Garbage, RefusedError
from aggregator.ports import Wire
from aggregator.service import envelope
from aggregator.service.attest import Proposal
from aggregator.service.envelope import NOTHING, PARTS, Answer, Counts, Kind, Need, Part, Seen, SignedRefusal, Status
from proofs.errors import FieldError
from proofs.quorum import MAX_MEMBERS

RULES = 64
"""Different rules that one attestor may name; they label metrics."""
REQUESTS = 4
"""Requests that one epoch may take: as it is, with levels and log, with all accounts, with leaves."""
_RULE_LENGTH = 40


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How long an attestor may take, and how much it may say."""

    epoch_seconds: float = 120.0  # for all requests of an epoch; whoever collects a quorum has a shorter patience
    seconds: float = 15.0  # for anything else
    answer: int = 1 << 20  # bytes; grants that come with a refusal take most of it
    record: int = 128 << 20  # bytes of a whole epoch


class SignedRefusalError(DissentError):
    """An attestor's refusal, proven to be its own.

    Args:
        index: the attestor's. refusal: as it was signed. claims: the grants that came with it.
    """

    def __init__(
        self, index: int, rule: str, reason: str, refusal: SignedRefusal, claims: tuple[Grant, ...] = ()
    ) -> None:
        signature = refusal.r + refusal.vs
        super().__init__(rule, reason, claims=claims, digest=refusal.digest, signature=signature, text=refusal.reason)
        self.index, self.refusal = index, refusal


class Fences:
    """The highest fencing number, and epoch signed, that this process saw of each attestor.

    One that answers with a lower number than before was restored from an old backup, or is a second process with
    the same key that was started earlier: nothing it says counts.
    """

    def __init__(self) -> None:
        self._starts: dict[int, int] = {}
        self._epochs: dict[int, int] = {}

    def verify(self, index: int, starts: int) -> None:
        """Take note of an attestor's fencing number.

        Raises:
            RefusedError: it is lower than one seen before.
        """
        seen = self._starts.get(index, 0)
        if starts < seen:
            raise RefusedError("fence", f"attestor {index} answers with start {starts}, start {seen} was seen")
        if 0 <= index < MAX_MEMBERS:
            self._starts[index] = starts

    def saw(self, index: int, epoch: int) -> None:
        """Take note that an attestor signed ``epoch``."""
        if 0 <= index < MAX_MEMBERS:
            self._epochs[index] = max(epoch, self._epochs.get(index, 0))

    def seen(self) -> tuple[Seen, ...]:
        """Return what was seen, by index."""
        indices = sorted(self._starts.keys() | self._epochs.keys())
        return tuple(Seen(i, self._starts.get(i, 0), self._epochs.get(i, 0)) for i in indices)


class Parcels:
    """Encodes a proposal once for all attestors that are asked for the same parts.

    Args:
        order: gives account ids in the order they were opened; without it all accounts go to whoever lacks some.
    """

    def __init__(self, order: Callable[[], Awaitable[Sequence[str]]] | None = None) -> None:
        self._order = order
        self._proposal: Proposal | None = None
        self._made: dict[tuple[tuple[Part, ...], Counts], asyncio.Task[bytes]] = {}

    async def encode(self, proposal: Proposal, parts: tuple[Part, ...] = (), have: Counts = NOTHING) -> bytes:
        """Return the request's body with the named parts; ``have`` is what the receiver has of the log.

        Raises:
            FieldError: the proposal holds what no attestor could read.
        """
        if proposal is not self._proposal:  # the one before is history; who still waits for it has its task
            self._proposal, self._made = proposal, {}
        key = parts, have if "log" in parts else NOTHING
        if key not in self._made:
            self._made[key] = asyncio.create_task(self._encode(proposal, *key))
        return await asyncio.shield(self._made[key])  # one attestor given up must not stop the others

    async def _encode(self, proposal: Proposal, parts: tuple[Part, ...], have: Counts) -> bytes:
        order: Sequence[str] = ()
        if self._order is not None and "log" in parts:
            order = await self._order()
        return await asyncio.to_thread(envelope.encode_epoch, proposal, parts, have, order)


class AttestorClient:
    """Implements ``aggregator.service.attest.Attesting`` over a wire.

    Args:
        name: for people, in refusals and metrics.
        index: its number in the configuration, which it answers with.
        member: the address it attests with, 20 bytes.
        wire: the way to it, authenticated.
        fences, parcels: shared by all clients of the process.
    """

    def __init__(
        self,
        name: str,
        index: int,
        member: bytes,
        wire: Wire,
        *,
        deployment_id: bytes,
        fences: Fences,
        parcels: Parcels,
        limits: ClientLimits | None = None,
    ) -> None:
        self._name, self._index, self._member, self._wire = name, index, member, wire
        self._deployment_id, self._fences, self._parcels = deployment_id, fences, parcels
        self._limits = limits or ClientLimits()
        self._rules: set[str] = set()

    @property
    def name(self) -> str:
        """Its name, for people."""
        return self._name

    @property
    def index(self) -> int:
        """Its number in the configuration."""
        return self._index

    @property
    def member(self) -> bytes:
        """The address it attests with, 20 bytes; its place in a set follows from it."""
        return self._member

    async def attest(self, proposal: Proposal) -> Attestation:
        """Ask for a signature of an epoch, with the parts it says it needs.

        Raises:
            SignedRefusalError: it refuses. RefusedError: an answer that does not count, or a proposal beyond encoding.
            SourceError: it does not answer, or answers what the protocol does not allow.
        """
        try:
            async with asyncio.timeout(self._limits.epoch_seconds):
                answer = await self._ask_epoch(proposal)
        except TimeoutError:
            raise RefusedError("late", f"{self._name} took more than {self._limits.epoch_seconds:g} s") from None
        except FieldError as error:
            raise RefusedError("envelope", str(error)) from None
        attestation = self._attestation(answer, proposal.header.epoch, proposal.digest)
        self._fences.saw(self._index, proposal.header.epoch)
        return attestation

    async def ask(self, kind: Kind, document: Mapping[str, Any]) -> Attestation:
        """Ask for a signature of a rotation, permit or hold; whether it is one is for the caller to verify.

        Raises:
            SignedRefusalError, RefusedError, SourceError: as :meth:`attest`.
        """
        try:
            body = envelope.encode_document(kind, document)
        except FieldError as error:
            raise RefusedError("envelope", str(error)) from None
        answer = await self._post(f"/v1/attest/{kind}", body, self._limits.seconds)
        return self._attestation(answer, 0, envelope.document_digest(kind, document))

    async def tell(self, certificate: Certificate) -> None:
        """Tell it a certificate.

        Raises:
            SourceError, RefusedError: it did not take it.
        """
        body = envelope.encode_certificate(certificate)
        await self._wire.call("POST", "/v1/certificates", body, seconds=self._limits.seconds, limit=0)

    async def newest(self) -> EpochRecord:
        """Return the newest certified epoch it has, as it says.

        Raises:
            SourceError: it does not answer, or answers what the protocol does not allow. RefusedError: it has none.
        """
        seconds, limit = self._limits.epoch_seconds, self._limits.record
        body = await self._wire.call("GET", "/v1/epoch", seconds=seconds, limit=limit)
        try:
            return await asyncio.to_thread(envelope.decode_record, body)
        except FieldError as error:
            raise Garbage(self._name, f"its epoch cannot be read: {error}") from None

    async def status(self) -> Status:
        """Return how far it is, as it says.

        Raises:
            SourceError: it does not answer, or answers what the protocol does not allow.
            RefusedError: its fencing number is lower than one seen before.
        """
        body = await self._wire.call("GET", "/v1/status", seconds=self._limits.seconds, limit=self._limits.answer)
        try:
            status = envelope.decode_status(body)
        except FieldError as error:
            raise Garbage(self._name, f"its status cannot be read: {error}") from None
        if status.index != self._index:
            raise Garbage(self._name, f"is attestor {self._index} and says it is {status.index}")
        self._fences.verify(self._index, status.starts)
        return status

    async def close(self) -> None:
        """Close the way to it."""
        await self._wire.close()

    async def _ask_epoch(self, proposal: Proposal) -> Answer:
        """Send the proposal, and again with what is needed besides, as long as that becomes more."""
        parts: tuple[Part, ...] = ()
        have = NOTHING
        for _ in range(REQUESTS):
            body = await self._parcels.encode(proposal, parts, have)
            answer = await self._post("/v1/attest/epoch", body, self._limits.epoch_seconds)
            if not isinstance(answer.result, Need):
                return answer
            need, before = answer.result, (parts, have)
            if "log" in need.parts:
                have = need.have
            parts = tuple(part for part in PARTS if part in {*parts, *need.parts})
            if (parts, have) == before:
                break
        raise Garbage(self._name, f"still needs {', '.join(need.parts)}, which it was sent")

    async def _post(self, path: str, body: bytes, seconds: float) -> Answer:
        given = await self._wire.call("POST", path, body, seconds=seconds, limit=self._limits.answer)
        try:
            answer = envelope.decode_answer(given)
        except FieldError as error:
            raise Garbage(self._name, f"its answer cannot be read: {error}") from None
        if answer.index != self._index:
            raise Garbage(self._name, f"is attestor {self._index} and answers as {answer.index}")
        self._fences.verify(self._index, answer.starts)
        return answer

    def _attestation(self, answer: Answer, epoch: int, digest: bytes) -> Attestation:
        result = answer.result
        if isinstance(result, Need):
            raise Garbage(self._name, f"needs {', '.join(result.parts)}, of which a document has none")
        if isinstance(result, SignedRefusal):
            raise self._refusal(result, epoch, digest, answer.claims)
        return result  # whoever collects verifies it, index and all

    def _refusal(
        self, refusal: SignedRefusal, epoch: int, digest: bytes, claims: tuple[Grant, ...]
    ) -> SignedRefusalError | Garbage:
        if (refusal.epoch, refusal.digest) != (epoch, digest):
            return Garbage(self._name, "refuses something else than it was asked")
        try:
            envelope.verify_refusal(refusal, self._member, self._deployment_id)
        except FieldError as error:
            return Garbage(self._name, f"its refusal is not its own: {error}")
        rule, separator, reason = refusal.reason.partition(": ")
        if not separator or not self._is_rule(rule):
            rule, reason = "refused", refusal.reason
        return SignedRefusalError(self._index, rule, reason, refusal, claims)

    def _is_rule(self, rule: str) -> bool:
        """Rules label metrics, so nobody may make up as many as he likes."""
        if rule in self._rules:
            return True
        if len(rule) > _RULE_LENGTH or not rule.replace("-", "").isascii() or len(self._rules) >= RULES:
            return False
        if not rule.replace("-", "").isalpha():
            return False
        self._rules.add(rule)
        return True
