"""Stress: accounts revalued under named scenarios, by the very code that values them every epoch. Pure.

:func:`apply` turns what was seen, said and configured into what it would be in a scenario; nothing here values
anything. Prices are those of the scenario's worst hour, each feed at its own low: harsher than any single hour was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from aggregator.core.margin import health
from aggregator.core.pipeline import compute_report, fuse_prices, revalue, tables_of
from aggregator.core.tables import Legs, World
from aggregator.domain.book import Bools, Ints, view_axis
from aggregator.domain.policy import AssetPolicyRow, PolicyRow, UnderlyingRow
from aggregator.domain.price import Quote
from aggregator.domain.report import HIGH, INITIAL, LOW, MAINTENANCE, MID, STATUSES, Flag, Interval, MarginReport
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import HALTED, Position, Snapshot
from aggregator.domain.stress import Moment, Scenario, Standing, StressReport, StressRow, StressTotal
from aggregator.domain.units import usd_down, usd_up

GRAIN = 10**6
"""A scaled quote has so many parts of the unit of the one before: a price that falls to a millionth is still exact."""
STABLES = frozenset(
    ("DAI", "FDUSD", "FRAX", "GHO", "LUSD", "PYUSD", "RLUSD", "TUSD", "USDC", "USDE", "USDP", "USDS", "USDT", "UST")
)
"""Bases of the feeds that a depeg strikes."""
DEPEG = 0.88
"""A little below USDC's 0.93 of March 2023 by hourly closes; its low that day was 0.82."""


class Inputs(NamedTuple):
    """What :func:`aggregator.core.pipeline.compute_report` takes."""

    snapshot: Snapshot
    quotes: tuple[Quote, ...]
    world: World


def apply(scenario: Scenario, snapshot: Snapshot, quotes: Sequence[Quote], world: World) -> Inputs:
    """Return the inputs of a valuation as they would be in ``scenario``.

    * Prices: every quote of a feed (price, confidence, EMA) times its multiplier: the shock has settled.
    * Volatility: σ of haircuts, at most 10, and implied volatility times the multiplier.
    * Volume: ADV times the multiplier.
    * Recovery: assets whose policy has a jump with the cause count that share of their amount; debts stay whole.
    * Halted chains: their views are stale, as after no new block. Chains never read stay missing.

    Raises:
        ValueError: the scenario halts a chain that is not configured; names it.
    """
    known = {row.id for row in world.chains}
    for chain in scenario.halted:
        if chain not in known:
            raise ValueError(f"halted: {chain} is no configured chain")
    shocks = {feed: multiplier(feed, scenario.prices) for feed in {quote.feed for quote in quotes}}
    policy = _shocked_policy(scenario, world.policy)
    return Inputs(
        replace(
            snapshot,
            chains=tuple(
                replace(view, status="stale", cause=f"{HALTED}: in the scenario {scenario.name}")
                if view.chain in scenario.halted and view.status != "missing"
                else view
                for view in snapshot.chains
            ),
            positions=_recovered(scenario, snapshot.positions, world),
        ),
        scale_quotes(quotes, shocks),
        replace(world, policy=policy),
    )


def valued_in(
    inputs: Inputs, base: MarginReport, snapshot: Snapshot, world: World, latency: Legs | None
) -> MarginReport:
    """Value what :func:`apply` gives as :func:`aggregator.core.pipeline.compute_report` does, from a report without it.

    What a scenario leaves alone is used again: the book where no position changes, and the haircut tables too where
    neither views nor policy do. The report lists no cells, and findings of the valuation alone.

    Args:
        base: of ``snapshot`` and ``world``, as they are without the scenario.
    """
    seen, said, shocked = inputs
    if seen.positions is not snapshot.positions:
        return compute_report(seen, said, shocked, latency)
    views = view_axis(seen, base.book.chains[: base.book.touches.shape[1] - 1])
    same = shocked.policy is world.policy and views == base.chains
    tables = base.tables if same else tables_of(base.book, views, shocked, seen.valid_until, latency)
    prices = fuse_prices(said, shocked, seen.cut_time)
    return revalue(base, prices, shocked.policy, tables=tables, views=views)


def multiplier(feed: str, prices: Mapping[str, float]) -> float:
    """Return by what a scenario multiplies the price of ``feed``: 1 where it does not say.

    A feed in dollars that is not named is the product of a ratio and a price that are: stETH/USD of stETH/ETH and
    ETH/USD. Names compare without case.
    """
    named = {name.upper(): value for name, value in prices.items()}
    wanted = feed.upper()
    if wanted in named:
        return named[wanted]
    base, _, quote = wanted.partition("/")
    for name, ratio in named.items():
        top, _, middle = name.partition("/")
        if top == base and f"{middle}/{quote}" in named:
            return ratio * named[f"{middle}/{quote}"]
    return 1.0


