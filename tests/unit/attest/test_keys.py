from __future__ import annotations

import json
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_keyfile.keyfile import create_keyfile_json
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature

from adapters.keys import (
    ROLES,
    Role,
    create_key,
    create_solana_key,
    describe_key,
    import_key,
    list_keys,
    load_key,
    load_solana_key,
    open_signer,
    show_key,
)
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
        ('{"version": 3, "crypto": {}, "address": "00", "role": "attestor"}', "not a keystore"),
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


@pytest.mark.parametrize("role", ROLES)
def test_a_key_is_used_in_the_role_of_its_file_only(tmp_path: Path, role: Role) -> None:
    path = tmp_path / "key.json"
    address = create_key(path, "x", SECRET, role=role, iterations=FAST)
    assert describe_key(path) == (path, address, role, "evm", "")
    for other in ROLES:
        if other == role:
            assert load_key(path, "x", role=other).address == address
        else:
            with pytest.raises(InputError, match=f"is a key for the role '{role}', not '{other}'"):
                load_key(path, "x", role=other)


def test_a_file_without_a_role_is_refused_until_it_is_imported(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.touch(0o600)
    old.write_text(json.dumps(create_keyfile_json(SECRET, b"old", kdf="scrypt", iterations=2)))
    with pytest.raises(InputError, match=r"old.json: says no role; give it one: crossmargin keys import .*old.json"):
        load_key(old, "old", role="wire")
    assert (
        import_key(old, lambda: "old", new, "new", role="wire", iterations=FAST)
        == load_key(new, "new", role="wire").address
    )
    with pytest.raises(InputError, match="wrong passphrase"):
        import_key(old, lambda: "new", tmp_path / "other", "x", role="wire", iterations=FAST)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", [SECRET.hex(), f"0x{SECRET.hex().upper()}\n"])
def test_a_raw_secret_is_imported_without_a_passphrase_of_its_own(tmp_path: Path, text: str) -> None:
    def never() -> str:
        raise AssertionError("a raw secret has no passphrase")

    raw = tmp_path / "raw"
    raw.touch(0o600)
    raw.write_text(text)
    address = import_key(raw, never, tmp_path / "key", "x", role="relayer", iterations=FAST)
    assert address == Account.from_key(SECRET).address.lower()
    solana = import_key(raw, never, tmp_path / "sol", "x", role="relayer", solana=True, iterations=FAST)
    assert solana == str(Keypair.from_seed(SECRET).pubkey())
    with pytest.raises(InputError, match="role: 'attestor' given, a Solana key only pays"):
        import_key(raw, never, tmp_path / "no", "x", role="attestor", solana=True, iterations=FAST)
    raw.chmod(0o644)
    with pytest.raises(InputError, match="raw: is open to others"):
        import_key(raw, never, tmp_path / "no", "x", role="relayer", iterations=FAST)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("text", ["", "0x12", SECRET.hex()[:-1] + "g", SECRET.hex() * 2, "\xff", "[]", "{}"])
def test_what_holds_no_key_is_not_imported(tmp_path: Path, text: str) -> None:
    raw = tmp_path / "raw"
    raw.touch(0o600)
    raw.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="raw: is n") as refusal:
        import_key(raw, lambda: "x", tmp_path / "key", "x", role="relayer", iterations=FAST)
    assert not text.strip() or text not in str(refusal.value)
    with pytest.raises(InputError, match="name the file to import"):
        import_key(tmp_path / "none", lambda: "x", tmp_path / "key", "x", role="relayer", iterations=FAST)


def test_a_folder_is_listed_with_what_is_wrong(tmp_path: Path) -> None:
    create_key(tmp_path / "attestor-0.json", "x", role="attestor", iterations=FAST)
    create_solana_key(tmp_path / "payer.json", "x", iterations=FAST)
    (tmp_path / "open.json").write_text("{}")
    (tmp_path / "open.json").chmod(0o644)
    (tmp_path / "notes.txt").write_text("not a key")
    assert [(k.path.name, k.role, k.chain, bool(k.problem)) for k in list_keys(tmp_path)] == [
        ("attestor-0.json", "attestor", "evm", False),
        ("open.json", "", "", True),
        ("payer.json", "relayer", "solana", False),
    ]
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        list_keys(tmp_path / "nowhere")


def test_a_signer_is_opened_by_name_or_file_and_compared_with_whom_it_should_be(tmp_path: Path) -> None:
    address = create_key(tmp_path / "attestor-0.json", "x", SECRET, iterations=FAST)

    def opened(key: str, role: Role = "attestor", expected: str | None = address) -> Any:
        return open_signer(key, role, folder=tmp_path, passphrase=lambda: "x", address=expected)

    for key in ("attestor-0", f"file:{tmp_path}/attestor-0.json"):
        assert opened(key).address == address
        with pytest.raises(InputError, match="not 'wire'"):
            opened(key, "wire")
    with pytest.raises(InputError, match=f"attestor-0 is the key of {address}, 0x00"):
        opened("attestor-0", expected="0x" + "00" * 20)
    with pytest.raises(InputError, match="vault: is no kind of key"):
        opened("vault:attestor-0")
