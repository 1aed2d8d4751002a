"""Budgets by hand: what is given where, what is charged, what counts as owed, and how fast it may grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aggregator.core.budgets import allot, next_levels
from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, destination_id, leaves
from aggregator.domain.book import LARGEST_BUDGET
from aggregator.domain.budgets import (
    NO_LEVELS,
    Drawn,
    Grant,
    Level,
    Levels,
    Share,
    levels_text,
    parse_levels,
    staircase,
    uncovered,
)
from aggregator.domain.policy import GrowthRow
from aggregator.domain.report import Flag, MarginReport
from aggregator.domain.snapshot import Position, Snapshot
from tests.strategies import (
    CUT_TIME,
    ETH,
    EVM,
    FLAT,
    SOLANA,
    SUSDC,
    USDC,
    account_id,
    debt,
    position,
    quotes,
    snapshot,
    view,
    world,
)

FLAT_WORLD = world({"risky": FLAT, "stable": FLAT, "wrapped": FLAT})
DOLLAR = 10**8
ME = account_id(1)


def drawn(account: int, chain: str, dollars: float, posted: int = 0, set_id: int = 1) -> Position:
    """Return what the registry on ``chain`` says was drawn."""
    name, amount = f"{chain}/registry:0x00", round(dollars * DOLLAR)
    said = Drawn(posted, set_id)
    return Position(
        account_id(account), chain, "registry", name, amount, name, amount, "debt", origin="0x00", drawn=said
    )


def grant(chain: str, dollars: float, epoch: int = 5, until: int = CUT_TIME + 100, account: int = 1) -> Grant:
    return Grant(account_id(account), destination_id(chain), epoch, round(dollars * DOLLAR), until)


def shared(seen: Snapshot, **parts: int) -> Snapshot:
    """Return the snapshot with every account shared out; parts by ``evm`` and ``solana``."""
    names = {"evm": EVM, "solana": SOLANA}
    shares = tuple(Share(names[name], part) for name, part in parts.items())
    return replace(seen, accounts=tuple(replace(account, shares=shares) for account in seen.accounts))


def budgets(found: MarginReport, index: int = 0) -> dict[str, float]:
    """Return what may be drawn, in dollars to the nearest ten cents: prices have bounds."""
    columns = zip(found.destinations, found.budgets[:, index].tolist(), strict=True)
    return {chain: budget / DOLLAR for chain, budget in columns}


def near(**dollars: float) -> Any:
    return pytest.approx({EVM: dollars.get("evm", 0.0), SOLANA: dollars.get("solana", 0.0)}, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("free", "parts", "charge", "expected"),
    [
        (100, (10_000, 0), (0, 0), (100, 0)),
        (100, (7_000, 3_000), (0, 0), (70, 30)),
        (101, (5_000, 5_000), (0, 0), (50, 50)),  # rounded down
        (100, (5_000, 5_000), (100, 0), (50, 0)),  # the other waits until the first cannot be drawn any more
        (100, (5_000, 5_000), (80, 0), (50, 20)),
        (100, (2_000, 8_000), (50, 50), (20, 50)),
        (100, (4_000, 6_000), (20, 20), (40, 60)),
        (100, (0, 5_000), (60, 0), (0, 40)),  # used where nothing is shared any more is charged all the same
        (60, (5_000, 5_000), (50, 50), (10, 10)),  # F fell below what is charged: none keeps what others may take
        (0, (5_000, 5_000), (0, 0), (0, 0)),
        (100, (10_000, 0), (LARGEST_BUDGET, 0), (100, 0)),
        (100, (5_000, 5_000), (LARGEST_BUDGET, LARGEST_BUDGET), (0, 0)),
        (LARGEST_BUDGET, (5_000, 5_000), (0, 0), (LARGEST_BUDGET // 2, LARGEST_BUDGET // 2)),
    ],
)
def test_worked_examples(free: int, parts: Any, charge: Any, expected: Any) -> None:
    found = allot(np.array([free]), np.array(parts)[:, None], np.array(charge)[:, None])
    assert tuple(found[:, 0].tolist()) == expected


def test_slack_is_shared_in_proportion_to_need() -> None:
    # Targets 50, 30, 20; the second is charged 60. Left are 40 for needs of 50 and 20: 28.57… and 11.42…
    found = allot(np.array([100_00]), np.array([[5_000], [3_000], [2_000]]), np.array([[0], [60_00], [0]]))
    assert found[:, 0].tolist() == [2857, 3000, 1142]


amounts = st.integers(0, LARGEST_BUDGET)


@given(st.lists(st.tuples(amounts, st.lists(st.tuples(st.integers(0, 3_333), amounts), min_size=3, max_size=3))))
def test_charges_and_budgets_together_stay_within_what_is_free(rows: list[Any]) -> None:
    free = np.array([row[0] for row in rows], dtype=np.int64)
    parts = np.array([[row[1][d][0] for row in rows] for d in range(3)], dtype=np.int64).reshape(3, -1)
    charge = np.array([[row[1][d][1] for row in rows] for d in range(3)], dtype=np.int64).reshape(3, -1)
    found = allot(free, parts, charge)
    for i, whole in enumerate(free.tolist()):
        given, charged = found[:, i].tolist(), charge[:, i].tolist()
        together = sum(map(max, given, charged))
        assert together <= max(whole, sum(charged))
        assert all(
            0 <= budget <= whole * part // 10_000 for budget, part in zip(given, parts[:, i].tolist(), strict=True)
        )
        if sum(charged) > whole:  # each with what stands elsewhere
            assert all(b == 0 or b + sum(charged) - c <= whole for b, c in zip(given, charged, strict=True))
        else:  # nothing is lost but roundings
            wanted = [whole * part // 10_000 for part in parts[:, i].tolist()]
            need = sum(max(0, w - c) for w, c in zip(wanted, charged, strict=True))
            more = sum(max(0, b - c) for b, c in zip(given, charged, strict=True))
            assert more >= min(need, whole - sum(charged)) * (1 - 1e-11) - 4


def test_a_budget_moves_only_when_it_cannot_be_drawn_any_more() -> None:
    seen = shared(snapshot([position(1, USDC, 1_000.0), drawn(1, EVM, 0), drawn(1, SOLANA, 0)]), solana=10_000)
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near(solana=1_000)
    before = replace(seen, grants=(grant(EVM, 999),))
    assert budgets(compute_report(before, quotes(), FLAT_WORLD)) == near(
        solana=0.788
    )  # of 999.788, as the price counts at its lower bound
    newer = shared(
        snapshot([position(1, USDC, 1_000.0), drawn(1, EVM, 0, posted=6), drawn(1, SOLANA, 0)]), solana=10_000
    )
    assert budgets(compute_report(replace(newer, grants=(grant(EVM, 999),)), quotes(), FLAT_WORLD)) == near(
        solana=1_000
    )


@pytest.mark.parametrize(("until", "expected"), [(CUT_TIME - 5, 1_000), (CUT_TIME - 4, 0.788)])
def test_a_grant_ends_with_the_clock_of_its_destination(until: int, expected: float) -> None:
    # The destination's clock may be 5 s behind, and its registry was read at a block of the cut's time.
    seen = snapshot([position(1, USDC, 1_000.0), drawn(1, EVM, 0)], views=(view(EVM, 0), view(SOLANA, 0)))
    seen = replace(shared(seen, solana=10_000), grants=(grant(EVM, 999, until=until),))
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near(solana=expected)


def test_what_was_drawn_after_the_block_that_was_read_is_charged_though_it_has_expired() -> None:
    seen = snapshot([position(1, SUSDC, 1_000.0), drawn(1, EVM, 0)], views=(view(EVM, 200), view(SOLANA, 0)))
    seen = replace(shared(seen, solana=10_000), grants=(grant(EVM, 900, until=CUT_TIME - 100),))
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD))[SOLANA] < 101


def test_where_a_registry_was_not_read_for_too_long_a_shared_account_gets_nothing() -> None:
    rows = [position(1, SUSDC, 1_000.0), drawn(1, EVM, 0), drawn(1, SOLANA, 0)]
    seen = shared(snapshot(rows, views=(replace(view(EVM, 301), status="stale"), view(SOLANA, 0))), solana=10_000)
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near()


def test_a_registry_that_does_not_know_the_set_gets_no_budget() -> None:
    rows = [position(1, USDC, 1_000.0), drawn(1, EVM, 0, set_id=1), drawn(1, SOLANA, 0, set_id=2)]
    seen = replace(shared(snapshot(rows), evm=5_000, solana=5_000), set_id=2)
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near(solana=500)
    assert budgets(compute_report(replace(seen, positions=tuple(sorted(rows[:1]))), quotes(), FLAT_WORLD)) == near()


def test_a_budget_where_no_destination_is_any_more_is_charged() -> None:
    gone = Grant(ME, "0x" + "99" * 32, 5, 400 * DOLLAR, CUT_TIME + 100)
    seen = replace(shared(snapshot([position(1, USDC, 1_000.0)]), evm=10_000), grants=(gone,))
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near(evm=600)


@pytest.mark.parametrize("place", ["0x" + "de" * 32, destination_id(EVM)])
def test_what_nobody_drew_makes_nobody_unhealthy(place: str) -> None:
    """Made up by a proposer, or at a destination that the configuration lost: it lowers budgets, and nothing else."""
    rows = [position(1, USDC, 1_000.0), debt(1, USDC, 500.0), position(2, USDC, 1_000.0)]
    made_up = Grant(ME, place, 6, 2**100, CUT_TIME + 10**9)
    plain = compute_report(snapshot(rows), quotes(), FLAT_WORLD)
    found = compute_report(replace(snapshot(rows), grants=(made_up,)), quotes(), FLAT_WORLD)
    assert not (found.flags & Flag.LIQUIDATABLE).any()
    assert found.status.tolist() == plain.status.tolist()
    for name in ("assets", "debts", "equity"):
        assert np.array_equal(getattr(found, name), getattr(plain, name))
    assert (found.budgets <= plain.budgets).all()
    assert found.budgets[:, 1].tolist() == plain.budgets[:, 1].tolist()
    mine = explain(found, 0, FLAT_WORLD)
    assert mine.equity + sum(step.initial for step in mine.layers) == mine.free_collateral


def test_what_was_drawn_where_no_destination_is_any_more_is_owed() -> None:
    rows = [position(1, USDC, 1_000.0), drawn(1, "eip155:5", 400.0)]
    views = (view(EVM, 0), view(SOLANA, 0), view("eip155:5", 0))
    found = compute_report(shared(snapshot(rows, views=views), evm=10_000), quotes(), FLAT_WORLD)
    assert found.debts[:, :, :, 0].tolist() == [[[400.0, 400.0]] * 3] * 2


def test_an_account_without_a_home_is_shared_out_by_its_owner() -> None:
    seen = snapshot([position(1, USDC, 1_000.0)], home="eip155:5")
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near()
    found = compute_report(shared(seen, solana=2_500), quotes(), FLAT_WORLD)
    assert budgets(found) == near(solana=250)
    assert not [f for f in found.findings if f.code == "unknown-home"]


def test_what_no_venue_explains_is_owed_and_told() -> None:
    rows = [position(1, USDC, 1_000.0), debt(1, USDC, 100.0), drawn(1, EVM, 250.0)]
    plain = explain(compute_report(snapshot(rows[:2]), quotes(), FLAT_WORLD), 0, FLAT_WORLD)
    found = explain(compute_report(snapshot(rows), quotes(), FLAT_WORLD), 0, FLAT_WORLD)
    there = next(b for b in found.budgets if b.destination == EVM)
    assert there.used == 250 * DOLLAR == there.charge
    assert there.debts == pytest.approx(100 * DOLLAR, rel=1e-3)
    assert there.unexplained_initial == pytest.approx(150 * DOLLAR, rel=1e-3)
    assert plain.free_collateral - found.free_collateral == pytest.approx(there.unexplained_initial, abs=2)
    assert plain.equity - found.equity == pytest.approx(150 * DOLLAR, rel=1e-3)
    assert found.equity + sum(step.initial for step in found.layers) == found.free_collateral
    assert found.equity + sum(step.maintenance for step in found.layers) == found.maintenance_excess.low
    assert sorted(c.position.venue for c in found.components) == ["lender", "vault"]
    assert found.free_before_draws == plain.free_before_draws  # charged, and not taken off twice
    assert there.budget == pytest.approx(found.free_before_draws, abs=1)


def test_a_loan_that_a_venue_shows_is_not_counted_twice() -> None:
    rows = [position(1, USDC, 1_000.0), debt(1, USDC, 100.0)]
    plain = leaves(compute_report(snapshot(rows), quotes(), FLAT_WORLD))
    assert leaves(compute_report(snapshot([*rows, drawn(1, EVM, 99.0)]), quotes(), FLAT_WORLD)) == plain


def test_two_readings_of_one_registry_count_at_their_worst() -> None:
    rows = [position(1, USDC, 1_000.0), drawn(1, EVM, 10, posted=9), drawn(1, EVM, 20, posted=3)]
    seen = replace(shared(snapshot(rows), solana=10_000), grants=(grant(EVM, 700, epoch=4),))
    assert budgets(compute_report(seen, quotes(), FLAT_WORLD)) == near(solana=299.7)


def test_a_registry_that_says_nonsense_bars_its_account() -> None:
    rows = [position(1, USDC, 1_000.0), drawn(1, EVM, -1)]
    found = compute_report(snapshot(rows), quotes(), FLAT_WORLD)
    assert budgets(found) == near()
    assert [f.code for f in found.findings] == ["bad-amount"]


def test_an_old_reading_of_what_was_drawn_makes_an_account_stale() -> None:
    rows = [position(1, SUSDC, 1_000.0), drawn(1, EVM, 10.0)]
    views = (replace(view(EVM, 400), status="stale"), view(SOLANA, 0))
    (leaf, *_) = leaves(compute_report(snapshot(rows, views=views), quotes(), FLAT_WORLD))
    assert leaf.flags & Flag.STALE
    assert leaf.as_of == CUT_TIME - 400


@given(st.floats(0, 2_000), st.floats(0, 2_000))
def test_more_drawn_never_raises_a_margin(one: float, other: float) -> None:
    less, more = sorted((one, other))
    rows = [position(1, ETH, 1.0), debt(1, USDC, 300.0)]
    of = world()

    def found(dollars: float) -> Any:
        return explain(compute_report(snapshot([*rows, drawn(1, EVM, dollars)]), quotes(), of), 0, of)

    first, second = found(less), found(more)
    assert second.free_collateral <= first.free_collateral
    assert second.equity <= first.equity
    assert all(b <= a for a, b in zip(first.maintenance_excess, second.maintenance_excess, strict=True))


@given(st.integers(0, 2**256), st.integers(-5, 10))
def test_one_account_changes_no_other_leaf(used: int, posted: int) -> None:
    calm = [position(2, USDC, 500.0), drawn(2, EVM, 100.0)]
    poison = drawn(1, EVM, 0.0)._replace(amount=used, drawn=Drawn(posted, -3))
    mine = list(leaves(compute_report(snapshot(calm), quotes(), FLAT_WORLD)))
    both = leaves(compute_report(snapshot([*calm, position(1, USDC, 9.0), poison]), quotes(), FLAT_WORLD))
    assert [leaf for leaf in both if leaf.account == account_id(2)] == mine


# --- growth ---------------------------------------------------------------------------------------------------------

HOUR = 3_600
CAPS = {"growth": {"account_usd": 100.0, "account_ratio": 0.5, "asset_usd": 150.0}}
CAPPED = world({"risky": FLAT, "stable": FLAT, "wrapped": FLAT}, **CAPS)


def state(
    dollars: dict[int, float], levels: Levels, hours: int = 0, asset: str = USDC
) -> tuple[dict[int, int], Levels]:
    """Value accounts ``hours`` after the cut; return their budgets and the levels left."""
    seen = snapshot([position(number, asset, amount) for number, amount in dollars.items()])
    seen = replace(seen, cut_time=CUT_TIME + hours * HOUR)
    said = [q._replace(publish_time=q.publish_time + hours * HOUR) for q in quotes()]
    found = compute_report(seen, said, CAPPED, levels=levels)
    total = found.budgets.sum(axis=0)
    names = [account.id for account in found.accounts]
    assert found.growth is not None
    left = next_levels(levels, seen.cut_time, names, total, found.growth, found.book.feeds)
    return {int(name, 16): int(amount) for name, amount in zip(names, total, strict=True)}, left


def test_a_budget_grows_by_its_allowance_within_an_hour() -> None:
    first, levels = state({1: 1_000.0}, NO_LEVELS)
    assert first == {1: 100 * DOLLAR}
    again, levels = state({1: 1_000.0}, levels)
    assert again == first
    assert levels.accounts == (Level(ME, 0, 100 * DOLLAR),)
    # The next hour: 100 were attested, 100 more and a half of that.
    later, left = state({1: 1_000.0}, levels, hours=1)
    assert later == {1: 250 * DOLLAR}
    assert left.accounts == (Level(ME, 100 * DOLLAR, 250 * DOLLAR),)


def test_reductions_are_at_once_and_recovery_is_free() -> None:
    _, levels = state({1: 1_000.0}, NO_LEVELS)
    low, levels = state({1: 10.0}, levels)
    assert low[1] < 10 * DOLLAR
    back, left = state({1: 1_000.0}, levels)
    assert back == {1: 100 * DOLLAR}
    assert left.spent == levels.spent  # counted once


def test_an_outage_does_not_take_away_what_was_attested() -> None:
    _, levels = state({1: 1_000.0}, NO_LEVELS)
    later, _ = state({1: 1_000.0}, levels, hours=9)
    assert later == {1: 250 * DOLLAR}


def test_an_asset_grows_by_its_cap_over_all_accounts() -> None:
    first, levels = state({1: 1_000.0, 2: 1_000.0, 3: 30.0}, NO_LEVELS)
    # Wanted are 100, 100 and 30; 150 are to be had.
    assert sum(first.values()) <= 150 * DOLLAR
    assert first[1] == pytest.approx(100 * DOLLAR * 150 / 230, rel=1e-3)
    assert first[3] == pytest.approx(30 * DOLLAR * 150 / 230, rel=1e-3)
    ((feed, spent),) = levels.spent
    assert feed == "USDC/USD"
    assert sum(first.values()) <= spent <= 150 * DOLLAR
    # Another asset has its own.
    seen, _ = state({4: 1.0}, levels, asset=ETH)
    assert seen == {4: 100 * DOLLAR}
    nothing, _ = state({5: 1_000.0}, levels)
    assert nothing[5] < DOLLAR


@given(st.lists(st.tuples(st.integers(0, 2), st.dictionaries(st.integers(1, 4), st.floats(0, 2_000))), max_size=8))
def test_budgets_grow_no_faster_than_the_caps(steps: list[tuple[int, dict[int, float]]]) -> None:
    """Invariant 33, with the levels kept by hand."""
    levels, hours = NO_LEVELS, 0
    base: dict[int, int] = {}
    peak: dict[int, int] = {}
    grown = 0
    for passed, dollars in steps:
        if not dollars:
            continue
        if passed:
            hours, base, peak, grown = hours + passed, peak, {}, 0
        given, levels = state(dict.fromkeys((1, 2, 3, 4), 0.0) | dollars, levels, hours)
        for number, budget in given.items():
            attested = max(base.get(number, 0), peak.get(number, 0))
            assert budget <= max(attested, base.get(number, 0) * 1.5 + 100 * DOLLAR)
            grown += max(0, budget - attested)
            peak[number] = max(peak.get(number, 0), budget)
        assert grown <= 150 * DOLLAR


def test_without_caps_nothing_is_counted() -> None:
    found = compute_report(snapshot([position(1, USDC, 1_000.0)]), quotes(), FLAT_WORLD, levels=NO_LEVELS)
    assert found.growth is None


@pytest.mark.parametrize(
    "wrong", [{"account_usd": 0.0}, {"asset_usd": 0.0}, {"account_usd": -1.0}, {"asset_usd": 1e12}]
)
def test_caps_under_which_nobody_could_ever_grow_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GrowthRow.model_validate({"account_usd": 1.0, "asset_usd": 1.0} | wrong)


def test_levels_are_read_back_as_written() -> None:
    levels = Levels(7, (Level(ME, 1, 2**60), Level(account_id(2), 0, 3)), (("ETH/USD", 2**60), ("USDC/USD", 1)))
    assert parse_levels(levels_text(levels)) == levels
    assert parse_levels(levels_text(NO_LEVELS)) == NO_LEVELS


def test_the_staircase_keeps_what_nothing_covers() -> None:
    old, low, high = (Grant(ME, "0xd", epoch, budget, 100 + epoch) for epoch, budget in ((1, 50), (2, 90), (3, 40)))
    assert staircase((old, high, low, low)) == (low, high)
    assert uncovered((old, low, high), (low, high)) is None
    assert uncovered((low, high), (high,)) == low
    longer = old._replace(valid_until=1_000)
    assert staircase((longer, low)) == (longer, low)
