"""From price histories to risk parameters: the predictive layer (risk.md §5, §7).

What is estimated, from returns of a day and of a bar (an hour, say):

- volatility, per sqrt(year): m = the greater of EWMA (λ = 0.94) and the mean GARCH(1,1) forecast of the next 30 days,
  then ``max(m, ¾m + ¼m_stress, m_long)`` with m_stress the highest over a window of a year and m_long that of the whole
  history, so that calm weeks do not make cheap margins; and never below the volatility of bars, in the last year and in
  the whole history, which thin books have more of than days show.
- jumps, by peaks over threshold: losses beyond five EWMA volatilities of their bar, the deepest of each day. The
  deepest quarter of the peaks is one atom, the others another, each with its rate per year and its mean loss. A third
  is the deepest fall within a day that the history knows, once in its length. What happened while bars are missing
  counts as one move, however long it took: nobody could trade in it.
- the range R_u of an underlying: what a day moves, up or down, at 99.5%: of filtered returns, raised by the same rule.
- joint moves of the underlyings: filtered historical simulation at today's volatility after that rule, or draws from a
  t copula over such margins with Pareto tails (``core.risk.copula``).
- λ of an offset group: the square of the lowest correlation, over windows of 90 days of the last three years, of any
  pair in it.

Everything else of a policy stays. The new row is validated as a whole, and every change is told with the direction in
which it moves what is required.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from aggregator.core.haircut import LARGEST_IMPACT, expected_shortfall, expected_shortfall_up
from aggregator.core.risk.copula import fit_copula, fit_margin, simulate_moves
from aggregator.core.risk.procyclicality import floored
from aggregator.core.risk.tails import expected_shortfall as shortfall_of
from aggregator.core.risk.volatility import ewma_variance, filtered_returns, fit_garch
from aggregator.domain.policy import MOST_JUMPS, AssetPolicyRow, HistoryRow, JumpRow, PolicyRow, ProvenanceRow
from aggregator.domain.report import AccountMargin
from aggregator.domain.units import SECONDS_PER_YEAR, Floats
from proofs.hashing import keccak256

DAY = 86_400
FORECAST_DAYS = 30
STRESS_DAYS = 365
LEAST_DAYS = 120
"""Fewer daily returns are refused."""
JUMP_MULTIPLE = 5.0
RANGE_CONFIDENCE = 0.995
CORRELATION_DAYS, CORRELATION_MEMORY = 90, 1_095
HISTORY_DAYS = 500
LEAST_COMMON = 100
DRAWS = 2_048
"""Joint moves that are drawn from a copula; a power of two."""
Moves = Literal["fhs", "copula"]
EFFECT_HORIZONS = (120, 900, 3_600, 4 * 3_600, DAY, 3 * DAY, 7 * DAY)
"""Seconds at which a new class is compared with the old one."""
EFFECT_ROUNDING = 1e-9
"""A requirement that moves by no more, as a part of the value, is the same."""
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
    gaps: Floats | None = None  # (n,) move over missing bars just before each return; None = there are none


class Estimate(NamedTuple):
    """What one series says. Volatilities are per sqrt(year)."""

    daily: Sample
    ewma: float
    garch: float
    garch_note: str  # why EWMA stands in for it; empty if it does not
    stress: float
    long_run: float
    noise: float  # of bars: in the last year, or in all if that is more
    volatility: float
    jumps: tuple[JumpRow, ...]
    range: float
    filtered: Floats  # (n,) daily returns at today's volatility

    @property
    def last(self) -> int:
        """Unix seconds of the end of the newest return."""
        return int(self.daily.times[-1])


Direction = Literal["higher", "lower", "higher and lower", "same"]


class Change(NamedTuple):
    """One parameter that a recalibration changes, and which way requirements go with the row it belongs to.

    Parameters of one row are charged together: σ and jumps of a class are one law. So all changes of a row carry the
    effect of the whole row; see :func:`compare_policies`.
    """

    path: str  # e.g. ``assets.major.volatility``
    old: Any
    new: Any
    initial: Direction = "same"
    maintenance: Direction = "same"

    @property
    def loosens(self) -> bool:
        """Say whether something is charged less than before, at either level."""
        return "lower" in self.initial or "lower" in self.maintenance


class Recalibration(NamedTuple):
    """A parameter set, whole and valid, and what is new in it."""

    policy: PolicyRow
    changes: tuple[Change, ...]

    @property
    def looser(self) -> tuple[str, ...]:
        """Paths of the changes that loosen."""
        return tuple(change.path for change in self.changes if change.loosens)


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
        for moves in (sample.returns, _gaps(sample)):
            if moves.shape != sample.times.shape or not (np.isfinite(moves) & (moves > -1)).all():
                raise ValueError(f"{sample.series}: returns and gaps must be finite and above −1, one for each time")
    r = np.log1p(daily.returns)
    year = math.sqrt(365)
    variance = ewma_variance(r)
    model = fit_garch(r)
    ewma = year * math.sqrt(float(variance[-1]))
    garch = year * math.sqrt(model.forecast(FORECAST_DAYS) / FORECAST_DAYS)
    long_run = year * math.sqrt(float(np.mean(r**2)))
    stress = year * math.sqrt(_highest_mean(r**2, STRESS_DAYS))
    bars = np.log1p(fine.returns) ** 2
    lately = float(bars[fine.times > fine.times[-1] - SECONDS_PER_YEAR].mean())
    noise = math.sqrt(max(lately, float(bars.mean())) * SECONDS_PER_YEAR / fine.period)
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
    moves = np.column_stack([_gaps(sample), sample.returns])  # what was missed came first
    lost = -moves.min(axis=1)
    peaks: list[float] = []
    last = -math.inf
    for hit in np.flatnonzero((lost > JUMP_MULTIPLE * sd) & (sd > 0)):
        loss, time = float(lost[hit]), int(sample.times[hit])
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
    """Return the greatest loss from any price to one at most a day later, as a part of the former.

    A move over missing bars counts where it happened: between the prices on either side, which are as far apart in time
    as they were; but never farther than a day, so that a crash within a longer outage counts too.
    """
    if not len(sample.returns):
        return 0.0
    width = max(1, DAY // sample.period)
    steps = np.diff(sample.times, prepend=sample.times[0] - sample.period) // sample.period  # 1 = nothing is missing
    away = np.minimum(steps - 1, width)
    # Where every return begins and ends, on a grid of periods; what is missing stays empty.
    end = np.cumsum(away + 1)
    logs = np.cumsum(np.column_stack([np.log1p(_gaps(sample)), np.log1p(sample.returns)]).ravel())
    path = np.full(int(end[-1]) + 1, -np.inf)
    path[end - 1], path[end] = logs[::2], logs[1::2]
    before = sliding_window_view(np.concatenate([np.full(width, -np.inf), path]), width + 1).max(axis=1)
    known = np.isfinite(path)
    return max(0.0, -math.expm1(float((path[known] - before[known]).min())))


def _gaps(sample: Sample) -> Floats:
    return np.zeros(len(sample.returns)) if sample.gaps is None else sample.gaps


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


def joint_history(
    estimates: Mapping[str, Estimate], confidence: float = 0.975, moves: Moves = "fhs", seed: int = 1
) -> HistoryRow:
    """Make joint moves of the underlyings out of their filtered returns of common dates.

    ``fhs`` takes the newest :data:`HISTORY_DAYS` dates as they are. ``copula`` fits margins with Pareto tails and a t
    copula to all of them, and draws :data:`DRAWS` moves, which reach farther than the dates do.

    Args:
        estimates: by feed.
        confidence: of the ES that will be taken over them.
        seed: of the draws of ``copula``; the same gives the same moves.

    Raises:
        ValueError: fewer than 100 dates are common to all, or margins cannot be fitted.
    """
    feeds = tuple(sorted(estimates))
    common = estimates[feeds[0]].daily.times
    for feed in feeds[1:]:
        common = np.intersect1d(common, estimates[feed].daily.times)
    if len(common) < LEAST_COMMON:
        raise ValueError(
            f"history: {len(common)} days are common to {', '.join(feeds)}; at least {LEAST_COMMON} are needed"
        )
    joint = np.column_stack([estimates[feed].filtered[np.isin(estimates[feed].daily.times, common)] for feed in feeds])
    if moves == "copula":
        logs = np.log1p(np.maximum(joint, -0.95))
        try:
            margins = [fit_margin(logs[:, i]) for i in range(len(feeds))]
        except ValueError as error:
            raise ValueError(f"history: {error}") from None
        joint = simulate_moves(fit_copula(logs), margins, DRAWS, seed)
    else:
        joint = joint[-HISTORY_DAYS:]
    rows = np.clip(joint, -0.95, 9.0).round(6).tolist()
    return HistoryRow(confidence=confidence, underlyings=feeds, moves=tuple(map(tuple, rows)))


def merge_jumps(jumps: Sequence[JumpRow], most: int = MOST_JUMPS) -> tuple[JumpRow, ...]:
    """Return at most ``most`` jumps that lose at least as much as those given; the same in any order.

    While there are too many, two of the same cause next to each other in depth become one that comes as often as both
    and goes as deep as the deeper; of all such pairs the one where that adds the least expected loss per year.

    Raises:
        ValueError: there are more causes than ``most``, or rates that add up beyond what a jump may have.
    """
    rows = sorted(jumps, key=lambda jump: (jump.cause, jump.recovery, jump.rate))
    while len(rows) > most:
        pairs = [i for i, (a, b) in enumerate(pairwise(rows)) if a.cause == b.cause]
        if not pairs:
            raise ValueError(f"jumps: {len(rows)} of different causes; at most {most} fit")
        at = min(pairs, key=lambda i: (rows[i + 1].rate * (rows[i + 1].recovery - rows[i].recovery), i))
        deep, shallow = rows[at : at + 2]
        rows[at : at + 2] = [JumpRow(rate=deep.rate + shallow.rate, recovery=deep.recovery, cause=deep.cause)]
    return tuple(sorted(rows, key=lambda jump: (jump.cause != "market", jump.cause, -jump.recovery, jump.rate)))


def recalibrate(
    policy: PolicyRow,
    assets: Mapping[str, Sequence[Estimate]],
    underlyings: Mapping[str, Estimate],
    version: str | None = None,
    *,
    moves: Moves = "fhs",
    seed: int = 1,
) -> Recalibration:
    """Return the policy with what the estimates say, validated as a whole, and what is new in it.

    A row of assets that several series stand behind takes the highest volatility, and the jumps of the series with the
    greatest loss over a day. Jumps of other causes than the market's are no matter of price histories and stay; so does
    one of the market's that is deeper than any of the new ones: histories are short, and somebody knew of worse. Where
    that makes too many, :func:`merge_jumps` makes them fewer and never milder. A deeper jump only goes by hand.

    Args:
        assets: estimates by row of ``policy.assets``; rows not among them stay.
        underlyings: by feed of ``policy.underlyings``; likewise.
        version: of the new policy; None for the next after the old one's.
        moves, seed: as for :func:`joint_history`.

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
        jumps = merge_jumps((*worst.jumps, *kept))
        document["assets"][name]["jumps"] = [jump.model_dump(mode="json") for jump in jumps]
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
        document["history"] = joint_history(underlyings, confidence, moves, seed).model_dump(mode="json")
        of = {"method": moves, "seed": seed if moves == "copula" else None}
        sources = (found for _, found in sorted(underlyings.items()))
        provenance += [_provenance(found.daily, "history").model_copy(update=of) for found in sources]
    estimated = {row.target for row in provenance}
    provenance = [row for row in policy.provenance if row.target not in estimated] + _distinct(provenance)
    document["provenance"] = [row.model_dump(mode="json") for row in provenance]
    document["version"] = version or next_version(policy.version)
    made = PolicyRow.model_validate(document)
    return Recalibration(made, compare_policies(policy, made))


