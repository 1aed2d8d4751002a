"""Forecasts know nothing of what comes later, surfaces have no calendar arbitrage, and jumps never get lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregator.core.instruments import svi
from aggregator.core.risk import backtest
from aggregator.core.risk.volatility import SEED
from aggregator.domain.policy import SviRow, UnderlyingRow, calendar_arbitrage, flat_beyond, total_variance
from aggregator.domain.units import SECONDS_PER_YEAR
from tests.strategies import DAY

N = 120
returns_ = st.lists(st.floats(-0.3, 0.3), min_size=N, max_size=N)


@pytest.mark.parametrize("model", backtest.MODELS)
@given(returns=returns_, window=st.integers(0, 60), at=st.integers(1, N - 1), later=st.floats(-0.9, 0.9))
def test_a_later_return_never_changes_an_earlier_forecast(
    model: backtest.Model, returns: list[float], window: int, at: int, later: float
) -> None:
    seen = np.array(returns)
    charge = (0.1, 0.1) if model == "haircut" else None
    if model != "haircut" and window < SEED:
        with pytest.raises(ValueError, match="window"):
            backtest.forecast(seen, model, 0.9, window, charge)
        return
    assume(at >= window)
    other = seen.copy()
    other[at:] = later
    a, b = (backtest.forecast(r, model, 0.9, window, charge) for r in (seen, other))
    for mine, theirs in zip(a, b, strict=True):
        assert np.array_equal(mine[: at - window + 1], theirs[: at - window + 1])  # of returns window … at


# --- surfaces ---------------------------------------------------------------------------------------------------------


def slices(tenor: int) -> st.SearchStrategy[SviRow]:
    """Slices that are variances, with wings Lee's formula allows."""
    numbers = (st.floats(1e-4, 0.2), st.floats(0, 0.5), st.floats(-0.9, 0.9), st.floats(-0.3, 0.3), st.floats(0.01, 1))
    return st.tuples(*numbers).map(lambda x: SviRow(tenor=tenor, a=x[0], b=x[1], rho=x[2], m=x[3], sigma=x[4]))


@given(slices(DAY), st.floats(-5, 5))
def test_the_variance_that_is_checked_is_the_one_that_prices(row: SviRow, k: float) -> None:
    assert total_variance(row, k) == pytest.approx(float(svi.total_variance(k, row)), rel=1e-12, abs=1e-15)
    assert total_variance(row, flat_beyond(row) + 1) == total_variance(row, flat_beyond(row))


@given(slices(7 * DAY), slices(30 * DAY), st.floats(7, 30), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_an_accepted_surface_never_prices_falling_variance(
    near: SviRow, far: SviRow, day: float, part: float, seed: int
) -> None:
    if calendar_arbitrage(near, far) is not None:
        with pytest.raises(ValidationError, match="total variance falls"):
            UnderlyingRow(range=0.2, surface=(near, far))
        return
    rows = UnderlyingRow(range=0.2, surface=(near, far)).surface
    end = 1.2 * max(map(flat_beyond, rows))
    strikes = 100 * np.exp(np.random.default_rng(seed).uniform(-end, end, 200))
    early, late = (d * DAY / SECONDS_PER_YEAR for d in (day, day + part * (30 - day)))
    first, second = (svi.vol(strikes, 100.0, t, rows) ** 2 * t for t in (early, late))
    assert (first <= second + 1e-4 * second).all()  # between two samples 0.01 apart slices may touch
