"""The standard manager of Derive: rules by option, with the greatest loss of each expiry as the alternative.

Balances in USD, m = qty·(Black-76 undiscounted)::

    MTM  = cash + Σ m + Σ base·S + Σ perp PnL
    IM   = cash + Σ_expiry add + Σ base − Σ perp·|n|·px + Σ perp PnL − doubts − depeg
    add  = max(greatest loss, isolated), by market and expiry: options are given no credit

- Greatest loss: ``min(0, min over {0, K_i} of the payoff) + min(0, Σ call quantity)·F·unpaired``, 1.2 at IM, 1.1 at MM.
- Isolated, of every short (q < 0): call MM = .075·S·q + m; put MM = min(.075·S·q, .075·m) + m; both IM = q·S·max(.15 −
  OTM/S, .10) + m, a put's at most 1.05·MM. OTM = max(0, K−S) of calls, max(0, S−K) of puts.
- Base counts .10 of its value, perps are charged .065 (IM) and .05 (MM) of |n|·px.
- Doubts, IM only, where a confidence is below .55: .4·(1 − confidence)·S·(base, |n|, or the shorts of an expiry); the
  least of spot's and the perp's, or of spot's, forward's and volatilities'.
- Depeg, IM only: 1.2·max(0, .98 − stable)·S·(Σ|n| + shorts).

Balances of at least 0 are healthy. Source: Derive v2-core ``StandardManager`` and its published cases (risk.md §11).
Doubts of perps and shorts and the depeg are the contract's; the published portfolio with perps, doubt and depeg agrees.
The contract divides Σ base·S by the stable price; the published MTM does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from aggregator.core.holdings import Charges, Holding, holdings
from aggregator.core.instruments.arguments import finite, not_negative, positive
from aggregator.core.instruments.option import black76
from aggregator.domain.contracts import Bools, Market, Portfolios, Requirement
from aggregator.domain.policy import PolicyRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import SECONDS_PER_YEAR, Floats


@dataclass(frozen=True, slots=True)
class Parameters:
    """Constants of the model; the defaults are those of the published cases."""

    unpaired_initial: float = 1.2  # of the forward, per call sold without another bought
    unpaired_maintenance: float = 1.1
    perp_initial: float = 0.065  # of the notional
    perp_maintenance: float = 0.05
    short_most: float = 0.15  # of spot, less what it is out of the money
    short_least: float = 0.10
    call_maintenance: float = 0.075  # of spot
    put_maintenance: float = 0.075  # of spot
    put_mark: float = 0.075  # of the mark
    put_offset: float = 1.05
    base: float = 0.10
    confidence_threshold: float = 0.55
    confidence_margin: float = 0.4
    peg_threshold: float = 0.98
    peg_factor: float = 1.2


PUBLISHED = Parameters()


@dataclass(frozen=True, slots=True, eq=False)
class Expiry:
    """The n options of one market and expiry."""

    seconds: float
    forward: float  # USD
    strike: Floats  # (n,)
    is_call: Bools  # (n,)
    quantity: Floats  # (n,) signed
    vol: Floats  # (n,)
    confidence: float = 1.0  # the least of forward's and volatilities'

    def __post_init__(self) -> None:
        for name in ("seconds", "forward", "strike", "vol", "confidence"):
            not_negative(name, getattr(self, name))
        finite("quantity", self.quantity)


@dataclass(frozen=True, slots=True, eq=False)
class Holdings:
    """Everything of one market."""

    spot: float
    confidence: float = 1.0  # of spot
    expiries: tuple[Expiry, ...] = ()
    base: float = 0.0  # units held
    perps: Floats | tuple[float, ...] = ()  # (P,) signed units
    perp_price: float = 0.0
    perp_confidence: float = 1.0
    pnl: float = 0.0  # of the perps, with funding

    def __post_init__(self) -> None:
        positive("spot", self.spot)
        for name in ("confidence", "perp_price", "perp_confidence"):
            not_negative(name, getattr(self, name))
        for name in ("base", "perps", "pnl"):
            finite(name, getattr(self, name))


class Part(NamedTuple):
    """What one market adds to the balance of one level, USD, by what it is for."""

    options: tuple[Floats, ...]  # by expiry, (n,)
    option_doubts: tuple[Floats, ...]  # ≤ 0, with the depeg
    perps: Floats  # (P,) ≤ 0
    perp_doubts: Floats  # (P,) ≤ 0, with the depeg
    base: float
    base_doubts: float  # ≤ 0

    @property
    def total(self) -> float:
        """The parts together."""
        arrays = (*self.options, *self.option_doubts, self.perps, self.perp_doubts)
        return math.fsum((*(float(a.sum()) for a in arrays), self.base, self.base_doubts))


class Margin(NamedTuple):
    """A margin, and how it came about."""

    initial: float  # IM
    maintenance: float  # MM
    value: float  # MTM
    parts: tuple[tuple[Part, Part], ...]  # by market: initial, maintenance
    marks: tuple[tuple[Floats, ...], ...]  # m, by market and expiry


def margin(
    markets: Sequence[Holdings], cash: float = 0.0, stable: float = 1.0, parameters: Parameters = PUBLISHED
) -> Margin:
    """Compute IM, MM and MTM of a portfolio over any number of markets."""
    finite("cash", cash)
    positive("stable", stable)
    marks = tuple(tuple(_marks(expiry) for expiry in market.expiries) for market in markets)
    parts = tuple(
        (_part(market, of, stable, parameters, initial=True), _part(market, of, stable, parameters, initial=False))
        for market, of in zip(markets, marks, strict=True)
    )
    settled = math.fsum((cash, *(market.pnl for market in markets)))
    base = math.fsum(market.base * market.spot for market in markets)
    return Margin(
        math.fsum((settled, *(initial.total for initial, _ in parts))),
        math.fsum((settled, *(maintenance.total for _, maintenance in parts))),
        math.fsum((settled, base, *(float(m.sum()) for of in marks for m in of))),
        parts,
        marks,
    )


def _marks(expiry: Expiry) -> Floats:
    t = expiry.seconds / SECONDS_PER_YEAR
    return expiry.quantity * black76(expiry.forward, expiry.strike, t, expiry.vol, expiry.is_call)


def _part(market: Holdings, marks: tuple[Floats, ...], stable: float, p: Parameters, *, initial: bool) -> Part:
    sizes = np.abs(np.asarray(market.perps, dtype=np.float64))
    base = market.base * market.spot
    of_perps = _doubt(min(market.confidence, market.perp_confidence), p) if initial else 0.0
    of_base = _doubt(market.confidence, p) if initial else 0.0
    depeg = p.peg_factor * max(0.0, p.peg_threshold - stable) if initial else 0.0
    doubts = []
    for expiry in market.expiries:
        doubt = _doubt(min(market.confidence, expiry.confidence), p) if initial else 0.0
        doubts.append(np.minimum(expiry.quantity, 0.0) * market.spot * (doubt + depeg))
    return Part(
        tuple(_add(market, expiry, m, p, initial) for expiry, m in zip(market.expiries, marks, strict=True)),
        tuple(doubts),
        -(p.perp_initial if initial else p.perp_maintenance) * market.perp_price * sizes,
        -(of_perps + depeg) * market.spot * sizes,
        p.base * base,
        -of_base * abs(base),
    )


def _add(market: Holdings, expiry: Expiry, marks: Floats, p: Parameters, initial: bool) -> Floats:
    """Return what an expiry adds to the balance, by option: its greatest loss or the isolated margins, if less."""
    prices = np.concatenate([[0.0], expiry.strike])[:, None]
    intrinsic = np.where(expiry.is_call, prices - expiry.strike, expiry.strike - prices)
    payoffs = expiry.quantity * np.maximum(intrinsic, 0.0)
    place = int(payoffs.sum(axis=1).argmin())
    loss = payoffs[place] if payoffs[place].sum() < 0 else np.zeros(len(marks))
    calls = np.where(expiry.is_call, expiry.quantity, 0.0)
    if calls.sum() < 0:
        loss = loss + calls * expiry.forward * (p.unpaired_initial if initial else p.unpaired_maintenance)
    isolated = _isolated(market.spot, expiry, marks, p, initial)
    return isolated if isolated.sum() > loss.sum() else loss


def _isolated(spot: float, expiry: Expiry, marks: Floats, p: Parameters, initial: bool) -> Floats:
    """Return the isolated margin of every option, shape (n,); 0 of what is bought."""
    q = np.minimum(expiry.quantity, 0.0)
    puts = np.minimum(p.put_maintenance * spot * q, p.put_mark * marks) + marks
    maintenance = np.where(expiry.is_call, p.call_maintenance * spot * q + marks, puts)
    if not initial:
        return np.where(q < 0, maintenance, 0.0)
    out = np.maximum(np.where(expiry.is_call, expiry.strike - spot, spot - expiry.strike), 0.0)
    charged = q * spot * np.maximum(p.short_most - out / spot, p.short_least) + marks
    return np.where(q < 0, np.where(expiry.is_call, charged, np.minimum(charged, p.put_offset * maintenance)), 0.0)


def _doubt(confidence: float, p: Parameters) -> float:
    return p.confidence_margin * (1 - confidence) if confidence < p.confidence_threshold else 0.0


def requirement(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Return value − balance of every account: what the standard manager asks beyond the mark-to-market.

    All constants are the published ones; ``market.range`` has no part in it. Spot that hedges is base: nine tenths of
    it are required. Forwards and volatilities are the policy's.
    """
    charges = Charges(portfolios)
    for held in holdings(portfolios, market):
        holding, places = _holdings(held, market)
        answer = margin([holding], stable=market.stable)
        worth = held.spot * holding.spot
        for level, part in zip((INITIAL, MAINTENANCE), answer.parts[0], strict=True):
            for at, mark, counted, doubt in zip(places, answer.marks[0], part.options, part.option_doubts, strict=True):
                charges.add(level, "scenario", at, mark - counted)
                charges.add(level, "confidence", at, -doubt)
            charges.add(level, "perps", held.perps.place, -part.perps)
            charges.add(level, "confidence", held.perps.place, -part.perp_doubts)
            charges.add(level, "scenario", held.spot_place, np.array([worth - part.base]))
            charges.add(level, "confidence", held.spot_place, np.array([-part.base_doubts]))
        charges.bind(held.account, -answer.maintenance, f"{market.feeds[held.underlying]} by rule")
    return charges.requirement()


def _holdings(held: Holding, market: Market) -> tuple[Holdings, list[Floats]]:
    """Build the model's inputs, and the places of each expiry's options."""
    u, options = held.underlying, held.options
    spot, confidence = float(market.spot[u]), float(market.confidence[u])
    expiries, places = [], []
    for seconds in np.unique(options.seconds):
        of = options.seconds == seconds
        expiries.append(
            Expiry(
                float(seconds),
                float(options.forward[of][0]),
                options.strike[of],
                options.is_call[of],
                options.quantity[of],
                options.vol[of],
                confidence,
            )
        )
        places.append(options.place[of])
    holding = Holdings(spot, confidence, tuple(expiries), held.spot, held.perps.units, spot, confidence)
    return holding, places
