"""The vault program: deposits, requests, claims and limits, in the real SVM with the real SPL Token program."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey
from solders.rent import Rent

from adapters.solana.layouts import LayoutError
from adapters.solana.programs import (
    Holding,
    Limit,
    VaultRefusal,
    build_cancel,
    build_claim,
    build_deposit,
    build_limit,
    build_request,
    build_vault_init,
    decode_deposit,
    decode_hold,
    decode_holding,
    decode_limit,
    decode_vault,
    deposit_address,
    hold_address,
    holding_address,
    limit_address,
    vault_address,
)
from tests.contracts.solana_reference import NOW, PROGRAMS, TOKEN_PROGRAM, Refused
from tests.contracts.solana_vault_world import (
    ACCOUNT,
    DELAY,
    EPOCH,
    OTHER_ACCOUNT,
    TOKEN_2022,
    RegistryRow,
    VaultWorld,
    refuses,
    swap,
)


@pytest.fixture
def world() -> VaultWorld:
    return VaultWorld()


def test_init_records_registry_and_delay(world: VaultWorld) -> None:
    state = decode_vault(str(world.vault), world.raw(world.vault), world.program)
    assert (state.registry, state.delay) == (str(world.registry), DELAY)


def test_init_refuses_a_second_time_and_another_delay_or_registry_for_our_address(world: VaultWorld) -> None:
    payer, program = world.payer.pubkey(), world.program
    again = build_vault_init(program, payer, world.registry, DELAY)
    refuses(VaultRefusal.ALREADY_INITIALISED, lambda: world.run(again))
    faster = build_vault_init(program, payer, world.registry, 0)
    theirs = build_vault_init(program, payer, world.add_registry(RegistryRow(payer)), DELAY)
    for other in (faster, theirs):
        refuses(VaultRefusal.ADDRESS_WRONG, lambda other=other: world.run(swap(other, 1, world.vault)))
        world.run(other)  # it is another vault
    assert decode_vault("", world.raw(vault_address(program, world.registry, 0)), program).delay == 0
    too_long = build_vault_init(program, payer, world.registry, 2**32)
    refuses(VaultRefusal.DELAY_TOO_LONG, lambda: world.run(too_long))


def test_init_refuses_what_is_no_registry(world: VaultWorld) -> None:
    good = RegistryRow(world.payer.pubkey()).pack()
    for data in (b"", good[:-1], b"cmREGST1" + good[8:]):
        key = Pubkey.new_unique()
        world.svm.set_account(key, Account(10**9, data, Pubkey.new_unique()))
        init = build_vault_init(world.program, world.payer.pubkey(), key, DELAY)
        refuses(VaultRefusal.REGISTRY_WRONG, lambda init=init: world.run(init))


def test_init_refuses_wrong_accounts(world: VaultWorld) -> None:
    registry = world.add_registry(RegistryRow(world.payer.pubkey()))
    init = build_vault_init(world.program, world.payer.pubkey(), registry, DELAY)
    refuses(VaultRefusal.SYSTEM_PROGRAM_WRONG, lambda: world.run(swap(init, 3, TOKEN_PROGRAM)))
    stranger = world.alice.pubkey()
    refuses(VaultRefusal.OWNER_NOT_SIGNER, lambda: world.run(swap(init, 0, stranger, is_signer=False)))
    for data, accounts, code in (
        (init.data, init.accounts[:3], VaultRefusal.ACCOUNTS_WRONG),
        (init.data, init.accounts * 4, VaultRefusal.ACCOUNTS_WRONG),
        (init.data + b"\0", init.accounts, VaultRefusal.INSTRUCTION_MALFORMED),
        (b"", init.accounts, VaultRefusal.INSTRUCTION_MALFORMED),
        (bytes([8]), init.accounts, VaultRefusal.INSTRUCTION_MALFORMED),
    ):
        bad = Instruction(world.program, bytes(data), accounts)
        refuses(code, lambda bad=bad: world.run(bad))
    world.svm.airdrop(init.accounts[1].pubkey, 900_000)  # lamports sent ahead block nothing
    world.run(init)


def test_a_deposit_moves_tokens_and_is_recorded_twice(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    world.deposit(world.alice, 100)
    world.deposit(world.bob, 50)
    assert world.holding() == Holding(str(world.vault), ACCOUNT, str(world.mint), 550, 0)
    assert world.record(world.alice).amount == 500
    assert world.record(world.bob).amount == 50
    assert world.amount(world.custody) == 550
    assert world.amount(world.purse[world.alice.pubkey()]) == 500


def test_accounts_are_kept_apart(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    world.deposit(world.alice, 7, OTHER_ACCOUNT)
    assert (world.holding().total, world.holding(OTHER_ACCOUNT).total) == (400, 7)
    refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: world.request(world.alice, 8, OTHER_ACCOUNT))


def test_tokens_sent_past_the_program_are_credited_to_nobody(world: VaultWorld) -> None:
    world.deposit(world.alice, 10)
    data = bytearray(world.account(world.custody).data)
    struct.pack_into("<Q", data, 64, 1_000_010)
    world.svm.set_account(world.custody, Account(10**9, bytes(data), TOKEN_PROGRAM))
    world.deposit(world.alice, 5)
    assert world.holding().total == 15


def test_lamports_sent_ahead_do_not_block_a_deposit(world: VaultWorld) -> None:
    for key in (
        world.custody,
        holding_address(world.program, world.vault, ACCOUNT, world.mint),
        deposit_address(world.program, world.vault, ACCOUNT, world.alice.pubkey(), world.mint),
        hold_address(world.program, world.vault, ACCOUNT),
    ):
        world.svm.airdrop(key, 900_000)
    world.deposit(world.alice, 3)
    assert world.holding().total == 3


def test_deposit_refuses(world: VaultWorld) -> None:
    alice, bob = world.alice, world.bob
    purse = world.purse[alice.pubkey()]
    good = build_deposit(world.program, world.vault, alice.pubkey(), ACCOUNT, world.mint, purse, 5)

    def run(instruction: Instruction) -> Callable[[], object]:
        return lambda: world.run(instruction, signers=[alice] if instruction.accounts[0].is_signer else [])

    zero = build_deposit(world.program, world.vault, alice.pubkey(), ACCOUNT, world.mint, purse, 0)
    refuses(VaultRefusal.AMOUNT_ZERO, run(zero))
    refuses(VaultRefusal.OWNER_NOT_SIGNER, run(swap(good, 0, alice.pubkey(), is_signer=False)))
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, run(swap(good, 9, TOKEN_2022)))
    refuses(VaultRefusal.SYSTEM_PROGRAM_WRONG, run(swap(good, 10, TOKEN_PROGRAM)))
    refuses(VaultRefusal.VAULT_WRONG, run(swap(good, 1, Pubkey.new_unique())))
    refuses(VaultRefusal.MINT_WRONG, run(swap(good, 4, purse)))
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, run(swap(good, 5, world.purse[bob.pubkey()])))
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, run(swap(good, 5, world.add_tokens(world.add_mint(), alice.pubkey(), 9))))
    own = world.add_tokens(world.mint, alice.pubkey(), 0)
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, run(swap(good, 6, own)))
    vaults_own = world.add_tokens(world.mint, world.vault, 0)  # right authority, not the custody address
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, run(swap(good, 6, vaults_own)))
    refuses(VaultRefusal.ADDRESS_WRONG, run(swap(good, 2, Pubkey.new_unique())))
    refuses(VaultRefusal.ADDRESS_WRONG, run(swap(good, 3, Pubkey.new_unique())))
    refuses(VaultRefusal.ADDRESS_WRONG, run(swap(good, 6, Pubkey.new_unique())))
    refuses(VaultRefusal.ADDRESS_WRONG, run(swap(good, 8, Pubkey.new_unique())))
    refuses(VaultRefusal.INSTRUCTION_MALFORMED, run(Instruction(world.program, good.data[:-1], good.accounts)))
    refuses(VaultRefusal.ACCOUNTS_WRONG, run(Instruction(world.program, good.data, good.accounts[:-1])))
    world.deposit(alice, 1)
    other = holding_address(world.program, world.vault, OTHER_ACCOUNT, world.mint)
    world.deposit(alice, 1, OTHER_ACCOUNT)
    refuses(VaultRefusal.HOLDING_WRONG, run(swap(good, 2, other)))
    theirs = deposit_address(world.program, world.vault, OTHER_ACCOUNT, alice.pubkey(), world.mint)
    refuses(VaultRefusal.DEPOSIT_WRONG, run(swap(good, 3, theirs)))
    refuses(VaultRefusal.HOLD_WRONG, run(swap(good, 8, hold_address(world.program, world.vault, OTHER_ACCOUNT))))
    refuses(VaultRefusal.HOLD_WRONG, run(swap(good, 8, world.vault)))


def test_a_mint_is_accepted_up_to_what_governance_says(world: VaultWorld) -> None:
    world.set_limit(500)
    key = limit_address(world.program, world.vault, world.mint)
    assert decode_limit(str(key), world.raw(key), world.program) == Limit(str(world.vault), str(world.mint), 500)
    world.deposit(world.alice, 400)
    refuses(VaultRefusal.LIMIT_REACHED, lambda: world.deposit(world.bob, 101))
    world.deposit(world.bob, 100, OTHER_ACCOUNT)
    refuses(VaultRefusal.LIMIT_REACHED, lambda: world.deposit(world.bob, 1))
    world.set_limit(501)
    world.deposit(world.bob, 1)


def test_a_mint_without_a_limit_is_not_accepted(world: VaultWorld) -> None:
    alice, mint = world.alice.pubkey(), world.add_mint()
    purse = world.add_tokens(mint, alice, 10)
    deposit = build_deposit(world.program, world.vault, alice, ACCOUNT, mint, purse, 5)
    refuses(VaultRefusal.MINT_NOT_ACCEPTED, lambda: world.run(deposit, signers=[world.alice]))
    ours = limit_address(world.program, world.vault, world.mint)
    refuses(VaultRefusal.LIMIT_WRONG, lambda: world.run(swap(deposit, 7, ours), signers=[world.alice]))
    world.set_limit(0, mint)
    refuses(VaultRefusal.MINT_NOT_ACCEPTED, lambda: world.run(deposit, signers=[world.alice]))
    world.set_limit(5, mint)
    world.run(deposit, signers=[world.alice])


def test_a_limit_of_zero_keeps_nothing_in(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    world.set_limit(0)
    refuses(VaultRefusal.MINT_NOT_ACCEPTED, lambda: world.deposit(world.alice, 1))
    world.withdraw(world.make_permit(amount=100))
    world.request(world.alice, 300)
    world.set_time(NOW + DELAY)
    world.claim(world.alice)
    assert world.amount(world.custody) == 0


def test_only_the_registrys_governance_sets_limits(world: VaultWorld) -> None:
    mint = Pubkey.new_unique()
    good = world.limit(7, mint)

    def run(instruction: Instruction) -> Callable[[], object]:
        signers = [world.governance] if instruction.accounts[1] == good.accounts[1] else []
        return lambda: world.run(instruction, signers=signers)

    stranger = world.payer.pubkey()
    refuses(VaultRefusal.GOVERNANCE_WRONG, run(swap(good, 1, world.governance.pubkey(), is_signer=False)))
    refuses(VaultRefusal.GOVERNANCE_WRONG, run(swap(good, 1, stranger)))
    theirs = world.add_registry(RegistryRow(stranger))
    refuses(VaultRefusal.REGISTRY_WRONG, run(swap(swap(good, 3, theirs), 1, stranger)))
    refuses(VaultRefusal.VAULT_WRONG, run(swap(good, 2, theirs)))
    refuses(VaultRefusal.SYSTEM_PROGRAM_WRONG, run(swap(good, 5, TOKEN_PROGRAM)))
    refuses(VaultRefusal.OWNER_NOT_SIGNER, run(swap(good, 0, world.alice.pubkey(), is_signer=False)))
    refuses(VaultRefusal.ADDRESS_WRONG, run(swap(good, 4, Pubkey.new_unique())))
    refuses(VaultRefusal.LIMIT_WRONG, run(swap(good, 4, limit_address(world.program, world.vault, world.mint))))
    refuses(VaultRefusal.INSTRUCTION_MALFORMED, run(Instruction(world.program, good.data[:-1], good.accounts)))
    refuses(VaultRefusal.ACCOUNTS_WRONG, run(Instruction(world.program, good.data, good.accounts[:-1])))
    world.svm.airdrop(good.accounts[4].pubkey, 900_000)  # lamports sent ahead block nothing
    run(good)()
    again = build_limit(
        world.program, world.vault, world.registry, world.governance.pubkey(), mint, 8, world.governance.pubkey()
    )
    world.run(again, signers=[world.governance])  # who may also pay
    unwritable = swap(again, 4, again.accounts[4].pubkey, is_writable=False)
    refuses(VaultRefusal.LIMIT_WRONG, run(unwritable))
    assert decode_limit("", world.raw(again.accounts[4].pubkey), world.program).cap == 8


def test_a_new_governance_takes_over(world: VaultWorld) -> None:
    world.change_registry(governance=world.alice.pubkey())
    refuses(VaultRefusal.GOVERNANCE_WRONG, lambda: world.set_limit(1))


def test_more_than_the_owner_has_is_refused_by_the_token_program(world: VaultWorld) -> None:
    with pytest.raises(Refused, match="insufficient funds"):
        world.deposit(world.alice, 1_001)
    assert world.svm.get_account(holding_address(world.program, world.vault, ACCOUNT, world.mint)) is None


def test_a_sum_beyond_64_bits_is_refused(world: VaultWorld) -> None:
    world.deposit(world.alice, 5)
    key = holding_address(world.program, world.vault, ACCOUNT, world.mint)
    data = bytearray(world.account(key).data)
    struct.pack_into("<Q", data, 104, 2**64 - 1)
    world.svm.set_account(key, Account(10**9, bytes(data), world.program))
    refuses(VaultRefusal.AMOUNT_TOO_LARGE, lambda: world.deposit(world.alice, 1))


def test_an_unknown_rent_rule_makes_no_account(world: VaultWorld) -> None:
    world.svm.set_rent(Rent(3_480, 3.0, 50))  # neither 2 years nor SIMD-0194's 1
    refuses(VaultRefusal.SYSVAR_UNREADABLE, lambda: world.deposit(world.alice, 5))


def freeze(world: VaultWorld, token_account: Pubkey) -> None:
    metas = [
        AccountMeta(token_account, False, True),
        AccountMeta(world.mint, False, False),
        AccountMeta(world.payer.pubkey(), True, False),
    ]
    world.run(Instruction(TOKEN_PROGRAM, bytes([10]), metas))


def test_frozen_token_accounts_are_refused(world: VaultWorld) -> None:
    world.deposit(world.alice, 5)
    freeze(world, world.purse[world.alice.pubkey()])
    with pytest.raises(Refused, match="Account is frozen"):
        world.deposit(world.alice, 5)
    world.request(world.alice, 5)
    world.set_time(NOW + DELAY)
    with pytest.raises(Refused, match="Account is frozen"):
        world.claim(world.alice)
    assert (world.holding().total, world.record(world.alice).pending) == (5, 5)


def test_a_withdrawal_waits_for_the_delay(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    world.request(world.alice, 150)
    assert (world.holding().total, world.holding().pending) == (400, 150)
    record = world.record(world.alice)
    assert (record.amount, record.pending, record.ready_at) == (400, 150, NOW + DELAY)
    world.set_time(NOW + DELAY - 1)
    refuses(VaultRefusal.NOT_READY, lambda: world.claim(world.alice))
    world.set_time(NOW + DELAY)
    world.claim(world.alice)
    assert (world.holding().total, world.holding().pending) == (250, 0)
    assert world.record(world.alice) == replace(record, amount=250, pending=0, ready_at=0)
    assert world.amount(world.purse[world.alice.pubkey()]) == 750
    refuses(VaultRefusal.REQUEST_NONE, lambda: world.claim(world.alice))


def test_a_claim_can_pay_somebody_else(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    world.request(world.alice, 400)
    world.set_time(NOW + DELAY)
    world.claim(world.alice, to=world.purse[world.bob.pubkey()])
    assert world.amount(world.purse[world.bob.pubkey()]) == 1_400
    assert world.amount(world.custody) == 0


def test_cancel_frees_the_amount_and_restarts_the_delay(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    world.request(world.alice, 400)
    world.set_time(NOW + DELAY - 1)
    world.cancel(world.alice)
    assert (world.holding().pending, world.record(world.alice).ready_at) == (0, 0)
    refuses(VaultRefusal.REQUEST_NONE, lambda: world.cancel(world.alice))
    world.request(world.alice, 1)
    world.set_time(NOW + DELAY)
    refuses(VaultRefusal.NOT_READY, lambda: world.claim(world.alice))


def test_request_refuses(world: VaultWorld) -> None:
    world.deposit(world.alice, 400)
    refuses(VaultRefusal.AMOUNT_ZERO, lambda: world.request(world.alice, 0))
    refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: world.request(world.alice, 401))
    world.request(world.alice, 400)
    refuses(VaultRefusal.REQUEST_OPEN, lambda: world.request(world.alice, 1))
    key = world.alice.pubkey()
    again = build_request(world.program, world.vault, key, ACCOUNT, world.mint, 1)
    for at, code in ((2, VaultRefusal.HOLDING_WRONG), (3, VaultRefusal.DEPOSIT_WRONG)):
        unwritable = swap(again, at, again.accounts[at].pubkey, is_writable=False)
        refuses(code, lambda bad=unwritable: world.run(bad, signers=[world.alice]))
    for good in (
        again,
        build_cancel(world.program, world.vault, key, ACCOUNT, world.mint),
    ):
        longer = Instruction(world.program, good.data + b"\0", good.accounts)
        refuses(VaultRefusal.INSTRUCTION_MALFORMED, lambda bad=longer: world.run(bad, signers=[world.alice]))
        for accounts in (good.accounts[:-1], [*good.accounts, good.accounts[1]]):
            bad = Instruction(world.program, good.data, accounts)
            refuses(VaultRefusal.ACCOUNTS_WRONG, lambda bad=bad: world.run(bad, signers=[world.alice]))


def test_only_the_depositor_takes_back(world: VaultWorld) -> None:
    alice, bob = world.alice, world.bob
    world.deposit(alice, 400)
    world.deposit(bob, 1)
    refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: world.request(bob, 2))
    hers = deposit_address(world.program, world.vault, ACCOUNT, alice.pubkey(), world.mint)
    request = build_request(world.program, world.vault, bob.pubkey(), ACCOUNT, world.mint, 2)
    refuses(VaultRefusal.DEPOSIT_WRONG, lambda: world.run(swap(request, 3, hers), signers=[bob]))
    unsigned = build_request(world.program, world.vault, alice.pubkey(), ACCOUNT, world.mint, 2)
    refuses(VaultRefusal.OWNER_NOT_SIGNER, lambda: world.run(swap(unsigned, 0, alice.pubkey(), is_signer=False)))
    world.request(alice, 400)
    world.set_time(NOW + DELAY)
    claim = build_claim(world.program, world.vault, bob.pubkey(), ACCOUNT, world.mint, world.purse[bob.pubkey()])
    refuses(VaultRefusal.DEPOSIT_WRONG, lambda: world.run(swap(claim, 3, hers), signers=[bob]))


def test_claim_refuses(world: VaultWorld) -> None:
    alice = world.alice
    world.deposit(alice, 400)
    world.request(alice, 400)
    world.set_time(NOW + DELAY)
    purse = world.purse[alice.pubkey()]
    good = build_claim(world.program, world.vault, alice.pubkey(), ACCOUNT, world.mint, purse)

    def run(instruction: Instruction) -> Callable[[], object]:
        return lambda: world.run(instruction, signers=[alice])

    refuses(VaultRefusal.DESTINATION_WRONG, run(swap(good, 6, world.custody)))
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, run(swap(good, 8, TOKEN_2022)))
    refuses(VaultRefusal.VAULT_WRONG, run(swap(good, 1, world.registry)))
    refuses(VaultRefusal.HOLD_WRONG, run(swap(good, 7, Pubkey.new_unique())))
    world.deposit(alice, 1, OTHER_ACCOUNT)
    refuses(VaultRefusal.HOLD_WRONG, run(swap(good, 7, hold_address(world.program, world.vault, OTHER_ACCOUNT))))
    theirs = holding_address(world.program, world.vault, OTHER_ACCOUNT, world.mint)
    refuses(VaultRefusal.DEPOSIT_WRONG, run(swap(good, 2, theirs)))
    refuses(VaultRefusal.HOLDING_WRONG, run(swap(good, 2, good.accounts[3].pubkey)))
    stray = world.add_tokens(world.mint, world.vault, 500)
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, run(swap(good, 5, stray)))
    refuses(VaultRefusal.MINT_WRONG, run(swap(good, 4, world.add_mint())))
    refuses(VaultRefusal.INSTRUCTION_MALFORMED, run(Instruction(world.program, good.data + b"\0", good.accounts)))
    refuses(VaultRefusal.ACCOUNTS_WRONG, run(Instruction(world.program, good.data, good.accounts[:-1])))
    foreign = world.add_tokens(world.add_mint(), alice.pubkey(), 0)
    with pytest.raises(Refused, match="not associated with this Mint"):
        world.claim(alice, to=foreign)
    world.claim(alice)


def test_a_vault_of_another_program_is_refused(world: VaultWorld) -> None:
    fake = Pubkey.new_unique()
    real = world.account(world.vault)
    for owner in (Pubkey.new_unique(), world.program):  # foreign, and ours but at the wrong address
        world.svm.set_account(fake, Account(10**9, bytes(real.data), owner))
        good = build_deposit(
            world.program, fake, world.alice.pubkey(), ACCOUNT, world.mint, world.purse[world.alice.pubkey()], 5
        )
        refuses(VaultRefusal.VAULT_WRONG, lambda good=good: world.run(good, signers=[world.alice]))


def test_refusals_mirror_the_source() -> None:
    source = (PROGRAMS / "vault.c").read_text() + (PROGRAMS / "quorum.h").read_text()
    table = dict(re.findall(r"^  ([A-Z_0-9]+) = (\d+), +/\*", source, re.MULTILINE))
    assert {name: int(code) for name, code in table.items()} == {one.name: one.value for one in VaultRefusal}


def test_decoding_is_strict(world: VaultWorld) -> None:
    world.deposit(world.alice, 5)
    keys = {
        decode_vault: world.vault,
        decode_holding: holding_address(world.program, world.vault, ACCOUNT, world.mint),
        decode_deposit: deposit_address(world.program, world.vault, ACCOUNT, world.alice.pubkey(), world.mint),
        decode_limit: limit_address(world.program, world.vault, world.mint),
        decode_hold: hold_address(world.program, world.vault, ACCOUNT),
    }
    for decode, key in keys.items():
        good = world.raw(key)
        for raw, field in (
            (replace(good, owner=str(TOKEN_PROGRAM)), "owner"),
            (replace(good, data=good.data + b"\0"), "size"),
            (replace(good, data=bytes(8) + good.data[8:]), "discriminator"),
        ):
            with pytest.raises(LayoutError) as caught:
                decode(str(key), raw, world.program)
            assert (caught.value.account, caught.value.field) == (str(key), field)


class VaultModel(RuleBasedStateMachine):
    """Any order of deposits, requests, claims, holds, permits and waits keeps the books and the tokens equal."""

    def __init__(self) -> None:
        super().__init__()
        self.world = VaultWorld()
        self.now = NOW
        self.owners = (self.world.alice, self.world.bob)
        self.amount = [0, 0]
        self.pending = [0, 0]
        self.ready = [0, 0]
        self.opened = [False, False]
        self.held_until = self.held_epoch = self.permits = 0

    @rule(who=st.integers(0, 1), amount=st.integers(1, 400))
    def deposit(self, who: int, amount: int) -> None:
        if amount > self.world.amount(self.world.purse[self.owners[who].pubkey()]):
            return
        self.world.deposit(self.owners[who], amount)
        self.amount[who] += amount
        self.opened[who] = True

    @precondition(lambda self: any(self.opened))
    @rule(who=st.integers(0, 1), amount=st.integers(1, 500))
    def request(self, who: int, amount: int) -> None:
        if not self.opened[who]:
            return
        if self.pending[who]:
            refuses(VaultRefusal.REQUEST_OPEN, lambda: self.world.request(self.owners[who], amount))
        elif amount > self.amount[who]:
            refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: self.world.request(self.owners[who], amount))
        else:
            self.world.request(self.owners[who], amount)
            self.pending[who], self.ready[who] = amount, self.now + DELAY

    @precondition(lambda self: any(self.pending))
    @rule(who=st.integers(0, 1))
    def cancel(self, who: int) -> None:
        if self.pending[who]:
            self.world.cancel(self.owners[who])
            self.pending[who] = 0

    @precondition(lambda self: any(self.pending))
    @rule(who=st.integers(0, 1))
    def claim(self, who: int) -> None:
        if not self.pending[who]:
            return
        if self.now < self.ready[who]:
            refuses(VaultRefusal.NOT_READY, lambda: self.world.claim(self.owners[who]))
        elif self.now < self.held_until:
            refuses(VaultRefusal.HELD, lambda: self.world.claim(self.owners[who]))
        else:
            self.world.claim(self.owners[who])
            self.amount[who] -= self.pending[who]
            self.pending[who] = 0

    @precondition(lambda self: any(self.opened))
    @rule(seconds=st.integers(1, 2 * DELAY), epoch=st.integers(EPOCH - 5, EPOCH))
    def hold(self, seconds: int, epoch: int) -> None:
        hold = self.world.make_hold(until=self.now + seconds, epoch=epoch)
        if epoch <= self.held_epoch:
            refuses(VaultRefusal.HOLD_NOT_NEWER, lambda: self.world.hold(hold))
        else:
            self.world.hold(hold)
            self.held_until, self.held_epoch = max(self.held_until, hold.until), epoch

    @precondition(lambda self: any(self.opened))
    @rule(who=st.integers(0, 1), amount=st.integers(1, 500), epoch=st.integers(EPOCH - 5, EPOCH))
    def withdraw(self, who: int, amount: int, epoch: int) -> None:
        if not self.opened[who]:
            return
        owner = self.owners[who]
        self.permits += 1
        permit = self.world.make_permit(
            amount=amount,
            to=bytes(self.world.purse[owner.pubkey()]),
            nonce=self.permits.to_bytes(32, "big"),
            epoch=epoch,
            expiry=self.now,
        )
        if amount > self.amount[who]:
            refuses(VaultRefusal.AMOUNT_NOT_FREE, lambda: self.world.withdraw(permit, owner))
        elif self.now < self.held_until and epoch <= self.held_epoch:
            refuses(VaultRefusal.HELD, lambda: self.world.withdraw(permit, owner))
        else:
            self.world.withdraw(permit, owner)
            self.amount[who] -= amount
            self.pending[who] = min(self.pending[who], self.amount[who])

    @rule(seconds=st.integers(1, DELAY))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.world.set_time(self.now)

    @invariant()
    def books_equal_tokens(self) -> None:
        if not any(self.opened):
            return
        holding = self.world.holding()
        assert (holding.total, holding.pending) == (sum(self.amount), sum(self.pending))
        assert self.world.amount(self.world.custody) == sum(self.amount)
        for who, owner in enumerate(self.owners):
            assert self.world.amount(self.world.purse[owner.pubkey()]) == 1_000 - self.amount[who]
            if self.opened[who]:
                record = self.world.record(owner)
                assert (record.amount, record.pending) == (self.amount[who], self.pending[who])


TestVaultModel = VaultModel.TestCase
TestVaultModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
