"""``crossmargin cases``: published numbers against what our code computes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import JsonOption, app, fail, out, print_json, read_file, table
from proofs.document import MAX_DEPTH, measure_depth

if TYPE_CHECKING:
    from aggregator.core.cases import Outcome

_SHOWN = 160  # characters of a number or list that a line shows


def read_cases(path: Path) -> list[Any]:
    """Return the cases of a JSON file; leave with a clear line if it holds no list of them."""
    text = read_file(path)
    if measure_depth(text) > MAX_DEPTH:  # before parsing, which it could crash
        fail(f"{path} is nested deeper than {MAX_DEPTH} levels", 2)
    try:
        document = json.loads(text)
    except ValueError as error:
        fail(f"{path} is not JSON: {error}", 2)
    cases = document.get("cases") if isinstance(document, dict) else document
    if not isinstance(cases, list):
        fail(f'{path}: must be a list of cases, or an object with one under "cases"', 2)
    if not cases:
        fail(f"{path}: holds no case", 2)
    return cases


def plain(value: Any) -> Any:
    """Return a value as JSON in UTF-8 can hold it: what is no finite number becomes null, half a character a ``?``."""
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def case_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as ``--json`` prints it."""
    document: dict[str, Any] = plain(outcome._asdict())
    if not outcome.reason:
        del document["reason"]
    return document


@app.command()
def cases(
    file: Annotated[Path, typer.Argument(help="JSON: a list of cases, or an object with one under cases.")],
    every: Annotated[bool, typer.Option("--all", help="List every case, not only those that fail.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Compute published cases of prices, margins and tests, and compare; leaves with 1 if one differs."""
    from aggregator.core.cases import evaluate_all, summarise

    outcomes = evaluate_all(read_cases(file))
    summary = summarise(outcomes)
    if json_output:
        print_json({"summary": summary, "cases": [case_json(outcome) for outcome in outcomes]})
    else:
        _print(outcomes, summary, every)
    if not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)


def _print(outcomes: list[Outcome], summary: Mapping[str, Mapping[str, int]], every: bool) -> None:
    counts = table("", "family", ">passed", ">failed")
    for family, of in summary.items():
        counts.add_row(
            Text(_short(family)), str(of["passed"]), Text(str(of["failed"]), style="bold red" if of["failed"] else "")
        )
    out.print(counts)
    for outcome in outcomes:
        if every or not outcome.passed:
            _print_case(outcome)
    passed = sum(outcome.passed for outcome in outcomes)
    out.print(f"\n{passed} of {len(outcomes)} cases pass")


def _print_case(outcome: Outcome) -> None:
    verdict = ("passed", "green") if outcome.passed else ("failed", "bold red")
    out.print(Text.assemble("\n", verdict, f"  {_short(outcome.family)}  ", (_short(outcome.id), "bold")))
    for name, value in (
        ("computed", outcome.computed),
        ("expected", outcome.expected),
        ("error", outcome.error),
        ("tolerance", outcome.tolerance),
        ("source", outcome.source or None),
    ):
        if value is not None:
            out.print(Text(f"    {name:<10}{_short(value)}"), soft_wrap=True)
    if outcome.reason:
        out.print(Text(f"    because   {_short(outcome.reason, 1_000)}"), soft_wrap=True)


def _short(value: Any, most: int = _SHOWN) -> str:
    """Return a value on one line of printable characters, cut where it is too long."""
    if isinstance(value, float):
        text = f"{value:.12g}"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
    else:
        text = "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split()))
    return text if len(text) <= most else text[: most - 1] + "…"
