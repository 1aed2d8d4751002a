from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from adapters.watermark import SqliteWatermark
from aggregator.domain.errors import RefusedError

A, B = b"\xaa" * 32, b"\xbb" * 32


async def test_one_digest_per_epoch_and_never_backwards(tmp_path: Path) -> None:
    mark = SqliteWatermark(tmp_path / "mark")
    assert await mark.highest() is None
    await mark.claim(7, A)
    await mark.claim(7, A)  # an identical repeat
    with pytest.raises(RefusedError, match=r"epoch 7 was signed as 0xaa.*, not as 0xbb"):
        await mark.claim(7, B)
    with pytest.raises(RefusedError, match="epoch 6 is below 7"):
        await mark.claim(6, A)
    await mark.claim(9, B)
    with pytest.raises(RefusedError):
        await mark.claim(7, A)  # identical, but a higher epoch was signed since
    assert await mark.highest() == 9
    await mark.close()


async def test_the_record_outlives_the_object(tmp_path: Path) -> None:
    first = SqliteWatermark(tmp_path / "mark")
    await first.claim(7, A)
    await first.close()
    second = SqliteWatermark(tmp_path / "mark")
    with pytest.raises(RefusedError):
        await second.claim(7, B)
    await second.close()


async def test_closing_leaves_no_thread_and_no_second_file(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    mark = SqliteWatermark(tmp_path / "mark")
    await mark.claim(7, A)
    assert [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("watermark")]
    await mark.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("watermark")]
    assert os.listdir(tmp_path) == ["mark"]


async def test_a_commit_waits_for_the_folder_too(tmp_path: Path) -> None:
    mark = SqliteWatermark(tmp_path / "mark")
    await mark.claim(7, A)

    def read() -> list[object]:
        connection = mark._file.open()
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    assert await mark._file.run(read) == ["delete", 3]  # 3 is EXTRA
    await mark.close()


async def test_racing_claims_admit_one_digest(tmp_path: Path) -> None:
    marks = [SqliteWatermark(tmp_path / "mark") for _ in range(4)]  # as four processes would hold it
    await asyncio.gather(*(mark.highest() for mark in marks[:1]))
    results = await asyncio.gather(
        *(mark.claim(7, bytes([i]) * 32) for i, mark in enumerate(marks)), return_exceptions=True
    )
    assert [type(result) for result in results].count(type(None)) == 1
    assert [type(result) for result in results].count(RefusedError) == 3
    for mark in marks:
        await mark.close()


def test_a_claim_survives_kill_minus_nine(tmp_path: Path) -> None:
    """The process dies in the very moment the claim returns: what it may have signed is on disk."""
    program = (
        "import asyncio, os, signal, sys; from pathlib import Path; from adapters.watermark import SqliteWatermark\n"
        "async def main():\n"
        "    await SqliteWatermark(Path(sys.argv[1])).claim(7, bytes([0xaa]) * 32)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "mark")], env=environment, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL

    async def after() -> None:
        mark = SqliteWatermark(tmp_path / "mark")
        with pytest.raises(RefusedError, match="epoch 7 was signed"):
            await mark.claim(7, B)
        await mark.claim(7, A)
        await mark.close()

    asyncio.run(after())
