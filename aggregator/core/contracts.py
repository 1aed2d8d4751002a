"""What perps and options are worth, and the quantities that every margin model counts them by (risk.md §3, §4).

Marks are ours, never a venue's: a perp is worth its PnL against the fused price and the funding accrued, an option its
Black-76 price on ``F = S·exp((r−q)T)`` with the volatility of the policy's surface, discounted at r.

An option past its expiry that its venue has not settled is worth its intrinsic value at the current price, and has no
volatility and no discount.
"""

from __future__ import annotations

import numpy as np

from aggregator.core.instruments import option, perp, svi
from aggregator.domain.contracts import (
    CALL,
    INVERSE,
    KINDS,
    LAYERS,
    PERP,
    PUT,
    Bools,
    Instruments,
    Ints,
    Market,
    Portfolios,
    Requirement,
)
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

SHORT_OPTION_RATE, SHORT_OPTION_LEAST = 0.15, 0.10
"""Of spot: what a short option is charged at initial margin, less what it is out of the money, and at least."""
SHORT_OPTION_MAINTENANCE = 0.5
"""Of the initial charge of a short option: its maintenance charge."""
LONGEST = 30.0
"""Years. An option that expires later has no mark."""


def collect_instruments(kind: Ints, underlying: Ints, strike: Floats, expiry: Ints) -> tuple[Instruments, Ints]:
    """Return the distinct instruments of N rows in their order, and each row's index among them, shape (N,)."""
    order = np.lexsort((kind, strike, expiry, underlying))
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = np.any([np.diff(column[order]) != 0 for column in (kind, underlying, strike, expiry)], axis=0)
    index = np.empty(len(order), dtype=np.int64)
    index[order] = np.cumsum(new) - 1
    first = order[new]
    return Instruments(kind[first], underlying[first], strike[first], expiry[first]), index


def is_option(instruments: Instruments) -> Bools:
    """Tell which instruments are options, shape (I,)."""
    options: Bools = (instruments.kind == CALL) | (instruments.kind == PUT)
    return options


def unpriceable(instruments: Instruments, market: Market) -> Bools:
    """Tell which instruments have no mark, shape (I,).

    They are the options on an underlying that the policy gives no surface, those without a positive strike, and those
    that expire in more than :data:`LONGEST` years. Who holds one may owe any amount: leave it out and treat the
    account as blind.
    """
    bare = np.array([not row.surface for row in market.rows], dtype=np.bool_)
    late = years_left(instruments, market.now) > LONGEST
    blind: Bools = is_option(instruments) & (bare[instruments.underlying] | late | ~(instruments.strike > 0))
    return blind


def verify_priceable(instruments: Instruments, market: Market) -> None:
    """Raise ValueError if an instrument is :func:`unpriceable`."""
    blind = np.flatnonzero(unpriceable(instruments, market))
    if len(blind):
        i = int(blind[0])
        raise ValueError(
            f"instruments: {describe(instruments, i, market)}, expiry {int(instruments.expiry[i])}, has no mark; "
            "leave out what is unpriceable"
        )


def years_left(instruments: Instruments, now: int) -> Floats:
    """Return T of every instrument in years of 365 days, shape (I,); 0 for perps and from expiry on."""
    return np.maximum(instruments.expiry - now, 0) / SECONDS_PER_YEAR


def carry_factors(instruments: Instruments, market: Market) -> tuple[Floats, Floats]:
    """Return (F/S, e^{−rT}) of every instrument, each of shape (I,)."""
    t = years_left(instruments, market.now)
    rate = np.array([row.rate for row in market.rows])[instruments.underlying]
    carry = np.array([row.carry for row in market.rows])[instruments.underlying]
    return np.exp((rate - carry) * t), np.exp(-rate * t)


def implied_vols(instruments: Instruments, market: Market) -> Floats:
    """Return the implied volatility of every option at p̂, per sqrt(year), shape (I,).

    It belongs to the strike: it stays when a scenario moves the price. 0 for perps and from expiry on.

    Raises:
        ValueError: an option is :func:`unpriceable`.
    """
    verify_priceable(instruments, market)
    vols = np.zeros(len(instruments.kind))
    t = years_left(instruments, market.now)
    live = is_option(instruments) & (t > 0)
    growth, _ = carry_factors(instruments, market)
    for u in np.unique(instruments.underlying[live]):
        of = live & (instruments.underlying == u)
        vols[of] = svi.vol(instruments.strike[of], market.spot[u] * growth[of], t[of], market.rows[u].surface)
    return vols


