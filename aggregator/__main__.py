"""The command line: ``crossmargin --help``.

``aggregator.cli.group`` says which command is in which module.
"""

from __future__ import annotations

import os

from aggregator.cli.frame import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("PYTHONUTF8", "1")
    app()


if __name__ == "__main__":
    main()
