"""For every test: no network beyond this machine, and none at all where a test has no chain of its own.

Hypothesis profiles: ``default`` (100 examples) and ``soak`` (2,000), chosen by ``HYPOTHESIS_PROFILE``.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

LOCAL = ("chain", "contracts", "api", "browser", "fault", "conformance", "bench")
"""Folders whose tests talk to chains, databases and servers that they start on the loopback interface."""
_ROOT = Path(__file__).parent

settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("soak", max_examples=2_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class NetworkBlockedError(RuntimeError):
    """A test reached for the network; no retry or fallback of ours takes it for an answer."""


class _Gate:
    """What the running test may reach."""

    loopback = True  # while pytest collects, and in fixtures of the session


def _verify_allowed(name: str, address: Any) -> None:
    if not isinstance(address, tuple):
        return  # a path: UNIX sockets stay on this machine
    host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
    try:
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise NetworkBlockedError(f"{name} {host}: tests reach this machine only")
    if not _Gate.loopback:
        raise NetworkBlockedError(f"{name} {host}: only tests in {', '.join(LOCAL)} may use sockets")


def _guarded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: socket.socket, *arguments: Any) -> Any:
        _verify_allowed(name, arguments[-1] if arguments else None)
        return original(self, *arguments)

    return call


def _guarded_lookup(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(host: Any, *arguments: Any, **options: Any) -> Any:
        if host is not None and host != "":
            _verify_allowed("getaddrinfo", (host,))
        return original(host, *arguments, **options)

    return call


for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guarded(_name, getattr(socket.socket, _name)))
socket.getaddrinfo = _guarded_lookup(socket.getaddrinfo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Open or close the gate for one test with all its fixtures, those of its module included."""
    parts = item.path.relative_to(_ROOT).parts if item.path.is_relative_to(_ROOT) else ()
    _Gate.loopback = bool(parts) and parts[0] in LOCAL
    try:
        return (yield)
    finally:
        _Gate.loopback = True


# The registry of faults: a whole run fails if one has no test that passed.

_passed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note which tests passed, whatever their parameters."""
    if report.when == "call":
        name = report.nodeid.partition("[")[0]
        if report.passed:
            _passed.add(name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a whole run in which a fault of ``faults.toml`` has no test that passed."""
    config = session.config
    if hasattr(config, "workerinput"):
        return  # one of several processes: the one that gathers their reports decides
    chosen = (
        config.option.keyword
        or config.option.markexpr
        or config.option.collectonly
        or getattr(config.option, "lf", False)
    )
    if chosen or list(config.args) != config.getini("testpaths"):
        return
    faults = tomllib.loads((_ROOT / "faults.toml").read_text("utf-8"))
    open_faults = [id for id, row in faults.items() if not row["tests"] or not _passed.issuperset(row["tests"])]
    if open_faults:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"faults without passing tests (tests/faults.toml): {', '.join(open_faults)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
