"""What may be drawn against a margin on Solana: consumers, apply, draw, repay, pauses, in the real SVM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.layouts import LayoutError, RawAccount
from adapters.solana.programs import (
    Margin,
    MarginStatus,
    RegistryRefusal,
    build_apply,
    build_delist,
    build_draw,
    build_forgive,
    build_list,
    build_pause,
    build_repay,
    build_unpause,
    compute_status,
    compute_usable,
    consumer_address,
    decode_consumer,
    decode_drawn,
    decode_margin,
    drawn_address,
    margin_address,
)
from proofs.leaf import unpack
from tests.contracts.solana_reference import NOW, Refused, pack_leaf
from tests.contracts.solana_registry_world import (
    ACCOUNT,
    CONSUMER,
    DAY,
    EPOCH,
    GOVERNANCE,
    GUARDIAN,
    PARAMETERS,
    RegistryWorld,
    make_deployment,
    make_leaf,
    post_leaf,
    refuses,
)

OTHER = Keypair.from_seed(keccak(b"another consumer"))
BUDGET = 1_000
STALE, PARTIAL, LIQUIDATABLE, MONITORED = 1, 2, 8, 32


def budget_leaf(epoch: int = EPOCH, **changes: Any) -> list[Any]:
    return make_leaf(epoch, **({"budget": BUDGET, "flags": 0} | changes))


def grant(world: RegistryWorld, epoch: int = EPOCH, header: dict[str, Any] | None = None, **changes: Any) -> None:
    """Post a root with one leaf of ACCOUNT and apply it."""
    leaf = budget_leaf(epoch, **changes)
    world.apply(leaf, post_leaf(world, leaf, **(header or {})))


@pytest.fixture
def world() -> RegistryWorld:
    """A registry with one listed consumer."""
    made = RegistryWorld()
    made.list_consumer()
    return made


def pause(world: RegistryWorld, seconds: int, who: Keypair = GUARDIAN) -> None:
    world.run(build_pause(world.program, world.registry, who.pubkey(), seconds), signers=[who])


def unpause(world: RegistryWorld, who: Keypair = GUARDIAN) -> None:
    world.run(build_unpause(world.program, world.registry, who.pubkey()), signers=[who])


def delist(world: RegistryWorld, who: Keypair = GOVERNANCE, consumer: Keypair = CONSUMER) -> None:
    world.run(build_delist(world.program, world.registry, who.pubkey(), consumer.pubkey()), signers=[who])


def list_by(world: RegistryWorld, who: Keypair, consumer: Keypair) -> None:
    payer = world.payer.pubkey()
    world.run(build_list(world.program, world.registry, payer, who.pubkey(), consumer.pubkey()), signers=[who])


# ---- consumers ----


def test_a_consumer_draws_once_the_timelock_has_passed() -> None:
    world = RegistryWorld()
    world.set_time(NOW - DAY)
    world.svm.airdrop(consumer_address(world.program, world.registry, CONSUMER.pubkey()), 5_000)  # blocks nothing
    list_by(world, GOVERNANCE, CONSUMER)
    key = consumer_address(world.program, world.registry, CONSUMER.pubkey())
    state = decode_consumer(str(key), world.raw(key), world.program)
    assert (state.registry, state.authority, state.listed_from) == (str(world.registry), str(CONSUMER.pubkey()), NOW)
    world.set_time(NOW - 1)
    grant(world, EPOCH - 1, {"producedAt": NOW - 1, "validUntil": NOW + 60})
    refuses(RegistryRefusal.NOT_LISTED, lambda: world.draw(1))
    world.set_time(NOW)
    world.draw(1)


def test_only_governance_lists_and_delists(world: RegistryWorld) -> None:
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: list_by(world, GUARDIAN, OTHER))
    refuses(RegistryRefusal.LISTED_ALREADY, lambda: list_by(world, GOVERNANCE, CONSUMER))
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: delist(world, GUARDIAN))
    refuses(RegistryRefusal.STATE_WRONG, lambda: delist(world, GOVERNANCE, OTHER))
    delist(world)
    refuses(RegistryRefusal.NOT_LISTED, lambda: delist(world, GOVERNANCE))


def test_a_delisted_consumer_can_only_repay_until_it_is_listed_anew() -> None:
    world = RegistryWorld(make_deployment(not_after=NOW + 9 * DAY))
    world.list_consumer()
    grant(world)
    world.draw(400)
    delist(world)
    key = consumer_address(world.program, world.registry, CONSUMER.pubkey())
    state = decode_consumer(str(key), world.raw(key), world.program)
    assert (state.listed_from, state.delisted_at) == (None, NOW)
    refuses(RegistryRefusal.NOT_LISTED, lambda: world.draw(1))
    world.repay(400)
    list_by(world, GOVERNANCE, CONSUMER)
    refuses(RegistryRefusal.NOT_LISTED, lambda: world.draw(1))
    at = NOW + DAY
    world.set_time(at)
    grant(world, at // 2, {"producedAt": at, "validUntil": at + 60}, valid_until=at + 50)
    world.draw(1)


def forgive(
    world: RegistryWorld, who: Keypair = GOVERNANCE, consumer: Keypair = CONSUMER, account: bytes = ACCOUNT
) -> None:
    world.svm.expire_blockhash()
    world.run(build_forgive(world.program, world.registry, who.pubkey(), consumer.pubkey(), account), signers=[who])


def test_what_a_delisted_consumer_drew_is_forgiven_after_the_timelock(world: RegistryWorld) -> None:
    world.list_consumer(OTHER.pubkey())
    grant(world)
    world.draw(400)
    world.draw(300, consumer=OTHER)
    refuses(RegistryRefusal.LISTED_ALREADY, lambda: forgive(world))
    delist(world)
    world.set_time(NOW + DAY - 1)
    refuses(RegistryRefusal.TIMELOCK_RUNNING, lambda: forgive(world))
    world.set_time(NOW + DAY)
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: forgive(world, GUARDIAN))
    refuses(RegistryRefusal.LISTED_ALREADY, lambda: forgive(world, consumer=OTHER))
    refuses(RegistryRefusal.STATE_WRONG, lambda: forgive(world, account=keccak(b"another")))
    good = build_forgive(world.program, world.registry, GOVERNANCE.pubkey(), CONSUMER.pubkey(), ACCOUNT)
    mixed = list(good.accounts)  # of another consumer, which repays its own
    mixed[4] = AccountMeta(drawn_address(world.program, world.registry, ACCOUNT, OTHER.pubkey()), False, True)
    refuses(
        RegistryRefusal.STATE_WRONG,
        lambda: world.run(Instruction(world.program, good.data, mixed), signers=[GOVERNANCE]),
    )
    forgive(world)
    assert (world.margin().used, world.drawn(), world.drawn(consumer=OTHER)) == (300, 0, 300)
    assert world.margin().budget == BUDGET
    refuses(RegistryRefusal.AMOUNT_ZERO, lambda: forgive(world))
    refuses(RegistryRefusal.REPAID_TOO_MUCH, lambda: world.repay(1))
    world.repay(300, consumer=OTHER)
    list_by(world, GOVERNANCE, CONSUMER)  # and delisted anew: the timelock runs anew
    world.svm.expire_blockhash()
    delist(world)
    refuses(RegistryRefusal.TIMELOCK_RUNNING, lambda: forgive(world))


# ---- apply ----


@settings(max_examples=25, deadline=None)
@given(
    equity=st.integers(-(2**127), 2**127 - 1),
    amounts=st.lists(st.integers(0, 2**128 - 1), min_size=5, max_size=5),
    flags=st.integers(0, 2**32 - 1),
)
def test_apply_stores_every_value_of_the_leaf(equity: int, amounts: list[int], flags: int) -> None:
    world = RegistryWorld()
    leaf = make_leaf(equity=equity, flags=flags)
    leaf[4:9] = amounts
    world.apply(leaf, post_leaf(world, leaf))
    assert world.margin() == Margin(str(world.registry), ACCOUNT, 0, EPOCH, NOW - 3, NOW + 50, flags, equity, *amounts)


def test_apply_at_depth_twenty_fits_a_packet(world: RegistryWorld) -> None:
    leaf = budget_leaf()
    proof = post_leaf(world, leaf, depth=20)
    payer = world.payer.pubkey()
    instruction = build_apply(world.program, world.registry, payer, unpack(pack_leaf(leaf)), proof)
    assert len(bytes(world.transaction(instruction))) <= 1_232
    world.apply(leaf, proof)
    assert world.margin().budget == BUDGET


def test_apply_keeps_whichever_ends_first(world: RegistryWorld) -> None:
    grant(world, valid_until=NOW + 500)
    assert world.margin().valid_until == NOW + 60
    world.set_time(NOW + 60)
    refuses(RegistryRefusal.LEAF_EXPIRED, lambda: world.draw(1))


def test_apply_takes_the_newest_epoch_only(world: RegistryWorld) -> None:
    old = budget_leaf(EPOCH, budget=2 * BUDGET)
    proof = post_leaf(world, old)
    grant(world, EPOCH + 1)
    refuses(RegistryRefusal.LEAF_NOT_NEWEST, lambda: world.apply(old, proof))
    refuses(RegistryRefusal.LEAF_NOT_NEWEST, lambda: world.apply(budget_leaf(EPOCH + 2), proof))
    assert world.margin().epoch == EPOCH + 1


def test_nothing_can_be_applied_before_the_first_posting(world: RegistryWorld) -> None:
    refuses(RegistryRefusal.LEAF_NOT_NEWEST, lambda: world.apply(budget_leaf(0), []))


def test_applying_the_same_epoch_again_changes_nothing(world: RegistryWorld) -> None:
    leaf = budget_leaf()
    proof = post_leaf(world, leaf)
    world.apply(leaf, proof)
    world.draw(300)
    before = world.margin()
    world.svm.expire_blockhash()
    world.apply(leaf, proof)
    assert world.margin() == before


@pytest.mark.parametrize("field", range(12))
def test_apply_refuses_a_leaf_changed_in_one_field(world: RegistryWorld, field: int) -> None:
    leaf = budget_leaf()
    proof = post_leaf(world, leaf)
    changed = list(leaf)
    changed[field] = keccak(leaf[field]) if isinstance(leaf[field], bytes) else leaf[field] + 1
    epoch_field = 2
    code = RegistryRefusal.LEAF_NOT_NEWEST if field == epoch_field else RegistryRefusal.LEAF_WRONG
    refuses(code, lambda: world.apply(changed, proof))
    refuses(RegistryRefusal.LEAF_WRONG, lambda: world.apply(leaf, proof[:-1]))


def test_apply_refuses_another_destination_and_what_has_expired(world: RegistryWorld) -> None:
    elsewhere = budget_leaf(destination=keccak(b"eip155:1"))
    proof = post_leaf(world, elsewhere)
    refuses(RegistryRefusal.LEAF_WRONG, lambda: world.apply(elsewhere, proof))
    short = budget_leaf(EPOCH + 1, valid_until=NOW + 1)
    proof = post_leaf(world, short)
    world.set_time(NOW + 1)
    refuses(RegistryRefusal.LEAF_EXPIRED, lambda: world.apply(short, proof))


def test_lamports_sent_ahead_do_not_block_an_account(world: RegistryWorld) -> None:
    world.svm.airdrop(margin_address(world.program, world.registry, ACCOUNT), 7_000)
    world.svm.airdrop(drawn_address(world.program, world.registry, ACCOUNT, CONSUMER.pubkey()), 7_000_000)
    grant(world)
    world.draw(BUDGET)
    for key in (
        margin_address(world.program, world.registry, ACCOUNT),
        drawn_address(world.program, world.registry, ACCOUNT, CONSUMER.pubkey()),
    ):
        account = world.account(key)
        assert account.owner == world.program
        assert account.lamports >= world.svm.minimum_balance_for_rent_exemption(len(account.data))


# ---- draw and repay ----


def test_draws_add_up_to_the_budget(world: RegistryWorld) -> None:
    grant(world)
    world.draw(600)
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(401))
    world.draw(400)
    assert (world.margin().used, world.drawn()) == (1_000, 1_000)
    world.svm.expire_blockhash()
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(1))
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(2**128 - 1))  # no overflow
    refuses(RegistryRefusal.AMOUNT_ZERO, lambda: world.draw(0))
    world.repay(250)
    world.svm.expire_blockhash()
    world.draw(250)
    assert world.margin().used == 1_000


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["draw", "repay", "grant"]), st.booleans(), st.integers(0, 1_200)), max_size=12)
)
def test_the_books_agree_whatever_happens(steps: list[tuple[str, bool, int]]) -> None:
    """`used` is the sum of what consumers drew; no draw takes it above the budget; repaying always works."""
    world = RegistryWorld()
    world.list_consumer()
    world.list_consumer(OTHER.pubkey())
    grant(world)
    budget, drawn, epoch = BUDGET, {True: 0, False: 0}, EPOCH
    for what, first, amount in steps:
        who = CONSUMER if first else OTHER
        world.svm.expire_blockhash()
        if what == "grant":
            epoch, budget = epoch + 1, amount
            at = 2 * epoch
            world.set_time(at)
            grant(world, epoch, {"producedAt": at, "validUntil": at + 60}, budget=amount, valid_until=at + 60)
            continue
        if what == "draw":
            allowed = 0 < amount <= budget - sum(drawn.values())
            change = amount
        else:
            allowed = 0 < amount <= drawn[first]
            change = -amount
        try:
            (world.draw if what == "draw" else world.repay)(amount, consumer=who)
        except Refused:
            assert not allowed
        else:
            assert allowed
            drawn[first] += change
        assert world.margin().used == sum(drawn.values())
    for first, who in ((True, CONSUMER), (False, OTHER)):
        if drawn[first]:
            assert world.drawn(consumer=who) == drawn[first]
            world.svm.expire_blockhash()
            world.repay(drawn[first], consumer=who)
    assert world.margin().used == 0


def test_the_whole_range_can_be_drawn(world: RegistryWorld) -> None:
    grant(world, budget=2**128 - 1)
    world.draw(2**128 - 2)
    world.draw(1)
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(2))
    world.repay(2**128 - 1)
    assert (world.margin().used, world.drawn()) == (0, 0)


def test_each_consumer_repays_only_what_it_drew(world: RegistryWorld) -> None:
    world.list_consumer(OTHER.pubkey())
    grant(world)
    world.draw(600)
    world.draw(300, consumer=OTHER)
    assert (world.margin().used, world.drawn(), world.drawn(consumer=OTHER)) == (900, 600, 300)
    refuses(RegistryRefusal.REPAID_TOO_MUCH, lambda: world.repay(301, consumer=OTHER))
    refuses(RegistryRefusal.AMOUNT_ZERO, lambda: world.repay(0, consumer=OTHER))
    world.repay(300, consumer=OTHER)
    assert (world.margin().used, world.drawn(), world.drawn(consumer=OTHER)) == (600, 600, 0)
    refuses(RegistryRefusal.REPAID_TOO_MUCH, lambda: world.repay(1, consumer=OTHER))


def test_a_newer_root_voids_every_older_budget_at_once(world: RegistryWorld) -> None:
    grant(world)
    world.draw(100)
    lower = budget_leaf(EPOCH + 1, budget=150)
    proof = post_leaf(world, lower)
    refuses(RegistryRefusal.LEAF_NOT_NEWEST, lambda: world.draw(2))
    world.apply(lower, proof)
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(51))
    world.draw(50)
    below = budget_leaf(EPOCH + 2, budget=10)  # less than what is used already
    world.apply(below, post_leaf(world, below))
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(1))
    world.repay(150)
    assert world.margin().used == 0


def test_apply_and_draw_go_in_one_transaction(world: RegistryWorld) -> None:
    leaf = budget_leaf()
    proof = post_leaf(world, leaf, depth=8)
    payer = world.payer.pubkey()
    world.run(
        build_apply(world.program, world.registry, payer, unpack(pack_leaf(leaf)), proof),
        build_draw(world.program, world.registry, payer, CONSUMER.pubkey(), ACCOUNT, 5),
        signers=[CONSUMER],
    )
    assert world.margin().used == 5


def test_draw_refuses_who_is_not_listed_and_who_does_not_sign(world: RegistryWorld) -> None:
    grant(world)
    refuses(RegistryRefusal.NOT_LISTED, lambda: world.draw(1, consumer=OTHER))
    payer = world.payer.pubkey()
    good = build_draw(world.program, world.registry, payer, CONSUMER.pubkey(), ACCOUNT, 1)
    silent = list(good.accounts)
    silent[1] = AccountMeta(CONSUMER.pubkey(), is_signer=False, is_writable=False)
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: world.run(Instruction(world.program, good.data, silent)))
    borrowed = list(good.accounts)  # signs itself, and shows the record of the listed one
    borrowed[1] = AccountMeta(OTHER.pubkey(), is_signer=True, is_writable=False)
    refuses(
        RegistryRefusal.STATE_WRONG, lambda: world.run(Instruction(world.program, good.data, borrowed), signers=[OTHER])
    )
    unpaid = list(good.accounts)
    unpaid[0] = AccountMeta(OTHER.pubkey(), is_signer=False, is_writable=True)
    refuses(
        RegistryRefusal.PAYER_NOT_SIGNER,
        lambda: world.run(Instruction(world.program, good.data, unpaid), signers=[CONSUMER]),
    )
    repaying = build_repay(world.program, world.registry, CONSUMER.pubkey(), ACCOUNT, 1)
    world.draw(2)
    metas = [AccountMeta(CONSUMER.pubkey(), is_signer=False, is_writable=False), *repaying.accounts[1:]]
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: world.run(Instruction(world.program, repaying.data, metas)))


def test_an_account_never_applied_has_no_budget(world: RegistryWorld) -> None:
    grant(world)
    refuses(RegistryRefusal.LEAF_NOT_NEWEST, lambda: world.draw(1, account=keccak(b"nobody")))


@pytest.mark.parametrize("flag", [STALE, MONITORED])
def test_stale_and_monitored_accounts_draw_nothing(world: RegistryWorld, flag: int) -> None:
    grant(world, flags=flag)
    refuses(RegistryRefusal.LEAF_FLAGGED, lambda: world.draw(1))
    assert compute_usable(world.state(), world.margin(), NOW) == 0


def test_a_floor_voids_what_was_applied(world: RegistryWorld) -> None:
    grant(world)
    world.draw(100)
    world.post(world.at(NOW).but(epoch=EPOCH + 1, floor=EPOCH + 1))
    refuses(RegistryRefusal.LEAF_NOT_NEWEST, lambda: world.draw(1))
    assert compute_status(world.state(), world.margin(), NOW) is MarginStatus.UNKNOWN
    world.repay(100)


# ---- pauses ----


def test_a_pause_stops_draws_and_higher_budgets_only(world: RegistryWorld) -> None:
    grant(world)
    world.draw(100)
    pause(world, 3 * DAY)
    assert world.state().paused == (NOW, NOW + 3 * DAY)
    refuses(RegistryRefusal.PAUSED, lambda: world.draw(1))
    assert compute_usable(world.state(), world.margin(), NOW) == 0
    world.repay(40)
    higher = budget_leaf(EPOCH + 1, budget=BUDGET + 1, flags=LIQUIDATABLE, assets_maintenance=7)
    world.apply(higher, post_leaf(world, higher))  # all but the budget
    margin = world.margin()
    assert (margin.epoch, margin.flags, margin.assets_maintenance) == (EPOCH + 1, LIQUIDATABLE, 7)
    assert (margin.budget, margin.used) == (BUDGET, 60)
    assert compute_status(world.state(), margin, NOW) is MarginStatus.LIQUIDATABLE
    lower = budget_leaf(EPOCH + 2, budget=BUDGET)
    world.apply(lower, post_leaf(world, lower))
    assert world.margin().epoch == EPOCH + 2
    unpause(world)
    world.svm.expire_blockhash()
    world.draw(1)
    assert world.margin().used == 61


def test_while_paused_a_new_account_starts_without_a_budget(world: RegistryWorld) -> None:
    pause(world, 60)
    grant(world)
    assert (world.margin().epoch, world.margin().budget) == (EPOCH, 0)
    world.set_time(NOW + 60)
    late = {"producedAt": NOW + 60, "validUntil": NOW + 120}
    grant(world, EPOCH + 1, late, valid_until=NOW + 120)  # the next leaf brings what was left out
    assert world.margin().budget == BUDGET


def test_a_pause_ends_by_itself_and_cannot_be_renewed_for_ever(world: RegistryWorld) -> None:
    pause(world, 20)
    refuses(RegistryRefusal.PAUSE_TOO_SOON, lambda: pause(world, 21))
    grant(world, budget=0)
    world.set_time(NOW + 20)
    leaf = budget_leaf(EPOCH + 1)
    world.apply(leaf, post_leaf(world, leaf))
    world.draw(1)
    world.set_time(NOW + 39)
    refuses(RegistryRefusal.PAUSE_TOO_SOON, lambda: pause(world, 22))
    world.set_time(NOW + 40)
    pause(world, 23)
    refuses(RegistryRefusal.PAUSED, lambda: world.draw(2))


def test_a_pause_that_was_ended_counts_as_long_as_it_lasted(world: RegistryWorld) -> None:
    pause(world, 3 * DAY)
    world.set_time(NOW + 10)
    unpause(world, GOVERNANCE)
    refuses(RegistryRefusal.NOT_PAUSED, lambda: unpause(world))
    world.set_time(NOW + 19)
    refuses(RegistryRefusal.PAUSE_TOO_SOON, lambda: pause(world, 5))
    world.set_time(NOW + 20)
    pause(world, 6)


def test_who_pauses_and_how_long(world: RegistryWorld) -> None:
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: pause(world, 5, GOVERNANCE))
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: pause(world, 5, OTHER))
    refuses(RegistryRefusal.PAUSE_TOO_LONG, lambda: pause(world, 0))
    refuses(RegistryRefusal.PAUSE_TOO_LONG, lambda: pause(world, 3 * DAY + 1))
    refuses(RegistryRefusal.PAUSE_TOO_LONG, lambda: pause(world, 2**64 - 1))
    pause(world, 7)
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: unpause(world, OTHER))


def test_without_a_guardian_nobody_pauses() -> None:
    world = RegistryWorld(parameters=replace(PARAMETERS, guardian=Pubkey.default()))
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: pause(world, 5))
    silent = build_pause(world.program, world.registry, Pubkey.default(), 5)
    metas = [AccountMeta(Pubkey.default(), is_signer=False, is_writable=False), *silent.accounts[1:]]
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: world.run(Instruction(world.program, silent.data, metas)))


# ---- accounts that only look right ----


def instructions(world: RegistryWorld) -> dict[str, tuple[Instruction, list[Keypair], dict[int, RegistryRefusal]]]:
    """Return each instruction that would succeed, its signers, and what a fake at a place is refused with."""
    payer, registry, program = world.payer.pubkey(), world.registry, world.program
    leaf = budget_leaf(EPOCH + 1)
    proof = post_leaf(world, leaf)
    wrong = RegistryRefusal.STATE_WRONG
    return {
        "delist": (
            build_delist(program, registry, GOVERNANCE.pubkey(), CONSUMER.pubkey()),
            [GOVERNANCE],
            {1: wrong, 2: wrong},
        ),
        "list": (
            build_list(program, registry, payer, GOVERNANCE.pubkey(), OTHER.pubkey()),
            [GOVERNANCE],
            {2: wrong, 3: wrong},
        ),
        "apply": (build_apply(program, registry, payer, unpack(pack_leaf(leaf)), proof), [], {1: wrong, 2: wrong}),
        "pause": (build_pause(program, registry, GUARDIAN.pubkey(), 5), [GUARDIAN], {1: wrong}),
        "repay": (
            build_repay(program, registry, CONSUMER.pubkey(), ACCOUNT, 1),
            [CONSUMER],
            {1: wrong, 2: wrong, 3: wrong},
        ),
        "forgive": (
            build_forgive(program, registry, GOVERNANCE.pubkey(), CONSUMER.pubkey(), ACCOUNT),
            [GOVERNANCE],
            {1: wrong, 2: wrong, 3: wrong, 4: wrong},
        ),
    }


@pytest.mark.parametrize("name", ["delist", "list", "apply", "pause", "repay", "forgive"])
def test_fakes_are_refused(world: RegistryWorld, name: str) -> None:
    grant(world)
    world.draw(10)
    instruction, signers, places = instructions(world)[name]
    if name == "forgive":
        delist(world)
        world.set_time(NOW + DAY)
    check_fakes(world, instruction, signers, places)


def test_draw_refuses_fakes(world: RegistryWorld) -> None:
    grant(world)
    world.draw(10)
    instruction = build_draw(world.program, world.registry, world.payer.pubkey(), CONSUMER.pubkey(), ACCOUNT, 1)
    check_fakes(world, instruction, [CONSUMER], dict.fromkeys((2, 3, 4, 5), RegistryRefusal.STATE_WRONG))


def check_fakes(
    world: RegistryWorld, instruction: Instruction, signers: list[Keypair], places: dict[int, RegistryRefusal]
) -> None:
    """Put foreign, misplaced, cut, unmarked and read-only accounts at each place; then run the instruction as it is."""

    def run(accounts: list[AccountMeta], data: bytes = instruction.data) -> Callable[[], object]:
        return lambda: world.run(Instruction(world.program, data, accounts), signers=signers)

    for place, code in places.items():
        meta = instruction.accounts[place]
        account = world.svm.get_account(meta.pubkey) or world.account(world.registry)
        data = bytes(account.data)
        fakes = [
            Account(account.lamports, data, Pubkey.new_unique()),
            Account(account.lamports, data, world.program),
            Account(account.lamports, data[:-1], world.program),
            Account(account.lamports, b"x" + data[1:], world.program),
            Account(account.lamports, b"", world.program),
        ]
        for fake in fakes:
            key = Pubkey.new_unique()
            world.svm.set_account(key, fake)
            accounts = list(instruction.accounts)
            accounts[place] = AccountMeta(key, meta.is_signer, meta.is_writable)
            refuses(code, run(accounts))
        if meta.is_writable and world.svm.get_account(meta.pubkey):
            accounts = list(instruction.accounts)
            accounts[place] = AccountMeta(meta.pubkey, meta.is_signer, False)
            refuses(code, run(accounts))
    refuses(RegistryRefusal.ACCOUNTS_WRONG, run(instruction.accounts[:-1]))
    refuses(RegistryRefusal.ACCOUNTS_WRONG, run([*instruction.accounts, instruction.accounts[0]]))
    refuses(RegistryRefusal.INSTRUCTION_MALFORMED, run(instruction.accounts, bytes(instruction.data) + b"\0"))
    if len(instruction.data) > 1:
        refuses(RegistryRefusal.INSTRUCTION_MALFORMED, run(instruction.accounts, bytes(instruction.data)[:-1]))
    run(instruction.accounts)()


def test_new_accounts_are_made_at_their_address_only(world: RegistryWorld) -> None:
    grant(world)
    elsewhere = AccountMeta(Pubkey.new_unique(), is_signer=False, is_writable=True)
    payer = world.payer.pubkey()
    leaf = budget_leaf(EPOCH + 1, account=keccak(b"new"))
    for instruction, place, signers in (
        (build_draw(world.program, world.registry, payer, CONSUMER.pubkey(), ACCOUNT, 1), 5, [CONSUMER]),
        (build_list(world.program, world.registry, payer, GOVERNANCE.pubkey(), OTHER.pubkey()), 3, [GOVERNANCE]),
        (
            build_apply(
                world.program, world.registry, payer, unpack(pack_leaf(leaf)), post_leaf(RegistryWorld(), leaf)
            ),
            2,
            [],
        ),
    ):
        if place == 2:
            post_leaf(world, leaf)
        accounts = list(instruction.accounts)
        accounts[place] = elsewhere
        wrong = Instruction(world.program, instruction.data, accounts)
        refuses(RegistryRefusal.ADDRESS_WRONG, lambda wrong=wrong, signers=signers: world.run(wrong, signers=signers))
        accounts = list(instruction.accounts)
        accounts[-1] = elsewhere
        wrong = Instruction(world.program, instruction.data, accounts)
        refuses(
            RegistryRefusal.SYSTEM_PROGRAM_WRONG,
            lambda wrong=wrong, signers=signers: world.run(wrong, signers=signers),
        )


def test_one_registrys_records_mean_nothing_to_another(world: RegistryWorld) -> None:
    grant(world)
    world.draw(10)
    mine = {place: world.raw(key) for place, key in records(world).items()}
    other = RegistryWorld(parameters=replace(PARAMETERS, max_lifetime=121))
    assert other.registry != world.registry
    payer = other.payer.pubkey()
    for place, raw in mine.items():
        key = Pubkey.new_unique()
        other.svm.set_account(key, Account(raw.lamports, raw.data, other.program))
        good = build_draw(other.program, other.registry, payer, CONSUMER.pubkey(), ACCOUNT, 1)
        accounts = list(good.accounts)
        accounts[place] = AccountMeta(key, False, True)
        wrong = Instruction(other.program, good.data, accounts)
        code = RegistryRefusal.STATE_WRONG if place == 3 else RegistryRefusal.NOT_LISTED
        refuses(code, lambda wrong=wrong: other.run(wrong, signers=[CONSUMER]))


def records(world: RegistryWorld) -> dict[int, Pubkey]:
    """Return the addresses that a draw names, by their place."""
    program, registry, authority = world.program, world.registry, CONSUMER.pubkey()
    return {
        3: consumer_address(program, registry, authority),
        4: margin_address(program, registry, ACCOUNT),
        5: drawn_address(program, registry, ACCOUNT, authority),
    }


# ---- the client ----


def test_usable_is_what_a_draw_can_still_take(world: RegistryWorld) -> None:
    grant(world)
    world.draw(300)
    state, margin = world.state(), world.margin()
    assert compute_usable(state, margin, NOW) == 700
    assert compute_usable(state, margin, NOW + 49) == 700
    assert compute_usable(state, margin, NOW + 50) == 0
    assert compute_usable(state, replace(margin, used=1_001), NOW) == 0
    assert compute_usable(replace(state, epoch=EPOCH + 1), margin, NOW) == 0
    world.draw(700)
    refuses(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.draw(2))


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, MarginStatus.UNHEALTHY),
        ({"assets_maintenance": 4}, MarginStatus.HEALTHY),
        ({"flags": LIQUIDATABLE}, MarginStatus.LIQUIDATABLE),
        ({"flags": LIQUIDATABLE | STALE}, MarginStatus.UNKNOWN),
        ({"flags": PARTIAL}, MarginStatus.UNKNOWN),
        ({"flags": MONITORED}, MarginStatus.UNKNOWN),
    ],
)
def test_status(world: RegistryWorld, changes: dict[str, Any], status: MarginStatus) -> None:
    grant(world, **changes)
    state, margin = world.state(), world.margin()
    assert compute_status(state, margin, NOW) is status
    assert compute_status(state, margin, NOW + 50) is MarginStatus.UNKNOWN
    assert compute_status(state, None, NOW) is MarginStatus.UNKNOWN
    assert compute_status(replace(state, epoch=EPOCH + 1), margin, NOW) is MarginStatus.UNKNOWN


def test_decoding_records_is_strict(world: RegistryWorld) -> None:
    grant(world)
    world.draw(10)
    decoders: dict[int, Callable[[str, RawAccount, Pubkey], object]] = {
        3: decode_consumer,
        4: decode_margin,
        5: decode_drawn,
    }
    for place, key in records(world).items():
        good = world.raw(key)
        for raw, field in (
            (replace(good, owner=str(Pubkey.default())), "owner"),
            (replace(good, data=good.data[:-1]), "size"),
            (replace(good, data=b""), "size"),
            (replace(good, data=b"x" + good.data[1:]), "discriminator"),
        ):
            with pytest.raises(LayoutError) as caught:
                decoders[place](str(key), raw, world.program)
            assert (caught.value.account, caught.value.field) == (str(key), field)
