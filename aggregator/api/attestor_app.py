"""What an attestor answers over HTTP: a closed list of endpoints, each with its limits.

``POST /v1/attest/{epoch,rotation,permit,hold}`` and ``POST /v1/certificates`` take bodies of
``aggregator.service.envelope``, ``GET /v1/status`` and ``GET /v1/epoch`` (the newest certified one) give one; all are
for known peers (``adapters.wire``).
``GET /healthz`` and ``GET /metrics`` are open. There is no other, and none signs bytes that a caller chose.

A stranger learns nothing but 401 and makes nobody read its body. A known peer's answers are all signed, refusals of
its request too: 400 names the field that cannot be read, 413 and 408 a body too large or too slow, 503 that too many
requests are under way, 504 that the answer took too long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from aggregator.domain.errors import CrossmarginError, RefusedError, SourceError
from proofs.errors import FieldError

log = structlog.get_logger("wire")

Kind = Literal["epoch", "rotation", "permit", "hold"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_SAID = 500  # characters of what a peer is told


class Ticket(Protocol):
    """A request that a known peer signed."""

    sender: str  # its wire address, 0x
    name: str

    def verify_body(self, body: bytes) -> None:
        """Raise RefusedError unless ``body`` is the one that was signed."""
        ...

    def seal(self, status: int, body: bytes) -> Mapping[str, str]:
        """Return the headers that authenticate an answer."""
        ...


class Gate(Protocol):
    """Knows the peers."""

    def admit(self, method: str, path: str, headers: Mapping[str, str]) -> Ticket:
        """Check a request by its headers (names in lower case).

        Raises:
            RefusedError: it is no known peer's, or not new.
        """
        ...


class Answering(Protocol):
    """What stands behind the endpoints. Bodies are as they travelled, still packed.

    FieldError means that a body cannot be read (400), RefusedError that it contradicts what is known (409), SourceError
    that the answer depends on somebody who does not answer (503). That an attestor will not sign is an answer.
    """

    async def attest(self, kind: Kind, sender: str, body: bytes) -> bytes:
        """Return the encoded answer to a proposal or document."""
        ...

    async def learn(self, sender: str, body: bytes) -> None:
        """Take in a certificate."""
        ...

    async def status(self, sender: str) -> bytes:
        """Return the encoded status."""
        ...

    async def newest(self, sender: str) -> bytes:
        """Return the newest certified epoch, encoded; raise RefusedError where there is none."""
        ...

    def health(self) -> str:
        """Return "" or why the process does not do its work."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is taken in at once. Bytes are as they travel; whoever unpacks them bounds what they unpack to."""

    epoch_body: int = 128 << 20
    body: int = 64 << 10
    body_seconds: float = 30.0  # for a body to arrive
    answer_seconds: float = 120.0
    in_flight: int = 8
    in_flight_of_one: int = 3  # peer


class _Problem(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


_Handler = Callable[[Ticket, bytes], Awaitable[bytes]]


def create_attestor_app(
    gate: Gate, answering: Answering, *, kinds: Sequence[Kind] = KINDS, limits: Limits | None = None
) -> ASGIApp:
    """Build the application.

    Args:
        kinds: what may be asked to be signed; () for the coordinator, which only learns certificates.
    """
    return _App(gate, answering, kinds, limits or Limits())


class _App:
    def __init__(self, gate: Gate, answering: Answering, kinds: Sequence[Kind], limits: Limits) -> None:
        self._gate, self._answering, self._limits = gate, answering, limits
        self._in_flight: Counter[str] = Counter()
        self._endpoints: dict[tuple[str, str], tuple[_Handler, int]] = {
            ("POST", "/v1/certificates"): (self._learn, limits.body),
            ("GET", "/v1/status"): (lambda ticket, _: answering.status(ticket.sender), 0),
            ("GET", "/v1/epoch"): (lambda ticket, _: answering.newest(ticket.sender), 0),
        }
        for kind in kinds:
            most = limits.epoch_body if kind == "epoch" else limits.body
            self._endpoints["POST", f"/v1/attest/{kind}"] = (self._attest(kind), most)

    def _attest(self, kind: Kind) -> _Handler:
        return lambda ticket, body: self._answering.attest(kind, ticket.sender, body)

    async def _learn(self, ticket: Ticket, body: bytes) -> bytes:
        await self._answering.learn(ticket.sender, body)
        return b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket: the server closes what nobody accepts
        method, path = scope["method"], scope["path"]
        if method == "GET" and path in ("/healthz", "/metrics"):
            await self._tell(path, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        endpoint = self._endpoints.get((method, path))
        if endpoint is None or scope.get("query_string"):
            await _send(send, 404, b"")
            return
        try:
            ticket = self._gate.admit(method, path, headers)
        except RefusedError as error:
            log.info("request refused", path=path, cause=error.reason)
            await _send(send, 401, b"")
            return
        status, body = await self._serve(ticket, *endpoint, headers, receive)
        await _send(send, status, body, await asyncio.to_thread(ticket.seal, status, body))  # a token takes a moment

    async def _serve(
        self, ticket: Ticket, handler: _Handler, most: int, headers: Mapping[str, str], receive: Receive
    ) -> tuple[int, bytes]:
        limits = self._limits
        if self._in_flight.total() >= limits.in_flight or self._in_flight[ticket.sender] >= limits.in_flight_of_one:
            return 503, b"too many requests are under way; try again"
        self._in_flight[ticket.sender] += 1
        try:
            body = await self._read(headers, most, receive)
            await asyncio.to_thread(ticket.verify_body, body)
            async with asyncio.timeout(limits.answer_seconds):
                return 200, await handler(ticket, body)
        except _Problem as problem:
            return problem.status, str(problem).encode()
        except FieldError as error:
            return 400, _said(error)
        except RefusedError as error:
            return 409, _said(error)
        except SourceError as error:
            return 503, _said(error)
        except TimeoutError:
            return 504, b"the answer took too long"
        except CrossmarginError as error:
            return 409, _said(error)
        except Exception:  # a defect costs its request; its text may hold anything
            log.exception("request met a defect", peer=ticket.name)
            return 500, b"the attestor failed; see its log"
        finally:
            self._in_flight[ticket.sender] -= 1

    async def _read(self, headers: Mapping[str, str], most: int, receive: Receive) -> bytes:
        """Return the body, of at most ``most`` bytes."""
        announced = headers.get("content-length", "0")
        too_large = _Problem(413, f"body: larger than {most} bytes")
        if len(announced) > 18 or (announced.isdecimal() and int(announced) > most):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Problem(400, "body: the sender left")
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise _Problem(408, f"body: not complete after {self._limits.body_seconds:g} s") from None
        return bytes(body)

    async def _tell(self, path: str, send: Send) -> None:
        if path == "/metrics":
            await _send(send, 200, generate_latest(), {"content-type": CONTENT_TYPE_LATEST})
            return
        problem = self._answering.health()
        await _send(send, 503 if problem else 200, (problem or "ok").encode(), {"content-type": "text/plain"})


def _said(error: Exception) -> bytes:
    return "".join(c if c.isprintable() else " " for c in str(error)[:_SAID]).encode(errors="replace")


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _send(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    every = {"content-type": "application/octet-stream", "cache-control": "no-store", **(headers or {})}
    every["content-length"] = str(len(body))
    packed = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": packed})
    await send({"type": "http.response.body", "body": body})
