"""Measure the valuation of 1,000,000 accounts with 6 positions each."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from aggregator.core import pipeline, valuation
from aggregator.core.tables import World, build_tables
from aggregator.domain.book import ASSET, Book, Kinds, assemble
from aggregator.domain.report import MarginReport, RiskTables
from aggregator.domain.snapshot import Account
from aggregator.domain.units import Floats
from tests.strategies import EVM, SOLANA, account_id, quotes, snapshot, view, world

ACCOUNTS, POSITIONS = 1_000_000, 6
START = 1_760_000_000
MOST = 4.0
"""Times the reference that initial and maintenance margin may take."""


def synthetic_book(world: World, accounts: int = ACCOUNTS, positions: int = POSITIONS, seed: int = 7) -> Book:
    """Return a book of ``positions`` vault positions per account over the world's assets, a fifth of them owed."""
    rng = np.random.default_rng(seed)
    feeds = sorted({row.feed for row in world.assets.values()})
    policies = sorted(world.policy.assets)
    chains = sorted(row.id for row in world.chains)
    kinds = [
        (chains.index(asset.split("/", maxsplit=1)[0]), feeds.index(row.feed), policies.index(row.policy), side)
        for asset, row in world.assets.items()
        for side in (ASSET, 2)
    ]
    columns = np.array(kinds, dtype=np.int64).T
    rows = accounts * positions
    kind = 2 * rng.integers(0, len(kinds) // 2, rows) + (rng.random(rows) < 0.2)
    amount = rng.lognormal(2, 1, rows)
    owner = np.repeat(np.arange(accounts), positions)
    touches = np.zeros((accounts, len(chains) + 1), dtype=np.bool_)
    touches[owner, columns[0][kind]] = True
    return assemble(
        accounts=tuple(Account(account_id(n), f"{EVM}:0x{n:040x}", "risk-bearing", EVM) for n in range(accounts)),
        axes=(tuple(chains), tuple(feeds), tuple(policies)),
        kinds=Kinds(*columns),
        account=owner,
        kind=kind,
        amount=amount,
        free=amount,
        seizable=np.ones(rows, dtype=np.bool_),
        delay=np.full(rows, 86_400),
        netting=np.full(rows, -1),
        monitored=np.zeros(accounts, dtype=np.bool_),
        home=np.zeros(accounts, dtype=np.int64),
        touches=touches,
        destinations=tuple(
            row.chain for row in sorted(world.destinations, key=lambda r: pipeline.destination_id(r.chain))
        ),
    )


def measure_valuation() -> list[dict[str, object]]:
    """Time the valuation of a million accounts and, on the same arrays, a pass that only gathers, multiplies and sums.

    What is compared is initial and maintenance margin at ``low``, with haircuts, liquidity, the exit gate and debts:
    two valuations beside one reference. The interval adds the other two ends; the report adds the second destination's
    clock bound, equity, budgets, status and flags.
    """
    of = world()
    book = synthetic_book(of)
    views = (view(EVM), view(SOLANA))
    prices = pipeline.compute_report(snapshot([], kinds={1: "risk-bearing"}), quotes(), of).prices
    destinations = sorted(of.destinations, key=lambda row: pipeline.destination_id(row.chain))
    where, times = tuple(row.chain for row in destinations), (7, START, START + 300)
    price = np.array([band.mid for band in prices])
    asset_price, debt_price, known, _ = valuation.price_columns(prices)

    def reference() -> Floats:
        return np.bincount(book.account, price[book.kinds.feed[book.kind]] * book.amount, ACCOUNTS)

    def prepared(book: Book) -> tuple[RiskTables, valuation.Adder]:
        tables = build_tables(book, views, of.chains, destinations, of, START + 300)
        return tables, valuation.Adder(book).prepare(tables.counts)

    def levels(book: Book, tables: RiskTables, adder: valuation.Adder) -> Callable[[], Floats]:
        rates = valuation.unit_rates(book.kinds, tables, asset_price, debt_price, 0)
        thin, (muted, _) = valuation.group_coefficients(book, tables.liquidity), valuation.mute(book, known)
        return lambda: adder.value(rates[0], (False, False), thin, muted, (True, True))

    def report_on(book: Book) -> MarginReport:
        tables = build_tables(book, views, of.chains, destinations, of, START + 300)
        return pipeline.value_report(book, prices, tables, views, times=times, destinations=where)

    tables, adder = prepared(book)
    rates = valuation.unit_rates(book.kinds, tables, asset_price, debt_price, 0)
    both, floor = _best(levels(book, tables, adder), reference)
    interval, _ = _best(lambda: valuation.value_book(book, rates, tables, known, adder), reference, times=3)
    made, _ = _best(lambda: prepared(book), reference, times=3)
    whole, _ = _best(lambda: report_on(book), reference, times=3)
    columns = [getattr(book, name) for name in ("account", "kind", "amount", "seizable", "delay", "netting", "group")]
    rows = [
        _row("valuation, IM and MM", ACCOUNTS / both, "accounts/s", ACCOUNTS / floor, 1 / MOST),
        _row("valuation, the interval", ACCOUNTS / interval, "accounts/s", ACCOUNTS / floor, None),
        _row("valuation, tables and matrices", ACCOUNTS / made, "accounts/s", ACCOUNTS / floor, None),
        _row("valuation, whole report", ACCOUNTS / whole, "accounts/s", ACCOUNTS / floor, None),
        _row("valuation, columns", sum(column.nbytes for column in columns) / ACCOUNTS, "bytes/account", None, None),
    ]
    spent = [(ACCOUNTS, whole)]
    for accounts in (1_000, 10_000, 100_000):
        smaller = synthetic_book(of, accounts)
        spent.append((accounts, _best(partial(report_on, smaller), times=5)[0]))
    sizes, seconds = np.log([size for size, _ in spent]), np.log([second for _, second in spent])
    rows.append(_row("valuation, growth 10^3 to 10^6", float(np.polyfit(sizes, seconds, 1)[0]), "exponent", None, 1.05))

    small = synthetic_book(of, 2_000)
    report = report_on(small)
    unfolding, _ = _best(lambda: pipeline.leaves(report))
    return [*rows, _row("valuation, leaves made", 2 * 2_000 / unfolding, "leaves/s", None, None)]


def _best(run: Callable[[], object], beside: Callable[[], object] | None = None, times: int = 7) -> tuple[float, float]:
    """Return the shortest of a few runs, and of a reference between them, seconds."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(times):
        for kept, call in zip(spent, (run, beside), strict=True):
            begin = time.perf_counter()
            if call is not None:
                call()
            kept.append(time.perf_counter() - begin)
    return min(spent[0]), min(spent[1])


def _row(name: str, value: float, unit: str, reference: float | None, target: float | None) -> dict[str, object]:
    ratio = None if reference is None else value / reference
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio, "target": target}


if __name__ == "__main__":
    for row in measure_valuation():
        print(row)
