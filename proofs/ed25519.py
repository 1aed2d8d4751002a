"""Ed25519 verification in plain integers (RFC 8032 §5.1.7), strict as Solana's runtime is.

Verification handles no secret, so that variable-time arithmetic is safe; a few milliseconds a signature are plenty for
links. Beyond the RFC, points of small order are refused (as `verify_strict` of ed25519-dalek does), so that nobody can
hold a key under which one signature fits every message.
"""

from __future__ import annotations

import hashlib

from proofs.errors import SignatureError
from proofs.fields import require_bytes

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_SQRT_MINUS_1 = pow(2, (_P - 1) // 4, _P)

# Extended homogeneous coordinates (X, Y, Z, T): x = X/Z, y = Y/Z, x·y = T/Z (RFC 8032 §5.1.4).
_Point = tuple[int, int, int, int]
_IDENTITY: _Point = (0, 1, 1, 0)


def verify_ed25519(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check a 64-byte Ed25519 signature of `message` by the 32-byte `public_key`.

    Raises:
        SignatureError: Naming `public_key` or `signature`.
    """
    require_bytes("public_key", public_key, 32)
    if len(signature) != 64:
        raise SignatureError("signature", f"{len(signature)} bytes given, 64 expected (Ed25519)")
    key = _decode_point("public_key", public_key)
    commitment = _decode_point("signature", signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if scalar >= _ORDER:
        raise SignatureError("signature", "s is not below the group order")
    for field, point in (("public_key", key), ("signature", commitment)):
        if _equal(_multiply(8, point), _IDENTITY):
            raise SignatureError(field, "a point of small order")
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % _ORDER
    if not _equal(_multiply(scalar, _BASE), _add(commitment, _multiply(challenge, key))):
        raise SignatureError("signature", "not by this key over this message")


def _decode_point(field: str, encoded: bytes) -> _Point:
    """Decompress a point (RFC 8032 §5.1.3), refusing every encoding but the canonical one."""
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    if y >= _P:
        raise SignatureError(field, "not a canonical curve point")
    u, v = (y * y - 1) % _P, (_D * y * y + 1) % _P
    x = u * pow(v, 3, _P) * pow(u * pow(v, 7, _P), (_P - 5) // 8, _P) % _P
    if v * x * x % _P == -u % _P:
        x = x * _SQRT_MINUS_1 % _P
    if v * x * x % _P != u or (x == 0 and sign):
        raise SignatureError(field, "not a curve point")
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _multiply(scalar: int, point: _Point) -> _Point:
    result = _IDENTITY
    while scalar:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _equal(p: _Point, q: _Point) -> bool:
    return (p[0] * q[2] - q[0] * p[2]) % _P == 0 and (p[1] * q[2] - q[1] * p[2]) % _P == 0


_BASE = _decode_point("base", (4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))
