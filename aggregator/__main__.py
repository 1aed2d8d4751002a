"""The command line: ``crossmargin --help``.

Every command takes ``--json``; errors go to stderr and exit with 1 (refused, failed) or 2 (unusable input).
"""

from __future__ import annotations

import asyncio
import getpass
import importlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aggregator.config import Settings, load_settings
from aggregator.domain.errors import CrossmarginError, InputError, UnknownError
from aggregator.domain.report import AccountMargin, Component, Flag
from aggregator.domain.units import format_amount, format_usd
from aggregator.service.accounts import AccountBook, link_message
from aggregator.service.telemetry import configure_logging
from proofs.bundle import Bundle, parse_bundle
from proofs.document import parse_json
from proofs.errors import ProofError
from proofs.pyth import verify_price_file
from proofs.verify import verify_bundle

T = TypeVar("T")
CONFIG_PLACES = ("crossmargin.toml", ".run/devnet.toml")
BUNDLE_LIMIT = 8 << 20

app = typer.Typer(
    help="Cross-chain collateral, one attested margin account.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
accounts_app = typer.Typer(help="Open, list and link margin accounts.", rich_markup_mode=None)
keys_app = typer.Typer(help="Create and show key files of attestors and payers.", no_args_is_help=True)
prices_app = typer.Typer(help="Check signed prices.", no_args_is_help=True)
app.add_typer(accounts_app, name="accounts")
app.add_typer(keys_app, name="keys")
app.add_typer(prices_app, name="prices")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="CROSSMARGIN_CONFIG",
        help="The TOML file; default: crossmargin.toml here, else a running demo's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AccountArgument = Annotated[str, typer.Argument(help="Account id, its beginning (0x + 8 digits or more), or label.")]

if TYPE_CHECKING:
    from aggregator import bootstrap
    from aggregator.ports import Store
else:

    class _Lazy:
        """The composition root, imported by the first command that needs it: it loads every adapter."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("aggregator.bootstrap"), name)

    bootstrap = _Lazy()

PIPED_WIDTH = 160  # a pipe has no width of its own; rich would assume 80 and fold every table
out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one line to stderr and leave with ``code``."""
    err.print(Text("error: ", style="bold red") + Text(message))
    raise typer.Exit(code)


def guarded(work: Callable[[], T]) -> T:
    """Run a command's work; turn errors raised on purpose into one clear line and an exit code."""
    try:
        return work()
    except InputError as error:
        fail(str(error), 2)
    except (CrossmarginError, ProofError) as error:
        fail(str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function as a command's work."""
    return guarded(lambda: asyncio.run(work()))


def settings_of(config: Path | None) -> Settings:
    """Load the configuration named, or the first found in the usual places."""
    path = config or next((Path(p) for p in CONFIG_PLACES if Path(p).is_file()), Path(CONFIG_PLACES[0]))
    return load_settings(path)


@asynccontextmanager
async def opened(config: Path | None) -> AsyncIterator[tuple[Settings, Store]]:
    """Open what a configuration names: its settings and its store."""
    settings = settings_of(config)
    store = await bootstrap.open_store(settings)
    try:
        yield settings, store
    finally:
        await store.close()


def print_json(value: object) -> None:
    """Print JSON to stdout, exact integers kept."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(title: str, *columns: str) -> Table:
    """Return an empty table; columns that begin with ``>`` align right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


STYLES = {"healthy": "green", "unhealthy": "bold red", "unknown": "yellow", "ok": "green", "failed": "bold red"}


def styled(word: str) -> Text:
    """Return a status word in its colour."""
    return Text(word, style=STYLES.get(word, ""))


@app.command()
def run(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Run the service: epochs, attestors, relayer and API, until interrupted."""
    configure_logging(json_lines=json_output)

    async def work() -> None:
        settings = settings_of(config)
        async with bootstrap.build_service(settings) as service:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for name in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(name, stop.set)
            err.print(f"crossmargin serves on http://{settings.service.listen} (docs at /docs); Ctrl-C stops it")
            await service.run(stop)

    run_async(work)


@app.command()
def check(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Probe chains, venues, feeds, keys and destinations with the methods really used."""

    async def work() -> bool:
        findings = await bootstrap.preflight(settings_of(config))
        if json_output:
            print_json([f._asdict() for f in findings])
        else:
            shown = table("", "", "what", "found")
            for f in findings:
                shown.add_row(styled(f.code), f.scope, f.detail)
            out.print(shown)
        return all(f.code == "ok" for f in findings)

    if not run_async(work):
        raise typer.Exit(1)


def _fraction(value: float | None) -> str:
    return "∞" if value is None else f"{value:.4f}"


def _flags(flags: int) -> list[str]:
    return [name.lower().replace("_", "-") for name, bit in Flag.__members__.items() if flags & bit]


def _margin_json(margin: AccountMargin, epoch: int, valid_until: int, now: int) -> dict[str, Any]:
    stale = now >= valid_until or bool(margin.flags & Flag.STALE)
    return {
        "account": margin.account,
        "epoch": epoch,
        "as_of": margin.as_of,
        "valid_until": valid_until,
        "stale": stale,
        "usable": str(0 if stale else max(leaf.budget for leaf in margin.leaves)),
        "status": margin.status,
        "flags": _flags(margin.flags),
        "equity": str(margin.equity),
        "free_collateral": str(margin.free_collateral),
        "maintenance_excess": {k: str(v) for k, v in margin.maintenance_excess._asdict().items()},
        "health": dict(zip(("low", "mid", "high"), margin.health, strict=True)),
        "leaves": [
            {k: str(v) if isinstance(v, int) and k not in ("epoch", "as_of", "valid_until", "flags") else v
             for k, v in leaf._asdict().items()}
            for leaf in margin.leaves
        ],
        "components": [_component_json(c) for c in margin.components],
        "findings": [f._asdict() for f in margin.findings],
    }  # fmt: skip


def _component_json(c: Component) -> dict[str, Any]:
    document = c._asdict()
    document["position"] = {
        k: str(v) if k in ("quantity", "amount", "pending") else v for k, v in c.position._asdict().items()
    }
    document["initial"], document["maintenance"] = c.initial._asdict(), c.maintenance._asdict()
    for key in ("value", "counted_initial", "counted_maintenance"):
        document[key] = str(document[key])
    return document


@app.command()
def margin(
    account: AccountArgument,
    epoch: Annotated[int | None, typer.Option(help="Epoch number; default: the newest certified.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Explain one account's margin: every position, price, haircut and what it counts."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            found = await store.account(account)
            answer = await store.margin(found.id, epoch)
            if answer is None:
                raise UnknownError(
                    "epoch", str(epoch) if epoch is not None else "newest", "none certified has this account"
                )
            record, explained = answer
            now = int(time.time())
            if json_output:
                print_json(_margin_json(explained, record.header.epoch, record.header.valid_until, now))
                return
            _print_margin(settings, found.label or found.id, found.kind, explained, record.header, now)

    run_async(work)


def _print_margin(settings: Settings, name: str, kind: str, m: AccountMargin, header: Any, now: int) -> None:
    stale = now >= header.valid_until or bool(m.flags & Flag.STALE)
    home = max(m.leaves, key=lambda leaf: leaf.budget)
    out.print(Text.assemble((name, "bold"), f"  {kind}  ", (m.status, STYLES[m.status]), "  ", (
        "STALE: usable 0" if stale else "", "bold yellow")))  # fmt: skip
    out.print(f"epoch {header.epoch}, as of {now - m.as_of} s ago, valid for {max(0, header.valid_until - now)} s more")
    low, mid, high = m.maintenance_excess
    facts = table("", "", ">low", ">mid", ">high")
    facts.add_row("maintenance excess, USD", format_usd(low), format_usd(mid), format_usd(high))
    facts.add_row("health (W+/W-)", *(_fraction(h) for h in m.health))
    out.print(facts)
    out.print(
        f"equity {format_usd(m.equity)}   free collateral {format_usd(m.free_collateral)}   "
        f"budget {format_usd(0 if stale else home.budget)} USD (the most that may be drawn at home, in total)"
    )
    if m.flags:
        out.print("flags: " + ", ".join(_flags(m.flags)))
    names = {c.id: c.name for c in settings.chains}
    for i, c in enumerate(m.components, start=1):
        _print_component(i, names.get(c.position.chain, c.position.chain), c)
    for f in m.findings:
        out.print(f"{f.code}: {f.detail}")


def _print_component(number: int, chain: str, c: Component) -> None:
    """Print one position so that a reader with a pocket calculator gets the same numbers."""
    p = c.position
    debt = p.side == "debt"
    held = c.symbol if p.asset == p.unit else f"{c.symbol} worth {c.unit_symbol}"
    amount, free = format_amount(p.amount, c.decimals), format_amount(p.amount - p.pending, c.decimals)
    out.print(
        Text.assemble(
            f"\n{number:>2}  ", (f"{'owes ' if debt else ''}{amount} {held}", "bold"), f"  {chain} {p.venue}",
            f"  value {format_usd(c.value)}  age {c.age} s  horizon {c.horizon:.0f} s",
        )
    )  # fmt: skip
    quantity = amount if debt else free
    for level, price, cut, weight, share, counted in (
        ("IM", c.price_initial, c.initial, c.liability_weight_initial, c.share_initial, c.counted_initial),
        ("MM", c.price_high if debt else c.price_low, c.maintenance, c.liability_weight_maintenance,
         c.share_maintenance, c.counted_maintenance),
    ):  # fmt: skip
        if debt:
            formula = f"{quantity} × {price:.8f} × (1+{cut.market:.8f} market) × {weight:g} weight"
        else:
            formula = (
                f"{quantity} × {price:.8f} × (1−{cut.market:.8f} market)(1−{cut.liquidity:.8f} liquidity)"
                f"(1−{cut.exit:g} exit)(1−{cut.policy:g} policy)"
            )
        part = "" if share == 1 else f" × {share:.8g} share"
        out.print(f"    {level}  {formula}{part} = {format_usd(counted)}", soft_wrap=True)
    out.print(Text(f"    {c.reason}", style="dim"))


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
                        "margin": _margin_json(margins[a.id], newest.header.epoch, newest.header.valid_until, now)
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
                format_usd(m.free_collateral) if m else "", _fraction(m.health[0]) if m else "",
                ", ".join(_flags(m.flags)) if m else "", str(len(a.links)),
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


@app.command()
def epochs(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """List epochs: roots, signers, refusals and where they were posted."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            rows = await store.epochs(limit)
            postings = {n.epoch: await store.postings(n.epoch) for n in rows}
        if json_output:
            print_json([r._asdict() | {"postings": [p._asdict() for p in postings[r.epoch]]} for r in rows])
            return
        names = {c.id: c.name for c in settings.chains}
        shown = table("", ">epoch", ">age s", "root", ">leaves", "signers", "posted", "refusals")
        for r in rows:
            posted = ", ".join(f"{names.get(p.destination, p.destination)} {p.state}" for p in postings[r.epoch])
            refused = "; ".join(f"{who}: {why}" for who, why in r.refusals)
            signers = ",".join(map(str, r.signers)) or "none"
            age = str(int(time.time()) - r.cut_time)
            shown.add_row(str(r.epoch), age, r.root[:12] + "…", str(r.leaf_count), signers, posted, refused[:80])
        out.print(shown)

    run_async(work)


@app.command()
def export(
    account: AccountArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    epoch: Annotated[int | None, typer.Option(help="Epoch number; default: the newest certified.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Write an account's audit bundle: one file that anyone can verify offline."""

    async def work() -> tuple[str, int]:
        async with opened(config) as (settings, store):
            known = await store.account(account)
            record = await store.epoch(epoch)
            if record is None:
                raise UnknownError(
                    "epoch", "newest" if epoch is None else str(epoch), "no such certified epoch is kept"
                )
            text = await bootstrap.build_bundle(store, bootstrap.deployment_of(settings), record, known.id)
            return text, record.header.epoch

    text, number = run_async(work)
    if output is None:
        sys.stdout.write(text + "\n")
        return
    try:
        output.write_text(text, "utf-8")
    except OSError as error:
        fail(f"--output: {output} cannot be written: {error.strerror}", 2)
    if json_output:
        print_json({"file": str(output), "epoch": number, "bytes": len(text.encode())})
    else:
        out.print(
            f"wrote {output}: epoch {number}, {len(text.encode()):,} bytes; check it with: crossmargin verify {output}"
        )


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > BUNDLE_LIMIT:
            fail(f"{path} is larger than {BUNDLE_LIMIT} bytes", 2)
        return path.read_text("utf-8")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8 text", 2)


def _given(stored: dict[str, bytes], _: Bundle) -> dict[str, bytes]:
    """Return roots that were read already, as the verifier's reader of roots."""
    return stored


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle written by crossmargin export.")],
    deployment: Annotated[str | None, typer.Option(help="The deployment id you trust, 0x + 64 hex digits.")] = None,
    online: Annotated[
        bool,
        typer.Option(help="Also read the root stored on each destination; takes deployment and chains from --config."),
    ] = False,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Verify an audit bundle offline, step by step; exits 1 if any step fails."""
    text = _read_file(bundle)

    def work() -> bool:
        try:
            parsed = parse_bundle(text)
        except ProofError as error:
            raise InputError(error.field or "bundle", error.reason) from None
        trusted = None
        if deployment is not None:
            try:
                trusted = bytes.fromhex(deployment.removeprefix("0x"))
            except ValueError:
                trusted = b""
            if len(trusted) != 32:
                raise InputError("--deployment", "is not 32 bytes in hex", "give 0x and 64 hex digits")
        stored: dict[str, bytes] | None = None
        if online:
            settings = settings_of(config)
            trusted = trusted or bootstrap.deployment_of(settings).deployment_id()
            stored = asyncio.run(bootstrap.stored_roots(settings, parsed.statement.header.epoch))
        roots = None if stored is None else partial(_given, stored)
        steps = verify_bundle(parsed, now=int(time.time()), roots=roots, deployment_id=trusted)
        if json_output:
            print_json([{"step": s.number, "title": s.title, "outcome": s.outcome, "detail": s.detail} for s in steps])
        else:
            colours = {"pass": "green", "fail": "bold red", "not provable yet": "yellow", "not checked": "dim"}
            shown = table("", ">", "step", "outcome", "detail")
            for s in steps:
                shown.add_row(str(s.number), s.title, Text(s.outcome, style=colours[s.outcome]), s.detail)
            out.print(shown)
        return all(s.outcome != "fail" for s in steps)

    if not guarded(work):
        raise typer.Exit(1)


def _passphrase(passphrase_file: Path | None, confirm: bool) -> str:
    if passphrase_file is not None:
        return _read_file(passphrase_file).strip()
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


@prices_app.command("verify")
def prices_verify(
    file: Annotated[Path, typer.Argument(help="A JSON file with guardian_set, emitter and updates.")],
    json_output: JsonOption = False,
) -> None:
    """Check recorded Pyth updates: signatures, quorum, Merkle paths, and expected values where given."""
    text = _read_file(file)

    def work() -> bool:
        try:
            results = verify_price_file(parse_json(text, max_bytes=BUNDLE_LIMIT).value)
        except ProofError as error:
            raise InputError(error.field or str(file), error.reason) from None
        if json_output:
            print_json(
                [
                    {
                        "name": r.name, "ok": r.ok, "problem": r.problem,
                        "prices": [
                            {"feed_id": p.feed_id.hex(), "price": str(p.price), "conf": str(p.conf), "expo": p.expo,
                             "publish_time": p.publish_time}
                            for p in r.prices
                        ],
                    }
                    for r in results
                ]
            )  # fmt: skip
        else:
            shown = table("", "", "update", "feed", ">price", ">±", "published")
            for r in results:
                if not r.ok:
                    shown.add_row(styled("failed"), r.name, r.problem or "", "", "", "")
                for p in r.prices:
                    scale = 10.0**p.expo
                    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(p.publish_time))
                    shown.add_row(
                        styled("ok"), r.name, p.feed_id.hex()[:16] + "…",
                        f"{p.price * scale:,.6f}", f"{p.conf * scale:.6f}", when,
                    )  # fmt: skip
            out.print(shown)
        return all(r.ok for r in results)

    if not guarded(work):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("PYTHONUTF8", "1")
    app()


if __name__ == "__main__":
    main()
