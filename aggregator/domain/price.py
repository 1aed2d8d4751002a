"""Prices as claimed by sources and as fused."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Quote(NamedTuple):
    """One source's claim about one feed: ``price * 10**expo`` ± ``conf * 10**expo`` USD at ``publish_time``.

    ``conf`` is one standard deviation in the source's own sense; 0 for sources that give none.
    """

    feed: str  # e.g. ETH/USD
    source: str  # the configured source's name
    kind: Literal["pyth", "chainlink"]
    price: int
    conf: int
    expo: int
    publish_time: int  # Unix seconds
    ema_price: int = 0  # 0 = the source gives none
    ema_conf: int = 0


class PriceBand(NamedTuple):
    """The fused price of one feed in USD per whole unit.

    ``low`` values assets, ``high`` values debts, ``mid`` is for display and equity. ``low_initial`` and
    ``high_initial`` additionally take the worse of spot and EMA. ``high`` is infinite when too few sources are
    present; then ``known`` is False and assets count 0.
    """

    feed: str
    low: float
    mid: float
    high: float
    low_initial: float
    high_initial: float
    known: bool
    opens_risk: bool  # False: no new risk may be opened on this feed
    present: int  # sources used
    configured: int
    detail: str = ""
    worst: float = 0.0  # the greatest upper bound of any present source: finite, values debts where ``high`` is not
