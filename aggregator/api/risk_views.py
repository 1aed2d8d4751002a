"""What the API says about stress, systemic risk and what-if questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from aggregator.api.views import Band, HealthBand, Usd, build_usd
from aggregator.core.risk.stress import multiplier
from aggregator.domain.report import Status
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import CONTRACT_DECIMALS, HOLDING
from aggregator.domain.stress import (
    Cascade,
    Change,
    Cluster,
    Replay,
    Scenario,
    Standing,
    StressReport,
    SystemicReport,
    WhatIf,
)
from aggregator.domain.units import format_amount, format_usd, usd_down, usd_up

HOUR = 3_600


class ScenarioView(BaseModel):
    """One named stress. What it does not name stays as it is."""

    name: str = Field(examples=["march-2020"])
    title: str = Field(examples=["Black Thursday, March 2020"])
    kind: Literal["historical", "hypothetical"]
    source: str = Field(description="Where the numbers are from")
    since: int | None = Field(description="Unix seconds, of the event; null = hypothetical", examples=[1583539200])
    until: int | None = Field(examples=[1584140400])
    prices: dict[str, float] = Field(description="By feed: price over the price before", examples=[{"ETH/USD": 0.396}])
    volatility: float = Field(description="Times volatility, of haircuts and implied")
    volume: float = Field(description="Times daily volume")
    recovery: dict[str, float] = Field(description="By cause: what exposed assets keep of their amount")
    halted: list[str] = Field(description="CAIP-2: chains that stop advancing")
    hours: int = Field(description="Length of its path through time; 0 = it has none", examples=[168])


class StandingView(BaseModel):
    """How an account stands at its home destination."""

    status: Status
    liquidatable: bool
    equity: Usd
    free_collateral: Usd = Field(description="FC: initial margin, everything uncertain against the account")
    requirement: Usd = Field(description="Owed and required: all that initial margin holds against the account, W-")
    maintenance_excess: Band = Field(description="ME")
    health: HealthBand
    budget: Usd = Field(description="The most that may be owed at home in total, what is owed there already included")


Labels = Annotated[dict[str, str], Field(description="By account id: its label; accounts without one are not in it")]


class StressRowView(BaseModel):
    """One account in one scenario."""

    scenario: str = Field(examples=["march-2020"])
    account: str
    before: StandingView
    after: StandingView


class StressTotalView(BaseModel):
    """All accounts in one scenario."""

    scenario: str = Field(examples=["march-2020"])
    accounts: int
    before: int = Field(description="Liquidatable without the scenario")
    fallen: int = Field(description="And liquidatable only in it")
    excess_before: Usd = Field(description="ME at low of all accounts together")
    excess_after: Usd
    missing: Usd = Field(description="What the accounts whose ME at low is below 0 in it lack together")


class StressView(BaseModel):
    """A total per scenario, rows of the accounts worst off in it, and the map that a picture of these shows."""

    epoch: int
    cut_time: int
    scenarios: list[str]
    totals: list[StressTotalView] = Field(description="By scenario, in the order above, of all accounts")
    accounts: list[str] = Field(description="Those with a row in any scenario")
    labels: Labels
    rows: list[StressRowView] = Field(description="Scenario by scenario, the least health at low first")
    heat: list[list[float | None]] = Field(
        description="Health at low, by scenario (rows) and account (columns) in the order above; null = owes nothing"
    )
    unshocked: dict[str, list[str]] = Field(description="By scenario that names prices: feeds it leaves alone")


class MomentView(BaseModel):
    """One hour of a scenario's path."""

    hour: int
    time: int | None = Field(description="Unix seconds of that hour; null = the scenario is hypothetical")
    prices: dict[str, float] = Field(description="By feed: price over the price before")
    standing: StandingView


class ReplayView(BaseModel):
    """An account's margin through a stress.

    Prices alone move: volatility, volume, time and the age of what was seen stay. The scenario itself is harsher: it
    has every feed at its own low at once, and the event's volatility and volume too.
    """

    epoch: int
    cut_time: int
    scenario: str
    account: str
    label: str = Field(description="Of the account; may be empty")
    moments: list[MomentView]


class WhatIfView(BaseModel):
    """An account's margin as it is, and after the changes."""

    account: str
    label: str = Field(description="Of the account; may be empty")
    epoch: int
    cut_time: int
    changes: list[str] = Field(description="What was asked, for people", examples=[["borrow 500 USDC on alpha"]])
    accepted: bool
    reason: str
    notes: list[str]
    before: StandingView
    after: StandingView


class SaleView(BaseModel):
    """What all liquidated accounts together sell of one feed in one round."""

    feed: str
    units: float
    price: float = Field(description="USD, before the sale")
    permanent: float = Field(description="Part of the first price that the sale takes away for good")
    cost: float = Field(description="Part of the price that sellers lose on average")
    proceeds: Usd


