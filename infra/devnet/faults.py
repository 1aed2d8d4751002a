"""What can go wrong in a running demo on demand: by name, what is done, and what to look at then."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

from infra.devnet.anvil import AnvilError
from infra.devnet.control import FaultError, Outcome
from infra.devnet.providers.process import Mode, ProviderError
from infra.devnet.svm.process import SvmServerError
from infra.devnet.world import SOL_FINALIZED, EvmChain, World

Kind = Literal["provider", "chain", "world"]
PROVIDER = 2  # by default; the service posts through provider 0
SOL_REORG = SOL_FINALIZED - 1


@dataclass(frozen=True)
class Fault:
    """One fault. ``kind`` says what it concerns: one provider of a chain, a chain, or the whole devnet.

    chains: where it can happen; the first one is the default. look: where it shows; {page} and {chain} are filled in.
    once: it happens and is over; there is nothing to turn off. mode: what a provider becomes. guide: page of docs.
    """

    name: str
    kind: Kind
    about: str
    guide: str
    look: tuple[str, ...]
    chains: tuple[str, ...] = ("alpha", "beta", "sol")
    once: bool = False
    mode: Mode = "pass"


CHAINS = "the table of chains on {page}/, or `crossmargin chains`: state and cause of {chain}"
DISPUTES = "`crossmargin disputes`: who said what, signed; metric crossmargin_disputes_total on {page}/metrics"
CHECK = "`crossmargin check`: probes each provider of {chain} and names the one that fails"
MARGIN = "`crossmargin margin meridian`: status, flags and usable budget of an account that depends on {chain}"
CARRIED = "{page}/v1/epochs/latest: `carried`, the accounts whose change may show late; in {page}/metrics as well"
EPOCHS = "`crossmargin epochs`: one epoch has `raised` its floor, and below the table why; so has {page}/v1/epochs"
POSTINGS = "{page}/v1/postings: state and detail of what goes to {chain}"


def _provider(
    mode: Mode, about: str, guide: str, *look: str, chains: tuple[str, ...] = ("alpha", "beta", "sol")
) -> Fault:
    return Fault(mode, "provider", about, guide, look, chains, mode=mode)


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        _provider("lying", "multiplies every amount by ten", "lying-provider.md", DISPUTES, CHAINS),
        _provider("dead", "closes every connection", "unreachable-provider.md", CHECK, CHAINS),
        _provider("slow", "never answers", "unreachable-provider.md", CHECK, CHAINS),
        _provider("slow-loris", "answers a byte at a time", "unreachable-provider.md", CHECK, CHAINS),
        _provider("429", "refuses: too many requests", "unreachable-provider.md", CHECK, CHAINS),
        _provider("500", "fails with an internal error", "unreachable-provider.md", CHECK, CHAINS),
        _provider("stale", "stays at the block of this moment", "stale-provider.md", CHECK, CHAINS),
        _provider("future", "gives blocks the time of an hour later", "stale-provider.md", DISPUTES, CHECK, CHAINS),
        _provider("wrong-chain", "is a node of another chain", "wrong-chain.md", CHECK, CHAINS),
        _provider("garbage", "answers what is no JSON-RPC", "garbage.md", CHECK, CHAINS),
        _provider("gzip-bomb", "answers 256 MiB, packed into a quarter of one", "garbage.md", CHECK, CHAINS),
        _provider("wrong-id", "answers under another request's id", "garbage.md", CHECK, CHAINS),
        _provider("truncated-logs", "leaves out logs and tells of none", "truncated-logs.md", CARRIED, MARGIN),
        # A spoilt proof proves nothing, not even a lie: no dispute.
        _provider("bad-proof", "spoils every state proof", "proof-contradiction.md", CHECK, chains=("alpha", "beta")),
        Fault(
            "reorg",
            "chain",
            "replaces certified blocks, no irreversible one; on sol, slots that are not finalized",
            "reorg-above-finality.md",
            (EPOCHS, CHAINS, POSTINGS),
            once=True,
        ),
        Fault(
            "deep-reorg",
            "chain",
            "replaces irreversible blocks",
            "reorg-below-finality.md",
            (CHAINS, "`crossmargin chains resume {chain} --reason …` ends the halt", MARGIN),
            ("alpha", "beta"),
            once=True,
        ),
        Fault("halt", "chain", "stops making blocks", "halted-chain.md", (CHAINS, MARGIN), ("beta", "alpha", "sol")),
        Fault(
            "sequencer",
            "chain",
            "has its uptime feed say that the sequencer is down",
            "sequencer-down.md",
            (CHAINS, MARGIN),
            ("beta",),
        ),
        Fault(
            "unfunded",
            "chain",
            "takes all money from the account that pays for postings",
            "destination-unreachable.md",
            (POSTINGS, "metric crossmargin_postings_total on {page}/metrics"),
        ),
        Fault(
            "prices",
            "world",
            "silences the price publisher, and with it the feeds on the chains",
            "publisher-silent.md",
            ("{page}/v1/prices: bands, and how many sources are present", MARGIN),
            (),
        ),
    )
}


class Faults:
    """Turns faults of one devnet on and off; may be used from several threads."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._active: dict[str, set[str]] = {}  # world and chain faults: names of chains, "" for the world
        self._lock = threading.Lock()

    def turn(self, name: str, on: bool, chain: str | None = None, provider: int | str | None = None) -> Outcome:
        """Turn a fault on or off.

        Args:
            chain: its name; None for the fault's default.
            provider: index, "all", or None for the default.

        Raises:
            FaultError: unknown name or chain, or it cannot be done.
        """
        fault = FAULTS.get(name)
        if fault is None:
            raise FaultError(f"no fault is called {name!r}; known: {', '.join(FAULTS)}")
        where = self._verify_chain(fault, chain)
        if provider is not None and fault.kind != "provider":
            raise FaultError(f"{name} does not concern a provider: leave --provider out")
        if fault.once and not on:
            raise FaultError(f"{name} happens once and is over at once: there is nothing to turn off")
        with self._lock:
            try:
                did = self._do(fault, on, where, provider)
            except (AnvilError, SvmServerError, ProviderError, OSError) as error:
                raise FaultError(f"{name}: {error}") from None
        look = tuple(line.format(page=self._world.url, chain=where) for line in fault.look)
        return Outcome(did, look if on else look[:1], f"docs/operators/{fault.guide}")

    def state(self) -> list[dict[str, Any]]:
        """Return every fault with what it does, where it can be, and where it is on: ``alpha[2]``, ``beta``, ``*``."""
        modes = self._world.providers.modes()
        rows = []
        for fault in FAULTS.values():
            on = sorted(place or "*" for place in self._active.get(fault.name, ()))
            if fault.kind == "provider":
                on = [f"{chain}[{i}]" for chain, each in modes.items() for i, m in enumerate(each) if m == fault.mode]
            rows.append(
                {
                    "name": fault.name,
                    "kind": fault.kind,
                    "about": fault.about,
                    "chains": list(fault.chains),
                    "once": fault.once,
                    "on": on,
                    "guide": f"docs/operators/{fault.guide}",
                }
            )
        return rows

    @staticmethod
    def _verify_chain(fault: Fault, chain: str | None) -> str:
        if chain is None:
            return fault.chains[0] if fault.chains else ""
        if not fault.chains:
            raise FaultError(f"{fault.name} concerns the whole devnet: leave --chain out")
        known = ("alpha", "beta", "sol")
        if chain not in known:
            raise FaultError(f"no chain is called {chain!r}; known: {', '.join(known)}")
        if chain == "sol" and fault.name == "deep-reorg":
            problem = "finalized slots of Solana are never replaced, so there is no deep-reorg on sol"
            raise FaultError(f"{problem}; `reorg --chain sol` replaces those that are not finalized")
        if chain not in fault.chains:
            raise FaultError(f"{fault.name} cannot happen on {chain}, only on {', '.join(fault.chains)}")
        return chain

    def _do(self, fault: Fault, on: bool, chain: str, provider: int | str | None) -> str:
        if fault.kind == "provider":
            return self._turn_provider(fault, on, chain, provider)
        if fault.name in ("reorg", "deep-reorg"):
            return self._reorganise(fault, chain)
        active = self._active.setdefault(fault.name, set())
        match fault.name:
            case "halt":
                did = self._halt(chain, on)
            case "sequencer":
                self._world.set_sequencer(self._evm(chain), up=not on)
                did = f"from its next block on, the uptime feed of {chain} says that its sequencer is "
                did += "down" if on else "up again; for the grace period it stays frozen"
            case "unfunded":
                self._world.fund_payer(chain, not on)
                did = f"the account that pays for postings on {chain} has {'nothing left' if on else 'money again'}"
            case _:
                self._world.silence_prices(on)
                did = f"the price publisher and the feeds on the chains {'are silent' if on else 'go on'}"
        (active.add if on else active.discard)(chain)
        return did

    def _turn_provider(self, fault: Fault, on: bool, chain: str, provider: int | str | None) -> str:
        who = PROVIDER if provider is None else provider
        index = None if who == "all" else who
        if isinstance(index, str):
            raise FaultError(f'provider: {who!r} given, a number or "all" expected')
        if not on:
            now = self._world.providers.modes()[chain]
            if provider is None:  # whoever has this fault
                for i, mode in enumerate(now):
                    if mode == fault.mode:
                        self._world.providers.turn(chain, i, "pass")
                return f"no provider of {chain} is {fault.name} any more"
            self._world.providers.turn(chain, index, "pass")
            return f"{_named(chain, index)} honest again"
        self._world.providers.turn(chain, index, fault.mode)
        return f"{_named(chain, index)} {fault.name}: {fault.about}"

    def _halt(self, chain: str, on: bool) -> str:
        if chain == "sol":
            self._world.svm.call("x_pause" if on else "x_resume")
        else:
            node = self._evm(chain).node
            (node.pause if on else node.resume)()
        return f"{chain} {'makes no more blocks' if on else 'makes blocks again'}"

    def _reorganise(self, fault: Fault, chain: str) -> str:
        if chain == "sol":
            gone = self._world.svm.call("x_reorg", SOL_REORG)["dropped"]
            return (
                f"the newest {SOL_REORG} slots of sol were replaced and {len(gone)} transactions undone; none of them "
                "was finalized, so nothing that the service reads has changed: it posts again what was lost"
            )
        c = self._evm(chain)
        depth = c.reorg if fault.name == "reorg" else c.deep_reorg
        head = int(c.node.rpc("eth_blockNumber"), 16)
        if (missing := depth - (head - c.ready_height)) > 0:
            wait = missing * c.block_seconds
            raise FaultError(f"{fault.name} would undo the set-up of {chain}: try again in {wait} s")
        c.node.reorganise(depth)
        kept = f"{'no' if fault.name == 'reorg' else 'an'} irreversible block is among them"
        return (
            f"blocks {head - depth + 1} to {head} of {chain} were replaced at {time.strftime('%H:%M:%S')}, their "
            f"transactions are gone; {kept} ({c.depth} blocks are final, {c.irreversible} irreversible)"
        )

    def _evm(self, chain: str) -> EvmChain:
        return next(c for c in self._world.chains if c.name == chain)


def _named(chain: str, provider: int | None) -> str:
    return f"every provider of {chain} is" if provider is None else f"{chain}[{provider}] is"
