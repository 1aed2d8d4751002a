"""The only place that opens sockets to chain nodes: throttle, retry, breaker, and one mapping of errors.

No URL leaves this module in a message: it may carry a key.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp
import httpx2
import orjson
import tenacity
from asyncio_throttle.throttler import Throttler
from pydantic import SecretStr
from solana.exceptions import SolanaRpcException
from solana.rpc.async_api import AsyncClient
from solana.rpc.async_http_provider import AsyncHTTPProvider as SolanaHTTPProvider
from solana.rpc.core import RPCException
from solana.rpc.jsonrpc import JsonRpcRequest, JsonRpcRequestSerializer, SolanaJsonRpcError
from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint, RPCRequest

from aggregator.domain.errors import Garbage, NodeRefused, SourceError, Unavailable, Unreachable
from aggregator.domain.rows import ChainRow

T = TypeVar("T")
ATTEMPTS = 3
IN_FLIGHT = 8
PATIENCE = 4  # a call given up after this part of the timeout counts as not answered
OPENS_AFTER = 3  # calls that failed in a row, each with all its attempts
FIRST_DELAY, LONGEST_DELAY = 1.0, 10.0  # seconds until an open breaker lets one call through, at most
RATE_LIMITED = (-32005, 429)
UNKNOWN_STATE = (-32000, -32001, -32016)  # "header not found", "missing trie node", minContextSlot not reached
UNKNOWN_STATE_WORDS = (
    "not found",
    "missing trie",
    "pruned",
    "unknown block",
    "historical state",
    "not been reached",
    "canonical",
)
TOO_MUCH_WORDS = ("more than", "results", "range")  # some nodes refuse a large log query by the rate limit's code
BODY_LIMIT = 32 << 20  # bytes, unpacked: ten times the largest batch of returns


class Breaker:
    """Stops asking a node that does not answer, so that nobody waits for its timeout again and again.

    Opens after ``OPENS_AFTER`` calls in a row that could not reach the node. While it is open every call fails at once,
    but for one trial when the delay is over: if that reaches the node the breaker closes, if not the delay doubles.
    Each wait is a random part of the delay, so that not everybody who asks a node does so again at the same time.
    A call that its caller gives up on counts too, but only if it waited for a good part of the time that the node has.

    Args:
        name: what errors call the chain.
        patience: seconds after which a call given up says something of the node.
        clock: seconds that never go back.
        longest: what the delay does not exceed, in seconds: how late a node that is back is noticed.
        draw: gives a number between its arguments, of which the second is the delay.
    """

    def __init__(
        self,
        name: str,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        longest: float = LONGEST_DELAY,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._name, self._patience, self._clock = name, patience, clock
        self._longest, self._draw = longest, draw
        self._failures, self._delay, self._last = 0, FIRST_DELAY, ""
        self._since: float | None = None  # when it opened
        self._trial_at, self._trying = 0.0, False

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once."""
        return self._since is not None

    def verify_closed(self) -> None:
        """Raise Unreachable, which says since when and why, while the breaker is open."""
        if self._since is not None:
            now = self._clock()
            wait = "a trial is under way" if self._trying else f"next try in {max(0.0, self._trial_at - now):.1f} s"
            ago = f"not asked for {now - self._since:.1f} s, after {self._failures} failures in a row"
            raise Unreachable(self._name, f"{ago} (the last: {self._last}); {wait}")

    @contextmanager
    def guard(self) -> Iterator[bool]:
        """Run one call inside; yields whether it is the trial of an open breaker.

        Raises:
            Unreachable: the breaker is open and no trial is due.
        """
        trial = self.is_open and not self._trying and self._clock() >= self._trial_at
        if trial:
            self._trying = True
        else:
            self.verify_closed()
        began = self._clock()
        try:
            yield trial
        except SourceError as error:
            if isinstance(error, Unreachable):
                self._fail(error.problem, trial)
            else:
                self._close()  # it answers, if badly
            raise
        except BaseException:
            if self._clock() - began >= self._patience:
                self._fail("no answer in the time there was", trial)
            elif trial:
                self._trying = False  # nothing was learnt; the next call may try
            raise
        self._close()

    def _close(self) -> None:
        self._failures, self._delay, self._since, self._trying = 0, FIRST_DELAY, None, False

    def _fail(self, problem: str, trial: bool) -> None:
        if self.is_open and not trial:
            return  # begun before it opened
        self._failures += 1
        self._last = problem
        now = self._clock()
        if trial:
            self._delay, self._trying = min(2 * self._delay, self._longest), False
        elif self._failures >= OPENS_AFTER:
            self._since = now
        self._trial_at = now + self._draw(0.0, self._delay)


