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
from proofs.errors import FieldError
from proofs.leaf import LIQUIDATABLE, MONITORED, PARTIAL, STALE, Leaf, pack
from proofs.permits import Hold, Permit
from proofs.quorum import MAX_MEMBERS, IndexedSignature
from proofs.sets import AttestorSet, rotation_digest
from proofs.statement import Deployment, Header, pack_header

_SYSTEM = Pubkey.from_string(SYSTEM_PROGRAM)
_TOKEN = Pubkey.from_string(TOKEN_PROGRAM)

REGISTRY_SIZE, STAGED_SIZE, MARGIN_SIZE, DRAWN_SIZE, CONSUMER_SIZE, LINK_SIZE = 4_224, 744, 224, 128, 96, 176
REGISTRY_TAG, STAGED_TAG, MARGIN_TAG, DRAWN_TAG = b"cmREGST2", b"cmNXSET1", b"cmACCNT1", b"cmDRAWN1"
CONSUMER_TAG, LINK_TAG = b"cmCONSM2", b"cmLINKR1"
VAULT_SIZE, HOLDING_SIZE, DEPOSIT_SIZE = 56, 128, 168
VAULT_TAG, HOLDING_TAG, DEPOSIT_TAG = b"cmVAULT2", b"cmHOLDG1", b"cmDEPOS1"
LIMIT_SIZE, HOLD_SIZE = 88, 96
LIMIT_TAG, HOLD_TAG = b"cmLIMIT1", b"cmHOLDS1"
RING_SLOTS = 64
_RING, _RING_STRIDE, _OLDER_SET, _NEWEST_SET = 1_664, 40, 336, 1_000


class RegistryRefusal(IntEnum):
    """Custom error codes of the registry program; their meaning is in the tables of registry.c and quorum.h."""

    INSTRUCTION_MALFORMED = 1
    ACCOUNTS_WRONG = 2
    PAYER_NOT_SIGNER = 3
    SYSTEM_PROGRAM_WRONG = 4
    ADDRESS_WRONG = 5
    ALREADY_INITIALISED = 6
    STATE_WRONG = 7
    SYSVAR_UNREADABLE = 8
    AUTHORITY_WRONG = 9
    NETWORK_CLASS_UNKNOWN = 10
    MEMBER_COUNT_WRONG = 11
    THRESHOLD_WRONG = 12
    MEMBER_INVALID = 13
    PARAMETER_INVALID = 14
    EPOCH_NOT_NEWER = 20
    PRODUCED_AHEAD = 21
    EXPIRED = 22
    LIFETIME_TOO_LONG = 23
    FLOOR_BACKWARDS = 24
    FLOOR_ABOVE_EPOCH = 25
    SET_ID_WRONG = 26
    ROOT_ZERO = 27
    SIGNATURES_TOO_FEW = 30
    SIGNER_ORDER = 31
    SIGNER_UNKNOWN = 32
    SIGNATURE_HIGH_S = 33
    SIGNATURE_WRONG = 34
    SET_EXPIRED = 35
    SET_UNKNOWN = 36
    EPOCH_AHEAD = 37
    EPOCH_BELOW_FLOOR = 38
    SET_SUPERSEDED = 39
    SET_NOT_NEXT = 40
    SET_PENDING = 41
    ACTIVATION_WRONG = 42
    SET_LIFETIME_WRONG = 43
    RECOVERY_NONE = 44
    TIMELOCK_RUNNING = 45
    LISTED_ALREADY = 50
    NOT_LISTED = 51
    PAUSE_TOO_LONG = 52
    PAUSE_TOO_SOON = 53
    PAUSED = 54
    NOT_PAUSED = 55
    LEAF_NOT_NEWEST = 60
    LEAF_EXPIRED = 61
    LEAF_WRONG = 62
    AMOUNT_ZERO = 63
    BUDGET_EXCEEDED = 64
    REPAID_TOO_MUCH = 65
    LEAF_FLAGGED = 66


