"""``crossmargin accounts``: open, list and link margin accounts."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

import typer

from aggregator.cli.frame import (
    AccountArgument,
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    opened,
    out,
    print_json,
    run_async,
    styled,
    table,
)
from aggregator.cli.margin import flag_names, fraction, margin_json
from aggregator.config import Settings
from aggregator.domain.units import format_usd
from aggregator.service.accounts import AccountBook, link_message

accounts_app = typer.Typer(help="Open, list and link margin accounts.", rich_markup_mode=None)
app.add_typer(accounts_app, name="accounts")


@accounts_app.callback(invoke_without_command=True)
def accounts_list(ctx: typer.Context, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List accounts with their newest margin."""
    if ctx.invoked_subcommand is not None:
        return

    async def work() -> None:
        async with opened(config) as (_, store):
            rows, newest = await store.accounts(), await store.epoch()
        margins = {m.account: m for m in newest.margins} if newest else {}
        now = int(time.time())
        if json_output:
            print_json(
                [
                    {
                        "id": a.id, "label": a.label, "kind": a.kind, "controller": a.controller, "home": a.home,
                        "links": list(a.links),
                        "margin": margin_json(margins[a.id], newest.header.epoch, newest.header.valid_until, now)
                        if newest and a.id in margins else None,
                    }
                    for a in rows
                ]
            )  # fmt: skip
            return
        title = f"epoch {newest.header.epoch}, {now - newest.cut_time} s ago" if newest else "no certified epoch yet"
        shown = table(
            title, "account", "label", "kind", "status", ">equity", ">free collateral", ">health", "flags", ">links"
        )
        for a in rows:
            m = margins.get(a.id)
            shown.add_row(
                a.id[:12] + "…", a.label, a.kind, styled(m.status) if m else "", format_usd(m.equity) if m else "",
                format_usd(m.free_collateral) if m else "", fraction(m.health[0]) if m else "",
                ", ".join(flag_names(m.flags)) if m else "", str(len(a.links)),
            )  # fmt: skip
        out.print(shown)

    run_async(work)


@accounts_app.command("open")
def accounts_open(
    controller: Annotated[str, typer.Option(help="CAIP-10 address that controls the account.")],
    label: Annotated[str, typer.Option(help="A name for people.")] = "",
    kind: Annotated[str, typer.Option(help="risk-bearing or monitored.")] = "risk-bearing",
    home: Annotated[
        str | None, typer.Option(help="CAIP-2 destination of its budget; default: the controller's.")
    ] = None,
    salt: Annotated[str | None, typer.Option(help="0x + 64 hex digits; default: random.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Open a margin account."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            book = _book(settings, store)
            made = await book.open_account(controller, salt or "0x" + secrets.token_hex(32), kind, home, label)
        if json_output:
            print_json({"id": made.id, "controller": made.controller, "kind": made.kind, "home": made.home})
        else:
            out.print(f"opened {made.id}\nbudget at {made.home}; link addresses with: crossmargin accounts link --help")

    run_async(work)


def _book(settings: Settings, store: Any) -> AccountBook:
    deployment = bootstrap.deployment_of(settings)
    return AccountBook(
        store,
        bootstrap.SystemClock(),
        deployment.deployment_id(),
        [c.id for c in settings.chains],
        [d.chain for d in settings.destinations],
    )


NonceOption = Annotated[int, typer.Option(help="Rises with each link of the same pair.")]
ExpiryOption = Annotated[
    int | None, typer.Option(help="Unix seconds until which the link may be recorded; default: in a day.")
]


@accounts_app.command("message")
def accounts_message(
    account: AccountArgument,
    member: Annotated[str, typer.Option(help="CAIP-10 address that is to back the account.")],
    side: Annotated[str, typer.Option(help="invite (the controller signs) or accept (the member signs).")],
    nonce: NonceOption = 1,
    expiry: ExpiryOption = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print what one side of a link signs: EIP-712 JSON for an EVM wallet, a text for a Solana wallet."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            known = await store.account(account)
        until = expiry if expiry is not None else int(time.time()) + 86_400
        deployment_id = bootstrap.deployment_of(settings).deployment_id()
        message = link_message(deployment_id, known, member, nonce, until, side)
        if json_output:
            print_json({"expiry": until, "nonce": nonce, "side": side, "message": message})
        elif isinstance(message, str):
            out.print(message)
        else:
            print_json(message)

    run_async(work)


@accounts_app.command("link")
def accounts_link(
    account: AccountArgument,
    member: Annotated[str, typer.Option(help="CAIP-10 address that is to back the account.")],
    invite: Annotated[str, typer.Option(help="The controller's signature (0x hex, or base58 on Solana).")],
    accept: Annotated[str, typer.Option(help="The member's signature.")],
    expiry: Annotated[int, typer.Option(help="The expiry that both signed.")],
    nonce: NonceOption = 1,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Record a link that both sides signed (crossmargin accounts message prints what they sign)."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            known = await store.account(account)
            link = await _book(settings, store).add_link(
                known.id, known.controller, member, nonce, expiry, invite, accept
            )
        if json_output:
            print_json(link._asdict())
        else:
            out.print(f"{link.member} backs {known.label or known.id} (entry {link.position} of the links log)")

    run_async(work)


@accounts_app.command("links")
def accounts_links(account: AccountArgument, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List the links of an account."""

    async def work() -> None:
        async with opened(config) as (_, store):
            known = await store.account(account)
            links = await store.links(known.id)
        if json_output:
            print_json([link._asdict() for link in links])
            return
        shown = table("", ">entry", "member", ">nonce", "recorded")
        for link in links:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(link.recorded_at))
            shown.add_row(str(link.position), link.member, str(link.nonce), when + " UTC")
        out.print(shown)

    run_async(work)
