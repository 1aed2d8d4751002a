"""Websockets to bad nodes: whatever they do, the watcher goes on to the next and misses nothing that it claims."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs
from web3.contract import Contract
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from adapters import ws
from adapters.evm.watch import EvmWatcher
from adapters.ws import MESSAGE_LIMIT, WsEndpoint
from aggregator.domain.errors import Garbage, NodeRefused, SourceError, Unreachable
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import deploy_token
from infra.devnet.providers.proxy import FaultProxy, Mode
from tests.chain.evm_venues import chain_row
from tests.chain.test_evm_watch import ANN, BOB, height, mint, named, until

pytestmark = pytest.mark.chain
Handler = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def node(handle: Handler, **options: object) -> AsyncIterator[WsEndpoint]:
    """Serve ``handle`` to whoever connects."""
    async with serve(handle, "127.0.0.1", 0, **options) as server:  # type: ignore[arg-type]
        port = next(iter(server.sockets)).getsockname()[1]
        yield WsEndpoint(chain_row("", timeout=1), [SecretStr(f"ws://127.0.0.1:{port}/?key=secret-key")])


def saying(*messages: str | bytes) -> Handler:
    async def handle(connection: ServerConnection) -> None:
        async for _ in connection:
            for message in messages:
                await connection.send(message)

    return handle


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no such method"}}', NodeRefused),
        ('{"jsonrpc":"2.0","id":1}', Garbage),
        ('{"jsonrpc":"2.0","id":1,"error":"no"}', Garbage),
        ("<html>", Garbage),
        ("[]", Garbage),
        ('{"jsonrpc":"2.0"}', Garbage),
        ('{"method":"eth_subscription","params":{}}', Garbage),
        ("[" * 100_000, Garbage),
        (b"\xff\xfe", Garbage),
        ('{"jsonrpc":"2.0","id":7,"result":"0x1"}', Unreachable),
        ("x" * (MESSAGE_LIMIT + 1), Unreachable),
    ],
)
async def test_what_is_no_answer_is_an_error_without_the_address(said: str | bytes, error: type[SourceError]) -> None:
    async with node(saying(said)) as endpoint, endpoint.open() as session:
        with pytest.raises(error) as seen:
            await session.call("eth_chainId", [])
        assert "secret-key" not in str(seen.value)


async def test_notifications_come_in_order_and_the_end_is_told() -> None:
    async def handle(connection: ServerConnection) -> None:
        for i in range(3):
            await connection.send(f'{{"method":"x","params":{{"subscription":"0x1","result":{i}}}}}')

    async with node(handle) as endpoint, endpoint.open() as session:
        assert [(await session.next(5)).result for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(Unreachable, match="closed"):
                await session.next(5)


async def test_a_node_that_tells_more_than_can_be_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws, "QUEUE_LIMIT", 1_000)
    told = '{"method":"x","params":{"subscription":"0x1","result":"' + "x" * 300 + '"}}'
    async with node(saying(*[told] * 9)) as endpoint, endpoint.open() as session:
        with pytest.raises(Garbage, match="more than 1000 bytes"):
            await session.call("eth_chainId", [])


async def test_silence_is_an_end_too() -> None:
    async with node(saying()) as endpoint, endpoint.open() as session:
        with pytest.raises(Unreachable, match="told nothing"):
            await session.next(0.05)


async def test_redirects_are_not_followed() -> None:
    reached = []

    async def elsewhere(connection: ServerConnection) -> None:
        reached.append(connection)

    async with serve(elsewhere, "127.0.0.1", 0) as other:
        port = next(iter(other.sockets)).getsockname()[1]

        def redirect(connection: ServerConnection, request: Request) -> Response:
            response = connection.respond(302, "")
            response.headers["Location"] = f"ws://127.0.0.1:{port}"
            return response

        async with node(saying(), process_request=redirect) as endpoint:
            with pytest.raises(Unreachable, match="cannot be opened") as seen:
                async with endpoint.open():
                    pass
            assert "secret-key" not in str(seen.value)
    assert reached == []


@pytest.fixture
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture
def token(anvil: Anvil) -> Contract:
    return deploy_token(connect(anvil.url), "USD Coin", "USDC", 6)


@pytest.mark.parametrize("mode", ["dead", "garbage", "500", "slow"])
async def test_a_bad_node_is_left_for_the_next_and_nothing_is_missed(anvil: Anvil, token: Contract, mode: Mode) -> None:
    async with FaultProxy(anvil.url) as good, FaultProxy(anvil.url) as bad:
        row = chain_row(good.url, timeout=1)
        socket = WsEndpoint(row, [SecretStr(good.ws_url), SecretStr(bad.ws_url)])
        watcher = EvmWatcher(row, socket, [str(token.address)])
        await watcher.start()
        await until(lambda: watcher.covered() > 0)
        start = height(anvil)
        await bad.turn(mode)
        await good.turn("dead")
        await mint(anvil, token, ANN)
        await good.turn("pass")
        await until(lambda: watcher.covered() > start)
        last = await mint(anvil, token, BOB)
        anvil.mine()
        await until(lambda: watcher.covered() >= last)
        assert named(watcher, start, last) == {ANN, BOB}
        await watcher.close()


async def test_what_nobody_thought_of_does_not_end_the_listening() -> None:
    sessions = 0

    async def follow(session: object) -> None:
        nonlocal sessions
        sessions += 1
        raise ZeroDivisionError

    async with node(saying()) as endpoint:
        with capture_logs() as logs:
            keeping = asyncio.create_task(endpoint.keep(follow))
            await until(lambda: sessions > 2)
            keeping.cancel()
    assert [entry["reason"] for entry in logs] == ["what it told cannot be handled (ZeroDivisionError)"]
