"""The predictive layer: what histories say about risk parameters, and a parameter set that is whole."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregator.cli.history import read_history, returns_over
from aggregator.core.haircut import expected_shortfall, expected_shortfall_up
from aggregator.core.risk import calibration
from aggregator.core.risk.backtest import run_backtest
from aggregator.core.risk.calibration import Estimate, Sample
from aggregator.domain.policy import (
    MOST_JUMPS,
    AssetPolicyRow,
    JumpRow,
    OffsetGroupRow,
    PolicyRow,
    SviRow,
    policy_digest,
)
from aggregator.domain.report import AccountMargin, Component, Flag, Haircuts, Interval
from aggregator.domain.snapshot import Position
from aggregator.domain.units import Floats
from tests.risk_world import risk_policy, underlying

PRICES = Path(__file__).parent / "prices"
DAY, HOUR = 86_400, 3_600


def sample(returns: Floats, period: int = DAY, series: str = "x", start: int = 0) -> Sample:
    times = start + period * np.arange(1, len(returns) + 1, dtype=np.int64)
    return Sample(series, "0x" + "11" * 32, period, times, np.asarray(returns, dtype=np.float64), 0)


def of_file(name: str, period: int) -> Sample:
    history = read_history(PRICES / f"{name}.csv.gz")
    cut = returns_over(history, period)
    return Sample(history.name, history.sha256, period, cut.times, cut.close, history.missing)


def steady(volatility: float, n: int = 800, seed: int = 1) -> Floats:
    return np.expm1(np.random.default_rng(seed).standard_normal(n) * volatility / math.sqrt(365))


# --- the histories that the repository carries ------------------------------------------------------------------------


def test_every_history_here_is_what_its_metadata_says() -> None:
    metadata = json.loads((PRICES / "metadata.json").read_text("utf-8"))["files"]
    assert set(metadata) == {path.name for path in PRICES.glob("*.gz")}
    for name, told in metadata.items():
        content = (PRICES / name).read_bytes()
        assert told["sha256"] == hashlib.sha256(content).hexdigest()
        assert told["licence"] == "MIT"
        history = read_history(PRICES / name)
        assert len(history.times) == told["bars"]
        assert history.sha256 == "0x" + told["sha256"]


def test_known_prices_are_in_them() -> None:
    sol = read_history(PRICES / "sol_usdt_1d_binance.csv.gz")
    day = sol.times.tolist().index(1_667_952_000)  # 2022-11-09, the fall of FTX
    assert sol.close[day] == pytest.approx(14.08, abs=0.5)
    assert sol.open[day] == pytest.approx(24.38, abs=0.5)
    assert read_history(PRICES / "steth_eth_1h_coingecko.csv.gz").low.min() == pytest.approx(0.917, abs=0.02)


# --- estimates --------------------------------------------------------------------------------------------------------


def test_a_steady_market_is_taken_at_its_volatility() -> None:
    found = calibration.estimate(sample(steady(0.6, 3000)))
    for value in (found.ewma, found.garch, found.long_run, found.volatility):
        assert value == pytest.approx(0.6, rel=0.25)
    assert found.volatility >= max(found.ewma, found.garch, found.long_run)
    assert found.range == pytest.approx(2.81 * 0.6 / math.sqrt(365), rel=0.35)  # two-sided 99.5% of a normal


def test_calm_after_a_storm_does_not_make_margins_cheap() -> None:
    storm = np.concatenate([steady(1.6, 400), steady(0.2, 400, seed=2)])
    found = calibration.estimate(sample(storm))
    assert found.ewma == pytest.approx(0.2, rel=0.4)
    assert found.volatility >= 0.75 * max(found.ewma, found.garch) + 0.25 * found.stress - 1e-9
    assert found.volatility >= found.long_run > 0.9
    moves = found.filtered
    assert np.std(moves[-200:]) == pytest.approx(found.volatility / math.sqrt(365), rel=0.3)


def test_noise_of_bars_counts_where_days_hide_it() -> None:
    bars = np.resize([0.002, -0.002], 24 * 400)
    daily = sample(steady(0.01, 400))
    found = calibration.estimate(daily, sample(bars, HOUR))
    assert found.noise == pytest.approx(0.002 * math.sqrt(365 * 24), rel=0.01)
    assert found.volatility >= found.noise


def test_jumps_are_the_peaks_that_were_put_in() -> None:
    returns = np.resize([0.001, -0.001], 24 * 730)  # two years of hours
    for place, loss in ((2_000, 0.05), (2_003, 0.08), (6_000, 0.06), (9_000, 0.05), (12_000, 0.07)):
        returns[place] = -loss
    rows = calibration.estimate_jumps(sample(returns, HOUR))
    frequent, deep, worst = rows
    assert (frequent.rate, deep.rate, worst.rate) == (1.5, 0.5, 0.5)  # the peak 3 h before another is the same one
    assert frequent.recovery == pytest.approx(1 - (0.07 + 0.06 + 0.05) / 3, abs=2e-4)
    assert deep.recovery == pytest.approx(0.92, abs=2e-4)
    assert worst.recovery == pytest.approx(1 - (1 - 0.95 * 0.92), abs=5e-3)
    assert calibration.estimate_jumps(sample(np.full(500, 0.001))) == ()


def test_a_fall_within_a_day_is_found_across_bars() -> None:
    returns = np.zeros(200)
    returns[50:60] = -0.02
    returns[100:130] = -0.02  # 30 hours: a day of it is 24 bars
    assert calibration.deepest_fall(sample(returns, HOUR)) == pytest.approx(1 - 0.98**24)


def with_outage(crash: float, hours: int, at: int = 300, n: int = 600) -> Sample:
    """Return hours that stand still but for a crash while ``hours`` bars are missing, and a slow fall the day after."""
    returns, gaps = np.zeros(n), np.zeros(n)
    gaps[at] = -crash
    returns[at + 30 : at + 40] = -0.01
    times = HOUR * np.arange(1, n + 1, dtype=np.int64)
    times[at:] += hours * HOUR
    return Sample("x", "0x" + "11" * 32, HOUR, times, returns, hours, gaps)


@pytest.mark.parametrize("hours", [1, 5, 23, 24, 100])
def test_a_crash_while_bars_are_missing_counts(hours: int) -> None:
    assert calibration.deepest_fall(with_outage(0.4, hours)) == pytest.approx(0.4)
    assert calibration.deepest_fall(with_outage(0.05, hours)) == pytest.approx(1 - 0.99**10)
    noisy = with_outage(0.4, hours)
    noisy = noisy._replace(returns=noisy.returns + np.resize([0.001, -0.001], len(noisy.returns)))
    rows = calibration.estimate_jumps(noisy)
    assert min(row.recovery for row in rows) == pytest.approx(0.6, abs=5e-3)
    assert len(rows) > len(calibration.estimate_jumps(noisy._replace(gaps=None)))


def test_hours_that_an_outage_lies_between_are_not_one_day() -> None:
    """20 hours down, 10 missing, 20 hours down: no day holds both."""
    returns = np.zeros(200)
    returns[80:100] = returns[100:120] = -0.01
    times = HOUR * np.arange(1, 201, dtype=np.int64)
    times[100:] += 10 * HOUR
    fall = calibration.deepest_fall(Sample("x", "0x" + "11" * 32, HOUR, times, returns, 10, np.zeros(200)))
    assert fall == pytest.approx(1 - 0.99**20)


def test_moves_over_missing_bars_are_cut_out_of_a_history_with_the_price_they_made(tmp_path: Path) -> None:
    rows = [f"{3600 * i},{p},{p},{p},{p}" for i, p in enumerate((100, 110, 50, 60)) for i in ((i if i < 2 else i + 3),)]
    path = tmp_path / "x_usd_1h.csv.gz"
    path.write_bytes(gzip.compress("\n".join(["unix_time_utc,open,high,low,close", *rows]).encode()))
    cut = returns_over(read_history(path), HOUR)
    np.testing.assert_allclose(cut.close, [0.1, 0.2])
    np.testing.assert_allclose(cut.gap, [0.0, 50 / 110 - 1])


def test_on_real_prices_the_law_estimated_covers_what_was_lost() -> None:
    hourly = of_file("sol_usdt_1h_binance", HOUR)
    found = calibration.estimate(of_file("sol_usdt_1d_binance", DAY), hourly)
    assert 0.9 < found.volatility < 2.0
    for alpha in (0.99, 0.999):
        charge = expected_shortfall(([float(HOUR)], [1.0]), found.volatility, found.jumps, alpha)
        result = run_backtest(hourly.returns, hourly.times, "haircut", alpha, 20, charge=(charge, charge))
        assert result.breaches < result.region[1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (sample(steady(0.5, 50)), "50 daily returns"),
        (sample(steady(0.5), HOUR), "returns of a day"),
        (sample(np.full(300, -1.0)), "above −1"),
        (sample(np.full(300, math.nan)), "finite"),
    ],
    ids=["short", "hours", "ruin", "NaN"],
)
def test_an_unusable_history_is_named(given: Sample, says: str) -> None:
    with pytest.raises(ValueError, match=f"x: .*{says}"):
        calibration.estimate(given)


def test_a_price_that_never_moved_is_an_estimate_of_nothing() -> None:
    found = calibration.estimate(sample(np.zeros(300)))
    assert (found.volatility, found.range, found.jumps) == (0.0, 0.0, ())
    assert found.garch_note == "the series does not move"


# --- parameter sets ---------------------------------------------------------------------------------------------------


@cache
def pair(rho: float, seed: int = 4, n: int = 900) -> tuple[Estimate, Estimate]:
    z = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, rho], [rho, 1]], n) * 0.02
    first, second = (calibration.estimate(sample(np.expm1(z[:, i]), series=name)) for i, name in enumerate("ab"))
    return first, second


POLICY = risk_policy()


def test_a_recalibration_is_whole_and_tells_every_change() -> None:
    first, second = pair(0.9)
    base = PolicyRow.model_validate(POLICY.model_dump() | {"version": "risk-09"})
    row = next(iter(base.assets))
    made = calibration.recalibrate(base, {row: [first, second]}, {"ETH/USD": first, "BTC/USD": second})
    new = made.policy
    assert new.version == "risk-10"
    assert new.assets[row].volatility == max(first.volatility, second.volatility)
    assert new.underlyings["ETH/USD"].range == first.range
    assert 0.5 < new.groups["majors"].offset < 0.81  # below the square of 0.9, by the worst 90 days
    assert new.history is None  # GOLD/USD has no history here, and half a history is none
    assert {(p.series, p.target) for p in new.provenance} == {
        ("a", f"assets.{row}"), ("b", f"assets.{row}"), ("a", "underlyings.ETH/USD"), ("b", "underlyings.BTC/USD"),
    }  # fmt: skip
    paths = {change.path for change in made.changes}
    assert {"version", f"assets.{row}.volatility", "underlyings.ETH/USD.range", "groups.majors.offset"} <= paths
    # what is told is what changed: put back, the old policy results
    document = new.model_dump(mode="json")
    for change in made.changes:
        *path, key = change.path.split(".")
        at = document
        for part in path:
            at = at[part]
        at[key] = change.old
    assert PolicyRow.model_validate(document | {"provenance": []}) == base
    assert policy_digest(new) != policy_digest(base)


def test_with_all_underlyings_known_there_is_a_joint_history() -> None:
    first, second = pair(0.9)
    rows = {"ETH/USD": underlying(), "BTC/USD": underlying()}
    made = calibration.recalibrate(risk_policy(rows), {}, {"ETH/USD": first, "BTC/USD": second})
    history = made.policy.history
    assert history is not None
    assert history.underlyings == ("BTC/USD", "ETH/USD")
    moves = np.array(history.moves)
    assert moves.shape == (calibration.HISTORY_DAYS, 2)
    assert np.corrcoef(moves.T)[0, 1] == pytest.approx(0.9, abs=0.05)  # joint by date
    (told,) = [change for change in made.changes if change.path == "history.moves"]
    assert (told.old, str(told.new).partition(",")[0], told.initial) == (None, "500 moves", "higher")


def test_other_causes_and_deeper_fears_stay() -> None:
    first, _ = pair(0.9)
    row, policy = next(iter(POLICY.assets.items()))
    jumps = (
        JumpRow(rate=1.0, recovery=0.99),
        JumpRow(rate=0.1, recovery=0.1),
        JumpRow(rate=0.2, recovery=0.999, cause="bridge"),
    )
    base = POLICY.model_copy(update={"assets": {row: policy.model_copy(update={"jumps": jumps})}})
    new = calibration.recalibrate(base, {row: [first]}, {}).policy.assets[row].jumps
    assert jumps[1] in new
    assert jumps[2] in new
    assert jumps[0] not in new


def test_jumps_that_are_too_many_become_fewer_and_no_milder() -> None:
    first, _ = pair(0.9)
    row, policy = next(iter(POLICY.assets.items()))
    deep = [JumpRow(rate=0.01 * (i + 1), recovery=0.1 + 0.05 * i) for i in range(4)]
    other = [JumpRow(rate=0.1, recovery=0.9, cause="bridge"), JumpRow(rate=0.2, recovery=0.8, cause="depeg")]
    base = POLICY.model_copy(update={"assets": {row: policy.model_copy(update={"jumps": (*deep, *other)})}})
    made = calibration.recalibrate(base, {row: [first]}, {})
    jumps = made.policy.assets[row].jumps
    assert len(jumps) == MOST_JUMPS
    assert set(other) <= set(jumps)
    again = calibration.recalibrate(made.policy, {row: [first]}, {})
    assert again.policy.assets[row].jumps == jumps  # and there it ends


jump_lists = st.lists(
    st.builds(
        JumpRow,
        rate=st.floats(0, 50),
        recovery=st.floats(0, 1),
        cause=st.sampled_from(["market", "depeg", "wrapper", "bridge"]),
    ),
    max_size=9,
)


@given(jump_lists, st.integers(4, 6), st.randoms())
def test_merged_jumps_lose_at_least_as_much_in_any_order(jumps: list[JumpRow], most: int, random: Random) -> None:
    merged = calibration.merge_jumps(jumps, most)
    assert len(merged) <= most
    shuffled = random.sample(jumps, len(jumps))
    assert calibration.merge_jumps(shuffled, most) == merged
    assert sum(j.rate for j in merged) >= sum(j.rate for j in jumps) * (1 - 1e-12)
    for level in {j.recovery for j in jumps}:  # of every depth there are at least as many, of every cause
        for cause in {j.cause for j in jumps}:
            before, after = (
                sum(j.rate for j in x if j.cause == cause and j.recovery <= level) for x in (jumps, merged)
            )
            assert after >= before * (1 - 1e-12)


def test_what_lowers_a_requirement_is_marked() -> None:
    first, second = pair(0.9)
    row, policy = next(iter(POLICY.assets.items()))
    made = calibration.recalibrate(POLICY, {row: [first, second]}, {"ETH/USD": first, "BTC/USD": second})
    assert first.volatility < policy.volatility
    assert first.range < POLICY.underlyings["ETH/USD"].range
    assert made.policy.groups["majors"].offset > POLICY.groups["majors"].offset
    assert {f"assets.{row}.volatility", "groups.majors.offset", "underlyings.ETH/USD.range"} <= set(made.looser)
    back = {c.path: c for c in calibration.compare_policies(made.policy, POLICY)}
    assert back["groups.majors.offset"].initial == back["underlyings.ETH/USD.range"].maintenance == "higher"
    assert not back["version"].loosens


def looser(**changes: object) -> tuple[str, ...]:
    row, policy = next(iter(POLICY.assets.items()))
    other = PolicyRow.model_validate(
        POLICY.model_dump() | {"assets": {row: policy.model_copy(update=changes).model_dump()}}
    )
    return tuple(c.path for c in calibration.compare_policies(POLICY, other) if c.loosens)


def test_the_parameters_of_a_class_are_judged_together() -> None:
    row, policy = next(iter(POLICY.assets.items()))
    assert looser(volatility=policy.volatility * 1.1) == ()
    assert looser(volatility=policy.volatility * 0.99) == (f"assets.{row}.volatility",)
    mild = tuple(j.model_copy(update={"rate": j.rate / 2}) for j in policy.jumps)
    assert mild
    assert looser(jumps=mild) == (f"assets.{row}.jumps",)
    assert looser(jumps=mild, volatility=10.0) == ()  # what the jumps let go the diffusion takes, at every horizon
    cut = policy.initial.model_copy(update={"haircut": policy.initial.haircut + 0.01})
    assert looser(initial=cut) == ()


def test_a_milder_history_is_looser_and_its_change_is_seen() -> None:
    first, second = pair(0.9)
    rows = {"ETH/USD": underlying(), "BTC/USD": underlying()}
    one = calibration.recalibrate(risk_policy(rows), {}, {"ETH/USD": first, "BTC/USD": second}).policy
    assert one.history is not None
    milder = tuple(tuple(x / 2 for x in move) for move in one.history.moves)
    two = one.model_copy(update={"history": one.history.model_copy(update={"moves": milder})})
    (change,) = calibration.compare_policies(one, two)
    assert change.path == "history.moves"
    assert change.loosens
    assert not calibration.compare_policies(two, one)[0].loosens
    assert calibration.compare_policies(one, one.model_copy(update={"history": None}))[0].loosens


def test_joint_moves_by_copula_reach_farther_and_are_the_same_for_the_same_seed() -> None:
    first, second = pair(0.9)
    rows = {"ETH/USD": underlying(), "BTC/USD": underlying()}
    both = {"ETH/USD": first, "BTC/USD": second}

    def drawn(seed: int) -> PolicyRow:
        return calibration.recalibrate(risk_policy(rows), {}, both, moves="copula", seed=seed).policy

    made = drawn(7)
    plain = calibration.recalibrate(risk_policy(rows), {}, both).policy
    assert made.history is not None
    assert plain.history is not None
    moves, dates = np.array(made.history.moves), np.array(plain.history.moves)
    assert moves.shape == (calibration.DRAWS, 2)
    assert np.corrcoef(moves.T)[0, 1] == pytest.approx(0.9, abs=0.05)
    assert moves.std(axis=0) == pytest.approx(dates.std(axis=0), rel=0.15)
    assert np.abs(moves).max() > np.abs(dates).max()
    assert drawn(7).history == made.history
    assert drawn(8).history != made.history
    told = {(p.target, p.series, p.method, p.seed) for p in made.provenance if p.target == "history"}
    assert told == {("history", "a", "copula", 7), ("history", "b", "copula", 7)}
    assert {(p.method, p.seed) for p in plain.provenance if p.target == "history"} == {("fhs", None)}


def test_a_parameter_set_that_does_not_hold_together_is_refused() -> None:
    wild = calibration.estimate(sample(steady(2.6, 400)))  # a range beyond the tails of the scenarios
    assert wild.range > 0.33
    with pytest.raises(ValidationError, match=r"scenario\.tails must lie beyond"):
        calibration.recalibrate(POLICY, {}, {"ETH/USD": wild})
    with pytest.raises(ValueError, match=r"assets\.odd: is no row"):
        calibration.recalibrate(POLICY, {"odd": [wild]}, {})
    with pytest.raises(ValueError, match=r"underlyings\.DOGE/USD"):
        calibration.recalibrate(POLICY, {}, {"DOGE/USD": wild})


def test_versions_count_up() -> None:
    names = ("devnet-1", "2026-09", "v", "a 99")
    assert [calibration.next_version(name) for name in names] == ["devnet-2", "2026-10", "v-2", "a 100"]


# --- policies as documents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"groups": {**POLICY.groups, "idle": OffsetGroupRow(offset=0.2)}}, "groups.idle: no row of underlyings"),
        ({"models": {"monitored": "var"}}, "models: var needs history"),
        ({"models": {"risk_bearing": "tiered"}}, "tiers: models has tiered"),
        ({"max_spread": 1.5}, "max_spread"),
    ],
)
def test_parameters_that_need_one_another_are_checked_together(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace(".", r"\.")):
        PolicyRow.model_validate(POLICY.model_dump() | changes)


def test_a_digest_moves_with_every_parameter_and_not_with_the_order_of_keys() -> None:
    document = POLICY.model_dump(mode="json")
    backwards = PolicyRow.model_validate(dict(reversed(document.items())))
    assert policy_digest(backwards) == policy_digest(POLICY)
    seen = {policy_digest(POLICY)}
    for changes in ({"version": "z"}, {"lifetime": 59}, {"exit_epsilon": 2e-4}, {"min_sources": 1}):
        seen.add(policy_digest(POLICY.model_copy(update=changes)))
    assert len(seen) == 5


# --- surfaces ---------------------------------------------------------------------------------------------------------


def test_slices_that_cross_between_wide_samples_are_refused() -> None:
    near = SviRow(tenor=DAY, a=0.001, b=0.0, rho=0.0, m=0.0, sigma=0.01)
    far = SviRow(tenor=7 * DAY, a=0.0005, b=0.1, rho=0.0, m=0.1, sigma=0.001)  # dips below only about k = 0.1
    with pytest.raises(ValidationError, match=r"total variance falls from tenor 86400 to 604800 at k=0\.09"):
        underlying(surface=(near, far))
    assert underlying(surface=(near, far.model_copy(update={"a": 0.0011}))).surface


def test_slices_that_would_cross_only_where_nothing_is_priced_are_accepted() -> None:
    near = SviRow(tenor=DAY, a=0.0, b=0.3, rho=0.0, m=0.0, sigma=0.01)  # flat from |k| = 0.22 on
    far = SviRow(tenor=7 * DAY, a=0.1, b=0.1, rho=0.0, m=0.0, sigma=0.1)  # from 1.33 on; as formulas they cross at 0.5
    assert underlying(surface=(near, far)).surface


# --- accounts ---------------------------------------------------------------------------------------------------------


def margin_of(*components: Component) -> AccountMargin:
    return AccountMargin(
        "0x" + "a1" * 32,
        "healthy",
        Flag(0),
        0,
        1_000,
        Interval(2_000, 2_000, 2_000),
        (1.0, 1.0, 1.0),
        0,
        components,
        (),
    )


def component(side: Literal["asset", "debt"], counted: tuple[int, int], tau: float, row: AssetPolicyRow) -> Component:
    levels, asset, nodes = [], side == "asset", ([tau], [1.0])
    for level in (row.initial, row.maintenance):
        fall = expected_shortfall(nodes, row.volatility, row.jumps, level.confidence)
        rise = expected_shortfall_up(nodes, row.volatility, level.confidence)
        levels.append(Haircuts(fall if asset else rise, 0.0, 0.0, level.haircut if asset else 0.0))
    position = Position("0x" + "a1" * 32, "c", "wallet", "u", 10, "u", 10, side)
    weights = row.initial.liability_weight, row.maintenance.liability_weight
    return Component(
        position, "X", "X", 0, "X/USD", 1, 1, 1, 1, tau, 0, levels[0], levels[1], *weights, 10, *counted, "",
    )  # fmt: skip


def test_the_effect_on_an_account_is_the_ratio_of_what_is_kept() -> None:
    row, old = next(iter(POLICY.assets.items()))
    new_row = old.model_copy(update={"volatility": 2 * old.volatility})
    new = POLICY.model_copy(update={"assets": {row: new_row}})
    tau = 1_500.0
    held = component("asset", (10_000, 12_000), tau, old)
    owed = component("debt", (5_000, 4_000), tau, old)
    same = calibration.estimate_effect(margin_of(held, owed), POLICY, POLICY, {"u": row})
    assert same[1:] == (1_000, 1_000, 2_000, 2_000)
    unknown = calibration.estimate_effect(margin_of(held, owed), POLICY, new, {})
    assert unknown[1:] == (1_000, 1_000, 2_000, 2_000)
    got = calibration.estimate_effect(margin_of(held, owed), POLICY, new, {"u": row})
    nodes, alpha = ([tau], [1.0]), old.initial.confidence
    kept = [1 - expected_shortfall(nodes, p.volatility, p.jumps, alpha) for p in (old, new_row)]
    rise = [1 + expected_shortfall_up(nodes, p.volatility, alpha) for p in (old, new_row)]
    expected = 1_000 + 10_000 * (kept[1] / kept[0] - 1) - 5_000 * (rise[1] / rise[0] - 1)
    assert got.free_after == pytest.approx(expected, abs=1.5)
    assert got.free_after < got.free_before
