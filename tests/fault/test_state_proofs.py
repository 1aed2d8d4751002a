"""A16 on real Anvils: a provider that says another balance than it can prove is caught, recorded and left out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from adapters.disputes import Dispute
from adapters.evm.proof import Unprovable, choose_address, verify_balance
from adapters.evm.reader import EvmReader
from adapters.evm.wallet import Wallet
from adapters.quorum import NoQuorum, QuorumReader
from adapters.rpc import EvmEndpoint
from aggregator.domain.errors import Contradicted, Garbage, SourceError
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Block, Reading, Subject
from infra.devnet.anvil import Anvil, connect
from infra.devnet.evm_deploy import deploy_multicall3
from infra.devnet.providers.proxy import FaultProxy
from tests.chain.evm_venues import CHAIN, NAME, chain_row, genesis_of

pytestmark = pytest.mark.chain
FAR = 2**40  # a cut time after everything
ETH = AssetRow(id=f"{CHAIN}/slip44:60", symbol="ETH", kind="native", decimals=18, feed="ETH/USD", policy="x")
HOLDERS = {"0x" + f"{i:x}" * 40: (i + 1) * 10**18 for i in range(6)}
SUBJECTS = [Subject("0x" + a[2:].ljust(64, "0"), a) for a in HOLDERS]


@pytest.fixture
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        deploy_multicall3(connect(chain.url))
        for address, wei in HOLDERS.items():
            chain.rpc("anvil_setBalance", address, hex(wei))
        chain.mine(3)  # a balance set by hand is in the state root of the next block
        yield chain


@pytest.fixture
async def proxy(anvil: Anvil) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(anvil.url) as running:
        yield running


def make(url: str, anvil: Anvil, **changes: Any) -> EvmReader:
    row = chain_row(url, genesis_of(anvil), prove=True, **changes)
    return EvmReader(row, EvmEndpoint(row, row.rpc[0]), [Wallet(CHAIN, {ETH.id: ETH}, row.multicall)], [], [ETH])


@pytest.fixture
async def reader(anvil: Anvil, proxy: FaultProxy) -> AsyncIterator[EvmReader]:
    made = make(proxy.url, anvil)
    yield made
    await made.close()


async def observe(reader: EvmReader | QuorumReader) -> Reading:
    return await reader.read(await reader.pin(FAR), SUBJECTS)


def held(reading: Reading) -> dict[str, int]:
    return {p.address: p.quantity for p in reading.positions}


async def test_an_honest_node_proves_every_balance(reader: EvmReader, proxy: FaultProxy, anvil: Anvil) -> None:
    proven = set()
    for _ in range(8):
        anvil.mine()
        reading = await observe(reader)
        assert held(reading) == HOLDERS
        proven.add(choose_address(reading.block, SUBJECTS, b""))
    assert len(proven) > 1  # another one at every block


@pytest.mark.parametrize("wei", [0, 1, 10**18, 2**200])
async def test_balances_are_proven_and_other_claims_refuted(anvil: Anvil, proxy: FaultProxy, wei: int) -> None:
    address = "0x" + "77" * 20
    anvil.rpc("anvil_setBalance", address, hex(wei))
    anvil.mine()
    reader = make(proxy.url, anvil)
    endpoint, block = reader._endpoint, await reader.pin(FAR)
    await verify_balance(endpoint, NAME, block, address, wei)
    with pytest.raises(Contradicted, match=rf"says balance of {address} is {wei + 1} .* shows {wei}$"):
        await verify_balance(endpoint, NAME, block, address, wei + 1)
    await reader.close()


@pytest.mark.parametrize("lie", [lambda wei: wei * 10, lambda wei: wei - 1, lambda wei: 0])
async def test_a_lie_about_a_balance_ends_the_trust_in_that_node(
    reader: EvmReader, proxy: FaultProxy, lie: Callable[[int], int]
) -> None:
    await observe(reader)
    proxy.lie = lie
    await proxy.turn("lying")
    block = await reader.pin(FAR)
    with pytest.raises(Contradicted, match="its state proof shows"):
        await reader.read(block, SUBJECTS)
    await proxy.turn("pass")  # it repents, too late
    before = sum(proxy.requests.values())
    for ask in (reader.verify_identity(), reader.pin(FAR), reader.read(block, SUBJECTS), reader.block_at(1)):
        with pytest.raises(Contradicted):
            await ask
    assert sum(proxy.requests.values()) == before


async def test_a_false_proof_is_no_proof_and_no_contradiction(reader: EvmReader, proxy: FaultProxy) -> None:
    await proxy.turn("bad-proof")
    with pytest.raises(Garbage, match=r"its state proof for 0x.* is none: accountProof"):
        await observe(reader)
    await proxy.turn("pass")
    assert held(await observe(reader)) == HOLDERS


class Without:
    """A real endpoint of a node that does not know one method, or answers something else to it."""

    def __init__(self, endpoint: EvmEndpoint, method: str, change: Callable[[Any], Any] | None) -> None:
        self._endpoint, self._method, self._change = endpoint, method, change

    async def call(self, method: str, params: Any) -> Any:
        if method != self._method:
            return await self._endpoint.call(method, params)
        if self._change is None:
            return await self._endpoint.call("eth_noSuchMethod", params)
        return self._change(await self._endpoint.call(method, params))

    async def close(self) -> None:
        await self._endpoint.close()


def other_header(answer: Any) -> Any:
    return answer | {"stateRoot": "0x" + "11" * 32}


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("eth_getProof", None, "the node gives no proof"),
        ("eth_getBlockByHash", other_header, "unprovable here"),
        ("eth_getBlockByHash", lambda _: None, "no header"),
    ],
)
async def test_where_nothing_can_be_proven_the_reading_stands_until_something_was(
    anvil: Anvil, reader: EvmReader, method: str, change: Callable[[Any], Any] | None, says: str
) -> None:
    honest = reader._endpoint
    reader._endpoint = Without(honest, method, change)  # type: ignore[arg-type]
    assert held(await observe(reader)) == HOLDERS
    block: Block = await reader.pin(FAR)
    with pytest.raises(Unprovable, match=says):
        await verify_balance(reader._endpoint, NAME, block, next(iter(HOLDERS)), 1)
    assert any(f.code == "failed" and says in f.detail for f in await reader.check())
    reader._endpoint = honest
    await observe(reader)
    reader._endpoint = Without(honest, method, change)  # type: ignore[arg-type]
    with pytest.raises(Unprovable, match=says):
        await observe(reader)


async def test_where_no_wallet_reads_the_coin_its_balances_are_not_claimed(anvil: Anvil) -> None:
    row = chain_row(anvil.url, genesis_of(anvil), prove=True)
    usdc = ETH.model_copy(update={"id": f"{CHAIN}/erc20:0x{'c1' * 20}", "kind": "erc20"})
    for adapters in ([], [Wallet(CHAIN, {usdc.id: usdc}, row.multicall)]):
        reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), adapters, [], [ETH])
        assert (await observe(reader)).positions == ()
        assert (await observe(reader)).positions == ()  # nor was it called a liar
        await reader.close()


async def test_check_tells_that_balances_can_be_proven(reader: EvmReader) -> None:
    assert any(f.scope.endswith("proofs") and f.code == "ok" for f in await reader.check())


@dataclass
class Providers:
    proxies: list[FaultProxy]
    reader: QuorumReader
    disputes: list[Dispute]


@pytest.fixture
async def providers(anvil: Anvil) -> AsyncIterator[Providers]:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(anvil.url)) for _ in range(3)]
        row = chain_row("", genesis_of(anvil), rpc=[p.url for p in proxies], quorum=2, prove=True)
        wallet = Wallet(CHAIN, {ETH.id: ETH}, row.multicall)
        readers = [EvmReader(row, EvmEndpoint(row, url), [wallet], [], [ETH]) for url in row.rpc]
        disputes: list[Dispute] = []
        reader = QuorumReader(row, readers, [f"{NAME}[{i}]" for i in range(3)], 2, disputes.append)
        stack.push_async_callback(reader.close)
        yield Providers(proxies, reader, disputes)


async def test_the_quorum_goes_on_without_the_liar_and_records_it_once(providers: Providers) -> None:
    assert held(await observe(providers.reader)) == HOLDERS
    await providers.proxies[1].turn("lying")
    for _ in range(3):
        assert held(await observe(providers.reader)) == HOLDERS
    (dispute,) = [d for d in providers.disputes if d.others == ("its own state proof",)]
    assert (dispute.provider, dispute.agreed, dispute.chain) == (f"{NAME}[1]", True, CHAIN)
    assert int(dispute.value) == 10 * int(dispute.expected) > 0
    assert dispute.about.startswith("balance of 0x")
    await providers.proxies[1].turn("pass")
    assert held(await observe(providers.reader)) == HOLDERS
    assert "halted: says balance of" in providers.reader.failed[f"{NAME}[1]"]


async def test_a_majority_that_lies_is_caught_by_its_own_proofs(providers: Providers) -> None:
    """Without proofs, two equal lies of three would be the truth."""
    await observe(providers.reader)
    for proxy in providers.proxies[:2]:
        await proxy.turn("lying")
    with pytest.raises(NoQuorum, match="its state proof shows"):
        await observe(providers.reader)
    for proxy in providers.proxies:
        await proxy.turn("pass")
    with pytest.raises(SourceError, match="halted"):
        await observe(providers.reader)


async def test_a_single_provider_is_recorded_too(anvil: Anvil, proxy: FaultProxy) -> None:
    disputes: list[Dispute] = []
    one = make(proxy.url, anvil)
    reader = QuorumReader(one.row, [one], [f"{NAME}[0]"], 1, disputes.append)
    assert held(await observe(reader)) == HOLDERS
    await proxy.turn("lying")
    for _ in range(2):
        with pytest.raises(Contradicted):
            await observe(reader)
    assert [d.provider for d in disputes] == [f"{NAME}[0]"]
    await reader.close()
