"""The API over a real store with epochs made up, two accounts, and a clock that stands still."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from aggregator.api import create_app
from aggregator.store import SqlStore
from tests.api.synthetic_epochs import World, fill, make_world


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database that is filled once; every test works on its own copy."""
    path = tmp_path_factory.mktemp("filled") / "store.db"

    async def make() -> None:
        store = await SqlStore.open(f"sqlite:///{path}")
        await fill(store)
        await store.close()

    asyncio.run(make())
    return path


@pytest.fixture
async def world(tmp_path: Path, filled: Path) -> AsyncIterator[World]:
    store = await SqlStore.open(f"sqlite:///{shutil.copy(filled, tmp_path / 'store.db')}")
    yield make_world(store)
    await store.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(world.service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as opened:
        yield opened
