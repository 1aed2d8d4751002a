"""Perps and options from a reading to the leaf, in numbers that a reader can check."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from aggregator.core.explain import explain
from aggregator.core.margin import scenario
from aggregator.core.pipeline import compute_report
from aggregator.core.reconcile import reconcile
from aggregator.core.tables import World
from aggregator.domain.report import HIGH, LOW, MAINTENANCE, MID, AccountMargin, Flag, MarginReport, contract_text
from aggregator.domain.snapshot import Account, Block, Cut, Position, Reading
from aggregator.store.sql import _MARGIN, _READING, _dump
from tests.strategies import (
    CUT_TIME,
    DERIVATIVES,
    ETH,
    EVM,
    FLAT,
    SOL,
    SOLANA,
    SUSDC,
    USDC,
    account_id,
    chain_row,
    contract,
    debt,
    older_view,
    position,
    quotes,
    snapshot,
    view,
    world,
)

STILL = world({"risky": FLAT, "stable": FLAT, "wrapped": FLAT}, **DERIVATIVES)
"""A world whose collateral has no haircuts: what is taken off is the contracts' own."""
EXACT = quotes(conf=0)


def report_of(rows: Sequence[Position], of: World = STILL, **given: object) -> MarginReport:
    return compute_report(snapshot(rows, **given), EXACT, of)  # type: ignore[arg-type]


def margin_of(rows: Sequence[Position], of: World = STILL, **given: object) -> AccountMargin:
    return explain(report_of(rows, of, **given), 0, of)


def usd(value: float) -> int:
    return round(value * 1e8)


def near(value: float) -> object:
    return pytest.approx(usd(value), rel=1e-9, abs=5)


def test_a_perp_is_its_gain_and_its_requirement() -> None:
    """5 ETH bought at 1,900 and now at 2,000: 500 gained, of which initial margin counts 80%."""
    found = margin_of([position(1, USDC, 10_000.0), contract(1, "perp", 5.0, entry=1_900.0, funding=-20.0)])
    (part,) = [c for c in found.components if c.contract is not None]
    assert part.contract is not None
    assert part.contract.value == part.value == near(480.0)
    assert part.contract.gain == (near(384.0), near(480.0))
    assert part.contract.loss == (0, 0)
    assert (part.contract.delta, part.contract.mark, part.contract.gamma) == (5.0, 2_000.0, 0.0)
    assert found.equity == near(10_480.0)
    required = found.requirement
    assert part.contract.requirement == (
        pytest.approx(required.initial, abs=3),
        pytest.approx(required.maintenance, abs=3),
    )
    # At least the perp rate of the policy, 4% and 3% of the notional, and the grid's largest move.
    assert required.initial > usd(0.04 * 10_000 + 0.18 * 10_000)
    assert required.maintenance > usd(0.03 * 10_000 + 0.8 * 0.18 * 10_000)
    assert found.free_collateral == pytest.approx(usd(10_384.0) - required.initial, abs=10)
    assert found.maintenance_excess.low == pytest.approx(usd(10_480.0) - required.maintenance, abs=10)
    assert (found.model, found.hedged) == ("scenario", (False, False))
    assert "-18%" in found.binding


def test_an_inverse_perp_pays_in_its_coin() -> None:
    """10,000 USD opened at 1,600: at 2,000 they are worth 10,000·(2000/1600 − 1) = 2,500 USD, or 1.25 ETH."""
    found = margin_of([contract(1, "inverse", 10_000.0, entry=1_600.0, unit=ETH)])
    assert found.equity == near(2_500.0)
    assert found.greeks[0].delta == pytest.approx(6.25)
    assert found.settlements[0].net == near(2_500.0)


def test_options_are_marked_by_the_policy_surface_and_put_call_parity_holds() -> None:
    call, put = (contract(1, kind, 1.0, strike=1_900.0, days=30) for kind in ("call", "put"))  # type: ignore[arg-type]
    marks = {c.position.contract.kind: c.contract for c in margin_of([call, put]).components}
    years = 30 / 365
    forward = 2_000.0 * math.exp(0.04 * years)
    assert marks["call"] is not None
    assert marks["put"] is not None
    parity = math.exp(-0.04 * years) * (forward - 1_900.0)
    assert marks["call"].mark - marks["put"].mark == pytest.approx(parity, rel=1e-9)
    assert marks["call"].delta - marks["put"].delta == pytest.approx(1.0)
    assert marks["call"].volatility == marks["put"].volatility == pytest.approx(0.65, rel=0.02)


