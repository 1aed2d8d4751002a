"""``crossmargin backtest``: what models, and our own haircut, would have set aside against what was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.backtest_report import Case, day_of, draw, verdict, write_report
from aggregator.cli.frame import (
    CONFIG_PLACES,
    ConfigOption,
    JsonOption,
    app,
    fail,
    guarded,
    out,
    print_json,
    settings_of,
    table,
)
from aggregator.cli.history import (
    ENDING,
    History,
    Returns,
    find_all_series,
    find_folder,
    name_duration,
    read_date,
    read_duration,
    read_series,
    returns_over,
)
from aggregator.config import load_policy
from aggregator.domain.errors import InputError
from aggregator.domain.policy import AssetPolicyRow, PolicyRow, policy_digest

if TYPE_CHECKING:
    from aggregator.core.risk.backtest import Model
    from aggregator.core.risk.procyclicality import ProcyclicalityReport

DAY = 86_400
WINDOW, LEAST_WINDOW = 500, 30
USUAL = ("BTC/USD", "ETH/USD", "SOL/USD", "stETH/ETH", "USDC/USD")
ROWS: dict[str, tuple[str, ...]] = {
    "usdc": ("stable",),
    "dai": ("stable",),
    "ust": ("stable",),
    "steth": ("receipt",),
    "wbtc_btc": ("receipt",),
}
ROWS |= {"sol": ("alt", "major"), "luna": ("alt", "major")}
"""Rows of ``policy.assets`` by the beginning of a series' name, the first there is; all others are ``major``."""
COLOURS = {"green": "green", "yellow": "yellow", "red": "bold red"}


