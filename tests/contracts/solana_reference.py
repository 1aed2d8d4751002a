"""A world for the Solana programs, and an independent reference for what they check.

Digests come from eth_account's EIP-712 encoder and leaves from eth_abi, neither of which the project's own encoders
use. The SVM is the real one; nothing of it is mocked.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eth_abi import encode
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_keys import keys
from eth_utils import keccak
from solders.account import Account
from solders.clock import Clock
from solders.compute_budget import set_compute_unit_limit
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.litesvm import LiteSVM
from solders.message import Message
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata, TransactionMetadata

PROGRAMS = Path(__file__).parents[2] / "proofs" / "programs"
TOKEN_PROGRAM = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
NOW = 1_800_000_000
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PACKET = 1_232
KEYS_BY_INDEX = [keys.PrivateKey(keccak(b"attestor %d" % i)) for i in range(19)]

HEADER_TYPES = {
    "EIP712Domain": [
        {"name": "name", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "salt", "type": "bytes32"},
    ],
    "MarginStatement": [
        {"name": "epoch", "type": "uint64"},
        {"name": "root", "type": "bytes32"},
        {"name": "floor", "type": "uint64"},
        {"name": "setId", "type": "uint32"},
        {"name": "producedAt", "type": "uint64"},
        {"name": "validUntil", "type": "uint64"},
        {"name": "body", "type": "bytes32"},
    ],
}
LEAF_TYPES = ["bytes32"] * 2 + ["uint64", "int256"] + ["uint256"] * 5 + ["uint64", "uint64", "uint32"]


class Refused(Exception):
    """A transaction ended in a program's custom error `code`, or in another error (`code` None, see `text`)."""

    def __init__(self, code: int | None, text: str) -> None:
        self.code, self.text = code, text
        super().__init__(text)


class World:
    """One SVM with a payer and a clock that stands at NOW."""

    def __init__(self, *programs: str) -> None:
        self.svm = LiteSVM().with_blockhash_check(False).with_transaction_history(0)
        self.ids: dict[str, Pubkey] = {}
        for name in programs:
            self.ids[name] = Pubkey.new_unique()
            self.svm.add_program(self.ids[name], (PROGRAMS / f"{name}.so").read_bytes())
        self.payer = Keypair()
        self.svm.airdrop(self.payer.pubkey(), 10**12)
        self.set_time(NOW)

    def set_time(self, seconds: int) -> None:
        """Set the clock's Unix time."""
        clock: Clock = self.svm.get_clock()
        clock.unix_timestamp = seconds
        self.svm.set_clock(clock)

    def transaction(self, *instructions: Instruction, signers: Sequence[Keypair] = (), units: int = 1_400_000) -> Any:
        """Return the signed transaction; the payer pays."""
        everything = [set_compute_unit_limit(units), *instructions]
        message = Message.new_with_blockhash(everything, self.payer.pubkey(), self.svm.latest_blockhash())
        return VersionedTransaction(message, [self.payer, *signers])

    def run(self, *instructions: Instruction, signers: Sequence[Keypair] = ()) -> TransactionMetadata:
        """Execute; raise Refused when it fails or when no packet could carry it."""
        transaction = self.transaction(*instructions, signers=signers)
        assert len(bytes(transaction)) <= PACKET, "no packet carries this transaction"
        result = self.svm.send_transaction(transaction)
        if isinstance(result, FailedTransactionMetadata):
            err = json.loads(result.to_json())["err"]
            detail = err.get("InstructionError", [0, None])[1] if isinstance(err, dict) else None
            code = detail.get("Custom") if isinstance(detail, dict) else None
            raise Refused(code, f"{err} {result.meta().logs()}")
        return result

    def account(self, key: Pubkey) -> Account:
        """Return an account that must exist."""
        account = self.svm.get_account(key)
        assert account is not None, f"{key} does not exist"
        return account

    # ---- SPL Token, laid out by hand ----

    def add_mint(self, decimals: int = 6, program: Pubkey = TOKEN_PROGRAM) -> Pubkey:
        """Put a mint in place whose freeze authority is the payer."""
        key = Pubkey.new_unique()
        data = struct.pack("<I32xQBBI32s", 0, 10**18, decimals, 1, 1, bytes(self.payer.pubkey()))
        self.svm.set_account(key, Account(10**9, data, program))
        return key

    def add_tokens(self, mint: Pubkey, owner: Pubkey, amount: int, program: Pubkey = TOKEN_PROGRAM) -> Pubkey:
        """Put a token account of `owner` in place."""
        key = Pubkey.new_unique()
        data = struct.pack("<32s32sQ36xB12xQ36x", bytes(mint), bytes(owner), amount, 1, 0)
        self.svm.set_account(key, Account(10**9, data, program))
        return key

    def amount(self, token_account: Pubkey) -> int:
        """Return a token account's balance."""
        value: int = struct.unpack_from("<Q", self.account(token_account).data, 64)[0]
        return value


@dataclass(frozen=True)
class Statement:
    """A header by its Solidity field names, and its reference encodings."""

    epoch: int
    root: bytes
    floor: int = 0
    setId: int = 1
    producedAt: int = NOW
    validUntil: int = NOW + 60
    body: bytes = b"\xbd" * 32

    def digest(self, deployment_id: bytes) -> bytes:
        """Return the EIP-712 digest."""
        domain = {"name": "crossmargin", "version": "1", "salt": deployment_id}
        message = {"types": HEADER_TYPES, "primaryType": "MarginStatement", "domain": domain, "message": vars(self)}
        return bytes(_hash_eip191_message(encode_typed_data(full_message=message)))

    def pack(self) -> bytes:
        """Return the 100-byte wire form."""
        return struct.pack(
            ">Q32sQIQQ32s",
            self.epoch,
            self.root,
            self.floor,
            self.setId,
            self.producedAt,
            self.validUntil,
            self.body,
        )

    def but(self, **changes: Any) -> Statement:
        """Return a changed copy."""
        return replace(self, **changes)


def sign(key: keys.PrivateKey, index: int, digest: bytes) -> bytes:
    """Return the 65-byte wire signature; eth_keys gives the low s."""
    signature = key.sign_msg_hash(digest)
    return bytes([index]) + signature.r.to_bytes(32, "big") + (signature.v << 255 | signature.s).to_bytes(32, "big")


def hash_leaf(fields: Sequence[Any]) -> bytes:
    """Return the leaf hash of the twelve ABI fields."""
    return keccak(keccak(encode(LEAF_TYPES, list(fields))))


def pack_leaf(fields: Sequence[Any]) -> bytes:
    """Return the 188-byte wire form of the twelve fields."""
    account, destination, epoch, equity, *amounts, as_of, valid_until, flags = fields
    body = b"".join(amount.to_bytes(16, "big") for amount in amounts)
    equity_bytes = equity.to_bytes(16, "big", signed=True)
    return (
        account
        + destination
        + struct.pack(">Q", epoch)
        + equity_bytes
        + body
        + struct.pack(">QQI", as_of, valid_until, flags)
    )


def fold(leaf_hash: bytes, proof: Sequence[bytes]) -> bytes:
    """Return the root that a proof leads to."""
    node = leaf_hash
    for sibling in proof:
        node = keccak(min(node, sibling) + max(node, sibling))
    return node
