"""Backtests: did losses exceed what was set aside as often as promised, and not in clusters (risk.md §8).

An *exceedance* is a loss beyond the day's VaR (or haircut). ``0·ln 0 = 0`` throughout.

Sources: Kupiec (1995) for proportion of failures; Christoffersen (1998) for independence and conditional coverage;
BCBS, *Supervisory framework for the use of backtesting* (January 1996), Table 2, and MAR33 (FRTB) for the zones;
Acerbi and Székely (2014) for ES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import bdtr, chdtrc, chdtri, xlogy

from aggregator.core.risk.tails import expected_shortfall, normal_es, normal_var, require_confidence, value_at_risk
from aggregator.core.risk.volatility import SEED, ewma_variance
from aggregator.domain.units import Floats

Zone = Literal["green", "yellow", "red"]
ZONES: tuple[Zone, ...] = ("green", "yellow", "red")
YELLOW, RED = 0.95, 0.9999
"""Cumulative probabilities at which the zones begin."""
PLUS_FACTORS = (0.0, 0.0, 0.0, 0.0, 0.0, 0.40, 0.50, 0.65, 0.75, 0.85, 1.0)
"""BCBS 1996, by exceedances in 250 days at 99%; 10 stands for 10 and more."""
MULTIPLIERS = (1.50, 1.50, 1.50, 1.50, 1.50, 1.70, 1.76, 1.83, 1.88, 1.92, 2.00)
"""FRTB (MAR33), likewise."""
_YEAR, _LEVEL = 250, 0.01


class LikelihoodTest(NamedTuple):
    """A likelihood ratio, and the chance of one as great if the model is right."""

    statistic: float
    pvalue: float

    def passes(self, confidence: float = 0.95) -> bool:
        """Say whether the model is not rejected at this test confidence."""
        return self.pvalue > 1 - confidence


class Christoffersen(NamedTuple):
    """Tests of when exceedances happen."""

    independence: LikelihoodTest  # ~ χ²₁
    conditional: LikelihoodTest  # coverage and independence together, ~ χ²₂


class TrafficLight(NamedTuple):
    """The supervisor's view of a number of exceedances."""

    cumulative: float  # P(at most so many | the model is right)
    zone: int  # 0 green, 1 yellow, 2 red
    plus_factor: float  # on the multiplier of 3 of BCBS 1996
    multiplier: float  # FRTB

    @property
    def colour(self) -> Zone:
        """The zone's name."""
        return ZONES[self.zone]


def _require_counts(n: int, x: int, p: float) -> None:
    if not 0 < p < 1:
        raise ValueError(f"p: {p!r} is no chance between 0 and 1, both excluded")
    if n < 1:
        raise ValueError(f"n: {n!r} observations; at least one is needed")
    if not 0 <= x <= n:
        raise ValueError(f"x: {x!r} exceedances of {n} observations")


def _coverage(n: int, x: Floats | float, p: float) -> Floats:
    """Return LR_uc for one or many counts."""
    count = np.asarray(x, dtype=np.float64)
    rest, rate = n - count, count / n
    ratio = 2 * (xlogy(count, rate) + xlogy(rest, 1 - rate) - xlogy(count, p) - xlogy(rest, 1 - p))
    return np.maximum(np.asarray(ratio, dtype=np.float64), 0.0)


def kupiec(n: int, x: int, p: float) -> LikelihoodTest:
    """Test the proportion of failures.

    ``LR_uc = 2[x ln π̂ + (n−x) ln(1−π̂) − x ln p − (n−x) ln(1−p)] ~ χ²₁``, π̂ = x/n.

    Args:
        n: observations.
        x: exceedances.
        p: promised rate of exceedances, 1 − α.
    """
    _require_counts(n, x, p)
    ratio = float(_coverage(n, x, p))
    return LikelihoodTest(ratio, float(chdtrc(1, ratio)))


def kupiec_region(n: int, p: float, confidence: float = 0.95) -> tuple[int, int]:
    """Return (lo, hi): the model is not rejected iff ``lo < x < hi``, that is iff LR_uc < χ²₁(confidence).

    lo is −1 where even no exceedance is no reason to reject, hi n + 1 where nothing but exceedances is none. Where
    every count is rejected hi = lo + 1.
    """
    _require_counts(n, 0, p)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence!r} must be between 0 and 1, both excluded")
    ratios = _coverage(n, np.arange(n + 1, dtype=np.float64), p)
    accepted = np.flatnonzero(ratios < float(chdtri(1, 1 - confidence)))
    if not len(accepted):
        nearest = int(ratios.argmin())
        return nearest, nearest + 1
    return int(accepted[0]) - 1, int(accepted[-1]) + 1


