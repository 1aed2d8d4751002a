"""Composition root: the only module that names adapters and the store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.destinations.evm import EvmRegistryDestination
from adapters.destinations.solana import SolanaRegistryDestination
from adapters.evm.aave_v3 import AaveV3
from adapters.evm.lender import Lender
from adapters.evm.reader import EvmAdapter, EvmReader
from adapters.evm.vault import Vault
from adapters.evm.wallet import Wallet
from adapters.keys import create_key, create_solana_key, load_key, load_solana_key, show_key
from adapters.prices.pyth import PythSource
from adapters.rpc import EvmEndpoint, SolanaEndpoint
from adapters.solana.native import NativeWallet
from adapters.solana.reader import SolanaAdapter, SolanaReader
from adapters.solana.spl_token import SplTokenWallet
from adapters.solana.vault import CollateralVault as SolanaVault
from aggregator.config import Settings
from aggregator.core.pipeline import World
from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import ConfigError, CrossmarginError, SourceError
from aggregator.domain.rows import AssetRow, ChainRow, DestinationRow, VenueRow
from aggregator.domain.snapshot import Finding, Reading
from aggregator.ports import ChainReader, Destination
from aggregator.service.bundle import export_bundle, leaf_proof
from aggregator.service.collect import Observer
from aggregator.store.sql import SqlStore
from proofs.statement import Deployment

if TYPE_CHECKING:
    import uvicorn

    from adapters.watermark import SqliteWatermark
    from aggregator.service.attest import Attestor
    from aggregator.service.cycle import Cycle
    from aggregator.service.relayer import Relayer


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep ``seconds``."""
        await asyncio.sleep(seconds)


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
    return World(
        chains=tuple(sorted(settings.chains, key=lambda c: c.id)),
        assets={a.id: a for a in settings.assets},
        sources=settings.sources,
        destinations=settings.destinations,
        policy=settings.policy,
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


def store_url(settings: Settings) -> str:
    """Return the database URL of the embedded store; its folder is made if need be."""
    folder = Path(settings.service.data).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite+aiosqlite:///{folder / 'crossmargin.sqlite3'}"


async def open_store(settings: Settings) -> SqlStore:
    """Open the store, bringing its schema up to date."""
    return await SqlStore.open(store_url(settings))


def _required(venue: VenueRow, name: str) -> str:
    if name not in venue.addresses:
        raise ConfigError(
            "configuration", f"venues ({venue.kind} on {venue.chain}).addresses.{name}", "is missing", '"0x…"'
        )
    return venue.addresses[name]


def _evm_adapter(row: ChainRow, venue: VenueRow, assets: dict[str, AssetRow]) -> EvmAdapter:
    match venue.kind:
        case "wallet":
            return Wallet(row.id, assets, row.multicall)
        case "vault":
            return Vault(row.id, _required(venue, "vault"), assets)
        case "lender":
            return Lender(row.id, _required(venue, "lender"), assets)
        case "aave-v3":
            return AaveV3(row.id, _required(venue, "pool"), _required(venue, "data_provider"), assets)
        case _:
            known = "wallet, vault, lender, aave-v3"
            raise ConfigError("configuration", "venues.kind", f"no EVM adapter is called {venue.kind!r}", known)


def build_reader(settings: Settings, row: ChainRow) -> ChainReader:
    """Return a reader of one chain with all its configured venues; a missing adapter stops start-up."""
    assets = {a.id: a for a in settings.assets if a.id.startswith(f"{row.id}/")}
    venues = [v for v in settings.venues if v.chain == row.id]
    if row.family == "evm":
        adapters = [_evm_adapter(row, venue, assets) for venue in venues]
        feeds = [s for s in settings.sources if s.kind == "chainlink" and s.id.startswith(f"{row.id}:")]
        return EvmReader(row, EvmEndpoint(row, row.rpc[0]), adapters, feeds)
    solana: list[SolanaAdapter] = []
    for venue in venues:
        match venue.kind:
            case "wallet":
                solana += [NativeWallet(row.id, assets), SplTokenWallet(row.id, assets)]
            case "vault":
                solana.append(SolanaVault(row.id, _required(venue, "program"), _required(venue, "vault"), assets))
            case _:
                raise ConfigError(
                    "configuration", "venues.kind", f"no Solana adapter is called {venue.kind!r}", "wallet, vault"
                )
    return SolanaReader(row, SolanaEndpoint(row, row.rpc[0]), solana)


def build_observer(settings: Settings, name: str, remembered: Mapping[str, Reading] | None = None) -> Observer:
    """Return an observer with readers, connections and memory of its own."""
    return Observer(name, {row.id: build_reader(settings, row) for row in settings.chains}, remembered)


def build_destination(settings: Settings, row: DestinationRow) -> Destination:
    """Return one destination with its payer's key."""
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

    settings: Settings
    store: SqlStore
    cycle: Cycle
    relayer: Relayer
    server: uvicorn.Server
    observers: tuple[Observer, ...]
    destinations: dict[str, Destination]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve and run epochs until ``stop`` is set."""
        serving = asyncio.create_task(self.server.serve())
        epochs = asyncio.create_task(self.cycle.run(stop))
        await self.relayer.start()
        try:
            ended = asyncio.create_task(stop.wait())
            await asyncio.wait({serving, epochs, ended}, return_when=asyncio.FIRST_COMPLETED)
            stop.set()
            if epochs.done():
                epochs.result()
        finally:
            self.server.should_exit = True
            await asyncio.gather(serving, epochs, return_exceptions=True)
            await self.relayer.stop()


@asynccontextmanager
async def build_service(settings: Settings) -> AsyncIterator[Service]:
    """Wire the service; close everything when left."""
    # Imported here: a command that only reads the store should not wait for servers and workflow engines to load.
    import uvicorn

    from adapters.watermark import SqliteWatermark
    from aggregator.api.app import ApiService, create_app
    from aggregator.service.accounts import AccountBook
    from aggregator.service.attest import Attestor, Rules
    from aggregator.service.cycle import Cycle, Workbench, recomputing
    from aggregator.service.relayer import Relayer

    class QuietServer(uvicorn.Server):
        """uvicorn inside our loop: signals are the command line's business."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    clock = SystemClock()
    deployment = deployment_of(settings)
    rules = Rules(
        deployment,
        settings.service.epoch_seconds,
        settings.service.clock_skew,
        settings.service.max_lifetime,
        # A restarted attestor waits out whatever it may have signed; a devnet starts at once.
        0 if deployment.network_class == 3 else settings.service.epoch_seconds + settings.policy.lifetime,
    )
    store = await open_store(settings)
    source = PythSource(settings.pyth, settings.sources) if settings.pyth else None
    workbench = Workbench(world_of(settings), settings.pyth, settings.policy.lifetime)
    coordinator = build_observer(settings, "coordinator", await store.readings("coordinator"))
    observers = [coordinator]
    newest = await store.epoch()
    passphrase = passphrase_of(settings)
    destinations = {d.chain: build_destination(settings, d) for d in settings.destinations}
    on_chain = await _highest_on_chain(destinations.values())
    watermarks: list[SqliteWatermark] = []
    attestors: list[Attestor] = []
    for index, name in enumerate(settings.service.attestor_keys):
        observer = build_observer(settings, name)
        observers.append(observer)
        path = Path(settings.service.data) / "attestors" / f"{name}.sqlite3"
        path.parent.mkdir(parents=True, exist_ok=True)
        watermarks.append(SqliteWatermark(path))
        attestors.append(
            Attestor(
                name,
                index,
                load_key(key_path(settings, name), passphrase),
                watermarks[-1],
                recomputing(workbench, observer, source, store),
                rules=rules,
                clock=clock,
                last=newest.certificate if newest else None,
                chain_highest=on_chain,
            )
        )
    relayer = Relayer(
        store,
        destinations,
        clock,
        Path(settings.service.data) / "relayer.sqlite3",
        heartbeat_seconds=settings.service.heartbeat_seconds,
    )
    cycle = Cycle(
        workbench=workbench,
        observer=coordinator,
        source=source,
        store=store,
        attestors=attestors,
        rules=rules,
        clock=clock,
        offer=relayer.offer,
        keep_epochs=settings.service.keep_epochs,
    )

    async def bundle(record: EpochRecord, account: str) -> str:
        return await build_bundle(store, deployment, record, account)

    def readiness() -> Sequence[Finding]:
        return [Finding("epoch", "service", cycle.last_problem)] if cycle.last_problem else []

    api = ApiService(
        store=store,
        accounts=AccountBook(
            store, clock, deployment.deployment_id(), [c.id for c in settings.chains], list(destinations)
        ),
        chains=settings.chains,
        assets=settings.assets,
        sources=settings.sources,
        destinations=settings.destinations,
        deployment=settings.deployment,
        clock=clock,
        bundle=bundle,
        proof=leaf_proof,
        readiness=readiness,
    )
    host, _, port = settings.service.listen.rpartition(":")
    server = QuietServer(
        uvicorn.Config(
            create_app(api), host=host, port=int(port), log_level="warning", access_log=False, lifespan="off"
        )
    )
    try:
        yield Service(settings, store, cycle, relayer, server, tuple(observers), destinations)
    finally:
        await asyncio.gather(*(o.close() for o in observers), *(d.close() for d in destinations.values()))
        if source is not None:
            await source.close()
        for watermark in watermarks:
            await watermark.close()
        await store.close()


async def _highest_on_chain(destinations: Iterable[Destination]) -> int:
    """Return the highest epoch on any destination that answers; attestors sign only above it."""
    highest = 0
    for destination in destinations:
        with contextlib.suppress(SourceError):  # an unreachable chain adds nothing; the local record still holds
            latest = await destination.read_latest()
            highest = max(highest, latest.epoch if latest else 0)
    return highest


async def build_bundle(store: SqlStore, deployment: Deployment, record: EpochRecord, account: str) -> str:
    """Return the audit bundle of one account at one epoch."""
    accounts = await store.accounts()
    links = await store.links(account)
    return export_bundle(record, account, deployment, links, {a.id: await store.salt(a.id) for a in accounts})


async def preflight(settings: Settings) -> tuple[Finding, ...]:
    """Probe everything ``run`` depends on; each part reports on its own."""
    findings: list[Finding] = []
    for row in settings.chains:
        reader = build_reader(settings, row)
        findings += await reader.check()
        await reader.close()
    if settings.pyth is not None:
        source = PythSource(settings.pyth, settings.sources)
        try:
            quotes = source.decode(await source.fetch(int(time.time()) - settings.service.epoch_seconds))
            findings.append(Finding("ok", "pyth", f"{len(quotes)} signed prices, signatures and paths verified"))
        except SourceError as error:
            findings.append(Finding("failed", "pyth", str(error)))
        await source.close()
    for i, name in enumerate(settings.service.attestor_keys):
        try:
            address = load_key(key_path(settings, name), passphrase_of(settings)).address
            member = settings.deployment.members[i].lower()
            good = address == member
            findings.append(
                Finding("ok" if good else "failed", name, f"key {address}" + ("" if good else f", member is {member}"))
            )
        except CrossmarginError as error:
            findings.append(Finding("failed", name, str(error)))
    for d in settings.destinations:
        try:
            destination = build_destination(settings, d)
            findings += await destination.check()
            await destination.close()
        except CrossmarginError as error:
            findings.append(Finding("failed", f"destination {d.chain}", str(error)))
    return tuple(findings)


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
    return create_solana_key(path, passphrase) if solana else create_key(path, passphrase)


def show_key_file(path: Path) -> str:
    """Return the address of a key file."""
    return show_key(path)
