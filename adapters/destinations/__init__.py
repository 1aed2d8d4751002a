"""Where certificates are posted, one module per kind of registry."""

from __future__ import annotations

from proofs.hashing import keccak256


def destination_id(chain: str) -> bytes:
    """Return the 32-byte id by which leaves name the registry on ``chain`` (CAIP-2)."""
    return keccak256(chain.encode("ascii"))