def christoffersen(n: int, x: int, p: float, n00: int, n01: int, n10: int, n11: int) -> Christoffersen:
    """Test independence, and coverage with it.

    ``LR_ind = 2[n00 ln(1−π01) + n01 ln π01 + n10 ln(1−π11) + n11 ln π11 − (n00+n10) ln(1−π) − (n01+n11) ln π] ~ χ²₁``
    and ``LR_cc = LR_uc + LR_ind ~ χ²₂``: all n observations in LR_uc, the n − 1 transitions in LR_ind.

    Args:
        n, x, p: as for :func:`kupiec`.
        n00, n01, n10, n11: transitions; n01 = no exceedance followed by one.
    """
    if min(n00, n01, n10, n11) < 0:
        raise ValueError("n00, n01, n10, n11: must not be negative")
    calm, hit = n00 + n01, n10 + n11
    after_calm = n01 / calm if calm else 0.0
    after_hit = n11 / hit if hit else 0.0
    overall = (n01 + n11) / (calm + hit) if calm + hit else 0.0
    free = xlogy(n00, 1 - after_calm) + xlogy(n01, after_calm) + xlogy(n10, 1 - after_hit) + xlogy(n11, after_hit)
    ratio = max(0.0, float(2 * (free - xlogy(n00 + n10, 1 - overall) - xlogy(n01 + n11, overall))))
    both = kupiec(n, x, p).statistic + ratio
    return Christoffersen(LikelihoodTest(ratio, float(chdtrc(1, ratio))), LikelihoodTest(both, float(chdtrc(2, both))))


def transitions(exceeded: npt.ArrayLike) -> tuple[int, int, int, int]:
    """Count (n00, n01, n10, n11) in a series of exceedances."""
    hits = np.asarray(exceeded, dtype=np.bool_)
    before, after = hits[:-1], hits[1:]
    pairs = ((~before, ~after), (~before, after), (before, ~after), (before, after))
    n00, n01, n10, n11 = (int(np.count_nonzero(a & b)) for a, b in pairs)
    return n00, n01, n10, n11


def traffic_light(n: int, x: int, p: float = _LEVEL) -> TrafficLight:
    """Return the zone of x exceedances in n observations: yellow if P(at most x) ≥ 95%, red if ≥ 99.99%.

    Plus factor and multiplier are the regulator's, for 250 observations at 99%. For others they are those of the count
    in 250 that is as unlikely (the next lower one, within the same zone).
    """
    _require_counts(n, x, p)
    cumulative = float(bdtr(x, n, p))
    zone = int(cumulative >= YELLOW) + int(cumulative >= RED)
    usual = bdtr(np.arange(len(PLUS_FACTORS)), _YEAR, _LEVEL)
    alike = int(np.count_nonzero(usual <= cumulative)) - 1
    first, last = ((0, 4), (5, 9), (10, 10))[zone]
    row = min(max(alike, first), last)
    return TrafficLight(cumulative, zone, PLUS_FACTORS[row], MULTIPLIERS[row])


def zone_bounds(n: int, p: float = _LEVEL) -> tuple[int, int]:
    """Return the fewest exceedances of n that are yellow, and red (n + 1 if none are)."""
    _require_counts(n, 0, p)
    cumulative = bdtr(np.arange(n + 1), n, p)
    first = [int(np.searchsorted(cumulative, level)) for level in (YELLOW, RED)]
    return first[0], first[1]


Model = Literal["haircut", "ewma", "fhs", "normal"]
MODELS: tuple[Model, ...] = ("haircut", "ewma", "fhs", "normal")
Z2_CRITICAL = -0.70
"""Acerbi and Székely (2014), Table 3: below it ES at 97.5% is rejected at 5%, whatever the tails, about."""
_ROWS = 2_000  # of the rolling window at a time: what bounds memory


class Forecasts(NamedTuple):
    """What was set aside before every period, as positive parts of the value; each of shape (n,)."""

    var: Floats
    es: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Backtest:
    """One model against one history. Losses, VaR and ES are parts of the value, losses positive."""

    model: Model
    alpha: float
    times: npt.NDArray[np.int64]  # (n,) Unix seconds, ends of the periods
    losses: Floats  # (n,)
    var: Floats  # (n,) what an exceedance exceeds; the haircut itself for ``haircut``
    es: Floats  # (n,)
    exceeded: npt.NDArray[np.bool_]  # (n,)
    coverage: LikelihoodTest
    region: tuple[int, int]
    clusters: Christoffersen
    light: TrafficLight
    z2: float  # 0 if ES is right, negative if too low; see Z2_CRITICAL

    @property
    def n(self) -> int:
        """Periods."""
        return len(self.losses)

    @property
    def breaches(self) -> int:
        """Exceedances."""
        return int(np.count_nonzero(self.exceeded))

    @property
    def expected(self) -> float:
        """Exceedances promised, n(1−α)."""
        return self.n * (1 - self.alpha)

    @property
    def worst(self) -> int:
        """Index of the loss that went farthest beyond what was set aside (or came nearest)."""
        return int(np.argmax(self.losses - self.var))

    @property
    def covers(self) -> bool:
        """Say that exceedances are not more than promised, as far as the test can tell; fewer are no fault here."""
        return self.breaches < self.region[1]


