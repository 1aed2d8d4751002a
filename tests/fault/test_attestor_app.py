"""The attestor's endpoints: a closed list, known peers, limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from aggregator import bootstrap
from aggregator.api.attestor_app import KINDS, Limits, create_attestor_app
from aggregator.domain.errors import Garbage, InputError, RefusedError, Unavailable, Unreachable
from proofs.errors import FieldError
from tests.fault.wired import STRANGER, Echo, client, make_gate, serve_echo
from tests.unit.attest.statements import RealClock
from tests.unit.attest.test_wire import signed

CLOCK = RealClock()
PLENTY = 1 << 28  # bytes: more than any buffer on the way holds


async def call(url: str, path: str, body: bytes = b"b", **options: Any) -> bytes:
    async with client(url, CLOCK, **options) as peer:
        return await peer.call("POST", path, body, seconds=20, limit=1 << 20)


async def test_every_kind_has_its_endpoint_and_nothing_else_has() -> None:
    echo = Echo()
    async with serve_echo(CLOCK, echo) as url:
        for kind in KINDS:
            assert await call(url, f"/v1/attest/{kind}") == kind.encode() + b":b"
        for path in ("/v1/attest/bytes", "/v1/attest/", "/v1/sign", "/", "/docs", "/v1/attest/epoch?raw=1"):
            with pytest.raises(Garbage, match="HTTP status 404"):
                await call(url, path)
        async with client(url, CLOCK) as peer:
            with pytest.raises(Garbage, match="HTTP status 404"):
                await peer.call("GET", "/v1/attest/epoch", seconds=20, limit=1)
    assert [kind for kind, *_ in echo.asked] == list(KINDS)


async def test_a_coordinator_is_asked_for_no_signature() -> None:
    echo = Echo()
    async with serve_echo(CLOCK, echo, kinds=()) as url:
        with pytest.raises(Garbage, match="HTTP status 404"):
            await call(url, "/v1/attest/epoch")
        assert await call(url, "/v1/certificates") == b""
    assert [kind for kind, *_ in echo.asked] == ["learn"]


class Endless:
    """A body without an end, for as long as somebody takes it."""

    def __init__(self) -> None:
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.sent < PLENTY:
            self.sent += 1 << 16
            yield bytes(1 << 16)


async def test_a_stranger_learns_nothing_and_is_not_read() -> None:
    echo, endless, seen = Echo(), Endless(), []
    async with serve_echo(CLOCK, echo) as url, aiohttp.ClientSession() as session:
        for headers in ({}, signed(STRANGER, time=CLOCK.now())):
            async with session.post(url + "/v1/attest/epoch", headers=headers, data=b"b") as answer:
                assert (answer.status, await answer.read()) == (401, b"")
                assert "x-crossmargin-signature" not in answer.headers
        with contextlib.suppress(aiohttp.ClientError, OSError):  # the server may hang up before we have its answer
            async with session.post(url + "/v1/attest/epoch", headers=signed(STRANGER), data=endless) as answer:
                seen.append(answer.status)
    assert seen in ([], [401])
    assert endless.sent < PLENTY
    assert echo.asked == []


async def test_a_replayed_request_is_a_strangers() -> None:
    echo = Echo()
    async with serve_echo(CLOCK, echo) as url, aiohttp.ClientSession() as session:
        headers = signed(time=CLOCK.now() + 1)
        for expected in (200, 401):
            async with session.post(url + "/v1/attest/epoch", headers=headers, data=b"a proposal") as answer:
                assert answer.status == expected
        headers = signed(time=CLOCK.now() + 1, nonce=b"\x01" * 16)
        async with session.post(url + "/v1/attest/epoch", headers=headers, data=b"another") as answer:
            assert (answer.status, await answer.read()) == (409, b"wire: the body is not the one that was signed")
    assert len(echo.asked) == 1


async def test_a_body_beyond_its_endpoints_limit_is_refused() -> None:
    echo, limits = Echo(), Limits(epoch_body=2_000, body=1_000)
    async with serve_echo(CLOCK, echo, limits) as url:
        assert len(await call(url, "/v1/attest/epoch", bytes(2_000))) == 2_006
        for path, size in (("/v1/attest/epoch", 2_001), ("/v1/attest/permit", 1_001), ("/v1/certificates", 1_001)):
            with pytest.raises(RefusedError, match=f"body: larger than {size - 1} bytes"):
                await call(url, path, bytes(size))
        async with client(url, CLOCK) as peer:
            with pytest.raises(RefusedError, match="body: larger than 0 bytes"):
                await peer.call("GET", "/v1/status", b"b", seconds=20, limit=10)
    assert len(echo.asked) == 1


async def test_a_body_of_unknown_length_stops_at_the_limit() -> None:
    echo, endless, seen = Echo(), Endless(), []
    async with serve_echo(CLOCK, echo, Limits(body=1 << 16)) as url, aiohttp.ClientSession() as session:
        headers = signed(time=CLOCK.now() + 1, path="/v1/attest/permit")
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with session.post(url + "/v1/attest/permit", headers=headers, data=endless) as answer:
                seen.append(answer.status)
    assert seen in ([], [413])
    assert endless.sent < PLENTY
    assert echo.asked == []


async def test_a_body_that_trickles_is_given_up() -> None:
    echo = Echo()
    async with serve_echo(CLOCK, echo, Limits(body_seconds=0.2)) as url, aiohttp.ClientSession() as session:

        async def slow() -> Any:
            yield b"a"
            await asyncio.sleep(1.5)
            yield b"b"

        headers = signed(time=CLOCK.now() + 1)
        async with session.post(url + "/v1/attest/epoch", headers=headers, data=slow()) as answer:
            assert answer.status == 408
            assert "x-crossmargin-signature" in answer.headers
    assert echo.asked == []


async def test_more_at_once_than_allowed_is_sent_away() -> None:
    echo = Echo()
    echo.gate.clear()
    async with serve_echo(CLOCK, echo, Limits(in_flight_of_one=2)) as url:
        waiting = [asyncio.create_task(call(url, "/v1/attest/epoch")) for _ in range(2)]
        await echo.two.wait()
        with pytest.raises(Unreachable, match="too many requests are under way"):
            await call(url, "/v1/attest/hold")
        echo.gate.set()
        assert await asyncio.gather(*waiting) == [b"epoch:b"] * 2
        assert await call(url, "/v1/attest/hold") == b"hold:b"


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    echo = Echo()
    echo.gate.clear()
    async with serve_echo(CLOCK, echo, Limits(answer_seconds=0.1)) as url:
        with pytest.raises(Unreachable, match="the answer took too long"):
            await call(url, "/v1/attest/epoch")
        echo.gate.set()
        assert await call(url, "/v1/attest/epoch") == b"epoch:b"  # its place was given back


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (FieldError("cut.blocks", "a list expected"), RefusedError, "cut.blocks: a list expected"),
        (RefusedError("certificate", "not signed"), RefusedError, "certificate: not signed"),
        (InputError("terms", "is odd"), RefusedError, "terms: is odd"),
        (Unavailable("anvil", "no such block"), Unreachable, "anvil: no such block"),
        (ZeroDivisionError("secret"), RefusedError, "the attestor failed; see its log"),
    ],
)
async def test_what_goes_wrong_behind_an_endpoint_is_signed(
    raised: Exception, kind: type[Exception], said: str
) -> None:
    echo = Echo()
    echo.raises = raised
    async with serve_echo(CLOCK, echo) as url:
        with pytest.raises(kind) as error:
            await call(url, "/v1/attest/epoch")
    assert said in str(error.value)
    assert "secret" not in str(error.value)


async def test_health_and_metrics_are_open() -> None:
    echo = Echo()
    async with serve_echo(CLOCK, echo) as url, aiohttp.ClientSession() as session:
        async with session.get(url + "/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok")
        echo.problem = "anvil is dark"
        async with session.get(url + "/healthz") as answer:
            assert (answer.status, await answer.text()) == (503, "anvil is dark")
        async with session.get(url + "/metrics") as answer:
            assert answer.status == 200
            assert "# TYPE" in await answer.text()


async def test_connections_beyond_the_limit_are_told_to_come_later() -> None:
    """Strangers may open connections, and must not take what known peers need of memory and descriptors."""
    server = bootstrap._server(create_attestor_app(make_gate(CLOCK), Echo()), connections=2)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    running = asyncio.create_task(server.serve(sockets=[listener]))

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*listener.getsockname())

    async def status(way: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
        way[1].write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        return await asyncio.wait_for(way[0].readline(), 20)

    while not server.started:  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0.01)
    first = await connect()
    try:
        assert b" 200 " in await status(first)
        idle, late = await connect(), await connect()
        assert b" 503 " in await status(late)
        for _, writer in (idle, late):
            writer.close()
        async with asyncio.timeout(20):
            while b" 200 " not in await status(await connect()):  # noqa: ASYNC110 - nor of closed connections
                await asyncio.sleep(0.05)
    finally:
        first[1].close()
        server.should_exit = True
        await running