def option_values(instruments: Instruments, market: Market, price: Floats, vols: Floats | None = None) -> Floats:
    """Return what one option of each instrument is worth, USD, discounted; 0 for perps.

    Args:
        price: spot of every underlying, shape (..., U), at least 0.
        vols: of :func:`implied_vols`; they stay those at p̂, so that a value is monotone in the price.

    Returns:
        shape (..., I).
    """
    growth, discount = carry_factors(instruments, market)
    values = np.zeros((*price.shape[:-1], len(instruments.kind)))
    where = np.flatnonzero(is_option(instruments))
    sigma = implied_vols(instruments, market) if vols is None else vols
    values[..., where] = option.black76(
        price[..., instruments.underlying[where]] * growth[where],
        instruments.strike[where],
        years_left(instruments, market.now)[where],
        sigma[where],
        instruments.kind[where] == CALL,
        discount[where],
    )
    return values


def linear_units(portfolios: Portfolios) -> Floats:
    """Return the units of the underlying whose worth in USD each row moves with, shape (N,); 0 for options.

    A linear perp's size. An inverse perp of N USD opened at E is worth ``N·(1/E − 1/S)·S = N·(S/E − 1)`` USD: it
    moves like ``N/E`` units.
    """
    kind = portfolios.instruments.kind[portfolios.instrument]
    units: Floats = np.where(
        (kind == PERP) | (kind == INVERSE), perp.delta(portfolios.size, portfolios.entry, kind == INVERSE), 0.0
    )
    return units


def contract_values(portfolios: Portfolios, market: Market, low: Floats, high: Floats) -> Floats:
    """Return what every row is worth to its account, USD, shape (3, N), at ``report.LOW``, ``MID`` and ``HIGH``.

    Options: signed size times the discounted value. Perps: PnL against the entry, and funding. ``low`` takes whichever
    of p⁻ and p⁺ is worse for the row, ``high`` the better one, ``mid`` p̂; so low ≤ mid ≤ high. For initial margin,
    give p⁻ and p⁺ of initial margin.

    Args:
        low, high: p⁻ and p⁺ of every underlying, USD, shape (U,); finite.

    Raises:
        ValueError: p⁻ ≤ p̂ ≤ p⁺ fails, or one is not finite or below 0.
    """
    verify_portfolios(portfolios, market)
    prices = np.stack([low, market.spot, high])
    if not (np.isfinite(prices).all() and (prices >= 0).all() and (np.diff(prices, axis=0) >= 0).all()):
        raise ValueError("low, high: must be finite and hold 0 <= low <= market.spot <= high")
    row, underlying = portfolios.instrument, portfolios.instruments.underlying[portfolios.instrument]
    units = linear_units(portfolios)
    options = option_values(portfolios.instruments, market, prices)[:, row] * portfolios.size
    worth = units * (prices[:, underlying] - portfolios.entry) + options + portfolios.funding
    ends: Floats = np.stack([np.minimum(worth[0], worth[2]), worth[1], np.maximum(worth[0], worth[2])])
    # p̂ lies between the bounds and a row is monotone in the price, but not to the last bit.
    ends[0], ends[2] = np.minimum(ends[0], ends[1]), np.maximum(ends[2], ends[1])
    return ends


def short_option_charges(instruments: Instruments, market: Market) -> Floats:
    """Return what one short option of each instrument is charged beyond its value, USD, shape (level, I); 0 for perps.

    ``IM = max(0.15·S − OTM, 0.10·S)``, ``MM = IM/2``, with OTM = max(0, K−S) for calls and max(0, S−K) for puts: the
    rule of Paradex (docs.paradex.trade, margin requirements of perpetual options), and of others with other rates.
    """
    spot, strike = market.spot[instruments.underlying], instruments.strike
    out = np.maximum(np.where(instruments.kind == CALL, strike - spot, spot - strike), 0.0)
    initial = np.maximum(SHORT_OPTION_RATE * spot - out, SHORT_OPTION_LEAST * spot) * is_option(instruments)
    return np.stack([initial, SHORT_OPTION_MAINTENANCE * initial])


