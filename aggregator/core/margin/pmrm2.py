"""PMRM_2: the portfolio margin of Derive's second risk manager, on one underlying.

Balances in USD, v = Σ qty·(Black-76 undiscounted), T in years, r⁺ = max(r, 0)::

    value  = cash + Σ_exp e^{−r⁺T} v(F) + Σ collateral + Σ (perp PnL + funding)        collateral = qty·price/stable
    basis  = Σ_exp min(ΔV(up), ΔV(down), 0)·(add + slope·T)                            V = e^{−r⁺T} v
    PnL_s  = weight·[Σ_exp (D·v(F_s, shocked vol) − e^{−r⁺T} v(F)) + (δ−1)(Σ_cancelling collateral + Σ n·perp price)]
    F_s    = δ·F + F_fixed
    worst  = min(basis, min_s PnL_s)
    MM     = value + f_MM·worst − C_MM
    IM     = value + (f_IM + peg_factor·max(0, peg_threshold − stable))·worst − C_MM − C_IM

D by the sign of the expiry's shocked value: ``D⁺ = base·exp(−(r⁺(1+long_scale) + long_add)T)`` and ``D⁻ = min(1,
negative·exp(−(r⁺(1−short_scale) − short_add)T))``. A skew scenario counts each expiry's change as −|change|.

Volatility: up max(σ(1+U·m), least), down σ·max(0, 1−D·m), m = (30 d/max(t, floor))^p, p by t ≤ 30 d. Skew
``σ·max(0, 1 + x·cap/k*)``, x = ln(K/F) or its absolute value, the term no farther from 0 than cap: cap = static +
slope·√T, ``k* = max(least k*, width·(a + b√T)·√T)``.

Contingencies are not scaled by f. ``C_MM = Σ collateral·haircut + option·S·n + perp·S·Σ|perp|``, n = Σ over (expiry,
strike) of max(0, −net quantity of calls and puts). C_IM: the same with its own rates, and (1 − confidence)·margin of
each collateral, of S·Σ|qty| of each expiry and of S·Σ|perp| whose confidence is below the threshold. Confidence: the
lesser of its own and spot's; while a perp is held, options answer for the perp's too (so the contract does it).

IM and MM are balances: at least 0 is healthy. Source: Derive v2-core ``PMRM_2``/``PMRMLib_2`` and its published
portfolio cases; constants: of those cases (risk.md §11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from aggregator.core.holdings import Charges, Holding, Legs, holdings
from aggregator.core.instruments.arguments import finite, not_negative, positive
from aggregator.core.instruments.option import black76
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

Volatility = Literal["up", "none", "down", "linear", "abs"]
SKEWS: tuple[Volatility, ...] = ("linear", "abs")
MONTH = 30 * 86_400
_LARGEST_EXPONENT = 700.0  # exp of more is infinite


@dataclass(frozen=True, slots=True)
class Parameters:
    """Constants of the model; the defaults are those of the published cases."""

    linear_cap: float = 0.15
    linear_slope: float = -0.05
    abs_cap: float = 0.15
    abs_slope: float = -0.05
    least_k_star: float = 0.01
    width: float = 4.0
    vol_static: float = 0.6  # a of k*
    vol_scale: float = -0.1  # b of k*
    vol_up: float = 0.5
    least_vol: float = 0.45  # of vol up only
    vol_down: float = 0.275
    short_power: float = 0.30
    long_power: float = 0.13
    floor_days: float = 1.0
    maintenance_factor: float = 0.8
    initial_factor: float = 1.0
    short_scale: float = 0.5
    long_scale: float = 1.0
    short_add: float = 0.08
    long_add: float = 0.08
    base: float = 0.95
    base_negative: float = 1.04
    basis_up: float = 1.045
    basis_down: float = 0.955
    basis_add: float = 0.5
    basis_slope: float = 2.0
    peg_threshold: float = 0.98
    peg_factor: float = 2.0
    confidence_threshold: float = 0.55
    confidence_margin: float = 1.0
    perp_maintenance: float = 0.015
    perp_initial: float = 0.005
    option_maintenance: float = 0.003
    option_initial: float = 0.002


PUBLISHED = Parameters()


class Scenario(NamedTuple):
    """One shock. Its PnL counts ``weight`` times."""

    move: float  # δ: what the price is multiplied by
    volatility: Volatility
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{100 * (self.move - 1):+.4g}%, vol {self.volatility}"


def scenario_grid(
    range: float = 0.18, tails: Sequence[float] = (-0.66, -0.33, 0.5, 1.0, 2.0, 3.0), damping: float = 0.2
) -> tuple[Scenario, ...]:
    """Return the published set for a range R: ±{0, ¼, ½, ¾}R × {up, none, down}, ±R with vol up, tails, two skews.

    Tails at δ beyond R weigh ``min(1, damping·R/|δ|)``. Defaults: mainnet's ETH and BTC.
    """
    grid = [
        Scenario(1 + range * part / 4, volatility)
        for part in (3, 2, 1, 0, -1, -2, -3)
        for volatility in ("up", "none", "down")
    ]
    ends = [Scenario(1 + range, "up"), Scenario(1 - range, "up")]
    far = [Scenario(1 + tail, "up", min(1.0, damping * range / abs(tail))) for tail in tails]
    return (*grid, *ends, *far, Scenario(1.0, "linear"), Scenario(1.0, "abs"))


@dataclass(frozen=True, slots=True, eq=False)
class Expiries:
    """The E expiries of a portfolio, each with its own forward."""

    seconds: Floats  # (E,) to expiry
    forward: Floats  # (E,) the part that moves with the spot, USD
    rate: Floats  # (E,) per year
    confidence: Floats  # (E,) the least of forward's, rate's and volatilities'
    fixed: Floats | float = 0.0  # (E,) the part of the forward that is settled already, inside the last half hour

    def __post_init__(self) -> None:
        not_negative("seconds", self.seconds)
        not_negative("forward", self.forward)
        not_negative("fixed", self.fixed)
        finite("rate", self.rate)
        not_negative("confidence", self.confidence)


class Collateral(NamedTuple):
    """Something held besides cash."""

    quantity: float
    price: float  # USD
    confidence: float
    cancels_risk: bool  # moves with the underlying in the scenarios
    initial_haircut: float  # on top of maintenance's
    maintenance_haircut: float


class Perp(NamedTuple):
    """A linear perp."""

    size: float  # signed units
    price: float  # USD
    confidence: float = 1.0
    pnl: float = 0.0  # unrealised, USD
    funding: float = 0.0  # accrued, USD


class Portfolio(NamedTuple):
    """All inputs of a margin."""

    spot: float
    confidence: float  # of spot
    expiries: Expiries
    options: Legs
    perps: tuple[Perp, ...] = ()
    collateral: tuple[Collateral, ...] = ()
    cash: float = 0.0
    stable: float = 1.0  # USD per unit of settlement


class Level(NamedTuple):
    """What one level charges beside the scenarios, USD ≥ 0, by what it is charged for."""

    factor: float  # f, that the worst PnL is scaled by
    options: Floats  # (n,) short option minimum, allocated to options
    perps: Floats  # (P,)
    collateral: Floats  # (C,) haircuts
    confidence: tuple[Floats, Floats, Floats]  # of options, perps, collateral

    @property
    def total(self) -> float:
        """The contingencies together."""
        return math.fsum(part.sum() for part in (self.options, self.perps, self.collateral, *self.confidence))


class Margin(NamedTuple):
    """A margin, and how it came about."""

    initial: float  # IM
    maintenance: float  # MM
    value: float  # mark-to-market with cash
    basis: float  # basis contingency, ≤ 0
    worst: float  # worst PnL, ≤ 0: of basis and scenarios
    scenarios: Floats  # (S,) PnL of each
    levels: tuple[Level, Level]  # initial (with maintenance's contingencies), maintenance
    pnl: tuple[Floats, Floats, Floats]  # worst, by option (n,), perp (P,), collateral (C,)


def margin(portfolio: Portfolio, scenarios: Sequence[Scenario], parameters: Parameters = PUBLISHED) -> Margin:
    """Compute IM, MM and their parts.

    Raises:
        ValueError: names the argument: NaN, infinite, a negative price, time or volatility; no scenario.
    """
    p, book = parameters, portfolio
    positive("spot", book.spot)
    positive("stable", book.stable)
    not_negative("confidence", book.confidence)
    finite("cash", book.cash)
    if not scenarios:
        raise ValueError("scenarios: at least one is needed")
    legs, expiries = book.options, book.expiries
    years = np.asarray(expiries.seconds, dtype=np.float64) / SECONDS_PER_YEAR
    discount = _exp(-np.maximum(expiries.rate, 0.0) * years)
    held = np.array([c.quantity * c.price / book.stable for c in book.collateral], dtype=np.float64)
    linear = np.array([perp.size * perp.price for perp in book.perps], dtype=np.float64)
    not_negative("collateral", held)
    finite("perps", linear)
    settled = finite("perps", [perp.pnl + perp.funding for perp in book.perps])

    marks = (_values(book, np.ones(1), legs.vol[None, :]) * discount[legs.expiry])[0]
    value = math.fsum((book.cash, marks.sum(), held.sum(), settled.sum()))

    basis_legs = _basis(book, marks, discount, years, p)
    basis = float(basis_legs.sum())

    option_pnl = _option_pnl(book, scenarios, marks, years, p)
    weight = np.array([s.weight for s in scenarios], dtype=np.float64)
    drift = weight * (finite("scenarios", [s.move for s in scenarios]) - 1)
    cancels = np.array([c.cancels_risk for c in book.collateral], dtype=np.bool_)
    pnl = option_pnl.sum(axis=1) + drift * (linear.sum() + held[cancels].sum())
    place = int(pnl.argmin())
    worst = min(basis, float(pnl[place]))
    if basis <= pnl[place]:
        parts = (basis_legs, np.zeros(len(linear)), np.zeros(len(held)))
    else:
        parts = (option_pnl[place], drift[place] * linear, drift[place] * np.where(cancels, held, 0.0))

    maintenance, initial = _levels(book, held, p)
    return Margin(
        value + initial.factor * worst - initial.total,
        value + maintenance.factor * worst - maintenance.total,
        value,
        basis,
        worst,
        pnl,
        (initial, maintenance),
        parts,
    )


def _exp(exponent: Floats) -> Floats:
    return np.exp(np.minimum(exponent, _LARGEST_EXPONENT))


def _values(book: Portfolio, moves: Floats, vols: Floats) -> Floats:
    """Return qty·Black-76 undiscounted by scenario and option, shape (S, n), for vols of shape (S, n)."""
    legs, at = book.options, book.options.expiry
    forward = (
        np.asarray(book.expiries.forward)[at] * moves[:, None]
        + np.broadcast_to(np.asarray(book.expiries.fixed, dtype=np.float64), np.shape(book.expiries.forward))[at]
    )
    t = np.asarray(book.expiries.seconds)[at] / SECONDS_PER_YEAR
    values: Floats = legs.quantity * black76(forward, legs.strike, t, vols, legs.is_call)
    return values


def _by_expiry(book: Portfolio, values: Floats) -> Floats:
    """Sum (S, n) over the options of each expiry, shape (S, E)."""
    member = book.options.expiry[:, None] == np.arange(len(book.expiries.seconds))
    sums: Floats = values @ member.astype(np.float64)
    return sums


def _basis(book: Portfolio, marks: Floats, discount: Floats, years: Floats, p: Parameters) -> Floats:
    """Return the basis contingency by option, shape (n,); its sum is ≤ 0."""
    moves = np.array([p.basis_up, p.basis_down])
    changes = _values(book, moves, np.broadcast_to(book.options.vol, (2, len(marks)))) * discount[book.options.expiry]
    changes = changes - marks
    sums = _by_expiry(book, changes)
    side = sums.argmin(axis=0)
    factor = np.where(sums.min(axis=0, initial=0.0) < 0, p.basis_add + p.basis_slope * years, 0.0)
    at = book.options.expiry
    allocated: Floats = np.take_along_axis(changes, side[at][None, :], axis=0)[0] * factor[at]
    return allocated


def _option_pnl(book: Portfolio, scenarios: Sequence[Scenario], marks: Floats, years: Floats, p: Parameters) -> Floats:
    """Return the PnL of every option in every scenario, shape (S, n)."""
    at = book.options.expiry
    shocked = _values(book, np.array([s.move for s in scenarios]), _vols(book, scenarios, years, p))
    rate = np.maximum(book.expiries.rate, 0.0)
    gains = p.base * _exp(-(rate * (1 + p.long_scale) + p.long_add) * years)
    losses = np.minimum(1.0, p.base_negative * _exp(-(rate * (1 - p.short_scale) - p.short_add) * years))
    changes = np.where(_by_expiry(book, shocked) >= 0, gains, losses)[:, at] * shocked - marks
    skewed = np.array([s.volatility in SKEWS for s in scenarios])[:, None]
    sign = np.where(skewed & (_by_expiry(book, changes) > 0), -1.0, 1.0)
    pnl: Floats = np.array([s.weight for s in scenarios])[:, None] * sign[:, at] * changes
    return pnl


def _vols(book: Portfolio, scenarios: Sequence[Scenario], years: Floats, p: Parameters) -> Floats:
    """Return the shocked volatility of every option in every scenario, shape (S, n)."""
    at, vol = book.options.expiry, book.options.vol
    seconds = np.asarray(book.expiries.seconds, dtype=np.float64)
    power = np.where(seconds <= MONTH, p.short_power, p.long_power)
    m = np.power(MONTH / np.maximum(seconds, p.floor_days * 86_400), power)
    root = np.sqrt(years)
    star = np.maximum(p.least_k_star, p.width * (p.vol_static + p.vol_scale * root) * root)
    total = np.asarray(book.expiries.forward) + book.expiries.fixed
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.log(book.options.strike) - np.log(total[at])
    k = np.where(np.isnan(k), 0.0, k)  # 0/0: at the money
    shocks: dict[Volatility, Floats] = {
        "up": np.maximum(vol * (1 + p.vol_up * m[at]), p.least_vol),
        "none": vol,
        "down": vol * np.maximum(0.0, 1 - p.vol_down * m[at]),
        "linear": vol * _skew(k, (p.linear_cap + p.linear_slope * root)[at], star[at]),
        "abs": vol * _skew(np.abs(k), (p.abs_cap + p.abs_slope * root)[at], star[at]),
    }
    return np.array([shocks[s.volatility] for s in scenarios])


def _skew(x: Floats, cap: Floats, star: Floats) -> Floats:
    """Return the factor max(0, 1 + term): for x ≥ 0 term = min(cap, x·cap/k*), else max(−cap, x·cap/k*).

    A negative cap is taken as the contract takes it: the minimum and maximum stay where they are.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where((x == 0) | (cap == 0), 0.0, x * cap / star)
    factor: Floats = np.maximum(0.0, 1 + np.where(x >= 0, np.minimum(cap, slope), np.maximum(-cap, slope)))
    return factor


