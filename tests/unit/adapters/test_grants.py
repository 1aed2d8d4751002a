"""A signer's record of budgets: durable, complete, and no longer than they may be drawn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.grants import SqliteGrants
from aggregator.domain.budgets import Grant
from aggregator.domain.report import LeafValues

ONE, TWO, NOBODY = ("0x" + digit * 64 for digit in "129")
HERE, THERE = "0x" + "aa" * 32, "0x" + "bb" * 32
UNTIL, SLACK = 1_000, 50


def leaf(account: str, destination: str, epoch: int, budget: int) -> LeafValues:
    return LeafValues(account, destination, epoch, 0, 0, 0, 0, 0, budget, 0, UNTIL, 0)


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[SqliteGrants]:
    made = SqliteGrants(tmp_path / "grants.db", SLACK)
    yield made
    await made.close()


async def test_what_was_noted_is_outstanding_after_a_restart_until_it_expires(
    book: SqliteGrants, tmp_path: Path
) -> None:
    leaves = [leaf(TWO, HERE, 5, 2**100), leaf(ONE, THERE, 5, 7), leaf(ONE, HERE, 5, 0)]
    await book.note(5, UNTIL, leaves)
    await book.note(5, UNTIL, leaves)  # again, as after a crash
    again = SqliteGrants(tmp_path / "grants.db", SLACK)
    both = (Grant(ONE, THERE, 5, 7, UNTIL), Grant(TWO, HERE, 5, 2**100, UNTIL))
    assert await again.outstanding(900, [TWO, ONE, NOBODY], 6) == both
    assert await again.outstanding(UNTIL + SLACK - 1, [ONE], 6) == both[:1]
    assert await again.outstanding(UNTIL + SLACK, [ONE], 6) == ()
    assert await again.outstanding(900, [NOBODY], 6) == ()
    assert await again.outstanding(900, [ONE], 5) == (), "the statement that is being made charges those before it"
    await again.close()


async def test_only_what_nothing_covers_is_listed(book: SqliteGrants) -> None:
    for epoch, budget in ((1, 50), (2, 90), (3, 40), (4, 0)):
        await book.note(epoch, UNTIL + epoch, [leaf(ONE, HERE, epoch, budget)])
    found = await book.outstanding(900, [ONE], 9)
    assert [(grant.epoch, grant.budget) for grant in found] == [(2, 90), (3, 40)]


async def test_what_others_signed_is_learnt(book: SqliteGrants) -> None:
    theirs = (Grant(ONE, HERE, 3, 5, UNTIL), Grant(ONE, THERE, 3, 6, UNTIL), Grant(TWO, HERE, 4, 7, UNTIL + 1))
    await book.learn(theirs)
    await book.learn(())
    assert await book.outstanding(900, [ONE, TWO], 9) == theirs


async def test_what_has_expired_is_forgotten_and_nothing_else(book: SqliteGrants) -> None:
    await book.note(1, UNTIL, [leaf(ONE, HERE, 1, 9)])
    await book.note(2, UNTIL + 1, [leaf(ONE, HERE, 2, 3)])
    await book.forget(UNTIL + SLACK)
    assert await book.outstanding(0, [ONE], 9) == (Grant(ONE, HERE, 2, 3, UNTIL + 1),)


@pytest.mark.parametrize("budget", [-1, 2**128])
async def test_a_budget_that_no_leaf_can_hold_is_refused(book: SqliteGrants, budget: int) -> None:
    with pytest.raises(ValueError, match="128 bits"):
        await book.note(1, UNTIL, [leaf(ONE, HERE, 1, budget)])


async def test_more_destinations_than_can_be_kept_are_refused(book: SqliteGrants) -> None:
    with pytest.raises(ValueError, match="257 destinations"):
        await book.note(1, UNTIL, [leaf(ONE, f"0x{i:064x}", 1, 1) for i in range(257)])


async def test_many_accounts_are_found_among_more(book: SqliteGrants) -> None:
    everybody = [f"0x{i * 7:064x}" for i in range(300)]
    await book.note(
        1, UNTIL, [leaf(account, place, 1, 1 + i) for i, account in enumerate(everybody) for place in (HERE, THERE)]
    )
    found = await book.outstanding(0, everybody[::3], 9)
    assert [(g.account, g.budget) for g in found] == [
        (a, 1 + 3 * i) for i, a in enumerate(everybody[::3]) for _ in "ab"
    ]
