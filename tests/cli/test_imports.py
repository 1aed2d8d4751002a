"""What the command line loads: a command waits for nothing that only others use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from aggregator.cli.group import COMMANDS
from tests.cli.conftest import Shell

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("scipy.stats", "scipy.signal", "matplotlib", "web3", "fastapi", "py_ecc", "eth_keyfile", "aiohttp")


def loaded(script: str, *arguments: str) -> set[str]:
    """Run a script in a process of its own and return which heavy packages it loaded."""
    told = f"{script}\nimport sys; print(); print(*(name for name in {HEAVY!r} if name in sys.modules), sep=',')"
    done = subprocess.run(
        [sys.executable, "-c", told, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(filter(None, done.stdout.splitlines()[-1].split(",")))


def test_the_command_line_itself_loads_nothing_heavy_and_neither_does_any_module_of_it() -> None:
    assert loaded("import aggregator.__main__") == set()
    modules = sorted({place.module for place in COMMANDS.values()})
    assert loaded("import aggregator.__main__, " + ", ".join(f"aggregator.cli.{name}" for name in modules)) == set()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["accounts"], ["margin", "ada"], ["explain", "ada"]], ids=lambda a: a[0]
)
def test_a_command_that_reads_the_store_loads_no_reader_of_chains(arguments: list[str], shell: Shell) -> None:
    run = "try:\n    app(sys.argv[1:])\nexcept SystemExit as left:\n    assert not left.code, left.code"
    script = f"import sys\nfrom aggregator.__main__ import app\n{run}"
    config = [] if arguments == ["--help"] else ["--config", str(shell.config)]
    assert loaded(script, *arguments, *config) == set()


def test_a_store_that_is_current_is_told_by_the_newest_file_of_its_migrations() -> None:
    folder = ROOT / "aggregator/store/migrations"
    config = Config()
    config.set_main_option("script_location", str(folder))
    newest = max(path.name[:4] for path in (folder / "versions").glob("[0-9]*.py"))
    assert ScriptDirectory.from_config(config).get_current_head() == newest
