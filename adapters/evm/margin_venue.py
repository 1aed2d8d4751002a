"""Venues that show spot, perp and option positions by ``IMarginVenue`` (proofs/contracts/IMarginVenue.sol).

Asks for the venue's terms, and per account for its balances and its first ``PAGE`` positions; then for the pages that
are missing, and once for every instrument that anybody is in. All of it runs at one block, so that pages and terms
contradict each other only if the venue does.

An account's book is read whole or not at all: what cannot be read may be a debt, or the leg that a hedge rests on, so
the account is then ``debt-unreadable``. Nothing of the venue's own valuation is used: perps and options are reported by
their terms and priced where everything else is. Only what an expired option pays is the venue's word, and is cash.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple

from adapters.evm.abi import WORD, Answer, Call, Flow, decode_address, decode_uint, selector, topic, word_of_hex
from adapters.evm.erc4626 import convert
from adapters.evm.wallet import unreadable
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import (
    DEBT_UNREADABLE,
    Contract,
    ContractKind,
    Control,
    Finding,
    Position,
    Side,
    Subject,
)

VERSION = selector("marginVenueVersion()")
DELAY = selector("removalDelay()")
PAUSED = selector("paused()")
MAX_POSITIONS = selector("maxPositions()")
POSITIONS = selector("positionsOf(bytes32,uint256,uint256)")
BALANCES = selector("balancesOf(bytes32)")
INSTRUMENT = selector("instrument(uint256)")

CONCERNS_ALL = frozenset(
    topic(event) for event in ("InstrumentSettled(uint256,uint256)", "FundingChanged(uint256)", "Paused(bool)")
)
"""First topics of the logs that change what accounts have at a venue and name none of them."""

SPOKEN = 1  # the version of the interface
PAGE = 32  # positions asked for at once
POSITIONS_LIMIT, BALANCES_LIMIT = 256, 16  # by the interface
SIZE_LIMIT = 2**127  # of sizes and funding, either way
PRICE_LIMIT = 2**80  # 1e-8 USD: beyond twelve quadrillion dollars a unit nothing is a price
EXPIRY_LIMIT = 2**40
DELAY_LIMIT = 2**31

KINDS: Mapping[int, ContractKind] = {1: "perp", 2: "inverse", 3: "call", 4: "put"}
LIVE, EXPIRED, SETTLED = 1, 2, 3
UNIT = 10**18
FEED = re.compile(rb"([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)\0*")

Asking = Generator[Sequence[Call], Sequence[Answer], None]


class Malformed(Exception):
    """Something of an account cannot be interpreted; the text says what."""


class Held(NamedTuple):
    """One position as the venue tells it."""

    instrument: int
    size: int  # 1e-18 units, negative = short
    entry: int  # 1e-8 USD
    funding: int  # base units of settlement


class Terms(NamedTuple):
    """One instrument as the venue tells it."""

    kind: ContractKind
    state: int  # LIVE, EXPIRED or SETTLED
    underlying: str
    settlement: str  # 0x address
    strike: int  # 1e-8 USD
    expiry: int  # Unix seconds
    payout: int  # base units of settlement per 1e18 of size


class Book:
    """What one account has at the venue, as far as it is known.

    cash: base units by token's 0x address, negative where owed. pending: of it, under a withdrawal request.
    fault: why nothing of it counts, "" while nothing is wrong.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.total = 0
        self.held: list[Held] = []
        self.cash: dict[str, int] = {}
        self.pending: dict[str, int] = {}


