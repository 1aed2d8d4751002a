"""One observer's eyes: pin a Cut, read every chain at it, and survive the chains that do not answer.

The coordinator and every attestor have an observer of their own, with their own readers and their own memory of each
chain. A chain that cannot be read keeps its last reading and ages; it never becomes empty. A chain whose history
changes under a block that was pinned is read afresh; one whose irreversible block changes is halted until an operator
has looked (faults.md, A1 and A2).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from aggregator.domain.errors import RefusedError, SourceError, Unavailable
from aggregator.domain.latency import Leg
from aggregator.domain.price import Quote
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import (
    DARK,
    FROZEN,
    HALTED,
    REORGED,
    Account,
    Block,
    Carried,
    ChainView,
    Cut,
    Reading,
    Reorg,
    Subject,
)
from aggregator.ports import ChainReader, Halts, Watcher
from aggregator.service.memory import Memory, Roster, carry, last_read, part_of, places_of

T = TypeVar("T")

LATE_AFTER_BLOCKS = 8
LATE_AFTER_SECONDS = 10
"""How far behind, beyond its finality, a chain's newest final block may be before it counts as late."""
CAUSE_LIMIT = 4_000
"""Characters of a cause; it becomes part of what is signed."""
CARRY_SLACK = 2
"""Epochs beyond ``Rereading.epochs`` that a carried block may be old: one that failed, and one for the clocks."""


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


@dataclass(frozen=True, slots=True)
class Rereading:
    """Who is read anew when nothing is known to have changed: everybody once in ``epochs``.

    Args:
        epochs: the length of the round.
        epoch_seconds: Δ.
        full_below: with fewer accounts than this, everybody in every epoch.
    """

    epochs: int = 1
    epoch_seconds: int = 1
    full_below: int = 0

    def oldest(self, block: Block, slack: int = 0) -> int:
        """Return the time before which no block may lie that accounts are carried from to ``block``.

        Args:
            slack: epochs on top of the round.
        """
        return block.time - (self.epochs + slack) * self.epoch_seconds


class BelowFinality(SourceError):
    """A block that was held for irreversible is not canonical any more: nothing of this chain can be relied on."""


def lag_allowed(row: ChainRow) -> float:
    """Return the seconds by which a chain's newest final block may be behind before the chain counts as late."""
    return max(LATE_AFTER_SECONDS, row.finality_seconds + row.block_seconds * LATE_AFTER_BLOCKS)


def _nothing(leg: Leg, chain: str, seconds: float) -> None:
    """Measure nothing."""


