"""How long after a provider's fault clears all three take part again, and after all three were dead, the first pin."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

from pydantic import SecretStr

from adapters.disputes import Dispute
from adapters.evm.reader import EvmReader
from adapters.evm.wallet import Wallet
from adapters.quorum import QuorumReader
from adapters.rpc import EvmEndpoint
from aggregator.domain.errors import SourceError
from aggregator.domain.rows import AssetRow, ChainRow
from aggregator.domain.snapshot import Subject
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import deploy_multicall3, deploy_token
from infra.devnet.providers.proxy import FaultProxy, Mode
from tests.bench.epoch import CHAIN, address_of, build_accounts
from tests.bench.quorum import NEED, PROVIDERS, build_row

FAULTS: tuple[Mode, ...] = ("dead", "slow", "stale", "lying", "wrong-chain", "garbage", "429")
LASTS = 20.0  # seconds a fault stands: long enough for a stale provider to be told from a slow block
TIMEOUT, TICK, ASKS_EVERY = 5.0, 0.1, 2.0  # seconds: of the chain; how finely the end is timed; between two epochs
GIVES_UP = 60.0
FAR = 2**40


def measure_recovery() -> list[dict[str, Any]]:
    """Return rows {name, value, unit, reference, ratio, target}: seconds after a fault that stood for ``LASTS``.

    The faults are measured at once, each with providers, connections and breakers of its own over one node: what is
    timed is nearly all waiting. Until its fault clears every reader is asked as by epochs, then all the time.
    """
    with Anvil(block_time=1) as chain, Anvil(chain_id=31338) as stranger:
        w3 = connect(chain.url)
        multicall = deploy_multicall3(w3)
        token = deploy_token(w3, "USD Coin", "USDC", 6)
        accounts = build_accounts(3)
        token.functions.mint(w3.to_checksum_address(address_of(accounts[0])), 10**6).transact(
            {"from": w3.eth.accounts[0]}
        )
        chain.start_blocks()
        subjects = tuple(Subject(account.id, address_of(account)) for account in accounts)
        target = str(token.address).lower()
        asset = AssetRow(
            id=f"{CHAIN}/erc20:{target}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x"
        )
        row = build_row(chain, multicall=multicall, timeout=TIMEOUT)

        async def everything() -> list[float]:
            cases = [(fault, 1) for fault in FAULTS] + [("dead", PROVIDERS)]
            return await asyncio.gather(
                *(_recover(chain, stranger, row, asset, subjects, mode, many) for mode, many in cases)
            )

        spent = asyncio.run(everything())
    names = [f"recovery from a provider that was {fault}" for fault in FAULTS]
    names.append("recovery from three dead providers, to the first pin")
    return [
        {"name": name, "value": round(seconds, 2), "unit": "s", "reference": None, "ratio": None, "target": None}
        for name, seconds in zip(names, spent, strict=True)
    ]


async def _recover(
    chain: Anvil, stranger: Anvil, row: ChainRow, asset: AssetRow, subjects: tuple[Subject, ...], mode: Mode, many: int
) -> float:
    """Turn ``many`` of three providers bad and good again; return the seconds until all count, or the first pin."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(chain.url, stranger.url)) for _ in range(PROVIDERS)]
        row = row.model_copy(update={"rpc": tuple(SecretStr(proxy.url) for proxy in proxies)})
        disputes: list[Dispute] = []
        readers = [
            EvmReader(row, EvmEndpoint(row, url), [Wallet(CHAIN, {asset.id: asset}, row.multicall)], [])
            for url in row.rpc
        ]
        names = [f"provider {i}" for i in range(PROVIDERS)]
        reader = QuorumReader(row, readers, names, NEED, disputes.append)
        stack.push_async_callback(reader.close)

        async def observe() -> bool:
            """Pin and read; say whether every provider took part and none said something else."""
            disputes.clear()
            reading = await reader.read(await reader.pin(FAR), subjects)
            assert [p.amount for p in reading.positions] == [10**6], "a fault got through"
            return not reader.failed and not disputes

        assert await observe()
        for proxy in proxies[:many]:
            await proxy.turn(mode)
        noticed, until = False, time.perf_counter() + LASTS
        while time.perf_counter() < until:
            try:
                noticed |= not await observe()
            except SourceError:
                noticed = True
            await asyncio.sleep(max(0.0, min(ASKS_EVERY, until - time.perf_counter())))
        assert noticed, f"{mode} was never noticed"
        for proxy in proxies[:many]:
            await proxy.turn("pass")
        begin = time.perf_counter()
        while time.perf_counter() - begin < GIVES_UP:
            try:
                if await observe() or many == PROVIDERS:
                    return time.perf_counter() - begin
            except SourceError:
                pass
            await asyncio.sleep(TICK)
        raise TimeoutError(f"not recovered from {mode} within {GIVES_UP:g} s: {dict(reader.failed)}")


if __name__ == "__main__":
    for line in measure_recovery():
        print(line)
