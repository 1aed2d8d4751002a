"""The service's view of the world: what adapters, stores and signers must do. Bootstrap names implementations.

Reads of the world are ``async`` and raise :class:`aggregator.domain.errors.SourceError`; nothing here returns a
default in place of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from aggregator.domain.budgets import Grant, PermitRecord
from aggregator.domain.certificate import (
    Attestation,
    Certificate,
    EpochRecord,
    EpochSummary,
    LinkRecord,
    PostedRoot,
    Posting,
    PostingStatus,
    SignedPosting,
    State,
)
from aggregator.domain.latency import Sample
from aggregator.domain.links import LinkMessage
from aggregator.domain.permits import PermitMessage, SignedPermit
from aggregator.domain.price import Quote
from aggregator.domain.report import AccountMargin, LeafValues
from aggregator.domain.rows import ChainRow, DestinationRow
from aggregator.domain.snapshot import Account, Block, Finding, Reading, Subject
from aggregator.domain.stress import Change, Replay, Scenario, StressReport, SystemicReport, WhatIf
from proofs.sets import Rotation

HEADERS_LIMIT = 256
"""Blocks whose parents are followed one by one; a longer gap is compared at its ends."""


class Clock(Protocol):
    """Time, injected."""

    def now(self) -> float:
        """Return Unix seconds."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class ChainReader(Protocol):
    """One attestor's or the coordinator's own eyes on one chain."""

    @property
    def row(self) -> ChainRow: ...

    async def verify_identity(self) -> None:
        """Raise WrongChain unless chain id and genesis are the configured ones."""
        ...

    async def pin(self, cut_time: int) -> Block:
        """Return the last final block with ``time <= cut_time``."""
        ...

    async def block_at(self, height: int) -> Block:
        """Return the canonical block at ``height``, as this reader's own node has it.

        Raises:
            Unavailable: there is none.
        """
        ...

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        """Return canonical blocks from ``first`` to ``last``, each checked to be its successor's parent by hash.

        Where a chain skips heights, or the range is longer than ``HEADERS_LIMIT``, only both ends are returned.

        Raises:
            Garbage: the blocks do not link.
            Unavailable: an end is missing.
        """
        ...

    async def irreversible(self) -> Block:
        """Return the newest block below which the chain promises no reorganisation (``row.irreversible``)."""
        ...

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        """Return every 32-byte word (0x, lower case) in logs of watched contracts from ``first`` to ``last``.

        A hint about who changed: addresses are padded to 32 bytes on the left. Where a log concerns everybody with
        anything at its contract, the contract's own address is there too, not padded. None where it cannot be told, so
        that everybody must be read.
        """
        ...

    @property
    def finality_lag(self) -> float | None:
        """Seconds between head and newest final block at the last pin, None before the first."""
        ...

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        """Read every configured venue for ``subjects`` at ``block``, by its hash.

        ``subjects`` holds (account, linked address on this chain) pairs and one (account, None) per account.
        """
        ...

    async def read_quotes(self, block: Block) -> tuple[Quote, ...]:
        """Read the chain's own price feeds at ``block``; a feed that fails is absent, not zero."""
        ...

    async def check(self) -> tuple[Finding, ...]:
        """Probe with the methods really used: identity, finality, a pinned read of every venue and feed."""
        ...

    async def close(self) -> None: ...


class Watcher(Protocol):
    """Hints from a subscription about who changed. A wrong hint costs a read or freshness, never a number.

    Words are account ids, and the bytes of linked addresses padded to 32 on the left: 0x, lower case. A contract's own
    address, not padded, stands for everybody with anything there.
    """

    async def start(self) -> None: ...

    def watch(self, subjects: Sequence[Subject]) -> None:
        """Listen for these subjects too; until that has begun they count as changed."""
        ...

    def covered(self) -> int:
        """Return the height up to which every change has been seen, 0 while that is not known."""
        ...

    def words(self, after: int, upto: int) -> frozenset[str] | None:
        """Return the 32-byte words (0x, lower case) named by changes in (after, upto]; None: not covered."""
        ...

    def forget(self, upto: int) -> None:
        """Drop what was told up to this height."""
        ...

    async def close(self) -> None: ...


