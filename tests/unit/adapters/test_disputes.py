"""The log of disputes: whole, in order and signed by one key, across crashes, files and writers; tampering shows."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from adapters import disputes as log
from adapters.disputes import LINE_LIMIT, QUIET_SECONDS, TOPICS, Dispute, DisputeFile, DisputeLog, read_disputes
from adapters.keys import KeySigner

SIGNER, OTHER = KeySigner(b"\x11" * 32), KeySigner(b"\x22" * 32)
DISPUTE = Dispute(
    chain="eip155:1",
    height=17,
    block="0x" + "ab" * 32,
    about="position 0xaa wallet eip155:1/slip44:60 asset",
    provider="alpha[1]",
    others=("alpha[0]", "alpha[2]"),
    agreed=True,
    field="amount",
    value="10",
    expected="1",
    count=1,
    digests=(("alpha[0]", "0" * 64), ("alpha[1]", "1" * 64)),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disputes.jsonl"


def append(path: Path, *heights: int, signer: KeySigner = SIGNER, size_limit: int = log.SIZE_LIMIT) -> None:
    file = DisputeFile(path, lambda: signer, size_limit=size_limit)
    for height in heights:
        file.append(replace(DISPUTE, height=height))


def heights(path: Path) -> list[int]:
    return [e.record["height"] for e in read_disputes(path) if not e.torn]


def problems(path: Path, signer: str | None = SIGNER.address) -> list[str]:
    return [e.problem for e in read_disputes(path, signer) if e.problem]


def test_what_is_appended_is_read_back_newest_first_and_verifies(path: Path) -> None:
    append(path, 1, 2, 3)
    assert heights(path) == [3, 2, 1]
    assert problems(path) == []
    entry = read_disputes(path)[0]
    assert (entry.signer, entry.record["provider"], entry.record["value"]) == (SIGNER.address, "alpha[1]", "10")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_log_has_no_disputes(path: Path) -> None:
    assert read_disputes(path) == []


def test_a_line_is_bounded_and_still_verifies(path: Path) -> None:
    file = DisputeFile(path, lambda: SIGNER)
    file.append(replace(DISPUTE, about="é" * 9_000, digests=tuple((f"alpha[{i}]", "0" * 64) for i in range(100))))
    file.append(replace(DISPUTE, value="\ud800 half a character"))
    assert all(len(line) < LINE_LIMIT for line in path.read_bytes().splitlines())
    assert read_disputes(path)[1].record["provider"] == "alpha[1]"
    assert problems(path) == []


def test_a_changed_line_shows_and_so_does_one_signed_by_another_key(path: Path) -> None:
    append(path, 1, 2)
    path.write_bytes(path.read_bytes().replace(b'"provider":"alpha[1]"', b'"provider":"alpha[2]"', 1))
    assert "the line was changed" in read_disputes(path)[1].problem
    path.unlink()
    append(path, 1, signer=OTHER)
    assert problems(path) == [f"signed by {OTHER.address}, the evidence key here is {SIGNER.address}"]
    assert problems(path, None) == []


@pytest.mark.parametrize("order", [(1, 2), (0, 2), (0, 2, 1), (0, 1, 1, 2)], ids=["first", "middle", "swap", "twice"])
def test_lines_taken_out_reordered_or_repeated_show(path: Path, order: tuple[int, ...]) -> None:
    append(path, 1, 2, 3)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    assert any("does not follow" in problem for problem in problems(path))


@pytest.mark.parametrize("keep", range(1, 200, 17))
def test_a_line_that_a_crash_tore_is_told_apart_and_the_chain_goes_on(path: Path, keep: int) -> None:
    append(path, 1, 2)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    path.write_bytes(whole[: start + keep])
    append(path, 3, 4)
    assert heights(path) == [4, 3, 1]
    assert [e.torn for e in read_disputes(path)] == [False, False, True, False]
    assert problems(path) == ["half-written by a crash: no evidence"]


def test_a_line_without_its_end_is_whole(path: Path) -> None:
    append(path, 1)
    path.write_bytes(path.read_bytes()[:-1])
    append(path, 2)
    assert heights(path) == [2, 1]
    assert problems(path) == []


def test_full_files_are_rotated_the_oldest_goes_and_the_chain_runs_through(path: Path) -> None:
    append(path, 1)
    line = path.stat().st_size
    append(path, *range(2, 7), size_limit=2 * line + 50)
    assert heights(path) == [6, 5, 4, 3, 2, 1]
    assert problems(path) == []
    append(path, *range(7, 21), size_limit=2 * line + 50)
    assert heights(path) == list(range(20, 12, -1))
    assert problems(path) == []
    assert len(list(path.parent.glob("*.jsonl"))) == log.FILES
    path.with_name("disputes.2.jsonl").unlink()
    assert any("does not follow" in problem for problem in problems(path))


def test_writers_at_once_make_one_chain(path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: append(path, *range(10 * i, 10 * i + 5)), range(4)))
    assert sorted(heights(path)) == sorted(10 * i + j for i in range(4) for j in range(5))
    assert problems(path) == []


def test_a_disk_that_takes_half_a_line_is_an_error_and_the_chain_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(path, 1)
    write = os.write
    monkeypatch.setattr(log.os, "write", lambda file, line: write(file, line[: len(line) // 2]))
    with pytest.raises(OSError, match="No space left"):
        append(path, 2)
    monkeypatch.undo()
    append(path, 3)
    assert heights(path) == [3, 1]


def test_a_line_is_one_json_object_that_others_can_check(path: Path) -> None:
    append(path, 1)
    line = json.loads(path.read_bytes())
    assert set(line) == {"record", "previous", "signer", "signature"}
    assert line["previous"] == "0" * 64


class Clock:
    """Seconds that a test moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def kept(path: Path, clock: Clock) -> DisputeLog:
    def failed(dispute: Dispute, error: Exception) -> None:
        raise AssertionError(f"{dispute} was not written: {error}")

    return DisputeLog(DisputeFile(path, lambda: SIGNER), failed, clock=clock)


