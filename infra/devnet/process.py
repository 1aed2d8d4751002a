"""Child processes that never outlive the one that started them, however that one ends."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)


def spawn_bound(
    command: Sequence[str], log: Path, *, cwd: Path | None = None, death: signal.Signals = signal.SIGKILL
) -> subprocess.Popen[bytes]:
    """Start a process that the kernel ends when this one dies, even by SIGKILL; its output goes to ``log``.

    Linux sends the parent-death signal when the *thread* that forked ends (prctl(2)), so a thread of its own starts the
    process and waits for it: it lives exactly as long. A new session keeps a Ctrl-C of the terminal from the child.

    Raises:
        OSError: the program cannot be started.
    """
    started: list[subprocess.Popen[bytes] | BaseException] = []
    ready = threading.Event()
    bind = _build_death_signal(death)

    def run() -> None:
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    start_new_session=True,
                    preexec_fn=bind,  # noqa: PLW1509 - one system call that takes no lock
                )
        except BaseException as error:
            started.append(error)
            ready.set()
            return
        started.append(process)
        ready.set()
        process.wait()

    threading.Thread(target=run, name=f"keeper of {Path(command[0]).name}", daemon=True).start()
    ready.wait()
    outcome = started[0]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _build_death_signal(death: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, death)

    return bind
