"""``crossmargin epochs``: what was certified, and what was not."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    opened,
    out,
    print_json,
    run_async,
    table,
)


@app.command()
def epochs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """List epochs: roots, signers, refusals and where they were posted."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            rows = await store.epochs(limit)
            postings = {n.epoch: await store.postings(n.epoch) for n in rows}
        if json_output:
            print_json([r._asdict() | {"postings": [p._asdict() for p in postings[r.epoch]]} for r in rows])
            return
        names = {c.id: c.name for c in settings.chains}
        shown = table("", ">epoch", ">age s", "root", ">leaves", "signers", "posted", "refusals")
        for r in rows:
            posted = ", ".join(f"{names.get(p.destination, p.destination)} {p.state}" for p in postings[r.epoch])
            refused = "; ".join(f"{who}: {why}" for who, why in r.refusals)
            signers = ",".join(map(str, r.signers)) or "none"
            age = str(int(time.time()) - r.cut_time)
            shown.add_row(str(r.epoch), age, r.root[:12] + "…", str(r.leaf_count), signers, posted, refused[:80])
        out.print(shown)

    run_async(work)
