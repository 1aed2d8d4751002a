"""How long it takes from a Snapshot to its report: 5,000 accounts with 6 holdings, 4 perps and 8 options each.

What is measured is all that the core does in an epoch but reconciling and making leaves: laying out positions, fusing
prices, tables, contracts, margins, statuses.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from aggregator.core.pipeline import compute_report
from aggregator.core.tables import World
from aggregator.domain.book import build_book
from aggregator.domain.snapshot import ContractKind, Position, Snapshot
from tests.strategies import (
    DERIVATIVES,
    ETH,
    SOL,
    STETH,
    SUSDC,
    USDC,
    contract,
    debt,
    position,
    quotes,
    snapshot,
    world,
)

ACCOUNTS, POSITIONS = 5_000, 18
TIMES = 5
OPTIONS: tuple[ContractKind, ContractKind] = ("call", "put")
EXPIRIES = 7, 14, 30, 60  # days


def rows_of(account: int, rng: random.Random) -> list[Position]:
    """Return 6 holdings, 4 perps at two venues and 8 options, of listed terms and sizes at random."""
    rows = [
        position(account, ETH, 10.0), position(account, SOL, 50.0), position(account, USDC, 1_000.0),
        position(account, STETH, 3.0), position(account, SUSDC, 10.0), debt(account, USDC, 900.0),
    ]  # fmt: skip
    for feed, price in (("ETH/USD", 2_000.0), ("SOL/USD", 150.0)):
        for venue in ("one", "other"):
            rows.append(contract(account, "perp", rng.uniform(-2, 2), underlying=feed, entry=price, venue=venue))
    for step in range(8):
        size, strike = rng.uniform(-2, 2), 1_500.0 + 100 * step
        rows.append(contract(account, rng.choice(OPTIONS), size, strike=strike, days=rng.choice(EXPIRIES)))
    return rows


def synthetic(accounts: int, seed: int = 1) -> Snapshot:
    """Return a snapshot of so many accounts, its positions in order."""
    rng = random.Random(seed)
    return snapshot(sorted(row for number in range(1, accounts + 1) for row in rows_of(number, rng)))


def measure_reports() -> list[dict[str, object]]:
    """Time the whole, and what laying out the positions takes of it."""
    of, said, seen = world(**DERIVATIVES), tuple(quotes()), synthetic(ACCOUNTS)
    whole = best(lambda: compute_report(seen, said, of))
    laid = best(lambda: lay_out(seen, of))
    return [
        row("report with contracts, from the snapshot", ACCOUNTS / whole, "accounts/s"),
        row("report with contracts, laying out a position", 1e6 * laid / len(seen.positions), "µs/position"),
    ]


def lay_out(seen: Snapshot, of: World) -> object:
    """Make the columns of a snapshot."""
    return build_book(
        seen,
        of.assets,
        of.policy.assets,
        sorted(chain.id for chain in of.chains),
        sorted({asset.feed for asset in of.assets.values()}),
        [destination.chain for destination in of.destinations],
        of.policy.underlyings,
        of.policy.dollars,
    )


def best(run: Callable[[], object]) -> float:
    """Return the shortest of a few runs, seconds."""
    spent = []
    for _ in range(TIMES):
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def row(name: str, value: float, unit: str) -> dict[str, object]:
    """Return a row of the bench's table."""
    return {"name": name, "value": value, "unit": unit, "reference": None, "ratio": None, "target": None}


if __name__ == "__main__":
    for line in measure_reports():
        print(line)
