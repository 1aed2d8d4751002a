"""Risk over HTTP: the newest certified epoch of a real Cycle, questions about it, and errors that name the field."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from aggregator.api import create_app
from aggregator.bootstrap import world_of
from aggregator.cli.stress import ask
from aggregator.config import Settings
from aggregator.core.pipeline import compute_report
from aggregator.core.risk.stress import standings
from aggregator.core.whatif import what_if
from aggregator.domain.errors import InputError
from aggregator.service import desk as desks
from aggregator.service.desk import Desk
from aggregator.store import SqlStore
from tests.api.synthetic_epochs import make_world
from tests.worlds.documents import ALPHA, BETA_ETH, BETA_USDC, LAMPORTS, USDC, WETH
from tests.worlds.world import DOLLAR, ETHER, FIRST_EPOCH, SimulatedWorld

WHEN = ("before", "after")


@dataclass(frozen=True)
class Certified:
    """One certified epoch: what the desk was told of it, and the store that it lies in."""

    settings: Settings
    folder: Path
    told: tuple[Any, ...]
    accounts: dict[str, str]  # id by label


@pytest.fixture(scope="session")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    folder = tmp_path_factory.mktemp("risk")
    told: list[tuple[Any, ...]] = []

    async def make() -> tuple[Settings, dict[str, str]]:
        async with SimulatedWorld(folder) as world:
            world.cycle.on_computed = lambda *given: told.append(given)
            accounts = await world.populate()
            record = await world.epoch(FIRST_EPOCH)
            assert record.attestations, record.refusals
            return world.settings, {name: account.id for name, account in accounts.items()}

    settings, accounts = asyncio.run(make())
    assert len(told) == 1
    return Certified(settings, folder, told[0], accounts)


@dataclass(frozen=True)
class Api:
    app: FastAPI
    client: httpx.AsyncClient
    desk: Desk
    certified: Certified

    async def get(self, path: str, status: int = 200) -> Any:
        return self._read(await self.client.get(path), status)

    async def post(self, path: str, body: object, status: int = 200) -> Any:
        return self._read(await self.client.post(path, json=body), status)

    @staticmethod
    def _read(answer: httpx.Response, status: int) -> Any:
        assert answer.status_code == status, answer.text
        assert answer.headers["cache-control"] == "no-store"
        document = answer.json()
        return document if status < 400 else document["error"]

    async def what_if(self, who: str, *changes: dict[str, Any], status: int = 200) -> Any:
        return await self.post(f"/v1/accounts/{who}/whatif", {"changes": list(changes)}, status)


@pytest.fixture
async def api(certified: Certified, tmp_path: Path) -> AsyncIterator[Api]:
    copied = shutil.copytree(certified.folder, tmp_path / "data")
    (database,) = copied.glob("*.sqlite3")
    store = await SqlStore.open(f"sqlite+aiosqlite:///{database}")
    settings, desk = certified.settings, Desk(world_of(certified.settings))
    desk.take(*certified.told)
    rows = {"chains": settings.chains, "assets": settings.assets, "sources": settings.sources}
    service = replace(make_world(store).service, desk=desk, **rows)
    app = create_app(service)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield Api(app, client, desk, certified)
    await store.close()


def add(asset: str, amount: int, **more: Any) -> dict[str, Any]:
    return {"action": "add", "asset": asset, "amount": str(amount)} | more


async def test_a_what_if_starts_from_the_certified_margin(api: Api) -> None:
    answer = await api.what_if("ada", add(WETH, ETHER))
    margin = await api.get("/v1/accounts/ada/margin")
    before = answer["before"]
    assert (answer["account"], answer["epoch"]) == (api.certified.accounts["ada"], FIRST_EPOCH)
    assert before["equity"] == margin["equity"]
    assert before["free_collateral"] == margin["free_collateral"]
    assert before["maintenance_excess"] == margin["maintenance_excess"]
    assert before["health"] == margin["health"]
    assert answer["accepted"] is True
    gained = int(answer["after"]["equity"]["exact"]) - int(before["equity"]["exact"])
    assert gained > 1_000 * 10**8


async def test_a_loan_too_large_is_refused_with_its_reason_and_changes_nothing(api: Api) -> None:
    borrow = {"action": "borrow", "asset": USDC, "amount": str(10**6 * DOLLAR)}
    answer = await api.what_if("ada", borrow)
    assert answer["accepted"] is False
    assert "free collateral would be below 0" in answer["reason"]
    assert answer["after"]["status"] == "unhealthy"
    assert (await api.what_if("ada", borrow)) == answer


async def test_a_transfer_between_chains(api: Api) -> None:
    moved = {"action": "transfer", "asset": BETA_USDC, "amount": str(1_000 * DOLLAR), "to": USDC}
    answer = await api.what_if("ada", moved)
    assert answer["accepted"] is True
    assert abs(int(answer["after"]["equity"]["exact"]) - int(answer["before"]["equity"]["exact"])) <= 10


async def test_where_no_vault_was_seen_the_answer_says_so(api: Api) -> None:
    rows = api.certified.told[0].snapshot.positions
    assert any(p.chain == ALPHA and p.control == "seizable" for p in rows)
    assert (await api.what_if("ada", add(WETH, ETHER)))["notes"] == []
    assert (await api.what_if("cleo", add(BETA_ETH, ETHER)))["notes"] == [], "others have deposits there"


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        (add(WETH, 0), 400, "changes[0].amount"),
        (add(WETH + "00", 1), 400, "changes[0].asset"),
        ({"action": "remove", "asset": WETH, "amount": str(11 * ETHER)}, 400, "changes[0].amount"),
        ({"action": "remove", "asset": LAMPORTS, "amount": "1"}, 400, "changes[0].amount"),
        ({"action": "steal", "asset": WETH, "amount": "1"}, 422, "changes[0].action"),
        ({"action": "add", "asset": WETH, "amount": "-1"}, 422, "changes[0].amount"),
        ({"action": "add", "asset": WETH, "amount": "1.5"}, 422, "changes[0].amount"),
        ({"action": "add", "asset": WETH, "amount": "1" * 39}, 422, "changes[0].amount"),
        (add("ETH", 1), 422, "changes[0].asset"),
        (add(WETH, 1, owner="me"), 422, "changes[0].owner"),
        ({"action": "open", "asset": f"{ALPHA}/contract:v/1", "amount": "1", "side": "long"}, 400, "changes[0].unit"),
    ],
)
async def test_a_change_that_cannot_be_used_is_named(api: Api, change: dict[str, Any], status: int, field: str) -> None:
    error = await api.what_if("ada", change, status=status)
    assert error["field"] == field
    assert error["problem"]


async def test_amounts_are_told_as_people_count_them(api: Api) -> None:
    error = await api.what_if("ada", {"action": "remove", "asset": WETH, "amount": str(500 * ETHER)}, status=400)
    assert error["problem"] == "500 WETH is more than the 10 WETH held"


async def test_what_is_no_json_is_named_as_the_body(api: Api) -> None:
    headers = {"content-type": "application/json"}
    answer = await api.client.post("/v1/accounts/ada/whatif", content='{"changes": [', headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "body"
    assert "no JSON" in answer.json()["error"]["problem"]


async def test_answers_name_accounts_by_their_labels(api: Api) -> None:
    ids = {id: label for label, id in api.certified.accounts.items()}
    assert (await api.post("/v1/stress", {"scenario": "ftx-2022"}))["labels"] == ids
    replayed = await api.get("/v1/stress/replay?scenario=march-2020&account=ada")
    assert (replayed["label"], replayed["epoch"]) == ("ada", FIRST_EPOCH)
    assert set(replayed["moments"][0]["prices"]) == {"ETH/USD", "SOL/USD", "USDC/USD"}
    assert replayed["moments"][1]["time"] - replayed["moments"][0]["time"] == 3_600 * replayed["moments"][1]["hour"]
    borrow = {"action": "borrow", "asset": USDC, "amount": str(500 * DOLLAR)}
    moved = {"action": "transfer", "asset": BETA_USDC, "amount": str(DOLLAR), "to": USDC}
    answer = await api.what_if("ada", borrow, moved)
    assert answer["label"] == "ada"
    assert answer["changes"] == ["borrow 500 USDC on alpha", "transfer 1 USDC on beta to USDC on alpha"]


async def test_systemic_tells_a_halt_from_a_loss(api: Api) -> None:
    everything = {c["scenario"]: c for c in (await api.get("/v1/risk/systemic"))["cascades"]}
    assert everything["chain-halt-alpha"]["halted"] == [ALPHA]
    assert everything["march-2020"]["halted"] == []
    assert everything["bridge-failure"]["recovery"] == {"bridge": 0.1, "wrapper": 0.1}
    for cascade in everything.values():
        assert all(0 < kept <= 1 for kept in cascade["kept"].values())


async def test_changes_are_from_one_to_thirty_two(api: Api) -> None:
    for count in (0, 33):
        error = await api.what_if("ada", *[add(WETH, 1)] * count, status=422)
        assert error["field"] == "changes"


async def test_unknown_names_are_not_found(api: Api) -> None:
    assert (await api.what_if("nobody", add(WETH, 1), status=404))["field"] == "account"
    assert (await api.post("/v1/stress", {"account": "nobody"}, 404))["field"] == "account"
    error = await api.post("/v1/stress", {"scenario": "meteor"}, 400)
    assert error["field"] == "scenario"
    assert "march-2020" in error["remedy"]
    assert (await api.get("/v1/risk/systemic?scenario=meteor", 400))["field"] == "scenario"
    assert (await api.post("/v1/stress", {"scenarios": "all"}, 422))["field"] == "scenarios"


async def test_scenarios_are_listed_with_their_sources(api: Api) -> None:
    listed = {s["name"]: s for s in await api.get("/v1/stress")}
    event = listed["march-2020"]
    assert (event["kind"], event["hours"]) == ("historical", 168)
    assert event["prices"]["ETH/USD"] == pytest.approx(0.3957, abs=1e-3)
    assert "eth_usdt_1h_binance" in event["source"]
    assert listed["chain-halt-alpha"]["halted"] == [ALPHA]
    assert listed["chain-halt-alpha"]["since"] is None


async def test_stress_is_what_recomputing_the_epoch_gives(api: Api) -> None:
    answer = await api.post("/v1/stress", {"scenario": "ftx-2022"})
    now = standings(api.certified.told[0].report)
    assert answer["accounts"] == [s.account for s in now]
    rows = sorted(answer["rows"], key=lambda row: row["account"])
    assert [row["before"]["equity"]["exact"] for row in rows] == [str(s.equity) for s in now]
    assert len(answer["heat"]) == 1
    assert answer["heat"][0] == [row["after"]["health"]["low"] for row in rows]
    (alone,) = (await api.post("/v1/stress", {"scenario": "ftx-2022", "account": "ada"}))["rows"]
    assert alone in answer["rows"]
    assert int(alone["after"]["equity"]["exact"]) < int(alone["before"]["equity"]["exact"])


async def test_all_scenarios_make_a_heat_map(api: Api) -> None:
    answer = await api.post("/v1/stress", {})
    names = [s["name"] for s in await api.get("/v1/stress")]
    assert answer["scenarios"] == names
    assert len(answer["rows"]) == len(names) * 3
    assert [len(row) for row in answer["heat"]] == [3] * len(names)
    (halted,) = [
        row
        for row in answer["rows"]
        if (row["scenario"], row["account"]) == ("chain-halt-alpha", api.certified.accounts["ada"])
    ]
    was, now = halted["before"], halted["after"]
    assert now["equity"] == was["equity"]
    assert int(now["free_collateral"]["exact"]) < int(was["free_collateral"]["exact"])


async def test_a_replay_goes_through_the_hours(api: Api) -> None:
    answer = await api.get("/v1/stress/replay?scenario=march-2020&account=ada")
    hours = [moment["hour"] for moment in answer["moments"]]
    assert (hours[0], hours[-1]) == (0, 167)
    assert len(hours) <= desks.MOST_HOURS
    equities = [int(moment["standing"]["equity"]["exact"]) for moment in answer["moments"]]
    assert min(equities) < equities[-1] < equities[0]
    error = await api.get("/v1/stress/replay?scenario=vol-spike&account=ada", 400)
    assert error["field"] == "scenario"
    assert "march-2020" in error["remedy"]


async def test_systemic_tells_of_cascades(api: Api) -> None:
    answer = await api.get("/v1/risk/systemic?scenario=march-2020")
    assert (answer["accounts"], answer["already"]) == (3, [])
    (cascade,) = answer["cascades"]
    assert (cascade["scenario"], cascade["settled"]) == ("march-2020", True)
    assert cascade["prices"]["ETH/USD"] <= 0.3957
    assert len((await api.get("/v1/risk/systemic"))["cascades"]) == len(await api.get("/v1/stress"))


async def test_before_the_first_certified_epoch_nothing_is_answered(api: Api) -> None:
    fresh = Desk(world_of(api.certified.settings))
    api.desk.__dict__.update(fresh.__dict__)
    assert len(await api.get("/v1/stress")) > 6
    for error in (
        await api.what_if("ada", add(WETH, 1), status=404),
        await api.post("/v1/stress", {}, 404),
        await api.get("/v1/risk/systemic", 404),
    ):
        assert error["field"] == "epoch"
        assert "since the service started" in error["remedy"]


async def test_what_costs_too_much_is_refused_before_it_begins(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "MOST_POSITIONS", 10)
    assert (await api.post("/v1/stress", {}, 400))["field"] == "scenario"
    assert (await api.get("/v1/risk/systemic", 400))["field"] == "scenario"
    assert await api.post("/v1/stress", {"scenario": "vol-spike", "account": "cleo"})
    monkeypatch.setattr(desks, "MOST_POSITIONS", 10**6)
    monkeypatch.setattr(desks, "MOST_ROWS", 2)
    error = await api.post("/v1/stress", {"scenario": "vol-spike"}, 400)
    assert (error["field"], error["remedy"]) == ("limit", "give at most 2, or name one scenario")
    assert len((await api.post("/v1/stress?limit=2", {"scenario": "vol-spike"}))["rows"]) == 2


async def test_the_worst_are_shown_and_all_are_counted(api: Api) -> None:
    whole = await api.post("/v1/stress", {"scenario": "march-2020"})
    assert [row["after"]["health"]["low"] or 1e9 for row in whole["rows"]] == sorted(
        row["after"]["health"]["low"] or 1e9 for row in whole["rows"]
    )
    pages = [await api.post(f"/v1/stress?limit=1&offset={n}", {"scenario": "march-2020"}) for n in range(4)]
    assert [row for page in pages for row in page["rows"]] == whole["rows"]
    assert [len(page["accounts"]) for page in pages] == [1, 1, 1, 0]
    for page in pages:
        assert page["totals"] == whole["totals"]
    (total,) = whole["totals"]
    assert total["accounts"] == 3
    fallen = [row for row in whole["rows"] if row["after"]["liquidatable"] and not row["before"]["liquidatable"]]
    assert (total["fallen"], total["before"]) == (len(fallen), 0)
    lows = {when: [int(row[when]["maintenance_excess"]["low"]["exact"]) for row in whole["rows"]] for when in WHEN}
    assert [int(total[f"excess_{when}"]["exact"]) for when in WHEN] == [sum(lows[when]) for when in WHEN]
    assert int(total["missing"]["exact"]) == -sum(usd for usd in lows["after"] if usd < 0)


async def test_systemic_counts_all_and_lists_the_worst(api: Api) -> None:
    whole = await api.get("/v1/risk/systemic?scenario=march-2020")
    short = await api.get("/v1/risk/systemic?scenario=march-2020&limit=1")
    (all_closed,), (few_closed,) = whole["cascades"], short["cascades"]
    assert all_closed["liquidated"] == few_closed["liquidated"] == len(all_closed["closed"])
    assert few_closed["closed"] == all_closed["closed"][:1]
    assert [(c["count"], c["accounts"]) for c in short["clusters"]] == [
        (c["count"], c["accounts"][:1]) for c in whole["clusters"][:1]
    ]


async def test_a_crowd_waits_and_beyond_that_is_turned_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slowly(*given: Any) -> Any:
        assert go.wait(60)
        return what_if(*given)

    monkeypatch.setattr(desks, "MOST_WAITING", 3)
    monkeypatch.setattr(desks, "what_if", slowly)
    path, body = "/v1/accounts/ada/whatif", {"changes": [add(WETH, 1)]}
    asked = [asyncio.create_task(api.client.post(path, json=body)) for _ in range(8)]
    turned_away, waiting = set[asyncio.Task[httpx.Response]](), set(asked)
    while len(turned_away) < 5:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        turned_away |= done
    assert {task.result().status_code for task in turned_away} == {409}
    go.set()
    assert [(await task).status_code for task in waiting] == [200] * 3


async def test_the_desk_has_what_a_fresh_valuation_has(certified: Certified) -> None:
    computed, quotes, _ = certified.told
    again = compute_report(computed.snapshot, quotes, world_of(certified.settings))
    assert [s.equity for s in standings(again)] == [s.equity for s in standings(computed.report)]


async def test_the_command_line_reaches_what_listens(api: Api) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = "127.0.0.1:" + str(listener.getsockname()[1])
    listen = api.certified.settings.service.model_copy(update={"listen": address})
    settings = api.certified.settings.model_copy(update={"service": listen})
    server = uvicorn.Server(uvicorn.Config(api.app, log_level="error", lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        listed = await asyncio.to_thread(ask, settings, "GET", "/v1/stress")
        assert listed == await api.get("/v1/stress")
        with pytest.raises(InputError) as caught:
            await asyncio.to_thread(ask, settings, "GET", "/v1/risk/systemic", scenario="meteor")
        assert caught.value.field == "scenario"
    finally:
        server.should_exit = True
        await serving
    with pytest.raises(InputError, match="no service answers"):
        await asyncio.to_thread(ask, settings, "GET", "/v1/stress")
