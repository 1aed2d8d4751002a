"""What the API says: view models, and how they are built from what is stored.

Every amount is a string (JavaScript rounds integers beyond 2**53): ``exact`` as an integer, ``text`` for people.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, Field

from aggregator.api.context import ApiService
from aggregator.domain.certificate import EpochRecord, EpochSummary, LinkRecord, Posting, Refusal
from aggregator.domain.errors import UnknownError
from aggregator.domain.links import LinkMessage
from aggregator.domain.report import (
    LAYER_MEANINGS,
    AccountMargin,
    Component,
    ContractPart,
    DestinationBudget,
    Explained,
    Exposure,
    Flag,
    Haircuts,
    LeafValues,
    Settled,
    Settlement,
    contract_text,
)
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow
from aggregator.domain.snapshot import CONTRACT_DECIMALS, Account, ChainView, Finding, Position, Reorg
from aggregator.domain.standing import judge_asset
from aggregator.domain.units import USD_DECIMALS, format_amount, format_usd
from aggregator.ports import Halt
from proofs import leaf as leaves
from proofs.hashing import keccak256
from proofs.merkle import verify_proof
from proofs.statement import BODY_TYPE, DOMAIN_TYPE, STATEMENT_TYPE, Header, pack_header

# As in IMarginRegistry.sol: numbers are whole words there, for the sake of gas.
_LEAF_ABI = "(bytes32,bytes32,uint256,int256,uint256,uint256,uint256,uint256,uint256,uint256,uint256,uint256)"
_VERIFY, _APPLY = f"verify({_LEAF_ABI},bytes32[])", f"applyLeaf({_LEAF_ABI},bytes32[])"
_LEVELS: tuple[Literal["initial"], Literal["maintenance"]] = ("initial", "maintenance")
_SOLANA_VERIFY, _SOLANA_APPLY = 2, 12  # instruction tags of proofs/programs/registry.c


class Usd(BaseModel):
    """An amount of US dollars."""

    exact: str = Field(description="Integer count of 1e-8 USD", examples=["234567000000"])
    text: str = Field(description="For people, rounded to cents", examples=["2,345.67"])


class Amount(BaseModel):
    """An amount of an asset."""

    exact: str = Field(description="Integer count of base units", examples=["10000000000"])
    text: str = Field(description="In whole units, exact", examples=["10000"])


class Band(BaseModel):
    """[low, mid, high] in US dollars: against the account, as seen, in its favour."""

    low: Usd
    mid: Usd
    high: Usd


class HealthBand(BaseModel):
    """Assets over requirements at maintenance; null = no requirement. Below 1 maintenance fails."""

    low: float | None = Field(examples=[1.9091])
    mid: float | None = Field(examples=[1.9412])
    high: float | None = Field(examples=[1.9733])


class FindingView(BaseModel):
    """Something a reader of the numbers must know."""

    code: str = Field(examples=["chain-stale"])
    scope: str = Field(examples=["eip155:31338"])
    detail: str = Field(examples=["last block is 900 s old, at most 600 s allowed"])


class AccountView(BaseModel):
    """An account and the addresses that back it."""

    id: str = Field(examples=["0x" + "1f" * 32])
    label: str = Field(examples=["alice"])
    kind: Literal["risk-bearing", "monitored"]
    controller: str = Field(description="CAIP-10", examples=["eip155:31337:0x" + "aa" * 20])
    home: str = Field(description="CAIP-2 of the destination that holds its budget", examples=["eip155:31337"])
    links: list[str] = Field(description="CAIP-10 addresses that back it")
    ending: list[str] = Field(description="Those of `links` that are revoked: their assets count 0, their debts stand")
    shares: dict[str, int] = Field(
        description="Parts of 10,000 by destination (CAIP-2), as its controller signed; empty = all at `home`"
    )


class AccountPage(BaseModel):
    """Accounts ascending by id; ask again with ``after`` = the last id for more."""

    accounts: list[AccountView]
    next: str | None = Field(description="`after` of the next page; null = the end")


class LinkView(BaseModel):
    """One entry of the links log."""

    position: int = Field(description="Place in the log, which decides conflicts", examples=[1])
    kind: Literal["link", "revoke", "end", "shares"] = Field(
        description="An end completes the revoke that has its nonce; shares say how the account is shared out"
    )
    account: str
    controller: str
    member: str
    nonce: str = Field(examples=["1"])
    expiry: int = Field(description="Unix seconds until which it could be recorded")
    invite_signature: str = Field(description="The controller's; empty where the member revokes, and in an end")
    accept_signature: str = Field(description="The member's; empty where the controller revokes, and in an end")
    recorded_at: int = Field(description="Unix seconds")
    shares: str = Field(description="As signed; empty but in shares, which have no `member`", examples=[""])


class LinkPage(BaseModel):
    """The links log, oldest first; ask again with ``after`` = the last position for more."""

    links: list[LinkView]
    next: int | None = Field(description="`after` of the next page; null = the end, for now")


class MessageView(BaseModel):
    """What one side of a link signs, or a controller about its shares."""

    verb: Literal["invite", "accept", "revoke", "shares"]
    signer: str = Field(description="CAIP-10 of the side that signs", examples=["eip155:31337:0x" + "aa" * 20])
    nonce: str = Field(examples=["1"])
    expiry: str = Field(description="Unix seconds", examples=["1800086400"])
    form: Literal["eip712", "text"] = Field(description="eth_signTypedData_v4, or a text signed with Ed25519")
    message: str = Field(description="Exactly what is signed: EIP-712 JSON, or the text")
    digest: str = Field(description="EIP-712 digest, which an EIP-1271 contract is asked about; empty for a text")


class Freshness(BaseModel):
    """How old a margin is, and what of it may still be used."""

    epoch: int = Field(examples=[30_000_000])
    as_of: int = Field(description="Time of the oldest leg, Unix seconds", examples=[1_800_000_000])
    produced_at: int = Field(description="Unix seconds", examples=[1_800_000_002])
    valid_until: int = Field(description="Unix seconds from which it counts nothing", examples=[1_800_000_120])
    stale: bool = Field(description="Expired, or built on a leg that is too old")
    superseded: bool = Field(description="A newer certified epoch exists")
    usable: Usd = Field(
        description="The most that may be drawn at the destination in total, loans already drawn included; 0 when stale"
    )
    usable_reason: str = Field(
        description="Why `usable` is what it is", examples=["the attested budget, loans already drawn included"]
    )


class Level(BaseModel):
    """One margin level at the worst end of everything uncertain."""

    assets: Usd = Field(description="Assets after haircuts")
    requirement: Usd = Field(description="Weighted debts and requirements")


class HaircutView(BaseModel):
    """The parts of a haircut, each in [0, 1]; assets count for the product of (1 - part)."""

    market: float
    liquidity: float
    exit: float
    policy: float
    kept: float = Field(description="Product of (1 - part)")


class PriceView(BaseModel):
    """The price band a position was valued with, USD per whole unit; null = without bound."""

    feed: str = Field(examples=["USDC/USD"])
    low: str | None = Field(examples=["0.9991"])
    mid: str | None = Field(examples=["1"])
    high: str | None = Field(examples=["1.0009"])
    initial: str | None = Field(description="The bound that initial margin uses", examples=["0.9991"])


class ExplainedView(BaseModel):
    """What a haircut is made of, additively on log(1 - part): shares that add up to 1, or all 0 without a haircut."""

    market: float = Field(description="The price's own moves in the time a liquidation takes")
    depeg: float
    wrapper: float
    bridge: float
    latency: float = Field(description="What being seen late adds")
    liquidity: float
    exit: float
    policy: float
    zeros: list[str] = Field(description="Parts of 1, after which nothing counts; the shares leave them out")


class LevelUsd(BaseModel):
    """One amount at both margin levels."""

    initial: Usd
    maintenance: Usd


class UnitPrice(BaseModel):
    """The price of an underlying that decides what a contract counts, which is the worse one for it."""

    price: str | None = Field(description="USD; null = none is known", examples=["4195.8"])
    bound: Literal["lower", "upper", "EMA", ""] = Field(description="EMA: initial margin's guard is beyond the bound")


class LevelPrice(BaseModel):
    """One price at both margin levels."""

    initial: UnitPrice
    maintenance: UnitPrice


class ContractView(BaseModel):
    """A perp or option: its terms, what it is worth, how it moves, and its parts of the account's margin."""

    side: Literal["long", "short"]
    text: str = Field(description="For people", examples=["long 2.5 ETH-call 3500 exp 2026-12-25 08:00 UTC"])
    kind: Literal["perp", "inverse", "call", "put"]
    underlying: str = Field(examples=["ETH/USD"])
    strike: str | None = Field(description="USD; null for perps", examples=["3500"])
    expiry: int | None = Field(description="Unix seconds; null for perps")
    entry: str | None = Field(description="USD that a perp was opened at; null for options")
    size: str = Field(description="Signed whole units of the underlying, of USD for inverse perps", examples=["2.5"])
    mark: str | None = Field(description="USD: of one option, or of a perp's underlying")
    priced: LevelPrice = Field(description="Of the underlying: at which price it counts")
    worst: LevelUsd = Field(description="What it is worth at that price")
    volatility: float = Field(description="That an option is marked at, per sqrt(year); 0 for perps")
    delta: float = Field(description="Of the whole position, units of the underlying")
    gamma: float = Field(description="Units of the underlying per USD")
    vega: float = Field(description="USD per 1.00 of volatility")
    theta: float = Field(description="USD per year")
    rho: float = Field(description="USD per 1.00 of the rate")
    gain: LevelUsd = Field(description="Its part of what its venue's contracts add to assets; may be negative")
    loss: LevelUsd = Field(description="Its part of what they add to requirements; may be negative")
    requirement: LevelUsd = Field(description="Its share of what the margin model requires; negative for a hedge")


