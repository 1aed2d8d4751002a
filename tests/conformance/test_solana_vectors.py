"""The Solana decoders and adapters over recorded mainnet bytes, without a network."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.pubkey import Pubkey

from adapters.solana.layouts import (
    SYSTEM_PROGRAM,
    TOKEN_2022_PROGRAM,
    TOKEN_PROGRAM,
    Flow,
    LayoutError,
    RawAccount,
    Result,
)
from adapters.solana.native import NativeWallet
from adapters.solana.programs import custody_address, holding_address, vault_address
from adapters.solana.spl_token import SplTokenWallet, associated_address, decode_mint, decode_token_account
from adapters.solana.vault import CollateralVault
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Subject

VECTORS = Path(__file__).parent / "vectors" / "solana"
CHAIN = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
ALL = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json")) if path.stem != "metadata"}
TOKEN_ACCOUNTS = [name for name, one in ALL.items() if one["kind"] == "spl.TokenAccount"]
MINTS = [name for name, one in ALL.items() if one["kind"] == "spl.Mint"]
FROZEN = [name for name in TOKEN_ACCOUNTS if ALL[name]["expected"]["state"] == "frozen"]
ACCOUNT = "0x" + "ab" * 32


def raw(name: str) -> RawAccount:
    one = ALL[name]
    return RawAccount(one["lamports"], one["owner"], base64.b64decode(one["data"]))


def drive(flow: Flow, world: Mapping[str, RawAccount]) -> Result:
    """Answer every batch from `world`."""
    try:
        batch = next(flow)
        while True:
            batch = flow.send(tuple(world.get(address) for address in batch))
    except StopIteration as stop:
        result: Result = stop.value
        return result


def make_asset(mint: str, decimals: int) -> AssetRow:
    return AssetRow(id=f"{CHAIN}/token:{mint}", symbol="X", kind="spl", decimals=decimals, feed="X/USD", policy="x")


def make_mint(decimals: int, owner: str = TOKEN_PROGRAM) -> RawAccount:
    return RawAccount(10**6, owner, struct.pack("<I32xQBBI32x", 0, 10**15, decimals, 1, 0))


def extend(mint: RawAccount, type_: int) -> RawAccount:
    """Return the mint with one empty Token-2022 extension."""
    return replace(mint, data=mint.data.ljust(165, b"\0") + b"\1" + struct.pack("<HH", type_, 0))


def make_tokens(mint: str, owner: str, amount: int, state: int = 1) -> RawAccount:
    keys = bytes(Pubkey.from_string(mint)) + bytes(Pubkey.from_string(owner))
    return RawAccount(10**6, TOKEN_PROGRAM, keys + struct.pack("<Q36xB12xQ36x", amount, state, 0))


def test_the_vectors_are_the_recorded_ones() -> None:
    recorded = json.loads((VECTORS / "metadata.json").read_text())["files"]
    assert set(recorded) == {f"{name}.json" for name in ALL}
    for name, one in recorded.items():
        assert hashlib.sha256((VECTORS / name).read_bytes()).hexdigest() == one["sha256"], name
        body = json.loads((VECTORS / name).read_text())
        assert hashlib.sha256(base64.b64decode(body["data"])).hexdigest() == body["data_sha256"], name


@pytest.mark.parametrize("name", MINTS)
def test_mints_decode_to_the_recorded_fields(name: str) -> None:
    expected = ALL[name]["expected"]
    mint = decode_mint(ALL[name]["address"], raw(name))
    assert (mint.mint_authority, mint.freeze_authority) == (expected["mint_authority"], expected["freeze_authority"])
    assert (str(mint.supply), mint.decimals) == (expected["supply"], expected["decimals"])


@pytest.mark.parametrize("name", TOKEN_ACCOUNTS)
def test_token_accounts_decode_to_the_recorded_fields(name: str) -> None:
    expected = ALL[name]["expected"]
    account = decode_token_account(ALL[name]["address"], raw(name))
    assert (account.mint, account.owner) == (expected["mint"], expected["owner_wallet"])
    assert (str(account.amount), account.state) == (expected["amount"], expected["state"])
    assert (account.delegate, account.close_authority) == (expected["delegate"], expected["close_authority"])
    assert str(account.delegated_amount) == expected["delegated_amount"]
    assert account.native_reserve == expected["is_native_rent_exempt_reserve"]


@pytest.mark.parametrize("name", [*MINTS, *TOKEN_ACCOUNTS])
def test_a_wrong_owner_or_size_is_an_error_that_names_account_and_field(name: str) -> None:
    decode: Any = decode_mint if name in MINTS else decode_token_account
    good, address = raw(name), ALL[name]["address"]
    for bad, field in (
        (replace(good, owner=SYSTEM_PROGRAM), "owner"),
        (replace(good, owner=TOKEN_2022_PROGRAM), "owner"),
        (replace(good, data=good.data[:-1]), "size"),
        (replace(good, data=good.data + b"\0"), "size"),
        (replace(good, data=b""), "size"),
        (replace(good, data=bytes(len(good.data))), "is_initialized" if name in MINTS else "state"),
    ):
        with pytest.raises(LayoutError) as caught:
            decode(address, bad)
        assert (caught.value.account, caught.value.field) == (address, field)
        assert address in str(caught.value)


@given(data=st.binary(min_size=165, max_size=165))
def test_no_bytes_decode_to_a_zero_by_accident(data: bytes) -> None:
    address = ALL[TOKEN_ACCOUNTS[0]]["address"]
    try:
        account = decode_token_account(address, RawAccount(1, TOKEN_PROGRAM, data))
    except LayoutError:
        return
    assert account.amount == int.from_bytes(data[64:72], "little")


def test_a_recorded_wallet_is_read_through_its_associated_account() -> None:
    seen = []
    for name in TOKEN_ACCOUNTS:
        expected = ALL[name]["expected"]
        address = associated_address(expected["owner_wallet"], expected["mint"])
        if address != ALL[name]["address"]:
            continue  # not an associated account
        seen.append(name)
        asset = make_asset(expected["mint"], 6)
        world = {expected["mint"]: make_mint(6), address: raw(name)}
        subject = Subject(ACCOUNT, expected["owner_wallet"])
        positions, findings = drive(SplTokenWallet(CHAIN, {asset.id: asset}).flow([subject]), world)
        amount = int(expected["amount"])
        assert [p.quantity for p in positions] == ([amount] if amount else [])
        if name in FROZEN:
            assert [f.code for f in findings] == ["frozen"]
            assert all(p.amount == 0 for p in positions)
        else:
            assert not findings
            assert all((p.amount, p.control, p.removal_delay) == (amount, "none", 0) for p in positions)
    assert seen
    assert set(seen) & set(FROZEN)


def test_native_wallets_hold_the_recorded_lamports() -> None:
    asset = AssetRow(id=f"{CHAIN}/slip44:501", symbol="SOL", kind="native", decimals=9, feed="SOL/USD", policy="sol")
    names = [name for name in ALL if name.startswith("native_sol")]
    world = {ALL[name]["address"]: raw(name) for name in names}
    subjects = [Subject(ACCOUNT, ALL[name]["address"]) for name in names]
    subjects.append(Subject(ACCOUNT, str(Pubkey.new_unique())))  # never used: a real zero
    positions, findings = drive(NativeWallet(CHAIN, {asset.id: asset}).flow(subjects), world)
    assert [str(p.amount) for p in positions] == [ALL[name]["expected"]["lamports"] for name in names]
    assert not findings
    owned = {subjects[0].address or "": replace(raw(names[0]), owner=TOKEN_PROGRAM)}
    positions, findings = drive(NativeWallet(CHAIN, {asset.id: asset}).flow(subjects[:1]), owned)
    assert not positions
    assert [(f.code, f.scope) for f in findings] == [("unreadable", ACCOUNT)]


WALLET = str(Pubkey.new_unique())
MINT = str(Pubkey.new_unique())
ASSET = make_asset(MINT, 6)
ATA = associated_address(WALLET, MINT)


@pytest.mark.parametrize(
    ("world", "code", "words"),
    [
        ({}, "unreadable", "no such account"),
        ({MINT: make_mint(9), ATA: make_tokens(MINT, WALLET, 5)}, "unreadable", "decimals"),
        ({MINT: extend(make_mint(6, TOKEN_2022_PROGRAM), 12)}, "token-2022", "permanent delegate"),
        ({MINT: extend(make_mint(6, TOKEN_2022_PROGRAM), 77)}, "token-2022", "type 77"),
        ({MINT: make_mint(6), ATA: make_tokens(WALLET, WALLET, 5)}, "unreadable", "mint"),
        ({MINT: make_mint(6), ATA: make_tokens(MINT, MINT, 5)}, "unreadable", "owner"),
        ({MINT: make_mint(6), ATA: make_tokens(MINT, WALLET, 5, state=0)}, "unreadable", "state"),
        ({MINT: make_mint(6), ATA: make_tokens(MINT, WALLET, 5, state=2)}, "frozen", ATA),
    ],
)
def test_a_wallet_that_cannot_be_read_says_so(world: dict[str, RawAccount], code: str, words: str) -> None:
    positions, findings = drive(SplTokenWallet(CHAIN, {ASSET.id: ASSET}).flow([Subject(ACCOUNT, WALLET)]), world)
    assert all(p.amount == 0 for p in positions)
    assert [(f.code, f.scope) for f in findings] == [(code, ACCOUNT)]
    assert words in findings[0].detail


def test_token_2022_in_a_wallet_is_not_seen() -> None:
    """It counts in a vault; a wallet that is linked beside one must not make the account partial."""
    flow = SplTokenWallet(CHAIN, {ASSET.id: ASSET}).flow([Subject(ACCOUNT, WALLET)])
    mint = extend(make_mint(6, TOKEN_2022_PROGRAM), 18)
    assert drive(flow, {MINT: mint, ATA: make_tokens(MINT, WALLET, 5)}) == ((), ())


def test_an_absent_token_account_is_a_real_zero() -> None:
    flow = SplTokenWallet(CHAIN, {ASSET.id: ASSET}).flow([Subject(ACCOUNT, WALLET)])
    assert drive(flow, {MINT: make_mint(6)}) == ((), ())


# ---- our vault ----

PROGRAM = Pubkey.new_unique()
REGISTRY = Pubkey.from_bytes(bytes(range(32)))
VAULT = vault_address(PROGRAM, REGISTRY, 300)
CUSTODY = str(custody_address(PROGRAM, VAULT, Pubkey.from_string(MINT)))
HOLDING = str(holding_address(PROGRAM, VAULT, bytes.fromhex("ab" * 32), Pubkey.from_string(MINT)))


def make_vault_world(**changes: RawAccount | None) -> dict[str, RawAccount]:
    mint = bytes(Pubkey.from_string(MINT))
    vault = b"cmVAULT2" + bytes(REGISTRY) + struct.pack("<QB7x", 300, 255)
    holding = b"cmHOLDG1" + bytes(VAULT) + b"\xab" * 32 + mint + struct.pack("<QQB7x", 1_000, 400, 255)
    world: dict[str, RawAccount | None] = {
        str(VAULT): RawAccount(1, str(PROGRAM), vault),
        MINT: make_mint(6),
        CUSTODY: make_tokens(MINT, str(VAULT), 5_000),
        HOLDING: RawAccount(1, str(PROGRAM), holding),
    }
    names = {"vault": str(VAULT), "custody": CUSTODY, "holding": HOLDING}
    world |= {names[name]: account for name, account in changes.items()}
    return {key: account for key, account in world.items() if account is not None}


def read_vault(world: dict[str, RawAccount]) -> Result:
    adapter = CollateralVault(CHAIN, str(PROGRAM), str(VAULT), {ASSET.id: ASSET})
    return drive(adapter.flow([Subject(ACCOUNT, None)]), world)


def test_a_holding_is_seizable_and_waits_for_the_delay() -> None:
    ((position,), findings) = read_vault(make_vault_world())
    assert not findings
    assert (position.account, position.venue, position.asset) == (ACCOUNT, "vault", ASSET.id)
    assert (position.quantity, position.amount, position.pending) == (1_000, 1_000, 400)
    assert (position.control, position.removal_delay, position.origin) == ("seizable", 300, str(VAULT))


def test_a_vault_of_another_registry_counts_nothing() -> None:
    subject = [Subject(ACCOUNT, None)]
    for registry, counts in ((str(REGISTRY), True), (WALLET, False)):
        adapter = CollateralVault(CHAIN, str(PROGRAM), str(VAULT), {ASSET.id: ASSET}, registry)
        positions, findings = drive(adapter.flow(subject), make_vault_world())
        assert (bool(positions), [f.code for f in findings]) == (counts, [] if counts else ["unreadable"])
    assert f"registry: {REGISTRY} found, {WALLET} expected" in findings[0].detail


def test_an_account_without_a_holding_has_nothing() -> None:
    assert read_vault(make_vault_world(holding=None)) == ((), ())


GOOD = make_vault_world()


def patch(key: str, at: int, new: bytes) -> RawAccount:
    data = bytearray(GOOD[key].data)
    data[at : at + len(new)] = new
    return replace(GOOD[key], data=bytes(data))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vault": None}, "no such account"),
        ({"vault": replace(GOOD[str(VAULT)], owner=SYSTEM_PROGRAM)}, "owner"),
        ({"vault": patch(str(VAULT), 8, b"\xff")}, "registry and delay"),
        ({"vault": patch(str(VAULT), 40, b"\x01")}, "registry and delay"),
        ({"custody": None}, "custody holds 0"),
        ({"custody": make_tokens(MINT, str(VAULT), 999)}, "custody holds 999"),
        ({"custody": make_tokens(MINT, WALLET, 5_000)}, "owner"),
        ({"custody": make_tokens(WALLET, str(VAULT), 5_000)}, "mint"),
        ({"custody": replace(make_tokens(MINT, str(VAULT), 5_000), owner=TOKEN_2022_PROGRAM)}, "owner"),
        ({"holding": replace(GOOD[HOLDING], owner=SYSTEM_PROGRAM)}, "owner"),
        ({"holding": replace(GOOD[HOLDING], data=GOOD[HOLDING].data[:-1])}, "size"),
        ({"holding": patch(HOLDING, 0, b"x")}, "discriminator"),
        ({"holding": patch(HOLDING, 8, b"x" * 32)}, "vault"),
        ({"holding": patch(HOLDING, 40, b"x" * 32)}, "account"),
        ({"holding": patch(HOLDING, 72, b"x" * 32)}, "mint"),
        ({"holding": patch(HOLDING, 112, (1_001).to_bytes(8, "little"))}, "pending"),
    ],
)
def test_a_vault_that_cannot_be_read_counts_nothing_and_says_why(
    changes: dict[str, RawAccount | None], words: str
) -> None:
    positions, findings = read_vault(make_vault_world(**changes))
    assert not positions
    assert [(f.code, f.scope) for f in findings] == [("unreadable", ACCOUNT)]
    assert words in findings[0].detail


def test_frozen_custody_counts_nothing() -> None:
    ((position,), (finding,)) = read_vault(make_vault_world(custody=make_tokens(MINT, str(VAULT), 5_000, state=2)))
    assert (position.quantity, position.amount, position.pending) == (1_000, 0, 0)
    assert finding.code == "frozen"
