"""The ASGI application: JSON-RPC over HTTP POST, subscriptions over WebSocket. No framework between."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import orjson
import uvicorn

from infra.devnet.svm.chain import SvmChain
from infra.devnet.svm.rpc import INVALID_PARAMS, METHOD_NOT_FOUND, PARSE_ERROR, Rpc, RpcError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLL_SECONDS = 0.05


async def serve(
    chain: SvmChain, listener: socket.socket, announce: Callable[[], None], lifeline: int | None = None
) -> None:
    """Serve `chain` on a bound socket until SIGTERM or SIGINT; call `announce` once requests are answered.

    With `lifeline`, the descriptor of a pipe, the end of the pipe's other side ends the server too.
    """
    config = uvicorn.Config(
        create_app(chain), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    await _Server(config, announce, lifeline).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, telling when it has started, and ending with its lifeline."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], lifeline: int | None) -> None:
        super().__init__(config)
        self._announce, self._lifeline = announce, lifeline

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._lifeline is not None:
            asyncio.get_running_loop().add_reader(self._lifeline, self._feel, self._lifeline)
        if self.started:
            self._announce()

    def _feel(self, lifeline: int) -> None:
        if not os.read(lifeline, 1024):
            asyncio.get_running_loop().remove_reader(lifeline)
            self.should_exit = True


def create_app(chain: SvmChain) -> Application:
    """Return the ASGI application over `chain`."""
    rpc = Rpc(chain)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _Subscriptions(rpc, send).run(receive)
        elif scope["type"] == "http":
            await _http(rpc, receive, send)

    return app


async def _http(rpc: Rpc, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(_answer(rpc, body))})


def _answer(rpc: Rpc, body: bytes | str) -> Any:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _failure(None, RpcError(PARSE_ERROR, "Parse error"))
    if isinstance(request, list):
        return [_call(rpc, one) for one in request]
    return _call(rpc, request)


def _call(rpc: Rpc, request: Any) -> dict[str, Any]:
    try:
        method, params = _unpack(request)
        return {"jsonrpc": "2.0", "id": request.get("id"), "result": rpc.call(method, params)}
    except RpcError as error:
        return _failure(request.get("id") if isinstance(request, dict) else None, error)


def _unpack(request: Any) -> tuple[str, list[Any]]:
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise RpcError(-32600, "Invalid request")
    params = request.get("params") or []
    if not isinstance(params, list):
        raise RpcError(INVALID_PARAMS, "`params` should be an array")
    return request["method"], params


def _failure(identity: Any, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identity, "error": error.body()}


class _Subscriptions:
    """One WebSocket: ordinary calls are answered, `*Subscribe` starts a watch, `*Unsubscribe` ends it.

    A watch looks at the chain every 50 ms, and only while it exists. Kinds: account, program, signature, slot, root.
    """

    def __init__(self, rpc: Rpc, send: Send) -> None:
        self._rpc = rpc
        self._send = send
        self._ids = itertools.count(1)
        self._watches: dict[int, asyncio.Task[None]] = {}

    async def run(self, receive: Receive) -> None:
        await receive()  # websocket.connect
        await self._send({"type": "websocket.accept"})
        try:
            while (message := await receive())["type"] != "websocket.disconnect":
                await self._handle(message.get("text") or message.get("bytes") or b"")
        finally:
            for task in self._watches.values():
                task.cancel()

    async def _handle(self, text: bytes | str) -> None:
        try:
            request = orjson.loads(text)
            method, params = _unpack(request)
        except orjson.JSONDecodeError:
            await self._post(_failure(None, RpcError(PARSE_ERROR, "Parse error")))
            return
        except RpcError as error:
            await self._post(_failure(None, error))
            return
        identity = request.get("id")
        if method.endswith("Unsubscribe"):
            task = self._watches.pop(params[0], None) if params else None
            if task is not None:
                task.cancel()
            await self._post({"jsonrpc": "2.0", "id": identity, "result": task is not None})
        elif method.endswith("Subscribe"):
            await self._subscribe(identity, method.removesuffix("Subscribe"), params)
        else:
            await self._post(_call(self._rpc, request))

    async def _subscribe(self, identity: Any, kind: str, params: list[Any]) -> None:
        look = {
            "account": self._look_account,
            "program": self._look_program,
            "signature": self._look_signature,
            "slot": self._look_slot,
            "root": self._look_root,
        }.get(kind)
        try:
            if look is None:
                raise RpcError(METHOD_NOT_FOUND, f"{kind}Subscribe is not offered by this facade")
            first = look(params)
        except RpcError as error:
            await self._post(_failure(identity, error))
            return
        number = next(self._ids)
        await self._post({"jsonrpc": "2.0", "id": identity, "result": number})
        # A signature that has landed already is told; a change of state counts from the subscription on.
        seen = {} if kind == "signature" else first
        self._watches[number] = asyncio.create_task(self._watch(number, kind, params, look, seen))

    async def _watch(
        self,
        number: int,
        kind: str,
        params: list[Any],
        look: Callable[[list[Any]], dict[str, Any]],
        seen: dict[str, Any],
    ) -> None:
        """Send each item of `look` (key -> notification) whose value is new; a signature is told once."""
        with suppress(asyncio.CancelledError):
            while True:
                now = look(params)
                for key, value in now.items():
                    if _state(seen.get(key)) != _state(value):
                        body = {"result": value, "subscription": number}
                        await self._post({"jsonrpc": "2.0", "method": f"{kind}Notification", "params": body})
                if kind == "signature" and now:
                    self._watches.pop(number, None)
                    return
                seen = now
                await asyncio.sleep(_POLL_SECONDS)

    async def _post(self, body: dict[str, Any]) -> None:
        await self._send({"type": "websocket.send", "text": orjson.dumps(body).decode()})

    # Each look returns what could be notified now, by a key; only values that differ from the last look are sent.

    def _look_account(self, params: list[Any]) -> dict[str, Any]:
        return {"": self._rpc.call("getAccountInfo", params)}

    def _look_program(self, params: list[Any]) -> dict[str, Any]:
        config = {**(params[1] if len(params) > 1 and params[1] else {}), "withContext": True}
        answer = self._rpc.call("getProgramAccounts", [params[0], config])
        return {row["pubkey"]: {"context": answer["context"], "value": row} for row in answer["value"]}

    def _look_signature(self, params: list[Any]) -> dict[str, Any]:
        level = self._rpc.commitment(params[1] if len(params) > 1 else None)
        landed = self._rpc.chain.landed.get(params[0])
        slot = self._rpc.chain.slot_at(level)
        if landed is None or landed.slot > slot:
            return {}
        return {"": {"context": {"slot": landed.slot}, "value": {"err": landed.err}}}

    def _look_slot(self, params: list[Any]) -> dict[str, Any]:
        chain = self._rpc.chain
        slot = chain.slot_at("processed")
        return {"": {"slot": slot, "parent": chain.blocks[slot].parent_slot, "root": chain.slot_at("finalized")}}

    def _look_root(self, params: list[Any]) -> dict[str, Any]:
        return {"": self._rpc.chain.slot_at("finalized")}


def _state(notification: Any) -> Any:
    """Return what has to differ for a notification to be news: the value, not the slot it was read at."""
    return notification["value"] if isinstance(notification, dict) and "value" in notification else notification