class StepView(BaseModel):
    """One layer of the walk from equity to what is left; negative = it takes away."""

    layer: str = Field(examples=["latency"])
    meaning: str = Field(description="For people", examples=["what being seen late adds"])
    initial: Usd = Field(description="On the way to free collateral")
    maintenance: Usd = Field(description="On the way to maintenance excess, low")


class ExposureView(BaseModel):
    """The greeks of an account's contracts on one underlying."""

    underlying: str = Field(examples=["ETH/USD"])
    spot: float = Field(description="USD")
    range: float = Field(description="Largest move of the scenario grid but for its tails")
    delta: float = Field(description="Units of the underlying")
    gamma: float = Field(description="Units of the underlying per USD")
    vega: float = Field(description="USD per 1.00 of volatility")
    theta: float = Field(description="USD per year")
    rho: float = Field(description="USD per 1.00 of the rate")
    hedge: float = Field(description="Units of collateral that stand in the grid against the contracts")
    requirement: LevelUsd = Field(description="What that collateral adds to the requirement; negative where it saves")


class SettledView(BaseModel):
    """How a settlement's net amount counts at one level.

    A gain: amount · price · (1-market) · (1-policy) · weight · share. A loss: -amount · price · (1+market) · weight.
    """

    amount: float = Field(description="Units of what it settles in, each contract at its worse price")
    price: str | None = Field(description="USD per unit: the lower bound for gains, the upper one for losses")
    market: float
    policy: float
    weight: float = Field(description="Of gains, or of liabilities")
    share: float = Field(description="0 for gains that count nothing, as `reason` says; else 1")


