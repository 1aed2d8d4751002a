"""What would an account's margin be if it did something: its rows changed, and valued like any epoch's. Pure.

Accounts are valued apart from one another, so a question about one needs its rows alone: the epoch's prices, haircut
tables and views are used again, only the account's rows are laid out and summed anew. The answer is the one that
valuing the whole changed world would give.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aggregator.core.pipeline import value_report
from aggregator.core.risk.stress import standings_at
from aggregator.core.tables import Legs, World, exit_gate
from aggregator.domain.book import CONSUMER_VENUE, build_book
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.price import Quote
from aggregator.domain.report import MarginReport
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import CONTRACT_DECIMALS, Account, Contract, Position, Snapshot
from aggregator.domain.stress import Change, Standing, WhatIf
from aggregator.domain.units import USD

VAULT_VENUE = "vault"
"""Venue of collateral that can be seized."""
AMOUNT_LIMIT = 2**127
"""Amounts of a change are below it; valuation isolates accounts long before."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One computed epoch with everything that went in."""

    snapshot: Snapshot  # its positions ascend
    quotes: tuple[Quote, ...]
    world: World
    latency: Legs | None
    report: MarginReport


def what_if(epoch: Epoch, account: str, changes: Sequence[Change]) -> WhatIf:
    """Return how ``account`` would stand after ``changes``, one after the other, and whether they may be made.

    They may iff free collateral is not negative afterwards, or they reduce risk: neither is free collateral lower nor
    the initial requirement higher than before. A risk-bearing account that nothing may be drawn on (something of it
    is unknown, its home is no destination, ...) may only reduce risk.

    Raises:
        UnknownError: there is no such account, or no such asset. InputError: a change cannot be made; both name the
            field at fault, ``changes[0].amount``.
    """
    place = bisect_left(epoch.report.accounts, account, key=_id)
    found = epoch.report.accounts[place] if place < len(epoch.report.accounts) else None
    if found is None or found.id != account:
        raise UnknownError("account", account, "the newest computed epoch does not hold it; try again soon")
    rows, notes = positions_of(epoch.snapshot, account), list[str]()
    (before,) = standings_at(epoch.report, slice(place, place + 1))
    for number, change in enumerate(changes):
        rows, told = apply_change(epoch, found, rows, change, f"changes[{number}]")
        notes += told
    after = _standing(epoch, found, rows)
    accepted, reason = judge(before, after, monitored=found.kind == "monitored")
    return WhatIf(epoch.snapshot.epoch, epoch.snapshot.cut_time, before, after, accepted, reason, tuple(notes))


def judge(before: Standing, after: Standing, *, monitored: bool) -> tuple[bool, str]:
    """Return whether a change may be made, and why (not)."""
    reduces = after.free_collateral >= before.free_collateral and after.requirement <= before.requirement
    if after.free_collateral < 0:
        if reduces:
            return True, "free collateral stays below 0, but neither it nor the requirement gets worse"
        return False, "free collateral would be below 0, and the change does not reduce risk"
    if not monitored and after.free_collateral > 0 and after.budget == 0 and not reduces:
        return False, "something of the account is unknown, or a price opens no risk: it may only reduce risk"
    return True, "free collateral is not below 0 afterwards"


def positions_of(snapshot: Snapshot, account: str) -> tuple[Position, ...]:
    """Return one account's positions. They ascend, so that it takes a look at few."""
    first = bisect_left(snapshot.positions, account, key=_owner)
    return snapshot.positions[first : bisect_right(snapshot.positions, account, lo=first, key=_owner)]


def changed_snapshot(snapshot: Snapshot, account: str, rows: Sequence[Position]) -> Snapshot:
    """Return the whole snapshot with one account's positions replaced."""
    others = [p for p in snapshot.positions if p.account != account]
    return replace(snapshot, positions=tuple(sorted([*others, *rows])))


def _owner(position: Position) -> str:
    return position.account


def _id(account: Account) -> str:
    return account.id


