"""The VaR model: expected shortfall over joint moves of the underlyings, by full revaluation (risk.md §5).

    R^k = f_k·ES_α( max over volatility {as it is, up, down} of the loss under a date's moves )

The moves are those of ``policy.history``, one row per date, which ``crossmargin recalibrate`` filters to today's
volatility (filtered historical simulation); or any others of that shape, e.g. a simulation of ``core.risk.copula``.
What moved jointly stays together, so diversification is what it was. Histories of prices say nothing of implied
volatility: every date counts at the worst of three common shocks of it, by tenor, those of the scenario model. The
maximum of sums is at most the sum of maxima and ES is coherent, so R is subadditive and positively homogeneous.

For a delta-gamma-vega view of the same portfolios there are :func:`sensitivities`, :func:`delta_gamma` with
Cornish-Fisher for VaR, and :func:`revalue_worst`, which prices in full what the approximation puts in the worst 5%.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from aggregator.core.contracts import (
    carry_factors,
    implied_vols,
    is_option,
    linear_units,
    option_values,
    sum_by,
    verify_portfolios,
    years_left,
)
from aggregator.core.instruments.option import black76_greeks
from aggregator.core.risk.tails import (
    cornish_fisher_var,
    normal_var,
    require_confidence,
    tail_of,
    tail_weights,
)
from aggregator.domain.contracts import CALL, LAYERS, Instruments, Ints, Market, Portfolios, Requirement
from aggregator.domain.policy import HistoryRow, PolicyRow, VolatilityShockRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import Floats

CELLS = 1 << 22
"""Numbers that a temporary array of losses may hold."""
WORST = 0.05
"""Share of the scenarios that :func:`revalue_worst` prices in full."""
SHOCKS = ("", ", vol up", ", vol down")
_MONTH, _DAYS_PER_YEAR = 30.0, 365.0
_SCENARIO = LAYERS.index("scenario")


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute f_k·ES_α over the policy's history; f_k are the scenario model's factors.

    A row's allocation is its mean loss over the tail (Tasche 1999), and carries its sign.

    Raises:
        ValueError: the policy has no history, or none of an underlying; or an argument is out of its range.
    """
    if policy.history is None:
        raise ValueError("policy.history: the VaR model needs one; `crossmargin recalibrate` makes it")
    return requirement_on(
        portfolios, market, policy, joint_moves(policy.history, market.feeds), policy.history.confidence
    )


def joint_moves(history: HistoryRow, feeds: tuple[str, ...]) -> Floats:
    """Return the history's moves in the order of ``feeds``, shape (H, U).

    Raises:
        ValueError: it does not know a feed.
    """
    for feed in feeds:
        if feed not in history.underlyings:
            raise ValueError(f"policy.history: does not know {feed}; recalibrate, or charge it by another model")
    columns = [history.underlyings.index(feed) for feed in feeds]
    return np.array(history.moves, dtype=np.float64)[:, columns]


