"""``crossmargin haircut``: what collateral loses for being seen late, and why."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import ValidationError

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    fail,
    opened,
    out,
    print_json,
    run_async,
    settings_of,
    table,
)
from aggregator.cli.plot import COLOURS, figure, save
from aggregator.config import Settings
from aggregator.core.haircut import CAUSES, Cause, Nodes, condense, explain_loss, haircut_table, hold_law
from aggregator.core.latency import REFRESH, WINDOW, build_tables, hold_legs, select
from aggregator.core.tables import horizon_quantile
from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.latency import Law, Sample
from aggregator.domain.policy import AssetPolicyRow, PolicyRow

LEVELS = ("initial", "maintenance")
QUANTILES = (0.5, 0.9, 0.99, 1.0)
SHORTEST, LONGEST = 120, 7 * 86_400  # seconds, of the picture
MARKS = {120: "2 min", 900: "15 min", 3_600: "1 h", 21_600: "6 h", 86_400: "1 d", 259_200: "3 d", 604_800: "7 d"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table: the law of the horizon, and the haircut at both levels."""

    policy: str
    chain: str  # CAIP-2
    destination: str  # CAIP-2
    nodes: Nodes
    haircuts: Mapping[str, float]  # by level
    causes: Mapping[str, Mapping[Cause, float]]  # by level; adds up to the haircut

    @property
    def mean(self) -> float:
        """Seconds."""
        return float(np.dot(*self.nodes))


