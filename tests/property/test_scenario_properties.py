"""What risk.md §4 and §6 promise of the scenario model, for any portfolio."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.contracts import contract_values
from aggregator.core.margin import scenario
from aggregator.core.models import MODELS
from aggregator.domain.contracts import CALL, INVERSE, LAYERS, PERP, PUT, Portfolios, Requirement
from aggregator.domain.policy import VolatilityShockRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import Floats
from tests.risk_world import LISTED, amounts, history, hold, holdings, listing, market, risk_policy, spots
from tests.strategies import DAY

POLICY, PAST = risk_policy(), risk_policy(past=history(scale=0.08))
GRID, PAST_GRID = (scenario.prepare(LISTED, market(), policy) for policy in (POLICY, PAST))
Rows = list[tuple[int, float]]
SHORTS = ((CALL, 0, 2_200.0, 20 * DAY), (PUT, 0, 1_900.0, 20 * DAY), (CALL, 1, 60_000.0, 3 * DAY), (PERP, 2, 0.0, 0))


def together(*accounts: Rows, spot: Floats | None = None) -> Portfolios:
    """Return one account for each list of rows."""
    return hold([(a, *row) for a, rows in enumerate(accounts) for row in rows], accounts=len(accounts), spot=spot)


def core(of: Requirement) -> Floats:
    """Return f·max(Σ R_g, basis, ES), shape (level, A)."""
    return of.layers[:, :3].sum(axis=1)


def slack(*values: float) -> float:
    """Return the rounding allowed among these amounts, USD."""
    return 1e-9 * (1 + sum(map(abs, values)))


def worth(given: Portfolios) -> Floats:
    """Return what every account's contracts are worth at p̂, shape (A,)."""
    of = market()
    return np.bincount(given.account, contract_values(given, of, of.spot, of.spot)[1], given.accounts)


@given(holdings, holdings, spots)
def test_two_portfolios_together_need_no_more_than_apart(one: Rows, two: Rows, spot: list[float]) -> None:
    hedge = np.array([spot, [0.0] * 3, spot])
    need = core(scenario.requirement_on(PAST_GRID, together(one, two, one + two, spot=hedge)))
    for apart, other, both in need:
        assert both <= apart + other + slack(apart, other)


@given(st.lists(st.tuples(holdings.map(lambda rows: rows[0]), st.booleans()), min_size=1, max_size=6), spots, st.data())
def test_what_may_be_gone_never_needs_less_whatever_of_it_is(
    marked: list[tuple[tuple[int, float], bool]], spot: list[float], data: st.DataObject
) -> None:
    rows, hedge = [row for row, _ in marked], np.array([spot])
    given_ = together(rows, spot=hedge)
    options = LISTED.kind[given_.instrument] >= CALL
    loose = np.array([mark for _, mark in marked]) & ~(options & (given_.size < 0))
    need = scenario.requirement_on(PAST_GRID, given_, loose)
    rounding = slack(*(x for _, x in rows), 1e4 * sum(spot))
    stays = ~loose | np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    left = scenario.requirement_on(PAST_GRID, replace(given_, size=np.where(stays, given_.size, 0.0)))
    assert (need.initial >= left.initial - rounding).all()
    assert (need.maintenance >= left.maintenance - rounding).all()
    # And one such row less never makes it more.
    fewer = np.where(loose & ~stays, 0.0, given_.size)
    less = scenario.requirement_on(PAST_GRID, replace(given_, size=fewer), loose)
    assert (need.initial >= less.initial - rounding).all()
    assert (need.maintenance >= less.maintenance - rounding).all()
    gross = np.abs(need.rows).sum(axis=1)
    for level, total in ((INITIAL, need.initial), (MAINTENANCE, need.maintenance)):
        assert abs(need.rows[level].sum() - total[0]) <= 1e-9 * (1 + gross[level])


