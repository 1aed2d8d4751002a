"""From the beginning of an epoch to its certificate, over four attestor processes, by number of accounts.

The coordinator runs in the measuring process; each attestor is ``crossmargin attestor run`` with a folder, keys, a
record and readings of its own, on one real chain. Everything of an epoch is in the time: reading every account's vault
and registry, valuation, both trees, asking, the attestors' own reading and recomputation, durable records.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from web3 import Web3

from aggregator.bootstrap import build_service, open_store
from aggregator.config import load_settings
from aggregator.service import telemetry
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import at, deploy_vault
from proofs.links import account_id
from tests.fault.test_attestor_processes import ALPHA, Processes

RUNS: Mapping[int, tuple[int, int]] = {100: (20, 3), 10_000: (5, 8)}
"""By number of accounts: how many epochs are measured, and the seconds of one. With 100,000 accounts five processes on
two cores need minutes for an epoch, longer than its statement would live."""
WARM_UP = 2  # epochs until everybody has the accounts and their readings
READY_SECONDS = 90.0


def measure_certificates(runs: Mapping[int, tuple[int, int]] = RUNS) -> Sequence[Mapping[str, Any]]:
    """Return rows {name, value, unit, …}: p50 and p99 of whole epochs, and of asking alone, in milliseconds.

    With n epochs the p99 is the value at rank ⌈0.99·n⌉: with fewer than 100 the largest.
    """
    rows: list[Mapping[str, Any]] = []
    for accounts, (epochs, seconds) in runs.items():
        whole, asking = _measure(accounts, epochs, seconds)
        for what, times in (("epoch to certificate", whole), ("of it asking the attestors", asking)):
            for name, part in (("p50", 0.5), ("p99", 0.99)):
                rows.append(_row(f"{what}, {accounts:,} accounts, {name} of {epochs}", 1e3 * _quantile(times, part)))
    return rows


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[math.ceil(part * len(values)) - 1]


def _row(name: str, value: float) -> Mapping[str, Any]:
    return {"name": name, "value": value, "unit": "ms", "reference": None, "ratio": None, "target": None}


def _measure(accounts: int, epochs: int, seconds: int) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory(prefix="crossmargin-bench-") as folder, Anvil(31337, block_time=1) as anvil:
        world = Processes(Path(folder), anvil)
        try:
            _adjust(world, anvil, seconds)
            world.start(*world.names)
            return asyncio.run(_epochs(world, accounts, epochs, seconds))
        finally:
            world.kill(*list(world.running))


def _adjust(world: Processes, anvil: Anvil, seconds: int) -> None:
    """Give everybody's configuration a vault to read, and epochs long enough."""
    w3 = connect(anvil.url)
    vault = ""
    for name in (*world.names, "coordinator"):
        path = world.folder / name / "crossmargin.toml"
        document = tomllib.loads(path.read_text("utf-8"))
        if not vault:
            registry = at(w3, "MarginRegistry", document["destinations"][0]["address"])
            vault = str(deploy_vault(w3, 60, registry).address).lower()
        document["venues"].append({"chain": ALPHA, "kind": "vault", "addresses": {"vault": vault}})
        document["assets"].append(dict(document["assets"][0], id=f"{ALPHA}/erc20:0x{'cc' * 20}", kind="erc20"))
        document["service"] |= {"epoch_seconds": seconds}
        if "attestor" in document:
            document["attestor"]["propose_after"] = 300.0  # the coordinator is here: nobody is to take over
        path.write_text(tomli_w.dumps(document), "utf-8")


async def _epochs(world: Processes, accounts: int, epochs: int, seconds: int) -> tuple[list[float], list[float]]:
    settings = load_settings(world.folder / "coordinator" / "crossmargin.toml")
    store = await open_store(settings)
    await store.close()
    _open_accounts(world.folder / "coordinator" / "crossmargin.sqlite3", accounts)
    await asyncio.to_thread(_wait_until_ready, world)
    asked = telemetry.EPOCH_SECONDS.labels("attest")
    whole: list[float] = []
    asking: list[float] = []
    async with build_service(settings) as service:
        await service.relayer.start()
        try:
            last = 0
            while len(whole) < epochs + WARM_UP:
                number = int(time.time()) // seconds
                if number == last:
                    await asyncio.sleep(0.02)
                    continue
                last, began, before = number, time.perf_counter(), asked._sum.get()
                record = await service.cycle.run_epoch(number)
                if not record.attestations:
                    raise RuntimeError(f"no certificate: {record.refusals}")
                whole.append(time.perf_counter() - began)
                asking.append(asked._sum.get() - before)
        finally:
            await service.relayer.stop()
    return whole[WARM_UP:], asking[WARM_UP:]


def _open_accounts(database: Path, count: int) -> None:
    rows = []
    for i in range(count):
        controller, salt = f"{ALPHA}:0x{i:040x}", i.to_bytes(32, "big")
        rows.append(("0x" + account_id(controller, salt).hex(), Web3.to_hex(salt), controller, ALPHA))
    with sqlite3.connect(database) as connection:
        connection.executemany(
            "INSERT INTO account (id, salt, controller, kind, home) VALUES (?, ?, ?, 'risk-bearing', ?)", rows
        )


def _wait_until_ready(world: Processes) -> None:
    """Wait until every attestor answers."""
    deadline = time.monotonic() + READY_SECONDS
    for name in world.names:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{world.ports[name]}/healthz", timeout=2).read()
                break
            except urllib.error.HTTPError:
                break  # it answers; that nothing was signed yet is no wonder
            except (OSError, urllib.error.URLError):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{name} does not answer:\n{world.logs()}") from None
                time.sleep(0.2)
