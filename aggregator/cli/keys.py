"""``crossmargin keys``: key files of attestors and payers."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from aggregator.cli.frame import (
    JsonOption,
    app,
    bootstrap,
    fail,
    guarded,
    out,
    print_json,
    read_file,
)

keys_app = typer.Typer(help="Create and show key files of attestors and payers.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")


def _passphrase(passphrase_file: Path | None, confirm: bool) -> str:
    if passphrase_file is not None:
        return read_file(passphrase_file).strip()
    first = getpass.getpass("passphrase: ")
    if confirm and getpass.getpass("again: ") != first:
        fail("the two passphrases differ", 2)
    return first


@keys_app.command("create")
def keys_create(
    path: Annotated[Path, typer.Argument(help="File to create; an existing one is never overwritten.")],
    solana: Annotated[bool, typer.Option(help="An Ed25519 key (a Solana payer) instead of secp256k1.")] = False,
    passphrase_file: Annotated[Path | None, typer.Option(help="Read the passphrase from a file; default: ask.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Create an encrypted key file (keystore v3, readable by its owner only)."""

    def work() -> None:
        address = bootstrap.create_key_file(path, _passphrase(passphrase_file, True), solana=solana)
        if json_output:
            print_json({"file": str(path), "address": address})
        else:
            out.print(f"{address}  {path}")

    guarded(work)


@keys_app.command("show")
def keys_show(path: Annotated[Path, typer.Argument(help="A key file.")], json_output: JsonOption = False) -> None:
    """Show a key file's address; the secret stays where it is."""

    def work() -> None:
        address = bootstrap.show_key_file(path)
        if json_output:
            print_json({"file": str(path), "address": address})
        else:
            out.print(address)

    guarded(work)