def unshocked(scenario: Scenario, world: World) -> tuple[str, ...]:
    """Return the feeds of sources, ascending, whose price the scenario leaves alone; somebody should know."""
    return tuple(feed for feed in sorted({s.feed for s in world.sources}) if multiplier(feed, scenario.prices) == 1)


def scale_quotes(quotes: Sequence[Quote], shocks: Mapping[str, float]) -> tuple[Quote, ...]:
    """Return the quotes with price, confidence and EMA times their feed's multiplier."""
    scaled: list[Quote] = []
    for quote in quotes:
        by = shocks.get(quote.feed, 1.0)
        if by == 1:
            scaled.append(quote)
            continue
        top, bottom = by.as_integer_ratio()
        price, conf, ema, ema_conf = (
            value * GRAIN * top // bottom for value in (quote.price, quote.conf, quote.ema_price, quote.ema_conf)
        )
        scaled.append(
            quote._replace(price=price, conf=conf, ema_price=ema, ema_conf=ema_conf, expo=quote.expo - 6)  # 1/GRAIN
        )
    return tuple(scaled)


def _shocked_policy(scenario: Scenario, policy: PolicyRow) -> PolicyRow:
    if scenario.volatility == 1 and scenario.volume == 1:
        return policy

    def asset(row: AssetPolicyRow) -> AssetPolicyRow:
        volatility = min(10.0, row.volatility * scenario.volatility)
        return row.model_copy(update={"volatility": volatility, "daily_volume": row.daily_volume * scenario.volume})

    def underlying(row: UnderlyingRow) -> UnderlyingRow:
        # Volatility times x is total variance times x²: a and b carry it, the rest is the shape of the smile. The rows
        # are not checked again: a surface under stress may be steeper than a policy may state.
        square = scenario.volatility**2
        surface = tuple(s.model_copy(update={"a": s.a * square, "b": s.b * square}) for s in row.surface)
        return row.model_copy(update={"surface": surface, "daily_volume": row.daily_volume * scenario.volume})

    return policy.model_copy(
        update={
            "assets": {name: asset(row) for name, row in policy.assets.items()},
            "underlyings": {feed: underlying(row) for feed, row in policy.underlyings.items()},
        }
    )


def _recovered(scenario: Scenario, positions: tuple[Position, ...], world: World) -> tuple[Position, ...]:
    """Return the positions with what the scenario's causes leave of assets exposed to them, rounded down."""
    kept: dict[str, Fraction] = {}
    for id, row in world.assets.items():
        policy = world.policy.assets.get(row.policy)
        causes = {jump.cause for jump in policy.jumps} if policy else set()
        # As written: 0.1 is a tenth, not the float a little above it.
        left = math.prod((Fraction(repr(part)) for cause, part in scenario.recovery.items() if cause in causes))
        if left != 1:
            kept[id] = Fraction(left)

    def shrunk(position: Position) -> Position:
        if position.side != "asset" or position.contract.kind or position.asset not in kept:
            return position
        left = kept[position.asset]
        amount, pending = (math.floor(value * left) for value in (position.amount, position.pending))
        return position._replace(amount=amount, pending=pending)

    return tuple(map(shrunk, positions)) if kept else positions


def standings(report: MarginReport) -> tuple[Standing, ...]:
    """Return how every account stands at its home destination, ascending by id (at the first where it has none)."""
    return standings_at(report, slice(None))


def standings_at(report: MarginReport, chosen: slice | Ints) -> tuple[Standing, ...]:
    """Return how some accounts stand, in the order given, by the numbers of their leaves at home."""
    indices = np.arange(len(report.accounts))[chosen]
    if not len(indices):
        return ()
    home = np.maximum(report.book.home[indices], 0)
    bound = report.tables.bound[home] if report.destinations else np.zeros_like(home)
    assets, debts = (
        np.moveaxis(values[bound, :, :, indices], 0, -1) for values in (report.assets, report.debts)
    )  # (end, level, A)
    own, owed = health.round_down(assets[LOW]), health.round_up(debts[LOW])  # (level, A)
    excess = assets[:, MAINTENANCE] - debts[:, MAINTENANCE]
    flags, codes = report.flags[bound, indices], report.status[bound, indices]

    def standing(place: int, index: int) -> Standing:
        owns, owes = own[:, place].tolist(), owed[:, place].tolist()
        mid, high = (
            health.ratio(float(assets[end, MAINTENANCE, place]), float(debts[end, MAINTENANCE, place]))
            for end in (MID, HIGH)
        )
        return Standing(
            account=report.accounts[index].id,
            status=STATUSES[int(codes[place])],
            liquidatable=bool(int(flags[place]) & Flag.LIQUIDATABLE),
            equity=usd_down(float(report.equity[index])),
            free_collateral=int(owns[INITIAL]) - int(owes[INITIAL]),
            requirement=int(owes[INITIAL]),
            excess=Interval(
                int(owns[MAINTENANCE]) - int(owes[MAINTENANCE]),
                usd_down(float(excess[MID, place])),
                usd_up(float(excess[HIGH, place])),
            ),
            health=(health.ratio(owns[MAINTENANCE], owes[MAINTENANCE]), mid, high),
            budget=int(report.budgets[:, index].sum()),
        )

    return tuple(standing(place, int(index)) for place, index in enumerate(indices))


