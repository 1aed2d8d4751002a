"""What contracts pay in, and options that have expired since they were last seen: what they pay may be fixed by now."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, leaves
from aggregator.domain.report import AccountMargin, Flag
from aggregator.domain.snapshot import Position
from tests.strategies import (
    CUT_TIME,
    DAY,
    DERIVATIVES,
    ETH,
    EVM,
    SOL,
    SUSDC,
    USDC,
    contract,
    older_view,
    position,
    quotes,
    snapshot,
    world,
)

WORLD = world(**DERIVATIVES)
HEAD = 100  # height of the newest block, 20 s old
BEHIND = 50  # blocks, and seconds, of the older one


def margin(rows: Sequence[Position], **given: object) -> AccountMargin:
    carried = (older_view(EVM, BEHIND),)
    return explain(compute_report(snapshot(rows, carried=carried, **given), quotes(), WORLD), 0, WORLD)  # type: ignore[arg-type]


def option(size: float, before_the_cut: int, **changes: object) -> Position:
    """Return a call that expires so many seconds before the cut, carried from the older block."""
    return contract(1, "call", size, strike=1_500.0, days=-before_the_cut / DAY, seen=HEAD - BEHIND, **changes)


CASH = position(1, USDC, 50_000.0)


def test_a_short_option_that_has_expired_since_it_was_seen_may_owe_any_amount() -> None:
    """Its venue may have settled it without naming anybody: the price of now says nothing about what it pays."""
    found = margin([CASH, option(-1.0, 60)])
    [finding] = found.findings
    assert finding.code == "contract-expired"
    assert finding.detail == (
        f"expired at {CUT_TIME - 60}, last seen at {CUT_TIME - 70}; what example pays is not known yet: "
        "it may owe any amount"
    )
    assert found.flags & Flag.PARTIAL
    assert found.maintenance_excess.low < 0
    assert all(leaf.budget == 0 for leaf in found.leaves)
    live = margin([CASH, option(-1.0, -60)])
    assert live.findings == ()
    assert max(leaf.budget for leaf in live.leaves) > 0


def test_a_long_option_that_has_expired_since_it_was_seen_gains_nothing() -> None:
    found, alone = margin([CASH, option(3.0, 60)]), margin([CASH], kinds={1: "risk-bearing"})
    assert [f.code for f in found.findings] == ["contract-expired"]
    drawn = {leaf.destination: leaf for leaf in alone.leaves}
    for leaf in found.leaves:
        assert leaf.assets_maintenance == drawn[leaf.destination].assets_maintenance
        assert leaf.requirement_maintenance == drawn[leaf.destination].requirement_maintenance


@pytest.mark.parametrize("size", [-1.0, 3.0])
def test_what_its_venue_still_calls_live_after_the_expiry_is_worth_what_it_would_pay_now(size: float) -> None:
    """The venue's own word at a block after the expiry, as before."""
    found = margin([CASH, option(size, 80)])
    assert [f.detail for f in found.findings] == [
        f"expired at {CUT_TIME - 80} and not settled by example: it gains nothing"
    ]
    [leg] = [c for c in found.components if c.position.contract.kind]
    assert leg.contract is not None
    assert leg.contract.mark == pytest.approx(500.0)


def test_an_expiry_moves_nobody_elses_leaf() -> None:
    other = [position(2, ETH, 5.0), contract(2, "call", -1.0)]
    given = {"carried": (older_view(EVM, BEHIND),)}

    def own(rows: list[Position]) -> list[object]:
        report = compute_report(snapshot([*rows, *other], **given), quotes(), WORLD)  # type: ignore[arg-type]
        return [leaf for leaf in leaves(report) if leaf.account == other[0].account]

    assert own([CASH, option(-1.0, 60)]) == own([CASH, option(3.0, 60)]) == own([CASH])


@pytest.mark.parametrize(
    ("kind", "unit", "sound"),
    [
        ("perp", USDC, True),
        ("perp", ETH, False),
        ("call", ETH, False),
        ("put", SUSDC, True),
        ("perp", SOL, False),
        ("inverse", ETH, True),
        ("inverse", SOL, False),
        ("inverse", USDC, False),
    ],
)
def test_linear_contracts_settle_in_dollars_and_inverse_ones_in_their_underlying(
    kind: str, unit: str, sound: bool
) -> None:
    """A venue pays linear contracts one for one: a dollar of gain in a coin would be taken for a coin's part."""
    found = margin([position(1, ETH, 50.0), contract(1, kind, 1.0, unit=unit)])  # type: ignore[arg-type]
    assert [f.code for f in found.findings] == ([] if sound else ["unknown-settlement"])
    assert (max(leaf.budget for leaf in found.leaves) > 0) == sound
