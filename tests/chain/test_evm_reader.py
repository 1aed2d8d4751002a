"""The EVM reader on a real Anvil: the Cut rule, pinned reads, and what it says when a node is absent or lies."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from eth_abi import encode

from adapters.evm.reader import EvmReader
from adapters.evm.wallet import Wallet
from adapters.rpc import ATTEMPTS, BODY_LIMIT, EvmEndpoint
from aggregator.domain.errors import Garbage, NodeRefused, SourceError, Unavailable, Unreachable, WrongChain
from aggregator.domain.rows import AssetRow, FinalityRow
from aggregator.domain.snapshot import Block, Subject
from infra.devnet.anvil import Anvil, connect, find_free_port, transact
from infra.devnet.evm_deploy import at, deploy_multicall3, deploy_token
from tests.chain.evm_venues import CHAIN, NAME, chain_row, genesis_of, make_reader

pytestmark = pytest.mark.chain
HOLDER = "0x" + "9a" * 20
SUBJECT = Subject("0x" + "ab" * 32, HOLDER)
BALANCE = 41


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture(autouse=True)
def isolated(anvil: Anvil) -> Iterator[None]:
    snapshot = anvil.rpc("evm_snapshot")
    yield
    anvil.rpc("evm_revert", snapshot)


@pytest.fixture(scope="module")
def asset(anvil: Anvil) -> AssetRow:
    """A token of which the holder has 41."""
    w3 = connect(anvil.url)
    deploy_multicall3(w3)
    token = deploy_token(w3, "USD Coin", "USDC", 6)
    transact(w3, token.functions.mint(w3.to_checksum_address(HOLDER), BALANCE))
    token_id = f"{CHAIN}/erc20:{str(token.address).lower()}"
    return AssetRow(id=token_id, symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x")


@pytest.fixture
def wallet(asset: AssetRow) -> Wallet:
    return Wallet(CHAIN, {asset.id: asset}, chain_row("http://unused").multicall)


@pytest.fixture
async def reader(anvil: Anvil, wallet: Wallet) -> AsyncIterator[EvmReader]:
    made = make_reader(anvil, [wallet])
    yield made
    await made.close()


def mint(anvil: Anvil, asset: AssetRow, amount: int) -> None:
    w3 = connect(anvil.url)
    token = at(w3, "TestToken", asset.id.rpartition(":")[2])
    transact(w3, token.functions.mint(w3.to_checksum_address(HOLDER), amount))


def mine_at(anvil: Anvil, *times: int) -> int:
    """Mine one block per offset in seconds after the newest block; return that block's time."""
    start = int(anvil.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    for offset in times:
        anvil.rpc("evm_setNextBlockTimestamp", start + offset)
        anvil.mine()
    return start


def block_at(anvil: Anvil, height: int) -> Block:
    body = anvil.rpc("eth_getBlockByNumber", hex(height), False)
    return Block(CHAIN, height, body["hash"], body["parentHash"], int(body["timestamp"], 16))


# The Cut rule


async def test_the_pin_is_the_last_block_not_after_the_cut(anvil: Anvil, reader: EvmReader) -> None:
    offsets = (1, 2, 3, 7, 8, 100, 101, 4_000, 4_001, 4_002, 4_010)
    start = mine_at(anvil, *offsets)
    head = int(anvil.rpc("eth_blockNumber"), 16)
    blocks = [block_at(anvil, height) for height in range(head + 1)]
    for cut in (*range(start, start + 12), *(start + o + d for o in offsets for d in (-1, 0, 1)), start + 10**6):
        expected = [b for b in blocks if b.time <= cut][-1]
        assert await reader.pin(cut) == expected, cut - start


async def test_a_long_gap_costs_few_requests(anvil: Anvil, wallet: Wallet) -> None:
    anvil.mine(300)
    start = mine_at(anvil, 1, 100_000)
    row = chain_row(anvil.url, genesis=genesis_of(anvil))
    asked: list[str] = []

    class Counting(EvmEndpoint):
        async def call(self, method: str, params: Any) -> Any:
            asked.append(method)
            return await super().call(method, params)

    reader = EvmReader(row, Counting(row, row.rpc[0]), [wallet], [])
    assert (await reader.pin(start + 50_000)).time == start + 1
    await reader.close()
    assert len(asked) < 20


async def test_a_cut_before_the_chain_began_has_no_block(anvil: Anvil, reader: EvmReader) -> None:
    with pytest.raises(Unavailable, match=rf"^{NAME}: the chain has no block at or before"):
        await reader.pin(block_at(anvil, 0).time - 1)
    assert (await reader.pin(block_at(anvil, 0).time)).time == block_at(anvil, 0).time


@pytest.mark.parametrize("depth", [0, 1, 3])
async def test_only_final_blocks_are_pinned(anvil: Anvil, depth: int) -> None:
    mine_at(anvil, 1, 2, 3, 4, 5)
    head = int(anvil.rpc("eth_blockNumber"), 16)
    reader = make_reader(anvil, finality=FinalityRow(depth=depth))
    assert await reader.pin(2**40) == block_at(anvil, head - depth)
    await reader.close()


async def test_a_chain_shorter_than_its_finality_is_pinned_at_its_start(anvil: Anvil) -> None:
    reader = make_reader(anvil, finality=FinalityRow(depth=10**6))
    assert await reader.pin(2**40) == block_at(anvil, 0)
    await reader.close()


# Pinned reads


async def balance(reader: EvmReader, block: Block) -> int:
    reading = await reader.read(block, [SUBJECT])
    assert reading.block == block
    assert reading.findings == ()
    (position,) = reading.positions
    return position.amount


async def test_what_happens_after_the_pin_is_not_seen(anvil: Anvil, asset: AssetRow, reader: EvmReader) -> None:
    pinned = await reader.pin(2**40)
    mint(anvil, asset, 1_000)
    assert await balance(reader, pinned) == BALANCE
    assert await balance(reader, await reader.pin(2**40)) == BALANCE + 1_000


async def test_a_block_that_a_reorg_removed_is_unavailable(anvil: Anvil, asset: AssetRow, reader: EvmReader) -> None:
    mint(anvil, asset, 1_000)
    pinned = await reader.pin(2**40)
    assert await balance(reader, pinned) == BALANCE + 1_000
    anvil.rpc("anvil_reorg", 1, [])
    with pytest.raises((Unavailable, NodeRefused), match=f"^{NAME}: ") as caught:
        await reader.read(pinned, [SUBJECT])
    assert isinstance(caught.value, Unavailable)
    assert await balance(reader, await reader.pin(2**40)) == BALANCE


async def test_pruned_state_is_an_error_not_a_zero(wallet: Wallet) -> None:
    with Anvil(extra_args=("--transaction-block-keeper", "8")) as anvil:
        w3 = connect(anvil.url)
        deploy_multicall3(w3)
        reader = make_reader(anvil, [wallet])
        pinned = await reader.pin(2**40)
        anvil.mine(200)
        with pytest.raises((Unavailable, NodeRefused), match=f"^{NAME}: "):
            await reader.read(pinned, [SUBJECT])
        await reader.close()


async def test_a_chain_without_multicall_is_garbage_not_zeros(wallet: Wallet) -> None:
    with Anvil() as anvil:
        anvil.rpc("anvil_setCode", chain_row("http://unused").multicall, "0x")  # Anvil brings one along
        anvil.mine()
        reader = make_reader(anvil, [wallet])
        with pytest.raises(Garbage, match=rf"^{NAME}: multicall at 0xca11"):
            await reader.read(await reader.pin(2**40), [SUBJECT])
        await reader.close()


# Identity


async def test_a_node_of_another_chain_is_refused(wallet: Wallet) -> None:
    with Anvil(chain_id=5) as other:
        reader = make_reader(other, [wallet])
        with pytest.raises(WrongChain, match=f"^{NAME}: the node answers for chain id 5, configured is 31337"):
            await reader.pin(2**40)
        assert [(f.code, f.scope) for f in await reader.check()] == [("failed", NAME)]
        await reader.close()


async def test_another_genesis_is_refused(anvil: Anvil, wallet: Wallet) -> None:
    reader = make_reader(anvil, [wallet], genesis="0x" + "12" * 32)
    with pytest.raises(WrongChain, match=f"^{NAME}: the node's genesis is {genesis_of(anvil)}, configured is 0x1212"):
        await reader.pin(2**40)
    await reader.close()


# Nodes that fail or lie

Answerer = Callable[[dict[str, Any]], bytes | Awaitable[bytes]]
CUT_TIME = 1_000
GENESIS = "0x" + "00" * 32


def http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def result(value: object) -> bytes:
    return http(json.dumps({"jsonrpc": "2.0", "id": 0, "result": value}).encode())


def _numbered(answered: bytes, id: int) -> bytes:
    """Let a reply to request 0 reply to request ``id``."""
    head, blank, body = answered.partition(b"\r\n\r\n")
    renumbered = body.replace(b'"id": 0,', b'"id": %d,' % id)
    lengths = [b"content-length: %d\r\n" % len(x) for x in (body, renumbered)]
    return head.replace(*lengths) + blank + renumbered


@asynccontextmanager
async def node(answer: Answerer, seen: list[str] | None = None) -> AsyncIterator[str]:
    """Serve HTTP on a free port with whatever bytes ``answer`` makes of a JSON-RPC request."""

    async def serve(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reading.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
                request = json.loads(await reading.readexactly(length))
                if seen is not None:
                    seen.append(request["method"])
                answered = answer(request)
                writing.write(_numbered(answered if isinstance(answered, bytes) else await answered, request["id"]))
                await writing.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writing.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def block_body(height: int = 0, **changes: object) -> dict[str, object]:
    fields = {"number": hex(height), "timestamp": "0x1", "hash": GENESIS, "parentHash": GENESIS}
    return {**fields, **changes}


def honest_but(method: str, answered: bytes) -> Answerer:
    """A node whose only block is the first, which answers ``method`` with these bytes."""

    def answer(request: dict[str, Any]) -> bytes:
        if request["method"] == method:
            return answered
        return result("0x7a69" if request["method"] == "eth_chainId" else block_body())

    return answer


async def fails(url: str, wallet: Wallet, **changes: Any) -> SourceError:
    """Read a balance from a bad node; return the error, which must name the chain and show no address or key."""
    row = chain_row(url, genesis=GENESIS, timeout=changes.pop("timeout", 5), **changes)
    reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), [wallet], [])
    try:
        with pytest.raises(SourceError) as caught:
            await reader.read(await reader.pin(CUT_TIME), [SUBJECT])
        findings = await reader.check()
    finally:
        await reader.close()
    assert caught.value.source == NAME
    assert "failed" in {f.code for f in findings}
    for text in (str(caught.value), repr(caught.value), *(f.detail for f in findings)):
        assert "secret-key" not in text
        assert "127.0.0.1" not in text
        assert "http:" not in text
    cause: BaseException | None = caught.value.__cause__ or caught.value.__context__
    assert cause is None or caught.value.__suppress_context__
    return caught.value


