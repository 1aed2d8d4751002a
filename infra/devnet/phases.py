"""What the demo plays and checks: one function per phase; each tells what it saw and fails where it should not be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx

from aggregator.bootstrap import destinations_of
from aggregator.config import Settings, load_settings
from aggregator.domain.certificate import PostedRoot
from aggregator.domain.snapshot import DARK
from infra.devnet.faults import Faults
from infra.devnet.loans import LoanError, Loans, above, share_of
from infra.devnet.traders import TRADERS, Desk, Trader
from infra.devnet.world import World

T = TypeVar("T")
DEPENDENTS, OTHERS = ("meridian", "tightrope"), ("harbor", "solstice")  # who depends on the chain that stops


class DemoError(Exception):
    """A check failed, or something did not come in time; the message says which."""


@dataclass
class Stage:
    """The running world with everything a phase needs."""

    world: World
    desk: Desk
    faults: Faults
    loans: Loans
    service: subprocess.Popen[bytes]
    tell: Callable[[str], None]
    on_look: Callable[[], None] = lambda: None  # called with every poll

    def until(self, what: str, look: Callable[[], T | None], seconds: float = 30) -> T:
        """Poll ``look`` until it returns something.

        Raises:
            DemoError: not within ``seconds``, or the service died; ``what`` names it.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.service.poll() is not None:
                raise DemoError(f"the service stopped (exit {self.service.returncode}) while waiting for: {what}")
            with contextlib.suppress(httpx.HTTPError):
                self.on_look()
                if (found := look()) is not None:
                    return found
            time.sleep(0.25)
        raise DemoError(f"not within {seconds:g} s: {what}")

    def margin(self, label: str) -> dict[str, Any]:
        """Return an account's newest margin from the API."""
        document: dict[str, Any] = self.desk.get(f"/v1/accounts/{label}/margin")
        return document


def trader(label: str) -> Trader:
    """Return the trader called ``label``."""
    return next(t for t in TRADERS if t.label == label)


# --- the phases -------------------------------------------------------------------------------------------------------


def first_certificates(stage: Stage) -> None:
    """Wait until every chain holds a certificate."""
    stage.tell("waiting for the first certificate on all three chains")

    def posted() -> bool | None:
        states = stage.desk.get("/v1/postings")
        landed = {p["destination"] for p in states if p["state"] in ("confirmed", "final")}
        return True if _places(stage) <= landed else None

    stage.until("a certificate confirmed on alpha, beta and sol, and published", posted, 40)
    signers = stage.desk.get("/v1/epochs/latest")
    stage.tell(
        f"epoch {signers['header']['epoch']}: {len(signers['signatures'])} attestors signed, root on three chains, "
        "and as an EAS attestation on beta"
    )


def _places(stage: Stage) -> set[str]:
    """Return where certificates are to land: three registries, and the attestation service."""
    world = stage.world
    return {world.alpha.id, world.beta.id, world.sol, f"{world.beta.id}/eas"}


def borrow(stage: Stage) -> None:
    """Borrow on the chains of the controllers, within budgets and not above, and wait until the debts show."""
    for who in TRADERS:
        if who.borrow:
            _borrow(stage, who, who.controller, who.borrow)
    for who in TRADERS:
        if who.borrow:
            stage.until(f"the debt of {who.label} in its margin", partial(_owes, stage, who, who.controller))
    m = stage.margin("tightrope")
    if m["status"] != "healthy":
        raise DemoError(f"tightrope is {m['status']} after borrowing within its budget, healthy was expected")


def _borrow(stage: Stage, who: Trader, chain: str, part: float) -> None:
    amount = stage.loans.borrow(who, chain, share_of(part))
    stage.tell(f"{who.label} borrowed {amount / 1e6:,.0f} USDC on {chain}, drawn from its budget there")


