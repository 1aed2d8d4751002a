"""Calls and returns as bytes: what the adapters exchange with the reader, and the Multicall3 packing.

Packing works on hex text, not on contract objects: for reads this is where the client's time goes.
Multicall3 ``aggregate3((address target,bool allowFailure,bytes callData)[])`` returns ``(bool success,bytes data)[]``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

from aggregator.domain.snapshot import Finding, Position
from proofs.hashing import keccak256

WORD = 32


class Call(NamedTuple):
    """One view call: ``target`` is 40 lower-case hex digits, ``data`` hex text, both without 0x."""

    target: str
    data: str


Answer = bytes | None
"""Return data of one call; None when the call reverted or returned nothing at all (no code there)."""

Result = tuple[tuple[Position, ...], tuple[Finding, ...]]
Flow = Generator[Sequence[Call], Sequence[Answer], Result]


def selector(signature: str) -> str:
    """Return the 8 hex digits of a function selector, e.g. ``balanceOf(address)`` -> ``70a08231``."""
    return keccak256(signature.encode())[:4].hex()


def word_of_address(address: str) -> str:
    """Return an address (with or without 0x) as one ABI word in hex."""
    return address.removeprefix("0x").lower().rjust(64, "0")


def word_of_hex(value: str) -> str:
    """Return a 32-byte 0x value as one ABI word in hex."""
    return value.removeprefix("0x").rjust(64, "0")


def decode_uint(answer: Answer, index: int = 0) -> int | None:
    """Return word ``index`` of an answer as an unsigned integer; None when it is absent or cut short."""
    end = WORD * (index + 1)
    if answer is None or len(answer) < end:
        return None
    return int.from_bytes(answer[end - WORD : end], "big")


def decode_address(answer: Answer, index: int = 0) -> str | None:
    """Return word ``index`` as a 0x address; None when absent or its upper bytes are not zero."""
    value = decode_uint(answer, index)
    return None if value is None or value >> 160 else f"0x{value:040x}"


def decode_address_list(answer: Answer) -> tuple[str, ...] | None:
    """Return a returned ``address[]``; None when absent or malformed."""
    if decode_uint(answer) != WORD or answer is None:
        return None
    count = decode_uint(answer, 1)
    if count is None or len(answer) != WORD * (2 + count):
        return None
    items = tuple(decode_address(answer, 2 + i) for i in range(count))
    return tuple(a for a in items if a is not None) if None not in items else None


_AGGREGATE3 = "0x82ad56cb"  # selector of aggregate3
_ALLOW_FAILURE = f"{1:064x}"
_DATA_OFFSET = f"{0x60:064x}"


def pack_multicall(calls: Sequence[Call]) -> str:
    """Return 0x calldata of ``aggregate3`` for ``calls``, every one allowed to fail."""
    heads: list[str] = []
    bodies: list[str] = []
    at = WORD * len(calls)
    tails: dict[int, tuple[str, str, int]] = {}  # data length in hex digits -> (length word, padding, encoded size)
    targets: dict[str, str] = {}
    for target, data in calls:
        digits = len(data)
        if digits not in tails:
            padding = -digits % 64
            tails[digits] = (f"{digits // 2:064x}", "0" * padding, 4 * WORD + (digits + padding) // 2)
        length, padding_text, size = tails[digits]
        prefix = targets.get(target)
        if prefix is None:
            prefix = targets[target] = target.rjust(64, "0") + _ALLOW_FAILURE + _DATA_OFFSET
        heads.append(f"{at:064x}")
        bodies.append(prefix + length + data + padding_text)
        at += size
    return "".join((_AGGREGATE3, f"{WORD:064x}{len(calls):064x}", *heads, *bodies))


def unpack_multicall(returned: object, count: int) -> list[Answer]:
    """Decode the 0x return of ``aggregate3`` strictly: what the ABI's one encoding of ``count`` results is, and no more.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(returned, str) or not returned.startswith("0x"):
        raise ValueError("the return is not 0x hex")
    data = bytes.fromhex(returned[2:])
    size = len(data)
    if size < WORD * (2 + count) or data[: 2 * WORD] != _word(WORD) + _word(count):
        raise ValueError(f"the return is not {count} results")
    base = 2 * WORD
    at = base + WORD * count
    heads: list[bytes] = []
    out: list[Answer] = []
    for _ in range(count):
        heads.append(_word(at - base))
        start = at + 3 * WORD
        length = int.from_bytes(data[start - WORD : start], "big")
        end = start + length
        if end > size:
            raise ValueError("a result is cut short")
        outcome = data[at : start - WORD]
        if outcome != _SUCCESS and outcome != _FAILURE:
            raise ValueError("a result is not (bool, bytes)")
        out.append(data[start:end] if length and outcome == _SUCCESS else None)
        at = end + -length % WORD
        if at != end and any(data[end:at]):
            raise ValueError("a result is not padded with zeros")
    if at != size or b"".join(heads) != data[base : base + WORD * count]:
        raise ValueError("the results are not laid out one after another")
    return out


def _word(value: int) -> bytes:
    return value.to_bytes(WORD, "big")


_SUCCESS, _FAILURE = _word(1) + _word(2 * WORD), _word(0) + _word(2 * WORD)
