"""One node of one EVM chain, read at pinned blocks.

The reader drives the flows of all adapters in lockstep and packs their calls into Multicall3 batches, every one
pinned by block hash (EIP-1898) and anchored by a block-number call, so that mixed heights cannot pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, islice, pairwise
from typing import Any, Protocol, TypeVar

from adapters.evm import margin_venue, registry
from adapters.evm.abi import WORD, Answer, Call, Flow, Result, decode_uint, pack_multicall, selector, unpack_multicall
from adapters.evm.chainlink import quotes_flow, sequencer_flow
from adapters.evm.members import MAGIC, members_flow
from adapters.evm.proof import Unprovable, choose_address, read_balance, verify_balance
from adapters.evm.wallet import Wallet
from adapters.members import withhold
from aggregator.domain.errors import (
    Contradicted,
    Garbage,
    NodeRefused,
    SourceError,
    Unavailable,
    Unreachable,
    WrongChain,
)
from aggregator.domain.price import Quote
from aggregator.domain.rows import AssetRow, ChainRow, FinalityRow, SourceRow
from aggregator.domain.snapshot import DEBT_UNREADABLE, INFORMATIONAL, Block, Finding, Position, Reading, Subject
from aggregator.ports import HEADERS_LIMIT, ChainReader

CALLS_PER_BATCH = 2_500
HEX_PER_BATCH = 1_400_000  # request bodies are capped at about 2 MB by common nodes
MEMBERS_PER_BATCH = 100
MEMBERS_GAS = 10_000_000  # less than any node grants, so that no answer depends on which node was asked, nor takes long
_CALL_OVERHEAD = 5 * 64  # hex digits of a call's own words in a batch
DECIMALS = selector("decimals()")
GET_BLOCK_NUMBER = selector("getBlockNumber()")  # Multicall3's own view
ORIGIN_NUMBER, ORIGIN_HASH = selector("number()"), selector("hash()")  # of the L1Block contract of OP-stack chains
FOREVER = 2**62
HEAD_AHEAD = 15
"""Seconds that a head may be ahead of the local clock: more, and nothing is learnt of how far finality is behind."""
DESCRIBED_FOR = 600
"""Seconds of a chain's own time after which its tokens are asked for their decimals again."""

LOG_BLOCKS, LOG_QUERIES = 10_000, 64  # what is asked at most about changes: beyond it, reading everybody is cheaper
LOG_LIMIT, WORD_LIMIT = 20_000, 100_000  # and what is taken as an answer
CONCERNS_ALL = margin_venue.CONCERNS_ALL | registry.CONCERNS_ALL
LOG_REFUSALS = ("range", "limit", "results", "too many", "exceed", "more than", "large", "timed out", "timeout")

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

    @property
    def watched(self) -> frozenset[str]:
        """Contracts (0x, lower case) whose logs name whose positions changed."""
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


