"""CollateralVault on a real EVM: deposits, delayed withdrawals, odd tokens, and who may do what.

What the quorum signs, and NFTs: test_evm_vault_quorum.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import Web3Exception
from web3.logs import DISCARD

from infra.devnet.anvil import Anvil, transact
from infra.devnet.evm_deploy import accept_tokens, deploy_token, deploy_vault
from tests.contracts.evm_reference import Quorum
from tests.contracts.evm_vaults import DEPLOYMENT_ID, compile_and_deploy, deploy_quorum_stub

DELAY = 60
ACCOUNT, OTHER_ACCOUNT = b"\x01" * 32, b"\x02" * 32

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]


@pytest.fixture(scope="module")
def vault(w3: Web3) -> Contract:
    return deploy_vault(w3, DELAY, deploy_quorum_stub(w3, Quorum(4), Quorum(4, seed=2)))


@pytest.fixture(scope="module")
def token(w3: Web3, vault: Contract) -> Contract:
    token = deploy_token(w3, "USD Coin", "USDC", 6)
    for owner in w3.eth.accounts[:3]:
        transact(w3, token.functions.mint(owner, 1000))
        transact(w3, token.functions.approve(vault.address, 2**256 - 1), owner)
    accept_tokens(w3, vault, token.address)
    return token


@pytest.fixture(scope="module")
def odd(w3: Web3, vault: Contract) -> Contract:
    token = compile_and_deploy(w3, "OddToken")
    transact(w3, token.functions.mint(w3.eth.accounts[0], 1000))
    accept_tokens(w3, vault, token.address)
    return token


@pytest.fixture
def owner(w3: Web3) -> Any:
    return w3.eth.accounts[1]


@pytest.fixture
def stranger(w3: Web3) -> Any:
    return w3.eth.accounts[2]


def pass_time(chain: Anvil, w3: Web3, seconds: int) -> None:
    now = int(w3.eth.get_block("latest")["timestamp"])
    chain.rpc("evm_setNextBlockTimestamp", now + seconds)
    chain.mine()


def position(vault: Contract, token: Contract, account: bytes = ACCOUNT) -> tuple[int, int]:
    return tuple(vault.functions.position(account, token.address).call())


def refuse(function: Any, sender: Any, reason: str) -> None:
    with pytest.raises(Web3Exception, match=reason):
        function.call({"from": sender})


def test_a_deposit_waits_its_delay_on_the_way_out(
    chain: Anvil, w3: Web3, vault: Contract, token: Contract, owner: Any, stranger: Any
) -> None:
    call = vault.functions
    assert call.delay().call() == DELAY
    assert call.deploymentId().call() == DEPLOYMENT_ID
    receipt = transact(w3, call.deposit(ACCOUNT, token.address, 700), owner)
    (event,) = vault.events.Deposited().process_receipt(receipt, DISCARD)
    assert dict(event["args"]) == {"account": ACCOUNT, "owner": owner, "token": token.address, "amount": 700}
    assert position(vault, token) == (700, 0)
    assert call.deposited(ACCOUNT, owner, token.address).call() == 700

    receipt = transact(w3, call.request(ACCOUNT, token.address, 300), owner)
    (event,) = vault.events.WithdrawalRequested().process_receipt(receipt, DISCARD)
    requested_at = w3.eth.get_block(receipt["blockNumber"])["timestamp"]
    assert event["args"]["claimableAt"] == requested_at + DELAY
    assert event["args"]["id"] == 1
    assert position(vault, token) == (700, 300)
    assert call.pendingOf(ACCOUNT, owner, token.address).call() == 300

    refuse(call.claim(1, owner), owner, "too early")
    chain.rpc("evm_setNextBlockTimestamp", requested_at + DELAY - 1)
    chain.mine()
    with pytest.raises(Web3Exception, match="too early"):
        call.claim(1, owner).call({"from": owner}, "latest")
    pass_time(chain, w3, 1)
    refuse(call.claim(1, stranger), stranger, "not the depositor")
    refuse(call.claim(1, vault.address), owner, "recipient")
    receipt = transact(w3, call.claim(1, stranger), owner)
    (event,) = vault.events.WithdrawalClaimed().process_receipt(receipt, DISCARD)
    assert (event["args"]["id"], event["args"]["amount"], event["args"]["to"]) == (1, 300, stranger)
    assert token.functions.balanceOf(stranger).call() == 1300
    assert position(vault, token) == (400, 0)
    refuse(call.claim(1, owner), owner, "unknown request")
    refuse(call.cancel(1), owner, "unknown request")


def test_a_cancelled_request_is_free_collateral_again(
    w3: Web3, vault: Contract, token: Contract, owner: Any, stranger: Any
) -> None:
    transact(w3, vault.functions.deposit(ACCOUNT, token.address, 700), owner)
    transact(w3, vault.functions.request(ACCOUNT, token.address, 700), owner)
    refuse(vault.functions.request(ACCOUNT, token.address, 1), owner, "free deposit")
    refuse(vault.functions.cancel(1), stranger, "not the depositor")
    receipt = transact(w3, vault.functions.cancel(1), owner)
    (event,) = vault.events.WithdrawalCancelled().process_receipt(receipt, DISCARD)
    assert (event["args"]["id"], event["args"]["amount"]) == (1, 700)
    assert position(vault, token) == (700, 0)
    refuse(vault.functions.claim(1, owner), owner, "unknown request")
    transact(w3, vault.functions.request(ACCOUNT, token.address, 700), owner)
    assert position(vault, token) == (700, 700)


def test_only_the_depositor_of_an_account_can_take_out(
    w3: Web3, vault: Contract, token: Contract, owner: Any, stranger: Any
) -> None:
    transact(w3, vault.functions.deposit(ACCOUNT, token.address, 700), owner)
    transact(w3, vault.functions.deposit(ACCOUNT, token.address, 50), stranger)
    transact(w3, vault.functions.deposit(OTHER_ACCOUNT, token.address, 20), stranger)
    assert position(vault, token) == (750, 0)
    assert position(vault, token, OTHER_ACCOUNT) == (20, 0)
    refuse(vault.functions.request(ACCOUNT, token.address, 51), stranger, "free deposit")
    refuse(vault.functions.request(OTHER_ACCOUNT, token.address, 1), owner, "free deposit")


def test_empty_and_unknown_input_is_refused(w3: Web3, vault: Contract, token: Contract, owner: Any) -> None:
    call = vault.functions
    refuse(call.deposit(ACCOUNT, token.address, 0), owner, "zero amount")
    refuse(call.deposit(bytes(32), token.address, 1), owner, "zero account")
    refuse(call.deposit(ACCOUNT, token.address, 1001), owner, "balance")
    refuse(call.deposit(ACCOUNT, owner, 1), owner, "token not accepted")
    refuse(call.setLimit(owner, 1), w3.eth.accounts[0], "no contract")
    refuse(call.request(ACCOUNT, token.address, 0), owner, "zero amount")
    refuse(call.cancel(0), owner, "unknown request")
    refuse(call.claim(7, owner), owner, "unknown request")
    with pytest.raises(Web3Exception, match="delay"):
        deploy_vault(w3, 366 * 86400, w3.eth.contract(call.registry().call(), abi=[]))


def test_a_token_that_keeps_a_fee_is_credited_by_what_arrives(w3: Web3, vault: Contract, odd: Contract) -> None:
    transact(w3, odd.functions.set(10, False, 0))
    transact(w3, vault.functions.deposit(ACCOUNT, odd.address, 500))
    assert position(vault, odd) == (450, 0)
    transact(w3, odd.functions.set(100, False, 0))
    refuse(vault.functions.deposit(ACCOUNT, odd.address, 1), w3.eth.accounts[0], "nothing arrived")


def test_a_token_without_return_values_goes_in_and_out(
    chain: Anvil, w3: Web3, vault: Contract, odd: Contract, owner: Any
) -> None:
    transact(w3, vault.functions.deposit(ACCOUNT, odd.address, 500))
    transact(w3, vault.functions.request(ACCOUNT, odd.address, 500))
    pass_time(chain, w3, DELAY)
    transact(w3, vault.functions.claim(1, owner))
    assert odd.functions.balanceOf(owner).call() == 500


def test_a_transfer_that_returns_false_undoes_everything(
    chain: Anvil, w3: Web3, vault: Contract, odd: Contract
) -> None:
    sender = w3.eth.accounts[0]
    transact(w3, vault.functions.deposit(ACCOUNT, odd.address, 500))
    transact(w3, vault.functions.request(ACCOUNT, odd.address, 500))
    transact(w3, odd.functions.set(0, True, 0))
    pass_time(chain, w3, DELAY)
    refuse(vault.functions.deposit(ACCOUNT, odd.address, 1), sender, "transfer")
    refuse(vault.functions.claim(1, sender), sender, "transfer")
    assert position(vault, odd) == (500, 500)


def test_a_token_cannot_call_back_into_the_vault(chain: Anvil, w3: Web3, vault: Contract, odd: Contract) -> None:
    sender = w3.eth.accounts[0]
    transact(w3, odd.functions.mint(odd.address, 7))
    transact(w3, vault.functions.deposit(ACCOUNT, odd.address, 500))
    transact(w3, vault.functions.request(ACCOUNT, odd.address, 400))
    pass_time(chain, w3, DELAY)
    for callback in (1, 2):
        transact(w3, odd.functions.set(0, False, callback))
        function = (vault.functions.deposit(ACCOUNT, odd.address, 5), vault.functions.claim(1, sender))[callback - 1]
        refuse(function, sender, "revert")
    transact(w3, odd.functions.set(0, False, 0))
    transact(w3, vault.functions.claim(1, sender))
    assert position(vault, odd) == (100, 0)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["deposit", "request", "cancel", "claim"]), st.integers(1, 6)), max_size=12
    )
)
def test_books_agree_with_a_ledger_whatever_the_order(
    chain: Anvil, w3: Web3, vault: Contract, token: Contract, owner: Any, steps: list[tuple[str, int]]
) -> None:
    snapshot = chain.rpc("evm_snapshot")
    total, open_requests, next_id = 0, {}, 1
    for action, number in steps:
        free = total - sum(open_requests.values())
        match action:
            case "deposit":
                transact(w3, vault.functions.deposit(ACCOUNT, token.address, number), owner)
                total += number
            case "request" if number <= free:
                transact(w3, vault.functions.request(ACCOUNT, token.address, number), owner)
                open_requests[next_id] = number
                next_id += 1
            case "request":
                refuse(vault.functions.request(ACCOUNT, token.address, number), owner, "free deposit")
            case "cancel" if number in open_requests:
                transact(w3, vault.functions.cancel(number), owner)
                del open_requests[number]
            case "claim" if number in open_requests:
                pass_time(chain, w3, DELAY)
                transact(w3, vault.functions.claim(number, owner), owner)
                total -= open_requests.pop(number)
            case _:
                refuse(vault.functions.claim(number, owner), owner, "unknown request")
        assert position(vault, token) == (total, sum(open_requests.values()))
        assert token.functions.balanceOf(vault.address).call() == total
    chain.rpc("evm_revert", snapshot)
