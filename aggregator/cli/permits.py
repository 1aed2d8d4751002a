"""``crossmargin permits``: take collateral out of a vault at once, with the attestors' permit; or keep it in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import (
    AccountArgument,
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    guarded,
    opened,
    out,
    print_json,
    run_async,
    settings_of,
    table,
)
from aggregator.cli.stress import ask
from aggregator.cli.whatif import asset_of
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.permits import HoldRecord, pack_indices
from aggregator.domain.units import format_amount, parse_units

if TYPE_CHECKING:
    from aggregator.config import Settings
    from aggregator.domain.permits import SignedHold

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


@permits_app.command("hold")
def permits_hold(
    account: AccountArgument,
    chain: Annotated[str, typer.Option(help="The vault's chain: its name or CAIP-2 id.")],
    vault: Annotated[str | None, typer.Option(help="The vault's address; default: the only one there.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each attestor.")] = 10.0,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Have the attestors keep an account in trouble in a vault for an hour, and print what to bring to the vault.

    A hold cannot be ended early. To prolong it, ask again: each newer epoch gives an hour from then.
    """
    from aggregator.service.attest import Sets
    from aggregator.service.permits import collect_hold, hold_until

    async def work() -> SignedHold:
        async with opened(config) as (settings, store), bootstrap.attestor_clients(settings) as clients:
            place = next((row.id for row in settings.chains if chain in (row.id, row.name)), "")
            if not place:
                raise UnknownError("--chain", chain, f"configured are {', '.join(row.name for row in settings.chains)}")
            known, newest = await store.account(account), await store.certificate()
            if newest is None:
                raise UnknownError("epoch", "newest", "none is certified yet; try again soon")
            epoch, deployment = newest.header.epoch, bootstrap.deployment_of(settings)
            until = hold_until(epoch, settings.service.epoch_seconds)
            hold = HoldRecord(known.id, place, vault or _only_vault(settings, place), until, epoch)
            group = Sets(deployment, await store.rotations()).at(epoch)
            return await collect_hold(clients, deployment.deployment_id(), group, hold, seconds=timeout)

    signed = run_async(work)
    hold, signatures = signed.hold, [("0x" + a.r.hex(), "0x" + a.vs.hex()) for a in signed.attestations]
    indices = hex(pack_indices(signed.attestations))
    if json_output:
        of = zip(signed.attestations, signatures, strict=True)
        shown = [{"index": a.index, "r": r, "vs": vs} for a, (r, vs) in of]
        print_json(hold._asdict() | {"digest": "0x" + signed.digest.hex(), "signatures": shown, "indices": indices})
        return
    out.print(Text(f"held until {hold.until} (Unix seconds) once anybody brings this to {hold.chain}:{hold.vault}:"))
    pairs = ",".join(f"({r},{vs})" for r, vs in signatures)
    out.print(Text(f"hold({hold.account}, {hold.until}, {hold.epoch}, {indices}, [{pairs}])"), soft_wrap=True)


def _only_vault(settings: Settings, chain: str) -> str:
    known = bootstrap.vaults_of(settings).get(chain, ())
    if len(known) != 1:
        raise InputError("--vault", f"{len(known)} vaults are known on {chain}", f"name one of: {', '.join(known)}")
    return known[0]


def _amount(settings: Settings, text: str) -> tuple[str, str]:
    """Return asset (CAIP-19) and base units of ``AMOUNT:ASSET@CHAIN``."""
    amount, colon, name = text.partition(":")
    if not colon:
        raise InputError("--amount", f"{text!r} must be {_AMOUNT}")
    row: Any = asset_of(settings, name, "--amount")
    return row.id, str(parse_units(amount, row.decimals, "--amount"))
