"""Where certificates are posted, one module per kind of registry."""

from __future__ import annotations

from aggregator.domain.report import LeafValues
from proofs.hashing import keccak256
from proofs.leaf import Leaf


def destination_id(chain: str) -> bytes:
    """Return the 32-byte id by which leaves name the registry on ``chain`` (CAIP-2)."""
    return keccak256(chain.encode("ascii"))


def build_leaf(values: LeafValues) -> Leaf:
    """Return the leaf to encode for a registry. ``values.destination`` is a 0x id, or the chain (CAIP-2) it is of.

    Raises:
        ValueError: a field is malformed or out of range (``proofs.errors.FieldError`` names it).
    """
    account = bytes.fromhex(values.account.removeprefix("0x"))
    if values.destination.startswith("0x"):
        return Leaf(account, bytes.fromhex(values.destination[2:]), *values[2:])
    return Leaf(account, destination_id(values.destination), *values[2:])