def share_out(stage: Stage) -> None:
    """What one chain has lent, no other can lend again: the owner moves the rest of its budget to beta."""
    who = trader("meridian")
    for chain in ("alpha", "sol"):
        _refused(stage, who if chain == "alpha" else trader("solstice"), chain)
    before = _budgets(stage, who)
    shares = stage.desk.share(who, {"beta": 10_000})
    stage.tell(f"{who.label} signs that all of its margin is to be lent on beta: {_names(stage, shares)}")

    def moved() -> tuple[dict[str, dict[str, int]], int] | None:
        m = stage.margin(who.label)
        now, free = _budgets(stage, who, m), _dollars(m["free_before_draws"])
        if now["beta"]["budget"] > max(0, free - now["alpha"]["charge"]):
            raise DemoError(f"of {free} beta may lend {now['beta']}, though alpha is charged {now['alpha']}")
        return (now, free) if now["beta"]["budget"] > 0.95 * (free - now["alpha"]["used"]) > 0 else None

    now, free = stage.until("its budget on beta", moved, 60)
    stage.tell(
        f"beta may lend {now['beta']['budget']:,} of {free:,}, since alpha has lent {now['alpha']['used']:,} "
        f"(before, alpha might lend {before['alpha']['budget']:,} and beta nothing)"
    )
    _borrow(stage, who, "beta", 0.25)
    _refused(stage, who, "beta")
    stage.until(f"what {who.label} owes on beta in its margin", partial(_owes, stage, who, "beta"))


def _refused(stage: Stage, who: Trader, chain: str) -> None:
    """Ask for ten dollars more than is left of a budget: the lender refuses."""
    try:
        amount = stage.loans.borrow(who, chain, above(10 * 10**6))
    except LoanError as error:
        stage.tell(f"ten dollars more than {who.label}'s budget on {chain} is refused: {_first_words(str(error))}")
    else:
        raise DemoError(f"{who.label} borrowed {amount / 1e6:,.2f} USDC on {chain}, which is above its budget")


def _budgets(stage: Stage, who: Trader, margin: Mapping[str, Any] | None = None) -> dict[str, dict[str, int]]:
    """Return, by chain name, what an account may draw there, has drawn and is charged, whole dollars."""
    names = _chain_names(stage)
    return {
        names[row["destination"]]: {key: _dollars(row[key]) for key in ("budget", "used", "charge")}
        for row in (margin or stage.margin(who.label))["budgets"]
    }


def _dollars(amount: Mapping[str, Any]) -> int:
    return int(amount["exact"]) // 10**8


def _chain_names(stage: Stage) -> dict[str, str]:
    return {str(c["chain"]): str(c["name"]) for c in stage.desk.get("/v1/chains")}


def _names(stage: Stage, text: str) -> str:
    for chain, name in _chain_names(stage).items():
        text = text.replace(chain, name)
    return text


def _owes(stage: Stage, who: Trader, chain: str) -> bool | None:
    """Whether a margin knows of what was drawn on a chain."""
    return _budgets(stage, who)[chain]["used"] > 0 or None


def attestors(stage: Stage) -> None:
    """One attestor of four may die; with two dead nothing certifies, and the reason is told; then they catch up."""
    attestors = stage.world.attestors
    _signed_by(stage, 4)
    attestors.kill(3)
    stage.tell("attestor-3 is killed (SIGKILL)")
    signed = _signed_by(stage, 3)
    stage.tell(f"epoch {signed['header']['epoch']} is certified by the three others; {_reason(signed, 'attestor-3')}")
    attestors.kill(2)
    stage.tell("attestor-2 is killed too: two of four are left, three are needed")

    def uncertified() -> dict[str, Any] | None:
        newest = stage.desk.get("/v1/epochs?limit=1")["epochs"][0]
        return dict(newest) if not newest["signers"] and newest["epoch"] > signed["header"]["epoch"] else None

    stuck = stage.until("an epoch without a quorum", uncertified, 40)
    stage.tell(
        f"epoch {stuck['epoch']} is not certified: {_reason(stuck, 'attestor-2')}; {_reason(stuck, 'attestor-3')}"
    )
    stage.until("the service to call itself not ready", lambda: stage.desk.api.get("/readyz").is_error or None)
    attestors.start(2, 3)
    stage.tell("both are started again")
    back = stage.until("an epoch that all four signed", lambda: _full(stage, stuck["epoch"]), 120)
    stage.tell(f"epoch {back} is signed by all four: they caught up")


def _signed_by(stage: Stage, count: int) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        latest: dict[str, Any] = stage.desk.get("/v1/epochs/latest")
        return latest if len(latest["signatures"]) == count else None

    return stage.until(f"an epoch signed by {count}", look, 40)


