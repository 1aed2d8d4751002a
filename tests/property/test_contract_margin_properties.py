"""What perps and options must keep of the invariants of the pure core, and what explains them (risk.md §2, §4, §6)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core import valuation
from aggregator.core.explain import explain
from aggregator.core.margin import scenario
from aggregator.core.pipeline import compute_report, leaves
from aggregator.domain.price import Quote
from aggregator.domain.report import HIGH, INITIAL, LOW, MAINTENANCE, MID, AccountMargin, LeafValues, MarginReport
from aggregator.domain.snapshot import ChainView, Position
from tests.strategies import (
    DERIVATIVES,
    ETH,
    EVM,
    SOLANA,
    SOURCES,
    USDC,
    account_id,
    amounts,
    asset_policy,
    assets,
    books,
    borrowed,
    contract,
    contracts,
    debt,
    lent,
    position,
    quotes,
    snapshot,
    view,
    views_of,
    world,
)

BRIDGED = asset_policy(0.8, ((6, 0.92), (0.5, 0.75)), haircuts=(0.05, 0.02))
WORLD = world({"risky": BRIDGED}, **DERIVATIVES)
TIGHT = st.tuples(*[st.floats(-0.03, 0.03) for _ in SOURCES])
KINDS = st.sampled_from([{}, {1: "monitored"}, {1: "monitored", 2: "monitored", 3: "monitored"}])
Books = st.tuples(books(most=4), contracts(most=4)).map(lambda parts: [*parts[0], *parts[1]])


def report_of(
    rows: Sequence[Position],
    said: Sequence[Quote] | None = None,
    kinds: dict[int, str] | None = None,
    views: Sequence[ChainView] | None = None,
) -> MarginReport:
    everybody = dict.fromkeys((1, 2, 3), "risk-bearing") | (kinds or {})
    return compute_report(snapshot(rows, kinds=everybody, views=views), quotes() if said is None else said, WORLD)


def slack_of(leaf: LeafValues) -> int:
    """Return one quantum and 1e-12 relative of what the leaf adds up, as contracts of either sign are netted before."""
    return 30 + round(1e-11 * (leaf.assets_initial + leaf.requirement_initial + leaf.assets_maintenance))


def no_better(after: MarginReport, before: MarginReport) -> None:
    """Assert that every leaf is no better, in every number that opens risk or keeps it open."""
    for new, old in zip(leaves(after), leaves(before), strict=True):
        slack = slack_of(old) + slack_of(new)
        assert new.budget <= old.budget + slack
        assert new.assets_initial - new.requirement_initial <= old.assets_initial - old.requirement_initial + slack
        excess = old.assets_maintenance - old.requirement_maintenance
        assert new.assets_maintenance - new.requirement_maintenance <= excess + slack


@given(
    Books,
    st.integers(1, 3),
    assets,
    amounts,
    st.sampled_from([(position, debt), (lent, borrowed)]),
    KINDS,
    views_of(),
)
def test_more_collateral_never_lowers_and_more_debt_never_raises_the_margin(
    rows: list[Position],
    number: int,
    asset: str,
    amount: float,
    make: tuple[Callable[[int, str, float], Position], Callable[[int, str, float], Position]],
    kinds: dict[int, str],
    views: list[ChainView],
) -> None:
    hold, owe = make
    before = report_of(rows, kinds=kinds, views=views)
    no_better(before, report_of([*rows, hold(number, asset, amount)], kinds=kinds, views=views))
    no_better(report_of([*rows, owe(number, asset, amount)], kinds=kinds, views=views), before)


@given(Books, contracts(accounts=1), TIGHT, KINDS, st.randoms(use_true_random=False))
def test_neither_order_nor_the_contracts_of_another_account_matter(
    rows: list[Position],
    more: list[Position],
    skew: tuple[float, ...],
    kinds: dict[int, str],
    shuffle: random.Random,
) -> None:
    held = {(p.account, p.asset) for p in rows}
    turned = [*rows, *(p for p in more if (p.account, p.asset) not in held)]
    shuffle.shuffle(turned)
    before, after = report_of(rows, quotes(skew=skew), kinds), report_of(turned, quotes(skew=skew)[::-1], kinds)
    mine = account_id(1)
    assert [x for x in leaves(after) if x.account != mine] == [x for x in leaves(before) if x.account != mine]


@given(
    st.tuples(books(accounts=5, most=6), contracts(accounts=5, most=10)).map(lambda parts: [*parts[0], *parts[1]]),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
    st.sampled_from(["scenario", "scenario", "standard", "pmrm-2", "span", "cross"]),
    st.sampled_from([1, 3, 1 << 14]),
    KINDS,
    views_of(),
    st.randoms(use_true_random=False),
)
def test_no_account_depends_on_whom_it_is_valued_with(
    rows: list[Position],
    parts: list[int],
    model: str,
    at_a_time: int,
    kinds: dict[int, str],
    views: list[ChainView],
    shuffle: random.Random,
) -> None:
    """Cut into any parts, in any order, and worked on few rows at a time: every leaf is the same to the last digit."""
    of = world({"risky": BRIDGED}, **DERIVATIVES, models={"risk_bearing": model, "monitored": "scenario"})
    everybody = dict.fromkeys(range(1, 6), "risk-bearing") | kinds

    def leaves_of(chosen: set[int]) -> dict[tuple[str, str], LeafValues]:
        own = [p for p in rows if int(p.account, 16) in chosen]
        shuffle.shuffle(own)
        seen = snapshot(own, kinds={n: everybody[n] for n in chosen}, views=views)
        return {(leaf.account, leaf.destination): leaf for leaf in leaves(compute_report(seen, quotes(), of))}

    whole = leaves_of(set(everybody))
    apart: dict[tuple[str, str], LeafValues] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenario, "AT_A_TIME", at_a_time)
        patch.setattr(valuation, "CHUNK", at_a_time)
        for part in set(parts):
            apart |= leaves_of({n for n, mine in enumerate(parts, 1) if mine == part})
    assert apart == whole


@given(
    Books,
    st.lists(st.builds(debt, st.integers(1, 3), assets, st.floats(1, 1e3)), max_size=3),
    TIGHT,
    KINDS,
    views_of(),
    st.sampled_from([EVM, SOLANA]),
)
def test_what_holds_of_every_margin(
    rows: list[Position],
    loans: list[Position],
    skew: tuple[float, ...],
    kinds: dict[int, str],
    views: list[ChainView],
    home: str,
) -> None:
    """The interval is ordered, initial no looser, parts and layers add up to the leaf, and budgets are covered."""
    everybody = dict.fromkeys((1, 2, 3), "risk-bearing") | kinds
    rows = [*rows, *loans, *(position(n, ETH, 10.0**n) for n in (1, 3))]  # some accounts below, some above margin
    report = compute_report(snapshot(rows, kinds=everybody, views=views, home=home), quotes(skew=skew), WORLD)
    excess = report.assets - report.debts  # (bound, end, level, account)
    slack = 1e-11 * (report.assets + report.debts).max() + 1e-9
    assert (excess[:, LOW] <= excess[:, MID] + slack).all()
    assert (excess[:, MID] <= excess[:, HIGH] + slack).all()
    assert (excess[:, LOW, INITIAL] <= excess[:, LOW, MAINTENANCE] + slack).all()
    assert (report.assets >= 0).all()
    assert (report.debts >= 0).all()
    for index in range(3):
        found = explain(report, index, WORLD)
        parts_add_up(found, found.leaves[report.destinations.index(home)])
        budgets_are_covered(found, home)


def parts_add_up(found: AccountMargin, leaf: LeafValues) -> None:
    slack = 60 + round(1e-9 * sum(abs(c.value) + abs(c.counted_initial) for c in found.components))
    plain = [c for c in found.components if c.contract is None]
    parts = [c.contract for c in found.components if c.contract is not None]
    for place, level in enumerate(("initial", "maintenance")):
        own, owed = getattr(leaf, f"assets_{level}"), getattr(leaf, f"requirement_{level}")
        gains = sum(getattr(c, f"counted_{level}") for c in plain if c.position.side == "asset")
        gains += sum(part.gain[place] for part in parts)
        needs = sum(getattr(c, f"counted_{level}") for c in plain if c.position.side == "debt")
        needs += sum(part.loss[place] + part.requirement[place] for part in parts)
        needs += sum(getattr(x, f"requirement_{level}") for x in found.greeks)  # of collateral that hedges
        assert gains == pytest.approx(own, abs=slack)
        assert needs == pytest.approx(owed, abs=slack)
        settled = sum(getattr(s, f"gain_{level}") for s in found.settlements)
        assert settled == pytest.approx(sum(part.gain[place] for part in parts), abs=slack)
        assert found.equity + sum(getattr(step, level) for step in found.layers) == own - owed
        assert abs(sum(getattr(step, level) for step in found.layers if step.layer == "rounding")) <= slack
    assert found.requirement.initial >= found.requirement.maintenance


def budgets_are_covered(found: AccountMargin, home: str) -> None:
    lent_out = [c for c in found.components if c.position.venue == "lender"]
    at_home = sum(c.counted_initial for c in lent_out if c.position.chain == home)
    budget = sum(leaf.budget for leaf in found.leaves)
    assert budget <= max(0, found.free_collateral + at_home) + 60 + slack_of(found.leaves[0])


@given(contracts(accounts=1), st.floats(1e3, 1e5))
def test_a_contract_without_a_price_opens_no_risk(rows: list[Position], cash: float) -> None:
    lost = {p.contract.underlying for p in rows}
    said = [q for q in quotes() if q.feed not in lost]
    report = report_of([*rows, position(1, USDC, cash)], said)
    for leaf in leaves(report)[:2]:
        assert leaf.budget == leaf.assets_initial == leaf.assets_maintenance == 0
        assert leaf.requirement_maintenance > 0
    found = explain(report, 0, WORLD)
    assert found.status == "unknown"
    assert all("unknown" in c.reason for c in found.components if c.contract is not None)


@given(contracts(accounts=1), st.floats(1e3, 1e5), st.sampled_from([EVM, SOLANA]))
def test_contracts_of_a_stale_chain_gain_nothing_and_still_owe(rows: list[Position], cash: float, dark: str) -> None:
    views = [view(c, 400, status="stale", cause="down") if c == dark else view(c) for c in (EVM, SOLANA)]
    rows = [*rows, position(1, USDC, cash)]
    before, after = report_of(rows), report_of(rows, views=views)
    no_better(after, before)
    for settled in explain(after, 0, WORLD).settlements:
        if settled.chain == dark:
            assert settled.gain_initial == settled.gain_maintenance == 0
            assert settled.low_maintenance <= min(settled.net, 0)


def alone(rows: Sequence[Position]) -> AccountMargin:
    return explain(report_of(rows), 0, WORLD)


@pytest.mark.parametrize(("short", "held"), [(0.5, 40.0), (8.0, 8.0), (20.0, 3.0)])
def test_collateral_that_hedges_is_charged_once(short: float, held: float) -> None:
    """With a perp short the collateral, the grid moves both: less is asked than for either alone."""
    perp = contract(1, "perp", -short)
    together = alone([position(1, ETH, held), perp])
    apart = alone([position(1, ETH, held)]).free_collateral + alone([perp]).free_collateral
    assert together.free_collateral > apart
    assert together.hedged == (True, True)
    assert together.greeks[0].hedge == pytest.approx(min(short, together.greeks[0].hedge))
    assert together.greeks[0].hedge <= held
    worth = alone([position(1, ETH, held)]).equity + alone([perp]).equity
    assert together.free_collateral < worth
    # A long one moves with the collateral: nothing is hedged, and both are charged in full.
    along = alone([position(1, ETH, held), contract(1, "perp", short)])
    assert along.hedged == (False, False)


def test_unknown_terms_blind_the_account_and_nobody_else() -> None:
    good = contract(1, "perp", 1.0)
    cash = [position(n, USDC, 10_000.0) for n in (1, 2)]
    call = contract(1, "call", 1.0)
    broken = {
        "unknown-contract": good._replace(contract=good.contract._replace(kind="swap")),  # type: ignore[arg-type]
        "unknown-underlying": good._replace(contract=good.contract._replace(underlying="DOGE/USD")),
        "bad-contract": call._replace(contract=call.contract._replace(strike=-1)),
        "unknown-asset": good._replace(unit=f"{EVM}/erc20:0x{'ee' * 20}"),
        "bad-amount": good._replace(amount=5),
    }
    others = [leaf for leaf in leaves(report_of(cash)) if leaf.account == account_id(2)]
    for code, row in broken.items():
        report = report_of([*cash, row])
        mine, rest = leaves(report)[:2], leaves(report)[2:4]
        assert list(rest) == others
        assert all(leaf.budget == leaf.assets_initial == 0 < leaf.requirement_maintenance for leaf in mine), code
        assert [f.code for f in report.findings] == [code]
    for change in ({"expiry": 0}, {"expiry": 2**40}, {"strike": 0}, {"strike": 10**60}):
        row = call._replace(contract=call.contract._replace(**change))  # type: ignore[arg-type]
        assert [f.code for f in report_of([*cash, row]).findings] == ["bad-contract"]


def test_an_enormous_contract_isolates_its_account_alone() -> None:
    cash = [position(n, USDC, 10_000.0) for n in (1, 2)]
    huge = contract(1, "perp", 1.0)._replace(quantity=10**47)
    report = report_of([*cash, huge])
    assert bool(report.isolated[0])
    assert not report.isolated[1:].any()
    assert np.isfinite(report.debts).all()
    assert list(leaves(report)[2:4]) == [x for x in leaves(report_of(cash)) if x.account == account_id(2)]


def test_an_expired_option_counts_against_the_account_only() -> None:
    cash = position(1, USDC, 50_000.0)
    long = alone([cash, contract(1, "call", 3.0, strike=1_500, days=-1)])
    assert long.free_collateral <= alone([cash]).free_collateral
    assert long.settlements[0].low_maintenance == 0
    assert [f.code for f in long.findings] == ["contract-expired"]
    short = alone([cash, contract(1, "call", -3.0, strike=1_500, days=-1)])
    assert short.settlements[0].low_maintenance == pytest.approx(-1_500e8, rel=1e-2)


def test_no_gain_counts_that_its_owner_may_take_away() -> None:
    cash = position(1, USDC, 50_000.0)
    perp = contract(1, "perp", 5.0, entry=1_000.0)
    kept = alone([cash, perp])
    loose = alone([cash, perp._replace(control="none")])
    assert kept.settlements[0].gain_maintenance > kept.settlements[0].gain_initial > 0
    assert loose.settlements[0].gain_maintenance == 0
    assert loose.requirement == kept.requirement
    assert loose.equity == kept.equity