class SettlementView(BaseModel):
    """What an account's contracts at one venue come to, in what they settle in."""

    chain: str
    chain_name: str
    venue: str
    origin: str = Field(description="Contract or program account that keeps them")
    unit_symbol: str
    net: Usd = Field(description="At mid prices")
    low: LevelUsd = Field(description="Each contract at its worse price")
    gain: LevelUsd = Field(description="Counted as an asset")
    loss: LevelUsd = Field(description="Counted as a debt")
    initial: SettledView
    maintenance: SettledView
    reason: str


class ComponentView(BaseModel):
    """One position and why it counts as it does."""

    chain: str
    chain_name: str
    chain_status: str = Field(description="ok, stale or missing", examples=["ok"])
    age: int = Field(description="Of the chain's block at the cut, seconds")
    venue: str = Field(examples=["vault"])
    side: Literal["asset", "debt"]
    control: Literal["seizable", "none"]
    removal_delay: int = Field(description="Seconds until its owner alone could take it away")
    asset: str = Field(description="CAIP-19 of what is held or owed")
    symbol: str
    quantity: str = Field(description="Base units of `asset`")
    unit: str = Field(description="CAIP-19 of what is valued")
    unit_symbol: str
    amount: Amount = Field(description="Of `unit`")
    pending: Amount = Field(description="The part under a withdrawal request, of `unit`")
    address: str = Field(description="The linked address it was read for; empty = keyed by the account")
    price: PriceView
    horizon: float = Field(description="Seconds until it could be turned into money")
    initial: HaircutView
    maintenance: HaircutView
    liability_weight_initial: float
    liability_weight_maintenance: float
    value: Usd = Field(description="Without haircuts, at the mid price")
    counted_initial: Usd
    counted_maintenance: Usd
    reason: str
    explained_initial: ExplainedView
    explained_maintenance: ExplainedView
    contract: ContractView | None = Field(description="Null for holdings and debts; counts instead of the haircuts")


class BlockView(BaseModel):
    """A pinned block."""

    height: int
    hash: str
    time: int


class ChainLeg(BaseModel):
    """One chain as an epoch saw it."""

    chain: str
    name: str
    status: Literal["ok", "stale", "missing"]
    cause: str = Field(description="Why it is not ok")
    age: int | None = Field(description="Of its block at the cut, seconds; null = no block")
    finality: str = Field(description="The rule by which the block is final", examples=["12 blocks deep"])
    block: BlockView | None = Field(description="Its block in the Cut")


class LeafView(BaseModel):
    """One leaf in the field order of the ABI tuple; integers as strings."""

    account: str
    destination: str
    epoch: str
    equity: str
    assets_initial: str
    requirement_initial: str
    assets_maintenance: str
    requirement_maintenance: str
    budget: str
    as_of: str
    valid_until: str
    flags: str


class BudgetView(BaseModel):
    """What may be drawn at one destination and what is charged there: the greatest of used, outstanding and debts."""

    destination: str = Field(description="CAIP-2", examples=["eip155:31337"])
    share: int = Field(description="The owner's, in parts of 10,000", examples=[10_000])
    budget: Usd = Field(description="The most that may be drawn, in total, by this epoch's leaf")
    used: Usd = Field(description="Drawn and not repaid, as the registry there said")
    outstanding: Usd = Field(description="The largest budget of an earlier epoch that may still be drawn, if listed")
    debts: Usd = Field(description="To consumers there that are seen, weighted")
    charge: Usd
    unexplained: LevelUsd = Field(description="Drawn beyond debts that are seen: no venue explains it, and it is owed")


class MarginView(BaseModel):
    """One account's margin at its home destination."""

    account: AccountView
    freshness: Freshness
    status: Literal["healthy", "unhealthy", "unknown"]
    flags: list[str] = Field(examples=[["partial"]])
    health: HealthBand
    equity: Usd = Field(description="Unhaircut, at mid prices")
    free_collateral: Usd
    maintenance_excess: Band
    initial: Level
    maintenance: Level
    budget: Usd = Field(description="As attested for the home destination; see `freshness.usable`")
    components: list[ComponentView]
    chains: list[ChainLeg] = Field(description="The chains its positions are on")
    leaves: list[LeafView] = Field(description="One per destination")
    findings: list[FindingView]
    layers: list[StepView] = Field(description="From equity to what is left, by layer of risk")
    model: str = Field(description="Margin model of its contracts; empty without any", examples=["scenario"])
    binding: str = Field(description="The scenario its requirement comes from", examples=["ETH/USD -18%, vol up"])
    required: LevelUsd = Field(description="What the margin model requires, within the levels' requirements")
    hedged: list[Literal["initial", "maintenance"]] = Field(description="Levels at which collateral stands in the grid")
    greeks: list[ExposureView]
    settlements: list[SettlementView]
    budgets: list[BudgetView] = Field(description="What may be drawn at each destination, and what is charged there")
    free_before_draws: Usd = Field(description="Free collateral before debts to consumers: what budgets are given of")


class SignatureView(BaseModel):
    """One attestor's compact signature (EIP-2098)."""

    index: int
    member: str = Field(description="Address of the attestor at `index`; empty = not of the genesis set")
    r: str
    vs: str


class HeaderView(BaseModel):
    """The header on the wire to every chain."""

    epoch: int
    root: str = Field(description="Of the Merkle tree over the leaves")
    floor: int = Field(description="Statements below this epoch are void: a reorganisation took their ground; 0 = none")
    set_id: int = Field(description="Number of the attestor set that signs; 1 = the deployment's first")
    produced_at: int = Field(description="Unix seconds")
    valid_until: int = Field(description="Unix seconds from which nothing may be drawn on it")
    body: str = Field(description="Digest of the body")
    packed: str = Field(description="The 100-byte big-endian form")


