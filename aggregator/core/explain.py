"""Unfold one account of a report: every position's part, with the very tables of the report. Pure."""

from __future__ import annotations

import math

import numpy as np

from aggregator.core import valuation
from aggregator.core.margin import health
from aggregator.core.pipeline import LIMIT, leaves_at
from aggregator.core.tables import World
from aggregator.domain.book import ASSET, DEBT
from aggregator.domain.price import PriceBand
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
    Haircuts,
    Interval,
    MarginReport,
)
from aggregator.domain.snapshot import ChainView, Position
from aggregator.domain.units import Floats, usd_down, usd_up

_NO_PRICE = PriceBand("", 0.0, 0.0, 0.0, 0.0, 0.0, False, False, 0, 0)


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
            leaf for d in range(len(report.destinations)) for leaf in leaves_at(report, d, slice(index, index + 1))
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


def _money(value: float, *, up: bool) -> int:
    """Round one component toward safety; what is out of range counts 0 (its account is isolated)."""
    if not abs(value) <= LIMIT:
        return 0
    return usd_up(value) if up else usd_down(value)
