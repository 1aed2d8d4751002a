"""Strict reading of JSON documents: every refusal names the JSON path of the field at fault.

Stricter than the `json` module: no repeated keys, no NaN, bounded size and depth, and unknown keys only where the
reader allows them. Canonical text (sorted keys, no spaces) is what digests are taken of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from proofs.errors import FieldError

MAX_DEPTH = 32
_MAX_DECIMAL_DIGITS = 80
_HEX_DIGITS = frozenset("0123456789abcdef")
_SURROGATE = re.compile("[\ud800-\udfff]")
# A string, closed or cut off by the end of the text, or a bracket outside of strings; linear in any text.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|[\[\]{}]', re.DOTALL)


def parse_json(text: str, *, max_bytes: int, field: str = "") -> Node:
    """Parse one JSON document of at most `max_bytes` UTF-8 bytes and `MAX_DEPTH` levels.

    Raises:
        FieldError: Naming `field`: too large, too deep, not JSON, or ambiguous (a key given twice).
    """
    named = field or "document"
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise FieldError(named, "holds a lone surrogate, which is no Unicode text") from error
    if size > max_bytes:
        raise FieldError(named, f"{size} bytes given, at most {max_bytes} expected")
    # Before parsing: a deep text would exhaust the C stack of a process whose recursion limit was raised.
    if measure_depth(text) > MAX_DEPTH:
        raise FieldError(named, f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(text, object_pairs_hook=_object_of_distinct_keys, parse_constant=_refuse_constant)
    except FieldError as error:
        raise FieldError(named, error.reason) from error
    except ValueError as error:  # JSONDecodeError, and CPython's refusal of integers with thousands of digits
        raise FieldError(named, f"not JSON: {error}") from error
    _check_texts(value, named)
    return Node(value, field)


def measure_depth(text: str) -> int:
    """Return how deeply arrays and objects nest in JSON text, strings skipped; a bound when it is not JSON."""
    depth = deepest = 0
    for token in _TOKENS.finditer(text):
        character = token.group()[0]
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    return deepest


def canonical_json(value: object) -> str:
    """Return the one text of `value` that digests are taken of: sorted keys, no spaces, UTF-8 left unescaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a JSON document and its path there, for example `leaves[0].leaf.equity`."""

    value: object
    path: str = ""

    def member(self, key: str) -> Node:
        """Return the member `key` of this object; raise `FieldError` if there is none."""
        members = self._object()
        if key not in members:
            raise FieldError(self._below(key), "missing")
        return Node(members[key], self._below(key))

    def optional(self, key: str) -> Node | None:
        """Return the member `key` of this object, or None where it is absent or null."""
        value = self._object().get(key)
        return None if value is None else Node(value, self._below(key))

    def only(self, *keys: str) -> None:
        """Refuse members of this object other than `keys`."""
        for key in self._object():
            if key not in keys:
                raise FieldError(self._below(key), f"unknown key; known are {', '.join(keys)}")

    def items(self) -> Iterator[Node]:
        """Yield the elements of this list."""
        if not isinstance(self.value, list):
            raise self._refusal("a list")
        for i, value in enumerate(self.value):
            yield Node(value, f"{self.path}[{i}]")

    def text(self) -> str:
        """Return this string."""
        if not isinstance(self.value, str):
            raise self._refusal("text")
        return self.value

    def integer(self) -> int:
        """Return this JSON integer."""
        if type(self.value) is not int:
            raise self._refusal("an integer")
        return self.value

    def decimal(self) -> int:
        """Return the integer that this string holds in canonical decimal; amounts travel so, safe from JavaScript."""
        text = self.value
        if not isinstance(text, str):
            raise self._refusal("an integer as text")
        digits = text.removeprefix("-")
        canonical = digits.isascii() and digits.isdigit() and (digits[0] != "0" or text == "0")
        if not canonical or len(digits) > _MAX_DECIMAL_DIGITS:
            raise FieldError(self.path, f"{text[:100]!r} is not an integer in canonical decimal")
        return int(text)

    def hex_bytes(self, length: int | None = None) -> bytes:
        """Return the bytes of this 0x hex text in lower case; of any number when `length` is None."""
        text = self.text()
        if not text.startswith("0x"):
            raise FieldError(self.path, "hex must start with 0x")
        return self._hex(text[2:], length)

    def bare_hex_bytes(self, length: int | None = None) -> bytes:
        """Return the bytes of this hex text in lower case, with or without 0x, as price services write it."""
        return self._hex(self.text().removeprefix("0x"), length)

    def _hex(self, digits: str, length: int | None) -> bytes:
        if len(digits) % 2 or not _HEX_DIGITS.issuperset(digits):
            raise FieldError(self.path, "not hex of whole bytes in lower case")
        decoded = bytes.fromhex(digits)
        if length is not None and len(decoded) != length:
            raise FieldError(self.path, f"{len(decoded)} bytes given, {length} expected")
        return decoded

    def _object(self) -> dict[str, object]:
        if not isinstance(self.value, dict):
            raise self._refusal("an object")
        return self.value

    def _below(self, key: str) -> str:
        shown = key if len(key) <= 40 else key[:37] + "..."
        return f"{self.path}.{shown}" if self.path else shown

    def _refusal(self, expected: str) -> FieldError:
        given = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "an integer", float: "a float"}
        return FieldError(self.path or "document", f"{expected} expected, {given.get(type(self.value), 'null')} given")


def _object_of_distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FieldError("", f"the key {twice[:40]!r} is given twice in one object")
    return members


def _refuse_constant(constant: str) -> object:
    raise FieldError("", f"{constant} is not JSON")


def _check_texts(value: object, field: str) -> None:
    """Refuse lone surrogates, which a JSON escape can smuggle in and no UTF-8 can carry out."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            pending.extend(current)
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)
        elif isinstance(current, str) and _SURROGATE.search(current):
            raise FieldError(field, "holds a lone surrogate, which is no Unicode text")