def test_contracts_of_a_venue_are_settled_in_one_amount() -> None:
    """A gain of 500 and a loss of 500 at one venue are nothing; at two venues, they are a gain and a loss."""
    won, lost = (
        contract(1, "perp", 5.0, entry=1_900.0),
        contract(1, "perp", 5.0, entry=2_100.0, asset=f"{EVM}/contract:x/1"),
    )
    together = margin_of([won, lost])
    assert [s.net for s in together.settlements] == [near(0.0)]
    apart = margin_of([won, lost._replace(venue="other")])
    assert sorted(s.net for s in apart.settlements) == [near(-500.0), near(500.0)]
    assert apart.free_collateral == pytest.approx(together.free_collateral - usd(100.0), abs=10)  # 20% of the gain


def test_collateral_stays_out_of_a_grid_that_asks_more_of_it() -> None:
    """Short of delta, but hurt by a fall: the short puts lose more than the perp wins, and so would collateral."""
    of = world(**DERIVATIVES)
    own = [position(1, ETH, 10.0), position(1, USDC, 20_000.0)]
    written = [contract(1, "perp", -7.0), contract(1, "put", -30.0, strike=1_700.0, days=20)]
    report = report_of([*own, *written], of)
    assert report.derivatives is not None
    without, with_hedge = report.derivatives.requirement[:, LOW, MAINTENANCE, 0]
    assert with_hedge > without
    found = explain(report, 0, of)
    assert found.hedged == (False, False)
    assert found.requirement.maintenance == near(without)
    assert found.greeks[0].hedge == 0
    apart = margin_of(own, of).maintenance_excess.low + margin_of(written, of).maintenance_excess.low
    assert found.maintenance_excess.low == pytest.approx(apart, abs=10)


@pytest.mark.parametrize(("dollar", "counts"), [(0.9, True), (0.45, False), (2.2, False)])
def test_a_dollar_token_pays_one_for_one_as_long_as_it_is_one(dollar: float, counts: bool) -> None:
    said = quotes({"ETH/USD": 2_000.0, "SOL/USD": 150.0, "USDC/USD": dollar}, conf=0)
    report = compute_report(snapshot([position(1, ETH, 5.0), contract(1, "perp", 5.0, entry=1_900.0)]), said, STILL)
    found = explain(report, 0, STILL)
    assert found.settlements[0].net == near(500.0 * dollar)
    assert found.settlements[0].gain_maintenance == (near(500.0 * dollar) if counts else 0)
    assert [f.code for f in found.findings] == ([] if counts else ["contract-unpriced"])
    assert (found.leaves[0].assets_maintenance > 0) == counts


