"""The example consumer: it draws from the registry by CPI and lends SPL tokens, in the real SVM."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from eth_utils import keccak
from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.compute_budget import set_compute_unit_limit
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction

from adapters.solana.layouts import LayoutError, RawAccount
from adapters.solana.programs import RegistryRefusal, build_apply, build_delist
from infra.devnet.svm_consumer import ConsumerRefusal, Lender
from proofs.leaf import unpack
from proofs.links import Caip10, account_id
from tests.contracts.solana_reference import PROGRAMS, Refused, pack_leaf
from tests.contracts.solana_registry_world import (
    EPOCH,
    GOVERNANCE,
    RegistryWorld,
    make_leaf,
    post_leaf,
    refuses,
)

CHAIN = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"  # the destination of solana_registry_world
SALT = keccak(b"salt")
USD = 10**8
TOKEN = 10**6


def account_of(controller: Pubkey, salt: bytes = SALT) -> bytes:
    return account_id(str(Caip10("solana", CHAIN.partition(":")[2], bytes(controller))), salt)


class LendingWorld(RegistryWorld):
    """A registry, a listed lender with 1,000 tokens, and the controller of an account with a budget of 100 USD."""

    def __init__(self, controller: Keypair | None = None, decimals: int = 6, budget: int = 100 * USD) -> None:
        super().__init__(None, "consumer")
        self.mint = self.add_mint(decimals)
        self.lender = Lender(self.ids["consumer"], self.program, self.registry, self.mint)
        self.run(self.lender.build_init(self.payer.pubkey(), CHAIN))
        self.list_consumer(self.lender.address)
        pool = bytearray(self.account(self.lender.pool).data)
        pool[64:72] = (1_000 * TOKEN).to_bytes(8, "little")
        self.svm.set_account(self.lender.pool, Account(10**9, bytes(pool), self.account(self.lender.pool).owner))
        self.controller = controller or Keypair()
        self.svm.airdrop(self.controller.pubkey(), 10**10)
        self.purse = self.add_tokens(self.mint, self.controller.pubkey(), 0)
        self.margin_account = account_of(self.controller.pubkey())
        self.leaf: list[Any] = make_leaf(EPOCH, account=self.margin_account, budget=budget, flags=0)
        self.apply(self.leaf, post_leaf(self, self.leaf))

    def borrow(self, amount: int) -> int:
        """Borrow base units into the controller's purse; return the compute units."""
        who = self.controller
        made = self.lender.build_borrow(who.pubkey(), self.margin_account, SALT, self.purse, amount)
        return self.run(made, signers=[who]).compute_units_consumed()

    def pay(self, amount: int, who: Keypair | None = None, source: Pubkey | None = None) -> int:
        who = who or self.controller
        made = self.lender.build_repay(who.pubkey(), self.margin_account, source or self.purse, amount)
        return self.run(made, signers=[who]).compute_units_consumed()

    def debt(self) -> int:
        key = self.lender.loan(self.margin_account)
        return self.lender.decode_debt(self.margin_account, self.raw(key) if self.svm.get_account(key) else None)


@pytest.fixture
def world() -> LendingWorld:
    return LendingWorld()


