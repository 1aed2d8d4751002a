"""Value a book: per-unit rates for every kind of row, then sums over groups, netting sets and accounts (risk.md §6).

Everything is linear in the rows but two things: liquidity, charged on what a pool is worth after its other haircuts,
and limited recourse, which caps the debts of a netting set at its assets. Both leave the account's excess
non-decreasing in every asset and non-increasing in every debt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from aggregator.core.haircut import liquidity_divisor
from aggregator.domain.book import ASSET, CONSUMER_DEBT, DEBT, Book, Bools, Ints, Kinds
from aggregator.domain.price import PriceBand
from aggregator.domain.report import HIGH, INITIAL, LOW, MAINTENANCE, MID, RiskTables
from aggregator.domain.units import USD, Floats


class Totals(NamedTuple):
    """W+ and the two parts of W- per account, USD, shape (A,)."""

    assets: Floats
    debts: Floats  # without consumer debts
    consumer_debts: Floats  # to consumers at destinations


def price_columns(prices: Sequence[PriceBand]) -> tuple[Floats, Floats, Bools, Bools]:
    """Lay bands out as columns, closed by the unknown feed.

    Returns:
        asset and debt prices of shape (end, level, F + 1), all finite, and ``known``, ``opens_risk`` of shape (F + 1,).
        At ``high`` assets take the upper bound where there is one, else p̂; at ``low`` a debt whose upper bound is
        infinite takes the greatest present one, and :func:`mute` sees to it that nothing rests on it.
    """
    assets, debts = np.zeros((3, 2, len(prices) + 1)), np.zeros((3, 2, len(prices) + 1))
    for i, band in enumerate(prices):
        upper = band.high if band.known else max(band.worst, band.mid)
        upper_initial = band.high_initial if band.known else upper
        assets[LOW, :, i] = band.low_initial, band.low
        assets[MID, :, i] = debts[MID, :, i] = band.mid
        assets[HIGH, :, i] = band.high if band.known else band.mid
        debts[LOW, :, i] = upper_initial, upper
        debts[HIGH, :, i] = band.low
    known = np.array([*(band.known for band in prices), False])
    opens = np.array([*(band.opens_risk for band in prices), False])
    return assets, debts, known, opens


def unit_rates(kinds: Kinds, tables: RiskTables, assets: Floats, debts: Floats, bound: int) -> Floats:
    """Return what one unit of each kind counts, USD, shape (end, level, K).

    Assets: price·(1−h_mkt)(1−h_pol), 0 at ``low`` where the view is stale. Debts: price·(1+ES_up)·LW.
    """
    v, f, p = kinds.view, kinds.feed, kinds.policy
    kept = (1 - tables.asset_loss[p, v, bound]) * (1 - tables.policy_haircut[p])  # (K, level)
    owed = (1 + tables.debt_rise[p, v, bound]) * tables.liability_weight[p]
    asset_rate = assets[:, :, f] * kept.T
    asset_rate[LOW] *= ~tables.stale[v]
    rates: Floats = np.where(kinds.side == ASSET, asset_rate, debts[:, :, f] * owed.T)
    return rates


def sum_by(index: Ints, values: Floats, size: int) -> Floats:
    """Return Σ values by index, shape (size,)."""
    return np.bincount(index, values, size).astype(np.float64, copy=False)


def group_coefficients(book: Book, liquidity: Floats) -> Floats:
    """Return the liquidity coefficient of each group; debts have none."""
    coefficients: Floats = np.where(book.group_side == ASSET, liquidity[book.group_policy], 0.0)
    return coefficients


def least_impacts(book: Book, tables: RiskTables) -> Floats | None:
    """Return what x of h_liq is at least for each group, None where no policy says so; debts have none."""
    if tables.least_impact is None:
        return None
    least: Floats = np.where(book.group_side == ASSET, tables.least_impact[book.group_policy], 0.0)
    return least


def value_groups(
    book: Book, rate: Floats, quantity: Floats, coefficient: Floats, least: Floats | None = None
) -> Floats:
    """Return what each group counts, USD, shape (G,): Σ quantity·rate, less liquidity on the size of its pool."""
    if not len(book.group_start):
        return np.zeros(0)
    value = rate.take(book.kind)
    value *= quantity
    total = sum_by(book.group, value, len(book.group_start))
    total /= liquidity_divisors(book, total, coefficient, least)
    return total


def liquidity_divisors(book: Book, total: Floats, coefficient: Floats, least: Floats | None = None) -> Floats:
    """Return 1/(1 − h_liq) of each group. A pool's size is what counts after all other haircuts: what is relied on.

    Args:
        least: of :func:`least_impacts`.
    """
    if book.pools == len(total):
        return liquidity_divisor(np.sqrt(total), coefficient, least=least)
    return liquidity_divisor(np.sqrt(sum_by(book.pool, total, book.pools)).take(book.pool), coefficient, least=least)


def mute(book: Book, known: Bools) -> tuple[Bools, Bools]:
    """Find what must not count at ``low`` because a debt has no upper price, or could not be read.

    A blind debt could be worth anything. In a netting set it mutes the set (which is never below 0); with recourse it
    mutes everything else of value in the account.

    Returns:
        muted groups, shape (G,), and blind accounts, shape (A,).
    """
    blind = (book.group_side != ASSET) & ~known[book.group_feed]
    nets = book.group_netting >= 0
    accounts = book.blind.copy()
    accounts[book.group_account[blind & ~nets]] = True
    sets = np.zeros(len(book.set_account), dtype=np.bool_)
    sets[book.group_netting[blind & nets]] = True
    muted = accounts[book.group_account] & (nets | (book.group_side == ASSET))
    muted[nets] |= sets[book.group_netting[nets]]
    return muted, accounts


CHUNK = 1 << 15
"""Rows that are valued together: what a pass leaves behind then still is in the processor's cache for the next."""


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """Some accounts' rows as sparse matrices, so that gathering, multiplying and summing are one pass over them."""

    accounts: slice
    groups: slice
    free: csr_array  # (groups, K) whole units, without what is under a withdrawal request
    whole: csr_array  # the same with it; the same object where nothing is
    shared: Ints  # groups that share their pool with others, from the chunk's first
    pools: csr_array  # (shared, groups) of ones: what the pool of each of them is made of
    kept: Ints  # which parts there are at all: 0 assets, 1 debts but consumer debts and netting sets, 2 consumer debts
    parts: csr_array  # (kept · accounts, groups) of ones
    sets: slice
    set_assets: csr_array | None  # (sets, groups) of ones; None without netting sets
    set_debts: csr_array | None