class VaultRefusal(IntEnum):
    """Custom error codes of the vault program; their meaning is in the tables of vault.c and quorum.h."""

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
    REGISTRY_WRONG = 16
    GOVERNANCE_WRONG = 17
    LIMIT_WRONG = 18
    HOLD_WRONG = 19
    AMOUNT_ZERO = 20
    AMOUNT_TOO_LARGE = 21
    AMOUNT_NOT_FREE = 22
    REQUEST_OPEN = 23
    REQUEST_NONE = 24
    NOT_READY = 25
    MINT_NOT_ACCEPTED = 26
    LIMIT_REACHED = 27
    HELD = 28
    SIGNATURES_TOO_FEW = 30
    SIGNER_ORDER = 31
    SIGNER_UNKNOWN = 32
    SIGNATURE_HIGH_S = 33
    SIGNATURE_WRONG = 34
    SET_EXPIRED = 35
    SET_UNKNOWN = 36
    EPOCH_AHEAD = 37
    EPOCH_BELOW_FLOOR = 38
    SET_SUPERSEDED = 39
    HOLD_TOO_LONG = 40
    HOLD_NOT_NEWER = 41
    PERMIT_EXPIRED = 42
    NONCE_USED = 43
    HOLD_PASSED = 44
    EXTENSION_TRANSFER_FEE = 101
    EXTENSION_MINT_CLOSE_AUTHORITY = 103
    EXTENSION_CONFIDENTIAL = 104
    EXTENSION_DEFAULT_STATE = 106
    EXTENSION_NON_TRANSFERABLE = 109
    EXTENSION_INTEREST_BEARING = 110
    EXTENSION_PERMANENT_DELEGATE = 112
    EXTENSION_TRANSFER_HOOK = 114
    EXTENSION_CONFIDENTIAL_FEE = 116
    EXTENSION_CONFIDENTIAL_SUPPLY = 124
    EXTENSION_SCALED_UI = 125
    EXTENSION_PAUSABLE = 126
    EXTENSION_PERMISSIONED_BURN = 128
    EXTENSION_UNKNOWN = 199


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
        governance: lists consumers and schedules recoveries.
        guardian: may pause; the default is nobody.
        timelock: seconds until what governance decides takes effect; a day to thirty, on a devnet from 0.
    """

    destination: bytes
    epoch_seconds: int
    clock_skew: int
    max_lifetime: int
    governance: Pubkey
    guardian: Pubkey
    timelock: int

    def times(self) -> bytes:
        """Return the 32 bytes of the four times, as in the seeds, the instruction and the state."""
        return struct.pack("<QQQQ", self.epoch_seconds, self.clock_skew, self.max_lifetime, self.timelock)


@dataclass(frozen=True, slots=True)
class RegistryState:
    """A decoded registry account. `ring` maps the epochs it holds a root of to the root.

    `older` is the set before `newest`, None before the first rotation. `recovery` is the digest of the set that
    governance scheduled and the second from which it may be executed. Paused from `paused[0]` until `paused[1]`.
    """

    deployment_id: bytes
    parameters: RegistryParameters
    domain_separator: bytes
    network_class: int
    salt: bytes
    older: AttestorSet | None
    newest: AttestorSet
    epoch: int
    floor: int
    produced_at: int
    valid_until: int
    posted_at: int
    paused: tuple[int, int]
    recovery: tuple[bytes, int] | None
    ring: dict[int, bytes]

    @property
    def root(self) -> bytes | None:
        """The newest root, None before the first posting."""
        return self.ring.get(self.epoch)

    @property
    def sets(self) -> tuple[AttestorSet, ...]:
        """The sets it knows, ascending."""
        return (self.newest,) if self.older is None else (self.older, self.newest)


@dataclass(frozen=True, slots=True)
class StagedSet:
    """A set that was proposed to a registry, and the digest that the newest set's quorum must sign."""

    registry: str
    digest: bytes
    to: AttestorSet


@dataclass(frozen=True, slots=True)
class Margin:
    """What a registry stores of an account: the leaf applied last, and what was drawn. USD count 1e-8.

    `valid_until` is the leaf's or the statement's, whichever ends first; `epoch` is never 0.
    """

    registry: str
    account: bytes
    used: int
    epoch: int
    as_of: int
    valid_until: int
    flags: int
    equity: int
    assets_initial: int
    requirement_initial: int
    assets_maintenance: int
    requirement_maintenance: int
    budget: int


