"""What outstanding permits take from positions and accounts, and what earlier budgets still allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.permits import apply_permits, missing, outstanding, unused_budgets, withdraw
from aggregator.core.pipeline import compute_report
from aggregator.core.risk.stress import standings
from aggregator.core.whatif import Epoch
from aggregator.domain.budgets import Drawn, Grant, PermitRecord
from aggregator.domain.snapshot import Position
from aggregator.domain.units import USD
from proofs.hashing import keccak256
from tests.strategies import (
    CUT_TIME,
    EVM,
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

VAULT, OTHER_VAULT = "0x" + "a1" * 20, "0x" + "a2" * 20
BOUNDS = {EVM: 5, SOLANA: 30}
HERE, THERE = ("0x" + keccak256(chain.encode()).hex() for chain in (EVM, SOLANA))
FUNDS = position(1, USDC, 1_000.0, origin=VAULT)


def permit(amount: int, **changes: object) -> PermitRecord:
    nonce = changes.pop("nonce", 1)
    made = PermitRecord(
        account_id(1), EVM, VAULT, USDC, amount, "0x" + "c3" * 20, f"0x{nonce:064x}", 7, CUT_TIME + 100, ""
    )
    return made._replace(**changes)  # type: ignore[arg-type]


def registry(used: int, posted: int, chain: str = EVM) -> Position:
    usd = f"{chain}/usd"
    return Position(
        *(account_id(1), chain, "registry", f"{chain}/registry:x", used, usd, used, "debt"), drawn=Drawn(posted, 1)
    )


def test_a_permitted_amount_is_pending_besides_what_is_requested() -> None:
    asked = FUNDS._replace(pending=100)
    ((changed),) = apply_permits([asked], [permit(300), permit(200, nonce=2)])
    assert changed == asked._replace(pending=600)
    assert apply_permits([asked], [permit(10**12)])[0].pending == FUNDS.amount
    assert apply_permits([asked], []) == (asked,)


@pytest.mark.parametrize(
    "changes",
    [
        {"account": account_id(2)},
        {"vault": OTHER_VAULT},
        {"asset": SUSDC},
        {"chain": SOLANA},
    ],
)
def test_a_permit_touches_only_what_it_names(changes: dict[str, str]) -> None:
    assert apply_permits([FUNDS], [permit(300, **changes)]) == (FUNDS,)
    owed = FUNDS._replace(side="debt")
    assert apply_permits([owed], [permit(300)]) == (owed,)


def test_a_part_of_a_receipt_is_worth_its_part_rounded_up() -> None:
    receipt = FUNDS._replace(asset=f"{EVM}/erc20:0x5e", quantity=3, unit=USDC, amount=10)
    (changed,) = apply_permits([receipt], [permit(1, asset=receipt.asset)])
    assert changed.pending == 4


@given(st.lists(st.integers(1, 2_000), max_size=5), st.integers(0, 1_000))
def test_permits_never_add_and_their_order_does_not_matter(amounts: list[int], pending: int) -> None:
    rows = [position(1, USDC, 1_000, origin=VAULT, pending=pending), position(1, USDC, 1_000, origin=OTHER_VAULT)]
    rows.sort()
    permits = [permit(amount, nonce=i) for i, amount in enumerate(amounts)]
    changed = apply_permits(rows, permits)
    assert changed == apply_permits(rows, permits[::-1])
    assert list(changed) == sorted(changed)
    by_origin = {p.origin: p for p in changed}
    assert by_origin[OTHER_VAULT] in rows
    assert by_origin[VAULT].pending == min(1_000, pending + sum(amounts))


def test_a_permit_counts_until_its_use_must_have_been_seen() -> None:
    slack = {EVM: 125, SOLANA: 150}
    here, there, lost = permit(1), permit(1, nonce=2, chain=SOLANA), permit(1, nonce=3, chain="eip155:9")
    everything = [lost, there, here]
    for now, left in ((CUT_TIME + 225, set(everything)), (CUT_TIME + 226, {there, lost}), (CUT_TIME + 251, set())):
        assert set(outstanding(everything, now, slack)) == left
    assert outstanding(everything, CUT_TIME, slack) == tuple(sorted(everything))


def test_collateral_that_left_backs_no_budget_before_its_vault_was_read_again() -> None:
    """It was withdrawn one second before the permit's end, and the vault's block is older than that."""
    used = permit(1_000 * 10**6, expiry=CUT_TIME - 20)
    for age in (21, 60, 120):
        seen = snapshot([FUNDS], views=(view(EVM, age), view(SOLANA)))
        left = outstanding([used], CUT_TIME, {EVM: BOUNDS[EVM] + 120})
        report = compute_report(replace(seen, positions=apply_permits(seen.positions, left)), quotes(), world())
        assert int(report.free[0]) == 0


def test_a_missing_permit_is_named() -> None:
    assert missing([permit(1), permit(2, nonce=2)], [permit(1)]) == permit(2, nonce=2)
    assert missing([permit(1)], [permit(1), permit(2, nonce=2)]) is None
    assert missing([permit(1)], [permit(2)]) == permit(1)


def grant(budget: int, *, epoch: int = 7, where: str = HERE, until: int = CUT_TIME + 100, account: int = 1) -> Grant:
    return Grant(account_id(account), where, epoch, budget, until)


@pytest.mark.parametrize(
    ("rows", "grants", "age", "expected"),
    [
        ([], [grant(50), grant(80, epoch=6)], 20, 80),
        ([registry(0, 7)], [grant(50), grant(80, epoch=6)], 20, 50),  # 6 cannot be drawn any more
        ([registry(30, 7)], [grant(50)], 20, 20),
        ([registry(30, 7), registry(10, 6)], [grant(50), grant(80, epoch=6)], 20, 40),  # two of one destination
        ([registry(90, 7)], [grant(50)], 20, 0),
        ([registry(30, 8)], [grant(50)], 20, 0),
        ([registry(30, 7, SOLANA)], [grant(50)], 20, 50),  # drawn somewhere else
        ([], [grant(50), grant(40, where=THERE)], 20, 90),
        ([], [grant(50, account=2)], 20, 0),
        ([], [grant(50, until=CUT_TIME - 4)], 20, 50),
        ([], [grant(50, until=CUT_TIME - 5)], 20, 0),
        ([registry(0, 7)], [grant(50, until=CUT_TIME - 60)], 56, 50),  # drawn at its end, perhaps: nobody looked
        ([registry(0, 7)], [grant(50, until=CUT_TIME - 60)], 55, 0),
        ([registry(0, 7)._replace(seen=9)], [grant(50, until=1)], 20, 50),  # at a block that nobody knows
        ([], [grant(50, where="0x" + "99" * 32)], 20, 50),  # at a destination nobody knows
    ],
)
def test_what_may_still_be_drawn(rows: list[Position], grants: list[Grant], age: int, expected: int) -> None:
    seen = snapshot(sorted(rows), views=(view(EVM, age), view(SOLANA)))
    assert unused_budgets(seen, grants, account_id(1), BOUNDS) == expected


def epoch_of(*rows: Position) -> Epoch:
    seen, said = snapshot(sorted(rows)), tuple(quotes())
    return Epoch(seen, said, world(), None, compute_report(seen, said, world()))


def test_without_permits_an_account_stands_as_the_epoch_says() -> None:
    epoch = epoch_of(FUNDS, debt(1, USDC, 100.0), position(2, USDC, 5.0))
    found = withdraw(epoch, account_id(1), [], [], BOUNDS)
    assert found.standing == standings(epoch.report)[0]
    assert found.free <= found.standing.free_collateral  # as it is the least at any destination's clock
    assert found.free == pytest.approx(found.standing.free_collateral, rel=1e-3)


def test_free_collateral_falls_by_what_is_permitted() -> None:
    epoch = epoch_of(FUNDS, debt(1, USDC, 100.0), position(2, USDC, 5.0))
    whole = withdraw(epoch, account_id(1), [], [], BOUNDS)
    half = withdraw(epoch, account_id(1), [permit(500 * 10**6)], [], BOUNDS)
    none = withdraw(epoch, account_id(1), [permit(1_000 * 10**6)], [grant(70)], BOUNDS)
    assert whole.free > half.free > 0 > none.free
    assert none.free == pytest.approx(-110 * USD, rel=0.01)  # what is owed, by its weight
    assert (whole.unused, none.unused) == (0, 70)
    assert whole.standing.account == account_id(1)


def test_what_was_drawn_without_a_debt_in_sight_is_owed() -> None:
    clean, drawn = epoch_of(FUNDS), epoch_of(FUNDS, registry(300 * USD, 7))
    before = withdraw(clean, account_id(1), [], [], BOUNDS).free
    assert withdraw(drawn, account_id(1), [], [], BOUNDS).free == pytest.approx(before - 300 * USD, abs=3)
