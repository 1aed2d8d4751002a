"""The collateral vault program: SPL and Token-2022 tokens held for an account, given back only after a delay.

Layouts and rules: proofs/programs/vault.c. Authority is a vault of this deployment: control seizable, removal delay as
the vault says, held or not: a hold ends, and a permit is the attestors' word, not the owner's. A vault that obeys
another registry holds nothing that counts here: others let it go. `total` includes `pending`. A mint or custody that
cannot be relied on concerns those who hold that asset, and nothing else of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solders.pubkey import Pubkey

from adapters.solana.layouts import Flow, LayoutError, RawAccount, mint_of, unreadable
from adapters.solana.programs import (
    Holding,
    custody_address,
    decode_holding,
    decode_vault,
    holding_address,
    vault_address,
)
from adapters.solana.spl_token import decode_token_account, doubt_code, verify_mint
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject


@dataclass(frozen=True, slots=True)
class _Pool:
    """What custody has of one mint, in base units."""

    amount: int
    frozen: bool


class CollateralVault:
    """Deposits of accounts in one vault.

    Args:
        chain: CAIP-2.
        program: base58 id of the vault program.
        vault: base58 address of the vault.
        assets: the chain's assets; SPL ones are read.
        registry: base58 address of this deployment's registry on the chain, which the vault must obey; None takes any.
    """

    name = "vault"
    keyed_by = "account"

    def __init__(
        self, chain: str, program: str, vault: str, assets: Mapping[str, AssetRow], registry: str | None = None
    ) -> None:
        self.chain, self.registry = chain, registry
        self.program, self.vault = Pubkey.from_string(program), Pubkey.from_string(vault)
        self.rows = [row for row in assets.values() if row.kind == "spl" and row.id.startswith(f"{chain}/")]

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the vault, the mints, their custody and one holding per (mint, account); return positions."""
        mints = [mint_of(row.id) for row in self.rows]
        custody = [custody_address(self.program, self.vault, Pubkey.from_string(mint)) for mint in mints]
        kept = [
            (row, subject, holding_address(self.program, self.vault, account_id(subject), Pubkey.from_string(mint)))
            for row, mint in zip(self.rows, mints, strict=True)
            for subject in subjects
        ]
        answers = yield (str(self.vault), *mints, *map(str, custody), *(str(address) for _, _, address in kept))
        try:
            delay = self._delay(answers[0])
        except LayoutError as error:
            # Without the delay nothing says that the owner cannot leave at once.
            return (), tuple(unreadable("unreadable", "vault", subject, str(error)) for subject in subjects)
        n = len(mints)
        pools = {
            row.id: self._pool(row, mint, str(address), pool)
            for row, address, mint, pool in zip(
                self.rows, custody, answers[1 : 1 + n], answers[1 + n : 1 + 2 * n], strict=True
            )
        }
        positions: list[Position] = []
        findings: list[Finding] = []
        for (row, subject, address), raw in zip(kept, answers[1 + 2 * n :], strict=True):
            if raw is None:
                continue
            try:
                held, pool = self._holding(str(address), raw, subject, mint_of(row.id)), pools[row.id]
                if isinstance(pool, LayoutError):
                    raise pool
                if held.total > pool.amount:
                    raise LayoutError(str(address), "total", f"{held.total} on record, custody holds {pool.amount}")
            except LayoutError as error:
                findings.append(unreadable(doubt_code(error), row.id, subject, str(error)))
                continue
            if pool.frozen:
                findings.append(unreadable("frozen", row.id, subject, "custody is frozen by the mint's authority"))
            if held.total:
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        row.id,
                        held.total,
                        row.id,
                        0 if pool.frozen else held.total,
                        control="seizable",
                        removal_delay=delay,
                        pending=0 if pool.frozen else held.pending,
                        origin=str(self.vault),
                    )
                )
        return tuple(positions), tuple(findings)

    def _delay(self, raw: RawAccount | None) -> int:
        if raw is None:
            raise LayoutError(str(self.vault), "vault", "no such account on this chain")
        state = decode_vault(str(self.vault), raw, self.program)
        if vault_address(self.program, Pubkey.from_string(state.registry), state.delay) != self.vault:
            raise LayoutError(str(self.vault), "address", "not the address of its registry and delay")
        if self.registry is not None and state.registry != self.registry:
            raise LayoutError(str(self.vault), "registry", f"{state.registry} found, {self.registry} expected")
        return state.delay

    def _pool(
        self, row: AssetRow, mint: RawAccount | None, address: str, custody: RawAccount | None
    ) -> _Pool | LayoutError:
        """Return what custody has, or what is wrong with it or with the mint."""
        try:
            program = verify_mint(row, mint)
            if custody is None:
                return _Pool(0, frozen=False)
            account = decode_token_account(address, custody, program)
            if account.mint != mint_of(row.id):
                raise LayoutError(address, "mint", f"{account.mint} found, {mint_of(row.id)} expected")
            if account.owner != str(self.vault):
                raise LayoutError(address, "owner", f"{account.owner} found, {self.vault} expected")
        except LayoutError as error:
            return error
        return _Pool(account.amount, account.state == "frozen")

    def _holding(self, address: str, raw: RawAccount, subject: Subject, mint: str) -> Holding:
        held = decode_holding(address, raw, self.program)
        for field, found, expected in (
            ("vault", held.vault, str(self.vault)),
            ("account", "0x" + held.account.hex(), subject.account),
            ("mint", held.mint, mint),
        ):
            if found != expected:
                raise LayoutError(address, field, f"{found} found, {expected} expected")
        if held.pending > held.total:
            raise LayoutError(address, "pending", f"{held.pending} pending of {held.total}")
        return held


def account_id(subject: Subject) -> bytes:
    """Return the 32 bytes of the subject's account."""
    return bytes.fromhex(subject.account.removeprefix("0x"))
