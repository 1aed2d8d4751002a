"""How long one what-if takes: p50 and p99 over many, on one core. ``python -m tests.bench.whatif [accounts]``.

An epoch of so many accounts with eight positions each on two chains is computed once, as the service does; then
questions about single accounts are answered one by one, each with a change that no question before had. Laying out the
account's rows, valuing it before and after, and judging are all in the time; HTTP is not.
"""

from __future__ import annotations

import json
import sys
from time import perf_counter

import numpy as np

from aggregator.core.pipeline import compute_report
from aggregator.core.whatif import Epoch, what_if
from aggregator.domain.snapshot import Position
from aggregator.domain.stress import Change
from tests.strategies import (
    DERIVATIVES,
    ETH,
    SOL,
    STETH,
    SUSDC,
    USDC,
    account_id,
    contract,
    debt,
    position,
    quotes,
    snapshot,
    world,
)

QUESTIONS = 1_000
SIZES = 1_000, 4_000
PLAIN, LISTED = "spot", "with contracts"


def rows_of(account: int, listed: bool) -> list[Position]:
    """Return eight positions; with ``listed``, three of them perps and options."""
    own = [
        position(account, ETH, 10.0), position(account, STETH, 3.0), position(account, SOL, 50.0),
        debt(account, USDC, 9_000.0), debt(account, SUSDC, 500.0),
    ]  # fmt: skip
    if listed:
        return [
            *own,
            contract(account, "perp", 2.0),
            contract(account, "call", -1.0),
            contract(account, "put", 1.0, strike=1_800.0),
        ]
    return [*own, position(account, USDC, 1_000.0), position(account, SUSDC, 10.0), debt(account, SOL, 1.0)]


def measure(accounts: int, *, listed: bool) -> dict[str, float]:
    """Return milliseconds: p50, p99 and the longest of :data:`QUESTIONS`."""
    configured, said = world(**DERIVATIVES), tuple(quotes())
    seen = snapshot(sorted(row for i in range(1, accounts + 1) for row in rows_of(i, listed)))
    epoch = Epoch(seen, said, configured, None, compute_report(seen, said, configured))
    for number in range(1, 21):
        what_if(epoch, account_id(number % accounts + 1), [Change("add", ETH, number)])
    took = []
    for number in range(QUESTIONS):
        change = Change("borrow" if number % 2 else "add", ETH, 10**15 + number)
        account = account_id(number % accounts + 1)
        start = perf_counter()
        what_if(epoch, account, [change])
        took.append(perf_counter() - start)
    p50, p99 = np.quantile(took, [0.5, 0.99])
    return {"p50_ms": float(p50) * 1e3, "p99_ms": float(p99) * 1e3, "longest_ms": max(took) * 1e3}


def measure_whatif() -> list[dict[str, object]]:
    """Return rows of the bench's table: p50 and p99 among two sizes of book, which should not matter."""
    rows: list[dict[str, object]] = []
    for accounts in SIZES:
        for name in (PLAIN, LISTED):
            found = measure(accounts, listed=name == LISTED)
            for part in ("p50", "p99"):
                title = f"what-if, {name}, one of {accounts:,} accounts, {part}"
                value = found[f"{part}_ms"]
                rows.append(
                    {
                        "name": title,
                        "value": value,
                        "unit": "ms/question",
                        "reference": None,
                        "ratio": None,
                        "target": None,
                    }
                )
    return rows


def main() -> None:
    """Measure and print."""
    accounts = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    found = {name: measure(accounts, listed=name == LISTED) for name in (PLAIN, LISTED)}
    print(json.dumps({"accounts": accounts, "questions": QUESTIONS} | found, indent=2))


if __name__ == "__main__":
    main()
