"""``crossmargin stress`` and ``crossmargin systemic``: what named scenarios do to accounts.

Stress is computed by the running service, which has the newest epoch whole; the store keeps margins alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from aggregator.cli.plot import COLOURS, ENDINGS, figure, save
from aggregator.domain.errors import InputError
from aggregator.domain.units import USD
from proofs.document import MAX_DEPTH, measure_depth

if TYPE_CHECKING:
    from aggregator.config import Settings

SECONDS = 120.0
"""How long the service may take to answer."""
ALL = "all"
DRAWN = 150
"""Accounts of each scenario that are asked for to draw them."""
SHOWN = 40
"""Rows of a table on a screen; --json has them all."""
WARMEST = 2.0
"""Health at and above which a cell of the heat map is as good as can be."""
MOVING = 4
"""Feeds whose price multipliers a replay shows."""
ALONE = (
    "Prices alone move: volatility, volume, time and the age of what was seen stay. The scenario itself (--scenario)\n"
    "is harsher: every feed at its own low at once, with the volatility and volume of the event."
)
ROOM, SHORT, LONG, DARK = (
    12,
    10,
    1_000,
    0.6,
)  # columns whose names need no turn, limits of decimals, shade of white text
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
    worst: Annotated[
        int | None, typer.Option(min=1, help="Show so many accounts of each scenario, those worst off in it.")
    ] = None,
    replay: Annotated[
        str | None, typer.Option(help="Follow --account hour by hour through this scenario, e.g. march-2020.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it, to this .png or .svg file.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Value accounts under stress: named scenarios, all accounts or one, or one along a scenario's hours.

    --scenario all shows one line per scenario; --account or --worst N shows what it does to accounts.
    """

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
        shown = worst or (0 if body["scenario"] == ALL else SHOWN)
        limit = worst or (DRAWN if plot is not None else SHOWN)
        _stress(ask(settings, "POST", "/v1/stress", body, limit=str(limit)), shown, plot, json_output)

    guarded(work)


@app.command()
def systemic(
    scenario: Annotated[str, typer.Option(help="A scenario's name, or all.")] = ALL,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show which accounts fall together, and the rounds of forced sales that follow."""

    def work() -> None:
        document = ask(settings_of(config), "GET", "/v1/risk/systemic", scenario=scenario, limit=str(SHOWN))
        if json_output:
            print_json(document)
            return
        _print_systemic(document)

    guarded(work)


def _print_scenarios(scenarios: Sequence[Mapping[str, Any]], json_output: bool) -> None:
    if json_output:
        print_json(scenarios)
        return
    shown = table("", "scenario", "what happens", "prices ×", "recovered", ">vol ×", ">volume ×", ">hours")
    for s in scenarios:
        prices = ", ".join(f"{feed} {by:.3g}" for feed, by in s["prices"].items())
        hours = str(s["hours"]) if s["hours"] else "-"
        kept = _recovered(s["recovery"])
        shown.add_row(s["name"], s["title"], prices, kept, f"{s['volatility']:.3g}", f"{s['volume']:.3g}", hours)
    out.print(shown)
    out.print("\ncrossmargin stress --scenario NAME (or all), or --replay NAME --account A where hours are given")


def _stress(document: Mapping[str, Any], worst: int, plot: Path | None, json_output: bool) -> None:
    """Show accounts under stress.

    Args:
        worst: how many accounts of each scenario; 0 = one line per scenario, unless there is one account alone.
    """
    if plot is not None:
        if len(document["accounts"]) == 1:
            draw_account(document, plot)
        else:
            draw_heat(document, plot)
    if json_output:
        print_json(document)
        return
    rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in document["scenarios"]}
    for row in document["rows"]:
        rows[row["scenario"]].append(row)
    for found in rows.values():
        found.sort(key=_worst_first)
    if worst or len(document["accounts"]) == 1:
        _print_rows(document, rows, worst or 1)
    else:
        _print_sums(document, rows)
    alone: dict[str, list[str]] = {}
    for name, feeds in document["unshocked"].items():
        if feeds:
            alone.setdefault(", ".join(feeds), []).append(name)
    for feeds, names in alone.items():
        out.print(Text(f"the price of {feeds} is left alone by {', '.join(names)}", style="dim"))
    if plot is not None:
        out.print(f"\ndrawn to {plot}")


def _worst_first(row: Mapping[str, Any]) -> tuple[float, int]:
    """Return the key by which accounts ascend from the worst off: health after, then maintenance excess."""
    health = row["after"]["health"]["low"]
    return math.inf if health is None else health, int(row["after"]["maintenance_excess"]["low"]["exact"])


def _print_sums(document: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print one line per scenario: who falls, who is worst off, and all together."""
    totals = {total["scenario"]: total for total in document["totals"]}
    count = max((total["accounts"] for total in totals.values()), default=0)
    shown = table(
        f"epoch {document['epoch']}, {count} accounts under stress; USD, ME at low",
        "scenario", ">fall", "worst account", ">its ME", ">after", ">ME of all", ">after",
    )  # fmt: skip
    for name, found in rows.items():
        if not found:
            continue
        total, worst = totals[name], found[0]
        fall = total["fallen"]
        was, now = (worst[when]["maintenance_excess"]["low"]["text"] for when in ("before", "after"))
        shown.add_row(
            name, Text(str(fall), style="bold red" if fall else ""), name_of(document, worst["account"]), was, now,
            total["excess_before"]["text"], total["excess_after"]["text"],
        )  # fmt: skip
    out.print(shown)
    down = {row["account"]: None for found in rows.values() for row in found if row["before"]["liquidatable"]}
    before = max((total["before"] for total in totals.values()), default=0)
    if before:
        out.print("liquidatable already, without any scenario: " + _names(document, list(down), before))
    out.print("--account A or --worst N shows accounts one by one")


def _print_rows(document: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]], worst: int) -> None:
    shown = table(
        f"epoch {document['epoch']}, under stress; USD",
        "scenario", "account", "before", "after", ">equity", ">after", ">ME low", ">after", ">FC low", ">after",
        ">health low", ">after",
    )  # fmt: skip
    for row in (row for found in rows.values() for row in found[:worst]):
        was, now = row["before"], row["after"]
        shown.add_row(
            row["scenario"], name_of(document, row["account"]), styled(was["status"]), styled(now["status"]),
            was["equity"]["text"], now["equity"]["text"],
            was["maintenance_excess"]["low"]["text"], now["maintenance_excess"]["low"]["text"],
            was["free_collateral"]["text"], now["free_collateral"]["text"],
            _ratio(was["health"]["low"]), _ratio(now["health"]["low"]),
        )  # fmt: skip
    out.print(shown)
    left = max((total["accounts"] for total in document["totals"]), default=0) - worst
    if left > 0:
        out.print(f"… and {left} accounts that are better off; --worst N shows more")