@app.command()
def backtest(
    asset: Annotated[list[str] | None, typer.Option(help="BTC, ETH/USD, stETH/ETH, …; several may be given.")] = None,
    series: Annotated[list[str] | None, typer.Option(help="A file by name, e.g. luna_usdt_1h_binance.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Folder of price histories.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="haircut, ewma, fhs, normal; default: all.")] = None,
    alpha: Annotated[float, typer.Option(help="Confidence; a haircut has its own, of its policy row.")] = 0.99,
    horizon: Annotated[str, typer.Option(help="Period of one return: 1h, 4h, 1d, …")] = "1d",
    window: Annotated[
        int | None,
        typer.Option(help="Periods a model sees before its first forecast; default: 500, of a short history half."),
    ] = None,
    low: Annotated[bool, typer.Option("--low", help="Test against the lowest price within each period.")] = False,
    charged_for: Annotated[str, typer.Option(help="Horizon τ of the haircut, e.g. 15m; default: --horizon.")] = "",
    row: Annotated[str, typer.Option(help="Row of policy.assets that the haircut comes from.")] = "",
    policy: Annotated[Path | None, typer.Option(help="Policy document; default: the configuration's.")] = None,
    since: Annotated[str, typer.Option(help="First day, YYYY-MM-DD.")] = "",
    until: Annotated[str, typer.Option(help="Day after the last, YYYY-MM-DD.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Also draw losses, bands and breaches: .png or .svg.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write it all up, with pictures beside it: .md.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Test value-at-risk models and our haircut against price histories."""

    def work() -> None:
        if not 0 < alpha < 1:
            raise InputError("--alpha", f"{alpha!r} is no confidence between 0 and 1", "for example 0.99")
        models = _models(model)
        period = read_duration("--horizon", horizon)
        at = read_duration("--charged-for", charged_for) if charged_for else period
        first, last = read_date("--since", since), read_date("--until", until)
        folder = find_folder(prices)
        notes = [folder.note] if folder.note else []
        parameters = _policy(policy, config)
        if parameters is None and "haircut" in models:
            if model:
                raise InputError("--policy", "the haircut needs a policy", "name a policy document or a --config")
            models = tuple(m for m in models if m != "haircut")
            notes.append("no policy is configured here, so the haircut is not tested; name one with --policy")
        named = asset or series
        cases: list[Case] = []
        cuts: list[tuple[History, Returns]] = []

        def choose(paths: Sequence[Path]) -> Path:
            return _fullest(paths, first, last, period, WINDOW if window is None else window)

        windows: list[int] = []
        for path in list_files(folder.path, asset, series, notes, choose):
            history = read_series(path, first, last, notes)
            try:
                cut = returns_over(history, period)
                seen = window if window is not None else _window(len(cut.close))
                cases += _run(history, cut, models, parameters, alpha, seen, at, row, low)
                cuts.append((history, cut))
                windows.append(seen)
                if seen < WINDOW and window is None:
                    notes.append(f"{history.name} has {len(cut.close)} periods: models see {seen} first, not {WINDOW}")
            except (InputError, ValueError) as error:
                if named:
                    raise InputError(history.name, str(error)) from None
                notes.append(f"{history.name} is left out: {error}")
        if not cases:
            fail("nothing could be tested: " + "; ".join(notes))
        if plot is not None:
            if len({case.series for case in cases}) > 1:
                raise InputError("--plot", "shows one series", "choose it with --asset or --series")
            draw(plot, cases, period)
        told = " or ".join(str(w) for w in sorted(set(windows)))
        digest = "" if parameters is None else policy_digest(parameters)
        if report is not None:
            rules = f"h_mkt at τ = {name_duration(at)} of policy {parameters.version}, `{digest}`" if parameters else ""
            write_report(report, cases, cuts, period, "low" if low else "close", told, rules, notes)
        if json_output:
            print_json(_document(cases, cuts, period, at, windows, low, parameters, digest, notes))
            return
        _print(cases, cuts, period, at, told, low, parameters, digest)
        for note in notes:
            out.print(Text(f"note: {note}", style="yellow"))
        if plot is not None:
            out.print(f"\ndrawn to {plot}")
        if report is not None:
            out.print(f"written up in {report}")

    guarded(work)


def _models(named: Sequence[str] | None) -> tuple[Model, ...]:
    from aggregator.core.risk.backtest import MODELS

    for name in named or ():
        if name not in MODELS:
            raise InputError("--model", f"{name!r} is not known", f"one of {', '.join(MODELS)}")
    return tuple(m for m in MODELS if not named or m in named)


def _policy(path: Path | None, config: Path | None) -> PolicyRow | None:
    if path is not None:
        return load_policy(path)
    if config is None and not any(Path(place).is_file() for place in CONFIG_PLACES):
        return None
    return settings_of(config).policy


def list_files(
    folder: Path,
    assets: Sequence[str] | None,
    series: Sequence[str] | None,
    notes: list[str],
    choose: Callable[[Sequence[Path]], Path] = lambda paths: paths[0],
) -> Iterator[Path]:
    """Yield the files of what is named, or the usual ones there are; tell in ``notes`` which are not.

    Args:
        choose: one of the files of an asset, which come with the shortest bars first.
    """
    for name in series or ():
        path = folder / (name.removesuffix(ENDING) + ENDING)
        if path.parent != folder or not path.is_file():
            raise InputError("--series", f"no {name!r} in {folder}", "name a file without its ending")
        yield path
    for name in assets or ():
        yield choose(find_all_series(folder, name))
    if not assets and not series:
        for name in USUAL:
            try:
                found = find_all_series(folder, name)
            except InputError as error:
                notes.append(error.problem)
            else:
                yield choose(found)


def _fullest(paths: Sequence[Path], first: int | None, last: int | None, period: int, window: int) -> Path:
    """Return the first file that has periods left to test after ``window``, else the one with the most periods."""
    most, best = -1, paths[0]
    for path in paths if len(paths) > 1 else ():
        try:
            periods = len(returns_over(read_series(path, first, last, []), period).close)
        except InputError:
            continue  # the caller reads it again if it is the best there is, and tells
        if periods > window:
            return path
        if periods > most:
            most, best = periods, path
    return best


def _window(periods: int) -> int:
    """Return how many periods a model sees first where nobody says: half of a short history is left to test."""
    return min(WINDOW, max(LEAST_WINDOW, periods // 2))


def _row(parameters: PolicyRow, series: str, named: str) -> tuple[str, AssetPolicyRow]:
    wanted: tuple[str, ...] = next((rows for start, rows in ROWS.items() if series.startswith(start)), ("major",))
    for name in (named,) if named else wanted:
        if name in parameters.assets:
            return name, parameters.assets[name]
    known = ", ".join(sorted(parameters.assets)) or "none"
    raise InputError("--row", f"policy.assets has no row {named or wanted[0]!r}", f"there are: {known}")


def _run(
    history: History,
    cut: Returns,
    models: Sequence[Model],
    parameters: PolicyRow | None,
    alpha: float,
    window: int,
    at: int,
    row: str,
    low: bool,
) -> list[Case]:
    from aggregator.core.haircut import expected_shortfall
    from aggregator.core.risk.backtest import run_backtest

    losses = -cut.worst if low else -cut.close
    cases: list[Case] = []
    for model in models:
        if model != "haircut":
            result = run_backtest(cut.close, cut.times, model, alpha, window, losses=losses)
            cases.append(Case(history.name, model, "", result, None))
            continue
        assert parameters is not None
        name, policy = _row(parameters, history.name, row)
        for level, rules in (("IM", policy.initial), ("MM", policy.maintenance)):
            market = expected_shortfall(([float(at)], [1.0]), policy.volatility, policy.jumps, rules.confidence)
            whole = 1 - (1 - market) * (1 - rules.haircut)
            result = run_backtest(
                cut.close, cut.times, model, rules.confidence, 0, charge=(market, market), losses=losses
            )
            beyond = int((result.losses > whole).sum())
            cases.append(Case(history.name, f"haircut {level}", name, result, beyond))
    return cases


def _rises(cases: Sequence[Case], period: int) -> Iterator[tuple[str, ProcyclicalityReport]]:
    """Measure how what each model set aside rose; not of constants, nor of a model that once set nothing aside."""
    from aggregator.core.risk.procyclicality import measure

    for case in cases:
        if case.result.model != "haircut" and (case.result.var > 0).all():
            yield case.name, measure(case.result.var, max(1, DAY // period))


def _print(
    cases: Sequence[Case],
    cuts: Sequence[tuple[History, Returns]],
    period: int,
    at: int,
    window: str,
    low: bool,
    parameters: PolicyRow | None,
    digest: str,
) -> None:
    columns: tuple[str, ...] = (
        "model",
        ">α %",
        ">tested",
        ">set aside %",
        ">breaches",
        ">promised",
        ">accepted",
        "coverage",
    )
    columns += (
        ">Kupiec p",
        ">indep. p",
        ">both p",
        "zone",
        ">plus",
        ">ES Z2",
        "worst",
        ">worst loss %",
        ">set aside then %",
    )
    against = "lowest price within" if low else "close of"
    for history, cut in cuts:
        mine = [case for case in cases if case.series == history.name]
        first, last = day_of(int(cut.times[0]) - period, DAY), day_of(int(cut.times[-1]) - 1, DAY)
        size = f"{len(cut.times):,} periods of {name_duration(period)}"
        title = f"{history.name}: {size}, {first} to {last}, against the {against} each"
        shown = table(title, *columns)
        shown.columns[columns.index("worst")].no_wrap = True  # a date and an hour stay on one line
        for case in mine:
            r, worst = case.result, case.result.worst
            word = verdict(r)
            shown.add_row(
                case.name,
                f"{100 * r.alpha:g}",
                f"{r.n:,}",
                f"{100 * r.var.mean():.2f}",
                f"{r.breaches:,}",
                f"{r.expected:,.1f}",
                f"{r.region[0] + 1:,}–{r.region[1] - 1:,}",
                Text(word, style={"too low": "bold red", "holds": "green"}.get(word, "")),
                f"{r.coverage.pvalue:.3f}",
                f"{r.clusters.independence.pvalue:.3f}",
                f"{r.clusters.conditional.pvalue:.3f}",
                Text(r.light.colour, style=COLOURS[r.light.colour]),
                f"{r.light.plus_factor:.2f}",
                f"{r.z2:.2f}",
                day_of(int(r.times[worst]) - period, period),
                f"{100 * r.losses[worst]:.2f}",
                f"{100 * r.var[worst]:.2f}",
            )
        out.print(shown)
        for case in mine:
            if case.whole is not None:
                share = f"{case.whole:,} of {case.result.n:,} losses exceed"
                out.print(f"  {case.name}: {share} the whole haircut, policy.assets.{case.row}.haircut included")
        for name, moved in _rises(mine, period):
            rises = ", ".join(f"{days}d +{100 * rise:.0f}%" for days, rise in moved.rises)
            out.print(f"  {name}: from trough to peak × {moved.peak_to_trough:.1f}; largest rise in {rises}")
        gaps = f"{history.missing} bars missing, {cut.absent} periods left out" if history.missing else "no bar missing"
        out.print(f"  {gaps}\n")
    for line in (
        f"A model sees {window} periods before its first forecast, a haircut none. set aside %: the mean.",
        "accepted: counts of breaches that Kupiec's test accepts at 95%. coverage: more is too low, fewer is ample.",
        "indep. p, both p: Christoffersen's tests; below 0.05 breaches come in clusters. zone, plus: the Basel light.",
        "ES Z2: Acerbi and Székely; 0 is right, below −0.7 ES at 97.5% is rejected. worst: the period farthest beyond,",
        "with what was lost in it and what was set aside then.",
    ):
        out.print(line)
    if parameters is not None:
        out.print(f"haircut: h_mkt at τ = {name_duration(at)} of policy {parameters.version}, digest {digest}")


def _document(
    cases: Sequence[Case],
    cuts: Sequence[tuple[History, Returns]],
    period: int,
    at: int,
    windows: Sequence[int],
    low: bool,
    parameters: PolicyRow | None,
    digest: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    by_name = {history.name: (history, cut, seen) for (history, cut), seen in zip(cuts, windows, strict=True)}
    moved = {name: dict(_rises([x for x in cases if x.series == name], period)) for name in by_name}
    rows = []
    for case in cases:
        r = case.result
        rise = moved[case.series].get(case.name)
        history, cut, seen = by_name[case.series]
        rows.append(
            {
                "series": case.series,
                "sha256": history.sha256,
                "model": case.name,
                "policy_row": case.row or None,
                "alpha": r.alpha,
                "window": None if r.model == "haircut" else seen,
                "n": r.n,
                "first": int(r.times[0]),
                "last": int(r.times[-1]),
                "missing_bars": history.missing,
                "periods_left_out": cut.absent,
                "breaches": r.breaches,
                "promised": r.expected,
                "accepted": [r.region[0] + 1, r.region[1] - 1],
                "coverage": verdict(r),
                "kupiec": r.coverage._asdict(),
                "independence": r.clusters.independence._asdict(),
                "conditional_coverage": r.clusters.conditional._asdict(),
                "traffic_light": {
                    "zone": r.light.colour,
                    "cumulative": r.light.cumulative,
                    "plus_factor": r.light.plus_factor,
                    "multiplier": r.light.multiplier,
                },
                "z2": r.z2,
                "mean_set_aside": float(r.var.mean()),
                "worst_loss": float(r.losses.max()),
                "procyclicality": None
                if rise is None
                else {"peak_to_trough": rise.peak_to_trough, "rises": {str(days): up for days, up in rise.rises}},
                "breaches_of_whole_haircut": case.whole,
                "breached_at": [int(t) for t in r.times[r.exceeded]][:1000],
            }
        )
    return {
        "horizon_seconds": period,
        "haircut_horizon_seconds": at,
        "window": windows[0] if len(set(windows)) == 1 else None,
        "against": "low" if low else "close",
        "policy": None if parameters is None else {"version": parameters.version, "digest": digest},
        "backtests": rows,
        "notes": list(notes),
    }
