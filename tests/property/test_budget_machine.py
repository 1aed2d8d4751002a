"""Budgets over three destinations whose registries follow the statements, or do not: nobody spends a margin twice.

The registries are written anew here, from what the protocol says of them. Statements are made by the real valuation,
which sees of each destination a final block, perhaps an old one. At every step invariant 34 is asserted: the sum
of what is drawn and of what may still be drawn, anywhere, by any statement ever signed, certified or not, is covered.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aggregator.core.pipeline import compute_report, destination_id, leaves
from aggregator.core.tables import World
from aggregator.domain.budgets import Drawn, Grant, Share, staircase
from aggregator.domain.price import Quote
from aggregator.domain.report import LeafValues
from aggregator.domain.rows import DestinationRow
from aggregator.domain.snapshot import Account, Block, ChainView, Position, Snapshot
from tests.strategies import CUT_TIME, EVM, FLAT, SOLANA, USDC, account_id, chain_row, position, quotes, world

THIRD = "eip155:7"
PLACES = (EVM, SOLANA, THIRD)
BOUNDS = {EVM: 5, SOLANA: 30, THIRD: 12}
EPOCH, LIFETIME, MAX_AGE = 10, 60, 300
ME = account_id(1)
DOLLAR = 10**8


@dataclass(frozen=True)
class Registry:
    """What one registry keeps of the account at one block."""

    time: int
    newest: int = 0
    floor: int = 0
    header_until: int = 0
    leaf: tuple[int, int, int] | None = None  # epoch, budget, valid until
    used: int = 0

    def usable(self) -> int:
        if self.leaf is None:
            return 0
        epoch, budget, until = self.leaf
        alive = epoch == self.newest and epoch >= self.floor and self.time < min(until, self.header_until)
        return max(0, budget - self.used) if alive else 0


@dataclass
class Place:
    """One destination: its chain's blocks so far, of which those up to ``final`` stay."""

    lag: int  # seconds that its clock is behind
    blocks: list[Registry] = field(default_factory=list)
    final: int = 0

    @property
    def head(self) -> Registry:
        return self.blocks[-1]


def _world() -> World:
    of = world({"risky": FLAT, "stable": FLAT}, lifetime=LIFETIME)
    rows = tuple(
        DestinationRow(chain=chain, kind="evm-registry", address="0x00", clock_bound=BOUNDS[chain], payer_key="payer")
        for chain in PLACES
    )
    chains = tuple(chain_row(chain, max_age=MAX_AGE) for chain in PLACES)
    return replace(of, chains=chains, destinations=rows)


WORLD = _world()
KEYS = {destination_id(chain): chain for chain in PLACES}


def _quotes(now: int) -> list[Quote]:
    return [q._replace(publish_time=now) for q in quotes()]


