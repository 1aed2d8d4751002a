"""Statements as attestations of the real EAS contracts: what a quorum signed is published, anything else reverts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from eth_abi import decode, encode
from web3 import Web3
from web3.exceptions import Web3Exception

from adapters.destinations.eas import SCHEMA, EasPublication, schema_uid
from adapters.destinations.evm import HEADER_TYPE
from adapters.rpc import EvmEndpoint
from aggregator.domain.certificate import Certificate, EpochRecord
from aggregator.domain.errors import PostingError
from aggregator.domain.rows import PublicationRow
from aggregator.service.relayer import Relayer
from infra.devnet.anvil import Anvil, deploy_code, transact
from infra.devnet.artifacts import load
from infra.devnet.eas import deploy_eas, load_eas
from proofs import merkle
from proofs.leaf import hash_leaf
from tests.chain.evm_deployment import PAYER, deploy, make_chain
from tests.unit.attest.statements import CHAIN, EPOCH_SECONDS, RealClock, make_deployment, make_record, to_leaf
from tests.unit.relayer.test_relayer import Records

pytestmark = pytest.mark.chain
DEPLOYMENT = make_deployment(4)


class Service(NamedTuple):
    anvil: Anvil
    w3: Any
    names: dict[str, str]

    @property
    def eas(self) -> Any:
        address = Web3.to_checksum_address(self.names["eas"])
        return self.w3.eth.contract(address=address, abi=load_eas("EAS")["abi"])

    @property
    def resolver(self) -> Any:
        address = Web3.to_checksum_address(self.names["eas_resolver"])
        return self.w3.eth.contract(address=address, abi=load("MarginResolver")[0])

    def attest(self, certificate: Certificate, **changes: Any) -> Any:
        """Return a call of EAS with a certificate, changed where said."""
        header = certificate.header
        fields = (header.epoch, header.root, header.floor, header.set_id, header.produced_at, header.valid_until)
        indices = sum(a.index << 8 * i for i, a in enumerate(certificate.attestations))
        payload = encode(
            [HEADER_TYPE, "uint256", "bytes32[2][]"],
            [(*fields, header.body), indices, [[a.r, a.vs] for a in certificate.attestations]],
        )
        values = {"recipient": "0x" + "00" * 20, "expiration": header.valid_until, "revocable": False}
        values |= {"reference": bytes(32), "payload": payload, "value": 0} | changes
        data = tuple(values[name] for name in ("recipient", "expiration", "revocable", "reference", "payload", "value"))
        return self.eas.functions.attest((Web3.to_bytes(hexstr=self.names["eas_schema"]), data))


@pytest.fixture
def service() -> Iterator[Service]:
    with Anvil() as anvil:
        w3, registry = deploy(anvil, DEPLOYMENT)
        yield Service(anvil, w3, deploy_eas(w3, registry))


@pytest_asyncio.fixture
async def publication(service: Service) -> AsyncIterator[EasPublication]:
    row = PublicationRow(
        chain=CHAIN,
        kind="eas",
        address=service.names["eas"],
        resolver=service.names["eas_resolver"],
        payer_key="payer",
    )
    chain = make_chain(service.anvil.url)
    made = EasPublication(row, chain, EvmEndpoint(chain, chain.rpc[0]), PAYER, DEPLOYMENT)
    yield made
    await made.close()


def record(ahead: int = 0, of: Certificate | None = None) -> tuple[EpochRecord, Certificate]:
    """Return a statement of an epoch `ahead` of the present one, or of another statement's."""
    now = int(time.time()) // EPOCH_SECONDS if of is None else of.header.epoch
    made = make_record(DEPLOYMENT, now + ahead)
    assert made.certificate is not None
    return made, made.certificate


async def publish(publication: EasPublication, certificate: Certificate) -> int:
    """Post a certificate; return what it cost."""
    posting = await publication.sign(certificate)
    await publication.submit(posting)
    for _ in range(500):
        status = await publication.status(posting)
        if status.state != "pending":
            assert status.state == "final", status
            return status.cost
        await asyncio.sleep(0.02)
    raise AssertionError("still pending")


async def test_a_statement_is_published_with_all_a_registry_would_take(
    service: Service, publication: EasPublication
) -> None:
    assert schema_uid(service.names["eas_resolver"]).hex() == service.names["eas_schema"][2:]
    assert await publication.check() == ()
    assert await publication.read_latest() is None
    made, certificate = record()
    header = certificate.header
    assert 100_000 < await publish(publication, certificate) < 700_000
    latest = await publication.read_latest()
    assert latest is not None
    assert (latest.epoch, latest.root, latest.valid_until) == (header.epoch, header.root, header.valid_until)
    assert await publication.read_root(header.epoch) == header.root
    assert await publication.read_root(header.epoch - 1) is None
    assert await publication.read_newest_set() == 1

    uid = service.resolver.functions.uidOf(header.epoch).call()
    attestation = service.eas.functions.getAttestation(uid).call()
    assert (attestation[3], attestation[8]) == (header.valid_until, False)
    types = [HEADER_TYPE, "uint256", "bytes32[2][]"]
    (epoch, root, *_), indices, signatures = decode(types, attestation[9])
    assert (epoch, root) == (header.epoch, header.root)
    assert [(bytes(r), bytes(vs)) for r, vs in signatures] == [(a.r, a.vs) for a in certificate.attestations]
    assert [indices >> 8 * i & 255 for i in range(len(signatures))] == [a.index for a in certificate.attestations]

    hashes = [hash_leaf(to_leaf(values)) for values in made.leaves]
    for i, values in enumerate(made.leaves):
        assert await publication.verify(values, merkle.proof(hashes, i))
        assert not await publication.verify(values._replace(budget=values.budget + 1), merkle.proof(hashes, i))
        assert not await publication.verify(values._replace(epoch=values.epoch - 1), merkle.proof(hashes, i))