class BodyView(BaseModel):
    """What the header commits to."""

    cut_digest: str
    price_digest: str
    policy_digest: str
    risk_digest: str
    state_digest: str
    accounts_root: str
    leaf_count: int
    previous: str


class RegistryCall(BaseModel):
    """How to ask the destination's registry about a leaf."""

    chain: str
    kind: Literal["evm-registry", "solana-registry"]
    address: str = Field(description="Contract, or program")
    call: str = Field(description="Function, or instruction layout", examples=["verify(Leaf,bytes32[]) returns (bool)"])
    data: str = Field(description="Call data of an eth_call, or data of the instruction; 0x hex")
    apply: str = Field(description="The same to store the leaf there, as whoever draws does first; 0x hex")


class ProofView(BaseModel):
    """Everything a contract needs to believe one leaf."""

    account: str
    destination: str = Field(description="CAIP-2")
    freshness: Freshness
    leaf: LeafView
    leaf_hash: str
    proof: list[str] = Field(description="Sibling hashes from the leaf to the root")
    header: HeaderView
    digest: str
    deployment_id: str
    signatures: list[SignatureView]
    registry: RegistryCall


class RefusalView(BaseModel):
    """An attestor that did not sign, and why."""

    attestor: str
    reason: str
    digest: str = Field(description="What it was asked to sign; empty without a signature")
    signature: str = Field(
        description="Its own over EIP-712 Refusal(uint64 epoch,bytes32 digest,string reason), 64 bytes; "
        "empty: it did not answer, or is in the same process"
    )


class ReorgView(BaseModel):
    """A certified block that is not canonical any more: why statements below the floor are void."""

    chain: str
    name: str
    height: int
    was: str = Field(description="Hash in the certified Cut")
    now: str = Field(description="Hash of the canonical block at this height; empty: the chain is shorter than it was")


class EpochLine(BaseModel):
    """One epoch of the log."""

    epoch: int
    cut_time: int = Field(description="Unix seconds as of which everything was read")
    produced_at: int = Field(description="Unix seconds")
    valid_until: int = Field(description="Unix seconds from which nothing may be drawn on it")
    root: str
    digest: str
    leaf_count: int
    certified: bool
    signers: list[int] = Field(description="Indices of the attestors that signed")
    refusals: list[RefusalView]
    floor: int = Field(
        description="Statements below this epoch are void; its own number: it voids all before; 0 = none"
    )
    reorgs: list[ReorgView] = Field(description="Why its floor is its own number, as long as its text is kept")


class EpochPage(BaseModel):
    """Epochs, newest first; ask again with ``before`` = the last epoch for more."""

    epochs: list[EpochLine]
    next: int | None = Field(description="`before` of the next page; null = the end")


class PostingView(BaseModel):
    """One certificate on its way to one destination."""

    epoch: int
    destination: str
    state: str = Field(examples=["final"])
    transaction: str
    cost: str = Field(description="Gas or compute units")
    detail: str
    updated_at: int


class CarriedView(BaseModel):
    """Accounts not read anew at a chain's block: nothing was seen to touch them since an older one."""

    chain: str
    name: str
    height: int
    time: int
    accounts: int = Field(description="How many")


class EpochView(BaseModel):
    """One epoch: what was signed, by whom, and what was seen."""

    header: HeaderView
    body: BodyView
    digest: str
    cut_time: int
    certified: bool
    expired: bool
    threshold: int
    signatures: list[SignatureView]
    refusals: list[RefusalView]
    chains: list[ChainLeg]
    skew: int = Field(description="Seconds between the oldest and the newest block of the Cut")
    carried: list[CarriedView]
    reorgs: list[ReorgView] = Field(description="Why this epoch's floor is its own number; empty otherwise")
    findings: list[FindingView]
    postings: list[PostingView]


class TypedField(BaseModel):
    """One member of an EIP-712 type."""

    name: str
    type: str


class TypedData(BaseModel):
    """A statement as EIP-712 typed data: any wallet library recomputes ``digest`` from it."""

    types: dict[str, list[TypedField]]
    primaryType: str
    domain: dict[str, str]
    message: dict[str, str | int]


class StatementView(BaseModel):
    """What was signed, with its signatures."""

    statement: TypedData
    body: TypedData
    digest: str
    certified: bool
    set_id: int = Field(description="Number of the attestor set that signs; 1 = the deployment's first")
    threshold: int
    members: list[str]
    signatures: list[SignatureView]


class HaltView(BaseModel):
    """A chain halted because a block below its finality was replaced; only an operator resumes it."""

    cause: str
    since: int = Field(description="Unix seconds")
    parties: list[str] = Field(description="Who halted it: the coordinator, attestors")


class ChainStateView(ChainLeg):
    """One configured chain in the newest epoch."""

    family: Literal["evm", "solana"]
    max_age: int = Field(description="Seconds; an older leg counts 0 at the low end")
    age_now: int | None = Field(description="Age of its block by now, seconds")
    epoch: int | None
    halt: HaltView | None = Field(description="Null where none stands")


class PriceBandView(BaseModel):
    """The fused price of one feed in the newest epoch, USD per whole unit; null = without bound."""

    feed: str = Field(examples=["ETH/USD"])
    low: str | None = Field(examples=["2987.5"])
    mid: str | None = Field(examples=["3000.25"])
    high: str | None = Field(examples=["3011.125"])
    known: bool
    opens_risk: bool = Field(description="False: no new risk may be opened on it")
    present: int = Field(description="Sources used")
    configured: int = Field(description="Sources configured")
    detail: str


class PricesView(BaseModel):
    """Prices of the newest epoch."""

    epoch: int | None
    cut_time: int | None
    stale: bool
    bands: list[PriceBandView]