class _Endpoint:
    """One node: a semaphore bounds what is in flight, a throttle the rate, a breaker the waits; tenacity alone retries.

    Args:
        clock: seconds that never go back, for the breaker.
    """

    def __init__(self, row: ChainRow, clock: Callable[[], float] = time.monotonic) -> None:
        self.row = row
        self._gate = asyncio.Semaphore(IN_FLIGHT)
        self._throttle = Throttler(rate_limit=row.requests_per_second, period=1.0)
        self._breaker = Breaker(row.name, row.timeout / PATIENCE, clock)

    async def _attempt(self, once: Callable[[], Awaitable[T]]) -> T:
        with self._breaker.guard() as trial:
            async for attempt in tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(1 if trial else ATTEMPTS),
                wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
                retry=tenacity.retry_if_exception(
                    lambda e: isinstance(e, Unreachable) and not self._breaker.is_open,
                ),
                reraise=True,
            ):
                with attempt:
                    async with self._gate, self._throttle:
                        if not trial:
                            self._breaker.verify_closed()  # it may have opened while this call queued
                        return await once()
            raise AssertionError("unreachable: tenacity re-raises")


class _TooLarge(ValueError):
    """A node answered more than ``BODY_LIMIT`` bytes."""


class _Packed(ValueError):
    """A node answered in an encoding that it was not asked for."""


class _CappedResponse(aiohttp.ClientResponse):
    """Reads no more than ``BODY_LIMIT`` bytes, counted after decompression."""

    async def read(self) -> bytes:
        body = bytearray()
        async for chunk in self.content.iter_any():
            body += chunk
            if len(body) > BODY_LIMIT:
                self.close()
                raise _TooLarge
        return bytes(body)


