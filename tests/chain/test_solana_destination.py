"""Posting certificates to the registry program over a real facade, through the project's own endpoint."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.instructions import get_associated_token_address

from adapters.destinations import destination_id
from adapters.destinations.solana import SolanaRegistryDestination
from adapters.keys import KeySigner, SolanaSigner
from adapters.rpc import SolanaEndpoint
from aggregator.domain.certificate import Attestation, Certificate, to_leaf
from aggregator.domain.errors import ConfigError, Garbage, PostingError, Unavailable, UnknownError
from aggregator.domain.report import LeafValues
from aggregator.domain.rows import ChainRow, DestinationRow, LatencyLeg
from infra.devnet.svm import SvmServer
from infra.devnet.svm_deploy import SolanaSpec, SolanaUser, deploy_solana
from proofs.hashing import keccak256
from proofs.leaf import hash_leaf
from proofs.merkle import proof, root
from proofs.statement import Deployment, Header, StatementBody, body_hash, digest

pytestmark = pytest.mark.chain

ATTESTORS = [KeySigner(keccak256(b"attestor %d" % i)) for i in range(4)]
PAYER_SEED = bytes(range(32))
SLOT_MS = 40
DEPTH = 6
EPOCH_SECONDS = 2


@dataclass
class Posted:
    """A running chain with a registry, and a destination that posts there."""

    server: SvmServer
    deployment: Deployment
    chain: ChainRow
    addresses: dict[str, str]
    destination: SolanaRegistryDestination

    def make(self, address: str | None = None, deployment: Deployment | None = None) -> SolanaRegistryDestination:
        row = DestinationRow(
            chain=self.chain.id,
            kind="solana-registry",
            address=address or self.addresses["registry"],
            clock_bound=5,
            payer_key="payer-sol",
        )
        endpoint = SolanaEndpoint(self.chain, self.chain.rpc[0])
        return SolanaRegistryDestination(
            row, self.chain, endpoint, SolanaSigner(PAYER_SEED), deployment or self.deployment
        )

    def certify(self, epoch: int, new_root: bytes, signers: tuple[int, ...] = (0, 1, 2), **header: int) -> Certificate:
        now = int(time.time())
        body = StatementBody(*[bytes(32)] * 6, 1, bytes(32))
        fields = {"floor": 0, "set_id": 1, "produced_at": now, "valid_until": now + 60} | header
        head = Header(epoch=epoch, root=new_root, body=body_hash(body), **fields)
        signed = digest(head, self.deployment.deployment_id())
        attestations = tuple(Attestation(i, *ATTESTORS[i].sign(signed)) for i in signers)
        return Certificate(head, body, signed, attestations)

    async def wait(self, posting: object, *states: str) -> str:
        """Poll until the posting has one of the states; return its detail."""
        deadline = time.monotonic() + 30
        while True:
            status = await self.destination.status(posting)  # type: ignore[arg-type]
            if status.state in states:
                return status.detail
            assert time.monotonic() < deadline, status


def now_epoch() -> int:
    return int(time.time()) // EPOCH_SECONDS


@pytest.fixture
def server() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=SLOT_MS, finalized_depth=DEPTH) as running:
        yield running


@pytest.fixture
async def world(server: SvmServer) -> AsyncIterator[Posted]:
    members = tuple(bytes.fromhex(one.address[2:]) for one in ATTESTORS)
    deployment = Deployment(3, members, 3, int(time.time()) + 3_600, b"\x07" * 32)
    name = f"solana:{server.genesis[:32]}"
    payer = Keypair.from_seed(PAYER_SEED)
    spec = SolanaSpec(payer, deployment, destination_id(name), EPOCH_SECONDS, 5, 120, 30)
    addresses = await deploy_solana(server.url, spec)
    chain = ChainRow(
        id=name,
        name="sol",
        family="solana",
        rpc=(server.url,),
        genesis=server.genesis,
        block_seconds=SLOT_MS / 1000,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        requests_per_second=500,
    )
    made = Posted(server, deployment, chain, addresses, None)  # type: ignore[arg-type]
    made.destination = made.make()
    yield made
    await made.destination.close()


async def test_a_certificate_travels_to_finality(world: Posted) -> None:
    destination = world.destination
    assert await destination.check() == ()
    assert await destination.read_latest() is None
    epoch = now_epoch()
    certificate = world.certify(epoch, keccak256(b"root"))
    posting = await destination.sign(certificate)
    assert (await destination.status(posting)).state == "pending"
    await destination.submit(posting)
    await destination.submit(posting)  # harmless
    await world.wait(posting, "final")
    status = await destination.status(posting)
    assert status.cost > 75_000  # three recoveries cost 25,000 each
    latest = await destination.read_latest()
    assert latest is not None
    assert (latest.epoch, latest.root) == (epoch, keccak256(b"root"))
    assert latest.valid_until == certificate.header.valid_until
    await destination.submit(posting)


async def test_the_registry_itself_accepts_a_leaf(world: Posted) -> None:
    epoch, until = now_epoch(), int(time.time()) + 50
    leaf = LeafValues("0x" + "11" * 32, world.chain.id, epoch, -5, 1, 2, 3, 4, 5, until - 50, until, 1)
    others = [keccak256(bytes([i])) for i in range(6)]
    own = hash_leaf(to_leaf(leaf))
    hashes = [own, *others]
    posting = await world.destination.sign(world.certify(epoch, root(hashes)))
    await world.destination.submit(posting)
    await world.wait(posting, "confirmed", "final")
    path = proof(hashes, 0)
    assert await world.destination.verify(leaf, path)
    assert not await world.destination.verify(leaf._replace(budget=6), path)
    assert not await world.destination.verify(leaf, path[:-1])


async def test_refusals_are_named_before_anything_lands(world: Posted) -> None:
    epoch = now_epoch()
    for certificate, name in (
        (world.certify(epoch, keccak256(b"r"), signers=(0, 1)), "SIGNATURES_TOO_FEW"),
        (world.certify(epoch + 1_000, keccak256(b"r")), "EPOCH_AHEAD"),
        (world.certify(epoch, keccak256(b"r"), set_id=2), "SET_ID_WRONG"),
    ):
        posting = await world.destination.sign(certificate)
        with pytest.raises(PostingError, match=name) as caught:
            await world.destination.submit(posting)
        assert caught.value.retryable is (name == "EPOCH_AHEAD")  # its clock will get there
    assert await world.destination.read_latest() is None


async def test_a_posting_expires_only_when_a_finalized_block_is_past_it(world: Posted) -> None:
    posting = await world.destination.sign(world.certify(now_epoch(), keccak256(b"late")))
    height = world.server.call("getBlockHeight")
    world.server.call("x_pause")
    assert (await world.destination.status(posting)).state == "pending"
    world.server.call("x_resume")
    world.server.call("x_advance", posting.expires - height - DEPTH)
    assert posting.expires > height
    await world.wait(posting, "expired")
    assert world.server.call("getBlockHeight") > posting.expires
    await world.destination.submit(posting)  # too late, and harmless
    assert (await world.destination.status(posting)).state == "expired"
    again = await world.destination.sign(world.certify(now_epoch(), keccak256(b"late")))
    await world.destination.submit(again)
    await world.wait(again, "final")


async def test_a_posting_lost_to_a_reorg_can_be_sent_again(world: Posted) -> None:
    posting = await world.destination.sign(world.certify(now_epoch(), keccak256(b"forked")))
    world.server.call("x_advance", DEPTH)  # its blockhash is final: the fork keeps it
    await world.destination.submit(posting)
    world.server.call("x_advance", 1)
    assert (await world.destination.status(posting)).state == "confirmed"
    assert posting.id in world.server.call("x_reorg", DEPTH)["dropped"]
    assert (await world.destination.status(posting)).state == "pending"
    await world.destination.submit(posting)
    await world.wait(posting, "final")


async def test_the_second_of_two_postings_of_an_epoch_is_refused(world: Posted) -> None:
    epoch = now_epoch()
    first = await world.destination.sign(world.certify(epoch, keccak256(b"one")))
    second = await world.destination.sign(world.certify(epoch, keccak256(b"two")))
    await world.destination.submit(first)
    await world.wait(first, "confirmed", "final")
    with pytest.raises(PostingError, match="EPOCH_NOT_NEWER"):
        await world.destination.submit(second)


async def test_check_names_what_differs(world: Posted) -> None:
    other = Deployment(3, world.deployment.members[:3], 3, world.deployment.not_after, b"\x08" * 32)
    wrong = world.make(deployment=other)
    codes = {finding.code for finding in await wrong.check()}
    assert codes == {"wrong-deployment", "wrong-members"}
    await wrong.close()
    nowhere = world.make(address=str(Pubkey.new_unique()))
    assert {finding.code for finding in await nowhere.check()} == {"no-registry"}
    with pytest.raises(Unavailable, match="initialise"):
        await nowhere.read_latest()
    await nowhere.close()
    program = world.make(address=world.addresses["registry_program"])
    with pytest.raises(Garbage, match="give the registry account's address"):
        await program.read_latest()
    await program.close()


async def test_a_destination_that_cannot_work_is_refused_at_the_start(world: Posted) -> None:
    with pytest.raises(ConfigError, match="base58"):
        world.make(address="0xabc")
    row = DestinationRow(chain="eip155:1", kind="solana-registry", address="x", clock_bound=1, payer_key="p")
    endpoint = SolanaEndpoint(world.chain, world.chain.rpc[0])
    with pytest.raises(UnknownError):
        SolanaRegistryDestination(row, world.chain, endpoint, SolanaSigner(PAYER_SEED), world.deployment)
    await endpoint.close()


async def test_deposits_reach_the_vault_as_users_make_them(world: Posted) -> None:
    program, vault = (Pubkey.from_string(world.addresses[name]) for name in ("vault_program", "vault"))
    usdc, sol = (Pubkey.from_string(world.addresses[name]) for name in ("usdc_mint", "sol_mint"))
    account = b"\x11" * 32
    async with (
        SolanaUser(world.server.url, Keypair()) as user,
        SolanaUser(world.server.url, Keypair.from_seed(PAYER_SEED)) as payer,
    ):
        await user.airdrop(10 * 10**9)
        await payer.mint_to(usdc, user.address, 1_000)
        await user.wrap_sol(10**9)
        for mint, amount in ((usdc, 600), (sol, 10**9)):
            await user.deposit(program, vault, account, mint, amount)
            await user.request(program, vault, account, mint, amount)
            await user.cancel(program, vault, account, mint)
        await user.request(program, vault, account, usdc, 100)
        with pytest.raises(RuntimeError, match="failed"):
            await user.claim(program, vault, account, usdc)
        world.server.call("x_advance", 1, 30)
        await user.claim(program, vault, account, usdc)
        wallet = get_associated_token_address(user.address, usdc)
        assert (await user.client.get_token_account_balance(wallet)).value.amount == "500"


async def test_only_a_registry_whose_clock_is_behind_is_worth_another_try(world: Posted) -> None:
    epoch, now = now_epoch(), int(time.time())
    for header, reason in (
        ({"produced_at": now + 40, "valid_until": now + 100}, "PRODUCED_AHEAD"),
        ({}, "EPOCH_AHEAD"),
        ({"valid_until": now + 100_000}, "LIFETIME_TOO_LONG"),
    ):
        number = epoch + 1_000 if reason == "EPOCH_AHEAD" else epoch
        posting = await world.destination.sign(world.certify(number, keccak256(b"root"), **header))
        with pytest.raises(PostingError, match=reason) as caught:
            await world.destination.submit(posting)
        assert caught.value.retryable is (reason != "LIFETIME_TOO_LONG")
