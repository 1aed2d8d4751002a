"""``crossmargin keys``: every key has one role, comes from no command line, and is succeeded, never overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_keyfile.keyfile import create_keyfile_json

from adapters.keys import create_key, create_solana_key
from tests.cli.conftest import Shell

SECRET = bytes(range(1, 33))
ADDRESS = Account.from_key(SECRET).address.lower()


@pytest.fixture
def passphrase(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    return "--passphrase-file", str(path)


def private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def ran(shell: Shell, *arguments: str) -> Any:
    result = shell.bare("keys", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(shell: Shell, says: str, *arguments: str) -> None:
    result = shell.bare("keys", *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("role", ["attestor", "relayer", "wire", "evidence"])
def test_a_key_is_created_for_one_role(shell: Shell, tmp_path: Path, passphrase: tuple[str, str], role: str) -> None:
    path = str(tmp_path / "key.json")
    made = ran(shell, "create", path, "--role", role, *passphrase)
    assert (made["file"], made["role"], made["chain"]) == (path, role, "evm")
    assert ran(shell, "show", path) == ran(shell, "show", path, "--role", role) == made
    other = "wire" if role != "wire" else "relayer"
    refused(shell, f"--role: is {other}, the key's is {role}", "show", path, "--role", other)


def test_what_is_created_must_be_said(shell: Shell, tmp_path: Path, passphrase: tuple[str, str]) -> None:
    path, uri = str(tmp_path / "key.json"), "pkcs11:token=t;object=wire?module-path=/m&pin-source=file:/p"
    refused(shell, "--role: is missing; give one of attestor, relayer, wire, evidence", "create", path, *passphrase)
    refused(shell, "path: give the file to create, or --pkcs11", "create", "--role", "wire", *passphrase)
    refused(shell, "path: give the file", "create", path, "--pkcs11", uri, "--role", "wire", *passphrase)
    refused(shell, "--solana: is a payer's key", "create", path, "--solana", "--role", "wire", *passphrase)
    refused(shell, "--role: is missing", "create", "--pkcs11", uri)
    refused(shell, "'wire' is not named for the role 'attestor'", "create", "--pkcs11", uri, "--role", "attestor")
    refused(shell, "pin-value: would be a secret", "create", "--pkcs11", uri + "&pin-value=1", "--role", "wire")
    refused(shell, "--role: is missing", "show", uri)
    assert not Path(path).exists()


def test_keys_of_other_tools_are_imported_from_files(shell: Shell, tmp_path: Path, passphrase: tuple[str, str]) -> None:
    foreign = private(tmp_path / "UTC--geth", json.dumps(create_keyfile_json(SECRET, b"theirs", iterations=10)))
    theirs = ("--source-passphrase-file", str(private(tmp_path / "theirs", "theirs")))
    refused(shell, "--role: is missing", "import", str(foreign), str(tmp_path / "a.json"), *theirs, *passphrase)
    made = ran(shell, "import", str(foreign), str(tmp_path / "a.json"), "--role", "wire", *theirs, *passphrase)
    assert (made["address"], made["role"]) == (ADDRESS, "wire")
    raw = private(tmp_path / "raw", f"0x{SECRET.hex()}\n")
    made = ran(shell, "import", str(raw), str(tmp_path / "b.json"), "--role", "relayer", *passphrase)
    assert (made["address"], made["role"]) == (ADDRESS, "relayer")
    made = ran(shell, "import", str(raw), str(tmp_path / "c.json"), "--solana", *passphrase)
    assert (made["chain"], made["role"]) == ("solana", "relayer")
    refused(shell, "not overwritten", "import", str(raw), str(tmp_path / "c.json"), "--solana", *passphrase)
    raw.chmod(0o640)
    refused(shell, "open to others", "import", str(raw), str(tmp_path / "d.json"), "--role", "wire", *passphrase)
    # Nothing takes a secret as an argument: what is given is a file's name.
    refused(shell, "does not exist", "import", SECRET.hex(), str(tmp_path / "d.json"), "--role", "wire", *passphrase)


def test_the_configured_folder_is_listed(shell: Shell, tmp_path: Path) -> None:
    keys = shell.config.parent / "keys"
    keys.mkdir(exist_ok=True)
    create_key(keys / "attestor-7.json", "x", SECRET, iterations=1)
    create_solana_key(keys / "payer-7.json", "x", SECRET, iterations=1)
    private(keys / "broken.json", "{}")
    listed = {Path(key["file"]).name: key for key in shell.json("keys", "list")}
    assert listed["attestor-7.json"] | {"file": ""} == {
        "file": "", "address": ADDRESS, "role": "attestor", "chain": "evm",
    }  # fmt: skip
    assert listed["payer-7.json"]["chain"] == "solana"
    assert "is not a keystore" in listed["broken.json"]["problem"]
    text = shell("keys", "list").stdout
    assert all(word in text for word in ("attestor-7.json", ADDRESS, "broken.json", "is not a keystore"))
    assert ran(shell, "list", str(keys)) == shell.json("keys", "list")
    refused(shell, "nowhere: cannot be read", "list", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("role", "says"),
    [
        ("attestor", "crossmargin rotation plan --replace {old}={new}"),
        ("relayer", "send funds to {new}"),
        ("wire", "every peer replace {old} by {new}"),
        ("evidence", "in the place of the old file"),
    ],
)
def test_a_key_is_succeeded_by_one_of_its_role(
    shell: Shell, tmp_path: Path, passphrase: tuple[str, str], role: Any, says: str
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    create_key(old, "x", SECRET, role=role, iterations=1)
    content = old.read_bytes()
    made = ran(shell, "rotate", str(old), str(new), *passphrase)
    assert (made["old"]["address"], made["new"]["role"]) == (ADDRESS, role)
    assert made["new"]["address"] != ADDRESS
    assert says.format(old=ADDRESS, new=made["new"]["address"]) in made["next"]
    assert old.read_bytes() == content
    refused(shell, "not overwritten", "rotate", str(old), str(new), *passphrase)
    refused(shell, "path: give the file", "rotate", str(old), *passphrase)


def test_a_solana_payer_is_succeeded_by_another(shell: Shell, tmp_path: Path, passphrase: tuple[str, str]) -> None:
    create_solana_key(tmp_path / "old.json", "x", iterations=1)
    made = ran(shell, "rotate", str(tmp_path / "old.json"), str(tmp_path / "new.json"), *passphrase)
    assert made["new"]["chain"] == "solana"
    foreign = private(tmp_path / "foreign.json", json.dumps(create_keyfile_json(SECRET, b"x", iterations=10)))
    refused(shell, "says no role; import it first", "rotate", str(foreign), str(tmp_path / "n.json"), *passphrase)
