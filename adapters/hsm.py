"""Keys in a PKCS#11 token: a hardware security module, a smart card, SoftHSM.

A key is named by a URI of RFC 7512, of which this much is understood, everything else being refused::

    pkcs11:token=LABEL;object=LABEL[;id=%01…]?module-path=FILE&pin-source=file:FILE

``object`` is the label of the key pair; it is the key's role, or begins with the role and a hyphen (``attestor-0``), so
that a key says in the token what it may sign. ``pin-value`` is refused: it would be in a configuration.

The token signs the 32-byte digest (``CKM_ECDSA``, PKCS#11 v2.40 "Mechanisms", §2.3.6), over secp256k1. Which of the two
valid values of s it gives is up to it, and it gives no v: both are settled here.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import unquote, unquote_to_bytes

from adapters.keys import Role, address_of, compact_signature, read_secret
from aggregator.domain.errors import Garbage, InputError, SourceError, Unreachable

if TYPE_CHECKING:
    from pkcs11 import Session

CURVE: Final = "1.3.132.0.10"  # secp256k1, SEC 2 §A.2.1
_POINT_LENGTH: Final = 65
_KNOWN: Final = "token, object, id, ?module-path, &pin-source"


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A parsed URI. ``id`` is CKA_ID, b"" for any."""

    token: str
    object: str
    id: bytes
    module: Path
    pin: Path


def parse_uri(uri: str) -> TokenKey:
    """Read a PKCS#11 URI.

    Raises:
        InputError: names the attribute that is missing, unknown, given twice or refused.
    """
    path, _, query = uri.removeprefix("pkcs11:").partition("?")
    given: dict[str, str] = {}
    for attribute in filter(None, [*path.split(";"), *query.split("&")]):
        name, _, value = attribute.partition("=")
        if name == "pin-value":
            raise InputError("pin-value", "would be a secret in a configuration", "give pin-source=file:…")
        if name not in ("token", "object", "id", "module-path", "pin-source"):
            raise InputError(f"pkcs11: {name}", "is not understood", f"known are {_KNOWN}")
        if name in given:
            raise InputError(f"pkcs11: {name}", "is given twice", "give it once")
        given[name] = value
    for name in ("token", "object", "module-path", "pin-source"):
        if not given.get(name):
            raise InputError(f"pkcs11: {name}", "is missing", f"give all of {_KNOWN}; only id may be left out")
    source = unquote(given["pin-source"])
    pin = Path(source.removeprefix("file://").removeprefix("file:"))
    if not source.startswith("file:") or not pin.is_absolute():
        raise InputError("pkcs11: pin-source", f"{source!r} given", "give file: and an absolute path")
    module = Path(unquote(given["module-path"]))
    if not module.is_absolute():
        raise InputError("pkcs11: module-path", f"{str(module)!r} given", "give an absolute path")
    id = unquote_to_bytes(given.get("id", ""))
    return TokenKey(unquote(given["token"]), unquote(given["object"]), id, module, pin)


def require_named_role(name: str, field: str, role: Role) -> None:
    """Refuse a key outside of key files whose name does not say ``role``; raise InputError naming ``field``."""
    if name != role and not name.startswith(f"{role}-"):
        raise InputError(field, f"{name!r} is not named for the role {role!r}", f"call a key of this role {role}-…")


def create_token_key(uri: str, role: Role) -> str:
    """Generate a key pair inside the token, never to leave it; return its address (0x, lower-case).

    Raises:
        InputError: names the part of the URI at fault; there may be no key of this label (and id) yet.
        SourceError: the token refuses.
    """
    named = parse_uri(uri)
    require_named_role(named.object, "pkcs11: object", role)
    import_pkcs11()
    from pkcs11 import Attribute, KeyType, PKCS11Error
    from pkcs11.util.ec import encode_named_curve_parameters

    with _open(named, writable=True) as session:
        try:
            if any(True for _ in session.get_objects({Attribute.LABEL: named.object})):
                problem = f"{named.object!r} is in the token already and is not overwritten"
                raise InputError("pkcs11: object", problem, "choose another label")
            curve = session.create_domain_parameters(
                KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(CURVE)}, local=True
            )
            public, _ = curve.generate_keypair(
                store=True,
                label=named.object,
                id=named.id or named.object.encode(),
                private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )
            return _address(named, public)
        except PKCS11Error as error:
            raise Unreachable(_source(named), f"made no key: {_shown(error)}") from None


