"""Logs tell where something went wrong, and never what a frame held: provider URLs carry keys."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from aggregator.service.telemetry import configure_logging

SECRET = "".join(("k3y", "-in-", "a-url"))  # put together, so that no line of source in a traceback holds it


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail_with_a_secret_at_hand() -> None:
    url = f"https://node.example/{SECRET}"
    assert url
    raise OSError("no route")


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_traceback_shows_the_place_and_no_local_variable(
    json_lines: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(json_lines=json_lines)
    log = structlog.get_logger()
    try:
        fail_with_a_secret_at_hand()
    except OSError:
        log.exception("chain not read")
    text = capsys.readouterr().err
    assert SECRET not in text
    told = json.loads(text)["exception"] if json_lines else text
    assert "fail_with_a_secret_at_hand" in told
    assert "OSError: no route" in told
