"""A world that a real Cycle runs on: simulated chains, the devnet's signed prices, real keys, a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from coincurve import PrivateKey
from solders.keypair import Keypair

from adapters.keys import KeySigner
from adapters.prices.pyth import PythSource
from aggregator.bootstrap import deployment_of, store_url, world_of
from aggregator.config import parse_settings
from aggregator.domain.certificate import EpochRecord, LinkRecord
from aggregator.domain.errors import RefusedError, SourceError, Unreachable
from aggregator.domain.price import Quote
from aggregator.domain.snapshot import Account, Position, Reading, Subject
from aggregator.ports import Store
from aggregator.service.accounts import AccountBook, LinkEnder
from aggregator.service.attest import Attestor, Rules
from aggregator.service.collect import Observer, Rereading
from aggregator.service.cycle import Cycle
from aggregator.service.examine import Examiner
from aggregator.service.latency import LatencyMeter
from aggregator.service.state_rules import StateRules
from aggregator.service.workbench import Workbench
from aggregator.store import SqlStore
from aggregator.store.halts import SqlHalts
from aggregator.store.latencies import SqlLatencies
from infra.devnet.hermes import Published, Publisher, build_update, read_feeds
from proofs.hashing import keccak256
from proofs.links import LinkTerms, Verb, link_digest, link_text
from tests.worlds.chains import SimulatedChain, SimulatedReader
from tests.worlds.documents import ALPHA, BETA, BETA_USDC, EPOCH_SECONDS, LAMPORTS, SOL, USDC, WETH, make_document

START = 1_700_000_000
FIRST_EPOCH = START // EPOCH_SECONDS + 50
ETHER, DOLLAR = 10**18, 10**6
FEEDS = ("ETH/USD", "SOL/USD", "USDC/USD")


class HandClock:
    """A clock that a test sets; ``woken`` is told the time after each sleep."""

    def __init__(self, now: float) -> None:
        self.time = now
        self.woken: Callable[[float], None] = lambda _: None

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.woken(self.time)
        await asyncio.sleep(0)


class MemoryWatermark:
    """The watermark's rule without its file."""

    def __init__(self) -> None:
        self.signed: dict[int, bytes] = {}

    async def claim(self, epoch: int, digest: bytes) -> None:
        if epoch < max(self.signed, default=-1) or self.signed.get(epoch, digest) != digest:
            raise RefusedError("watermark", f"epoch {epoch}")
        self.signed[epoch] = digest

    async def highest(self) -> int | None:
        return max(self.signed, default=None)


class SimulatedPrices:
    """Implements ``aggregator.ports.PriceSource``: the devnet publisher's signed bytes, verified as always."""

    name = "pyth"

    def __init__(self, publisher: Publisher, source: PythSource) -> None:
        self.publisher, self.source = publisher, source
        self.dark = False

    async def fetch(self, cut_time: int) -> tuple[bytes, ...]:
        published = None if self.dark else self.publisher.first_at_or_after(cut_time)
        if published is None:
            raise Unreachable(self.name, "cannot be reached")
        return (self.build(published),)

    def build(self, published: Published) -> bytes:
        """Return the update bytes for the feeds that the configuration names."""
        return build_update(published, [f.feed_id for f in self.publisher.feeds if f.symbol in FEEDS])

    def decode(self, updates: Sequence[bytes], cut_time: int) -> tuple[Quote, ...]:
        return self.source.decode(updates, cut_time)

    async def close(self) -> None:
        await self.source.close()


class EvmPerson:
    """Somebody with an EVM wallet."""

    def __init__(self, name: str, chain: str = ALPHA) -> None:
        self.key = PrivateKey(keccak256(name.encode()))
        address = keccak256(self.key.public_key.format(compressed=False)[1:])[12:]
        self.address = f"{chain}:0x{address.hex()}"

    def sign(self, deployment_id: bytes, verb: Verb, terms: LinkTerms) -> str:
        """Return the 65-byte signature as a wallet gives it."""
        signature = self.key.sign_recoverable(link_digest(deployment_id, verb, terms), hasher=None)
        return "0x" + (signature[:64] + bytes([27 + signature[64]])).hex()


class SolanaPerson:
    """Somebody with a Solana wallet."""

    def __init__(self, name: str, chain: str = SOL) -> None:
        self.key = Keypair.from_seed(keccak256(name.encode()))
        self.address = f"{chain}:{self.key.pubkey()}"

    def sign(self, deployment_id: bytes, verb: Verb, terms: LinkTerms) -> str:
        """Return the Ed25519 signature in base58."""
        return str(self.key.sign_message(link_text(deployment_id, verb, terms)))


