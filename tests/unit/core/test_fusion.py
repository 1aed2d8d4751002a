"""The price rule: published cases of Pyth, and each way in which a source falls silent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from aggregator.core.fusion import fuse, fuse_feeds, pyth_aggregate
from aggregator.domain.policy import PolicyRow
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.rows import RatioRow, SourceRow

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


@pytest.mark.parametrize("volatility", [-0.1, math.nan, math.inf])
def test_a_volatility_without_meaning_is_refused(volatility: float) -> None:
    with pytest.raises(ValueError, match="volatility"):
        band([quote(name, 100) for name in "abc"], volatility=volatility)


def test_a_price_of_any_size_is_a_price() -> None:
    huge = band([quote(name, 1e30) for name in "abc"])
    assert huge.known
    assert huge.mid == pytest.approx(1e30)
    tiny = band([quote(name, 100, expo=-300) for name in "abc"])
    assert tiny.known
    assert 0 < tiny.mid < 1e-280


def test_seven_sources_of_which_three_lie() -> None:
    rows = [source(name) for name in "abcdefg"]
    honest = [quote(name, 100 + i / 10) for i, name in enumerate("abcd")]
    for lie in (1e-6, 1e6):
        found = band([*honest, *(quote(name, lie) for name in "efg")], rows)
        assert 100 <= found.low <= found.high <= 100.3


@pytest.mark.parametrize("field", ["weight", "floor", "cap", "relative_conf"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_source_has_finite_numbers(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        source("a", **{field: value})


# --- ratios ----------------------------------------------------------------------------------------------------------

STETH = RatioRow(feed="stETH/USD", ratio="stETH/ETH", base="ETH/USD", volatility=0.1)
FEEDS = {"stETH/ETH": 0.999, "ETH/USD": 2_000.0, "wstETH/stETH": 1.2}
WSTETH = RatioRow(feed="wstETH/USD", ratio="wstETH/stETH", base="stETH/USD", volatility=0.01)


def sourced(*feeds: str) -> list[SourceRow]:
    return [source(name, feed=feed) for feed in feeds for name in "abc"]


def said(*feeds: str, age: int = 0, conf: float = 1e-3) -> list[Quote]:
    return [
        quote(name, FEEDS[feed], FEEDS[feed] * conf, feed=feed, publish_time=NOW - age)
        for feed in feeds
        for name in "abc"
    ]


def bands(
    sources: list[SourceRow], quotes: list[Quote], *ratios: RatioRow, **volatility: float
) -> dict[str, PriceBand]:
    given = {name.replace("_", "/"): sigma for name, sigma in volatility.items()}
    return {b.feed: b for b in fuse_feeds(sources, quotes, NOW, given, POLICY, ratios)}


def test_a_ratio_times_its_base_is_a_price() -> None:
    found = bands(sourced("stETH/ETH", "ETH/USD"), said("stETH/ETH", "ETH/USD"), STETH)
    ratio, base, product = (found[feed] for feed in ("stETH/ETH", "ETH/USD", "stETH/USD"))
    for end in ("low", "mid", "high", "low_initial", "high_initial"):
        assert getattr(product, end) == getattr(ratio, end) * getattr(base, end)
    assert product.mid == pytest.approx(1_998)
    assert (product.known, product.opens_risk) == (True, True)
    assert product.low < 1_998 * (1 - 2 * 2.12e-3) * 1.0001  # both confidences, added: nothing says they offset
    assert list(found) == ["ETH/USD", "stETH/ETH", "stETH/USD"]


def test_a_ratio_of_a_ratio() -> None:
    feeds = ("stETH/ETH", "ETH/USD", "wstETH/stETH")
    found = bands(sourced(*feeds), said(*feeds), WSTETH, STETH)
    assert found["wstETH/USD"].mid == pytest.approx(0.999 * 2_000 * 1.2)
    assert "stETH/ETH" in found["wstETH/USD"].detail


@pytest.mark.parametrize("lost", ["stETH/ETH", "ETH/USD"])
def test_a_product_is_unknown_if_a_factor_is(lost: str) -> None:
    feeds = ("stETH/ETH", "ETH/USD")
    quotes = [q for q in said(*feeds) if q.feed != lost or q.source == "a"]
    product = bands(sourced(*feeds), quotes, STETH)["stETH/USD"]
    assert (product.known, product.opens_risk, product.low, product.high) == (False, False, 0.0, math.inf)
    assert product.worst >= product.mid > 1_990  # what debts are valued at is not lost
    assert lost in product.detail
    silent = bands(sourced(*feeds), [q for q in said(*feeds) if q.feed != lost], STETH)["stETH/USD"]
    assert (silent.known, silent.low, silent.high, silent.worst) == (False, 0.0, math.inf, 0.0)


def test_a_product_too_wide_opens_no_risk_though_its_factors_do() -> None:
    feeds = ("stETH/ETH", "ETH/USD")
    found = bands(sourced(*feeds), said(*feeds, conf=0.03), STETH)
    assert [found[feed].opens_risk for feed in (*feeds, "stETH/USD")] == [True, True, False]
    assert found["stETH/USD"].known


def test_a_factor_ages_by_its_own_volatility() -> None:
    feeds = ("stETH/ETH", "ETH/USD")
    quotes = said(*feeds, age=50, conf=0)
    found = bands(sourced(*feeds), quotes, STETH, stETH_USD=0.9)
    root = math.sqrt(50 / (365 * 86_400))
    assert found["stETH/ETH"].low == pytest.approx(0.999 * (1 - 2.12 * 0.1 * root), rel=1e-12)
    # what is priced through it moves with it, even if nothing is priced in it
    assert found["ETH/USD"].low == pytest.approx(2_000 * (1 - 2.12 * 0.9 * root), rel=1e-12)


def test_a_product_beyond_all_numbers_is_unknown() -> None:
    feeds = ("stETH/ETH", "ETH/USD")
    quotes = [q._replace(expo=190) for q in said(*feeds)]
    product = bands(sourced(*feeds), quotes, STETH)["stETH/USD"]
    assert (product.known, product.low) == (False, 0.0)
    assert math.isfinite(product.worst)
    assert math.isfinite(product.mid)


@pytest.mark.parametrize(
    ("ratios", "problem"),
    [
        ([("A/USD", "A/B", "B/USD"), ("B/USD", "B/A", "A/USD")], "rests on itself"),
        ([("A/USD", "A/B", "B/USD"), ("B/USD", "B/C", "C/USD"), ("C/USD", "C/D", "D/USD")], "product of 4 feeds"),
        ([("A/USD", "A/B", "B/USD"), ("A/USD", "A/C", "C/USD")], "derived twice"),
    ],
)
def test_derived_feeds_rest_on_sources(ratios: list[tuple[str, str, str]], problem: str) -> None:
    rows = [RatioRow(feed=feed, ratio=ratio, base=base, volatility=0.1) for feed, ratio, base in ratios]
    with pytest.raises(ValueError, match=problem):
        fuse_feeds([], [], NOW, {}, POLICY, rows)


@pytest.mark.parametrize(
    ("feed", "ratio", "base"),
    [("stETH/USD", "ETH/stETH", "ETH/USD"), ("ETH/USD", "stETH/ETH", "ETH/USD"), ("stETH", "stETH/ETH", "ETH/USD")],
)
def test_units_must_cancel(feed: str, ratio: str, base: str) -> None:
    with pytest.raises(ValueError, match=r"do not cancel|BASE/QUOTE"):
        RatioRow(feed=feed, ratio=ratio, base=base, volatility=0.1)
