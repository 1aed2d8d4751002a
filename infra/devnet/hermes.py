"""The devnet's price publisher: the Hermes v2 REST shape over real `PNAU` updates of a development guardian set.

Every second it walks its prices, builds one accumulator tree over all feeds, has 13 of 19 development guardians sign
the root and keeps the last ten minutes. The bytes are what `proofs.pyth` verifies; only the keys are not Wormhole's:
anyone can derive them from the label below, so a deployment that trusts them is a devnet.

Run it alone with `python -m infra.devnet.hermes --port N --seed S`, or from a scenario with `PublisherProcess`.
Shapes: Hermes, pyth-network/pyth-crosschain `apps/hermes/server`; tree: the same repository's
`pythnet/pythnet_sdk/src/accumulators/merkle.rs`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ctypes
import errno
import json
import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from coincurve import PrivateKey
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from proofs.hashing import keccak256
from proofs.pyth import PriceMessage, parse_price

HOST = "127.0.0.1"
KEPT_UPDATES = 600
GUARDIANS = 19
SIGNERS = GUARDIANS * 2 // 3 + 1
GUARDIAN_SET_INDEX = 0
EMITTER_CHAIN = 26
EMITTER_ADDRESS = keccak256(b"crossmargin/devnet/pyth-emitter")
START_PRICES = Path(__file__).with_name("hermes_start.json")

_KEY_LABEL = b"crossmargin/devnet/guardian/"
_BUSY_PORT = 98
_SECONDS_PER_YEAR = 365.25 * 86_400
_EMA_SECONDS = 3_600.0
_REVERSION_SECONDS = 600.0
_SLOTS_PER_SECOND = 2
_RING_SIZE = 10_000
# Annualised, of the order seen in the years before 2025; stablecoins revert to their anchor instead of walking away.
_VOLATILITY = {"BTC/USD": 0.50, "ETH/USD": 0.65, "SOL/USD": 0.85, "USDC/USD": 0.003, "DAI/USD": 0.003}
_ANCHORED = frozenset({"USDC/USD", "DAI/USD"})


class PublisherError(RuntimeError):
    """The publisher cannot start; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One feed and the recorded price it starts from: value = price · 10^expo, conf likewise."""

    symbol: str
    feed_id: bytes
    price: int
    conf: int
    expo: int


@dataclass(frozen=True, slots=True)
class Published:
    """One second's accumulator: its signed VAA and each feed's message with its path under the VAA's root."""

    publish_time: int
    slot: int
    vaa: bytes
    messages: dict[bytes, tuple[bytes, tuple[bytes, ...]]]


@dataclass(slots=True)
class _Level:
    """A feed's walking state in units of 10^expo."""

    price: float
    ema: float
    anchor: float


@dataclass(slots=True)
class Publisher:
    """Walks prices and signs one update per tick; it reads no clock, so equal seeds and ticks give equal bytes.

    Args:
        seed: Label of the random walk.
        feeds: What to publish.
        kept: How many updates to keep.
    """

    seed: str
    feeds: Sequence[Feed]
    kept: int = KEPT_UPDATES
    paused: bool = False
    _levels: dict[bytes, _Level] = field(init=False)
    _walk: random.Random = field(init=False)
    _ring: OrderedDict[int, Published] = field(init=False, default_factory=OrderedDict)
    _sequence: int = field(init=False, default=0)
    _evicted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._levels = {f.feed_id: _Level(float(f.price), float(f.price), float(f.price)) for f in self.feeds}
        self._walk = random.Random(self.seed)

    def tick(self, now: int) -> None:
        """Publish the update of second `now`; do nothing while paused or when `now` is not after the last update."""
        last = self.latest()
        if self.paused or (last is not None and now <= last.publish_time):
            return
        previous = now - 1 if last is None else last.publish_time
        messages = []
        for feed in self.feeds:
            level = self._levels[feed.feed_id]
            if last is not None:
                _step(level, feed.symbol, self._walk.gauss(0.0, 1.0), now - previous)
            messages.append(_encode_price(feed, level, now, previous))
        root, paths = _build_tree(messages)
        self._sequence += 1
        slot = now * _SLOTS_PER_SECOND
        self._ring[now] = Published(
            publish_time=now,
            slot=slot,
            vaa=_sign_root(root, slot, now, self._sequence),
            messages={f.feed_id: (m, p) for f, m, p in zip(self.feeds, messages, paths, strict=True)},
        )
        while len(self._ring) > self.kept:
            self._ring.popitem(last=False)
            self._evicted = True

    def shock(self, feed_ids: Sequence[bytes], factor: float) -> None:
        """Multiply the level of the feeds; the next update shows it, and the walk goes on from there."""
        for feed_id in feed_ids:
            level = self._levels[feed_id]
            level.price *= factor
            level.anchor *= factor

    def latest(self) -> Published | None:
        """Return the newest update."""
        return next(reversed(self._ring.values()), None)

    def first_at_or_after(self, publish_time: int) -> Published | None:
        """Return the first update with publish_time ≥ the given; None if none yet, or if it is no longer kept."""
        if self._evicted and publish_time < next(iter(self._ring)):
            return None
        return next((p for t, p in self._ring.items() if t >= publish_time), None)


