"""Price histories: a file is read as it is or refused by line, and gaps make no returns."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from aggregator.cli import history
from aggregator.cli.history import find_folder, find_series, read_duration, read_history, returns_over
from aggregator.domain.errors import InputError

HEADER = "unix_time_utc,open,high,low,close"
HOUR = 3_600


def written(
    folder: Path, rows: list[tuple[float, ...]] | str, name: str = "x_usd_1h.csv.gz", header: str = HEADER
) -> Path:
    text = rows if isinstance(rows, str) else "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()))
    return path


def bars(closes: dict[int, float], low: float = 0.0) -> list[tuple[float, ...]]:
    """Return bars by hour; they open where they close but for the lows."""
    return [(h * HOUR, c, c, c - low, c) for h, c in closes.items()]


def test_returns_are_taken_from_close_to_close_at_whole_periods(tmp_path: Path) -> None:
    closes = {h: 100.0 + h for h in range(9)}
    cut = returns_over(read_history(written(tmp_path, bars(closes, low=50.0))), 3 * HOUR)
    # bars end on the hours 1 … 9; periods of three hours end at 3, 6 and 9
    assert (cut.times / HOUR).tolist() == [6, 9]
    assert cut.close == pytest.approx([105 / 102 - 1, 108 / 105 - 1])
    assert cut.worst == pytest.approx([53 / 102 - 1, 56 / 105 - 1])
    assert cut.absent == 0


def test_a_missing_bar_inside_a_period_costs_nothing_and_at_its_end_two_returns(tmp_path: Path) -> None:
    closes = {h: 100.0 + h for h in range(15) if h not in (4, 8)}
    read = read_history(written(tmp_path, bars(closes)))
    assert read.missing == 2
    cut = returns_over(read, 3 * HOUR)
    assert (cut.times / HOUR).tolist() == [6, 15]
    assert cut.close == pytest.approx([105 / 102 - 1, 114 / 111 - 1])
    assert cut.absent == 2


def test_at_the_bar_itself_every_gap_costs_what_it_spans(tmp_path: Path) -> None:
    cut = returns_over(read_history(written(tmp_path, bars({h: 1.0 + h for h in (0, 1, 2, 5, 6)}))), HOUR)
    assert cut.close == pytest.approx([1.0, 0.5, 1 / 6])
    assert cut.absent == 3


def test_the_worst_of_a_period_is_no_better_than_its_close(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    closes = {h: float(c) for h, c in enumerate(100 * np.exp(np.cumsum(rng.standard_normal(200) * 0.01)))}
    cut = returns_over(read_history(written(tmp_path, bars(closes, low=0.5))), 4 * HOUR)
    assert (cut.worst <= cut.close).all()
    lows = [min(closes[h] - 0.5 for h in range(end - 4, end)) / closes[end - 5] - 1 for end in range(8, 201, 4)]
    assert cut.worst == pytest.approx(lows)


GOOD = [(0, 1, 2, 0.5, 1.5), (HOUR, 1.5, 2, 1, 2)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("", "begins with ''"),
        ("time,price\n0,1\n", "begins with 'time,price'"),
        (HEADER + "\n0,1,2,0.5\n", ":2: 4 columns"),
        (HEADER + "\n0,1,2,0.5,x\n", ":2: '0,1,2,0.5,x' is not five numbers"),
        ([*GOOD, (HOUR, 1, 1, 1, 1)], ":4: its time does not ascend"),
        ([*GOOD, (2 * HOUR, 1, float("nan"), 1, 1)], ":4: holds NaN"),
        ([*GOOD, (2 * HOUR, 0, 1, 0, 1)], ":4: holds a price that is not positive"),
        ([*GOOD, (2 * HOUR, 1, 1, 1.5, 1)], ":4: its low and high"),
        ([*GOOD, (2 * HOUR, 1, 1, 1, 1), (3.5 * HOUR, 1, 1, 1, 1)], ":5: its time is off the grid"),
        ([(0.5, 1, 1, 1, 1), (HOUR, 1, 1, 1, 1)], ":2: its time is not whole"),
        (GOOD[:1], "has 1 bars"),
    ],
)
def test_a_bad_file_is_refused_by_line(tmp_path: Path, rows: list[tuple[float, ...]] | str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_history(written(tmp_path, rows))
    assert says in str(caught.value)
    assert "x_usd_1h.csv.gz" in str(caught.value)


def test_what_is_no_gzip_or_cut_off_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GOOD)
    whole = path.read_bytes()
    for content, says in ((b"prices", "is not gzip"), (whole[:-12], "ends before"), (b"", "ends before")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            read_history(path)
    path.write_bytes(whole)
    monkeypatch.setattr(history, "TEXT_LIMIT", 20)
    with pytest.raises(InputError, match="unpacks to more"):
        read_history(path)
    monkeypatch.setattr(history, "PACKED_LIMIT", 20)
    with pytest.raises(InputError, match="is larger than"):
        read_history(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_history(tmp_path / "none.csv.gz")


def test_too_many_bars_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "ROW_LIMIT", 5)
    with pytest.raises(InputError, match="more than 5 bars"):
        read_history(written(tmp_path, bars(dict.fromkeys(range(9), 1.0))))


def test_an_asset_finds_its_series_with_the_shortest_bars(tmp_path: Path) -> None:
    for name in ("sol_usdt_1d_a", "sol_usdt_1h_b", "steth_eth_1h_c", "btc_dvol_1d_d", "btc_funding_8h_e"):
        written(tmp_path, GOOD, f"{name}.csv.gz")
    assert find_series(tmp_path, "SOL").name == "sol_usdt_1h_b.csv.gz"
    assert find_series(tmp_path, "sol/usd") == find_series(tmp_path, "SOL")
    assert find_series(tmp_path, "stETH/ETH").name == "steth_eth_1h_c.csv.gz"
    with pytest.raises(InputError, match="there are: sol_usdt_1d_a, sol_usdt_1h_b, steth_eth_1h_c"):
        find_series(tmp_path, "BTC")  # implied volatility and funding are no prices


def test_a_horizon_that_does_not_fit_the_bars_is_refused(tmp_path: Path) -> None:
    read = read_history(written(tmp_path, bars(dict.fromkeys(range(9), 1.0))))
    for horizon in (60, HOUR + 1):
        with pytest.raises(InputError, match="no multiple"):
            returns_over(read, horizon)
    with pytest.raises(InputError, match="no whole period"):
        returns_over(read, 30 * HOUR)


def test_the_slice_is_used_loudly_where_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_folder(None)
    assert found.path == history.SLICE
    assert "slice" in found.note
    assert find_folder(tmp_path).note == ""
    with pytest.raises(InputError, match="no folder"):
        find_folder(tmp_path / "none")


@pytest.mark.parametrize("text", ["", "0h", "-1h", "1", "1w", "h", "1.5h", "99999999s"])
def test_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="for example"):
        read_duration("--horizon", text)
    assert read_duration("--horizon", "15m") == 900
