"""Keys in a key management service, against a local one that signs with a real key, half of the time with a high s."""

from __future__ import annotations

import pickle
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from adapters import kms
from adapters.keys import KeySigner, open_signer
from adapters.kms import KmsSigner, decode_signature
from aggregator.domain.errors import Garbage, InputError, Unreachable
from proofs.hashing import keccak256
from proofs.signing import ORDER, recover

SECRET = keccak256(b"in a service")
SPKI = bytes.fromhex("3056301006072a8648ce3d020106052b8104000a034200")


def der(r: int, s: int) -> bytes:
    def integer(value: int) -> bytes:
        body = value.to_bytes(value.bit_length() // 8 + 1, "big")
        return b"\x02" + bytes([len(body)]) + body

    both = integer(r) + integer(s)
    return b"\x30" + bytes([len(both)]) + both


class LocalKms:
    """Signs with a real key; every second signature has a high s. The first ``failures`` calls of each kind fail."""

    def __init__(self, failures: int = 0, secret: bytes = SECRET) -> None:
        self.key, self.failures, self.calls = PrivateKey(secret), failures, 0

    def public_key(self) -> bytes:
        return SPKI + self.key.public_key.format(compressed=False)

    def sign_digest(self, digest: bytes) -> bytes:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("token=secret")
        signature = self.key.sign_recoverable(digest, hasher=None)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        return der(r, ORDER - s if self.calls % 2 else s)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=4))
def test_either_s_becomes_the_low_one_with_the_right_parity(digests: list[bytes]) -> None:
    service = LocalKms()
    signer = KmsSigner("local", service)
    assert signer.address == KeySigner(SECRET).address
    for digest in digests:
        assert "0x" + recover(digest, *signer.sign(digest)).hex() == signer.address
    assert service.calls == len(digests)


def test_one_failure_is_tried_again_and_a_second_is_said_without_the_services_words() -> None:
    digest = keccak256(b"digest")
    once = KmsSigner("local", LocalKms(failures=1))
    assert "0x" + recover(digest, *once.sign(digest)).hex() == once.address
    with pytest.raises(Unreachable, match=r"local: sign_digest failed twice: ConnectionError$"):
        KmsSigner("local", LocalKms(failures=2)).sign(digest)
    with pytest.raises(InputError, match="digest: 5 bytes"):
        once.sign(b"short")


def test_another_keys_signature_is_not_passed_on() -> None:
    service = LocalKms()
    signer = KmsSigner("local", service)
    service.key = PrivateKey(keccak256(b"another"))
    with pytest.raises(Garbage, match=f"a signature that is not one of {signer.address}"):
        signer.sign(keccak256(b"digest"))


@pytest.mark.parametrize(
    "key", [b"", SPKI, SPKI + b"\x04" * 64, SPKI + b"\x02" * 65, bytes(23) + b"\x04" * 65], ids=lambda k: k.hex()[:12]
)
def test_what_is_no_secp256k1_key_is_refused(key: bytes) -> None:
    service: Any = LocalKms()
    service.public_key = lambda: key
    with pytest.raises(InputError, match="local is not an uncompressed secp256k1 key"):
        KmsSigner("local", service)


GOOD = der(5, ORDER - 1)


@pytest.mark.parametrize(
    "given",
    [b"", GOOD[:-1], GOOD + b"\x00", b"\x31" + GOOD[1:], der(5, 6) + der(5, 6)]
    + [bytes.fromhex(h) for h in ("3006020105020186", "300702020005020106", "300402000200", "30080201050201060201")]
    + [bytes.fromhex("3009020105020106020107"), bytes.fromhex("3006040105020106")],
)
def test_only_strict_der_of_two_integers_is_read(given: bytes) -> None:
    assert decode_signature("local", GOOD) == (5, ORDER - 1)
    with pytest.raises(Garbage, match="no ECDSA signature in DER"):
        decode_signature("local", given)


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(given: bytes) -> None:
    try:
        r, s = decode_signature("local", given)
    except Garbage:
        return
    assert der(r, s) == given


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
def test_scalars_out_of_range_are_garbage(r: int, s: int) -> None:
    service: Any = LocalKms()
    service.sign_digest = lambda _: der(r, s)
    with pytest.raises(Garbage):
        KmsSigner("local", service).sign(bytes(32))


def open_it(key: str, role: Any = "attestor") -> Any:
    return open_signer(key, role, folder=Path("/"), passphrase=lambda: "")


def made(name: str) -> LocalKms:
    if name.startswith("broken/"):
        raise ValueError("no credentials: secret")
    return LocalKms()


def test_a_provider_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("local", f"{__name__}:made", kms.GROUP)]
    monkeypatch.setattr(kms, "entry_points", lambda group: points if group == kms.GROUP else [])
    monkeypatch.setattr(EntryPoint, "load", lambda self: made)
    assert open_it("kms:local/alias/attestor-0").address == KeySigner(SECRET).address
    for key, says in (
        ("kms:", "names no provider"),
        ("kms:local", "names no provider"),
        ("kms:cloud/attestor-0", "no KMS provider 'cloud' is installed; install a package"),
        ("kms:local/alias/wire-0", "'wire-0' is not named for the role 'attestor'"),
    ):
        with pytest.raises(InputError, match=says):
            open_it(key)
    with pytest.raises(Unreachable, match=r"kms local: cannot be opened: ValueError$"):
        open_it("kms:local/broken/attestor-0")


def test_neither_repr_nor_pickle_gives_the_key_away() -> None:
    signer = KmsSigner("local", LocalKms())
    assert SECRET.hex() not in repr(signer)
    with pytest.raises(TypeError):
        pickle.dumps(signer)
