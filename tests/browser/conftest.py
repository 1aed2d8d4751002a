"""A browser on the pages of a served API. Without Chromium these tests skip, and say so."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from aggregator.api import create_app
from aggregator.store import SqlStore
from tests.api.synthetic_epochs import World, fill, make_world

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Site:
    """A served API: its address, what stands behind it, and the loop that serves it."""

    url: str
    world: World
    loop: asyncio.AbstractEventLoop
    server: uvicorn.Server

    def stop(self) -> None:
        self.server.should_exit = True


@pytest.fixture(scope="module")  # not longer: Playwright keeps an event loop running that other tests would meet
def browser() -> Iterator[Browser]:
    if _CHROMIUM is None:
        pytest.skip("NO BROWSER: install chromium (apt-get install chromium) to check the pages")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Serve the API on a free port from a thread; Playwright's own loop keeps this one."""
    listener = socket.create_server(("127.0.0.1", 0))
    started, sites = threading.Event(), list[Site]()

    async def serve() -> None:
        store = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
        await fill(store)
        world = make_world(store)
        server = uvicorn.Server(
            uvicorn.Config(create_app(world.service), log_level="error", timeout_graceful_shutdown=1)
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sites.append(Site(url, world, asyncio.get_running_loop(), server))
        started.set()
        await server.serve(sockets=[listener])
        await store.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(30), "the server did not start"
    yield sites[0]
    sites[0].stop()
    thread.join(30)
    listener.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which any script error or refused resource fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    yield opened
    context.close()
    assert errors == []