class Adder:
    """Value rows and sum them into accounts; the matrices are made once per book."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._counts: Bools | None = None
        self._chunks: tuple[_Chunk, ...] = ()
        side, nets = book.group_side, book.group_netting >= 0
        parts = side == ASSET, (side == DEBT) & ~nets, side == CONSUMER_DEBT
        self._parts = [(where, book.group_account[where]) for where in map(np.flatnonzero, parts)]
        self._set_assets, self._set_debts = (
            (where, book.group_netting[where])
            for where in (np.flatnonzero(nets & (side == ASSET)), np.flatnonzero(nets & (side == DEBT)))
        )

    def add(self, values: Floats) -> Totals:
        """Add up group values, USD. A netting set's debts count up to its assets."""
        count = len(self._book.accounts)
        assets, debts, consumers = (sum_by(account, values[where], count) for where, account in self._parts)
        if len(self._book.set_account):
            debts = debts + sum_by(self._book.set_account, self.set_debts(values), count)
        return Totals(assets, debts, consumers)

    def set_debts(self, values: Floats) -> Floats:
        """Return what each netting set's debts count, USD, shape (S,)."""
        own, owed = (
            sum_by(netting, values[where], len(self._book.set_account))
            for where, netting in (self._set_assets, self._set_debts)
        )
        counted: Floats = np.minimum(own, owed)
        return counted

    def value(
        self,
        rates: Floats,
        whole: Sequence[bool],
        coefficient: Floats,
        muted: Bools,
        low: Sequence[bool],
        least: Floats | None = None,
    ) -> Floats:
        """Value every account under several rates, chunk by chunk.

        Args:
            rates: what a unit of each kind counts, USD, shape (R, K).
            whole: for each rate, whether what is under a withdrawal request counts too.
            coefficient: of each group's liquidity haircut, shape (G,).
            muted: groups that count nothing under the rates marked in ``low``, shape (G,).
            least: of :func:`least_impacts`.

        Returns:
            assets, debts without consumer debts, and consumer debts, shape (3, R, A).
        """
        result = np.zeros((3, len(rates), len(self._book.accounts)))
        any_muted = bool(muted.any())
        for chunk in self._chunks:
            thin, root = coefficient[chunk.groups], np.empty(chunk.groups.stop - chunk.groups.start)
            floor = None if least is None else least[chunk.groups]
            for r, rate in enumerate(rates):
                values = (chunk.whole if whole[r] else chunk.free) @ rate
                np.sqrt(values, out=root)
                if len(chunk.shared):
                    root[chunk.shared] = np.sqrt(chunk.pools @ values)
                values /= liquidity_divisor(root, thin, out=root, least=floor)
                if any_muted and low[r]:
                    values[muted[chunk.groups]] = 0.0
                sums = chunk.parts @ values
                size = chunk.accounts.stop - chunk.accounts.start
                for place, part in enumerate(chunk.kept):
                    result[part, r, chunk.accounts] = sums[place * size : (place + 1) * size]
                if chunk.set_assets is not None and chunk.set_debts is not None:
                    counted = np.minimum(chunk.set_assets @ values, chunk.set_debts @ values)
                    np.add.at(result[1, r], self._book.set_account[chunk.sets], counted)
        return result

    def prepare(self, counts: Bools) -> Adder:
        """Make the matrices for what passes the exit gate, unless they are made; return self."""
        if self._counts is not counts:
            self._counts, self._chunks = counts, tuple(_chunks(self._book, counts))
        return self


