"""The EVM half of the devnet: artifacts, Anvil as a well-behaved child process, and what is deployed on it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from eth_account import Account
from web3 import Web3
from web3.exceptions import Web3Exception

from infra.devnet import artifacts, evm_deploy
from infra.devnet.aave import load_aave
from infra.devnet.anvil import NODE_MODULES, Anvil, AnvilError, connect, find_binary, transact
from tests.contracts.evm_reference import Quorum

ROOT = Path(__file__).resolve().parents[2]
ETH, BTC, USDC = 3000 * 10**8, 60_000 * 10**8, 10**8

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def spec() -> evm_deploy.EvmSpec:
    prices = {"ETH": ETH, "BTC": BTC, "USDC": USDC}
    return evm_deploy.EvmSpec(tuple(Quorum(4).members), 3, int(time.time()) + 86400, b"\x01" * 32, prices)


@pytest.fixture(scope="module")
def addresses(w3: Web3, spec: evm_deploy.EvmSpec) -> dict[str, str]:
    return evm_deploy.deploy_evm_chain(w3, spec)


# Artifacts


@pytest.mark.parametrize("name", artifacts.find_sources())
def test_a_rebuild_gives_the_committed_bytes(name: str) -> None:
    source = artifacts.find_sources()[name]
    committed = artifacts.get_artifact_path(source).read_text(encoding="utf-8")
    assert artifacts.encode_artifact(artifacts.build_artifact(source)) == committed


def test_an_unknown_contract_is_named() -> None:
    with pytest.raises(artifacts.ArtifactError, match="Nonesuch"):
        artifacts.load("Nonesuch")


@pytest.mark.parametrize("name", ["MarginRegistry", "CollateralVault"])
def test_the_solidity_interface_has_the_selectors_of_the_contract(name: str) -> None:
    """Every function of the interface exists with the same selector and outputs, and none is missing."""
    abi, _ = artifacts.load(name)
    text = re.sub(r"//[^\n]*", "", (ROOT / "proofs" / "contracts" / f"I{name}.sol").read_text(encoding="utf-8"))
    structs = {
        found[1]: "(" + ",".join(field.split()[0] for field in found[2].split(";") if field.strip()) + ")"
        for found in re.finditer(r"struct (\w+) \{(.*?)\}", text, re.DOTALL)
    }

    def canonical(parameters: str) -> list[str]:
        words = [parameter.split()[0] for parameter in parameters.split(",") if parameter.strip()]
        return [structs.get(word, word) for word in words]

    declared = {
        (found[1], tuple(canonical(found[2])), tuple(canonical(found[3] or "")))
        for found in re.finditer(r"function (\w+)\((.*?)\)[^;]*?(?:returns \((.*?)\))?;", text, re.DOTALL)
    }

    def expand(entry: dict[str, object]) -> str:
        kind = str(entry["type"])
        if not kind.startswith("tuple"):
            return kind
        return "(" + ",".join(expand(part) for part in entry["components"]) + ")" + kind[5:]  # type: ignore[attr-defined]

    exported = {
        (entry["name"], tuple(map(expand, entry["inputs"])), tuple(map(expand, entry["outputs"])))
        for entry in abi
        if entry["type"] == "function"
    }
    assert declared == exported


# npm packages


def test_the_lock_pins_every_platform_and_names_no_host() -> None:
    text = (ROOT / "infra" / "devnet" / "package-lock.json").read_text(encoding="utf-8")
    packages = json.loads(text)["packages"]
    assert "http" not in text
    assert "resolved" not in text
    wanted = packages["node_modules/@foundry-rs/anvil"]["optionalDependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted


# Anvil as a process


def test_a_busy_port_is_named(chain: Anvil) -> None:
    with pytest.raises(AnvilError, match=f"port {chain.port} is busy"):
        Anvil(port=chain.port).start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AnvilError, match=f"port {port} is busy"):
            Anvil(port=port).start()


def test_a_missing_binary_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert NODE_MODULES in find_binary().parents
    monkeypatch.setattr("infra.devnet.anvil.NODE_MODULES", tmp_path)
    with pytest.raises(AnvilError, match="make install"):
        Anvil().start()


def test_stop_ends_the_process_and_removes_its_files() -> None:
    chain = Anvil().start()
    pid = chain.pid
    assert pid is not None
    folder = Path(psutil.Process(pid).cwd())
    chain.freeze()
    chain.stop()
    chain.stop()
    assert not psutil.pid_exists(pid)
    assert not folder.exists()
    assert chain.pid is None


def test_a_failed_start_leaves_nothing_and_says_why() -> None:
    with pytest.raises(AnvilError, match="unexpected argument"):
        Anvil(extra_args=("--no-such-flag",)).start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a parent-death signal")
def test_the_chain_dies_with_a_killed_parent() -> None:
    program = (
        "import threading, time\nfrom infra.devnet.anvil import Anvil\nchain = Anvil()\n"
        "starter = threading.Thread(target=chain.start)\nstarter.start()\nstarter.join()\n"
        "print(chain.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()  # though the thread that started it has ended
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_chain_ticks_halts_and_goes_on() -> None:
    with Anvil(chain_id=31400, block_time=1, slots_in_an_epoch=2) as chain:

        def height(tag: str = "latest") -> int:
            return int(chain.rpc("eth_getBlockByNumber", tag, False)["number"], 16)

        def wait_for(condition: object, seconds: float = 15) -> None:
            deadline = time.monotonic() + seconds
            while not condition():  # type: ignore[operator]
                assert time.monotonic() < deadline, "the chain did not move"
                time.sleep(0.05)

        chain.mine(10)
        assert (height(), height("safe"), height("finalized")) == (10, 8, 6)
        chain.start_blocks()
        sender = chain.rpc("eth_accounts")[0]
        wait_for(lambda: height() > 11)
        chain.pause()
        halted = height()
        waiting = chain.rpc("eth_sendTransaction", {"from": sender, "to": sender})
        time.sleep(2.2)
        assert height() == halted
        assert chain.rpc("eth_getTransactionReceipt", waiting) is None
        chain.resume()
        wait_for(lambda: chain.rpc("eth_getTransactionReceipt", waiting) is not None)
        assert abs(int(chain.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16) - time.time()) < 10

        chain.freeze()
        with pytest.raises(OSError, match="timed out"):
            chain.rpc("eth_blockNumber", timeout=0.3)
        chain.thaw()
        assert height() > halted


def test_an_error_of_the_node_is_raised(chain: Anvil) -> None:
    with pytest.raises(AnvilError, match="no_such_method on chain 31337"):
        chain.rpc("no_such_method")


# What is deployed


def test_multicall3_is_the_real_one(w3: Web3, addresses: dict[str, str]) -> None:
    raw = evm_deploy.build_multicall3_transaction()
    assert Account.recover_transaction(raw) == "0x05f32B3cC3888453ff71B01135B34FF8e41263F2"
    # The transaction that created it on Ethereum.
    assert w3.keccak(raw).to_0x_hex() == "0x07471adfe8f4ec553c1199f495be97fc8be8e0626ae307281c22534460184ed1"
    assert addresses["multicall3"] == "0xca11bde05977b3631167028862be2a173976ca11"
    aggregate = {
        "type": "function",
        "name": "aggregate3",
        "stateMutability": "payable",
        "inputs": [
            {
                "name": "calls",
                "type": "tuple[]",
                "components": [
                    {"name": "target", "type": "address"},
                    {"name": "allowFailure", "type": "bool"},
                    {"name": "callData", "type": "bytes"},
                ],
            }
        ],
        "outputs": [
            {
                "name": "",
                "type": "tuple[]",
                "components": [{"name": "success", "type": "bool"}, {"name": "returnData", "type": "bytes"}],
            }
        ],
    }
    multicall = w3.eth.contract(address=Web3.to_checksum_address(addresses["multicall3"]), abi=[aggregate])
    usdc = evm_deploy.at(w3, "TestToken", addresses["usdc"])
    calls = [(usdc.address, True, usdc.encode_abi("decimals")), (usdc.address, True, "0xdeadbeef")]
    (decimals, failed) = multicall.functions.aggregate3(calls).call()
    assert (decimals[0], int.from_bytes(decimals[1], "big"), failed[0]) == (True, 6, False)
    assert evm_deploy.deploy_multicall3(w3) == addresses["multicall3"]


def test_everything_named_has_code(w3: Web3, addresses: dict[str, str]) -> None:
    assert all(address == address.lower() for address in addresses.values())
    contracts = {name: address for name, address in addresses.items() if name != "deployer"}
    assert all(w3.eth.get_code(Web3.to_checksum_address(address)) for address in contracts.values())
    assert len(set(contracts.values())) == len(contracts)
    registry = evm_deploy.at(w3, "MarginRegistry", addresses["registry"])
    vault = evm_deploy.at(w3, "CollateralVault", addresses["collateral_vault"])
    assert vault.functions.deploymentId().call() == registry.functions.deploymentId().call()
    lender = evm_deploy.at(w3, "ExampleLender", addresses["lender"])
    usdc = evm_deploy.at(w3, "TestToken", addresses["usdc"])
    assert lender.functions.token().call() == usdc.address
    assert usdc.functions.balanceOf(lender.address).call() == evm_deploy.LENDER_FUNDING
    tokens = [evm_deploy.at(w3, "TestToken", addresses[name]) for name in ("usdc", "wbtc", "weth")]
    assert [token.functions.decimals().call() for token in tokens] == [6, 8, 18]


def test_a_feed_answers_as_chainlink_does(w3: Web3, addresses: dict[str, str]) -> None:
    feed = evm_deploy.at(w3, "PriceFeed", addresses["feed_eth"])
    assert (feed.functions.decimals().call(), feed.functions.description().call()) == (8, "ETH / USD")
    first = feed.functions.latestRoundData().call()
    assert (first[1], first[4]) == (ETH, first[0])
    receipt = transact(w3, feed.functions.setAnswer(ETH - 1))
    round_id, answer, started, updated, answered_in = feed.functions.latestRoundData().call()
    assert (round_id, answer, answered_in) == (first[0] + 1, ETH - 1, first[0] + 1)
    assert started == updated == w3.eth.get_block(receipt["blockNumber"])["timestamp"]
    assert feed.functions.getRoundData(first[0]).call() == first
    with pytest.raises(Web3Exception, match="not the owner"):
        feed.functions.setAnswer(1).call({"from": w3.eth.accounts[1]})
    for outside in (feed.functions.minAnswer().call() - 1, feed.functions.maxAnswer().call() + 1):
        with pytest.raises(Web3Exception, match="out of bounds"):
            feed.functions.setAnswer(outside).call({"from": w3.eth.accounts[0]})
    transact(w3, feed.functions.setAnswer(ETH))


def test_a_4626_share_is_worth_what_the_vault_holds(w3: Web3, addresses: dict[str, str]) -> None:
    shares = evm_deploy.at(w3, "TestVault4626", addresses["vault4626"])
    usdc = evm_deploy.at(w3, "TestToken", addresses["usdc"])
    owner, thief = w3.eth.accounts[1:3]
    for holder in (owner, thief):
        transact(w3, usdc.functions.mint(holder, 10_000_000))
        transact(w3, usdc.functions.approve(shares.address, 2**256 - 1), holder)
    # A donation before the first deposit must cost the donor more than it takes from the depositor.
    transact(w3, shares.functions.deposit(1, thief), thief)
    transact(w3, usdc.functions.transfer(shares.address, 1_000_000), thief)
    transact(w3, shares.functions.deposit(1_000_000, owner), owner)
    held = shares.functions.balanceOf(owner).call()
    assert held == shares.functions.convertToShares(1_000_000).call()
    assert 990_000 <= shares.functions.convertToAssets(held).call() <= 1_000_000
    assert shares.functions.convertToAssets(shares.functions.balanceOf(thief).call()).call() < 1_000_001

    with pytest.raises(Web3Exception, match="allowance"):
        shares.functions.redeem(held, thief, owner).call({"from": thief})
    expected = shares.functions.previewRedeem(held).call()
    before = usdc.functions.balanceOf(owner).call()
    transact(w3, shares.functions.redeem(held, owner, owner), owner)
    assert usdc.functions.balanceOf(owner).call() - before == expected
    transact(w3, shares.functions.mint(1_000, owner), owner)
    assert shares.functions.balanceOf(owner).call() == 1_000
    most = shares.functions.maxWithdraw(owner).call()
    transact(w3, shares.functions.withdraw(most, owner, owner), owner)
    assert shares.functions.balanceOf(owner).call() <= 1_000 - shares.functions.convertToShares(most).call()


def test_aave_is_real_and_priced_by_our_feeds(w3: Web3, addresses: dict[str, str]) -> None:
    def aave(name: str, key: str) -> object:
        return w3.eth.contract(address=Web3.to_checksum_address(addresses[key]), abi=load_aave(name)["abi"])

    pool = aave("Pool", "aave_pool")
    user = w3.eth.accounts[4]
    weth = evm_deploy.at(w3, "TestToken", addresses["weth"])
    usdc = evm_deploy.at(w3, "TestToken", addresses["usdc"])
    transact(w3, weth.functions.mint(user, 10 * 10**18))
    transact(w3, weth.functions.approve(pool.address, 2**256 - 1), user)
    transact(w3, pool.functions.supply(weth.address, 10 * 10**18, user, 0), user)
    transact(w3, pool.functions.borrow(usdc.address, 15_000 * 10**6, 2, 0, user), user)
    assert usdc.functions.balanceOf(user).call() == 15_000 * 10**6
    atoken = evm_deploy.at(w3, "TestToken", addresses["aave_atoken_weth"])
    debt = evm_deploy.at(w3, "TestToken", addresses["aave_debt_usdc"])
    assert atoken.functions.balanceOf(user).call() == 10 * 10**18
    assert debt.functions.balanceOf(user).call() >= 15_000 * 10**6
    collateral, owed, *_, health = pool.functions.getUserAccountData(user).call()
    assert collateral == 10 * ETH
    assert owed >= 15_000 * 10**8
    assert health / 10**18 == pytest.approx(10 * 3000 * 0.825 / 15_000, rel=1e-6)

    feed = evm_deploy.at(w3, "PriceFeed", addresses["feed_eth"])
    transact(w3, feed.functions.setAnswer(ETH // 2))
    assert pool.functions.getUserAccountData(user).call()[0] == 10 * ETH // 2
    transact(w3, feed.functions.setAnswer(ETH))
    oracle = aave("AaveOracle", "aave_oracle")
    prices = oracle.functions.getAssetsPrices(
        [Web3.to_checksum_address(addresses[name]) for name in ("usdc", "wbtc", "weth")]
    ).call()
    assert prices == [USDC, BTC, ETH]


def test_a_chain_can_be_deployed_without_aave(spec: evm_deploy.EvmSpec) -> None:
    with Anvil(chain_id=31401) as chain:
        found = evm_deploy.deploy_evm_chain(connect(chain.url), replace(spec, with_aave=False))
    assert not any(name.startswith("aave") for name in found)
    assert {"registry", "collateral_vault", "lender", "multicall3"} <= found.keys()
