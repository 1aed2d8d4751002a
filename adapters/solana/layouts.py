"""What every Solana decoder shares: the raw account, exact-size checks, and the shape of an adapter.

An adapter is a generator. It yields a batch of account addresses, is sent the accounts in the same order (None where
none exists), and returns positions and findings. It never touches the network, a clock or a price.

Decoding is strict: an account of the wrong owner, size or kind raises `LayoutError`, which names the account and the
field; only an absent account is a zero.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass

from solders.pubkey import Pubkey

from aggregator.domain.errors import Garbage
from aggregator.domain.snapshot import Finding, Position, Subject

SYSTEM_PROGRAM = "11111111111111111111111111111111"
TOKEN_PROGRAM = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"
TOKEN_2022_PROGRAM = "TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb"
ASSOCIATED_TOKEN_PROGRAM = "ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL"
NATIVE_MINT = "So11111111111111111111111111111111111111112"


@dataclass(frozen=True, slots=True)
class RawAccount:
    """One account as the chain holds it. `owner` is the base58 program that may change it."""

    lamports: int
    owner: str
    data: bytes


Batch = tuple[str, ...]
Answers = tuple[RawAccount | None, ...]
Result = tuple[tuple[Position, ...], tuple[Finding, ...]]
Flow = Generator[Batch, Answers, Result]


class LayoutError(Garbage):
    """An account is not what its address promises.

    Args:
        account: its base58 address.
        field: the field at fault, `owner` and `size` included.
        problem: what was found and what was expected.
    """

    def __init__(self, account: str, field: str, problem: str) -> None:
        self.account, self.field = account, field
        super().__init__(account, f"{field}: {problem}")


@dataclass(frozen=True, slots=True)
class Fields:
    """The bytes of one account, read by offset; integers are little-endian."""

    account: str
    data: bytes

    def u8(self, at: int) -> int:
        """Return one byte."""
        return self.data[at]

    def u32(self, at: int) -> int:
        """Return a 32-bit unsigned integer."""
        value: int = struct.unpack_from("<I", self.data, at)[0]
        return value

    def u64(self, at: int) -> int:
        """Return a 64-bit unsigned integer."""
        value: int = struct.unpack_from("<Q", self.data, at)[0]
        return value

    def bytes32(self, at: int) -> bytes:
        """Return 32 bytes."""
        return self.data[at : at + 32]

    def key(self, at: int) -> str:
        """Return a public key, base58."""
        return str(Pubkey(self.data[at : at + 32]))

    def optional_key(self, at: int, field: str) -> str | None:
        """Return a `COption<Pubkey>`: a u32 tag that is 0 or 1, then the key."""
        return self.key(at + 4) if self.tag(at, field) else None

    def tag(self, at: int, field: str) -> bool:
        """Return the u32 tag of a `COption`. Raises LayoutError unless it is 0 or 1."""
        tag = self.u32(at)
        if tag > 1:
            raise LayoutError(self.account, field, f"option tag {tag} found, 0 or 1 expected")
        return bool(tag)

    def flag(self, at: int, field: str) -> bool:
        """Return a byte that must be 0 or 1. Raises LayoutError."""
        if self.data[at] > 1:
            raise LayoutError(self.account, field, f"{self.data[at]} found, 0 or 1 expected")
        return bool(self.data[at])


def open_account(account: str, raw: RawAccount, owner: str, size: int) -> Fields:
    """Return the fields of an account that `owner` owns and that is `size` bytes long. Raises LayoutError."""
    if raw.owner != owner:
        raise LayoutError(account, "owner", f"{raw.owner} found, {owner} expected")
    if len(raw.data) != size:
        raise LayoutError(account, "size", f"{len(raw.data)} bytes found, {size} expected")
    return Fields(account, raw.data)


def mint_of(asset: str) -> str:
    """Return the mint of a CAIP-19 asset `solana:<genesis>/token:<mint>`. Raises ValueError for another kind."""
    _, separator, mint = asset.partition("/token:")
    if not separator:
        raise ValueError(f"asset: {asset!r} names no SPL mint; solana:<genesis>/token:<mint> expected")
    return str(Pubkey.from_string(mint))


def unreadable(code: str, asset: str, subject: Subject, why: str) -> Finding:
    """Return the finding `code` for a holding that counts 0, which makes its account partial."""
    where = f" for {subject.address}" if subject.address else ""
    return Finding(code, subject.account, f"{asset}: {why}{where}")
