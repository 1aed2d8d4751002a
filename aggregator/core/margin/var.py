"""The VaR model: expected shortfall over joint moves of the underlyings, by full revaluation (risk.md §5).

    historical:  R^k = f_k·ES_α( max over volatility {as it is, up, down} of the loss under a date's moves )
    parametric:  R^k = f_k·max( VaR_α of delta, gamma and vega by Cornish-Fisher,
                                ES_α over normal moves, the worst 5% of them as above )

``policy.var`` says which. The moves are those of ``policy.history``, which ``crossmargin recalibrate`` makes: one row
per date, filtered to today's volatility (filtered historical simulation), or draws from a t copula. What moved jointly
stays together, so diversification is what it was. Histories of prices say nothing of implied volatility: every date
counts at the worst of three common shocks of it, by tenor, those of the scenario model. The maximum of sums is at most
the sum of maxima and ES is coherent, so the historical R is subadditive and positively homogeneous.

The parametric R is positively homogeneous only. Its moves are normal with the second moments of ``history``; vega
counts by one factor common to all volatility, whose α-quantile is the shock *up*. The ES part errs low where delta and
gamma find the wrong moves, which is what the other part is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

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
from aggregator.core.risk.copula import simulate_normal
from aggregator.core.risk.tails import (
    Tail,
    cornish_fisher_var,
    normal_var,
    require_confidence,
    tail_of,
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
    """Compute what ``policy.var.method`` requires; f_k are the scenario model's factors.

    A row's allocation is its mean loss over the tail (Tasche 1999), and carries its sign.

    Raises:
        ValueError: the policy has no history, or none of an underlying; or an argument is out of its range.
    """
    if policy.history is None:
        raise ValueError("policy.history: the VaR model needs one; `crossmargin recalibrate` makes it")
    compute = requirement_on if policy.var.method == "historical" else parametric_requirement
    moves = joint_moves(policy.history, market.feeds)
    return compute(portfolios, market, policy, moves, policy.history.confidence)


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
    tail = tail_of(len(given), alpha)
    n = len(portfolios.account)
    es, share = np.zeros(portfolios.accounts), np.zeros(n + portfolios.spot.size)
    binding = np.full(portfolios.accounts, "", dtype=object)
    names = np.array([f"move {i + 1} of {len(given)}{shock}" for i in range(len(given)) for shock in SHOCKS])
    for block in _blocks(portfolios, market, policy.scenario.volatility, given):
        at, weights = _tail_of_each(block.worst, tail)
        total = (np.take_along_axis(block.worst, at, axis=1) * weights).sum(axis=1)
        loses = total > 0  # else nothing is lost even in the tail
        es[block.accounts] = np.where(loses, total, 0.0)
        weights *= loses[:, None]
        shock = np.take_along_axis(block.shock, at, axis=1)
        share[block.rows] = _tail_means(block.unit, block.column, block.amount, block.owner, shock, at, weights)
        spot_of = np.repeat(np.arange(len(at)), len(market.feeds))
        spot_column = np.tile(np.arange(len(market.feeds)), len(at))
        amount = portfolios.spot[block.accounts].ravel()
        first = n + block.accounts.start * len(market.feeds)
        share[first : first + len(amount)] = _tail_means(block.prices, spot_column, amount, spot_of, shock, at, weights)
        worst = block.worst.argmax(axis=1)
        code = worst * len(SHOCKS) + block.shock[np.arange(len(worst)), worst]
        binding[block.accounts] = np.where(loses, names[code], "")
    return _required(policy, es, share, binding)


def _required(policy: PolicyRow, es: Floats, share: Floats, binding: npt.NDArray[np.object_]) -> Requirement:
    factor = np.array([policy.scenario.initial_factor, policy.scenario.maintenance_factor])
    layers = np.zeros((2, len(LAYERS), len(es)))
    layers[:, _SCENARIO] = factor[:, None] * es
    total_by_level = layers[:, _SCENARIO]
    return Requirement(
        total_by_level[INITIAL], total_by_level[MAINTENANCE], layers, factor[:, None] * share, tuple(binding.tolist())
    )


def _tail_of_each(losses: Floats, tail: Tail) -> tuple[Ints, Floats]:
    """Return which losses of every row make its ES, and their weights, which add up to 1; each of shape (rows, T).

    Among equal losses the first count first, as in ``tails.tail_weights``.
    """
    n = losses.shape[1]
    keep = tail.whole + bool(tail.part)
    least = np.partition(losses, n - keep, axis=1)[:, n - keep, None]
    above, equal = losses > least, losses == least
    room = keep - above.sum(axis=1)
    if (equal.sum(axis=1) > room).any():
        equal &= np.cumsum(equal, axis=1) <= room[:, None]
    at = np.nonzero(above | equal)[1].reshape(len(losses), keep)
    weights = np.ones(at.shape)
    if tail.part:
        last = keep - 1 - np.take_along_axis(equal, at, axis=1)[:, ::-1].argmax(axis=1)
        weights[np.arange(len(at)), last] = tail.part
    return at, weights / tail.mass


def _tail_means(
    unit: Floats, column: Ints, amount: Floats, owner: Ints, shock: Ints, at: Ints, weights: Floats
) -> Floats:
    """Return what every row loses on average over the tail of its account, shape (rows,).

    Args:
        unit: loss of one unit, shape (columns, 3, H).
        column, amount, owner: of every row; owner is a row of the others.
        shock, at, weights: of every account, shape (accounts, T).
    """
    result = np.zeros(len(column))
    step = max(1, CELLS // max(1, at.shape[1]))
    for start in range(0, len(column), step):
        part = slice(start, start + step)
        of = owner[part]
        result[part] = (unit[column[part, None], shock[of], at[of]] * weights[of]).sum(axis=1) * amount[part]
    return result


def account_losses(portfolios: Portfolios, market: Market, shock: VolatilityShockRow, moves: Floats) -> Floats:
    """Return what every portfolio loses under every move at the worst of the volatility shocks, shape (A, H)."""
    verify_portfolios(portfolios, market)
    given = _require_moves(moves, len(market.feeds))
    lost = np.zeros((portfolios.accounts, len(given)))
    for block in _blocks(portfolios, market, shock, given):
        lost[block.accounts] = block.worst
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


class _Block(NamedTuple):
    """Accounts that are computed together: B of them, with N rows and I instruments among them."""

    accounts: slice
    rows: slice  # of ``Portfolios``
    unit: Floats  # (I, 3, H) what one unit of every instrument loses
    prices: Floats  # (U, 3, H) and one unit of every underlying
    column: Ints  # (N,) index into ``unit``
    amount: Floats  # (N,) units
    owner: Ints  # (N,) 0 … B−1
    worst: Floats  # (B, H) loss under every move at its worst shock
    shock: Ints  # (B, H) which of SHOCKS that is


def _blocks(portfolios: Portfolios, market: Market, shock: VolatilityShockRow, moves: Floats) -> Iterator[_Block]:
    """Compute losses of all accounts, as many at a time as memory allows.

    An account's numbers are sums over its own rows in their order, whoever else is in its block.
    """
    width, feeds = len(SHOCKS) * len(moves), len(market.feeds)
    of = portfolios.instruments
    prices = np.repeat((-moves * market.spot).T[:, None, :], len(SHOCKS), axis=1)
    units = np.where(is_option(of)[portfolios.instrument], portfolios.size, linear_units(portfolios))
    held, index = np.unique(portfolios.instrument, return_inverse=True)
    shared = len(held) * width <= 4 * CELLS  # else block by block, so that memory stays bounded
    every = _unit_losses(_some(of, held), market, shock, moves) if shared else np.zeros((0, len(SHOCKS), len(moves)))
    bounds = np.searchsorted(portfolios.account, np.arange(portfolios.accounts + 1))
    # Rows count as numbers too where each may hold an instrument of its own.
    load = np.arange(portfolios.accounts + 1) + (0 if shared else bounds)
    most = max(1, CELLS // width)
    start = 0
    while start < portfolios.accounts:
        stop = max(start + 1, int(np.searchsorted(load, load[start] + most, side="right")) - 1)
        rows = slice(int(bounds[start]), int(bounds[stop]))
        if shared:
            unit, column = every, index[rows]
        else:
            mine, column = np.unique(portfolios.instrument[rows], return_inverse=True)
            unit = _unit_losses(_some(of, mine), market, shock, moves)
        ends = bounds[start : stop + 1] - bounds[start]
        owner = np.repeat(np.arange(stop - start), np.diff(ends))
        by_row = csr_array((units[rows], column, ends), shape=(stop - start, len(unit)))
        spot = portfolios.spot[start:stop]
        by_spot = csr_array(
            (spot.ravel(), np.tile(np.arange(feeds), stop - start), np.arange(stop - start + 1) * feeds),
            shape=(stop - start, feeds),
        )
        losses = by_row @ unit.reshape(len(unit), width) + by_spot @ prices.reshape(feeds, width)
        losses = losses.reshape(stop - start, len(SHOCKS), len(moves))
        worst, which = losses.max(axis=1), losses.argmax(axis=1)
        yield _Block(slice(start, stop), rows, unit, prices, column, units[rows], owner, worst, which)
        start = stop


def _some(instruments: Instruments, which: Ints) -> Instruments:
    return Instruments(
        instruments.kind[which], instruments.underlying[which], instruments.strike[which], instruments.expiry[which]
    )


# --- the parametric method --------------------------------------------------------------------------------------------


def parametric_requirement(
    portfolios: Portfolios, market: Market, policy: PolicyRow, moves: Floats, alpha: float
) -> Requirement:
    """Compute f_k·max(VaR by Cornish-Fisher, ES with the worst 5% priced in full).

    Rows share the ES by their mean loss over its tail, and what VaR asks for beyond it by their part in the normal VaR
    of delta, ``e_i'Σw``; where that is nothing, by size.

    Args:
        moves: relative, shape (H, U); only their second moments ``Σ = mean of mm'`` count.
        alpha: confidence of both, at least 1 − WORST.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """
    verify_portfolios(portfolios, market)
    given = _require_moves(moves, len(market.feeds))
    shock, feeds, n = policy.scenario.volatility, len(market.feeds), len(portfolios.account)
    covariance = given.T @ given / len(given)
    drawn = simulate_normal(covariance, policy.var.draws, policy.var.seed)
    greeks = sensitivities(portfolios, market)
    vega = _vega_of_shock(portfolios, market, shock) / normal_var(1.0, alpha)
    factors = np.zeros((feeds + 1, feeds + 1))
    factors[:feeds, :feeds], factors[-1, -1] = covariance, 1.0
    exposed = np.zeros((n + portfolios.spot.size, feeds))  # of every row, USD per 100% move
    exposed[np.arange(n), portfolios.instruments.underlying[portfolios.instrument]] = _row_deltas(portfolios, market)
    exposed[n + np.arange(portfolios.spot.size), np.tile(np.arange(feeds), portfolios.accounts)] = (
        portfolios.spot * market.spot
    ).ravel()
    bounds = np.searchsorted(portfolios.account, np.arange(portfolios.accounts + 1))
    need, share = np.zeros(portfolios.accounts), np.zeros(n + portfolios.spot.size)
    binding = np.full(portfolios.accounts, "", dtype=object)
    for account in range(portfolios.accounts):
        rows = np.concatenate([np.arange(bounds[account], bounds[account + 1]), n + account * feeds + np.arange(feeds)])
        law = delta_gamma(
            np.append(greeks.delta[account], vega[account]), np.append(greeks.gamma[account], 0.0), factors, alpha
        )
        part = _worst_of(portfolios, market, shock, drawn, alpha, account, greeks)
        need[account] = max(0.0, law.var, part.es)
        share[rows] = part.share
        if (rest := need[account] - part.es) > 0:
            w = exposed[rows] @ covariance @ greeks.delta[account]
            if abs(w.sum()) <= 1e-9 * np.abs(w).sum() or not w.any():
                w = np.abs(exposed[rows]).sum(axis=1)
            if not w.any():  # nothing but vega, which no delta tells: by rows alike
                w = np.append(np.ones(len(rows) - feeds), np.zeros(feeds))
            share[rows] += rest * w / w.sum()
        if need[account] > 0:
            binding[account] = "delta-gamma-vega" if rest > 0 else part.binding
    return _required(policy, need, share, binding)


def _vega_of_shock(portfolios: Portfolios, market: Market, shock: VolatilityShockRow) -> Floats:
    """Return what every portfolio gains if all volatility is shocked up, to first order, USD, shape (A,)."""
    vols, up, _ = _shocked(portfolios.instruments, market, shock)
    unit = _unit_greeks(portfolios.instruments, market)[2] * (up - vols)
    return sum_by(portfolios.account, unit[portfolios.instrument] * portfolios.size, portfolios.accounts)


def _row_deltas(portfolios: Portfolios, market: Market) -> Floats:
    """Return delta of every row, USD per 100% move, shape (N,)."""
    row, of = portfolios.instrument, portfolios.instruments
    unit = _unit_greeks(of, market)[0]
    deltas: Floats = unit[row] * portfolios.size + linear_units(portfolios) * market.spot[of.underlying[row]]
    return deltas


class _WorstPart(NamedTuple):
    es: float
    share: Floats  # (N of the account + U,) adds up to it
    binding: str


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
    spot, unit = market.spot[of.underlying], _unit_greeks(of, market)
    row = portfolios.instrument
    by_row = unit[:, row] * portfolios.size
    by_row[0] += linear_units(portfolios) * spot[row]
    place = portfolios.account * len(market.feeds) + of.underlying[row]
    shape = portfolios.spot.shape
    delta, gamma, vega = (sum_by(place, part, shape[0] * shape[1]).reshape(shape) for part in by_row)
    return Sensitivities(delta + portfolios.spot * market.spot, gamma, vega)


def _unit_greeks(of: Instruments, market: Market) -> Floats:
    """Return (delta, gamma, vega) of one option of each instrument by relative moves, shape (3, I); 0 for perps."""
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
    return unit


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
    given = _require_moves(moves, len(market.feeds))
    greeks = sensitivities(portfolios, market)
    parts = (_worst_of(portfolios, market, shock, given, alpha, a, greeks) for a in range(portfolios.accounts))
    return np.array([part.es for part in parts])


def _worst_of(
    portfolios: Portfolios,
    market: Market,
    shock: VolatilityShockRow,
    moves: Floats,
    alpha: float,
    account: int,
    greeks: Sensitivities,
) -> _WorstPart:
    if require_confidence(alpha) < 1 - WORST - 1e-12:
        raise ValueError(f"alpha: {alpha:g} reaches beyond the worst {WORST:g} that are revalued")
    tail = tail_of(len(moves), alpha)
    count = min(len(moves), max(tail.whole + 1, math.ceil(WORST * len(moves))))
    rough = -(moves @ greeks.delta[account] + moves**2 @ greeks.gamma[account] / 2)
    chosen = np.sort(np.argsort(-rough, kind="stable")[:count])
    first, stop = (int(np.searchsorted(portfolios.account, account + i)) for i in (0, 1))
    alone = Portfolios(
        1,
        np.zeros(stop - first, dtype=np.int64),
        portfolios.instrument[first:stop],
        portfolios.size[first:stop],
        portfolios.entry[first:stop],
        portfolios.funding[first:stop],
        portfolios.spot[account : account + 1],
        portfolios.instruments,
    )
    (block,) = _blocks(alone, market, shock, moves[chosen])
    at, weights = _tail_of_each(block.worst, tail)
    es = float((np.take_along_axis(block.worst, at, axis=1) * weights).sum())
    if es <= 0:
        return _WorstPart(0.0, np.zeros(stop - first + len(market.feeds)), "")
    by_shock, own = np.take_along_axis(block.shock, at, axis=1), np.zeros(len(market.feeds), dtype=np.int64)
    columns = np.arange(len(market.feeds))
    rows = _tail_means(block.unit, block.column, block.amount, block.owner, by_shock, at, weights)
    spot = _tail_means(block.prices, columns, portfolios.spot[account], own, by_shock, at, weights)
    worst = int(block.worst[0].argmax())
    name = f"draw {int(chosen[worst]) + 1} of {len(moves)}{SHOCKS[int(block.shock[0, worst])]}"
    return _WorstPart(es, np.concatenate([rows, spot]), name)
