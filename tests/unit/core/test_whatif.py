"""What-if: changes are made as told, refused where they cannot be, and judged by what they do to risk."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aggregator.core.pipeline import compute_report
from aggregator.core.risk.stress import standings
from aggregator.core.tables import World
from aggregator.core.whatif import (
    Epoch,
    changed_snapshot,
    positions_of,
    what_if,
)
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.snapshot import Contract, Position, Snapshot
from aggregator.domain.stress import Change, WhatIf
from aggregator.domain.units import USD, parse_size, parse_units
from tests.strategies import (
    CUT_TIME,
    DAY,
    DERIVATIVES,
    ETH,
    EVM,
    SOL,
    STETH,
    SUSDC,
    USDC,
    account_id,
    borrowed,
    contract,
    debt,
    lent,
    position,
    quotes,
    snapshot,
    world,
)

WORLD = world()
DERIVED = world(**DERIVATIVES)
BASE = (position(1, ETH, 10.0), debt(1, USDC, 5_000.0), position(2, SOL, 10.0))


def epoch_of(rows: Sequence[Position] = BASE, seen: Snapshot | None = None, configured: World = WORLD) -> Epoch:
    given = seen or snapshot(sorted(rows))
    return Epoch(given, tuple(quotes()), configured, None, compute_report(given, quotes(), configured))


def ask(*changes: Change, rows: Sequence[Position] = BASE, account: int = 1) -> WhatIf:
    return what_if(epoch_of(rows), account_id(account), changes)


def refused(field: str, *changes: Change, rows: Sequence[Position] = BASE) -> InputError:
    with pytest.raises(InputError) as caught:
        ask(*changes, rows=rows)
    assert caught.value.field == field
    return caught.value


def test_before_is_what_the_epoch_says() -> None:
    epoch = epoch_of()
    answer = what_if(epoch, account_id(1), [Change("add", ETH, 1)])
    assert answer.before == standings(epoch.report)[0]


def test_more_collateral_is_worth_its_price() -> None:
    answer = ask(Change("add", ETH, 10**18))
    assert answer.accepted
    assert answer.after.equity - answer.before.equity == pytest.approx(2_000 * USD, rel=1e-6)
    assert answer.after.free_collateral > answer.before.free_collateral
    assert answer.after.requirement == answer.before.requirement


def test_a_loan_is_accepted_up_to_free_collateral() -> None:
    free = ask(Change("add", ETH, 1)).before.free_collateral / USD
    small, large = (ask(Change("borrow", USDC, int(free * part * 1e6))) for part in (0.5, 1.0))
    assert small.accepted
    assert small.after.requirement > small.before.requirement
    assert not large.accepted, "a dollar owed weighs more than a dollar"
    assert "free collateral would be below 0" in large.reason


def test_who_is_under_water_may_only_reduce_risk() -> None:
    rows = [position(1, ETH, 10.0), position(1, SOL, 10.0), debt(1, USDC, 20_500.0)]
    assert ask(Change("add", ETH, 1), rows=rows).before.free_collateral < 0
    assert ask(Change("repay", USDC, 10**6), rows=rows).accepted
    assert ask(Change("add", SOL, 10**8), rows=rows).accepted
    for worse in (Change("remove", SOL, 10**9), Change("borrow", USDC, 10**6)):
        answer = ask(worse, rows=rows)
        assert not answer.accepted
        assert "does not reduce risk" in answer.reason


def test_collateral_against_a_loan_is_no_reduction_of_risk() -> None:
    """Borrowing to deposit raises the requirement, however little free collateral it costs."""
    rows = [position(1, ETH, 10.0), debt(1, USDC, 20_500.0)]
    both = (Change("borrow", USDC, 10**6), Change("add", ETH, 10**18))
    answer = ask(*both, rows=rows)
    assert answer.after.free_collateral > answer.before.free_collateral
    assert not answer.accepted


def test_a_blind_account_may_repay_and_borrow_nothing() -> None:
    unknown = f"{EVM}/erc20:0x{'99' * 20}"
    blind = Position(account_id(1), EVM, "wallet", unknown, 1, unknown, 1, control="seizable", removal_delay=DAY)
    odd = debt(1, USDC, 1.0)._replace(asset=unknown, unit=unknown, venue="otc")
    rows = [position(1, ETH, 10.0), debt(1, USDC, 10.0), odd, blind]
    assert ask(Change("repay", USDC, 10**6), rows=rows).accepted
    assert not ask(Change("borrow", USDC, 10**6), rows=rows).accepted


def test_taking_everything_away_leaves_the_debt() -> None:
    answer = ask(Change("remove", ETH, 10 * 10**18))
    assert not answer.accepted
    assert answer.after.equity == pytest.approx(-5_000 * USD, rel=1e-6)


def test_a_transfer_moves_whole_units_between_chains() -> None:
    rows = [*BASE, position(1, USDC, 100.0), position(2, SUSDC, 1.0)]
    answer = ask(Change("transfer", USDC, 60 * 10**6, to=SUSDC), rows=rows)
    assert answer.after.equity == pytest.approx(answer.before.equity, abs=10)
    refused("changes[0].to", Change("transfer", USDC, 10**6, to=SOL), rows=rows)
    refused("changes[0].amount", Change("transfer", USDC, 101 * 10**6, to=SUSDC), rows=rows)


def test_changes_are_made_one_after_the_other() -> None:
    answer = ask(Change("add", SOL, 10**9), Change("remove", SOL, 10**9))
    assert answer.after == answer.before
    refused("changes[1].amount", Change("add", SOL, 10**9), Change("remove", SOL, 2 * 10**9))


def test_where_no_vault_was_seen_collateral_counts_nothing_and_the_answer_says_so() -> None:
    answer = ask(Change("add", SOL, 10**9), rows=BASE[:2])
    assert answer.after.free_collateral == answer.before.free_collateral
    assert len(answer.notes) == 1
    assert "delay is unknown" in answer.notes[0]


def test_removing_takes_what_is_free_before_what_is_under_a_request() -> None:
    rows = [position(1, ETH, 10.0, pending=4 * 10**18), debt(1, USDC, 100.0)]
    some, rest = (ask(Change("remove", ETH, n * 10**18), rows=rows).after for n in (6, 10))
    assert some.free_collateral < 0, "what is left is all under a request and counts nothing"
    assert some.equity == pytest.approx((4 * 2_000 - 100) * USD, rel=1e-6)
    assert rest.equity == pytest.approx(-100 * USD, rel=1e-6)


def test_a_receipt_is_reduced_with_what_it_is_worth() -> None:
    shares = position(1, STETH, 10.0)._replace(unit=ETH, amount=12 * 10**18)
    answer = ask(Change("remove", STETH, 5 * 10**18), rows=[shares])
    assert answer.after.equity == pytest.approx(6 * 2_000 * USD, rel=1e-6)


def test_a_debt_at_another_protocol_can_be_repaid() -> None:
    rows = [lent(1, ETH, 1.0), borrowed(1, USDC, 500.0)]
    answer = ask(Change("repay", USDC, 500 * 10**6), rows=rows)
    assert answer.after.equity - answer.before.equity == pytest.approx(500 * USD, rel=1e-6)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("changes[0].amount", Change("add", ETH, 0)),
        ("changes[0].amount", Change("add", ETH, 2**127)),
        ("changes[0].amount", Change("remove", ETH, 11 * 10**18)),
        ("changes[0].amount", Change("repay", USDC, 5_001 * 10**6)),
        ("changes[0].asset", Change("add", f"{EVM}/slip44:1", 1)),
        ("changes[0].asset", Change("repay", "nonsense", 1)),
        ("changes[0].to", Change("transfer", USDC, 1)),
        ("changes[0].unit", Change("open", f"{EVM}/contract:v/1", 1, side="long")),
    ],
)
def test_a_change_that_cannot_be_made_is_named(field: str, change: Change) -> None:
    assert refused(field, change).problem


# contracts

PERP = f"{EVM}/contract:example/perp"
CALL = f"{EVM}/contract:example/call"
TERMS = Contract("call", "ETH/USD", 2_000 * 10**8, CUT_TIME + 30 * DAY)


def trade(*changes: Change, rows: Sequence[Position] = BASE) -> WhatIf:
    return what_if(epoch_of(rows, configured=DERIVED), account_id(1), changes)


@pytest.mark.parametrize("side", ["long", "short"])
def test_a_perp_opened_as_the_market_is_costs_margin_and_no_equity(side: str) -> None:
    answer = trade(Change("open", PERP, 10**18, side=side, contract=Contract("perp", "ETH/USD"), unit=USDC))  # type: ignore[arg-type]
    assert answer.accepted
    assert answer.after.equity == pytest.approx(answer.before.equity, abs=10)
    assert answer.after.requirement > answer.before.requirement
    assert answer.after.free_collateral < answer.before.free_collateral


@pytest.mark.parametrize(("side", "sign"), [("long", 1), ("short", -1)])
def test_a_perp_opened_at_a_price_of_its_own_has_made_or_lost_the_rest(side: str, sign: int) -> None:
    at = Contract("perp", "ETH/USD", entry=1_900 * 10**8)
    answer = trade(Change("open", PERP, 10**18, side=side, contract=at, unit=USDC))  # type: ignore[arg-type]
    assert answer.after.equity - answer.before.equity == pytest.approx(sign * 100 * USD, rel=1e-6)


@pytest.mark.parametrize("side", ["long", "short"])
def test_an_option_is_paid_for_at_its_mark(side: str) -> None:
    answer = trade(Change("open", CALL, 10**18, side=side, contract=TERMS, unit=USDC))  # type: ignore[arg-type]
    assert answer.after.equity == pytest.approx(answer.before.equity, abs=10**3), "a base unit of what it settles in"
    assert answer.after.free_collateral < answer.before.free_collateral


def test_closing_a_loss_keeps_the_loss() -> None:
    rows = [*BASE, contract(1, "perp", 2.0, entry=2_500.0)]
    name = rows[-1].asset
    answer = trade(Change("close", name, 2 * 10**18, side="long"), rows=rows)
    assert answer.after.equity == pytest.approx(answer.before.equity, abs=10**3)
    assert answer.after.equity == pytest.approx((20_000 - 5_000 - 1_000) * USD, rel=1e-6)
    half = trade(Change("close", name, 10**18, side="long"), rows=rows)
    assert half.after.equity == pytest.approx(half.before.equity, abs=10**3)


def test_opening_and_closing_again_leaves_the_account_as_it_was() -> None:
    opened = Change("open", PERP, 10**18, side="long", contract=Contract("perp", "ETH/USD"), unit=USDC)
    answer = trade(opened, Change("close", PERP, 10**18, side="long"))
    assert answer.after.equity == pytest.approx(answer.before.equity, abs=10**3)
    assert answer.after.requirement == pytest.approx(answer.before.requirement, abs=10**3)


def test_adding_to_a_perp_averages_what_it_was_opened_at() -> None:
    first, second = (
        Change("open", PERP, 10**18, side="long", contract=Contract("perp", "ETH/USD", entry=at * 10**8), unit=USDC)
        for at in (1_900, 2_300)
    )
    answer = trade(first, second)
    assert answer.after.equity - answer.before.equity == pytest.approx(-200 * USD, rel=1e-6)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("changes[0].side", [Change("open", PERP, 1, contract=Contract("perp", "ETH/USD"), unit=USDC)]),
        ("changes[0].asset", [Change("open", ETH, 1, side="long", contract=Contract("perp", "ETH/USD"), unit=USDC)]),
        ("changes[0].contract", [Change("open", PERP, 1, side="long", unit=USDC)]),
        (
            "changes[0].contract.underlying",
            [Change("open", PERP, 1, side="long", contract=Contract("perp", "BTC/USD"), unit=USDC)],
        ),
        ("changes[0].unit", [Change("open", CALL, 1, side="long", contract=TERMS)]),
        ("changes[0].asset", [Change("close", CALL, 1, side="long")]),
        (
            "changes[1].side",
            [
                Change("open", CALL, 1, side="long", contract=TERMS, unit=USDC),
                Change("open", CALL, 1, side="short", contract=TERMS, unit=USDC),
            ],
        ),
        (
            "changes[0].unit",
            [Change("open", CALL, 1, side="long", contract=TERMS, unit=ETH)],
        ),
        (
            "changes[0].unit",
            [Change("open", PERP, 1, side="long", contract=Contract("inverse", "ETH/USD"), unit=USDC)],
        ),
        (
            "changes[1].contract",
            [
                Change("open", CALL, 1, side="long", contract=TERMS, unit=USDC),
                Change("open", CALL, 1, side="long", contract=TERMS._replace(strike=1), unit=USDC),
            ],
        ),
        (
            "changes[1].amount",
            [
                Change("open", CALL, 1, side="long", contract=TERMS, unit=USDC),
                Change("close", CALL, 2, side="long"),
            ],
        ),
    ],
)
def test_a_trade_that_cannot_be_made_is_named(field: str, changes: list[Change]) -> None:
    with pytest.raises(InputError) as caught:
        trade(*changes)
    assert caught.value.field == field


def option(**terms: object) -> Change:
    made = TERMS._replace(**terms)  # type: ignore[arg-type]
    return Change("open", CALL, 10**18, side="long", contract=made, unit=USDC)


@pytest.mark.parametrize(
    ("change", "term", "says"),
    [
        (option(underlying="DOGE/USD"), "underlying", "no underlying of the policy"),
        (option(strike=0), "strike", "is missing"),
        (option(expiry=0), "expiry", "is missing"),
        (option(expiry=CUT_TIME), "expiry", "expired"),
        (option(expiry=CUT_TIME - DAY), "expiry", "expired 86,400 s before"),
        (option(expiry=CUT_TIME + 31 * 365 * DAY), "expiry", "30 years"),
        (option(kind="perp", expiry=0), "strike", "a perp has no strike"),
        (option(kind="perp", strike=0), "expiry", "a perp has no expiry"),
    ],
)
def test_a_contract_that_nobody_could_value_is_not_opened(change: Change, term: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        trade(change)
    assert caught.value.field == f"changes[0].contract.{term}"


def test_a_contract_listed_with_other_terms_is_not_opened_by_anybody() -> None:
    """Another account's position shows what the name stands for."""
    listed = contract(2, "call", 1.0)
    rows = [*BASE, listed]
    same = Change("open", listed.asset, 10**18, side="long", contract=listed.contract, unit=USDC)
    assert trade(same, rows=rows).accepted
    other = same._replace(contract=listed.contract._replace(strike=listed.contract.strike + 10**8))
    with pytest.raises(InputError, match="is a call on ETH/USD, strike 2,000") as caught:
        trade(other, rows=rows)
    assert caught.value.field == "changes[0].contract"


