"""A world of the vault program: a registry laid out by hand, and Token-2022 mints by their program's own word."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils import keccak
from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.compute_budget import set_compute_unit_limit
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountParams, create_account
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata
from spl.token.instructions import create_idempotent_associated_token_account, get_associated_token_address

from adapters.solana.layouts import RawAccount
from adapters.solana.programs import (
    Deposit,
    Holding,
    StandingHold,
    VaultRefusal,
    build_cancel,
    build_claim,
    build_deposit,
    build_hold,
    build_limit,
    build_request,
    build_vault_init,
    build_withdraw,
    custody_address,
    decode_deposit,
    decode_hold,
    decode_holding,
    deposit_address,
    hold_address,
    holding_address,
    vault_address,
)
from proofs.permits import Hold, Permit
from proofs.quorum import IndexedSignature
from tests.contracts.solana_reference import (
    KEYS_BY_INDEX,
    NOW,
    PACKET,
    Refused,
    World,
    sign,
)

DEPLOYMENT, DESTINATION = keccak(b"a deployment"), keccak(b"solana:a chain")
ACCOUNT, OTHER_ACCOUNT = keccak(b"an account"), keccak(b"another account")
DELAY, EPOCH_SECONDS, WEEK = 300, 60, 7 * 86_400
EPOCH = NOW // EPOCH_SECONDS
TOKEN_2022 = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
LOOKUP_TABLES = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")

DOMAIN_TYPE = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "salt", "type": "bytes32"},
]
TYPES = {
    Hold: ("Hold", "bytes32 account,bytes32 chain,bytes32 vault,uint64 until,uint64 epoch"),
    Permit: (
        "WithdrawalPermit",
        "bytes32 account,bytes32 chain,bytes32 vault,bytes32 asset,uint256 amount,bytes32 to,bytes32 nonce,"
        "uint64 epoch,uint64 expiry",
    ),
}


def typed_digest(message: Hold | Permit, deployment_id: bytes = DEPLOYMENT) -> bytes:
    """Return the EIP-712 digest by eth_account's encoder."""
    name, fields = TYPES[type(message)]
    members = [dict(zip(("type", "name"), field.split(), strict=True)) for field in fields.split(",")]
    document = {
        "types": {"EIP712Domain": DOMAIN_TYPE, name: members},
        "primaryType": name,
        "domain": {"name": "crossmargin", "version": "1", "salt": deployment_id},
        "message": {member["name"]: getattr(message, member["name"]) for member in members},
    }
    return bytes(_hash_eip191_message(encode_typed_data(full_message=document)))


def signed(
    message: Hold | Permit, indices: Sequence[int] = (0, 1, 2), deployment_id: bytes = DEPLOYMENT, first: int = 0
) -> list[IndexedSignature]:
    """Return signatures of the members at `indices`; member i has the key number `first` + i."""
    digest = typed_digest(message, deployment_id)
    return [IndexedSignature.unpack(sign(KEYS_BY_INDEX[first + i], i, digest)) for i in indices]


@dataclass(frozen=True)
class SetRow:
    """One of the two sets in a registry account; `first` is the number of its first member's key."""

    set_id: int = 1
    n: int = 4
    threshold: int = 3
    activation: int = 0
    not_after: int = NOW + 86_400 * 30
    first: int = 0

    def pack(self) -> bytes:
        keys = KEYS_BY_INDEX[self.first : self.first + self.n]
        members = b"".join(key.public_key.to_canonical_address() for key in keys)
        head = struct.pack("<IBBxxQQ", self.set_id, self.threshold, self.n, self.activation, self.not_after)
        return (head + members).ljust(664, b"\0")


