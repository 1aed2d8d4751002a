"""One node of one Solana chain, read at the finalized commitment.

Solana nodes serve no past state: a read answers at the node's newest finalized slot. The pinned slot is therefore a
lower bound, sent as ``minContextSlot``, and its time is what ages the reading, so that a node that lags is refused
and what is newer than the Cut is never taken for younger than it is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from solders.pubkey import Pubkey

from adapters.members import withhold
from adapters.solana.layouts import Answers, Batch, Flow, RawAccount
from adapters.solana.members import Members
from aggregator.domain.errors import Garbage, SourceError, Unavailable, WrongChain
from aggregator.domain.price import Quote
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import Block, Finding, Reading, Subject

KEYS_PER_CALL = 100
READS = 4  # of one round, until all its requests are answered at one slot
MAX_STEPS_BACK = 64
NOBODY = str(Pubkey(hashlib.sha256(b"crossmargin: a wallet without a key").digest()))
"""An address that a check reads as a wallet: no key is known of it, so that no program can ever be made its owner."""
FINALIZED, CONFIRMED = {"commitment": "finalized"}, {"commitment": "confirmed"}


R = TypeVar("R")


class Endpoint(Protocol):
    """What the reader needs of ``adapters.rpc.SolanaEndpoint``."""

    async def call(self, method: str, params: Sequence[object]) -> Any: ...

    async def close(self) -> None: ...


class SolanaAdapter(Protocol):
    """A protocol adapter on Solana: a generator of account addresses, sans I/O."""

    @property
    def name(self) -> str: ...

    @property
    def keyed_by(self) -> str: ...

    def flow(self, subjects: Sequence[Subject]) -> Flow: ...


def _is_number(value: object) -> bool:
    """Say whether ``value`` is an unsigned 64-bit number: JSON gives booleans, and integers of any size and sign."""
    return type(value) is int and 0 <= value < 2**64


class SolanaReader:
    """Implements :class:`aggregator.ports.ChainReader` over one endpoint."""

    def __init__(
        self, row: ChainRow, endpoint: Endpoint, adapters: Sequence[SolanaAdapter], members: Members | None = None
    ) -> None:
        self._row, self._endpoint, self._adapters = row, endpoint, tuple(adapters)
        self._members = members or Members(None)
        self._identified = False
        self._lag: float | None = None

    @property
    def row(self) -> ChainRow:
        """The chain's configuration."""
        return self._row

    async def verify_identity(self) -> None:
        """Raise WrongChain unless the genesis hash is the configured one."""
        genesis = await self._endpoint.call("getGenesisHash", [])
        if genesis != self._row.genesis or self._row.id != f"solana:{str(genesis)[:32]}":
            raise WrongChain(self._row.name, f"the node's genesis is {genesis}, configured is {self._row.genesis}")
        self._identified = True

    async def _block(self, slot: int) -> Block | None:
        """Return the finalized block in ``slot``, None where the slot was skipped."""
        config = FINALIZED | {"transactionDetails": "none", "rewards": False, "maxSupportedTransactionVersion": 0}
        try:
            body = await self._endpoint.call("getBlock", [slot, config])
        except Unavailable:
            return None
        if body is None:
            return None
        try:
            block_hash, parent, time = body["blockhash"], body["previousBlockhash"], body["blockTime"]
            if not (isinstance(block_hash, str) and isinstance(parent, str) and _is_number(time)):
                raise TypeError
        except (KeyError, TypeError):
            problem = f"block {slot} without well-formed blockhash, previousBlockhash and blockTime"
            raise Garbage(self._row.name, problem) from None
        return Block(self._row.id, slot, block_hash, parent, time)

    async def _slot(self, commitment: Mapping[str, str] = FINALIZED) -> int:
        slot = await self._endpoint.call("getSlot", [commitment])
        if not _is_number(slot):
            raise Garbage(self._row.name, "getSlot is not a number")
        return int(slot)

    async def pin(self, cut_time: int) -> Block:
        """Return the last finalized block with time ≤ ``cut_time``."""
        if not self._identified:
            await self.verify_identity()
        slot, head = await asyncio.gather(self._slot(), self._slot(CONFIRMED))
        self._lag = max(0, head - slot) * self._row.block_seconds
        for _ in range(MAX_STEPS_BACK):
            block = await self._block(slot)
            if block is not None and block.time <= cut_time:
                return block
            back = 1 if block is None else max(1, math.floor((block.time - cut_time) / self._row.block_seconds / 2))
            slot = max(0, slot - back)
        raise Unavailable(self._row.name, f"no finalized block at or before {cut_time} within {MAX_STEPS_BACK} steps")

    async def block_at(self, height: int) -> Block:
        """Return the finalized block in slot ``height``.

        Raises:
            Unavailable: the slot was skipped, or is not finalized here.
        """
        block = await self._block(height)
        if block is None:
            raise Unavailable(self._row.name, f"no finalized block in slot {height}")
        return block

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        """Return the finalized blocks in slots ``first`` and ``last``: slots between may be empty, and need no proof.

        Raises:
            Garbage: time runs backwards, or neighbours do not link. ValueError: ``first`` is above ``last``.
            Unavailable: a slot was skipped, or is not finalized here.
        """
        if not 0 <= first <= last:
            raise ValueError(f"first: {first} to {last} is no range of slots")
        if first == last:
            return (await self.block_at(first),)
        one, other = await asyncio.gather(self.block_at(first), self.block_at(last))
        if other.time < one.time:
            raise Garbage(self._row.name, f"slot {last} is {one.time - other.time} s before slot {first}")
        if last == first + 1 and other.parent != one.hash:
            raise Garbage(self._row.name, f"slot {last} does not link to slot {first}")
        return one, other

    async def irreversible(self) -> Block:
        """Return the newest finalized block: what more than two thirds of the stake voted on for good."""
        slot = await self._slot()
        for _ in range(MAX_STEPS_BACK):
            block = await self._block(slot)
            if block is not None or slot == 0:
                break
            slot -= 1
        if block is None:
            raise Unavailable(self._row.name, f"no finalized block within {MAX_STEPS_BACK} slots")
        return block

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        """Return None: no log tells what changed here; subscriptions may."""
        return None

    @property
    def finality_lag(self) -> float | None:
        """Seconds that the slots between the confirmed and the finalized one take, None before the first pin."""
        return self._lag

    async def _accounts(self, keys: Sequence[str], least_slot: int) -> tuple[int, list[RawAccount | None]]:
        config = FINALIZED | {"encoding": "base64", "minContextSlot": least_slot}
        answer = await self._endpoint.call("getMultipleAccounts", [list(keys), config])
        try:
            slot, rows = answer["context"]["slot"], answer["value"]
            if not (_is_number(slot) and isinstance(rows, list)) or len(rows) != len(keys):
                raise TypeError
            if slot < least_slot:
                raise Garbage(self._row.name, f"read at slot {slot}, asked for {least_slot} or later")
            return slot, [None if row is None else self._account(row) for row in rows]
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise Garbage(self._row.name, f"getMultipleAccounts is not {len(keys)} accounts in base64") from None

    @staticmethod
    def _account(row: Any) -> RawAccount:
        text, encoding = row["data"]
        lamports, owner = row["lamports"], row["owner"]
        if encoding != "base64" or not isinstance(owner, str) or not _is_number(lamports):
            raise TypeError
        return RawAccount(lamports, owner, base64.b64decode(text, validate=True))

    async def _fetch(self, keys: Sequence[str], least_slot: int) -> dict[str, RawAccount | None]:
        unique = list(dict.fromkeys(keys))
        chunks = [unique[i : i + KEYS_PER_CALL] for i in range(0, len(unique), KEYS_PER_CALL)]
        for _ in range(READS):
            answers = await asyncio.gather(*(self._accounts(chunk, least_slot) for chunk in chunks))
            slots = {slot for slot, _ in answers}
            if len(slots) <= 1:
                return dict(zip(unique, (a for _, chunk in answers for a in chunk), strict=True))
            # Tokens that moved between two slots would be seen twice, or not at all.
            least_slot = max(slots)
        raise Unavailable(self._row.name, f"{READS} times, {len(chunks)} requests were not answered at one slot")

    async def _drive(self, block: Block, flows: Sequence[Generator[Batch, Answers, R]]) -> list[R]:
        """Drive generators in lockstep until all have returned; equal keys of a round are read once."""
        results: dict[int, R] = {}
        waiting: dict[int, tuple[str, ...]] = {}

        def resume(i: int, answers: tuple[RawAccount | None, ...] | None) -> None:
            try:
                waiting[i] = next(flows[i]) if answers is None else flows[i].send(answers)
            except StopIteration as stop:
                results[i] = stop.value

        for i in range(len(flows)):
            resume(i, None)
        while waiting:
            asked = dict(waiting)
            waiting.clear()
            found = await self._fetch([k for keys in asked.values() for k in keys], block.height)
            for i, keys in asked.items():
                resume(i, tuple(found[k] for k in keys))
        return [results[i] for i in range(len(flows))]

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        """Read every venue of this chain for ``subjects``, at ``block``'s slot or later."""
        results = await self._drive(
            block,
            [a.flow([s for s in subjects if (s.address is None) == (a.keyed_by == "account")]) for a in self._adapters],
        )
        # Looked up after the positions: who took its consent back in between holds nothing by it.
        (unverified,) = await self._drive(block, [self._members.flow(subjects)])
        positions, withheld = withhold([p for found, _ in results for p in found], unverified)
        return Reading(block, positions, (*(f for _, found in results for f in found), *withheld))

    async def read_quotes(self, block: Block) -> tuple[Quote, ...]:
        """Return nothing: no price feed is read from this chain yet."""
        return ()

    async def check(self) -> tuple[Finding, ...]:
        """Probe identity, finality and a read of every venue, each reported on its own."""
        row, findings = self._row, []
        try:
            await self.verify_identity()
            slot = await self._slot()
            block = await self._block(slot)
            if block is None:
                raise Unavailable(row.name, f"the finalized slot {slot} has no block")
            findings.append(Finding("ok", row.name, f"chain {row.id}, finalized slot {slot}"))
        except SourceError as error:
            return (Finding("failed", row.name, str(error)),)
        try:
            await asyncio.gather(self.headers(slot, slot), self.irreversible(), self._slot(CONFIRMED))
            findings.append(Finding("ok", f"{row.name} finality", row.finality_text))
        except SourceError as error:
            findings.append(Finding("failed", f"{row.name} finality", str(error)))
        nobody = (Subject("0x" + "00" * 32, None), Subject("0x" + "00" * 32, NOBODY))
        for adapter in self._adapters:
            asked = [s for s in nobody if (s.address is None) == (adapter.keyed_by == "account")]
            scope = f"{row.name} {adapter.name}"
            try:
                ((_, found),) = await self._drive(block, [adapter.flow(asked)])
                findings.append(Finding("failed" if found else "ok", scope, found[0].detail if found else "readable"))
            except SourceError as error:
                findings.append(Finding("failed", scope, str(error)))
        return tuple(findings)

    async def close(self) -> None:
        """Close the endpoint."""
        await self._endpoint.close()