@dataclass(frozen=True, slots=True)
class DrawnState:
    """What one consumer has drawn of an account, 1e-8 USD."""

    registry: str
    account: bytes
    authority: str
    used: int


@dataclass(frozen=True, slots=True)
class ConsumerState:
    """A consumer. It may draw from the second `listed_from` on; None: delisted, last at `delisted_at`."""

    registry: str
    authority: str
    listed_from: int | None
    delisted_at: int | None


class MarginStatus(IntEnum):
    """What a registry's `status` says of an account."""

    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2
    LIQUIDATABLE = 3


def registry_address(program: Pubkey, deployment_id: bytes, parameters: RegistryParameters) -> Pubkey:
    """Return the registry's address."""
    parties = [bytes(parameters.governance), bytes(parameters.guardian)]
    seeds = [b"registry", deployment_id, parameters.destination, parameters.times(), *parties]
    return Pubkey.find_program_address(seeds, program)[0]


def staged_address(program: Pubkey, registry: Pubkey, digest: bytes) -> Pubkey:
    """Return the address of the staged set with this RotateSet digest."""
    return Pubkey.find_program_address([b"set", bytes(registry), digest], program)[0]


def margin_address(program: Pubkey, registry: Pubkey, account: bytes) -> Pubkey:
    """Return the address that stores an account's margin."""
    return Pubkey.find_program_address([b"acct", bytes(registry), account], program)[0]


def drawn_address(program: Pubkey, registry: Pubkey, account: bytes, authority: Pubkey) -> Pubkey:
    """Return the address that stores what one consumer has drawn of an account."""
    return Pubkey.find_program_address([b"drawn", bytes(registry), account, bytes(authority)], program)[0]


def consumer_address(program: Pubkey, registry: Pubkey, authority: Pubkey) -> Pubkey:
    """Return the address that stores since when a consumer is listed."""
    return Pubkey.find_program_address([b"consumer", bytes(registry), bytes(authority)], program)[0]


def build_registry_init(
    program: Pubkey, payer: Pubkey, deployment: Deployment, parameters: RegistryParameters
) -> Instruction:
    """Return the instruction that makes the registry; the payer signs and pays its rent."""
    data = (
        bytes([0, deployment.network_class, deployment.threshold, len(deployment.members)])
        + deployment.not_after.to_bytes(8, "little")
        + deployment.salt
        + parameters.destination
        + parameters.times()
        + bytes(parameters.governance)
        + bytes(parameters.guardian)
        + b"".join(deployment.members)
    )
    registry = registry_address(program, deployment.deployment_id(), parameters)
    return Instruction(program, data, [_signer(payer), _writable(registry), _readonly(_SYSTEM)])


def build_post(
    program: Pubkey, registry: Pubkey, header: Header, signatures: Sequence[IndexedSignature]
) -> Instruction:
    """Return the instruction that posts a certificate. Anybody may pay for it."""
    return Instruction(program, bytes([1]) + pack_header(header) + _pack_signatures(signatures), [_writable(registry)])


def build_verify(program: Pubkey, registry: Pubkey, leaf: Leaf, proof: Sequence[bytes]) -> Instruction:
    """Return the instruction whose return data is b"\\x01" when the registry accepts the leaf now, else b"\\x00"."""
    return Instruction(program, bytes([2]) + _proven(leaf, proof), [_readonly(registry)])


def build_stage(program: Pubkey, registry: Pubkey, payer: Pubkey, deployment_id: bytes, to: AttestorSet) -> Instruction:
    """Return the instruction that writes a set to where `build_rotate` looks for it; harmless when it is there."""
    terms = struct.pack("<IBBQQ", to.set_id, to.threshold, len(to.members), to.activation_epoch, to.not_after)
    staged = staged_address(program, registry, rotation_digest(to, deployment_id))
    metas = [_signer(payer), _readonly(registry), _writable(staged), _readonly(_SYSTEM)]
    return Instruction(program, bytes([3]) + terms + b"".join(to.members), metas)


