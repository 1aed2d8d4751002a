"""The client of our programs: addresses, instructions, state, refusals.

The layouts are documented in proofs/programs/registry.c, vault.c and links.c; nothing here touches the network.
Addresses are `solders.pubkey.Pubkey`; 32-byte ids are bytes; amounts are base units; times are Unix seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from adapters.solana.layouts import SYSTEM_PROGRAM, TOKEN_PROGRAM, Fields, LayoutError, RawAccount, open_account
from proofs.leaf import Leaf, pack
from proofs.quorum import IndexedSignature
from proofs.statement import Deployment, Header, pack_header

_SYSTEM = Pubkey.from_string(SYSTEM_PROGRAM)
_TOKEN = Pubkey.from_string(TOKEN_PROGRAM)

REGISTRY_SIZE, VAULT_SIZE, HOLDING_SIZE, DEPOSIT_SIZE, LINK_SIZE = 3_416, 56, 128, 168, 176
REGISTRY_TAG, VAULT_TAG, HOLDING_TAG, DEPOSIT_TAG = b"cmREGST1", b"cmVAULT1", b"cmHOLDG1", b"cmDEPOS1"
LINK_TAG = b"cmLINKR1"
RING_SLOTS = 64
_RING, _RING_STRIDE, _MEMBERS = 856, 40, 144


class RegistryRefusal(IntEnum):
    """Custom error codes of the registry program; their meaning is in the table of registry.c."""

    INSTRUCTION_MALFORMED = 1
    ACCOUNTS_WRONG = 2
    PAYER_NOT_SIGNER = 3
    SYSTEM_PROGRAM_WRONG = 4
    ADDRESS_WRONG = 5
    ALREADY_INITIALISED = 6
    STATE_WRONG = 7
    SYSVAR_UNREADABLE = 8
    NETWORK_CLASS_UNKNOWN = 10
    MEMBER_COUNT_WRONG = 11
    THRESHOLD_WRONG = 12
    MEMBER_INVALID = 13
    PARAMETER_INVALID = 14
    EPOCH_NOT_NEWER = 20
    EPOCH_AHEAD = 21
    PRODUCED_AHEAD = 22
    EXPIRED = 23
    LIFETIME_TOO_LONG = 24
    FLOOR_BACKWARDS = 25
    FLOOR_ABOVE_EPOCH = 26
    SET_ID_WRONG = 27
    SET_EXPIRED = 28
    ROOT_ZERO = 29
    SIGNATURES_TOO_FEW = 30
    SIGNER_ORDER = 31
    SIGNER_UNKNOWN = 32
    SIGNATURE_HIGH_S = 33
    SIGNATURE_WRONG = 34


class VaultRefusal(IntEnum):
    """Custom error codes of the vault program; their meaning is in the table of vault.c."""

    INSTRUCTION_MALFORMED = 1
    ACCOUNTS_WRONG = 2
    OWNER_NOT_SIGNER = 3
    SYSTEM_PROGRAM_WRONG = 4
    TOKEN_PROGRAM_WRONG = 5
    ADDRESS_WRONG = 6
    ALREADY_INITIALISED = 7
    VAULT_WRONG = 8
    HOLDING_WRONG = 9
    DEPOSIT_WRONG = 10
    MINT_WRONG = 11
    TOKEN_ACCOUNT_WRONG = 12
    DESTINATION_WRONG = 13
    SYSVAR_UNREADABLE = 14
    DELAY_TOO_LONG = 15
    AMOUNT_ZERO = 20
    AMOUNT_TOO_LARGE = 21
    AMOUNT_NOT_FREE = 22
    REQUEST_OPEN = 23
    REQUEST_NONE = 24
    NOT_READY = 25


class LinksRefusal(IntEnum):
    """Custom error codes of the links program; their meaning is in the table of links.c."""

    INSTRUCTION_MALFORMED = 1
    ACCOUNTS_WRONG = 2
    PAYER_NOT_SIGNER = 3
    MEMBER_NOT_SIGNER = 4
    SYSTEM_PROGRAM_WRONG = 5
    ADDRESS_WRONG = 6
    RECORD_WRONG = 7
    SYSVAR_UNREADABLE = 8
    EXPIRED = 9
    NONCE_USED = 10
    REVOKED_ALREADY = 11


# ---- registry ----


@dataclass(frozen=True, slots=True)
class RegistryParameters:
    """What a registry is initialised with besides its deployment; all of it is in the seeds of its address.

    Args:
        destination: 32-byte id of the chain it serves.
        epoch_seconds: length of an epoch.
        clock_skew: seconds producedAt may be ahead of the chain's clock.
        max_lifetime: most seconds between producedAt and validUntil.
    """

    destination: bytes
    epoch_seconds: int
    clock_skew: int
    max_lifetime: int

    def pack(self) -> bytes:
        """Return the 24 bytes of the three times, as in the seeds, the instruction and the state."""
        return struct.pack("<QQQ", self.epoch_seconds, self.clock_skew, self.max_lifetime)


@dataclass(frozen=True, slots=True)
class RegistryState:
    """A decoded registry account. `ring` maps the epochs it holds a root of to the root."""

    deployment_id: bytes
    parameters: RegistryParameters
    domain_separator: bytes
    network_class: int
    members: tuple[bytes, ...]
    threshold: int
    not_after: int
    salt: bytes
    set_id: int
    epoch: int
    floor: int
    produced_at: int
    valid_until: int
    posted_at: int
    ring: dict[int, bytes]

    @property
    def root(self) -> bytes | None:
        """The newest root, None before the first posting."""
        return self.ring.get(self.epoch)


def registry_address(program: Pubkey, deployment_id: bytes, parameters: RegistryParameters) -> Pubkey:
    """Return the registry's address."""
    seeds = [b"registry", deployment_id, parameters.destination, parameters.pack()]
    return Pubkey.find_program_address(seeds, program)[0]