def restrict(snapshot: Snapshot, account: str) -> Snapshot:
    """Return the snapshot with one account alone. Accounts are valued apart, so that none of its numbers changes."""
    return replace(
        snapshot,
        accounts=tuple(a for a in snapshot.accounts if a.id == account),
        positions=tuple(p for p in snapshot.positions if p.account == account),
    )


class _Lows(NamedTuple):
    """Every account at its home destination, as low as it may be."""

    excess: list[int]  # ME, 1e-8 USD
    health: list[float | None]
    liquidatable: Bools

    def rank(self) -> list[int]:
        """Return the places of all accounts: the least health first, then the least maintenance excess, then by id."""
        healths = (math.inf if health is None else health for health in self.health)
        keys = list(zip(healths, self.excess, strict=True))
        return sorted(range(len(keys)), key=keys.__getitem__)

    def total(self, scenario: str, before: _Lows) -> StressTotal:
        return StressTotal(
            scenario=scenario,
            accounts=len(self.excess),
            before=int(before.liquidatable.sum()),
            fallen=int((self.liquidatable & ~before.liquidatable).sum()),
            excess_before=sum(before.excess),
            excess_after=sum(self.excess),
            missing=-sum(usd for usd in self.excess if usd < 0),
        )


def _lows(report: MarginReport) -> _Lows:
    count = len(report.accounts)
    home = np.maximum(report.book.home, 0)
    bound = report.tables.bound[home] if report.destinations else np.zeros(count, dtype=np.int64)
    every = np.arange(count)
    own = health.round_down(report.assets[bound, LOW, MAINTENANCE, every]).tolist()
    owed = health.round_up(report.debts[bound, LOW, MAINTENANCE, every]).tolist()
    return _Lows(
        excess=[int(had) - int(owes) for had, owes in zip(own, owed, strict=True)],
        health=[health.ratio(had, owes) for had, owes in zip(own, owed, strict=True)],
        liquidatable=(report.flags[bound, every] & int(Flag.LIQUIDATABLE)) != 0,
    )


def stress_report(
    snapshot: Snapshot,
    quotes: Sequence[Quote],
    world: World,
    latency: Legs | None,
    scenarios: Sequence[Scenario],
    *,
    limit: int | None = None,
    offset: int = 0,
    base: MarginReport | None = None,
) -> StressReport:
    """Value every account of ``snapshot`` as it is and in every scenario.

    Args:
        limit: how many accounts have a row in each scenario: those whose health at ``low`` is least in it, and of those
            that owe nothing the ones whose maintenance excess is, least first. None: all of them, ascending by id.
        offset: so many of them are passed over first.
        base: the report of ``snapshot`` and ``quotes``, where it is known.
    """
    base = base or compute_report(snapshot, quotes, world, latency)
    before = _lows(base)
    rows: list[StressRow] = []
    totals: list[StressTotal] = []
    found: list[_Lows] = []
    chosen: set[int] = set()
    for scenario in scenarios:
        inputs = apply(scenario, snapshot, quotes, world)
        shocked = valued_in(inputs, base, snapshot, world, latency)
        after = _lows(shocked)
        places = range(len(after.excess)) if limit is None else after.rank()[offset : offset + limit]
        picked = np.array(places, dtype=np.int64)
        pairs = zip(standings_at(base, picked), standings_at(shocked, picked), strict=True)
        rows += [StressRow(scenario.name, was, now) for was, now in pairs]
        totals.append(after.total(scenario.name, before))
        found.append(after)
        chosen.update(places)
    shown = sorted(chosen)
    named = [base.accounts[i] for i in shown]
    return StressReport(
        epoch=snapshot.epoch,
        cut_time=snapshot.cut_time,
        scenarios=tuple(scenarios),
        unshocked={scenario.name: unshocked(scenario, world) for scenario in scenarios},
        rows=tuple(rows),
        totals=tuple(totals),
        accounts=tuple(account.id for account in named),
        heat=tuple(tuple(lows.health[i] for i in shown) for lows in found),
        labels={account.id: account.label for account in named if account.label},
    )


