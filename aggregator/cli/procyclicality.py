"""``crossmargin procyclicality``: how margins rise when it hurts, with and without floor and buffer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.text import Text

from aggregator.cli import plot as plotting
from aggregator.cli.backtest import list_files
from aggregator.cli.backtest_report import DAY, day_of
from aggregator.cli.frame import JsonOption, app, fail, guarded, out, print_json, table
from aggregator.cli.history import find_folder, name_duration, read_date, read_duration, read_series, returns_over
from aggregator.domain.errors import InputError
from aggregator.domain.units import Floats

if TYPE_CHECKING:
    from aggregator.core.risk.procyclicality import ProcyclicalityReport, Rule

CHOICES = ("ewma", "fhs", "normal")


class Told(NamedTuple):
    """One series of margins under one rule."""

    series: str
    model: str
    rule: Rule
    times: Any  # (n,) Unix seconds
    margins: Floats  # (n,) parts of the value
    report: ProcyclicalityReport


@app.command()
def procyclicality(
    asset: Annotated[list[str] | None, typer.Option(help="BTC, ETH/USD, stETH/ETH, …; several may be given.")] = None,
    series: Annotated[list[str] | None, typer.Option(help="A file by name, e.g. luna_usdt_1h_binance.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Folder of price histories.")] = None,
    model: Annotated[str, typer.Option(help="Whose expected shortfall is the margin: ewma, fhs or normal.")] = "ewma",
    alpha: Annotated[float, typer.Option(help="Its confidence.")] = 0.99,
    horizon: Annotated[str, typer.Option(help="Period of one return: 1h, 4h, 1d, …")] = "1d",
    window: Annotated[int, typer.Option(help="Periods the model sees before its first margin.")] = 250,
    since: Annotated[str, typer.Option(help="First day, YYYY-MM-DD.")] = "",
    until: Annotated[str, typer.Option(help="Day after the last, YYYY-MM-DD.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Also draw the margins of one series: .png or .svg.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Show how margins rise and fall with the market: peak to trough, and the largest rise over 1, 5 and 30 days."""

    def work() -> None:
        if model not in CHOICES:
            raise InputError("--model", f"{model!r} is not known", f"one of {', '.join(CHOICES)}")
        period = read_duration("--horizon", horizon)
        if DAY % period:
            raise InputError("--horizon", f"{horizon} does not divide a day", "choose 1h, 4h, 1d, …")
        first, last = read_date("--since", since), read_date("--until", until)
        folder = find_folder(prices)
        notes = [folder.note] if folder.note else []
        told: list[Told] = []
        for path in list_files(folder.path, asset, series, notes):
            history = read_series(path, first, last, notes)
            try:
                cut = returns_over(history, period)
                told += _measure(history.name, cut.times, cut.close, model, alpha, window, period)
            except (InputError, ValueError) as error:
                if asset or series:
                    raise InputError(history.name, str(error)) from None
                notes.append(f"{history.name} is left out: {error}")
        if not told:
            fail("nothing could be measured: " + "; ".join(notes))
        if plot is not None:
            _draw(plot, told, alpha, period)
        if json_output:
            print_json(_document(told, alpha, period, window, notes))
            return
        _print(told, alpha, period)
        for note in notes:
            out.print(Text(f"note: {note}", style="yellow"))
        if plot is not None:
            out.print(f"\ndrawn to {plot}")

    guarded(work)


def _measure(name: str, times: Any, returns: Floats, model: str, alpha: float, window: int, period: int) -> list[Told]:
    from aggregator.core.risk.backtest import MODELS, forecast
    from aggregator.core.risk.procyclicality import apply_rules, measure
    from aggregator.core.risk.tails import require_confidence

    require_confidence(alpha)
    if len(returns) <= window:
        raise ValueError(f"window: {window} periods leave none of {len(returns)}")
    chosen = MODELS[MODELS.index(model)]  # a name of CHOICES
    margins = forecast(returns, chosen, alpha, window).es
    if not (margins > 0).all():
        raise ValueError(f"margins: {model} once asks for nothing, from which no rise can be measured")
    per_day = DAY // period
    when = times[window:]
    return [
        Told(name, model, rule, when, made, measure(made, per_day))
        for rule, made in apply_rules(margins, per_day).items()
    ]


def _print(told: Sequence[Told], alpha: float, period: int) -> None:
    for name in dict.fromkeys(row.series for row in told):
        mine = [row for row in told if row.series == name]
        span = f"{day_of(int(mine[0].times[0]) - period, DAY)} to {day_of(int(mine[0].times[-1]) - 1, DAY)}"
        title = f"{name}: ES {100 * alpha:g}% by {mine[0].model} over {name_duration(period)}, {span}"
        days = [f">rise in {days} d" for days, _ in mine[0].report.rises]
        shown = table(title, "margin", ">mean %", ">least %", ">greatest %", ">peak / trough", *days)
        for row in mine:
            r = row.report
            ends = (f"{100 * value:.2f}" for value in (float(row.margins.mean()), r.trough, r.peak))
            shown.add_row(row.rule, *ends, f"{r.peak_to_trough:.2f}", *(f"+{100 * rise:.0f}%" for _, rise in r.rises))
        out.print(shown)
    out.print(
        "floor: max(m, ¾m + ¼m_stress, m_10y); buffer: m(1 + ¼·clip(m̄_slow/m, 0, 1)); all from what was known then."
    )
    out.print("rise in n d: the greatest rise to any day from the least margin of the n days before.")


def _document(told: Sequence[Told], alpha: float, period: int, window: int, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "horizon_seconds": period,
        "alpha": alpha,
        "window": window,
        "margins": [
            {
                "series": row.series,
                "model": row.model,
                "rule": row.rule,
                "first": int(row.times[0]),
                "last": int(row.times[-1]),
                "mean": float(row.margins.mean()),
                "trough": row.report.trough,
                "peak": row.report.peak,
                "peak_to_trough": row.report.peak_to_trough,
                "rises": {str(days): rise for days, rise in row.report.rises},
            }
            for row in told
        ],
        "notes": list(notes),
    }


def _draw(path: Path, told: Sequence[Told], alpha: float, period: int) -> None:
    if len({row.series for row in told}) > 1:
        raise InputError("--plot", "shows one series", "choose it with --asset or --series")
    title = f"{told[0].series}: ES {100 * alpha:g}% by {told[0].model} over {name_duration(period)}"
    fig, axes = plotting.figure(title, "day (UTC)", "% of the value")
    for i, row in enumerate(told):
        label = f"{row.rule}: × {row.report.peak_to_trough:.1f} from trough to peak"
        days = row.times.astype("datetime64[s]")
        axes.plot(days, 100 * row.margins, color=plotting.COLOURS[i], linewidth=1.0, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    plotting.save(fig, path)
