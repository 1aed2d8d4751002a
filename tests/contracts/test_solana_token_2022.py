"""The vault program and its reader over mints of the real Token-2022 program, extension by extension."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solders.account import Account
from solders.instruction import AccountMeta, Instruction
from solders.pubkey import Pubkey

from adapters.solana.layouts import TOKEN_2022_PROGRAM, LayoutError, RawAccount, Result
from adapters.solana.programs import (
    VaultRefusal,
    build_claim,
    build_deposit,
    build_request,
    build_withdraw,
    custody_address,
)
from adapters.solana.spl_token import (
    DESCRIPTIVE_EXTENSIONS,
    REFUSED_EXTENSIONS,
    ExtensionError,
    decode_mint,
    decode_token_account,
    verify_mint,
)
from adapters.solana.vault import CollateralVault
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Subject
from tests.contracts.solana_reference import NOW, PROGRAMS, TOKEN_PROGRAM, Refused
from tests.contracts.solana_vault_world import (
    ACCOUNT,
    DELAY,
    INIT,
    TOKEN_2022,
    VaultWorld,
    refuses,
    signed,
    swap,
)

CHAIN = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
REFUSALS = {
    1: VaultRefusal.EXTENSION_TRANSFER_FEE,
    3: VaultRefusal.EXTENSION_MINT_CLOSE_AUTHORITY,
    4: VaultRefusal.EXTENSION_CONFIDENTIAL,
    6: VaultRefusal.EXTENSION_DEFAULT_STATE,
    9: VaultRefusal.EXTENSION_NON_TRANSFERABLE,
    10: VaultRefusal.EXTENSION_INTEREST_BEARING,
    12: VaultRefusal.EXTENSION_PERMANENT_DELEGATE,
    14: VaultRefusal.EXTENSION_TRANSFER_HOOK,
    16: VaultRefusal.EXTENSION_CONFIDENTIAL_FEE,
    24: VaultRefusal.EXTENSION_CONFIDENTIAL_SUPPLY,
    25: VaultRefusal.EXTENSION_SCALED_UI,
    26: VaultRefusal.EXTENSION_PAUSABLE,
    28: VaultRefusal.EXTENSION_PERMISSIONED_BURN,
}
ACCEPTED = [(), (18,), (18, 19), (20,), (20, 21), (22,), (22, 23), (20, 22, 18, 19, 21, 23)]
# What the program itself does not allow without another extension stands first, so that it is the one refused.
CREATED = [(1,), (3,), (4,), (6,), (9,), (10,), (12,), (14,), (16, 1, 4), (24, 4), (25,), (26,), (18, 12, 19)]


@pytest.fixture
def world() -> VaultWorld:
    return VaultWorld()


def prepare(world: VaultWorld, mint: Pubkey, amount: int = 1_000) -> Instruction:
    """Return alice's deposit of 400 of a Token-2022 mint that governance accepted."""
    world.set_limit(10**9, mint)
    purse = world.add_extended_tokens(mint, world.alice.pubkey(), amount)
    return build_deposit(world.program, world.vault, world.alice.pubkey(), ACCOUNT, mint, purse, 400, TOKEN_2022)


def make_asset(mint: Pubkey) -> AssetRow:
    name = f"{CHAIN}/token:{mint}"
    return AssetRow(id=name, symbol="X", kind="spl", decimals=6, feed="X/USD", policy="x")


def read(world: VaultWorld, mints: Sequence[Pubkey]) -> Result:
    """Read alice's account as the aggregator does."""
    rows = {row.id: row for row in map(make_asset, mints)}
    flow = CollateralVault(CHAIN, str(world.program), str(world.vault), rows).flow(
        [Subject("0x" + ACCOUNT.hex(), None)]
    )
    accounts = [world.svm.get_account(Pubkey.from_string(key)) for key in next(flow)]
    try:
        flow.send(tuple(a and RawAccount(a.lamports, str(a.owner), bytes(a.data)) for a in accounts))
    except StopIteration as stop:
        result: Result = stop.value
        return result
    raise AssertionError("a vault is read in one batch")


def put_mint(world: VaultWorld, tail: bytes, kind: int = 1) -> Pubkey:
    """Lay a Token-2022 mint out by hand, with these bytes where its extensions are."""
    plain = bytes(world.account(world.add_mint()).data)
    key = Pubkey.new_unique()
    world.svm.set_account(key, Account(10**9, plain.ljust(165, b"\0") + bytes([kind]) + tail, TOKEN_2022))
    return key