class PriceSource(Protocol):
    """A publisher of signed price updates."""

    @property
    def name(self) -> str: ...

    async def fetch(self, cut_time: int) -> tuple[bytes, ...]:
        """Return the raw first updates with ``publish_time >= cut_time``."""
        ...

    def decode(self, updates: Sequence[bytes], cut_time: int) -> tuple[Quote, ...]:
        """Verify signatures and paths of raw updates and return their quotes.

        Raises:
            Garbage: an update does not verify, or is not the first at or after ``cut_time``; the message says why.
        """
        ...

    async def close(self) -> None: ...


class Destination(Protocol):
    """One place a certificate is posted to."""

    @property
    def row(self) -> DestinationRow: ...

    async def sign(self, certificate: Certificate) -> SignedPosting:
        """Build and sign the posting transaction; nothing is sent."""
        ...

    async def sign_rotation(self, rotation: Rotation) -> SignedPosting:
        """Build and sign the transaction that adds the next set of attestors; the rest is as for postings."""
        ...

    async def submit(self, posting: SignedPosting) -> None:
        """Send signed bytes; sending the same bytes again is harmless."""
        ...

    async def status(self, posting: SignedPosting) -> PostingStatus: ...

    async def read_latest(self) -> PostedRoot | None:
        """Return what the destination holds, None before the first posting."""
        ...

    async def read_newest_set(self) -> int:
        """Return the id of the newest set of attestors that the destination knows, active already or not."""
        ...

    async def read_root(self, epoch: int) -> bytes | None:
        """Return the root the destination stores for ``epoch``, None when it holds none (any more)."""
        ...

    async def verify(self, leaf: LeafValues, proof: Sequence[bytes]) -> bool:
        """Ask the destination itself whether it accepts the leaf now."""
        ...

    async def check(self) -> tuple[Finding, ...]:
        """Probe deployment id, members, threshold, payer's funds."""
        ...

    async def close(self) -> None: ...


class Signer(Protocol):
    """Holds one attestor's key."""

    @property
    def address(self) -> str:
        """The member address, 0x lower-case."""
        ...

    def sign(self, digest: bytes) -> tuple[bytes, bytes]:
        """Return (r, vs), low-s, for a 32-byte digest."""
        ...


class Watermark(Protocol):
    """One attestor's durable record of what it signed."""

    async def claim(self, epoch: int, digest: bytes) -> None:
        """Record the intent to sign, durably, before the signature exists.

        An identical repeat is allowed.

        Raises:
            RefusedError: another digest is on record for ``epoch``, or a higher epoch was signed.
        """
        ...

    async def highest(self) -> int | None: ...


class RefusalNote(NamedTuple):
    """A refusal as an attestor keeps it for its operator."""

    noted_at: int  # Unix seconds
    kind: str  # epoch, rotation, permit, hold
    key: str  # the epoch's number, or what else names the document
    reason: str  # "<rule>: <both values>"


class Record(Watermark, Protocol):
    """The whole durable record of an attestor that is a process of its own."""

    async def claim_once(self, kind: str, key: str, digest: bytes) -> None:
        """Record the intent to sign ``digest`` as the one document of (``kind``, ``key``), durably.

        An identical repeat is allowed.

        Raises:
            RefusedError: another digest is on record for them.
        """
        ...

    async def begin(self) -> int:
        """Count one more start, durably, and return the number: the fencing number that every answer carries."""
        ...

    async def starts(self) -> int:
        """Return the fencing number of the newest start, 0 before the first."""
        ...

    async def raise_to(self, *, starts: int = 0, epoch: int = 0) -> None:
        """Learn from others that this member started, or signed an epoch, which the record lacks; never lowers.

        No other statement of ``epoch`` or below is signed afterwards; the next `begin` returns more than ``starts``.
        """
        ...

    async def note_refusal(self, note: RefusalNote) -> None:
        """Keep a refusal; the oldest are forgotten."""
        ...

    async def refusals(self, limit: int = 100) -> tuple[RefusalNote, ...]:
        """Return refusals, newest first."""
        ...