class AssetView(BaseModel):
    """One configured asset."""

    id: str
    symbol: str
    kind: str
    decimals: int
    feed: str
    policy: str
    underlying: str | None
    sources: list[str] = Field(description="Names of its price sources")
    status: Literal["ok", "unknown", "stale"] = Field(
        description="Unknown: no price, or it cannot be read. Stale: its chain is"
    )
    cause: str = Field(description="Why it is not ok")


class DestinationView(BaseModel):
    """One place certificates are posted to."""

    chain: str
    name: str
    id: str = Field(description="As in leaves: keccak256 of the CAIP-2 string")
    kind: Literal["evm-registry", "solana-registry"]
    address: str


class DeploymentView(BaseModel):
    """The deployment whose attestors sign."""

    id: str
    network_class: int = Field(description="1 mainnet, 2 testnet, 3 devnet")
    members: list[str]
    threshold: int
    not_after: int
    salt: str
    destinations: list[DestinationView]


class ReadyView(BaseModel):
    """Whether the service is ready, and why not."""

    ready: bool
    reasons: list[FindingView]


class AliveView(BaseModel):
    """The process answers."""

    alive: Literal[True] = True


def build_usd(amount: int) -> Usd:
    """Build from 1e-8 USD."""
    return Usd(exact=str(amount), text=format_usd(amount))


def build_account(account: Account) -> AccountView:
    """Build from a stored account."""
    return AccountView(
        id=account.id,
        label=account.label,
        kind=account.kind,
        controller=account.controller,
        home=account.home,
        links=list(account.links),
        ending=list(account.ending),
        shares=dict(account.shares),
    )


def build_message(message: LinkMessage) -> MessageView:
    """Build from what one side signs."""
    return MessageView(
        verb=message.verb,
        signer=message.signer,
        nonce=str(message.nonce),
        expiry=str(message.expiry),
        form="text" if message.typed is None else "eip712",
        message=message.text if message.typed is None else json.dumps(message.typed, indent=2),
        digest=message.digest,
    )


def build_link(link: LinkRecord) -> LinkView:
    """Build from the links log."""
    return LinkView(**{**link._asdict(), "nonce": str(link.nonce)})


def build_finding(finding: Finding) -> FindingView:
    """Build from a finding."""
    return FindingView(code=finding.code, scope=finding.scope, detail=finding.detail)


def destination_id(chain: str) -> str:
    """Return the id by which leaves name a destination: keccak256 of its chain's CAIP-2 string."""
    return _hex(keccak256(chain.encode()))


def home_leaf(account: Account, margin: AccountMargin) -> LeafValues | None:
    """Return the leaf of the account's home destination, None when the epoch has none there."""
    return next((leaf for leaf in margin.leaves if leaf.destination == destination_id(account.home)), None)


def build_freshness(
    leaf: LeafValues | None, margin: AccountMargin, record: EpochRecord, newest: int, now: float
) -> Freshness:
    """Say how fresh a margin is; whoever cannot tell gets nothing to use.

    Args:
        newest: the newest certified epoch.
        now: Unix seconds.
    """
    header = record.header
    valid_until = header.valid_until if leaf is None else min(leaf.valid_until, header.valid_until)
    flags = margin.flags if leaf is None else Flag(leaf.flags)
    expired, superseded = now >= valid_until, newest > header.epoch
    stale = expired or bool(flags & Flag.STALE)
    usable = 0
    if leaf is None:
        reason = "the epoch has no leaf for this destination"
    elif expired:
        reason = f"expired {math.floor(now) - valid_until} s ago"
    elif flags & Flag.STALE:
        reason = "a chain or price it rests on is too old"
    elif superseded:
        reason = f"epoch {newest} replaces it"
    else:
        usable, reason = leaf.budget, "the attested budget, loans already drawn included"
    return Freshness(
        epoch=header.epoch,
        as_of=margin.as_of if leaf is None else leaf.as_of,
        produced_at=header.produced_at,
        valid_until=valid_until,
        stale=stale,
        superseded=superseded,
        usable=build_usd(usable),
        usable_reason=reason,
    )


def build_margin(
    service: ApiService, account: Account, margin: AccountMargin, record: EpochRecord, newest: int
) -> MarginView:
    """Build one account's margin as of ``record``."""
    leaf = home_leaf(account, margin)
    touched = {component.position.chain for component in margin.components}
    legs = {view.chain: view for view in record.chains}
    return MarginView(
        account=build_account(account),
        freshness=build_freshness(leaf, margin, record, newest, service.clock.now()),
        status=margin.status,
        flags=flag_names(margin.flags),
        health=HealthBand(**dict(zip(("low", "mid", "high"), map(_finite, margin.health), strict=True))),
        equity=build_usd(margin.equity),
        free_collateral=build_usd(margin.free_collateral),
        maintenance_excess=Band(**{name: build_usd(v) for name, v in margin.maintenance_excess._asdict().items()}),
        initial=_build_level(leaf and leaf.assets_initial, leaf and leaf.requirement_initial),
        maintenance=_build_level(leaf and leaf.assets_maintenance, leaf and leaf.requirement_maintenance),
        budget=build_usd(leaf.budget if leaf else 0),
        components=[_build_component(service, c, legs.get(c.position.chain)) for c in margin.components],
        chains=[build_leg(service, view) for view in record.chains if view.chain in touched],
        leaves=[build_leaf(values) for values in margin.leaves],
        findings=[build_finding(finding) for finding in margin.findings],
        layers=[
            StepView(
                layer=s.layer,
                meaning=LAYER_MEANINGS.get(s.layer, ""),
                initial=build_usd(s.initial),
                maintenance=build_usd(s.maintenance),
            )
            for s in margin.layers
        ],
        model=margin.model,
        binding=margin.binding,
        required=_build_levels(margin.requirement),
        hedged=[name for name, is_so in zip(_LEVELS, margin.hedged, strict=True) if is_so],
        greeks=[_build_exposure(exposure) for exposure in margin.greeks],
        settlements=[_build_settlement(service, settled) for settled in margin.settlements],
        budgets=[_build_budget(budget) for budget in margin.budgets],
        free_before_draws=build_usd(margin.free_before_draws),
    )


