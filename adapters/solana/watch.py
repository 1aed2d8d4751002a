"""Who changed on Solana, as account subscriptions tell over a websocket at the finalized commitment.

Two kinds of accounts are watched. For every linked address: the address itself and its associated token accounts of the
configured mints, each by ``accountSubscribe``; a change names the address. For the accounts themselves: all holdings of
the configured vaults' programs, and what registries' programs store of each account, by ``programSubscribe``; a change
names the 32-byte fields of what changed, the account id among them. So the words are what
:class:`aggregator.ports.Watcher` promises: an account id, or the 32 bytes of a linked address, as 0x hex.

Heights are slots. What changed while nobody listened cannot be asked for, so after every connection everybody counts as
changed once. Nodes tell roots and accounts side by side: a slot counts as covered when the next root was told, which
makes a hint that comes late unlikely, and a hint that is lost costs freshness, never a number.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from solders.pubkey import Pubkey

from adapters.solana.programs import HOLDING_SIZE, MARGIN_SIZE
from adapters.solana.spl_token import associated_address
from aggregator.domain.errors import Garbage
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import Subject

KEY_LIMIT = 10_000  # accounts subscribed to one by one; with more, nothing is covered
WORD_LIMIT = 200_000  # remembered at once; then the oldest slots are dropped
AT_ONCE = 100  # subscriptions asked for at a time
SILENCE_SECONDS = 30.0  # without a root, after which a connection counts as dead
FINALIZED = {"commitment": "finalized", "encoding": "base64"}
UNKNOWN = -1


class Session(Protocol):
    """What the watcher needs of ``adapters.ws.Session``."""

    async def call(self, method: str, params: Sequence[object]) -> Any: ...

    async def next(self, timeout: float) -> Any: ...

    def nudge(self) -> None: ...


class Socket(Protocol):
    """What the watcher needs of ``adapters.ws.WsEndpoint``."""

    async def keep(self, follow: Callable[[Any], Awaitable[None]]) -> None: ...


class SolanaWatcher:
    """Implements :class:`aggregator.ports.Watcher` over one websocket at a time.

    Args:
        row: the chain.
        socket: its websockets.
        programs: vault programs, base58.
        mints: configured SPL mints, base58.
        registries: registry programs, base58.
    """

    def __init__(
        self,
        row: ChainRow,
        socket: Socket,
        programs: Sequence[str],
        mints: Sequence[str],
        *,
        registries: Sequence[str] = (),
        word_limit: int = WORD_LIMIT,
        key_limit: int = KEY_LIMIT,
    ) -> None:
        self._row, self._socket = row, socket
        told = {(program, HOLDING_SIZE) for program in programs} | {(program, MARGIN_SIZE) for program in registries}
        self._programs, self._mints = sorted(told), sorted(set(mints))
        self._word_limit, self._key_limit = word_limit, key_limit
        self._wanted: dict[str, str] = {}  # account key -> the word it stands for
        self._unheard: dict[str, str] = {}  # those of them that are not subscribed to yet
        self._addresses: set[str] = set()
        self._marks: dict[int, set[str]] = {}
        self._count = 0
        self._after, self._covered, self._root = UNKNOWN, 0, 0
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen; a connection that ends is opened again for ever."""
        if self._task is None:
            self._task = asyncio.create_task(self._socket.keep(self._follow))

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def watch(self, subjects: Iterable[Subject]) -> None:
        """Watch the accounts of these subjects' addresses too; until that has begun they count as changed."""
        new = {s.address for s in subjects if s.address is not None} - self._addresses
        if not new:
            return
        self._addresses |= new
        for address in sorted(new):
            word = "0x" + bytes(Pubkey.from_string(address)).hex()
            keys = (address, *(associated_address(address, mint) for mint in self._mints))
            self._wanted |= dict.fromkeys(keys, word)
            self._unheard |= dict.fromkeys(keys, word)
        if self._session is not None:
            self._session.nudge()

    def covered(self) -> int:
        """Return the slot up to which every change has been seen, 0 while that is not known."""
        return 0 if len(self._wanted) > self._key_limit else self._covered

    def words(self, after: int, upto: int) -> frozenset[str] | None:
        """Return the words of what changed in (after, upto]; None where not everything was seen."""
        if not 0 <= self._after <= after <= upto <= self.covered():
            return None
        told = (words for slot, words in self._marks.items() if after < slot <= upto)
        return frozenset(self._unheard.values()).union(*told)

    def forget(self, upto: int) -> None:
        """Drop what was told up to this slot; asking for it gives None from now on."""
        if self._after != UNKNOWN:
            self._drop(min(upto, self._covered))

    def _drop(self, upto: int) -> None:
        self._after = max(self._after, upto)
        for slot in [slot for slot in self._marks if slot <= self._after]:
            self._count -= len(self._marks.pop(slot))

    def _mark(self, slot: int, words: Iterable[str]) -> None:
        marked = self._marks.setdefault(slot, set())
        self._count -= len(marked)
        marked.update(words)
        self._count += len(marked)
        while self._count > self._word_limit:
            self._drop(min(self._marks))

    # --- the connection --------------------------------------------------------------------------------------------

    async def _follow(self, session: Session) -> None:
        """Listen until the connection ends, which raises SourceError."""
        self._after, self._covered, self._root, self._count = UNKNOWN, 0, 0, 0
        self._marks.clear()
        accounts: dict[str | int, str] = {}
        self._unheard = dict(self._wanted)
        holdings: set[str | int] = set()
        self._session = session
        try:
            for program, size in self._programs:
                config = FINALIZED | {"filters": [{"dataSize": size}]}
                holdings.add(await session.call("programSubscribe", [program, config]))
            await self._subscribe(session, accounts)
            roots = await session.call("rootSubscribe", [])  # last, so that nothing is missed after the first root
            while True:
                if self._unheard and len(self._wanted) <= self._key_limit:
                    fresh = await self._subscribe(session, accounts)
                    self._mark(self._root + 1, fresh)  # they may have changed before anybody listened
                told = await session.next(SILENCE_SECONDS)
                if told.subscription == roots:
                    self._take_root(told.result)
                elif told.subscription in accounts:
                    self._mark(self._slot(told.result), {self._wanted[accounts[told.subscription]]})
                elif told.subscription in holdings:
                    self._mark(self._slot(told.result), self._fields(told.result))
        finally:
            self._session = None

    async def _subscribe(self, session: Session, accounts: dict[str | int, str]) -> set[str]:
        """Subscribe to accounts that are wanted and not yet listened to; return their words."""

        async def subscribe(key: str) -> None:
            accounts[await session.call("accountSubscribe", [key, FINALIZED])] = key

        keys = list(self._unheard) if len(self._wanted) <= self._key_limit else []
        for start in range(0, len(keys), AT_ONCE):
            await asyncio.gather(*(subscribe(key) for key in keys[start : start + AT_ONCE]))
        return {self._unheard.pop(key) for key in keys}

    def _take_root(self, root: Any) -> None:
        if not isinstance(root, int) or root < 0:
            raise Garbage(self._row.name, "the websocket told a root that is no slot")
        if self._after == UNKNOWN:
            self._after = self._covered = root
        else:
            self._covered = max(self._covered, min(self._root, root))
        self._root = max(self._root, root)

    def _slot(self, result: Any) -> int:
        try:
            slot = result["context"]["slot"]
        except (KeyError, TypeError):
            slot = None
        if not isinstance(slot, int) or slot < 0:
            raise Garbage(self._row.name, "the websocket told a change without its slot")
        # Told after the slot counted as covered: it counts where it can still be asked for.
        return max(slot, self._covered + 1)

    def _fields(self, result: Any) -> set[str]:
        """Return the 32-byte fields of a record, all aligned to 8 bytes; which is which need not be known."""
        try:
            data = base64.b64decode(result["value"]["account"]["data"][0], validate=True)
        except (KeyError, TypeError, IndexError, binascii.Error):
            raise Garbage(self._row.name, "the websocket told an account without its data") from None
        return {"0x" + data[i : i + 32].hex() for i in range(0, min(len(data), MARGIN_SIZE) - 31, 8)}
