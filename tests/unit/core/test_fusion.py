"""The price rule: published cases of Pyth, and each way in which a source falls silent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from aggregator.core.fusion import fuse, pyth_aggregate
from aggregator.domain.policy import PolicyRow
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.rows import SourceRow

NOW = 1_760_000_000
POLICY = PolicyRow(version="test", lifetime=60, assets={})


def source(name: str, **changes: object) -> SourceRow:
    return SourceRow.model_validate({"name": name, "feed": "ETH/USD", "kind": "pyth", "id": "0x00"} | changes)


def quote(name: str, price: float, conf: float = 0.0, **changes: object) -> Quote:
    row = Quote("ETH/USD", name, "pyth", round(price * 1e8), round(conf * 1e8), -8, NOW)
    return row._replace(**changes)  # type: ignore[arg-type]


def band(
    quotes: Sequence[Quote],
    sources: Sequence[SourceRow] | None = None,
    volatility: float = 0.0,
    policy: PolicyRow = POLICY,
) -> PriceBand:
    rows = [source(name) for name in "abc"] if sources is None else sources
    return fuse("ETH/USD", rows, quotes, NOW, volatility, policy)


@pytest.mark.parametrize(
    ("publishers", "expected"),
    [
        ([(100, 10), (200, 20), (300, 30), (400, 40)], (245, 85)),
        ([(100, 10), (200, 20), (300, 30)], (200, 90)),
    ],
)
def test_aggregates_publishers_as_pyth_does(publishers: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    # pyth-network/pyth-client, program/rust/src/tests/test_upd_aggregate.rs @25dd347e
    assert pyth_aggregate(publishers) == expected


def test_bounds_are_medians_of_bounds() -> None:
    found = band([quote("a", 100, 1), quote("b", 101, 1), quote("c", 105, 2)])
    assert found.low == pytest.approx(101 - 2.12)
    assert found.mid == 101
    assert found.high == pytest.approx(101 + 2.12)
    assert found.known
    assert found.opens_risk


def test_an_age_widens_the_band_by_volatility() -> None:
    fresh, old = quote("a", 100, 1), quote("a", 100, 1, publish_time=NOW - 50)
    rows = [source("a")]
    policy = POLICY.model_copy(update={"min_sources": 1})
    sigma = 0.8
    drift = sigma * 100 * math.sqrt(50 / (365 * 86_400))
    assert band([fresh], rows, sigma, policy).low == pytest.approx(100 - 2.12)
    assert band([old], rows, sigma, policy).low == pytest.approx(100 - 2.12 * math.hypot(1, drift))


@pytest.mark.parametrize(
    "absent",
    [
        pytest.param([], id="silent"),
        pytest.param([quote("c", 100, publish_time=NOW - 61)], id="old"),
        pytest.param([quote("c", 100, publish_time=NOW + 6)], id="future"),
        pytest.param([quote("c", 0)], id="zero"),
        pytest.param([quote("c", -5)], id="negative"),
        pytest.param([quote("c", 100, conf=-1)], id="negative confidence"),
        pytest.param([quote("c", 1.0)], id="at its floor"),
        pytest.param([quote("c", 5000)], id="at its cap"),
        pytest.param([quote("c", 100), quote("c", 101)], id="two answers"),
        pytest.param([quote("c", 100), quote("c", 100)], id="the same answer twice"),
        pytest.param([quote("c", 100, expo=400)], id="overflow"),
        pytest.param([quote("c", 100, kind="chainlink")], id="another kind"),
    ],
)
def test_an_absent_source_keeps_its_weight(absent: list[Quote]) -> None:
    rows = [source("a"), source("b"), source("c", floor=1.0, cap=5000)]
    found = band([quote("a", 100), quote("b", 102), *absent], rows)
    assert found.present == 2
    assert found.low == 100  # the median of (0, 100, 102), not of (100, 102)
    assert found.high == 102
    assert found.mid == 101
    assert "absent: c" in found.detail


def test_a_slightly_future_quote_is_the_first_one_after_the_cut() -> None:
    assert band([quote(name, 100, publish_time=NOW + 5) for name in "abc"]).present == 3


def test_half_of_the_weight_absent_is_unknown() -> None:
    rows = [source("a"), source("b"), source("c", weight=2.0)]
    found = band([quote("a", 100), quote("b", 102)], rows)
    assert not found.known
    assert (found.low, found.high, found.opens_risk) == (0.0, math.inf, False)
    assert found.mid == 101
    assert found.worst == 102


def test_too_few_sources_are_unknown_whatever_their_weight() -> None:
    found = band([quote("a", 100)], [source("a", weight=5.0), source("b")])
    assert not found.known
    assert (found.low, found.high) == (0.0, math.inf)


def test_no_source_at_all_is_unknown() -> None:
    found = band([], [])
    assert (found.known, found.low, found.mid, found.high, found.worst) == (False, 0.0, 0.0, math.inf, 0.0)


def test_a_wide_spread_opens_no_risk() -> None:
    found = band([quote("a", 100, 5), quote("b", 100, 5), quote("c", 100, 5)])
    assert found.known
    assert not found.opens_risk


def test_initial_margin_takes_the_worse_of_spot_and_ema() -> None:
    pumped = band([quote(name, 120, ema_price=round(100e8)) for name in "abc"])
    assert (pumped.low, pumped.low_initial, pumped.high_initial) == (120, 100, 120)
    dumped = band([quote(name, 80, ema_price=round(100e8)) for name in "abc"])
    assert (dumped.low_initial, dumped.high, dumped.high_initial) == (80, 80, 100)


def test_a_source_without_confidence_gets_the_assumed_one() -> None:
    rows = [source(name, relative_conf=0.01) for name in "abc"]
    assert band([quote(name, 100) for name in "abc"], rows).low == pytest.approx(100 - 2.12)
