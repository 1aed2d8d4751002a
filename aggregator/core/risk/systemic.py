"""Who falls together, what liquidating them costs, and whom that pulls down next. Pure.

A cascade is a sequence of rounds. In each, everything is valued by the code that values every epoch; who is then
liquidatable is closed out: all its collateral that can be seized is sold at once, and what it owes with recourse repaid
from the proceeds. Of a feed that has sold X units so far, of which V trade a day, the price is

    p(X) = p₀ · max(0, 1 − I(X/V))          I: permanent impact of Almgren et al., linear in X

with p₀ the scenario's price, and the sellers of one round get ``1 − J`` of the price before it, where J is the cost of
that round's own sale. Sizes count in units, V = ADV / price before the stress, so that a greater shock never makes a
sale smaller. Rounds end when nobody is left to be closed.

Not modelled: buying back what is owed, which would lift its price; trading out of contracts, which are closed at p̂; and
the collateral of limited-recourse positions at other protocols, which is theirs to sell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator.core import valuation
from aggregator.core.fusion import rank_ratios
from aggregator.core.pipeline import compute_report, revalue
from aggregator.core.risk.impact import BETA, DELTA, ETA, GAMMA, almgren
from aggregator.core.risk.stress import apply, multiplier, valued_in
from aggregator.core.tables import Legs, World
from aggregator.domain.book import ASSET
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.report import MAINTENANCE, MID, Flag, MarginReport
from aggregator.domain.snapshot import Snapshot
from aggregator.domain.stress import Cascade, Closed, Cluster, Sale, Scenario, SystemicReport
from aggregator.domain.units import Floats

ROUNDS = 20
"""The most rounds of a cascade."""
DAY = 86_400
DAYS_PER_YEAR = 365


@dataclass(frozen=True, slots=True)
class Depth:
    """The market that forced sales meet. Volatility, volume and time to sell are the policy's of each asset.

    Args:
        outstanding: Θ/V, how many days' volume exist. With δ = 1/4 it matters little.
        gamma, eta, delta, beta: of the impact law; the estimates of its paper.
    """

    outstanding: float = 100.0
    gamma: float = GAMMA
    eta: float = ETA
    delta: float = DELTA
    beta: float = BETA


def systemic_report(
    snapshot: Snapshot,
    quotes: Sequence[Quote],
    world: World,
    latency: Legs | None,
    scenarios: Sequence[Scenario],
    depth: Depth = Depth(),
    base: MarginReport | None = None,
) -> SystemicReport:
    """Return who is liquidatable in which scenarios, the clusters that fall together, and each scenario's cascade.

    Args:
        base: the report of ``snapshot`` and ``quotes``, where it is known.
    """
    base = base or compute_report(snapshot, quotes, world, latency)
    already, mids = falls(base), {band.feed: band.mid for band in base.prices}
    fallen: dict[str, list[str]] = {}
    cascades: list[Cascade] = []
    for scenario in scenarios:
        inputs = apply(scenario, snapshot, quotes, world)
        shocked = valued_in(inputs, base, snapshot, world, latency)
        for account in falls(shocked) - already:
            fallen.setdefault(account, []).append(scenario.name)
        cascades.append(cascade(shocked, inputs.world, scenario, mids, depth))
    named = already | fallen.keys() | {closed.account for found in cascades for closed in found.closed}
    return SystemicReport(
        epoch=snapshot.epoch,
        cut_time=snapshot.cut_time,
        accounts=len(snapshot.accounts),
        already=tuple(sorted(already)),
        clusters=clusters(base, fallen),
        cascades=tuple(cascades),
        labels={account.id: account.label for account in snapshot.accounts if account.label and account.id in named},
    )


def falls(report: MarginReport) -> frozenset[str]:
    """Return the risk-bearing accounts that are liquidatable at their home destination."""
    count = len(report.accounts)
    bound = report.tables.bound[np.maximum(report.book.home, 0)] if report.destinations else np.zeros(count, np.int64)
    flags = report.flags[bound, np.arange(count)]
    down = ((flags & int(Flag.LIQUIDATABLE)) != 0) & ~report.book.monitored
    return frozenset(report.accounts[i].id for i in np.flatnonzero(down))


def exposures(report: MarginReport) -> Floats:
    """Return what each account holds less what it owes of each feed, USD at p̂, shape (A, F)."""
    book = report.book
    mid = valuation.price_columns(report.prices)[0][MID, MAINTENANCE]
    width = len(report.prices) + 1
    feed = book.kinds.feed[book.kind]
    sign = np.where(book.kinds.side[book.kind] == ASSET, 1.0, -1.0)
    worth = np.nan_to_num(sign * book.amount * mid[feed], posinf=0.0, neginf=0.0)  # accounts out of range: isolated
    flat = valuation.sum_by(book.account * width + feed, worth, len(report.accounts) * width)
    net: Floats = flat.reshape(len(report.accounts), width)[:, :-1]
    return net


def clusters(base: MarginReport, fallen: Mapping[str, Sequence[str]]) -> tuple[Cluster, ...]:
    """Group accounts that fall in exactly the same scenarios, the largest group first, with their common exposure.

    Args:
        base: the report without stress. fallen: scenario names by account.
    """
    number = {account.id: i for i, account in enumerate(base.accounts)}
    groups: dict[tuple[str, ...], list[str]] = {}
    for account, names in fallen.items():
        groups.setdefault(tuple(sorted(names)), []).append(account)
    net, feeds = exposures(base), [band.feed for band in base.prices]
    found = [
        Cluster(
            names,
            tuple(sorted(accounts)),
            {
                feed: float(total)
                for feed, total in zip(feeds, net[[number[a] for a in accounts]].sum(axis=0), strict=True)
                if total
            },
        )
        for names, accounts in groups.items()
    ]
    return tuple(sorted(found, key=lambda cluster: (-len(cluster.accounts), cluster.scenarios)))


def cascade(
    shocked: MarginReport,
    world: World,
    scenario: Scenario,
    mids: Mapping[str, float],
    depth: Depth = Depth(),
    rounds: int = ROUNDS,
) -> Cascade:
    """Close out whoever falls in ``scenario``, again and again at the prices that this leaves.

    Accounts that are liquidatable without any scenario are closed too: their collateral meets the same market. For
    accounts that owe nothing of what falls in price, a greater shock never closes fewer.

    Args:
        shocked: everybody, valued in the scenario.
        world: as the scenario has it.
        mids: p̂ of every feed before the scenario, USD.

    Raises:
        ValueError: ``rounds`` is not positive, or a parameter of ``depth`` is out of range.
    """
    if rounds < 1:
        raise ValueError("rounds must be positive")
    markets = _markets(world, mids, depth)
    sold: dict[str, float] = {}
    own = dict.fromkeys(markets, 1.0)  # by feed: what sales of it leave of the scenario's price
    left = _left(own, world)  # and sales of what it is priced through, too
    ended: list[Closed] = []
    history: list[tuple[Sale, ...]] = []
    report, gone = shocked, frozenset[str]()
    down = falls(report)
    while down and len(history) < rounds:
        sales, closed = _close_out(report, down, markets, len(history) + 1)
        history.append(sales)
        ended += closed
        gone |= down
        for sale in sales:
            sold[sale.feed] = sold.get(sale.feed, 0.0) + sale.units
            own[sale.feed] = markets[sale.feed].kept(sold[sale.feed])
        left = _left(own, world)
        prices = tuple(_scaled(band, left.get(band.feed, 1.0)) for band in shocked.prices)
        report = revalue(shocked, prices, world.policy)
        down = falls(report) - gone
    proceeds = math.fsum(c.proceeds for c in ended)
    return Cascade(
        scenario=scenario.name,
        rounds=tuple(history),
        closed=tuple(ended),
        prices={feed: multiplier(feed, scenario.prices) * left[feed] for feed in sorted(markets)},
        settled=not down,
        liquidated=len(ended),
        proceeds=proceeds,
        impact=math.fsum(c.collateral for c in ended) - proceeds,
        bad_debt=math.fsum(c.bad_debt for c in ended),
    )


def _left(own: Mapping[str, float], world: World) -> dict[str, float]:
    """Return what sales leave of every feed's price: its own, and those of all that it is priced through.

    Args:
        own: what sales of each feed leave of its price by themselves.
    """
    left = dict(own)
    for row in rank_ratios(world.ratios):  # a base that is derived itself comes before what rests on it
        left[row.feed] = left.get(row.feed, 1.0) * left.get(row.base, 1.0)
    return left


def _scaled(band: PriceBand, x: float) -> PriceBand:
    """Return a band of prices times a number."""
    low, mid, high, worst = band.low * x, band.mid * x, band.high * x, band.worst * x
    if x == 0:  # nothing is left of it: 0 times infinity is still unknown
        high = 0.0 if band.known else band.high
    initial = band.low_initial * x, (band.high_initial * x if x else high)
    return band._replace(low=low, mid=mid, high=high, low_initial=initial[0], high_initial=initial[1], worst=worst)


def _lost(report: MarginReport) -> Floats:
    """Return what each account owes for contracts at p̂, USD, shape (A,): losses, settlement by settlement.

    What one venue owes the account is that venue's to pay, and pays nobody else: gains are not counted on.
    """
    lost = np.zeros(len(report.book.accounts))
    of, derived = report.book.contracts, report.derivatives
    if of is None or derived is None:
        return lost
    mid = valuation.price_columns(report.prices)[0][MID, MAINTENANCE]
    nets = valuation.sum_by(of.settlement, derived.values[MID, MAINTENANCE], len(of.settlement_account))
    owed = np.maximum(-nets, 0.0) * mid[report.book.kinds.feed[of.gain_kind]]
    return valuation.sum_by(of.settlement_account, owed, len(lost))


@dataclass(frozen=True, slots=True)
class _Market:
    """Where one feed's collateral is sold."""

    daily: float  # V, units
    sigma: float  # of one day
    days: float  # T
    depth: Depth

    def kept(self, units: float) -> float:
        """Return what is left of the price after selling ``units`` in all."""
        return max(0.0, 1.0 - self._impact(units)[0])

    def cost(self, units: float) -> float:
        """Return J, at most all of it, of selling ``units`` at once."""
        return min(1.0, self._impact(units)[1])

    def permanent(self, units: float) -> float:
        """Return I of selling ``units``."""
        return self._impact(units)[0]

    def _impact(self, units: float) -> tuple[float, float]:
        d = self.depth
        found = almgren(self.sigma, units / self.daily, self.days, d.outstanding, d.gamma, d.eta, d.delta, d.beta)
        return float(found.permanent), float(found.cost)