def build_registry_init(
    program: Pubkey, payer: Pubkey, deployment: Deployment, parameters: RegistryParameters
) -> Instruction:
    """Return the instruction that makes the registry; the payer signs and pays its rent."""
    data = (
        bytes([0, deployment.network_class, deployment.threshold, len(deployment.members)])
        + deployment.not_after.to_bytes(8, "little")
        + deployment.salt
        + parameters.destination
        + parameters.pack()
        + b"".join(deployment.members)
    )
    registry = registry_address(program, deployment.deployment_id(), parameters)
    return Instruction(program, data, [_signer(payer), _writable(registry), _readonly(_SYSTEM)])


def build_post(
    program: Pubkey, registry: Pubkey, header: Header, signatures: Sequence[IndexedSignature]
) -> Instruction:
    """Return the instruction that posts a certificate. Anybody may pay for it."""
    data = bytes([1]) + pack_header(header) + bytes([len(signatures)]) + b"".join(s.pack() for s in signatures)
    return Instruction(program, data, [_writable(registry)])


def build_verify(program: Pubkey, registry: Pubkey, leaf: Leaf, proof: Sequence[bytes]) -> Instruction:
    """Return the instruction whose return data is b"\\x01" when the registry accepts the leaf now, else b"\\x00"."""
    data = bytes([2]) + pack(leaf) + bytes([len(proof)]) + b"".join(proof)
    return Instruction(program, data, [_readonly(registry)])


def decode_registry(account: str, raw: RawAccount, program: Pubkey) -> RegistryState:
    """Decode a registry account. Raises LayoutError."""
    fields = _open(account, raw, program, REGISTRY_SIZE, REGISTRY_TAG)
    count = fields.u8(141)
    if count > 32:
        raise LayoutError(account, "memberCount", f"{count} found, at most 32 expected")
    ring = {}
    for slot in range(RING_SLOTS):
        at = _RING + slot * _RING_STRIDE
        if epoch := fields.u64(at):
            if epoch % RING_SLOTS != slot:
                raise LayoutError(account, f"ring[{slot}]", f"epoch {epoch} does not belong there")
            ring[epoch] = fields.bytes32(at + 8)
    state = RegistryState(
        deployment_id=fields.bytes32(8),
        parameters=RegistryParameters(fields.bytes32(40), fields.u64(104), fields.u64(112), fields.u64(120)),
        domain_separator=fields.bytes32(72),
        network_class=fields.u8(143),
        members=tuple(fields.data[_MEMBERS + 20 * i : _MEMBERS + 20 * i + 20] for i in range(count)),
        threshold=fields.u8(140),
        not_after=fields.u64(128),
        salt=fields.bytes32(824),
        set_id=fields.u32(136),
        epoch=fields.u64(784),
        floor=fields.u64(792),
        produced_at=fields.u64(800),
        valid_until=fields.u64(808),
        posted_at=fields.u64(816),
        ring=ring,
    )
    if state.epoch and state.root is None:
        raise LayoutError(account, "ring", f"no root for the newest epoch {state.epoch}")
    return state