def read_feeds() -> tuple[Feed, ...]:
    """Read the recorded start prices."""
    document = json.loads(START_PRICES.read_text())
    return tuple(
        Feed(row["symbol"], bytes.fromhex(row["feed_id"]), row["price"], row["conf"], row["expo"])
        for row in document["feeds"]
    )


def build_update(published: Published, feed_ids: Sequence[bytes]) -> bytes:
    """Return the `PNAU` bytes of one second's update with the prices of `feed_ids`, in that order."""
    parts = [b"PNAU", bytes([1, 0, 0, 0]), len(published.vaa).to_bytes(2, "big"), published.vaa, bytes([len(feed_ids)])]
    for feed_id in feed_ids:
        message, path = published.messages[feed_id]
        parts += [len(message).to_bytes(2, "big"), message, bytes([len(path)]), *path]
    return b"".join(parts)


def guardian_set() -> dict[str, object]:
    """Return the development signers in the shape of a price file: guardian_set, emitter_chain, emitter_address."""
    return {
        "guardian_set": {
            "index": GUARDIAN_SET_INDEX,
            "quorum": SIGNERS,
            "addresses": [f"0x{_address(key).hex()}" for key in _KEYS],
        },
        "emitter_chain": EMITTER_CHAIN,
        "emitter_address": f"0x{EMITTER_ADDRESS.hex()}",
    }


def build_app(publisher: Publisher, clock: Callable[[], float] = time.time) -> Starlette:
    """Build the ASGI application; while it runs, it ticks the publisher once per second of `clock`."""
    by_symbol = {feed.symbol: feed.feed_id for feed in publisher.feeds}
    known = set(by_symbol.values())

    def requested(request: Request) -> list[bytes]:
        ids, unknown = [], []
        for text in request.query_params.getlist("ids[]"):
            try:
                feed_id = bytes.fromhex(text.removeprefix("0x"))
            except ValueError as error:
                raise HTTPException(
                    400, f"Failed to deserialize query string: ids[]: {text[:80]!r} is not hex"
                ) from error
            if feed_id not in known:
                unknown.append(text[:80])
            elif feed_id not in ids:
                ids.append(feed_id)
        if unknown and request.query_params.get("ignore_invalid_price_ids") != "true":
            raise HTTPException(404, f"Price ids not found: {', '.join(unknown)}")
        if not ids:
            raise HTTPException(400, "Failed to deserialize query string: missing field `ids[]`")
        return ids

    def answer(request: Request, published: Published | None) -> Response:
        ids = requested(request)
        encoding = request.query_params.get("encoding", "hex")
        if encoding not in ("hex", "base64"):
            raise HTTPException(400, f"Failed to deserialize query string: unknown encoding {encoding[:20]!r}")
        if published is None:
            raise HTTPException(404, "Update data not found")
        raw = build_update(published, ids)
        document: dict[str, object] = {
            "binary": {
                "encoding": encoding,
                "data": [raw.hex() if encoding == "hex" else base64.b64encode(raw).decode()],
            }
        }
        if request.query_params.get("parsed", "true") == "true":
            document["parsed"] = [_parsed(parse_price(published.messages[i][0]), published) for i in ids]
        return JSONResponse(document)

    async def latest(request: Request) -> Response:
        return answer(request, publisher.latest())

    async def at(request: Request) -> Response:
        return answer(request, publisher.first_at_or_after(int(request.path_params["publish_time"])))

    async def price_feeds(request: Request) -> Response:
        query = request.query_params.get("query", "").lower()
        return JSONResponse([_described(f) for f in publisher.feeds if query in f"crypto.{f.symbol}".lower()])

    async def guardians(_: Request) -> Response:
        return JSONResponse(guardian_set())

    async def shock(request: Request) -> Response:
        feeds, factor = _read_shock(await request.body(), by_symbol)
        publisher.shock(feeds, factor)
        return JSONResponse({"feeds": [f"0x{feed_id.hex()}" for feed_id in feeds], "factor": str(factor)})

    async def pause(_: Request) -> Response:
        publisher.paused = True
        return JSONResponse({"paused": True})

    async def resume(_: Request) -> Response:
        publisher.paused = False
        return JSONResponse({"paused": False})

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return PlainTextResponse(error.detail, status_code=error.status_code)

    async def publish() -> None:
        while True:
            now = clock()
            publisher.tick(int(now))
            await asyncio.sleep(1.0 - now % 1.0)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        publisher.tick(int(clock()))
        publishing = asyncio.create_task(publish())
        try:
            yield
        finally:
            publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publishing

    return Starlette(
        routes=[
            Route("/v2/updates/price/latest", latest),
            Route("/v2/updates/price/{publish_time:int}", at),
            Route("/v2/price_feeds", price_feeds),
            Route("/x/guardians", guardians),
            Route("/x/shock", shock, methods=["POST"]),
            Route("/x/pause", pause, methods=["POST"]),
            Route("/x/resume", resume, methods=["POST"]),
        ],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )


