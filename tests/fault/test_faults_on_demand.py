"""Faults on demand: the providers in front of a real Anvil, the control port, and the command line that reaches it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import psutil
import pytest
import websockets

from infra.devnet.anvil import Anvil
from infra.devnet.control import ADDRESS, ControlPort, FaultError
from infra.devnet.evm_deploy import at, deploy_sequencer_feed, deploy_token
from infra.devnet.faults import FAULTS, Faults
from infra.devnet.providers.process import ProviderError, Providers
from infra.devnet.providers.proxy import MODES, STREAMED, FaultProxy, Mode
from infra.devnet.svm.process import SvmServer
from infra.devnet.world import EvmChain, World

pytestmark = pytest.mark.chain
ROOT = Path(__file__).resolve().parents[2]
NODES = ("alpha", "beta", "sol")


@pytest.fixture(scope="module")
def alpha() -> Iterator[Anvil]:
    with Anvil(31337, block_time=1) as node:
        yield node


@pytest.fixture(scope="module")
def beta() -> Iterator[Anvil]:
    with Anvil(31338, block_time=2) as node:
        yield node


@pytest.fixture(scope="module")
def svm() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=100) as server:
        yield server


@pytest.fixture(scope="module")
def providers(
    alpha: Anvil, beta: Anvil, svm: SvmServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Providers]:
    nodes = {"alpha": (alpha.url, beta.url), "beta": (beta.url, alpha.url), "sol": (svm.url, "")}
    with Providers().start(nodes, tmp_path_factory.mktemp("providers") / "log") as running:
        yield running


@pytest.fixture(autouse=True)
def honest_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "providers" in request.fixturenames:
        for chain in NODES:
            request.getfixturevalue("providers").turn(chain, None, "pass")


def ask(url: str, method: str, *params: Any, timeout: float = 5) -> Any:
    """Return the answer of a provider, result or error."""
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    return httpx.post(url, json=body, timeout=timeout, trust_env=False).json()


# The proxies


def test_honest_providers_are_the_node(providers: Providers, alpha: Anvil, beta: Anvil, svm: SvmServer) -> None:
    assert providers.modes() == {chain: ["pass"] * 3 for chain in NODES}
    assert len({url for chain in NODES for url in providers.urls(chain)}) == 9
    for chain, node in (("alpha", alpha), ("beta", beta)):
        assert {ask(url, "eth_chainId")["result"] for url in providers.urls(chain)} == {hex(node.chain_id)}
    assert {ask(url, "getGenesisHash")["result"] for url in providers.urls("sol")} == {svm.genesis}


def test_one_provider_turns_and_turns_back_the_others_stay(providers: Providers) -> None:
    assert providers.turn("alpha", 1, "dead")["alpha"] == ["pass", "dead", "pass"]
    first, second, third = providers.urls("alpha")
    with pytest.raises(httpx.TransportError):
        ask(second, "eth_chainId")
    for url in (first, third, *providers.urls("beta")):
        assert "result" in ask(url, "eth_chainId")
    assert providers.turn("alpha", None, "pass")["alpha"] == ["pass"] * 3
    assert "result" in ask(second, "eth_chainId")


def test_each_mode_shows(providers: Providers, alpha: Anvil, svm: SvmServer) -> None:
    url = providers.urls("alpha")[0]

    def turned(mode: Mode) -> str:
        providers.turn("alpha", 0, mode)
        return url

    head = int(alpha.rpc("eth_blockNumber"), 16)
    for status in ("429", "500"):
        assert httpx.post(turned(cast(Mode, status)), json={"method": "x"}, trust_env=False).status_code == int(status)
    assert httpx.post(turned("garbage"), json={}, trust_env=False).content == b"<html>maintenance</html>"
    assert ask(turned("wrong-chain"), "eth_chainId")["result"] == hex(31338)
    assert ask(turned("wrong-id"), "eth_chainId")["id"] != 7
    with pytest.raises(httpx.TimeoutException):
        ask(turned("slow"), "eth_chainId", timeout=0.3)
    turned("stale")
    alpha.mine(2)
    assert ask(url, "eth_blockNumber")["result"] == hex(head)
    assert ask(url, "eth_getBlockByNumber", "latest", False)["result"]["number"] == hex(head)
    assert ask(url, "eth_getBlockByNumber", hex(head + 1), False)["result"] is None
    newest = alpha.rpc("eth_getBlockByNumber", "latest", False)["hash"]
    assert ask(url, "eth_getBlockByHash", newest, False)["result"] is None
    honest = alpha.rpc("eth_getBlockByNumber", "latest", False)
    later = ask(turned("future"), "eth_getBlockByNumber", "latest", False)["result"]
    assert int(later["timestamp"], 16) - int(honest["timestamp"], 16) == 3_600
    proof = ("0x" + "11" * 20, [], "latest")
    assert ask(turned("bad-proof"), "eth_getProof", *proof)["result"] != alpha.rpc("eth_getProof", *proof)
    providers.turn("sol", 0, "wrong-chain")
    assert ask(providers.urls("sol")[0], "getGenesisHash")["result"] != svm.genesis


def test_every_mode_can_be_turned_on(providers: Providers) -> None:
    for mode in MODES:
        for chain in ("alpha", "sol"):
            assert providers.turn(chain, 2, mode)[chain][2] == mode


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"chain": "gamma", "provider": 0, "mode": "dead"}, "chain: 'gamma' is unknown; known: alpha, beta, sol"),
        ({"chain": "alpha", "provider": 3, "mode": "dead"}, "provider: 3 given, 0 to 2 expected"),
        ({"chain": "alpha", "provider": 0, "mode": "kind"}, "mode: 'kind' is unknown"),
    ],
)
def test_what_is_unknown_is_refused(providers: Providers, wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        providers.turn(**wanted)
    assert providers.modes() == {chain: ["pass"] * 3 for chain in NODES}


def test_a_strangers_page_cannot_steer_the_providers(providers: Providers) -> None:
    body = {"chain": "alpha", "provider": 0, "mode": "dead"}
    plain = httpx.post(providers.control, content=json.dumps(body), headers={"content-type": "text/plain"})
    assert plain.status_code == 400
    assert providers.modes()["alpha"] == ["pass"] * 3


def test_the_providers_end_with_whoever_started_them(tmp_path: Path, alpha: Anvil) -> None:
    script = (
        "import sys, time; from pathlib import Path; from infra.devnet.providers.process import Providers\n"
        f"print(Providers().start({{'alpha': ({alpha.url!r}, '')}}, Path({str(tmp_path / 'log')!r})).pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        assert psutil.wait_procs([child], timeout=10)[1] == []


# Websockets, on the same port


async def subscribed(socket: Any, what: Any) -> str:
    params = what if isinstance(what, list) else [what]
    await socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": params}))
    answer = json.loads(await socket.recv())
    return str(answer["result"])


@pytest.fixture
async def proxy(alpha: Anvil) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(alpha.url) as made:
        yield made


async def test_a_websocket_passes_and_is_cut_by_a_switch(proxy: FaultProxy, alpha: Anvil) -> None:
    async with websockets.connect(proxy.ws_url, proxy=None) as socket:
        number = await subscribed(socket, "newHeads")
        await asyncio.to_thread(alpha.mine)
        told = json.loads(await socket.recv())
        assert told["params"]["subscription"] == number
        assert proxy.requests[STREAMED] >= 2
        await proxy.turn("dead")
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
    with pytest.raises((OSError, websockets.WebSocketException)):
        await websockets.connect(proxy.ws_url, proxy=None)


async def test_left_out_logs_are_missing_in_both_ways_and_heads_are_not(proxy: FaultProxy, alpha: Anvil) -> None:
    from infra.devnet.anvil import connect, transact

    token = await asyncio.to_thread(deploy_token, connect(alpha.url), "T", "T", 6)
    logs = ["logs", {"address": token.address}]
    watched = {"address": token.address, "fromBlock": "0x0"}

    async def told_of_a_transfer() -> list[bool]:
        """Return, for each notification of one minted block, whether it is a log."""
        async with websockets.connect(proxy.ws_url, proxy=None) as socket:
            await subscribed(socket, logs)
            await subscribed(socket, "newHeads")
            await asyncio.to_thread(transact, connect(alpha.url), token.functions.mint(token.address, 5))
            seen = list[bool]()
            while False not in seen or (proxy.mode == "pass" and True not in seen):
                seen.append("topics" in json.loads(await socket.recv())["params"]["result"])
            await asyncio.to_thread(alpha.mine)  # whatever was told late of the first block comes before this head
            while "parentHash" not in (told := json.loads(await socket.recv())["params"]["result"]):
                seen.append("topics" in told)
            return seen

    assert True in await told_of_a_transfer()
    assert (await asyncio.to_thread(ask, proxy.url, "eth_getLogs", watched))["result"]
    await proxy.turn("truncated-logs")
    assert True not in await told_of_a_transfer()
    assert (await asyncio.to_thread(ask, proxy.url, "eth_getLogs", watched))["result"] == []


async def test_a_stale_provider_tells_nothing_new(proxy: FaultProxy, alpha: Anvil) -> None:
    await proxy.turn("stale")
    async with websockets.connect(proxy.ws_url, proxy=None) as socket:
        await subscribed(socket, "newHeads")
        await asyncio.to_thread(alpha.mine)
        await socket.send(json.dumps({"jsonrpc": "2.0", "id": 2, "method": "eth_chainId", "params": []}))
        assert json.loads(await socket.recv())["id"] == 2  # nothing came before it


# What replaces blocks


def blocks_of(node: Anvil, first: int, last: int) -> list[dict[str, Any]]:
    return [node.rpc("eth_getBlockByNumber", hex(i), False) for i in range(first, last + 1)]


def test_a_reorganised_chain_keeps_its_clock_and_goes_on(beta: Anvil) -> None:
    beta.mine(30)
    sender, receiver = beta.rpc("eth_accounts")[:2]
    sent = beta.rpc("eth_sendTransaction", {"from": sender, "to": receiver, "value": "0x1"})
    beta.mine(2)
    head = int(beta.rpc("eth_blockNumber"), 16)
    before = blocks_of(beta, head - 10, head)
    beta.reorganise(6)
    after = blocks_of(beta, head - 10, head)
    assert [b["hash"] for b in before[:5]] == [a["hash"] for a in after[:5]]
    assert not {b["hash"] for b in before[5:]} & {a["hash"] for a in after[5:]}
    assert all(one["hash"] == other["parentHash"] for one, other in pairwise(after))
    assert beta.rpc("eth_getTransactionReceipt", sent) is None
    times = [int(a["timestamp"], 16) for a in after]
    assert times == sorted(times)
    again = beta.rpc("eth_sendTransaction", {"from": sender, "to": receiver, "value": "0x1"})
    beta.mine()
    assert beta.rpc("eth_getTransactionReceipt", again)["status"] == "0x1"
    newest = int(beta.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    assert abs(newest - time.time()) < 60, "its clock is not late by what was replaced"


# The switches, the control port and the command line


@pytest.fixture
def world(alpha: Anvil, beta: Anvil, svm: SvmServer, providers: Providers) -> World:
    """What the switches use of a running devnet, without its contracts and its service."""
    made = World.__new__(World)
    made.providers, made.svm, made.listen_port = providers, svm, 1
    made.alpha = EvmChain("eip155:31337", "alpha", alpha, 1, 3, 12, 9, 20)
    made.beta = EvmChain("eip155:31338", "beta", beta, 2, 2, 8, 6, 14, has_sequencer=True)
    for chain in made.chains:
        chain.ready_height = int(chain.node.rpc("eth_blockNumber"), 16)
    return made


@pytest.fixture
def demo(world: World, tmp_path: Path) -> Iterator[Path]:
    """A folder in which the command line finds a control port."""
    with ControlPort(Faults(world), world.url, tmp_path / ADDRESS):
        yield tmp_path


def fault(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.devnet", "fault", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_turns_a_fault_on_and_off(demo: Path, providers: Providers) -> None:
    on = fault(demo, "lying", "on", "--chain", "beta", "--provider", "1")
    assert (on.returncode, on.stderr) == (0, "")
    assert on.stdout.startswith("beta[1] is lying: multiplies every amount by ten\n")
    assert "crossmargin disputes" in on.stdout
    assert "docs/operators/lying-provider.md" in on.stdout
    assert providers.modes()["beta"] == ["pass", "lying", "pass"]
    listed = json.loads(fault(demo, "list", "--json").stdout)["faults"]
    assert {row["name"]: row["on"] for row in listed if row["on"]} == {"lying": ["beta[1]"]}
    assert "beta[1]" in fault(demo, "list").stdout
    off = json.loads(fault(demo, "lying", "off", "--chain", "beta", "--json").stdout)
    assert off["did"] == "no provider of beta is lying any more"
    assert providers.modes()["beta"] == ["pass"] * 3


def test_all_providers_turn_together(demo: Path, providers: Providers) -> None:
    assert "every provider of alpha is dead" in fault(demo, "dead", "--provider", "all").stdout
    assert providers.modes()["alpha"] == ["dead"] * 3
    fault(demo, "dead", "off")
    assert providers.modes()["alpha"] == ["pass"] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("kindness",), "no fault is called 'kindness'; known: lying, dead,"),
        (("dead", "--chain", "gamma"), "no chain is called 'gamma'; known: alpha, beta, sol"),
        (("dead", "--provider", "9"), "provider: 9 given, 0 to 2 expected"),
        (("dead", "--provider", "some"), """provider: 'some' given, a number or "all" expected"""),
        (("sequencer", "--chain", "alpha"), "sequencer cannot happen on alpha, only on beta"),
        (("halt", "--provider", "1"), "halt does not concern a provider: leave --provider out"),
        (("prices", "--chain", "alpha"), "prices concerns the whole devnet: leave --chain out"),
        (("reorg", "off"), "reorg happens once and is over at once: there is nothing to turn off"),
        (("reorg",), "reorg would undo the set-up of alpha: try again in 9 s"),
        (("deep-reorg", "--chain", "sol"), "finalized slots of Solana are never replaced"),
    ],
)
def test_what_cannot_be_done_is_said_and_fails(demo: Path, arguments: tuple[str, ...], said: str) -> None:
    done = fault(demo, *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_without_a_demo_the_command_line_says_so(tmp_path: Path) -> None:
    nothing = fault(tmp_path, "list")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "no demo runs here" in nothing.stderr
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (tmp_path / ADDRESS).parent.mkdir()
        left = {"control": f"http://127.0.0.1:{unused.getsockname()[1]}", "page": ""}
        (tmp_path / ADDRESS).write_text(json.dumps(left))
        gone = fault(tmp_path, "dead", "on")
    assert gone.returncode == 1
    assert "no demo runs any more" in gone.stderr


def test_the_address_goes_with_the_demo(world: World, tmp_path: Path) -> None:
    place = tmp_path / ADDRESS
    with ControlPort(Faults(world), world.url, place) as port:
        assert json.loads(place.read_text())["control"] == port.url
        plain = urllib.request.Request(port.url + "/faults", b'{"name": "dead", "on": true}')
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(plain)
    assert not place.exists()


def test_a_reorg_and_a_halt_of_both_families(world: World, alpha: Anvil, svm: SvmServer) -> None:
    faults = Faults(world)
    alpha.mine(25)
    head = int(alpha.rpc("eth_blockNumber"), 16)
    kept, replaced = (alpha.rpc("eth_getBlockByNumber", hex(head - i), False)["hash"] for i in (9, 8))
    assert "no irreversible block" in faults.turn("reorg", True).did
    assert alpha.rpc("eth_getBlockByNumber", hex(head - 9), False)["hash"] == kept
    assert alpha.rpc("eth_getBlockByNumber", hex(head - 8), False)["hash"] != replaced
    assert "an irreversible block" in faults.turn("deep-reorg", True).did
    assert alpha.rpc("eth_getBlockByNumber", hex(head - 9), False)["hash"] != kept
    alpha.start_blocks()
    faults.turn("halt", True, "alpha")
    assert {row["name"]: row["on"] for row in faults.state()}["halt"] == ["alpha"]
    assert alpha.rpc("anvil_getIntervalMining") in (None, 0)
    faults.turn("halt", False, "alpha")
    assert alpha.rpc("anvil_getIntervalMining") == 1
    assert "replaced" in faults.turn("reorg", True, "sol").did
    faults.turn("halt", True, "sol")
    assert svm.call("x_status")["paused"] is True
    faults.turn("halt", False, "sol")
    assert svm.call("x_status")["paused"] is False


def test_the_sequencer_feed_says_since_when(world: World, beta: Anvil) -> None:
    w3 = world.beta.w3
    since = int(time.time()) - 86_400
    feed = deploy_sequencer_feed(w3, since)
    world.beta.contracts["sequencer_feed"] = feed.address
    read = at(w3, "SequencerFeed", feed.address).functions.latestRoundData()
    assert read.call()[1:3] == [0, since]
    faults = Faults(world)
    faults.turn("sequencer", True)
    beta.mine()
    _, answer, started, *_ = read.call()
    assert (answer, started > since) == (1, True)
    faults.turn("sequencer", False)
    beta.mine()
    assert read.call()[1] == 0
    assert read.call()[2] >= started


def test_every_fault_has_its_page_and_every_page_its_place() -> None:
    guides = {fault.guide for fault in FAULTS.values()}
    folder = ROOT / "docs" / "operators"
    assert {guide for guide in guides if not (folder / guide).is_file()} == set()
    index = (folder / "README.md").read_text("utf-8")
    assert {page.name for page in folder.glob("*.md") if f"]({page.name})" not in index} == {"README.md"}


def test_no_world_is_asked_for_what_is_refused() -> None:
    with pytest.raises(FaultError):
        Faults(cast(World, SimpleNamespace())).turn("reorg", False)
