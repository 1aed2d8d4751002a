"""The reader's own rules against a chain of made-up blocks and tokens: no node, no time."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partialmethod
from itertools import accumulate
from typing import Any

import pytest
from eth_abi import decode, encode
from hypothesis import given
from hypothesis import strategies as st

from adapters.evm.abi import Answer, Call
from adapters.evm.reader import CALLS_PER_BATCH, DESCRIBED_FOR, HEAD_AHEAD, HEX_PER_BATCH, EvmReader
from aggregator.domain.errors import Garbage, NodeRefused, Unavailable, Unreachable
from aggregator.domain.rows import AssetRow, ChainRow, FinalityRow
from aggregator.domain.snapshot import (
    DEBT_UNREADABLE,
    HOLDING,
    Block,
    Contract,
    Finding,
    Position,
    Reading,
    Side,
    Subject,
)
from aggregator.ports import HEADERS_LIMIT
from tests.chain.evm_venues import CHAIN, NAME, chain_row

ACCOUNT = "0x" + "ab" * 32
PINNED = Block(CHAIN, 7, "0x" + "07" * 32, "0x" + "06" * 32, 70)


@dataclass
class Chain:
    """A node: blocks by their times, and a multicall that answers each call with its own calldata.

    gas: how many calls one request may hold; more are refused as nodes do.
    """

    times: Sequence[int] = (0,)
    gas: int = 10**9
    refusal: str = "EVM error OutOfGas"
    height: int = PINNED.height
    requests: list[int] = field(default_factory=list)
    blocks_asked: int = 0

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        if method == "eth_chainId":
            return "0x7a69"
        if method == "eth_getBlockByNumber":
            self.blocks_asked += 1
            height = len(self.times) - 1 if params[0] == "latest" else int(params[0], 16)
            return self.block(height)
        request, pinned = params
        assert pinned == {"blockHash": PINNED.hash, "requireCanonical": True}
        assert len(request["data"]) < 2_000_000
        (calls,) = decode(["(address,bool,bytes)[]"], bytes.fromhex(request["data"][10:]))
        self.requests.append(len(calls) - 1)
        if len(calls) - 1 > self.gas:
            raise NodeRefused(NAME, -32003, f"eth_call: {self.refusal}")
        results = [(True, self.height.to_bytes(32, "big")), *((True, data) for _, _, data in calls[1:])]
        return "0x" + encode(["(bool,bytes)[]"], [results]).hex()

    def block(self, height: int) -> dict[str, str]:
        names = {"hash": f"0x{height + 1:064x}", "parentHash": f"0x{height:064x}"}
        return {"number": hex(height), "timestamp": hex(self.times[height]), **names}

    async def close(self) -> None: ...

    def reader(self, *adapters: Any, **changes: Any) -> EvmReader:
        return EvmReader(chain_row("http://unused", genesis=f"0x{1:064x}", **changes), self, adapters, [])


class Asking:
    """An adapter that asks rounds of calls and checks that it is given its own answers."""

    keyed_by = "address"
    watched = frozenset[str]()

    def __init__(self, name: str, *rounds: Sequence[str]) -> None:
        self.name, self.rounds = name, rounds

    def flow(self, subjects: Sequence[Subject]) -> Generator[Sequence[Call], Sequence[Answer], Any]:
        for datas in self.rounds:
            answers = yield [("11" * 20, data) for data in datas]
            assert [a.hex() if a else "" for a in answers] == list(datas)
        found = Position(ACCOUNT, CHAIN, self.name, "a", 1, "a", 1)
        return (found,), (Finding("x", ACCOUNT, self.name),)


def read(chain: Chain, *adapters: Any) -> Any:
    return asyncio.run(chain.reader(*adapters).read(PINNED, [Subject(ACCOUNT, "0x" + "22" * 20)]))


@given(
    steps=st.lists(st.integers(0, 50) | st.just(5_000), min_size=1, max_size=60),
    offset=st.integers(-3, 20_000),
    depth=st.integers(0, 5),
    block_seconds=st.sampled_from([0.01, 0.25, 1, 12, 10_000]),
)
def test_the_pin_is_what_a_look_at_every_block_gives(
    steps: list[int], offset: int, depth: int, block_seconds: float
) -> None:
    times = [100]
    for step in steps:
        times.append(times[-1] + step)
    cut = 100 + offset
    chain = Chain(times)
    final = times[: max(1, len(times) - depth)]
    expected = [height for height, time in enumerate(final) if time <= cut]
    pinning = chain.reader(finality=FinalityRow(depth=depth), block_seconds=block_seconds).pin(cut)
    if not expected:
        with pytest.raises(Unavailable):
            asyncio.run(pinning)
        return
    assert asyncio.run(pinning).height == expected[-1]
    assert chain.blocks_asked <= 3 + 2 * len(times).bit_length()


@given(st.lists(st.lists(st.lists(st.binary(max_size=40), max_size=5), max_size=3), max_size=4))
def test_adapters_advance_together_and_get_their_own_answers(rounds: list[list[list[bytes]]]) -> None:
    chain = Chain()
    made = [Asking(f"v{i}", *([d.hex() for d in datas] for datas in one)) for i, one in enumerate(rounds)]
    reading = read(chain, *made)
    assert [p.venue for p in reading.positions] == [f.detail for f in reading.findings] == [a.name for a in made]
    assert len(chain.requests) <= max((len(one) for one in rounds), default=0)


def test_requests_stay_below_the_limits_on_calls_and_size() -> None:
    for datas in (["00" * 4] * (2 * CALLS_PER_BATCH + 1), ["00" * 5_000] * 400, ["00" * 4, "11" * 600_000, "22" * 4]):
        chain = Chain()
        read(chain, Asking("v", datas))
        assert sum(chain.requests) == len(datas)
        assert max(chain.requests) <= CALLS_PER_BATCH
        assert max(chain.requests) * (len(datas[0]) + 5 * 64) <= HEX_PER_BATCH


@given(count=st.integers(1, 40), gas=st.integers(1, 40))
def test_a_batch_above_the_nodes_gas_is_read_in_parts(count: int, gas: int) -> None:
    chain = Chain(gas=gas)
    read(chain, Asking("v", [f"{i:08x}" for i in range(count)]))
    assert sum(n for n in chain.requests if n <= gas) == count


def test_what_no_smaller_batch_cures_is_refused_at_once() -> None:
    chain = Chain(gas=1, refusal="method not allowed")
    with pytest.raises(NodeRefused, match="method not allowed"):
        read(chain, Asking("v", ["00"] * 100))
    assert chain.requests == [100]
    chain = Chain(gas=0)
    with pytest.raises(NodeRefused, match="OutOfGas"):
        read(chain, Asking("v", ["00"] * 8))
    assert len(chain.requests) == 4


@pytest.mark.parametrize("height", [0, 6, 8, 2**255])
def test_a_read_at_another_height_is_refused(height: int) -> None:
    with pytest.raises(Garbage, match=rf"^{NAME}: multicall ran at another height than block 7"):
        read(Chain(height=height), Asking("v", ["00"]))


def test_a_call_above_the_size_limit_goes_alone() -> None:
    chain = Chain()
    read(chain, Asking("v", ["00", "11" * (HEX_PER_BATCH // 2), "22"]))
    assert chain.requests == [1, 1, 1]


def test_nothing_to_ask_asks_nothing() -> None:
    chain = Chain()
    assert read(chain).positions == ()
    assert read(chain, Asking("v", [])).findings == (Finding("x", ACCOUNT, "v"),)
    assert chain.requests == []


# Ancestry


@given(first=st.integers(0, 300), more=st.integers(0, 300))
def test_headers_are_every_block_or_of_a_long_range_the_ends(first: int, more: int) -> None:
    chain, last = Chain(range(0, 7_000, 10)), first + more
    found = asyncio.run(chain.reader().headers(first, last))
    heights = list(range(first, last + 1)) if more < HEADERS_LIMIT else [first, last]
    assert [(b.height, b.hash, b.time) for b in found] == [(h, f"0x{h + 1:064x}", 10 * h) for h in heights]
    assert chain.blocks_asked == len(heights)


@pytest.mark.parametrize("broken", [3, 4, 5])
def test_blocks_that_do_not_link_are_no_ancestry(broken: int) -> None:
    class Forked(Chain):
        def block(self, height: int) -> dict[str, str]:
            return super().block(height) | ({"parentHash": "0x" + "fa" * 32} if height == broken else {})

    with pytest.raises(Garbage, match=f"^{NAME}: block {broken} does not link to block {broken - 1}$"):
        asyncio.run(Forked(range(9)).reader().headers(2, 7))
    assert len(asyncio.run(Forked(range(9)).reader().headers(broken, 7))) == 8 - broken


def test_ancestry_in_which_time_runs_backwards_is_refused() -> None:
    with pytest.raises(Garbage, match=r"block 3 is 5 s before its parent"):
        asyncio.run(Chain([0, 10, 20, 15]).reader().headers(1, 3))


@pytest.mark.parametrize(("first", "last"), [(2, 1), (-1, 3)])
def test_a_range_that_is_none_is_the_callers_error(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="no range of heights"):
        asyncio.run(Chain(range(9)).reader().headers(first, last))


@dataclass
class Parent:
    """A reader of an L1 with ten blocks, of which those up to ``final`` are final."""

    row: ChainRow
    final: int

    async def pin(self, cut_time: int) -> Block:
        return await self.block_at(self.final)

    irreversible = partialmethod(pin, 0)

    async def block_at(self, height: int) -> Block:
        return Block("eip155:1", height, f"0x{height + 77:064x}", "", height)

    async def close(self) -> None: ...


@dataclass
class Rollup(Chain):
    """Each block names the L1 block it comes from; those from ``lost`` on name one that is not canonical."""

    origins: Sequence[int] = ()
    lost: int = 10**9

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        if method == "eth_call":
            origin = self.origins[int(params[1]["blockHash"], 16) - 1]
            fork = 0 if origin < self.lost else 2**255
            return f"0x{origin if params[0]['data'] == '0x8381f58a' else fork + origin + 77:064x}"
        return await super().call(method, ["latest"] if params == ["finalized", False] else params)


@given(
    steps=st.lists(st.integers(0, 1) | st.just(3), min_size=1, max_size=60),
    first=st.integers(0, 4),
    final=st.integers(0, 30),
    lost=st.integers(0, 40),
)
def test_a_rollup_is_final_as_a_look_at_every_block_tells(steps: list[int], first: int, final: int, lost: int) -> None:
    origins = list(accumulate(steps, initial=first))
    rollup = Rollup(range(len(origins)), origins=origins, lost=lost)
    rule = FinalityRow(l1="eip155:1", origin="0x" + "15" * 20, typical=900)
    row = chain_row("http://unused", genesis=f"0x{1:064x}", finality=rule)
    parent: Any = Parent(chain_row("http://unused", id="eip155:1"), final)
    reader = EvmReader(row, rollup, [], [], parent=parent)
    expected = [height for height, origin in enumerate(origins) if origin <= final and origin < lost]
    for ask in (reader.pin(10**9), reader.irreversible()):
        if expected:
            assert asyncio.run(ask).height == expected[-1]
        else:
            with pytest.raises(Unavailable, match=r"comes from an L1 block that is final"):
                asyncio.run(ask)
    assert rollup.blocks_asked <= 6 + 4 * len(origins).bit_length()


def test_a_rollup_needs_a_reader_of_the_chain_it_settles_on() -> None:
    rule = FinalityRow(l1="eip155:1", origin="0x" + "15" * 20, typical=900)
    for changes in ({"finality": rule}, {"irreversible": rule}):
        with pytest.raises(ValueError, match=r"^parent: a reader of eip155:1 is needed"):
            Chain().reader(**changes)


# What a node alone says


@pytest.mark.parametrize(("ahead", "lag"), [(-500, 15.0), (HEAD_AHEAD, 15.0), (HEAD_AHEAD + 1, None), (10**9, None)])
def test_a_head_from_the_future_tells_nothing_of_finality(ahead: int, lag: float | None) -> None:
    times = [100, 105, 110, 120]
    row = chain_row("http://unused", genesis=f"0x{1:064x}", finality=FinalityRow(depth=2))
    reader = EvmReader(row, Chain(times), [], [], clock=lambda: times[-1] - ahead)
    assert asyncio.run(reader.pin(1_000)).height == 1
    assert reader.finality_lag == lag


TOKEN = AssetRow(
    id=f"{CHAIN}/erc20:0x{'c1' * 20}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x"
)


@dataclass
class Token(Chain):
    """A node that answers every call with the same word, so that it is asked for decimals alone."""

    decimals: int | None = 6

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        assert method == "eth_call"
        (calls,) = decode(["(address,bool,bytes)[]"], bytes.fromhex(params[0]["data"][10:]))
        self.requests.append(len(calls) - 1)
        word = b"" if self.decimals is None else self.decimals.to_bytes(32, "big")
        height = int(params[1]["blockHash"], 16) - 1
        return "0x" + encode(["(bool,bytes)[]"], [[(True, height.to_bytes(32, "big")), (True, word)]]).hex()


class Holding:
    """An adapter that finds a balance of the token without asking."""

    name, keyed_by, watched = "wallet", "address", frozenset[str]()

    def flow(self, subjects: Sequence[Subject]) -> Generator[Sequence[Call], Sequence[Answer], Any]:
        yield from ()
        return (Position(ACCOUNT, CHAIN, self.name, TOKEN.id, 1, TOKEN.id, 1),), ()


def test_a_token_is_asked_for_its_decimals_until_they_are_right_and_again_after_a_while() -> None:
    node = Token()
    reader = EvmReader(chain_row("http://unused"), node, [Holding()], [], [TOKEN])

    def counted(height: int, decimals: int | None) -> bool:
        node.decimals = decimals
        block = Block(CHAIN, height, f"0x{height + 1:064x}", "", height * DESCRIBED_FOR // 4)
        reading = asyncio.run(reader.read(block, [Subject(ACCOUNT, "0x" + "22" * 20)]))
        assert [f.code for f in reading.findings] == ([] if reading.positions else ["unreadable"])
        return bool(reading.positions)

    assert not counted(0, None)  # one answer that did not come
    assert not counted(1, 18)
    assert counted(2, 6)
    before = len(node.requests)
    assert counted(3, 18)  # not looked at
    assert len(node.requests) == before
    assert not counted(4, 18)  # it changed
    assert not counted(5, None)
    assert counted(6, 6)


def test_what_is_in_terms_of_a_misdescribed_token_counts_nothing_and_may_owe_anything() -> None:
    """A contract that settles in it is neither a zero nor a position, long or short: either may hedge, or lose."""
    weth = f"{CHAIN}/erc20:0x{'e1' * 20}"
    venue = f"{CHAIN}/contract:0x{'77' * 20}"
    terms = Contract("perp", "ETH/USD", entry=3_000 * 10**8)

    def position(asset: str, unit: str, side: Side = "asset", contract: Contract = HOLDING) -> Position:
        amount = 0 if contract.kind else 5
        return Position(ACCOUNT, CHAIN, "v", asset, 5, unit, amount, side, contract=contract)

    long, short = position(f"{venue}/1", TOKEN.id, "asset", terms), position(f"{venue}/2", TOKEN.id, "debt", terms)
    other = position(f"{venue}/3", weth, "debt", terms._replace(kind="inverse"))
    shares = position(f"{CHAIN}/erc20:0x{'ab' * 20}", TOKEN.id)
    rows = (position(TOKEN.id, TOKEN.id), shares, position(TOKEN.id, TOKEN.id, "debt"), long, short, other)

    class Holds(Holding):
        def flow(self, subjects: Sequence[Subject]) -> Generator[Sequence[Call], Sequence[Answer], Any]:
            yield from ()
            return rows, ()

    def read(decimals: int | None) -> Reading:
        reader = EvmReader(chain_row("http://unused"), Token(decimals=decimals), [Holds()], [], [TOKEN])
        block = Block(CHAIN, 7, f"0x{8:064x}", "", 70)
        return asyncio.run(reader.read(block, [Subject(ACCOUNT, "0x" + "22" * 20)]))

    assert read(6).positions == rows
    assert read(6).findings == ()
    for decimals, lie in (
        (18, "decimals() is 18, configured are 6"),
        (None, "decimals() is unreadable, configured are 6"),
    ):
        reading = read(decimals)
        assert reading.positions == (other,)
        codes = ("unreadable", "unreadable", DEBT_UNREADABLE, DEBT_UNREADABLE, DEBT_UNREADABLE)
        assert reading.findings == tuple(
            Finding(code, ACCOUNT, f"{row.asset}: {lie}") for code, row in zip(codes, rows[:5], strict=True)
        )


@pytest.mark.parametrize("silent", ["eth_chainId", "eth_getBlockByNumber", "eth_call", "eth_getLogs"])
def test_a_check_stops_at_the_first_silence_of_the_node(silent: str) -> None:
    class Silent(Chain):
        asked = 0

        async def call(self, method: str, params: Sequence[Any]) -> Any:
            if method == silent:
                self.asked += 1
                await asyncio.Event().wait()
            if method == "eth_getLogs":
                return []
            return await super().call(method, params)

    class Watching(Asking):
        watched = frozenset({"0x" + "33" * 20})

    node = Silent(range(9))
    row = chain_row("http://unused", genesis=f"0x{1:064x}", timeout=0.05)
    reader = EvmReader(row, node, [Watching("one", ["00"]), Watching("two", ["00"])], [])
    findings = asyncio.run(reader.check())
    assert node.asked == 1
    assert [f.code for f in findings][:-1] == ["ok"] * (len(findings) - 1)
    assert findings[-1].code == "failed"
    assert findings[-1].detail == f"{NAME}: no answer within 0.05 s; nothing more was asked"


def test_a_check_goes_on_after_a_refusal() -> None:
    class Down(Chain):
        async def call(self, method: str, params: Sequence[Any]) -> Any:
            if method == "eth_call":
                raise NodeRefused(NAME, -32601, "no such method")
            return await super().call(method, params)

    row = chain_row("http://unused", genesis=f"0x{1:064x}")
    findings = asyncio.run(EvmReader(row, Down(range(9)), [Asking("one", ["00"]), Asking("two", ["00"])], []).check())
    assert [(f.scope, f.code) for f in findings][-2:] == [(f"{NAME} one", "failed"), (f"{NAME} two", "failed")]


def test_a_check_of_a_node_that_is_down_asks_once() -> None:
    class Dead(Chain):
        async def call(self, method: str, params: Sequence[Any]) -> Any:
            self.blocks_asked += 1
            raise Unreachable(NAME, "cannot be reached")

    node = Dead()
    (finding,) = asyncio.run(node.reader().check())
    assert (finding.code, node.blocks_asked) == ("failed", 1)
