"""Run Anvil, the local EVM chain, as a child process that cannot outlive its parent.

The platform package's binary is started itself: npm's `anvil` is a Node wrapper, and killing a wrapper leaves the node
behind. A chain starts in automine, so that contracts deploy at once, and gets its clock with `start_blocks`.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eth_typing import ChecksumAddress
from web3 import HTTPProvider, Web3
from web3.contract import Contract
from web3.contract.contract import ContractFunction
from web3.types import TxParams, TxReceipt, Wei

from infra.devnet.process import spawn_bound

NODE_MODULES = Path(__file__).resolve().parent / "node_modules"
HOST = "127.0.0.1"
MNEMONIC = "test test test test test test test test test test test junk"
PRUNE_HISTORY = 64  # blocks whose state stays readable
START_SECONDS = 20.0
STOP_SECONDS = 5.0
LOG_NAME = "stderr.log"
POLL_SECONDS = 0.005
TRANSACTION_GAS = 12_000_000  # named, so that web3 asks for no estimate

_MACHINES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see loopback requests
_SYSTEMS = {"linux": "linux", "darwin": "darwin", "win32": "win32"}


class AnvilError(Exception):
    """Anvil cannot be found, started or reached; the message names the cause and the remedy."""


class AnvilRpcError(AnvilError):
    """Anvil answered a JSON-RPC request with an error."""


def find_binary() -> Path:
    """Return the Anvil executable that npm installed for this platform; raise AnvilError with the remedy if absent."""
    system = _SYSTEMS.get(sys.platform, sys.platform)
    machine = _MACHINES.get(platform.machine().lower(), platform.machine())
    name = "anvil.exe" if system == "win32" else "anvil"
    binary = NODE_MODULES / "@foundry-rs" / f"anvil-{system}-{machine}" / "bin" / name
    if not binary.exists():
        raise AnvilError(
            f"no Anvil binary for {system}-{machine}: node_modules/@foundry-rs/anvil-{system}-{machine} is missing; "
            "run `make install`"
        )
    return binary


def find_free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def verify_port_free(port: int) -> None:
    """Raise AnvilError naming the port when something listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise AnvilError(
                f"port {port} is busy: stop the program that listens on it (`lsof -i :{port}` names it), "
                "or choose another port"
            ) from error


def connect(url: str) -> Web3:
    """Return a synchronous web3 client for a local chain."""
    return Web3(HTTPProvider(url))


def transact(
    w3: Web3, function: ContractFunction, sender: ChecksumAddress | None = None, timeout: float = 30.0, tip: int = 0
) -> TxReceipt:
    """Send a contract call from an unlocked account (account 0 by default) and return its receipt.

    tip: wei per gas above what others pay; Anvil puts the best paying transaction first into a block, 0 = the usual.
    Raise web3's ContractLogicError with the reason when it reverts.
    """
    origin = sender or w3.eth.accounts[0]
    fields: TxParams = {"from": origin, "gas": TRANSACTION_GAS}
    if tip:
        base = w3.eth.get_block("latest")["baseFeePerGas"]
        fields |= {"maxPriorityFeePerGas": Wei(tip), "maxFeePerGas": Wei(2 * base + tip)}
    transaction_hash = function.transact(fields)
    receipt = w3.eth.wait_for_transaction_receipt(transaction_hash, timeout, POLL_SECONDS)
    if receipt["status"] != 1:
        function.call({"from": origin})  # raises with the revert reason, which a receipt does not carry
        raise AnvilError(f"{function.fn_name} reverted in transaction {transaction_hash.to_0x_hex()}")
    return receipt


def deploy_code(w3: Web3, abi: list[dict[str, Any]], bytecode: str, *args: Any) -> Contract:
    """Deploy initcode with constructor arguments from account 0 and return the contract.

    Raise web3's ContractLogicError with the reason when the constructor refuses.
    """
    constructor = w3.eth.contract(abi=abi, bytecode=bytecode).constructor(*args)
    origin: TxParams = {"from": w3.eth.accounts[0], "gas": TRANSACTION_GAS}
    transaction_hash = constructor.transact(origin)
    receipt = w3.eth.wait_for_transaction_receipt(transaction_hash, 30.0, POLL_SECONDS)
    if receipt["status"] != 1 or receipt["contractAddress"] is None:
        constructor.estimate_gas(origin)  # raises with the revert reason, which a receipt does not carry
        raise AnvilError(f"deployment reverted in transaction {transaction_hash.to_0x_hex()}")
    return w3.eth.contract(address=receipt["contractAddress"], abi=abi)