class Wire(Protocol):
    """An authenticated, bounded way to one peer. The answer is the peer's own, to this very request."""

    async def call(self, method: str, path: str, body: bytes = b"", *, seconds: float, limit: int) -> bytes:
        """Send ``body`` and return the body of the answer.

        Args:
            path: one of the peer's closed list, for example /v1/status.
            seconds: after which no answer counts.
            limit: bytes that the answer may have.

        Raises:
            Unreachable: no answer in time, or the peer is busy.
            Garbage: an answer that is not the peer's, or too large.
            RefusedError: rule ``wire``; the peer could not use the request, in its own words.
        """
        ...

    async def close(self) -> None: ...


class GrantBook(Protocol):
    """One signer's durable record of the budgets that statements it proposed or signed gave, until they expire.

    Whoever signs notes a statement's leaves *before* its signature exists, whoever proposes before it asks: a statement
    may become certified without anybody hearing of it, and what it allows must be charged by the next one all the same.
    """

    @property
    def slack(self) -> int:
        """Seconds after its end for which a budget is remembered."""
        ...

    async def note(self, epoch: int, valid_until: int, leaves: Sequence[LeafValues]) -> None:
        """Keep the nonzero budgets of a statement's leaves, durably on return. A repeat is harmless."""
        ...

    async def learn(self, grants: Sequence[Grant]) -> None:
        """Keep what another signer's record holds, durably on return: it can only lower budgets."""
        ...

    async def outstanding(self, now: int, accounts: Collection[str], before: int) -> tuple[Grant, ...]:
        """Return the staircase of budgets that ``accounts`` may still draw, ascending.

        Args:
            now: the cut's time, Unix seconds.
            accounts: ids; those that ``domain.links.shares_of`` has, as the others were never but at home.
            before: only of epochs below this one, which is being made.
        """
        ...

    async def forget(self, now: int) -> None:
        """Drop what has expired everywhere by ``now``, one's own clock."""
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """Everything the service remembers. One writer (the service), many readers."""

    # accounts and links
    async def add_account(self, account: Account, salt: bytes) -> None: ...

    async def accounts(self) -> tuple[Account, ...]:
        """Return every account with its current links, ascending by id."""
        ...

    async def account(self, reference: str) -> Account:
        """Find by id, unambiguous id prefix (0x + 8 hex or more) or label.

        Raises:
            UnknownError: names the reference.
        """
        ...

    async def salt(self, account: str) -> bytes: ...

    async def append_link(self, link: LinkRecord, now: Callable[[], float] | None = None) -> LinkRecord:
        """Append to the links log; ``position`` is assigned here, and ``recorded_at`` by ``now`` if it is given.

        Raises:
            InputError: ``expiry`` has passed by then.
            ConflictError: the log does not allow it (``aggregator.domain.links.verify_append``).
        """
        ...

    async def links(self, account: str | None = None) -> tuple[LinkRecord, ...]: ...

    async def state(self) -> State:
        """Return accounts with their links, the whole links log, salts by account id, and the levels that the newest
        certified statement left: one moment, few queries.
        """
        ...

    async def preimage(self, name: str) -> str:
        """Return a text that the newest certified epoch rests on, by its name; "" if there is none."""
        ...

    # readings: the last good ones per chain survive a restart
    async def save_readings(self, reader: str, readings: Iterable[Reading]) -> None:
        """Remember what a party read anew of each chain, in one transaction.

        Args:
            readings: one per chain, holding only what was read at its block; of older parts only those at blocks that
                ``carried`` names are kept.
        """
        ...

    async def readings(self, reader: str) -> Mapping[str, Sequence[Reading]]:
        """Return, by chain, the parts that are kept, the newest first."""
        ...

    # epochs
    async def save_epoch(self, record: EpochRecord) -> None: ...

    async def epoch(
        self, number: int | None = None, *, certified: bool = True, margins: bool = False
    ) -> EpochRecord | None:
        """Return one epoch, by default the newest; None if there is none.

        With ``certified`` (the default) epochs without a quorum are passed over, with ``margins`` those without any:
        of what others proposed only statement and leaves are known.
        """
        ...

    async def certificate(self, number: int | None = None) -> Certificate | None:
        """Return one epoch's certificate alone, by default the newest; None if there is none."""
        ...

    async def epochs(self, limit: int = 20, before: int | None = None) -> tuple[EpochSummary, ...]:
        """Return summaries, newest first, certified or not."""
        ...

    async def margin(self, account: str, epoch: int | None = None) -> tuple[EpochRecord, AccountMargin] | None:
        """Return one account's margin at a certified epoch (default: the newest that has margins) with its epoch.

        The record comes without the other accounts' margins, its leaves complete.
        """
        ...

    async def prune(self, *, keep_epochs: int) -> int:
        """Forget margins and leaves of all but the newest certified epochs; return how many epochs lost them.

        Headers and certificates, the log, stay.
        """
        ...

    # postings
    async def save_posting(self, posting: Posting) -> None: ...

    async def postings(self, epoch: int | None = None, limit: int = 100) -> tuple[Posting, ...]: ...

    async def latest_postings(self) -> Mapping[str, Posting]:
        """Return, per destination, the newest posting that is confirmed or final."""
        ...

    async def close(self) -> None: ...


