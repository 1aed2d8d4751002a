"""SPAN: sixteen scenarios, and charges and credits beside them.

By combined commodity (here: an underlying), in USD::

    risk  = max(scan + intra + spot − inter credit, SOM)
    total = risk − NOV

- Scan: the greatest loss over 16 scenarios, ``max(0, −min PnL)``: moves of {0, ±⅓, ±⅔, ±1} scanning ranges with
  volatility up and down each, and both extremes at ``multiple`` ranges, of which ``coverage`` counts.
- Intra-commodity: scanning moves all expiries alike, so spreads between them are charged:
  ``rate·S·min(long, short)`` over the net deltas of the expiries, perps being one of their own.
- Spot: what an expiry in delivery is charged; 0 for contracts that settle in cash.
- Inter-commodity credit: underlyings of one offset group whose net deltas have opposite signs give back
  ``λ·min(scan of longs, scan of shorts)`` on either side, shared pro rata; so never more than was charged.
- SOM, short option minimum: ``rate·S`` per option sold. NOV: net option value.

NOV is part of what the contracts are worth: value − balance is ``risk``. Initial is 1.1 times maintenance margin.

Sources: CME, *SPAN methodology* (scenarios, order of the calculation, 110% for speculators); McMillan, *Options as a
Strategic Investment*, ch. 34 (risk array of one option). Rates are an exchange's own; the defaults here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.core.holdings import Charges, Holding, holdings
from aggregator.core.instruments.arguments import finite, not_negative, positive
from aggregator.core.instruments.option import black76, black76_greeks
from aggregator.domain.contracts import Bools, Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

COUNT = 16


@dataclass(frozen=True, slots=True)
class Parameters:
    """What an exchange sets."""

    multiple: float = 3.0  # of the scanning range, at the extremes
    coverage: float = 0.33  # of their loss
    vol_scan: float = 0.25  # volatility scanning range, of the volatility
    intra: float = 0.01  # of spot, per spread
    spot: float = 0.0  # of spot, per delta in delivery
    delivery_seconds: float = 0.0  # before expiry
    short_option: float = 0.005  # of spot, per option sold
    initial_factor: float = 1.1

    def __post_init__(self) -> None:
        for name in ("multiple", "coverage", "vol_scan", "intra", "spot", "delivery_seconds", "short_option"):
            not_negative(name, getattr(self, name))
        if self.initial_factor < 1:
            raise ValueError("initial_factor: must be at least 1")


DEFAULT = Parameters()


class Scenario(NamedTuple):
    """One of the sixteen."""

    move: float  # of the price, in scanning ranges
    vol: int  # +1 up, −1 down, 0 none
    weight: float  # of its PnL

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.move:+.3g} ranges, vol {('none', 'up', 'down')[self.vol]}"


def scenario_set(multiple: float = DEFAULT.multiple, coverage: float = DEFAULT.coverage) -> tuple[Scenario, ...]:
    """Return the sixteen scenarios in SPAN's order."""
    moves = [0.0] + [sign * part / 3 for part in (1, 2, 3) for sign in (1, -1)]
    grid = [Scenario(move, vol, 1.0) for move in moves for vol in (1, -1)]
    return (*grid, Scenario(multiple, 0, coverage), Scenario(-multiple, 0, coverage))


def scan_risk(pnl: npt.ArrayLike) -> float:
    """Return ``max(0, −min PnL)`` of a portfolio's risk array.

    Args:
        pnl: by scenario, gains positive, extremes already scaled; at least one. One short has the array of one long
            with the signs changed.

    Raises:
        ValueError: it is empty, or holds NaN or an infinity.
    """
    values = finite("pnl", pnl)
    if values.ndim != 1 or not len(values):
        raise ValueError("pnl: must be a row of at least one number")
    return max(0.0, -float(values.min()))


def risk_of(scan: float, intra: float, spot: float, credit: float, short_option_minimum: float) -> float:
    """Return ``max(scan + intra + spot − inter credit, SOM)``.

    Raises:
        ValueError: names the argument that is negative or not finite.
    """
    for name, value in (
        ("scan", scan), ("intra", intra), ("spot", spot), ("credit", credit),
        ("short_option_minimum", short_option_minimum),
    ):  # fmt: skip
        not_negative(name, value)
    return max(math.fsum((scan, intra, spot, -credit)), short_option_minimum)


