"""One epoch, end to end: Cut → readings → Snapshot → report → statement → quorum → store → relayer.

The coordinator proposes; attestors look for themselves (:meth:`Workbench.recompute`). Both go through the same
:class:`Workbench`, each with an observer of its own, so a proposal differs from a recomputation only in who chose the
Cut and the price updates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import structlog

from aggregator.core.commitment import Commitment, build_commitment, digest_text
from aggregator.core.pipeline import World, compute_report, explain, leaves
from aggregator.core.reconcile import reconcile
from aggregator.domain.certificate import EpochRecord, LinkRecord
from aggregator.domain.errors import CrossmarginError, SourceError
from aggregator.domain.price import Quote
from aggregator.domain.report import LeafValues, MarginReport
from aggregator.domain.rows import PythRow, Row
from aggregator.domain.snapshot import Account, ChainView, Cut, Reading, Snapshot
from aggregator.ports import Clock, PriceSource, Store
from aggregator.service import telemetry
from aggregator.service.attest import Attesting, Proposal, Recomputed, Rules, collect_quorum
from aggregator.service.bundle import to_signed_link
from aggregator.service.collect import Collected, Observer
from proofs.bundle import encode_link
from proofs.statement import GENESIS_SET_ID, Header, StatementBody, body_hash
from proofs.statement import digest as statement_digest

log = structlog.get_logger("epoch")
CODE_VERSION = "0.1.0"
NO_ACCOUNTS = "no account is open yet; open one with `crossmargin accounts open` or POST /v1/accounts"
PRUNE_EVERY = 100
"""Epochs between two prunings of the store."""
CUT_SLACK_BLOCKS = 40
"""How far behind its own pin an attestor accepts a proposed block: Solana finalises a slot every 0.4 s."""


def _texts(value: Any) -> Any:
    """Return JSON data with floats as their shortest exact text, so that its digest does not depend on a printer."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(k): _texts(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_texts(v) for v in value]
    return value


def _row(row: Row, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude=set(without))


@dataclass(frozen=True, slots=True)
class Computed:
    """A report with the digests and leaves that a statement commits to."""

    snapshot: Snapshot
    report: MarginReport
    leaves: tuple[LeafValues, ...]
    commitment: Commitment
    preimages: Mapping[str, str]
    digests: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class State:
    """The committed state: accounts, and the links log with the salts that tie accounts to controllers."""

    accounts: tuple[Account, ...]
    links: tuple[LinkRecord, ...]
    salts: Mapping[str, bytes]


async def read_state(store: Store) -> State:
    """Return the state as the store has it now."""
    accounts, links = await store.accounts(), await store.links()
    return State(accounts, links, {a.id: await store.salt(a.id) for a in accounts})


