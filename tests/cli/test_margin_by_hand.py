"""Whoever has the printed components and a calculator gets the same margin."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from typing import Any

import pytest

from tests.cli.conftest import Shell

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


def test_the_printed_formulas_give_the_printed_results(shell: Shell) -> None:
    """The text for people, typed into a calculator: right to the cent."""
    printed = [m for line in shell("margin", "ada").stdout.splitlines() if (m := LINE.match(line))]
    assert len(printed) == 2 * 3
    for match in printed:
        product = Decimal(1)
        for part in re.findall(r"\([^)]*\)|[\d.]+", match[2]):
            number = Decimal(re.findall(r"[\d.]+(?:e-?\d+)?", part)[-1])
            product *= 1 + number if "+" in part else 1 - number if "−" in part else number
        assert abs(product - Decimal(match[3].replace(",", ""))) <= Decimal("0.02"), match[0]
