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
from aggregator.core.portfolio import relief
from aggregator.domain.price import Quote
from aggregator.domain.report import HIGH, INITIAL, LOW, MAINTENANCE, MID, AccountMargin, Flag, LeafValues, MarginReport
from aggregator.domain.snapshot import ChainView, Position
from tests.strategies import (
    DAY,
    DERIVATIVES,
    ETH,
    EVM,
    SOLANA,
    SOURCES,
    STETH,
    SUSDC,
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
    st.lists(st.booleans(), min_size=5, max_size=5),
    st.sampled_from(["scenario", "scenario", "standard", "pmrm-2", "span", "cross"]),
    st.sampled_from([1, 3, 1 << 14]),
    KINDS,
    views_of(),
    st.randoms(use_true_random=False),
)
def test_no_account_depends_on_whom_it_is_valued_with(
    rows: list[Position],
    parts: list[bool],
    model: str,
    at_a_time: int,
    kinds: dict[int, str],
    views: list[ChainView],
    shuffle: random.Random,
) -> None:
    """Cut in any two, in any order, and worked on few rows at a time: every leaf is the same to the last digit."""
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


def loose(row: Position, **changes: object) -> Position:
    """Return the same contract at a venue whose owner can close it at any time."""
    there = {"control": "none", "removal_delay": 0, "venue": "loose", "origin": "0xaa", "asset": row.asset + "/loose"}
    return row._replace(**(there | changes))  # type: ignore[arg-type]


@given(Books, contracts(accounts=1, most=3), KINDS, views_of(), st.sampled_from([0, 30, 60]))
def test_a_contract_that_its_owner_may_close_at_any_time_never_helps(
    rows: list[Position], more: list[Position], kinds: dict[int, str], views: list[ChainView], delay: int
) -> None:
    rows = [*rows, position(1, USDC, 1e5), position(1, ETH, 30.0)]
    kinds = kinds | {1: "risk-bearing"}  # the gate is off where nobody relies on it
    before = report_of(rows, kinds=kinds, views=views)
    for some in (more[:1], more):
        added = [loose(row, removal_delay=delay) for row in some]
        no_better(report_of([*rows, *added], kinds=kinds, views=views), before)


@given(
    st.tuples(contracts(accounts=1, most=3), contracts(accounts=1, most=3)), st.booleans(), st.sets(st.integers(0, 2))
)
def test_what_may_be_gone_is_needed_for_nothing_whatever_of_it_is(
    parts: tuple[list[Position], list[Position]], dark: bool, gone: set[int]
) -> None:
    """Of contracts on a stale chain, or at a venue behind no gate: any may be there, and any may be closed."""
    sure, doubtful = parts
    cash = position(1, USDC, 1e6)
    sure = [row._replace(chain=EVM, unit=USDC, control="seizable") for row in sure if row.contract.kind != "inverse"]
    doubtful = [row for row in doubtful if row.contract.kind != "inverse" and not short_option(row)]
    if dark:
        doubtful = [r._replace(chain=SOLANA, unit=SUSDC, asset=f"{SOLANA}/{r.asset}") for r in doubtful]
    else:
        doubtful = [loose(r._replace(chain=EVM, unit=USDC)) for r in doubtful]
    views = [view(EVM), view(SOLANA, 400, status="stale", cause="down")]
    whole = report_of([cash, *sure, *doubtful], views=views)
    left = report_of([cash, *sure, *(r for n, r in enumerate(doubtful) if n not in gone)], views=views)
    assert_needs_no_less(whole, left)


def short_option(row: Position) -> bool:
    return row.contract.kind in ("call", "put") and row.side == "debt"


def assert_needs_no_less(one: MarginReport, other: MarginReport) -> None:
    """Assert that the first account needs no less in the first report."""
    needs = [0.0 if r.derivatives is None else r.derivatives.requirement[0, LOW, :, 0] for r in (one, other)]
    assert (needs[0] >= needs[1] - 1e-9 * (1 + np.abs(needs[1]))).all()


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