class Halt(NamedTuple):
    """One entry of the durable, append-only log of chains halted by a reorganisation and resumed by hand."""

    id: int
    party: str  # who halted it: coordinator, an attestor
    chain: str  # CAIP-2
    cause: str  # begins with REORGED
    halted_at: int
    resumed_at: int | None = None  # None: it stands
    resumed_by: str = ""
    reason: str = ""  # the operator's, for the resume


class Halts(Protocol):
    """Durable flags on chains that were reorganised below their finality."""

    async def standing(self, party: str) -> Mapping[str, Halt]:
        """Return the halts in force for ``party``, by chain."""
        ...

    async def halt(self, party: str, chain: str, cause: str, now: int) -> Halt:
        """Set the flag durably; one that stands already is returned unchanged."""
        ...

    async def resume(self, chain: str, reason: str, by: str, now: int) -> tuple[Halt, ...]:
        """Clear every party's flag on ``chain``; return what was cleared, as logged.

        Raises:
            InputError: ``reason`` is empty. ConflictError: no halt stands on ``chain``.
        """
        ...

    async def log(self, limit: int = 100) -> tuple[Halt, ...]:
        """Return halts, newest first."""
        ...


class Latencies(Protocol):
    """Measured legs, remembered over a rolling window."""

    async def record(self, samples: Sequence[Sample]) -> None: ...

    async def window(self, since: int) -> tuple[Sample, ...]:
        """Return samples measured at or after ``since``, oldest first."""
        ...

    async def forget(self, before: int, keep: int) -> int:
        """Drop samples measured before, and all but the ``keep`` newest of every (leg, chain); return how many."""
        ...


class Accounts(Protocol):
    """The few writes that people make. Both check everything themselves; callers only pass on what they were given."""

    async def open_account(self, controller: str, salt: str, kind: str, home: str | None, label: str) -> Account:
        """Open an account for ``controller`` (CAIP-10); ``salt`` is 0x and 64 hex digits, ``home`` CAIP-2.

        Raises:
            InputError: names the field at fault; ConflictError if the account exists or the label is taken.
        """
        ...

    async def add_link(
        self,
        account: str,
        controller: str,
        member: str,
        nonce: int,
        expiry: int,
        invite_signature: str,
        accept_signature: str,
    ) -> LinkRecord:
        """Record that ``member`` backs ``account``, signed by both sides.

        Raises:
            InputError: names the field at fault; ConflictError if ``member`` backs another account or ``nonce`` was
                used.
        """
        ...

    async def revoke_link(
        self, account: str, controller: str, member: str, nonce: int, expiry: int, by: str, signature: str
    ) -> LinkRecord:
        """Record that one side of a link, ``by`` = controller or member, revokes it.

        Raises:
            InputError: names the field at fault; ConflictError if there is nothing to revoke or ``nonce`` was used.
        """
        ...

    async def set_shares(
        self, account: str, controller: str, shares: str, nonce: int, expiry: int, signature: str
    ) -> LinkRecord:
        """Record how the controller shares its account's margin out among destinations (``proofs.links.parse_shares``).

        Raises:
            InputError: names the field at fault; ConflictError if ``nonce`` was used.
        """
        ...

    async def shares_message(
        self, account: str, shares: str, nonce: int | None = None, expiry: int | None = None
    ) -> LinkMessage:
        """Return what the controller signs to share its account out; None = the next nonce, in a day.

        Raises:
            InputError: names the field at fault.
        """
        ...

    async def message(
        self, account: str, member: str, verb: str, by: str, nonce: int | None = None, expiry: int | None = None
    ) -> LinkMessage:
        """Return what one side signs to invite, accept or revoke; None = the next nonce, in a day.

        Raises:
            InputError: names the field at fault.
        """
        ...


