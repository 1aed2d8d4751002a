"""Several providers of one chain, read as one: what ``need`` of all configured providers say is what counts.

A provider that fails stays in the denominator: two that answer of three do not become two of two. Whoever says
something else is put on record as a :class:`Dispute`. Where too few agree on one position, that position alone is in
dispute: an asset counts 0, a debt counts at the highest claim, and its account is marked; never the whole chain.

What this cannot see through is ``need`` providers that tell the same lie: they are the trust assumption.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from statistics import median_low
from typing import Any, NamedTuple, TypeVar

from adapters.disputes import TEXT_LIMIT, Dispute
from aggregator.domain.errors import Contradicted, Garbage, SourceError, Unavailable, WrongChain
from aggregator.domain.price import Quote
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import (
    DEBT_UNREADABLE,
    FROZEN,
    INFORMATIONAL,
    Block,
    Finding,
    Position,
    Reading,
    Subject,
)
from aggregator.ports import ChainReader

PIN_SHARE, BLOCK_SHARE, READ_SHARE, REREAD_SHARE = 0.5, 0.25, 0.9, 0.1
"""Of a chain's timeout, for a pin, a block by height, a read and each re-read: together less than an observer waits."""
GRACE_SHARE = 0.25
"""Of a chain's timeout: how long the other providers have once enough of them agree."""
IDENTIFY_EVERY = 8
"""Pins between two checks of which chain a provider serves, while nothing is wrong with it."""
STALE_BLOCKS, STALE_SECONDS = 8, 2
"""A final block further behind another provider's than this many block times, and seconds for rounding, is stale."""
REREADS = 2
"""Solana nodes answer at their newest slot: two honest ones can differ by it, for a moment."""

FROZEN_KEY = ("frozen", "")

T = TypeVar("T")
Row = tuple[Any, ...]
Table = Mapping[tuple[str, ...], tuple[Row, ...]]
"""What one provider says, by what it is about; an absent key says "nothing there"."""


class Frozen(NamedTuple):
    """What one provider says about the sequencer at a block; absent where it is well."""

    cause: str


class NoQuorum(SourceError):
    """Fewer providers than needed say the same; the message names each that failed, and how."""

    retryable = True


class Disputed(NoQuorum):
    """Enough providers answered, but they contradict each other."""