class TokenSigner:
    """A secp256k1 key in a token. Implements ``aggregator.ports.Signer``; ``sign`` blocks as long as the token does.

    Raises:
        InputError: the URI, its token, key or PIN cannot be used; the message names the part.
        SourceError: the token does not answer well.
    """

    def __init__(self, uri: str, role: Role) -> None:
        self._named = parse_uri(uri)
        require_named_role(self._named.object, "pkcs11: object", role)
        self._turn = threading.Lock()  # a session does one thing at a time
        self._session, self._key, self._address = self._connect()

    @property
    def address(self) -> str:
        """The address of the token's public key, 0x lower-case."""
        return self._address

    def sign(self, digest: bytes) -> tuple[bytes, bytes]:
        """Return the EIP-2098 signature (r, vs) of a 32-byte digest; a lost session is opened anew, once.

        Raises:
            Unreachable: the token does not sign. Garbage: what it gives is no signature of its key.
        """
        if len(digest) != 32:
            raise InputError("digest", f"{len(digest)} bytes given", "give a 32-byte hash")
        from pkcs11 import PKCS11Error

        with self._turn:
            try:
                raw = self._sign(digest)
            except PKCS11Error:
                try:
                    self.close()
                    self._session, self._key, address = self._connect()
                    raw = self._sign(digest)
                except (PKCS11Error, InputError, SourceError) as error:
                    raise Unreachable(_source(self._named), f"does not sign: {_shown(error)}") from None
                if address != self._address:
                    raise Garbage(_source(self._named), f"holds {address} now, {self._address} before") from None
        if len(raw) != 64:
            raise Garbage(_source(self._named), f"gave a signature of {len(raw)} bytes, 64 expected")
        r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
        return compact_signature(_source(self._named), self._address, digest, r, s)

    def close(self) -> None:
        """Close the session with the token."""
        from pkcs11 import PKCS11Error

        with contextlib.suppress(PKCS11Error):  # it is gone already
            self._session.close()

    def __repr__(self) -> str:
        return f"TokenSigner({self._address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not copied out of its process")

    def _sign(self, digest: bytes) -> bytes:
        from pkcs11 import Mechanism

        return bytes(self._key.sign(digest, mechanism=Mechanism.ECDSA))

    def _connect(self) -> tuple[Session, Any, str]:
        import_pkcs11()
        from pkcs11 import MultipleObjectsReturned, NoSuchKey, ObjectClass, PKCS11Error

        session = _open(self._named)
        try:
            label, id = self._named.object, self._named.id or None
            key = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label=label, id=id)
            public = session.get_key(object_class=ObjectClass.PUBLIC_KEY, label=label, id=id)
            return session, key, _address(self._named, public)
        except BaseException as error:
            with contextlib.suppress(PKCS11Error):
                session.close()
            if isinstance(error, NoSuchKey):
                problem = f"no key pair {self._named.object!r} is in token {self._named.token!r}"
                raise InputError("pkcs11: object", problem, "create it: crossmargin keys create --pkcs11") from None
            if isinstance(error, MultipleObjectsReturned):
                raise InputError("pkcs11: object", f"several are called {self._named.object!r}", "give id=%…") from None
            if isinstance(error, PKCS11Error):
                raise Unreachable(_source(self._named), f"cannot be read: {_shown(error)}") from None
            raise


def import_pkcs11() -> None:
    """Load python-pkcs11; raise InputError with the remedy where it is not installed."""
    try:
        importlib.import_module("pkcs11")
    except ImportError:
        problem, remedy = "python-pkcs11 is not installed", 'run: pip install "crossmargin[pkcs11]"'
        raise InputError("pkcs11", problem, remedy) from None


def _open(named: TokenKey, *, writable: bool = False) -> Session:
    import pkcs11

    pin = read_secret(named.pin, "write the token's PIN there, chmod 600").strip()
    if not pin:
        raise InputError(str(named.pin), "is empty", "write the token's user PIN there")
    try:
        library = pkcs11.lib(str(named.module))
    except RuntimeError as error:  # PKCS11Error is one
        raise InputError("pkcs11: module-path", f"{named.module} cannot be loaded: {_shown(error)}") from None
    try:
        token = library.get_token(token_label=named.token)
        try:
            return token.open(rw=writable, user_pin=pin)
        except pkcs11.UserAlreadyLoggedIn:  # a login is the process's, and another key of this token is open
            return token.open(rw=writable)
    except pkcs11.NoSuchToken:
        raise InputError("pkcs11: token", f"no token is called {named.token!r}", "initialise or insert it") from None
    except pkcs11.MultipleTokensReturned:
        raise InputError("pkcs11: token", f"several are called {named.token!r}", "give one another label") from None
    except (pkcs11.PinIncorrect, pkcs11.PinLenRange, pkcs11.PinInvalid, pkcs11.PinLocked, pkcs11.PinExpired) as error:
        raise InputError(str(named.pin), f"the token refuses this PIN: {_shown(error)}", "correct it") from None
    except pkcs11.PKCS11Error as error:
        raise Unreachable(_source(named), f"cannot be opened: {_shown(error)}") from None


def _address(named: TokenKey, public: Any) -> str:
    from pkcs11 import Attribute
    from pkcs11.util.ec import encode_named_curve_parameters

    if bytes(public[Attribute.EC_PARAMS]) != encode_named_curve_parameters(CURVE):
        raise InputError("pkcs11: object", f"{named.object!r} is not a secp256k1 key", "create one")
    point = bytes(public[Attribute.EC_POINT])
    if len(point) == _POINT_LENGTH + 2:
        point = point[2:]  # an OCTET STRING of DER, as the standard says; some tokens give the bare point
    if len(point) != _POINT_LENGTH or point[0] != 4:
        raise Garbage(_source(named), f"gives a public key of {len(point)} bytes, {_POINT_LENGTH} expected")
    return address_of(point)


def _source(named: TokenKey) -> str:
    return f"token {named.token}"


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip()