def _build_budget(given: DestinationBudget) -> BudgetView:
    return BudgetView(
        destination=given.destination,
        share=given.share,
        **{name: build_usd(getattr(given, name)) for name in ("budget", "used", "outstanding", "debts", "charge")},
        unexplained=_build_levels((given.unexplained_initial, given.unexplained_maintenance)),
    )


def flag_names(flags: int) -> list[str]:
    """Return the names of the set bits, lower case, ``halted-chain`` for HALTED_CHAIN."""
    return [(flag.name or "").lower().replace("_", "-") for flag in Flag if flags & flag]


def build_leaf(values: LeafValues) -> LeafView:
    """Build from a leaf."""
    return LeafView(**{name: str(value) for name, value in values._asdict().items()})


def build_leg(service: ApiService, view: ChainView) -> ChainLeg:
    """Build from what an epoch says about one chain."""
    row = next((row for row in service.chains if row.id == view.chain), None)
    block = view.block
    return ChainLeg(
        chain=view.chain,
        name=service.chain_name(view.chain),
        status=view.status,
        cause=view.cause,
        age=view.age if block else None,
        finality=_finality(row),
        block=BlockView(height=block.height, hash=block.hash, time=block.time) if block else None,
    )


def build_halt(halts: Iterable[Halt]) -> HaltView | None:
    """Build from the halts that stand on one chain, the first one's cause for all; None where there are none."""
    found = sorted(halts, key=lambda halt: (halt.halted_at, halt.id))
    if not found:
        return None
    return HaltView(cause=found[0].cause, since=found[0].halted_at, parties=sorted(halt.party for halt in found))


def build_chain_state(
    service: ApiService, row: ChainRow, record: EpochRecord | None, halts: Iterable[Halt] = ()
) -> ChainStateView:
    """Build one configured chain's state in the newest epoch, ``record``; missing where it says nothing.

    ``halts`` are those that stand, on any chain.
    """
    seen = next((view for view in record.chains if view.chain == row.id), None) if record else None
    leg = build_leg(service, seen or ChainView(row.id, "missing", "no epoch has read it yet"))
    age = max(0, math.floor(service.clock.now()) - leg.block.time) if leg.block else None
    if leg.status == "ok" and age is not None and age > row.max_age:
        # It was in time for that epoch; none has been made since.
        leg = leg.model_copy(update={"status": "stale", "cause": "no newer epoch has read it"})
    return ChainStateView(
        **leg.model_dump(),
        family=row.family,
        max_age=row.max_age,
        age_now=age,
        epoch=record.header.epoch if record else None,
        halt=build_halt(halt for halt in halts if halt.chain == row.id),
    )


def build_header(header: Header) -> HeaderView:
    """Build from a header."""
    return HeaderView(
        epoch=header.epoch,
        root=_hex(header.root),
        floor=header.floor,
        set_id=header.set_id,
        produced_at=header.produced_at,
        valid_until=header.valid_until,
        body=_hex(header.body),
        packed=_hex(pack_header(header)),
    )


def build_signatures(service: ApiService, record: EpochRecord) -> list[SignatureView]:
    """Build an epoch's signatures with the genesis members' addresses."""
    members = service.deployment.members
    return [
        SignatureView(
            index=a.index, member=members[a.index] if a.index < len(members) else "", r=_hex(a.r), vs=_hex(a.vs)
        )
        for a in record.attestations
    ]


def build_proof(
    service: ApiService,
    account: Account,
    destination: DestinationRow,
    record: EpochRecord,
    margin: AccountMargin,
    newest: int,
) -> ProofView:
    """Build the proof of an account's leaf at a destination; it is checked before it is served.

    Raises:
        UnknownError: the epoch has no leaf for the destination; names ``destination``.
        MerkleError: the injected proof does not lead to the root.
    """
    wanted = (account.id, destination_id(destination.chain))
    index = next((i for i, leaf in enumerate(record.leaves) if (leaf.account, leaf.destination) == wanted), None)
    if index is None:
        raise UnknownError("destination", destination.chain, f"epoch {record.header.epoch} has no leaf of it")
    values = record.leaves[index]
    leaf = leaves.Leaf(_bytes(values.account), _bytes(values.destination), *values[2:])
    hashed = leaves.hash_leaf(leaf)
    path = service.proof(record, index)
    verify_proof(hashed, path, record.header.root)
    return ProofView(
        account=account.id,
        destination=destination.chain,
        freshness=build_freshness(values, margin, record, newest, service.clock.now()),
        leaf=build_leaf(values),
        leaf_hash=_hex(hashed),
        proof=[_hex(node) for node in path],
        header=build_header(record.header),
        digest=_hex(record.digest),
        deployment_id=_hex(service.deployment_id),
        signatures=build_signatures(service, record),
        registry=_build_call(destination, leaf, path),
    )


def build_line(service: ApiService, summary: EpochSummary, reorgs: Iterable[Reorg] = ()) -> EpochLine:
    """Build from an epoch's summary; ``reorgs`` are why it raised the floor, where it did."""
    return EpochLine(
        epoch=summary.epoch,
        cut_time=summary.cut_time,
        produced_at=summary.produced_at,
        valid_until=summary.valid_until,
        root=summary.root,
        digest=summary.digest,
        leaf_count=summary.leaf_count,
        certified=bool(summary.signers),
        signers=list(summary.signers),
        refusals=_build_refusals(summary.refusals),
        floor=summary.floor,
        reorgs=_build_reorgs(service, reorgs),
    )


