"""From a Snapshot and quotes to a MarginReport, and from a report to leaves and explanations. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sha3 import keccak_256

from aggregator.core import valuation
from aggregator.core.fusion import fuse
from aggregator.core.haircut import DECIMALS, haircut_table, hold_bound, liquidity_coefficient
from aggregator.core.margin import health
from aggregator.domain.book import ASSET, DEBT, Book, Bools, build_book, is_missing, view_axis
from aggregator.domain.latency import Law
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.report import (
    HIGH,
    INITIAL,
    LOW,
    MAINTENANCE,
    MID,
    STATUSES,
    AccountMargin,
    Component,
    Flag,
    HaircutCell,
    Haircuts,
    Interval,
    LeafValues,
    MarginReport,
    RiskTables,
)
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow, LatencyLeg, PolicyRow, SourceRow
from aggregator.domain.snapshot import FROZEN, HALTED, REORGED, ChainView, Finding, Position, Snapshot
from aggregator.domain.units import Floats, usd_down, usd_up

LIMIT = 1e30
"""USD; beyond it an account is isolated. The wire carries 128 bits of 1e-8 USD."""
DUST = 1e-4
"""Share of an account's gross value below which its assets on one chain say nothing about its freshness, and those
without a known price nothing about its completeness."""

Legs = Mapping[str, Sequence[LatencyLeg | Law]]
"""The legs until a Hold lands, by chain."""


@dataclass(frozen=True, slots=True)
class World:
    """The configuration a valuation depends on."""

    chains: tuple[ChainRow, ...]
    assets: Mapping[str, AssetRow]
    sources: tuple[SourceRow, ...]
    destinations: tuple[DestinationRow, ...]
    policy: PolicyRow


def destination_id(chain: str) -> str:
    """Return keccak256 of the destination's CAIP-2 id as 0x hex."""
    return "0x" + str(keccak_256(chain.encode("ascii")).hexdigest())


def compute_report(
    snapshot: Snapshot, quotes: Sequence[Quote], world: World, latency: Legs | None = None
) -> MarginReport:
    """Value every account at every destination.

    The same inputs in any order give the same report. An account whose numbers leave the range of the wire is isolated:
    it counts no assets, and no other account changes.

    Args:
        latency: the legs until a Hold lands, of the chains where they are measured; they replace the configured ones.
    """
    destinations = sorted(world.destinations, key=lambda row: destination_id(row.chain))
    chains = {row.id: row for row in sorted(world.chains, key=lambda row: row.id)}
    prices = _prices(quotes, world, snapshot.cut_time)
    book = build_book(
        snapshot,
        world.assets,
        world.policy.assets,
        tuple(chains),
        tuple(band.feed for band in prices),
        tuple(row.chain for row in destinations),
    )
    views = view_axis(snapshot, tuple(chains))
    tables = build_tables(book, views, tuple(chains.values()), destinations, world, snapshot.valid_until, latency)
    findings = {*snapshot.findings, *book.findings}
    findings |= {Finding("price-unknown", band.feed, band.detail) for band in prices if not band.known}
    findings |= {
        Finding("unknown-home", account.id, f"{account.home} is no destination: budget 0")
        for account in (book.accounts[i] for i in np.flatnonzero(book.home < 0))
    }
    return value_report(
        book,
        prices,
        tables,
        views,
        times=(snapshot.epoch, snapshot.cut_time, snapshot.valid_until),
        destinations=tuple(row.chain for row in destinations),
        cells=_cells(book, views, tables, [row.chain for row in destinations]),
        findings=findings,
    )


