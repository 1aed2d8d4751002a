"""Whatever a node answers: the honest reading or an error of the source, never another exception and never a hang.

One provider's well-formed lie cannot be told from the truth by itself. So a provider alone is held to errors and to
rows of the right kind, and one of three to the honest reading, word for word.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import httpx2
import pytest
from eth_abi import decode, encode
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from solders.pubkey import Pubkey

from adapters.evm.abi import selector, unpack_multicall
from adapters.evm.reader import EvmReader
from adapters.evm.vault import Vault
from adapters.evm.wallet import Wallet
from adapters.quorum import QuorumReader
from adapters.rpc import EvmEndpoint, SolanaEndpoint
from adapters.solana.layouts import TOKEN_PROGRAM
from adapters.solana.native import NativeWallet
from adapters.solana.reader import SolanaReader
from adapters.solana.spl_token import SplTokenWallet, associated_address
from aggregator.domain.errors import SourceError, Unavailable
from aggregator.domain.rows import AssetRow, ChainRow, FinalityRow, LatencyLeg, SequencerRow, SourceRow
from aggregator.domain.snapshot import Block, Position, Reading, Subject
from aggregator.ports import ChainReader

EVM, SOL_GENESIS = "eip155:31337", "4uhcVJyU9pJkvQyS88uRDiswHXSCkY3zQawwpjk2NsNY"
SOL = f"solana:{SOL_GENESIS[:32]}"
HEAD, STEP = 40, 2
CUT = 2 * HEAD
PATIENCE = 20  # seconds in which a hang shows; what does not hang takes milliseconds

# --- what nodes may say ---------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**300),
    st.sampled_from((0, 1, -1, 10**400, -(10**400), 2**64, 1.5, 1e308, "", "0x", "0x0", "-0x1", "0x 1", "latest")),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.binary(max_size=40).map(lambda b: "0x" + b.hex()),
    st.integers(0, 2**260).map(hex),
)
names = st.sampled_from(
    ("number", "hash", "parentHash", "timestamp", "blockTime", "context", "slot", "value", "data", "x")
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=8
) | st.integers(1, 400).map(lambda depth: json.loads("[" * depth + "]" * depth))


class Spoil:
    """Changes one thing about a value, somewhere inside; equal seeds do the same, whatever order calls come in.

    Args:
        seed: decides where and how.
        junk: what things are replaced by.
    """

    def __init__(self, seed: int, junk: Sequence[Any]) -> None:
        self._random, self._junk = Random(seed), junk

    def __call__(self, value: Any) -> Any:
        choose = self._random.choice
        if not value or self._random.random() < 0.1:
            return choose(self._junk)
        if isinstance(value, dict):
            key = choose(sorted(value))
            if self._random.random() < 0.25:
                return {k: v for k, v in value.items() if k != key}
            return value | {key: self(value[key])}
        if isinstance(value, list):
            at = self._random.randrange(len(value))
            return [*value[:at], *choose(([], [value[at]] * 2, *([[self(value[at])]] * 4))), *value[at + 1 :]]
        if isinstance(value, str):
            at, other = self._random.randrange(len(value)), choose("0123456789abcdefxXzg =+/AB\n\u0663")
            swapped, inserted = value[:at] + other + value[at + 1 :], value[:at] + other + value[at:]
            return choose((value[:at], swapped, swapped, inserted, value + "00", value[1:]))
        if isinstance(value, int):
            return choose((value + 1, value - 1, -value, value * 2**64, 10**400, float(value), str(value), True))
        return choose(self._junk)


spoils = st.builds(Spoil, st.integers(0, 2**32), st.lists(anything, min_size=1, max_size=4))


class Node:
    """An endpoint that answers honestly but for one method, whose answers go through ``spoil``."""

    def __init__(self, honest: Callable[[str, Sequence[Any]], Any], method: str = "", spoil: Any = None) -> None:
        self._honest, self._method, self._spoil = honest, method, spoil

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        answer = self._honest(method, params)
        return self._spoil(answer) if method == self._method else answer

    async def close(self) -> None:
        return None


# --- an EVM chain ---------------------------------------------------------------------------------------------------

MULTICALL, VAULT, FEED, UPTIME = ("0x" + c * 20 for c in ("ca", "7a", "fe", "5e"))
TOKEN = "0x" + "c1" * 20
ME, MINE = "0x" + "ab" * 32, "0x" + "9a" * 20
SUBJECTS = (Subject(ME, None), Subject(ME, MINE))


def asset(id: str, kind: str, decimals: int) -> AssetRow:
    return AssetRow.model_validate(
        {"id": id, "symbol": "X", "kind": kind, "decimals": decimals, "feed": "F", "policy": "p"}
    )


ASSETS = {a.id: a for a in (asset(f"{EVM}/erc20:{TOKEN}", "erc20", 6), asset(f"{EVM}/slip44:60", "native", 18))}


def evm_hash(height: int) -> str:
    return f"0x{height + 1:064x}"


def evm_block(height: int) -> dict[str, Any]:
    return {
        "number": hex(height),
        "hash": evm_hash(height),
        "parentHash": evm_hash(height - 1),
        "timestamp": hex(height * STEP),
        "extra": [],
    }


RETURNS = {
    selector("getBlockNumber()"): (HEAD - 2,),
    selector("getEthBalance(address)"): (10**18,),
    selector("decimals()"): (6,),
    selector("balanceOf(address)"): (777,),
    selector("position(bytes32,address)"): (1_000, 10),
    selector("delay()"): (7_200,),
    selector("latestRoundData()"): (1, 10**8, 70, 70, 1),
}


def evm_node(method: str, params: Sequence[Any]) -> Any:
    match method:
        case "eth_chainId":
            return "0x7a69"
        case "eth_getBlockByNumber":
            height = HEAD if params[0] == "latest" else int(params[0], 16)
            return evm_block(height) if height <= HEAD else None
        case "eth_getLogs":
            log = {
                "address": VAULT,
                "topics": [ME],
                "data": "0x",
                "blockNumber": params[0]["toBlock"],
                "removed": False,
            }
            return [log, log | {"address": TOKEN}]
        case "eth_call":
            (calls,) = decode(["(address,bool,bytes)[]"], bytes.fromhex(params[0]["data"][10:]))
            answers = []
            for target, _, data in calls:
                words = RETURNS[data[:4].hex()]
                if target == UPTIME:
                    words = (1, 0, 1, 1, 1)  # up, since the beginning
                answers.append((True, b"".join(w.to_bytes(32, "big") for w in words)))
            return "0x" + encode(["(bool,bytes)[]"], [answers]).hex()
    raise AssertionError(method)


def evm_row() -> ChainRow:
    return ChainRow(
        id=EVM,
        name="alpha",
        family="evm",
        rpc=tuple(SecretStr(f"https://rpc-{i}.example.org") for i in range(3)),
        quorum=2,
        genesis=evm_hash(0),
        block_seconds=STEP,
        finality=FinalityRow(depth=2),
        irreversible=FinalityRow(depth=8),
        sequencer=SequencerRow(feed=UPTIME, grace=10),
        multicall=MULTICALL,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        timeout=PATIENCE,
        requests_per_second=100_000,
    )


def evm_reader(node: Any) -> EvmReader:
    feed = SourceRow(name="chainlink", feed="F", kind="chainlink", id=f"{EVM}:{FEED}")
    adapters = [Wallet(EVM, ASSETS, MULTICALL), Vault(EVM, VAULT, ASSETS)]
    return EvmReader(evm_row(), node, adapters, [feed], list(ASSETS.values()))


# --- a Solana chain -------------------------------------------------------------------------------------------------

MINT = str(Pubkey(bytes([7] * 32)))
WALLET = str(Pubkey(bytes([9] * 32)))
HELD = associated_address(WALLET, MINT)
SOL_SUBJECTS = (Subject(ME, None), Subject(ME, WALLET))
SOL_ASSETS = {a.id: a for a in (asset(f"{SOL}/token:{MINT}", "spl", 6), asset(f"{SOL}/slip44:501", "native", 9))}
MINT_DATA = struct.pack("<I32sQBB36s", 0, bytes(32), 10**12, 6, 1, bytes(36))
HELD_DATA = (
    bytes(Pubkey.from_string(MINT))
    + bytes(Pubkey.from_string(WALLET))
    + struct.pack("<Q36sBI8sQ36s", 555, bytes(36), 1, 0, bytes(8), 0, bytes(36))
)
SYSTEM = "1" * 32


def sol_account(key: str) -> Any:
    owner, data = {MINT: (TOKEN_PROGRAM, MINT_DATA), HELD: (TOKEN_PROGRAM, HELD_DATA)}.get(key, (SYSTEM, b""))
    text = base64.b64encode(data).decode()
    return {"lamports": 10**9, "owner": owner, "data": [text, "base64"], "executable": False}


def sol_node(method: str, params: Sequence[Any]) -> Any:
    match method:
        case "getGenesisHash":
            return SOL_GENESIS
        case "getSlot":
            return HEAD - 2 if params[0]["commitment"] == "finalized" else HEAD
        case "getBlock":
            slot = params[0]
            if not 0 <= slot <= HEAD:
                raise Unavailable("sol", "no such block")
            return {"blockhash": f"h{slot}", "previousBlockhash": f"h{slot - 1}", "blockTime": slot * STEP}
        case "getMultipleAccounts":
            return {"context": {"slot": HEAD - 2}, "value": [sol_account(key) for key in params[0]]}
    raise AssertionError(method)


def sol_row() -> ChainRow:
    return ChainRow(
        id=SOL,
        name="sol",
        family="solana",
        rpc=tuple(SecretStr(f"https://rpc-{i}.example.org") for i in range(3)),
        quorum=2,
        genesis=SOL_GENESIS,
        block_seconds=0.4,
        max_age=60,
        hold=(LatencyLeg(typical=1),),
        timeout=PATIENCE,
        requests_per_second=100_000,
    )


def sol_reader(node: Any) -> SolanaReader:
    return SolanaReader(sol_row(), node, [SplTokenWallet(SOL, SOL_ASSETS), NativeWallet(SOL, SOL_ASSETS)])


# --- what must come of it -------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[Any, Any, Any, tuple[Subject, ...]]] = {
    "evm": (evm_row, evm_reader, evm_node, SUBJECTS),
    "solana": (sol_row, sol_reader, sol_node, SOL_SUBJECTS),
}
METHODS = [
    *(("evm", m) for m in ("eth_chainId", "eth_getBlockByNumber", "eth_call", "eth_getLogs")),
    *(("solana", m) for m in ("getGenesisHash", "getSlot", "getBlock", "getMultipleAccounts")),
]
each_method = pytest.mark.parametrize(("family", "method"), METHODS)


async def observed(reader: ChainReader, subjects: Sequence[Subject]) -> tuple[Any, ...]:
    """Do what an observer does with a reader."""
    block = await reader.pin(CUT)
    reading = await reader.read(block, subjects)
    return (
        block,
        sorted(reading.positions),
        sorted(reading.findings),
        reading.frozen,
        await reader.read_quotes(block),
        await reader.headers(block.height - 3, block.height),
        await reader.irreversible(),
        await reader.changes(block.height - 1, block.height),
    )


def honest(family: str) -> tuple[Any, ...]:
    _, make, node, subjects = FAMILIES[family]
    return asyncio.run(observed(make(Node(node)), subjects))


HONEST = {family: honest(family) for family in FAMILIES}


def test_the_honest_nodes_tell_of_every_kind_of_holding() -> None:
    assert {(p.venue, p.amount) for p in HONEST["evm"][1]} == {("wallet", 777), ("wallet", 10**18), ("vault", 1_000)}
    assert {(p.venue, p.amount) for p in HONEST["solana"][1]} == {("wallet", 555), ("wallet", 10**9)}
    assert all(not found and not frozen for _, _, found, frozen, *_ in HONEST.values())


async def each(reader: ChainReader, block: Block, subjects: Sequence[Subject]) -> list[Any]:
    """Call every method of a reader by itself; keep what it returns, suppress errors of the source and nothing else."""
    asks: list[Callable[[], Awaitable[Any]]] = [
        reader.verify_identity,
        lambda: reader.pin(CUT),
        lambda: reader.pin(CUT - 31),
        lambda: reader.block_at(block.height),
        lambda: reader.headers(block.height - 5, block.height),
        reader.irreversible,
        lambda: reader.changes(block.height - 9, block.height),
        lambda: reader.read(block, subjects),
        lambda: reader.read_quotes(block),
        reader.check,
    ]
    got: list[Any] = []
    async with asyncio.timeout(PATIENCE):
        for ask in asks:
            with contextlib.suppress(SourceError):
                got.append(await ask())
    return got


def verify_kind(got: Any, subjects: Sequence[Subject]) -> None:
    """Check that what a reader returned is of the kind that everything behind it counts on."""
    for item in got if isinstance(got, tuple) and not isinstance(got, Block) else (got,):
        if isinstance(item, Block):
            assert type(item.height) is int
            assert type(item.time) is int
            assert 0 <= item.height < 2**64
            assert 0 <= item.time < 2**64
        elif isinstance(item, Reading):
            for p in item.positions:
                assert isinstance(p, Position)
                assert p.account in {s.account for s in subjects}
                assert type(p.amount) is int
                assert 0 <= p.pending <= p.amount < 2**256
                assert p.asset in {*ASSETS, *SOL_ASSETS}


@each_method
@given(spoil=spoils)
def test_a_spoiled_answer_is_an_error_of_the_source_or_well_formed(family: str, method: str, spoil: Spoil) -> None:
    _, make, node, subjects = FAMILIES[family]
    reader = make(Node(node, method, spoil))
    for got in asyncio.run(each(reader, HONEST[family][0], subjects)):
        verify_kind(got, subjects)


@each_method
@given(answer=anything)
def test_any_json_at_all_is_an_error_of_the_source(family: str, method: str, answer: Any) -> None:
    _, make, node, subjects = FAMILIES[family]
    reader = make(Node(node, method, lambda _: answer))
    for got in asyncio.run(each(reader, HONEST[family][0], subjects)):
        verify_kind(got, subjects)
    if method in ("eth_call", "getMultipleAccounts"):
        with pytest.raises(SourceError):
            asyncio.run(make(Node(node, method, lambda _: answer)).read(HONEST[family][0], subjects))


@each_method
@given(spoil=spoils, which=st.integers(0, 2))
def test_one_spoiled_provider_of_three_changes_nothing(family: str, method: str, spoil: Spoil, which: int) -> None:
    row, make, node, subjects = FAMILIES[family]
    readers = [make(Node(node, method, spoil) if i == which else Node(node)) for i in range(3)]
    quorum = QuorumReader(row(), readers, ["a", "b", "c"], 2, lambda dispute: None)
    block, *rest = asyncio.run(asyncio.wait_for(observed(quorum, subjects), PATIENCE))
    expected, *others = HONEST[family]
    assert block == expected
    assert rest[:-1] == others[:-1]
    # What changed is a hint: whoever adds to it only has more read anew.
    assert rest[-1] == others[-1] or rest[-1] >= others[-1]


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=70)), max_size=5), spoils)
def test_what_the_multicall_decoder_takes_another_decoder_takes_too(
    results: list[tuple[bool, bytes]], spoil: Spoil
) -> None:
    text = "0x" + encode(["(bool,bytes)[]"], [results]).hex()
    changed = spoil(text)
    try:
        answers = unpack_multicall(changed, len(results))
    except ValueError:
        assert changed != text
        return
    (other,) = decode(["(bool,bytes)[]"], bytes.fromhex(changed[2:]))
    assert answers == [body if good and body else None for good, body in other]


# --- raw bytes ------------------------------------------------------------------------------------------------------

bodies = st.one_of(
    st.binary(max_size=60),
    anything.map(lambda value: json.dumps(value).encode()),
    st.tuples(anything, anything).map(
        lambda pair: json.dumps({"jsonrpc": "2.0", "id": pair[0], "result": pair[1]}).encode()
    ),
    st.tuples(anything, anything).map(lambda pair: json.dumps({"jsonrpc": "2.0", "id": 0, "error": pair[1]}).encode()),
    st.integers(1, 100_000).map(lambda depth: b"[" * depth),
    st.integers(1, 9_000).map(lambda digits: b'{"jsonrpc":"2.0","id":0,"result":' + b"9" * digits + b"}"),
)


async def _raises_nothing_else(call: Awaitable[Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(SourceError):
            await call


@given(body=bodies)
def test_any_bytes_from_an_evm_node_are_an_error_of_the_source_or_json(body: bytes) -> None:
    async def ask() -> None:
        endpoint = EvmEndpoint(evm_row(), SecretStr("https://rpc.example.org"))

        async def answer(method: Any, request: Any) -> bytes:
            return body

        endpoint._provider._make_request = answer  # type: ignore[method-assign,assignment]
        await _raises_nothing_else(endpoint.call("eth_chainId", []))
        await endpoint.close()

    asyncio.run(ask())


@given(body=bodies, status=st.sampled_from((200, 200, 200, 204, 301, 404)))
def test_any_bytes_from_a_solana_node_are_an_error_of_the_source_or_json(body: bytes, status: int) -> None:
    async def ask() -> None:
        endpoint = _solana_endpoint()
        session = endpoint._client._provider.session
        session._transport = httpx2.MockTransport(lambda request: httpx2.Response(status, content=body))
        session._mounts = {}
        await _raises_nothing_else(endpoint.call("getSlot", []))

    asyncio.run(ask())


@functools.cache
def _solana_endpoint() -> SolanaEndpoint:
    return SolanaEndpoint(sol_row(), SecretStr("https://rpc.example.org"))  # once: it loads certificates
