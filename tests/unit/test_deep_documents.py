"""Documents from outside that nest so deeply that parsing them would end a process whose recursion limit was raised.

A library of the Ethereum world raises it when it is imported (py_ecc), and then CPython's JSON decoder runs out of C
stack before it runs into the limit. So a process of its own raises the limit and reads such documents by every way in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proofs.document import measure_depth

READERS = """
import sys
from pathlib import Path
import httpx
from typer.testing import CliRunner
from adapters.disputes import read_disputes
from adapters.keys import show_key
from aggregator.__main__ import app
from aggregator.config import load_settings
from aggregator.domain.errors import CrossmarginError
from proofs.__main__ import main

sys.setrecursionlimit(100_000)
folder = Path(sys.argv[1])
deep = '{"a": ' * 90_000

def written(name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    return path

def refused(read, *arguments):
    try:
        read(*arguments)
    except CrossmarginError as error:
        return str(error)

bundle = written("bundle.json", deep)
print("key", "not a keystore" in refused(show_key, bundle))
line = '{"record": {"x": ' + deep + '}}'
print("disputes", [entry.torn for entry in read_disputes(written("disputes.jsonl", line))] == [True])
toml = written("deep.toml", "policy = " + "[" * 9_000 + "]" * 9_000)
print("configuration", refused(load_settings, toml) is not None)
for arguments in (["verify", str(bundle)], ["prices", str(bundle)]):
    print("proofs", arguments[0], main(arguments) == 2)
runner, config = CliRunner(), ["--config", sys.argv[2]]
for arguments in (["verify", str(bundle)], ["cases", str(bundle)]):
    result = runner.invoke(app, arguments)
    print("command", arguments[0], result.exit_code == 2 and "deep" in result.stderr)
httpx.request = lambda *_, **__: httpx.Response(200, text=deep)
result = runner.invoke(app, ["stress", *config])
print("answer", result.exit_code == 2 and "no crossmargin service" in result.stderr)
"""


def test_no_way_in_parses_what_is_nested_too_deeply(tmp_path: Path) -> None:
    import tomli_w

    from tests.worlds.documents import make_document

    config = tmp_path / "crossmargin.toml"
    config.write_text(tomli_w.dumps(make_document(tmp_path)), "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", READERS, str(tmp_path), str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]  # -11 is a crash
    told = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert set(told.values()) == {"True"}, told
    assert len(told) == 8


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("[[1]]", 2),
        ('{"a": "[[[[", "b": []}', 2),
        (r'"\"[[" ', 0),
        (r'"\\" [', 1),
        ('"never closed [[[', 0),
        ("]][[", 0),
        ("[" * 100_000, 100_000),
    ],
)
def test_depth_counts_brackets_outside_strings(text: str, depth: int) -> None:
    assert measure_depth(text) == depth