def build_tables(
    book: Book,
    views: Sequence[ChainView | None],
    chains: Sequence[ChainRow],
    destinations: Sequence[DestinationRow],
    world: World,
    valid_until: int,
    latency: Legs | None = None,
) -> RiskTables:
    """Look up everything that depends on (policy, view, clock bound), and the exit gate of every row.

    The horizon of collateral seen at view v for destination d is ``valid_until + clock bound of d − block time of v``,
    for which the attested number is usable, plus the policy's time to liquidate. A view that others are carried beside
    is as stale as the newest one of its chain, at least.

    Args:
        views: along the view axis of the book.
        chains: in the order of the book's chains.
        latency: the legs until a Hold lands, by chain; those of the chain's row where it is not among them.
    """
    policies = [world.policy.assets[name] for name in book.policies]
    bounds = sorted({row.clock_bound for row in destinations}) or [0]
    shape = (len(policies) + 1, len(views) + 1, len(bounds))
    horizon = np.zeros(shape)
    loss, rise = np.ones((*shape, 2)), np.zeros((*shape, 2))
    stale = np.ones(len(views) + 1, dtype=np.bool_)
    slowest = np.full(len(views) + 1, np.iinfo(np.int64).max)
    hold = [hold_bound((latency or {}).get(row.id, row.hold), world.policy.exit_epsilon) for row in chains]
    seen = [v for v, view in enumerate(views) if not is_missing(view)]
    for v in seen:
        view, c = views[v], int(book.chain_of[v])
        assert view is not None
        assert view.block is not None
        age = max(0, view.age)
        for p, policy in enumerate(policies):
            for b, clock_bound in enumerate(bounds):
                usable = valid_until + clock_bound - view.block.time
                horizon[p, v, b] = max(0, usable) + policy.liquidation_seconds
        stale[v] = view.status != "ok" or age > chains[c].max_age or (c < v and stale[c])
        # A request to withdraw may have followed the block we saw at once: it has had `age` seconds already.
        slowest[v] = hold[c] + age
    if seen and policies:
        loss[: len(policies), seen], rise[: len(policies), seen] = haircut_table(policies, horizon[:-1, seen])
    levels = [(policy.initial, policy.maintenance) for policy in policies]
    gate = book.monitored[book.account] | (book.seizable & (book.delay > slowest[book.kinds.view[book.kind]]))
    return RiskTables(
        bound=np.array([bounds.index(row.clock_bound) for row in destinations], dtype=np.int64),
        horizon=horizon,
        asset_loss=loss,
        debt_rise=rise,
        policy_haircut=np.array([[i.haircut, m.haircut] for i, m in levels] + [[1.0, 1.0]]),
        liability_weight=np.array([[i.liability_weight, m.liability_weight] for i, m in levels] + [[1.0, 1.0]]),
        liquidity=np.array([*(liquidity_coefficient(p.daily_volume, p.impact, p.volatility) for p in policies), 0.0]),
        stale=stale,
        hold=np.array(hold, dtype=np.int64),
        counts=gate | (book.kinds.side[book.kind] != ASSET),
    )


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
) -> MarginReport:
    """Value a book against its tables; the vectorised heart of :func:`compute_report`.

    Args:
        views: along the view axis of the book.
        times: epoch, cut time and valid-until.
        destinations: CAIP-2, in the order of ``tables.bound``.
    """
    epoch, cut_time, valid_until = times
    count, bounds = len(book.accounts), tables.horizon.shape[2]
    asset_price, debt_price, known, opens = valuation.price_columns(prices)
    adder = valuation.Adder(book)
    assets, debts = np.empty((bounds, 3, 2, count)), np.empty((bounds, 3, 2, count))
    room = np.full(count, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for b in range(bounds):
            rates = valuation.unit_rates(book.kinds, tables, asset_price, debt_price, b)
            assets[b], debts[b], home_debts = valuation.value_book(book, rates, tables, known, adder)
            usable, owed = assets[b, LOW, INITIAL], debts[b, LOW, INITIAL] - home_debts
            closed = (book.kinds.side == ASSET) & ~opens[book.kinds.feed]
            if np.any(rates[LOW, INITIAL, closed] > 0):
                rates[LOW, INITIAL, closed] = 0.0
                usable, owed = _opening_value(book, rates[LOW, INITIAL], tables, known, adder)
            room = np.minimum(room, health.round_down(usable) - health.round_up(owed))
        equity = valuation.equity(book, asset_price[MID, MAINTENANCE], adder)
        isolated = _isolate(assets, debts, equity)

    missing = np.array([*(is_missing(view) for view in views), True], dtype=np.bool_)  # closed by the unknown view
    unread = book.touches[:, :-1][:, missing[: book.touches.shape[1] - 1]].any(axis=1)
    unread |= ~book.monitored & bool(missing[:-1].any())
    mid = asset_price[MID, MAINTENANCE]
    gross = _gross(book, mid)
    matters = _matters(book, mid, gross)
    stale = _has(book, matters & (tables.stale & ~missing)[book.leg_view])
    halted = np.array([*(v is not None and v.status == "stale" and v.cause.startswith(_STOPPED) for v in views), False])
    doubted = _has(book, matters & book.doubted[book.chain_of[book.leg_view]])
    owed_blindly, unsized, unpriced = _priceless(book, prices, known, tables.counts, gross)
    partial = book.partial | doubted | unread | isolated | owed_blindly | unsized
    _, blind = valuation.mute(book, known)

    flags = np.zeros((bounds, count), dtype=np.int64)
    status = np.zeros((bounds, count), dtype=np.int64)
    common = stale * int(Flag.STALE) | partial * int(Flag.PARTIAL) | book.monitored * int(Flag.MONITORED)
    common |= _has(book, matters & halted[book.leg_view]) * int(Flag.HALTED_CHAIN)
    for b in range(bounds):
        status[b], liquidatable = health.status_of(
            assets[b],
            debts[b],
            unsure=stale | partial,
            unpriced=unpriced | book.partial | doubted,
            unread=unread | isolated,
        )
        flags[b] = common | liquidatable * int(Flag.LIQUIDATABLE)
    barred = book.monitored | blind | unread | isolated | (book.home < 0) | ~np.isfinite(room)
    as_of = np.full(count, cut_time, dtype=np.int64)
    seen_at = np.array([*(view.block.time if view and view.block else cut_time for view in views), cut_time])
    np.minimum.at(as_of, book.leg_account[matters], seen_at[book.leg_view[matters]])
    out = {
        Finding("out-of-range", book.accounts[i].id, "a number left the range of the wire: the account counts 0")
        for i in np.flatnonzero(isolated)
    }
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
        book=book,
        tables=tables,
        assets=assets,
        debts=debts,
        equity=equity,
        budget=np.where(barred, 0.0, np.maximum(room, 0.0)),
        as_of=as_of,
        flags=flags,
        status=status,
        isolated=isolated,
    )


