"""Shares and budgets over HTTP: signed as the API says, checked by the service, shown by destination."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from eth_account import Account as Wallet
from eth_account.messages import encode_typed_data

from aggregator.api import create_app
from aggregator.domain.report import DestinationBudget
from aggregator.service.accounts import AccountBook
from tests.api.synthetic_epochs import CHAIN_A, CHAIN_S, CUT_TIME, World, make_account, make_margin, make_record

OWNER, STRANGER = Wallet.from_key(b"\x01" * 32), Wallet.from_key(b"\x02" * 32)
CONTROLLER = f"{CHAIN_A}:{OWNER.address.lower()}"
HALVES = f"{CHAIN_A}=5000,{CHAIN_S}=5000"
BODY = {
    "controller": CONTROLLER,
    "shares": HALVES,
    "nonce": 1,
    "expiry": CUT_TIME + 600,
    "signature": "0x" + "aa" * 65,
}


@pytest.fixture
async def signing(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A service that checks signatures, with dave's account."""
    service = world.service
    chains, destinations = [c.id for c in service.chains], [d.chain for d in service.destinations]
    book = AccountBook(world.store, world.clock, service.deployment_id, chains, destinations)
    await book.open_account(CONTROLLER, "0x" + "01" * 32, "risk-bearing", None, "dave")
    transport = httpx.ASGITransport(create_app(replace(service, accounts=book)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as opened:
        yield opened


async def sign(client: httpx.AsyncClient, key: Any, **query: Any) -> dict[str, Any]:
    """Return the body that records what the API gave to be signed."""
    answer = await client.get(f"/v1/accounts/dave/shares/message?{urlencode(query)}")
    assert answer.status_code == 200, answer.text
    message = answer.json()
    signed = key.sign_message(encode_typed_data(full_message=json.loads(message["message"])))
    assert (message["verb"], message["signer"], message["form"]) == ("shares", CONTROLLER, "eip712")
    assert message["digest"] == "0x" + bytes(signed.message_hash).hex()
    terms = {
        "controller": CONTROLLER,
        "shares": query["shares"],
        "nonce": message["nonce"],
        "expiry": message["expiry"],
    }
    return {**terms, "signature": "0x" + bytes(signed.signature).hex()}


async def test_shares_are_signed_recorded_and_shown(signing: httpx.AsyncClient) -> None:
    body = await sign(signing, OWNER, shares=HALVES)
    assert body["nonce"] == "1"
    made = await signing.post("/v1/accounts/dave/shares", json=body)
    assert made.status_code == 201, made.text
    entry = made.json()
    assert (entry["kind"], entry["shares"], entry["member"], entry["nonce"]) == ("shares", HALVES, "", "1")
    assert entry["invite_signature"] == body["signature"]
    assert entry["accept_signature"] == ""
    assert (await signing.get("/v1/accounts/dave/links")).json() == [entry]
    assert (await signing.get("/v1/links?after=1")).json()["links"] == [entry]
    again = await signing.post("/v1/accounts/dave/shares", json=body)
    assert (again.status_code, again.json()["error"]["field"]) == (409, "nonce")
    home = await sign(signing, OWNER, shares=f"{CHAIN_A}=10000")
    assert home["nonce"] == "2"
    assert (await signing.post("/v1/accounts/dave/shares", json=home)).status_code == 201


async def test_shares_that_another_signed_or_that_were_changed_are_refused(signing: httpx.AsyncClient) -> None:
    good, strange = await sign(signing, OWNER, shares=HALVES), await sign(signing, STRANGER, shares=HALVES)
    for body, status, field in (
        (strange, 400, "signature"),
        ({**good, "shares": f"{CHAIN_A}=10000"}, 400, "signature"),
        ({**good, "nonce": 2}, 400, "signature"),
        ({**good, "controller": f"{CHAIN_A}:{STRANGER.address.lower()}"}, 400, "controller"),
        ({**good, "expiry": CUT_TIME - 1}, 400, "expiry"),
        ({**good, "shares": "eip155:99=10000"}, 400, "shares"),
    ):
        answer = await signing.post("/v1/accounts/dave/shares", json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), body
    assert (await signing.get("/v1/accounts/dave/links")).json() == []
    assert (await signing.post("/v1/accounts/nobody/shares", json=good)).status_code == 404


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"shares": ""}, 422, "shares"),
        ({"shares": f"{CHAIN_A}=100000"}, 422, "shares"),
        ({"shares": f"{CHAIN_A}=0"}, 400, "shares"),
        ({"shares": f"{CHAIN_S}=1,{CHAIN_A}=1"}, 400, "shares"),
        ({"shares": f"{CHAIN_A}=5001,{CHAIN_S}=5000"}, 400, "shares"),
        ({"shares": ",".join([f"{CHAIN_S}=1"] * 40)}, 422, "shares"),
        ({"nonce": 2**64}, 422, "nonce"),
        ({"expiry": -1}, 422, "expiry"),
        ({"signature": "hello"}, 422, "signature"),
        ({"controller": "nobody"}, 422, "controller"),
        ({"surplus": 1}, 422, "surplus"),
    ],
)
async def test_bad_shares_name_the_field(
    signing: httpx.AsyncClient, changes: dict[str, Any], status: int, field: str
) -> None:
    answer = await signing.post("/v1/accounts/dave/shares", json={**BODY, **changes})
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text
    if field == "shares":
        asked = await signing.get(f"/v1/accounts/dave/shares/message?{urlencode(changes)}")
        assert (asked.status_code, asked.json()["error"]["field"]) == (status, field), asked.text


async def test_the_margin_shows_what_may_be_drawn_where_and_what_is_charged(
    client: httpx.AsyncClient, world: World
) -> None:
    alice = make_account("alice")
    there = DestinationBudget(CHAIN_S, 3_000, 2**60, 7_00000000, 8_00000000, 9_00000000, 9_00000000, 1, 2)
    here = DestinationBudget(CHAIN_A, 7_000, 5_00000000, 0, 0, 0, 0)
    margin = replace(make_margin(alice.id, 4), budgets=(here, there), free_before_draws=2**60 + 1)
    await world.store.save_epoch(make_record(4, (margin,)))
    found = (await client.get("/v1/accounts/alice/margin")).json()
    assert found["free_before_draws"]["exact"] == str(2**60 + 1)  # exact, beyond what a double holds
    first, second = found["budgets"]
    assert (first["destination"], first["share"], first["budget"]["text"]) == (CHAIN_A, 7_000, "5.00")
    amounts = {name: second[name]["exact"] for name in ("budget", "used", "outstanding", "debts", "charge")}
    assert amounts == {
        "budget": str(2**60),
        "used": "700000000",
        "outstanding": "800000000",
        "debts": "900000000",
        "charge": "900000000",
    }
    assert [second["unexplained"][level]["exact"] for level in ("initial", "maintenance")] == ["1", "2"]
