"""Rotation and recovery of a MarginRegistry's attestors on a real EVM: the epoch alone decides who signs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import rlp
from web3 import Web3
from web3.contract import Contract

from infra.devnet.anvil import Anvil
from infra.devnet.evm_deploy import deploy_registry
from proofs.sets import AttestorSet, rotation_digest
from tests.contracts.evm_reference import NextSet, Quorum, keccak, pack_indices
from tests.contracts.evm_registries import (
    EPOCH_SECONDS,
    SIGNERS,
    ZERO,
    World,
    build_spec,
    quorum,
    successors,
)

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]
DAY, TIMELOCK = 86_400, 3_600


@pytest.fixture(scope="module")
def now(w3: Web3) -> int:
    return int(w3.eth.get_block("latest")["timestamp"])


@pytest.fixture(scope="module")
def registry(w3: Web3, now: int) -> Contract:
    return deploy_registry(w3, build_spec(now, timelock=TIMELOCK, governance=w3.eth.accounts[1]))


@pytest.fixture
def world(chain: Anvil, w3: Web3, registry: Contract, now: int) -> World:
    return World(chain, w3, registry, now)


@pytest.fixture
def governance(w3: Web3) -> Any:
    return w3.eth.accounts[1]


def later(world: World, seconds: int, **changes: Any) -> Any:
    """Return a header for the epoch of a time after `now`, made then."""
    at = world.now + seconds
    return world.header(epoch=at // EPOCH_SECONDS, producedAt=at, validUntil=at + 300, **changes)


def refuse_post(world: World, header: Any, reason: str, by: Quorum) -> None:
    world.refuse(by.certify(header, world.deployment_id, SIGNERS), reason)


def test_the_epoch_decides_which_set_signs(world: World) -> None:
    to = world.next_set(activationEpoch=world.epoch + 50)
    receipt = world.rotate(to)
    (event,) = world.registry.events.Rotated().process_receipt(receipt)
    assert dict(event["args"]) == {
        "setId": 2,
        "members": successors.members,
        "threshold": 3,
        "activationEpoch": to.activationEpoch,
        "notAfter": to.notAfter,
        "recovered": False,
    }
    assert world.call("newestSetId") == 2
    assert world.call("setOf", 2) == world.call("setAt", to.activationEpoch) == to.as_tuple()
    assert world.call("setAt", to.activationEpoch - 1) == world.call("setOf", 1)
    for unknown in (0, 3):
        world.refused("setId", "setOf", unknown)

    world.move_to(96)
    before = replace(later(world, 96), epoch=to.activationEpoch - 1)
    refuse_post(world, before, "wrong signer", successors)
    refuse_post(world, replace(before, setId=2), "setId", successors)
    world.post(before)
    first = replace(before, epoch=to.activationEpoch, setId=2)
    refuse_post(world, first, "wrong signer", quorum)
    refuse_post(world, replace(first, setId=1), "setId", quorum)
    world.post(first, by=successors)
    assert world.call("latest")[:2] == (to.activationEpoch, first.root)


def test_what_members_sign_is_the_digest_of_the_typed_data(world: World) -> None:
    to = world.next_set(members=tuple(Quorum(7, seed=9).members), threshold=5)
    members = tuple(bytes.fromhex(m[2:]) for m in to.members)
    ours = AttestorSet(to.setId, members, to.threshold, to.activationEpoch, to.notAfter)
    expected = quorum.rotation_digest(to, world.deployment_id)
    assert world.call("rotationDigest", to.as_tuple()) == expected == rotation_digest(ours, world.deployment_id)


def test_a_rotation_needs_the_signatures_of_the_newest_set(world: World) -> None:
    to = world.next_set()
    world.refuse_rotation("wrong signer", to, by=successors)
    signed = quorum.sign(quorum.rotation_digest(to, world.deployment_id), SIGNERS)
    rotate = world.registry.functions.rotate
    world.refuse_call(rotate(to.as_tuple(), pack_indices(SIGNERS[:2]), signed[:2]), "too few signatures")
    world.refuse_call(rotate(to.as_tuple(), 0, []), "too few signatures")
    unsorted = [signed[1], signed[0], signed[2]]
    world.refuse_call(rotate(to.as_tuple(), pack_indices((1, 0, 3)), unsorted), "indices not increasing")
    twice = [signed[0], signed[0], signed[2]]
    world.refuse_call(rotate(to.as_tuple(), pack_indices((0, 0, 3)), twice), "indices not increasing")
    world.refuse_call(rotate(to.as_tuple(), pack_indices((0, 1, 4)), signed), "index out of range")
    high = [(signed[0][0], (2**255 - 1).to_bytes(32, "big")), *signed[1:]]
    world.refuse_call(rotate(to.as_tuple(), pack_indices(SIGNERS), high), "high s")
    zero = [(bytes(32), bytes(32)), *signed[1:]]
    world.refuse_call(rotate(to.as_tuple(), pack_indices(SIGNERS), zero), "wrong signer")
    # What was signed is every field, for this deployment.
    for change in ({"threshold": 4}, {"notAfter": to.notAfter + 1}, {"activationEpoch": to.activationEpoch + 1}):
        world.refuse_call(rotate(replace(to, **change).as_tuple(), pack_indices(SIGNERS), signed), "wrong signer")
    swapped = replace(to, members=tuple(reversed(to.members)))
    world.refuse_call(rotate(swapped.as_tuple(), pack_indices(SIGNERS), signed), "wrong signer")
    world.refuse_call(rotate(*quorum.certify_rotation(to, b"\x01" * 32, SIGNERS)), "wrong signer")


def test_a_weak_or_untimely_set_is_refused(world: World) -> None:
    to, clock = world.next_set(), world.epoch
    for reason, change in (
        ("setId", {"setId": 1}),
        ("setId", {"setId": 3}),
        ("too few members", {"members": ()}),
        ("zero member", {"members": (*successors.members[:3], ZERO)}),
        ("duplicate member", {"members": (*successors.members[:3], successors.members[0])}),
        ("threshold below quorum", {"threshold": 2}),
        ("threshold above members", {"threshold": 5}),
        ("activation in the past", {"activationEpoch": 0}),
        ("activation too far", {"activationEpoch": clock + 91 * DAY // EPOCH_SECONDS}),
        ("notAfter passed", {"notAfter": world.now - 1}),
    ):
        world.refuse_rotation(reason, replace(to, **change))
    world.post(world.header())
    world.refuse_rotation("activation in the past", replace(to, activationEpoch=world.epoch))


def test_a_set_outside_of_devnets_is_bounded_in_time(chain: Anvil, w3: Web3, now: int) -> None:
    registry = deploy_registry(w3, build_spec(now, network_class=2, timelock=DAY))
    world = World(chain, w3, registry, now)
    to = world.next_set()
    latest = to.activationEpoch * EPOCH_SECONDS + 90 * DAY
    world.refuse_rotation("notAfter too far", replace(to, notAfter=latest + 1))
    world.refuse_rotation("too few members", replace(to, members=to.members[:3]))
    assert world.rotate(replace(to, notAfter=latest))["status"] == 1


def test_sets_follow_one_another(world: World) -> None:
    to = world.next_set(activationEpoch=world.epoch + 50)
    world.rotate(to)
    world.refuse_rotation("setId", to)  # twice
    third = world.next_set(3, members=tuple(quorum.members), activationEpoch=world.epoch + 2000)
    world.refuse_rotation("newest set not active", third, by=successors)
    world.move_to(150)
    world.refuse_rotation("wrong signer", third, by=quorum)
    world.rotate(third, by=successors)
    assert [world.call("setAt", world.epoch + n)[0] for n in (0, 49, 50, 1999, 2000)] == [1, 1, 2, 2, 3]
    # The newest is not in charge yet: the epoch finds its own set.
    world.post(replace(later(world, 150), setId=2), by=successors)


def test_a_chain_that_learns_of_a_rotation_late_takes_it(world: World) -> None:
    # It stood still from before the activation of the second set until after that of the third.
    world.post(world.header())
    second = world.next_set(activationEpoch=world.epoch + 50)
    third = world.next_set(3, members=tuple(Quorum(4, seed=7).members), activationEpoch=world.epoch + 100)
    world.move_to(400)
    world.refuse_rotation("activation in the past", replace(second, activationEpoch=world.epoch))
    world.rotate(second)
    again = replace(third, activationEpoch=second.activationEpoch)
    world.refuse_rotation("activation in the past", again, by=successors)
    late = later(world, 400)
    refuse_post(world, late, "setId", quorum)
    refuse_post(world, replace(late, setId=2), "wrong signer", quorum)
    refuse_post(world, replace(late, epoch=second.activationEpoch - 1), "set superseded", quorum)

    world.rotate(third, by=successors)
    refuse_post(world, replace(late, setId=2), "setId", successors)
    refuse_post(world, replace(late, epoch=second.activationEpoch, setId=2), "set superseded", successors)
    world.post(replace(late, setId=3), by=Quorum(4, seed=7))


def test_a_set_that_handed_over_signs_for_no_epoch_of_before(chain: Anvil, w3: Web3, now: int) -> None:
    length = 600
    world = World(chain, w3, deploy_registry(w3, build_spec(now, epoch_seconds=length)), now)
    activation = now // length + 2
    world.rotate(world.next_set(activationEpoch=activation))
    digest, indices = keccak(b"a permit"), pack_indices(SIGNERS)
    stolen = world.registry.functions.verifyQuorum(digest, activation - 1, indices, quorum.sign(digest, SIGNERS))
    end = (activation + 2) * length
    before = world.header(epoch=activation - 1, producedAt=end - 100, validUntil=end + 300)

    world.move_to(end - 100 - now)  # what is under way at the activation arrives for two epochs more
    assert stolen.call()
    in_time = chain.rpc("evm_snapshot")
    world.post(before)
    assert stolen.call()
    world.post(replace(before, epoch=activation, setId=2), by=successors)  # an epoch of the next set: at once
    world.refuse_call(stolen, "set superseded")

    chain.rpc("evm_revert", in_time)
    world.move_to(end - now)  # by the clock
    world.refuse_call(stolen, "set superseded")
    refuse_post(world, before, "set superseded", quorum)


def test_an_expired_set_hands_over_no_more(world: World) -> None:
    world.move_to(DAY + 1)
    to = world.next_set(activationEpoch=world.epoch + DAY, notAfter=world.now + 10 * DAY)
    world.refuse_rotation("set expired", to)


def test_a_next_set_ends_too(world: World) -> None:
    world.rotate(world.next_set(activationEpoch=world.epoch + 50, notAfter=world.now + 500))
    world.move_to(501)
    refuse_post(world, replace(later(world, 501), setId=2), "set expired", successors)


def test_a_rotation_does_not_cross_a_fork(world: World) -> None:
    world.chain.rpc("anvil_setChainId", 31338)
    try:
        world.refuse_rotation("chain id changed", world.next_set())
    finally:
        world.chain.rpc("anvil_setChainId", 31337)


def test_governance_recovers_a_lost_set_after_the_timelock(world: World, governance: Any) -> None:
    to = world.next_set(activationEpoch=world.epoch + DAY)
    world.refused("not governance", "scheduleRecovery", to.as_tuple())
    weak = replace(to, threshold=2).as_tuple()
    world.refused("threshold below quorum", "scheduleRecovery", weak, sender=governance)
    world.refused("not the scheduled recovery", "executeRecovery", to.as_tuple())
    receipt = world.send("scheduleRecovery", to.as_tuple(), sender=governance)
    (event,) = world.registry.events.RecoveryScheduled().process_receipt(receipt)
    at = world.w3.eth.get_block(receipt["blockNumber"])["timestamp"] + TIMELOCK
    digest = quorum.rotation_digest(to, world.deployment_id)
    assert dict(event["args"]) == {"setId": 2, "digest": digest, "executableFrom": at}
    assert (world.call("recoveryDigest"), world.call("recoveryFrom")) == (digest, at)

    world.refused("timelock", "executeRecovery", to.as_tuple())
    world.refused("not the scheduled recovery", "executeRecovery", replace(to, threshold=4).as_tuple())
    world.chain.rpc("evm_setNextBlockTimestamp", at)
    receipt = world.send("executeRecovery", to.as_tuple(), sender=world.w3.eth.accounts[5])
    (event,) = world.registry.events.Rotated().process_receipt(receipt)
    assert event["args"]["recovered"]
    assert world.call("setOf", 2) == to.as_tuple()
    world.refused("not the scheduled recovery", "executeRecovery", to.as_tuple())


@pytest.mark.parametrize(
    ("reason", "set_id", "activates_in", "ends_in"),
    [("setId", 3, DAY, DAY), ("activation in the past", 2, 10, DAY), ("notAfter passed", 2, DAY, 100)],
)
def test_a_recovery_obeys_the_rules_of_sets_when_it_is_executed(
    world: World, governance: Any, reason: str, set_id: int, activates_in: int, ends_in: int
) -> None:
    to = world.next_set(set_id, activationEpoch=world.epoch + activates_in, notAfter=world.now + ends_in)
    world.send("scheduleRecovery", to.as_tuple(), sender=governance)
    world.move_to(2 * TIMELOCK)
    world.post(later(world, 2 * TIMELOCK))
    world.refused(reason, "executeRecovery", to.as_tuple())


def test_a_recovery_may_come_late(world: World, governance: Any) -> None:
    to = world.next_set(activationEpoch=world.epoch + 10)
    world.send("scheduleRecovery", to.as_tuple(), sender=governance)
    world.move_to(2 * TIMELOCK)
    world.send("executeRecovery", to.as_tuple())
    refuse_post(world, later(world, 2 * TIMELOCK), "setId", quorum)
    world.post(replace(later(world, 2 * TIMELOCK), setId=2), by=successors)


def test_a_recovery_is_dropped_by_governance_or_by_a_rotation(world: World, governance: Any) -> None:
    to = world.next_set(activationEpoch=world.epoch + DAY)
    world.refused("no recovery", "cancelRecovery", sender=governance)
    world.send("scheduleRecovery", to.as_tuple(), sender=governance)
    world.refused("not governance", "cancelRecovery")
    receipt = world.send("cancelRecovery", sender=governance)
    (event,) = world.registry.events.RecoveryCancelled().process_receipt(receipt)
    assert event["args"]["digest"] == quorum.rotation_digest(to, world.deployment_id)
    world.refused("not the scheduled recovery", "executeRecovery", to.as_tuple())

    recovered = replace(to, members=tuple(Quorum(5, seed=7).members), threshold=4)
    world.send("scheduleRecovery", recovered.as_tuple(), sender=governance)
    receipt = world.rotate(to)
    assert len(world.registry.events.RecoveryCancelled().process_receipt(receipt)) == 1
    world.move_to(TIMELOCK + 100)
    world.refused("not the scheduled recovery", "executeRecovery", recovered.as_tuple())


def test_a_quorum_over_any_digest_is_verified_for_its_epoch(world: World) -> None:
    digest = keccak(b"a hold or a permit")
    to = world.next_set(activationEpoch=world.epoch + 50)
    world.rotate(to)
    verify = world.registry.functions.verifyQuorum
    indices = pack_indices(SIGNERS)
    by_first, by_second = quorum.sign(digest, SIGNERS), successors.sign(digest, SIGNERS)

    def refuse(epoch: int, signed: Any, reason: str, indices: int = indices) -> None:
        world.refuse_call(verify(digest, epoch, indices, signed), reason)

    assert verify(digest, world.epoch, indices, by_first).call()
    refuse(world.epoch, by_second, "wrong signer")
    refuse(world.epoch, by_first[:2], "too few signatures")
    refuse(world.epoch, by_first, "index out of range", pack_indices((0, 1, 4)))
    refuse(world.epoch, by_first, "indices not increasing", pack_indices((0, 0, 3)))
    refuse(world.epoch, [(by_first[0][0], (2**255 - 1).to_bytes(32, "big")), *by_first[1:]], "high s")
    refuse(world.epoch + 40, by_first, "epoch in the future")
    world.post(world.header(floor=world.epoch))
    refuse(world.epoch - 1, by_first, "epoch below the floor")
    world.move_to(96)
    assert verify(digest, to.activationEpoch - 1, indices, by_first).call()
    assert verify(digest, to.activationEpoch, indices, by_second).call()
    refuse(to.activationEpoch, by_first, "wrong signer")
    world.move_to(90_001)
    refuse(to.activationEpoch, by_second, "set expired")
    world.chain.rpc("anvil_setChainId", 31338)
    try:
        refuse(to.activationEpoch, by_second, "chain id changed")
    finally:
        world.chain.rpc("anvil_setChainId", 31337)


@pytest.mark.parametrize("newest", [126, 127, 128, 254, 255, 256, 65_533])
def test_every_set_is_found_however_many_there_were(world: World, newest: int) -> None:
    # Jump: as if sets 2 to `newest` had been created, the last one the genesis set again.
    address = world.registry.address
    meta = newest << 64
    world.chain.rpc("anvil_setStorageAt", address, "0x" + "00" * 32, f"0x{meta:064x}")
    world.chain.rpc("anvil_setNonce", address, hex(newest + 1))
    first = world.w3.eth.get_code(created_by(address, 1))
    world.chain.rpc("anvil_setCode", created_by(address, newest), first.to_0x_hex())
    to = world.next_set(newest + 1, activationEpoch=world.epoch + 50)
    world.rotate(to)
    assert world.call("setOf", newest + 1) == to.as_tuple()
    assert world.w3.eth.get_code(created_by(address, newest + 1))
    world.post(world.header(setId=newest))
    world.move_to(150)
    world.post(replace(later(world, 150), setId=newest + 1), by=successors)


def test_sets_run_out_after_65535(world: World) -> None:
    address = world.registry.address
    world.chain.rpc("anvil_setStorageAt", address, "0x" + "00" * 32, f"0x{65_535 << 64:064x}")
    code = world.w3.eth.get_code(created_by(address, 1))
    world.chain.rpc("anvil_setCode", created_by(address, 65_535), code.to_0x_hex())
    world.refuse_rotation("setId", world.next_set(65_536))


def created_by(creator: str, nonce: int) -> str:
    return Web3.to_checksum_address(keccak(rlp.encode([bytes.fromhex(creator[2:]), nonce]))[12:])


def test_a_largest_set_signs(world: World) -> None:
    many = Quorum(32, seed=5)
    to = NextSet(2, tuple(many.members), 22, world.epoch + 50, world.now + DAY)
    world.rotate(to)
    assert world.call("setOf", 2) == to.as_tuple()
    world.move_to(150)
    header = replace(later(world, 150), setId=2)
    world.post(header, by=many, signers=range(10, 32))
    world.refuse(many.certify(header, world.deployment_id, range(21)), "epoch not above the last")
    world.post(replace(header, epoch=header.epoch + 1), by=many, signers=range(32))