def build_rotate(
    program: Pubkey, registry: Pubkey, digest: bytes, signatures: Sequence[IndexedSignature]
) -> Instruction:
    """Return the instruction that hands over to the staged set with this digest. Anybody may pay for it."""
    metas = [_writable(registry), _readonly(staged_address(program, registry, digest))]
    return Instruction(program, bytes([4]) + _pack_signatures(signatures), metas)


def build_schedule_recovery(program: Pubkey, registry: Pubkey, governance: Pubkey, digest: bytes) -> Instruction:
    """Return the instruction by which governance schedules a staged set without signatures."""
    metas = [_signs(governance), _writable(registry), _readonly(staged_address(program, registry, digest))]
    return Instruction(program, bytes([5]), metas)


def build_execute_recovery(program: Pubkey, registry: Pubkey, digest: bytes) -> Instruction:
    """Return the instruction that hands over to the scheduled set once its timelock has passed."""
    return Instruction(program, bytes([6]), [_writable(registry), _readonly(staged_address(program, registry, digest))])


def build_cancel_recovery(program: Pubkey, registry: Pubkey, governance: Pubkey) -> Instruction:
    """Return the instruction by which governance takes a scheduled recovery back."""
    return Instruction(program, bytes([7]), [_signs(governance), _writable(registry)])


def build_list(program: Pubkey, registry: Pubkey, payer: Pubkey, governance: Pubkey, authority: Pubkey) -> Instruction:
    """Return the instruction after which, a timelock later, what `authority` signs may draw."""
    consumer = consumer_address(program, registry, authority)
    metas = [_signer(payer), _signs(governance), _readonly(registry), _writable(consumer), _readonly(_SYSTEM)]
    return Instruction(program, bytes([8]) + bytes(authority), metas)


def build_delist(program: Pubkey, registry: Pubkey, governance: Pubkey, authority: Pubkey) -> Instruction:
    """Return the instruction after which `authority` can only repay."""
    consumer = consumer_address(program, registry, authority)
    return Instruction(program, bytes([9]), [_signs(governance), _readonly(registry), _writable(consumer)])


def build_pause(program: Pubkey, registry: Pubkey, guardian: Pubkey, seconds: int) -> Instruction:
    """Return the instruction that stops draws for at most three days."""
    data = bytes([10]) + seconds.to_bytes(8, "little")
    return Instruction(program, data, [_signs(guardian), _writable(registry)])


def build_unpause(program: Pubkey, registry: Pubkey, who: Pubkey) -> Instruction:
    """Return the instruction by which the guardian or governance ends a pause."""
    return Instruction(program, bytes([11]), [_signs(who), _writable(registry)])


def build_apply(program: Pubkey, registry: Pubkey, payer: Pubkey, leaf: Leaf, proof: Sequence[bytes]) -> Instruction:
    """Return the instruction that stores a leaf of the newest epoch; the payer pays for the first one's account."""
    margin = margin_address(program, registry, leaf.account)
    metas = [_signer(payer), _readonly(registry), _writable(margin), _readonly(_SYSTEM)]
    return Instruction(program, bytes([12]) + _proven(leaf, proof), metas)


def build_draw(
    program: Pubkey, registry: Pubkey, payer: Pubkey, authority: Pubkey, account: bytes, amount: int
) -> Instruction:
    """Return the instruction that uses `amount` (1e-8 USD) of an account's budget; a consumer's program sends it."""
    metas = [
        _signer(payer),
        _signs(authority),
        _readonly(registry),
        _readonly(consumer_address(program, registry, authority)),
        _writable(margin_address(program, registry, account)),
        _writable(drawn_address(program, registry, account, authority)),
        _readonly(_SYSTEM),
    ]
    return Instruction(program, bytes([13]) + account + amount.to_bytes(16, "little"), metas)