def _standing(epoch: Epoch, account: Account, rows: Sequence[Position]) -> Standing:
    """Value one account's rows, with the epoch's own prices, tables and views."""
    report, world = epoch.report, epoch.world
    book = build_book(
        replace(epoch.snapshot, accounts=(account,), positions=tuple(rows)),
        world.assets,
        world.policy.assets,
        report.book.chains[: report.book.touches.shape[1] - 1],
        report.book.feeds,
        report.destinations,
        world.policy.underlyings,
        world.policy.dollars,
    )
    hold = report.tables.hold
    counts = exit_gate(book, report.chains, hold, book.account, book.kind, book.seizable, book.delay)
    valued = value_report(
        book,
        report.prices,
        replace(report.tables, counts=counts),
        report.chains,
        times=(report.epoch, report.cut_time, report.valid_until),
        destinations=report.destinations,
        policy=world.policy,
    )
    return standings_at(valued, slice(None))[0]


def apply_change(
    epoch: Epoch, account: Account, rows: Sequence[Position], change: Change, field: str
) -> tuple[tuple[Position, ...], tuple[str, ...]]:
    """Return the account's positions after one change, and what a reader should know about it.

    Raises:
        InputError: names the field at fault below ``field``.
    """
    if not 0 < change.amount < AMOUNT_LIMIT:
        raise InputError(f"{field}.amount", f"{change.amount} base units is no amount", "give more than 0")
    match change.action:
        case "open" | "close":
            return _settled(epoch, account, rows, change, field)
        case "add":
            return _add(epoch, account, rows, _asset(epoch, change.asset, f"{field}.asset"), change.amount)
        case "remove":
            _asset(epoch, change.asset, f"{field}.asset")
            return _reduce(rows, change.asset, change.amount, "asset", field), ()
        case "transfer":
            held = _asset(epoch, change.asset, f"{field}.asset")
            wanted = _asset(epoch, change.to, f"{field}.to")
            if held.feed != wanted.feed:
                raise InputError(f"{field}.to", f"{wanted.symbol} is not {held.symbol}", "remove one and add the other")
            arriving = change.amount * 10**wanted.decimals // 10**held.decimals
            if not arriving:
                raise InputError(f"{field}.amount", f"is less than one base unit of {wanted.symbol}", "give more")
            rows = _reduce(rows, change.asset, change.amount, "asset", field)
            return _add(epoch, account, rows, wanted, arriving)
        case "borrow":
            row = _asset(epoch, change.asset, f"{field}.asset")
            chain, units = chain_of(row.id), change.amount
            debt = Position(account.id, chain, CONSUMER_VENUE, row.id, units, row.id, units, side="debt")
            return _merge(rows, debt), ()
        case "repay":
            _asset(epoch, change.asset, f"{field}.asset")
            return _reduce(rows, change.asset, change.amount, "debt", field), ()


def chain_of(asset: str) -> str:
    """Return the CAIP-2 chain of a CAIP-19 asset."""
    return asset.partition("/")[0]


def _asset(epoch: Epoch, id: str, field: str) -> AssetRow:
    row = epoch.world.assets.get(id)
    if row is None:
        raise UnknownError(field, id, "GET /v1/assets lists what is configured")
    return row


def _add(
    epoch: Epoch, account: Account, rows: Sequence[Position], row: AssetRow, amount: int
) -> tuple[tuple[Position, ...], tuple[str, ...]]:
    """Deposit into the vault of the asset's chain; its delay is that of deposits seen there, 0 where there is none.

    Receipts are valued through what they stand for, at the rate seen for others, or one to one of base units.
    """
    chain, notes = chain_of(row.id), list[str]()
    vaults = [p for p in (*rows, *epoch.snapshot.positions) if p.chain == chain and p.control == "seizable"]
    delay = min((p.removal_delay for p in vaults), default=0)
    if not vaults:
        notes.append(f"no deposit in a vault was seen on {chain}, so its delay is unknown: {row.symbol} there counts 0")
    unit, value = row.id, amount
    if row.underlying is not None:
        like = next((p for p in (*rows, *epoch.snapshot.positions) if p.asset == row.id and p.quantity > 0), None)
        unit = row.underlying
        value = amount * like.amount // like.quantity if like else amount
        if like is None:
            notes.append(f"no {row.symbol} was seen, so its rate is unknown: it counts one to one")
    added = Position(
        account.id, chain, VAULT_VENUE, row.id, amount, unit, value, control="seizable", removal_delay=delay
    )
    return _merge(rows, added), tuple(notes)


