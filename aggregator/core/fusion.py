"""Fuse what several sources say about one feed into a band that no minority of them can move far (risk.md §1).

``low`` is a weighted lower median of lower bounds and ``high`` a weighted upper median of upper bounds, over *all
configured* weight: a source that is silent, late or clamped votes 0 for ``low`` and infinity for ``high``. Losing a
source therefore never helps anyone, and less than half of the weight cannot move a bound past an honest one.

A ratio such as stETH/ETH is fused like any feed, in its own unit; only its product with ETH/USD is a price in USD.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from aggregator.domain.policy import PolicyRow
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.rows import RatioRow, SourceRow
from aggregator.domain.units import SECONDS_PER_YEAR

FUTURE_TOLERANCE = 5
"""Seconds a quote may be ahead of the cut: the price rule takes the first update *after* it (protocol.md)."""


_LARGEST = 1e300  # finite whatever is added to it
MOST_FACTORS = 3
"""A derived feed may rest on one that is derived itself, and no deeper."""


class _Vote(NamedTuple):
    weight: float
    price: float
    low: float
    high: float
    low_initial: float
    high_initial: float


def fuse_feeds(
    sources: Sequence[SourceRow],
    quotes: Sequence[Quote],
    now: int,
    volatility: Mapping[str, float],
    policy: PolicyRow,
    ratios: Sequence[RatioRow] = (),
) -> tuple[PriceBand, ...]:
    """Fuse every feed that a source, a ratio or ``volatility`` names; ascending by feed.

    Args:
        volatility: σ per sqrt(year) of what each feed prices. A ratio has its own, and a base at least that of what is
            priced through it.
        ratios: the derived feeds; :func:`rank_ratios` accepts them.

    Raises:
        ValueError: ratios that :func:`rank_ratios` refuses.
    """
    ranked = rank_ratios(ratios)
    inflation = dict.fromkeys({s.feed for s in sources} | {f for r in ratios for f in (r.ratio, r.base)}, 0.0)
    inflation |= volatility
    for row in reversed(ranked):
        inflation[row.base] = max(inflation[row.base], inflation.get(row.feed, 0.0))
        inflation[row.ratio] = max(inflation[row.ratio], row.volatility)
    bands = {
        feed: fuse(feed, sources, quotes, now, sigma, policy)
        for feed, sigma in sorted(inflation.items())
        if feed not in {row.feed for row in ranked}
    }
    for row in ranked:
        bands[row.feed] = _product(row.feed, bands[row.ratio], bands[row.base], policy)
    return tuple(bands[feed] for feed in sorted(bands))


def rank_ratios(ratios: Sequence[RatioRow]) -> tuple[RatioRow, ...]:
    """Return derived feeds such that each comes after those it rests on.

    Raises:
        ValueError: a feed is derived twice, rests on itself, or rests on a derived feed that rests on another.
    """
    rows = {row.feed: row for row in sorted(ratios, key=lambda row: row.feed)}
    if len(rows) < len(ratios):
        raise ValueError("ratios: a feed is derived twice")

    def factors(feed: str, above: tuple[str, ...]) -> int:
        if feed in above:
            raise ValueError(f"ratios: {feed} rests on itself")
        row = rows.get(feed)
        return 1 if row is None else factors(row.ratio, (*above, feed)) + factors(row.base, (*above, feed))

    sizes = {feed: factors(feed, ()) for feed in rows}
    for feed, size in sizes.items():
        if size > MOST_FACTORS:
            raise ValueError(f"ratios: {feed} is a product of {size} feeds; at most {MOST_FACTORS}")
    return tuple(sorted(rows.values(), key=lambda row: (sizes[row.feed], row.feed)))


def fuse(
    feed: str, sources: Sequence[SourceRow], quotes: Sequence[Quote], now: int, volatility: float, policy: PolicyRow
) -> PriceBand:
    """Fuse the quotes of one feed.

    Each present source votes ``p ∓ m·c̃`` with ``c̃² = c² + (κσp)²·age``; for initial margin it votes the worse of that
    and the same bound around its EMA, where it gives one (source by source, so that losing the one source with an EMA
    cannot loosen the guard).

    Args:
        feed: the feed's name; sources and quotes of other feeds are ignored.
        sources: every configured source; each keeps its weight whether it is present or not.
        quotes: what the sources said; two quotes of one source make that source absent.
        now: the cut, Unix seconds.
        volatility: σ per sqrt(year), for the inflation by age.
        policy: m, κ, min_sources and max_spread.

    Returns:
        The band in the feed's quote currency per whole unit. Unknown (``low`` 0, ``high`` infinite) when fewer than
        ``min_sources`` are present or half of the weight or more is absent.

    Raises:
        ValueError: ``volatility`` is negative or not finite.
    """
    if not 0 <= volatility < math.inf:
        raise ValueError(f"volatility: {volatility} of {feed} is not a finite number from 0")
    rows = sorted((s for s in sources if s.feed == feed), key=lambda s: s.name)
    votes: list[_Vote] = []
    absent: list[tuple[float, str]] = []
    for row in rows:
        said = [q for q in quotes if q.feed == feed and q.source == row.name and q.kind == row.kind]
        vote = _vote(row, said, now, volatility, policy)
        if isinstance(vote, str):
            absent.append((row.weight, f"{row.name} {vote}"))
        else:
            votes.append(vote)
    gone = [weight for weight, _ in absent]
    mid = 0.0
    if votes:
        prices = [(v.price, v.weight) for v in votes]
        mid = _median(prices) / 2 + _median(prices, upper=True) / 2
    low = _median([(v.low, v.weight) for v in votes] + [(0.0, w) for w in gone])
    high = _median([(v.high, v.weight) for v in votes] + [(math.inf, w) for w in gone], upper=True)
    low_initial = _median([(v.low_initial, v.weight) for v in votes] + [(0.0, w) for w in gone])
    high_initial = _median([(v.high_initial, v.weight) for v in votes] + [(math.inf, w) for w in gone], upper=True)
    known = len(votes) >= policy.min_sources and math.isfinite(high) and math.isfinite(high_initial)
    detail = f"{len(votes)} of {len(rows)} sources"
    if absent:
        detail += "; absent: " + ", ".join(why for _, why in absent)
    if not known:
        low, high, low_initial, high_initial = 0.0, math.inf, 0.0, math.inf
    # The spread is measured on `low`, not on `mid`: stricter, and losing a source can move `mid` up, `low` never.
    opens = known and high - low <= policy.max_spread * low
    if known and not opens:
        detail += "; sources disagree too much to open new risk"
    worst = max((v.high_initial for v in votes), default=0.0)
    return PriceBand(
        feed, low, mid, high, low_initial, high_initial, known, opens, len(votes), len(rows), detail, worst
    )


def _product(feed: str, ratio: PriceBand, base: PriceBand, policy: PolicyRow) -> PriceBand:
    """Multiply two bands end by end: the product of the least bounds, whatever ties the two together.

    It is known if both are and the product is in range, and opens risk if both do and it is no wider than a feed of its
    own may be.
    """
    detail = f"{ratio.feed} ({ratio.detail}) times {base.feed} ({base.detail})"
    present, configured = min(ratio.present, base.present), min(ratio.configured, base.configured)
    mid, worst = min(ratio.mid * base.mid, _LARGEST), min(ratio.worst * base.worst, _LARGEST)
    known = ratio.known and base.known and ratio.high_initial * base.high_initial <= _LARGEST
    if not known:
        return PriceBand(feed, 0.0, mid, math.inf, 0.0, math.inf, False, False, present, configured, detail, worst)
    low, high = ratio.low * base.low, ratio.high * base.high
    initial = ratio.low_initial * base.low_initial, ratio.high_initial * base.high_initial
    opens = ratio.opens_risk and base.opens_risk and high - low <= policy.max_spread * low
    return PriceBand(feed, low, mid, high, *initial, True, opens, present, configured, detail, worst)


def pyth_aggregate(quotes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Aggregate publishers' (price, confidence) by the rule of Pyth.

    Each publisher votes p−c, p and p+c; the price is the median vote, the confidence the greater distance from it to
    the quartiles: Q25 is the first vote from below with more than a quarter of the votes, Q75 the same from above.

    Raises:
        ValueError: no quotes.

    Source: pyth-client ``upd_aggregate`` and its published cases; risk.md §11.
    """
    if not quotes:
        raise ValueError("quotes: at least one publisher is needed")
    votes = sorted(vote for price, conf in quotes for vote in (price - conf, price, price + conf))
    quarter, half = len(votes) // 4, len(votes) // 2
    price = _halve(votes[half] + votes[-1 - half])
    return price, max(price - votes[quarter], votes[-1 - quarter] - price)