def _chunks(book: Book, counts: Bools) -> Iterator[_Chunk]:
    """Cut a book into chunks of whole accounts."""
    free = countable(book, book.free, counts)
    whole = free if book.free is book.amount else countable(book, book.amount, counts)
    kind, rows, kinds = book.kind.astype(np.int32), len(book.account), len(book.kinds.feed)
    row = np.append(book.group_start, rows)
    nets = book.group_netting >= 0
    part = np.where(book.group_side == ASSET, 0, np.where(book.group_side == DEBT, np.where(nets, 3, 1), 2))
    # Netting sets are numbered as their first rows come in a Snapshot, which need not be by account.
    by_account = bool((np.diff(book.set_account) >= 0).all())
    first = 0
    while first < len(book.accounts):
        start = int(np.searchsorted(book.account, first))
        last = len(book.accounts)
        if start + CHUNK < rows:
            last = max(int(book.account[start + CHUNK]), first + 1)
        if not by_account:
            last = len(book.accounts)
        a, b = (int(g) for g in np.searchsorted(book.group_account, [first, last]))
        own = slice(int(row[a]), int(row[b]))
        size, shape = b - a, (b - a, kinds)
        pointer = (row[a : b + 1] - row[a]).astype(np.int32)
        matrix = csr_array((free[own], kind[own], pointer), shape=shape)
        pending = whole is not free and not np.array_equal(whole[own], free[own])
        shared, pools = _shared(book.pool[a:b])
        account, sort = book.group_account[a:b] - first, part[a:b]
        sets = slice(*(int(s) for s in np.searchsorted(book.set_account, [first, last]))) if by_account else slice(None)
        many = len(book.set_account[sets])
        netting = book.group_netting[a:b] - (sets.start or 0)
        kept, parts = _parts(sort, account, last - first)
        yield _Chunk(
            accounts=slice(first, last),
            groups=slice(a, b),
            free=matrix,
            whole=csr_array((whole[own], kind[own], pointer), shape=shape) if pending else matrix,
            shared=shared,
            pools=pools,
            kept=kept,
            parts=parts,
            sets=sets,
            set_assets=_ones(*_members(netting, sort == 0), many, size) if many else None,
            set_debts=_ones(*_members(netting, sort == 3), many, size) if many else None,
        )
        first = last


