"""What is signed, and what becomes of it: certificates, epochs on record, postings, links on record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from aggregator.domain.budgets import NO_LEVELS, Grant, Levels, PermitRecord
from aggregator.domain.report import AccountMargin, LeafValues
from aggregator.domain.snapshot import Account, ChainView, Finding, Reorg
from proofs.hashing import keccak256
from proofs.leaf import Leaf
from proofs.sets import Rotation
from proofs.statement import Header, StatementBody

LinkKind = Literal["link", "revoke", "end", "shares"]
PostingState = Literal["waiting", "signed", "submitted", "confirmed", "final", "failed", "superseded"]


def to_leaf(values: LeafValues) -> Leaf:
    """Return leaf values as the verifier's leaf. The destination is a 0x id, or the chain (CAIP-2) it is the id of.

    Raises:
        ValueError: a field is malformed or out of range (``proofs.errors.FieldError`` names it).
    """
    place = values.destination
    destination = bytes.fromhex(place[2:]) if place.startswith("0x") else keccak256(place.encode("ascii"))
    return Leaf(bytes.fromhex(values.account.removeprefix("0x")), destination, *values[2:])


@dataclass(frozen=True, slots=True, order=True)
class Attestation:
    """One attestor's compact signature (EIP-2098) over a statement digest."""

    index: int  # position in the member list
    r: bytes  # 32
    vs: bytes  # 32


@dataclass(frozen=True, slots=True)
class Certificate:
    """A statement with a quorum of attestations, in ascending index order."""

    header: Header
    body: StatementBody
    digest: bytes  # EIP-712 digest that was signed
    attestations: tuple[Attestation, ...]


class Refusal(NamedTuple):
    """An attestor that did not sign, as it is kept and shown."""

    attestor: str
    reason: str  # "<rule>: <both values>"; as it was signed, where it was
    digest: str = ""  # 0x, what it was asked to sign; "" without a signature
    signature: str = ""  # 0x, 64 bytes (``proofs.refusals``); "" = it did not answer, or is in the same process


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Everything kept of one epoch. ``preimages`` are the canonical texts behind the digests of the body."""

    header: Header
    body: StatementBody
    digest: bytes
    cut_time: int
    attestations: tuple[Attestation, ...]  # empty until certified
    refusals: tuple[Refusal, ...]
    chains: tuple[ChainView, ...]
    findings: tuple[Finding, ...]
    margins: tuple[AccountMargin, ...]
    leaves: tuple[LeafValues, ...]  # in the order of the commitment
    preimages: dict[str, str] = field(default_factory=dict)  # cut, prices, policy, risk, state -> canonical JSON

    @property
    def certificate(self) -> Certificate | None:
        """Return the certificate, or None while the quorum is missing."""
        if not self.attestations:
            return None
        return Certificate(self.header, self.body, self.digest, self.attestations)

    @property
    def reorgs(self) -> tuple[Reorg, ...]:
        """Return why the floor is this epoch's own number, as its Cut says; () also where that text was pruned."""
        named = json.loads(self.preimages.get("cut", "{}")).get("reorgs", [])
        return tuple(Reorg(r["chain"], int(r["height"]), r["was"], r["now"]) for r in named)


@dataclass(frozen=True, slots=True)
class State:
    """The committed state: accounts, and the links log with the salts that tie accounts to their controllers."""

    accounts: tuple[Account, ...]  # ascending by id
    links: tuple[LinkRecord, ...]  # in the order of the log
    salts: Mapping[str, bytes]  # by account
    rotations: tuple[Rotation, ...] = ()  # sets 2, 3, … in order
    permits: tuple[PermitRecord, ...] = ()  # those that still count, ascending
    grants: tuple[Grant, ...] = ()  # of accounts whose budget is not at one destination alone, ascending
    levels: Levels = NO_LEVELS  # as the newest certified statement left them


class EpochSummary(NamedTuple):
    """One line about an epoch."""

    epoch: int
    cut_time: int
    produced_at: int
    valid_until: int
    root: str  # 0x
    digest: str  # 0x
    leaf_count: int
    signers: tuple[int, ...]  # () = not certified
    refusals: tuple[Refusal, ...]
    floor: int = 0  # statements below this epoch are void; 0 = none

    @property
    def raised_floor(self) -> bool:
        """Whether this epoch voids all before it, as a reorganisation replaced what they rest on."""
        return self.floor == self.epoch


class PostedRoot(NamedTuple):
    """What a destination holds now."""

    epoch: int
    root: bytes
    floor: int
    produced_at: int
    valid_until: int
    posted_at: int


@dataclass(frozen=True, slots=True)
class SignedPosting:
    """A transaction signed for one (epoch, destination): checkpointed before it is sent, never re-made in submit."""

    id: str  # transaction hash (0x) or signature (base58)
    raw: str  # 0x hex
    expires: int = 0  # block height above which it can no longer land (Solana); 0 = never
    nonce: int = -1  # EVM account nonce


class PostingStatus(NamedTuple):
    """What a destination says of a signed posting."""

    state: Literal["pending", "confirmed", "final", "failed", "expired"]
    height: int = 0
    cost: int = 0  # gas or compute units
    detail: str = ""


class Posting(NamedTuple):
    """One certificate on its way to one destination, as stored."""

    epoch: int
    destination: str  # CAIP-2
    state: PostingState
    transaction: str = ""
    cost: int = 0  # gas or compute units
    detail: str = ""
    updated_at: int = 0


class LinkRecord(NamedTuple):
    """One entry of the append-only links log.

    Signatures are hex (EVM), base58 (Solana), or eip1271:0x… and pda:<base58> of addresses without a key. A link has
    both, a revoke the one of the side that revokes, an end none; an end has the terms of the revoke it completes.
    Shares have no member and the controller's signature alone.
    """

    position: int
    account: str
    controller: str
    member: str
    nonce: int
    expiry: int
    invite_signature: str
    accept_signature: str
    recorded_at: int
    kind: LinkKind = "link"
    shares: str = ""  # of kind shares: canonical text, see proofs.links