def test_without_a_price_nothing_is_opened() -> None:
    known = [quote for quote in quotes() if quote.feed != "ETH/USD"]
    given = snapshot(sorted(BASE))
    epoch = Epoch(given, tuple(known), DERIVED, None, compute_report(given, known, DERIVED))
    with pytest.raises(InputError, match="no known price") as caught:
        what_if(epoch, account_id(1), [option()])
    assert caught.value.field == "changes[0].contract.underlying"


def test_a_blind_account_is_told_that_it_is() -> None:
    odd = contract(1, "perp", 1.0, underlying="DOGE/USD")
    answer = trade(option(), rows=[*BASE, odd])
    assert not answer.accepted
    assert "blind" in answer.reason
    assert "'DOGE/USD' is no underlying" in answer.reason


def test_amounts_at_fault_are_told_in_whole_units() -> None:
    error = refused("changes[0].amount", Change("remove", ETH, 500 * 10**18))
    assert error.problem == "500 T0 is more than the 10 T0 held"
    error = refused("changes[0].amount", Change("remove", ETH, -5))
    assert error.problem == "must be positive"


def test_notes_say_what_a_reader_could_not_see() -> None:
    (note,) = ask(Change("borrow", USDC, 10**6)).notes
    assert "leaves the account" in note
    wallet = position(1, USDC, 100.0)._replace(venue="wallet", control="none", removal_delay=0)
    rows = [*BASE, wallet, position(2, SUSDC, 1.0)]
    (note,) = ask(Change("transfer", USDC, 60 * 10**6, to=SUSDC), rows=rows).notes
    assert "arrives in one" in note
    vaulted = [*BASE, position(1, USDC, 100.0), position(2, SUSDC, 1.0)]
    assert not ask(Change("transfer", USDC, 60 * 10**6, to=SUSDC), rows=vaulted).notes