def name_of(document: Mapping[str, Any], account: str) -> str:
    """Return an account's label, or how its id begins."""
    label: str = document["labels"].get(account, "")
    return label or account[:10]


def _names(document: Mapping[str, Any], accounts: Sequence[str], count: int) -> str:
    """Return the names of the first of ``count`` accounts, and how many more there are."""
    named = accounts[:SHOWN]
    more = f" and {count - len(named)} more" if count > len(named) else ""
    return ", ".join(name_of(document, account) for account in named) + more


def _replay(document: Mapping[str, Any], plot: Path | None, json_output: bool) -> None:
    if plot is not None:
        draw_replay(document, plot)
    if json_output:
        print_json(document)
        return
    moments = document["moments"]
    worst = min(moments, key=lambda m: int(m["standing"]["maintenance_excess"]["low"]["exact"]))
    shown = table(
        f"{_whose(document)} of epoch {document['epoch']} through {document['scenario']}; USD",
        ">hour", "UTC", "prices ×", "status", ">equity", ">ME low", ">FC low", ">health low", "",
    )  # fmt: skip
    step = max(1, len(moments) // SHOWN)
    for place, moment in enumerate(moments):
        if place % step and moment is not worst and place != len(moments) - 1:
            continue
        s = moment["standing"]
        prices = ", ".join(f"{feed} {by:.3f}" for feed, by in _moving(document, moment).items())
        shown.add_row(
            str(moment["hour"]), "-" if moment["time"] is None else _utc(moment["time"]), prices, styled(s["status"]),
            s["equity"]["text"], s["maintenance_excess"]["low"]["text"], s["free_collateral"]["text"],
            _ratio(s["health"]["low"]), "lowest" if moment is worst else "",
        )  # fmt: skip
    out.print(shown)
    out.print(ALONE)
    if plot is not None:
        out.print(f"\ndrawn to {plot}")


def _whose(document: Mapping[str, Any]) -> str:
    label: str = document["label"]
    return label or document["account"][:10]


def _moving(document: Mapping[str, Any], moment: Mapping[str, Any]) -> Mapping[str, float]:
    """Return the multipliers of the feeds that matter most: the few that fall furthest on the way."""
    lows = {feed: min(m["prices"][feed] for m in document["moments"]) for feed in moment["prices"]}
    chosen = sorted(lows, key=lambda feed: (lows[feed], feed))[:MOVING]
    return {feed: moment["prices"][feed] for feed in moment["prices"] if feed in chosen}


def _utc(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def _print_systemic(document: Mapping[str, Any]) -> None:
    if document["already"]:
        named = _names(document, document["already"], document["liquidatable"])
        err.print("already liquidatable, without any scenario: " + named)
    groups = table(
        f"epoch {document['epoch']}: who falls together", "accounts", "fall in", "they hold less what they owe, USD"
    )
    for cluster in document["clusters"][:SHOWN]:
        held = ", ".join(f"{feed} {usd['text']}" for feed, usd in cluster["exposures"].items())
        groups.add_row(_names(document, cluster["accounts"], cluster["count"]), ", ".join(cluster["scenarios"]), held)
    if document["clusters"]:
        out.print(groups)
    else:
        out.print(f"None of {document['accounts']} accounts becomes liquidatable in any scenario asked for.")
    ends = table(
        "\nforced sales, USD",
        "scenario", ">rounds", ">liquidated", ">proceeds", ">lost to impact", ">bad debt", ">cannot be sold now",
    )  # fmt: skip
    for cascade in document["cascades"]:
        rounds = str(len(cascade["rounds"])) + ("" if cascade["settled"] else "+")
        unpaid = cascade["bad_debt"]["text"]
        ends.add_row(
            cascade["scenario"], rounds, str(cascade["liquidated"]), cascade["proceeds"]["text"],
            cascade["impact"]["text"], *(("-", unpaid) if cascade["halted"] else (unpaid, "-")),
        )  # fmt: skip
    out.print(ends)
    _print_impact(document["cascades"])
    for cascade in document["cascades"]:
        if cascade["recovery"]:
            kept = _recovered(cascade["recovery"])
            out.print(Text(f"{cascade['scenario']}: of its amount, what is exposed keeps: {kept}", style="dim"))
    if any(cascade["halted"] for cascade in document["cascades"]):
        text = (
            "cannot be sold now: owed and not repaid while collateral lies on a halted chain; it may be once it goes on"
        )
        out.print(Text(text, style="dim"))


def _print_impact(cascades: Sequence[Mapping[str, Any]]) -> None:
    """Print what the sales of each feed do to its price."""
    moved = table(
        "\nprice impact of the sales",
        "scenario", "feed", ">units sold", ">× by the scenario", ">× by the sales", ">× in all",
    )  # fmt: skip
    for cascade in cascades:
        sold: dict[str, float] = {}
        for sale in (sale for sales in cascade["rounds"] for sale in sales):
            sold[sale["feed"]] = sold.get(sale["feed"], 0.0) + sale["units"]
        for feed, units in sorted(sold.items()):
            end, kept = cascade["prices"][feed], cascade["kept"][feed]
            first = end / kept if kept else end
            moved.add_row(cascade["scenario"], feed, f"{units:,.4g}", f"{first:.4f}", f"{kept:.6f}", f"{end:.4f}")
    if moved.row_count:
        out.print(moved)


def _recovered(recovery: Mapping[str, float]) -> str:
    return ", ".join(f"{cause} {part:.0%}" for cause, part in recovery.items()) or "-"


def _ratio(value: float | None) -> str:
    return "∞" if value is None else f"{value:.3f}"


def draw_heat(document: Mapping[str, Any], path: Path) -> None:
    """Draw health at ``low`` by scenario and account: red below 1, white at 1, blue at 2 and above."""
    if not document["accounts"]:
        fail("there is no account, so there is nothing to draw")
    from matplotlib.colors import TwoSlopeNorm

    # Of a crowd, those that are worst off somewhere: a picture has room for so many.
    columns = list(zip(*document["heat"], strict=True))
    lowest = [min(WARMEST if cell is None else cell for cell in column) for column in columns]
    chosen = sorted(sorted(range(len(columns)), key=lambda i: lowest[i])[:SHOWN])
    values = [[row[i] for i in chosen] for row in document["heat"]]
    shades = [[WARMEST if cell is None else min(cell, WARMEST) for cell in row] for row in values]
    fig, axes = figure(f"Health under stress (low end), epoch {document['epoch']}", "", "")
    fig.set_size_inches(max(9.0, 2.5 + 0.55 * len(chosen)), max(5.0, 1.5 + 0.34 * len(values)))
    image = axes.imshow(shades, cmap="RdBu", norm=TwoSlopeNorm(1.0, 0.0, WARMEST), aspect="auto")
    axes.grid(False)
    axes.set_yticks(range(len(document["scenarios"])), document["scenarios"])
    names = [name_of(document, document["accounts"][i]) for i in chosen]
    crowded = len(names) > ROOM
    axes.set_xticks(range(len(names)), names, rotation=90 if crowded else 0)
    for y, row in enumerate(values):
        for x, cell in enumerate(row):
            text = "∞" if cell is None else f"{cell:.2f}" if cell < SHORT else f"{cell:.0f}" if cell < LONG else ">999"
            dark = abs(shades[y][x] - 1) > DARK
            size = 6 if crowded else 9
            axes.text(x, y, text, ha="center", va="center", size=size, color="white" if dark else "#1c2128")
    bar = fig.colorbar(image, ax=axes, label="W+/W- at maintenance; below 1 liquidatable", ticks=[0, 0.5, 1, 1.5, 2])
    bar.ax.set_yticklabels(["0", "0.5", "1", "1.5", f"≥ {WARMEST:g}"])
    save(fig, path)


def draw_account(document: Mapping[str, Any], path: Path) -> None:
    """Draw one account's maintenance excess and free collateral after each scenario, and before any."""
    who = name_of(document, document["accounts"][0])
    fig, axes = figure(f"{who} under stress (low end), epoch {document['epoch']}", "USD", "")
    rows = document["rows"]
    fig.set_size_inches(9.0, max(3.0, 1.6 + 0.42 * len(rows)))
    kinds = (("maintenance excess", ("maintenance_excess", "low")), ("free collateral", ("free_collateral",)))
    for number, (label, place) in enumerate(kinds):
        before = _usd(rows[0]["before"], place)
        after = [_usd(row["after"], place) for row in rows]
        at = [y + (number - 0.5) * 0.38 for y in range(len(rows))]
        axes.barh(at, after, height=0.36, color=COLOURS[number], label=f"{label}, after")
        axes.axvline(before, color=COLOURS[number], linestyle="--", linewidth=1.2, label=f"{label}, before")
    axes.axvline(0.0, color="#5c6470", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["scenario"] for row in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    fig.legend(loc="outside lower center", ncols=4, frameon=False)
    save(fig, path)


def _usd(standing: Mapping[str, Any], place: Sequence[str]) -> float:
    found = standing
    for name in place:
        found = found[name]
    return int(found["exact"]) / USD


def draw_replay(document: Mapping[str, Any], path: Path) -> None:
    """Draw free collateral, maintenance excess and equity by hour, and the prices that move them below."""
    moments = document["moments"]
    fig, axes = figure(f"{_whose(document)} of epoch {document['epoch']} through {document['scenario']}", "", "USD")
    fig.set_size_inches(9.0, 6.5)
    grid = fig.add_gridspec(2, 1, height_ratios=(3, 2))
    axes.set_subplotspec(grid[0])
    below = fig.add_subplot(grid[1], sharex=axes)
    dated = moments[0]["time"] is not None
    at: Any = [datetime.fromtimestamp(m["time"], UTC) if dated else m["hour"] for m in moments]
    lines = (
        ("equity", ("equity",)),
        ("maintenance excess, low", ("maintenance_excess", "low")),
        ("free collateral, low", ("free_collateral",)),
    )
    for label, place in lines:
        axes.plot(at, [_usd(moment["standing"], place) for moment in moments], label=label)
    axes.axhline(0.0, color="#5c6470", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(labelbottom=False)
    axes.legend(frameon=False)
    curves: dict[tuple[float, ...], list[str]] = {}  # feeds that move alike are one curve
    for feed in _moving(document, moments[0]):
        curves.setdefault(tuple(moment["prices"][feed] for moment in moments), []).append(feed)
    for number, (by, feeds) in enumerate(curves.items()):
        below.plot(at, by, color=COLOURS[3 + number], label=", ".join(feeds))
    below.set_ylabel("prices ×")
    below.set_xlabel("UTC; prices alone move" if dated else "hour; prices alone move")
    below.grid(True, color="#e3e7eb", linewidth=0.8)
    below.set_axisbelow(True)
    below.spines[["top", "right"]].set_visible(False)
    below.legend(frameon=False, ncols=MOVING)
    save(fig, path)