def test_a_lie_that_every_party_sees_in_every_epoch_is_one_line_and_a_count(path: Path) -> None:
    clock = Clock()
    disputes = kept(path, clock)
    for height in range(10):
        for party in ("attestor-0", "attestor-1", "coordinator"):
            disputes.note(replace(DISPUTE, height=height, party=party))
    disputes.note(replace(DISPUTE, provider="alpha[2]"))
    disputes.note(replace(DISPUTE, about="position 0xbb wallet eip155:1/slip44:60 asset"))
    clock.seconds = QUIET_SECONDS
    disputes.note(replace(DISPUTE, height=11))
    disputes.flush()
    found = [e.record for e in read_disputes(path)][::-1]
    assert [(r["height"], r["provider"], r["party"], r["repeats"]) for r in found] == [
        (0, "alpha[1]", "attestor-0", 0),
        (17, "alpha[2]", "", 0),
        (17, "alpha[1]", "", 0),
        (11, "alpha[1]", "", 29),
    ]
    assert problems(path) == []


def test_who_lies_about_something_else_each_time_does_not_fill_the_log(path: Path) -> None:
    clock = Clock()
    disputes = kept(path, clock)
    for i in range(100):
        disputes.note(replace(DISPUTE, about=f"block {i}"))  # whatever its height, a block is one subject
        disputes.note(replace(DISPUTE, about=f"position {i}"))
    disputes.note(replace(DISPUTE, provider="alpha[2]"))  # has its own share
    disputes.flush()
    assert len(read_disputes(path)) == TOPICS + 1
    clock.seconds = 3 * QUIET_SECONDS
    disputes.note(DISPUTE)
    disputes.flush()
    assert read_disputes(path)[0].record["repeats"] == 200 - TOPICS


def test_a_dispute_that_could_not_be_written_is_told_and_the_next_one_is(path: Path) -> None:
    told: list[str] = []
    disputes = DisputeLog(DisputeFile(path / "missing", lambda: SIGNER), lambda d, e: told.append(type(e).__name__))
    disputes.note(DISPUTE)
    disputes.flush()
    assert told == ["FileNotFoundError"]
    path.mkdir()
    disputes.note(DISPUTE)
    disputes.flush()
    assert len(read_disputes(path / "missing")) == 1


def test_a_process_that_ends_has_written_what_was_handed_over(path: Path) -> None:
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "from tests.unit.adapters.test_disputes import *\n"
        "log = DisputeLog(DisputeFile(pathlib.Path(sys.argv[1]), lambda: SIGNER), print)\n"
        "for i in range(10): log.note(replace(DISPUTE, field=str(i)))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path), str(Path(__file__).parents[3])], check=True, timeout=60)
    assert len(read_disputes(path)) == 10
    assert problems(path) == []
