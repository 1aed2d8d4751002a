"""The set of attestors over an in-memory wire: whoever fails or lies, one root per epoch at most, and one if it can be.

Real nodes, attestors, clients and envelopes; what they recompute is agreed on, and time is set by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aggregator.domain.certificate import Attestation, Certificate, EpochRecord, State
from aggregator.domain.errors import CrossmarginError, Unreachable
from aggregator.service.attest import Proposal, collect_quorum
from aggregator.service.envelope import Answer, decode_epoch, encode_answer
from aggregator.service.node import Node, Peers
from aggregator.service.remote import AttestorClient, Fences, Parcels
from aggregator.service.replica import to_record
from proofs.sets import genesis_set
from tests.unit.attest.statements import (
    EPOCH_SECONDS,
    ManualClock,
    MemoryWatermark,
    make_attestor,
    make_deployment,
    make_leaf,
    make_proposal,
    make_rules,
    make_signers,
)

START = 900_000_000
COORDINATOR = "0x" + "c0" * 20
PROPOSE_AFTER = EPOCH_SECONDS / 8  # so that everybody's turn comes within the epoch
HABITS = ("signs anything", "silent", "garbage", "slow")


class Record(MemoryWatermark):
    """An attestor's durable record: it survives restarts of the attestor."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    async def begin(self) -> int:
        self.begun += 1
        return self.begun

    async def raise_to(self, *, starts: int = 0, epoch: int = 0) -> None:
        self.begun = max(self.begun, starts)

    async def note_refusal(self, note: Any) -> None: ...


class MemoryStore:
    """The log of one party, without accounts that anybody looks at."""

    def __init__(self) -> None:
        self.records: dict[int, EpochRecord] = {}

    async def state(self) -> State:
        return State((), (), {})

    async def accounts(self) -> tuple[str]:
        return ("one",)

    async def preimage(self, name: str) -> str:
        return "complete"

    async def certificate(self, number: int | None = None) -> Certificate | None:
        known = self.records.get(max(self.records, default=-1) if number is None else number)
        return None if known is None else known.certificate

    async def epoch(self, number: int | None = None, *, certified: bool = True) -> EpochRecord | None:
        return self.records.get(max(self.records, default=-1) if number is None else number)

    async def save_epoch(self, record: EpochRecord) -> None:
        self.records[record.header.epoch] = record


