"""What risk.md §4, §5 and §6 promise of the VaR model, for any portfolio and any joint moves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregator.core.contracts import option_values
from aggregator.core.instruments.option import black76
from aggregator.core.margin import var
from aggregator.core.risk import copula, tails
from aggregator.domain.contracts import CALL, PERP, PUT, Portfolios
from aggregator.domain.policy import HistoryRow, PolicyRow, VarRow, VolatilityShockRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import Floats
from tests.risk_world import FEEDS, hold, holdings, listing, market, risk_policy, spots
from tests.strategies import DAY

MOVES = np.random.default_rng(5).standard_t(4, (24, 3)).clip(-6, 6) * 0.05
PAST = HistoryRow(underlyings=FEEDS, moves=tuple(map(tuple, MOVES.tolist())), confidence=0.9)
POLICY = risk_policy(past=PAST)
Rows = list[tuple[int, float]]


def together(*accounts: Rows, spot: Floats | None = None) -> Portfolios:
    return hold([(a, *row) for a, rows in enumerate(accounts) for row in rows], accounts=len(accounts), spot=spot)


def slack(*values: float) -> float:
    return 1e-9 * (1 + sum(map(abs, values)))


@given(holdings, holdings, spots, st.floats(1e-3, 1e3))
def test_the_requirement_is_coherent_explained_in_full_and_no_less_initially(
    one: Rows, two: Rows, spot: list[float], times: float
) -> None:
    scaled = [(i, x * times) for i, x in one]
    hedge = np.array([spot, [0.0] * 3, spot, [x * times for x in spot], spot])
    given_ = together(one, two, one + two, scaled, one[::-1], spot=hedge)
    got = var.requirement(given_, market(), POLICY)
    owner = np.concatenate([given_.account, np.repeat(np.arange(5), 3)])
    for level, need in ((INITIAL, got.initial), (MAINTENANCE, got.maintenance)):
        assert (need >= 0).all()
        gross = np.bincount(owner, np.abs(got.rows[level]), 5)
        allowed = slack(*gross)
        assert need[2] <= need[0] + need[1] + allowed  # together, no more than apart
        assert need[3] == pytest.approx(need[0] * times, rel=1e-9, abs=allowed)  # n times as large
        assert need[4] == pytest.approx(need[0], rel=1e-9, abs=allowed)  # in another order
        np.testing.assert_allclose(np.bincount(owner, got.rows[level], 5), need, atol=allowed)
        np.testing.assert_allclose(got.layers[level].sum(axis=0), need, atol=allowed)
    assert (got.initial >= got.maintenance).all()


SIMPLE = listing((PERP, 0, 0, 0), (CALL, 0, 2_200.0, 30 * DAY), (PUT, 0, 1_900.0, 30 * DAY), (PERP, 1, 0, 0))


def test_a_perp_alone_needs_the_shortfall_of_its_underlying() -> None:
    got = var.requirement(hold([(0, 0, 1e4), (1, 0, -1e4)], instruments=SIMPLE), market(), POLICY)
    expected = [tails.expected_shortfall(sign * MOVES[:, 0], 0.9) * 1e4 for sign in (-1, 1)]
    assert got.initial == pytest.approx(expected)
    assert got.maintenance == pytest.approx([0.8 * e for e in expected])
    assert got.binding[0] == f"move {int(MOVES[:, 0].argmin()) + 1} of 24"


def test_options_are_priced_in_full_at_the_worst_of_three_volatilities() -> None:
    held = hold([(0, 1, -6_000.0)], instruments=SIMPLE)
    row, of = POLICY.scenario.volatility, market()
    size, t = float(held.size[0]), 30 / 365
    sigma = float(var.implied_vols(SIMPLE, of)[1])
    levels = (sigma, max(sigma * (1 + row.up), row.least), sigma * (1 - row.down))  # m = 1 at 30 days
    now = option_values(SIMPLE, of, of.spot)[1]
    forward = 2_000 * (1 + MOVES[:, 0]) * math.exp(0.05 * t)
    losses = [-size * (black76(forward, 2_200.0, t, vol, True, math.exp(-0.05 * t)) - now) for vol in levels]
    expected = tails.expected_shortfall(np.max(losses, axis=0), 0.9)
    assert var.requirement(held, of, POLICY).initial[0] == pytest.approx(float(expected))


def test_a_hedge_in_spot_takes_part_and_shares_the_requirement() -> None:
    spot = np.array([[5.0, 0, 0], [0, 0, 0]])
    got = var.requirement(hold([(0, 0, -1e4), (1, 0, -1e4)], instruments=SIMPLE, spot=spot), market(), POLICY)
    assert got.initial[0] == pytest.approx(0, abs=1e-9)
    assert got.initial[1] > 500


def test_an_account_without_anything_needs_nothing() -> None:
    got = var.requirement(hold([(1, 0, 1e3)], accounts=3, instruments=SIMPLE), market(), POLICY)
    assert got.initial[[0, 2]].tolist() == [0, 0]
    assert got.binding[0] == got.binding[2] == ""


def test_what_the_history_does_not_know_is_refused() -> None:
    bare = risk_policy()
    with pytest.raises(ValueError, match="recalibrate"):
        var.requirement(hold([(0, 0, 1.0)]), market(), bare)
    two = HistoryRow(underlyings=FEEDS[:2], moves=tuple(map(tuple, MOVES[:, :2].tolist())))
    with pytest.raises(ValueError, match="GOLD/USD"):
        var.requirement(hold([(0, 0, 1.0)]), market(), risk_policy(past=two))
    for moves in (np.full((5, 3), math.nan), np.full((5, 3), -1.5), np.zeros((5, 2)), np.zeros((0, 3))):
        with pytest.raises(ValueError, match="moves"):
            var.requirement_on(hold([(0, 0, 1.0)]), market(), POLICY, moves, 0.9)


# --- the parametric view ----------------------------------------------------------------------------------------------

SIGMA = np.array([[25e-4, 15e-4, 0], [15e-4, 16e-4, 0], [0, 0, 4e-4]])


@given(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), st.lists(st.floats(-1e5, 1e5), min_size=3, max_size=3))
def test_moments_of_a_quadratic_form_are_those_of_its_draws(delta: list[float], gamma: list[float]) -> None:
    x = SAMPLE
    pnl = x @ np.array(delta) + x**2 @ np.array(gamma) / 2
    found = var.delta_gamma(np.array(delta), np.array(gamma), SIGMA, 0.99)
    assert found.mean == pytest.approx(pnl.mean(), abs=0.02 * found.sd + 1e-9)
    assert found.sd == pytest.approx(pnl.std(), rel=0.05, abs=1e-9)
    if found.sd > 1e-3:
        skew = float(np.mean(((pnl - pnl.mean()) / pnl.std()) ** 3))
        assert found.skew == pytest.approx(skew, abs=0.35 + 0.1 * abs(skew))


SAMPLE = copula.simulate_normal(SIGMA, 2**13, 1)


def test_delta_alone_is_the_normal_var_and_is_shared_out_by_euler() -> None:
    exposures = np.array([[1e4, 0, 0], [-2e3, 0, 0], [0, 5e3, 1e3]])
    total = exposures.sum(axis=0)
    found = var.delta_gamma(total, np.zeros(3), SIGMA, 0.99)
    assert found.var == pytest.approx(tails.normal_var(math.sqrt(total @ SIGMA @ total), 0.99))
    shares = var.allocate_parametric(exposures, SIGMA, 0.99)
    assert shares.sum() == pytest.approx(found.var)
    step = 1e-4  # Euler: the derivative of the whole by the part
    more = var.delta_gamma(total + step * exposures[2], np.zeros(3), SIGMA, 0.99).var
    assert (more - found.var) / step == pytest.approx(shares[2], rel=1e-3)
    assert var.allocate_parametric(np.zeros((2, 3)), SIGMA, 0.99).tolist() == [0, 0]
    with pytest.raises(ValueError, match="covariance"):
        var.delta_gamma(total, np.zeros(3), -SIGMA, 0.99)


def test_greeks_are_the_derivatives_of_what_is_lost() -> None:
    held = hold([(0, 0, 3e3), (0, 1, -6e3), (0, 2, 4e3), (0, 3, 1e3)], instruments=SIMPLE, spot=np.array([[1.0, 0, 0]]))
    greeks = var.sensitivities(held, market())
    step = 1e-3
    moves = np.array([[step, 0, 0], [-step, 0, 0], [0, step, 0]])
    up, down, other = -var.account_losses(held, market(), var.STILL, moves)[0]
    assert greeks.delta[0, 0] == pytest.approx((up - down) / (2 * step), rel=1e-4)
    assert greeks.gamma[0, 0] == pytest.approx((up + down) / step**2, rel=1e-3)
    assert greeks.delta[0, 1] == pytest.approx(other / step)
    short = replace(held, size=-np.abs(held.size))  # loses with volatility up
    bump = VolatilityShockRow(up=1e-4, down=0.0, least=0.0)  # of the volatility there is; times 1 at 30 days
    sigma = var.implied_vols(SIMPLE, market())[[1, 2]]
    vegas = [var.sensitivities(hold([(0, i, -4e3)], instruments=SIMPLE), market()).vega[0, 0] for i in (1, 2)]
    sizes = short.size[[1, 2]] / np.array([hold([(0, i, -4e3)], instruments=SIMPLE).size[0] for i in (1, 2)])
    lost = var.account_losses(short, market(), bump, np.zeros((1, 3)))[0, 0]
    assert lost == pytest.approx(-float(np.sum(vegas * sizes * sigma * 1e-4)), rel=1e-3)


@given(holdings)
def test_pricing_only_the_worst_in_full_never_finds_more_than_pricing_all(rows: Rows) -> None:
    held = together(rows)
    part = var.revalue_worst(held, market(), MOVES, 0.96)
    full = np.maximum(tails.expected_shortfall(var.account_losses(held, market(), var.STILL, MOVES), 0.96), 0)
    assert (part <= full + slack(*full)).all()


def test_for_a_short_straddle_the_worst_moves_are_found() -> None:
    held = hold([(0, 1, -6_000.0), (0, 2, -6_000.0), (1, 0, 1e4)], instruments=SIMPLE)
    moves = copula.simulate_normal(SIGMA, 2**12, 4)
    part = var.revalue_worst(held, market(), moves, 0.975)
    full = tails.expected_shortfall(var.account_losses(held, market(), var.STILL, moves), 0.975)
    assert part == pytest.approx(full, rel=1e-3)
    with pytest.raises(ValueError, match="alpha"):
        var.revalue_worst(held, market(), moves, 0.9)


def test_expired_options_and_the_kink_have_defined_greeks() -> None:
    expiring = listing((CALL, 0, 2_000.0, 0), (PUT, 0, 2_500.0, -60))
    held = hold([(0, 0, 1e3), (0, 1, -1e3)], instruments=expiring)
    greeks = var.sensitivities(held, market())
    assert np.isfinite(np.stack(greeks)).all()
    got = var.requirement(held, market(), POLICY)
    assert np.isfinite(got.initial).all()


# --- the two methods --------------------------------------------------------------------------------------------------

NORMAL = HistoryRow(
    underlyings=FEEDS, moves=tuple(map(tuple, copula.simulate_normal(SIGMA, 2**12, 8).round(9).tolist()))
)
WAYS = {
    method: risk_policy(past=NORMAL).model_copy(update={"var": VarRow(method=method)})  # type: ignore[arg-type]
    for method in ("historical", "parametric")
}


@given(st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=2), st.floats(0, 5))
def test_of_linear_portfolios_both_methods_are_the_closed_form(sizes: list[float], hedge: float) -> None:
    held = hold([(0, 0, sizes[0]), (0, 3, sizes[1])], instruments=SIMPLE, spot=np.array([[hedge, 0.0, 0.0]]))
    w = np.array([sizes[0] + hedge * 2_000.0, sizes[1], 0.0])
    closed = tails.normal_es(math.sqrt(w @ SIGMA @ w), NORMAL.confidence)
    for policy in WAYS.values():
        got = var.requirement(held, market(), policy)
        assert got.initial[0] == pytest.approx(closed, rel=0.04, abs=1e-6)
        assert got.maintenance[0] == pytest.approx(0.8 * got.initial[0])
        assert got.rows[0].sum() == pytest.approx(got.initial[0], rel=1e-9, abs=1e-6)


@given(holdings, spots, st.floats(1e-2, 1e2))
def test_the_parametric_requirement_scales_and_is_explained_in_full(
    rows: Rows, spot: list[float], times: float
) -> None:
    hedge = np.array([spot, [x * times for x in spot]])
    held = together(rows, [(i, x * times) for i, x in rows], spot=hedge)
    got = var.requirement(held, market(), WAYS["parametric"])
    assert (got.initial >= got.maintenance).all()
    assert got.initial[1] == pytest.approx(got.initial[0] * times, rel=1e-6, abs=1e-6)
    owner = np.concatenate([held.account, np.repeat(np.arange(2), 3)])
    np.testing.assert_allclose(np.bincount(owner, got.rows[0], 2), got.initial, rtol=1e-9, atol=1e-6)


def test_the_parametric_requirement_counts_vega_and_prices_the_worst_in_full() -> None:
    held = hold([(0, 1, -6_000.0), (0, 2, -6_000.0), (1, 1, 6_000.0)], accounts=3, instruments=SIMPLE)
    got = var.requirement(held, market(), WAYS["parametric"])
    full = var.requirement(held, market(), WAYS["historical"])
    assert got.initial[0] == pytest.approx(full.initial[0], rel=0.1)  # a short straddle: its worst moves are found
    part = var.revalue_worst(held, market(), MOVES_DRAWN, NORMAL.confidence, WAYS["parametric"].scenario.volatility)
    assert (got.initial >= part - slack(*part)).all()
    assert got.initial[2] == 0
    assert got.binding[2] == ""
    premium = float(option_values(SIMPLE, market(), market().spot)[1] * held.size[2])
    calm = VolatilityShockRow(up=0.0, down=0.0, least=0.0)
    still = WAYS["parametric"].model_copy(
        update={"scenario": WAYS["parametric"].scenario.model_copy(update={"volatility": calm})}
    )
    assert var.requirement(held, market(), still).initial[0] < got.initial[0]
    assert got.initial[1] < 1.5 * premium


MOVES_DRAWN = copula.simulate_normal(np.array(NORMAL.moves).T @ np.array(NORMAL.moves) / 2**12, 4_096, 1)


def draw(rng: np.random.Generator) -> Rows:
    """Return three rows of one account."""
    return list(zip(rng.integers(0, 4, 3).tolist(), rng.normal(0, 1e4, 3).tolist(), strict=True))


def test_an_account_among_many_needs_to_the_last_bit_what_it_needs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    rows = [(a, i, x) for a in range(40) for i, x in draw(rng)]
    spot = rng.random((40, 3))
    whole = var.requirement(hold(rows, instruments=SIMPLE, spot=spot), market(), POLICY)
    for a in (0, 17, 39):
        mine = [(0, i, x) for account, i, x in rows if account == a]
        alone = var.requirement(hold(mine, instruments=SIMPLE, spot=spot[a : a + 1]), market(), POLICY)
        assert alone.initial[0] == whole.initial[a]
        assert alone.binding[0] == whole.binding[a]
        assert np.array_equal(alone.rows[:, :3], whole.rows[:, 3 * a : 3 * a + 3])
    monkeypatch.setattr(var, "CELLS", 3 * 24)  # a few accounts at a time, instruments priced block by block
    small = var.requirement(hold(rows, instruments=SIMPLE, spot=spot), market(), POLICY)
    assert np.array_equal(small.initial, whole.initial)
    assert np.array_equal(small.rows, whole.rows)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=20, max_size=60), st.floats(0.5, 0.99))
def test_the_tail_of_many_is_the_tail_of_each(losses: list[float], alpha: float) -> None:
    series = np.array([losses, losses[::-1]])
    at, weights = var._tail_of_each(series, tails.tail_of(len(losses), alpha))
    for row in range(2):
        whole = np.zeros(len(losses))
        whole[at[row]] = weights[row]
        np.testing.assert_allclose(whole, tails.tail_weights(series[row], alpha), atol=1e-12)


def test_a_parametric_policy_asks_for_a_confidence_it_can_serve() -> None:
    past = NORMAL.model_copy(update={"confidence": 0.9, "underlyings": FEEDS})
    whole = risk_policy(past=past).model_dump() | {"models": {"monitored": "var"}, "var": {"method": "parametric"}}
    with pytest.raises(ValidationError, match=r"history\.confidence: must be at least 0\.95"):
        PolicyRow.model_validate(whole)
    with pytest.raises(ValidationError, match="power of two"):
        VarRow(draws=1000)
