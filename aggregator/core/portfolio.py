"""Add perps and options to the margins of the accounts that have any (risk.md §2, §4, §6). Pure.

What contracts are worth is counted apart from what a margin model requires of them. Of one settlement, the contracts of
one account at one place of a venue, the net worth ``n`` is taken in what it settles in, each contract at its own bound:

    n > 0: W+ gets n·p⁻·(1−h_mkt)(1−h_pol)·w, if the exit gate lets it count
    n < 0: W- gets −n·p⁺·(1+ES_up)·LW

with w = gain_weight_initial of the policy at initial margin, and 1 at maintenance.

An inverse perp settles in its underlying, and pays its worth in USD at p̂; all else settles in what the policy calls a
dollar (``dollars``), pays one for one, and blinds the account if that is far from a dollar. The book takes no others.
At ``low`` nothing gains that may be gone: contracts of a stale view; contracts that their owner can close before a Hold
lands, being at a venue behind no exit gate; and long options that have expired and are not settled. Each of them counts
what it owes by itself.

The requirement R of the account's margin model enters W-, with the market at p̂ at every end.

- ``low``: perps and long options that may be gone are *loose* (:mod:`.margin.scenario`): R is no less than without any
  of them, whichever are gone. And R is the greatest of all contracts', and of those that are left after each expiry
  before the rest could be liquidated: what expires is no hedge of what outlives it. Both levels.
- ``mid``: R of all contracts.
- ``high``: the least of R with and without long options that have expired, and, where what chains' latency implies is
  wider than the policy's range, with that range. Neither an expiry nor a view's age makes anybody liquidatable.

Collateral as a hedge, without a double charge. R is computed twice: (A) for the contracts alone, collateral keeping its
full haircut; (B) with some collateral in the grid. A part x of the collateral of an underlying then counts
(1+:func:`relief`) times as much, as it keeps only its own jumps and listing haircuts, and that part stands in the grid
with exactly what it counts so: ``x·(what all would count)/p̂`` units, at most the contracts' short delta. At ``low``
the delta is that of what is not loose. Each account, end and level takes the alternative that leaves more.

Both are conservative. A adds the loss of the collateral to that of the contracts. In B what is outside the grid keeps
its full haircut, and what is inside moves with the price by no less and no more than it counts; the haircut it leaves
is at most what the model asks of it standing in the grid alone, at that level, so that a grid scaled by a factor below
1, or one narrower than the haircut, leaves it the rest. Nothing of a stale view hedges. And both grow with the
collateral: what it adds to B in the grid costs at most its move of less than all of its worth, and what it dilutes of
the hedge is bounded by :data:`MOST_RELIEF`.

Everything is done for the accounts with contracts only, and for all of them at once; none depends on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from aggregator.core import valuation
from aggregator.core.contracts import contract_values, is_option
from aggregator.core.greeks import row_greeks
from aggregator.core.haircut import liquidity_divisor
from aggregator.core.models import PEGGED, Prepared, either, greater, prepare
from aggregator.core.tables import exit_gate
from aggregator.domain.book import ASSET, Book, Bools, Contracts, Ints
from aggregator.domain.contracts import LAYERS, Instruments, Market, Portfolios, Requirement
from aggregator.domain.policy import ModelName, PolicyRow
from aggregator.domain.price import PriceBand
from aggregator.domain.report import HIGH, INITIAL, LOW, MAINTENANCE, MID, Derivatives, RiskTables
from aggregator.domain.snapshot import ChainView
from aggregator.domain.units import Floats

FOREVER = np.iinfo(np.int64).max
"""When perps expire."""
MOST_STAGES = 6
"""Of what remains of an account as its options expire, one after the other."""
LARGEST_RANGE = 0.95
"""Of R_u: an asset that counts nothing must not move a price to 0."""
FARTHEST = 2.0
"""Times a dollar, or parts of it, that a dollar token is worth; beyond, nobody knows what contracts in it pay."""
MOST_RELIEF = 2.0
"""By which collateral may count more at most for being a hedge: (1−hedged_loss)/(1−h_mkt) up to here. With it, adding
to the collateral that is relieved least never costs more than it brings."""


def value_derivatives(
    book: Book,
    prices: Sequence[PriceBand],
    tables: RiskTables,
    views: Sequence[ChainView | None],
    policy: PolicyRow,
    now: int,
) -> Derivatives | None:
    """Compute what contracts add to W+ and W-, None where nobody has any.

    Args:
        views: along the view axis of the book.
        now: the cut, Unix seconds.
    """
    if book.contracts is None:
        return None
    work = _Work(book, book.contracts, prices, tables, views, policy, now)
    with np.errstate(over="ignore", invalid="ignore"):
        return work.derivatives()


def portfolio_of(portfolios: Portfolios, account: int) -> Portfolios:
    """Return the portfolio of one account, with the instruments it holds."""
    rows = slice(*np.searchsorted(portfolios.account, [account, account + 1]))
    held, instrument = np.unique(portfolios.instrument[rows], return_inverse=True)
    of = portfolios.instruments
    return Portfolios(
        accounts=1,
        account=np.zeros(len(instrument), dtype=np.int64),
        instrument=instrument,
        size=portfolios.size[rows],
        entry=portfolios.entry[rows],
        funding=portfolios.funding[rows],
        spot=portfolios.spot[account : account + 1],
        instruments=Instruments(of.kind[held], of.underlying[held], of.strike[held], of.expiry[held]),
    )


def _choose(portfolios: Portfolios, chosen: Ints, rows: Bools) -> Portfolios:
    """Return the portfolios of some accounts, of the same instruments.

    Args:
        chosen: their places, ascending. rows: theirs, shape (N,).
    """
    return replace(
        portfolios,
        accounts=len(chosen),
        account=np.searchsorted(chosen, portfolios.account[rows]),
        instrument=portfolios.instrument[rows],
        size=portfolios.size[rows],
        entry=portfolios.entry[rows],
        funding=portfolios.funding[rows],
        spot=portfolios.spot[chosen],
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Required:
    """A requirement over C accounts: at all ends, and what it consists of at ``low``."""

    total: Floats  # (end, level, C)
    layers: Floats  # (level, layer, C)
    rows: Floats  # (level, N)
    spot: Floats  # (level, C, U)
    binding: tuple[str, ...]

    def updated(self, other: _Required, who: Bools, account: Ints) -> _Required:
        """Return this one with what ``other`` has of the accounts in ``who``.

        Args:
            account: of every row, shape (N,).
        """
        pairs = zip(self.binding, other.binding, who.tolist(), strict=True)
        return _Required(
            np.where(who, other.total, self.total),
            np.where(who, other.layers, self.layers),
            np.where(who[account], other.rows, self.rows),
            np.where(who[:, None], other.spot, self.spot),
            tuple(theirs if there else own for own, theirs, there in pairs),
        )


class _Hedges(NamedTuple):
    share: Floats  # (B, level, C, U) at ``low``
    spot: Floats  # (2, C, U) at ``low``, and at ``mid`` and ``high``
    extra: Floats  # (B, end, level, C)


class _Work:
    def __init__(
        self,
        book: Book,
        contracts: Contracts,
        prices: Sequence[PriceBand],
        tables: RiskTables,
        views: Sequence[ChainView | None],
        policy: PolicyRow,
        now: int,
    ) -> None:
        self._book, self._of, self._tables, self._views, self._policy = book, contracts, tables, views, policy
        self._assets, self._debts, self._known, self._opens = valuation.price_columns(prices)
        self._accounts, self._local = np.unique(contracts.account, return_inverse=True)
        self._rates = [
            valuation.unit_rates(book.kinds, tables, self._assets, self._debts, b)
            for b in range(tables.horizon.shape[2])
        ]
        spot = self._assets[MID, MAINTENANCE, contracts.feed]
        self._fine = self._known[contracts.feed] & (spot > 0)
        self._market = Market(
            now=now,
            feeds=contracts.underlyings,
            spot=np.where(self._fine, spot, 1.0),
            confidence=self._confidence(spot),
            range=self._ranges(),
            rows=tuple(policy.underlyings[feed] for feed in contracts.underlyings),
        )
        self._stated = np.array([row.range for row in self._market.rows])
        underlying = contracts.instruments.underlying[contracts.instrument]
        self._underlying, self._priced = underlying, self._fine[underlying]
        feed = book.kinds.feed[contracts.gain_kind]
        self._unit_feed, self._unit = feed, self._assets[MID, MAINTENANCE, feed]
        coin = np.array([name in policy.underlyings for name in book.feeds] + [False])[feed]
        self._rate = np.where(coin & (self._unit > 0), self._unit, 1.0)  # USD of worth that one unit settled pays
        self._dollar = ~coin
        self._prepared: dict[tuple[ModelName, float, bool], Prepared] = {}
        view = book.kinds.view[book.kind[contracts.row]]
        self._stale = tables.stale[view]
        self._portfolios = Portfolios(
            accounts=len(self._accounts),
            account=self._local,
            instrument=contracts.instrument,
            size=np.where(self._priced, contracts.size, 0.0),
            entry=contracts.entry,
            funding=contracts.funding * self._rate[contracts.settlement],
            spot=np.zeros((len(self._accounts), len(contracts.underlyings))),
            instruments=contracts.instruments,
        )
        self._gate = exit_gate(
            book, views, tables.hold, contracts.settlement_account, contracts.gain_kind, contracts.seizable,
            contracts.delay,
        )  # fmt: skip
        option = is_option(contracts.instruments)[contracts.instrument]
        expiry = np.where(option, contracts.instruments.expiry[contracts.instrument], FOREVER)
        short = option & (contracts.size < 0)
        self._expired = (expiry <= now) & ~short
        self._leaves = self._stale | self._expired | ~self._gate[contracts.settlement]
        self._loose = self._leaves & ~short & (self._portfolios.size != 0)
        self._stage = self._stages(expiry, short)

    def derivatives(self) -> Derivatives:
        of, count = self._of, len(self._accounts)
        owner = np.searchsorted(self._accounts, of.settlement_account)
        values = self._values()
        nets = sum_by(of.settlement, values, len(of.settlement_account))
        weight = np.array([self._policy.scenario.gain_weight_initial, 1.0])[None, :, None]
        gains = np.stack([np.maximum(nets, 0.0) * rates[:, :, of.gain_kind] * weight for rates in self._rates])
        losses = np.stack([np.maximum(-nets, 0.0) * rates[:, :, of.loss_kind] for rates in self._rates])
        gains = np.where(self._gate, gains, 0.0)
        unpriced = np.zeros(count, dtype=np.bool_)
        unpriced[self._local[~self._priced]] = True
        unpriced[owner[self._dollar & ~((self._unit >= 1 / FARTHEST) & (self._unit <= FARTHEST))]] = True
        muted = unpriced | valuation.mute(self._book, self._known)[1][self._accounts]
        gains[:, LOW][..., muted[owner]] = 0.0
        worth = nets[MID, MAINTENANCE] * self._unit
        bounds, wide = len(self._rates), (count, len(of.underlyings))
        plain = self._required(np.zeros((2, *wide)), np.ones(count, dtype=np.bool_))
        reach = self._reach()
        hedges, hedged = self._hedges(~muted, reach), plain
        if hedges is None:
            hedges = _Hedges(np.zeros((bounds, 2, *wide)), np.zeros((2, *wide)), np.zeros((bounds, 3, 2, count)))
        else:
            helped: Bools = np.logical_or.reduce(hedges.spot != 0, axis=(0, 2))
            hedged = plain.updated(self._required(hedges.spot, helped), helped, self._local)
        barred = muted.copy()
        barred[self._local[~self._opens[of.feed][self._underlying]]] = True
        barred[owner[~self._opens[self._unit_feed]]] = True
        return Derivatives(
            accounts=self._accounts,
            model=self._models(),
            market=self._market,
            portfolios=self._portfolios,
            priced=self._priced,
            values=values,
            gains=gains,
            losses=losses,
            gate=self._gate,
            worth=valuation.sum_by(owner, worth, count),
            extra=hedges.extra,
            share=hedges.share,
            spot=hedges.spot[0],
            reach=reach,
            hedged=hedges.extra - hedged.total > -plain.total,
            requirement=np.stack([plain.total, hedged.total]),
            layers=np.stack([plain.layers, hedged.layers]),
            rows=np.stack([plain.rows, hedged.rows]),
            spot_rows=hedged.spot,
            binding=(plain.binding, hedged.binding),
            barred=barred,
            blind=unpriced,
        )

    def _confidence(self, spot: Floats) -> Floats:
        """Return max(0, 1 − (p⁺−p⁻)/(p̂·max_spread)) of every underlying; 0 where its price is unknown."""
        low, high = (side[LOW, MAINTENANCE, self._of.feed] for side in (self._assets, self._debts))
        spread = np.divide(high - low, spot, out=np.full_like(spot, np.inf), where=self._fine)
        score: Floats = np.clip(1 - spread / self._policy.max_spread, 0.0, 1.0)
        return score

    def _ranges(self) -> Floats:
        """Return R_u: the policy's range, or the greatest initial haircut of what the feed prices, if that is more.

        Collateral that leaves its haircut for the grid must not find less there. The newest view of every chain with
        such an asset counts, whoever holds anything at it, so that nobody's range depends on anybody else; but none
        that is stale: collateral there hedges nothing, so that a chain that goes dark widens nobody's grid, and the
        range falls back to what the others imply, at least the policy's.
        """
        ranges = []
        for feed, sorts in zip(self._of.underlyings, self._of.priced, strict=True):
            live = [(p, v) for p, v in sorts if not self._tables.stale[v]]
            losses = [float(self._tables.asset_loss[p, v, :, INITIAL].max()) for p, v in live]
            ranges.append(max(self._policy.underlyings[feed].range, min(max(losses, default=0.0), LARGEST_RANGE)))
        return np.array(ranges)

    def _values(self) -> Floats:
        """Return what rows are worth in units of what they settle in, shape (end, level, N)."""
        feed, spot = self._of.feed, self._market.spot
        values = np.empty((3, 2, len(self._of.row)))
        for level in (INITIAL, MAINTENANCE):
            low, high = self._assets[LOW, level, feed], self._debts[LOW, level, feed]
            low = np.where(self._fine, np.minimum(low, spot), spot)
            high = np.where(self._fine, np.maximum(high, spot), spot)
            values[:, level] = contract_values(self._portfolios, self._market, low, high)
        values[HIGH, INITIAL] = values[HIGH, MAINTENANCE]  # what speaks for an account is not guarded by an EMA
        values[LOW][:, self._leaves] = np.minimum(values[LOW][:, self._leaves], 0.0)
        settled: Floats = values / self._rate[self._of.settlement]
        return settled

    def _models(self) -> tuple[ModelName, ...]:
        """Return the margin model of every account, by its class."""
        models = self._policy.models
        monitored = self._book.monitored[self._accounts].tolist()
        return tuple(models.monitored if watched else models.risk_bearing for watched in monitored)

    def _stable(self) -> Floats:
        """Return the price of the worst dollar token that each account's contracts settle in, at most 1, shape (C,)."""
        stable = np.full(len(self._accounts), 1.0)
        dollars = self._dollar & self._known[self._unit_feed] & (self._unit > 0)
        np.minimum.at(
            stable, np.searchsorted(self._accounts, self._of.settlement_account)[dollars], self._unit[dollars]
        )
        return stable

    def _stages(self, expiry: Ints, short: Bools) -> Ints:
        """Return after which of its account's expiries an option is over before the rest is liquidated, shape (N,).

        Options that expire before then are no hedge of what remains: 1 is the account's first such expiry, 2 the next
        one, and so on; 0 what stays. From :data:`MOST_STAGES` on, longs are over with that one and shorts stay.

        Args:
            expiry: Unix seconds, and :data:`FOREVER` of perps. short: whether a row is a short option.
        """
        now, stage = self._market.now, np.zeros(len(expiry), dtype=np.int64)
        soon = np.flatnonzero((now < expiry) & (expiry <= self._until()[self._local]))
        if len(soon):
            keys, place = np.unique(np.stack([self._local[soon], expiry[soon]]), axis=1, return_inverse=True)
            rank = np.arange(keys.shape[1]) - np.searchsorted(keys[0], keys[0]) + 1
            stage[soon] = rank[place.ravel()]
            stage[short & (stage >= MOST_STAGES)] = 0
            np.minimum(stage, MOST_STAGES, out=stage)
        return stage

    def _until(self) -> Floats:
        """Return when what remains of each account's contracts is liquidated at the latest, Unix seconds, shape (C,).

        That is the end of the horizon of its settlements: the attested number is usable until its expiry and the clock
        bound, and then a Hold and the liquidation take their time.
        """
        of, tables, book = self._of, self._tables, self._book
        seen = np.zeros(len(self._views) + 1)
        for v, view in enumerate(self._views):
            if view is not None and view.block is not None:
                seen[v] = view.block.time + tables.hold[book.chain_of[v]]
        view_of, policy = book.kinds.view[of.gain_kind], book.kinds.policy[of.gain_kind]
        until = np.full(len(self._accounts), float(self._market.now))
        owner = np.searchsorted(self._accounts, of.settlement_account)
        np.maximum.at(until, owner, seen[view_of] + tables.known[policy, view_of].max(axis=-1))
        return until

    def _required(self, spot: Floats, who: Bools) -> _Required:
        """Return R of some accounts with collateral in the grid, 0 of the others.

        At ``low`` what is loose counts as such. At ``high`` R is the least one with the policy's own range, and without
        the long options that have expired: neither a view's age nor an expiry must make anybody liquidatable.

        Args:
            spot: at ``low``, and at ``mid`` and ``high``, shape (2, C, U).
            who: which accounts, shape (C,).
        """
        (count, wide), n = spot.shape[1:], len(self._of.row)
        everything = replace(self._portfolios, spot=spot[1])
        found = self._require(everything, who)
        total = np.broadcast_to(np.stack([found.initial, found.maintenance]), (3, 2, count)).copy()
        low, sure = found, replace(everything, spot=spot[0])
        touched = self._holders(self._loose) & who
        if touched.any():
            other = self._require(sure, touched, loose=self._loose)
            low = either(low, other, np.stack([touched, touched]), self._local)
        for stage in range(1, int(self._stage.max(initial=0)) + 1):
            some = self._holders(self._stage == stage) & who
            if some.any():
                later = (self._stage == 0) | (self._stage > stage)
                rest = replace(sure, size=np.where(later, sure.size, 0.0))
                low = greater(low, self._require(rest, some, loose=self._loose), self._local)
        total[LOW] = low.initial, low.maintenance
        wider = self._holders((self._market.range > self._stated)[self._underlying]) & who
        live = replace(everything, size=np.where(self._expired, 0.0, everything.size))
        for portfolios, some, stated in (
            (everything, wider, True),
            (live, self._holders(self._expired) & who, False),
            (live, self._holders(self._expired) & wider, True),
        ):
            if some.any():
                least = self._require(portfolios, some, stated=stated)
                lower = np.minimum(total[HIGH], np.stack([least.initial, least.maintenance]))
                total[HIGH] = np.where(some, lower, total[HIGH])
        return _Required(total, low.layers, low.rows[:, :n], low.rows[:, n:].reshape(2, count, wide), low.binding)

    def _holders(self, rows: Bools) -> Bools:
        """Return the accounts that have one of the rows, shape (C,)."""
        holders = np.zeros(len(self._accounts), dtype=np.bool_)
        holders[self._local[rows]] = True
        return holders

    def _require(
        self, portfolios: Portfolios, who: Bools, *, stated: bool = False, loose: Bools | None = None
    ) -> Requirement:
        """Ask each account's own model, of the accounts in ``who``; nothing is required of the others.

        Models that care see the worst dollar token that the account's contracts settle in.

        Args:
            stated: with the policy's own range.
            loose: which rows may be gone, shape (N,).
        """
        count, wide = portfolios.spot.shape
        own = self._policy.models.risk_bearing, self._policy.models.monitored
        watched = self._book.monitored[self._accounts] & (own[0] != own[1])
        pegged = np.array([name in PEGGED for name in own])[watched.astype(int)]
        prices, which = np.unique(np.where(pegged, self._stable(), 1.0), return_inverse=True)
        sort = np.where(who, 2 * which + watched, -1)
        totals, layers = np.zeros((2, count)), np.zeros((2, len(LAYERS), count))
        rows, spot = np.zeros((2, len(portfolios.account))), np.zeros((2, count, wide))
        binding = np.full(count, "", dtype=object)
        for key in np.unique(sort[who]).tolist():
            mine = sort == key
            chosen, of = np.flatnonzero(mine), mine[portfolios.account]
            part = portfolios if len(chosen) == count else _choose(portfolios, chosen, of)
            found = self._model(own[key % 2], float(prices[key // 2]), stated)(
                part, None if loose is None else loose[of]
            )
            totals[:, chosen] = found.initial, found.maintenance
            layers[:, :, chosen] = found.layers
            rows[:, of] = found.rows[:, : len(part.account)]
            spot[:, chosen] = found.rows[:, len(part.account) :].reshape(2, len(chosen), wide)
            if found.binding:
                binding[chosen] = found.binding
        return Requirement(
            totals[INITIAL],
            totals[MAINTENANCE],
            layers,
            np.hstack([rows, spot.reshape(2, -1)]),
            tuple(binding.tolist()),
        )

    def _model(self, name: ModelName, stable: float, stated: bool) -> Prepared:
        """Return a model at the market, prepared once whoever asks it."""
        key = name, stable, stated
        if key not in self._prepared:
            market = replace(self._market, stable=stable, range=self._stated if stated else self._market.range)
            self._prepared[key] = prepare(name, self._of.instruments, market, self._policy)
        return self._prepared[key]

    def _reach(self) -> Floats:
        """Return what each account's model requires of a unit of an underlying alone, as a part of p̂, (level, C, U)."""
        wide = len(self._of.underlyings)
        none = np.zeros(0, dtype=np.int64)
        units = Portfolios(wide, none, none, *(np.zeros(0),) * 3, np.eye(wide), self._of.instruments)
        own = self._policy.models.risk_bearing, self._policy.models.monitored
        alone = {name: self._model(name, 1.0, False)(units, None) for name in dict.fromkeys(own)}
        parts = np.stack([np.stack([alone[name].initial, alone[name].maintenance]) for name in own]) / self._market.spot
        reach: Floats = np.moveaxis(parts[self._book.monitored[self._accounts].astype(int)], 0, 1)
        return reach

    def _hedges(self, allowed: Bools, reach: Floats) -> _Hedges | None:
        """Return which collateral stands in the grid where it hedges, and what more it counts then; None without any.

        Args:
            allowed: accounts whose collateral counts at ``low``, shape (C,).
            reach: of :meth:`_reach`.
        """
        book, of, tables = self._book, self._of, self._tables
        count, wide = len(self._accounts), len(of.underlyings)
        delta = row_greeks(self._portfolios, self._market).delta
        cells = self._local * wide + self._underlying
        short = [
            valuation.sum_by(cells, -values, count * wide) for values in (np.where(self._loose, 0.0, delta), delta)
        ]
        # Against what surely stays at ``low``; at the others against all, and no less, as they are bounds of it.
        need = np.where(np.repeat(allowed, wide), np.maximum(np.stack([short[0], np.maximum(*short)]), 0.0), 0.0)
        which = np.full(len(book.feeds) + 1, -1)
        which[of.feed] = np.arange(wide)
        who = np.full(len(book.accounts), -1)
        who[self._accounts] = np.arange(count)
        cell = who[book.group_account] * wide + which[book.group_feed]
        chosen = (who[book.group_account] >= 0) & (which[book.group_feed] >= 0)
        chosen &= (book.group_side == ASSET) & (book.group_netting < 0)
        chosen &= np.where(chosen, need[1][np.where(chosen, cell, 0)] > 0, False)
        if not chosen.any():
            return None
        pools = _Pools(book, tables, chosen, cell)
        hedging = pools.counts & ~tables.stale[pools.view]
        own = pools.cell[pools.group]
        ends = [(end, level) for end in (LOW, MID, HIGH) for level in (INITIAL, MAINTENANCE)]
        price = np.tile(self._market.spot, count)
        more = (
            np.stack(
                [
                    [
                        relief(tables, pools.policy, pools.view, b, level, reach[level].reshape(-1)[own])
                        for level in (INITIAL, MAINTENANCE)
                    ]
                    for b in range(len(self._rates))
                ]
            )
            * hedging
        )  # (B, level, row)
        relieved = np.stack(
            [
                [
                    [
                        pools.by_cell(
                            pools.value(rates[end, level], (end, level), 1 + more[b, level], hedging), count * wide
                        )
                        for level in (INITIAL, MAINTENANCE)
                    ]
                    for end in (LOW, MID, HIGH)
                ]
                for b, rates in enumerate(self._rates)
            ]
        )  # (B, end, level, cell) USD, if all that may hedge does
        spot = np.minimum(need, relieved[:, LOW, INITIAL].min(axis=0) / price)
        share = np.zeros_like(relieved)
        np.divide((spot * price)[[0, 1, 1], None], relieved, out=share, where=relieved > 0)
        np.minimum(share, 1.0, out=share)
        extra = np.zeros((len(self._rates), 3, 2, count))
        account = np.arange(count * wide) // wide
        everything = np.ones(len(pools.row))
        for b, rates in enumerate(self._rates):
            for end, level in ends:
                times = 1 + share[b, end, level][own] * more[b, level]
                gain = pools.value(rates[end, level], (end, level), times)
                gain -= pools.value(rates[end, level], (end, level), everything)
                extra[b, end, level] = valuation.sum_by(
                    account, np.maximum(pools.by_cell(gain, count * wide), 0.0), count
                )
        return _Hedges(share[:, LOW].reshape(-1, 2, count, wide), spot.reshape(2, count, wide), extra)


def relief(tables: RiskTables, policy: Ints, view: Ints, bound: int, level: int, reach: Floats) -> Floats:
    """Return by how much collateral that hedges counts more, relatively; 0 where nothing is kept.

    ``min((1−hedged_loss)/(1−h_mkt), 1/(1−reach), MOST_RELIEF) − 1``: it leaves its haircut but for its own jumps, and
    at most as much of it as the model takes back of collateral that stands in the grid alone: a haircut beyond that
    stays, and all of it with models that do not look at collateral.

    Args:
        policy, view, reach: of each row; ``reach`` is what the model requires of what prices it, as a part of p̂.
    """
    kept = 1 - tables.asset_loss[policy, view, bound, level]
    alone = 1 - tables.hedged_loss[policy, view, bound, level]
    ratio = np.divide(alone, kept, out=np.ones_like(kept), where=kept > 0)
    most = 1 / np.maximum(1 - reach, 1 / MOST_RELIEF)
    more: Floats = np.maximum(np.minimum(ratio, most), 1.0) - 1
    return more


class _Pools:
    """The groups of collateral that may hedge, by themselves; their pools lie wholly among them."""

    def __init__(self, book: Book, tables: RiskTables, chosen: Bools, cell: Ints) -> None:
        self.row = np.flatnonzero(chosen[book.group])
        self.group = (np.cumsum(chosen) - 1)[book.group[self.row]]
        self.cell = cell[chosen]  # (account, underlying) by group
        self.kind = book.kind[self.row]
        self.view, self.policy = book.kinds.view[self.kind], book.kinds.policy[self.kind]
        self.counts = tables.counts[self.row]
        self._free = np.where(self.counts, book.free[self.row], 0.0)
        self._whole = np.where(self.counts, book.amount[self.row], 0.0)
        self._coefficient = tables.liquidity[book.group_policy[chosen]]
        least = valuation.least_impacts(book, tables)
        self._least = None if least is None else least[chosen]
        _, self._pool = np.unique(book.pool[chosen], return_inverse=True)

    def value(self, rate: Floats, place: tuple[int, int], times: Floats, rows: Bools | None = None) -> Floats:
        """Return what each group counts, USD, if each row counts ``times`` as much before liquidity.

        Args:
            rows: of which rows; None: all.
        """
        quantity = self._whole if place == (HIGH, MAINTENANCE) else self._free
        counted = rate[self.kind] * quantity * times
        total = valuation.sum_by(self.group, counted, len(self.cell))
        pools = valuation.sum_by(self._pool, total, int(self._pool.max()) + 1)
        if rows is not None:
            total = valuation.sum_by(self.group, np.where(rows, counted, 0.0), len(self.cell))
        worth: Floats = total / liquidity_divisor(np.sqrt(pools)[self._pool], self._coefficient, least=self._least)
        return worth

    def by_cell(self, values: Floats, size: int) -> Floats:
        return valuation.sum_by(self.cell, values, size)


def sum_by(index: Ints, values: Floats, size: int) -> Floats:
    """Return Σ values by index along the last axis, shape (..., size)."""
    flat = values.reshape(-1, values.shape[-1])
    return np.stack([valuation.sum_by(index, row, size) for row in flat]).reshape(*values.shape[:-1], size)
