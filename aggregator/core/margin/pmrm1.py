"""PMRM: the portfolio margin of Derive's first risk manager, on one underlying.

Balances in USD, v = Σ qty·(Black-76 undiscounted), T in years, r⁺ = max(r, 0)::

    value  = cash + Σ_exp v(F) + base·S/stable + perp PnL + funding
    F_s    = F_fixed + F_var·δ                                        δ ∈ {.85, .9, .95, 1, 1.05, 1.1, 1.15}
    PnL_s  = Σ_exp (D·v(F_s, shocked vol) − v(F)) + (base·S/stable + Σ n·perp price)(δ−1)
    D      = .95·exp(−(4 r⁺ + .05)T) where the shocked value is positive, else 1
    basis  = Σ_exp min(Δv(1.05), Δv(.95), 0)·(.25 + .01 T)
    worst  = min(basis, min_s PnL_s)
    static = .02·S(|base| + Σ|n|) + .01·S·n_short                     n_short as in PMRM_2
    MM     = value + worst − static
    IM     = value + (worst − static)(1.3 + 2·max(0, .98 − stable)) − Σ_{confidence < .6} .5(1 − confidence)·notional

Volatility: σ·(1 + .45m), σ, σ·max(0, 1 − .3m), m = (30 d/max(t, 1 d))^p, p = .3 to 30 days and .13 beyond.
Notionals: S·Σ|qty| of an expiry, S(|base| + Σ|n|); their confidence is the least of spot's, the perp's (while one is
held), and for options forward's and volatilities'. IM and MM are balances: at least 0 is healthy.

The base is divided by the stable coin's price as the contract does it; risk.md §11 leaves that out, and the two agree
at a stable price of 1.

Source: Derive v2-core ``PMRM``/``PMRMLib`` and its published cases (risk.md §11).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from aggregator.core.holdings import Charges, Holding, Legs, holdings
from aggregator.core.instruments.arguments import finite, not_negative, positive
from aggregator.core.instruments.option import black76
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

MONTH = 30 * 86_400
UP, NONE, DOWN = range(3)
SHOCKS = ("up", "none", "down")
_LARGEST_EXPONENT = 700.0  # exp of more is infinite


@dataclass(frozen=True, slots=True)
class Parameters:
    """Constants of the model; the defaults are those of the published cases."""

    moves: tuple[float, ...] = (0.85, 0.90, 0.95, 1.0, 1.05, 1.10, 1.15)
    vol_up: float = 0.45
    vol_down: float = 0.3
    short_power: float = 0.30
    long_power: float = 0.13
    floor_days: float = 1.0
    base_discount: float = 0.95
    rate_scale: float = 4.0
    rate_add: float = 0.05
    basis_up: float = 1.05
    basis_down: float = 0.95
    basis_add: float = 0.25
    basis_slope: float = 0.01
    linear_static: float = 0.02  # of base and perps
    option_static: float = 0.01
    initial_factor: float = 1.3
    peg_threshold: float = 0.98
    peg_factor: float = 2.0
    confidence_threshold: float = 0.6
    confidence_margin: float = 0.5


PUBLISHED = Parameters()


@dataclass(frozen=True, slots=True, eq=False)
class Expiries:
    """The E expiries of a portfolio."""

    seconds: Floats  # (E,) to expiry
    fixed: Floats  # (E,) F_fixed: what of the settlement average is known already, USD
    variable: Floats  # (E,) F_var: what moves with the spot, USD
    rate: Floats  # (E,) per year
    confidence: Floats  # (E,) the least of forward's, rate's and volatilities'

    def __post_init__(self) -> None:
        for name in ("seconds", "fixed", "variable", "confidence"):
            not_negative(name, getattr(self, name))
        finite("rate", self.rate)


@dataclass(frozen=True, slots=True, eq=False)
class Portfolio:
    """All inputs of a margin."""

    spot: float
    confidence: float  # of spot
    expiries: Expiries
    options: Legs
    perps: Floats  # (P,) signed units
    perp_price: float = 0.0
    perp_confidence: float = 1.0
    base: float = 0.0  # units of the underlying held
    cash: float = 0.0
    pnl: float = 0.0  # of the perps, with funding
    stable: float = 1.0

    def __post_init__(self) -> None:
        positive("spot", self.spot)
        positive("stable", self.stable)
        for name in ("confidence", "perp_price", "perp_confidence"):
            not_negative(name, getattr(self, name))
        for name in ("perps", "base", "cash", "pnl"):
            finite(name, getattr(self, name))


class Places(NamedTuple):
    """An amount by what it is for."""

    options: Floats  # (n,)
    perps: Floats  # (P,)
    base: float

    @property
    def total(self) -> float:
        """The parts together."""
        return math.fsum((self.options.sum(), self.perps.sum(), self.base))

    def times(self, factor: float) -> Places:
        """Return every part multiplied."""
        return Places(factor * self.options, factor * self.perps, factor * self.base)


class Margin(NamedTuple):
    """A margin, and how it came about."""

    initial: float  # IM
    maintenance: float  # MM
    value: float
    basis: float  # ≤ 0
    worst: float  # ≤ 0
    scenarios: Floats  # (7, 3) PnL by move and volatility
    factor: float  # of IM
    pnl: Places  # worst, by what it is of
    option_static: Floats  # (n,)
    linear_static: Places  # of perps and base
    confidence: Places  # of IM


def margin(portfolio: Portfolio, parameters: Parameters = PUBLISHED) -> Margin:
    """Compute IM, MM and their parts."""
    p, book = parameters, portfolio
    legs, at = book.options, book.options.expiry
    years = np.asarray(book.expiries.seconds, dtype=np.float64) / SECONDS_PER_YEAR
    marks = _values(book, 1.0, legs.vol)
    base = book.base * book.spot / book.stable
    value = math.fsum((book.cash, marks.sum(), base, book.pnl))

    basis_legs = _basis(book, marks, years, p)
    basis = float(basis_legs.sum())

    seconds = np.asarray(book.expiries.seconds, dtype=np.float64)
    power = np.where(seconds <= MONTH, p.short_power, p.long_power)
    m = np.power(MONTH / np.maximum(seconds, p.floor_days * 86_400), power)[at]
    factors = np.array([1 + p.vol_up * m, np.ones_like(m), np.maximum(0.0, 1 - p.vol_down * m)])
    shocked = np.array([[_values(book, move, legs.vol * factor) for factor in factors] for move in p.moves])
    rate = np.maximum(book.expiries.rate, 0.0)
    gains = p.base_discount * np.exp(np.minimum(-(p.rate_scale * rate + p.rate_add) * years, _LARGEST_EXPONENT))
    changes = np.where(_by_expiry(book, shocked) > 0, gains, 1.0)[..., at] * shocked - marks  # (7, 3, n)
    drift = np.array(p.moves) - 1
    linear = book.perps * book.perp_price
    pnl = changes.sum(axis=-1) + (drift * (base + linear.sum()))[:, None]
    move, shock = divmod(int(pnl.argmin()), len(SHOCKS))
    if basis <= pnl[move, shock]:
        parts = Places(basis_legs, np.zeros(len(linear)), 0.0)
    else:
        parts = Places(changes[move, shock], drift[move] * linear, float(drift[move]) * base)
    worst = min(basis, float(pnl[move, shock]))

    option_static = p.option_static * book.spot * _short(book)
    gross = Places(np.zeros(len(at)), book.spot * np.abs(book.perps), book.spot * abs(book.base))
    linear_static = gross.times(p.linear_static)
    static = float(option_static.sum()) + linear_static.total
    shared = min(book.confidence, book.perp_confidence) if np.any(book.perps != 0) else book.confidence
    doubts = Places(
        _doubt(np.minimum(book.expiries.confidence, shared), p)[at] * book.spot * np.abs(legs.quantity),
        float(_doubt(shared, p)) * gross.perps,
        float(_doubt(shared, p)) * gross.base,
    )
    factor = p.initial_factor + p.peg_factor * max(0.0, p.peg_threshold - book.stable)
    return Margin(
        value + (worst - static) * factor - doubts.total,
        value + worst - static,
        value,
        basis,
        worst,
        pnl,
        factor,
        parts,
        option_static,
        linear_static,
        doubts,
    )


def _values(book: Portfolio, move: float, vols: Floats) -> Floats:
    """Return qty·Black-76 undiscounted of every option, shape (n,)."""
    legs, at = book.options, book.options.expiry
    forward = np.asarray(book.expiries.fixed)[at] + np.asarray(book.expiries.variable)[at] * move
    t = np.asarray(book.expiries.seconds)[at] / SECONDS_PER_YEAR
    values: Floats = legs.quantity * black76(forward, legs.strike, t, vols, legs.is_call)
    return values


def _by_expiry(book: Portfolio, values: Floats) -> Floats:
    """Sum (..., n) over the options of each expiry, shape (..., E)."""
    member = book.options.expiry[:, None] == np.arange(len(book.expiries.seconds))
    sums: Floats = values @ member.astype(np.float64)
    return sums


def _basis(book: Portfolio, marks: Floats, years: Floats, p: Parameters) -> Floats:
    """Return the basis contingency by option, shape (n,); its sum is ≤ 0."""
    at = book.options.expiry
    changes = np.array([_values(book, move, book.options.vol) - marks for move in (p.basis_up, p.basis_down)])
    sums = _by_expiry(book, changes)
    factor = np.where(sums.min(axis=0, initial=0.0) < 0, p.basis_add + p.basis_slope * years, 0.0)
    allocated: Floats = np.take_along_axis(changes, sums.argmin(axis=0)[at][None, :], axis=0)[0] * factor[at]
    return allocated


def _short(book: Portfolio) -> Floats:
    """Return what every option adds to n_short: Σ over (expiry, strike) of max(0, −net quantity), shape (n,)."""
    legs = book.options
    if not len(legs.strike):
        return np.zeros(0)
    _, group = np.unique(np.stack([legs.expiry, legs.strike]), axis=1, return_inverse=True)
    group = np.ravel(group)
    return np.where(np.bincount(group, legs.quantity)[group] < 0, -legs.quantity, 0.0)


def _doubt(confidence: Floats | float, p: Parameters) -> Floats:
    return np.where(
        np.less(confidence, p.confidence_threshold), p.confidence_margin * (1 - np.asarray(confidence)), 0.0
    )


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Return value − balance of every account: what PMRM asks beyond the mark-to-market, by underlying.

    The published moves, up to ±15%, are scaled to ``market.range`` where that is more; all other constants are the
    published ones. Spot that hedges is the base. Forwards and volatilities are the policy's.
    """
    charges = Charges(portfolios)
    for held in holdings(portfolios, market):
        parameters = _parameters(float(market.range[held.underlying]))
        answer = margin(_portfolio(held, market), parameters)
        beyond = max(0.0, float(answer.scenarios.min()) - answer.basis)
        share = beyond / -answer.worst if answer.worst < 0 else 0.0
        for level, factor in ((INITIAL, answer.factor), (MAINTENANCE, 1.0)):
            for layer, part in (
                ("scenario", answer.pnl.times(-factor * (1 - share))),
                ("basis", answer.pnl.times(-factor * share)),
                ("perps", answer.linear_static.times(factor)),
            ):
                _charge(charges, level, layer, held, part)
            charges.add(level, "short options", held.options.place, factor * answer.option_static)
        _charge(charges, INITIAL, "confidence", held, answer.confidence)
        move, shock = divmod(int(answer.scenarios.argmin()), len(SHOCKS))
        grid = f"{100 * (parameters.moves[move] - 1):+.4g}%, vol {SHOCKS[shock]}"
        name = "basis" if answer.basis <= answer.scenarios.min() else grid
        charges.bind(held.account, -answer.worst, f"{market.feeds[held.underlying]} {name}")
    return charges.requirement()


