"""Haircuts together: between the greatest and the sum of their parts, and never better for more hazard (risk.md §2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report
from aggregator.domain.report import Component, Haircuts
from aggregator.domain.rows import LatencyLeg
from tests.strategies import DAY, ETH, EVM, SOLANA, asset_policy, chain_row, position, quotes, snapshot, view, world

NOISE = 1e-9
ROUNDING = 2e-8  # USD: what is counted is a multiple of 1e-8


@dataclass(frozen=True)
class Case:
    """One asset of one account, and everything its haircut depends on."""

    amount: float
    volatility: float
    rate: float
    haircut: float
    age: int
    delay: int
    typical: int
    outage: int
    conf: float

    def components(self, *others: tuple[float, int]) -> list[Component]:
        """Return the asset as it counts for this account, and for others with their (amount, delay)."""
        policy = asset_policy(self.volatility, ((self.rate, 0.8),), haircuts=(self.haircut, self.haircut / 2))
        legs = (LatencyLeg(typical=self.typical, outage=self.outage, outage_probability=1e-3),)
        made = world({"risky": policy})
        made = replace(made, chains=(chain_row(EVM, hold=legs, max_age=10_000), chain_row(SOLANA)))
        owners = [(self.amount, self.delay), *others]
        rows = [position(i, ETH, amount, removal_delay=delay) for i, (amount, delay) in enumerate(owners, 1)]
        report = compute_report(snapshot(rows, views=[view(EVM, self.age), view(SOLANA)]), quotes(conf=self.conf), made)
        return [explain(report, i, made).components[0] for i in range(len(owners))]


cases = st.builds(
    Case,
    amount=st.floats(1e-2, 1e6),
    volatility=st.floats(0, 3),
    rate=st.floats(0, 20),
    haircut=st.floats(0, 0.9),
    age=st.integers(0, 5_000),
    delay=st.sampled_from((0, 600, 6_000, DAY)),
    typical=st.integers(0, 2_000),
    outage=st.integers(0, 10_000),
    conf=st.floats(0, 0.02),
)


def levels(found: Component) -> list[tuple[Haircuts, int, float]]:
    return [
        (found.initial, found.counted_initial, found.price_initial),
        (found.maintenance, found.counted_maintenance, found.price_low),
    ]


@given(cases)
def test_a_haircut_is_between_the_greatest_and_the_sum_of_its_parts(case: Case) -> None:
    [found] = case.components()
    for parts, counted, price in levels(found):
        worth = case.amount * price
        counted_share = counted * 1e-8 / worth
        slack = NOISE + ROUNDING / worth
        assert all(0 <= part <= 1 for part in parts)
        assert max(parts) - slack <= 1 - counted_share <= sum(parts) + slack
        assert abs(counted_share - math.prod(1 - part for part in parts)) <= slack
        if parts.exit == 0 and parts.market < 1:
            assert counted_share > 0  # the gate is open: something counts


WORSE = ("volatility", "rate", "haircut", "age", "typical", "outage", "conf")
LIMITS = dict(zip(WORSE, (5.0, 100.0, 1.0, 9_000, 5_000, 90_000, 0.03), strict=True))


@given(cases, st.sampled_from(WORSE), st.data())
def test_no_hazard_more_ever_counts_more(case: Case, which: str, data: st.DataObject) -> None:
    now, limit = getattr(case, which), LIMITS[which]
    more = data.draw(st.integers(now, int(limit)) if isinstance(now, int) else st.floats(now, float(limit)))
    worse: Any = {which: more}
    [before], [after] = case.components(), replace(case, **worse).components()
    for (_, first, _), (_, second, _) in zip(levels(before), levels(after), strict=True):
        assert second <= first * (1 + NOISE) + 2


@given(cases, st.integers(0, 2 * DAY), st.floats(1, 1e3))
def test_a_longer_way_out_and_a_larger_holding_never_count_less(case: Case, later: int, times: float) -> None:
    found, held, larger = case.components((case.amount, case.delay + later), (case.amount * times, case.delay))
    for better in (held, larger):
        for (_, first, _), (_, second, _) in zip(levels(found), levels(better), strict=True):
            assert second >= first * (1 - NOISE) - 2
    for (small, _, _), (large, _, _) in zip(levels(found), levels(larger), strict=True):
        assert large.liquidity >= small.liquidity - NOISE  # though every unit of it counts less
