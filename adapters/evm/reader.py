"""One node of one EVM chain, read at pinned blocks.

The reader drives the flows of all adapters in lockstep and packs their calls into Multicall3 batches, every one
pinned by block hash (EIP-1898) and anchored by a block-number call, so that mixed heights cannot pass.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from adapters.evm.abi import Answer, Call, Flow, Result, decode_uint, pack_multicall, selector, unpack_multicall
from adapters.evm.chainlink import quotes_flow
from aggregator.domain.errors import Garbage, NodeRefused, SourceError, Unavailable, WrongChain
from aggregator.domain.price import Quote
from aggregator.domain.rows import AssetRow, ChainRow, SourceRow
from aggregator.domain.snapshot import DEBT_UNREADABLE, INFORMATIONAL, Block, Finding, Position, Reading, Subject

CALLS_PER_BATCH = 2_500
HEX_PER_BATCH = 1_400_000  # request bodies are capped at about 2 MB by common nodes
DECIMALS = selector("decimals()")
GET_BLOCK_NUMBER = selector("getBlockNumber()")  # Multicall3's own view

_QUANTITY = re.compile("0x[0-9a-f]{1,16}")
_HASH = re.compile("0x[0-9a-fA-F]{64}")

R = TypeVar("R")


class Endpoint(Protocol):
    """What the reader needs of ``adapters.rpc.EvmEndpoint``."""

    async def call(self, method: str, params: Sequence[object]) -> Any: ...

    async def close(self) -> None: ...


class EvmAdapter(Protocol):
    """A protocol adapter on EVM chains: a generator of calls, sans I/O."""

    @property
    def name(self) -> str: ...

    @property
    def keyed_by(self) -> str:
        """``address``: asked per linked address. ``account``: asked once per account."""
        ...

    def flow(self, subjects: Sequence[Subject]) -> Flow: ...


def _decode_quantity(value: object) -> int:
    """Decode a JSON-RPC quantity below 2^64; raise ValueError for anything else (``int`` alone would take "-0x1_0")."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ValueError("quantity")
    return int(value, 16)


def decode_block(caip2: str, name: str, body: Any) -> Block:
    """Decode an ``eth_getBlockBy…`` result strictly.

    Args:
        caip2: id for the block. name: what errors call the chain.

    Raises:
        Garbage: a field is missing or malformed.
    """
    try:
        height, time = _decode_quantity(body["number"]), _decode_quantity(body["timestamp"])
        block_hash, parent = body["hash"], body["parentHash"]
        if not (_HASH.fullmatch(block_hash) and _HASH.fullmatch(parent)):
            raise ValueError("hash")
    except (KeyError, TypeError, ValueError):
        raise Garbage(name, "a block without well-formed number, timestamp, hash and parentHash") from None
    return Block(caip2, height, block_hash.lower(), parent.lower(), time)


