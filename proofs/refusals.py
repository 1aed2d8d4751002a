"""What an attestor signs when it does not sign a statement: why, so that a disagreement can be shown to anybody.

EIP-712 ``Refusal(uint64 epoch,bytes32 digest,string reason)`` in the deployment's domain: the epoch (0 where it is no
epoch), the digest of what it was asked to sign, and one line of text, ``<rule>: <both values>``. Signatures are compact
(EIP-2098). A refusal says what one attestor said, and nothing of who is right.
"""

from __future__ import annotations

from proofs.errors import FieldError, ProofError
from proofs.fields import uint_word
from proofs.hashing import keccak256
from proofs.signing import recover
from proofs.statement import typed_digest

REFUSAL_TYPE = "Refusal(uint64 epoch,bytes32 digest,string reason)"
_TYPE_HASH = keccak256(REFUSAL_TYPE.encode())


def refusal_digest(epoch: int, digest: bytes, reason: str, deployment_id: bytes) -> bytes:
    """Return the EIP-712 digest of a refusal of ``digest`` (32 bytes)."""
    return typed_digest(deployment_id, keccak256(_TYPE_HASH + uint_word(epoch) + digest + keccak256(reason.encode())))


def verify_refusal(
    epoch: int, digest: bytes, reason: str, signature: bytes, member: bytes, deployment_id: bytes
) -> None:
    """Check that ``member`` (20 bytes) signed a refusal (64 bytes: r, then s with v's parity in its top bit).

    Raises:
        FieldError: names ``refusal.signature``.
    """
    if len(signature) != 64:
        raise FieldError("refusal.signature", f"{len(signature)} bytes given, 64 expected")
    try:
        signer = recover(refusal_digest(epoch, digest, reason, deployment_id), signature[:32], signature[32:])
    except ProofError as error:
        raise FieldError("refusal.signature", error.reason) from None
    if signer != member:
        raise FieldError("refusal.signature", f"recovers to 0x{signer.hex()}, the member is 0x{member.hex()}")
