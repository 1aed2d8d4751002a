"""Whoever has the printed components and a calculator gets the same margin."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import pytest

from aggregator.core.explain import explain
from aggregator.core.pipeline import compute_report
from aggregator.domain.report import AccountMargin
from aggregator.domain.snapshot import Position
from aggregator.domain.units import format_usd
from aggregator.store.sql import _MARGIN, _dump
from tests.cli.conftest import EPOCHS, Shell
from tests.strategies import DERIVATIVES, USDC, contract, position, quotes, snapshot, world

USD = Decimal(10**8)


def counted(c: dict[str, Any], level: str) -> Decimal:
    """Compute what one component counts, in USD, from its printed factors alone."""
    position, cut = c["position"], c[level]
    amount, pending = Decimal(position["amount"]), Decimal(position["pending"])
    debt, initial = position["side"] == "debt", level == "initial"
    price = c["price_initial"] if initial else c["price_high"] if debt else c["price_low"]
    value = Decimal(price) / 10 ** c["decimals"]
    if debt:
        value *= amount * (1 + Decimal(cut["market"])) * Decimal(c[f"liability_weight_{level}"])
    else:
        value *= amount - pending
        for name in ("market", "liquidity", "exit", "policy"):
            value *= 1 - Decimal(cut[name])
    return value * Decimal(c[f"share_{level}"])


def total(margin: dict[str, Any], level: str) -> Decimal:
    return sum(
        (counted(c, level) * (-1 if c["position"]["side"] == "debt" else 1) for c in margin["components"]), Decimal(0)
    )


@pytest.mark.parametrize("label", ["ada", "cleo", "watched"])
def test_the_margin_is_the_sum_of_its_components(shell: Shell, label: str) -> None:
    margin = shell.json("margin", label)
    assert margin["components"]
    with localcontext() as context:
        context.prec = 60
        for c in margin["components"]:
            for level in ("initial", "maintenance"):
                printed = Decimal(c[f"counted_{level}"]) / USD
                assert abs(printed - counted(c, level)) < Decimal("1e-6"), (c["symbol"], level)
        free = Decimal(margin["free_collateral"]) / USD
        excess = Decimal(margin["maintenance_excess"]["low"]) / USD
        assert abs(free - total(margin, "initial")) < Decimal("1e-6")
        assert abs(excess - total(margin, "maintenance")) < Decimal("1e-6")
        assert free <= total(margin, "initial"), "rounded toward safety"
        assert excess <= total(margin, "maintenance"), "rounded toward safety"
    low, mid, high = (int(margin["maintenance_excess"][end]) for end in ("low", "mid", "high"))
    assert low < mid < high


def test_a_debt_lowers_and_a_withdrawal_does_not_count(shell: Shell) -> None:
    parts = {(c["symbol"], c["position"]["side"]): c for c in shell.json("margin", "ada")["components"]}
    weth, owed = parts["WETH", "asset"], parts["USDC", "debt"]
    assert int(weth["position"]["pending"]) * 10 == int(weth["position"]["amount"])
    assert 0 < int(weth["counted_initial"]) < int(weth["counted_maintenance"]) < int(weth["value"]) * 0.9
    assert int(owed["counted_initial"]) > int(owed["value"]) * 1.04


LINE = re.compile(r"^ +(IM|MM)  (.+) = (-?[\d,]+\.\d\d)$")


def store_margin(shell: Shell, found: AccountMargin) -> None:
    """Give ada another margin in the newest epoch."""
    ada = shell.json("margin", "ada")["account"]
    with sqlite3.connect(shell.config.parent / "crossmargin.sqlite3") as database:
        changed = database.execute(
            "UPDATE margin SET content = ? WHERE epoch = ? AND account = ?",
            (_dump(_MARGIN, replace(found, account=ada)), EPOCHS[-1], ada),
        )
        assert changed.rowcount == 1


def check(shell: Shell, formulas: int) -> str:
    """Type every printed formula into a calculator: right to the cent. Return what was printed."""
    shown = shell("margin", "ada").stdout
    printed = [m for line in shown.splitlines() if (m := LINE.match(line))]
    assert len(printed) == formulas
    for match in printed:
        product = Decimal(1)
        for part in re.findall(r"\([^)]*\)|[\d.]+", match[2]):
            number = Decimal(re.findall(r"[\d.]+(?:e-?\d+)?", part)[-1])
            product *= 1 + number if "+" in part else 1 - number if "−" in part else number
        assert abs(product - Decimal(match[3].replace(",", ""))) <= Decimal("0.02"), match[0]
    return str(shown)


def test_the_printed_formulas_give_the_printed_results(shell: Shell) -> None:
    check(shell, 2 * 3)


OF = world(**DERIVATIVES)
EMA = 2_300.0
"""USD, of an underlying at 2,000."""


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([contract(1, "perp", -8.0, entry=2_600.0), contract(1, "put", 2.5, strike=2_500.0)], "gain weight"),
        ([contract(1, "perp", -8.0, entry=1_900.0), contract(1, "call", -2.5, strike=2_500.0)], "owed"),
        ([contract(1, "perp", 8.0, entry=1_900.0, control="none")], "0 share"),
    ],
)
def test_what_contracts_come_to_can_be_redone_by_hand(shell: Shell, rows: list[Position], words: str) -> None:
    said = [q._replace(ema_price=int(EMA * 10**-q.expo)) if q.feed == "ETH/USD" else q for q in quotes()]
    found = explain(compute_report(snapshot([position(1, USDC, 20_000.0), *rows]), said, OF), 0, OF)
    store_margin(shell, found)
    shown = check(shell, 2 * 2)
    assert words in shown
    for c in found.components:
        if (part := c.contract) is None:
            continue
        short = c.position.contract.kind == "put" or c.position.side == "debt"
        assert part.bound == (("EMA", "upper") if short else ("lower", "lower"))
        assert f"at {part.price[0]:,.2f} ({part.bound[0]} bound) worth {format_usd(part.worst[0])}" in shown
        assert (part.price[0] >= EMA) == short
        if c.position.contract.kind == "perp" and words != "0 share":
            moved = part.price[0] - c.position.contract.entry / 1e8
            assert part.worst[0] == pytest.approx(1e8 * part.size * moved, abs=10)
    guard = {step.layer: step for step in found.layers}.get("EMA guard")
    assert (guard is not None and guard.initial < 0 == guard.maintenance) == (words != "0 share")
