"""Options, surfaces and perps against published numbers, and at every limit (risk.md §3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aggregator.core.instruments import option, perp, svi
from aggregator.domain.policy import SviRow
from aggregator.domain.units import SECONDS_PER_YEAR

HAUG = "E. G. Haug 1998, in QuantLib test-suite/europeanoption.cpp"
VOLLIB = "vollib/py_vollib docstrings and tests/test_data.json, after J. Hull, 7th ed."
LYRA = "derivexyz/lyra-utils test/math/{Black76,SVI}.t.sol"


@pytest.mark.parametrize(
    ("spot", "strike", "q", "r", "t", "vol", "is_call", "expected"),
    [
        (60, 65, 0.00, 0.08, 0.25, 0.30, True, 2.1334),
        (1.56, 1.60, 0.08, 0.06, 0.50, 0.12, True, 0.0291),
        (110, 100, 0.10, 0.10, 0.50, 0.25, True, 12.7857),
        (90, 100, 0.10, 0.10, 0.50, 0.35, False, 14.4452),
        (100, 95, 0.05, 0.10, 0.50, 0.20, False, 2.4648),
    ],
)
def test_bsm_prices_as_published(
    spot: float, strike: float, q: float, r: float, t: float, vol: float, is_call: bool, expected: float
) -> None:
    """Source: HAUG."""
    assert option.bsm(spot, strike, t, vol, r, q, is_call) == pytest.approx(expected, abs=1e-4)


def test_bsm_greeks_as_published() -> None:
    """Source: VOLLIB, the high-precision comments; HAUG for elasticity and gamma."""
    call, put = (option.bsm_greeks(49, 50, 0.3846, 0.2, 0.05, 0, side) for side in (True, False))
    assert call.rho == pytest.approx(8.9065740988, abs=1e-8)
    assert call.theta == pytest.approx(-4.30538996455, abs=1e-8)
    assert put.theta == pytest.approx(-1.8530056722, abs=1e-6)
    assert option.bsm_greeks(105, 100, 0.5, 0.36, 0.1, 0.1, False).elasticity == pytest.approx(-4.8775, abs=1e-4)
    assert option.bsm_greeks(55, 60, 0.75, 0.3, 0.1, 0, True).gamma == pytest.approx(0.0278, abs=1e-4)


def test_bsm_and_its_greeks_in_one_table_as_published() -> None:
    """Source: VOLLIB, row 84: 700/1000, 200% over 0.01 years."""
    greeks = option.bsm_greeks(700, 1000, 0.01, 2.0, 0.05, 0, np.array([True, False]))
    expected = {
        "price": (2.496050015, 301.996175),
        "delta": (0.046393626, -0.953606374),
        "gamma": (0.000693853, 0.000693853),
        "theta": (-681.4746206, -631.4996144),
        "vega": (6.799756462, 6.799756462),
        "rho": (0.299794879, -9.69520637),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(greeks, name), values, rtol=1e-6, atol=2e-9 if name == "gamma" else 2e-4)


def test_black76_as_published() -> None:
    """Source: LYRA, testPrices; VOLLIB for Hull's example 16.7."""
    t = 2592000 / SECONDS_PER_YEAR
    greeks = option.black76_greeks(1000, 1200, t, 0.25, np.array([True, False]), 0.9991784198737006)
    np.testing.assert_allclose(greeks.price, (0.1370821284265793, 199.97276610316672), rtol=0, atol=1e-9)
    assert greeks.delta[0] / 0.9991784198737006 == pytest.approx(0.006071372605597036, abs=1e-12)
    assert option.black76(620, 600, 0.5, 0.2, True, math.exp(-0.025)) == pytest.approx(44.1868533121, abs=1e-9)


def test_implied_volatility_as_published() -> None:
    """Source: VOLLIB: Hull's example 16.6 and row 24, inverted."""
    assert option.implied_vol(1.11664145656, 20, 20, 1 / 3, False, math.exp(-0.03)) == pytest.approx(0.25, abs=1e-8)
    assert option.implied_vol_bsm(334.3231267, 1300, 1000, 0.5, 0.05, 0, True) == pytest.approx(0.3, abs=1e-5)


def test_a_slice_as_published() -> None:
    """Source: LYRA, testGetVols."""
    a = b = 0.17753424657534247
    got = svi.slice_vol(
        math.log(2100 / 1830), 0.2465753424657534, a, b, 0.05917808219178082, 0.02958904109589041, 0.0216986301369863
    )
    assert got == pytest.approx(0.8966269017413266, abs=1e-12)
    wing = (0.027616438356164386, 0.041424657534246574, 0.003452054794520548, 0.001726027397260274)
    got = svi.slice_vol(math.log(2400 / 1805), 0.038356164383561646, *wing, 0.000345205479452055)
    assert got == pytest.approx(1.0133571334275668, abs=1e-12)