class MarginVenue:
    """Positions of accounts at one venue."""

    name = "margin-venue"
    keyed_by = "account"

    def __init__(self, chain: str, address: str, assets: Mapping[str, AssetRow]) -> None:
        self.chain, self.assets = chain, assets
        self.target = address.removeprefix("0x").lower()
        self.origin = f"0x{self.target}"

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the venue."""
        return frozenset({self.origin})

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield terms, balances and positions, then what is missing of them; return positions, and what is unknown."""
        accounts, count = [word_of_hex(s.account) for s in subjects], len(subjects)
        answers = yield [
            *((self.target, ask) for ask in (VERSION, DELAY, PAUSED, MAX_POSITIONS)),
            *((self.target, BALANCES + account) for account in accounts),
            *((self.target, _page(account, 0)) for account in accounts),
        ]
        try:
            delay, paused, most = decode_terms(answers[:4])
        except Malformed as fault:
            return (), tuple(self._blind(s, str(fault)) for s in subjects)
        books = [Book() for _ in subjects]
        for book, balances, page in zip(books, answers[4 : 4 + count], answers[4 + count :], strict=True):
            try:
                _take_balances(book, balances)
                book.total, book.held = decode_positions(page, 0)
                if book.total > most:
                    raise Malformed(f"{book.total} positions, more than the {most} it allows")
            except Malformed as fault:
                book.fault = str(fault)
        yield from self._turn_pages(accounts, books)
        terms: dict[int, Terms | str] = {}
        yield from self._describe(sorted({p.instrument for b in books if not b.fault for p in b.held}), terms)

        control: Control = "none" if paused else "seizable"
        positions: list[Position] = []
        findings: list[Finding] = []
        for subject, book in zip(subjects, books, strict=True):
            try:
                if book.fault:
                    raise Malformed(book.fault)
                rows, found = self._interpret(subject, book, terms, control, delay)
            except Malformed as fault:
                book.fault = str(fault)
                findings.append(self._blind(subject, book.fault))
                continue
            positions += rows
            findings += found
            if paused and (rows or book.cash):
                text = f"{self.name} {self.origin} is paused: what it has to pay cannot be taken now"
                findings.append(Finding("venue-health", subject.account, text))
        spot, found = yield from self._spot(subjects, books, control, delay)
        return (*spot, *positions), (*findings, *found)

    def _blind(self, subject: Subject, what: str) -> Finding:
        return Finding(DEBT_UNREADABLE, subject.account, f"{self.name} {self.origin}: {what}")

    def _turn_pages(self, accounts: Sequence[str], books: Sequence[Book]) -> Asking:
        """Complete the books that have more positions than a page, and find what is amiss in each."""
        wanted = [
            (i, start) for i, book in enumerate(books) if not book.fault for start in range(PAGE, book.total, PAGE)
        ]
        answers = (yield [(self.target, _page(accounts[i], start)) for i, start in wanted]) if wanted else ()
        for (i, start), answer in zip(wanted, answers, strict=True):
            book = books[i]
            try:
                total, more = decode_positions(answer, start)
                if total != book.total:
                    raise Malformed(f"{book.total} positions on its first page and {total} on another")
                book.held += more
            except Malformed as fault:
                book.fault = str(fault)
        for book in books:
            if len({p.instrument for p in book.held}) != len(book.held):
                book.fault = book.fault or "two positions in one instrument"

    def _describe(self, ids: Sequence[int], terms: dict[int, Terms | str]) -> Asking:
        """Learn the terms of instruments; of one that cannot be interpreted, why."""
        answers = (yield [(self.target, f"{INSTRUMENT}{id:064x}") for id in ids]) if ids else ()
        for id, answer in zip(ids, answers, strict=True):
            try:
                terms[id] = self._known(decode_instrument(answer))
            except Malformed as fault:
                terms[id] = f"instrument {id}: {fault}"

    def _known(self, terms: Terms) -> Terms:
        row = self.assets.get(self._asset(terms.settlement))
        if row is None or row.kind != "erc20":
            raise Malformed(f"settles in {terms.settlement}, which is no configured ERC-20")
        if terms.kind == "inverse" and row.feed != terms.underlying:
            raise Malformed(f"an inverse perp on {terms.underlying} that settles in {row.symbol}, priced by {row.feed}")
        return terms

    def _asset(self, token: str) -> str:
        return f"{self.chain}/erc20:{token}"

    def _interpret(
        self, subject: Subject, book: Book, terms: Mapping[int, Terms | str], control: Control, delay: int
    ) -> tuple[list[Position], list[Finding]]:
        """Return an account's perps and live options; what its expired ones pay goes to the book's cash.

        Raises:
            Malformed: one of them cannot be interpreted.
        """
        positions: list[Position] = []
        findings: list[Finding] = []
        for held in book.held:
            of = terms[held.instrument]
            if isinstance(of, str):
                raise Malformed(of)
            _verify_fits(held, of)
            if of.state == SETTLED:
                # Floor division: what is due to the account is rounded down, and what it owes up.
                book.cash[of.settlement] = book.cash.get(of.settlement, 0) + held.size * of.payout // UNIT
            elif of.state == EXPIRED:
                text = f"{self.name} {self.origin}: what instrument {held.instrument} pays is not fixed yet"
                code = DEBT_UNREADABLE if held.size < 0 else "unreadable"
                findings.append(Finding(code, subject.account, text))
            else:
                side: Side = "asset" if held.size > 0 else "debt"
                contract = Contract(of.kind, of.underlying, of.strike, of.expiry, held.entry, held.funding)
                positions.append(
                    Position(
                        subject.account,
                        self.chain,
                        self.name,
                        f"{self.chain}/contract:{self.origin}/{held.instrument}",
                        abs(held.size),
                        self._asset(of.settlement),
                        0,
                        side=side,
                        control=control,
                        removal_delay=delay,
                        origin=self.origin,
                        contract=contract,
                    )
                )
        if any(cash < 0 and not self._owable(token) for token, cash in book.cash.items()):
            raise Malformed("a debt in shares, whose worth has no upper bound here")
        return positions, findings

    def _owable(self, token: str) -> bool:
        """Tell whether a debt in a token is one in what is priced; what is not configured is judged later."""
        row = self.assets.get(self._asset(token))
        return row is None or row.underlying is None

    def _spot(
        self, subjects: Sequence[Subject], books: Sequence[Book], control: Control, delay: int
    ) -> Generator[Sequence[Call], Sequence[Answer], tuple[list[Position], list[Finding]]]:
        """Return what accounts have and owe in tokens, receipts converted; an unreadable conversion is a finding."""
        findings: list[Finding] = []
        held: list[tuple[Subject, str, int, int]] = []
        for subject, book in zip(subjects, books, strict=True):
            for token, cash in book.cash.items() if not book.fault else ():
                if cash:
                    held.append((subject, self._asset(token), cash, max(0, min(book.pending.get(token, 0), cash))))
        known = [(self.assets[asset], cash, waiting) for _, asset, cash, waiting in held if asset in self.assets]
        units = yield from convert(
            [(row, max(0, cash)) for row, cash, _ in known] + [(row, waiting) for row, _, waiting in known], self.assets
        )
        worths = iter(zip(units[: len(known)], units[len(known) :], strict=True))
        positions: list[Position] = []
        for subject, asset, cash, waiting in held:
            quantity, unit, amount, pending = abs(cash), asset, abs(cash), waiting
            if asset not in self.assets:
                text = f"{self.name} {self.origin}: token {asset} is not configured"
                findings.append(Finding("unknown-asset", subject.account, text))
            else:
                (unit, worth), (_, part) = next(worths)
                if worth is None or part is None:
                    findings.append(unreadable(asset, subject, "the share conversion failed"))
                    continue
                if cash > 0:
                    amount, pending = worth, min(part, worth)
            place = (subject.account, self.chain, self.name, asset, quantity, unit, amount)
            if cash > 0:
                row = Position(*place, control=control, removal_delay=delay, pending=pending, origin=self.origin)
            else:
                row = Position(*place, side="debt", origin=self.origin)
            positions.append(row)
        return positions, findings