def entry(type_: int, value: bytes = b"") -> bytes:
    return struct.pack("<HH", type_, len(value)) + value


def test_every_extension_of_a_mint_is_either_described_or_refused_by_name() -> None:
    assert {18, 19, 20, 21, 22, 23} == DESCRIPTIVE_EXTENSIONS
    assert set(REFUSED_EXTENSIONS) == set(REFUSALS)
    assert all(code == 100 + type_ for type_, code in REFUSALS.items())
    source = (PROGRAMS / "vault.c").read_text()
    named = re.search(r"named = ([^;]+);", source)
    assert named is not None
    assert {int(bit) for bit in re.findall(r"1UL << (\d+)", named[1])} == set(REFUSALS)


@pytest.mark.parametrize("extensions", ACCEPTED, ids=str)
def test_an_accepted_mint_goes_in_and_comes_out(world: VaultWorld, extensions: tuple[int, ...]) -> None:
    alice, mint = world.alice, world.add_extended_mint(*extensions)
    deposit = prepare(world, mint)
    key = custody_address(world.program, world.vault, mint)
    world.run(deposit, signers=[alice])
    raw = world.raw(key)
    custody = decode_token_account(str(key), raw, TOKEN_2022_PROGRAM)
    assert (custody.owner, custody.amount, len(raw.data)) == (str(world.vault), 400, 165)
    decoded = decode_mint(str(mint), world.raw(mint), TOKEN_2022_PROGRAM)
    assert sorted(decoded.extensions) == sorted(extensions)

    ((position,), findings) = read(world, [mint])
    assert not findings
    assert (position.amount, position.pending, position.control, position.removal_delay) == (400, 0, "seizable", DELAY)

    purse = deposit.accounts[5].pubkey
    world.run(build_request(world.program, world.vault, alice.pubkey(), ACCOUNT, mint, 100), signers=[alice])
    ((position,), _) = read(world, [mint])
    assert (position.amount, position.pending) == (400, 100)
    permit = world.make_permit(asset=bytes(mint), to=bytes(purse), amount=50)
    withdraw = build_withdraw(world.program, world.registry, alice.pubkey(), permit, signed(permit), TOKEN_2022)
    world.run(withdraw, signers=[alice])
    world.set_time(NOW + DELAY)
    claim = build_claim(world.program, world.vault, alice.pubkey(), ACCOUNT, mint, purse, TOKEN_2022)
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, lambda: world.run(swap(claim, 8, TOKEN_PROGRAM), signers=[alice]))
    world.run(claim, signers=[alice])
    assert (world.amount(key), world.amount(purse)) == (250, 750)


@pytest.mark.parametrize("extensions", CREATED, ids=str)
def test_a_refused_extension_is_named(world: VaultWorld, extensions: tuple[int, ...]) -> None:
    mint = world.add_extended_mint(*extensions)
    deposit = prepare(world, mint, amount=0)
    culprit = next(one for one in extensions if one in REFUSALS)
    refuses(REFUSALS[culprit], lambda: world.run(deposit, signers=[world.alice]))
    with pytest.raises(LayoutError, match=REFUSED_EXTENSIONS[culprit]):
        verify_mint(make_asset(mint), world.raw(mint))


def test_the_created_ones_are_all_that_the_program_here_can_create() -> None:
    assert set(REFUSALS) - {28} == {one for extensions in CREATED for one in extensions if one in REFUSALS}
    assert set(INIT) == (set(REFUSALS) - {28}) | {18, 20, 22}


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        (entry(28, bytes(32)), VaultRefusal.EXTENSION_PERMISSIONED_BURN),
        (entry(18, bytes(64)) + entry(28, bytes(32)), VaultRefusal.EXTENSION_PERMISSIONED_BURN),
        (entry(29), VaultRefusal.EXTENSION_UNKNOWN),
        (entry(63), VaultRefusal.EXTENSION_UNKNOWN),
        (entry(64 + 18), VaultRefusal.EXTENSION_UNKNOWN),  # not 18 by a shift that wraps
        (entry(65_535), VaultRefusal.EXTENSION_UNKNOWN),
        (entry(2, bytes(8)), VaultRefusal.EXTENSION_UNKNOWN),  # of accounts, not of mints
        (entry(7), VaultRefusal.EXTENSION_UNKNOWN),
        (entry(18, bytes(64))[:-1], VaultRefusal.MINT_WRONG),
        (struct.pack("<HH", 19, 65_535), VaultRefusal.MINT_WRONG),
        (struct.pack("<H", 18), VaultRefusal.MINT_WRONG),
    ],
    ids=lambda one: one.hex()[:12] if isinstance(one, bytes) else one.name,
)
def test_an_unknown_or_broken_extension_is_refused(world: VaultWorld, tail: bytes, code: VaultRefusal) -> None:
    mint = put_mint(world, tail)
    world.set_limit(10**9, mint)
    purse = world.add_tokens(mint, world.alice.pubkey(), 10, TOKEN_2022)
    deposit = build_deposit(world.program, world.vault, world.alice.pubkey(), ACCOUNT, mint, purse, 5, TOKEN_2022)
    refuses(code, lambda: world.run(deposit, signers=[world.alice]))
    with pytest.raises(LayoutError, match="extension"):
        verify_mint(make_asset(mint), world.raw(mint))


