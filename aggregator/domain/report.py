"""What was computed: margins with every number explained, and the leaves that get committed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Literal, NamedTuple

from aggregator.domain.snapshot import Finding, Position

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

    By hand: ``counted = (amount - pending at IM) / 10**decimals * price * Π(1 - h)`` for assets, and
    ``amount / 10**decimals * price * (1 + market) * liability weight`` for debts. USD figures are 1e-8 integers
    rounded toward safety.
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
    age: int  # of the chain's block at the cut, seconds
    initial: Haircuts
    maintenance: Haircuts
    liability_weight_initial: float
    liability_weight_maintenance: float
    value: int  # unhaircut, at price_mid, 1e-8 USD
    counted_initial: int  # 1e-8 USD, weighted; what enters W+ (assets) or W- (debts)
    counted_maintenance: int
    reason: str  # why it counts as it does, for people


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
