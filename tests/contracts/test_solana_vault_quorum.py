"""The vault program: holds and withdrawal permits that a quorum signs, in the real SVM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from eth_utils import keccak
from solders.account import Account
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.programs import (
    StandingHold,
    VaultRefusal,
    build_deposit,
    build_hold,
    build_limit,
    build_vault_init,
    build_withdraw,
    decode_vault,
    hold_address,
    nonce_address,
    vault_address,
)
from proofs.permits import Hold, Permit, hold_digest, permit_digest
from proofs.quorum import IndexedSignature
from tests.contracts.solana_reference import CURVE_ORDER, NOW, TOKEN_PROGRAM
from tests.contracts.solana_registry_world import DESTINATION as REAL_DESTINATION
from tests.contracts.solana_registry_world import EPOCH as REAL_EPOCH
from tests.contracts.solana_registry_world import GOVERNANCE, RegistryWorld, make_set, sign_rotation
from tests.contracts.solana_vault_world import (
    ACCOUNT,
    DELAY,
    DEPLOYMENT,
    DESTINATION,
    EPOCH,
    OTHER_ACCOUNT,
    WEEK,
    RegistryRow,
    SetRow,
    VaultWorld,
    refuses,
    signed,
    swap,
    typed_digest,
)


@pytest.fixture
def world() -> VaultWorld:
    """A world in which alice has put 400 in."""
    one = VaultWorld()
    one.deposit(one.alice, 400)
    return one


def test_the_digests_are_those_that_attestors_sign(world: VaultWorld) -> None:
    assert hold_digest(world.make_hold(), DEPLOYMENT) == typed_digest(world.make_hold())
    assert permit_digest(world.make_permit(), DEPLOYMENT) == typed_digest(world.make_permit())


# ---- holds ----


def test_an_account_is_never_held_at_first(world: VaultWorld) -> None:
    assert world.standing() == StandingHold(str(world.vault), ACCOUNT, 0, 0)


def test_a_hold_keeps_claims_in_until_it_ends(world: VaultWorld) -> None:
    world.request(world.alice, 100)
    world.hold()
    assert world.standing() == StandingHold(str(world.vault), ACCOUNT, NOW + 3_600, EPOCH)
    world.set_time(NOW + 3_599)
    refuses(VaultRefusal.HELD, lambda: world.claim(world.alice))
    world.set_time(NOW + 3_600)
    world.claim(world.alice)
    assert world.holding().total == 300


def test_a_hold_stops_claims_of_its_account_only(world: VaultWorld) -> None:
    world.deposit(world.alice, 7, OTHER_ACCOUNT)
    world.hold()
    world.request(world.alice, 7, OTHER_ACCOUNT)
    world.request(world.alice, 1)
    world.cancel(world.alice)
    world.deposit(world.bob, 5)
    world.set_time(NOW + DELAY)
    world.claim(world.alice, account=OTHER_ACCOUNT)
    assert (world.holding().total, world.holding(OTHER_ACCOUNT).total) == (405, 0)


def test_only_a_newer_epoch_replaces_a_hold_and_never_shortens_it(world: VaultWorld) -> None:
    world.hold()
    for epoch in (EPOCH, EPOCH - 1):
        longer = world.make_hold(until=NOW + 7_200, epoch=epoch)
        refuses(VaultRefusal.HOLD_NOT_NEWER, lambda longer=longer: world.hold(longer))
    world.hold(world.make_hold(until=NOW + 60, epoch=EPOCH + 1))
    assert world.standing() == StandingHold(str(world.vault), ACCOUNT, NOW + 3_600, EPOCH + 1)
    world.hold(world.make_hold(until=NOW + 7_200, epoch=EPOCH + 2))
    assert (world.standing().until, world.standing().epoch) == (NOW + 7_200, EPOCH + 2)


def test_a_hold_lasts_at_most_seven_days_and_ends_ahead(world: VaultWorld) -> None:
    refuses(VaultRefusal.HOLD_PASSED, lambda: world.hold(world.make_hold(until=NOW)))
    refuses(VaultRefusal.HOLD_TOO_LONG, lambda: world.hold(world.make_hold(until=NOW + WEEK + 1)))
    refuses(VaultRefusal.HOLD_TOO_LONG, lambda: world.hold(world.make_hold(until=2**64 - 1)))
    world.hold(world.make_hold(until=NOW + WEEK))


def test_there_is_nothing_to_hold_before_the_first_deposit(world: VaultWorld) -> None:
    hold = world.make_hold(account=OTHER_ACCOUNT)
    refuses(VaultRefusal.HOLD_WRONG, lambda: world.hold(hold))
    world.deposit(world.alice, 1, OTHER_ACCOUNT)
    world.hold(hold)


@pytest.mark.parametrize(
    "change",
    [
        {"account": OTHER_ACCOUNT},
        {"chain": keccak(b"solana:another chain")},
        {"vault": keccak(b"another vault")},
        {"until": NOW + 3_601},
        {"epoch": EPOCH + 1},
    ],
)
def test_signatures_over_another_hold_are_refused(world: VaultWorld, change: dict[str, Any]) -> None:
    hold = world.make_hold()
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: world.hold(hold, signed(replace(hold, **change))))


def test_a_hold_of_another_deployment_is_refused(world: VaultWorld) -> None:
    foreign = signed(world.make_hold(), deployment_id=keccak(b"another deployment"))
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: world.hold(signatures=foreign))


def test_hold_refuses_wrong_accounts(world: VaultWorld) -> None:
    hold = world.make_hold()
    good = build_hold(world.program, world.registry, hold, signed(hold))
    theirs = world.add_registry(RegistryRow(world.payer.pubkey()))  # same attestors, same deployment, another account
    other_vault = vault_address(world.program, theirs, DELAY)
    world.run(build_vault_init(world.program, world.payer.pubkey(), theirs, DELAY))
    ours = hold_address(world.program, world.vault, ACCOUNT)
    fake = Pubkey.new_unique()
    world.svm.set_account(fake, Account(10**9, bytes(world.account(ours).data), world.program))
    for bad, code in (
        (swap(good, 0, fake), VaultRefusal.VAULT_WRONG),
        (swap(good, 1, theirs), VaultRefusal.REGISTRY_WRONG),
        (swap(good, 0, other_vault), VaultRefusal.REGISTRY_WRONG),
        (swap(swap(good, 0, other_vault), 1, theirs), VaultRefusal.HOLD_WRONG),
        (swap(good, 2, fake), VaultRefusal.HOLD_WRONG),
        (swap(good, 2, world.vault), VaultRefusal.HOLD_WRONG),
        (swap(good, 2, ours, is_writable=False), VaultRefusal.HOLD_WRONG),
        (Instruction(world.program, good.data, good.accounts[:2]), VaultRefusal.ACCOUNTS_WRONG),
        (Instruction(world.program, good.data[:-1], good.accounts), VaultRefusal.INSTRUCTION_MALFORMED),
        (Instruction(world.program, good.data + b"\0", good.accounts), VaultRefusal.INSTRUCTION_MALFORMED),
        (Instruction(world.program, good.data[:17], good.accounts), VaultRefusal.INSTRUCTION_MALFORMED),
    ):
        refuses(code, lambda bad=bad: world.run(bad))
    data = bytearray(world.account(world.registry).data)
    data[:8] = b"cmREGST1"
    owner = world.account(world.registry).owner
    world.svm.set_account(world.registry, Account(10**9, bytes(data), owner))
    refuses(VaultRefusal.REGISTRY_WRONG, lambda: world.run(good))


# ---- permits ----


def test_a_permit_pays_at_once_from_what_is_free(world: VaultWorld) -> None:
    world.withdraw()
    assert (world.holding().total, world.record(world.alice).amount) == (300, 300)
    assert world.amount(world.purse[world.alice.pubkey()]) == 700
    burnt = world.account(nonce_address(world.program, world.vault, keccak(b"a nonce")))
    assert bytes(burnt.data)[:72] == b"cmNONCE1" + bytes(world.vault) + keccak(b"a nonce")
    assert burnt.owner == world.program


def test_a_permit_leaves_an_open_request_alone_while_it_can(world: VaultWorld) -> None:
    world.request(world.alice, 300)
    world.withdraw()
    record = world.record(world.alice)
    assert (record.amount, record.pending, record.ready_at) == (300, 300, NOW + DELAY)
    world.withdraw(world.make_permit(amount=50, nonce=keccak(b"2")))
    record = world.record(world.alice)
    assert (record.amount, record.pending, record.ready_at) == (250, 250, NOW + DELAY)
    assert (world.holding().total, world.holding().pending) == (250, 250)
    world.withdraw(world.make_permit(amount=250, nonce=keccak(b"3")))
    record = world.record(world.alice)
    assert (record.amount, record.pending, record.ready_at) == (0, 0, 0)
    assert (world.holding().total, world.holding().pending) == (0, 0)


def test_a_permit_can_pay_somebody_else(world: VaultWorld) -> None:
    world.withdraw(world.make_permit(to=bytes(world.purse[world.bob.pubkey()])))
    assert world.amount(world.purse[world.bob.pubkey()]) == 1_100


def test_a_permit_works_once(world: VaultWorld) -> None:
    world.withdraw()
    refuses(VaultRefusal.NONCE_USED, world.withdraw)
    other = world.make_permit(amount=1, epoch=EPOCH + 1)  # other terms, the same nonce
    refuses(VaultRefusal.NONCE_USED, lambda: world.withdraw(other))
    world.withdraw(world.make_permit(nonce=keccak(b"another nonce")))


def test_lamports_sent_to_a_nonce_block_nothing(world: VaultWorld) -> None:
    world.svm.airdrop(nonce_address(world.program, world.vault, keccak(b"a nonce")), 900_000)
    world.withdraw()
    refuses(VaultRefusal.NONCE_USED, world.withdraw)


def test_only_the_depositor_uses_a_permit(world: VaultWorld) -> None:
    world.deposit(world.bob, 50)
    permit = world.make_permit()
    refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: world.withdraw(permit, world.bob))
    stranger = world.add_depositor()
    refuses(VaultRefusal.DEPOSIT_WRONG, lambda: world.withdraw(permit, stranger))
    good = build_withdraw(world.program, world.registry, world.alice.pubkey(), permit, signed(permit))
    key = world.alice.pubkey()
    refuses(VaultRefusal.OWNER_NOT_SIGNER, lambda: world.run(swap(good, 0, key, is_signer=False)))
    unwritable = swap(good, 0, key, is_writable=False)
    refuses(VaultRefusal.OWNER_NOT_SIGNER, lambda: world.run(unwritable, signers=[world.alice]))
    assert world.amount(world.custody) == 450


def test_a_permit_pays_no_more_than_the_depositor_put_in(world: VaultWorld) -> None:
    refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: world.withdraw(world.make_permit(amount=401)))
    refuses(VaultRefusal.AMOUNT_ZERO, lambda: world.withdraw(world.make_permit(amount=0)))
    with pytest.raises(OverflowError):
        world.withdraw(world.make_permit(amount=2**64))
    world.withdraw(world.make_permit(amount=400))
    assert world.amount(world.custody) == 0


def test_a_permit_expires(world: VaultWorld) -> None:
    world.set_time(NOW + 61)
    refuses(VaultRefusal.PERMIT_EXPIRED, world.withdraw)
    world.set_time(NOW + 60)
    world.withdraw()


@pytest.mark.parametrize(
    "change",
    [
        {"account": OTHER_ACCOUNT},
        {"chain": keccak(b"solana:another chain")},
        {"vault": keccak(b"another vault")},
        {"asset": keccak(b"another mint")},
        {"amount": 99},
        {"to": keccak(b"another purse")},
        {"nonce": keccak(b"another nonce")},
        {"epoch": EPOCH + 1},
        {"expiry": NOW + 61},
    ],
)
def test_signatures_over_another_permit_are_refused(world: VaultWorld, change: dict[str, Any]) -> None:
    permit = world.make_permit()
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: world.withdraw(permit, signatures=signed(replace(permit, **change))))
    world.withdraw(permit)


def test_a_permit_of_another_deployment_is_refused(world: VaultWorld) -> None:
    foreign = signed(world.make_permit(), deployment_id=keccak(b"another deployment"))
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: world.withdraw(signatures=foreign))


def test_a_hold_refuses_older_permits_and_lets_newer_ones_pass(world: VaultWorld) -> None:
    world.hold()
    refuses(VaultRefusal.HELD, world.withdraw)
    refuses(VaultRefusal.HELD, lambda: world.withdraw(world.make_permit(epoch=EPOCH - 1)))
    world.withdraw(world.make_permit(epoch=EPOCH + 1))
    world.set_time(NOW + 3_600)
    world.withdraw(world.make_permit(nonce=keccak(b"2"), expiry=NOW + 9_999))  # the hold is over


def test_withdraw_refuses_wrong_accounts(world: VaultWorld) -> None:
    alice, permit = world.alice, world.make_permit()
    good = build_withdraw(world.program, world.registry, alice.pubkey(), permit, signed(permit))
    world.deposit(alice, 5, OTHER_ACCOUNT)
    other_hold = hold_address(world.program, world.vault, OTHER_ACCOUNT)
    theirs = world.add_registry(RegistryRow(world.payer.pubkey()))
    other_mint = world.add_mint()
    for bad, code in (
        (swap(good, 1, theirs), VaultRefusal.VAULT_WRONG),
        (swap(good, 2, other_hold), VaultRefusal.HOLDING_WRONG),
        (swap(good, 3, other_hold), VaultRefusal.DEPOSIT_WRONG),
        (swap(good, 4, other_mint), VaultRefusal.MINT_WRONG),
        (swap(good, 5, world.add_tokens(world.mint, world.vault, 9)), VaultRefusal.TOKEN_ACCOUNT_WRONG),
        (swap(good, 6, world.custody), VaultRefusal.DESTINATION_WRONG),
        (swap(good, 6, world.purse[world.bob.pubkey()]), VaultRefusal.SIGNATURE_WRONG),
        (swap(good, 7, other_hold), VaultRefusal.HOLD_WRONG),
        (swap(good, 7, Pubkey.new_unique()), VaultRefusal.HOLD_WRONG),
        (swap(good, 8, world.program), VaultRefusal.TOKEN_PROGRAM_WRONG),
        (swap(good, 9, theirs), VaultRefusal.REGISTRY_WRONG),
        (swap(good, 10, Pubkey.new_unique()), VaultRefusal.ADDRESS_WRONG),
        (swap(good, 10, world.vault), VaultRefusal.NONCE_USED),
        (swap(good, 11, TOKEN_PROGRAM), VaultRefusal.SYSTEM_PROGRAM_WRONG),
        (Instruction(world.program, good.data, good.accounts[:-1]), VaultRefusal.ACCOUNTS_WRONG),
        (Instruction(world.program, good.data[:-1], good.accounts), VaultRefusal.INSTRUCTION_MALFORMED),
        (Instruction(world.program, good.data + b"\0", good.accounts), VaultRefusal.INSTRUCTION_MALFORMED),
        (Instruction(world.program, good.data[:57], good.accounts), VaultRefusal.INSTRUCTION_MALFORMED),
    ):
        refuses(code, lambda bad=bad: world.run(bad, signers=[alice]))
    assert world.amount(world.custody) == 405


def test_a_permit_holds_at_its_own_vault_only(world: VaultWorld) -> None:
    program, slower = world.program, DELAY + 1
    world.run(build_vault_init(program, world.payer.pubkey(), world.registry, slower))
    first, world.vault = world.vault, vault_address(program, world.registry, slower)
    world.set_limit(1_000)
    world.deposit(world.alice, 100)
    assert decode_vault("", world.raw(world.vault), program).delay == slower
    permit = world.make_permit()
    ours = signed(replace(permit, vault=bytes(first)))
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: world.withdraw(permit, signatures=ours))
    world.withdraw(permit)
    world.vault = first
    world.withdraw(world.make_permit())  # the same nonce, at the vault that never saw it


# ---- quorums: the same for both ----


Bring = Callable[[VaultWorld, int, Sequence[IndexedSignature] | None], None]


def bring_hold(world: VaultWorld, epoch: int, signatures: Sequence[IndexedSignature] | None = None) -> None:
    world.hold(world.make_hold(epoch=epoch), signatures)


def bring_permit(world: VaultWorld, epoch: int, signatures: Sequence[IndexedSignature] | None = None) -> None:
    world.withdraw(world.make_permit(epoch=epoch), signatures=signatures)


def message(world: VaultWorld, bring: Bring, epoch: int = EPOCH) -> Hold | Permit:
    return world.make_hold(epoch=epoch) if bring is bring_hold else world.make_permit(epoch=epoch)


BOTH = pytest.mark.parametrize("bring", [bring_hold, bring_permit])


@BOTH
def test_a_quorum_must_be_complete_ordered_known_and_low(world: VaultWorld, bring: Bring) -> None:
    one = message(world, bring)
    good = signed(one, (0, 1, 2, 3))
    high = replace(good[2], vs=(CURVE_ORDER // 2 + 1).to_bytes(32, "big"))  # the least that is too high
    for signatures, code in (
        ([], VaultRefusal.SIGNATURES_TOO_FEW),
        (good[:2], VaultRefusal.SIGNATURES_TOO_FEW),
        ([good[0], good[0], good[1]], VaultRefusal.SIGNER_ORDER),
        ([good[1], good[0], good[2]], VaultRefusal.SIGNER_ORDER),
        ([good[0], good[1], replace(good[2], index=4)], VaultRefusal.SIGNER_UNKNOWN),
        ([good[0], good[1], replace(good[2], index=3)], VaultRefusal.SIGNATURE_WRONG),
        ([good[0], good[1], high], VaultRefusal.SIGNATURE_HIGH_S),
        ([good[0], good[1], IndexedSignature(2, bytes(32), bytes(32))], VaultRefusal.SIGNATURE_WRONG),
    ):
        refuses(code, lambda signatures=signatures: bring(world, EPOCH, signatures))
    bring(world, EPOCH, good[1:])


@BOTH
def test_the_epoch_is_neither_far_ahead_nor_below_the_floor(world: VaultWorld, bring: Bring) -> None:
    refuses(VaultRefusal.EPOCH_AHEAD, lambda: bring(world, EPOCH + 3, None))
    world.change_registry(floor=EPOCH + 1)
    refuses(VaultRefusal.EPOCH_BELOW_FLOOR, lambda: bring(world, EPOCH, None))
    bring(world, EPOCH + 1, None)


@BOTH
def test_an_expired_set_signs_nothing(world: VaultWorld, bring: Bring) -> None:
    world.change_registry(newest=SetRow(not_after=NOW - 1))
    refuses(VaultRefusal.SET_EXPIRED, lambda: bring(world, EPOCH, None))
    world.change_registry(newest=SetRow(not_after=NOW))
    bring(world, EPOCH, None)


@BOTH
def test_the_epoch_decides_which_set_signs(world: VaultWorld, bring: Bring) -> None:
    rotated = SetRow(set_id=2, activation=EPOCH + 1, first=4)
    world.change_registry(older=SetRow(), newest=rotated)
    new = signed(message(world, bring), first=4)
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: bring(world, EPOCH, new))
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: bring(world, EPOCH + 1, None))
    bring(world, EPOCH, None)
    one = message(world, bring, EPOCH + 1)
    after = replace(one, nonce=keccak(b"2")) if isinstance(one, Permit) else one
    signatures = signed(after, first=4)
    if isinstance(after, Permit):
        world.withdraw(after, signatures=signatures)
    else:
        world.hold(after, signatures)


@BOTH
def test_a_set_that_handed_over_signs_for_no_epoch_of_before(world: VaultWorld, bring: Bring) -> None:
    first, second = SetRow(), SetRow(set_id=2, activation=EPOCH, first=4)
    for posted, activation in ((EPOCH, EPOCH), (0, EPOCH - 2)):  # by what was posted, and by the clock
        world.change_registry(older=first, newest=replace(second, activation=activation), epoch=posted)
        refuses(VaultRefusal.SET_SUPERSEDED, lambda activation=activation: bring(world, activation - 1, None))
    world.change_registry(older=first, newest=replace(second, activation=EPOCH - 1), epoch=EPOCH - 2)
    bring(world, EPOCH - 2, None)  # under way at the activation


@BOTH
def test_a_set_that_was_forgotten_signs_nothing(world: VaultWorld, bring: Bring) -> None:
    older, newest = SetRow(set_id=2, activation=EPOCH, first=4), SetRow(set_id=3, activation=EPOCH + 1, first=8)
    world.change_registry(older=older, newest=newest)
    refuses(VaultRefusal.SET_UNKNOWN, lambda: bring(world, EPOCH - 1, None))


# ---- the packet ----


def test_thirteen_signatures_of_a_hold_fit_one_packet() -> None:
    world = VaultWorld(newest=SetRow(n=19, threshold=13))
    world.deposit(world.alice, 1)
    hold = world.make_hold()
    bring = build_hold(world.program, world.registry, hold, signed(hold, range(13)))
    assert world.run_alone(Keypair.from_bytes(bytes(world.bob)), bring) == 1_174
    assert world.standing().epoch == EPOCH


def test_nine_signatures_of_a_permit_fit_one_packet_and_thirteen_with_a_lookup_table() -> None:
    world = VaultWorld(newest=SetRow(n=13, threshold=9))
    world.deposit(world.alice, 300)
    permit, key = world.make_permit(), world.alice.pubkey()
    nine = build_withdraw(world.program, world.registry, key, permit, signed(permit, range(9)))
    ten = build_withdraw(world.program, world.registry, key, permit, signed(permit, range(10)))
    with pytest.raises(AssertionError, match="bytes"):
        world.run_alone(world.alice, ten)
    size = world.run_alone(world.alice, nine)
    assert size <= 1_232 < size + 65
    world.change_registry(newest=SetRow(n=19, threshold=13))
    permit = replace(permit, nonce=keccak(b"2"))
    thirteen = build_withdraw(world.program, world.registry, key, permit, signed(permit, range(13)))
    table = [meta.pubkey for at, meta in enumerate(thirteen.accounts) if at not in (0, 10)]
    world.run_alone(world.alice, thirteen, table)
    assert world.amount(world.custody) == 100
    assert permit.chain == DESTINATION


# ---- the real registry ----


def test_a_rotation_of_the_real_registry_changes_who_permits() -> None:
    world = RegistryWorld(None, "vault")
    program, payer = world.ids["vault"], world.payer.pubkey()
    alice, mint = Keypair(), world.add_mint()
    world.svm.airdrop(alice.pubkey(), 10**10)
    purse = world.add_tokens(mint, alice.pubkey(), 1_000)
    vault = vault_address(program, world.registry, DELAY)
    world.run(build_vault_init(program, payer, world.registry, DELAY))
    limit = build_limit(program, vault, world.registry, GOVERNANCE.pubkey(), mint, 1_000, payer)
    world.run(limit, signers=[GOVERNANCE])
    world.run(build_deposit(program, vault, alice.pubkey(), ACCOUNT, mint, purse, 400), signers=[alice])

    def withdraw(epoch: int, first: int, nonce: bytes) -> None:
        permit = Permit(
            ACCOUNT, REAL_DESTINATION, bytes(vault), bytes(mint), 100, bytes(purse), nonce, epoch, NOW + 1_000
        )
        signatures = signed(permit, deployment_id=world.id, first=first)
        world.run(build_withdraw(program, world.registry, alice.pubkey(), permit, signatures), signers=[alice])

    withdraw(REAL_EPOCH, 0, keccak(b"1"))
    to = make_set(2, 4, REAL_EPOCH + 2)
    world.stage(to)
    world.rotate(to, sign_rotation(to, world.id, (0, 1, 2)))
    withdraw(REAL_EPOCH + 1, 0, keccak(b"2"))
    refuses(VaultRefusal.SIGNATURE_WRONG, lambda: withdraw(REAL_EPOCH + 2, 0, keccak(b"3")))
    withdraw(REAL_EPOCH + 2, 4, keccak(b"3"))
    hold = Hold(ACCOUNT, REAL_DESTINATION, bytes(vault), NOW + 60, REAL_EPOCH + 2)
    world.run(build_hold(program, world.registry, hold, signed(hold, deployment_id=world.id, first=4)))
    refuses(VaultRefusal.HELD, lambda: withdraw(REAL_EPOCH + 2, 4, keccak(b"4")))
    assert world.amount(purse) == 900
