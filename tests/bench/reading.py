"""Reading 10,000 ERC-20 balances through our reader, beside the same calls packed by hand over the bare provider."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from pydantic import SecretStr
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint

from adapters.evm.reader import EvmReader
from adapters.evm.wallet import Wallet
from adapters.rpc import EvmEndpoint
from aggregator.domain.rows import AssetRow, ChainRow, LatencyLeg
from aggregator.domain.snapshot import Block, Subject
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import deploy_multicall3, deploy_token
from proofs.hashing import keccak256

BALANCES = 10_000
REPEATS = 9
TARGET_RATIO = 0.7
CHAIN = "eip155:31337"
_PER_REQUEST = 2_500


def measure_reading(count: int = BALANCES, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return one row {name, value, unit, reference, ratio, target}.

    value, reference: milliseconds for ``count`` balances, the median of ``repeats`` interleaved runs; about half of
    the addresses hold something. ratio: reference / value; target: at least that.
    """
    with Anvil() as chain:
        w3 = connect(chain.url)
        token = str(deploy_token(w3, "USD Coin", "USDC", 6).address).lower()
        multicall = deploy_multicall3(w3)
        addresses = ["0x" + keccak256(b"holder %d" % i)[:20].hex() for i in range(count)]
        expected = {a: i * 10**6 for i, a in enumerate(addresses) if i % 2}
        asyncio.run(set_balances(chain, token, expected))
        chain.mine()
        ours, reference = asyncio.run(_compare(chain, token, multicall, addresses, expected, repeats))
    return [
        {
            "name": f"reading {count} balances",
            "value": round(ours * 1e3, 1),
            "unit": "ms",
            "reference": round(reference * 1e3, 1),
            "ratio": round(reference / ours, 3),
            "target": TARGET_RATIO,
        }
    ]


async def set_balances(chain: Anvil, token: str, balances: dict[str, int]) -> None:
    """Write balances into the token's storage."""
    holder, amount = next(iter(balances.items()))
    for slot in range(32):
        before = chain.rpc("evm_snapshot")
        chain.rpc("anvil_setStorageAt", token, _storage_key(slot, holder), f"0x{amount:064x}")
        call = {"to": token, "data": "0x70a08231" + holder[2:].rjust(64, "0")}
        if int(chain.rpc("eth_call", call, "latest"), 16) == amount:
            break
        chain.rpc("evm_revert", before)
    else:
        raise LookupError("balanceOf is in none of the first 32 storage slots")
    provider = AsyncHTTPProvider(chain.url)
    requests = [
        (RPCEndpoint("anvil_setStorageAt"), [token, _storage_key(slot, holder), f"0x{amount:064x}"])
        for holder, amount in balances.items()
    ]
    for start in range(0, len(requests), 500):
        await provider.make_batch_request(requests[start : start + 500])
    await provider.disconnect()


def _storage_key(slot: int, holder: str) -> str:
    """Return the storage key of a mapping's entry; Vyper hashes the slot before the key."""
    return "0x" + keccak256(slot.to_bytes(32, "big") + bytes.fromhex(holder[2:].rjust(64, "0"))).hex()


async def _compare(
    chain: Anvil, token: str, multicall: str, addresses: list[str], expected: dict[str, int], repeats: int
) -> tuple[float, float]:
    asset = AssetRow(id=f"{CHAIN}/erc20:{token}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x")
    row = ChainRow(
        id=CHAIN,
        name="bench",
        family="evm",
        rpc=(SecretStr(chain.url),),
        genesis=chain.rpc("eth_getBlockByNumber", "0x0", False)["hash"],
        block_seconds=1,
        multicall=multicall,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        timeout=60,
        requests_per_second=10_000,  # the throttle is a setting, not a cost
    )
    reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), [Wallet(CHAIN, {asset.id: asset}, multicall)], [])
    provider = AsyncHTTPProvider(chain.url)
    subjects = [Subject(f"0x{i:064x}", a) for i, a in enumerate(addresses)]
    block = await reader.pin(2**40)
    ours: list[float] = []
    reference: list[float] = []
    for _ in range(repeats + 1):  # the first round warms caches and connections up and does not count
        begin = time.perf_counter()
        reading = await reader.read(block, subjects)
        between = time.perf_counter()
        balances = await _read_bare(provider, multicall, token, addresses, block)
        end = time.perf_counter()
        ours.append(between - begin)
        reference.append(end - between)
        # Both must have read the same, or the comparison says nothing.
        assert not reading.findings
        assert {p.address: p.quantity for p in reading.positions} == expected
        assert {a: b for a, b in zip(addresses, balances, strict=True) if b} == expected
    await reader.close()
    await provider.disconnect()
    return statistics.median(ours[1:]), statistics.median(reference[1:])


async def _read_bare(
    provider: AsyncHTTPProvider, multicall: str, token: str, addresses: list[str], block: Block
) -> list[int]:
    """Read balances with nothing of ours: calldata laid out by hand, requests in parallel, words cut out by place."""

    async def read(part: list[str]) -> list[int]:
        params = pack_balances(multicall, token, part, block)
        answer: Any = await provider.make_request(RPCEndpoint("eth_call"), params)
        return cut_balances(answer["result"], len(part))

    return [balance for part in await asyncio.gather(*map(read, cut_batches(addresses))) for balance in part]


def cut_batches(addresses: list[str]) -> list[list[str]]:
    """Return the addresses in as many parts as there are requests."""
    return [addresses[i : i + _PER_REQUEST] for i in range(0, len(addresses), _PER_REQUEST)]


def pack_balances(multicall: str, token: str, addresses: list[str], block: Block) -> list[object]:
    """Return the parameters of an ``eth_call`` that asks Multicall3 for balances at ``block``."""
    count = len(addresses)
    entry = token[2:].rjust(64, "0") + f"{1:064x}{0x60:064x}{36:064x}70a08231" + "0" * 24
    offsets = "".join([f"{32 * count + 0xC0 * i:064x}" for i in range(count)])
    bodies = "".join([entry + address[2:] + "0" * 56 for address in addresses])
    return [
        {"to": multicall, "data": f"0x82ad56cb{32:064x}{count:064x}{offsets}{bodies}"},
        {"blockHash": block.hash},
    ]


def cut_balances(returned: str, count: int) -> list[int]:
    """Return the balances in what Multicall3 returned, found by their places."""
    data = bytes.fromhex(returned[2:])
    first = 64 + 32 * count + 96
    return [int.from_bytes(data[at : at + 32], "big") for at in range(first, len(data), 128)]


if __name__ == "__main__":
    for row in measure_reading():
        print(row)
