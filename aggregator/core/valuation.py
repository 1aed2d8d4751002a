"""Value a book: per-unit rates for every kind of row, then sums over groups, netting sets and accounts (risk.md §6).

Everything is linear in the rows but two things: liquidity, charged on what a pool is worth after its other haircuts,
and limited recourse, which caps the debts of a netting set at its assets. Both leave the account's excess
non-decreasing in every asset and non-increasing in every debt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aggregator.core.haircut import liquidity_divisor
from aggregator.domain.book import ASSET, DEBT, HOME_DEBT, Book, Bools, Ints, Kinds
from aggregator.domain.price import PriceBand
from aggregator.domain.report import HIGH, INITIAL, LOW, MAINTENANCE, MID, RiskTables
from aggregator.domain.units import USD, Floats


class Totals(NamedTuple):
    """W+ and the two parts of W- per account, USD, shape (A,)."""

    assets: Floats
    debts: Floats  # without home debts
    home_debts: Floats  # to consumers at the account's home destination


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


def value_groups(book: Book, rate: Floats, quantity: Floats, coefficient: Floats) -> Floats:
    """Return what each group counts, USD, shape (G,): Σ quantity·rate, less liquidity on the size of its pool."""
    if not len(book.group_start):
        return np.zeros(0)
    value = rate.take(book.kind)
    value *= quantity
    total = sum_by(book.group, value, len(book.group_start))
    total /= liquidity_divisors(book, total, coefficient)
    return total


def liquidity_divisors(book: Book, total: Floats, coefficient: Floats) -> Floats:
    """Return 1/(1 − h_liq) of each group. A pool's size is what counts after all other haircuts: what is relied on."""
    if book.pools == len(total):
        return liquidity_divisor(np.sqrt(total), coefficient)
    return liquidity_divisor(np.sqrt(sum_by(book.pool, total, book.pools)).take(book.pool), coefficient)


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


class Adder:
    """Sum groups into accounts; the index arrays are made once per book."""

    def __init__(self, book: Book) -> None:
        self._accounts = len(book.accounts)
        side, nets = book.group_side, book.group_netting >= 0
        parts = side == ASSET, (side == DEBT) & ~nets, side == HOME_DEBT
        self._parts = [(where, book.group_account[where]) for where in map(np.flatnonzero, parts)]
        self._set_account = book.set_account
        self._set_assets, self._set_debts = (
            (where, book.group_netting[where])
            for where in (np.flatnonzero(nets & (side == ASSET)), np.flatnonzero(nets & (side == DEBT)))
        )

    def add(self, values: Floats) -> Totals:
        """Add up group values, USD. A netting set's debts count up to its assets."""
        assets, debts, home = (sum_by(account, values[where], self._accounts) for where, account in self._parts)
        if len(self._set_account):
            debts = debts + sum_by(self._set_account, self.set_debts(values), self._accounts)
        return Totals(assets, debts, home)

    def set_debts(self, values: Floats) -> Floats:
        """Return what each netting set's debts count, USD, shape (S,)."""
        own, owed = (
            sum_by(netting, values[where], len(self._set_account))
            for where, netting in (self._set_assets, self._set_debts)
        )
        counted: Floats = np.minimum(own, owed)
        return counted


def value_book(
    book: Book, rates: Floats, tables: RiskTables, known: Bools, adder: Adder | None = None
) -> tuple[Floats, Floats, Floats]:
    """Value every account at every end and level.

    Args:
        rates: of :func:`unit_rates`, shape (end, level, K).

    Returns:
        W+ and W- of shape (end, level, A), and the home debts within W- at (low, initial), shape (A,).

    What is under a withdrawal request counts 0 at both levels: its delay may be over, so that nothing keeps it. Only
    maintenance at ``high``, which must not call an account liquidatable too early, still counts it.
    """
    adder = adder or Adder(book)
    coefficient = group_coefficients(book, tables.liquidity)
    muted, blind = mute(book, known)
    any_muted, any_blind = bool(muted.any()), bool(blind.any())
    shape = (3, 2, len(book.accounts))
    assets, debts, home = np.empty(shape), np.empty(shape), np.zeros(len(book.accounts))
    free, whole = (countable(book, amount, tables.counts) for amount in (book.free, book.amount))
    for level in (INITIAL, MAINTENANCE):
        for end in (LOW, MID, HIGH):
            quantity = whole if (end, level) == (HIGH, MAINTENANCE) else free
            values = value_groups(book, rates[end, level], quantity, coefficient)
            if end == LOW and any_muted:
                values[muted] = 0.0
            total = adder.add(values)
            assets[end, level], debts[end, level] = total.assets, total.debts + total.home_debts
            if end == LOW and any_blind:
                debts[end, level, blind] += 1 / USD  # a debt of unknown size or price is never nothing
            if end == LOW and level == INITIAL:
                home = total.home_debts
    return assets, debts, home


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
    worth: Floats = total.assets - total.debts - total.home_debts
    return worth
