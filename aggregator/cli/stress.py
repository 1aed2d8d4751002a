"""``crossmargin stress`` and ``crossmargin systemic``: what named scenarios do to accounts.

Stress is computed by the running service, which has the newest epoch whole; the store keeps margins alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    err,
    fail,
    guarded,
    out,
    print_json,
    settings_of,
    styled,
    table,
)
from aggregator.cli.plot import ENDINGS, figure, save
from aggregator.config import Settings
from aggregator.domain.errors import InputError
from proofs.document import MAX_DEPTH, measure_depth

SECONDS = 120.0
"""How long the service may take to answer."""
ALL = "all"
SHOWN = 40
"""Rows of a table on a screen; --json has them all."""
WARMEST = 2.0
"""Health at and above which a cell of the heat map is as good as can be."""
EVERYWHERE = ("0.0.0.0", "::", "[::]")  # what a service listens on to be reached at every address


def ask(settings: Settings, method: str, path: str, body: object = None, **query: str) -> Any:
    """Return what the running service of these settings answers.

    Raises:
        InputError: it refuses; names the field. It does not run, or answers nonsense.
    """
    import httpx  # no other command needs it

    host, _, port = settings.service.listen.rpartition(":")
    address = f"{'127.0.0.1' if host in EVERYWHERE else host}:{port}"
    try:
        answer = httpx.request(
            method, f"http://{address}{path}", json=body, params=query, timeout=SECONDS, trust_env=False
        )
        text = answer.content.decode()
        if measure_depth(text) > MAX_DEPTH:  # parsing it could crash
            raise ValueError
        document = json.loads(text)
    except httpx.HTTPError:
        raise InputError(
            "service.listen", f"no service answers at {address}", "start it with `crossmargin run`"
        ) from None
    except ValueError:
        raise InputError("service.listen", f"what answers at {address} is no crossmargin service") from None
    if not answer.is_success:
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(error, dict):
            raise InputError("service.listen", f"what answers at {address} is no crossmargin service")
        raise InputError(*(str(error.get(key, "")) for key in ("field", "problem", "remedy")))
    return document


ScenarioOption = Annotated[
    str | None, typer.Option(help="A scenario's name, or all; without it, the scenarios are listed.")
]
AccountOption = Annotated[str | None, typer.Option(help="Only this account: id, its beginning, or label.")]


@app.command()
def stress(
    scenario: ScenarioOption = None,
    account: AccountOption = None,
    replay: Annotated[
        str | None, typer.Option(help="Follow --account hour by hour through this scenario, e.g. march-2020.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it, to this .png or .svg file.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Value accounts under stress: named scenarios, all accounts or one, or one along a scenario's hours."""

    def work() -> None:
        settings = settings_of(config)
        if plot is not None and plot.suffix.lower() not in ENDINGS:
            raise InputError("--plot", f"{plot.name!r} must end with .png or .svg", "name the file so")
        if replay is not None:
            if account is None:
                raise InputError("--replay", "follows one account", "name it with --account")
            if scenario is not None:
                raise InputError("--replay", "names the scenario itself", "leave --scenario away")
            _replay(ask(settings, "GET", "/v1/stress/replay", scenario=replay, account=account), plot, json_output)
            return
        if scenario is None and account is None and plot is None:
            _print_scenarios(ask(settings, "GET", "/v1/stress"), json_output)
            return
        body = {"scenario": scenario or ALL} | ({} if account is None else {"account": account})
        _stress(ask(settings, "POST", "/v1/stress", body), plot, json_output)

    guarded(work)


