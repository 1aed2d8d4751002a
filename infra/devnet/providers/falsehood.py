"""Answers that are well formed and false."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from eth_abi.abi import decode, encode

Lie = Callable[[int], int]
WORD = 32
TOKEN_ACCOUNT = 165  # bytes of an SPL token account; its amount is at 64


def falsify_multicall(returned: str, lie: Lie) -> str:
    """Change the plain amounts and the sizes of positions in the answers of an aggregate3, but not its block number."""
    (rows,) = decode(["(bool,bytes)[]"], bytes.fromhex(returned[2:]))
    anchor, *answers = rows
    return "0x" + encode(["(bool,bytes)[]"], [[anchor, *((ok, _falsify(data, lie)) for ok, data in answers)]]).hex()


def _falsify(data: bytes, lie: Lie) -> bytes:
    words = [int.from_bytes(data[at : at + WORD], "big") for at in range(0, len(data), WORD)]
    if len(data) == WORD:
        # wider words are addresses and the like, 1 is true or a version; a lie about them would not pass for a balance
        return (lie(words[0]) % 2**256).to_bytes(WORD, "big") if 1 < words[0] < 2**127 else data
    if len(data) >= 3 * WORD and words[1] == 2 * WORD and len(data) == WORD * (3 + 4 * words[2]):
        # what positionsOf of IMarginVenue.sol answers: a total, and rows of instrument, size, entry and funding
        for at in range(4, len(words), 4):
            size = words[at] - (words[at] >> 255 << 256)
            words[at] = lie(size) % 2**256
        return b"".join(word.to_bytes(WORD, "big") for word in words)
    return data


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