def verify_portfolios(portfolios: Portfolios, market: Market) -> None:
    """Raise ValueError naming the argument that no margin model can count with."""
    rows, count = len(portfolios.account), len(market.feeds)
    of = portfolios.instruments
    for name in ("account", "instrument", "size", "entry", "funding"):
        if len(getattr(portfolios, name)) != rows:
            raise ValueError(f"portfolios.{name}: {len(getattr(portfolios, name))} rows, portfolios.account has {rows}")
    if portfolios.spot.shape != (portfolios.accounts, count):
        raise ValueError(f"portfolios.spot: shape {portfolios.spot.shape}, not {(portfolios.accounts, count)}")
    for name in ("size", "entry", "funding", "spot"):
        if not np.isfinite(getattr(portfolios, name)).all():
            raise ValueError(f"portfolios.{name}: NaN or infinite")
    for name, values, size in (
        ("portfolios.account", portfolios.account, portfolios.accounts),
        ("portfolios.instrument", portfolios.instrument, len(of.kind)),
        ("instruments.underlying", of.underlying, count),
        ("instruments.kind", of.kind, 4),
    ):
        if values.size and not (values.min() >= 0 and values.max() < size):
            raise ValueError(f"{name}: out of range 0 … {size - 1}")
    if (portfolios.account[1:] < portfolios.account[:-1]).any():
        raise ValueError("portfolios.account: must ascend")
    if (portfolios.spot < 0).any():
        raise ValueError("portfolios.spot: below 0; debts do not hedge")
    if (portfolios.entry[of.kind[portfolios.instrument] == INVERSE] <= 0).any():
        raise ValueError("portfolios.entry: inverse perps need a positive one")
    if not (np.isfinite(of.strike).all() and (of.strike[is_option(of)] > 0).all()):
        raise ValueError("instruments.strike: options need a positive, finite one")
    verify_market(market)


def verify_market(market: Market) -> None:
    """Raise ValueError naming what of the market no margin model can count with."""
    if not (np.isfinite(market.spot).all() and (market.spot > 0).all()):
        raise ValueError("market.spot: must be positive and finite; drop contracts on what has no price as unknown")
    if not ((market.confidence >= 0) & (market.confidence <= 1)).all():
        raise ValueError("market.confidence: must be in [0, 1]")
    if not (np.isfinite(market.range).all() and (market.range > 0).all()):
        raise ValueError("market.range: must be positive and finite")
    for name in ("spot", "confidence", "range", "rows"):
        if len(getattr(market, name)) != len(market.feeds):
            raise ValueError(f"market.{name}: one for each of the {len(market.feeds)} feeds")


def sum_by(index: Ints, values: Floats, size: int) -> Floats:
    """Return Σ values by index, shape (size,)."""
    return np.bincount(index, values, size).astype(np.float64, copy=False)


def net_by(account: Ints, key: Ints, values: Floats) -> Floats:
    """Return, for every row, Σ values over the rows of its account with its key, shape (N,)."""
    width = int(key.max(initial=-1)) + 1
    _, index = np.unique(account * width + key, return_inverse=True)
    return sum_by(index, values, len(index))[index]


def plain_requirement(portfolios: Portfolios, charges: Floats, market: Market) -> Requirement:
    """Add up what a model charges each row by itself, with no scenarios.

    Args:
        charges: USD, never negative in sum, shape (level, N). Options are reported in the layer of short options, perps
            in that of perps; spot is charged nothing.
    """
    perps = ~is_option(portfolios.instruments)[portfolios.instrument]
    layers = np.zeros((2, len(LAYERS), portfolios.accounts))
    for level in (INITIAL, MAINTENANCE):
        for name, of in (("perps", perps), ("short options", ~perps)):
            layers[level, LAYERS.index(name)] = sum_by(portfolios.account, charges[level] * of, portfolios.accounts)
    totals = layers.sum(axis=1)
    worst = np.full(portfolios.accounts, "", dtype=object)
    order = np.lexsort((charges[INITIAL], portfolios.account))
    top = order[np.append(np.diff(portfolios.account[order]) > 0, True)] if len(order) else order
    charged = top[charges[INITIAL][top] > 0]
    named, which = np.unique(portfolios.instrument[charged], return_inverse=True)
    names = np.array([describe(portfolios.instruments, int(i), market) for i in named], dtype=object)
    worst[portfolios.account[charged]] = names[which]
    return Requirement(
        initial=totals[INITIAL],
        maintenance=totals[MAINTENANCE],
        layers=layers,
        rows=np.hstack([charges, np.zeros((2, portfolios.spot.size))]),
        binding=tuple(worst.tolist()),
    )


def describe(instruments: Instruments, i: int, market: Market) -> str:
    """Name an instrument for people, e.g. ``ETH/USD call 2200``."""
    feed, kind = market.feeds[int(instruments.underlying[i])], list(KINDS)[int(instruments.kind[i])]
    return f"{feed} {kind} {instruments.strike[i]:.10g}" if kind in ("call", "put") else f"{feed} {kind}"