def _charge(charges: Charges, level: int, layer: str, held: Holding, amount: Places) -> None:
    charges.add(level, layer, held.options.place, amount.options)
    charges.add(level, layer, held.perps.place, amount.perps)
    charges.add(level, layer, held.spot_place, np.array([amount.base]))


def _parameters(range: float) -> Parameters:
    scale = max(1.0, range / (max(PUBLISHED.moves) - 1))
    return Parameters(moves=tuple(1 + (move - 1) * scale for move in PUBLISHED.moves))


def _portfolio(held: Holding, market: Market) -> Portfolio:
    """Build the model's inputs; values in USD, so that the base is not divided by the stable price."""
    u, options = held.underlying, held.options
    spot, confidence = float(market.spot[u]), float(market.confidence[u])
    seconds, first, at = np.unique(options.seconds, return_index=True, return_inverse=True)
    count = len(seconds)
    return Portfolio(
        spot,
        confidence,
        Expiries(
            seconds.astype(np.float64),
            np.zeros(count),
            options.forward[first],
            np.full(count, market.rows[u].rate),
            np.full(count, confidence),
        ),
        Legs(np.ravel(at).astype(np.int64), options.strike, options.is_call, options.quantity, options.vol),
        held.perps.units,
        perp_price=spot,
        perp_confidence=confidence,
        base=held.spot * market.stable,
        stable=market.stable,
    )
