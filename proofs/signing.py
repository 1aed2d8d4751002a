"""secp256k1 signatures: compact (EIP-2098, attestations) and 65-byte (wallets, links), always low-s (EIP-2)."""

from __future__ import annotations

from coincurve import PublicKey

from proofs.errors import SignatureError
from proofs.fields import require_bytes
from proofs.hashing import keccak256

ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
HALF_ORDER = ORDER // 2
_PARITY_BIT = 1 << 255


def recover(digest: bytes, r: bytes, vs: bytes) -> bytes:
    """Return the 20-byte address that signed `digest` with the EIP-2098 signature (`r`, `vs`).

    Raises:
        SignatureError: Naming `r` or `vs`: out of range, high s, or no public key fits.
    """
    require_bytes("digest", digest, 32)
    require_bytes("r", r, 32)
    word = int.from_bytes(require_bytes("vs", vs, 32), "big")
    s = word & (_PARITY_BIT - 1)
    _check_scalars(int.from_bytes(r, "big"), s, s_field="vs")
    return recover_address(digest, r, s.to_bytes(32, "big"), word >> 255)


def recover_rsv(digest: bytes, signature: bytes) -> bytes:
    """Return the 20-byte address that signed `digest` with a wallet's 65-byte r‖s‖v (v 27 or 28, low s).

    Raises:
        SignatureError: Naming `signature`, `r`, `s` or `v`.
    """
    require_bytes("digest", digest, 32)
    if len(signature) != 65:
        raise SignatureError("signature", f"{len(signature)} bytes given, 65 expected (r, s, v)")
    r, s, v = signature[:32], signature[32:64], signature[64]
    _check_scalars(int.from_bytes(r, "big"), int.from_bytes(s, "big"), s_field="s")
    if v not in (27, 28):
        raise SignatureError("v", f"{v} given, 27 or 28 expected")
    return recover_address(digest, r, s, v - 27)


def compact_from_rsv(r: int, s: int, v: int) -> tuple[bytes, bytes]:
    """Return the EIP-2098 form (r, vs) of a signature with low `s` and `v` of 0, 1, 27 or 28.

    Raises:
        SignatureError: Naming `r`, `s` or `v`.
    """
    _check_scalars(r, s, s_field="s")
    if v not in (0, 1, 27, 28):
        raise SignatureError("v", f"{v} given, 0, 1, 27 or 28 expected")
    parity = v - 27 if v >= 27 else v
    return r.to_bytes(32, "big"), (parity << 255 | s).to_bytes(32, "big")


def recover_address(digest: bytes, r: bytes, s: bytes, parity: int) -> bytes:
    """Return the 20-byte address that signed `digest`, for `parity` 0 or 1; any valid `s` is taken, high ones too.

    Wormhole guardians' signatures are judged this way; ours go through `recover`, which demands a low s.

    Raises:
        SignatureError: No public key fits.
    """
    try:
        key = PublicKey.from_signature_and_message(r + s + bytes([parity]), digest, hasher=None)
    except Exception as error:  # coincurve raises bare ValueError and Exception, depending on what does not fit
        raise SignatureError("r", "no public key fits this signature") from error
    return keccak256(key.format(compressed=False)[1:])[12:]


def _check_scalars(r: int, s: int, *, s_field: str) -> None:
    if not 0 < r < ORDER:
        raise SignatureError("r", "outside [1, n-1]")
    if s <= 0:
        raise SignatureError(s_field, "s is 0")
    if s > HALF_ORDER:
        raise SignatureError(s_field, "high s: normalise it to n - s with the other parity")
