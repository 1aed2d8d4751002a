"""``python -m infra.devnet``: the devnet with the service and a played scenario, and faults for it on demand."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.devnet.control import ControlError, ask

FAULT_HELP = """examples:
  python -m infra.devnet fault list
  python -m infra.devnet fault lying on --chain alpha --provider 1
  python -m infra.devnet fault dead on --provider all
  python -m infra.devnet fault dead off
  python -m infra.devnet fault reorg --chain beta"""


def main() -> int:
    """Parse arguments and play, or turn a fault; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.devnet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="start three chains and the service, play the scenario, keep running")
    demo.add_argument("--once", action="store_true", help="play once without a terminal, check what is shown, exit")
    demo.add_argument("--port", type=int, default=8080, help="where the service listens (default 8080)")
    fault = commands.add_parser(
        "fault",
        help="turn a fault of the running demo on or off",
        epilog=FAULT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fault.add_argument("name", metavar="NAME", help='which fault; "list" shows them all, and which are on')
    fault.add_argument("state", nargs="?", choices=("on", "off"), default="on")
    fault.add_argument("--chain", help="alpha, beta or sol; without it, the fault's own default")
    fault.add_argument("--provider", help='0, 1, 2 or "all"; without it 2, as the service posts through 0')
    fault.add_argument("--json", action="store_true", help="for programs")
    arguments = parser.parse_args()
    if arguments.command == "demo":
        from infra.devnet.demo import (
            play,  # here, so that turning a fault does not wait for chains and services to load
        )

        return play(once=arguments.once, port=None if arguments.once else arguments.port)
    run: Callable[[argparse.Namespace], None] = list_faults if arguments.name == "list" else turn_fault
    try:
        run(arguments)
    except ControlError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(str(error), style="bold red"))
        return 1
    return 0


def list_faults(arguments: argparse.Namespace) -> None:
    """Print every fault, and where it is on."""
    answer = ask(None)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("fault", "what it does", "where", "on"):
        table.add_column(column)
    for row in answer["faults"]:
        where = {"provider": "a provider", "chain": ", ".join(row["chains"]), "world": "everywhere"}[row["kind"]]
        once = "happens once" if row["once"] else ""
        on = Text(", ".join(row["on"]), style="bold yellow")
        table.add_row(row["name"], row["about"], where, on or Text(once, style="dim"))
    Console(highlight=False).print(table)


def turn_fault(arguments: argparse.Namespace) -> None:
    """Turn one fault and print what was done and where it shows."""
    provider = arguments.provider
    if provider is not None and provider.isdigit():
        provider = int(provider)
    wanted = {"name": arguments.name, "on": arguments.state == "on", "chain": arguments.chain, "provider": provider}
    answer = ask(wanted)
    if arguments.json:
        print(json.dumps(answer, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(answer["did"], style="bold"))
    for line in answer["look"]:
        console.print(Text(f"  look at  {line}"))
    console.print(Text(f"  read     {answer['guide']}", style="dim"))


if __name__ == "__main__":
    sys.exit(main())
