"""A small market of contracts for tests of margin models: builders, and hypothesis strategies over portfolios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from aggregator.domain.contracts import CALL, INVERSE, PERP, PUT, Instruments, Market, Portfolios
from aggregator.domain.policy import HistoryRow, OffsetGroupRow, PolicyRow, SviRow, TierRow, UnderlyingRow
from tests.strategies import CUT_TIME, DAY, world

FEEDS = ("ETH/USD", "BTC/USD", "GOLD/USD")
SPOT = {"ETH/USD": 2_000.0, "BTC/USD": 60_000.0, "GOLD/USD": 3_000.0}
SURFACE = tuple(
    SviRow(tenor=days * DAY, a=0.25 * days / 365, b=0.12 * math.sqrt(days / 365), rho=-0.3, m=0.0, sigma=0.2)
    for days in (7, 30, 90, 365)
)
TIERS = (TierRow(up_to=1e4, initial=0.05, maintenance=0.03), TierRow(up_to=1e5, initial=0.1, maintenance=0.05))


def underlying(**changes: object) -> UnderlyingRow:
    """Return the charges of one underlying."""
    values: dict[str, object] = {"range": 0.18, "rate": 0.05, "surface": SURFACE}
    return UnderlyingRow.model_validate(values | changes)


ROWS: Mapping[str, UnderlyingRow] = {
    "ETH/USD": underlying(group="majors"),
    "BTC/USD": underlying(group="majors", range=0.15, carry=0.02),
    "GOLD/USD": underlying(range=0.10, rate=-0.02),
}


def history(moves: int = 40, seed: int = 3, scale: float = 0.04) -> HistoryRow:
    """Return joint moves of two of the three underlyings."""
    drawn = np.random.default_rng(seed).normal(0, scale, (moves, 2)).clip(-0.9)
    return HistoryRow(underlyings=FEEDS[:2], moves=tuple(map(tuple, drawn.tolist())))


def risk_policy(
    rows: Mapping[str, UnderlyingRow] = ROWS, *, past: HistoryRow | None = None, **scenario: object
) -> PolicyRow:
    """Return the policy of these underlyings; ETH and BTC offset by 40%."""
    base = world().policy.model_dump()
    groups = {"majors": OffsetGroupRow(offset=0.4)} if any(row.group for row in rows.values()) else {}
    changes = {"underlyings": rows, "groups": groups, "history": past, "scenario": base["scenario"] | scenario}
    return PolicyRow.model_validate(base | changes)


def market(rows: Mapping[str, UnderlyingRow] = ROWS, **changes: object) -> Market:
    """Return the market at certain prices."""
    feeds = tuple(rows)
    values: dict[str, object] = {
        "now": CUT_TIME,
        "feeds": feeds,
        "spot": np.array([SPOT[feed] for feed in feeds]),
        "confidence": np.ones(len(feeds)),
        "range": np.array([row.range for row in rows.values()]),
        "rows": tuple(rows.values()),
    }
    return Market(**(values | changes))  # type: ignore[arg-type]


def listing(*terms: tuple[int, int, float, int]) -> Instruments:
    """Return instruments of (kind, underlying, strike, seconds to expiry)."""
    kind, of, strike, left = zip(*terms, strict=True) if terms else ((), (), (), ())
    expiry = [CUT_TIME + seconds if k in (CALL, PUT) else 0 for k, seconds in zip(kind, left, strict=True)]
    return Instruments(
        np.array(kind, dtype=np.int64), np.array(of, dtype=np.int64), np.array(strike, float), np.array(expiry, int)
    )


LISTED = listing(
    *(term for u in range(3) for term in ((PERP, u, 0.0, 0), (INVERSE, u, 0.0, 0))),
    *(
        (kind, u, SPOT[feed] * level, left)
        for u, feed in enumerate(FEEDS)
        for left in (-60, 600, 3 * DAY, 60 * DAY)
        for level in (0.9, 1.0, 1.15)
        for kind in (CALL, PUT)
    ),
)
"""For each of three underlyings both perps, and options overdue, within their settlement, near and far."""


def hold(
    rows: Sequence[tuple[int, int, float]],
    *,
    accounts: int | None = None,
    instruments: Instruments = LISTED,
    spot: np.ndarray | None = None,
    at: Market | None = None,
) -> Portfolios:
    """Return portfolios of rows (account, instrument, USD of notional), opened 5% below the present price."""
    price = (at or market()).spot
    rows = sorted(rows, key=lambda row: row[0])
    account, instrument = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
    here = price[instruments.underlying[instrument]]
    kind = instruments.kind[instrument]
    size = np.array([row[2] for row in rows], dtype=np.float64)
    count = accounts if accounts is not None else 1 + int(account.max(initial=0))
    return Portfolios(
        accounts=count,
        account=account,
        instrument=instrument,
        size=np.where(kind == INVERSE, size, size / here),
        entry=np.where((kind == PERP) | (kind == INVERSE), here * 0.95, 0.0),
        funding=np.zeros(len(rows)),
        spot=np.zeros((count, len(price))) if spot is None else spot,
        instruments=instruments,
    )


amounts = st.floats(-1e5, 1e5).filter(lambda x: abs(x) > 1e-2)
holdings = st.lists(st.tuples(st.integers(0, len(LISTED.kind) - 1), amounts), min_size=1, max_size=6)
"""Rows of one account: (instrument, USD of notional)."""
spots = st.lists(st.floats(0, 50), min_size=3, max_size=3)
