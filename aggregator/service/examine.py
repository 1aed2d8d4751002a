"""How one attestor recomputes a proposal: with its own eyes, its own price check and its own copy of the links log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aggregator.core.latency import within_band
from aggregator.domain.certificate import Certificate
from aggregator.domain.errors import RefusedError
from aggregator.ports import PriceSource, Store
from aggregator.service.attest import Proposal, Recomputed
from aggregator.service.collect import Observer
from aggregator.service.latency import LatencyMeter
from aggregator.service.permits import Vantage
from aggregator.service.replica import Ledger, SharedLedger
from aggregator.service.seals import seals
from aggregator.service.state_rules import StateRules
from aggregator.service.workbench import Workbench


class Examiner:
    """Recompute proposals for one attestor.

    Args:
        rules: what it demands of a proposed state.
        workbench: the same policy as everybody's.
        observer: its own readers and memory.
        source: verifies raw price updates; None where no signed price is configured.
        store: where it remembers what it read.
        meter: its own measurements, which the proposer's laws must not fall short of.
        ledger: its copy of accounts and links log; the store's, unless said otherwise.
        vantage: keeps what it recomputed, for what it signs besides epochs.
        check_permits: refuses a state that leaves out a permit it signed, or lists one that nobody asked for.
    """

    def __init__(
        self,
        rules: StateRules,
        workbench: Workbench,
        observer: Observer,
        source: PriceSource | None,
        store: Store,
        meter: LatencyMeter,
        ledger: Ledger | None = None,
        vantage: Vantage | None = None,
        check_permits: Callable[[Proposal], Awaitable[None]] | None = None,
    ) -> None:
        self._vantage, self._check_permits = vantage, check_permits
        self._workbench, self._observer, self._source, self._store = workbench, observer, source, store
        self._rules, self._meter = rules, meter
        self._ledger: Ledger = ledger or SharedLedger(store)

    async def recompute(self, proposal: Proposal) -> Recomputed:
        """Check what the proposer chose, read the chains at its Cut, and compute what follows.

        Args:
            proposal: with ``previous`` verified.

        Raises:
            RefusedError: the Cut or the state breaks a rule.
            SourceError: the price updates do not verify or are not the first after the cut.
        """
        if proposal.previous is not None:
            await self.settle(proposal.previous)
        state, cut = proposal.state, proposal.cut
        await self._rules.verify(proposal, await self._ledger.extended(proposal))
        if self._check_permits is not None:
            await self._check_permits(proposal)
        seen = await self._observer.collect_at(cut, state.accounts, seals(self._rules.deployment_id, state.links))
        # After the look at the chains: whoever refuses here must go on measuring, or it would never change its mind.
        self._check_latency(proposal)
        published = (
            self._source.decode(proposal.updates, cut.cut_time) if self._source is not None and proposal.updates else ()
        )
        quotes = (*published, *seen.quotes)
        mine = await asyncio.to_thread(
            self._workbench.compute,
            seen,
            quotes,
            proposal.updates,
            state,
            self._observer.last,
            proposal.latency,
            proposal.leaves or None,
        )
        self._observer.attested(proposal.digest, seen)
        self._rules.attested(proposal.digest, state, mine, self._workbench.world)
        self._ledger.attested(proposal, mine)
        if self._vantage is not None:
            self._vantage.attested(proposal.digest, mine, quotes, proposal.latency, state)
        # After a restart a chain that is down must still be known at the block the others remember.
        # Nobody waits for the last to sign: whoever is given up meanwhile still finishes its transaction.
        await asyncio.shield(self._store.save_readings(self._observer.name, self._observer.parts))
        return Recomputed(
            mine.leaves,
            mine.digests["cut"],
            mine.digests["prices"],
            mine.digests["policy"],
            mine.digests["risk"],
            mine.digests["state"],
            mine.commitment.accounts_root,
        )

    def _check_latency(self, proposal: Proposal) -> None:
        """Refuse laws shorter than one's own measurements allow; longer ones cost the owner, not the lender."""
        problem = within_band(proposal.latency, self._meter.tables(proposal.cut.cut_time), self._meter.configured)
        if problem:
            raise RefusedError("latency", problem)

    async def settle(self, certificate: Certificate) -> None:
        """What was attested last and is certified by now becomes the ground for what follows."""
        self._observer.certified(certificate.digest, certificate.header.epoch, certificate.header.floor)
        self._rules.certified(certificate.digest)
        if self._vantage is not None:
            self._vantage.certified(certificate.digest)
        await self._ledger.certified(certificate)
