"""Histories that change under an observer of a real chain: faults.md A1, A2, A12, A15."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr
from solders.keypair import Keypair

from adapters.evm.reader import EvmReader
from adapters.quorum import QuorumReader
from adapters.rpc import EvmEndpoint, SolanaEndpoint
from adapters.solana.native import NativeWallet
from adapters.solana.reader import SolanaReader
from aggregator.core.reconcile import reconcile
from aggregator.domain.rows import AssetRow, ChainRow, FinalityRow, LatencyLeg
from aggregator.domain.snapshot import HALTED, REORGED, Account, Subject
from aggregator.service.collect import Collected, Observer
from aggregator.store import SqlStore
from aggregator.store.halts import SqlHalts
from infra.devnet.anvil import Anvil
from infra.devnet.providers.proxy import FaultProxy
from infra.devnet.svm.process import SvmServer
from infra.devnet.svm_deploy import SolanaUser, act, steer
from tests.chain.evm_venues import CHAIN, NAME, WETH, Venues, chain_row, deploy_venues, genesis_of

pytestmark = pytest.mark.chain
DEPTH, IRREVERSIBLE = 2, 8


@pytest.fixture
def venues() -> Iterator[Venues]:
    """A chain of its own for every test: its history is going to change."""
    with Anvil() as anvil:
        yield deploy_venues(anvil)


class Watching:
    """An observer of a real chain through three providers, whose epochs are certified when a test says so."""

    def __init__(self, venues: Venues, readers: QuorumReader, halts: SqlHalts) -> None:
        self.venues, self.readers, self.halts = venues, readers, halts
        self.observer = Observer("coordinator", {CHAIN: readers}, halts=halts)
        self.accounts = (Account(venues.account, f"{CHAIN}:{venues.address}", "risk-bearing", CHAIN),)
        self.epoch = 0

    @property
    def now(self) -> int:
        return int(self.venues.anvil.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    async def look(self, cut_time: int | None = None) -> Collected:
        self.epoch += 1
        return await self.observer.collect(self.epoch, cut_time or self.now, self.accounts)

    def certify(self, seen: Collected, floor: int = 0) -> None:
        digest = self.epoch.to_bytes(32, "big")
        self.observer.attested(digest, seen)
        self.observer.certified(digest, self.epoch, floor)

    def held(self, seen: Collected) -> int:
        """Return the WETH in the vault, as counted from what was seen."""
        snapshot = reconcile(
            seen.cut, seen.readings, self.observer.last, self.accounts, (self.readers.row,), 2**40, seen.causes
        )
        weth = self.venues.asset("weth")
        return sum(p.amount for p in snapshot.positions if (p.venue, p.asset) == ("vault", weth))

    def deposit(self, amount: int) -> None:
        vault, token, user = self.venues["collateral_vault"], self.venues["weth"], self.venues.user
        account = bytes.fromhex(self.venues.account[2:])
        for call in (
            token.functions.mint(user, amount),
            token.functions.approve(vault.address, amount),
            vault.functions.deposit(account, token.address, amount),
        ):
            self.venues.w3.eth.wait_for_transaction_receipt(call.transact({"from": user}))

    def reorg(self, depth: int) -> None:
        self.venues.anvil.rpc("anvil_reorg", depth, [])


@pytest.fixture
async def watching(venues: Venues, tmp_path: Path) -> AsyncIterator[Watching]:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(venues.anvil.url)) for _ in range(3)]
        row = chain_row(
            "",
            genesis=genesis_of(venues.anvil),
            rpc=[p.url for p in proxies],
            quorum=2,
            timeout=5.0,
            finality=FinalityRow(depth=DEPTH),
            irreversible=FinalityRow(depth=IRREVERSIBLE),
        )
        adapters = list(venues.adapters().values())
        readers = [EvmReader(row, EvmEndpoint(row, url), adapters, []) for url in row.rpc]
        quorum = QuorumReader(row, readers, [f"{NAME}[{i}]" for i in range(3)], 2, lambda _: None)
        stack.push_async_callback(quorum.close)
        store = await SqlStore.open(f"sqlite:///{tmp_path / 'halts.sqlite3'}")
        stack.push_async_callback(store.close)
        yield Watching(venues, quorum, SqlHalts(store))


async def test_a_deposit_that_a_reorganisation_removes(watching: Watching) -> None:
    """A1: the snapshot is dropped, the chain read afresh, and the certified statement named for supersession."""
    watching.venues.anvil.mine(IRREVERSIBLE + 2)
    before = await watching.look()
    watching.deposit(5 * WETH)
    watching.venues.anvil.mine(DEPTH)
    seen = await watching.look()
    assert watching.held(seen) == watching.held(before) + 5 * WETH
    watching.certify(seen)
    gone = seen.cut.block(CHAIN)
    assert gone is not None
    watching.reorg(DEPTH + 3)
    watching.venues.anvil.mine(2)
    after = await watching.look()
    assert watching.held(after) == watching.held(before)
    (reorg,) = after.cut.reorgs
    assert (reorg.height, reorg.was) == (gone.height, gone.hash)
    assert reorg.now != gone.hash
    assert after.causes == {}
    watching.certify(after, floor=watching.epoch)
    watching.venues.anvil.mine(2)
    assert (await watching.look()).cut.reorgs == (), "answered by the floor"


async def test_a_reorganisation_above_what_is_pinned(watching: Watching) -> None:
    watching.venues.anvil.mine(IRREVERSIBLE)
    watching.certify(await watching.look())
    watching.reorg(DEPTH)
    watching.venues.anvil.mine(3)
    seen = await watching.look()
    assert (seen.cut.reorgs, seen.causes) == ((), {})


async def test_a_reorganisation_below_finality(watching: Watching) -> None:
    """A2: the chain halts, durably, and an operator's resume is needed and logged."""
    anvil = watching.venues.anvil
    anvil.mine(IRREVERSIBLE + 5)
    before = await watching.look()
    watching.certify(before)
    watching.reorg(IRREVERSIBLE + 4)
    anvil.mine(1)
    seen = await watching.look()
    assert seen.causes[CHAIN].startswith(f"{REORGED} below finality: {NAME}: block ") or seen.causes[CHAIN].startswith(
        f"{REORGED} below finality: block "
    )
    assert seen.cut.block(CHAIN) == before.cut.block(CHAIN)
    snapshot = reconcile(seen.cut, seen.readings, {}, watching.accounts, (watching.readers.row,), 2**40, seen.causes)
    assert snapshot.chains[0].status == "stale"
    anvil.mine(20)
    watching.observer = Observer("coordinator", {CHAIN: watching.readers}, halts=watching.halts)
    again = await watching.look()
    assert again.causes == seen.causes, "a restart does not forget it"
    (cleared,) = await watching.halts.resume(CHAIN, "announced by the chain", "operator", 5)
    assert (cleared.reason, cleared.resumed_by) == ("announced by the chain", "operator")
    fresh = await watching.look()
    assert fresh.causes == {}
    assert watching.held(fresh) > 0


