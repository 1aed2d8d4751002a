"""How long it takes from a mined block to a reconciled snapshot that shows what the block changed."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from web3 import Web3

from adapters.evm.wallet import Wallet
from aggregator.core.reconcile import reconcile
from aggregator.domain.rows import AssetRow
from aggregator.service.collect import Observer
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import deploy_multicall3, deploy_token
from tests.bench.epoch import address_of, build_accounts
from tests.bench.quorum import build_quorum, build_row

ACCOUNTS, BLOCKS, WARM = 100, 100, 5
CHAIN = "eip155:31337"
LIFETIME = 300


def measure_freshness(blocks: int = BLOCKS) -> list[dict[str, Any]]:
    """Return rows {name, value, unit, reference, ratio, target}: quantiles over ``blocks`` blocks, milliseconds.

    The chain is final at its head, the accounts are 100 and the providers three. The clock starts before the node is
    told to mine, so that its own work counts too; every block moves one account's balance.
    """
    with Anvil() as chain:
        spent = asyncio.run(_measure(chain, blocks))
    name = f"mined block to reconciled snapshot, {ACCOUNTS} accounts"
    quantiles = statistics.quantiles(spent, n=100, method="inclusive")
    return [
        {"name": f"{name}, p{q}", "value": round(1e3 * quantiles[q - 1], 1), "unit": "ms after the block",
         "reference": None, "ratio": None, "target": None}
        for q in (50, 99)
    ]  # fmt: skip


async def _measure(chain: Anvil, blocks: int) -> list[float]:
    w3 = connect(chain.url)
    multicall = deploy_multicall3(w3)
    token = deploy_token(w3, "USD Coin", "USDC", 6)
    target = str(token.address).lower()
    asset = AssetRow(id=f"{CHAIN}/erc20:{target}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x")
    row = build_row(chain, multicall=multicall, timeout=5)
    observer = Observer("bench", {CHAIN: build_quorum(row, [Wallet(CHAIN, {asset.id: asset}, multicall)])})
    accounts = build_accounts(ACCOUNTS)
    now = int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    held = dict.fromkeys((account.id for account in accounts), 0)
    chain.rpc("evm_setAutomine", False)
    spent: list[float] = []
    for number in range(blocks + WARM):
        mover = accounts[number % ACCOUNTS]
        holder = Web3.to_checksum_address(address_of(mover))
        token.functions.mint(holder, number + 1).transact({"from": w3.eth.accounts[0], "gas": 100_000})
        held[mover.id] += number + 1
        now += 1
        chain.rpc("evm_setNextBlockTimestamp", now)
        begin = time.perf_counter()
        chain.rpc("evm_mine")
        seen = await observer.collect(number, now, accounts)
        made = reconcile(seen.cut, seen.readings, {}, accounts, [row], now + LIFETIME, seen.causes)
        spent.append(time.perf_counter() - begin)
        assert {p.account: p.amount for p in made.positions} == {a: amount for a, amount in held.items() if amount}
        assert not made.findings
        assert [view.status for view in made.chains] == ["ok"]
    await observer.close()
    return spent[WARM:]


if __name__ == "__main__":
    for line in measure_freshness():
        print(line)
