"""A consumer that lends one token against crossmargin leaves: what each account owes it.

Reads ``debtOf(bytes32 account) -> uint256`` and ``token()``. Debts to consumers are recourse: one that cannot be
read is a finding that bars its account from opening risk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.evm.abi import Flow, decode_address, decode_uint, selector, word_of_hex
from aggregator.domain.errors import Garbage
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import DEBT_UNREADABLE, Finding, Position, Subject

DEBT_OF = selector("debtOf(bytes32)")
TOKEN = selector("token()")


class Lender:
    """Debts of accounts at one lending consumer."""

    name = "lender"
    keyed_by = "account"

    def __init__(self, chain: str, address: str, assets: Mapping[str, AssetRow]) -> None:
        self.chain, self.assets = chain, assets
        self.target = address.removeprefix("0x").lower()

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the lender."""
        return frozenset({f"0x{self.target}"})

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the token and one call per account; return debts, and a finding per debt that cannot be read.

        Raises:
            Garbage: the lender's token is not a configured asset: its debts cannot be left out of the account.
        """
        token_answer, *answers = yield [
            (self.target, TOKEN),
            *((self.target, DEBT_OF + word_of_hex(s.account)) for s in subjects),
        ]
        token = decode_address(token_answer)
        asset = f"{self.chain}/erc20:{token}"
        if asset not in self.assets:
            raise Garbage(self.chain, f"lender 0x{self.target}: token() is {token}, which is no configured asset")
        positions: list[Position] = []
        findings: list[Finding] = []
        for subject, answer in zip(subjects, answers, strict=True):
            owed = decode_uint(answer)
            if owed is None:
                findings.append(Finding(DEBT_UNREADABLE, subject.account, f"debtOf failed at lender 0x{self.target}"))
            elif owed:
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        asset,
                        owed,
                        asset,
                        owed,
                        side="debt",
                        origin=f"0x{self.target}",
                    )
                )
        return tuple(positions), tuple(findings)
