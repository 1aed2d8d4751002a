"""``crossmargin cases``: what people and machines read of it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aggregator.__main__ import app

VECTORS = Path(__file__).parents[1] / "unit" / "core" / "vectors" / "risk_cases.json"
GOOD = {"family": "simm_curvature_sf", "id": "good", "inputs": {"days": 7}, "expected": 0.5, "tol": {"abs": 1e-9}}
OFF = GOOD | {"id": "off", "expected": 0.51, "source": "nobody"}
TWO = {
    "family": "option_standard_margin",
    "id": "two",
    "inputs": {"S": 100, "K": 106, "call": 1},
    "expected": {"IM": 10, "MM": 4},
    "tol": {"abs": 0.1, "rel": 0.01},
}
HALF = "\ud800"  # half a character, which JSON can name and UTF-8 cannot hold


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cases", *arguments], env={"COLUMNS": "200"})


def written(folder: Path, document: Any) -> str:
    path = folder / "cases.json"
    path.write_text(json.dumps(document), "utf-8")
    return str(path)


def test_the_published_cases_pass() -> None:
    result = run(str(VECTORS))
    assert result.exit_code == 0, result.output
    assert "98 of 98 cases pass" in result.stdout
    assert "failed  " not in result.stdout.replace("passed  failed", "")


def test_a_case_that_differs_is_shown_with_its_numbers(tmp_path: Path) -> None:
    result = run(written(tmp_path, [GOOD, OFF]))
    assert result.exit_code == 1
    assert "simm_curvature_sf       1       1" in result.stdout
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "failed  simm_curvature_sf  off" in lines
    for line in ("computed  0.5", "expected  0.51", "error     0.01", "tolerance abs 1e-09", "source    nobody"):
        assert line in lines
    assert "good" not in result.stdout
    assert "1 of 2 cases pass" in result.stdout


def test_all_lists_every_case(tmp_path: Path) -> None:
    result = run(written(tmp_path, {"cases": [GOOD]}), "--all")
    assert result.exit_code == 0
    assert "passed  simm_curvature_sf  good" in result.stdout


def test_the_json_is_exactly_what_is_promised(tmp_path: Path) -> None:
    result = run(written(tmp_path, {"about": "us", "cases": [GOOD, TWO, {"family": "none"}]}), "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    known = document["cases"][2].pop("reason")
    assert known.startswith("family: 'none' is not known")
    nothing = dict.fromkeys(("computed", "expected", "error", "tolerance"))
    assert document == {
        "summary": {
            "none": {"passed": 0, "failed": 1},
            "option_standard_margin": {"passed": 0, "failed": 1},
            "simm_curvature_sf": {"passed": 1, "failed": 0},
        },
        "cases": [
            {"family": "simm_curvature_sf", "id": "good", "source": "", "computed": 0.5, "expected": 0.5, "error": 0.0,
             "tolerance": {"abs": 1e-9}, "passed": True},
            {"family": "option_standard_margin", "id": "two", "source": "", "computed": {"IM": 10.0, "MM": 5.0},
             "expected": {"IM": 10, "MM": 4}, "error": {"IM": 0.0, "MM": 1.0}, "tolerance": {"abs": 0.1, "rel": 0.01},
             "passed": False},
            {"family": "none", "id": "", "source": "", **nothing, "passed": False},
        ],
    }  # fmt: skip


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    free = {"family": "health", "id": HALF, "inputs": {"collateral": 1, "lt": 1, "debt": 0}, "tol": {"abs": 0}}
    cases = [free | {"expected": float("inf")}, free | {"expected": float("nan")}, free | {"expected": 2}]
    result = run(written(tmp_path, cases), "--json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    document = json.loads(result.stdout, parse_constant=refuse)
    assert [entry["computed"] for entry in document["cases"]] == [None, None, None]
    assert [entry["passed"] for entry in document["cases"]] == [True, False, False]
    assert [entry["id"] for entry in document["cases"]] == ["?"] * 3


def test_a_case_cannot_write_control_characters_to_a_terminal(tmp_path: Path) -> None:
    result = run(written(tmp_path, [OFF | {"id": "\x1b[31mred\x07", "family": "[bold]\x1b"}]))
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert "[bold]?" in result.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[", "is not JSON"),
        (b"[" * 100_000, "nested deeper than"),
        (b"7", "must be a list of cases"),
        (b'{"cases": {}}', "must be a list of cases"),
        (b"[]", "holds no case"),
        (b"\xff", "is not UTF-8 text"),
        (b"[1" + b"0" * 5_000 + b"]", "is not JSON"),
        (b" " * ((8 << 20) + 1), "is larger than"),
    ],
    ids=["broken", "deep", "number", "object", "empty", "binary", "digits", "large"],
)
def test_an_unusable_file_is_refused_on_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "cases.json"
    path.write_bytes(content)
    result = run(str(path))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = run(str(tmp_path / "none.json"))
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr
