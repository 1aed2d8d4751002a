"""Invariants of faults.md that the pure core must keep: 6, 8, 9, 10, 26, 28, the interval, and rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.commitment import build_commitment
from aggregator.core.explain import explain
from aggregator.core.margin.health import round_down, round_up
from aggregator.core.pipeline import compute_report, leaves
from aggregator.domain.price import Quote
from aggregator.domain.report import HIGH, LOW, MID, Flag, LeafValues, MarginReport
from aggregator.domain.snapshot import ChainView, Position
from aggregator.domain.units import UINT128_MAX, usd_down, usd_up
from tests.strategies import (
    ETH,
    EVM,
    FEEDS,
    SOLANA,
    SOURCES,
    account_id,
    amounts,
    assets,
    books,
    borrowed,
    debt,
    lent,
    position,
    quotes,
    snapshot,
    view,
    views_of,
    world,
)

WORLD = world()
KINDS = st.sampled_from([{}, {1: "monitored"}, {1: "monitored", 2: "monitored", 3: "monitored"}])
skews = st.tuples(*[st.floats(-0.15, 0.15) for _ in SOURCES])


def report_of(
    rows: Sequence[Position],
    said: Sequence[Quote] | None = None,
    kinds: dict[int, str] | None = None,
    views: Sequence[ChainView] | None = None,
) -> MarginReport:
    everybody = dict.fromkeys((1, 2, 3), "risk-bearing") | (kinds or {})
    return compute_report(snapshot(rows, kinds=everybody, views=views), quotes() if said is None else said, WORLD)


def near(leaf: LeafValues) -> int:
    """Return one quantum and 1e-12 relative of what the leaf adds up: the tolerance between attestors."""
    return 3 + round(1e-12 * (leaf.assets_initial + leaf.requirement_initial + leaf.assets_maintenance))


def no_better(after: MarginReport, before: MarginReport) -> None:
    """Assert that every leaf is no better, in every number that opens risk or keeps it open."""
    for new, old in zip(leaves(after), leaves(before), strict=True):
        slack = near(old) + near(new)
        assert new.budget <= old.budget + slack
        assert new.assets_initial - new.requirement_initial <= old.assets_initial - old.requirement_initial + slack
        excess = old.assets_maintenance - old.requirement_maintenance
        assert new.assets_maintenance - new.requirement_maintenance <= excess + slack


@given(books(), skews, KINDS, views_of(), st.randoms(use_true_random=False))
def test_the_order_of_the_inputs_does_not_matter(
    rows: list[Position], skew: tuple[float, ...], kinds: dict[int, str], views: list[ChainView], random: object
) -> None:
    said = quotes(skew=skew)
    seen = snapshot(rows, kinds={1: "risk-bearing"} | kinds, views=views)
    first = compute_report(seen, said, WORLD)
    shuffled = [list(part) for part in (seen.positions, seen.accounts, seen.chains, said, WORLD.sources)]
    for part in shuffled:
        random.shuffle(part)  # type: ignore[attr-defined]
    other = replace(seen, positions=tuple(shuffled[0]), accounts=tuple(shuffled[1]), chains=tuple(shuffled[2]))
    turned = replace(
        WORLD, sources=tuple(shuffled[4]), chains=WORLD.chains[::-1], destinations=WORLD.destinations[::-1]
    )
    second = compute_report(other, shuffled[3], turned)
    assert leaves(second) == leaves(first)
    assert second.findings == first.findings
    assert second.cells == first.cells
    assert build_commitment(leaves(second)).root == build_commitment(leaves(first)).root


@given(books(), st.integers(1, 3), assets, amounts, st.sampled_from([position, lent]), KINDS, views_of())
def test_more_collateral_never_lowers_the_margin(
    rows: list[Position],
    number: int,
    asset: str,
    amount: float,
    make: object,
    kinds: dict[int, str],
    views: list[ChainView],
) -> None:
    more = [*rows, make(number, asset, amount)]  # type: ignore[operator]
    no_better(report_of(rows, kinds=kinds, views=views), report_of(more, kinds=kinds, views=views))


@given(books(), st.integers(1, 3), assets, amounts, st.sampled_from([debt, borrowed]), KINDS, views_of())
def test_more_debt_never_raises_the_margin(
    rows: list[Position],
    number: int,
    asset: str,
    amount: float,
    make: object,
    kinds: dict[int, str],
    views: list[ChainView],
) -> None:
    more = [*rows, make(number, asset, amount)]  # type: ignore[operator]
    no_better(report_of(more, kinds=kinds, views=views), report_of(rows, kinds=kinds, views=views))


@given(books(), st.data(), KINDS)
def test_splitting_and_merging_gains_nothing(rows: list[Position], data: st.DataObject, kinds: dict[int, str]) -> None:
    chosen = data.draw(st.sampled_from(rows))
    part = data.draw(st.integers(0, chosen.amount))
    rest = chosen.amount - part
    pending = min(chosen.pending, part)
    pieces = [
        chosen._replace(quantity=part, amount=part, pending=pending),
        chosen._replace(quantity=rest, amount=rest, pending=chosen.pending - pending),
    ]
    others = list(rows)
    others.remove(chosen)
    whole, split = report_of(rows, kinds=kinds), report_of([*others, *pieces], kinds=kinds)
    no_better(split, whole)
    no_better(whole, split)


@given(books(), skews, st.sets(st.sampled_from([(f, s) for f in sorted(set(FEEDS.values())) for s in SOURCES])), KINDS)
def test_disabling_price_sources_never_helps(
    rows: list[Position], skew: tuple[float, ...], lost: set[tuple[str, str]], kinds: dict[int, str]
) -> None:
    said = quotes(skew=skew, conf=1e-3)
    kept = [q for q in said if (q.feed, q.source) not in lost]
    before, after = report_of(rows, said, kinds), report_of(rows, kept, kinds)
    for new, old in zip(leaves(after), leaves(before), strict=True):
        assert new.budget <= old.budget + near(old)
        # A debt without a price is worth anything: its account shows no assets, and some requirement.
        if new.assets_initial or not old.assets_initial:
            assert new.assets_initial <= old.assets_initial
        for level in ("initial", "maintenance"):
            gain = getattr(new, f"assets_{level}") - getattr(new, f"requirement_{level}")
            was = getattr(old, f"assets_{level}") - getattr(old, f"requirement_{level}")
            assert max(0, gain) <= max(0, was + near(old))
            assert (gain >= 0) <= (was >= -near(old))


@given(books(), st.sampled_from([EVM, SOLANA]), KINDS)
def test_losing_a_chain_never_helps(rows: list[Position], chain: str, kinds: dict[int, str]) -> None:
    views = [view(c, 400, status="stale", cause="down") if c == chain else view(c) for c in (EVM, SOLANA)]
    no_better(report_of(rows, kinds=kinds, views=views), report_of(rows, kinds=kinds))


@given(books(), st.integers(0, 250), st.integers(0, 250), KINDS)
def test_ageing_never_helps(rows: list[Position], one: int, other: int, kinds: dict[int, str]) -> None:
    young, old = sorted((one, other))
    before, after = (report_of(rows, kinds=kinds, views=[view(EVM), view(SOLANA, age)]) for age in (young, old))
    no_better(after, before)


@given(books(), skews, KINDS, views_of(), st.sets(st.sampled_from(SOURCES)))
def test_the_interval_is_ordered(
    rows: list[Position], skew: tuple[float, ...], kinds: dict[int, str], views: list[ChainView], lost: set[str]
) -> None:
    said = [q for q in quotes(skew=skew, conf=2e-3) if q.source not in lost or q.feed != "ETH/USD"]
    report = report_of(rows, said, kinds, views)
    excess = report.assets - report.debts  # (bound, end, level, account)
    slack = 1e-12 * (report.assets + report.debts).max() + 1e-9
    assert (excess[:, LOW] <= excess[:, MID] + slack).all()
    assert (excess[:, MID] <= excess[:, HIGH] + slack).all()
    for index in range(3):
        low, mid, high = explain(report, index, WORLD).maintenance_excess
        assert low <= mid <= high


@given(books(), skews, KINDS, views_of())
def test_initial_is_no_looser_than_maintenance(
    rows: list[Position], skew: tuple[float, ...], kinds: dict[int, str], views: list[ChainView]
) -> None:
    for leaf in leaves(report_of(rows, quotes(skew=skew), kinds, views)):
        assert leaf.assets_initial <= leaf.assets_maintenance
        slack = near(leaf)
        initial = leaf.assets_initial - leaf.requirement_initial
        assert initial <= leaf.assets_maintenance - leaf.requirement_maintenance + slack


@given(books(), skews, KINDS, views_of())
def test_a_leaf_keeps_its_promises(
    rows: list[Position], skew: tuple[float, ...], kinds: dict[int, str], views: list[ChainView]
) -> None:
    report = report_of(rows, quotes(skew=skew), kinds, views)
    for index in range(3):
        found = explain(report, index, WORLD)
        lent_by_consumers = sum(c.counted_initial for c in found.components if c.position.venue == "lender")
        for leaf in found.leaves:
            assert all(0 <= value <= UINT128_MAX for value in leaf[4:9])
            assert leaf.valid_until > leaf.as_of
            assert leaf.budget == 0 or not leaf.flags & Flag.MONITORED
            assert leaf.budget <= max(0, leaf.assets_initial - leaf.requirement_initial + lent_by_consumers) + near(
                leaf
            )
            healthy = leaf.assets_maintenance >= leaf.requirement_maintenance
            assert not (healthy and leaf.flags & Flag.LIQUIDATABLE)
        assert sum(leaf.budget > 0 for leaf in found.leaves) <= 1


@given(
    st.just([]) | books(most=3),
    st.lists(st.builds(debt, st.integers(1, 3), assets, st.floats(1e-3, 1e3)), max_size=6),
    KINDS,
    views_of(),
    st.sampled_from([EVM, SOLANA]),
    skews,
)
def test_what_is_lent_and_what_may_be_lent_are_covered(
    rows: list[Position],
    loans: list[Position],
    kinds: dict[int, str],
    views: list[ChainView],
    home: str,
    skew: tuple[float, ...],
) -> None:
    """Σ over destinations of max(lent there, budget there) never exceeds what is free before consumers' debts."""
    rows = [*rows, *loans, *(position(n, ETH, 10.0**n) for n in (1, 2, 3))]  # some accounts below, some above margin
    everybody = dict.fromkeys((1, 2, 3), "risk-bearing") | kinds
    report = compute_report(snapshot(rows, kinds=everybody, views=views, home=home), quotes(skew=skew), WORLD)
    for index in range(3):
        found = explain(report, index, WORLD)
        places = zip(report.destinations, found.leaves, strict=True)
        budget = {chain: leaf.budget for chain, leaf in places}
        lent_at = dict.fromkeys(budget, 0)
        for c in found.components:
            if c.position.venue == "lender":
                lent_at[c.position.chain] += c.counted_initial
        free = found.free_collateral + sum(lent_at.values())
        slack = 30 + near(found.leaves[0])
        drawn = {chain: max(lent_at[chain], budget[chain]) for chain in budget}
        if found.free_collateral >= 0:
            assert sum(drawn.values()) <= free + slack
        if budget[home]:  # even below initial margin, what may be drawn in all is covered
            assert budget[home] + sum(lent for chain, lent in lent_at.items() if chain != home) <= free + slack


