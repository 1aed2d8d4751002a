"""What counts as final on real Anvils: depths, tags, a rollup's L1, ancestry across reorganisations, a sequencer."""

from __future__ import annotations

import importlib
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from web3.contract import Contract

from adapters.evm.reader import EvmReader
from adapters.rpc import EvmEndpoint
from aggregator.domain.errors import Garbage, Unavailable
from aggregator.domain.rows import FinalityRow, SequencerRow
from aggregator.domain.snapshot import FROZEN, Block, Subject
from infra.devnet.anvil import Anvil, connect, deploy_code, transact
from infra.devnet.evm_deploy import at, deploy_multicall3
from tests.chain.evm_venues import CHAIN, NAME, Venues, chain_row, deploy_venues, genesis_of, make_reader

pytestmark = pytest.mark.chain
FAR = 2**40  # a cut time after everything
L1, L2 = "eip155:900", CHAIN

# As the L1Block predeploy of OP-stack chains reads: number() -> uint64, hash() -> bytes32.
ORIGIN = """
# pragma version ==0.4.3
number: public(uint64)
hash: public(bytes32)

@external
def derive(number: uint64, hash: bytes32):
    self.number = number
    self.hash = hash
"""
# As a Chainlink feed reads: roundId, answer, startedAt, updatedAt, answeredInRound.
UPTIME = """
# pragma version ==0.4.3
answer: int256
since: uint256

@external
def tell(answer: int256, since: uint256):
    self.answer = answer
    self.since = since

@external
@view
def latestRoundData() -> (uint80, int256, uint256, uint256, uint80):
    return 1, self.answer, self.since, block.timestamp, 1
"""


def deploy(anvil: Anvil, source: str) -> Contract:
    compiled = importlib.import_module("vyper").compile_code(source, output_formats=["abi", "bytecode"])
    return deploy_code(connect(anvil.url), compiled["abi"], compiled["bytecode"])


def block_at(anvil: Anvil, height: int | str, chain: str = CHAIN) -> Block:
    body = anvil.rpc("eth_getBlockByNumber", hex(height) if isinstance(height, int) else height, False)
    return Block(chain, int(body["number"], 16), body["hash"], body["parentHash"], int(body["timestamp"], 16))


def head_of(anvil: Anvil) -> int:
    return int(anvil.rpc("eth_blockNumber"), 16)


# Depths and tags


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil(slots_in_an_epoch=3) as chain:
        chain.rpc("anvil_setBlockTimestampInterval", 2)
        chain.mine(20)
        yield chain


@pytest.mark.parametrize(
    ("finality", "irreversible", "behind"),
    [
        (FinalityRow(depth=0), FinalityRow(depth=7), (0, 7)),
        (FinalityRow(depth=2), FinalityRow(tag="safe", typical=6), (2, 3)),
        (FinalityRow(tag="safe", typical=6), FinalityRow(tag="finalized", typical=12), (3, 6)),
        (FinalityRow(tag="finalized", typical=12), FinalityRow(depth=9), (6, 9)),
    ],
    ids=lambda value: value.text if isinstance(value, FinalityRow) else "",
)
async def test_each_rule_pins_its_own_block(
    anvil: Anvil, finality: FinalityRow, irreversible: FinalityRow, behind: tuple[int, int]
) -> None:
    anvil.mine(3)
    row = chain_row(anvil.url, genesis_of(anvil), finality=finality, irreversible=irreversible)
    # Anvil's blocks are two seconds apart, however fast it makes them: to this reader their times have come.
    head, reader = head_of(anvil), EvmReader(row, EvmEndpoint(row, row.rpc[0]), [], [], clock=lambda: FAR)
    assert await reader.pin(FAR) == block_at(anvil, head - behind[0])
    assert reader.finality_lag == 2 * behind[0]
    assert await reader.irreversible() == block_at(anvil, head - behind[1])
    early = block_at(anvil, head - 8)
    assert await reader.pin(early.time + 1) == early
    assert reader.finality_lag == 2 * behind[0]
    codes = {f.scope: f.code for f in await reader.check()}
    assert codes == {NAME: "ok", f"{NAME} finality": "ok", f"{NAME} headers": "ok"}
    await reader.close()


# Ancestry


async def test_headers_tell_which_ancestors_a_reorg_replaced(anvil: Anvil) -> None:
    reader = make_reader(anvil)
    head = head_of(anvil)
    before = await reader.headers(head - 6, head)
    assert before == tuple(block_at(anvil, height) for height in range(head - 6, head + 1))
    assert [after.parent for after in before[1:]] == [block.hash for block in before[:-1]]
    anvil.rpc("anvil_reorg", 3, [])
    anvil.mine()
    after = await reader.headers(head - 6, head + 1)
    assert after[:4] == before[:4]
    assert not {b.hash for b in after[4:]} & {b.hash for b in before[4:]}
    assert after[4].parent == before[3].hash
    await reader.close()