@pytest.mark.parametrize("short", [1.0, 9.0, 40.0])
def test_parts_add_up_where_collateral_hedges(short: float) -> None:
    rows = [position(1, ETH, 10.0), position(1, STETH, 2.0), position(1, USDC, 5e4), contract(1, "perp", -short)]
    report = report_of([*rows, contract(1, "put", 3.0)])
    found = explain(report, 0, WORLD)
    assert found.hedged == (True, True)
    assert found.greeks[0].hedge > 0
    assert found.greeks[0].requirement_initial <= 0
    assert (found.greeks[0].requirement_initial < 0) == (short == 40.0)  # where it saves of what the perp may lose
    parts_add_up(found, found.leaves[report.destinations.index(EVM)])


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
    counted = (together.components[0] if together.components[0].contract is None else together.components[1]).initial
    assert together.greeks[0].hedge == pytest.approx(
        min(short, held * (1 - counted.policy) * (1 - counted.liquidity)), rel=0.05
    )
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
    won, lost = contract(1, "perp", 5.0, entry=1_000.0), contract(1, "put", -1.0, strike=2_500.0)
    kept = alone([cash, won])
    free = alone([cash, loose(won)])
    assert kept.settlements[0].gain_maintenance > kept.settlements[0].gain_initial > 0
    assert free.settlements[0].gain_maintenance == 0
    assert free.requirement == kept.requirement
    assert free.equity == kept.equity
    # Nor does it pay for what is owed beside it: its owner may close it alone.
    owed = alone([cash, loose(lost)])
    both = alone([cash, loose(won), loose(lost)])
    assert both.settlements[0].loss_maintenance == owed.settlements[0].loss_maintenance > 0
    assert {step.layer: step.maintenance for step in both.layers}["exit"] < -4_900 * 1e8
    kept_both = alone([cash, won, lost])
    assert kept_both.settlements[0].gain_maintenance > 0 == kept_both.settlements[0].loss_maintenance


def test_a_hedge_that_its_owner_may_close_is_none() -> None:
    base = [position(1, USDC, 100_000.0), contract(1, "call", -100.0)]
    bare, covered = alone(base), alone([*base, contract(1, "call", 100.0)])
    undone = alone([*base, loose(contract(1, "call", 100.0))])
    assert covered.free_collateral > bare.free_collateral + 30_000 * 1e8
    assert undone.free_collateral <= bare.free_collateral
    assert undone.maintenance_excess.high > bare.maintenance_excess.high  # as seen, it is there
    # And of two stale perps that offset, either may be gone.
    perps = [contract(1, "perp", 50.0, unit=SUSDC), contract(1, "perp", -50.0, unit=SUSDC)._replace(venue="other")]
    dark = [view(EVM), view(SOLANA, 400, status="stale", cause="down")]
    need = explain(report_of([base[0], *perps], views=dark), 0, WORLD).requirement
    assert need.initial >= explain(report_of([base[0], perps[0]], views=dark), 0, WORLD).requirement.initial > 0


@pytest.mark.parametrize("settled_together", [True, False])
def test_nobody_is_liquidatable_because_an_option_expired(settled_together: bool) -> None:
    """A spread deep in the money is worth 100 a lot, before and after it expires, as long as the price stays."""
    cash = position(1, USDC, 10_000.0 if settled_together else 80_000.0)
    days = [600 / DAY, 1 / DAY, -60 / DAY, -600 / DAY]
    found = [
        alone(
            [
                cash,
                contract(1, "call", 200.0, strike=1_800.0, days=left),
                contract(1, "call", -200.0, strike=1_900.0, days=left if settled_together else 30.0),
            ]
        )
        for left in days
    ]
    assert found[0].maintenance_excess.high == pytest.approx(found[1].maintenance_excess.high, rel=0.02)
    for live, expired in ((found[1], found[2]), (found[1], found[3])):
        assert not expired.flags & Flag.LIQUIDATABLE
        assert expired.maintenance_excess.high >= live.maintenance_excess.high - 1e8
        assert expired.maintenance_excess.mid >= live.maintenance_excess.mid - 1e8
        assert expired.free_collateral < live.free_collateral  # what it pays is not known to be there


