"""The relayer as a process of its own, to be killed: posts one epoch, then ends.

Usage: ``relayer_program.py URL REGISTRY FOLDER EPOCH [CRASH]``; with CRASH it kills itself with SIGKILL there. Prints
every posting state it stores.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from adapters.destinations.evm import EvmRegistryDestination
from aggregator.domain.certificate import Certificate, Posting, PostingStatus, SignedPosting
from aggregator.service.relayer import Relayer
from tests.chain.evm_deployment import make_destination
from tests.unit.attest.statements import CHAIN, RealClock, make_deployment, make_record
from tests.unit.relayer.test_relayer import Records

DEPLOYMENT = make_deployment(4)
CRASH = sys.argv[5] if len(sys.argv) > 5 else ""


def die_at(point: str) -> None:
    if point == CRASH:
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(EvmRegistryDestination):
    """Dies between the real destination's deeds."""

    async def sign(self, certificate: Certificate) -> SignedPosting:
        posting = await super().sign(certificate)
        die_at("signed, not checkpointed")
        return posting

    async def submit(self, posting: SignedPosting) -> None:
        die_at("checkpointed, not sent")
        await super().submit(posting)
        die_at("sent, not checkpointed")

    async def status(self, posting: SignedPosting) -> PostingStatus:
        status = await super().status(posting)
        die_at("waiting")
        if status.state == "confirmed":
            die_at("mined, not final")
        return status


async def main(url: str, registry: str, folder: Path, epoch: int) -> None:
    destination = make_destination(url, registry, DEPLOYMENT, depth=1, kind=Mortal)
    records = Records()
    for number in (epoch - 1, epoch):  # the one before may be in the air from an earlier life
        records.records[number] = make_record(DEPLOYMENT, number)
    done = asyncio.Event()

    def tell(posting: Posting) -> None:
        print(posting.epoch, posting.state, posting.transaction or "-", posting.detail, flush=True)
        if posting.epoch == epoch and posting.state in ("final", "failed", "superseded"):
            done.set()

    relayer = Relayer(
        records, {CHAIN: destination}, RealClock(), folder / "relayer.sqlite3", poll_seconds=0.05, on_posting=tell
    )
    await relayer.start()
    await relayer.offer(records.records[epoch])
    await done.wait()
    await relayer.stop()
    await destination.close()


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