async def test_a_chain_that_does_not_go_on(watching: Watching) -> None:
    """A12: its last reading stays, ages, and counts nothing once it is too old."""
    watching.venues.anvil.mine(IRREVERSIBLE)
    seen = await watching.look()
    late = await watching.look(watching.now + 3_600)
    assert late.causes[CHAIN].startswith(HALTED)
    assert late.cut.block(CHAIN) == seen.cut.block(CHAIN)
    assert watching.held(late) == watching.held(seen)
    snapshot = reconcile(late.cut, late.readings, {}, watching.accounts, (watching.readers.row,), 2**40, late.causes)
    assert (snapshot.chains[0].status, snapshot.chains[0].age) == ("stale", 3_600 + pinned_lag(watching))


def pinned_lag(watching: Watching) -> int:
    """Return the seconds between the head and the block that is pinned."""
    pinned = watching.observer.last[CHAIN].block.time
    return watching.now - pinned


async def test_what_is_not_finalized_is_not_seen() -> None:
    """A15: lamports that a slot brought which never became final are not in any reading."""
    owner = Keypair.from_seed(b"\x32" * 32)
    with SvmServer(slot_ms=100, finalized_depth=64) as svm:
        await asyncio.to_thread(svm.call, "x_advance", 220)

        async def fund(user: SolanaUser) -> None:
            await user.airdrop(3 * 10**9)

        await act(svm.url, owner, fund)
        await steer(svm.url, "x_advance", 220)
        chain = f"solana:{svm.genesis[:32]}"
        row = ChainRow(
            id=chain,
            name="sol",
            family="solana",
            rpc=(SecretStr(svm.url),),
            genesis=svm.genesis,
            block_seconds=0.1,
            max_age=60,
            hold=(LatencyLeg(typical=1),),
        )
        native = AssetRow(id=f"{chain}/slip44:501", symbol="SOL", kind="native", decimals=9, feed="SOL/USD", policy="x")
        reader = SolanaReader(row, SolanaEndpoint(row, row.rpc[0]), [NativeWallet(chain, {native.id: native})])
        subjects = [Subject("0x" + "5a" * 32, str(owner.pubkey()))]

        async def read() -> int:
            block = await reader.pin(2**40)
            return sum(p.amount for p in (await reader.read(block, subjects)).positions)

        held = await read()
        assert held > 0
        await act(svm.url, owner, fund)
        assert await read() == held, "processed, not finalized"
        await steer(svm.url, "x_reorg", 60)
        await steer(svm.url, "x_advance", 220)
        assert await read() == held, "and never will be"
        await reader.close()