@dataclass(frozen=True)
class RegistryRow:
    """What a vault reads of a registry account, laid out as quorum.h says."""

    governance: Pubkey
    newest: SetRow = SetRow()
    older: SetRow | None = None
    floor: int = 0
    epoch: int = 0
    deployment_id: bytes = DEPLOYMENT
    destination: bytes = DESTINATION

    def pack(self) -> bytes:
        names = b"EIP712Domain(string name,string version,bytes32 salt)", b"crossmargin", b"1"
        domain = keccak(b"".join(map(keccak, names)) + self.deployment_id)
        data = b"cmREGST2" + self.deployment_id + self.destination + domain
        data += struct.pack("<QQQQ", EPOCH_SECONDS, 5, 120, 86_400) + bytes(self.governance)
        data = data.ljust(240, b"\0") + self.epoch.to_bytes(8, "little") + self.floor.to_bytes(8, "little")
        data = data.ljust(336, b"\0") + (self.older.pack() if self.older else bytes(664)) + self.newest.pack()
        return data.ljust(4_224, b"\0")


class VaultWorld(World):
    """A world with a registry, a vault, a mint it takes, and two depositors who own 1,000 of it each."""

    def __init__(self, **registry: Any) -> None:
        super().__init__("vault")
        self.program = self.ids["vault"]
        self.governance = self.add_depositor()
        self.registry = self.add_registry(RegistryRow(self.governance.pubkey(), **registry))
        self.vault = vault_address(self.program, self.registry, DELAY)
        self.run(build_vault_init(self.program, self.payer.pubkey(), self.registry, DELAY))
        self.mint = self.add_mint()
        self.set_limit(10**9)
        self.alice, self.bob = self.add_depositor(), self.add_depositor()
        self.purse = {one.pubkey(): self.add_tokens(self.mint, one.pubkey(), 1_000) for one in (self.alice, self.bob)}
        self.custody = custody_address(self.program, self.vault, self.mint)

    def add_depositor(self) -> Keypair:
        one = Keypair()
        self.svm.airdrop(one.pubkey(), 10**10)
        return one

    def add_registry(self, row: RegistryRow, key: Pubkey | None = None) -> Pubkey:
        """Put a registry account in place, or another state into one."""
        key = key or Pubkey.new_unique()
        self.row = row
        self.svm.set_account(key, Account(10**9, row.pack(), Pubkey.from_bytes(keccak(b"registry program"))))
        return key

    def change_registry(self, **changes: Any) -> None:
        self.add_registry(replace(self.row, **changes), self.registry)

    def raw(self, key: Pubkey) -> RawAccount:
        account = self.account(key)
        return RawAccount(account.lamports, str(account.owner), bytes(account.data))

    def holding(self, account: bytes = ACCOUNT) -> Holding:
        key = holding_address(self.program, self.vault, account, self.mint)
        return decode_holding(str(key), self.raw(key), self.program)

    def record(self, owner: Keypair, account: bytes = ACCOUNT) -> Deposit:
        key = deposit_address(self.program, self.vault, account, owner.pubkey(), self.mint)
        return decode_deposit(str(key), self.raw(key), self.program)

    def standing(self, account: bytes = ACCOUNT) -> StandingHold:
        key = hold_address(self.program, self.vault, account)
        return decode_hold(str(key), self.raw(key), self.program)

    def set_limit(self, cap: int, mint: Pubkey | None = None) -> None:
        self.run(self.limit(cap, mint), signers=[self.governance])

    def limit(self, cap: int, mint: Pubkey | None = None) -> Instruction:
        payer, governance = self.payer.pubkey(), self.governance.pubkey()
        return build_limit(self.program, self.vault, self.registry, governance, mint or self.mint, cap, payer)

    def deposit(self, owner: Keypair, amount: int, account: bytes = ACCOUNT) -> None:
        source = self.purse[owner.pubkey()]
        owner_key = owner.pubkey()
        self.run(
            build_deposit(self.program, self.vault, owner_key, account, self.mint, source, amount), signers=[owner]
        )

    def request(self, owner: Keypair, amount: int, account: bytes = ACCOUNT) -> None:
        self.run(build_request(self.program, self.vault, owner.pubkey(), account, self.mint, amount), signers=[owner])

    def cancel(self, owner: Keypair, account: bytes = ACCOUNT) -> None:
        self.run(build_cancel(self.program, self.vault, owner.pubkey(), account, self.mint), signers=[owner])

    def claim(self, owner: Keypair, to: Pubkey | None = None, account: bytes = ACCOUNT) -> None:
        target = to or self.purse[owner.pubkey()]
        self.run(build_claim(self.program, self.vault, owner.pubkey(), account, self.mint, target), signers=[owner])

    def make_hold(self, **changes: Any) -> Hold:
        """Return a hold of the account for an hour, with changes."""
        return replace(Hold(ACCOUNT, DESTINATION, bytes(self.vault), NOW + 3_600, EPOCH), **changes)

    def hold(self, hold: Hold | None = None, signatures: Sequence[IndexedSignature] | None = None) -> None:
        """Bring a hold; the payer, who is nobody in particular, does."""
        hold = hold or self.make_hold()
        given = signed(hold) if signatures is None else signatures
        self.run(build_hold(self.program, self.registry, hold, given))

    def make_permit(self, **changes: Any) -> Permit:
        """Return a permit for alice's 100 units to her own purse, with changes."""
        to, mint = bytes(self.purse[self.alice.pubkey()]), bytes(self.mint)
        nonce = keccak(b"a nonce")
        permit = Permit(ACCOUNT, DESTINATION, bytes(self.vault), mint, 100, to, nonce, EPOCH, NOW + 60)
        return replace(permit, **changes)

    def withdraw(
        self,
        permit: Permit | None = None,
        owner: Keypair | None = None,
        signatures: Sequence[IndexedSignature] | None = None,
    ) -> None:
        permit, owner = permit or self.make_permit(), owner or self.alice
        given = signed(permit) if signatures is None else signatures
        self.run(build_withdraw(self.program, self.registry, owner.pubkey(), permit, given), signers=[owner])

    def run_alone(self, owner: Keypair, instruction: Instruction, table: Sequence[Pubkey] = ()) -> int:
        """Execute with the owner as the only signer, and with a lookup table of these keys; return the packet's size.

        The packet's limit is asserted, since LiteSVM does not know it.
        """
        key, tables = Pubkey.new_unique(), []
        if table:
            head = struct.pack("<IQQBB32xH", 1, 2**64 - 1, 0, 0, 0, 0)
            data = head + b"".join(map(bytes, table))
            self.svm.set_account(key, Account(10**9, data, LOOKUP_TABLES))
            tables = [AddressLookupTableAccount(key, list(table))]
        self.svm.warp_to_slot(self.svm.get_clock().slot + 10)
        everything = [set_compute_unit_limit(1_000_000), instruction]
        message = MessageV0.try_compile(owner.pubkey(), everything, tables, self.svm.latest_blockhash())
        transaction = VersionedTransaction(message, [owner])
        size = len(bytes(transaction))
        assert size <= PACKET, f"{size} bytes"
        result = self.svm.send_transaction(transaction)
        assert not isinstance(result, FailedTransactionMetadata), result
        return size

    # ---- Token-2022, by its own instructions ----

    def add_extended_mint(self, *extensions: int, space: int = 0) -> Pubkey:
        """Create a mint with these extensions, in this order, whose authorities are all the payer."""
        mint, me = Keypair(), bytes(self.payer.pubkey())
        key = mint.pubkey()
        size = space or (166 + sum(4 + INIT[one][0] for one in extensions if one in INIT) if extensions else 82)
        initialise = [Instruction(TOKEN_2022, INIT[x][1](me, bytes(key)), [_w(key)]) for x in extensions if x in INIT]
        begin = Instruction(TOKEN_2022, bytes([20, 6]) + me + b"\1" + me, [_w(key)])
        create = create_account(
            CreateAccountParams(
                from_pubkey=self.payer.pubkey(), to_pubkey=key, lamports=10**9, space=size, owner=TOKEN_2022
            )
        )
        self.run(create, *initialise, begin, signers=[mint])
        authority = AccountMeta(self.payer.pubkey(), True, False)
        if 19 in extensions:
            data = _interface("spl_token_metadata_interface:initialize_account") + b"".join(
                struct.pack("<I", len(text)) + text for text in (b"A name", b"NAME", b"https://example.org/name")
            )
            self.run(Instruction(TOKEN_2022, data, [_w(key), _r(self.payer.pubkey()), _r(key), authority]))
        if 21 in extensions:
            data = _interface("spl_token_group_interface:initialize_token_group") + me + (9).to_bytes(8, "little")
            self.run(Instruction(TOKEN_2022, data, [_w(key), _r(key), authority]))
        if 23 in extensions:
            group = self.add_extended_mint(20, 21)
            data = _interface("spl_token_group_interface:initialize_member")
            self.run(Instruction(TOKEN_2022, data, [_w(key), _r(key), authority, _w(group), authority]))
        return key

    def add_extended_tokens(self, mint: Pubkey, owner: Pubkey, amount: int) -> Pubkey:
        """Create the associated token account of a Token-2022 mint, and mint to it."""
        target = get_associated_token_address(owner, mint, TOKEN_2022)
        create = create_idempotent_associated_token_account(self.payer.pubkey(), owner, mint, TOKEN_2022)
        metas = [_w(mint), _w(target), AccountMeta(self.payer.pubkey(), True, False)]
        self.run(create, *([Instruction(TOKEN_2022, struct.pack("<BQ", 7, amount), metas)] if amount else []))
        return target


