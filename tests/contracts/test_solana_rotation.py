"""Rotation and recovery of attestor sets on Solana, in the real SVM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.layouts import LayoutError
from adapters.solana.programs import (
    RegistryRefusal,
    build_cancel_recovery,
    build_execute_recovery,
    build_rotate,
    build_schedule_recovery,
    build_stage,
    decode_registry,
    decode_staged,
    staged_address,
)
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, genesis_set, rotation_digest
from tests.contracts.solana_reference import KEYS_BY_INDEX, NOW, Statement, sign
from tests.contracts.solana_registry_world import (
    DAY,
    EPOCH,
    GOVERNANCE,
    GUARDIAN,
    PARAMETERS,
    ROOT,
    RegistryWorld,
    hash_rotation,
    make_deployment,
    make_set,
    refuses,
    sign_rotation,
)

ACTIVATION = EPOCH + 10
GOOD = Statement(EPOCH, ROOT)
NINETY_DAYS_OF_EPOCHS = 90 * DAY // 2


@pytest.fixture
def world() -> RegistryWorld:
    return RegistryWorld()


def hand_over(world: RegistryWorld, to: AttestorSet, first: int = 0) -> None:
    world.stage(to)
    world.rotate(to, sign_rotation(to, world.id, (0, 1, 2), first))


def test_the_digest_is_the_one_of_an_independent_encoder(world: RegistryWorld) -> None:
    for n, threshold in ((1, 1), (4, 3), (19, 13)):
        to = make_set(2, 0, ACTIVATION, n, threshold)
        assert rotation_digest(to, world.id) == hash_rotation(to, world.id)


def test_the_epoch_alone_decides_the_set(world: RegistryWorld) -> None:
    to = make_set(2, 4, ACTIVATION)
    hand_over(world, to)
    state = world.state()
    assert (state.older, state.newest) == (genesis_set(world.deployment), to)
    assert state.sets == (genesis_set(world.deployment), to)

    before = world.at(2 * (ACTIVATION - 2)).but(epoch=ACTIVATION - 1)
    refuses(RegistryRefusal.SET_ID_WRONG, lambda: world.post(before.but(setId=2)))
    by_second = world.signatures(before, first=4)
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(before, by_second))
    world.post(before)

    after = before.but(epoch=ACTIVATION)  # two epochs ahead of the clock: the epoch decides, not the time
    refuses(RegistryRefusal.SET_ID_WRONG, lambda: world.post(after))
    after = after.but(setId=2)
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(after))
    world.post(after, world.signatures(after, first=4))
    assert world.state().epoch == ACTIVATION


def test_a_posting_by_three_takes_at_most_90_000_units(world: RegistryWorld) -> None:
    assert world.post(GOOD) <= 90_000
    hand_over(world, make_set(2, 4, ACTIVATION))
    rotated = world.at(2 * ACTIVATION).but(setId=2)
    assert world.post(rotated, world.signatures(rotated, first=4)) <= 90_000


def test_a_chain_of_rotations_keeps_two_sets(world: RegistryWorld) -> None:
    second, third = make_set(2, 4, ACTIVATION), make_set(3, 8, ACTIVATION + 10)
    hand_over(world, second)
    world.set_time(2 * ACTIVATION)
    hand_over(world, third, first=4)
    assert world.state().sets == (second, third)
    forgotten = world.at(2 * ACTIVATION).but(epoch=ACTIVATION - 1)
    refuses(RegistryRefusal.SET_UNKNOWN, lambda: world.post(forgotten))
    last = forgotten.but(epoch=ACTIVATION, setId=2)
    world.post(last, world.signatures(last, first=4))
    newest = world.at(2 * ACTIVATION + 20).but(setId=3)
    world.post(newest, world.signatures(newest, first=8))
    assert world.state().root == ROOT


def test_a_chain_that_learns_of_a_rotation_late_takes_it(world: RegistryWorld) -> None:
    # It stood still from before the activation of the second set until after that of the third.
    world.post(GOOD)
    second, third = make_set(2, 4, ACTIVATION), make_set(3, 8, ACTIVATION + 50)
    late = world.at(NOW + 400)
    refuses(RegistryRefusal.ACTIVATION_WRONG, lambda: hand_over(world, replace(second, activation_epoch=EPOCH)))
    hand_over(world, second)
    refuses(RegistryRefusal.ACTIVATION_WRONG, lambda: hand_over(world, replace(third, activation_epoch=ACTIVATION), 4))
    refuses(RegistryRefusal.SET_ID_WRONG, lambda: world.post(late))
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(late.but(setId=2)))
    refuses(RegistryRefusal.SET_SUPERSEDED, lambda: world.post(late.but(epoch=ACTIVATION - 1)))

    hand_over(world, third, first=4)
    by_second = late.but(setId=2)
    refuses(RegistryRefusal.SET_ID_WRONG, lambda: world.post(by_second, world.signatures(by_second, first=4)))
    before = by_second.but(epoch=ACTIVATION)
    refuses(RegistryRefusal.SET_SUPERSEDED, lambda: world.post(before, world.signatures(before, first=4)))
    newest = late.but(setId=3)
    world.post(newest, world.signatures(newest, first=8))


def test_a_set_that_handed_over_posts_for_two_epochs_more(world: RegistryWorld) -> None:
    hand_over(world, make_set(2, 4, ACTIVATION))
    arrives = world.at(2 * ACTIVATION + 3).but(epoch=ACTIVATION - 2)
    world.post(arrives)
    late = world.at(2 * ACTIVATION + 4).but(epoch=ACTIVATION - 1)
    refuses(RegistryRefusal.SET_SUPERSEDED, lambda: world.post(late))


def test_a_recovery_may_come_late(world: RegistryWorld) -> None:
    late = make_set(2, 8, ACTIVATION)
    world.stage(late)
    schedule(world, late)
    world.set_time(NOW + DAY)
    execute(world, late)
    first = world.at(NOW + DAY).but(setId=2)
    world.post(first, world.signatures(first, first=8))


def test_each_set_ends_at_its_own_time(world: RegistryWorld) -> None:
    hand_over(world, make_set(2, 4, ACTIVATION, not_after=NOW + 5_000))
    world.set_time(NOW + 4_000)  # the first set ended at NOW + 1,000
    late = world.at(NOW + 4_000).but(setId=2)
    world.post(late, world.signatures(late, first=4))
    late = world.at(NOW + 5_001).but(setId=2)
    refuses(RegistryRefusal.SET_EXPIRED, lambda: world.post(late, world.signatures(late, first=4)))


def test_a_pending_set_may_be_active_by_what_was_posted(world: RegistryWorld) -> None:
    second, third = make_set(2, 4, EPOCH + 2), make_set(3, 8, EPOCH + 3)
    hand_over(world, second)
    world.stage(third)
    signed = sign_rotation(third, world.id, (0, 1, 2), first=4)
    refuses(RegistryRefusal.SET_PENDING, lambda: world.rotate(third, signed))
    ahead = GOOD.but(epoch=EPOCH + 2, setId=2)
    world.post(ahead, world.signatures(ahead, first=4))
    world.rotate(third, signed)
    assert world.state().newest == third


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (RegistryRefusal.SET_NOT_NEXT, {"set_id": 1}),
        (RegistryRefusal.SET_NOT_NEXT, {"set_id": 3}),
        (RegistryRefusal.SET_NOT_NEXT, {"set_id": 2**32 - 1}),
        (RegistryRefusal.ACTIVATION_WRONG, {"activation_epoch": 0}),
        (RegistryRefusal.ACTIVATION_WRONG, {"activation_epoch": EPOCH + NINETY_DAYS_OF_EPOCHS + 1}),
        (RegistryRefusal.ACTIVATION_WRONG, {"activation_epoch": 2**64 - 1}),
        (RegistryRefusal.SET_LIFETIME_WRONG, {"not_after": NOW}),
    ],
)
def test_rotate_refuses(world: RegistryWorld, code: RegistryRefusal, changes: dict[str, Any]) -> None:
    to = replace(make_set(2, 4, ACTIVATION), **changes)
    refuses(code, lambda: hand_over(world, to))
    assert world.state().newest.set_id == 1


def test_rotate_refuses_an_activation_not_above_what_was_posted(world: RegistryWorld) -> None:
    world.post(GOOD.but(epoch=EPOCH + 2))
    refuses(RegistryRefusal.ACTIVATION_WRONG, lambda: hand_over(world, make_set(2, 4, EPOCH + 2)))
    hand_over(world, make_set(2, 4, EPOCH + 3))


def test_rotate_accepts_the_bounds() -> None:
    bound = EPOCH + NINETY_DAYS_OF_EPOCHS
    world = RegistryWorld(make_deployment(network_class=1))
    too_long = make_set(2, 4, bound, not_after=2 * bound + 90 * DAY + 1)
    refuses(RegistryRefusal.SET_LIFETIME_WRONG, lambda: hand_over(world, too_long))
    hand_over(world, replace(too_long, not_after=too_long.not_after - 1))
    devnet = RegistryWorld()
    hand_over(devnet, make_set(2, 4, EPOCH + 1, not_after=2**64 - 1))


def test_rotate_refuses_bad_signatures(world: RegistryWorld) -> None:
    to = make_set(2, 4, EPOCH + 1_000)
    world.stage(to)
    digest = hash_rotation(to, world.id)
    one, two, three = sign_rotation(to, world.id, (0, 1, 2))
    other = make_deployment(salt=b"\x5b" * 32).deployment_id()
    for code, signatures in (
        (RegistryRefusal.SIGNATURES_TOO_FEW, [one, two]),
        (RegistryRefusal.SIGNATURES_TOO_FEW, []),
        (RegistryRefusal.SIGNER_ORDER, [two, one, three]),
        (RegistryRefusal.SIGNER_ORDER, [one, one, two]),
        (RegistryRefusal.SIGNER_UNKNOWN, [one, two, sign(KEYS_BY_INDEX[4], 4, digest)]),
        (RegistryRefusal.SIGNATURE_WRONG, [one, two, b"\x02" + bytes(64)]),
        (RegistryRefusal.SIGNATURE_WRONG, sign_rotation(to, other, (0, 1, 2))),
        (RegistryRefusal.SIGNATURE_WRONG, sign_rotation(to, world.id, (0, 1, 2), first=4)),  # itself
        (RegistryRefusal.SIGNATURE_WRONG, sign_rotation(replace(to, threshold=4), world.id, (0, 1, 2))),
        (RegistryRefusal.SIGNATURE_WRONG, world.signatures(GOOD)),  # another type
    ):
        refuses(code, lambda signatures=signatures: world.rotate(to, signatures))
    world.set_time(NOW + 1_001)
    refuses(RegistryRefusal.SET_EXPIRED, lambda: world.rotate(to, [one, two, three]))


def test_thirteen_signatures_rotate_a_full_set_in_two_packets() -> None:
    world = RegistryWorld(make_deployment(19, 13))
    to = make_set(2, 0, ACTIVATION, 19, 13)
    world.stage(to)
    world.rotate(to, sign_rotation(to, world.id, range(6, 19)))  # World.run measures the packets
    assert world.state().newest == to


def test_a_small_set_rotates_in_one_packet(world: RegistryWorld) -> None:
    to = make_set(2, 4, ACTIVATION, 10, 7)
    signed = [IndexedSignature.unpack(one) for one in sign_rotation(to, world.id, (0, 1, 2, 3))]
    payer = world.payer.pubkey()
    world.run(
        build_stage(world.program, world.registry, payer, world.id, to),
        build_rotate(world.program, world.registry, rotation_digest(to, world.id), signed),
    )
    assert world.state().newest == to


# ---- staging ----


def test_a_set_is_staged_once_by_anybody(world: RegistryWorld) -> None:
    to = make_set(2, 4, ACTIVATION)
    digest = hash_rotation(to, world.id)
    key = staged_address(world.program, world.registry, digest)
    world.svm.airdrop(key, 5_000)  # lamports sent ahead do not block it
    world.stage(to)
    staged = decode_staged(str(key), world.raw(key), world.program)
    assert (staged.registry, staged.digest, staged.to) == (str(world.registry), digest, to)
    world.svm.expire_blockhash()
    world.stage(to)  # harmless


def stage_with(world: RegistryWorld, changes: dict[int, bytes]) -> Callable[[], object]:
    good = build_stage(world.program, world.registry, world.payer.pubkey(), world.id, make_set(2, 4, ACTIVATION))
    data = bytearray(good.data)
    for at, new in changes.items():
        data[at : at + len(new)] = new
    return lambda: world.run(Instruction(good.program_id, bytes(data), good.accounts))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (RegistryRefusal.THRESHOLD_WRONG, {5: b"\x02"}),
        (RegistryRefusal.THRESHOLD_WRONG, {5: b"\x05"}),
        (RegistryRefusal.MEMBER_COUNT_WRONG, {6: b"\x00"}),
        (RegistryRefusal.MEMBER_COUNT_WRONG, {6: b"\x21"}),
        (RegistryRefusal.INSTRUCTION_MALFORMED, {6: b"\x05"}),
        (RegistryRefusal.MEMBER_INVALID, {23: bytes(20)}),
        (RegistryRefusal.MEMBER_INVALID, {83: KEYS_BY_INDEX[4].public_key.to_canonical_address()}),
        (RegistryRefusal.ADDRESS_WRONG, {7: b"\x01"}),  # other terms have another address
    ],
)
def test_stage_refuses(world: RegistryWorld, code: RegistryRefusal, changes: dict[int, bytes]) -> None:
    refuses(code, stage_with(world, changes))


def test_stage_refuses_three_members_outside_a_devnet() -> None:
    world = RegistryWorld(make_deployment(network_class=2))
    refuses(RegistryRefusal.MEMBER_COUNT_WRONG, lambda: world.stage(make_set(2, 4, ACTIVATION, 3, 3)))


def test_another_set_or_anothers_account_is_no_staged_set(world: RegistryWorld) -> None:
    to, other = make_set(2, 4, ACTIVATION), make_set(2, 8, ACTIVATION)
    world.stage(to)
    world.stage(other)
    signed = sign_rotation(to, world.id, (0, 1, 2))
    packed = bytes([4, 3]) + b"".join(signed)
    key = staged_address(world.program, world.registry, hash_rotation(to, world.id))
    real = world.account(key)
    foreign, misplaced, small, unmarked = (Pubkey.new_unique() for _ in range(4))
    world.svm.set_account(foreign, Account(real.lamports, bytes(real.data), Pubkey.new_unique()))
    world.svm.set_account(misplaced, Account(real.lamports, bytes(real.data), world.program))
    world.svm.set_account(small, Account(real.lamports, bytes(real.data)[:-1], world.program))
    world.svm.set_account(unmarked, Account(real.lamports, b"x" + bytes(real.data)[1:], world.program))

    def rotate(registry: Pubkey, staged: Pubkey, writable: bool = True) -> Callable[[], object]:
        metas = [AccountMeta(registry, False, writable), AccountMeta(staged, False, False)]
        return lambda: world.run(Instruction(world.program, packed, metas))

    for wrong in (foreign, misplaced, small, unmarked, world.registry):
        refuses(RegistryRefusal.STATE_WRONG, rotate(world.registry, wrong))
    swapped = staged_address(world.program, world.registry, hash_rotation(other, world.id))
    refuses(RegistryRefusal.SIGNATURE_WRONG, rotate(world.registry, swapped))
    refuses(RegistryRefusal.STATE_WRONG, rotate(world.registry, key, writable=False))
    refuses(RegistryRefusal.STATE_WRONG, rotate(key, key))
    world.run(
        Instruction(world.program, packed, [AccountMeta(world.registry, False, True), AccountMeta(key, False, False)])
    )
    assert world.state().newest == to


@pytest.mark.parametrize("cut", [1, 2, 3, 66, 196])
def test_rotate_refuses_a_cut_instruction(world: RegistryWorld, cut: int) -> None:
    to = make_set(2, 4, ACTIVATION)
    world.stage(to)
    signed = [IndexedSignature.unpack(one) for one in sign_rotation(to, world.id, (0, 1, 2))]
    good = build_rotate(world.program, world.registry, hash_rotation(to, world.id), signed)
    short = Instruction(world.program, bytes(good.data)[:cut], good.accounts)
    refuses(RegistryRefusal.INSTRUCTION_MALFORMED, lambda: world.run(short))
    few = Instruction(world.program, bytes(good.data), good.accounts[:1])
    refuses(RegistryRefusal.ACCOUNTS_WRONG, lambda: world.run(few))


# ---- recovery ----


def schedule(world: RegistryWorld, to: AttestorSet, who: Keypair = GOVERNANCE) -> None:
    instruction = build_schedule_recovery(world.program, world.registry, who.pubkey(), hash_rotation(to, world.id))
    world.run(instruction, signers=[who])


def execute(world: RegistryWorld, to: AttestorSet) -> None:
    world.svm.expire_blockhash()
    world.run(build_execute_recovery(world.program, world.registry, hash_rotation(to, world.id)))


def cancel(world: RegistryWorld, who: Keypair = GOVERNANCE) -> None:
    world.svm.expire_blockhash()
    world.run(build_cancel_recovery(world.program, world.registry, who.pubkey()), signers=[who])


RECOVERED = make_set(2, 8, EPOCH + DAY)  # two seconds an epoch: active two days from now


def test_governance_recovers_a_lost_set_after_the_timelock(world: RegistryWorld) -> None:
    world.stage(RECOVERED)
    schedule(world, RECOVERED)
    assert world.state().recovery == (hash_rotation(RECOVERED, world.id), NOW + PARAMETERS.timelock)
    world.set_time(NOW + DAY - 1)
    refuses(RegistryRefusal.TIMELOCK_RUNNING, lambda: execute(world, RECOVERED))
    world.set_time(NOW + DAY)
    execute(world, RECOVERED)
    state = world.state()
    assert (state.newest, state.recovery) == (RECOVERED, None)
    refuses(RegistryRefusal.RECOVERY_NONE, lambda: execute(world, RECOVERED))
    later = world.at(NOW + 2 * DAY).but(setId=2)
    world.post(later, world.signatures(later, first=8))


def test_only_governance_recovers(world: RegistryWorld) -> None:
    world.stage(RECOVERED)
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: schedule(world, RECOVERED, GUARDIAN))
    good = build_schedule_recovery(
        world.program, world.registry, GOVERNANCE.pubkey(), hash_rotation(RECOVERED, world.id)
    )
    silent = [AccountMeta(GOVERNANCE.pubkey(), is_signer=False, is_writable=False), *good.accounts[1:]]
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: world.run(Instruction(world.program, good.data, silent)))
    refuses(RegistryRefusal.RECOVERY_NONE, lambda: cancel(world))
    schedule(world, RECOVERED)
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: cancel(world, GUARDIAN))
    cancel(world)
    assert world.state().recovery is None
    world.set_time(NOW + DAY)
    refuses(RegistryRefusal.RECOVERY_NONE, lambda: execute(world, RECOVERED))


def test_what_is_executed_is_what_was_scheduled(world: RegistryWorld) -> None:
    other = replace(RECOVERED, members=make_set(2, 4, 0).members)
    world.stage(RECOVERED)
    world.stage(other)
    schedule(world, other)
    schedule(world, RECOVERED)  # replaces it
    world.set_time(NOW + DAY)
    refuses(RegistryRefusal.RECOVERY_NONE, lambda: execute(world, other))
    execute(world, RECOVERED)


def test_a_rotation_ends_a_recovery(world: RegistryWorld) -> None:
    world.stage(RECOVERED)
    schedule(world, RECOVERED)
    hand_over(world, make_set(2, 4, ACTIVATION))
    assert world.state().recovery is None
    world.set_time(NOW + DAY)
    refuses(RegistryRefusal.RECOVERY_NONE, lambda: execute(world, RECOVERED))


def test_a_recovered_set_obeys_the_rules_of_a_rotation(world: RegistryWorld) -> None:
    late = make_set(2, 8, EPOCH)
    world.stage(late)
    schedule(world, late)
    world.post(GOOD)
    world.set_time(NOW + DAY)
    refuses(RegistryRefusal.ACTIVATION_WRONG, lambda: execute(world, late))
    skipping = make_set(3, 8, EPOCH + DAY)
    world.stage(skipping)
    schedule(world, skipping)
    world.set_time(NOW + 2 * DAY)
    refuses(RegistryRefusal.SET_NOT_NEXT, lambda: execute(world, skipping))


def test_a_schedule_needs_a_staged_set(world: RegistryWorld) -> None:
    refuses(RegistryRefusal.STATE_WRONG, lambda: schedule(world, RECOVERED))
    refuses(RegistryRefusal.STATE_WRONG, lambda: execute(world, RECOVERED))


@pytest.mark.parametrize("tag", [5, 6, 7])
def test_recovery_refuses_malformed_instructions(world: RegistryWorld, tag: int) -> None:
    metas = [AccountMeta(GOVERNANCE.pubkey(), True, False), AccountMeta(world.registry, False, True)] * 2
    longer = Instruction(world.program, bytes([tag, 0]), metas)
    refuses(RegistryRefusal.INSTRUCTION_MALFORMED, lambda: world.run(longer, signers=[GOVERNANCE]))
    more = Instruction(world.program, bytes([tag]), metas)
    refuses(RegistryRefusal.ACCOUNTS_WRONG, lambda: world.run(more, signers=[GOVERNANCE]))


# ---- the client ----


def test_decoding_sets_is_strict(world: RegistryWorld) -> None:
    to = make_set(2, 4, ACTIVATION)
    hand_over(world, to)
    good = world.raw(world.registry)
    for at, new, field in (
        (1_005, b"\x21", "newestSet.memberCount"),
        (1_004, b"\x01", "newestSet.threshold"),
        (1_024, bytes(20), "newestSet.members"),
        (341, b"\x21", "olderSet.memberCount"),
        (104, bytes(8), "epochSeconds"),
    ):
        data = good.data[:at] + new + good.data[at + len(new) :]
        with pytest.raises(LayoutError) as caught:
            decode_registry(str(world.registry), replace(good, data=data), world.program)
        assert caught.value.field.startswith(field)
    key = staged_address(world.program, world.registry, hash_rotation(to, world.id))
    staged = world.raw(key)
    for raw, field in (
        (replace(staged, owner=str(Pubkey.default())), "owner"),
        (replace(staged, data=staged.data[:-1]), "size"),
        (replace(staged, data=b"x" + staged.data[1:]), "discriminator"),
        (replace(staged, data=staged.data[:85] + b"\xff" + staged.data[86:]), "set.memberCount"),
    ):
        with pytest.raises(LayoutError) as caught:
            decode_staged(str(key), raw, world.program)
        assert caught.value.field.startswith(field)


def test_the_staged_digest_covers_every_byte(world: RegistryWorld) -> None:
    base = make_set(2, 4, ACTIVATION)
    others = [
        replace(base, set_id=3),
        replace(base, threshold=4),
        replace(base, activation_epoch=ACTIVATION + 1),
        replace(base, not_after=base.not_after + 1),
        replace(base, members=base.members[::-1]),
    ]
    digests = {hash_rotation(one, world.id) for one in (base, *others)}
    assert len(digests) == 6
    for one in (base, *others):
        world.stage(one)  # the program finds the same address, or refuses
