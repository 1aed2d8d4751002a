"""The FastAPI application. CORS stays off: the pages come from the same origin, programs need none."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from aggregator.api import errors
from aggregator.api.context import ApiService
from aggregator.api.guard import Guard
from aggregator.api.routes import accounts, epochs, latency, operations, pages, permits, risk, signing, world

__all__ = ["ApiService", "create_app"]

_DESCRIPTION = """Attested margin accounts over EVM chains and Solana.

Amounts are strings: `exact` counts 1e-8 USD or base units, `text` is for people. Times are Unix seconds.
Every margin carries `as_of`, `epoch`, `valid_until` and `stale`; what is stale has nothing `usable`."""


def create_app(service: ApiService) -> FastAPI:
    """Build the application over ``service``."""
    app = FastAPI(
        title="crossmargin",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,  # the stock page loads its scripts from a CDN; ours is at the same address
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard)
    errors.install(app)
    for module in (accounts, epochs, latency, permits, risk, world):
        app.include_router(module.router, prefix="/v1")
    app.include_router(operations.router)
    app.include_router(pages.router)
    app.include_router(signing.router)
    app.mount("/static", StaticFiles(directory=Path(__file__).with_name("web") / "static"), name="static")
    return app
