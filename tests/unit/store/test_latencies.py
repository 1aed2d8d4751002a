"""Measured legs on a real database: nothing is lost or changed, and what is forgotten is what should be."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.domain.latency import EVERYWHERE, Sample
from aggregator.store import SqlStore
from aggregator.store.latencies import SqlLatencies

ALPHA, BETA = "eip155:31337", "eip155:31338"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(f"sqlite:///{path}")
    yield opened
    await opened.close()


async def test_samples_come_back_bit_for_bit_oldest_first(store: SqlStore, path: Path) -> None:
    latencies = SqlLatencies(store)
    late = [Sample("read", ALPHA, math.pi / 10, 200), Sample("attest", EVERYWHERE, 0.0, 200)]
    await latencies.record(late)
    await latencies.record([Sample("relay", BETA, 12.000000000000002, 100)])
    await latencies.record([])
    reopened = await SqlStore.open(f"sqlite:///{path}")
    assert await SqlLatencies(reopened).window(0) == (Sample("relay", BETA, 12.000000000000002, 100), *late)
    assert await SqlLatencies(reopened).window(101) == tuple(late)
    assert await SqlLatencies(reopened).window(201) == ()
    await reopened.close()


async def test_old_samples_are_forgotten(store: SqlStore) -> None:
    latencies = SqlLatencies(store)
    await latencies.record([Sample("read", ALPHA, 1.0, at) for at in range(10)])
    assert await latencies.forget(4, keep=100) == 4
    assert [sample.measured_at for sample in await latencies.window(0)] == [4, 5, 6, 7, 8, 9]
    assert await latencies.forget(4, keep=100) == 0


async def test_every_series_keeps_its_own_newest(store: SqlStore) -> None:
    latencies = SqlLatencies(store)
    await latencies.record([Sample("read", ALPHA, float(i), 7) for i in range(5)])  # of one second: recording decides
    await latencies.record([Sample("read", BETA, float(i), i) for i in range(5)])
    await latencies.record([Sample("relay", ALPHA, 9.0, 1)])
    assert await latencies.forget(0, keep=2) == 6
    assert await latencies.window(0) == (
        Sample("relay", ALPHA, 9.0, 1),
        Sample("read", BETA, 3.0, 3),
        Sample("read", BETA, 4.0, 4),
        Sample("read", ALPHA, 3.0, 7),
        Sample("read", ALPHA, 4.0, 7),
    )


async def test_a_number_is_never_given_twice_after_a_restart(store: SqlStore, path: Path) -> None:
    first = SqlLatencies(store)
    await first.record([Sample("read", ALPHA, 1.0, 1)])
    other = await SqlStore.open(f"sqlite:///{path}")  # another process
    await SqlLatencies(other).record([Sample("read", ALPHA, 2.0, 1)])
    await first.record([Sample("read", ALPHA, 3.0, 1)])
    assert [sample.seconds for sample in await first.window(0)] == [1.0, 2.0, 3.0]
    await other.close()
