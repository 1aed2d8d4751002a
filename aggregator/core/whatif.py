"""What would an account's margin be if it did something: its rows changed, and valued like any epoch's. Pure.

Accounts are valued apart from one another, so a question about one needs its rows alone: the epoch's prices, haircut
tables and views are used again, only the account's rows are laid out and summed anew. The answer is the one that
valuing the whole changed world would give.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from aggregator.core import valuation
from aggregator.core.pipeline import value_report
from aggregator.core.risk.stress import standings_at
from aggregator.core.tables import Legs, World, exit_gate
from aggregator.domain.book import CONSUMER_VENUE, LONGEST_EXPIRY, build_book
from aggregator.domain.errors import InputError, UnknownError
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.report import INITIAL, LOW, MarginReport
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import CONTRACT_DECIMALS, Account, Contract, Finding, Position, Snapshot
from aggregator.domain.stress import Change, Standing, WhatIf
from aggregator.domain.units import AMOUNT_LIMIT, SAFETY, USD, format_amount, format_usd, usd_up

VAULT_VENUE = "vault"
"""Venue of collateral that can be seized."""


class _Index(NamedTuple):
    """What questions about single accounts look up of all of them."""

    delay: Mapping[str, int]  # by chain: the shortest removal delay of what can be seized there, seconds
    receipt: Mapping[str, Position]  # by asset: the first position in it, of those that are not nothing
    common: tuple[Finding, ...]  # that concern no single account
    own: Mapping[str, tuple[Finding, ...]]  # by account: the others


@dataclass(frozen=True, slots=True)
class Epoch:
    """One computed epoch with everything that went in. It is indexed at the first question."""

    snapshot: Snapshot  # its positions ascend
    quotes: tuple[Quote, ...]
    world: World
    latency: Legs | None
    report: MarginReport
    _made: list[_Index] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def index(self) -> _Index:
        if not self._made:
            self._made.append(_indexed(self.snapshot))
        return self._made[0]


def _indexed(snapshot: Snapshot) -> _Index:
    delay: dict[str, int] = {}
    receipt: dict[str, Position] = {}
    for p in snapshot.positions:
        if p.control == "seizable":
            delay[p.chain] = min(p.removal_delay, delay.get(p.chain, p.removal_delay))
        if p.asset != p.unit and p.quantity > 0 and not p.contract.kind:
            receipt.setdefault(p.asset, p)
    accounts = {account.id for account in snapshot.accounts}
    own: dict[str, list[Finding]] = {}
    common: list[Finding] = []
    for finding in snapshot.findings:
        scope = finding.scope.partition(" ")[0]
        (own.setdefault(scope, []) if scope in accounts else common).append(finding)
    return _Index(delay, receipt, tuple(common), {account: tuple(found) for account, found in own.items()})


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
    valued = _valued(epoch, found, rows)
    (after,) = standings_at(valued, slice(None))
    required = _required(epoch.report, place), _required(valued, 0)
    if required[0] * (1 + SAFETY) < required[1] < math.inf and all(change.action != "open" for change in changes):
        was, now = (format_usd(usd_up(usd), 0) for usd in required)
        notes.append(f"hedge lost: what the model requires for the contracts at IM, USD: {was} → {now}")
    monitored = found.kind == "monitored"
    accepted, reason = judge(before, after, monitored=monitored, doubt=_doubt(epoch, valued, found.id))
    return WhatIf(epoch.snapshot.epoch, epoch.snapshot.cut_time, before, after, accepted, reason, tuple(notes))


def judge(before: Standing, after: Standing, *, monitored: bool, doubt: str = "") -> tuple[bool, str]:
    """Return whether a change may be made, and why (not).

    Args:
        doubt: why nothing may be drawn on the account whatever it has, "" if nothing stands in the way.
    """
    reduces = after.free_collateral >= before.free_collateral and after.requirement <= before.requirement
    if doubt and not monitored and not reduces:
        return False, f"the account may only reduce risk: {doubt}"
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
    """Return how the account would stand with these rows."""
    return standings_at(_valued(epoch, account, rows), slice(None))[0]


def _required(report: MarginReport, place: int) -> float:
    """Return what the margin model requires for an account's contracts: IM, at ``low``, USD; 0 without contracts."""
    of = report.derivatives
    if of is None or not len(at := np.flatnonzero(of.accounts == place)):
        return 0.0
    bound = report.tables.bound[max(int(report.book.home[place]), 0)] if report.destinations else 0
    hedged = int(of.hedged[bound, LOW, INITIAL, at[0]])
    return float(of.requirement[hedged, LOW, INITIAL, at[0]])


def _doubt(epoch: Epoch, report: MarginReport, account: str) -> str:
    """Return why nothing may be drawn on the one account of a report, "" if nothing of it is unknown."""
    of, book = report.derivatives, report.book
    known = np.array([*(band.known for band in report.prices), False])
    if valuation.mute(book, known)[1][0] or (of is not None and of.blind.any()):
        found = (*epoch.index.own.get(account, ()), *book.findings, *report.findings)
        told = dict.fromkeys(f.detail for f in found if f.scope.partition(" ")[0] == account)
        return "; ".join(["it is blind, as it may owe any amount", *list(told)[:3]])
    if of is not None and of.barred.any():
        return "a price that its contracts rest on is unknown or too wide"
    return "" if book.parts.any() else "its home is no destination"


