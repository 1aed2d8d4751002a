"""One observer's eyes: pin a Cut, read every chain at it, and survive the chains that do not answer.

The coordinator and every attestor have an observer of their own, with their own readers and their own memory of the
last good reading per chain. A chain that cannot be read keeps its last reading and ages; it never becomes empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from aggregator.domain.errors import RefusedError, SourceError
from aggregator.domain.price import Quote
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import Account, Block, Cut, Reading, Subject
from aggregator.ports import ChainReader

HALTED_AFTER_BLOCKS = 8
"""A head this many block times behind is reported as a halted chain, not as a slow one."""

REMEMBERED = 3
"""How many readings per chain an observer can go back to while the chain does not answer."""
HALTED = "halted"
"""How a cause begins when the chain itself does not advance; the core reads it."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What one observer saw at one Cut. ``causes`` says why a chain is not fresh."""

    cut: Cut
    readings: Mapping[str, Reading | None]  # by chain; None = never read
    causes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def quotes(self) -> tuple[Quote, ...]:
        """What the chains' own price feeds said, chain by chain."""
        return tuple(q for reading in self.readings.values() if reading is not None for q in reading.quotes)


def is_halted(row: ChainRow, block: Block, cut_time: int) -> bool:
    """Say whether a chain's newest final block is so old that the chain must have stopped."""
    return cut_time - block.time > row.block_seconds * (row.finality_depth + HALTED_AFTER_BLOCKS)


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
    """Reads the chains for one party (the coordinator or one attestor).

    Args:
        name: for people, in refusals.
        readers: by chain.
        remembered: what this party read last, from before a restart.
    """

    def __init__(self, name: str, readers: Mapping[str, ChainReader], remembered: Mapping[str, Reading] | None = None):
        self.name = name
        self._readers = dict(sorted(readers.items()))
        self._last: dict[str, Reading] = dict(remembered or {})
        self._agreed: dict[str, Reading] = dict(self._last)
        self._known = {chain: {reading.block.hash: reading} for chain, reading in self._last.items()}  # oldest first

    @property
    def last(self) -> Mapping[str, Reading]:
        """The last good reading of each chain."""
        return MappingProxyType(self._last)

    async def collect(self, epoch: int, cut_time: int, accounts: Sequence[Account]) -> Collected:
        """Pin the Cut of ``epoch`` and read it; no chain's failure stops another."""
        chains = list(self._readers)
        seen = await asyncio.gather(*(self._observe(chain, cut_time, accounts) for chain in chains))
        readings = {chain: reading for chain, (reading, _) in zip(chains, seen, strict=True)}
        causes = {chain: cause for chain, (_, cause) in zip(chains, seen, strict=True) if cause}
        blocks = tuple(reading.block for reading in readings.values() if reading is not None)
        return Collected(Cut(epoch, cut_time, blocks, tuple(causes.items())), readings, causes)

    async def _observe(self, chain: str, cut_time: int, accounts: Sequence[Account]) -> tuple[Reading | None, str]:
        """Return the chain's reading and, where it is not as fresh as it should be, why."""
        reader = self._readers[chain]
        try:
            async with asyncio.timeout(reader.row.timeout * 2):
                block = await reader.pin(cut_time)
                await self._read(chain, block, accounts)
        except (SourceError, TimeoutError) as error:
            cause = str(error) or f"{reader.row.name}: not read within {reader.row.timeout * 2:g} s"
            # A block that nobody else saw before the chain went dark would never find a quorum.
            if (agreed := self._agreed.get(chain)) is not None:
                self._last[chain] = agreed
            return self._last.get(chain), cause
        behind = cut_time - block.time
        halted = f"{HALTED}: no final block of {reader.row.name} for {behind} s"
        return self._last[chain], halted if is_halted(reader.row, block, cut_time) else ""

    async def _read(self, chain: str, block: Block, accounts: Sequence[Account]) -> None:
        reader = self._readers[chain]
        reading, quotes = await asyncio.gather(
            reader.read(block, subjects_on(chain, accounts)), reader.read_quotes(block)
        )
        self._last[chain] = reading = replace(reading, quotes=quotes)
        known = self._known.setdefault(chain, {})
        known.pop(block.hash, None)
        known[block.hash] = reading
        while len(known) > REMEMBERED:
            del known[next(iter(known))]

    def agree(self, seen: Collected) -> None:
        """Keep what was just collected as what a quorum saw too: what a chain that goes dark falls back to."""
        self._agreed |= {chain: reading for chain, reading in seen.readings.items() if reading is not None}

    async def collect_at(self, cut: Cut, accounts: Sequence[Account], slack: int) -> Collected:
        """Read the proposer's Cut with one's own eyes.

        Args:
            slack: how many blocks the proposer's block may be behind the one this observer would pin now.

        Raises:
            RefusedError: the Cut leaves out a chain this observer can see, is older than the rule allows, calls a
                chain halted that is not, or names a block this observer can neither read nor remembers.
        """
        gaps = dict(cut.gaps)
        for chain in [b.chain for b in cut.blocks] + list(gaps):
            if chain not in self._readers:
                raise RefusedError("unknown-chain", f"the Cut names {chain}, which {self.name} does not read")
        for chain, cause in gaps.items():
            block, row = cut.block(chain), self._readers[chain].row
            if cause.startswith(HALTED) and (block is None or not is_halted(row, block, cut.cut_time)):
                raise RefusedError("not-halted", f"{chain}: the Cut says {cause!r}, its block says otherwise")
        found = await asyncio.gather(*(self._observe_at(chain, cut, accounts, slack) for chain in self._readers))
        return Collected(cut, dict(zip(self._readers, found, strict=True)), gaps)

    async def _observe_at(self, chain: str, cut: Cut, accounts: Sequence[Account], slack: int) -> Reading | None:
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
                self._last[chain] = known
            elif block is not None:
                raise RefusedError("unreadable-block", f"{chain}: {str(error) or 'timed out'}") from None
        if block is None:
            if own is not None:
                raise RefusedError("cut-omits-chain", f"the Cut has no block of {chain}, {self.name} sees {own.height}")
            return None
        if own is not None and own.height - block.height > slack:
            raise RefusedError("cut-too-old", f"{chain}: proposed {block.height}, {self.name} would pin {own.height}")
        return self._last[chain]

    async def close(self) -> None:
        """Close every reader."""
        await asyncio.gather(*(r.close() for r in self._readers.values()))
