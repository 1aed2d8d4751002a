"""Run the facade as a subprocess that cannot outlive its parent."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import Request, urlopen

_ROOT = Path(__file__).parents[3]


class SvmServerError(RuntimeError):
    """The server did not start or did not answer; the message says what to do."""


class SvmServer:
    """A facade on 127.0.0.1; use it as a context manager, or call `start` and `stop`.

    Args:
        port: 0 picks a free one.
        slot_ms, confirmed_depth, finalized_depth: see `chain.Settings`.
        genesis: base58 genesis hash; random when None.
        timeout: seconds to wait for it to start, and again to stop.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        slot_ms: int = 200,
        confirmed_depth: int = 1,
        finalized_depth: int = 12,
        genesis: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._arguments = ["--port", str(port), "--slot-ms", str(slot_ms)]
        self._arguments += ["--confirmed-depth", str(confirmed_depth), "--finalized-depth", str(finalized_depth)]
        self._arguments += ["--genesis", genesis] if genesis else []
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.ws_url = ""
        self.genesis = ""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> SvmServer:
        """Start it and wait until it answers. Raises SvmServerError."""
        command = [sys.executable, "-m", "infra.devnet.svm", *self._arguments, "--follow-stdin"]
        # Nothing is ever written to its stdin: the kernel closes it when this process ends, however it ends, and the
        # child stops. (PR_SET_PDEATHSIG would follow the thread that starts it, which a pool may end at any time.)
        # A session of its own: a terminal's Ctrl-C reaches only the parent, which then stops it in order.
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            ready = json.loads(self._read_line(self._process))
        except SvmServerError:
            self.stop()
            raise
        if "error" in ready:
            self.stop()
            raise SvmServerError(ready["error"])
        self.url, self.ws_url, self.genesis = ready["url"], ready["ws_url"], ready["genesis"]
        return self

    def stop(self) -> None:
        """Terminate it, kill it if it does not obey; return when it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()

    def call(self, method: str, *params: Any) -> Any:
        """Call a JSON-RPC method, e.g. `call("x_advance", 5)`; return its result. Raises SvmServerError."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = Request(self.url, body, {"content-type": "application/json"})
        with urlopen(request, timeout=self._timeout) as response:
            answer = json.load(response)
        if "error" in answer:
            raise SvmServerError(f"{method}: {answer['error']['message']} ({answer['error']['code']})")
        return answer["result"]

    def __enter__(self) -> SvmServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        deadline, line = time.monotonic() + self._timeout, b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(process.stdout.fileno(), 4096) if readable else b""
            if not chunk:
                state = f"exited with {process.poll()}" if readable else f"said nothing for {self._timeout:.0f} s"
                raise SvmServerError(f"the Solana facade {state} before it was ready; its errors are above")
            line += chunk
        return line
