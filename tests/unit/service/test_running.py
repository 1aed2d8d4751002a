"""What `Service.run` does when a part of it ends."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from aggregator.bootstrap import Service


class Part:
    """A part of the service that runs until stopped, or fails."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.should_exit, self.ended, self.stopped = failure, False, False, False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    async def serve(self, sockets: Any) -> None:
        while not self.should_exit:
            if self.failure is not None:
                raise self.failure
            await asyncio.sleep(0.01)
        self.ended = True

    async def run(self, stop: asyncio.Event) -> None:
        if self.failure is not None:
            raise self.failure
        await stop.wait()
        await asyncio.sleep(0.05)
        self.ended = True


@pytest.mark.parametrize("failing", ["cycle", "server"])
async def test_whichever_part_fails_the_others_end_and_the_relayer_stops(failing: str) -> None:
    failure = OSError("no more files")
    parts: dict[str, Any] = {name: Part(failure if name == failing else None) for name in ("cycle", "server")}
    relayer: Any = Part()
    with socket.socket() as listener, pytest.raises(OSError, match="no more files"):
        await Service(parts["cycle"], relayer, parts["server"], listener).run(asyncio.Event())
    assert relayer.stopped
    assert all(part.ended for name, part in parts.items() if name != failing)


async def test_a_stop_ends_everything_quietly() -> None:
    cycle, server, relayer, stop = Part(), Part(), Part(), asyncio.Event()
    stop.set()
    with socket.socket() as listener:
        await Service(cycle, relayer, server, listener).run(stop)  # type: ignore[arg-type]
    assert cycle.ended and server.ended and relayer.stopped  # noqa: PT018
