"""The leaf: one account's margin at one destination and epoch, and its encodings.

On the EVM a leaf is the ABI encoding of its twelve static fields, hashed twice as OpenZeppelin's StandardMerkleTree
does; on Solana it travels packed in 188 bytes and is expanded to the same ABI words before hashing.
"""

from __future__ import annotations

from dataclasses import dataclass

from proofs.fields import int_word, require_bytes, require_int, require_uint, uint_word
from proofs.hashing import keccak256

STALE = 1 << 0
PARTIAL = 1 << 1
HALTED_CHAIN = 1 << 2
LIQUIDATABLE = 1 << 3
ISOLATED = 1 << 4
MONITORED = 1 << 5

PACKED_LENGTH = 188


@dataclass(frozen=True, slots=True)
class Leaf:
    """One account's attested margin at one destination.

    USD amounts are integers with 8 decimals, times Unix seconds; `account` and `destination` are 32 bytes. Amounts are
    limited to 128 bits (int128 for `equity`, uint128 otherwise), so that every leaf fits the Solana wire form too.

    Raises:
        FieldError: Naming the field out of range, by its name in the ABI tuple.
    """

    account: bytes
    destination: bytes
    epoch: int
    equity: int
    assets_initial: int
    requirement_initial: int
    assets_maintenance: int
    requirement_maintenance: int
    budget: int
    as_of: int
    valid_until: int
    flags: int

    def __post_init__(self) -> None:
        require_bytes("account", self.account, 32)
        require_bytes("destination", self.destination, 32)
        require_uint("epoch", self.epoch, 64)
        require_int("equity", self.equity, 128)
        require_uint("assetsInitial", self.assets_initial, 128)
        require_uint("requirementInitial", self.requirement_initial, 128)
        require_uint("assetsMaintenance", self.assets_maintenance, 128)
        require_uint("requirementMaintenance", self.requirement_maintenance, 128)
        require_uint("budget", self.budget, 128)
        require_uint("asOf", self.as_of, 64)
        require_uint("validUntil", self.valid_until, 64)
        require_uint("flags", self.flags, 32)


def abi_encode(leaf: Leaf) -> bytes:
    """Return abi.encode of the leaf's tuple: twelve words, 384 bytes."""
    return b"".join(
        (
            leaf.account,
            leaf.destination,
            uint_word(leaf.epoch),
            int_word(leaf.equity),
            uint_word(leaf.assets_initial),
            uint_word(leaf.requirement_initial),
            uint_word(leaf.assets_maintenance),
            uint_word(leaf.requirement_maintenance),
            uint_word(leaf.budget),
            uint_word(leaf.as_of),
            uint_word(leaf.valid_until),
            uint_word(leaf.flags),
        )
    )


def hash_leaf(leaf: Leaf) -> bytes:
    """Return keccak256(keccak256(abi.encode(leaf))): hashed twice, so that no leaf passes for an inner node."""
    return keccak256(keccak256(abi_encode(leaf)))


def pack(leaf: Leaf) -> bytes:
    """Return the 188-byte big-endian wire form used on Solana."""
    return b"".join(
        (
            leaf.account,
            leaf.destination,
            leaf.epoch.to_bytes(8, "big"),
            leaf.equity.to_bytes(16, "big", signed=True),
            leaf.assets_initial.to_bytes(16, "big"),
            leaf.requirement_initial.to_bytes(16, "big"),
            leaf.assets_maintenance.to_bytes(16, "big"),
            leaf.requirement_maintenance.to_bytes(16, "big"),
            leaf.budget.to_bytes(16, "big"),
            leaf.as_of.to_bytes(8, "big"),
            leaf.valid_until.to_bytes(8, "big"),
            leaf.flags.to_bytes(4, "big"),
        )
    )


def unpack(packed: bytes) -> Leaf:
    """Read the 188-byte wire form; raise `FieldError` for another length."""
    require_bytes("leaf", packed, PACKED_LENGTH)
    return Leaf(
        account=packed[0:32],
        destination=packed[32:64],
        epoch=int.from_bytes(packed[64:72], "big"),
        equity=int.from_bytes(packed[72:88], "big", signed=True),
        assets_initial=int.from_bytes(packed[88:104], "big"),
        requirement_initial=int.from_bytes(packed[104:120], "big"),
        assets_maintenance=int.from_bytes(packed[120:136], "big"),
        requirement_maintenance=int.from_bytes(packed[136:152], "big"),
        budget=int.from_bytes(packed[152:168], "big"),
        as_of=int.from_bytes(packed[168:176], "big"),
        valid_until=int.from_bytes(packed[176:184], "big"),
        flags=int.from_bytes(packed[184:188], "big"),
    )