Person = EvmPerson | SolanaPerson


def vault(account: str, asset: str, amount: int, **changes: Any) -> Position:
    """Return a vault deposit: seizable, keyed by the account."""
    position = Position(account, asset.partition("/")[0], "vault", asset, amount, asset, amount)
    return position._replace(**({"control": "seizable", "removal_delay": 7_200} | changes))


def loan(account: str, asset: str, amount: int) -> Position:
    """Return a debt to a consumer of ours."""
    return Position(account, asset.partition("/")[0], "lender", asset, amount, asset, amount, side="debt")


@dataclass
class SimulatedWorld:
    """Three chains, four attestors, one coordinator, a few people. Use as an async context manager.

    Args:
        folder: where the store lies.
        changes: merged into the configuration document's tables before it is checked.
        adapt: called with the document before it is checked.
    """

    folder: Path
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapt: Callable[[dict[str, Any]], None] = lambda _: None

    def __post_init__(self) -> None:
        self.signers = [KeySigner(keccak256(b"attestor %d" % i)) for i in range(4)]
        self.document = make_document(self.folder, [s.address for s in self.signers])
        for table, values in self.changes.items():
            self.document[table] |= values
        self.adapt(self.document)
        self.settings = parse_settings(self.document)
        self.deployment = deployment_of(self.settings)
        self.clock = HandClock(START)
        self.chains = {row.id: SimulatedChain(row, START) for row in self.settings.chains}
        self.publisher = Publisher("worlds", read_feeds())
        assert self.settings.pyth is not None
        self.prices = SimulatedPrices(self.publisher, PythSource(self.settings.pyth, self.settings.sources))
        self.readers = {name: self._readers() for name in ("coordinator", *self.settings.service.attestor_keys)}
        self.workbench = Workbench(world_of(self.settings), self.settings.pyth, self.settings.policy.lifetime)
        self.rules = Rules(
            self.deployment,
            self.settings.service.epoch_seconds,
            self.settings.service.clock_skew,
            self.settings.service.max_lifetime,
            0,
        )
        self.offered: list[EpochRecord] = []
        self.disowned: set[str] = set()
        self.ada, self.bob = EvmPerson("ada"), EvmPerson("bob", BETA)
        self.cleo, self.watched = SolanaPerson("cleo"), EvmPerson("watched")
        self.levels = {"ETH/USD": 2_000 * 10**8, "SOL/USD": 100 * 10**8, "USDC/USD": 10**8}

    async def __aenter__(self) -> Self:
        self.store = await SqlStore.open(store_url(self.settings))
        self.halts, self.latencies = SqlHalts(self.store), SqlLatencies(self.store)
        self.book = AccountBook(
            self.store,
            self.clock,
            self.deployment.deployment_id(),
            list(self.chains),
            list(self.chains),
            self.witness,
        )
        self.start_service()
        self.tick(FIRST_EPOCH - 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.prices.close()
        await self.store.close()

    def start_service(
        self,
        remembered: Mapping[str, Mapping[str, Sequence[Reading]]] | None = None,
        previous: EpochRecord | None = None,
    ) -> None:
        """Build coordinator, attestors and cycle; again, as after a restart, with what each of them remembers."""
        memory = remembered or {}
        service = self.settings.service
        rereading = Rereading(service.reread_epochs, service.epoch_seconds, service.full_read_below)
        rows = self.settings.chains, self.settings.destinations
        self.meters = {
            name: LatencyMeter(self.clock, *rows, self.latencies if name == "coordinator" else None, histogram=None)
            for name in self.readers
        }
        self.observers = {
            name: Observer(
                name,
                readers,
                memory.get(name),
                halts=self.halts,
                rereading=rereading,
                measure=self.meters[name].measure,
                certified=(previous.header.epoch, previous.chains) if previous else (0, ()),
            )
            for name, readers in self.readers.items()
        }
        store: Store = self.store
        self.state_rules = {
            name: StateRules(self.deployment.deployment_id(), service.link_cooldown, self.witness)
            for name in service.attestor_keys
        }
        self.attestors = [
            Attestor(
                name,
                index,
                self.signers[index],
                MemoryWatermark(),
                Examiner(
                    self.state_rules[name],
                    self.workbench,
                    self.observers[name],
                    self.prices,
                    store,
                    self.meters[name],
                ).recompute,
                rules=self.rules,
                clock=self.clock,
                last=previous.certificate if previous else None,
            )
            for index, name in enumerate(self.settings.service.attestor_keys)
        ]
        self.cycle = Cycle(
            workbench=self.workbench,
            observer=self.observers["coordinator"],
            source=self.prices,
            store=store,
            attestors=self.attestors,
            rules=self.rules,
            clock=self.clock,
            offer=self._offer,
            keep_epochs=1_000,
            meter=self.meters["coordinator"],
            ender=LinkEnder(store, self.clock, service.link_cooldown),
            grace=60.0,  # of a real clock: what a busy machine does must not decide who has signed
        )

    async def witness(self, chain: str, asked: Sequence[tuple[Subject, int]]) -> list[str | SourceError]:
        """Answer as a chain does about addresses without a key: those in ``disowned`` do not agree (any more)."""
        assert all(subject.seal for subject, _ in asked)
        found = [f"{chain}:{subject.address}" for subject, _ in asked]
        return [f"{address} denies it" if address in self.disowned else "" for address in found]

    async def restart(self) -> None:
        """Build the service anew over its store, as a process that was killed does."""
        memory = {name: await self.store.readings(name) for name in self.readers}
        self.start_service(memory, await self.store.epoch())

    async def _offer(self, record: EpochRecord) -> None:
        self.offered.append(record)

    def _readers(self) -> dict[str, SimulatedReader]:
        return {id: SimulatedReader(chain) for id, chain in self.chains.items()}

    def everyone(self, chain: str) -> list[SimulatedReader]:
        """Return every party's reader of one chain."""
        return [readers[chain] for readers in self.readers.values()]

    def tick(self, epoch: int) -> None:
        """Let time pass until just after the start of ``epoch``."""
        cut_time = epoch * EPOCH_SECONDS
        self.clock.time = cut_time + 0.5
        for name, id in (("alpha", ALPHA), ("beta", BETA)):
            self.chains[id].put_prices(f"chainlink-{name}", self.levels)
        for chain in self.chains.values():
            chain.mine(cut_time)
        self.publisher.tick(cut_time)
        published = self.publisher.latest()
        if published is not None:  # the chains' feeds follow
            for quote in self.prices.decode((self.prices.build(published),), cut_time):
                self.levels[quote.feed] = quote.price * 10 ** (8 + quote.expo)

    @property
    def cut_time(self) -> int:
        """The cut of the epoch that the clock is in."""
        return int(self.clock.time) // EPOCH_SECONDS * EPOCH_SECONDS

    async def epoch(self, number: int) -> EpochRecord:
        """Let time pass until ``number`` and run it."""
        self.tick(number)
        return await self.cycle.run_epoch(number)

    async def link(
        self, who: Account, controller: Person, member: Person, count: int = 1, /, **changes: Any
    ) -> LinkRecord:
        """Sign a link with nonce ``count`` on both sides and record it; ``changes`` are made after signing."""
        terms = LinkTerms(
            bytes.fromhex(who.id[2:]), controller.address, member.address, count, int(self.clock.now()) + 600
        )
        id = self.deployment.deployment_id()
        given = {
            "account": who.id,
            "controller": controller.address,
            "member": member.address,
            "nonce": count,
            "expiry": terms.expiry,
            "invite_signature": controller.sign(id, "invite", terms),
            "accept_signature": member.sign(id, "accept", terms),
        }
        return await self.book.add_link(**(given | changes))

    async def populate(self) -> dict[str, Account]:
        """Open three accounts, link their addresses and give them positions.

        ada: 10 WETH (1 under withdrawal) and 5,000 USDC on two chains, owes 3,000 USDC. cleo: 100 SOL. watched: a
        monitored wallet.
        """
        opened = {
            name: await self.book.open_account(person.address, "0x" + f"{i:064x}", kind, None, name)
            for i, (name, person, kind) in enumerate(
                (
                    ("ada", self.ada, "risk-bearing"),
                    ("cleo", self.cleo, "risk-bearing"),
                    ("watched", self.watched, "monitored"),
                )
            )
        }
        await self.link(opened["ada"], self.ada, self.bob)
        await self.link(opened["ada"], self.ada, self.cleo)
        await self.link(opened["watched"], self.watched, self.watched)
        ada, cleo, watched = opened["ada"].id, opened["cleo"].id, opened["watched"].id
        wallet = Position(watched, ALPHA, "wallet", WETH, 2 * ETHER, WETH, 2 * ETHER)
        self.chains[ALPHA].put(
            vault(ada, WETH, 10 * ETHER, pending=ETHER),
            loan(ada, USDC, 3_000 * DOLLAR),
            wallet._replace(address=self.watched.address.rpartition(":")[2]),
        )
        self.chains[BETA].put(vault(ada, BETA_USDC, 5_000 * DOLLAR))
        self.chains[SOL].put(vault(cleo, LAMPORTS, 100 * 10**9))
        self.tick(FIRST_EPOCH - 1)  # until it is final
        return opened
