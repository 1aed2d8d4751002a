"""The demo as anyone runs it: a process that plays, checks, stops, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from infra.devnet.anvil import find_free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "crossmargin-devnet-"


class Demo:
    """A running demo, its lines so far, and every process it ever had."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.devnet", "demo", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.descendants: dict[int, psutil.Process] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def look(self) -> None:
        """Remember the processes that run now."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.descendants |= {child.pid: child for child in found}

    def wait_for(self, text: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.text:
            self.look()
            assert self.process.poll() is None, f"it ended before {text!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {text!r} within {seconds:g} s:\n{self.text}"
            time.sleep(0.1)
        self.look()

    def wait(self, seconds: float) -> int:
        """Wait for the end; return the exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.look()
            assert time.monotonic() < deadline, f"still running after {seconds:g} s:\n{self.text}"
            time.sleep(0.2)
        self._reader.join(5)
        return self.process.returncode

    def left(self) -> list[str]:
        """Return what still runs of everything it started (a process that reuses a pid is another one)."""
        _, alive = psutil.wait_procs(list(self.descendants.values()), timeout=5)
        return [f"{p.pid} {' '.join(p.cmdline())}" for p in alive if p.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> None:
        for process in (self.process, *self.descendants.values()):
            try:
                process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        self.process.wait()


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Demo]:
    demo = Demo(folder, *arguments)
    try:
        yield demo
    finally:
        demo.end()


@pytest.mark.timeout(280)
def test_the_demo_plays_once_checks_itself_and_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path, "--once") as demo:
        assert demo.wait(260) == 0, demo.text
        for told in (
            r"page +http://127\.0\.0\.1:\d+/$",
            r"docs +http://127\.0\.0\.1:\d+/docs$",
            r"API +http://127\.0\.0\.1:\d+/v1/accounts$",
            r"seven accounts opened, every link signed by both sides",
            r"epoch \d+: [34] attestors signed, root on three chains",
            r"meridian borrowed [\d,]+ USDC on alpha",
            r"solstice borrowed [\d,]+ USDC on sol",
            r"ten dollars more than meridian's budget on alpha is refused: over budget",
            r"ten dollars more than solstice's budget on sol is refused: budget exceeded",
            r"beta may lend [\d,]+ of [\d,]+, since alpha has lent [\d,]+",
            r"meridian borrowed [\d,]+ USDC on beta",
            r"ten dollars more than meridian's budget on beta is refused: over budget",
            r"epoch \d+ is certified by the three others; attestor-3: cannot be reached",
            r"epoch \d+ is not certified: attestor-2: cannot be reached .*; attestor-3: cannot be reached",
            r"epoch \d+ is signed by all four: they caught up",
            r"ballast is short 5 ETH-perp .*, long 3 ETH-put .*; required: IM [\d,.]+, MM [\d,.]+ \(scenario, ",
            r"squall is long 6000 USD of ETH-inverse perp .*, short 4 ETH-call .*; required: IM [\d,.]+, MM ",
            r"\d\.\d\d ETH of ballast's vault stand against delta -\d\.\d\d of its contracts: [\d,]+ is required",
            r"prices of ETH, BTC and SOL fall 15%",
            r"tightrope is unhealthy: health \d\.\d+ → \d\.\d+",
            r"would cost these \d\.\d\d ETH, unhedged, [\d,]+",
            r"ballast is hedged: its vault -[\d,]+, .*: equity -[\d,]+; free collateral [+-][\d,]+",
            r"squall's inverse perp loses [\d,]+, its sold calls gain [\d,]+",
            r"beta's leg of meridian ages: horizon \d+ → \d+ s",
            r"meridian and tightrope are flagged stale: usable budget 0",
            r"harbor and solstice go on; alpha and sol keep receiving certificates",
            r"the stale flags are gone and beta receives certificates again",
            r"alpha\[2\] lies: it multiplies every amount by ten",
            r"nothing changes but the record of it: \d+ disputes with alpha\[2\]",
            r"two of three providers of alpha die: too few are left to agree",
            r"alpha is stale: dark: alpha: fewer than 2 of 3 providers",
            r"harbor is stale, solstice goes on, and so do the epochs",
            r"both providers are back and alpha is read again",
            r"blocks \d+ to \d+ of alpha were replaced",
            r"statements below epoch \d+ are void: block \d+ of alpha was 0x",
            r"alpha holds a certificate above the floor",
            r"the newest root on every chain is the service's own \(epochs: alpha \d+, beta \d+, sol \d+\)",
            r"an exported bundle \([\d,]+ bytes\) verifies: steps 1, 2, 3 and 6 pass",
            r"no process is left; all checks passed",
        ):
            assert re.search(told, demo.text, re.MULTILINE), f"not told: {told}\n{demo.text}"
        before, after = (float(n) for n in re.search(r"health (\d\.\d+) → (\d\.\d+)", demo.text).groups())  # type: ignore[union-attr]
        assert after < 1 < before
        (told,) = (line for line in demo.lines if "ballast is hedged" in line)
        *parts, equity, _ = (float(n.replace(",", "")) for n in re.findall(r"[+-][\d,]*\d", told))
        assert len(parts) == 5
        assert sum(parts) == pytest.approx(equity, abs=3), "the parts, each rounded, add up"
        assert len(demo.descendants) >= 6, "two Anvils, one Solana chain, the providers, a publisher, the service"
        assert demo.left() == []
        assert not list(demo.temporary.glob(f"{FOLDER}*")), "its folder, keys included, is gone"
        for name in ("devnet.toml", "devnet.json"):
            assert not (tmp_path / ".run" / name).exists()


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("number", "once_told", "processes"),
    [
        pytest.param(signal.SIGINT, "seven traders fund", 5, id="SIGINT while it sets up"),
        # All its processes start once more for this: for `make soak`.
        pytest.param(signal.SIGTERM, "/v1/accounts", 6, id="SIGTERM while it serves", marks=pytest.mark.soak),
    ],
)
def test_a_signal_stops_everything_the_demo_started(
    tmp_path: Path, number: signal.Signals, once_told: str, processes: int
) -> None:
    with running(tmp_path, "--port", str(find_free_port())) as demo:
        demo.wait_for(once_told, 120)
        assert len(demo.descendants) >= processes
        demo.process.send_signal(number)
        assert demo.wait(60) == 0, demo.text
        assert "stopped; every process it started is gone" in demo.text
        assert "Traceback" not in demo.text
        assert demo.left() == []
        assert not list(demo.temporary.glob(f"{FOLDER}*"))


@pytest.mark.timeout(60)
def test_a_busy_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with running(tmp_path, "--port", str(port)) as demo:
            assert demo.wait(50) == 1
            assert f"{port}" in demo.text
            assert "port" in demo.text
            assert "Traceback" not in demo.text
            assert demo.descendants == {}
