"""Keys in a key management service: what such a service must offer, and how it becomes a signer.

No vendor's library is part of this project. An operator's package that knows one registers, under the entry-point group
``crossmargin.kms``, a function that takes a key's name and returns a `Kms`; the key is then named
``kms:PROVIDER/KEY`` with the entry point's name as PROVIDER. The last part of KEY (after ``/`` or ``:``) is the key's
role, or begins with the role and a hyphen, as in a token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final, NoReturn, Protocol

from adapters.hsm import require_named_role
from adapters.keys import Role, address_of, compact_signature
from aggregator.domain.errors import CrossmarginError, Garbage, InputError, Unreachable

GROUP: Final = "crossmargin.kms"
_SPKI: Final = bytes.fromhex("3056301006072a8648ce3d020106052b8104000a034200")
"""What comes before the 65-byte point in the SubjectPublicKeyInfo of a secp256k1 key (RFC 5480, §2)."""


class Kms(Protocol):
    """One secp256k1 key in a service. Both calls block; any exception counts as no answer."""

    def public_key(self) -> bytes:
        """Return the key's SubjectPublicKeyInfo, DER (RFC 5480), its point uncompressed."""
        ...

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the ECDSA signature of the 32-byte digest itself, DER (RFC 3279, §2.2.3)."""
        ...


class KmsSigner:
    """A key in a service. Implements ``aggregator.ports.Signer``; ``sign`` blocks for as long as the service does.

    Args:
        name: for people, in messages.
        kms: the service's key.

    Raises:
        InputError: it is no secp256k1 key. Unreachable: the service does not answer, twice.
    """

    def __init__(self, name: str, kms: Kms) -> None:
        self._name, self._kms = name, kms
        key = self._ask("public_key", kms.public_key)
        if not key.startswith(_SPKI) or len(key) != len(_SPKI) + 65 or key[len(_SPKI)] != 4:
            raise InputError("key", f"{name} is not an uncompressed secp256k1 key", "create one of ECC_SECG_P256K1")
        self._address = address_of(key[len(_SPKI) :])

    @property
    def address(self) -> str:
        """The address of the service's public key, 0x lower-case."""
        return self._address

    def sign(self, digest: bytes) -> tuple[bytes, bytes]:
        """Return the EIP-2098 signature (r, vs) of a 32-byte digest; a call that fails is made once more.

        Raises:
            Unreachable: the service does not sign. Garbage: what it gives is no signature of its key.
        """
        if len(digest) != 32:
            raise InputError("digest", f"{len(digest)} bytes given", "give a 32-byte hash")
        r, s = decode_signature(self._name, self._ask("sign_digest", lambda: self._kms.sign_digest(digest)))
        return compact_signature(self._name, self._address, digest, r, s)

    def __repr__(self) -> str:
        return f"KmsSigner({self._address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not copied out of its process")

    def _ask(self, call: str, ask: Callable[[], bytes]) -> bytes:
        try:
            return ask()
        except Exception:  # a vendor's library raises what it likes
            try:
                return ask()
            except Exception as error:
                problem = f"{call} failed twice: {type(error).__name__}"  # its text may quote credentials
                raise Unreachable(self._name, problem) from None


def open_kms(key: str, role: Role) -> KmsSigner:
    """Return the signer of ``kms:PROVIDER/KEY``.

    Raises:
        InputError: names what is wrong with it, or that no such provider is installed. Unreachable: it does not answer.
    """
    provider, slash, name = key.removeprefix("kms:").partition("/")
    if not provider or not slash or not name:
        raise InputError("key", f"{key!r} names no provider and key", "give kms:PROVIDER/KEY")
    require_named_role(re.split("[/:]", name)[-1], "key", role)
    found = [point for point in entry_points(group=GROUP) if point.name == provider]
    if not found:
        problem = f"no KMS provider {provider!r} is installed"
        raise InputError("key", problem, f"install a package with the entry point {provider} in {GROUP}")
    try:
        kms: Kms = found[0].load()(name)
    except CrossmarginError:
        raise
    except Exception as error:  # as above
        raise Unreachable(f"kms {provider}", f"cannot be opened: {type(error).__name__}") from None
    return KmsSigner(key, kms)


def decode_signature(source: str, der: bytes) -> tuple[int, int]:
    """Read SEQUENCE {INTEGER r, INTEGER s} strictly; raise Garbage naming ``source`` for anything else."""
    values: list[int] = []
    rest = der[2:]
    good = len(der) >= 8 and der[0] == 0x30 and der[1] == len(rest)
    while good and rest:
        length = rest[1] if len(rest) > 2 and rest[0] == 2 else 0
        body, rest = rest[2 : 2 + length], rest[2 + length :]
        minimal = len(body) == length > 0 and not (length > 1 and body[0] == 0 and body[1] < 0x80)
        good = minimal and body[0] < 0x80 and length <= 33
        values.append(int.from_bytes(body, "big"))
    if not good or len(values) != 2:
        raise Garbage(source, f"gave {len(der)} bytes that are no ECDSA signature in DER")
    return values[0], values[1]
