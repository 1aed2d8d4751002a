"""What was computed: margins with every number explained, and the leaves that get committed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Literal, NamedTuple

import numpy as np

from aggregator.domain.book import Book, Bools, Ints
from aggregator.domain.contracts import Market, Portfolios
from aggregator.domain.price import PriceBand
from aggregator.domain.snapshot import CONTRACT_DECIMALS, Account, ChainView, Finding, Position
from aggregator.domain.units import USD_DECIMALS, Floats, format_amount

Status = Literal["healthy", "unhealthy", "unknown"]


class Flag(IntFlag):
    """Bits of ``LeafValues.flags`` (protocol.md, "Leaf")."""

    STALE = 1 << 0
    PARTIAL = 1 << 1
    HALTED_CHAIN = 1 << 2
    LIQUIDATABLE = 1 << 3
    ISOLATED = 1 << 4
    MONITORED = 1 << 5


class Haircuts(NamedTuple):
    """The components of one position's haircut at one level, each in [0, 1] (risk.md §2)."""

    market: float
    liquidity: float
    exit: float
    policy: float


class Explained(NamedTuple):
    """What an asset's haircut is made of, additively on ``log(1−h)``: shares that add up to 1 (risk.md §2).

    ``market`` to ``latency`` part the haircut for what the price may do: in the time a liquidation takes, by its own
    moves, a depeg, a wrapper's or a bridge's failure; and what being seen late adds. Components of 1 have no logarithm:
    ``zeros`` names them, and the others are explained as if they stood alone. All 0 where nothing is taken off.
    """

    market: float = 0.0
    depeg: float = 0.0
    wrapper: float = 0.0
    bridge: float = 0.0
    latency: float = 0.0
    liquidity: float = 0.0
    exit: float = 0.0
    policy: float = 0.0
    zeros: tuple[str, ...] = ()


class ContractPart(NamedTuple):
    """What a perp or option adds to a component. Greeks are the position's own, at p̂, per whole unit of the underlying.

    ``gain``, ``loss`` and ``requirement`` (1e-8 USD, initial and maintenance) are its parts of W+, of W- and of the
    margin model's requirement in W-. A venue's contracts are counted as one net amount in what they settle in, and a
    requirement is that of the whole account, so a part is negative where the position makes the whole less.
    """

    size: float  # whole units of the underlying, of USD for inverse perps; negative = short
    mark: float  # USD: of one option, or of one unit of a perp's underlying
    volatility: float  # that options are marked at, per sqrt(year); 0 for perps
    value: int  # at the mark, funding included, 1e-8 USD
    delta: float  # units of the underlying
    gamma: float  # units per USD
    vega: float  # USD per 1.00 of volatility
    theta: float  # USD per year
    rho: float  # USD per 1.00 of the rate
    gain: tuple[int, int] = (0, 0)
    loss: tuple[int, int] = (0, 0)
    requirement: tuple[int, int] = (0, 0)
    price: tuple[float, float] = (0.0, 0.0)  # of the underlying, USD: the bound that is worse for it; 0 = none is known
    bound: tuple[str, str] = ("", "")  # which one that is: lower, upper or EMA
    worst: tuple[int, int] = (0, 0)  # value at that price and at p̂ of what it settles in, at most 0 if it may be gone


class Component(NamedTuple):
    """One position's part in an account's margin, for the account's home destination.

    By hand: ``counted = (amount - pending) / 10**decimals * price * Π(1 - h)`` for assets, and
    ``amount / 10**decimals * price * (1 + market) * liability weight`` for debts, times ``share``. USD figures are
    1e-8 integers rounded toward safety. ``share`` is 1 except where ``reason`` says why not: 0 for a leg that counts
    for nothing, a fraction for a debt that counts up to the collateral of its netting set.

    Of a perp or option, ``counted`` is ``gain − loss − requirement`` of its :class:`ContractPart`, of either sign;
    price, haircuts and weights are those of what it settles in.
    """

    position: Position
    symbol: str
    unit_symbol: str
    decimals: int  # of the unit
    feed: str
    price_low: float
    price_mid: float
    price_high: float
    price_initial: float  # the bound that IM uses: low for assets, high for debts, EMA-guarded
    horizon: float  # τ, seconds
    age: int  # of the block it was read at, at the cut, seconds
    initial: Haircuts
    maintenance: Haircuts
    liability_weight_initial: float
    liability_weight_maintenance: float
    value: int  # unhaircut, at price_mid, 1e-8 USD
    counted_initial: int  # 1e-8 USD, weighted; what enters W+ (assets) or W- (debts)
    counted_maintenance: int
    reason: str  # why it counts as it does, for people
    share_initial: float = 1.0
    share_maintenance: float = 1.0
    explained_initial: Explained = Explained()
    explained_maintenance: Explained = Explained()
    contract: ContractPart | None = None


