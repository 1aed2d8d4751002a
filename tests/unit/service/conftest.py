"""A simulated world per test: three accounts over three chains, one second from their first epoch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.domain.snapshot import Account
from tests.worlds.world import SimulatedWorld


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    async with SimulatedWorld(tmp_path) as made:
        yield made


@pytest.fixture
async def accounts(world: SimulatedWorld) -> dict[str, Account]:
    return await world.populate()
