"""How long things take: measured legs, their distributions, and the tables that a statement commits to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import Field

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

    seconds: Annotated[int, Field(description="How long, seconds")]
    probability: Annotated[float, Field(description="That it meets a posting or a reading, in [0, 1]")]


@dataclass(frozen=True, slots=True)
class LegReport:
    """One leg for people: what was measured of it, and the law that statements commit to because of it.

    Quantiles are measurements themselves (nearest rank), None where nothing was measured.
    """

    chain: Annotated[str, Field(description="CAIP-2; `*` for a leg of no chain")]
    name: Annotated[str, Field(description='Of the chain, as configured; "everywhere" for legs of none')]
    leg: Leg
    samples: Annotated[int, Field(description="Measurements shown")]
    p50: Annotated[float | None, Field(description="Median, seconds")]
    p90: Annotated[float | None, Field(description="Seconds that 9 of 10 do not exceed")]
    p99: Annotated[float | None, Field(description="Seconds that 99 of 100 do not exceed")]
    longest: Annotated[float | None, Field(description="Seconds")]
    last: Annotated[float | None, Field(description="The newest measurement, seconds")]
    last_at: Annotated[int | None, Field(description="When that was, Unix seconds")]
    typical: Annotated[int, Field(description="As configured, seconds")]
    outages: Annotated[tuple[OutageAtom, ...], Field(description="As configured")]
    law_samples: Annotated[int, Field(description="Measurements behind the law; 0 = the configuration alone")]
    law_seconds: Annotated[tuple[int, ...], Field(description="Values of the law in use, seconds, ascending")]
    law_chances: Annotated[tuple[float, ...], Field(description="The chance of each value; their sum is 1")]


@dataclass(frozen=True, slots=True)
class HoldReport:
    """How long a Hold takes to land on a chain: its legs together."""

    chain: Annotated[str, Field(description="CAIP-2")]
    name: Annotated[str, Field(description="Of the chain, as configured")]
    p50: Annotated[int, Field(description="Median, seconds")]
    p90: Annotated[int, Field(description="Seconds that 9 of 10 do not exceed")]
    p99: Annotated[int, Field(description="Seconds that 99 of 100 do not exceed")]
    longest: Annotated[int, Field(description="Seconds, with every configured outage at once")]
    bound: Annotated[
        int, Field(description="Seconds taken or exceeded with a chance above `epsilon`; the exit gate opens beyond")
    ]


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """What the command line and the API show."""

    now: Annotated[int, Field(description="Unix seconds")]
    since: Annotated[int, Field(description="Unix seconds from which measurements are shown")]
    epsilon: Annotated[float, Field(description="The policy's exit_epsilon: a chance, in [0, 1]")]
    legs: tuple[LegReport, ...]
    holds: tuple[HoldReport, ...]
