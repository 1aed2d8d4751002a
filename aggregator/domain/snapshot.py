"""What was seen: blocks, the Cut, positions, and the reconciled Snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from aggregator.domain.budgets import NOT_DRAWN, Drawn, Grant, Share
from aggregator.domain.price import Quote

Side = Literal["asset", "debt"]
Control = Literal["seizable", "none"]
ChainStatus = Literal["ok", "stale", "missing"]


class Block(NamedTuple):
    """One block (EVM) or slot (Solana), pinned. ``time`` is its own timestamp in Unix seconds."""

    chain: str  # CAIP-2
    height: int
    hash: str  # 0x hex on EVM, base58 on Solana
    parent: str
    time: int


class Carried(NamedTuple):
    """Accounts not read anew at a chain's newest pinned block: what was read of them at an older one still stands.

    Nothing was seen to touch them since. That is a hint and no proof, so their positions keep the age of ``block``.
    """

    block: Block  # older than the chain's block of the Cut
    accounts: tuple[str, ...]  # ascending


class Reorg(NamedTuple):
    """A block that a certified Cut names and that is not canonical any more: statements below a new floor are void."""

    chain: str  # CAIP-2
    height: int
    was: str  # hash in the certified Cut
    now: str  # hash of the canonical block at this height


@dataclass(frozen=True, slots=True)
class Cut:
    """One block per chain, fixed before the first read of an epoch.

    A chain without a block this epoch keeps its last pinned block and says why in ``gaps``; a chain that never had
    one is only in ``gaps``.
    """

    epoch: int
    cut_time: int  # Unix seconds
    blocks: tuple[Block, ...]  # ascending by chain
    gaps: tuple[tuple[str, str], ...] = ()  # (chain, cause)
    carried: tuple[Carried, ...] = ()  # ascending by chain and height: what was not read anew at the chain's block
    reorgs: tuple[Reorg, ...] = ()  # ascending: certified blocks that are no longer canonical

    def block(self, chain: str) -> Block | None:
        """Return the block pinned for ``chain``, or None."""
        return next((b for b in self.blocks if b.chain == chain), None)


class Subject(NamedTuple):
    """Whose positions a protocol adapter reads: an account, and one of its linked addresses on the chain.

    ``address`` is None for venues keyed by the account itself (vaults, consumers).
    """

    account: str  # 0x + 64 hex
    address: str | None  # without the chain prefix
    seal: str = ""  # what shows on the chain itself that a member without a key still agrees: see proofs.links


class Finding(NamedTuple):
    """Something a reader of the numbers must know. ``scope`` names the smallest thing concerned."""

    code: str  # stable, kebab-case
    scope: str  # a chain, asset, account or source
    detail: str


HALTED = "halted"
DARK = "dark"
REORGED = "reorged"
FROZEN = "frozen"
"""How a cause begins when the chain itself does not advance; when it has not been read for too long; when a block below
its finality was replaced, until an operator resumes it; when its sequencer is down or just back."""

INFORMATIONAL = frozenset({"venue-health", "link-ending", "member-unverified"})
"""Codes of findings that tell something without making anything unknown."""
BESIDE_A_POSITION = frozenset({"unknown-asset"})
"""Codes of a reader's findings about a position that it reports too: what that makes unknown is judged by the position,
which may be a gift from a stranger."""
DEBT_UNREADABLE = "debt-unreadable"
NOT_READ_YET = "not-read-yet"
"""Codes of findings, scoped to an account, after which it may owe any amount: a recourse debt that could not be read, a
chain last read before the account or its link existed."""


ContractKind = Literal["", "perp", "inverse", "call", "put"]
CONTRACT_DECIMALS = 18
"""Sizes of contracts count 1e-18 whole units: of the underlying, for inverse perps of USD."""


class Contract(NamedTuple):
    """The terms of a perp or option that a position is in, and what has accrued on it; ``kind`` is "" for holdings.

    Prices are 1e-8 USD per whole unit of the underlying. Options are European and settle in ``Position.unit``.
    """

    kind: ContractKind = ""
    underlying: str = ""  # the feed, e.g. ETH/USD
    strike: int = 0  # options
    expiry: int = 0  # options, Unix seconds
    entry: int = 0  # perps: the average price the position was opened at
    funding: int = 0  # perps: accrued and not settled, base units of ``Position.unit``; positive = the account receives


HOLDING = Contract()


class Position(NamedTuple):
    """One holding or debt, or one perp or option, exact.

    ``quantity`` counts what is held (``asset``); ``amount`` counts what is valued (``unit``), which differs for
    receipts: 90 vault shares (asset) worth 100 USDC (unit). ``pending`` is the part of ``amount`` under a withdrawal
    request. ``netting`` groups the legs of a limited-recourse position ("" = none).

    One in a contract is long (``asset``) or short (``debt``) ``quantity`` of the instrument that ``asset`` names,
    ``<chain>/contract:<venue>/<number>``; it settles in ``unit``, and ``amount`` is 0. What it answers with is all of
    the account; what it gains can be taken like any other asset (``control``, ``removal_delay``).
    """

    account: str
    chain: str
    venue: str  # wallet, vault, aave-v3, ...
    asset: str  # CAIP-19 of what is held or owed
    quantity: int  # base units of asset
    unit: str  # CAIP-19 of what is valued
    amount: int  # base units of unit
    side: Side = "asset"
    control: Control = "none"
    removal_delay: int = 0  # seconds
    pending: int = 0  # base units of unit
    netting: str = ""
    address: str = ""  # the linked address it was read for, "" where keyed by account
    origin: str = ""  # the contract, program account or market that keeps it, "" for wallets
    seen: int = 0  # height of the older block it was read at and is carried from; 0 = the chain's block of the Cut
    contract: Contract = HOLDING
    drawn: Drawn = NOT_DRAWN  # of venue ``registry``: what its registry said besides; ``amount`` is 1e-8 USD


@dataclass(frozen=True, slots=True)
class Reading:
    """One reader's claim about one chain at one block: positions, and the chain's own price feeds."""

    block: Block
    positions: tuple[Position, ...]
    findings: tuple[Finding, ...] = ()
    quotes: tuple[Quote, ...] = ()
    subjects: tuple[Subject, ...] | None = None  # whom it was read for, None = everybody; of others it says nothing
    carried: tuple[Carried, ...] = ()  # ascending by height; their positions have ``seen``
    irreversible: Block | None = None  # the newest block that the reader held for irreversible then
    frozen: str = ""  # why the chain must not be acted on though it answers (sequencer down, or back for too short)


@dataclass(frozen=True, slots=True)
class Account:
    """A margin account as the registry of accounts knows it."""

    id: str  # 0x + 64 hex
    controller: str  # CAIP-10
    kind: Literal["risk-bearing", "monitored"]
    home: str  # CAIP-2 of the destination that holds its budget
    label: str = ""
    links: tuple[str, ...] = ()  # CAIP-10, ascending
    ending: tuple[str, ...] = ()  # those of ``links`` that are revoked and not ended: assets count 0, debts stand
    shares: tuple[Share, ...] = ()  # how its owner shares it out among destinations; () = all at ``home``


@dataclass(frozen=True, slots=True)
class ChainView:
    """What the Snapshot says about one chain."""

    chain: str
    status: ChainStatus
    cause: str = ""  # why it is not ok, for people
    block: Block | None = None
    age: int = 0  # cut_time - block.time, seconds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent world: the accounts, the chains with their age, and every position, in canonical order."""

    epoch: int
    cut_time: int
    valid_until: int
    accounts: tuple[Account, ...]  # ascending by id
    chains: tuple[ChainView, ...]  # ascending by chain
    positions: tuple[Position, ...]  # ascending
    findings: tuple[Finding, ...] = field(default=())
    carried: tuple[ChainView, ...] = ()  # older blocks that positions with ``seen`` rest on, ascending by chain, height
    grants: tuple[Grant, ...] = ()  # budgets of earlier statements that may still be drawn, as ``State.grants``
    set_id: int = 1  # of the attestors that the epoch demands: a registry that does not know them gets no budget