def _w(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, False, True)


def _r(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, False, False)


def _interface(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


INIT: dict[int, tuple[int, Callable[[bytes, bytes], bytes]]] = {
    1: (108, lambda me, _: b"\x1a\0\1" + me + b"\1" + me + struct.pack("<HQ", 0, 0)),  # no fee, for now
    3: (32, lambda me, _: b"\x19\1" + me),
    4: (65, lambda me, _: b"\x1b\0" + me + bytes(33)),
    6: (1, lambda me, _: b"\x1c\0\1"),  # initialised, for now
    9: (0, lambda me, _: b"\x20"),
    10: (52, lambda me, _: b"\x21\0" + me + struct.pack("<h", 500)),
    12: (32, lambda me, _: b"\x23" + me),
    14: (64, lambda me, _: b"\x24\0" + me + bytes(32)),  # no hook, for now
    16: (129, lambda me, _: b"\x25\0" + me + me),
    18: (64, lambda me, mint: b"\x27\0" + me + mint),
    20: (64, lambda me, mint: b"\x28\0" + me + mint),
    22: (64, lambda me, mint: b"\x29\0" + me + mint),
    24: (196, lambda me, _: b"\x2a\0" + me + bytes(36)),
    25: (56, lambda me, _: b"\x2b\0" + me + struct.pack("<d", 2.0)),
    26: (33, lambda me, _: b"\x2c\0" + me),
}
"""Bytes of a mint's extension, and the instruction that initialises it, from (authority, mint).

Tags: solana-program/token-2022 interface/src/instruction.rs. Those of the metadata and group values come after the
mint's initialisation and are in `add_extended_mint`."""


def refuses(code: VaultRefusal, action: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code, caught.value.text


def swap(instruction: Instruction, at: int, key: Pubkey, **changes: bool) -> Instruction:
    """Return the instruction with another account at one position."""
    metas = list(instruction.accounts)
    signer = changes.get("is_signer", metas[at].is_signer)
    metas[at] = AccountMeta(key, signer, changes.get("is_writable", metas[at].is_writable))
    return Instruction(instruction.program_id, instruction.data, metas)