@pytest.mark.parametrize(
    ("tail", "kind"), [(b"", 0), (b"", 2), (entry(18, bytes(64)), 2), (bytes(355 - 166), 1)], ids=["0", "1", "2", "3"]
)
def test_what_is_no_mint_is_refused(world: VaultWorld, tail: bytes, kind: int) -> None:
    mint = put_mint(world, tail, kind)
    world.set_limit(10**9, mint)
    purse = world.add_tokens(mint, world.alice.pubkey(), 10, TOKEN_2022)
    deposit = build_deposit(world.program, world.vault, world.alice.pubkey(), ACCOUNT, mint, purse, 5, TOKEN_2022)
    refuses(VaultRefusal.MINT_WRONG, lambda: world.run(deposit, signers=[world.alice]))
    with pytest.raises(LayoutError):
        verify_mint(make_asset(mint), world.raw(mint))


def test_padding_after_the_last_extension_is_accepted(world: VaultWorld) -> None:
    mint = put_mint(world, entry(18, bytes(64)) + bytes(9) + entry(12, bytes(32)))  # nothing reads past a zero type
    purse = world.add_tokens(mint, world.alice.pubkey(), 10, TOKEN_2022)
    world.set_limit(10**9, mint)
    deposit = build_deposit(world.program, world.vault, world.alice.pubkey(), ACCOUNT, mint, purse, 5, TOKEN_2022)
    world.run(deposit, signers=[world.alice])
    assert world.amount(custody_address(world.program, world.vault, mint)) == 5
    assert verify_mint(make_asset(mint), world.raw(mint)) == TOKEN_2022_PROGRAM


TYPES = st.one_of(st.sampled_from(sorted(DESCRIPTIVE_EXTENSIONS)), st.integers(0, 70))
TAILS = st.builds(
    lambda entries, rest: b"".join(entries) + rest,
    st.lists(st.builds(entry, TYPES, st.binary(max_size=40)), max_size=4),
    st.binary(max_size=5),
)


class OneMint:
    """A world in which one mint changes from example to example."""

    def __init__(self) -> None:
        self.world = VaultWorld()
        self.mint = put_mint(self.world, b"")
        self.world.set_limit(10**9, self.mint)
        alice = self.world.alice.pubkey()
        purse = self.world.add_tokens(self.mint, alice, 10**6, TOKEN_2022)
        vault = self.world.vault
        self.deposit = build_deposit(self.world.program, vault, alice, ACCOUNT, self.mint, purse, 1, TOKEN_2022)


@pytest.fixture(scope="module")
def one() -> OneMint:
    return OneMint()


@given(tail=TAILS)
@settings(deadline=None)
def test_program_and_reader_judge_every_mint_alike(one: OneMint, tail: bytes) -> None:
    world, mint = one.world, one.mint
    base = bytes(world.account(mint).data)[:166]
    world.svm.set_account(mint, Account(10**9, base + tail, TOKEN_2022))
    try:
        verify_mint(make_asset(mint), world.raw(mint))
    except LayoutError as error:
        with pytest.raises(Refused) as caught:
            world.run(one.deposit, signers=[world.alice])
        refusal = VaultRefusal(caught.value.code)
        named = [code for type_, code in REFUSALS.items() if f"extension: {REFUSED_EXTENSIONS[type_]}:" in str(error)]
        if isinstance(error, ExtensionError):
            assert refusal == (named[0] if named else VaultRefusal.EXTENSION_UNKNOWN)
        else:  # broken somewhere; the program names an extension that comes before that
            assert refusal == VaultRefusal.MINT_WRONG or refusal.name.startswith("EXTENSION")
    else:
        world.run(one.deposit, signers=[world.alice])


