"""Perps and options in the API and on an account's page, as the core explains them."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import httpx
import pytest

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report
from aggregator.domain.report import LAYER_MEANINGS, AccountMargin
from tests.api.synthetic_epochs import World, make_account, make_margin, make_record
from tests.strategies import DERIVATIVES, ETH, USDC, contract, position, quotes, snapshot, world

OF = world(**DERIVATIVES)


def explained() -> AccountMargin:
    """Return alice's margin in epoch 4: an ETH collateral that hedges a short perp, and options."""
    rows = [
        position(1, ETH, 10.0),
        position(1, USDC, 5_000.0),
        contract(1, "perp", -8.0, entry=2_100.0),
        contract(1, "call", 2.5, strike=2_500.0),
        contract(1, "put", -2.0, strike=1_800.0),
    ]
    found = explain(compute_report(snapshot(rows), quotes(), OF), 0, OF)
    alice = make_account("alice").id
    components = tuple(c._replace(position=c.position._replace(account=alice)) for c in found.components)
    return replace(found, account=alice, components=components, leaves=make_margin(alice, 4).leaves)


@pytest.fixture
async def margin(world: World) -> AccountMargin:
    made = explained()
    await world.store.save_epoch(make_record(4, (made,)))
    return made


async def test_the_api_gives_contracts_greeks_and_the_walk(client: httpx.AsyncClient, margin: AccountMargin) -> None:
    answer = (await client.get("/v1/accounts/alice/margin")).json()
    assert answer["freshness"]["epoch"] == 4
    parts = [c["contract"] for c in answer["components"] if c["contract"]]
    assert {part["kind"] for part in parts} == {"perp", "call", "put"}
    perp = next(part for part in parts if part["kind"] == "perp")
    assert (perp["text"], perp["size"], perp["entry"]) == ("short 8 ETH-perp from 2100", "-8", "2100")
    assert (perp["side"], perp["priced"]["initial"]["bound"]) == ("short", "upper")
    assert float(perp["priced"]["maintenance"]["price"]) > 2_000
    assert 0 < int(perp["worst"]["initial"]["exact"]) < 8 * 100 * 10**8
    assert (perp["strike"], perp["expiry"], perp["delta"], perp["mark"]) == (None, None, -8.0, "2000")
    assert int(perp["requirement"]["initial"]["exact"]) < 0, "it hedges the collateral"
    call = next(part for part in parts if part["kind"] == "call")
    assert (call["strike"], call["entry"]) == ("2500", None)
    assert call["expiry"] > 1_760_000_000
    left = int(answer["equity"]["exact"]) + sum(int(step["initial"]["exact"]) for step in answer["layers"])
    assert left == int(answer["free_collateral"]["exact"])
    assert answer["model"] == "scenario"
    assert answer["hedged"] == ["initial", "maintenance"]
    assert answer["greeks"][0]["delta"] == pytest.approx(sum(part["delta"] for part in parts))
    assert answer["greeks"][0]["hedge"] > 7
    needed = [int(part["requirement"]["initial"]["exact"]) for part in parts]
    hedge = int(answer["greeks"][0]["requirement"]["initial"]["exact"])
    assert sum(needed) + hedge == pytest.approx(int(answer["required"]["initial"]["exact"]), abs=10)
    settled = answer["settlements"][0]
    for level in ("initial", "maintenance"):
        by = settled[level]
        product = (
            by["amount"] * float(by["price"]) * (1 - by["market"]) * (1 - by["policy"]) * by["weight"] * by["share"]
        )
        assert product * 1e8 == pytest.approx(int(settled["gain"][level]["exact"]), abs=10)
        worst = sum(int(part["worst"][level]["exact"]) for part in parts)
        assert worst == pytest.approx(int(settled["low"][level]["exact"]), abs=10)
    assert {step["layer"] for step in answer["layers"]} <= set(LAYER_MEANINGS)
    eth = next(c for c in answer["components"] if c["symbol"] == "T0")
    shares = eth["explained_initial"]
    assert sum(share for name, share in shares.items() if name != "zeros") == pytest.approx(1.0)
    assert shares["latency"] > 0
    assert shares["zeros"] == []


async def test_the_page_names_contracts_and_walks_from_equity(client: httpx.AsyncClient, margin: AccountMargin) -> None:
    page = (await client.get("/accounts/alice")).text
    assert 'title="short 8 ETH-perp from 2100"' in page
    assert "from 2,100<" in page
    assert "long 2.5 ETH-call 2500 exp" in page
    assert "−8 ETH" in page
    assert "UTC" in re.search(r"expires [^<]*", page)[0]
    assert "(upper)" in page
    assert "of 10 stand against the contracts" in page
    assert "-$" not in page
    assert "−$0.00" not in page
    assert "From equity to what is left" in page
    assert "The scenario model requires" in page
    assert "collateral stands in the grid as a hedge" in page
    for step in margin.layers:
        assert (f">{step.layer}</td>" in page) == (step.layer != "rounding")
        assert LAYER_MEANINGS[step.layer] in html.unescape(page) or step.layer == "rounding"


async def test_an_older_epoch_without_layers_still_has_its_page(client: httpx.AsyncClient) -> None:
    page = await client.get("/accounts/alice")
    assert page.status_code == 200
    assert "From equity to what is left" not in page.text
    assert "Perps and options" not in page.text
