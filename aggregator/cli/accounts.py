"""``crossmargin accounts``: open, list and link margin accounts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

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
    refuse_json_before,
    run_async,
    styled,
    table,
)
from aggregator.cli.margin import flag_names, fraction, margin_json
from aggregator.domain.units import format_usd

if TYPE_CHECKING:
    from aggregator.config import Settings
    from aggregator.domain.certificate import LinkRecord
    from aggregator.domain.links import LinkMessage
    from aggregator.service.accounts import AccountBook

accounts_app = typer.Typer(help="Open, list and link margin accounts.", rich_markup_mode=None)
app.add_typer(accounts_app, name="accounts")


@accounts_app.callback(invoke_without_command=True)
def accounts_list(ctx: typer.Context, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List accounts with their newest margin."""
    if ctx.invoked_subcommand is not None:
        refuse_json_before(ctx, json_output)
        return

    async def work() -> None:
        async with opened(config) as (_, store):
            rows, newest = await store.accounts(), await store.epoch(margins=True)
        margins = {m.account: m for m in newest.margins} if newest else {}
        now = int(time.time())
        if json_output:
            print_json(
                [
                    {
                        "id": a.id, "label": a.label, "kind": a.kind, "controller": a.controller, "home": a.home,
                        "links": list(a.links), "ending": list(a.ending), "shares": dict(a.shares),
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
    from aggregator.service.accounts import AccountBook

    deployment = bootstrap.deployment_of(settings)
    return AccountBook(
        store,
        bootstrap.SystemClock(),
        deployment.deployment_id(),
        [c.id for c in settings.chains],
        [d.chain for d in settings.destinations],
        bootstrap.chain_witness(settings),
    )


MemberOption = Annotated[str, typer.Option(help="CAIP-10 address that backs the account.")]
NonceOption = Annotated[int, typer.Option(help="The nonce that was signed.")]
ExpiryOption = Annotated[int, typer.Option(help="The expiry that was signed, Unix seconds.")]
SIGNATURE_HELP = "0x hex (EVM), base58 (Solana), eip1271:0x… (a contract) or pda:<record> (program-derived)"


@accounts_app.command("message")
def accounts_message(
    account: AccountArgument,
    member: MemberOption,
    verb: Annotated[
        str,
        typer.Option("--verb", "--side", help="invite (the controller's), accept (the member's) or revoke."),
    ],
    by: Annotated[str, typer.Option(help="Who signs a revoke: controller or member.")] = "controller",
    nonce: Annotated[int | None, typer.Option(help="Rises with what a pair signs; default: the least unused.")] = None,
    expiry: Annotated[
        int | None, typer.Option(help="Unix seconds until which it may be recorded; default: in a day.")
    ] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print what one side of a link signs: EIP-712 JSON for an EVM wallet, a text for a Solana wallet."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            message = await _book(settings, store).message(account, member, verb, by, nonce, expiry)
        _print_message(message, json_output)

    run_async(work)


def _print_message(message: LinkMessage, json_output: bool) -> None:
    """Print what a wallet is given to sign."""
    if json_output:
        shown = message._asdict() | {"message": message.text if message.typed is None else message.typed}
        print_json({name: shown[name] for name in ("verb", "signer", "nonce", "expiry", "digest", "message")})
    elif message.typed is None:
        out.print(message.text, soft_wrap=True)
    else:
        print_json(message.typed)


@accounts_app.command("link")
def accounts_link(
    account: AccountArgument,
    member: MemberOption,
    invite: Annotated[str, typer.Option(help=f"The controller's signature: {SIGNATURE_HELP}.")],
    accept: Annotated[str, typer.Option(help="The member's signature, likewise.")],
    expiry: ExpiryOption,
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


@accounts_app.command("revoke")
def accounts_revoke(
    account: AccountArgument,
    member: MemberOption,
    signature: Annotated[str, typer.Option(help=f"Of the side that revokes: {SIGNATURE_HELP}.")],
    nonce: NonceOption,
    expiry: ExpiryOption,
    by: Annotated[str, typer.Option(help="Whose signature it is: controller or member.")] = "controller",
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Record that one side revokes a link: its assets count 0 at once, its debts until the link ends."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            known = await store.account(account)
            entry = await _book(settings, store).revoke_link(
                known.id, known.controller, member, nonce, expiry, by, signature
            )
            cooldown = settings.service.link_cooldown
        if json_output:
            print_json(entry._asdict())
        else:
            out.print(
                f"{entry.member} is revoked (entry {entry.position} of the links log): its assets count 0 from now on; "
                f"the link ends {cooldown} s from now or later, once the address owes nothing"
            )

    run_async(work)


share_app = typer.Typer(help="Share an account's margin out among destinations.", rich_markup_mode=None)
accounts_app.add_typer(share_app, name="share")
SharesArgument = Annotated[
    str, typer.Argument(help="eip155:1=7000,solana:…=3000: destinations (CAIP-2) ascending, parts of 10,000.")
]


@share_app.command("message")
def share_message(
    account: AccountArgument,
    shares: SharesArgument,
    nonce: Annotated[
        int | None, typer.Option(help="Rises with the account's shares; default: the least unused.")
    ] = None,
    expiry: Annotated[
        int | None, typer.Option(help="Unix seconds until which it may be recorded; default: in a day.")
    ] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print what the controller signs: EIP-712 JSON for an EVM wallet, a text for a Solana wallet."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            message = await _book(settings, store).shares_message(account, shares, nonce, expiry)
        _print_message(message, json_output)

    run_async(work)


@share_app.command("record")
def share_record(
    account: AccountArgument,
    shares: SharesArgument,
    signature: Annotated[str, typer.Option(help="The controller's: 0x hex (EVM), base58 (Solana) or eip1271:0x….")],
    nonce: NonceOption,
    expiry: ExpiryOption,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Record how the controller shares the account out: it takes effect with the next statement."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            known = await store.account(account)
            book = _book(settings, store)
            entry = await book.set_shares(known.id, known.controller, shares, nonce, expiry, signature)
        if json_output:
            print_json(entry._asdict())
        else:
            out.print(
                f"{known.label or known.id} is shared out as {entry.shares} (entry {entry.position} of the links log); "
                "what may still be drawn on earlier statements is charged until it expires",
                soft_wrap=True,
            )

    run_async(work)


@share_app.command("show")
def share_show(account: AccountArgument, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Show how an account is shared out now."""

    async def work() -> None:
        async with opened(config) as (_, store):
            known = await store.account(account)
        if json_output:
            print_json({"account": known.id, "home": known.home, "shares": dict(known.shares)})
            return
        for destination, parts in known.shares or ((known.home, 10_000),):
            out.print(f"{destination}  {parts / 100:g}%")

    run_async(work)


@accounts_app.command("links")
def accounts_links(account: AccountArgument, config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List what the links log says of an account, and what of it stands."""

    async def work() -> None:
        async with opened(config) as (_, store):
            known = await store.account(account)
            links = await store.links(known.id)
        if json_output:
            print_json([link._asdict() for link in links])
            return
        _print_links(links)
        for member in known.ending:
            out.print(f"ending: {member} (its assets count 0, its debts stand)", style="yellow")

    run_async(work)


@accounts_app.command("log")
def accounts_log(
    after: Annotated[int, typer.Option(min=0, help="Entry after which to begin; 0 = the first.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, oldest first.")] = 100,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """List the links log of all accounts in its order: it is append-only, so a replica asks for what is new."""

    async def work() -> None:
        async with opened(config) as (_, store):
            rest = [link for link in await store.links() if link.position > after]
            labels = {account.id: account.label for account in await store.accounts()}
        page = rest[:limit]
        if json_output:
            print_json([link._asdict() for link in page])
            return
        if not page:
            out.print(f"The links log has no entry after {after}.")
            return
        _print_links(page, labels)
        if len(rest) > limit:
            out.print(f"{len(rest) - limit} more: --after {page[-1].position}")

    run_async(work)


def _print_links(links: Sequence[LinkRecord], labels: Mapping[str, str] | None = None) -> None:
    """Print entries of the links log; with ``labels`` by account id, also whose they are."""
    whose = [] if labels is None else ["account"]
    shown = table("", ">entry", *whose, "kind", "member", "by", ">nonce", "recorded")
    for link in links:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(link.recorded_at))
        given = (("controller", link.invite_signature), ("member", link.accept_signature))
        by = ", ".join(side for side, signature in given if signature)
        account = [] if labels is None else [labels.get(link.account) or link.account[:12] + "…"]
        shown.add_row(
            str(link.position), *account, link.kind, link.member or link.shares, by, str(link.nonce), when + " UTC"
        )
    out.print(shown)