@given(books(), st.integers(1, 3), st.sampled_from([10**80, 2**300, 10**400]))
def test_one_account_never_touches_another(rows: list[Position], number: int, amount: int) -> None:
    before, after = report_of(rows), report_of([*rows, position(number, ETH, amount)])
    mine = account_id(number)
    others = [leaf for leaf in leaves(before) if leaf.account != mine]
    assert [leaf for leaf in leaves(after) if leaf.account != mine] == others
    for leaf in leaves(after):
        if leaf.account == mine:
            assert leaf.assets_initial == leaf.assets_maintenance == leaf.budget == 0


@given(books(), st.sampled_from(["asset", "unit"]), KINDS)
def test_an_unknown_asset_contributes_nothing(rows: list[Position], field: str, kinds: dict[int, str]) -> None:
    odd = position(1, ETH, 5.0)._replace(**{field: f"{EVM}/erc20:0x{'ee' * 20}"})
    for new, old in zip(
        leaves(report_of([*rows, odd], kinds=kinds)), leaves(report_of(rows, kinds=kinds)), strict=True
    ):
        assert new[4:8] == old[4:8]
        assert new.budget <= old.budget


@given(st.floats(-1e29, 1e29), st.floats(0, 1e6))
def test_rounding_is_toward_safety_and_the_same_in_columns(large: float, small: float) -> None:
    for value in (large, small):
        exact = Fraction(value) * 10**8
        assert usd_down(value) <= exact <= usd_up(value)
        assert int(round_down(np.array([value]))[0]) == usd_down(value)
        assert int(round_up(np.array([value]))[0]) == usd_up(value)
        assert usd_up(value) - usd_down(value) <= 2 + abs(exact) * Fraction(2) ** -38
