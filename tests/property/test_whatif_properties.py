"""What-if equals full recomputation; a greater shock never liquidates fewer; stress leaves others' accounts alone."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import assume, given
from hypothesis import strategies as st

from aggregator.core.pipeline import compute_report
from aggregator.core.risk.stress import apply, restrict, standings, stress_report
from aggregator.core.risk.systemic import cascade
from aggregator.core.whatif import Epoch, apply_change, changed_snapshot, positions_of, what_if
from aggregator.domain.errors import InputError
from aggregator.domain.snapshot import ChainView, Position
from aggregator.domain.stress import Change, Scenario
from tests.strategies import (
    DECIMALS,
    DERIVATIVES,
    ETH,
    PRICES,
    SOL,
    USDC,
    account_id,
    asset_policy,
    assets,
    books,
    contracts,
    debt,
    position,
    quotes,
    snapshot,
    views_of,
    world,
)

WORLD = world()
DERIVED = world(**DERIVATIVES)
THIN = world({"risky": asset_policy(daily_volume=3e6), "wrapped": asset_policy(daily_volume=3e6)})
EVERYBODY = {1: "risk-bearing", 2: "risk-bearing", 3: "risk-bearing"}
parts = st.floats(0.001, 2.0)
changes = st.builds(
    lambda action, asset, part: Change(action, asset, max(1, int(part * 10 ** DECIMALS[asset]))),
    st.sampled_from(("add", "remove", "borrow", "repay")),
    assets,
    parts,
)


def shock(**prices: float) -> Scenario:
    named = {f"{base.upper()}/USD": by for base, by in prices.items()}
    return Scenario(name="shock", title="t", kind="hypothetical", source="test", prices=named)


@given(books(), contracts(), views_of(), st.lists(changes, min_size=1, max_size=4), st.integers(1, 3))
def test_what_if_equals_full_recomputation_and_more_collateral_never_hurts(
    rows: list[Position], listed: list[Position], views: list[ChainView], wanted: list[Change], number: int
) -> None:
    seen = snapshot(sorted([*rows, *listed]), kinds=EVERYBODY, views=views)
    said = tuple(quotes())
    epoch = Epoch(seen, said, DERIVED, None, compute_report(seen, said, DERIVED))
    who = account_id(number)
    account = next(a for a in seen.accounts if a.id == who)
    changed: Sequence[Position] = positions_of(seen, who)
    possible: list[Change] = []
    for change in wanted:
        try:
            changed, _ = apply_change(epoch, account, changed, change, "change")
        except InputError:
            continue
        possible.append(change)
    own = next((p for p in changed if p.contract.kind), None)
    if own is not None:
        possible.append(Change("close", own.asset, own.quantity, side="long" if own.side == "asset" else "short"))
        changed, _ = apply_change(epoch, account, changed, possible[-1], "change")
    assume(possible)
    answer = what_if(epoch, who, possible)
    whole = compute_report(changed_snapshot(seen, who, changed), said, DERIVED)
    assert answer.before == standings(epoch.report)[number - 1]
    assert answer.after == standings(whole)[number - 1]
    if {change.action for change in possible} <= {"add", "repay"}:
        quantum = 4 + abs(answer.before.free_collateral) // 10**9
        assert answer.after.free_collateral >= answer.before.free_collateral - quantum
        assert answer.after.requirement <= answer.before.requirement + quantum
    others = [s for s in standings(epoch.report) if s.account != who]
    assert [s for s in standings(whole) if s.account != who] == others


@given(books(), st.floats(0.05, 1.5), st.integers(1, 3))
def test_stress_of_one_account_is_that_of_all(rows: list[Position], by: float, number: int) -> None:
    seen = snapshot(rows, kinds=EVERYBODY)
    scenarios = [shock(eth=by, sol=by)]
    everybody = stress_report(seen, quotes(), WORLD, None, scenarios).rows
    shocked = apply(scenarios[0], restrict(seen, account_id(number)), quotes(), WORLD)
    (alone,) = standings(compute_report(*shocked))
    assert alone == everybody[number - 1].after


levered = st.lists(
    st.tuples(st.sampled_from((ETH, SOL)), st.floats(1.0, 300.0), st.floats(0.1, 0.95)), min_size=1, max_size=6
)


@given(levered, st.floats(0.3, 1.0), st.floats(0.3, 1.0))
def test_a_greater_shock_never_liquidates_fewer(
    drawn: list[tuple[str, float, float]], first: float, second: float
) -> None:
    price = {ETH: 2_000.0, SOL: 150.0}
    rows: list[Position] = []
    for i, (asset, units, leverage) in enumerate(drawn, start=1):
        rows += [position(i, asset, units), debt(i, USDC, units * price[asset] * leverage)]
    seen = snapshot(rows)
    greater, smaller = (
        cascade(compute_report(*apply(scenario, seen, quotes(), THIN)), THIN, scenario, PRICES, rounds=50)
        for scenario in (shock(eth=by, sol=by) for by in (min(first, second), max(first, second)))
    )
    assert greater.settled
    assert smaller.settled
    assert {c.account for c in greater.closed} >= {c.account for c in smaller.closed}
    for feed, by in greater.prices.items():
        assert by <= smaller.prices[feed] * (1 + 1e-12)
    assert greater.bad_debt >= smaller.bad_debt * (1 - 1e-9) - 1e-6
