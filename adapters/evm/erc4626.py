"""Receipts: what shares and aTokens are worth in their underlying, exactly and capped.

ERC-4626 ``convertToAssets`` is an estimate that a donation can inflate, so the configured ``rate_cap`` bounds what
a share is ever credited. aTokens of Aave v3 rebase 1:1 with their underlying.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from fractions import Fraction

from adapters.evm.abi import Answer, Call, decode_uint, selector
from aggregator.domain.rows import AssetRow

CONVERT_TO_ASSETS = selector("convertToAssets(uint256)")


def contract_of(asset: str) -> str:
    """Return the 40 hex digits of the contract in a CAIP-19 asset id."""
    return asset.rpartition(":")[2].removeprefix("0x").lower()


def credit_cap(row: AssetRow, underlying: AssetRow, shares: int) -> int:
    """Return the most underlying base units that ``shares`` are credited, rounded down."""
    if row.rate_cap is None:
        return shares
    return int(Fraction(shares * 10**underlying.decimals, 10**row.decimals) * Fraction(str(row.rate_cap)))


def convert(
    holdings: Sequence[tuple[AssetRow, int]], assets: Mapping[str, AssetRow]
) -> Generator[Sequence[Call], Sequence[Answer], list[tuple[str, int | None]]]:
    """Convert (asset row, base units) pairs to (unit asset id, base units of the unit), order kept.

    None stands for a conversion the chain did not answer; it is never a zero.
    """
    shares = [(i, row, amount) for i, (row, amount) in enumerate(holdings) if row.kind == "erc4626" and amount]
    answers: Sequence[Answer] = ()
    if shares:
        answers = yield [(contract_of(row.id), f"{CONVERT_TO_ASSETS}{amount:064x}") for _, row, amount in shares]
    out: list[tuple[str, int | None]] = [(row.underlying or row.id, amount) for row, amount in holdings]
    for (i, row, amount), answer in zip(shares, answers, strict=True):
        worth = decode_uint(answer)
        underlying = assets[row.underlying or ""]
        out[i] = (underlying.id, None if worth is None else min(worth, credit_cap(row, underlying, amount)))
    return out
