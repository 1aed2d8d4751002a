"""Accounts of a MarginRegistry on a real EVM: leaves stored, draws, repayments, consumers and pauses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from web3 import Web3
from web3.contract import Contract

from infra.devnet.anvil import Anvil
from infra.devnet.evm_deploy import deploy_registry, list_consumer
from tests.contracts.evm_reference import Leaf, Tree, keccak
from tests.contracts.evm_registries import EPOCH_SECONDS, ZERO, World, build_spec
from tests.contracts.evm_vaults import compile_and_deploy

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]
USD = 10**8
BUDGET = 100 * USD
DAY, TIMELOCK = 86_400, 3_600
STALE, PARTIAL, LIQUIDATABLE, MONITORED = 1, 2, 8, 32
UNKNOWN, HEALTHY, UNHEALTHY, TO_LIQUIDATE = range(4)


@pytest.fixture(scope="module")
def now(w3: Web3) -> int:
    return int(w3.eth.get_block("latest")["timestamp"])


@pytest.fixture(scope="module")
def registry(w3: Web3, now: int) -> Contract:
    """Governance is account 0, the guardian account 2; accounts 0 and 3 may draw."""
    deployed = deploy_registry(w3, build_spec(now, guardian=w3.eth.accounts[2]))
    for consumer in (w3.eth.accounts[0], w3.eth.accounts[3]):
        list_consumer(w3, deployed, consumer)
    return deployed


@pytest.fixture
def world(chain: Anvil, w3: Web3, registry: Contract, now: int) -> World:
    return World(chain, w3, registry, now)


def event(world: World, name: str, receipt: Any) -> dict[str, Any]:
    (log,) = world.registry.events[name]().process_receipt(receipt)
    return dict(log["args"])


def test_a_leaf_is_stored_with_every_value(world: World) -> None:
    leaf = world.leaf(equity=-7, asOf=world.now - 9, flags=16)
    other = world.leaf("other")
    tree = world.attest(leaf, other)
    assert world.call("marginOf", leaf.account) == (0,) * 12 + (False,)
    receipt = world.apply(leaf, tree)
    expected = {"account": leaf.account, "epoch": leaf.epoch, "budget": BUDGET, "flags": 16}
    assert event(world, "Applied", receipt) == expected
    assert world.call("marginOf", leaf.account) == (
        *(leaf.epoch, leaf.asOf, leaf.validUntil, 16, -7, leaf.assetsInitial, leaf.requirementInitial),
        *(leaf.assetsMaintenance, leaf.requirementMaintenance, BUDGET, 0, BUDGET, True),
    )
    again = world.apply(leaf, tree)
    assert world.registry.events.Applied().process_receipt(again) == ()
    forged = replace(leaf, budget=BUDGET + 1).as_tuple()
    world.refused("not attested", "applyLeaf", forged, tree.proof(leaf))  # what is stored is no excuse


def test_only_the_newest_statement_is_stored(world: World) -> None:
    leaf = world.leaf(epoch=world.epoch - 1)
    tree = world.attest(leaf)
    proof = tree.proof(leaf)
    world.refused("destination", "applyLeaf", replace(leaf, destination=keccak(b"eip155:1")).as_tuple(), proof)
    world.refused("not attested", "applyLeaf", leaf.as_tuple(), [keccak(b"no sibling")])
    newer = world.leaf()
    world.attest(newer)
    world.refused("not the newest epoch", "applyLeaf", leaf.as_tuple(), proof)
    ahead = replace(leaf, epoch=world.epoch + 1).as_tuple()
    world.refused("not the newest epoch", "applyLeaf", ahead, proof)


def test_nothing_is_stored_before_the_first_statement(world: World) -> None:
    leaf = world.leaf(epoch=0)
    world.refused("expired", "applyLeaf", leaf.as_tuple(), [])
    world.refused("expired", "draw", leaf.account, 1)


@pytest.mark.parametrize(("leaf_for", "header_for"), [(100, 300), (10_000, 100)])
def test_what_is_stored_ends_with_the_leaf_or_its_header(world: World, leaf_for: int, header_for: int) -> None:
    leaf, unknown = world.leaf(validUntil=world.now + leaf_for), world.leaf("never applied")
    tree = world.attest(leaf, unknown, validUntil=world.now + header_for)
    world.apply(leaf, tree)
    assert world.call("marginOf", leaf.account)[2] == world.now + 100
    world.move_to(100)
    world.refused("expired", "applyLeaf", leaf.as_tuple(), tree.proof(leaf))
    world.refused("expired", "draw", leaf.account, 1)
    assert world.call("marginOf", leaf.account)[-2:] == (0, False)
    assert world.call("status", leaf.account) == UNKNOWN


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budget": 2**128}, "budget above 128 bits"),
        ({"assetsInitial": 2**128}, "initial above 128 bits"),
        ({"requirementInitial": 2**128}, "initial above 128 bits"),
        ({"assetsMaintenance": 2**128}, "maintenance above 128 bits"),
        ({"requirementMaintenance": 2**255}, "maintenance above 128 bits"),
        ({"equity": 2**127}, "equity above 128 bits"),
        ({"equity": -(2**127) - 1}, "equity above 128 bits"),
    ],
)
def test_amounts_above_128_bits_are_refused(world: World, changes: dict[str, int], reason: str) -> None:
    leaf = world.leaf(**changes)
    tree = world.attest(leaf)
    world.refused(reason, "applyLeaf", leaf.as_tuple(), tree.proof(leaf))


def test_the_largest_amounts_are_kept_apart(world: World) -> None:
    most = 2**128 - 1
    fields = ("assetsInitial", "requirementInitial", "assetsMaintenance", "requirementMaintenance", "budget")
    times = {"asOf": 2**64 - 1, "flags": 2**32 - 1 - STALE - MONITORED}
    leaf = world.leaf(equity=-(2**127), **dict.fromkeys(fields, most), **times)
    world.apply(leaf)
    world.send("draw", leaf.account, most)
    stored = world.call("marginOf", leaf.account)
    assert stored[1:4] == (2**64 - 1, leaf.validUntil, times["flags"])
    assert stored[4:] == (-(2**127), most, most, most, most, most, most, 0, True)
    world.refused("over budget", "draw", leaf.account, 1)
    world.send("repay", leaf.account, most)
    assert world.call("marginOf", leaf.account)[4:] == (-(2**127), most, most, most, most, most, 0, most, True)


def test_consumers_draw_up_to_the_budget_together(world: World) -> None:
    first, second = world.w3.eth.accounts[0], world.w3.eth.accounts[3]
    leaf = world.leaf()
    world.apply(leaf)
    account = leaf.account
    receipt = world.send("draw", account, 60 * USD)
    assert event(world, "Drawn", receipt) == {
        "account": account,
        "consumer": first,
        "amount": 60 * USD,
        "used": 60 * USD,
    }
    world.refused("over budget", "draw", account, 40 * USD + 1, sender=second)
    world.refused("over budget", "draw", account, 2**256 - 1, sender=second)
    world.send("draw", account, 40 * USD, sender=second)
    world.refused("over budget", "draw", account, 1)
    world.refused("zero amount", "draw", account, 0)
    assert world.call("used", account) == 100 * USD
    assert [world.call("usedBy", account, c) for c in (first, second)] == [60 * USD, 40 * USD]

    world.refused("more than drawn", "repay", account, 60 * USD + 1)
    world.refused("more than drawn", "repay", account, 1, sender=world.w3.eth.accounts[4])
    receipt = world.send("repay", account, 50 * USD)
    assert event(world, "Repaid", receipt) == {
        "account": account,
        "consumer": first,
        "amount": 50 * USD,
        "used": 50 * USD,
    }
    assert world.call("marginOf", account)[-3:] == (50 * USD, 50 * USD, True)
    world.send("repay", account, 10 * USD)
    world.refused("more than drawn", "repay", account, 0)  # nothing of this consumer is left
    assert world.call("used", account) == 40 * USD


def test_a_newer_root_voids_older_budgets(world: World) -> None:
    leaf = world.leaf(epoch=world.epoch - 1)
    world.apply(leaf)
    world.send("draw", leaf.account, 10 * USD)
    lower = world.leaf(budget=5 * USD)
    tree = world.attest(lower)
    assert world.call("marginOf", leaf.account)[-4:] == (BUDGET, 10 * USD, 0, False)
    world.refused("not the newest epoch", "draw", leaf.account, 1)
    world.apply(lower, tree)
    world.refused("over budget", "draw", leaf.account, 1)
    assert world.call("marginOf", leaf.account)[-4:] == (5 * USD, 10 * USD, 0, True)  # below what is used
    world.send("repay", leaf.account, 6 * USD)
    world.send("draw", leaf.account, 1 * USD)


def test_a_consumer_applies_and_draws_in_one_transaction(world: World, now: int) -> None:
    consumer = compile_and_deploy(world.w3, "MarginConsumer", world.registry.address)
    leaf = world.leaf()
    tree = world.attest(leaf)
    both = consumer.functions.applyAndDraw(leaf.as_tuple(), tree.proof(leaf), BUDGET)
    world.refuse_call(both, "not listed")
    list_consumer(world.w3, world.registry, consumer.address)
    both.transact({"from": world.w3.eth.accounts[7]})
    assert world.call("usedBy", leaf.account, consumer.address) == BUDGET
    world.refuse_call(both, "over budget")


@pytest.mark.parametrize("flag", [STALE, MONITORED])
def test_what_is_stale_or_monitored_is_not_lent_against(world: World, flag: int) -> None:
    leaf = world.leaf(flags=flag)
    world.apply(leaf)
    world.refused("flagged", "draw", leaf.account, 1)
    assert world.call("marginOf", leaf.account)[-2:] == (0, True)


def test_the_status_of_an_account(world: World) -> None:
    leaves = [
        world.leaf("healthy", assetsMaintenance=9, requirementMaintenance=9),
        world.leaf("unhealthy", assetsMaintenance=8, requirementMaintenance=9),
        world.leaf("liquidatable", flags=LIQUIDATABLE, assetsMaintenance=8, requirementMaintenance=9),
        world.leaf("stale", flags=STALE | LIQUIDATABLE),
        world.leaf("partial", flags=PARTIAL),
        world.leaf("monitored", flags=MONITORED),
    ]
    tree = world.attest(*leaves)
    for leaf in leaves:
        world.apply(leaf, tree)
    statuses = [world.call("status", leaf.account) for leaf in leaves]
    assert statuses == [HEALTHY, UNHEALTHY, TO_LIQUIDATE, UNKNOWN, UNKNOWN, UNKNOWN]
    assert world.call("status", keccak(b"never applied")) == UNKNOWN
    # Only the newest epoch tells.
    world.post(world.header(epoch=world.epoch + 1))
    assert {world.call("status", leaf.account) for leaf in leaves} == {UNKNOWN}


def test_under_another_chain_id_only_repaying_goes_on(world: World) -> None:
    leaf, other = world.leaf(), world.leaf("other")
    tree = world.attest(leaf, other)
    world.apply(leaf, tree)
    world.send("draw", leaf.account, USD)
    world.chain.rpc("anvil_setChainId", 31338)
    try:
        world.refused("chain id changed", "applyLeaf", other.as_tuple(), tree.proof(other))
        world.refused("chain id changed", "draw", leaf.account, 1)
        assert world.call("marginOf", leaf.account)[-2:] == (0, False)
        assert world.call("status", leaf.account) == UNKNOWN
        world.registry.functions.repay(leaf.account, USD).call({"from": world.w3.eth.accounts[0]})
    finally:
        world.chain.rpc("anvil_setChainId", 31337)


def test_a_consumer_is_listed_after_the_timelock_and_delisted_at_once(chain: Anvil, w3: Web3, now: int) -> None:
    governance, lender = w3.eth.accounts[1], w3.eth.accounts[4]
    deployed = deploy_registry(w3, build_spec(now, timelock=TIMELOCK, governance=governance))
    world = World(chain, w3, deployed, now)
    leaf = world.leaf(validUntil=now + 10_000)
    world.refused("not governance", "list", lender)
    world.refused("zero consumer", "list", ZERO, sender=governance)
    world.refused("not listed", "delist", lender, sender=governance)
    receipt = world.send("list", lender, sender=governance)
    start = w3.eth.get_block(receipt["blockNumber"])["timestamp"] + TIMELOCK
    assert event(world, "Listed", receipt) == {"consumer": lender, "usableFrom": start}
    assert world.call("listedFrom", lender) == start
    world.refused("already listed", "list", lender, sender=governance)
    world.refused("not listed", "draw", leaf.account, 1, sender=lender)
    world.move_to(start - now - 1)
    late = {"producedAt": start - 1, "validUntil": start + 300}
    leaf = replace(leaf, epoch=start // EPOCH_SECONDS)
    tree = world.attest(leaf, **late)
    chain.rpc("evm_setNextBlockTimestamp", start + 1)
    world.apply(leaf, tree)
    world.send("draw", leaf.account, 7, sender=lender)
    world.refused("not listed", "draw", leaf.account, 1, sender=governance)

    world.refused("not governance", "delist", lender, sender=lender)
    assert event(world, "Delisted", world.send("delist", lender, sender=governance)) == {"consumer": lender}
    world.refused("not listed", "draw", leaf.account, 1, sender=lender)
    world.send("repay", leaf.account, 7, sender=lender)
    assert world.call("used", leaf.account) == 0


def test_a_pause_stops_draws_and_higher_budgets_and_nothing_else(world: World) -> None:
    guardian = world.w3.eth.accounts[2]
    leaf = world.leaf(epoch=world.epoch - 1)
    world.apply(leaf)
    world.send("draw", leaf.account, 30 * USD)
    for who in (world.w3.eth.accounts[0], world.w3.eth.accounts[5]):
        world.refused("not guardian", "pause", 60, sender=who)
    world.refused("duration", "pause", 0, sender=guardian)
    world.refused("duration", "pause", 3 * DAY + 1, sender=guardian)
    receipt = world.send("pause", 60, sender=guardian)
    until = event(world, "Paused", receipt)["until"]
    assert until == world.w3.eth.get_block(receipt["blockNumber"])["timestamp"] + 60 == world.call("pausedUntil")
    world.refused("paused", "draw", leaf.account, 1)
    assert world.call("marginOf", leaf.account)[-4:] == (BUDGET, 30 * USD, 0, True)

    higher = world.leaf(budget=BUDGET + 1, flags=LIQUIDATABLE, assetsMaintenance=7)
    lower, new = world.leaf("other", budget=0), world.leaf("new")
    tree = world.attest(higher, lower, new)  # a statement is posted
    assert world.verify(higher, tree.proof(higher))
    receipt = world.apply(higher, tree)  # all but the budget
    expected = {"account": leaf.account, "epoch": higher.epoch, "budget": BUDGET, "flags": LIQUIDATABLE}
    assert event(world, "Applied", receipt) == expected
    stored = world.call("marginOf", leaf.account)
    assert (stored[0], stored[3], stored[7], stored[-4:]) == (
        *(higher.epoch, LIQUIDATABLE, 7),
        (BUDGET, 30 * USD, 0, True),
    )
    assert world.call("status", leaf.account) == TO_LIQUIDATE
    world.apply(lower, tree)
    world.apply(new, tree)
    assert world.call("marginOf", new.account)[-4:] == (0, 0, 0, True)
    reduced = world.leaf(epoch=world.epoch + 1, budget=BUDGET - 1)
    world.apply(reduced)
    world.send("repay", leaf.account, 10 * USD)
    world.rotate(world.next_set())
    list_consumer(world.w3, world.registry, world.w3.eth.accounts[6])
    world.send("delist", world.w3.eth.accounts[6])
    assert world.call("used", leaf.account) == 20 * USD

    world.move_to(until - world.now)
    world.send("draw", leaf.account, 1)


def test_no_pause_is_for_good(world: World) -> None:
    guardian, governance = world.w3.eth.accounts[2], world.w3.eth.accounts[0]
    world.refused("not paused", "unpause", sender=guardian)
    world.chain.rpc("evm_setNextBlockTimestamp", world.now + 100)
    world.send("pause", 3 * DAY, sender=guardian)
    world.refused("paused too recently", "pause", 1, sender=guardian)
    world.move_to(100 + 6 * DAY - 30)
    world.refused("paused too recently", "pause", 1, sender=guardian)
    world.chain.rpc("evm_setNextBlockTimestamp", world.now + 100 + 6 * DAY)
    world.send("pause", 3 * DAY, sender=guardian)

    world.refused("not guardian", "unpause", sender=world.w3.eth.accounts[5])
    end = 100 + 6 * DAY + 1000
    world.chain.rpc("evm_setNextBlockTimestamp", world.now + end)
    assert world.registry.events.Unpaused().process_receipt(world.send("unpause", sender=governance))
    assert world.call("pausedUntil") == world.now + end
    world.refused("not paused", "unpause", sender=guardian)
    world.refused("paused too recently", "pause", 1, sender=guardian)
    world.chain.rpc("evm_setNextBlockTimestamp", world.now + end + 1000)  # as long as the pause lasted
    world.send("pause", 60, sender=guardian)


def test_without_a_guardian_nobody_pauses(chain: Anvil, w3: Web3, now: int) -> None:
    world = World(chain, w3, deploy_registry(w3, build_spec(now, guardian=ZERO)), now)
    for who in w3.eth.accounts[:3]:
        world.refused("not guardian", "pause", 60, sender=who)


def test_what_a_delisted_consumer_drew_is_forgiven_after_the_timelock(chain: Anvil, w3: Web3, now: int) -> None:
    governance, lender, other = w3.eth.accounts[1], w3.eth.accounts[4], w3.eth.accounts[5]
    deployed = deploy_registry(w3, build_spec(now, timelock=TIMELOCK, governance=governance))
    world = World(chain, w3, deployed, now)
    for consumer in (lender, other):
        world.send("list", consumer, sender=governance)
    at = now + TIMELOCK + 60
    world.move_to(at - now)
    leaf = world.leaf(epoch=at // EPOCH_SECONDS, validUntil=at + 300)
    world.apply(leaf, world.attest(leaf, producedAt=at, validUntil=at + 300))
    world.send("draw", leaf.account, 7, sender=lender)
    world.send("draw", leaf.account, 5, sender=other)
    assert world.call("delistedAt", lender) == 0

    for who in (lender, w3.eth.accounts[0]):
        world.refused("not governance", "forgive", leaf.account, lender, sender=who)
    world.refused("still listed", "forgive", leaf.account, lender, sender=governance)
    receipt = world.send("delist", lender, sender=governance)
    delisted = w3.eth.get_block(receipt["blockNumber"])["timestamp"]
    assert world.call("delistedAt", lender) == delisted
    world.move_to(delisted - now + TIMELOCK - 30)
    world.refused("timelock", "forgive", leaf.account, lender, sender=governance)
    world.move_to(delisted - now + TIMELOCK)
    world.refused("nothing drawn", "forgive", keccak(b"another"), lender, sender=governance)
    world.refused("still listed", "forgive", leaf.account, other, sender=governance)
    receipt = world.send("forgive", leaf.account, lender, sender=governance)
    assert event(world, "Forgiven", receipt) == {"account": leaf.account, "consumer": lender, "amount": 7, "used": 5}
    assert (world.call("used", leaf.account), world.call("usedBy", leaf.account, lender)) == (5, 0)
    assert world.call("marginOf", leaf.account)[-4] == BUDGET
    world.refused("nothing drawn", "forgive", leaf.account, lender, sender=governance)
    world.refused("more than drawn", "repay", leaf.account, 1, sender=lender)
    world.send("repay", leaf.account, 5, sender=other)

    world.send("list", lender, sender=governance)  # and delisted anew: the timelock runs anew
    world.send("delist", lender, sender=governance)
    world.refused("timelock", "forgive", leaf.account, lender, sender=governance)
    world.refused("nothing drawn", "forgive", leaf.account, w3.eth.accounts[6], sender=governance)


@dataclass
class Model:
    """What a registry should hold, by account index and consumer index."""

    epoch: int = 0
    leaves: dict[int, Leaf] = field(default_factory=dict)  # of the newest statement
    stored: dict[int, Leaf] = field(default_factory=dict)
    drawn: dict[tuple[int, int], int] = field(default_factory=dict)
    paused: bool = False
    was_paused: bool = False

    def used(self, account: int) -> int:
        return sum(amount for (a, _), amount in self.drawn.items() if a == account)

    def usable(self, account: int) -> int:
        leaf = self.stored.get(account)
        if leaf is None or leaf.epoch != self.epoch or self.paused:
            return 0
        return max(0, leaf.budget - self.used(account))


def test_a_registry_agrees_with_its_model(world: World) -> None:
    consumers = [world.w3.eth.accounts[0], world.w3.eth.accounts[3]]
    guardian = world.w3.eth.accounts[2]
    accounts = st.integers(0, 1)
    amounts = st.integers(1, 120)

    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.snapshot = world.chain.rpc("evm_snapshot")
            self.model, self.tree = Model(epoch=0), Tree([world.leaf()])

        def attempt(self, allowed: bool, name: str, *arguments: Any, sender: Any = None) -> None:
            if allowed:
                world.send(name, *arguments, sender=sender)
            else:
                world.refused(".*", name, *arguments, sender=sender)

        @rule(skip=st.integers(1, 3), budgets=st.tuples(amounts, amounts))
        def post(self, skip: int, budgets: tuple[int, int]) -> None:
            model = self.model
            model.epoch = max(model.epoch, world.epoch - 90) + skip
            leaves = [world.leaf(str(i), epoch=model.epoch, budget=b) for i, b in enumerate(budgets)]
            model.leaves, self.tree = dict(enumerate(leaves)), Tree(leaves)
            world.post(world.header(epoch=model.epoch, root=self.tree.root))

        @rule(account=accounts)
        def apply(self, account: int) -> None:
            model = self.model
            leaf = model.leaves.get(account)
            if leaf is None:
                return
            before = model.stored.get(account)
            world.send("applyLeaf", leaf.as_tuple(), self.tree.proof(leaf))
            if before is not None and before.epoch == leaf.epoch:
                return
            most = (before.budget if before else 0) if model.paused else leaf.budget
            model.stored[account] = replace(leaf, budget=min(most, leaf.budget))

        @rule(account=accounts, consumer=accounts, amount=amounts)
        def draw(self, account: int, consumer: int, amount: int) -> None:
            allowed = amount <= self.model.usable(account)
            self.attempt(allowed, "draw", keccak(str(account).encode()), amount, sender=consumers[consumer])
            if allowed:
                key = (account, consumer)
                self.model.drawn[key] = self.model.drawn.get(key, 0) + amount

        @rule(account=accounts, consumer=accounts, amount=amounts)
        def repay(self, account: int, consumer: int, amount: int) -> None:
            drawn = self.model.drawn.get((account, consumer), 0)
            self.attempt(amount <= drawn, "repay", keccak(str(account).encode()), amount, sender=consumers[consumer])
            if amount <= drawn:
                self.model.drawn[account, consumer] = drawn - amount

        @precondition(lambda self: not self.model.was_paused)
        @rule()
        def pause(self) -> None:
            world.send("pause", DAY, sender=guardian)
            self.model.paused = self.model.was_paused = True

        @rule()
        def unpause(self) -> None:
            self.attempt(self.model.paused, "unpause", sender=guardian)
            self.model.paused = False

        @invariant()
        def agree(self) -> None:
            for account in (0, 1):
                *_, used, usable, _ = world.call("marginOf", keccak(str(account).encode()))
                assert (used, usable) == (self.model.used(account), self.model.usable(account))

        def teardown(self) -> None:
            world.chain.rpc("evm_revert", self.snapshot)

    few = settings(max_examples=8, stateful_step_count=16, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Machine, settings=few)