def build_repay(program: Pubkey, registry: Pubkey, authority: Pubkey, account: bytes, amount: int) -> Instruction:
    """Return the instruction that gives `amount` (1e-8 USD) of what this consumer drew back to the budget."""
    metas = [
        _signs(authority),
        _readonly(registry),
        _writable(margin_address(program, registry, account)),
        _writable(drawn_address(program, registry, account, authority)),
    ]
    return Instruction(program, bytes([14]) + account + amount.to_bytes(16, "little"), metas)


def build_forgive(
    program: Pubkey, registry: Pubkey, governance: Pubkey, authority: Pubkey, account: bytes
) -> Instruction:
    """Return the instruction by which governance writes off what a consumer drew, a timelock after delisting it."""
    metas = [
        _signs(governance),
        _readonly(registry),
        _readonly(consumer_address(program, registry, authority)),
        _writable(margin_address(program, registry, account)),
        _writable(drawn_address(program, registry, account, authority)),
    ]
    return Instruction(program, bytes([15]) + account + bytes(authority), metas)


def decode_registry(account: str, raw: RawAccount, program: Pubkey) -> RegistryState:
    """Decode a registry account. Raises LayoutError."""
    fields = _open(account, raw, program, REGISTRY_SIZE, REGISTRY_TAG)
    ring = {}
    for slot in range(RING_SLOTS):
        at = _RING + slot * _RING_STRIDE
        if epoch := fields.u64(at):
            if epoch % RING_SLOTS != slot:
                raise LayoutError(account, f"ring[{slot}]", f"epoch {epoch} does not belong there")
            ring[epoch] = fields.bytes32(at + 8)
    state = RegistryState(
        deployment_id=fields.bytes32(8),
        parameters=RegistryParameters(
            destination=fields.bytes32(40),
            epoch_seconds=fields.u64(104),
            clock_skew=fields.u64(112),
            max_lifetime=fields.u64(120),
            governance=Pubkey(fields.bytes32(136)),
            guardian=Pubkey(fields.bytes32(168)),
            timelock=fields.u64(128),
        ),
        domain_separator=fields.bytes32(72),
        network_class=fields.u8(232),
        salt=fields.bytes32(200),
        older=_decode_set(fields, _OLDER_SET, "olderSet") if fields.u32(_OLDER_SET) else None,
        newest=_decode_set(fields, _NEWEST_SET, "newestSet"),
        epoch=fields.u64(240),
        floor=fields.u64(248),
        produced_at=fields.u64(256),
        valid_until=fields.u64(264),
        posted_at=fields.u64(272),
        paused=(fields.u64(280), fields.u64(288)),
        recovery=(fields.bytes32(304), fields.u64(296)) if fields.u64(296) else None,
        ring=ring,
    )
    if state.epoch and state.root is None:
        raise LayoutError(account, "ring", f"no root for the newest epoch {state.epoch}")
    if not state.parameters.epoch_seconds:
        raise LayoutError(account, "epochSeconds", "0 found, at least 1 expected")
    return state


def decode_staged(account: str, raw: RawAccount, program: Pubkey) -> StagedSet:
    """Decode a staged set. Raises LayoutError."""
    fields = _open(account, raw, program, STAGED_SIZE, STAGED_TAG)
    return StagedSet(fields.key(8), fields.bytes32(40), _decode_set(fields, 80, "set"))


def decode_margin(account: str, raw: RawAccount, program: Pubkey) -> Margin:
    """Decode what a registry stores of an account. Raises LayoutError."""
    fields = _open(account, raw, program, MARGIN_SIZE, MARGIN_TAG)
    return Margin(
        registry=fields.key(8),
        account=fields.bytes32(40),
        used=_u128(fields, 80),
        epoch=fields.u64(96),
        as_of=fields.u64(104),
        valid_until=fields.u64(112),
        flags=fields.u32(120),
        equity=int.from_bytes(fields.data[128:144], "little", signed=True),
        assets_initial=_u128(fields, 144),
        requirement_initial=_u128(fields, 160),
        assets_maintenance=_u128(fields, 176),
        requirement_maintenance=_u128(fields, 192),
        budget=_u128(fields, 208),
    )


