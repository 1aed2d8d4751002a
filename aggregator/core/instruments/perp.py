"""Perpetual futures: what a position has earned, what it weighs and how it moves (risk.md §3).

A *linear* perp has ``size`` units of the underlying and settles in USD. An *inverse* perp has ``size`` USD and settles
in the underlying: a coin-margined future. Sizes are signed, negative = short. Prices are USD per unit. All functions
are vectorised and broadcast; amounts are USD unless the name says otherwise. Nothing is rounded.

Source of the inverse payoff: the contract specification of BitMEX XBTUSD (contracts·(1/entry − 1/exit) bitcoin).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aggregator.core.instruments.arguments import finite, flags, in_range, not_negative, positive
from aggregator.domain.units import Floats


def linear_pnl(size: npt.ArrayLike, mark: npt.ArrayLike, entry: npt.ArrayLike) -> Floats:
    """Compute ``size·(mark − entry)``, the unrealised PnL of linear perps in USD, funding apart.

    Args:
        size: signed units of the underlying.
        mark, entry: USD, not negative; 0 is a price like any other.

    Raises:
        ValueError: an argument is NaN, infinite or a negative price, or the result overflows.
    """
    size, mark, entry = finite("size", size), not_negative("mark", mark), not_negative("entry", entry)
    with np.errstate(over="ignore", invalid="ignore"):
        return in_range("size, mark and entry", np.asarray(size * (mark - entry)))


def inverse_pnl(size: npt.ArrayLike, mark: npt.ArrayLike, entry: npt.ArrayLike) -> Floats:
    """Compute the unrealised PnL of inverse perps in USD, funding apart.

    ``size·(1/entry − 1/mark)·mark = size·(mark/entry − 1)``: what :func:`inverse_pnl_underlying` is worth at the mark.
    It is linear in the mark, and finite at 0: there a long has lost ``size`` USD.

    Args:
        size: signed USD.
        mark: USD, not negative.
        entry: USD, positive.

    Raises:
        ValueError: an argument is NaN, infinite or out of its range, or the result overflows.
    """
    size, mark, entry = finite("size", size), not_negative("mark", mark), positive("entry", entry)
    with np.errstate(over="ignore", invalid="ignore"):
        return in_range("size, mark and entry", np.asarray(size * ((mark - entry) / entry)))


def inverse_pnl_underlying(size: npt.ArrayLike, mark: npt.ArrayLike, entry: npt.ArrayLike) -> Floats:
    """Compute ``size·(1/entry − 1/mark)``, the unrealised PnL of inverse perps in units of the underlying.

    Concave in the mark for a long, without bound toward 0, so that the mark must be positive here.

    Args:
        size: signed USD.
        mark, entry: USD, positive.

    Raises:
        ValueError: an argument is NaN, infinite or out of its range, or the result overflows.
    """
    size, mark, entry = finite("size", size), positive("mark", mark), positive("entry", entry)
    with np.errstate(over="ignore", invalid="ignore"):
        return in_range("size, mark and entry", np.asarray(size * ((mark - entry) / entry) / mark))


def funding_accrued(size: npt.ArrayLike, index_now: npt.ArrayLike, index_then: npt.ArrayLike) -> Floats:
    """Compute the funding accrued to positions since it was last settled: ``−size·(index_now − index_then)``.

    Args:
        size: signed; units of the underlying (linear) or USD (inverse).
        index_now, index_then: the venue's cumulative funding index, i.e. what a long has paid per unit of ``size``
            since the venue began (falls while shorts pay longs), in the currency that the result is wanted in.

    Returns:
        Positive where the account receives, negative where it pays.

    Raises:
        ValueError: an argument is NaN or infinite, or the result overflows.
    """
    size, now, then = finite("size", size), finite("index_now", index_now), finite("index_then", index_then)
    with np.errstate(over="ignore", invalid="ignore"):
        return in_range("size, index_now and index_then", np.asarray(size * (then - now)))


def notional(size: npt.ArrayLike, mark: npt.ArrayLike, inverse: npt.ArrayLike = False) -> Floats:
    """Compute notionals in USD: ``|size|·mark`` of linear perps, ``|size|`` of inverse ones.

    Raises:
        ValueError: an argument is NaN, infinite or a negative price, or the result overflows.
    """
    amount, mark = np.abs(finite("size", size)), not_negative("mark", mark)
    with np.errstate(over="ignore"):
        return in_range("size and mark", np.where(flags("inverse", inverse), amount, amount * mark))


def delta(size: npt.ArrayLike, entry: npt.ArrayLike = 0.0, inverse: npt.ArrayLike = False) -> Floats:
    """Compute ∂(PnL in USD)/∂mark in units of the underlying: ``size`` of linear perps, ``size/entry`` of inverse ones.

    Neither depends on the mark: perps have no gamma in USD.

    Raises:
        ValueError: an argument is NaN or infinite, an inverse perp's entry is not positive, or the result overflows.
    """
    size, entry, inverse = finite("size", size), not_negative("entry", entry), flags("inverse", inverse)
    if (inverse & (entry == 0)).any():
        raise ValueError("entry must be positive for inverse perps")
    with np.errstate(over="ignore"):
        return in_range("size and entry", np.asarray(size / np.where(inverse, entry, 1.0)))
