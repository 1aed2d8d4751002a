"""Answers that are well formed and false."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from eth_abi.abi import decode, encode

Lie = Callable[[int], int]
TOKEN_ACCOUNT = 165  # bytes of an SPL token account; its amount is at 64


def falsify_multicall(returned: str, lie: Lie) -> str:
    """Change every plain amount in the answers of an aggregate3, but not the block number it is anchored by."""
    (rows,) = decode(["(bool,bytes)[]"], bytes.fromhex(returned[2:]))
    anchor, *answers = rows
    false = [
        (ok, lie(int.from_bytes(data, "big")).to_bytes(32, "big"))
        # wider words are addresses and the like; a lie about them would not pass for a balance
        if len(data) == 32 and 0 < int.from_bytes(data, "big") < 2**127
        else (ok, data)
        for ok, data in answers
    ]
    return "0x" + encode(["(bool,bytes)[]"], [[anchor, *false]]).hex()


def falsify_account(row: dict[str, Any] | None, lie: Lie) -> dict[str, Any] | None:
    """Change the amount of a Solana token account, or the lamports of a wallet."""
    if row is None:
        return None
    data = base64.b64decode(row["data"][0])
    if len(data) == TOKEN_ACCOUNT:
        amount = lie(int.from_bytes(data[64:72], "little"))
        data = data[:64] + amount.to_bytes(8, "little") + data[72:]
        return row | {"data": [base64.b64encode(data).decode(), "base64"]}
    return row | {"lamports": lie(row["lamports"])} if not data else row


def spoil_proof(result: dict[str, Any]) -> dict[str, Any]:
    """Change the last byte of the last node of every proof in an ``eth_getProof`` (EIP-1186) answer."""

    def spoiled(nodes: list[str]) -> list[str]:
        return [*nodes[:-1], nodes[-1][:-2] + ("00" if nodes[-1][-2:] != "00" else "01")] if nodes else nodes

    storage = [entry | {"proof": spoiled(entry["proof"])} for entry in result.get("storageProof", [])]
    return result | {"accountProof": spoiled(result["accountProof"]), "storageProof": storage}
