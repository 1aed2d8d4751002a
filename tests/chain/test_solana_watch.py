"""The Solana watcher on the local SVM: it names wallets and accounts that changed, at finalized; a cut dirties all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.destinations import destination_id
from adapters.keys import KeySigner
from adapters.solana.programs import build_apply, build_post
from adapters.solana.watch import SolanaWatcher
from adapters.ws import WsEndpoint
from aggregator.domain.rows import ChainRow, LatencyLeg
from aggregator.domain.snapshot import Subject
from infra.devnet.providers.proxy import FaultProxy
from infra.devnet.svm import SvmServer
from infra.devnet.svm_deploy import SolanaSpec, SolanaUser, deploy_solana
from proofs.leaf import Leaf, hash_leaf
from proofs.quorum import IndexedSignature
from proofs.statement import Deployment, Header, digest

pytestmark = pytest.mark.chain
PAYER = Keypair.from_seed(bytes(range(32)))
ANN, BOB, EVE = (Keypair.from_seed(bytes([i]) * 32).pubkey() for i in (1, 2, 3))
ACCOUNT = b"\xac" * 32
ATTESTOR = KeySigner(b"\x11" * 32)
SLOT_MS = 40


def word(key: Pubkey) -> str:
    return "0x" + bytes(key).hex()


async def until(reached: Callable[[], bool]) -> None:
    """Wait; pytest's own time limit ends a wait for what never comes."""
    while True:
        if reached():
            return
        await asyncio.sleep(0.02)


@dataclass
class World:
    server: SvmServer
    row: ChainRow
    proxy: FaultProxy
    addresses: dict[str, str]
    deployment: Deployment

    @property
    def usdc(self) -> Pubkey:
        return Pubkey.from_string(self.addresses["usdc_mint"])

    @asynccontextmanager
    async def watching(self, *keys: Pubkey, key_limit: int = 1_000) -> AsyncIterator[SolanaWatcher]:
        """Watch wallets; each is the subject of some account."""
        programs, mints = [self.addresses["vault_program"]], [self.addresses["usdc_mint"]]
        socket = WsEndpoint(self.row, [SecretStr(self.proxy.ws_url)])
        registries = [self.addresses["registry_program"]]
        watcher = SolanaWatcher(self.row, socket, programs, mints, registries=registries, key_limit=key_limit)
        watcher.watch(subjects(*keys))
        await watcher.start()
        try:
            yield watcher
        finally:
            await watcher.close()

    async def mint(self, *owners: Pubkey) -> None:
        async with SolanaUser(self.server.url, PAYER) as payer:
            for owner in owners:
                await payer.mint_to(self.usdc, owner, 5)

    @property
    def final(self) -> int:
        return int(self.server.call("getSlot", {"commitment": "finalized"}))

    async def finality(self) -> int:
        """Wait until all that was confirmed by now is final; return a final slot."""
        newest = int(self.server.call("getSlot", {"commitment": "processed"}))
        await until(lambda: self.final >= newest)
        return self.final


def subjects(*keys: Pubkey) -> list[Subject]:
    return [Subject("0x" + "01" * 32, None), *(Subject("0x" + "01" * 32, str(key)) for key in keys)]


def named(watcher: SolanaWatcher, after: int, upto: int) -> set[str]:
    words = watcher.words(after, upto)
    assert words is not None
    known = {word(ANN): "ann", word(BOB): "bob", word(EVE): "eve", "0x" + ACCOUNT.hex(): "account"}
    return {name for key, name in known.items() if key in words}


@pytest.fixture
def server() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=SLOT_MS, finalized_depth=4) as running:
        yield running