def test_the_token_program_is_the_mints_own(world: VaultWorld) -> None:
    deposit = prepare(world, world.add_extended_mint(18))
    signers = [world.alice]
    refuses(VaultRefusal.TOKEN_PROGRAM_WRONG, lambda: world.run(swap(deposit, 9, TOKEN_PROGRAM), signers=signers))
    other = world.add_mint(program=world.program)
    refuses(VaultRefusal.MINT_WRONG, lambda: world.run(swap(deposit, 4, other), signers=signers))
    plain = world.purse[world.alice.pubkey()]
    refuses(VaultRefusal.TOKEN_ACCOUNT_WRONG, lambda: world.run(swap(deposit, 5, plain), signers=signers))
    world.run(deposit, signers=signers)


def test_what_is_in_can_leave_when_a_mint_gets_a_refused_extension(world: VaultWorld) -> None:
    """No mint of today's program can; one of tomorrow's must not lock anybody in."""
    alice, mint = world.alice, put_mint(world, entry(18, bytes(64)))
    purse = world.add_tokens(mint, alice.pubkey(), 10, TOKEN_2022)
    world.set_limit(10**9, mint)
    deposit = build_deposit(world.program, world.vault, alice.pubkey(), ACCOUNT, mint, purse, 5, TOKEN_2022)
    world.run(deposit, signers=[alice])
    data = bytes(world.account(mint).data) + entry(3, bytes(32))
    world.svm.set_account(mint, Account(10**9, data, TOKEN_2022))
    refuses(VaultRefusal.EXTENSION_MINT_CLOSE_AUTHORITY, lambda: world.run(deposit, signers=[alice]))
    world.run(build_request(world.program, world.vault, alice.pubkey(), ACCOUNT, mint, 5), signers=[alice])
    world.set_time(NOW + DELAY)
    claim = build_claim(world.program, world.vault, alice.pubkey(), ACCOUNT, mint, purse, TOKEN_2022)
    world.run(claim, signers=[alice])
    assert world.amount(purse) == 10


def test_a_hold_changes_nothing_that_is_read(world: VaultWorld) -> None:
    """It ends, and only the quorum decides when: the delay stays what the owner alone must wait."""
    mint = world.add_extended_mint(18)
    world.run(prepare(world, mint), signers=[world.alice])
    before = read(world, [mint])
    world.hold()
    assert read(world, [mint]) == before
    assert before[0][0].removal_delay == DELAY


def test_one_bad_mint_or_custody_touches_its_own_asset_only(world: VaultWorld) -> None:
    good, bad, frozen = (world.add_extended_mint(18) for _ in range(3))
    for mint in (good, bad, frozen):
        world.run(prepare(world, mint), signers=[world.alice])
    data = bytes(world.account(bad).data) + entry(12, bytes(32))
    world.svm.set_account(bad, Account(10**9, data, TOKEN_2022))
    custody = custody_address(world.program, world.vault, frozen)
    metas = [AccountMeta(key, key == world.payer.pubkey(), False) for key in (frozen, world.payer.pubkey())]
    world.run(Instruction(TOKEN_2022, bytes([10]), [AccountMeta(custody, False, True), *metas]))
    unused = world.add_extended_mint(12)  # nobody holds it: it says nothing about anybody
    positions, findings = read(world, [good, bad, frozen, unused])
    assert [(p.asset.partition("/token:")[2], p.amount) for p in positions] == [(str(good), 400), (str(frozen), 0)]
    assert [(f.code, f.scope) for f in findings] == [
        ("token-2022", "0x" + ACCOUNT.hex()),
        ("frozen", "0x" + ACCOUNT.hex()),
    ]
    assert "permanent delegate" in findings[0].detail
    assert str(bad) in findings[0].detail
    with pytest.raises(Refused, match="Account is frozen"):
        world.run(prepare(world, frozen), signers=[world.alice])
    key = custody_address(world.program, world.vault, good)
    stray = world.account(world.add_tokens(good, world.alice.pubkey(), 10**6, TOKEN_2022))
    world.svm.set_account(key, stray)
    positions, findings = read(world, [good, frozen])
    assert [p.asset.partition("/token:")[2] for p in positions] == [str(frozen)]
    assert [f.code for f in findings] == ["unreadable", "frozen"]
    assert "owner" in findings[0].detail