def test_a_hedge_is_none_for_what_outlives_it() -> None:
    """A put covers a perp until it expires; once that comes before the perp can be closed, it covers it no more."""
    bare = [position(1, USDC, 20_000.0), contract(1, "perp", 100.0)]
    days = [30.0, 1.0, 2 * 3_600 / DAY, 600 / DAY, 60 / DAY, 1 / DAY]
    found = [alone([*bare, contract(1, "put", 100.0, days=left)]) for left in days]
    without = alone(bare).free_collateral
    assert found[2].free_collateral > without + 20_000 * 1e8
    for late in found[3:]:
        (worth,) = (c.value for c in late.components if c.position.contract.kind == "put")
        assert late.free_collateral <= without + 1.2 * worth  # what the put pays, and no more
        assert late.maintenance_excess.high > 0  # as seen, it still covers
        assert not late.flags & Flag.LIQUIDATABLE
    assert [f.free_collateral for f in found[2:]] == sorted((f.free_collateral for f in found[2:]), reverse=True)
    # What expires with it is covered to the end.
    spread = [contract(1, "call", 200.0, strike=1_800.0, days=60 / DAY)]
    spread.append(contract(1, "call", -200.0, strike=1_900.0, days=60 / DAY))
    assert alone([bare[0], *spread]).free_collateral > 0


def test_a_chain_of_expiries_leaves_what_remains_after_each() -> None:
    """Long the first expiry and short the next: in between, only the short one is there."""
    cash = position(1, USDC, 50_000.0)
    near = contract(1, "call", 100.0, days=300 / DAY)
    next_ = contract(1, "call", -100.0, days=600 / DAY)
    late = contract(1, "call", 100.0, days=900 / DAY)
    need = {
        name: alone([cash, *rows]).requirement.initial
        for name, rows in {
            "near": [near, next_], "short": [next_], "both": [near, next_, late], "late": [next_, late],
            "same": [next_, next_._replace(side="asset", asset="eip155:31337/contract:x/1")],
        }.items()
    }  # fmt: skip
    assert need["near"] >= need["short"] * (1 - 1e-9)
    assert need["both"] < need["near"] / 2  # the late one is still there when the short one expires
    assert need["late"] < need["short"] / 2
    assert need["same"] < need["short"] / 2


@pytest.mark.parametrize("seconds", [300, 3 * 3_600, DAY, 4 * DAY, 14 * DAY, 45 * DAY])
@pytest.mark.parametrize("hedge", ["perp", "call", "put"])
@pytest.mark.parametrize("part", [0.3, 1.0])
def test_a_hedged_margin_is_no_more_than_its_tail(seconds: int, hedge: str, part: float) -> None:
    """What is claimed of 10 ETH and what hedges them is at most their mean worth over the tail of the policy's law.

    Puts and calls are so deep in the money that they move like the price.
    """
    policy = asset_policy(0.8, ((6, 0.92), (0.5, 0.75)), impact=0.0, haircuts=(0.0, 0.0))
    of = world({"risky": policy.model_copy(update={"liquidation_seconds": seconds})}, **DERIVATIVES)
    held = position(1, ETH, 10.0)
    report = compute_report(snapshot([held]), quotes(conf=0), of)
    kind = report.book.kind[0]
    p, v = report.book.kinds.policy[kind], report.book.kinds.view[kind]
    loss, years = report.tables.asset_loss[p, v, 0], report.tables.horizon[p, v, 0] / (365 * DAY)
    if seconds in (300, 45 * DAY):
        assert loss[INITIAL] < 0.03 if seconds == 300 else loss[INITIAL] > 0.6
    count = 10.0 * part
    strike = {"perp": 0.0, "call": 300.0, "put": 9_000.0}[hedge]
    row = contract(1, hedge, count if hedge == "put" else -count, strike=strike, days=300)  # type: ignore[arg-type]
    drawn = np.random.default_rng(1)
    price = drawn.standard_normal(400_000) * 0.8 * np.sqrt(years) - 0.32 * years
    for rate, kept in ((6, 0.92), (0.5, 0.75)):
        price += np.log(kept) * drawn.poisson(rate * years, len(price))
    price = 2_000 * np.exp(price)
    report = compute_report(snapshot([held, row]), quotes(conf=0), of)
    assert report.derivatives is not None
    if hedge == "put":  # its carry is no risk: it is worth what it is worth now, and moves against the price
        start = float(report.derivatives.worth[0])
        paid = np.maximum(start - count * (price - 2_000), 0.0)
    else:
        start = float(report.derivatives.worth[0]) if hedge == "call" else 0.0
        paid = (
            start - count * (price - 2_000) if hedge == "perp" else start - count * (np.maximum(price, strike) - 2_000)
        )
    worth = np.sort(10.0 * price + paid)
    claimed = (report.assets - report.debts)[0, LOW, :, 0]
    assert report.derivatives.hedged[0, LOW].all()
    for level, chance in ((INITIAL, 1e-3), (MAINTENANCE, 1e-2)):
        assert claimed[level] <= worth[: round(len(worth) * chance)].mean() * (1 + 2e-3)


