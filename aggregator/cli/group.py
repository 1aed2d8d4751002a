"""Which command is in which module: one that is not called is not imported, so that none waits for another's tools."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter


class _Place(NamedTuple):
    """Where a command is, and what ``crossmargin --help`` says of it."""

    module: str  # of aggregator.cli
    text: str  # fits beside its name in a terminal of 80 columns


COMMANDS = {
    "run": _Place("service", "Run the service: epochs, attestors, relayer and API."),
    "attestor": _Place("attestor", "Run one attestor; show, export, import its record."),
    "check": _Place("service", "Probe everything that run depends on."),
    "margin": _Place("margin", "Explain one account's margin."),
    "explain": _Place("margin", "Walk from equity to free collateral, layer by layer."),
    "whatif": _Place("whatif", "Show a margin before and after changes."),
    "stress": _Place("stress", "Value accounts under named scenarios."),
    "systemic": _Place("stress", "Show which accounts fall together, and what follows."),
    "accounts": _Place("accounts", "Open, list and link margin accounts."),
    "permits": _Place("permits", "Ask the attestors to let collateral go at once."),
    "assets": _Place("assets", "List configured assets and price feeds."),
    "chains": _Place("chains", "State of the chains; resume one that was halted."),
    "epochs": _Place("epochs", "List epochs: roots, signers and postings."),
    "latency": _Place("latency", "Show measured latencies, and the laws they make."),
    "haircut": _Place("haircut", "Show market haircuts and what they are made of."),
    "policy": _Place("policy", "Show the risk parameters in force."),
    "recalibrate": _Place("recalibrate", "Estimate risk parameters anew."),
    "backtest": _Place("backtest", "Test models and haircuts against price histories."),
    "procyclicality": _Place("procyclicality", "Show how margins rise and fall with the market."),
    "cases": _Place("cases", "Compute published cases and compare."),
    "export": _Place("audit", "Write an account's audit bundle."),
    "verify": _Place("audit", "Verify an audit bundle offline, step by step."),
    "prices": _Place("prices", "Check signed prices."),
    "disputes": _Place("disputes", "List which provider contradicted the others."),
    "keys": _Place("keys", "Create, import and list keys, each for one role."),
    "rotation": _Place("rotation", "Hand over to another set of attestors."),
}


class Commands(TyperGroup):
    """The group of all commands, each imported when it is called."""

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of all commands, imported or not."""
        return list(COMMANDS)

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a command, importing its module."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            from aggregator.cli.frame import app

            importlib.import_module(f"aggregator.cli.{COMMANDS[cmd_name].module}")
            self.commands = typer.main.get_group(app).commands
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Find the command of ``args``; for a name that is none, all are imported to suggest what was meant."""
        if args and args[0] not in COMMANDS:
            for name in COMMANDS:
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write all names with their lines, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.text) for name, place in COMMANDS.items()])
