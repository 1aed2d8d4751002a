"""Stress scenarios and what they do to accounts; questions of the kind "what if", and their answers.

USD are 1e-8 integers rounded toward safety, as in :mod:`aggregator.domain.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from aggregator.domain.report import Interval, Status
from aggregator.domain.rows import Name, Ratio, Row
from aggregator.domain.snapshot import HOLDING, Contract

Multiplier = Annotated[float, Field(ge=0, le=100)]
Cause = Literal["depeg", "wrapper", "bridge"]


class Scenario(Row):
    """One named stress, as data. What it does not name stays as it is."""

    name: Name
    title: str
    kind: Literal["historical", "hypothetical"]
    source: str  # where the numbers are from
    since: int = 0  # of the event, Unix seconds; 0 = hypothetical
    until: int = 0
    prices: dict[str, Multiplier] = Field(default_factory=dict)  # by feed: price over the price before
    volatility: Annotated[float, Field(gt=0, le=10)] = 1.0  # times σ of haircuts and implied volatility
    volume: Annotated[float, Field(gt=0, le=10)] = 1.0  # times ADV
    recovery: dict[Cause, Ratio] = Field(default_factory=dict)  # what claims exposed to the cause keep of their value
    halted: tuple[str, ...] = ()  # CAIP-2: chains that stop advancing
    paths: dict[str, tuple[int, ...]] = Field(default_factory=dict)  # by feed: hourly, 1/10000 of the first

    @model_validator(mode="after")
    def _paths_agree(self) -> Scenario:
        for feed, path in self.paths.items():
            if not path or min(path) <= 0:
                raise ValueError(f"paths.{feed} must hold positive numbers")
            if feed not in self.prices:
                raise ValueError(f"paths.{feed} needs its multiplier in prices")
        if len({len(path) for path in self.paths.values()}) > 1:
            raise ValueError("paths must be equally long")
        return self


class Standing(NamedTuple):
    """How one account stands at its home destination."""

    account: str
    status: Status
    liquidatable: bool
    equity: int
    free_collateral: int  # FC at ``low``
    requirement: int  # W- of initial margin at ``low``: what is owed and required
    excess: Interval  # ME
    health: tuple[float | None, float | None, float | None]  # low, mid, high; None = nothing owed
    budget: int


class StressRow(NamedTuple):
    """One account in one scenario."""

    scenario: str
    before: Standing
    after: Standing


class StressTotal(NamedTuple):
    """All accounts in one scenario."""

    scenario: str
    accounts: int
    before: int  # liquidatable without the scenario
    fallen: int  # and liquidatable only in it
    excess_before: int  # ME at ``low`` of all accounts together
    excess_after: int
    missing: int  # what the accounts whose ME at ``low`` is below 0 in it lack together; never negative


@dataclass(frozen=True, slots=True)
class StressReport:
    """What scenarios do to accounts: rows of the accounts asked for, scenario by scenario as given.

    ``heat`` has health at ``low`` of every account that has a row, in every scenario.
    """

    epoch: int
    cut_time: int
    scenarios: tuple[Scenario, ...]
    unshocked: Mapping[str, tuple[str, ...]]  # by scenario: feeds whose price it leaves alone
    rows: tuple[StressRow, ...]
    totals: tuple[StressTotal, ...]  # a row per scenario
    accounts: tuple[str, ...]  # that have rows, ascending
    heat: tuple[tuple[float | None, ...], ...]  # (scenario, account); None = nothing owed
    labels: Mapping[str, str] = field(default_factory=dict)  # of the accounts that have one


class Moment(NamedTuple):
    """One account at one hour of a scenario's path."""

    hour: int
    prices: Mapping[str, float]  # by feed: multiplier
    standing: Standing


@dataclass(frozen=True, slots=True)
class Replay:
    """One account along a scenario's path. Prices alone move."""

    epoch: int
    cut_time: int
    scenario: Scenario
    account: str
    moments: tuple[Moment, ...]


class Sale(NamedTuple):
    """What is sold of one feed in one round of a cascade, of all accounts together. USD are floats: an estimate."""

    feed: str
    units: float
    price: float  # before the sale
    permanent: float  # I: the part of the first price that the sale takes away for good
    cost: float  # J: the part of the price before the sale that sellers lose on average
    proceeds: float  # USD


class Closed(NamedTuple):
    """How one account ends that a cascade liquidates. USD floats."""

    account: str
    round: int
    collateral: float  # value of what is sold, before the sale
    proceeds: float
    owed: float  # with recourse, at p̂ of the round
    repaid: float
    bad_debt: float
    surplus: float  # returned to the account


@dataclass(frozen=True, slots=True)
class Cascade:
    """Rounds of forced sales after a scenario."""

    scenario: str
    rounds: tuple[tuple[Sale, ...], ...]
    closed: tuple[Closed, ...]
    prices: Mapping[str, float]  # by feed: multiplier at the end, the scenario's included
    settled: bool  # False: the limit of rounds came first
    liquidated: int = 0
    proceeds: float = 0.0
    impact: float = 0.0  # USD lost to the market by selling
    bad_debt: float = 0.0


class Cluster(NamedTuple):
    """Accounts that fall in exactly the same scenarios, with what they have in common."""

    scenarios: tuple[str, ...]
    accounts: tuple[str, ...]
    exposures: Mapping[str, float]  # by feed: net USD at p̂ before the stress, all of them together


@dataclass(frozen=True, slots=True)
class SystemicReport:
    """Who falls together, and what follows."""

    epoch: int
    cut_time: int
    accounts: int  # looked at
    already: tuple[str, ...]  # liquidatable without any scenario
    clusters: tuple[Cluster, ...]
    cascades: tuple[Cascade, ...]
    labels: Mapping[str, str] = field(default_factory=dict)  # of the accounts that are named and have one


Action = Literal["add", "remove", "transfer", "borrow", "repay", "open", "close"]


class Change(NamedTuple):
    """One thing that an account might do. ``amount`` counts base units of ``asset``; of contracts, 1e-18.

    add: deposit into the chain's vault. remove: take what is held away. transfer: remove, and add as much, in whole
    units, of ``to``. borrow, repay: a debt to a consumer on the asset's chain, or any other debt. open, close: trade
    the contract called ``asset`` (``<chain>/contract:<venue>/<number>``) on ``side``; open needs its terms and unit.
    """

    action: Action
    asset: str  # CAIP-19
    amount: int
    to: str = ""  # transfer: CAIP-19
    side: Literal["", "long", "short"] = ""  # open, close
    contract: Contract = HOLDING  # open
    unit: str = ""  # open: what it settles in, CAIP-19


@dataclass(frozen=True, slots=True)
class WhatIf:
    """An account as it stands, and as it would stand after changes."""

    epoch: int
    cut_time: int
    before: Standing
    after: Standing
    accepted: bool
    reason: str
    notes: tuple[str, ...] = field(default=())