class PublisherProcess:
    """The publisher as a child process: a context manager that is ready on entry and gone on exit.

    Start it from a thread that outlives it: on Linux the child ends with the thread that started it.

    Args:
        port: TCP port on the loopback interface; 0 picks a free one.
        seed: Label of the random walk.
        ready_seconds: How long starting may take.
    """

    def __init__(self, port: int = 0, seed: str = "devnet", *, ready_seconds: float = 30.0) -> None:
        self._port, self._seed, self._ready_seconds = port, seed, ready_seconds
        self._process: subprocess.Popen[str] | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The base address, for example http://127.0.0.1:8899."""
        if self._url is None:
            raise PublisherError("the price publisher is not running: call start() first")
        return self._url

    @property
    def pid(self) -> int:
        """The child's process id."""
        if self._process is None:
            raise PublisherError("the price publisher is not running: call start() first")
        return self._process.pid

    def start(self) -> None:
        """Start the child and wait until it listens.

        Raises:
            PublisherError: The port is busy, or the child ended or stayed silent; with what it said.
        """
        command = [sys.executable, "-m", "infra.devnet.hermes", "--port", str(self._port), "--seed", self._seed]
        with tempfile.TemporaryFile("w+") as complaints:
            self._process = subprocess.Popen(
                [*command, "--parent", str(os.getpid())],
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
                start_new_session=True,  # Ctrl-C is the parent's to handle; it then stops its children in order
            )
            line = self._read_line()
            if not line.startswith("http://"):
                self.stop()
                complaints.seek(0)
                said = complaints.read().strip() or "it said nothing"
                raise PublisherError(f"the price publisher did not start within {self._ready_seconds:g} s: {said}")
        self._url = line.strip()

    def stop(self) -> None:
        """Stop the child, by force if it does not go; stopping twice does nothing."""
        process, self._process, self._url = self._process, None, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=3.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read_line(self) -> str:
        """Return the child's first line, or an empty one at its end or when time is up."""
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], self._ready_seconds)
        return self._process.stdout.readline() if readable else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until terminated; print the base address once listening."""
    parser = argparse.ArgumentParser(prog="python -m infra.devnet.hermes", description="Publish devnet prices.")
    parser.add_argument("--port", type=int, default=0, help="TCP port on the loopback interface; 0 picks a free one")
    parser.add_argument("--seed", default="devnet", help="label of the random walk")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process ends")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        _end_with(options.parent)
    try:
        listener = _listen(options.port)
    except PublisherError as error:
        print(error, file=sys.stderr)
        return _BUSY_PORT
    app = build_app(Publisher(options.seed, read_feeds()))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=1)
    )
    print(f"http://{HOST}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])
    return 0


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PublisherError(
                f"port {port} is busy: stop what listens there, or pass another --port (0 picks a free one)"
            ) from error
        raise PublisherError(f"port {port} cannot be opened: {error}") from error
    return listener


def _end_with(parent: int) -> None:
    """Ask Linux to terminate this process when its parent dies; elsewhere the parent's `stop` must do."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked
            sys.exit(1)


def _read_shock(body: bytes, by_symbol: dict[str, bytes]) -> tuple[list[bytes], float]:
    try:
        document = json.loads(body)
        named, factor = document["feeds"], float(document["factor"])
    except (ValueError, KeyError, TypeError) as error:
        raise HTTPException(400, '{"feeds": ["ETH/USD"] or "all", "factor": "0.85"} expected') from error
    if not (math.isfinite(factor) and factor > 0):
        raise HTTPException(400, "factor: a number above 0 expected")
    if named == "all":
        return list(by_symbol.values()), factor
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise HTTPException(400, 'feeds: a list of symbols, or "all", expected')
    unknown = [name for name in named if name not in by_symbol]
    if unknown:
        raise HTTPException(404, f"feeds: unknown {', '.join(unknown)}; known are {', '.join(by_symbol)}")
    return [by_symbol[name] for name in named], factor