def _shared(pool: Ints) -> tuple[Ints, csr_array]:
    """Return the groups that share a pool, and the matrix that gives the size of that pool for each of them."""
    starts = np.flatnonzero(np.diff(pool, prepend=-1))
    ends = np.append(starts[1:], len(pool))
    run = np.repeat(np.arange(len(starts)), ends - starts)  # of each group
    length = (ends - starts)[run]
    shared = np.flatnonzero(length > 1)
    count = length[shared]
    columns = np.repeat(starts[run[shared]] - np.cumsum(count) + count, count) + np.arange(count.sum())
    return shared, _ones(np.repeat(np.arange(len(shared)), count), columns, len(shared), len(pool))


def _parts(sort: Ints, account: Ints, accounts: int) -> tuple[Ints, csr_array]:
    """Return which parts groups have, and the matrix that sums them into the accounts' parts."""
    kept = np.flatnonzero(np.bincount(sort, minlength=4)[:3])
    members = [np.flatnonzero(sort == part) for part in kept]
    rows = [account[where] + place * accounts for place, where in enumerate(members)]
    none = np.zeros(0, dtype=np.int64)
    return kept, _ones(np.concatenate([none, *rows]), np.concatenate([none, *members]), len(kept) * accounts, len(sort))


def _members(netting: Ints, chosen: Bools) -> tuple[Ints, Ints]:
    """Return the netting sets, ascending, and the chosen groups in them."""
    where = np.flatnonzero(chosen & (netting >= 0))
    order = np.argsort(netting[where], kind="stable")
    return netting[where][order], where[order]


def _ones(rows: Ints, columns: Ints, height: int, width: int) -> csr_array:
    """Return the matrix with ones at (rows, columns); rows ascend, so that sums add up in the order given."""
    pointer = np.zeros(height + 1, dtype=np.int32)
    np.cumsum(np.bincount(rows, minlength=height), out=pointer[1:])
    return csr_array((np.ones(len(rows)), columns.astype(np.int32), pointer), shape=(height, width))


def value_book(
    book: Book, rates: Floats, tables: RiskTables, known: Bools, adder: Adder | None = None
) -> tuple[Floats, Floats, Floats]:
    """Value every account at every end and level.

    Args:
        rates: of :func:`unit_rates`, shape (end, level, K).

    Returns:
        W+ and W- of shape (end, level, A), and the consumer debts within W- at (low, initial), shape (A,).

    What is under a withdrawal request counts 0 at both levels: its delay may be over, so that nothing keeps it. Only
    maintenance at ``high``, which must not call an account liquidatable too early, still counts it.
    """
    adder = (adder or Adder(book)).prepare(tables.counts)
    muted, blind = mute(book, known)
    ends = [(end, level) for end in (LOW, MID, HIGH) for level in (INITIAL, MAINTENANCE)]
    parts = adder.value(
        rates.reshape(len(ends), -1),
        [place == (HIGH, MAINTENANCE) for place in ends],
        group_coefficients(book, tables.liquidity),
        muted,
        [end == LOW for end, _ in ends],
        least_impacts(book, tables),
    ).reshape(3, 3, 2, len(book.accounts))
    assets, consumers = parts[0], parts[2, LOW, INITIAL]
    debts = parts[1] + parts[2]
    debts[LOW][:, blind] += 1 / USD  # a debt of unknown size or price is never nothing
    return assets, debts, consumers


def countable(book: Book, amount: Floats, counts: Bools) -> Floats:
    """Return the amounts that pass the exit gate; debts, which carry no pending part, always do."""
    quantity: Floats = np.where(counts, amount, 0.0)
    return quantity


def equity(book: Book, mid: Floats, adder: Adder) -> Floats:
    """Return Σ signed amount·p̂ per account, USD, unhaircut; a netting set is never below 0.

    Args:
        mid: p̂ per feed, closed by the unknown feed's 0.
    """
    if not len(book.group_start):
        return np.zeros(len(book.accounts))
    values = sum_by(book.group, book.amount, len(book.group_start)) * mid[book.group_feed]
    total = adder.add(values)
    worth: Floats = total.assets - total.debts - total.consumer_debts
    return worth
