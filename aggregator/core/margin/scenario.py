"""The scenario model: the product's own portfolio margin (risk.md §4).

One grid of scenarios s is common to all underlyings u: moves ``δ ∈ R_u·{0, ±¼, ±½, ±¾}`` × volatility {none, up, down},
±R_u with volatility up, tails beyond at a damped weight ``d = min(1, κ·R_u/|δ|)`` with volatility up, and two skews at
a fixed price, each applied both ways (PMRM-2 counts either as the absolute change of an expiry, to the same end). Of an
account,

    L_{u,s} = d_{u,s}·(M_u − Σ_e f_e(v_{e,s}) − q_u·S_u·δ_{u,s})
    f_e(v)  = min(D⁺_e·v, D⁻_e·v)

with e its expiries, v_{e,s} the undiscounted value of its options there, M_u what they are worth now, q_u its perps and
hedging spot in units. The static discount goes by the sign of the shocked value of the expiry and D⁺ ≤ e^{−rT} ≤ D⁻, so
that discounting never helps and the scenario without a shock already loses 0 or more. Then

    L_u = max_s L_{u,s}        R_g = (1−λ_g)·Σ_u L_u + λ_g·max_s Σ_u L_{u,s}
    R^k = f_k·max(Σ_g R_g, basis, ES) + o_k·S·naked short options + π·S·|perps| + confidence + concentration

- R_g is positively homogeneous and subadditive, f_e being concave; basis and ES are too.
- basis: ``Σ_e max(0, −ΔV(basis_up), −ΔV(basis_down))·(basis_add + basis_slope·T)``: every expiry's forward may part
  from spot on its own.
- ES: of the losses over the joint moves of ``policy.history``, by full revaluation at unchanged volatility. Underlyings
  that the history does not know stand still there; the grid covers them.
- naked short options: Σ over (expiry, strike) of max(0, short − long), calls and puts together.
- π grows with the size: ``max(π_k, 0.8·π_k + size_factor·√|perps|)``.
- confidence: where the score is below the threshold, (1 − score)·confidence_margin of the gross notional of contracts,
  at initial margin only, as in PMRM: an unsure price opens no risk, and makes nobody liquidatable.
- concentration: ``Y·σ_day·√(N/ADV)·N``, N = the gross delta notional of contracts: every leg is closed by itself.

An option's forward moves in full up to its expiry and beyond, until its venue settles it: venues that settle at an
average of past prices do not say over which seconds, so that nothing counts as fixed before it is paid. Past expiry an
option is worth its intrinsic value, without volatility: the limit of what it was worth before.

Rows may be said to be *loose*: perps and long options that may be gone when it matters, each or any of them. Such a row
enters every scenario, the basis and the history with what it loses there by itself, or with 0 where it gains; it covers
no short option; and of perps the larger net size with or without the loose ones of either side is charged. So R is no
less than R without any of the loose rows, whichever those are, and one loose row more never makes it less.

Every distinct instrument is valued once per scenario (:func:`prepare`); accounts only gather and add up
(:func:`requirement_on`), some thousand at a time, so that memory stays bounded. A what-if is
``requirement_on`` of one portfolio on the grid of the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.special import ndtr

from aggregator.core.contracts import (
    carry_factors,
    implied_vols,
    is_option,
    linear_units,
    sum_by,
    verify_market,
    verify_portfolios,
    verify_priceable,
    years_left,
)
from aggregator.core.instruments.option import price_grid
from aggregator.core.risk.tails import expected_shortfall, tail_of
from aggregator.core.weights import liability_weight
from aggregator.domain.contracts import CALL, LAYERS, Bools, Instruments, Ints, Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow, ScenarioRow, total_variance
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import Floats

AT_A_TIME = 16_384
"""Options and (account, underlying) pairs worked on at a time: their scenarios stay near the core."""
CELLS = 1 << 22
"""Numbers that a temporary array over the history may hold."""
_INNER, _SKEWS = 23, 4  # scenarios within the range, which come first, and at a fixed price, which come last
_VALUED = 1 << 12  # options valued at a time
_KEPT = 1 << 24  # numbers of history rows that a grid keeps
_MONTH, _DAY = 30.0, 86_400
SCENARIO, BASIS, TAIL, SHORT_OPTIONS, PERPS, CONFIDENCE, CONCENTRATION = range(len(LAYERS))
_NONE, _UP, _DOWN, _LINEAR, _LINEAR_BACK, _ABSOLUTE, _ABSOLUTE_BACK = range(7)
_WORDS = ("", ", vol up", ", vol down", ", skew up", ", skew down", ", smile up", ", smile down")


@dataclass(frozen=True, slots=True, eq=False)
class Scenarios:
    """The S scenarios of every underlying; the first is no shock at all."""

    move: Floats  # (U, S) δ, at least −1
    shock: Ints  # (S,) which volatility
    weight: Floats  # (U, S) d

    def words(self, feeds: tuple[str, ...]) -> list[list[str]]:
        """Name every scenario of every underlying for people, e.g. ``ETH/USD -13.5%, vol up``."""
        return [
            [f"{feed} {move:+.4g}%{_WORDS[shock]}" for move, shock in zip(moves * 100, self.shock, strict=True)]
            for feed, moves in zip(feeds, self.move, strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What the value of one unit of every instrument follows from, each of shape (I,) unless said. Perps: unused."""

    forward: Floats  # USD
    strike: Floats
    moneyness: Floats  # ln F − ln K
    deviation: Floats  # (I, 7) shocked σ·√T, by shock
    call: Bools
    discount: Floats  # e^{−rT}
    floor: Floats  # D⁺
    ceiling: Floats  # D⁻
    delta: Floats  # |∂value/∂S|
    underlying: Ints

    def values(self, part: Ints, move: Floats, shock: Ints) -> Floats:
        """Price options undiscounted, shape (P, S).

        Args:
            part: which instruments, shape (P,).
            move: δ of every underlying, shape (U, S).
            shock: which volatility, shape (S,).
        """
        u = self.underlying[part]
        with np.errstate(divide="ignore"):
            forward, moneyness = (1 + move)[u], np.log1p(move)[u]
        forward *= self.forward[part, None]
        moneyness += self.moneyness[part, None]
        deviation = self.deviation[part].take(shock, axis=1)
        return price_grid(moneyness, forward, self.strike[part, None], deviation, self.call[part, None])


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What one unit of every option is worth in every scenario; does not depend on who holds it.

    Options stand in *slots*, ordered so that those of an offset group, an underlying, an expiry (a *block*) and a
    strike stand together. Perps and spot need none: they move with the price.
    """

    instruments: Instruments
    market: Market
    policy: PolicyRow
    scenarios: Scenarios
    marks: Marks
    slot: Ints  # (I,) of each option; −1 for perps
    source: Ints  # (O,) by slot: the instrument
    values: Floats  # (O, S) by slot: D⁻·v
    ends: Floats  # (2, O) by slot: change of value at both ends of the basis
    now: Floats  # (O,) by slot: what it is worth
    block: Ints  # (O,) by slot
    strike: Ints  # (O,) by slot: its (expiry, strike)
    loading: Floats  # (B,) 1 − D⁺/D⁻: what is taken off D⁻·v where it is positive
    basis: Floats  # (B,) basis_add + basis_slope·T
    rank: Ints  # (U,) place of each underlying when they stand by group
    group: Ints  # (U,) the offset group; an underlying without one is its own
    offset: Floats  # (G,) λ
    moves: Floats | None  # (U, H) joint relative moves
    history: Floats | None  # (O, H) by slot: changes of value; None where that would be too many to keep
    words: npt.NDArray[np.object_]  # (U, S) scenarios for people


class _Starts(NamedTuple):
    """Where each run of equal keys begins, closed by the end, and the run of each element."""

    at: Ints  # (n + 1,)
    of: Ints

    @property
    def runs(self) -> int:
        return len(self.at) - 1

    @property
    def first(self) -> Ints:
        return self.at[:-1]


@dataclass(frozen=True, slots=True, eq=False)
class _Loose:
    """What may be gone: perps by pair, and L long options ordered by pair."""

    perp: Bools  # (N,) by row
    rising: Floats  # (P,) units of loose perps that gain as the price rises, 0 or more
    falling: Floats  # (P,) and as it falls, 0 or less
    row: Ints  # (L,) of the portfolios
    slot: Ints  # (L,)
    amount: Floats  # (L,)
    pair: Ints  # (L,)

    def perps_lose(self, slopes: Floats, pairs: slice) -> Floats:
        """Return what loose perps of some pairs lose, USD, shape of ``slopes``.

        Args:
            slopes: USD that one unit of each pair loses, shape (pairs, ...).
        """
        rising, falling = self.rising[pairs, None], self.falling[pairs, None]
        lost: Floats = np.maximum(slopes, 0.0) * rising + np.minimum(slopes, 0.0) * falling
        return lost


@dataclass(frozen=True, slots=True, eq=False)
class _Book:
    """Portfolios laid out along a grid: P pairs of (account, underlying), and E options ordered by slot in each.

    What is loose stands apart; ``perps`` and the options hold the rest.
    """

    account: Ints  # (P,) ascending
    underlying: Ints  # (P,) ascending by rank within an account
    perps: Floats  # (P,) net units
    spot: Floats  # (P,) units
    units: Floats  # (N,) of the underlying, by row; 0 for options
    pair: Ints  # (N,) by row
    row: Ints  # (E,) of the portfolios
    slot: Ints  # (E,)
    amount: Floats  # (E,)
    blocks: _Starts  # runs of options of one account and expiry
    loose: _Loose | None


class _Worst(NamedTuple):
    """The worst scenario of n things, and what they lose there, USD, never negative."""

    scenario: Ints  # (n,)
    loss: Floats  # (n,)

    @classmethod
    def of(cls, count: int) -> _Worst:
        return cls(np.zeros(count, dtype=np.int64), np.zeros(count))

    def find(self, first: int, losses: Floats) -> None:
        """Fill in what follows ``first`` from losses of shape (some, S)."""
        last = first + len(losses)
        self.scenario[first:last] = top = np.argmax(losses, axis=1)
        self.loss[first:last] = np.maximum(losses[np.arange(len(losses)), top], 0.0)


class _Core(NamedTuple):
    """What the scenarios and the basis ask of A accounts, USD, and how it falls to rows and to spot."""

    scenario: Floats  # (A,) Σ R_g
    basis: Floats  # (A,)
    by_row: Floats  # (N,) of the greater of both
    by_spot: Floats  # (P,)
    loss: Floats  # (P,) L_u
    worst: Ints  # (P,) its scenario


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the model requires of every portfolio, USD; see the module.

    Raises:
        ValueError: an argument is out of its range, or an option has no mark; the message names it.
    """
    return requirement_on(prepare(portfolios.instruments, market, policy), portfolios)


