"""Stress, what-if and systemic risk on the command line, answered by the API over a really certified epoch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w

from aggregator.api import create_app
from aggregator.bootstrap import world_of
from aggregator.service.desk import Desk
from tests.api.synthetic_epochs import make_world
from tests.cli.conftest import Shell
from tests.risk_world import SURFACE
from tests.worlds.documents import ALPHA, EPOCH_SECONDS
from tests.worlds.world import FIRST_EPOCH, SimulatedWorld


class Service:
    """A service over one certified epoch, in a thread of its own: what commands send to its address reaches its API."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ready, self._loop = folder, threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        traded = {"ETH/USD": {"range": 0.18, "surface": [row.model_dump() for row in SURFACE]}}
        async with SimulatedWorld(self._folder, {"policy": {"underlyings": traded, "dollars": ["USDC/USD"]}}) as world:
            desk = Desk(world_of(world.settings))
            world.cycle.on_computed = desk.take
            await world.populate()
            record = await world.epoch(FIRST_EPOCH)
            assert record.attestations, record.refusals
            rows = {name: getattr(world.settings, name) for name in ("chains", "assets", "sources")}
            service = replace(make_world(world.store).service, desk=desk, **rows)
            transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
            self.document, self._address = world.document, world.settings.service.listen
            async with httpx.AsyncClient(transport=transport) as self._client:
                self._ready.set()
                await self._end.wait()

    def request(self, method: str, url: str, *, trust_env: bool, timeout: float, **options: Any) -> httpx.Response:
        """Answer as ``httpx.request`` would."""
        assert url.startswith(f"http://{self._address}/")
        assert not trust_env, "a proxy has no business with what listens here"
        asked = self._client.request(method, url, timeout=timeout, **options)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result(timeout)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("served"))
    yield made
    made.stop()


