"""Who changed on an EVM chain, as its logs tell over a websocket: hints that save reading everybody in every epoch.

A log names those it concerns in the 32-byte words of its topics and data, addresses padded on the left. The watcher
remembers words by height, follows the heads to know how far it has seen everything, and asks for the logs it missed
while it was away (``eth_getLogs``). Native coins move without logs. A wrong or missing hint costs freshness, never a
number: everybody is read anew in turn anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from adapters.evm.reader import decode_block, decode_log_words
from aggregator.domain.errors import Garbage, NodeRefused, Unavailable, WrongChain
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import Block, Subject

WORD_LIMIT = 200_000  # remembered at once; then the oldest heights are dropped
GAP_LIMIT = 5_000  # blocks asked for after an absence; a longer one starts over
CHUNK = 1_000  # blocks per eth_getLogs
REORG_WINDOW = 128  # blocks asked for again when a head does not continue the last one
SILENCE_BLOCKS, SILENCE_SECONDS = 20, 30.0
"""After so many block times without a head, at least so many seconds, a connection counts as dead."""
UNKNOWN = -1


class Session(Protocol):
    """What the watcher needs of ``adapters.ws.Session``."""

    async def call(self, method: str, params: Sequence[object]) -> Any: ...

    async def next(self, timeout: float) -> Any: ...


class Socket(Protocol):
    """What the watcher needs of ``adapters.ws.WsEndpoint``."""

    async def keep(self, follow: Callable[[Any], Awaitable[None]]) -> None: ...


class EvmWatcher:
    """Implements :class:`aggregator.ports.Watcher` over one websocket at a time.

    Args:
        row: the chain.
        socket: its websockets.
        contracts: addresses (0x, any case) whose logs matter: tokens, vaults, lenders, pools.
    """

    def __init__(
        self, row: ChainRow, socket: Socket, contracts: Sequence[str], *, word_limit: int = WORD_LIMIT
    ) -> None:
        self._row, self._socket, self._word_limit = row, socket, word_limit
        self._contracts = sorted({contract.lower() for contract in contracts})
        self._watched = frozenset(self._contracts)
        self._marks: dict[int, set[str]] = {}
        self._count = 0  # of words in all marks
        self._after, self._covered = UNKNOWN, 0  # every log of (after, covered] has been seen
        self._head: Block | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen; what is wrong with the connection is logged, and it is tried again for ever."""
        if self._task is None:
            self._task = asyncio.create_task(self._socket.keep(self._follow))

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def watch(self, subjects: Sequence[Subject]) -> None:
        """Note whom the hints are for; logs name everybody, so nothing is to do."""

    def covered(self) -> int:
        """Return the height up to which every log has been seen, 0 while that is not known."""
        return self._covered

    def words(self, after: int, upto: int) -> frozenset[str] | None:
        """Return the words in logs of (after, upto], 0x and lower case; None where not all of them were seen."""
        if not 0 <= self._after <= after <= upto <= self._covered:
            return None
        return frozenset().union(*(words for height, words in self._marks.items() if after < height <= upto))

    def forget(self, upto: int) -> None:
        """Drop what was told up to this height; asking for it gives None from now on."""
        if self._after != UNKNOWN:
            self._drop(min(upto, self._covered))

    def _drop(self, upto: int) -> None:
        self._after = max(self._after, upto)
        for height in [h for h in self._marks if h <= self._after]:
            self._count -= len(self._marks.pop(height))

    def _note(self, height: int, words: set[str], known: set[str]) -> None:
        """Remember words of a height; where it may have been given out already, those not ``known`` count later too."""
        late = words - known if height <= self._covered else set()
        if height > self._after:
            self._mark(height, words)
        if late:
            self._mark(self._covered + 1, late)

    def _mark(self, height: int, words: set[str]) -> None:
        marked = self._marks.setdefault(height, set())
        self._count -= len(marked)
        marked |= words
        self._count += len(marked)
        while self._count > self._word_limit:
            self._drop(min(self._marks))

    # --- the connection --------------------------------------------------------------------------------------------

    async def _follow(self, session: Session) -> None:
        """Listen until the connection ends, which raises SourceError."""
        chain = await session.call("eth_chainId", [])
        if not isinstance(chain, str) or f"eip155:{_quantity(self._row.name, chain)}" != self._row.id:
            raise WrongChain(self._row.name, f"the websocket answers for chain id {str(chain)[:20]}")
        heads = await session.call("eth_subscribe", ["newHeads"])
        logs = await session.call("eth_subscribe", ["logs", {"address": self._contracts}]) if self._contracts else ""
        # From here on nothing new is missed. What came before, while nobody listened, is asked for.
        head = decode_block(self._row.id, self._row.name, await session.call("eth_getBlockByNumber", ["latest", False]))
        await self._catch_up(session, head)
        silence = max(SILENCE_SECONDS, SILENCE_BLOCKS * self._row.block_seconds)
        while True:
            told = await session.next(silence)
            if told.subscription == logs and logs:
                self._take_log(told.result)
            elif told.subscription == heads:
                await self._take_head(session, decode_block(self._row.id, self._row.name, told.result))

    async def _catch_up(self, session: Session, head: Block) -> None:
        """Make (after, head] known: by asking for what is missing, or by starting over at ``head``."""
        if self._after == UNKNOWN or not self._after <= head.height <= self._covered + GAP_LIMIT:
            self._start_over(head)
            return
        # Blocks already seen may have been replaced meanwhile.
        first = max(self._after, min(self._covered, head.height) - REORG_WINDOW) + 1
        try:
            await self._backfill(session, first, head.height)
        except (NodeRefused, Unavailable, Garbage):  # it does not give its logs, and will not at the next try
            self._start_over(head)
            return
        self._covered, self._head = head.height, head

    def _start_over(self, head: Block) -> None:
        self._marks.clear()
        self._count = 0
        self._after = self._covered = head.height
        self._head = head

    async def _backfill(self, session: Session, first: int, last: int) -> None:
        for low in range(first, last + 1, CHUNK):
            high = min(last, low + CHUNK - 1)
            question = {"fromBlock": hex(low), "toBlock": hex(high), "address": self._contracts}
            if self._contracts:
                for height, words in self._decode(await session.call("eth_getLogs", [question]), low, high):
                    self._note(height, words, self._marks.get(height, set()))

    async def _take_head(self, session: Session, head: Block) -> None:
        last = self._head
        if last is not None and head.hash == last.hash:
            return
        if last is not None and head.parent == last.hash:
            # Nodes tell heads and logs side by side: those of the block before are surely through.
            self._covered = max(self._covered, last.height)
            self._head = head
            return
        # A head was left out, or history changed: logs of blocks seen before may be others now.
        await self._catch_up(session, head)

    def _take_log(self, log: Any) -> None:
        if isinstance(log, dict) and log.get("removed") is True:
            log = log | {"removed": False}  # undone by a reorganisation: whom it named has changed again
        highest = (self._head.height if self._head else 0) + GAP_LIMIT
        for height, words in self._decode([log], 0, highest):
            self._note(height, words, set())

    def _decode(self, logs: Any, first: int, last: int) -> list[tuple[int, set[str]]]:
        if not isinstance(logs, list):
            raise Garbage(self._row.name, "eth_getLogs is not a list")
        decoded = []
        for log in logs:
            words = decode_log_words(self._row.name, [log], self._watched, first, last)
            decoded.append((_quantity(self._row.name, log["blockNumber"]), words))
        return decoded


def _quantity(name: str, value: str) -> int:
    try:
        return int(value, 16)
    except ValueError:
        raise Garbage(name, "a quantity that is none") from None
