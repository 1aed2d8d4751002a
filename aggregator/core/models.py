"""Which function requires what: margin models by the names that policies use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import get_args

from aggregator.core.margin import cross, isolated, pmrm1, pmrm2, scenario, span, standard, tiered, unhedged, var
from aggregator.domain.contracts import Instruments, Market, Portfolios, Requirement
from aggregator.domain.policy import ModelName, PolicyRow

Model = Callable[[Portfolios, Market, PolicyRow], Requirement]
Prepared = Callable[[Portfolios], Requirement]
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
    "var": var.requirement,
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

    Raises:
        UnknownModelError: there is no model of this name.
        ValueError: an argument is out of its range; the message names it.
    """
    model = find_model(name)
    if model is scenario.requirement:
        return partial(scenario.requirement_on, scenario.prepare(instruments, market, policy))
    return lambda portfolios: model(portfolios, market, policy)


def requirement(name: str, portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the named model requires of every portfolio, USD.

    Raises:
        UnknownModelError: there is no model of this name.
        ValueError: an argument is out of its range; the message names it.
    """
    return prepare(name, portfolios.instruments, market, policy)(portfolios)
