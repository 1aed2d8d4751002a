"""How long things take: measured legs, their distributions, and the tables that a statement commits to."""

from __future__ import annotations

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