def prepare(instruments: Instruments, market: Market, policy: PolicyRow) -> Grid:
    """Value one unit of every instrument in every scenario.

    Raises:
        ValueError: the market is out of its range, or an option has no mark; the message names it.
    """
    verify_market(market)
    verify_priceable(instruments, market)
    row = policy.scenario
    scenarios = build_scenarios(market, row)
    marks = build_marks(instruments, market, row)
    group, offset = _offset_groups(market, policy)
    rank = np.empty(len(group), dtype=np.int64)
    rank[np.argsort(group, kind="stable")] = np.arange(len(group))
    options = np.flatnonzero(is_option(instruments))
    of = Instruments(*(column[options] for column in _columns(instruments)))
    source = options[np.lexsort((of.kind, of.strike, of.expiry, rank[of.underlying]))]
    slot = np.full(len(instruments.kind), -1)
    slot[source] = np.arange(len(source))
    block = _starts(instruments.underlying[source], instruments.expiry[source])
    first = source[block.first]

    size = scenarios.move.shape[1]
    values, ends, now = np.empty((len(source), size)), np.empty((2, len(source))), np.empty(len(source))
    apart = np.tile([row.basis_up - 1, row.basis_down - 1], (len(market.feeds), 1))
    for where in _pieces(len(source), _VALUED):
        part = source[where]
        worth = marks.values(part, scenarios.move, scenarios.shock)
        shifted = marks.values(part, apart, np.full(2, _NONE)) - worth[:, :1]
        now[where] = worth[:, 0] * marks.discount[part]
        np.multiply(shifted.T, marks.discount[part], out=ends[:, where])
        np.multiply(worth, marks.ceiling[part, None], out=values[where])
    grid = Grid(
        instruments=instruments,
        market=market,
        policy=policy,
        scenarios=scenarios,
        marks=marks,
        slot=slot,
        source=source,
        values=values,
        ends=ends,
        now=now,
        block=block.of,
        strike=_starts(block.of, instruments.strike[source]).of,
        loading=(1 - marks.floor / marks.ceiling)[first],
        basis=(row.basis_add + row.basis_slope * years_left(instruments, market.now))[first],
        rank=rank,
        group=group,
        offset=offset,
        moves=_joint_moves(market, policy),
        history=None,
        words=np.array(scenarios.words(market.feeds), dtype=object).reshape(scenarios.move.shape),
    )
    if grid.moves is None or grid.moves.shape[1] * len(source) > _KEPT:
        return grid
    return replace(grid, history=_changes(grid, np.arange(len(source))))


