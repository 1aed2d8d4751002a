"""The committed Solana programs are what their source says."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest

from infra.devnet.svm.build_programs import COMPILER, NAMES, PROGRAMS, BuildError, build_program, read_compiler
from proofs.programs.sbpflink import LinkError, link, murmur3

RECORD = json.loads((PROGRAMS / "programs.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_the_record_names_these_bytes(name: str) -> None:
    program = (PROGRAMS / f"{name}.so").read_bytes()
    assert hashlib.sha256(program).hexdigest() == RECORD["programs"][name]["sha256"]
    for source, digest in RECORD["programs"][name]["sources"].items():
        assert hashlib.sha256((PROGRAMS / source).read_bytes()).hexdigest() == digest, (
            f"{source} changed since {name}.so was built: run python -m infra.devnet.svm.build_programs"
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuild_gives_the_same_bytes(name: str) -> None:
    try:
        _, version = read_compiler()
    except BuildError as error:
        pytest.skip(f"{error}, to check that {name}.so is built from its source")
    if RECORD["compiler"] != f"clang {version}":
        pytest.skip(f"{COMPILER} is {version} here, {name}.so was built by {RECORD['compiler']}: install that one")
    assert build_program(name) == (PROGRAMS / f"{name}.so").read_bytes()


def test_murmur3_gives_the_published_vectors() -> None:
    # Appleby's MurmurHash3_x86_32, seed 0
    assert [murmur3(text) for text in (b"", b"test", b"Hello, world!")] == [0, 0xBA6BD213, 0xC0363E43]


def test_the_linker_refuses_what_is_no_object() -> None:
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    other = header + struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, 0, 0, 64, 0, 0, 64, 0, 0)
    with pytest.raises(LinkError, match="bpfel"):
        link(other)
