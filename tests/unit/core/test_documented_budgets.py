"""The numbers of docs/methodology/budgets.md are what the code computes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.core.budgets import allot, next_levels
from aggregator.core.pipeline import compute_report
from aggregator.domain.budgets import NO_LEVELS, Drawn, Grant, Levels, Share
from aggregator.domain.report import MarginReport
from aggregator.domain.snapshot import Position
from tests.strategies import CUT_TIME, EVM, FLAT, SOLANA, USDC, account_id, position, quotes, snapshot, world

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/methodology/budgets.md").read_text("utf-8")
DOLLAR = 10**8
FLAT_ASSETS = {"risky": FLAT, "stable": FLAT, "wrapped": FLAT}


def steps() -> Iterator[list[Any]]:
    """Yield the rows of the worked example: step, F, and pairs of share, used, outstanding, charge, budget."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.match(r"\| \d", line) and len(cells) == 8:
            yield [int(cells[0]), int(cells[2]), *(tuple(map(int, cell.split("/"))) for cell in cells[3:])]


ROWS = list(steps())


def test_the_worked_example_is_there() -> None:
    assert [row[0] for row in ROWS] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("step", "free", "share", "used", "outstanding", "charge", "budget"), ROWS)
def test_worked_example(
    step: int, free: int, share: Any, used: Any, outstanding: Any, charge: Any, budget: Any
) -> None:
    assert tuple(map(max, used, outstanding)) == charge
    columns = (np.array(share)[:, None], np.array(charge)[:, None] * DOLLAR)
    found = allot(np.array([free * DOLLAR]), *columns)
    assert tuple((found[:, 0] // DOLLAR).tolist()) == budget


@pytest.mark.parametrize(("step", "free", "share", "used", "outstanding", "charge", "budget"), ROWS)
def test_worked_example_from_positions(
    step: int, free: int, share: Any, used: Any, outstanding: Any, charge: Any, budget: Any
) -> None:
    places = {EVM: 0, SOLANA: 1}
    rows = [position(1, USDC, float(free)), *(registry(chain, used[d]) for chain, d in places.items())]
    seen = snapshot(rows)
    account = replace(seen.accounts[0], shares=tuple(Share(c, share[d]) for c, d in places.items() if share[d]))
    found = compute_report(replace(seen, accounts=(account,)), quotes(), world(FLAT_ASSETS))
    ids = dict(zip(found.destinations, found.destination_ids, strict=True))
    grants = tuple(
        Grant(account.id, ids[chain], 5, outstanding[d] * DOLLAR, CUT_TIME + 100)
        for chain, d in places.items()
        if outstanding[d]
    )
    found = compute_report(replace(seen, accounts=(account,), grants=grants), quotes(), world(FLAT_ASSETS))
    given = {chain: int(found.budgets[d, 0]) / DOLLAR for d, chain in enumerate(found.destinations)}
    # A dollar counts at its lower bound here, some cents in a hundred less.
    assert [given[EVM], given[SOLANA]] == pytest.approx(budget, abs=free * 1e-3)


def registry(chain: str, dollars: int) -> Position:
    """Return what the registry on ``chain`` says was drawn of account 1."""
    name, amount = f"{chain}/registry:0x00", dollars * DOLLAR
    said = Drawn(posted=0, set_id=1)
    return Position(account_id(1), chain, "registry", name, amount, name, amount, "debt", origin="0x00", drawn=said)


def grow(hours: int, accounts: int, levels: Levels) -> tuple[MarginReport, Levels]:
    """Value accounts with 200 million of a dollar token each, ``hours`` later, by the example's growth caps."""
    policy = tomllib.loads((ROOT / "infra/config/policy.toml").read_text("utf-8"))
    seen = snapshot([position(n, USDC, 200e6) for n in range(1, accounts + 1)])
    cut_time = seen.cut_time + hours * 3_600
    said = [quote._replace(publish_time=quote.publish_time + hours * 3_600) for quote in quotes()]
    capped = world(FLAT_ASSETS, growth=policy["growth"])
    found = compute_report(replace(seen, cut_time=cut_time), said, capped, levels=levels)
    assert found.growth is not None
    names, total = [account.id for account in found.accounts], found.budgets.sum(axis=0)
    return found, next_levels(levels, cut_time, names, total, found.growth, found.book.feeds)


def test_growth_by_the_hour() -> None:
    (line,) = re.findall(r"^\| budget, million USD \| (.*) \|$", PAGE, re.MULTILINE)
    told, levels = [int(cell) for cell in line.split("|")], NO_LEVELS
    for hour, millions in enumerate(told):
        found, levels = grow(hour, 1, levels)
        assert int(found.budgets.sum()) == millions * 10**6 * DOLLAR


def test_growth_of_an_asset_is_divided() -> None:
    (told,) = re.findall(r"each gets (\d+\.\d+) million", PAGE)
    found, _ = grow(0, 12, NO_LEVELS)
    assert [f"{budget / 1e6 / DOLLAR:.2f}" for budget in found.budgets.sum(axis=0).tolist()] == [told] * 12
