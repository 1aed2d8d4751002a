"""CollateralVault: tokens held for an account, which its depositor can take back only after a delay.

Reads ``position(bytes32 account,address token) -> (uint256 total,uint256 pending)``, ``delay()`` and
``deploymentId()``; total includes pending. Authority is the vault of this deployment: control seizable, removal delay
as the contract says. A vault of another deployment holds nothing that counts here: other attestors let it go.

A hold that stands keeps in what is under a request, but it ends, so that part stays pending. NFTs are not read: nothing
says yet what one is worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.evm.abi import Flow, decode_uint, selector, word_of_address, word_of_hex
from adapters.evm.erc4626 import contract_of, convert
from adapters.evm.wallet import unreadable
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject

POSITION = selector("position(bytes32,address)")
DELAY = selector("delay()")
DEPLOYMENT = selector("deploymentId()")


class Vault:
    """Deposits of accounts in one CollateralVault.

    Args:
        chain: CAIP-2.
        address: of the vault.
        assets: the chain's assets; tokens and receipts are read.
        deployment_id: 32 bytes that the vault must name; None takes any.
    """

    name = "vault"
    keyed_by = "account"

    def __init__(
        self, chain: str, address: str, assets: Mapping[str, AssetRow], deployment_id: bytes | None = None
    ) -> None:
        self.chain, self.assets, self.deployment_id = chain, assets, deployment_id
        self.target = address.removeprefix("0x").lower()
        self.rows = [a for a in assets.values() if a.kind in ("erc20", "erc4626", "atoken")]

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the vault."""
        return frozenset({f"0x{self.target}"})

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield what the vault is, one call per (token, account), the conversions of receipts; return positions."""
        pairs = [(row, s) for row in self.rows for s in subjects]
        asked = [(self.target, DELAY)] + [(self.target, DEPLOYMENT)] * (self.deployment_id is not None)
        answers = yield [
            *asked,
            *(
                (self.target, POSITION + word_of_hex(s.account) + word_of_address(contract_of(row.id)))
                for row, s in pairs
            ),
        ]
        findings: list[Finding] = []
        delay = decode_uint(answers[0])
        if delay is None:
            # Without the delay nothing says that the owner cannot leave at once.
            return (), tuple(unreadable(f"vault 0x{self.target}", s, "delay() failed") for s in subjects)
        if self.deployment_id is not None and answers[1] != self.deployment_id:
            named = "nothing" if answers[1] is None else f"0x{answers[1].hex()}"
            problem = f"deploymentId() is {named}, 0x{self.deployment_id.hex()} expected"
            return (), tuple(unreadable(f"vault 0x{self.target}", s, problem) for s in subjects)
        held: list[tuple[Subject, AssetRow, int, int]] = []
        for (row, subject), answer in zip(pairs, answers[len(asked) :], strict=True):
            total, pending = decode_uint(answer, 0), decode_uint(answer, 1)
            if total is None or pending is None or pending > total:
                findings.append(unreadable(row.id, subject, "the vault's position call failed"))
            elif total:
                held.append((subject, row, total, pending))
        holdings = [(row, total) for _, row, total, _ in held] + [(row, pending) for _, row, _, pending in held]
        units = yield from convert(holdings, self.assets)
        positions: list[Position] = []
        for i, (subject, row, total, _) in enumerate(held):
            (unit, amount), (_, waiting) = units[i], units[len(held) + i]
            if amount is None or waiting is None:
                findings.append(unreadable(row.id, subject, "the share conversion failed"))
                continue
            positions.append(
                Position(
                    subject.account,
                    self.chain,
                    self.name,
                    row.id,
                    total,
                    unit,
                    amount,
                    control="seizable",
                    removal_delay=min(delay, 2**31),
                    pending=min(waiting, amount),
                    origin=f"0x{self.target}",
                )
            )
        return tuple(positions), tuple(findings)
