"""``python -m infra.devnet demo``: the devnet with the service and a played scenario."""

from __future__ import annotations

import argparse
import sys

from infra.devnet.demo import play


def main() -> int:
    """Parse arguments and play; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.devnet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="start three chains and the service, play the scenario, keep running")
    demo.add_argument("--once", action="store_true", help="play once without a terminal, check what is shown, exit")
    demo.add_argument("--port", type=int, default=8080, help="where the service listens (default 8080)")
    arguments = parser.parse_args()
    return play(once=arguments.once, port=None if arguments.once else arguments.port)


if __name__ == "__main__":
    sys.exit(main())