# The limits of option prices


@pytest.mark.parametrize(("t", "vol"), [(0.0, 0.8), (0.5, 0.0), (0.0, 0.0)])
def test_without_time_or_volatility_an_option_is_worth_its_discounted_intrinsic_value(t: float, vol: float) -> None:
    forward, strike = np.array([90.0, 100.0, 120.0]), 100.0
    assert option.black76(forward, strike, t, vol, True, 0.9) == pytest.approx([0, 0, 18])
    assert option.black76(forward, strike, t, vol, False, 0.9) == pytest.approx([9, 0, 0])
    greeks = option.black76_greeks(forward, strike, t, vol, True)
    assert greeks.delta.tolist() == [0, 0.5, 1]
    assert greeks.gamma.tolist() == [0, math.inf, 0]
    assert greeks.vega == pytest.approx([0, 100 * math.sqrt(t / (2 * math.pi)), 0])
    assert greeks.theta.tolist() == [0, -math.inf if t == 0 and vol > 0 else 0, 0]
    assert greeks.d1.tolist() == greeks.d2.tolist() == [-math.inf, 0, math.inf]


def test_a_price_of_zero_has_its_limits() -> None:
    """Source of F = 0: LYRA, testPrices."""
    assert option.black76(0, 1000, 1, 4, [True, False], 0.99).tolist() == [0, 990]
    assert option.black76(1000, 0, 1, 4, [True, False], 0.99).tolist() == [990, 0]
    assert option.black76(0, 0, 1, 4, [True, False]).tolist() == [0, 0]
    for forward, strike in ((0, 1000), (1000, 0), (0, 0)):
        greeks = option.black76_greeks(forward, strike, 1, 4, [True, False])
        put = -1.0 if strike > forward else 0.0
        assert greeks.delta.tolist() == [1 + put, put]
        assert greeks.gamma.tolist() == greeks.vega.tolist() == greeks.theta.tolist() == [0, 0]
        np.testing.assert_array_equal(
            greeks.elasticity, np.where(greeks.price > 0, greeks.delta * forward / 1000, np.nan)
        )
    greeks = option.bsm_greeks(0, 1000, 1, 4, 0.05, 0.02, False)
    assert (greeks.price, greeks.delta) == pytest.approx((1000 * math.exp(-0.05), -math.exp(-0.02)))


def test_extreme_sizes_stay_finite_and_within_their_bounds() -> None:
    forward = np.array([1e-30, 1.0, 1e30])[:, None, None]
    strike = np.array([1e-30, 1.0, 1e30])[:, None]
    vol = np.array([1e-30, 1.0, 1e30, 1e300])
    call = option.black76(forward, strike, 1e3, vol, True)
    assert ((call >= np.maximum(forward - strike, 0)) & (call <= forward)).all()
    assert call[0, 1, -1] == 1e-30  # a call of boundless volatility is worth the forward
    greeks = option.black76_greeks(forward, strike, 1e3, vol, True)
    assert not any(
        np.isnan(getattr(greeks, name)).any() for name in ("price", "delta", "gamma", "theta", "vega", "rho")
    )


BAD = (math.nan, math.inf, -math.inf)
OPTION = {"forward": 100.0, "strike": 90.0, "t": 0.5, "vol": 0.6, "is_call": True, "df": 0.97}
SPOT = {"spot": 100.0, "strike": 90.0, "t": 0.5, "vol": 0.6, "r": 0.05, "q": 0.01, "is_call": True}
IMPLIED = {"price": 20.0, "forward": 100.0, "strike": 90.0, "t": 0.5, "is_call": True, "df": 0.97}
SURFACE = {"strike": 90.0, "forward": 100.0, "t": 0.1}
SLICE = {"k": 0.1, "tau": 0.5, "a": 0.04, "b": 0.1, "rho": -0.2, "m": 0.0, "sigma": 0.1}
PERP = {"size": 2.0, "mark": 100.0, "entry": 90.0}
ROWS = (
    SviRow(tenor=7 * 86_400, a=0.004, b=0.02, rho=-0.3, m=0.0, sigma=0.1),
    SviRow(tenor=30 * 86_400, a=0.02, b=0.06, rho=-0.25, m=0.01, sigma=0.15),
    SviRow(tenor=90 * 86_400, a=0.07, b=0.12, rho=-0.2, m=0.02, sigma=0.2),
)


def surface(strike: Any, forward: Any, t: Any) -> Any:
    return svi.vol(strike, forward, t, ROWS)