@app.command()
def haircut(
    policy: Annotated[str | None, typer.Option(help="Only this row of [policy.assets].")] = None,
    chain: Annotated[str | None, typer.Option(help="Only collateral on this chain: its name or id.")] = None,
    destination: Annotated[str | None, typer.Option(help="Only as this destination sees it: its name or id.")] = None,
    epoch: Annotated[int | None, typer.Option(help="Epoch number; default: the newest certified, if any.")] = None,
    configured: Annotated[
        bool, typer.Option("--configured", help="As configured and measured now, not as committed by an epoch.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw haircut against horizon, to this .png or .svg.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show market haircuts by policy, chain and destination: the horizon they rest on, and what causes them."""

    async def work() -> None:
        if configured and epoch is not None:
            raise InputError("--epoch", "does not go with --configured", "give one of the two")
        settings, record, samples = await _kept(config, epoch, configured)
        if record is not None and "risk" in record.preimages:
            rows, cells = _committed(record)
            title = f"as epoch {record.header.epoch} committed them"
        elif epoch is not None:
            raise InputError("--epoch", f"the tables of {epoch} are not kept any more", "take a newer one")
        else:
            tables = build_tables(select(samples, time.time()), settings.chains, settings.destinations)
            rows = settings.policy.assets
            cells = _as_configured(settings, hold_legs(tables, settings.chains))
            title = "as configured, of blocks as old as finality takes, by the legs measured until now"
        names = {row.id: row.name for row in settings.chains}
        chosen = _only(cells, rows, names, policy, chain, destination)
        if plot is not None:
            _draw(plot, chosen, rows)
        if json_output:
            print_json([_json(cell) for cell in chosen])
            return
        _print(chosen, names, title)
        if plot is not None:
            out.print(f"\ndrawn to {plot}")

    run_async(work)


async def _kept(
    config: Path | None, epoch: int | None, configured: bool
) -> tuple[Settings, EpochRecord | None, Sequence[Sample]]:
    """Return the settings, the epoch asked for, and what was measured lately; nothing of a service that never ran."""
    settings = settings_of(config)
    if not bootstrap.has_store(settings):
        if epoch is not None:
            raise UnknownError("epoch", str(epoch), "nothing is kept yet")
        return settings, None, []
    async with opened(config) as (_, store):
        record = None if configured else await store.epoch(epoch)
        if epoch is not None and record is None:
            raise UnknownError("epoch", str(epoch), "none certified has this number")
        return settings, record, await bootstrap.open_latencies(store).window(int(time.time()) - WINDOW - REFRESH)


def _committed(record: EpochRecord) -> tuple[Mapping[str, AssetPolicyRow], list[Cell]]:
    """Return the policies and cells that an epoch committed; of carried blocks, none."""
    try:
        rows = PolicyRow.model_validate(json.loads(record.preimages["policy"])["policy"]).assets
        risk = json.loads(record.preimages["risk"])
        laws = {
            hold["chain"]: ([float(s) for s in hold["nodes"]], [float(c) for c in hold["chances"]])
            for hold in risk["holds"]
        }
        listed: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
        for cell in risk["cells"]:
            levels = listed.setdefault((cell["policy"], cell["chain"], cell["destination"]), {})
            levels.setdefault(cell["level"], cell)  # the chain's newest view comes first
        cells = []
        for (policy, chain, destination), levels in listed.items():
            delay, chance = laws[chain]
            known = levels["initial"]["horizon"] - round(float(np.dot(delay, chance)))
            published = {level: float(levels[level]["asset"]) for level in LEVELS}
            nodes = [known + seconds for seconds in delay], chance
            cells.append(_cell(rows[policy], (policy, chain, destination), nodes, published))
        return rows, cells
    except (KeyError, ValueError, ValidationError):
        fail(f"epoch {record.header.epoch} was written by another version; --configured shows what counts now")


def _as_configured(settings: Settings, legs: Mapping[str, Sequence[Law]]) -> list[Cell]:
    """Return a cell for every policy, chain and destination, for a block that is as old as finality takes."""
    cells = []
    for policy, row in sorted(settings.policy.assets.items()):
        for chain in sorted(settings.chains, key=lambda chain: chain.id):
            law = hold_law(legs[chain.id])
            delay, chance = condense(Law(tuple(law), tuple(law.values())))
            for destination in sorted(settings.destinations, key=lambda destination: destination.chain):
                usable = settings.policy.lifetime + destination.clock_bound + round(chain.finality_seconds)
                nodes = [usable + row.liquidation_seconds + float(seconds) for seconds in delay], list(chance)
                found = haircut_table([row], np.array([[nodes[0]]]), np.array(chance)).assets[0, 0]
                published = dict(zip(LEVELS, found.tolist(), strict=True))
                cells.append(_cell(row, (policy, chain.id, destination.chain), nodes, published))
    return cells


def _cell(row: AssetPolicyRow, key: tuple[str, str, str], nodes: Nodes, published: Mapping[str, float]) -> Cell:
    causes = {level: explain_loss(row, nodes, i, published[level]) for i, level in enumerate(LEVELS)}
    return Cell(*key, nodes, published, causes)


def _only(
    cells: Sequence[Cell],
    rows: Mapping[str, AssetPolicyRow],
    names: Mapping[str, str],
    policy: str | None,
    chain: str | None,
    destination: str | None,
) -> list[Cell]:
    if policy is not None and policy not in rows:
        raise UnknownError("policy", policy, f"one of {', '.join(sorted(rows))}")
    ids = {name: id for id, name in names.items()} | {id: id for id in names}
    wanted = []
    for field, value in (("chain", chain), ("destination", destination)):
        if value is not None and value not in ids:
            raise UnknownError(field, value, f"one of {', '.join(sorted(names.values()))}")
        wanted.append(None if value is None else ids[value])
    return [
        cell
        for cell in cells
        if policy in (None, cell.policy) and wanted[0] in (None, cell.chain) and wanted[1] in (None, cell.destination)
    ]


def _json(cell: Cell) -> dict[str, Any]:
    return {
        "policy": cell.policy,
        "chain": cell.chain,
        "destination": cell.destination,
        "horizon": {
            "mean": cell.mean,
            **{f"p{level * 100:g}": horizon_quantile(cell.nodes, level) for level in QUANTILES},
            "seconds": list(cell.nodes[0]),
            "chances": list(cell.nodes[1]),
        },
        **{
            level: {
                "haircut": f"{cell.haircuts[level]:.12f}",
                "causes": {cause: f"{share:.12f}" for cause, share in cell.causes[level].items()},
            }
            for level in LEVELS
        },
    }


def _print(cells: Sequence[Cell], names: Mapping[str, str], title: str) -> None:
    if not cells:
        out.print("No cell is like that.")
        return
    columns = ("policy", "on", "seen by", ">horizon p50 s", ">p90", ">p99", ">longest")
    shown = table(f"market haircuts, {title}", *columns, "level", ">haircut", *(f">{cause}" for cause in CAUSES))
    for alike in _alike(cells):
        cell = alike[0]
        key = [_listed([c.policy for c in alike], [])]
        key.append(_listed([names.get(c.chain, c.chain) for c in alike], [names.get(c.chain, c.chain) for c in cells]))
        seen, all_seen = ([names.get(c.destination, c.destination) for c in some] for some in (alike, cells))
        key.append(_listed(seen, all_seen))
        key += [f"{horizon_quantile(cell.nodes, level):.0f}" for level in QUANTILES]
        for short, level in zip(("IM", "MM"), LEVELS, strict=True):
            shares = [f"{share:.3%}" if share else "–" for share in cell.causes[level].values()]
            shown.add_row(*key, short, f"{cell.haircuts[level]:.3%}", *shares)
            key = [""] * len(key)
    out.print(shown)
    out.print(
        "A haircut is the sum of its causes: what the price may do and what may fail in the time to liquidate alone;\n"
        "and latency, all that the rest of the horizon adds: until a certificate ends, since its block, until a hold "
        "lands."
    )


def _alike(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Gather the cells that a reader could not tell apart but by name: those that show the same numbers.

    Destinations that see a policy on a chain alike share a row, then policies and then chains whose rows are alike.
    """

    def numbers(cell: Cell) -> tuple[str, ...]:
        horizon = (f"{horizon_quantile(cell.nodes, level):.0f}" for level in QUANTILES)
        return *horizon, *(f"{value:.3%}" for level in LEVELS for value in _values(cell, level))

    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.policy, cell.chain, numbers(cell)), []).append(cell)
    for axis in ("policy", "chain"):
        # Rows join along one axis if they agree in all others, so that every row is a full rectangle of names.
        joined: dict[object, list[Cell]] = {}
        for group in groups.values():
            others = {
                name: frozenset(getattr(cell, name) for cell in group)
                for name in ("policy", "chain", "destination")
                if name != axis
            }
            joined.setdefault((numbers(group[0]), *others.items()), []).extend(group)
        groups = joined
    return list(groups.values())


def _values(cell: Cell, level: str) -> tuple[float, ...]:
    return cell.haircuts[level], *cell.causes[level].values()


def _listed(names: Sequence[str], every: Sequence[str]) -> str:
    """Return names for people, once each; ``all`` where several are all that there are."""
    mine = list(dict.fromkeys(names))
    return "all" if len(mine) > 1 and set(mine) == set(every) else ", ".join(mine)


def _draw(path: Path, cells: Sequence[Cell], rows: Mapping[str, AssetPolicyRow]) -> None:
    fig, axes = figure("Market haircut against horizon", "horizon", "haircut, %")
    horizon = np.geomspace(SHORTEST, LONGEST, 120)
    curves = {
        name: haircut_table([rows[name]], horizon[None, :, None], np.ones(1)).assets[0]
        for name in sorted({cell.policy for cell in cells})
    }
    merged: list[list[str]] = []  # policies of one curve
    for name, found in curves.items():
        alike = next((names for names in merged if np.allclose(curves[names[0]], found, rtol=1e-9, atol=1e-12)), None)
        if alike is None:
            merged.append([name])
        else:
            alike.append(name)
    for i, names in enumerate(merged):
        colour = COLOURS[i % len(COLOURS)]
        for level, (style, short) in enumerate((("-", "IM"), ("--", "MM"))):
            label = f"{', '.join(names)}, {short}"
            axes.plot(horizon, 100 * curves[names[0]][:, level], style, color=colour, label=label)
            mine = [cell for cell in cells if cell.policy in names]
            at = [cell.haircuts[LEVELS[level]] * 100 for cell in mine]
            axes.plot([cell.mean for cell in mine], at, "o", color=colour, markersize=4)
    axes.set_xscale("log")
    axes.set_xlim(SHORTEST, LONGEST)
    axes.set_ylim(bottom=0)
    axes.set_xticks(list(MARKS), list(MARKS.values()))
    axes.minorticks_off()
    axes.legend(frameon=False, title="dots: cells in use, at the mean of their horizon", alignment="left")
    save(fig, path)
