"""An attestor's HTTP app on a real socket, and clients to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from adapters.keys import KeySigner
from adapters.wire import WireClient, WireGate
from aggregator.api.attestor_app import Limits, create_attestor_app
from proofs.hashing import keccak256

DEPLOYMENT_ID = b"\x11" * 32
ASKER, ANSWERER, STRANGER = (KeySigner(keccak256(b"wire %d" % i)) for i in range(3))


class Echo:
    """Stands behind the endpoints: answers with what it was asked, or as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.problem = ""
        self.raises: Exception | None = None
        self.gate, self.two = asyncio.Event(), asyncio.Event()  # lets answers out; says that two were asked for
        self.gate.set()

    async def attest(self, kind: str, sender: str, body: bytes) -> bytes:
        self.asked.append((kind, sender, body))
        if len(self.asked) == 2:
            self.two.set()
        await self.gate.wait()
        if self.raises is not None:
            raise self.raises
        return kind.encode() + b":" + body

    async def learn(self, sender: str, body: bytes) -> None:
        self.asked.append(("learn", sender, body))

    async def status(self, sender: str) -> bytes:
        return b"status"

    def health(self) -> str:
        return self.problem


def make_gate(clock: Any) -> WireGate:
    return WireGate(DEPLOYMENT_ID, ANSWERER, {ASKER.address: "coordinator"}, clock)


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port; give its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="on", access_log=False))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


@asynccontextmanager
async def serve_echo(clock: Any, echo: Echo, limits: Limits | None = None, **options: Any) -> AsyncIterator[str]:
    async with serve(create_attestor_app(make_gate(clock), echo, limits=limits, **options)) as url:
        yield url


@asynccontextmanager
async def client(url: str, clock: Any, signer: KeySigner = ASKER, **options: Any) -> AsyncIterator[WireClient]:
    wire = WireClient(DEPLOYMENT_ID, signer, url, ANSWERER.address, "attestor-1", clock, **options)
    try:
        yield wire
    finally:
        await wire.close()