class Budgets(RuleBasedStateMachine):
    """Time, statements, posts, draws, repayments, reorganisations, expiry and new shares, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = CUT_TIME // EPOCH * EPOCH
        self.dollars = 1_000
        self.shares: tuple[Share, ...] = ()
        self.statements: dict[int, tuple[dict[str, LeafValues], int]] = {}  # by epoch: leaves, floor
        self.grants: list[Grant] = []
        self.floor = 0
        self.free = 0
        self.fell = False
        self.committed = 0  # what could be drawn in all after the step before

    @initialize(lags=st.tuples(*(st.integers(0, BOUNDS[chain]) for chain in PLACES)))
    def begin(self, lags: tuple[int, ...]) -> None:
        self.places = {chain: Place(lag) for chain, lag in zip(PLACES, lags, strict=True)}
        for place in self.places.values():
            place.blocks.append(Registry(self.now - place.lag))

    @rule(seconds=st.integers(1, 2 * LIFETIME))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        for place in self.places.values():
            place.blocks.append(replace(place.head, time=self.now - place.lag))

    @rule(chain=st.sampled_from(PLACES), depth=st.integers(0, 5))
    def finalise(self, chain: str, depth: int) -> None:
        place = self.places[chain]
        place.final = max(place.final, len(place.blocks) - 1 - depth)

    @rule(chain=st.sampled_from(PLACES))
    def reorganise(self, chain: str) -> None:
        """Drop all that is not final; the chain goes on at its clock."""
        place = self.places[chain]
        del place.blocks[place.final + 1 :]
        place.blocks.append(replace(place.head, time=self.now - place.lag))

    @rule(parts=st.lists(st.integers(0, 10_000), min_size=3, max_size=3))
    def share_out(self, parts: list[int]) -> None:
        whole = max(sum(parts), 10_000)
        scaled = [part * 10_000 // whole for part in parts]
        self.shares = tuple(Share(c, p) for c, p in zip(sorted(PLACES), scaled, strict=True) if p)

    @rule(dollars=st.integers(0, 5_000))
    def revalue(self, dollars: int) -> None:
        self.dollars = dollars

    @rule(heard=st.booleans(), reorg=st.booleans())
    def state(self, heard: bool, reorg: bool) -> None:
        """Make a statement. Only its signers may know of it, as it may be lost before anybody hears of it."""
        epoch = self.now // EPOCH
        if epoch in self.statements:
            return
        if not heard and not self.statements:
            return
        cut_time = epoch * EPOCH
        known = staircase(g for g in self.grants if g.valid_until + max(BOUNDS.values()) + MAX_AGE > cut_time)
        account = Account(ME, f"{EVM}:0x{1:040x}", "risk-bearing", EVM, shares=self.shares)
        held = position(1, USDC, float(self.dollars))
        found = compute_report(self._seen(epoch, cut_time, account, held, known), _quotes(cut_time), WORLD)
        self.floor = epoch if reorg else self.floor
        given = {KEYS[leaf.destination]: leaf for leaf in leaves(found)}
        self.statements[epoch] = (given, self.floor)
        self.grants += [
            Grant(ME, leaf.destination, epoch, leaf.budget, leaf.valid_until) for leaf in given.values() if leaf.budget
        ]
        self.fell = self.fell or int(found.free[0]) < self.free
        self.free = int(found.free[0])
        assert self._drawable() <= max(self.free, self.committed), "a statement allowed what is charged already"

    def _seen(self, epoch: int, cut_time: int, account: Account, held: Position, grants: tuple[Grant, ...]) -> Snapshot:
        """Return what is read at each chain's newest final block that is not after the cut."""
        views, rows = [], [held]
        for chain, place in self.places.items():
            blocks = place.blocks[: place.final + 1]
            height = max((i for i, b in enumerate(blocks) if b.time <= cut_time), default=None)
            if height is None:
                views.append(ChainView(chain, "missing", "never read"))
                continue
            seen = blocks[height]
            age = max(0, cut_time - seen.time)
            block = Block(chain, height + 1, "0x01", "0x00", seen.time)
            # Assets are read anew in any case: what is asked here is about budgets.
            views.append(ChainView(chain, "ok" if age <= MAX_AGE else "stale", "", block, age))
            name = f"{chain}/registry:0x00"
            rows.append(
                Position(
                    ME, chain, "registry", name, seen.used, name, seen.used, "debt", origin="0x00",
                    drawn=Drawn(seen.newest, 1),
                )
            )  # fmt: skip
        return Snapshot(
            epoch, cut_time, cut_time + LIFETIME, (account,), tuple(sorted(views, key=lambda v: v.chain)),
            tuple(sorted(rows)), grants=grants,
        )  # fmt: skip

    @rule(chain=st.sampled_from(PLACES), back=st.integers(0, 4))
    def post(self, chain: str, back: int) -> None:
        """Post one of the newest statements there, late perhaps, and apply its leaf or not."""
        place = self.places[chain]
        for epoch in sorted(self.statements, reverse=True)[back : back + 1]:
            given, floor = self.statements[epoch]
            head = place.head
            if epoch > head.newest and head.time < given[chain].valid_until and floor >= head.floor:
                place.blocks.append(replace(head, newest=epoch, floor=floor, header_until=given[chain].valid_until))

    @rule(seconds=st.sampled_from((EPOCH, LIFETIME + 2 * EPOCH)), drawn=st.sampled_from((0.0, 0.5, 1.0)))
    def run_well(self, seconds: int, drawn: float) -> None:
        """Post the newest statement everywhere, draw on it, see it all become final, and go on."""
        for chain in PLACES:
            self.post(chain, 0)
            self.draw(chain, drawn, True)
        self.wait(seconds)
        for chain in PLACES:
            self.finalise(chain, 0)

    @rule(chain=st.sampled_from(PLACES))
    def move(self, chain: str) -> None:
        """Share everything out to one destination, and state it at once."""
        self.shares = (Share(chain, 10_000),)
        self.wait(EPOCH)
        self.state(True, False)

    @rule(chain=st.sampled_from(PLACES), share=st.one_of(st.just(1.0), st.floats(0, 1)), applied=st.booleans())
    def draw(self, chain: str, share: float, applied: bool) -> None:
        place = self.places[chain]
        head = place.head
        if head.newest in self.statements and applied:
            leaf = self.statements[head.newest][0][chain]
            head = replace(head, leaf=(leaf.epoch, leaf.budget, leaf.valid_until))
        amount = int(head.usable() * share)
        place.blocks.append(replace(head, used=head.used + amount))

    @rule(chain=st.sampled_from(PLACES), share=st.floats(0, 1))
    def repay(self, chain: str, share: float) -> None:
        place = self.places[chain]
        place.blocks.append(replace(place.head, used=place.head.used - int(place.head.used * share)))

    def _drawable(self) -> int:
        """Return Σ max(used, usable), with what a reorganisation may bring back and what may yet be posted."""
        total = 0
        for chain, place in self.places.items():
            alive = place.blocks[place.final :]
            final, used = alive[0], max(block.used for block in alive)
            # Any block after the final one may still have been, or be, at its time.
            budgets = [
                given[chain].budget
                for epoch, (given, _) in self.statements.items()
                if epoch >= final.newest and final.time < given[chain].valid_until
            ]
            total += max([used, *budgets])
        return total

    @invariant()
    def nobody_spends_the_same_margin_twice(self) -> None:
        if not hasattr(self, "places"):
            return
        drawable = self._drawable()
        real = sum(place.head.used + place.head.usable() for place in self.places.values())
        assert real <= drawable
        assert drawable <= max(self.free, self.committed)
        if not self.fell:
            assert drawable <= self.free
        self.committed = drawable


TestBudgets = Budgets.TestCase
TestBudgets.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
