"""An HTTP proxy in front of a real chain node that turns into any bad provider on demand.

It speaks to both families: what it knows of their methods is only what it takes to be stale, to lie and to live in
another time. Everything else passes through to the node.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import json
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, get_args

import httpx
from eth_abi import decode, encode

Mode = Literal[
    *("pass", "dead", "slow", "stale", "lying", "wrong-chain", "garbage", "gzip-bomb", "slow-loris", "429", "500"),
    "future",
]
MODES: tuple[Mode, ...] = get_args(Mode)
BOMB_SIZE = 256 << 20  # bytes, unpacked; a quarter of a megabyte packed
STATUS = {"429": "429 Too Many Requests", "500": "500 Internal Server Error"}
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

    Attributes:
        requests: how often each method was asked.
        lie: what becomes of every amount in mode "lying".
        garbage: what is answered in mode "garbage".
        remembered: height or slot of the head in mode "stale".
        shift: seconds that blocks are from the future in mode "future".
    """

    def __init__(self, upstream: str, elsewhere: str = "") -> None:
        self.upstream, self.elsewhere = upstream, elsewhere
        self.mode: Mode = "pass"
        self.requests: Counter[str] = Counter()
        self.lie: Callable[[int], int] = lambda amount: amount * 10
        self.garbage = GARBAGE["not JSON"]
        self.shift = 3_600
        self.remembered: Any = None
        self._server: asyncio.Server | None = None
        self._client = httpx.AsyncClient(trust_env=False, timeout=30)
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._client.aclose()

    async def turn(self, mode: Mode) -> None:
        """Become such a provider; a stale one remembers the head of this moment."""
        if mode == "stale":
            latest = await self._forward("eth_getBlockByNumber", ["latest", False])
            head = await self._forward("getSlot", [{"commitment": "finalized"}])
            self.remembered = int(latest["result"]["number"], 16) if latest.get("result") else head["result"]
        self.mode = mode

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while request := await self._receive(reader):
                self.requests[request["method"]] += 1
                if self.mode == "dead":
                    writer.transport.abort()
                    return
                await self._answer(request, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            self._connections.discard(task)
            writer.close()

    @staticmethod
    async def _receive(reader: asyncio.StreamReader) -> Any:
        head = await reader.readuntil(b"\r\n\r\n")
        sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        return json.loads(await reader.readexactly(int(sizes[0].partition(b":")[2])))

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        status, headers = "200 OK", ""
        match self.mode:
            case "slow":
                await asyncio.sleep(3_600)
            case "slow-loris":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{")
                while True:
                    await writer.drain()
                    await asyncio.sleep(0.02)
                    writer.write(b" ")
            case "gzip-bomb":
                body, headers = _bomb(), "content-encoding: gzip\r\n"
            case "garbage":
                body = self.garbage
            case "429" | "500":
                status, body = STATUS[self.mode], b"{}"
            case _:
                body = json.dumps(await self._respond(request)).encode()
        headers += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body)
        await writer.drain()

    # --- what the node says, and what becomes of it ----------------------------------------------------------------

    async def _forward(self, method: str, params: Any, id: Any = 1) -> dict[str, Any]:
        url = self.elsewhere if self.mode == "wrong-chain" else self.upstream
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        answer: dict[str, Any] = (await self._client.post(url, json=request)).json()
        return answer

    async def _respond(self, request: dict[str, Any]) -> dict[str, Any]:
        method, params, id = request["method"], request.get("params") or [], request["id"]
        if self.mode == "stale" and (refusal := await self._beyond(method, params)) is not None:
            return {"jsonrpc": "2.0", "id": id} | refusal
        if self.mode == "stale" and method == "eth_getBlockByNumber" and params[0] == "latest":
            params = [hex(self.remembered), *params[1:]]
        answer = await self._forward(method, params, id)
        if answer.get("result") is None:
            return answer
        if self.mode == "lying" and method == "eth_call":
            answer["result"] = self._falsify_multicall(answer["result"])
        elif self.mode == "lying" and method == "getMultipleAccounts":
            answer["result"]["value"] = [self._falsify_account(one) for one in answer["result"]["value"]]
        elif self.mode == "stale" and method == "getSlot":
            answer["result"] = self.remembered
        elif self.mode == "future" and method == "eth_getBlockByNumber":
            answer["result"]["timestamp"] = hex(int(answer["result"]["timestamp"], 16) + self.shift)
        elif self.mode == "future" and method == "getBlock":
            answer["result"]["blockTime"] += self.shift
        return answer

    async def _beyond(self, method: str, params: Any) -> dict[str, Any] | None:
        """Return what a node that stopped at the remembered head says of something newer, None for all else."""
        head = self.remembered
        if method == "eth_getBlockByNumber" and params[0] != "latest" and int(params[0], 16) > head:
            return {"result": None}
        if method == "eth_call":
            found = (await self._forward("eth_getBlockByHash", [params[1]["blockHash"], False]))["result"]
            if found is None or int(found["number"], 16) > head:
                return {"error": {"code": -32000, "message": "header not found"}}
        if method == "getBlock" and params[0] > head:
            return {"error": {"code": -32004, "message": f"Block not available for slot {params[0]}"}}
        if method == "getMultipleAccounts" and params[1].get("minContextSlot", 0) > head:
            return {"error": {"code": -32016, "message": "Minimum context slot has not been reached"}}
        return None

    def _falsify_multicall(self, returned: str) -> str:
        """Change every plain amount in the answers of an aggregate3, but not the block number it is anchored by."""
        (rows,) = decode(["(bool,bytes)[]"], bytes.fromhex(returned[2:]))
        anchor, *answers = rows
        false = [
            (ok, self.lie(int.from_bytes(data, "big")).to_bytes(32, "big"))
            # wider words are addresses and the like; a lie about them would not pass for a balance
            if len(data) == 32 and 0 < int.from_bytes(data, "big") < 2**127
            else (ok, data)
            for ok, data in answers
        ]
        return "0x" + encode(["(bool,bytes)[]"], [[anchor, *false]]).hex()

    def _falsify_account(self, row: dict[str, Any] | None) -> dict[str, Any] | None:
        """Change the amount of a token account, or the lamports of a wallet."""
        if row is None:
            return None
        data = base64.b64decode(row["data"][0])
        if len(data) == 165:
            amount = self.lie(int.from_bytes(data[64:72], "little"))
            data = data[:64] + amount.to_bytes(8, "little") + data[72:]
            return row | {"data": [base64.b64encode(data).decode(), "base64"]}
        return row | {"lamports": self.lie(row["lamports"])} if not data else row
