"""The tables of an epoch: which law of the horizon every cell is computed at, and what a hedge keeps (ADR 0014)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aggregator.core.explain import explain
from aggregator.core.haircut import condense, expected_shortfall, hold_law
from aggregator.core.pipeline import compute_report
from aggregator.core.tables import World, horizon_nodes, horizon_quantile
from aggregator.domain.latency import Law
from aggregator.domain.policy import JumpRow
from aggregator.domain.report import INITIAL, MAINTENANCE, HaircutCell, MarginReport
from aggregator.domain.rows import LatencyLeg, RatioRow, SourceRow
from tests.strategies import (
    CUT_TIME,
    ETH,
    EVM,
    RISKY,
    SOL,
    SOLANA,
    STETH,
    chain_row,
    position,
    quotes,
    snapshot,
    view,
    world,
)

WORLD = world()
ROWS = [position(1, ETH, 1.0), position(1, SOL, 1.0)]


def report(made: World = WORLD, latency: dict[str, tuple[Law, ...]] | None = None, age: int = 20) -> MarginReport:
    views = [view(EVM, age), view(SOLANA, age)]
    return compute_report(snapshot(ROWS, views=views), quotes(), made, latency)


def cell(found: MarginReport, policy: str = "risky", chain: str = EVM, destination: str = EVM) -> HaircutCell:
    [one] = (
        c for c in found.cells if (c.policy, c.chain, c.destination, c.level) == (policy, chain, destination, "initial")
    )
    return one


def place(found: MarginReport, policy: str, chain: str) -> tuple[int, int]:
    return found.book.policies.index(policy), found.book.chains.index(chain)


def test_the_horizon_is_what_is_known_and_the_law_until_a_hold_lands() -> None:
    found = report()
    p, v = place(found, "risky", EVM)
    for b, bound in enumerate((5, 30)):
        seconds, chance = horizon_nodes(found.tables, p, v, b)
        known = 300 + bound + 20 + 600  # validity, clock bound, age of the block; and the auction
        assert seconds == [known + 60, known + 660]
        assert chance == pytest.approx([1 - 1e-5, 1e-5])
        for level, alpha in ((INITIAL, 0.999), (MAINTENANCE, 0.99)):
            loss = expected_shortfall((seconds, chance), 0.8, RISKY.jumps, alpha)
            assert found.tables.asset_loss[p, v, b, level] == pytest.approx(loss, abs=2e-12)
    assert (cell(found).horizon, cell(found).horizon_tail) == (985, 985)


def test_every_chain_has_its_own_law_and_every_destination_its_clock() -> None:
    slow = replace(WORLD, chains=(WORLD.chains[0], chain_row(SOLANA, hold=(LatencyLeg(typical=900),))))
    found = report(slow)
    assert cell(found, chain=SOLANA).horizon == cell(found).horizon + 840
    assert float(cell(found, chain=SOLANA).asset) > float(cell(found).asset)
    assert cell(found, destination=SOLANA).horizon == cell(found).horizon + 25
    assert float(cell(found, destination=SOLANA).asset) > float(cell(found).asset)
    assert cell(found) == cell(report())


def test_measured_legs_replace_the_configured_ones_and_longer_ones_cost() -> None:
    law = Law((60, 300, 4_000), (0.9, 0.0995, 0.0005))
    measured, before = report(latency={EVM: (law,)}), report()
    assert cell(measured).horizon_tail == 300 + 5 + 20 + 600 + 300
    assert float(cell(measured).asset) > float(cell(before).asset)
    assert cell(measured, chain=SOLANA) == cell(before, chain=SOLANA)
    worse = law._replace(chance=(0.9, 0.09, 0.01))
    assert float(cell(report(latency={EVM: (worse,)})).asset) > float(cell(measured).asset)
    p, v = place(measured, "risky", EVM)
    alone = condense(Law(*zip(*hold_law((law,)).items(), strict=True)))
    seconds, chance = horizon_nodes(measured.tables, p, v, 0)
    assert [s - 925 for s in seconds] == list(alone.seconds)
    assert tuple(chance) == alone.chance


def test_an_older_block_costs() -> None:
    haircuts = [float(cell(report(age=age)).asset) for age in (0, 20, 100, 290)]
    assert haircuts == sorted(set(haircuts))


def test_a_hedge_keeps_what_a_grid_of_prices_does_not_cover() -> None:
    failing = RISKY.model_copy(update={"jumps": (*RISKY.jumps, JumpRow(rate=0.5, recovery=0.7, cause="bridge"))})
    found = report(world({"risky": failing}))
    p, v = place(found, "risky", EVM)
    nodes = horizon_nodes(found.tables, p, v, 0)
    for level, alpha in ((INITIAL, 0.999), (MAINTENANCE, 0.99)):
        kept = expected_shortfall(nodes, 0.0, failing.jumps[2:], alpha)
        assert found.tables.hedged_loss[p, v, 0, level] == pytest.approx(kept, abs=2e-12)
        assert 0 < kept < found.tables.asset_loss[p, v, 0, level]
    assert float(cell(found).hedged) == found.tables.hedged_loss[p, v, 0, INITIAL]
    plain = report()
    assert (plain.tables.hedged_loss[place(plain, "risky", EVM)] == 0).all()


def test_what_was_never_seen_is_lost() -> None:
    found = compute_report(
        snapshot(ROWS, views=[view(EVM), view(SOLANA, status="missing", block=None)]), quotes(), WORLD
    )
    v = found.book.chains.index(SOLANA)
    for v_lost in (v, len(found.chains)):
        assert (found.tables.asset_loss[:, v_lost] == 1).all()
        assert (found.tables.hedged_loss[:, v_lost] == 1).all()


@pytest.mark.parametrize(
    ("level", "expected"), [(0.5, 10), (0.9, 10), (0.901, 70), (0.99, 70), (0.9999, 800), (1, 800)]
)
def test_a_quantile_of_the_horizon(level: float, expected: float) -> None:
    assert horizon_quantile(([10, 70, 800], [0.9, 0.0995, 0.0005]), level) == expected


def test_without_latency_risk_and_size_the_policy_haircut_is_all() -> None:
    """h(τ=0, Q=0, gate open) = h_pol."""
    policy = RISKY.model_copy(update={"liquidation_seconds": 0})
    instant = world({"risky": policy}, bounds=(0, 0))
    instant = replace(instant, chains=tuple(chain_row(c.id, hold=(LatencyLeg(typical=0),)) for c in instant.chains))
    dust = position(1, ETH, 1)  # one base unit
    shot = replace(snapshot([dust], views=[view(EVM, 0), view(SOLANA, 0)]), valid_until=CUT_TIME)
    [component] = explain(compute_report(shot, quotes(), instant), 0, instant).components
    for level, row in ((component.initial, policy.initial), (component.maintenance, policy.maintenance)):
        assert (level.market, level.exit, level.policy) == (0, 0, row.haircut)
        assert level.liquidity < 1e-8


# --- ratios in a world -----------------------------------------------------------------------------------------------

RATIO = RatioRow(feed="stETH/USD", ratio="stETH/ETH", base="ETH/USD", volatility=0.1)


def staked(feed: str = "stETH/USD") -> World:
    assets = dict(WORLD.assets) | {STETH: WORLD.assets[STETH].model_copy(update={"feed": feed})}
    rows = tuple(SourceRow(name=s, feed="stETH/ETH", kind="pyth", id="0x00") for s in ("alpha", "beta", "gamma"))
    return replace(WORLD, assets=assets, sources=WORLD.sources + rows, ratios=(RATIO,))


def test_an_asset_is_priced_through_a_ratio() -> None:
    said = [*quotes(), *quotes({"stETH/ETH": 0.5})]
    made = staked()
    whole = compute_report(snapshot([position(1, STETH, 2.0)]), said, made)
    half = compute_report(snapshot([position(1, STETH, 1.0)]), quotes(), WORLD)  # there, priced as ETH
    [at_ratio], [as_eth] = explain(whole, 0, made).components, explain(half, 0, WORLD).components
    assert at_ratio.feed == "stETH/USD"
    assert at_ratio.value == pytest.approx(as_eth.value, rel=1e-9)
    assert 0.99 * as_eth.counted_initial < at_ratio.counted_initial < as_eth.counted_initial  # two bands, not one
    lost = compute_report(snapshot([position(1, STETH, 2.0)]), quotes(), made)
    [unknown] = explain(lost, 0, made).components
    assert unknown.counted_initial == 0
    assert {f.scope for f in lost.findings if f.code == "price-unknown"} == {"stETH/ETH", "stETH/USD"}


def test_a_ratio_never_prices_an_asset() -> None:
    with pytest.raises(ValueError, match=r"stETH/ETH, a ratio"):
        staked("stETH/ETH")
