"""What one party remembers of one chain: the newest reading of every account, and what was certified.

A reading is *merged*: accounts that were not read anew at its block are *carried* from the older block at which they
were. Their positions say so (``Position.seen``) and keep that block's age.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import filterfalse

from aggregator.domain.snapshot import (
    DEBT_UNREADABLE,
    REORGED,
    Account,
    Block,
    Carried,
    ChainView,
    Reading,
    Reorg,
    Subject,
)
from proofs.links import parse_caip10

PINS = 4096
"""How many pinned blocks are kept until they are irreversible."""
CERTIFIED = 64
"""How many certified blocks are known, any of which a Cut may name as replaced."""
REMEMBERED = 3
"""How many readings per chain a party can go back to while the chain does not answer."""


Anew = tuple[Collection[str], int]
"""The accounts that a reading read at its own block, and how many positions they have, which come first."""


def subjects_on(chain: str, accounts: Iterable[Account], seals: Mapping[str, str]) -> tuple[Subject, ...]:
    """Return whom to read on ``chain``: every account itself, and every linked address of that chain.

    Args:
        seals: by CAIP-10, what shows on chain that a member without a key still agrees.
    """
    prefix, keyed, linked = f"{chain}:", [], []
    for account in accounts:
        keyed.append(Subject(account.id, None))
        linked += [
            Subject(account.id, link.removeprefix(prefix), seals.get(link, ""))
            for link in account.links
            if link.startswith(prefix)
        ]
    return (*keyed, *linked)


def read_anew(reading: Reading) -> set[str]:
    """Return the accounts that were read at the reading's own block."""
    return {s.account for s in reading.subjects or ()}.difference(*(c.accounts for c in reading.carried))


def last_read(reading: Reading) -> dict[str, Block]:
    """Return the block at which each account was last read."""
    blocks = dict.fromkeys((s.account for s in reading.subjects or ()), reading.block)
    for block, accounts in reading.carried:
        blocks.update(dict.fromkeys(accounts, block))
    return blocks


def carry(
    fresh: Reading,
    older: Reading,
    known: Collection[str],
    *,
    anew: Anew | None = None,
    subjects: tuple[Subject, ...] | None = None,
) -> Reading:
    """Merge into ``fresh`` what ``older`` says of all accounts but ``known``, as it was last read there.

    With most accounts carried an epoch's time goes here, so that whatever can stay as it is stays.

    Args:
        fresh: with ``subjects``; may carry already.
        known: accounts of which ``fresh`` holds what counts, or that are not wanted.
        anew: what ``older`` read at its own block, where that is known.
        subjects: whom both cover, where that is known.
    """
    now, then = fresh.block.height, older.block.height
    left_out = known if isinstance(known, set | frozenset) else frozenset(known)
    groups = {c.block: c.accounts for c in fresh.carried}
    for block, accounts in ((older.block, sorted(read_anew(older) if anew is None else anew[0])), *older.carried):
        if block.height != now and (kept := tuple(filterfalse(left_out.__contains__, accounts))):
            groups[block] = tuple(sorted((*groups[block], *kept))) if block in groups else kept
    if anew is None or now == then or any(c.block.height == now for c in older.carried):
        seen = {0: 0 if now == then else then, now: 0}
        held = [p._replace(seen=seen.get(p.seen, p.seen)) for p in older.positions if p.account not in left_out]
    else:
        own, rest = older.positions[: anew[1]], older.positions[anew[1] :]
        held = [p._replace(seen=then) for p in own if p.account not in left_out]
        held += [p for p in rest if p.account not in left_out]
    # Findings about a chain or an asset belong to the block they were made at; those about an account go with it.
    about = covered_by(older) if older.findings else frozenset[str]()
    findings = (f for f in older.findings if (scope := f.scope.partition(" ")[0]) in about and scope not in left_out)
    if subjects is None:
        subjects = (*(fresh.subjects or ()), *(s for s in older.subjects or () if s.account not in left_out))
    return replace(
        fresh,
        positions=(*fresh.positions, *held),
        findings=(*fresh.findings, *findings),
        subjects=subjects,
        carried=tuple(Carried(block, groups[block]) for block in sorted(groups, key=lambda b: b.height)),
    )


def covered_by(reading: Reading) -> frozenset[str]:
    """Return the accounts that the reading covers."""
    return frozenset(s.account for s in reading.subjects or ())


def part_of(reading: Reading, block: Block) -> Reading:
    """Return only what ``reading`` read at ``block``, as if nothing else were known: what the store keeps per block."""
    if block == reading.block:
        mine = read_anew(reading)
    else:
        mine = {account for c in reading.carried if c.block == block for account in c.accounts}
    return replace(
        reading,
        block=block,
        positions=tuple(p._replace(seen=0) for p in reading.positions if p.account in mine),
        findings=tuple(f for f in reading.findings if block == reading.block or f.scope.partition(" ")[0] in mine),
        subjects=tuple(s for s in reading.subjects or () if s.account in mine),
        quotes=reading.quotes if block == reading.block else (),
        carried=(),
    )


