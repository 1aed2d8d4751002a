"""``crossmargin run`` and ``check``."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import typer

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    err,
    out,
    print_json,
    run_async,
    settings_of,
    styled,
    table,
)

PATIENCE = 2.0  # seconds after which a terminal is told what a check still waits for


@app.command()
def run(
    config: ConfigOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="Log JSON lines instead of text, to stderr.")] = False,
) -> None:
    """Run the service: epochs, attestors, relayer and API, until interrupted."""
    from aggregator.service.telemetry import configure_logging

    configure_logging(json_lines=json_output)

    async def work() -> None:
        settings = settings_of(config)
        async with bootstrap.build_service(settings) as service:
            bootstrap.tune_collector()
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for name in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(name, stop.set)
            err.print(f"crossmargin serves on http://{settings.service.listen} (docs at /docs); Ctrl-C stops it")
            await service.run(stop)

    run_async(work)


@app.command()
def check(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Probe chains, venues, feeds, keys and destinations with the methods really used."""

    async def work() -> bool:
        async with _progress() as told:
            findings = await bootstrap.preflight(settings_of(config), told)
        if json_output:
            print_json([f._asdict() for f in findings])
        else:
            shown = table("", "", "what", "found")
            for f in findings:
                shown.add_row(styled(f.code), f.scope, f.detail)
            out.print(shown)
        return all(f.code == "ok" for f in findings)

    if not run_async(work):
        raise typer.Exit(1)


@asynccontextmanager
async def _progress() -> AsyncIterator[Callable[[frozenset[str]], None]]:
    """Yield what to tell the names that are waited for; a person at a terminal sees them once it takes long."""
    waiting = frozenset[str]()

    def told(names: frozenset[str]) -> None:
        nonlocal waiting
        waiting = names

    async def show() -> None:
        await asyncio.sleep(PATIENCE)
        with err.status("") as status:
            while True:
                status.update(f"waiting for {', '.join(sorted(waiting))}")
                await asyncio.sleep(0.2)

    showing = asyncio.create_task(show()) if err.is_terminal else None
    try:
        yield told
    finally:
        if showing is not None:
            showing.cancel()
            await asyncio.wait([showing])