def _full(stage: Stage, after: int) -> int | None:
    latest = stage.desk.get("/v1/epochs/latest")
    number = int(latest["header"]["epoch"])
    return number if number > after and len(latest["signatures"]) == 4 else None


def _reason(epoch: Mapping[str, Any], who: str) -> str:
    said = next((r["reason"] for r in epoch["refusals"] if r["attestor"] == who), "no reason on record")
    return f"{who}: {_first_words(str(said).removeprefix(f'{who}: '), 70)}"


def contracts(stage: Stage) -> None:
    """The perps and options that two accounts are in at the example venue are part of their margins."""
    for who in TRADERS:
        if who.trades:
            m = stage.until(f"the perps and options of {who.label}", partial(_trading, stage, who))
            legs = ", ".join(f"{c['contract']['text']} worth {c['value']['text']}" for c in _contracts(m))
            if min(int(m["required"][level]["exact"]) for level in ("initial", "maintenance")) <= 0:
                raise DemoError(f"{who.label} is {legs}, of which {m['required']} is required; more was expected")
            if m["status"] != "healthy":
                raise DemoError(f"{who.label} is {m['status']}, healthy was expected")
            required = f"IM {m['required']['initial']['text']}, MM {m['required']['maintenance']['text']}"
            stage.tell(f"{who.label} is {legs}; required: {required} ({m['model']}, {m['binding']})")
    _tell_offset(stage)


def _tell_offset(stage: Stage) -> None:
    """Ether in ballast's vault hedges: less is required than its contracts alone lose in the grid's largest move."""
    m = stage.margin("ballast")
    of = next(e for e in m["greeks"] if e["underlying"] == "ETH/USD")
    alone = abs(of["delta"]) * of["spot"] * of["range"]
    required = int(m["required"]["initial"]["exact"]) / 1e8
    if m["hedged"] != ["initial", "maintenance"] or not (of["hedge"] > 0 and required < alone / 2):
        raise DemoError(
            f"ballast's ether does not hedge: {required:,.0f} of {alone:,.0f} required, {m['hedged']}, {of}"
        )
    stage.tell(
        f"{of['hedge']:.2f} ETH of ballast's vault stand against delta {of['delta']:+.2f} of its contracts: "
        f"{required:,.0f} is required, while a move of {of['range']:.0%} would cost these {abs(of['delta']):.2f} ETH, "
        f"unhedged, {alone:,.0f}"
    )