@given(holdings, st.floats(1e-3, 1e3))
def test_a_portfolio_n_times_as_large_needs_n_times_as_much(rows: Rows, times: float) -> None:
    base, scaled = core(scenario.requirement_on(PAST_GRID, together(rows, [(i, x * times) for i, x in rows]))).T
    np.testing.assert_allclose(scaled, base * times, rtol=1e-9, atol=slack(times * sum(abs(x) for _, x in rows)))


@given(holdings, spots, st.floats(0, 1))
def test_every_model_asks_no_less_initially_and_explains_all_of_it(
    rows: Rows, spot: list[float], confidence: float
) -> None:
    given_ = together(rows, rows[:1], spot=np.array([spot, spot]))
    of = market(confidence=np.array([confidence, 1.0, confidence]))
    for name in ("scenario", "isolated", "cross", "tiered", "health"):
        got = MODELS[name](given_, of, PAST if len(rows) % 2 else POLICY)
        assert (got.initial >= got.maintenance - slack(*got.initial)).all(), name
        assert (got.maintenance >= 0).all(), name
        assert (got.layers >= -slack(*got.initial)).all(), name
        totals = np.stack([got.initial, got.maintenance])
        np.testing.assert_allclose(got.layers.sum(axis=1), totals, rtol=1e-12)
        owner = np.concatenate([given_.account, np.repeat(np.arange(2), 3)])
        gross = np.bincount(owner, np.abs(got.rows[INITIAL]), 2)
        for level in (INITIAL, MAINTENANCE):
            shared = np.bincount(owner, got.rows[level], 2)
            assert (np.abs(shared - totals[level]) <= 1e-9 * (1 + gross)).all(), name


@given(holdings, spots, st.randoms(use_true_random=False))
def test_neither_the_order_of_rows_nor_of_accounts_matters(rows: Rows, spot: list[float], random: object) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    lone = [(0, 5e3)]
    first = scenario.requirement_on(PAST_GRID, together(rows, lone, spot=np.array([spot, [0.0] * 3])))
    second = scenario.requirement_on(PAST_GRID, together(lone, mixed, spot=np.array([[0.0] * 3, spot])))
    scale = sum(abs(x) for _, x in rows)
    for level in (INITIAL, MAINTENANCE):
        a, b = first.layers[level], second.layers[level][:, ::-1]
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * scale)


@given(holdings, spots, st.sampled_from([1e-3, 0.1, 7.0, 1e6]))
def test_the_unit_of_an_underlying_does_not_matter(rows: Rows, spot: list[float], unit: float) -> None:
    """ETH and milli-ETH need the same: prices are c times as high, sizes 1/c as large."""
    base, of = together(rows, spot=np.array([spot])), market()
    listed = replace(LISTED, strike=LISTED.strike * unit)
    inverse = LISTED.kind[base.instrument] == INVERSE
    size = np.where(inverse, base.size, base.size / unit)
    other = replace(base, size=size, entry=base.entry * unit, spot=base.spot / unit, instruments=listed)
    want = scenario.requirement_on(PAST_GRID, base)
    got = scenario.requirement(other, replace(of, spot=of.spot * unit), PAST)
    np.testing.assert_allclose(got.layers, want.layers, rtol=1e-9, atol=1e-9 * sum(abs(x) for _, x in rows))


