"""Margins that do not rise most when it hurts most (risk.md §7): floors, buffer and the measures of how they rise.

Sources: Regulation (EU) 153/2013 (EMIR RTS), Art. 28(1): (a) a buffer of 25%, (b) at least 25% weight on stressed
observations, (c) no less than volatility over ten years gives; Murphy, Vasios and Vause (2014) for the measures.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import minimum_filter1d

from aggregator.domain.units import Floats

STRESS_WEIGHT = 0.25
BUFFER = 0.25
HORIZONS = (1, 5, 30)
"""Days over which rises are reported."""


def _margins(name: str, values: Floats | float) -> Floats:
    given = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(given) & (given >= 0)).all():
        raise ValueError(f"{name}: must be finite and not negative")
    return given


def floored(margin: Floats | float, stress: Floats | float, long_run: Floats | float) -> Floats:
    """Compute ``M = max(m, ¾m + ¼m_stress, m_10y)``; broadcasts. Never below m, nor below the floor m_10y."""
    m, s, f = _margins("margin", margin), _margins("stress", stress), _margins("long_run", long_run)
    blend = (1 - STRESS_WEIGHT) * m + STRESS_WEIGHT * s
    return np.maximum(np.maximum(m, blend), f)


def buffered(margin: Floats | float, slow: Floats | float) -> Floats:
    """Compute ``m·(1 + ¼·clip(m̄_slow/m, 0, 1))``: the buffer is spent as m rises above its slow mean.

    It equals m + ¼·min(m̄_slow, m), which is what 0 gives 0 by.
    """
    m, mean = _margins("margin", margin), _margins("slow", slow)
    return m + BUFFER * np.minimum(mean, m)


Rule = Literal["as it is", "floor", "buffer", "floor and buffer"]
YEAR, LONG, LEAST = 365, 3_650, 30
"""Days: of stress and of the slow mean; of the floor's memory; before which no stress is told from a single day."""


def apply_rules(margins: Floats, per_day: int = 1) -> dict[Rule, Floats]:
    """Return a series of margins as it is, after the floor, with the buffer, and with both.

    All is out of sample, from margins until now. Margins stand for volatility, so that their means are of squares:
    m_stress is the highest √mean m² of any year so far (of what there is of it, but 30 days at least), m_10y that of
    the ten years to now; m̄_slow is the plain mean of the last year.

    Args:
        margins: shape (n,), in time order, not negative.
        per_day: values per day.
    """
    given = _margins("margins", margins)
    if given.ndim != 1 or not len(given):
        raise ValueError("margins: one series is expected")
    if per_day < 1:
        raise ValueError(f"per_day: {per_day!r}; at least one value a day is expected")
    year = np.sqrt(_trailing_mean(given**2, YEAR * per_day))
    told = np.arange(len(given)) + 1 >= min(len(given), LEAST * per_day)
    stress = np.maximum.accumulate(np.where(told, year, 0.0))
    floor = floored(given, stress, np.sqrt(_trailing_mean(given**2, LONG * per_day)))

    def with_buffer(series: Floats) -> Floats:
        return buffered(series, _trailing_mean(series, YEAR * per_day))

    return {"as it is": given, "floor": floor, "buffer": with_buffer(given), "floor and buffer": with_buffer(floor)}


def _trailing_mean(values: Floats, length: int) -> Floats:
    """Return the mean of the last ``length`` values to each, of fewer where there are not as many."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - length, 0)
    means: Floats = np.maximum(total[end] - total[start], 0.0) / (end - start)
    return means


class ProcyclicalityReport(NamedTuple):
    """How a series of margins moved."""

    peak: float
    trough: float
    peak_to_trough: float  # the greatest over the least
    rises: tuple[tuple[int, float], ...]  # (days, largest rise over so many days, as a part of what it was)


def measure(margins: Floats, per_day: int = 1) -> ProcyclicalityReport:
    """Measure a series of margins, in time order.

    Args:
        margins: shape (n,), positive.
        per_day: values per day.

    Raises:
        ValueError: a margin is not positive, or there is none.
    """
    given = _margins("margins", margins)
    if given.ndim != 1 or not len(given) or not given.all():
        raise ValueError("margins: one series of positive numbers is expected")
    if per_day < 1:
        raise ValueError(f"per_day: {per_day!r}; at least one value a day is expected")
    peak, trough = float(given.max()), float(given.min())
    rises = []
    for days in HORIZONS:
        step = days * per_day
        # The rise to now from the least of the last `days`: the margin call of who paid nothing in between.
        least = minimum_filter1d(given, step + 1, origin=step // 2, mode="nearest")  # of the last `step` and now
        rises.append((days, float((given / least).max()) - 1))
    return ProcyclicalityReport(peak, trough, peak / trough, tuple(rises))