def restore(parts: Sequence[Reading]) -> Reading:
    """Merge what the store kept of one chain, by block; of every account the newest part counts."""
    merged, *others = sorted(parts, key=lambda part: -part.block.height)
    for part in others:
        merged = carry(merged, part, covered_by(merged))
    return merged


class Roster:
    """Whom to read on one chain, indexed: an epoch in which nobody's links change does not look at everybody.

    Attributes:
        accounts: by id.
        subjects: by account id. A new mapping whenever anything in it changes.
        everybody: all of them, in the order of :func:`subjects_on`.
        unsure: accounts of whom no log tells enough. What a contract answers can change without one, and whether
            nothing is owed any more by a link that ends must not be an old answer.
    """

    def __init__(self, chain: str) -> None:
        self._chain = chain
        self._known: tuple[tuple[Account, ...], Mapping[str, str]] = ((), {})
        self.everybody: tuple[Subject, ...] = ()
        self.accounts: Mapping[str, Account] = {}
        self.subjects: Mapping[str, tuple[Subject, ...]] = {}
        self._named: Mapping[str, tuple[str, ...]] = {}
        self._sampled: list[list[str]] = []
        self.unsure: frozenset[str] = frozenset()

    def update(self, accounts: Sequence[Account], seals: Mapping[str, str]) -> None:
        """Take over the accounts as they are now."""
        known = tuple(accounts), dict(seals)
        if known == self._known:
            return
        before, named = self.subjects, dict[str, tuple[str, ...]]()
        subjects = {account.id: subjects_on(self._chain, (account,), seals) for account in accounts}
        for account in accounts:
            for word in words_of(self._chain, account):
                named[word] = (*named.get(word, ()), account.id)
        self.accounts, self._named, self._known = {a.id: a for a in accounts}, named, known
        self._sampled = []
        prefix = f"{self._chain}:"
        self.unsure = frozenset(
            a.id for a in accounts if a.ending or any(link in seals and link.startswith(prefix) for link in a.links)
        )
        if subjects != before:
            self.subjects, self.everybody = subjects, subjects_on(self._chain, accounts, seals)

    def choose(self, accounts: Iterable[str]) -> tuple[Subject, ...]:
        """Return the subjects of some accounts, in a stable order."""
        return tuple(subject for account in sorted(accounts) for subject in self.subjects[account])

    def sample(self, epochs: int, epoch: int) -> set[str]:
        """Return the part of a round of ``epochs`` that ``epoch`` reads: by the account's hash, so that all agree."""
        if len(self._sampled) != epochs:
            self._sampled = [[] for _ in range(epochs)]
            for account in self.accounts:
                self._sampled[int(account[2:10], 16) % epochs].append(account)
        return set(self._sampled[epoch % epochs])

    def named(self, words: Collection[str]) -> set[str]:
        """Return the accounts that ``words`` name: by their ids, or by addresses linked to them."""
        few, many = sorted((words, self._named), key=len)
        return {account for word in few if word in many for account in self._named[word]}


def words_of(chain: str, account: Account) -> frozenset[str]:
    """Return the 32-byte words by which logs and subscriptions name an account: its id, and its linked addresses."""
    linked = (parse_caip10(link).address for link in account.links if link.startswith(f"{chain}:"))
    return frozenset((account.id, *("0x" + address.rjust(32, b"\0").hex() for address in linked)))


PLACE = 42
"""Length of a word that is the address of a contract: it names everybody with anything there."""


def places_of(words: Collection[str]) -> frozenset[str]:
    """Return the contracts (0x, lower case) that concern everybody with anything there, of the words of changes."""
    return frozenset(word for word in words if len(word) == PLACE)


