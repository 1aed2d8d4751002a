"""Posting certificates to the registry program over a real facade, through the project's own endpoint."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.instructions import create_idempotent_associated_token_account, get_associated_token_address

from adapters.destinations import destination_id
from adapters.destinations.solana import SolanaRegistryDestination
from adapters.keys import KeySigner, SolanaSigner
from adapters.rpc import SolanaEndpoint
from adapters.solana.programs import RegistryRefusal, build_apply
from adapters.solana.reader import SolanaReader
from adapters.solana.registry import Registry
from aggregator.domain.budgets import Drawn
from aggregator.domain.certificate import Attestation, Certificate, to_leaf
from aggregator.domain.errors import ConfigError, Garbage, PostingError, Unavailable, UnknownError
from aggregator.domain.report import LeafValues
from aggregator.domain.rows import ChainRow, DestinationRow, LatencyLeg
from aggregator.domain.snapshot import Subject
from infra.devnet.svm import SvmServer
from infra.devnet.svm_consumer import Lender
from infra.devnet.svm_deploy import SolanaSpec, SolanaUser, deploy_solana
from proofs.hashing import keccak256
from proofs.leaf import hash_leaf
from proofs.links import account_id
from proofs.merkle import proof, root
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, Rotation, rotation_digest
from proofs.statement import Deployment, Header, StatementBody, body_hash, digest

pytestmark = pytest.mark.chain

ATTESTORS = [KeySigner(keccak256(b"attestor %d" % i)) for i in range(19)]
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

    def certify(
        self, epoch: int, new_root: bytes, signers: Sequence[int] = (0, 1, 2), first: int = 0, **header: int
    ) -> Certificate:
        """Certify by members of the set whose attestors begin at `first`."""
        now = int(time.time())
        body = StatementBody(*[bytes(32)] * 6, 1, bytes(32))
        fields = {"floor": 0, "set_id": 1, "produced_at": now, "valid_until": now + 60} | header
        head = Header(epoch=epoch, root=new_root, body=body_hash(body), **fields)
        signed = digest(head, self.deployment.deployment_id())
        attestations = tuple(Attestation(i, *ATTESTORS[first + i].sign(signed)) for i in signers)
        return Certificate(head, body, signed, attestations)

    async def wait(self, posting: object, *states: str) -> str:
        """Poll until the posting has one of the states; return its detail."""
        deadline = time.monotonic() + 30
        while True:
            status = await self.destination.status(posting)  # type: ignore[arg-type]
            if status.state in states:
                return status.detail
            assert time.monotonic() < deadline, status


def members(first: int, n: int) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(one.address[2:]) for one in ATTESTORS[first : first + n])


def rotation_to(world: Posted, set_: AttestorSet, signers: Sequence[int]) -> Rotation:
    """Return the rotation to a set, signed by members of the first one."""
    digest = rotation_digest(set_, world.deployment.deployment_id())
    return Rotation(set_, tuple(IndexedSignature(i, *ATTESTORS[i].sign(digest)) for i in signers))


def now_epoch() -> int:
    return int(time.time()) // EPOCH_SECONDS


@pytest.fixture
def server() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=SLOT_MS, finalized_depth=DEPTH) as running:
        yield running


@pytest.fixture
async def world(server: SvmServer) -> AsyncIterator[Posted]:
    made = await deploy(server, 4, 3)
    yield made
    await made.destination.close()


async def deploy(server: SvmServer, n: int, threshold: int) -> Posted:
    """Deploy everything for the first `n` attestors."""
    deployment = Deployment(3, members(0, n), threshold, int(time.time()) + 3_600, b"\x07" * 32)
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
    return made


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


async def test_a_rotation_travels_to_finality(world: Posted) -> None:
    destination, epoch = world.destination, now_epoch()
    assert await destination.read_newest_set() == 1
    to = AttestorSet(2, members(4, 4), 3, epoch + 3, int(time.time()) + 7_200)
    posting = await destination.sign_rotation(rotation_to(world, to, (0, 1, 2)))
    await destination.submit(posting)
    await destination.submit(posting)  # harmless
    await world.wait(posting, "final")
    assert await destination.read_newest_set() == 2
    assert await destination.check() == ()  # the first set is still the deployment's
    again = await destination.sign_rotation(rotation_to(world, to, (0, 1, 2)))
    with pytest.raises(PostingError, match="SET_NOT_NEXT"):
        await destination.submit(again)
    world.server.call("x_advance", 1, 6)
    certificate = world.certify(epoch + 3, keccak256(b"by the second set"), first=4, set_id=2)
    posting = await destination.sign(certificate)
    await destination.submit(posting)
    await world.wait(posting, "final")
    latest = await destination.read_latest()
    assert latest is not None
    assert latest.root == keccak256(b"by the second set")


async def test_a_rotation_that_is_refused_is_named(world: Posted) -> None:
    to = AttestorSet(2, members(4, 4), 3, now_epoch() + 100, int(time.time()) + 7_200)
    posting = await world.destination.sign_rotation(rotation_to(world, to, (0, 1)))
    with pytest.raises(PostingError, match="SIGNATURES_TOO_FEW"):
        await world.destination.submit(posting)
    assert await world.destination.read_newest_set() == 1


async def test_thirteen_signatures_fit_what_a_node_takes(server: SvmServer) -> None:
    world = await deploy(server, 19, 13)
    certificate = world.certify(now_epoch(), keccak256(b"of thirteen"), range(6, 19))
    posting = await world.destination.sign(certificate)
    assert len(bytes.fromhex(posting.raw[2:])) <= 1_232
    await world.destination.submit(posting)
    await world.wait(posting, "final")
    latest = await world.destination.read_latest()
    assert latest is not None
    assert latest.root == keccak256(b"of thirteen")
    with pytest.raises(PostingError, match=r"14 signatures make .* bytes, a packet holds 1232"):
        await world.destination.sign(world.certify(now_epoch(), keccak256(b"r"), range(5, 19)))

    # A set as large does not fit one packet with its quorum: the first posting only writes it down.
    to = AttestorSet(2, members(0, 19), 13, now_epoch() + 100, int(time.time()) + 7_200)
    rotation = rotation_to(world, to, range(13))
    for newest in (1, 2):
        posting = await world.destination.sign_rotation(rotation)
        await world.destination.submit(posting)
        await world.wait(posting, "confirmed", "final")
        assert await world.destination.read_newest_set() == newest
    await world.destination.close()


async def test_the_deployed_lender_lends_against_a_posted_budget(world: Posted) -> None:
    names = ("consumer_program", "registry_program", "registry", "usdc_mint")
    lender = Lender(*(Pubkey.from_string(world.addresses[name]) for name in names))
    assert (str(lender.address), str(lender.pool)) == (world.addresses["lender"], world.addresses["lender_pool"])
    controller, salt, until = Keypair(), b"\x55" * 32, int(time.time()) + 50
    account = account_id(f"{world.chain.id}:{controller.pubkey()}", salt)
    epoch = now_epoch()
    values = LeafValues("0x" + account.hex(), world.chain.id, epoch, 0, 0, 0, 0, 0, 100 * 10**8, until - 50, until, 0)
    posting = await world.destination.sign(world.certify(epoch, hash_leaf(to_leaf(values))))
    await world.destination.submit(posting)
    await world.wait(posting, "confirmed", "final")
    async with SolanaUser(world.server.url, controller) as user:
        await user.airdrop(10**9)
        wallet = get_associated_token_address(user.address, lender.mint)
        apply = build_apply(lender.registry_program, lender.registry, user.address, to_leaf(values), [])
        borrow = lender.build_borrow(user.address, account, salt, wallet, 40 * 10**6)
        await user.send([create_idempotent_associated_token_account(user.address, user.address, lender.mint)])
        await user.send([apply, borrow])
        assert (await user.client.get_token_account_balance(wallet)).value.amount == str(40 * 10**6)
        with pytest.raises(RuntimeError, match=str(int(RegistryRefusal.BUDGET_EXCEEDED))):
            await user.send([lender.build_borrow(user.address, account, salt, wallet, 61 * 10**6)])
        await user.send([lender.build_repay(user.address, account, wallet, 15 * 10**6)])
    world.server.call("x_advance", DEPTH + 1)
    venue = Registry(world.chain.id, world.addresses["registry"], EPOCH_SECONDS)
    reader = SolanaReader(world.chain, SolanaEndpoint(world.chain, world.chain.rpc[0]), [venue])
    block = await reader.pin(int(time.time()) + 60)
    reading = await reader.read(block, [Subject(values.account, None)])
    await reader.close()
    (position,) = reading.positions
    assert (position.venue, position.side, position.amount) == ("registry", "debt", 25 * 10**8)
    assert position.drawn == Drawn(posted=epoch, set_id=1)


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