@app.command()
def systemic(
    scenario: Annotated[str, typer.Option(help="A scenario's name, or all.")] = ALL,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show which accounts fall together, and the rounds of forced sales that follow."""

    def work() -> None:
        document = ask(settings_of(config), "GET", "/v1/risk/systemic", scenario=scenario)
        if json_output:
            print_json(document)
            return
        _print_systemic(document)

    guarded(work)


def _print_scenarios(scenarios: Sequence[Mapping[str, Any]], json_output: bool) -> None:
    if json_output:
        print_json(scenarios)
        return
    shown = table("", "scenario", "what happens", "prices ×", ">vol ×", ">volume ×", ">hours")
    for s in scenarios:
        prices = ", ".join(f"{feed} {by:.3g}" for feed, by in s["prices"].items())
        hours = str(s["hours"]) if s["hours"] else "-"
        shown.add_row(s["name"], s["title"], prices, f"{s['volatility']:.3g}", f"{s['volume']:.3g}", hours)
    out.print(shown)
    out.print("\ncrossmargin stress --scenario NAME (or all), or --replay NAME --account A where hours are given")


def _stress(document: Mapping[str, Any], plot: Path | None, json_output: bool) -> None:
    if plot is not None:
        draw_heat(document, plot)
    if json_output:
        print_json(document)
        return
    shown = table(
        f"epoch {document['epoch']}, under stress",
        "scenario", "account", "before", "after", ">equity", ">after", ">ME low", ">after", ">FC low", ">after",
        ">health low", ">after",
    )  # fmt: skip
    rows = document["rows"]
    for row in rows[:SHOWN]:
        was, now = row["before"], row["after"]
        shown.add_row(
            row["scenario"], row["account"][:10], styled(was["status"]), styled(now["status"]),
            was["equity"]["text"], now["equity"]["text"],
            was["maintenance_excess"]["low"]["text"], now["maintenance_excess"]["low"]["text"],
            was["free_collateral"]["text"], now["free_collateral"]["text"],
            _ratio(was["health"]["low"]), _ratio(now["health"]["low"]),
        )  # fmt: skip
    out.print(shown)
    if len(rows) > SHOWN:
        out.print(f"… and {len(rows) - SHOWN} more; --json has them all")
    for name, feeds in document["unshocked"].items():
        if feeds:
            out.print(Text(f"{name} leaves the price of {', '.join(feeds)} alone", style="dim"))
    if plot is not None:
        out.print(f"\ndrawn to {plot}")


def _replay(document: Mapping[str, Any], plot: Path | None, json_output: bool) -> None:
    if plot is not None:
        draw_replay(document, plot)
    if json_output:
        print_json(document)
        return
    moments = document["moments"]
    worst = min(moments, key=lambda m: int(m["standing"]["maintenance_excess"]["low"]["exact"]))
    shown = table(
        f"{document['account'][:10]} through {document['scenario']}",
        ">hour", "status", ">equity", ">ME low", ">FC low", ">health low", "",
    )  # fmt: skip
    step = max(1, len(moments) // SHOWN)
    for place, moment in enumerate(moments):
        if place % step and moment is not worst and place != len(moments) - 1:
            continue
        s = moment["standing"]
        shown.add_row(
            str(moment["hour"]), styled(s["status"]), s["equity"]["text"], s["maintenance_excess"]["low"]["text"],
            s["free_collateral"]["text"], _ratio(s["health"]["low"]), "lowest" if moment is worst else "",
        )  # fmt: skip
    out.print(shown)
    if plot is not None:
        out.print(f"\ndrawn to {plot}")


def _print_systemic(document: Mapping[str, Any]) -> None:
    if document["already"]:
        err.print(f"already liquidatable, without any scenario: {len(document['already'])}")
    groups = table(f"epoch {document['epoch']}: who falls together", ">accounts", "scenarios", "net exposure, USD")
    for cluster in document["clusters"][:SHOWN]:
        held = ", ".join(f"{feed} {usd['text']}" for feed, usd in cluster["exposures"].items())
        groups.add_row(str(len(cluster["accounts"])), ", ".join(cluster["scenarios"]), held)
    if document["clusters"]:
        out.print(groups)
    else:
        out.print(f"None of {document['accounts']} accounts becomes liquidatable in any scenario asked for.")
    ends = table(
        "\nforced sales", "scenario", ">rounds", ">liquidated", ">proceeds", ">lost to impact", ">bad debt", "prices ×"
    )
    for cascade in document["cascades"]:
        moved = ", ".join(f"{feed} {by:.3f}" for feed, by in cascade["prices"].items() if by != 1)
        rounds = str(len(cascade["rounds"])) + ("" if cascade["settled"] else "+")
        ends.add_row(
            cascade["scenario"], rounds, str(cascade["liquidated"]), cascade["proceeds"]["text"],
            cascade["impact"]["text"], cascade["bad_debt"]["text"], moved,
        )  # fmt: skip
    out.print(ends)


def _ratio(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3f}"


def draw_heat(document: Mapping[str, Any], path: Path) -> None:
    """Draw health at ``low`` by scenario and account: red below 1, white at 1, blue at 2 and above."""
    if not document["accounts"]:
        fail("there is no account, so there is nothing to draw")
    from matplotlib.colors import TwoSlopeNorm

    values = [[WARMEST if cell is None else min(cell, WARMEST) for cell in row] for row in document["heat"]]
    fig, axes = figure("Health under stress (low end)", "account", "")
    image = axes.imshow(values, cmap="RdBu", norm=TwoSlopeNorm(1.0, 0.0, WARMEST), aspect="auto")
    axes.grid(False)
    axes.set_yticks(range(len(document["scenarios"])), document["scenarios"])
    names = [account[:8] for account in document["accounts"]]
    step = math.ceil(len(names) / SHOWN)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90)
    fig.colorbar(image, ax=axes, label="W+/W- at maintenance")
    save(fig, path)


def draw_replay(document: Mapping[str, Any], path: Path) -> None:
    """Draw free collateral, maintenance excess and equity by hour."""
    fig, axes = figure(f"{document['account'][:10]} through {document['scenario']}", "hour", "USD")
    moments = document["moments"]
    hours = [moment["hour"] for moment in moments]
    lines: dict[str, tuple[str, ...]] = {
        "equity": ("equity",),
        "maintenance excess, low": ("maintenance_excess", "low"),
        "free collateral, low": ("free_collateral",),
    }
    for label, place in lines.items():
        values = []
        for moment in moments:
            found = moment["standing"]
            for name in place:
                found = found[name]
            values.append(int(found["exact"]) / 1e8)
        axes.plot(hours, values, label=label)
    axes.axhline(0.0, color="#5c6470", linewidth=0.8)
    axes.legend(frameon=False)
    save(fig, path)