REFUSED: list[tuple[Callable[..., Any], dict[str, Any], dict[str, tuple[float, ...]]]] = [
    (option.black76, OPTION, {"forward": (-1,), "strike": (-1,), "t": (-1e-9,), "vol": (-0.1,), "df": (0, -1)}),
    (option.black76_greeks, OPTION, {"forward": (-1,), "strike": (-1,), "t": (-1e-9,), "vol": (-0.1,), "df": (0, -1)}),
    (option.bsm, SPOT, {"spot": (-1,), "strike": (-1,), "t": (-1e-9,), "vol": (-0.1,), "r": (), "q": ()}),
    (option.bsm_greeks, SPOT, {"spot": (-1,), "strike": (-1,), "t": (-1e-9,), "vol": (-0.1,), "r": (), "q": ()}),
    (option.implied_vol, IMPLIED, {"price": (-1,), "forward": (-1,), "strike": (-1,), "t": (-1,), "df": (0,)}),
    (surface, SURFACE, {"strike": (-1,), "forward": (-1,), "t": (-1e-9,)}),
    (svi.slice_vol, SLICE, {"tau": (0, -1), "a": (-1,), "b": (-0.1,), "rho": (1.1, -1.1), "m": (), "sigma": (-0.1,)}),
    (perp.linear_pnl, PERP, {"size": (), "mark": (-1,), "entry": (-1,)}),
    (perp.inverse_pnl, PERP, {"size": (), "mark": (-1,), "entry": (-1, 0)}),
    (perp.inverse_pnl_underlying, PERP, {"size": (), "mark": (-1, 0), "entry": (-1, 0)}),
    (perp.notional, {"size": 2.0, "mark": 100.0}, {"size": (), "mark": (-1,)}),
    (perp.delta, {"size": 2.0, "entry": 90.0, "inverse": True}, {"size": (), "entry": (-1, 0)}),
    (
        perp.funding_accrued,
        {"size": 2.0, "index_now": 3.0, "index_then": 1.0},
        dict.fromkeys(("size", "index_now"), ()),
    ),
]


