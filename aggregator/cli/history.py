"""Price histories for studies: gzip CSV files of bars, read, checked and cut into returns.

A file holds ``unix_time_utc,open,high,low,close[,volume]``; a bar carries its open time. Bars may be missing, and then
are missing: nothing is filled in, and the returns that would need them are left out and counted.
"""

from __future__ import annotations

import csv
import hashlib
import io
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.domain.errors import InputError
from aggregator.domain.units import Floats

Ints = npt.NDArray[np.int64]
COLUMNS = ("unix_time_utc", "open", "high", "low", "close")
PACKED_LIMIT, TEXT_LIMIT, ROW_LIMIT = 32 << 20, 256 << 20, 2_000_000
ENDING = ".csv.gz"
NOT_PRICES = ("dvol", "funding")
"""Parts of the names of files that hold something else."""
FULL = Path("../shared/fixtures/prices")
SLICE = Path(__file__).parents[2] / "tests" / "unit" / "core" / "prices"
ASSETS = {
    "BTC/USD": "btc_usdt",
    "ETH/USD": "eth_usdt",
    "SOL/USD": "sol_usdt",
    "STETH/ETH": "steth_eth",
    "USDC/USD": "usdc_usd",
    "DAI/USD": "dai_usd",
    "WBTC/BTC": "wbtc_btc",
}
"""Beginnings of the names of files, by asset; ``BTC`` stands for the first that begins so."""


