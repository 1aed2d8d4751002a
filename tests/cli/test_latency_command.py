"""``crossmargin latency`` over a store with measured legs: figures, laws, pictures, and what it refuses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from aggregator.cli.ecdf import bars, name_of_bar, span
from aggregator.core.latency import REFRESH
from aggregator.domain.latency import EVERYWHERE, LEGS, Sample
from aggregator.store import SqlStore
from aggregator.store.latencies import SqlLatencies
from tests.cli.conftest import Shell
from tests.worlds.documents import ALPHA, BETA, SOL

SVG = "{http://www.w3.org/2000/svg}"


def fill(shell: Shell, samples: Sequence[Sample]) -> None:
    async def work() -> None:
        store = await SqlStore.open(f"sqlite:///{shell.config.parent / 'crossmargin.sqlite3'}")
        await SqlLatencies(store).record(samples)
        await store.close()

    asyncio.run(work())


@pytest.fixture
def measured(shell: Shell) -> Shell:
    """Return a shell over a store that measured for a while, the newest minutes ago."""
    at = int(time.time()) - 2 * REFRESH - 1_000
    samples = [Sample("relay", ALPHA, 1.0 + i % 10, at + i) for i in range(1_000)]
    samples += [Sample("attest", EVERYWHERE, 0.25, at + i) for i in range(100)]
    samples += [Sample("read", BETA, 0.5, at)]  # one is too few to count
    fill(shell, samples)
    return shell


def test_it_shows_what_was_measured_and_the_law_that_counts(measured: Shell) -> None:
    report = measured.json("latency")
    legs = {(leg["chain"], leg["leg"]): leg for leg in report["legs"]}
    relay = legs[ALPHA, "relay"]
    assert relay["name"] == "alpha"
    assert [relay[key] for key in ("samples", "p50", "p90", "p99", "longest", "last")] == [1_000, 5, 9, 10, 10, 10]
    # 8 s and an outage of 900 s are configured: nothing measured below counts, and the outage stays.
    assert (relay["typical"], relay["outages"]) == (8, [{"seconds": 900, "probability": 0.00005}])
    assert (relay["law_seconds"], relay["law_samples"]) == ([8, 10, 910], 1_000)
    assert sum(relay["law_chances"]) == pytest.approx(1)
    assert relay["law_chances"][-1] == 0.00005
    attest = legs[EVERYWHERE, "attest"]
    assert (attest["name"], attest["law_seconds"]) == ("everywhere", [1])
    assert (legs[BETA, "read"]["samples"], legs[BETA, "read"]["law_samples"]) == (1, 0)
    assert {hold["name"]: (hold["p50"], hold["bound"]) for hold in report["holds"]} == {
        "alpha": (17, 19),
        "beta": (17, 17),
        "sol": (17, 17),
    }


def test_a_person_reads_the_same_figures(measured: Shell) -> None:
    text = measured("latency").stdout
    relay = next(line for line in text.splitlines() if line.startswith("alpha") and "relay" in line)
    assert relay.split()[2:8] == ["1000", "5", "9", "10", "10", "10"]
    assert "1000 samples" in relay
    assert "900 s at 5e-05" in relay
    assert "█" in relay
    assert "until a hold lands" in text


def test_it_looks_at_one_chain_one_leg_or_a_while(measured: Shell) -> None:
    for chain in ("alpha", ALPHA):
        legs = measured.json("latency", "--chain", chain, "--leg", "relay")["legs"]
        assert [(leg["chain"], leg["leg"]) for leg in legs] == [(ALPHA, "relay")]
    everywhere = measured.json("latency", "--chain", "*")
    assert [leg["leg"] for leg in everywhere["legs"]] == ["attest"]
    assert everywhere["holds"] == []
    recent = measured.json("latency", "--since", "10m", "--chain", "alpha", "--leg", "relay")["legs"][0]
    assert 0 < recent["samples"] < 1_000
    assert recent["law_samples"] == 1_000  # the law rests on the whole day


def test_nothing_measured_is_said_clearly(shell: Shell) -> None:
    text = " ".join(shell("latency").stdout.split())
    assert "Nothing was measured in the last 1d: legs are measured while `crossmargin run` runs." in text
    assert "until a hold lands" in text
    report = shell.json("latency")
    assert {leg["samples"] for leg in report["legs"]} == {0}
    assert {leg["leg"] for leg in report["legs"]} == set(LEGS)
    shell.refused(("latency", "--plot", "out.svg"), 1, "nothing to draw")


def test_a_picture_shows_every_measured_leg(measured: Shell, tmp_path: Path) -> None:
    path = tmp_path / "latency.svg"
    assert f"drawn to {path}" in measured("latency", "--plot", str(path)).stdout.replace("\n", "")
    root = ElementTree.fromstring(path.read_text("utf-8"))
    words = [text.text for text in root.iter(f"{SVG}text")]
    for word in ("read", "attest", "relay", "alpha (1000)", "everywhere (100)", "beta (1)"):
        assert word in words
    assert "lifetime" not in words
    lines = [line.get("d") or "" for line in root.iter(f"{SVG}path") if line.get("stroke-width") == "1.6"]
    assert len(lines) == 3
    assert sorted(line.count("V") for line in lines) == [1, 1, 10]  # one rise per distinct measurement


def test_what_cannot_be_done_is_refused_by_name(measured: Shell, tmp_path: Path) -> None:
    measured.refused(("latency", "--plot", "out.png"), 2, "--plot", "out.png is no .svg file", "only SVG is drawn")
    measured.refused(("latency", "--leg", "walk"), 2, "--leg", "'walk' is not known", "finality")
    measured.refused(("latency", "--chain", "gamma"), 2, "chain", "'gamma' is not known", "alpha")
    for since in ("soon", "0s", "2d", "-1h", "1.5h"):
        measured.refused(("latency", f"--since={since}"), 2, "--since", "no time up to a day", "1h")
    measured.refused(("latency", "--plot", str(tmp_path / "none" / "x.svg")), 1, "cannot be written")


def test_bars_keep_small_counts_visible() -> None:
    values = [1.0] * 1_000 + [15.0]
    first, last = span([values, []])
    drawn = bars(values, first, last)
    assert (name_of_bar(first), name_of_bar(last)) == ("1 s", "20 s")
    assert (len(drawn), drawn[0], drawn[-1], set(drawn[1:-1])) == (5, "█", "▁", {" "})
    assert span([]) == (0, 0)
    assert bars([1e9], *span([[1e9]])) == "█"
    assert name_of_bar(span([[1e9]])[0]) == "over 86400 s"


def test_solana_has_legs_too(measured: Shell) -> None:
    assert {leg["leg"] for leg in measured.json("latency", "--chain", SOL)["legs"]} >= {"finality", "read", "relay"}
