"""Attestor sets: who may sign, from which epoch on and until when, and the rotation that hands over to the next set.

Set 1 is the deployment's genesis. Set N signs `RotateSet` for set N+1; the epoch of a statement alone decides which set
must have signed it: N before N+1's `activation_epoch`, N+1 from it on (protocol.md, "Quorum").

When too many keys of a set are lost, the governance of the registries puts set N+1 in its place without signatures. No
proof of that fits in a history: whoever reads one must know the digests of such sets from the registries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proofs.errors import FieldError, ProofError
from proofs.fields import require_bytes, require_uint, uint_word
from proofs.hashing import keccak256
from proofs.quorum import MAX_MEMBERS, IndexedSignature, minimal_threshold, verify_quorum
from proofs.statement import DEVNET, GENESIS_SET_ID, Deployment, typed_digest

ROTATE_TYPE = "RotateSet(uint32 setId,address[] members,uint32 threshold,uint64 activationEpoch,uint64 notAfter)"
LEAST_MEMBERS = 4
"""Of a set outside devnets: with fewer, none may fail."""
_ROTATE_TYPEHASH = keccak256(ROTATE_TYPE.encode())


@dataclass(frozen=True, slots=True)
class AttestorSet:
    """One set of attestors.

    Args:
        set_id: 1 is the genesis set.
        members: addresses, 20 bytes each, in index order.
        threshold: signatures needed, at least `minimal_threshold(len(members))`.
        activation_epoch: the first epoch it signs; 0 for the genesis set.
        not_after: Unix seconds after which registries take nothing it signed.

    Raises:
        FieldError: naming the field that no registry would accept.
    """

    set_id: int
    members: tuple[bytes, ...]
    threshold: int
    activation_epoch: int
    not_after: int

    def __post_init__(self) -> None:
        require_uint("setId", self.set_id, 32)
        n = len(self.members)
        if not 1 <= n <= MAX_MEMBERS:
            raise FieldError("members", f"{n} given, 1 to {MAX_MEMBERS} expected")
        for i, member in enumerate(self.members):
            require_bytes(f"members[{i}]", member, 20)
            if not any(member):
                raise FieldError(f"members[{i}]", "the zero address")
            if member in self.members[:i]:
                raise FieldError(f"members[{i}]", f"0x{member.hex()} is listed twice")
        if not minimal_threshold(n) <= self.threshold <= n:
            raise FieldError("threshold", f"{self.threshold} of {n} given, {minimal_threshold(n)} to {n} expected")
        require_uint("activationEpoch", self.activation_epoch, 64)
        require_uint("notAfter", self.not_after, 64)


@dataclass(frozen=True, slots=True)
class Rotation:
    """A set with the signatures of the set before it, ascending by index; without any, governance's recovery."""

    to: AttestorSet
    signatures: tuple[IndexedSignature, ...]

    @property
    def recovered(self) -> bool:
        """Whether it says that governance put the set in place."""
        return not self.signatures


def never_recovered(digest: bytes) -> bool:
    """Say that governance recovered no set."""
    return False


def genesis_set(deployment: Deployment) -> AttestorSet:
    """Return set 1 of a deployment."""
    return AttestorSet(GENESIS_SET_ID, deployment.members, deployment.threshold, 0, deployment.not_after)


def rotation_digest(to: AttestorSet, deployment_id: bytes) -> bytes:
    """Return the EIP-712 digest that the members of set ``to.set_id - 1`` sign; it names no chain."""
    members = keccak256(b"".join(bytes(12) + member for member in to.members))
    return typed_digest(
        deployment_id,
        keccak256(
            _ROTATE_TYPEHASH
            + uint_word(to.set_id)
            + members
            + uint_word(to.threshold)
            + uint_word(to.activation_epoch)
            + uint_word(to.not_after)
        ),
    )


def verify_history(
    deployment: Deployment,
    rotations: Sequence[Rotation],
    recovered: Callable[[bytes], bool] = never_recovered,
) -> tuple[AttestorSet, ...]:
    """Check that each rotation was signed by the set before it; return all sets, the genesis set first.

    Args:
        deployment: whose genesis set comes first.
        rotations: to sets 2, 3, … in order.
        recovered: says of a digest (`rotation_digest`) whether governance is known to have recovered that set; only
            then it needs no signatures.

    Raises:
        FieldError, QuorumError: naming ``rotations[i]`` and its field.
    """
    deployment_id = deployment.deployment_id()
    sets = [genesis_set(deployment)]
    for i, rotation in enumerate(rotations):
        before, to = sets[-1], rotation.to
        if to.set_id != before.set_id + 1:
            raise FieldError(f"rotations[{i}].setId", f"{to.set_id} follows {before.set_id}")
        if to.activation_epoch <= before.activation_epoch:
            reason = f"{to.activation_epoch} is not after {before.activation_epoch}, that of the set before"
            raise FieldError(f"rotations[{i}].activationEpoch", reason)
        if len(to.members) < LEAST_MEMBERS and deployment.network_class != DEVNET:
            reason = f"{len(to.members)} given, at least {LEAST_MEMBERS} expected outside a devnet"
            raise FieldError(f"rotations[{i}].members", reason)
        digest = rotation_digest(to, deployment_id)
        if rotation.recovered:
            if not recovered(digest):
                reason = f"none, and 0x{digest.hex()} is not known to be a set that governance recovered"
                raise FieldError(f"rotations[{i}].signatures", reason)
            sets.append(to)
            continue
        try:
            verify_quorum(digest, rotation.signatures, before.members, before.threshold)
        except ProofError as error:
            raise type(error)(f"rotations[{i}].{error.field}", error.reason) from error
        sets.append(to)
    return tuple(sets)


def set_at(sets: Sequence[AttestorSet], epoch: int) -> AttestorSet:
    """Return the set that an epoch demands; ``sets`` ascending, the genesis set first."""
    return next(s for s in reversed(sets) if s.activation_epoch <= epoch)