def requirement_on(grid: Grid, portfolios: Portfolios, loose: Bools | None = None) -> Requirement:
    """Compute what the model requires of portfolios of a grid's instruments, USD.

    Args:
        loose: which rows may be gone, shape (N,); of short options it is ignored. None: no row.

    Raises:
        ValueError: a portfolio is out of its range, or refers to other instruments than the grid's.
    """
    _verify_instruments(grid, portfolios)
    verify_portfolios(portfolios, grid.market)
    count, accounts = len(portfolios.account), portfolios.accounts
    book = _lay_out(grid, portfolios, loose)
    core = _value(grid, book, count, accounts)
    tail = _tail(grid, book, accounts)
    parts = np.stack([core.scenario, core.basis, tail])
    binding = np.argmax(parts, axis=0)
    if (binding == 2).any():
        _allocate_tail(grid, book, binding == 2, core.by_row, core.by_spot)

    layers, rows = np.zeros((2, len(LAYERS), accounts)), np.zeros((2, count + portfolios.spot.size))
    spot_column = count + book.account * portfolios.spot.shape[1] + book.underlying
    steps = np.diff(np.maximum.accumulate(parts, axis=0), axis=0, prepend=0.0)
    row = grid.policy.scenario
    for level, factor in ((INITIAL, row.initial_factor), (MAINTENANCE, row.maintenance_factor)):
        layers[level, :3] = factor * steps
        np.multiply(core.by_row, factor, out=rows[level, :count])
        rows[level, spot_column] = factor * core.by_spot
    _add_on(grid, book, portfolios, layers, rows[:, :count])
    totals = layers.sum(axis=1)
    return Requirement(
        initial=totals[INITIAL],
        maintenance=totals[MAINTENANCE],
        layers=layers,
        rows=rows,
        binding=_name(grid, book, core, binding, parts.max(axis=0, initial=0.0)),
    )


def build_scenarios(market: Market, row: ScenarioRow) -> Scenarios:
    """Return the scenarios of every underlying: 23 within the range, the tails, four at a fixed price."""
    inner = [(step / 4, shock) for step in (0, 1, -1, 2, -2, 3, -3) for shock in (_NONE, _UP, _DOWN)]
    inner += [(1.0, _UP), (-1.0, _UP)]
    wide, range_ = len(market.feeds), market.range[:, None]
    tails = np.tile(np.array(row.tails, dtype=np.float64), (wide, 1))
    still = np.zeros((wide, _SKEWS))
    move = np.hstack([range_ * np.array([step for step, _ in inner]), tails, still])
    skews = (_LINEAR, _LINEAR_BACK, _ABSOLUTE, _ABSOLUTE_BACK)
    shock = np.array([*(shock for _, shock in inner), *(_UP for _ in row.tails), *skews], dtype=np.int64)
    weight = np.ones(move.shape)
    weight[:, _INNER:-_SKEWS] = np.minimum(1.0, row.damping * range_ / np.abs(tails))
    return Scenarios(np.maximum(move, -1.0), shock, weight)


