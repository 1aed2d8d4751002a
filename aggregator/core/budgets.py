"""What may be drawn where, so that nobody spends the same margin twice; and how fast budgets may grow. Pure, exact.

An account's free collateral F, before debts to consumers, is shared out among destinations as its owner says. Against
it stands the *charge* of each destination: the greatest of what was drawn there, what an earlier statement still allows
to be drawn there, and what consumers there are seen to be owed. A destination gets more than its charge only out of
what all charges together leave of F. So Σ max(used, usable budget) stays within F whichever of the statements, old or
new, each destination follows; and margin moves from one destination to another only once it cannot be drawn at the
first any more (protocol.md, "Budgets").

Amounts are 1e-8 USD in 64-bit integers, at most ``LARGEST_BUDGET`` each: every sum is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from aggregator.core import valuation
from aggregator.core.margin import health
from aggregator.domain.book import ASSET, CONSUMER_DEBT, LARGEST_BUDGET, Book, Bools, Ints
from aggregator.domain.budgets import PARTS, Level, Levels
from aggregator.domain.policy import GrowthRow
from aggregator.domain.report import INITIAL, LOW, Attribution, MarginReport
from aggregator.domain.units import USD, Floats

WINDOW_SECONDS = 3600
"""Growth is counted by the hour."""
_DOWN = 1 - 2.0**-40
"""Quotients of floats are moved by this before they are rounded down: never above the exact ones."""


def allot(free: Ints, parts: Ints, charge: Ints | None = None) -> Ints:
    """Return what each account may draw at each destination, 1e-8 USD, shape (D, A).

    Args:
        free: F, shape (A,), from 0 to ``LARGEST_BUDGET``.
        parts: the owner's shares, of 10,000, shape (D, A); at most 10,000 per account. 0 = nothing may be drawn there.
        charge: shape (D, A), not negative; None where there is none.

    Returns:
        budgets with Σ_d max(charge, budget) ≤ max(free, Σ_d charge) for every account.
    """
    target = free // PARTS * parts + free % PARTS * parts // PARTS
    if charge is None:
        return target
    busy = np.flatnonzero(charge.any(axis=0))
    if not len(busy):
        return target
    # More than F is as bad as F and a bit.
    charged, wanted = np.minimum(charge[:, busy], free[busy] + 1), target[:, busy]
    left = free[busy] - charged.sum(axis=0)
    slack = np.maximum(left, 0)
    # Where charges exceed F, a destination keeps no more than the others' charges leave: F fell, and so does it.
    kept = np.minimum(np.minimum(wanted, charged), np.maximum(charged + left, 0))
    need = wanted - kept
    total = need.sum(axis=0)
    part = need * _DOWN * (slack / np.maximum(total, 1))
    more = np.where(need == total, slack, part.astype(np.int64))
    target[:, busy] = kept + np.where(total <= slack, need, np.minimum(more, need))
    return target


class Draws:
    """What consumers are owed, and what registries say was drawn, by destination and account of one book."""

    def __init__(self, book: Book) -> None:
        self._shape = book.parts.shape
        self._count = len(book.accounts)
        rows = np.flatnonzero(book.kinds.side[book.kind] == CONSUMER_DEBT)
        place = book.place[book.chain_of[book.kinds.view[book.kind[rows]]]]
        rows, place = rows[place >= 0], place[place >= 0]
        self._kind, self._amount = book.kind[rows], book.amount[rows]
        self._key = place * self._count + book.account[rows]
        self._claims = book.claims
        self._pairs = np.zeros(0, dtype=np.int64)
        if book.claims is not None:
            self._pairs = np.flatnonzero(book.claims.used.ravel() > 0)
            self._used = book.claims.used.ravel()[self._pairs] / USD
            at = np.minimum(np.searchsorted(self._pairs, self._key), max(len(self._pairs) - 1, 0))
            self._known = np.flatnonzero(self._pairs[at] == self._key) if len(self._pairs) else at[:0]
            self._pair = at[self._known]

    def debts(self, rate: Floats) -> Floats | None:
        """Return what consumers are owed, USD, shape (D, A); None where nobody owes anything.

        Args:
            rate: what a unit of each kind counts, USD, shape (K,).
        """
        if not len(self._key):
            return None
        size = self._shape[0] * self._shape[1]
        return valuation.sum_by(self._key, self._amount * rate[self._kind], size).reshape(self._shape)

    def unexplained(self, rate: Floats) -> Floats | None:
        """Return what was drawn beyond what consumers are seen to be owed, USD, shape (A,); None where nothing was.

        Args:
            rate: of :meth:`debts`.
        """
        if self._claims is None or not (len(self._pairs) or self._claims.elsewhere.any()):
            return None
        found: Floats = self._claims.elsewhere / USD
        if len(self._pairs):
            seen = self._amount[self._known] * rate[self._kind[self._known]]
            left = np.maximum(self._used - valuation.sum_by(self._pair, seen, len(self._pairs)), 0.0)
            found = found + valuation.sum_by(self._pairs % self._count, left, self._count)
        return found

    def charge(self, owed: Floats | None) -> Ints | None:
        """Return the charge of each destination, 1e-8 USD, shape (D, A); None where there is none at all.

        Args:
            owed: what consumers are owed, weighted, USD, shape (D, A).
        """
        charges: list[Floats | Ints] = []
        if owed is not None:
            charges.append(_whole(health.round_up(owed)))
        if self._claims is not None:
            charges += [self._claims.outstanding] + ([_whole(self._claims.used)] if len(self._pairs) else [])
        return np.maximum.reduce(charges) if charges else None


def _whole(values: Floats) -> Ints:
    """Return integral floats as integers from 0 to ``LARGEST_BUDGET``, which stands for all that is more or unknown."""
    bounded = np.nan_to_num(values, nan=LARGEST_BUDGET, posinf=LARGEST_BUDGET, neginf=0.0)
    return np.clip(bounded, 0, LARGEST_BUDGET).astype(np.int64)


def free_of(room: Floats) -> Ints:
    """Return F, of which budgets are given, from free collateral before debts to consumers, 1e-8 USD, integral."""
    return np.clip(np.nan_to_num(room, nan=0.0, posinf=0.0, neginf=0.0), 0, LARGEST_BUDGET).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class _Base:
    """What levels say of A accounts in one window."""

    base: Ints  # (A,)
    peak: Ints  # (A,)
    spent: dict[str, int]

    @property
    def attested(self) -> Ints:
        """Up to where growth is recovery."""
        return np.maximum(self.base, self.peak)


def window_of(cut_time: int) -> int:
    """Return the number of the window that a cut is in."""
    return cut_time // WINDOW_SECONDS


def _base(levels: Levels, window: int, accounts: Sequence[str]) -> _Base:
    """Return where accounts stand in ``window``.

    A later window begins with the most that was attested in the last one in which anything was: an outage is no reason
    to start from nothing.
    """
    names = list(map(itemgetter(0), levels.accounts))
    base, peak = (
        np.fromiter(map(itemgetter(place), levels.accounts), dtype=np.int64, count=len(names)) for place in (1, 2)
    )
    spent = dict(levels.spent)
    if window != levels.window:
        base, peak, spent = peak, np.zeros_like(peak), {}
    if names == list(accounts):
        return _Base(base, peak, spent)
    at = {name: i for i, name in enumerate(names)}
    where = np.fromiter((at.get(account, -1) for account in accounts), dtype=np.int64, count=len(accounts))
    base, peak = (np.where(where >= 0, np.append(column, 0)[where], 0) for column in (base, peak))
    return _Base(base, peak, spent)


def attribute(report: MarginReport, accounts: Bools) -> Attribution:
    """Return what stands behind the chosen accounts, shape (A,): by what their assets count at (low, initial).

    What contracts gain stands behind nobody here: it settles in dollars, and is capped by the account.
    """
    book, tables = report.book, report.tables
    asset_price, debt_price, _, opens = valuation.price_columns(report.prices)
    bound = tables.horizon.shape[2] - 1  # the longest: the least that is counted anywhere
    rate = valuation.unit_rates(book.kinds, tables, asset_price, debt_price, bound)[LOW, INITIAL]
    rate = np.where((book.kinds.side == ASSET) & ~opens[book.kinds.feed], 0.0, rate)
    with np.errstate(over="ignore", invalid="ignore"):
        values = valuation.value_groups(
            book,
            rate,
            valuation.countable(book, book.free, tables.counts),
            valuation.group_coefficients(book, tables.liquidity),
            valuation.least_impacts(book, tables),
        )
    values = np.nan_to_num(values, nan=0.0, posinf=0.0)
    chosen = (book.group_side == ASSET) & accounts[book.group_account] & (values > 0)
    owner, value = book.group_account[chosen], values[chosen]
    whole = valuation.sum_by(owner, value, len(book.accounts))
    part = np.minimum(np.ceil(value / whole[owner] * PARTS), PARTS).astype(np.int64)
    return Attribution(owner, book.group_feed[chosen], part)


def cap_growth(
    budgets: Ints, levels: Levels, cut_time: int, growth: GrowthRow, report: MarginReport
) -> tuple[Ints, Attribution]:
    """Return budgets that grow no faster than the policy allows, and what stands behind the accounts that may grow.

    Within a window an account's budgets together reach the greater of what was attested before and its allowance on
    top of the window's base. What is beyond what was attested is growth of the assets behind it, too; where an asset
    would grow too much, all who grow on it do so in proportion.

    Args:
        budgets: shape (D, A), of ``report``.
    """
    accounts = [account.id for account in report.accounts]
    base = _base(levels, window_of(cut_time), accounts)
    allowance = growth.account_usd * USD + growth.account_ratio * base.base
    limit = np.maximum(base.attested, base.base + np.minimum(allowance, LARGEST_BUDGET).astype(np.int64))
    total = budgets.sum(axis=0)
    allowed = np.minimum(total, limit)
    grown = np.maximum(allowed - base.attested, 0)
    lines = attribute(report, total > base.attested)
    factor = _factors(grown, lines, base.spent, growth, report.book.feeds)
    allowed -= np.where(factor < 1, grown - np.floor(grown * factor * _DOWN).astype(np.int64), 0)
    cut = np.flatnonzero(allowed < total)
    if len(cut):
        whole, share = budgets[:, cut], allowed[cut] / total[cut] * _DOWN
        parts = np.floor(whole * share).astype(np.int64)
        most, each = whole.argmax(axis=0), np.arange(len(cut))
        rest = allowed[cut] - parts.sum(axis=0)  # of roundings
        parts[most, each] = np.minimum(parts[most, each] + rest, whole[most, each])
        budgets = budgets.copy()
        budgets[:, cut] = parts
    return budgets, lines


def _factors(grown: Ints, lines: Attribution, spent: dict[str, int], growth: GrowthRow, feeds: Sequence[str]) -> Floats:
    """Return which part of each account's growth the assets behind it allow, shape (A,)."""
    factor = np.ones(len(grown))
    growing = grown[lines.account] > 0
    if not growing.any():
        return factor
    feed, amount = lines.feed[growing], _portion(grown[lines.account], lines.part)[growing]
    wanted = valuation.sum_by(feed, amount.astype(np.float64), len(feeds))
    count = np.bincount(feed, minlength=len(feeds))
    left = np.array([max(0, growth.asset_usd * USD - spent.get(name, 0)) for name in feeds], dtype=np.float64)
    # Every line is rounded up once more when what was spent is counted.
    scale = np.where(wanted > left, np.maximum(left - count, 0) / np.maximum(wanted, 1), 1.0)
    np.minimum.at(factor, lines.account[growing], scale[feed])
    return factor