async def test_a_node_that_is_down_is_unreachable(wallet: Wallet) -> None:
    error = await fails(f"http://127.0.0.1:{find_free_port()}", wallet)
    assert isinstance(error, Unreachable)
    assert error.retryable


async def test_a_frozen_anvil_is_unreachable_and_comes_back(wallet: Wallet) -> None:
    with Anvil() as anvil:
        row = chain_row(anvil.url, genesis=genesis_of(anvil), timeout=0.3)
        reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), [wallet], [])
        anvil.freeze()
        with pytest.raises(Unreachable, match=rf"^{NAME}: no answer to eth_chainId within 0.3 s$"):
            await reader.pin(2**40)
        anvil.thaw()
        assert await reader.pin(2**40) == block_at(anvil, 0)
        await reader.close()


async def test_a_slow_node_is_unreachable_after_the_stated_time(wallet: Wallet) -> None:
    async def never(_: dict[str, Any]) -> bytes:
        await asyncio.sleep(60)
        return b""

    seen: list[str] = []
    async with node(never, seen) as url:
        error = await fails(url, wallet, timeout=0.2)
    assert isinstance(error, Unreachable)
    assert str(error) == f"{NAME}: no answer to eth_chainId within 0.2 s"
    assert seen == ["eth_chainId"] * ATTEMPTS * 2  # the read and the check