def decode_drawn(account: str, raw: RawAccount, program: Pubkey) -> DrawnState:
    """Decode what one consumer has drawn. Raises LayoutError."""
    fields = _open(account, raw, program, DRAWN_SIZE, DRAWN_TAG)
    return DrawnState(fields.key(8), fields.bytes32(40), fields.key(72), _u128(fields, 112))


def decode_consumer(account: str, raw: RawAccount, program: Pubkey) -> ConsumerState:
    """Decode a consumer. Raises LayoutError."""
    fields = _open(account, raw, program, CONSUMER_SIZE, CONSUMER_TAG)
    return ConsumerState(fields.key(8), fields.key(40), fields.u64(72) or None, fields.u64(80) or None)


def compute_usable(state: RegistryState, margin: Margin, now: int) -> int:
    """Return what can still be drawn of an account, 1e-8 USD: 0 unless the newest leaf is applied, in force
    and not flagged stale or monitored, and while paused.

    `now` is the chain's clock, Unix seconds.
    """
    if now < state.paused[1] or margin.epoch != state.epoch or now >= margin.valid_until:
        return 0
    if margin.flags & (STALE | MONITORED):
        return 0
    return max(margin.budget - margin.used, 0)


def compute_status(state: RegistryState, margin: Margin | None, now: int) -> MarginStatus:
    """Return an account's status, of which only its newest leaf says anything; None for one never applied.

    `now` is the chain's clock, Unix seconds.
    """
    if margin is None or now >= margin.valid_until or margin.epoch != state.epoch:
        return MarginStatus.UNKNOWN
    if margin.flags & (STALE | PARTIAL | MONITORED):
        return MarginStatus.UNKNOWN
    if margin.flags & LIQUIDATABLE:
        return MarginStatus.LIQUIDATABLE
    healthy = margin.assets_maintenance >= margin.requirement_maintenance
    return MarginStatus.HEALTHY if healthy else MarginStatus.UNHEALTHY


def _decode_set(fields: Fields, at: int, name: str) -> AttestorSet:
    count = fields.u8(at + 5)
    if count > MAX_MEMBERS:
        raise LayoutError(fields.account, f"{name}.memberCount", f"{count} found, at most {MAX_MEMBERS} expected")
    members = tuple(fields.data[at + 24 + 20 * i : at + 44 + 20 * i] for i in range(count))
    try:
        return AttestorSet(fields.u32(at), members, fields.u8(at + 4), fields.u64(at + 8), fields.u64(at + 16))
    except FieldError as error:
        raise LayoutError(fields.account, f"{name}.{error.field}", error.reason) from None


def _proven(leaf: Leaf, proof: Sequence[bytes]) -> bytes:
    return pack(leaf) + bytes([len(proof)]) + b"".join(proof)


def _u128(fields: Fields, at: int) -> int:
    return int.from_bytes(fields.data[at : at + 16], "little")


# ---- vault ----


@dataclass(frozen=True, slots=True)
class VaultState:
    """A decoded vault. `registry` is the account whose quorum it obeys; `delay` is seconds."""

    registry: str
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


@dataclass(frozen=True, slots=True)
class Limit:
    """How many base units of a mint a vault may have in custody after a deposit; 0: the mint is not accepted."""

    vault: str
    mint: str
    cap: int


@dataclass(frozen=True, slots=True)
class StandingHold:
    """Nothing of an account can be claimed before `until` (Unix seconds). Both are 0 where none was ever brought."""

    vault: str
    account: bytes
    until: int
    epoch: int


def vault_address(program: Pubkey, registry: Pubkey, delay: int) -> Pubkey:
    """Return the address of a registry's vault with this delay in seconds."""
    return Pubkey.find_program_address([b"vault", bytes(registry), delay.to_bytes(8, "little")], program)[0]


def holding_address(program: Pubkey, vault: Pubkey, account: bytes, mint: Pubkey) -> Pubkey:
    """Return the address that counts what a margin account holds of a mint."""
    return Pubkey.find_program_address([b"holding", bytes(vault), account, bytes(mint)], program)[0]