class _Foreign(ValueError):
    """A node answered another request than the one it was sent, or in two ways at once."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key is given twice")
    return table


def _decode(raw: bytes | str) -> Any:
    """Decode JSON; raise ValueError for NaN, deep nesting and keys given twice, of which readers differ on what counts.

    orjson goes first: it bounds nesting, so that a hostile answer cannot exhaust the stack of the slower decoder.
    """
    quick = orjson.loads(raw)
    # Where there are no more colons than keys none is given twice. Large answers are one text, and decoded only once.
    text = raw if isinstance(raw, bytes) else raw.encode()
    if isinstance(quick, dict) and isinstance(quick.get("result"), str) and text.count(b":") == len(quick):
        return quick
    return json.loads(raw, object_pairs_hook=_each_key_once)


def _verify_answers(response: Any, id: object) -> None:
    """Raise _Foreign unless ``response`` answers the request ``id``: by a result or by an error, not by both."""
    if not isinstance(response, dict):
        return  # told apart later
    error, got = response.get("error"), response.get("id")
    if (type(got), got) != (type(id), id) and (error is None or got is not None):
        raise _Foreign("answers another request")
    if error is not None and response.get("result") is not None:
        raise _Foreign("is both a result and an error")


class _Provider(AsyncHTTPProvider):
    """web3's provider, strict about what it decodes, over a session of its own.

    web3 keeps sessions behind a lock that a caller cancelled while it waits leaves locked, so that every later request
    would hang (web3 8, ``_utils/async_caching.py``).
    """

    session: aiohttp.ClientSession | None = None

    async def _make_request(self, method: RPCEndpoint, request_data: bytes) -> bytes:
        if self.session is None:  # made here, since a session belongs to the running loop
            self.session = aiohttp.ClientSession(raise_for_status=True, response_class=_CappedResponse)
        async with self.session.post(
            str(self.endpoint_uri), data=request_data, **self.get_request_kwargs()
        ) as response:
            return await response.read()

    @staticmethod
    def encode_rpc_dict(rpc_dict: RPCRequest) -> bytes:
        return orjson.dumps(rpc_dict)

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> Any:
        return _decode(raw_response)

    async def make_request(self, method: RPCEndpoint, params: Any) -> Any:
        request = self.form_request(method, params)
        response = self.decode_rpc_response(await self._make_request(method, self.encode_rpc_dict(request)))
        _verify_answers(response, request["id"])
        return response


class EvmEndpoint(_Endpoint):
    """JSON-RPC to one EVM node. Redirects are not followed: they would carry requests to a host nobody configured."""

    def __init__(self, row: ChainRow, url: SecretStr, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(row, clock)
        self._provider = _Provider(
            url.get_secret_value(),
            request_kwargs={"timeout": aiohttp.ClientTimeout(total=row.timeout), "allow_redirects": False},
            exception_retry_configuration=None,
        )

    async def call(self, method: str, params: Sequence[object]) -> Any:
        """Return the ``result`` of one JSON-RPC call.

        Raises:
            Unreachable: down, slow, refusing or rate-limiting, after the retries.
            Garbage: the body is not a JSON-RPC response.
            Unavailable: the node lacks the block or its state.
            NodeRefused: any other JSON-RPC error, reverts included.
        """
        return await self._attempt(lambda: self._once(method, params))

    async def _once(self, method: str, params: Sequence[object]) -> Any:
        name = self.row.name
        try:
            response: Any = await self._provider.make_request(RPCEndpoint(method), list(params))
        except TimeoutError:
            raise Unreachable(name, f"no answer to {method} within {self.row.timeout:g} s") from None
        except aiohttp.ClientResponseError as error:
            kind = Unreachable if error.status == 429 or error.status >= 500 else Garbage
            raise kind(name, f"HTTP status {error.status} to {method}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(name, f"cannot be reached ({type(error).__name__})") from None
        except _TooLarge:
            raise Garbage(name, f"the answer to {method} is larger than {BODY_LIMIT} bytes") from None
        except _Foreign as error:
            raise Garbage(name, f"the answer to {method} {error}") from None
        except (ValueError, TypeError):
            raise Garbage(name, f"the answer to {method} is not JSON-RPC") from None
        if not isinstance(response, dict):
            raise Garbage(name, f"the answer to {method} is not a JSON-RPC object")
        error_body = response.get("error")
        if error_body is not None:
            raise self._refusal(method, error_body)
        if "result" not in response:
            raise Garbage(name, f"the answer to {method} has neither result nor error")
        return response["result"]

    def _refusal(self, method: str, body: Any) -> SourceError:
        if not isinstance(body, dict) or not isinstance(body.get("code"), int):
            return Garbage(self.row.name, f"the error answered to {method} has no code")
        code, message = body["code"], str(body.get("message", ""))[:300]
        if code in RATE_LIMITED and not (method == "eth_getLogs" and any(w in message.lower() for w in TOO_MUCH_WORDS)):
            return Unreachable(self.row.name, f"rate limit at {method}")
        if code in UNKNOWN_STATE and any(w in message.lower() for w in UNKNOWN_STATE_WORDS):
            return Unavailable(self.row.name, f"{method}: {message}")
        return NodeRefused(self.row.name, code, f"{method}: {message}", body.get("data"))

    async def close(self) -> None:
        """Close the connection pool; more than one may ask, as several readers may share an endpoint."""
        session, self._provider.session = self._provider.session, None
        if session is not None:
            await session.close()


class _CappedStream(httpx2.AsyncByteStream):
    """Passes on no more than ``BODY_LIMIT`` bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > BODY_LIMIT:
                raise _TooLarge
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _cap(response: httpx2.Response) -> None:
    """Bound a response before its body is read; a packed one, which was not asked for, could unpack to any size."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _Packed
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _CappedStream(response.stream)


class _SolanaProvider(SolanaHTTPProvider):
    """solana-py's provider, strict about what it decodes."""

    async def make_request_unparsed(self, body: JsonRpcRequestSerializer) -> str:
        raw = await super().make_request_unparsed(body)
        _verify_answers(_decode(raw), orjson.loads(body.to_json())["id"])
        return raw