def _valued(epoch: Epoch, account: Account, rows: Sequence[Position]) -> MarginReport:
    """Value one account's rows, with the epoch's own prices, tables and views."""
    report, world = epoch.report, epoch.world
    book = build_book(
        replace(
            epoch.snapshot,
            accounts=(account,),
            positions=tuple(rows),
            findings=(*epoch.index.common, *epoch.index.own.get(account.id, ())),
        ),
        world.assets,
        world.policy.assets,
        report.book.chains[: report.book.touches.shape[1] - 1],
        report.book.feeds,
        report.destinations,
        world.policy.underlyings,
        world.policy.dollars,
        [next(row.clock_bound for row in world.destinations if row.chain == chain) for chain in report.destinations],
    )
    hold = report.tables.hold
    counts = exit_gate(book, report.chains, hold, book.account, book.kind, book.seizable, book.delay)
    return value_report(
        book,
        report.prices,
        replace(report.tables, counts=counts),
        report.chains,
        times=(report.epoch, report.cut_time, report.valid_until),
        destinations=report.destinations,
        policy=world.policy,
    )


def apply_change(
    epoch: Epoch, account: Account, rows: Sequence[Position], change: Change, field: str
) -> tuple[tuple[Position, ...], tuple[str, ...]]:
    """Return the account's positions after one change, and what a reader should know about it.

    Raises:
        InputError: names the field at fault below ``field``.
    """
    if not 0 < change.amount < AMOUNT_LIMIT:
        wrong = "must be positive" if change.amount <= 0 else "is out of range"
        raise InputError(f"{field}.amount", wrong, "give more than 0, in base units")
    match change.action:
        case "open" | "close":
            return _settled(epoch, account, rows, change, field)
        case "add":
            return _add(epoch, account, rows, _asset(epoch, change.asset, f"{field}.asset"), change.amount)
        case "remove":
            row = _asset(epoch, change.asset, f"{field}.asset")
            return _reduce(rows, row, change.amount, "asset", field), ()
        case "transfer":
            held = _asset(epoch, change.asset, f"{field}.asset")
            wanted = _asset(epoch, change.to, f"{field}.to")
            if held.feed != wanted.feed:
                raise InputError(f"{field}.to", f"{wanted.symbol} is not {held.symbol}", "remove one and add the other")
            arriving = change.amount * 10**wanted.decimals // 10**held.decimals
            if not arriving:
                raise InputError(f"{field}.amount", f"is less than one base unit of {wanted.symbol}", "give more")
            left = _reduce(rows, held, change.amount, "asset", field)
            moved, told = _add(epoch, account, left, wanted, arriving)
            if _in_vaults(rows, held) - _in_vaults(left, held) < change.amount:
                told = (*told, f"{held.symbol} that was in no vault arrives in one on {chain_of(wanted.id)}")
            return moved, told
        case "borrow":
            row = _asset(epoch, change.asset, f"{field}.asset")
            chain, units = chain_of(row.id), change.amount
            debt = Position(account.id, chain, CONSUMER_VENUE, row.id, units, row.id, units, side="debt")
            gone = f"the {row.symbol} borrowed leaves the account: it counts as collateral once it is added"
            return _merge(rows, debt), (gone,)
        case "repay":
            row = _asset(epoch, change.asset, f"{field}.asset")
            return _reduce(rows, row, change.amount, "debt", field), ()


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
    delays = [p.removal_delay for p in rows if p.chain == chain and p.control == "seizable"]
    delays += [epoch.index.delay[chain]] if chain in epoch.index.delay else []
    delay = min(delays, default=0)
    if not delays:
        notes.append(f"no deposit in a vault was seen on {chain}, so its delay is unknown: {row.symbol} there counts 0")
    unit, value = row.id, amount
    if row.underlying is not None:
        like = next((p for p in rows if p.asset == row.id and p.quantity > 0), epoch.index.receipt.get(row.id))
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


def _in_vaults(rows: Sequence[Position], row: AssetRow) -> int:
    """Return how many base units of an asset lie where they can be seized."""
    return sum(p.quantity for p in rows if p.asset == row.id and p.side == "asset" and p.control == "seizable")


