"""The EVM watcher told things out of order: a log that comes after its height was given out still reaches somebody."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapters.evm.watch import EvmWatcher
from tests.chain.evm_venues import chain_row

TOKEN = "0x" + "c1" * 20


def word(number: int) -> str:
    return f"0x{number:064x}"


def header(height: int) -> dict[str, str]:
    return {
        "number": hex(height),
        "timestamp": hex(height),
        "hash": f"0x{height + 1:064x}",
        "parentHash": f"0x{height:064x}",
    }


def log(height: int, number: int, removed: bool = False) -> dict[str, Any]:
    return {
        "address": TOKEN,
        "topics": [word(number)],
        "data": "0x",
        "blockNumber": hex(height),
        "removed": removed,
    }


class Script:
    """A socket and its only session: tells the events in turn and runs what stands between them, then ends."""

    def __init__(self, start: int, *events: dict[str, Any] | Callable[[], None]) -> None:
        self.start, self.events = start, list(events)

    async def keep(self, follow: Callable[[Any], Awaitable[None]]) -> None:
        with suppress(EOFError):
            await follow(self)

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        match method:
            case "eth_chainId":
                return "0x7a69"
            case "eth_subscribe":
                return params[0]
            case "eth_getBlockByNumber":
                return header(self.start)
        return []

    async def next(self, timeout: float) -> Any:
        while self.events:
            event = self.events.pop(0)
            if isinstance(event, dict):
                return SimpleNamespace(subscription="logs" if "topics" in event else "newHeads", result=event)
            event()
        raise EOFError


async def listen(script: Script, watcher: EvmWatcher) -> None:
    await script.keep(watcher._follow)


class Asker:
    """Asks for what changed since it asked last, as far as the watcher knows, and forgets it as an observer does."""

    def __init__(self, script: Script, start: int, forgets: bool) -> None:
        self.watcher = EvmWatcher(chain_row("http://unused"), script, [TOKEN])
        self.asked, self.forgets = start, forgets
        self.told: list[frozenset[str]] = []

    def __call__(self) -> None:
        upto = self.watcher.covered()
        words = self.watcher.words(self.asked, upto)
        assert words is not None
        self.told.append(words)
        self.asked = upto
        if self.forgets:
            self.watcher.forget(upto)


@given(
    delays=st.lists(st.integers(0, 12), min_size=1, max_size=12),
    asks=st.lists(st.integers(0, 12), max_size=6),
    forgets=st.booleans(),
    removed=st.booleans(),
)
async def test_a_log_that_comes_late_is_told_later(
    delays: list[int], asks: list[int], forgets: bool, removed: bool
) -> None:
    """Log i is of block i + 1 and comes ``delays[i]`` blocks late; somebody asks after some blocks."""
    script = Script(0)
    ask = Asker(script, 0, forgets)
    for height in range(1, 30):
        script.events.append(header(height))
        script.events += [log(i + 1, i + 1, removed) for i, late in enumerate(delays) if i + 1 + late == height]
        if height in asks:
            script.events.append(ask)
    script.events.append(ask)
    await listen(script, ask.watcher)
    assert frozenset().union(*ask.told) == {word(i + 1) for i in range(len(delays))}


async def test_what_was_told_and_is_undone_later_is_told_again() -> None:
    script = Script(0)
    ask = Asker(script, 0, forgets=True)
    script.events += [header(1), log(1, 7), header(2), header(3), ask, log(1, 7, removed=True)]
    script.events += [header(4), header(5), ask]
    await listen(script, ask.watcher)
    assert ask.told == [{word(7)}, {word(7)}]