def test_a_lost_hedge_is_noted() -> None:
    rows = [position(1, ETH, 10.0), position(1, USDC, 100_000.0), contract(1, "perp", -10.0)]
    lost = trade(Change("remove", ETH, 10 * 10**18), rows=rows).notes
    assert len(lost) == 1
    assert lost[0].startswith("hedge lost")
    assert not trade(Change("remove", USDC, 10**6), rows=rows).notes


def test_an_unknown_account_is_named() -> None:
    with pytest.raises(UnknownError, match="account"):
        ask(Change("add", ETH, 1), account=9)


def test_the_positions_of_an_account_are_found() -> None:
    seen = snapshot(sorted([*BASE, position(3, ETH, 1.0)]))
    for number in (1, 2, 3, 4):
        wanted = tuple(p for p in seen.positions if p.account == account_id(number))
        assert positions_of(seen, account_id(number)) == wanted
    assert changed_snapshot(seen, account_id(2), positions_of(seen, account_id(2))).positions == seen.positions


@pytest.mark.parametrize(
    ("text", "units"), [("10", 10**7), ("0.5", 5 * 10**5), ("1.000000", 10**6), ("00012", 12 * 10**6)]
)
def test_amounts_are_read_exactly(text: str, units: int) -> None:
    assert parse_units(text, 6, "--add") == units


@pytest.mark.parametrize("text", ["", "0", "-1", "1e3", "1.0000001", ".", "1.", "٣", "1" * 61, "nan", " 1", "0.0"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_units(text, 6, "--add")
    assert caught.value.field == "--add"


@pytest.mark.parametrize("text", ["-5", "0", "0.0"])
def test_what_is_not_positive_is_told_so(text: str) -> None:
    with pytest.raises(InputError, match="must be positive"):
        parse_units(text, 6, "--add")


def test_sizes_count_in_1e18() -> None:
    assert parse_size("1.5", "--open") == 15 * 10**17