def decode_log_words(name: str, logs: Any, watched: frozenset[str], first: int, last: int) -> set[str]:
    """Decode an ``eth_getLogs`` result strictly; return every 32-byte word (0x, lower case) of topics and data.

    A log that concerns whoever has anything at its contract, and names nobody, adds that contract's address (20 bytes).

    Args:
        name: what errors call the chain. watched: the contracts asked about. first, last: the heights asked about.

    Raises:
        Garbage: a log is malformed, was removed by a reorganisation, or is none that was asked for.
    """
    if not isinstance(logs, list):
        raise Garbage(name, "eth_getLogs is not a list")
    words: set[str] = set()
    for log in logs:
        try:
            address, topics, data, height = log["address"].lower(), log["topics"], log["data"], log["blockNumber"]
            if log.get("removed") not in (False, None):
                raise ValueError("removed")
            if address not in watched:
                raise ValueError("not of a contract that was asked for")
            if not first <= _decode_quantity(height) <= last:
                raise ValueError("not of a block that was asked for")
            if not (isinstance(topics, list) and len(topics) <= 4 and all(_HASH.fullmatch(t) for t in topics)):
                raise ValueError("without well-formed topics")
            if not data.startswith("0x"):
                raise ValueError("without well-formed data")
            body = bytes.fromhex(data[2:])
        except ValueError as error:
            raise Garbage(name, f"eth_getLogs has a log that is malformed or unasked for: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise Garbage(name, "eth_getLogs has a log without its fields") from None
        words.update(t.lower() for t in topics)
        if topics and topics[0].lower() in CONCERNS_ALL:
            words.add(address)
        words.update("0x" + body[i : i + WORD].hex() for i in range(0, len(body) - WORD + 1, WORD))
    return words


class _Halted:
    """Stands in for a node that was caught lying: every call says what about."""

    def __init__(self, endpoint: Endpoint, error: Contradicted) -> None:
        self._endpoint, self._error = endpoint, error

    async def call(self, method: str, params: Sequence[object]) -> Any:
        raise self._error

    async def close(self) -> None:
        await self._endpoint.close()


class EvmReader:
    """Implements :class:`aggregator.ports.ChainReader` over one endpoint.

    Args:
        row: the chain.
        endpoint: one node of it.
        adapters: what is read.
        feeds: the chain's own price feeds.
        assets: what is configured on the chain.
        parent: a reader of the chain that ``row.finality`` or ``row.irreversible`` names as L1; may be shared.
        secret: chooses whose balance is proven at a block, so that the node cannot know (``row.prove``).
        clock: Unix seconds, to tell by how much a head can be believed.
    """

    def __init__(
        self,
        row: ChainRow,
        endpoint: Endpoint,
        adapters: Sequence[EvmAdapter],
        feeds: Sequence[SourceRow],
        assets: Sequence[AssetRow] = (),
        *,
        parent: ChainReader | None = None,
        secret: bytes = b"",
        clock: Callable[[], float] = time.time,
    ) -> None:
        for rule in (row.finality, row.irreversible):
            if rule.l1 is not None and (parent is None or parent.row.id != rule.l1):
                raise ValueError(f"parent: a reader of {rule.l1} is needed for {row.name}")
        self._row, self._endpoint, self._parent = row, endpoint, parent
        self._watched = frozenset[str]().union(*(adapter.watched for adapter in adapters))
        self._lag: float | None = None
        self._frozen_at: tuple[Block, str] | None = None
        self._adapters, self._feeds, self._assets = tuple(adapters), tuple(feeds), tuple(assets)
        self._identified = self._proven = False
        self._secret, self._clock = secret, clock
        wallets = [adapter for adapter in adapters if isinstance(adapter, Wallet)]
        self._native = next((row.id for wallet in wallets for row in wallet.rows if row.kind == "native"), None)
        self._described = -1  # the period of the chain's time in which all tokens were as configured

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
            Unavailable: the chain's first block is already later, or nothing is final yet.
        """
        if not self._identified:
            await self.verify_identity()
        head = await self._block("latest")
        block = await self._newest(self._row.finality, head)
        # A head's time is the node's word alone, so it counts as far as one's own clock can vouch for it.
        believed = head.time <= self._clock() + HEAD_AHEAD
        self._lag = float(max(0, head.time - block.time)) if believed else None
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

    async def _newest(self, rule: FinalityRow, head: Block | None = None, *, for_good: bool = False) -> Block:
        """Return the newest block that counts by ``rule``; ``for_good``: what it rests on must be irreversible.

        Raises:
            Unavailable: there is none.
        """
        if rule.depth is not None:
            head = head or await self._block("latest")
            return await self._block(max(0, head.height - rule.depth))
        # What the node calls finalized of a rollup is where the search begins; what the L1 says is where it ends.
        block = await self._block(rule.tag or "finalized")
        if rule.origin is None:
            return block
        assert self._parent is not None
        final = await (self._parent.irreversible() if for_good else self._parent.pin(FOREVER))
        return await self._settled(block, rule.origin, final)

    async def _settled(self, block: Block, origin: str, final: Block) -> Block:
        """Return the newest block, ``block`` or older, derived from an ancestor of the parent's block ``final``.

        Origins never decrease along a chain, so that the search may halve what is left.
        """
        good, bad = block, block.height + 1
        step = 1
        while not await self._is_settled(good, origin, final):
            if good.height == 0:
                problem = f"no block up to {block.height} comes from an L1 block that is final"
                raise Unavailable(self._row.name, problem)
            bad = good.height
            good = await self._block(max(0, bad - step))
            step *= 2
        while bad - good.height > 1:
            middle = await self._block((good.height + bad) // 2)
            if await self._is_settled(middle, origin, final):
                good = middle
            else:
                bad = middle.height
        return good

    async def _is_settled(self, block: Block, origin: str, final: Block) -> bool:
        assert self._parent is not None
        # Not by Multicall3: the search may go back to before it was deployed.
        pinned = {"blockHash": block.hash, "requireCanonical": True}
        number, digest = await asyncio.gather(
            *(
                self._endpoint.call("eth_call", [{"to": origin, "data": f"0x{data}"}, pinned])
                for data in (ORIGIN_NUMBER, ORIGIN_HASH)
            )
        )
        if not all(isinstance(word, str) and _HASH.fullmatch(word) for word in (number, digest)):
            problem = f"{origin} does not tell number() and hash() of an L1 block at block {block.height}"
            raise Garbage(self._row.name, problem)
        height = int(number, 16)
        if height > final.height:
            return False
        canonical = final if height == final.height else await self._parent.block_at(height)
        return canonical.hash == str(digest).lower()

    async def irreversible(self) -> Block:
        """Return the newest block by ``row.irreversible``.

        Raises:
            Unavailable: there is none yet.
        """
        return await self._newest(self._row.irreversible, for_good=True)

    @property
    def finality_lag(self) -> float | None:
        """Seconds between head and newest final block at the last pin.

        None before the first, and for a head that is ahead of the clock: so no more than the block's age is claimed.
        """
        return self._lag

    async def block_at(self, height: int) -> Block:
        """Return the node's canonical block at ``height``.

        Raises:
            Unavailable: it has none.
        """
        return await self._block(height)

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        """Return canonical blocks from ``first`` to ``last``; above ``HEADERS_LIMIT`` only both ends.

        Raises:
            Garbage: one is not its successor's parent. ValueError: ``first`` is above ``last``.
            Unavailable: an end is missing.
        """
        if not 0 <= first <= last:
            raise ValueError(f"first: {first} to {last} is no range of heights")
        span = range(first, last + 1)
        heights = span if len(span) <= HEADERS_LIMIT else (first, last)
        blocks = await asyncio.gather(*(self._block(height) for height in heights))
        for block, after in pairwise(blocks):
            if after.height == block.height + 1 and after.parent != block.hash:
                raise Garbage(self._row.name, f"block {after.height} does not link to block {block.height}")
            if after.time < block.time:
                raise Garbage(self._row.name, f"block {after.height} is {block.time - after.time} s before its parent")
        return tuple(blocks)

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        """Return every word in logs of watched contracts from ``first`` to ``last``, None where there are too many.

        The address of a contract (20 bytes) stands for everybody with anything there.

        Native coins move without logs: that they did shows when their holder is read anew for another reason.

        Raises:
            Garbage: a log is malformed, or none that was asked for.
        """
        if not self._watched or last - first >= LOG_BLOCKS:
            return None
        words: set[str] = set()
        waiting, asked, logs = [(first, last)], 0, 0
        while waiting:
            low, high = waiting.pop()
            if (asked := asked + 1) > LOG_QUERIES:
                return None
            question = {"fromBlock": hex(low), "toBlock": hex(high), "address": sorted(self._watched)}
            try:
                found = await self._endpoint.call("eth_getLogs", [question])
            except NodeRefused as error:
                if not any(word in error.problem.lower() for word in LOG_REFUSALS):
                    raise
                if low == high:
                    return None
                middle = (low + high) // 2
                waiting += [(middle + 1, high), (low, middle)]
                continue
            words |= decode_log_words(self._row.name, found, self._watched, low, high)
            logs += len(found)
            if logs > LOG_LIMIT or len(words) > WORD_LIMIT:
                return None
        return frozenset(words)

    async def _frozen(self, block: Block) -> str:
        """Return why nothing may be relied on at ``block``, "" where it may; remembers the last answer."""
        if self._row.sequencer is None:
            return ""
        if self._frozen_at is None or self._frozen_at[0] != block:
            (cause,) = await self._drive(block, [sequencer_flow(self._row.sequencer, block)])
            self._frozen_at = block, cause
        return self._frozen_at[1]

    async def _aggregate(self, block: Block, calls: Sequence[Call], gas: int | None = None) -> list[Answer]:
        """Run one multicall; without ``gas`` it gets what the node grants, and is halved if that is too little."""
        anchored = [(self._row.multicall.removeprefix("0x").lower(), GET_BLOCK_NUMBER), *calls]
        request = {"to": self._row.multicall, "data": pack_multicall(anchored)}
        if gas is not None:
            request["gas"] = hex(gas)
        pinned = {"blockHash": block.hash, "requireCanonical": True}
        try:
            returned = await self._endpoint.call("eth_call", [request, pinned])
        except NodeRefused as error:
            if gas is not None or len(calls) <= 1 or "gas" not in error.problem.lower():
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
        """Return the tokens whose decimals are not the configured ones, and what was found.

        That all are as configured is believed for a while, until the same time of the chain at every provider. What is
        amiss may be the answer, or be put right: it is looked at again by the next reading.
        """
        if self._described == (period := block.time // DESCRIBED_FOR):
            return {}
        tokens = [a for a in self._assets if a.kind != "native"]
        (answers,) = await self._run(block, [[(a.id.rpartition(":")[2][2:], DECIMALS) for a in tokens]])
        found = {a.id: (a.decimals, decode_uint(answer)) for a, answer in zip(tokens, answers, strict=True)}
        wrong = {
            asset: f"decimals() is {'unreadable' if there is None else there}, configured are {here}"
            for asset, (here, there) in found.items()
            if here != there
        }
        if not wrong:
            self._described = period
        return wrong

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        """Read every venue of this chain for ``subjects`` at ``block``; tokens that lie about themselves count 0."""
        wrong = await self._misdescribed(block)
        keyed = {
            "account": [s for s in subjects if s.address is None],
            "address": [s for s in subjects if s.address is not None],
        }
        flows = [adapter.flow(keyed[adapter.keyed_by]) for adapter in self._adapters]
        reading: Awaitable[list[Result]] = self._drive(block, flows)
        frozen, results = await asyncio.gather(self._frozen(block), reading)
        findings: list[Finding] = [f for _, found in results for f in found]
        positions: list[Position] = []
        if not wrong:
            positions.extend(chain.from_iterable(found for found, _ in results))
        for position in (p for found, _ in results for p in found if wrong):
            lie = wrong.get(position.asset) or wrong.get(position.unit)
            if lie is None:
                positions.append(position)
                continue
            owes = position.side == "debt" or position.contract.kind
            findings.append(
                Finding(DEBT_UNREADABLE if owes else "unreadable", position.account, f"{position.asset}: {lie}")
            )
        await self._prove(block, subjects, positions, findings)
        kept, withheld = withhold(positions, await self._unverified(block, subjects))
        return Reading(block, kept, (*findings, *withheld), frozen=frozen)

    async def _prove(
        self, block: Block, subjects: Sequence[Subject], positions: Iterable[Position], findings: Iterable[Finding]
    ) -> None:
        """Check one native balance of a reading against a state proof, where the chain is configured for it.

        What is proven is what was read as a balance: nothing where no wallet reads the native coin.

        A node that has given a proof before must give one every time: else a lie would only have to withhold it.

        Raises:
            Contradicted: the node says something else than it proves; it is not asked again by this reader.
            Garbage, Unprovable: the proof is none.
        """
        native = self._native
        address = choose_address(block, subjects, self._secret) if self._row.prove else None
        if native is None or address is None:
            return
        if any(f.detail.startswith(f"{native}:") and f.detail.lower().endswith(address) for f in findings):
            return  # the node did not say what it holds
        held = (p for p in positions if (p.venue, p.asset) == (Wallet.name, native) and p.address.lower() == address)
        try:
            await verify_balance(self._endpoint, self._row.name, block, address, sum(p.quantity for p in held))
        except Unprovable:
            if self._proven:
                raise
        except Contradicted as error:
            self._endpoint = _Halted(self._endpoint, error)
            raise
        else:
            self._proven = True

    async def _unverified(self, block: Block, subjects: Sequence[Subject]) -> Mapping[Subject, str]:
        """Ask the members that are contracts; return those that do not agree at ``block``, and what they say.

        Who has not answered when the time is up does not agree: strangers' contracts must not stop the chain's reading.
        """
        flow = members_flow(subjects)
        calls = list(next(flow))
        answers: list[Answer] = [None] * len(calls)

        async def ask(first: int) -> None:
            batch = calls[first : first + MEMBERS_PER_BATCH]
            answers[first : first + len(batch)] = await self._ask_members(block, batch)

        async def ask_alone(i: int) -> None:
            (answers[i],) = await self._ask_members(block, [calls[i]])

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._row.timeout / 2):
                await asyncio.gather(*map(ask, range(0, len(calls), MEMBERS_PER_BATCH)))
                # Of those asked together, one may have burnt what another needed, or told it by what is left.
                doubtful = [i for i, answer in enumerate(answers) if answer != MAGIC]
                await asyncio.gather(*map(ask_alone, doubtful))
        try:
            flow.send(answers)
        except StopIteration as stop:
            failed: Mapping[Subject, str] = stop.value
            return failed
        raise AssertionError("members_flow asks once")

    async def _ask_members(self, block: Block, calls: Sequence[Call]) -> list[Answer]:
        """Ask strangers' contracts, apart from everything else; None for all where the node does not answer well.

        Raises:
            Contradicted: the node was caught lying, by something else.
        """
        try:
            return await self._aggregate(block, calls, MEMBERS_GAS)
        except Contradicted:
            raise
        except SourceError:
            return [None] * len(calls)

    async def read_quotes(self, block: Block) -> tuple[Quote, ...]:
        """Read this chain's price feeds at ``block``; none answers for a sequencer that is down or just back."""
        if not self._feeds or await self._frozen(block):
            return ()
        (quotes,) = await self._drive(block, [quotes_flow(self._feeds)])
        return quotes

    async def check(self) -> tuple[Finding, ...]:
        """Probe identity, finality, headers, logs and a pinned read of every venue and feed, each on its own.

        Each probe has the time of one call; a node that does not answer in it is not asked anything else.
        """
        row, findings = self._row, list[Finding]()
        head = block = Block(row.id, 0, "", "", 0)

        async def probe(what: str, ask: Callable[[], Awaitable[Sequence[Finding]]]) -> bool:
            """Add what is found; return whether the node answers."""
            try:
                try:
                    async with asyncio.timeout(row.timeout):
                        findings.extend(await ask())
                except TimeoutError:
                    raise Unreachable(row.name, f"no answer within {row.timeout:g} s") from None
            except SourceError as error:
                silent = isinstance(error, Unreachable) and error.source == row.name
                findings.append(Finding("failed", what, f"{error}; nothing more was asked" if silent else str(error)))
                return not silent
            return True

        async def begin() -> list[Finding]:
            nonlocal head, block
            await self.verify_identity()
            head = await self._block("latest")
            block = await self._newest(row.finality, head)
            return [Finding("ok", row.name, f"chain {row.id}, head {head.height}, final {block.height}")]

        await probe(row.name, begin)
        for what, ask in self._probes(head, block) if block.hash else ():
            if not await probe(what, ask):
                break
        return tuple(findings)

    def _probes(self, head: Block, block: Block) -> Iterator[tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]]:
        """Yield what is to be probed at the final ``block``, by the scope of the finding where that fails."""
        row = self._row

        def named(
            what: str, ask: Callable[[], Awaitable[str]]
        ) -> tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]:
            async def found() -> Sequence[Finding]:
                return (Finding("ok", f"{row.name} {what}", await ask()),)

            return f"{row.name} {what}", found

        async def finality() -> str:
            held = await self.irreversible()
            behind = f"{row.finality_text}, {max(0, head.time - block.time)} s behind the head"
            return f"{behind}; irreversible ({row.irreversible.text}) is block {held.height}"

        async def headers() -> str:
            return f"{len(await self.headers(max(0, block.height - 1), block.height))} blocks link"

        async def logs() -> str:
            words = await self.changes(max(0, block.height - 1), block.height)
            return "too many to take: everybody is read anew" if words is None else "answered"

        async def sequencer() -> str:
            cause = await self._frozen(block)
            if "cannot be read" in cause:
                raise Unavailable(row.name, cause)
            return cause or "up"

        async def proofs() -> str:
            address = "0x" + "00" * 20
            claimed = await read_balance(self._endpoint, row.name, block, address)
            await verify_balance(self._endpoint, row.name, block, address, claimed)
            return "balances can be proven"

        async def decimals() -> Sequence[Finding]:
            return [Finding("failed", asset, lie) for asset, lie in (await self._misdescribed(block)).items()]

        async def venue(adapter: EvmAdapter) -> Sequence[Finding]:
            nobody = (Subject("0x" + "00" * 32, None), Subject("0x" + "00" * 32, "0x" + "00" * 20))
            asked = [s for s in nobody if (s.address is None) == (adapter.keyed_by == "account")]
            ((_, found),) = await self._drive(block, [adapter.flow(asked)])
            bad = [f for f in found if f.code not in INFORMATIONAL]
            scope = f"{row.name} {adapter.name}"
            return (Finding("failed", scope, bad[0].detail) if bad else Finding("ok", scope, "readable"),)

        async def feeds() -> Sequence[Finding]:
            answered = {q.source + q.feed for q in await self.read_quotes(block)}
            return [
                Finding("ok", f"{row.name} {feed.feed}", "answers")
                if feed.name + feed.feed in answered
                else Finding("failed", f"{row.name} {feed.feed}", "does not answer")
                for feed in self._feeds
            ]

        yield named("finality", finality)
        yield named("headers", headers)
        if self._watched:
            yield named("logs", logs)
        if row.sequencer is not None:
            yield named("sequencer", sequencer)
        if row.prove:
            yield named("proofs", proofs)
        yield f"{row.name} decimals", decimals
        for adapter in self._adapters:
            yield f"{row.name} {adapter.name}", partial(venue, adapter)
        yield f"{row.name} feeds", feeds

    async def close(self) -> None:
        """Close the endpoint, and the parent's reader."""
        await self._endpoint.close()
        if self._parent is not None:
            await self._parent.close()


def _chunks(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """Cut calls into batches that keep below the count and size limits."""
    datas = [data for _, data in calls]
    ends = [size + _CALL_OVERHEAD * count for count, size in enumerate(accumulate(map(len, datas)), 1)]
    start = size = 0
    while start < len(calls):
        fits = bisect_right(ends, size + HEX_PER_BATCH, start, min(len(calls), start + CALLS_PER_BATCH))
        end = max(fits, start + 1)
        yield calls[start:end]
        start, size = end, ends[end - 1]
