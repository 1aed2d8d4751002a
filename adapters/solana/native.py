"""SOL held by linked addresses themselves.

An account below the rent-exempt minimum cannot exist, so the lamports that keep it alive cannot leave while anything
else stays; they are counted all the same, since the owner can empty the account whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.solana.layouts import SYSTEM_PROGRAM, Flow, unreadable
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject


class NativeWallet:
    """Lamports of linked addresses."""

    name = "wallet"
    keyed_by = "address"

    def __init__(self, chain: str, assets: Mapping[str, AssetRow]) -> None:
        self.chain = chain
        self.rows = [row for row in assets.values() if row.kind == "native" and row.id.startswith(f"{chain}/")]

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the addresses; return one position per address that holds SOL."""
        positions: list[Position] = []
        findings: list[Finding] = []
        if not self.rows:
            return (), ()
        answers = yield tuple(subject.address or "" for subject in subjects)
        for row in self.rows:
            for subject, raw in zip(subjects, answers, strict=True):
                if raw is None or not raw.lamports:
                    continue
                if raw.owner != SYSTEM_PROGRAM:
                    # Its lamports are moved by a program's rules, not by the key: nothing is known of them.
                    why = f"the account belongs to the program {raw.owner}, a wallet of the system program is expected"
                    findings.append(unreadable("unreadable", row.id, subject, why))
                    continue
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        row.id,
                        raw.lamports,
                        row.id,
                        raw.lamports,
                        address=subject.address or "",
                    )
                )
        return tuple(positions), tuple(findings)
