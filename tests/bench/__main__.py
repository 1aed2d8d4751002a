"""``python -m tests.bench``: run every measurement, print one table, write ``build/bench.json``.

Rows are {name, value, unit, reference, ratio, target}. A target bounds the ratio where there is one, else the value;
whether from above or below follows from the unit: times and costs want little, rates want much.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.cu import measure_cu
from tests.bench.gas import PEERS, measure_post_gas
from tests.bench.reading import measure_reading
from tests.bench.valuation import measure_valuation

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench.json"
MEASUREMENTS: Mapping[str, Callable[[], Sequence[Mapping[str, Any]]]] = {
    "reading balances on Anvil": measure_reading,
    "gas of a posting on Anvil": measure_post_gas,
    "compute units in the SVM": measure_cu,
    "valuation of 100,000 accounts": measure_valuation,
}


def main() -> int:
    """Run what the arguments name by a part of its title, everything without; return 0 if all targets are met."""
    console = Console()
    chosen = {t: run for t, run in MEASUREMENTS.items() if all(word in t for word in sys.argv[1:])}
    if not chosen:
        console.print(f"nothing is called {' '.join(sys.argv[1:])}; there are: {', '.join(MEASUREMENTS)}")
        return 2
    rows: list[dict[str, Any]] = []
    for number, (title, run) in enumerate(chosen.items(), start=1):
        console.print(f"[{number}/{len(chosen)}] {title} …", markup=False)
        begin = time.perf_counter()
        rows += [dict(row) for row in run()]
        console.print(f"      {time.perf_counter() - begin:.0f} s")
    console.print(build_table(rows))
    if measure_post_gas in chosen.values():
        console.print(build_peers())
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")
    console.print(f"written to {OUTPUT.relative_to(Path.cwd())}" if OUTPUT.is_relative_to(Path.cwd()) else str(OUTPUT))
    return 0 if all(is_met(row) is not False for row in rows) else 1


def is_met(row: Mapping[str, Any]) -> bool | None:
    """Say whether a row's target is met; None without one."""
    ...


if __name__ == "__main__":
    sys.exit(main())
