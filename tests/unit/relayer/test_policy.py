"""When a certificate is posted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aggregator.domain.certificate import PostedRoot
from aggregator.domain.report import AccountMargin, Flag, Interval
from aggregator.service.relayer import Movement, PostingPolicy, measure_movement, should_post
from tests.unit.attest.statements import EPOCH_SECONDS, LIFETIME, make_deployment, make_leaf, make_record

DEPLOYMENT = make_deployment(4)
EPOCH = 900_000_000
CUT = EPOCH * EPOCH_SECONDS
RECORD = make_record(DEPLOYMENT, EPOCH, header={"floor": 3})
POLICY = PostingPolicy(heartbeat_seconds=60, deviation=0.01, urgency=0.5)
CALM = Movement(False, 0.0, math.inf)


def posted(epoch: int = EPOCH - 1, *, floor: int = 3, age: int = 2, valid_until: int = CUT + LIFETIME) -> PostedRoot:
    return PostedRoot(epoch, b"\x01" * 32, floor, CUT - age, valid_until, CUT - age)


def due(latest: PostedRoot | None, movement: Movement = CALM, policy: PostingPolicy = POLICY, now: float = CUT) -> bool:
    assert RECORD.certificate is not None
    return should_post(latest, RECORD.certificate, movement, policy, now)


@pytest.mark.parametrize(
    ("expected", "latest", "movement"),
    [
        (True, None, CALM),
        (False, posted(), CALM),
        (False, posted(age=59), CALM),
        (True, posted(age=60), CALM),
        (True, posted(floor=2), CALM),
        (True, posted(valid_until=CUT), CALM),
        (True, posted(), CALM._replace(status_changed=True)),
        (False, posted(), CALM._replace(deviation=0.009)),
        (True, posted(), CALM._replace(deviation=0.01)),
        (False, posted(age=29), CALM._replace(cushion=0.25)),  # half the heartbeat at half the urgency
        (True, posted(age=30), CALM._replace(cushion=0.25)),
        (True, posted(), CALM._replace(cushion=-0.1)),
    ],
)
def test_what_makes_a_posting_due(expected: bool, latest: PostedRoot | None, movement: Movement) -> None:
    assert due(latest, movement) is expected


@pytest.mark.parametrize("latest", [posted(EPOCH), posted(EPOCH + 1), posted(floor=4)])
def test_what_the_registry_would_refuse_is_never_due(latest: PostedRoot) -> None:
    assert not due(latest, Movement(True, math.inf, -1.0))


def test_an_expired_certificate_is_never_due() -> None:
    assert due(None, now=CUT + LIFETIME - 1)
    assert not due(None, now=CUT + LIFETIME)


def test_without_a_heartbeat_every_epoch_is_due() -> None:
    assert due(posted(age=0), policy=PostingPolicy(heartbeat_seconds=0))


def test_movement_sees_flags_accounts_amounts_and_the_nearest_account() -> None:
    before = make_record(DEPLOYMENT, EPOCH - 1, (make_leaf(EPOCH - 1), make_leaf(EPOCH - 1, 2)))

    def movement(*leaves: object) -> Movement:
        return measure_movement(before, make_record(DEPLOYMENT, EPOCH, leaves))  # type: ignore[arg-type]

    same = movement(make_leaf(EPOCH), make_leaf(EPOCH, 2))
    assert (same.status_changed, same.deviation, same.cushion) == (False, 0.0, 4.0)
    assert movement(make_leaf(EPOCH), make_leaf(EPOCH, 2, flags=1)).status_changed
    assert movement(make_leaf(EPOCH)).status_changed
    assert movement(make_leaf(EPOCH), make_leaf(EPOCH, 2), make_leaf(EPOCH, 3)).status_changed
    moved = movement(make_leaf(EPOCH), make_leaf(EPOCH, 2, requirement_maintenance=1_800 * 10**8))
    assert (moved.status_changed, moved.deviation, moved.cushion) == (False, 0.2, 1.5)
    assert movement(make_leaf(EPOCH), make_leaf(EPOCH, 2, budget=0)).deviation > 0.4
    assert measure_movement(None, RECORD).status_changed


def test_movement_sees_a_status_that_no_flag_shows() -> None:
    margin = AccountMargin("0x01", "healthy", Flag(0), 0, 0, Interval(0, 0, 0), (1.0, 1.0, 1.0), 0, (), ())
    before = replace(RECORD, margins=(margin,))
    assert not measure_movement(before, before).status_changed
    assert measure_movement(before, replace(RECORD, margins=(replace(margin, status="unknown"),))).status_changed
