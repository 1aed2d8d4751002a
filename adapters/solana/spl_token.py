"""SPL Token and Token-2022: mints, token accounts, and what linked wallets hold in associated SPL Token accounts.

Layouts: solana-program/token `interface/src/state.rs` (Mint 82 bytes, Account 165 bytes). Token-2022 keeps them; what
has extensions is longer: a byte at 165 says mint (1) or account (2), and from 166 follow u16 type, u16 length, value
(solana-program/token-2022 `interface/src/extension`). A mint counts when its extensions only describe it; the others
take fees, move, block or rename tokens behind their holder's back. proofs/programs/vault.c refuses the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from solders.pubkey import Pubkey

from adapters.solana.layouts import (
    ASSOCIATED_TOKEN_PROGRAM,
    TOKEN_2022_PROGRAM,
    TOKEN_PROGRAM,
    Answers,
    Fields,
    Flow,
    LayoutError,
    RawAccount,
    mint_of,
    open_account,
    unreadable,
)
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject

MINT_SIZE, TOKEN_ACCOUNT_SIZE, MULTISIG_SIZE = 82, 165, 355
_KIND_MINT, _KIND_ACCOUNT = 1, 2
DESCRIPTIVE_EXTENSIONS = frozenset(range(18, 24))
"""Metadata pointer, token metadata, group pointer, token group, group member pointer, token group member."""
REFUSED_EXTENSIONS = {
    1: "transfer fee",
    3: "mint close authority",
    4: "confidential transfer",
    6: "default account state",
    9: "non-transferable",
    10: "interest-bearing",
    12: "permanent delegate",
    14: "transfer hook",
    16: "confidential transfer fee",
    24: "confidential mint and burn",
    25: "scaled UI amount",
    26: "pausable",
    28: "permissioned burn",
}
_STATES: tuple[Literal["uninitialized", "initialized", "frozen"], ...] = ("uninitialized", "initialized", "frozen")


@dataclass(frozen=True, slots=True)
class Mint:
    """A decoded mint. `supply` is in base units; `extensions` are the types of its Token-2022 extensions."""

    mint_authority: str | None
    supply: int
    decimals: int
    freeze_authority: str | None
    extensions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenAccount:
    """A decoded token account. Amounts are base units; `native_reserve` is lamports, None unless it wraps SOL."""

    mint: str
    owner: str
    amount: int
    delegate: str | None
    state: Literal["initialized", "frozen"]
    native_reserve: int | None
    delegated_amount: int
    close_authority: str | None


def decode_mint(account: str, raw: RawAccount, program: str = TOKEN_PROGRAM) -> Mint:
    """Decode a mint of a token program. Raises LayoutError."""
    fields, extensions = _open_token(account, raw, program, MINT_SIZE, _KIND_MINT)
    if not fields.flag(45, "is_initialized"):
        raise LayoutError(account, "is_initialized", "the mint is not initialised")
    return Mint(
        mint_authority=fields.optional_key(0, "mint_authority"),
        supply=fields.u64(36),
        decimals=fields.u8(44),
        freeze_authority=fields.optional_key(46, "freeze_authority"),
        extensions=extensions,
    )


def decode_token_account(account: str, raw: RawAccount, program: str = TOKEN_PROGRAM) -> TokenAccount:
    """Decode an account of a token program. Raises LayoutError; an uninitialised one is an error, not a zero."""
    fields, _ = _open_token(account, raw, program, TOKEN_ACCOUNT_SIZE, _KIND_ACCOUNT)
    number = fields.u8(108)
    if number >= len(_STATES):
        raise LayoutError(account, "state", f"{number} found, 0 to 2 expected")
    state = _STATES[number]
    if state == "uninitialized":
        raise LayoutError(account, "state", "the token account is not initialised")
    return TokenAccount(
        mint=fields.key(0),
        owner=fields.key(32),
        amount=fields.u64(64),
        delegate=fields.optional_key(72, "delegate"),
        state=state,
        native_reserve=fields.u64(113) if fields.tag(109, "is_native") else None,
        delegated_amount=fields.u64(121),
        close_authority=fields.optional_key(129, "close_authority"),
    )


def _open_token(account: str, raw: RawAccount, program: str, size: int, kind: int) -> tuple[Fields, tuple[int, ...]]:
    """Return the fields and the extension types of an account of a token program. Raises LayoutError."""
    long = program == TOKEN_2022_PROGRAM and len(raw.data) > TOKEN_ACCOUNT_SIZE and len(raw.data) != MULTISIG_SIZE
    if not long:
        return open_account(account, raw, program, size), ()
    fields = open_account(account, raw, program, len(raw.data))
    if fields.u8(TOKEN_ACCOUNT_SIZE) != kind:
        raise LayoutError(account, "kind", f"{fields.u8(TOKEN_ACCOUNT_SIZE)} found, {kind} expected")
    types = []
    at, end = TOKEN_ACCOUNT_SIZE + 1, len(raw.data)
    while at + 2 <= end and (type_ := int.from_bytes(raw.data[at : at + 2], "little")):
        types.append(type_)
        at += 4 + int.from_bytes(raw.data[at + 2 : at + 4], "little")
        if at > end:
            raise LayoutError(account, f"extension {type_}", "is longer than the account")
    return fields, tuple(types)


def associated_address(owner: str, mint: str) -> str:
    """Return the address of `owner`'s associated SPL Token account for `mint`. Both are base58."""
    seeds = [bytes(Pubkey.from_string(key)) for key in (owner, TOKEN_PROGRAM, mint)]
    return str(Pubkey.find_program_address(seeds, Pubkey.from_string(ASSOCIATED_TOKEN_PROGRAM))[0])


