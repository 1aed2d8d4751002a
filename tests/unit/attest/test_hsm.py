"""Keys in a PKCS#11 token, against SoftHSM2: a real token, in software."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.hsm import TokenSigner, create_token_key, parse_uri
from adapters.keys import open_signer
from aggregator.domain.errors import Garbage, InputError, Unreachable
from proofs.hashing import keccak256
from proofs.signing import recover

SOFTHSM = next(
    (Path(p) for p in ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so") if Path(p).exists()), None
)
NEEDED = "the PKCS#11 SIGNER IS NOT TESTED: install softhsm2 and python-pkcs11 (crossmargin[pkcs11])"
pkcs11 = pytest.importorskip("pkcs11", reason=NEEDED)
needs_softhsm = pytest.mark.skipif(SOFTHSM is None, reason=NEEDED)
PIN = "12345678"
DIGESTS = [keccak256(b"%d" % i) for i in range(24)]


class Token:
    """A fresh token in a folder of its own, and URIs of keys in it."""

    def __init__(self, folder: Path) -> None:
        self.pin = folder / "pin"
        self.pin.touch(0o600)
        self.pin.write_text(PIN + "\n")
        (folder / "tokens").mkdir()
        (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
        self.conf = folder / "softhsm2.conf"
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", "own", "--so-pin", "87654321", "--pin", PIN],
            env={**os.environ, "SOFTHSM2_CONF": str(self.conf)},
            check=True,
            capture_output=True,
        )

    def uri(self, label: str, *, token: str = "own", pin: Path | None = None, more: str = "") -> str:
        return f"pkcs11:token={token};object={label}{more}?module-path={SOFTHSM}&pin-source=file:{pin or self.pin}"


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    made = Token(tmp_path_factory.mktemp("softhsm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(made.conf))
        yield made
        pkcs11.unload(str(SOFTHSM))


@needs_softhsm
def test_a_key_made_in_the_token_signs_what_a_registry_takes(token: Token) -> None:
    uri = token.uri("attestor-0")
    address = create_token_key(uri, "attestor")
    signer = open_signer(uri, "attestor", folder=Path("/"), passphrase=lambda: "", address=address)
    for digest in DIGESTS:
        assert "0x" + recover(digest, *signer.sign(digest)).hex() == address
    with pytest.raises(InputError, match=f"is the key of {address}, 0x00"):
        open_signer(uri, "attestor", folder=Path("/"), passphrase=lambda: "", address="0x" + "00" * 20)
    with pytest.raises(InputError, match="digest: 31 bytes"):
        signer.sign(bytes(31))


@needs_softhsm
def test_the_secret_stays_in_the_token_and_no_key_is_overwritten(token: Token) -> None:
    uri = token.uri("attestor-kept")
    create_token_key(uri, "attestor")
    with pytest.raises(InputError, match="'attestor-kept' is in the token already"):
        create_token_key(uri, "attestor")
    signer = TokenSigner(uri, "attestor")
    key = signer._session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label="attestor-kept")
    assert (key[pkcs11.Attribute.EXTRACTABLE], key[pkcs11.Attribute.SENSITIVE]) == (False, True)
    with pytest.raises(pkcs11.PKCS11Error):
        key[pkcs11.Attribute.VALUE]
    assert PIN not in repr(signer)
    with pytest.raises(TypeError):
        pickle.dumps(signer)


@needs_softhsm
def test_two_keys_of_one_token_sign_in_one_process_and_a_lost_session_is_opened_anew(token: Token) -> None:
    first, second = token.uri("wire-a"), token.uri("wire-b")
    addresses = [create_token_key(uri, "wire") for uri in (first, second)]
    signers = [TokenSigner(uri, "wire") for uri in (first, second)]
    signers[0].close()
    for signer, address in zip(signers, addresses, strict=True):
        assert "0x" + recover(DIGESTS[0], *signer.sign(DIGESTS[0])).hex() == address
    assert addresses[0] != addresses[1]


@needs_softhsm
def test_a_key_is_used_in_the_role_of_its_label_only(token: Token) -> None:
    uri = token.uri("wire-c")
    create_token_key(uri, "wire")
    with pytest.raises(InputError, match="'wire-c' is not named for the role 'attestor'"):
        TokenSigner(uri, "attestor")
    with pytest.raises(InputError, match="'attestors' is not named for the role 'attestor'"):
        create_token_key(token.uri("attestors"), "attestor")


@needs_softhsm
def test_what_cannot_be_opened_is_named(token: Token, tmp_path: Path) -> None:
    create_token_key(token.uri("relayer-0", more=";id=%01"), "relayer")
    wrong = tmp_path / "pin"
    wrong.touch(0o600)
    for content, uri, says in (
        ("99999999", token.uri("relayer-0", pin=wrong), "refuses this PIN"),
        ("", token.uri("relayer-0", pin=wrong), "pin: is empty"),
        (PIN, token.uri("relayer-0", token="other"), "no token is called 'other'"),
        (PIN, token.uri("relayer-9"), "no key pair 'relayer-9' is in token 'own'"),
        (PIN, token.uri("relayer-0", more=";id=%02"), "no key pair 'relayer-0'"),
        (PIN, token.uri("relayer-0").replace("libsofthsm2", "nothing"), "module-path: .* cannot be loaded"),
    ):
        wrong.write_text(content)
        # In a process of its own: this one is logged in already, and no PIN would be asked for.
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from adapters.hsm import *; TokenSigner(sys.argv[1], 'relayer')", uri],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=Path(__file__).resolve().parents[3],
        )
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("aggregator.domain.errors.InputError")
        assert re.search(says, last), last
        assert "99999999" not in done.stderr
    wrong.chmod(0o644)
    with pytest.raises(InputError, match="pin: is open to others"):
        TokenSigner(token.uri("relayer-0", pin=wrong), "relayer")
    assert TokenSigner(token.uri("relayer-0", more=";id=%01"), "relayer").address.startswith("0x")


@needs_softhsm
def test_a_key_of_another_curve_is_refused(token: Token) -> None:
    uri = token.uri("attestor-p256")
    session = pkcs11.lib(str(SOFTHSM)).get_token(token_label="own").open(rw=True)
    curve = pkcs11.util.ec.encode_named_curve_parameters("secp256r1")
    domain = session.create_domain_parameters(pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: curve}, local=True)
    domain.generate_keypair(store=True, label="attestor-p256")
    session.close()
    with pytest.raises(InputError, match="'attestor-p256' is not a secp256k1 key"):
        TokenSigner(uri, "attestor")


class OddKey:
    """Stands in for a token's key that errs."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def sign(self, digest: bytes, mechanism: Any) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        return bytes(self.answer)


