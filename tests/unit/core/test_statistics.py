"""Tails, volatility, procyclicality and backtests, against published numbers and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats as st
from hypothesis import given
from hypothesis import strategies as hs

from aggregator.core.risk import backtest, copula, procyclicality, tails, volatility
from aggregator.domain.units import Floats


def draws(seed: int, n: int, degrees: float = 4.0) -> Floats:
    return np.asarray(st.t.rvs(degrees, size=n, random_state=seed), dtype=np.float64)


# --- tails ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("nu", [2.5, 4.0, 30.0])
def test_closed_forms_are_the_integrals_they_stand_for(alpha: float, nu: float) -> None:
    normal, student = st.norm(1, 2), st.t(nu, loc=1, scale=2 * math.sqrt((nu - 2) / nu))
    assert tails.normal_var(2, alpha, mean=1) == pytest.approx(normal.ppf(alpha), rel=1e-12)
    assert tails.student_var(2, nu, alpha, mean=1) == pytest.approx(student.ppf(alpha), rel=1e-9)
    for law, es in ((normal, tails.normal_es(2, alpha, mean=1)), (student, tails.student_es(2, nu, alpha, mean=1))):
        quantile = law.ppf(alpha)
        beyond = law.expect(lambda x: x, lb=quantile, ub=np.inf, conditional=True, epsrel=1e-10, limit=200)
        assert es == pytest.approx(beyond, rel=1e-6)


def test_published_var_and_es() -> None:
    # McNeil, Frey and Embrechts, table 2.2: V = 10,000, 20% a year over 250 days, 97.5%
    sd = 10_000 * 0.2 / math.sqrt(250)
    got = [
        tails.normal_var(sd, 0.975),
        tails.student_var(sd, 4, 0.975),
        tails.normal_es(sd, 0.975),
        tails.student_es(sd, 4, 0.975),
    ]
    assert got == pytest.approx([247.9, 248.3, 295.7, 357.2], abs=0.06)


def test_the_estimator_takes_a_fraction_of_the_next_loss() -> None:
    losses = np.array([1.0, 5.0, 3.0, 4.0, 2.0])
    assert tails.expected_shortfall(losses, 0.8) == 5
    assert tails.expected_shortfall(losses, 0.7) == pytest.approx((5 + 0.5 * 4) / 1.5)
    assert tails.expected_shortfall(losses, 0.99) == 5  # less than one loss: the greatest
    assert tails.value_at_risk(losses, 0.8) == 4
    assert tails.tail_of(100, 0.99) == (1, 0.0)  # 100·(1 − 0.99) is 1.0000000000000009 in floating point


@given(seed=hs.integers(0, 999), n=hs.integers(1, 60), alpha=hs.floats(0.01, 0.995))
def test_the_estimator_is_the_integral_of_the_empirical_quantile_and_is_coherent(
    seed: int, n: int, alpha: float
) -> None:
    a, b = draws(seed, n), draws(seed + 1000, n)
    grid = alpha + (1 - alpha) * (np.arange(20_000) + 0.5) / 20_000
    integral = np.quantile(a, grid, method="inverted_cdf").mean()
    es = float(tails.expected_shortfall(a, alpha))
    assert es == pytest.approx(integral, abs=2e-2 * np.ptp(a) + 1e-12)
    assert es >= tails.value_at_risk(a, alpha) - 1e-12
    assert tails.expected_shortfall(a + b, alpha) <= es + tails.expected_shortfall(b, alpha) + 1e-9
    assert tails.expected_shortfall(3 * a + 2, alpha) == pytest.approx(3 * es + 2)
    weights = tails.tail_weights(a, alpha)
    assert weights.sum() == pytest.approx(1)
    assert weights @ a == pytest.approx(es, abs=1e-12)


def test_cornish_fisher_is_the_normal_without_skew_and_knows_where_it_is_no_quantile() -> None:
    assert tails.cornish_fisher_var(1, 2, 0, 0, 0.99) == pytest.approx(-1 + 2 * st.norm.ppf(0.99))
    assert tails.cornish_fisher_var(0, 1, -1, 2, 0.99) > tails.cornish_fisher_var(0, 1, 0, 0, 0.99)
    assert tails.cornish_fisher_is_a_quantile(0.3, 1.0)
    assert not tails.cornish_fisher_is_a_quantile(2.0, 1.0)
    for skew, excess in ((0.3, 1.0), (-0.5, 2.0), (2.0, 1.0), (0.0, 9.0), (1.0, 0.5)):
        grid = [tails.cornish_fisher_quantile(skew, excess, p) for p in st.norm.cdf(np.linspace(-6, 6, 2001))]
        assert tails.cornish_fisher_is_a_quantile(skew, excess) == bool((np.diff(grid) >= 0).all())


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3, 0.8])
def test_a_pareto_tail_is_fitted_as_scipy_fits_it(shape: float) -> None:
    losses = st.genpareto.rvs(shape, scale=0.02, size=2000, random_state=5)
    tail = tails.fit_pareto_tail(losses, 0.01)
    excess = losses[losses > 0.01] - 0.01
    reference, _, scale = st.genpareto.fit(excess, floc=0)
    assert tail.shape == pytest.approx(reference, abs=2e-3)
    assert tail.scale == pytest.approx(scale, rel=2e-3)
    law = st.genpareto(tail.shape, loc=tail.threshold, scale=tail.scale)
    assert tail.quantile(0.999) == pytest.approx(law.isf(0.001 / tail.share))
    beyond = law.expect(lambda x: x, lb=law.isf(0.001 / tail.share), conditional=True, limit=500)
    assert tail.shortfall(0.999) == pytest.approx(beyond, rel=1e-2 if shape > 0.5 else 1e-5)


def test_a_tail_without_a_mean_has_no_finite_shortfall() -> None:
    tail = tails.ParetoTail(1.0, 1.2, 0.5, 0.1)
    assert tail.shortfall(0.99) == math.inf
    with pytest.raises(ValueError, match=r"begins at 0\.9"):
        tail.quantile(0.5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_no_confidence_is_refused(alpha: float) -> None:
    for call in (lambda: tails.normal_es(1, alpha), lambda: tails.expected_shortfall(np.ones(3), alpha)):
        with pytest.raises(ValueError, match="alpha"):
            call()


def test_what_is_no_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="losses"):
        tails.expected_shortfall(np.array([1.0, math.nan]), 0.9)
    with pytest.raises(ValueError, match="losses"):
        tails.expected_shortfall(np.array([]), 0.9)
    for sd in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="sd"):
            tails.normal_var(sd, 0.9)
    with pytest.raises(ValueError, match="nu"):
        tails.student_es(1, 2.0, 0.9)
    with pytest.raises(ValueError, match="all exceedances are equal"):
        tails.fit_pareto_tail(np.ones(50), 0.5)
    with pytest.raises(ValueError, match="3 losses exceed"):
        tails.fit_pareto_tail(np.arange(10.0), 6.0)


# --- volatility -------------------------------------------------------------------------------------------------------


def test_ewma_is_its_recursion() -> None:
    returns = draws(1, 200) * 0.02
    value, expected = float(np.mean(returns[:30] ** 2)), []
    for r in returns:
        expected.append(value)
        value = 0.94 * value + 0.06 * r * r
    got = volatility.ewma_variance(np.column_stack([returns, 2 * returns]))
    assert got[:, 0] == pytest.approx([*expected, value])
    assert got[:, 1] == pytest.approx(4 * got[:, 0])


def garch_path(omega: float, arch: float, memory: float, n: int, seed: int) -> Floats:
    noise, v, path = np.random.default_rng(seed).standard_normal(n), omega / (1 - arch - memory), np.empty(n)
    for t in range(n):
        path[t] = math.sqrt(v) * noise[t]
        v = omega + arch * path[t] ** 2 + memory * v
    return path


def test_garch_finds_the_law_that_made_the_returns() -> None:
    found = volatility.fit_garch(garch_path(2e-6, 0.08, 0.9, 6000, 3))
    assert found.kind == "garch"
    assert found.arch == pytest.approx(0.08, abs=0.02)
    assert found.garch == pytest.approx(0.9, abs=0.025)
    assert found.long_run == pytest.approx(1e-4, rel=0.25)
    # the closed form against the recursion it sums
    step, total = float(found.variance[-1]), 0.0
    for _ in range(40):
        total += step
        step = found.omega + found.persistence * step
    assert found.forecast(40) == pytest.approx(total)


@pytest.mark.parametrize(
    ("returns", "why"),
    [
        (np.full(300, 0.01) * 0, "does not move"),
        (draws(2, 100), "100 returns"),
        (np.random.default_rng(3).standard_normal(800) * np.exp(np.linspace(-8, 0, 800)), "a + b is 1"),
    ],
    ids=["constant", "short", "not stationary"],
)
def test_where_garch_cannot_be_trusted_ewma_stands_in_and_says_why(returns: Floats, why: str) -> None:
    found = volatility.fit_garch(returns)
    assert found.kind == "ewma"
    assert why in found.reason
    assert found.forecast(10) == pytest.approx(10 * volatility.ewma_variance(returns)[-1])


def test_filtering_scales_each_column_by_its_own_volatility_and_keeps_dates_together() -> None:
    returns = np.column_stack([draws(4, 300) * 0.02, draws(5, 300) * 0.01])
    variance = volatility.ewma_variance(returns)
    filtered = volatility.filtered_returns(returns, variance)
    assert filtered == pytest.approx(returns * np.sqrt(variance[-1] / variance[:-1]))
    assert np.array_equal(np.sign(filtered), np.sign(returns))
    still = volatility.filtered_returns(np.zeros(5), np.zeros(6))
    assert not still.any()
    with pytest.raises(ValueError, match="variance"):
        volatility.filtered_returns(returns, variance[:-1])
    with pytest.raises(ValueError, match="returns"):
        volatility.ewma_variance(np.array([0.1, math.inf]))


# --- procyclicality ---------------------------------------------------------------------------------------------------


@given(hs.lists(hs.floats(0.001, 10), min_size=2, max_size=80), hs.data(), hs.floats(0.001, 10))
def test_rules_are_never_below_the_margin_and_know_nothing_of_later_ones(
    margins: list[float], data: hs.DataObject, later: float
) -> None:
    at = data.draw(hs.integers(1, len(margins) - 1))
    given_ = np.array(margins)
    other = given_.copy()
    other[at:] = later
    rules = procyclicality.apply_rules(given_)
    for rule, series in rules.items():
        assert np.array_equal(series[:at], procyclicality.apply_rules(other)[rule][:at])
        assert (series >= given_ * (1 - 1e-12)).all()
    assert (rules["floor"] >= np.sqrt(np.cumsum(given_**2) / np.arange(1, len(given_) + 1)) * (1 - 1e-9)).all()
    assert (rules["floor and buffer"] >= rules["floor"]).all()


def test_a_calm_after_a_storm_keeps_a_quarter_of_the_storm() -> None:
    margins = np.concatenate([np.full(400, 0.3), np.full(800, 0.1)])
    rules = procyclicality.apply_rules(margins)
    assert rules["floor"][-1] == pytest.approx(
        max(0.75 * 0.1 + 0.25 * 0.3, math.sqrt((400 * 0.09 + 800 * 0.01) / 1200))
    )
    assert rules["buffer"][-1] == pytest.approx(0.125)  # a year of 0.1 behind it: all of the 25%
    assert rules["buffer"][0] == pytest.approx(0.375)
    plain, floor = (procyclicality.measure(rules[rule]).peak_to_trough for rule in ("as it is", "floor"))
    assert plain == pytest.approx(3)
    assert floor < 1.6


MARGINS = hs.floats(0, 1e6)


@given(m=MARGINS, stress=MARGINS, floor=MARGINS, slow=MARGINS)
def test_margins_after_the_rule_are_never_below_before_nor_below_the_floor(
    m: float, stress: float, floor: float, slow: float
) -> None:
    after = float(procyclicality.floored(m, stress, floor))
    assert after >= max(m, floor)
    assert after == pytest.approx(max(m, 0.75 * m + 0.25 * stress, floor))
    buffered = float(procyclicality.buffered(m, slow))
    assert m <= buffered <= 1.25 * m * (1 + 1e-12)
    if m > 0:
        assert buffered == pytest.approx(m * (1 + 0.25 * min(1.0, slow / m)))


def test_rises_are_measured_from_the_least_in_the_time_before() -> None:
    report = procyclicality.measure(np.array([2.0, 1.0, 1.5, 3.0, 2.0, 4.0]))
    assert report.peak_to_trough == 4
    assert dict(report.rises) == pytest.approx({1: 1.0, 5: 3.0, 30: 3.0})
    assert dict(procyclicality.measure(np.array([3.0, 2.0, 1.0])).rises) == {1: 0.0, 5: 0.0, 30: 0.0}
    for bad in ([1.0, 0.0], [1.0, -1.0], [math.nan], []):
        with pytest.raises(ValueError, match="margins"):
            procyclicality.measure(np.array(bad))


# --- backtests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "x", "p", "statistic", "pvalue"),
    [(1043, 12, 0.01, 0.22768, 0.63325), (1043, 17, 0.01, 3.5118, 0.060933)],
)
def test_published_coverage_tests(n: int, x: int, p: float, statistic: float, pvalue: float) -> None:
    # MathWorks, Risk Management Toolbox, varbacktest/pof
    assert backtest.kupiec(n, x, p) == pytest.approx((statistic, pvalue), abs=6e-5)


def test_published_conditional_coverage() -> None:
    found = backtest.christoffersen(1043, 57, 0.05, 932, 53, 53, 4)  # MathWorks, varbacktest/cc
    assert found.conditional == pytest.approx((0.72013, 0.69763), abs=6e-6)


@given(n=hs.integers(1, 400), p=hs.floats(0.001, 0.5), data=hs.data())
def test_the_region_is_exactly_what_the_test_accepts(n: int, p: float, data: hs.DataObject) -> None:
    low, high = backtest.kupiec_region(n, p)
    x = data.draw(hs.integers(0, n))
    accepted = backtest.kupiec(n, x, p).statistic < st.chi2.ppf(0.95, 1)
    assert accepted == (low < x < high)
    likelihood = 2 * (st.binom.logpmf(x, n, x / n) - st.binom.logpmf(x, n, p))
    assert backtest.kupiec(n, x, p).statistic == pytest.approx(likelihood, abs=1e-7, rel=1e-7)


def test_published_regions_and_zones() -> None:
    # Kupiec (1995), Jorion table 6-2; BCBS 1996 table 2; MAR33
    assert backtest.kupiec_region(255, 0.025) == (2, 12)
    assert backtest.kupiec_region(1000, 0.1) == (81, 120)
    assert backtest.zone_bounds(250) == (5, 10)
    factors = [
        (backtest.traffic_light(250, x).plus_factor, backtest.traffic_light(250, x).multiplier) for x in (4, 5, 9)
    ]
    assert factors == [(0.0, 1.5), (0.4, 1.7), (0.85, 1.92)]
    assert [backtest.traffic_light(250, x).colour for x in (0, 4, 5, 9, 10, 250)] == [
        "green", "green", "yellow", "yellow", "red", "red",
    ]  # fmt: skip
    assert backtest.traffic_light(250, 250)[2:] == (1.0, 2.0)


@given(n=hs.integers(20, 3000), p=hs.floats(0.001, 0.2))
def test_the_light_changes_where_the_zones_begin_and_the_factor_never_falls(n: int, p: float) -> None:
    yellow, red = backtest.zone_bounds(n, p)
    lights = [backtest.traffic_light(n, x, p) for x in range(min(n, red + 2) + 1)]
    assert [light.zone for light in lights] == [(x >= yellow) + (x >= red) for x in range(len(lights))]
    factors = [light.plus_factor for light in lights]
    assert factors == sorted(factors)
    assert all((light.plus_factor == 0) == (light.zone == 0) for light in lights)


def test_no_breach_and_only_breaches_are_counted_without_a_logarithm_of_nothing() -> None:
    assert backtest.kupiec(100, 0, 0.01).statistic == pytest.approx(-200 * math.log(0.99))
    assert backtest.kupiec(10, 10, 0.5).statistic == pytest.approx(20 * math.log(2))
    assert backtest.christoffersen(5, 0, 0.01, 4, 0, 0, 0).independence == (0.0, 1.0)
    assert backtest.christoffersen(5, 5, 0.5, 0, 0, 0, 4).independence == (0.0, 1.0)
    assert backtest.transitions([0, 1, 1, 0, 0]) == (1, 1, 1, 1)
    for call, name in (
        (lambda: backtest.kupiec(0, 0, 0.1), "n:"),
        (lambda: backtest.kupiec(5, 6, 0.1), "x:"),
        (lambda: backtest.kupiec(5, 1, math.nan), "p:"),
    ):
        with pytest.raises(ValueError, match=name):
            call()


def test_clustered_breaches_are_told_from_scattered_ones() -> None:
    scattered = np.zeros(1000, dtype=bool)
    scattered[::50] = True
    clustered = np.zeros(1000, dtype=bool)
    clustered[500:520] = True
    pvalues = [
        backtest.christoffersen(1000, 20, 0.02, *backtest.transitions(hits)).independence.pvalue
        for hits in (scattered, clustered)
    ]
    assert pvalues[1] < 1e-6 < 0.05 < pvalues[0]


TIMES = np.arange(2000, dtype=np.int64) * 86_400


def test_the_right_model_holds_and_half_of_it_is_red() -> None:
    returns = np.random.default_rng(11).standard_normal(2000) * 0.02
    right = backtest.run_backtest(returns, TIMES, "normal", 0.975, 500)
    assert right.region[0] < right.breaches < right.region[1]
    assert right.light.colour == "green"
    assert abs(right.z2) < 0.35
    charge = tails.normal_var(0.01, 0.975), tails.normal_es(0.01, 0.975)
    half = backtest.run_backtest(returns, TIMES, "haircut", 0.975, 500, charge=charge)
    assert half.breaches >= half.region[1]
    assert half.light.colour == "red"
    assert half.z2 < backtest.Z2_CRITICAL


@pytest.mark.parametrize("model", ["ewma", "fhs", "normal"])
def test_a_forecast_knows_nothing_of_its_day_or_later(model: backtest.Model) -> None:
    returns = draws(6, 400) * 0.01
    other = returns.copy()
    other[300:] *= -7
    a, b = (backtest.forecast(r, model, 0.99, 100) for r in (returns, other))
    assert np.array_equal(a.var[:201], b.var[:201])  # of returns 100 … 300
    assert np.array_equal(a.es[:201], b.es[:201])
    assert a.var[250] != b.var[250]
    assert (a.es >= a.var - 1e-15).all()


def test_fhs_is_its_definition() -> None:
    returns = draws(7, 150) * 0.01
    found = backtest.forecast(returns, "fhs", 0.95, 100)
    sd = np.sqrt(volatility.ewma_variance(returns))
    sample = -returns[30:130] / sd[30:130] * sd[130]
    assert found.es[30] == pytest.approx(tails.expected_shortfall(sample, 0.95))
    assert found.var[30] == pytest.approx(tails.value_at_risk(sample, 0.95))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"window": 29}, "window: 29 periods; at least 30"),
        ({"window": 29, "model": "normal"}, "window"),
        ({"window": 2000}, "window"),
        ({"alpha": 1.0}, "alpha"),
        ({"returns": np.full(2000, -1.5)}, "returns"),
        ({"returns": np.full(2000, math.nan)}, "returns"),
        ({"times": TIMES[:5]}, "times"),
        ({"model": "haircut"}, "charge"),
    ],
)
def test_a_backtest_names_what_it_cannot_use(changes: dict[str, object], name: str) -> None:
    usual: dict[str, object] = {"returns": draws(8, 2000) * 0.01, "times": TIMES, "model": "ewma", "alpha": 0.99}
    with pytest.raises(ValueError, match=name):
        backtest.run_backtest(**({"window": 250} | usual | changes))  # type: ignore[arg-type]


# --- copula -----------------------------------------------------------------------------------------------------------


def joint(seed: int, n: int, rho: float, degrees: float) -> Floats:
    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=n)
    return np.asarray(z / np.sqrt(rng.chisquare(degrees, size=(n, 1)) / degrees) * 0.02, dtype=np.float64)


def test_a_copula_and_its_margins_are_found_again_in_what_they_simulate() -> None:
    returns = joint(1, 2500, 0.6, 4.0)
    fitted = copula.fit_copula(returns)
    assert fitted.correlation[0, 1] == pytest.approx(0.6, abs=0.05)
    assert 3 < fitted.degrees < 6
    margins = [copula.fit_margin(returns[:, i]) for i in range(2)]
    moves = copula.simulate_moves(fitted, margins, 2**13, seed=9)
    assert np.array_equal(moves, copula.simulate_moves(fitted, margins, 2**13, seed=9))
    assert not np.array_equal(moves, copula.simulate_moves(fitted, margins, 2**13, seed=10))
    logs = np.log1p(moves)
    levels = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
    for i in range(2):
        want, got = np.quantile(returns[:, i], levels), np.quantile(logs[:, i], levels)
        assert got == pytest.approx(want, abs=0.06 * float(np.ptp(want)))
    assert copula.fit_copula(logs[:2500]).correlation[0, 1] == pytest.approx(fitted.correlation[0, 1], abs=0.05)
    # what sets a t copula apart: both fall together more often than under normal dependence
    both = np.mean((logs < np.quantile(logs, 0.01, axis=0)).all(axis=1))
    normal = st.multivariate_normal(cov=[[1, 0.6], [0.6, 1]]).cdf([st.norm.ppf(0.01)] * 2)
    assert both > 1.3 * normal


def test_the_density_that_degrees_are_fitted_by_is_the_t_copulas() -> None:
    returns = joint(2, 400, 0.5, 5.0)
    fitted = copula.fit_copula(returns)
    ranks = st.rankdata(returns, axis=0) / (len(returns) + 1)

    def likelihood(nu: float) -> float:
        x = st.t.ppf(ranks, nu)
        return float(
            np.mean(st.multivariate_t([0, 0], fitted.correlation, df=nu).logpdf(x) - st.t.logpdf(x, nu).sum(1))
        )

    assert likelihood(fitted.degrees) >= max(likelihood(nu) for nu in (2.2, 3, 4, 6, 9, 15, 30, 59)) - 1e-6


def test_impossible_correlations_become_possible_ones() -> None:
    made = copula.nearest_correlation(np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]))
    assert np.linalg.eigvalsh(made)[0] > 0
    assert np.diag(made) == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="power of two"):
        copula.sobol(1000, 2, 1)
    with pytest.raises(ValueError, match="returns"):
        copula.fit_margin(np.zeros(10))


def test_normal_moves_have_the_covariance_asked_for() -> None:
    sigma = np.array([[9e-4, 6e-4], [6e-4, 16e-4]])
    moves = copula.simulate_normal(sigma, 2**12, 3)
    assert np.cov(moves.T) == pytest.approx(sigma, rel=0.02)
