"""Permits and holds as attestors sign them and as people ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Attestation


def pack_indices(attestations: Iterable[Attestation]) -> int:
    """Return the signers' indices packed eight bits each, the first lowest, as EVM vaults take them."""
    return sum(a.index << (8 * place) for place, a in enumerate(attestations))


class SignedPermit(NamedTuple):
    """A permit on record; without ``attestations`` a quorum never signed it, though some attestor may have."""

    permit: PermitRecord
    attestations: tuple[Attestation, ...] = ()  # ascending by index


class HoldRecord(NamedTuple):
    """What a hold says (``proofs.permits.Hold``)."""

    account: str  # 0x + 64 hex
    chain: str  # CAIP-2 of the vault
    vault: str  # without the chain prefix
    until: int  # Unix seconds
    epoch: int


class SignedHold(NamedTuple):
    """A hold that a quorum signed."""

    hold: HoldRecord
    digest: bytes
    attestations: tuple[Attestation, ...]  # ascending by index


class PermitMessage(NamedTuple):
    """What an account's controller signs to ask for a permit, in the form in which its address signs."""

    permit: PermitRecord  # its ``request`` is empty
    signer: str  # CAIP-10
    text: str  # what a Solana wallet signs, "" for an EVM address
    typed: Mapping[str, Any] | None  # EIP-712 JSON for an EVM wallet, None for a Solana address
    digest: str  # 0x, the EIP-712 digest; "" for a Solana address
