"""One observer's eyes: pin a Cut, read every chain at it, and survive the chains that do not answer.

The coordinator and every attestor have an observer of their own, with their own readers and their own memory of the
last good reading per chain. A chain that cannot be read keeps its last reading and ages; it never becomes empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from aggregator.domain.errors import RefusedError, SourceError
from aggregator.domain.price import Quote
from aggregator.domain.snapshot import Account, Block, Cut, Reading, Subject
from aggregator.ports import ChainReader

HALTED_AFTER_BLOCKS = 8
"""A head this many block times behind is reported as a halted chain, not as a slow one."""

REMEMBERED = 3
"""How many readings per chain an observer can go back to while the chain does not answer."""
_Seen = tuple[Reading, tuple[Quote, ...]]


@dataclass(frozen=True, slots=True)
class Collected:
    """What one observer saw at one Cut. ``causes`` says why a chain is not fresh."""

    cut: Cut
    readings: Mapping[str, Reading | None]  # by chain; None = never read
    quotes: tuple[Quote, ...]
    causes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def subjects_on(chain: str, accounts: Sequence[Account]) -> tuple[Subject, ...]:
    """Return whom to read on ``chain``: every account itself, and every linked address of that chain."""
    keyed = [Subject(a.id, None) for a in accounts]
    linked = [
        Subject(a.id, link.removeprefix(f"{chain}:"))
        for a in accounts
        for link in a.links
        if link.startswith(f"{chain}:")
    ]
    return (*keyed, *linked)


class Observer:
    """Reads the chains for one party (the coordinator or one attestor)."""

    def __init__(self, name: str, readers: Mapping[str, ChainReader], remembered: Mapping[str, Reading] | None = None):
        self.name = name
        self._readers = dict(sorted(readers.items()))
        self._last: dict[str, Reading] = dict(remembered or {})
        self._quotes: dict[str, tuple[Quote, ...]] = {}
        self._known: dict[str, dict[str, _Seen]] = {}  # by chain and block hash, oldest first
        self._agreed: dict[str, _Seen] = {}

    @property
    def last(self) -> Mapping[str, Reading]:
        """The last good reading of each chain."""
        return MappingProxyType(self._last)

    async def collect(self, epoch: int, cut_time: int, accounts: Sequence[Account]) -> Collected:
        """Pin the Cut of ``epoch`` and read it; no chain's failure stops another."""
        chains = list(self._readers)
        seen = await asyncio.gather(*(self._observe(chain, cut_time, accounts) for chain in chains))
        blocks: list[Block] = []
        gaps: list[tuple[str, str]] = []
        readings: dict[str, Reading | None] = {}
        causes: dict[str, str] = {}
        quotes: list[Quote] = []
        for chain, (reading, cause) in zip(chains, seen, strict=True):
            readings[chain] = reading
            if reading is not None:
                blocks.append(reading.block)
                quotes += self._quotes.get(chain, ())
            if cause:
                causes[chain] = cause
                gaps.append((chain, cause))
        return Collected(Cut(epoch, cut_time, tuple(blocks), tuple(gaps)), readings, tuple(quotes), causes)

    async def _observe(self, chain: str, cut_time: int, accounts: Sequence[Account]) -> tuple[Reading | None, str]:
        reader = self._readers[chain]
        try:
            async with asyncio.timeout(reader.row.timeout * 2):
                block = await reader.pin(cut_time)
                await self._read(chain, block, accounts)
        except (SourceError, TimeoutError) as error:
            cause = str(error) or f"{reader.row.name}: not read within {reader.row.timeout * 2:g} s"
            # A block that nobody else saw before the chain went dark would never find a quorum.
            if (agreed := self._agreed.get(chain)) is not None:
                self._last[chain], self._quotes[chain] = agreed
            return self._last.get(chain), cause
        row = reader.row
        allowance = row.block_seconds * (row.finality_depth + HALTED_AFTER_BLOCKS)
        behind = cut_time - block.time
        halted = f"halted: no final block of {row.name} for {behind} s" if behind > allowance else ""
        return self._last[chain], halted

    async def _read(self, chain: str, block: Block, accounts: Sequence[Account]) -> None:
        reader = self._readers[chain]
        reading, quotes = await asyncio.gather(
            reader.read(block, subjects_on(chain, accounts)), reader.read_quotes(block)
        )
        self._last[chain], self._quotes[chain] = reading, quotes
        known = self._known.setdefault(chain, {})
        known.pop(block.hash, None)
        known[block.hash] = reading, quotes
        while len(known) > REMEMBERED:
            del known[next(iter(known))]

    def agree(self, seen: Collected) -> None:
        """Keep what was just collected as what a quorum saw too: what a chain that goes dark falls back to."""
        for chain, reading in seen.readings.items():
            if reading is not None:
                self._agreed[chain] = reading, self._quotes.get(chain, ())

    async def collect_at(self, cut: Cut, accounts: Sequence[Account], slack: int) -> Collected:
        """Read the proposer's Cut with one's own eyes.

        Args:
            slack: how many blocks the proposer's block may be behind the one this observer would pin now.

        Raises:
            RefusedError: the Cut leaves out a chain this observer can see, is older than the rule allows, or names
                a block this observer can neither read nor remembers.
        """
        chains = list(self._readers)
        gaps = dict(cut.gaps)
        for chain in [b.chain for b in cut.blocks] + list(gaps):
            if chain not in self._readers:
                raise RefusedError("unknown-chain", f"the Cut names {chain}, which {self.name} does not read")
        await asyncio.gather(*(self._observe_at(chain, cut, accounts, slack) for chain in chains))
        readings = {chain: self._last[chain] if cut.block(chain) else None for chain in chains}
        quotes = tuple(q for chain in chains if cut.block(chain) for q in self._quotes.get(chain, ()))
        return Collected(cut, readings, quotes, gaps)

    async def _observe_at(self, chain: str, cut: Cut, accounts: Sequence[Account], slack: int) -> None:
        reader, block = self._readers[chain], cut.block(chain)
        own: Block | None = None
        try:
            async with asyncio.timeout(reader.row.timeout * 2):
                own = await reader.pin(cut.cut_time)
                if block is not None:
                    await self._read(chain, block, accounts)
        except (SourceError, TimeoutError) as error:
            known = None if block is None else self._known.get(chain, {}).get(block.hash)
            if known is not None:
                self._last[chain], self._quotes[chain] = known
            last = self._last.get(chain)
            if block is not None and (last is None or last.block.hash != block.hash):
                raise RefusedError("unreadable-block", f"{chain}: {str(error) or 'timed out'}") from None
        if own is None:
            return
        if block is None:
            raise RefusedError("cut-omits-chain", f"the Cut has no block of {chain}, {self.name} sees {own.height}")
        if own.height - block.height > slack:
            raise RefusedError("cut-too-old", f"{chain}: proposed {block.height}, {self.name} would pin {own.height}")

    async def close(self) -> None:
        """Close every reader."""
        await asyncio.gather(*(r.close() for r in self._readers.values()))