def compare_policies(old: PolicyRow, new: PolicyRow) -> tuple[Change, ...]:
    """Return every parameter in which two policies differ, by path, and which way requirements go with it.

    - ``assets.<class>``: market haircuts of collateral and weights of debts by the row as a whole, at
      :data:`EFFECT_HORIZONS` from two minutes to a week.
    - ``underlyings.<feed>.range``: up or down with R_u, for what is not hedged.
    - ``groups.<name>.offset``: the other way from λ.
    - ``history``: ES of a dollar long and short of each underlying, and of each two against and with each other.

    Other parameters are not judged: ``same``, and where somebody changes them by hand, that is theirs to know.
    """
    before, after = (dict(_flat(row.model_dump(mode="json"))) for row in (old, new))
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    judged: dict[str, tuple[Direction, Direction]] = {}
    for name in old.assets.keys() & new.assets.keys():
        charges = [_charges(row.assets[name]) for row in (old, new)]
        judged[f"assets.{name}."] = _direction(charges[0][0], charges[1][0]), _direction(charges[0][1], charges[1][1])
    for feed in old.underlyings.keys() & new.underlyings.keys():
        ranges = [np.array([row.underlyings[feed].range]) for row in (old, new)]
        judged[f"underlyings.{feed}.range"] = (_direction(*ranges),) * 2
    for group in old.groups.keys() & new.groups.keys():
        kept = [np.array([1 - row.groups[group].offset]) for row in (old, new)]
        judged[f"groups.{group}."] = (_direction(*kept),) * 2
    judged["history"] = (_history_direction(old.history, new.history),) * 2
    changes = []
    for path in changed:
        effect = next((effect for start, effect in judged.items() if path.startswith(start)), ("same", "same"))
        changes.append(Change(path, before.get(path), after.get(path), *effect))
    return tuple(changes)