async def test_the_headers_of_a_range_that_is_not_there_are_unavailable(anvil: Anvil) -> None:
    reader = make_reader(anvil)
    with pytest.raises(Unavailable):
        await reader.headers(head_of(anvil), head_of(anvil) + 2)
    anvil.mine(300)
    head = head_of(anvil)
    assert await reader.headers(head - 299, head) == (block_at(anvil, head - 299), block_at(anvil, head))
    await reader.close()


# A rollup and its L1


@dataclass
class Rollup:
    """Two Anvils: what the second derives from the first is told by its origin contract. Depth 3 is final on L1."""

    l1: Anvil
    l2: Anvil
    origin: Contract
    reader: EvmReader

    def derive(self, height: int | None = None) -> Block:
        """Make one L2 block from an L1 block, by default the newest."""
        source = block_at(self.l1, "latest" if height is None else height, L1)
        derived = self.origin.functions.derive(source.height, bytes.fromhex(source.hash[2:]))
        return block_at(self.l2, transact(connect(self.l2.url), derived)["blockNumber"])


@pytest.fixture
async def rollup() -> AsyncIterator[Rollup]:
    with Anvil(chain_id=900) as l1, Anvil(slots_in_an_epoch=1) as l2:
        deploy_multicall3(connect(l2.url))
        origin = deploy(l2, ORIGIN)
        parent_row = chain_row(l1.url, id=L1, name="l1", genesis=genesis_of(l1), finality=FinalityRow(depth=3))
        parent = EvmReader(parent_row, EvmEndpoint(parent_row, parent_row.rpc[0]), [], [])
        rule = FinalityRow(l1=L1, origin=str(origin.address).lower(), typical=30)
        row = chain_row(l2.url, genesis=genesis_of(l2), finality=rule)
        reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), [], [], parent=parent, clock=lambda: FAR)
        yield Rollup(l1, l2, origin, reader)
        await reader.close()


async def test_a_rollup_is_final_as_far_as_its_l1_is(rollup: Rollup) -> None:
    derived: list[Block] = []
    for _ in range(12):  # two L2 blocks for each L1 block
        rollup.l1.mine()
        derived += [rollup.derive(), rollup.derive()]
    # L1: head 12, final 9. L2: finalized two below its head, which comes from L1 block 11.
    assert await rollup.reader.pin(FAR) == derived[2 * 9 - 1]
    assert await rollup.reader.irreversible() == derived[2 * 9 - 1]
    assert rollup.reader.finality_lag == derived[-1].time - derived[17].time
    rollup.l1.mine()
    assert await rollup.reader.pin(FAR) == derived[2 * 10 - 1]
    rollup.l1.mine(10)
    assert await rollup.reader.pin(FAR) == derived[-3]  # now what the rollup's own node calls finalized is less
    early = derived[7]
    assert await rollup.reader.pin(early.time) in [b for b in derived if b.time == early.time]
    assert {f.scope: f.code for f in await rollup.reader.check()}[f"{NAME} finality"] == "ok"


async def test_what_a_rollup_derived_from_a_replaced_l1_block_is_not_final(rollup: Rollup) -> None:
    derived: list[Block] = []
    for _ in range(8):
        rollup.l1.mine()
        derived.append(rollup.derive())
    rollup.l1.mine(5)
    assert await rollup.reader.pin(FAR) == derived[5]  # the rollup's own finalized
    rollup.l1.rpc("anvil_reorg", 9, [])  # blocks 5 to 13 of L1 are others now
    assert head_of(rollup.l1) == 13
    assert await rollup.reader.pin(FAR) == derived[3]
    assert await rollup.reader.irreversible() == derived[3]


async def test_a_rollup_older_than_its_origin_contract_is_not_pinned_below_it(rollup: Rollup) -> None:
    rollup.l2.mine(9)  # what the contract was never told is block 0 with hash 0, which no chain has
    with pytest.raises(Garbage, match=r"does not tell number\(\) and hash\(\) of an L1 block at block 0"):
        await rollup.reader.pin(FAR)


async def test_an_origin_that_is_no_contract_is_garbage(rollup: Rollup) -> None:
    rule = FinalityRow(l1=L1, origin="0x" + "15" * 20, typical=30)
    row = chain_row(rollup.l2.url, genesis=genesis_of(rollup.l2), finality=rule)
    reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), [], [], parent=rollup.reader._parent)
    rollup.l2.mine(5)
    with pytest.raises(Garbage, match=r"0x1515.* does not tell number\(\) and hash\(\) of an L1 block"):
        await reader.pin(FAR)
    assert [f.code for f in await reader.check()] == ["failed"]
    await reader.close()


# What changed, and the sequencer


@pytest.fixture(scope="module")
def venues() -> Iterator[Venues]:
    with Anvil() as chain:
        yield deploy_venues(chain)


def padded(address: str) -> str:
    return "0x" + address.lower().removeprefix("0x").rjust(64, "0")


