"""Unfold one account of a report: every position's part, with the very tables of the report. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from aggregator.core import valuation
from aggregator.core.budgets import Draws
from aggregator.core.greeks import Greeks, row_greeks
from aggregator.core.haircut import explain_loss
from aggregator.core.margin import health
from aggregator.core.pipeline import LIMIT, leaves_at
from aggregator.core.portfolio import portfolio_of, relief
from aggregator.core.tables import World, horizon_nodes
from aggregator.domain.book import ASSET, DEBT, Contracts
from aggregator.domain.contracts import LAYERS, PUT
from aggregator.domain.policy import AssetPolicyRow
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
    ContractPart,
    Derivatives,
    DestinationBudget,
    Explained,
    Exposure,
    Flag,
    Haircuts,
    Interval,
    MarginReport,
    Requirements,
    Settled,
    Settlement,
    Step,
)
from aggregator.domain.snapshot import ChainView, Position
from aggregator.domain.units import UINT128_MAX, USD, Floats, usd_down, usd_up

WALK = (
    *("price bounds", "EMA guard", "market", "depeg", "wrapper", "bridge", "latency", "liquidity", "policy", "exit"),
    *("unread", "recourse", "drawn"),
    *LAYERS,
    "rounding",
)
"""Layers of the walk from equity to free collateral. First what holdings and debts may lose: ``price bounds`` are what
lies between p̂ and the bounds of the sources, ``EMA guard`` what initial margin goes beyond them; ``market`` to
``latency`` are what prices may do until the position is closed (``report.Explained``), with ``latency`` also what
counts nothing as its view is stale; ``policy`` are listing haircuts and weights; ``exit`` is what may leave; ``unread``
counts nothing as a debt is unknown or a number out of range; ``recourse`` is what debts of netting sets cost less than
at p̂; ``drawn`` is what was drawn at destinations beyond the debts that venues show there, as far as their weights do
not cover it (equity has it beyond those debts at p̂). Then what the margin model requires."""
_CAUSES = ("market", "depeg", "wrapper", "bridge", "latency")
_GREEKS = ("delta", "gamma", "vega", "theta", "rho")
_NO_PRICE = PriceBand("", 0.0, 0.0, 0.0, 0.0, 0.0, False, False, 0, 0)


def explain(report: MarginReport, index: int, world: World) -> AccountMargin:
    """Unfold one account: every position's part at the account's home destination, and the leaf of every destination.

    The counted numbers of the components add up to the leaf's, but for rounding: never to more assets or fewer debts.
    Two things are no component's: a debt which could not be read adds 1e-8 USD to the leaf's requirement; and where
    collateral hedges, its part of the margin model's requirement is that of ``greeks``, by underlying
    (:class:`Exposure`), since it is the units in the grid, and not one holding or another, that the model sees.

    Args:
        index: of the account in ``report.accounts``.
    """
    account = report.accounts[index]
    b = int(report.tables.bound[max(int(report.book.home[index]), 0)]) if report.destinations else 0
    assets, debts = report.assets[b, :, :, index], report.debts[b, :, :, index]
    excess = assets[:, MAINTENANCE] - debts[:, MAINTENANCE]
    own, owed = usd_down(assets[LOW, MAINTENANCE]), usd_up(debts[LOW, MAINTENANCE])
    free = usd_down(assets[LOW, INITIAL]) - usd_up(debts[LOW, INITIAL])
    equity = usd_down(report.equity[index])
    work = _Explainer(report, index, b, world)
    side = work.side
    return AccountMargin(
        account=account.id,
        status=STATUSES[int(report.status[b, index])],
        flags=Flag(int(report.flags[b, index])),
        equity=equity,
        free_collateral=free,
        maintenance_excess=Interval(own - owed, usd_down(excess[MID]), usd_up(excess[HIGH])),
        health=(
            health.ratio(own, owed),
            health.ratio(float(assets[MID, MAINTENANCE]), float(debts[MID, MAINTENANCE])),
            health.ratio(float(assets[HIGH, MAINTENANCE]), float(debts[HIGH, MAINTENANCE])),
        ),
        as_of=int(report.as_of[index]),
        components=work.components(),
        leaves=tuple(
            leaf for d in range(len(report.destinations)) for leaf in leaves_at(report, d, slice(index, index + 1))
        ),
        findings=tuple(f for f in report.findings if f.scope.split(" ", 1)[0] == account.id),
        layers=work.walk(equity, (free, own - owed)),
        budgets=work.budgets(),
        free_before_draws=int(report.free[index]),
        **({} if side is None else side.summary(work)),
    )


class _Side:
    """What contracts add to one account: its part of the report's :class:`Derivatives`."""

    def __init__(self, derived: Derivatives, contracts: Contracts, c: int, index: int, bound: int) -> None:
        self.derived, self.c, self.bound = derived, c, bound
        self.rows = slice(*(int(x) for x in np.searchsorted(contracts.account, [index, index + 1])))
        self.settlements = slice(*(int(x) for x in np.searchsorted(contracts.settlement_account, [index, index + 1])))
        self.settlement = contracts.settlement[self.rows] - self.settlements.start
        initial, maintenance = (bool(x) for x in derived.hedged[bound, LOW, :, c])
        self.hedged = initial, maintenance
        self.values = derived.values[:, :, self.rows]
        count = self.settlements.stop - self.settlements.start
        self.nets = np.stack(
            [[np.bincount(self.settlement, row, count) for row in end] for end in self.values]
        )  # (end, level, Q)
        self.gains, self.losses = (
            values[bound, LOW][:, self.settlements] for values in (derived.gains, derived.losses)
        )  # (level, Q)
        self.portfolio = portfolio_of(derived.portfolios, c)
        self.greeks: Greeks = row_greeks(self.portfolio, derived.market)
        self.requirement = [float(derived.requirement[int(h), LOW, level, c]) for level, h in enumerate(self.hedged)]
        self.parts = np.stack(
            [derived.rows[int(h), level, self.rows] for level, h in enumerate(self.hedged)]
        )  # (level, N) Euler

    def summary(self, work: _Explainer) -> dict[str, Any]:
        """Return the fields of :class:`AccountMargin` that only accounts with contracts have."""
        return {
            "requirement": Requirements(*(usd_up(value) for value in self.requirement)),
            "greeks": self._exposures(),
            "settlements": tuple(work.settlement(q) for q in range(self.nets.shape[-1])),
            "model": self.derived.model[self.c],
            "binding": self.derived.binding[int(self.hedged[INITIAL])][self.c],
            "hedged": self.hedged,
        }

    def _exposures(self) -> tuple[Exposure, ...]:
        derived, market = self.derived, self.derived.market
        underlying = self.portfolio.instruments.underlying[self.portfolio.instrument]
        hedge = derived.spot[self.c] if any(self.hedged) else np.zeros(len(market.feeds))
        shares = [derived.spot_rows[level, self.c] * h for level, h in enumerate(self.hedged)]
        return tuple(
            Exposure(
                feed,
                float(market.spot[u]),
                float(market.range[u]),
                **{name: float(getattr(self.greeks, name)[underlying == u].sum()) for name in _GREEKS},
                hedge=float(hedge[u]),
                requirement_initial=round(float(shares[INITIAL][u]) * USD),
                requirement_maintenance=round(float(shares[MAINTENANCE][u]) * USD),
            )
            for u, feed in enumerate(market.feeds)
            if (underlying == u).any()
        )


