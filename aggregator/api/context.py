"""What the API is given, and the newest epochs as it last read them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from aggregator.domain.certificate import EpochRecord, EpochSummary
from aggregator.domain.latency import LatencyReport, Leg
from aggregator.domain.rows import AssetRow, ChainRow, DeploymentRow, DestinationRow, SourceRow
from aggregator.domain.snapshot import Finding
from aggregator.ports import Accounts, Clock, Halt, Halts, Permits, RiskDesk, Store
from proofs.statement import Deployment

_RECENT = 20  # epochs looked through for the newest certified one before the store is asked outright
_HALTS = 1_000  # newest log entries among which a standing halt is looked for


@dataclass(frozen=True)
class ApiService:
    """Everything the API needs.

    Args:
        latency: returns what was measured of the legs in so many seconds, of one chain (id or name) and leg or of all.
        bundle: returns the audit bundle of one account at one whole epoch as JSON text.
        proof: returns the sibling path of the leaf at an index of ``record.leaves``.
        readiness: returns the reasons why the service is not ready, none when it is.
        desk: answers questions about risk; None where no epochs are computed.
        permits: collects withdrawal permits; None where no attestors are asked.
    """

    store: Store
    accounts: Accounts
    halts: Halts
    latency: Callable[[int, str | None, Leg | None], Awaitable[LatencyReport]]
    clock: Clock
    chains: tuple[ChainRow, ...]
    assets: tuple[AssetRow, ...]
    sources: tuple[SourceRow, ...]
    destinations: tuple[DestinationRow, ...]
    deployment: DeploymentRow
    bundle: Callable[[EpochRecord, str], Awaitable[str]]
    proof: Callable[[EpochRecord, int], tuple[bytes, ...]]
    readiness: Callable[[], Sequence[Finding]]
    desk: RiskDesk | None = None
    permits: Permits | None = None
    _newest: dict[bool, tuple[EpochSummary, EpochRecord]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def deployment_id(self) -> bytes:
        """Return the id that the deployment's genesis facts give."""
        row = self.deployment
        members = tuple(bytes.fromhex(member.removeprefix("0x")) for member in row.members)
        salt = bytes.fromhex(row.salt.removeprefix("0x"))
        return Deployment(row.network_class, members, row.threshold, row.not_after, salt).deployment_id()

    def chain_name(self, chain: str) -> str:
        """Return the configured name of a CAIP-2 chain, or the id itself."""
        return next((row.name for row in self.chains if row.id == chain), chain)

    async def standing_halts(self) -> tuple[Halt, ...]:
        """Return the halts in force, of every party."""
        return tuple(halt for halt in await self.halts.log(_HALTS) if halt.resumed_at is None)

    async def newest(self, *, certified: bool) -> EpochRecord | None:
        """Return the newest epoch whole; read it from the store only when it is another one than last time."""
        for summary in await self.store.epochs(limit=_RECENT):
            if certified and not summary.signers:
                continue
            known = self._newest.get(certified)
            if known is not None and known[0] == summary:
                return known[1]
            record = await self.store.epoch(summary.epoch, certified=certified)
            if record is not None:
                self._newest[certified] = (summary, record)
            return record
        return await self.store.epoch(certified=certified)

    async def newest_number(self) -> int:
        """Return the number of the newest certified epoch, -1 when there is none."""
        for summary in await self.store.epochs(limit=_RECENT):
            if summary.signers:
                return summary.epoch
        record = await self.store.epoch()
        return -1 if record is None else record.header.epoch


def _service(request: Request) -> ApiService:
    service: ApiService = request.app.state.service
    return service


Service = Annotated[ApiService, Depends(_service)]