class Workbench:
    """Turns what one observer collected into digests and leaves. Pure but for the observer it is given."""

    def __init__(self, world: World, pyth: PythRow | None, lifetime: int) -> None:
        self.world, self.lifetime = world, lifetime
        # URLs and keys are an operator's own; what is committed is what decides a number.
        secret = frozenset({"rpc", "timeout", "requests_per_second"})
        self._policy = {
            "code_version": CODE_VERSION,
            "policy": _row(world.policy),
            "chains": [_row(c, without=secret) for c in world.chains],
            "assets": [_row(a) for _, a in sorted(world.assets.items())],
            "sources": [_row(s) for s in world.sources],
            "destinations": [_row(d, without=frozenset({"payer_key"})) for d in world.destinations],
            "pyth": None if pyth is None else self._guardians(pyth),
        }

    @staticmethod
    def _guardians(pyth: PythRow) -> dict[str, Any]:
        return _row(pyth, without=frozenset({"url", "api_key"})) | {"emitter_address": "0x" + pyth.emitter_address}

    def compute(
        self,
        seen: Collected,
        quotes: Sequence[Quote],
        updates: Sequence[bytes],
        state: State,
        previous: Mapping[str, Reading],
    ) -> Computed:
        """Reconcile, value and commit. ``previous`` holds an observer's last reading per chain."""
        cut, accounts = seen.cut, state.accounts
        snapshot = reconcile(
            cut, seen.readings, previous, accounts, self.world.chains, cut.cut_time + self.lifetime, seen.causes
        )
        report = compute_report(snapshot, quotes, self.world)
        committed = leaves(report)
        preimages: dict[str, str] = {}
        digests: dict[str, bytes] = {}
        for name, value in (
            ("cut", self._cut(cut, snapshot.chains)),
            ("prices", self._prices(cut, quotes, updates)),
            ("policy", self._policy),
            ("risk", self._risk(report)),
            ("state", self._state(state)),
        ):
            preimages[name], digests[name] = digest_text(_texts(value))
        return Computed(snapshot, report, committed, build_commitment(committed), preimages, digests)

    @staticmethod
    def _cut(cut: Cut, chains: Sequence[ChainView]) -> dict[str, Any]:
        return {
            "epoch": cut.epoch,
            "cut_time": cut.cut_time,
            "chains": [
                {
                    "chain": v.chain,
                    "status": v.status,
                    "cause": v.cause,
                    "age": v.age,
                    "block": None if v.block is None else dict(zip(v.block._fields, v.block, strict=True)),
                }
                for v in chains
            ],
        }

    def _prices(self, cut: Cut, quotes: Sequence[Quote], updates: Sequence[bytes]) -> dict[str, Any]:
        ids = {(s.feed, s.name): s.id for s in self.world.sources}
        return {
            "cut_time": cut.cut_time,
            "updates": ["0x" + u.hex() for u in updates],
            "quotes": [
                {
                    "feed": ids[q.feed, q.source],
                    "name": q.feed,
                    "source": q.source,
                    "kind": q.kind,
                    "price": str(q.price),
                    "conf": str(q.conf),
                    "expo": q.expo,
                    "publish_time": q.publish_time,
                    "ema_price": str(q.ema_price),
                    "ema_conf": str(q.ema_conf),
                }
                for q in sorted(quotes)
            ],
        }

    @staticmethod
    def _risk(report: MarginReport) -> dict[str, Any]:
        return {
            "bands": [dict(zip(b._fields, b, strict=True)) for b in report.prices],
            "cells": [dict(zip(c._fields, c, strict=True)) for c in report.cells],
        }

    @staticmethod
    def _state(state: State) -> dict[str, Any]:
        return {
            "accounts": [
                {"id": a.id, "controller": a.controller, "kind": a.kind, "home": a.home, "links": list(a.links)}
                for a in state.accounts
            ],
            "links": [encode_link(to_signed_link(link, state.salts[link.account])) for link in state.links],
        }


def recomputing(
    workbench: Workbench, observer: Observer, source: PriceSource | None, store: Store
) -> Callable[[Proposal], Awaitable[Recomputed]]:
    """Return how one attestor recomputes a proposal with its own eyes and its own list of accounts."""

    async def recompute(proposal: Proposal) -> Recomputed:
        state = await read_state(store)
        seen = await observer.collect_at(proposal.cut, state.accounts, CUT_SLACK_BLOCKS)
        published = source.decode(proposal.updates) if source is not None and proposal.updates else ()
        mine = workbench.compute(seen, (*published, *seen.quotes), proposal.updates, state, observer.last)
        # After a restart a chain that is down must still be known at the block the others remember.
        await store.save_readings(observer.name, observer.last.values())
        return Recomputed(
            mine.leaves,
            mine.digests["cut"],
            mine.digests["prices"],
            mine.digests["policy"],
            mine.digests["risk"],
            mine.digests["state"],
            mine.commitment.accounts_root,
        )

    return recompute


