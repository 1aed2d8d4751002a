"""Which function requires what: margin models by the names that policies use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from aggregator.core.margin import cross, isolated, pmrm1, pmrm2, scenario, span, standard, tiered, unhedged, var
from aggregator.domain.contracts import Market, Portfolios, Requirement
from aggregator.domain.policy import ModelName, PolicyRow

Model = Callable[[Portfolios, Market, PolicyRow], Requirement]
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


def requirement(name: str, portfolios: Portfolios, market: Market, policy: PolicyRow) -> Requirement:
    """Compute what the named model requires of every portfolio, USD.

    Raises:
        UnknownModelError: there is no model of this name.
        ValueError: an argument is out of its range; the message names it.
    """
    return find_model(name)(portfolios, market, policy)
