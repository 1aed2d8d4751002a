"""Aave v3: supplies and debts of a linked address, as one limited-recourse netting set per market.

Reads ``getReservesList()`` of the pool and, per reserve and address, the data provider's
``getUserReserveData(address asset,address user)``, of which words 0, 1 and 2 are used: the aToken balance, the stable
debt and the variable debt. Whether a supply is enabled as collateral is not read: every supply is an asset of the set.
That errs to the safe side, as the set's debts count up to all its assets, while the pool can take only enabled ones.
A set is read whole or not at all: without one of its reserves its debts, or what they answer with, are unknown.
Source: aave/aave-v3-core ``contracts/misc/AaveProtocolDataProvider.sol``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.evm.abi import Answer, Flow, decode_address_list, decode_uint, selector, word_of_address
from adapters.evm.erc4626 import contract_of
from adapters.evm.wallet import unreadable
from aggregator.domain.errors import Garbage
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Subject

RESERVES_LIST = selector("getReservesList()")
USER_RESERVE_DATA = selector("getUserReserveData(address,address)")
ACCOUNT_DATA = selector("getUserAccountData(address)")
NO_DEBT = 2**256 - 1  # the health factor of an address without debt


class AaveV3:
    """Positions of linked addresses in one Aave v3 market."""

    name = "aave-v3"
    keyed_by = "address"

    def __init__(self, chain: str, pool: str, data_provider: str, assets: Mapping[str, AssetRow]) -> None:
        self.chain, self.assets = chain, assets
        self.pool = pool.removeprefix("0x").lower()
        self.provider = data_provider.removeprefix("0x").lower()
        self.receipts = {a.underlying: a for a in assets.values() if a.kind == "atoken"}

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the pool, and aTokens, which move by themselves."""
        return frozenset({f"0x{self.pool}", *(f"0x{contract_of(row.id)}" for row in self.receipts.values())})

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the reserve list, then one call per (reserve, address); return positions.

        An address with an unreadable reserve has no positions here, and a finding.

        Raises:
            Garbage: the reserve list cannot be read, so no address's position here is known.
        """
        if not subjects:
            return (), ()
        (listed,) = yield [(self.pool, RESERVES_LIST)]
        reserves = decode_address_list(listed)
        if reserves is None:
            raise Garbage(self.chain, f"aave-v3 pool 0x{self.pool}: getReservesList() failed or is malformed")
        origin = f"0x{self.pool}"
        words = [word_of_address(s.address or "") for s in subjects]
        pairs = [(reserve, i) for reserve in reserves for i in range(len(subjects))]
        answers = yield [
            *((self.provider, USER_RESERVE_DATA + word_of_address(reserve) + words[i]) for reserve, i in pairs),
            *((self.pool, ACCOUNT_DATA + word) for word in words),
        ]
        legs = [_decode_leg(answer) for answer in answers[: len(pairs)]]
        failed: dict[int, list[str]] = {}
        for (reserve, i), leg in zip(pairs, legs, strict=True):
            if leg is None:
                failed.setdefault(i, []).append(reserve)
        positions: list[Position] = []
        findings = [
            unreadable(
                f"aave-v3 pool {origin}",
                subjects[i],
                f"getUserReserveData failed for {', '.join(lost)}, so nothing of the position counts",
            )
            for i, lost in failed.items()
        ]
        for (reserve, i), leg in zip(pairs, legs, strict=True):
            if leg is None or i in failed:
                continue
            supplied, owed = leg
            subject = subjects[i]
            underlying = f"{self.chain}/erc20:{reserve}"
            if (supplied or owed) and underlying not in self.assets:
                findings.append(
                    Finding("unknown-asset", subject.account, f"aave-v3 reserve {reserve} is not configured")
                )
            netting = f"aave-v3:{self.chain}:{origin}:{subject.address}"
            receipt = self.receipts.get(underlying)
            if supplied:
                held = receipt.id if receipt else underlying
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        held,
                        supplied,
                        underlying,
                        supplied,
                        netting=netting,
                        address=subject.address or "",
                        origin=origin,
                    )
                )
            if owed:
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        underlying,
                        owed,
                        underlying,
                        owed,
                        side="debt",
                        netting=netting,
                        address=subject.address or "",
                        origin=origin,
                    )
                )
        for subject, answer in zip(subjects, answers[len(pairs) :], strict=True):
            factor = decode_uint(answer, 5)
            if factor is not None and factor != NO_DEBT:
                text = f"aave-v3 itself reports health factor {factor / 1e18:.4f} for {subject.address}"
                findings.append(Finding("venue-health", subject.account, text))
        return tuple(positions), tuple(findings)


def _decode_leg(answer: Answer) -> tuple[int, int] | None:
    """Return what an address supplied and owes in one reserve, base units; None when the answer is absent or short."""
    supplied, stable, variable = (decode_uint(answer, k) for k in range(3))
    if supplied is None or stable is None or variable is None:
        return None
    return supplied, stable + variable