def build_posting(posting: Posting) -> PostingView:
    """Build from a posting."""
    return PostingView(**{**posting._asdict(), "cost": str(posting.cost)})


def build_epoch(service: ApiService, record: EpochRecord, postings: tuple[Posting, ...]) -> EpochView:
    """Build one epoch."""
    body = record.body
    return EpochView(
        header=build_header(record.header),
        body=BodyView(
            cut_digest=_hex(body.cut_digest),
            price_digest=_hex(body.price_digest),
            policy_digest=_hex(body.policy_digest),
            risk_digest=_hex(body.risk_digest),
            state_digest=_hex(body.state_digest),
            accounts_root=_hex(body.accounts_root),
            leaf_count=body.leaf_count,
            previous=_hex(body.previous),
        ),
        digest=_hex(record.digest),
        cut_time=record.cut_time,
        certified=bool(record.attestations),
        expired=service.clock.now() >= record.header.valid_until,
        threshold=service.deployment.threshold,
        signatures=build_signatures(service, record),
        refusals=_build_refusals(record.refusals),
        chains=[build_leg(service, view) for view in record.chains],
        **_build_cut(service, record),
        findings=[build_finding(finding) for finding in record.findings],
        postings=[build_posting(posting) for posting in postings],
    )


def _build_cut(service: ApiService, record: EpochRecord) -> dict[str, Any]:
    """Build what the committed text of the Cut says beyond the chains; a pruned epoch has none."""
    cut = json.loads(record.preimages.get("cut", "{}"))
    return {
        "skew": cut.get("skew", 0),
        "carried": [
            CarriedView(
                chain=c["block"]["chain"],
                name=service.chain_name(c["block"]["chain"]),
                height=c["block"]["height"],
                time=c["block"]["time"],
                accounts=c["count"],
            )
            for c in cut.get("carried", [])
        ],
        "reorgs": _build_reorgs(service, record.reorgs),
    }


def _build_reorgs(service: ApiService, reorgs: Iterable[Reorg]) -> list[ReorgView]:
    return [ReorgView(name=service.chain_name(reorg.chain), **reorg._asdict()) for reorg in reorgs]


def build_statement(service: ApiService, record: EpochRecord) -> StatementView:
    """Build the EIP-712 form of an epoch's statement and of the body it commits to."""
    header, body = record.header, record.body
    statement: dict[str, str | int] = {
        "epoch": header.epoch,
        "root": _hex(header.root),
        "floor": header.floor,
        "setId": header.set_id,
        "producedAt": header.produced_at,
        "validUntil": header.valid_until,
        "body": _hex(header.body),
    }
    content: dict[str, str | int] = {
        "cutDigest": _hex(body.cut_digest),
        "priceDigest": _hex(body.price_digest),
        "policyDigest": _hex(body.policy_digest),
        "riskDigest": _hex(body.risk_digest),
        "stateDigest": _hex(body.state_digest),
        "accountsRoot": _hex(body.accounts_root),
        "leafCount": body.leaf_count,
        "previous": _hex(body.previous),
    }
    return StatementView(
        statement=_build_typed(service, STATEMENT_TYPE, statement),
        body=_build_typed(service, BODY_TYPE, content),
        digest=_hex(record.digest),
        certified=bool(record.attestations),
        set_id=header.set_id,
        threshold=service.deployment.threshold,
        members=list(service.deployment.members),
        signatures=build_signatures(service, record),
    )


def build_asset(service: ApiService, row: AssetRow, record: EpochRecord | None) -> AssetView:
    """Build one configured asset with the sources of its feed, and whether it counts by the newest epoch."""
    chain = next((chain for chain in service.chains if chain.id == row.id.partition("/")[0]), None)
    status, cause = judge_asset(row, chain, record, service.clock.now())
    return AssetView(
        **row.model_dump(include={"id", "symbol", "kind", "decimals", "feed", "policy", "underlying"}),
        sources=[source.name for source in service.sources if source.feed == row.feed],
        status=status,
        cause=cause,
    )


def build_band(band: Mapping[str, Any]) -> PriceBandView:
    """Build from one entry of ``bands`` in an epoch's risk text, whose bounds are numbers or decimal text."""
    bounds = {name: _decimal(float(band[name])) for name in ("low", "mid", "high")}
    rest = {name: band[name] for name in ("feed", "known", "opens_risk", "present", "configured", "detail")}
    return PriceBandView(**bounds, **rest)


def build_deployment(service: ApiService) -> DeploymentView:
    """Build the deployment."""
    row = service.deployment
    return DeploymentView(
        id=_hex(service.deployment_id),
        network_class=row.network_class,
        members=list(row.members),
        threshold=row.threshold,
        not_after=row.not_after,
        salt=row.salt,
        destinations=[
            DestinationView(
                chain=d.chain,
                name=service.chain_name(d.chain),
                id=destination_id(d.chain),
                kind=d.kind,
                address=d.address,
            )
            for d in service.destinations
        ],
    )


def _build_component(service: ApiService, component: Component, leg: ChainView | None) -> ComponentView:
    position = component.position
    return ComponentView(
        chain=position.chain,
        chain_name=service.chain_name(position.chain),
        chain_status=leg.status if leg else "missing",
        age=component.age,
        venue=position.venue,
        side=position.side,
        control=position.control,
        removal_delay=position.removal_delay,
        asset=position.asset,
        symbol=component.symbol,
        quantity=str(position.quantity),
        unit=position.unit,
        unit_symbol=component.unit_symbol,
        amount=_build_amount(position.amount, component.decimals),
        pending=_build_amount(position.pending, component.decimals),
        address=position.address,
        price=PriceView(
            feed=component.feed,
            low=_decimal(component.price_low),
            mid=_decimal(component.price_mid),
            high=_decimal(component.price_high),
            initial=_decimal(component.price_initial),
        ),
        horizon=component.horizon,
        initial=_build_haircuts(component.initial),
        maintenance=_build_haircuts(component.maintenance),
        liability_weight_initial=component.liability_weight_initial,
        liability_weight_maintenance=component.liability_weight_maintenance,
        value=build_usd(component.value),
        counted_initial=build_usd(component.counted_initial),
        counted_maintenance=build_usd(component.counted_maintenance),
        reason=component.reason,
        explained_initial=_build_explained(component.explained_initial),
        explained_maintenance=_build_explained(component.explained_maintenance),
        contract=_build_contract(position, component.contract) if component.contract else None,
    )