class PermitBook(Protocol):
    """One party's durable list of the withdrawal permits that it signed, or that it asked others to sign."""

    async def note(self, permit: PermitRecord, attestations: Sequence[Attestation] = ()) -> None:
        """Remember a permit, durably on return; again with ``attestations`` once a quorum has signed it.

        Raises:
            RefusedError: rule ``nonce``; another permit of the account has it.
        """
        ...

    async def since(self, expiry: int, account: str | None = None) -> tuple[SignedPermit, ...]:
        """Return the permits, of one account or all, that expire at ``expiry`` (Unix seconds) or later, ascending."""
        ...

    async def drop(self, permit: PermitRecord) -> None:
        """Forget a permit that nobody signed."""
        ...

    async def forget(self, before: int) -> None:
        """Forget the permits that expired before a time, Unix seconds."""
        ...


class Asker(Protocol):
    """One attestor, asked to sign a document of a kind."""

    @property
    def name(self) -> str: ...

    async def ask(self, kind: Literal["rotation", "permit", "hold"], document: Mapping[str, Any]) -> Attestation:
        """Return its signature.

        Raises:
            RefusedError: it refuses; names the field and both values. SourceError: it did not answer well.
        """
        ...


class Permits(Protocol):
    """Withdrawal permits: asked for by an account's controller, signed by the attestors."""

    async def message(
        self,
        account: str,
        asset: str,
        amount: int,
        to: str,
        vault: str | None = None,
        nonce: str | None = None,
        epoch: int | None = None,
        expiry: int | None = None,
    ) -> PermitMessage:
        """Return what the controller signs.

        Args:
            account: its id. asset: CAIP-19; its chain is the vault's. amount: base units. to: an address there.
            vault: None for the only one that is configured there.
            nonce: 0x and 64 hex digits, None for a random one.
            epoch: None for the newest certified one. expiry: Unix seconds, None for as late as may be.

        Raises:
            InputError: names the field at fault.
        """
        ...

    async def collect_permit(self, permit: PermitRecord) -> SignedPermit:
        """Have the attestors sign a permit that the controller asks for; the same one again gives the same answer.

        Raises:
            InputError: names the field at fault. ConflictError: too many are open, or being asked for.
            RefusedError: there is no quorum; says who refused, and why.
        """
        ...

    async def permits(self, account: str) -> tuple[SignedPermit, ...]:
        """Return an account's permits that may still be used, signed by a quorum or not, ascending."""
        ...


class RiskDesk(Protocol):
    """Answers questions about the newest certified epoch.

    Every question raises UnknownError (names ``account``, ``scenario`` or ``epoch``: none was certified yet),
    InputError (names the field at fault, or what is too large), ConflictError (too many questions are waiting).
    """

    def scenarios(self) -> Sequence[Scenario]:
        """Return every scenario there is, historical ones first."""
        ...

    async def what_if(self, account: str, changes: Sequence[Change]) -> WhatIf:
        """Return how an account (its id) would stand after ``changes``, and whether they may be made."""
        ...

    async def stress(self, names: Sequence[str], account: str | None, limit: int, offset: int) -> StressReport:
        """Value one account, or all, in the scenarios named; in all of them if none is.

        Rows are of the ``limit`` accounts that are worst off in each scenario, after the first ``offset`` of them.
        """
        ...

    async def systemic(self, names: Sequence[str]) -> SystemicReport:
        """Return who falls together in the scenarios named, or in all, and what liquidating them leads to."""
        ...

    async def replay(self, name: str, account: str) -> Replay:
        """Value one account hour by hour along a scenario's path."""
        ...
