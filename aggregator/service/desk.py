"""The risk desk: what-if, stress and systemic questions, asked of the newest certified epoch, kept in memory.

Each answer is computed in a thread from one epoch taken whole, so that an epoch which ends meanwhile changes nothing.
Few are computed at a time, and what is larger than a request may cost is refused before it begins.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TypeVar

from aggregator.core.latency import build_tables, hold_legs
from aggregator.core.risk.stress import hours_of, hypothetical, replay, restrict, stress_report
from aggregator.core.risk.systemic import systemic_report
from aggregator.core.tables import World
from aggregator.core.whatif import Epoch, what_if
from aggregator.domain.errors import ConflictError, InputError, UnknownError
from aggregator.domain.latency import LatencyTables
from aggregator.domain.price import Quote
from aggregator.domain.stress import Change, Replay, Scenario, StressReport, SystemicReport, WhatIf
from aggregator.service.workbench import Computed

T = TypeVar("T")

MOST_CHANGES = 32
MOST_POSITIONS = 20_000_000
"""Positions times valuations that one request may cost: half a minute or so of one core, two with contracts alone."""
MOST_ROWS = 5_000
"""Accounts times scenarios that one answer on stress shows; its totals are of all accounts whatever it shows."""
MOST_WAITING = 16
MOST_HOURS = 120
"""Points along a scenario's path that are valued; evenly spread, with the lowest among them."""
TOGETHER = 2
"""Questions that are computed at a time."""


def load_scenarios() -> tuple[Scenario, ...]:
    """Return the historical scenarios that come with the program."""
    text = resources.files("aggregator.service").joinpath("scenarios.toml").read_text("utf-8")
    return tuple(Scenario.model_validate(row) for row in tomllib.loads(text)["scenarios"])


class Desk:
    """Implements ``aggregator.ports.RiskDesk``.

    Args:
        world: as valuations are configured.
        scenarios: the historical ones; the hypothetical ones follow from the world.
    """

    def __init__(self, world: World, scenarios: Sequence[Scenario] | None = None) -> None:
        self._world = world
        historical = load_scenarios() if scenarios is None else tuple(scenarios)
        made = (*historical, *hypothetical(world.chains, [source.feed for source in world.sources]))
        self._scenarios = {scenario.name: scenario for scenario in made}
        self._configured = build_tables((), world.chains, world.destinations)
        self._epoch: Epoch | None = None
        self._turns = asyncio.Semaphore(TOGETHER)
        self._waiting = 0

    def take(self, computed: Computed, quotes: Sequence[Quote], latency: LatencyTables) -> None:
        """Remember a certified epoch instead of the one before."""
        legs = hold_legs(latency or self._configured, self._world.chains)
        self._epoch = Epoch(computed.snapshot, tuple(quotes), self._world, legs, computed.report)

    def scenarios(self) -> tuple[Scenario, ...]:
        """Return every scenario, historical ones first."""
        return tuple(self._scenarios.values())

    async def what_if(self, account: str, changes: Sequence[Change]) -> WhatIf:
        """Return how an account would stand after ``changes``."""
        if not 0 < len(changes) <= MOST_CHANGES:
            raise InputError("changes", f"{len(changes)} of them", f"give from 1 to {MOST_CHANGES}")
        epoch = self._newest()
        return await self._compute(lambda: what_if(epoch, account, changes))

    async def stress(self, names: Sequence[str], account: str | None, limit: int, offset: int) -> StressReport:
        """Value one account, or all, in the scenarios named; in all of them if none is."""
        epoch, chosen = self._newest(), self._chosen(names)
        snapshot = epoch.snapshot
        if account is not None:
            self._known(epoch, account)
            snapshot = restrict(snapshot, account)
        if (rows := min(limit, len(snapshot.accounts)) * len(chosen)) > MOST_ROWS:
            problem = f"{rows:,} rows, {limit:,} for each of {len(chosen)} scenarios; at most {MOST_ROWS:,} are shown"
            raise InputError("limit", problem, f"give at most {MOST_ROWS // len(chosen):,}, or name one scenario")
        self._affordable(len(snapshot.positions) * (1 + len(chosen)))
        return await self._compute(
            lambda: stress_report(
                snapshot,
                epoch.quotes,
                epoch.world,
                epoch.latency,
                chosen,
                limit=limit,
                offset=offset,
                base=epoch.report if account is None else None,
            )
        )

    async def systemic(self, names: Sequence[str]) -> SystemicReport:
        """Return who falls together in the scenarios named, and what follows; of all of them if none is named."""
        epoch, chosen = self._newest(), self._chosen(names)
        # Each scenario is valued once for the clusters, and at least twice for its cascade.
        self._affordable(len(epoch.snapshot.positions) * (1 + 3 * len(chosen)))
        return await self._compute(
            lambda: systemic_report(epoch.snapshot, epoch.quotes, epoch.world, epoch.latency, chosen, base=epoch.report)
        )

    async def replay(self, name: str, account: str) -> Replay:
        """Value one account along a scenario's path."""
        epoch, (scenario,) = self._newest(), self._chosen([name])
        self._known(epoch, account)
        if not scenario.paths:
            have = ", ".join(s.name for s in self._scenarios.values() if s.paths)
            raise InputError("scenario", f"{name} has no path through time", f"those with one: {have}")
        hours = hours_of(scenario, MOST_HOURS)
        snapshot = restrict(epoch.snapshot, account)
        self._affordable(len(snapshot.positions) * len(hours))
        moments = await self._compute(
            lambda: replay(scenario, snapshot, epoch.quotes, epoch.world, epoch.latency, hours)
        )
        return Replay(snapshot.epoch, snapshot.cut_time, scenario, account, moments)

    def _newest(self) -> Epoch:
        if self._epoch is None:
            raise UnknownError("epoch", "newest", "none was certified since the service started; try again soon")
        return self._epoch

    @staticmethod
    def _known(epoch: Epoch, account: str) -> None:
        if all(known.id != account for known in epoch.snapshot.accounts):
            raise UnknownError("account", account, "the newest epoch does not hold it yet; try again soon")

    def _chosen(self, names: Sequence[str]) -> tuple[Scenario, ...]:
        for name in names:
            if name not in self._scenarios:
                raise UnknownError("scenario", name, f"one of {', '.join(self._scenarios)}")
        return tuple(self._scenarios[name] for name in dict.fromkeys(names)) if names else self.scenarios()

    @staticmethod
    def _affordable(positions: int) -> None:
        if positions > MOST_POSITIONS:
            raise InputError(
                "scenario", f"{positions:,} positions would be valued, at most {MOST_POSITIONS:,} are",
                "name fewer scenarios, or one account",
            )  # fmt: skip

    async def _compute(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread, in its turn."""
        if self._waiting >= MOST_WAITING:
            raise ConflictError("request", f"{MOST_WAITING} questions are waiting already", "ask again in a moment")
        self._waiting += 1
        try:
            async with self._turns:
                return await asyncio.to_thread(work)
        finally:
            self._waiting -= 1
