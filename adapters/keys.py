"""Key files: secrets at rest, encrypted, and the objects that sign with them. `open_signer` opens any kind of key.

A file is a Web3 Secret Storage (keystore version 3) JSON document, so that any Ethereum tool can read an EVM key. An
Ed25519 key of Solana uses the same encryption over its 32-byte seed and says ``"chain": "solana"``. Files are created
with mode 0600, are never overwritten, and are refused when others could read them.

A file says its key's role (``"role"``), and a key is used in no other: one that signs statements must not also sign
transactions or messages, whose digests others choose. Keys in tokens and services have their role in their name.

Neither keys nor passphrases appear in any message, ``repr`` or pickle.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, get_args

from coincurve import PrivateKey
from solders.keypair import Keypair

from aggregator.domain.errors import CrossmarginError, Garbage, InputError
from aggregator.ports import Signer
from proofs.document import MAX_DEPTH, measure_depth
from proofs.errors import ProofError
from proofs.hashing import keccak256
from proofs.signing import HALF_ORDER, ORDER, compact_from_rsv, recover

Role = Literal["attestor", "relayer", "wire", "evidence"]
"""What a key signs: statements, transactions that post them, messages between processes, disputes."""
ROLES: Final[tuple[Role, ...]] = get_args(Role)
DEFAULT_ITERATIONS: Final = 600_000  # PBKDF2-HMAC-SHA256 (OWASP Password Storage Cheat Sheet, 2023)
_SECRET_LENGTH: Final = 32
_SIZE_LIMIT: Final = 64 * 1024
_OTHERS: Final = 0o077


class KeyFile(NamedTuple):
    """What a key file says of itself without being decrypted."""

    path: Path
    address: str  # 0x lower-case, or base58
    role: str  # "" where it says none: such a file can only be imported
    chain: str  # "evm" or "solana"
    problem: str = ""  # why it cannot be used; all else but the path is "" then


def address_of(point: bytes) -> str:
    """Return the EVM address (0x, lower-case) of an uncompressed public key (65 bytes, 0x04 first)."""
    return "0x" + keccak256(point[1:])[12:].hex()


def compact_signature(source: str, address: str, digest: bytes, r: int, s: int) -> tuple[bytes, bytes]:
    """Return the EIP-2098 form (r, vs) of what a device signed: s made low, v found by recovery.

    Args:
        source: the device, for messages.
        address: of the key that was to sign, 0x lower-case.
        digest: the 32 bytes it was given.

    Raises:
        Garbage: no v makes it a signature of ``digest`` by ``address``.
    """
    low = min(s, ORDER - s)
    for v in (0, 1):
        try:
            signature = compact_from_rsv(r, low, v)
            if "0x" + recover(digest, *signature).hex() == address:
                return signature
        except ProofError:
            continue
    raise Garbage(source, f"gave a signature that is not one of {address}")


class KeySigner:
    """A secp256k1 key: an attestor's, or an EVM payer's. Implements ``aggregator.ports.Signer``."""

    __slots__ = ("_address", "_key")

    def __init__(self, secret: bytes) -> None:
        self._key = PrivateKey(secret)
        self._address = address_of(self._key.public_key.format(compressed=False))

    @property
    def address(self) -> str:
        """The EVM address, 0x lower-case."""
        return self._address

    def sign(self, digest: bytes) -> tuple[bytes, bytes]:
        """Return the EIP-2098 signature (r, vs) of a 32-byte digest: low s, nonce by RFC 6979."""
        if len(digest) != _SECRET_LENGTH:
            raise InputError("digest", f"{len(digest)} bytes given", "give a 32-byte hash")
        signature = self._key.sign_recoverable(digest, hasher=None)
        s = int.from_bytes(signature[32:64], "big")
        assert s <= HALF_ORDER  # libsecp256k1 normalises; a registry would refuse anything else
        return signature[:32], (signature[64] << 255 | s).to_bytes(32, "big")

    def __repr__(self) -> str:
        return f"KeySigner({self._address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not copied out of its process")


class SolanaSigner:
    """An Ed25519 key that pays for postings on Solana."""

    __slots__ = ("_address", "_keypair")

    def __init__(self, seed: bytes) -> None:
        self._keypair = Keypair.from_seed(seed)
        self._address = str(self._keypair.pubkey())

    @property
    def address(self) -> str:
        """The public key, base58."""
        return self._address

    @property
    def keypair(self) -> Keypair:
        """The key as solders wants it. Its ``str`` is the secret: never format it."""
        return self._keypair

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature of ``message``."""
        return bytes(self._keypair.sign_message(message))

    def __repr__(self) -> str:
        return f"SolanaSigner({self._address})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not copied out of its process")


