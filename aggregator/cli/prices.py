"""``crossmargin prices``: check signed prices."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from aggregator.cli.frame import (
    BUNDLE_LIMIT,
    JsonOption,
    app,
    guarded,
    out,
    print_json,
    read_file,
    styled,
    table,
)
from aggregator.domain.errors import InputError
from proofs.document import parse_json
from proofs.errors import ProofError
from proofs.pyth import verify_price_file

prices_app = typer.Typer(help="Check signed prices.", no_args_is_help=True)
app.add_typer(prices_app, name="prices")


@prices_app.command("verify")
def prices_verify(
    file: Annotated[Path, typer.Argument(help="A JSON file with guardian_set, emitter and updates.")],
    json_output: JsonOption = False,
) -> None:
    """Check recorded Pyth updates: signatures, quorum, Merkle paths, and expected values where given."""
    text = read_file(file)

    def work() -> bool:
        try:
            results = verify_price_file(parse_json(text, max_bytes=BUNDLE_LIMIT).value)
        except ProofError as error:
            raise InputError(error.field or str(file), error.reason) from None
        if json_output:
            print_json(
                [
                    {
                        "name": r.name, "ok": r.ok, "problem": r.problem,
                        "prices": [
                            {"feed_id": p.feed_id.hex(), "price": str(p.price), "conf": str(p.conf), "expo": p.expo,
                             "publish_time": p.publish_time}
                            for p in r.prices
                        ],
                    }
                    for r in results
                ]
            )  # fmt: skip
        else:
            shown = table("", "", "update", "feed", ">price", ">±", "published")
            for r in results:
                if not r.ok:
                    shown.add_row(styled("failed"), r.name, r.problem or "", "", "", "")
                for p in r.prices:
                    scale = 10.0**p.expo
                    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(p.publish_time))
                    shown.add_row(
                        styled("ok"), r.name, p.feed_id.hex()[:16] + "…",
                        f"{p.price * scale:,.6f}", f"{p.conf * scale:.6f}", when,
                    )  # fmt: skip
            out.print(shown)
        return all(r.ok for r in results)

    if not guarded(work):
        raise typer.Exit(1)
