"""Posting to a real registry on a real chain: what it takes, what it refuses, and what the relayer makes of it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from adapters.destinations.evm import CEILING_FLOOR, EvmRegistryDestination, decode_transaction
from adapters.keys import KeySigner
from aggregator.domain.certificate import EpochRecord, PostingStatus, SignedPosting
from aggregator.domain.errors import PostingError
from aggregator.service.relayer import Relayer
from infra.devnet.anvil import Anvil
from proofs import merkle
from proofs.leaf import hash_leaf
from tests.chain.evm_deployment import ETHER, PAYER, deploy, make_destination, posted_epochs
from tests.unit.attest.statements import (
    CHAIN,
    EPOCH_SECONDS,
    RealClock,
    certify,
    make_deployment,
    make_proposal,
    make_record,
    make_signers,
    to_leaf,
)
from tests.unit.relayer.test_relayer import Records

pytestmark = pytest.mark.chain
DEPLOYMENT = make_deployment(4)


class Chain(NamedTuple):
    anvil: Anvil
    w3: Any
    registry: Any

    def nonce(self) -> int:
        return int(self.w3.eth.get_transaction_count(self.w3.to_checksum_address(PAYER.address)))


@pytest.fixture
def chain() -> Iterator[Chain]:
    with Anvil() as anvil:
        yield Chain(anvil, *deploy(anvil, DEPLOYMENT))


@pytest_asyncio.fixture
async def destination(chain: Chain) -> AsyncIterator[EvmRegistryDestination]:
    made = make_destination(chain.anvil.url, chain.registry.address, DEPLOYMENT)
    yield made
    await made.close()


def epoch_now() -> int:
    return int(time.time()) // EPOCH_SECONDS


def record_of(epoch: int, **options: Any) -> EpochRecord:
    return make_record(DEPLOYMENT, epoch, **options)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def settled(destination: EvmRegistryDestination, posting: SignedPosting) -> PostingStatus:
    for _ in range(500):
        status = await destination.status(posting)
        if status.state != "pending":
            return status
        await asyncio.sleep(0.02)
    raise AssertionError("still pending")


async def test_a_certificate_lands_and_its_leaves_verify(chain: Chain, destination: EvmRegistryDestination) -> None:
    assert await destination.read_latest() is None
    record = record_of(epoch_now())
    assert record.certificate is not None
    posting = await destination.sign(record.certificate)
    assert (await destination.status(posting)).state == "pending"
    assert chain.nonce() == 0  # signing sends nothing
    await destination.submit(posting)
    await destination.submit(posting)
    status = await settled(destination, posting)
    await destination.submit(posting)  # mined: still harmless
    assert status.state == "final"
    assert 20_000 < status.cost < 200_000
    latest = await destination.read_latest()
    assert latest is not None
    assert (latest.epoch, latest.root) == (record.header.epoch, record.header.root)
    assert (latest.floor, latest.produced_at, latest.valid_until) == (
        record.header.floor,
        record.header.produced_at,
        record.header.valid_until,
    )
    hashes = [hash_leaf(to_leaf(values)) for values in record.leaves]
    for i, values in enumerate(record.leaves):
        assert await destination.verify(values, merkle.proof(hashes, i))
        assert await destination.verify(values._replace(destination=CHAIN), merkle.proof(hashes, i))
        assert not await destination.verify(values._replace(budget=values.budget + 1), merkle.proof(hashes, i))
    assert posted_epochs(chain.registry) == [record.header.epoch]
    assert chain.nonce() == 1


async def test_what_the_registry_refuses_is_not_signed_and_said_in_its_words(
    destination: EvmRegistryDestination,
) -> None:
    epoch = epoch_now()
    forged = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, epoch), make_signers(5)[1:])
    short = record_of(epoch).certificate
    assert short is not None
    cut = epoch * EPOCH_SECONDS
    late = record_of(epoch, header={"produced_at": cut - 90, "valid_until": cut - 60})
    for certificate, reason in (
        (forged, "wrong signer"),
        (replace(short, attestations=short.attestations[:-1]), "too few signatures"),
        (record_of(epoch + 1000, header={"produced_at": 1}).certificate, "epoch in the future"),
        (record_of(epoch, header={"produced_at": cut + 60}).certificate, "producedAt in the future"),
        (late.certificate, "expired"),
    ):
        assert certificate is not None
        with pytest.raises(PostingError, match=f"^{CHAIN}: the registry refuses: {reason}") as caught:
            await destination.sign(certificate)
        assert caught.value.retryable is ("future" in reason)  # its clock will get there


async def test_check_is_silent_on_the_right_registry_and_names_what_differs(chain: Chain) -> None:
    url, address = chain.anvil.url, chain.registry.address
    other = make_deployment(5)
    poor = KeySigner(b"\x08" * 32)
    for expected, options in (
        ((), {"deployment": DEPLOYMENT}),
        (("wrong-deployment", "wrong-threshold", "wrong-members"), {"deployment": other}),
        (("wrong-deployment",), {"deployment": replace(DEPLOYMENT, salt=bytes(32))}),
        (("no-registry",), {"deployment": DEPLOYMENT, "address": "0x" + "12" * 20}),
        (("payer-low",), {"deployment": DEPLOYMENT, "payer": poor}),
    ):
        destination = make_destination(url, **({"address": address} | options))  # type: ignore[arg-type]
        findings = await destination.check()
        await destination.close()
        assert tuple(finding.code for finding in findings) == expected, findings


async def test_a_reverted_posting_says_why(chain: Chain, destination: EvmRegistryDestination) -> None:
    """Two relayers race: both sign for one epoch, one lands first."""
    record = record_of(epoch_now())
    assert record.certificate is not None
    rival = make_destination(chain.anvil.url, chain.registry.address, DEPLOYMENT, payer=KeySigner(b"\x09" * 32))
    chain.anvil.rpc("anvil_setBalance", "0x" + KeySigner(b"\x09" * 32).address[2:], hex(ETHER))
    mine, theirs = await destination.sign(record.certificate), await rival.sign(record.certificate)
    await rival.submit(theirs)
    assert (await settled(rival, theirs)).state == "final"
    await destination.submit(mine)
    status = await settled(destination, mine)
    assert status.state == "failed"
    assert status.height > 0
    assert "epoch not above the last" in status.detail
    assert posted_epochs(chain.registry) == [record.header.epoch]
    await rival.close()


# -- the relayer on that chain


class Service(NamedTuple):
    records: Records
    relayer: Relayer

    async def offer(self, epoch: int, **options: Any) -> None:
        self.records.records[epoch] = record_of(epoch, **options)
        await self.relayer.offer(self.records.records[epoch])

    async def reaches(self, epoch: int, state: str) -> None:
        await until(lambda: state in self.records.states(epoch))


@pytest_asyncio.fixture
async def service(chain: Chain, tmp_path: Path) -> AsyncIterator[Service]:
    destination = make_destination(chain.anvil.url, chain.registry.address, DEPLOYMENT, depth=2)
    records = Records()
    relayer = Relayer(
        records, {CHAIN: destination}, RealClock(), tmp_path / "relayer.sqlite3", poll_seconds=0.05, bump_seconds=1.0
    )
    await relayer.start()
    yield Service(records, relayer)
    await relayer.stop()
    await destination.close()


async def test_epochs_are_posted_and_final_at_the_chains_depth(chain: Chain, service: Service) -> None:
    first = epoch_now() - 3
    for epoch in range(first, first + 3):
        await service.offer(epoch)
        await service.reaches(epoch, "confirmed")
    assert "final" not in service.records.states(first + 2)
    chain.anvil.mine(2)
    for epoch in range(first, first + 3):
        await service.reaches(epoch, "final")
    assert posted_epochs(chain.registry) == [first, first + 1, first + 2]
    assert chain.nonce() == 3


async def test_on_a_halted_chain_the_price_rises_on_one_nonce_and_one_posting_lands(
    chain: Chain, service: Service
) -> None:
    chain.anvil.pause()
    epoch = epoch_now()
    await service.offer(epoch)
    await until(lambda: service.records.states(epoch).count("submitted") >= 3)
    pool = chain.anvil.rpc("txpool_content")["pending"]
    ((nonce, transaction),) = next(iter(pool.values())).items()
    assert nonce == "0"
    assert transaction["hash"] == service.records.last(epoch).transaction
    chain.anvil.resume()
    chain.anvil.mine(3)
    await service.reaches(epoch, "final")
    assert posted_epochs(chain.registry) == [epoch]
    assert chain.nonce() == 1


async def test_a_newer_epoch_takes_the_nonce_of_a_stuck_one(chain: Chain, service: Service) -> None:
    chain.anvil.pause()
    epoch = epoch_now() - 1
    await service.offer(epoch)
    await service.reaches(epoch, "submitted")
    await service.offer(epoch + 1)
    await service.reaches(epoch, "superseded")
    await service.reaches(epoch + 1, "submitted")
    chain.anvil.resume()
    chain.anvil.mine(3)
    await service.reaches(epoch + 1, "final")
    assert posted_epochs(chain.registry) == [epoch + 1]
    assert chain.nonce() == 1


async def test_a_reorganisation_that_drops_a_posting_is_answered_with_the_same_bytes(
    chain: Chain, service: Service
) -> None:
    chain.anvil.mine(5)
    epoch = epoch_now()
    await service.offer(epoch)
    await service.reaches(epoch, "confirmed")
    landed = service.records.last(epoch).transaction
    chain.anvil.rpc("anvil_reorg", 1, [])
    await until(lambda: any("reorganisation" in posting.detail for posting in service.records.history))
    await until(lambda: chain.nonce() == 1)
    chain.anvil.mine(3)
    await service.reaches(epoch, "final")
    assert service.records.last(epoch).transaction == landed
    assert posted_epochs(chain.registry) == [epoch]


async def test_replacements_cost_at_least_an_eighth_more(chain: Chain, destination: EvmRegistryDestination) -> None:
    """The node itself judges: a replacement below its price bump would be refused as underpriced."""
    chain.anvil.pause()
    record = record_of(epoch_now())
    assert record.certificate is not None
    fees = []
    for _ in range(5):
        posting = await destination.sign(record.certificate)
        await destination.submit(posting)
        fees.append(decode_transaction(bytes.fromhex(posting.raw[2:])).fee_cap)
    assert all(b * 8 >= a * 9 for a, b in itertools.pairwise(fees))
    chain.anvil.resume()
    chain.anvil.mine()
    assert (await destination.status(posting)).state == "final"


async def test_a_replacement_whose_floor_rises_has_gas_to_empty_a_full_ring(
    chain: Chain, destination: EvmRegistryDestination
) -> None:
    now = int(time.time())
    times = {"produced_at": now, "valid_until": now + 600}

    async def send(epoch: int, floor: int = 0) -> tuple[SignedPosting, int]:
        certificate = record_of(epoch, header={**times, "floor": floor}).certificate
        assert certificate is not None
        posting = await destination.sign(certificate)
        await destination.submit(posting)
        return posting, decode_transaction(bytes.fromhex(posting.raw[2:])).gas

    last = epoch_now() - 3
    for epoch in range(last - 63, last + 1):
        posting, _ = await send(epoch)
        assert (await settled(destination, posting)).state == "final"
    chain.anvil.pause()
    await send(last + 1)
    _, plain = await send(last + 1)
    _, raised = await send(last + 2, floor=last + 2)
    # The one that raised it is replaced in its turn: its successor raises it.
    posting, successor = await send(last + 3, floor=last + 2)
    assert plain < CEILING_FLOOR < raised == successor
    chain.anvil.resume()
    chain.anvil.mine()
    status = await settled(destination, posting)
    assert status.state == "final", status
    assert plain < status.cost
    latest = await destination.read_latest()
    assert latest is not None
    assert (latest.epoch, latest.floor) == (last + 3, last + 2)
    assert not [epoch for epoch in range(last - 80, last + 3) if await destination.read_root(epoch)]
    posting, gas = await send(last + 4, floor=last + 2)  # it stands: nothing more is emptied
    assert gas < 2 * plain
    assert (await settled(destination, posting)).state == "final"
