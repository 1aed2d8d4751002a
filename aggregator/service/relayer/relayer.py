"""The relayer: one durable workflow per (epoch, destination), one posting in the air per destination.

A *lane* per destination holds the newest offered epoch and starts its workflow once the posting before has landed; an
older offer that was never signed is simply passed over. The workflow's steps are checkpointed in a SQLite file of
their own by DBOS::

    sign ──► submit ──► watch ──► final | failed | superseded
      ▲                   │
      └──── sign again ───┘      stuck (same nonce, higher fee), displaced, or expired (Solana)

Steps run at least once, so ``sign`` checkpoints the signed bytes before ``submit`` may send them, and sending them
again is harmless. Whatever a crash or a second relayer repeats, nonce and epoch admit one effect per (epoch, chain).

Steps return what happened as JSON and never raise: an exception would be stored, and would end the workflow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol

import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from aggregator.domain.certificate import (
    Certificate,
    EpochRecord,
    PostedRoot,
    Posting,
    PostingState,
    PostingStatus,
    SignedPosting,
)
from aggregator.domain.errors import CrossmarginError, PostingError, SourceError
from aggregator.ports import Clock, Destination
from aggregator.service.relayer.policy import PostingPolicy, measure_movement, should_post

WORKFLOW: Final = "post-certificate"
EXECUTOR: Final = "relayer"  # constant: another executor does not adopt a dead one's workflows
VERSION: Final = "1"  # raise it when the steps of the workflow change; pending workflows of other versions stay put
KEPT: Final = 500  # finished workflows kept for looking back
BACKOFF_LIMIT: Final = 15.0  # seconds

P = ParamSpec("P")
_log = structlog.get_logger(__name__)

Outcome = dict[str, Any]  # JSON: {"state": ..., "detail": ..., ...}


class Records(Protocol):
    """The part of the Store that the relayer needs."""

    async def epoch(self, number: int | None = None, *, certified: bool = True) -> EpochRecord | None: ...

    async def certificate(self, number: int | None = None) -> Certificate | None: ...

    async def save_posting(self, posting: Posting) -> None: ...


class _Lane:
    """One destination's queue of one, and what it has in the air."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.candidate: EpochRecord | None = None
        self.newest = 0  # the highest epoch ever offered
        self.airborne: set[int] = set()  # epochs whose posting is neither mined nor given up
        self.settled: set[int] = set()  # epochs seen to land or end since the start
        self.moved = asyncio.Event()  # the candidate or the air changed

    def settle(self, epoch: int) -> None:
        self.airborne.discard(epoch)
        self.settled.add(epoch)
        self.moved.set()