def deposit_address(program: Pubkey, vault: Pubkey, account: bytes, owner: Pubkey, mint: Pubkey) -> Pubkey:
    """Return the address that counts what one owner put in."""
    return Pubkey.find_program_address([b"deposit", bytes(vault), account, bytes(owner), bytes(mint)], program)[0]


def custody_address(program: Pubkey, vault: Pubkey, mint: Pubkey) -> Pubkey:
    """Return the token account that holds a mint's tokens of every account."""
    return Pubkey.find_program_address([b"custody", bytes(vault), bytes(mint)], program)[0]


def limit_address(program: Pubkey, vault: Pubkey, mint: Pubkey) -> Pubkey:
    """Return the address of what a vault may take of a mint."""
    return Pubkey.find_program_address([b"limit", bytes(vault), bytes(mint)], program)[0]


def hold_address(program: Pubkey, vault: Pubkey, account: bytes) -> Pubkey:
    """Return the address of an account's hold; its first deposit makes it."""
    return Pubkey.find_program_address([b"hold", bytes(vault), account], program)[0]


def nonce_address(program: Pubkey, vault: Pubkey, nonce: bytes) -> Pubkey:
    """Return the address at which there is an account once the permit with this nonce was used."""
    return Pubkey.find_program_address([b"nonce", bytes(vault), nonce], program)[0]


def build_vault_init(program: Pubkey, payer: Pubkey, registry: Pubkey, delay: int) -> Instruction:
    """Return the instruction that makes the vault of an initialised registry; the payer signs and pays its rent."""
    vault = vault_address(program, registry, delay)
    metas = [_signer(payer), _writable(vault), _readonly(registry), _readonly(_SYSTEM)]
    return Instruction(program, bytes([0]) + delay.to_bytes(8, "little"), metas)


def build_limit(
    program: Pubkey, vault: Pubkey, registry: Pubkey, governance: Pubkey, mint: Pubkey, cap: int, payer: Pubkey
) -> Instruction:
    """Return the instruction by which the registry's governance says how much of a mint the vault may take.

    Args:
        cap: base units in custody after a deposit, 0 for no more deposits. What is in can always leave.
        payer: signs and pays the rent of a first limit; may be the governance.
    """
    metas = [
        _signer(payer),
        AccountMeta(governance, is_signer=True, is_writable=False),
        _readonly(vault),
        _readonly(registry),
        _writable(limit_address(program, vault, mint)),
        _readonly(_SYSTEM),
    ]
    return Instruction(program, bytes([5]) + bytes(mint) + cap.to_bytes(8, "little"), metas)


def build_deposit(
    program: Pubkey,
    vault: Pubkey,
    owner: Pubkey,
    account: bytes,
    mint: Pubkey,
    source: Pubkey,
    amount: int,
    token_program: Pubkey = _TOKEN,
) -> Instruction:
    """Return the instruction that moves `amount` from the owner's token account `source` into the vault.

    Args:
        token_program: the owner of the mint, SPL Token or Token-2022.
    """
    metas = [
        _signer(owner),
        _readonly(vault),
        _writable(holding_address(program, vault, account, mint)),
        _writable(deposit_address(program, vault, account, owner, mint)),
        _readonly(mint),
        _writable(source),
        _writable(custody_address(program, vault, mint)),
        _readonly(limit_address(program, vault, mint)),
        _writable(hold_address(program, vault, account)),
        _readonly(token_program),
        _readonly(_SYSTEM),
    ]
    return Instruction(program, bytes([1]) + account + amount.to_bytes(8, "little"), metas)


def build_request(
    program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey, amount: int
) -> Instruction:
    """Return the instruction that asks for `amount` back; it can be claimed after the delay."""
    data = bytes([2]) + amount.to_bytes(8, "little")
    return Instruction(program, data, _owner_metas(program, vault, owner, account, mint))


def build_cancel(program: Pubkey, vault: Pubkey, owner: Pubkey, account: bytes, mint: Pubkey) -> Instruction:
    """Return the instruction that takes the open request back."""
    return Instruction(program, bytes([3]), _owner_metas(program, vault, owner, account, mint))


