"""Everything at once: money moves, histories change, providers fail, processes die, and epochs are certified.

A machine drives the real service (Cycle, attestors, quorum readers, store) through random days and holds every
certified epoch against exact books (tests/worlds/model.py). Invariants by their numbers: faults.md.

An epoch with a real store and five parties takes a quarter of a second, so the default profile plays few, long days;
``HYPOTHESIS_PROFILE=soak`` plays thousands of steps, and lets providers hang too, which costs real time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from aggregator.domain.certificate import EpochRecord
from aggregator.domain.report import Flag, LeafValues
from aggregator.domain.snapshot import REORGED, Finding, Position
from aggregator.service.collect import Collected
from proofs.links import LinkTerms
from proofs.quorum import IndexedSignature, verify_quorum
from tests.worlds.chains import inflated
from tests.worlds.documents import ALPHA, BETA, BETA_USDC, LAMPORTS, LIFETIME, SOL, USDC, WETH
from tests.worlds.model import (
    CHAINS,
    COOLDOWN,
    FINAL,
    IRREVERSIBLE,
    NEED,
    PROVIDERS,
    Eyes,
    ProvidedWorld,
    Slot,
    Tie,
    forgetful,
)
from tests.worlds.world import DOLLAR, ETHER, FIRST_EPOCH, EvmPerson, SolanaPerson

SOAK = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
TIMEOUT = 2.0 if SOAK else 20.0  # real seconds; reached by what hangs, and by nothing else
RECOVERY = 8  # epochs in which a world without faults must certify
CALM = 4  # epochs without anything new after which nobody may refuse

VAULTS = {ALPHA: (WETH, ETHER), BETA: (BETA_USDC, 1_000 * DOLLAR), SOL: (LAMPORTS, 10 * 10**9)}
LENDERS = {ALPHA: (USDC, 100 * DOLLAR), BETA: (BETA_USDC, 100 * DOLLAR)}
WALLETS = {ALPHA: WETH, BETA: BETA_USDC, SOL: LAMPORTS}

T = TypeVar("T")
evm = st.sampled_from((ALPHA, BETA))
chains = st.sampled_from(CHAINS)
accounts = st.integers(0, 2)
counts = st.integers(1, 9)
parties = st.sampled_from((0, 1, 2, 3, 4, None))  # None = everybody
some_providers = st.sets(st.integers(0, PROVIDERS - 1), min_size=1, max_size=2)
faults = st.sampled_from(("dark", "dark", "inflates", "forgets", "wrong-chain", "behind", "deaf", "untold", "frozen"))


def near(leaf: LeafValues) -> int:
    """Return the rounding that two sums of a leaf's numbers may differ by."""
    return 3 + (leaf.assets_initial + leaf.requirement_initial + leaf.assets_maintenance) // 10**12