def leaves(report: MarginReport) -> tuple[LeafValues, ...]:
    """Return the leaf of every (account, destination): accounts ascending, destinations ascending by id."""
    columns = [_leaves_at(report, d, slice(None)) for d in range(len(report.destinations))]
    return tuple(leaf for row in zip(*columns, strict=True) for leaf in row)


def explain(report: MarginReport, index: int, world: World) -> AccountMargin:
    """Unfold one account: every position's part at the account's home destination, and the leaf of every destination.

    The counted numbers of the components add up to the leaf's, but for rounding: never to more assets or fewer debts,
    except that a debt which could not be read has no component, and adds 1e-8 USD to the leaf's requirement.

    Args:
        index: of the account in ``report.accounts``.
    """
    account = report.accounts[index]
    b = int(report.tables.bound[max(int(report.book.home[index]), 0)]) if report.destinations else 0
    assets, debts = report.assets[b, :, :, index], report.debts[b, :, :, index]
    excess = assets[:, MAINTENANCE] - debts[:, MAINTENANCE]
    own, owed = usd_down(assets[LOW, MAINTENANCE]), usd_up(debts[LOW, MAINTENANCE])
    return AccountMargin(
        account=account.id,
        status=STATUSES[int(report.status[b, index])],
        flags=Flag(int(report.flags[b, index])),
        equity=usd_down(report.equity[index]),
        free_collateral=usd_down(assets[LOW, INITIAL]) - usd_up(debts[LOW, INITIAL]),
        maintenance_excess=Interval(own - owed, usd_down(excess[MID]), usd_up(excess[HIGH])),
        health=(
            health.ratio(own, owed),
            health.ratio(float(assets[MID, MAINTENANCE]), float(debts[MID, MAINTENANCE])),
            health.ratio(float(assets[HIGH, MAINTENANCE]), float(debts[HIGH, MAINTENANCE])),
        ),
        as_of=int(report.as_of[index]),
        components=_Explainer(report, index, b, world).components(),
        leaves=tuple(
            leaf for d in range(len(report.destinations)) for leaf in _leaves_at(report, d, slice(index, index + 1))
        ),
        findings=tuple(f for f in report.findings if f.scope.split(" ", 1)[0] == account.id),
    )


