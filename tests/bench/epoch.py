"""One epoch's reading when 1% of 100,000 accounts changed, beside reading everybody anew at the same block."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import vyper
from web3 import Web3
from web3.contract import Contract

from adapters.evm.reader import EvmReader
from adapters.evm.vault import Vault
from adapters.evm.wallet import Wallet
from adapters.rpc import EvmEndpoint
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Account, Block, Position, Reading, Subject
from aggregator.service.collect import Collected, Observer, Rereading
from infra.devnet.anvil import Anvil, connect, deploy_code, transact
from infra.devnet.evm_deploy import EvmSpec, deploy_multicall3, deploy_registry, deploy_vault
from proofs.hashing import keccak256
from tests.bench.quorum import build_row
from tests.bench.reading import set_balances

ACCOUNTS = 100_000
DIRTY = 0.01
REPEATS = 3
EPOCHS, EPOCH_SECONDS = 64, 12
TARGET_RATIO = 0.05
CHAIN = "eip155:31337"
SOURCE = Path(__file__).with_name("bulk_token.vy")
MINTS = 250  # holders in one transaction
LONGEST = 120  # seconds that a whole read may take


class TimedReader(EvmReader):
    """Adds up, in ``spent``, the seconds of following the chain, of logs and of reading."""

    spent: dict[str, float]
    asked = 0  # subjects of the last read

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - begin

    async def pin(self, cut_time: int) -> Block:
        with self._timed("following"):
            return await super().pin(cut_time)

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        with self._timed("following"):
            return await super().headers(first, last)

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        with self._timed("logs"):
            return await super().changes(first, last)

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        self.asked = len(subjects)
        with self._timed("reading"):
            return await super().read(block, subjects)


def measure_epoch(accounts: int = ACCOUNTS, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Return rows {name, value, unit, reference, ratio, target}.

    value: milliseconds from the call of ``Observer.collect`` to its return, where 1% of the accounts changed since the
    epoch before and 1/64 is the epoch's sample. reference: the same call by an observer that reads everybody. Both at
    the same block, medians of ``repeats`` interleaved rounds, with what the shorter one is made of.
    """
    with Anvil() as chain:
        spent = asyncio.run(_measure(chain, accounts, repeats))
    of = {what: 1e3 * statistics.median(seconds) for what, seconds in spent.items()}
    name = f"epoch, {DIRTY:.0%} of {accounts} accounts changed"
    ratio = of["partial"] / of["full"]
    parts = {
        "pinning and following the chain": (of["following"], of["full following"]),
        "logs": (of["logs"], None),
        "reading": (of["reading"], of["full reading"]),
        "choosing whom to read, and merging": (of["merging"], of["full merging"]),
    }
    return [
        _row(f"{name}, beside all", of["partial"], of["full"], ratio, TARGET_RATIO),
        *(
            _row(f"    of it {part}", value, reference, None if reference is None else value / reference, None)
            for part, (value, reference) in parts.items()
        ),
    ]


def _row(name: str, value: float, reference: float | None, ratio: float | None, target: float | None) -> dict[str, Any]:
    return {
        "name": name, "value": round(value, 1), "unit": "ms/epoch",
        "reference": None if reference is None else round(reference, 1),
        "ratio": None if ratio is None else round(ratio, 4), "target": target,
    }  # fmt: skip


def build_accounts(count: int, chain: str = CHAIN) -> list[Account]:
    """Return accounts with one linked address each."""
    made = []
    for i in range(count):
        address = f"{chain}:0x{keccak256(b'holder %d' % i)[:20].hex()}"
        made.append(Account("0x" + keccak256(b"account %d" % i).hex(), address, "risk-bearing", chain, "", (address,)))
    return sorted(made, key=lambda account: account.id)


def address_of(account: Account) -> str:
    """Return the one address linked to ``account``."""
    return account.links[0].rpartition(":")[2]


def deploy_bulk_token(w3: Web3) -> Contract:
    """Deploy a token that can log many transfers at once."""
    made = vyper.compile_code(SOURCE.read_text(), output_formats=["abi", "bytecode"])
    return deploy_code(w3, made["abi"], made["bytecode"])


def change(w3: Web3, token: Contract, accounts: Sequence[Account]) -> None:
    """Give each of ``accounts`` something, with a log each."""
    holders = [Web3.to_checksum_address(address_of(account)) for account in accounts]
    for start in range(0, len(holders), MINTS):
        transact(w3, token.functions.mint(holders[start : start + MINTS], 1))


async def _measure(chain: Anvil, count: int, repeats: int) -> dict[str, list[float]]:
    w3 = connect(chain.url)
    multicall = deploy_multicall3(w3)
    token = deploy_bulk_token(w3)
    target = str(token.address).lower()
    registry = deploy_registry(w3, EvmSpec(("0x" + "11" * 20,), 1, 2**40, bytes(32), {}))
    vault = str(deploy_vault(w3, 60, registry).address).lower()
    accounts = build_accounts(count)
    await set_balances(chain, target, {address_of(account): 10**6 + i for i, account in enumerate(accounts)})
    chain.mine()

    asset = AssetRow(id=f"{CHAIN}/erc20:{target}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x")
    assets = {asset.id: asset}
    row = build_row(chain, multicall=multicall, timeout=LONGEST)
    row = row.model_copy(update={"rpc": row.rpc[:1], "quorum": 1})
    readers = []
    for _ in range(2):
        adapters = [Wallet(CHAIN, assets, multicall), Vault(CHAIN, vault, assets)]
        readers.append(TimedReader(row, EvmEndpoint(row, row.rpc[0]), adapters, []))
    some, everybody = readers
    observers = (
        Observer("some", {CHAIN: some}, rereading=Rereading(EPOCHS, EPOCH_SECONDS, full_below=0)),
        Observer("everybody", {CHAIN: everybody}, rereading=Rereading()),
    )
    dice = random.Random(7)
    spent: dict[str, list[float]] = defaultdict(list)
    for epoch in range(repeats + 2):  # the first reads everybody anyway, the second is the first to carry
        change(w3, token, dice.sample(accounts, round(count * DIRTY)))
        now = int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        seen: list[Collected] = []
        for observer, reader, what in zip(observers, readers, ("partial", "full"), strict=True):
            reader.spent = defaultdict(float)
            begin = time.perf_counter()
            seen.append(await observer.collect(epoch, now, accounts))
            total = time.perf_counter() - begin
            if epoch < 2:
                continue
            before = "" if what == "partial" else "full "
            spent[what].append(total)
            for part in ("following", "logs", "reading"):
                spent[before + part].append(reader.spent[part])
            spent[f"{before}merging"].append(total - sum(reader.spent.values()))
        _verify_alike(*(_reading(collected) for collected in seen))
        assert epoch == 0 or some.asked < count
    for reader in readers:
        await reader.close()
    return spent


def _reading(seen: Collected) -> Reading:
    assert not seen.causes, seen.causes
    reading = seen.readings[CHAIN]
    assert reading is not None
    assert not reading.findings
    return reading


def _verify_alike(some: Reading, everybody: Reading) -> None:
    """Both must have seen the same, or the comparison says nothing."""

    def amounts(positions: Sequence[Position]) -> dict[tuple[str, str], int]:
        return {(p.account, p.venue): p.amount for p in positions}

    assert amounts(some.positions) == amounts(everybody.positions)


if __name__ == "__main__":
    for made in measure_epoch():
        print(made)