@lru_cache(maxsize=4096)
def _causes(policy: AssetPolicyRow, nodes: tuple[tuple[float, ...], tuple[float, ...]], level: int) -> dict[str, float]:
    """Return how much of ``h_mkt`` each of the causes of the walk makes up, as shares of 1; none of a haircut of 0."""
    found = dict.fromkeys(_CAUSES, 0.0)
    shares = explain_loss(policy, nodes, level)
    total = sum(shares.values())
    for cause, share in shares.items():
        found[cause if cause in found else "market"] += share / total if total > 0 else 0.0
    return found


class _Explainer:
    """Recompute one account row by row, with the very tables of the report."""

    def __init__(self, report: MarginReport, index: int, bound: int, world: World) -> None:
        self._report, self._world, self._bound = report, world, bound
        self._isolated = bool(report.isolated[index])
        first = int(np.searchsorted(report.book.account, index))
        self.side = self._side_of(index)
        book = report.book.only(index)
        if self.side is not None and self.side.derived.blind[self.side.c]:
            book = replace(book, blind=np.ones(1, dtype=np.bool_))
        self._book = book
        self._counts = counts = report.tables.counts[first : first + len(book.account)]
        asset_price, debt_price, known, _ = valuation.price_columns(report.prices)
        self._known = known
        self._asset_price, self._debt_price = asset_price[LOW], debt_price[LOW]
        self._muted, _ = valuation.mute(book, known)
        rates = valuation.unit_rates(book.kinds, report.tables, asset_price, debt_price, bound)[LOW]
        self._index, self._draws, self._rates = index, Draws(book), rates
        coefficient = valuation.group_coefficients(book, report.tables.liquidity)
        least = valuation.least_impacts(book, report.tables)
        self._place: dict[int, int] = {}  # local row -> place among the account's contracts
        if self.side is not None and book.contracts is not None:
            self._place = {int(row): n for n, row in enumerate(book.contracts.row)}
        self._may_hedge = np.zeros(len(book.account), dtype=np.bool_)
        self._relief = [self._reliefs(level) for level in (INITIAL, MAINTENANCE)]  # per row: by how much it counts more
        self._value: list[Floats] = []  # per level: what each row counts, before its share
        self._share: list[Floats] = []
        self._liquidity: list[Floats] = []
        with np.errstate(over="ignore", invalid="ignore"):
            for level in (INITIAL, MAINTENANCE):
                raw = valuation.countable(book, book.free, counts) * rates[level][book.kind] * (1 + self._relief[level])
                groups = valuation.sum_by(book.group, raw, len(book.group_start))
                thin = 1 - 1 / valuation.liquidity_divisors(book, groups, coefficient, least)
                values = np.where(self._muted, 0.0, groups * (1 - thin))
                self._value.append(raw * (1 - thin[book.group]))
                self._share.append(np.where(self._muted, 0.0, self._recourse(values))[book.group])
                self._liquidity.append(thin[book.group])
            mid = asset_price[MID, MAINTENANCE]
            beyond = self._draws.unexplained(mid[book.kinds.feed])
            self._drawn_mid = 0.0 if beyond is None else float(beyond[0])
            self._share_mid = self._recourse(
                valuation.sum_by(book.group, book.amount, len(book.group_start)) * mid[book.group_feed]
            )[book.group]

    def _recourse(self, values: Floats) -> Floats:
        """Return which part of each group counts: debts of a netting set up to its assets.

        Args:
            values: of the groups, USD.
        """
        book = self._book
        share = np.ones(len(values))
        capped = (book.group_netting >= 0) & (book.group_side == DEBT)
        if capped.any():
            counted = valuation.Adder(book).set_debts(values)
            owed = valuation.sum_by(book.group_netting[capped], values[capped], len(counted))
            part = np.divide(counted, owed, out=np.ones_like(counted), where=owed > 0)
            share[capped] = part[book.group_netting[capped]]
        return share

    def _side_of(self, index: int) -> _Side | None:
        derived, contracts = self._report.derivatives, self._report.book.contracts
        if derived is None or contracts is None:
            return None
        c = int(np.searchsorted(derived.accounts, index))
        if c == len(derived.accounts) or derived.accounts[c] != index:
            return None
        return _Side(derived, contracts, c, index, self._bound)

    def _reliefs(self, level: int) -> Floats:
        """Return by how much each row counts more as it stands in the grid as a hedge, relatively."""
        book, tables, side = self._book, self._report.tables, self.side
        none = np.zeros(len(book.account))
        if side is None or not side.hedged[level] or book.contracts is None:
            return none
        view, policy, feed = (axis[book.kind] for axis in (book.kinds.view, book.kinds.policy, book.kinds.feed))
        share, reach = np.zeros(len(book.feeds) + 1), np.zeros(len(book.feeds) + 1)
        share[book.contracts.feed] = side.derived.share[self._bound, level, side.c]
        reach[book.contracts.feed] = side.derived.reach[level, side.c]
        hedging = np.isin(feed, book.contracts.feed)
        hedging &= (book.kinds.side[book.kind] == ASSET) & (book.netting < 0) & self._counts & ~tables.stale[view]
        self._may_hedge = hedging
        part: Floats = np.where(hedging, share[feed], 0.0) * relief(
            tables, policy, view, self._bound, level, reach[feed]
        )
        return part

    def budgets(self) -> tuple[DestinationBudget, ...]:
        """Return what may be drawn at each destination, and what is charged there."""
        report, book, index = self._report, self._book, self._index
        owed = None if report.owed is None else report.owed[:, index : index + 1]
        charge = self._draws.charge(owed)
        claims = book.claims
        seen = [self._draws.debts(rate) for rate in self._rates]
        found = []
        for d, destination in enumerate(report.destinations):
            used = 0 if claims is None else int(min(claims.used[d, 0], float(UINT128_MAX)))
            shown = [0.0 if debts is None else float(debts[d, 0]) for debts in seen]
            beyond = [_money(max(0.0, used / USD - debts), up=True) for debts in shown]
            found.append(
                DestinationBudget(
                    destination,
                    int(book.parts[d, 0]),
                    int(report.budgets[d, index]),
                    used,
                    0 if claims is None else int(claims.outstanding[d, 0]),
                    0 if owed is None else _money(float(owed[d, 0]), up=True),
                    0 if charge is None else int(charge[d, 0]),
                    *beyond,
                )
            )
        return tuple(found)

    def components(self) -> tuple[Component, ...]:
        return tuple(self._component(row) for row in range(len(self._book.positions)))

    def _component(self, row: int) -> Component:
        book, tables, position = self._book, self._report.tables, self._book.positions[row]
        if row in self._place:
            return self._contract(row, self._place[row])
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
            explained_initial=Explained() if debt else self._explained(row, INITIAL),
            explained_maintenance=Explained() if debt else self._explained(row, MAINTENANCE),
        )

    def _contract(self, row: int, n: int) -> Component:
        """Return the component of a perp or option: place ``n`` among the account's."""
        side = self.side
        assert side is not None
        book, tables, position = self._book, self._report.tables, self._book.positions[row]
        kind = int(book.kind[row])
        v, f, p = int(book.kinds.view[kind]), int(book.kinds.feed[kind]), int(book.kinds.policy[kind])
        band, unit = self._report.prices[f], self._world.assets[position.unit]
        view = self._report.chains[v] if v < len(self._report.chains) else None
        q = int(side.settlement[n])
        gain, loss, needed = [0, 0], [0, 0], [0, 0]
        for level in (INITIAL, MAINTENANCE):
            net = float(side.nets[LOW, level, q])
            part = float(side.values[LOW, level, n]) / net if net else 0.0
            gain[level] = 0 if self._isolated else _money(float(side.gains[level, q]) * part, up=False)
            loss[level] = _money(float(side.losses[level, q]) * part, up=True)
            needed[level] = _money(float(side.parts[level, n]), up=True)
        greeks = Greeks(*(values[n] for values in side.greeks))
        made = ContractPart(
            size=float(side.portfolio.size[n]),
            mark=float(greeks.mark),
            volatility=float(greeks.volatility),
            value=_money(float(side.values[MID, MAINTENANCE, n]) * band.mid, up=False),
            delta=float(greeks.delta),
            gamma=float(greeks.gamma),
            vega=float(greeks.vega),
            theta=float(greeks.theta),
            rho=float(greeks.rho),
            gain=(gain[0], gain[1]),
            loss=(loss[0], loss[1]),
            requirement=(needed[0], needed[1]),
            **self._adverse(n, band.mid),
        )
        weights = tables.liability_weight[p]
        cut = [
            Haircuts(
                float(tables.asset_loss[p, v, self._bound, level]), 0.0, 0.0, float(tables.policy_haircut[p, level])
            )
            for level in (INITIAL, MAINTENANCE)
        ]
        counted = [gain[level] - loss[level] - needed[level] for level in (INITIAL, MAINTENANCE)]
        return Component(
            position=position,
            symbol=f"{position.contract.underlying} {position.contract.kind}",
            unit_symbol=unit.symbol,
            decimals=unit.decimals,
            feed=band.feed,
            price_low=band.low,
            price_mid=band.mid,
            price_high=band.high if band.known else float(self._debt_price[MAINTENANCE, f]),
            price_initial=float(self._asset_price[INITIAL, f]),
            horizon=float(tables.horizon[p, v, self._bound]),
            age=max(0, view.age) if view else 0,
            initial=cut[INITIAL],
            maintenance=cut[MAINTENANCE],
            liability_weight_initial=float(weights[INITIAL]),
            liability_weight_maintenance=float(weights[MAINTENANCE]),
            value=made.value,
            counted_initial=counted[INITIAL],
            counted_maintenance=counted[MAINTENANCE],
            reason=self._contract_reason(n, position) + self._carried(v),
            contract=made,
        )

    def _adverse(self, n: int, unit: float) -> dict[str, Any]:
        """Return ``price``, ``bound`` and ``worst`` of a contract's part: at which price of its underlying it counts.

        Args:
            unit: p̂ of what it settles in, USD.
        """
        side, of = self.side, self._book.contracts
        assert side is not None
        assert of is not None
        values = side.values[LOW, :, n].tolist()
        worst = (_money(values[INITIAL] * unit, up=False), _money(values[MAINTENANCE] * unit, up=False))
        if not side.derived.priced[side.rows][n]:
            return {"worst": worst}
        instrument = int(of.instrument[n])
        underlying = int(of.instruments.underlying[instrument])
        falls = (float(of.size[n]) > 0) == (int(of.instruments.kind[instrument]) != PUT)  # loses as the price falls
        f, spot = int(of.feed[underlying]), float(side.derived.market.spot[underlying])
        column = (self._asset_price if falls else self._debt_price)[:, f].tolist()
        price = [min(p, spot) if falls else max(p, spot) for p in column]
        plain = "lower" if falls else "upper"
        guarded = price[INITIAL] != price[MAINTENANCE]
        return {"price": tuple(price), "bound": ("EMA" if guarded else plain, plain), "worst": worst}

    def _contract_reason(self, n: int, position: Position) -> str:
        side = self.side
        assert side is not None
        terms, now = position.contract, side.derived.market.now
        if not side.derived.priced[side.rows][n]:
            return f"may owe any amount: the price of {terms.underlying} is unknown, so the account can open no risk"
        words = f"part of what {position.venue} settles in one amount"
        if terms.kind in ("call", "put") and terms.expiry <= now:
            words = "expired and not settled by its venue: at what it would pay now"
            if position.side == "asset":
                words += ", which counts 0 for the account"
        return words

    def settlement(self, q: int) -> Settlement:
        """Return what the account's contracts of one settlement come to."""
        side, of = self.side, self._book.contracts
        assert side is not None
        assert of is not None
        n = int(np.flatnonzero(side.settlement == q)[0])
        position = self._book.positions[int(of.row[n])]
        unit = self._world.assets[position.unit]
        kind = int(of.gain_kind[q])
        mid = self._report.prices[int(self._book.kinds.feed[kind])].mid
        view = int(self._book.kinds.view[kind])
        low = side.nets[LOW, :, q]
        if low[MAINTENANCE] < 0:
            reason = "owed: valued at the upper price, raised by what it may gain until it can be closed"
        elif not side.derived.gate[side.settlements][q]:
            reason = "gains count 0: their owner can remove them before a hold lands"
        elif self._report.tables.stale[view]:
            reason = f"gains count 0: {position.chain} is stale"
        elif side.gains[MAINTENANCE, q] == 0 and low[MAINTENANCE] > 0:
            reason = "gains count 0: a debt of the account is unknown or has no known price"
        else:
            reason = "gains count like collateral: a hold lands before their owner can remove them"
        return Settlement(
            chain=position.chain,
            venue=position.venue,
            origin=position.origin,
            unit_symbol=unit.symbol,
            net=_money(float(side.nets[MID, MAINTENANCE, q]) * mid, up=False),
            low_initial=_money(float(low[INITIAL]) * mid, up=False),
            low_maintenance=_money(float(low[MAINTENANCE]) * mid, up=False),
            gain_initial=0 if self._isolated else _money(float(side.gains[INITIAL, q]), up=False),
            gain_maintenance=0 if self._isolated else _money(float(side.gains[MAINTENANCE, q]), up=False),
            loss_initial=_money(float(side.losses[INITIAL, q]), up=True),
            loss_maintenance=_money(float(side.losses[MAINTENANCE, q]), up=True),
            reason=reason,
            initial=self._settled(q, INITIAL),
            maintenance=self._settled(q, MAINTENANCE),
        )

    def _settled(self, q: int, level: int) -> Settled:
        """Return the factors by which a settlement's net amount counts."""
        side, of, tables = self.side, self._book.contracts, self._report.tables
        assert side is not None
        assert of is not None
        amount = float(side.nets[LOW, level, q])
        kind = int((of.gain_kind if amount >= 0 else of.loss_kind)[q])
        v, f, p = (int(axis[kind]) for axis in (self._book.kinds.view, self._book.kinds.feed, self._book.kinds.policy))
        if amount < 0:
            rise, weight = tables.debt_rise[p, v, self._bound, level], tables.liability_weight[p, level]
            return Settled(amount, float(self._debt_price[level, f]), float(rise), 0.0, float(weight))
        return Settled(
            amount,
            float(self._asset_price[level, f]),
            float(tables.asset_loss[p, v, self._bound, level]),
            float(tables.policy_haircut[p, level]),
            self._world.policy.scenario.gain_weight_initial if level == INITIAL else 1.0,
            float(side.gains[level, q] > 0 and not self._isolated),
        )

    def walk(self, equity: int, ends: tuple[int, int]) -> tuple[Step, ...]:
        """Return the walk from equity to free collateral and to maintenance excess: every layer that is not 0.

        Args:
            equity, ends: as attested, 1e-8 USD.
        """
        if self._isolated:
            return (Step("unread", ends[INITIAL] - equity, ends[MAINTENANCE] - equity),)
        columns = []
        for level in (INITIAL, MAINTENANCE):
            layers = dict.fromkeys(WALK, 0.0)
            for row in range(len(self._book.account)):
                if row not in self._place:
                    self._walk_row(row, level, layers)
            if self.side is not None:
                self._walk_contracts(level, layers)
            if (drawn := self._draws.unexplained(self._rates[level])) is not None:
                layers["drawn"] -= float(drawn[0] - self._drawn_mid)
            whole = {name: round(value * USD) for name, value in layers.items()}
            whole["rounding"] += ends[level] - equity - sum(whole.values())
            columns.append(whole)
        steps = (Step(name, columns[INITIAL][name], columns[MAINTENANCE][name]) for name in WALK)
        return tuple(step for step in steps if step.initial or step.maintenance)

    def _walk_row(self, row: int, level: int, layers: dict[str, float]) -> None:
        """Add what one holding or debt loses between p̂ and what it counts."""
        book, tables = self._book, self._report.tables
        kind = int(book.kind[row])
        v, f, p = int(book.kinds.view[kind]), int(book.kinds.feed[kind]), int(book.kinds.policy[kind])
        mid = self._report.prices[f].mid if f < len(self._report.prices) else 0.0
        amount, free = float(book.amount[row]), float(book.free[row])
        if book.kinds.side[kind] != ASSET:
            share, price = float(self._share[level][row]), float(self._debt_price[level, f])
            rise, weight = float(tables.debt_rise[p, v, self._bound, level]), float(tables.liability_weight[p, level])
            _walk_debt(layers, amount * share, (mid, float(self._debt_price[MAINTENANCE, f]), price), rise, weight)
            layers["recourse"] += amount * mid * (float(self._share_mid[row]) - share)
            return
        price = float(self._asset_price[level, f])
        if not self._counts[row]:
            layers["exit"] -= amount * mid
        elif self._muted[book.group[row]]:
            layers["unread"] -= amount * mid
        elif tables.stale[v]:
            layers["latency"] -= amount * mid
        else:
            _walk_price(layers, amount, mid, float(self._asset_price[MAINTENANCE, f]), price)
            layers["exit"] -= (amount - free) * price
            lost = free * price - float(self._value[level][row])
            for name, share in self._shares(row, level).items():
                layers[name] -= lost * share

    def _walk_contracts(self, level: int, layers: dict[str, float]) -> None:
        """Add what contracts lose between p̂ and what they count, and what the model requires."""
        side, of, tables = self.side, self._book.contracts, self._report.tables
        assert side is not None
        assert of is not None
        alternative = int(side.hedged[level])
        for layer, value in zip(LAYERS, side.derived.layers[alternative, level, :, side.c], strict=True):
            layers[layer] -= float(value)
        for q in range(side.nets.shape[-1]):
            kind = int(of.gain_kind[q])
            v, f, p = (
                int(axis[kind]) for axis in (self._book.kinds.view, self._book.kinds.feed, self._book.kinds.policy)
            )
            mid, stale = self._report.prices[f].mid, bool(tables.stale[v])
            net, middle = float(side.nets[LOW, level, q]), float(side.nets[MID, MAINTENANCE, q])
            if stale or not side.derived.gate[side.settlements][q]:
                layers["latency" if stale else "exit"] += (net - middle) * mid
            else:
                _walk_price(layers, mid, middle, float(side.nets[LOW, MAINTENANCE, q]), net)
            if net < 0:
                rise, weight = (
                    float(tables.debt_rise[p, v, self._bound, level]),
                    float(tables.liability_weight[p, level]),
                )
                prices = mid, float(self._debt_price[MAINTENANCE, f]), float(self._debt_price[level, f])
                _walk_debt(layers, -net, prices, rise, weight)
                continue
            counted, price = float(side.gains[level, q]), float(self._asset_price[level, f])
            if not side.derived.gate[side.settlements][q]:
                layers["exit"] -= net * mid
            elif counted == 0:
                layers["unread"] -= net * mid
            else:
                weight = self._world.policy.scenario.gain_weight_initial if level == INITIAL else 1.0
                parts = {
                    "market": float(tables.asset_loss[p, v, self._bound, level]),
                    "policy": 1 - weight * (1 - float(tables.policy_haircut[p, level])),
                }
                _walk_price(layers, net, mid, float(self._asset_price[MAINTENANCE, f]), price)
                for name, share in self._split(parts, p, v, level).items():
                    layers[name] -= (net * price - counted) * share

    def _shares(self, row: int, level: int) -> dict[str, float]:
        """Return which part of a row's haircut each layer makes up, additively on log(1−h); they add up to 1 or 0."""
        kind, cut = int(self._book.kind[row]), self._haircuts(row, level)
        parts = {"market": cut.market, "liquidity": cut.liquidity, "policy": cut.policy}
        return self._split(parts, int(self._book.kinds.policy[kind]), int(self._book.kinds.view[kind]), level)

    def _split(self, parts: dict[str, float], p: int, v: int, level: int) -> dict[str, float]:
        zeros = [name for name, part in parts.items() if part >= 1]
        logs = {n: -math.log1p(-part) if not zeros else float(n == zeros[0]) for n, part in parts.items()}
        total = sum(logs.values())
        shares = {name: log / total if total > 0 else 0.0 for name, log in logs.items()}
        market = shares.pop("market")
        for cause, share in self._market_causes(p, v, level).items():
            shares[cause] = market * share
        return shares

    def _market_causes(self, p: int, v: int, level: int) -> dict[str, float]:
        if p >= len(self._book.policies):
            return {"market": 1.0}
        seconds, chances = horizon_nodes(self._report.tables, p, v, self._bound)
        causes = _causes(self._world.policy.assets[self._book.policies[p]], (tuple(seconds), tuple(chances)), level)
        return causes if any(causes.values()) else {"market": 1.0}

    def _explained(self, row: int, level: int) -> Explained:
        cut = self._haircuts(row, level)
        zeros = tuple(name for name, part in cut._asdict().items() if part >= 1)
        kind = int(self._book.kind[row])
        parts = {name: part for name, part in cut._asdict().items() if part < 1}
        parts.setdefault("market", 0.0)
        shares = self._split(parts, int(self._book.kinds.policy[kind]), int(self._book.kinds.view[kind]), level)
        return Explained(**shares, zeros=zeros)

    def _haircuts(self, row: int, level: int) -> Haircuts:
        book, tables = self._book, self._report.tables
        kind = int(book.kind[row])
        p, v = book.kinds.policy[kind], book.kinds.view[kind]
        if book.kinds.side[kind] != ASSET:
            return Haircuts(float(tables.debt_rise[p, v, self._bound, level]), 0.0, 0.0, 0.0)
        thin = float(self._liquidity[level][row])
        return Haircuts(
            market=1 - (1 - float(tables.asset_loss[p, v, self._bound, level])) * (1 + float(self._relief[level][row])),
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
            pending += self._hedging(row)
            return (
                "counts for information: the account is monitored, so the exit gate is off and it has no budget"
                + pending
            )
        pending += self._hedging(row)
        return f"counts: a hold lands before its owner can remove it ({position.removal_delay} s){pending}"

    def _hedging(self, row: int) -> str:
        """Say how much of a holding stands in the grid against the account's contracts, if any does."""
        side, of = self.side, self._book.contracts
        feed = int(self._book.kinds.feed[self._book.kind[row]])
        if side is None or of is None or not any(side.hedged) or not self._may_hedge[row]:
            return ""
        u = int(np.flatnonzero(of.feed == feed)[0])
        free = float(self._book.free[row])
        parts = [
            free * float(side.derived.share[self._bound, level, side.c, u]) * h for level, h in enumerate(side.hedged)
        ]
        if not any(parts):
            return ""
        names = [f"{part:,.4g}" for part in parts]
        much = names[INITIAL] if names[INITIAL] == names[MAINTENANCE] else "IM {}, MM {}".format(*names)
        underlying = of.instruments.underlying[of.instrument]
        delta = f"{float(side.greeks.delta[underlying == u].sum()):,.4g}".replace("-", "−")
        return f"; {much} of {free:,.4g} stand against the contracts' delta {delta} and keep only their own jumps"

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


def _walk_price(layers: dict[str, float], amount: float, mid: float, bound: float, price: float) -> None:
    """Add what an amount is worth less at ``price`` than at p̂, parted at the bound that maintenance margin uses."""
    layers["price bounds"] -= amount * (mid - bound)
    layers["EMA guard"] -= amount * (bound - price)


def _walk_debt(
    layers: dict[str, float], amount: float, prices: tuple[float, float, float], rise: float, weight: float
) -> None:
    """Add what an amount owed costs beyond p̂: ``amount·price·(1+rise)·weight``.

    Args:
        prices: p̂, the bound that maintenance margin uses, and the price that counts, USD.
    """
    mid, bound, price = prices
    _walk_price(layers, -amount, mid, bound, price)
    layers["market"] -= amount * price * rise
    layers["policy"] -= amount * price * (1 + rise) * (weight - 1)


def _money(value: float, *, up: bool) -> int:
    """Round one component toward safety; what is out of range counts 0 (its account is isolated)."""
    if not abs(value) <= LIMIT:
        return 0
    return usd_up(value) if up else usd_down(value)
