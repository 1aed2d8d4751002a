"""The tables of one epoch: haircuts by (policy, view, clock bound, level), and the exit gate of every row. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aggregator.core.haircut import DECIMALS, Nodes, condense, haircut_table, hold_law, law_bound, liquidity_coefficient
from aggregator.domain.book import ASSET, Book, Bools, Ints, is_missing
from aggregator.domain.latency import Law
from aggregator.domain.policy import AssetPolicyRow, PolicyRow
from aggregator.domain.report import (
    INITIAL,
    MAINTENANCE,
    HaircutCell,
    RiskTables,
)
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow, LatencyLeg, RatioRow, SourceRow
from aggregator.domain.snapshot import ChainView
from aggregator.domain.units import Floats

Legs = Mapping[str, Sequence[LatencyLeg | Law]]
"""The legs until a Hold lands, by chain."""


@dataclass(frozen=True, slots=True)
class World:
    """The configuration a valuation depends on.

    Raises:
        ValueError: an asset is priced by a feed that is a ratio, which is not in USD.
    """

    chains: tuple[ChainRow, ...]
    assets: Mapping[str, AssetRow]
    sources: tuple[SourceRow, ...]
    destinations: tuple[DestinationRow, ...]
    policy: PolicyRow
    ratios: tuple[RatioRow, ...] = ()

    def __post_init__(self) -> None:
        ratios = {row.ratio for row in self.ratios}
        for asset in self.assets.values():
            if asset.feed in ratios:
                raise ValueError(f"assets: {asset.id} is priced by {asset.feed}, a ratio; name a feed in USD")


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
    for which the attested number is usable, plus the time to liquidate: until a Hold lands on that chain, a law, and
    then the policy's auction and bridge (ADR 0014). A view that others are carried beside is as stale as the newest
    one of its chain, at least.

    Args:
        views: along the view axis of the book.
        chains: in the order of the book's chains.
        latency: the legs until a Hold lands, by chain; those of the chain's row where it is not among them.
    """
    policies = [world.policy.assets[name] for name in book.policies]
    bounds = sorted({row.clock_bound for row in destinations}) or [0]
    shape = (len(policies) + 1, len(views) + 1, len(bounds))
    laws = [hold_law((latency or {}).get(row.id, row.hold)) for row in chains]
    hold = [law_bound(law, world.policy.exit_epsilon) for law in laws]
    nodes = [condense(Law(tuple(law), tuple(law.values()))) for law in laws]
    usable = np.zeros((len(views) + 1, len(bounds)))
    delay = np.zeros((len(views) + 1, max((len(law.seconds) for law in nodes), default=1)))
    chance = np.zeros_like(delay)
    chance[:, 0] = 1.0
    stale = np.ones(len(views) + 1, dtype=np.bool_)
    for v in range(len(views)):
        law = nodes[int(book.chain_of[v])]
        delay[v, : len(law.seconds)], chance[v, : len(law.seconds)] = law
    seen = [v for v, view in enumerate(views) if not is_missing(view)]
    for v in seen:
        view, c = views[v], int(book.chain_of[v])
        assert view is not None
        assert view.block is not None
        age = max(0, view.age)
        usable[v] = [max(0, valid_until + bound - view.block.time) for bound in bounds]
        stale[v] = view.status != "ok" or age > chains[c].max_age or (c < v and stale[c])
    known, horizon = np.zeros(shape), np.zeros(shape)
    loss, rise, hedged = np.ones((*shape, 2)), np.zeros((*shape, 2)), np.ones((*shape, 2))
    if seen and policies:
        own = np.array([float(policy.liquidation_seconds) for policy in policies])
        known[:-1, seen] = usable[seen] + own[:, None, None]
        horizon[:-1, seen] = known[:-1, seen] + np.rint((delay * chance).sum(axis=1))[seen, None]
        found = haircut_table(policies, known[:-1, seen, :, None] + delay[seen, None, :], chance[seen, None, :])
        loss[:-1, seen], rise[:-1, seen], hedged[:-1, seen] = found
    levels = [(policy.initial, policy.maintenance) for policy in policies]
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
        counts=exit_gate(book, views, hold, book.account, book.kind, book.seizable, book.delay),
        hedged_loss=hedged,
        known=known,
        delay=delay,
        delay_chance=chance,
        least_impact=_least_impact(policies),
    )


def _least_impact(policies: Sequence[AssetPolicyRow]) -> Floats | None:
    """Return x of h_liq for what the protocol may have to sell at once of each policy, and of the unknown one."""
    if not any(policy.protocol_share for policy in policies):
        return None
    return np.array(
        [
            *(liquidity_coefficient(p.daily_volume, p.impact, p.volatility) * p.protocol_share**0.5 for p in policies),
            0.0,
        ]
    )


def exit_gate(
    book: Book,
    views: Sequence[ChainView | None],
    hold: Sequence[int] | Ints,
    account: Ints,
    kind: Ints,
    seizable: Bools,
    delay: Ints,
) -> Bools:
    """Return what the exit gate lets count, of any n things that accounts have, shape (n,).

    An asset counts if it can be seized, and its owner can remove it only after a Hold has landed: a request to withdraw
    may have followed the block we saw at once, so that it has had that block's age already. What is seen nowhere does
    not count. Debts always do, and so does everything of a monitored account, on which nobody relies.

    Args:
        views: along the view axis of the book.
        hold: seconds that a Hold takes, by chain; of :class:`RiskTables`.
        account, kind, seizable, delay: of each thing, as the book has them of its rows.
    """
    slowest = np.full(len(views) + 1, np.iinfo(np.int64).max)
    for v, view in enumerate(views):
        if view is not None and not is_missing(view):
            slowest[v] = hold[book.chain_of[v]] + max(0, view.age)
    out_of_reach = seizable & (delay > slowest[book.kinds.view[kind]])
    gate: Bools = book.monitored[account] | out_of_reach | (book.kinds.side[kind] != ASSET)
    return gate


def delay_nodes(tables: RiskTables, view: int) -> Nodes:
    """Return the law, as condensed, of the time until a Hold lands where a view is: seconds ascending, and chances."""
    used = tables.delay_chance[view] > 0
    return tables.delay[view, used].astype(int).tolist(), tables.delay_chance[view, used].tolist()


def horizon_nodes(tables: RiskTables, policy: int, view: int, bound: int) -> Nodes:
    """Return the law of the horizon that a cell was computed at: seconds ascending, and the chance of each."""
    delay, chance = delay_nodes(tables, view)
    return [float(tables.known[policy, view, bound]) + seconds for seconds in delay], list(chance)


def horizon_quantile(nodes: Nodes, level: float) -> float:
    """Return the least of the ascending horizons that is not exceeded with a chance of at least ``level``."""
    total = 0.0
    for seconds, chance in zip(*nodes, strict=True):
        total += chance
        if total >= level - 1e-12:
            return seconds
    return nodes[0][-1]


def list_cells(
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
            round(horizon_quantile(horizon_nodes(tables, p, v, int(tables.bound[d])), 0.99)),
            f"{tables.hedged_loss[p, v, tables.bound[d], level]:.{DECIMALS}f}",
        )
        for p, policy in enumerate(book.policies)
        for v, chain in enumerate(book.chains)
        if not is_missing(views[v]) and (book.chain_of[v] == v or (p, v) in used)
        for d, destination in enumerate(destinations)
        for name, level in names
    )
