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
from typing import TYPE_CHECKING

from pydantic import SecretStr

from adapters.members import MEMBER_UNVERIFIED
from aggregator.config import Settings
from aggregator.domain.certificate import EpochRecord, Posting
from aggregator.domain.errors import ConfigError, CrossmarginError, InputError, SourceError, Unreachable
from aggregator.domain.latency import LatencyReport, Leg
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow, PythRow, VenueRow
from aggregator.domain.snapshot import ChainView, Finding, Reading, Subject
from aggregator.ports import ChainReader, Destination, Halts, Store, Watcher
from aggregator.store.halts import SqlHalts
from aggregator.store.latencies import SqlLatencies
from aggregator.store.sql import SqlStore as SqlStore
from proofs.statement import DEVNET, Deployment

if TYPE_CHECKING:
    import uvicorn

    from adapters.disputes import Dispute, DisputeLog, Entry
    from adapters.evm.reader import EvmAdapter
    from adapters.keys import KeySigner
    from adapters.solana.reader import SolanaAdapter
    from aggregator.core.tables import World
    from aggregator.service.accounts import Witness
    from aggregator.service.collect import Observer
    from aggregator.service.cycle import Cycle
    from aggregator.service.relayer import Relayer

DISPUTES, EVIDENCE_KEY = "disputes.jsonl", "evidence"
"""In the data folder: the log of disputes, and the name of the key that signs it."""
FREE_BYTES = 1 << 30
"""At least to be free in the data folder: what is kept of epochs grows."""
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
    used = {*settings.service.attestor_keys, *(d.payer_key for d in settings.destinations)}
    if EVIDENCE_KEY in used:
        problem = f"{EVIDENCE_KEY!r} is the key that signs disputes; an attestor or payer needs one of its own"
        raise ConfigError("configuration", "service.attestor_keys, destinations.payer_key", problem, '"attestor-0"')
    return _evidence_signer(key_path(settings, EVIDENCE_KEY), passphrase_of(settings))


@functools.cache  # decrypting takes a third of a second, and every reader of the process signs with it
def _evidence_signer(path: Path, passphrase: str) -> KeySigner:
    from adapters.keys import create_key, load_key

    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_key(path, passphrase)
    return load_key(path, passphrase)


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


def _evm_adapter(row: ChainRow, venue: VenueRow, assets: dict[str, AssetRow]) -> EvmAdapter:
    from adapters.evm.aave_v3 import AaveV3
    from adapters.evm.lender import Lender
    from adapters.evm.margin_venue import MarginVenue
    from adapters.evm.vault import Vault
    from adapters.evm.wallet import Wallet

    match venue.kind:
        case "wallet":
            return Wallet(row.id, assets, row.multicall)
        case "vault":
            return Vault(row.id, _required(venue, "vault"), assets)
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
    return build_reader(settings.model_copy(update={"venues": (), "sources": (), "assets": ()}), parent, party)


def _build_provider(settings: Settings, row: ChainRow, url: SecretStr, parent: ChainReader | None) -> ChainReader:
    from adapters.rpc import EvmEndpoint, SolanaEndpoint

    assets = {a.id: a for a in settings.assets if a.id.startswith(f"{row.id}/")}
    venues = [v for v in settings.venues if v.chain == row.id]
    if row.family == "evm":
        from adapters.evm.reader import EvmReader

        adapters = [_evm_adapter(row, venue, assets) for venue in venues]
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
    from adapters.solana.spl_token import SplTokenWallet
    from adapters.solana.vault import CollateralVault as SolanaVault

    solana: list[SolanaAdapter] = []
    members = Members(None)
    for venue in venues:
        match venue.kind:
            case "wallet":
                solana += [NativeWallet(row.id, assets), SplTokenWallet(row.id, assets)]
            case "vault":
                solana.append(SolanaVault(row.id, _required(venue, "program"), _required(venue, "vault"), assets))
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
        if row.family == "evm":
            venue_addresses = [address for v in venues for address in v.addresses.values()]
            watchers[row.id] = EvmWatcher(row, WsEndpoint(row, row.ws), [*tokens, *venue_addresses])
        else:
            programs = [v.addresses["program"] for v in venues if v.kind == "vault"]
            watchers[row.id] = SolanaWatcher(row, WsEndpoint(row, row.ws), programs, tokens)
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


