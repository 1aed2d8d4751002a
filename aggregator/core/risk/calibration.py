"""From price histories to risk parameters: the predictive layer (risk.md §5, §7).

What is estimated, from returns of a day and of a bar (an hour, say):

- volatility, per sqrt(year): m = the greater of EWMA (λ = 0.94) and the mean GARCH(1,1) forecast of the next 30 days,
  then ``max(m, ¾m + ¼m_stress, m_long)`` with m_stress the highest over a window of a year and m_long that of the whole
  history, so that calm weeks do not make cheap margins; and never below the volatility of bars in the last year, which
  thin books have more of than days show.
- jumps, by peaks over threshold: losses beyond five EWMA volatilities of their bar, the deepest of each day. The
  deepest quarter of the peaks is one atom, the others another, each with its rate per year and its mean loss. A third
  is the deepest fall within a day that the history knows, once in its length.
- the range R_u of an underlying: what a day moves, up or down, at 99.5%: of filtered returns, raised by the same rule.
- joint moves of the underlyings: filtered historical simulation at today's volatility after that rule.
- λ of an offset group: the square of the lowest correlation, over windows of 90 days of the last three years, of any
  pair in it.

Everything else of a policy stays. The new row is validated as a whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from aggregator.core.haircut import LARGEST_IMPACT, expected_shortfall, expected_shortfall_up
from aggregator.core.risk.procyclicality import floored
from aggregator.core.risk.volatility import ewma_variance, filtered_returns, fit_garch
from aggregator.domain.policy import HistoryRow, JumpRow, PolicyRow, ProvenanceRow
from aggregator.domain.report import AccountMargin
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

DAY = 86_400
FORECAST_DAYS = 30
STRESS_DAYS = 365
LEAST_DAYS = 120
"""Fewer daily returns are refused."""
JUMP_MULTIPLE = 5.0
RANGE_CONFIDENCE = 0.995
CORRELATION_DAYS, CORRELATION_MEMORY = 90, 1_095
HISTORY_DAYS = 500
LEAST_RATE = 0.05
"""Per year; rarer peaks make no atom of their own."""


class Sample(NamedTuple):
    """Returns of one series at one period, V₁/V₀ − 1, in time order."""

    series: str
    sha256: str  # of its file, 0x and 64 hex digits
    period: int  # seconds
    times: npt.NDArray[np.int64]  # (n,) ends
    returns: Floats  # (n,)
    missing: int  # bars of the series that are not there


class Estimate(NamedTuple):
    """What one series says. Volatilities are per sqrt(year)."""

    daily: Sample
    ewma: float
    garch: float
    garch_note: str  # why EWMA stands in for it; empty if it does not
    stress: float
    long_run: float
    noise: float  # of bars
    volatility: float
    jumps: tuple[JumpRow, ...]
    range: float
    filtered: Floats  # (n,) daily returns at today's volatility

    @property
    def last(self) -> int:
        """Unix seconds of the end of the newest return."""
        return int(self.daily.times[-1])


class Change(NamedTuple):
    """One parameter that a recalibration changes."""

    path: str  # e.g. ``assets.major.volatility``
    old: Any
    new: Any


class Recalibration(NamedTuple):
    """A parameter set, whole and valid, and what is new in it."""

    policy: PolicyRow
    changes: tuple[Change, ...]


def estimate(daily: Sample, fine: Sample | None = None) -> Estimate:
    """Estimate what one series says about its risk.

    Args:
        daily: returns of a day.
        fine: returns of a bar, for jumps and noise; the daily ones if None.

    Raises:
        ValueError: names the series and what is wrong with it.
    """
    if daily.period != DAY:
        raise ValueError(f"{daily.series}: returns of a day are expected, {daily.period} s given")
    if len(daily.returns) < LEAST_DAYS:
        raise ValueError(f"{daily.series}: {len(daily.returns)} daily returns; at least {LEAST_DAYS} are needed")
    fine = fine or daily
    for sample in (daily, fine):
        if not (np.isfinite(sample.returns) & (sample.returns > -1)).all():
            raise ValueError(f"{sample.series}: returns must be finite and above −1")
    r = np.log1p(daily.returns)
    year = math.sqrt(365)
    variance = ewma_variance(r)
    model = fit_garch(r)
    ewma = year * math.sqrt(float(variance[-1]))
    garch = year * math.sqrt(model.forecast(FORECAST_DAYS) / FORECAST_DAYS)
    long_run = year * math.sqrt(float(np.mean(r**2)))
    stress = year * math.sqrt(_highest_mean(r**2, STRESS_DAYS))
    bars = np.log1p(fine.returns[fine.times > fine.times[-1] - SECONDS_PER_YEAR])
    noise = math.sqrt(float(np.mean(bars**2)) * SECONDS_PER_YEAR / fine.period)
    level = max(float(floored(max(ewma, garch), stress, long_run)), noise)
    reach = _quantile(filtered_returns(r, variance))
    worst_year = _highest_quantile(r, STRESS_DAYS)
    moves = np.expm1(filtered_returns(r, variance) * (level / ewma if ewma > 0 else 1.0))
    return Estimate(
        daily,
        ewma,
        garch,
        model.reason,
        stress,
        long_run,
        noise,
        _up(level, 3),
        estimate_jumps(fine),
        _up(math.expm1(float(floored(reach, worst_year, _quantile(r)))), 3),
        moves,
    )


def estimate_jumps(sample: Sample) -> tuple[JumpRow, ...]:
    """Estimate downward jumps by peaks over threshold, and the deepest fall within a day.

    Threshold: :data:`JUMP_MULTIPLE` EWMA volatilities before the return. Of peaks within a day of each other the
    deepest counts. Rates are per year of what was observed, losses are means: see the module.
    """
    sd = np.sqrt(ewma_variance(sample.returns)[:-1])
    hits = np.flatnonzero((-sample.returns > JUMP_MULTIPLE * sd) & (sd > 0))
    peaks: list[float] = []
    last = -math.inf
    for hit in hits:
        loss, time = -float(sample.returns[hit]), int(sample.times[hit])
        if time - last <= DAY and peaks:
            peaks[-1] = max(peaks[-1], loss)
        else:
            peaks.append(loss)
        last = time
    years = len(sample.returns) * sample.period / SECONDS_PER_YEAR
    peaks.sort(reverse=True)
    deep = -(-len(peaks) // 4)
    rows: list[tuple[float, float]] = []
    for part in (peaks[deep:], peaks[:deep]):
        if part and len(part) / years >= LEAST_RATE:
            rows.append((len(part) / years, sum(part) / len(part)))
    rows.append((1 / years, deepest_fall(sample)))
    return tuple(
        JumpRow(rate=_up(rate, 2), recovery=round(max(0.0, 1 - _up(loss, 4)), 4)) for rate, loss in rows if loss > 0
    )


def deepest_fall(sample: Sample) -> float:
    """Return the greatest loss from any price to one at most a day later, as a part of the former."""
    path = np.concatenate([[0.0], np.cumsum(np.log1p(sample.returns))])
    width = min(DAY // sample.period, len(path) - 1) + 1
    before = sliding_window_view(path, width).max(axis=1)
    return max(0.0, -math.expm1(float((path[width - 1 :] - before).min())))


def stressed_correlation(first: Sample, second: Sample) -> float:
    """Return the lowest correlation of two series over windows of :data:`CORRELATION_DAYS` common days, at least 0.

    Of the last :data:`CORRELATION_MEMORY` common days: an asset's first years say little of the others'.

    Raises:
        ValueError: they have fewer days in common.
    """
    _, i, j = np.intersect1d(first.times, second.times, return_indices=True)
    if len(i) < CORRELATION_DAYS:
        raise ValueError(
            f"{first.series}, {second.series}: {len(i)} days in common; {CORRELATION_DAYS} are needed for a correlation"
        )
    x, y = first.returns[i][-CORRELATION_MEMORY:], second.returns[j][-CORRELATION_MEMORY:]
    least = 1.0
    for start in range(0, len(x) - CORRELATION_DAYS + 1, 5):
        a, b = x[start : start + CORRELATION_DAYS], y[start : start + CORRELATION_DAYS]
        spread = float(a.std() * b.std())
        least = min(least, float(np.mean((a - a.mean()) * (b - b.mean()))) / spread if spread > 0 else 0.0)
    return max(0.0, least)


def joint_history(estimates: Mapping[str, Estimate], confidence: float = 0.975) -> HistoryRow:
    """Put the filtered returns of common dates together, the newest :data:`HISTORY_DAYS` of them.

    Raises:
        ValueError: fewer than 100 dates are common to all.
    """
    feeds = tuple(sorted(estimates))
    common = estimates[feeds[0]].daily.times
    for feed in feeds[1:]:
        common = np.intersect1d(common, estimates[feed].daily.times)
    common = common[-HISTORY_DAYS:]
    if len(common) < 100:
        raise ValueError(f"history: {len(common)} days are common to {', '.join(feeds)}; at least 100 are needed")
    columns = []
    for feed in feeds:
        found = estimates[feed]
        columns.append(np.clip(found.filtered[np.isin(found.daily.times, common)], -0.95, 9.0).round(6))
    return HistoryRow(
        confidence=confidence, underlyings=feeds, moves=tuple(tuple(row) for row in np.column_stack(columns).tolist())
    )


def recalibrate(
    policy: PolicyRow,
    assets: Mapping[str, Sequence[Estimate]],
    underlyings: Mapping[str, Estimate],
    version: str | None = None,
) -> Recalibration:
    """Return the policy with what the estimates say, validated as a whole, and what is new in it.

    A row of assets that several series stand behind takes the highest volatility, and the jumps of the series with the
    greatest loss over a day. Jumps of other causes than the market's are no matter of price histories and stay; so does
    one of the market's that is deeper than any of the new ones: histories are short, and somebody knew of worse.

    Args:
        assets: estimates by row of ``policy.assets``; rows not among them stay.
        underlyings: by feed of ``policy.underlyings``; likewise.
        version: of the new policy; None for the next after the old one's.

    Raises:
        ValueError: a name is no row of the policy, or the new policy would be invalid; the message names the key.
    """
    document = policy.model_dump(mode="json")
    provenance: list[ProvenanceRow] = []
    for name, estimates in sorted(assets.items()):
        if name not in policy.assets:
            raise ValueError(f"assets.{name}: is no row of the policy")
        row = policy.assets[name]
        worst = max(estimates, key=lambda e: expected_shortfall(([float(DAY)], [1.0]), e.volatility, e.jumps, 0.999))
        deepest = min((jump.recovery for jump in worst.jumps), default=1.0)
        kept = [jump for jump in row.jumps if jump.cause != "market" or jump.recovery < deepest]
        document["assets"][name]["volatility"] = max(e.volatility for e in estimates)
        document["assets"][name]["jumps"] = [jump.model_dump(mode="json") for jump in (*worst.jumps, *kept)]
        provenance += [_provenance(e.daily, f"assets.{name}") for e in estimates]
    for feed, found in sorted(underlyings.items()):
        if feed not in policy.underlyings:
            raise ValueError(f"underlyings.{feed}: is no row of the policy")
        document["underlyings"][feed]["range"] = found.range
        provenance.append(_provenance(found.daily, f"underlyings.{feed}"))
    for name in policy.groups:
        members = [found for feed, found in underlyings.items() if policy.underlyings[feed].group == name]
        if len(members) == sum(row.group == name for row in policy.underlyings.values()) and len(members) > 1:
            lowest = min(stressed_correlation(a.daily, b.daily) for i, a in enumerate(members) for b in members[:i])
            document["groups"][name]["offset"] = math.floor(lowest**2 * 1000) / 1000
    if underlyings and set(underlyings) == set(policy.underlyings):
        confidence = policy.history.confidence if policy.history else 0.975
        document["history"] = joint_history(underlyings, confidence).model_dump(mode="json")
    estimated = {row.target for row in provenance}
    provenance = [row for row in policy.provenance if row.target not in estimated] + provenance
    document["provenance"] = [row.model_dump(mode="json") for row in provenance]
    document["version"] = version or next_version(policy.version)
    made = PolicyRow.model_validate(document)
    old, new = (dict(_flat(row.model_dump(mode="json"))) for row in (policy, made))
    changes = [
        Change(path, old.get(path), new.get(path)) for path in sorted({*old, *new}) if old.get(path) != new.get(path)
    ]
    return Recalibration(made, tuple(changes))


def next_version(version: str) -> str:
    """Return the name of the next version: a number at the end goes up, else ``-2`` is appended."""
    found = re.fullmatch(r"(.*?)(\d+)", version)
    return f"{found[1]}{int(found[2]) + 1:0{len(found[2])}d}" if found else f"{version}-2"


def _provenance(sample: Sample, target: str) -> ProvenanceRow:
    first, last = int(sample.times[0]) - sample.period, int(sample.times[-1])
    return ProvenanceRow(
        series=sample.series,
        target=target,
        sha256=sample.sha256,
        first=first,
        last=last,
        bars=len(sample.returns),
        missing=sample.missing,
    )


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every parameter; lists count as one value, and a history as its size."""
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, item in value.items():
        if path == "" and key == "provenance":
            continue
        if path == "history" and key == "moves":
            yield "history.moves", f"{len(item)} dates"
            continue
        yield from _flat(item, f"{path}.{key}" if path else str(key))