def requirement_on(
    portfolios: Portfolios, market: Market, policy: PolicyRow, moves: Floats, alpha: float
) -> Requirement:
    """Compute f_k·ES_α over any joint moves.

    Args:
        moves: relative, shape (H, U), at least −1, in the order of ``market.feeds``.
        alpha: confidence of ES.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    verify_portfolios(portfolios, market)
    given = _require_moves(moves, len(market.feeds))
    tail_of(len(given), alpha)
    a, n, u = portfolios.accounts, len(portfolios.account), len(market.feeds)
    es, share, binding = np.zeros(a), np.zeros(n + a * u), [""] * a
    for account, rows, losses in _blocks(portfolios, market, policy.scenario.volatility, given):
        by_shock = losses.sum(axis=0)  # (shocks, H)
        shock = by_shock.argmax(axis=0)
        worst = by_shock[shock, np.arange(len(given))]
        weights = tail_weights(worst, alpha)
        total = float(weights @ worst)
        if total <= 0:
            continue  # nothing is lost even in the tail
        es[account] = total
        at = int(worst.argmax())
        binding[account] = f"move {at + 1} of {len(given)}{SHOCKS[int(shock[at])]}"
        tail = np.flatnonzero(weights)
        share[rows] = losses[:, shock[tail], tail] @ weights[tail]
    factor = np.array([policy.scenario.initial_factor, policy.scenario.maintenance_factor])
    layers = np.zeros((2, len(LAYERS), a))
    layers[:, _SCENARIO] = factor[:, None] * es
    total_by_level = layers[:, _SCENARIO]
    return Requirement(
        total_by_level[INITIAL], total_by_level[MAINTENANCE], layers, factor[:, None] * share, tuple(binding)
    )


def account_losses(portfolios: Portfolios, market: Market, shock: VolatilityShockRow, moves: Floats) -> Floats:
    """Return what every portfolio loses under every move at the worst of the volatility shocks, shape (A, H)."""
    verify_portfolios(portfolios, market)
    given = _require_moves(moves, len(market.feeds))
    lost = np.zeros((portfolios.accounts, len(given)))
    for account, _, losses in _blocks(portfolios, market, shock, given):
        lost[account] = losses.sum(axis=0).max(axis=0)
    return lost


def _require_moves(moves: Floats, underlyings: int) -> Floats:
    given = np.asarray(moves, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != underlyings or not len(given):
        raise ValueError(f"moves: shape {given.shape}; one column for each of the {underlyings} underlyings expected")
    if not (np.isfinite(given) & (given >= -1)).all():
        raise ValueError("moves: must be finite and at least −1, the loss of everything")
    return given


def _shocked(instruments: Instruments, market: Market, row: VolatilityShockRow) -> Floats:
    """Return implied volatilities as they are, up, and down, shape (3, I); ``VolatilityShockRow`` has the formula."""
    vols = implied_vols(instruments, market)
    days = np.maximum(years_left(instruments, market.now) * _DAYS_PER_YEAR, row.floor_days)
    reach = (_MONTH / days) ** np.where(days <= _MONTH, row.short_power, row.long_power)
    live = vols > 0
    up = np.where(live, np.maximum(vols * (1 + row.up * reach), row.least), 0.0)
    down = vols * np.maximum(0.0, 1 - row.down * reach)
    return np.stack([vols, np.maximum(up, vols), down])


def _unit_losses(instruments: Instruments, market: Market, shock: VolatilityShockRow, moves: Floats) -> Floats:
    """Return what one unit of every instrument loses, USD, shape (I, 3, H); linear instruments per unit of delta."""
    price = market.spot * (1 + moves)
    lost = np.zeros((len(instruments.kind), len(SHOCKS), len(moves)))
    now = option_values(instruments, market, market.spot)
    for k, vols in enumerate(_shocked(instruments, market, shock)):
        lost[:, k] = now[:, None] - option_values(instruments, market, price, vols).T
    linear = ~is_option(instruments)
    lost[linear] = (-moves * market.spot).T[instruments.underlying[linear], None, :]
    return lost


def _blocks(
    portfolios: Portfolios, market: Market, shock: VolatilityShockRow, moves: Floats
) -> Iterator[tuple[int, Ints, Floats]]:
    """Yield every account with anything to lose: its number, its columns of ``Requirement.rows``, and their losses.

    Losses have the shape (columns, 3, H).
    """
    n, width = len(portfolios.account), len(SHOCKS) * len(moves)
    of, price = portfolios.instruments, (-moves * market.spot).T[:, None, :]
    units = np.where(is_option(of)[portfolios.instrument], portfolios.size, linear_units(portfolios))
    held, index = np.unique(portfolios.instrument, return_inverse=True)
    shared = len(held) * width <= 4 * CELLS  # else account by account, so that memory stays bounded
    every = _unit_losses(_some(of, held), market, shock, moves) if shared else None
    of_spot = np.broadcast_to(price, (len(market.feeds), len(SHOCKS), len(moves)))
    bounds = np.searchsorted(portfolios.account, np.arange(portfolios.accounts + 1))
    for account in range(portfolios.accounts):
        rows = np.arange(bounds[account], bounds[account + 1])
        hedges = np.flatnonzero(portfolios.spot[account])
        if not len(rows) and not len(hedges):
            continue
        if every is None:
            mine, place = np.unique(portfolios.instrument[rows], return_inverse=True)
            unit = _unit_losses(_some(of, mine), market, shock, moves)[place]
        else:
            unit = every[index[rows]]
        spot = of_spot[hedges] * portfolios.spot[account, hedges, None, None]
        columns = np.concatenate([rows, n + account * len(market.feeds) + hedges])
        yield account, columns, np.concatenate([unit * units[rows, None, None], spot])


def _some(instruments: Instruments, which: Ints) -> Instruments:
    return Instruments(
        instruments.kind[which], instruments.underlying[which], instruments.strike[which], instruments.expiry[which]
    )


# --- the parametric view ----------------------------------------------------------------------------------------------


class Sensitivities(NamedTuple):
    """Derivatives of portfolios by relative moves and by volatility, USD, each of shape (A, U).

    Offsets within an underlying are netted; one underlying's price does not move another's contracts, so that Γ is
    diagonal.
    """

    delta: Floats  # per 100% move
    gamma: Floats  # per (100% move)²
    vega: Floats  # per 1.00 of volatility, all tenors together


def sensitivities(portfolios: Portfolios, market: Market) -> Sensitivities:
    """Compute the greeks of every portfolio by underlying.

    At the kink of an option that expires now gamma has no finite value and is left out.
    """
    verify_portfolios(portfolios, market)
    of = portfolios.instruments
    growth, discount = carry_factors(of, market)
    where = np.flatnonzero(is_option(of))
    spot = market.spot[of.underlying]
    unit = np.zeros((3, len(of.kind)))
    g = black76_greeks(
        (spot * growth)[where],
        of.strike[where],
        years_left(of, market.now)[where],
        implied_vols(of, market)[where],
        of.kind[where] == CALL,
        discount[where],
    )
    unit[0, where] = g.delta * (growth * spot)[where]
    unit[1, where] = np.where(np.isfinite(g.gamma), g.gamma, 0.0) * (growth * spot)[where] ** 2
    unit[2, where] = g.vega
    row = portfolios.instrument
    by_row = unit[:, row] * portfolios.size
    by_row[0] += linear_units(portfolios) * spot[row]
    place = portfolios.account * len(market.feeds) + of.underlying[row]
    shape = portfolios.spot.shape
    delta, gamma, vega = (sum_by(place, part, shape[0] * shape[1]).reshape(shape) for part in by_row)
    return Sensitivities(delta + portfolios.spot * market.spot, gamma, vega)


class DeltaGamma(NamedTuple):
    """The law of a portfolio's PnL under normal factors, to second order. USD."""

    mean: float
    sd: float
    skew: float
    excess_kurtosis: float
    var: float  # Cornish-Fisher


