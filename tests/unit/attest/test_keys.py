from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path

import pytest
from eth_account import Account
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from adapters.keys import create_key, create_solana_key, load_key, load_solana_key, show_key
from aggregator.domain.errors import InputError
from proofs.hashing import keccak256
from proofs.signing import recover

SECRET = bytes(range(1, 33))
FAST = 10  # PBKDF2 rounds: these files protect nothing


def test_ethereum_tools_read_the_file_and_agree_on_the_address(tmp_path: Path) -> None:
    address = create_key(tmp_path / "payer", "swordfish", SECRET, iterations=FAST)
    assert Account.decrypt((tmp_path / "payer").read_text(), "swordfish") == SECRET
    assert address == Account.from_key(SECRET).address.lower() == show_key(tmp_path / "payer")
    assert stat.S_IMODE((tmp_path / "payer").stat().st_mode) == 0o600


def test_a_loaded_key_signs_what_the_registries_recover(tmp_path: Path) -> None:
    address = create_key(tmp_path / "attestor", "swordfish", iterations=FAST)
    signer = load_key(tmp_path / "attestor", "swordfish")
    for i in range(16):
        digest = keccak256(bytes([i]))
        assert "0x" + recover(digest, *signer.sign(digest)).hex() == address
        assert signer.sign(digest) == signer.sign(digest)
    with pytest.raises(InputError, match="digest"):
        signer.sign(b"short")


def test_two_new_keys_differ(tmp_path: Path) -> None:
    assert create_key(tmp_path / "a", "x", iterations=FAST) != create_key(tmp_path / "b", "x", iterations=FAST)


def test_a_solana_key_round_trips(tmp_path: Path) -> None:
    address = create_solana_key(tmp_path / "payer", "swordfish", SECRET, iterations=FAST)
    signer = load_solana_key(tmp_path / "payer", "swordfish")
    assert address == str(Keypair.from_seed(SECRET).pubkey()) == signer.address == show_key(tmp_path / "payer")
    assert Signature.from_bytes(signer.sign(b"message")).verify(Pubkey.from_string(address), b"message")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    create_key(tmp_path / "payer", "one", SECRET, iterations=FAST)
    with pytest.raises(InputError, match="payer: exists already"):
        create_solana_key(tmp_path / "payer", "two", iterations=FAST)
    assert load_key(tmp_path / "payer", "one").address == show_key(tmp_path / "payer")


def test_a_file_open_to_others_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "payer"
    create_key(path, "swordfish", iterations=FAST)
    path.chmod(0o640)
    with pytest.raises(InputError, match=r"payer: is open to others \(mode 0640\); run: chmod 600"):
        load_key(path, "swordfish")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "not a keystore"),
        ("[]", "not a keystore"),
        ('{"version": 3}', "not a keystore"),
        ("[" * 50_000, "not a keystore"),
        ('{"version": 3, "crypto": {}, "address": "00"}', "not a keystore"),
        ("x" * 100_000, "not a keystore"),
    ],
)
def test_what_is_no_keystore_is_named(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "payer"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match=f"payer: .*{problem}"):
        load_key(path, "swordfish")


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="payer: does not exist"):
        load_key(tmp_path / "payer", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: is not a file"):
        load_key(tmp_path / "folder", "x")
    with pytest.raises(InputError, match="cannot be created"):
        create_key(tmp_path / "nowhere" / "payer", "x", iterations=FAST)


def test_kinds_are_not_mixed_up(tmp_path: Path) -> None:
    create_key(tmp_path / "evm", "x", iterations=FAST)
    create_solana_key(tmp_path / "solana", "x", iterations=FAST)
    with pytest.raises(InputError, match="holds a Solana key"):
        load_key(tmp_path / "solana", "x")
    with pytest.raises(InputError, match="holds an EVM key"):
        load_solana_key(tmp_path / "evm", "x")


def test_a_file_whose_address_was_edited_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "payer"
    create_key(path, "x", iterations=FAST)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"address": "00" * 20}))
    with pytest.raises(InputError, match="holds the key of"):
        load_key(path, "x")


def test_no_secret_shows_anywhere(tmp_path: Path) -> None:
    create_key(tmp_path / "evm", "swordfish", SECRET, iterations=FAST)
    create_solana_key(tmp_path / "solana", "swordfish", SECRET, iterations=FAST)
    shown = []
    for load, name in ((load_key, "evm"), (load_solana_key, "solana")):
        signer = load(tmp_path / name, "swordfish")
        shown += [repr(signer), str(signer), f"{signer!r:>200}"]
        with pytest.raises(TypeError):
            pickle.dumps(signer)
        with pytest.raises(InputError, match="wrong passphrase") as caught:
            load(tmp_path / name, "sw0rdfish")
        assert caught.value.__cause__ is None
        shown.append(str(caught.value))
    for secret in (SECRET.hex(), str(Keypair.from_seed(SECRET)), "swordfish", "sw0rdfish"):
        assert not [text for text in shown if secret in text]


@pytest.mark.parametrize("entropy", [b"", b"\x01" * 31, bytes(32), b"\xff" * 32])
def test_entropy_that_is_no_secret_is_refused_and_leaves_no_file(tmp_path: Path, entropy: bytes) -> None:
    with pytest.raises(InputError, match="entropy"):
        create_key(tmp_path / "payer", "x", entropy, iterations=FAST)
    assert not (tmp_path / "payer").exists()


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="passphrase"):
        create_key(tmp_path / "payer", "", iterations=FAST)
