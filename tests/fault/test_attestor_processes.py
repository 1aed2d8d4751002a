"""Four attestors and a coordinator as processes of their own, on a real chain: who is missed, and who takes over."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import tomli_w

from adapters.keys import create_key
from infra.devnet.anvil import Anvil, connect, find_free_port
from infra.devnet.evm_deploy import EvmSpec, deploy_feed, deploy_multicall3, deploy_registry
from tests.chain.evm_venues import genesis_of
from tests.worlds.documents import ALPHA, asset, chain, make_document

pytestmark = pytest.mark.chain
ROOT = Path(__file__).resolve().parents[2]
EPOCH_SECONDS, PROPOSE_AFTER = 3, 2.0
PASSPHRASE = "a passphrase"
SECONDS = 150.0
T = TypeVar("T")


def key(folder: Path, name: str, role: Any) -> str:
    path = folder / "keys" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return create_key(path, PASSPHRASE, role=role, iterations=1_000)


@dataclass
class Processes:
    """A devnet of one chain, a coordinator and four attestors; each has a folder, keys and a log of its own."""

    folder: Path
    anvil: Anvil
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [f"attestor-{i}" for i in range(4)]
        self.ports = {name: find_free_port() for name in (*self.names, "coordinator", "door")}
        members = [key(self.folder / name, "attestor", "attestor") for name in self.names]
        wires = {name: key(self.folder / name, "wire", "wire") for name in (*self.names, "coordinator")}
        payer = key(self.folder / "coordinator", "payer", "relayer")
        self.anvil.rpc("anvil_setBalance", payer, hex(10**20))
        common = self._common(members)
        rows = [
            {"index": i, "url": f"http://127.0.0.1:{self.ports[name]}", "wire": wires[name]}
            for i, name in enumerate(self.names)
        ]
        self._write("coordinator", common, {"attestors": rows}, {
            "wire_key": "wire", "wire_listen": f"127.0.0.1:{self.ports['door']}",
        })  # fmt: skip
        for i, name in enumerate(self.names):
            own = {
                "index": i,
                "key": "attestor",
                "wire_key": "wire",
                "listen": f"127.0.0.1:{self.ports[name]}",
                "coordinator": wires["coordinator"],
                "coordinator_url": f"http://127.0.0.1:{self.ports['door']}",
                "propose_after": PROPOSE_AFTER,
                "peers": [row for row in rows if row["index"] != i],
            }
            self._write(name, common, {"attestor": own}, {})

    def _common(self, members: list[str]) -> dict[str, Any]:
        w3 = connect(self.anvil.url)
        spec = EvmSpec(tuple(members), 3, int(time.time()) + 86_400, b"\x5a" * 32, {}, EPOCH_SECONDS)
        deploy_multicall3(w3)
        registry = str(deploy_registry(w3, spec).address).lower()
        feeds = [str(deploy_feed(w3, "ETH / USD", 2_000 * 10**8).address).lower() for _ in range(2)]
        self.anvil.start_blocks()
        document = make_document(members=members)
        return {
            "service": {"epoch_seconds": EPOCH_SECONDS, "max_lifetime": spec.max_lifetime},
            "deployment": document["deployment"] | {"not_after": spec.not_after},
            "chains": [chain(ALPHA, "alpha", rpc=[self.anvil.url], genesis=genesis_of(self.anvil), timeout=5.0)],
            "assets": [asset(f"{ALPHA}/slip44:60", "ETH", "native", 18, "ETH/USD", "major")],
            "sources": [
                {"name": f"feed-{i}", "feed": "ETH/USD", "kind": "chainlink", "id": f"{ALPHA}:{a}", "max_age": 86_400}
                for i, a in enumerate(feeds)
            ],
            "venues": [{"chain": ALPHA, "kind": "wallet"}],
            "destinations": [
                {"chain": ALPHA, "kind": "evm-registry", "address": registry, "clock_bound": 5, "payer_key": "payer"}
            ],
            "policy": document["policy"],
        }

    def _write(self, name: str, common: Any, tables: dict[str, Any], service: dict[str, Any]) -> None:
        folder = self.folder / name
        (folder / "passphrase").write_text(PASSPHRASE, "utf-8")
        own = {"data": str(folder), "passphrase_file": str(folder / "passphrase")}
        own["listen"] = f"127.0.0.1:{self.ports['coordinator'] if name == 'coordinator' else find_free_port()}"
        document = common | tables | {"service": common["service"] | own | service}
        (folder / "crossmargin.toml").write_text(tomli_w.dumps(document), "utf-8")

    def command(self, name: str, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "aggregator",
            *arguments,
            "--config",
            str(self.folder / name / "crossmargin.toml"),
        ]

    def start(self, *names: str) -> None:
        for name in names:
            what = ("run",) if name == "coordinator" else ("attestor", "run")
            with (self.folder / name / "log").open("ab") as log:
                self.running[name] = subprocess.Popen(self.command(name, *what), cwd=ROOT, stdout=log, stderr=log)

    def kill(self, *names: str) -> None:
        for name in names:
            process = self.running.pop(name)
            process.send_signal(signal.SIGKILL)
            process.wait(10)

    def ask(self, name: str, *arguments: str) -> Any:
        done = subprocess.run(
            self.command(name, *arguments, "--json"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['coordinator']}{path}", timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def until(self, what: str, look: Callable[[], T | None], seconds: float = SECONDS) -> T:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            dead = [name for name, process in self.running.items() if process.poll() is not None]
            assert not dead, f"{dead} ended:\n{self.logs()}"
            try:
                if (found := look()) is not None:
                    return found
            except (OSError, KeyError):
                pass
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds:g} s: {what}\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.parent.name}\n{path.read_text('utf-8', 'replace')[-3_000:]}"
            for path in sorted(self.folder.glob("*/log"))
        )

    def signed(self, name: str) -> int:
        """Return the highest epoch on an attestor's record."""
        with closing(sqlite3.connect(f"file:{self.folder / name / 'attestor.sqlite3'}?mode=ro", uri=True)) as record:
            return int(record.execute("SELECT max(epoch) FROM signed").fetchone()[0])

    def newest(self) -> dict[str, Any] | None:
        status, epoch = self.get("/v1/epochs/latest")
        return epoch if status == 200 else None

    def certified_after(self, epoch: int, signers: int = 3) -> int:
        """Wait for an epoch above ``epoch`` with at least so many signatures; return its number."""

        def look() -> int | None:
            found = self.newest()
            if found is None or len(found["signatures"]) < signers:
                return None
            number = int(found["header"]["epoch"])
            return number if number > epoch else None

        return self.until(f"an epoch above {epoch} with {signers} signatures", look)

    def produced_after(self, epoch: int) -> int | None:
        """Return an epoch above ``epoch`` that the coordinator proposed itself: only of those it has margins."""
        status, margin = self.get("/v1/accounts/ada/margin")
        number = int(margin["freshness"]["epoch"]) if status == 200 else 0
        return number if number > epoch else None


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Anvil(31337, block_time=1) as anvil:
        made = Processes(tmp_path, anvil)
        try:
            yield made
        finally:
            for process in made.running.values():
                process.kill()
                process.wait(10)


