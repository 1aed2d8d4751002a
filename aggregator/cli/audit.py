"""``crossmargin export`` and ``verify``: audit bundles."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from aggregator.cli.frame import (
    AccountArgument,
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    fail,
    guarded,
    opened,
    out,
    print_json,
    read_file,
    run_async,
    settings_of,
    table,
)
from aggregator.domain.errors import InputError, UnknownError
from proofs.bundle import Bundle, parse_bundle
from proofs.errors import ProofError
from proofs.verify import verify_bundle


@app.command()
def export(
    account: AccountArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    epoch: Annotated[int | None, typer.Option(help="Epoch number; default: the newest certified.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write an account's audit bundle: one file that anyone can verify offline."""

    async def work() -> tuple[str, int]:
        async with opened(config) as (settings, store):
            known = await store.account(account)
            record = await store.epoch(epoch)
            if record is None:
                raise UnknownError(
                    "epoch", "newest" if epoch is None else str(epoch), "no such certified epoch is kept"
                )
            text = await bootstrap.build_bundle(store, bootstrap.deployment_of(settings), record, known.id)
            return text, record.header.epoch

    text, number = run_async(work)
    if output is None:
        sys.stdout.write(text + "\n")
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        fail(f"--output: {output} cannot be written: {error.strerror}", 2)
    if json_output:
        print_json({"file": str(output), "epoch": number, "bytes": len(text.encode())})
    else:
        out.print(
            f"wrote {output}: epoch {number}, {len(text.encode()):,} bytes; check it with: crossmargin verify {output}"
        )


def _given(stored: dict[str, bytes], _: Bundle) -> dict[str, bytes]:
    """Return roots that were read already, as the verifier's reader of roots."""
    return stored


def _word(option: str, text: str) -> bytes:
    try:
        word = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        word = b""
    if len(word) != 32:
        raise InputError(option, "is not 32 bytes in hex", "give 0x and 64 hex digits")
    return word


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle written by crossmargin export.")],
    deployment: Annotated[str | None, typer.Option(help="The deployment id you trust, 0x + 64 hex digits.")] = None,
    recovered: Annotated[
        list[str] | None,
        typer.Option(help="Digest of a set that governance put in place, as the registries say; may be repeated."),
    ] = None,
    online: Annotated[
        bool,
        typer.Option(help="Also read the root stored on each destination; takes deployment and chains from --config."),
    ] = False,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Verify an audit bundle offline, step by step; exits 1 if any step fails."""
    text = read_file(bundle)

    def work() -> bool:
        try:
            parsed = parse_bundle(text)
        except ProofError as error:
            raise InputError(error.field or "bundle", error.reason) from None
        trusted = None if deployment is None else _word("--deployment", deployment)
        known = [_word("--recovered", digest) for digest in recovered or ()]
        stored: dict[str, bytes] | None = None
        if online:
            settings = settings_of(config)
            trusted = trusted or bootstrap.deployment_of(settings).deployment_id()
            stored = asyncio.run(bootstrap.stored_roots(settings, parsed.statement.header.epoch))
        roots = None if stored is None else partial(_given, stored)
        now = int(time.time())
        steps = verify_bundle(parsed, now=now, roots=roots, deployment_id=trusted, recovered=known)
        if json_output:
            print_json([{"step": s.number, "title": s.title, "outcome": s.outcome, "detail": s.detail} for s in steps])
        else:
            colours = {"pass": "green", "fail": "bold red", "not provable yet": "yellow", "not checked": "dim"}
            shown = table("", ">", "step", "outcome", "detail")
            for s in steps:
                shown.add_row(str(s.number), s.title, Text(s.outcome, style=colours[s.outcome]), s.detail)
            out.print(shown)
        return all(s.outcome != "fail" for s in steps)

    if not guarded(work):
        raise typer.Exit(1)
