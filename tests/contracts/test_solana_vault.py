"""The vault program: every flow and every refusal, in the real SVM with the real SPL Token program."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from eth_utils import keccak
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.layouts import LayoutError, RawAccount
from adapters.solana.programs import (
    Deposit,
    Holding,
    VaultRefusal,
    build_cancel,
    build_claim,
    build_deposit,
    build_request,
    build_vault_init,
    custody_address,
    decode_deposit,
    decode_holding,
    decode_vault,
    deposit_address,
    holding_address,
    vault_address,
)
from tests.contracts.solana_reference import NOW, PROGRAMS, TOKEN_PROGRAM, Refused, World

DEPLOYMENT = keccak(b"a deployment")
ACCOUNT, OTHER_ACCOUNT = keccak(b"an account"), keccak(b"another account")
DELAY = 300
TOKEN_2022 = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")


class VaultWorld(World):
    """A world with a vault, a mint, and a depositor who owns 1,000 of it."""

    def __init__(self) -> None:
        super().__init__("vault")
        self.program = self.ids["vault"]
        self.vault = vault_address(self.program, DEPLOYMENT, DELAY)
        self.run(build_vault_init(self.program, self.payer.pubkey(), DEPLOYMENT, DELAY))
        self.mint = self.add_mint()
        self.alice, self.bob = self.add_depositor(), self.add_depositor()
        self.purse = {one.pubkey(): self.add_tokens(self.mint, one.pubkey(), 1_000) for one in (self.alice, self.bob)}
        self.custody = custody_address(self.program, self.vault, self.mint)

    def add_depositor(self) -> Keypair:
        one = Keypair()
        self.svm.airdrop(one.pubkey(), 10**10)
        return one

    def raw(self, key: Pubkey) -> RawAccount:
        account = self.account(key)
        return RawAccount(account.lamports, str(account.owner), bytes(account.data))

    def holding(self, account: bytes = ACCOUNT) -> Holding:
        key = holding_address(self.program, self.vault, account, self.mint)
        return decode_holding(str(key), self.raw(key), self.program)

    def record(self, owner: Keypair, account: bytes = ACCOUNT) -> Deposit:
        key = deposit_address(self.program, self.vault, account, owner.pubkey(), self.mint)
        return decode_deposit(str(key), self.raw(key), self.program)

    def deposit(self, owner: Keypair, amount: int, account: bytes = ACCOUNT) -> None:
        source = self.purse[owner.pubkey()]
        owner_key = owner.pubkey()
        self.run(
            build_deposit(self.program, self.vault, owner_key, account, self.mint, source, amount), signers=[owner]
        )

    def request(self, owner: Keypair, amount: int, account: bytes = ACCOUNT) -> None:
        self.run(build_request(self.program, self.vault, owner.pubkey(), account, self.mint, amount), signers=[owner])

    def cancel(self, owner: Keypair, account: bytes = ACCOUNT) -> None:
        self.run(build_cancel(self.program, self.vault, owner.pubkey(), account, self.mint), signers=[owner])

    def claim(self, owner: Keypair, to: Pubkey | None = None, account: bytes = ACCOUNT) -> None:
        target = to or self.purse[owner.pubkey()]
        self.run(build_claim(self.program, self.vault, owner.pubkey(), account, self.mint, target), signers=[owner])


@pytest.fixture
def world() -> VaultWorld:
    return VaultWorld()


def refuses(code: VaultRefusal, action: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code, caught.value.text


def swap(instruction: Instruction, at: int, key: Pubkey, **changes: bool) -> Instruction:
    """Return the instruction with another account at one position."""
    metas = list(instruction.accounts)
    signer = changes.get("is_signer", metas[at].is_signer)
    metas[at] = AccountMeta(key, signer, changes.get("is_writable", metas[at].is_writable))
    return Instruction(instruction.program_id, instruction.data, metas)


def test_init_records_deployment_and_delay(world: VaultWorld) -> None:
    state = decode_vault(str(world.vault), world.raw(world.vault), world.program)
    assert (state.deployment_id, state.delay) == (DEPLOYMENT, DELAY)


def test_init_refuses_a_second_time_and_another_delay_for_our_address(world: VaultWorld) -> None:
    payer = world.payer.pubkey()
    refuses(
        VaultRefusal.ALREADY_INITIALISED, lambda: world.run(build_vault_init(world.program, payer, DEPLOYMENT, DELAY))
    )
    other = build_vault_init(world.program, payer, DEPLOYMENT, 0)
    refuses(VaultRefusal.ADDRESS_WRONG, lambda: world.run(swap(other, 1, world.vault)))
    world.run(other)
    assert decode_vault("", world.raw(vault_address(world.program, DEPLOYMENT, 0)), world.program).delay == 0
    refuses(VaultRefusal.DELAY_TOO_LONG, lambda: world.run(build_vault_init(world.program, payer, DEPLOYMENT, 2**32)))


def test_init_refuses_wrong_accounts(world: VaultWorld) -> None:
    init = build_vault_init(world.program, world.payer.pubkey(), keccak(b"new"), DELAY)
    refuses(VaultRefusal.SYSTEM_PROGRAM_WRONG, lambda: world.run(swap(init, 2, TOKEN_PROGRAM)))
    stranger = world.alice.pubkey()
    refuses(VaultRefusal.OWNER_NOT_SIGNER, lambda: world.run(swap(init, 0, stranger, is_signer=False)))
    cut = Instruction(world.program, init.data, init.accounts[:2])
    refuses(VaultRefusal.ACCOUNTS_WRONG, lambda: world.run(cut))


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
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, run(swap(good, 7, TOKEN_2022)))
    refuses(VaultRefusal.SYSTEM_PROGRAM_WRONG, run(swap(good, 8, TOKEN_PROGRAM)))
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
    refuses(VaultRefusal.INSTRUCTION_MALFORMED, run(Instruction(world.program, good.data[:-1], good.accounts)))
    refuses(VaultRefusal.ACCOUNTS_WRONG, run(Instruction(world.program, good.data, good.accounts[:-1])))
    world.deposit(alice, 1)
    other = holding_address(world.program, world.vault, OTHER_ACCOUNT, world.mint)
    world.deposit(alice, 1, OTHER_ACCOUNT)
    refuses(VaultRefusal.HOLDING_WRONG, run(swap(good, 2, other)))
    theirs = deposit_address(world.program, world.vault, OTHER_ACCOUNT, alice.pubkey(), world.mint)
    refuses(VaultRefusal.DEPOSIT_WRONG, run(swap(good, 3, theirs)))


def test_deposit_refuses_a_token_2022_mint(world: VaultWorld) -> None:
    mint = world.add_mint(program=TOKEN_2022)
    purse = world.add_tokens(mint, world.alice.pubkey(), 10, program=TOKEN_2022)
    deposit = build_deposit(world.program, world.vault, world.alice.pubkey(), ACCOUNT, mint, purse, 5)
    refuses(VaultRefusal.MINT_WRONG, lambda: world.run(deposit, signers=[world.alice]))
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, lambda: world.run(swap(deposit, 7, TOKEN_2022), signers=[world.alice]))


def test_more_than_the_owner_has_is_refused_by_the_token_program(world: VaultWorld) -> None:
    with pytest.raises(Refused, match="insufficient funds"):
        world.deposit(world.alice, 1_001)
    assert world.svm.get_account(holding_address(world.program, world.vault, ACCOUNT, world.mint)) is None


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
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, run(swap(good, 7, TOKEN_2022)))
    stray = world.add_tokens(world.mint, world.vault, 500)
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, run(swap(good, 5, stray)))
    refuses(VaultRefusal.HOLDING_WRONG, run(swap(good, 4, world.add_mint())))
    refuses(VaultRefusal.INSTRUCTION_MALFORMED, run(Instruction(world.program, good.data[:-1], good.accounts)))
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
    source = (PROGRAMS / "vault.c").read_text()
    table = dict(re.findall(r"^  ([A-Z_0-9]+) = (\d+), +/\*", source, re.MULTILINE))
    assert {name: int(code) for name, code in table.items()} == {one.name: one.value for one in VaultRefusal}


def test_decoding_is_strict(world: VaultWorld) -> None:
    world.deposit(world.alice, 5)
    keys = {
        decode_vault: world.vault,
        decode_holding: holding_address(world.program, world.vault, ACCOUNT, world.mint),
        decode_deposit: deposit_address(world.program, world.vault, ACCOUNT, world.alice.pubkey(), world.mint),
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
    """Any order of deposits, requests, cancellations, claims and waits keeps the books and the tokens equal."""

    def __init__(self) -> None:
        super().__init__()
        self.world = VaultWorld()
        self.now = NOW
        self.owners = (self.world.alice, self.world.bob)
        self.amount = [0, 0]
        self.pending = [0, 0]
        self.ready = [0, 0]
        self.opened = [False, False]

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
        else:
            self.world.claim(self.owners[who])
            self.amount[who] -= self.pending[who]
            self.pending[who] = 0

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