def delta_gamma(delta: Floats, gamma: Floats, covariance: Floats, alpha: float) -> DeltaGamma:
    """Compute the moments of ``PnL = δ'x + ½x'Γx``, x ~ N(0, Σ), and VaR from them by Cornish-Fisher.

    Cumulants: ``½tr(ΓΣ)``, ``δ'Σδ + ½tr((ΓΣ)²)``, ``3δ'ΣΓΣδ + tr((ΓΣ)³)``, ``12δ'Σ(ΓΣ)²δ + 3tr((ΓΣ)⁴)`` (Mina and
    Ulmer, *Delta-Gamma Four Ways*, 1999). Vega enters as further factors: append volatility changes to x, vegas to δ.

    Args:
        delta: shape (F,), USD per unit of each factor.
        gamma: shape (F, F) or its diagonal (F,).
        covariance: Σ, shape (F, F), symmetric and positive semidefinite.
    """
    d = np.asarray(delta, dtype=np.float64)
    g = np.asarray(gamma, dtype=np.float64)
    g = np.diag(g) if g.ndim == 1 else g
    sigma = np.asarray(covariance, dtype=np.float64)
    if d.ndim != 1 or g.shape != (len(d), len(d)) or sigma.shape != g.shape:
        raise ValueError(f"delta, gamma, covariance: shapes {d.shape}, {g.shape}, {sigma.shape} do not fit")
    if not (np.isfinite(d).all() and np.isfinite(g).all() and np.isfinite(sigma).all()):
        raise ValueError("delta, gamma, covariance: must be finite")
    if not np.allclose(sigma, sigma.T) or np.linalg.eigvalsh(sigma)[0] < -1e-9 * max(1e-300, float(np.trace(sigma))):
        raise ValueError("covariance: must be symmetric and positive semidefinite")
    # In standard deviations of the factors, and of the greatest amount, so that no power underflows.
    spread = np.sqrt(np.diag(sigma))
    safe = np.where(spread > 0, spread, 1.0)
    d, g, sigma = d * spread, g * np.outer(spread, spread), sigma / np.outer(safe, safe)
    unit = float(max(np.abs(d).max(initial=0.0), np.abs(g).max(initial=0.0)))
    if unit == 0:
        return DeltaGamma(0.0, 0.0, 0.0, 0.0, 0.0)
    d, g = d / unit, g / unit
    gs = g @ sigma
    gs2 = gs @ gs
    second = max(0.0, float(d @ sigma @ d + np.trace(gs2) / 2))
    mean, sd = float(np.trace(gs)) / 2, math.sqrt(second)
    if sd < 1e-12:  # what is left cancels
        return DeltaGamma(mean * unit, 0.0, 0.0, 0.0, -mean * unit)
    third = float(3 * d @ sigma @ gs @ d + np.trace(gs2 @ gs))
    fourth = float(12 * d @ sigma @ gs2 @ d + 3 * np.trace(gs2 @ gs2))
    skew, kurtosis = third / sd**3, fourth / sd**4
    mean, sd = mean * unit, sd * unit
    return DeltaGamma(mean, sd, skew, kurtosis, cornish_fisher_var(mean, sd, skew, kurtosis, alpha))


