"""The control port of a running demo, and the command line's way to it.

GET /faults lists them; POST /faults {"name", "on", "chain", "provider"} turns one on or off. The demo's address is in
``.run/devnet.json`` while it runs.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Protocol

ADDRESS = Path(".run/devnet.json")
_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see loopback requests


class ControlError(Exception):
    """No demo runs here, or it refuses; the message says which."""


class FaultError(ValueError):
    """The fault cannot be turned on or off like this; the message says why and what would work."""


class Outcome(NamedTuple):
    """What was done, where it shows, and the page of ``docs/operators`` about it."""

    did: str
    look: tuple[str, ...]
    guide: str


class Switches(Protocol):
    """What the control port steers: :class:`infra.devnet.faults.Faults`."""

    def turn(self, name: str, on: bool, chain: str | None = None, provider: int | str | None = None) -> Outcome: ...

    def state(self) -> list[dict[str, Any]]: ...


class ControlPort:
    """A control port on the loopback interface: ``with ControlPort(faults, page) as port``.

    Args:
        page: address of the service, told to those who look for the demo.
        place: file that names the port while it is open.
    """

    def __init__(self, faults: Switches, page: str, place: Path = ADDRESS) -> None:
        self._place, self._page = place, page
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(faults))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ControlPort:
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="control", daemon=True).start()
        self._place.parent.mkdir(parents=True, exist_ok=True)
        self._place.write_text(json.dumps({"control": self.url, "page": self._page}) + "\n", "utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._place.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()


def _handler(faults: Switches) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/faults":
                self._answer(200, {"faults": faults.state()})
            else:
                self._answer(404, {"error": f"{self.path}: /faults expected"})

        def do_POST(self) -> None:
            # A page in somebody's browser may send other types here unasked, but not this one.
            if self.path != "/faults" or self.headers.get("content-type") != "application/json":
                self._answer(400, {"error": "POST /faults with content-type application/json expected"})
                return
            try:
                wanted = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
                if not isinstance(wanted, dict) or not isinstance(wanted.get("on"), bool):
                    raise FaultError("on: true or false expected")
                outcome = faults.turn(
                    str(wanted.get("name")), wanted["on"], wanted.get("chain"), wanted.get("provider")
                )
            except ValueError as error:
                self._answer(400, {"error": str(error)})
            else:
                self._answer(200, outcome._asdict())

        def _answer(self, status: int, body: Mapping[str, object]) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the terminal belongs to the demo."""

    return Handler


def ask(wanted: Mapping[str, object] | None, place: Path = ADDRESS) -> dict[str, Any]:
    """Ask the running demo for its faults (None), or turn one on or off; return its answer.

    Raises:
        ControlError: no demo runs, or it refuses.
    """
    try:
        url = json.loads(place.read_text("utf-8"))["control"] + "/faults"
    except FileNotFoundError:
        raise ControlError(f"no demo runs here: there is no {place}; start one with `make demo`") from None
    body = None if wanted is None else json.dumps(wanted).encode()
    try:
        with _LOOPBACK.open(
            urllib.request.Request(url, body, {"content-type": "application/json"}), timeout=60
        ) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise ControlError(json.load(error)["error"]) from None
    except OSError:
        raise ControlError(f"no demo runs any more at {url}, which {place} names; start one with `make demo`") from None
    return answer