class ReadingMachine(RuleBasedStateMachine):
    """One world from its first account to its last epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.number = FIRST_EPOCH
        self.records: list[EpochRecord] = []
        self.unanswered: dict[str, str] = {}  # by chain, the last certified block that no floor has voided
        self.calm = 0
        self.lost: dict[str, str] = {}  # chain -> cause of the coordinator's standing halt
        self.resumed: set[str] = set()  # since the last epoch
        self.ends = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        self.world = world = ProvidedWorld.at(Path(self.folder.name), TIMEOUT)
        self.run(world.__aenter__())
        self.wallets = (EvmPerson("alpha's"), EvmPerson("beta's", BETA), SolanaPerson("sol's"))
        self.people = (world.ada, world.cleo, world.watched)
        kinds = ("risk-bearing", "risk-bearing", "monitored")
        self.accounts = [
            self.run(world.book.open_account(person.address, "0x" + f"{i:064x}", kind, None, str(i)))
            for i, (person, kind) in enumerate(zip(self.people, kinds, strict=True))
        ]
        for i, chain in enumerate(CHAINS):
            asset, unit = VAULTS[chain]
            self._set(Slot(chain, "vault", asset, "asset", self.accounts[i].id), (i + 1) * unit)
            self._set(Slot(chain, "wallet", WALLETS[chain], "asset", self._address(i)), 3 * unit)
        self._link(0, 0)
        self._link(1, 2)
        world.tick(self.number - 1)

    # --- money -----------------------------------------------------------------------------------------------------

    def _address(self, wallet: int) -> str:
        return self.wallets[wallet].address.rpartition(":")[2]

    def _set(self, slot: Slot, amount: int, pending: int = 0) -> None:
        self.world.model[slot.chain].change(slot, amount, pending)

    @rule(who=accounts, chain=chains, count=counts)
    def deposit(self, who: int, chain: str, count: int) -> None:
        asset, unit = VAULTS[chain]
        slot = Slot(chain, "vault", asset, "asset", self.accounts[who].id)
        amount, pending = self.world.model[chain].now.get(slot, (0, 0))
        self._set(slot, amount + count * unit, pending)

    @rule(who=accounts, chain=chains, part=st.integers(1, 4))
    def withdraw(self, who: int, chain: str, part: int) -> None:
        """Request a part; what is under request already leaves."""
        slot = Slot(chain, "vault", VAULTS[chain][0], "asset", self.accounts[who].id)
        amount, pending = self.world.model[chain].now.get(slot, (0, 0))
        self._set(slot, *((amount - pending, 0) if pending else (amount, amount // part)))

    @rule(who=accounts, chain=evm, count=counts)
    def borrow(self, who: int, chain: str, count: int) -> None:
        asset, unit = LENDERS[chain]
        slot = Slot(chain, "lender", asset, "debt", self.accounts[who].id)
        self._set(slot, self.world.model[chain].now.get(slot, (0, 0))[0] + count * unit)

    @rule(who=accounts, chain=evm)
    def repay(self, who: int, chain: str) -> None:
        self._set(Slot(chain, "lender", LENDERS[chain][0], "debt", self.accounts[who].id), 0)

    @rule(wallet=st.integers(0, 2), count=st.integers(0, 9), owes=st.booleans())
    def use_wallet(self, wallet: int, count: int, owes: bool) -> None:
        """A linked address receives, spends, borrows in its own name, or repays."""
        chain = CHAINS[wallet]
        asset, unit = LENDERS.get(chain, VAULTS[chain]) if owes else VAULTS[chain]
        side, venue = ("debt", "aave-v3") if owes else ("asset", "wallet")
        self._set(Slot(chain, venue, asset, side, self._address(wallet)), count * unit)  # type: ignore[arg-type]

    # --- links -----------------------------------------------------------------------------------------------------

    def _link(self, who: int, wallet: int) -> None:
        world, member = self.world, self.wallets[wallet]
        nonce = 1 + len(self.run(world.store.state()).links)
        self.run(world.link(self.accounts[who], self.people[who], member, nonce))
        world.ties[member.address] = Tie(self.accounts[who].id)

    @rule(who=accounts, wallet=st.integers(0, 2))
    def link(self, who: int, wallet: int) -> None:
        tie = self.world.ties.get(self.wallets[wallet].address)
        if tie is None or tie == Tie(self.accounts[who].id):
            self._link(who, wallet)
            self.calm = 0

    @rule(wallet=st.integers(0, 2), by_member=st.booleans())
    def revoke(self, wallet: int, by_member: bool) -> None:
        world, member = self.world, self.wallets[wallet]
        tie = world.ties.get(member.address)
        if tie is None or tie.revoked_at is not None:
            return
        who = next(i for i, account in enumerate(self.accounts) if account.id == tie.account)
        now, nonce = int(world.clock.now()), 1 + len(self.run(world.store.state()).links)
        controller = self.people[who].address
        terms = LinkTerms(bytes.fromhex(tie.account[2:]), controller, member.address, nonce, now + 600)
        signer = member if by_member else self.people[who]
        signature = signer.sign(world.deployment.deployment_id(), "revoke", terms)
        side = "member" if by_member else "controller"
        self.run(world.book.revoke_link(tie.account, controller, member.address, nonce, now + 600, side, signature))
        world.ties[member.address] = tie._replace(revoked_at=now)
        self.calm = 0

    # --- what goes wrong -------------------------------------------------------------------------------------------

    @rule(chain=evm, depth=st.integers(1, FINAL), keep=st.booleans())
    def reorg_what_nobody_pinned(self, chain: str, depth: int, keep: bool) -> None:
        self._fork(chain, depth, keep)

    @rule(chain=evm, depth=st.integers(FINAL + 1, IRREVERSIBLE), keep=st.booleans())
    def reorg_what_was_pinned(self, chain: str, depth: int, keep: bool) -> None:
        self._fork(chain, depth, keep)

    @rule(chain=chains, depth=st.integers(IRREVERSIBLE + 1, IRREVERSIBLE + 12), keep=st.booleans())
    def reorg_what_was_irreversible(self, chain: str, depth: int, keep: bool) -> None:
        self._fork(chain, depth, keep)

    def _fork(self, chain: str, depth: int, keep: bool) -> None:
        self.world.model[chain].fork(depth, keep)
        self.calm = 0

    @rule(chain=evm, depth=st.integers(1, IRREVERSIBLE + 4), skip=st.integers(1, 2))
    def reorg_while_an_epoch_is_under_way(self, chain: str, depth: int, skip: int) -> None:
        self.world.recorder.once.append(lambda: self._fork(chain, depth, keep=True))
        self.epoch(skip)

    @rule(chain=chains)
    def halt(self, chain: str) -> None:
        self.world.chains[chain].halted = not self.world.chains[chain].halted
        self.calm = 0

    @rule(chain=chains)
    def resume_by_hand(self, chain: str) -> None:
        if any(halt.chain == chain and halt.resumed_at is None for halt in self.run(self.world.halts.log())):
            now = int(self.world.clock.now())
            self.run(self.world.halts.resume(chain, "the fork is the chain's own, announced", "ops", now))
            self.lost.pop(chain, None)
            self.resumed.add(chain)
            self.calm = 0

    @rule(party=parties, chain=chains, which=some_providers, fault=faults, degree=st.integers(3, 30))
    def break_providers(self, party: int | None, chain: str, which: set[int], fault: str, degree: int) -> None:
        self.calm = 0
        for eyes in self.world.providers if party is None else [self.world.providers[party]]:
            chosen = sorted(which)
            if fault in ("inflates", "forgets"):  # two that tell the same lie are what a quorum of two trusts
                chosen = chosen[:1]
                for one in eyes[chain]:
                    one.lie = None
            for one in (eyes[chain][i] for i in chosen):
                _break(one, fault, degree)

    @rule(party=parties, chain=chains)
    def mend_providers(self, party: int | None, chain: str) -> None:
        self.calm = 0
        for eyes in self.world.providers if party is None else [self.world.providers[party]]:
            for one in eyes[chain]:
                _mend(one)

    @precondition(lambda self: SOAK)
    @rule(party=st.integers(0, 4), chain=chains, which=st.integers(0, PROVIDERS - 1))
    def hang(self, party: int, chain: str, which: int) -> None:
        one = self.world.providers[party][chain][which]
        one.hangs = True
        self.epoch(1)
        one.hangs = False

    @rule(dark=st.booleans())
    def publisher(self, dark: bool) -> None:
        self.calm = 0
        self.world.prices.dark = dark

    @rule()
    def restart(self) -> None:
        self.run(self.world.restart())
        self.calm = 0

    # --- time ------------------------------------------------------------------------------------------------------

    @rule()
    def let_the_cooldown_pass(self) -> None:
        self.number += COOLDOWN // 2 + 1
        self.world.tick(self.number)
        self.calm = 0

    @rule(skip=st.sampled_from((1, 1, 1, 2, 3)))
    def epoch(self, skip: int) -> None:
        world = self.world
        self.number += skip
        world.tick(self.number)
        lost_before = dict(self.lost)
        certificate, offered = self.run(world.store.certificate()), len(world.offered)
        world.recorder.calls.clear()
        doomed = self._doomed()
        record = self.run(world.cycle.run_epoch(self.number))
        world.recorder.once.clear()
        self.resumed.clear()
        self._check_halts(record, doomed, lost_before)
        if not record.attestations:
            assert record.certificate is None
            assert self.run(world.store.certificate()) == certificate, "nothing usable is stored"
            assert len(world.offered) == offered, "nor offered"
            assert self.calm < CALM, record.refusals
            return
        seen = world.recorder.calls[0][0]
        self._check_statement(record)
        self._check_floor(record)
        self._check_links(record)
        self._check_chains(record, seen)
        self._check_positions(record, seen)
        self._check_metamorphoses(record)
        self.records.append(record)
        if record.header.floor == record.header.epoch:
            self.unanswered.clear()
        for view in record.chains:
            if view.block is not None and not view.cause.startswith(REORGED):
                self.unanswered[view.chain] = view.block.hash
        self.calm = self.calm + 1 if self._all_well(record) else 0
        if self.calm > CALM:
            assert _only_late(record), record.refusals

    @precondition(lambda self: not self.calm)
    @rule(count=st.integers(2, CALM + 1))
    def some_quiet_epochs(self, count: int) -> None:
        for _ in range(count):
            self.epoch(1)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._recover()
        finally:
            if hasattr(self, "world"):
                self.run(self.world.__aexit__())
            self.runner.close()
            self.folder.cleanup()

    def _recover(self) -> None:
        """Once everything is mended and every halt resumed, an epoch is certified by everybody."""
        for party in self.world.providers:
            for eyes in (eyes for readers in party.values() for eyes in readers):
                _mend(eyes)
        self.world.prices.dark = False
        for chain in self.world.chains.values():
            chain.halted = False
        for _ in range(RECOVERY):
            for chain in CHAINS:
                self.resume_by_hand(chain)
            known = len(self.records)
            self.epoch(1)
            if len(self.records) > known and self._all_well(self.records[-1]) and _only_late(self.records[-1]):
                return
        raise AssertionError(f"no epoch of everybody in {RECOVERY}: {self.run(self.world.store.epochs(RECOVERY))}")

    def _all_well(self, record: EpochRecord) -> bool:
        """Say whether nothing is broken and every chain is fresh."""
        broken = any(
            vars(eyes)[fault]
            for party in self.world.providers
            for readers in party.values()
            for eyes in readers
            for fault in ("dark", "hangs", "wrong_chain", "behind", "lie", "deaf", "untold", "frozen")
        )
        return not broken and all(view.status == "ok" and not view.cause for view in record.chains)

    # --- what must hold --------------------------------------------------------------------------------------------

    def _doomed(self) -> set[str]:
        """Return the chains of which the coordinator will see that an irreversible block was replaced."""
        world, doomed = self.world, set[str]()
        for chain, reading in world.observers["coordinator"].last.items():
            sure = reading.irreversible
            well = all(not (e.dark or e.wrong_chain or e.behind or e.hangs) for e in world.providers[0][chain])
            if sure is not None and sure.hash in world.model[chain].replaced and well:
                doomed.add(chain)
        return doomed - set(self.lost) - self.resumed

    def _check_halts(self, record: EpochRecord, doomed: set[str], before: dict[str, str]) -> None:
        standing = self.run(self.world.halts.standing("coordinator"))
        assert doomed <= set(standing), "a reorganisation below finality halts its chain at once"
        assert set(before) <= set(standing), "until an operator resumes it"
        self.lost = {chain: halt.cause for chain, halt in standing.items()}
        for view in record.chains:
            if view.chain in standing and "attestors say" in standing[view.chain].cause:
                continue  # halted on their word, after this epoch had been refused
            assert view.cause.startswith(REORGED) == (view.chain in standing), view
            assert not view.cause.startswith(REORGED) or view.status in ("stale", "missing")

    def _check_statement(self, record: EpochRecord) -> None:
        """27: no failure makes a certificate weaker."""
        deployment = self.world.deployment
        signatures = [IndexedSignature(a.index, a.r, a.vs) for a in record.attestations]
        verify_quorum(record.digest, signatures, deployment.members, deployment.threshold)
        assert record.header.epoch == self.number > max((r.header.epoch for r in self.records), default=0)
        assert record.header.valid_until <= record.cut_time + LIFETIME
        assert all(leaf.valid_until <= record.cut_time + LIFETIME for leaf in record.leaves)
        previous = self.records[-1].digest if self.records else bytes(32)
        assert record.body.previous == previous

    def _check_floor(self, record: EpochRecord) -> None:
        """Statements on a history that is gone are void, and no others."""
        world, header = self.world, record.header
        floor = self.records[-1].header.floor if self.records else 0
        cut = world.recorder.calls[0][0].cut
        if header.floor != floor:
            assert header.floor == header.epoch > floor
            assert cut.reorgs
            for reorg in cut.reorgs:
                assert reorg.was in world.model[reorg.chain].replaced
        else:
            assert not cut.reorgs
            for view in record.chains:
                gone = self.unanswered.get(view.chain) in world.model[view.chain].replaced
                unseen = view.cause and not view.cause.startswith(REORGED)
                assert not gone or unseen, f"what was certified of {view.chain} is gone"

    def _check_links(self, record: EpochRecord) -> None:
        """The certified state says who backs whom; a link ends when it may and no sooner."""
        world = self.world
        state = world.recorder.calls[0][3]
        for account in state.accounts:
            mine = {member: tie for member, tie in world.ties.items() if tie.account == account.id}
            assert set(account.links) == set(mine)
            assert set(account.ending) == {member for member, tie in mine.items() if tie.revoked_at is not None}
        ended = [entry for entry in self.run(world.store.state()).links if entry.kind == "end"]
        for entry in ended[self.ends :]:
            tie = world.ties.pop(entry.member)
            assert tie.account == entry.account
            assert tie.revoked_at is not None
            assert record.cut_time >= tie.revoked_at + COOLDOWN
            chain, _, address = entry.member.rpartition(":")
            (view,) = (v for v in record.chains if v.chain == chain)
            assert view.status == "ok"
            assert view.block is not None
            books = world.model[chain].books[view.block.hash]
            owed = [s for s in books if s.side == "debt" and s.holder == address]
            (margin,) = (m for m in record.margins if m.account == entry.account)
            carried = any(c.block.chain == chain and entry.account in c.accounts for c in self._seen().cut.carried)
            assert not owed or carried, f"{address} left its debts behind"
            assert not margin.flags & Flag.PARTIAL
            self.calm = 0
        self.ends = len(ended)

    def _seen(self) -> Collected:
        seen: Collected = self.world.recorder.calls[0][0]
        return seen

    def _check_chains(self, record: EpochRecord, seen: Collected) -> None:
        """16 and 27: what is pinned is canonical and final, and nothing is fresh that too few providers showed."""
        world = self.world
        assert list(seen.cut.blocks) == [v.block for v in record.chains if v.block is not None]
        for view in record.chains:
            if view.block is None:
                assert view.status == "missing"
                continue
            model = world.model[view.chain]
            assert view.block.time <= record.cut_time
            carried = [c.block for c in seen.cut.carried if c.block.chain == view.chain]
            if not view.cause:
                head = len(model.hashes) - 1
                for block in (view.block, *carried):
                    assert model.hashes[block.height] == block.hash, f"{block} is not canonical"
                    assert block.height <= head - FINAL, f"{block} is not final"
                assert world.answering(0, view.chain) >= NEED, "nothing is fresh that too few providers showed"
            elif view.block.hash in model.replaced and record.header.floor == record.header.epoch:
                # Whoever could look has seen it: either the chain is given up, or nobody could look.
                assert (
                    view.cause.startswith(REORGED) or world.answering(0, view.chain) < NEED or self._blind(view.chain)
                )

    def _blind(self, chain: str) -> bool:
        """Say whether some of the coordinator's providers do not see the newest blocks."""
        return any(eyes.behind or eyes.hangs for eyes in self.world.providers[0][chain])

    def _check_positions(self, record: EpochRecord, seen: Collected) -> None:
        """16: every number is the truth at the block it names; no asset above it counts, no debt is forgotten."""
        world = self.world
        views = {view.chain: view for view in record.chains}
        heights = {
            **{(chain, 0): view.block for chain, view in views.items()},
            **{(c.block.chain, c.block.height): c.block for c in seen.cut.carried},
        }
        carried = {(c.block.chain, account): c.block for c in seen.cut.carried for account in c.accounts}
        links = {account.id: account.links for account in self.world.recorder.calls[0][3].accounts}
        for margin in record.margins:
            counted: dict[Slot, int] = {}
            for part in margin.components:
                p = part.position
                block = heights[p.chain, p.seen]
                assert block is not None
                slot = Slot(p.chain, p.venue, p.asset, p.side, p.address or p.account)
                true = world.model[p.chain].books[block.hash].get(slot, (0, 0))
                counted[slot] = p.amount
                if p.side == "asset":
                    assert (p.amount, p.pending) == true, f"{slot} at {block}"
                    tie = world.ties.get(f"{p.chain}:{p.address}")
                    assert not p.address or (tie is not None and tie == Tie(margin.account)), f"{slot} backs nobody"
                    stale = views[p.chain].status != "ok" or record.cut_time - block.time > 14
                    assert not stale or part.counted_initial == part.counted_maintenance == 0
                else:
                    assert p.amount >= true[0], f"{slot} at {block}"
            if margin.flags & Flag.PARTIAL:
                continue
            for chain, view in views.items():
                block = carried.get((chain, margin.account), view.block)
                assert block is not None, "a chain never read makes everybody partial"
                truth = world.truth(chain, block.hash, margin.account, links[margin.account])
                for slot, held in truth.items():
                    assert slot.side == "asset" or counted.get(slot, 0) >= held.amount, f"{slot} is owed at {block}"

    def _check_metamorphoses(self, record: EpochRecord) -> None:
        """8, 10, 26 and 28: the same epoch with one thing more, or one thing less."""
        bench = self.world.recorder
        seen, quotes, updates, state, _, latency = bench.calls[0]
        base = record.leaves
        chosen = self.accounts[self.number % 3].id
        fresh = {chain: r for chain, r in seen.readings.items() if r is not None}

        def again(new: Collected, said: Any = quotes, memory: Any = None) -> tuple[LeafValues, ...]:
            kept = {c: r for c, r in new.readings.items() if r is not None} if memory is None else memory
            leaves = bench.compute(new, said, updates, state, kept, latency).leaves
            assert [(leaf.account, leaf.destination) for leaf in leaves] == [(b.account, b.destination) for b in base]
            return leaves

        def others(leaves: tuple[LeafValues, ...]) -> None:
            for new, old in zip(leaves, base, strict=True):
                assert new.account == chosen or new == old, "one account's affair concerns nobody else"

        def mine(leaves: tuple[LeafValues, ...]) -> list[tuple[LeafValues, LeafValues, int]]:
            return [(n, o, near(n) + near(o)) for n, o in zip(leaves, base, strict=True) if n.account == chosen]

        def adding(*rows: Position, findings: tuple[Finding, ...] = ()) -> Collected:
            (chain,) = {row.chain for row in rows} or {min(fresh)}
            groups = (c for c in seen.cut.carried if c.block.chain == chain and chosen in c.accounts)
            since = next((group.block.height for group in groups), 0)
            reading = fresh[chain]
            more = tuple(row._replace(seen=since) for row in rows)
            told = replace(reading, positions=reading.positions + more, findings=reading.findings + findings)
            return replace(seen, readings={**seen.readings, chain: told})

        assert again(seen) == base, "computed from what was seen, and from nothing else"
        if fresh:
            chain = sorted(fresh)[self.number % len(fresh)]
            asset, unit = VAULTS[chain]
            extra = Position(
                chosen, chain, "vault", asset, 7 * unit, asset, 7 * unit, "asset", "seizable", 7_200, origin="more"
            )
            more = again(adding(extra))
            others(more)
            for new, old, slack in mine(more):
                assert new.budget >= old.budget - slack, "8: more collateral"
                room, was = (leaf.assets_initial - leaf.requirement_initial for leaf in (new, old))
                assert room >= was - slack
                assert new.assets_maintenance >= old.assets_maintenance - slack
            owing = again(adding(extra._replace(venue="lender", side="debt", control="none", removal_delay=0)))
            others(owing)
            for new, old, slack in mine(owing):
                assert new.budget <= old.budget + slack, "8: more debt"
                assert new.requirement_initial >= old.requirement_initial - slack
                assert new.assets_initial <= old.assets_initial + slack
            alien = f"{chain}/{'token:' + 'A' * 43 if chain == SOL else 'erc20:0x' + 'ee' * 20}"
            for strange in (extra._replace(asset=alien, unit=alien), extra._replace(unit=alien, amount=10**30)):
                odd = again(adding(strange))
                others(odd)
                for new, old, slack in mine(odd):
                    assert new.assets_initial <= old.assets_initial + slack, "10: what nobody knows"
                    assert new.assets_maintenance <= old.assets_maintenance + slack
                    assert new.budget <= old.budget + slack
            others(again(adding(extra._replace(amount=10**60, quantity=10**60))))
            others(again(adding(findings=(Finding("unreadable", f"{chosen} {asset}", "the venue reverted"),))))
        lost = [
            again(seen, tuple(q for q in quotes if q.source != source)) for source in sorted({q.source for q in quotes})
        ]
        for chain in sorted(fresh):
            cut = replace(
                seen.cut,
                blocks=tuple(b for b in seen.cut.blocks if b.chain != chain),
                gaps=(*(g for g in seen.cut.gaps if g[0] != chain), (chain, "gone")),
                carried=tuple(c for c in seen.cut.carried if c.block.chain != chain),
            )
            lost.append(again(replace(seen, cut=cut, readings={**seen.readings, chain: None})))
        for leaves in lost:
            for new, old in zip(leaves, base, strict=True):
                slack = near(new) + near(old)
                assert new.budget <= old.budget + slack, "28: what is switched off helps nobody"
                assert new.assets_initial <= old.assets_initial + slack
                assert new.assets_maintenance <= old.assets_maintenance + slack