def _step(level: _Level, symbol: str, shock: float, seconds: int) -> None:
    """Move one feed by `seconds`: geometric Brownian motion, drawn back to its anchor for a stablecoin."""
    step = _VOLATILITY.get(symbol, 0.5) * math.sqrt(seconds / _SECONDS_PER_YEAR) * shock
    if symbol in _ANCHORED:
        step -= math.log(level.price / level.anchor) * -math.expm1(-seconds / _REVERSION_SECONDS)
    level.price *= math.exp(step)
    level.ema += (level.price - level.ema) * -math.expm1(-seconds / _EMA_SECONDS)


def _encode_price(feed: Feed, level: _Level, now: int, previous: int) -> bytes:
    price = max(1, round(level.price))
    conf = max(1, price * feed.conf // feed.price)
    return b"".join(
        (
            b"\x00",
            feed.feed_id,
            price.to_bytes(8, "big", signed=True),
            conf.to_bytes(8, "big"),
            feed.expo.to_bytes(4, "big", signed=True),
            now.to_bytes(8, "big", signed=True),
            previous.to_bytes(8, "big", signed=True),
            max(1, round(level.ema)).to_bytes(8, "big", signed=True),
            conf.to_bytes(8, "big"),
        )
    )


def _build_tree(messages: Sequence[bytes]) -> tuple[bytes, list[tuple[bytes, ...]]]:
    """Return the root and each message's path: a complete tree, its empty leaves the hash of 0x02, as on Pythnet."""
    width = 1 << max(len(messages) - 1, 0).bit_length()
    level = [_hash160(b"\x00" + message) for message in messages]
    level += [_hash160(b"\x02")] * (width - len(level))
    paths: list[list[bytes]] = [[] for _ in messages]
    shift = 0
    while len(level) > 1:
        for i, path in enumerate(paths):
            path.append(level[(i >> shift) ^ 1])
        level = [_hash160(b"\x01" + min(a, b) + max(a, b)) for a, b in zip(level[::2], level[1::2], strict=True)]
        shift += 1
    return level[0], [tuple(path) for path in paths]


def _sign_root(root: bytes, slot: int, now: int, sequence: int) -> bytes:
    """Return the VAA that carries `root`, signed by 13 guardians; who they are turns with the sequence."""
    payload = b"AUWV\x00" + slot.to_bytes(8, "big") + _RING_SIZE.to_bytes(4, "big") + root
    body = b"".join(
        (
            now.to_bytes(4, "big"),
            bytes(4),
            EMITTER_CHAIN.to_bytes(2, "big"),
            EMITTER_ADDRESS,
            sequence.to_bytes(8, "big"),
            b"\x01",
            payload,
        )
    )
    digest = keccak256(keccak256(body))
    signers = sorted((sequence + i) % GUARDIANS for i in range(SIGNERS))
    signatures = b"".join(bytes([i]) + _KEYS[i].sign_recoverable(digest, hasher=None) for i in signers)
    return b"\x01" + GUARDIAN_SET_INDEX.to_bytes(4, "big") + bytes([SIGNERS]) + signatures + body


def _hash160(data: bytes) -> bytes:
    return keccak256(data)[:20]


def _address(key: PrivateKey) -> bytes:
    return keccak256(key.public_key.format(compressed=False)[1:])[12:]


def _parsed(price: PriceMessage, published: Published) -> dict[str, Any]:
    return {
        "id": price.feed_id.hex(),
        "price": _amounts(price.price, price.conf, price),
        "ema_price": _amounts(price.ema_price, price.ema_conf, price),
        "metadata": {
            "slot": published.slot,
            "proof_available_time": published.publish_time,
            "prev_publish_time": price.prev_publish_time,
        },
    }


def _amounts(value: int, conf: int, price: PriceMessage) -> dict[str, object]:
    return {"price": str(value), "conf": str(conf), "expo": price.expo, "publish_time": price.publish_time}


def _described(feed: Feed) -> dict[str, object]:
    base, quote = feed.symbol.split("/")
    attributes = {"symbol": f"Crypto.{feed.symbol}", "asset_type": "Crypto", "base": base, "quote_currency": quote}
    return {"id": feed.feed_id.hex(), "attributes": {**attributes, "display_symbol": feed.symbol}}


_KEYS = tuple(PrivateKey(keccak256(_KEY_LABEL + str(i).encode())) for i in range(GUARDIANS))


if __name__ == "__main__":
    sys.exit(main())
