"""European options: Black-76 on a forward, Black-Scholes-Merton with carry, greeks and implied volatility (risk.md §3).

With ``s = vol·√t``, ``d1 = ln(F/K)/s + s/2``, ``d2 = d1 − s`` and w = +1 for calls, −1 for puts,
``price = df·w·(F·Φ(w·d1) − K·Φ(w·d2))``. Years of 365 days, volatility per sqrt(year), rates continuously compounded,
prices in the unit of forward and strike (USD). All functions are vectorised and broadcast; nothing is rounded.

Limits, all taken and none raised: t = 0 or vol = 0 gives the discounted intrinsic value; F = 0 gives calls 0 and puts
df·K; K = 0 gives calls df·F and puts 0. NaN, infinities and negative prices, strikes, volatilities or times raise
ValueError naming the argument: an option past its expiry has no price here, but a settlement.

Sources: F. Black, "The pricing of commodity contracts", Journal of Financial Economics 3 (1976); R. C. Merton, "Theory
of rational option pricing", Bell Journal of Economics 4 (1973); greeks as in E. G. Haug, "The Complete Guide to Option
Pricing Formulas", 2nd ed. (2007), ch. 2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from aggregator.core.instruments.arguments import Bools, finite, flags, in_range, not_negative, positive
from aggregator.domain.units import Floats

LEAST_TIME_VALUE = 1e-12
"""No volatility is implied from less time value than this part of max(F, K): it is the price's own rounding."""
LEAST_VEGA = 1e-8
"""No volatility is implied where vega (per 1.00, undiscounted) is less than this part of max(F, K): a rounding error of
the price would be an error of more than 1e-8 in the volatility."""
_TINY, _HUGE = 1e-300, 1e4  # deviations are kept within, where every quotient below has its limit and none is 0/0
_BLOCK = 16_384  # prices worked on at a time: three such columns stay in a core's second-level cache
_STEPS = 64
_SETTLED = 1e-9  # relative change after which the search ends: the error left is about its square
_REPRODUCED = 1e-13  # part of max(F, K) by which the price of an implied volatility may miss the price asked for
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


class Greeks(NamedTuple):
    """Price and sensitivities, each shaped as the arguments broadcast.

    At the kink (F = K with t = 0 or vol = 0) they are the limits: delta half way, gamma +inf, and theta −inf if it is
    t that is 0. Away from it gamma, vega and theta's diffusion term are 0 in these limits.
    """

    price: Floats
    delta: Floats  # per unit of forward (Black-76) or spot (BSM)
    gamma: Floats  # delta per unit
    theta: Floats  # per year that passes
    vega: Floats  # per 1.00 of volatility
    rho: Floats  # per 1.00 of r; Black-76 at a fixed forward, so that it is −t·price
    elasticity: Floats  # delta·underlying/price; NaN where the price is 0
    d1: Floats  # ±inf where s = 0, F = 0 or K = 0
    d2: Floats


def black76(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    vol: npt.ArrayLike,
    is_call: npt.ArrayLike,
    df: npt.ArrayLike = 1.0,
) -> Floats:
    """Price options on forwards.

    Computed as intrinsic plus time value, so that put-call parity and the bounds of no arbitrage hold to rounding and
    out-of-the-money prices keep their relative precision.

    Args:
        forward, strike: USD, not negative.
        t: years to expiry, not negative.
        vol: per sqrt(year), not negative.
        is_call: True or 1 for calls.
        df: discount factor of the payment, positive.

    Raises:
        ValueError: an argument is NaN, infinite or out of its range.
    """
    forward, strike, deviation, is_call, df = _arguments(forward, strike, t, vol, is_call, df)
    return in_range("forward, strike and df", np.asarray(df * _undiscounted(forward, strike, deviation, is_call)))