def build_claim(
    program: Pubkey,
    vault: Pubkey,
    owner: Pubkey,
    account: bytes,
    mint: Pubkey,
    destination: Pubkey,
    token_program: Pubkey = _TOKEN,
) -> Instruction:
    """Return the instruction that pays the requested amount out to the token account `destination`."""
    metas = _payout_metas(program, vault, owner, account, mint, destination, token_program)
    return Instruction(program, bytes([4]), metas)


def build_hold(program: Pubkey, registry: Pubkey, hold: Hold, signatures: Sequence[IndexedSignature]) -> Instruction:
    """Return the instruction that brings a hold to the vault it names. Anybody may; 13 signatures fit one packet."""
    vault = Pubkey(hold.vault)
    data = bytes([6]) + struct.pack("<QQ", hold.until, hold.epoch) + _pack_signatures(signatures)
    metas = [_readonly(vault), _readonly(registry), _writable(hold_address(program, vault, hold.account))]
    return Instruction(program, data, metas)


def build_withdraw(
    program: Pubkey,
    registry: Pubkey,
    owner: Pubkey,
    permit: Permit,
    signatures: Sequence[IndexedSignature],
    token_program: Pubkey = _TOKEN,
) -> Instruction:
    """Return the instruction by which a depositor uses a permit: the vault it names pays `permit.to` at once.

    One packet carries 9 signatures. For up to 13 put all accounts of the instruction but the owner and the nonce (the
    tenth of twelve) into an address lookup table.

    Args:
        owner: the depositor; signs and pays the rent that keeps the nonce burnt.
        token_program: the owner of the mint, SPL Token or Token-2022.

    Raises:
        OverflowError: the amount passes 64 bits, which no SPL token has.
    """
    vault, mint = Pubkey(permit.vault), Pubkey(permit.asset)
    data = bytes([7]) + permit.amount.to_bytes(8, "little") + permit.nonce
    data += struct.pack("<QQ", permit.epoch, permit.expiry) + _pack_signatures(signatures)
    metas = _payout_metas(program, vault, owner, permit.account, mint, Pubkey(permit.to), token_program)
    metas[0] = _signer(owner)
    metas += [_readonly(registry), _writable(nonce_address(program, vault, permit.nonce)), _readonly(_SYSTEM)]
    return Instruction(program, data, metas)


def decode_vault(account: str, raw: RawAccount, program: Pubkey) -> VaultState:
    """Decode a vault. Raises LayoutError."""
    fields = _open(account, raw, program, VAULT_SIZE, VAULT_TAG)
    return VaultState(registry=fields.key(8), delay=fields.u64(40))


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


def decode_limit(account: str, raw: RawAccount, program: Pubkey) -> Limit:
    """Decode a limit. Raises LayoutError."""
    fields = _open(account, raw, program, LIMIT_SIZE, LIMIT_TAG)
    return Limit(fields.key(8), fields.key(40), fields.u64(72))


def decode_hold(account: str, raw: RawAccount, program: Pubkey) -> StandingHold:
    """Decode a hold. Raises LayoutError."""
    fields = _open(account, raw, program, HOLD_SIZE, HOLD_TAG)
    return StandingHold(fields.key(8), fields.bytes32(40), fields.u64(72), fields.u64(80))


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


def _payout_metas(
    program: Pubkey,
    vault: Pubkey,
    owner: Pubkey,
    account: bytes,
    mint: Pubkey,
    destination: Pubkey,
    token_program: Pubkey,
) -> list[AccountMeta]:
    return [
        *_owner_metas(program, vault, owner, account, mint),
        _readonly(mint),
        _writable(custody_address(program, vault, mint)),
        _writable(destination),
        _readonly(hold_address(program, vault, account)),
        _readonly(token_program),
    ]


def _pack_signatures(signatures: Sequence[IndexedSignature]) -> bytes:
    return bytes([len(signatures)]) + b"".join(s.pack() for s in signatures)


def _signer(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=True, is_writable=True)


def _signs(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=True, is_writable=False)


def _writable(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=False, is_writable=True)


def _readonly(key: Pubkey) -> AccountMeta:
    return AccountMeta(key, is_signer=False, is_writable=False)
