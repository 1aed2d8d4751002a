"""``crossmargin attestor``: one attestor as a process of its own, and its record of what it signed."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    err,
    fail,
    out,
    print_json,
    read_file,
    run_async,
    settings_of,
    table,
)

attestor_app = typer.Typer(help="Run an attestor, and look after its record.", no_args_is_help=True)
app.add_typer(attestor_app, name="attestor")


@attestor_app.command("run")
def attestor_run(
    config: ConfigOption = None,
    json_output: Annotated[bool, typer.Option("--json", help="Log JSON lines instead of text, to stderr.")] = False,
) -> None:
    """Run the attestor: check and sign what is proposed, propose when nobody else does, until interrupted."""
    from aggregator.service.telemetry import configure_logging

    configure_logging(json_lines=json_output)

    async def work() -> None:
        settings = settings_of(config)
        async with bootstrap.build_attestor(settings) as process:
            bootstrap.tune_collector()
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for name in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(name, stop.set)
            own = bootstrap.own_attestor(settings)
            err.print(f"{own.name} answers its peers on {own.listen}; Ctrl-C stops it")
            await process.run(stop)

    run_async(work)


@attestor_app.command("status")
def attestor_status(
    config: ConfigOption = None,
    limit: Annotated[int, typer.Option(help="How many of the newest refusals to show.")] = 10,
    json_output: JsonOption = False,
) -> None:
    """Show what the record holds: starts, the newest epoch signed, the newest refusals. The attestor may be running."""

    async def work() -> dict[str, Any]:
        settings = settings_of(config)
        own = bootstrap.own_attestor(settings)
        record = bootstrap.open_record(settings)
        try:
            refusals = await record.refusals(limit)
            starts, highest = await record.starts(), await record.highest()
        finally:
            await record.close()
        return {
            "attestor": own.name,
            "member": settings.member(own),
            "starts": starts,
            "highest": highest,
            "refusals": [note._asdict() for note in refusals],
        }

    shown = run_async(work)
    if json_output:
        print_json(shown)
        return
    signed = "nothing yet" if shown["highest"] is None else f"up to epoch {shown['highest']}"
    out.print(f"{shown['attestor']} ({shown['member']}): signed {signed}, started {shown['starts']} times")
    if shown["refusals"]:
        rows = table("refused", "when", "what", "which", "why")
        for note in shown["refusals"]:
            when = datetime.fromtimestamp(note["noted_at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
            rows.add_row(when, note["kind"], note["key"], note["reason"])
        out.print(rows)


@attestor_app.command("export")
def attestor_export(
    path: Annotated[Path, typer.Argument(help="File to write; an existing one is never overwritten.")],
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write the record of what was signed, to be imported where the key goes on. Stop the attestor first."""

    async def work() -> dict[str, Any]:
        settings = settings_of(config)
        with bootstrap.stopped(settings):
            record = bootstrap.open_record(settings)
            try:
                return await record.export()
            finally:
                await record.close()

    document = run_async(work)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2) + "\n")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}", 2)
    if json_output:
        print_json({"file": str(path)})
    else:
        out.print(f"{path}: import it before the key signs anywhere else")


@attestor_app.command("import")
def attestor_import(
    path: Annotated[Path, typer.Argument(help="A file that `attestor export` wrote.")],
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Take over a record of what the key signed elsewhere; nothing is ever lowered. Stop the attestor first."""

    async def work() -> int | None:
        settings = settings_of(config)
        try:
            document = json.loads(read_file(path))
        except ValueError as error:
            fail(f"{path} is not JSON: {error}", 2)
        with bootstrap.stopped(settings):
            record = bootstrap.open_record(settings)
            try:
                await record.import_(document)
                return await record.highest()
            finally:
                await record.close()

    highest = run_async(work)
    if json_output:
        print_json({"highest": highest})
    else:
        out.print(f"the record holds epochs up to {highest}; no other statement of these is signed here")
