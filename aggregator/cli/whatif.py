"""``crossmargin whatif``: an account's margin if it did something, computed by the running service."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
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
    styled,
    table,
)
from aggregator.cli.stress import ask
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.units import USD_DECIMALS, parse_size, parse_units

if TYPE_CHECKING:
    from aggregator.config import Settings
    from aggregator.domain.rows import AssetRow

Amounts = list[str] | None
BUDGET = "budget: the most that may be owed at home in total, what is owed there already included"
LONGEST_TIME = 14  # digits of Unix seconds
PARTS = {
    "side": "SIDE",
    "amount": "SIZE",
    "contract": "KIND",
    "contract.kind": "KIND",
    "contract.underlying": "FEED",
    "unit": "UNIT",
    "asset": "CONTRACT",
    "contract.strike": "STRIKE",
    "contract.expiry": "EXPIRY",
}
"""What a field of the API is called in the help of --open and --close."""
_ASSET = "AMOUNT:ASSET@CHAIN, e.g. 10:ETH@alpha, or AMOUNT:CAIP-19"
_OPEN = "SIDE|SIZE|KIND|FEED|UNIT|CONTRACT, for options with |STRIKE|EXPIRY"


@app.command()
def whatif(
    account: AccountArgument,
    add: Annotated[Amounts, typer.Option(help=f"Deposit into the chain's vault: {_ASSET}.")] = None,
    remove: Annotated[Amounts, typer.Option(help="Take away.")] = None,
    transfer: Annotated[Amounts, typer.Option(help="Move between chains: AMOUNT:ASSET@CHAIN:ASSET@CHAIN.")] = None,
    borrow: Annotated[Amounts, typer.Option(help="Borrow from a consumer on the chain.")] = None,
    repay: Annotated[Amounts, typer.Option(help="Repay.")] = None,
    opens: Annotated[Amounts, typer.Option("--open", help=f"Open a contract: {_OPEN}.")] = None,
    closes: Annotated[Amounts, typer.Option("--close", help="Close a contract: SIDE|SIZE|CONTRACT.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show an account's margin before and after changes, and whether they may be made. Nothing is changed.

    Amounts are written 10:ETH@alpha: whole units, symbol, chain's name. Every option may be given again; changes are
    made in the order of the help: add, remove, transfer, borrow, repay, open, close. An EXPIRY is a day (00:00 UTC), an
    ISO time (UTC unless it says otherwise) or Unix seconds.
    """

    def work() -> None:
        settings = settings_of(config)
        typed: list[tuple[str, str, dict[str, Any]]] = []  # option, text, change
        for action, texts in (("add", add), ("remove", remove), ("transfer", transfer), ("borrow", borrow)):
            read = _transfer if action == "transfer" else partial(_amount, action)
            typed += [(f"--{action}", text, read(settings, text)) for text in texts or []]
        typed += [("--repay", text, _amount("repay", settings, text)) for text in repay or []]
        typed += [("--open", text, _open(settings, text)) for text in opens or []]
        typed += [("--close", text, _close(text)) for text in closes or []]
        if not typed:
            raise InputError(
                "ACCOUNT", "nothing is to change", "give --add, --remove, --transfer, --borrow, --repay, …"
            )
        body = {"changes": [change for _, _, change in typed]}
        try:
            document = ask(settings, "POST", f"/v1/accounts/{account}/whatif", body)
        except InputError as error:
            raise _as_typed(error, [(option, text) for option, text, _ in typed]) from None
        if json_output:
            print_json(document)
            return
        _print(document)

    guarded(work)


def _as_typed(error: InputError, typed: Sequence[tuple[str, str]]) -> InputError:
    """Return what the service says about ``changes[0].amount`` as said about the option that it came from."""
    found = re.fullmatch(r"changes\[([0-9]+)\]\.?(.*)", error.field)
    if found is None or int(found[1]) >= len(typed):
        return error
    option, text = typed[int(found[1])]
    part = f" ({PARTS[found[2]]})" if option in ("--open", "--close") and found[2] in PARTS else ""
    return InputError(f"{option} {text}{part}", error.problem, error.remedy)


def asset_of(settings: Settings, text: str, field: str) -> AssetRow:
    """Return the asset that ``SYMBOL@CHAIN`` or a CAIP-19 id names.

    Raises:
        InputError: none or several do; names ``field``.
    """
    symbol, at, chain = text.rpartition("@")
    names = {row.id: row.name for row in settings.chains}
    found = [
        row
        for row in settings.assets
        if row.id == text
        or (
            at
            and row.symbol.lower() == symbol.lower()
            and chain in (row.id.partition("/")[0], names.get(row.id.partition("/")[0]))
        )
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            field, f"{text!r} names several assets", "give the CAIP-19 id; `crossmargin assets` lists them"
        )
    raise UnknownError(field, text, "SYMBOL@CHAIN or a CAIP-19 id; `crossmargin assets` lists them")


