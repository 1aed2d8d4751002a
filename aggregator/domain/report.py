"""What was computed: margins with every number explained, and the leaves that get committed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Literal, NamedTuple

from aggregator.domain.book import Book, Bools, Ints
from aggregator.domain.price import PriceBand
from aggregator.domain.snapshot import Account, ChainView, Finding, Position
from aggregator.domain.units import Floats

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


class Component(NamedTuple):
    """One position's part in an account's margin, for the account's home destination.

    By hand: ``counted = (amount - pending) / 10**decimals * price * Π(1 - h)`` for assets, and
    ``amount / 10**decimals * price * (1 + market) * liability weight`` for debts, times ``share``. USD figures are
    1e-8 integers rounded toward safety. ``share`` is 1 except where ``reason`` says why not: 0 for a leg that counts
    for nothing, a fraction for a debt that counts up to the collateral of its netting set.
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


class HaircutCell(NamedTuple):
    """One cell of the risk table that riskDigest commits to, quantised."""

    policy: str
    chain: str
    destination: str  # CAIP-2
    level: Literal["initial", "maintenance"]
    horizon: int  # seconds
    asset: str  # h_mkt of assets, decimal text with 12 digits
    debt: str  # expected shortfall of the upside, decimal text with 12 digits


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
    horizon: Floats  # (P, V, B) seconds
    asset_loss: Floats  # (P, V, B, level) h_mkt
    debt_rise: Floats  # (P, V, B, level) expected shortfall of the upside
    policy_haircut: Floats  # (P, level)
    liability_weight: Floats  # (P, level)
    liquidity: Floats  # (P,) coefficient of h_liq, per sqrt(USD)
    stale: Bools  # (V,)
    hold: Ints  # by chain, without an unknown one: seconds that a Hold takes but for a chance of exit_epsilon
    counts: Bools  # (N,) whether the exit gate lets the row count; debts always do


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
    budget: Floats  # (A,) 1e-8 USD, integral, rounded toward safety; for the home destination
    as_of: Ints  # (A,) Unix seconds, of the oldest block with a leg that matters; the cut time where there is none
    flags: Ints  # (B, A)
    status: Ints  # (B, A) codes of STATUSES
    isolated: Bools  # (A,) out of range: counts no assets, other accounts unchanged

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts, ascending by id, in the order of the columns."""
        return self.book.accounts