def _levels(book: Portfolio, held: Floats, p: Parameters) -> tuple[Level, Level]:
    """Return what maintenance and initial margin charge beside the scenarios."""
    legs = book.options
    expiries, strikes = legs.expiry, legs.strike
    _, group = np.unique(np.stack([expiries, strikes]), axis=1, return_inverse=True)
    group = np.ravel(group)
    net = np.bincount(group, legs.quantity, minlength=1) if len(group) else np.zeros(1)
    short = book.spot * np.where(net[group] < 0, -legs.quantity, 0.0) if len(group) else np.zeros(0)
    perps = book.spot * np.abs([perp.size for perp in book.perps], dtype=np.float64)
    open_perps = [perp.confidence for perp in book.perps if perp.size]
    shared = min([book.confidence, *open_perps])
    unsure = (
        _doubt(np.minimum(np.asarray(book.expiries.confidence), shared), p)[expiries]
        * book.spot
        * np.abs(legs.quantity),
        _doubt(np.full(len(perps), shared), p) * perps,
        _doubt(np.minimum([c.confidence for c in book.collateral], book.confidence), p) * held,
    )
    nothing = (np.zeros(len(legs.strike)), np.zeros(len(perps)), np.zeros(len(held)))
    cut = np.array([c.maintenance_haircut for c in book.collateral]) * held
    more = np.array([c.initial_haircut for c in book.collateral]) * held
    peg = p.peg_factor * max(0.0, p.peg_threshold - book.stable)
    maintenance = Level(p.maintenance_factor, p.option_maintenance * short, p.perp_maintenance * perps, cut, nothing)
    initial = Level(
        p.initial_factor + peg,
        maintenance.options + p.option_initial * short,
        maintenance.perps + p.perp_initial * perps,
        cut + more,
        unsure,
    )
    return maintenance, initial


