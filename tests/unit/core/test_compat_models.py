"""Margin models that imitate venues, and the small rules beside them: by hand, at the edges, and as requirements."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator.core import weights
from aggregator.core.contracts import collect_instruments
from aggregator.core.holdings import Legs
from aggregator.core.instruments.option import black76
from aggregator.core.liquidation import auction_discount, liquidation_size
from aggregator.core.margin import health, pmrm1, pmrm2, span, standard
from aggregator.domain.contracts import CALL, INVERSE, LAYERS, PERP, PUT, Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow, SviRow, UnderlyingRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import SECONDS_PER_YEAR

NOW, DAY = 1_700_000_000, 86_400
ETH, BTC = 0, 1
SURFACE = (SviRow(tenor=30 * DAY, a=0.02, b=0.05, rho=-0.2, m=0.0, sigma=0.2),)
ROWS = {
    "ETH/USD": UnderlyingRow(range=0.18, group="coins", rate=0.05, surface=SURFACE),
    "BTC/USD": UnderlyingRow(range=0.15, group="coins", rate=0.05, surface=SURFACE),
}
POLICY = PolicyRow.model_validate(
    {"version": "1", "lifetime": 60, "assets": {}, "underlyings": ROWS, "groups": {"coins": {"offset": 0.5}}}
)
Model = Callable[[Portfolios, Market, PolicyRow], Requirement]
MODELS: dict[str, Model] = {
    "pmrm-2": pmrm2.requirement,
    "pmrm-1": pmrm1.requirement,
    "standard": standard.requirement,
    "span": span.requirement,
}
each_model = pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))

Row = tuple[int, int, int, float, int, float, float]  # account, kind, underlying, strike, days, size, entry
MIXED: list[Row] = [
    (0, CALL, ETH, 2200, 20, -3, 0),
    (0, CALL, ETH, 2500, 20, 2, 0),
    (0, PUT, ETH, 1800, 60, -1.5, 0),
    (0, PERP, ETH, 0, 0, 2, 1900),
    (0, PERP, BTC, 0, 0, -0.1, 31_000),
    (1, CALL, BTC, 30_000, 20, 1, 0),
    (2, PUT, BTC, 25_000, -1, -1, 0),
    (2, INVERSE, ETH, 0, 0, -4_000, 2_000),
    (3, PUT, ETH, 2000, 20, -1, 0),
    (3, CALL, ETH, 2000, 20, -1, 0),
]


def market(confidence: float = 1.0, stable: float = 1.0) -> Market:
    sure = np.full(2, confidence)
    ranges = np.array([0.18, 0.15])
    return Market(NOW, tuple(ROWS), np.array([2000.0, 30_000.0]), sure, ranges, tuple(ROWS.values()), stable)


def book(rows: list[Row], spot: dict[tuple[int, int], float] | None = None, accounts: int = 4) -> Portfolios:
    table = sorted(rows)
    account, kind, underlying, strike, days, size, entry = (np.array(column) for column in zip(*table, strict=True))
    expiry = np.where((kind == CALL) | (kind == PUT), NOW + days * DAY, 0)
    instruments, index = collect_instruments(kind, underlying, strike.astype(float), expiry)
    hedge = np.zeros((accounts, 2))
    for place, amount in (spot or {}).items():
        hedge[place] = amount
    return Portfolios(
        accounts, account, index, size.astype(float), entry.astype(float), np.zeros(len(table)), hedge, instruments
    )


HEDGED = book(MIXED, {(0, ETH): 1.0, (3, BTC): 0.2})


@each_model
@pytest.mark.parametrize("confidence", [1.0, 0.3])
@pytest.mark.parametrize("stable", [1.0, 0.9])
def test_a_requirement_is_the_sum_of_its_layers_and_of_its_rows(model: Model, confidence: float, stable: float) -> None:
    answer = model(HEDGED, market(confidence, stable), POLICY)
    owner = np.concatenate([HEDGED.account, np.repeat(np.arange(4), 2)])
    for level, total in ((INITIAL, answer.initial), (MAINTENANCE, answer.maintenance)):
        assert answer.layers.shape == (2, len(LAYERS), 4)
        assert answer.layers[level].sum(axis=0) == pytest.approx(total)
        assert np.bincount(owner, answer.rows[level], minlength=4) == pytest.approx(total)
    assert np.all(answer.maintenance >= 0)
    assert np.all(answer.initial >= answer.maintenance)
    assert answer.initial[0] > 0
    assert len(answer.binding) == 4
    assert all(answer.binding)


@each_model
def test_an_account_does_not_depend_on_others(model: Model) -> None:
    together = model(HEDGED, market(), POLICY)
    for account in range(4):
        alone = book(
            [(0, *row[1:]) for row in MIXED if row[0] == account],
            {(0, u): float(HEDGED.spot[account, u]) for u in (ETH, BTC)},
            1,
        )
        answer = model(alone, market(), POLICY)
        assert answer.initial[0] == pytest.approx(together.initial[account])
        assert answer.maintenance[0] == pytest.approx(together.maintenance[account])


@each_model
def test_a_portfolio_k_times_as_large_needs_k_times_as_much(model: Model) -> None:
    once = model(HEDGED, market(0.3), POLICY)
    for factor in (3.0, 1e30):
        answer = model(replace(HEDGED, size=factor * HEDGED.size, spot=factor * HEDGED.spot), market(0.3), POLICY)
        assert answer.initial == pytest.approx(factor * once.initial)
        assert answer.maintenance == pytest.approx(factor * once.maintenance)


@each_model
def test_an_account_without_contracts_needs_nothing(model: Model) -> None:
    answer = model(book([(0, PERP, ETH, 0, 0, 1, 2000)]), market(), POLICY)
    assert answer.initial[0] > 0
    assert np.all(answer.initial[1:] == 0)
    assert np.all(answer.maintenance[1:] == 0)


@each_model
def test_these_portfolios_need_no_more_together_than_apart(model: Model) -> None:
    apart = model(
        book([(0, *row[1:]) if row[0] == 0 else (1, *row[1:]) for row in MIXED], accounts=2), market(), POLICY
    )
    joint = model(book([(0, *row[1:]) for row in MIXED], accounts=1), market(), POLICY)
    slack = 1e-9 * apart.initial.sum()
    assert joint.initial[0] <= apart.initial.sum() + slack
    assert joint.maintenance[0] <= apart.maintenance.sum() + slack


@each_model
def test_what_no_model_can_count_with_is_an_error_that_names_it(model: Model) -> None:
    with pytest.raises(ValueError, match=r"portfolios\.size"):
        model(replace(HEDGED, size=HEDGED.size * math.nan), market(), POLICY)
    with pytest.raises(ValueError, match=r"market\.spot"):
        model(HEDGED, replace(market(), spot=np.array([0.0, 1.0])), POLICY)


@pytest.mark.parametrize("name", ["pmrm-2", "pmrm-1", "standard", "span"])
def test_an_option_without_a_surface_is_an_error(name: str) -> None:
    bare = replace(market(), rows=tuple(row.model_copy(update={"surface": ()}) for row in ROWS.values()))
    with pytest.raises(ValueError, match="no mark"):
        MODELS[name](HEDGED, bare, POLICY)


@pytest.mark.parametrize("name", ["pmrm-2", "pmrm-1", "span"])
def test_spot_hedges_a_perp_sold_and_a_call_sold(name: str) -> None:
    model = MODELS[name]
    for row in ((0, PERP, ETH, 0, 0, -1, 2000), (0, CALL, ETH, 1000, 20, -1, 0)):
        naked, covered = model(book([row]), market(), POLICY), model(book([row], {(0, ETH): 1.0}), market(), POLICY)
        assert covered.initial[0] < 0.8 * naked.initial[0]
    bought: Row = (0, PERP, ETH, 0, 0, 1, 2000)
    more = model(book([bought], {(0, ETH): 1.0}), market(), POLICY)
    assert more.initial[0] == pytest.approx(2 * model(book([bought]), market(), POLICY).initial[0], rel=0.1)


@pytest.mark.parametrize("name", ["pmrm-2", "pmrm-1", "span"])
def test_an_inverse_perp_needs_what_the_linear_one_that_moves_alike_needs(name: str) -> None:
    inverse = MODELS[name](book([(0, INVERSE, ETH, 0, 0, -4_000, 1_600)]), market(), POLICY)
    linear = MODELS[name](book([(0, PERP, ETH, 0, 0, -2.5, 1_600)]), market(), POLICY)
    assert inverse.initial[0] == pytest.approx(linear.initial[0])
    assert inverse.binding == linear.binding


def test_pmrm2_of_a_perp_by_hand() -> None:
    answer = pmrm2.requirement(book([(0, PERP, ETH, 0, 0, -2, 2000)]), market(0.4, 0.9), POLICY)
    worst = 2 * 2000 * 0.18
    assert answer.maintenance[0] == pytest.approx(0.8 * worst + 0.015 * 4000)
    assert answer.initial[0] == pytest.approx((1 + 2 * 0.08) * worst + 0.02 * 4000 + 0.6 * 4000)
    assert answer.binding[0] == "ETH/USD +18%, vol up"


def test_pmrm2_is_value_less_balance() -> None:
    seconds, years = np.array([20.0 * DAY]), 20 * DAY / SECONDS_PER_YEAR
    forward = 2000 * math.exp(0.05 * years)
    vol = np.array([pmrm2.holdings(book([(0, CALL, ETH, 2200, 20, -3, 0)]), market()).__next__().options.vol[0]])
    legs = Legs(np.zeros(1, np.int64), np.array([2200.0]), np.array([True]), np.array([-3.0]), vol)
    expiries = pmrm2.Expiries(seconds, np.array([forward]), np.array([0.05]), np.array([1.0]))
    direct = pmrm2.margin(pmrm2.Portfolio(2000, 1.0, expiries, legs), pmrm2.scenario_grid(0.18))
    answer = pmrm2.requirement(book([(0, CALL, ETH, 2200, 20, -3, 0)]), market(), POLICY)
    assert direct.value == pytest.approx(-3 * math.exp(-0.05 * years) * black76(forward, 2200, years, vol[0], True))
    assert answer.initial[0] == pytest.approx(direct.value - direct.initial)
    assert answer.maintenance[0] == pytest.approx(direct.value - direct.maintenance)
    assert direct.worst == pytest.approx(sum(float(part.sum()) for part in direct.pnl))


def test_the_grid_of_pmrm2_is_the_published_one() -> None:
    path = Path(__file__).parent / "vectors" / "risk_cases.json"
    published = next(c for c in json.loads(path.read_text("utf-8"))["cases"] if c["family"] == "pmrm2_margin")
    wanted = sorted((move, shock.lower(), weight) for move, shock, weight in published["inputs"]["scen"])
    got = sorted(pmrm2.scenario_grid())
    assert [(s.volatility) for s in got] == [shock for _, shock, _ in wanted]
    assert np.array([(s.move, s.weight) for s in got]) == pytest.approx(np.array([(m, w) for m, _, w in wanted]))


def test_pmrm2_skew_of_a_negative_cap_keeps_minimum_and_maximum_in_place() -> None:
    k, star = np.array([-1.0, -0.01, 0.0, 0.01, 1.0]), np.full(5, 0.1)
    assert pmrm2._skew(k, np.full(5, 0.2), star) == pytest.approx(np.array([0.8, 0.98, 1, 1.02, 1.2]))
    assert pmrm2._skew(k, np.full(5, -0.2), star) == pytest.approx(np.array([3.0, 1.2, 0.8, 0.8, 0.0]))
    assert pmrm2._skew(k, np.full(5, 0.2), np.zeros(5)) == pytest.approx(np.array([0.8, 0.8, 1, 1.2, 1.2]))


def test_pmrm1_scales_its_moves_to_a_greater_range_only() -> None:
    rows: list[Row] = [(0, PERP, ETH, 0, 0, 1, 2000), (1, PERP, BTC, 0, 0, 1, 30_000)]
    answer = pmrm1.requirement(book(rows), replace(market(), range=np.array([0.3, 0.01])), POLICY)
    assert answer.maintenance[0] == pytest.approx(2000 * (0.3 + 0.02))
    assert answer.maintenance[1] == pytest.approx(30_000 * (0.15 + 0.02))


def test_pmrm1_settles_what_the_average_knows_already() -> None:
    def of(fixed: float, variable: float) -> float:
        expiries = pmrm1.Expiries(*(np.array([v]) for v in (900.0, fixed, variable, 0.0, 1.0)))
        legs = Legs(np.zeros(1, np.int64), np.array([1000.0]), np.array([True]), np.array([-1.0]), np.ones(1))
        return pmrm1.margin(pmrm1.Portfolio(1000, 1.0, expiries, legs, np.zeros(0))).worst

    assert of(750, 250) == pytest.approx(of(0, 1000) * 0.25, rel=0.1)


def test_standard_of_longs_needs_all_that_they_are_worth() -> None:
    long: list[Row] = [(0, CALL, ETH, 2200, 20, 3, 0)]
    answer = standard.requirement(book(long), market(), POLICY)
    options = next(standard.holdings(book(long), market())).options
    worth = 3 * black76(options.forward[0], 2200, 20 * DAY / SECONDS_PER_YEAR, options.vol[0], True)
    assert answer.initial[0] == pytest.approx(worth)
    assert answer.maintenance[0] == pytest.approx(worth)


def test_standard_asks_no_more_of_a_spread_than_it_can_lose() -> None:
    spread: list[Row] = [(0, CALL, ETH, 2000, 20, -1, 0), (0, CALL, ETH, 2050, 20, 1, 0)]
    answer = standard.requirement(book(spread), market(), POLICY)
    assert 0 < answer.initial[0] < 50
    assert answer.initial[0] == pytest.approx(answer.maintenance[0])
    naked = standard.requirement(book(spread[:1]), market(), POLICY)
    assert naked.initial[0] == pytest.approx(2000 * 0.15)
    assert naked.maintenance[0] == pytest.approx(2000 * 0.075)


def test_span_has_sixteen_scenarios_with_both_extremes() -> None:
    scenarios = span.scenario_set(2.0, 0.35)
    assert len(scenarios) == span.COUNT == 16
    assert len(set(scenarios)) == 16
    assert scenarios[-2:] == ((2.0, 0, 0.35), (-2.0, 0, 0.35))
    assert {(round(3 * s.move), s.vol) for s in scenarios[:14]} == {(m, v) for m in range(-3, 4) for v in (1, -1)}


@pytest.mark.parametrize(("multiple", "coverage", "scan"), [(3, 0.33, 0.18), (3, 0.5, 0.27), (2, 1, 0.36), (9, 1, 1.0)])
def test_span_scans_a_perp_by_its_range_or_the_covered_extreme(multiple: float, coverage: float, scan: float) -> None:
    nothing = np.zeros(0)
    position = span.Position(
        2000, 0.18, 0.0, nothing, nothing, nothing, nothing.astype(bool), nothing, nothing, np.array([1.0])
    )
    charge = span.charge(position, span.Parameters(multiple=multiple, coverage=coverage))
    assert charge.scan == pytest.approx(2000 * scan)
    assert charge.total() == pytest.approx(2000 * scan)


def test_span_charges_spreads_between_expiries_and_credits_underlyings() -> None:
    alone = span.requirement(book([(0, PERP, ETH, 0, 0, 3, 2000)]), market(), POLICY).maintenance[0]
    other = span.requirement(book([(0, PERP, BTC, 0, 0, -0.1, 3000)]), market(), POLICY).maintenance[0]
    assert (alone, other) == (pytest.approx(6000 * 0.18), pytest.approx(3000 * 0.15))
    rows: list[Row] = [(0, PERP, ETH, 0, 0, 3, 2000), (0, PERP, BTC, 0, 0, -0.1, 3000)]
    assert span.requirement(book(rows), market(), POLICY).maintenance[0] == pytest.approx(alone + other - 2 * 0.5 * 450)
    ungrouped = POLICY.model_copy(update={"groups": {}})
    assert span.requirement(book(rows), market(), ungrouped).maintenance[0] == pytest.approx(alone + other)
    same = [rows[0], (0, PERP, BTC, 0, 0, 0.1, 3000)]
    assert span.requirement(book(same), market(), POLICY).maintenance[0] == pytest.approx(alone + other)
    # A synthetic forward bought against a perp sold scans to almost nothing: the spread is charged.
    hedged: list[Row] = [
        (0, CALL, ETH, 2000, 60, 1, 0), (0, PUT, ETH, 2000, 60, -1, 0), (0, PERP, ETH, 0, 0, -1, 2000)
    ]  # fmt: skip
    assert span.requirement(book(hedged), market(), POLICY).layers[MAINTENANCE, 0, 0] >= 0.01 * 2000 * 0.99


def test_span_asks_its_minimum_of_options_far_out_of_the_money() -> None:
    answer = span.requirement(book([(0, CALL, ETH, 40_000, 20, -10, 0)]), market(), POLICY)
    assert answer.maintenance[0] == pytest.approx(10 * 2000 * 0.005)
    assert answer.initial[0] == pytest.approx(1.1 * answer.maintenance[0])


@pytest.mark.parametrize(
    ("parts", "total"),
    [((20, 5, 1, 2, 0, 0), 24), ((20, 5, 1, 2, 30, 0), 30), ((20, 0, 0, 0, 0, 25), -5), ((1, 0, 0, 0, 2, -3), 5)],
)
def test_spans_total(parts: tuple[float, ...], total: float) -> None:
    assert span.total_margin(*parts) == total


def test_credits_never_exceed_what_was_charged() -> None:
    assert span.credits([10, 30, 5], [1, -2, 3], 1.0) == pytest.approx([10, 15, 5])
    assert span.credits([10, 30], [0, -2], 0.5) == [0, 0]
    with pytest.raises(ValueError, match="offset"):
        span.credits([1], [1], 1.5)


BANDS = ([1e6, 5e6], [0.01, 0.02])


@pytest.mark.parametrize(
    ("notional", "margin"), [(0, 0), (1e6, 1e4), (1e6 + 1, 1e4 + 0.02), (5e6, 9e4), (6e6, 1.1e5), (1e30, 2e28)]
)
def test_bands_go_on_beyond_the_last(notional: float, margin: float) -> None:
    assert weights.banded(notional, *BANDS) == pytest.approx(margin)
    assert weights.banded(np.array([[notional]]), *BANDS).shape == (1, 1)


def test_weights_fall_and_ratios_rise_with_size() -> None:
    sizes = np.geomspace(1e-6, 1e30, 200)
    assert np.all(np.diff(weights.asset_weight(0.9, sizes, 0.01)) <= 0)
    assert np.all(np.diff(weights.liability_weight(1.1, sizes, 0.01)) >= 0)
    assert np.all(np.diff(weights.deposit_weight(0.9, 1e6, sizes)) <= 0)
    assert weights.perp_margin(-4, 10, 0.05, 0.1) == weights.perp_margin(4, 10, 0.05, 0.1) == pytest.approx(9.6)
    assert weights.simm_curvature(np.array([0, 14, 28])) == pytest.approx(np.array([0.5, 0.5, 0.25]))


@pytest.mark.parametrize(
    ("work", "argument"),
    [
        (lambda: weights.asset_weight(math.nan, 1, 1), "weight"),
        (lambda: weights.asset_weight(1, -1, 1), "size"),
        (lambda: weights.liability_weight(1, 1, math.inf), "imf"),
        (lambda: weights.perp_margin(1, -1, 1, 1), "price"),
        (lambda: weights.deposit_weight(1, 1, math.nan), "deposits"),
        (lambda: weights.band_sum([1], [1, 2]), "rates"),
        (lambda: weights.banded(1, [2, 1], [1, 1]), "ends"),
        (lambda: weights.banded(1, [], []), "rates"),
        (lambda: weights.simm_curvature(-1), "days"),
        (lambda: liquidation_size(1, 0, 0.1, 0), "price"),
        (lambda: liquidation_size(-1, 1, 0.1, 0), "shortage"),
        (lambda: auction_discount(-1, 1, 0.8, 1, 1), "t "),
        (lambda: auction_discount(1, 0.5, 0.8, 1, 1), "cutoff"),
        (lambda: health.weighted_excess(1, -1, 1, 1), "liability"),
        (lambda: health.greatest_loan_to_value(1, 0), "liability_weight"),
        (lambda: health.health_factor(np.ones(1), np.full(1, 1.5), 1), "thresholds"),
        (lambda: span.scan_risk([]), "pnl"),
        (lambda: span.total_margin(-1, 0, 0, 0, 0, 0), "scan"),
        (lambda: span.Parameters(initial_factor=0.5), "initial_factor"),
    ],
)
def test_an_argument_that_nobody_should_give_is_named(work: Callable[[], object], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}"):
        work()


def test_closing_forms_at_their_bounds() -> None:
    assert liquidation_size(0, 100, 0.1, 0.2) == 0
    assert liquidation_size(1, 100, 0.1, 0.05, 0.05) == math.inf
    assert liquidation_size(10, 100, 0.1, 0.02, 0.03) == pytest.approx(2)
    assert auction_discount(0, 1, 0.8, 0, 0) == 0
    assert auction_discount(0, 1, 0.8, 0, 10) == 0.8
    assert auction_discount(1e30, 1, 0.8, 10, 10) == 0
    assert health.weighted_usage(0, 1, 0.9, 1.1) is None
    assert health.weighted_usage(0, 0, 0.9, 1.1) == 0
