"""What one attestor process does: it answers the coordinator and its peers, and proposes when nobody else does.

Whoever asks is known by its wire key. The coordinator alone records accounts and links: what others propose may add
nothing to the log. An attestor that has signed nothing for an epoch some time after its cut, the longer the further it
is from its turn, proposes the epoch itself, with the same code as the coordinator; what gets a quorum is told to all.
At most one statement of an epoch finds a quorum whoever proposes, since nobody signs twice (protocol.md, "Quorum").
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

import structlog

from aggregator.domain.budgets import Grant
from aggregator.domain.certificate import Attestation, Certificate, EpochRecord, State
from aggregator.domain.errors import CrossmarginError, DissentError, RefusedError, SourceError
from aggregator.domain.links import with_links
from aggregator.domain.snapshot import Account
from aggregator.ports import Clock, GrantBook, Record, RefusalNote, Signer
from aggregator.service import telemetry
from aggregator.service.attest import Attestor, LeavesNeededError, Rules, Sets
from aggregator.service.claims import Claims
from aggregator.service.cycle import PRUNE_EVERY, Cycle
from aggregator.service.envelope import (
    Answer,
    Counts,
    EpochRequest,
    Kind,
    Need,
    SignedRefusal,
    Status,
    assemble,
    decode_certificate,
    decode_document,
    decode_epoch,
    document_digest,
    encode_answer,
    encode_record,
    encode_status,
    sign_refusal,
)
from aggregator.service.examine import Examiner
from aggregator.service.remote import AttestorClient, Fences
from aggregator.service.replica import Adopting, to_record, verify_record

log = structlog.get_logger("attestor")

WATCH_EVERY = 16
"""Epochs between two looks at how far the peers are."""
EPOCHS_AHEAD = 2
"""Epochs by which a peer's clock may be ahead where it says what it saw signed."""
ASK_SECONDS = 5.0
"""How long a peer may take to say how far it is, at a start or after an outage."""


class DocumentSigner(Protocol):
    """Checks one kind of document by that kind's own rules, records it durably, and signs it."""

    async def sign(self, document: Mapping[str, Any]) -> Attestation:
        """Return the signature.

        Raises:
            RefusedError: a rule says no. FieldError: the document is malformed.
        """
        ...


