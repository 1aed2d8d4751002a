"""Stress: scenarios change inputs as they say, and accounts are valued by the code of every epoch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from aggregator.core import pipeline
from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, leaves
from aggregator.core.risk import stress
from aggregator.core.risk.impact import almgren
from aggregator.domain.book import build_book
from aggregator.domain.policy import JumpRow, SviRow, UnderlyingRow
from aggregator.domain.report import INITIAL, LOW
from aggregator.domain.stress import Scenario
from aggregator.domain.units import USD
from aggregator.service.desk import load_scenarios
from tests.strategies import (
    DERIVATIVES,
    ETH,
    EVM,
    FLAT,
    PRICES,
    SOL,
    SOLANA,
    STETH,
    USDC,
    WRAPPED,
    account_id,
    contract,
    debt,
    position,
    quotes,
    snapshot,
    view,
    world,
)

WORLD = world()
FLAT_WORLD = world({"risky": FLAT, "stable": FLAT}, confidence_multiple=0)


def scenario(**changes: object) -> Scenario:
    row = {"name": "test", "title": "a test", "kind": "hypothetical", "source": "made up"}
    return Scenario.model_validate(row | changes)


def test_equity_falls_by_what_the_prices_say() -> None:
    seen = snapshot([position(1, ETH, 10.0), position(1, SOL, 4.0), debt(1, USDC, 5_000.0)])
    report = stress.stress_report(
        seen, quotes(), FLAT_WORLD, None, [scenario(prices={"ETH/USD": 0.4, "USDC/USD": 0.9})]
    )
    (row,) = report.rows
    assert row.before.equity == pytest.approx((20_000 + 600 - 5_000) * USD)
    assert row.after.equity == pytest.approx((8_000 + 600 - 4_500) * USD)
    assert row.after.free_collateral == pytest.approx((8_000 + 600 - 4_500) * USD, rel=1e-3)
    assert report.unshocked == {"test": ("SOL/USD",)}


def test_a_price_that_loses_all_but_a_millionth_is_still_a_price() -> None:
    seen = snapshot([position(1, ETH, 10.0)])
    (row,) = stress.stress_report(seen, quotes(), FLAT_WORLD, None, [scenario(prices={"ETH/USD": 5.8e-7})]).rows
    assert row.after.equity == pytest.approx(20_000 * 5.8e-7 * USD, rel=1e-4)
    assert row.after.status == "healthy"


def test_a_price_of_nothing_is_an_unknown_price() -> None:
    seen = snapshot([position(1, ETH, 10.0), debt(1, USDC, 1.0)])
    (row,) = stress.stress_report(seen, quotes(), WORLD, None, [scenario(prices={"ETH/USD": 0.0})]).rows
    assert (row.before.status, row.after.status) == ("healthy", "unknown")
    assert row.after.free_collateral < 0


def test_feeds_in_dollars_follow_the_ratios_they_are_made_of() -> None:
    prices = {"ETH/USD": 0.5, "stETH/ETH": 0.9}
    assert stress.multiplier("STETH/USD", prices) == pytest.approx(0.45)
    assert stress.multiplier("stETH/ETH", prices) == 0.9
    assert stress.multiplier("SOL/USD", prices) == 1.0
    assert stress.multiplier("stETH/USD", {"stETH/ETH": 0.9}) == 1.0, "half a chain of ratios says nothing"


def test_a_halted_chain_counts_nothing_and_the_account_is_not_called_unhealthy() -> None:
    seen = snapshot([position(1, ETH, 10.0), debt(1, USDC, 9_000.0), position(2, SOL, 10.0)])
    rows = stress.stress_report(seen, quotes(), WORLD, None, [scenario(halted=(EVM,))]).rows
    assert [row.after.status for row in rows] == ["unknown", "healthy"]
    assert rows[0].after.health[0] == 0.0
    assert not rows[0].after.liquidatable
    assert rows[0].after.equity == rows[0].before.equity
    assert rows[1].after == rows[1].before


def test_a_chain_that_was_never_read_stays_missing() -> None:
    seen = snapshot([position(1, SOL, 10.0)], views=[view(EVM, status="missing", block=None), view(SOLANA)])
    shocked, _, _ = stress.apply(scenario(halted=(EVM, SOLANA)), seen, quotes(), WORLD)
    assert [v.status for v in shocked.chains] == ["missing", "stale"]
    assert shocked.chains[1].cause.startswith("halted: ")


def test_an_unknown_chain_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="eip155:9"):
        stress.apply(scenario(halted=("eip155:9",)), snapshot([]), quotes(), WORLD)


def test_a_bridge_takes_its_assets_down_and_no_debts() -> None:
    bridged = WRAPPED.model_copy(update={"jumps": (JumpRow(rate=0.1, recovery=0.2, cause="bridge"),)})
    seen = snapshot([position(1, STETH, 10.0), position(1, ETH, 1.0), debt(1, STETH, 1.0)])
    shocked, _, _ = stress.apply(
        scenario(recovery={"bridge": 0.1, "wrapper": 0.5}), seen, quotes(), world({"wrapped": bridged})
    )
    assert {(p.asset, p.side): p.amount for p in shocked.positions} == {
        (STETH, "asset"): 10**18,
        (ETH, "asset"): 10**18,
        (STETH, "debt"): 10**18,
    }


def test_volatility_and_volume_cost_margin_and_no_equity() -> None:
    seen = snapshot([position(1, ETH, 1_000.0), debt(1, USDC, 100_000.0)])
    wild, dry = scenario(name="wild", volatility=2.0), scenario(name="dry", volume=0.01)
    rows = stress.stress_report(seen, quotes(), WORLD, None, [wild, dry]).rows
    for row in rows:
        assert row.after.equity == row.before.equity
        assert row.after.free_collateral < row.before.free_collateral


def test_implied_volatility_is_multiplied_at_every_strike() -> None:
    slice_ = SviRow(tenor=86_400 * 30, a=0.02, b=0.1, rho=-0.3, m=0.0, sigma=0.2)
    policy = WORLD.policy.model_copy(update={"underlyings": {"ETH/USD": UnderlyingRow(range=0.3, surface=(slice_,))}})
    _, _, shocked = stress.apply(scenario(volatility=1.5), snapshot([]), quotes(), replace(WORLD, policy=policy))
    (after,) = shocked.policy.underlyings["ETH/USD"].surface
    for k in (-0.7, 0.0, 0.4):
        before, now = (s.a + s.b * (s.rho * (k - s.m) + math.hypot(k - s.m, s.sigma)) for s in (slice_, after))
        assert math.sqrt(now / before) == pytest.approx(1.5)


DERIVED = world(**DERIVATIVES)
MIXED = (
    position(1, ETH, 10.0),
    position(1, STETH, 2.0),
    position(2, SOL, 40.0),
    debt(1, USDC, 4_000.0),
    contract(1, "perp", -4.0),
    contract(1, "call", 2.0),
    contract(2, "put", -3.0, underlying="SOL/USD", strike=140.0),
)


@pytest.mark.parametrize("dollar", [1.0, 0.45])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prices": {"ETH/USD": 0.4, "SOL/USD": 0.3}},
        {"prices": {"USDC/USD": 2.0}},
        {"prices": {"ETH/USD": 0.0}},
        {"volatility": 2.5},
        {"volume": 0.05, "prices": {"ETH/USD": 0.7}},
        {"recovery": {"bridge": 0.1}},
        {"halted": (EVM,)},
        {"halted": (SOLANA,), "volatility": 1.5, "prices": {"SOL/USD": 1.6}},
    ],
)
def test_what_is_used_again_changes_no_number(changes: dict[str, object], dollar: float) -> None:
    """Also where contracts blind an account in the report before, as their dollar is none, and not in the scenario."""
    jumps = {"wrapped": WRAPPED.model_copy(update={"jumps": (JumpRow(rate=0.1, recovery=0.2, cause="bridge"),)})}
    of = world(jumps, **DERIVATIVES)
    seen, said = snapshot(MIXED), quotes(PRICES | {"USDC/USD": dollar})
    base = compute_report(seen, said, of)
    inputs = stress.apply(scenario(**changes), seen, said, of)
    found, afresh = stress.valued_in(inputs, base, seen, of, None), compute_report(*inputs)
    assert leaves(found) == leaves(afresh)
    assert stress.standings(found) == stress.standings(afresh)
    assert [explain(found, i, inputs.world).status for i in range(2)] == [
        explain(afresh, i, inputs.world).status for i in range(2)
    ]


def test_the_book_is_made_once_however_many_scenarios_and_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(pipeline, "build_book", lambda *args: made.append(1) or build_book(*args))
    seen = snapshot(MIXED)
    shocks = [scenario(name=f"s{i}", prices={"ETH/USD": 0.9 - i / 10}, volatility=1.0 + i) for i in range(4)]
    stress.stress_report(seen, quotes(), DERIVED, None, [*shocks, scenario(halted=(EVM,))])
    assert len(made) == 1
    event = scenario(prices={"ETH/USD": 0.5}, paths={"ETH/USD": (100, 80, 50, 70)})
    stress.replay(event, seen, quotes(), DERIVED, None, range(4))
    assert len(made) == 2


def test_a_replay_gives_what_every_hour_gives_by_itself() -> None:
    event = scenario(prices={"ETH/USD": 0.5}, paths={"ETH/USD": (100, 80, 50, 70)})
    seen = snapshot(MIXED)
    for moment in stress.replay(event, seen, quotes(), DERIVED, None, range(4)):
        hour = compute_report(seen, stress.scale_quotes(quotes(), moment.prices), DERIVED)
        assert moment.standing == stress.standings(hour)[0]


def test_standings_are_what_the_report_says() -> None:
    report = compute_report(
        snapshot([position(1, ETH, 1.0), debt(1, USDC, 500.0), position(2, SOL, 1.0)]), quotes(), WORLD
    )
    first, second = stress.standings(report)
    assert first.account == account_id(1)
    b = int(report.tables.bound[report.book.home[0]])
    exact = float(report.assets[b, LOW, INITIAL, 0] - report.debts[b, LOW, INITIAL, 0])
    assert 0 <= exact * USD - first.free_collateral < 4
    assert second.health == (None, None, None)


def test_no_accounts_is_no_rows() -> None:
    assert stress.stress_report(snapshot([]), quotes(), WORLD, None, [scenario()]).rows == ()


# the scenarios that come with the program


def test_the_known_events_are_there_with_their_numbers() -> None:
    known = {s.name: s for s in load_scenarios()}
    assert {"march-2020", "may-2021", "luna-2022", "steth-2022", "ftx-2022", "usdc-2023"} <= set(known)
    # closes per the exchanges' own records: BTC 9,118 to 4,131; USDC 0.9996 to 0.930; stETH 0.977 to 0.917 ETH
    assert known["march-2020"].prices["BTC/USD"] == pytest.approx(4_130.64 / 9_118.06, abs=1e-4)
    assert known["usdc-2023"].prices["USDC/USD"] == pytest.approx(0.9304, abs=1e-3)
    assert known["steth-2022"].prices["stETH/ETH"] == pytest.approx(0.917375 / 0.977183, abs=1e-4)
    assert known["luna-2022"].prices["LUNA/USD"] < 1e-5
    assert all(s.source and s.since < s.until for s in known.values())


@pytest.mark.parametrize("event", load_scenarios(), ids=lambda s: s.name)
def test_a_path_is_as_long_as_its_event_and_as_deep_as_its_multiplier(event: Scenario) -> None:
    assert event.paths
    for feed, path in event.paths.items():
        assert len(path) == (event.until - event.since) // 3_600 + 1
        assert min(path) / path[0] == pytest.approx(event.prices[feed], abs=1e-4)
    driver = next(iter(event.paths.values()))
    start, low = (stress.multipliers_at(event, hour) for hour in (0, driver.index(min(driver))))
    assert set(start.values()) == {1.0}
    for feed, by in low.items():
        if feed not in event.paths:
            assert by == pytest.approx(event.prices[feed])


def test_a_replay_goes_from_where_the_account_stands_to_the_low_and_on() -> None:
    event = next(s for s in load_scenarios() if s.name == "march-2020")
    seen = snapshot([position(1, ETH, 10.0), debt(1, USDC, 9_000.0)])
    hours = stress.hours_of(event, 20)
    moments = stress.replay(event, seen, quotes(), WORLD, None, hours)
    now = stress.standings(compute_report(seen, quotes(), WORLD))[0]
    assert [m.hour for m in moments] == list(hours)
    assert moments[0].standing == now
    lowest = min(moments, key=lambda m: m.standing.equity)
    assert lowest.prices["ETH/USD"] == pytest.approx(event.prices["ETH/USD"])
    assert lowest.standing.liquidatable
    assert moments[-1].standing.equity > lowest.standing.equity


def test_few_hours_still_hold_the_ends_and_the_low() -> None:
    path = (100, 90, 80, 20, 60, 70, 75, 77, 78, 79, 80, 81)
    event = scenario(prices={"ETH/USD": 0.2}, paths={"ETH/USD": path})
    assert stress.hours_of(event, 3) == (0, 3, 11)


def test_questions_without_a_path_or_off_it_are_refused() -> None:
    with pytest.raises(ValueError, match="no path"):
        stress.multipliers_at(scenario(), 0)
    with pytest.raises(ValueError, match="no path"):
        stress.hours_of(scenario(), 5)
    event = scenario(prices={"ETH/USD": 0.5}, paths={"ETH/USD": (2, 1)})
    with pytest.raises(ValueError, match="hour must be from 0 to 1"):
        stress.multipliers_at(event, 2)
    with pytest.raises(ValueError, match="no account"):
        stress.replay(event, snapshot([]), quotes(), WORLD, None, [0])


def test_every_chain_and_every_stablecoin_has_its_hypothetical_scenario() -> None:
    made = {s.name: s for s in stress.hypothetical(WORLD.chains, list(PRICES))}
    assert {s.halted for s in made.values() if s.halted} == {(EVM,), (SOLANA,)}
    assert made["depeg-usdc"].prices.keys() == {"USDC/USD"}
    assert {"vol-spike", "liquidity-drought", "bridge-failure"} <= set(made)
    assert "depeg-eth" not in made


@pytest.mark.parametrize(
    "changes",
    [
        {"prices": {"ETH/USD": -0.1}},
        {"prices": {"ETH/USD": float("nan")}},
        {"volatility": 0.0},
        {"volume": float("inf")},
        {"recovery": {"bridge": 1.5}},
        {"recovery": {"theft": 0.5}},
        {"prices": {"ETH/USD": 0.5}, "paths": {"ETH/USD": ()}},
        {"paths": {"ETH/USD": (1, 2)}},
        {"prices": {"A/USD": 0.5, "B/USD": 0.5}, "paths": {"A/USD": (1, 2), "B/USD": (1,)}},
    ],
)
def test_scenarios_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        scenario(**changes)


# market impact


def test_market_impact_is_the_papers() -> None:
    # Almgren, Thum, Hauptmann, Li 2005, Table 3: IBM, 10 % of a day's volume, over a tenth and half of a day
    ibm = almgren(0.0157, 0.1, [0.1, 0.5], 1728 / 6.561)  # type: ignore[arg-type]
    assert float(ibm.permanent) * 1e4 == pytest.approx(20, abs=0.6)
    assert [float(k) * 1e4 for k in ibm.temporary] == pytest.approx([22, 8], abs=0.6)
    assert [float(j) * 1e4 for j in ibm.cost] == pytest.approx([32, 18], abs=0.6)


def test_selling_nothing_moves_nothing() -> None:
    for beta in (0.0, 0.6):
        assert [float(part) for part in almgren(0.02, 0.0, 0.1, 100, beta=beta)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma", -0.1),
        ("x_over_v", math.nan),
        ("t_days", 0.0),
        ("shares_over_v", 0.0),
        ("eta", math.inf),
        ("sigma", math.inf),
    ],
)
def test_impact_names_what_it_cannot_use(name: str, value: float) -> None:
    given = {"sigma": 0.02, "x_over_v": 0.1, "t_days": 0.1, "shares_over_v": 100.0, name: value}
    with pytest.raises(ValueError, match=name):
        almgren(**given)