class Anvil:
    """One Anvil chain: `with Anvil(chain_id=31337, block_time=1) as chain: chain.url`.

    chain_id: EIP-155 id. port: TCP port on loopback, by default a free one. block_time: seconds between blocks once
    `start_blocks` was called; None keeps automine. slots_in_an_epoch: `safe` is that many blocks behind the head and
    `finalized` twice as many. All accounts come from Anvil's well-known test mnemonic.
    """

    def __init__(
        self,
        chain_id: int = 31337,
        port: int | None = None,
        *,
        block_time: int | None = None,
        slots_in_an_epoch: int = 2,
        accounts: int = 10,
        extra_args: tuple[str, ...] = (),
    ) -> None:
        self.chain_id = chain_id
        self.port = port if port is not None else find_free_port()
        self.block_time = block_time
        self.slots_in_an_epoch = slots_in_an_epoch
        self.accounts = accounts
        self.extra_args = extra_args
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._ticking = False

    @property
    def url(self) -> str:
        """HTTP address of the JSON-RPC endpoint."""
        return f"http://{HOST}:{self.port}"

    @property
    def ws_url(self) -> str:
        """WebSocket address of the JSON-RPC endpoint."""
        return f"ws://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id while running, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start the process and return once it answers; raise AnvilError when it cannot."""
        if self._process is not None:
            raise AnvilError(f"chain {self.chain_id} on port {self.port} is already started")
        binary = find_binary()
        verify_port_free(self.port)
        self._folder = tempfile.TemporaryDirectory(prefix=f"crossmargin-anvil-{self.chain_id}-")
        command = [
            str(binary),
            *("--host", HOST, "--port", str(self.port), "--chain-id", str(self.chain_id)),
            *("--mnemonic", MNEMONIC, "--accounts", str(self.accounts)),
            *("--slots-in-an-epoch", str(self.slots_in_an_epoch), "--prune-history", str(PRUNE_HISTORY)),
            *("--cache-path", self._folder.name, "--quiet"),
            *self.extra_args,
        ]
        try:
            folder = Path(self._folder.name)
            self._process = spawn_bound(command, folder / LOG_NAME, cwd=folder)
            atexit.register(self.stop)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process (terminate, then kill) and remove its files. Does nothing when it is not running."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if sys.platform != "win32":
                    process.send_signal(signal.SIGCONT)  # a frozen process would not see the next signal
                process.terminate()
                try:
                    process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(STOP_SECONDS)
        self._ticking = False
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def rpc(self, method: str, *params: Any, timeout: float = 30.0) -> Any:
        """Call a JSON-RPC method and return its result; raise AnvilRpcError when Anvil answers with an error."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        with _LOOPBACK.open(request, timeout=timeout) as response:
            answer = json.load(response)
        if "error" in answer:
            raise AnvilRpcError(f"{method} on chain {self.chain_id}: {answer['error'].get('message')}")
        return answer["result"]

    def start_blocks(self) -> None:
        """Leave automine: from now on one block every `block_time` seconds."""
        if self.block_time is None:
            raise AnvilError(f"chain {self.chain_id} has no block_time to mine at")
        self.rpc("evm_setIntervalMining", self.block_time)
        self._ticking = True

    def pause(self) -> None:
        """Halt the chain: the endpoint answers, transactions wait in the pool, no block is made."""
        self.rpc("evm_setAutomine", False)
        self.rpc("evm_setIntervalMining", 0)

    def resume(self) -> None:
        """End `pause`: mine as before it."""
        if self._ticking:
            self.start_blocks()
        else:
            self.rpc("evm_setAutomine", True)

    def mine(self, blocks: int = 1) -> None:
        """Mine blocks now."""
        self.rpc("anvil_mine", hex(blocks))

    def reorganise(self, depth: int) -> None:
        """Replace the newest `depth` blocks by as many empty ones, with the times that the clock gave the old ones.

        What their transactions did is undone and those transactions are gone: Anvil does not put them back in the pool.
        """
        # Left alone, Anvil gives all of them one time, and its clock is late by as much from then on.
        if self.block_time is not None:
            self.rpc("anvil_setBlockTimestampInterval", self.block_time)
        try:
            self.rpc("anvil_reorg", depth, [])
        finally:
            if self.block_time is not None:
                self.rpc("anvil_removeBlockTimestampInterval")
            self.rpc("evm_setTime", hex(int(time.time())))

    def freeze(self) -> None:
        """Suspend the process: requests hang until `thaw`, as with a node that is down behind an open port."""
        self._signal(signal.SIGSTOP)
        if sys.platform == "linux":  # a signal takes effect some time after it was sent
            while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(POLL_SECONDS)

    def thaw(self) -> None:
        """End `freeze`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise AnvilError(f"chain {self.chain_id} is not running")
        self._process.send_signal(number)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                stderr = Path(self._folder.name, LOG_NAME).read_text(errors="replace").strip()
                raise AnvilError(
                    f"anvil for chain {self.chain_id} on port {self.port} ended with code {self._process.returncode}: "
                    f"{stderr or 'no message'}"
                )
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                answered = int(self.rpc("eth_chainId", timeout=1.0), 16)
                if answered != self.chain_id:
                    raise AnvilError(f"port {self.port} answers as chain {answered}, not {self.chain_id}: it is taken")
                return
            time.sleep(0.01)
        raise AnvilError(f"anvil for chain {self.chain_id} on port {self.port} did not answer in {START_SECONDS:.0f} s")
