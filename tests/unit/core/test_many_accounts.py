"""Questions about an epoch with many accounts: the worst are shown, all are counted, and nobody looks at the rest."""

from __future__ import annotations

from collections.abc import Iterator

from aggregator.core.pipeline import compute_report
from aggregator.core.risk.stress import stress_report
from aggregator.core.whatif import Epoch, what_if
from aggregator.domain.snapshot import Position
from aggregator.domain.stress import Change, Scenario
from tests.strategies import ETH, STETH, USDC, account_id, debt, position, quotes, snapshot, world

WORLD = world()
CRASH = Scenario(name="crash", title="crash", kind="hypothetical", source="test", prices={"ETH/USD": 0.5})
CALM = Scenario(name="calm", title="calm", kind="hypothetical", source="test", prices={"ETH/USD": 0.9})


def test_each_scenario_shows_its_worst_accounts_and_counts_them_all() -> None:
    rows = [r for n in range(1, 9) for r in (position(n, ETH, 10.0), debt(n, USDC, 1_500.0 * n))]
    rows += [position(9, ETH, 1.0), position(10, USDC, 50_000.0), debt(10, ETH, 20.0)]
    seen = snapshot(rows)
    whole = stress_report(seen, quotes(), WORLD, None, [CRASH, CALM])
    assert [row.after.account for row in whole.rows] == [account_id(n) for n in range(1, 11)] * 2
    part = stress_report(seen, quotes(), WORLD, None, [CRASH, CALM], limit=2)
    assert [(row.scenario, int(row.after.account, 16)) for row in part.rows] == [
        ("crash", 8), ("crash", 7), ("calm", 10), ("calm", 8),
    ]  # fmt: skip
    assert [int(account, 16) for account in part.accounts] == [7, 8, 10]
    assert set(part.rows) <= set(whole.rows)
    assert part.totals == whole.totals
    crash, calm = part.totals
    now = {row.after.account: row for row in whole.rows if row.scenario == "crash"}.values()
    assert (crash.accounts, crash.before) == (10, sum(row.before.liquidatable for row in now))
    assert crash.fallen == sum(row.after.liquidatable and not row.before.liquidatable for row in now) > calm.fallen
    assert crash.excess_after == sum(row.after.excess.low for row in now)
    assert crash.missing == -sum(min(row.after.excess.low, 0) for row in now) > 0
    for line, scenario in zip(part.heat, ("crash", "calm"), strict=True):
        healths = {r.after.account: r.after.health[0] for r in whole.rows if r.scenario == scenario}
        assert line == tuple(healths[account] for account in part.accounts)
    page = stress_report(seen, quotes(), WORLD, None, [CRASH, CALM], limit=1, offset=1)
    assert [int(row.after.account, 16) for row in page.rows] == [7, 8]


def test_a_report_that_is_known_is_not_computed_again() -> None:
    rows = [position(1, ETH, 10.0), debt(1, USDC, 9_000.0)]
    base = compute_report(snapshot(rows), quotes(), WORLD)
    assert stress_report(snapshot(rows), quotes(), WORLD, None, [CRASH], base=base) == stress_report(
        snapshot(rows), quotes(), WORLD, None, [CRASH]
    )


class Counted(tuple[Position, ...]):
    """Positions that count how often somebody goes through all of them."""

    walks = 0

    def __iter__(self) -> Iterator[Position]:
        self.walks += 1
        return super().__iter__()


def test_what_if_goes_through_everybodys_positions_once_however_often_it_is_asked() -> None:
    rows = [r for n in range(1, 6) for r in (position(n, ETH, 10.0), debt(n, USDC, 1_000.0))]
    shares = position(5, STETH, 10.0)._replace(unit=ETH, amount=12 * 10**18)
    seen = snapshot(sorted([*rows, shares]))
    positions = Counted(seen.positions)
    report = compute_report(seen, quotes(), WORLD)
    object.__setattr__(seen, "positions", positions)
    epoch = Epoch(seen, tuple(quotes()), WORLD, None, report)
    for number in range(1, 5):
        what_if(epoch, account_id(number), [Change("add", ETH, 10**18), Change("borrow", USDC, 10**6)])
    assert positions.walks == 1
