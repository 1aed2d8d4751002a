"""Make the historical stress scenarios from price histories: ``python -m infra.scenarios FOLDER > …/scenarios.toml``.

FOLDER holds gzip CSV files of ``unix_time_utc,open,high,low,close`` as the table below names them. A multiplier is the
lowest close of an event's window over its first close, each feed's own low. The hourly path of one driver is kept
whole, in 1/10000; other feeds follow it (``aggregator.core.risk.stress.multipliers_at``).
"""

from __future__ import annotations

import csv
import gzip
import math
import sys
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HOUR = 3600
FEEDS = {
    "BTC/USD": "btc_usdt_1h_binance",
    "ETH/USD": "eth_usdt_1h_binance",
    "SOL/USD": "sol_usdt_1h_binance",
    "stETH/ETH": "steth_eth_1h_coingecko",
    "WBTC/BTC": "wbtc_btc_1d_yahoo",
    "USDC/USD": "usdc_usd_1h_cdd",
    "DAI/USD": "dai_usd_1d_coingecko",
    "LUNA/USD": "luna_usdt_1h_binance",
    "UST/USD": "ust_usdt_1h_binance",
}
IMPLIED, REALISED = "eth_dvol_1d_deribit", "eth_usdt_1h_binance"
FREE = {
    "BTC/USD": "NIC-project-team/TradingStrategyGA",
    "SOL/USD": "DaruFinance/quant-research-framework-rs",
    "stETH/ETH": "lyc0603/lido",
}
"""Feeds whose files may be passed on in part, and where they are from: repositories under the MIT licence."""


class Event(NamedTuple):
    name: str
    title: str
    since: str
    until: str
    paths: tuple[str, ...]
    proxies: tuple[tuple[str, str], ...] = ()


EVENTS = (
    Event(
        "march-2020",
        "Black Thursday, March 2020",
        "2020-03-07T00",
        "2020-03-13T23",
        ("BTC/USD",),
        (("SOL/USD", "ETH/USD"),),
    ),
    Event("may-2021", "Deleveraging of May 2021", "2021-05-12T00", "2021-05-23T23", ("BTC/USD", "SOL/USD")),
    Event("luna-2022", "Collapse of LUNA and UST, May 2022", "2022-05-05T00", "2022-05-13T03", ("BTC/USD", "SOL/USD")),
    Event("steth-2022", "stETH below ETH, June 2022", "2022-06-07T00", "2022-06-18T23", ("BTC/USD", "stETH/ETH")),
    Event("ftx-2022", "Failure of FTX, November 2022", "2022-11-05T00", "2022-11-10T23", ("BTC/USD", "SOL/USD")),
    Event("usdc-2023", "USDC below its peg, March 2023", "2023-03-10T00", "2023-03-13T23", ("BTC/USD",)),
)


def read_closes(path: Path) -> list[tuple[int, float]]:
    """Return (Unix seconds, close) of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [(int(float(row["unix_time_utc"])), float(row["close"])) for row in rows]


def within(closes: list[tuple[int, float]], since: int, until: int) -> list[tuple[int, float]]:
    """Return the closes of a window, both ends included."""
    return [(time, close) for time, close in closes if since <= time <= until]


def realised(closes: list[tuple[int, float]]) -> float:
    """Return the volatility of hourly closes, per sqrt(year), around 0."""
    moves = [math.log(after / before) for (_, before), (_, after) in pairwise(closes)]
    return math.sqrt(sum(move * move for move in moves) / len(moves) * 24 * 365)


def hourly(closes: list[tuple[int, float]], since: int, until: int) -> list[int]:
    """Return the closes of every hour over the first one, in 1/10000; an hour without a bar repeats the last."""
    known, path = dict(closes), list[int]()
    last = first = closes[0][1]
    for time in range(since, until + 1, HOUR):
        last = known.get(time, last)
        path.append(round(10_000 * last / first))
    return path


def write(folder: Path) -> None:
    """Print the scenarios as TOML."""
    print("# Made by `python -m infra.scenarios`; multipliers are lowest close over first close of the window.")
    for feed, repository in FREE.items():
        print(f"# Path of {feed}: {FEEDS[feed]} of github.com/{repository} (MIT).")
    prices = {feed: read_closes(folder / f"{name}.csv.gz") for feed, name in FEEDS.items()}
    implied, spot = read_closes(folder / f"{IMPLIED}.csv.gz"), read_closes(folder / f"{REALISED}.csv.gz")
    for event in EVENTS:
        since, until = (int(datetime.fromisoformat(f"{t}:00+00:00").timestamp()) for t in (event.since, event.until))
        shocks, sources = dict[str, float](), list[str]()
        for feed, closes in prices.items():
            seen = within(closes, since, until)
            # LUNA's series breaks off while it falls; one that starts late or ends early is no peak and trough.
            if seen and seen[0][0] < since + 86_400:
                shocks[feed] = min(close for _, close in seen) / seen[0][1]
                sources.append(f"{feed} {FEEDS[feed]}")
        for feed, like in event.proxies:
            shocks[feed] = shocks[like]
            sources.append(f"{feed} did not trade: as {like}")
        index = within(implied, since, until)
        if index:
            volatility = max(value for _, value in index) / index[0][1]
            sources.append(f"volatility {IMPLIED}, highest close over first")
        else:
            before = realised(within(spot, since - 30 * 86_400, since))
            volatility = realised(within(spot, since, until)) / before
            sources.append(f"volatility {REALISED}, realised in the window over the 30 days before")
        at = datetime.fromtimestamp(since, UTC).date(), datetime.fromtimestamp(until, UTC).date()
        print(f'\n[[scenarios]]\nname = {quoted(event.name)}\ntitle = {quoted(event.title)}\nkind = "historical"')
        print(f"since = {since}\nuntil = {until}  # {at[0]} to {at[1]}\nsource = {quoted('; '.join(sources))}")
        print(f"volatility = {volatility:.4f}")
        print("[scenarios.prices]")
        for feed, multiplier in shocks.items():
            print(f"{quoted(feed)} = {multiplier:.6g}")
        print("[scenarios.paths]  # hourly, 1/10000 of the first close")
        for feed in event.paths:
            assert feed in FREE, f"the file of {feed} may not be passed on"
            print(f"{quoted(feed)} = {hourly(within(prices[feed], since, until), since, until)}")


def quoted(text: str) -> str:
    """Return a TOML string."""
    return '"' + text.replace('"', "'") + '"'


if __name__ == "__main__":
    write(Path(sys.argv[1]))
