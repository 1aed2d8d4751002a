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
from aggregator.domain.book import ASSET, DEBT, Book, Bools, build_book, is_missing
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
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow, PolicyRow, SourceRow
from aggregator.domain.snapshot import ChainView, Finding, Position, Snapshot
from aggregator.domain.units import Floats, usd_down, usd_up

LIMIT = 1e30
"""USD; beyond it an account is isolated. The wire carries 128 bits of 1e-8 USD."""
DUST = 1e-4
"""Share of an account's gross value below which its assets on one chain say nothing about its freshness."""


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


def compute_report(snapshot: Snapshot, quotes: Sequence[Quote], world: World) -> MarginReport:
    """Value every account at every destination.

    The same inputs in any order give the same report. An account whose numbers leave the range of the wire is isolated:
    it counts no assets, and no other account changes.
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
    by_chain = {view.chain: view for view in snapshot.chains}
    views = tuple(by_chain.get(chain) for chain in chains)
    tables = build_tables(book, views, tuple(chains.values()), destinations, world, snapshot.valid_until)
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
) -> RiskTables:
    """Look up everything that depends on (policy, chain, clock bound), and the exit gate of every row.

    The horizon of collateral on chain c for destination d is ``valid_until + clock bound of d − block time of c``, for
    which the attested number is usable, plus the policy's time to liquidate.
    """
    policies = [world.policy.assets[name] for name in book.policies]
    bounds = sorted({row.clock_bound for row in destinations}) or [0]
    shape = (len(policies) + 1, len(chains) + 1, len(bounds))
    horizon = np.zeros(shape)
    loss, rise = np.ones((*shape, 2)), np.zeros((*shape, 2))
    stale = np.ones(len(chains) + 1, dtype=np.bool_)
    slowest = np.full(len(chains) + 1, np.iinfo(np.int64).max)
    seen = [c for c, view in enumerate(views) if not is_missing(view)]
    for c in seen:
        view = views[c]
        assert view is not None
        assert view.block is not None
        age = max(0, view.age)
        for p, policy in enumerate(policies):
            for b, clock_bound in enumerate(bounds):
                usable = valid_until + clock_bound - view.block.time
                horizon[p, c, b] = max(0, usable) + policy.liquidation_seconds
        stale[c] = view.status != "ok" or age > chains[c].max_age
        # A request to withdraw may have followed the block we saw at once: it has had `age` seconds already.
        slowest[c] = hold_bound(chains[c].hold, world.policy.exit_epsilon) + age
    if seen and policies:
        loss[: len(policies), seen], rise[: len(policies), seen] = haircut_table(policies, horizon[:-1, seen])
    levels = [(policy.initial, policy.maintenance) for policy in policies]
    chain = book.kinds.chain[book.kind]
    gate = book.monitored[book.account] | (book.seizable & (book.delay > slowest[chain]))
    return RiskTables(
        bound=np.array([bounds.index(row.clock_bound) for row in destinations], dtype=np.int64),
        horizon=horizon,
        asset_loss=loss,
        debt_rise=rise,
        policy_haircut=np.array([[i.haircut, m.haircut] for i, m in levels] + [[1.0, 1.0]]),
        liability_weight=np.array([[i.liability_weight, m.liability_weight] for i, m in levels] + [[1.0, 1.0]]),
        liquidity=np.array([*(liquidity_coefficient(p.daily_volume, p.impact, p.volatility) for p in policies), 0.0]),
        stale=stale,
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

    missing = np.array([is_missing(view) for view in views], dtype=np.bool_)
    touches = book.touches[:, : len(views)]
    matters = _matters(book, asset_price[MID, MAINTENANCE])[:, : len(views)]
    unread = touches[:, missing].any(axis=1) | (~book.monitored & bool(missing.any()))
    stale = matters[:, tables.stale[: len(views)] & ~missing].any(axis=1)
    halted = [v is not None and v.status == "stale" and v.cause.startswith("halted") for v in views]
    priceless = ~known[book.group_feed]
    counted = np.zeros(len(book.group_start), dtype=np.bool_)
    counted[book.group[tables.counts]] = True
    unpriced = _any(book, priceless & counted & (book.group_side == ASSET) & (book.group_feed < len(prices)))
    partial = book.partial | unread | isolated | _any(book, priceless)
    _, blind = valuation.mute(book, known)

    flags = np.zeros((bounds, count), dtype=np.int64)
    status = np.zeros((bounds, count), dtype=np.int64)
    common = stale * int(Flag.STALE) | partial * int(Flag.PARTIAL) | book.monitored * int(Flag.MONITORED)
    common |= matters[:, np.array(halted, dtype=np.bool_)].any(axis=1) * int(Flag.HALTED_CHAIN)
    for b in range(bounds):
        status[b], liquidatable = health.status_of(
            assets[b], debts[b], unsure=stale | partial, unpriced=unpriced | book.partial, unread=unread | isolated
        )
        flags[b] = common | liquidatable * int(Flag.LIQUIDATABLE)
    barred = book.monitored | blind | unread | isolated | (book.home < 0) | ~np.isfinite(room)
    as_of = np.full(count, cut_time, dtype=np.int64)
    for c, view in enumerate(views):
        if view is not None and view.block is not None:
            np.minimum(as_of, view.block.time, out=as_of, where=matters[:, c])
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
        c, f, p = int(book.kinds.chain[kind]), int(book.kinds.feed[kind]), int(book.kinds.policy[kind])
        debt = bool(book.kinds.side[kind] != ASSET)
        band = self._report.prices[f] if f < len(self._report.prices) else _NO_PRICE
        price = self._debt_price if debt else self._asset_price
        held, unit = self._world.assets.get(position.asset), self._world.assets.get(position.unit)
        view = self._report.chains[c] if c < len(self._report.chains) else None
        dead = 0.0 if not debt and (self._isolated or tables.stale[c]) else 1.0
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
            horizon=float(tables.horizon[p, c, self._bound]),
            age=max(0, view.age) if view else 0,
            initial=self._haircuts(row, INITIAL),
            maintenance=self._haircuts(row, MAINTENANCE),
            liability_weight_initial=float(tables.liability_weight[p, INITIAL]),
            liability_weight_maintenance=float(tables.liability_weight[p, MAINTENANCE]),
            value=_money(float(book.amount[row]) * band.mid, up=debt),
            counted_initial=self._counted(row, INITIAL, shares[INITIAL], debt),
            counted_maintenance=self._counted(row, MAINTENANCE, shares[MAINTENANCE], debt),
            reason=self._reason(row, position, band, view, debt),
            share_initial=shares[INITIAL],
            share_maintenance=shares[MAINTENANCE],
        )

    def _haircuts(self, row: int, level: int) -> Haircuts:
        book, tables = self._book, self._report.tables
        kind = int(book.kind[row])
        p, c = book.kinds.policy[kind], book.kinds.chain[kind]
        if book.kinds.side[kind] != ASSET:
            return Haircuts(float(tables.debt_rise[p, c, self._bound, level]), 0.0, 0.0, 0.0)
        thin = float(self._liquidity[level][row])
        return Haircuts(
            market=float(tables.asset_loss[p, c, self._bound, level]),
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
        if self._report.tables.stale[self._book.kinds.chain[self._book.kind[row]]]:
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

    def _debt_reason(self, row: int, position: Position, band: PriceBand) -> str:
        if not band.known:
            return f"owed: the price of {band.feed} is unknown ({band.detail}), so the account can open no risk"
        if self._book.netting[row] < 0:
            return "owed: valued at the upper price, raised by what it may gain until it can be closed"
        if self._share[MAINTENANCE][row] < 1 or self._share[INITIAL][row] < 1:
            return f"limited recourse: counts up to what the collateral of {position.venue} counts, and no further"
        return f"limited recourse: less than what the collateral of {position.venue} counts"


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
    """List the risk table as committed: exactly the numbers that were used."""
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
            round(tables.horizon[p, c, tables.bound[d]]),
            f"{tables.asset_loss[p, c, tables.bound[d], level]:.{DECIMALS}f}",
            f"{tables.debt_rise[p, c, tables.bound[d], level]:.{DECIMALS}f}",
        )
        for p, policy in enumerate(book.policies)
        for c, chain in enumerate(book.chains)
        if not is_missing(views[c])
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


def _matters(book: Book, mid: Floats) -> Bools:
    """Find the chains on which an account's legs matter, shape (A, C + 1): these set STALE, HALTED_CHAIN and as_of.

    A chain matters to an account that owes anything there, or whose assets there, as last seen, are worth at least a
    ten-thousandth of its gross value (assets and debts, unhaircut at p̂, under withdrawal or not). Anybody can give an
    account less than that on a chain that is dark or about to be; it counts 0 at ``low`` all the same. A link alone
    does not matter: what an address holds in its own right is at worst worth nothing to the account.

    Args:
        mid: p̂ per feed, closed by the unknown feed's 0.
    """
    width = len(book.chains) + 1
    shape = len(book.accounts), width
    place = book.account * width + book.kinds.chain[book.kind]
    asset = book.kinds.side[book.kind] == ASSET
    owes = valuation.sum_by(place[~asset], book.amount[~asset], shape[0] * width) > 0
    with np.errstate(over="ignore", invalid="ignore"):  # of accounts out of range, which are isolated
        value = book.amount * mid[book.kinds.feed[book.kind]]
        gross = valuation.sum_by(book.account, value, shape[0])
        held = valuation.sum_by(place[asset], value[asset], shape[0] * width).reshape(shape)
        matters: Bools = owes.reshape(shape) | ((held > 0) & (held >= DUST * gross[:, None]))
    return matters


def _isolate(assets: Floats, debts: Floats, equity: Floats) -> Bools:
    """Take the assets away from accounts whose numbers are out of range, in place; return which."""
    fine = (np.abs(assets) <= LIMIT).all(axis=(0, 1, 2)) & (np.abs(debts) <= LIMIT).all(axis=(0, 1, 2))
    isolated: Bools = ~(fine & (np.abs(equity) <= LIMIT))
    assets[..., isolated] = 0.0
    debts[..., isolated] = np.nan_to_num(debts[..., isolated], nan=LIMIT, posinf=LIMIT).clip(0.0, LIMIT)
    equity[isolated] = np.nan_to_num(equity[isolated], nan=0.0, neginf=-LIMIT).clip(-LIMIT, 0.0)
    return isolated


def _any(book: Book, groups: Bools) -> Bools:
    """Return the accounts that have one of the groups."""
    result = np.zeros(len(book.accounts), dtype=np.bool_)
    result[book.group_account[groups]] = True
    return result
