"""The EVM watcher on a real Anvil: it names who changed, misses nothing over cuts and reorgs, and knows how far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr
from web3.contract import Contract

from adapters.evm.watch import EvmWatcher
from adapters.ws import WsEndpoint
from infra.devnet.anvil import Anvil, connect, transact
from infra.devnet.evm_deploy import deploy_token
from infra.devnet.providers.proxy import FaultProxy
from tests.chain.evm_venues import chain_row

pytestmark = pytest.mark.chain
ANN, BOB, EVE = ("0x" + digit * 40 for digit in "abe")


def word(address: str) -> str:
    return "0x" + address.removeprefix("0x").rjust(64, "0")


@pytest.fixture
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture
def token(anvil: Anvil) -> Contract:
    return deploy_token(connect(anvil.url), "USD Coin", "USDC", 6)


@pytest.fixture
async def proxy(anvil: Anvil) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(anvil.url) as running:
        yield running


@asynccontextmanager
async def watching(proxy: FaultProxy, token: Contract, word_limit: int = 10_000) -> AsyncIterator[EvmWatcher]:
    row = chain_row(proxy.url)
    socket = WsEndpoint(row, [SecretStr(proxy.ws_url)])
    watcher = EvmWatcher(row, socket, [str(token.address)], word_limit=word_limit)
    await watcher.start()
    try:
        yield watcher
    finally:
        await watcher.close()


async def until(reached: Callable[[], bool]) -> None:
    """Wait; pytest's own time limit ends a wait for what never comes."""
    while True:
        if reached():
            return
        await asyncio.sleep(0.01)


def height(anvil: Anvil) -> int:
    return int(anvil.rpc("eth_blockNumber"), 16)


async def mint(anvil: Anvil, token: Contract, *holders: str) -> int:
    """Mint to each holder in a block of its own; return the last block's height."""
    w3 = connect(anvil.url)
    for holder in holders:
        await asyncio.to_thread(transact, w3, token.functions.mint(w3.to_checksum_address(holder), 5))
    return height(anvil)


def named(watcher: EvmWatcher, after: int, upto: int) -> set[str]:
    words = watcher.words(after, upto)
    assert words is not None
    return {holder for holder in (ANN, BOB, EVE) if word(holder) in words}


async def test_logs_name_whom_they_concern_by_height(anvil: Anvil, token: Contract, proxy: FaultProxy) -> None:
    async with watching(proxy, token) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = height(anvil)
        assert watcher.words(start, start) == frozenset()
        assert watcher.words(start - 1, start) is None
        await mint(anvil, token, ANN, BOB)
        assert watcher.words(start, start + 2) is None or named(watcher, start, start + 2) == {ANN, BOB}
        anvil.mine()
        await until(lambda: watcher.covered() >= start + 2)
        assert named(watcher, start, start + 2) == {ANN, BOB}
        assert named(watcher, start + 1, start + 2) == {BOB}
        watcher.forget(start + 1)
        assert watcher.words(start, start + 2) is None
        assert named(watcher, start + 1, start + 2) == {BOB}


async def test_what_happened_while_the_connection_was_cut_is_asked_for(
    anvil: Anvil, token: Contract, proxy: FaultProxy
) -> None:
    async with watching(proxy, token) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = height(anvil)
        await mint(anvil, token, ANN)
        await proxy.turn("dead")
        await mint(anvil, token, BOB)
        anvil.mine(30)
        last = await mint(anvil, token, EVE)
        assert watcher.covered() < last
        await proxy.turn("pass")
        await until(lambda: watcher.covered() >= last)
        assert named(watcher, start, last) == {ANN, BOB, EVE}
        assert named(watcher, start + 1, last) == {BOB, EVE}


async def test_a_reorganisation_leaves_nobody_out(anvil: Anvil, token: Contract, proxy: FaultProxy) -> None:
    async with watching(proxy, token) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = height(anvil)
        await mint(anvil, token, ANN, BOB)
        anvil.mine()
        await until(lambda: watcher.covered() >= start + 2)
        anvil.rpc("anvil_reorg", 2, [])
        last = await mint(anvil, token, EVE)
        anvil.mine(3)
        await until(lambda: watcher.covered() >= last)
        assert named(watcher, start, last) >= {BOB, EVE}  # Bob's deposit is undone, so he changed


async def test_memory_is_bounded_and_old_heights_are_given_up_first(
    anvil: Anvil, token: Contract, proxy: FaultProxy
) -> None:
    async with watching(proxy, token, word_limit=8) as watcher:
        await until(lambda: watcher.covered() > 0)
        start = height(anvil)
        await mint(anvil, token, ANN, ANN, ANN, BOB)
        anvil.mine()
        await until(lambda: watcher.covered() >= start + 4)
        assert watcher.words(start, start + 4) is None
        assert named(watcher, start + 3, start + 4) == {BOB}


async def test_a_socket_of_another_chain_covers_nothing(token: Contract, proxy: FaultProxy) -> None:
    with Anvil(chain_id=31999) as elsewhere:
        proxy.upstream = elsewhere.url
        async with watching(proxy, token) as watcher:
            await until(lambda: sum(proxy.requests.values()) > 5)
            assert watcher.covered() == 0
            assert watcher.words(0, 0) is None
