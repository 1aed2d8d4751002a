"""Quorums of attestors: how many must sign, and whether they did.

n attestors tolerate f = ⌊(n-1)/3⌋ faulty ones; two quorums of ⌊(n+f)/2⌋+1 share an honest attestor, so no two
statements of one epoch can both be certified (Castro and Liskov, "Practical Byzantine Fault Tolerance", OSDI 1999, §2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proofs.errors import FieldError, QuorumError, SignatureError
from proofs.fields import require_bytes, require_uint
from proofs.signing import recover

MAX_MEMBERS = 32
SIGNATURE_LENGTH = 65


def minimal_threshold(n: int) -> int:
    """Return the least threshold a set of `n` attestors may have: ⌊(n+f)/2⌋+1 (3 of 4, 5 of 7, 13 of 19)."""
    if n < 1:
        raise FieldError("n", f"{n} members given, at least 1 expected")
    faulty = (n - 1) // 3
    return (n + faulty) // 2 + 1


@dataclass(frozen=True, slots=True)
class IndexedSignature:
    """One attestor's EIP-2098 signature: `index` in the member list (u8), `r` and `vs` (32 bytes each)."""

    index: int
    r: bytes
    vs: bytes

    def __post_init__(self) -> None:
        require_uint("index", self.index, 8)
        require_bytes("r", self.r, 32)
        require_bytes("vs", self.vs, 32)

    def pack(self) -> bytes:
        """Return the 65-byte wire form: index, r, vs."""
        return bytes([self.index]) + self.r + self.vs

    @classmethod
    def unpack(cls, packed: bytes) -> IndexedSignature:
        """Read the 65-byte wire form."""
        require_bytes("signature", packed, SIGNATURE_LENGTH)
        return cls(index=packed[0], r=packed[1:33], vs=packed[33:])


def verify_quorum(
    digest: bytes, signatures: Sequence[IndexedSignature], members: Sequence[bytes], threshold: int
) -> None:
    """Check that at least `threshold` of `members` signed `digest`, each once, in order of index.

    Every signature given must be valid, as on the registries, which refuse a posting with one bad signature.

    Args:
        digest: The 32-byte EIP-712 digest.
        signatures: In strictly increasing order of `index`.
        members: The set's addresses (20 bytes each); a signature's index points into it.
        threshold: The set's threshold.

    Raises:
        QuorumError: Naming `signatures[i]` and its field, or `signatures` when there are too few.
    """
    require_bytes("digest", digest, 32)
    if not minimal_threshold(len(members)) <= threshold <= len(members):
        raise QuorumError(
            "threshold",
            f"{threshold} of {len(members)} is not a quorum: "
            f"between {minimal_threshold(len(members))} and {len(members)} expected",
        )
    if len(signatures) < threshold:
        raise QuorumError("signatures", f"{len(signatures)} given, the set's threshold is {threshold}")
    last = -1
    for position, signature in enumerate(signatures):
        here = f"signatures[{position}]"
        if signature.index >= len(members):
            raise QuorumError(f"{here}.index", f"{signature.index} is not in the set of {len(members)} members")
        if signature.index <= last:
            raise QuorumError(f"{here}.index", f"{signature.index} follows {last}: strictly increasing expected")
        last = signature.index
        try:
            signer = recover(digest, signature.r, signature.vs)
        except SignatureError as error:
            raise QuorumError(f"{here}.{error.field}", error.reason) from error
        if signer != members[signature.index]:
            raise QuorumError(
                here, f"recovers to 0x{signer.hex()}, member {signature.index} is 0x{members[signature.index].hex()}"
            )
