"""Systemic risk: who falls together, what forced sales cost, and how far that goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from aggregator.core.pipeline import compute_report
from aggregator.core.risk import stress, systemic
from aggregator.core.risk.impact import almgren
from aggregator.core.tables import World
from aggregator.domain.rows import RatioRow, SourceRow
from aggregator.domain.snapshot import Position, Snapshot
from aggregator.domain.stress import Cascade, Scenario
from tests.strategies import (
    DERIVATIVES,
    ETH,
    EVM,
    SOL,
    SOURCES,
    STETH,
    USDC,
    account_id,
    asset_policy,
    borrowed,
    contract,
    debt,
    lent,
    position,
    quotes,
    snapshot,
    world,
)

THIN = asset_policy(daily_volume=1e6, impact=0.0)
WORLD = world({"risky": THIN, "wrapped": THIN})


def shock(eth: float, **more: float) -> Scenario:
    row = {"name": f"eth-{eth:g}", "title": "t", "kind": "hypothetical", "source": "test"}
    return Scenario.model_validate(row | {"prices": {"ETH/USD": eth} | more})


def ladder(count: int = 30) -> Snapshot:
    """Return accounts with 100 ETH each, owing more and more."""
    rows: list[Position] = []
    for i in range(1, count + 1):
        rows += [position(i, ETH, 100.0), debt(i, USDC, 142_000.0 + 400.0 * i)]
    return snapshot(rows)


def run(seen: Snapshot, scenario: Scenario, **options: object) -> Cascade:
    return run_in(WORLD, seen, scenario, **options)


def run_in(configured: World, seen: Snapshot, scenario: Scenario, **options: object) -> Cascade:
    shocked, said, changed = stress.apply(scenario, seen, quotes(), configured)
    mids = {band.feed: band.mid for band in compute_report(seen, quotes(), configured).prices}
    return systemic.cascade(compute_report(shocked, said, changed), changed, scenario, mids, **options)  # type: ignore[arg-type]


def test_accounts_that_fall_in_the_same_scenarios_are_one_cluster() -> None:
    rows = [
        position(1, ETH, 10.0), debt(1, USDC, 12_000.0),
        position(2, ETH, 20.0), debt(2, USDC, 24_000.0),
        position(3, SOL, 100.0), debt(3, USDC, 9_000.0),
        position(4, ETH, 1.0),
    ]  # fmt: skip
    scenarios = [shock(0.5), Scenario.model_validate(shock(1.0, **{"SOL/USD": 0.5}).model_dump() | {"name": "sol"})]
    report = systemic.systemic_report(snapshot(rows), quotes(), WORLD, None, scenarios)
    assert [(c.scenarios, c.accounts) for c in report.clusters] == [
        (("eth-0.5",), (account_id(1), account_id(2))),
        (("sol",), (account_id(3),)),
    ]
    assert report.clusters[0].exposures == pytest.approx({"ETH/USD": 60_000.0, "USDC/USD": -36_000.0})
    assert report.already == ()
    assert (report.accounts, len(report.cascades)) == (4, 2)


def test_who_has_fallen_already_is_told_apart() -> None:
    rows = [position(1, ETH, 1.0), debt(1, USDC, 5_000.0), position(2, ETH, 1.0)]
    report = systemic.systemic_report(snapshot(rows), quotes(), WORLD, None, [shock(0.9)])
    assert report.already == (account_id(1),)
    assert report.clusters == ()
    assert [c.account for c in report.cascades[0].closed] == [account_id(1)]


def test_monitored_accounts_are_nobodys_to_liquidate() -> None:
    seen = snapshot([position(1, ETH, 1.0), debt(1, USDC, 5_000.0)], kinds={1: "monitored"})
    assert run(seen, shock(0.5)).closed == ()


def test_forced_sales_pull_down_accounts_that_the_shock_alone_does_not() -> None:
    seen, scenario = ladder(), shock(0.83)
    alone = systemic.falls(compute_report(seen, stress.scale_quotes(quotes(), {"ETH/USD": 0.83}), WORLD))
    found = run(seen, scenario)
    assert 0 < len(alone) < found.liquidated
    assert found.settled
    assert len(found.rounds) > 1
    assert found.prices["ETH/USD"] < 0.83
    assert [c.round for c in found.closed] == sorted(c.round for c in found.closed)


def test_nothing_is_lost_or_made_up() -> None:
    found = run(ladder(), shock(0.7))
    assert found.closed
    for end in found.closed:
        assert end.owed == pytest.approx(end.repaid + end.bad_debt)
        assert end.proceeds == pytest.approx(end.repaid + end.surplus)
        assert min(end.repaid, end.bad_debt, end.surplus) >= 0
        assert end.bad_debt == 0 or end.surplus == 0
        assert end.proceeds <= end.collateral
    sales = [sale for round_ in found.rounds for sale in round_]
    assert sum(sale.units for sale in sales) == pytest.approx(100.0 * found.liquidated), "every unit is sold once"
    assert sum(sale.proceeds for sale in sales) == pytest.approx(found.proceeds)
    assert found.impact == pytest.approx(sum(sale.units * sale.price * sale.cost for sale in sales))
    assert found.bad_debt == pytest.approx(sum(end.bad_debt for end in found.closed))


def test_a_sale_has_the_impact_that_the_law_gives() -> None:
    found = run(ladder(1), shock(0.5))
    ((sale,),) = found.rounds
    law = almgren(0.8 / math.sqrt(365), 100 / (1e6 / 2_000), 600 / 86_400, 100.0)
    assert (sale.permanent, sale.cost) == pytest.approx((float(law.permanent), float(law.cost)))
    assert sale.price == pytest.approx(1_000.0)
    assert found.prices["ETH/USD"] == pytest.approx(0.5 * (1 - float(law.permanent)))


def test_a_sale_beyond_what_the_market_holds_leaves_nothing_and_no_less() -> None:
    rows = [position(1, ETH, 1e6), debt(1, USDC, 1.9e9)]
    found = run(snapshot(rows), shock(0.5))
    ((sale,),) = found.rounds
    assert (sale.cost, found.proceeds, found.prices["ETH/USD"]) == (1.0, 0.0, 0.0)
    assert found.bad_debt == pytest.approx(1.9e9, rel=1e-6)


def test_what_cannot_be_seized_is_not_sold() -> None:
    rows = [
        position(1, ETH, 1.0),
        position(1, ETH, 5.0, venue="wallet", control="none"),
        lent(1, SOL, 10.0),
        borrowed(1, USDC, 100.0),
        debt(1, USDC, 5_000.0),
    ]
    found = run(snapshot(rows), shock(0.5))
    (end,) = found.closed
    assert end.collateral == pytest.approx(1_000.0)
    assert end.owed == pytest.approx(5_000.0), "limited recourse is owed to the venue's collateral alone"


def test_what_stands_on_a_halted_chain_is_not_sold() -> None:
    rows = [position(1, ETH, 1.0), position(1, SOL, 1.0), debt(1, USDC, 5_000.0)]
    halt = Scenario(name="halt", title="t", kind="hypothetical", source="test", halted=(EVM,))
    found = run(snapshot(rows), halt)
    assert [sale.feed for sales in found.rounds for sale in sales] == ["SOL/USD"]


def test_the_limit_of_rounds_is_told() -> None:
    seen, scenario = ladder(), shock(0.83)
    short = run(seen, scenario, rounds=1)
    assert not short.settled
    assert len(short.rounds) == 1
    assert run(seen, scenario).settled
    with pytest.raises(ValueError, match="rounds"):
        run(seen, scenario, rounds=0)


def test_a_deeper_market_never_liquidates_more() -> None:
    seen, scenario = ladder(), shock(0.83)
    deep = asset_policy(daily_volume=2e9, impact=0.0)
    found = run_in(world({"risky": deep, "wrapped": deep}), seen, scenario)
    thin = run(seen, scenario)
    assert found.liquidated < thin.liquidated
    assert found.impact < thin.impact


def test_what_is_priced_through_another_feed_falls_with_it_and_not_the_other_way_round() -> None:
    ratio = RatioRow(feed="STETH/USD", ratio="STETH/ETH", base="ETH/USD", volatility=0.05)
    staked = WORLD.assets[STETH].model_copy(update={"feed": ratio.feed})
    told = tuple(SourceRow(name=name, feed=ratio.ratio, kind="pyth", id="0x00") for name in SOURCES)
    configured = replace(
        WORLD, assets={**WORLD.assets, STETH: staked}, sources=(*WORLD.sources, *told), ratios=(ratio,)
    )
    said = [*quotes(), *(q for q in quotes({ratio.ratio: 0.99}))]

    def prices_after(*rows: Position) -> Mapping[str, float]:
        seen = snapshot(rows)
        mids = {band.feed: band.mid for band in compute_report(seen, said, configured).prices}
        found = systemic.cascade(compute_report(seen, said, configured), configured, shock(1.0), mids)
        assert found.liquidated == 1
        return found.prices

    ether = prices_after(position(1, ETH, 100.0), debt(1, USDC, 250_000.0))
    assert ether["STETH/USD"] == ether["ETH/USD"] < 1
    staked_ether = prices_after(position(1, STETH, 100.0), debt(1, USDC, 250_000.0))
    assert staked_ether["STETH/USD"] < staked_ether["ETH/USD"] == 1


def test_sales_reach_what_is_priced_through_two_others() -> None:
    """Wrapped stETH is priced in stETH, and that in ETH: what falls at the bottom falls at the top."""
    staked = RatioRow(feed="STETH/USD", ratio="STETH/ETH", base="ETH/USD", volatility=0.05)
    wrapped = RatioRow(feed="WSTETH/USD", ratio="WSTETH/STETH", base=staked.feed, volatility=0.01)
    feeds = {STETH: staked.feed, SOL: wrapped.feed}
    assets = {id: row.model_copy(update={"feed": feeds.get(id, row.feed)}) for id, row in WORLD.assets.items()}
    told = tuple(
        SourceRow(name=name, feed=row.ratio, kind="pyth", id="0x00") for row in (staked, wrapped) for name in SOURCES
    )
    configured = replace(WORLD, assets=assets, sources=(*WORLD.sources, *told), ratios=(wrapped, staked))
    said = [*quotes(), *quotes({staked.ratio: 0.99, wrapped.ratio: 1.2})]
    rows = [position(1, ETH, 200.0), debt(1, USDC, 500_000.0)]
    report = compute_report(snapshot(rows), said, configured)
    found = systemic.cascade(report, configured, shock(1.0), {band.feed: band.mid for band in report.prices})
    assert found.liquidated == 1
    assert found.prices["WSTETH/USD"] == found.prices["STETH/USD"] == found.prices["ETH/USD"] < 1


def test_what_one_venue_owes_an_account_pays_no_other() -> None:
    """10,000 lost at one venue and 10,000 gained at another: the loss is owed, and the collateral pays some of it."""
    derived = world({"risky": THIN, "wrapped": THIN}, **DERIVATIVES)
    won = contract(1, "perp", 10.0, entry=1_000.0, control="none")
    lost = contract(1, "perp", -10.0, entry=1_000.0, venue="other", origin="other", asset=f"{EVM}/contract:other/1")
    (end,) = run_in(derived, snapshot([position(1, ETH, 1.0), won, lost]), shock(1.0)).closed
    assert end.owed == pytest.approx(10_000.0)
    assert end.bad_debt == pytest.approx(10_000.0 - end.proceeds)
    # At one venue they are one amount.
    rows = [position(1, ETH, 1.0), debt(1, USDC, 5_000.0), won, lost._replace(venue=won.venue, origin=won.origin)]
    (end,) = run_in(
        derived, snapshot([p._replace(control="none") if p.contract.kind else p for p in rows]), shock(1.0)
    ).closed
    assert end.owed == pytest.approx(5_000.0)


def test_depth_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="shares_over_v"):
        run(ladder(1), shock(0.5), depth=systemic.Depth(outstanding=0.0))


def test_without_accounts_nothing_happens() -> None:
    report = systemic.systemic_report(snapshot([]), quotes(), WORLD, None, [shock(0.5)])
    assert (report.clusters, report.cascades[0].closed, report.cascades[0].settled) == ((), (), True)
