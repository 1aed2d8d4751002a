"""Keccak-256, the hash of everything that an EVM or our Solana program must recompute."""

from __future__ import annotations

from sha3 import keccak_256


def keccak256(data: bytes) -> bytes:
    """Return the 32-byte Keccak-256 of `data` (the original padding, not NIST SHA3-256)."""
    digest: bytes = keccak_256(data).digest()
    return digest
