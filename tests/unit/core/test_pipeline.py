"""What counts, what does not, and why: the rules of the health model on small worlds."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, destination_id, leaves
from aggregator.domain.price import Quote
from aggregator.domain.report import AccountMargin, Component, Flag
from aggregator.domain.snapshot import Finding, Position, Snapshot
from tests.strategies import (
    CUT_TIME,
    ETH,
    EVM,
    FLAT,
    SOL,
    SOLANA,
    STETH,
    SUSDC,
    USDC,
    account_id,
    asset_policy,
    borrowed,
    debt,
    lent,
    position,
    quotes,
    snapshot,
    view,
    world,
)

USD = 10**8
FLAT_WORLD = world({"risky": FLAT, "stable": FLAT, "wrapped": FLAT}, confidence_multiple=0.0)


def margin(seen: Snapshot, said: list[Quote] | None = None, index: int = 0, where: object = None) -> AccountMargin:
    of = where or world()
    return explain(compute_report(seen, quotes() if said is None else said, of), index, of)  # type: ignore[arg-type]


def test_without_risk_the_number_is_the_plain_sum() -> None:
    found = margin(snapshot([position(1, ETH, 2.0), position(1, SOL, 10.0), debt(1, USDC, 1_000.0)]), where=FLAT_WORLD)
    assert found.status == "healthy"
    assert found.flags == Flag(0)
    assert found.free_collateral == pytest.approx(4_500 * USD, abs=2)
    assert found.free_collateral <= 4_500 * USD
    assert found.equity == pytest.approx(4_500 * USD, abs=1)
    assert found.health == pytest.approx((5.5, 5.5, 5.5))
    assert [leaf.budget > 0 for leaf in found.leaves].count(True) == 1  # at home only
    assert max(leaf.budget for leaf in found.leaves) == pytest.approx(
        5_500 * USD, abs=2
    )  # consumers count what they lent


@pytest.mark.parametrize(("collateral", "owed"), [(10.0, 8_000.0), (3.0, 2_500.0), (1.0, 1_999.0)])
@pytest.mark.parametrize("recourse", [True, False])
def test_equals_the_health_factor_of_aave(collateral: float, owed: float, recourse: bool) -> None:
    """HF = Σ collateral·price·liquidation threshold / Σ debt·price, the gate off, no haircut but the threshold."""
    threshold = 0.825
    listed = asset_policy(0.0, (), impact=0.0, haircuts=(1 - threshold, 1 - threshold), weights=(1.0, 1.0))
    where = world({"risky": listed, "stable": FLAT}, confidence_multiple=0.0)
    rows = [lent(1, ETH, collateral), borrowed(1, USDC, owed)]
    if recourse:
        rows = [row._replace(netting="") for row in rows]
    found = margin(snapshot(rows, kinds={1: "monitored"}), where=where)
    factor = collateral * 2_000 * threshold / owed
    expected = factor if recourse else max(1.0, factor)  # limited recourse ends where the collateral does
    assert found.health[1] == pytest.approx(expected, rel=1e-12)
    if recourse:
        assert (found.status == "healthy") == (factor >= 1)


def test_only_what_a_hold_can_reach_counts() -> None:
    rows = [
        position(1, ETH, 1.0),
        position(1, SOL, 1.0, control="none", removal_delay=0, venue="wallet"),
        position(1, USDC, 1.0, removal_delay=60),  # a hold may take 60 s, and the block is 20 s old
    ]
    found = {c.position.asset: c for c in margin(snapshot(rows)).components}
    assert found[ETH].counted_maintenance > 0
    assert found[SOL].counted_maintenance == found[USDC].counted_maintenance == 0
    assert "not in a vault" in found[SOL].reason
    assert "a hold may take longer" in found[USDC].reason


@pytest.mark.parametrize(("delay", "counts"), [(80, False), (81, True)])
def test_the_gate_is_judged_on_the_delay_that_may_remain(delay: int, counts: bool) -> None:
    assert (margin(snapshot([position(1, ETH, 1.0, removal_delay=delay)])).free_collateral > 0) is counts


def test_a_monitored_account_is_valued_but_gets_no_budget() -> None:
    rows = [position(1, ETH, 1.0, control="none", removal_delay=0, venue="wallet")]
    found = margin(snapshot(rows, kinds={1: "monitored"}))
    assert found.flags == Flag.MONITORED
    assert found.free_collateral > 1_500 * USD
    assert all(leaf.budget == 0 for leaf in found.leaves)
    assert "monitored" in found.components[0].reason


@pytest.mark.parametrize("kind", ["risk-bearing", "monitored"])
def test_what_may_be_claimed_at_any_moment_counts_nothing_but_makes_nobody_liquidatable(kind: str) -> None:
    owed = debt(1, USDC, 500.0)
    whole = margin(snapshot([position(1, ETH, 1.0), owed], kinds={1: kind}))
    asked = margin(snapshot([position(1, ETH, 1.0, pending=10**18), owed], kinds={1: kind}))
    assert (whole.status, asked.status) == ("healthy", "unhealthy")
    assert all(leaf.assets_initial == leaf.assets_maintenance == leaf.budget == 0 for leaf in asked.leaves)
    assert asked.maintenance_excess.mid < -500 * USD
    assert asked.maintenance_excess.high == whole.maintenance_excess.high > 0
    assert Flag.LIQUIDATABLE not in asked.flags
    assert "withdrawal request counts 0" in next(c for c in asked.components if c.position.side == "asset").reason


def test_the_rest_of_what_is_under_withdrawal_counts() -> None:
    half = margin(snapshot([position(1, ETH, 1.0)]))
    asked = margin(snapshot([position(1, ETH, 2.0, pending=10**18)]))
    assert asked.free_collateral == half.free_collateral
    assert asked.maintenance_excess.low == half.maintenance_excess.low


def test_limited_recourse_is_never_below_nothing() -> None:
    rows = [lent(1, ETH, 1.0), borrowed(1, USDC, 5_000.0)]
    found = margin(snapshot(rows, kinds={1: "monitored"}))
    assert found.maintenance_excess.mid <= 0
    assert found.maintenance_excess.low == pytest.approx(0, abs=2)
    assert found.equity == pytest.approx(0, abs=1)
    owed = next(c for c in found.components if c.position.side == "debt")
    assert 0 < owed.share_maintenance < 1
    assert "limited recourse" in owed.reason


def test_for_a_risk_bearing_account_an_outside_loan_is_no_asset_and_no_debt() -> None:
    found = margin(snapshot([position(1, ETH, 1.0), lent(1, SOL, 9.0), borrowed(1, USDC, 500.0)]))
    alone = margin(snapshot([position(1, ETH, 1.0)]))
    assert found.maintenance_excess.low == alone.maintenance_excess.low


def test_a_consumer_debt_is_recourse_whatever_its_reader_says() -> None:
    found = margin(snapshot([position(1, ETH, 1.0), debt(1, USDC, 500.0, netting="pool")]))
    assert found.leaves[0].requirement_maintenance > 500 * USD


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({"status": "stale", "cause": "halted: no block for 400 s"}, Flag.STALE | Flag.HALTED_CHAIN),
        ({"status": "stale", "cause": "reorged: slot 90 was replaced"}, Flag.STALE | Flag.HALTED_CHAIN),
        ({"status": "stale", "cause": "frozen: the sequencer is down"}, Flag.STALE | Flag.HALTED_CHAIN),
        ({"status": "stale", "cause": "dark: no node answers"}, Flag.STALE),
        ({"status": "stale", "cause": "no node answers"}, Flag.STALE),
    ],
)
def test_a_stale_chain_widens_the_interval(changes: dict[str, str], flags: Flag) -> None:
    rows = [position(1, ETH, 1.0), position(1, SOL, 1.0), debt(1, USDC, 100.0)]
    found = margin(snapshot(rows, views=[view(EVM), view(SOLANA, 400, **changes)]))
    fresh = margin(snapshot(rows[::2]))
    assert found.flags == flags
    assert found.maintenance_excess.low == fresh.maintenance_excess.low  # the stale leg counts 0
    assert found.maintenance_excess.mid > found.maintenance_excess.low + 100 * USD
    assert found.as_of == CUT_TIME - 400
    reason = next(c for c in found.components if c.position.asset == SOL).reason
    assert changes["cause"] in reason


DARK = [view(EVM), view(SOLANA, 400, status="stale", cause="halted: no block for 400 s")]


def test_dust_from_a_stranger_on_a_dark_chain_makes_nobody_stale() -> None:
    rows = [position(1, ETH, 1.0), debt(1, USDC, 100.0)]
    clean = margin(snapshot(rows, views=DARK))
    dusted = margin(snapshot([*rows, position(1, SOL, 1)], views=DARK, links={1: (f"{SOLANA}:holder",)}))
    assert clean.flags == dusted.flags == Flag(0)
    assert clean.as_of == dusted.as_of == CUT_TIME - 20
    assert [leaf._replace(equity=0) for leaf in dusted.leaves] == [leaf._replace(equity=0) for leaf in clean.leaves]
    assert next(c for c in dusted.components if c.position.asset == SOL).counted_initial == 0


@pytest.mark.parametrize(
    ("leg", "matters"),
    [
        pytest.param(position(1, SOL, 0.0012), False, id="less than a ten-thousandth"),
        pytest.param(position(1, SOL, 0.0015), True, id="more than a ten-thousandth"),
        pytest.param(position(1, SOL, 0.0015, pending=1_500_000), True, id="under withdrawal"),
        pytest.param(debt(1, SOL, 1), True, id="the smallest debt"),
        pytest.param(debt(1, SOL, 1, venue="otc"), True, id="the smallest debt elsewhere"),
    ],
)
def test_only_legs_that_matter_make_an_account_stale(leg: Position, matters: bool) -> None:
    """Gross value is 2,100 USD: a ten-thousandth is 0.21 USD, or 0.0014 SOL."""
    found = margin(snapshot([position(1, ETH, 1.0), debt(1, USDC, 100.0), leg], views=DARK))
    assert found.flags == (Flag.STALE | Flag.HALTED_CHAIN if matters else Flag(0))
    assert found.as_of == CUT_TIME - (400 if matters else 20)


@pytest.mark.parametrize("cause", ["halted: x", "reorged: x", "frozen: x", "dark: x"])
def test_a_chain_that_cannot_be_relied_on_makes_nobody_unhealthy_who_may_not_be(cause: str) -> None:
    """At `low` and `mid` the account fails, at `high` it holds: its collateral is where nothing can be known."""
    owed = debt(1, USDC, 1_500.0)
    views = [view(EVM), view(SOLANA, 20, status="stale", cause=cause)]
    torn = quotes(conf=0.1)
    spanning = [position(1, SOL, 10.5), owed]
    found = margin(snapshot(spanning, views=views), torn)
    assert found.maintenance_excess.mid < 0 < found.maintenance_excess.high
    assert found.status == "unknown"
    assert Flag.LIQUIDATABLE not in found.flags
    assert margin(snapshot(spanning), torn).status == "unhealthy"  # read, it is what it seems
    hopeless = margin(snapshot([position(1, SOL, 1.0), owed], views=views), torn)
    assert hopeless.status == "unhealthy"
    assert Flag.LIQUIDATABLE in hopeless.flags


def test_an_old_block_alone_makes_a_leg_stale() -> None:
    found = margin(snapshot([position(1, SOL, 1.0)], views=[view(EVM), view(SOLANA, 301)]))
    assert found.free_collateral == 0
    assert found.flags == Flag.STALE


def test_debts_of_a_stale_chain_stay() -> None:
    rows = [position(1, ETH, 1.0), debt(1, SOL, 1.0)]
    found = margin(snapshot(rows, views=[view(EVM), view(SOLANA, 400, status="stale", cause="down")]))
    assert found.leaves[0].requirement_maintenance > 150 * USD


def test_a_chain_never_read_leaves_the_account_unknown_and_without_budget() -> None:
    missing = replace(view(SOLANA), status="missing", block=None, cause="never read")
    found = margin(snapshot([position(1, ETH, 1.0)], views=[view(EVM), missing]))
    assert found.status == "unknown"
    assert found.flags == Flag.PARTIAL
    assert all(leaf.budget == 0 for leaf in found.leaves)
    assert found.free_collateral > 0


def test_an_unknown_price_counts_nothing_and_opens_nothing() -> None:
    said = [q for q in quotes() if q.feed != "SOL/USD"]
    held = margin(snapshot([position(1, ETH, 1.0), position(1, SOL, 9.0)]), said)
    assert held.free_collateral == margin(snapshot([position(1, ETH, 1.0)])).free_collateral
    assert held.flags == Flag.PARTIAL
    owing = margin(snapshot([position(1, ETH, 1.0), debt(1, SOL, 1.0)]), said)
    assert owing.status == "unknown"
    assert owing.maintenance_excess.low < 0
    assert all(leaf.budget == 0 and leaf.assets_initial == 0 for leaf in owing.leaves)


@pytest.mark.parametrize("kind", ["risk-bearing", "monitored"])
@pytest.mark.parametrize("owed", [0.0, 100.0])
def test_a_debt_that_cannot_be_read_opens_nothing_and_is_never_healthy(kind: str, owed: float) -> None:
    rows = [position(1, ETH, 1.0), position(2, ETH, 1.0), *([debt(1, USDC, owed)] if owed else [])]
    unread = Finding("debt-unreadable", account_id(1), "debtOf failed")
    report = compute_report(snapshot(rows, kinds={1: kind}, findings=(unread,)), quotes(), world())
    found, other = explain(report, 0, world()), explain(report, 1, world())
    assert found.status == "unknown"
    assert Flag.PARTIAL in found.flags
    assert Flag.LIQUIDATABLE not in found.flags
    assert all(leaf.budget == leaf.assets_initial == leaf.assets_maintenance == 0 for leaf in found.leaves)
    assert all(leaf.requirement_maintenance > 0 for leaf in found.leaves)
    assert "could not be read" in next(c for c in found.components if c.position.side == "asset").reason
    assert other == margin(snapshot([position(2, ETH, 1.0)]))


WITHOUT_SOL = [q for q in quotes() if q.feed != "SOL/USD"]
LONE_SOL = [q for q in quotes() if q.feed != "SOL/USD" or q.source == "alpha"]
"""No source at all prices SOL; one does, at 150 USD, which is too few."""
ODD = f"{EVM}/erc20:0x{'ee' * 20}"
WALLET = {"control": "none", "removal_delay": 0, "venue": "wallet"}


@pytest.mark.parametrize(
    ("leg", "said", "partial"),
    [
        # No price at all: what matters is whether it could count.
        pytest.param(position(1, SOL, 9.0, **WALLET), WITHOUT_SOL, False, id="no price, in a wallet"),
        pytest.param(position(1, SOL, 9.0, removal_delay=1), WITHOUT_SOL, False, id="no price, gone before a hold"),
        pytest.param(position(1, SOL, 1), WITHOUT_SOL, True, id="no price, seizable, however little"),
        pytest.param(position(1, SOL, 0), WITHOUT_SOL, True, id="no price, seizable, nothing seen"),
        # Too few prices: gross value is 2,100 USD, of which a ten-thousandth is 0.0014 SOL.
        pytest.param(position(1, SOL, 0.0012), LONE_SOL, False, id="dust at the price there is"),
        pytest.param(position(1, SOL, 0.0015), LONE_SOL, True, id="more than dust at the price there is"),
        pytest.param(position(1, SOL, 9.0, **WALLET), LONE_SOL, True, id="much, in a wallet"),
        # Debts, always.
        pytest.param(debt(1, SOL, 1), LONE_SOL, True, id="the smallest debt"),
        pytest.param(borrowed(1, SOL, 1), WITHOUT_SOL, True, id="the smallest debt without a price"),
        # What cannot be interpreted.
        pytest.param(position(1, ETH, 9.0, **WALLET)._replace(asset=ODD), quotes(), False, id="unknown, in a wallet"),
        pytest.param(position(1, ETH, 9.0)._replace(asset=ODD), quotes(), True, id="unknown, seizable"),
        pytest.param(position(1, ETH, -1, **WALLET), quotes(), True, id="malformed"),
        pytest.param(borrowed(1, ETH, 9.0)._replace(asset=ODD), quotes(), True, id="unknown debt"),
    ],
)
def test_a_gift_without_a_price_makes_no_account_partial(leg: Position, said: list[Quote], partial: bool) -> None:
    rows = [position(1, ETH, 1.0), debt(1, USDC, 100.0)]
    clean, given = margin(snapshot(rows), said), margin(snapshot([*rows, leg]), said)
    assert clean.flags == Flag(0)
    assert given.flags == (Flag.PARTIAL if partial else Flag(0))
    if leg.side == "asset":
        assert given.maintenance_excess.low == clean.maintenance_excess.low
        assert max(leaf.budget for leaf in given.leaves) == max(leaf.budget for leaf in clean.leaves)


def test_a_monitored_account_counts_every_asset_so_every_one_without_a_price_makes_it_partial() -> None:
    rows = [position(1, ETH, 1.0), position(1, SOL, 1, **WALLET)]
    found = margin(snapshot(rows, kinds={1: "monitored"}), WITHOUT_SOL)
    assert found.flags == Flag.PARTIAL | Flag.MONITORED


def test_a_gift_never_shields_from_liquidation_but_what_could_count_does() -> None:
    rows = [position(1, ETH, 1.0), debt(1, USDC, 5_000.0)]
    gift = position(1, ETH, 9.0, **WALLET)._replace(asset=ODD)
    reader = Finding("unknown-asset", account_id(1), "aave-v3 reserve 0xee is not configured")  # beside the position
    for leg in (position(1, SOL, 9.0, **WALLET), gift):
        found = margin(snapshot([*rows, leg], findings=(reader,)), WITHOUT_SOL)
        assert (found.status, found.flags) == ("unhealthy", Flag.LIQUIDATABLE)
    for leg, said in ((position(1, SOL, 1), WITHOUT_SOL), (position(1, SOL, 1), LONE_SOL)):
        assert Flag.LIQUIDATABLE not in margin(snapshot([*rows, leg]), said).flags


@pytest.mark.parametrize(
    ("leg", "links", "partial"),
    [
        pytest.param(position(1, SOL, 0.0012), (), False, id="dust there"),
        pytest.param(position(1, SOL, 0.0015), (), True, id="more than dust there"),
        pytest.param(debt(1, SOL, 1), (), True, id="the smallest debt there"),
        pytest.param(position(1, ETH, 0.1), (), False, id="nothing there"),
        pytest.param(position(1, ETH, 0.1), (f"{SOLANA}:holder",), True, id="a link there"),
    ],
)
def test_what_could_not_be_read_of_a_chain_concerns_who_is_there(
    leg: Position, links: tuple[str, ...], partial: bool
) -> None:
    unread = Finding("reading-refused", SOLANA, "not at the block of the cut")
    rows = [position(1, ETH, 1.0), debt(1, USDC, 100.0), leg]
    found = margin(snapshot(rows, findings=(unread,), links={1: links}))
    assert found.flags == (Flag.PARTIAL if partial else Flag(0))


def test_an_unpriced_asset_makes_nobody_liquidatable() -> None:
    rows = [position(1, SOL, 100.0), debt(1, USDC, 500.0)]
    found = margin(snapshot(rows), [q for q in quotes() if q.feed != "SOL/USD"])
    assert found.status == "unknown"
    assert Flag.LIQUIDATABLE not in found.flags


def test_liquidatable_only_when_even_the_best_case_fails() -> None:
    hopeless = margin(snapshot([position(1, ETH, 1.0), debt(1, USDC, 5_000.0)]))
    assert hopeless.status == "unhealthy"
    assert Flag.LIQUIDATABLE in hopeless.flags
    said = quotes(conf=0.05)
    torn = margin(snapshot([position(1, ETH, 1.0), debt(1, USDC, 1_850.0)]), said)
    assert torn.maintenance_excess.high > 0 > torn.maintenance_excess.low
    assert Flag.LIQUIDATABLE not in torn.flags


def test_a_feed_in_dispute_opens_no_risk_but_still_maintains() -> None:
    said = [q._replace(conf=q.price // 20) if q.feed == "ETH/USD" else q for q in quotes()]
    found = margin(snapshot([position(1, ETH, 1.0), position(1, SOL, 1.0)]), said)
    alone = margin(snapshot([position(1, SOL, 1.0)]), said)
    assert max(leaf.budget for leaf in found.leaves) == max(leaf.budget for leaf in alone.leaves) > 0
    assert found.maintenance_excess.low > 1_000 * USD


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"asset": f"{EVM}/erc20:0x{'ee' * 20}"}, "unknown-asset"),
        ({"unit": f"{EVM}/erc20:0x{'ee' * 20}"}, "unknown-unit"),
        ({"chain": "eip155:99"}, "unknown-chain"),
        ({"asset": SOL}, "unknown-asset"),  # known, but on another chain
        ({"amount": -1}, "bad-amount"),
    ],
)
@pytest.mark.parametrize("side", ["asset", "debt"])
def test_what_cannot_be_interpreted_counts_nothing(changes: dict[str, object], code: str, side: str) -> None:
    odd = position(1, ETH, 5.0)._replace(**changes, side=side)  # type: ignore[arg-type]
    report = compute_report(snapshot([position(1, USDC, 9.0), odd, position(2, ETH, 1.0)]), quotes(), world())
    found, other = explain(report, 0, world()), explain(report, 1, world())
    assert [f.code for f in found.findings] == [code]
    assert found.findings[0].scope == f"{account_id(1)} {odd.asset}"
    assert Flag.PARTIAL in found.flags
    assert other == margin(snapshot([position(2, ETH, 1.0)]))
    if side == "asset":
        assert found.free_collateral == margin(snapshot([position(1, USDC, 9.0)])).free_collateral
    else:  # a debt of unknown size: nothing may rest on the account
        assert found.status == "unknown"
        assert all(leaf.budget == 0 and leaf.assets_maintenance == 0 for leaf in found.leaves)


@pytest.mark.parametrize("make", [position, debt, lent, borrowed])
@pytest.mark.parametrize("amount", [10**60, 10**400, 2**300])
def test_a_poisonous_account_changes_no_other_leaf(make: object, amount: int) -> None:
    calm = [position(1, ETH, 1.0), position(3, SOL, 1.0), debt(3, USDC, 10.0)]
    poison = make(2, ETH, amount)  # type: ignore[operator]
    before = {leaf.account: leaf for leaf in leaves(compute_report(snapshot(calm), quotes(), world()))}
    report = compute_report(snapshot([*calm, poison]), quotes(), world())
    after = leaves(report)
    assert all(before[leaf.account] == leaf for leaf in after[1::2] if leaf.account in before)
    own = [leaf for leaf in after if leaf.account == account_id(2)]
    assert all(leaf.assets_maintenance == 0 and leaf.budget == 0 for leaf in own)
    if make is borrowed:  # limited recourse to no collateral: nothing, however large
        return
    assert all(leaf.flags & Flag.PARTIAL for leaf in own)
    assert Finding("out-of-range", account_id(2), report.findings[0].detail) in report.findings
    assert explain(report, 1, world()).status == "unknown"


def by_hand(component: Component, level: str) -> Decimal:
    """Recompute one component from what is printed, in decimal arithmetic."""
    p, cut = component.position, getattr(component, level)
    scale = Decimal(10) ** component.decimals
    share = Decimal(getattr(component, f"share_{level}"))
    if p.side == "debt":
        price = component.price_initial if level == "initial" else component.price_high
        weight = Decimal(getattr(component, f"liability_weight_{level}"))
        return Decimal(p.amount) / scale * Decimal(price) * (1 + Decimal(cut.market)) * weight * share
    price = component.price_initial if level == "initial" else component.price_low
    held = Decimal(p.amount - p.pending) / scale * Decimal(price)
    for part in cut:
        held *= 1 - Decimal(part)
    return held * share


def test_an_explanation_can_be_recomputed_by_hand() -> None:
    rows = [
        position(1, ETH, 3.0, pending=10**18),
        position(1, STETH, 2.0),
        position(1, SOL, 50.0),
        position(1, USDC, 700.0, control="none"),
        lent(1, SOL, 3.0),
        borrowed(1, USDC, 2_000.0),
        debt(1, USDC, 1_200.0),
        debt(1, SOL, 4.0, venue="otc"),
    ]
    for kind in ("risk-bearing", "monitored"):
        for views in ([view(EVM), view(SOLANA)], [view(EVM), view(SOLANA, 500, status="stale", cause="down")]):
            found = margin(snapshot(rows, kinds={1: kind}, views=views), quotes(conf=2e-3, age=30))
            leaf = next(leaf for leaf in found.leaves if leaf.destination == destination_id(EVM))
            assert len(found.components) == len(rows)
            for level in ("initial", "maintenance"):
                total = {"asset": 0, "debt": 0}
                for component in found.components:
                    counted = getattr(component, f"counted_{level}")
                    exact = by_hand(component, level) * USD
                    side = component.position.side
                    assert (counted <= exact) if side == "asset" else (counted >= exact)
                    assert abs(counted - exact) <= 3 + exact * Decimal("2e-12")
                    total[side] += counted
                assets, owed = getattr(leaf, f"assets_{level}"), getattr(leaf, f"requirement_{level}")
                assert assets - 20 <= total["asset"] <= assets
                assert owed <= total["debt"] <= owed + 20


def test_leaves_are_those_of_the_explanations() -> None:
    seen = snapshot([position(n, ETH, float(n)) for n in (1, 2, 3)] + [debt(2, USDC, 9.0)], home=SOLANA)
    report = compute_report(seen, quotes(), world())
    assert leaves(report) == tuple(leaf for i in range(3) for leaf in explain(report, i, world()).leaves)
    assert [leaf.account for leaf in leaves(report)[::2]] == [account_id(n) for n in (1, 2, 3)]
    assert list(report.destination_ids) == sorted(report.destination_ids)


def test_a_budget_holds_for_the_worst_destination() -> None:
    near = compute_report(snapshot([position(1, ETH, 1.0)]), quotes(), world(bounds=(5, 30)))
    far = compute_report(snapshot([position(1, ETH, 1.0)]), quotes(), world(bounds=(5, 3_000)))
    assert max(leaf.budget for leaf in leaves(far)) < max(leaf.budget for leaf in leaves(near))


def budget_of(rows: list[Position], home: str = EVM) -> int:
    return max(leaf.budget for leaf in margin(snapshot(rows, home=home), where=FLAT_WORLD).leaves)


def test_only_consumers_at_home_hold_their_debts_against_the_budget() -> None:
    held, here, there = position(1, ETH, 1.0), debt(1, USDC, 500.0), debt(1, SUSDC, 300.0)
    assert budget_of([held]) == budget_of([held, here]) == pytest.approx(2_000 * USD, abs=2)
    assert budget_of([held, here, there]) == pytest.approx(1_700 * USD, abs=2)
    assert budget_of([held, here, there], home=SOLANA) == pytest.approx(1_500 * USD, abs=2)


def test_a_home_that_is_no_destination_gets_no_budget_and_says_so() -> None:
    report = compute_report(snapshot([position(1, ETH, 1.0)], home="eip155:5"), quotes(), world())
    assert all(leaf.budget == 0 for leaf in leaves(report))
    assert [f.code for f in report.findings] == ["unknown-home"]


def test_an_empty_world_is_a_report_too() -> None:
    report = compute_report(snapshot([], kinds={1: "risk-bearing"}), quotes(), world())
    found = explain(report, 0, world())
    assert (found.status, found.equity, found.health[0], found.as_of) == ("healthy", 0, None, CUT_TIME)
    assert leaves(compute_report(snapshot([]), quotes(), world())) == ()