def contract_text(position: Position) -> str:
    """Name a perp or option for people: ``long 2.5 ETH-call 3500 exp 2026-12-25 08:00 UTC``."""
    terms = position.contract
    way = "long" if position.side == "asset" else "short"
    size = format_amount(position.quantity, CONTRACT_DECIMALS)
    base = terms.underlying.partition("/")[0]
    if terms.kind in ("call", "put"):
        expiry = str(np.datetime64(terms.expiry, "s")).removesuffix(":00").replace("T", " ").removesuffix(" 00:00")
        return f"{way} {size} {base}-{terms.kind} {format_amount(terms.strike, USD_DECIMALS)} exp {expiry} UTC"
    sort, of = ("inverse perp", " USD of") if terms.kind == "inverse" else (terms.kind, "")
    return f"{way} {size}{of} {base}-{sort} from {format_amount(terms.entry, USD_DECIMALS)}"


class Interval(NamedTuple):
    """[low, mid, high]: everything uncertain against the account, as seen, and in its favour (1e-8 USD)."""

    low: int
    mid: int
    high: int


class LeafValues(NamedTuple):
    """One leaf, in the field order of protocol.md. USD are 1e-8 integers, times Unix seconds."""

    account: str
    destination: str
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


class Requirements(NamedTuple):
    """What the margin model requires for an account's contracts, 1e-8 USD, within W-."""

    initial: int = 0
    maintenance: int = 0


NO_REQUIREMENT = Requirements()


class Step(NamedTuple):
    """One layer of the walk from equity to what is left, 1e-8 USD; negative = it takes away."""

    layer: str
    initial: int  # the walk to free collateral
    maintenance: int  # the walk to the maintenance excess at ``low``


class Exposure(NamedTuple):
    """An account's greeks on one underlying, contracts and hedging collateral together, at p̂."""

    underlying: str
    spot: float  # p̂, USD
    range: float  # R_u, the largest move of the grid
    delta: float  # units of the underlying, of contracts
    gamma: float
    vega: float
    theta: float
    rho: float
    hedge: float = 0.0  # units of collateral that stand in the grid against the contracts
    requirement_initial: int = 0  # what the hedge adds to the requirement: negative where it saves
    requirement_maintenance: int = 0


LAYER_MEANINGS = {
    "price bounds": "price uncertainty: from the mid price to the worse bound of the sources",
    "EMA guard": "initial margin takes the worse one of the spot bound and the moving average",
    "oracle": "price uncertainty: from the mid price to the price that counts",
    "market": "what prices may do until the position is closed",
    "depeg": "what a depeg may take until then",
    "wrapper": "what a failing wrapper may take until then",
    "bridge": "what a failing bridge may take until then",
    "latency": "what being seen late adds; all of it where a chain's view is too old",
    "liquidity": "what selling at this size costs",
    "policy": "listing haircuts, debt weights, and the part of unrealised gains that never counts",
    "exit": "what its owner could remove before a hold lands",
    "unread": "counts nothing: a debt is unknown or a number is out of range",
    "recourse": "debts count only up to their own collateral",
    "drawn": "drawn at a destination that no venue explains, less what the weights of debts there cover of it",
    "scenario": "the worst scenario of price and volatility",
    "basis": "forwards and spot moving apart",
    "tail": "expected shortfall over the history, beyond the scenarios",
    "short options": "the least charge for options sold",
    "perps": "the charge on perps",
    "confidence": "a wide price of the underlying",
    "concentration": "a position too large to close at once",
    "rounding": "toward safety, to 1e-8 USD",
}
"""What each layer of the walk is, for people. ``oracle`` is what epochs stored before it was parted in two."""


class Settled(NamedTuple):
    """How a settlement's net amount counts at one level, to redo by hand.

    A gain counts ``amount · price · (1−market) · (1−policy) · weight · share``, with the weight of gains; a loss is
    owed at ``−amount · price · (1+market) · weight``, with the liability weight. ``share`` is 0 for a gain that counts
    nothing, as the settlement's ``reason`` says.
    """

    amount: float = 0.0  # units of what it settles in, each contract at its adverse price
    price: float = 0.0  # of a unit, USD: the lower bound for gains, the upper one for losses
    market: float = 0.0
    policy: float = 0.0
    weight: float = 1.0
    share: float = 1.0