def create_key(
    path: Path,
    passphrase: str,
    entropy: bytes | None = None,
    *,
    role: Role = "attestor",
    iterations: int = DEFAULT_ITERATIONS,
) -> str:
    """Write a new secp256k1 key file and return its address (0x, lower-case).

    Args:
        path: where; nothing may be there yet, its folder must exist.
        passphrase: encrypts the file; not empty.
        entropy: the 32-byte secret itself (imports, devnets and tests); by default the system's randomness.
        role: the only one it can be used in.
        iterations: PBKDF2 rounds.

    Raises:
        InputError: names the file or the argument.
    """
    secret = _secret(entropy)
    if not 0 < int.from_bytes(secret, "big") < ORDER:
        raise InputError("entropy", "is not a secp256k1 secret", "give 32 bytes in [1, n-1]")
    document = _encrypt(secret, passphrase, iterations)
    signer = KeySigner(secret)
    document |= {"address": signer.address.removeprefix("0x"), "role": role}
    _write(path, document)
    return signer.address


def create_solana_key(
    path: Path, passphrase: str, entropy: bytes | None = None, *, iterations: int = DEFAULT_ITERATIONS
) -> str:
    """Write a new Ed25519 key file and return its address (base58). Arguments and errors as for `create_key`.

    Its role is relayer: nothing else is signed with Ed25519.
    """
    secret = _secret(entropy)
    signer = SolanaSigner(secret)
    document = _encrypt(secret, passphrase, iterations)
    document |= {"address": signer.address, "chain": "solana", "role": "relayer"}
    _write(path, document)
    return signer.address


def import_key(
    source: Path,
    source_passphrase: Callable[[], str],
    path: Path,
    passphrase: str,
    *,
    role: Role,
    solana: bool = False,
    iterations: int = DEFAULT_ITERATIONS,
) -> str:
    """Write a key that another tool made into a new key file with a role; return its address.

    Args:
        source: a keystore of version 3 with any cipher eth_keyfile knows, or a text file of 64 hex digits.
        source_passphrase: asked only if ``source`` is a keystore.
        solana: the 32 bytes are an Ed25519 seed; a keystore of ours says so itself.

    Raises:
        InputError: names the file at fault; nothing is written then.
    """
    content = read_secret(source, "name the file to import")
    if content.lstrip().startswith("{"):
        document = _parse(source, content)
        secret = _decrypt(source, document, source_passphrase())
        solana = solana or document.get("chain") == "solana"
    else:
        digits = content.strip().removeprefix("0x")
        if len(digits) != 2 * _SECRET_LENGTH or not set(digits.lower()) <= set("0123456789abcdef"):
            raise InputError(str(source), "is neither a keystore of version 3 nor 64 hex digits", "name a key's file")
        secret = bytes.fromhex(digits)
    if solana:
        if role != "relayer":
            raise InputError("role", f"{role!r} given, a Solana key only pays for postings", "give relayer")
        return create_solana_key(path, passphrase, secret, iterations=iterations)
    return create_key(path, passphrase, secret, role=role, iterations=iterations)


def load_key(path: Path, passphrase: str, *, role: Role = "attestor") -> KeySigner:
    """Decrypt a secp256k1 key file.

    Raises:
        InputError: names the file: missing, readable by others, not a keystore, of another role, wrong passphrase or
            kind of key.
    """
    document = _read(path)
    if document.get("chain") == "solana":
        raise InputError(str(path), "holds a Solana key, an EVM key is needed here", "name the right key file")
    _require_role(path, document, role)
    signer = KeySigner(_decrypt(path, document, passphrase))
    _require_address(path, signer.address, _address(path, document))
    return signer


def load_solana_key(path: Path, passphrase: str) -> SolanaSigner:
    """Decrypt an Ed25519 key file. Errors as for `load_key`."""
    document = _read(path)
    if document.get("chain") != "solana":
        raise InputError(str(path), "holds an EVM key, a Solana key is needed here", "name the right key file")
    _require_role(path, document, "relayer")
    signer = SolanaSigner(_decrypt(path, document, passphrase))
    _require_address(path, signer.address, _address(path, document))
    return signer


def open_signer(
    key: str, role: Role, *, folder: Path, passphrase: Callable[[], str], address: str | None = None
) -> Signer:
    """Return what signs with a secp256k1 key, wherever that is.

    Args:
        key: a name (of ``<folder>/<name>.json``), ``file:PATH``, ``pkcs11:…`` (``adapters.hsm``) or
            ``kms:PROVIDER/KEY`` (``adapters.kms``).
        role: what it is to sign; the key must be of this role.
        folder: of key files.
        passphrase: of key files; asked for these only.
        address: the one the key must have (0x, lower-case), None for any.

    Raises:
        InputError: names the key or its file. SourceError: the device does not answer well.
    """
    scheme, colon, rest = key.partition(":")
    signer: Signer
    match scheme if colon else "":
        case "":
            signer = load_key(folder / f"{key}.json", passphrase(), role=role)
        case "file":
            signer = load_key(Path(rest), passphrase(), role=role)
        case "pkcs11":
            from adapters.hsm import TokenSigner  # here: python-pkcs11 is optional

            signer = TokenSigner(key, role)
        case "kms":
            from adapters.kms import open_kms  # here: few use it

            signer = open_kms(key, role)
        case _:
            raise InputError("key", f"{scheme}: is no kind of key", "give a name, file:…, pkcs11:… or kms:…")
    if address is not None and signer.address != address:
        raise InputError("key", f"{key} is the key of {signer.address}, {address} is expected", "name the right key")
    return signer