async def test_an_answer_that_drips_counts_as_slow(wallet: Wallet) -> None:
    async def drip(_: dict[str, Any]) -> bytes:
        return b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"

    async with node(drip) as url:
        error = await fails(url, wallet, timeout=0.2)
    assert isinstance(error, Unreachable)
    assert "0.2 s" in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        ("429 Too Many Requests", Unreachable, ATTEMPTS),
        ("500 Internal Server Error", Unreachable, ATTEMPTS),
        ("503 Service Unavailable", Unreachable, ATTEMPTS),
        ("401 Unauthorized", Garbage, 1),
        ("403 Forbidden", Garbage, 1),
        ("404 Not Found", Garbage, 1),
    ],
)
async def test_http_errors_name_their_status(wallet: Wallet, status: str, kind: type[SourceError], tries: int) -> None:
    seen: list[str] = []
    async with node(lambda _: http(b"<html>no</html>", status), seen) as url:
        error = await fails(url, wallet)
    assert type(error) is kind
    assert f"HTTP status {status[:3]}" in str(error)
    assert len(seen) == tries * 2


async def test_a_redirect_is_not_followed(wallet: Wallet) -> None:
    visited: list[str] = []
    async with node(honest_but("", b""), visited) as elsewhere:
        moved = http(b"", "307 Temporary Redirect", f"location: {elsewhere}/\r\n")
        async with node(lambda _: moved) as url:
            assert isinstance(await fails(url, wallet), Garbage)
    assert visited == []


