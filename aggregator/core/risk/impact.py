"""What selling costs: market impact after Almgren, Thum, Hauptmann and Li, *Direct Estimation of Equity Market Impact*
(2005, eq. 10–12). Pure.

X units are sold over T days, in a market that trades V a day and in which Θ units exist at all; σ is the volatility of
one day. As fractions of the price before the sale, with X/V and Θ/V free of units:

    permanent   I = γ σ (X/V) (Θ/V)^δ        what the price has lost when the sale is over
    temporary   K = η σ (X/(V·T))^β          what each unit sold at a steady rate loses besides
    cost        J = I/2 + K                  what the seller loses on average

The paper's estimates γ = .314, η = .142, δ = 1/4, β = 3/5 are from US equities; for other markets they are parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aggregator.domain.units import Floats

GAMMA, ETA, DELTA, BETA = 0.314, 0.142, 0.25, 0.6
"""The paper's estimates (its section 4.3)."""


class Impact(NamedTuple):
    """Fractions of the price before the sale, each of the broadcast shape; scalars where all inputs are."""

    permanent: Floats  # I
    temporary: Floats  # K
    cost: Floats  # J


def almgren(
    sigma: float | Floats,
    x_over_v: float | Floats,
    t_days: float | Floats,
    shares_over_v: float | Floats,
    gamma: float = GAMMA,
    eta: float = ETA,
    delta: float = DELTA,
    beta: float = BETA,
) -> Impact:
    """Return what a sale does to the price, and what it costs the seller.

    Args:
        sigma: σ, volatility of one day as a fraction of the price (0.0157 = 1.57 %).
        x_over_v: X/V, the size sold as a fraction of what trades in a day.
        t_days: T, over how many days it is sold.
        shares_over_v: Θ/V, how many days' volume exists.

    Returns:
        (I, K, J). Selling nothing has no impact. Results above 1 are the formula's own: it was fitted to X/V up to 0.1;
        who needs a price must bound it.

    Raises:
        ValueError: names the argument: NaN, infinite, negative; or ``t_days`` or ``shares_over_v`` 0.
    """
    values = {"sigma": sigma, "x_over_v": x_over_v, "t_days": t_days, "shares_over_v": shares_over_v}
    values |= {"gamma": gamma, "eta": eta, "delta": delta, "beta": beta}
    for name, value in values.items():
        if not np.all(np.isfinite(value)) or np.any(np.less(value, 0)):
            raise ValueError(f"{name} must be finite and not negative")
    for name in ("t_days", "shares_over_v"):
        if np.any(np.equal(values[name], 0)):
            raise ValueError(f"{name} must be positive")
    size, days = np.asarray(x_over_v, dtype=np.float64), np.asarray(t_days, dtype=np.float64)
    permanent = gamma * sigma * size * np.power(shares_over_v, delta)
    temporary = eta * sigma * np.power(size / days, beta)
    if beta == 0:  # 0⁰ = 1 would charge for selling nothing
        temporary = np.where(size == 0, 0.0, temporary)
    return Impact(permanent, temporary, permanent / 2 + temporary)
