"""``crossmargin latency``: how long things take, and what statements make of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aggregator.cli.ecdf import Curve, bars, draw, name_of_bar, span
from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    fail,
    out,
    print_json,
    run_async,
    settings_of,
    table,
)
from aggregator.domain.errors import InputError
from aggregator.domain.latency import LEGS, LatencyReport, Leg, LegReport, Sample

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
LONGEST = 86_400  # seconds; the store remembers no more
Series = Mapping[tuple[str, Leg], Sequence[float]]


@app.command()
def latency(
    chain: Annotated[str | None, typer.Option(help="Only this chain: its name or id; * for legs of no chain.")] = None,
    leg: Annotated[str | None, typer.Option(help=f"Only this leg: {', '.join(LEGS)}.")] = None,
    since: Annotated[str, typer.Option(help="How far to look back: 90s, 15m, 1h, at most 1d.")] = "1d",
    plot: Annotated[Path | None, typer.Option(help="Also draw what share took how long, to this .svg file.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show measured latencies by chain and leg, and the laws in use because of them."""

    async def work() -> tuple[LatencyReport, Series]:
        seconds, only = _seconds(since), _leg(leg)
        if plot is not None and plot.suffix.lower() != ".svg":
            raise InputError(
                "--plot", f"{plot.name} is no .svg file", "only SVG is drawn; name a file that ends in .svg"
            )
        settings = settings_of(config)
        store = await bootstrap.open_store(settings)
        try:
            report = await bootstrap.measured_latency(settings, store, seconds, chain, only)
            return report, _series(await bootstrap.open_latencies(store).window(report.since))
        finally:
            await store.close()

    report, series = run_async(work)
    measured = [shown for shown in report.legs if shown.samples]
    if plot is not None:
        if not measured:
            fail(f"nothing was measured in the last {since}, so there is nothing to draw")
        _write(plot, draw(_panels(measured, series), f"crossmargin latency, last {since}"))
    if json_output:
        print_json(asdict(report))
        return
    if measured:
        _print_legs(report, series, since)
    else:
        out.print(
            f"Nothing was measured in the last {since}: legs are measured while `crossmargin run` runs. "
            "Until then the configured laws count."
        )
    _print_holds(report)
    if plot is not None:
        out.print(f"\ndrawn to {plot}")


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    if not 1 <= seconds <= LONGEST:
        raise InputError("--since", f"{text!r} is no time up to a day", "for example 90s, 15m, 1h or 1d")
    return seconds


def _leg(text: str | None) -> Leg | None:
    if text is not None and text not in LEGS:
        raise InputError("--leg", f"{text!r} is not known", f"one of {', '.join(LEGS)}")
    return text


def _series(samples: Sequence[Sample]) -> Series:
    series: dict[tuple[str, Leg], list[float]] = {}
    for sample in samples:
        series.setdefault((sample.chain, sample.leg), []).append(sample.seconds)
    return series


def _panels(legs: Sequence[LegReport], series: Series) -> list[tuple[str, list[Curve]]]:
    panels: dict[str, list[Curve]] = {}
    for name in LEGS:
        for shown in legs:
            if shown.leg == name:
                law = list(zip(shown.law_seconds, shown.law_chances, strict=True))
                panels.setdefault(name, []).append(Curve(shown.name, series[shown.chain, shown.leg], law))
    return list(panels.items())


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")


def _print_legs(report: LatencyReport, series: Series, since: str) -> None:
    first, last = span([series[leg.chain, leg.leg] for leg in report.legs if leg.samples])
    columns = ("chain", "leg", ">samples", ">p50 s", ">p90", ">p99", ">max", ">last", "spread")
    shown = table(f"measured, last {since}", *columns, ">law p50 s", ">p90", ">p99", "rests on", "outage configured")
    for leg in report.legs:
        figures = [_short(value) for value in (leg.p50, leg.p90, leg.p99, leg.longest, leg.last)]
        spread = bars(series[leg.chain, leg.leg], first, last) if leg.samples else ""
        law = [str(_law_quantile(leg, level)) for level in (0.5, 0.9, 0.99)]
        rests = f"{leg.law_samples} samples" if leg.law_samples else "configuration"
        outages = ", ".join(f"{o.seconds} s at {o.probability:.6g}" for o in leg.outages)
        shown.add_row(leg.name, leg.leg, str(leg.samples), *figures, spread, *law, rests, outages or "none")
    out.print(shown)
    out.print(f"spread: from up to {name_of_bar(first)} to up to {name_of_bar(last)}\n")


def _print_holds(report: LatencyReport) -> None:
    columns = ("chain", ">p50 s", ">p90", ">p99", ">longest", ">gate opens beyond")
    shown = table("until a hold lands, by the laws in use", *columns)
    for hold in report.holds:
        shown.add_row(hold.name, str(hold.p50), str(hold.p90), str(hold.p99), str(hold.longest), str(hold.bound))
    if report.holds:
        out.print(shown)
        out.print(
            f"gate opens beyond: a hold takes so long, or longer, with a chance above {report.epsilon:g} "
            "(policy.exit_epsilon);\nan asset counts while its owner needs longer than that to take it away"
        )


def _law_quantile(leg: LegReport, level: float) -> int:
    total = 0.0
    for value, chance in zip(leg.law_seconds, leg.law_chances, strict=True):
        total += chance
        if total >= level - 1e-12:
            return value
    return leg.law_seconds[-1]


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