# ---- vault ----


@dataclass(frozen=True, slots=True)
class VaultState:
    """A decoded vault. `delay` is seconds."""

    deployment_id: bytes
    delay: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What a margin account holds of one mint in one vault. `total` includes `pending`."""

    vault: str
    account: bytes
    mint: str
    total: int
    pending: int


@dataclass(frozen=True, slots=True)
class Deposit:
    """What one owner put in for an account. `amount` includes `pending`, the one open request; 0 when none is."""

    vault: str
    account: bytes
    owner: str
    mint: str
    amount: int
    pending: int
    ready_at: int


def vault_address(program: Pubkey, deployment_id: bytes, delay: int) -> Pubkey:
    """Return the address of a deployment's vault with this delay in seconds."""
    return Pubkey.find_program_address([b"vault", deployment_id, delay.to_bytes(8, "little")], program)[0]


def holding_address(program: Pubkey, vault: Pubkey, account: bytes, mint: Pubkey) -> Pubkey:
    """Return the address that counts what a margin account holds of a mint."""
    return Pubkey.find_program_address([b"holding", bytes(vault), account, bytes(mint)], program)[0]


def deposit_address(program: Pubkey, vault: Pubkey, account: bytes, owner: Pubkey, mint: Pubkey) -> Pubkey:
    """Return the address that counts what one owner put in."""
    return Pubkey.find_program_address([b"deposit", bytes(vault), account, bytes(owner), bytes(mint)], program)[0]


def custody_address(program: Pubkey, vault: Pubkey, mint: Pubkey) -> Pubkey:
    """Return the token account that holds a mint's tokens of every account."""
    return Pubkey.find_program_address([b"custody", bytes(vault), bytes(mint)], program)[0]


def build_vault_init(program: Pubkey, payer: Pubkey, deployment_id: bytes, delay: int) -> Instruction:
    """Return the instruction that makes the vault; the payer signs and pays its rent."""
    vault = vault_address(program, deployment_id, delay)
    data = bytes([0]) + deployment_id + delay.to_bytes(8, "little")
    return Instruction(program, data, [_signer(payer), _writable(vault), _readonly(_SYSTEM)])


def build_deposit(
    program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey, source: Pubkey, amount: int
) -> Instruction:
    """Return the instruction that moves `amount` from the owner's token account `source` into the vault."""
    metas = [
        _signer(owner),
        _readonly(vault),
        _writable(holding_address(program, vault, account, mint)),
        _writable(deposit_address(program, vault, account, owner, mint)),
        _readonly(mint),
        _writable(source),
        _writable(custody_address(program, vault, mint)),
        _readonly(_TOKEN),
        _readonly(_SYSTEM),
    ]
    return Instruction(program, bytes([1]) + account + amount.to_bytes(8, "little"), metas)


def build_request(
    program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey, amount: int
) -> Instruction:
    """Return the instruction that asks for `amount` back; it can be claimed after the delay."""
    data = bytes([2]) + account + bytes(mint) + amount.to_bytes(8, "little")
    return Instruction(program, data, _owner_metas(program, vault, owner, account, mint))


def build_cancel(program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey) -> Instruction:
    """Return the instruction that takes the open request back."""
    data = bytes([3]) + account + bytes(mint)
    return Instruction(program, data, _owner_metas(program, vault, owner, account, mint))


def build_claim(
    program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey, destination: Pubkey
) -> Instruction:
    """Return the instruction that pays the requested amount out to the token account `destination`."""
    metas = [
        *_owner_metas(program, vault, owner, account, mint),
        _readonly(mint),
        _writable(custody_address(program, vault, mint)),
        _writable(destination),
        _readonly(_TOKEN),
    ]
    return Instruction(program, bytes([4]) + account, metas)