def _reduce(
    rows: Sequence[Position], row: AssetRow, amount: int, side: Literal["asset", "debt"], field: str
) -> tuple[Position, ...]:
    """Take ``amount`` of an asset away, or of what is owed of it: of the largest position first.

    What is free goes before what is under a withdrawal request.

    Raises:
        InputError: there is less.
    """
    chosen = [p for p in rows if p.asset == row.id and p.side == side and not p.contract.kind]
    there = sum(p.quantity for p in chosen)
    if there < amount:
        word = "held" if side == "asset" else "owed"
        asked, most = (format_amount(units, row.decimals) for units in (amount, there))
        problem = f"{asked} {row.symbol} is more than the {most} {row.symbol} {word}"
        raise InputError(f"{field}.amount", problem, "name at most that" if there else "")
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
    if change.action == "close" and own is None:
        remedy = f"`crossmargin margin {account.label or account.id}` lists them"
        raise InputError(f"{field}.asset", "no such contract is held", remedy)
    unit = _asset(epoch, own.unit if own and not change.unit else change.unit, f"{field}.unit")
    if change.action == "open":
        change = change._replace(unit=unit.id)
        _check_terms(epoch, change, unit, field)
        _check_listing(epoch, own, change, field)
        change = change._replace(contract=_at_market(epoch, change))
    traded = _trade(account, rows, change, field)
    if change.action == "open" and change.contract.kind in ("perp", "inverse"):
        return traded, ()
    band = _band(epoch, unit.feed)
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


def _check_terms(epoch: Epoch, change: Change, unit: AssetRow, field: str) -> None:
    """Refuse to open what nobody could value, or what has expired.

    Raises:
        InputError: names the term at fault.
    """
    terms, policy, now = change.contract, epoch.world.policy, epoch.report.cut_time
    if not terms.kind or not terms.underlying:
        raise InputError(f"{field}.contract", "has no kind or underlying", "give the terms of what is opened")
    row, option = policy.underlyings.get(terms.underlying), terms.kind in ("call", "put")
    if row is None:
        known = ", ".join(sorted(policy.underlyings)) or "none"
        problem = f"{terms.underlying!r} is no underlying of the policy"
        raise InputError(f"{field}.contract.underlying", problem, f"those: {known}")
    if unit.feed not in ((terms.underlying,) if terms.kind == "inverse" else policy.dollars):
        paid = terms.underlying if terms.kind == "inverse" else f"a dollar of the policy ({', '.join(policy.dollars)})"
        problem = f"{unit.symbol} is priced by {unit.feed}; a contract of this kind settles in {paid}"
        raise InputError(f"{field}.unit", problem, "name an asset that is")
    band = _band(epoch, terms.underlying)
    if band is None or not band.known or band.mid <= 0:
        raise InputError(f"{field}.contract.underlying", f"{terms.underlying!r} has no known price", "try again later")
    if not option:
        for name, value in (("strike", terms.strike), ("expiry", terms.expiry)):
            if value:
                raise InputError(f"{field}.contract.{name}", f"a perp has no {name}", "leave it away")
        return
    if not row.surface:
        problem = f"the policy has no volatility surface of {terms.underlying}, so options on it cannot be valued"
        raise InputError(f"{field}.contract.underlying", problem, "open a perp")
    if terms.strike <= 0:
        raise InputError(f"{field}.contract.strike", "is missing", "an option needs its strike, in USD")
    if terms.expiry <= 0:
        raise InputError(f"{field}.contract.expiry", "is missing", "an option needs the time at which it expires")
    if terms.expiry <= now:
        problem = f"expired {now - terms.expiry:,} s before the epoch's cut ({now})"
        raise InputError(f"{field}.contract.expiry", problem, "give a later one")
    if terms.expiry > now + LONGEST_EXPIRY:
        raise InputError(f"{field}.contract.expiry", "is more than 30 years away", "give an earlier one")


def _check_listing(epoch: Epoch, own: Position | None, change: Change, field: str) -> None:
    """Refuse to open under the name of an instrument what is not that instrument, as somebody's position shows it.

    Raises:
        InputError: it has other terms, or settles in something else.
    """
    listed = own or next((p for p in epoch.snapshot.positions if p.asset == change.asset and p.contract.kind), None)
    if listed is None:
        return
    terms, wanted = (c._replace(entry=0, funding=0) for c in (listed.contract, change.contract))
    if terms != wanted:
        dated = f", strike {format_usd(terms.strike)}, expiry {terms.expiry}" if terms.strike else ""
        problem = f"the contract of this name is a {terms.kind} on {terms.underlying}{dated}"
        raise InputError(f"{field}.contract", problem, "use its own terms, or another name")
    if listed.unit != change.unit:
        raise InputError(f"{field}.unit", f"the contract of this name settles in {listed.unit}", "name that")


def _band(epoch: Epoch, feed: str) -> PriceBand | None:
    return next((band for band in epoch.report.prices if band.feed == feed), None)


def _at_market(epoch: Epoch, change: Change) -> Contract:
    """Return the terms of what is opened; a perp without a price is opened at p̂, rounded against the account."""
    terms, band = change.contract, _band(epoch, change.contract.underlying)
    if terms.kind not in ("perp", "inverse") or terms.entry or band is None:
        return terms
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
            there = format_amount(own.quantity if own is not None and own.side == mine else 0, CONTRACT_DECIMALS)
            asked = format_amount(change.amount, CONTRACT_DECIMALS)
            problem = f"{asked} is more than the {there} that is {change.side}"
            raise InputError(f"{field}.amount", problem, "close at most that")
        return tuple(others) if own.quantity == change.amount else (*others, _part(own, own.quantity - change.amount))
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
