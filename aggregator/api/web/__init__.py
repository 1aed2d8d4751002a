"""Rendering of the pages: Jinja2 with everything escaped, and the few ways in which pages write numbers."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from pathlib import Path

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aggregator.domain.units import format_usd

_SHORT = 16  # characters of a hash or address up to which nothing is left out
_HUGE = 1000  # a health beyond which the exact ratio tells nobody anything
_DIGITS = 8  # significant ones of an amount in the text of a page; the title has all
_PRECISION = 100  # enough for every amount that there is
_LARGE = 100  # a price from which cents suffice


def when(time: int) -> str:
    """Write Unix seconds as UTC; a time that no calendar has stays a number."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(time)


def span(seconds: float) -> str:
    """Write a length of time in its two largest units, e.g. ``3 min 20 s``."""
    rest = max(0, math.floor(seconds))
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(part for part in parts[:2] if part) or "0 s"


def short(text: str) -> str:
    """Shorten the last part of an id, so that both of its ends stay readable."""
    head, colon, tail = text.rpartition(":")
    if len(tail) <= _SHORT:
        return text
    kept = f"{tail[:8]}…{tail[-4:]}"
    return f"{short(head)}{colon}{kept}" if colon else kept


def ratio(value: float | None) -> str:
    """Write a health ratio with two decimals, rounded down: 0.999 must not read 1.00."""
    if value is None:
        return "∞"
    return f"{math.floor(value * 100) / 100:,.2f}" if value < _HUGE else f"> {_HUGE:,}"


def usd(units: str) -> str:
    """Write an exact amount of 1e-8 USD in dollars and cents, the sign before the currency."""
    amount = int(units)
    text = format_usd(abs(amount))
    return f"−${text}" if amount < 0 and any(digit in "123456789" for digit in text) else f"${text}"


def grouped(number: str) -> str:
    """Group the whole digits of a decimal string in threes."""
    whole, point, part = number.removeprefix("-").partition(".")
    return f"{'−' if number.startswith('-') else ''}{int(whole):,}{point}{part}"


def brief(number: str) -> str:
    """Write a decimal string with at most 8 significant digits, but all of its whole ones, grouped in threes."""
    value = Decimal(number)
    places = max(0, min(-int(value.as_tuple().exponent), _DIGITS - 1 - value.adjusted()))
    with localcontext(prec=_PRECISION):
        rounded = f"{value.quantize(Decimal(1).scaleb(-places)):f}"
    return grouped(rounded.rstrip("0").rstrip(".") if "." in rounded else rounded)


def signed(value: float) -> str:
    """Write a figure with 4 significant digits and a true minus."""
    return f"{value:,.4g}".replace("-", "−")


def cents(value: float) -> str:
    """Write a figure with two decimals and a true minus."""
    return f"{value:,.2f}".replace("-", "−")


def percent(value: float) -> str:
    """Write a share of one as a percentage."""
    return f"{value:.2%}"


def price(text: str | None) -> str:
    """Write a price with as many decimals as its size deserves; unbounded ones as a dash."""
    if text is None:
        return "—"
    value = float(text)
    return f"{value:,.2f}" if abs(value) >= _LARGE else f"{value:,.4f}"


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    when=when,
    span=span,
    short=short,
    ratio=ratio,
    percent=percent,
    grouped=grouped,
    usd=usd,
    price=price,
    brief=brief,
    signed=signed,
    cents=cents,
)


def render(template: str, **values: object) -> HTMLResponse:
    """Render one page."""
    return HTMLResponse(_ENVIRONMENT.get_template(template).render(**values))