def bsm(
    spot: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    vol: npt.ArrayLike,
    r: npt.ArrayLike,
    q: npt.ArrayLike,
    is_call: npt.ArrayLike,
) -> Floats:
    """Price options on spot: Black-76 on ``F = S·exp((r−q)·t)``, discounted by ``exp(−r·t)``.

    Args:
        spot: USD, not negative.
        r, q: interest and carry (dividend yield) per year, any sign.
        strike, t, vol, is_call: as of :func:`black76`.

    Raises:
        ValueError: an argument is NaN, infinite or out of its range, or the forward overflows.
    """
    forward, df = _forward(spot, t, r, q)
    return black76(forward, strike, t, vol, is_call, df)


def black76_greeks(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    vol: npt.ArrayLike,
    is_call: npt.ArrayLike,
    df: npt.ArrayLike = 1.0,
) -> Greeks:
    """Compute price and greeks of options on forwards; theta and rho take ``df = exp(−r·t)``.

    Raises:
        ValueError: as :func:`black76`; or df is not 1 at t = 0, where it would imply no rate.
    """
    years, discount = not_negative("t", t), positive("df", df)
    if ((years == 0) & (discount != 1)).any():
        raise ValueError("df must be 1 where t is 0")
    rate = -np.log(discount) / np.where(years > 0, years, 1.0)
    terms = _terms(forward, strike, years, vol, is_call, discount)
    delta = terms.sign * discount * terms.inside
    return _shaped(
        price=terms.price,
        delta=delta,
        gamma=discount * terms.gamma,
        theta=rate * terms.price + discount * terms.decay,
        vega=discount * terms.vega,
        rho=-years * terms.price,
        elasticity=_elasticity(delta, terms.forward, terms.price),
        d1=terms.d1,
        d2=terms.d2,
    )


def bsm_greeks(
    spot: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    vol: npt.ArrayLike,
    r: npt.ArrayLike,
    q: npt.ArrayLike,
    is_call: npt.ArrayLike,
) -> Greeks:
    """Compute price and greeks of options on spot; delta and gamma per unit of spot, rho at a fixed spot.

    Raises:
        ValueError: as :func:`bsm`.
    """
    forward, df = _forward(spot, t, r, q)
    spot, years, r, q = np.asarray(spot, float), np.asarray(t, float), np.asarray(r, float), np.asarray(q, float)
    terms = _terms(forward, strike, years, vol, is_call, df)
    carried = np.exp(-q * years)  # df·F/S, with a value at S = 0 too
    delta = terms.sign * carried * terms.inside
    received = terms.sign * df * terms.strike * terms.exercised
    with np.errstate(over="ignore"):
        gamma = carried * np.exp((r - q) * years) * terms.gamma
    return _shaped(
        price=terms.price,
        delta=delta,
        gamma=gamma,
        theta=df * terms.decay - r * received + q * delta * spot,
        vega=df * terms.vega,
        rho=years * received,
        elasticity=_elasticity(delta, spot, terms.price),
        d1=terms.d1,
        d2=terms.d2,
    )


def implied_vol(
    price: npt.ArrayLike,
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    is_call: npt.ArrayLike,
    df: npt.ArrayLike = 1.0,
) -> Floats:
    """Invert :func:`black76` for the volatility.

    Safeguarded Newton on the time value b(s), divided by √(F·K). Below its inflection ``s = √(2|ln F/K|)`` the step is
    taken on ln b over 1/s², above it on ln(b_max − b) over s: both are nearly straight, so that a handful of steps
    reaches the rounding of the price; a step out of the bracket is replaced by its middle.

    Args:
        price: USD, not negative.
        forward, strike, t, is_call, df: as of :func:`black76`.

    Returns:
        Volatility per sqrt(year); NaN where the price tells none: time value below :data:`LEAST_TIME_VALUE` or vega
        below :data:`LEAST_VEGA`, hence also where t, F or K is 0 and where the price breaks an arbitrage bound.

    Raises:
        ValueError: an argument is NaN, infinite or out of its range.
    """
    price = not_negative("price", price)
    forward, strike, root, is_call, df = _arguments(forward, strike, t, 1.0, is_call, df)
    with np.errstate(over="ignore"):
        worth = price / df
    worth, forward, strike, root, is_call = np.broadcast_arrays(worth, forward, strike, root, is_call)
    found = np.full(worth.shape, np.nan)
    greater, lesser = np.maximum(forward, strike), np.minimum(forward, strike)
    value = worth - np.maximum(np.where(is_call, forward - strike, strike - forward), 0.0)
    told = (root > _TINY) & (value > LEAST_TIME_VALUE * greater) & (lesser - value > LEAST_TIME_VALUE * lesser)
    if not told.any():
        return found
    value, greater, lesser, root = value[told], greater[told], lesser[told], root[told]
    x = np.log(lesser) - np.log(greater)
    scale = np.sqrt(lesser) * np.sqrt(greater)
    deviation = _implied_deviation(value / scale, x)
    vega = lesser * _density(x / deviation + deviation / 2) * root
    missed = np.abs(_time_value(lesser, greater, deviation) - value)
    found[told] = np.where((vega >= LEAST_VEGA * greater) & (missed <= _REPRODUCED * greater), deviation / root, np.nan)
    return found


