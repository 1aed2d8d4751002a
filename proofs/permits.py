"""Holds and withdrawal permits: what a quorum signs to a vault, EIP-712 in the deployment's domain.

Both move or hold value, so both name one chain and one vault. `chain` is keccak256 of the CAIP-2 text; an EVM address
is a word (12 zero bytes before it), a Solana address its 32 bytes. The epoch decides which set of attestors must sign.
"""

from __future__ import annotations

from dataclasses import dataclass

from proofs.fields import require_bytes, require_uint, uint_word
from proofs.hashing import keccak256
from proofs.statement import typed_digest

HOLD_TYPE = "Hold(bytes32 account,bytes32 chain,bytes32 vault,uint64 until,uint64 epoch)"
_PERMIT_FIELDS = (
    "(bytes32 account,bytes32 chain,bytes32 vault,bytes32 asset,uint256 amount,bytes32 to,bytes32 nonce,"
    "uint64 epoch,uint64 expiry)"
)
PERMIT_TYPE = "WithdrawalPermit" + _PERMIT_FIELDS
REQUEST_TYPE = "PermitRequest" + _PERMIT_FIELDS


@dataclass(frozen=True, slots=True)
class Hold:
    """No withdrawal of an account leaves a vault before `until` (Unix seconds). Ids are 32 bytes."""

    account: bytes
    chain: bytes
    vault: bytes
    until: int
    epoch: int

    def __post_init__(self) -> None:
        for name in ("account", "chain", "vault"):
            require_bytes(name, getattr(self, name), 32)
        require_uint("until", self.until, 64)
        require_uint("epoch", self.epoch, 64)


@dataclass(frozen=True, slots=True)
class Permit:
    """`amount` base units of `asset` may leave a vault for `to` at once, until `expiry` (Unix seconds)."""

    account: bytes
    chain: bytes
    vault: bytes
    asset: bytes
    amount: int
    to: bytes
    nonce: bytes
    epoch: int
    expiry: int

    def __post_init__(self) -> None:
        for name in ("account", "chain", "vault", "asset", "to", "nonce"):
            require_bytes(name, getattr(self, name), 32)
        require_uint("amount", self.amount, 128)
        require_uint("epoch", self.epoch, 64)
        require_uint("expiry", self.expiry, 64)


def hold_digest(hold: Hold, deployment_id: bytes) -> bytes:
    """Return the digest that attestors sign for a hold."""
    words = hold.account + hold.chain + hold.vault + uint_word(hold.until) + uint_word(hold.epoch)
    return typed_digest(deployment_id, keccak256(keccak256(HOLD_TYPE.encode()) + words))


def permit_digest(permit: Permit, deployment_id: bytes) -> bytes:
    """Return the digest that attestors sign for a permit."""
    return _digest(PERMIT_TYPE, permit, deployment_id)


def request_digest(permit: Permit, deployment_id: bytes) -> bytes:
    """Return the digest that the account's controller signs to ask for a permit with these terms."""
    return _digest(REQUEST_TYPE, permit, deployment_id)


def _digest(type_: str, p: Permit, deployment_id: bytes) -> bytes:
    words = p.account + p.chain + p.vault + p.asset + uint_word(p.amount) + p.to + p.nonce
    words += uint_word(p.epoch) + uint_word(p.expiry)
    return typed_digest(deployment_id, keccak256(keccak256(type_.encode()) + words))
