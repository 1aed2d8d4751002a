"""What may be drawn where: what registries say was drawn, what statements still allow, how owners share it out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

REGISTRY_VENUE = "registry"
"""Venue of the positions that say what was drawn at a destination: no holdings, and no rows of a book."""
PARTS = 10_000
"""A share's parts of a whole."""
CLAIMS = 10_000
"""Grants that come with one refusal; who has more unheard of gives the others next time."""


class Drawn(NamedTuple):
    """What a destination's registry said of an account when its ``used`` was read (``Position.drawn``)."""

    posted: int = 0  # the newest epoch it held: no budget of an older one can be drawn any more
    set_id: int = 0  # the newest set of attestors it knows, activated or not


NOT_DRAWN = Drawn()
_EPOCHS_AHEAD = 2
"""How far ahead of their chain's clock registries take a statement, epochs."""


def newest_postable(now: float, epoch_seconds: int) -> int:
    """Return the highest epoch that a registry can hold at ``now``, Unix seconds."""
    return int(now) // epoch_seconds + _EPOCHS_AHEAD


class Grant(NamedTuple):
    """A budget that a statement gave, certified or perhaps certified, and that may still be drawn."""

    account: str  # 0x + 64 hex
    destination: str  # 0x id
    epoch: int
    budget: int  # 1e-8 USD, the most drawn in total
    valid_until: int  # Unix seconds, by the destination's clock


class Share(NamedTuple):
    """A part of an account's free collateral that its owner wants at one destination."""

    destination: str  # CAIP-2
    parts: int  # of 10,000


class Level(NamedTuple):
    """How large an account's budgets were: growth beyond is capped (protocol.md, "Growth caps"). USD, 1e-8."""

    account: str
    base: int  # the most attested in the window before this one
    peak: int  # the most attested since: growth up to here was counted already


@dataclass(frozen=True, slots=True)
class Levels:
    """What the newest certified statement left for the next one to grow from.

    Args:
        window: number of the window; 0 before the first statement.
        accounts: ascending by account; those that never had a budget are absent.
        spent: by price feed, ascending: USD 1e-8 by which budgets grew in this window, deployment-wide.
    """

    window: int = 0
    accounts: tuple[Level, ...] = ()
    spent: tuple[tuple[str, int], ...] = ()


NO_LEVELS = Levels()


def levels_text(levels: Levels) -> str:
    """Return the canonical text of levels: JSON without spaces, amounts as decimal text."""
    accounts = ",".join(f'["{account}","{base}","{peak}"]' for account, base, peak in levels.accounts)
    spent = json.dumps([[feed, str(amount)] for feed, amount in levels.spent], separators=(",", ":"))
    return f'{{"accounts":[{accounts}],"spent":{spent},"window":{levels.window}}}'


def parse_levels(text: str) -> Levels:
    """Read what :func:`levels_text` wrote."""
    given = json.loads(text)
    return Levels(
        int(given["window"]),
        tuple(Level(account, int(base), int(peak)) for account, base, peak in given["accounts"]),
        tuple((feed, int(amount)) for feed, amount in given["spent"]),
    )


def staircase(grants: Iterable[Grant]) -> tuple[Grant, ...]:
    """Return the grants that no other one covers, ascending: of a later epoch, as large, and valid as long."""
    kept: dict[tuple[str, str], list[Grant]] = {}
    for grant in sorted(set(grants), key=lambda g: (-g.epoch, -g.budget, -g.valid_until, g)):
        steps = kept.setdefault((grant.account, grant.destination), [])
        if not any(covers(step, grant) for step in steps):
            steps.append(grant)
    return tuple(sorted(grant for steps in kept.values() for grant in steps))


def covers(one: Grant, other: Grant) -> bool:
    """Say whether ``one`` may be drawn wherever and whenever ``other`` may be, and for as much."""
    same = (one.account, one.destination) == (other.account, other.destination)
    return same and one.epoch >= other.epoch and one.budget >= other.budget and one.valid_until >= other.valid_until


def uncovered(own: Iterable[Grant], listed: Iterable[Grant]) -> Grant | None:
    """Return the first of ``own`` that none of ``listed`` covers, None where every one is covered."""
    return next(all_uncovered(own, listed), None)


def all_uncovered(own: Iterable[Grant], listed: Iterable[Grant]) -> Iterator[Grant]:
    """Give those of ``own`` that none of ``listed`` covers, in order."""
    by_place: dict[tuple[str, str], list[Grant]] = {}
    for grant in listed:
        by_place.setdefault((grant.account, grant.destination), []).append(grant)
    for grant in own:
        if not any(covers(step, grant) for step in by_place.get((grant.account, grant.destination), ())):
            yield grant


class PermitRecord(NamedTuple):
    """A withdrawal permit that may still be used: its amount counts 0, whether it was used or not."""

    account: str  # 0x + 64 hex
    chain: str  # CAIP-2 of the vault
    vault: str  # without the chain prefix
    asset: str  # CAIP-19
    amount: int  # base units
    to: str  # address on the vault's chain
    nonce: str  # 0x + 64 hex
    epoch: int
    expiry: int  # Unix seconds
    request: str  # the controller's signature over PermitRequest