def _quantile(r: Floats) -> float:
    return float(np.quantile(np.abs(r), RANGE_CONFIDENCE))


def _windows(n: int, length: int) -> range:
    return range(0, max(1, n - length + 1), 5)


def _highest_mean(values: Floats, length: int) -> float:
    return max(float(values[start : start + length].mean()) for start in _windows(len(values), length))


def _highest_quantile(r: Floats, length: int) -> float:
    return max(_quantile(r[start : start + length]) for start in _windows(len(r), length))


def _up(value: float, decimals: int) -> float:
    """Round up, so that rounding never makes a margin smaller."""
    scale: float = 10.0**decimals
    return math.ceil(value * scale - 1e-9) / scale


class Effect(NamedTuple):
    """What a new policy changes for one account, 1e-8 USD, about: see :func:`estimate_effect`."""

    account: str
    free_before: int
    free_after: int
    excess_before: int  # maintenance excess at ``low``
    excess_after: int


def estimate_effect(margin: AccountMargin, old: PolicyRow, new: PolicyRow, rows: Mapping[str, str]) -> Effect:
    """Estimate what an account's stored margin would be under another policy.

    Market, policy and liquidity haircuts and liability weights of every position are exchanged; prices, horizons, exit
    gates and shares stay, and so does what perps and options require. A stored market haircut is that of a whole law
    of horizons: it moves by what the haircut at the mean horizon moves.

    Args:
        rows: row of ``assets`` by CAIP-19 id of what a position is paid in; positions of others stay.
    """
    shift = [0.0, 0.0]
    for c in margin.components:
        name = rows.get(c.position.unit, "")
        if c.contract is not None or name not in old.assets or name not in new.assets:
            continue
        before, after = old.assets[name], new.assets[name]
        debt = c.position.side == "debt"
        levels = (
            (c.initial, c.counted_initial, c.liability_weight_initial, before.initial, after.initial),
            (
                c.maintenance,
                c.counted_maintenance,
                c.liability_weight_maintenance,
                before.maintenance,
                after.maintenance,
            ),
        )
        for level, (cut, counted, weight, was, will) in enumerate(levels):
            if not counted:
                continue
            nodes = ([c.horizon], [1.0])
            if debt:
                rise = expected_shortfall_up(nodes, after.volatility, will.confidence)
                rise -= expected_shortfall_up(nodes, before.volatility, was.confidence)
                factor = (1 + max(0.0, cut.market + rise)) / (1 + cut.market) * will.liability_weight / weight
                shift[level] -= counted * (factor - 1)
                continue
            fall = expected_shortfall(nodes, after.volatility, after.jumps, will.confidence)
            fall -= expected_shortfall(nodes, before.volatility, before.jumps, was.confidence)
            scale = (after.impact * after.volatility / math.sqrt(after.daily_volume)) / max(
                1e-300, before.impact * before.volatility / math.sqrt(before.daily_volume)
            )
            depth = min(LARGEST_IMPACT, cut.liquidity / (1 - cut.liquidity) * scale)
            kept = (1 - min(1.0, max(0.0, cut.market + fall))) * (1 - will.haircut) / (1 + depth)
            factor = kept / ((1 - cut.market) * (1 - cut.policy) * (1 - cut.liquidity))
            shift[level] += counted * (factor - 1)
    free, excess = margin.free_collateral, margin.maintenance_excess.low
    return Effect(margin.account, free, free + math.floor(shift[0]), excess, excess + math.floor(shift[1]))
