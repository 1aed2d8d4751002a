"""From a Snapshot and quotes to a MarginReport, and from a report to leaves. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from sha3 import keccak_256

from aggregator.core import valuation
from aggregator.core.budgets import Draws, allot, cap_growth, free_of
from aggregator.core.fusion import fuse_feeds
from aggregator.core.margin import health
from aggregator.core.portfolio import sum_by, value_derivatives
from aggregator.core.tables import Legs, World, build_tables, list_cells
from aggregator.domain.book import ASSET, Book, Bools, build_book, is_missing, view_axis
from aggregator.domain.budgets import Levels
from aggregator.domain.policy import PolicyRow, total_variance
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.report import (
    HIGH,
    INITIAL,
    LOW,
    MAINTENANCE,
    MID,
    Derivatives,
    Flag,
    HaircutCell,
    LeafValues,
    MarginReport,
    RiskTables,
)
from aggregator.domain.rows import DestinationRow
from aggregator.domain.snapshot import FROZEN, HALTED, REORGED, ChainView, Finding, Snapshot
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

LIMIT = 1e30
"""USD; beyond it an account is isolated. The wire carries 128 bits of 1e-8 USD."""
UNCERTAIN = 1.0
"""Volatility, per sqrt(year), of an underlying about which nothing says how much it moves."""
DUST = 1e-4
"""Share of an account's gross value below which its assets on one chain say nothing about its freshness, and those
without a known price nothing about its completeness."""


def destination_id(chain: str) -> str:
    """Return keccak256 of the destination's CAIP-2 id as 0x hex."""
    return "0x" + str(keccak_256(chain.encode("ascii")).hexdigest())


def compute_report(
    snapshot: Snapshot,
    quotes: Sequence[Quote],
    world: World,
    latency: Legs | None = None,
    levels: Levels | None = None,
) -> MarginReport:
    """Value every account at every destination.

    The same inputs in any order give the same report. An account whose numbers leave the range of the wire is isolated:
    it counts no assets, and no other account changes.

    Args:
        latency: the legs until a Hold lands, of the chains where they are measured; they replace the configured ones.
        levels: how large budgets were, from which they grow no faster than the policy says; None = they are not capped.
    """
    rows = _destinations(world)
    destinations = [row.chain for row in rows]
    chains = tuple(sorted(row.id for row in world.chains))
    prices = fuse_prices(quotes, world, snapshot.cut_time)
    book = build_book(
        snapshot,
        world.assets,
        world.policy.assets,
        chains,
        tuple(band.feed for band in prices),
        destinations,
        world.policy.underlyings,
        world.policy.dollars,
        [row.clock_bound for row in rows],
    )
    views = view_axis(snapshot, chains)
    tables = tables_of(book, views, world, snapshot.valid_until, latency)
    findings = {*snapshot.findings, *book.findings}
    findings |= {Finding("price-unknown", band.feed, band.detail) for band in prices if not band.known}
    findings |= {
        Finding("unknown-home", account.id, f"{account.home} is no destination: budget 0")
        for account in (book.accounts[i] for i in np.flatnonzero((book.home < 0) & ~book.parts.any(axis=0)))
    }
    report = value_report(
        book,
        prices,
        tables,
        views,
        times=(snapshot.epoch, snapshot.cut_time, snapshot.valid_until),
        destinations=tuple(destinations),
        cells=list_cells(book, views, tables, destinations),
        findings=findings,
        policy=world.policy,
    )
    if levels is None or world.policy.growth is None:
        return report
    budgets, lines = cap_growth(report.budgets, levels, snapshot.cut_time, world.policy.growth, report)
    return replace(report, budgets=budgets, growth=lines)


def tables_of(
    book: Book, views: Sequence[ChainView | None], world: World, valid_until: int, latency: Legs | None = None
) -> RiskTables:
    """Return the tables of a world for a book made in it, which has chains and destinations in the order of ids.

    Args:
        views: along the view axis of the book.
    """
    chains = sorted(world.chains, key=lambda row: row.id)
    return build_tables(book, views, chains, _destinations(world), world, valid_until, latency)


def _destinations(world: World) -> list[DestinationRow]:
    return sorted(world.destinations, key=lambda row: destination_id(row.chain))