def _only_late(record: EpochRecord) -> bool:
    """Say whether nobody refused; a busy machine may make somebody late."""
    return all(why.startswith("late: ") for _, why, *_ in record.refusals)


def _break(eyes: Eyes, fault: str, degree: int) -> None:
    changes: dict[str, Callable[[], dict[str, Any]]] = {
        "dark": lambda: {"dark": True},
        "inflates": lambda: {"lie": inflated(degree)},
        "forgets": lambda: {"lie": forgetful},
        "wrong-chain": lambda: {"wrong_chain": True},
        "behind": lambda: {"behind": min(degree, len(eyes.chain.blocks) - IRREVERSIBLE - 2)},
        "deaf": lambda: {"deaf": True},
        "untold": lambda: {"untold": True},
        "frozen": lambda: {"frozen": "frozen: the sequencer is down"},
    }
    vars(eyes).update(changes[fault]())


def _mend(eyes: Eyes) -> None:
    eyes.dark = eyes.hangs = eyes.wrong_chain = eyes.deaf = eyes.untold = False
    eyes.behind, eyes.lie, eyes.frozen = 0, None, ""


TestReading = ReadingMachine.TestCase
TestReading.settings = settings(
    max_examples=300 if SOAK else 5,
    stateful_step_count=60 if SOAK else 20,
    deadline=None,
    # Few examples explore nothing by chance: the same ones every time here, new ones in every soak.
    derandomize=not SOAK,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("depth", [IRREVERSIBLE - 2, IRREVERSIBLE + 6])
def test_a_reorganisation_noticed_before_a_crash_is_answered_after_it(depth: int) -> None:
    machine = ReadingMachine()
    machine.open()
    try:
        machine.some_quiet_epochs(count=3)
        machine.reorg_what_was_irreversible(ALPHA, depth, True)
        for attestor in (1, 2, 3):
            machine.break_providers(attestor, BETA, {0, 1}, "dark", 3)
        machine.epoch(1)
        assert len(machine.records) == 3, "noticed, and not certified"
        machine.restart()
        for attestor in (1, 2, 3):
            machine.mend_providers(attestor, BETA)
        machine.some_quiet_epochs(count=2)
        answered, after = machine.records[3:]
        assert answered.header.floor == answered.header.epoch == after.header.floor
        machine.restart()
        machine.epoch(1)
        assert machine.records[-1].header.floor == answered.header.floor, "answered once"
    finally:
        machine.teardown()
