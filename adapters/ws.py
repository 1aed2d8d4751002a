"""Websockets to chain nodes: one JSON-RPC conversation at a time, whose subscriptions may tell anything at any moment.

What comes over them is a hint and never a value. No URL leaves this module in a message: it may carry a key.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import orjson
import structlog
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from aggregator.domain.errors import Garbage, NodeRefused, SourceError, Unreachable, WrongChain
from aggregator.domain.rows import ChainRow

MESSAGE_LIMIT = 8 << 20  # bytes; the answer to a backfill is the largest
FIRST_DELAY, LONGEST_DELAY = 0.25, 30.0  # seconds
QUEUE_LIMIT = 32 << 20  # bytes of notifications that wait; a client that cannot keep up starts over instead


class Notification(NamedTuple):
    """One thing told. ``subscription`` is "" for a nudge by ourselves."""

    subscription: str | int
    result: Any


class Session:
    """One open connection. Calls may overlap; notifications are taken by one reader, in order."""

    def __init__(self, name: str, connection: ClientConnection, timeout: float) -> None:
        self._name, self._connection, self._timeout = name, connection, timeout
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._told: asyncio.Queue[tuple[Notification | Exception, int]] = asyncio.Queue()  # with its size
        self._held = 0  # bytes that wait

    async def call(self, method: str, params: Sequence[object]) -> Any:
        """Return the ``result`` of one call.

        Raises:
            Unreachable: the connection is gone, or there is no answer in the chain's timeout.
            NodeRefused: the node answers with an error. Garbage: with something else.
        """
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        request = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.send(orjson.dumps(request).decode())
                body = await answer
        except TimeoutError:
            raise Unreachable(self._name, f"no answer to {method} within {self._timeout:g} s") from None
        except (WebSocketException, OSError) as error:
            raise Unreachable(self._name, f"the websocket closed ({type(error).__name__})") from None
        finally:
            self._waiting.pop(number, None)
        if isinstance(refusal := body.get("error"), dict) and isinstance(refusal.get("code"), int):
            raise NodeRefused(self._name, refusal["code"], f"{method}: {str(refusal.get('message'))[:300]}")
        if "result" not in body:
            raise Garbage(self._name, f"the answer to {method} has neither result nor error")
        return body["result"]

    async def next(self, timeout: float) -> Notification:
        """Return the next notification, in the order they came.

        Raises:
            Unreachable: nothing came for ``timeout`` seconds, or the connection is gone.
            Garbage: the node sent what is not JSON-RPC, or more than can be handled.
        """
        try:
            async with asyncio.timeout(timeout):
                told, size = await self._told.get()
        except TimeoutError:
            raise Unreachable(self._name, f"the websocket told nothing for {timeout:g} s") from None
        self._held -= size
        if isinstance(told, Exception):
            self._told.put_nowait((told, 0))  # also for whoever asks next
            raise told
        return told

    def nudge(self) -> None:
        """Make ``next`` return once, with a notification of no subscription."""
        self._told.put_nowait((Notification("", None), 0))

    async def read(self) -> None:
        """Distribute what comes until the connection ends; its end is told like everything else."""
        end: Exception
        try:
            async for message in self._connection:
                self._take(message)
            end = Unreachable(self._name, "the websocket closed")
        except Garbage as error:
            end = error
        except (WebSocketException, OSError) as error:
            end = Unreachable(self._name, f"the websocket closed ({type(error).__name__})")
        self._told.put_nowait((end, 0))
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(end)

    def _take(self, message: str | bytes) -> None:
        try:
            body = orjson.loads(message)
            if "method" not in body:
                answer = self._waiting.get(body["id"])
                if answer is not None and not answer.done():
                    answer.set_result(body)
                return
            told = Notification(body["params"]["subscription"], body["params"]["result"])
        except (ValueError, KeyError, TypeError):
            raise Garbage(self._name, "the websocket sent what is not JSON-RPC") from None
        self._held += len(message)
        if self._held > QUEUE_LIMIT:
            raise Garbage(self._name, f"the websocket sent more than {QUEUE_LIMIT} bytes that nobody had read yet")
        self._told.put_nowait((told, len(message)))


class _Direct(connect):
    """Follows no redirects: they would lead to a host nobody configured."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class WsEndpoint:
    """The websockets of one chain. Each session goes to the next of them, so that a bad one is left."""

    def __init__(self, row: ChainRow, urls: Sequence[SecretStr]) -> None:
        self._row, self._urls = row, itertools.cycle(urls)

    async def keep(self, follow: Callable[[Session], Awaitable[None]]) -> None:
        """Run ``follow`` on one session after the other, for ever; what ends one is logged.

        Between two it waits for a random part (full jitter) of a delay that doubles while sessions are short.
        """
        failures, clock = 0, asyncio.get_running_loop().time
        while True:
            began = clock()
            try:
                async with self.open() as session:
                    await follow(session)
                reason = "it ended"
            except SourceError as error:
                reason = error.problem
            except Exception as error:  # bytes that nobody thought of must not end the listening
                reason = f"what it told cannot be handled ({type(error).__name__})"
            failures = 1 if clock() - began > LONGEST_DELAY else failures + 1
            if failures == 1:
                structlog.get_logger().warning("websocket lost", chain=self._row.name, reason=reason)
            await asyncio.sleep(random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures, 16))))

    async def probe(self) -> str:
        """Connect to the next websocket, ask which chain it serves, subscribe once; return what was found.

        Raises:
            SourceError: one of these fails. WrongChain: it serves another chain.
        """
        row = self._row
        async with self.open() as session:
            if row.family == "solana":  # its websockets answer nothing but subscriptions
                await session.call("rootSubscribe", [])
                await session.next(row.timeout)
                return "tells roots; which chain's, a websocket of Solana does not say"
            chain = await session.call("eth_chainId", [])
            if not isinstance(chain, str) or f"eip155:{_quantity(row.name, chain)}" != row.id:
                raise WrongChain(row.name, f"the websocket answers for chain id {str(chain)[:20]}")
            await session.call("eth_subscribe", ["newHeads"])
            return f"chain {row.id}, takes subscriptions"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Session]:
        """Open a session.

        Raises:
            Unreachable: the node does not take the connection.
        """
        row = self._row
        try:
            # Unpacked messages only: a packed one could grow to any size.
            connection = await _Direct(
                next(self._urls).get_secret_value(),
                open_timeout=row.timeout,
                close_timeout=1,
                compression=None,
                max_size=MESSAGE_LIMIT,
                proxy=None,
            )
        except (WebSocketException, OSError, TimeoutError, ValueError) as error:
            raise Unreachable(row.name, f"the websocket cannot be opened ({type(error).__name__})") from None
        session = Session(row.name, connection, row.timeout)
        reading = asyncio.create_task(session.read())
        try:
            yield session
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await connection.close()


def _quantity(name: str, value: str) -> int:
    try:
        return int(value, 16)
    except ValueError:
        raise Garbage(name, "the websocket sent a quantity that is none") from None
