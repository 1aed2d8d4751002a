"""Measure the scenario model on 50,000 accounts with 6 spot holdings, 4 perps and 8 options each.

The reference is the straightforward way: gather every option row's terms, Black-76 by numpy and ``scipy.special.ndtr``
in every scenario of the same grid, and sum by account. QuantLib's own Black formula is timed on a sample.
"""

from __future__ import annotations

import math
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import QuantLib
from scipy.special import ndtr

from aggregator.core.contracts import implied_vols, is_option, years_left
from aggregator.core.margin import scenario
from aggregator.domain.contracts import CALL, PERP, PUT, Instruments, Market, Portfolios
from aggregator.domain.policy import OffsetGroupRow, PolicyRow, SviRow, UnderlyingRow
from aggregator.domain.units import Floats
from tests.strategies import CUT_TIME, DAY, world

ACCOUNTS, PERPS, OPTIONS, SPOTS = 50_000, 4, 8, 6
FEEDS = {"BTC/USD": 60_000.0, "ETH/USD": 2_000.0, "SOL/USD": 150.0}
QUANTLIB_SAMPLE = 20_000
YEAR = 365 * DAY


def risk_policy() -> PolicyRow:
    """Return the policy: three underlyings in one offset group, each with a surface of four slices."""
    surface = tuple(
        SviRow(tenor=days * DAY, a=0.3 * days / 365, b=0.12 * math.sqrt(days / 365), rho=-0.3, m=0.0, sigma=0.2)
        for days in (7, 30, 90, 365)
    )
    row = UnderlyingRow(range=0.18, group="majors", rate=0.05, surface=surface, size_factor=1e-4)
    changes = {"underlyings": dict.fromkeys(FEEDS, row), "groups": {"majors": OffsetGroupRow(offset=0.4)}}
    return PolicyRow.model_validate(world().policy.model_dump() | changes)


def market(policy: PolicyRow) -> Market:
    """Return the three underlyings at certain prices."""
    return Market(
        now=CUT_TIME,
        feeds=tuple(FEEDS),
        spot=np.array(list(FEEDS.values())),
        confidence=np.ones(len(FEEDS)),
        range=np.array([policy.underlyings[feed].range for feed in FEEDS]),
        rows=tuple(policy.underlyings[feed] for feed in FEEDS),
    )


def listed(expiries: int = 10, strikes: int = 20) -> Instruments:
    """Return what an exchange lists: a perp and, per underlying and expiry, calls and puts at ``strikes`` strikes."""
    columns: list[tuple[int, int, float, int]] = []
    for u, spot in enumerate(FEEDS.values()):
        columns.append((PERP, u, 0.0, 0))
        for week in range(1, expiries + 1):
            for level in np.linspace(0.6, 1.6, strikes):
                columns += [(kind, u, round(spot * level, 2), CUT_TIME + 5 * week * DAY) for kind in (CALL, PUT)]
    kind, underlying, strike, expiry = zip(*columns, strict=True)
    return Instruments(np.array(kind), np.array(underlying), np.array(strike), np.array(expiry))


def distinct(options: int, seed: int = 5) -> Instruments:
    """Return a perp per underlying and ``options`` options no two of which agree in expiry and strike."""
    rng = np.random.default_rng(seed)
    of = np.sort(rng.integers(0, len(FEEDS), options))
    prices = np.array(list(FEEDS.values()))
    kind = np.concatenate([np.full(len(FEEDS), PERP), rng.integers(CALL, PUT + 1, options)])
    strike = np.concatenate([np.zeros(len(FEEDS)), prices[of] * rng.uniform(0.6, 1.6, options)])
    expiry = np.concatenate([np.zeros(len(FEEDS)), CUT_TIME + rng.integers(DAY, 90 * DAY, options)])
    return Instruments(kind, np.concatenate([np.arange(len(FEEDS)), of]), strike, expiry.astype(np.int64))


def portfolios(instruments: Instruments, accounts: int = ACCOUNTS, seed: int = 7) -> Portfolios:
    """Return accounts that hold 4 perps and 8 options at random, and 6 spot holdings, of which three hedge."""
    rng = np.random.default_rng(seed)
    options = np.flatnonzero(is_option(instruments))
    perps = np.flatnonzero(~is_option(instruments))
    count = accounts * OPTIONS
    chosen = options[:count] if len(options) >= count else rng.choice(options, count)
    row = np.hstack([rng.choice(perps, (accounts, PERPS)), rng.permutation(chosen).reshape(accounts, OPTIONS)]).ravel()
    price = np.array(list(FEEDS.values()))[instruments.underlying[row]]
    size = rng.normal(0, 1e4, len(row)) / price
    return Portfolios(
        accounts=accounts,
        account=np.repeat(np.arange(accounts), PERPS + OPTIONS),
        instrument=row,
        size=size,
        entry=np.where(is_option(instruments)[row], 0.0, price),
        funding=np.zeros(len(row)),
        spot=np.abs(rng.normal(0, 1e4, (accounts, len(FEEDS)))) / np.array(list(FEEDS.values())),
        instruments=instruments,
    )