def total_margin(
    scan: float, intra: float, spot: float, credit: float, short_option_minimum: float, net_option_value: float
) -> float:
    """Return ``max(scan + intra + spot − inter credit, SOM) − NOV``; negative = options bought pay for the risk."""
    finite("net_option_value", net_option_value)
    return risk_of(scan, intra, spot, credit, short_option_minimum) - net_option_value


@dataclass(frozen=True, slots=True, eq=False)
class Position:
    """Everything on one underlying."""

    spot: float
    range: float  # the price scanning range, a fraction of spot
    rate: float  # per year, discounts
    seconds: Floats  # (n,) of the options to expiry
    forward: Floats  # (n,)
    strike: Floats  # (n,)
    is_call: Bools  # (n,)
    quantity: Floats  # (n,) signed
    vol: Floats  # (n,)
    units: Floats  # (P,) signed units of perps and spot, that move with the price

    def __post_init__(self) -> None:
        positive("spot", self.spot)
        positive("range", self.range)
        for name in ("seconds", "forward", "strike", "vol"):
            not_negative(name, getattr(self, name))
        for name in ("rate", "quantity", "units"):
            finite(name, getattr(self, name))


class Charge(NamedTuple):
    """SPAN's parts for one underlying, before the inter-commodity credit."""

    pnl: Floats  # (16, n + P)
    deltas: Floats  # (n + P,) units of the underlying
    intra: Floats  # (n + P,) Euler allocation
    spot: Floats  # (n + P,) likewise
    minimum: Floats  # (n + P,) short option minimum
    net_option_value: float

    @property
    def scan(self) -> float:
        """The scan risk."""
        return scan_risk(self.pnl.sum(axis=1))

    def total(self, credit: float = 0.0) -> float:
        """Return SPAN's total requirement after an inter-commodity credit."""
        parts = self.scan, float(self.intra.sum()), float(self.spot.sum()), credit, float(self.minimum.sum())
        return total_margin(*parts, self.net_option_value)


def charge(position: Position, parameters: Parameters = DEFAULT) -> Charge:
    """Compute the sixteen scenarios of one underlying, and what is charged beside them."""
    p, own = parameters, position
    scenarios = scenario_set(p.multiple, p.coverage)
    moves = np.maximum(1 + own.range * np.array([s.move for s in scenarios]), 0.0)[:, None]
    t = own.seconds / SECONDS_PER_YEAR
    discount = np.exp(-own.rate * t)
    marks = own.quantity * black76(own.forward, own.strike, t, own.vol, own.is_call, discount)
    vols = own.vol * np.maximum(1 + p.vol_scan * np.array([s.vol for s in scenarios])[:, None], 0.0)
    shocked = own.quantity * black76(own.forward * moves, own.strike, t, vols, own.is_call, discount)
    weight = np.array([s.weight for s in scenarios])[:, None]
    pnl = weight * np.concatenate([shocked - marks, own.units * own.spot * (moves - 1)], axis=1)
    greeks = black76_greeks(own.forward, own.strike, t, own.vol, own.is_call, discount)
    deltas = np.concatenate([own.quantity * greeks.delta * own.forward / own.spot, own.units])
    term = np.concatenate([own.seconds, np.full(len(own.units), -1.0)])  # perps have a place of their own
    in_delivery = (term >= 0) & (term < p.delivery_seconds)
    sold = np.concatenate([np.maximum(-own.quantity, 0.0), np.zeros(len(own.units))])
    return Charge(
        pnl,
        deltas,
        p.intra * own.spot * _spreads(deltas, term),
        p.spot * own.spot * _net_by(np.where(in_delivery, deltas, 0.0), term),
        p.short_option * own.spot * sold,
        float(marks.sum()),
    )


def _net_by(deltas: Floats, term: Floats) -> Floats:
    """Return each delta with the sign of its expiry's net: per expiry they add up to |net|."""
    _, group = np.unique(term, return_inverse=True)
    group = np.ravel(group)
    net = np.bincount(group, deltas, minlength=1)
    return deltas * np.sign(net[group]) if len(deltas) else deltas


