"""What can be relied on and what cannot: `crossmargin assets`, `epochs`, `accounts log`; and where -c may be."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from aggregator.domain.certificate import EpochRecord, Refusal
from aggregator.domain.snapshot import Finding
from aggregator.store.sql import SqlStore
from tests.cli.conftest import EPOCHS, Shell
from tests.worlds.documents import ALPHA, USDC


def change(shell: Shell, **fields: Any) -> EpochRecord:
    """Store one more epoch, not certified: the newest with these fields changed."""

    async def work() -> EpochRecord:
        store = await SqlStore.open(f"sqlite:///{shell.config.parent / 'crossmargin.sqlite3'}")
        newest = await store.epoch()
        assert newest is not None
        number = newest.header.epoch + 1
        header = replace(newest.header, epoch=number, floor=fields.pop("floor", 0))
        made = replace(newest, header=header, attestations=(), **fields)
        await store.save_epoch(made)
        await store.close()
        return made

    return asyncio.run(work())


def asset_of(shell: Shell, id: str) -> dict[str, Any]:
    return next(row for row in shell.json("assets")["assets"] if row["id"] == id)


def test_assets_say_which_can_be_relied_on_and_why_not(shell: Shell) -> None:
    first = asset_of(shell, USDC)
    assert (first["status"], first["cause"]) == ("stale", "no newer epoch has read it"), "its epochs are long gone"
    detail = f"{USDC}: the balance call failed for 0xaa"
    change(shell, findings=(Finding("unreadable", "0x" + "11" * 32, detail),))
    doubtful = asset_of(shell, USDC)
    assert (doubtful["status"], doubtful["cause"]) == ("unknown", f"unreadable: {detail}")
    change(shell, findings=(Finding("price-unknown", "USDC/USD", "1 source, 2 needed"),))
    listing = shell.json("assets")
    assert {row["status"] for row in listing["assets"] if row["feed"] == "USDC/USD"} == {"unknown"}
    (feed,) = (row for row in listing["feeds"] if row["feed"] == "USDC/USD")
    assert (feed["status"], feed["cause"]) == ("unknown", "1 source, 2 needed")
    assert feed["sources"]
    shown = shell("assets")
    assert shown.exit_code == 0
    assert "1 source, 2 needed" in shown.stdout


def test_epochs_show_who_raised_the_floor_and_why(shell: Shell) -> None:
    reorg = {"chain": ALPHA, "height": "90", "was": "0x" + "aa" * 32, "now": ""}
    number = EPOCHS[-1] + 1
    why = ("attestor-3", "no answer " * 20)
    change(shell, floor=number, preimages={"cut": json.dumps({"reorgs": [reorg]})}, refusals=(Refusal(*why),))
    newest, before, _ = shell.json("epochs")
    assert (newest["floor"], newest["reorgs"]) == (number, [reorg | {"height": 90}])
    assert (before["floor"], before["reorgs"]) == (0, [])
    assert newest["refusals"] == [{"attestor": why[0], "reason": why[1], "digest": "", "signature": ""}]
    text = " ".join(shell("epochs").stdout.split())
    assert f"epoch {number} voids all before it: block 90 of alpha, which they rest on, was 0xaaaaaaaaaa…" in text
    assert "raised" in text
    assert "…" in text


def test_nothing_there_is_said_in_a_sentence(shell: Shell) -> None:
    empty = shell.config.parent / "empty"
    document = shell.document | {"service": shell.document["service"] | {"data": str(empty)}}
    shell.config.write_text(tomli_w.dumps(document))
    assert "There is no epoch yet" in shell("epochs").stdout
    assert "No chain was ever halted" in shell("chains", "log").stdout
    assert "has no entry after 0" in shell("accounts", "log").stdout
    assert "no epoch yet" in shell("assets").stdout
    assert {row["status"] for row in shell.json("assets")["assets"]} == {"unknown"}


def test_the_links_log_is_listed_in_its_order(shell: Shell) -> None:
    log = shell.json("accounts", "log")
    assert [entry["position"] for entry in log] == list(range(1, len(log) + 1))
    assert shell.json("accounts", "log", "--after", "1", "--limit", "1") == log[1:2]
    text = shell("accounts", "log", "--limit", "1").stdout
    assert log[0]["member"] in text
    assert f"{len(log) - 1} more: --after 1" in text


def test_a_configuration_named_before_a_subcommand_counts(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    named = shell.bare("accounts", "-c", str(shell.config), "links", "ada", "--json")
    assert named.exit_code == 0, named.output
    assert len(json.loads(named.stdout)) == 2
    missing = shell.bare("chains", "-c", "nowhere.toml", "log")
    assert missing.exit_code == 2
    assert "nowhere.toml" in missing.stderr
    # What is named nearest to the command is meant.
    assert shell.bare("chains", "-c", "nowhere.toml", "log", "-c", str(shell.config)).exit_code == 0
    refused = shell.bare("chains", "--json", "log", "-c", str(shell.config))
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--json goes after log" in refused.stderr


def test_a_user_without_a_name_can_resume(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr("getpass.getuser", nameless)
    shell.refused(("chains", "resume", "alpha", "--reason", "looked"), 2, "NAME: alpha is not halted")
