"""``crossmargin chains``: what the newest epoch saw of each chain, which are halted, and their resume by hand."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    opened,
    out,
    print_json,
    refuse_json_before,
    run_async,
    styled,
    table,
    user_name,
)
from aggregator.domain.errors import ConflictError, UnknownError

if TYPE_CHECKING:
    from aggregator.config import Settings
    from aggregator.domain.rows import ChainRow
    from aggregator.ports import Halt

LOG_LIMIT = 1_000  # newest entries looked through for standing halts

chains_app = typer.Typer(help="State of the chains; resume one that was halted.", rich_markup_mode=None)
app.add_typer(chains_app, name="chains")


def _chain_of(settings: Settings, reference: str) -> ChainRow:
    """Return the configured chain of this name or CAIP-2 id."""
    for row in settings.chains:
        if reference in (row.id, row.name):
            return row
    raise UnknownError("chain", reference, f"configured are {', '.join(row.name for row in settings.chains)}")


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _entry(halt: Halt, names: dict[str, str]) -> dict[str, Any]:
    return {**halt._asdict(), "name": names.get(halt.chain, halt.chain)}


@chains_app.callback(invoke_without_command=True)
def chains_list(ctx: typer.Context, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List chains as the newest epoch saw them, and the halts that stand."""
    if ctx.invoked_subcommand is not None:
        refuse_json_before(ctx, json_output)
        return

    async def work() -> None:
        async with opened(config) as (settings, store):
            record = await store.epoch(certified=False)
            standing = [halt for halt in await bootstrap.open_halts(store).log(LOG_LIMIT) if halt.resumed_at is None]
        seen = {view.chain: view for view in record.chains} if record else {}
        now, rows = int(time.time()), list[dict[str, Any]]()
        for row in settings.chains:
            view = seen.get(row.id)
            block = view.block if view else None
            stops = [halt for halt in reversed(standing) if halt.chain == row.id]
            rows.append(
                {
                    "chain": row.id, "name": row.name, "finality": row.finality_text,
                    "status": view.status if view else "missing",
                    "cause": view.cause if view else "no epoch has read it yet",
                    "height": block.height if block else None, "hash": block.hash if block else None,
                    "age": max(0, now - block.time) if block else None,
                    "halts": [
                        {"party": halt.party, "cause": halt.cause, "since": halt.halted_at} for halt in stops
                    ],
                }
            )  # fmt: skip
        if json_output:
            print_json({"epoch": record.header.epoch if record else None, "chains": rows})
            return
        shown = table(
            f"epoch {record.header.epoch}" if record else "no epoch yet",
            "chain", "status", ">height", ">age s", "final is", "cause",
        )  # fmt: skip
        for r in rows:
            height, age = _or_dash(r["height"]), _or_dash(r["age"])
            shown.add_row(r["name"], styled(r["status"]), height, age, r["finality"], r["cause"])
        out.print(shown)
        for r in rows:
            if r["halts"]:
                parties = ", ".join(h["party"] for h in r["halts"])
                first = r["halts"][0]
                out.print(f"\n{r['name']} is halted since {_time(first['since'])} by {parties}: {first['cause']}")
                out.print("Its assets count 0. Find out what happened; then, and only then:")
                out.print(f'  crossmargin chains resume "{r["name"]}" --reason "what was found"')

    run_async(work)


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


@chains_app.command("resume")
def chains_resume(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The chain's name or CAIP-2 id.")],
    reason: Annotated[str, typer.Option(help="What was found; it is logged with your user name.")],
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Trust a halted chain again: every party reads it afresh from its next epoch on."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            row = _chain_of(settings, name)
            try:
                cleared = await bootstrap.open_halts(store).resume(row.id, reason, user_name(), int(time.time()))
            except ConflictError as error:
                raise ConflictError("NAME", f"{row.name} is not halted", error.remedy) from None
        if json_output:
            print_json([_entry(halt, {row.id: row.name}) for halt in cleared])
            return
        for halt in cleared:
            out.print(f"resumed {row.name} for {halt.party}, halted since {_time(halt.halted_at)}: {halt.cause}")

    run_async(work)


@chains_app.command("log")
def chains_log(
    limit: Annotated[int, typer.Option(min=1, max=LOG_LIMIT, help="How many, newest first.")] = 20,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """List every halt there ever was, and who resumed it why."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            entries = await bootstrap.open_halts(store).log(limit)
        names = {row.id: row.name for row in settings.chains}
        if json_output:
            print_json([_entry(halt, names) for halt in entries])
            return
        if not entries:
            out.print("No chain was ever halted.")
            return
        _print_log(entries, names)

    run_async(work)


def _print_log(entries: Iterable[Halt], names: dict[str, str]) -> None:
    shown = table("", ">id", "chain", "party", "halted", "cause", "resumed", "by", "reason")
    for h in entries:
        resumed = "stands" if h.resumed_at is None else _time(h.resumed_at)
        name = names.get(h.chain, h.chain)
        shown.add_row(str(h.id), name, h.party, _time(h.halted_at), h.cause, resumed, h.resumed_by, h.reason)
    out.print(shown)
