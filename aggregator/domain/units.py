"""Exact units and the one place where a float becomes money again.

USD amounts that leave the valuation are integers with :data:`USD_DECIMALS` decimals. What is attested first moves
2**-40 relative toward safety, then rounds: assets down, debts and requirements up.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from aggregator.domain.errors import InputError

USD_DECIMALS = 8
USD: int = 10**USD_DECIMALS
UINT128_MAX = 2**128 - 1
UINT256_MAX = 2**256 - 1
SAFETY: float = 2.0**-40
SECONDS_PER_YEAR = 365 * 86_400
AMOUNT_LIMIT = 2**127
"""Amounts that people name are below it; valuation isolates accounts long before."""

Floats = npt.NDArray[np.float64]


def usd_down(value: float) -> int:
    """Return ``value`` USD as 1e-8 USD, moved 2**-40 relative and rounded toward minus infinity.

    Raises:
        OverflowError, ValueError: for infinities and NaN, which must never become money.
    """
    return math.floor((value - abs(value) * SAFETY) * USD)


def usd_up(value: float) -> int:
    """Return ``value`` USD as 1e-8 USD, moved 2**-40 relative and rounded toward plus infinity."""
    return math.ceil((value + abs(value) * SAFETY) * USD)


def format_usd(amount: int, places: int = 2) -> str:
    """Render 1e-8 USD for people, e.g. ``1,234.57``; rounds half away from zero at ``places``."""
    scale: int = 10 ** (USD_DECIMALS - places)
    magnitude = (abs(amount) + scale // 2) // scale
    unit: int = 10**places
    whole, part = divmod(magnitude, unit)
    sign = "-" if amount < 0 and magnitude else ""
    return f"{sign}{whole:,}" + (f".{part:0{places}d}" if places else "")


def format_amount(amount: int, decimals: int) -> str:
    """Render base units exactly as a decimal string, without trailing zeros."""
    whole, part = divmod(abs(amount), 10**decimals)
    text = f"{whole}.{part:0{decimals}d}".rstrip("0").rstrip(".") if decimals else str(whole)
    return "-" + text if amount < 0 else text


def parse_size(text: str, field: str) -> int:
    """Return a contract's size in 1e-18 from a decimal number of whole units.

    Raises:
        InputError: it is no positive decimal number of at most 18 places.
    """
    return parse_units(text, 18, field)


def parse_units(text: str, decimals: int, field: str) -> int:
    """Return base units from a decimal number of whole units, exactly.

    Raises:
        InputError: it is no positive decimal number, has more places than the asset, or is out of range.
    """
    if text.startswith("-"):
        raise InputError(field, f"{text[:40]!r} must be positive", "for example 10 or 0.5")
    whole, point, part = text.partition(".")
    digits = whole + part
    if not (digits.isascii() and digits.isdigit()) or (point and not part) or len(digits) > 60:
        raise InputError(field, f"{text[:40]!r} is no decimal number", "for example 10 or 0.5")
    if len(part) > decimals:
        raise InputError(field, f"{text[:40]!r} has more than {decimals} decimal places", "round it")
    units: int = int(digits) * 10 ** (decimals - len(part))
    if not 0 < units < AMOUNT_LIMIT:
        raise InputError(field, f"{text[:40]!r} {'is out of range' if units else 'must be positive'}")
    return units
