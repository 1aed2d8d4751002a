"""Wallets: native coin, ERC-20s and ERC-4626 shares held by a linked address itself.

Whatever a wallet holds its owner can move at once: removal delay 0, control none. aTokens are left to the Aave
adapter, which reads them together with the debt they secure, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.evm.abi import WORD, Call, Flow, selector
from adapters.evm.erc4626 import contract_of, convert
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject

BALANCE_OF = selector("balanceOf(address)")
NOTHING = bytes(WORD)
GET_ETH_BALANCE = selector("getEthBalance(address)")  # Multicall3's own view


class Wallet:
    """Balances of linked addresses."""

    name = "wallet"
    keyed_by = "address"

    def __init__(self, chain: str, assets: Mapping[str, AssetRow], multicall: str) -> None:
        self.chain, self.assets = chain, assets
        self.multicall = multicall.removeprefix("0x").lower()
        self.rows = [a for a in assets.values() if a.kind in ("native", "erc20", "erc4626")]

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the tokens. Native coins move without logs."""
        return frozenset(f"0x{contract_of(row.id)}" for row in self.rows if row.kind != "native")

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield one balance call per (asset, address), then the conversions of shares; return positions."""
        addresses = [(s.address or "")[-40:] for s in subjects]
        calls: list[Call] = []
        for row in self.rows:
            native = row.kind == "native"
            target, ask = (self.multicall, GET_ETH_BALANCE) if native else (contract_of(row.id), BALANCE_OF)
            ask += "0" * 24
            calls += [(target, ask + address) for address in addresses]
        answers = iter((yield calls))
        positions: list[Position] = []
        findings: list[Finding] = []
        shares: list[tuple[Subject, AssetRow, int]] = []
        chain, venue = self.chain, self.name
        for row in self.rows:
            asset, is_share = row.id, row.kind == "erc4626"
            for subject, answer in zip(subjects, answers, strict=False):
                if answer == NOTHING:  # most of them
                    continue
                if answer is None or len(answer) != WORD:
                    findings.append(unreadable(asset, subject, "the balance call failed"))
                    continue
                amount = int.from_bytes(answer, "big")
                if is_share:
                    shares.append((subject, row, amount))
                    continue
                account, address, _ = subject
                # By place: names would make this, of which there are so many, take twice as long.
                place = address or ""
                positions.append(
                    Position(account, chain, venue, asset, amount, asset, amount, "asset", "none", 0, 0, "", place)
                )
        units = yield from convert([(row, amount) for _, row, amount in shares], self.assets)
        for (subject, row, quantity), (unit, worth) in zip(shares, units, strict=True):
            if worth is None:
                findings.append(unreadable(row.id, subject, "the share conversion failed"))
                continue
            account, address, _ = subject
            positions.append(Position(account, chain, venue, row.id, quantity, unit, worth, address=address or ""))
        return tuple(positions), tuple(findings)


def unreadable(asset: str, subject: Subject, why: str) -> Finding:
    """Return the finding for a holding that could not be read: it counts 0 and the account is partial."""
    return Finding(
        "unreadable", subject.account, f"{asset}: {why}" + (f" for {subject.address}" if subject.address else "")
    )
