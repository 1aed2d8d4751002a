"""Simulated chains: deterministic, in memory, and able to do everything that real ones do wrong.

A :class:`SimulatedChain` is the truth that several :class:`SimulatedReader` look at, each an attestor's own pair of
eyes that can fail, lag or lie by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aggregator.domain.errors import Unavailable, Unreachable, WrongChain
from aggregator.domain.price import Quote
from aggregator.domain.rows import ChainRow, FinalityRow
from aggregator.domain.snapshot import Block, Finding, Position, Reading, Subject
from aggregator.ports import HEADERS_LIMIT
from proofs.hashing import keccak256

Change = Callable[[Reading], Reading]
SOLANA_DEPTH = 2


@dataclass
class SimulatedChain:
    """Blocks by the clock, positions that change from a block on, and price feeds of its own.

    Args:
        row: its configuration; its finality must be a depth.
        start: time of block 0, Unix seconds.
    """

    row: ChainRow
    start: int
    halted: bool = False
    blocks: list[Block] = field(default_factory=list)
    states: list[tuple[Position, ...]] = field(default_factory=list)
    quotes: list[tuple[Quote, ...]] = field(default_factory=list)
    _positions: tuple[Position, ...] = ()
    _prices: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # feed -> (source, 1e-8 USD)
    _fork: int = 0

    def __post_init__(self) -> None:
        self._append(self.start)

    @property
    def head(self) -> Block:
        return self.blocks[-1]

    def put(self, *positions: Position) -> None:
        """Replace all positions, from the next block on."""
        self._positions = positions

    def put_prices(self, source: str, prices: Mapping[str, int]) -> None:
        """Set the answers of the chain's feeds (1e-8 USD), from the next block on."""
        self._prices = {feed: (source, price) for feed, price in prices.items()}

    def mine(self, until: int) -> None:
        """Add blocks until the time ``until``; a halted chain adds none."""
        step = max(1, int(self.row.block_seconds))
        while not self.halted and self.head.time + step <= until:
            self._append(self.head.time + step)

    def reorg(self, depth: int) -> None:
        """Replace the newest ``depth`` blocks by others of the same heights and times."""
        self._fork += 1
        times = [block.time for block in self.blocks[-depth:]]
        del self.blocks[-depth:], self.states[-depth:], self.quotes[-depth:]
        for time in times:
            self._append(time)

    def final(self, cut_time: int) -> Block | None:
        """Return the last final block at or before ``cut_time``."""
        known = self.blocks[: len(self.blocks) - self.depth_of(self.row.finality)]
        return next((b for b in reversed(known) if b.time <= cut_time), None)

    def depth_of(self, rule: FinalityRow) -> int:
        """Return how many of the newest blocks do not count by ``rule``."""
        if self.row.family == "solana":
            return SOLANA_DEPTH
        assert rule.depth is not None, "simulated chains know depths only"
        return rule.depth

    def touched(self, first: int, last: int) -> frozenset[str]:
        """Return accounts and addresses whose positions differ between the blocks before ``first`` and ``last``."""
        words: set[str] = set()
        for height in range(max(first, 1), last + 1):
            for position in set(self.states[height]) ^ set(self.states[height - 1]):
                words |= {position.account, "0x" + position.address.removeprefix("0x").rjust(64, "0")}
        return frozenset(words)

    def _append(self, time: int) -> None:
        height = len(self.blocks)
        parent = self.blocks[-1].hash if self.blocks else "0x" + "00" * 32
        text = f"{self.row.id} {height} {time} {self._fork} {parent}"
        self.blocks.append(Block(self.row.id, height, "0x" + keccak256(text.encode()).hex(), parent, time))
        self.states.append(self._positions)
        self.quotes.append(
            tuple(
                Quote(feed, source, "chainlink", price, 0, -8, time)
                for feed, (source, price) in sorted(self._prices.items())
            )
        )


