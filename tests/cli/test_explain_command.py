"""``crossmargin explain``: the walk from equity to what is left, greeks, what haircuts are made of, and the picture."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report
from aggregator.domain.units import format_usd
from tests.cli.conftest import Shell
from tests.cli.test_margin_by_hand import store_margin
from tests.strategies import DERIVATIVES, ETH, SOL, USDC, contract, position, quotes, snapshot, world

OF = world(**DERIVATIVES)
LEVELS = ("initial", "maintenance")
SIGNS = (("gain", 1), ("loss", -1), ("requirement", -1))


@pytest.fixture
def trader(shell: Shell) -> Shell:
    """Give ada, in the newest epoch, perps and options instead of what she has."""
    rows = [
        position(1, ETH, 10.0),
        position(1, SOL, 5.0, control="none"),
        position(1, USDC, 5_000.0),
        contract(1, "perp", -8.0, entry=2_100.0),
        contract(1, "call", 2.5, strike=2_500.0),
        contract(1, "inverse", 5_000.0, unit=ETH, funding=0.01),
    ]
    store_margin(shell, explain(compute_report(snapshot(rows), quotes(), OF), 0, OF))
    return shell


def test_the_walk_leads_from_equity_to_free_collateral(shell: Shell) -> None:
    """Of an account without contracts, as a real epoch stored it."""
    found = shell.json("explain", "ada")
    for level, end in (("initial", found["free_collateral"]), ("maintenance", found["maintenance_excess"]["low"])):
        assert int(found["equity"]) + sum(int(step[level]) for step in found["layers"]) == int(end)
    assert {"market", "policy"} <= {step["layer"] for step in found["layers"]}
    assert (found["model"], found["greeks"]) == ("", [])
    assert found["policy"]["version"]
    assert found["policy"]["document_digest"] == shell.json("policy")["digest"]
    with sqlite3.connect(shell.config.parent / "crossmargin.sqlite3") as database:
        assert (found["policy"]["statement_digest"],) in database.execute("SELECT policy_digest FROM epoch")
    assert found["policy"]["statement_digest"] != found["policy"]["document_digest"]
    for c in found["components"]:
        if c["position"]["side"] == "asset":
            shares = {k: v for k, v in c["explained_initial"].items() if k != "zeros"}
            assert sum(shares.values()) == pytest.approx(1.0)
    shown = shell("explain", "ada").stdout
    assert "From equity to what is left, USD" in shown
    assert "What haircuts are made of" in shown
    assert found["policy"]["statement_digest"] in shown
    told = f"policy document digest {found['policy']['document_digest']}"
    assert told in shown
    assert told in shell("policy").stdout
    home = max(found["leaves"], key=lambda leaf: int(leaf["budget"]))
    for name in ("assets_initial", "requirement_initial", "assets_maintenance", "requirement_maintenance"):
        assert format_usd(int(home[name])) in shown


def test_contracts_are_explained_in_the_words_of_a_risk_desk(trader: Shell) -> None:
    shown = trader("explain", "ada").stdout
    for text in (
        "short 8 ETH-perp from 2100",
        "long 2.5 ETH-call 2500 exp",
        "long 5000 USD of ETH-inverse perp from 2000",
        "share of the requirement",
        "contracts net",
        "Greeks of the contracts",
        "collateral hedges at IM, MM",
        "scenario model, worst at ETH/USD",
        "(lower bound) worth",
        "(upper bound) worth",
        "of 10 stand against the contracts' delta −",
        "keep only their own jumps",
        "share of each cause in what does not count, %",
        "zeroed by",
        "hedged by collateral",
        "W⁻, required",
        "price bounds",
    ):
        assert text in shown, text
    found = trader.json("explain", "ada")
    assert found == trader.json("margin", "ada") | {"policy": found["policy"]}
    parts = [c["contract"] for c in found["components"] if c["contract"] is not None]
    assert {part["side"] for part in parts} == {"long", "short"}
    for c in found["components"]:
        if c["contract"] is not None:
            assert c["position"]["asset"] in shown, "so that it can be copied into a what-if"
            part, sign = c["contract"], 1 if c["contract"]["side"] == "long" else -1
            assert part["size"] * sign > 0
            counted = {level: sum(f * int(part[name][level]) for name, f in SIGNS) for level in LEVELS}
            assert counted == {level: int(c[f"counted_{level}"]) for level in LEVELS}
            if part["text"].startswith("short 8 ETH-perp"):
                assert int(part["worst"]["initial"]) == pytest.approx(
                    1e8 * 8 * (2_100 - part["price"]["initial"]), abs=10
                )
                assert part["bound"] == {"initial": "upper", "maintenance": "upper"}
    required = sum(int(part["requirement"]["initial"]) for part in parts) + int(
        found["greeks"][0]["requirement_initial"]
    )
    assert required == pytest.approx(int(found["requirement"]["initial"]), abs=10)
    gone = next(c for c in found["components"] if c["position"]["control"] == "none")
    assert gone["explained_initial"]["zeros"] == ["exit"]
    assert int(next(step for step in found["layers"] if step["layer"] == "exit")["initial"]) < 0


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_walk_is_drawn_the_same_every_time(trader: Shell, tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"one.{ending}", tmp_path / f"two.{ending}"
    for path in (first, second):
        assert trader("explain", "ada", "--plot", str(path)).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size > 4_000
    if ending == "svg":
        assert "from equity to free collateral" in first.read_text("utf-8")


def test_a_picture_needs_a_name_that_says_what_it_is(shell: Shell, tmp_path: Path) -> None:
    shell.refused(["explain", "ada", "--plot", str(tmp_path / "walk.gif")], 2, "plot", ".png or .svg")
    shell.refused(["explain", "ada", "--plot", str(tmp_path / "no" / "walk.png")], 2, "plot", "cannot be written")
    shell.refused(["explain", "nobody"], 2, "account", "'nobody'")