def _build_contract(position: Position, part: ContractPart) -> ContractView:
    terms = position.contract
    option = terms.kind in ("call", "put")
    size = format_amount(position.quantity, CONTRACT_DECIMALS)
    return ContractView(
        side="long" if position.side == "asset" else "short",
        text=contract_text(position),
        kind=terms.kind or "perp",
        underlying=terms.underlying,
        strike=format_amount(terms.strike, USD_DECIMALS) if option else None,
        expiry=terms.expiry if option else None,
        entry=None if option else format_amount(terms.entry, USD_DECIMALS),
        size=size if position.side == "asset" else f"-{size}",
        mark=_decimal(part.mark),
        priced=LevelPrice(
            **{
                level: UnitPrice(price=_decimal(price) if bound else None, bound=bound)
                for level, price, bound in zip(_LEVELS, part.price, part.bound, strict=True)
            }
        ),
        worst=_build_levels(part.worst),
        **{name: getattr(part, name) for name in ("volatility", "delta", "gamma", "vega", "theta", "rho")},
        gain=_build_levels(part.gain),
        loss=_build_levels(part.loss),
        requirement=_build_levels(part.requirement),
    )


def _build_exposure(exposure: Exposure) -> ExposureView:
    document = exposure._asdict()
    required = document.pop("requirement_initial"), document.pop("requirement_maintenance")
    return ExposureView(**document, requirement=_build_levels(required))


def _build_settlement(service: ApiService, settled: Settlement) -> SettlementView:
    return SettlementView(
        **{name: getattr(settled, name) for name in ("chain", "venue", "origin", "unit_symbol", "reason")},
        chain_name=service.chain_name(settled.chain),
        net=build_usd(settled.net),
        low=_build_levels((settled.low_initial, settled.low_maintenance)),
        gain=_build_levels((settled.gain_initial, settled.gain_maintenance)),
        loss=_build_levels((settled.loss_initial, settled.loss_maintenance)),
        initial=_build_settled(settled.initial),
        maintenance=_build_settled(settled.maintenance),
    )


def _build_settled(settled: Settled) -> SettledView:
    return SettledView(**settled._asdict() | {"price": _decimal(settled.price) if settled.price else None})


def _build_levels(amounts: tuple[int, int]) -> LevelUsd:
    return LevelUsd(initial=build_usd(amounts[0]), maintenance=build_usd(amounts[1]))


def _build_explained(explained: Explained) -> ExplainedView:
    return ExplainedView(**{**explained._asdict(), "zeros": list(explained.zeros)})


def _build_amount(amount: int, decimals: int) -> Amount:
    return Amount(exact=str(amount), text=format_amount(amount, decimals))


def _build_haircuts(haircuts: Haircuts) -> HaircutView:
    return HaircutView(**haircuts._asdict(), kept=math.prod(1 - part for part in haircuts))


def _build_level(assets: int | None, requirement: int | None) -> Level:
    return Level(assets=build_usd(assets or 0), requirement=build_usd(requirement or 0))


def _build_refusals(refusals: tuple[Refusal, ...]) -> list[RefusalView]:
    return [RefusalView(**refusal._asdict()) for refusal in refusals]


def _build_call(destination: DestinationRow, leaf: leaves.Leaf, path: tuple[bytes, ...]) -> RegistryCall:
    if destination.kind == "solana-registry":
        given = leaves.pack(leaf) + bytes([len(path)]) + b"".join(path)
        asks, stores = bytes([_SOLANA_VERIFY]), bytes([_SOLANA_APPLY])
        call = "tag 2 | leaf 188 bytes | n u8 | n × 32 bytes; account: registry; returns 1 byte"
    else:
        # Solidity ABI: a static tuple in place, then the offset of the dynamic array, its length and its words.
        encoded = leaves.abi_encode(leaf)
        tail = len(path).to_bytes(32, "big") + b"".join(path)
        given = encoded + (len(encoded) + 32).to_bytes(32, "big") + tail
        asks, stores = (keccak256(text.encode())[:4] for text in (_VERIFY, _APPLY))
        call = f"{_VERIFY} returns (bool)"
    return RegistryCall(
        chain=destination.chain,
        kind=destination.kind,
        address=destination.address,
        call=call,
        data=_hex(asks + given),
        apply=_hex(stores + given),
    )


def _build_typed(service: ApiService, type_: str, message: dict[str, str | int]) -> TypedData:
    types = dict(_parse_type(text) for text in (DOMAIN_TYPE, type_))
    return TypedData(
        types=types,
        primaryType=type_.partition("(")[0],
        domain={"name": "crossmargin", "version": "1", "salt": _hex(service.deployment_id)},
        message=message,
    )


def _parse_type(text: str) -> tuple[str, list[TypedField]]:
    name, _, members = text.rstrip(")").partition("(")
    pairs = (member.split(" ") for member in members.split(","))
    return name, [TypedField(type=type_, name=field) for type_, field in pairs]


def _finality(row: ChainRow | None) -> str:
    return "not configured any more" if row is None else row.finality_text


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _decimal(value: float) -> str | None:
    """Return the shortest decimal that is this float, without an exponent; None for infinities."""
    if not math.isfinite(value):
        return None
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))