@given(holdings, holdings, spots)
def test_a_what_if_on_the_grid_equals_full_recomputation(rows: Rows, others: Rows, spot: list[float]) -> None:
    hedge = np.array([[0.0] * 3, spot])
    full = scenario.requirement(together(others, rows, spot=hedge), market(), PAST)
    alone = scenario.requirement_on(PAST_GRID, together(rows, spot=hedge[1:]))
    np.testing.assert_allclose(alone.layers[:, :, 0], full.layers[:, :, 1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(alone.rows[:, : len(rows)], full.rows[:, len(others) : -6], rtol=1e-12, atol=1e-9)
    assert alone.binding[0] == full.binding[1]


@given(holdings, st.sampled_from(np.flatnonzero(LISTED.kind >= CALL).tolist()), st.floats(1e-2, 1e5))
def test_a_long_option_never_costs_more_than_it_is_worth(rows: Rows, option: int, size: float) -> None:
    """Its premium is the most it can lose: worth − R does not fall when a portfolio gains one."""
    given_ = together(rows, [*rows, (option, size)])
    before, after = worth(given_) - core(scenario.requirement_on(GRID, given_))[INITIAL]
    assert after >= before - slack(*worth(given_), size)


@given(holdings, st.sampled_from(np.flatnonzero(LISTED.kind >= CALL).tolist()), st.floats(1e-2, 1e5))
def test_buying_options_never_adds_naked_shorts(rows: Rows, option: int, size: float) -> None:
    got = scenario.requirement_on(GRID, together(rows, [*rows, (option, size)]))
    before, after = got.layers[INITIAL, LAYERS.index("short options")]
    assert after <= before + slack(before, size)


@given(holdings)
def test_what_is_bought_back_needs_nothing_any_more(rows: Rows) -> None:
    closed = core(scenario.requirement_on(PAST_GRID, together([*rows, *((i, -x) for i, x in rows)])))
    assert (closed <= slack(*(x for _, x in rows))).all()


@given(st.sampled_from(range(len(SHORTS))), amounts, st.floats(0.02, 0.3), st.floats(0, 0.3))
def test_a_wider_range_never_needs_less(which: int, size: float, low: float, more: float) -> None:
    """Of one perp or short option; a portfolio may gain where its grid points come to lie elsewhere."""
    listed = listing(SHORTS[which])
    size = -abs(size) if SHORTS[which][0] in (CALL, PUT) else size
    narrow, wide = (
        scenario.requirement(
            hold([(0, 0, size)], instruments=listed), market(range=np.full(3, low + add)), POLICY
        ).initial[0]
        for add in (0.0, more)
    )
    assert wide >= narrow - slack(narrow)


@given(st.sampled_from(range(3)), st.floats(1, 1e5), st.floats(0, 2), st.floats(0, 2))
def test_a_greater_volatility_shock_never_needs_less_of_a_short_option(
    which: int, size: float, up: float, more: float
) -> None:
    given_ = hold([(0, 0, -size)], instruments=listing(SHORTS[which]))
    calm, wild = (
        scenario.requirement(given_, market(), POLICY.model_copy(update={"scenario": shocked})).initial[0]
        for add in (0.0, more)
        if (shocked := POLICY.scenario.model_copy(update={"volatility": VolatilityShockRow(up=up + add)}))
    )
    assert wild >= calm - slack(calm)


@given(holdings, st.floats(0.01, 0.5), st.floats(0, 0.49))
def test_a_greater_offset_never_needs_more(rows: Rows, less: float, more: float) -> None:
    loose, tight = (
        scenario.requirement_on(replace(GRID, offset=np.where(GRID.offset > 0, x, 0.0)), together(rows)).initial[0]
        for x in (less, less + more)
    )
    assert tight <= loose + slack(loose)


@given(holdings, st.floats(0, 0.2), st.floats(0, 0.2))
def test_what_contracts_are_worth_lies_within_its_interval(rows: Rows, below: float, above: float) -> None:
    """And a wider band of the price never narrows it."""
    given_, of = together(rows), market()
    narrow, wide = (
        contract_values(given_, of, of.spot * (1 - below * part), of.spot * (1 + above * part)) for part in (0.5, 1.0)
    )
    assert (np.diff(wide, axis=0) >= 0).all()
    tolerance = 1e-9 * (1 + np.abs(given_.size * of.spot.max()))
    assert (wide[0] <= narrow[0] + tolerance).all()
    assert (wide[2] >= narrow[2] - tolerance).all()