class Observer:
    """Reads the chains for one party (the coordinator or one attestor).

    Args:
        name: for people, in refusals; also whose halts and readings these are.
        readers: by chain.
        remembered: by chain, what this party read last, from before a restart.
        halts: durable flags of chains reorganised below finality; None keeps them in memory only.
        watchers: by chain, subscriptions that hint at who changed.
        rereading: who is read anew without a hint.
        measure: told how long each leg took.
        certified: the newest certified epoch, and the chains as it names them. Whoever restarts looks whether those
            blocks are still there: a reorganisation may have been noticed before, and not answered.
    """

    def __init__(
        self,
        name: str,
        readers: Mapping[str, ChainReader],
        remembered: Mapping[str, Sequence[Reading]] | None = None,
        *,
        halts: Halts | None = None,
        watchers: Mapping[str, Watcher] | None = None,
        rereading: Rereading | None = None,
        measure: Callable[[Leg, str, float], None] = _nothing,
        certified: tuple[int, Sequence[ChainView]] = (0, ()),
    ) -> None:
        self.name = name
        self._readers = dict(sorted(readers.items()))
        kept = remembered or {}
        named = {view.chain: view for view in certified[1]}
        self._memory = {
            chain: Memory.of(kept.get(chain, ()), certified[0], named.get(chain)) for chain in self._readers
        }
        self._rosters = {chain: Roster(chain) for chain in self._readers}
        self._halts, self._watchers = halts, dict(watchers or {})
        self._rereading, self._measure = rereading or Rereading(), measure
        self._pending: tuple[bytes, Mapping[str, Reading]] = (b"", {})
        self._floor = 0  # of the newest certified statement

    @property
    def last(self) -> Mapping[str, Reading]:
        """The last good reading of each chain."""
        return {chain: memory.last for chain, memory in self._memory.items() if memory.last is not None}

    @property
    def parts(self) -> tuple[Reading, ...]:
        """What was read anew of each chain: what the store keeps, so that it never writes what has not changed.

        ``carried`` names the blocks of which the store keeps what it has: also those of the newest certified reading.
        """
        return tuple(
            replace(part_of(memory.last, memory.last.block), carried=(*memory.last.carried, *memory.needed()))
            for memory in self._memory.values()
            if memory.last is not None
        )

    async def start(self) -> None:
        """Start listening for hints."""
        await asyncio.gather(*(watcher.start() for watcher in self._watchers.values()))

    # --- the proposer's side ---------------------------------------------------------------------------------------

    async def collect(
        self, epoch: int, cut_time: int, accounts: Sequence[Account], seals: Mapping[str, str] = MappingProxyType({})
    ) -> Collected:
        """Pin the Cut of ``epoch`` and read it; a chain that does not answer stops no other.

        Args:
            seals: by CAIP-10, what shows on chain that a member without a key still agrees.
        """
        await self._refresh_halts()
        chains = list(self._readers)
        seen = await _together([self._observe(chain, epoch, cut_time, accounts, seals) for chain in chains])
        readings = {chain: reading for chain, (reading, _) in zip(chains, seen, strict=True)}
        causes = {chain: cause for chain, (_, cause) in zip(chains, seen, strict=True) if cause}
        present = [reading for reading in readings.values() if reading is not None]
        cut = Cut(
            epoch,
            cut_time,
            tuple(reading.block for reading in present),
            tuple(causes.items()),
            tuple(carried for reading in present for carried in reading.carried),
            tuple(memory.reorg for memory in self._memory.values() if memory.reorg is not None),
        )
        return Collected(cut, readings, causes)

    async def _observe(
        self, chain: str, epoch: int, cut_time: int, accounts: Sequence[Account], seals: Mapping[str, str]
    ) -> tuple[Reading | None, str]:
        """Return the chain's reading and, where it is not as fresh as it should be, why."""
        reader, memory = self._readers[chain], self._memory[chain]
        row, cause, state = reader.row, "", HALTED
        if memory.halted:
            return await self._observe_halted(chain)
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(row.timeout * 2):
                block = await self._follow(chain, await reader.pin(cut_time))
                self._measure_chain(reader, block, cut_time)
                await self._read(chain, block, epoch, accounts, seals)
            self._measure("read", chain, asyncio.get_running_loop().time() - began)
        except BelowFinality as error:
            await self._halt(chain, error, cut_time)
            return await self._observe_halted(chain)
        except (SourceError, TimeoutError) as error:
            if memory.last is not None:
                self._measure("block", chain, cut_time - memory.last.block.time)
            cause = str(error) or f"{row.name}: not read within {row.timeout * 2:g} s"
            state = DARK
            # A block that nobody else saw before the chain went dark would never find a quorum.
            if memory.agreed is not None:
                memory.last = memory.agreed
        last = memory.last
        if last is not None and (behind := cut_time - last.block.time) > lag_allowed(row):
            why = cause or f"no final block of {row.name} for {behind} s"
            return last, f"{state}: {why}"
        return last, cause

    async def _observe_halted(self, chain: str) -> tuple[Reading | None, str]:
        """Return what a halted chain is left with: the certified reading, which everybody has, or nothing."""
        memory = self._memory[chain]
        with contextlib.suppress(SourceError, TimeoutError):
            async with asyncio.timeout(self._readers[chain].row.timeout):
                await self._note_reorg(chain)
        memory.last = memory.agreed or memory.fallen
        return memory.last, memory.halted

    async def _read(
        self,
        chain: str,
        block: Block,
        epoch: int,
        accounts: Sequence[Account],
        seals: Mapping[str, str],
    ) -> None:
        """Read anew at ``block`` whoever is due, and carry the others."""
        memory, roster = self._memory[chain], self._rosters[chain]
        roster.update(accounts, seals)
        changed = memory.changed(roster)
        due = await self._due(chain, block, epoch, changed)
        if due is None:
            fresh = await self._fetch(chain, block, roster.everybody)
            memory.remember(fresh, roster.subjects, (roster.subjects.keys(), len(fresh.positions)))
        else:
            assert memory.last is not None
            fresh = await self._fetch(chain, block, roster.choose(due))
            merged = carry(fresh, memory.last, due | changed, anew=memory.anew, subjects=roster.everybody)
            again = block.height == memory.last.block.height
            memory.remember(merged, roster.subjects, None if again else (due, len(fresh.positions)))
        if (watcher := self._watchers.get(chain)) is not None:
            watcher.forget(block.height)

    async def _due(self, chain: str, block: Block, epoch: int, changed: set[str]) -> set[str] | None:
        """Return whom to read anew: touched since the last pin, in the epoch's sample, newly linked, or too old.

        Who has an option that has expired since is read too, as nothing need be logged when that happens.

        None: everybody.
        """
        memory, roster, rule = self._memory[chain], self._rosters[chain], self._rereading
        last, oldest = memory.last, rule.oldest(block)
        if last is None or len(roster.subjects) < rule.full_below or rule.epochs <= 1 or last.block.time < oldest:
            return None
        if (watcher := self._watchers.get(chain)) is not None:
            watcher.watch(roster.everybody)
        words = await self._touched(chain, last.block.height, block.height)
        if words is None:
            return None
        due = roster.named(words) | changed | roster.sample(rule.epochs, epoch)
        due |= memory.at(places_of(words)) | memory.expired(block.time)
        due.update(a for c in last.carried if c.block.time < oldest for a in c.accounts)
        due |= roster.unsure
        due &= roster.subjects.keys()
        return due if len(due) < len(roster.subjects) else None

    async def _touched(self, chain: str, after: int, upto: int) -> frozenset[str] | None:
        """Return the words named by changes in (after, upto], None where that cannot be told.

        One subscription alone could leave something out: where all providers can be asked for logs, both are united.
        """
        if upto <= after:
            return frozenset()
        watcher, reader = self._watchers.get(chain), self._readers[chain]
        told = watcher.words(after, upto) if watcher is not None and watcher.covered() >= upto else None
        try:
            asked = await reader.changes(after + 1, upto)
        except SourceError:
            return None  # nobody can tell, so everybody is read
        if asked is None:
            return told if reader.row.family == "solana" else None
        return asked | (told or frozenset())

    async def _fetch(self, chain: str, block: Block, subjects: tuple[Subject, ...]) -> Reading:
        reader = self._readers[chain]
        reading, quotes = await asyncio.gather(reader.read(block, subjects), reader.read_quotes(block))
        return replace(reading, quotes=quotes, subjects=subjects)

    def _measure_chain(self, reader: ChainReader, block: Block, cut_time: int) -> None:
        self._measure("block", block.chain, cut_time - block.time)
        if (lag := reader.finality_lag) is not None:
            self._measure("finality", block.chain, lag)

    # --- history ---------------------------------------------------------------------------------------------------

    async def _follow(self, chain: str, block: Block) -> Block:
        """Check that what was relied on before is an ancestor of what is pinned now; return the block to rely on.

        Each pin is followed back to the one before it, so that by then everything older has been followed too; what was
        irreversible needs a look of its own only where that fails. A node that has fallen behind pins an earlier block
        of the same history: then the later one still stands.

        Raises:
            BelowFinality: a block held for irreversible was replaced.
        """
        reader, memory = self._readers[chain], self._memory[chain]
        if memory.doubtful:
            await self._note_reorg(chain)
        top = memory.last.block if memory.last is not None else memory.irreversible
        if top is not None and not await self._descends(reader, block, top):
            await reader.verify_identity()  # a node that serves another chain now has replaced nothing
            if (sure := memory.irreversible) is not None and (here := await reader.block_at(sure.height)) != sure:
                await self._note_reorg(chain)
                problem = f"block {sure.height} was {sure.hash} and irreversible, it is {here.hash} now"
                raise BelowFinality(reader.row.name, problem)
            await self._note_reorg(chain)
            memory.forget()
            top = None
        if top is not None and top.height >= block.height:
            return top if memory.last is not None else block
        memory.pins.append(block)
        final = await self._irreversible(reader, memory, block)
        if final is not None and (memory.irreversible is None or final.height > memory.irreversible.height):
            memory.irreversible = final
        return block

    async def _descends(self, reader: ChainReader, block: Block, old: Block) -> bool:
        """Say whether ``old`` is still canonical, now that ``block`` is pinned: by parent hashes from one to the other.

        Raises:
            Unavailable: the history changes while it is read, or is shorter than it was.
        """
        if old == block:
            return True
        between: tuple[Block, ...] = ()
        if block.height > old.height + 1 and reader.row.family == "evm":
            between = await reader.headers(old.height + 1, block.height - 1)
        links = (old, *between, block)
        if len(links) == block.height - old.height + 1:
            if all(child.parent == parent.hash for parent, child in pairwise(links)):
                return True
            if await reader.block_at(old.height) == old:
                raise Unavailable(reader.row.name, f"its history changed while blocks up to {block.height} were read")
            return False
        # Skipped slots, a long gap, or a pin that went back. Where the height is not there (any more), nothing is known
        # yet: nodes may lag, or the history may be another; what will stand at this height tells.
        return await reader.block_at(old.height) == old

    @staticmethod
    async def _irreversible(reader: ChainReader, memory: Memory, block: Block) -> Block | None:
        """Return the newest block known to be irreversible now, not above ``block``."""
        rule, final = reader.row.irreversible, reader.row.finality
        if rule == final:
            return block
        if rule.depth is not None and final.depth is not None and memory.irreversible is not None:
            # What is this much deeper than a final block is irreversible: one's own pins tell, and nobody is asked.
            sure = [pin for pin in memory.pins if pin.height <= block.height - (rule.depth - final.depth)]
            while memory.pins and sure and memory.pins[0] != sure[-1]:
                memory.pins.popleft()
            return sure[-1] if sure else None
        found = await reader.irreversible()
        return found if found.height <= block.height else None

    async def _note_reorg(self, chain: str) -> None:
        """Look whether the block that the newest certified statement names is gone, and no floor above it certified."""
        memory, gone = self._memory[chain], None
        if memory.certified:
            epoch, was = memory.certified[-1]
            if self._floor <= epoch and (now := await self._readers[chain].block_at(was.height)) != was:
                gone = Reorg(chain, was.height, was.hash, now.hash)
        # Looked at again in every epoch until it is answered: the history may come back.
        memory.doubtful, memory.reorg = gone is not None, gone

    async def _halt(self, chain: str, error: BelowFinality, now: int) -> None:
        memory = self._memory[chain]
        memory.halted = f"{REORGED} below finality: {error.problem}; halted until an operator resumes it"
        memory.halted_at, memory.on_record = now, False
        await self._record_halt(chain)

    async def _record_halt(self, chain: str) -> None:
        """Make a halt durable, whoever gives up waiting for it."""
        memory = self._memory[chain]
        if self._halts is not None:
            halt = await asyncio.shield(self._halts.halt(self.name, chain, memory.halted, memory.halted_at))
            memory.halted, memory.on_record = halt.cause, True

    async def _refresh_halts(self) -> None:
        """Take over which halts stand; a chain that was resumed is read as if for the first time."""
        if self._halts is None:
            return
        standing = await self._halts.standing(self.name)
        for chain, memory in self._memory.items():
            if chain in standing:
                memory.halted, memory.on_record = standing[chain].cause, True
            elif memory.halted and memory.on_record:
                memory.forget(entirely=True)
                memory.halted = ""
            elif memory.halted:
                await self._record_halt(chain)  # it could not be written when it began: nobody can have resumed it

    async def yield_to(self, chain: str, cause: str, now: int) -> None:
        """Halt a chain on the word of more attestors than may be faulty: they saw what this observer did not."""
        memory = self._memory.get(chain)
        if memory is not None and not memory.halted:
            await self._halt(chain, BelowFinality(chain, f"attestors say {cause}"), now)

    # --- what is certified -----------------------------------------------------------------------------------------

    def attested(self, digest: bytes, seen: Collected) -> None:
        """Remember what was seen for a statement that may become certified.

        What is left of a reorganised chain is a reading of a history that is gone: nothing to rely on later.
        """
        self._pending = (
            digest,
            {
                chain: reading
                for chain, reading in seen.readings.items()
                if reading is not None and not seen.causes.get(chain, "").startswith(REORGED)
            },
        )

    def certified(self, digest: bytes, epoch: int, floor: int) -> None:
        """A statement is certified: what was seen for it is what a chain that goes dark falls back to.

        Args:
            digest, epoch, floor: the statement's. Reorganisations of blocks certified below the floor are answered.
        """
        pending, readings = self._pending
        self._floor = max(self._floor, floor)
        for chain, memory in self._memory.items():
            if pending == digest and chain in readings and not memory.halted:
                memory.agreed, memory.fallen = readings[chain], None
                memory.certified.append((epoch, readings[chain].block))
            if memory.reorg is not None and memory.certified and self._floor > memory.certified[-1][0]:
                memory.doubtful, memory.reorg = False, None

    # --- an attestor's side ----------------------------------------------------------------------------------------

    async def collect_at(
        self, cut: Cut, accounts: Sequence[Account], seals: Mapping[str, str] = MappingProxyType({})
    ) -> Collected:
        """Read the proposer's Cut with one's own eyes.

        Raises:
            RefusedError: the Cut omits a chain this observer can see; names a block that is not the canonical, final
                one at its height, that is older than the rule allows, or older than what is certified already; calls
                a chain halted or reorganised that is not, or keeps silent about one that is; carries what is too old;
                or names a block this observer can neither read nor remembers.
        """
        gaps = dict(cut.gaps)
        for chain in [b.chain for b in cut.blocks] + list(gaps) + [r.chain for r in cut.reorgs]:
            if chain not in self._readers:
                raise RefusedError("unknown-chain", f"the Cut names {chain}, which {self.name} does not read")
        if len({r.chain for r in cut.reorgs}) < len(cut.reorgs) or any(len(c) > CAUSE_LIMIT for c in gaps.values()):
            raise RefusedError("cut", "the Cut names a chain twice, or says more than there is to say")
        self._check_carried(cut, accounts)
        await self._refresh_halts()
        found = await _together(
            [self._observe_at(chain, cut, gaps.get(chain, ""), accounts, seals) for chain in self._readers]
        )
        return Collected(cut, dict(zip(self._readers, found, strict=True)), gaps)

    def _check_carried(self, cut: Cut, accounts: Sequence[Account]) -> None:
        known, seen = {a.id for a in accounts}, set[tuple[str, str]]()
        if tuple(sorted(cut.carried, key=lambda c: (c.block.chain, c.block.height))) != cut.carried:
            raise RefusedError("carried", "the carried blocks are not in ascending order")
        for carried in cut.carried:
            chain, main = carried.block.chain, cut.block(carried.block.chain)
            if main is None or carried.block.height >= main.height or not carried.accounts:
                raise RefusedError("carried", f"{chain}: block {carried.block.height} is not older than the Cut's")
            for account in carried.accounts:
                if account not in known or (chain, account) in seen:
                    raise RefusedError("carried", f"{chain}: {account} is unknown, or carried twice")
                seen.add((chain, account))

    async def _observe_at(
        self, chain: str, cut: Cut, cause: str, accounts: Sequence[Account], seals: Mapping[str, str]
    ) -> Reading | None:
        reader, memory, block = self._readers[chain], self._memory[chain], cut.block(chain)
        carried = tuple(c for c in cut.carried if c.block.chain == chain)
        own: Block | None = None
        reorged = cause.startswith(REORGED)
        if cause.startswith(FROZEN):
            raise RefusedError("frozen", f"{chain}: what freezes a chain is read there; no proposer says it")
        if memory.halted:
            with contextlib.suppress(SourceError, TimeoutError):
                async with asyncio.timeout(reader.row.timeout):
                    await self._note_reorg(chain)
        try:
            async with asyncio.timeout(reader.row.timeout * 2):
                if not memory.halted:
                    own = await self._pin(reader, cut.cut_time, 0 if block is None else block.height)
                    own = await self._follow(chain, own)
                    # Of what a party measures, only this is about the chain and not about the party.
                    self._measure_chain(reader, own, cut.cut_time)
                if block is not None and own is not None and not reorged:
                    await self._check_block(reader, block, own, cause)
                    await self._read_at(chain, block, carried, accounts, seals)
        except BelowFinality as error:
            await self._halt(chain, error, cut.cut_time)
        except (SourceError, TimeoutError) as error:
            if block is not None:
                memory.last = self._recall(chain, block, carried, str(error) or "timed out")
        try:
            await self._check_reorg(chain, cut)
            if reorged and not memory.halted:
                await self._check_gone(chain, block, cause)
        except SourceError as error:
            _unreadable(chain, str(error))
        if memory.halted and not reorged:
            said = cause or "nothing"
            raise RefusedError("reorged", f"{chain}: the Cut says {said!r}, {self.name} knows {memory.halted!r}")
        if block is None:
            if own is not None:
                raise RefusedError("cut-omits-chain", f"the Cut has no block of {chain}, {self.name} sees {own.height}")
            return None
        if reorged:
            memory.last = self._recall(chain, block, carried, "it is not canonical any more")
            return memory.last
        late = cut.cut_time - block.time > lag_allowed(reader.row)
        if cause.startswith((HALTED, DARK)) and not late:
            raise RefusedError("not-late", f"{chain}: the Cut says {cause!r}, its block says otherwise")
        agreed = memory.agreed
        if agreed is not None and block.height < agreed.block.height:
            raise RefusedError("cut-regresses", f"{chain}: proposed {block.height}, certified {agreed.block.height}")
        return memory.last

    async def _check_reorg(self, chain: str, cut: Cut) -> None:
        """Check that the Cut names a reorganisation of what was certified exactly where this observer sees one.

        Only a block that is known to have been certified may be named: a floor voids what everybody else relies on.
        """
        memory = self._memory[chain]
        named = next((r for r in cut.reorgs if r.chain == chain), None)
        if named is None:
            if (own := memory.reorg) is not None:
                problem = f"certified block {own.height} was {own.was} and is not canonical; the Cut does not say so"
                raise RefusedError("reorg-unnamed", f"{chain}: {problem}")
            return
        was = next((b for _, b in memory.certified if (b.height, b.hash) == (named.height, named.was)), None)
        if was is None:
            raise RefusedError("reorg", f"{chain}: no statement known to {self.name} names block {named.height}")
        now = (await self._readers[chain].block_at(was.height)).hash
        if now == named.was or now != named.now:
            raise RefusedError("reorg", f"{chain}: block {named.height} is {now}, not {named.now!r}")

    async def _check_gone(self, chain: str, block: Block | None, cause: str) -> None:
        """Check a halt that this observer does not share: at least the block that is left must be gone.

        Two parties may hold blocks for irreversible that are a little apart; the halt of one may only cost the chain.
        """
        if block is None or await self._readers[chain].block_at(block.height) == block:
            raise RefusedError("reorged", f"{chain}: the Cut says {cause!r}, {self.name} sees no block replaced")

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
        await self._check_canonical(reader, block, own)
        # A chain that only the proposer cannot see is declared dark: it counts nothing, and others go on.
        if own.time - block.time > lag_allowed(reader.row) and not cause.startswith(DARK):
            raise RefusedError("cut-too-old", f"{chain}: proposed {block.height}, {self.name} would pin {own.height}")

    async def _check_canonical(self, reader: ChainReader, block: Block, own: Block) -> None:
        canonical = own if block.height == own.height else await reader.block_at(block.height)
        if canonical != block:
            raise RefusedError("cut-block", f"{block.chain}: proposed {block}, {self.name} has {canonical}")

    async def _read_at(
        self,
        chain: str,
        block: Block,
        carried: tuple[Carried, ...],
        accounts: Sequence[Account],
        seals: Mapping[str, str],
    ) -> None:
        """Read everybody at the block the Cut names for them, from memory where this observer read it there itself.

        The proposer may carry an account that did change: its number is then as old as the Cut says, and valued so.
        """
        memory, roster = self._memory[chain], self._rosters[chain]
        roster.update(accounts, seals)
        self._check_partition(chain, block, carried)
        changed = memory.changed(roster)
        blocks = {} if memory.last is None else last_read(memory.last)
        anew = roster.subjects.keys() - {account for group in carried for account in group.accounts}
        merged = await self._fetch(chain, block, roster.choose(anew))
        own, missed = len(merged.positions), None
        mine = set[str]()
        for group in carried:
            # What this observer itself read last at the group's block, with the same links, it need not read again.
            known = {a for a in group.accounts if blocks.get(a) == group.block} - changed
            mine |= known
            if missing := set(group.accounts) - known:
                try:
                    await self._check_canonical(self._readers[chain], group.block, block)
                    merged = carry(merged, await self._fetch(chain, group.block, roster.choose(missing)), ())
                except SourceError as error:
                    missed = error
        covered = None if missed is not None else roster.everybody
        if mine:
            assert memory.last is not None
            merged = carry(merged, memory.last, blocks.keys() - mine, anew=memory.anew, subjects=covered)
        if missed is not None:
            # What could be read is kept: whoever was away for long gets back to the others group by group.
            memory.remember(merged, _by_account(merged), None)
            raise missed
        memory.remember(replace(merged, carried=carried), roster.subjects, (anew, own))

    def _check_partition(self, chain: str, block: Block, carried: tuple[Carried, ...]) -> None:
        """Refuse to carry what is too old, what was certified newer, and whoever must be read in every epoch."""
        agreed, unsure = self._memory[chain].agreed, self._rosters[chain].unsure
        if agreed is not None and (agreed.block, agreed.carried) == (block, carried):
            return  # a chain that cannot be read falls back to what was certified, as it is
        oldest = self._rereading.oldest(block, CARRY_SLACK) - lag_allowed(self._readers[chain].row)
        read = {} if agreed is None else last_read(agreed)
        for group in carried:
            if group.block.time < oldest:
                age = block.time - group.block.time
                problem = f"block {group.block.height} is {age} s older than the Cut's {block.height}"
                raise RefusedError("carried-too-old", f"{chain}: {problem}")
            for account in group.accounts:
                if (before := read.get(account)) is not None and before.height > group.block.height:
                    problem = f"{account} is carried from {group.block.height}, certified is {before.height}"
                    raise RefusedError("carried-regresses", f"{chain}: {problem}")
                if account in unsure:
                    raise RefusedError("carried", f"{chain}: {account} must be read in every epoch")

    def _recall(self, chain: str, block: Block, carried: tuple[Carried, ...], problem: str) -> Reading:
        known = self._memory[chain].recall(block, carried)
        if known is None:
            _unreadable(chain, problem)
        return known

    async def close(self) -> None:
        """Close every reader and stop listening."""
        await asyncio.gather(
            *(w.close() for w in self._watchers.values()), *(r.close() for r in self._readers.values())
        )


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do things at once; where one fails the others are stopped and waited for, before the failure goes on."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _by_account(reading: Reading) -> dict[str, tuple[Subject, ...]]:
    grouped: dict[str, tuple[Subject, ...]] = {}
    for subject in reading.subjects or ():
        grouped[subject.account] = (*grouped.get(subject.account, ()), subject)
    return grouped


def _unreadable(chain: str, problem: str) -> NoReturn:
    raise RefusedError("unreadable-block", f"{chain}: {problem}")
