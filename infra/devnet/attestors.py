"""The devnet's attestors: processes of their own, each with a folder, keys, a record and providers in its own order."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from adapters.keys import create_key
from infra.devnet.anvil import find_free_port
from infra.devnet.process import spawn_bound

ITERATIONS = 10_000
"""Of the key derivation: devnet keys live for minutes, and every process decrypts its own."""
PROPOSE_AFTER = 8.0
"""Seconds after a cut from which on an attestor proposes, should nobody else have."""
STOP_SECONDS = 10


@dataclass
class Attestor:
    """One attestor: where it lives, its addresses, and its process while it runs."""

    index: int
    folder: Path
    member: str  # 0x, signs statements
    wire: str  # 0x, authenticates messages
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Its name, as the service knows it."""
        return f"attestor-{self.index}"

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.folder / "crossmargin.toml"

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process is not None and self.process.poll() is None

    def row(self) -> dict[str, Any]:
        """Return how the others reach it."""
        return {"index": self.index, "url": f"http://127.0.0.1:{self.port}", "wire": self.wire}


class Attestors:
    """All attestors of a devnet. Keys are made at once; configurations when the world is known.

    Args:
        folder: of the devnet; each attestor gets one below.
        count: how many.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.all = [self._make(folder / f"attestor-{i}", i) for i in range(count)]

    @staticmethod
    def _make(folder: Path, index: int) -> Attestor:
        keys = folder / "keys"
        keys.mkdir(mode=0o700, parents=True)
        passphrase = secrets.token_hex(16)
        (folder / "passphrase").touch(mode=0o600)
        (folder / "passphrase").write_text(passphrase, "utf-8")
        member = create_key(keys / "attestor.json", passphrase, role="attestor", iterations=ITERATIONS)
        wire = create_key(keys / "wire.json", passphrase, role="wire", iterations=ITERATIONS)
        return Attestor(index, folder, member, wire, find_free_port())

    def rows(self) -> list[dict[str, Any]]:
        """Return how each of them is reached, for the coordinator's configuration."""
        return [attestor.row() for attestor in self.all]

    def write_configs(self, settings: Mapping[str, Any], coordinator: str, door: str) -> None:
        """Write each one's configuration: the coordinator's, with folders, keys and peers of its own.

        Args:
            settings: the coordinator's document.
            coordinator: the address of its wire key.
            door: the host:port at which it hears of certificates.
        """
        for one in self.all:
            document = {k: v for k, v in settings.items() if k != "attestors"}
            service = {k: v for k, v in settings["service"].items() if not k.startswith("wire_")}
            own = {"data": str(one.folder), "passphrase_file": str(one.folder / "passphrase")}
            document["service"] = service | own
            turn = one.index  # another provider first: each looks with its own eyes
            document["chains"] = [c | {"rpc": c["rpc"][turn:] + c["rpc"][:turn]} for c in settings["chains"]]
            document["attestor"] = {
                "index": one.index,
                "key": "attestor",
                "wire_key": "wire",
                "listen": f"127.0.0.1:{one.port}",
                "coordinator": coordinator,
                "coordinator_url": f"http://{door}",
                "propose_after": PROPOSE_AFTER,
                "peers": [other.row() for other in self.all if other is not one],
            }
            one.config.write_text(tomli_w.dumps(document), "utf-8")

    def start(self, *indices: int) -> None:
        """Start those that do not run; all of them by default."""
        for one in self.all:
            if one.index in (indices or range(len(self.all))) and not one.running:
                command = [sys.executable, "-m", "aggregator", "attestor", "run", "--config", str(one.config)]
                one.process = spawn_bound(command, one.folder / "attestor.log")

    def kill(self, *indices: int) -> None:
        """End some as a crash would: SIGKILL."""
        for i in indices:
            process = self.all[i].process
            if process is not None:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """Ask all to stop, then make sure."""
        for one in self.all:
            if one.running and one.process is not None:
                one.process.send_signal(signal.SIGINT)
        for one in self.all:
            if one.process is not None:
                try:
                    one.process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    one.process.kill()
                    one.process.wait()

    def pids(self) -> list[int]:
        """Return the ids of all processes ever started here that may still run."""
        return [one.process.pid for one in self.all if one.process is not None]
