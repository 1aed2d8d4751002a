"""When a certificate is worth its gas: pure rules, no clock and no network."""

from __future__ import annotations

import math
from typing import NamedTuple

from aggregator.domain.certificate import Certificate, EpochRecord, PostedRoot
from aggregator.domain.report import LeafValues
from aggregator.domain.units import USD


class PostingPolicy(NamedTuple):
    """When to post. Ratios are relative.

    ``heartbeat_seconds`` 0 posts every epoch. Any leaf that moved by ``deviation`` is posted at once. Below a cushion
    of ``urgency`` the heartbeat shortens in proportion, down to every epoch for an account at maintenance.
    """

    heartbeat_seconds: int = 0
    deviation: float = 0.005
    urgency: float = 0.10


class Movement(NamedTuple):
    """What changed between the posted epoch and a candidate."""

    status_changed: bool  # an account came, went, or changed its status or flags
    deviation: float  # the largest relative move of a leaf's assets, requirement or budget
    cushion: float  # the least (assets - requirement) / requirement at maintenance; inf without requirements


def measure_movement(posted: EpochRecord | None, candidate: EpochRecord) -> Movement:
    """Compare two epochs; an unknown posted one counts as changed."""
    cushion = min((_cushion(leaf) for leaf in candidate.leaves), default=math.inf)
    if posted is None:
        return Movement(True, math.inf, cushion)
    before = {(leaf.account, leaf.destination): leaf for leaf in posted.leaves}
    after = {(leaf.account, leaf.destination): leaf for leaf in candidate.leaves}
    standing = {margin.account: (margin.status, margin.flags) for margin in posted.margins}
    changed = (
        before.keys() != after.keys()
        or any(leaf.flags != before[key].flags for key, leaf in after.items())
        or any(standing.get(m.account) != (m.status, m.flags) for m in candidate.margins)
    )
    deviation = max((_deviation(before[key], leaf) for key, leaf in after.items() if key in before), default=0.0)
    return Movement(changed, deviation, cushion)


def should_post(
    latest: PostedRoot | None, candidate: Certificate, movement: Movement, policy: PostingPolicy, now: float
) -> bool:
    """Decide whether to post ``candidate`` where ``latest`` stands, at ``now`` (Unix seconds).

    Never what the registry would refuse (older, expired, lower floor). Otherwise when any of these holds: nothing is
    posted, what is posted has expired, the floor rises, a status changed, a leaf deviates, or the heartbeat, shortened
    by urgency, is due.
    """
    header = candidate.header
    if header.valid_until <= now:
        return False
    if latest is None:
        return True
    if header.epoch <= latest.epoch or header.floor < latest.floor:
        return False
    if header.floor > latest.floor or latest.valid_until <= now:
        return True
    if movement.status_changed or movement.deviation >= policy.deviation:
        return True
    haste = min(1.0, max(0.0, movement.cushion / policy.urgency)) if policy.urgency > 0 else 1.0
    return header.produced_at - latest.produced_at >= policy.heartbeat_seconds * haste


def _cushion(leaf: LeafValues) -> float:
    required = leaf.requirement_maintenance
    return (leaf.assets_maintenance - required) / required if required > 0 else math.inf


def _deviation(before: LeafValues, after: LeafValues) -> float:
    scale = max(USD, before.assets_maintenance, before.requirement_maintenance)
    moved: int = max(
        abs(after.assets_maintenance - before.assets_maintenance),
        abs(after.requirement_maintenance - before.requirement_maintenance),
        abs(after.budget - before.budget),
    )
    return float(moved / scale)