@pytest.mark.parametrize("model", ["health", "isolated", "cross", "tiered"])
def test_collateral_keeps_its_haircut_where_the_model_does_not_look_at_it(model: str) -> None:
    of = world({"risky": BRIDGED}, **DERIVATIVES, models={"risk_bearing": model, "monitored": model})
    report = compute_report(snapshot([position(1, ETH, 10.0), contract(1, "call", -8.0)]), quotes(), of)
    assert report.derivatives is not None
    assert not report.derivatives.extra.any()
    assert not report.derivatives.hedged.any()


@pytest.mark.parametrize("model", ["pmrm-2", "pmrm-1", "standard", "span", "cross"])
def test_every_model_takes_what_may_be_gone_for_no_hedge(model: str) -> None:
    of = world({"risky": BRIDGED}, **DERIVATIVES, models={"risk_bearing": model, "monitored": model})
    cash, short, long = position(1, USDC, 1e6), contract(1, "perp", -50.0), contract(1, "perp", 50.0)

    def need(*rows: Position) -> int:
        return explain(compute_report(snapshot([cash, *rows]), quotes(), of), 0, of).requirement.initial

    assert need(short, loose(long)) >= max(need(short), need(short, long._replace(asset=long.asset + "/2")))
    assert need(loose(short), loose(long)) >= need(long)


def test_the_grid_takes_back_at_maintenance_what_collateral_leaves_there() -> None:
    """Where the maintenance factor makes the grid less than the haircut, the rest of the haircut stays."""
    slow = asset_policy(0.8, ((6, 0.92), (0.5, 0.75)), impact=0.0).model_copy(update={"liquidation_seconds": 60 * DAY})
    rows = [position(1, ETH, 10.0), contract(1, "call", -20.0, strike=3_000.0, days=60)]
    of = world({"risky": slow}, **DERIVATIVES, scenario={"maintenance_factor": 0.3})
    report = compute_report(snapshot(rows), quotes(), of)
    assert report.derivatives is not None
    kind = report.book.kind[np.flatnonzero(report.book.kinds.side[report.book.kind] == 0)[0]]
    p, v = report.book.kinds.policy[kind], report.book.kinds.view[kind]
    lost = report.tables.asset_loss[p, v, 0, MAINTENANCE]
    (reach,) = report.derivatives.reach[MAINTENANCE, 0]
    assert reach == pytest.approx(0.3 * report.derivatives.market.range[0])
    assert reach < lost
    more = relief(report.tables, np.array([p]), np.array([v]), 0, MAINTENANCE, np.array([reach]))
    assert (1 - lost) * (1 + more[0]) * (1 - reach) <= (1 - lost) * (1 + 1e-12)
    assert more[0] == pytest.approx(1 / (1 - reach) - 1)
