"""The errors of this package.

ProofError                 something is not what it claims to be; `field` says where
├── FieldError             a value outside its type's range or shape
├── SignatureError         a signature that is malformed or not by the stated signer
├── QuorumError            signatures that do not make a quorum of the set
├── MerkleError            a path that does not lead to the root
├── LinkError              a link that its two sides did not both sign in time
├── PriceError             a Pyth update that is malformed, unsigned or not in the signed tree
├── StateError             a header or state proof that does not lead from its block to its claim
└── BundleError            a file that cannot be used at all
"""

from __future__ import annotations


class ProofError(ValueError):
    """Refuse a claim, naming the field at fault.

    Args:
        field: Path of the field at fault, for example `signatures[2].vs`.
        reason: What is wrong with it and, where it helps, what is expected.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class FieldError(ProofError):
    """Refuse a value outside its type's range or shape."""


class SignatureError(ProofError):
    """Refuse a signature that is malformed or not by the stated signer."""


class QuorumError(ProofError):
    """Refuse signatures that do not make a quorum of the set."""


class MerkleError(ProofError):
    """Refuse a path that does not lead to the root."""


class LinkError(ProofError):
    """Refuse a link that its two sides did not both sign in time."""


class PriceError(ProofError):
    """Refuse a Pyth update that is malformed, unsigned or not in the signed tree."""


class StateError(ProofError):
    """Refuse a header or state proof that does not lead from its block to its claim."""


class BundleError(ProofError):
    """Refuse a file that cannot be used at all."""
