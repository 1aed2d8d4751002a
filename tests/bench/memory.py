"""What 100,000 positions weigh: as a Reading, as a Snapshot and as a Book, each with nothing else kept."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

from adapters.evm.wallet import Wallet
from aggregator.core.reconcile import reconcile
from aggregator.domain.book import build_book
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Account, Block, Cut, Reading, Subject
from tests.bench.epoch import CHAIN, address_of, build_accounts
from tests.strategies import STABLE, chain_row

POSITIONS = 100_000
TOKEN = f"{CHAIN}/erc20:0x{'ab' * 20}"
NOW = 1_760_000_000


def measure_memory(count: int = POSITIONS) -> list[dict[str, Any]]:
    """Return rows {name, value, unit, reference, ratio, target}: MB (10^6 bytes) that Python's allocator gave out.

    Every account has one address and one position. The accounts themselves, which all three refer to, do not count.
    """
    accounts = build_accounts(count)
    asset = AssetRow(id=TOKEN, symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="stable")
    row = chain_row(CHAIN)
    block = Block(CHAIN, 7, "0x" + "07" * 32, "0x" + "06" * 32, NOW)
    weighed: list[int] = []

    def weigh() -> None:
        gc.collect()
        weighed.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        weigh()
        reading = _read(asset, block, accounts)
        weigh()
        cut = Cut(7, NOW, (block,))
        snapshot = reconcile(cut, {CHAIN: reading}, {}, accounts, [row], NOW + 300, {})
        assert len(snapshot.positions) == count
        del reading
        weigh()
        book = build_book(snapshot, {TOKEN: asset}, {"stable": STABLE}, [CHAIN], ["USDC/USD"], [CHAIN])
        assert len(book.amount) == count
        del snapshot
        weigh()
    finally:
        tracemalloc.stop()
    empty, *held = weighed
    return [
        {"name": f"memory of a {what} of {count} positions", "value": round((size - empty) / 1e6, 1), "unit": "MB",
         "reference": None, "ratio": None, "target": None}
        for what, size in zip(("Reading", "Snapshot", "Book"), held, strict=True)
    ]  # fmt: skip


def _read(asset: AssetRow, block: Block, accounts: list[Account]) -> Reading:
    """Return what the wallet adapter makes of answers as a node gives them."""
    keyed = [Subject(account.id, None) for account in accounts]
    linked = [Subject(account.id, address_of(account)) for account in accounts]
    flow = Wallet(CHAIN, {asset.id: asset}, "0x" + "ca" * 20).flow(linked)
    next(flow)
    # None of the amounts is a number that Python keeps anyway.
    answers = [(10**6 + i).to_bytes(32, "big") for i in range(len(linked))]
    try:
        flow.send(answers)
    except StopIteration as stop:
        positions, findings = stop.value
        return Reading(block, positions, findings, subjects=(*keyed, *linked))
    raise AssertionError("balances are asked for once")


if __name__ == "__main__":
    for line in measure_memory():
        print(line)