class EvmReader:
    """Implements :class:`aggregator.ports.ChainReader` over one endpoint."""

    def __init__(
        self,
        row: ChainRow,
        endpoint: Endpoint,
        adapters: Sequence[EvmAdapter],
        feeds: Sequence[SourceRow],
        assets: Sequence[AssetRow] = (),
    ) -> None:
        self._row, self._endpoint = row, endpoint
        self._adapters, self._feeds, self._assets = tuple(adapters), tuple(feeds), tuple(assets)
        self._identified = False
        self._wrong: dict[str, str] | None = None  # asset -> what is wrong; None = not looked at yet

    @property
    def row(self) -> ChainRow:
        """The chain's configuration."""
        return self._row

    async def verify_identity(self) -> None:
        """Raise WrongChain unless chain id and genesis hash are the configured ones."""
        name, want = self._row.name, self._row.id.removeprefix("eip155:")
        answer = await self._endpoint.call("eth_chainId", [])
        try:
            got = str(_decode_quantity(answer))
        except ValueError:
            raise Garbage(name, "eth_chainId is not a number") from None
        if got != want:
            raise WrongChain(name, f"the node answers for chain id {got}, configured is {want}")
        genesis = await self._block(0)
        if genesis.hash != self._row.genesis.lower():
            raise WrongChain(name, f"the node's genesis is {genesis.hash}, configured is {self._row.genesis}")
        self._identified = True

    async def _block(self, height: int | str) -> Block:
        tag, name = hex(height) if isinstance(height, int) else height, self._row.name
        body = await self._endpoint.call("eth_getBlockByNumber", [tag, False])
        if body is None:
            raise Unavailable(name, f"the node does not have block {tag}")
        block = decode_block(self._row.id, name, body)
        if isinstance(height, int) and block.height != height:
            raise Garbage(name, f"asked for block {height}, answered block {block.height}")
        return block

    async def pin(self, cut_time: int) -> Block:
        """Return the last final block with timestamp ≤ ``cut_time`` (protocol.md, the Cut rule).

        Raises:
            Unavailable: the chain's first block is already later.
        """
        if not self._identified:
            await self.verify_identity()
        head = await self._block("latest")
        block = await self._block(max(0, head.height - self._row.finality_depth))
        step, later = max(1, math.floor((block.time - cut_time) / self._row.block_seconds)), block.height + 1
        while block.time > cut_time:
            if block.height == 0:
                raise Unavailable(self._row.name, f"the chain has no block at or before {cut_time}")
            later = block.height
            block = await self._block(max(0, block.height - step))
            step *= 2
        while later - block.height > 1:  # the steps may have gone too far back
            middle = await self._block((block.height + later) // 2)
            if middle.time <= cut_time:
                block = middle
            else:
                later = middle.height
        return block

    async def block_at(self, height: int) -> Block:
        """Return the node's canonical block at ``height``.

        Raises:
            Unavailable: it has none.
        """
        return await self._block(height)

    async def _aggregate(self, block: Block, calls: Sequence[Call]) -> list[Answer]:
        anchored = [(self._row.multicall.removeprefix("0x").lower(), GET_BLOCK_NUMBER), *calls]
        request = {"to": self._row.multicall, "data": pack_multicall(anchored)}
        pinned = {"blockHash": block.hash, "requireCanonical": True}
        try:
            returned = await self._endpoint.call("eth_call", [request, pinned])
        except NodeRefused as error:
            if len(calls) <= 1 or "gas" not in error.problem.lower():
                raise
            # Nodes grant one request so much gas: costly calls, or one that burns all it gets, need smaller batches.
            middle = len(calls) // 2
            return [*await self._aggregate(block, calls[:middle]), *await self._aggregate(block, calls[middle:])]
        try:
            anchor, *answers = unpack_multicall(returned, len(anchored))
        except ValueError as error:
            raise Garbage(self._row.name, f"multicall at {self._row.multicall}: {error}") from None
        if anchor is None or int.from_bytes(anchor, "big") != block.height:
            raise Garbage(self._row.name, f"multicall ran at another height than block {block.height}")
        return answers

    async def _run(self, block: Block, batches: Sequence[Sequence[Call]]) -> list[list[Answer]]:
        """Run several batches as few multicalls as fit; answers are cut back into the batches' shapes."""
        flat = [call for batch in batches for call in batch]
        answered = await asyncio.gather(*(self._aggregate(block, chunk) for chunk in _chunks(flat)))
        answers = chain.from_iterable(answered)
        return [list(islice(answers, len(batch))) for batch in batches]

    async def _drive(self, block: Block, flows: Sequence[Generator[Sequence[Call], Sequence[Answer], R]]) -> list[R]:
        """Drive generators in lockstep until all have returned."""
        results: dict[int, R] = {}
        waiting: dict[int, Sequence[Call]] = {}

        def resume(i: int, answers: Sequence[Answer] | None) -> None:
            try:
                waiting[i] = next(flows[i]) if answers is None else flows[i].send(answers)
            except StopIteration as stop:
                results[i] = stop.value
            except Garbage as error:  # adapters know their chain by its id only
                raise Garbage(self._row.name, error.problem) from None

        for i in range(len(flows)):
            resume(i, None)
        while waiting:
            order, batches = list(waiting), list(waiting.values())
            waiting.clear()
            for i, answers in zip(order, await self._run(block, batches), strict=True):
                resume(i, answers)
        return [results[i] for i in range(len(flows))]

    async def _misdescribed(self, block: Block) -> Mapping[str, str]:
        """Return, once per reader, the tokens whose decimals are not the configured ones, and what was found."""
        if self._wrong is None:
            tokens = [a for a in self._assets if a.kind != "native"]
            (answers,) = await self._run(block, [[(a.id.rpartition(":")[2][2:], DECIMALS) for a in tokens]])
            found = {a.id: (a.decimals, decode_uint(answer)) for a, answer in zip(tokens, answers, strict=True)}
            self._wrong = {
                asset: f"decimals() is {'unreadable' if there is None else there}, configured are {here}"
                for asset, (here, there) in found.items()
                if here != there
            }
        return self._wrong

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        """Read every venue of this chain for ``subjects`` at ``block``; tokens that lie about themselves count 0."""
        wrong = await self._misdescribed(block)
        flows = [
            adapter.flow([s for s in subjects if (s.address is None) == (adapter.keyed_by == "account")])
            for adapter in self._adapters
        ]
        results: list[Result] = await self._drive(block, flows)
        findings: list[Finding] = [f for _, found in results for f in found]
        positions: list[Position] = []
        for position in (p for found, _ in results for p in found):
            lie = wrong.get(position.asset) or wrong.get(position.unit)
            if lie is None:
                positions.append(position)
                continue
            code = DEBT_UNREADABLE if position.side == "debt" else "unreadable"
            findings.append(Finding(code, position.account, f"{position.asset}: {lie}"))
        return Reading(block, tuple(positions), tuple(findings))

    async def read_quotes(self, block: Block) -> tuple[Quote, ...]:
        """Read this chain's price feeds at ``block``."""
        if not self._feeds:
            return ()
        (quotes,) = await self._drive(block, [quotes_flow(self._feeds)])
        return quotes

    async def check(self) -> tuple[Finding, ...]:
        """Probe identity, finality and a pinned read of every venue and feed, each reported on its own."""
        row, findings = self._row, []
        try:
            await self.verify_identity()
            head = await self._block("latest")
            block = await self._block(max(0, head.height - row.finality_depth))
            findings.append(Finding("ok", row.name, f"chain {row.id}, head {head.height}, final {block.height}"))
        except SourceError as error:
            return (Finding("failed", row.name, str(error)),)
        try:
            for asset, lie in (await self._misdescribed(block)).items():
                findings.append(Finding("failed", asset, lie))
        except SourceError as error:
            findings.append(Finding("failed", f"{row.name} decimals", str(error)))
        nobody = (Subject("0x" + "00" * 32, None), Subject("0x" + "00" * 32, "0x" + "00" * 20))
        for adapter in self._adapters:
            asked = [s for s in nobody if (s.address is None) == (adapter.keyed_by == "account")]
            try:
                ((_, found),) = await self._drive(block, [adapter.flow(asked)])
                bad = [f for f in found if f.code not in INFORMATIONAL]
                findings.append(
                    Finding(
                        "failed" if bad else "ok", f"{row.name} {adapter.name}", bad[0].detail if bad else "readable"
                    )
                )
            except SourceError as error:
                findings.append(Finding("failed", f"{row.name} {adapter.name}", str(error)))
        try:
            answered = {q.source + q.feed for q in await self.read_quotes(block)}
            for feed in self._feeds:
                good = feed.name + feed.feed in answered
                findings.append(
                    Finding(
                        "ok" if good else "failed", f"{row.name} {feed.feed}", "answers" if good else "does not answer"
                    )
                )
        except SourceError as error:
            findings.append(Finding("failed", f"{row.name} feeds", str(error)))
        return tuple(findings)

    async def close(self) -> None:
        """Close the endpoint."""
        await self._endpoint.close()


def _chunks(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """Cut calls into batches that keep below the count and size limits."""
    start = size = 0
    for i, (_, data) in enumerate(calls):
        size += len(data) + 5 * 64
        if i > start and (i - start >= CALLS_PER_BATCH or size > HEX_PER_BATCH):
            yield calls[start:i]
            start, size = i, len(data) + 5 * 64
    if start < len(calls):
        yield calls[start:]
