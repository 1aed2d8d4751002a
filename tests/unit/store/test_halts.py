"""Halts in a real database: they stand until they are resumed by hand with a reason, across restarts; all is logged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.domain.errors import ConflictError, InputError
from aggregator.store.halts import SqlHalts
from aggregator.store.sql import SqlStore

ALPHA, BETA = "eip155:31337", "eip155:31338"
CAUSE = "reorged: block 90 was 0xaa…, is 0xbb…"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def halts(path: Path) -> AsyncIterator[SqlHalts]:
    store = await SqlStore.open(f"sqlite:///{path}")
    yield SqlHalts(store)
    await store.close()


async def test_a_halt_stands_for_its_party_alone_and_across_a_restart(halts: SqlHalts, path: Path) -> None:
    made = await halts.halt("attestor-0", ALPHA, CAUSE, 100)
    assert await halts.standing("coordinator") == {}
    again = await SqlStore.open(f"sqlite:///{path}")
    assert await SqlHalts(again).standing("attestor-0") == {ALPHA: made}
    await again.close()
    assert (made.cause, made.halted_at, made.resumed_at) == (CAUSE, 100, None)


async def test_halting_twice_keeps_the_first_cause(halts: SqlHalts) -> None:
    first = await halts.halt("attestor-0", ALPHA, CAUSE, 100)
    assert await halts.halt("attestor-0", ALPHA, "reorged: again", 200) == first
    assert await halts.log() == (first,)


async def test_two_writers_at_once_set_one_flag(halts: SqlHalts, path: Path) -> None:
    other = await SqlStore.open(f"sqlite:///{path}")
    one, two = await asyncio.gather(
        halts.halt("coordinator", ALPHA, CAUSE, 1), SqlHalts(other).halt("coordinator", ALPHA, CAUSE, 2)
    )
    assert one == two
    await other.close()


async def test_resuming_clears_every_party_of_that_chain_and_is_logged(halts: SqlHalts) -> None:
    await halts.halt("coordinator", ALPHA, CAUSE, 100)
    await halts.halt("attestor-0", ALPHA, CAUSE, 101)
    elsewhere = await halts.halt("coordinator", BETA, CAUSE, 102)
    cleared = await halts.resume(ALPHA, " compared with two explorers ", "ann", 300)
    assert [(h.party, h.resumed_at, h.resumed_by, h.reason) for h in cleared] == [
        ("coordinator", 300, "ann", "compared with two explorers"),
        ("attestor-0", 300, "ann", "compared with two explorers"),
    ]
    assert await halts.standing("coordinator") == {BETA: elsewhere}
    assert await halts.log() == (elsewhere, cleared[1], cleared[0])
    assert await halts.log(limit=1) == (elsewhere,)


async def test_after_a_resume_the_chain_can_be_halted_anew(halts: SqlHalts) -> None:
    first = await halts.halt("coordinator", ALPHA, CAUSE, 100)
    await halts.resume(ALPHA, "looked", "ann", 200)
    second = await halts.halt("coordinator", ALPHA, "reorged: block 95", 300)
    assert second.id > first.id
    assert (await halts.standing("coordinator"))[ALPHA] == second


async def test_a_resume_needs_a_reason_and_a_halt(halts: SqlHalts) -> None:
    await halts.halt("coordinator", ALPHA, CAUSE, 100)
    with pytest.raises(InputError, match="reason: is empty"):
        await halts.resume(ALPHA, "  ", "ann", 200)
    with pytest.raises(ConflictError, match="is not halted"):
        await halts.resume(BETA, "looked", "ann", 200)
    assert set(await halts.standing("coordinator")) == {ALPHA}