def _require_window(model: Model, window: int) -> None:
    # The first variance of EWMA is that of its first SEED returns: a forecast for one of these would know it.
    least = 0 if model == "haircut" else SEED
    if window < least:
        raise ValueError(f"window: {window!r} periods; at least {least} are needed, which EWMA starts from")


def forecast(
    returns: Floats, model: Model, alpha: float, window: int, charge: tuple[float, float] | None = None
) -> Forecasts:
    """Forecast VaR and ES of every return from ``window`` on, each from the returns before it alone.

    ``normal``: mean and standard deviation of the window. ``ewma``: λ = 0.94, mean 0, normal. ``fhs``: the window's
    returns over their own EWMA volatility, times today's; VaR and ES of that sample. ``haircut``: constant.

    Args:
        returns: shape (m,), V₁/V₀ − 1.
        charge: (VaR, ES) of ``haircut``.

    Returns:
        Each of shape (m − window,).

    Raises:
        ValueError: the window is shorter than what EWMA starts from, or ``charge`` is missing.
    """
    _require_window(model, window)
    count = len(returns) - window
    if model == "haircut":
        if charge is None:
            raise ValueError("charge: the haircut model needs what is charged")
        return Forecasts(np.full(count, charge[0]), np.full(count, charge[1]))
    if model == "normal":
        views = sliding_window_view(returns, window)[:count]
        mean, sd = views.mean(axis=1), views.std(axis=1, ddof=1)
        return Forecasts(sd * normal_var(1.0, alpha) - mean, sd * normal_es(1.0, alpha) - mean)
    variance = ewma_variance(returns)[:-1]
    sd = np.sqrt(variance)
    if model == "ewma":
        return Forecasts(sd[window:] * normal_var(1.0, alpha), sd[window:] * normal_es(1.0, alpha))
    shocks = np.divide(-returns, sd, out=np.zeros_like(sd), where=sd > 0)
    samples = sliding_window_view(shocks, window)[:count]
    parts = [samples[start : start + _ROWS] for start in range(0, count, _ROWS)]
    quantile = np.concatenate([value_at_risk(part, alpha) for part in parts])
    mean_beyond = np.concatenate([expected_shortfall(part, alpha) for part in parts])
    return Forecasts(sd[window:] * quantile, sd[window:] * mean_beyond)


def run_backtest(
    returns: npt.ArrayLike,
    times: npt.ArrayLike,
    model: Model,
    alpha: float,
    window: int,
    *,
    charge: tuple[float, float] | None = None,
    losses: npt.ArrayLike | None = None,
) -> Backtest:
    """Roll a model over a history and test what it set aside.

    Args:
        returns: shape (m,), V₁/V₀ − 1 per period, in time order; what the model sees.
        times: shape (m,), Unix seconds.
        alpha: promised confidence.
        window: periods that are seen before the first forecast; the first that is tested comes after them. A haircut
            sees none, and may be tested from the first: 0.
        charge: (what an exceedance exceeds, ES) of ``haircut``.
        losses: shape (m,), what is tested if not −returns: the worst within each period, say.

    Raises:
        ValueError: names the argument.
    """
    seen = np.asarray(returns, dtype=np.float64)
    when = np.asarray(times, dtype=np.int64)
    realised = -seen if losses is None else np.asarray(losses, dtype=np.float64)
    if seen.ndim != 1 or not np.isfinite(seen).all() or not (seen > -1 - 1e-12).all():
        raise ValueError("returns: one finite series above −1 is expected")
    if when.shape != seen.shape or realised.shape != seen.shape or not np.isfinite(realised).all():
        raise ValueError("times, losses: one finite value for each of returns is expected")
    require_confidence(alpha)
    _require_window(model, window)
    if len(seen) <= window + 1:
        left = f"{max(0, len(seen) - window)} of {len(seen)}"
        raise ValueError(f"window: {window} periods leave {left} to test; choose a shorter window or a longer history")
    var, es = forecast(seen, model, alpha, window, charge)
    tested = realised[window:]
    exceeded = tested > var
    n, x, p = len(tested), int(np.count_nonzero(exceeded)), 1 - alpha
    ratio = np.divide(tested, es, out=np.zeros(n), where=es > 0)
    return Backtest(
        model,
        alpha,
        when[window:],
        tested,
        var,
        es,
        exceeded,
        kupiec(n, x, p),
        kupiec_region(n, p),
        christoffersen(n, x, p, *transitions(exceeded)),
        traffic_light(n, x, p),
        1 - float(ratio[exceeded].sum()) / (n * p),
    )