THIN_UNTIL = {"steth_eth": "2022-01-01"}
"""Days before which a series says little (the README of the price histories)."""


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Bars of one series, ascending in time."""

    name: str
    sha256: str  # of the file, 0x and 64 hex digits
    bar: int  # seconds per bar
    times: Ints  # (n,) Unix seconds, open times
    open: Floats  # (n,)
    high: Floats
    low: Floats
    close: Floats

    @property
    def missing(self) -> int:
        """Bars that are not there between the first and the last."""
        return int((self.times[-1] - self.times[0]) // self.bar) + 1 - len(self.times)

    def since(self, first: int | None, last: int | None = None) -> History:
        """Return the bars that open from ``first`` until before ``last``.

        Raises:
            InputError: fewer than two remain.
        """
        keep = np.ones(len(self.times), dtype=np.bool_)
        if first is not None:
            keep &= self.times >= first
        if last is not None:
            keep &= self.times < last
        if np.count_nonzero(keep) < 2:
            raise InputError("--since", f"{self.name} has fewer than two bars in this time", "choose a longer one")
        prices = [column[keep] for column in (self.open, self.high, self.low, self.close)]
        return History(self.name, self.sha256, self.bar, self.times[keep], *prices)


class Returns(NamedTuple):
    """Returns over periods that do not overlap, ascending; each of shape (n,)."""

    times: Ints  # Unix seconds, ends
    close: Floats  # close/previous close − 1
    worst: Floats  # lowest low of the period/previous close − 1, at most the former
    absent: int  # periods left out because a bar at one of their ends is missing
    gap: Floats  # move over what was left out just before each return, 0 if nothing was


def read_history(path: Path) -> History:
    """Read and check one file.

    Raises:
        InputError: names the file and the line at fault.
    """
    try:
        if path.stat().st_size > PACKED_LIMIT:
            raise InputError(str(path), f"is larger than {PACKED_LIMIT >> 20} MiB", "give a shorter history")
        packed = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "name a readable file") from None
    rows = csv.reader(io.StringIO(_unpacked(path, packed)))
    header = next(rows, [])
    if tuple(header[:5]) != COLUMNS:
        raise InputError(
            str(path), f"begins with {','.join(header)[:60]!r}", f"its columns must be {','.join(COLUMNS)}"
        )
    values: list[tuple[float, ...]] = []
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}:{line}", f"{len(row)} columns, the header has {len(header)}", "mend the line")
        try:
            values.append(tuple(map(float, row[:5])))
        except ValueError:
            raise InputError(f"{path}:{line}", f"{','.join(row)[:60]!r} is not five numbers", "mend it") from None
        if line > ROW_LIMIT:
            raise InputError(str(path), f"has more than {ROW_LIMIT:,} bars", "give a shorter history")
    return _checked(path, packed, np.array(values, dtype=np.float64).reshape(-1, 5))


def _unpacked(path: Path, packed: bytes) -> str:
    try:
        stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        text = stream.decompress(packed, TEXT_LIMIT)
        if stream.unconsumed_tail:
            raise InputError(str(path), f"unpacks to more than {TEXT_LIMIT >> 20} MiB", "give a shorter history")
        if not stream.eof:
            raise InputError(str(path), "ends before its gzip stream does", "copy it again")
        return text.decode("ascii")
    except zlib.error:
        raise InputError(str(path), "is not gzip", f"prices are {ENDING} files") from None
    except UnicodeDecodeError:
        raise InputError(str(path), "is not ASCII text", "its columns must be numbers") from None


def _checked(path: Path, packed: bytes, table: Floats) -> History:
    def refuse(bad: npt.ArrayLike, problem: str) -> None:
        lines = np.flatnonzero(bad)
        if len(lines):
            raise InputError(f"{path}:{int(lines[0]) + 2}", problem, "mend or drop the line")

    if len(table) < 2:
        raise InputError(str(path), f"has {len(table)} bars", "at least two are needed")
    times, opened, high, low, close = table.T
    refuse(~np.isfinite(table).all(axis=1), "holds NaN or infinity")
    refuse((times != np.floor(times)) | (times < 0) | (times > 2**40), "its time is not whole Unix seconds")
    refuse(np.concatenate([[False], np.diff(times) <= 0]), "its time does not ascend")
    refuse((table[:, 1:] <= 0).any(axis=1), "holds a price that is not positive")
    refuse((low > np.minimum(opened, close)) | (high < np.maximum(opened, close)), "its low and high do not hold it")
    steps, counts = np.unique(np.diff(times), return_counts=True)
    bar = int(steps[counts.argmax()])
    refuse((times - times[0]) % bar != 0, f"its time is off the grid of {bar} s that most bars follow")
    digest = "0x" + hashlib.sha256(packed).hexdigest()
    name = path.name.removesuffix(ENDING)
    return History(name, digest, bar, times.astype(np.int64), opened, high, low, close)


def read_series(path: Path, first: int | None, last: int | None, notes: list[str]) -> History:
    """Read one file from ``first`` to before ``last`` (Unix seconds, None = all there is, but for thin beginnings).

    What is left out without being asked for is told in ``notes``.
    """
    history = read_history(path)
    thin = next((day for start, day in THIN_UNTIL.items() if history.name.startswith(start)), "")
    if first is None and thin and (begin := read_date("--since", thin) or 0) > history.times[0]:
        first = begin
        notes.append(
            f"{history.name} is used from {thin} on, before which its market was thin; --since tells otherwise"
        )
    return history.since(first, last)


def returns_over(history: History, horizon: int) -> Returns:
    """Cut a history into returns over ``horizon`` seconds, aligned with UTC, none overlapping another.

    Raises:
        InputError: the horizon is no multiple of the bar, or leaves no return.
    """
    if horizon < history.bar or horizon % history.bar:
        raise InputError(
            "--horizon", f"{horizon} s is no multiple of the {history.bar} s bars of {history.name}", "choose one"
        )
    ends = history.times + history.bar
    offset = int(ends[0]) % history.bar  # bars need not begin on the hour
    at_end = (ends - offset) % horizon == 0
    marks, closes = ends[at_end], history.close[at_end]
    whole = np.diff(marks) == horizon
    period = (ends - offset + horizon - 1) // horizon  # the period each bar belongs to, by its end
    slots, first = np.unique(period, return_index=True)
    lows = np.minimum.reduceat(history.low, first)
    place = np.searchsorted(slots, (marks[1:] - offset) // horizon)
    if not whole.any():
        raise InputError("--horizon", f"{history.name} has no whole period of {horizon} s", "choose a shorter one")
    before = closes[:-1][whole]
    close = closes[1:][whole] / before - 1
    gap = np.zeros(len(close))
    gap[1:] = before[1:] / closes[1:][whole][:-1] - 1
    worst = np.minimum(lows[place][whole] / before - 1, close)
    possible = int((marks[-1] - marks[0]) // horizon)
    return Returns(marks[1:][whole], close, worst, possible - int(np.count_nonzero(whole)), gap)


class Folder(NamedTuple):
    """Where histories are, and what to say about it."""

    path: Path
    note: str  # empty if it is what was asked for


def find_folder(named: Path | None) -> Folder:
    """Return the folder named, else that of the full histories, else the slice that the repository carries.

    Raises:
        InputError: there is none.
    """
    if named is not None:
        if not named.is_dir():
            raise InputError("--prices", f"{named} is no folder", f"name one that holds {ENDING} files")
        return Folder(named, "")
    if FULL.is_dir():
        return Folder(FULL, "")
    if SLICE.is_dir():
        return Folder(SLICE, f"only the small slice of {SLICE.name}/ for tests is here; name full ones with --prices")
    raise InputError("--prices", "there are no price histories here", f"name a folder of {ENDING} files")


def list_series(folder: Path) -> list[str]:
    """Return the names of all price series of a folder."""
    names = sorted(path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}"))
    return [name for name in names if not any(part in name for part in NOT_PRICES)]


def find_series(folder: Path, asset: str) -> Path:
    """Return the file of an asset, the one with the shortest bars: ``BTC``, ``ETH/USD``, ``stETH/ETH``.

    Raises:
        InputError: there is none.
    """
    return find_all_series(folder, asset)[0]


def find_all_series(folder: Path, asset: str) -> list[Path]:
    """Return the files of an asset, at least one, those with the shortest bars first.

    Raises:
        InputError: there is none.
    """
    wanted = asset.upper()
    prefix = next((p for name, p in ASSETS.items() if wanted in (name, name.partition("/")[0])), wanted.lower())
    names = [name for name in list_series(folder) if name == prefix or name.startswith(prefix.replace("/", "_") + "_")]
    if not names:
        known = ", ".join(list_series(folder)) or "none"
        raise InputError("--asset", f"no history of {asset!r} in {folder}", f"there are: {known}")
    return [folder / (name + ENDING) for name in sorted(names, key=lambda name: ("_1h" not in name, name))]


def read_duration(option: str, text: str) -> int:
    """Return the seconds of ``900s``, ``15m``, ``1h`` or ``7d``.

    Raises:
        InputError: it is none of these.
    """
    units = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.isdigit() or len(number) > 7 or not int(number):
        raise InputError(option, f"{text!r} is no duration", "for example 900s, 15m, 1h or 7d")
    return int(number) * units[unit]


def read_date(option: str, text: str) -> int | None:
    """Return the Unix seconds at which a day begins in UTC; None for no text.

    Raises:
        InputError: it is no day.
    """
    if not text:
        return None
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise InputError(option, f"{text!r} is no day", "for example 2022-11-01") from None


def name_duration(seconds: int) -> str:
    """Return seconds as people write them."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % size == 0 and seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
