"""Two statements of one epoch never both certify while at most f attestors are faulty."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from adapters.watermark import SqliteWatermark
from aggregator.domain.certificate import Attestation, Certificate
from aggregator.service.attest import Proposal, collect_quorum
from proofs.sets import genesis_set
from tests.unit.attest.statements import (
    EPOCH_SECONDS,
    ManualClock,
    make_attestor,
    make_deployment,
    make_leaf,
    make_proposal,
    make_signers,
)

START = 900_000_000


class Traitor:
    """Signs whatever it is asked to, as often as it is asked."""

    def __init__(self, index: int) -> None:
        self.name, self.index = f"traitor-{index}", index
        self._signer = make_signers(index + 1)[index]
        self.member = bytes.fromhex(self._signer.address[2:])

    async def attest(self, proposal: Proposal) -> Attestation:
        return Attestation(self.index, *self._signer.sign(proposal.digest))


class Equivocation(RuleBasedStateMachine):
    """A faulty proposer shows different statements to any subset, in any order, and attestors crash at will."""

    @initialize(n=st.sampled_from([4, 5, 7]), data=st.data())
    def deploy(self, n: int, data: st.DataObject) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.deployment = make_deployment(n)
        faulty = (n - 1) // 3
        self.traitors = data.draw(st.sets(st.integers(0, n - 1), max_size=faulty))
        self.clock = ManualClock(START * EPOCH_SECONDS + 1)
        self.epoch = START
        self.last: Certificate | None = None
        self.certified: dict[int, set[bytes]] = {}
        self.marks: dict[int, SqliteWatermark] = {}
        self.attestors: dict[int, Any] = {}
        for index in range(n):
            self.boot(index)

    def boot(self, index: int) -> None:
        if index in self.traitors:
            self.attestors[index] = Traitor(index)
            return
        self.marks[index] = SqliteWatermark(self.folder / str(index))
        # It forgets the log, as after a restore: the watermark alone must hold.
        self.attestors[index] = make_attestor(self.deployment, index, self.clock, watermark=self.marks[index])

    @rule(asked=st.sets(st.integers(0, 6)), variant=st.integers(1, 3), back=st.integers(0, 1))
    def propose(self, asked: set[int], variant: int, back: int) -> None:
        epoch = self.epoch - back
        previous = self.last if self.last is not None and self.last.header.epoch < epoch else None
        proposal = make_proposal(self.deployment, epoch, (make_leaf(epoch, variant),), previous=previous)
        attestors = [attestor for index, attestor in self.attestors.items() if index in asked]
        quorum = self.loop.run_until_complete(
            collect_quorum(proposal, attestors, genesis_set(self.deployment), timeout=20.0, grace=20.0)
        )
        if quorum.attestations:
            self.certified.setdefault(epoch, set()).add(proposal.digest)
            if self.last is None or epoch > self.last.header.epoch:
                self.last = Certificate(proposal.header, proposal.body, proposal.digest, quorum.attestations)

    @rule()
    def next_epoch(self) -> None:
        self.epoch += 1
        self.clock.time = self.epoch * EPOCH_SECONDS + 1

    @rule(index=st.integers(0, 6))
    def restart(self, index: int) -> None:
        if index in self.marks:
            self.loop.run_until_complete(self.marks[index].close())
            self.boot(index)

    @invariant()
    def at_most_one_statement_certifies_per_epoch(self) -> None:
        assert all(len(digests) == 1 for digests in getattr(self, "certified", {}).values())

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for mark in self.marks.values():
                self.loop.run_until_complete(mark.close())
            self.loop.close()
            shutil.rmtree(self.folder)


Equivocation.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestEquivocation = Equivocation.TestCase


def test_with_more_traitors_than_f_the_property_is_lost() -> None:
    """Shows that the machine above can fail: f + 1 traitors certify two statements of one epoch."""
    deployment = make_deployment(4)
    clock = ManualClock(START * EPOCH_SECONDS + 1)

    async def run() -> set[bytes]:
        certified = set()
        for variant, victim in ((1, 0), (2, 1)):
            proposal = make_proposal(deployment, START, (make_leaf(START, variant),))
            attestors = [make_attestor(deployment, victim, clock), Traitor(2), Traitor(3)]
            quorum = await collect_quorum(proposal, attestors, genesis_set(deployment), timeout=5.0)
            certified |= {proposal.digest} if quorum.attestations else set()
        return certified

    assert len(asyncio.run(run())) == 2