class ClosedView(BaseModel):
    """How a liquidated account ends. Estimates."""

    account: str
    round: int
    collateral: Usd
    proceeds: Usd
    owed: Usd
    repaid: Usd
    bad_debt: Usd = Field(description="Owed and not repaid; where a chain is halted, some may be once it goes on")
    surplus: Usd


class CascadeView(BaseModel):
    """Rounds of forced sales after a scenario."""

    scenario: str
    halted: list[str] = Field(description="CAIP-2: what lies there cannot be sold now")
    recovery: dict[str, float] = Field(description="By cause: what exposed assets keep of their amount")
    rounds: list[list[SaleView]]
    closed: list[ClosedView] = Field(description="The worst of them: the most bad debt, then the most sold, first")
    prices: dict[str, float] = Field(description="By feed: price at the end over the price before the scenario")
    kept: dict[str, float] = Field(description="By feed: the part of the scenario's price that the sales leave")
    settled: bool = Field(description="False: the limit of rounds came first")
    liquidated: int
    proceeds: Usd
    impact: Usd = Field(description="Lost to the market by selling")
    bad_debt: Usd = Field(description="Owed and not repaid; where ``halted`` names chains, not repaid now")


class ClusterView(BaseModel):
    """Accounts that fall in exactly the same scenarios."""

    scenarios: list[str]
    count: int = Field(description="How many accounts they are")
    accounts: list[str] = Field(description="The first of them by id")
    exposures: dict[str, Usd] = Field(description="By feed: what they hold less what they owe, before the stress")


class SystemicView(BaseModel):
    """Who falls together, and what follows."""

    epoch: int
    cut_time: int
    accounts: int
    labels: Labels
    liquidatable: int = Field(description="How many are so without any scenario")
    already: list[str] = Field(description="The first of these by id")
    clusters: list[ClusterView] = Field(description="The greatest first")
    cascades: list[CascadeView]


def build_scenario(scenario: Scenario) -> ScenarioView:
    """Show a scenario without its paths, of which only the length is told."""
    return ScenarioView(
        name=scenario.name,
        title=scenario.title,
        kind=scenario.kind,
        source=scenario.source,
        since=scenario.since or None,
        until=scenario.until or None,
        prices=scenario.prices,
        volatility=scenario.volatility,
        volume=scenario.volume,
        recovery=dict(scenario.recovery),
        halted=list(scenario.halted),
        hours=len(next(iter(scenario.paths.values()), ())),
    )


def build_standing(standing: Standing) -> StandingView:
    """Show how an account stands."""
    low, mid, high = (None if h is None or not math.isfinite(h) else h for h in standing.health)
    return StandingView(
        status=standing.status,
        liquidatable=standing.liquidatable,
        equity=build_usd(standing.equity),
        free_collateral=build_usd(standing.free_collateral),
        requirement=build_usd(standing.requirement),
        maintenance_excess=Band(
            low=build_usd(standing.excess.low),
            mid=build_usd(standing.excess.mid),
            high=build_usd(standing.excess.high),
        ),
        health=HealthBand(low=low, mid=mid, high=high),
        budget=build_usd(standing.budget),
    )


def build_stress(report: StressReport) -> StressView:
    """Show a stress report."""
    names = [scenario.name for scenario in report.scenarios]
    rows = [
        StressRowView(
            scenario=row.scenario,
            account=row.before.account,
            before=build_standing(row.before),
            after=build_standing(row.after),
        )
        for row in report.rows
    ]
    heat = [[None if h is None or not math.isfinite(h) else h for h in line] for line in report.heat]
    return StressView(
        epoch=report.epoch,
        cut_time=report.cut_time,
        scenarios=names,
        totals=[
            StressTotalView(
                scenario=total.scenario,
                accounts=total.accounts,
                before=total.before,
                fallen=total.fallen,
                excess_before=build_usd(total.excess_before),
                excess_after=build_usd(total.excess_after),
                missing=build_usd(total.missing),
            )
            for total in report.totals
        ],
        accounts=list(report.accounts),
        labels=dict(report.labels),
        rows=rows,
        heat=heat,
        unshocked={s.name: list(report.unshocked[s.name]) for s in report.scenarios if s.prices},
    )


def build_replay(replay: Replay, label: str, feeds: Sequence[str]) -> ReplayView:
    """Show an account's margin along a path, with the multipliers of the feeds that are configured."""
    since = replay.scenario.since
    return ReplayView(
        epoch=replay.epoch,
        cut_time=replay.cut_time,
        scenario=replay.scenario.name,
        account=replay.account,
        label=label,
        moments=[
            MomentView(
                hour=m.hour,
                time=since + m.hour * HOUR if since else None,
                prices={feed: multiplier(feed, m.prices) for feed in feeds},
                standing=build_standing(m.standing),
            )
            for m in replay.moments
        ],
    )