class Settlement(NamedTuple):
    """What one venue's contracts of an account come to, in what they settle in. USD figures are 1e-8 integers."""

    chain: str
    venue: str
    origin: str
    unit_symbol: str
    net: int  # at p̂
    low_initial: int  # each contract at its adverse price
    low_maintenance: int
    gain_initial: int  # counted in W+
    gain_maintenance: int
    loss_initial: int  # counted in W-
    loss_maintenance: int
    reason: str  # why it counts as it does, for people
    initial: Settled = Settled()
    maintenance: Settled = Settled()


class DestinationBudget(NamedTuple):
    """What an account may draw at one destination and what is charged there, 1e-8 USD (protocol.md, "Budgets").

    ``charge`` is the greatest of ``used``, ``outstanding`` and ``debts``; with the budgets of all destinations it
    never exceeds :attr:`AccountMargin.free_before_draws` but where that fell. What was drawn beyond the debts that
    adapters see there is owed too: ``unexplained_…`` are its parts of W-, drawn at a destination and explained by no
    venue.
    """

    destination: str  # CAIP-2
    share: int  # of 10,000 parts
    budget: int  # the most that may be drawn there, in total
    used: int  # drawn and not repaid, as the registry says
    outstanding: int  # the largest budget of an earlier statement that may still be drawn there
    debts: int  # to consumers there that adapters see, weighted
    charge: int
    unexplained_initial: int = 0
    unexplained_maintenance: int = 0


@dataclass(frozen=True, slots=True)
class AccountMargin:
    """One account's margin at its home destination, with the leaf of every destination.

    ``health`` is W+/W- at maintenance and None where W- is 0 (no requirement: infinite).
    """

    account: str
    status: Status
    flags: Flag
    equity: int
    free_collateral: int  # FC = A^IM - R^IM at `low`
    maintenance_excess: Interval  # ME
    health: tuple[float | None, float | None, float | None]  # low, mid, high
    as_of: int
    components: tuple[Component, ...]
    leaves: tuple[LeafValues, ...]  # one per destination, ascending by destination id
    findings: tuple[Finding, ...] = ()
    requirement: Requirements = NO_REQUIREMENT
    layers: tuple[Step, ...] = ()  # with equity they add up to free collateral and to maintenance excess at ``low``
    greeks: tuple[Exposure, ...] = ()  # by underlying, ascending
    settlements: tuple[Settlement, ...] = ()
    model: str = ""  # the margin model of its contracts, "" without any
    binding: str = ""  # the scenario that the requirement comes from
    hedged: tuple[bool, bool] = (False, False)  # by level: whether collateral stands in the grid as a hedge
    budgets: tuple[DestinationBudget, ...] = ()  # one per destination, in the order of ``leaves``
    free_before_draws: int = 0  # F: free collateral before debts to consumers at destinations, at most 2**58


class HaircutCell(NamedTuple):
    """One cell of the risk table that riskDigest commits to, quantised."""

    policy: str
    chain: str
    destination: str  # CAIP-2
    level: Literal["initial", "maintenance"]
    horizon: int  # seconds, the mean of the law
    asset: str  # h_mkt of assets, decimal text with 12 digits
    debt: str  # expected shortfall of the upside, decimal text with 12 digits
    horizon_tail: int = 0  # seconds, the 99% quantile of the law
    hedged: str = "0"  # h_mkt of collateral that hedges: idiosyncratic jumps alone, decimal text with 12 digits


LOW, MID, HIGH = 0, 1, 2
"""Ends of the interval, as indices."""
INITIAL, MAINTENANCE = 0, 1
"""Levels, as indices."""
STATUSES: tuple[Status, ...] = ("healthy", "unhealthy", "unknown")
"""Codes of :attr:`MarginReport.status`."""


@dataclass(frozen=True, slots=True, eq=False)
class RiskTables:
    """What was looked up, kept to explain it. P, V, F count policies, views and feeds plus one unknown each; B counts
    the distinct clock bounds of destinations, the only way in which a destination enters a valuation.
    """

    bound: Ints  # (D,) index on the axis B
    horizon: Floats  # (P, V, B) seconds, the mean of the law to a second
    asset_loss: Floats  # (P, V, B, level) h_mkt
    debt_rise: Floats  # (P, V, B, level) expected shortfall of the upside
    policy_haircut: Floats  # (P, level)
    liability_weight: Floats  # (P, level)
    liquidity: Floats  # (P,) coefficient of h_liq, per sqrt(USD)
    stale: Bools  # (V,)
    hold: Ints  # by chain, without an unknown one: seconds that a Hold takes but for a chance of exit_epsilon
    counts: Bools  # (N,) whether the exit gate lets the row count; debts always do
    hedged_loss: Floats  # (P, V, B, level) h_mkt of idiosyncratic jumps alone: what a hedge keeps; at most asset_loss
    known: Floats  # (P, V, B) seconds: the part of the horizon that is no law
    delay: Floats  # (V, M) seconds: nodes of the law of the rest, the time until a Hold lands, ascending
    delay_chance: Floats  # (V, M) of each node; unused ones 0
    least_impact: Floats | None = None  # (P,) what x of h_liq is at least, for what the protocol sells too; None: 0


