"""``[[ratios]]`` of the configuration: derived feeds price assets, ratios never do, and no feed is both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator.bootstrap import world_of
from aggregator.config import parse_settings
from aggregator.domain.errors import ConfigError
from aggregator.domain.rows import RatioRow
from tests.worlds.documents import make_document

Document = dict[str, Any]
RATIO = {"feed": "stETH/USD", "ratio": "stETH/ETH", "base": "ETH/USD", "volatility": 0.05}
WRAPPED = {"feed": "wstETH/USD", "ratio": "wstETH/stETH", "base": "stETH/USD", "volatility": 0.01}


def document() -> Document:
    made = make_document()
    like = next(source for source in made["sources"] if source["kind"] == "chainlink")
    for i, feed in enumerate(("stETH/ETH", "wstETH/stETH")):
        made["sources"].append(like | {"feed": feed, "id": f"eip155:31337:0x{i + 0xA0:040x}"})
    made["ratios"] = [dict(RATIO), dict(WRAPPED)]
    return made


def test_an_asset_may_name_a_derived_feed() -> None:
    made = document()
    made["assets"][0]["feed"] = "wstETH/USD"
    settings = parse_settings(made)
    assert settings.ratios == (RatioRow.model_validate(RATIO), RatioRow.model_validate(WRAPPED))
    assert world_of(settings).ratios == settings.ratios


def test_ratios_are_optional() -> None:
    assert parse_settings(make_document()).ratios == ()


def change(table: str, index: int, **values: object) -> Callable[[Document], None]:
    return lambda made: made[table][index].update(values)


def more(**values: object) -> Callable[[Document], None]:
    return lambda made: made["ratios"].append(RATIO | values)


REFUSED: tuple[tuple[Callable[[Document], None], str, str], ...] = (
    (change("assets", 0, feed="stETH/ETH"), "assets[0].feed", "'stETH/ETH', which prices WETH, is not in USD"),
    (change("assets", 0, feed="cbETH/USD"), "assets[0].feed", "'cbETH/USD' is not among those configured"),
    (change("ratios", 0, ratio="rETH/ETH", feed="rETH/USD"), "ratios[0].ratio", "'rETH/ETH' is not among"),
    (change("ratios", 0, base="BTC/USD", ratio="stETH/BTC"), "ratios[0].ratio", "'stETH/BTC' is not among"),
    (change("ratios", 0, base="SOL/USD"), "ratios[0]", "the units do not cancel"),
    (change("ratios", 0, volatility=-1), "ratios[0].volatility", "greater than or equal to 0"),
    (change("ratios", 0, volatility=float("nan")), "ratios[0].volatility", "finite"),
    (change("sources", 0, weight=float("inf")), "sources[0].weight", "finite"),
    (more(), "ratios[2].feed", "given twice"),
    (more(feed="ETH/USD", ratio="ETH/stETH", base="stETH/USD"), "ratios[2].feed", "has sources of its own"),
    (change("ratios", 0, ratio="stETH/wstETH", base="wstETH/USD"), "ratios[0].ratio", "'stETH/wstETH' is not among"),
)


@pytest.mark.parametrize(("spoil", "key", "problem"), REFUSED, ids=[f"{key}: {why}" for _, key, why in REFUSED])
def test_what_cannot_price_is_refused_by_its_key(spoil: Callable[[Document], None], key: str, problem: str) -> None:
    made = document()
    spoil(made)
    with pytest.raises(ConfigError) as caught:
        parse_settings(made, "prod.toml")
    assert f"{key} " in str(caught.value) or f"{key}:" in str(caught.value)
    assert problem in str(caught.value)


def test_derived_feeds_do_not_go_round_in_circles() -> None:
    made = document()
    like = made["sources"][-1]
    made["sources"] += [like | {"feed": "stETH/wstETH", "id": "eip155:31337:0x" + "bb" * 20}]
    made["ratios"][0] |= {"ratio": "stETH/wstETH", "base": "wstETH/USD"}
    with pytest.raises(ConfigError, match="rests on itself"):
        parse_settings(made)


def test_the_example_shows_one_that_works() -> None:
    text = (Path(__file__).parents[2] / "infra" / "config" / "example.toml").read_text("utf-8")
    block = text.partition("# [[ratios]]\n")[2].partition("\n\n")[0]
    shown = dict(line.removeprefix("# ").partition("#")[0].split(" = ") for line in block.splitlines())
    row = {key: value.strip().strip('"') for key, value in shown.items()}
    assert RatioRow.model_validate(row | {"volatility": float(row["volatility"])}).feed == "stETH/USD"
