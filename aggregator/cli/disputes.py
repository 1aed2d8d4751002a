"""``crossmargin disputes``: which provider said what against the others, as it was kept for evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    fail,
    guarded,
    out,
    print_json,
    settings_of,
)


@app.command()
def disputes(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check each line's signature and that it follows the one before; fail if not."),
    ] = False,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """List which provider contradicted the others, newest first: one line per lie, then one in a while with a count."""
    settings = guarded(lambda: settings_of(config))
    entries = guarded(lambda: bootstrap.list_disputes(settings))
    names = {row.id: row.name for row in settings.chains}
    bad = [entry for entry in entries if entry.problem and not entry.torn]
    torn = sum(entry.torn for entry in entries)
    if json_output:
        shown = [{**e.record, "signer": e.signer, "problem": e.problem or None} for e in entries[:limit] if not e.torn]
        verdict = {"lines": len(entries) - torn, "torn": torn, "bad": len(bad)} if verify else None
        print_json({"disputes": shown, "verified": verdict})
    else:
        for entry in entries[:limit]:
            out.print(Text(_sentence(entry.record, names) if not entry.torn else f"a line is {entry.problem}"))
            if entry.problem and not entry.torn:
                out.print(Text(f"  not to be relied on: {entry.problem}", style="bold red"))
        if not entries:
            out.print("no provider has been found to contradict others")
        elif verify and not bad:
            ends = f"; {torn} half-written by a crash" if torn else ""
            out.print(f"verified: {len(entries) - torn} lines, each signed and in its place{ends}")
    if verify and bad:
        fail(f"{len(bad)} of {len(entries)} lines do not verify; the newest of them: {bad[0].problem}")


def _sentence(record: dict[str, Any], names: dict[str, str]) -> str:
    """Return one dispute in words; a record that somebody changed may lack anything."""
    seen = record.get("seen_at")
    when = (
        datetime.fromtimestamp(seen, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if isinstance(seen, int) and 0 <= seen < 2**36
        else "?"
    )
    chain = names.get(str(record.get("chain")), record.get("chain"))
    others = ", ".join(map(str, record.get("others") or ["others"]))
    verb = "enough to be taken" if record.get("agreed") else "too few to be taken"
    count = record.get("count", 1)
    more = f" (and {count - 1} more)" if isinstance(count, int) and count > 1 else ""
    if isinstance(repeats := record.get("repeats", 0), int) and repeats > 0:
        more += f", seen {repeats} more times before"
    if record.get("party"):
        more += f", seen by {record['party']}"
    said = (
        f"{when}  {record.get('provider')} at {chain} block {record.get('height')}: {record.get('about')}: "
        f"says {record.get('field')} {record.get('value')}, against {record.get('expected')} by {others} ({verb}){more}"
    )
    # A provider chose some of these words: none of them may steer a terminal.
    return "".join(c if c.isprintable() else "�" for c in said)