@dataclass(slots=True)
class Memory:
    """One party's memory of one chain."""

    last: Reading | None = None  # the newest, merged
    agreed: Reading | None = None  # the one of the newest certified epoch
    irreversible: Block | None = None
    fallen: Reading | None = None  # was agreed, on a history that is gone: what a halted chain is left with
    certified: deque[tuple[int, Block]] = field(default_factory=lambda: deque(maxlen=CERTIFIED))  # (epoch, its block)
    reorg: Reorg | None = None  # of the newest certified block, until a floor above its epoch is certified
    doubtful: bool = False  # whether it must be looked for: after a restart, and while there is one
    halted: str = ""  # the standing halt's cause
    halted_at: int = 0
    on_record: bool = False  # whether the halt is durable
    known: dict[str, Reading] = field(default_factory=dict)  # by block hash, oldest first
    pins: deque[Block] = field(default_factory=lambda: deque(maxlen=PINS))  # each an ancestor of the next
    covered: tuple[Reading | None, Mapping[str, tuple[Subject, ...]]] = (None, {})  # subjects by account of a reading
    anew: Anew | None = None  # accounts and positions that the same reading has at its own block
    expiries: tuple[Reading | None, dict[str, int]] = (None, {})  # by account of a reading, the first after it was read

    @classmethod
    def of(cls, parts: Sequence[Reading], epoch: int, named: ChainView | None) -> Memory:
        """Return what is remembered after a restart.

        Args:
            parts: what the store kept of the chain.
            epoch, named: the newest certified epoch, and the chain in it.
        """
        memory = cls()
        block = None if named is None or named.cause.startswith(REORGED) else named.block
        if block is not None:
            memory.certified.append((epoch, block))
            memory.doubtful = True
        if parts:
            memory.last = restore(parts)
            memory.irreversible = memory.last.irreversible
            memory.known = {memory.last.block.hash: memory.last}
        if named is not None and any(part.block == named.block for part in parts):
            assert named.block is not None
            agreed = restore([part for part in parts if part.block.height <= named.block.height])
            memory.known[named.block.hash] = agreed
            if block is None:
                memory.fallen = agreed
            else:
                memory.agreed = agreed
        return memory

    def needed(self) -> tuple[Carried, ...]:
        """Return the blocks, without accounts, of which the store must keep what it has for the certified reading."""
        certified = self.agreed or self.fallen
        if certified is None:
            return ()
        return tuple(Carried(block, ()) for block in (certified.block, *(c.block for c in certified.carried)))

    def remember(self, reading: Reading, subjects: Mapping[str, tuple[Subject, ...]], anew: Anew | None) -> None:
        """Take in the newest reading.

        Args:
            subjects: by account, whom it was read for. anew: as :func:`carry` takes it.
        """
        known = self.expiries[1] if anew is not None and self.expiries[0] is self.last else None
        self.last = replace(reading, irreversible=self.irreversible)
        self.covered, self.anew = (self.last, subjects), anew
        self._note_expiries(None if anew is None else known)
        self.known.pop(reading.block.hash, None)
        self.known[reading.block.hash] = self.last
        while len(self.known) > REMEMBERED:
            del self.known[next(iter(self.known))]

    def changed(self, roster: Roster) -> set[str]:
        """Return the accounts that the newest reading has for other addresses than they have now, or that are gone."""
        if self.last is None:
            return set(roster.subjects)
        if self.covered[0] is not self.last:  # it is another one than was read last
            grouped: dict[str, tuple[Subject, ...]] = {}
            for subject in self.last.subjects or ():
                grouped[subject.account] = (*grouped.get(subject.account, ()), subject)
            self.covered, self.anew = (self.last, grouped), None
        covered, wanted = self.covered[1], roster.subjects
        if covered is wanted:
            return set()
        return {a for a in covered.keys() | wanted.keys() if covered.get(a) != wanted.get(a)}

    def at(self, places: frozenset[str]) -> set[str]:
        """Return the accounts of the newest reading with anything at one of the places, or that it could not read."""
        if self.last is None or not places:
            return set()
        unread = {f.scope.partition(" ")[0] for f in self.last.findings if f.code in (DEBT_UNREADABLE, "unreadable")}
        return unread | {p.account for p in self.last.positions if p.origin in places}

    def expired(self, now: int) -> set[str]:
        """Return the accounts of the newest reading with an option that has expired since it was read."""
        if self.expiries[0] is not self.last:
            self._note_expiries(None)
        return {account for account, expiry in self.expiries[1].items() if expiry <= now}

    def _note_expiries(self, known: dict[str, int] | None) -> None:
        """Take down the next expiry of every account.

        Args:
            known: those of the reading before, of which only what was read anew has changed; None where there are none.
        """
        first: dict[str, int] = {}
        if self.last is None:
            self.expiries = (None, first)
            return
        positions = self.last.positions
        if known is not None and self.anew is not None:
            first = {account: expiry for account, expiry in known.items() if account not in self.anew[0]}
            positions = positions[: self.anew[1]]
        times = {0: self.last.block.time} | {c.block.height: c.block.time for c in self.last.carried}
        for p in positions:
            if p.contract.expiry and p.contract.expiry > times.get(p.seen, 0):
                first[p.account] = min(p.contract.expiry, first.get(p.account, p.contract.expiry))
        self.expiries = (self.last, first)

    def recall(self, block: Block, carried: tuple[Carried, ...]) -> Reading | None:
        """Return what was read at ``block`` and carried as given, None if it is not remembered."""
        among = (self.agreed, self.fallen, self.known.get(block.hash))
        return next((r for r in among if r is not None and (r.block, r.carried) == (block, carried)), None)

    def forget(self, *, entirely: bool = False) -> None:
        """Drop what rests on replaced blocks; ``entirely`` also what was held for irreversible, and for certified."""
        self.fallen = self.agreed or self.fallen
        self.last = self.agreed = None
        self.known.clear()
        self.pins.clear()
        if entirely:
            self.irreversible = self.reorg = self.fallen = None
            self.certified.clear()
            self.doubtful = False
