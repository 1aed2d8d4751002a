"""Invariants 6, 8, 10, 26 and 28 of faults.md over readings that are merged, lost, frozen, reorganised or revoked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report, leaves
from aggregator.core.reconcile import reconcile
from aggregator.domain.price import Quote
from aggregator.domain.report import LOW, Flag, LeafValues, MarginReport
from aggregator.domain.snapshot import (
    DARK,
    FROZEN,
    HALTED,
    REORGED,
    Account,
    Block,
    Carried,
    ChainView,
    Cut,
    Position,
    Reading,
    Snapshot,
)
from tests.strategies import (
    CUT_TIME,
    ETH,
    EVM,
    SOLANA,
    SOURCES,
    account_id,
    books,
    older_view,
    quotes,
    snapshot,
    view,
    views_of,
    world,
)

T = TypeVar("T")
WORLD = world()
CHAINS = (EVM, SOLANA)
NUMBERS = (1, 2, 3)
HEIGHT = 1_000
HOLDERS = {n: f"{EVM}:0x{n:040x}" for n in NUMBERS}
randoms = st.randoms(use_true_random=False)
skews = st.tuples(*[st.floats(-0.15, 0.15) for _ in SOURCES])
ages = st.integers(0, 400)
kinds = st.fixed_dictionaries({n: st.sampled_from(["risk-bearing", "risk-bearing", "monitored"]) for n in NUMBERS})


def near(leaf: LeafValues) -> int:
    """Return one quantum and 1e-12 relative of what the leaf adds up: the tolerance between attestors."""
    return 3 + round(1e-12 * (leaf.assets_initial + leaf.requirement_initial + leaf.assets_maintenance))


def no_better(after: MarginReport, before: MarginReport) -> None:
    """Assert that no leaf is better in any number that opens risk or keeps it open."""
    for new, old in zip(leaves(after), leaves(before), strict=True):
        slack = near(old) + near(new)
        assert new.budget <= old.budget + slack
        assert new.assets_initial <= old.assets_initial + slack
        assert new.assets_maintenance <= old.assets_maintenance + slack
        # A debt with limited recourse counts up to its collateral: what must not grow is what is left. No less than
        # nothing is left to an account whose debts may be any amount: it shows no assets, and some requirement.
        for level in ("initial", "maintenance"):
            room, was = (getattr(x, f"assets_{level}") - getattr(x, f"requirement_{level}") for x in (new, old))
            assert room <= was + slack or (new.assets_maintenance == 0 and room < 0)


def untouched(after: MarginReport, before: MarginReport, account: str) -> None:
    """Assert that no leaf but those of ``account`` changed."""
    assert [x for x in leaves(after) if x.account != account] == [x for x in leaves(before) if x.account != account]


# --- carried rows, in a Snapshot ------------------------------------------------------------------------------------


@st.composite
def carryings(draw: st.DrawFn) -> tuple[list[Position], list[Position], list[int]]:
    """Draw a book, the same book with some rows carried from older blocks, and how much older those are."""
    rows = [row._replace(seen=0) for row in draw(books())]
    behind = draw(st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True))
    older = [row._replace(seen=draw(st.sampled_from([0, *(100 - b for b in behind)]))) for row in rows]
    return rows, older, behind


def report_of(
    rows: Sequence[Position], behind: Sequence[int], age: int, said: Sequence[Quote], of: Mapping[int, str]
) -> MarginReport:
    views = [view(chain, age) for chain in CHAINS]
    carried = [older_view(newest.chain, b, newest) for newest in views for b in behind]
    return compute_report(snapshot(rows, kinds=of, views=views, carried=carried), said, WORLD)


@given(carryings(), st.integers(0, 320), skews, kinds)
def test_what_is_carried_never_counts_more_than_what_is_read_anew(
    drawn: tuple[list[Position], list[Position], list[int]], age: int, skew: tuple[float, ...], of: dict[int, str]
) -> None:
    rows, older, behind = drawn
    fresh, merged = (report_of(r, behind, age, quotes(skew=skew), of) for r in (rows, older))
    no_better(merged, fresh)
    assert (merged.as_of <= fresh.as_of).all()
    limited = {row.account for row in rows if row.netting}
    for new, old in zip(leaves(merged), leaves(fresh), strict=True):
        if new.account not in limited:
            assert new.requirement_initial >= old.requirement_initial - near(old)
            assert new.requirement_maintenance >= old.requirement_maintenance - near(old)
        assert new.flags & Flag.STALE >= old.flags & Flag.STALE


@given(carryings(), st.integers(1, 3), st.integers(0, 320), kinds)
def test_carrying_one_account_changes_no_other(
    drawn: tuple[list[Position], list[Position], list[int]], number: int, age: int, of: dict[int, str]
) -> None:
    rows, older, behind = drawn
    mine = account_id(number)
    alone = [new if new.account == mine else row for row, new in zip(rows, older, strict=True)]
    after, before = (report_of(r, behind, age, quotes(), of) for r in (alone, rows))
    untouched(after, before, mine)


@given(books(), views_of(), kinds, skews)
def test_carried_from_the_newest_block_itself_is_fresh(
    rows: list[Position], views: list[ChainView], of: dict[int, str], skew: tuple[float, ...]
) -> None:
    older = [row._replace(seen=100) for row in rows]
    fresh = compute_report(snapshot(rows, kinds=of, views=views), quotes(skew=skew), WORLD)
    merged = compute_report(snapshot(older, kinds=of, views=views, carried=views), quotes(skew=skew), WORLD)
    assert leaves(merged) == leaves(fresh)


@given(carryings(), st.integers(0, 320), kinds)
def test_explanations_of_carried_rows_add_up(
    drawn: tuple[list[Position], list[Position], list[int]], age: int, of: dict[int, str]
) -> None:
    _, older, behind = drawn
    report = report_of(older, behind, age, quotes(), of)
    b = report.tables.bound
    for index in range(3):
        found = explain(report, index, WORLD)
        here = int(b[max(int(report.book.home[index]), 0)])
        for level, name in enumerate(("initial", "maintenance")):
            for side, totals in (("asset", report.assets), ("debt", report.debts)):
                parts = [getattr(c, f"counted_{name}") for c in found.components if c.position.side == side]
                total = totals[here, LOW, level, index] * 1e8
                assert abs(sum(parts) - total) <= 3 * len(parts) + 1 + 1e-11 * total
        for component in found.components:
            seen = component.position.seen
            assert component.age == age + (100 - seen if seen else 0)
            assert (f"carried from block {seen}, {100 - seen} s older" in component.reason) == bool(seen)


# --- the whole way, from readings -----------------------------------------------------------------------------------


def main_block(chain: str, age: int) -> Block:
    return Block(chain, HEIGHT, "newest", "before", CUT_TIME - age)


def old_block(chain: str, age: int, behind: int) -> Block:
    return Block(chain, HEIGHT - behind, f"old {behind}", "before", CUT_TIME - age - behind)


def accounts_of(kind: Mapping[int, str], ending: frozenset[int] = frozenset()) -> tuple[Account, ...]:
    return tuple(
        Account(
            account_id(n),
            HOLDERS[n],
            kind[n],  # type: ignore[arg-type]
            EVM,
            links=(HOLDERS[n],),
            ending=(HOLDERS[n],) if n in ending else (),
        )
        for n in NUMBERS
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Cut, dict[str, Reading], dict[int, str]]:
    """Draw a Cut and merged readings of both chains: each account fresh or carried as a whole, on each chain."""
    rows = [row._replace(origin=f"0x{i:02x}") for i, row in enumerate(draw(books()))]
    for i, row in enumerate(rows):
        if row.chain == EVM and draw(st.booleans()):
            rows[i] = row._replace(address=HOLDERS[int(row.account, 16)].rpartition(":")[2])
    blocks: list[Block] = []
    carried: list[Carried] = []
    readings: dict[str, Reading] = {}
    for chain in CHAINS:
        age, behind = draw(ages), draw(st.lists(st.integers(1, 200), max_size=2, unique=True))
        since = {n: draw(st.sampled_from([0, *behind])) for n in NUMBERS}
        older = tuple(
            Carried(old_block(chain, age, b), tuple(account_id(n) for n in NUMBERS if since[n] == b))
            for b in sorted(behind, reverse=True)
        )
        own = tuple(
            row._replace(seen=HEIGHT - since[n] if since[n] else 0)
            for row in rows
            if row.chain == chain and (n := int(row.account, 16))
        )
        blocks.append(main_block(chain, age))
        carried += older
        readings[chain] = Reading(blocks[-1], own, carried=older)
    return Cut(7, CUT_TIME, tuple(blocks), carried=tuple(carried)), readings, draw(kinds)


def seen(
    cut: Cut,
    readings: Mapping[str, Reading | None],
    accounts: Sequence[Account],
    previous: Mapping[str, Reading] | None = None,
    causes: Mapping[str, str] | None = None,
) -> Snapshot:
    return reconcile(cut, readings, previous or {}, accounts, WORLD.chains, CUT_TIME + 300, causes or {})


def valued(found: Snapshot, said: Sequence[Quote] | None = None) -> MarginReport:
    return compute_report(found, quotes() if said is None else said, WORLD)


@given(worlds(), randoms)
def test_the_order_of_what_was_read_does_not_matter(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]], random: Random
) -> None:
    cut, readings, of = drawn

    def shuffled(items: Sequence[T]) -> tuple[T, ...]:
        return tuple(random.sample(list(items), len(items)))

    other = {
        chain: replace(
            r,
            positions=shuffled(r.positions),
            carried=shuffled([c._replace(accounts=shuffled(c.accounts)) for c in r.carried]),
        )
        for chain, r in reversed(readings.items())
    }
    turned = replace(cut, blocks=shuffled(cut.blocks), carried=shuffled(cut.carried))
    first, second = seen(cut, readings, accounts_of(of)), seen(turned, other, shuffled(accounts_of(of)))
    assert second == first
    jumbled = replace(first, positions=shuffled(first.positions), carried=shuffled(first.carried))
    assert leaves(valued(jumbled)) == leaves(valued(first))
    assert valued(jumbled).cells == valued(first).cells


@given(worlds())
def test_merged_readings_never_count_more_than_fresh_ones(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]],
) -> None:
    cut, readings, of = drawn
    anew = {
        chain: replace(r, positions=tuple(p._replace(seen=0) for p in r.positions), carried=())
        for chain, r in readings.items()
    }
    merged = valued(seen(cut, readings, accounts_of(of)))
    fresh = valued(seen(replace(cut, carried=()), anew, accounts_of(of)))
    no_better(merged, fresh)
    assert (merged.as_of <= fresh.as_of).all()


@given(worlds(), st.sampled_from(CHAINS))
def test_dropping_a_chain_never_helps(drawn: tuple[Cut, dict[str, Reading], dict[int, str]], chain: str) -> None:
    cut, readings, of = drawn
    accounts = accounts_of(of)
    before = valued(seen(cut, readings, accounts))
    remembered = valued(seen(cut, readings | {chain: None}, accounts, previous={chain: readings[chain]}))
    no_better(remembered, before)
    block = readings[chain].block._replace(time=cut.cut_time - 1_000)
    older = Reading(block, tuple(p._replace(seen=0) for p in readings[chain].positions))
    no_better(valued(seen(cut, readings | {chain: None}, accounts, previous={chain: older})), before)
    # Without any memory of the chain its debts are unknown too, and anybody's collateral may be there.
    never = valued(seen(cut, readings | {chain: None}, accounts))
    for new, old in zip(leaves(never), leaves(before), strict=True):
        assert new.budget == 0
        assert new.flags & Flag.PARTIAL or of[int(new.account, 16)] == "monitored"
        assert not new.flags & Flag.PARTIAL or not new.flags & Flag.LIQUIDATABLE
        assert new.assets_initial <= old.assets_initial + near(old)
        assert new.assets_maintenance <= old.assets_maintenance + near(old)


@given(worlds(), st.sampled_from(CHAINS), st.sampled_from([HALTED, DARK, REORGED, FROZEN]))
def test_a_chain_that_stops_never_helps_and_concerns_only_who_is_there(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]], chain: str, state: str
) -> None:
    cut, readings, of = drawn
    accounts = accounts_of(of)
    before = valued(seen(cut, readings, accounts))
    if state == FROZEN:
        stopped = seen(cut, readings | {chain: replace(readings[chain], frozen="sequencer down")}, accounts)
    else:
        stopped = seen(cut, readings, accounts, causes={chain: f"{state}: so it is"})
    after = valued(stopped)
    no_better(after, before)
    if state != HALTED:
        assert all(v.status == "stale" for v in (*stopped.chains, *stopped.carried) if v.chain == chain)
    there = {p.account for p in readings[chain].positions}
    for new, old in zip(leaves(after), leaves(before), strict=True):
        if new.account not in there:
            assert new == old
        if state in (REORGED, FROZEN) and new.flags & Flag.STALE > old.flags & Flag.STALE:
            assert new.flags & Flag.HALTED_CHAIN
        # What a chain that stopped hides makes nobody liquidatable who was not.
        assert new.flags & Flag.LIQUIDATABLE <= old.flags & Flag.LIQUIDATABLE


@given(worlds(), st.sets(st.sampled_from(NUMBERS), min_size=1).map(frozenset))
def test_ending_links_never_help_and_concern_nobody_else(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]], ending: frozenset[int]
) -> None:
    cut, readings, of = drawn
    before = valued(seen(cut, readings, accounts_of(of)))
    found = seen(cut, readings, accounts_of(of, ending))
    after = valued(found)
    no_better(after, before)
    gone = {account_id(n) for n in ending}
    for new, old in zip(leaves(after), leaves(before), strict=True):
        if new.account not in gone:
            assert new == old
        assert new.flags & Flag.PARTIAL <= old.flags & Flag.PARTIAL
    debts = {p for p in seen(cut, readings, accounts_of(of)).positions if p.side == "debt"}
    assert debts == {p for p in found.positions if p.side == "debt"}
    assert not [p for p in found.positions if p.side == "asset" and p.address and p.account in gone]


@given(worlds(), st.sets(st.sampled_from(SOURCES)), skews)
def test_disabling_a_source_never_helps(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]], lost: set[str], skew: tuple[float, ...]
) -> None:
    cut, readings, of = drawn
    found = seen(cut, readings, accounts_of(of))
    said = quotes(skew=skew, conf=1e-3)
    before, after = valued(found, said), valued(found, [q for q in said if q.source not in lost])
    for new, old in zip(leaves(after), leaves(before), strict=True):
        slack = near(old) + near(new)
        assert new.budget <= old.budget + slack
        # Collateral that loses its price takes what is owed against it along, but never leaves more.
        for level in ("initial", "maintenance"):
            room, was = (getattr(x, f"assets_{level}") - getattr(x, f"requirement_{level}") for x in (new, old))
            assert max(0, room) <= max(0, was + slack)
            assert (room >= 0) <= (was >= -slack)


@given(worlds(), st.sampled_from(NUMBERS), st.sampled_from(CHAINS), st.integers(1, 3 * HEIGHT))
def test_what_is_carried_from_nowhere_counts_nothing(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]], number: int, chain: str, height: int
) -> None:
    cut, readings, of = drawn
    mine, accounts = account_id(number), accounts_of(of)
    reading = readings[chain]
    height += 10 * HEIGHT  # a block from which nothing is carried
    odd = Position(mine, EVM, "vault", ETH, 10**20, ETH, 10**20, "asset", "seizable", 10**6, seen=height)
    odd = odd._replace(chain=chain, origin="0xff")
    before = valued(seen(cut, readings, accounts))
    found = seen(cut, readings | {chain: replace(reading, positions=(*reading.positions, odd))}, accounts)
    assert ("not-read-yet", mine) in {(f.code, f.scope) for f in found.findings}
    after = valued(found)
    untouched(after, before, mine)
    assert all(x.budget == x.assets_maintenance == 0 for x in leaves(after) if x.account == mine)


@given(worlds(), st.sampled_from(NUMBERS), st.sampled_from(["risk-bearing", "monitored"]))
def test_an_unknown_token_contributes_nothing_and_degrades_no_risk_bearing_account(
    drawn: tuple[Cut, dict[str, Reading], dict[int, str]], number: int, kind: str
) -> None:
    cut, readings, of = drawn
    accounts = accounts_of(of | {number: kind})
    gift = f"{EVM}/erc20:0x{'ee' * 20}"
    evm = readings[EVM]
    since = next((c.block.height for c in evm.carried if account_id(number) in c.accounts), 0)
    odd = Position(account_id(number), EVM, "wallet", gift, 10**30, gift, 10**30, seen=since)
    before = valued(seen(cut, readings, accounts))
    after = valued(seen(cut, readings | {EVM: replace(evm, positions=(*evm.positions, odd))}, accounts))
    if kind == "risk-bearing":
        assert leaves(after) == leaves(before)
    else:
        assert [x._replace(flags=0) for x in leaves(after)] == [x._replace(flags=0) for x in leaves(before)]
    assert "unknown-asset" in {f.code for f in after.findings}
