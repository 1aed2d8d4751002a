"""How long things take: measured legs, their distributions, and the tables that a statement commits to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Leg = Literal["block", "finality", "read", "attest", "relay", "lifetime"]
LEGS: tuple[Leg, ...] = get_args(Leg)
"""``block``: age of the pinned block at the cut. ``finality``: how far the newest final block is behind the head.
``read``: from the start of an epoch's reading to the chain's reading. ``attest``: from proposal to quorum. ``relay``:
from certificate to confirmed posting on the destination. ``lifetime``: how long a certificate was the newest there."""

EVERYWHERE = "*"
"""The chain of legs that belong to none: ``attest``."""


class Sample(NamedTuple):
    """One measurement."""

    leg: Leg
    chain: str  # CAIP-2, or EVERYWHERE
    seconds: float
    measured_at: int  # Unix seconds


class Law(NamedTuple):
    """A distribution on finitely many values. The last value may be the outage atom: stated, finite, never measured."""

    seconds: tuple[int, ...]  # ascending, distinct
    chance: tuple[float, ...]  # positive, sum 1


class LegLaw(NamedTuple):
    """The law of one leg on one chain, as a statement commits to it."""

    leg: Leg
    chain: str
    law: Law
    samples: int  # measurements behind it; 0 = configured only


LatencyTables = tuple[LegLaw, ...]
"""Ascending by (chain, leg)."""


@dataclass(frozen=True, slots=True)
class OutageAtom:
    """An outage as configured: how long, how likely."""

    seconds: int
    probability: float


@dataclass(frozen=True, slots=True)
class LegReport:
    """One leg for people: what was measured of it, and the law that statements commit to because of it.

    Quantiles are measurements themselves (nearest rank), None where nothing was measured.
    """

    chain: str
    name: str  # of the chain, as configured; "everywhere" for legs of none
    leg: Leg
    samples: int  # measurements shown
    p50: float | None
    p90: float | None
    p99: float | None
    longest: float | None
    last: float | None
    last_at: int | None  # Unix seconds
    typical: int  # seconds, configured
    outages: tuple[OutageAtom, ...]  # configured
    law_samples: int  # measurements behind the law; 0 = configured only
    law_seconds: tuple[int, ...]
    law_chances: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class HoldReport:
    """How long a Hold takes to land on a chain: its legs together."""

    chain: str
    name: str
    p50: int  # seconds
    p90: int
    p99: int
    longest: int  # with every configured outage at once
    bound: int  # taken or exceeded with a chance of more than the policy's exit_epsilon; the exit gate reads it


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """What the command line and the API show."""

    now: int  # Unix seconds
    since: int  # Unix seconds of the oldest measurement shown
    epsilon: float  # the policy's exit_epsilon
    legs: tuple[LegReport, ...]
    holds: tuple[HoldReport, ...]
