"""The band: order-free, ordered, monotone in what is lost, and safe against a minority (risk.md §1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.core.fusion import fuse, fuse_feeds
from aggregator.domain.policy import PolicyRow
from aggregator.domain.price import PriceBand, Quote
from aggregator.domain.rows import RatioRow, SourceRow

NOW = 1_760_000_000
POLICY = PolicyRow(version="test", lifetime=60, assets={})


@dataclass(frozen=True)
class Voter:
    weight: float
    price: int
    conf: int
    age: int
    ema: int


voters = st.lists(
    st.builds(
        Voter,
        weight=st.sampled_from([0.1, 0.2, 0.3, 1.0, 2.0]),
        price=st.integers(1, 10**12),
        conf=st.integers(0, 10**10),
        age=st.integers(0, 60),
        ema=st.one_of(st.just(0), st.integers(1, 10**12)),
    ),
    min_size=1,
    max_size=7,
)


def rows(given: list[Voter]) -> list[SourceRow]:
    return [
        SourceRow(name=f"s{i}", feed="X/USD", kind="pyth", id="0x00", weight=voter.weight)
        for i, voter in enumerate(given)
    ]


def quotes(given: list[Voter]) -> list[Quote]:
    return [
        Quote("X/USD", f"s{i}", "pyth", v.price, v.conf, -8, NOW - v.age, v.ema, v.conf) for i, v in enumerate(given)
    ]


def band(given: list[Voter], said: list[Quote] | None = None) -> PriceBand:
    return fuse("X/USD", rows(given), quotes(given) if said is None else said, NOW, 0.8, POLICY)


def no_tighter(after: PriceBand, before: PriceBand) -> None:
    assert after.low <= before.low
    assert after.low_initial <= before.low_initial
    assert after.high >= before.high
    assert after.high_initial >= before.high_initial
    assert after.known <= before.known
    assert after.opens_risk <= before.opens_risk


@given(voters, st.randoms(use_true_random=False))
def test_order_does_not_matter(given: list[Voter], random: object) -> None:
    sources, said = rows(given), quotes(given)
    first = fuse("X/USD", sources, said, NOW, 0.8, POLICY)
    random.shuffle(sources)  # type: ignore[attr-defined]
    random.shuffle(said)  # type: ignore[attr-defined]
    assert fuse("X/USD", sources, said, NOW, 0.8, POLICY) == first


@given(voters, st.integers(-6, 6))
def test_scale_does_not_matter(given: list[Voter], shift: int) -> None:
    scaled = band(given, [q._replace(expo=q.expo + shift) for q in quotes(given)])
    plain = band(given)
    for name in ("low", "mid", "high", "low_initial", "high_initial"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name) * 10.0**shift, rel=1e-12)
    weighted = [Voter(v.weight * 4, v.price, v.conf, v.age, v.ema) for v in given]
    assert band(weighted)[:9] == plain[:9]


@given(voters)
def test_the_band_is_ordered(given: list[Voter]) -> None:
    found = band(given)
    assert 0 <= found.low_initial <= found.low <= found.mid <= found.high <= found.high_initial
    assert found.worst < math.inf


@given(voters, st.data())
def test_losing_a_source_never_tightens_the_band(given: list[Voter], data: st.DataObject) -> None:
    lost = data.draw(st.sets(st.integers(0, len(given) - 1)))
    kept = [q for i, q in enumerate(quotes(given)) if i not in lost]
    no_tighter(band(given, kept), band(given))


@given(voters, st.data())
def test_ageing_a_source_never_tightens_the_band(given: list[Voter], data: st.DataObject) -> None:
    who, by = data.draw(st.integers(0, len(given) - 1)), data.draw(st.integers(0, 90))
    aged = [q._replace(publish_time=q.publish_time - by * (i == who)) for i, q in enumerate(quotes(given))]
    no_tighter(band(given, aged), band(given))


@given(voters, st.data())
def test_a_minority_cannot_move_a_bound_past_the_honest(given: list[Voter], data: st.DataObject) -> None:
    liars = data.draw(st.sets(st.integers(0, len(given) - 1)))
    weight = sum(v.weight for v in given)
    honest = [i for i in range(len(given)) if i not in liars]
    if sum(given[i].weight for i in liars) >= 0.49 * weight or not honest:
        return
    forged = [
        q._replace(price=data.draw(st.integers(1, 10**15)), ema_price=0) if i in liars else q
        for i, q in enumerate(quotes(given))
    ]
    found = band(given, forged)
    if not found.known:
        return
    solo = POLICY.model_copy(update={"min_sources": 1})
    own = [fuse("X/USD", rows(given)[i : i + 1], quotes(given), NOW, 0.8, solo) for i in honest]
    assert min(b.low for b in own) <= found.low <= max(b.low for b in own)
    assert min(b.high for b in own) <= found.high <= max(b.high for b in own)


@given(st.lists(st.integers(1, 10**9), min_size=5, max_size=11), st.data())
def test_many_sources_stand_a_minority_of_any_liars(prices: list[int], data: st.DataObject) -> None:
    """Liars may give any price, confidence, age and average, fall silent, or contradict themselves."""
    given = [Voter(1.0, price, 0, 0, 0) for price in prices]
    liars = data.draw(st.sets(st.integers(0, len(given) - 1), max_size=(len(given) - 1) // 2))
    lie = st.builds(
        lambda price, conf, age, ema, times: (price, conf, age, ema, times),
        st.integers(-(10**40), 10**40),
        st.integers(-1, 10**40),
        st.integers(-100, 100),
        st.integers(0, 10**40),
        st.integers(0, 2),
    )
    said: list[Quote] = []
    for i, quote in enumerate(quotes(given)):
        if i in liars:
            price, conf, age, ema, times = data.draw(lie)
            false = quote._replace(price=price, conf=conf, publish_time=NOW - age, ema_price=ema, ema_conf=conf)
            said += [false] * times
        else:
            said.append(quote)
    found = band(given, said)
    honest = [price * 1e-8 for i, price in enumerate(prices) if i not in liars]
    assert found.known
    assert min(honest) * (1 - 1e-12) <= found.low <= max(honest) * (1 + 1e-12)
    assert min(honest) * (1 - 1e-12) <= found.high <= max(honest) * (1 + 1e-12)
    assert found.low_initial <= max(honest) * (1 + 1e-12)
    assert found.high_initial >= min(honest) * (1 - 1e-12)


FACTORS = ("A/B", "B/USD")


def product(given: tuple[list[Voter], list[Voter]], said: list[Quote], volatility: float = 0.3) -> PriceBand:
    sources = [row.model_copy(update={"feed": feed}) for feed, part in zip(FACTORS, given, strict=True)
               for row in rows(part)]  # fmt: skip
    ratio = RatioRow(feed="A/USD", ratio="A/B", base="B/USD", volatility=volatility)
    return {b.feed: b for b in fuse_feeds(sources, said, NOW, {"A/USD": 0.8}, POLICY, [ratio])}["A/USD"]


def factors(given: tuple[list[Voter], list[Voter]]) -> list[Quote]:
    return [q._replace(feed=feed) for feed, part in zip(FACTORS, given, strict=True) for q in quotes(part)]


@given(st.tuples(voters, voters), st.data())
def test_a_product_is_ordered_and_never_tighter_by_a_loss(
    given: tuple[list[Voter], list[Voter]], data: st.DataObject
) -> None:
    said = factors(given)
    found = product(given, said)
    assert 0 <= found.low_initial <= found.low <= found.mid <= found.high <= found.high_initial
    assert found.worst < math.inf
    lost = data.draw(st.sets(st.integers(0, len(said) - 1)))
    no_tighter(product(given, [q for i, q in enumerate(said) if i not in lost]), found)
    who, by = data.draw(st.integers(0, len(said) - 1)), data.draw(st.integers(0, 90))
    aged = [q._replace(publish_time=q.publish_time - by * (i == who)) for i, q in enumerate(said)]
    no_tighter(product(given, aged), found)
    no_tighter(product(given, said, 0.6), found)
    data.draw(st.randoms(use_true_random=False)).shuffle(said)
    assert product(given, said) == found