def _spreads(deltas: Floats, term: Floats) -> Floats:
    """Return min(Σ long, Σ short) over the net deltas of the expiries, allocated to the lesser side's deltas."""
    if not len(deltas):
        return deltas
    _, group = np.unique(term, return_inverse=True)
    group = np.ravel(group)
    net = np.bincount(group, deltas)
    longs, shorts = float(net[net > 0].sum()), float(-net[net < 0].sum())
    side = 1.0 if longs <= shorts else -1.0
    return np.where(side * net[group] > 0, side * deltas, 0.0)


def credits(scans: Sequence[float], deltas: Sequence[float], offset: float) -> list[float]:
    """Return the inter-commodity credit of every underlying of one offset group, at most ``offset`` times its scan.

    Args:
        scans: scan risk by underlying.
        deltas: net delta by underlying; only the sign matters.
        offset: λ in [0, 1].
    """
    not_negative("scans", scans)
    finite("deltas", deltas)
    if not 0 <= offset <= 1:
        raise ValueError("offset: must be in [0, 1]")
    longs = math.fsum(scan for scan, delta in zip(scans, deltas, strict=True) if delta > 0)
    shorts = math.fsum(scan for scan, delta in zip(scans, deltas, strict=True) if delta < 0)
    matched = min(longs, shorts)
    if matched == 0:
        return [0.0] * len(scans)
    side = {1.0: longs, -1.0: shorts, 0.0: math.inf}
    return [offset * matched * scan / side[float(np.sign(d))] for scan, d in zip(scans, deltas, strict=True)]


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Return SPAN's risk of every account; the scanning range is ``market.range``, credits are the groups' offsets.

    Spot that hedges is scanned with the perps. Forwards and volatilities are the policy's.
    """
    charges = Charges(portfolios)
    pending: list[tuple[Holding, Charge]] = []
    for held in holdings(portfolios, market):
        if pending and pending[0][0].account != held.account:
            _settle(charges, pending, market, policy)
            pending = []
        pending.append((held, charge(_position(held, market))))
    _settle(charges, pending, market, policy)
    return charges.requirement()


def _settle(charges: Charges, pending: list[tuple[Holding, Charge]], market: Market, policy: PolicyRow) -> None:
    """Charge one account, all of its underlyings together."""
    given = dict.fromkeys(range(len(pending)), 0.0)
    for group, row in policy.groups.items():
        of = [i for i, (held, _) in enumerate(pending) if market.rows[held.underlying].group == group]
        parts = [pending[i][1] for i in of]
        shares = credits([part.scan for part in parts], [float(part.deltas.sum()) for part in parts], row.offset)
        given.update(zip(of, shares, strict=True))
    for i, (held, part) in enumerate(pending):
        places = np.concatenate([held.options.place, held.perps.place, [held.spot_place]]).astype(np.int64)
        worst = int(part.pnl.sum(axis=1).argmin())
        scan = part.scan
        kept = 1 - given[i] / scan if scan > 0 else 0.0
        charged = -part.pnl[worst] * kept if scan > 0 else np.zeros(len(places))
        asked = float(charged.sum() + part.intra.sum() + part.spot.sum())
        least = float(part.minimum.sum())
        more = part.minimum * (least - asked) / least if least > asked else np.zeros(len(places))
        for level, factor in ((INITIAL, DEFAULT.initial_factor), (MAINTENANCE, 1.0)):
            charges.add(level, "scenario", places, factor * (charged + part.intra + part.spot))
            charges.add(level, "short options", places, factor * more)
        name = scenario_set()[worst].name
        charges.bind(held.account, max(asked, least), f"{market.feeds[held.underlying]} {name}")


def _position(held: Holding, market: Market) -> Position:
    u, options = held.underlying, held.options
    return Position(
        float(market.spot[u]),
        float(market.range[u]),
        market.rows[u].rate,
        options.seconds.astype(np.float64),
        options.forward,
        options.strike,
        options.is_call,
        options.quantity,
        options.vol,
        np.append(held.perps.units, held.spot),
    )
