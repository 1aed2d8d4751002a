"""What one account holds on one underlying: the inputs of margin models that are not vectorised over accounts.

The models that imitate a venue are made to be compared with it, and are evaluated account by account; a loop in Python
is fine for them. The scenario model, which margins every account of an epoch, has its own tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.core.contracts import carry_factors, implied_vols, is_option, linear_units, verify_portfolios
from aggregator.core.instruments.arguments import finite, not_negative
from aggregator.domain.contracts import CALL, LAYERS, Bools, Ints, Market, Portfolios, Requirement
from aggregator.domain.report import INITIAL, MAINTENANCE
from aggregator.domain.units import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Legs:
    """The n options of a portfolio."""

    expiry: Ints  # (n,) index of ``Expiries``
    strike: Floats  # (n,) USD
    is_call: Bools  # (n,)
    quantity: Floats  # (n,) signed
    vol: Floats  # (n,) per sqrt(year)

    def __post_init__(self) -> None:
        not_negative("strike", self.strike)
        finite("quantity", self.quantity)
        not_negative("vol", self.vol)


class Options(NamedTuple):
    """The options of a holding in n rows."""

    place: Ints  # (n,) place in ``Requirement.rows``
    seconds: Ints  # (n,) to expiry; 0 once expired
    strike: Floats  # (n,) USD
    is_call: Bools  # (n,)
    quantity: Floats  # (n,) signed
    forward: Floats  # (n,) USD, S·exp((r−q)T)
    vol: Floats  # (n,) per sqrt(year), of the policy's surface; 0 once expired


class Perps(NamedTuple):
    """The perps of a holding in n rows, inverse ones as the linear ones whose worth in USD moves alike."""

    place: Ints  # (n,) place in ``Requirement.rows``
    units: Floats  # (n,) signed, ∂(PnL in USD)/∂price


class Holding(NamedTuple):
    """Everything of one account on one underlying."""

    account: int
    underlying: int  # index on the axis of the market's underlyings
    options: Options
    perps: Perps
    spot: float  # units that hedge
    spot_place: int  # of the spot in ``Requirement.rows``


def holdings(portfolios: Portfolios, market: Market) -> Iterator[Holding]:
    """Yield every holding that is not empty, ascending by (account, underlying).

    Raises:
        ValueError: names what no model can count with, e.g. an option that has no mark.
    """
    verify_portfolios(portfolios, market)
    book, table = portfolios, portfolios.instruments
    vols, growth = implied_vols(table, market), carry_factors(table, market)[0]
    forwards = market.spot[table.underlying] * growth
    seconds = np.maximum(table.expiry - market.now, 0)
    optional, units = is_option(table), linear_units(book)
    underlying = table.underlying[book.instrument]
    width = len(market.feeds)
    begins = np.searchsorted(book.account, np.arange(book.accounts + 1))
    for account in range(book.accounts):
        rows = np.arange(begins[account], begins[account + 1])
        for u in np.union1d(underlying[rows], np.flatnonzero(book.spot[account])).astype(int).tolist():
            here = rows[underlying[rows] == u]
            options, perps = here[optional[book.instrument[here]]], here[~optional[book.instrument[here]]]
            of = book.instrument[options]
            yield Holding(
                account,
                u,
                Options(
                    options,
                    seconds[of],
                    table.strike[of],
                    table.kind[of] == CALL,
                    book.size[options],
                    forwards[of],
                    vols[of],
                ),
                Perps(perps, units[perps]),
                float(book.spot[account, u]),
                len(book.account) + account * width + u,
            )


class Charges:
    """Sums what a model charges, place by place, so that rows and layers add up to the requirement by construction."""

    def __init__(self, portfolios: Portfolios) -> None:
        places = len(portfolios.account) + portfolios.spot.size
        self._owner = np.concatenate(
            [portfolios.account, np.repeat(np.arange(portfolios.accounts), portfolios.spot.shape[1])]
        )
        self._layers: Floats = np.zeros((2, len(LAYERS), portfolios.accounts))
        self._rows: Floats = np.zeros((2, places))
        self._binding = [(-np.inf, "")] * portfolios.accounts

    def add(self, level: int, layer: str, places: npt.ArrayLike, amounts: Floats) -> None:
        """Charge ``amounts`` USD to places of ``Requirement.rows``; negative = they offset others' charges."""
        at = np.atleast_1d(np.asarray(places, dtype=np.int64))
        np.add.at(self._rows[level], at, amounts)
        np.add.at(self._layers[level, LAYERS.index(layer)], self._owner[at], amounts)

    def bind(self, account: int, amount: float, name: str) -> None:
        """Name an account's worst scenario; of many underlyings the one that costs most is told."""
        self._binding[account] = max(self._binding[account], (amount, name))

    def requirement(self) -> Requirement:
        """Return the sums: never negative, and initial margin at least maintenance, account by account."""
        total = self._layers.sum(axis=1)
        self._take(total[MAINTENANCE] < 0, MAINTENANCE, None)
        self._take(total[INITIAL] < np.maximum(total[MAINTENANCE], 0), INITIAL, MAINTENANCE)
        total = self._layers.sum(axis=1)
        return Requirement(
            np.maximum(total[INITIAL], total[MAINTENANCE]),
            total[MAINTENANCE],
            self._layers,
            self._rows,
            tuple(name for _, name in self._binding),
        )

    def _take(self, accounts: Bools, level: int, source: int | None) -> None:
        """Replace a level's charges of some accounts by another level's, or by nothing."""
        self._layers[level][:, accounts] = 0 if source is None else self._layers[source][:, accounts]
        mine = accounts[self._owner]
        self._rows[level, mine] = 0 if source is None else self._rows[source, mine]