async def test_logs_name_everybody_whom_a_block_touched(venues: Venues) -> None:
    reader = make_reader(venues.anvil, list(venues.adapters().values()))
    other, weth, vault = venues.w3.eth.accounts[5], venues["weth"], venues["collateral_vault"]
    somebody = b"\x77" * 32

    async def changed(function: Any, sender: Any = None) -> frozenset[str]:
        before = venues.latest().height
        venues.run(function, sender)
        words = await reader.changes(before + 1, venues.latest().height)
        assert words is not None
        assert await reader.changes(before + 1, before + 1) == words
        return words

    assert {padded(other), padded(venues.address)} <= await changed(weth.functions.transfer(other, 5))
    await changed(weth.functions.approve(vault.address, 5), other)
    deposit = await changed(vault.functions.deposit(somebody, weth.address, 5), other)
    assert "0x" + somebody.hex() in deposit
    assert padded(other) in deposit
    assert padded(venues.address) not in deposit
    request = await changed(vault.functions.request(somebody, weth.address, 2), other)
    assert "0x" + somebody.hex() in request
    repaid = await changed(venues["usdc"].functions.approve(venues.pool.address, 10**6))
    repaid = await changed(venues.pool.functions.repay(venues["usdc"].address, 10**6, 2, venues.user))
    assert padded(venues.address) in repaid
    await changed(venues["usdc"].functions.approve(venues["lender"].address, 10**6))
    at_lender = await changed(venues["lender"].functions.repay(bytes.fromhex(venues.account[2:]), 10**6))
    assert venues.account in at_lender
    before = venues.latest().height
    venues.anvil.mine(3)
    assert await reader.changes(before + 1, before + 3) == frozenset()
    await reader.close()


async def test_other_contracts_say_nothing(venues: Venues) -> None:
    reader = make_reader(venues.anvil, [venues.adapters()["vault"]])
    before = venues.latest().height
    venues.run(venues["weth"].functions.transfer(venues.w3.eth.accounts[5], 1))
    assert await reader.changes(before + 1, before + 1) == frozenset()
    await reader.close()


GRACE = 3600


@pytest.fixture
async def uptime(venues: Venues) -> AsyncIterator[tuple[Contract, EvmReader]]:
    snapshot = venues.anvil.rpc("evm_snapshot")
    feed = deploy(venues.anvil, UPTIME)
    row = SequencerRow(feed=str(feed.address).lower(), grace=GRACE)
    reader = make_reader(venues.anvil, list(venues.adapters().values()), venues.feeds(), sequencer=row)
    yield feed, reader
    await reader.close()
    venues.anvil.rpc("evm_revert", snapshot)


@pytest.mark.parametrize(
    ("answer", "ago", "says"),
    [
        (0, 10 * GRACE, ""),
        (0, GRACE + 1, ""),
        (0, GRACE, "the sequencer is back since .* UTC; it counts again after .* UTC"),
        (0, 0, "the sequencer is back since"),
        (1, 0, "the sequencer is down since .* UTC; it counts again 3600 s after it is back"),
        (1, 10 * GRACE, "the sequencer is down since"),
        (0, None, "has not been set up"),
        (2, 10 * GRACE, "cannot be read"),
        (-1, 10 * GRACE, "cannot be read"),
    ],
)
async def test_a_sequencer_freezes_its_chain_until_the_grace_is_over(
    venues: Venues, uptime: tuple[Contract, EvmReader], answer: int, ago: int | None, says: str
) -> None:
    feed, reader = uptime
    time = venues.latest().time + 10
    venues.anvil.rpc("evm_setNextBlockTimestamp", time)
    transact(venues.w3, feed.functions.tell(answer, 0 if ago is None else time - ago))
    block = await reader.pin(FAR)
    assert block.time == time
    subjects = [Subject(venues.account, None), Subject(venues.account, venues.address)]
    reading, quotes = await reader.read(block, subjects), await reader.read_quotes(block)
    assert len(reading.positions) > 5  # what it holds is still told
    check = {f.scope: f.code for f in await reader.check()}
    if says:
        assert reading.frozen.startswith(f"{FROZEN}: ")
        assert re.search(says, reading.frozen)
        assert quotes == ()
    else:
        assert reading.frozen == ""
        assert len(quotes) == len(venues.feeds())
    assert check[f"{NAME} sequencer"] == ("failed" if says == "cannot be read" else "ok")
    assert check[f"{NAME} logs"] == "ok"


async def test_a_feed_that_is_no_contract_freezes_its_chain(venues: Venues) -> None:
    reader = make_reader(venues.anvil, feeds=venues.feeds(), sequencer=SequencerRow(feed="0x" + "15" * 20))
    block = await reader.pin(FAR)
    assert (await reader.read(block, [])).frozen.startswith(f"{FROZEN}: the sequencer's uptime feed 0x1515")
    assert await reader.read_quotes(block) == ()
    assert at(venues.w3, "PriceFeed", venues.names["feed_eth"]).functions.latestAnswer().call() > 0
    await reader.close()