def build_marks(instruments: Instruments, market: Market, row: ScenarioRow) -> Marks:
    """Return what instruments are valued by, with the shocked volatilities and static discounts of risk.md §4."""
    t = years_left(instruments, market.now)
    growth, discount = carry_factors(instruments, market)
    forward = market.spot[instruments.underlying] * growth
    option = is_option(instruments)
    moneyness = np.log(forward) - np.log(np.where(option, instruments.strike, forward))
    sigma = implied_vols(instruments, market)
    deviation = (shocked_vols(sigma, t, moneyness, row) * np.sqrt(t)).T.copy()
    rate = np.maximum([underlying.rate for underlying in market.rows], 0.0)[instruments.underlying]
    policy = row.discount
    floor = policy.base * np.exp(-(rate * (1 + policy.long_scale) + policy.long_add) * t)
    ceiling = policy.base_negative * np.exp(-(rate * (1 - policy.short_scale) - policy.short_add) * t)
    sign = np.where(instruments.kind == CALL, 1.0, -1.0)
    least = np.maximum(deviation[:, _NONE], 1e-300)
    with np.errstate(over="ignore"):
        inside = ndtr(sign * (moneyness / least + least / 2))
    return Marks(
        forward=forward,
        strike=instruments.strike,
        moneyness=moneyness,
        deviation=deviation,
        call=instruments.kind == CALL,
        discount=discount,
        floor=np.minimum(floor, discount),
        ceiling=np.maximum(np.minimum(ceiling, 1.0), discount),
        delta=discount * growth * inside,
        underlying=instruments.underlying,
    )


def shocked_vols(sigma: Floats, t: Floats, k: Floats, row: ScenarioRow) -> Floats:
    """Return the seven volatilities of every option, per sqrt(year), shape (7, I).

    Unshocked; up ``max(σ(1 + up·m), least)`` and down ``σ·max(0, 1 − down·m)`` with ``m = (30 d/max(t, floor))^p``; and
    σ·(1 ± clip(x·cap/k*, ±cap)) with x = k and x = |k|.

    Args:
        sigma: shape (I,); t: years; k: ln(K/F) up to its sign, as only ±x enter. Shapes (I,).
    """
    days = t * 365.0
    shock, skew = row.volatility, row.skew
    power = np.where(days <= _MONTH, shock.short_power, shock.long_power)
    m = (_MONTH / np.maximum(days, shock.floor_days)) ** power
    cap = np.maximum(skew.cap_static + skew.cap_slope * np.sqrt(t), 0.0)
    scale = cap / np.maximum(skew.least_width, skew.width * np.sqrt(t))
    tilt, smile = (np.clip(x * scale, -cap, cap) for x in (-k, np.abs(k)))
    factors = (1 + tilt, 1 - tilt, 1 + smile, 1 - smile)
    up, down = np.maximum(sigma * (1 + shock.up * m), shock.least), sigma * np.maximum(0.0, 1 - shock.down * m)
    return np.stack([sigma, up, down, *(sigma * np.maximum(factor, 0.0) for factor in factors)])


def daily_volatility(market: Market) -> Floats:
    """Return σ_day of every underlying, shape (U,): at the money of its first slice, or a third of its range."""
    at_the_money = [
        math.sqrt(total_variance(row.surface[0], 0.0) * _DAY / row.surface[0].tenor) if row.surface else None
        for row in market.rows
    ]
    return np.array([r / 3 if s is None else s for s, r in zip(at_the_money, market.range, strict=True)])


def _offset_groups(market: Market, policy: PolicyRow) -> tuple[Ints, Floats]:
    """Return every underlying's group, shape (U,), and λ of every group."""
    keys = [(row.group, "") if row.group else ("", feed) for feed, row in zip(market.feeds, market.rows, strict=True)]
    names = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    offset = np.array([policy.groups[group].offset if group else 0.0 for group, _ in names])
    return np.array([names[key] for key in keys], dtype=np.int64), offset


def _joint_moves(market: Market, policy: PolicyRow) -> Floats | None:
    """Return the moves of the history by underlying of the market, shape (U, H)."""
    if policy.history is None:
        return None
    known = dict(zip(policy.history.underlyings, np.array(policy.history.moves).T, strict=True))
    still = np.zeros(len(policy.history.moves))
    return np.array([known.get(feed, still) for feed in market.feeds]).reshape(len(market.feeds), len(still))