def build_destination(settings: Settings, row: DestinationRow) -> Destination:
    """Return one destination with its payer's key."""
    from adapters.destinations.evm import EvmRegistryDestination
    from adapters.destinations.solana import SolanaRegistryDestination
    from adapters.keys import load_key, load_solana_key
    from adapters.rpc import EvmEndpoint, SolanaEndpoint

    chain = settings.chain(row.chain)
    if chain is None:
        raise ConfigError("configuration", "destinations.chain", f"{row.chain!r} is not configured")
    passphrase = passphrase_of(settings)
    if row.kind == "evm-registry":
        payer = load_key(key_path(settings, row.payer_key), passphrase)
        return EvmRegistryDestination(row, chain, EvmEndpoint(chain, chain.rpc[0]), payer, deployment_of(settings))
    solana_payer = load_solana_key(key_path(settings, row.payer_key), passphrase)
    return SolanaRegistryDestination(
        row, chain, SolanaEndpoint(chain, chain.rpc[0]), solana_payer, deployment_of(settings)
    )


@dataclass(frozen=True, slots=True)
class Service:
    """Everything ``crossmargin run`` runs."""

    cycle: Cycle
    relayer: Relayer
    server: uvicorn.Server
    listener: socket.socket

    async def run(self, stop: asyncio.Event) -> None:
        """Post, serve and run epochs until ``stop`` is set, or until one of them ends; raise what ended it."""
        try:
            await self.relayer.start()
            serving = asyncio.create_task(self.server.serve(sockets=[self.listener]))
            epochs = asyncio.create_task(self.cycle.run(stop))
            ended = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({serving, epochs, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.set()
                self.server.should_exit = True
                await asyncio.gather(serving, epochs, ended, return_exceptions=True)
            for task in (epochs, serving):
                task.result()
        finally:
            await self.relayer.stop()


def _listen(address: str) -> socket.socket:
    """Return a socket bound to host:port.

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
        raise ConfigError("configuration", "service.listen", problem, '"127.0.0.1:8081"') from None
    return listener


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


@asynccontextmanager
async def build_service(settings: Settings) -> AsyncIterator[Service]:
    """Wire the service; close everything when left.

    Raises:
        ConfigError: a part cannot be built as configured.
        SourceError, RefusedError: a part refuses to start.
    """
    # Imported here: a command that only reads the store should not wait for servers and workflow engines to load.
    import uvicorn

    from adapters.keys import load_key
    from adapters.prices.pyth import PythSource
    from adapters.watermark import SqliteWatermark
    from aggregator.api.app import ApiService, create_app
    from aggregator.service import telemetry
    from aggregator.service.accounts import AccountBook, LinkEnder
    from aggregator.service.attest import Attestor, Rules
    from aggregator.service.bundle import leaf_proof
    from aggregator.service.cycle import Cycle
    from aggregator.service.desk import Desk
    from aggregator.service.examine import Examiner
    from aggregator.service.latency import LatencyMeter
    from aggregator.service.relayer import Relayer
    from aggregator.service.state_rules import StateRules
    from aggregator.service.workbench import Workbench

    class QuietServer(uvicorn.Server):
        """uvicorn inside our loop: signals are the command line's business."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    async with AsyncExitStack() as closing:
        data, clock, deployment = Path(settings.service.data), SystemClock(), deployment_of(settings)
        closing.enter_context(_sole_user(data))
        listener = closing.enter_context(_listen(settings.service.listen))
        store = await open_store(settings)
        closing.push_async_callback(store.close)
        source = PythSource(settings.pyth, settings.sources) if settings.pyth else None
        if source is not None:
            closing.push_async_callback(source.close)
        evidence_signer(settings)  # now, since it takes a moment
        closing.push_async_callback(asyncio.to_thread, dispute_log(settings).flush)
        destinations: dict[str, Destination] = {}
        for row in settings.destinations:
            destinations[row.chain] = build_destination(settings, row)
            closing.push_async_callback(destinations[row.chain].close)

        halts = SqlHalts(store)
        last_epoch = await store.epoch()
        certified = (0, ()) if last_epoch is None else (last_epoch.header.epoch, last_epoch.chains)
        rows = settings.chains, settings.destinations

        async def observe(name: str, meter: LatencyMeter, *, watching: bool = False) -> Observer:
            remembered = await store.readings(name)
            observer = build_observer(
                settings, name, remembered, halts, meter.measure, watching=watching, certified=certified
            )
            closing.push_async_callback(observer.close)
            await observer.start()
            return observer

        rules = Rules(
            deployment,
            settings.service.epoch_seconds,
            settings.service.clock_skew,
            settings.service.max_lifetime,
            # A restarted attestor waits out whatever it may have signed; a devnet starts at once.
            0 if deployment.network_class == DEVNET else settings.service.epoch_seconds + settings.policy.lifetime,
        )
        workbench = Workbench(world_of(settings), settings.pyth, settings.policy.lifetime)
        desk = Desk(workbench.world)
        newest, on_chain = await store.certificate(), await _highest_on_chain(destinations.values())
        passphrase, witness = passphrase_of(settings), chain_witness(settings)
        attestors: list[Attestor] = []
        for index, name in enumerate(settings.service.attestor_keys):
            record = data / "attestors" / f"{name}.sqlite3"
            record.parent.mkdir(parents=True, exist_ok=True)
            watermark = SqliteWatermark(record)
            closing.push_async_callback(watermark.close)
            # Each measures what it sees itself; the coordinator's alone are kept, shown and counted.
            own = LatencyMeter(clock, *rows, histogram=None)
            observer = await observe(name, own)
            state_rules = StateRules(deployment.deployment_id(), settings.service.link_cooldown, witness)
            examiner = Examiner(state_rules, workbench, observer, source, store, own)
            attestors.append(
                Attestor(
                    name,
                    index,
                    load_key(key_path(settings, name), passphrase),
                    watermark,
                    examiner.recompute,
                    rules=rules,
                    clock=clock,
                    last=newest,
                    chain_highest=on_chain,
                )
            )
        meter = LatencyMeter(clock, *rows, SqlLatencies(store))
        await meter.load()

        def on_posting(posting: Posting) -> None:
            telemetry.POSTINGS.labels(posting.destination, posting.state).inc()
            meter.posted(posting)

        relayer = Relayer(
            store,
            destinations,
            clock,
            data / "relayer.sqlite3",
            heartbeat_seconds=settings.service.heartbeat_seconds,
            # A reorganisation that drops postings leaves a gap below the nonces of those in flight: only this ends it.
            bump_seconds=min(60.0, 5.0 * settings.service.epoch_seconds),
            on_posting=on_posting,
        )
        cycle = Cycle(
            workbench=workbench,
            observer=await observe("coordinator", meter, watching=True),
            source=source,
            store=store,
            attestors=attestors,
            rules=rules,
            clock=clock,
            offer=relayer.offer,
            keep_epochs=settings.service.keep_epochs,
            meter=meter,
            ender=LinkEnder(store, clock, settings.service.link_cooldown),
            on_computed=desk.take,
        )

        async def bundle(record: EpochRecord, account: str) -> str:
            return await build_bundle(store, deployment, record, account)

        def readiness() -> Sequence[Finding]:
            return [Finding("epoch", "service", cycle.last_problem)] if cycle.last_problem else []

        chains = [c.id for c in settings.chains]
        api = ApiService(
            store=store,
            halts=halts,
            latency=functools.partial(measured_latency, settings, store),
            accounts=AccountBook(store, clock, deployment.deployment_id(), chains, list(destinations), witness),
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
        )
        server = QuietServer(
            uvicorn.Config(create_app(api), log_level="warning", access_log=False, lifespan="off", workers=1)
        )
        yield Service(cycle, relayer, server, listener)


async def _highest_on_chain(destinations: Iterable[Destination]) -> int:
    """Return the highest epoch on any destination that answers; attestors sign only above it."""
    highest = 0
    for destination in destinations:
        with contextlib.suppress(SourceError):  # an unreachable chain adds nothing; the local record still holds
            latest = await destination.read_latest()
            highest = max(highest, latest.epoch if latest else 0)
    return highest


async def build_bundle(store: Store, deployment: Deployment, record: EpochRecord, account: str) -> str:
    """Return the audit bundle of one account at one epoch."""
    from aggregator.service.bundle import export_bundle

    links, salt = await store.links(account), await store.salt(account)
    # In a thread: it builds both trees of the epoch, and requests and epochs share the loop.
    return await asyncio.to_thread(export_bundle, record, account, deployment, links, {account: salt})


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


async def _probe_destination(settings: Settings, row: DestinationRow) -> Sequence[Finding]:
    destination = build_destination(settings, row)
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


def create_key_file(path: Path, passphrase: str, *, solana: bool) -> str:
    """Create an encrypted key file and return its address."""
    from adapters.keys import create_key, create_solana_key

    return create_solana_key(path, passphrase) if solana else create_key(path, passphrase)


def show_key_file(path: Path) -> str:
    """Return the address of a key file."""
    from adapters.keys import show_key

    return show_key(path)