@pytest.fixture
def served(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    config = tmp_path / "crossmargin.toml"
    config.write_text(tomli_w.dumps(service.document))
    monkeypatch.setattr(httpx, "request", service.request)
    return Shell(config, service.document)


def test_scenarios_are_listed(served: Shell) -> None:
    result = served("stress")
    assert result.exit_code == 0, result.output
    assert "march-2020" in result.stdout
    assert "Black Thursday" in result.stdout
    assert {"ftx-2022", "chain-halt-alpha"} <= {s["name"] for s in served.json("stress")}


def test_stress_shows_before_and_after_and_draws_the_map(served: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "heat.png"
    result = served("stress", "--scenario", "all", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "health low" in result.stdout
    assert "leaves the price of" in result.stdout
    assert picture.read_bytes()[:4] == b"\x89PNG"
    document = served.json("stress", "--scenario", "march-2020", "--account", "ada")
    (row,) = document["rows"]
    assert int(row["after"]["equity"]["exact"]) < int(row["before"]["equity"]["exact"])


def test_a_replay_follows_one_account(served: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "replay.svg"
    result = served("stress", "--replay", "march-2020", "--account", "ada", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "lowest" in result.stdout
    assert "free collateral" in picture.read_text()
    assert served.json("stress", "--replay", "march-2020", "--account", "ada")["moments"][-1]["hour"] == 167


def test_systemic_shows_what_follows(served: Shell) -> None:
    result = served("systemic", "--scenario", "march-2020")
    assert result.exit_code == 0, result.output
    assert "forced sales" in result.stdout
    assert served.json("systemic", "--scenario", "march-2020")["accounts"] == 3


def test_a_what_if_is_asked_in_symbols_and_whole_units(served: Shell) -> None:
    result = served("whatif", "ada", "--add", "10:ETH@beta", "--borrow", "500:USDC@alpha")
    assert result.exit_code == 0, result.output
    assert "accepted" in result.stdout
    assert "free collateral" in result.stdout
    document = served.json("whatif", "ada", "--borrow", "1000000:USDC@alpha")
    assert document["accepted"] is False
    moved = served.json("whatif", "ada", "--transfer", "10.5:USDC@beta:USDC@alpha")
    assert moved["accepted"] is True


PERP = f"{ALPHA}/contract:venue/1"
CALL = f"{ALPHA}/contract:venue/2"
OPEN_PERP = f"short|1.5|perp|ETH/USD|USDC@alpha|{PERP}"
OPEN_CALL = f"short|2|call|ETH/USD|USDC@alpha|{CALL}|2100|{FIRST_EPOCH * EPOCH_SECONDS + 30 * 86_400}"


def exact(standing: dict[str, Any], name: str) -> int:
    return int(standing[name]["exact"])


def test_contracts_are_opened_and_closed_as_a_person_writes_them(served: Shell) -> None:
    result = served("whatif", "ada", "--open", OPEN_PERP, "--open", OPEN_CALL)
    assert result.exit_code == 0, result.output
    assert "accepted" in result.stdout
    opened = served.json("whatif", "ada", "--open", OPEN_PERP, "--open", OPEN_CALL)
    before, after = opened["before"], opened["after"]
    assert exact(after, "requirement") > exact(before, "requirement")
    assert exact(after, "free_collateral") < exact(before, "free_collateral")
    assert abs(exact(after, "equity") - exact(before, "equity")) <= 100_000  # at the mark, but for a base unit
    half = served.json("whatif", "ada", "--open", OPEN_PERP, "--close", f"short|0.5|{PERP}")["after"]
    whole = served.json("whatif", "ada", "--open", OPEN_PERP)["after"]
    assert exact(before, "requirement") < exact(half, "requirement") < exact(whole, "requirement")
    undone = served.json("whatif", "ada", "--open", OPEN_PERP, "--close", f"short|1.5|{PERP}")
    for name in ("equity", "free_collateral"):  # what is paid is rounded to a base unit, against the account
        assert 0 <= exact(before, name) - exact(undone["after"], name) < 1_000
    served.refused(["whatif", "ada", "--open", OPEN_PERP, "--close", f"long|1|{PERP}"], 2, "changes[1].amount")
    assert served.json("whatif", "ada", "--open", OPEN_PERP.replace("1.5", "1000"))["accepted"] is False


def test_what_the_service_refuses_is_told_as_it_says(served: Shell) -> None:
    served.refused(["whatif", "ada", "--remove", "999:WETH@alpha"], 2, "changes[0].amount", "more than the")
    served.refused(["whatif", "nobody", "--add", "1:WETH@alpha"], 2, "account")
    served.refused(["stress", "--scenario", "meteor"], 2, "scenario", "march-2020")
    served.refused(["stress", "--replay", "vol-spike", "--account", "ada"], 2, "no path")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["whatif", "ada"], "nothing is to change"),
        (["whatif", "ada", "--add", "10"], "AMOUNT:ASSET@CHAIN"),
        (["whatif", "ada", "--add", "ten:WETH@alpha"], "no decimal number"),
        (["whatif", "ada", "--add", "1:DOGE@alpha"], "is not known"),
        (["whatif", "ada", "--add", "1:WETH@moon"], "is not known"),
        (["whatif", "ada", "--transfer", "1:WETH@alpha"], "AMOUNT:ASSET@CHAIN:ASSET@CHAIN"),
        (["whatif", "ada", "--open", "long|1|perp"], "SIDE|SIZE|KIND"),
        (["whatif", "ada", "--close", "long|1"], "SIDE|SIZE|CONTRACT"),
        (["stress", "--replay", "march-2020"], "--account"),
        (["stress", "--replay", "march-2020", "--account", "ada", "--scenario", "all"], "--scenario"),
        (["stress", "--scenario", "vol-spike", "--plot", "map.pdf"], ".png or .svg"),
    ],
)
def test_what_cannot_be_asked_is_told_before_the_service_is(served: Shell, arguments: list[str], says: str) -> None:
    served.refused(arguments, 2, says)


def test_without_a_service_the_command_says_how_to_start_one(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(httpx, "request", nobody)
    for arguments in (["stress"], ["systemic"], ["whatif", "ada", "--add", "1:WETH@alpha"]):
        shell.refused(arguments, 2, "service.listen", "127.0.0.1:8080", "crossmargin run")


@pytest.mark.parametrize("answer", [httpx.Response(200, text="hello"), httpx.Response(500, json=["no"])])
def test_something_else_that_listens_there_is_told_apart(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, answer: httpx.Response
) -> None:
    monkeypatch.setattr(httpx, "request", lambda *_, **__: answer)
    shell.refused(["stress"], 2, "service.listen", "no crossmargin service")
