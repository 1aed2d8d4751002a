"""Range and shape checks of single fields, and the 32-byte ABI words built from them.

ABI words: Solidity contract ABI specification, "Formal Specification of the Encoding".
"""

from __future__ import annotations

from proofs.errors import FieldError


def require_uint(field: str, value: object, bits: int) -> int:
    """Return `value` if it is an integer in [0, 2**bits), else raise `FieldError` naming `field`."""
    if type(value) is not int:
        raise FieldError(field, f"{type(value).__name__} given, an integer expected")
    if not 0 <= value < 1 << bits:
        raise FieldError(field, f"{_shown(value)} is outside uint{bits}")
    return value


def require_int(field: str, value: object, bits: int) -> int:
    """Return `value` if it is an integer in [-2**(bits-1), 2**(bits-1)), else raise `FieldError` naming `field`."""
    if type(value) is not int:
        raise FieldError(field, f"{type(value).__name__} given, an integer expected")
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise FieldError(field, f"{_shown(value)} is outside int{bits}")
    return value


def require_bytes(field: str, value: object, length: int) -> bytes:
    """Return `value` if it is exactly `length` bytes, else raise `FieldError` naming `field`."""
    if type(value) is not bytes:
        raise FieldError(field, f"{type(value).__name__} given, {length} bytes expected")
    if len(value) != length:
        raise FieldError(field, f"{len(value)} bytes given, {length} expected")
    return value


def uint_word(value: int) -> bytes:
    """Encode an unsigned integer below 2**256 as one ABI word."""
    return value.to_bytes(32, "big")


def int_word(value: int) -> bytes:
    """Encode a signed integer of at most 256 bits as one ABI word (two's complement)."""
    return value.to_bytes(32, "big", signed=True)


def _shown(value: int) -> str:
    """Show an integer without the cost, or CPython's refusal, of printing thousands of digits."""
    return str(value) if value.bit_length() <= 256 else f"a {value.bit_length()}-bit integer"