class Relayer:
    """Bring certificates to their destinations, across crashes.

    Args:
        store: read for certificates, written with the state of every posting.
        destinations: by CAIP-2 chain.
        clock: injected time.
        database_path: the workflows' own SQLite file; its folder exists.
        heartbeat_seconds: longest wait between postings while little moves; 0 posts every epoch.
        poll_seconds: between two looks at an unsettled posting.
        bump_seconds: after so long unmined, an EVM posting is signed again with a higher fee.
        on_posting: told of every posting state that is stored; must not raise.

    One relayer per process at a time (DBOS is one per process), one process per ``database_path``.
    """

    def __init__(
        self,
        store: Records,
        destinations: Mapping[str, Destination],
        clock: Clock,
        database_path: Path,
        *,
        heartbeat_seconds: int = 0,
        poll_seconds: float = 1.0,
        bump_seconds: float = 60.0,
        on_posting: Callable[[Posting], None] | None = None,
    ) -> None:
        self._store, self._clock, self._path = store, clock, database_path
        self._lanes = {chain: _Lane(destination) for chain, destination in destinations.items()}
        self._policy = PostingPolicy(heartbeat_seconds)
        self._poll, self._bump = poll_seconds, bump_seconds
        self._on_posting = on_posting
        self._workflow: Callable[[int, str], Coroutine[Any, Any, str]] | None = None
        self._drivers: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Open the workflows' file, resume what was under way, and begin to serve offers.

        DBOS takes over the running loop's default thread pool until :meth:`stop`.
        """
        if self._workflow is not None:
            raise RuntimeError("the relayer is running already")

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
        async def post(epoch: int, chain: str) -> str:
            return await self._post(epoch, chain)

        config = DBOSConfig(
            name=WORKFLOW,
            system_database_url=f"sqlite:///{self._path}",
            executor_id=EXECUTOR,
            application_version=VERSION,
            serializer=DBOSPortableJSONSerializer(),  # the default pickles: whoever can write the file could run code
            log_level="ERROR",
        )
        self._workflow = post
        DBOS(config=config)
        DBOS.launch()  # inside the loop, so that recovered workflows run on it
        unfinished = await DBOS.list_workflows_async(name=WORKFLOW, status=["PENDING", "ENQUEUED"], app_version=VERSION)
        for status in unfinished:
            chain, epoch = _parse_workflow_id(status.workflow_id)
            lane = self._lanes.get(chain)
            if lane is not None and epoch not in lane.settled:
                lane.airborne.add(epoch)
        await self._forget_finished()
        self._drivers = [asyncio.create_task(self._drive(chain, lane)) for chain, lane in self._lanes.items()]

    async def offer(self, record: EpochRecord) -> None:
        """Hand over a newly certified epoch, already stored; return at once. Uncertified ones are ignored."""
        if record.certificate is None:
            return
        for lane in self._lanes.values():
            if record.header.epoch > lane.newest:
                lane.candidate, lane.newest = record, record.header.epoch
                lane.moved.set()

    async def stop(self) -> None:
        """Stop at once; what is under way resumes at the next start."""
        if self._workflow is None:
            return
        self._workflow = None
        tasks = [*self._drivers, *self._running]
        for task in tasks:
            task.cancel()  # DBOS records no outcome for a cancelled task: it stays pending
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drivers = []
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as leaver:  # joins threads, and shuts down the loop's own pool
            await loop.run_in_executor(leaver, lambda: DBOS.destroy(destroy_registry=True))
        loop.set_default_executor(ThreadPoolExecutor())  # DBOS had put its own, which is closed now

    # -- lanes

    async def _drive(self, chain: str, lane: _Lane) -> None:
        """Start the newest due candidate whenever nothing is in the air."""
        failures = 0
        while True:
            await lane.moved.wait()
            lane.moved.clear()
            try:
                await self._advance(chain, lane)
                failures = 0
            except Exception as error:  # a node, the store, the workflows' file: a lane outlives them all
                if not isinstance(error, SourceError):
                    _log.warning("lane-held-up", destination=chain, kind=type(error).__name__)
                failures += 1
                lane.moved.set()
                await self._clock.sleep(self._backoff(failures))

    async def _advance(self, chain: str, lane: _Lane) -> None:
        record = lane.candidate
        if lane.airborne or record is None:
            return
        due = await self._is_due(lane.destination, record)
        if lane.candidate is not record:
            lane.moved.set()  # a newer one came while we asked
            return
        if due:
            await self._begin(chain, lane, record.header.epoch)
        if lane.candidate is record:
            lane.candidate = None  # only now: what could not begin is tried again

    async def _is_due(self, destination: Destination, record: EpochRecord) -> bool:
        certificate = record.certificate
        if certificate is None:
            return False
        latest = await destination.read_latest()
        # With no heartbeat every epoch is posted: what moved need not be known, nor a whole epoch read.
        compare = latest is not None and self._policy.heartbeat_seconds > 0
        posted = await self._store.epoch(latest.epoch) if latest is not None and compare else None
        return should_post(latest, certificate, measure_movement(posted, record), self._policy, self._clock.now())

    async def _begin(self, chain: str, lane: _Lane, epoch: int) -> None:
        workflow, identity = self._workflow, _workflow_id(chain, epoch)
        if workflow is None or await DBOS.get_workflow_status_async(identity) is not None:
            return  # stopping, or offered again after a restart: its workflow ran or runs
        if len(lane.settled) >= KEPT:
            lane.settled.clear()
            await self._forget_finished()
        lane.airborne.add(epoch)
        await self._save(epoch, chain, "waiting")
        try:
            with SetWorkflowID(identity):
                await DBOS.start_workflow_async(workflow, epoch, chain)
        except Exception:
            lane.airborne.discard(epoch)
            raise

    async def _forget_finished(self) -> None:
        old = await DBOS.list_workflows_async(
            name=WORKFLOW,
            status=["SUCCESS", "ERROR", "CANCELLED"],
            sort_desc=True,
            offset=KEPT,
            limit=10 * KEPT,
            load_input=False,
            load_output=False,
        )
        if old:
            await DBOS.delete_workflows_async([status.workflow_id for status in old])

    # -- the workflow: decisions depend on step results alone, so that a replay takes the same way

    async def _post(self, epoch: int, chain: str) -> str:
        lane = self._lanes.get(chain)
        if lane is None:
            return "failed: the destination is no longer configured"
        task = asyncio.current_task()
        assert task is not None  # DBOS runs workflows as tasks of the loop it was launched in
        self._running.add(task)
        try:
            outcome = await self._attempts(epoch, chain, lane)
        except Exception as error:  # a defect: DBOS records and logs it, the posting must not look alive
            await self._save(epoch, chain, "failed", detail=f"defect: {type(error).__name__}")
            raise
        finally:
            self._running.discard(task)
            lane.settle(epoch)  # whatever went wrong, the next epoch has its turn
        return f"{outcome['state']}: {outcome.get('detail', '')}"

    async def _attempts(self, epoch: int, chain: str, lane: _Lane) -> Outcome:
        """Sign, submit and watch until it is settled; every attempt but a displaced one shares the first's nonce."""
        attempts: list[Outcome] = []
        while True:
            signed = await _step("sign", self._sign, epoch, chain, lane, bool(attempts))
            if signed["state"] == "signed":
                attempts.append(signed["posting"])
                submitted = await _step("submit", self._submit, epoch, chain, lane, attempts[-1])
                if submitted["state"] == "again":
                    continue
                if submitted["state"] != "submitted":
                    return submitted
            elif signed["state"] != "keep":
                return signed
            watched = await _step("watch", self._watch, epoch, chain, lane, attempts)
            if watched["state"] == "gone":
                attempts.clear()  # nothing that was sent can land any more: a new intent, with a nonce of its own
            elif watched["state"] != "again":
                return watched

    async def _sign(self, epoch: int, chain: str, lane: _Lane, again: bool) -> Outcome:
        """Sign the epoch's certificate. ``again``: signed bytes are out already, so giving up is for `watch`."""
        failures = 0
        while True:
            try:
                certificate = await self._store.certificate(epoch)
                if certificate is None:
                    return await self._end(epoch, chain, "failed", "its certificate is not in the store")
                expired = self._clock.now() >= certificate.header.valid_until
                if again and (expired or lane.newest > epoch):
                    return {"state": "keep"}
                if not again and lane.newest > epoch:
                    return await self._end(epoch, chain, "superseded", "a newer epoch was certified before signing")
                if expired:
                    return await self._end(epoch, chain, "failed", "its certificate expired before it was signed")
                posting = await lane.destination.sign(certificate)
            except PostingError as error:
                if again:
                    return {"state": "keep"}  # at the fee cap, or one attempt was mined just now: `watch` tells
                if not error.retryable:
                    return await self._resolve(epoch, chain, lane, str(error))
            except SourceError:
                pass
            else:
                await self._save(epoch, chain, "signed", posting.id)
                return {"state": "signed", "posting": asdict(posting)}
            failures += 1
            await self._clock.sleep(self._backoff(failures))

    async def _submit(self, epoch: int, chain: str, lane: _Lane, fields: Outcome) -> Outcome:
        posting = SignedPosting(**fields)
        try:
            await lane.destination.submit(posting)
        except PostingError as error:
            if error.retryable:
                await self._clock.sleep(self._poll)
                return {"state": "again"}
            return await self._resolve(epoch, chain, lane, str(error), posting.id)
        except SourceError as error:
            # It may have arrived or not; `watch` finds out and sends it again.
            await self._save(epoch, chain, "submitted", posting.id, detail=str(error))
            return {"state": "submitted"}
        await self._save(epoch, chain, "submitted", posting.id)
        return {"state": "submitted"}

    async def _watch(self, epoch: int, chain: str, lane: _Lane, attempts: list[Outcome]) -> Outcome:
        """Look until one of the attempts is final, or until another must be signed or none can land any more."""
        postings = [SignedPosting(**fields) for fields in attempts]
        newest = postings[-1]
        started, failures, landed = self._clock.now(), 0, False
        certificate = await self._store.certificate(epoch)
        valid_until = certificate.header.valid_until if certificate is not None else 0
        while True:
            try:
                found = [(posting, await lane.destination.status(posting)) for posting in postings]
                failures = 0
            except CrossmarginError:
                failures += 1
                await self._clock.sleep(self._backoff(failures))
                continue
            best = next(((p, s) for p, s in found if s.state in ("final", "confirmed")), None)
            if best is not None:
                posting, status = best
                if status.state == "final":
                    root = certificate.header.root if certificate is not None else None
                    return await self._read_back(epoch, chain, lane, root, posting.id, status.cost)
                if not landed:
                    landed = True
                    await self._save(epoch, chain, "confirmed", posting.id, status.cost)
                    lane.settle(epoch)
            else:
                now = self._clock.now()
                if landed:
                    landed, started = False, now
                    await self._save(epoch, chain, "submitted", newest.id, detail="a reorganisation dropped it")
                pending = any(status.state == "pending" for _, status in found)
                if not pending:
                    return await self._conclude(epoch, chain, lane, found)
                stuck = newest.nonce >= 0 and now - started >= self._bump
                if lane.newest > epoch and (stuck or now >= valid_until):
                    detail = f"unmined after {now - started:.0f} s; a newer epoch takes its place"
                    return await self._end(epoch, chain, "superseded", detail, newest.id)
                if now < valid_until:
                    if stuck:
                        return {"state": "again"}
                    await self._resubmit(lane, newest)
            await self._clock.sleep(self._poll)

    async def _read_back(
        self, epoch: int, chain: str, lane: _Lane, root: bytes | None, transaction: str, cost: int
    ) -> Outcome:
        """A receipt says that a transaction ran; what counts is what the registry holds now."""
        failures = 0
        while True:
            try:
                stored = await lane.destination.read_root(epoch)
                break
            except SourceError:
                failures += 1
                await self._clock.sleep(self._backoff(failures))
        if stored is None:  # newer epochs have taken its place in the ring
            return await self._end(epoch, chain, "final", "its place in the ring is taken by now", transaction, cost)
        if stored != root:
            problem = f"the registry holds 0x{stored.hex()} for this epoch, which was not posted"
            return await self._end(epoch, chain, "failed", problem, transaction, cost)
        return await self._end(epoch, chain, "final", "", transaction, cost)

    async def _conclude(
        self, epoch: int, chain: str, lane: _Lane, found: list[tuple[SignedPosting, PostingStatus]]
    ) -> Outcome:
        """None of the signed bytes can land any more: say what became of the epoch."""
        reverted = next(((p, s) for p, s in found if s.state == "failed" and s.height > 0), None)
        if reverted is None:
            latest = await self._read_latest(lane)
            if latest is None or latest.epoch < epoch:
                return {"state": "gone"}  # displaced or expired: whether it is still wanted, `sign` decides
            return await self._end(epoch, chain, *_by_another(latest, epoch))
        posting, status = reverted
        return await self._resolve(epoch, chain, lane, status.detail, posting.id, status.cost)

    async def _resolve(
        self, epoch: int, chain: str, lane: _Lane, problem: str, transaction: str = "", cost: int = 0
    ) -> Outcome:
        """A refusal is a failure, unless the registry holds this epoch or a newer one by now."""
        latest = await self._read_latest(lane)
        if latest is not None and latest.epoch >= epoch:
            return await self._end(epoch, chain, *_by_another(latest, epoch), transaction, cost)
        return await self._end(epoch, chain, "failed", problem, transaction, cost)

    async def _read_latest(self, lane: _Lane) -> PostedRoot | None:
        failures = 0
        while True:
            try:
                return await lane.destination.read_latest()
            except SourceError:
                failures += 1
                await self._clock.sleep(self._backoff(failures))

    async def _resubmit(self, lane: _Lane, posting: SignedPosting) -> None:
        with suppress(CrossmarginError):  # it was sent before; `status` is the judge
            await lane.destination.submit(posting)

    async def _end(
        self, epoch: int, chain: str, state: PostingState, detail: str, transaction: str = "", cost: int = 0
    ) -> Outcome:
        await self._save(epoch, chain, state, transaction, cost, detail)
        return {"state": state, "detail": detail}

    async def _save(
        self, epoch: int, chain: str, state: PostingState, transaction: str = "", cost: int = 0, detail: str = ""
    ) -> None:
        posting = Posting(epoch, chain, state, transaction, cost, detail, int(self._clock.now()))
        try:
            await self._store.save_posting(posting)
        except Exception as error:  # a store in trouble must not cost a posting: the chain is what counts
            _log.warning("posting-not-recorded", epoch=epoch, destination=chain, state=state, kind=type(error).__name__)
        if self._on_posting is not None:
            self._on_posting(posting)

    def _backoff(self, failures: int) -> float:
        return min(self._poll * 2.0 ** min(failures, 16), max(self._poll, BACKOFF_LIMIT))


async def _step(
    name: str, run: Callable[P, Coroutine[Any, Any, Outcome]], *args: P.args, **kwargs: P.kwargs
) -> Outcome:
    """Run one checkpointed step; a replay returns the recorded outcome instead."""
    return await DBOS.run_step_async({"name": name}, run, *args, **kwargs)


def _by_another(latest: PostedRoot, epoch: int) -> tuple[PostingState, str]:
    if latest.epoch == epoch:
        return "confirmed", "posted by another relayer"
    return "superseded", f"the destination is at epoch {latest.epoch}"


def _workflow_id(chain: str, epoch: int) -> str:
    return f"{chain}/{epoch}"


def _parse_workflow_id(identity: str) -> tuple[str, int]:
    chain, _, epoch = identity.rpartition("/")
    return chain, int(epoch)
