"""Composition root: the only module that names adapters and the store.

What builds a part imports it: a command that only reads the store does not wait for readers of chains to load.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import gc
import secrets
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from adapters.members import MEMBER_UNVERIFIED
from aggregator.config import Settings
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import EpochRecord, Posting
from aggregator.domain.errors import ConfigError, CrossmarginError, InputError, SourceError, Unreachable
from aggregator.domain.latency import LatencyReport, LatencyTables, Leg
from aggregator.domain.price import Quote
from aggregator.domain.rows import (
    AssetRow,
    AttestorRow,
    ChainRow,
    DestinationRow,
    OwnAttestorRow,
    PublicationRow,
    PythRow,
    VenueRow,
)
from aggregator.domain.snapshot import ChainView, Finding, Reading, Subject
from aggregator.ports import ChainReader, Destination, Halts, PriceSource, Record, Signer, Store, Watcher
from aggregator.store.halts import SqlHalts
from aggregator.store.latencies import SqlLatencies
from aggregator.store.sql import SqlStore as SqlStore
from proofs.statement import DEVNET, Deployment

if TYPE_CHECKING:
    import uvicorn

    from adapters.approvals import FileApprovals
    from adapters.disputes import Dispute, DisputeLog, Entry
    from adapters.evm.reader import EvmAdapter
    from adapters.grants import SqliteGrants
    from adapters.keys import KeyFile as KeyFile
    from adapters.keys import KeySigner, Role
    from adapters.solana.reader import SolanaAdapter
    from adapters.watermark import SqliteWatermark
    from aggregator.core.tables import World
    from aggregator.service.accounts import Witness
    from aggregator.service.attest import Attesting, Proposal, Rules
    from aggregator.service.collect import Observer
    from aggregator.service.committed import Committed
    from aggregator.service.cycle import Cycle
    from aggregator.service.envelope import Kind
    from aggregator.service.latency import LatencyMeter
    from aggregator.service.node import DocumentSigner, Node, Peers
    from aggregator.service.relayer import Relayer
    from aggregator.service.remote import AttestorClient, Fences
    from aggregator.service.rotation import RotationRules
    from aggregator.service.workbench import Computed, Workbench

DISPUTES, EVIDENCE_KEY = "disputes.jsonl", "evidence"
"""In the data folder: the log of disputes, and the name of the key that signs it."""
FREE_BYTES = 1 << 30
"""At least to be free in the data folder: what is kept of epochs grows."""
WIRE_CONNECTIONS = 256
"""Connections that an attestor, or the coordinator's door for attestors, has open at a time, whoever makes them."""
_DISPUTE_LOGS: dict[Path, DisputeLog] = {}
"""By file: parties of one process see the same lies, which one log can tell."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep ``seconds``."""
        await asyncio.sleep(seconds)


def tune_collector() -> None:
    """Let the garbage collector look less often, and never again at what was loaded until now.

    An epoch makes hundreds of thousands of small tuples that hold no cycles; looking through all of them for cycles,
    over and over while they are made, takes a fifth of the time of reading them (``make bench``).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def deployment_of(settings: Settings) -> Deployment:
    """Return the deployment whose id every signature is salted with.

    Raises:
        ConfigError: the parts do not make a deployment; the message names the field.
    """
    row = settings.deployment
    try:
        return Deployment(
            row.network_class,
            tuple(bytes.fromhex(m.removeprefix("0x")) for m in row.members),
            row.threshold,
            row.not_after,
            bytes.fromhex(row.salt[2:]),
        )
    except ValueError as error:
        raise ConfigError("configuration", "deployment", str(error)) from None


def world_of(settings: Settings) -> World:
    """Return what valuation depends on besides what was seen."""
    from aggregator.core.tables import World

    return World(
        chains=tuple(sorted(settings.chains, key=lambda c: c.id)),
        assets={a.id: a for a in settings.assets},
        sources=settings.sources,
        destinations=settings.destinations,
        policy=settings.policy,
        ratios=settings.ratios,
    )


def passphrase_of(settings: Settings) -> str:
    """Return the passphrase of the key files.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return Path(settings.service.passphrase_file).read_text("utf-8").strip()
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise ConfigError("configuration", "service.passphrase_file", reason, '"/etc/crossmargin/passphrase"') from None


def key_path(settings: Settings, name: str) -> Path:
    """Return where the key file called ``name`` lies."""
    return Path(settings.service.data) / "keys" / f"{name}.json"


def evidence_signer(settings: Settings) -> KeySigner:
    """Return the key that signs disputes, made at its first use; it signs nothing else.

    Raises:
        ConfigError: an attestor or a payer is configured to use this key. InputError: its file cannot be used.
    """
    own, service = settings.attestor, settings.service
    used = {*service.attestor_keys, service.wire_key, *(d.payer_key for d in settings.destinations)}
    used |= {own.key, own.wire_key} if own else set()
    if EVIDENCE_KEY in used:
        problem = f"{EVIDENCE_KEY!r} is the key that signs disputes; an attestor or payer needs one of its own"
        raise ConfigError("configuration", "service.attestor_keys, destinations.payer_key", problem, '"attestor-0"')
    return _evidence_signer(key_path(settings, EVIDENCE_KEY), passphrase_of(settings))


@functools.cache  # decrypting takes a third of a second, and every reader of the process signs with it
def _evidence_signer(path: Path, passphrase: str) -> KeySigner:
    from adapters.keys import create_key, load_key

    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_key(path, passphrase, role="evidence")
    return load_key(path, passphrase, role="evidence")


def list_disputes(settings: Settings) -> list[Entry]:
    """Return what providers were found to dispute, newest first, each with what is wrong with its line, if anything.

    Raises:
        InputError: the log or the key file cannot be read.
    """
    from adapters.disputes import read_disputes
    from adapters.keys import show_key

    path, key = Path(settings.service.data) / DISPUTES, key_path(settings, EVIDENCE_KEY)
    try:
        return read_disputes(path, show_key(key) if key.exists() else None)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}", "check its owner") from None