def _amount(action: str, settings: Settings, text: str) -> dict[str, Any]:
    amount, colon, name = text.partition(":")
    field = f"--{action}"
    if not colon:
        raise InputError(field, f"{text!r} must be {_ASSET}")
    asset = asset_of(settings, name, field)
    return {"action": action, "asset": asset.id, "amount": str(parse_units(amount, asset.decimals, field))}


def _transfer(settings: Settings, text: str) -> dict[str, Any]:
    amount, _, rest = text.partition(":")
    # A CAIP-19 id has colons of its own, so every place where the two names may be apart is tried.
    for place in (i for i, letter in enumerate(rest) if letter == ":"):
        try:
            held = asset_of(settings, rest[:place], "--transfer")
            wanted = asset_of(settings, rest[place + 1 :], "--transfer")
        except InputError:
            continue
        units = parse_units(amount, held.decimals, "--transfer")
        return {"action": "transfer", "asset": held.id, "amount": str(units), "to": wanted.id}
    raise InputError(
        "--transfer", f"{text!r} must be AMOUNT:ASSET@CHAIN:ASSET@CHAIN", "for example 10:ETH@alpha:ETH@beta"
    )


def _open(settings: Settings, text: str) -> dict[str, Any]:
    side, size, kind, feed, unit, *rest = [*text.split("|"), "", "", "", "", "", ""]
    name, strike, expiry, *more = (*rest, "", "", "", "")
    if not name or any(more) or "/contract:" not in name:
        raise InputError(
            "--open",
            f"{text!r} must be {_OPEN}",
            "for example 'long|1.5|perp|ETH/USD|USDC@alpha|eip155:31337/contract:venue/1'",
        )
    terms: dict[str, Any] = {"kind": kind, "underlying": feed}
    if strike:
        terms |= {"strike": str(parse_units(strike, USD_DECIMALS, "--open"))}
    if expiry:
        terms |= {"expiry": _time(expiry)}
    return {
        "action": "open",
        "asset": name,
        "amount": str(parse_size(size, "--open")),
        "side": side,
        "contract": terms,
        "unit": asset_of(settings, unit, "--open").id,
    }


def _time(text: str) -> int:
    """Return Unix seconds from a day, an ISO time or Unix seconds."""
    if text.isascii() and text.isdigit() and len(text) < LONGEST_TIME:
        return int(text)
    try:
        found = datetime.fromisoformat(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        remedy = "give a day like 2026-12-31, an ISO time in UTC, or Unix seconds"
        raise InputError("--open", f"EXPIRY {text[:40]!r} is no time", remedy) from None


def _close(text: str) -> dict[str, Any]:
    side, size, name, *_ = [*text.split("|"), "", "", ""]
    if not name:
        raise InputError(
            "--close", f"{text!r} must be SIDE|SIZE|CONTRACT", "for example 'long|1.5|eip155:…/contract:v/1'"
        )
    return {"action": "close", "asset": name, "amount": str(parse_size(size, "--close")), "side": side}


def _print(document: Mapping[str, Any]) -> None:
    was, now = document["before"], document["after"]
    out.print(Text(f"{document['label'] or document['account'][:10]}: {', '.join(document['changes'])}"))
    word, style = ("accepted", "bold green") if document["accepted"] else ("refused", "bold red")
    out.print(Text.assemble((word, style), f": {document['reason']}"))
    shown = table(f"epoch {document['epoch']}; USD", "", ">before", ">after")
    shown.add_row("status", styled(was["status"]), styled(now["status"]))
    lines: Sequence[tuple[str, Any, Any]] = (
        ("equity", was["equity"], now["equity"]),
        ("free collateral, IM", was["free_collateral"], now["free_collateral"]),
        ("owed and required, IM", was["requirement"], now["requirement"]),
        ("maintenance excess, low", was["maintenance_excess"]["low"], now["maintenance_excess"]["low"]),
        ("maintenance excess, high", was["maintenance_excess"]["high"], now["maintenance_excess"]["high"]),
        ("budget", was["budget"], now["budget"]),
    )
    for label, before, after in lines:
        shown.add_row(label, before["text"], after["text"])
    shown.add_row(
        "health, low", *("∞" if s["health"]["low"] is None else f"{s['health']['low']:.4f}" for s in (was, now))
    )
    out.print(shown)
    for note in (*document["notes"], BUDGET):
        out.print(Text(note, style="dim"))