def straightforward(given: Portfolios, of: Market, policy: PolicyRow) -> Floats:
    """Price every option row in every scenario and sum by account, USD, shape (A, S)."""
    option = np.flatnonzero(is_option(given.instruments)[given.instrument])
    row, size, account = given.instrument[option], given.size[option], given.account[option]
    u = given.instruments.underlying[row]
    t = years_left(given.instruments, of.now)[row]
    rate = np.array([r.rate for r in of.rows])[u]
    forward, strike = of.spot[u] * np.exp(rate * t), given.instruments.strike[row]
    sign = np.where(given.instruments.kind[row] == CALL, 1.0, -1.0)
    grid = scenario.build_scenarios(of, policy.scenario)
    sigma = implied_vols(given.instruments, of)
    shocked = scenario.shocked_vols(sigma, years_left(given.instruments, of.now), np.zeros(len(sigma)), policy.scenario)
    sums = np.empty((given.accounts, len(grid.shock)))
    root, discount = np.sqrt(t), np.exp(-rate * t)
    for s, shock in enumerate(grid.shock):
        moved = forward * (1 + grid.move[u, s])
        deviation = shocked[shock][row] * root
        d1 = np.log(moved / strike) / deviation + deviation / 2
        d2 = d1 - deviation
        value = sign * (moved * ndtr(sign * d1) - strike * ndtr(sign * d2))
        sums[:, s] = np.bincount(account, size * discount * value, given.accounts)
    return sums


def quantlib_rate(given: Portfolios, of: Market) -> float:
    """Return Black formulas per second of QuantLib, called one by one."""
    option = np.flatnonzero(is_option(given.instruments)[given.instrument])[:QUANTLIB_SAMPLE]
    row = given.instrument[option]
    deviation = (implied_vols(given.instruments, of) * np.sqrt(years_left(given.instruments, of.now)))[row]
    terms = zip(
        np.where(given.instruments.kind[row] == CALL, QuantLib.Option.Call, QuantLib.Option.Put).tolist(),
        given.instruments.strike[row].tolist(),
        of.spot[given.instruments.underlying[row]].tolist(),
        deviation.tolist(),
        strict=True,
    )
    listed_terms = list(terms)
    begin = time.perf_counter()
    for kind, strike, forward, deviation_ in listed_terms:
        QuantLib.blackFormula(kind, strike, forward, deviation_)
    return len(listed_terms) / (time.perf_counter() - begin)


def measure_options() -> list[dict[str, object]]:
    """Time the whole requirement (IM, MM, layers, allocation) of all accounts, instruments valued anew every time."""
    policy = risk_policy()
    of = market(policy)
    rows: list[dict[str, object]] = []
    for name, instruments, target in (
        ("listed options", listed(), 3.0),
        ("distinct options", distinct(ACCOUNTS * OPTIONS), None),
    ):
        given = portfolios(instruments)
        evaluations = ACCOUNTS * OPTIONS * len(scenario.build_scenarios(of, policy.scenario).shock)
        ours = best(lambda given=given: scenario.requirement(given, of, policy), 5)
        plain = best(lambda given=given: straightforward(given, of, policy), 2)
        rows.append(
            measured(f"{name}: option scenarios", evaluations / ours, "evaluations/s", evaluations / plain, target)
        )
        rows.append(measured(f"{name}: peak memory", peak_bytes(given, of, policy) / ACCOUNTS, "B/account", None, None))
        if target:
            rows.append(
                measured(
                    f"{name}: against QuantLib", evaluations / ours, "evaluations/s", quantlib_rate(given, of), None
                )
            )
            rows += measure_what_if(given, of, policy)
    return rows


def measure_what_if(given: Portfolios, of: Market, policy: PolicyRow, times: int = 1_000) -> list[dict[str, object]]:
    """Time the requirement of one account whose first position changed, on the grid of the epoch."""
    grid = scenario.prepare(given.instruments, of, policy)
    spent = []
    for account in range(times):
        mine = slice(account * (PERPS + OPTIONS), (account + 1) * (PERPS + OPTIONS))
        begin = time.perf_counter()
        size = given.size[mine].copy()
        size[0] *= 2
        changed = Portfolios(
            accounts=1,
            account=np.zeros(PERPS + OPTIONS, dtype=np.int64),
            instrument=given.instrument[mine],
            size=size,
            entry=given.entry[mine],
            funding=given.funding[mine],
            spot=given.spot[account : account + 1],
            instruments=given.instruments,
        )
        scenario.requirement_on(grid, changed)
        spent.append(1e3 * (time.perf_counter() - begin))
    cuts = statistics.quantiles(spent, n=100)
    return [
        measured("what-if of one account, p50", cuts[49], "ms/account", None, None),
        measured("what-if of one account, p99", cuts[98], "ms/account", None, None),
    ]


def peak_bytes(given: Portfolios, of: Market, policy: PolicyRow) -> int:
    """Return the most bytes that one requirement holds at a time beyond what it was given, its result included."""
    tracemalloc.start()
    scenario.requirement(given, of, policy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def best(run: Callable[[], object], times: int) -> float:
    """Return the shortest of a few runs, seconds."""
    spent = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begin)
    return min(spent)


def measured(name: str, value: float, unit: str, reference: float | None, target: float | None) -> dict[str, object]:
    """Return a row of the bench's table."""
    ratio = None if reference is None else value / reference
    return {"name": name, "value": value, "unit": unit, "reference": reference, "ratio": ratio, "target": target}


if __name__ == "__main__":
    for line in measure_options():
        print(line)