class _Explainer:
    """Recompute one account row by row, with the very tables of the report."""

    def __init__(self, report: MarginReport, index: int, bound: int, world: World) -> None:
        self._report, self._world, self._bound = report, world, bound
        self._isolated = bool(report.isolated[index])
        first = int(np.searchsorted(report.book.account, index))
        self._book = book = report.book.only(index)
        self._counts = counts = report.tables.counts[first : first + len(book.account)]
        asset_price, debt_price, known, _ = valuation.price_columns(report.prices)
        self._known = known
        self._asset_price, self._debt_price = asset_price[LOW], debt_price[LOW]
        self._muted, _ = valuation.mute(book, known)
        rates = valuation.unit_rates(book.kinds, report.tables, asset_price, debt_price, bound)[LOW]
        coefficient = valuation.group_coefficients(book, report.tables.liquidity)
        capped = (book.group_netting >= 0) & (book.group_side == DEBT)
        adder = valuation.Adder(book)
        self._value: list[Floats] = []  # per level: what each row counts, before its share
        self._share: list[Floats] = []
        self._liquidity: list[Floats] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for level in (INITIAL, MAINTENANCE):
                raw = valuation.countable(book, book.free, counts) * rates[level][book.kind]
                groups = valuation.sum_by(book.group, raw, len(book.group_start))
                thin = 1 - 1 / valuation.liquidity_divisors(book, groups, coefficient)
                values = np.where(self._muted, 0.0, groups * (1 - thin))
                share = np.where(self._muted, 0.0, 1.0)
                if capped.any():
                    counted = adder.set_debts(values)
                    owed = valuation.sum_by(book.group_netting[capped], values[capped], len(counted))
                    part = np.divide(counted, owed, out=np.ones_like(counted), where=owed > 0)
                    share[capped] *= part[book.group_netting[capped]]
                self._value.append(raw * (1 - thin[book.group]))
                self._share.append(share[book.group])
                self._liquidity.append(thin[book.group])

    def components(self) -> tuple[Component, ...]:
        return tuple(self._component(row) for row in range(len(self._book.positions)))

    def _component(self, row: int) -> Component:
        book, tables, position = self._book, self._report.tables, self._book.positions[row]
        kind = int(book.kind[row])
        v, f, p = int(book.kinds.view[kind]), int(book.kinds.feed[kind]), int(book.kinds.policy[kind])
        debt = bool(book.kinds.side[kind] != ASSET)
        band = self._report.prices[f] if f < len(self._report.prices) else _NO_PRICE
        price = self._debt_price if debt else self._asset_price
        held, unit = self._world.assets.get(position.asset), self._world.assets.get(position.unit)
        view = self._report.chains[v] if v < len(self._report.chains) else None
        dead = 0.0 if not debt and (self._isolated or tables.stale[v]) else 1.0
        shares = [float(self._share[level][row]) * dead for level in (INITIAL, MAINTENANCE)]
        return Component(
            position=position,
            symbol=held.symbol if held else position.asset[-64:],
            unit_symbol=unit.symbol if unit else position.unit[-64:],
            decimals=unit.decimals if unit else 0,
            feed=band.feed,
            price_low=band.low,
            price_mid=band.mid,
            price_high=band.high if band.known else float(self._debt_price[MAINTENANCE, f]),
            price_initial=float(price[INITIAL, f]),
            horizon=float(tables.horizon[p, v, self._bound]),
            age=max(0, view.age) if view else 0,
            initial=self._haircuts(row, INITIAL),
            maintenance=self._haircuts(row, MAINTENANCE),
            liability_weight_initial=float(tables.liability_weight[p, INITIAL]),
            liability_weight_maintenance=float(tables.liability_weight[p, MAINTENANCE]),
            value=_money(float(book.amount[row]) * band.mid, up=debt),
            counted_initial=self._counted(row, INITIAL, shares[INITIAL], debt),
            counted_maintenance=self._counted(row, MAINTENANCE, shares[MAINTENANCE], debt),
            reason=self._reason(row, position, band, view, debt) + self._carried(v),
            share_initial=shares[INITIAL],
            share_maintenance=shares[MAINTENANCE],
        )

    def _haircuts(self, row: int, level: int) -> Haircuts:
        book, tables = self._book, self._report.tables
        kind = int(book.kind[row])
        p, v = book.kinds.policy[kind], book.kinds.view[kind]
        if book.kinds.side[kind] != ASSET:
            return Haircuts(float(tables.debt_rise[p, v, self._bound, level]), 0.0, 0.0, 0.0)
        thin = float(self._liquidity[level][row])
        return Haircuts(
            market=float(tables.asset_loss[p, v, self._bound, level]),
            liquidity=thin if math.isfinite(thin) else 1.0,
            exit=0.0 if self._counts[row] else 1.0,
            policy=float(tables.policy_haircut[p, level]),
        )

    def _counted(self, row: int, level: int, share: float, debt: bool) -> int:
        counted = _money(float(self._value[level][row]) * share, up=debt)
        blind = debt and share > 0 and not self._known[self._book.kinds.feed[self._book.kind[row]]]
        return max(counted, 1) if blind else counted

    def _reason(self, row: int, position: Position, band: PriceBand, view: ChainView | None, debt: bool) -> str:
        group = int(self._book.group[row])
        if self._book.kinds.feed[self._book.kind[row]] >= len(self._report.prices):
            return (
                "owed, but not valued: it cannot be interpreted, so the account can open no risk"
                if debt
                else "counts 0: it cannot be interpreted (see findings)"
            )
        if self._isolated and not debt:
            return "counts 0: a number of this account is out of range, so none of its assets counts"
        if self._muted[group]:
            return "counts 0: a debt it answers for could not be read or has no known price"
        if debt:
            return self._debt_reason(row, position, band)
        if not self._counts[row]:
            if position.control != "seizable":
                return "counts 0: not in a vault of this deployment, so its owner can remove it before a hold lands"
            return (
                f"counts 0: its owner can remove it {position.removal_delay} s after a request, which may be "
                f"{max(0, view.age) if view else 0} s old, and a hold may take longer to land"
            )
        if self._report.tables.stale[self._book.kinds.view[self._book.kind[row]]]:
            return f"counts 0: {position.chain} is stale ({view.cause if view and view.cause else 'too old'})"
        if not band.known:
            return f"counts 0: the price of {band.feed} is unknown ({band.detail})"
        pending = (
            "; what is under a withdrawal request counts 0, as it may leave at any time" if position.pending else ""
        )
        if self._book.monitored[0]:
            return (
                "counts for information: the account is monitored, so the exit gate is off and it has no budget"
                + pending
            )
        return f"counts: a hold lands before its owner can remove it ({position.removal_delay} s){pending}"

    def _carried(self, v: int) -> str:
        """Say how much older than the newest block of its chain the view is that a row is carried from, if it is."""
        views, chain = self._report.chains, int(self._book.chain_of[v])
        view, newest = (views[i] if i < len(views) else None for i in (v, chain))
        if v == chain or view is None or view.block is None or newest is None or newest.block is None:
            return ""
        behind = newest.block.time - view.block.time
        return f"; carried from block {view.block.height}, {behind} s older than the chain's newest"

    def _debt_reason(self, row: int, position: Position, band: PriceBand) -> str:
        if not band.known:
            return f"owed: the price of {band.feed} is unknown ({band.detail}), so the account can open no risk"
        if self._book.netting[row] < 0:
            return "owed: valued at the upper price, raised by what it may gain until it can be closed"
        if self._share[MAINTENANCE][row] < 1 or self._share[INITIAL][row] < 1:
            return f"limited recourse: counts up to what the collateral of {position.venue} counts, and no further"
        return f"limited recourse: less than what the collateral of {position.venue} counts"