class SimulatedReader:
    """Implements ``aggregator.ports.ChainReader`` over a :class:`SimulatedChain`.

    ``dark`` is an RPC that is down, ``hangs`` one that never answers, ``wrong_chain`` one of another network;
    ``behind`` lets it see that many blocks less than there are, ``lie`` changes what it reports, ``deaf`` lets it miss
    every log but those that hold the words ``told``, ``untold`` makes it unable to tell what changed, ``pruned_before``
    has it keep no older state, and ``frozen`` is its sequencer's trouble.
    """

    def __init__(self, chain: SimulatedChain) -> None:
        self.chain = chain
        self.dark = self.hangs = self.wrong_chain = False
        self.behind = 0
        self.deaf = self.untold = False
        self.told: frozenset[str] = frozenset()
        self.pruned_before = 0
        self.frozen = ""
        self.lie: Change | None = None
        self.reads: list[Block] = []
        self.asked: list[tuple[Subject, ...]] = []
        self._lag: float | None = None
        self.closed = False

    @property
    def row(self) -> ChainRow:
        return self.chain.row

    async def verify_identity(self) -> None:
        await self._answer()

    async def pin(self, cut_time: int) -> Block:
        await self._answer()
        block = self.chain.final(cut_time)
        if block is None or block.height < self.behind:
            raise Unavailable(self.row.name, f"no final block at or before {cut_time}")
        self._lag = float(self._seen[-1].time - self._newest(self.row.finality).time)
        return self.chain.blocks[block.height - self.behind]

    async def block_at(self, height: int) -> Block:
        await self._answer()
        if height >= len(self._seen):
            raise Unavailable(self.row.name, f"does not have block {height}")
        return self.chain.blocks[height]

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        await self._answer()
        if last >= len(self._seen):
            raise Unavailable(self.row.name, f"does not have block {last}")
        found = tuple(self.chain.blocks[first : last + 1])
        ends_only = self.row.family == "solana" or len(found) > HEADERS_LIMIT
        return (found[0], found[-1]) if ends_only and len(found) > 1 else found

    async def irreversible(self) -> Block:
        await self._answer()
        return self._newest(self.row.irreversible)

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        await self._answer()
        if self.untold or self.row.family == "solana":
            return None
        if last >= len(self._seen):
            raise Unavailable(self.row.name, f"does not have block {last}")
        return self.told | (frozenset() if self.deaf else self.chain.touched(first, last))

    @property
    def finality_lag(self) -> float | None:
        return self._lag

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        await self._answer()
        height = self._height(block)
        self.reads.append(block)
        self.asked.append(tuple(subjects))
        wanted = set(subjects)
        held = tuple(p for p in self.chain.states[height] if Subject(p.account, p.address or None) in wanted)
        reading = Reading(block, held, frozen=self.frozen)
        return self.lie(reading) if self.lie else reading

    async def read_quotes(self, block: Block) -> tuple[Quote, ...]:
        await self._answer()
        quotes = self.chain.quotes[self._height(block)]
        return () if self.frozen else quotes

    async def check(self) -> tuple[Finding, ...]:
        await self._answer()
        return (Finding("ok", self.row.name, "simulated"),)

    async def close(self) -> None:
        self.closed = True

    def _height(self, block: Block) -> int:
        seen = self._seen
        # As a node does, by hash and height alone: that the rest is true is for the observer to check.
        if block.height >= len(seen) or seen[block.height].hash != block.hash:
            raise Unavailable(self.row.name, f"does not know block {block.height} ({block.hash[:10]}…)")
        if block.height < self.pruned_before:
            raise Unavailable(self.row.name, f"missing trie node of block {block.height}")
        return block.height

    @property
    def _seen(self) -> list[Block]:
        return self.chain.blocks[: len(self.chain.blocks) - self.behind]

    def _newest(self, rule: FinalityRow) -> Block:
        return self._seen[max(0, len(self._seen) - 1 - self.chain.depth_of(rule))]

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.dark:
            raise Unreachable(self.row.name, "cannot be reached")
        if self.wrong_chain:
            raise WrongChain(self.row.name, f"answers for chain 666, {self.row.id} is configured")


def inflated(factor: int) -> Change:
    """Return a lie: every asset is ``factor`` times as large."""

    def change(reading: Reading) -> Reading:
        grown = tuple(
            p._replace(quantity=p.quantity * factor, amount=p.amount * factor) if p.side == "asset" else p
            for p in reading.positions
        )
        return replace(reading, positions=grown)

    return change


def unreadable(account: str, asset: str) -> Change:
    """Return a fault: one account's position in one asset cannot be read, and the reading says so."""

    def change(reading: Reading) -> Reading:
        rest = tuple(p for p in reading.positions if (p.account, p.asset) != (account, asset))
        finding = Finding("unreadable", f"{account} {asset}", "the venue reverted for this account")
        return replace(reading, positions=rest, findings=(*reading.findings, finding))

    return change