class Peers:
    """The other parties as one of them reaches them.

    Args:
        attestors: by way of which attestors are asked.
        others: who else is told of certificates (the coordinator).
    """

    def __init__(self, attestors: Sequence[AttestorClient], others: Sequence[AttestorClient] = ()) -> None:
        self.attestors, self._others = tuple(attestors), tuple(others)
        self._telling: set[asyncio.Task[None]] = set()

    async def statuses(self, seconds: float = ASK_SECONDS) -> list[Status]:
        """Return how far those attestors are that answer in time."""

        async def ask(peer: AttestorClient) -> Status | None:
            try:
                async with asyncio.timeout(seconds):
                    return await peer.status()
            except (CrossmarginError, TimeoutError) as error:
                log.info("a peer does not say how far it is", peer=peer.name, cause=str(error) or "no answer in time")
                return None

        answers = await asyncio.gather(*(ask(peer) for peer in self.attestors))
        return [status for status in answers if status is not None]

    def tell(self, certificate: Certificate) -> None:
        """Tell everybody of a certificate, in the background; who is away learns of it otherwise."""

        async def say(peer: AttestorClient) -> None:
            try:
                await peer.tell(certificate)
            except CrossmarginError as error:
                log.info("a peer was not told", peer=peer.name, epoch=certificate.header.epoch, cause=str(error))

        for peer in (*self.attestors, *self._others):
            task = asyncio.create_task(say(peer))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Stop telling, and close every connection."""
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        await asyncio.gather(*(peer.close() for peer in (*self.attestors, *self._others)))


class Learner:
    """Takes over what was certified without this party: the coordinator's, after an outage; an attestor's, too.

    Args:
        take: called with what is learned, once it is verified and stored.
        grants: takes note of the budgets that it gives.
    """

    def __init__(
        self,
        store: Adopting,
        rules: Rules,
        peers: Peers,
        take: Callable[[EpochRecord], Awaitable[None]],
        grants: GrantBook | None = None,
    ) -> None:
        self._store, self._rules, self._peers, self._take, self._grants = store, rules, peers, take, grants
        self._sets = Sets(rules.deployment, recovered=rules.recovered)
        self._turn = asyncio.Lock()

    async def catch_up(self, epoch: int) -> None:
        """Ask the attestors for a newer certificate, unless what the next statement goes on from is here already."""
        newest = await self._store.certificate()
        if newest is not None and newest.header.epoch >= epoch - 1 and await self._store.preimage("state"):
            return
        for status in await self._peers.statuses(min(ASK_SECONDS, self._rules.epoch_seconds / 2)):
            if status.certificate is not None:
                try:
                    await self.learn(status.certificate)
                except RefusedError as error:
                    log.warning("a peer's certificate does not verify", cause=str(error))

    async def learn(self, certificate: Certificate) -> bool:
        """Keep a certified epoch that verifies and is newer than any here; say whether it was one.

        Its leaves and texts are fetched from the attestors, from whoever has them; what they give is verified against
        the certificate. Without them the certificate is kept alone, and no statement can follow it from here.

        Raises:
            RefusedError: it does not verify.
        """
        async with self._turn:
            newest, number = await self._store.certificate(), certificate.header.epoch
            known = newest.header.epoch if newest is not None else -1
            # Of the newest one, what it left for the next may be missing here.
            if number < known or (number == known and await self._store.preimage("state")):
                return False
            self._sets.learn((await self._store.state()).rotations)
            self._sets.verify(certificate)
            own = await self._store.epoch(number, certified=False)
            if own is not None and own.digest == certificate.digest and own.preimages:
                record = replace(own, attestations=certificate.attestations)
            else:
                record = await self._fetch(certificate)
                if own is not None:  # what this party proposed instead is gone, but not who refused it, and why
                    record = replace(record, refusals=own.refusals)
            await self._store.save_epoch(record)
            if self._grants is not None:
                await self._grants.note(number, record.header.valid_until, record.leaves)
            log.info("learned", epoch=number, complete=bool(record.preimages))
            await self._take(record)
            return True

    async def _fetch(self, certificate: Certificate) -> EpochRecord:
        for peer in self._peers.attestors:
            try:
                return await asyncio.to_thread(verify_record, await peer.newest(), certificate)
            except CrossmarginError as error:
                log.info("an epoch was not fetched", peer=peer.name, cause=str(error))
        return to_record(certificate, certificate.header.epoch * self._rules.epoch_seconds)


class CoordinatorDoor:
    """What attestors may call at the coordinator: implements ``aggregator.api.attestor_app.Answering``."""

    def __init__(self, learner: Learner, store: Adopting, fences: Fences) -> None:
        self._learner, self._store, self._fences = learner, store, fences

    async def attest(self, kind: Kind, sender: str, body: bytes) -> bytes:
        """Refuse: a coordinator signs nothing."""
        raise RefusedError("kind", f"a coordinator signs no {kind}")

    async def learn(self, sender: str, body: bytes) -> None:
        """Take over a certificate."""
        await self._learner.learn(decode_certificate(body))

    async def newest(self, sender: str) -> bytes:
        """Return the newest certified epoch."""
        return await _newest(self._store)

    async def status(self, sender: str) -> bytes:
        """Say how far the coordinator is, and what it saw of the attestors."""
        state, newest = await self._store.state(), await self._store.certificate()
        counts = Counts(len(state.accounts), len(state.links), len(state.rotations))
        return encode_status(Status(None, 0, 0, counts, newest, self._fences.seen()))

    def health(self) -> str:
        """Say that all is well: whoever answers is."""
        return ""


class Node:
    """One attestor, answering over the wire: implements ``aggregator.api.attestor_app.Answering``.

    Args:
        index: its number in everybody's configuration.
        attestor, examiner, store, record, signer: its own.
        signers: by kind of document other than epochs, who checks and signs it.
        coordinator: the wire address of whoever records accounts and links.
        make_cycle: opens what proposes an epoch, given whom to ask and what to do with what is certified.
        propose_after: seconds; see the module.
        keep_epochs: how many epochs its store remembers in full.
        grants: its durable record of budgets.
    """

    def __init__(
        self,
        index: int,
        attestor: Attestor,
        examiner: Examiner,
        store: Adopting,
        record: Record,
        signer: Signer,
        *,
        signers: Mapping[Kind, DocumentSigner],
        rules: Rules,
        clock: Clock,
        peers: Peers,
        fences: Fences,
        coordinator: str,
        make_cycle: Callable[[Node], AbstractAsyncContextManager[Cycle]],
        propose_after: float,
        keep_epochs: int,
        grants: GrantBook | None = None,
    ) -> None:
        self.index, self.attestor, self.peers, self.rules = index, attestor, peers, rules
        self._examiner, self._store, self._record, self._signer = examiner, store, record, signer
        self._signers, self._clock, self._fences = dict(signers), clock, fences
        self._coordinator, self._make_cycle, self._propose_after = coordinator.lower(), make_cycle, propose_after
        self._keep = keep_epochs
        self._grants = grants
        self._learner = Learner(store, rules, peers, self._take, grants)
        self.claims = Claims()
        self.starts = 0
        self._awaited = 0, 0.0  # epoch of which the coordinator was asked for more, and until when it may take
        self._began = clock.now()
        self.last_problem = "not started"

    # --- a start ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Ask the peers what they know of this attestor and of the log, then count one more start, durably."""
        statuses = await self.peers.statuses()
        of_me = [seen for status in statuses for seen in status.seen if seen.index == self.index]
        # One peer that lies must not silence this attestor for good: nobody signs an epoch that is yet to come, nor
        # starts more often than once a second, and the record believes a start count only so far at a time.
        now = int(self._clock.now())
        starts = max((s.starts for s in of_me if s.starts <= now), default=0)
        epoch = max((s.epoch for s in of_me if s.epoch <= now // self.rules.epoch_seconds + EPOCHS_AHEAD), default=0)
        await self._record.raise_to(starts=starts, epoch=epoch)
        self.starts = await self._record.begin()
        for status in statuses:
            await self._learn_from(status)
        self.last_problem = ""
        log.info("started", attestor=self.attestor.name, starts=self.starts, peers=len(statuses))

    async def _learn_from(self, status: Status) -> None:
        if status.certificate is not None:
            try:
                await self._learn(status.certificate)
            except RefusedError as error:
                log.warning("a peer's certificate does not verify", peer=status.index, cause=str(error))

    # --- what others may call --------------------------------------------------------------------------------------

    async def attest(self, kind: Kind, sender: str, body: bytes) -> bytes:
        """Answer a request for a signature: with one, with a signed refusal, or with what is needed first.

        Raises:
            FieldError: the body cannot be read.
        """
        if kind == "epoch":
            request = await asyncio.to_thread(decode_epoch, body)
            epoch, digest = request.header.epoch, request.digest
            result = await self._answer(kind, str(epoch), epoch, digest, self._attest_epoch(request, sender))
        else:
            document = decode_document(kind, body)
            digest = document_digest(kind, document)
            result = await self._answer(kind, "0x" + digest.hex(), 0, digest, self._sign(kind, document))
        return encode_answer(Answer(self.index, self.starts, *result))

    async def _answer(
        self, kind: Kind, key: str, epoch: int, digest: bytes, work: Any
    ) -> tuple[Attestation | SignedRefusal | Need, tuple[Grant, ...]]:
        """Return what ``work`` comes to, or why it does not, signed, with the grants that are claimed."""
        try:
            return await work, ()
        except RefusedError as error:
            refusal = error
        except SourceError as error:
            # It cannot tell, and says so under its name: which of its sources is at fault is worth knowing.
            refusal = RefusedError("unreadable", str(error))
        telemetry.REFUSALS.labels(self.attestor.name, refusal.rule).inc()
        log.info("refused", what=kind, key=key, cause=str(refusal))
        await self._record.note_refusal(RefusalNote(int(self._clock.now()), kind, key, str(refusal)))
        claims = refusal.claims if isinstance(refusal, DissentError) else ()
        signed = await asyncio.to_thread(
            sign_refusal, self._signer, self.rules.deployment_id, epoch, digest, refusal
        )  # fmt: skip
        return signed, claims

    async def _sign(self, kind: Kind, document: Mapping[str, Any]) -> Attestation:
        if kind not in self._signers:
            raise RefusedError("kind", f"this attestor signs no {kind}")
        return await self._signers[kind].sign(document)

    async def _attest_epoch(self, request: EpochRequest, sender: str) -> Attestation | Need:
        if request.previous is not None:
            # Before anything is asked for: it may be had by then. What is wrong with it the attestor says, which knows
            # the rotations that may have come along.
            with contextlib.suppress(RefusedError):
                await self._learn(request.previous)
        own = await self._store.state()
        extends = sender.lower() == self._coordinator
        found = await asyncio.to_thread(lambda: assemble(request, _with_tail(own, request), levels=None))
        if isinstance(found, Need):
            if extends:
                self._awaited = request.header.epoch, self._clock.now() + min(ASK_SECONDS, self._propose_after)
            return found
        try:
            return await self.attestor.attest(replace(found, extends=extends))
        except LeavesNeededError:
            return Need(("leaves",), _counts(own))

    async def learn(self, sender: str, body: bytes) -> None:
        """Take over a certificate that verifies and is newer than any known."""
        await self._learn(decode_certificate(body))

    async def _learn(self, certificate: Certificate) -> bool:
        return await self.attestor.learn(certificate, self._examiner.settle)

    async def status(self, sender: str) -> bytes:
        """Say how far this attestor is, and what it saw of the others."""
        counts, highest = _counts(await self._store.state()), await self._record.highest()
        return encode_status(
            Status(self.index, self.starts, highest or 0, counts, self.attestor.last, self._fences.seen())
        )

    async def newest(self, sender: str) -> bytes:
        """Return the newest certified epoch."""
        return await _newest(self._store)

    def health(self) -> str:
        """Return "" where all is well, else why not."""
        return self.last_problem

    # --- failover --------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Watch the epochs until ``stop`` is set, and propose those that nobody else does."""
        while not stop.is_set():
            epoch, due = self._turn()
            if await _passed(self._clock, due - self._clock.now(), stop):
                return
            try:
                if epoch % WATCH_EVERY == self.index % WATCH_EVERY:
                    await self.watch()
                if epoch % PRUNE_EVERY == 0:
                    await self._store.prune(keep_epochs=self._keep)
                    if self._grants is not None:
                        # Permits are signed on an epoch that has not ended: what could be drawn at its cut counts.
                        await self._grants.forget(int(self._clock.now()) - self.rules.max_lifetime)
                if await self._is_mine(epoch):
                    await self.propose(epoch)
            except CrossmarginError as error:
                self.last_problem = f"epoch {epoch} could not be proposed: {error}"
                log.warning("epoch not proposed", epoch=epoch, cause=str(error))
            except Exception as error:  # a defect must cost the proposal, not the attestor; its text may hold anything
                self.last_problem = f"proposing epoch {epoch} met a defect: {type(error).__name__} (see the log)"
                log.exception("proposing met a defect", epoch=epoch)

    async def watch(self) -> None:
        """Look how far the peers are: their fencing numbers, and certificates that did not come here."""
        for status in await self.peers.statuses():
            await self._learn_from(status)

    def _turn(self) -> tuple[int, float]:
        """Return the next epoch that this attestor may have to propose, and when (Unix seconds)."""
        now, delta = self._clock.now(), self.rules.epoch_seconds
        due = {}
        for epoch in range(max(1, int((now - self._longest()) // delta)), int(now // delta) + 2):
            due[epoch] = epoch * delta + self.delay(epoch)
        ahead = {epoch: at for epoch, at in due.items() if at > now}
        return min(ahead.items(), key=lambda item: item[1])

    def _longest(self) -> float:
        members = len(self.attestor.sets.at(int(self._clock.now()) // self.rules.epoch_seconds).members)
        return self._propose_after * (1 + members)

    def delay(self, epoch: int) -> float:
        """Return how long after the cut of ``epoch`` this attestor proposes it (seconds)."""
        seat = self.attestor.sets.seat(self.attestor.member, epoch)
        members = len(self.attestor.sets.at(epoch).members)
        turn = members if seat is None else (seat - epoch) % members
        return self._propose_after * (1 + turn)

    async def _is_mine(self, epoch: int) -> bool:
        """Say whether this attestor may propose ``epoch``: it is in the set and has signed nothing for it or later.

        Nor is an epoch from before its start: it cannot know who proposed that, and would share the votes, or burden
        its record with budgets that nobody else has heard of. What the coordinator has sent is seen to first: two
        proposals at a time would share the votes. It holds nothing up for long, or a coordinator that never ends what
        it begins would stop everybody.
        """
        if epoch * self.rules.epoch_seconds <= self._began:
            return False
        awaited, until = self._awaited
        if awaited == epoch and until > self._clock.now():
            await self._clock.sleep(until - self._clock.now())
        async with self.attestor.turn:
            pass
        if self.attestor.sets.seat(self.attestor.member, epoch) is None or not self.attestor.may_sign(epoch):
            return False
        highest = await self._record.highest()
        return (highest is None or highest < epoch) and bool(await self._store.accounts())

    async def propose(self, epoch: int) -> EpochRecord:
        """Propose ``epoch`` in the coordinator's stead, and tell what is certified.

        Raises:
            CrossmarginError: nothing could be proposed.
        """
        await self._learner.catch_up(epoch)
        if not self.attestor.may_sign(epoch):
            raise RefusedError("epoch", f"{epoch} or a later one is certified already")
        log.info("proposing", epoch=epoch, cause="nobody else did")
        async with self._make_cycle(self) as cycle:
            record = await cycle.run_epoch(epoch)
        reasons = "; ".join(f"{r.attestor}: {r.reason}" for r in record.refusals)
        self.last_problem = "" if record.attestations else f"epoch {epoch}, proposed here, has no quorum ({reasons})"
        return record

    async def _take(self, record: EpochRecord) -> None:
        if record.certificate is not None:
            await self._learn(record.certificate)

    async def certified(self, record: EpochRecord) -> None:
        """Take over what this attestor proposed and a quorum signed, and tell everybody."""
        certificate = record.certificate
        assert certificate is not None
        await self._learn(certificate)
        self.peers.tell(certificate)


async def _newest(store: Adopting) -> bytes:
    record = await store.epoch()
    if record is None or not record.preimages:
        raise RefusedError("epoch", "there is none, or its certificate alone is here")
    return await asyncio.to_thread(encode_record, record)


def _counts(state: State) -> Counts:
    return Counts(len(state.accounts), len(state.links), len(state.rotations))


def _with_tail(own: State, request: EpochRequest) -> State:
    """Return the replica with what came along, unverified: what it makes of the proposal is verified as a whole."""
    tail = request.tail
    if tail is None or tail.start.links > len(own.links) or tail.start.rotations > len(own.rotations):
        return own
    known = {account.id for account in own.accounts}
    opened: list[Account] = [x.account for x in tail.accounts if x.account.id not in known]
    links = (*own.links[: tail.start.links], *tail.links)
    accounts = sorted((*own.accounts, *opened), key=lambda a: a.id)
    return State(
        with_links(accounts, links),
        links,
        {**{x.account.id: x.salt for x in tail.accounts}, **own.salts},
        (*own.rotations[: tail.start.rotations], *tail.rotations),
    )


async def _passed(clock: Clock, seconds: float, stop: asyncio.Event) -> bool:
    """Wait; say whether ``stop`` was set meanwhile."""
    if seconds > 0:
        ends = {asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(stop.wait())}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
    return stop.is_set()
