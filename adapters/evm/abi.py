"""Calls and returns as bytes: what the adapters exchange with the reader, and the Multicall3 packing.

Packing works on hex text, not on contract objects: for reads this is where the client's time goes.
Multicall3 ``aggregate3((address target,bool allowFailure,bytes callData)[])`` returns ``(bool success,bytes data)[]``.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from itertools import groupby

from aggregator.domain.snapshot import Finding, Position
from proofs.hashing import keccak256

WORD = 32


Call = tuple[str, str]
"""One view call: its target (40 hex digits) and its calldata, both as hex text without 0x.

Plain tuples, because a reading makes tens of thousands of them.
"""

Answer = bytes | None
"""Return data of one call; None when the call reverted or returned nothing at all (no code there)."""

Result = tuple[tuple[Position, ...], tuple[Finding, ...]]
Flow = Generator[Sequence[Call], Sequence[Answer], Result]


def selector(signature: str) -> str:
    """Return the 8 hex digits of a function selector, e.g. ``balanceOf(address)`` -> ``70a08231``."""
    return keccak256(signature.encode())[:4].hex()


def topic(signature: str) -> str:
    """Return the first topic of an event, 0x and 64 hex digits, e.g. of ``Transfer(address,address,uint256)``."""
    return "0x" + keccak256(signature.encode()).hex()


def word_of_address(address: str) -> str:
    """Return an address (with or without 0x) as one ABI word in hex."""
    return address[-40:].rjust(64, "0")


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


def _word(value: int) -> bytes:
    return value.to_bytes(WORD, "big")


def _words(values: Sequence[int]) -> bytes:
    """Return small integers as consecutive ABI words."""
    return struct.pack(">" + "24xQ" * len(values), *values)


_SUCCESS, _FAILURE = _word(1) + _word(2 * WORD), _word(0) + _word(2 * WORD)
_SUCCESS_OF_ONE_WORD = _SUCCESS + _word(WORD)


def pack_multicall(calls: Sequence[Call]) -> str:
    """Return 0x calldata of ``aggregate3`` for ``calls``, every one allowed to fail."""
    heads: list[int] = []
    bodies: list[str] = []
    targets, datas = [target for target, _ in calls], [data for _, data in calls]
    start, at = 0, WORD * len(calls)
    # Calls of one adapter look alike, so that there are few runs of the same target and length.
    for (target, digits), run in groupby(zip(targets, map(len, datas), strict=True)):
        end = start + len(list(run))
        before = f"{target:0>64}{1:064x}{3 * WORD:064x}{digits // 2:064x}"
        after = "0" * (-digits % (2 * WORD))
        size = (len(before) + digits + len(after)) // 2
        heads += range(at, at + size * (end - start), size)
        parts = [after + before] * (2 * (end - start) + 1)
        parts[0], parts[1::2], parts[-1] = before, datas[start:end], after
        bodies += parts  # joined once, at the end: these texts are large
        start, at = end, at + size * (end - start)
    return "".join((_AGGREGATE3, _words((WORD, len(calls), *heads)).hex(), *bodies))


def unpack_multicall(returned: object, count: int) -> list[Answer]:
    """Decode the 0x return of ``aggregate3`` strictly: only the ABI's one encoding of ``count`` results will do.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(returned, str) or not returned.startswith("0x"):
        raise ValueError("the return is not 0x hex")
    data = bytes.fromhex(returned[2:])
    base, size = 2 * WORD, len(data)
    at = base + WORD * count
    if size < at or data[:base] != _words((WORD, count)):
        raise ValueError(f"the return is not {count} results")
    if size == at + 4 * WORD * count:  # nearly always every result is one word
        results = list(struct.iter_unpack("96s32s", data[at:]))
        if {before for before, _ in results} <= {_SUCCESS_OF_ONE_WORD}:
            if data[base:at] != _words(range(at - base, size - base, 4 * WORD)):
                raise ValueError(_NOT_IN_ORDER)
            return [word for _, word in results]
    heads: list[int] = []
    out: list[Answer] = []
    for _ in range(count):
        heads.append(at - base)
        start = at + 3 * WORD
        end = start + int.from_bytes(data[start - WORD : start], "big")
        if end > size:
            raise ValueError("a result is cut short")
        outcome = data[at : start - WORD]
        if outcome not in (_SUCCESS, _FAILURE):
            raise ValueError("a result is not (bool, bytes)")
        out.append(data[start:end] if end > start and outcome == _SUCCESS else None)
        at = end + (start - end) % WORD
        if any(data[end:at]):
            raise ValueError("a result is not padded with zeros")
    if at != size or data[base : base + WORD * count] != _words(heads):
        raise ValueError(_NOT_IN_ORDER)
    return out


_NOT_IN_ORDER = "the results are not laid out one after another"
