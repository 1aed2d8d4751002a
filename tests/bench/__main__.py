"""``python -m tests.bench``: run every measurement, print one table, write ``build/bench.json``.

Rows are {name, value, unit, reference, ratio, target}. What a target bounds follows from the unit, see ``BOUNDS``.
"""

from __future__ import annotations

import json
import operator
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aggregator.bootstrap import tune_collector
from tests.bench.certificate import measure_certificates
from tests.bench.cu import measure_cu
from tests.bench.epoch import measure_epoch
from tests.bench.freshness import measure_freshness
from tests.bench.gas import PEERS, measure_post_gas
from tests.bench.memory import measure_memory
from tests.bench.merkle import measure_merkle
from tests.bench.options import measure_options
from tests.bench.quorum import measure_quorum
from tests.bench.reading import measure_reading
from tests.bench.recovery import measure_recovery
from tests.bench.report import measure_reports
from tests.bench.valuation import measure_valuation
from tests.bench.whatif import measure_whatif

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench.json"
BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool], str]] = {
    "gas": ("ratio", operator.le, "ratio ≤ {:g}"),
    "CU": ("value", operator.le, "≤ {:,g}"),
    "ms": ("ratio", operator.ge, "ratio ≥ {:g}"),
    "accounts/s": ("ratio", operator.ge, "ratio ≥ {:g}"),
    "balances/s": ("ratio", operator.ge, "ratio ≥ {:g}"),
    "evaluations/s": ("ratio", operator.ge, "ratio ≥ {:g}"),
    "exponent": ("value", operator.le, "≤ {:g}"),
    "s": ("ratio", operator.le, "ratio ≤ {:g}"),
    "ms/epoch": ("ratio", operator.le, "ratio ≤ {:g}"),
}
MEASUREMENTS: Mapping[str, Callable[[], Sequence[Mapping[str, Any]]]] = {
    "reading balances on Anvil": measure_reading,
    "reading balances through a quorum": measure_quorum,
    "an epoch in which few of 100,000 accounts changed": measure_epoch,
    "mined block to reconciled snapshot": measure_freshness,
    "memory of 100,000 positions": measure_memory,
    "recovery after faults of providers": measure_recovery,
    "gas of a posting on Anvil": measure_post_gas,
    "compute units in the SVM": measure_cu,
    "certificates of four attestor processes": measure_certificates,
    "Merkle trees of 1,000,000 leaves": measure_merkle,
    "valuation of 1,000,000 accounts": measure_valuation,
    "perps and options of 50,000 accounts": measure_options,
    "a report of 5,000 accounts with contracts": measure_reports,
    "what-if questions about one account of many": measure_whatif,
}


def main() -> int:
    """Run the measurements whose titles hold every argument, all without arguments; return 2 if there is none."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen = {title: run for title, run in MEASUREMENTS.items() if all(word in title for word in sys.argv[1:])}
    if not chosen:
        console.print(f"no measurement is called {' '.join(sys.argv[1:])}; there are: {', '.join(MEASUREMENTS)}")
        return 2
    tune_collector()  # as the service does; the references run under it too
    rows: list[dict[str, Any]] = []
    for number, (title, run) in enumerate(chosen.items(), start=1):
        console.print(f"({number}/{len(chosen)}) {title} …")
        begin = time.perf_counter()
        rows += [dict(row) for row in run()]
        console.print(f"      took {time.perf_counter() - begin:.0f} s")
    console.print(build_table(rows))
    if measure_post_gas in chosen.values():
        console.print(build_peers())
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=1) + "\n")
    console.print(f"written to {OUTPUT.parent.name}/{OUTPUT.name}")
    return 0


def build_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows as a table; a missed target is red."""
    table = Table(title="crossmargin, measured")
    for heading in ("measurement", "value", "reference", "ratio", "target", ""):
        table.add_column(heading, justify="left" if heading == "measurement" else "right")
    for row in rows:
        met, target = _judge(row)
        style = "red" if met == "missed" else None
        table.add_row(
            row["name"],
            f"{row['value']:,.6g} {row['unit']}" if row["value"] < 10**5 else f"{row['value']:,.0f} {row['unit']}",
            "" if row["reference"] is None else f"{row['reference']:,.0f}",
            "" if row["ratio"] is None else f"{row['ratio']:.3f}",
            target,
            met,
            style=style,
        )
    return table


def _judge(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return "met", "missed" or "" and the target in words."""
    if row["target"] is None:
        return "", ""
    field, holds, words = BOUNDS[row["unit"]]
    return "met" if holds(row[field], row["target"]) else "missed", words.format(row["target"])


def build_peers() -> Table:
    """Return what others publish for one attested update, gas by number of signatures."""
    counts = sorted({k for figures in PEERS.values() for k in figures})
    table = Table("gas of peers, by signatures", *map(str, counts))
    for name, figures in PEERS.items():
        table.add_row(name, *(f"{figures[k]:,}" if k in figures else "" for k in counts))
    return table


if __name__ == "__main__":
    sys.exit(main())