def value_report(
    book: Book,
    prices: tuple[PriceBand, ...],
    tables: RiskTables,
    views: tuple[ChainView | None, ...],
    *,
    times: tuple[int, int, int],
    destinations: tuple[str, ...],
    cells: tuple[HaircutCell, ...] = (),
    findings: set[Finding] | frozenset[Finding] = frozenset(),
    policy: PolicyRow | None = None,
) -> MarginReport:
    """Value a book against its tables; the vectorised heart of :func:`compute_report`.

    Args:
        views: along the view axis of the book.
        times: epoch, cut time and valid-until.
        destinations: CAIP-2, in the order of ``tables.bound``.
        policy: needed if anybody is in a perp or option.

    Raises:
        ValueError: ``policy`` is missing.
    """
    if book.contracts is not None and policy is None:
        raise ValueError("policy: the book holds contracts, and nothing says what they require")
    epoch, cut_time, valid_until = times
    count, bounds = len(book.accounts), tables.horizon.shape[2]
    asset_price, debt_price, known, opens = valuation.price_columns(prices)
    derived = value_derivatives(book, prices, tables, views, policy, cut_time) if policy is not None else None
    given = book
    if derived is not None:
        unsure = book.blind.copy()
        unsure[derived.accounts[derived.blind]] = True
        book = replace(book, blind=unsure)
    adder, draws = valuation.Adder(book), Draws(book)
    owed_to: Floats | None = None  # consumers, by destination
    assets, debts = np.empty((bounds, 3, 2, count)), np.empty((bounds, 3, 2, count))
    room = np.full(count, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for b in range(bounds):
            rates = valuation.unit_rates(book.kinds, tables, asset_price, debt_price, b)
            assets[b], debts[b], consumer_debts = valuation.value_book(book, rates, tables, known, adder)
            usable, owed = assets[b, LOW, INITIAL], debts[b, LOW, INITIAL] - consumer_debts
            closed = (book.kinds.side == ASSET) & ~opens[book.kinds.feed]
            if np.any(rates[LOW, INITIAL, closed] > 0):
                shut = _any(book, (book.group_side == ASSET) & ~opens[book.group_feed])
                rates[LOW, INITIAL, closed] = 0.0
                opening = _opening_value(book, rates[LOW, INITIAL], tables, known, adder)
                # The others keep their numbers to the last bit.
                usable, owed = (np.where(shut, new, old) for new, old in zip(opening, (usable, owed), strict=True))
            if derived is not None:
                usable = usable.copy()
                more, less = _add_derivatives(book, derived, b, assets[b], debts[b])
                usable[derived.accounts] += more[LOW, INITIAL]
                owed[derived.accounts] += less[LOW, INITIAL]
            room = np.minimum(room, health.round_down(usable) - health.round_up(owed))
            here = draws.debts(rates[LOW, INITIAL])
            owed_to = here if owed_to is None or here is None else np.maximum(owed_to, here)
            for end in (LOW, MID, HIGH):
                for level in (INITIAL, MAINTENANCE):
                    if (beyond := draws.unexplained(rates[end, level])) is not None:
                        debts[b, end, level] += beyond
        equity = valuation.equity(book, asset_price[MID, MAINTENANCE], adder)
        if (beyond := draws.unexplained(asset_price[MID, MAINTENANCE, book.kinds.feed])) is not None:
            equity -= beyond
        if derived is not None:
            equity[derived.accounts] += derived.worth
            room[derived.accounts[derived.barred]] = 0.0
        isolated = _isolate(assets, debts, equity)

    if book.claims is not None:
        room = room - book.claims.elsewhere - book.claims.pending
    missing = np.array([*(is_missing(view) for view in views), True], dtype=np.bool_)  # closed by the unknown view
    unread = book.touches[:, :-1][:, missing[: book.touches.shape[1] - 1]].any(axis=1)
    unread |= ~book.monitored & bool(missing[:-1].any())
    mid = asset_price[MID, MAINTENANCE]
    gross = _gross(book, mid)
    matters = _matters(book, mid, gross)
    old = tables.stale & ~missing
    stale = _has(book, matters & old[book.leg_view])
    halted = np.array([*(v is not None and v.status == "stale" and v.cause.startswith(_STOPPED) for v in views), False])
    stopped = _has(book, matters & halted[book.leg_view])
    if (claims := book.claims) is not None:  # what was drawn is a debt like any other
        stale[claims.leg_account[old[claims.leg_view]]] = True
        stopped[claims.leg_account[halted[claims.leg_view]]] = True
    doubted = _has(book, matters & book.doubted[book.chain_of[book.leg_view]])
    owed_blindly, unsized, unpriced = _priceless(book, prices, known, tables.counts, gross)
    partial = book.partial | doubted | unread | isolated | owed_blindly | unsized
    _, blind = valuation.mute(book, known)
    if derived is not None:
        whose = derived.accounts[derived.blind]
        owed_blindly[whose] = unpriced[whose] = True
        partial |= owed_blindly

    flags = np.zeros((bounds, count), dtype=np.int64)
    status = np.zeros((bounds, count), dtype=np.int64)
    common = stale * int(Flag.STALE) | partial * int(Flag.PARTIAL) | book.monitored * int(Flag.MONITORED)
    common |= stopped * int(Flag.HALTED_CHAIN)
    for b in range(bounds):
        status[b], liquidatable = health.status_of(
            assets[b],
            debts[b],
            unsure=stale | partial,
            unpriced=unpriced | book.partial | doubted,
            unread=unread | isolated,
        )
        flags[b] = common | liquidatable * int(Flag.LIQUIDATABLE)
    barred = book.monitored | blind | unread | isolated | ~np.isfinite(room)
    if claims is not None:  # grants are remembered for as long as a view counts as fresh
        barred[claims.shared_account[np.append(tables.stale[:-1], True)[claims.shared_view]]] = True
    parts = np.where(barred, 0, book.parts) if barred.any() else book.parts
    if claims is not None:
        parts = np.where(claims.rotated, parts, 0)
    free = free_of(room)
    as_of = np.full(count, cut_time, dtype=np.int64)
    seen_at = np.array([*(view.block.time if view and view.block else cut_time for view in views), cut_time])
    np.minimum.at(as_of, book.leg_account[matters], seen_at[book.leg_view[matters]])
    if claims is not None:
        np.minimum.at(as_of, claims.leg_account, seen_at[claims.leg_view])
    out = {
        Finding("out-of-range", book.accounts[i].id, "a number left the range of the wire: the account counts 0")
        for i in np.flatnonzero(isolated)
    }
    if derived is not None:
        why = "a contract is on, or settles in, what has no price to rely on: it may owe any amount"
        out |= {Finding("contract-unpriced", book.accounts[i].id, why) for i in derived.accounts[derived.blind]}
    return MarginReport(
        epoch=epoch,
        cut_time=cut_time,
        valid_until=valid_until,
        destinations=destinations,
        destination_ids=tuple(destination_id(chain) for chain in destinations),
        chains=views,
        prices=prices,
        cells=cells,
        findings=tuple(sorted(findings | out)),
        book=given,
        tables=tables,
        assets=assets,
        debts=debts,
        equity=equity,
        budgets=allot(free, parts, draws.charge(owed_to)),
        free=free,
        owed=owed_to,
        as_of=as_of,
        flags=flags,
        status=status,
        isolated=isolated,
        derivatives=derived,
    )


def revalue(
    report: MarginReport,
    prices: tuple[PriceBand, ...],
    policy: PolicyRow,
    *,
    tables: RiskTables | None = None,
    views: tuple[ChainView | None, ...] | None = None,
) -> MarginReport:
    """Value the book of a report again, with other prices and, where given, other tables and views.

    Making the book is most of the work where accounts are many, and it does not depend on any of these. Nobody commits
    to such a report: it lists no cells, and of findings only those of the valuation itself.

    Args:
        prices: in the order of the book's feeds, as :func:`fuse_prices` gives them.
    """
    return value_report(
        report.book,
        prices,
        tables or report.tables,
        views or report.chains,
        times=(report.epoch, report.cut_time, report.valid_until),
        destinations=report.destinations,
        policy=policy,
    )


def leaves(report: MarginReport) -> tuple[LeafValues, ...]:
    """Return the leaf of every (account, destination): accounts ascending, destinations ascending by id."""
    columns = [leaves_at(report, d, slice(None)) for d in range(len(report.destinations))]
    return tuple(leaf for row in zip(*columns, strict=True) for leaf in row)


_STOPPED = (HALTED, REORGED, FROZEN)


def leaves_at(report: MarginReport, d: int, chosen: slice) -> list[LeafValues]:
    """Return the leaves of the chosen accounts at one destination."""
    b = int(report.tables.bound[d])
    assets, debts = report.assets[b, LOW][:, chosen], report.debts[b, LOW][:, chosen]
    columns = (
        health.round_down(report.equity[chosen]),
        health.round_down(assets[INITIAL]),
        health.round_up(debts[INITIAL]),
        health.round_down(assets[MAINTENANCE]),
        health.round_up(debts[MAINTENANCE]),
        report.budgets[d, chosen],
        report.as_of[chosen],
        report.flags[b, chosen],
    )
    here, epoch, until = report.destination_ids[d], report.epoch, report.valid_until
    return [
        LeafValues(account.id, here, epoch, int(e), int(ai), int(ri), int(am), int(rm), int(room), as_of, until, flags)
        for account, e, ai, ri, am, rm, room, as_of, flags in zip(
            report.accounts[chosen], *(column.tolist() for column in columns), strict=True
        )
    ]


def fuse_prices(quotes: Sequence[Quote], world: World, now: int) -> tuple[PriceBand, ...]:
    """Fuse every feed that an asset or a source names; age inflates by the most volatile asset priced by the feed.

    A feed of an underlying that prices no asset takes the highest volatility at the money of its surface.

    Args:
        now: the cut, Unix seconds.

    Returns:
        bands, ascending by feed: which feeds there are follows from ``world`` alone.
    """
    volatility = dict.fromkeys(sorted({a.feed for a in world.assets.values()} | {s.feed for s in world.sources}), 0.0)
    for row in world.assets.values():
        policy = world.policy.assets.get(row.policy)
        volatility[row.feed] = max(volatility[row.feed], policy.volatility if policy else 0.0)
    for feed, underlying in world.policy.underlyings.items():
        if volatility.get(feed) == 0:  # no asset is priced by it: contracts alone are
            years = [slice.tenor / SECONDS_PER_YEAR for slice in underlying.surface]
            levels = [total_variance(slice, 0.0) / t for slice, t in zip(underlying.surface, years, strict=True)]
            volatility[feed] = math.sqrt(max(levels, default=UNCERTAIN**2))
    return fuse_feeds(world.sources, quotes, now, volatility, world.policy, world.ratios)


def _add_derivatives(book: Book, derived: Derivatives, b: int, assets: Floats, debts: Floats) -> tuple[Floats, Floats]:
    """Add what contracts count to W+ and W- of their accounts, in place; return both, shape (end, level, C).

    Args:
        assets, debts: of one clock bound, shape (end, level, A).
    """
    assert book.contracts is not None
    place = np.searchsorted(derived.accounts, book.contracts.settlement_account)
    gains, losses = (sum_by(place, values[b], len(derived.accounts)) for values in (derived.gains, derived.losses))
    hedged = derived.hedged[b]
    more = gains + np.where(hedged, derived.extra[b], 0.0)
    less = losses + np.where(hedged, derived.requirement[1], derived.requirement[0])
    assets[..., derived.accounts] += more
    debts[..., derived.accounts] += less
    return more, less


def _opening_value(
    book: Book, rate: Floats, tables: RiskTables, known: Bools, adder: valuation.Adder
) -> tuple[Floats, Floats]:
    """Return W+ and W- without consumer debts at (low, initial), for rates that open risk."""
    quantity = valuation.countable(book, book.free, tables.counts)
    coefficient, least = valuation.group_coefficients(book, tables.liquidity), valuation.least_impacts(book, tables)
    values = valuation.value_groups(book, rate, quantity, coefficient, least)
    muted, _ = valuation.mute(book, known)
    values[muted] = 0.0
    total = adder.add(values)
    return total.assets, total.debts


def _gross(book: Book, mid: Floats) -> Floats:
    """Return each account's gross value, USD: assets and debts, unhaircut at p̂, under withdrawal or not.

    Args:
        mid: p̂ per feed, closed by the unknown feed's 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # of accounts out of range, which are isolated
        return valuation.sum_by(book.account, book.amount * mid[book.kinds.feed[book.kind]], len(book.accounts))


def _matters(book: Book, mid: Floats, gross: Floats) -> Bools:
    """Find the legs that matter, shape (L,): these set STALE, HALTED_CHAIN and as_of.

    A leg matters where the account has a contract, or owes or holds something, and on that chain in all has a contract
    or owes anything, or holds assets that, as last seen, are worth at least a ten-thousandth of its gross value.
    Anybody can give an account less than that on a chain that is dark or about to be; it counts 0 at ``low`` all the
    same. A link alone does not matter: what an address holds in its own right is at worst worth nothing to the
    account. What is judged is the whole chain, so that holdings spread over carried blocks matter as much as at one.

    Args:
        mid: p̂ per feed, closed by the unknown feed's 0.
        gross: of :func:`_gross`.
    """
    asset = book.kinds.side[book.kind] == ASSET
    count = len(book.leg_account)
    owes = valuation.sum_by(book.leg[~asset], book.amount[~asset], count) > 0
    if book.contracts is not None:
        owes[book.leg[book.contracts.row]] = True
    with np.errstate(over="ignore", invalid="ignore"):
        value = book.amount * mid[book.kinds.feed[book.kind]]
        held = valuation.sum_by(book.leg[asset], value[asset], count)
        standing = valuation.sum_by(book.standing, held, book.standings)[book.standing]
        much = (standing > 0) & (standing >= DUST * gross[book.leg_account])
    indebted = valuation.sum_by(book.standing, owes.astype(np.float64), book.standings)[book.standing] > 0
    matters: Bools = (indebted | much) & (owes | (held > 0))
    return matters


def _priceless(
    book: Book, prices: Sequence[PriceBand], known: Bools, counts: Bools, gross: Floats
) -> tuple[Bools, Bools, Bools]:
    """Find the accounts that something without a known price makes uncertain, each of shape (A,).

    A debt always does, whatever its size. Assets do where some source does give a price, though too few, and they are
    worth at least :data:`DUST` of the account's gross value at the highest price given; and where there is no price at
    all, or the asset itself cannot be interpreted, if it could count: not if it fails the exit gate, as everything does
    that anybody can send to a linked address of a risk-bearing account. A stranger's gift of either sort therefore
    makes nobody partial.

    Args:
        counts: whether the exit gate lets each row count.
        gross: of :func:`_gross`.

    Returns:
        accounts with a debt, accounts with an asset that makes them partial, and accounts for which ``high`` is no
        upper bound, since such an asset, even the smallest, could count.
    """
    priceless = ~known[book.group_feed]
    assets = priceless & (book.group_side == ASSET)
    owed = _any(book, priceless & ~assets)
    if not assets.any():
        nobody = np.zeros(len(book.accounts), dtype=np.bool_)
        return owed, nobody, nobody
    counted = np.zeros(len(book.group_start), dtype=np.bool_)
    counted[book.group[counts]] = True
    highest = np.array([*(max(band.mid, band.worst) for band in prices), 0.0])[book.group_feed]
    with np.errstate(over="ignore", invalid="ignore"):
        worth = valuation.sum_by(book.group, book.amount, len(book.group_start)) * highest
        given = valuation.sum_by(book.group_account[assets], worth[assets], len(book.accounts))
        sized = (given > 0) & ~(given < DUST * gross)
    return owed, sized | _any(book, assets & counted & (highest == 0)), _any(book, assets & counted)


def _isolate(assets: Floats, debts: Floats, equity: Floats) -> Bools:
    """Take the assets away from accounts whose numbers are out of range, in place; return which."""
    fine = (np.abs(assets) <= LIMIT).all(axis=(0, 1, 2)) & (np.abs(debts) <= LIMIT).all(axis=(0, 1, 2))
    isolated: Bools = ~(fine & (np.abs(equity) <= LIMIT))
    assets[..., isolated] = 0.0
    debts[..., isolated] = np.nan_to_num(debts[..., isolated], nan=LIMIT, posinf=LIMIT).clip(0.0, LIMIT)
    equity[isolated] = np.nan_to_num(equity[isolated], nan=0.0, neginf=-LIMIT).clip(-LIMIT, 0.0)
    return isolated


def _has(book: Book, legs: Bools) -> Bools:
    """Return the accounts that have one of the legs."""
    result = np.zeros(len(book.accounts), dtype=np.bool_)
    result[book.leg_account[legs]] = True
    return result


def _any(book: Book, groups: Bools) -> Bools:
    """Return the accounts that have one of the groups."""
    result = np.zeros(len(book.accounts), dtype=np.bool_)
    result[book.group_account[groups]] = True
    return result
