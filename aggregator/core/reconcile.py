"""Make one consistent world out of one reading per chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from aggregator.domain.rows import ChainRow
from aggregator.domain.snapshot import (
    DARK,
    NOT_READ_YET,
    Account,
    ChainView,
    Cut,
    Finding,
    Position,
    Reading,
    Snapshot,
    Subject,
)


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

    Args:
        cut: the epoch's Cut; a reading at another block, or at a block after the cut, is refused.
        readings: this epoch's readings by chain; None or absent where there is none.
        previous: each chain's last accepted reading.
        accounts: every account, with its links.
        chains: the configured chains; readings of others are left out.
        valid_until: until when the report may be used, Unix seconds.
        causes: why a chain could not be read, for people; "halted..." says that the chain itself does not advance,
            "dark..." that it has not been read for so long that it counts as stale at once.

    Returns:
        The Snapshot. Each thing taken out of it is a finding: positions of unknown accounts, duplicates at one origin
        (the less favourable one counts), and assets of an address that an account with a smaller id has claimed
        already.
    """
    findings: set[Finding] = set()
    views: list[ChainView] = []
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
        age = max(0, cut.cut_time - reading.block.time)
        if age > row.max_age or cause.startswith(DARK):
            why = cause or ("halted: " if fresh else "not read: ") + f"its newest known final block is {age} s old"
            views.append(ChainView(row.id, "stale", why, reading.block, age))
        else:
            views.append(ChainView(row.id, "ok", cause or ("" if fresh else "not read"), reading.block, age))
        findings.update(reading.findings)
        findings.update(_not_covered(row.id, reading, accounts))
        for position in reading.positions:
            if position.chain == row.id:
                seen.append(position)
            else:
                findings.add(Finding("wrong-chain", position.asset, f"read on {row.id}, says {position.chain}"))
    known = {account.id for account in accounts}
    findings.update(
        Finding("unknown-account", p.account, f"{p.asset} on {p.chain}: counts 0")
        for p in seen
        if p.account not in known
    )
    positions = _without_double_claims(
        _without_duplicates((p for p in seen if p.account in known), findings), accounts, findings
    )
    return Snapshot(
        epoch=cut.epoch,
        cut_time=cut.cut_time,
        valid_until=valid_until,
        accounts=tuple(sorted(accounts, key=lambda account: account.id)),
        chains=tuple(views),
        positions=tuple(sorted(positions)),
        findings=tuple(sorted(findings)),
    )


def _not_covered(chain: str, reading: Reading, accounts: Sequence[Account]) -> Iterator[Finding]:
    """Name accounts with links younger than the reading: nothing is known of what they hold or owe there."""
    if reading.subjects is None:
        return
    read = set(reading.subjects)
    for account in accounts:
        wanted = [Subject(account.id, None)]
        wanted += [Subject(account.id, a.removeprefix(f"{chain}:")) for a in account.links if a.startswith(f"{chain}:")]
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
    return reading, ""


def _without_duplicates(positions: Iterable[Position], findings: set[Finding]) -> list[Position]:
    kept: dict[tuple[str, ...], Position] = {}
    for p in positions:
        key = (p.account, p.chain, p.venue, p.origin, p.asset, p.side, p.netting, p.address)
        other = kept.get(key)
        if other is not None:
            findings.add(
                Finding(
                    "duplicate-position", f"{p.account} {p.asset}", f"{p.side} at {p.venue}: counted once, at its worst"
                )
            )
        kept[key] = p if other is None else min(p, other, key=_favour)
    return list(kept.values())


def _favour(p: Position) -> tuple[int, int, int, int, Position]:
    """Order positions from the least to the most favourable to their account."""
    if p.side == "debt":
        return -p.amount, 0, 0, 0, p
    return p.amount - p.pending, p.amount, int(p.control == "seizable"), p.removal_delay, p


def _without_double_claims(
    positions: Sequence[Position], accounts: Sequence[Account], findings: set[Finding]
) -> list[Position]:
    """Take out the assets of addresses claimed by a second account (faults.md C6); its debts stay."""
    owner: dict[str, str] = {}
    for account in sorted(accounts, key=lambda account: account.id):
        for link in account.links:
            owner.setdefault(link, account.id)
    addressed = sorted({(p.account, f"{p.chain}:{p.address}") for p in positions if p.address})
    for claimant, address in addressed:
        owner.setdefault(address, claimant)
    claims = {(account.id, link) for account in accounts for link in account.links} | set(addressed)
    for claimant, address in claims:
        if owner[address] != claimant:
            findings.add(Finding("double-claim", claimant, f"{address} already backs {owner[address]}: counts 0 here"))
    return [p for p in positions if not p.address or p.side == "debt" or owner[f"{p.chain}:{p.address}"] == p.account]
