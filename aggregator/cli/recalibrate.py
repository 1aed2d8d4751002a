"""``crossmargin recalibrate``: parameters from price histories, beside those in force, and what would change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from aggregator.cli import plot as plotting
from aggregator.cli.frame import (
    CONFIG_PLACES,
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    guarded,
    out,
    print_json,
    settings_of,
    table,
)
from aggregator.cli.history import (
    ASSETS,
    ENDING,
    find_all_series,
    find_folder,
    name_duration,
    read_date,
    read_series,
    returns_over,
)
from aggregator.cli.policy import replace_policy
from aggregator.config import Settings, load_policy, policy_path
from aggregator.domain.errors import ConfigError, ConflictError, InputError
from aggregator.domain.policy import PolicyRow, policy_digest
from aggregator.domain.units import format_usd

if TYPE_CHECKING:
    from aggregator.core.risk.calibration import Change, Effect, Estimate, Moves, Recalibration

DAY = 86_400
MOVES: tuple[Moves, ...] = ("fhs", "copula")
HORIZONS = (900, 3_600, 4 * 3_600, DAY)
"""Seconds at which haircuts are compared."""


class Cut(NamedTuple):
    """h_mkt of one row of assets, old and new."""

    row: str
    horizon: int
    level: str
    old: float
    new: float


@app.command()
def recalibrate(
    prices: Annotated[Path | None, typer.Option(help="Folder of price histories.")] = None,
    use: Annotated[list[str] | None, typer.Option(help="ROW=SERIES, e.g. assets.stable=usdc_usd_1h_cdd.")] = None,
    since: Annotated[str, typer.Option(help="First day, YYYY-MM-DD.")] = "",
    until: Annotated[str, typer.Option(help="Day after the last, YYYY-MM-DD.")] = "",
    version: Annotated[str | None, typer.Option(help="Name of the new version; default: the next.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy document; default: the configuration's.")] = None,
    moves: Annotated[str, typer.Option(help="How joint moves are made: fhs, or draws from a t copula.")] = "fhs",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the draws of --moves copula.")] = 1,
    apply: Annotated[bool, typer.Option("--apply", help="Put the new document in the place of the old one.")] = False,
    allow_looser: Annotated[
        bool, typer.Option("--allow-looser", help="Apply even what lowers requirements; look at the list first.")
    ] = False,
    expect: Annotated[str, typer.Option(help="Apply only if the policy in force has this digest.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Also draw haircuts against the horizon: .png or .svg.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Estimate risk parameters anew, show what they would change, and apply them as a whole."""

    def work() -> None:
        from aggregator.core.risk.calibration import recalibrate as compute

        settings, document, old = _in_force(policy, config)
        if expect and expect != policy_digest(old):
            raise ConflictError("--expect", f"the policy in force has digest {policy_digest(old)}", "look at it again")
        if apply and document is None:
            problem = "is a table inside the configuration, which is not rewritten"
            remedy = 'write it out with crossmargin policy --write policy.toml, and say policy = "policy.toml" there'
            raise InputError("policy", problem, remedy)
        way = next((name for name in MOVES if name == moves), None)
        if way is None:
            raise InputError("--moves", f"{moves!r} is not known", f"one of {', '.join(MOVES)}")
        folder = find_folder(prices)
        notes = [folder.note] if folder.note else []
        assets, underlyings = _estimates(settings, old, folder.path, use, since, until, notes)
        if not assets and not underlyings:
            raise InputError("--prices", f"nothing in {folder.path} fits a parameter", "; ".join(notes) or "see --use")
        try:
            made = compute(old, assets, underlyings, version, moves=way, seed=seed)
        except ValueError as error:
            problem = f"the new parameters are refused, nothing was changed: {_reason(error)}"
            raise InputError("policy", problem) from None
        if settings is not None:
            _verify_whole(settings, made.policy)
        if apply and made.looser and not allow_looser:
            problem = f"would lower requirements, nothing was changed: {', '.join(made.looser)}"
            raise InputError("--apply", problem, "look at them without --apply; --allow-looser applies them too")
        cuts = _cuts(old, made.policy)
        effects = _effects(settings, made.policy, notes)
        # Under another name alone it would have another digest, and no quorum until every attestor had restarted.
        same = version is None and made.policy.model_copy(update={"version": old.version}) == old
        kept = replace_policy(document, old, made.policy) if apply and document is not None and not same else None
        if plot is not None:
            _draw(plot, old, made.policy)
        if json_output:
            print_json(_json(old, made, assets, underlyings, cuts, effects, notes, kept))
            return
        _print(old, made, assets, underlyings, cuts, effects)
        if made.looser:
            listed = Text(f"lower requirements: {', '.join(made.looser)}", style="bold yellow")
            out.print(listed if kept else listed + Text("; --apply asks for --allow-looser"))
        for note in notes:
            out.print(Text(f"note: {note}", style="yellow"))
        if kept is not None:
            out.print(f"\napplied to {document}; the old document is kept as {kept.name}")
            out.print(
                "a service that runs still values by the old one: restart crossmargin run at every attestor, all with "
                "this digest (crossmargin policy shows it)"
            )
            out.print(f"to go back: cp {kept} {document}", soft_wrap=True)  # to be copied in one piece
        elif same:
            out.print(f"\nthe histories say what is in force already ({old.version}); there is nothing to apply")
        else:
            out.print("\nnothing was changed; --apply puts the new parameters in force")
        if plot is not None:
            out.print(f"drawn to {plot}")

    guarded(work)