class World:
    """Members of whom some are faulty, a coordinator that may fail, and every signature that anybody ever gave."""

    def __init__(self, n: int, habits: dict[int, str]) -> None:
        self.n, self.habits = n, habits
        self.deployment, self.signers = make_deployment(n), make_signers(n)
        self.group, self.rules = genesis_set(self.deployment), make_rules(self.deployment)
        self.clock = ManualClock(START * EPOCH_SECONDS + 0.1)
        self.signed: dict[int, dict[bytes, set[int]]] = {}  # by epoch and digest: who signed
        self.coordinator = SimpleNamespace(last=None, up=True)
        self.records = {i: Record() for i in range(n)}
        self.stores = {i: MemoryStore() for i in range(n)}
        self.down: set[int] = set()
        self.nodes: dict[int, Node] = {}
        self.variant = 0

    @property
    def honest(self) -> list[int]:
        return [i for i in range(self.n) if i not in self.habits]

    async def boot(self, index: int) -> None:
        """Start a correct attestor, with what its record and store hold."""
        record, store = self.records[index], self.stores[index]
        attestor = make_attestor(
            self.deployment, index, self.clock, watermark=record, last=await store.certificate()
        )  # fmt: skip

        async def settle(certificate: Certificate) -> None:
            if await store.certificate(certificate.header.epoch) is None:
                await store.save_epoch(to_record(certificate, certificate.header.epoch * EPOCH_SECONDS))

        fences = Fences()
        peers = Peers([self.client(index, other, fences) for other in range(self.n) if other != index])
        self.nodes[index] = Node(
            index,
            attestor,
            SimpleNamespace(settle=settle),  # type: ignore[arg-type]
            store,  # type: ignore[arg-type]
            record,
            self.signers[index],
            signers={},
            rules=self.rules,
            clock=self.clock,
            peers=peers,
            fences=fences,
            coordinator=COORDINATOR,
            make_cycle=self.make_cycle,
            propose_after=PROPOSE_AFTER,
            keep_epochs=100,
        )
        self.down.discard(index)
        await self.nodes[index].start()

    def client(self, sender: int | None, receiver: int, fences: Fences) -> AttestorClient:
        wire = Memory(self, sender, receiver)
        return AttestorClient(
            f"attestor-{receiver}",
            receiver,
            self.deployment.members[receiver],
            wire,
            deployment_id=self.deployment.deployment_id(),
            fences=fences,
            parcels=Parcels(),
        )

    def proposal(self, epoch: int, previous: Certificate | None) -> Proposal:
        """Return a proposal unlike all before it."""
        self.variant += 1
        return make_proposal(self.deployment, epoch, (make_leaf(epoch, self.variant),), previous=previous)

    async def collect(self, proposal: Proposal, attestors: list[Any]) -> EpochRecord:
        quorum = await collect_quorum(proposal, attestors, self.group, timeout=30.0, grace=0.0)
        certificate = Certificate(proposal.header, proposal.body, proposal.digest, quorum.attestations)
        return to_record(certificate, proposal.cut.cut_time)

    @asynccontextmanager
    async def make_cycle(self, node: Node) -> AsyncIterator[Any]:
        async def run_epoch(epoch: int) -> EpochRecord:
            own = Watched(self, node)
            record = await self.collect(self.proposal(epoch, node.attestor.last), [own, *node.peers.attestors])
            if record.attestations:
                await node.certified(record)
                await asyncio.gather(*node.peers._telling)
            return record

        yield SimpleNamespace(run_epoch=run_epoch)

    async def coordinate(self, epoch: int, among: list[int]) -> EpochRecord:
        """Let the coordinator, which is correct, propose to some."""
        clients = [self.client(None, i, Fences()) for i in among]
        for status in await Peers(clients).statuses():
            if status.certificate is not None and epoch > status.certificate.header.epoch > self.last_epoch:
                self.coordinator.last = status.certificate
        record = await self.collect(self.proposal(epoch, self.coordinator.last), clients)
        if record.certificate is not None:
            self.coordinator.last = record.certificate
        return record

    @property
    def last_epoch(self) -> int:
        return self.coordinator.last.header.epoch if self.coordinator.last else 0


class Watched:
    """A proposer's own attestor."""

    def __init__(self, world: World, node: Node) -> None:
        self.world, self.node = world, node
        self.name, self.member = node.attestor.name, node.attestor.member

    async def attest(self, proposal: Proposal) -> Attestation:
        given = await self.node.attestor.attest(proposal)
        self.world.signed.setdefault(proposal.header.epoch, {}).setdefault(proposal.digest, set()).add(given.index)
        return given


class Memory:
    """A wire without a network: what a faulty member does at the other end is its habit."""

    def __init__(self, world: World, sender: int | None, receiver: int) -> None:
        self.world, self.sender, self.receiver = world, sender, receiver

    async def call(self, method: str, path: str, body: bytes = b"", *, seconds: float, limit: int) -> bytes:
        world, habit = self.world, self.world.habits.get(self.receiver)
        absent = habit is None and self.receiver not in world.nodes  # not started yet
        if absent or self.receiver in world.down or habit == "silent":
            raise Unreachable(f"attestor-{self.receiver}", "no answer")
        if habit == "garbage":
            return b"\x00garbage"
        if habit is not None:
            return await self.faulty(path, body, habit)
        node = world.nodes[self.receiver]
        who = COORDINATOR if self.sender is None else "0x" + f"{self.sender + 1:040x}"
        if path == "/v1/status":
            return await node.status(who)
        if path == "/v1/certificates":
            await node.learn(who, body)
            return b""
        answer = await node.attest("epoch", who, body)
        request = decode_epoch(body)
        if await world.records[self.receiver].highest() == request.header.epoch:
            mark = world.records[self.receiver].signed[request.header.epoch]
            world.signed.setdefault(request.header.epoch, {}).setdefault(mark, set()).add(self.receiver)
        return answer

    async def faulty(self, path: str, body: bytes, habit: str) -> bytes:
        if habit == "slow":
            for _ in range(200):
                await asyncio.sleep(0)
        if path != "/v1/attest/epoch":
            raise Unreachable(f"attestor-{self.receiver}", "says nothing")
        request = decode_epoch(body)
        signature = self.world.signers[self.receiver].sign(request.digest)
        return encode_answer(Answer(self.receiver, 1, Attestation(self.receiver, *signature)))

    async def close(self) -> None: ...


