"""A proxy in front of a real chain node that turns into any bad provider on demand.

In mode ``pass`` bytes are streamed both ways and nothing is parsed, websockets included. Every other mode reads what
is asked; what it knows of the methods of both families is only what it takes to be stale, to lie and to live in another
time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

import httpx

from infra.devnet.providers import falsehood
from infra.devnet.providers.wire import (
    CHUNK,
    HEAD_LIMIT,
    Request,
    build_response,
    drop_header,
    read_frame,
    read_request,
)

Useless = Literal["dead", "slow", "slow-loris", "garbage", "gzip-bomb", "429", "500"]
"""No answer, or none of use."""
Untrue = Literal["stale", "lying", "wrong-chain", "future", "truncated-logs", "bad-proof", "wrong-id"]
"""An answer that is well formed and not what an honest node says."""
Mode = Literal["pass", Useless, Untrue]
MODES: tuple[Mode, ...] = get_args(Mode)
BOMB_SIZE = 256 << 20  # bytes, unpacked; a quarter of a megabyte packed
FOREVER = 3_600.0  # seconds
STATUS = {"429": "429 Too Many Requests", "500": "500 Internal Server Error"}
STREAMED = "(streamed)"
"""What a chunk of bytes that was not looked into is counted as."""
GARBAGE: dict[str, bytes] = {
    "not JSON": b"<html>maintenance</html>",
    "empty": b"",
    "no object": b"[]",
    "neither result nor error": b'{"jsonrpc":"2.0","id":0}',
    "NaN": b'{"jsonrpc":"2.0","id":0,"result":NaN}',
    "2^300": b'{"jsonrpc":"2.0","id":0,"result":"0x1' + b"0" * 75 + b'"}',
    "a number of 300 digits": b'{"jsonrpc":"2.0","id":0,"result":1' + b"0" * 300 + b"}",
    "negative": b'{"jsonrpc":"2.0","id":0,"result":"-0x1"}',
    "wrong id": b'{"jsonrpc":"2.0","id":"someone else\'s","result":"0x1"}',
    "duplicate keys": b'{"jsonrpc":"2.0","id":0,"result":"0x7a69","result":"0x1"}',
    "error without code": b'{"jsonrpc":"2.0","id":0,"error":"no"}',
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"jsonrpc":"2.0","id":0,"result":"\xff\xfe"}',
}
"""Answers that no JSON-RPC method may give, by what is wrong with them."""


@functools.cache
def _bomb() -> bytes:
    return gzip.compress(bytes(BOMB_SIZE), 1)


class FaultProxy:
    """One provider: ``async with FaultProxy(node_url) as proxy: proxy.url``; ``await proxy.turn("dead")``.

    Args:
        upstream: HTTP address of the node, which answers websockets there too.
        elsewhere: a node of another chain, for mode "wrong-chain"; without one the node's identity is falsified.

    Attributes:
        requests: how often each method was asked; in mode "pass", how many chunks came.
        lie: what becomes of every amount in mode "lying".
        garbage: what is answered in mode "garbage".
        remembered: height or slot of the head in mode "stale".
        shift: seconds that blocks are from the future in mode "future".
        delay: seconds until an answer in mode "slow".
    """

    def __init__(self, upstream: str, elsewhere: str = "") -> None:
        self.upstream, self.elsewhere = upstream, elsewhere
        self.mode: Mode = "pass"
        self.requests: Counter[str] = Counter()
        self.lie: Callable[[int], int] = lambda amount: amount * 10
        self.garbage = GARBAGE["not JSON"]
        self.shift = 3_600
        self.delay = FOREVER
        self.remembered: Any = None
        self._server: asyncio.Server | None = None
        self._client = httpx.AsyncClient(trust_env=False, timeout=30)
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Host and port, for example ``127.0.0.1:8545``."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        """HTTP address of this provider."""
        return f"http://{self.address}"

    @property
    def ws_url(self) -> str:
        """Websocket address of this provider: the same port."""
        return f"ws://{self.address}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=HEAD_LIMIT)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._hang_up()
        await self._client.aclose()

    async def turn(self, mode: Mode) -> None:
        """Become such a provider and close what is open; a stale one remembers the head of this moment.

        Raises:
            httpx.HTTPError: the node cannot be asked for its head.
        """
        if mode == "stale":
            latest = await self._forward("eth_getBlockByNumber", ["latest", False])
            head = await self._forward("getSlot", [{"commitment": "finalized"}])
            self.remembered = int(latest["result"]["number"], 16) if latest.get("result") else head["result"]
        if mode == "gzip-bomb":
            await asyncio.to_thread(_bomb)  # packing it takes a second, in which every other provider would be silent
        changed, self.mode = mode != self.mode, mode
        if changed:
            await self._hang_up()

    async def _hang_up(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- connections -----------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self.mode == "pass":
                await self._stream(reader, writer, self.upstream)
            elif self.mode == "wrong-chain" and self.elsewhere:
                await self._stream(reader, writer, self.elsewhere)
            else:
                await self._serve(reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the client went away, said what is no HTTP, or is hung up on; the node may be down
        finally:
            self._connections.discard(task)
            writer.close()

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str, first: bytes = b""
    ) -> None:
        """Carry bytes between a client and the node until one of them closes."""
        there, back = await _connect(url)
        try:
            back.write(first)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(there, writer))
                both.create_task(self._pump(reader, back, count=True))
        except BaseExceptionGroup:
            pass  # either side is gone, and so is the connection
        finally:
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool = False) -> None:
        while chunk := await reader.read(CHUNK):
            if count:
                self.requests[STREAMED] += 1
            writer.write(chunk)
            await writer.drain()
        raise ConnectionResetError  # ends the other direction too

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_request(reader)
            asked = _parse(request)
            for one in asked if isinstance(asked, list) else [asked]:
                self.requests[one.get("method", "websocket")] += 1
            if self.mode == "dead":
                writer.transport.abort()
                return
            if request.is_upgrade and self.mode not in get_args(Useless):
                await self._notify(request, reader, writer)
                return
            await self._answer(asked, writer)

    async def _answer(self, asked: Any, writer: asyncio.StreamWriter) -> None:
        status, headers = "200 OK", []
        match self.mode:
            case "slow-loris":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{")
                while True:
                    await writer.drain()
                    await asyncio.sleep(0.02)
                    writer.write(b" ")
            case "gzip-bomb":
                body, headers = _bomb(), ["content-encoding: gzip"]
            case "garbage":
                body = self.garbage
            case "429" | "500":
                status, body = STATUS[self.mode], b"{}"
            case _:
                if self.mode == "slow":
                    await asyncio.sleep(self.delay)
                answers = [await self._respond(one) for one in (asked if isinstance(asked, list) else [asked])]
                body = json.dumps(answers if isinstance(asked, list) else answers[0]).encode()
        writer.write(build_response(status, body, *headers))
        await writer.drain()

    async def _notify(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a websocket; leave out the notifications that a provider in this mode would not send."""
        there, back = await _connect(self.upstream)
        try:
            back.write(drop_header(request.head, "sec-websocket-extensions"))  # or frames would come packed
            writer.write(await there.readuntil(b"\r\n\r\n"))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._sift(there, writer))
                both.create_task(self._pump(reader, back))
        except BaseExceptionGroup:
            pass  # either side is gone, and so is the connection
        finally:
            back.close()

    async def _sift(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            frame, payload = await read_frame(reader)
            told = b'"subscription"' in payload and b'"params"' in payload
            if told and (self.mode == "stale" or (self.mode == "truncated-logs" and b'"parentHash"' not in payload)):
                continue
            writer.write(frame)
            await writer.drain()

    # --- what the node says, and what becomes of it ----------------------------------------------------------------

    async def _forward(self, method: str, params: Any, id: Any = 1) -> dict[str, Any]:
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        answer: dict[str, Any] = (await self._client.post(self.upstream, json=request)).json()
        return answer

    async def _respond(self, request: dict[str, Any]) -> dict[str, Any]:
        method, params, id = request.get("method", ""), request.get("params") or [], request.get("id")
        if self.mode == "stale":
            if (refusal := await self._beyond(method, params)) is not None:
                return {"jsonrpc": "2.0", "id": id} | refusal
            if method == "eth_getBlockByNumber" and params[0] == "latest":
                params = [hex(self.remembered), *params[1:]]
        answer = await self._forward(method, params, id)
        if self.mode == "wrong-id":
            answer["id"] = "someone else's"
        if answer.get("result") is not None:
            answer["result"] = self._falsify(method, answer["result"])
        return answer

    def _falsify(self, method: str, result: Any) -> Any:
        match self.mode, method:
            case "lying", "eth_call":
                return falsehood.falsify_multicall(result, self.lie)
            case "lying", "getMultipleAccounts":
                return result | {"value": [falsehood.falsify_account(row, self.lie) for row in result["value"]]}
            case "stale", "getSlot":
                return self.remembered
            case "stale", "eth_blockNumber":
                return hex(min(self.remembered, int(result, 16)))
            case "future", "eth_getBlockByNumber" | "eth_getBlockByHash":
                return result | {"timestamp": hex(int(result["timestamp"], 16) + self.shift)}
            case "future", "getBlock":
                return result | {"blockTime": result["blockTime"] + self.shift}
            case "truncated-logs", "eth_getLogs" | "getSignaturesForAddress":
                return []
            case "bad-proof", "eth_getProof":
                return falsehood.spoil_proof(result)
            case "wrong-chain", "eth_chainId":
                return hex(int(result, 16) + 1)
            case "wrong-chain", "getGenesisHash":
                return result[::-1]
            case _:
                return result

    async def _beyond(self, method: str, params: Any) -> dict[str, Any] | None:
        """Return what a node that stopped at the remembered head says of something newer, None for all else."""
        head = self.remembered
        if method == "eth_getBlockByNumber" and params[0].startswith("0x") and int(params[0], 16) > head:
            return {"result": None}
        if method == "eth_getBlockByHash" and await self._height(params[0]) > head:
            return {"result": None}
        if method == "eth_call" and isinstance(params[1], dict) and await self._height(params[1]["blockHash"]) > head:
            return {"error": {"code": -32000, "message": "header not found"}}
        if method == "getBlock" and params[0] > head:
            return {"error": {"code": -32004, "message": f"Block not available for slot {params[0]}"}}
        if method == "getMultipleAccounts" and params[1].get("minContextSlot", 0) > head:
            return {"error": {"code": -32016, "message": "Minimum context slot has not been reached"}}
        return None

    async def _height(self, block_hash: str) -> float:
        """Return the height of a block, infinity where the node does not know it."""
        found = (await self._forward("eth_getBlockByHash", [block_hash, False])).get("result")
        return int(found["number"], 16) if found else float("inf")


def _parse(request: Request) -> Any:
    """Return the JSON-RPC request, or requests; something without a method where the body is none."""
    with contextlib.suppress(ValueError):
        found = json.loads(request.body)
        if isinstance(found, dict) or (isinstance(found, list) and all(isinstance(one, dict) for one in found)):
            return found
    return {}


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port or 80, limit=CHUNK)
