"""The command line: ``crossmargin --help``.

Every module named here adds its commands to the application when it is imported.
"""

from __future__ import annotations

import os

from aggregator.cli import accounts as _accounts
from aggregator.cli import assets as _assets
from aggregator.cli import audit as _audit
from aggregator.cli import backtest as _backtest
from aggregator.cli import cases as _cases
from aggregator.cli import chains as _chains
from aggregator.cli import disputes as _disputes
from aggregator.cli import epochs as _epochs
from aggregator.cli import haircut as _haircut
from aggregator.cli import keys as _keys
from aggregator.cli import latency as _latency
from aggregator.cli import margin as _margin
from aggregator.cli import policy as _policy
from aggregator.cli import prices as _prices
from aggregator.cli import procyclicality as _procyclicality
from aggregator.cli import recalibrate as _recalibrate
from aggregator.cli import service as _service
from aggregator.cli import stress as _stress
from aggregator.cli import whatif as _whatif
from aggregator.cli.frame import app

__all__ = ["app", "main"]

_COMMANDS = (
    _service,
    _margin,
    _accounts,
    _assets,
    _epochs,
    _chains,
    _disputes,
    _latency,
    _haircut,
    _audit,
    _keys,
    _prices,
    _backtest,
    _procyclicality,
    _policy,
    _recalibrate,
    _cases,
    _stress,
    _whatif,
)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("PYTHONUTF8", "1")
    app()


if __name__ == "__main__":
    main()
