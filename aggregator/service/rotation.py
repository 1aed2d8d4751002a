"""Handing over to another set of attestors: what one attestor signs, what is collected from all, how chains learn it.

The terms of a set are planned by people, approved by the operator of each attestor on its own machine, signed by the
set in force, kept in the log of rotations, and sent to every destination. Nothing of it happens by itself.

Where too few keys are left to sign, the governance of the registries recovers: it puts the next set in place itself.
Here it is then adopted without signatures, by every party whose operator approved exactly that, under ``RECOVERY``.

Rules of an attestor, in the order they are checked: ``terms`` · ``set`` · ``member`` · ``not-after`` (of its own set) ·
``activation`` · ``not-after`` · ``approval`` · ``watermark``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

from aggregator.domain.certificate import Attestation, PostingStatus, SignedPosting
from aggregator.domain.errors import CrossmarginError, InputError, PostingError, RefusedError
from aggregator.ports import Clock, Signer
from proofs.bundle import encode_set, parse_set
from proofs.document import canonical_json
from proofs.errors import ProofError
from proofs.quorum import IndexedSignature, minimal_threshold
from proofs.sets import (
    LEAST_MEMBERS,
    AttestorSet,
    Rotation,
    never_recovered,
    rotation_digest,
    set_at,
    verify_history,
)
from proofs.signing import recover
from proofs.statement import DEVNET, Deployment

KIND = "rotation"
RECOVERY = "recovery"
"""Kind of the approvals by which sets without signatures are believed: another one than by which they are signed."""
POLL_SECONDS = 1.0
ATTEMPTS = 5
"""Transactions per rotation and destination: another one of the payer may displace ours, and a large set takes two."""
MAX_TERM = 90 * 86_400
"""Seconds that a set may lie in the future, and may serve."""


class Approvals(Protocol):
    """What the operator of this machine approved."""

    def approved(self, kind: str, digest: bytes) -> bool:
        """Say whether exactly this digest is approved."""
        ...


class Claims(Protocol):
    """The part of ``aggregator.ports.Record`` that is needed here."""

    async def claim_once(self, kind: str, key: str, digest: bytes) -> None: ...


class Asker(Protocol):
    """Whoever can be asked to sign a document: in this process, or behind a wire."""

    @property
    def name(self) -> str: ...

    @property
    def member(self) -> bytes:
        """The address it signs with, 20 bytes."""
        ...

    async def ask(self, kind: Any, document: Mapping[str, Any]) -> Attestation: ...


class Rotating(Protocol):
    """The part of ``aggregator.ports.Destination`` that is needed here."""

    async def sign_rotation(self, rotation: Rotation) -> SignedPosting: ...

    async def submit(self, posting: SignedPosting) -> None: ...

    async def status(self, posting: SignedPosting) -> PostingStatus: ...

    async def read_newest_set(self) -> int: ...


def plan_set(
    sets: Sequence[AttestorSet],
    *,
    replace: Mapping[bytes, bytes],
    add: Sequence[bytes] = (),
    remove: Sequence[bytes] = (),
    threshold: int | None = None,
    activation_epoch: int,
    not_after: int,
) -> AttestorSet:
    """Return the terms of the set after the newest of ``sets``: its members with changes, in their order.

    Args:
        replace: member -> who takes its place. add: joins at the end. remove: leaves. Addresses, 20 bytes.
        threshold: by default the least that is allowed.
        activation_epoch: the first epoch it signs. not_after: Unix seconds.

    Raises:
        InputError: names the change or the term at fault.
    """
    newest = sets[-1]
    for member in (*replace, *remove):
        if member not in newest.members:
            raise InputError("member", f"0x{member.hex()} is not in set {newest.set_id}", "name one that is")
    members = [replace.get(member, member) for member in newest.members if member not in remove]
    members += add
    try:
        return AttestorSet(
            newest.set_id + 1,
            tuple(members),
            minimal_threshold(len(members)) if threshold is None else threshold,
            activation_epoch,
            not_after,
        )
    except ProofError as error:
        raise InputError(error.field, error.reason, "change the plan") from None


def verify_terms(
    to: AttestorSet,
    sets: Sequence[AttestorSet],
    deployment: Deployment,
    *,
    now: float,
    epoch_seconds: int,
    recovered: bool = False,
) -> AttestorSet:
    """Check that ``to`` may follow the newest set as of ``now``; return that set, which must sign.

    Args:
        recovered: governance is to put ``to`` in place: the newest set may have ended, and its end may leave a gap.

    Raises:
        RefusedError: the first rule broken, with both values.
    """
    newest, epoch = sets[-1], int(now) // epoch_seconds
    if to.set_id != newest.set_id + 1:
        _refuse("set", f"set {to.set_id} proposed, {newest.set_id + 1} is next")
    if len(to.members) < LEAST_MEMBERS and deployment.network_class != DEVNET:
        _refuse("terms", f"{len(to.members)} members proposed, at least {LEAST_MEMBERS} outside a devnet")
    if newest.activation_epoch > epoch:
        _refuse("set", f"set {newest.set_id} signs from epoch {newest.activation_epoch} on, it is epoch {epoch}")
    if now > newest.not_after and not recovered:
        _refuse("not-after", f"set {newest.set_id} ended at {newest.not_after}, it is {now:.0f}")
    if to.activation_epoch <= epoch:
        _refuse("activation", f"epoch {to.activation_epoch} proposed, it is epoch {epoch} already")
    if to.activation_epoch > epoch + MAX_TERM // epoch_seconds:
        _refuse("activation", f"epoch {to.activation_epoch} is more than {MAX_TERM // 86_400} days ahead of {epoch}")
    start = to.activation_epoch * epoch_seconds
    if start > newest.not_after and not recovered:
        _refuse("activation", f"at {start}, set {newest.set_id} ends at {newest.not_after}: nobody would sign between")
    if not start < to.not_after <= start + MAX_TERM:
        _refuse("not-after", f"{to.not_after} proposed, after {start} and at most {start + MAX_TERM} expected")
    return newest


class RotationRules:
    """What one attestor signs of rotations.

    Args:
        signer: its key.
        claims: its durable record.
        approvals: what its operator approved.
        rotations: gives those it knows of; they are verified anew.
    """

    def __init__(
        self,
        signer: Signer,
        claims: Claims,
        approvals: Approvals,
        rotations: Callable[[], Awaitable[Sequence[Rotation]]],
        *,
        deployment: Deployment,
        epoch_seconds: int,
        clock: Clock,
    ) -> None:
        self._signer, self._claims, self._approvals, self._rotations = signer, claims, approvals, rotations
        self._deployment, self._epoch_seconds, self._clock = deployment, epoch_seconds, clock

    async def sign(self, document: Mapping[str, Any]) -> Attestation:
        """Check the terms of a set (as ``proofs.bundle.encode_set`` gives them), record the intent durably, then sign.

        Raises:
            RefusedError: the first rule that is broken.
            SourceError: the key's device does not sign.
        """
        to = decode_terms(document)
        try:
            sets = verify_history(self._deployment, await self._rotations(), self._recovered)
        except ProofError as error:
            raise RefusedError("set", f"the history on record does not verify: {error}") from None
        own = verify_terms(to, sets, self._deployment, now=self._clock.now(), epoch_seconds=self._epoch_seconds)
        member = bytes.fromhex(self._signer.address[2:])
        if member not in own.members:
            _refuse("member", f"{self._signer.address} is not in set {own.set_id}, which must sign")
        digest = rotation_digest(to, self._deployment.deployment_id())
        if not self._approvals.approved(KIND, digest):
            _refuse("approval", f"0x{digest.hex()} is not approved on this machine: crossmargin rotation approve")
        await self._claims.claim_once(KIND, str(to.set_id), digest)
        r, vs = await asyncio.to_thread(self._signer.sign, digest)  # a token or a service takes its time
        return Attestation(own.members.index(member), r, vs)

    def _recovered(self, digest: bytes) -> bool:
        return self._approvals.approved(RECOVERY, digest)


def decode_terms(document: Mapping[str, Any]) -> AttestorSet:
    """Read the terms of a set; raise RefusedError (rule ``terms``) naming the field at fault."""
    try:
        return parse_set(canonical_json(dict(document)))
    except (ProofError, TypeError, ValueError, RecursionError) as error:
        raise RefusedError("terms", str(error) if isinstance(error, ProofError) else "are no JSON object") from None


class Collected(NamedTuple):
    """What came of asking for a rotation."""

    rotation: Rotation | None  # None without a quorum
    signed: tuple[str, ...]  # names
    refusals: tuple[tuple[str, str], ...]  # (name, reason), in the order of those asked


async def collect_rotation(
    to: AttestorSet,
    askers: Sequence[Asker],
    rotations: Sequence[Rotation],
    deployment: Deployment,
    *,
    timeout: float = 30,
    recovered: Callable[[bytes], bool] = never_recovered,
) -> Collected:
    """Ask every member of the set before ``to`` at once, and keep the signatures that verify.

    Args:
        askers: whom to ask; who is not in that set is not asked.
        rotations: the history so far.
        timeout: seconds after which no answer counts.
        recovered: as for ``proofs.sets.verify_history``.

    Raises:
        RefusedError: rule ``set``: ``to`` does not follow the newest set.
    """
    own = verify_history(deployment, rotations, recovered)[-1]
    if to.set_id != own.set_id + 1:
        _refuse("set", f"set {to.set_id} given, {own.set_id + 1} is next")
    digest = rotation_digest(to, deployment.deployment_id())
    asked = {asker.member: asker for asker in askers if asker.member in own.members}

    async def ask(asker: Asker) -> Attestation | str:
        try:
            async with asyncio.timeout(timeout):
                given = await asker.ask(KIND, encode_set(to))
            if "0x" + recover(digest, given.r, given.vs).hex() != "0x" + asker.member.hex():
                return "signature: is another's"
            return Attestation(own.members.index(asker.member), given.r, given.vs)
        except TimeoutError:
            return "late: no answer in time"
        except (CrossmarginError, ProofError) as error:
            return str(error)

    answers = await asyncio.gather(*(ask(asker) for asker in asked.values()))
    signatures, signed, refusals = [], [], []
    for asker, answer in zip(asked.values(), answers, strict=True):
        if isinstance(answer, str):
            refusals.append((asker.name, answer))
        else:
            signed.append(asker.name)
            signatures.append(IndexedSignature(answer.index, answer.r, answer.vs))
    signatures.sort(key=lambda s: s.index)
    rotation = Rotation(to, tuple(signatures)) if len(signatures) >= own.threshold else None
    if rotation is not None:
        verify_history(deployment, (*rotations, rotation), recovered)  # what is kept is what everybody will check
    return Collected(rotation, tuple(signed), tuple(refusals))


def adopt_set(
    to: AttestorSet,
    rotations: Sequence[Rotation],
    deployment: Deployment,
    recovered: Callable[[bytes], bool],
    *,
    now: float,
) -> Rotation:
    """Return what goes into the log of rotations for a set that governance recovered.

    Args:
        to: as it was given to the registries.
        rotations: the history so far.
        recovered: what the operator of this machine approved.
        now: Unix seconds.

    Raises:
        RefusedError: rule ``set``, ``not-after``, ``approval`` or ``terms``.
    """
    newest = verify_history(deployment, rotations, recovered)[-1]
    if to.set_id != newest.set_id + 1:
        _refuse("set", f"set {to.set_id} given, {newest.set_id + 1} is next")
    if now > to.not_after:
        _refuse("not-after", f"set {to.set_id} ended at {to.not_after}, it is {now:.0f}")
    digest, rotation = rotation_digest(to, deployment.deployment_id()), Rotation(to, ())
    if not recovered(digest):
        how = "crossmargin rotation approve --recovered"
        _refuse("approval", f"0x{digest.hex()} is not approved on this machine: {how}")
    try:
        verify_history(deployment, (*rotations, rotation), recovered)
    except ProofError as error:
        raise RefusedError("terms", str(error)) from None
    return rotation


class Submitted(NamedTuple):
    """What one destination knows after it was told."""

    destination: str  # CAIP-2
    newest_set: int  # that it knows, active or not; 0 where it cannot be read
    state: Literal["known", "pending", "failed"]
    transaction: str  # the last one sent, "" = none
    detail: str


async def submit_rotations(
    rotations: Sequence[Rotation], destinations: Mapping[str, Rotating], clock: Clock, *, timeout: float = 60
) -> tuple[Submitted, ...]:
    """Tell every destination of the rotations it does not know, in order.

    One destination's failure does not keep the others from it. What a destination knows already is not sent again, and
    what another transaction of the same payer displaced is. A recovered set is governance's to bring there.

    Args:
        rotations: the history; sets 2, 3, …
        timeout: seconds to wait for each transaction.
    """

    async def submit(chain: str, destination: Rotating) -> Submitted:
        newest, transaction, detail = 0, "", ""
        wanted = rotations[-1].to.set_id if rotations else 1
        try:
            for _ in range(ATTEMPTS * len(rotations) + 1):
                newest = await destination.read_newest_set()
                if newest >= wanted:
                    return Submitted(chain, newest, "known", transaction, "")
                following = next(r for r in rotations if r.to.set_id > newest)
                if following.recovered:
                    detail = f"set {following.to.set_id} has no signatures: governance must recover it there"
                    break
                try:
                    posting = await destination.sign_rotation(following)
                    transaction = posting.id
                    await destination.submit(posting)
                except PostingError as error:
                    if not error.retryable:
                        raise
                    detail = str(error)
                    await clock.sleep(POLL_SECONDS)
                    continue
                status = await _settled(destination, posting, clock, timeout)
                if status.state == "pending":
                    return Submitted(chain, newest, "pending", transaction, f"not there after {timeout:g} s")
                detail = status.detail or f"the transaction is {status.state}, set {following.to.set_id} is not known"
            return Submitted(chain, newest, "failed", transaction, detail)
        except CrossmarginError as error:
            return Submitted(chain, newest, "failed", transaction, str(error))

    return tuple(await asyncio.gather(*(submit(chain, at) for chain, at in destinations.items())))


async def _settled(destination: Rotating, posting: SignedPosting, clock: Clock, timeout: float) -> PostingStatus:
    deadline = clock.now() + timeout
    while (status := await destination.status(posting)).state == "pending" and clock.now() < deadline:
        await clock.sleep(POLL_SECONDS)
    return status


def describe_sets(sets: Sequence[AttestorSet], now: float, epoch_seconds: int) -> list[tuple[AttestorSet, str]]:
    """Return every set with its state: past, active, ended (nobody signs) or to come."""
    epoch = int(now) // epoch_seconds
    active = set_at(sets, epoch)

    def state(s: AttestorSet) -> str:
        if s.activation_epoch > epoch:
            return "to come"
        if s is not active:
            return "past"
        return "active" if now <= s.not_after else "ended"

    return [(s, state(s)) for s in sets]


def _refuse(rule: str, reason: str) -> NoReturn:
    raise RefusedError(rule, reason)
