"""`crossmargin chains` and `crossmargin disputes`: what was halted and who resumed it, who said what against whom."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from adapters.disputes import Dispute, DisputeFile
from adapters.keys import create_key, load_key
from aggregator.store.halts import SqlHalts
from aggregator.store.sql import SqlStore
from tests.cli.conftest import Shell
from tests.worlds.documents import ALPHA

CAUSE = "reorged: block 90 was 0xaa, is 0xbb"
DISPUTE = Dispute(
    chain=ALPHA, height=17, block="0xab", about="position 0xaa wallet asset", provider="alpha[1]", others=("alpha[0]",),
    agreed=True, field="amount", value="10\x1b[2J", expected="1", count=3, digests=(),
)  # fmt: skip


def halt(shell: Shell, *parties: str) -> None:
    async def work() -> None:
        store = await SqlStore.open(f"sqlite:///{shell.config.parent / 'crossmargin.sqlite3'}")
        for party in parties:
            await SqlHalts(store).halt(party, ALPHA, CAUSE, 1_700_000_000)
        await store.close()

    asyncio.run(work())


def record(shell: Shell, *disputes: Dispute) -> Path:
    keys = shell.config.parent / "keys"
    keys.mkdir(exist_ok=True)
    create_key(keys / "evidence.json", "secret", iterations=1)
    signer = load_key(keys / "evidence.json", "secret")
    path = shell.config.parent / "disputes.jsonl"
    for dispute in disputes:
        DisputeFile(path, lambda: signer).append(dispute)
    return path


def chain_of(listing: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in listing["chains"] if row["chain"] == ALPHA)


def test_chains_lists_status_cause_and_age(shell: Shell) -> None:
    row = chain_of(shell.json("chains"))
    assert (row["status"], row["halts"]) == ("ok", [])
    assert row["height"] > 0
    assert row["age"] >= 0
    assert row["name"] in shell("chains").stdout


def test_a_halt_is_shown_resumed_with_a_reason_and_logged(shell: Shell) -> None:
    halt(shell, "coordinator", "attestor-0")
    name = chain_of(shell.json("chains"))["name"]
    stops = chain_of(shell.json("chains"))["halts"]
    assert [(h["party"], h["cause"]) for h in stops] == [("coordinator", CAUSE), ("attestor-0", CAUSE)]
    text = shell("chains").stdout
    assert "halted since 2023-11-14" in text
    assert f'crossmargin chains resume "{name}"' in text

    cleared = shell.json("chains", "resume", name, "--reason", "compared with two explorers")
    assert [(h["party"], h["reason"]) for h in cleared] == [
        ("coordinator", "compared with two explorers"),
        ("attestor-0", "compared with two explorers"),
    ]
    assert cleared[0]["resumed_by"]
    assert chain_of(shell.json("chains"))["halts"] == []
    assert [h["party"] for h in shell.json("chains", "log")] == ["attestor-0", "coordinator"]
    assert "compared with two explorers" in shell("chains", "log").stdout


def test_a_chain_is_resumed_by_its_id_too(shell: Shell) -> None:
    halt(shell, "coordinator")
    assert "resumed" in shell("chains", "resume", ALPHA, "--reason", "looked").stdout


def test_resume_refuses_what_it_cannot_mean(shell: Shell) -> None:
    shell.refused(("chains", "resume", "nowhere", "--reason", "x"), 2, "nowhere", "configured are")
    shell.refused(("chains", "resume", ALPHA, "--reason", "looked"), 2, "alpha is not halted")
    halt(shell, "coordinator")
    shell.refused(("chains", "resume", ALPHA, "--reason", " "), 2, "reason: is empty")
    assert chain_of(shell.json("chains"))["halts"] != []


def test_disputes_says_who_said_what_against_whom(shell: Shell) -> None:
    record(shell, DISPUTE)
    result = shell("disputes", "--verify")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "alpha[1] at" in text
    assert "against 1 by alpha[0]" in text
    assert "(and 2 more)" in text
    assert "verified: 1 lines" in text
    assert "\x1b[2J" not in result.stdout
    listing = shell.json("disputes", "--verify")
    assert listing["verified"] == {"lines": 1, "torn": 0, "bad": 0}
    assert listing["disputes"][0]["provider"] == "alpha[1]"


def test_disputes_that_somebody_changed_fail_the_check(shell: Shell) -> None:
    path = record(shell, DISPUTE, DISPUTE)
    path.write_bytes(path.read_bytes().replace(b"alpha[1]", b"alpha[2]", 1))
    assert "not to be relied on" in shell("disputes").stdout
    result = shell("disputes", "--verify")
    assert result.exit_code == 1
    assert "2 of 2 lines do not verify" in result.stderr  # the next one does not follow it
    assert shell.json("disputes", "--verify", code=1)["verified"]["bad"] == 2


def test_no_disputes_is_said(shell: Shell) -> None:
    assert "no provider" in shell("disputes").stdout
    assert shell.json("disputes") == {"disputes": [], "verified": None}
