"""Providers of one made-up chain, each with a fault of its own. No two tell the same lie, unless a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapters.quorum import Dispute, QuorumReader
from aggregator.domain.errors import Garbage, Unavailable, Unreachable, WrongChain
from aggregator.domain.price import Quote
from aggregator.domain.rows import ChainRow, LatencyLeg
from aggregator.domain.snapshot import Block, Finding, Position, Reading, Subject

CHAIN, NAME = "eip155:31337", "alpha"
HEAD, STEP = 10_000, 2
CUT = HEAD * STEP
ACCOUNTS = tuple("0x" + f"{i:02x}" * 32 for i in range(1, 8))
USDC, WETH = f"{CHAIN}/erc20:0x{'c1' * 20}", f"{CHAIN}/erc20:0x{'e1' * 20}"


def held(account: str, asset: str, amount: int, side: str = "asset", venue: str = "wallet") -> Position:
    return Position(account, CHAIN, venue, asset, amount, asset, amount, side, address="0x" + "9a" * 20)  # type: ignore[arg-type]


POSITIONS = tuple(
    p
    for i, account in enumerate(ACCOUNTS)
    for p in (
        held(account, USDC, 1_000 + i),
        held(account, WETH, 5 + i),
        held(account, USDC, 300 + i, "debt", "lender"),
    )
)
FINDINGS = (
    Finding("unreadable", ACCOUNTS[0], f"{WETH}: the balance call failed"),
    Finding("venue-health", ACCOUNTS[1], "aave-v3: health factor 1.7"),
)
QUOTES = (
    Quote("ETH/USD", "chainlink", "chainlink", 3_000, 1, 0, CUT),
    Quote("USDC/USD", "x", "chainlink", 1, 0, 0, CUT),
)
SUBJECTS = tuple(Subject(account, "0x" + "9a" * 20) for account in ACCOUNTS)
FAULTS = (
    *("dead", "stale", "wrong-chain", "garbage", "unhandled", "future", "fork", "ahead", "mixed-heights"),
    *("inflates", "omits", "forgets-debt", "hides-trouble", "invents-debt", "backdates"),
)


def block(height: int, fork: int = 0) -> Block:
    return Block(CHAIN, height, f"0x{fork:08x}{height:056x}", f"0x{fork:08x}{height - 1:056x}", height * STEP)


def row(providers: int, quorum: int, **changes: object) -> ChainRow:
    fields: dict[str, object] = {
        "id": CHAIN,
        "name": NAME,
        "family": "evm",
        "rpc": tuple(f"https://rpc-{i}.example.org/secret-key" for i in range(providers)),
        "genesis": "0x" + "11" * 32,
        "block_seconds": STEP,
        "max_age": 60,
        "hold": (LatencyLeg(typical=1),),
        "quorum": quorum,
    }
    return ChainRow.model_validate({**fields, **changes})


@dataclass
class FakeProvider:
    """One provider. ``fault`` is one of FAULTS, "" or "hangs"; ``number`` makes its lie its own."""

    number: int
    chain: ChainRow
    fault: str = ""
    head: int = HEAD
    closed: bool = False
    positions: tuple[Position, ...] = POSITIONS
    asked: int = 0
    depth: int = 10  # of what it calls irreversible
    changed: frozenset[str] = frozenset(ACCOUNTS[:2])
    frozen: str = ""

    @property
    def row(self) -> ChainRow:
        return self.chain

    async def _answer(self) -> None:
        self.asked += 1
        if self.fault == "hangs":
            await asyncio.Event().wait()
        if self.fault == "dead":
            raise Unreachable(NAME, "cannot be reached (ClientConnectorError)")
        if self.fault == "garbage":
            raise Garbage(NAME, "the answer to eth_call is not JSON-RPC")
        if self.fault == "unhandled":
            raise RecursionError

    async def verify_identity(self) -> None:
        await self._answer()
        if self.fault == "wrong-chain":
            raise WrongChain(NAME, "the node answers for chain id 666, configured is 31337")

    async def pin(self, cut_time: int) -> Block:
        await self._answer()
        height = min(self.head, cut_time // STEP)
        match self.fault:
            case "stale":
                return block(height - 1_000 * (self.number + 1))
            case "wrong-chain" | "fork":
                return block(height, self.number + 1)
            case "ahead":
                return block(height + 1_000 * (self.number + 1), self.number + 1)._replace(time=cut_time)
            case "future":
                return block(height)._replace(time=cut_time + 100 + self.number)
            case "backdates":
                return block(height)._replace(time=height * STEP - 1 - self.number)
        return block(height)

    async def block_at(self, height: int) -> Block:
        await self._answer()
        if height > self.head:
            raise Unavailable(NAME, f"the node does not have block {height}")
        return block(height, self.number + 1 if self.fault in ("wrong-chain", "fork") else 0)

    async def headers(self, first: int, last: int) -> tuple[Block, ...]:
        return tuple([await self.block_at(height) for height in range(first, last + 1)])

    async def irreversible(self) -> Block:
        await self._answer()
        match self.fault:
            case "ahead":
                return block(self.head + 1_000 * (self.number + 1), self.number + 1)
            case "stale":
                return block(self.head - self.depth - 1_000 * (self.number + 1))
            case "wrong-chain" | "fork":
                return block(self.head - self.depth, self.number + 1)
        return block(self.head - self.depth)

    async def changes(self, first: int, last: int) -> frozenset[str] | None:
        await self._answer()
        if self.fault == "unhandled":
            return None
        return frozenset() if self.fault == "omits" else self.changed

    @property
    def finality_lag(self) -> float | None:
        return float(self.depth * STEP)

    async def read(self, pinned: Block, subjects: Sequence[Subject]) -> Reading:
        await self._answer()
        if self.fault == "stale" or (
            self.fault == "fork" and pinned.hash != block(pinned.height, self.number + 1).hash
        ):
            raise Unavailable(NAME, "eth_call: header not found")
        if self.fault == "mixed-heights":
            raise Garbage(NAME, f"multicall ran at another height than block {pinned.height}")
        wanted = {s.account for s in subjects}
        mine = ACCOUNTS[self.number % len(ACCOUNTS)]
        positions = [p for p in self.positions if p.account in wanted]
        findings = [f for f in FINDINGS if f.scope in wanted]
        match self.fault:
            case "inflates":
                more = (self.number + 2) * 10
                positions = [p._replace(amount=p.amount * more) if p.side == "asset" else p for p in positions]
            case "omits":
                positions = [p for p in positions if p.account != mine]
            case "forgets-debt":
                positions = [p for p in positions if p.side == "asset" or p.account != mine]
            case "invents-debt":
                positions.append(held(mine, WETH, 7 + self.number, "debt", "lender"))
            case "hides-trouble":
                findings = [f for f in findings if f.scope != mine]  # each of another account: no two the same lie
                findings.append(Finding("unreadable", mine, f"provider {self.number} cannot tell"))
        return Reading(pinned, tuple(positions), tuple(findings), frozen=self.frozen)

    async def read_quotes(self, pinned: Block) -> tuple[Quote, ...]:
        await self._answer()
        if self.fault == "inflates":
            return tuple(q._replace(price=q.price * (self.number + 2)) for q in QUOTES)
        return QUOTES[:1] if self.fault == "omits" else QUOTES

    async def check(self) -> tuple[Finding, ...]:
        await self._answer()
        return (Finding("ok", NAME, f"chain {CHAIN}, head {self.head}"),)

    async def close(self) -> None:
        self.closed = True


@dataclass
class Quorum:
    """A quorum reader over fake providers, with what it put on record."""

    reader: QuorumReader
    providers: list[FakeProvider]
    disputes: list[Dispute]

    async def observe(self) -> Reading:
        """Pin and read, as an observer does."""
        pinned = await self.reader.pin(CUT)
        reading, quotes = await asyncio.gather(self.reader.read(pinned, SUBJECTS), self.reader.read_quotes(pinned))
        return replace(reading, quotes=quotes)


def make(*faults: str, need: int | None = None, **changes: object) -> Quorum:
    need = need or len(faults) // 2 + 1
    chain, disputes = row(len(faults), need, **changes), list[Dispute]()
    providers = [FakeProvider(i, chain, fault) for i, fault in enumerate(faults)]
    names = [f"{NAME}[{i}]" for i in range(len(faults))]
    return Quorum(QuorumReader(chain, providers, names, need, disputes.append), providers, disputes)


HONEST = Reading(block(HEAD), POSITIONS, FINDINGS, QUOTES)