def _reason(error: ValueError) -> str:
    """Return the first line of why; of a validation error, the key and the rule."""
    listed = getattr(error, "errors", None)
    if listed is None:
        return str(error)
    first = listed(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return (f"{place}: " if place else "") + str(first["msg"]).removeprefix("Value error, ")


def _in_force(path: Path | None, config: Path | None) -> tuple[Settings | None, Path | None, PolicyRow]:
    """Return the settings (None with a bare document), where the document is (None inside them), and the policy.

    With both, the document is what is recalibrated, and the configuration says what stands behind its rows.
    """
    if path is not None:
        return (None if config is None else settings_of(config)), path, load_policy(path)
    settings = settings_of(config)
    found = config or next(Path(place) for place in CONFIG_PLACES if Path(place).is_file())
    return settings, policy_path(found), settings.policy


def _estimates(
    settings: Settings | None,
    old: PolicyRow,
    folder: Path,
    use: Sequence[str] | None,
    since: str,
    until: str,
    notes: list[str],
) -> tuple[dict[str, list[Estimate]], dict[str, Estimate]]:
    """Estimate from every series that stands behind a parameter: those of --use, else by the feeds configured."""
    from aggregator.core.risk.calibration import Sample, estimate

    first, last = read_date("--since", since), read_date("--until", until)
    done: dict[Path, Estimate] = {}

    def of(path: Path) -> Estimate:
        if path not in done:
            history = read_series(path, first, last, notes)
            samples = []
            for period in sorted({DAY, min(DAY, history.bar)}, reverse=True):
                cut = returns_over(history, period)
                samples.append(
                    Sample(history.name, history.sha256, period, cut.times, cut.close, history.missing, cut.gap)
                )
            try:
                done[path] = estimate(samples[0], samples[-1])
            except ValueError as error:
                raise InputError(history.name, str(error).removeprefix(f"{history.name}: ")) from None
        return done[path]

    def first_that_serves(paths: Sequence[Path]) -> Estimate:
        """Return the estimate from the shortest bars; from the next, where those do not reach back far enough."""
        for path in paths[:-1]:
            try:
                return of(path)
            except InputError as error:
                remark = f"{path.name.removesuffix(ENDING)} is passed over: {error.problem}"
                if remark not in notes:
                    notes.append(remark)
        return of(paths[-1])

    assets: dict[str, list[Estimate]] = {}
    underlyings: dict[str, Estimate] = {}
    for text in use or ():
        target, _, series = text.partition("=")
        kind, _, name = target.partition(".")
        known = old.assets if kind == "assets" else old.underlyings if kind == "underlyings" else {}
        if name not in known:
            raise InputError(
                "--use", f"{target!r} is no row of the policy", "for example assets.major=eth_usdt_1h_binance"
            )
        path = folder / (series.removesuffix(ENDING) + ENDING)
        if path.parent != folder or not path.is_file():
            raise InputError("--use", f"no {series!r} in {folder}", "name a file without its ending")
        if kind == "assets":
            assets.setdefault(name, []).append(of(path))
        else:
            underlyings[name] = of(path)
    behind: dict[str, set[str]] = {}
    for asset in settings.assets if settings is not None else ():
        behind.setdefault(asset.policy, set()).add(asset.feed)
    wanted = [(name, feed) for name, feeds in sorted(behind.items()) if name not in assets for feed in sorted(feeds)]
    wanted += [("", feed) for feed in sorted(old.underlyings) if feed not in underlyings]
    for name, feed in wanted:
        try:
            if feed.upper() not in ASSETS:
                raise InputError("--use", f"no price history is known for {feed}")
            found = first_that_serves(find_all_series(folder, feed))
        except InputError as error:
            what = f"assets.{name}" if name else f"underlyings.{feed}"
            remark = f"{what} stays as it is: {error.problem}"
            if remark not in notes:
                notes.append(remark)
            continue
        if name:
            assets.setdefault(name, []).append(found)
        else:
            underlyings[feed] = found
    return assets, underlyings


def _verify_whole(settings: Settings, policy: PolicyRow) -> None:
    """Check what the configuration asks of a policy; the rest is the row's own business."""
    for asset in settings.assets:
        if asset.policy not in policy.assets:
            raise ConfigError("policy", f"assets.{asset.policy}", f"is gone, and {asset.id} needs it")
    if policy.lifetime > settings.service.max_lifetime:
        raise ConfigError("policy", "lifetime", "is above service.max_lifetime")


def _cuts(old: PolicyRow, new: PolicyRow) -> list[Cut]:
    from aggregator.core.haircut import expected_shortfall

    cuts = []
    for name in sorted(old.assets):
        for horizon in HORIZONS:
            for level in ("initial", "maintenance"):
                values = [
                    expected_shortfall(
                        ([float(horizon)], [1.0]), row.volatility, row.jumps, getattr(row, level).confidence
                    )
                    for row in (old.assets[name], new.assets[name])
                ]
                cuts.append(Cut(name, horizon, level, *values))
    return cuts


def _effects(settings: Settings | None, new: PolicyRow, notes: list[str]) -> list[tuple[str, Effect]]:
    """Return (label, effect) of every account of the newest certified epoch, against the policy configured now."""
    if settings is None:
        notes.append("no configuration is named, so there are no accounts to tell the effect on")
        return []
    from aggregator.core.risk.calibration import estimate_effect

    async def read() -> list[tuple[str, Effect]]:
        if not bootstrap.has_store(settings):
            notes.append("nothing is kept yet, so there are no accounts to tell the effect on")
            return []
        store = await bootstrap.open_store(settings)
        try:
            labels = {a.id: a.label for a in await store.accounts()}
            record = await store.epoch()
        finally:
            await store.close()
        if record is None or not record.margins:
            notes.append("no epoch is certified yet, so there are no accounts to tell the effect on")
            return []
        rows = {asset.id: asset.policy for asset in settings.assets}
        found = [estimate_effect(margin, settings.policy, new, rows) for margin in record.margins]
        return [(labels.get(e.account) or e.account[:12] + "…", e) for e in found]

    return asyncio.run(read())


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        if value and isinstance(value[0], Mapping) and "recovery" in value[0]:
            return ", ".join(f"{j['rate']:g}/yr × {j['recovery']:g}" for j in value)
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _print(
    old: PolicyRow,
    made: Recalibration,
    assets: Mapping[str, Sequence[Estimate]],
    underlyings: Mapping[str, Estimate],
    cuts: Sequence[Cut],
    effects: Sequence[tuple[str, Effect]],
) -> None:
    seen = {e.daily.series: e for found in assets.values() for e in found}
    seen |= {e.daily.series: e for e in underlyings.values()}
    columns = (
        ">days",
        "to",
        ">EWMA",
        ">GARCH",
        ">stress",
        ">long run",
        ">of bars",
        ">taken",
        ">R_u %",
        "jumps",
        "GARCH",
    )
    shown = table("what the histories say; volatility in % per √year", "series", *columns)
    for e in seen.values():
        figures = [f"{100 * v:.1f}" for v in (e.ewma, e.garch, e.stress, e.long_run, e.noise, e.volatility, e.range)]
        jumps = ", ".join(f"{j.rate:g}/yr × {j.recovery:g}" for j in e.jumps)
        fit = f"EWMA stands in: {e.garch_note}" if e.garch_note else "fitted"
        shown.add_row(e.daily.series, str(len(e.daily.returns)), _day(e.last), *figures, jumps or "none", fit)
    out.print(shown)
    title = f"parameters, {old.version} → {made.policy.version}; which way requirements go with the row"
    changes = table(title, "parameter", "old", "new", "IM", "MM")
    for change in made.changes:
        both = (change.initial, change.maintenance)
        ways = [Text(way, style="bold yellow" if "lower" in way else "") for way in both]
        changes.add_row(change.path, _text(change.old), _text(change.new), *ways)
    out.print(changes)
    moved = table("market haircut of collateral, %", "row", "level", *(f">{name_duration(h)}" for h in HORIZONS))
    for name in sorted({cut.row for cut in cuts}):
        for level in ("initial", "maintenance"):
            mine = [cut for cut in cuts if cut.row == name and cut.level == level]
            if any(cut.old != cut.new for cut in mine):
                moved.add_row(name, level, *(f"{100 * c.old:.2f} → {100 * c.new:.2f}" for c in mine))
    if moved.row_count:
        out.print(moved)
    if effects:
        title = "accounts in the newest certified epoch, USD, about"
        accounts = table(title, "account", ">free collateral", ">new", ">maintenance excess", ">new", "")
        for label, effect in effects:
            _, free, freed, excess, left = effect
            calls = "falls below maintenance" if excess >= 0 > left else "no new risk" if free >= 0 > freed else ""
            accounts.add_row(label, *map(format_usd, effect[1:]), Text(calls, style="bold red"))
        out.print(accounts)
        out.print(
            "about: haircuts and weights of collateral and debts are exchanged; prices, horizons and what perps and "
            "options require stay"
        )
    out.print(f"digest {policy_digest(old)} → {policy_digest(made.policy)}")


def _json(
    old: PolicyRow,
    made: Recalibration,
    assets: Mapping[str, Sequence[Estimate]],
    underlyings: Mapping[str, Estimate],
    cuts: Sequence[Cut],
    effects: Sequence[tuple[str, Effect]],
    notes: Sequence[str],
    kept: Path | None,
) -> dict[str, Any]:
    def told(e: Estimate) -> dict[str, Any]:
        names = ("ewma", "garch", "garch_note", "stress", "long_run", "noise", "volatility", "range")
        return {"series": e.daily.series, "days": len(e.daily.returns), "last": e.last} | {
            name: getattr(e, name) for name in names
        }

    def row(change: Change) -> dict[str, Any]:
        return change._asdict() | {"loosens": change.loosens}

    return {
        "old": {"version": old.version, "digest": policy_digest(old)},
        "new": {"version": made.policy.version, "digest": policy_digest(made.policy)},
        "estimates": {
            **{f"assets.{name}": [told(e) for e in found] for name, found in assets.items()},
            **{f"underlyings.{feed}": [told(e)] for feed, e in underlyings.items()},
        },
        "changes": [row(change) for change in made.changes],
        "haircuts": [cut._asdict() for cut in cuts],
        "accounts": [
            {"account": e.account, "label": label}
            | {name: str(value) for name, value in e._asdict().items() if name != "account"}
            for label, e in effects
        ],
        "notes": list(notes),
        "applied": kept is not None,
        "kept": None if kept is None else str(kept),
    }


def _draw(path: Path, old: PolicyRow, new: PolicyRow) -> None:
    from aggregator.core.haircut import expected_shortfall

    fig, axes = plotting.figure(
        f"initial market haircut by horizon, {old.version} (dashed) and {new.version}", "horizon τ, hours", "%"
    )
    hours = [0.05 * 1.25**i for i in range(38)]
    changed = [name for name in sorted(old.assets) if old.assets[name] != new.assets[name]] or sorted(old.assets)
    for i, name in enumerate(changed):
        for row, style, label in ((old.assets[name], "--", None), (new.assets[name], "-", name)):
            cuts = [
                100 * expected_shortfall(([3600 * h], [1.0]), row.volatility, row.jumps, row.initial.confidence)
                for h in hours
            ]
            axes.plot(hours, cuts, style, color=plotting.COLOURS[i % len(plotting.COLOURS)], label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(loc="upper left")
    plotting.save(fig, path)
