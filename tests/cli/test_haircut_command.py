"""``crossmargin haircut``: cells as committed or as configured, explained by cause, and drawn."""

from __future__ import annotations

import asyncio
import json
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from aggregator.core.haircut import CAUSES
from aggregator.store import SqlStore
from tests.cli.conftest import EPOCHS, Shell
from tests.worlds.documents import ALPHA, BETA, SOL


def by_key(cells: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(cell["policy"], cell["chain"], cell["destination"]): cell for cell in cells}


@pytest.mark.parametrize("how", [(), ("--configured",), ("--epoch", str(EPOCHS[0]))])
def test_every_policy_chain_and_destination_has_a_cell_that_adds_up(shell: Shell, how: tuple[str, ...]) -> None:
    cells = by_key(shell.json("haircut", *how))
    places = (ALPHA, BETA, SOL)
    assert set(cells) == {(p, c, d) for p in ("major", "stable") for c in places for d in places}
    for cell in cells.values():
        horizon = cell["horizon"]
        assert 900 < horizon["p50"] <= horizon["p90"] <= horizon["p99"] <= horizon["p100"]
        assert horizon["p50"] <= horizon["mean"] <= horizon["p100"]
        assert sum(horizon["chances"]) == pytest.approx(1)
        for level in ("initial", "maintenance"):
            assert list(cell[level]["causes"]) == list(CAUSES)
            shares = [Decimal(share) for share in cell[level]["causes"].values()]
            assert sum(shares) == Decimal(cell[level]["haircut"])
            assert min(shares) >= 0
        assert Decimal(cell["initial"]["haircut"]) > Decimal(cell["maintenance"]["haircut"]) > 0
        assert Decimal(cell["initial"]["causes"]["latency"]) > 0
    assert cells["major", ALPHA, ALPHA]["initial"] != cells["stable", ALPHA, ALPHA]["initial"]


def test_it_shows_what_an_epoch_committed(shell: Shell) -> None:
    async def kept() -> str:
        store = await SqlStore.open(f"sqlite:///{shell.config.parent / 'crossmargin.sqlite3'}")
        try:
            record = await store.epoch(EPOCHS[0])
            assert record is not None
            return record.preimages["risk"]
        finally:
            await store.close()

    committed = json.loads(asyncio.run(kept()))["cells"]
    shown = by_key(shell.json("haircut", "--epoch", str(EPOCHS[0])))
    for cell in committed:
        mine = shown[cell["policy"], cell["chain"], cell["destination"]]
        assert mine[cell["level"]]["haircut"] == cell["asset"]
        assert (round(mine["horizon"]["mean"]), mine["horizon"]["p99"]) == (cell["horizon"], cell["horizon_tail"])


def test_options_choose_cells(shell: Shell) -> None:
    [cell] = shell.json("haircut", "--policy", "major", "--chain", "beta", "--destination", SOL)
    assert (cell["policy"], cell["chain"], cell["destination"]) == ("major", BETA, SOL)
    shown = shell("haircut", "--policy", "major", "--chain", "beta")
    assert shown.exit_code == 0
    assert f"{Decimal(cell['initial']['haircut']):.3%}" in shown.stdout
    assert "bridge" in shown.stdout
    assert "stable" not in shown.stdout


def test_what_is_equal_is_shown_once(shell: Shell, tmp_path: Path) -> None:
    """A policy with the numbers of another shares its rows and its curves; so do destinations that see the same."""
    text = shell.config.read_text("utf-8")
    whole = tomllib.loads(text)
    whole["policy"]["assets"]["twin"] = whole["policy"]["assets"]["major"]
    shell.config.write_text(tomli_w.dumps(whole), "utf-8")
    path = tmp_path / "haircut.svg"
    shown = shell("haircut", "--configured", "--plot", str(path))
    assert shown.exit_code == 0, shown.output
    cells = shell.json("haircut", "--configured", "--policy", "major")
    rows = [line for line in shown.stdout.splitlines() if line.startswith("major, twin ")]
    assert rows
    assert not [line for line in shown.stdout.splitlines() if line.startswith(("major ", "twin"))]
    numbers = {
        (cell["horizon"]["p50"], cell["horizon"]["p100"], f"{Decimal(cell['initial']['haircut']):.3%}")
        for cell in cells
    }
    assert len(rows) == len(numbers), "one row for each horizon"
    assert all(" all " in row for row in rows), "every destination sees the same"
    drawn = path.read_text("utf-8")
    assert "major, twin, IM" in drawn
    assert "stable, IM" in drawn
    assert ">twin, IM" not in drawn


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_it_draws_haircut_against_horizon(shell: Shell, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"haircut.{ending}"
    assert shell("haircut", "--configured", "--plot", str(path)).exit_code == 0
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        text = first.decode()
        assert all(word in text for word in ("major, IM", "major, MM", "stable, IM", "2 min", "7 d", "haircut, %"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--policy", "nope"), "'nope' is not known"),
        (("--chain", "nope"), "'nope' is not known"),
        (("--destination", "nope"), "'nope' is not known"),
        (("--epoch", "1"), "'1' is not known"),
        (("--epoch", "1", "--configured"), "--configured"),
        (("--plot", "haircut.gif"), ".png or .svg"),
    ],
)
def test_what_makes_no_sense_is_refused(shell: Shell, arguments: tuple[str, ...], says: str) -> None:
    shell.refused(("haircut", *arguments), 2, says)


def test_reading_makes_no_store_where_there_is_none(shell: Shell) -> None:
    """Neither the folder nor the database: whoever only looks at a configuration leaves nothing behind."""
    text = shell.config.read_text("utf-8")
    whole = tomllib.loads(text)
    place = shell.config.parent / "not" / "there"
    whole["service"]["data"] = str(place)
    shell.config.write_text(tomli_w.dumps(whole), "utf-8")
    try:
        assert shell.json("haircut", "--configured")
        assert shell.json("haircut")
        shell.refused(("haircut", "--epoch", "7"), 2, "nothing is kept yet")
        assert not place.parent.exists()
    finally:
        shell.config.write_text(text, "utf-8")