NAN = b'{"jsonrpc": "2.0", "id": 0, "result": NaN}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"1",
        b'"0x7a69"',
        b"{}",
        b'{"jsonrpc": "2.0", "id": 0}',
        b'{"jsonrpc": "2.0", "id": 0, "result": null}',
        b'{"jsonrpc": "2.0", "id": 0, "result": "31337"}',
        b'{"jsonrpc": "2.0", "id": 0, "result": 31337}',
        b'{"jsonrpc": "2.0", "id": 0, "result": 31337.0}',
        b'{"jsonrpc": "2.0", "id": 0, "result": "0x7a_69"}',
        b'{"jsonrpc": "2.0", "id": 0, "result": " 0x7a69"}',
        b'{"jsonrpc": "2.0", "id": 0, "result": "-0x7a69"}',
        b'{"jsonrpc": "2.0", "id": 0, "result": ["0x7a69"]}',
        NAN,
        NAN.replace(b"NaN", b"1e999"),
        NAN.replace(b"NaN", b"9" * 10_000),
        NAN.replace(b"NaN", b"[" * 100_000),
        NAN.replace(b"NaN", b'"0x' + b"f" * 10_000 + b'"'),
        b'{"jsonrpc": "2.0", "id": 0, "error": 3}',
        b'{"jsonrpc": "2.0", "id": 0, "error": {"message": "no code"}}',
        b'{"jsonrpc": "2.0", "id": 0, "error": {"code": "1", "message": "no number"}}',
        b'{"jsonrpc": "2.0", "id": 0, "result": "0x7a69", "result": "0x7a69"}',
        b'{"jsonrpc": "2.0", "id": 0, "result": "0x7a69", "error": {"code": 3, "message": "no"}}',
    ],
    ids=lambda body: body[:60].decode("latin1") or "empty",
)
async def test_what_is_not_an_answer_is_garbage(wallet: Wallet, body: bytes) -> None:
    async with node(lambda _: http(body)) as url:
        error = await fails(url, wallet)
    assert type(error) is Garbage


@pytest.mark.parametrize("id", [b"1", b"-1", b'"0"', b"false", b"null", b"0.0", b"{}", None])
async def test_the_answer_to_another_request_is_garbage(wallet: Wallet, id: bytes | None) -> None:
    body = b'{"jsonrpc": "2.0", ' + (b'"id": %b, ' % id if id else b"") + b'"result": "0x7a69"}'
    async with node(lambda _: http(body)) as url:
        error = await fails(url, wallet)
    assert type(error) is Garbage
    assert str(error) == f"{NAME}: the answer to eth_chainId answers another request"


@pytest.mark.parametrize("id", [b"null", b"0"])
async def test_an_error_may_come_without_an_id(wallet: Wallet, id: bytes) -> None:
    """A node that could not read the request cannot know its id: JSON-RPC 2.0, section 5."""
    body = b'{"jsonrpc": "2.0", "id": %b, "error": {"code": -32700, "message": "parse error"}}' % id
    async with node(lambda _: http(body)) as url:
        error = await fails(url, wallet)
    assert isinstance(error, NodeRefused)
    assert error.code == -32700


