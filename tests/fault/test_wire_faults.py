"""Peers that lie, stall and shout over the wire: each costs its own answer and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.wire import WireGate
from aggregator.domain.errors import Garbage, RefusedError, Unreachable
from tests.fault.wired import ASKER, DEPLOYMENT_ID, STRANGER, Echo, client, make_gate, serve, serve_echo
from tests.unit.attest.statements import ManualClock, RealClock

BODY = b"a proposal"
PATH = "/v1/attest/epoch"


async def test_a_request_and_its_answer_cross_the_wire() -> None:
    echo, clock = Echo(), RealClock()
    async with serve_echo(clock, echo) as url, client(url, clock) as peer:
        assert await peer.call("POST", PATH, BODY, seconds=20, limit=100) == b"epoch:" + BODY
        assert await peer.call("GET", "/v1/status", seconds=20, limit=100) == b"status"
        assert await peer.call("POST", "/v1/certificates", b"c", seconds=20, limit=0) == b""
    assert echo.asked == [("epoch", ASKER.address, BODY), ("learn", ASKER.address, b"c")]


class Liar:
    """An ASGI application that answers what it likes."""

    def __init__(self, status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.stall = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.requests.append((headers, body))
        answer = self.answer(scope, headers, body)
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [(k.encode(), v.encode()) for k, v in {**self.headers, **answer}.items()],
            }
        )
        if self.stall:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await send({"type": "http.response.body", "body": self.body})

    def answer(self, scope: Any, headers: dict[str, str], body: bytes) -> dict[str, str]:
        return {}


class Sealing(Liar):
    """Has the answerer's key, and may seal for another request, body or status than it should."""

    def __init__(self, *, of: str = "this", **options: Any) -> None:
        super().__init__(**options)
        self.of = of
        self.seals: list[dict[str, str]] = []

    def answer(self, scope: Any, headers: dict[str, str], body: bytes) -> dict[str, str]:
        gate = make_gate(ManualClock(0))
        gate._clock = RealClock()
        ticket = gate.admit(scope["method"], scope["path"], headers)
        sealed = {
            "this": lambda: ticket.seal(self.status, self.body),
            "status": lambda: ticket.seal(200, self.body),
            "body": lambda: ticket.seal(self.status, self.body + b"!"),
            "stranger": lambda: WireGate(DEPLOYMENT_ID, STRANGER, {}, RealClock()).seal(
                ticket._terms, ticket._signature, self.status, self.body
            ),
        }.get(self.of, lambda: ticket.seal(self.status, self.body))()
        self.seals.append(dict(sealed))
        return self.seals[0] if self.of == "first" else dict(sealed)


@pytest.mark.parametrize(
    "liar",
    [
        Liar(body=b"yes"),
        Liar(body=b"yes", headers={"x-crossmargin-signature": "zz" * 64}),
        Liar(body=b"yes", headers={"x-crossmargin-signature": "00" * 64}),
        Liar(status=302, headers={"location": "/v1/status"}),
        Liar(status=401),
        Liar(status=404),
        Sealing(of="body", body=b"yes"),
        Sealing(of="stranger", body=b"yes"),
        Sealing(of="status", status=409, body=b"yes"),
    ],
)
async def test_an_answer_the_peer_did_not_sign_is_garbage(liar: Liar) -> None:
    async with serve(liar) as url, client(url, RealClock()) as peer:
        with pytest.raises(Garbage, match=r"HTTP status \d+\) is not signed by it"):
            await peer.call("POST", PATH, BODY, seconds=20, limit=100)
    assert len(liar.requests) == 1  # no redirect is followed, nothing asked again


async def test_an_answer_to_another_request_is_garbage() -> None:
    async with serve(Sealing(of="first", body=b"yes")) as url, client(url, RealClock()) as peer:
        assert await peer.call("POST", PATH, BODY, seconds=20, limit=100) == b"yes"
        with pytest.raises(Garbage, match="is not signed by it"):
            await peer.call("POST", PATH, BODY, seconds=20, limit=100)


async def test_a_larger_answer_than_asked_for_is_not_read() -> None:
    for liar, limit in ((Liar(body=bytes(10_000)), 9_999), (Liar(status=500, body=bytes(4_097)), 1 << 20)):
        async with serve(liar) as url, client(url, RealClock()) as peer:
            with pytest.raises(Garbage, match="is larger than"):
                await peer.call("POST", PATH, BODY, seconds=20, limit=limit)


async def test_a_packed_answer_is_not_unpacked() -> None:
    bomb = Liar(body=b"\x1f\x8b not gzip", headers={"content-encoding": "gzip"})
    async with serve(bomb) as url, client(url, RealClock()) as peer:
        with pytest.raises(Garbage, match="is not signed by it"):
            await peer.call("POST", PATH, BODY, seconds=20, limit=100)
    assert "accept-encoding" not in bomb.requests[0][0]


async def test_who_does_not_finish_or_listen_is_unreachable() -> None:
    liar = Liar()
    liar.stall = True
    async with serve(liar) as url, client(url, RealClock()) as peer:
        with pytest.raises(Unreachable, match=r"no answer to /v1/attest/epoch within 0\.3 s"):
            await peer.call("POST", PATH, BODY, seconds=0.3, limit=100)
    async with client(url, RealClock()) as peer:
        with pytest.raises(Unreachable, match="cannot be reached") as error:
            await peer.call("POST", PATH, BODY, seconds=20, limit=100)
    assert url not in str(error.value)  # it may carry a password


@pytest.mark.parametrize(("status", "kind"), [(503, Unreachable), (504, Unreachable), (409, RefusedError)])
async def test_what_a_peer_says_of_a_request_is_bounded_and_printable(status: int, kind: type[Exception]) -> None:
    said = Sealing(status=status, body=b"root: \x1b[31m no\n\xff" + b"x" * 3000)
    async with serve(said) as url, client(url, RealClock()) as peer:
        with pytest.raises(kind) as error:
            await peer.call("POST", PATH, BODY, seconds=20, limit=100)
    assert "root:" in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


async def test_no_key_is_shown() -> None:
    async with client("http://user:secret@127.0.0.1:1", RealClock()) as peer:
        with pytest.raises(Unreachable) as error:
            await peer.call("GET", "/v1/status", seconds=20, limit=1)
    assert "secret" not in str(error.value)
