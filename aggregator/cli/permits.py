"""``crossmargin permits``: take collateral out of a vault at once, with the attestors' permit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import (
    AccountArgument,
    ConfigOption,
    JsonOption,
    app,
    guarded,
    out,
    print_json,
    settings_of,
    table,
)
from aggregator.cli.stress import ask
from aggregator.cli.whatif import asset_of
from aggregator.domain.errors import InputError
from aggregator.domain.units import format_amount, parse_units

if TYPE_CHECKING:
    from aggregator.config import Settings

permits_app = typer.Typer(
    help="Ask the attestors to let collateral go at once.", rich_markup_mode=None, no_args_is_help=True
)
app.add_typer(permits_app, name="permits")

_AMOUNT = "AMOUNT:ASSET@CHAIN, e.g. 10:USDC@alpha, or AMOUNT:CAIP-19"
AmountOption = Annotated[str, typer.Option(help=f"What leaves its vault: {_AMOUNT}.")]
ToOption = Annotated[str, typer.Option(help="Who receives it: an address on the vault's chain.")]


@permits_app.command("message")
def permits_message(
    account: AccountArgument,
    amount: AmountOption,
    to: ToOption,
    vault: Annotated[str | None, typer.Option(help="The vault's address; default: the only one there.")] = None,
    nonce: Annotated[str | None, typer.Option(help="0x + 64 hex digits; default: random.")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, help="Default: the newest certified one.")] = None,
    expiry: Annotated[int | None, typer.Option(min=0, help="Unix seconds; default: the latest.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print what the account's controller signs to ask for a permit, and the options to ask with."""

    def work() -> None:
        settings = settings_of(config)
        asset, units = _amount(settings, amount)
        given = {"vault": vault, "nonce": nonce, "epoch": epoch, "expiry": expiry}
        query = {name: str(value) for name, value in given.items() if value is not None}
        made = ask(
            settings, "GET", f"/v1/accounts/{account}/permits/message", asset=asset, amount=units, to=to, **query
        )
        if json_output:
            print_json(made)
            return
        how = "eth_signTypedData_v4" if made["form"] == "eip712" else "Ed25519, as text"
        out.print(Text(f"{made['signer']} signs ({how}):"))
        out.print(Text(made["message"]))
        options = " ".join(f"--{name} {made[name]}" for name in ("vault", "to", "nonce", "epoch", "expiry"))
        command = f"crossmargin permits request {account} --amount {amount} {options} --signature …"
        out.print(Text(f"then: {command}"), soft_wrap=True)

    guarded(work)


@permits_app.command("request")
def permits_request(
    account: AccountArgument,
    amount: AmountOption,
    to: ToOption,
    vault: Annotated[str, typer.Option(help="The vault's address.")],
    nonce: Annotated[str, typer.Option(help="The nonce that was signed.")],
    epoch: Annotated[int, typer.Option(min=0, help="The epoch that was signed.")],
    expiry: Annotated[int, typer.Option(min=0, help="The expiry that was signed, Unix seconds.")],
    signature: Annotated[str, typer.Option(help="The controller's: 0x hex of 65 bytes (EVM), base58 (Solana).")],
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Have the attestors sign a permit (crossmargin permits message prints what the controller signs)."""

    def work() -> None:
        settings = settings_of(config)
        asset, units = _amount(settings, amount)
        body = {
            "asset": asset,
            "amount": units,
            "vault": vault,
            "to": to,
            "nonce": nonce,
            "epoch": epoch,
            "expiry": expiry,
            "signature": signature,
        }
        made = ask(settings, "POST", f"/v1/accounts/{account}/permits", body)
        if json_output:
            print_json(made)
            return
        signers = ", ".join(str(signer["index"]) for signer in made["signatures"])
        out.print(Text(f"signed by attestors {signers}: the depositor may withdraw until {expiry}"))
        out.print(Text(f"digest {made['digest']}; --json shows the signatures that the vault takes", style="dim"))

    guarded(work)


@permits_app.command("list")
def permits_list(account: AccountArgument, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List an account's permits that may still be used; their amounts count 0 until they expire."""

    def work() -> None:
        settings = settings_of(config)
        page = ask(settings, "GET", f"/v1/accounts/{account}/permits")
        if json_output:
            print_json(page)
            return
        rows = {row.id: row for row in settings.assets}
        shown = table("", "nonce", ">amount", "asset", "to", ">epoch", ">expiry", "signed")
        for permit in page["permits"]:
            row = rows.get(permit["asset"])
            units = format_amount(int(permit["amount"]), row.decimals) if row else permit["amount"]
            shown.add_row(
                *(permit["nonce"][:12] + "…", units, row.symbol if row else permit["asset"], permit["to"]),
                *(str(permit["epoch"]), str(permit["expiry"]), "yes" if permit["signed"] else "no quorum"),
            )
        out.print(shown if page["permits"] else "No permit may still be used.")

    guarded(work)


def _amount(settings: Settings, text: str) -> tuple[str, str]:
    """Return asset (CAIP-19) and base units of ``AMOUNT:ASSET@CHAIN``."""
    amount, colon, name = text.partition(":")
    if not colon:
        raise InputError("--amount", f"{text!r} must be {_AMOUNT}")
    row: Any = asset_of(settings, name, "--amount")
    return row.id, str(parse_units(amount, row.decimals, "--amount"))