@pytest.fixture
async def world(server: SvmServer) -> AsyncIterator[World]:
    deployment = Deployment(3, (bytes.fromhex(ATTESTOR.address[2:]),), 1, int(time.time()) + 3_600, b"\x07" * 32)
    destination = destination_id(f"solana:{server.genesis[:32]}")
    addresses = await deploy_solana(server.url, SolanaSpec(PAYER, deployment, destination, 2, 5, 120, 30))
    row = ChainRow(
        id=f"solana:{server.genesis[:32]}",
        name="sol",
        family="solana",
        rpc=(server.url,),
        genesis=server.genesis,
        block_seconds=SLOT_MS / 1000,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
    )
    async with FaultProxy(server.url) as proxy:
        yield World(server, row, proxy, addresses, deployment)


async def test_token_accounts_name_their_owner_and_holdings_their_account(world: World) -> None:
    async with world.watching(ANN, BOB) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = watcher.covered()
        await world.mint(ANN, EVE, PAYER.pubkey())  # nobody watches Eve
        async with SolanaUser(world.server.url, PAYER) as payer:
            vault = Pubkey.from_string(world.addresses["vault"])
            await payer.deposit(Pubkey.from_string(world.addresses["vault_program"]), vault, ACCOUNT, world.usdc, 2)
        final = await world.finality()
        await until(lambda: watcher.covered() >= final and named(watcher, start, watcher.covered()) != set())
        await until(lambda: "account" in named(watcher, start, watcher.covered()))
        assert named(watcher, start, watcher.covered()) == {"ann", "account"}
        middle = watcher.covered()
        await until(lambda: watcher.covered() > middle)
        assert named(watcher, middle, watcher.covered()) == set()
        watcher.forget(middle)
        assert watcher.words(start, middle) is None


async def test_what_a_registry_stores_names_its_account(world: World) -> None:
    program, registry = (Pubkey.from_string(world.addresses[name]) for name in ("registry_program", "registry"))
    now = int(time.time())
    destination = destination_id(world.row.id)
    leaf = Leaf(ACCOUNT, destination, now // 2, 0, 0, 0, 0, 0, 5, now, now + 60, 0)
    header = Header(leaf.epoch, hash_leaf(leaf), 0, 1, now, now + 60, bytes(32))
    signature = IndexedSignature(0, *ATTESTOR.sign(digest(header, world.deployment.deployment_id())))
    async with world.watching(ANN) as watcher, SolanaUser(world.server.url, PAYER) as payer:
        await until(lambda: watcher.covered() > 0)
        start = watcher.covered()
        await payer.send([build_post(program, registry, header, [signature])])
        await payer.send([build_apply(program, registry, payer.address, leaf, [])])
        await until(lambda: "account" in named(watcher, start, watcher.covered()))
        assert named(watcher, start, watcher.covered()) == {"account"}


async def test_lamports_of_a_wallet_name_it(world: World) -> None:
    async with world.watching(ANN) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = watcher.covered()
        world.server.call("requestAirdrop", str(ANN), 10**9)
        await until(lambda: named(watcher, start, watcher.covered()) == {"ann"})


async def test_a_wallet_watched_later_counts_as_changed_and_is_then_followed(world: World) -> None:
    async with world.watching(ANN) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = watcher.covered()
        watcher.watch(subjects(ANN, BOB))
        await until(lambda: "bob" in named(watcher, start, watcher.covered()))
        later = watcher.covered()
        await world.mint(BOB)
        await until(lambda: "bob" in named(watcher, later, watcher.covered()))


async def test_after_a_cut_nobody_is_told_unchanged(world: World) -> None:
    async with world.watching(ANN) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = watcher.covered()
        await world.proxy.turn("dead")
        await world.mint(ANN)
        assert watcher.words(start, await world.finality()) is None
        await world.proxy.turn("pass")
        final = await world.finality()
        await until(lambda: watcher.covered() >= final)
        assert watcher.words(start, final) is None
        again = watcher.covered()
        await world.mint(ANN)
        await until(lambda: named(watcher, again, watcher.covered()) == {"ann"})


async def test_more_accounts_than_can_be_watched_cover_nothing(world: World) -> None:
    async with world.watching(ANN, BOB, key_limit=3) as watcher:
        await world.finality()
        assert watcher.covered() == 0
        assert watcher.words(0, 1) is None