def describe(change: Change, assets: Mapping[str, AssetRow], chains: Mapping[str, str]) -> str:
    """Say a change as a person would: ``borrow 500 USDC on alpha``.

    Args:
        assets: rows by CAIP-19 id. chains: names by CAIP-2 id.
    """

    def place(id: str) -> str:
        chain = id.partition("/")[0]
        return f"{assets[id].symbol if id in assets else id} on {chains.get(chain, chain)}"

    if change.action in ("open", "close"):
        size = format_amount(change.amount, CONTRACT_DECIMALS)
        terms = change.contract if change.action == "open" else HOLDING
        of = f"{terms.underlying} {terms.kind} " if terms.kind else ""
        of += f"{format_usd(terms.strike)} exp {utc(terms.expiry)} " if terms.strike else ""
        return f"{change.action} {change.side} {size} {of}({change.asset})"
    decimals = assets[change.asset].decimals if change.asset in assets else 0
    arriving = f" to {place(change.to)}" if change.to else ""
    return f"{change.action} {format_amount(change.amount, decimals)} {place(change.asset)}{arriving}"


def utc(time: int) -> str:
    """Return a time in Unix seconds for people: ``2026-12-31 08:00 UTC``."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def build_whatif(answer: WhatIf, label: str, changes: Sequence[str]) -> WhatIfView:
    """Show the answer to a what-if question, and what was asked as :func:`describe` says it."""
    return WhatIfView(
        account=answer.before.account,
        label=label,
        epoch=answer.epoch,
        cut_time=answer.cut_time,
        changes=list(changes),
        accepted=answer.accepted,
        reason=answer.reason,
        notes=list(answer.notes),
        before=build_standing(answer.before),
        after=build_standing(answer.after),
    )


def build_systemic(report: SystemicReport, scenarios: Mapping[str, Scenario], limit: int) -> SystemicView:
    """Show a report on systemic risk, of scenarios by name; of every list of accounts at most ``limit``."""
    clusters = [_cluster(cluster, limit) for cluster in report.clusters[:limit]]
    cascades = [_cascade(cascade, scenarios[cascade.scenario], limit) for cascade in report.cascades]
    named = {*report.already[:limit], *(a for c in clusters for a in c.accounts)}
    named |= {end.account for cascade in cascades for end in cascade.closed}
    return SystemicView(
        epoch=report.epoch,
        cut_time=report.cut_time,
        accounts=report.accounts,
        labels={account: label for account, label in report.labels.items() if account in named},
        liquidatable=len(report.already),
        already=list(report.already[:limit]),
        clusters=clusters,
        cascades=cascades,
    )


def _cluster(cluster: Cluster, limit: int) -> ClusterView:
    return ClusterView(
        scenarios=list(cluster.scenarios),
        count=len(cluster.accounts),
        accounts=list(cluster.accounts[:limit]),
        exposures=_dollars(cluster.exposures),
    )


def _cascade(cascade: Cascade, scenario: Scenario, limit: int) -> CascadeView:
    first = {feed: multiplier(feed, scenario.prices) for feed in cascade.prices}
    return CascadeView(
        scenario=cascade.scenario,
        halted=list(scenario.halted),
        recovery=dict(scenario.recovery),
        rounds=[
            [
                SaleView(
                    feed=sale.feed,
                    units=sale.units,
                    price=sale.price,
                    permanent=sale.permanent,
                    cost=sale.cost,
                    proceeds=_gain(sale.proceeds),
                )
                for sale in sales
            ]
            for sales in cascade.rounds
        ],
        closed=[
            ClosedView(
                account=end.account,
                round=end.round,
                collateral=_gain(end.collateral),
                proceeds=_gain(end.proceeds),
                owed=_loss(end.owed),
                repaid=_gain(end.repaid),
                bad_debt=_loss(end.bad_debt),
                surplus=_gain(end.surplus),
            )
            for end in sorted(cascade.closed, key=lambda end: (-end.bad_debt, -end.collateral, end.account))[:limit]
        ],
        prices=dict(cascade.prices),
        kept={feed: by / first[feed] if first[feed] else 1.0 for feed, by in cascade.prices.items()},
        settled=cascade.settled,
        liquidated=cascade.liquidated,
        proceeds=_gain(cascade.proceeds),
        impact=_loss(cascade.impact),
        bad_debt=_loss(cascade.bad_debt),
    )


def _dollars(values: Mapping[str, float]) -> dict[str, Usd]:
    return {name: _gain(value) for name, value in values.items()}


def _gain(value: float) -> Usd:
    """Show USD that help, rounded down."""
    return build_usd(usd_down(value))


def _loss(value: float) -> Usd:
    """Show USD that hurt, rounded up."""
    return build_usd(usd_up(value))
