"""An attestor's node: what it believes at a start, what it answers, and when it keeps from proposing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from aggregator.domain.budgets import Grant
from aggregator.domain.certificate import Certificate, EpochRecord, Refusal
from aggregator.domain.errors import DissentError
from aggregator.service.attest import Proposal, collect_quorum
from aggregator.service.claims import Bounds, Claims
from aggregator.service.envelope import Counts, Need, Seen, SignedRefusal, Status, decode_answer, encode_epoch
from aggregator.service.node import EPOCHS_AHEAD, Learner, Peers
from aggregator.service.remote import Fences
from aggregator.service.replica import to_record
from tests.property.test_attestor_set import COORDINATOR, START, MemoryStore, World
from tests.unit.attest.statements import EPOCH_SECONDS, certify, make_proposal, recompute_as

CLAIMED = {1: 5, 2: 7, 3: 10**30}
PEER = "0x" + "00" * 19 + "02"


async def make_world(*indices: int) -> World:
    world = World(4, {})
    for index in indices:
        await world.boot(index)
    return world


def says(world: World, *seen: tuple[int, int]) -> Any:
    """Return peers of attestor 0, each of which saw so many starts of it, and so high an epoch."""

    async def statuses(_: float = 0) -> list[Status]:
        return [Status(i + 1, 1, 0, Counts(0, 0, 0), None, (Seen(0, *s),)) for i, s in enumerate(seen)]

    node = world.nodes[0]
    node.peers.statuses = statuses  # type: ignore[method-assign,assignment]
    return node


async def test_a_lying_peer_does_not_silence_an_attestor() -> None:
    world = await make_world(0)
    raised: list[tuple[int, int]] = []

    async def raise_to(*, starts: int = 0, epoch: int = 0) -> None:
        raised.append((starts, epoch))

    world.records[0].raise_to = raise_to  # type: ignore[method-assign]
    latest, now = START + EPOCHS_AHEAD, int(world.clock.now())
    await says(world, (3, latest), (now + 1, latest + 1), (2**62, 2**62)).start()
    await says(world, (4, latest + 1)).start()
    assert raised == [(3, latest), (4, 0)]
    assert world.nodes[0].attestor.may_sign(START)


async def test_a_refusal_for_grants_brings_its_claims() -> None:
    world = await make_world(0)
    node, claim = world.nodes[0], Grant("0x" + "01" * 32, "0x" + "ab" * 32, 6, 10, 99)

    async def recompute(_: Proposal) -> Any:
        raise DissentError("grants", "short", claims=(claim,))

    node.attestor._recompute = recompute
    body = encode_epoch(world.proposal(START, None), ("leaves", "levels", "log"))
    answer = decode_answer(await node.attest("epoch", COORDINATOR, body))
    assert isinstance(answer.result, SignedRefusal)
    assert (answer.result.reason, answer.claims) == ("grants: short", (claim,))


async def test_claims_travel_and_the_threshold_decides_how_many_are_believed() -> None:
    """By way of nodes, envelopes and clients: two know budgets that the proposer does not, one makes them up."""
    world = await make_world(0, 1, 2, 3)
    account, place = "0x" + "01" * 32, "0x" + "ab" * 32
    claims = {i: Grant(account, place, START - 1, budget, START * EPOCH_SECONDS + 9) for i, budget in CLAIMED.items()}

    def refusing(claim: Grant) -> Any:
        async def recompute(_: Proposal) -> Any:
            raise DissentError("grants", "short", claims=(claim,))

        return recompute

    for index, claim in claims.items():
        world.nodes[index].attestor._recompute = refusing(claim)
    clients = [world.client(None, i, Fences()) for i in range(4)]
    quorum = await collect_quorum(world.proposal(START, None), clients, world.group, timeout=30.0, grace=0.0)
    assert quorum.signers == {world.deployment.members[0]}
    assert set(quorum.rules) == {"grants"}
    bounds = Bounds({account}, {place}, START, after=0, until=START * EPOCH_SECONDS + 9)
    assert Claims().take(quorum, world.group.threshold, bounds) == (claims[1], claims[2])


async def test_nobody_proposes_beside_a_coordinators_proposal_that_is_looked_at() -> None:
    world = await make_world(0)
    node, looked, go_on = world.nodes[0], asyncio.Event(), asyncio.Event()
    node._began = 0.0  # long before

    async def recompute(proposal: Proposal) -> Any:
        looked.set()
        await go_on.wait()
        return await recompute_as()(proposal)

    node.attestor._recompute = recompute
    body = encode_epoch(world.proposal(START, None), ("leaves", "levels", "log"))
    assert await node._is_mine(START)
    looking = asyncio.create_task(node.attest("epoch", COORDINATOR, body))
    await looked.wait()
    mine = asyncio.create_task(node._is_mine(START))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not mine.done(), "the coordinator's proposal is seen to first"
    go_on.set()
    await looking
    assert not await mine, "it was signed"


async def test_what_the_coordinator_was_asked_for_is_waited_for_but_not_for_ever() -> None:
    world = await make_world(0)
    node, slept = world.nodes[0], 0.0
    node._began = 0.0  # long before
    sleep = world.clock.sleep

    async def counted(seconds: float) -> None:
        nonlocal slept
        slept += seconds
        await sleep(seconds)

    world.clock.sleep = counted  # type: ignore[method-assign]
    body = encode_epoch(world.proposal(START, None))
    assert isinstance(decode_answer(await node.attest("epoch", PEER, body)).result, Need)
    assert await node._is_mine(START)
    assert slept == 0, "a peer's proposal holds nobody up"
    assert isinstance(decode_answer(await node.attest("epoch", COORDINATOR, body)).result, Need)
    assert await node._is_mine(START)
    assert 0 < slept <= EPOCH_SECONDS
    assert await node._is_mine(START)
    assert await node._is_mine(START + 1)
    assert slept <= EPOCH_SECONDS, "once"


async def test_nobody_proposes_an_epoch_from_before_its_start() -> None:
    node = (await make_world(0)).nodes[0]
    assert not await node._is_mine(START)
    assert await node._is_mine(START + 1)


async def test_who_refused_what_was_replaced_stays_on_record() -> None:
    world = await make_world()
    store, taken = MemoryStore(), list[EpochRecord]()

    async def take(record: EpochRecord) -> None:
        taken.append(record)

    theirs = certify(world.deployment, make_proposal(world.deployment, START))
    ours = world.proposal(START, None)

    mine = to_record(Certificate(ours.header, ours.body, ours.digest, ()), ours.cut.cut_time)
    why = Refusal("attestor-1", "watermark: signed another", "0x" + ours.digest.hex(), "0x" + "11" * 64)
    await store.save_epoch(replace(mine, refusals=(why,)))
    store.certificate = _none  # type: ignore[method-assign]
    assert await Learner(store, world.rules, Peers(()), take).learn(theirs)  # type: ignore[arg-type]
    (record,) = taken
    assert (record.digest, record.refusals) == (theirs.digest, (why,))


async def _none(number: int | None = None) -> None:
    return None
