"""What the links log says: who backs which account, how accounts are shared out, what may be appended next, which
revoked links may end.

The log is the only truth. Store, coordinator and attestors derive ``Account.links`` and ``Account.ending`` from it with
:func:`backings`; where two entries contradict each other the one at the earlier position counts. Reasons:
docs/adr/0010-links-end.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from aggregator.domain.budgets import Share
from aggregator.domain.certificate import LinkRecord, State
from aggregator.domain.errors import ConflictError
from aggregator.domain.report import AccountMargin, Flag
from aggregator.domain.snapshot import Account, ChainView
from proofs.links import Verb, parse_shares


class Backing(NamedTuple):
    """An address that backs an account: by which entry, and which entry revoked it (None: it stands)."""

    link: LinkRecord
    revoke: LinkRecord | None = None


class LinkMessage(NamedTuple):
    """What one side signs, in the form in which its address signs it."""

    verb: Verb | Literal["shares"]
    signer: str  # CAIP-10
    nonce: int
    expiry: int
    text: str  # what a Solana wallet signs, "" for an EVM address
    typed: dict[str, Any] | None  # EIP-712 JSON for an EVM wallet, None for a Solana address
    digest: str  # 0x, the EIP-712 digest that a contract is asked about; "" for a Solana address


def backings(log: Iterable[LinkRecord]) -> dict[str, Backing]:
    """Return, by member, what backs which account after ``log``.

    An address backs one account at a time: a link to a second one has no effect, nor has a revoke or an end of what
    does not stand.

    Args:
        log: entries by position; all of a member's entries, if any.
    """
    held: dict[str, Backing] = {}
    for entry in log:
        if entry.kind == "shares":
            continue
        now = held.get(entry.member)
        if now is not None and now.link.account != entry.account:
            continue
        if entry.kind == "link":
            held[entry.member] = Backing(entry)
        elif now is None:
            continue
        elif entry.kind == "revoke":
            held[entry.member] = Backing(now.link, now.revoke or entry)
        elif now.revoke is not None and now.revoke.nonce == entry.nonce:
            del held[entry.member]
    return held


def shares_of(log: Iterable[LinkRecord]) -> dict[str, tuple[Share, ...]]:
    """Return, by account, how its controller last said that it is shared out among destinations.

    Whoever is not here never said so, and has had a budget at home alone.
    """
    newest = {entry.account: entry.shares for entry in log if entry.kind == "shares"}
    return {account: tuple(Share(*share) for share in parse_shares(text)) for account, text in newest.items()}


def with_links(accounts: Iterable[Account], log: Iterable[LinkRecord]) -> tuple[Account, ...]:
    """Return ``accounts`` with the links, ending links and shares that ``log`` gives them, in the same order."""
    log = tuple(log)
    shares = shares_of(log)
    links: dict[str, list[str]] = {}
    ending: dict[str, list[str]] = {}
    for member, backing in backings(log).items():
        links.setdefault(backing.link.account, []).append(member)
        if backing.revoke is not None:
            ending.setdefault(backing.link.account, []).append(member)
    return tuple(
        replace(
            a,
            links=tuple(sorted(links.get(a.id, ()))),
            ending=tuple(sorted(ending.get(a.id, ()))),
            shares=shares.get(a.id, ()),
        )
        for a in accounts
    )


def next_nonce(history: Iterable[LinkRecord], account: str, member: str) -> int:
    """Return the least nonce that the pair may still use; shares have no ``member``, "", and nonces of their own."""
    return 1 + max((e.nonce for e in history if (e.account, e.member) == (account, member)), default=-1)


def verify_append(history: Sequence[LinkRecord], entry: LinkRecord) -> None:
    """Check that ``entry`` may follow.

    Nonces rise within a pair of account and member, and not among all accounts of a member: else the controller of one
    could use them up for the others.

    Args:
        history: all entries of ``entry.member`` so far, by position; for shares those of the account.

    Raises:
        ConflictError: naming ``member`` (it backs another account, or there is nothing to revoke or to end) or
            ``nonce``.
    """
    if entry.kind == "shares":
        least = next_nonce(history, entry.account, "")
        if entry.nonce < least:
            problem = f"{entry.nonce} is not above {least - 1}, which the account's shares used already"
            raise ConflictError("nonce", problem, f"sign with nonce {least}")
        return
    member, backing = entry.member, backings(history).get(entry.member)
    if backing is not None and backing.link.account != entry.account:
        remedy = "link another address" if entry.kind == "link" else "name that account"
        raise ConflictError("member", f"{member} backs account {backing.link.account} already", remedy)
    if entry.kind == "end":
        if backing is None or backing.revoke is None or backing.revoke.nonce != entry.nonce:
            raise ConflictError("member", f"no revoke of {member} with nonce {entry.nonce} stands")
        return
    if entry.kind == "revoke":
        if backing is None:
            raise ConflictError("member", f"{member} does not back account {entry.account}")
        if backing.revoke is not None:
            # A second revoke would start the cool-down anew, and either side could keep the other for ever.
            raise ConflictError("member", f"{member} is revoked already (entry {backing.revoke.position})")
    least = next_nonce(history, entry.account, member)
    if entry.nonce < least:
        problem = f"{entry.nonce} is not above {least - 1}, which {member} used already"
        raise ConflictError("nonce", problem, f"sign with nonce {least}")


def endable(
    margins: Iterable[AccountMargin],
    chains: Iterable[ChainView],
    state: State,
    now: int,
    cooldown: int,
    *,
    slack: bool = False,
) -> tuple[LinkRecord, ...]:
    """Return the entries that end links, by the newest certified epoch; each has position -1 and its time is 0.

    A revoked link may end when the cool-down has passed and the epoch shows that nothing is left to answer for: the
    member's chain was read, the member owes nothing, nothing of the account is unknown, and without the member its
    free collateral is not below zero. By then no budget from before the revoke can be used any more, because the
    cool-down is longer than a statement lives.

    Args:
        margins: of that epoch, at least those of accounts with ending links.
        chains: how that epoch saw the chains.
        state: the links log.
        now: that epoch's cut time, Unix seconds; what happened since is not known.
        cooldown: seconds since the revoke was recorded.
        slack: allow the rounding that two parties' free collateral may differ by.
    """
    fresh = {view.chain for view in chains if view.status == "ok"}
    by_account = {margin.account: margin for margin in margins}
    found: list[LinkRecord] = []
    for member, (_, revoke) in sorted(backings(state.links).items()):
        margin = None if revoke is None else by_account.get(revoke.account)
        if revoke is None or margin is None or now < revoke.recorded_at + cooldown:
            continue
        chain, _, address = member.rpartition(":")
        owes = any(
            (c.position.side, c.position.chain, c.position.address) == ("debt", chain, address)
            for c in margin.components
        )
        missing = -margin.free_collateral - (_rounding(margin) if slack else 0)
        if chain in fresh and not owes and not margin.flags & Flag.PARTIAL and missing <= 0:
            found.append(
                revoke._replace(position=-1, invite_signature="", accept_signature="", recorded_at=0, kind="end")
            )
    return tuple(found)


def _rounding(margin: AccountMargin) -> int:
    """Return by how much two computations of the same free collateral may differ: two sums, 1e-12 relative each."""
    largest = max((leaf.assets_initial + leaf.requirement_initial for leaf in margin.leaves), default=0)
    return 2 + largest // 10**12
