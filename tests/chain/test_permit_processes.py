"""A permit's whole way through processes of their own: asked for, signed, listed, brought to the vault; then a hold."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey

from infra.devnet.anvil import Anvil, connect, transact
from infra.devnet.evm_deploy import accept_tokens, at, deploy_token, deploy_vault
from proofs.hashing import keccak256
from tests.fault.test_attestor_processes import Processes
from tests.worlds.documents import ALPHA, asset

pytestmark = [pytest.mark.chain, pytest.mark.soak]
ETHER = 10**18
KEY = PrivateKey(b"\x07" * 32)
ADDRESS = "0x" + keccak256(KEY.public_key.format(compressed=False)[1:])[12:].hex()


def sign(digest: str) -> str:
    signature = KEY.sign_recoverable(bytes.fromhex(digest[2:]), hasher=None)
    return "0x" + (signature[:64] + bytes([27 + signature[64]])).hex()


class WithVault(Processes):
    """The same devnet with a vault, and a token in it."""

    def _common(self, members: list[str]) -> dict[str, Any]:
        common = super()._common(members)
        w3 = connect(self.anvil.url)
        registry = at(w3, "MarginRegistry", common["destinations"][0]["address"])
        self.vault, self.weth = deploy_vault(w3, 60, registry), deploy_token(w3, "Wrapped Ether", "WETH", 18)
        accept_tokens(w3, self.vault, self.weth.address)
        self.asset = f"{ALPHA}/erc20:{str(self.weth.address).lower()}"
        common["assets"].append(asset(self.asset, "WETH", "erc20", 18, "ETH/USD", "major"))
        venue = {"chain": ALPHA, "kind": "vault", "addresses": {"vault": str(self.vault.address).lower()}}
        common["venues"].append(venue)
        return common

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send JSON to the coordinator."""
        url, data = f"http://127.0.0.1:{self.ports['coordinator']}{path}", json.dumps(body).encode()
        wanted = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(wanted, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def free(self) -> int | None:
        """Return the account's free collateral, None before any epoch holds it."""
        status, margin = self.get("/v1/accounts/ada/margin")
        return int(margin["free_collateral"]["exact"]) if status == 200 else None


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[WithVault]:
    with Anvil(31337, block_time=1) as anvil:
        made = WithVault(tmp_path, anvil)
        try:
            yield made
        finally:
            for process in made.running.values():
                process.kill()
                process.wait(10)


@pytest.mark.timeout(600)  # five processes, on a machine that may be busy
def test_what_the_controller_asks_for_leaves_the_vault_and_nothing_more(processes: WithVault) -> None:
    world = processes
    world.start(*world.names, "coordinator")
    world.ask("coordinator", "accounts", "open", "--controller", f"{ALPHA}:{ADDRESS}", "--label", "ada")
    # What is given as budget cannot leave: it keeps 6,000 of 10,000 parts to itself, before there is anything.
    shares = f"{ALPHA}=4000"
    message = world.ask("coordinator", "accounts", "share", "message", "ada", shares)
    terms = ["--nonce", str(message["nonce"]), "--expiry", str(message["expiry"])]
    signed = ["--signature", sign(message["digest"])]
    known = world.ask("coordinator", "accounts", "share", "record", "ada", shares, *terms, *signed)

    w3 = connect(world.anvil.url)
    depositor, to = w3.eth.accounts[1], w3.eth.accounts[2]
    account = bytes.fromhex(known["account"][2:])
    transact(w3, world.weth.functions.mint(depositor, 10 * ETHER))
    transact(w3, world.weth.functions.approve(world.vault.address, 10 * ETHER), depositor)
    transact(w3, world.vault.functions.deposit(account, world.weth.address, 10 * ETHER), depositor)
    whole = world.until("the deposit in a margin", lambda: free if (free := world.free()) else None)

    def collect(ethers: int) -> tuple[int, Any]:
        """Ask, over HTTP: a permit's epoch is soon too old for commands that start slowly."""
        terms = {"asset": world.asset, "amount": str(ethers * ETHER), "to": to.lower()}
        status, made = world.get("/v1/accounts/ada/permits/message?" + urllib.parse.urlencode(terms))
        assert status == 200, made
        terms |= {name: made[name] for name in ("vault", "nonce", "epoch", "expiry")}
        return world.post("/v1/accounts/ada/permits", terms | {"signature": sign(made["digest"])})

    status, too_much = collect(7)
    assert (status, too_much["error"]["field"]) == (409, "budgets")
    assert world.get("/v1/accounts/ada/permits") == (200, {"permits": []})

    status, permit = collect(4)
    assert status == 201, f"{permit}\n{world.logs()}"
    assert len(permit["signatures"]) >= 3
    less = world.until("the permitted amount gone", lambda: f if (f := world.free()) and f < 0.7 * whole else None)
    assert less > 0.5 * whole

    terms = (account, world.weth.address, 4 * ETHER, to, bytes.fromhex(permit["nonce"][2:]))
    terms += (permit["epoch"], permit["expiry"])
    signatures = [(s["r"], s["vs"]) for s in permit["signatures"]]
    withdraw = world.vault.functions.withdraw(terms, 0, int(permit["indices"], 16), signatures)
    transact(w3, withdraw, depositor)
    assert world.weth.functions.balanceOf(to).call() == 4 * ETHER

    # It is listed on, whoever proposes.
    reached = world.certified_after(0)
    world.kill("coordinator")
    world.until("the next epochs", lambda: n if (n := world.signed("attestor-0")) > reached + 2 else None)
    world.start("coordinator")
    world.certified_after(reached + 2)
    assert len(world.ask("coordinator", "permits", "list", "ada")["permits"]) == 1

    # Nobody holds an account that owes nothing.
    held = world.command("coordinator", "permits", "hold", "ada", "--chain", "alpha", "--json")
    refused = subprocess.run(held, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1, refused.stderr
    assert "0 of 3 signatures" in refused.stderr
    assert "is healthy" in refused.stderr
    assert time.time() < permit["expiry"]
