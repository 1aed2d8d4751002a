"""Measured legs as pictures: bars in a terminal, and an SVG of what share took no longer than so many seconds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

EDGES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
"""Upper ends of bars, in seconds; what takes longer falls into one more."""
BLOCKS = " ▁▂▃▄▅▆▇█"
COLOURS = ("#1f6feb", "#d1572c", "#2f8f4e", "#8a4fbf", "#a8791a", "#0f8b8d", "#b8336a", "#5c6470")

_WIDTH, _HEIGHT = 420, 240  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 16, 34, 34
_COLUMNS = 2
_SHORTEST = 0.01  # seconds at the left end of every axis


class Curve(NamedTuple):
    """One line of a panel."""

    name: str
    seconds: Sequence[float]  # measured, at least one
    law: Sequence[tuple[int, float]]  # (seconds, chance) in use


def span(series: Iterable[Sequence[float]]) -> tuple[int, int]:
    """Return the first and last bar that any of the series needs; (0, 0) without any."""
    places = [bisect_left(EDGES, end) for values in series if values for end in (min(values), max(values))]
    return (min(places), max(places)) if places else (0, 0)


def bars(seconds: Sequence[float], first: int, last: int) -> str:
    """Return one character per bar from ``first`` to ``last``; the fullest is the highest, none is empty but at 0."""
    counts = [0] * (last - first + 1)
    for value in seconds:
        counts[bisect_left(EDGES, value) - first] += 1
    top = max(counts, default=0)
    return "".join(BLOCKS[math.ceil(count * (len(BLOCKS) - 1) / top)] if top else " " for count in counts)


def name_of_bar(place: int) -> str:
    """Return what a bar ends at, for people."""
    return f"{EDGES[place]:g} s" if place < len(EDGES) else f"over {EDGES[-1]} s"


def draw(panels: Sequence[tuple[str, Sequence[Curve]]], caption: str) -> str:
    """Return an SVG with one panel per leg: share of measurements (solid) and of the law in use (dashed) by seconds."""
    rows = -(-len(panels) // _COLUMNS)
    width, height = _COLUMNS * _WIDTH, rows * _HEIGHT + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#24292f">',
        f"<title>{escape(caption)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="13" font-weight="600">{escape(caption)}</text>',
    ]
    for i, (leg, curves) in enumerate(panels):
        x, y = i % _COLUMNS * _WIDTH, i // _COLUMNS * _HEIGHT + 34
        parts += [f'<g transform="translate({x} {y})">', *_panel(leg, curves), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(leg: str, curves: Sequence[Curve]) -> list[str]:
    longest = max(max(*c.seconds, *(value for value, _ in c.law), _SHORTEST) for c in curves)
    decades = math.log10(1.2 * longest / _SHORTEST)  # some room on the right
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(seconds: float) -> float:
        return _LEFT + inner_width * math.log10(max(seconds, _SHORTEST) / _SHORTEST) / decades

    def down(share: float) -> float:
        return _TOP + inner_height * (1 - share)

    def steps(points: Iterable[tuple[float, float]]) -> str:
        """Return a path that rises at each (seconds, share reached); within half a unit it rises once."""
        highest = {round(2 * across(seconds)) / 2: min(share, 1.0) for seconds, share in points}
        rises = "".join(f"H{x:g}V{down(share):.1f}" for x, share in highest.items())
        return f"M{_LEFT} {down(0):.1f}{rises}H{_WIDTH - _RIGHT}"

    parts = [f'<text x="{_LEFT}" y="18" font-weight="600">{escape(leg)}</text>']
    for share in (0.0, 0.5, 0.9, 0.99, 1.0):
        y = down(share)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#d8dee4" stroke-width="1"/>')
        if share != 0.99:  # too near to 1 for a label of its own
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for exponent in range(-2, math.floor(math.log10(longest) + 1e-9) + 1):
        x = across(10.0**exponent)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{down(0):.1f}" stroke="#eaeef2" stroke-width="1"/>')
        parts.append(f'<text x="{x:.1f}" y="{down(0) + 15:.1f}" text-anchor="middle">{10.0**exponent:g} s</text>')
    for i, curve in enumerate(curves):
        colour, ordered = COLOURS[i % len(COLOURS)], sorted(curve.seconds)
        measured = ((value, (rank + 1) / len(ordered)) for rank, value in enumerate(ordered))
        reached, law = 0.0, []
        for value, chance in curve.law:
            reached += chance
            law.append((float(value), reached))
        parts += [
            f'<path d="{steps(law)}" fill="none" stroke="{colour}" stroke-width="1" stroke-dasharray="4 3"/>',
            f'<path d="{steps(measured)}" fill="none" stroke="{colour}" stroke-width="1.6"/>',
            f'<text x="{_LEFT + 6}" y="{_TOP + 14 + 13 * i}" fill="{colour}">'
            f"{escape(curve.name)} ({len(ordered)})</text>",
        ]
    return parts