def _changes(grid: Grid, slots: Ints) -> Floats:
    """Return by how much the value of one option of these slots changes in every joint move, USD, shape (slots, H)."""
    assert grid.moves is not None
    changes = np.empty((len(slots), grid.moves.shape[1]))
    calm = np.full(grid.moves.shape[1], _NONE)
    for where in _pieces(len(slots), max(1, CELLS // grid.moves.shape[1])):
        part = grid.source[slots[where]]
        worth = grid.marks.values(part, grid.moves, calm) * grid.marks.discount[part, None]
        np.subtract(worth, grid.now[slots[where], None], out=changes[where])
    return changes


def _lay_out(grid: Grid, portfolios: Portfolios, loose: Bools | None) -> _Book:
    """Order options by (account, slot) and net what is linear by (account, underlying)."""
    wide, accounts = len(grid.market.feeds), portfolios.accounts
    by_rank = np.argsort(grid.rank)
    place = portfolios.account * wide + grid.rank[grid.instruments.underlying[portfolios.instrument]]
    units = linear_units(portfolios)
    slots = grid.slot[portfolios.instrument]
    if loose is not None:
        loose = loose & ((slots < 0) | (portfolios.size > 0))
    perps = sum_by(place, units if loose is None else np.where(loose, 0.0, units), accounts * wide)
    spot = portfolios.spot[:, by_rank].reshape(-1)
    present = spot > 0
    present[place] = True
    pairs = np.flatnonzero(present)
    number = np.cumsum(present) - 1

    row = np.flatnonzero(slots >= 0 if loose is None else (slots >= 0) & ~loose)
    key = portfolios.account[row] * max(1, len(grid.source)) + slots[row]
    if (key[1:] < key[:-1]).any():
        row = row[np.argsort(key, kind="stable")]
    slot = slots[row]
    return _Book(
        account=pairs // wide,
        underlying=by_rank[pairs % wide],
        perps=perps[pairs],
        spot=spot[pairs],
        units=units,
        pair=number[place],
        row=row,
        slot=slot,
        amount=portfolios.size[row],
        blocks=_starts(portfolios.account[row], grid.block[slot]),
        loose=_lay_out_loose(loose, units, slots, portfolios.size, number[place], len(pairs)),
    )


def _lay_out_loose(
    loose: Bools | None, units: Floats, slots: Ints, size: Floats, pair: Ints, pairs: int
) -> _Loose | None:
    """Lay out the rows that are loose, by rows of shape (N,); None without any."""
    if loose is None or not loose.any():
        return None
    option = np.flatnonzero(loose & (slots >= 0))
    option = option[np.lexsort((slots[option], pair[option]))]
    perp = loose & (slots < 0)
    return _Loose(
        perp=perp,
        rising=sum_by(pair, np.where(perp, np.maximum(units, 0.0), 0.0), pairs),
        falling=sum_by(pair, np.where(perp, np.minimum(units, 0.0), 0.0), pairs),
        row=option,
        slot=slots[option],
        amount=size[option],
        pair=pair[option],
    )


def _value(grid: Grid, book: _Book, rows: int, accounts: int) -> _Core:
    """Find the worst scenarios and the basis of every account, some thousand pairs at a time.

    The static discount is linear where an expiry is all long or all short, as options are worth 0 or more: such options
    sum to their pair at once, at D⁺ or D⁻. Expiries that are *mixed* are summed by themselves, and where their value
    is positive the difference between D⁻ and D⁺ is taken off.
    """
    pairs, size = len(book.account), len(grid.scenarios.shock)
    in_pair, block, starts = book.pair[book.row], book.blocks.of, book.blocks.first
    kind = grid.block[book.slot[starts]]
    loading = grid.loading[kind]
    long = book.amount > 0
    mixed = np.zeros(book.blocks.runs, dtype=np.bool_)
    if len(starts):
        mixed = np.logical_or.reduceat(long, starts) & ~np.logical_and.reduceat(long, starts)
    left = np.where(mixed[block] | ~long, 1.0, 1 - loading[block])  # what the static discount leaves
    segments = _starts(book.account, grid.group[book.underlying])
    offset = grid.offset[grid.group[book.underlying[segments.first]]]
    linear = -grid.market.spot[:, None] * grid.scenarios.move  # (U, S) what a unit loses
    damped = slice(_INNER, size - _SKEWS)
    units, worth_now = book.perps + book.spot, sum_by(in_pair, grid.now[book.slot] * book.amount, pairs)
    loose = book.loose
    if loose is not None:
        some, index_lost = np.unique(loose.slot, return_inverse=True)
        kept = (1 - grid.loading[grid.block[some]])[:, None] * grid.values[some]
        lost_by_slot = np.maximum(grid.now[some, None] - kept, 0.0)

    apart = _Worst.of(pairs)
    joint = _Worst.of(segments.runs)
    choices = [apart, joint] if (offset > 0).any() else [apart]
    lefts = [left, left.copy()][: len(choices)]
    bounds = np.searchsorted(in_pair, np.arange(pairs + 1))
    for p0, p1 in _spans(book.account, bounds + np.arange(pairs + 1), AT_A_TIME):
        e0, e1 = int(bounds[p0]), int(bounds[p1])
        amount, slot, ends = book.amount[e0:e1], book.slot[e0:e1], bounds[p0 : p1 + 1] - e0
        losses = _csr(-amount * left[e0:e1], slot, ends, len(grid.values)) @ grid.values
        between = np.flatnonzero(mixed[block[e0:e1]])
        if len(between):
            runs = _starts(block[e0:e1][between])
            worth = _csr(amount[between], slot[between], runs.at, len(grid.values)) @ grid.values
            first = e0 + between[runs.first]
            np.maximum(worth, 0.0, out=worth)
            at = np.searchsorted(in_pair[first], np.arange(p0, p1 + 1))
            losses += _csr(loading[block[first]], np.arange(runs.runs), at, runs.runs) @ worth
        of = book.underlying[p0:p1]
        losses += linear[of] * units[p0:p1, None]
        losses += worth_now[p0:p1, None]
        if loose is not None:
            losses += loose.perps_lose(linear[of], slice(p0, p1))
            at = np.searchsorted(loose.pair, np.arange(p0, p1 + 1))
            own = slice(at[0], at[-1])
            losses += _csr(loose.amount[own], index_lost[own], at - at[0], len(lost_by_slot)) @ lost_by_slot
        losses[:, damped] *= grid.scenarios.weight[of][:, damped]
        apart.find(p0, losses)
        if len(choices) > 1:
            g0, g1 = int(segments.of[p0]), int(segments.of[p1 - 1]) + 1
            to_groups = segments.at[g0 : g1 + 1] - p0
            joint.find(g0, _csr(np.ones(p1 - p0), np.arange(p1 - p0), to_groups, p1 - p0) @ losses)
        if len(between):
            chosen = in_pair[e0 + between]
            for choice, index, rate in zip(choices, (chosen, segments.of[chosen]), lefts, strict=False):
                positive = worth[runs.of, choice.scenario[index]] > 0
                rate[e0 + between] = 1 - loading[block[e0 + between]] * positive

    by_row, by_spot = np.zeros(rows), np.zeros(pairs)
    share = offset[segments.of]
    whose = (np.arange(pairs), segments.of)
    for choice, index, part, rate in zip(choices, whose, (1 - share, share), lefts, strict=False):
        scenario = choice.scenario[index]
        counts = part * (choice.loss[index] > 0) * grid.scenarios.weight[book.underlying, scenario]
        slope = linear[book.underlying, scenario] * counts
        by_spot += slope * book.spot
        linear_losses = slope[book.pair] * book.units
        if loose is not None:
            linear_losses = np.where(loose.perp, np.maximum(linear_losses, 0.0), linear_losses)
            worst = lost_by_slot[index_lost, scenario[loose.pair]]
            by_row[loose.row] += worst * loose.amount * counts[loose.pair]
        by_row += linear_losses
        lost = grid.now[book.slot] - grid.values.reshape(-1)[book.slot * size + scenario[in_pair]] * rate
        by_row[book.row] += lost * book.amount * counts[in_pair]

    total = sum_by(book.account, (1 - share) * apart.loss, accounts)
    total += sum_by(book.account[segments.first], offset * joint.loss, accounts)
    basis, by_loose = np.zeros(accounts), np.zeros(0)
    if loose is not None:
        falls = np.maximum(-grid.ends[:, loose.slot], 0.0).max(axis=0)
        by_loose = falls * loose.amount * grid.basis[grid.block[loose.slot]]
        basis = sum_by(book.account[loose.pair], by_loose, accounts)
    if len(starts):
        falls = np.stack([np.add.reduceat(end[book.slot] * book.amount, starts) for end in grid.ends])
        lower, least = np.argmin(falls, axis=0), falls.min(axis=0)
        charge = grid.basis[kind] * (least < 0)
        owner = book.account[in_pair[starts]]
        basis = basis + sum_by(owner, -least * charge, accounts)
    bound = basis > total
    by_row[bound[book.account[book.pair]]] = 0.0
    by_spot[bound[book.account]] = 0.0
    if loose is not None:
        also = np.flatnonzero(bound[book.account[loose.pair]])
        by_row[loose.row[also]] = by_loose[also]
    if len(starts):
        mine = np.flatnonzero(bound[owner][block])
        fall = grid.ends[lower[block[mine]], book.slot[mine]] * book.amount[mine]
        by_row[book.row[mine]] = -fall * charge[block[mine]]
    return _Core(total, basis, by_row, by_spot, apart.loss, apart.scenario)


def _tail(grid: Grid, book: _Book, accounts: int) -> Floats:
    """Return ES of the losses over the history, never negative, shape (A,); 0 without a history."""
    shortfall = np.zeros(accounts)
    if grid.moves is None or grid.policy.history is None:
        return shortfall
    for p0, p1, losses in _losses(grid, book, np.ones(accounts, dtype=np.bool_)):
        holders = book.account[p0:p1][_starts(book.account[p0:p1]).first]
        shortfall[holders] = np.maximum(expected_shortfall(losses, grid.policy.history.confidence), 0.0)
    return shortfall


def _allocate_tail(grid: Grid, book: _Book, chosen: Bools, by_row: Floats, by_spot: Floats) -> None:
    """Write into both the mean losses of the chosen accounts' rows and spot over the worst moves of their account."""
    assert grid.moves is not None
    assert grid.policy.history is not None
    tail = tail_of(grid.moves.shape[1], grid.policy.history.confidence)
    keep = tail.whole + (tail.part > 0)
    weight = np.append(np.ones(tail.whole), [tail.part] * (keep - tail.whole)) / tail.mass
    in_pair = book.pair[book.row]
    slope = np.zeros(len(book.account))
    loose, sides = book.loose, np.zeros((2, len(book.account)))  # of perps that are loose: rising, falling
    for p0, p1, losses in _losses(grid, book, chosen):
        worst = np.argsort(-losses, axis=1, kind="stable")[:, :keep][_starts(book.account[p0:p1]).of]
        of = book.underlying[p0:p1]
        moves = np.take_along_axis(grid.moves[of], worst, axis=1)
        slope[p0:p1] = -grid.market.spot[of] * (moves @ weight)
        e0, e1 = np.searchsorted(in_pair, (p0, p1))
        mine = e0 + np.flatnonzero(chosen[book.account[in_pair[e0:e1]]])
        for where in _pieces(len(mine), max(1, CELLS // grid.moves.shape[1])):
            options = mine[where]
            changes, index = _changes_of(grid, book.slot[options])
            moved = np.take_along_axis(changes[index], worst[in_pair[options] - p0], axis=1)
            by_row[book.row[options]] = -(moved @ weight) * book.amount[options]
        if loose is None:
            continue
        sides[0, p0:p1] = grid.market.spot[of] * (np.maximum(-moves, 0.0) @ weight)
        sides[1, p0:p1] = -grid.market.spot[of] * (np.maximum(moves, 0.0) @ weight)
        l0, l1 = (int(x) for x in np.searchsorted(loose.pair, (p0, p1)))
        mine = l0 + np.flatnonzero(chosen[book.account[loose.pair[l0:l1]]])
        for where in _pieces(len(mine), max(1, CELLS // grid.moves.shape[1])):
            options = mine[where]
            changes, index = _changes_of(grid, loose.slot[options])
            moved = np.take_along_axis(changes[index], worst[loose.pair[options] - p0], axis=1)
            by_row[loose.row[options]] = (np.maximum(-moved, 0.0) @ weight) * loose.amount[options]
    linear = np.flatnonzero(chosen[book.account[book.pair]] & (book.units != 0))
    by_row[linear] = slope[book.pair[linear]] * book.units[linear]
    if loose is not None:
        linear = linear[loose.perp[linear]]
        side = (book.units[linear] < 0).astype(np.int64)
        by_row[linear] = sides[side, book.pair[linear]] * book.units[linear]
    by_spot[:] = np.where(chosen[book.account], slope * book.spot, by_spot)


def _losses(grid: Grid, book: _Book, chosen: Bools) -> Iterator[tuple[int, int, Floats]]:
    """Yield spans of pairs of chosen accounts, and what each of their accounts loses in every joint move, USD.

    Yields:
        (p0, p1, losses of the span's accounts, of shape (accounts, H)).
    """
    assert grid.moves is not None
    step = max(1, CELLS // grid.moves.shape[1])
    moved = grid.market.spot[:, None] * grid.moves
    in_pair = book.pair[book.row]
    bounds = np.searchsorted(in_pair, np.arange(len(book.account) + 1))
    for p0, p1 in _spans(book.account, bounds + np.arange(len(bounds)), step):
        owners = _starts(book.account[p0:p1])
        if not chosen[book.account[p0:p1][owners.first]].any():
            continue
        linear = book.perps[p0:p1] + book.spot[p0:p1]
        losses = -(_csr(linear, book.underlying[p0:p1], owners.at, len(moved)) @ moved)
        for where in _pieces(int(bounds[p1] - bounds[p0]), step):
            span = slice(int(bounds[p0]) + where.start, min(int(bounds[p0]) + where.stop, int(bounds[p1])))
            changes, index = _changes_of(grid, book.slot[span])
            at = np.searchsorted(owners.of[in_pair[span] - p0], np.arange(owners.runs + 1))
            losses -= _csr(book.amount[span], index, at, len(changes)) @ changes
        if book.loose is not None:
            _add_loose(grid, book, book.loose, p0, p1, losses)
        yield p0, p1, losses


def _add_loose(grid: Grid, book: _Book, loose: _Loose, p0: int, p1: int, losses: Floats) -> None:
    """Add what loose rows of the pairs p0 … p1 − 1 lose in every joint move to ``losses``, of :func:`_losses`."""
    assert grid.moves is not None
    owners, step = _starts(book.account[p0:p1]), max(1, CELLS // grid.moves.shape[1])
    for where in _pieces(p1 - p0, step):
        pairs = slice(p0 + where.start, min(p0 + where.stop, p1))
        of = book.underlying[pairs]
        lost = loose.perps_lose(-grid.market.spot[of, None] * grid.moves[of], pairs)
        np.add.at(losses, owners.of[where], lost)
    l0, l1 = (int(x) for x in np.searchsorted(loose.pair, (p0, p1)))
    for where in _pieces(l1 - l0, step):
        own = slice(l0 + where.start, min(l0 + where.stop, l1))
        changes, index = _changes_of(grid, loose.slot[own])
        lost = np.maximum(-changes[index], 0.0) * loose.amount[own, None]
        np.add.at(losses, owners.of[loose.pair[own] - p0], lost)


def _changes_of(grid: Grid, slots: Ints) -> tuple[Floats, Ints]:
    """Return rows of the history that hold these slots, and where in them each slot is."""
    if grid.history is not None:
        return grid.history, slots
    some, index = np.unique(slots, return_inverse=True)
    return _changes(grid, some), index


def _add_on(grid: Grid, book: _Book, portfolios: Portfolios, layers: Floats, rows: Floats) -> None:
    """Add what is required beside the scenarios to the layers, shape (level, layer, A), and to rows, (level, N)."""
    row, market, of = grid.policy.scenario, grid.market, book.underlying
    spot = market.spot[of]
    by_account = _starts(book.account)

    def charge(level: int, layer: int, by_pair: Floats) -> None:
        layers[level, layer, book.account[by_account.first]] += np.add.reduceat(by_pair, by_account.first)

    if not len(of):
        return
    if len(book.row):
        strikes = _starts(book.pair[book.row], grid.strike[book.slot])
        uncovered = np.add.reduceat(book.amount, strikes.first)
        in_pair = book.pair[book.row]
        short = np.zeros(len(rows[0]))
        short[book.row] = -book.amount * (uncovered < 0)[strikes.of] * spot[in_pair]
        naked = sum_by(in_pair[strikes.first], np.maximum(-uncovered, 0.0), len(of)) * spot
        for level, rate in ((INITIAL, row.short_option_initial), (MAINTENANCE, row.short_option_maintenance)):
            charge(level, SHORT_OPTIONS, naked * rate)
            rows[level] += short * rate

    size_factor = np.array([underlying.size_factor for underlying in market.rows])[of]
    net, charged = book.perps, book.units
    if book.loose is not None:
        rising, falling = net + book.loose.rising, net + book.loose.falling
        up = np.abs(rising) >= np.abs(falling)
        net = np.where(up, rising, falling)
        charged = np.where(book.loose.perp & ((book.units > 0) != up[book.pair]), 0.0, book.units)
    held = np.abs(net)
    for level, rate in ((INITIAL, row.perp_initial), (MAINTENANCE, row.perp_maintenance)):
        each = liability_weight(rate, held, size_factor) * spot
        charge(level, PERPS, held * each)
        rows[level] += charged * (np.sign(net) * each)[book.pair]

    delta = np.where(is_option(grid.instruments), grid.marks.delta, 0.0)[portfolios.instrument]
    exposed = np.abs(book.units + portfolios.size * delta)
    notional = sum_by(book.pair, exposed, len(of)) * spot
    volume = np.array([underlying.daily_volume for underlying in market.rows])[of]
    impact = row.concentration * daily_volatility(market)[of] * np.sqrt(notional / volume)
    exposed *= (impact * spot)[book.pair]
    for level in (INITIAL, MAINTENANCE):
        charge(level, CONCENTRATION, impact * notional)
        rows[level] += exposed

    unsure = np.where(market.confidence < row.confidence_threshold, 1 - market.confidence, 0.0)
    if unsure[of].any():
        gross = np.abs(book.units + portfolios.size * (grid.slot >= 0)[portfolios.instrument])
        doubt = row.confidence_margin * unsure[of] * spot
        charge(INITIAL, CONFIDENCE, doubt * sum_by(book.pair, gross, len(of)))
        rows[INITIAL] += gross * doubt[book.pair]


def _name(grid: Grid, book: _Book, core: _Core, binding: Ints, most: Floats) -> tuple[str, ...]:
    """Name what each account's requirement follows: the scenario of the underlying that loses most, basis or tail."""
    names = np.full(len(binding), "", dtype=object)
    if len(book.account):
        owners = _starts(book.account)
        top = np.flatnonzero(core.loss == np.maximum.reduceat(core.loss, owners.first)[owners.of])[::-1]
        # The first of equals is written last.
        names[book.account[top]] = grid.words[book.underlying[top], core.worst[top]]
    names[binding == 1] = "basis between forwards and spot"
    if grid.moves is not None and grid.policy.history is not None:
        names[binding == 2] = f"worst {1 - grid.policy.history.confidence:.3g} of {grid.moves.shape[1]} past moves"
    names[most <= 0] = ""
    return tuple(names.tolist())


def _columns(instruments: Instruments) -> tuple[Any, Any, Any, Any]:
    return instruments.kind, instruments.underlying, instruments.strike, instruments.expiry


def _verify_instruments(grid: Grid, portfolios: Portfolios) -> None:
    if portfolios.instruments is not grid.instruments and not all(
        map(np.array_equal, _columns(portfolios.instruments), _columns(grid.instruments))
    ):
        raise ValueError("portfolios.instruments: not those of the grid; prepare another")


def _starts(*columns: npt.NDArray[Any]) -> _Starts:
    """Find the runs of equal rows."""
    count = len(columns[0])
    new = np.zeros(count, dtype=np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return _Starts(np.append(np.flatnonzero(new), count), np.cumsum(new) - 1)


def _spans(owner: Ints, start: Ints, step: int) -> Iterator[tuple[int, int]]:
    """Cut runs into spans [r0, r1) of about ``step`` elements that divide no owner.

    Args:
        owner: of each run, ascending, shape (R,).
        start: of each run, closed by the end, shape (R + 1,).
    """
    first = 0
    while first < len(owner):
        last = int(np.searchsorted(start, start[first] + step, side="right")) - 1
        last = min(max(last, first + 1), len(owner))
        if last < len(owner):
            cut = int(np.searchsorted(owner, owner[last], side="left"))
            last = cut if cut > first else int(np.searchsorted(owner, owner[last], side="right"))
        yield first, last
        first = last


def _pieces(count: int, step: int) -> Iterator[slice]:
    for begin in range(0, count, step):
        yield slice(begin, min(begin + step, count))


def _csr(data: Floats, columns: Ints, starts: Ints, width: int) -> csr_array:
    """Return the sparse matrix of len(starts) − 1 rows."""
    return csr_array((data, columns.astype(np.int32), starts.astype(np.int32)), shape=(len(starts) - 1, width))