def _page(account: str, start: int) -> str:
    return f"{POSITIONS}{account}{start:064x}{PAGE:064x}"


def _words(answer: Answer, count: int) -> list[int]:
    """Return an answer of exactly ``count`` words as unsigned integers.

    Raises:
        Malformed: it is absent, or of another length.
    """
    if answer is None or len(answer) != WORD * count:
        raise Malformed("a call failed or is cut short")
    return [int.from_bytes(answer[at : at + WORD], "big") for at in range(0, len(answer), WORD)]


def _rows(answer: Answer, heads: int, width: int, most: int) -> tuple[list[int], list[list[int]]]:
    """Return ``heads`` words and the rows, ``width`` words each, of a list that follows them by the ABI's one encoding.

    Raises:
        Malformed: another encoding, or more than ``most`` rows.
    """
    before = heads + 2  # the list's offset and its length
    count = decode_uint(answer, heads + 1)
    if count is None or count > most:
        raise Malformed("a list is absent, cut short or too long")
    words = _words(answer, before + width * count)
    if words[heads] != WORD * (heads + 1):
        raise Malformed("a list is not where the ABI puts it")
    return words[:heads], [words[at : at + width] for at in range(before, len(words), width)]


def _signed(word: int) -> int:
    return word - 2**256 if word >> 255 else word


