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

REFUSED_LIMIT = 80  # characters; --json has all


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
            raised = {n.epoch: await store.epoch(n.epoch, certified=False) for n in rows if n.raised_floor}
        reorgs = {epoch: record.reorgs if record else () for epoch, record in raised.items()}
        if json_output:
            print_json(
                [
                    r._asdict()
                    | {
                        "refusals": [refusal._asdict() for refusal in r.refusals],
                        "reorgs": [reorg._asdict() for reorg in reorgs.get(r.epoch, ())],
                        "postings": [p._asdict() for p in postings[r.epoch]],
                    }
                    for r in rows
                ]
            )
            return
        if not rows:
            out.print("There is no epoch yet: they are made while `crossmargin run` runs.")
            return
        names = {c.id: c.name for c in settings.chains}
        shown = table("", ">epoch", ">age s", "root", ">leaves", "signers", ">floor", "posted", "refusals")
        for r in rows:
            posted = ", ".join(f"{names.get(p.destination, p.destination)} {p.state}" for p in postings[r.epoch])
            refused = "; ".join(f"{by}: {reason.removeprefix(f'{by}: ')}" for by, reason, *_ in r.refusals)
            signers = ",".join(map(str, r.signers)) or "none"
            age = str(int(time.time()) - r.cut_time)
            floor = "raised" if r.raised_floor else str(r.floor or "-")
            refused = refused if len(refused) <= REFUSED_LIMIT else refused[: REFUSED_LIMIT - 1] + "…"
            shown.add_row(str(r.epoch), age, r.root[:12] + "…", str(r.leaf_count), signers, floor, posted, refused)
        out.print(shown)
        for epoch, replaced in reorgs.items():
            why = "; ".join(
                f"block {r.height} of {names.get(r.chain, r.chain)}, which they rest on, was {r.was[:12]}… and is "
                + (f"{r.now[:12]}…" if r.now else "gone")
                for r in replaced
            )
            out.print(f"epoch {epoch} voids all before it: {why or 'its text, which says why, is not kept any more'}")

    run_async(work)
