"""GET /v1/latency: the same figures that the command line prints, with its filters."""

from __future__ import annotations

import json
from dataclasses import asdict

import httpx

from aggregator.domain.latency import Sample
from aggregator.store.latencies import SqlLatencies
from aggregator.store.sql import SqlStore
from tests.api.synthetic_epochs import CHAIN_A, CHAIN_S, World


async def test_it_answers_what_was_measured(world: World, client: httpx.AsyncClient) -> None:
    store = world.store
    assert isinstance(store, SqlStore)
    at = int(world.clock.now()) - 500
    await SqlLatencies(store).record([Sample("relay", CHAIN_A, float(i % 4), at + i) for i in range(100)])
    answer = await client.get("/v1/latency")
    assert answer.status_code == 200
    body = answer.json()
    relay = next(leg for leg in body["legs"] if (leg["chain"], leg["leg"]) == (CHAIN_A, "relay"))
    assert (relay["samples"], relay["p50"], relay["longest"], relay["last_at"]) == (100, 1.0, 3.0, at + 99)
    assert relay["law_samples"] == 100
    assert body["holds"]
    # The command line prints `asdict` of the same report.
    assert body == json.loads(json.dumps(asdict(await world.service.latency(86_400, None, None))))

    filtered = (await client.get("/v1/latency", params={"chain": CHAIN_A, "leg": "relay", "since": 450})).json()
    assert [(leg["leg"], leg["samples"]) for leg in filtered["legs"]] == [("relay", 50)]
    assert [hold["chain"] for hold in filtered["holds"]] == [CHAIN_A]


async def test_unknown_chains_and_legs_are_refused_by_name(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/latency", params={"chain": "gamma"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "chain")
    answer = await client.get("/v1/latency", params={"leg": "walk"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "leg")
    answer = await client.get("/v1/latency", params={"since": 86_401})
    assert answer.status_code == 422
    assert (await client.get("/v1/latency", params={"chain": CHAIN_S})).status_code == 200