_STOPPED = (HALTED, REORGED, FROZEN)
_NO_PRICE = PriceBand("", 0.0, 0.0, 0.0, 0.0, 0.0, False, False, 0, 0)


def _money(value: float, *, up: bool) -> int:
    """Round one component toward safety; what is out of range counts 0 (its account is isolated)."""
    if not abs(value) <= LIMIT:
        return 0
    return usd_up(value) if up else usd_down(value)


def _leaves_at(report: MarginReport, d: int, chosen: slice) -> list[LeafValues]:
    """Return the leaves of the chosen accounts at one destination."""
    b = int(report.tables.bound[d])
    assets, debts = report.assets[b, LOW][:, chosen], report.debts[b, LOW][:, chosen]
    columns = (
        health.round_down(report.equity[chosen]),
        health.round_down(assets[INITIAL]),
        health.round_up(debts[INITIAL]),
        health.round_down(assets[MAINTENANCE]),
        health.round_up(debts[MAINTENANCE]),
        np.where(report.book.home[chosen] == d, report.budget[chosen], 0.0),
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


def _prices(quotes: Sequence[Quote], world: World, now: int) -> tuple[PriceBand, ...]:
    """Fuse every feed that an asset or a source names; age inflates by the most volatile asset priced by the feed."""
    volatility = dict.fromkeys(sorted({a.feed for a in world.assets.values()} | {s.feed for s in world.sources}), 0.0)
    for row in world.assets.values():
        policy = world.policy.assets.get(row.policy)
        volatility[row.feed] = max(volatility[row.feed], policy.volatility if policy else 0.0)
    return tuple(
        fuse(
            feed,
            [s for s in world.sources if s.feed == feed],
            [q for q in quotes if q.feed == feed],
            now,
            sigma,
            world.policy,
        )
        for feed, sigma in volatility.items()
    )


def _cells(
    book: Book, views: Sequence[ChainView | None], tables: RiskTables, destinations: Sequence[str]
) -> tuple[HaircutCell, ...]:
    """List the risk table as committed: exactly the numbers that were used.

    Every policy is listed at the newest view of every chain; at carried views, which may be many, those with rows.
    """
    used = set(zip(book.kinds.policy.tolist(), book.kinds.view.tolist(), strict=True))
    names: tuple[tuple[Literal["initial", "maintenance"], int], ...] = (
        ("initial", INITIAL),
        ("maintenance", MAINTENANCE),
    )
    return tuple(
        HaircutCell(
            policy,
            chain,
            destination,
            name,
            round(tables.horizon[p, v, tables.bound[d]]),
            f"{tables.asset_loss[p, v, tables.bound[d], level]:.{DECIMALS}f}",
            f"{tables.debt_rise[p, v, tables.bound[d], level]:.{DECIMALS}f}",
        )
        for p, policy in enumerate(book.policies)
        for v, chain in enumerate(book.chains)
        if not is_missing(views[v]) and (book.chain_of[v] == v or (p, v) in used)
        for d, destination in enumerate(destinations)
        for name, level in names
    )


def _opening_value(
    book: Book, rate: Floats, tables: RiskTables, known: Bools, adder: valuation.Adder
) -> tuple[Floats, Floats]:
    """Return W+ and W- without home debts at (low, initial), for rates that open risk."""
    quantity = valuation.countable(book, book.free, tables.counts)
    values = valuation.value_groups(book, rate, quantity, valuation.group_coefficients(book, tables.liquidity))
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

    A leg matters where the account owes or holds something there, and on that chain in all owes anything, or holds
    assets that, as last seen, are worth at least a ten-thousandth of its gross value. Anybody can give an account less
    than that on a chain that is dark or about to be; it counts 0 at ``low`` all the same. A link alone does not matter:
    what an address holds in its own right is at worst worth nothing to the account. What is judged is the whole chain,
    so that holdings spread over carried blocks matter as much as at one.

    Args:
        mid: p̂ per feed, closed by the unknown feed's 0.
        gross: of :func:`_gross`.
    """
    asset = book.kinds.side[book.kind] == ASSET
    count = len(book.leg_account)
    owes = valuation.sum_by(book.leg[~asset], book.amount[~asset], count) > 0
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
