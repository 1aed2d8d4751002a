"""Rows read at an older block count at that block's age; measured holds replace configured ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, leaves
from aggregator.domain.latency import Law
from aggregator.domain.report import AccountMargin, Component, Flag
from aggregator.domain.rows import LatencyLeg
from aggregator.domain.snapshot import ChainView, Position
from tests.strategies import (
    CUT_TIME,
    ETH,
    EVM,
    SOL,
    SOLANA,
    USDC,
    account_id,
    debt,
    lent,
    older_view,
    position,
    quotes,
    snapshot,
    view,
    world,
)

WORLD = world()
HEAD = 100  # height of the newest block, 20 s old


def margin(rows: list[Position], *carried: ChainView, views: list[ChainView] | None = None) -> AccountMargin:
    return explain(compute_report(snapshot(rows, views=views, carried=carried), quotes(), WORLD), 0, WORLD)


def of(found: AccountMargin, asset: str) -> Component:
    [component] = (c for c in found.components if c.position.asset == asset)
    return component


def test_a_carried_row_has_the_age_and_horizon_of_its_block() -> None:
    rows = [position(1, ETH, 1.0, seen=HEAD - 50), position(1, USDC, 100.0), position(1, SOL, 1.0)]
    found = margin(rows, older_view(EVM, 50))
    fresh = margin([row._replace(seen=0) for row in rows])
    assert (of(found, ETH).age, of(found, USDC).age, of(found, SOL).age) == (70, 20, 20)
    assert of(found, ETH).horizon == of(fresh, ETH).horizon + 50
    assert of(found, ETH).maintenance.market > of(fresh, ETH).maintenance.market
    assert of(found, ETH).counted_maintenance < of(fresh, ETH).counted_maintenance
    assert of(found, ETH).reason.endswith("; carried from block 50, 50 s older than the chain's newest")
    assert "carried" not in of(found, USDC).reason
    assert (of(found, USDC), of(found, SOL)) == (of(fresh, USDC), of(fresh, SOL))
    assert (found.as_of, fresh.as_of) == (CUT_TIME - 70, CUT_TIME - 20)
    assert found.flags == fresh.flags == Flag(0)


def test_a_carried_debt_is_owed_at_the_age_of_its_block() -> None:
    rows = [position(1, ETH, 1.0), debt(1, USDC, 100.0, seen=HEAD - 50)]
    found, fresh = margin(rows, older_view(EVM, 50)), margin([row._replace(seen=0) for row in rows])
    assert found.leaves[0].requirement_maintenance > fresh.leaves[0].requirement_maintenance
    assert "owed" in of(found, USDC).reason
    assert "carried from block 50" in of(found, USDC).reason


@pytest.mark.parametrize(("delay", "counts"), [(130, False), (131, True)])
def test_the_gate_takes_the_age_of_the_carried_block(delay: int, counts: bool) -> None:
    """A hold takes 60 s; the row was seen 70 s before the cut."""
    row = position(1, ETH, 1.0, removal_delay=delay, seen=HEAD - 50)
    assert (margin([row], older_view(EVM, 50)).free_collateral > 0) is counts
    assert margin([row._replace(seen=0)]).free_collateral > 0


def test_a_carried_row_too_old_counts_nothing_and_the_rest_of_its_chain_stands() -> None:
    old = older_view(EVM, 90)
    old = replace(old, status="stale", cause="last read anew 110 s before the cut")
    rows = [position(1, ETH, 1.0, seen=HEAD - 90), position(1, USDC, 100.0)]
    found = margin(rows, old)
    assert of(found, ETH).counted_maintenance == 0
    assert "last read anew 110 s before the cut" in of(found, ETH).reason
    assert of(found, USDC).counted_maintenance > 0
    assert found.flags == Flag.STALE


def test_a_carried_row_is_stale_with_its_chain_whatever_its_own_view_says() -> None:
    views = [view(EVM, status="stale", cause="frozen: the sequencer is down"), view(SOLANA)]
    found = margin([position(1, ETH, 1.0, seen=HEAD - 10)], older_view(EVM, 10), views=views)
    assert of(found, ETH).counted_maintenance == 0
    assert Flag.STALE in found.flags


def test_spreading_dust_over_blocks_hides_no_age() -> None:
    """Each part is less than a ten-thousandth of the account, both together are more: 0.21 USD are 0.0014 SOL."""
    whole = [position(1, ETH, 1.0), debt(1, USDC, 100.0), position(1, SOL, 0.0016)]
    parts = [position(1, SOL, 0.0008), position(1, SOL, 0.0008, origin="other", seen=HEAD - 50)]
    dark = [view(EVM), view(SOLANA, 400, status="stale", cause="halted: no block for 400 s")]
    together = margin(whole, views=dark)
    apart = margin([*whole[:2], *parts], older_view(SOLANA, 50, dark[1]), views=dark)
    assert together.flags == apart.flags == Flag.STALE | Flag.HALTED_CHAIN
    assert (together.as_of, apart.as_of) == (CUT_TIME - 400, CUT_TIME - 450)


def test_a_block_that_nothing_is_carried_from_counts_nothing() -> None:
    for row in (position(1, ETH, 1.0, seen=77), debt(1, ETH, 1.0, seen=77)):
        report = compute_report(snapshot([position(1, USDC, 9.0), row]), quotes(), WORLD)
        found = explain(report, 0, WORLD)
        assert [(f.code, f.scope) for f in found.findings] == [("unknown-block", f"{account_id(1)} {ETH}")]
        assert Flag.PARTIAL in found.flags
        assert of(found, ETH).counted_maintenance == (row.side == "debt")  # of unknown size: never nothing
        assert (max(leaf.budget for leaf in found.leaves) == 0) == (row.side == "debt")


def test_the_committed_table_lists_what_carried_rows_used() -> None:
    rows = [position(1, ETH, 1.0, seen=HEAD - 50), lent(1, ETH, 1.0, seen=HEAD - 30)]
    plain = compute_report(snapshot([position(1, ETH, 1.0)]), quotes(), WORLD)
    report = compute_report(
        snapshot(rows, carried=[older_view(EVM, 50), older_view(EVM, 30), older_view(EVM, 10)]), quotes(), WORLD
    )
    assert set(plain.cells) < set(report.cells)
    more = {(c.policy, c.chain, c.horizon) for c in report.cells} - {
        (c.policy, c.chain, c.horizon) for c in plain.cells
    }
    known = 300 + 20 + 600  # until the certificate ends, since the newest block, and for the auction
    hold = 60  # until a hold lands, on average to a second
    assert more == {("risky", EVM, known + hold + behind + bound) for behind in (30, 50) for bound in (5, 30)}


# --- measured holds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("legs", "seconds"),
    [
        pytest.param([LatencyLeg(typical=60)], 60, id="configured"),
        pytest.param([Law((40, 90), (0.5, 0.5))], 90, id="measured"),
        pytest.param([LatencyLeg(typical=60), Law((40, 90), (0.5, 0.5))], 150, id="both"),
        pytest.param([Law((40, 400), (1 - 1e-6, 1e-6))], 40, id="an outage too rare to wait for"),
    ],
)
def test_measured_legs_replace_the_configured_hold(legs: list[LatencyLeg | Law], seconds: int) -> None:
    for delay, counts in ((20 + seconds, False), (21 + seconds, True)):
        rows = [position(1, ETH, 1.0, removal_delay=delay), position(2, SOL, 1.0, removal_delay=81)]
        report = compute_report(snapshot(rows), quotes(), WORLD, {EVM: legs})
        first, second = leaves(report)[::2]
        assert (first.assets_maintenance > 0) is counts
        assert second.assets_maintenance > 0  # the other chain's hold is configured
    assert dict(zip(report.book.chains, report.tables.hold.tolist(), strict=True)) == {EVM: seconds, SOLANA: 60}


def test_the_hold_bounds_are_those_of_the_chains_and_not_of_carried_blocks() -> None:
    report = compute_report(
        snapshot([position(1, ETH, 1.0, seen=50)], carried=[older_view(EVM, 50)]),
        quotes(),
        WORLD,
        {SOLANA: [Law((7,), (1.0,))]},
    )
    assert report.tables.hold.tolist() == [60, 7]
    assert report.book.chains == (EVM, SOLANA, EVM)