def _portion(amount: Ints, part: Ints) -> Ints:
    """Return ``amount·part/10,000``, rounded up."""
    portion: Ints = amount // PARTS * part - (-(amount % PARTS * part) // PARTS)
    return portion


def next_levels(
    levels: Levels, cut_time: int, accounts: Sequence[str], total: Ints, lines: Attribution, feeds: Sequence[str]
) -> Levels:
    """Return what a statement leaves for the next one to grow from.

    Args:
        levels: what the statement before left.
        accounts: ids, ascending.
        total: what each may draw in all by the statement, as it is signed, 1e-8 USD, shape (A,).
        lines: what stands behind those that may have grown.
    """
    window = window_of(cut_time)
    base = _base(levels, window, accounts)
    peak = np.maximum(base.peak, total)
    grown = np.maximum(total - base.attested, 0)
    more = np.zeros(len(feeds), dtype=np.int64)
    np.add.at(more, lines.feed, _portion(grown[lines.account], lines.part))
    spent = base.spent | {feed: base.spent.get(feed, 0) + int(x) for feed, x in zip(feeds, more, strict=True) if x}
    kept = np.flatnonzero((base.base > 0) | (peak > 0))
    columns = (kept.tolist(), base.base[kept].tolist(), peak[kept].tolist())
    rows = tuple(Level(accounts[i], b, p) for i, b, p in zip(*columns, strict=True))
    return Levels(window, rows, tuple(sorted(spent.items())))
