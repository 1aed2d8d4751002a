"""The API tells which chains are halted, why and since when; a resumed one is not."""

from __future__ import annotations

import httpx

from tests.api.synthetic_epochs import CHAIN_A, CHAIN_B, World


async def test_a_standing_halt_is_on_its_chain_alone(client: httpx.AsyncClient, world: World) -> None:
    halts = world.service.halts
    await halts.halt("attestor-1", CHAIN_A, "reorged: block 90", 50)
    await halts.halt("coordinator", CHAIN_A, "reorged: block 91", 51)
    await halts.halt("coordinator", CHAIN_B, "reorged: block 7", 52)
    await halts.resume(CHAIN_B, "looked", "ann", 60)
    a, b, _ = (await client.get("/v1/chains")).json()
    assert a["halt"] == {"cause": "reorged: block 90", "since": 50, "parties": ["attestor-1", "coordinator"]}
    assert b["halt"] is None
    assert (await client.get("/")).text.count("until an operator resumes it") == 1
