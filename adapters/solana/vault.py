"""The collateral vault program: SPL tokens held for an account, given back only after a delay.

Layouts and rules: proofs/programs/vault.c. Authority is a vault of this deployment: control seizable, removal delay as
the vault says. `total` includes `pending`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from solders.pubkey import Pubkey

from adapters.solana.layouts import Answers, Flow, LayoutError, RawAccount, mint_of, unreadable
from adapters.solana.programs import (
    Holding,
    custody_address,
    decode_holding,
    decode_vault,
    holding_address,
    vault_address,
)
from adapters.solana.spl_token import decode_token_account, sift_mints
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Position, Subject


class CollateralVault:
    """Deposits of accounts in one vault.

    Args:
        chain: CAIP-2.
        program: base58 id of the vault program.
        vault: base58 address of the vault.
        assets: the chain's assets; SPL ones are read.
    """

    name = "vault"
    keyed_by = "account"

    def __init__(self, chain: str, program: str, vault: str, assets: Mapping[str, AssetRow]) -> None:
        self.chain = chain
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
        sound, findings = sift_mints(self.rows, answers[1 : 1 + n], subjects)
        pools = self._pools(mints, custody, answers[1 + n : 1 + 2 * n])
        positions: list[Position] = []
        for (row, subject, address), raw in zip(kept, answers[1 + 2 * n :], strict=True):
            if raw is None or row.id not in sound:
                continue
            try:
                held = self._holding(str(address), raw, subject, mint_of(row.id))
                pool = pools[mint_of(row.id)]
                if isinstance(pool, LayoutError):
                    raise pool
                if held.total > pool[0]:
                    raise LayoutError(str(address), "total", f"{held.total} on record, custody holds {pool[0]}")
            except LayoutError as error:
                findings.append(unreadable("unreadable", row.id, subject, str(error)))
                continue
            frozen = pool[1]
            if frozen:
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
                        0 if frozen else held.total,
                        control="seizable",
                        removal_delay=delay,
                        pending=0 if frozen else held.pending,
                        origin=str(self.vault),
                    )
                )
        return tuple(positions), tuple(findings)

    def _delay(self, raw: RawAccount | None) -> int:
        if raw is None:
            raise LayoutError(str(self.vault), "vault", "no such account on this chain")
        state = decode_vault(str(self.vault), raw, self.program)
        if vault_address(self.program, state.deployment_id, state.delay) != self.vault:
            raise LayoutError(str(self.vault), "address", "not the address of its deployment id and delay")
        return state.delay

    def _pools(
        self, mints: Sequence[str], custody: Sequence[Pubkey], answers: Answers
    ) -> dict[str, tuple[int, bool] | LayoutError]:
        """Return, per mint, (base units in custody, frozen?), or what is wrong with its custody account."""
        pools: dict[str, tuple[int, bool] | LayoutError] = {}
        for mint, address, raw in zip(mints, custody, answers, strict=True):
            if raw is None:
                pools[mint] = (0, False)
                continue
            try:
                account = decode_token_account(str(address), raw)
                if account.mint != mint or account.owner != str(self.vault):
                    raise LayoutError(str(address), "owner", f"{account.owner} found, {self.vault} expected")
                pools[mint] = (account.amount, account.state == "frozen")
            except LayoutError as error:
                pools[mint] = error
        return pools

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
