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
from aggregator.domain.snapshot import DARK, HALTED, Account, Block, Cut, Reading, Subject
from aggregator.ports import ChainReader

LATE_AFTER_BLOCKS = 8
LATE_AFTER_SECONDS = 10
"""How far behind, beyond its finality, a chain's newest final block may be before it counts as late."""

REMEMBERED = 3
"""How many readings per chain an observer can go back to while the chain does not answer."""


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


def lag_allowed(row: ChainRow) -> float:
    """Return the seconds by which a chain's newest final block may be behind before the chain counts as late."""
    return max(LATE_AFTER_SECONDS, row.block_seconds * (row.finality_depth + LATE_AFTER_BLOCKS))


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
        self._known = {chain: {reading.block.hash: reading} for chain, reading in self._last.items()}  # oldest first
        self._agreed: dict[str, Reading] = dict(self._last)  # of the newest epoch known to be certified
        self._pending: tuple[bytes, Mapping[str, Reading]] = (b"", {})

    @property
    def last(self) -> Mapping[str, Reading]:
        """The last good reading of each chain."""
        return MappingProxyType(self._last)

    async def collect(self, epoch: int, cut_time: int, accounts: Sequence[Account]) -> Collected:
        """Pin the Cut of ``epoch`` and read it; a chain that does not answer stops no other."""
        chains = list(self._readers)
        seen = await asyncio.gather(*(self._observe(chain, cut_time, accounts) for chain in chains))
        readings = {chain: reading for chain, (reading, _) in zip(chains, seen, strict=True)}
        causes = {chain: cause for chain, (_, cause) in zip(chains, seen, strict=True) if cause}
        blocks = tuple(reading.block for reading in readings.values() if reading is not None)
        return Collected(Cut(epoch, cut_time, blocks, tuple(causes.items())), readings, causes)

    async def _observe(self, chain: str, cut_time: int, accounts: Sequence[Account]) -> tuple[Reading | None, str]:
        """Return the chain's reading and, where it is not as fresh as it should be, why."""
        reader = self._readers[chain]
        row, cause, state = reader.row, "", HALTED
        try:
            async with asyncio.timeout(row.timeout * 2):
                await self._read(chain, await reader.pin(cut_time), accounts)
        except (SourceError, TimeoutError) as error:
            cause = str(error) or f"{row.name}: not read within {row.timeout * 2:g} s"
            state = DARK
            # A block that nobody else saw before the chain went dark would never find a quorum.
            if (agreed := self._agreed.get(chain)) is not None:
                self._last[chain] = agreed
        last = self._last.get(chain)
        if last is not None and (behind := cut_time - last.block.time) > lag_allowed(row):
            why = cause or f"no final block of {row.name} for {behind} s"
            return last, f"{state}: {why}"
        return last, cause

    async def _read(self, chain: str, block: Block, accounts: Sequence[Account]) -> None:
        reader, subjects = self._readers[chain], subjects_on(chain, accounts)
        reading, quotes = await asyncio.gather(reader.read(block, subjects), reader.read_quotes(block))
        self._last[chain] = reading = replace(reading, quotes=quotes, subjects=subjects)
        known = self._known.setdefault(chain, {})
        known.pop(block.hash, None)
        known[block.hash] = reading
        while len(known) > REMEMBERED:
            del known[next(iter(known))]

    def attested(self, digest: bytes, seen: Collected) -> None:
        """Remember what was seen for a statement that may become certified."""
        self._pending = digest, {chain: reading for chain, reading in seen.readings.items() if reading is not None}

    def certified(self, digest: bytes) -> None:
        """A statement is certified: what was seen for it is what a chain that goes dark falls back to."""
        pending, readings = self._pending
        if pending == digest:
            self._agreed |= readings

    async def collect_at(self, cut: Cut, accounts: Sequence[Account]) -> Collected:
        """Read the proposer's Cut with one's own eyes.

        Raises:
            RefusedError: the Cut omits a chain this observer can see; names a block that is not the canonical, final
                one at its height, that is older than the rule allows, or older than what is certified already; calls
                a chain halted that is not; or names a block this observer can neither read nor remembers.
        """
        gaps = dict(cut.gaps)
        for chain in [b.chain for b in cut.blocks] + list(gaps):
            if chain not in self._readers:
                raise RefusedError("unknown-chain", f"the Cut names {chain}, which {self.name} does not read")
        found = await asyncio.gather(
            *(self._observe_at(chain, cut, gaps.get(chain, ""), accounts) for chain in self._readers)
        )
        return Collected(cut, dict(zip(self._readers, found, strict=True)), gaps)

    async def _observe_at(self, chain: str, cut: Cut, cause: str, accounts: Sequence[Account]) -> Reading | None:
        reader, block = self._readers[chain], cut.block(chain)
        own: Block | None = None
        try:
            async with asyncio.timeout(reader.row.timeout * 2):
                own = await self._pin(reader, cut.cut_time, 0 if block is None else block.height)
                if block is not None:
                    await self._check_block(reader, block, own, cause)
                    await self._read(chain, block, accounts)
        except (SourceError, TimeoutError) as error:
            if block is not None:
                self._last[chain] = self._recall(chain, block, str(error) or "timed out")
        if block is None:
            if own is not None:
                raise RefusedError("cut-omits-chain", f"the Cut has no block of {chain}, {self.name} sees {own.height}")
            return None
        late = cut.cut_time - block.time > lag_allowed(reader.row)
        if cause.startswith((HALTED, DARK)) and not late:
            raise RefusedError("not-late", f"{chain}: the Cut says {cause!r}, its block says otherwise")
        agreed = self._agreed.get(chain)
        if agreed is not None and block.height < agreed.block.height:
            raise RefusedError("cut-regresses", f"{chain}: proposed {block.height}, certified {agreed.block.height}")
        return self._last[chain]

    @staticmethod
    async def _pin(reader: ChainReader, cut_time: int, height: int) -> Block:
        """Pin with one's own node, which may need a moment to see the block that another node has."""
        own = await reader.pin(cut_time)
        if own.height < height:
            await asyncio.sleep(min(reader.row.block_seconds, reader.row.timeout / 4))
            own = await reader.pin(cut_time)
        return own

    async def _check_block(self, reader: ChainReader, block: Block, own: Block, cause: str) -> None:
        """Refuse a block that is not final and canonical here, in all its fields, or that is older than the rule."""
        chain = block.chain
        if block.height > own.height:
            raise RefusedError("cut-not-final", f"{chain}: proposed {block.height}, {self.name} would pin {own.height}")
        canonical = own if block.height == own.height else await reader.block_at(block.height)
        if canonical != block:
            raise RefusedError("cut-block", f"{chain}: proposed {block}, {self.name} has {canonical}")
        # A chain that only the proposer cannot see is declared dark: it counts nothing, and others go on.
        if own.time - block.time > lag_allowed(reader.row) and not cause.startswith(DARK):
            raise RefusedError("cut-too-old", f"{chain}: proposed {block.height}, {self.name} would pin {own.height}")

    def _recall(self, chain: str, block: Block, problem: str) -> Reading:
        agreed = self._agreed.get(chain)
        known = self._known.get(chain, {}).get(block.hash) or agreed
        if known is None or known.block != block:
            raise RefusedError("unreadable-block", f"{chain}: {problem}")
        return known

    async def close(self) -> None:
        """Close every reader."""
        await asyncio.gather(*(r.close() for r in self._readers.values()))