def store_url(settings: Settings) -> str:
    """Return the database URL of the embedded store; its folder is made if need be."""
    path = _store_path(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite+aiosqlite:///{path}"


def has_store(settings: Settings) -> bool:
    """Say whether anything is kept yet. Commands that only read make no store where there is none."""
    return _store_path(settings).is_file()


def _store_path(settings: Settings) -> Path:
    return Path(settings.service.data).resolve() / "crossmargin.sqlite3"


async def open_store(settings: Settings) -> SqlStore:
    """Open the store, bringing its schema up to date."""
    return await SqlStore.open(store_url(settings))


def open_latencies(store: SqlStore) -> SqlLatencies:
    """Return the measured legs that ``store`` keeps."""
    return SqlLatencies(store)


async def measured_latency(
    settings: Settings, store: SqlStore, seconds: int, chain: str | None = None, leg: Leg | None = None
) -> LatencyReport:
    """Return what was measured of the legs in the last ``seconds``, and the laws that count because of it.

    Raises:
        UnknownError: names ``chain``.
    """
    from aggregator.service.latency import report_latency

    return await report_latency(
        SqlLatencies(store),
        settings.chains,
        settings.destinations,
        now=time.time(),
        epsilon=settings.policy.exit_epsilon,
        seconds=seconds,
        chain=chain,
        leg=leg,
    )


def open_halts(store: SqlStore) -> SqlHalts:
    """Return the log of halted chains in an open store."""
    return SqlHalts(store)


def _required(venue: VenueRow, name: str) -> str:
    if name not in venue.addresses:
        raise ConfigError(
            "configuration", f"venues ({venue.kind} on {venue.chain}).addresses.{name}", "is missing", '"0x…"'
        )
    return venue.addresses[name]


def _evm_adapter(row: ChainRow, venue: VenueRow, assets: dict[str, AssetRow], deployment_id: bytes) -> EvmAdapter:
    from adapters.evm.aave_v3 import AaveV3
    from adapters.evm.lender import Lender
    from adapters.evm.margin_venue import MarginVenue
    from adapters.evm.vault import Vault
    from adapters.evm.wallet import Wallet

    match venue.kind:
        case "wallet":
            return Wallet(row.id, assets, row.multicall)
        case "vault":
            return Vault(row.id, _required(venue, "vault"), assets, deployment_id)
        case "lender":
            return Lender(row.id, _required(venue, "lender"), assets)
        case "aave-v3":
            return AaveV3(row.id, _required(venue, "pool"), _required(venue, "data_provider"), assets)
        case "margin-venue":
            return MarginVenue(row.id, _required(venue, "venue"), assets)
        case _:
            known = "wallet, vault, lender, aave-v3, margin-venue"
            raise ConfigError("configuration", "venues.kind", f"no EVM adapter is called {venue.kind!r}", known)


def dispute_log(settings: Settings) -> DisputeLog:
    """Return the log of disputes that every reader of this process writes to."""
    import structlog

    from adapters.disputes import DisputeFile, DisputeLog

    path = Path(settings.service.data).resolve() / DISPUTES

    def failed(seen: Dispute, error: Exception) -> None:  # metric and line tell of what the file does not
        structlog.get_logger().error("dispute not recorded", provider=seen.provider, reason=str(error))

    if path not in _DISPUTE_LOGS:
        _DISPUTE_LOGS[path] = DisputeLog(DisputeFile(path, functools.partial(evidence_signer, settings)), failed)
    return _DISPUTE_LOGS[path]


def build_reader(settings: Settings, row: ChainRow, party: str = "") -> ChainReader:
    """Return a reader of one chain with all its configured venues; a missing adapter stops start-up.

    Several providers in ``rpc`` make a quorum. What they dispute, and where one's own state proof gives it the lie,
    goes, signed, to ``<data>/disputes.jsonl`` and to a metric; ``party`` is named there as who saw it.
    """
    from adapters.quorum import QuorumReader

    parent = _build_parent(settings, row, party)
    readers = [_build_provider(settings, row, url, parent) for url in row.rpc]
    if len(readers) == 1 and not row.prove:
        return readers[0]
    log = dispute_log(settings)

    def dispute(seen: Dispute) -> None:
        from aggregator.service import telemetry

        telemetry.DISPUTES.labels(row.id, seen.provider).inc()
        log.note(replace(seen, party=party))

    return QuorumReader(row, readers, [f"{row.name}[{i}]" for i in range(len(readers))], row.quorum, dispute)


def _build_parent(settings: Settings, row: ChainRow, party: str) -> ChainReader | None:
    """Return a reader of the headers of the L1 that ``row``'s finality rests on, with the quorum of that chain."""
    parent = settings.chain(row.finality.l1 or row.irreversible.l1 or "")
    if parent is None:
        return None
    headers_alone = settings.model_copy(update={"venues": (), "sources": (), "assets": (), "destinations": ()})
    return build_reader(headers_alone, parent, party)


def _build_provider(settings: Settings, row: ChainRow, url: SecretStr, parent: ChainReader | None) -> ChainReader:
    from adapters.rpc import EvmEndpoint, SolanaEndpoint

    assets = {a.id: a for a in settings.assets if a.id.startswith(f"{row.id}/")}
    venues = [v for v in settings.venues if v.chain == row.id]
    # Read wherever there is one: what was drawn there is owed, and no configuration may leave it out.
    registries = [d.address for d in settings.destinations if d.chain == row.id]
    if row.family == "evm":
        from adapters.evm.reader import EvmReader
        from adapters.evm.registry import Registry

        deployment_id = deployment_of(settings).deployment_id()
        adapters = [_evm_adapter(row, venue, assets, deployment_id) for venue in venues]
        adapters += [Registry(row.id, address, settings.service.epoch_seconds) for address in registries]
        feeds = [s for s in settings.sources if s.kind == "chainlink" and s.id.startswith(f"{row.id}:")]
        return EvmReader(
            row,
            EvmEndpoint(row, url),
            adapters,
            feeds,
            list(assets.values()),
            parent=parent,
            secret=secrets.token_bytes(32),
        )
    from adapters.solana.members import Members
    from adapters.solana.native import NativeWallet
    from adapters.solana.reader import SolanaReader
    from adapters.solana.registry import Registry as SolanaRegistry
    from adapters.solana.spl_token import SplTokenWallet
    from adapters.solana.vault import CollateralVault as SolanaVault

    period = settings.service.epoch_seconds
    solana: list[SolanaAdapter] = [SolanaRegistry(row.id, address, period) for address in registries]
    members = Members(None)
    for venue in venues:
        match venue.kind:
            case "wallet":
                solana += [NativeWallet(row.id, assets), SplTokenWallet(row.id, assets)]
            case "vault":
                place, ours = _required(venue, "vault"), next(iter(registries), None)
                solana.append(SolanaVault(row.id, _required(venue, "program"), place, assets, ours))
            case "links":
                members = Members(_required(venue, "program"))
            case _:
                known = "wallet, vault, links"
                raise ConfigError("configuration", "venues.kind", f"no Solana adapter is called {venue.kind!r}", known)
    return SolanaReader(row, SolanaEndpoint(row, url), solana, members)


def build_watchers(settings: Settings) -> dict[str, Watcher]:
    """Return a listener per chain that has websockets; what it misses costs freshness, so one at a time is enough."""
    from adapters.evm.watch import EvmWatcher
    from adapters.solana.watch import SolanaWatcher
    from adapters.ws import WsEndpoint

    watchers: dict[str, Watcher] = {}
    for row in settings.chains:
        if not row.ws:
            continue
        venues = [v for v in settings.venues if v.chain == row.id]
        tokens = [
            a.id.rpartition(":")[2] for a in settings.assets if a.id.startswith(f"{row.id}/") and a.kind != "native"
        ]
        here = [d for d in settings.destinations if d.chain == row.id]
        if row.family == "evm":
            contracts = [address for v in venues for address in v.addresses.values()] + [d.address for d in here]
            watchers[row.id] = EvmWatcher(row, WsEndpoint(row, row.ws), [*tokens, *contracts])
        else:
            programs = [v.addresses["program"] for v in venues if v.kind == "vault"]
            registries = [d.program for d in here if d.program is not None]
            watchers[row.id] = SolanaWatcher(row, WsEndpoint(row, row.ws), programs, tokens, registries=registries)
    return watchers


def build_observer(
    settings: Settings,
    name: str,
    remembered: Mapping[str, Sequence[Reading]],
    halts: Halts,
    measure: Callable[[Leg, str, float], None],
    *,
    watching: bool = False,
    certified: tuple[int, Sequence[ChainView]] = (0, ()),
) -> Observer:
    """Return an observer with readers, connections and memory of its own.

    Args:
        remembered: by chain, what it read before.
        measure: told how long each leg took.
        watching: listen to the chains for hints about who changed; only a proposer needs them.
        certified: the newest certified epoch, and the chains as it names them.
    """
    from aggregator.service.collect import Observer, Rereading

    service = settings.service
    return Observer(
        name,
        {row.id: build_reader(settings, row, name) for row in settings.chains},
        remembered,
        halts=halts,
        watchers=build_watchers(settings) if watching else {},
        rereading=Rereading(service.reread_epochs, service.epoch_seconds, service.full_read_below),
        measure=measure,
        certified=certified,
    )


def chain_witness(settings: Settings) -> Witness:
    """Return what asks a chain, with a reader of its own, whether addresses without a key agree or agreed."""

    async def ask(chain: str, asked: Sequence[tuple[Subject, int]]) -> list[str | SourceError]:
        row = settings.chain(chain)
        if row is None:
            raise ConfigError("configuration", "chains", f"{chain} is not configured")
        reader = build_reader(settings, row, "links")

        async def answer(subject: Subject, at: int) -> str | SourceError:
            try:
                async with asyncio.timeout(2 * row.timeout):
                    found = (await reader.read(await reader.pin(at), [subject])).findings
            except TimeoutError:
                return Unreachable(row.name, f"no answer within {2 * row.timeout:g} s")
            except SourceError as error:
                return error
            return next((finding.detail for finding in found if finding.code == MEMBER_UNVERIFIED), "")

        try:
            return await asyncio.gather(*(answer(subject, at) for subject, at in asked))
        finally:
            await reader.close()

    return ask


def build_destination(settings: Settings, row: DestinationRow, *, reading: bool = False) -> Destination:
    """Return one destination with its payer's key.

    Args:
        reading: it is only read, by whoever holds no payer's key; one that has nothing stands in its place.
    """
    from adapters.destinations.evm import EvmRegistryDestination
    from adapters.destinations.solana import SolanaRegistryDestination
    from adapters.keys import KeySigner, SolanaSigner, load_key, load_solana_key
    from adapters.rpc import EvmEndpoint, SolanaEndpoint

    chain = settings.chain(row.chain)
    if chain is None:
        raise ConfigError("configuration", "destinations.chain", f"{row.chain!r} is not configured")
    passphrase, path, nobody = passphrase_of(settings), key_path(settings, row.payer_key), secrets.token_bytes(32)
    if row.kind == "evm-registry":
        payer = KeySigner(nobody) if reading else load_key(path, passphrase, role="relayer")
        return EvmRegistryDestination(row, chain, EvmEndpoint(chain, chain.rpc[0]), payer, deployment_of(settings))
    solana_payer = SolanaSigner(nobody) if reading else load_solana_key(path, passphrase)
    return SolanaRegistryDestination(
        row, chain, SolanaEndpoint(chain, chain.rpc[0]), solana_payer, deployment_of(settings)
    )


def build_publication(settings: Settings, row: PublicationRow) -> Destination:
    """Return one place of publication with its payer's key."""
    from adapters.destinations.eas import EasPublication
    from adapters.keys import load_key
    from adapters.rpc import EvmEndpoint

    chain = settings.chain(row.chain)
    if chain is None:
        raise ConfigError("configuration", "publications.chain", f"{row.chain!r} is not configured")
    payer = load_key(key_path(settings, row.payer_key), passphrase_of(settings), role="relayer")
    return EasPublication(row, chain, EvmEndpoint(chain, chain.rpc[0]), payer, deployment_of(settings))


@dataclass(frozen=True, slots=True)
class Service:
    """Everything ``crossmargin run`` runs."""

    cycle: Cycle
    relayer: Relayer
    server: uvicorn.Server
    listener: socket.socket
    door: tuple[uvicorn.Server, socket.socket] | None = None  # where attestors tell of certificates

    async def run(self, stop: asyncio.Event) -> None:
        """Post, serve and run epochs until ``stop`` is set, or until one of them ends; raise what ended it."""
        servers = [(self.server, self.listener), *([self.door] if self.door else [])]
        try:
            await self.relayer.start()
            serving = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in servers]
            epochs = asyncio.create_task(self.cycle.run(stop))
            ended = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({*serving, epochs, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.set()
                for server, _ in servers:
                    server.should_exit = True
                await asyncio.gather(*serving, epochs, ended, return_exceptions=True)
            for task in (epochs, *serving):
                task.result()
        finally:
            await self.relayer.stop()


def _listen(address: str, key: str = "service.listen") -> socket.socket:
    """Return a socket bound to host:port; ``key`` is where it is configured.

    Raises:
        ConfigError: it is taken, or not ours to bind.
    """
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"{address} cannot be listened on: {reason}; stop what uses it or choose another port"
        raise ConfigError("configuration", key, problem, '"127.0.0.1:8085"') from None
    return listener


@contextlib.contextmanager
def stopped(settings: Settings) -> Iterator[None]:
    """Hold a data folder while nothing runs on it.

    Raises:
        ConfigError: something does.
    """
    with _sole_user(Path(settings.service.data)):
        yield


@contextlib.contextmanager
def _sole_user(data: Path) -> Iterator[None]:
    """Hold the data folder: two services on one folder would sign and post against each other.

    Raises:
        ConfigError: another process holds it.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "service.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = f"{data} is in use by another crossmargin run; stop it or name another folder"
            raise ConfigError("configuration", "service.data", problem) from None
        yield


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a coordinator and an attestor stand on alike: the store, the price source, the rules, and their eyes."""

    settings: Settings
    closing: AsyncExitStack
    clock: SystemClock
    deployment: Deployment
    store: SqlStore
    source: PriceSource | None
    halts: SqlHalts
    rules: Rules
    workbench: Workbench
    witness: Witness

    @classmethod
    async def lay(cls, settings: Settings, closing: AsyncExitStack) -> _Ground:
        """Open store and price source, which ``closing`` closes again."""
        from adapters.prices.pyth import PythSource
        from aggregator.service.attest import Rules
        from aggregator.service.workbench import Workbench

        deployment, service = deployment_of(settings), settings.service
        store = await open_store(settings)
        closing.push_async_callback(store.close)
        source = PythSource(settings.pyth, settings.sources) if settings.pyth else None
        if source is not None:
            closing.push_async_callback(source.close)
        evidence_signer(settings)  # now, since it takes a moment
        closing.push_async_callback(asyncio.to_thread, dispute_log(settings).flush)
        # A restarted attestor waits out whatever it may have signed; a devnet starts at once.
        longest = service.epoch_seconds + settings.policy.lifetime + max(d.clock_bound for d in settings.destinations)
        start_delay = 0 if deployment.network_class == DEVNET else longest
        return cls(
            settings,
            closing,
            SystemClock(),
            deployment,
            store,
            source,
            SqlHalts(store),
            Rules(
                deployment,
                service.epoch_seconds,
                service.clock_skew,
                service.max_lifetime,
                start_delay,
                recovered_here(settings),
            ),
            Workbench(world_of(settings), settings.pyth, settings.policy.lifetime),
            chain_witness(settings),
        )

    def open_grants(self, path: Path) -> SqliteGrants:
        """Return a party's record of budgets, which ends with everything else."""
        from adapters.grants import SqliteGrants

        slack = max(d.clock_bound for d in self.settings.destinations) + max(c.max_age for c in self.settings.chains)
        grants = SqliteGrants(path, slack)
        self.closing.push_async_callback(grants.close)
        return grants

    async def observe(
        self,
        name: str,
        meter: LatencyMeter,
        *,
        closing: AsyncExitStack | None = None,
        memory_of: str = "",
        watching: bool = False,
    ) -> Observer:
        """Return a party's observer, started, with what it remembers.

        Args:
            closing: closes it; by default with everything else.
            memory_of: another party whose memory it begins with.
        """
        last = await self.store.epoch()
        observer = build_observer(
            self.settings,
            name,
            await self.store.readings(memory_of or name),
            self.halts,
            meter.measure,
            watching=watching,
            certified=(0, ()) if last is None else (last.header.epoch, last.chains),
        )
        (closing or self.closing).push_async_callback(observer.close)
        await observer.start()
        return observer


def _server(app: Any, connections: int | None = None) -> uvicorn.Server:
    """Return a server of ``app`` inside our loop: signals are the command line's business.

    Args:
        connections: how many there may be at a time; whoever comes then is told 503.
    """
    import uvicorn

    class QuietServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", workers=1, limit_concurrency=connections
    )
    return QuietServer(config)


def _build_peers(
    settings: Settings, rows: Iterable[AttestorRow], signer: Signer, told: str | None = None, coordinator: str = ""
) -> tuple[Peers, Fences]:
    """Return the way to other parties, and what keeps their fencing numbers.

    Args:
        told: URL of the coordinator, for an attestor that knows it; ``coordinator`` is its wire address then.
    """
    from adapters.wire import WireClient
    from aggregator.service.node import Peers
    from aggregator.service.remote import AttestorClient, Fences, Parcels

    deployment_id, fences, parcels, clock = deployment_of(settings).deployment_id(), Fences(), Parcels(), SystemClock()

    def client(name: str, index: int, member: bytes, url: str, wire: str) -> AttestorClient:
        way = WireClient(deployment_id, signer, url, wire, name, clock)
        return AttestorClient(name, index, member, way, deployment_id=deployment_id, fences=fences, parcels=parcels)

    attestors = [
        client(row.name, row.index, bytes.fromhex((settings.member(row) or "")[2:]), row.url, row.wire) for row in rows
    ]
    others = [client("coordinator", -1, b"", told, coordinator)] if told else []
    return Peers(attestors, others), fences


@asynccontextmanager
async def build_service(settings: Settings) -> AsyncIterator[Service]:
    """Wire the service; close everything when left.

    Raises:
        ConfigError: a part cannot be built as configured.
        SourceError, RefusedError: a part refuses to start.
    """
    # Imported here: a command that only reads the store should not wait for servers and workflow engines to load.
    from adapters.permit_book import SqlitePermitBook
    from adapters.wire import WireGate
    from aggregator.api.app import ApiService, create_app
    from aggregator.api.attestor_app import create_attestor_app
    from aggregator.service import telemetry
    from aggregator.service.accounts import AccountBook, LinkEnder
    from aggregator.service.bundle import leaf_proof
    from aggregator.service.committed import listed_permits
    from aggregator.service.cycle import Cycle
    from aggregator.service.desk import Desk
    from aggregator.service.latency import LatencyMeter
    from aggregator.service.node import CoordinatorDoor, Learner
    from aggregator.service.permits import PermitDesk, Vantage, to_list
    from aggregator.service.relayer import Relayer

    service = settings.service
    if settings.attestor is not None:
        problem = "is an attestor's configuration: start it with `crossmargin attestor run`"
        raise ConfigError("configuration", "attestor", problem)
    async with AsyncExitStack() as closing:
        data = Path(service.data)
        closing.enter_context(_sole_user(data))
        listener = closing.enter_context(_listen(service.listen))
        ground = await _Ground.lay(settings, closing)
        clock, deployment, store, halts = ground.clock, ground.deployment, ground.store, ground.halts
        destinations: dict[str, Destination] = {}
        for row in settings.destinations:
            destinations[row.chain] = build_destination(settings, row)
        published = {row.name: build_publication(settings, row) for row in settings.publications}
        for place in (*destinations.values(), *published.values()):
            closing.push_async_callback(place.close)
        meter = LatencyMeter(clock, settings.chains, settings.destinations, SqlLatencies(store))
        await meter.load()

        def on_posting(posting: Posting) -> None:
            telemetry.POSTINGS.labels(posting.destination, posting.state).inc()
            if posting.destination in destinations:  # nobody draws on what is only published
                meter.posted(posting)

        relayer = Relayer(
            store,
            destinations | published,
            clock,
            data / "relayer.sqlite3",
            heartbeat_seconds=service.heartbeat_seconds,
            # A reorganisation that drops postings leaves a gap below the nonces of those in flight: only this ends it.
            bump_seconds=min(60.0, 5.0 * service.epoch_seconds),
            on_posting=on_posting,
        )
        grants = ground.open_grants(data / "grants.sqlite3")
        peers, door, learner = None, None, None
        attestors: Sequence[Attesting]
        if service.wire_key is not None:
            signer = signer_of(settings, service.wire_key, "wire")
            peers, fences = _build_peers(settings, settings.attestors, signer)
            closing.push_async_callback(peers.close)
            attestors = peers.attestors
            learner = Learner(store, ground.rules, peers, relayer.offer, grants)
            if service.wire_listen is not None:
                names = {row.wire: row.name for row in settings.attestors}
                gate = WireGate(deployment.deployment_id(), signer, names, clock)
                app = create_attestor_app(gate, CoordinatorDoor(learner, store, fences), kinds=())
                listening = closing.enter_context(_listen(service.wire_listen, "service.wire_listen"))
                door = _server(app, WIRE_CONNECTIONS), listening
        else:
            attestors = await _attestors_here(ground, destinations.values())
        desk, turn = Desk(ground.workbench.world), asyncio.Lock()
        vantage, slack = Vantage(ground.workbench.world), _permit_slack(settings)

        async def permits_to_list(at: int) -> Sequence[PermitRecord]:
            before = listed_permits(await store.preimage("state"))
            return to_list(await permit_desk.outstanding(at), before, at, slack)

        def on_computed(computed: Computed, quotes: Sequence[Quote], latency: LatencyTables) -> None:
            desk.take(computed, quotes, latency)
            vantage.take(computed, quotes, latency)

        cycle = Cycle(
            workbench=ground.workbench,
            observer=await ground.observe("coordinator", meter, watching=True),
            source=ground.source,
            store=store,
            attestors=attestors,
            rules=ground.rules,
            clock=clock,
            offer=relayer.offer,
            keep_epochs=service.keep_epochs,
            meter=meter,
            ender=LinkEnder(store, clock, service.link_cooldown),
            on_computed=on_computed,
            catch_up=learner.catch_up if learner else None,
            tell=peers.tell if peers else None,
            grants=grants,
            permits=permits_to_list,
            turn=turn,
        )
        book = SqlitePermitBook(data / "permits.sqlite3")
        closing.push_async_callback(book.close)

        async def newest_epoch() -> int | None:
            certificate = await store.certificate()
            return None if certificate is None else certificate.header.epoch

        permit_desk = PermitDesk(
            deployment.deployment_id(),
            store,
            book,
            peers.attestors if peers else (),
            cycle.group,
            newest_epoch,
            vantage.newest,
            grants,
            vaults_of(settings),
            {d.chain: d.clock_bound for d in settings.destinations},
            slack,
            clock,
            turn=turn,
        )

        async def bundle(record: EpochRecord, account: str) -> str:
            return await build_bundle(store, deployment, record, account, ground.workbench.committed)

        def readiness() -> Sequence[Finding]:
            return [Finding("epoch", "service", cycle.last_problem)] if cycle.last_problem else []

        chains = [c.id for c in settings.chains]
        accounts = AccountBook(store, clock, deployment.deployment_id(), chains, list(destinations), ground.witness)
        api = ApiService(
            store=store,
            halts=halts,
            latency=functools.partial(measured_latency, settings, store),
            accounts=accounts,
            chains=settings.chains,
            assets=settings.assets,
            sources=settings.sources,
            destinations=settings.destinations,
            deployment=settings.deployment,
            clock=clock,
            bundle=bundle,
            proof=leaf_proof,
            readiness=readiness,
            desk=desk,
            permits=permit_desk if peers else None,
        )
        yield Service(cycle, relayer, _server(create_app(api)), listener, door)


async def _attestors_here(ground: _Ground, destinations: Iterable[Destination]) -> Sequence[Attesting]:
    """Return the attestors of a devnet, inside this process, over the coordinator's store."""
    from adapters.keys import load_key
    from adapters.watermark import SqliteWatermark
    from aggregator.service.attest import Attestor
    from aggregator.service.examine import Examiner
    from aggregator.service.latency import LatencyMeter
    from aggregator.service.state_rules import StateRules

    settings, store, clock = ground.settings, ground.store, ground.clock
    newest, on_chain = await store.certificate(), await _highest_on_chain(destinations)
    passphrase, rotations = passphrase_of(settings), await store.rotations()
    attestors: list[Attesting] = []
    for index, name in enumerate(settings.service.attestor_keys):
        record = Path(settings.service.data) / "attestors" / f"{name}.sqlite3"
        record.parent.mkdir(parents=True, exist_ok=True)
        watermark = SqliteWatermark(record)
        ground.closing.push_async_callback(watermark.close)
        # Each measures what it sees itself; the coordinator's alone are kept, shown and counted.
        own = LatencyMeter(clock, settings.chains, settings.destinations, histogram=None)
        observer = await ground.observe(name, own)
        grants = ground.open_grants(record.with_name(f"{name}-grants.sqlite3"))
        cooldown, longest = settings.service.link_cooldown, ground.rules.longest
        state_rules = StateRules(
            ground.rules.deployment_id, cooldown, ground.witness, grants, longest, _destination_ids(settings)
        )
        examiner = Examiner(state_rules, ground.workbench, observer, ground.source, store, own)
        attestors.append(
            Attestor(
                name,
                index,
                load_key(key_path(settings, name), passphrase),
                watermark,
                examiner.recompute,
                rules=ground.rules,
                clock=clock,
                last=newest,
                chain_highest=on_chain,
                rotations=rotations,
                grants=grants,
            )
        )
    return attestors


@dataclass(frozen=True, slots=True)
class AttestorProcess:
    """Everything ``crossmargin attestor run`` runs."""

    node: Node
    server: uvicorn.Server
    listener: socket.socket

    async def run(self, stop: asyncio.Event) -> None:
        """Answer, watch and propose until ``stop`` is set, or until a part ends; raise what ended it."""
        await self.node.start()
        serving = asyncio.create_task(self.server.serve(sockets=[self.listener]))
        watching = asyncio.create_task(self.node.run(stop))
        ended = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, watching, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()
            self.server.should_exit = True
            await asyncio.gather(serving, watching, ended, return_exceptions=True)
        for task in (watching, serving):
            task.result()


def vaults_of(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return the addresses of the configured vaults by chain."""
    chains = {v.chain for v in settings.venues if v.kind == "vault"}
    return {
        c: tuple(v.addresses["vault"] for v in settings.venues if (v.chain, v.kind) == (c, "vault")) for c in chains
    }


def _permit_slack(settings: Settings) -> dict[str, int]:
    """Return for how many seconds permits count after their expiry, by chain."""
    bounds = {d.chain: d.clock_bound for d in settings.destinations}
    longest = max(bounds.values(), default=0)
    return {c.id: bounds.get(c.id, longest) + c.max_age for c in settings.chains}


def own_attestor(settings: Settings) -> OwnAttestorRow:
    """Return the table of an attestor's own.

    Raises:
        ConfigError: there is none.
    """
    if settings.attestor is None:
        problem = "is missing: this is no attestor's configuration"
        raise ConfigError("configuration", "attestor", problem, "{index = 0, key = ..., ...}, see attestor.toml")
    return settings.attestor


def open_record(settings: Settings) -> SqliteWatermark:
    """Return an attestor's durable record of what it signed; close it when done.

    Raises:
        ConfigError: the configuration is no attestor's.
    """
    from adapters.watermark import Owner, SqliteWatermark

    path = Path(settings.service.data) / "attestor.sqlite3"
    path.parent.mkdir(parents=True, exist_ok=True)
    address = settings.member(own_attestor(settings)) or _attestor_signer(settings).address
    return SqliteWatermark(path, Owner(deployment_of(settings).deployment_id(), address))


def _attestor_signer(settings: Settings) -> Signer:
    """Return what signs statements, checked against the member it is configured to be."""
    own = own_attestor(settings)
    return signer_of(settings, own.key, "attestor", settings.member(own))


@asynccontextmanager
async def build_attestor(settings: Settings) -> AsyncIterator[AttestorProcess]:
    """Wire one attestor process; close everything when left.

    Raises:
        ConfigError: a part cannot be built as configured. SourceError, RefusedError: a part refuses to start.
    """
    from adapters.permit_book import SqlitePermitBook
    from adapters.wire import WireGate
    from aggregator.api.attestor_app import create_attestor_app
    from aggregator.service.attest import Attestor
    from aggregator.service.committed import listed_permits
    from aggregator.service.cycle import Cycle
    from aggregator.service.examine import Examiner
    from aggregator.service.latency import LatencyMeter
    from aggregator.service.node import Node
    from aggregator.service.permits import Ground as PermitGround
    from aggregator.service.permits import HoldRules, PermitRules, Vantage, to_list, verify_permits
    from aggregator.service.replica import Replica
    from aggregator.service.state_rules import StateRules

    own, service = own_attestor(settings), settings.service
    async with AsyncExitStack() as closing:
        data = Path(service.data)
        closing.enter_context(_sole_user(data))
        listener = closing.enter_context(_listen(own.listen, "attestor.listen"))
        ground = await _Ground.lay(settings, closing)
        rules, clock, store = ground.rules, ground.clock, ground.store
        signer, wire_signer = _attestor_signer(settings), signer_of(settings, own.wire_key, "wire")
        if signer.address == wire_signer.address:
            raise ConfigError("configuration", "attestor.wire_key", "is the key that signs statements", '"wire"')
        record = open_record(settings)
        closing.push_async_callback(record.close)
        async with AsyncExitStack() as reading:
            destinations = [build_destination(settings, row, reading=True) for row in settings.destinations]
            for destination in destinations:
                reading.push_async_callback(destination.close)
            on_chain = await _highest_on_chain(destinations)
        meter = LatencyMeter(clock, settings.chains, settings.destinations)
        observer = await ground.observe(own.name, meter)
        grants = ground.open_grants(data / "grants.sqlite3")
        state_rules = StateRules(
            *(rules.deployment_id, service.link_cooldown, ground.witness, grants, rules.longest),
            _destination_ids(settings),
        )
        replica = Replica(store, clock, skew=service.clock_skew, epoch_seconds=service.epoch_seconds)
        vantage, book = Vantage(ground.workbench.world), SqlitePermitBook(data / "permits.sqlite3")
        closing.push_async_callback(book.close)

        async def check_permits(proposal: Proposal) -> None:
            at, listed, accounts = proposal.cut.cut_time, proposal.state.permits, proposal.state.accounts
            before = listed_permits(proposal.previous_state)  # which the state's rules have verified
            verify_permits(listed, await permit_rules.outstanding(at), before, accounts, at, permit_ground)

        async def permits_to_list(at: int) -> Sequence[PermitRecord]:
            before = listed_permits(await store.preimage("state"))
            return to_list(await permit_rules.outstanding(at), before, at, permit_ground.slack)

        examiner = Examiner(
            state_rules, ground.workbench, observer, ground.source, store, meter, replica, vantage, check_permits
        )
        attestor = Attestor(
            own.name,
            own.index if own.index < len(ground.deployment.members) else None,
            signer,
            record,
            examiner.recompute,
            rules=rules,
            clock=clock,
            last=await store.certificate(),
            chain_highest=on_chain,
            rotations=await store.rotations(),
            grants=grants,
        )
        permit_ground = PermitGround(
            rules.deployment_id,
            signer,
            attestor.sets.at,
            record,
            vantage.newest,
            grants,
            vaults_of(settings),
            {d.chain: d.clock_bound for d in settings.destinations},
            _permit_slack(settings),
            rules.epoch_seconds,
            clock,
            turn=attestor.turn,
        )
        permit_rules = PermitRules(permit_ground, book)
        peers, fences = _build_peers(settings, own.peers, wire_signer, own.coordinator_url, own.coordinator)
        closing.push_async_callback(peers.close)
        signers: dict[Kind, DocumentSigner] = {
            "rotation": rotation_rules(settings, signer, record, store),
            "permit": permit_rules,
            "hold": HoldRules(permit_ground),
        }

        @asynccontextmanager
        async def make_cycle(node: Node) -> AsyncIterator[Cycle]:
            async with AsyncExitStack() as proposing:
                name = f"{own.name}-proposer"
                yield Cycle(
                    workbench=ground.workbench,
                    observer=await ground.observe(name, meter, closing=proposing, memory_of=own.name),
                    source=ground.source,
                    store=store,
                    attestors=[attestor, *node.peers.attestors],
                    rules=rules,
                    clock=clock,
                    offer=node.certified,
                    keep_epochs=service.keep_epochs,
                    meter=meter,
                    ender=None,  # the coordinator alone appends to the log
                    grants=grants,
                    claims=node.claims,
                    permits=permits_to_list,
                )

        node = Node(
            own.index,
            attestor,
            examiner,
            store,
            record,
            signer,
            signers=signers,
            rules=rules,
            clock=clock,
            peers=peers,
            fences=fences,
            coordinator=own.coordinator,
            make_cycle=make_cycle,
            propose_after=own.propose_after,
            keep_epochs=service.keep_epochs,
            grants=grants,
        )
        known = {own.coordinator: "coordinator", **{row.wire: row.name for row in own.peers}}
        gate = WireGate(rules.deployment_id, wire_signer, known, clock)
        yield AttestorProcess(node, _server(create_attestor_app(gate, node), WIRE_CONNECTIONS), listener)


def _destination_ids(settings: Settings) -> frozenset[str]:
    from aggregator.core.pipeline import destination_id

    return frozenset(destination_id(row.chain) for row in settings.destinations)


async def _highest_on_chain(destinations: Iterable[Destination]) -> int:
    """Return the highest epoch on any destination that answers; attestors sign only above it."""
    highest = 0
    for destination in destinations:
        with contextlib.suppress(SourceError):  # an unreachable chain adds nothing; the local record still holds
            latest = await destination.read_latest()
            highest = max(highest, latest.epoch if latest else 0)
    return highest


async def build_bundle(
    store: Store, deployment: Deployment, record: EpochRecord, account: str, committed: Committed | None = None
) -> str:
    """Return the audit bundle of one account at one epoch; ``committed`` saves digesting all accounts anew."""
    from aggregator.service.bundle import export_bundle

    state = await store.state()
    # In a thread: it builds both trees of the epoch and that of its state, and requests and epochs share the loop.
    return await asyncio.to_thread(export_bundle, record, account, deployment, state, (), committed)


async def preflight(settings: Settings, told: Callable[[frozenset[str]], None] = lambda _: None) -> tuple[Finding, ...]:
    """Probe everything ``run`` depends on, websockets first, then the rest at once; each part reports on its own.

    Args:
        told: called with the names of what has not answered yet, whenever that changes.
    """
    websockets: list[tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]] = [
        (name, functools.partial(_probe_websocket, row, url, name))
        for row in settings.chains
        for name, url in ((f"{row.name} websocket[{i}]", url) for i, url in enumerate(row.ws))
    ]
    probes: list[tuple[str, Callable[[], Awaitable[Sequence[Finding]]]]] = [
        *((row.name, functools.partial(_probe_chain, settings, row)) for row in settings.chains),
        *([("pyth", functools.partial(_probe_pyth, settings.pyth, settings))] if settings.pyth is not None else []),
        ("data", functools.partial(asyncio.to_thread, _probe_data, settings)),
        ("keys", functools.partial(asyncio.to_thread, _probe_keys, settings)),
        *(
            (f"destination {d.chain}", functools.partial(_probe_destination, settings, d))
            for d in settings.destinations
        ),
        *((f"publication {p.name}", functools.partial(_probe_destination, settings, p)) for p in settings.publications),
    ]
    waiting = Counter(name for name, _ in (*websockets, *probes))

    async def ask(name: str, probe: Callable[[], Awaitable[Sequence[Finding]]]) -> Sequence[Finding]:
        try:
            return await probe()
        except CrossmarginError as error:
            return [Finding("failed", name, str(error))]
        finally:
            waiting[name] -= 1
            told(frozenset(+waiting))

    told(frozenset(waiting))
    # First what has a time to answer in: the other probes compute, and would use it up on a busy machine.
    heard = await asyncio.gather(*(ask(name, probe) for name, probe in websockets))
    found = await asyncio.gather(*(ask(name, probe) for name, probe in probes))
    return tuple(finding for part in (*found, *heard) for finding in part)


async def _probe_chain(settings: Settings, row: ChainRow) -> Sequence[Finding]:
    reader = build_reader(settings, row, "check")
    try:
        return await reader.check()
    finally:
        await reader.close()


async def _probe_websocket(row: ChainRow, url: SecretStr, name: str) -> Sequence[Finding]:
    from adapters.ws import WsEndpoint

    return [Finding("ok", name, await WsEndpoint(row, [url]).probe())]


async def _probe_pyth(row: PythRow, settings: Settings) -> Sequence[Finding]:
    from adapters.prices.pyth import PythSource

    source = PythSource(row, settings.sources)
    cut_time = int(time.time()) - settings.service.epoch_seconds
    try:
        quotes = source.decode(await source.fetch(cut_time), cut_time)
    finally:
        await source.close()
    return [Finding("ok", "pyth", f"{len(quotes)} signed prices, signatures and paths verified")]


async def _probe_destination(settings: Settings, row: DestinationRow | PublicationRow) -> Sequence[Finding]:
    if isinstance(row, PublicationRow):
        destination = build_publication(settings, row)
    else:
        destination = build_destination(settings, row, reading=settings.attestor is not None)
    try:
        return await destination.check()
    finally:
        await destination.close()


def _probe_data(settings: Settings) -> Sequence[Finding]:
    """Write to the data folder, or to the folder that it will be made in."""
    folder = wanted = Path(settings.service.data).resolve()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [Finding("failed", "data", f"{wanted} cannot be written: {error.strerror}; check its owner")]
    room = f"{free / 2**30:,.1f} GiB free"
    if free < FREE_BYTES:
        return [Finding("failed", "data", f"{wanted}: {room}, at least {FREE_BYTES / 2**30:g} GiB expected")]
    return [Finding("ok", "data", f"{wanted}: writable, {room}" + ("" if folder == wanted else "; not made yet"))]


def _probe_keys(settings: Settings) -> Sequence[Finding]:
    """Decrypt the attestors' keys and the evidence key, which the first run makes."""
    from adapters.keys import load_key

    findings: list[Finding] = []
    for i, name in enumerate(settings.service.attestor_keys):
        try:
            address = load_key(key_path(settings, name), passphrase_of(settings)).address
        except CrossmarginError as error:
            findings.append(Finding("failed", name, str(error)))
            continue
        member = settings.deployment.members[i].lower()
        good = address == member
        findings.append(
            Finding("ok" if good else "failed", name, f"key {address}" + ("" if good else f", member is {member}"))
        )
    path = key_path(settings, EVIDENCE_KEY)
    try:
        key = f"key {evidence_signer(settings).address}" if path.exists() else "made by the first run"
        findings.append(Finding("ok", EVIDENCE_KEY, f"{key}; it signs disputes"))
    except CrossmarginError as error:
        findings.append(Finding("failed", EVIDENCE_KEY, str(error)))
    return findings


async def stored_roots(settings: Settings, epoch: int) -> dict[str, bytes]:
    """Return, per destination, the root it stores for ``epoch``; only destinations that hold this epoch now.

    Raises:
        SourceError: a destination cannot be read.
    """
    roots: dict[str, bytes] = {}
    for row in settings.destinations:
        destination = build_destination(settings, row)
        try:
            root = await destination.read_root(epoch)
        finally:
            await destination.close()
        if root is not None:
            roots[row.chain] = root
    return roots


def create_key_file(path: Path, passphrase: str, role: Role) -> str:
    """Create an encrypted secp256k1 key file and return its address."""
    from adapters.keys import create_key

    return create_key(path, passphrase, role=role)


def create_solana_key_file(path: Path, passphrase: str) -> str:
    """Create an encrypted Ed25519 key file of a payer and return its address."""
    from adapters.keys import create_solana_key

    return create_solana_key(path, passphrase)


def create_token_key(uri: str, role: Role) -> str:
    """Create a key pair inside a PKCS#11 token and return its address."""
    from adapters.hsm import create_token_key as create

    return create(uri, role)


def import_key_file(
    source: Path, source_passphrase: Callable[[], str], path: Path, passphrase: str, role: Role, *, solana: bool
) -> str:
    """Write another tool's key to a key file with a role and return its address."""
    from adapters.keys import import_key

    return import_key(source, source_passphrase, path, passphrase, role=role, solana=solana)


def list_key_files(folder: Path) -> list[KeyFile]:
    """Return the key files of a folder."""
    from adapters.keys import list_keys

    return list_keys(folder)


def show_key_file(path: Path) -> KeyFile:
    """Return what a key file says of itself."""
    from adapters.keys import describe_key

    return describe_key(path)


def show_token_key(uri: str, role: Role) -> str:
    """Return the address of a key in a token or a service."""
    from adapters.keys import open_signer

    return open_signer(uri, role, folder=Path(), passphrase=str).address


def signer_of(settings: Settings, key: str, role: Role, address: str | None = None) -> Signer:
    """Return what signs with a configured key: a file's name, ``pkcs11:…`` or ``kms:…``.

    Args:
        address: the one it must have (0x, lower-case), None for any.

    Raises:
        InputError: the key cannot be used. SourceError: its device does not answer well.
    """
    from adapters.keys import open_signer

    folder = Path(settings.service.data) / "keys"
    return open_signer(key, role, folder=folder, passphrase=functools.partial(passphrase_of, settings), address=address)


def approvals_of(settings: Settings) -> FileApprovals:
    """Return what the operator of this machine approved."""
    from adapters.approvals import FileApprovals

    return FileApprovals(Path(settings.service.data) / "approvals")


def recovered_here(settings: Settings) -> Callable[[bytes], bool]:
    """Return what says of a set's digest whether the operator of this machine approved it as recovered."""
    from aggregator.service.rotation import RECOVERY

    return functools.partial(approvals_of(settings).approved, RECOVERY)


def rotation_rules(settings: Settings, signer: Signer, record: Record, store: SqlStore) -> RotationRules:
    """Return what an attestor signs of rotations."""
    from aggregator.service.rotation import RotationRules

    return RotationRules(
        signer,
        record,
        approvals_of(settings),
        store.rotations,
        deployment=deployment_of(settings),
        epoch_seconds=settings.service.epoch_seconds,
        clock=SystemClock(),
    )


@asynccontextmanager
async def attestor_clients(settings: Settings) -> AsyncIterator[Sequence[AttestorClient]]:
    """Reach every attestor that the coordinator's configuration names; what is open is closed when left.

    Raises:
        ConfigError: none is a process of its own.
    """
    if not settings.attestors or settings.service.wire_key is None:
        problem = "names no attestors that are processes of their own; only those rotate"
        raise ConfigError("configuration", "attestors", problem, '{index = 0, url = "https://…", wire = "0x…"}')
    peers, _ = _build_peers(settings, settings.attestors, signer_of(settings, settings.service.wire_key, "wire"))
    try:
        yield peers.attestors
    finally:
        await peers.close()


@asynccontextmanager
async def destinations_of(settings: Settings) -> AsyncIterator[dict[str, Destination]]:
    """Open every destination with its payer's key; they are closed when left."""
    async with AsyncExitStack() as closing:
        opened: dict[str, Destination] = {}
        for row in settings.destinations:
            opened[row.chain] = build_destination(settings, row)
            closing.push_async_callback(opened[row.chain].close)
        yield opened
