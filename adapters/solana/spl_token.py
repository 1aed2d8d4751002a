"""SPL Token: mints, token accounts, and what linked wallets hold in their associated token accounts.

Layouts: solana-program/token `interface/src/state.rs` (Mint 82 bytes, Account 165 bytes). Token-2022 has extensions
that take fees or move tokens by themselves; it is refused with a finding until it is understood.
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
    Flow,
    LayoutError,
    RawAccount,
    mint_of,
    open_account,
    unreadable,
)
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject

MINT_SIZE, TOKEN_ACCOUNT_SIZE = 82, 165
_STATES: tuple[Literal["uninitialized", "initialized", "frozen"], ...] = ("uninitialized", "initialized", "frozen")


@dataclass(frozen=True, slots=True)
class Mint:
    """A decoded mint. `supply` is in base units."""

    mint_authority: str | None
    supply: int
    decimals: int
    freeze_authority: str | None


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


def decode_mint(account: str, raw: RawAccount) -> Mint:
    """Decode an SPL Token mint. Raises LayoutError."""
    fields = open_account(account, raw, TOKEN_PROGRAM, MINT_SIZE)
    if not fields.flag(45, "is_initialized"):
        raise LayoutError(account, "is_initialized", "the mint is not initialised")
    return Mint(
        mint_authority=fields.optional_key(0, "mint_authority"),
        supply=fields.u64(36),
        decimals=fields.u8(44),
        freeze_authority=fields.optional_key(46, "freeze_authority"),
    )


def decode_token_account(account: str, raw: RawAccount) -> TokenAccount:
    """Decode an SPL Token account. Raises LayoutError; an uninitialised one is an error, not a zero."""
    fields = open_account(account, raw, TOKEN_PROGRAM, TOKEN_ACCOUNT_SIZE)
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


def associated_address(owner: str, mint: str) -> str:
    """Return the address of `owner`'s associated SPL Token account for `mint`. Both are base58."""
    seeds = [bytes(Pubkey.from_string(key)) for key in (owner, TOKEN_PROGRAM, mint)]
    return str(Pubkey.find_program_address(seeds, Pubkey.from_string(ASSOCIATED_TOKEN_PROGRAM))[0])


def verify_mint(row: AssetRow, raw: RawAccount | None) -> None:
    """Check that the chain's mint is the one `row` describes. Raises LayoutError."""
    account = mint_of(row.id)
    if raw is None:
        raise LayoutError(account, "mint", "no such account on this chain")
    if raw.owner == TOKEN_2022_PROGRAM:
        raise LayoutError(account, "owner", "a Token-2022 mint, which is not supported yet")
    mint = decode_mint(account, raw)
    if mint.decimals != row.decimals:
        raise LayoutError(account, "decimals", f"{mint.decimals} on the chain, {row.decimals} configured")


def sift_mints(
    rows: Sequence[AssetRow], answers: Answers, subjects: Sequence[Subject]
) -> tuple[frozenset[str], list[Finding]]:
    """Return the ids of the rows whose mint is sound, and a finding per subject for each that is not."""
    sound: set[str] = set()
    findings: list[Finding] = []
    for row, raw in zip(rows, answers, strict=True):
        try:
            verify_mint(row, raw)
        except LayoutError as error:
            code = "token-2022" if raw is not None and raw.owner == TOKEN_2022_PROGRAM else "unreadable"
            findings += [unreadable(code, row.id, subject, str(error)) for subject in subjects]
        else:
            sound.add(row.id)
    return frozenset(sound), findings


class SplTokenWallet:
    """SPL tokens in the associated token accounts of linked addresses.

    Tokens in other token accounts of the same owner are not seen: they count nothing, which errs to the safe side.
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
