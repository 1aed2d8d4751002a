"""What backtests are written up as: a Markdown report with its pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aggregator.cli import plot as plotting
from aggregator.cli.history import History, Returns, name_duration
from aggregator.domain.errors import InputError

if TYPE_CHECKING:
    from aggregator.core.risk.backtest import Backtest

DAY = 86_400
WORDS = {
    "holds": "as many breaches as promised, as far as Kupiec's test can tell",
    "ample": "fewer breaches than promised: more is set aside than needed",
    "too low": "**more breaches than promised: too little is set aside**",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One backtest as shown: a series, a model, and what the model was charged by."""

    series: str
    name: str  # of the model, for people
    row: str  # of policy.assets, for haircuts
    result: Backtest
    whole: int | None  # breaches of the whole haircut, with the policy's own part


def verdict(result: Backtest) -> Literal["holds", "too low", "ample"]:
    """Judge coverage by Kupiec's region: more breaches than it accepts are too many; fewer are ample."""
    low, high = result.region
    return "too low" if result.breaches >= high else "ample" if result.breaches <= low else "holds"


def day_of(seconds: int, period: int) -> str:
    """Return a time as people write it; without the hour where periods are whole days."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d" if period % DAY == 0 else "%Y-%m-%d %H:%M")


def write_report(
    path: Path,
    cases: Sequence[Case],
    cuts: Sequence[tuple[History, Returns]],
    period: int,
    against: Literal["low", "close"],
    window: str,
    haircut: str,
    notes: Sequence[str],
) -> None:
    """Write a report and a picture for each series beside it, which it embeds by a relative path.

    Args:
        path: ends with ``.md``; what stands there is replaced.
        window: periods a model saw before its first forecast, for people.
        haircut: where the haircut comes from; empty if none was tested.

    Raises:
        InputError: another ending, or a file cannot be written.
    """
    if path.suffix.lower() != ".md":
        raise InputError("--report", f"{path.name!r} must end with .md", "name the file so")
    lines: list[str] = []
    for history, cut in cuts:
        mine = [case for case in cases if case.series == history.name]
        picture = path.with_name(f"{path.stem}-{history.name}.svg")
        draw(picture, mine, period)
        lines += ["", *_section(history, cut, mine, period, against, picture.name)]
    try:
        path.write_text(
            "\n".join([*_head(cases, period, against, window, haircut), *lines, *_foot(notes)]) + "\n", "utf-8"
        )
    except OSError as error:
        raise InputError("--report", f"{path} cannot be written: {error.strerror}") from None


def _head(cases: Sequence[Case], period: int, against: str, window: str, haircut: str) -> Iterator[str]:
    yield "# Backtest: what was set aside, and what was lost"
    yield ""
    yield f"Returns over {name_duration(period)}, tested against the {against} of each period. A model sees {window}"
    yield "periods before its first forecast and nothing later; a haircut is a constant."
    if haircut:
        yield f"Haircuts are {haircut}."
    yield ""
    yield "## Findings"
    yield ""
    for word in ("too low", "holds", "ample"):
        found = [f"{case.series} {case.name}" for case in cases if verdict(case.result) == word]
        if found:
            yield f"- {WORDS[word]}: {', '.join(found)}."
    clusters = [f"{c.series} {c.name}" for c in cases if not c.result.clusters.independence.passes()]
    if clusters:
        yield f"- Breaches come in clusters (Christoffersen, p < 0.05): {', '.join(clusters)}."


def _section(
    history: History, cut: Returns, cases: Sequence[Case], period: int, against: str, picture: str
) -> Iterator[str]:
    from aggregator.core.risk.procyclicality import HORIZONS, apply_rules, measure

    first, last = day_of(int(cut.times[0]) - period, DAY), day_of(int(cut.times[-1]) - 1, DAY)
    yield f"## {history.name}"
    yield ""
    gaps = f"{history.missing} bars missing, {cut.absent} periods left out"
    yield f"{len(cut.times):,} periods, {first} to {last}; {gaps}."
    yield f"File: sha256 `{history.sha256}`."
    yield ""
    yield f"![profit and loss of {history.name} against what was set aside]({picture})"
    yield ""
    columns = ("model", "α %", "tested", "set aside %", "breaches", "promised", "accepted", "coverage")
    yield _line(*columns, "Kupiec p", "indep. p", "both p", "zone", "Z₂")
    yield "|---" * (len(columns) + 5) + "|"
    for case in cases:
        r = case.result
        yield _line(
            case.name,
            f"{100 * r.alpha:g}",
            f"{r.n:,}",
            f"{100 * r.var.mean():.2f}",
            f"{r.breaches:,}",
            f"{r.expected:,.1f}",
            f"{r.region[0] + 1:,}–{r.region[1] - 1:,}",
            verdict(r),
            f"{r.coverage.pvalue:.3f}",
            f"{r.clusters.independence.pvalue:.3f}",
            f"{r.clusters.conditional.pvalue:.3f}",
            r.light.colour,
            f"{r.z2:.2f}",
        )
    yield ""
    for case in cases:
        r, at = case.result, case.result.worst
        beyond = "farthest beyond" if r.exceeded[at] else "nearest"
        loss, aside = (f"{100 * value:.2f}%" for value in (r.losses[at], r.var[at]))
        line = (
            f"- {case.name}: {beyond} on {day_of(int(r.times[at]) - period, period)}, {loss} lost, {aside} set aside."
        )
        if case.whole is not None:
            line += f" Beyond the whole haircut of `assets.{case.row}`, with the policy's own part: {case.whole:,}."
        yield line
    moving = [case for case in cases if case.result.model != "haircut" and (case.result.var > 0).all()]
    if moving:
        yield ""
        yield "How what is set aside moves with the market:"
        yield ""
        yield f"| model | rule | peak / trough | {' | '.join(f'{days} d' for days in HORIZONS)} |"
        yield "|---|---|---|" + "---|" * len(HORIZONS)
    for case in moving:
        for rule, series in apply_rules(case.result.var, max(1, DAY // period)).items():
            told = measure(series, max(1, DAY // period))
            rises = " | ".join(f"+{100 * rise:.0f}%" for _, rise in told.rises)
            yield f"| {case.name} | {rule} | {told.peak_to_trough:.1f} | {rises} |"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _foot(notes: Sequence[str]) -> Iterator[str]:
    yield ""
    yield "## How to read it"
    yield ""
    yield "- accepted: counts of breaches that Kupiec's test does not reject at 95%; more is too low, fewer is ample."
    yield "- indep. p, both p: Christoffersen's tests of independence, and of coverage with it."
    yield "- zone: the Basel traffic light. Z₂: Acerbi and Székely; below −0.7 ES at 97.5% is rejected."
    yield "- rule: floor max(m, ¾m + ¼m_stress, m_10y), buffer m(1 + ¼·clip(m̄_slow/m, 0, 1)); greatest rises over days."
    for note in notes:
        yield f"- Note: {note}."


def draw(path: Path, cases: Sequence[Case], period: int) -> None:
    """Draw profit and loss of one series, what each model set aside, and breaches."""
    longest = max((case.result for case in cases), key=lambda r: r.n)
    title = f"{cases[0].series}: profit and loss per {name_duration(period)} against what was set aside"
    fig, axes = plotting.figure(title, "end of the period (UTC)", "% of the value")
    axes.plot(
        longest.times.astype("datetime64[s]"),
        -100 * longest.losses,
        color="#9aa4af",
        linewidth=0.5,
        label="profit and loss",
    )
    for i, case in enumerate(cases):
        r, colour = case.result, plotting.COLOURS[i % len(plotting.COLOURS)]
        days = r.times.astype("datetime64[s]")
        label = f"{case.name}, {100 * r.alpha:g}%: {r.breaches} of {r.n}"
        axes.plot(days, -100 * r.var, color=colour, linewidth=1.0, label=label)
        axes.plot(days[r.exceeded], -100 * r.losses[r.exceeded], "v", color=colour, markersize=4)
    axes.axhline(0, color="#5c6470", linewidth=0.8)
    fig.legend(loc="outside lower center", ncols=3, fontsize=8, title="markers: breaches", title_fontsize=8)
    plotting.save(fig, path)