def decode_vault(account: str, raw: RawAccount, program: Pubkey) -> VaultState:
    """Decode a vault. Raises LayoutError."""
    fields = _open(account, raw, program, VAULT_SIZE, VAULT_TAG)
    return VaultState(deployment_id=fields.bytes32(8), delay=fields.u64(40))


def decode_holding(account: str, raw: RawAccount, program: Pubkey) -> Holding:
    """Decode a holding. Raises LayoutError."""
    fields = _open(account, raw, program, HOLDING_SIZE, HOLDING_TAG)
    return Holding(fields.key(8), fields.bytes32(40), fields.key(72), fields.u64(104), fields.u64(112))


def decode_deposit(account: str, raw: RawAccount, program: Pubkey) -> Deposit:
    """Decode a deposit record. Raises LayoutError."""
    fields = _open(account, raw, program, DEPOSIT_SIZE, DEPOSIT_TAG)
    return Deposit(
        vault=fields.key(8),
        account=fields.bytes32(40),
        owner=fields.key(72),
        mint=fields.key(104),
        amount=fields.u64(136),
        pending=fields.u64(144),
        ready_at=fields.u64(152),
    )


# ---- links ----


@dataclass(frozen=True, slots=True)
class LinkConsent:
    """What a program-derived address agreed to. `controller` is the keccak of its CAIP-10 text.

    `revoked` is the nonce and expiry of its revoke, None while it stands.
    """

    deployment_id: bytes
    member: str
    account: bytes
    controller: bytes
    nonce: int
    expiry: int
    revoked: tuple[int, int] | None


def link_address(program: Pubkey, deployment_id: bytes, member: Pubkey, account: bytes) -> Pubkey:
    """Return the address of the record by which a member agrees to back an account."""
    return Pubkey.find_program_address([b"link", deployment_id, bytes(member), account], program)[0]


def build_link_accept(
    program: Pubkey,
    payer: Pubkey,
    member: Pubkey,
    deployment_id: bytes,
    account: bytes,
    controller: bytes,
    nonce: int,
    expiry: int,
) -> Instruction:
    """Return the instruction that records a member's consent; a PDA's program passes it on with the PDA's signature."""
    data = bytes([0]) + deployment_id + account + controller + struct.pack("<QQ", nonce, expiry)
    record = link_address(program, deployment_id, member, account)
    signs = AccountMeta(member, is_signer=True, is_writable=False)
    return Instruction(program, data, [_signer(payer), signs, _writable(record), _readonly(_SYSTEM)])


def build_link_revoke(program: Pubkey, member: Pubkey, record: Pubkey, nonce: int, expiry: int) -> Instruction:
    """Return the instruction by which a member takes its consent back."""
    signs = AccountMeta(member, is_signer=True, is_writable=False)
    return Instruction(program, bytes([1]) + struct.pack("<QQ", nonce, expiry), [signs, _writable(record)])


def decode_link(account: str, raw: RawAccount, program: Pubkey) -> LinkConsent:
    """Decode a member's record. Raises LayoutError."""
    fields = _open(account, raw, program, LINK_SIZE, LINK_TAG)
    return LinkConsent(
        deployment_id=fields.bytes32(8),
        member=fields.key(40),
        account=fields.bytes32(72),
        controller=fields.bytes32(104),
        nonce=fields.u64(136),
        expiry=fields.u64(144),
        revoked=(fields.u64(152), fields.u64(160)) if fields.flag(168, "revoked") else None,
    )


def _open(account: str, raw: RawAccount, program: Pubkey, size: int, tag: bytes) -> Fields:
    fields = open_account(account, raw, str(program), size)
    if fields.data[:8] != tag:
        raise LayoutError(account, "discriminator", f"{fields.data[:8]!r} found, {tag!r} expected")
    return fields


def _owner_metas(program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey) -> list[AccountMeta]:
    return [
        AccountMeta(owner, is_signer=True, is_writable=False),
        _readonly(vault),
        _writable(holding_address(program, vault, account, mint)),
        _writable(deposit_address(program, vault, account, owner, mint)),
    ]


def _signer(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=True, is_writable=True)


def _writable(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=False, is_writable=True)


def _readonly(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=False, is_writable=False)
