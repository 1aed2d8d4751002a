"""What one party remembers of one chain: the newest reading of every account, and what was certified.

A reading is *merged*: accounts that were not read anew at its block are *carried* from the older block at which they
were. Their positions say so (``Position.seen``) and keep that block's age.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aggregator.domain.snapshot import Account, Block, Carried, Reading, Reorg, Subject

PINS = 4096
"""How many pinned blocks are kept until they are irreversible."""
REMEMBERED = 3
"""How many readings per chain a party can go back to while the chain does not answer."""


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


def last_read(reading: Reading) -> dict[str, Block]:
    """Return the block at which each account was last read."""
    blocks = dict.fromkeys((s.account for s in reading.subjects or ()), reading.block)
    return blocks | {account: c.block for c in reading.carried for account in c.accounts}


def carry(fresh: Reading, older: Iterable[tuple[Reading, Collection[str]]]) -> Reading:
    """Merge readings into one at ``fresh.block``.

    Args:
        fresh: what was read anew, with ``subjects``.
        older: readings, each with the accounts whose part is taken from it as it was last read there.
    """
    positions, findings = list(fresh.positions), list(fresh.findings)
    subjects = list(fresh.subjects or ())
    groups: dict[Block, list[str]] = {}
    for reading, accounts in older:
        if not accounts:
            continue
        wanted, blocks = set(accounts), last_read(reading)
        for account in wanted:
            groups.setdefault(blocks[account], []).append(account)
        for p in reading.positions:
            if p.account in wanted:
                height = blocks[p.account].height
                positions.append(p._replace(seen=0 if height == fresh.block.height else height))
        # Findings about a chain or an asset belong to the block they were made at; those about an account go with it.
        findings += [f for f in reading.findings if f.scope.partition(" ")[0] in wanted]
        subjects += [s for s in reading.subjects or () if s.account in wanted]
    carried = (
        Carried(block, tuple(sorted(accounts)))
        for block, accounts in sorted(groups.items(), key=lambda group: group[0].height)
        if block.height != fresh.block.height
    )
    return replace(
        fresh,
        positions=tuple(positions),
        findings=tuple(findings),
        subjects=tuple(subjects),
        carried=tuple(carried),
    )


def part_of(reading: Reading, block: Block) -> Reading:
    """Return only what ``reading`` read at ``block``, as if nothing else were known: what the store keeps per block."""
    blocks = last_read(reading)
    mine = {account for account, at in blocks.items() if at == block}
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
    newest, *others = sorted(parts, key=lambda part: -part.block.height)
    known = {s.account for s in newest.subjects or ()}
    older: list[tuple[Reading, set[str]]] = []
    for part in others:
        accounts = {s.account for s in part.subjects or ()} - known
        known |= accounts
        older.append((part, accounts))
    return carry(newest, older)


@dataclass(slots=True)
class Memory:
    """One party's memory of one chain."""

    last: Reading | None = None  # the newest, merged
    agreed: Reading | None = None  # the one of the newest certified epoch
    irreversible: Block | None = None
    reorg: Reorg | None = None  # of a certified block, until a floor above it is certified
    reorg_epoch: int = 0  # when it was noticed
    unconfirmed: Block | None = None  # what the newest certified Cut names, until a restart has looked for it
    halted: str = ""  # the standing halt's cause
    known: dict[str, Reading] = field(default_factory=dict)  # by block hash, oldest first
    pins: deque[Block] = field(default_factory=lambda: deque(maxlen=PINS))  # each an ancestor of the next

    @classmethod
    def of(cls, reading: Reading | None) -> Memory:
        """Return what is remembered after a restart."""
        if reading is None:
            return cls()
        return cls(reading, reading, reading.irreversible, known={reading.block.hash: reading})

    def remember(self, reading: Reading) -> None:
        """Take in the newest reading."""
        self.last = replace(reading, irreversible=self.irreversible)
        self.known.pop(reading.block.hash, None)
        self.known[reading.block.hash] = self.last
        while len(self.known) > REMEMBERED:
            del self.known[next(iter(self.known))]

    def recall(self, block: Block) -> Reading | None:
        """Return what was read at ``block``, None if it is not remembered."""
        known = self.known.get(block.hash) or self.agreed
        return known if known is not None and known.block == block else None

    def forget(self, *, entirely: bool = False) -> None:
        """Drop what rests on replaced blocks; ``entirely`` also what was held for irreversible."""
        self.last = self.agreed = None
        self.known.clear()
        self.pins.clear()
        if entirely:
            self.irreversible = None