class Cycle:
    """Runs epochs on the clock.

    Args:
        offer: called with each certified epoch (the relayer's door); it returns at once.
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
    ) -> None:
        self._workbench, self._observer, self._source = workbench, observer, source
        self._store, self._attestors, self._rules, self._clock = store, attestors, rules, clock
        self._offer, self._keep = offer, keep_epochs
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
                    self.last_problem = "" if record.attestations else _why_uncertified(record)
                    if number % PRUNE_EVERY == 0:
                        await self._store.prune(keep_epochs=self._keep)
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

    async def run_epoch(self, number: int) -> EpochRecord:
        """Produce, certify, store and offer one epoch.

        Raises:
            CrossmarginError: nothing was stored; the message says why.
        """
        cut_time = number * self._rules.epoch_seconds
        started = perf_counter()
        state = await read_state(self._store)
        accounts = state.accounts
        previous = await self._store.epoch()
        seen, (updates, published) = await asyncio.gather(
            self._observer.collect(number, cut_time, accounts), self._published(cut_time)
        )
        telemetry.EPOCH_SECONDS.labels("read").observe(perf_counter() - started)
        for chain in seen.causes:
            telemetry.READ_FAILURES.labels(chain).inc()

        computing = perf_counter()
        mine = self._workbench.compute(seen, (*published, *seen.quotes), updates, state, self._observer.last)
        telemetry.EPOCH_SECONDS.labels("compute").observe(perf_counter() - computing)
        proposal = self._propose(number, seen, mine, updates, accounts, previous)

        asking = perf_counter()
        quorum = await collect_quorum(
            proposal, self._attestors, self._rules.deployment, timeout=self._workbench.lifetime / 2
        )
        telemetry.EPOCH_SECONDS.labels("attest").observe(perf_counter() - asking)
        for attestor, reason in quorum.refusals:
            telemetry.REFUSALS.labels(attestor, reason.partition(":")[0]).inc()

        record = EpochRecord(
            header=proposal.header,
            body=proposal.body,
            digest=proposal.digest,
            cut_time=cut_time,
            attestations=quorum.attestations,
            refusals=quorum.refusals,
            chains=mine.snapshot.chains,
            findings=mine.report.findings,  # the snapshot's are among them
            margins=tuple(explain(mine.report, i, self._workbench.world) for i in range(len(accounts))),
            leaves=mine.leaves,
            preimages=dict(mine.preimages),
        )
        storing = perf_counter()
        await self._store.save_epoch(record)
        await self._store.save_readings(self._observer.name, self._observer.last.values())
        telemetry.EPOCH_SECONDS.labels("store").observe(perf_counter() - storing)
        self._measure(record)
        if record.attestations:
            self._observer.agree(seen)
            await self._offer(record)
        else:
            log.warning("epoch not certified", epoch=number, refusals=dict(quorum.refusals))
        return record

    async def _published(self, cut_time: int) -> tuple[tuple[bytes, ...], tuple[Quote, ...]]:
        """Return the publisher's raw updates and quotes; without them the prices say so, not the epoch."""
        if self._source is None:
            return (), ()
        try:
            updates = await self._source.fetch(cut_time)
            return updates, self._source.decode(updates)
        except SourceError as error:
            telemetry.PRICE_FAILURES.labels(self._source.name).inc()
            log.warning("no usable price update", cause=str(error))
            return (), ()

    def _propose(
        self,
        number: int,
        seen: Collected,
        mine: Computed,
        updates: Sequence[bytes],
        accounts: Sequence[Account],
        previous: EpochRecord | None,
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
        header = Header(
            epoch=number,
            root=mine.commitment.root,
            floor=previous.header.floor if previous else 0,
            set_id=GENESIS_SET_ID,
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
            accounts=tuple(accounts),
            previous=previous.certificate if previous else None,
            preimages=mine.preimages,
        )

    @staticmethod
    def _measure(record: EpochRecord) -> None:
        telemetry.EPOCHS.labels("certified" if record.attestations else "uncertified").inc()
        if record.attestations:
            telemetry.EPOCH_NUMBER.set(record.header.epoch)
        for view in record.chains:
            telemetry.CHAIN_AGE.labels(view.chain).set(view.age)
        for status in ("healthy", "unhealthy", "unknown"):
            telemetry.UNHEALTHY.labels(status).set(sum(m.status == status for m in record.margins))


def _why_uncertified(record: EpochRecord) -> str:
    reasons = "; ".join(f"{who}: {why}" for who, why in record.refusals)
    return f"epoch {record.header.epoch} has no quorum ({reasons or 'nobody answered'})"
