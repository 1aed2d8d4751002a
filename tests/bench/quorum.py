"""Reading 10,000 ERC-20 balances through three providers that must agree, beside bare calls and PyPI's ``multicall``.

The three providers are three addresses of one Anvil, so that the node's work is the same for everybody. ``multicall``
never becomes a dependency: it is installed into ``build/multicall``, from a lock of its own, and runs there.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from pydantic import SecretStr

from adapters.evm.reader import EvmAdapter, EvmReader
from adapters.evm.wallet import Wallet
from adapters.quorum import QuorumReader
from adapters.rpc import EvmEndpoint
from aggregator.domain.rows import AssetRow, ChainRow, LatencyLeg
from aggregator.domain.snapshot import Block, Subject
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import deploy_multicall3, deploy_token
from proofs.hashing import keccak256
from tests.bench.reading import cut_balances, cut_batches, pack_balances, set_balances

BALANCES = 10_000
REPEATS = 9
PROVIDERS, NEED = 3, 2
TARGET_BARE, TARGET_PACKAGE = 0.8, 10.0
CHAIN_ID = 1  # the package knows where Multicall3 is by the chain's id, and does not know Anvil's own
CHAIN = f"eip155:{CHAIN_ID}"

LOCK = Path(__file__).with_name("multicall.txt")
PROGRAM = Path(__file__).with_name("package.py")
FOLDER = Path(__file__).resolve().parents[2] / "build" / "multicall"


class Package:
    """PyPI's ``multicall`` in a process and an environment of its own."""

    def __init__(self, url: str, token: str, addresses: Sequence[str]) -> None:
        python = FOLDER / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        uv = Path(sys.executable).parent / "uv"
        for command in (
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, FOLDER],
            [uv, "pip", "install", "--quiet", "--no-build", "--python", python, "--requirements", LOCK],
        ):
            subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)
        self._process = subprocess.Popen(
            [str(python), "-I", str(PROGRAM), url, token], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ask(addresses)

    def read(self, block: int) -> tuple[float, dict[str, int]]:
        """Read all balances at ``block``; return the seconds it took, measured there, and the balances."""
        answer = self._ask(block)
        return answer["seconds"], answer["balances"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=10)

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the process of the package `multicall` ended")
        return json.loads(line)


def build_row(chain: Anvil, **changes: Any) -> ChainRow:
    """Return the row of an Anvil with three addresses, of which two must agree, and no throttle to speak of."""
    fields: dict[str, Any] = {
        "id": f"eip155:{chain.chain_id}",
        "name": "bench",
        "family": "evm",
        "rpc": tuple(SecretStr(f"{chain.url}/?provider={i}") for i in range(PROVIDERS)),
        "genesis": chain.rpc("eth_getBlockByNumber", "0x0", False)["hash"],
        "block_seconds": 1,
        "max_age": 60,
        "hold": (LatencyLeg(typical=1),),
        "timeout": 60,
        "requests_per_second": 10_000,  # the throttle is a setting, not a cost
        "quorum": NEED,
    }
    return ChainRow(**{**fields, **changes})


def build_quorum(row: ChainRow, adapters: Sequence[EvmAdapter]) -> QuorumReader:
    """Return a reader over every provider of ``row``; a dispute among them ends the measurement."""

    def dispute(found: object) -> None:
        raise AssertionError(f"providers of one node disagree: {found}")

    readers = [EvmReader(row, EvmEndpoint(row, url), adapters, []) for url in row.rpc]
    return QuorumReader(row, readers, [f"bench[{i}]" for i in range(len(readers))], row.quorum, dispute)


def measure_quorum(count: int = BALANCES, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return rows {name, value, unit, reference, ratio, target}.

    Balances a second are counted for every provider that gave them: what the quorum reader read three times it also
    compared. CPU seconds are those of this process. All are medians of ``repeats`` interleaved rounds.
    """
    with Anvil(CHAIN_ID) as chain:
        w3 = connect(chain.url)
        token = str(deploy_token(w3, "USD Coin", "USDC", 6).address).lower()
        multicall = deploy_multicall3(w3)
        addresses = ["0x" + keccak256(b"holder %d" % i)[:20].hex() for i in range(count)]
        expected = {a: i * 10**6 for i, a in enumerate(addresses) if i % 2}
        asyncio.run(set_balances(chain, token, expected))
        chain.mine()
        try:
            package: Package | None = Package(chain.url, token, addresses)
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            package = None
            why = getattr(error, "stderr", None) or error
            print(f"PyPI's multicall could not be installed, so NOTHING IS COMPARED WITH IT: {why}", file=sys.stderr)
        try:
            spent = asyncio.run(_compare(chain, token, multicall, expected, addresses, package, repeats))
        finally:
            if package is not None:
                package.close()
    of = {what: statistics.median(seconds[1:]) for what, seconds in spent.items()}
    ours, bare = PROVIDERS * count / of["quorum"], PROVIDERS * count / of["bare"]
    name = f"quorum of {PROVIDERS}, {count} balances"
    rows = [_row(f"{name}, beside bare calls", ours, "balances/s", bare, ours / bare, TARGET_BARE)]
    if "package" in of:
        theirs = count / of["package"]
        rows += [
            _row(f"{name}, beside PyPI multicall", ours, "balances/s", theirs, ours / theirs, TARGET_PACKAGE),
            _row(
                f"{name}, each counted once, beside PyPI multicall",
                ours / PROVIDERS,
                "balances/s",
                theirs,
                ours / PROVIDERS / theirs,
                None,
            ),
        ]
    ten = 1e3 * 10_000 / count
    cpu, single = of["quorum cpu"] * ten, of["single cpu"] * ten
    return [
        *rows,
        _row(f"CPU of 10000 reads, quorum of {PROVIDERS}, beside one bare", cpu, "CPU ms", single, cpu / single, None),
    ]


def _row(name: str, value: float, unit: str, reference: float, ratio: float, target: float | None) -> dict[str, Any]:
    return {
        "name": name, "value": round(value, 1), "unit": unit,
        "reference": round(reference, 1), "ratio": round(ratio, 3), "target": target,
    }  # fmt: skip


async def _compare(
    chain: Anvil,
    token: str,
    multicall: str,
    expected: dict[str, int],
    addresses: list[str],
    package: Package | None,
    repeats: int,
) -> dict[str, list[float]]:
    """Return the seconds of every round by what they were spent on; the first round only warms up."""
    row = build_row(chain, multicall=multicall)
    asset = AssetRow(id=f"{CHAIN}/erc20:{token}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x")
    reader = build_quorum(row, [Wallet(CHAIN, {asset.id: asset}, multicall)])
    urls = [url.get_secret_value() for url in row.rpc]
    subjects = [Subject(f"0x{i:064x}", a) for i, a in enumerate(addresses)]
    block = await reader.pin(2**40)
    spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        spent[f"{what} cpu"].append(time.process_time() - cpu)
        spent[what].append(time.perf_counter() - begin)

    async with aiohttp.ClientSession() as session:
        for _ in range(repeats + 1):
            with timed("quorum"):
                reading = await reader.read(block, subjects)
            with timed("bare"):
                found = await asyncio.gather(
                    *(_read_bare(session, url, multicall, token, addresses, block) for url in urls)
                )
            with timed("single"):
                found.append(await _read_bare(session, urls[0], multicall, token, addresses, block))
            if package is not None:
                seconds, theirs = package.read(block.height)
                spent["package"].append(seconds)
                assert {a: b for a, b in theirs.items() if b} == expected
            # All must have read the same, or the comparison says nothing.
            assert not reading.findings
            assert {p.address: p.quantity for p in reading.positions} == expected
            for balances in found:
                assert {a: b for a, b in zip(addresses, balances, strict=True) if b} == expected
    await reader.close()
    return spent


async def _read_bare(
    session: aiohttp.ClientSession, url: str, multicall: str, token: str, addresses: list[str], block: Block
) -> list[int]:
    """Read balances with nothing of ours: calldata laid out by hand, requests in parallel, words cut out by place."""

    async def read(part: list[str]) -> list[int]:
        params = pack_balances(multicall, token, part, block)
        request = {"jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": params}
        headers = {"content-type": "application/json"}
        async with session.post(url, data=orjson.dumps(request), headers=headers) as response:
            return cut_balances(orjson.loads(await response.read())["result"], len(part))

    return [balance for part in await asyncio.gather(*map(read, cut_batches(addresses))) for balance in part]


if __name__ == "__main__":
    for made in measure_quorum():
        print(made)
