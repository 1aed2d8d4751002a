"""Stress, what-if and systemic risk on the command line, answered by the API over a really certified epoch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
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
    result = served("stress", "--scenario", "march-2020", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "health low" in result.stdout
    assert "is left alone by march-2020" in result.stdout
    assert all(name in result.stdout for name in ("ada", "cleo", "watched"))
    assert "0x" not in result.stdout
    assert picture.read_bytes()[:4] == b"\x89PNG"
    document = served.json("stress", "--scenario", "march-2020", "--account", "ada")
    (row,) = document["rows"]
    assert int(row["after"]["equity"]["exact"]) < int(row["before"]["equity"]["exact"])


def test_all_scenarios_are_a_line_each_unless_accounts_are_asked_for(served: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "heat.svg"
    names = [s["name"] for s in served.json("stress")]
    result = served("stress", "--scenario", "all", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert all(sum(line[:1] == [name] for line in lines) == 1 for name in names)
    (halt,) = (line for line in lines if line[:1] == ["chain-halt-alpha"])
    assert halt[1:3] == ["0", "ada"]
    drawn = picture.read_text()
    assert all(text in drawn for text in ("ada", "cleo", "≥ 2", *names))
    assert "vol-spike" not in "".join(line for line in result.stdout.splitlines() if "left alone" in line)
    rows = served.json("stress", "--scenario", "chain-halt-alpha", "--account", "ada")["rows"]
    assert halt[3:5] == [rows[0][when]["maintenance_excess"]["low"]["text"] for when in ("before", "after")]
    worst = served("stress", "--scenario", "all", "--worst", "2")
    lines = [line.split() for line in worst.stdout.splitlines()]
    assert [sum(line[:1] == [name] for line in lines) for name in names] == [2] * len(names)


def test_one_account_is_drawn_as_bars(served: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "bars.svg"
    assert served("stress", "--scenario", "all", "--account", "ada", "--plot", str(picture)).exit_code == 0
    drawn = picture.read_text()
    assert all(text in drawn for text in ("ada under stress", "free collateral, before", "maintenance excess, after"))


def test_a_replay_follows_one_account(served: Shell, tmp_path: Path) -> None:
    picture = tmp_path / "replay.svg"
    result = served("stress", "--replay", "march-2020", "--account", "ada", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert "lowest" in result.stdout
    assert f"ada of epoch {FIRST_EPOCH}" in result.stdout
    assert "2020-03-12 " in result.stdout
    assert "ETH/USD 1.000" in result.stdout
    assert "Prices alone move" in result.stdout
    assert all(text in picture.read_text() for text in ("free collateral", "prices ×", "ETH/USD"))
    assert served.json("stress", "--replay", "march-2020", "--account", "ada")["moments"][-1]["hour"] == 167


def test_systemic_shows_what_follows(served: Shell) -> None:
    result = served("systemic", "--scenario", "march-2020")
    assert result.exit_code == 0, result.output
    assert "forced sales" in result.stdout
    assert served.json("systemic", "--scenario", "march-2020")["accounts"] == 3


def test_systemic_names_what_is_kept_and_what_cannot_be_sold(served: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    result = served("systemic")
    assert result.exit_code == 0, result.output
    assert "bridge-failure: of its amount, what is exposed keeps: bridge 10%, wrapper 10%" in result.stdout
    document = served.json("systemic")
    fallen, other = "0x" + "ab" * 32, "0x" + "cd" * 32
    usd = {"exact": "123400000000", "text": "1,234.00"}
    document |= {"already": [other], "liquidatable": 3, "labels": {fallen: "dora"}}
    document["clusters"] = [
        {"scenarios": ["march-2020"], "count": 2, "accounts": [fallen, other], "exposures": {"ETH/USD": usd}},
    ]
    sale = {"feed": "ETH/USD", "units": 5.0, "price": 900.0, "permanent": 0.01, "cost": 0.02, "proceeds": usd}
    for cascade in document["cascades"]:
        if cascade["scenario"] in ("march-2020", "chain-halt-alpha"):
            cascade["bad_debt"] = usd
        if cascade["scenario"] == "march-2020":
            cascade["rounds"], cascade["kept"]["ETH/USD"] = [[sale]], 0.999
    monkeypatch.setattr(httpx, "request", lambda *_, **__: httpx.Response(200, json=document))
    result = served("systemic")
    assert "already liquidatable, without any scenario: 0xcdcdcdcd and 2 more" in result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert any(line[:3] == ["dora,", "0xcdcdcdcd", "march-2020"] for line in lines)
    (lost,) = (line for line in lines if line[:1] == ["march-2020"] and len(line) == 7)
    (waiting,) = (line for line in lines if line[:1] == ["chain-halt-alpha"])
    assert lost[-2:] == ["1,234.00", "-"]
    assert waiting[-2:] == ["-", "1,234.00"]
    (impact,) = (line for line in lines if line[:2] == ["march-2020", "ETH/USD"])
    assert impact[2:5] == ["5", f"{document['cascades'][0]['prices']['ETH/USD'] / 0.999:.4f}", "0.999000"]


def test_a_what_if_is_asked_in_symbols_and_whole_units(served: Shell) -> None:
    result = served("whatif", "ada", "--add", "10:ETH@beta", "--borrow", "500:USDC@alpha")
    assert result.exit_code == 0, result.output
    assert "accepted" in result.stdout
    assert "free collateral" in result.stdout
    assert "ada: add 10 ETH on beta, borrow 500 USDC on alpha" in result.stdout
    assert "owed and required, IM" in result.stdout
    assert "leaves the account" in result.stdout
    assert "initial requirement" not in result.stdout
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
    served.refused(["whatif", "ada", "--open", OPEN_PERP, "--close", f"long|1|{PERP}"], 2, "--close long|1|")
    dated = OPEN_CALL.rpartition("|")[0] + "|"
    day = datetime.fromtimestamp(FIRST_EPOCH * EPOCH_SECONDS + 30 * 86_400, UTC).date().isoformat()
    assert served.json("whatif", "ada", "--open", dated + day)["changes"][0].endswith(f"exp {day} 00:00 UTC ({CALL})")
    served.refused(["whatif", "ada", "--open", dated + "2001-01-01"], 2, f"{dated}2001-01-01 (EXPIRY)", "expired")
    served.refused(["whatif", "ada", "--open", dated + "soon"], 2, "'soon' is no time")
    served.refused(["whatif", "ada", "--open", OPEN_PERP.replace("ETH/USD", "X/USD")], 2, "(FEED)", "no underlying")
    served.refused(["whatif", "ada", "--close", f"short|1|{PERP}"], 2, "no such contract is held", "margin ada")
    assert served.json("whatif", "ada", "--open", OPEN_PERP.replace("1.5", "1000"))["accepted"] is False


def test_what_the_service_refuses_is_told_as_it_says(served: Shell) -> None:
    served.refused(
        ["whatif", "ada", "--remove", "999:WETH@alpha"], 2, "--remove 999:WETH@alpha: 999 WETH is more than the 10 WETH"
    )
    served.refused(["whatif", "nobody", "--add", "1:WETH@alpha"], 2, "account")
    served.refused(["stress", "--scenario", "meteor"], 2, "scenario", "march-2020")
    served.refused(["stress", "--replay", "vol-spike", "--account", "ada"], 2, "no path")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["whatif", "ada"], "nothing is to change"),
        (["whatif", "ada", "--add", "10"], "AMOUNT:ASSET@CHAIN"),
        (["whatif", "ada", "--add", "ten:WETH@alpha"], "no decimal number"),
        (["whatif", "ada", "--add", "-5:WETH@alpha"], "must be positive"),
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