@pytest.mark.soak  # the demo, which is a test too, plays the same
@pytest.mark.timeout(900)  # processes start and stop in turn, on a machine that may be busy
def test_one_may_fail_and_two_may_not(processes: Processes) -> None:
    processes.start(*processes.names, "coordinator")
    processes.ask("coordinator", "accounts", "open", "--controller", f"{ALPHA}:0x{'ab' * 20}", "--label", "ada")
    all_four = processes.certified_after(0, signers=4)

    processes.kill("attestor-3")
    three = processes.certified_after(all_four)
    record = processes.newest()
    assert record is not None
    assert len(record["signatures"]) == 3

    processes.kill("attestor-2")

    def why() -> list[str] | None:
        status, ready = processes.get("/readyz")
        said = [r["detail"] for r in ready["reasons"] if "no quorum: 2 of the 3" in r["detail"]]
        return said if status == 503 and said else None

    (reason,) = processes.until("the reason why there is no certificate", why)
    assert "attestor-2" in reason
    assert "attestor-3" in reason
    stuck = processes.newest()

    processes.start("attestor-2", "attestor-3")
    assert stuck is not None
    back = processes.certified_after(int(stuck["header"]["epoch"]), signers=4)
    assert back > three
    status = processes.ask("attestor-2", "attestor", "status")
    assert status["starts"] == 2
    assert status["highest"] >= back


@pytest.mark.timeout(600)
def test_attestors_propose_while_the_coordinator_is_away(processes: Processes) -> None:
    processes.start(*processes.names, "coordinator")
    processes.ask("coordinator", "accounts", "open", "--controller", f"{ALPHA}:0x{'ab' * 20}", "--label", "ada")
    back = processes.certified_after(0)
    processes.kill("coordinator")
    taken_over = processes.until(
        "an epoch certified without the coordinator",
        lambda: highest if (highest := processes.signed("attestor-0")) > back + 2 else None,
    )
    processes.start("coordinator")
    after = processes.certified_after(taken_over)
    # What it proposes itself goes on from what others certified meanwhile.
    produced = processes.until("an epoch by the coordinator again", lambda: processes.produced_after(after))
    log = (processes.folder / "coordinator" / "log").read_text("utf-8")
    assert "learned" in log, "what was certified meanwhile was asked for"
    assert produced > taken_over