class QuorumReader:
    """Implements :class:`aggregator.ports.ChainReader` over one reader per configured provider.

    Args:
        row: the chain.
        readers: one per provider, in the order of ``row.rpc``.
        names: what messages call them.
        need: how many of all of them must agree; a majority.
        dispute: told of every answer that differs.
    """

    def __init__(
        self,
        row: ChainRow,
        readers: Sequence[ChainReader],
        names: Sequence[str],
        need: int,
        dispute: Callable[[Dispute], None],
    ) -> None:
        if not len(readers) // 2 < need <= len(readers) or len(names) != len(readers):
            raise ValueError(f"need: {need} of {len(readers)} providers is no majority, or they have no name each")
        self._row, self._readers, self._names, self._need = row, tuple(readers), tuple(names), need
        self._dispute = dispute
        self._alone = readers[0] if len(readers) == 1 else None
        self._strangers: dict[int, SourceError] = {}  # answered for another chain at the last pin
        self._last: Block | None = None
        self._pins = 0
        self._failed: dict[int, SourceError] = {}
        self._lag: float | None = None
        self._caught: set[int] = set()  # gave themselves the lie by a state proof

    @property
    def row(self) -> ChainRow:
        """The chain's configuration."""
        return self._row

    @property
    def failed(self) -> Mapping[str, str]:
        """Why each provider that did not take part in the last pin did not, by its name."""
        return {self._names[i]: error.problem for i, error in sorted(self._failed.items())}

    async def verify_identity(self) -> None:
        """Raise WrongChain or NoQuorum unless enough providers answer for the configured chain."""

        async def ask(i: int) -> bool:
            await self._readers[i].verify_identity()
            return True

        if self._alone is not None:
            await self._alone.verify_identity()
            return
        good, failed = await self._ask(ask, lambda good: len(good) >= self._need, PIN_SHARE)
        if len(good) < self._need:
            kind = WrongChain if all(isinstance(e, WrongChain) for e in failed.values()) else NoQuorum
            raise kind(self._row.name, self._shortfall("answer for this chain", failed))

    # --- pin -------------------------------------------------------------------------------------------------------

    async def pin(self, cut_time: int) -> Block:
        """Return the newest block that enough providers hold as canonical, final and not after ``cut_time``.

        Raises:
            NoQuorum: there is none; names what each provider said.
            Disputed: there is none because providers hold different blocks at one height.
            WrongChain: every provider that answers is of another chain.
        """
        if self._alone is not None:
            block = await self._alone.pin(cut_time)
            await self._verify_time(self._alone, block, cut_time)
            self._last = block
            return block
        until = asyncio.get_running_loop().time() + PIN_SHARE * self._row.timeout
        suspects = set(self._failed)
        identify, self._pins = self._pins % IDENTIFY_EVERY == 0, self._pins + 1

        async def ask(i: int) -> Block:
            # Which chain a provider serves can change under us. Asking beside the pin costs no wait of its own; but one
            # that failed is asked that first, since its breaker lets one call through. In between, a stranger's block
            # has another hash than the others', and whoever finds a history replaced asks first whose it is.
            reader = self._readers[i]
            if i in suspects:
                await reader.verify_identity()
                block = await reader.pin(cut_time)
            elif not identify:
                block = await reader.pin(cut_time)
            else:
                identity, pinned = await asyncio.gather(
                    reader.verify_identity(), reader.pin(cut_time), return_exceptions=True
                )
                if isinstance(identity, BaseException):
                    raise identity
                if isinstance(pinned, BaseException):
                    raise pinned
                block = pinned
            await self._verify_time(reader, block, cut_time)
            return block

        pins, failed = await self._ask(ask, lambda pins: self._together(pins, pins) is not None, PIN_SHARE)
        self._strangers = {i: e for i, e in failed.items() if isinstance(e, WrongChain)}
        for candidate in sorted(set(pins.values()), key=lambda b: (-b.height, b.hash)):
            holders, contrary = await self._holders(candidate, pins, until)
            newest = self._together(holders, pins, candidate)
            if newest is None:
                continue
            self._report_blocks(candidate, contrary)
            for i, block in contrary.items():
                failed[i] = Garbage(self._row.name, f"holds {_shown(block)}, the others {_shown(candidate)}")
            for i, pinned in pins.items():
                if (behind := newest - pinned.time) > self._allowance:
                    failed[i] = Garbage(self._row.name, f"stale: its newest final block is {behind} s behind")
            self._failed, self._last = failed, candidate
            self._lag = self._middle_lag(pins.keys() - failed.keys())
            return candidate
        if not identify:
            pins, strangers = await self._without_strangers(pins)
            failed |= strangers
            self._strangers |= strangers
        self._failed = failed
        raise self._no_pin(pins, failed)

    async def _without_strangers(self, pins: dict[int, Block]) -> tuple[dict[int, Block], dict[int, SourceError]]:
        """Take out whoever turns out to serve another chain, so that it is called by its name."""

        async def ask(i: int) -> bool:
            await self._readers[i].verify_identity()
            return True

        _, failed = await self._ask(ask, lambda _: False, BLOCK_SHARE, among=list(pins))
        strangers: dict[int, SourceError] = {i: e for i, e in failed.items() if isinstance(e, WrongChain)}
        return {i: block for i, block in pins.items() if i not in strangers}, strangers

    async def block_at(self, height: int) -> Block:
        """Return the final block at ``height`` that enough providers hold.

        Raises:
            Unavailable: enough providers say that they have none: the chain is shorter.
            NoQuorum, Disputed: too few hold one and the same.
        """
        if self._alone is not None:
            return await self._alone.block_at(height)

        async def ask(i: int) -> tuple[Block, ...]:
            return (await self._readers[i].block_at(height),)

        (block,) = await self._agreed(ask, f"block {height}")
        return block

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        """Return the blocks from ``first`` to ``last`` that enough providers hold; of a long range, its ends.

        Raises:
            Unavailable: enough providers say that they lack one of them: the chain is shorter.
            NoQuorum, Disputed: too few hold the same.
        """
        if self._alone is not None:
            return await self._alone.headers(first, last)
        return await self._agreed(lambda i: self._readers[i].headers(first, last), f"blocks {first} to {last}")

    async def _agreed(self, ask: Callable[[int], Awaitable[tuple[Block, ...]]], what: str) -> tuple[Block, ...]:
        """Return the blocks that enough providers hold; put on record who holds others."""

        def most(held: Mapping[int, tuple[Block, ...]]) -> tuple[tuple[Block, ...], int]:
            return Counter(held.values()).most_common(1)[0]

        held, failed = await self._ask(
            ask, lambda held: bool(held) and most(held)[1] >= self._need, BLOCK_SHARE, self._strangers
        )
        if sum(isinstance(error, Unavailable) for error in failed.values()) >= self._need:
            raise Unavailable(self._row.name, self._shortfall(f"have {what}", failed, dict.fromkeys(held, "has it")))
        self._verify_enough(held, failed, f"have {what}")
        blocks, votes = most(held)
        for height, block in sorted({b.height: b for b in blocks}.items()):
            others = {i: b for i, theirs in held.items() for b in theirs if b.height == height and b != block}
            self._report_blocks(block, others, agreed=votes >= self._need)
            if others:
                break  # all that follows differs too
        if votes < self._need:
            said = {i: f"holds {_shown(theirs[-1])}" for i, theirs in held.items()}
            raise Disputed(self._row.name, self._shortfall("hold one block", failed, said))
        return blocks

    async def irreversible(self) -> Block:
        """Return the newest block that enough providers call irreversible and hold as canonical.

        Raises:
            Unavailable: enough providers have none, or lack it again by now.
            NoQuorum, Disputed: there is none.
        """
        if self._alone is not None:
            return await self._alone.irreversible()

        def enough(said: Mapping[int, Block]) -> bool:
            return bool(said) and Counter(said.values()).most_common(1)[0][1] >= self._need

        said, failed = await self._ask(lambda i: self._readers[i].irreversible(), enough, BLOCK_SHARE, self._strangers)
        if sum(isinstance(error, Unavailable) for error in failed.values()) >= self._need:
            raise Unavailable(self._row.name, self._shortfall("know of an irreversible block", failed))
        self._verify_enough(said, failed, "say what is irreversible")
        # As many as are needed call this height or one above it irreversible, at least one of them an honest one.
        ranked = sorted(said.values(), key=lambda b: -b.height)[: self._need]
        lowest = ranked[-1]
        return lowest if len(set(ranked)) == 1 else await self.block_at(lowest.height)

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        """Return what any provider saw change, so that one which omits logs hides nothing.

        None if fewer than needed can tell.
        """
        if self._alone is not None:
            return await self._alone.changes(first, last)

        async def ask(i: int) -> frozenset[str]:
            words = await self._readers[i].changes(first, last)
            if words is None:
                raise Unavailable(self._row.name, "cannot tell what changed")
            return words

        seen, _ = await self._ask(ask, lambda seen: len(seen) >= self._need, BLOCK_SHARE, self._strangers)
        return frozenset[str]().union(*seen.values()) if len(seen) >= self._need else None

    @property
    def finality_lag(self) -> float | None:
        """Seconds between head and newest final block, as of the last pin that was agreed on.

        The lower median of the providers that took part, since nothing but a provider's word tells how new its head
        is: no minority of them stretches it. None where fewer than needed could tell.
        """
        return self._lag if self._alone is None else self._alone.finality_lag

    def _middle_lag(self, took_part: Iterable[int]) -> float | None:
        lags = [self._readers[i].finality_lag for i in took_part]
        known = [lag for lag in lags if lag is not None]
        return median_low(known) if len(known) >= self._need else None

    async def _holders(
        self, candidate: Block, pins: Mapping[int, Block], until: float
    ) -> tuple[set[int], dict[int, Block]]:
        """Return who holds ``candidate``, and who holds another block at its height; asks those that are ahead."""
        holders = {i for i, block in pins.items() if block == candidate}
        contrary = {i: b for i, b in pins.items() if b.height == candidate.height and b != candidate}
        ahead = [i for i, b in pins.items() if b.height > candidate.height]
        if not len(holders) < self._need <= len(holders) + len(ahead):
            return holders, contrary

        def enough(held: Mapping[int, Block]) -> bool:
            return len(holders) + sum(block == candidate for block in held.values()) >= self._need

        left = max(0.05, until - asyncio.get_running_loop().time())
        held, _ = await self._ask(
            lambda i: self._readers[i].block_at(candidate.height), enough, left / self._row.timeout, among=ahead
        )
        contrary |= {i: block for i, block in held.items() if block != candidate}
        return holders | {i for i, block in held.items() if block == candidate}, contrary

    @property
    def _allowance(self) -> float:
        return STALE_BLOCKS * self._row.block_seconds + STALE_SECONDS

    def _together(
        self, holders: Iterable[int], pins: Mapping[int, Block], candidate: Block | None = None
    ) -> int | None:
        """Return the newest time of enough holders that are not stale to each other, None where there are too few.

        A provider that lags counts as failed: else one that lags and one that does not would agree on an old block.
        """
        for newest in sorted({pins[i].time for i in holders}, reverse=True):
            oldest = newest - self._allowance
            close = sum(oldest <= pins[i].time <= newest for i in holders)
            if close >= self._need and (candidate is None or candidate.time >= oldest):
                return newest
        return None

    async def _verify_time(self, reader: ChainReader, block: Block, cut_time: int) -> None:
        """Raise Garbage for a block after the cut, or one whose time contradicts the last block pinned.

        Where the last block is not canonical any more there is nothing to contradict: whoever pins follows the history.
        """
        last = self._last
        if block.time > cut_time:
            raise Garbage(self._row.name, f"block {block.height} is {block.time - cut_time} s after the cut")
        if last is None:
            return
        if (block.height > last.height and block.time < last.time) or (
            block.height < last.height and block.time > last.time
        ):
            with contextlib.suppress(Unavailable):
                if (await reader.block_at(last.height)).hash != last.hash:
                    return
            problem = f"block {block.height} at {block.time} contradicts block {last.height} at {last.time}"
            raise Garbage(self._row.name, f"{problem}, pinned before: time does not run backwards")

    def _no_pin(self, pins: Mapping[int, Block], failed: Mapping[int, SourceError]) -> SourceError:
        if failed and not pins and all(isinstance(e, WrongChain) for e in failed.values()):
            return WrongChain(self._row.name, self._shortfall("answer for this chain", failed))
        said = {i: f"pins {_shown(block)}" for i, block in pins.items()}
        newest = max((b.time for b in pins.values()), default=0)
        for i, block in pins.items():
            if newest - block.time > self._allowance:
                said[i] = f"stale at {_shown(block)}, {newest - block.time} s behind"
        forks = Counter(b.height for b in set(pins.values()))
        height, count = forks.most_common(1)[0] if forks else (0, 0)
        problem = self._shortfall("hold one final block", failed, said)
        if count < 2:
            return NoQuorum(self._row.name, problem)
        first, *_ = (b for _, b in sorted(pins.items()) if b.height == height)
        contrary = {i: b for i, b in pins.items() if b.height == height and b != first}
        self._report_blocks(first, contrary, agreed=False)
        return Disputed(self._row.name, problem)

    # --- read ------------------------------------------------------------------------------------------------------

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        """Read every venue at ``block`` through all providers and return what enough of them say.

        A position without agreement is a finding ``disputed`` on its account. Assets in dispute are left out, debts
        are taken at the highest amount that any provider claims; contracts are left out as ``debt-unreadable``.

        Raises:
            NoQuorum: fewer providers than needed can read the block.
        """
        if self._alone is not None:
            try:
                return await self._alone.read(block, subjects)
            except Contradicted as error:
                self._report_contradiction(0, error)
                raise

        async def ask(i: int) -> Reading:
            reading = await self._readers[i].read(block, subjects)
            if reading.block != block:
                raise Garbage(self._row.name, f"read at {_shown(reading.block)}, asked for {_shown(block)}")
            return reading

        readings, failed = await self._ask(ask, lambda seen: self._alike(seen) is not None, READ_SHARE, self._strangers)
        self._verify_enough(readings, failed, f"read block {block.height}")
        common = self._alike(readings)
        if common is not None and all(_same(r, common) for r in readings.values()):
            return common
        tables = {i: _table(reading) for i, reading in readings.items()}
        if self._row.family == "solana":
            common, tables = None, await self._reread(block, subjects, tables)
        agreed, disputed = self._settle(tables)
        self._report_all(block, tables, agreed, disputed)
        if common is not None:
            return common
        return self._conclude(block, agreed, disputed)

    async def _reread(self, block: Block, subjects: Sequence[Subject], tables: dict[int, Table]) -> dict[int, Table]:
        """Ask again about the accounts on which providers differ; return the tables with what they say then."""
        for _ in range(REREADS):
            one = tables[min(tables)]
            moved = {key[1] for key in _differing(tables, one)}
            wanted = [s for s in subjects if s.account in moved]
            if not wanted:
                break

            async def again(i: int, wanted: Sequence[Subject] = wanted) -> Table:
                return _table(await self._readers[i].read(block, wanted))

            seen, _ = await self._ask(again, lambda seen: False, REREAD_SHARE, among=list(tables))
            for i, table in seen.items():
                tables[i] = {key: rows for key, rows in tables[i].items() if key[1] not in moved} | dict(table)
        return tables

    def _alike(self, readings: Mapping[int, Reading]) -> Reading | None:
        """Return a reading that enough providers gave word for word, None if there is none."""
        for _, one in sorted(readings.items()):
            if sum(_same(one, other) for other in readings.values()) >= self._need:
                return one
        return None

    def _settle(
        self, tables: Mapping[int, Table]
    ) -> tuple[dict[tuple[str, ...], tuple[Row, ...]], dict[tuple[str, ...], dict[int, tuple[Row, ...]]]]:
        """Return what enough providers say by key, and what each says where too few agree."""
        agreed: dict[tuple[str, ...], tuple[Row, ...]] = {}
        disputed: dict[tuple[str, ...], dict[int, tuple[Row, ...]]] = {}
        for key in sorted({key for table in tables.values() for key in table}):
            said = {i: table.get(key, ()) for i, table in tables.items()}
            value, votes = Counter(said.values()).most_common(1)[0]
            if votes >= self._need:
                agreed[key] = value
            else:
                disputed[key] = said
        return agreed, disputed

    def _conclude(
        self,
        block: Block,
        agreed: Mapping[tuple[str, ...], tuple[Row, ...]],
        disputed: Mapping[tuple[str, ...], Mapping[int, tuple[Row, ...]]],
    ) -> Reading:
        rows = [row for rows in agreed.values() for row in rows]
        positions = [row for row in rows if isinstance(row, Position)]
        findings = {row for row in rows if isinstance(row, Finding)}
        frozen = next((row.cause for row in rows if isinstance(row, Frozen)), "")
        open_questions: dict[str, list[str]] = {}
        for key, said in disputed.items():
            if key == FROZEN_KEY:
                frozen = f"{FROZEN}: fewer than {self._need} of {len(self._readers)} providers agree on the sequencer"
                continue
            claims = [row for rows in said.values() for row in rows]
            noted = [row for row in claims if isinstance(row, Finding)]
            claimed = [row for row in claims if isinstance(row, Position)]
            if noted and noted[0].code in INFORMATIONAL:
                continue
            if noted:
                findings.update(noted)  # each can only take something away
                what = f"whether something is {noted[0].code}"
            else:
                contract = bool(claimed[0].contract.kind)
                what = f"{claimed[0].asset} at {claimed[0].venue}: " + ", ".join(
                    f"{self._names[i]} says {_sum(rows, contract)}" for i, rows in sorted(said.items())
                )
                if contract:  # neither end of a contract is the safe one: it may hedge, and either side may lose
                    findings.add(Finding(DEBT_UNREADABLE, key[1], what))
                    what += "; the account opens no risk meanwhile"
                elif claimed[0].side == "debt":
                    positions.append(max(claimed, key=lambda p: (p.amount, p)))
                    what += "; the highest counts"
                else:
                    what += "; it counts 0"
            open_questions.setdefault(key[1], []).append(what)
        for scope, questions in open_questions.items():
            more = f"; and {len(questions) - 1} more" if len(questions) > 1 else ""
            rule = f"{self._need} of {len(self._readers)} providers of {self._row.name} must agree"
            findings.add(Finding("disputed", scope, f"{questions[0]}{more}; {rule}"))
        return Reading(block, tuple(sorted(positions)), tuple(sorted(findings)), frozen=frozen)

    async def read_quotes(self, block: Block) -> tuple[Quote, ...]:
        """Read the chain's price feeds at ``block``; a feed on which too few providers agree is absent.

        Raises:
            NoQuorum: fewer providers than needed answer.
        """
        if self._alone is not None:
            return await self._alone.read_quotes(block)

        def enough(seen: Mapping[int, tuple[Quote, ...]]) -> bool:
            return bool(seen) and Counter(seen.values()).most_common(1)[0][1] >= self._need

        answers, failed = await self._ask(
            lambda i: self._readers[i].read_quotes(block), enough, READ_SHARE, self._strangers
        )
        self._verify_enough(answers, failed, f"read the feeds at block {block.height}")
        value, votes = Counter(answers.values()).most_common(1)[0]
        if votes == len(answers):
            return value
        tables = {i: _grouped((("quote", q.feed, q.source), q) for q in quotes) for i, quotes in answers.items()}
        agreed, disputed = self._settle(tables)
        self._report_all(block, tables, agreed, disputed)
        if votes >= self._need:
            return value
        return tuple(row for rows in agreed.values() for row in rows if isinstance(row, Quote))

    # --- check and close -------------------------------------------------------------------------------------------

    async def check(self) -> tuple[Finding, ...]:
        """Probe every provider with the methods really used, each under its own name, and then their agreement."""
        if self._alone is not None:
            return await self._alone.check()
        name = self._row.name

        async def probe(i: int) -> list[Finding]:
            def own(text: str) -> str:
                rest = text.removeprefix(name)  # an asset's id may begin with the same letters: "sol", "solana:…"
                named = text.startswith(name) and (not rest or rest.startswith((" ", ": ")))
                return self._names[i] + rest if named else text

            return [Finding(f.code, own(f.scope), own(f.detail)) for f in await self._readers[i].check()]

        findings = [f for found in await asyncio.gather(*map(probe, range(len(self._readers)))) for f in found]
        scope, rule = f"{name} quorum", f"{self._need} of {len(self._readers)} providers must agree"
        nobody = (Subject("0x" + "00" * 32, None),)
        try:
            block = await self.pin(2**62)
            height = block.height
            await asyncio.gather(self.read(block, nobody), self.read_quotes(block))
            await asyncio.gather(self.irreversible(), self.headers(height, height), self.changes(height, height))
        except SourceError as error:
            return (*findings, Finding("failed", scope, f"{rule}; {error.problem}"))
        out = "".join(f"; {who}: {why}" for who, why in self.failed.items())
        return (*findings, Finding("ok", scope, f"{rule}, and do on block {block.height}{out}"))

    async def close(self) -> None:
        """Close every provider's reader, whatever happens to one of them."""
        closed = await asyncio.gather(*(reader.close() for reader in self._readers), return_exceptions=True)
        for result in closed:
            if isinstance(result, BaseException):
                raise result

    # --- asking and telling ----------------------------------------------------------------------------------------

    async def _ask(
        self,
        ask: Callable[[int], Awaitable[T]],
        enough: Callable[[Mapping[int, T]], bool],
        share: float,
        excluded: Mapping[int, SourceError] | None = None,
        *,
        among: Sequence[int] | None = None,
    ) -> tuple[dict[int, T], dict[int, SourceError]]:
        """Ask providers at once; return the answers, and for every other provider why it has none.

        Waits for ``share`` of the chain's timeout, and from when ``enough`` is true of the answers only a little for
        the rest: their word is wanted as evidence, but nobody waits for a provider that hangs.
        """
        timeout, clock = self._row.timeout, asyncio.get_running_loop().time
        answers: dict[int, T] = {}
        failed = dict(excluded or {})
        asked = [i for i in (range(len(self._readers)) if among is None else among) if i not in failed]
        tasks: dict[asyncio.Future[T], int] = {asyncio.ensure_future(ask(i)): i for i in asked}
        begun, waiting, satisfied = clock(), set(tasks), False
        until = begun + share * timeout
        try:
            while waiting and (left := until - clock()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    try:
                        answers[tasks[task]] = task.result()
                    except SourceError as error:
                        failed[tasks[task]] = error
                        self._report_contradiction(tasks[task], error)
                    except Exception as error:  # one provider's bytes must not take the others down with it
                        problem = f"its answer cannot be handled ({type(error).__name__})"
                        failed[tasks[task]] = Garbage(self._row.name, problem)
                if not satisfied and enough(answers):
                    satisfied, until = True, min(until, clock() + GRACE_SHARE * timeout)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        for task in waiting:
            after = f" after {self._need} others had agreed" if satisfied else ""
            failed[tasks[task]] = NoQuorum(self._row.name, f"no answer in the time there was{after}")
        return answers, failed

    def _verify_enough(self, answers: Mapping[int, object], failed: Mapping[int, SourceError], what: str) -> None:
        if len(answers) < self._need:
            raise NoQuorum(self._row.name, self._shortfall(what, failed, dict.fromkeys(answers, "answers")))

    def _shortfall(self, what: str, failed: Mapping[int, SourceError], said: Mapping[int, str] | None = None) -> str:
        words = {**{i: error.problem for i, error in failed.items()}, **(said or {})}
        each = "; ".join(f"{self._names[i]}: {text}" for i, text in sorted(words.items()))
        return f"fewer than {self._need} of {len(self._readers)} providers {what}: {each}"

    def _report_all(
        self,
        block: Block,
        tables: Mapping[int, Table],
        agreed: Mapping[tuple[str, ...], tuple[Row, ...]],
        disputed: Mapping[tuple[str, ...], Mapping[int, tuple[Row, ...]]],
    ) -> None:
        """Put every provider on record that differs from what enough others say, or else from the first."""
        first = tables[min(tables)]
        expected = {key: rows for key, rows in agreed.items() if rows} | {k: first[k] for k in disputed if k in first}
        for i in sorted(tables):
            if differing := _differing({i: tables[i]}, expected):
                key = differing[0]
                said = (tables[i].get(key, ()), expected.get(key, ()))
                self._tell(block, tables, i, key, said, key not in disputed, len(differing))

    def _report_contradiction(self, who: int, error: SourceError) -> None:
        """Put a provider on record that its own state proof gives the lie, once: its reader does not ask it again."""
        if not isinstance(error, Contradicted) or who in self._caught:
            return
        self._caught.add(who)
        self._dispute(
            Dispute(
                chain=self._row.id,
                height=error.height,
                block=error.block,
                about=error.about,
                provider=self._names[who],
                others=("its own state proof",),
                agreed=True,
                field="amount",
                value=error.value,
                expected=error.proven,
                count=1,
                digests=(),
            )
        )

    def _report_blocks(self, held: Block, contrary: Mapping[int, Block], *, agreed: bool = True) -> None:
        """Put every provider on record that holds another block at the height of ``held``."""
        key = ("block", str(held.height))
        tables: dict[int, Table] = {i: {key: (block,)} for i, block in contrary.items()}
        for i, block in sorted(contrary.items()):
            self._tell(held, tables, i, key, ((block,), (held,)), agreed, 1)

    def _tell(
        self,
        block: Block,
        tables: Mapping[int, Table],
        who: int,
        key: tuple[str, ...],
        said: tuple[tuple[Row, ...], tuple[Row, ...]],
        agreed: bool,
        count: int,
    ) -> None:
        field, value, expected = _difference(*said)
        self._dispute(
            Dispute(
                chain=self._row.id,
                height=block.height,
                block=block.hash,
                about=" ".join(part for part in key if part),
                provider=self._names[who],
                others=tuple(self._names[i] for i, table in sorted(tables.items()) if table.get(key, ()) == said[1]),
                agreed=agreed,
                field=field,
                value=value[:TEXT_LIMIT],
                expected=expected[:TEXT_LIMIT],
                count=count,
                digests=tuple((self._names[i], _digest(table)) for i, table in sorted(tables.items())),
            )
        )


def _shown(block: Block) -> str:
    return f"block {block.height} ({block.hash[:10]}…)"


def _same(one: Reading, other: Reading) -> bool:
    return one is other or (one.positions, one.findings, one.frozen) == (other.positions, other.findings, other.frozen)


def _grouped(rows: Iterable[tuple[tuple[str, ...], Row]]) -> dict[tuple[str, ...], tuple[Row, ...]]:
    table: dict[tuple[str, ...], tuple[Row, ...]] = {}
    for key, row in rows:
        table[key] = (*table[key], row) if key in table else (row,)
    return {key: rows if len(rows) == 1 else tuple(sorted(rows)) for key, rows in table.items()}


def _table(reading: Reading) -> Table:
    """Return a reading by what each row is about; the second part of every key is the account or other scope."""
    positions = (
        (("position", p.account, p.chain, p.venue, p.asset, p.side, p.netting, p.address, p.origin), p)
        for p in reading.positions
    )
    findings = ((("finding", f.scope, f.code), f) for f in reading.findings)
    frozen = [(FROZEN_KEY, Frozen(reading.frozen))] if reading.frozen else []
    return _grouped([*positions, *findings, *frozen])


def _sum(rows: tuple[Row, ...], contract: bool) -> int:
    """Return how much of one thing a provider claims, in base units: of contracts their size."""
    return sum(row.quantity if contract else row.amount for row in rows if isinstance(row, Position))


def _differing(tables: Mapping[int, Table], expected: Table) -> list[tuple[str, ...]]:
    """Return the keys at which one of ``tables`` differs from ``expected``, ascending."""
    return sorted(
        {k for t in tables.values() for k in t.keys() | expected.keys() if t.get(k, ()) != expected.get(k, ())}
    )


def _difference(value: tuple[Row, ...], expected: tuple[Row, ...]) -> tuple[str, str, str]:
    """Return the first field in which two answers differ, and what each says."""
    for one, other in zip(value, expected, strict=False):
        for name, mine, theirs in zip(getattr(one, "_fields", ()), one, other, strict=True):
            if mine != theirs:
                return name, str(mine), str(theirs)
    return "presence", str(len(value)) if value else "absent", str(len(expected)) if expected else "absent"


def _digest(table: Table) -> str:
    return hashlib.sha256(repr(sorted(table.items())).encode()).hexdigest()
