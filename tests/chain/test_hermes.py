"""The devnet's price publisher: what it serves verifies as Pyth's own updates do, under its own guardians."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import textwrap
import time

import httpx
import pytest

from infra.devnet.hermes import (
    EMITTER_ADDRESS,
    EMITTER_CHAIN,
    SIGNERS,
    Publisher,
    PublisherError,
    PublisherProcess,
    build_app,
    build_update,
    guardian_set,
    read_feeds,
)
from proofs.pyth import GuardianSet, PriceMessage, parse_update, verify_price_file, verify_update

ETH = bytes.fromhex("ff61491a931112ddf1bd8147cd1b641375f79f5825126d665480874634fd0ace")
START = 1_800_000_000
SIGNED_BY = guardian_set()["guardian_set"]


def verified(raw: bytes) -> tuple[PriceMessage, ...]:
    guardians = GuardianSet(
        SIGNED_BY["index"], tuple(bytes.fromhex(a[2:]) for a in SIGNED_BY["addresses"]), SIGNED_BY["quorum"]
    )
    return verify_update(raw, guardians, EMITTER_CHAIN, EMITTER_ADDRESS)


@pytest.fixture
def publisher() -> Publisher:
    return Publisher("test", read_feeds())


def test_first_update_holds_the_recorded_prices_stamped_with_the_tick(publisher: Publisher) -> None:
    publisher.tick(START)
    prices = verified(build_update(publisher.latest(), [feed.feed_id for feed in publisher.feeds]))
    assert [(p.feed_id, p.price, p.conf, p.expo) for p in prices] == [
        (f.feed_id, f.price, f.conf, f.expo) for f in publisher.feeds
    ]
    assert {(p.publish_time, p.prev_publish_time) for p in prices} == {(START, START - 1)}
    assert len(parse_update(build_update(publisher.latest(), [ETH])).vaa.signatures) == SIGNERS == 13


def test_every_tick_verifies_and_the_walk_stays_near_real_moves(publisher: Publisher) -> None:
    for second in range(120):
        publisher.tick(START + second)
    starts = {feed.feed_id: feed.price for feed in publisher.feeds}
    for second in (0, 1, 59, 119):
        published = publisher.first_at_or_after(START + second)
        for price in verified(build_update(published, list(starts))):
            assert price.publish_time == START + second
            assert 0 < abs(price.price / starts[price.feed_id] - 1) < 0.02 or second == 0


def test_equal_seeds_and_ticks_give_equal_bytes_and_other_seeds_other_prices() -> None:
    updates = []
    for seed in ("a", "a", "b"):
        publisher = Publisher(seed, read_feeds())
        for second in range(3):
            publisher.tick(START + second)
        updates.append(build_update(publisher.latest(), [ETH]))
    assert updates[0] == updates[1] != updates[2]


def test_pause_leaves_a_gap_that_the_next_update_names(publisher: Publisher) -> None:
    publisher.tick(START)
    publisher.paused = True
    publisher.tick(START + 1)
    publisher.paused = False
    publisher.tick(START + 5)
    published = publisher.first_at_or_after(START + 1)
    (price,) = verified(build_update(published, [ETH]))
    assert (price.publish_time, price.prev_publish_time) == (START + 5, START)


def test_a_shock_moves_only_its_feeds(publisher: Publisher) -> None:
    publisher.tick(START)
    publisher.shock([ETH], 0.85)
    publisher.tick(START + 1)
    moves = {
        p.feed_id: p.price / f.price
        for f, p in zip(
            publisher.feeds,
            verified(build_update(publisher.latest(), [f.feed_id for f in publisher.feeds])),
            strict=True,
        )
    }
    assert moves.pop(ETH) == pytest.approx(0.85, abs=0.002)
    assert all(move == pytest.approx(1.0, abs=0.002) for move in moves.values())


def test_the_ring_forgets_old_updates_rather_than_pass_a_later_one_for_the_first() -> None:
    publisher = Publisher("ring", read_feeds(), kept=3)
    for second in range(5):
        publisher.tick(START + second)
    assert publisher.first_at_or_after(START + 1) is None
    assert publisher.first_at_or_after(START + 2).publish_time == START + 2
    assert publisher.first_at_or_after(START + 5) is None


@pytest.fixture
async def client(publisher: Publisher):
    now = [float(START)]
    app = build_app(publisher, clock=lambda: now[0])
    publisher.tick(START)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://hermes") as connected:
        yield connected


async def test_latest_has_the_shape_of_hermes_in_both_encodings(client: httpx.AsyncClient) -> None:
    query = {"ids[]": [f"0x{ETH.hex()}"], "parsed": "true"}
    as_hex = (await client.get("/v2/updates/price/latest", params={**query, "encoding": "hex"})).json()
    as_base64 = (await client.get("/v2/updates/price/latest", params={**query, "encoding": "base64"})).json()
    raw = bytes.fromhex(as_hex["binary"]["data"][0])
    assert base64.b64decode(as_base64["binary"]["data"][0]) == raw
    (price,) = verified(raw)
    (parsed,) = as_hex["parsed"]
    assert parsed["id"] == ETH.hex()
    assert parsed["price"] == {
        "price": str(price.price), "conf": str(price.conf), "expo": price.expo, "publish_time": START,
    }  # fmt: skip
    assert parsed["metadata"]["prev_publish_time"] == START - 1


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        (f"/v2/updates/price/{START + 1}?ids[]={ETH.hex()}", 404, "not found"),
        (f"/v2/updates/price/latest?ids[]={'00' * 32}", 404, "Price ids not found"),
        ("/v2/updates/price/latest?ids[]=zz", 400, "ids[]"),
        ("/v2/updates/price/latest", 400, "ids[]"),
        (f"/v2/updates/price/latest?ids[]={ETH.hex()}&encoding=xml", 400, "encoding"),
    ],
)
async def test_what_cannot_be_served_is_refused(client: httpx.AsyncClient, path: str, status: int, says: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert says in answer.text


async def test_an_unknown_feed_can_be_ignored_and_the_feeds_are_listed(client: httpx.AsyncClient) -> None:
    ids = [ETH.hex(), "00" * 32]
    answer = await client.get("/v2/updates/price/latest", params={"ids[]": ids, "ignore_invalid_price_ids": "true"})
    assert [p["id"] for p in answer.json()["parsed"]] == [ETH.hex()]
    feeds = (await client.get("/v2/price_feeds")).json()
    assert {f["attributes"]["symbol"] for f in feeds} >= {"Crypto.ETH/USD", "Crypto.BTC/USD", "Crypto.SOL/USD"}


@pytest.mark.parametrize(
    "body", ["", "[]", '{"feeds": "all"}', '{"feeds": "all", "factor": "-1"}', '{"feeds": 3, "factor": 1}']
)
async def test_a_broken_shock_is_refused(client: httpx.AsyncClient, body: str) -> None:
    assert (await client.post("/x/shock", content=body)).status_code == 400


@pytest.mark.chain
def test_the_process_publishes_each_second_shocks_and_leaves_nothing_behind() -> None:
    with PublisherProcess(seed="process") as process, httpx.Client(base_url=process.url) as client:
        pid = process.pid
        ids = {"ids[]": ETH.hex()}
        first = client.get("/v2/updates/price/latest", params=ids).json()["parsed"][0]["price"]
        assert abs(first["publish_time"] - time.time()) < 30
        shock = client.post("/x/shock", json={"feeds": ["ETH/USD"], "factor": "0.5"})
        assert shock.status_code == 200
        following = first["publish_time"] + 2
        deadline = time.monotonic() + 30
        while (answer := client.get(f"/v2/updates/price/{following}", params=ids)).status_code == 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        document = answer.json()
        file = {
            **client.get("/x/guardians").json(),
            "updates": [
                {
                    "name": "shocked",
                    "update_hex": document["binary"]["data"][0],
                    "expected": [{"feed_id": ETH.hex(), **document["parsed"][0]["price"]}],
                }
            ],
        }
        (result,) = verify_price_file(file)
        assert result.problem is None
        assert result.prices[0].price / int(first["price"]) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.chain
def test_a_busy_port_is_named_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PublisherError, match=rf"port {port} is busy.*--port"):
            PublisherProcess(port).start()


@pytest.mark.chain
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_the_process_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                """
                import time
                from infra.devnet.hermes import PublisherProcess
                process = PublisherProcess()
                process.start()
                print(process.url, flush=True)
                time.sleep(60)
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert httpx.get(f"{url}/x/guardians").status_code == 200
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            httpx.get(f"{url}/x/guardians", timeout=2)
        except httpx.TransportError:
            break
        assert time.monotonic() < deadline, "the publisher outlived its parent"
        time.sleep(0.1)
