"""Compile this repository's Vyper and Solidity contracts and load the committed results.

`python -m infra.devnet.artifacts` writes `build/<Name>.json` beside every source; `--check` only compares. The results
are committed, so running a devnet needs no compiler; a test rebuilds them and expects the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = (ROOT / "proofs" / "contracts", ROOT / "infra" / "devnet" / "contracts")
COMPILER = "0.4.3"
SOLIDITY = ROOT / "infra" / "devnet" / "solidity.mjs"
INTERFACES = ROOT / "proofs" / "contracts"
"""What Solidity sources import as ``crossmargin/<file>``."""
SOLIDITY_SETTINGS = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 10_000},
    "metadata": {"bytecodeHash": "none", "appendCBOR": False},  # the same bytes wherever the sources lie
    "outputSelection": {"*": {"*": ["abi", "evm.bytecode.object"]}},
}

Abi = list[dict[str, Any]]


class ArtifactError(Exception):
    """A contract artifact is missing, out of date, or cannot be built."""


def find_sources() -> dict[str, Path]:
    """Return the sources by contract name, in a stable order; Solidity interfaces are called ``I<Name>.sol``."""
    paths = [
        path for folder in SOURCE_FOLDERS for ending in ("vy", "sol") for path in sorted(folder.glob(f"*.{ending}"))
    ]
    return {path.stem: path for path in paths if not (path.suffix == ".sol" and path.stem[:2].isupper())}


def get_artifact_path(source: Path) -> Path:
    """Return where the compiled result of a source is committed."""
    return source.parent / "build" / f"{source.stem}.json"


def build_artifact(source: Path) -> dict[str, Any]:
    """Compile one source and return {name, abi, bytecode, compiler, source_sha256}; bytecode is 0x hex of the initcode.

    Raise ArtifactError when the pinned compiler is not the one installed, or refuses the source.
    """
    if source.suffix == ".sol":
        return _build_solidity(source)
    vyper = importlib.import_module("vyper")  # untyped, and absent from a production install
    if not str(vyper.__version__).startswith(COMPILER):
        raise ArtifactError(f"vyper {COMPILER} is required to build contracts, found {vyper.__version__}: make install")
    text = source.read_text(encoding="utf-8")
    compiled = vyper.compile_code(text, contract_path=source.name, output_formats=["abi", "bytecode"])
    return {
        "name": source.stem,
        "abi": compiled["abi"],
        "bytecode": compiled["bytecode"],
        "compiler": f"vyper {COMPILER}",
        "source_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _build_solidity(source: Path) -> dict[str, Any]:
    text = source.read_text(encoding="utf-8")
    files = {f"crossmargin/{path.name}": path for path in sorted(INTERFACES.glob("*.sol"))} | {source.name: source}
    request = {
        "language": "Solidity",
        "sources": {name: {"content": path.read_text(encoding="utf-8")} for name, path in files.items()},
        "settings": SOLIDITY_SETTINGS,
    }
    done = subprocess.run(["node", SOLIDITY], input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"the Solidity compiler does not run: {done.stderr.strip()[-300:]}: make install")
    answer = json.loads(done.stdout)
    problems = [e["formattedMessage"] for e in answer["output"].get("errors", ()) if e["severity"] != "info"]
    if problems:
        raise ArtifactError(f"{source.name}: {problems[0]}")
    compiled = answer["output"]["contracts"][source.name][source.stem]
    return {
        "name": source.stem,
        "abi": compiled["abi"],
        "bytecode": "0x" + compiled["evm"]["bytecode"]["object"],
        "compiler": f"solc {answer['version'].partition('+')[0]}",
        "source_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def encode_artifact(artifact: dict[str, Any]) -> str:
    """Return the committed text of an artifact: stable key order, one trailing newline."""
    return json.dumps(artifact, indent=1, sort_keys=True) + "\n"


@cache
def load(name: str) -> tuple[Abi, str]:
    """Return (abi, initcode as 0x hex) of a committed contract, for example `load("MarginRegistry")`.

    Raise ArtifactError when there is no such contract or its artifact was not built.
    """
    sources = find_sources()
    if name not in sources:
        raise ArtifactError(f"no contract named {name!r}; known: {', '.join(sources)}")
    path = get_artifact_path(sources[name])
    if not path.exists():
        raise ArtifactError(f"{path.relative_to(ROOT)} is missing: run `python -m infra.devnet.artifacts`")
    artifact = json.loads(path.read_text(encoding="utf-8"))
    return artifact["abi"], artifact["bytecode"]


def main(argv: list[str] | None = None) -> int:
    """Build every artifact, or with --check say which are out of date; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.devnet.artifacts", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when an artifact is out of date")
    check = parser.parse_args(argv).check
    stale = 0
    for name, source in find_sources().items():
        path = get_artifact_path(source)
        text = encode_artifact(build_artifact(source))
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{name}: {'out of date' if check else 'built'} ({path.relative_to(ROOT)})")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