def _merge(rows: Sequence[Position], added: Position) -> tuple[Position, ...]:
    """Add a position to one in the same place, or beside the others."""
    for place, row in enumerate(rows):
        same = row._replace(quantity=0, amount=0, pending=0, address="", origin="")
        if same == added._replace(quantity=0, amount=0, pending=0, address="", origin="", contract=row.contract):
            if row.contract.kind:
                continue
            more = row._replace(quantity=row.quantity + added.quantity, amount=row.amount + added.amount)
            return (*rows[:place], more, *rows[place + 1 :])
    return (*rows, added)


def _reduce(
    rows: Sequence[Position], asset: str, amount: int, side: Literal["asset", "debt"], field: str
) -> tuple[Position, ...]:
    """Take ``amount`` of an asset away, or of what is owed of it: of the largest position first.

    What is free goes before what is under a withdrawal request.

    Raises:
        InputError: there is less.
    """
    chosen = [p for p in rows if p.asset == asset and p.side == side and not p.contract.kind]
    there = sum(p.quantity for p in chosen)
    if there < amount:
        word = "held" if side == "asset" else "owed"
        raise InputError(f"{field}.amount", f"{amount} is more than the {there} base units {word}", "name at most that")
    left, kept = amount, [p for p in rows if p not in chosen]
    for p in sorted(chosen, key=lambda p: (-p.quantity, p)):
        taken = min(left, p.quantity)
        left -= taken
        rest = p.quantity - taken
        if rest:
            # Receipts: what is left is worth its share, rounded against the account.
            up = -1 if side == "debt" else 1
            worth = up * (up * p.amount * rest // p.quantity)
            kept.append(p._replace(quantity=rest, amount=worth, pending=min(p.pending, worth)))
    return tuple(kept)


def _settled(
    epoch: Epoch, account: Account, rows: Sequence[Position], change: Change, field: str
) -> tuple[tuple[Position, ...], tuple[str, ...]]:
    """Trade a contract at its mark: what it is worth then is paid or received in what it settles in.

    Equity stays what it was, but for a perp opened at a price of its own. A payment is owed to the venue; a receipt is
    held there, and can be taken as the contract's gains can.
    """
    own = next((p for p in rows if p.contract.kind and p.asset == change.asset), None)
    unit = _asset(epoch, own.unit if own else change.unit, f"{field}.unit")
    if change.action == "open":
        if unit.feed not in epoch.world.policy.underlyings and unit.feed not in epoch.world.policy.dollars:
            problem = (
                f"contracts do not settle in {unit.symbol}: its feed is no underlying of the policy, and no dollar"
            )
            raise InputError(f"{field}.unit", problem, "name an asset whose feed is one of these")
        change = change._replace(contract=_at_market(epoch, change, field), unit=unit.id)
    traded = _trade(account, rows, change, field)
    if change.action == "open" and change.contract.kind in ("perp", "inverse"):
        return traded, ()
    band = next((b for b in epoch.report.prices if b.feed == unit.feed), None)
    if band is None or not band.known or band.mid <= 0:
        raise InputError(f"{field}.unit", f"the price of {unit.feed} is unknown", "try again later")
    gained = _standing(epoch, account, traded).equity - _standing(epoch, account, rows).equity  # 1e-8 USD, at p̂
    due = abs(gained) * 10**unit.decimals
    per_unit = round(band.mid * USD)
    venue = change.asset.partition("/contract:")[2].partition("/")[0]
    cash = Position(account.id, chain_of(unit.id), venue, unit.id, 0, unit.id, 0)
    if gained > 0:
        owed = -(-due // per_unit)
        return _merge(traded, cash._replace(side="debt", quantity=owed, amount=owed)), ()
    if gained < 0 and due // per_unit:
        source = own or Position("", "", "", "", 0, "", 0)
        cash = cash._replace(control=source.control, removal_delay=source.removal_delay)
        return _merge(traded, cash._replace(quantity=due // per_unit, amount=due // per_unit)), ()
    return traded, ()


def _at_market(epoch: Epoch, change: Change, field: str) -> Contract:
    """Return the terms of what is opened; a perp without a price is opened at p̂, rounded against the account."""
    terms = change.contract
    if terms.kind not in ("perp", "inverse") or terms.entry:
        return terms
    band = next((b for b in epoch.report.prices if b.feed == terms.underlying), None)
    if band is None or not band.known or band.mid <= 0:
        raise InputError(f"{field}.contract.underlying", f"{terms.underlying!r} has no known price", "name a feed")
    at = band.mid * USD
    return terms._replace(entry=math.ceil(at) if change.side == "long" else math.floor(at))


def _trade(account: Account, rows: Sequence[Position], change: Change, field: str) -> tuple[Position, ...]:
    """Open or close ``amount`` (1e-18 whole units) of a contract on one side; the other side's is closed first."""
    if change.side not in ("long", "short"):
        raise InputError(f"{field}.side", "is missing", "long or short")
    if "/contract:" not in change.asset:
        raise InputError(f"{field}.asset", f"{change.asset!r} names no contract", "<chain>/contract:<venue>/<number>")
    mine: Literal["asset", "debt"] = "asset" if change.side == "long" else "debt"
    own = next((p for p in rows if p.contract.kind and p.asset == change.asset), None)
    others = [p for p in rows if p is not own]
    if change.action == "close":
        if own is None or own.side != mine or own.quantity < change.amount:
            there = own.quantity if own is not None and own.side == mine else 0
            raise InputError(f"{field}.amount", f"more than the {there} that is {change.side}", "close at most that")
        return tuple(others) if own.quantity == change.amount else (*others, _part(own, own.quantity - change.amount))
    if not change.contract.kind or not change.contract.underlying:
        raise InputError(f"{field}.contract", "has no kind or underlying", "give the terms of what is opened")
    venue = change.asset.partition("/contract:")[2].partition("/")[0]
    opened = Position(
        account.id,
        chain_of(change.asset),
        venue,
        change.asset,
        change.amount,
        change.unit,
        0,
        mine,
        contract=change.contract,
    )
    if own is None:
        return (*others, opened)
    terms = own.contract._replace(entry=0, funding=0)
    if terms != change.contract._replace(entry=0, funding=0):
        raise InputError(f"{field}.contract", "differs from what is open under this name", "use its own terms")
    if own.side != mine:
        raise InputError(f"{field}.side", f"the account is on the other side of {change.asset}", "close that first")
    total = own.quantity + change.amount
    entry = (own.contract.entry * own.quantity + change.contract.entry * change.amount) // total
    if mine == "asset":  # rounded against the account: dearer when long
        entry = -(-(own.contract.entry * own.quantity + change.contract.entry * change.amount) // total)
    return (*others, own._replace(quantity=total, contract=own.contract._replace(entry=entry)))


def _part(own: Position, left: int) -> Position:
    """Return a contract's position with ``left`` of its size, and so much of its unsettled funding."""
    funding = own.contract.funding * left // own.quantity
    return own._replace(quantity=left, contract=own.contract._replace(funding=funding))


def parse_size(text: str, field: str) -> int:
    """Return a contract's size in 1e-18 from a decimal number of whole units.

    Raises:
        InputError: it is no positive decimal number of at most 18 places.
    """
    return parse_units(text, CONTRACT_DECIMALS, field)


def parse_units(text: str, decimals: int, field: str) -> int:
    """Return base units from a decimal number of whole units, exactly.

    Raises:
        InputError: it is no positive decimal number, has more places than the asset, or is out of range.
    """
    whole, point, part = text.partition(".")
    digits = whole + part
    if not (digits.isascii() and digits.isdigit()) or (point and not part) or len(digits) > 60:
        raise InputError(field, f"{text[:40]!r} is no decimal number", "for example 10 or 0.5")
    if len(part) > decimals:
        raise InputError(field, f"{text[:40]!r} has more than {decimals} decimal places", "round it")
    units: int = int(digits) * 10 ** (decimals - len(part))
    if not 0 < units < AMOUNT_LIMIT:
        raise InputError(field, f"{text[:40]!r} is out of range", "give more than 0")
    return units