def multipliers_at(scenario: Scenario, hour: int) -> dict[str, float]:
    """Return every named feed's multiplier at one hour of the scenario's path.

    A feed with a path of its own has it. Any other falls with the first path that there is: it is ``m**s`` where m is
    its multiplier and ``s = ln d / ln min d``, within [0, 1], how far the path d has fallen, so that all are at their
    lowest together.

    Raises:
        ValueError: ``hour`` is not on the path, or there is no path.
    """
    if not scenario.paths:
        raise ValueError(f"{scenario.name} has no path")
    driver = next(iter(scenario.paths.values()))
    if not 0 <= hour < len(driver):
        raise ValueError(f"hour must be from 0 to {len(driver) - 1}, not {hour}")
    lowest = min(driver) / driver[0]
    fallen = math.log(driver[hour] / driver[0]) / math.log(lowest) if lowest < 1 else 0.0
    share = min(1.0, max(0.0, fallen))
    return {
        feed: scenario.paths[feed][hour] / scenario.paths[feed][0] if feed in scenario.paths else float(low**share)
        for feed, low in scenario.prices.items()
    }


def hours_of(scenario: Scenario, most: int) -> tuple[int, ...]:
    """Return at most ``most`` (two or more) hours of the path, evenly spread, with its first, last and lowest."""
    if not scenario.paths:
        raise ValueError(f"{scenario.name} has no path")
    driver = next(iter(scenario.paths.values()))
    last = len(driver) - 1
    steps = max(2, most - 1)
    chosen = {round(i * last / (steps - 1)) for i in range(steps)} | {driver.index(min(driver))}
    return tuple(sorted(chosen))


def replay(
    scenario: Scenario,
    snapshot: Snapshot,
    quotes: Sequence[Quote],
    world: World,
    latency: Legs | None,
    hours: Sequence[int],
) -> tuple[Moment, ...]:
    """Return the standing of the snapshot's first account along the scenario's path: margin through a stress.

    Prices alone move; what was seen of chains keeps its age, so that what changes is the market's doing. The first
    account, since one is what a path is drawn of: see :func:`restrict`.

    Raises:
        ValueError: there is no account, no path, or an hour is not on it.
    """
    if not snapshot.accounts:
        raise ValueError("snapshot holds no account")
    base = compute_report(snapshot, quotes, world, latency)
    moments: list[Moment] = []
    for hour in hours:
        prices = multipliers_at(scenario, hour)
        shocks = {feed: multiplier(feed, prices) for feed in {quote.feed for quote in quotes}}
        said = scale_quotes(quotes, shocks)
        report = revalue(base, fuse_prices(said, world, snapshot.cut_time), world.policy)
        moments.append(Moment(hour, prices, standings(report)[0]))
    return tuple(moments)


def hypothetical(chains: Sequence[ChainRow], feeds: Sequence[str]) -> tuple[Scenario, ...]:
    """Return the scenarios that nobody has lived through, for a world of these chains and feeds."""
    made = [
        Scenario(
            name="vol-spike",
            title="Volatility doubles at unchanged prices",
            kind="hypothetical",
            source="ETH's implied volatility index rose by 1.98 in November 2022",
            volatility=2.0,
        ),
        Scenario(
            name="liquidity-drought",
            title="A tenth of the usual volume trades",
            kind="hypothetical",
            source="a round number; sizes then count √10 times as much in the liquidity haircut",
            volume=0.1,
        ),
        Scenario(
            name="bridge-failure",
            title="Wrapped and bridged assets keep a tenth of their value",
            kind="hypothetical",
            source="a round number; strikes the policies that have a jump with cause bridge or wrapper",
            recovery={"bridge": 0.1, "wrapper": 0.1},
        ),
    ]
    for feed in sorted(set(feeds)):
        base, _, quote = feed.partition("/")
        if base.upper() in STABLES and quote.upper() == "USD":
            made.append(
                Scenario(
                    name=f"depeg-{base.lower()}",
                    title=f"{base} at {DEPEG:g} of its price",
                    kind="hypothetical",
                    source="between USDC's lowest hourly close, 0.930, and its low, 0.822, of March 2023",
                    prices={feed: DEPEG},
                )
            )
    for row in sorted(chains, key=lambda chain: chain.id):
        made.append(
            Scenario(
                name=f"chain-halt-{slug(row.name)}",
                title=f"{row.name} stops: no new block, what it holds counts 0",
                kind="hypothetical",
                source=row.id,
                halted=(row.id,),
            )
        )
    return tuple(made)


def slug(name: str) -> str:
    """Return a name as lower-case words joined by hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
