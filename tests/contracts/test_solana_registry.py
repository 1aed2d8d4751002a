"""The registry program, rule by rule, in the real SVM."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from adapters.solana.layouts import LayoutError, RawAccount
from adapters.solana.programs import (
    RegistryParameters,
    RegistryRefusal,
    build_post,
    build_registry_init,
    build_verify,
    decode_registry,
    registry_address,
)
from proofs.leaf import unpack
from proofs.quorum import IndexedSignature
from proofs.sets import genesis_set
from proofs.statement import Header
from tests.contracts.solana_reference import (
    CURVE_ORDER,
    KEYS_BY_INDEX,
    NOW,
    PROGRAMS,
    Refused,
    Statement,
    World,
    pack_leaf,
    sign,
)
from tests.contracts.solana_registry_world import (
    DAY,
    EPOCH,
    GOVERNANCE,
    GUARDIAN,
    PARAMETERS,
    ROOT,
    RegistryWorld,
    make_deployment,
    make_leaf,
    post_leaf,
    refuses,
)


@pytest.fixture
def world() -> RegistryWorld:
    return RegistryWorld()


# ---- init ----


def test_init_records_the_deployment_and_its_domain(world: RegistryWorld) -> None:
    state = world.state()
    assert state.deployment_id == world.id
    assert (state.older, state.newest) == (None, genesis_set(world.deployment))
    assert (state.salt, state.network_class) == (b"\x5a" * 32, 3)
    assert (state.parameters, state.epoch, state.root) == (PARAMETERS, 0, None)
    assert (state.paused, state.recovery) == ((0, 0), None)
    domain = keccak(b"EIP712Domain(string name,string version,bytes32 salt)")
    assert state.domain_separator == keccak(domain + keccak(b"crossmargin") + keccak(b"1") + world.id)


def test_init_of_a_full_set_fits_a_packet() -> None:
    assert len(RegistryWorld(make_deployment(19, 13)).state().newest.members) == 19


def test_init_twice_is_refused(world: RegistryWorld) -> None:
    again = build_registry_init(world.program, world.payer.pubkey(), world.deployment, PARAMETERS)
    refuses(RegistryRefusal.ALREADY_INITIALISED, lambda: world.run(again))


def test_lamports_sent_ahead_do_not_block_init() -> None:
    world = World("registry")
    deployment, program = make_deployment(), world.ids["registry"]
    registry = registry_address(program, deployment.deployment_id(), PARAMETERS)
    world.svm.airdrop(registry, 1_000_000)
    world.run(build_registry_init(program, world.payer.pubkey(), deployment, PARAMETERS))
    account = world.account(registry)
    assert account.owner == program
    assert account.lamports >= world.svm.minimum_balance_for_rent_exemption(len(account.data))


@pytest.mark.parametrize(
    "parameters",
    [
        replace(PARAMETERS, destination=keccak(b"elsewhere")),
        replace(PARAMETERS, max_lifetime=10**9),
        replace(PARAMETERS, clock_skew=10**9),
        replace(PARAMETERS, epoch_seconds=1),
        replace(PARAMETERS, timelock=DAY - 1),
        replace(PARAMETERS, governance=GUARDIAN.pubkey()),
        replace(PARAMETERS, guardian=GOVERNANCE.pubkey()),
    ],
)
def test_a_stranger_with_other_parameters_makes_another_registry(parameters: RegistryParameters) -> None:
    world = World("registry")
    deployment, program = make_deployment(), world.ids["registry"]
    ours = registry_address(program, deployment.deployment_id(), PARAMETERS)
    theirs = build_registry_init(program, world.payer.pubkey(), deployment, parameters)
    accounts = list(theirs.accounts)
    accounts[1] = AccountMeta(ours, is_signer=False, is_writable=True)
    refuses(RegistryRefusal.ADDRESS_WRONG, lambda: world.run(Instruction(program, theirs.data, accounts)))
    world.run(theirs)
    world.run(build_registry_init(program, world.payer.pubkey(), deployment, PARAMETERS))


def init_with(changes: dict[int, bytes], parts: dict[str, Any] | None = None) -> None:
    """Run init with bytes replaced at offsets of its data."""
    world = World("registry")
    deployment = make_deployment(**(parts or {}))
    good = build_registry_init(world.ids["registry"], world.payer.pubkey(), deployment, PARAMETERS)
    data = bytearray(good.data)
    for at, new in changes.items():
        data[at : at + len(new)] = new
    world.run(Instruction(good.program_id, bytes(data), good.accounts))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (RegistryRefusal.NETWORK_CLASS_UNKNOWN, {1: b"\x00"}),
        (RegistryRefusal.NETWORK_CLASS_UNKNOWN, {1: b"\x04"}),
        (RegistryRefusal.THRESHOLD_WRONG, {2: b"\x02"}),
        (RegistryRefusal.THRESHOLD_WRONG, {2: b"\x05"}),
        (RegistryRefusal.MEMBER_COUNT_WRONG, {3: b"\x00"}),
        (RegistryRefusal.MEMBER_COUNT_WRONG, {3: b"\x21"}),
        (RegistryRefusal.INSTRUCTION_MALFORMED, {3: b"\x05"}),
        (RegistryRefusal.PARAMETER_INVALID, {4: NOW.to_bytes(8, "little")}),
        (RegistryRefusal.PARAMETER_INVALID, {76: bytes(8)}),
        (RegistryRefusal.PARAMETER_INVALID, {92: bytes(8)}),
        (RegistryRefusal.PARAMETER_INVALID, {100: (30 * DAY + 1).to_bytes(8, "little")}),
        (RegistryRefusal.PARAMETER_INVALID, {108: bytes(32)}),
        (RegistryRefusal.MEMBER_INVALID, {172: bytes(20)}),
        (RegistryRefusal.MEMBER_INVALID, {232: KEYS_BY_INDEX[0].public_key.to_canonical_address()}),
        (RegistryRefusal.ADDRESS_WRONG, {12: b"\x5b"}),
        (RegistryRefusal.INSTRUCTION_MALFORMED, {0: b"\x0f"}),
    ],
)
def test_init_refuses(code: RegistryRefusal, changes: dict[int, bytes]) -> None:
    refuses(code, lambda: init_with(changes))


def test_init_refuses_three_members_outside_a_devnet() -> None:
    members = tuple(key.public_key.to_canonical_address() for key in KEYS_BY_INDEX[:3])
    refuses(
        RegistryRefusal.MEMBER_COUNT_WRONG,
        lambda: init_with({1: b"\x01"}, {"members": members}),
    )


@pytest.mark.parametrize("network_class", [1, 2])
def test_a_set_ends_within_ninety_days_outside_a_devnet(network_class: int) -> None:
    bound = NOW + 90 * 86_400
    assert (
        RegistryWorld(make_deployment(network_class=network_class, not_after=bound)).state().newest.not_after == bound
    )
    refuses(
        RegistryRefusal.PARAMETER_INVALID,
        lambda: RegistryWorld(make_deployment(network_class=network_class, not_after=bound + 1)),
    )


@pytest.mark.parametrize("network_class", [1, 2])
def test_the_timelock_is_at_least_a_day_outside_a_devnet(network_class: int) -> None:
    deployment = make_deployment(network_class=network_class)
    refuses(
        RegistryRefusal.PARAMETER_INVALID,
        lambda: RegistryWorld(deployment, parameters=replace(PARAMETERS, timelock=DAY - 1)),
    )
    assert RegistryWorld(deployment, parameters=replace(PARAMETERS, timelock=30 * DAY)).state().parameters.timelock
    assert RegistryWorld(parameters=replace(PARAMETERS, timelock=0)).state().parameters.timelock == 0


def test_a_devnets_set_may_last() -> None:
    assert RegistryWorld(make_deployment(not_after=NOW + 10**9)).state().newest.not_after == NOW + 10**9


def test_init_refuses_wrong_accounts() -> None:
    world = World("registry")
    good = build_registry_init(world.ids["registry"], world.payer.pubkey(), make_deployment(), PARAMETERS)

    def run(accounts: list[AccountMeta]) -> Callable[[], object]:
        return lambda: world.run(Instruction(good.program_id, good.data, accounts))

    payer, registry, system = good.accounts
    stranger = Pubkey.new_unique()
    world.svm.airdrop(stranger, 10**9)
    refuses(RegistryRefusal.ACCOUNTS_WRONG, run([payer, registry]))
    refuses(RegistryRefusal.ACCOUNTS_WRONG, run([payer, registry, system, system]))
    refuses(RegistryRefusal.SYSTEM_PROGRAM_WRONG, run([payer, registry, AccountMeta(stranger, False, False)]))
    refuses(RegistryRefusal.PAYER_NOT_SIGNER, run([AccountMeta(stranger, False, True), registry, system]))


# ---- post ----


def test_post_records_the_statement(world: RegistryWorld) -> None:
    world.post(Statement(EPOCH, ROOT, floor=7))
    state = world.state()
    assert (state.epoch, state.floor, state.root) == (EPOCH, 7, ROOT)
    assert (state.produced_at, state.valid_until, state.posted_at) == (NOW, NOW + 60, NOW)
    assert state.ring == {EPOCH: ROOT}


def test_post_through_the_client(world: RegistryWorld) -> None:
    statement = Statement(EPOCH, ROOT)
    header = Header(EPOCH, ROOT, 0, 1, NOW, NOW + 60, b"\xbd" * 32)
    signed = [IndexedSignature.unpack(packed) for packed in world.signatures(statement)]
    world.run(build_post(world.program, world.registry, header, signed))
    assert world.state().root == ROOT


@pytest.mark.parametrize("indices", [(0, 1, 2), (0, 1, 3), (1, 2, 3), (0, 1, 2, 3)])
def test_any_quorum_in_order_is_accepted(world: RegistryWorld, indices: tuple[int, ...]) -> None:
    statement = Statement(EPOCH, ROOT)
    world.post(statement, world.signatures(statement, indices))
    assert world.state().epoch == EPOCH


def test_thirteen_signatures_fit_one_packet() -> None:
    world = RegistryWorld(make_deployment(19, 13))
    statement = Statement(EPOCH, ROOT)
    world.post(statement, world.signatures(statement, tuple(range(6, 19))))  # World.run measures the packet
    assert world.state().root == ROOT


GOOD = Statement(EPOCH, ROOT)


@pytest.mark.parametrize(
    ("code", "statement"),
    [
        (RegistryRefusal.EPOCH_NOT_NEWER, GOOD.but(epoch=0)),
        (RegistryRefusal.EPOCH_AHEAD, GOOD.but(epoch=EPOCH + 3)),
        (RegistryRefusal.PRODUCED_AHEAD, GOOD.but(producedAt=NOW + 6)),
        (RegistryRefusal.PRODUCED_AHEAD, GOOD.but(producedAt=2**64 - 1)),
        (RegistryRefusal.EXPIRED, GOOD.but(validUntil=NOW)),
        (RegistryRefusal.LIFETIME_TOO_LONG, GOOD.but(validUntil=NOW + 121)),
        (RegistryRefusal.LIFETIME_TOO_LONG, GOOD.but(producedAt=NOW + 5, validUntil=NOW + 4)),
        (RegistryRefusal.LIFETIME_TOO_LONG, GOOD.but(producedAt=NOW + 5, validUntil=NOW + 5)),
        (RegistryRefusal.FLOOR_ABOVE_EPOCH, GOOD.but(floor=EPOCH + 1)),
        (RegistryRefusal.SET_ID_WRONG, GOOD.but(setId=2)),
        (RegistryRefusal.ROOT_ZERO, GOOD.but(root=bytes(32))),
    ],
)
def test_post_refuses(world: RegistryWorld, code: RegistryRefusal, statement: Statement) -> None:
    refuses(code, lambda: world.post(statement))
    assert world.state().epoch == 0


def test_post_accepts_the_bounds(world: RegistryWorld) -> None:
    world.post(GOOD.but(epoch=EPOCH + 2, producedAt=NOW + 5, validUntil=NOW + 125, floor=EPOCH + 2))
    assert world.state().epoch == EPOCH + 2


def test_post_refuses_an_old_epoch_and_a_lower_floor(world: RegistryWorld) -> None:
    world.post(GOOD.but(floor=10))
    refuses(RegistryRefusal.EPOCH_NOT_NEWER, lambda: world.post(GOOD.but(floor=10)))
    refuses(RegistryRefusal.EPOCH_NOT_NEWER, lambda: world.post(GOOD.but(epoch=EPOCH - 1, floor=10)))
    refuses(RegistryRefusal.FLOOR_BACKWARDS, lambda: world.post(GOOD.but(epoch=EPOCH + 1, floor=9)))


def test_post_refuses_a_set_past_its_time(world: RegistryWorld) -> None:
    late = NOW + 1_001
    statement = GOOD.but(epoch=late // 2, producedAt=late, validUntil=late + 60)
    world.set_time(late)
    refuses(RegistryRefusal.SET_EXPIRED, lambda: world.post(statement))
    world.set_time(late - 1)
    world.post(statement)


def test_post_refuses_bad_signatures(world: RegistryWorld) -> None:
    digest = GOOD.digest(world.id)
    one, two, three = world.signatures(GOOD)
    refuses(RegistryRefusal.SIGNATURES_TOO_FEW, lambda: world.post(GOOD, [one, two]))
    refuses(RegistryRefusal.SIGNATURES_TOO_FEW, lambda: world.post(GOOD, []))
    refuses(RegistryRefusal.SIGNER_ORDER, lambda: world.post(GOOD, [one, three, two]))
    refuses(RegistryRefusal.SIGNER_ORDER, lambda: world.post(GOOD, [one, two, two]))
    refuses(RegistryRefusal.SIGNER_UNKNOWN, lambda: world.post(GOOD, [one, two, sign(KEYS_BY_INDEX[4], 4, digest)]))
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(GOOD, [one, two, sign(KEYS_BY_INDEX[4], 3, digest)]))
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(GOOD, [one, two, b"\x02" + bytes(64)]))
    # A bad one is refused even when a quorum is there without it.
    refuses(
        RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(GOOD, [one, two, three, sign(KEYS_BY_INDEX[4], 3, digest)])
    )


def test_post_refuses_the_high_s_twin(world: RegistryWorld) -> None:
    # s in (order / 2, 2^255) is what 255 bits can still carry; half + 1 is its least value.
    one, two, three = world.signatures(GOOD)
    half = CURVE_ORDER // 2
    high = three[:33] + (half + 1).to_bytes(32, "big")
    refuses(RegistryRefusal.SIGNATURE_HIGH_S, lambda: world.post(GOOD, [one, two, high]))
    at_half = three[:33] + half.to_bytes(32, "big")
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(GOOD, [one, two, at_half]))


def test_a_signature_for_another_deployment_is_worthless(world: RegistryWorld) -> None:
    other = make_deployment(salt=b"\x5b" * 32).deployment_id()
    forged = [sign(KEYS_BY_INDEX[i], i, GOOD.digest(other)) for i in range(3)]
    refuses(RegistryRefusal.SIGNATURE_WRONG, lambda: world.post(GOOD, forged))


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 99), bit=st.integers(0, 7))
def test_no_bit_of_the_header_is_unsigned(at: int, bit: int) -> None:
    world = RegistryWorld()
    signed = world.signatures(GOOD)
    header = bytearray(GOOD.pack())
    header[at] ^= 1 << bit
    data = b"\x01" + bytes(header) + b"\x03" + b"".join(signed)
    meta = AccountMeta(world.registry, is_signer=False, is_writable=True)
    with pytest.raises(Refused):
        world.run(Instruction(world.program, data, [meta]))
    assert world.state().epoch == 0


@pytest.mark.parametrize("cut", [0, 1, 50, 101, 102, 150])
def test_post_refuses_a_cut_instruction(world: RegistryWorld, cut: int) -> None:
    data = (b"\x01" + GOOD.pack() + b"\x03" + b"".join(world.signatures(GOOD)))[:cut]
    meta = AccountMeta(world.registry, is_signer=False, is_writable=True)
    refuses(RegistryRefusal.INSTRUCTION_MALFORMED, lambda: world.run(Instruction(world.program, data, [meta])))


def test_post_refuses_an_account_that_only_looks_like_the_registry(world: RegistryWorld) -> None:
    real = world.account(world.registry)
    foreign, misplaced, small, unmarked = (Pubkey.new_unique() for _ in range(4))
    world.svm.set_account(foreign, Account(real.lamports, bytes(real.data), Pubkey.new_unique()))
    world.svm.set_account(misplaced, Account(real.lamports, bytes(real.data), world.program))
    world.svm.set_account(small, Account(real.lamports, bytes(real.data)[:-1], world.program))
    world.svm.set_account(unmarked, Account(real.lamports, b"x" + bytes(real.data)[1:], world.program))
    data = b"\x01" + GOOD.pack() + b"\x03" + b"".join(world.signatures(GOOD))
    for key in (foreign, misplaced, small, unmarked):
        meta = AccountMeta(key, is_signer=False, is_writable=True)
        refuses(RegistryRefusal.STATE_WRONG, lambda meta=meta: world.run(Instruction(world.program, data, [meta])))
    readonly = AccountMeta(world.registry, is_signer=False, is_writable=False)
    refuses(RegistryRefusal.STATE_WRONG, lambda: world.run(Instruction(world.program, data, [readonly])))


def test_the_ring_keeps_sixty_four_roots() -> None:
    world = RegistryWorld()
    for i in range(70):
        at = NOW + 2 * i
        world.set_time(at)
        world.post(Statement(EPOCH + i, keccak(bytes([i])), producedAt=at, validUntil=at + 60))
    ring = world.state().ring
    assert ring == {EPOCH + i: keccak(bytes([i])) for i in range(6, 70)}


# ---- verify ----


def test_verify_accepts_a_leaf_of_the_root(world: RegistryWorld) -> None:
    leaf = make_leaf()
    proof = post_leaf(world, leaf)
    assert world.verify(leaf, proof)


def test_verify_through_the_client_at_depth_twenty(world: RegistryWorld) -> None:
    leaf = make_leaf()
    proof = post_leaf(world, leaf, depth=20)
    done = world.run(build_verify(world.program, world.registry, unpack(pack_leaf(leaf)), proof))
    assert bytes(done.return_data().data) == b"\x01"


@settings(max_examples=40, deadline=None)
@given(
    equity=st.integers(-(2**127), 2**127 - 1),
    amounts=st.lists(st.integers(0, 2**128 - 1), min_size=5, max_size=5),
    flags=st.integers(0, 2**32 - 1),
    depth=st.integers(0, 20),
)
def test_verify_expands_every_leaf_to_the_abi_words(equity: int, amounts: list[int], flags: int, depth: int) -> None:
    world = RegistryWorld()
    leaf = make_leaf(equity=equity, flags=flags)
    leaf[4:9] = amounts
    assert world.verify(leaf, post_leaf(world, leaf, depth))


@pytest.mark.parametrize("field", range(12))
def test_verify_denies_a_leaf_changed_in_one_field(world: RegistryWorld, field: int) -> None:
    leaf = make_leaf()
    proof = post_leaf(world, leaf)
    changed = list(leaf)
    changed[field] = keccak(leaf[field]) if isinstance(leaf[field], bytes) else leaf[field] + 1
    assert not world.verify(changed, proof)
    assert not world.verify(leaf, proof[:-1])
    assert world.verify(leaf, proof)


def test_verify_denies_another_destination(world: RegistryWorld) -> None:
    leaf = make_leaf(destination=keccak(b"eip155:1"))
    assert not world.verify(leaf, post_leaf(world, leaf))


def test_verify_denies_what_has_expired(world: RegistryWorld) -> None:
    leaf = make_leaf(valid_until=NOW + 50)
    proof = post_leaf(world, leaf)
    world.set_time(NOW + 49)
    assert world.verify(leaf, proof)
    world.set_time(NOW + 50)
    assert not world.verify(leaf, proof)


def test_the_newest_header_bounds_the_leaf_and_an_older_one_does_not(world: RegistryWorld) -> None:
    leaf = make_leaf(valid_until=NOW + 500)
    proof = post_leaf(world, leaf)
    world.set_time(NOW + 60)
    assert not world.verify(leaf, proof)
    at = NOW + 60
    world.post(Statement(at // 2, ROOT, producedAt=at, validUntil=at + 60))
    assert world.verify(leaf, proof)


def test_a_floor_makes_older_leaves_unusable(world: RegistryWorld) -> None:
    leaf = make_leaf()
    proof = post_leaf(world, leaf)
    world.post(GOOD.but(epoch=EPOCH + 1, floor=EPOCH))
    assert world.verify(leaf, proof)
    world.post(GOOD.but(epoch=EPOCH + 2, floor=EPOCH + 1))
    assert not world.verify(leaf, proof)


def test_an_epoch_that_left_the_ring_is_not_accepted(world: RegistryWorld) -> None:
    leaf = make_leaf(valid_until=NOW + 10_000)
    proof = post_leaf(world, leaf)
    for ahead, still in ((63, True), (65, False)):  # slot EPOCH % 64 is never overwritten here
        at = NOW + 2 * ahead
        world.set_time(at)
        world.post(Statement(EPOCH + ahead, ROOT, producedAt=at, validUntil=at + 60))
        assert world.verify(leaf, proof) is still


def test_verify_denies_an_epoch_never_posted(world: RegistryWorld) -> None:
    world.post(GOOD)
    for epoch in (0, EPOCH - 1, EPOCH + 1, EPOCH - 64, EPOCH + 64):
        assert not world.verify(make_leaf(epoch), [])


# ---- the client's mirror ----


def test_refusals_mirror_the_source() -> None:
    source = (PROGRAMS / "registry.c").read_text() + (PROGRAMS / "quorum.h").read_text()
    table = dict(re.findall(r"^  ([A-Z_]+) = (\d+), +/\*", source, re.MULTILINE))
    assert {name: int(code) for name, code in table.items()} == {one.name: one.value for one in RegistryRefusal}


def test_decoding_is_strict(world: RegistryWorld) -> None:
    world.post(GOOD)
    account = world.account(world.registry)
    key, data = str(world.registry), bytes(account.data)
    good = RawAccount(account.lamports, str(world.program), data)
    misplaced = bytearray(data)
    struct.pack_into("<Q", misplaced, 1_664 + 40 * (EPOCH % 64), EPOCH + 1)
    for raw, field in (
        (replace(good, owner=str(Pubkey.default())), "owner"),
        (replace(good, data=data[:-1]), "size"),
        (replace(good, data=b"x" + data[1:]), "discriminator"),
        (replace(good, data=bytes(misplaced)), "ring"),
    ):
        with pytest.raises(LayoutError) as caught:
            decode_registry(key, raw, world.program)
        assert caught.value.account == key
        assert caught.value.field.startswith(field)