def implied_vol_bsm(
    price: npt.ArrayLike,
    spot: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    r: npt.ArrayLike,
    q: npt.ArrayLike,
    is_call: npt.ArrayLike,
) -> Floats:
    """Invert :func:`bsm` for the volatility; NaN and errors as of :func:`implied_vol`."""
    forward, df = _forward(spot, t, r, q)
    return implied_vol(price, forward, strike, t, is_call, df)


def price_grid(
    log_moneyness: Floats, forward: Floats, strike: Floats, deviation: Floats, is_call: Bools | bool
) -> Floats:
    """Price a grid of scenarios, undiscounted: the fast path of :func:`black76`, for arguments known to be good.

    The arguments broadcast to the result and should be passed in their *smallest* shapes: what depends on one axis only
    is computed along that axis only. For S moves × V volatility shocks × I instruments: log_moneyness and forward
    (S, 1, I), strike (I,), deviation (V, I), is_call (I,). ``ln F_s − ln K`` from the logs of moves, forwards and
    strikes costs S + 2·I logs and not S·V·I. An I that holds every (expiry, strike) once, as a call, halves the rest:
    puts follow by :func:`puts_by_parity`.

    Args:
        log_moneyness: ln F − ln K; −inf where F = 0, +inf where K = 0 (K wins where both are).
        forward, strike: USD.
        deviation: vol·√t; 0 gives the intrinsic value.
        is_call: True for calls.

    Returns:
        A fresh array, rounded to some 1e-16·(F + K), so that a price may fall that much below its bound. Nothing is
        checked: NaN in gives NaN out, negative inputs give nonsense.
    """
    sign = np.where(is_call, 1.0, -1.0)
    with np.errstate(over="ignore"):
        log_moneyness = np.asarray(sign * log_moneyness)
        deviation = np.clip(deviation, _TINY, _HUGE)
        half, forward, strike = np.asarray(sign * deviation / 2), np.asarray(sign * forward), np.asarray(sign * strike)
        shape = np.broadcast_shapes(log_moneyness.shape, deviation.shape, forward.shape, strike.shape)
        price = np.empty(shape)
        if price.size <= _BLOCK:
            _fill(price, log_moneyness, deviation, half, forward, strike)
            return price
        columns = [_leading(array, len(shape)) for array in (log_moneyness, deviation, half, forward, strike)]
        step = max(1, _BLOCK // (price.size // shape[0]))
        for start in range(0, shape[0], step):
            rows = slice(start, start + step)
            _fill(price[rows], *(array if array.shape[0] == 1 else array[rows] for array in columns))
    return price


def puts_by_parity(calls: Floats, forward: Floats, strike: Floats) -> Floats:
    """Compute undiscounted puts ``C − F + K`` from the calls of the same strikes, within their bounds.

    Calls that are rounded below their bound would make puts below theirs: hence at least max(0, K − F).
    """
    gap = strike - forward
    puts: Floats = calls + gap
    np.maximum(puts, np.maximum(gap, 0.0), out=puts)
    return puts


def _arguments(
    forward: npt.ArrayLike,
    strike: npt.ArrayLike,
    t: npt.ArrayLike,
    vol: npt.ArrayLike,
    is_call: npt.ArrayLike,
    df: npt.ArrayLike,
) -> tuple[Floats, Floats, Floats, Bools, Floats]:
    """Check the arguments of a pricing function; vol and t come back as their deviation vol·√t."""
    years = finite("t", t)
    if (years < 0).any():
        raise ValueError("t must not be negative: the option has expired and is settled, not priced")
    with np.errstate(over="ignore"):
        deviation = np.clip(not_negative("vol", vol) * np.sqrt(years), _TINY, _HUGE)
    return (
        not_negative("forward", forward),
        not_negative("strike", strike),
        np.asarray(deviation),
        flags("is_call", is_call),
        positive("df", df),
    )


def _forward(spot: npt.ArrayLike, t: npt.ArrayLike, r: npt.ArrayLike, q: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return (forward, discount factor) of BSM's arguments."""
    years, spot, r, q = not_negative("t", t), not_negative("spot", spot), finite("r", r), finite("q", q)
    with np.errstate(over="ignore", invalid="ignore"):
        forward, df = spot * np.exp((r - q) * years), np.exp(-r * years)
    return in_range("spot, r, q and t", np.asarray(forward)), in_range("r and t", np.asarray(df))


def _moneyness(forward: Floats, strike: Floats) -> Floats:
    """Return ln F − ln K, ±inf where one is 0 and +inf where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(strike == 0, np.inf, np.log(forward) - np.log(strike)))


def _undiscounted(forward: Floats, strike: Floats, deviation: Floats, is_call: Bools) -> Floats:
    intrinsic = np.maximum(np.where(is_call, forward - strike, strike - forward), 0.0)
    return np.asarray(intrinsic + _time_value(np.minimum(forward, strike), np.maximum(forward, strike), deviation))


def _time_value(lesser: Floats, greater: Floats, deviation: Floats) -> Floats:
    """Compute the undiscounted out-of-the-money price, the same for call and put and symmetric in forward and strike:
    ``lesser·Φ(x/s + s/2) − greater·Φ(x/s − s/2)`` with ``x = ln(lesser/greater) ≤ 0``."""
    with np.errstate(over="ignore"):
        x = -np.abs(_moneyness(lesser, greater)) / deviation
        value = lesser * ndtr(x + deviation / 2) - greater * ndtr(x - deviation / 2)
    return np.asarray(np.clip(value, 0.0, lesser))


def _density(x: Floats) -> Floats:
    """Compute the standard normal density."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.exp(-x * x / 2) / _ROOT_TWO_PI)


class _Terms(NamedTuple):
    """What the greeks of both models are made of; undiscounted but for the price."""

    price: Floats
    forward: Floats
    strike: Floats
    sign: Floats  # +1 for calls, −1 for puts
    d1: Floats
    d2: Floats
    inside: Floats  # Φ(±d1)
    exercised: Floats  # Φ(±d2)
    gamma: Floats  # φ(d1)/(F·s)
    vega: Floats  # F·φ(d1)·√t
    decay: Floats  # −F·φ(d1)·vol/(2√t)


def _terms(
    forward: npt.ArrayLike, strike: npt.ArrayLike, t: Floats, vol: npt.ArrayLike, is_call: npt.ArrayLike, df: Floats
) -> _Terms:
    price = black76(forward, strike, t, vol, is_call, df)
    forward, strike, _, is_call, df = _arguments(forward, strike, t, vol, is_call, df)
    vol, root, sign = np.asarray(vol, float), np.sqrt(t), np.where(is_call, 1.0, -1.0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        x, s = _moneyness(forward, strike), np.minimum(vol * root, _HUGE)
        middle = np.where(x == 0, 0.0, x / s)
        d1, d2 = middle + s / 2, middle - s / 2
        density = _density(d1)
        flat = density == 0  # far from the strike the density outruns every divisor
        gamma = np.where(flat, 0.0, density / (forward * s))
        decay = np.where(flat | (vol == 0), 0.0, -forward * density * vol / (2 * root))
    return _Terms(
        price=price,
        forward=forward,
        strike=strike,
        sign=sign,
        d1=d1,
        d2=d2,
        inside=ndtr(sign * d1),
        exercised=ndtr(sign * d2),
        gamma=gamma,
        vega=forward * density * root,
        decay=decay,
    )


def _elasticity(delta: Floats, underlying: Floats, price: Floats) -> Floats:
    with np.errstate(over="ignore"):
        undefined = np.full(np.shape(delta * price), np.nan)
        return np.asarray(np.divide(delta * underlying, price, out=undefined, where=price > 0))


def _shaped(**columns: Floats) -> Greeks:
    """Bring all greeks to one shape: some depend on fewer arguments than others."""
    return Greeks(**dict(zip(columns, map(np.array, np.broadcast_arrays(*columns.values())), strict=True)))


def _implied_deviation(beta: Floats, x: Floats) -> Floats:
    """Solve ``b(s) = e^{x/2}·Φ(x/s + s/2) − e^{−x/2}·Φ(x/s − s/2) = beta`` for s.

    Args:
        beta: in (0, e^{x/2}), shape (N,).
        x: −|ln F/K|, shape (N,).
    """
    near, far = np.exp(x / 2), np.exp(-x / 2)  # near = b(∞)
    inflection = np.sqrt(-2 * x)
    below = beta < near * 0.5 - far * ndtr(-inflection)
    low = np.where(below, 0.0, inflection)
    high = np.where(below, inflection, inflection + 100)  # Φ is 0 or 1 there
    s = np.where(inflection > 0, inflection, 2 * beta)
    goal = np.log(np.where(below, beta, near - beta))
    open_ = np.arange(len(s))
    with np.errstate(all="ignore"):  # a bad step is caught below, whatever it came from
        for _ in range(_STEPS):
            at, xs, under = s[open_], x[open_], below[open_]
            d1, d2 = xs / at + at / 2, xs / at - at / 2
            first, second = near[open_] * ndtr(d1), far[open_] * ndtr(d2)
            slope = near[open_] * _density(d1)  # b'(s)
            # b, or b(∞) − b without cancellation
            left = np.where(under, first - second, near[open_] * ndtr(-d1) + second)
            excess = np.log(left) - goal[open_]
            short = (excess < 0) == under  # s is too low
            low[open_], high[open_] = np.where(short, at, low[open_]), np.where(short, high[open_], at)
            move = excess * left / slope
            step = np.where(under, 1 / np.sqrt(1 / (at * at) + 2 * move / at**3), at + move)
            settled = np.abs(step - at) <= _SETTLED * at  # even if rounding puts it just outside of the bracket
            inside = (step >= low[open_]) & (step <= high[open_])
            s[open_] = np.where(settled | inside, step, (low[open_] + high[open_]) / 2)
            open_ = open_[~settled]
            if not open_.size:
                break
    return s


def _leading(array: Floats, axes: int) -> Floats:
    """Return a view with as many axes as the result, so that its first one can be cut into blocks."""
    return array.reshape((1,) * (axes - array.ndim) + array.shape)


def _fill(price: Floats, middle: Floats, deviation: Floats, half: Floats, forward: Floats, strike: Floats) -> None:
    """Write F·Φ(middle/s + half) − K·Φ(middle/s − half) into ``price``, using one column beside it."""
    other = np.empty_like(price)
    np.divide(middle, deviation, out=price)
    np.subtract(price, half, out=other)
    np.add(price, half, out=price)
    ndtr(price, out=price)
    ndtr(other, out=other)
    np.multiply(price, forward, out=price)
    np.multiply(other, strike, out=other)
    np.subtract(price, other, out=price)