def _charges(row: AssetPolicyRow) -> tuple[Floats, Floats]:
    """Return what is charged of a dollar of collateral and of debt, initial and maintenance, over all horizons."""
    levels = []
    for level in (row.initial, row.maintenance):
        nodes = [([float(horizon)], [1.0]) for horizon in EFFECT_HORIZONS]
        fall = [expected_shortfall(node, row.volatility, row.jumps, level.confidence) for node in nodes]
        rise = [expected_shortfall_up(node, row.volatility, level.confidence) for node in nodes]
        whole = [1 - (1 - cut) * (1 - level.haircut) for cut in fall]
        levels.append(np.array(whole + [(1 + up) * level.liability_weight for up in rise]))
    return levels[0], levels[1]


def _direction(old: Floats, new: Floats) -> Direction:
    higher, lower = (bool((diff > EFFECT_ROUNDING).any()) for diff in (new - old, old - new))
    if higher and lower:
        return "higher and lower"
    return "higher" if higher else "lower" if lower else "same"


def _history_direction(old: HistoryRow | None, new: HistoryRow | None) -> Direction:
    if old is None or new is None:
        return "same" if old is new else "higher" if old is None else "lower"
    feeds = sorted({*old.underlyings, *new.underlyings})
    unit = np.eye(len(feeds))
    pairs = [unit[i] + sign * unit[j] for i in range(len(feeds)) for j in range(i) for sign in (1, -1)]
    needs = []
    for row in (old, new):
        moves = np.zeros((len(row.moves), len(feeds)))  # an underlying that a history does not know stands still in it
        moves[:, [feeds.index(feed) for feed in row.underlyings]] = row.moves
        needs.append(
            np.array([float(shortfall_of(s * moves @ way, row.confidence)) for way in (*unit, *pairs) for s in (1, -1)])
        )
    return _direction(*needs)


def next_version(version: str) -> str:
    """Return the name of the next version: a number at the end goes up, else ``-2`` is appended."""
    found = re.fullmatch(r"(.*?)(\d+)", version)
    return f"{found[1]}{int(found[2]) + 1:0{len(found[2])}d}" if found else f"{version}-2"


def _distinct(rows: Sequence[ProvenanceRow]) -> list[ProvenanceRow]:
    return list(dict.fromkeys(rows))


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
            mark = keccak256(json.dumps(item).encode()).hex()[:8]
            yield "history.moves", f"{len(item)} moves, {mark}…"
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
