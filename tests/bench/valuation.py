"""Measure the valuation of 100,000 accounts with 6 positions each."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from aggregator.core import pipeline
from aggregator.core.tables import World, build_tables
from aggregator.domain.book import ASSET, Book, Kinds, assemble
from aggregator.domain.report import MarginReport
from aggregator.domain.snapshot import Account
from aggregator.domain.units import Floats
from tests.strategies import EVM, SOLANA, account_id, quotes, snapshot, view, world

ACCOUNTS, POSITIONS = 100_000, 6


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
    )


def measure_valuation() -> list[dict[str, object]]:
    """Time :func:`aggregator.core.pipeline.value_report` and, on the same arrays, a pass that only multiplies and sums.

    Our pass gives every level and end of the interval, with haircuts, liquidity, the exit gate, budgets, status and
    flags, at two destinations with different clock bounds; the reference gathers one price per row and adds up.
    """
    of = world()
    book = synthetic_book(of)
    views = (view(EVM), view(SOLANA))
    prices = pipeline.compute_report(snapshot([], kinds={1: "risk-bearing"}), quotes(), of).prices
    destinations = sorted(of.destinations, key=lambda row: pipeline.destination_id(row.chain))
    start = 1_760_000_000

    def ours() -> MarginReport:
        tables = build_tables(book, views, of.chains, destinations, of, start + 300)
        where = tuple(row.chain for row in destinations)
        return pipeline.value_report(book, prices, tables, views, times=(7, start, start + 300), destinations=where)

    price = np.array([band.mid for band in prices])
    feed = book.kinds.feed[book.kind]

    def reference() -> Floats:
        return np.bincount(book.account, price[feed] * book.amount, ACCOUNTS)

    fastest, floor = _best(ours), _best(reference)
    small = synthetic_book(of, 2_000)
    report = pipeline.value_report(
        small,
        prices,
        build_tables(small, views, of.chains, destinations, of, start + 300),
        views,
        times=(7, start, start + 300),
        destinations=tuple(row.chain for row in destinations),
    )
    unfolding = _best(lambda: pipeline.leaves(report))
    return [
        _row("valuation", ACCOUNTS / fastest, "accounts/s", ACCOUNTS / floor, None),
        _row("valuation, leaves made", 2 * 2_000 / unfolding, "leaves/s", None, None),
    ]


def _best(run: Callable[[], object], times: int = 5) -> float:
    """Return the shortest of a few runs, seconds."""
    spent = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def _row(name: str, value: float, unit: str, reference: float | None, target: float | None) -> dict[str, object]:
    ratio = None if reference is None else value / reference
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio, "target": target}


if __name__ == "__main__":
    for row in measure_valuation():
        print(row)
