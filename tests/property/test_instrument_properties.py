"""Instruments: no arbitrage, monotone, greeks are derivatives, and QuantLib agrees (risk.md §3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import QuantLib as ql
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.instruments import option, perp, svi
from aggregator.domain.policy import SviRow
from aggregator.domain.units import SECONDS_PER_YEAR

prices = st.floats(1e-3, 1e6)
moneyness = st.floats(-1.5, 1.5)
years = st.floats(1 / 365, 3)
vols = st.floats(0.05, 3)
rates = st.floats(-0.2, 0.3)
SIDES = np.array([True, False])


def oracle(strike: float, forward: float, deviation: float, df: float, is_call: bool) -> ql.BlackCalculator:
    payoff = ql.PlainVanillaPayoff(ql.Option.Call if is_call else ql.Option.Put, strike)
    return ql.BlackCalculator(payoff, forward, deviation, df)


@given(prices, moneyness, years, vols, rates, rates)
def test_quantlib_agrees_on_prices_and_greeks(spot: float, k: float, t: float, vol: float, r: float, q: float) -> None:
    strike, forward, df = spot * math.exp(k), spot * math.exp((r - q) * t), math.exp(-r * t)
    greeks, on_forward = (
        option.bsm_greeks(spot, strike, t, vol, r, q, SIDES),
        option.black76_greeks(forward, strike, t, vol, SIDES, df),
    )
    for side, is_call in enumerate(SIDES):
        theirs = oracle(strike, forward, vol * math.sqrt(t), df, bool(is_call))
        expected = {
            "price": theirs.value(),
            "delta": theirs.delta(spot),
            "gamma": theirs.gamma(spot),
            "theta": theirs.theta(spot, t),
            "vega": theirs.vega(t),
            "rho": theirs.rho(t),
        }
        # what cancels in their sums: spot for prices, spot·rate for theta, …
        scale = {"price": 1, "delta": 1 / spot, "gamma": 1 / spot**2, "theta": 10 / t, "vega": 1 / vol, "rho": 1 + t}
        for name, value in expected.items():
            noise = 1e-12 * (spot + strike) * scale[name]
            assert getattr(greeks, name)[side] == pytest.approx(value, rel=1e-9, abs=noise), name
        assert on_forward.price[side] == pytest.approx(theirs.value(), rel=1e-9, abs=1e-12 * (spot + strike))
        assert on_forward.delta[side] == pytest.approx(theirs.deltaForward(), rel=1e-9, abs=1e-12 * (1 + strike / spot))


@given(prices, moneyness, years, vols)
def test_the_greeks_of_the_forward_are_the_slopes_of_its_price(forward: float, k: float, t: float, vol: float) -> None:
    strike, r, e = forward * math.exp(k), 0.07, 1e-4
    deviation = vol * math.sqrt(t)
    h = e * min(deviation, 1)  # the price bends on the scale of the deviation
    # columns: as it is, then one argument at a time moved up and down
    f = forward * np.array([1, 1 + h, 1 - h, 1, 1, 1, 1, 1, 1])
    v = vol * np.array([1, 1, 1, 1 + e, 1 - e, 1, 1, 1, 1])
    tau = t * np.array([1, 1, 1, 1, 1, 1 + e, 1 - e, 1, 1])
    df = np.exp(-(r + np.array([0, 0, 0, 0, 0, 0, 0, e, -e])) * tau)
    moved = option.black76_greeks(f, strike, tau, v, SIDES[:, None], df)
    price, noise = moved.price, 1e-6 * (forward + strike)

    def agree(slope: np.ndarray, greek: np.ndarray, atol: float = noise) -> None:
        np.testing.assert_allclose(slope, greek[:, 0], rtol=1e-4, atol=atol)

    agree((price[:, 1] - price[:, 2]) / (2 * h), moved.delta * forward)
    agree((moved.delta[:, 1] - moved.delta[:, 2]) / (2 * h), moved.gamma * forward, 1e-6 / deviation)
    agree((price[:, 3] - price[:, 4]) / (2 * e), moved.vega * vol)
    agree((price[:, 6] - price[:, 5]) / (2 * e), moved.theta * t)
    agree((price[:, 7] - price[:, 8]) / (2 * e), moved.rho)


@given(prices, prices, years, st.floats(0, 5), st.floats(0.5, 1.2))
def test_no_arbitrage_between_calls_puts_and_forwards(
    forward: float, strike: float, t: float, vol: float, df: float
) -> None:
    call, put = option.black76(forward, strike, t, vol, SIDES, df)
    assert call - put == pytest.approx(df * (forward - strike), abs=1e-14 * df * (forward + strike))
    scaled = option.black76(forward * 2**20, strike * 2**20, t, vol, SIDES, df) / 2**20
    np.testing.assert_allclose(scaled, (call, put), rtol=1e-9, atol=1e-14 * (forward + strike))
    assert df * max(forward - strike, 0) <= call <= df * forward * (1 + 1e-15)
    assert df * max(strike - forward, 0) <= put <= df * strike * (1 + 1e-15)


@given(prices, moneyness, years, vols, st.floats(0, 1))
def test_prices_are_monotone_and_convex(forward: float, k: float, t: float, vol: float, more: float) -> None:
    strike = forward * math.exp(k)
    noise = 1e-13 * (forward + strike) * (1 + more)
    factor = 1 + more
    base, wilder, longer, higher, between = option.black76(
        forward,
        strike * np.array([[1], [1], [1], [factor], [1 + more / 2]]),
        t * np.array([[1], [1], [factor], [1], [1]]),
        vol * np.array([[1], [factor], [1], [1], [1]]),
        SIDES,
    )
    assert (wilder >= base - noise).all()
    assert (longer >= base - noise).all()
    assert higher[0] <= base[0] + noise
    assert higher[1] >= base[1] - noise
    assert (between <= (base + higher) / 2 + noise).all()


@given(prices, st.floats(-4, 4), st.floats(1e-4, 5), st.floats(1e-3, 10), st.booleans(), st.floats(0.5, 1.2))
def test_an_implied_volatility_is_the_one_that_made_the_price_or_not_a_number(
    forward: float, k: float, t: float, vol: float, is_call: bool, df: float
) -> None:
    strike = forward * math.exp(k)
    greeks = option.black76_greeks(forward, strike, t, vol, is_call, df)
    implied = float(option.implied_vol(greeks.price, forward, strike, t, is_call, df))
    greater = max(forward, strike)
    intrinsic = max(forward - strike if is_call else strike - forward, 0)
    tells = greeks.vega / df > 2 * option.LEAST_VEGA * greater
    tells = tells and greeks.price / df - intrinsic > 2 * option.LEAST_TIME_VALUE * greater
    if math.isnan(implied):
        assert not tells or min(forward, strike) - (greeks.price / df - intrinsic) < 2e-12 * greater
    else:
        # rounding of the price and of the search, as volatility
        assert implied == pytest.approx(vol, rel=1e-9, abs=4e-15 * greater / (greeks.vega / df))


@st.composite
def slices(draw: st.DrawFn) -> SviRow:
    b, rho, sigma = draw(st.floats(0, 0.9)), draw(st.floats(-0.95, 0.95)), draw(st.floats(0.01, 1))
    least = b * sigma * math.sqrt(1 - rho**2)
    return SviRow(
        tenor=draw(st.integers(86_400, 10**8)),
        a=draw(st.floats(0, 0.5)) - 0.999 * least,
        b=b,
        rho=rho,
        m=draw(st.floats(-0.5, 0.5)),
        sigma=sigma,
    )


@given(slices(), slices(), st.floats(0, 4), st.floats(-10, 10), st.floats(-10, 10))
def test_a_surface_lies_between_its_slices_whose_wings_obey_lee(
    one: SviRow, other: SviRow, t: float, k: float, elsewhere: float
) -> None:
    near, far = sorted((one, other.model_copy(update={"tenor": other.tenor + 10**8})), key=lambda row: row.tenor)
    total = np.array([svi.total_variance([k, elsewhere], row) for row in (near, far)])
    assert (total >= 0).all()
    for row, (here, there) in zip((near, far), total, strict=True):
        assert abs(here - there) <= row.b * (1 + abs(row.rho)) * abs(k - elsewhere) + 1e-12
        end = 4 * math.sqrt(row.a + row.b * row.sigma)
        assert here == svi.total_variance(max(-end, min(k, end)), row)
    tenors = near.tenor / SECONDS_PER_YEAR, far.tenor / SECONDS_PER_YEAR
    weight = min(max((t - tenors[0]) / (tenors[1] - tenors[0]), 0), 1)
    held = min(max(t, tenors[0]), tenors[1])
    got = svi.vol(100 * np.exp([k, elsewhere]), 100, t, (near, far)) ** 2 * held
    np.testing.assert_allclose(got, (1 - weight) * total[0] + weight * total[1], rtol=1e-9, atol=1e-12)


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_perps_earn_what_their_delta_says_and_nothing_at_entry(
    size: float, entry: float, mark: float, later: float
) -> None:
    size = 0.0 if abs(size) < 1e-100 else size  # subnormal numbers have no relative precision
    noise = 1e-12 * abs(size) * (entry + mark + later)
    for inverse, pnl in ((False, perp.linear_pnl), (True, perp.inverse_pnl)):
        assert pnl(size, entry, entry) == 0
        earned = pnl(size, later, entry) - pnl(size, mark, entry)
        slope = perp.delta(size, entry, inverse)
        assert earned == pytest.approx(slope * (later - mark), rel=1e-9, abs=noise / (entry if inverse else 1))
        assert pnl(-size, mark, entry) == -pnl(size, mark, entry)
    coin = perp.inverse_pnl_underlying(size, mark, entry)
    assert coin * mark == pytest.approx(float(perp.inverse_pnl(size, mark, entry)), rel=1e-12)
    assert coin == pytest.approx(size / entry - size / mark, rel=1e-9, abs=1e-12 * abs(size) * (1 / entry + 1 / mark))
