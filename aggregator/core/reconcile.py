"""Make one consistent world out of one reading per chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from aggregator.domain.budgets import Drawn
from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import (
    DARK,
    DEBT_UNREADABLE,
    FROZEN,
    NOT_READ_YET,
    REORGED,
    Account,
    Block,
    Carried,
    ChainView,
    Cut,
    Finding,
    Position,
    Reading,
    Snapshot,
)

AT_ONCE = (DARK, REORGED, FROZEN)
"""How causes begin that make a chain stale whatever its age."""


def reconcile(
    cut: Cut,
    readings: Mapping[str, Reading | None],
    previous: Mapping[str, Reading],
    accounts: Sequence[Account],
    chains: Sequence[ChainRow],
    valid_until: int,
    causes: Mapping[str, str],
) -> Snapshot:
    """Reconcile what was read into a Snapshot in canonical order, the same for any order of the inputs.

    A chain not read this epoch keeps its last reading, older and older: "ok" with a cause while it is younger than the
    chain's ``max_age``, "stale" after. A chain that never was read is "missing".

    A reading may be merged: positions with ``seen`` are carried from an older block, which gets a view of its own, as
    old as it is and stale whenever the chain's newest is. What is not carried as the reading itself says is dropped,
    and its account is ``not-read-yet``.

    Args:
        cut: the epoch's Cut; a reading at another block, at a block after the cut, or with other accounts carried, is
            refused.
        readings: this epoch's readings by chain; None or absent where there is none.
        previous: each chain's last accepted reading.
        accounts: every account, with its links.
        chains: the configured chains; readings of others are left out.
        valid_until: until when the report may be used, Unix seconds.
        causes: by chain, why it was not read, for people; "halted..." says that the chain itself does not advance.
            "dark..." (not read for too long), "reorged..." (its final blocks were replaced) and, of a reading's own,
            "frozen..." (its sequencer is down or just back) make the chain count as stale at once.

    Returns:
        The Snapshot. Each thing taken out of it is a finding: positions of unknown accounts, duplicates at one origin
        (the less favourable one counts, at the older block), assets of an address that an account with a smaller id
        has claimed already, and assets of addresses whose link is ending. Without a finding go the assets of an address
        that does not back the account (any more): the links say so, and an older reading may hold them or not.

        Of two readings of one contract that differ, none is the less favourable one at every price: one is kept, and
        the account's debts are unreadable, so that it can open no risk. Where an address does not back the account, a
        long option is an asset; perps and short options stand like debts, and nothing they gain counts.
    """
    findings: set[Finding] = set()
    views: list[ChainView] = []
    carried: list[ChainView] = []
    seen: list[Position] = []
    gaps = dict(cut.gaps)
    for row in sorted(chains, key=lambda row: row.id):
        fresh, refusal = _accepted(cut, row.id, readings.get(row.id))
        if refusal:
            findings.add(Finding("reading-refused", row.id, refusal))
        reading = fresh or previous.get(row.id)
        cause = causes.get(row.id) or gaps.get(row.id) or refusal
        if reading is None:
            views.append(ChainView(row.id, "missing", cause or "never read"))
            continue
        if reading.frozen and not cause.startswith(AT_ONCE):
            cause = reading.frozen if reading.frozen.startswith(FROZEN) else f"{FROZEN}: {reading.frozen}"
        age = max(0, cut.cut_time - reading.block.time)
        if age > row.max_age or cause.startswith(AT_ONCE):
            why = cause or ("halted: " if fresh else "not read: ") + f"its newest known final block is {age} s old"
            views.append(ChainView(row.id, "stale", why, reading.block, age))
        else:
            views.append(ChainView(row.id, "ok", cause or ("" if fresh else "not read"), reading.block, age))
        findings.update(reading.findings)
        findings.update(_not_covered(row.id, reading, accounts))
        older, partition = _partition(reading, cut.cut_time)
        carried.extend(_carried_view(block, views[-1], cut.cut_time, row.max_age) for block in older)
        findings.update(partition)
        allowed = {(account, c.block.height) for c in reading.carried if c.block in older for account in c.accounts}
        for position in reading.positions:
            if position.chain != row.id:
                findings.add(Finding("wrong-chain", position.asset, f"read on {row.id}, says {position.chain}"))
            elif position.seen and (position.account, position.seen) not in allowed:
                what = f"{row.id}: a position seen at block {position.seen}, from which the account is not carried"
                findings.add(Finding(NOT_READ_YET, position.account, what))
            else:
                seen.append(position)
    known = {account.id for account in accounts}
    findings.update(
        Finding("unknown-account", p.account, f"{p.asset} on {p.chain}: counts 0")
        for p in seen
        if p.account not in known
    )
    held = _of_current_links((p for p in seen if p.account in known), accounts)
    positions = _without_double_claims(_without_duplicates(held, findings), accounts, findings)
    positions = _without_ending_links(positions, accounts, findings)
    return Snapshot(
        epoch=cut.epoch,
        cut_time=cut.cut_time,
        valid_until=valid_until,
        accounts=tuple(sorted(accounts, key=lambda account: account.id)),
        chains=tuple(views),
        positions=tuple(sorted(positions)),
        findings=tuple(sorted(findings)),
        carried=tuple(sorted(carried, key=_place)),
    )


def _place(view: ChainView) -> tuple[str, int]:
    return view.chain, view.block.height if view.block else 0


def _partition(reading: Reading, cut_time: int) -> tuple[set[Block], set[Finding]]:
    """Return the older blocks that the reading may carry from, and a finding for each account carried from another."""
    blocks: set[Block] = set()
    findings: set[Finding] = set()
    for block, accounts in reading.carried:
        if why := _not_older(block, reading, cut_time):
            detail = f"{block.chain}: carried from block {block.height}, {why}"
            findings.update(Finding(NOT_READ_YET, account, detail) for account in accounts)
        else:
            blocks.add(block)
    return blocks, findings


def _not_older(block: Block, reading: Reading, cut_time: int) -> str:
    """Return why nothing may be carried from ``block``, "" where it may."""
    newest = reading.block
    if block.chain != newest.chain:
        return f"which is not on {newest.chain}"
    if block.height < 1:
        return "which no position can name"
    if block.time > cut_time:
        return f"{block.time - cut_time} s after the cut"
    if block.height > newest.height or block.time > newest.time:
        return f"newer than the reading's own block {newest.height}"
    if any(other.height == block.height and other != block for other in (newest, *(c.block for c in reading.carried))):
        return "of which there are two"
    return ""


def _carried_view(block: Block, newest: ChainView, cut_time: int, max_age: int) -> ChainView:
    """Return the view of an older block: stale by its own age, or with the newest view of its chain."""
    age = max(0, cut_time - block.time)
    if newest.status == "ok" and age > max_age:
        return ChainView(block.chain, "stale", f"last read anew {age} s before the cut", block, age)
    return ChainView(block.chain, newest.status, newest.cause, block, age)


def _not_covered(chain: str, reading: Reading, accounts: Sequence[Account]) -> Iterator[Finding]:
    """Name accounts with links younger than the reading: nothing is known of what they hold or owe there."""
    if reading.subjects is None:
        return
    read = {(subject.account, subject.address) for subject in reading.subjects}
    for account in accounts:
        wanted: list[tuple[str, str | None]] = [(account.id, None)]
        wanted += [(account.id, a.removeprefix(f"{chain}:")) for a in account.links if a.startswith(f"{chain}:")]
        if not read.issuperset(wanted):
            detail = f"{chain} was last read before the account or one of its links was recorded"
            yield Finding(NOT_READ_YET, account.id, detail)


def _accepted(cut: Cut, chain: str, reading: Reading | None) -> tuple[Reading | None, str]:
    """Return the reading, or None and why it is refused ("" where there is none)."""
    if reading is None:
        return None, ""
    block, pinned = reading.block, cut.block(chain)
    if block.chain != chain:
        return None, f"read on {block.chain}, not on {chain}"
    if pinned is None or (block.height, block.hash) != (pinned.height, pinned.hash):
        return None, f"read at block {block.height} ({block.hash}), which is not the one of the cut"
    if block.time > cut.cut_time:
        return None, f"block {block.height} is {block.time - cut.cut_time} s after the cut"
    if _as_set(reading.carried) != _as_set(c for c in cut.carried if c.block.chain == chain):
        return None, "it carries other accounts, or from other blocks, than the cut says"
    return reading, ""


def _as_set(carried: Iterable[Carried]) -> set[tuple[Block, frozenset[str]]]:
    return {(block, frozenset(accounts)) for block, accounts in carried}


def _without_duplicates(positions: Iterable[Position], findings: set[Finding]) -> list[Position]:
    kept: dict[tuple[str, ...], Position] = {}
    for p in positions:
        contract = bool(p.contract.kind)  # of which an account is on one side only
        key = (p.account, p.chain, p.venue, p.origin, p.asset, "" if contract else p.side, p.netting, p.address)
        other = kept.get(key)
        if other is not None and (contract or other.contract.kind) and other._replace(seen=0) != p._replace(seen=0):
            what = f"{p.venue} on {p.chain} has two contradicting positions in it: it may owe any amount"
            findings.add(Finding(DEBT_UNREADABLE, f"{p.account} {p.asset}", what))
        if other is not None:
            findings.add(
                Finding(
                    "duplicate-position", f"{p.account} {p.asset}", f"{p.side} at {p.venue}: counted once, at its worst"
                )
            )
        if other is None:
            kept[key] = p
            continue
        worst = min(p, other, key=_favour)
        drawn = Drawn(*map(min, p.drawn, other.drawn))
        kept[key] = worst._replace(seen=_older(p.seen, other.seen), drawn=drawn)
    return list(kept.values())


def _older(one: int, other: int) -> int:
    """Return the older of two ``seen``, of which 0 is the newest block."""
    return min(filter(None, (one, other)), default=0)


def _favour(p: Position) -> tuple[int, int, int, int, Position]:
    """Order positions from the least to the most favourable to their account."""
    if p.side == "debt":
        return -p.amount, 0, 0, 0, p._replace(seen=0)
    return p.amount - p.pending, p.amount, int(p.control == "seizable"), p.removal_delay, p._replace(seen=0)


def _of_current_links(positions: Iterable[Position], accounts: Sequence[Account]) -> Iterator[Position]:
    """Leave out the assets of addresses that back the account no more; a debt stays, whoever it is of."""
    linked = {(account.id, link) for account in accounts for link in account.links}
    return _backed(positions, lambda p: (p.account, f"{p.chain}:{p.address}") in linked)


def _backed(positions: Iterable[Position], backs: Callable[[Position], bool]) -> Iterator[Position]:
    """Leave out what only gains and is of an address that does not back its account; what may owe stays.

    A perp or a short option stays, and nothing that it gains counts.
    """
    for p in positions:
        if not p.address or backs(p):
            yield p
        elif p.contract.kind not in ("", "call", "put") or (p.contract.kind and p.side == "debt"):
            yield p._replace(control="none", removal_delay=0)
        elif p.side == "debt":
            yield p


def _without_double_claims(
    positions: Sequence[Position], accounts: Sequence[Account], findings: set[Finding]
) -> list[Position]:
    """Take out the assets of addresses claimed by a second account (faults.md C6); its debts stay."""
    owner: dict[str, str] = {}
    for account in sorted(accounts, key=lambda account: account.id):
        for link in account.links:
            owner.setdefault(link, account.id)
    for claimant, address in {(account.id, link) for account in accounts for link in account.links}:
        if owner[address] != claimant:
            findings.add(Finding("double-claim", claimant, f"{address} already backs {owner[address]}: counts 0 here"))
    return list(_backed(positions, lambda p: owner.get(f"{p.chain}:{p.address}") == p.account))


def _without_ending_links(
    positions: Sequence[Position], accounts: Sequence[Account], findings: set[Finding]
) -> list[Position]:
    """Take out the assets of addresses that are about to leave their account; the debts stay until the link ends."""
    ending = {(account.id, link) for account in accounts for link in account.ending}
    findings.update(
        Finding("link-ending", account, f"{link}: revoked, so its assets count 0 and its debts stand until it ends")
        for account, link in ending
    )
    return list(_backed(positions, lambda p: (p.account, f"{p.chain}:{p.address}") not in ending))
