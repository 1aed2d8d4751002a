"""Run the providers as one child process and steer them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infra.devnet.process import spawn_bound
from infra.devnet.providers.proxy import MODES, Mode

__all__ = ["MODES", "Mode", "ProviderError", "Providers"]

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 20.0
_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see loopback requests


class ProviderError(Exception):
    """The providers did not start, or refuse what was asked; the message says why."""


class Providers:
    """Several providers in front of each node: ``with Providers().start({"alpha": (url, other_url)}, log) as them``.

    Args:
        count: providers per node.
    """

    def __init__(self, count: int = 3) -> None:
        self.count = count
        self.control = ""
        self._addresses: dict[str, list[str]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while running, else None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self, nodes: Mapping[str, tuple[str, str]], log: Path) -> Self:
        """Start the process and return once it listens.

        Args:
            nodes: by chain name, the node's address and that of another chain's node ("" = its identity is falsified).
            log: file that its output goes to.

        Raises:
            ProviderError: it ended or stayed silent; with what it said.
        """
        rows = [part for name, (url, elsewhere) in nodes.items() for part in ("--node", name, url, elsewhere)]
        command = [sys.executable, "-m", "infra.devnet.providers", "--count", str(self.count), *rows]
        self._process = spawn_bound(command, log, cwd=ROOT)
        deadline = time.monotonic() + START_SECONDS
        while not (said := log.read_text("utf-8", "replace")).endswith("}\n"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ProviderError(f"the providers did not start: {said.strip() or 'they said nothing'}")
            time.sleep(0.02)
        ready = json.loads(said.splitlines()[-1])
        self.control, self._addresses = ready["control"], ready["providers"]
        return self

    def stop(self) -> None:
        """End the process; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it holds nothing that would need an orderly end
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def urls(self, chain: str) -> list[str]:
        """Return the HTTP addresses of a chain's providers."""
        return [f"http://{address}" for address in self._addresses[chain]]

    def ws_urls(self, chain: str) -> list[str]:
        """Return the websocket addresses of a chain's providers: the same ports."""
        return [f"ws://{address}" for address in self._addresses[chain]]

    def modes(self) -> dict[str, list[Mode]]:
        """Return what every provider is now, by chain."""
        modes: dict[str, list[Mode]] = self._ask(None)
        return modes

    def turn(self, chain: str, provider: int | None, mode: Mode) -> dict[str, list[Mode]]:
        """Turn one provider of a chain, or all (None), into such a one; return what every provider is then.

        Raises:
            ProviderError: no such chain, provider or mode.
        """
        modes: dict[str, list[Mode]] = self._ask({"chain": chain, "provider": provider, "mode": mode})
        return modes

    def _ask(self, wanted: Mapping[str, object] | None) -> Any:
        body = None if wanted is None else json.dumps(wanted).encode()
        request = urllib.request.Request(self.control, body, {"content-type": "application/json"})
        try:
            with _LOOPBACK.open(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise ProviderError(json.load(error)["error"]) from None
        except OSError as error:
            raise ProviderError(f"the providers do not answer at {self.control}: {error}") from None
