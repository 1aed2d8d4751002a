"""Runs in a process of its own with `kill_at_write.so` preloaded: dies at every write of the record, one child each.

Arguments: the preloaded library, a folder, "fresh" or "used". Prints one JSON line per child: where it was killed, what
it said before, and what the record allows afterwards.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sqlite3
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from adapters.watermark import Owner, SqliteWatermark
from aggregator.domain.errors import RefusedError

A, B = b"\xaa" * 32, b"\xbb" * 32
OWNER = Owner(b"\x11" * 32, "0x" + "22" * 20)


async def work(path: Path, said: int) -> None:
    record = SqliteWatermark(path, OWNER)

    def say(what: str) -> None:
        os.write(said, what.encode() + b"\n")

    say(f"started {await record.begin()}")
    await record.claim(7, A)
    say("signed epoch")
    await record.claim_once("permit", "0x01", A)
    say("signed permit")
    await record.raise_to(starts=9, epoch=8)
    say("raised")


async def allowed(what: Awaitable[None]) -> bool:
    try:
        await what
        return True
    except RefusedError:
        return False


async def examine(path: Path) -> dict[str, Any]:
    """Ask for the other digest first: what it is granted must then be refused to the one that may have been signed."""
    record = SqliteWatermark(path, OWNER)
    found = {
        "starts": await record.begin(),
        "highest": await record.highest(),
        "epoch": [await allowed(record.claim(7, digest)) for digest in (B, A)],
        "permit": [await allowed(record.claim_once("permit", "0x01", digest)) for digest in (B, A)],
    }
    await record.close()
    with sqlite3.connect(path) as connection:
        found["integrity"] = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return found


def run(library: Any, folder: Path, kind: str, number: int) -> dict[str, Any]:
    path = folder / f"mark-{kind}-{number}"
    if kind == "used":
        asyncio.run(prepare(path))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        library.arm(number)
        try:
            asyncio.run(work(path, writing))
        except BaseException:
            os._exit(3)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.WEXITSTATUS(status) == 0, status
    return {"killed": killed, "said": said, **asyncio.run(examine(path))}


async def prepare(path: Path) -> None:
    record = SqliteWatermark(path, OWNER)
    await record.begin()
    await record.claim(6, A)
    await record.claim_once("hold", "0x01", A)
    await record.close()


def main() -> None:
    library, folder, kind = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    number = 0
    while True:
        number += 1
        found = run(library, folder, kind, number)
        print(json.dumps(found), flush=True)
        if not found["killed"]:
            return


if __name__ == "__main__":
    main()
