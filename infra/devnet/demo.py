"""The demo: seven accounts over three real chains, a price shock, a halted chain, and the checks on what is shown."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from infra.devnet.anvil import AnvilError
from infra.devnet.control import ControlPort, FaultError
from infra.devnet.faults import Faults
from infra.devnet.loans import Loans
from infra.devnet.phases import PHASES, DemoError, Stage, check_bundle, check_roots
from infra.devnet.process import spawn_bound
from infra.devnet.traders import TRADERS, Desk
from infra.devnet.world import MEMBERS, World

POINTER = Path(".run/devnet.toml")  # where the command line finds a running demo's configuration
STATUS_STYLES = {"healthy": "green", "unhealthy": "bold red", "unknown": "yellow", "ok": "green", "stale": "yellow"}


def check_nothing_left(pids: list[int]) -> None:
    """Every process that was started is gone."""
    left = [pid for pid in pids if _alive(pid)]
    if left:
        raise DemoError(f"processes are still running: {left}")


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        if Path(f"/proc/{pid}/stat").exists():
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        os.kill(pid, 0)
        return True
    return False


# --- running ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_service(world: World) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``crossmargin run`` as a process of its own; its log goes to the devnet's folder."""
    command = [sys.executable, "-m", "aggregator", "run", "--config", str(world.config)]
    process = spawn_bound(command, world.folder / "service.log")
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def play(*, once: bool, port: int | None) -> int:
    """Play the demo; return 0, or 1 after saying which check failed."""
    # A shell that puts us in the background has SIGINT ignored; both signals must still stop everything.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/dim]  {text}")

    pids: list[int] = []
    log_tail = ""
    try:
        with World(port, tell) as world:
            pids += world.pids()
            desk, faults = Desk(world), Faults(world)
            tell("seven traders fund their vaults and wallets, two of them trade perps and options")
            desk.deposit_all()
            world.start_clocks()
            tell(f"starting {MEMBERS} attestors, each a process of its own, and the service")
            world.attestors.start()
            with running_service(world) as service, ControlPort(faults, world.url):
                pids += [service.pid, *world.attestors.pids()]
                stage = Stage(world, desk, faults, Loans(world, desk), service, tell)
                try:
                    stage.until("the API to answer", lambda: desk.api.get("/healthz").is_success or None, 60)
                    desk.open_all()
                    tell("seven accounts opened, every link signed by both sides")
                    world.publish_config(POINTER)
                    _announce(console, world)
                    if once:
                        for phase in PHASES:
                            phase(stage)
                        for check in (check_roots, check_bundle):
                            check(stage)
                    else:
                        _live(console, stage)
                except BaseException:
                    log_tail = "\n".join(
                        (world.folder / "service.log").read_text("utf-8", "replace").splitlines()[-25:]
                    )
                    raise
                finally:
                    POINTER.unlink(missing_ok=True)
                    desk.close()
        check_nothing_left(pids)
    except KeyboardInterrupt:
        check_nothing_left(pids)
        console.print("stopped; every process it started is gone")
        return 0
    except (DemoError, AnvilError, FaultError, RuntimeError) as error:
        Console(stderr=True, highlight=False).print(Text(f"demo failed: {error}", style="bold red"))
        if log_tail:
            Console(stderr=True, highlight=False).print(Text("the service's last lines:\n" + log_tail, style="dim"))
        return 1
    tell("no process is left; all checks passed")
    return 0


def _announce(console: Console, world: World) -> None:
    console.print(
        f"\n  page  {world.url}/\n  docs  {world.url}/docs\n  API   {world.url}/v1/accounts\n"
        f"  shell .venv/bin/crossmargin accounts   (also: margin meridian, chains, epochs, check, disputes)\n"
        f"  fault .venv/bin/python -m infra.devnet fault list   (then: fault lying, fault dead --provider all, …)\n"
    )


def _live(console: Console, stage: Stage) -> None:
    """Play the scenario under a live picture, then keep the picture until Ctrl-C."""
    events: list[str] = []
    began = time.monotonic()

    def tell(text: str) -> None:
        events.append(f"{time.monotonic() - began:5.0f} s  {text}")

    stage.tell = tell
    if not console.is_terminal:
        stage.tell = console.print
        _play_on(stage)
        while stage.service.poll() is None:
            time.sleep(1)
        raise DemoError(f"the service stopped (exit {stage.service.returncode})")
    with Live(console=console, refresh_per_second=2, screen=False) as live:
        stage.on_look = lambda: live.update(_picture(stage, events))
        _play_on(stage)
        while stage.service.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                live.update(_picture(stage, events))
            time.sleep(1)


def _play_on(stage: Stage) -> None:
    """Play the phases; one that fails, for instance since somebody turned a fault on meanwhile, ends only the play."""
    try:
        for phase in PHASES:
            phase(stage)
    except DemoError as error:
        if stage.service.poll() is not None:
            raise
        stage.tell(f"the scenario ends here: {error}")
    else:
        stage.tell("the scenario is over")
    stage.tell("everything keeps running until Ctrl-C; turn faults on and off: python -m infra.devnet fault list")


def _picture(stage: Stage, events: list[str]) -> Group:
    """Return the live picture: accounts, chains, what happened."""
    accounts = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("account", "status", "story"):
        accounts.add_column(name)
    for name in ("equity", "free collateral", "usable", "health", "as of"):
        accounts.add_column(name, justify="right")
    accounts.add_column("flags")
    now = time.time()
    for who in TRADERS:
        m = stage.margin(who.label)
        health = m["health"]["low"]
        accounts.add_row(
            who.label,
            Text(m["status"], style=STATUS_STYLES[m["status"]]),
            Text(who.story, style="dim"),
            m["equity"]["text"],
            m["free_collateral"]["text"],
            m["freshness"]["usable"]["text"],
            "∞" if health is None else f"{health:.3f}",
            f"{now - m['freshness']['as_of']:.0f} s",
            Text(", ".join(m["flags"]), style="yellow"),
        )
    chains = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("chain", "state", "age", "finality", "holds", "cause"):
        chains.add_column(name)
    holds: dict[str, int] = {}
    for p in stage.desk.get("/v1/postings"):
        if p["state"] in ("confirmed", "final"):
            holds[p["destination"]] = max(p["epoch"], holds.get(p["destination"], 0))
    for c in stage.desk.get("/v1/chains"):
        age = "" if c["age"] is None else f"{c['age']} s"
        style = STATUS_STYLES.get(c["status"], "bold red")
        held = f"epoch {holds[c['chain']]}" if c["chain"] in holds else "nothing yet"
        chains.add_row(c["name"], Text(c["status"], style=style), age, c["finality"], held, c["cause"])
    latest = stage.desk.get("/v1/epochs/latest")
    head = f"epoch {latest['header']['epoch']}  signed by {len(latest['signatures'])} of {MEMBERS}"
    log = Text("\n".join(events[-8:]))
    return Group(
        Text(f"crossmargin devnet   page {stage.world.url}/   docs {stage.world.url}/docs   Ctrl-C stops everything"),
        Panel(Group(accounts, Text(""), chains), title=head, title_align="left"),
        log,
    )
