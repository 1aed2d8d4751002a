"""Liquidity is charged on at least what the protocol as a whole may have to sell: the policy says how much."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, leaves
from aggregator.core.tables import World
from aggregator.domain.report import AccountMargin
from aggregator.domain.snapshot import Position
from tests.strategies import (
    DERIVATIVES,
    ETH,
    RISKY,
    STETH,
    USDC,
    WRAPPED,
    books,
    contract,
    debt,
    position,
    quotes,
    snapshot,
    world,
)

SHARE = 2e6
LOOSE = world(**DERIVATIVES)
sizes = st.floats(0.01, 1e5).map(lambda x: float(f"{x:.3g}"))


def shared(risky: float, wrapped: float = 0.0) -> World:
    policies = {
        "risky": RISKY.model_copy(update={"protocol_share": risky}),
        "wrapped": WRAPPED.model_copy(update={"protocol_share": wrapped}),
    }
    return world(policies, **DERIVATIVES)


def margin(rows: list[Position], of: World, index: int = 0) -> AccountMargin:
    return explain(compute_report(snapshot(rows), quotes(), of), index, of)


def test_what_is_smaller_than_the_share_is_cut_as_the_share_is_and_what_is_larger_as_before() -> None:
    of = shared(SHARE)
    parts = {}
    for units in (1.0, 100.0, 20_000.0):
        (component,) = margin([position(1, ETH, units)], of).components
        (before,) = margin([position(1, ETH, units)], LOOSE).components
        parts[units] = component.maintenance.liquidity, before.maintenance.liquidity
    coefficient = RISKY.impact * RISKY.volatility / math.sqrt(365 * RISKY.daily_volume)
    expected = 1 - 1 / (1 + coefficient * math.sqrt(SHARE))
    assert parts[1.0][0] == parts[100.0][0] == pytest.approx(expected)
    assert parts[1.0][1] < parts[100.0][1] < expected
    assert parts[20_000.0][0] == parts[20_000.0][1] > expected


@given(books(), st.floats(0, 1e9), st.floats(0, 1e9))
def test_a_greater_share_never_counts_more_and_debts_stay(rows: list[Position], one: float, other: float) -> None:
    less, more = sorted((one, other))
    small, great = (compute_report(snapshot(rows), quotes(), shared(share, share)) for share in (less, more))
    for before, after in zip(leaves(small), leaves(great), strict=True):
        assert after.assets_maintenance <= before.assets_maintenance + 1
        assert after.assets_initial <= before.assets_initial + 1
        assert after.budget <= before.budget + 1


@given(sizes, sizes, sizes, st.floats(0, 1e9), st.floats(0, 1e9))
def test_more_collateral_never_counts_less(eth: float, steth: float, more: float, one: float, other: float) -> None:
    """ETH and what is priced by it through another class: one pool, two shares."""
    of = shared(one, other)

    def counted(*rows: Position) -> list[int]:
        found = leaves(compute_report(snapshot([*rows, debt(1, USDC, 10.0)]), quotes(), of))
        return [value for leaf in found for value in (leaf.assets_initial, leaf.assets_maintenance)]

    as_eth = position(1, STETH, steth)._replace(unit=ETH)
    before = counted(position(1, ETH, eth), as_eth)
    grown = as_eth._replace(amount=as_eth.amount + round(more * 1e18))
    for after in (counted(position(1, ETH, eth + more), as_eth), counted(position(1, ETH, eth), grown)):
        assert all(now >= was - 2 - was // 10**12 for was, now in zip(before, after, strict=True))


@given(books(), st.floats(1e3, 1e9))
def test_what_is_explained_is_what_is_counted(rows: list[Position], share: float) -> None:
    of = shared(share, share / 3)
    report = compute_report(snapshot(rows), quotes(), of)
    for index, account in enumerate(report.accounts):
        found = explain(report, index, of)
        own = [leaf for leaf in leaves(report) if leaf.account == account.id]
        assert {leaf.destination: leaf for leaf in found.leaves} == {leaf.destination: leaf for leaf in own}
        shown = sum(c.counted_maintenance for c in found.components if c.position.side == "asset")
        least = min(leaf.assets_maintenance for leaf in own)
        most = max(leaf.assets_maintenance for leaf in own)
        assert shown <= most + len(found.components) + most // 10**9 + 1
        assert shown >= least - len(found.components) - least // 10**9 - 1


def test_a_hedge_is_cut_by_the_share_too_and_nobody_else_is_by_it() -> None:
    rows = [position(1, ETH, 50.0), contract(1, "perp", -20.0), position(2, ETH, 3.0)]
    found, before = (margin(rows, of) for of in (shared(SHARE), LOOSE))
    assert found.maintenance_excess.low < before.maintenance_excess.low
    alone = margin([position(2, ETH, 3.0)], shared(SHARE))
    assert margin(rows, shared(SHARE), 1).leaves == alone.leaves