async def test_an_older_or_repeated_epoch_is_not_published(service: Service, publication: EasPublication) -> None:
    _, newer = record(1)
    await publish(publication, newer)
    for ahead in (-1, 0):
        with pytest.raises(PostingError, match="epoch not above the last"):
            await publication.sign(record(ahead, newer)[1])
    await publish(publication, record(1, newer)[1])


def test_what_no_quorum_signed_is_not_published(service: Service) -> None:
    _, certificate = record()

    def refuse(why: str, changed: Certificate = certificate, **changes: Any) -> None:
        with pytest.raises(Web3Exception, match=why):
            service.attest(changed, **changes).call()

    refuse("too few", replace(certificate, attestations=certificate.attestations[:2]))
    refuse("wrong signer", replace(certificate, header=replace(certificate.header, root=b"\x01" * 32)))
    refuse("indices not increasing", replace(certificate, attestations=certificate.attestations[::-1]))
    refuse(Web3.keccak(text="Irrevocable()").to_0x_hex()[:10], revocable=True)  # EAS itself: the schema is not
    refuse("not as the header says", expiration=certificate.header.valid_until + 1)
    refuse("recipient or reference", recipient=service.w3.eth.accounts[1])
    with pytest.raises(Web3Exception):
        service.attest(certificate, payload=b"\x01").call()
    refuse("in the future", record(3)[1])
    transact(service.w3, service.attest(certificate))  # as it was, it is taken
    uid = service.resolver.functions.uidOf(certificate.header.epoch).call()
    _, newer = record(1, certificate)
    refuse("recipient or reference", newer, reference=uid)  # of an attestation that is there: EAS lets that through
    service.attest(newer).call()


def test_only_the_service_reaches_the_resolver(service: Service) -> None:
    stranger = service.w3.eth.accounts[3]
    attestation = (bytes(32), bytes(32), 1, 1, 0, bytes(32), stranger, stranger, False, b"")
    for call in (
        service.resolver.functions.attest(attestation),
        service.resolver.functions.multiAttest([attestation], [0]),
    ):
        with pytest.raises(Web3Exception, match="not the attestation service"):
            call.call({"from": stranger})
    assert service.resolver.functions.revoke(attestation).call() is False
    assert service.resolver.functions.SCHEMA().call() == SCHEMA


async def test_an_expired_statement_is_not_published(service: Service, publication: EasPublication) -> None:
    _, certificate = record()
    service.anvil.rpc("evm_setNextBlockTimestamp", certificate.header.valid_until)
    service.anvil.mine()
    with pytest.raises(PostingError):
        await publication.sign(certificate)


async def test_a_resolver_of_another_deployment_is_told(service: Service, publication: EasPublication) -> None:
    _, registry = deploy(service.anvil, make_deployment(7))
    other = deploy_code(service.w3, *load("MarginResolver"), service.eas.address, registry.address)
    publication._resolver = str(other.address)
    (finding,) = await publication.check()
    assert "deployment id" in finding.detail
    transact(service.w3, service.attest(record()[1]))


class Lane(NamedTuple):
    """The relayer of one publication, and what it recorded."""

    records: Records
    relayer: Relayer

    async def offer(self, made: EpochRecord) -> None:
        self.records.records[made.header.epoch] = made
        await self.relayer.offer(made)

    async def reaches(self, made: EpochRecord, state: str) -> str:
        """Wait until a posting is in a state; return its detail."""
        for _ in range(500):
            if state in self.records.states(made.header.epoch):
                return self.records.last(made.header.epoch).detail
            await asyncio.sleep(0.02)
        raise AssertionError(self.records.history)


@pytest_asyncio.fixture
async def lane(publication: EasPublication, tmp_path: Path) -> AsyncIterator[Lane]:
    records = Records()
    destinations = {f"{CHAIN}/eas": publication}
    relayer = Relayer(records, destinations, RealClock(), tmp_path / "relayer.sqlite3", poll_seconds=0.05)
    await relayer.start()
    yield Lane(records, relayer)
    await relayer.stop()


async def test_an_epoch_that_another_attested_does_not_halt_the_lane(service: Service, lane: Lane) -> None:
    """As at a registry: there is nothing left to do, and the next epoch has its turn."""
    first, theirs = record()
    second, _ = record(1, theirs)
    transact(service.w3, service.attest(theirs))
    await lane.offer(first)
    await lane.offer(second)
    await lane.reaches(second, "final")
    assert service.resolver.functions.latest().call()[0] == second.header.epoch
    assert {posting.epoch for posting in lane.records.history} == {second.header.epoch}


async def test_an_attestation_that_was_overtaken_is_superseded(service: Service, lane: Lane) -> None:
    """A stranger's newer one is mined first: ours reverts, which is no failure."""
    made, ours = record()
    _, newer = record(1, ours)
    service.anvil.pause()
    await lane.offer(made)
    await lane.reaches(made, "submitted")
    dear = {"from": service.w3.eth.accounts[0], "gas": 900_000, "gasPrice": 100 * service.w3.eth.gas_price}
    service.attest(newer).transact(dear)  # before ours in the block
    service.anvil.resume()
    service.anvil.mine()
    assert f"at epoch {newer.header.epoch}" in await lane.reaches(made, "superseded")
    assert "failed" not in lane.records.states(made.header.epoch)
    later, _ = record(2, ours)
    await lane.offer(later)
    await lane.reaches(later, "final")
