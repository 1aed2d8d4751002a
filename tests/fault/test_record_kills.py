"""kill -9 of an attestor at every durable step of its record: never two digests for one epoch or one document."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
COMPILER = shutil.which("cc")


@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler and LD_PRELOAD of Linux")
@pytest.mark.parametrize("kind", ["fresh", "used"])
def test_killed_at_every_write(tmp_path: Path, kind: str) -> None:
    library = tmp_path / "kill_at_write.so"
    command = [str(COMPILER), "-shared", "-fPIC", "-O1", "-o", str(library), str(FOLDER / "kill_at_write.c"), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "LD_PRELOAD": str(library),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = subprocess.run(
        [sys.executable, str(FOLDER / "record_program.py"), str(library), str(tmp_path), kind],
        env=environment,
        timeout=150,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [run["killed"] for run in found] == [True] * (len(found) - 1) + [False]
    # Every promise was once the last thing said before a kill, so each commit was cut in two as well.
    ends = {tuple(run["said"])[-1:] for run in found if run["killed"]}
    begun = "started 1" if kind == "fresh" else "started 2"
    assert ends == {(), (begun,), ("signed epoch",), ("signed permit",)}

    for run in found:
        assert run["integrity"] == "ok"
        other, same = run["epoch"]
        assert not (other and same)
        if "raised" in run["said"]:
            assert not other
            assert not same
        elif "signed epoch" in run["said"]:
            assert not other
        other, same = run["permit"]
        assert not (other and same)
        assert same or "signed permit" not in run["said"]
        if "signed permit" in run["said"]:
            assert not other
        if begun in run["said"]:
            assert run["starts"] > int(begun.split()[1])
        assert run["starts"] > 9 or "raised" not in run["said"]
        assert kind == "fresh" or run["highest"] >= 6
