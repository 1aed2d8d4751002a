"""Perps and options as columns: what the margin models are given, and what they return.

A *portfolio* is all the contracts of one account, with the spot that may enter the grid beside them. Rows refer
to I distinct instruments, since many accounts hold the same listed contract: what an instrument is worth in a scenario
is computed once and gathered by all its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.domain.policy import UnderlyingRow
from aggregator.domain.units import Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PERP, INVERSE, CALL, PUT = range(4)
"""Kinds of instruments. An inverse perp counts USD of the underlying and pays in the underlying."""
KINDS = {"perp": PERP, "inverse": INVERSE, "call": CALL, "put": PUT}


@dataclass(frozen=True, slots=True, eq=False)
class Instruments:
    """I distinct instruments, ascending by (underlying, expiry, strike, kind)."""

    kind: Ints  # (I,) PERP, INVERSE, CALL or PUT
    underlying: Ints  # (I,) index on the axis of the market's underlyings
    strike: Floats  # (I,) USD; 0 for perps
    expiry: Ints  # (I,) Unix seconds; 0 for perps


@dataclass(frozen=True, slots=True, eq=False)
class Portfolios:
    """The contracts of A accounts in N rows, ascending by account. Never NaN or infinite."""

    accounts: int  # A
    account: Ints  # (N,) 0 … A−1
    instrument: Ints  # (N,) index into ``instruments``
    size: Floats  # (N,) signed whole units of the underlying (of USD for inverse perps); negative = short
    entry: Floats  # (N,) USD; what perps were opened at, 0 for options
    funding: Floats  # (N,) USD accrued to the account, not settled
    spot: Floats  # (A, U) whole units of each underlying that the account holds as collateral and that hedge
    instruments: Instruments


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """What contracts are valued against, over U underlyings. Prices are USD."""

    now: int  # Unix seconds, the cut time
    feeds: tuple[str, ...]  # (U,)
    spot: Floats  # (U,) p̂; positive and finite
    confidence: Floats  # (U,) score in [0, 1]: 1 = certain
    range: Floats  # (U,) R_u: the policy's, or what the latency of the chains implies if that is more
    rows: tuple[UnderlyingRow, ...]  # (U,)
    stable: float = 1.0  # USD per unit of what contracts settle in


LAYERS = ("scenario", "basis", "tail", "short options", "perps", "confidence", "concentration")
"""What a requirement is made of. ``scenario`` is what the model itself asks for; ``basis`` and ``tail`` are what the
basis contingency and the expected shortfall ask for beyond it. Models without a layer leave it 0."""


class Requirement(NamedTuple):
    """What a margin model requires of A portfolios, USD, never negative; maintenance is at most initial."""

    initial: Floats  # (A,)
    maintenance: Floats  # (A,)
    layers: Floats  # (level, len(LAYERS), A); adds up to ``initial`` and ``maintenance``
    rows: Floats  # (level, N + A·U) Euler allocation: to every row, then to every spot amount; adds up to the totals
    binding: tuple[str, ...] = ()  # (A,) the worst scenario of each portfolio, for people