@needs_softhsm
def test_a_token_that_errs_gives_no_signature(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = token.uri("attestor-odd")
    create_token_key(uri, "attestor")
    signer = TokenSigner(uri, "attestor")
    for answer, says in ((bytes(64), "is not one of"), (b"\x01" * 64, "is not one of"), (b"\x01" * 63, "of 63 bytes")):
        signer._key = OddKey(answer)
        with pytest.raises(Garbage, match=says):
            signer.sign(DIGESTS[0])
    signer._key = OddKey(pkcs11.DeviceRemoved())
    assert "0x" + recover(DIGESTS[0], *signer.sign(DIGESTS[0])).hex() == signer.address  # by a session opened anew
    signer._key = OddKey(pkcs11.DeviceRemoved())
    monkeypatch.setattr(signer, "_connect", lambda: (signer._session, OddKey(pkcs11.DeviceRemoved()), signer.address))
    with pytest.raises(Unreachable, match="token own: does not sign: DeviceRemoved"):
        signer.sign(DIGESTS[0])
    monkeypatch.setattr(signer, "_connect", lambda: (signer._session, OddKey(b"\x01" * 64), "0x" + "11" * 20))
    with pytest.raises(Garbage, match="holds 0x11"):
        signer.sign(DIGESTS[0])


def test_without_the_extra_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(InputError, match=r'python-pkcs11 is not installed; run: pip install "crossmargin\[pkcs11\]"'):
        TokenSigner("pkcs11:token=t;object=attestor?module-path=/m.so&pin-source=file:/pin", "attestor")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("pkcs11:token=t;object=o?module-path=/m&pin-value=1234", "pin-value: would be a secret"),
        ("pkcs11:token=t;object=o;pin-value=1234?module-path=/m", "pin-value: would be a secret"),
        ("pkcs11:token=t;object=o;serial=1?module-path=/m&pin-source=file:/p", "serial: is not understood"),
        ("pkcs11:token=t;token=u;object=o?module-path=/m&pin-source=file:/p", "token: is given twice"),
        ("pkcs11:object=o?module-path=/m&pin-source=file:/p", "token: is missing"),
        ("pkcs11:token=t?module-path=/m&pin-source=file:/p", "object: is missing"),
        ("pkcs11:token=t;object=o?pin-source=file:/p", "module-path: is missing"),
        ("pkcs11:token=t;object=o?module-path=m.so&pin-source=file:/p", "give an absolute path"),
        ("pkcs11:token=t;object=o?module-path=/m", "pin-source: is missing"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=/p", "give file: and an absolute path"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=file:p", "give file: and an absolute path"),
        ("pkcs11:token=t;object=o?module-path=/m&pin-source=%7Ccat%20p", "give file: and an absolute path"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_by_attribute(uri: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        parse_uri(uri)
    assert "1234" not in str(refusal.value)


def test_a_uri_is_percent_decoded() -> None:
    key = parse_uri("pkcs11:token=my%20token;object=attestor-0;id=%01%ff?module-path=/m.so&pin-source=file:///p%20q")
    assert (key.token, key.object, key.id) == ("my token", "attestor-0", b"\x01\xff")
    assert (key.module, key.pin) == (Path("/m.so"), Path("/p q"))