def _halve(total: int) -> int:
    """Divide by two toward zero, as integer prices are."""
    return total // 2 if total >= 0 else -(-total // 2)


def _vote(row: SourceRow, said: Sequence[Quote], now: int, volatility: float, policy: PolicyRow) -> _Vote | str:
    """Return the source's vote, or why it has none."""
    if len(said) != 1:
        return "contradicts itself" if said else "silent"
    quote = said[0]
    age = max(0, now - quote.publish_time)
    if quote.publish_time > now + FUTURE_TOLERANCE:
        return f"{quote.publish_time - now} s in the future"
    if age > row.max_age:
        return f"{age} s old"
    price, conf = _scaled(quote.price, quote.expo), _scaled(quote.conf, quote.expo)
    ema, ema_conf = _scaled(quote.ema_price, quote.expo), _scaled(quote.ema_conf, quote.expo)
    if not all(map(math.isfinite, (price, conf, ema, ema_conf))):
        return "out of range"
    if price <= 0 or conf < 0 or ema < 0 or ema_conf < 0:
        return "not positive"
    if (row.floor is not None and price <= row.floor) or (row.cap is not None and price >= row.cap):
        return "at its own limit"
    drift = policy.staleness_multiple * volatility * math.sqrt(age / SECONDS_PER_YEAR)
    low, high = _bounds(price, conf, row, drift, policy)
    low_initial, high_initial = low, high
    if ema > 0:
        ema_low, ema_high = _bounds(ema, ema_conf, row, drift, policy)
        low_initial, high_initial = min(low, ema_low), max(high, ema_high)
    if not math.isfinite(high_initial):
        return "out of range"
    return _Vote(row.weight, price, low, high, low_initial, high_initial)


def _bounds(price: float, conf: float, row: SourceRow, drift: float, policy: PolicyRow) -> tuple[float, float]:
    width = policy.confidence_multiple * math.hypot(max(conf, row.relative_conf * price), drift * price)
    return max(0.0, price - width), price + width


def _scaled(mantissa: int, expo: int) -> float:
    """Return ``mantissa · 10**expo``, infinite where a float cannot hold it."""
    try:
        return float(mantissa) * 10.0**expo
    except OverflowError:
        return math.inf


def _median(votes: Sequence[tuple[float, float]], *, upper: bool = False) -> float:
    """Return the weighted lower (or upper) median of (value, weight): exact, so that order never matters."""
    half = sum((Fraction(weight) for _, weight in votes), Fraction(0)) / 2
    below = Fraction(0)
    for value, weight in sorted(votes):
        below += Fraction(weight)
        if below > half or (below == half and not upper):
            return value
    return math.inf if upper else 0.0