def _doubt(confidence: Floats, p: Parameters) -> Floats:
    return np.where(confidence < p.confidence_threshold, p.confidence_margin * (1 - confidence), 0.0)


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Return value − balance of every account: what PMRM_2 asks beyond the mark-to-market, by underlying.

    The grid scales with ``market.range``; all other constants are the published ones. Spot that hedges cancels risk and
    has no haircut here: the valuation of collateral takes those. Forwards and volatilities are the policy's.
    """
    charges = Charges(portfolios)
    for held in holdings(portfolios, market):
        scenarios = scenario_grid(float(market.range[held.underlying]))
        book = _portfolio(held, market)
        answer = margin(book, scenarios)
        for level, terms in ((INITIAL, answer.levels[0]), (MAINTENANCE, answer.levels[1])):
            places = (held.options.place, held.perps.place, np.array([held.spot_place][: len(book.collateral)]))
            beyond = max(0.0, float(answer.scenarios.min()) - answer.basis)
            share = beyond / -answer.worst if answer.worst < 0 else 0.0
            for at, pnl, unsure in zip(places, answer.pnl, terms.confidence, strict=True):
                charges.add(level, "scenario", at, -terms.factor * pnl * (1 - share))
                charges.add(level, "basis", at, -terms.factor * pnl * share)
                charges.add(level, "confidence", at, unsure)
            charges.add(level, "short options", places[0], terms.options)
            charges.add(level, "perps", places[1], terms.perps)
        basis_binds = answer.basis <= answer.scenarios.min()
        name = "basis" if basis_binds else scenarios[int(answer.scenarios.argmin())].name
        charges.bind(held.account, -answer.worst, f"{market.feeds[held.underlying]} {name}")
    return charges.requirement()


def _portfolio(held: Holding, market: Market) -> Portfolio:
    """Build the model's inputs; values in USD, so that collateral is not divided by the stable price."""
    u, options = held.underlying, held.options
    spot, confidence = float(market.spot[u]), float(market.confidence[u])
    seconds, first, at = np.unique(options.seconds, return_index=True, return_inverse=True)
    count = len(seconds)
    expiries = Expiries(
        seconds.astype(np.float64),
        options.forward[first],
        np.full(count, market.rows[u].rate),
        np.full(count, confidence),
    )
    hedge = (Collateral(held.spot, spot * market.stable, confidence, True, 0.0, 0.0),) if held.spot else ()
    return Portfolio(
        spot,
        confidence,
        expiries,
        Legs(np.ravel(at).astype(np.int64), options.strike, options.is_call, options.quantity, options.vol),
        tuple(Perp(float(units), spot, confidence) for units in held.perps.units),
        hedge,
        stable=market.stable,
    )
