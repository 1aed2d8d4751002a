"""Build proofs/programs/*.c into the committed .so files: `python -m infra.devnet.svm.build_programs [NAME ...]`.

Needs clang-19 (`apt-get install clang-19`). The build is reproducible: the same compiler gives the same bytes, which
tests/contracts/test_solana_build.py checks. programs.json records their sha256 and the compiler.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from proofs.programs.sbpflink import link

PROGRAMS = Path(__file__).parents[3] / "proofs" / "programs"
RECORD = PROGRAMS / "programs.json"
NAMES = ("registry", "vault", "links", "consumer")
COMPILER = "clang-19"
# -mcpu=v2: sBPF has neither the 32-bit jumps nor the 32-bit arithmetic of later BPF. No section may be writable and
# no jump table may exist. The stack limit is that of one sBPF frame.
FLAGS = (
    *("-target", "bpfel", "-mcpu=v2", "-O2", "-std=c11", "-ffreestanding", "-fno-builtin", "-fno-jump-tables"),
    *("-fno-common", "-fno-strict-aliasing", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-ident"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-mllvm", "-bpf-stack-size=4096"),
)


class BuildError(RuntimeError):
    """A program could not be built; the message says what to do."""


def read_compiler() -> tuple[str, str]:
    """Return the path and the version ("19.1.7") of clang-19. Raises BuildError when it is absent."""
    path = shutil.which(COMPILER)
    if path is None:
        raise BuildError(f"{COMPILER} is not installed: apt-get install {COMPILER}")
    text = subprocess.run([path, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"clang version (\d+\.\d+\.\d+)", text)
    if found is None:
        raise BuildError(f"{path} --version prints no version: {text!r}")
    return path, found[1]


def build_program(name: str, folder: Path = PROGRAMS) -> bytes:
    """Compile and link NAME.c of a folder; return the program file. Raises BuildError, LinkError."""
    compiler, _ = read_compiler()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "program.o"
        # Run inside the source folder, so that no path of this machine can get into the object.
        command = [compiler, *FLAGS, f"-I{PROGRAMS}", "-c", f"{name}.c", "-o", str(target)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{name}.c does not compile:\n{done.stderr}")
        return link(target.read_bytes())


def sources_of(name: str) -> list[str]:
    """Return the files that NAME.c is built from: itself, and the headers beside it that it includes, transitively."""
    found = [f"{name}.c"]
    for source in found:
        included = re.findall(r'^#include "(.+)"$', (PROGRAMS / source).read_text(), re.MULTILINE)
        found += [one for one in included if one not in found]
    return found


def main(names: Sequence[str]) -> int:
    """Build the programs of these names, all of them by default; write the .so files and programs.json."""
    try:
        _, version = read_compiler()
        built = {name: build_program(name) for name in names or NAMES}
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    for name, program in built.items():
        (PROGRAMS / f"{name}.so").write_bytes(program)
        print(f"{name}.so: {len(program)} bytes")
    programs = json.loads(RECORD.read_text())["programs"] if names else {}
    programs |= {
        name: {
            "size": len(program),
            "sha256": hashlib.sha256(program).hexdigest(),
            "sources": {s: hashlib.sha256((PROGRAMS / s).read_bytes()).hexdigest() for s in sources_of(name)},
        }
        for name, program in built.items()
    }
    record = {
        "compiler": f"clang {version}",
        "flags": " ".join(FLAGS),
        "format": "sBPF v3",
        "programs": {name: programs[name] for name in NAMES if name in programs},
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
