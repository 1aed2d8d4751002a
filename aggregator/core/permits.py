"""Withdrawal permits that may still be used: what they take from an account before anybody sees it leave. Pure.

A permitted amount counts 0 from the permit's signature until whoever counts the vault's collateral has seen that nobody
can use it any more, whether it left or not. So it may be counted as gone twice for a while, and never as still there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from aggregator.core.pipeline import compute_report
from aggregator.core.risk.stress import standings_at
from aggregator.core.whatif import Epoch, positions_of
from aggregator.domain.budgets import REGISTRY_VENUE, Grant, PermitRecord
from aggregator.domain.snapshot import Position, Snapshot
from aggregator.domain.stress import Standing
from aggregator.domain.units import usd_up
from proofs.hashing import keccak256


def apply_permits(positions: Iterable[Position], permits: Collection[PermitRecord]) -> tuple[Position, ...]:
    """Return the positions with every permitted amount pending, besides what is under a request; ascending if given so.

    Receipts: the part of what they are worth, rounded up.
    """
    if not permits:
        return tuple(positions)
    gone: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for permit in permits:
        gone[permit.account, permit.chain, permit.vault, permit.asset] += permit.amount
    changed = []
    for p in positions:
        units = gone.get((p.account, p.chain, p.origin, p.asset), 0)
        if units and p.side == "asset" and not p.contract.kind and p.quantity > 0:
            worth = units if p.unit == p.asset else -(-units * p.amount // p.quantity)
            p = p._replace(pending=min(p.amount, p.pending + worth))
        changed.append(p)
    return tuple(sorted(changed))


def outstanding(permits: Iterable[PermitRecord], now: int, slack: Mapping[str, int]) -> tuple[PermitRecord, ...]:
    """Return the permits that count at ``now``: a vault may still take them, or may have taken them unseen. Ascending.

    Args:
        now: Unix seconds.
        slack: by chain (CAIP-2): seconds for which a permit counts after its expiry. By so much the vault's clock may
            be behind, and the block that its collateral is still counted at may be old, both together.
    """
    longest = max(slack.values(), default=0)
    return tuple(sorted({p for p in permits if p.expiry + slack.get(p.chain, longest) >= now}))


def missing(own: Iterable[PermitRecord], listed: Collection[PermitRecord]) -> PermitRecord | None:
    """Return the first of ``own`` that is not among ``listed``, None if none is."""
    known = set(listed)
    return next((permit for permit in own if permit not in known), None)


class Withdrawn(NamedTuple):
    """How an account stands without what permits let it withdraw. USD are 1e-8 integers, rounded toward safety."""

    standing: Standing  # at its home destination
    free: int  # free collateral (initial, low), the least at any clock bound; may be negative
    unused: int  # what may still be drawn on earlier budgets, beyond what was drawn
    unread: str  # chain of a registry that was not read lately enough to say what was drawn, "" if there is none


def withdraw(
    epoch: Epoch,
    account: str,
    permits: Collection[PermitRecord],
    grants: Iterable[Grant],
    bounds: Mapping[str, int],
) -> Withdrawn:
    """Value one account of an epoch as if permits had been used, and what may still be drawn on its budgets.

    Args:
        permits: those that the epoch's positions do not have as pending already.
        grants: every budget, of any account, that was given and not withdrawn.
        bounds: by chain (CAIP-2): seconds by which its clock may be behind.
    """
    rows = apply_permits(positions_of(epoch.snapshot, account), permits)
    accounts = tuple(a for a in epoch.snapshot.accounts if a.id == account)
    alone = replace(epoch.snapshot, accounts=accounts, positions=rows)
    report = compute_report(alone, epoch.quotes, epoch.world, epoch.latency)
    (standing,) = standings_at(report, slice(None))
    # As budgets are given: where a price opens no risk, what it is the price of counts 0.
    used = drawn(rows)
    charged = (
        {chain: max(0, usd_up(float(owed[0]))) for chain, owed in zip(report.destinations, report.owed, strict=True)}
        if report.owed is not None
        else {}
    )
    free = int(report.free[0]) - sum(max(used.get(c, 0), charged.get(c, 0)) for c in used.keys() | charged.keys())
    unused = unused_budgets(alone, grants, account, bounds)
    unread = next((p.chain for p in rows if p.venue == REGISTRY_VENUE and _read_at(epoch.snapshot, p) is None), "")
    return Withdrawn(standing, min(free, standing.free_collateral), unused, unread)


def drawn(rows: Iterable[Position]) -> dict[str, int]:
    """Return what registries say was drawn and not repaid, by destination (CAIP-2), 1e-8 USD."""
    used: dict[str, int] = defaultdict(int)
    for p in rows:
        if p.venue == REGISTRY_VENUE:
            used[p.chain] += p.amount
    return used


def unused_budgets(snapshot: Snapshot, grants: Iterable[Grant], account: str, bounds: Mapping[str, int]) -> int:
    """Return what may still be drawn on an account's budgets beyond what was drawn, of all destinations, 1e-8 USD.

    A budget is no longer usable where a newer epoch is posted, or once it has expired there. What was drawn before it
    expired is known only as of the block at which the registry was read: that block's time decides, and the cut's where
    no registry was read (as in ``domain.book``). One that was not read lately enough decides nothing.

    Args:
        snapshot: its positions of venue ``registry`` say what is posted and drawn.
        grants: budgets given, of any account.
        bounds: by destination (CAIP-2): seconds by which its clock may be behind.
    """
    rows = [p for p in snapshot.positions if p.account == account and p.venue == REGISTRY_VENUE]
    used, posted, read = drawn(rows), dict[str, int](), dict[str, int]()
    for p in rows:
        posted[p.chain] = min(p.drawn.posted, posted.get(p.chain, p.drawn.posted))
        read[p.chain] = min(_read_at(snapshot, p) or 0, read.get(p.chain, snapshot.cut_time))
    chains = {"0x" + keccak256(chain.encode()).hex(): chain for chain in (*posted, *bounds)}
    longest = max(bounds.values(), default=0)
    usable: dict[str, int] = defaultdict(int)
    for grant in grants:
        chain = chains.get(grant.destination, "")
        ends = grant.valid_until + bounds.get(chain, longest)
        alive = grant.epoch >= posted.get(chain, 0) and ends > read.get(chain, snapshot.cut_time)
        if grant.account == account and alive:
            usable[grant.destination] = max(usable[grant.destination], grant.budget)
    return sum(max(0, budget - used.get(chains.get(place, ""), 0)) for place, budget in usable.items())


def _read_at(snapshot: Snapshot, position: Position) -> int | None:
    """Return the time of the block that a position was read at, None where that is too old to count."""
    if position.seen:
        of = [v for v in snapshot.carried if v.block is not None and v.block.height == position.seen]
    else:
        of = list(snapshot.chains)
    view = next((v for v in of if v.chain == position.chain), None)
    return view.block.time if view is not None and view.block is not None and view.status == "ok" else None


def standing_of(epoch: Epoch, account: str) -> Standing:
    """Return how one account of an epoch stands at its home destination."""
    place = bisect_left(epoch.report.accounts, account, key=lambda a: a.id)
    return standings_at(epoch.report, slice(place, place + 1))[0]
