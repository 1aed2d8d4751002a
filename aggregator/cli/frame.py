"""What all commands share: the application, options, errors, printing.

Every command takes ``--json``; errors go to stderr and exit with 1 (refused, failed) or 2 (unusable input).
"""

from __future__ import annotations

import asyncio
import getpass
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aggregator.cli.group import Commands
from aggregator.domain.errors import CrossmarginError, InputError
from proofs.errors import ProofError

T = TypeVar("T")
CONFIG_PLACES = ("crossmargin.toml", ".run/devnet.toml")
BUNDLE_LIMIT = 8 << 20

app = typer.Typer(
    cls=Commands,
    help="Cross-chain collateral, one attested margin account.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _any() -> None:
    """Make it a group before any command is imported."""


def _named(context: typer.Context, config: Path | None) -> Path | None:
    """Return the file that the command line names nearest to the command, else what the environment names."""
    at: Any = context
    while at is not None:
        source = at.get_parameter_source("config")
        if source is not None and source.name == "COMMANDLINE":
            found: Path | None = config if at is context else at.params["config"]
            return found
        at = at.parent
    return config


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="CROSSMARGIN_CONFIG",
        callback=_named,
        help="The TOML file; default: crossmargin.toml here, else a running demo's.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
AccountArgument = Annotated[str, typer.Argument(help="Account id, its beginning (0x + 8 digits or more), or label.")]

if TYPE_CHECKING:
    from aggregator import bootstrap as bootstrap
    from aggregator.config import Settings
else:

    class _Lazy:
        """The composition root, imported by the first command that needs it: it loads every adapter."""

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module("aggregator.bootstrap"), name)

    bootstrap = _Lazy()

PIPED_WIDTH = 160  # a pipe has no width of its own; rich would assume 80 and fold every table
out = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one line to stderr and leave with ``code``."""
    err.print(Text("error: ", style="bold red") + Text(message))
    raise typer.Exit(code)


def guarded(work: Callable[[], T]) -> T:
    """Run a command's work; turn errors raised on purpose into one clear line and an exit code."""
    try:
        return work()
    except InputError as error:
        fail(str(error), 2)
    except (CrossmarginError, ProofError) as error:
        fail(str(error))
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None


def run_async(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function as a command's work."""
    return guarded(lambda: asyncio.run(work()))


def settings_of(config: Path | None) -> Settings:
    """Load the configuration named, or the first found in the usual places."""
    from aggregator.config import load_settings  # not for --help

    path = config or next((Path(p) for p in CONFIG_PLACES if Path(p).is_file()), Path(CONFIG_PLACES[0]))
    return load_settings(path)


def refuse_json_before(context: typer.Context, json_output: bool) -> None:
    """Leave with a clear line if a group was given the ``--json`` that its subcommand needs."""
    if json_output:
        fail(f"--json goes after {context.invoked_subcommand}: it is each command's own", 2)


@asynccontextmanager
async def opened(config: Path | None) -> AsyncIterator[tuple[Settings, bootstrap.SqlStore]]:
    """Open what a configuration names: its settings and its store."""
    settings = settings_of(config)
    store = await bootstrap.open_store(settings)
    try:
        yield settings, store
    finally:
        await store.close()


def print_json(value: object) -> None:
    """Print JSON to stdout, exact integers kept."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(title: str, *columns: str) -> Table:
    """Return an empty table; columns that begin with ``>`` align right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return made


STYLES = {"healthy": "green", "unhealthy": "bold red", "unknown": "yellow", "ok": "green", "failed": "bold red"}


def styled(word: str) -> Text:
    """Return a status word in its colour."""
    return Text(word, style=STYLES.get(word, ""))


def user_name() -> str:
    """Return who runs this; in a container the user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def read_file(path: Path) -> str:
    """Return a text file's content; leave with a clear line if it cannot be read."""
    try:
        if path.stat().st_size > BUNDLE_LIMIT:
            fail(f"{path} is larger than {BUNDLE_LIMIT} bytes", 2)
        return path.read_text("utf-8")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror}", 2)
    except UnicodeDecodeError:
        fail(f"{path} is not UTF-8 text", 2)