@pytest.mark.parametrize(
    "changes",
    [
        {"number": None},
        {"number": 0},
        {"number": "0"},
        {"number": "0x"},
        {"number": "-0x1"},
        {"number": "0x1"},  # not the block asked for
        {"number": "0x" + "f" * 80},
        {"timestamp": "0x" + "f" * 400},
        {"timestamp": float("nan")},
        {"timestamp": 1e300},
        {"timestamp": "soon"},
        {"hash": "0x12"},
        {"hash": "0x" + "zz" * 32},
        {"hash": "0x_" + "0" * 63},
        {"hash": None},
        {"hash": {}},
        {"parentHash": "0x" + "0" * 65},
    ],
)
async def test_a_malformed_block_is_garbage(wallet: Wallet, changes: dict[str, object]) -> None:
    async with node(honest_but("eth_getBlockByNumber", result(block_body(**changes)))) as url:
        assert type(await fails(url, wallet)) is Garbage


@pytest.mark.parametrize("body", ["a block", 7, [], [block_body()], True])
async def test_a_block_of_another_type_is_garbage(wallet: Wallet, body: object) -> None:
    async with node(honest_but("eth_getBlockByNumber", result(body))) as url:
        assert type(await fails(url, wallet)) is Garbage


async def test_an_unknown_block_is_unavailable(wallet: Wallet) -> None:
    async with node(honest_but("eth_getBlockByNumber", result(None))) as url:
        error = await fails(url, wallet)
    assert isinstance(error, Unavailable)


def returns(*results: tuple[bool, bytes]) -> str:
    return "0x" + encode(["(bool,bytes)[]"], [results]).hex()


ZERO_WORD = bytes(32)
GOOD = returns((True, ZERO_WORD), (True, b"\x00" * 31 + b"\x05"))


@pytest.mark.parametrize(
    "returned",
    [
        "",
        "0x",
        "0x0",
        "0xzz",
        None,
        5,
        [],
        {"data": GOOD},
        GOOD[2:],
        GOOD[:-2],
        GOOD[:-64],
        GOOD + "00",
        GOOD + "00" * 32,
        returns(),
        returns((True, ZERO_WORD)),
        returns((True, ZERO_WORD), (True, ZERO_WORD), (True, ZERO_WORD)),
        returns((True, b"\x00" * 31 + b"\x01"), (True, ZERO_WORD)),  # ran at block 1, not at the pinned one
        returns((False, ZERO_WORD), (True, ZERO_WORD)),
        "0x" + "00" * 448,
        "0x" + "ff" * 448,
    ],
    ids=lambda returned: str(returned)[-40:],
)
async def test_a_malformed_multicall_is_garbage_never_a_balance(wallet: Wallet, returned: object) -> None:
    async with node(honest_but("eth_call", result(returned))) as url:
        error = await fails(url, wallet)
    assert type(error) is Garbage


async def test_the_same_node_answering_well_is_read(wallet: Wallet) -> None:
    """Without this the cases above could all fail for a reason of the test's own."""
    async with node(honest_but("eth_call", result(GOOD))) as url:
        row = chain_row(url, genesis=GENESIS)
        reader = EvmReader(row, EvmEndpoint(row, row.rpc[0]), [wallet], [])
        reading = await reader.read(await reader.pin(CUT_TIME), [SUBJECT])
        await reader.close()
    assert [p.amount for p in reading.positions] == [5]


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (-32000, "header not found", Unavailable),
        (-32000, "missing trie node 12ab (path )", Unavailable),
        (-32000, "hash 12ab is not currently canonical", Unavailable),
        (-32001, "Resource not found", Unavailable),
        (-32000, "execution reverted", NodeRefused),
        (-32601, "method not found", NodeRefused),
        (3, "execution reverted", NodeRefused),
        (-32005, "limit exceeded", Unreachable),
        (429, "slow down", Unreachable),
    ],
)
async def test_json_rpc_errors_are_sorted(wallet: Wallet, code: int, message: str, kind: type[SourceError]) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": message}}).encode()
    async with node(honest_but("eth_call", http(body))) as url:
        error = await fails(url, wallet)
    assert type(error) is kind
    assert not isinstance(error, NodeRefused) or error.code == code


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
async def test_a_huge_body_is_refused(wallet: Wallet, packed: bool) -> None:
    body = b'{"jsonrpc": "2.0", "id": 0, "result": "' + b"0" * (BODY_LIMIT + 1) + b'"}'
    answered = http(gzip.compress(body, 1), headers="content-encoding: gzip\r\n") if packed else http(body)
    async with node(lambda _: answered) as url:
        error = await fails(url, wallet)
    assert type(error) is Garbage
    assert f"larger than {BODY_LIMIT} bytes" in str(error)