def refused(code: ConsumerRefusal | RegistryRefusal, action: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code, caught.value.text


def test_lending_uses_the_budget_and_repaying_gives_it_back(world: LendingWorld) -> None:
    assert world.debt() == 0
    world.borrow(60 * TOKEN)
    assert (world.amount(world.purse), world.amount(world.lender.pool)) == (60 * TOKEN, 940 * TOKEN)
    assert (world.debt(), world.margin(world.margin_account).used) == (60 * TOKEN, 60 * USD)
    refused(RegistryRefusal.BUDGET_EXCEEDED, lambda: world.borrow(40 * TOKEN + 1))
    world.borrow(40 * TOKEN)
    assert world.margin(world.margin_account).used == 100 * USD
    world.pay(30 * TOKEN)
    assert (world.debt(), world.margin(world.margin_account).used) == (70 * TOKEN, 70 * USD)
    world.pay(71 * TOKEN)  # only the debt is taken
    assert (world.amount(world.purse), world.amount(world.lender.pool)) == (0, 1_000 * TOKEN)
    assert (world.debt(), world.margin(world.margin_account).used) == (0, 0)
    refused(ConsumerRefusal.AMOUNT_ZERO, lambda: world.pay(1))


def test_anybody_may_repay(world: LendingWorld) -> None:
    world.borrow(10 * TOKEN)
    friend = Keypair()
    theirs = world.add_tokens(world.mint, friend.pubkey(), 50 * TOKEN)
    world.pay(4 * TOKEN, friend, theirs)
    assert (world.amount(theirs), world.debt()) == (46 * TOKEN, 6 * TOKEN)


@pytest.mark.parametrize(("decimals", "unit"), [(0, USD), (8, 1)])
def test_the_token_is_a_dollar_at_any_decimals(decimals: int, unit: int) -> None:
    world = LendingWorld(decimals=decimals)
    world.borrow(7)
    assert world.margin(world.margin_account).used == 7 * unit


def test_large_amounts_keep_every_digit() -> None:
    world = LendingWorld(decimals=0, budget=2**128 - 1)
    pool = bytearray(world.account(world.lender.pool).data)
    pool[64:72] = (2**64 - 1).to_bytes(8, "little")
    world.svm.set_account(world.lender.pool, Account(10**9, bytes(pool), world.account(world.lender.pool).owner))
    world.borrow(2**64 - 2)
    assert world.margin(world.margin_account).used == (2**64 - 2) * USD
    refused(ConsumerRefusal.AMOUNT_TOO_LARGE, lambda: world.borrow(2))


@pytest.mark.parametrize("seed", range(6))
def test_the_account_is_the_one_its_controller_holds(seed: int) -> None:
    world = LendingWorld(Keypair.from_seed(keccak(bytes([seed]))))
    world.borrow(TOKEN)
    assert world.debt() == TOKEN


def test_a_controllers_leading_zero_bytes_are_leading_ones() -> None:
    keys = (Keypair.from_seed(i.to_bytes(32, "big")) for i in range(10_000))
    world = LendingWorld(next(key for key in keys if bytes(key.pubkey())[0] == 0))
    assert str(world.controller.pubkey()).startswith("1")
    world.borrow(TOKEN)
    assert world.debt() == TOKEN


def test_only_the_controller_borrows(world: LendingWorld) -> None:
    thief = Keypair()
    world.svm.airdrop(thief.pubkey(), 10**10)
    theirs = world.add_tokens(world.mint, thief.pubkey(), 0)
    made = world.lender.build_borrow(thief.pubkey(), world.margin_account, SALT, theirs, 1)
    refused(ConsumerRefusal.LOAN_WRONG, lambda: world.run(made, signers=[thief]))
    made = world.lender.build_borrow(world.controller.pubkey(), world.margin_account, bytes(32), theirs, 1)
    refused(ConsumerRefusal.LOAN_WRONG, lambda: world.run(made, signers=[world.controller]))
    made = world.lender.build_borrow(world.controller.pubkey(), world.margin_account, SALT, theirs, 1)
    silent = [AccountMeta(world.controller.pubkey(), is_signer=False, is_writable=True), *made.accounts[1:]]
    refused(ConsumerRefusal.PAYER_NOT_SIGNER, lambda: world.run(Instruction(made.program_id, made.data, silent)))
    # An account of one's own gives no right to another's budget.
    own = account_of(thief.pubkey())
    made = world.lender.build_borrow(thief.pubkey(), own, SALT, theirs, 1)
    accounts = list(made.accounts)
    accounts[9] = world.lender.build_borrow(thief.pubkey(), world.margin_account, SALT, theirs, 1).accounts[9]
    crossed = Instruction(made.program_id, made.data, accounts)
    refused(RegistryRefusal.STATE_WRONG, lambda: world.run(crossed, signers=[thief]))


def test_a_delisted_lender_lends_nothing_and_takes_its_tokens_back(world: LendingWorld) -> None:
    world.borrow(10 * TOKEN)
    gone = build_delist(world.program, world.registry, GOVERNANCE.pubkey(), world.lender.address)
    world.run(gone, signers=[GOVERNANCE])
    refused(RegistryRefusal.NOT_LISTED, lambda: world.borrow(1))
    world.pay(10 * TOKEN)
    assert world.debt() == 0


def test_nobody_draws_in_the_lenders_name(world: LendingWorld) -> None:
    """The lender's address signs only inside its own program."""
    made = world.lender.build_borrow(world.controller.pubkey(), world.margin_account, SALT, world.purse, 1)
    metas = [
        AccountMeta(world.payer.pubkey(), is_signer=True, is_writable=True),
        AccountMeta(world.lender.address, is_signer=False, is_writable=False),
        *(made.accounts[i] for i in (6, 8, 9, 10, 12)),
    ]
    draw = Instruction(world.program, bytes([13]) + world.margin_account + (1).to_bytes(16, "little"), metas)
    refuses(RegistryRefusal.AUTHORITY_WRONG, lambda: world.run(draw))


def test_a_registry_program_of_someone_else_is_not_asked(world: LendingWorld) -> None:
    fake = Pubkey.new_unique()
    world.svm.add_program(fake, (PROGRAMS / "registry.so").read_bytes())
    state = world.account(world.registry)
    copy = Pubkey.new_unique()
    world.svm.set_account(copy, Account(state.lamports, bytes(state.data), fake))
    other_mint, other_pool = world.add_mint(), world.add_tokens(world.mint, world.lender.address, 5)
    lender = world.account(world.lender.address)
    forged = Pubkey.new_unique()
    world.svm.set_account(forged, Account(lender.lamports, bytes(lender.data), Pubkey.new_unique()))
    misplaced = Pubkey.new_unique()
    world.svm.set_account(misplaced, Account(lender.lamports, bytes(lender.data), world.ids["consumer"]))
    borrow = world.lender.build_borrow(world.controller.pubkey(), world.margin_account, SALT, world.purse, 1)
    world.borrow(5)
    repay = world.lender.build_repay(world.controller.pubkey(), world.margin_account, world.purse, 1)
    for made in (borrow, repay):
        for place, wrong, code in (
            (1, forged, ConsumerRefusal.LENDER_WRONG),
            (1, misplaced, ConsumerRefusal.LENDER_WRONG),
            (2, world.lender.loan(bytes(32)), ConsumerRefusal.LOAN_WRONG),
            (3, other_pool, ConsumerRefusal.POOL_WRONG),
            (4, world.lender.pool, ConsumerRefusal.POOL_WRONG),
            (5, other_mint, ConsumerRefusal.MINT_WRONG),
            (6, copy, ConsumerRefusal.REGISTRY_WRONG),
            (7, fake, ConsumerRefusal.PROGRAM_WRONG),
        ):
            accounts = list(made.accounts)
            accounts[place] = AccountMeta(wrong, is_signer=False, is_writable=accounts[place].is_writable)
            bad = Instruction(made.program_id, made.data, accounts)
            refused(code, lambda bad=bad: world.run(bad, signers=[world.controller]))
        last = list(made.accounts)
        last[-1] = AccountMeta(fake, is_signer=False, is_writable=False)
        bad = Instruction(made.program_id, made.data, last)
        refused(ConsumerRefusal.PROGRAM_WRONG, lambda bad=bad: world.run(bad, signers=[world.controller]))
        for data, accounts, code in (
            (bytes(made.data)[:-1], made.accounts, ConsumerRefusal.INSTRUCTION_MALFORMED),
            (b"\x03" + bytes(made.data)[1:], made.accounts, ConsumerRefusal.INSTRUCTION_MALFORMED),
            (bytes(made.data), made.accounts[:-1], ConsumerRefusal.ACCOUNTS_WRONG),
            (bytes(made.data)[:33] + bytes(8), made.accounts, ConsumerRefusal.AMOUNT_ZERO),
        ):
            bad = Instruction(made.program_id, data, accounts)
            refused(code, lambda bad=bad: world.run(bad, signers=[world.controller]))


def test_init_refuses(world: LendingWorld) -> None:
    payer = world.payer.pubkey()
    refused(ConsumerRefusal.ALREADY_INITIALISED, lambda: world.run(world.lender.build_init(payer, CHAIN)))
    elsewhere = "solana:" + "1" * 32
    second = Lender(world.ids["consumer"], world.program, world.registry, world.add_mint())
    refused(ConsumerRefusal.CHAIN_WRONG, lambda: world.run(second.build_init(payer, elsewhere)))
    refused(ConsumerRefusal.INSTRUCTION_MALFORMED, lambda: world.run(second.build_init(payer, CHAIN + "x")))
    fine = Lender(world.ids["consumer"], world.program, world.registry, world.add_mint(9))
    refused(ConsumerRefusal.MINT_WRONG, lambda: world.run(fine.build_init(payer, CHAIN)))
    no_registry = Lender(world.ids["consumer"], world.program, world.mint, world.mint)
    refused(ConsumerRefusal.REGISTRY_WRONG, lambda: world.run(no_registry.build_init(payer, CHAIN)))
    good = second.build_init(payer, CHAIN)
    for place in (1, 2):
        accounts = list(good.accounts)
        accounts[place] = AccountMeta(Pubkey.new_unique(), is_signer=False, is_writable=True)
        bad = Instruction(good.program_id, good.data, accounts)
        refused(ConsumerRefusal.ADDRESS_WRONG, lambda bad=bad: world.run(bad))
    swapped = Instruction(good.program_id, good.data, [*good.accounts[:5], good.accounts[6], good.accounts[5]])
    refused(ConsumerRefusal.PROGRAM_WRONG, lambda: world.run(swapped))
    refused(
        ConsumerRefusal.ACCOUNTS_WRONG, lambda: world.run(Instruction(good.program_id, good.data, good.accounts[:6]))
    )
    for key, lamports in ((second.address, 5_000), (second.pool, 10**9)):
        world.svm.airdrop(key, lamports)  # blocks nothing
    world.run(good)


def test_apply_and_borrow_in_one_transaction_at_depth_twenty_with_a_lookup_table(world: LendingWorld) -> None:
    leaf = make_leaf(EPOCH + 1, account=world.margin_account, budget=USD, flags=0)
    proof = post_leaf(world, leaf, depth=20)
    who = world.controller
    apply = build_apply(world.program, world.registry, who.pubkey(), unpack(pack_leaf(leaf)), proof)
    borrow = world.lender.build_borrow(who.pubkey(), world.margin_account, SALT, world.purse, TOKEN)
    keys = [meta.pubkey for made in (apply, borrow) for meta in made.accounts if meta.pubkey != who.pubkey()]
    table = AddressLookupTableAccount(Pubkey.new_unique(), list(dict.fromkeys(keys)))
    put_table(world, table)
    message = MessageV0.try_compile(
        who.pubkey(), [set_compute_unit_limit(200_000), apply, borrow], [table], world.svm.latest_blockhash()
    )
    transaction = VersionedTransaction(message, [who])
    assert len(bytes(transaction)) <= 1_232
    world.svm.send_transaction(transaction)
    assert (world.debt(), world.margin(world.margin_account).epoch) == (TOKEN, EPOCH + 1)


def put_table(world: LendingWorld, table: AddressLookupTableAccount) -> None:
    """Put an address lookup table in place: a 56-byte header, then the keys (solana-address-lookup-table-interface)."""
    clock = world.svm.get_clock()
    clock.slot = 10
    world.svm.set_clock(clock)
    header = (1).to_bytes(4, "little") + (2**64 - 1).to_bytes(8, "little") + bytes(8 + 1 + 1 + 32 + 2)
    data = header + b"".join(bytes(key) for key in table.addresses)
    owner = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")
    world.svm.set_account(table.key, Account(10**9, data, owner))


def test_refusals_mirror_the_source() -> None:
    table = re.findall(r"^  ([A-Z_]+) = (\d+), +/\*", (PROGRAMS / "consumer.c").read_text(), re.MULTILINE)
    assert {name: int(code) for name, code in table} == {one.name: one.value for one in ConsumerRefusal}


def test_decoding_a_loan_is_strict(world: LendingWorld) -> None:
    world.borrow(1)
    good = world.raw(world.lender.loan(world.margin_account))
    for bad in (
        RawAccount(1, str(world.program), good.data),
        RawAccount(1, good.owner, good.data[:-1]),
        RawAccount(1, good.owner, b"x" + good.data[1:]),
    ):
        with pytest.raises(LayoutError):
            world.lender.decode_debt(world.margin_account, bad)
    with pytest.raises(LayoutError):
        world.lender.decode_debt(bytes(32), good)