class ExtensionError(LayoutError):
    """A Token-2022 mint that does not count as collateral here; `problem` names its extension."""


def verify_mint(row: AssetRow, raw: RawAccount | None) -> str:
    """Check that the chain's mint is the one `row` describes; return the token program that owns it.

    Raises:
        ExtensionError: an extension of a Token-2022 mint does more than describe it.
        LayoutError: no such mint, or another one.
    """
    account = mint_of(row.id)
    if raw is None:
        raise LayoutError(account, "mint", "no such account on this chain")
    program = TOKEN_2022_PROGRAM if raw.owner == TOKEN_2022_PROGRAM else TOKEN_PROGRAM
    mint = decode_mint(account, raw, program)
    for type_ in mint.extensions:
        if type_ not in DESCRIPTIVE_EXTENSIONS:
            name = REFUSED_EXTENSIONS.get(type_, f"type {type_}, which is not known here")
            raise ExtensionError(account, "extension", f"{name}: a Token-2022 mint that counts nothing")
    if mint.decimals != row.decimals:
        raise LayoutError(account, "decimals", f"{mint.decimals} on the chain, {row.decimals} configured")
    return program


def doubt_code(error: LayoutError) -> str:
    """Return the code of the finding that an unsound mint or token account gives."""
    return "token-2022" if isinstance(error, ExtensionError) else "unreadable"


def sift_mints(
    rows: Sequence[AssetRow], answers: Answers, subjects: Sequence[Subject]
) -> tuple[frozenset[str], list[Finding]]:
    """Return the ids of the rows with a sound SPL Token mint, and a finding per subject for each unsound mint."""
    sound: set[str] = set()
    findings: list[Finding] = []
    for row, raw in zip(rows, answers, strict=True):
        try:
            if verify_mint(row, raw) == TOKEN_PROGRAM:
                sound.add(row.id)
        except LayoutError as error:
            findings += [unreadable(doubt_code(error), row.id, subject, str(error)) for subject in subjects]
    return frozenset(sound), findings


class SplTokenWallet:
    """SPL tokens in the associated token accounts of linked addresses.

    Tokens in other token accounts of the same owner are not seen, nor is Token-2022 outside a vault: they count
    nothing, which errs to the safe side.
    """

    name = "wallet"
    keyed_by = "address"

    def __init__(self, chain: str, assets: Mapping[str, AssetRow]) -> None:
        self.chain = chain
        self.rows = [row for row in assets.values() if row.kind == "spl" and row.id.startswith(f"{chain}/")]

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the mints and one associated token account per (asset, address); return positions."""
        mints = [mint_of(row.id) for row in self.rows]
        owned = [
            (row, subject, associated_address(subject.address or "", mint))
            for row, mint in zip(self.rows, mints, strict=True)
            for subject in subjects
        ]
        answers = yield (*mints, *(address for _, _, address in owned))
        sound, findings = sift_mints(self.rows, answers[: len(mints)], subjects)
        positions: list[Position] = []
        for (row, subject, address), raw in zip(owned, answers[len(mints) :], strict=True):
            if raw is None or row.id not in sound:
                continue
            try:
                held = decode_token_account(address, raw)
                if held.mint != mint_of(row.id):
                    raise LayoutError(address, "mint", f"{held.mint} found, {mint_of(row.id)} expected")
                if held.owner != subject.address:
                    # The authority of an associated token account can be given away; then it is not the wallet's.
                    raise LayoutError(address, "owner", f"{held.owner} found, {subject.address} expected")
            except LayoutError as error:
                findings.append(unreadable("unreadable", row.id, subject, str(error)))
                continue
            frozen = held.state == "frozen"
            if frozen:
                findings.append(unreadable("frozen", row.id, subject, f"{address} is frozen by its mint's authority"))
            if held.amount:
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        row.id,
                        held.amount,
                        row.id,
                        0 if frozen else held.amount,
                        address=subject.address or "",
                    )
                )
        return tuple(positions), tuple(findings)