class SolanaEndpoint(_Endpoint):
    """solana-py's client to one Solana node, behind the same gates and errors."""

    def __init__(self, row: ChainRow, url: SecretStr, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(row, clock)
        self._client = AsyncClient(http2=False)
        self._client._provider = _SolanaProvider(
            url.get_secret_value(), timeout=row.timeout, http2=False, max_transport_retries=0
        )
        self._ids = itertools.count(1)
        session = self._client._provider.session
        session.headers["accept-encoding"] = "identity"
        session.event_hooks = {"request": [], "response": [_cap]}

    async def call(self, method: str, params: Sequence[object]) -> Any:
        """Return the ``result`` of one raw JSON-RPC call, for what solana-py has no parameter for.

        Raises:
            Unreachable, Garbage, Unavailable, NodeRefused: as :meth:`EvmEndpoint.call`.
        """
        request = JsonRpcRequest(id=next(self._ids), method=method, params=list(params))
        return await self.ask(method, lambda client: client.send_rpc_request(request, Any))

    async def ask(self, what: str, request: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run ``request`` against the client; ``what`` names it in errors.

        Raises:
            Unreachable, Garbage, Unavailable, NodeRefused: as :meth:`EvmEndpoint.call`.
        """
        return await self._attempt(lambda: self._once(what, request))

    async def _once(self, what: str, request: Callable[[AsyncClient], Awaitable[T]]) -> T:
        name = self.row.name
        try:
            async with asyncio.timeout(self.row.timeout):
                return await request(self._client)
        except TimeoutError:
            raise Unreachable(name, f"no answer to {what} within {self.row.timeout:g} s") from None
        except SolanaRpcException as error:  # wraps the transport's own errors
            raise self._transport(what, error.__cause__ or error) from None
        except (SolanaJsonRpcError, RPCException) as error:
            raise self._refusal(what, error) from None
        except _TooLarge:
            raise Garbage(name, f"the answer to {what} is larger than {BODY_LIMIT} bytes") from None
        except _Packed:
            raise Garbage(name, f"the answer to {what} is packed, which was not asked for") from None
        except _Foreign as error:
            raise Garbage(name, f"the answer to {what} {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Garbage(name, f"the answer to {what} cannot be decoded ({type(error).__name__})") from None

    def _transport(self, what: str, cause: BaseException) -> SourceError:
        status = getattr(getattr(cause, "response", None), "status_code", 0)
        if 400 <= status < 500 and status != 429:
            return Garbage(self.row.name, f"HTTP status {status} to {what}")
        return Unreachable(self.row.name, f"{what}: cannot be reached ({type(cause).__name__})")

    def _refusal(self, what: str, error: Exception) -> SourceError:
        body = error if isinstance(error, SolanaJsonRpcError) else (error.args[0] if error.args else None)
        code, message = getattr(body, "code", None), str(getattr(body, "message", body))[:300]
        words = ("context slot", "not available", "was skipped", "missing in ledger")
        if any(w in message.lower() for w in words):
            return Unavailable(self.row.name, f"{what}: {message}")
        known = code if isinstance(code, int) else -32603
        if known in RATE_LIMITED:
            return Unreachable(self.row.name, f"rate limit at {what}")
        return NodeRefused(self.row.name, known, f"{what}: {message}", getattr(body, "data", None))

    async def close(self) -> None:
        """Close the connection pool."""
        await self._client.close()
