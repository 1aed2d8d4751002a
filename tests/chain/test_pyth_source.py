"""The Pyth source against a real publisher process, and against servers that are absent or lie."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from adapters.prices.pyth import ATTEMPTS, BODY_LIMIT, PythSource
from aggregator.domain.errors import Garbage, SourceError, Unavailable, Unreachable
from aggregator.domain.rows import PythRow, SourceRow
from infra.devnet.anvil import find_free_port
from infra.devnet.hermes import PublisherProcess, guardian_set, read_feeds

pytestmark = pytest.mark.chain
FEEDS = {feed.symbol: feed for feed in read_feeds()}
SYMBOLS = ("ETH/USD", "BTC/USD")
LATER = 1_900_000_000
KEY = "secret-key"
MINOR_VERSION = 5  # the one byte of an update that says nothing: readers must accept any


@pytest.fixture(scope="module")
def publisher() -> Iterator[PublisherProcess]:
    with PublisherProcess(seed="pyth source") as process:
        yield process


def make_source(url: str, **changes: Any) -> PythSource:
    signed = guardian_set()
    guardians: Any = signed["guardian_set"]
    fields: dict[str, Any] = {
        "url": url,
        "api_key": SecretStr(KEY),
        "guardian_set_index": guardians["index"],
        "guardians": tuple(guardians["addresses"]),
        "emitter_chain": signed["emitter_chain"],
        "emitter_address": str(signed["emitter_address"]).removeprefix("0x"),
    }
    rows = [SourceRow(name=f"pyth-{s}", feed=s, kind="pyth", id="0x" + FEEDS[s].feed_id.hex().upper()) for s in SYMBOLS]
    return PythSource(PythRow(**{**fields, **changes}), rows)


def newest(publisher: PublisherProcess) -> int:
    """Return the time of the newest update."""
    ids = {"ids[]": FEEDS["ETH/USD"].feed_id.hex()}
    answer = httpx.get(f"{publisher.url}/v2/updates/price/latest", params=ids).json()
    return int(answer["parsed"][0]["price"]["publish_time"])


async def test_updates_are_fetched_verified_and_quoted(publisher: PublisherProcess) -> None:
    cut = newest(publisher)
    source = make_source(publisher.url)
    updates = await source.fetch(cut)
    quotes = source.decode(updates, cut)
    await source.close()
    assert [(q.feed, q.source, q.kind) for q in quotes] == [(s, f"pyth-{s}", "pyth") for s in SYMBOLS]
    ids = {"ids[]": [FEEDS[s].feed_id.hex() for s in SYMBOLS]}
    async with httpx.AsyncClient(base_url=publisher.url) as client:
        told = (await client.get(f"/v2/updates/price/{cut}", params=ids)).json()["parsed"]
    for quote, parsed in zip(quotes, told, strict=True):
        price, average = parsed["price"], parsed["ema_price"]
        assert (str(quote.price), str(quote.conf), quote.expo) == (price["price"], price["conf"], price["expo"])
        assert (str(quote.ema_price), str(quote.ema_conf)) == (average["price"], average["conf"])
        assert quote.publish_time == price["publish_time"] >= cut


async def test_the_same_update_is_the_answer_to_the_same_cut(publisher: PublisherProcess) -> None:
    cut = newest(publisher)
    first, second = make_source(publisher.url), make_source(publisher.url)
    assert await first.fetch(cut) == await second.fetch(cut)
    await first.close()
    await second.close()


async def test_only_the_first_update_after_the_cut_is_a_price(publisher: PublisherProcess) -> None:
    """Else whoever proposes an epoch could choose among all that were ever signed."""
    source = make_source(publisher.url)
    cut = newest(publisher)
    updates = await source.fetch(cut)
    for other in (cut - 1, cut + 1):
        with pytest.raises(Garbage, match=f"not the first at or after {other}"):
            source.decode(updates, other)
    await source.close()


async def test_any_flipped_byte_is_refused(publisher: PublisherProcess) -> None:
    source = make_source(publisher.url)
    cut = newest(publisher)
    (update,) = await source.fetch(cut)
    source.decode([update], cut)  # from now on the signatures are remembered, which must not help a forgery
    accepted = []
    for at in range(len(update)):
        forged = bytearray(update)
        forged[at] ^= 1
        with contextlib.suppress(Garbage):
            source.decode([bytes(forged)], cut)
            accepted.append(at)
    assert accepted == [MINOR_VERSION]
    for cut_short in (b"", update[:-1], update + b"\0"):
        with pytest.raises(Garbage, match=r"^pyth: an update does not verify: "):
            source.decode([cut_short], cut)
    await source.close()


async def test_updates_of_other_guardians_or_another_emitter_are_refused(publisher: PublisherProcess) -> None:
    source = make_source(publisher.url)
    cut = newest(publisher)
    updates = await source.fetch(cut)
    await source.close()
    guardians: Any = guardian_set()["guardian_set"]
    for changes in (
        {"guardians": tuple(reversed(guardians["addresses"]))},
        {"guardian_set_index": 4},
        {"emitter_chain": 1},
        {"emitter_address": "00" * 32},
    ):
        other = make_source(publisher.url, **changes)
        with pytest.raises(Garbage, match="does not verify"):
            other.decode(updates, cut)
        await other.close()


async def test_an_update_that_is_not_there_yet_is_unavailable_after_retries(publisher: PublisherProcess) -> None:
    source = make_source(publisher.url)
    with pytest.raises(Unavailable, match=f"no update at or after {LATER} yet") as caught:
        await source.fetch(LATER)
    await source.close()
    assert caught.value.retryable


async def test_an_update_that_comes_within_the_retries_is_had(publisher: PublisherProcess) -> None:
    (update,) = await _fetch(publisher.url, newest(publisher))
    answers = iter([b"404 Not Found", b"404 Not Found", b"200 OK"])
    body = b'{"binary": {"encoding": "hex", "data": ["' + update.hex().encode() + b'"]}}'

    def answer(_: bytes) -> bytes:
        return http(body, next(answers))

    async with server(answer) as url:
        assert await _fetch(url, 1) == (update,)


async def _fetch(url: str, cut: int) -> tuple[bytes, ...]:
    source = make_source(url)
    try:
        return await source.fetch(cut)
    finally:
        await source.close()


async def fails(url: str) -> SourceError:
    """Fetch from a bad server; return the error, which must show neither address nor key."""
    with pytest.raises(SourceError) as caught:
        await _fetch(url, int(time.time()))
    error = caught.value
    assert error.source == "pyth"
    for text in (str(error), repr(error)):
        assert KEY not in text
        assert "127.0.0.1" not in text
    assert error.__cause__ is None
    return error


async def test_a_publisher_that_is_down_is_unreachable() -> None:
    error = await fails(f"http://127.0.0.1:{find_free_port()}")
    assert isinstance(error, Unreachable)


def http(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def server(answer: Callable[[bytes], bytes], seen: list[bytes] | None = None) -> AsyncIterator[str]:
    """Serve HTTP on a free port with whatever bytes ``answer`` makes of a request head."""

    async def serve(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reading.readuntil(b"\r\n\r\n")
                if seen is not None:
                    seen.append(head)
                writing.write(answer(head))
                await writing.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writing.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()


async def test_an_answer_above_a_mebibyte_is_refused() -> None:
    body = b'{"binary": {"encoding": "hex", "data": ["' + b"00" * BODY_LIMIT + b'"]}}'
    async with server(lambda _: http(body)) as url:
        error = await fails(url)
    assert isinstance(error, Garbage)
    assert f"larger than {BODY_LIMIT} bytes" in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (b"500 Internal Server Error", Unreachable, ATTEMPTS),
        (b"429 Too Many Requests", Unreachable, ATTEMPTS),
        (b"404 Not Found", Unavailable, ATTEMPTS),
        (b"401 Unauthorized", Garbage, 1),
        (b"302 Found", Garbage, 1),
    ],
)
async def test_http_errors_are_sorted(status: bytes, kind: type[SourceError], tries: int) -> None:
    seen: list[bytes] = []
    async with server(lambda _: http(b"no", status), seen) as url:
        error = await fails(url)
    assert type(error) is kind
    assert len(seen) == tries
    assert all(f"authorization: bearer {KEY}".encode() in head.lower() for head in seen)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 200_000,
        b'{"binary": 1}',
        b'{"binary": {"encoding": "hex", "data": []}}',
        b'{"binary": {"encoding": "hex", "data": "00"}}',
        b'{"binary": {"encoding": "hex", "data": [7]}}',
        b'{"binary": {"encoding": "hex", "data": ["zz"]}}',
        b'{"binary": {"encoding": "base64", "data": ["AAAA"]}}',
        b'{"binary": {"encoding": "hex", "data": [NaN]}}',
    ],
    ids=lambda body: body[:50].decode("latin1") or "empty",
)
async def test_what_is_not_an_answer_is_garbage(body: bytes) -> None:
    async with server(lambda _: http(body)) as url:
        error = await fails(url)
    assert type(error) is Garbage