def decode_terms(answers: Sequence[Answer]) -> tuple[int, bool, int]:
    """Return removal delay in seconds, whether the venue is paused, and the most positions an account may have.

    Args:
        answers: of version, delay, paused and most positions.

    Raises:
        Malformed: one is absent, or nothing that this reader can go by.
    """
    version, delay, paused, most = (_words(answer, 1)[0] for answer in answers)
    if version != SPOKEN:
        raise Malformed(f"marginVenueVersion() is {version}, {SPOKEN} is understood")
    if paused > 1:
        raise Malformed("paused() is no bool")
    if not 0 < most <= POSITIONS_LIMIT:
        raise Malformed(f"maxPositions() is {most}, 1 to {POSITIONS_LIMIT} are allowed")
    return min(delay, DELAY_LIMIT), bool(paused), most


def _take_balances(book: Book, answer: Answer) -> None:
    """Enter the return of ``balancesOf`` into a book; raise Malformed where it cannot be interpreted."""
    for at, (_, amount, pending, owed) in enumerate(_rows(answer, 0, 4, BALANCES_LIMIT)[1]):
        token = decode_address(answer, 2 + 4 * at)
        if token is None:
            raise Malformed("a balance in what is no address")
        if token in book.cash:
            raise Malformed(f"two balances in {token}")
        if pending > amount or (amount and owed):
            raise Malformed(f"a balance in {token} with more pending than there is, or both had and owed")
        book.cash[token], book.pending[token] = amount - owed, pending


def decode_positions(answer: Answer, start: int) -> tuple[int, list[Held]]:
    """Return how many positions an account has, and those of the page that begins with the one numbered ``start``.

    Raises:
        Malformed: a page of another length than asked for, or a number that none can be.
    """
    (total,), rows = _rows(answer, 1, 4, PAGE)
    if len(rows) != min(PAGE, max(0, total - start)):
        raise Malformed(f"{len(rows)} positions on a page from {start} of {total}")
    page = [Held(id, _signed(size), entry, _signed(funding)) for id, size, entry, funding in rows]
    for held in page:
        if not 0 < abs(held.size) < SIZE_LIMIT:
            raise Malformed(f"a position of size {held.size} in instrument {held.instrument}")
        if held.entry >= PRICE_LIMIT or abs(held.funding) >= SIZE_LIMIT:
            raise Malformed(f"an absurd entry or funding in instrument {held.instrument}")
    return total, page


def decode_instrument(answer: Answer) -> Terms:
    """Return what ``instrument`` answers.

    Raises:
        Malformed: an unknown kind or state, no ASCII name of a feed, no address, or terms that do not fit the kind.
    """
    number, state, name, _, strike, expiry, payout = _words(answer, 7)
    kind, settlement = KINDS.get(number), decode_address(answer, 3)
    if kind is None:
        raise Malformed(f"kind {number} is unknown")
    if (feed := FEED.fullmatch(name.to_bytes(WORD, "big"))) is None:
        raise Malformed("its underlying is no ASCII name such as ETH/USD")
    if settlement is None:
        raise Malformed("it settles in what is no address")
    if kind in ("call", "put"):
        if state not in (LIVE, EXPIRED, SETTLED) or not 0 < strike < PRICE_LIMIT or not 0 < expiry < EXPIRY_LIMIT:
            raise Malformed(f"a {kind} in state {state} with strike {strike} and expiry {expiry}")
        if payout >= SIZE_LIMIT or (payout and state != SETTLED):
            raise Malformed(f"a {kind} in state {state} that pays {payout}")
    elif state != LIVE or strike or expiry or payout:
        raise Malformed(f"a perp in state {state} with a strike, an expiry or a payout")
    return Terms(kind, state, feed[1].decode(), settlement, strike, expiry, payout)


def _verify_fits(held: Held, terms: Terms) -> None:
    """Raise Malformed unless a position has the numbers that its instrument has a use for."""
    is_perp = terms.kind in ("perp", "inverse")
    if is_perp and not held.entry:
        raise Malformed(f"a perp without an entry price in instrument {held.instrument}")
    if not is_perp and (held.entry or held.funding):
        raise Malformed(f"an option with an entry price or funding in instrument {held.instrument}")