@pytest.mark.parametrize(("function", "good", "refused"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_no_caller_should_give_is_refused_by_name(
    function: Callable[..., Any], good: dict[str, Any], refused: dict[str, tuple[float, ...]]
) -> None:
    assert np.isfinite(function(**good)).all()
    for name, values in refused.items():
        for value in (*BAD, *values):
            with pytest.raises(ValueError, match=rf"^[a-z, ]*\b{name}\b"):
                function(**{**good, name: np.array([good[name], value])})


def test_a_side_is_true_or_false() -> None:
    assert option.black76(100, 90, 0, 0, [1, 0]).tolist() == [10, 0]
    for side in (2, math.nan, -1):
        with pytest.raises(ValueError, match="is_call"):
            option.black76(100, 90, 0, 0, side)


def test_overflow_is_refused_and_not_a_number() -> None:
    with pytest.raises(ValueError, match="r, q and t"):
        option.bsm(100, 100, 100, 0.5, 50, 0, True)
    with pytest.raises(ValueError, match="size and mark"):
        perp.notional(1e200, 1e200)
    with pytest.raises(ValueError, match="df must be 1"):
        option.black76_greeks(100, 100, 0, 0.5, True, 0.9)


def test_no_volatility_is_implied_from_a_price_that_tells_none() -> None:
    def implied(price: float, forward: float = 100, strike: float = 90, t: float = 0.5, is_call: bool = True) -> float:
        return float(option.implied_vol(price, forward, strike, t, is_call))

    assert math.isnan(implied(10))  # no time value
    assert math.isnan(implied(10 + 1e-11))  # less than the price's rounding
    assert math.isnan(implied(9))  # below intrinsic: arbitrage
    assert math.isnan(implied(100))  # the bound, which no finite volatility reaches
    assert math.isnan(implied(101))
    assert math.isnan(implied(12, t=0))
    assert math.isnan(implied(12, forward=0))
    assert math.isnan(implied(12, strike=0))
    assert math.isnan(implied(0, strike=500))
    assert implied(12) > 0
    assert math.isnan(implied(5e-11, strike=100, t=1))  # vega is ample, but half of this price may be rounding
    far = 100 * math.exp(3)
    told = float(option.black76(100, far, 1, 0.5, True))
    assert told > option.LEAST_TIME_VALUE * far
    assert math.isnan(implied(told, strike=far, t=1))  # vega is not
    mixed = option.implied_vol([12, 10], 100, 90, 0.5, True)
    assert np.isnan(mixed).tolist() == [False, True]  # one bad price spoils no other


# The grid


@pytest.mark.parametrize("block", [1, 7, 10**9])
def test_the_grid_prices_what_black76_prices_whatever_its_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(option, "_BLOCK", block)
    move = np.array([-1.0, -0.5, 0.0, 0.3, 3.0])[:, None, None] + 1  # the first is total loss
    forward, strike = np.array([100.0, 101.0, 101.0, 99.0]), np.array([90.0, 101.0, 0.0, 150.0])
    vol, t = np.array([1.5, 1.0, 0.0])[:, None] * 0.8, np.array([0.1, 0.0, 1.0, 0.5])
    is_call = np.array([True, False, True, False])
    with np.errstate(divide="ignore", invalid="ignore"):
        moneyness = np.where(strike > 0, np.log(move) + np.log(forward) - np.log(strike), np.inf)
    got = option.price_grid(moneyness, move * forward, strike, vol * np.sqrt(t), is_call)
    assert got.shape == (5, 3, 4)
    np.testing.assert_allclose(got, option.black76(move * forward, strike, t, vol, is_call), rtol=1e-12, atol=1e-12)
    calls = option.price_grid(moneyness, move * forward, strike, vol * np.sqrt(t), True)
    puts = option.puts_by_parity(calls, move * forward, strike)
    np.testing.assert_allclose(puts, option.black76(move * forward, strike, t, vol, False), rtol=1e-12, atol=1e-12)
    assert (puts >= np.maximum(strike - move * forward, 0)).all()


def test_a_put_by_parity_never_falls_below_its_intrinsic_value() -> None:
    calls = np.array([np.nextafter(10, 0), -1e-18])  # rounded below their own bounds
    assert option.puts_by_parity(calls, np.array([110.0, 0.1]), np.array([100.0, 0.3])).tolist() == [0, 0.3 - 0.1]


def test_the_grid_prices_one_option() -> None:
    got = option.price_grid(np.log(1.1), np.float64(110), np.float64(100), np.float64(0.4), False)
    assert got == pytest.approx(float(option.black76(110, 100, 1, 0.4, False)))


# The surface


def test_a_surface_interpolates_total_variance_between_tenors_and_holds_volatility_beyond() -> None:
    days = np.array([0, 3.5, 7, 18.5, 30, 90, 500])
    k = 0.1
    got = svi.vol(100 * math.exp(k), 100, days / 365, ROWS)
    w = [float(svi.total_variance(k, row)) for row in ROWS]
    first, last = math.sqrt(w[0] * 365 / 7), math.sqrt(w[2] * 365 / 90)
    middle = math.sqrt((w[0] + w[1]) / 2 * 365 / 18.5)
    assert got == pytest.approx([first, first, first, middle, math.sqrt(w[1] * 365 / 30), last, last])


def test_a_slice_is_flat_beyond_its_clip() -> None:
    row = ROWS[1]
    end = 4 * math.sqrt(row.a + row.b * row.sigma)
    inside, edge, beyond = svi.total_variance([end - 0.1, end, end + 5], row)
    assert inside < edge == beyond
    assert svi.vol(0, 100, 30 / 365, [row]) == pytest.approx(math.sqrt(svi.total_variance(-end, row) * 365 / 30))
    assert svi.vol(100, 0, 30 / 365, [row]) == pytest.approx(math.sqrt(edge * 365 / 30))
    assert svi.vol(0, 0, 30 / 365, [row]) == svi.vol(100, 100, 30 / 365, [row])
    free = svi.slice_vol(end + 5, 30 / 365, row.a, row.b, row.rho, row.m, row.sigma, clip=False)
    assert free > svi.slice_vol(end + 5, 30 / 365, row.a, row.b, row.rho, row.m, row.sigma)


def test_a_surface_without_slices_or_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="rows must hold"):
        svi.vol(100, 100, 0.1, ())
    with pytest.raises(ValueError, match="rows must ascend"):
        svi.vol(100, 100, 0.1, ROWS[::-1])


# Perps


def test_perps_by_hand() -> None:
    assert perp.linear_pnl([2, -2], 110, 100).tolist() == [20, -20]
    assert perp.linear_pnl(2, 0, 100) == -200
    # 10,000 USD long from 50,000 (0.2 BTC) to 40,000 (0.25 BTC): 0.05 BTC lost, 2,000 USD at the mark
    assert perp.inverse_pnl_underlying(10_000, 40_000, 50_000) == pytest.approx(-0.05)
    assert perp.inverse_pnl(10_000, 40_000, 50_000) == pytest.approx(-2_000)
    assert perp.inverse_pnl(10_000, 0, 50_000) == -10_000
    assert perp.notional([-2, -2], 110, [False, True]).tolist() == [220, 2]
    assert perp.delta([3, 9_000], [0, 3_000], [False, True]).tolist() == [3, 3]
    # longs paid 1.5 per unit since: a long owes, a short is owed
    assert perp.funding_accrued([4, -4], 10.0, 8.5).tolist() == [-6, 6]
