"""What is true, in exact integers: the reference that everything certified is held against.

It keeps its own books. The chains of a world only show them: every block's state is remembered here by the block's
hash, for blocks that were replaced too, so that a certified number can be asked for its truth at the block it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from adapters.disputes import Dispute
from adapters.quorum import QuorumReader
from aggregator.domain.snapshot import Block, Position, Reading, Side, Subject
from aggregator.ports import ChainReader
from aggregator.service.workbench import Computed, Workbench
from tests.worlds.chains import SimulatedChain, SimulatedReader, inflated
from tests.worlds.documents import ALPHA, BETA, SOL
from tests.worlds.world import SimulatedWorld

PROVIDERS, NEED = 3, 2
COOLDOWN, MAX_LIFETIME = 65, 60
REREAD_EPOCHS = 4
FINAL, IRREVERSIBLE = 2, 8
"""Blocks deep, on EVM chains."""


class Slot(NamedTuple):
    """Where an amount is kept. ``holder`` is an account, or an address without its chain."""

    chain: str
    venue: str
    asset: str
    side: Side
    holder: str


class Held(NamedTuple):
    """Base units; ``pending`` of them are under a withdrawal request."""

    amount: int
    pending: int = 0


Books = Mapping[Slot, Held]


class Tie(NamedTuple):
    """An address backs an account; ``revoked_at`` is None while it stands."""

    account: str
    revoked_at: int | None = None


@dataclass
class ModelChain:
    """The books of one chain: as they are, and as they were at every block that ever existed."""

    chain: SimulatedChain
    now: dict[Slot, Held] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)  # canonical, by height
    books: dict[str, Books] = field(default_factory=dict)  # by block hash
    replaced: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.follow()

    def follow(self) -> None:
        """Take in the chain's new blocks: the books as they are stood when those were made."""
        for block in self.chain.blocks[len(self.hashes) :]:
            self.hashes.append(block.hash)
            self.books[block.hash] = dict(self.now)

    def change(self, slot: Slot, amount: int, pending: int = 0) -> None:
        """Set what ``slot`` holds from the next block on."""
        self.now[slot] = Held(amount, pending)
        if not amount:
            del self.now[slot]
        self.chain.put(*self._positions())

    def fork(self, depth: int, keep: bool) -> None:
        """Replace the newest blocks; ``keep`` says whether their transactions are in the new ones too."""
        gone = self.hashes[-depth:]
        del self.hashes[-depth:]
        self.replaced.update(gone)
        if not keep:
            self.now = dict(self.books[self.hashes[-1]])
        self.chain.put(*self._positions())
        self.chain.reorg(depth)
        self.follow()

    def _positions(self) -> Iterator[Position]:
        for (chain, venue, asset, side, holder), (amount, pending) in sorted(self.now.items()):
            keyed = len(holder) == 66  # by the account itself
            vault = venue == "vault"
            yield Position(
                holder if keyed else "",
                chain,
                venue,
                asset,
                amount,
                asset,
                amount,
                side,
                "seizable" if vault else "none",
                7_200 if vault else 0,
                pending,
                address="" if keyed else holder,
            )


class Eyes(SimulatedReader):
    """A provider that sees whose address an amount is by who is asked about, as real ones do."""

    async def read(self, block: Block, subjects: Sequence[Subject]) -> Reading:
        await self._answer()
        height = self._height(block)
        self.reads.append(block)
        held: dict[str, list[Position]] = {}
        for p in self.chain.states[height]:
            held.setdefault(p.address or p.account, []).append(p)
        found = [p._replace(account=s.account) for s in subjects for p in held.get(s.address or s.account, ())]
        reading = Reading(block, tuple(found), frozen=self.frozen)
        return self.lie(reading) if self.lie else reading


def forgetful(reading: Reading) -> Reading:
    """Tell a lie: nobody owes anything, and what is owned is ten times as much."""
    assets = tuple(p for p in inflated(10)(reading).positions if p.side == "asset")
    return Reading(reading.block, assets, reading.findings, frozen=reading.frozen)


class Recorder(Workbench):
    """Remembers what every party computed from; the coordinator is the first of an epoch."""

    def __init__(self, bench: Workbench) -> None:
        self.__dict__.update(bench.__dict__)
        self.calls: list[tuple[Any, ...]] = []
        self.once: list[Any] = []  # to do while an epoch is under way, before the first attestor looks

    def compute(self, *given: Any) -> Computed:
        self.calls.append(given)
        while self.once:
            self.once.pop()()
        return super().compute(*given)


@dataclass
class ProvidedWorld(SimulatedWorld):
    """A world whose parties read every chain through a quorum of three providers each."""

    providers: list[dict[str, list[Eyes]]] = field(default_factory=list)  # by party, as in ``parties``
    disputes: list[Dispute] = field(default_factory=list)

    @classmethod
    def at(cls, folder: Path, timeout: float) -> ProvidedWorld:
        """Return a world that carries readings, whose links end soon, and whose EVM chains have two depths.

        Args:
            timeout: of every chain, in real seconds: only what hangs waits for it.
        """

        def adapt(document: dict[str, Any]) -> None:
            for row in document["chains"]:
                row["rpc"] = [f"https://rpc-{i}.example.org" for i in range(PROVIDERS)]
                row["quorum"], row["timeout"] = NEED, timeout
                row["block_seconds"] = 0.25  # an attestor whose node is behind waits so long, in real time
                if row["family"] == "evm":
                    row["finality"], row["irreversible"] = {"depth": FINAL}, {"depth": IRREVERSIBLE}

        service = {"reread_epochs": REREAD_EPOCHS, "full_read_below": 0}
        service |= {"max_lifetime": MAX_LIFETIME, "link_cooldown": COOLDOWN}
        return cls(folder, {"service": service}, adapt)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.workbench = self.recorder = Recorder(self.workbench)
        self.model = {id: ModelChain(chain) for id, chain in self.chains.items()}
        self.ties: dict[str, Tie] = {}
        self.parties = tuple(self.readers)

    def _readers(self) -> dict[str, Any]:
        eyes = {id: [Eyes(chain) for _ in range(PROVIDERS)] for id, chain in self.chains.items()}
        self.providers.append(eyes)
        quorums: dict[str, ChainReader] = {}
        for id, readers in eyes.items():
            names = [f"{id}[{i}]" for i in range(PROVIDERS)]
            quorums[id] = QuorumReader(self.chains[id].row, readers, names, NEED, self.disputes.append)
        return quorums

    def tick(self, epoch: int) -> None:
        super().tick(epoch)
        for chain in getattr(self, "model", {}).values():
            chain.follow()

    def truth(self, chain: str, block_hash: str, account: str, links: Sequence[str]) -> dict[Slot, Held]:
        """Return what ``account`` and the addresses in ``links`` held and owed at a block."""
        prefix = f"{chain}:"
        holders = {account, *(link.removeprefix(prefix) for link in links if link.startswith(prefix))}
        return {slot: held for slot, held in self.model[chain].books[block_hash].items() if slot.holder in holders}

    def answering(self, party: int, chain: str) -> int:
        """Return how many of a party's providers answer for the chain, truthfully or not."""
        return sum(not (eyes.dark or eyes.hangs or eyes.wrong_chain) for eyes in self.providers[party][chain])


CHAINS = (ALPHA, BETA, SOL)
