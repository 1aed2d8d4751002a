"""``crossmargin keys``: keys of attestors, payers, wires and evidence, in encrypted files or in tokens."""

from __future__ import annotations

import getpass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    fail,
    guarded,
    out,
    print_json,
    read_file,
    settings_of,
    styled,
    table,
)
from aggregator.domain.errors import InputError

keys_app = typer.Typer(help="Create, import and list keys, each for one role.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


class KeyRole(StrEnum):
    """What a key may sign."""

    attestor = "attestor"
    relayer = "relayer"
    wire = "wire"
    evidence = "evidence"


RoleOption = Annotated[
    KeyRole | None,
    typer.Option(help="What it will sign: statements, postings, messages between processes, or disputes."),
]
PassphraseOption = Annotated[Path | None, typer.Option(help="Read the passphrase from a file; default: ask.")]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--pkcs11",
        help="Make it inside a token: pkcs11:token=…;object=ROLE-…?module-path=…&pin-source=file:… (RFC 7512).",
    ),
]


def _passphrase(passphrase_file: Path | None, confirm: bool, what: str = "passphrase") -> str:
    if passphrase_file is not None:
        return read_file(passphrase_file).strip()
    first = getpass.getpass(f"{what}: ")
    if confirm and getpass.getpass("again: ") != first:
        fail("the two passphrases differ", 2)
    return first


def _shown(key: bootstrap.KeyFile) -> dict[str, Any]:
    shown = {"file": str(key.path), "address": key.address, "role": key.role, "chain": key.chain}
    return shown | {"problem": key.problem} if key.problem else shown


def _create(
    path: Path | None, role: KeyRole | None, solana: bool, token: str | None, file: Path | None
) -> dict[str, Any]:
    if (path is None) == (token is None):
        raise InputError("path", "give the file to create, or --pkcs11 with a URI", "one of them")
    if solana and (token is not None or role not in (None, KeyRole.relayer)):
        raise InputError("--solana", "is a payer's key in a file", "leave out --pkcs11 and other roles")
    if role is None and not solana:
        raise InputError("--role", "is missing", f"give one of {', '.join(KeyRole)}")
    if token is not None and role is not None:
        return {"uri": token, "address": bootstrap.create_token_key(token, role.value), "role": role, "chain": "evm"}
    assert path is not None
    passphrase = _passphrase(file, True)
    if solana or role is None:
        bootstrap.create_solana_key_file(path, passphrase)
    else:
        bootstrap.create_key_file(path, passphrase, role.value)
    return _shown(bootstrap.show_key_file(path))


@keys_app.command("create")
def keys_create(
    path: Annotated[Path | None, typer.Argument(help="File to create; an existing one is never overwritten.")] = None,
    role: RoleOption = None,
    solana: Annotated[bool, typer.Option(help="An Ed25519 key (a Solana payer) instead of secp256k1.")] = False,
    token: TokenOption = None,
    passphrase_file: PassphraseOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create a key: in an encrypted file (keystore v3, readable by its owner only), or inside a PKCS#11 token."""

    def work() -> None:
        made = _create(path, role, solana, token, passphrase_file)
        if json_output:
            print_json(made)
        else:
            out.print(f"{made['address']}  {made['role']}  {made.get('file') or made['uri']}", soft_wrap=True)

    guarded(work)


@keys_app.command("import")
def keys_import(
    source: Annotated[Path, typer.Argument(help="Another tool's keystore v3 file, or a file of 64 hex digits.")],
    path: Annotated[Path, typer.Argument(help="File to create; an existing one is never overwritten.")],
    role: RoleOption = None,
    solana: Annotated[bool, typer.Option(help="The 32 bytes are an Ed25519 seed (a Solana payer).")] = False,
    source_passphrase_file: Annotated[
        Path | None, typer.Option(help="Read the keystore's own passphrase from a file; default: ask.")
    ] = None,
    passphrase_file: PassphraseOption = None,
    json_output: JsonOption = False,
) -> None:
    """Import a key from a file, never from the command line; the source stays as it is: destroy it afterwards."""

    def work() -> None:
        if role is None and not solana:
            raise InputError("--role", "is missing", f"give one of {', '.join(KeyRole)}")
        bootstrap.import_key_file(
            source,
            lambda: _passphrase(source_passphrase_file, False, f"passphrase of {source}"),
            path,
            _passphrase(passphrase_file, True),
            "relayer" if role is None else role.value,
            solana=solana,
        )
        made = _shown(bootstrap.show_key_file(path))
        if json_output:
            print_json(made)
        else:
            out.print(f"{made['address']}  {made['role']}  {path}; now destroy {source}")

    guarded(work)


@keys_app.command("list")
def keys_list(
    folder: Annotated[Path | None, typer.Argument(help="A folder of key files; default: the configuration's.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """List key files with their addresses and roles; the secrets stay where they are."""

    def work() -> None:
        place = folder or Path(settings_of(config).service.data) / "keys"
        found = bootstrap.list_key_files(place)
        if json_output:
            print_json([_shown(key) for key in found])
            return
        shown = table("", "file", "role", "chain", "address")
        for key in found:
            if key.problem:
                shown.add_row(key.path.name, styled("failed"), "", key.problem)
            else:
                shown.add_row(key.path.name, key.role or "none: import it", key.chain, key.address)
        out.print(shown)

    guarded(work)


@keys_app.command("show")
def keys_show(
    key: Annotated[str, typer.Argument(help="A key file, or pkcs11:… or kms:… with --role.")],
    role: RoleOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a key's address and role; the secret stays where it is."""

    def work() -> None:
        if key.startswith(("pkcs11:", "kms:")):
            if role is None:
                raise InputError("--role", "is missing", "give the role that the key's name begins with")
            shown = {"uri": key, "address": bootstrap.show_token_key(key, role.value), "role": role, "chain": "evm"}
        else:
            shown = _shown(bootstrap.show_key_file(Path(key)))
            if role is not None and shown["role"] != role:
                raise InputError(
                    "--role", f"is {role.value}, the key's is {shown['role'] or 'missing'}", "leave it out"
                )
        if json_output:
            print_json(shown)
        else:
            out.print(shown["address"])

    guarded(work)


@keys_app.command("rotate")
def keys_rotate(
    old: Annotated[Path, typer.Argument(help="The key file to be succeeded; it stays as it is.")],
    new: Annotated[Path | None, typer.Argument(help="File to create for the new key.")] = None,
    token: TokenOption = None,
    passphrase_file: PassphraseOption = None,
    json_output: JsonOption = False,
) -> None:
    """Create the successor of a key, of the same role, and say what makes it take over."""

    def work() -> None:
        before = bootstrap.show_key_file(old)
        if not before.role:
            raise InputError(str(old), "says no role", "import it first: crossmargin keys import")
        solana = before.chain == "solana"
        made = _create(new, None if solana else KeyRole(before.role), solana, token, passphrase_file)
        todo = _TAKES_OVER[before.role].format(old=before.address, new=made["address"])
        if json_output:
            print_json({"old": _shown(before), "new": made, "next": todo})
        else:
            out.print(f"{before.address} -> {made['address']}  {made['role']}\n{todo}")

    guarded(work)


_TAKES_OVER = {
    "attestor": "next, by the coordinator: crossmargin rotation plan --replace {old}={new}",
    "relayer": "next: send funds to {new}, name it as payer_key in the configuration, restart, then empty {old}",
    "wire": "next: name it as wire_key, and have every peer replace {old} by {new} in its configuration",
    "evidence": "next: put it in the place of the old file, which verifies the disputes signed so far: keep it",
}