def allocate_parametric(exposures: Floats, covariance: Floats, alpha: float) -> Floats:
    """Share out the normal VaR ``z_α·√(w'Σw)``, w the sum of the exposures: ``e_i'Σw·z/σ`` (Euler).

    Args:
        exposures: e, USD per unit of each factor, shape (N, F).
        covariance: Σ, shape (F, F).

    Returns:
        Shape (N,); adds up to the VaR, and is all 0 where that is.
    """
    e = np.asarray(exposures, dtype=np.float64)
    w = e.sum(axis=0)
    sd = math.sqrt(max(0.0, float(w @ covariance @ w)))
    if sd == 0:
        return np.zeros(len(e))
    return np.asarray(e @ (covariance @ w) * (normal_var(1.0, alpha) / sd), dtype=np.float64)


STILL = VolatilityShockRow(up=0.0, down=0.0, least=0.0)
"""No shock: implied volatility stays as it is."""


def revalue_worst(
    portfolios: Portfolios, market: Market, moves: Floats, alpha: float, shock: VolatilityShockRow = STILL
) -> Floats:
    """Estimate ES of every portfolio from many simulated moves, pricing in full only the worst 5% of them.

    Delta and gamma order the moves; the worst :data:`WORST` of that order are revalued as in :func:`account_losses`.
    The result is at most the full ES, and equals it where the approximation puts the right moves into its worst 5%;
    with volatility shocked it does not know which those are for who is long options.

    Args:
        moves: shape (H, U).
        alpha: confidence, at least 1 − WORST.

    Returns:
        Shape (A,), USD, not negative.
    """
    if require_confidence(alpha) < 1 - WORST:
        raise ValueError(f"alpha: {alpha:g} reaches beyond the worst {WORST:g} that are revalued")
    given = _require_moves(moves, len(market.feeds))
    greeks = sensitivities(portfolios, market)
    mass = tail_of(len(given), alpha)
    count = min(len(given), max(mass.whole + 1, math.ceil(WORST * len(given))))
    result = np.zeros(portfolios.accounts)
    bounds = np.searchsorted(portfolios.account, np.arange(portfolios.accounts + 1))
    for account in range(portfolios.accounts):
        rough = -(given @ greeks.delta[account] + given**2 @ greeks.gamma[account] / 2)
        worst = np.argpartition(-rough, count - 1)[:count]
        part = slice(bounds[account], bounds[account + 1])
        alone = Portfolios(
            1,
            np.zeros(part.stop - part.start, dtype=np.int64),
            portfolios.instrument[part],
            portfolios.size[part],
            portfolios.entry[part],
            portfolios.funding[part],
            portfolios.spot[account : account + 1],
            portfolios.instruments,
        )
        exact = -np.sort(-account_losses(alone, market, shock, given[worst])[0])
        total = float(exact[: mass.whole].sum()) + (mass.part * float(exact[mass.whole]) if mass.part else 0.0)
        result[account] = max(0.0, total / mass.mass)
    return result
