"""Which function requires what: margin models by the names that policies use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np

from aggregator.core.margin import cross, isolated, pmrm1, pmrm2, scenario, span, standard, tiered, unhedged
from aggregator.domain.contracts import CALL, PUT, Bools, Instruments, Ints, Market, Portfolios, Requirement
from aggregator.domain.policy import ModelName, PolicyRow
from aggregator.domain.report import INITIAL, MAINTENANCE

Model = Callable[[Portfolios, Market, PolicyRow], Requirement]
Prepared = Callable[[Portfolios, Bools | None], Requirement]
"""Of portfolios, and of which of their rows may be gone, shape (N,), if any: see :func:`prepare`."""


def _var(portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    # Imported here: its distributions take a second to load, which every process would wait for.
    from aggregator.core.margin import var

    return var.requirement(portfolios, market, policy)


MODELS: Mapping[ModelName, Model] = {
    "health": unhedged.requirement,
    "isolated": isolated.requirement,
    "cross": cross.requirement,
    "tiered": tiered.requirement,
    "scenario": scenario.requirement,
    "pmrm-2": pmrm2.requirement,
    "pmrm-1": pmrm1.requirement,
    "standard": standard.requirement,
    "span": span.requirement,
    "var": _var,
}
"""``health`` knows no contracts, so that it asks for their whole notional."""
PEGGED: frozenset[ModelName] = frozenset({"pmrm-2", "pmrm-1", "standard"})
"""Models that look at ``Market.stable``; to the others all portfolios are alike in what they settle in."""


class UnknownModelError(LookupError):
    """A policy names a margin model that is not there."""


def find_model(name: str) -> Model:
    """Return the function of a margin model.

    Raises:
        UnknownModelError: there is none of this name.
    """
    for known, model in MODELS.items():
        if known == name:
            return model
    planned = " (a policy may name it, but it is not built)" if name in get_args(ModelName) else ""
    raise UnknownModelError(f"models: no margin model {name!r}{planned}; there are {', '.join(MODELS)}")


def prepare(name: str, instruments: Instruments, market: Market, policy: PolicyRow) -> Prepared:
    """Return a margin model for any portfolios of these instruments at one market.

    What does not depend on who holds what is computed here, once, where the model has such a thing.

    Rows that may be gone: R of ``scenario`` is no less than without any of them (:mod:`.margin.scenario`). The others
    are asked four times, with all of them, with none, without those that gain as a price rises (long perps and calls),
    and without those that gain as it falls, and the greatest answer counts. Short options stay, whatever is said.

    Raises:
        UnknownModelError: there is no model of this name.
        ValueError: an argument is out of its range; the message names it.
    """
    model = find_model(name)
    if model is scenario.requirement:
        return partial(scenario.requirement_on, scenario.prepare(instruments, market, policy))
    return partial(_worst_of, lambda portfolios: model(portfolios, market, policy))


def _worst_of(model: Callable[[Portfolios], Requirement], portfolios: Portfolios, loose: Bools | None) -> Requirement:
    found = model(portfolios)
    if loose is None:
        return found
    kind = portfolios.instruments.kind[portfolios.instrument]
    loose = loose & (((kind != CALL) & (kind != PUT)) | (portfolios.size > 0))
    rising = (portfolios.size > 0) & (kind != PUT)
    for gone in (loose, loose & rising, loose & ~rising):
        if gone.any():
            less = replace(portfolios, size=np.where(gone, 0.0, portfolios.size))
            found = greater(found, model(less), portfolios.account)
    return found


def greater(one: Requirement, other: Requirement, account: Ints) -> Requirement:
    """Return the greater requirement of each account and level, with what it consists of.

    Args:
        account: of every row, shape (N,).
    """
    return either(one, other, np.stack([other.initial > one.initial, other.maintenance > one.maintenance]), account)


def either(one: Requirement, other: Requirement, which: Bools, account: Ints) -> Requirement:
    """Return ``other`` where ``which`` says so, shape (level, A), else ``one``; names of what binds are of initial."""
    accounts = len(one.initial)
    wide = (one.rows.shape[1] - len(account)) // max(1, accounts)
    owner = np.concatenate([account, np.repeat(np.arange(accounts), wide)])
    names = zip(one.binding, other.binding, which[INITIAL].tolist(), strict=True)
    return Requirement(
        np.where(which[INITIAL], other.initial, one.initial),
        np.where(which[MAINTENANCE], other.maintenance, one.maintenance),
        np.where(which[:, None], other.layers, one.layers),
        np.where(which[:, owner], other.rows, one.rows),
        tuple(theirs if there else own for own, theirs, there in names),
    )


def requirement(name: str, portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the named model requires of every portfolio, USD.

    Raises:
        UnknownModelError: there is no model of this name.
        ValueError: an argument is out of its range; the message names it.
    """
    return prepare(name, portfolios.instruments, market, policy)(portfolios, None)
