"""The house itself: locked dependencies, files that are anyone's, imports that point down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aggregator.service.workbench import CODE_VERSION

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements.lock"
PACKAGE_LOCKS = ("infra/devnet/package-lock.json",)
FOREIGN = ("work", "root", "home", "tmp", "Users")
"""First folders of paths that exist on somebody's machine only."""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


def requirements() -> dict[str, list[str]]:
    """Return the options of every requirement of the lock, by its first line."""
    found: dict[str, list[str]] = {}
    for line in LOCK.read_text("utf-8").splitlines():
        text = line.split("#")[0].rstrip(" \\")
        if not text:
            continue
        if line[0].isspace():
            found[list(found)[-1]].append(text.strip())
        else:
            found[text] = []
    return found


def test_every_locked_package_is_exact_and_hashed() -> None:
    locked = requirements()
    assert len(locked) > 50
    for requirement, options in locked.items():
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^\s;]+( ;.*)?$", requirement), requirement
        assert options, f"{requirement} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", option) for option in options), requirement


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.split(r"[\[=]", requirement)[0] for requirement in requirements()}
    normal = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", d)[0]).lower() for d in wanted}  # type: ignore[index]
    assert normal <= names


def test_locks_name_no_host() -> None:
    for name in ("requirements.lock", *PACKAGE_LOCKS):
        text = (ROOT / name).read_text("utf-8")
        assert "://" not in text.replace("https://github.com/sponsors", "").replace('"url": "https://', ""), name
        assert "--index-url" not in text
        assert "--find-links" not in text
        assert " @ " not in text


@pytest.mark.parametrize("name", PACKAGE_LOCKS)
def test_npm_packages_are_exact_and_hashed_and_resolved_nowhere(name: str) -> None:
    packages = json.loads((ROOT / name).read_text("utf-8"))["packages"]
    installed = {path: package for path, package in packages.items() if path}
    assert installed
    for path, package in installed.items():
        assert "resolved" not in package, path
        if not (package.get("os") and "integrity" not in package):  # of another platform: npm has not seen its bytes
            assert package["integrity"].startswith("sha512-"), path
        assert re.fullmatch(r"\d+\.\d+\.\d+([-+].*)?", package["version"]), path


def test_there_is_one_lock() -> None:
    names = tracked()
    assert not [n for n in names if n.endswith(("uv.lock", "poetry.lock", "Pipfile.lock", "yarn.lock"))]
    assert [n for n in names if n.endswith("package-lock.json")] == list(PACKAGE_LOCKS)


def test_no_file_names_a_machine_of_ours() -> None:
    path = re.compile(rb"(?<![\w.$}/-])/(%s)/[A-Za-z0-9_]" % "|".join(FOREIGN).encode())
    found = []
    for name in tracked():
        file = ROOT / name
        if not file.is_file() or file.suffix in (".so", ".png", ".svg"):
            continue
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if path.search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]!r}")
    assert found == []


def test_nothing_generated_or_secret_is_tracked() -> None:
    odd = re.compile(r"(^|/)(__pycache__|node_modules|\.venv|\.run|build/bench)(/|$)|\.(pyc|sqlite3?|db|pem|log)$")
    assert [name for name in tracked() if odd.search(name) or Path(name).name == ".env"] == []


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == CODE_VERSION
    assert CODE_VERSION in (ROOT / "CHANGELOG.md").read_text("utf-8") or "Unreleased" in (
        ROOT / "CHANGELOG.md"
    ).read_text("utf-8")


def test_the_import_law_holds() -> None:
    """As a process of its own: the linter imports every package to find its files."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_fault_has_an_action_and_tests_that_exist() -> None:
    faults = tomllib.loads((ROOT / "tests" / "faults.toml").read_text("utf-8"))
    assert list(faults) == [f"A{i}" for i in range(1, 17)]
    for id, row in faults.items():
        assert row["fault"], id
        assert row["action"], id
        assert row["tests"], f"{id} has no test"
        for node in row["tests"]:
            file, _, name = node.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text("utf-8"), f"{id}: {node} does not exist"
