"""The command line over a store that a real Cycle filled on simulated chains."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from aggregator.__main__ import app
from aggregator.domain.certificate import Posting
from tests.worlds.documents import ALPHA
from tests.worlds.world import FIRST_EPOCH, SimulatedWorld

EPOCHS = (FIRST_EPOCH, FIRST_EPOCH + 1)


@dataclass
class Shell:
    """Runs commands in this process, with the filled configuration."""

    config: Path
    document: dict[str, Any]

    def bare(self, *arguments: str) -> Any:
        """Run a command that needs no configuration."""
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "CROSSMARGIN_CONFIG": ""})

    def __call__(self, *arguments: str) -> Any:
        return self.bare(*arguments, "--config", str(self.config))

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json; stdout must be one JSON document, stderr empty unless it failed."""
        result = self(*arguments, "--json")
        assert result.exit_code == code, result.output
        assert code or result.stderr == ""
        return json.loads(result.stdout)

    def refused(self, arguments: Sequence[str], code: int, *says: str) -> None:
        """Run a command that must fail: an error on stderr that says so, nothing on stdout, no traceback."""
        result = self(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        for text in says:
            assert text in result.stderr


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of two certified epochs; every test works on its own copy."""
    folder = tmp_path_factory.mktemp("filled") / "data"
    folder.mkdir()

    async def fill() -> None:
        async with SimulatedWorld(folder) as world:
            await world.populate()
            for number in EPOCHS:
                record = await world.epoch(number)
                assert record.attestations, record.refusals
            await world.store.save_posting(Posting(EPOCHS[-1], ALPHA, "confirmed", "0x" + "aa" * 32, 90_000, "", 1))
            config = folder / "crossmargin.toml"
            config.write_text(tomli_w.dumps(world.document | {"service": world.document["service"] | {"data": "."}}))

    asyncio.run(fill())
    return folder


@pytest.fixture
def shell(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    folder = tmp_path / "data"
    shutil.copytree(filled, folder)
    monkeypatch.chdir(tmp_path)
    world = SimulatedWorld(folder)
    return Shell(folder / "crossmargin.toml", world.document)
