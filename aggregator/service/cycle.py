"""One epoch, end to end: Cut → readings → Snapshot → report → statement → quorum → store → relayer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from time import perf_counter

import structlog

from aggregator.core.explain import explain
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Certificate, EpochRecord, State
from aggregator.domain.errors import CrossmarginError, RefusedError, SourceError
from aggregator.domain.latency import EVERYWHERE, LatencyTables
from aggregator.domain.links import shares_of
from aggregator.domain.price import Quote
from aggregator.domain.report import AccountMargin, MarginReport
from aggregator.domain.snapshot import REORGED
from aggregator.ports import Clock, GrantBook, PriceSource, Store
from aggregator.service import telemetry
from aggregator.service.accounts import LinkEnder
from aggregator.service.attest import GRACE, Attesting, Proposal, Quorum, Rules, Sets, collect_quorum
from aggregator.service.claims import Bounds, Claims
from aggregator.service.collect import Collected, Observer
from aggregator.service.latency import LatencyMeter
from aggregator.service.seals import seals
from aggregator.service.workbench import Computed, Workbench, skew
from proofs.sets import AttestorSet
from proofs.statement import Header, StatementBody, body_hash
from proofs.statement import digest as statement_digest

log = structlog.get_logger("epoch")
NO_ACCOUNTS = "no account is open yet; open one with `crossmargin accounts open` or POST /v1/accounts"
PRUNE_EVERY = 100
"""Epochs between two prunings of the store."""


class Cycle:
    """Runs epochs on the clock.

    Args:
        offer: called with each certified epoch (the relayer's door); it returns at once.
        meter: takes what was measured, and gives the laws that the valuation uses.
        ender: ends revoked links when they may; None where another party records links.
        grace: seconds that attestors have left once the threshold is reached (see :func:`collect_quorum`).
        catch_up: learns what was certified before an epoch without this party.
        tell: tells others of a certificate; it returns at once.
        permits: gives, for a cut's time, the withdrawal permits that a statement must list.
        turn: held from taking the state until the round is over; no permit is collected meanwhile.
        grants: the durable record of budgets this party proposed or signed; without one (tests alone) none is charged.
        claims: remembers whose unheard-of grants were believed, over all cycles of the process.
        on_computed: called with what a certified epoch was computed from and what came out; it returns at once.
    """

    def __init__(
        self,
        *,
        workbench: Workbench,
        observer: Observer,
        source: PriceSource | None,
        store: Store,
        attestors: Sequence[Attesting],
        rules: Rules,
        clock: Clock,
        offer: Callable[[EpochRecord], Awaitable[None]],
        keep_epochs: int,
        meter: LatencyMeter,
        ender: LinkEnder | None,
        grace: float = GRACE,
        on_computed: Callable[[Computed, Sequence[Quote], LatencyTables], None] = lambda *_: None,
        catch_up: Callable[[int], Awaitable[None]] | None = None,
        tell: Callable[[Certificate], None] | None = None,
        grants: GrantBook | None = None,
        permits: Callable[[int], Awaitable[Sequence[PermitRecord]]] | None = None,
        turn: asyncio.Lock | None = None,
        claims: Claims | None = None,
    ) -> None:
        self._claims = claims or Claims()
        self._grants, self._permits, self._turn = grants, permits, turn or asyncio.Lock()
        self._catch_up, self._tell = catch_up, tell
        self.on_computed = on_computed
        self._workbench, self._observer, self._source = workbench, observer, source
        self._store, self._attestors, self._rules, self._clock = store, attestors, rules, clock
        self._offer, self._keep = offer, keep_epochs
        self._meter, self._ender, self._grace = meter, ender, grace
        self._sets = Sets(rules.deployment, recovered=rules.recovered)
        self._signed = 0, 0
        self.last_problem: str = "no epoch has run yet"

    async def run(self, stop: asyncio.Event) -> None:
        """Run one epoch per period until ``stop`` is set; a failing epoch is logged and never ends the loop."""
        delta, last = self._rules.epoch_seconds, -1
        while not stop.is_set():
            number = int(self._clock.now() // delta)
            if number > last:
                last = number
                try:
                    if not await self._store.accounts():
                        self._wait_for_accounts()
                        continue
                    record = await self.run_epoch(number)
                    self.last_problem = "" if record.attestations else self._why_uncertified(record)
                    if number % PRUNE_EVERY == 0:
                        await self._store.prune(keep_epochs=self._keep)
                        if self._grants is not None:
                            # Permits are signed on an epoch that has not ended: what could be drawn at its cut counts.
                            await self._grants.forget(int(self._clock.now()) - self._rules.max_lifetime)
                except CrossmarginError as error:
                    telemetry.EPOCHS.labels("failed").inc()
                    self.last_problem = str(error)
                    log.warning("epoch failed", epoch=number, cause=str(error))
                except Exception as error:  # a defect must cost its epoch, not the service; its text may hold anything
                    telemetry.EPOCHS.labels("defect").inc()
                    self.last_problem = f"epoch {number} met a defect: {type(error).__name__} (see the log)"
                    log.exception("epoch met a defect", epoch=number)
            wait = (last + 1) * delta - self._clock.now()
            if wait > 0:
                ends = {asyncio.ensure_future(self._clock.sleep(wait)), asyncio.ensure_future(stop.wait())}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for end in ends:
                    end.cancel()

    def _wait_for_accounts(self) -> None:
        """Say, once, that there is nothing to do yet."""
        if self.last_problem != NO_ACCOUNTS:
            self.last_problem = NO_ACCOUNTS
            log.info("waiting", cause=NO_ACCOUNTS)

    def group(self, epoch: int) -> AttestorSet:
        """Return the set that an epoch demands, by the rotations known at the last one."""
        return self._sets.at(epoch)

    async def run_epoch(self, number: int) -> EpochRecord:
        """Produce, certify, store and offer one epoch.

        Raises:
            CrossmarginError: nothing was stored; the message says why.
        """
        async with self._turn:
            return await self._run_epoch(number)

    async def _run_epoch(self, number: int) -> EpochRecord:
        cut_time = number * self._rules.epoch_seconds
        if self._catch_up is not None:
            await self._catch_up(number)
        started = perf_counter()
        state = await self._store.state()
        previous = await self._store.certificate()
        if previous is not None and previous.header.epoch >= number:
            raise RefusedError("epoch", f"{number} is not above {previous.header.epoch}, which is certified")
        if self._permits is not None:
            state = replace(state, permits=tuple(await self._permits(cut_time)))
        if self._grants is not None:
            charged = await self._grants.outstanding(cut_time, shares_of(state.links), number)
            state = replace(state, grants=charged)
        self._sets.learn(state.rotations)
        group = self._sets.at(number)
        seen, (updates, published) = await asyncio.gather(
            self._observer.collect(number, cut_time, state.accounts, seals(self._rules.deployment_id, state.links)),
            self._published(cut_time),
        )
        telemetry.EPOCH_SECONDS.labels("read").observe(perf_counter() - started)
        for chain in seen.causes:
            telemetry.READ_FAILURES.labels(chain).inc()

        computing = perf_counter()
        quotes = (*published, *seen.quotes)
        latency = self._meter.tables(cut_time)
        mine = await asyncio.to_thread(
            self._workbench.compute, seen, quotes, updates, state, self._observer.last, latency
        )
        telemetry.EPOCH_SECONDS.labels("compute").observe(perf_counter() - computing)
        proposal = self._propose(group.set_id, seen, mine, updates, state, previous, latency)
        proposal = replace(proposal, previous_state=await self._store.preimage("state"))

        if self._grants is not None:  # before anybody is asked: it may become certified unheard of
            await self._grants.note(number, proposal.header.valid_until, proposal.leaves)
        asking = perf_counter()
        quorum = await collect_quorum(
            proposal,
            self._attestors,
            group,
            timeout=self._workbench.lifetime / 2,
            grace=self._grace,
        )
        telemetry.EPOCH_SECONDS.labels("attest").observe(perf_counter() - asking)
        self._signed = quorum.signed, group.threshold
        if quorum.attestations:
            self._meter.measure("attest", EVERYWHERE, perf_counter() - asking)
        for refusal, rule in zip(quorum.refusals, quorum.rules, strict=True):
            telemetry.REFUSALS.labels(refusal.attestor, rule).inc()
        await self._learn_claims(proposal, quorum, group.threshold)

        record = EpochRecord(
            header=proposal.header,
            body=proposal.body,
            digest=proposal.digest,
            cut_time=cut_time,
            attestations=quorum.attestations,
            refusals=quorum.refusals,
            chains=mine.snapshot.chains,
            findings=mine.report.findings,  # the snapshot's are among them
            margins=await asyncio.to_thread(self._explain, mine.report, len(state.accounts)),
            leaves=mine.leaves,
            preimages=dict(mine.preimages),
        )
        storing = perf_counter()
        await self._store.save_epoch(record)
        if record.attestations:
            # Before anything else can fail: what is certified must be posted, and be the ground of what follows.
            self._observer.attested(record.digest, seen)
            self._observer.certified(record.digest, number, record.header.floor)
            self._meter.certified(number, record.header.produced_at)
            await self._offer(record)
            if self._tell is not None and record.certificate is not None:
                self._tell(record.certificate)
            self.on_computed(mine, quotes, latency)
        else:
            log.warning("epoch not certified", epoch=number, refusals={r.attestor: r.reason for r in quorum.refusals})
            await self._yield_to_attestors(record)
        await self._remember()
        telemetry.EPOCH_SECONDS.labels("store").observe(perf_counter() - storing)
        self._measure(record, seen)
        if record.attestations and self._ender is not None:
            await self._ender.settle(record, state)
        return record

    async def _learn_claims(self, proposal: Proposal, quorum: Quorum, threshold: int) -> None:
        """Take over grants that attestors signed and this party never heard of; the next statement lists them."""
        if self._grants is None:
            return
        bounds = Bounds(
            shares_of(proposal.state.links),
            # One that was dropped from the policy is known for as long as something may be drawn there.
            {leaf.destination for leaf in proposal.leaves} | {grant.destination for grant in proposal.state.grants},
            proposal.header.epoch,
            after=proposal.cut.cut_time - self._grants.slack,
            until=self._clock.now() + self._rules.clock_skew + self._rules.max_lifetime,
        )
        learned = self._claims.take(quorum, threshold, bounds)
        if learned:
            await self._grants.learn(learned)
            log.info("grants learned", epoch=proposal.header.epoch, count=len(learned))

    async def _remember(self) -> None:
        """Keep what was read and measured, each by itself; a store in trouble costs the memory of it, not the epoch."""
        keeping: dict[str, Callable[[], Awaitable[None]]] = {
            "readings": lambda: self._store.save_readings(self._observer.name, self._observer.parts),
            "measurements": self._meter.flush,
        }
        for what, keep in keeping.items():
            try:
                await keep()
            except Exception:  # any store, any failure, a defect too: told in full, counted, and tried again next time
                telemetry.NOT_KEPT.labels(what).inc()
                log.exception("not kept", what=what)

    async def _yield_to_attestors(self, record: EpochRecord) -> None:
        """Halt a chain that more attestors than may be faulty call reorganised, or no epoch would follow."""
        bearable = (len(self._rules.deployment.members) - 1) // 3
        claims: dict[str, list[str]] = {}
        for refusal in record.refusals:
            rule, _, rest = refusal.reason.partition(": ")
            chain, said, _ = rest.partition(": the Cut says")
            if rule == REORGED and said:
                claims.setdefault(chain, []).append(rest)
        for chain, reasons in claims.items():
            if len(reasons) > bearable:
                await self._observer.yield_to(chain, reasons[0], record.cut_time)

    def _explain(self, report: MarginReport, count: int) -> tuple[AccountMargin, ...]:
        return tuple(explain(report, i, self._workbench.world) for i in range(count))

    async def _published(self, cut_time: int) -> tuple[tuple[bytes, ...], tuple[Quote, ...]]:
        """Return the publisher's raw updates and quotes; without them the prices say so, not the epoch."""
        if self._source is None:
            return (), ()
        try:
            updates = await self._source.fetch(cut_time)
            return updates, self._source.decode(updates, cut_time)
        except SourceError as error:
            telemetry.PRICE_FAILURES.labels(self._source.name).inc()
            log.warning("no usable price update", cause=str(error))
            return (), ()

    def _propose(
        self,
        set_id: int,
        seen: Collected,
        mine: Computed,
        updates: Sequence[bytes],
        state: State,
        previous: Certificate | None,
        latency: LatencyTables,
    ) -> Proposal:
        body = StatementBody(
            cut_digest=mine.digests["cut"],
            price_digest=mine.digests["prices"],
            policy_digest=mine.digests["policy"],
            risk_digest=mine.digests["risk"],
            state_digest=mine.digests["state"],
            accounts_root=mine.commitment.accounts_root,
            leaf_count=len(mine.leaves),
            previous=previous.digest if previous else bytes(32),
        )
        number = seen.cut.epoch
        header = Header(
            epoch=number,
            root=mine.commitment.root,
            # What was certified on a history that is gone must not be usable any more.
            floor=number if seen.cut.reorgs else previous.header.floor if previous else 0,
            set_id=set_id,
            produced_at=int(self._clock.now()),
            valid_until=mine.snapshot.valid_until,
            body=body_hash(body),
        )
        return Proposal(
            header=header,
            body=body,
            digest=statement_digest(header, self._rules.deployment_id),
            cut=seen.cut,
            leaves=mine.leaves,
            updates=tuple(updates),
            state=state,
            previous=previous,
            latency=latency,
            preimages=mine.preimages,
        )

    def _why_uncertified(self, record: EpochRecord) -> str:
        signed, threshold = self._signed
        reasons = "; ".join(f"{r.attestor}: {r.reason}" for r in record.refusals) or "nobody answered"
        return f"epoch {record.header.epoch} has no quorum: {signed} of the {threshold} signatures needed ({reasons})"

    @staticmethod
    def _measure(record: EpochRecord, seen: Collected) -> None:
        carried = dict.fromkeys(seen.readings, 0)
        for group in seen.cut.carried:
            carried[group.block.chain] += len(group.accounts)
        for chain, count in carried.items():
            telemetry.CARRIED.labels(chain).set(count)
            telemetry.HALTED_CHAINS.labels(chain).set(seen.causes.get(chain, "").startswith(REORGED))
        telemetry.CUT_SKEW.set(skew(record.chains))
        telemetry.FLOOR.set(record.header.floor)
        telemetry.EPOCHS.labels("certified" if record.attestations else "uncertified").inc()
        if record.attestations:
            telemetry.EPOCH_NUMBER.set(record.header.epoch)
        for view in record.chains:
            telemetry.CHAIN_AGE.labels(view.chain).set(view.age)
        for status in ("healthy", "unhealthy", "unknown"):
            telemetry.UNHEALTHY.labels(status).set(sum(m.status == status for m in record.margins))