def _contracts(margin: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [c for c in margin["components"] if "/contract:" in c["asset"]]


def _trading(stage: Stage, who: Trader) -> dict[str, Any] | None:
    """Return a margin that has every position of a trader at the venue, and its collateral there."""
    m = stage.margin(who.label)
    wanted = sorted(("asset" if size > 0 else "debt", abs(size)) for _, size in who.trades)
    found = sorted((c["side"], int(c["quantity"])) for c in _contracts(m))
    cash = [c for c in m["components"] if c["venue"] == "margin-venue" and "/contract:" not in c["asset"]]
    return m if found == wanted and len(cash) == len(who.collateral) else None


def shock(stage: Stage) -> None:
    """Prices fall 15%; the account near liquidation turns unhealthy, the others do not."""
    before = stage.margin("tightrope")["health"]["low"]
    calm = {label: stage.margin(label) for label in ("ballast", "squall")}
    stage.world.shock("0.85", ["ETH/USD", "BTC/USD", "SOL/USD"])
    stage.tell("prices of ETH, BTC and SOL fall 15%")
    stage.until("tightrope unhealthy", lambda: stage.margin("tightrope")["status"] == "unhealthy" or None)
    after = stage.margin("tightrope")["health"]["low"]
    stage.tell(f"tightrope is unhealthy: health {before:.3f} → {after:.3f}")
    for label in ("meridian", "harbor", "solstice"):
        if (status := stage.margin(label)["status"]) != "healthy":
            raise DemoError(f"{label} is {status} after the shock, healthy was expected")
    _check_hedge(stage, calm["ballast"])
    _check_loss(stage, calm["squall"])


def _value(margin: Mapping[str, Any], venue: str, kind: str) -> float:
    """Return what an account's components of a venue and a kind (the end of their symbol) are worth, USD."""
    legs = (c for c in margin["components"] if c["venue"] == venue and c["symbol"].endswith(kind))
    return sum(int(c["value"]["exact"]) for c in legs) / 1e8


HEDGE = {"vault": ("vault", "WETH"), "wallet": ("wallet", "ETH"), "perp": ("margin-venue", "perp")}
HEDGE |= {"puts": ("margin-venue", "put"), "cash": ("margin-venue", "USDC")}
"""All that ballast has: venue and end of the symbol."""


def _check_hedge(stage: Stage, calm: Mapping[str, Any]) -> None:
    """What the vault's ether loses, the short perp and the puts make good for the most part."""

    def fallen() -> dict[str, Any] | None:
        m = stage.margin("ballast")
        return m if all(_value(m, *HEDGE[x]) < 0.88 * _value(calm, *HEDGE[x]) for x in ("vault", "wallet")) else None

    now = stage.until("ballast's ether down with all of its prices", fallen)
    moved = {name: _value(now, *of) - _value(calm, *of) for name, of in HEDGE.items()}
    equity, free = (
        (int(now[name]["exact"]) - int(calm[name]["exact"])) / 1e8 for name in ("equity", "free_collateral")
    )
    ether = moved["vault"] + moved["wallet"]
    if not (moved["vault"] < 0 < min(moved["perp"], moved["puts"]) and 0.6 * ether < equity < 0):
        raise DemoError(f"ballast's holdings moved {moved}, equity {equity:,.0f}: its ether is not hedged")
    if abs(sum(moved.values()) - equity) > 1:
        raise DemoError(f"ballast's holdings moved {moved}, which does not add up to equity {equity:,.2f}")
    stage.tell(
        f"ballast is hedged: its vault {moved['vault']:+,.0f}, the wallet's ether {moved['wallet']:+,.0f}, "
        f"the perp {moved['perp']:+,.0f}, the puts {moved['puts']:+,.0f}, cash {moved['cash']:+,.0f}: "
        f"equity {equity:+,.0f}; free collateral {free:+,.0f}"
    )


def _check_loss(stage: Stage, calm: Mapping[str, Any]) -> None:
    """A long inverse perp loses; calls that were sold cost less to buy back."""
    now = stage.margin("squall")
    perp, calls = (_value(now, "margin-venue", k) - _value(calm, "margin-venue", k) for k in ("inverse", "call"))
    if not perp < 0 < calls:
        raise DemoError(f"squall: perp {perp:,.0f}, sold calls {calls:,.0f}; a loss and a gain were expected")
    stage.tell(f"squall's inverse perp loses {-perp:,.0f}, its sold calls gain {calls:,.0f}")


def halt(stage: Stage) -> None:
    """Stop beta: what depends on it ages, loses budget, then is flagged stale; the others go on."""
    leg = _legs(stage, "meridian", "beta")
    start_haircut, start_horizon = leg["initial"]["market"], leg["horizon"]
    epoch_before = stage.desk.get("/v1/epochs/latest")["header"]["epoch"]
    stage.world.beta.node.pause()
    stage.tell("beta stops producing blocks")

    def aged() -> dict[str, Any] | None:
        now = _legs(stage, "meridian", "beta")
        return now if now["horizon"] > start_horizon and now["initial"]["market"] > start_haircut else None

    older = stage.until("a longer horizon and a larger haircut on beta's leg", aged)
    stage.tell(
        f"beta's leg of meridian ages: horizon {start_horizon:.0f} → {older['horizon']:.0f} s, "
        f"market haircut at IM {start_haircut:.4%} → {older['initial']['market']:.4%}"
    )
    for label in DEPENDENTS:
        stage.until(f"{label} stale", partial(_stale, stage, label), 45)
        m = stage.margin(label)
        if m["freshness"]["usable"]["exact"] != "0" or "stale" not in m["flags"]:
            raise DemoError(f"{label} is stale but shows flags {m['flags']} and usable {m['freshness']['usable']}")
    stage.tell("meridian and tightrope are flagged stale: usable budget 0")
    for label in OTHERS:
        m = stage.margin(label)
        if m["freshness"]["stale"] or "stale" in m["flags"]:
            raise DemoError(f"{label} does not depend on beta but is flagged stale")

    def others_move() -> bool | None:
        rows = stage.desk.get("/v1/postings")
        new = {r["destination"] for r in rows if r["epoch"] > epoch_before + 3 and r["state"] in ("confirmed", "final")}
        return {stage.world.alpha.id, stage.world.sol} <= new or None

    stage.until("alpha and sol still receiving certificates", others_move)
    stage.tell("harbor and solstice go on; alpha and sol keep receiving certificates")


def _legs(stage: Stage, label: str, chain: str) -> dict[str, Any]:
    for c in stage.margin(label)["components"]:
        if c["chain_name"] == chain and c["venue"] == "vault":
            return dict(c)
    raise DemoError(f"{label} shows no vault position on {chain}")


def recover(stage: Stage) -> None:
    """Beta returns: flags go, certificates land there again."""
    held = stage.desk.posted_epoch(stage.world.beta)
    stage.world.beta.node.resume()
    stage.tell("beta returns")
    for label in DEPENDENTS:
        stage.until(f"{label} fresh", partial(_fresh, stage, label), 45)
    stage.until("a new certificate on beta", lambda: stage.desk.posted_epoch(stage.world.beta) > held or None, 45)
    stage.tell("the stale flags are gone and beta receives certificates again")


def _stale(stage: Stage, label: str) -> bool | None:
    return stage.margin(label)["freshness"]["stale"] or None


def _fresh(stage: Stage, label: str) -> bool | None:
    m = stage.margin(label)
    return True if not m["freshness"]["stale"] and "stale" not in m["flags"] else None


def lie(stage: Stage) -> None:
    """One provider of alpha lies: nothing changes but a record of who said what."""
    before, liar = _holdings(stage, "harbor"), "alpha[2]"
    stage.faults.turn("lying", True, "alpha", 2)
    stage.tell(f"{liar} lies: it multiplies every amount by ten")
    stage.until(f"a dispute with {liar}", lambda: _disputes(stage, liar) or None)
    epoch = stage.desk.get("/v1/epochs/latest")["header"]["epoch"]
    stage.until("two more epochs", lambda: _epoch_after(stage, epoch + 1))
    if (after := _holdings(stage, "harbor")) != before:
        raise DemoError(f"harbor shows {after} while {liar} lies, {before} was expected")
    stage.tell(f"nothing changes but the record of it: {_disputes(stage, liar)} disputes with {liar}")
    stage.faults.turn("lying", False, "alpha")


def darken(stage: Stage) -> None:
    """Two of three providers of alpha die: the chain goes dark and counts 0; what does not depend on it goes on."""
    for provider in (1, 2):
        stage.faults.turn("dead", True, "alpha", provider)
    stage.tell("two of three providers of alpha die: too few are left to agree")
    dark = stage.until("alpha dark", partial(_dark, stage, "alpha"), 45)
    stage.tell(f"alpha is {dark['status']}: {_first_words(dark['cause'])}")
    stage.until("harbor stale", partial(_stale, stage, "harbor"))
    if (m := stage.margin("solstice"))["freshness"]["stale"]:
        raise DemoError(f"solstice does not depend on alpha but is flagged {m['flags']}")
    epoch = stage.desk.get("/v1/epochs/latest")["header"]["epoch"]
    stage.until("an epoch certified meanwhile", lambda: _epoch_after(stage, epoch))
    stage.tell("harbor is stale, solstice goes on, and so do the epochs")
    stage.faults.turn("dead", False, "alpha")
    stage.until("alpha read again", lambda: _chain(stage, "alpha")["status"] == "ok" or None, 60)
    stage.until("harbor fresh", partial(_fresh, stage, "harbor"))
    stage.tell("both providers are back and alpha is read again")


def reorganise(stage: Stage) -> None:
    """Certified blocks of alpha are replaced: what was certified on them is void below a new floor."""
    floor = stage.desk.get("/v1/epochs/latest")["header"]["floor"]
    outcome = stage.faults.turn("reorg", True, "alpha")
    stage.tell(outcome.did)

    def superseded() -> dict[str, Any] | None:
        latest: dict[str, Any] = stage.desk.get("/v1/epochs/latest")
        return latest if latest["header"]["floor"] > floor else None

    raised = stage.until("a higher floor", superseded)["header"]["floor"]
    why = ", ".join(
        f"block {r['height']} of {r['name']} was {r['was'][:10]}… and is {r['now'][:10]}…"
        for r in stage.desk.get(f"/v1/epochs/{raised}")["reorgs"]
    )
    stage.tell(f"statements below epoch {raised} are void: {why}")
    stage.until(
        "a certificate above the floor on alpha", lambda: stage.desk.posted_epoch(stage.world.alpha) >= raised or None
    )
    stage.tell("alpha holds a certificate above the floor")


def _chain(stage: Stage, name: str) -> dict[str, Any]:
    return next(dict(c) for c in stage.desk.get("/v1/chains") if c["name"] == name)


def _dark(stage: Stage, name: str) -> dict[str, Any] | None:
    chain = _chain(stage, name)
    return chain if chain["status"] != "ok" and chain["cause"].startswith(DARK) else None


def _epoch_after(stage: Stage, epoch: int) -> bool | None:
    return stage.desk.get("/v1/epochs/latest")["header"]["epoch"] > epoch or None


def _holdings(stage: Stage, label: str) -> list[tuple[str, str, str]]:
    """Return what an account holds and owes, in base units."""
    return sorted((c["asset"], c["side"], c["quantity"]) for c in stage.margin(label)["components"])


def _disputes(stage: Stage, provider: str) -> int:
    """Return how many disputes with a provider the service has counted."""
    lines = stage.desk.api.get("/metrics").text.splitlines()
    named = f'provider="{provider}"'
    return sum(
        int(float(line.split()[-1]))
        for line in lines
        if line.startswith("crossmargin_disputes_total{") and named in line
    )


def _first_words(cause: str, limit: int = 110) -> str:
    return cause if len(cause) <= limit else cause[:limit].rpartition(" ")[0] + " …"


PHASES = (
    first_certificates,
    borrow,
    share_out,
    attestors,
    contracts,
    shock,
    halt,
    recover,
    lie,
    darken,
    reorganise,
)


# --- checks of the single run -----------------------------------------------------------------------------------------


def check_roots(stage: Stage) -> None:
    """The newest root on each chain is the one stored by the service for its epoch."""
    names, held = _chain_names(stage), []
    for chain, posted in asyncio.run(_newest_roots(load_settings(stage.world.config))).items():
        ours = stage.desk.get(f"/v1/epochs/{posted.epoch}")["header"]["root"]
        if "0x" + posted.root.hex() != ours:
            raise DemoError(f"epoch {posted.epoch}: {names[chain]} stores another root than the service")
        held.append(f"{names[chain]} {posted.epoch}")
    stage.tell(f"the newest root on every chain is the service's own (epochs: {', '.join(held)})")


async def _newest_roots(settings: Settings) -> dict[str, PostedRoot]:
    async with destinations_of(settings) as destinations:
        found = {chain: await destination.read_latest() for chain, destination in destinations.items()}
    missing = [chain for chain, posted in found.items() if posted is None]
    if missing:
        raise DemoError(f"nothing is posted on {', '.join(missing)}")
    return {chain: posted for chain, posted in found.items() if posted is not None}


def check_bundle(stage: Stage) -> None:
    """An exported bundle verifies, with the commands a person would use."""
    bundle = stage.world.folder / "meridian.bundle.json"
    command = [sys.executable, "-m", "aggregator"]
    config = ["--config", str(stage.world.config)]
    for arguments in (
        ["export", "meridian", "-o", str(bundle), *config],
        ["verify", str(bundle), "--deployment", "0x" + stage.world.deployment.deployment_id().hex(), "--json"],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise DemoError(f"crossmargin {arguments[0]} exited {done.returncode}: {done.stderr or done.stdout}")
    steps = {s["step"]: s["outcome"] for s in json.loads(done.stdout)}
    for number in (1, 2, 3, 6):
        if steps[number] != "pass":
            raise DemoError(f"step {number} of the exported bundle is {steps[number]!r}")
    stage.tell(f"an exported bundle ({bundle.stat().st_size:,} bytes) verifies: steps 1, 2, 3 and 6 pass")