@dataclass(frozen=True, slots=True, eq=False)
class Derivatives:
    """What contracts add to the margins of C accounts, kept to explain it.

    N rows, Q settlements (see ``book.Contracts``), U underlyings. The alternatives are 0, without hedges, and 1, with.
    """

    accounts: Ints  # (C,) index in the book, ascending
    model: tuple[str, ...]  # (C,)
    market: Market
    portfolios: Portfolios  # all rows, without spot
    priced: Bools  # (N,) whether the underlying has a known price; rows without one have size 0 in ``portfolios``
    values: Floats  # (end, level, N) whole units of what rows settle in, each at its own bound, funding included
    gains: Floats  # (B, end, level, Q) counted in W+, USD
    losses: Floats  # (B, end, level, Q) counted in W-, USD
    gate: Bools  # (Q,) whether the exit gate lets gains count
    worth: Floats  # (C,) USD at p̂, unhaircut
    extra: Floats  # (B, end, level, C) USD that collateral counts more where it hedges
    share: Floats  # (B, level, C, U) at ``low``: which part of the collateral priced by an underlying hedges
    spot: Floats  # (C, U) at ``low``: units of the underlying that stand in the grid where it hedges
    reach: Floats  # (level, C, U) what the model requires of a unit of the underlying by itself, as a part of its price
    hedged: Bools  # (B, end, level, C) whether the alternative with hedges is the better one
    requirement: Floats  # (alternative, end, level, C) USD
    layers: Floats  # (alternative, level, layer, C) at ``low``
    rows: Floats  # (alternative, level, N) at ``low``, Euler
    spot_rows: Floats  # (level, C, U) at ``low``, Euler, with hedges
    binding: tuple[tuple[str, ...], tuple[str, ...]]  # by alternative, (C,)
    barred: Bools  # (C,) no new risk: the price of an underlying or of what contracts settle in is unknown or too wide
    blind: Bools  # (C,) a contract may owe any amount, as its underlying has no known price


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Which assets stand behind accounts, in lines ascending by account: ``part`` of 10,000, rounded up, of ``feed``.

    Parts are coarse so that all who compute them find the same ones.
    """

    account: Ints  # (n,)
    feed: Ints  # (n,)
    part: Ints  # (n,)


@dataclass(frozen=True, slots=True, eq=False)
class MarginReport:
    """Every account's margin, as columns over A accounts; :func:`aggregator.core.explain.explain` unfolds one.

    ``assets`` (W+) and ``debts`` (W-) are USD of shape (B, end, level, A), finite, not yet rounded toward safety.
    """

    epoch: int
    cut_time: int
    valid_until: int
    destinations: tuple[str, ...]  # CAIP-2, ascending by destination id
    destination_ids: tuple[str, ...]  # 0x + 64 hex
    chains: tuple[ChainView | None, ...]  # in the order of ``book.chains``: each chain's newest view, then carried ones
    prices: tuple[PriceBand, ...]  # in the order of ``book.feeds``
    cells: tuple[HaircutCell, ...]
    findings: tuple[Finding, ...]
    book: Book
    tables: RiskTables
    assets: Floats
    debts: Floats
    equity: Floats  # (A,) USD, unhaircut at p̂
    budgets: Ints  # (D, A) 1e-8 USD
    free: Ints  # (A,) 1e-8 USD: F, of which budgets are given; not negative
    owed: Floats | None  # (D, A) USD: weighted debts to consumers at (low, initial), the most at any clock bound
    as_of: Ints  # (A,) Unix seconds, of the oldest block with a leg that matters; the cut time where there is none
    flags: Ints  # (B, A)
    status: Ints  # (B, A) codes of STATUSES
    isolated: Bools  # (A,) out of range: counts no assets, other accounts unchanged
    derivatives: Derivatives | None = None  # None without contracts
    growth: Attribution | None = None  # what stands behind the budgets that may have grown; None without growth caps

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts, ascending by id, in the order of the columns."""
        return self.book.accounts