def _markets(world: World, mids: Mapping[str, float], depth: Depth) -> dict[str, _Market]:
    """Return the market of every priced feed: the most liquid policy's among the assets that it prices."""
    found: dict[str, _Market] = {}
    volume: dict[str, float] = {}
    for row in (world.assets[id] for id in sorted(world.assets)):
        policy, price = world.policy.assets.get(row.policy), mids.get(row.feed, 0.0)
        if policy is None or price <= 0 or policy.daily_volume <= volume.get(row.feed, 0.0):
            continue
        volume[row.feed] = policy.daily_volume
        found[row.feed] = _Market(
            daily=policy.daily_volume / price,
            sigma=policy.volatility / math.sqrt(DAYS_PER_YEAR),
            days=max(policy.liquidation_seconds, 1) / DAY,
            depth=depth,
        )
    return found


def _close_out(
    report: MarginReport, down: frozenset[str], markets: Mapping[str, _Market], number: int
) -> tuple[tuple[Sale, ...], list[Closed]]:
    """Sell what can be seized of the accounts in ``down`` and repay what they owe with recourse."""
    book, feeds = report.book, [band.feed for band in report.prices]
    width = len(feeds) + 1
    mid = valuation.price_columns(report.prices)[0][MID, MAINTENANCE]
    feed = book.kinds.feed[book.kind]
    closing = np.array([account.id in down for account in book.accounts], dtype=np.bool_)[book.account]
    asset = book.kinds.side[book.kind] == ASSET
    tradable = np.array([*(name in markets for name in feeds), False])[feed]
    stale = report.tables.stale[book.kinds.view[book.kind]]  # what is on a chain that stands still cannot be sold
    seized = closing & asset & book.seizable & (book.netting < 0) & tradable & ~stale
    recourse = closing & ~asset & (book.netting < 0)
    units = np.bincount(feed[seized], book.amount[seized], width)
    cost = np.zeros(width)
    sales: list[Sale] = []
    for f in np.flatnonzero(units):
        market, amount = markets[feeds[f]], float(units[f])
        cost[f] = market.cost(amount)
        sales.append(
            Sale(
                feed=feeds[f],
                units=amount,
                price=float(mid[f]),
                permanent=market.permanent(amount),
                cost=float(cost[f]),
                proceeds=amount * float(mid[f]) * (1 - float(cost[f])),
            )
        )
    count = len(book.accounts)
    value = book.amount * mid[feed]
    collateral = np.bincount(book.account[seized], value[seized], count)
    proceeds = np.bincount(book.account[seized], (value * (1 - cost[feed]))[seized], count)
    owed = np.bincount(book.account[recourse], value[recourse], count) + _lost(report)
    closed = []
    for i in sorted(i for i, account in enumerate(book.accounts) if account.id in down):
        repaid = min(float(owed[i]), float(proceeds[i]))
        closed.append(
            Closed(
                account=book.accounts[i].id,
                round=number,
                collateral=float(collateral[i]),
                proceeds=float(proceeds[i]),
                owed=float(owed[i]),
                repaid=repaid,
                bad_debt=float(owed[i]) - repaid,
                surplus=float(proceeds[i]) - repaid,
            )
        )
    return tuple(sales), closed