def show_key(path: Path) -> str:
    """Return the address a key file says it is for, without decrypting it."""
    return describe_key(path).address


def describe_key(path: Path) -> KeyFile:
    """Return what a key file says of itself, without decrypting it. Errors as for `load_key`."""
    document = _read(path)
    return KeyFile(path, _address(path, document), str(document.get("role", "")), str(document.get("chain", "evm")))


def list_keys(folder: Path) -> list[KeyFile]:
    """Return every key file of a folder by name; one that cannot be used says why.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise InputError(str(folder), f"cannot be read: {error.strerror}", "name the folder of the key files") from None
    found = []
    for path in paths:
        try:
            found.append(describe_key(path))
        except CrossmarginError as error:
            found.append(KeyFile(path, "", "", "", str(error)))
    return found


def _secret(entropy: bytes | None) -> bytes:
    secret = secrets.token_bytes(_SECRET_LENGTH) if entropy is None else entropy
    if len(secret) != _SECRET_LENGTH:
        raise InputError("entropy", f"{len(secret)} bytes given", f"give {_SECRET_LENGTH} bytes")
    return secret


def _encrypt(secret: bytes, passphrase: str, iterations: int) -> dict[str, Any]:
    if not passphrase:
        raise InputError("passphrase", "is empty", "give the passphrase that is to protect the key file")
    from eth_keyfile.keyfile import create_keyfile_json  # here: it takes most of a second to load

    try:
        return create_keyfile_json(secret, passphrase.encode(), kdf="pbkdf2", iterations=iterations)
    except Exception:  # its message may quote the secret; an Ed25519 seed above the curve's order also ends here
        raise InputError("entropy", "cannot be encrypted as a keystore", "use other 32 bytes") from None


def _decrypt(path: Path, document: dict[str, Any], passphrase: str) -> bytes:
    from eth_keyfile.keyfile import decode_keyfile_json  # as above

    try:
        secret = decode_keyfile_json(document, passphrase.encode())
    except Exception as error:  # eth_keyfile raises ValueError for a wrong MAC, KeyError and TypeError for the rest
        if "MAC mismatch" in str(error):
            raise InputError(str(path), "wrong passphrase", "give the passphrase it was created with") from None
        raise InputError(str(path), "is not a keystore of version 3", "restore it from a backup") from None
    if len(secret) != _SECRET_LENGTH:
        raise InputError(str(path), f"holds {len(secret)} bytes, {_SECRET_LENGTH} expected", "restore it from a backup")
    return secret


def _address(path: Path, document: dict[str, Any]) -> str:
    address = document.get("address")
    if not isinstance(address, str) or not address:
        raise InputError(str(path), "does not name its address", "restore it from a backup")
    return address if document.get("chain") == "solana" else "0x" + address.lower().removeprefix("0x")


def _require_role(path: Path, document: dict[str, Any], role: Role) -> None:
    given = document.get("role")
    if given is None:
        raise InputError(str(path), "says no role", f"give it one: crossmargin keys import {path} NEW --role {role}")
    if given != role:
        raise InputError(str(path), f"is a key for the role {given!r}, not {role!r}", f"create a key for {role}")


def _require_address(path: Path, actual: str, stated: str) -> None:
    if actual != stated:
        raise InputError(str(path), f"names {stated} but holds the key of {actual}", "restore it from a backup")


def _read(path: Path) -> dict[str, Any]:
    return _parse(path, read_secret(path, "create it with `crossmargin keys create`"))


def read_secret(path: Path, remedy: str) -> str:
    """Return the text of a file that only its owner can read; "" if it is no text of at most 64 KiB.

    Args:
        remedy: what to do if there is none.

    Raises:
        InputError: names the file: missing, open to others, not a file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InputError(str(path), "does not exist", remedy) from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "check the path and its owner") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise InputError(str(path), "is not a file", "name a key file")
        if mode & _OTHERS:
            mode = stat.S_IMODE(mode)
            raise InputError(str(path), f"is open to others (mode {mode:04o})", f"run: chmod 600 {path}")
        content = os.read(descriptor, _SIZE_LIMIT + 1)
    finally:
        os.close(descriptor)
    try:
        return content.decode() if len(content) <= _SIZE_LIMIT else ""
    except UnicodeDecodeError:
        return ""


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text) if measure_depth(text) <= MAX_DEPTH else None  # parsing a deep one could crash
    except ValueError:
        document = None
    if isinstance(document, dict) and "Crypto" in document:  # as older tools write it
        document = {**document, "crypto": document["Crypto"]}
    if not isinstance(document, dict) or document.get("version") != 3 or not isinstance(document.get("crypto"), dict):
        raise InputError(str(path), "is not a keystore of version 3", "name a key file, or create one")
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(str(path), "exists already and is not overwritten", "choose another name") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be created: {error.strerror}", "check that its folder exists") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)  # the umask may only have narrowed it; a restore must find exactly 0600
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # a key whose address is already in a deployment must survive a power cut
    finally:
        os.close(folder)