def test_contracts_settle_in_underlyings_and_declared_dollars_alone() -> None:
    """A token worth a dollar today that nobody has called one: it may owe any amount, and says which and why."""
    undeclared = world({"risky": FLAT, "stable": FLAT}, **(DERIVATIVES | {"dollars": ()}))
    for kind, unit, of, fine in (
        ("perp", USDC, STILL, True),
        ("perp", USDC, undeclared, False),
        ("inverse", ETH, undeclared, True),
        ("call", SUSDC, undeclared, False),
    ):
        row = contract(1, kind, 5.0, entry=1_900.0, unit=unit)  # type: ignore[arg-type]
        report = report_of([position(1, ETH, 50.0), position(2, ETH, 1.0), row], of)
        found = explain(report, 0, of)
        assert [f.code for f in found.findings] == ([] if fine else ["unknown-settlement"])
        assert (max(leaf.budget for leaf in found.leaves) > 0) == fine
        assert (found.leaves[0].assets_maintenance > 0) == fine
        assert explain(report, 1, of).leaves == explain(report_of([position(2, ETH, 1.0)], of), 0, of).leaves


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dollars": ("ETH/USD",)}, "dollars: ETH/USD is a row of underlyings"),
        ({"dollars": ("USDC/USD", "USDC/USD")}, "given twice"),
    ],
)
def test_dollars_are_no_underlyings_and_told_once(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        world(**(DERIVATIVES | changes))


@pytest.mark.parametrize("unsure", ["SOL/USD", "USDC/USD"])
def test_a_price_that_sources_disagree_on_opens_no_risk_with_contracts(unsure: str) -> None:
    said = [q._replace(conf=round(q.price * 0.05)) if q.feed == unsure else q for q in EXACT]
    said = [q._replace(ema_price=0, ema_conf=0) for q in said]
    rows = [position(1, ETH, 100.0), contract(1, "perp", 5.0, underlying="SOL/USD", entry=150.0)]
    for quoted, opens in ((EXACT, True), (said, False)):
        report = compute_report(snapshot(rows), quoted, STILL)
        found = explain(report, 0, STILL)
        assert found.status == "healthy"
        assert found.free_collateral > usd(150_000)
        assert (max(leaf.budget for leaf in found.leaves) > 0) == opens


@pytest.mark.parametrize("kind", ["monitored", "risk-bearing"])
def test_the_model_is_that_of_the_class_of_the_account(kind: str) -> None:
    of = world(**DERIVATIVES, models={"risk_bearing": "scenario", "monitored": "cross"})
    rows = [position(n, USDC, 1e5) for n in (1, 2)] + [contract(n, "perp", 5.0) for n in (1, 2)]
    mixed = report_of(rows, of, kinds={1: kind})
    found = explain(mixed, 0, of)
    assert found.model == ("cross" if kind == "monitored" else "scenario")
    assert (
        found.requirement == margin_of([r for r in rows if r.account == account_id(1)], of, kinds={1: kind}).requirement
    )
    assert explain(mixed, 1, of).model == "scenario"
    if kind == "monitored":
        assert found.requirement.initial == near(0.10 * 10_000)


SLOW = replace(world(**DERIVATIVES), chains=tuple(chain_row(c, max_age=40 * 86_400) for c in (EVM, SOLANA)))
"""Blocks a month old are nothing unusual here, and count."""


def test_the_range_of_the_grid_is_no_less_than_what_latency_implies() -> None:
    rows = [position(1, SOL, 1e4), contract(1, "perp", 5.0, unit=SUSDC)]
    fresh = margin_of(rows, SLOW)
    assert fresh.greeks[0].range == 0.18
    # No asset of the other chain is priced by ETH/USD.
    assert margin_of(rows, SLOW, views=[view(EVM), view(SOLANA, 30 * 86_400)]).greeks[0].range == 0.18
    report = report_of(rows, SLOW, views=[view(EVM, 30 * 86_400), view(SOLANA)])
    cells = [float(c.asset) for c in report.cells if c.policy in ("risky", "wrapped") and c.level == "initial"]
    late = explain(report, 0, SLOW)
    assert late.greeks[0].range == pytest.approx(max(cells))
    assert late.greeks[0].range > 0.3
    assert late.requirement.maintenance > fresh.requirement.maintenance
    assert report.derivatives is not None
    low, mid, high = report.derivatives.requirement[0, :, MAINTENANCE, 0]
    assert low == mid > high == pytest.approx(fresh.requirement.maintenance / 1e8)


@pytest.mark.parametrize("dark", [{"status": "stale", "cause": "down"}, {"status": "missing", "block": None}, {}])
def test_a_chain_that_is_dark_widens_nobodys_grid(dark: dict[str, object]) -> None:
    """Contracts elsewhere are required what they were; the last case is older than the chain's max_age alone."""
    rows = [position(1, SOL, 1e4), contract(1, "perp", -5.0, unit=SUSDC), contract(1, "call", -2.0, unit=SUSDC)]
    of = world(**DERIVATIVES)
    lit, late = (margin_of(rows, of, views=[v, view(SOLANA)]) for v in (view(EVM), view(EVM, 30 * 86_400, **dark)))
    assert late.greeks == lit.greeks
    assert late.requirement == lit.requirement
    assert late.maintenance_excess == lit.maintenance_excess


def test_collateral_leaves_no_more_of_its_haircut_than_the_grid_takes_back() -> None:
    """What is carried from an older block has a greater haircut than the range that newer ones imply."""
    older = older_view(EVM, 20 * 86_400)
    assert older.block is not None
    held = position(1, ETH, 10.0, seen=older.block.height, removal_delay=60 * 86_400)
    report = compute_report(snapshot([held, contract(1, "perp", -5.0)], carried=(older,)), EXACT, SLOW)
    found = explain(report, 0, SLOW)
    assert found.hedged == (True, True)
    (reach,) = {x.range for x in found.greeks}
    (whole,) = {c.initial.market for c in explain(report_of([held], SLOW, carried=(older,)), 0, SLOW).components}
    (left,) = {c.initial.market for c in found.components if c.contract is None}
    assert whole > reach
    assert 1 - left <= (1 - whole) / (1 - reach) * (1 + 1e-12)
    assert left < whole


def test_the_grid_is_prepared_once_with_hedges_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    prepare = scenario.prepare
    monkeypatch.setattr(
        scenario, "prepare", lambda of, market, policy: made.append(market.stable) or prepare(of, market, policy)
    )
    rows = [position(n, ETH, 5.0) for n in (1, 2)]
    rows += [contract(1, "perp", -3.0), contract(2, "call", -1.0, unit=SUSDC), contract(2, "perp", -2.0)]
    assert report_of(rows, world(**DERIVATIVES), kinds={2: "monitored"}).derivatives.hedged.any()  # type: ignore[union-attr]
    assert len(made) == 1


def test_a_contract_makes_its_chain_matter() -> None:
    perp = contract(1, "perp", 1e-6, unit=USDC)
    views = [view(EVM, 400, status="stale", cause="down"), view(SOLANA)]
    safe = position(1, SOL, 100.0)
    assert margin_of([safe], views=views).flags == Flag(0)
    found = margin_of([safe, perp], views=views)
    assert found.flags & Flag.STALE
    assert found.as_of == CUT_TIME - 400


def test_what_may_be_gone_on_a_stale_chain_protects_nobody() -> None:
    """A long call covers a short one, unless it was last seen long ago: then the short one stands alone."""
    cash = position(1, USDC, 50_000.0)
    short = contract(1, "call", -5.0, strike=2_000.0)
    long = contract(1, "call", 5.0, strike=2_000.0, unit=USDC)._replace(venue="other")
    covered = margin_of([cash, short, long])
    assert covered.requirement.initial < usd(500.0)
    moved = long._replace(chain=SOLANA, asset=f"{SOLANA}/contract:x/1", unit=f"{SOLANA}/slip44:501")
    views = [view(EVM), view(SOLANA, 400, status="stale", cause="down")]
    dark = report_of([cash, short, moved], views=views)
    assert explain(dark, 0, STILL).requirement.initial >= margin_of([cash, short]).requirement.initial
    own, owed = dark.assets[0, :, MAINTENANCE, 0], dark.debts[0, :, MAINTENANCE, 0]
    assert own[LOW] - owed[LOW] < own[MID] - owed[MID] <= own[HIGH] - owed[HIGH]


def test_an_account_is_explained_by_itself_as_among_others() -> None:
    rows = [
        position(2, ETH, 3.0),
        contract(2, "perp", -2.0),
        contract(2, "put", -1.0, strike=1_800.0),
        debt(2, USDC, 10.0),
    ]
    others = [contract(n, "call", n / 2, strike=1_500.0 + n) for n in (1, 3)] + [position(3, SOL, 4.0)]
    alone, among = report_of(rows), report_of([*rows, *others])
    mine, found = explain(alone, 0, STILL), explain(among, 1, STILL)
    assert found.leaves == mine.leaves
    assert found.components == mine.components
    assert (found.layers, found.greeks, found.settlements) == (mine.layers, mine.greeks, mine.settlements)


def test_a_contract_carried_from_an_older_block_is_as_old() -> None:
    older = older_view(EVM, 60)
    assert older.block is not None
    perp = contract(1, "perp", 2.0, entry=1_900.0, seen=older.block.height)
    found = margin_of([perp], carried=(older,))
    assert found.as_of == older.block.time
    assert "carried from block" in found.components[0].reason
    assert found.settlements[0].gain_maintenance > 0


def test_margins_with_contracts_survive_storing_and_older_ones_still_load() -> None:
    rows = [position(1, ETH, 4.0), contract(1, "perp", -2.0), contract(1, "call", 2.0)]
    found = margin_of(rows)
    text = _dump(_MARGIN, found)
    assert _MARGIN.validate_json(text) == found
    document = json.loads(text)
    for name in ("requirement", "layers", "greeks", "settlements", "model", "binding", "hedged"):
        del document[name]
    # As written before there were contracts: positions ended with `seen`, components with their shares.
    document["components"] = [[c[0][:-1], *c[1:-3]] for c in document["components"] if c[-1] is None]
    old = _MARGIN.validate_json(json.dumps(document))
    assert old.components[0].position == rows[0]
    assert (old.layers, old.model, old.components[0].contract) == ((), "", None)
    reading = Reading(Block(EVM, 1, "0xb0", "0xaf", CUT_TIME), tuple(rows))
    assert _READING.validate_json(_dump(_READING, reading)) == reading


# --- reading ----------------------------------------------------------------------------------------------------------

HOLDER = f"0x{'aa' * 20}"
BLOCK = Block(EVM, 100, "0xb0", "0xaf", CUT_TIME - 10)
OWN = Account(account_id(1), f"{EVM}:{HOLDER}", "risk-bearing", EVM, links=(f"{EVM}:{HOLDER}",))


def seen(rows: Sequence[Position], account: Account = OWN) -> tuple[list[Position], list[str]]:
    cut = Cut(7, CUT_TIME, (BLOCK,))
    found = reconcile(cut, {EVM: Reading(BLOCK, tuple(rows))}, {}, (account,), (chain_row(EVM),), CUT_TIME + 300, {})
    return list(found.positions), [f.code for f in found.findings]


def test_two_readings_of_one_contract_that_differ_blind_its_account() -> None:
    row = contract(1, "perp", 2.0)
    assert seen([row, row]) == ([row], ["duplicate-position"])
    for other in (contract(1, "perp", -2.0), contract(1, "perp", 3.0), contract(1, "perp", 2.0, entry=1.0)):
        kept, codes = seen([row, other])
        assert (len(kept), codes) == (1, ["debt-unreadable", "duplicate-position"])
        assert seen([other, row]) == (kept, codes)
    assert seen([row, row._replace(origin="0xother")])[1] == []


@pytest.mark.parametrize("state", ["ended", "ending", "linked"])
def test_an_address_that_leaves_takes_its_long_options_along_and_leaves_what_it_owes(state: str) -> None:
    account = {
        "linked": OWN,
        "ended": Account(OWN.id, OWN.controller, OWN.kind, EVM),
        "ending": Account(OWN.id, OWN.controller, OWN.kind, EVM, links=OWN.links, ending=OWN.links),
    }[state]
    long, short = contract(1, "call", 1.0, address=HOLDER), contract(1, "put", -1.0, address=HOLDER)
    perp = contract(1, "perp", 1.0, entry=1_000.0, address=HOLDER)
    kept, _ = seen([long, short, perp], account)
    if state == "linked":
        assert kept == sorted([long, short, perp])
        return
    assert {p.contract.kind for p in kept} == {"put", "perp"}
    assert {p.control for p in kept} == {"none"}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (contract(1, "call", 2.5, strike=3_500.0), "long 2.5 ETH-call 3500 exp 2025-11-08 08:53:20 UTC"),
        (
            contract(1, "put", -1.0)._replace(contract=contract(1, "put", 1.0).contract._replace(expiry=1_798_185_600)),
            "short 1 ETH-put 2000 exp 2026-12-25 08:00 UTC",
        ),
        (contract(1, "perp", -0.25, underlying="SOL/USD", entry=150.5), "short 0.25 SOL-perp from 150.5"),
        (contract(1, "inverse", 1_000.0), "long 1000 USD of ETH-inverse perp from 2000"),
    ],
)
def test_contracts_are_named_for_people(row: Position, text: str) -> None:
    assert contract_text(row) == text


def test_no_contracts_no_part_of_the_report() -> None:
    report = report_of([position(1, ETH, 1.0)])
    assert report.derivatives is None
    assert report.book.contracts is None
    found = explain(report, 0, STILL)
    assert (found.model, found.requirement.initial, found.greeks, found.settlements) == ("", 0, (), ())
    assert found.equity + sum(step.initial for step in found.layers) == found.free_collateral
    assert np.isfinite(report.assets).all()
