"""ExampleLender on a real EVM: a consumer lends only against an attested, usable leaf of the caller's own account."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import Web3Exception

from infra.devnet.anvil import Anvil, transact
from infra.devnet.evm_deploy import EvmSpec, deploy, deploy_lender, deploy_registry, deploy_token
from tests.contracts.evm_reference import Header, Leaf, Quorum, Tree, account_id, keccak
from tests.contracts.evm_vaults import compile_and_deploy

SALT = b"\x07" * 32
USD, UNIT = 10**8, 10**6
BUDGET = 100 * USD
FUNDING = 10_000 * UNIT

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]
quorum = Quorum(4)


@dataclass
class Market:
    w3: Web3
    registry: Contract
    token: Contract
    lender: Contract
    now: int

    @property
    def epoch(self) -> int:
        return self.now // 2

    def post(self, epoch: int, leaves: list[Leaf], floor: int = 0) -> Tree:
        tree = Tree(leaves)
        header = Header(epoch, tree.root, self.now, self.now + 300, floor=floor)
        deployment_id = self.registry.functions.deploymentId().call()
        arguments = quorum.certify(header, deployment_id, (0, 1, 2))
        transact(self.w3, self.registry.functions.post(*arguments))
        return tree

    def borrow(self, leaf: Leaf, tree: Tree, amount: int) -> Any:
        return self.lender.functions.borrow(leaf.as_tuple(), tree.proof(leaf), amount)


@pytest.fixture(scope="module")
def market(w3: Web3) -> Market:
    now = int(w3.eth.get_block("latest")["timestamp"])
    registry = deploy_registry(w3, EvmSpec(tuple(quorum.members), 3, now + 86400, SALT, {}))
    token = deploy_token(w3, "USD Coin", "USDC", 6)
    return Market(w3, registry, token, deploy_lender(w3, registry, token, FUNDING), now)


@pytest.fixture
def controller(w3: Web3) -> Any:
    return w3.eth.accounts[3]


@pytest.fixture
def leaf(market: Market, controller: Any) -> Leaf:
    account = account_id(31337, controller, SALT)
    transact(market.w3, market.lender.functions.open(account, SALT), controller)
    return Leaf(account, keccak(b"eip155:31337"), market.epoch, market.now + 200, budget=BUDGET)


def refuse(function: Any, sender: Any, reason: str) -> None:
    with pytest.raises(Web3Exception, match=reason):
        function.call({"from": sender})


def test_the_account_id_is_the_hash_of_its_controller(market: Market) -> None:
    for address in (*market.w3.eth.accounts, "0x" + "00" * 19 + "01", "0x" + "fA" * 20):
        checksummed = Web3.to_checksum_address(address)
        assert market.lender.functions.accountId(checksummed, SALT).call() == account_id(31337, address, SALT)


def test_only_its_controller_opens_an_account(market: Market, controller: Any) -> None:
    account = account_id(31337, controller, SALT)
    refuse(market.lender.functions.open(account, SALT), market.w3.eth.accounts[4], "not the controller")
    refuse(market.lender.functions.open(account, b"\x08" * 32), controller, "not the controller")
    receipt = transact(market.w3, market.lender.functions.open(account, SALT), controller)
    (event,) = market.lender.events.Opened().process_receipt(receipt)
    assert dict(event["args"]) == {"account": account, "controller": controller}


def test_a_key_opens_its_account_of_another_chain_and_a_contract_does_not(market: Market, controller: Any) -> None:
    home = 10
    account = account_id(home, controller, SALT)
    call = market.lender.functions
    refuse(call.openFrom(home + 1, account, SALT), controller, "not the controller")
    refuse(call.openFrom(home, account, SALT), market.w3.eth.accounts[4], "not the controller")
    caller = compile_and_deploy(market.w3, "Caller", market.lender.address)
    data = call.openFrom(home, account_id(home, caller.address, SALT), SALT)._encode_transaction_data()
    refuse(caller.functions.forward(data), controller, "not a key of its own")
    transact(market.w3, call.openFrom(home, account, SALT), controller)
    assert call.controllerOf(account).call() == controller


def test_debt_grows_to_the_budget_and_shrinks_by_repayment(market: Market, leaf: Leaf, controller: Any) -> None:
    tree = market.post(market.epoch, [leaf])
    call = market.lender.functions
    assert call.token().call() == market.token.address
    transact(market.w3, market.borrow(leaf, tree, 60 * UNIT), controller)
    assert market.token.functions.balanceOf(controller).call() == 60 * UNIT
    assert market.registry.functions.used(leaf.account).call() == 60 * USD
    refuse(market.borrow(leaf, tree, 40 * UNIT + 1), controller, "over budget")
    transact(market.w3, market.borrow(leaf, tree, 40 * UNIT), controller)
    assert (call.debtOf(leaf.account).call(), call.totalDebt().call()) == (100 * UNIT, 100 * UNIT)
    refuse(market.borrow(leaf, tree, 1), controller, "over budget")
    refuse(market.borrow(leaf, tree, 0), controller, "zero amount")

    payer = market.w3.eth.accounts[5]
    transact(market.w3, market.token.functions.mint(payer, 500 * UNIT))
    transact(market.w3, market.token.functions.approve(market.lender.address, 2**256 - 1), payer)
    transact(market.w3, call.repay(leaf.account, 30 * UNIT), payer)
    assert call.debtOf(leaf.account).call() == 70 * UNIT
    transact(market.w3, call.repay(leaf.account, 400 * UNIT), payer)
    assert (call.debtOf(leaf.account).call(), call.totalDebt().call()) == (0, 0)
    assert market.registry.functions.used(leaf.account).call() == 0
    assert market.token.functions.balanceOf(payer).call() == 400 * UNIT
    refuse(call.repay(leaf.account, 1), payer, "nothing to repay")


def test_a_stranger_or_a_forged_leaf_borrows_nothing(market: Market, leaf: Leaf, controller: Any) -> None:
    other = replace(leaf, account=keccak(b"never opened"))
    tree = market.post(market.epoch, [leaf, other])
    refuse(market.borrow(leaf, tree, 1), market.w3.eth.accounts[4], "not the controller")
    refuse(market.borrow(other, tree, 1), controller, "not the controller")
    forged = replace(leaf, budget=10 * BUDGET)
    refuse(market.lender.functions.borrow(forged.as_tuple(), tree.proof(leaf), 1), controller, "not attested")
    refuse(market.lender.functions.borrow(leaf.as_tuple(), tree.proof(other), 1), controller, "not attested")


def test_a_stale_leaf_borrows_nothing(chain: Anvil, market: Market, leaf: Leaf, controller: Any) -> None:
    tree = market.post(market.epoch, [leaf])
    market.borrow(leaf, tree, 1).call({"from": controller})
    newer = replace(leaf, epoch=market.epoch + 1, budget=0)
    newer_tree = market.post(market.epoch + 1, [newer], floor=market.epoch + 1)
    refuse(market.borrow(leaf, tree, 1), controller, "not the newest epoch")
    refuse(market.borrow(newer, newer_tree, 1), controller, "over budget")


def test_an_expired_leaf_borrows_nothing(chain: Anvil, market: Market, leaf: Leaf, controller: Any) -> None:
    tree = market.post(market.epoch, [leaf])
    chain.rpc("evm_setNextBlockTimestamp", leaf.validUntil)
    chain.mine()
    refuse(market.borrow(leaf, tree, 1), controller, "expired")


@pytest.mark.parametrize("decimals", [8, 18])
def test_the_budget_is_compared_in_dollars_whatever_the_decimals(
    market: Market, leaf: Leaf, controller: Any, decimals: int
) -> None:
    token = deploy_token(market.w3, "Dollar", "USD", decimals)
    lender = deploy_lender(market.w3, market.registry, token, 0)
    transact(market.w3, token.functions.mint(lender.address, 10**30))
    transact(market.w3, lender.functions.open(leaf.account, SALT), controller)
    tree = market.post(market.epoch, [leaf])
    most = 100 * 10**decimals
    refuse(lender.functions.borrow(leaf.as_tuple(), tree.proof(leaf), most + 1), controller, "over budget")
    transact(market.w3, lender.functions.borrow(leaf.as_tuple(), tree.proof(leaf), most), controller)
    assert lender.functions.debtOf(leaf.account).call() == most


def test_a_lender_that_is_not_listed_lends_nothing(market: Market, leaf: Leaf, controller: Any) -> None:
    lender = deploy(market.w3, "ExampleLender", market.registry.address, market.token.address)
    transact(market.w3, lender.functions.open(leaf.account, SALT), controller)
    tree = market.post(market.epoch, [leaf])
    refuse(lender.functions.borrow(leaf.as_tuple(), tree.proof(leaf), 1), controller, "not listed")


def test_two_lenders_share_one_budget(market: Market, leaf: Leaf, controller: Any) -> None:
    second = deploy_lender(market.w3, market.registry, market.token, FUNDING)
    transact(market.w3, second.functions.open(leaf.account, SALT), controller)
    tree = market.post(market.epoch, [leaf])
    transact(market.w3, market.borrow(leaf, tree, 70 * UNIT), controller)
    theirs = second.functions.borrow
    refuse(theirs(leaf.as_tuple(), tree.proof(leaf), 30 * UNIT + 1), controller, "over budget")
    transact(market.w3, theirs(leaf.as_tuple(), tree.proof(leaf), 30 * UNIT), controller)
    assert market.registry.functions.used(leaf.account).call() == BUDGET


def test_a_debt_that_governance_forgave_can_still_be_paid_back(market: Market, leaf: Leaf, controller: Any) -> None:
    tree = market.post(market.epoch, [leaf])
    transact(market.w3, market.borrow(leaf, tree, 60 * UNIT), controller)
    registry, lender = market.registry.functions, market.lender
    transact(market.w3, registry.delist(lender.address))
    transact(market.w3, registry.forgive(leaf.account, lender.address))
    assert (registry.used(leaf.account).call(), lender.functions.debtOf(leaf.account).call()) == (0, 60 * UNIT)
    transact(market.w3, market.token.functions.approve(lender.address, 2**256 - 1), controller)
    transact(market.w3, lender.functions.repay(leaf.account, 20 * UNIT), controller)
    transact(market.w3, registry.list(lender.address))
    refuse(market.borrow(leaf, tree, 60 * UNIT + 1), controller, "over budget")
    transact(market.w3, market.borrow(leaf, tree, 50 * UNIT), controller)  # draws for what is owed from before, too
    assert registry.used(leaf.account).call() == 90 * USD
    transact(market.w3, lender.functions.repay(leaf.account, 90 * UNIT), controller)
    assert registry.used(leaf.account).call() == 0