class AttestorSet(RuleBasedStateMachine):
    """Coordinator and attestors fail, restart, lie to each other and take over, in any order."""

    @initialize(n=st.sampled_from([4, 7]), data=st.data())
    def begin(self, n: int, data: st.DataObject) -> None:
        self.loop = asyncio.new_event_loop()
        faulty = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=(n - 1) // 3))
        self.world = World(n, {i: data.draw(st.sampled_from(HABITS)) for i in faulty})
        self.epoch = START
        for index in self.world.honest:
            self.run(self.world.boot(index))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def next_epoch(self) -> None:
        self.epoch += 1
        self.world.clock.time = self.epoch * EPOCH_SECONDS + 0.1

    @rule(among=st.sets(st.integers(0, 6), min_size=1))
    def coordinator_reaches_some(self, among: set[int]) -> None:
        self.run(self.world.coordinate(self.epoch, [i for i in sorted(among) if i < self.world.n]))

    @rule(split=st.sets(st.integers(0, 6)), back=st.integers(0, 1))
    def coordinator_equivocates(self, split: set[int], back: int) -> None:
        """A faulty coordinator, or a faulty member in its turn, shows one statement here and another there."""
        world, epoch = self.world, self.epoch - back
        last = world.coordinator.last if world.last_epoch < epoch else None
        for part in (split, set(range(world.n)) - split):
            clients = [world.client(None, i, Fences()) for i in sorted(part) if i < world.n]
            if clients:
                self.run(world.collect(world.proposal(epoch, last), clients))

    @rule(index=st.integers(0, 6))
    def somebody_proposes(self, index: int) -> None:
        world = self.world
        if index in world.nodes and index not in world.down:
            node = world.nodes[index]
            world.clock.time = self.epoch * EPOCH_SECONDS + node.delay(self.epoch)
            if self.run(node._is_mine(self.epoch)):
                with suppress(CrossmarginError):
                    self.run(node.propose(self.epoch))

    @rule()
    def time_passes(self) -> None:
        self.next_epoch()

    @rule(index=st.integers(0, 6))
    def one_stops(self, index: int) -> None:
        if index in self.world.nodes:
            self.world.down.add(index)

    @rule(index=st.integers(0, 6))
    def one_restarts(self, index: int) -> None:
        if index in self.world.nodes:
            self.run(self.world.boot(index))

    @rule(by=st.sampled_from(["coordinator", "attestor"]))
    def all_is_well_again(self, by: str) -> None:
        """With everybody correct up and one correct proposer, the next epoch certifies (invariant 14)."""
        world = self.world
        for index in sorted(world.down):
            self.run(world.boot(index))
        self.run(self.spread())
        self.next_epoch()
        if by == "coordinator":
            record = self.run(world.coordinate(self.epoch, list(range(world.n))))
        else:
            first = min(world.honest, key=lambda i: world.nodes[i].delay(self.epoch))
            world.clock.time = self.epoch * EPOCH_SECONDS + world.nodes[first].delay(self.epoch)
            assert self.run(world.nodes[first]._is_mine(self.epoch))
            record = self.run(world.nodes[first].propose(self.epoch))
        assert len(record.attestations) >= world.group.threshold, record.refusals

    async def spread(self) -> None:
        """Let everybody hear of every certificate: the network works."""
        for index in self.world.honest:
            await self.world.nodes[index].watch()

    @invariant()
    def one_root_per_epoch(self) -> None:
        """Invariant 13, with every signature that exists, collected by anybody or not."""
        if not hasattr(self, "world"):
            return
        for epoch, digests in self.world.signed.items():
            certifiable = [
                d for d, who in digests.items() if len(who | self.world.habits.keys()) >= self.world.group.threshold
            ]
            assert len(certifiable) <= 1, epoch
            for index in self.world.honest:
                assert sum(index in who for who in digests.values()) <= 1, (epoch, index)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()


TestAttestorSet = AttestorSet.TestCase
TestAttestorSet.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
