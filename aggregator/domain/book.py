"""The Snapshot as columns: built once, then valued without a Python loop over accounts.

Rows are positions, sorted by (account, netting set, class, feed, policy). Four coarser tables refer to them:

* a *kind* is a (view, feed, policy, class): one price per unit serves all its rows;
* a *group* is a run of rows of one (account, netting set, class, feed, policy);
* a *pool* is a run of groups that share all but the policy: liquidity is charged on the size of the pool, so that
  splitting a position, over chains or over receipts of one thing, gains nothing;
* a *netting set* is a limited-recourse position of one account: its debts count up to its assets;
* a *leg* is what one account has at one view, and a *standing* all its legs on one chain.

A *view* is a block that rows were read at: every chain's newest one, then the older ones that some accounts' rows are
carried from. Each has an age of its own, and so a haircut, an exit gate and an ``as_of`` of its own.

Whatever cannot be interpreted keeps its row, valued at 0 through the extra "unknown" view, feed and policy that close
each axis, and is reported as a finding.

A perp or option is a row too, a debt of 0 of what it settles in: whoever is in it may come to owe. What it is worth and
what it requires is counted beside the rows, from :class:`Contracts`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.domain.budgets import NOT_DRAWN, PARTS, REGISTRY_VENUE, Drawn
from aggregator.domain.contracts import CALL, INVERSE, KINDS, PUT, Instruments
from aggregator.domain.policy import AssetPolicyRow, UnderlyingRow
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import (
    BESIDE_A_POSITION,
    CONTRACT_DECIMALS,
    DEBT_UNREADABLE,
    INFORMATIONAL,
    NOT_READ_YET,
    Account,
    ChainView,
    Contract,
    Control,
    Finding,
    Position,
    Side,
    Snapshot,
)
from aggregator.domain.units import SECONDS_PER_YEAR, USD, Floats
from proofs.hashing import keccak256

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ASSET, DEBT, CONSUMER_DEBT = 0, 1, 2
"""Classes of rows. A consumer debt is owed to a consumer at a destination, which itself holds it against the budget
there; any other debt, to consumers on other chains too, is subtracted from what budgets are given of."""
CONSUMER_VENUE = "lender"
"""Venue of debts to consumers, which are recourse."""
LONGEST_DELAY = 2**40  # seconds; longer removal delays gain nothing
LONGEST_EXPIRY = 30 * SECONDS_PER_YEAR  # seconds from the cut; no surface says anything about later options
LARGEST_CONTRACT = 1e30  # whole units or USD
LARGEST_BUDGET = 2**58
"""1e-8 USD: about 2.9 billion USD. Budgets are given of no more than this, so that all sums stay exact in 64 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Kinds:
    """K kinds of rows, as indices on the axes of the book; the last index of each axis means unknown."""

    view: Ints
    feed: Ints
    policy: Ints
    side: Ints  # ASSET, DEBT or CONSUMER_DEBT


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """What registries and earlier statements say may be, or was, drawn by A accounts at D destinations."""

    used: Floats  # (D, A) 1e-8 USD, integral, rounded up: drawn and not repaid
    outstanding: Ints  # (D, A) 1e-8 USD: the largest budget given before that may still be drawn
    rotated: Bools  # (D, A) whether the registry knows the set of attestors that the epoch demands
    elsewhere: Floats  # (A,) 1e-8 USD, integral: drawn and not repaid where no destination is (any more)
    pending: Floats  # (A,) 1e-8 USD, integral: given and perhaps still to be drawn where no destination is (any more)
    leg_account: Ints  # (K,) of each registry that says something was drawn
    leg_view: Ints  # (K,) and where it was seen
    shared_account: Ints  # (M,) of each registry read for an account that its owner shared out
    shared_view: Ints  # (M,) and where it was seen: if that is too old, more may have been drawn than is known

    def only(self, index: int) -> Claims:
        """Return those of one account."""
        own, legs, shared = slice(index, index + 1), self.leg_account == index, self.shared_account == index
        return Claims(
            used=self.used[:, own],
            outstanding=self.outstanding[:, own],
            rotated=self.rotated[:, own],
            elsewhere=self.elsewhere[own],
            pending=self.pending[own],
            leg_account=self.leg_account[legs] - index,
            leg_view=self.leg_view[legs],
            shared_account=self.shared_account[shared] - index,
            shared_view=self.shared_view[shared],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Contracts:
    """The N rows of a book that are in a perp or option, ascending, and their Q settlements.

    A *settlement* is what one account has at one place of one venue, in one thing it settles in, seen at one view, all
    of it out of reach alike: its contracts are paid as one net amount.
    """

    row: Ints  # (N,) in the book
    account: Ints  # (N,) sorted
    instrument: Ints  # (N,)
    size: Floats  # (N,) signed whole units; negative = short
    entry: Floats  # (N,) USD
    funding: Floats  # (N,) whole units of what it settles in
    settlement: Ints  # (N,)
    settlement_account: Ints  # (Q,) sorted
    gain_kind: Ints  # (Q,) what is settled in, as an asset
    loss_kind: Ints  # (Q,) and as a debt
    seizable: Bools  # (Q,)
    delay: Ints  # (Q,) seconds
    instruments: Instruments
    underlyings: tuple[str, ...]  # (U,) ascending
    feed: Ints  # (U,) on the feed axis
    priced: tuple[tuple[tuple[int, int], ...], ...]  # (U,) policy and chain of each sort of asset that the feed prices

    def only(self, index: int, first: int) -> Contracts:
        """Return those of one account, whose first row in the book is ``first``."""
        rows = slice(*np.searchsorted(self.account, [index, index + 1]))
        own = slice(*np.searchsorted(self.settlement_account, [index, index + 1]))
        return replace(
            self,
            row=self.row[rows] - first,
            account=self.account[rows] - index,
            instrument=self.instrument[rows],
            size=self.size[rows],
            entry=self.entry[rows],
            funding=self.funding[rows],
            settlement=self.settlement[rows] - own.start,
            settlement_account=self.settlement_account[own] - index,
            gain_kind=self.gain_kind[own],
            loss_kind=self.loss_kind[own],
            seizable=self.seizable[own],
            delay=self.delay[own],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Book:
    """Positions of A accounts in N rows, G groups, Q pools and S netting sets. Amounts are whole units, never negative.

    An amount that a float cannot hold is infinite here; the valuation isolates its account.
    """

    accounts: tuple[Account, ...]  # ascending by id
    chains: tuple[str, ...]  # (V,) CAIP-2 of each view, without the unknown one; the first C name each chain once
    feeds: tuple[str, ...]
    policies: tuple[str, ...]
    kinds: Kinds

    account: Ints  # (N,) sorted
    kind: Ints  # (N,)
    amount: Floats  # (N,)
    free: Floats  # (N,) amount less what is under a withdrawal request
    seizable: Bools  # (N,)
    delay: Ints  # (N,) removal delay, seconds
    netting: Ints  # (N,) index of the netting set, -1 for none
    group: Ints  # (N,)

    group_start: Ints  # (G,) first row
    group_account: Ints
    group_feed: Ints
    group_policy: Ints
    group_side: Ints
    group_netting: Ints
    pool: Ints  # (G,)
    pools: int  # Q
    set_account: Ints  # (S,)
    leg: Ints  # (N,)
    leg_account: Ints  # (L,) sorted
    leg_view: Ints
    standing: Ints  # (L,)
    standings: int

    chain_of: Ints  # (V + 1,) the chain of each view; C means unknown
    monitored: Bools  # (A,)
    home: Ints  # (A,) index of the destination, -1 for none
    parts: Ints  # (D, A) of 10,000: how each account is shared out among destinations
    place: Ints  # (C + 1,) the destination on each chain, -1 for none
    touches: Bools  # (A, C + 1): has a position, however small, or a link there
    doubted: Bools  # (C + 1,) something of the chain could not be read, and nobody knows whose
    partial: Bools  # (A,) something of the account could not be read or interpreted, whatever it is worth
    blind: Bools  # (A,) a recourse debt of the account could not be read: it may be any amount
    positions: tuple[Position, ...] = ()  # (N,) or none (synthetic books); the row's origin, for explanations
    findings: tuple[Finding, ...] = ()
    contracts: Contracts | None = None  # None where nobody is in any
    claims: Claims | None = None  # None where no registry was read, nothing may be drawn, and the first set attests

    def only(self, index: int) -> Book:
        """Return the book of one account."""
        first, last = (int(x) for x in np.searchsorted(self.account, [index, index + 1]))
        rows = slice(first, last)
        own = self.account[rows] - index
        sets = np.flatnonzero(self.set_account == index)
        netting = self.netting[rows]
        local = np.where(netting >= 0, np.searchsorted(sets, netting), -1) if len(sets) else netting
        book = assemble(
            accounts=self.accounts[index : index + 1],
            axes=(self.chains, self.feeds, self.policies),
            kinds=self.kinds,
            account=own,
            kind=self.kind[rows],
            amount=self.amount[rows],
            free=self.free[rows],
            seizable=self.seizable[rows],
            delay=self.delay[rows],
            netting=local,
            monitored=self.monitored[index : index + 1],
            home=self.home[index : index + 1],
            touches=self.touches[index : index + 1],
        )
        own_row = slice(index, index + 1)
        contracts = self.contracts and self.contracts.only(index, first)
        return replace(
            book,
            parts=self.parts[:, own_row],
            place=self.place,
            claims=self.claims and self.claims.only(index),
            partial=self.partial[own_row],
            blind=self.blind[own_row],
            positions=self.positions[rows],
            contracts=contracts if contracts and len(contracts.row) else None,
        )


def assemble(
    *,
    accounts: tuple[Account, ...],
    axes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
    kinds: Kinds,
    account: Ints,
    kind: Ints,
    amount: Floats,
    free: Floats,
    seizable: Bools,
    delay: Ints,
    netting: Ints,
    monitored: Bools,
    home: Ints,
    touches: Bools,
    destinations: Sequence[str] = (),
    parts: Ints | None = None,
    claims: Claims | None = None,
    doubted: Bools | None = None,
    partial: Bools | None = None,
    blind: Bools | None = None,
    positions: Sequence[Position] = (),
    findings: tuple[Finding, ...] = (),
    contracts: Contracts | None = None,
) -> Book:
    """Sort rows and build groups from columns, for :func:`build_book` and for synthetic books.

    Args:
        axes: the chain of each view (every chain's newest view before any carried one), feeds and policies.
        touches: its width gives the number of chains.
        destinations: the chain of each destination.
        parts: how accounts are shared out among them; None = all at home.
        netting: index of each row's netting set, which belongs to one account; -1 for none.
        positions: the rows' origins, in the given order, or none.
        contracts: the rows in contracts, by their places in the given order; settlements ascend by account.
    """
    order = np.lexsort((kinds.policy[kind], kinds.feed[kind], kinds.side[kind], netting, account))
    account, kind, delay, netting = account[order], kind[order], delay[order], netting[order]
    amount, free, seizable = amount[order], free[order], seizable[order]
    side, feed, policy = kinds.side[kind], kinds.feed[kind], kinds.policy[kind]
    pools = _starts(account, netting, side, feed)
    groups = pools | _starts(policy)
    first = np.flatnonzero(groups)
    pools = pools[first]
    sets = int(netting.max(initial=-1)) + 1
    set_account = np.zeros(sets, dtype=np.int64)
    set_account[netting[netting >= 0]] = account[netting >= 0]
    views, chains = len(axes[0]), touches.shape[1] - 1
    place = {chain: i for i, chain in enumerate(axes[0][:chains])}
    chain_of = np.array([*(place[chain] for chain in axes[0]), chains], dtype=np.int64)
    legs, leg = np.unique(account * (views + 1) + kinds.view[kind], return_inverse=True)
    leg_account, leg_view = legs // (views + 1), legs % (views + 1)
    standings, standing = np.unique(leg_account * (chains + 1) + chain_of[leg_view], return_inverse=True)
    spot = {chain: i for i, chain in enumerate(destinations)}
    if parts is None:
        parts = np.zeros((len(destinations), len(accounts)), dtype=np.int64)
        settled = np.flatnonzero((home >= 0) & (home < len(destinations)))
        parts[home[settled], settled] = PARTS
    return Book(
        accounts=accounts,
        chains=axes[0],
        feeds=axes[1],
        policies=axes[2],
        kinds=kinds,
        account=account,
        kind=kind,
        amount=amount,
        free=free,
        seizable=seizable,
        delay=delay,
        netting=netting,
        group=np.cumsum(groups) - 1,
        group_start=first,
        group_account=account[first],
        group_feed=feed[first],
        group_policy=policy[first],
        group_side=side[first],
        group_netting=netting[first],
        pool=np.cumsum(pools) - 1,
        pools=int(pools.sum()),
        set_account=set_account,
        leg=leg,
        leg_account=leg_account,
        leg_view=leg_view,
        standing=standing,
        standings=len(standings),
        chain_of=chain_of,
        monitored=monitored,
        home=home,
        parts=parts,
        place=np.array([*(spot.get(chain, -1) for chain in axes[0][:chains]), -1], dtype=np.int64),
        touches=touches,
        doubted=np.zeros(chains + 1, dtype=np.bool_) if doubted is None else doubted,
        partial=np.zeros(len(accounts), dtype=np.bool_) if partial is None else partial,
        blind=np.zeros(len(accounts), dtype=np.bool_) if blind is None else blind,
        positions=tuple(map(positions.__getitem__, order.tolist())) if positions else (),
        findings=findings,
        contracts=None if contracts is None else _sorted_contracts(contracts, order),
        claims=claims,
    )


def _sorted_contracts(contracts: Contracts, order: Ints) -> Contracts:
    """Return contracts with the places that their rows got."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    row = place[contracts.row]
    turn = np.argsort(row)
    return replace(
        contracts,
        row=row[turn],
        account=contracts.account[turn],
        instrument=contracts.instrument[turn],
        size=contracts.size[turn],
        entry=contracts.entry[turn],
        funding=contracts.funding[turn],
        settlement=contracts.settlement[turn],
    )


def build_book(
    snapshot: Snapshot,
    assets: Mapping[str, AssetRow],
    policies: Mapping[str, AssetPolicyRow],
    chains: Sequence[str],
    feeds: Sequence[str],
    destinations: Sequence[str],
    underlyings: Mapping[str, UnderlyingRow] | None = None,
    dollars: Collection[str] = (),
    clock_bounds: Sequence[int] = (),
) -> Book:
    """Turn a Snapshot into columns.

    What registries say was drawn is no row: it becomes the book's :class:`Claims`, with the Snapshot's grants.

    The order of the Snapshot's accounts and positions does not matter. Positions of unknown accounts are left out;
    unknown assets, units, feeds, policies, chains and blocks, and malformed amounts, count 0 (a debt among them is
    blind: its account can open no risk). So is a contract whose terms, underlying or settlement cannot be interpreted,
    long or short, and a short option that has expired since the block it was seen at, as what it pays may be fixed by
    now; a long one then gains nothing. Each such case is a finding scoped to ``<account> <asset>``. A
    ``debt-unreadable`` or ``not-read-yet`` finding of the Snapshot makes its account blind too.

    ``partial`` marks what is unknown whatever it is worth: a finding on the account, one on a chain that it is linked
    to, a debt or a seizable asset that cannot be interpreted, a malformed amount, a chain never read. Any other asset
    that cannot be interpreted, and a chain-wide finding where the account has no link, are left to the valuation, which
    knows whether the asset could count and what the account has there: both may be a stranger's gift.

    Args:
        snapshot: what was seen.
        assets: rows by CAIP-19 id.
        policies: risk parameters by name.
        chains: CAIP-2 ids, the order of the chain axis.
        feeds: the order of the feed axis.
        destinations: CAIP-2 ids, the order of the destination axis.
        underlyings: what contracts may be on, by feed; none are margined without.
        dollars: feeds of what contracts may settle in, paying a dollar a unit; inverse perps settle in the underlying.
        clock_bounds: of each destination, seconds; without them a grant is one where no destination is.
    """
    accounts = tuple(sorted(snapshot.accounts, key=lambda a: a.id))
    number = {account.id: i for i, account in enumerate(accounts)}
    findings: list[Finding] = []
    rows = sorted(snapshot.positions)
    if strangers := [position for position in rows if position.account not in number]:
        findings += [Finding("unknown-account", p.account, f"{p.asset}: counts 0") for p in strangers]
        rows = [position for position in rows if position.account in number]
    registries = [position for position in rows if position.venue == REGISTRY_VENUE]
    if registries:
        rows = [position for position in rows if position.venue != REGISTRY_VENUE]
    of = _Columns.of(rows)

    seen = view_axis(snapshot, chains)
    carried = [view for view in seen[len(chains) :] if view is not None and view.block]
    axes = (*chains, *(view.chain for view in carried)), tuple(feeds), tuple(sorted(policies))
    blocks = [(chain, 0) for chain in chains] + [(v.chain, v.block.height) for v in carried if v.block is not None]
    catalogue = _Catalogue(assets, axes, blocks)
    owner = np.fromiter(map(number.__getitem__, of.account), dtype=np.int64, count=len(rows))
    spot = {destination: i for i, destination in enumerate(destinations)}
    sides = _sides(of, spot)
    # A contract is of the kind of what it settles in.
    held = [unit if c.kind else asset for asset, unit, c in zip(of.asset, of.unit, of.contract, strict=True)]
    kind = catalogue.kinds_of(of.chain, of.seen, held, of.unit, sides)
    scale = np.array([float(10**d) for d in catalogue.decimals], dtype=np.float64)[kind] if rows else np.zeros(0)
    amount = _floats(of.amount) / scale
    free = amount.copy()
    waiting = [i for i, pending in enumerate(of.pending) if pending and of.side[i] == "asset"]
    free[waiting] = _floats([max(of.amount[i] - of.pending[i], 0) for i in waiting]) / scale[waiting]

    trouble = {
        i: why for i in _suspects(of, kind, catalogue) if (why := catalogue.problem[kind[i]] or _malformed(rows[i]))
    }
    terms = _Terms(underlyings or {}, dollars, assets, axes[1], snapshot.cut_time)
    derived = _Derived.of(of, [i for i, contract in enumerate(of.contract) if contract.kind and i not in trouble])
    trouble |= {i: why for i in terms.suspects(derived) if (why := terms.problem(rows[i]))}
    times = [view.block.time if view is not None and view.block else snapshot.cut_time for view in seen]
    gone: set[int] = set()
    for i in derived.expired(snapshot.cut_time):
        if i in trouble:
            continue
        expiry, last = of.contract[i].expiry, times[catalogue.view(int(kind[i]))]
        if expiry > last and of.side[i] != "asset":
            trouble[i] = terms.expired(rows[i], last)
            continue
        if expiry > last:
            gone.add(i)
        code, detail = terms.expired(rows[i], last)
        findings.append(Finding(code, f"{of.account[i]} {of.asset[i]}", detail))
    for i, (code, detail) in trouble.items():
        findings.append(Finding(code, f"{of.account[i]} {of.asset[i]}", detail))
        kind[i], amount[i], free[i] = catalogue.unknown(rows[i], sides[i]), 1.0, 1.0

    names: dict[tuple[str, str], int] = {}
    netting = np.full(len(rows), -1, dtype=np.int64)
    for i, name in enumerate(of.netting):
        # Debts to consumers are recourse, whatever their reader says, and so are contracts.
        if name and not of.contract[i].kind and (sides[i] == ASSET or of.venue[i] != CONSUMER_VENUE):
            netting[i] = names.setdefault((of.account[i], name), len(names))
    contracts = None
    if len((sound := derived.without(gone | trouble.keys())).row):
        contracts = _build_contracts(of, sound, owner, kind, catalogue, scale, axes, assets)
    kinds = catalogue.kinds()
    place = {chain: i for i, chain in enumerate(chains)}
    chain_of = np.array([*(place[chain] for chain in axes[0]), len(chains)], dtype=np.int64)
    linked = np.zeros((len(accounts), len(chains) + 1), dtype=np.bool_)
    for i, account in enumerate(accounts):
        for link in account.links:
            linked[i, place.get(link.rpartition(":")[0], len(chains))] = True
    touches = linked.copy()
    touches[owner, chain_of[kinds.view[kind]]] = True
    monitored = np.fromiter((a.kind == "monitored" for a in accounts), dtype=np.bool_, count=len(accounts))
    doubted = np.zeros(len(chains) + 1, dtype=np.bool_)
    doubted[[place[f.scope.split(" ", 1)[0]] for f in _worrying(snapshot) if f.scope.split(" ", 1)[0] in place]] = True
    partial = _partial(snapshot, number, place, touches, monitored) | linked[:, doubted].any(axis=1)
    odd = [
        owner[i]
        for i, (code, _) in trouble.items()
        if sides[i] != ASSET or of.control[i] == "seizable" or code == "bad-amount"
    ]
    partial[odd] = True
    blind = np.zeros(len(accounts), dtype=np.bool_)
    unread = (f.scope.split(" ", 1)[0] for f in snapshot.findings if f.code in (DEBT_UNREADABLE, NOT_READ_YET))
    blind[[number[account] for account in unread if account in number]] = True
    for p in registries:
        if p.amount < 0 or p.side != "debt":
            blind[number[p.account]] = partial[number[p.account]] = True
            said = f"{p.amount} drawn as {p.side}: it may owe any amount"
            findings.append(Finding("bad-amount", f"{p.account} {p.asset}", said))
    home = np.fromiter((spot.get(a.home, -1) for a in accounts), dtype=np.int64, count=len(accounts))
    view_of = {block: i for i, block in enumerate(blocks)}
    return assemble(
        accounts=accounts,
        axes=axes,
        kinds=kinds,
        account=owner,
        kind=kind,
        amount=amount,
        free=free,
        seizable=np.array([control == "seizable" for control in of.control], dtype=np.bool_),
        delay=_delays(of.removal_delay),
        netting=netting,
        monitored=monitored,
        home=home,
        touches=touches,
        destinations=destinations,
        parts=_parts(accounts, home, spot),
        claims=_claims(snapshot, registries, number, spot, view_of, times, clock_bounds),
        doubted=doubted,
        partial=partial,
        blind=blind,
        positions=rows,
        findings=tuple(sorted(set(findings))),
        contracts=contracts,
    )


def _parts(accounts: Sequence[Account], home: Ints, spot: Mapping[str, int]) -> Ints:
    """Return how accounts are shared out among destinations, in 10,000 parts: all at home unless their owner says."""
    parts = np.zeros((len(spot), len(accounts)), dtype=np.int64)
    settled = np.flatnonzero(home >= 0)
    parts[home[settled], settled] = PARTS
    for i, account in enumerate(accounts):
        if account.shares:
            parts[:, i] = 0
            for share in account.shares:
                if share.destination in spot:
                    parts[spot[share.destination], i] = share.parts
    return parts


def _claims(
    snapshot: Snapshot,
    registries: Sequence[Position],
    number: Mapping[str, int],
    spot: Mapping[str, int],
    view_of: Mapping[tuple[str, int], int],
    times: Sequence[int],
    clock_bounds: Sequence[int],
) -> Claims | None:
    """Lay out what registries say, and what may still be drawn by grants; None where it makes no difference.

    A grant of an epoch older than the newest that a registry holds there can be drawn no more, nor can one that has
    expired by the destination's clock. What was drawn before it expired is in ``used`` only if the block at which that
    was read is as late: so it is the time of that block that counts, and the cut's where no registry was read. Several
    registries of one destination add up, and count as the oldest of them.

    A grant that nobody drew on is no debt: it keeps other budgets small, and makes nobody unhealthy.

    Args:
        times: of the block of each view, Unix seconds.
    """
    if not registries and not snapshot.grants and snapshot.set_id == 1:
        return None
    shape = len(spot), len(number)
    used, known = np.zeros(shape), np.ones(shape, dtype=np.int64)
    elsewhere, pending = np.zeros(len(number)), np.zeros(len(number))
    outstanding = np.zeros(shape, dtype=np.int64)
    said: dict[tuple[int, int], Drawn] = {}
    read_at: dict[tuple[int, int], int] = {}
    legs: list[tuple[int, int]] = []
    shared: list[tuple[int, int]] = []
    owners = {number[account.id] for account in snapshot.accounts if account.shares}
    for p in registries:
        i, d, amount = number[p.account], spot.get(p.chain, -1), _float_up(max(p.amount, 0))
        view = view_of.get((p.chain, p.seen), len(view_of))
        if amount:
            legs.append((i, view))
        if i in owners:
            shared.append((i, view))
            time = times[view] if view < len(times) else 0
            read_at[d, i] = min(time, read_at.get((d, i), time))
        if d < 0:
            elsewhere[i] += amount
            continue
        used[d, i] += amount
        before = said.get((d, i))
        said[d, i] = p.drawn if before is None else Drawn(*map(min, before, p.drawn))
    for (d, i), drawn in said.items():
        known[d, i] = max(drawn.set_id, 1)
    ids = {"0x" + keccak256(chain.encode()).hex(): d for chain, d in spot.items()} if clock_bounds else {}
    longest = max(clock_bounds, default=0)
    unplaced: dict[tuple[int, str], int] = {}
    for account, destination, epoch, budget, valid_until in snapshot.grants:
        account_index, place = number.get(account), ids.get(destination)
        if account_index is None:
            continue
        bound = longest if place is None else clock_bounds[place]
        seen = snapshot.cut_time if place is None else read_at.get((place, account_index), snapshot.cut_time)
        if valid_until + bound <= min(seen, snapshot.cut_time):
            continue
        if place is None:
            key = account_index, destination
            unplaced[key] = max(budget, unplaced.get(key, 0))
        elif epoch >= said.get((place, account_index), NOT_DRAWN).posted:
            outstanding[place, account_index] = max(outstanding[place, account_index], min(budget, LARGEST_BUDGET))
    for (i, _), budget in unplaced.items():
        pending[i] += _float_up(min(budget, LARGEST_BUDGET))
    return Claims(
        used=used,
        outstanding=outstanding,
        rotated=known >= snapshot.set_id,
        elsewhere=elsewhere,
        pending=pending,
        leg_account=np.array([i for i, _ in legs], dtype=np.int64),
        leg_view=np.array([v for _, v in legs], dtype=np.int64),
        shared_account=np.array([i for i, _ in shared], dtype=np.int64),
        shared_view=np.array([v for _, v in shared], dtype=np.int64),
    )


def _float_up(value: int) -> float:
    """Return the least float that is not below ``value``."""
    try:
        near = float(value)
    except OverflowError:
        return math.inf
    return near if near >= value else math.nextafter(near, math.inf)


def _build_contracts(
    of: _Columns,
    mine: _Derived,
    owner: Ints,
    kind: Ints,
    catalogue: _Catalogue,
    scale: Floats,
    axes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
    assets: Mapping[str, AssetRow],
) -> Contracts:
    """Lay out the well-formed contracts among the rows of a book, before it is sorted.

    Args:
        scale: of each row, base units of what it settles in per whole unit.
    """
    listed = {t: _instrument(mine.listed[t].contract) for t in np.unique(mine.terms).tolist()}
    instruments = sorted(set(listed.values()))
    underlyings = tuple(sorted({key[0] for key in instruments}))
    number = {key: i for i, key in enumerate(instruments)}
    instrument = np.zeros(len(mine.listed), dtype=np.int64)
    instrument[list(listed)] = [number[key] for key in listed.values()]
    axis = {feed: i for i, feed in enumerate(underlyings)}
    place, chosen = mine.row, mine.row.tolist()
    units = [of.unit[i] for i in chosen]
    gain_kind = catalogue.kinds_of(
        [of.chain[i] for i in chosen], [of.seen[i] for i in chosen], units, units, [ASSET] * len(chosen)
    )
    delay = _delays([of.removal_delay[i] for i in chosen])
    keys = [
        (account, of.venue[i], of.origin[i], of.control[i], seconds, gain, loss)
        for i, account, seconds, gain, loss in zip(
            chosen, owner[place].tolist(), delay.tolist(), gain_kind.tolist(), kind[place].tolist(), strict=True
        )
    ]
    net = {key: i for i, key in enumerate(dict.fromkeys(keys))}  # rows ascend by account, and so do these
    policies = {name: i for i, name in enumerate(axes[2])}
    chains = {chain: i for i, chain in reversed(list(enumerate(axes[0])))}  # the newest view of each comes first
    by_feed: dict[str, set[tuple[int, int]]] = {feed: set() for feed in underlyings}
    for row in assets.values():
        chain = row.id.partition("/")[0]
        if row.feed in by_feed and row.policy in policies and chain in chains:
            by_feed[row.feed].add((policies[row.policy], chains[chain]))
    unit = float(10**CONTRACT_DECIMALS)
    sign = np.array([1.0 if of.side[i] == "asset" else -1.0 for i in chosen])
    return Contracts(
        row=place,
        account=owner[place],
        instrument=instrument[mine.terms],
        size=sign * mine.quantity / unit,
        entry=mine.entry / USD,
        funding=mine.funding / scale[place],
        settlement=np.fromiter(map(net.__getitem__, keys), dtype=np.int64, count=len(keys)),
        settlement_account=np.array([key[0] for key in net], dtype=np.int64),
        gain_kind=np.array([key[5] for key in net], dtype=np.int64),
        loss_kind=np.array([key[6] for key in net], dtype=np.int64),
        seizable=np.array([key[3] == "seizable" for key in net], dtype=np.bool_),
        delay=np.array([key[4] for key in net], dtype=np.int64),
        instruments=Instruments(
            kind=np.array([key[3] for key in instruments], dtype=np.int64),
            underlying=np.array([axis[key[0]] for key in instruments], dtype=np.int64),
            strike=np.array([key[2] / USD for key in instruments], dtype=np.float64),
            expiry=np.array([key[1] for key in instruments], dtype=np.int64),
        ),
        underlyings=underlyings,
        feed=np.array([axes[1].index(feed) for feed in underlyings], dtype=np.int64),
        priced=tuple(tuple(sorted(by_feed[feed])) for feed in underlyings),
    )


def _instrument(terms: Contract) -> tuple[str, int, int, int]:
    """Return underlying, expiry, strike and kind; perps have neither expiry nor strike, whatever their reader says."""
    kind = KINDS[terms.kind]
    return (
        (terms.underlying, terms.expiry, terms.strike, kind) if kind in (CALL, PUT) else (terms.underlying, 0, 0, kind)
    )


class _Listed(NamedTuple):
    """What many accounts may be in."""

    contract: Contract  # without entry and funding
    unit: str


class _Derived(NamedTuple):
    """The rows in contracts, each with the index of its terms among those that there are."""

    row: Ints  # (N,) ascending
    terms: Ints  # (N,) of ``listed``
    quantity: Floats  # (N,) 1e-18, as they are: of any sign
    entry: Floats  # (N,) 1e-8 USD
    funding: Floats  # (N,) base units of what it settles in
    listed: tuple[_Listed, ...]

    @classmethod
    def of(cls, of: _Columns, chosen: Sequence[int]) -> _Derived:
        contracts = [of.contract[i] for i in chosen]
        keys = [(c.kind, c.underlying, c.strike, c.expiry, of.unit[i]) for c, i in zip(contracts, chosen, strict=True)]
        number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        return cls(
            row=np.array(chosen, dtype=np.int64),
            terms=np.fromiter(map(number.__getitem__, keys), dtype=np.int64, count=len(keys)),
            quantity=_floats([of.quantity[i] for i in chosen]),
            entry=_floats([contract.entry for contract in contracts]),
            funding=_floats([contract.funding for contract in contracts]),
            listed=tuple(_Listed(Contract(key[0], key[1], key[2], key[3]), key[4]) for key in number),
        )

    def without(self, rows: Collection[int]) -> _Derived:
        """Leave some rows of the book out."""
        kept = ~np.isin(self.row, list(rows))
        return self._replace(**{name: getattr(self, name)[kept] for name in self._fields if name != "listed"})

    def expired(self, now: int) -> list[int]:
        """Return the rows of options past their expiry."""
        over = [KINDS.get(terms.kind) in (CALL, PUT) and 0 < terms.expiry <= now for terms, _ in self.listed]
        found: list[int] = self.row[np.array(over, dtype=np.bool_)[self.terms]].tolist()
        return found


class _Terms:
    """Judge what contracts say about themselves."""

    def __init__(
        self,
        underlyings: Mapping[str, UnderlyingRow],
        dollars: Collection[str],
        assets: Mapping[str, AssetRow],
        feeds: Sequence[str],
        now: int,
    ) -> None:
        self._underlyings, self._feeds, self._latest = underlyings, set(feeds), now + LONGEST_EXPIRY
        self._unit = {id: row.feed for id, row in assets.items()}
        self._dollars = frozenset(dollars)

    def suspects(self, of: _Derived) -> list[int]:
        """Return which rows may have a problem: all that :meth:`problem` finds one in, and few others."""
        sound = np.array([not self._wrong_terms(*listed) for listed in of.listed], dtype=np.bool_)[of.terms]
        inverse = np.array([terms.kind == "inverse" for terms, _ in of.listed], dtype=np.bool_)[of.terms]
        fine = sound & (of.quantity >= 0) & (of.quantity <= LARGEST_CONTRACT * 10.0**CONTRACT_DECIMALS)
        fine &= (of.entry >= inverse) & (of.entry <= LARGEST_CONTRACT) & (np.abs(of.funding) <= LARGEST_CONTRACT)
        found: list[int] = of.row[~fine].tolist()
        return found

    def problem(self, position: Position) -> tuple[str, str] | None:
        """Return code and detail of a finding if the contract cannot be valued."""
        terms = position.contract
        wrong = ""
        if found := self._wrong_terms(terms, position.unit):
            return found
        if terms.entry < 0 or (KINDS[terms.kind] == INVERSE and terms.entry == 0):
            wrong = f"entry {terms.entry} is no price"
        elif position.quantity < 0:
            wrong = f"size {position.quantity} is negative; the side says which way"
        elif not _bounded(position.quantity, CONTRACT_DECIMALS) or not all(
            _bounded(value, 0) for value in (terms.entry, terms.funding)
        ):
            wrong = "a number is out of range"
        return ("bad-contract", f"{wrong}: it may owe any amount") if wrong else None

    def _wrong_terms(self, terms: Contract, unit: str) -> tuple[str, str] | None:
        """Return code and detail of a finding if nobody's contract of these terms can be valued."""
        kind, underlying, strike, expiry = terms.kind, terms.underlying, terms.strike, terms.expiry
        row = self._underlyings.get(underlying)
        if kind not in KINDS:
            return "unknown-contract", f"a contract of kind {kind!r}: it may owe any amount"
        if row is None or underlying not in self._feeds:
            return "unknown-underlying", f"{underlying!r} is no underlying with a price: it may owe any amount"
        feed, option, wrong = self._unit.get(unit, ""), KINDS[kind] in (CALL, PUT), ""
        if KINDS[kind] == INVERSE and feed != underlying:
            return (
                "unknown-settlement",
                f"an inverse perp that settles in {unit}, no {underlying}: it may owe any amount",
            )
        if KINDS[kind] != INVERSE and feed not in self._dollars:
            return "unknown-settlement", f"settles in {unit}, none of the policy's dollars: it may owe any amount"
        if option and not row.surface:
            wrong = f"the policy has no surface of {underlying}"
        elif option and strike <= 0:
            wrong = f"strike {strike} is not positive"
        elif option and not 0 < expiry <= self._latest:
            wrong = f"expiry {expiry} is no time within 30 years"
        elif not _bounded(strike, 0):
            wrong = "a number is out of range"
        return ("bad-contract", f"{wrong}: it may owe any amount") if wrong else None

    @staticmethod
    def expired(position: Position, last: int) -> tuple[str, str]:
        """Return the finding on an option that has expired at the cut.

        Args:
            last: time of the block at which the venue called it live, Unix seconds.
        """
        expiry, venue = position.contract.expiry, position.venue
        if expiry <= last:
            return "contract-expired", f"expired at {expiry} and not settled by {venue}: it gains nothing"
        what = "it gains nothing" if position.side == "asset" else "it may owe any amount"
        return (
            "contract-expired",
            f"expired at {expiry}, last seen at {last}; what {venue} pays is not known yet: {what}",
        )


def _bounded(value: int, decimals: int) -> bool:
    return abs(value) <= LARGEST_CONTRACT * 10.0**decimals


def _starts(*columns: Ints) -> Bools:
    """Mark the rows where any of the columns changes, and the first row."""
    starts = np.ones(len(columns[0]), dtype=np.bool_)
    if len(starts):
        starts[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return starts


class _Catalogue:
    """Assign kinds to positions, one look-up each."""

    def __init__(
        self,
        assets: Mapping[str, AssetRow],
        axes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
        blocks: Sequence[tuple[str, int]],
    ) -> None:
        self._assets = assets
        self._chains = set(axes[0])
        self._views = {block: i for i, block in enumerate(blocks)}
        self._feeds, self._policies = ({name: i for i, name in enumerate(axis)} for axis in axes[1:])
        self._known: dict[tuple[str, int, str, str, int], int] = {}
        self._columns: list[tuple[int, int, int, int]] = []
        self.decimals: list[int] = []
        self.problem: list[tuple[str, str] | None] = []

    def kinds_of(
        self,
        chain: Sequence[str],
        seen: Sequence[int],
        held: Sequence[str],
        unit: Sequence[str],
        sides: Sequence[int],
    ) -> Ints:
        """Return the kind of each row."""
        keys = list(zip(chain, seen, held, unit, sides, strict=True))
        for key in dict.fromkeys(keys):
            if key not in self._known:
                self._add(key)
        return np.fromiter(map(self._known.__getitem__, keys), dtype=np.int64, count=len(keys))

    def view(self, kind: int) -> int:
        """Return the place of a kind's view on its axis."""
        return self._columns[kind][0]

    def unknown(self, position: Position, side: int) -> int:
        """Return the kind that counts 0 at the position's view."""
        key = (position.chain, position.seen, "", "", side)
        found = self._known.get(key)
        return self._add(key) if found is None else found

    def kinds(self) -> Kinds:
        columns = np.array(self._columns, dtype=np.int64).reshape(-1, 4)
        return Kinds(*(np.ascontiguousarray(column) for column in columns.T))

    def _add(self, key: tuple[str, int, str, str, int]) -> int:
        chain, seen, asset, unit, side = key
        held, valued = self._assets.get(asset), self._assets.get(unit)
        problem = None
        if chain not in self._chains:
            problem = "unknown-chain", f"{chain} is not configured: counts 0"
        elif (chain, seen) not in self._views:
            problem = "unknown-block", f"nothing is carried from block {seen} of {chain}: counts 0"
        elif held is None or not asset.startswith(chain + "/"):
            problem = "unknown-asset", f"{asset} is not configured on {chain}: counts 0"
        elif valued is None:
            problem = "unknown-unit", f"{unit} is not configured: counts 0"
        elif held.policy not in self._policies:
            problem = "unknown-policy", f"policy {held.policy!r} of {held.symbol} is not configured: counts 0"
        elif valued.feed not in self._feeds:
            problem = "unknown-feed", f"feed {valued.feed!r} of {valued.symbol} has no source: counts 0"
        place = self._views.get((chain, seen), len(self._views))
        if problem or held is None or valued is None:
            self._columns.append((place, len(self._feeds), len(self._policies), side))
        else:
            self._columns.append((place, self._feeds[valued.feed], self._policies[held.policy], side))
        self.decimals.append(valued.decimals if valued else 0)
        self.problem.append(problem)
        self._known[key] = len(self._columns) - 1
        return len(self._columns) - 1


class _Columns(NamedTuple):
    """Positions by column: what a loop over them would look up again and again."""

    account: Sequence[str] = ()
    chain: Sequence[str] = ()
    venue: Sequence[str] = ()
    asset: Sequence[str] = ()
    quantity: Sequence[int] = ()
    unit: Sequence[str] = ()
    amount: Sequence[int] = ()
    side: Sequence[Side] = ()
    control: Sequence[Control] = ()
    removal_delay: Sequence[int] = ()
    pending: Sequence[int] = ()
    netting: Sequence[str] = ()
    address: Sequence[str] = ()
    origin: Sequence[str] = ()
    seen: Sequence[int] = ()
    contract: Sequence[Contract] = ()
    drawn: Sequence[Drawn] = ()

    @classmethod
    def of(cls, rows: Sequence[Position]) -> _Columns:
        return cls(*zip(*rows, strict=True))


def _sides(of: _Columns, destinations: Collection[str]) -> list[int]:
    """Return the class of every row, with destinations on the chains named."""
    sides = [ASSET if side == "asset" else DEBT for side in of.side]
    for i, contract in enumerate(of.contract):
        if contract.kind:
            sides[i] = DEBT
        elif sides[i] == DEBT and of.venue[i] == CONSUMER_VENUE and of.chain[i] in destinations:
            sides[i] = CONSUMER_DEBT
    return sides


def _suspects(of: _Columns, kind: Ints, catalogue: _Catalogue) -> list[int]:
    """Return the rows that cannot be interpreted, or whose numbers may be malformed; ascending."""
    if not len(kind):
        return []
    bad = np.array([problem is not None for problem in catalogue.problem], dtype=np.bool_)[kind]
    amount, pending = _floats(of.amount), _floats(of.pending)
    derived = np.array([contract.kind != "" for contract in of.contract], dtype=np.bool_)
    found: list[int] = np.flatnonzero(bad | (amount < 0) | (pending < 0) | (derived & (amount != 0))).tolist()
    return found


def _malformed(position: Position) -> tuple[str, str] | None:
    if position.amount < 0 or position.pending < 0:
        return "bad-amount", f"amount {position.amount}, pending {position.pending}: negative, counts 0"
    if position.contract.kind and position.amount:
        return "bad-amount", f"amount {position.amount} of a contract, which is no holding: counts 0"
    return None


def _delays(values: Sequence[int]) -> Ints:
    """Return removal delays in seconds, of which longer ones than :data:`LONGEST_DELAY` gain nothing."""
    return np.clip(_floats(values), 0, LONGEST_DELAY).astype(np.int64)


def _floats(values: Sequence[int]) -> Floats:
    """Convert exact integers, infinite where a float cannot hold them."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        far = [np.inf if v > 0 else -np.inf for v in values]
        return np.array([float(v) if abs(v).bit_length() < 1024 else x for v, x in zip(values, far, strict=True)])


def _worrying(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield the findings after which something is unknown that no row of the book stands for."""
    return (f for f in snapshot.findings if f.code not in INFORMATIONAL and f.code not in BESIDE_A_POSITION)


def _partial(
    snapshot: Snapshot, number: Mapping[str, int], place: Mapping[str, int], touches: Bools, monitored: Bools
) -> Bools:
    """Mark accounts with something unread: a finding on the account, or a missing chain."""
    partial = np.zeros(len(number), dtype=np.bool_)
    scopes = (finding.scope.split(" ", 1)[0] for finding in _worrying(snapshot))
    partial[[number[scope] for scope in scopes if scope in number]] = True
    views = {view.chain: view for view in snapshot.chains}
    for chain in place:
        if is_missing(views.get(chain)):
            # Anybody may have deposited into, or borrowed from, a chain that was never read.
            partial |= ~monitored | touches[:, place[chain]]
    return partial


def view_axis(snapshot: Snapshot, chains: Sequence[str]) -> tuple[ChainView | None, ...]:
    """Return what was seen along the view axis of a book: each of ``chains``, then each block carried on one of them.

    Carried blocks ascend by chain and height, whatever the order they come in.
    """
    newest = {view.chain: view for view in snapshot.chains}
    carried = {(v.chain, v.block.height): v for v in snapshot.carried if v.block is not None and v.chain in set(chains)}
    return (*(newest.get(chain) for chain in chains), *(carried[key] for key in sorted(carried)))


def is_missing(view: ChainView | None) -> bool:
    """Say whether nothing is known of a chain."""
    return view is None or view.block is None or view.status == "missing"
