"""What a quorum says to a CollateralVault on a real EVM: holds and permits; limits by governance; NFTs.

Everything signed here is built with eth-account's typed data, by code that shares nothing with the project.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import Web3Exception
from web3.logs import DISCARD

from infra.devnet.anvil import Anvil, transact
from infra.devnet.artifacts import ROOT, SOLIDITY, load
from infra.devnet.evm_deploy import EvmSpec, accept_tokens, deploy_registry, deploy_token, deploy_vault
from proofs.permits import Hold, Permit
from proofs.permits import hold_digest as our_hold_digest
from proofs.permits import permit_digest as our_permit_digest
from proofs.permits import request_digest as our_request_digest
from tests.contracts.evm_reference import Header, Quorum
from tests.contracts.evm_vaults import (
    DEPLOYMENT_ID,
    SignedTerms,
    chain_word,
    compile_and_deploy,
    deploy_quorum_stub,
    hold_digest,
    sign,
    typed_digest,
    word,
)

CHAIN_ID, DELAY, WEEK = 31337, 60, 7 * 86400
ACCOUNT, OTHER_ACCOUNT = b"\x01" * 32, b"\x02" * 32
FIRST, SECOND = Quorum(4), Quorum(4, seed=2)
ROTATE_FIELDS = {
    "setId": "uint32",
    "members": "address[]",
    "threshold": "uint32",
    "activationEpoch": "uint64",
    "notAfter": "uint64",
}
ZERO = "0x" + "00" * 20

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]


class Bench(NamedTuple):
    """A vault with 700 units of the owner's and 50 of a stranger's for one account."""

    w3: Web3
    registry: Contract
    vault: Contract
    token: Contract
    owner: Any
    stranger: Any
    to: Any

    @property
    def now(self) -> int:
        return int(self.w3.eth.get_block("latest")["timestamp"])

    def permit(self, **changes: Any) -> SignedTerms:
        base = SignedTerms(
            *(ACCOUNT, chain_word(CHAIN_ID), self.vault.address, self.token.address, 300, self.to, b"\x0a" * 32, 5),
            self.now + 600,
        )
        return base.but(**changes)

    def withdraw(self, told: SignedTerms, request: int = 0, *, signed: SignedTerms | None = None, **how: Any) -> Any:
        """Return the call; `signed` is what the quorum signed where that differs from what the vault is told."""
        digest = (signed or told).digest(how.pop("deployment_id", DEPLOYMENT_ID), how.pop("type_", "WithdrawalPermit"))
        return self.vault.functions.withdraw(told.terms(), request, *sign(how.pop("quorum", FIRST), digest, **how))

    def hold(self, until: int, epoch: int, account: bytes = ACCOUNT, *, quorum: Quorum = FIRST, **how: Any) -> Any:
        digest = hold_digest(account, chain_word(CHAIN_ID), how.pop("vault", self.vault.address), until, epoch)
        return self.vault.functions.hold(account, until, epoch, *sign(quorum, digest, **how))

    def refuse(self, call: Any, reason: str, sender: Any = None) -> None:
        with pytest.raises(Web3Exception, match=reason):
            call.call({"from": sender or self.owner})

    def position(self, account: bytes = ACCOUNT) -> tuple[int, int]:
        return tuple(self.vault.functions.position(account, self.token.address).call())


@pytest.fixture(scope="module")
def bench(w3: Web3) -> Bench:
    registry = deploy_quorum_stub(w3, FIRST, SECOND)
    vault = deploy_vault(w3, DELAY, registry)
    token = deploy_token(w3, "USD Coin", "USDC", 6)
    owner, stranger, to = w3.eth.accounts[1:4]
    accept_tokens(w3, vault, token.address)
    for who, amount in ((owner, 700), (stranger, 50)):
        transact(w3, token.functions.mint(who, 1000))
        transact(w3, token.functions.approve(vault.address, 2**256 - 1), who)
        transact(w3, vault.functions.deposit(ACCOUNT, token.address, amount), who)
    return Bench(w3, registry, vault, token, owner, stranger, to)


def pass_time(chain: Anvil, seconds: int) -> None:
    chain.rpc("evm_increaseTime", seconds)
    chain.mine()


# ---- permits ----


def test_a_permit_pays_out_at_once_and_only_once(bench: Bench) -> None:
    permit = bench.permit()
    call = bench.withdraw(permit)
    receipt = transact(bench.w3, call, bench.owner)
    (event,) = bench.vault.events.Withdrawn().process_receipt(receipt, DISCARD)
    assert dict(event["args"]) == {
        "account": ACCOUNT,
        "owner": bench.owner,
        "token": bench.token.address,
        "amount": 300,
        "to": bench.to,
        "nonce": permit.nonce,
        "epoch": 5,
    }
    assert bench.token.functions.balanceOf(bench.to).call() == 300
    assert bench.position() == (450, 0)
    assert bench.vault.functions.totalDeposited(bench.token.address).call() == 450
    assert bench.vault.functions.nonceUsed(permit.nonce).call()
    bench.refuse(call, "nonce used")
    bench.refuse(bench.withdraw(permit.but(amount=1, epoch=6)), "nonce used")
    transact(bench.w3, bench.withdraw(permit.but(amount=1, nonce=b"\x0b" * 32)), bench.owner)


@pytest.mark.parametrize(
    "changes",
    [
        {"chain": chain_word(1)},
        {"vault": "0x" + "ab" * 20},
        {"account": OTHER_ACCOUNT},
        {"token": "0x" + "ab" * 20},
        {"amount": 299},
        {"to": "0x" + "ab" * 20},
        {"nonce": b"\x0c" * 32},
        {"epoch": 6},
        {"expiry": 2**40},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_permit_is_for_exactly_what_was_signed(bench: Bench, changes: dict[str, Any]) -> None:
    permit = bench.permit()
    bench.refuse(bench.withdraw(permit, signed=permit.but(**changes)), "signer")


def test_a_permit_of_another_deployment_type_or_quorum_is_refused(bench: Bench) -> None:
    permit = bench.permit()
    bench.refuse(bench.withdraw(permit, deployment_id=b"\x0e" * 32), "signer")
    bench.refuse(bench.withdraw(permit, type_="PermitRequest"), "signer")
    bench.refuse(bench.withdraw(permit, indices=(0, 1)), "too few")
    bench.refuse(bench.withdraw(permit, indices=(0, 0, 1)), "indices")
    bench.refuse(bench.withdraw(permit, quorum=SECOND), "signer")


def test_the_permits_epoch_decides_the_set_and_must_not_be_below_the_floor(bench: Bench) -> None:
    governance, destination = bench.registry.functions.governance().call(), chain_word(CHAIN_ID)
    transact(bench.w3, bench.registry.functions.set(governance, destination, 5, 6))
    old, new = bench.permit(epoch=5), bench.permit(epoch=6)
    bench.refuse(bench.withdraw(bench.permit(epoch=4)), "below floor")
    bench.refuse(bench.withdraw(old, quorum=SECOND), "signer")
    bench.refuse(bench.withdraw(new, quorum=FIRST), "signer")
    bench.withdraw(old).call({"from": bench.owner})
    transact(bench.w3, bench.withdraw(new, quorum=SECOND), bench.owner)
    bench.refuse(bench.hold(bench.now + 60, 7, quorum=FIRST), "signer")
    bench.hold(bench.now + 60, 7, quorum=SECOND).call({"from": bench.stranger})


def test_a_permit_expires_after_its_last_second(chain: Anvil, bench: Bench) -> None:
    expiry = bench.now + 100
    call = bench.withdraw(bench.permit(expiry=expiry))
    chain.rpc("evm_setNextBlockTimestamp", expiry + 1)
    chain.mine()
    with pytest.raises(Web3Exception, match="permit expired"):
        call.call({"from": bench.owner}, "latest")


def test_a_permit_is_paid_in_its_last_second(chain: Anvil, bench: Bench) -> None:
    expiry = bench.now + 100
    call = bench.withdraw(bench.permit(expiry=expiry))
    chain.rpc("evm_setNextBlockTimestamp", expiry)
    transact(bench.w3, call, bench.owner)
    assert bench.now == expiry
    assert bench.position() == (450, 0)


def test_a_permit_takes_only_from_the_callers_own_free_deposit(bench: Bench) -> None:
    bench.refuse(bench.withdraw(bench.permit(amount=51)), "free deposit", bench.stranger)
    bench.refuse(bench.withdraw(bench.permit(amount=1)), "free deposit", bench.to)
    bench.refuse(bench.withdraw(bench.permit(amount=701)), "free deposit")
    bench.refuse(bench.withdraw(bench.permit(amount=0)), "zero amount")
    bench.refuse(bench.withdraw(bench.permit(to=ZERO)), "recipient")
    bench.refuse(bench.withdraw(bench.permit(to=bench.vault.address)), "recipient")
    bench.refuse(bench.withdraw(bench.permit(account=OTHER_ACCOUNT)), "free deposit")


def test_a_permit_may_take_what_a_request_had_taken_aside(chain: Anvil, bench: Bench) -> None:
    call = bench.vault.functions
    transact(bench.w3, call.request(ACCOUNT, bench.token.address, 600), bench.owner)
    transact(bench.w3, call.request(ACCOUNT, bench.token.address, 20), bench.stranger)
    transact(bench.w3, call.deposit(OTHER_ACCOUNT, bench.token.address, 10), bench.owner)
    transact(bench.w3, call.request(OTHER_ACCOUNT, bench.token.address, 10), bench.owner)
    permit = bench.permit()
    bench.refuse(bench.withdraw(permit), "free deposit")
    bench.refuse(bench.withdraw(permit, 2), "not the depositor")
    bench.refuse(bench.withdraw(permit, 3), "another stake")
    bench.refuse(bench.withdraw(permit, 9), "unknown request")
    receipt = transact(bench.w3, bench.withdraw(permit, 1), bench.owner)
    assert len(bench.vault.events.WithdrawalCancelled().process_receipt(receipt, DISCARD)) == 1
    assert bench.position() == (450, 20)
    pass_time(chain, DELAY)
    bench.refuse(call.claim(1, bench.owner), "unknown request")


def test_a_vault_that_finds_itself_on_another_chain_lets_nothing_go_and_holds_nothing(
    chain: Anvil, bench: Bench
) -> None:
    withdraw, hold = bench.withdraw(bench.permit()), bench.hold(bench.now + 500, 5)
    chain.rpc("anvil_setChainId", CHAIN_ID + 1)
    try:
        bench.refuse(withdraw, "another chain")
        bench.refuse(hold, "another chain")
    finally:
        chain.rpc("anvil_setChainId", CHAIN_ID)
    withdraw.call({"from": bench.owner})


# ---- holds ----


def test_a_hold_keeps_claims_in_until_it_ends(chain: Anvil, bench: Bench) -> None:
    call = bench.vault.functions
    transact(bench.w3, call.request(ACCOUNT, bench.token.address, 300), bench.owner)
    until = bench.now + 500
    receipt = transact(bench.w3, bench.hold(until, 5), bench.stranger)
    (event,) = bench.vault.events.Held().process_receipt(receipt, DISCARD)
    assert dict(event["args"]) == {"account": ACCOUNT, "until": until, "epoch": 5}
    assert call.holds(ACCOUNT).call() == [until, 5]
    assert call.holds(OTHER_ACCOUNT).call() == [0, 0]
    pass_time(chain, DELAY)
    bench.refuse(call.claim(1, bench.owner), "held")

    # Deposits, requests and cancellations go on; another account is free.
    transact(bench.w3, call.deposit(ACCOUNT, bench.token.address, 5), bench.owner)
    transact(bench.w3, call.request(ACCOUNT, bench.token.address, 5), bench.owner)
    transact(bench.w3, call.cancel(2), bench.owner)
    transact(bench.w3, call.deposit(OTHER_ACCOUNT, bench.token.address, 9), bench.stranger)
    transact(bench.w3, call.request(OTHER_ACCOUNT, bench.token.address, 9), bench.stranger)
    pass_time(chain, DELAY)
    transact(bench.w3, call.claim(3, bench.stranger), bench.stranger)

    chain.rpc("evm_setNextBlockTimestamp", until)
    transact(bench.w3, call.claim(1, bench.owner), bench.owner)
    assert bench.position() == (455, 0)


def test_of_a_claim_and_a_hold_in_one_block_the_first_one_counts(chain: Anvil, bench: Bench) -> None:
    call = bench.vault.functions
    for _ in range(2):
        transact(bench.w3, call.request(ACCOUNT, bench.token.address, 100), bench.owner)
    pass_time(chain, DELAY)
    hold = bench.hold(bench.now + 500, 5)
    chain.rpc("evm_setAutomine", False)
    try:
        sent = [
            function.transact({"from": sender, "gas": 500_000, "gasPrice": price})
            for function, sender, price in (
                (call.claim(1, bench.owner), bench.owner, 30 * 10**9),
                (hold, bench.stranger, 20 * 10**9),
                (call.claim(2, bench.to), bench.owner, 10 * 10**9),
            )
        ]
        chain.mine()
        receipts = [bench.w3.eth.get_transaction_receipt(hash) for hash in sent]
    finally:
        chain.rpc("evm_setAutomine", True)
    assert len({receipt["blockNumber"] for receipt in receipts}) == 1
    assert [receipt["status"] for receipt in receipts] == [1, 1, 0]
    assert bench.position() == (650, 100)


def test_a_hold_is_bounded_and_renewed_only_by_a_newer_epoch(chain: Anvil, bench: Bench) -> None:
    bench.refuse(bench.hold(bench.now, 5), "until passed")
    bench.refuse(bench.hold(bench.now + WEEK + 100, 5), "until too far")
    first = bench.now + 1000
    transact(bench.w3, bench.hold(first, 5))
    bench.refuse(bench.hold(first, 5), "epoch not newer")
    bench.refuse(bench.hold(first + 100, 5), "epoch not newer")
    bench.refuse(bench.hold(first + 100, 4), "epoch not newer")
    transact(bench.w3, bench.hold(first + 100, 6))
    # A newer one never shortens what stands, so that nobody can ask for a hold to end another.
    transact(bench.w3, bench.hold(first - 500, 7))
    assert bench.vault.functions.holds(ACCOUNT).call() == [first + 100, 7]
    pass_time(chain, 2000)
    bench.refuse(bench.hold(bench.now + 500, 6), "epoch not newer")


def test_a_hold_needs_its_own_quorum(bench: Bench) -> None:
    until = bench.now + 500
    bench.refuse(bench.hold(until, 5, vault="0x" + "ab" * 20), "signer")
    bench.refuse(bench.hold(until, 5, indices=(0, 1)), "too few")
    digest = hold_digest(ACCOUNT, chain_word(1), bench.vault.address, until, 5)
    bench.refuse(bench.vault.functions.hold(ACCOUNT, until, 5, *sign(FIRST, digest)), "signer")
    digest = hold_digest(OTHER_ACCOUNT, chain_word(CHAIN_ID), bench.vault.address, until, 5)
    bench.refuse(bench.vault.functions.hold(ACCOUNT, until, 5, *sign(FIRST, digest)), "signer")


def test_a_permit_needs_a_newer_epoch_than_the_hold_that_stands(chain: Anvil, bench: Bench) -> None:
    transact(bench.w3, bench.hold(bench.now + 500, 5))
    for epoch in (4, 5):
        bench.refuse(bench.withdraw(bench.permit(epoch=epoch)), "held")
    bench.withdraw(bench.permit(epoch=6)).call({"from": bench.owner})
    older = bench.withdraw(bench.permit(epoch=5, expiry=bench.now + 5000))
    pass_time(chain, 500)
    transact(bench.w3, older, bench.owner)


# ---- limits ----


def test_governance_alone_sets_limits_which_never_keep_anything_in(chain: Anvil, bench: Bench) -> None:
    call, token, governance = bench.vault.functions, bench.token.address, bench.w3.eth.accounts[0]
    bench.refuse(call.setLimit(token, 1), "not the governance")
    receipt = transact(bench.w3, call.setLimit(token, 760), governance)
    (event,) = bench.vault.events.LimitSet().process_receipt(receipt, DISCARD)
    assert dict(event["args"]) == {"token": token, "limit": 760, "nfts": False}
    bench.refuse(call.deposit(ACCOUNT, token, 11), "limit")
    transact(bench.w3, call.deposit(ACCOUNT, token, 10), bench.owner)
    bench.refuse(call.deposit(OTHER_ACCOUNT, token, 1), "limit", bench.stranger)

    transact(bench.w3, call.setLimit(token, 0), governance)
    assert call.limit(token).call() == 0
    bench.refuse(call.deposit(ACCOUNT, token, 1), "token not accepted")
    transact(bench.w3, call.request(ACCOUNT, token, 700), bench.owner)
    pass_time(chain, DELAY)
    transact(bench.w3, call.claim(1, bench.owner), bench.owner)
    transact(bench.w3, bench.withdraw(bench.permit(amount=10)), bench.owner)
    assert call.totalDeposited(token).call() == 50
    # What left makes room for what comes.
    transact(bench.w3, call.setLimit(token, 60), governance)
    transact(bench.w3, call.deposit(ACCOUNT, token, 10), bench.stranger)

    # Governance is whoever the registry says it is.
    transact(bench.w3, bench.registry.functions.set(bench.stranger, chain_word(CHAIN_ID), 0, 2**64 - 1))
    bench.refuse(call.setLimit(token, 1), "not the governance", governance)
    call.setLimit(token, 1).call({"from": bench.stranger})


def test_a_token_with_a_fee_counts_by_what_arrives(bench: Bench) -> None:
    odd = compile_and_deploy(bench.w3, "OddToken")
    accept_tokens(bench.w3, bench.vault, odd.address, limit=90)
    transact(bench.w3, odd.functions.mint(bench.owner, 1000))
    transact(bench.w3, odd.functions.set(10, False, 0))
    bench.refuse(bench.vault.functions.deposit(ACCOUNT, odd.address, 102), "limit")
    transact(bench.w3, bench.vault.functions.deposit(ACCOUNT, odd.address, 100), bench.owner)
    assert bench.vault.functions.totalDeposited(odd.address).call() == 90
    # What is sent past `deposit` is nobody's, and is not credited to whoever deposits next.
    transact(bench.w3, odd.functions.transfer(bench.vault.address, 100), bench.owner)
    accept_tokens(bench.w3, bench.vault, odd.address, limit=1000)
    transact(bench.w3, bench.vault.functions.deposit(ACCOUNT, odd.address, 10), bench.owner)
    assert bench.vault.functions.totalDeposited(odd.address).call() == 99


def test_a_permitted_payment_cannot_call_back_and_must_succeed(bench: Bench) -> None:
    odd = compile_and_deploy(bench.w3, "OddToken")
    accept_tokens(bench.w3, bench.vault, odd.address)
    transact(bench.w3, odd.functions.mint(bench.owner, 1000))
    transact(bench.w3, bench.vault.functions.deposit(ACCOUNT, odd.address, 500), bench.owner)
    transact(bench.w3, odd.functions.mint(odd.address, 7))
    transact(bench.w3, odd.functions.set(0, False, 2))
    call = bench.withdraw(bench.permit(token=odd.address))
    bench.refuse(call, "revert")
    transact(bench.w3, odd.functions.set(0, True, 0))
    bench.refuse(call, "transfer")
    transact(bench.w3, odd.functions.set(0, False, 0))
    transact(bench.w3, call, bench.owner)
    assert odd.functions.balanceOf(bench.to).call() == 300


def test_a_vault_is_of_one_registry_on_its_own_chain(bench: Bench) -> None:
    def deploy(governance: str, destination: bytes) -> Contract:
        registry = deploy_quorum_stub(bench.w3, FIRST, SECOND)
        transact(bench.w3, registry.functions.set(governance, destination, 0, 0))
        return deploy_vault(bench.w3, DELAY, registry)

    with pytest.raises(Web3Exception, match="another chain"):
        deploy(bench.owner, chain_word(1))
    with pytest.raises(Web3Exception, match="without governance"):
        deploy(ZERO, chain_word(CHAIN_ID))
    with pytest.raises(Web3Exception):  # a token is no registry
        deploy_vault(bench.w3, DELAY, bench.token)
    assert bench.vault.functions.registry().call() == bench.registry.address
    assert bench.vault.functions.destination().call() == chain_word(CHAIN_ID)
    assert bench.vault.functions.chainId().call() == CHAIN_ID


def test_what_attestors_sign_in_python_is_what_the_vault_and_eth_account_hash(bench: Bench) -> None:
    permit = bench.permit()
    ours = Permit(
        *(permit.account, permit.chain, word(permit.vault), word(permit.token), permit.amount, word(permit.to)),
        *(permit.nonce, permit.epoch, permit.expiry),
    )
    assert our_permit_digest(ours, DEPLOYMENT_ID) == permit.digest()
    assert our_request_digest(ours, DEPLOYMENT_ID) == permit.digest(type_="PermitRequest")
    hold = Hold(ACCOUNT, permit.chain, word(permit.vault), 77, 5)
    assert our_hold_digest(hold, DEPLOYMENT_ID) == hold_digest(ACCOUNT, permit.chain, permit.vault, 77, 5)


# ---- NFTs ----


@pytest.fixture(scope="module")
def nft(bench: Bench) -> Contract:
    nft = compile_and_deploy(bench.w3, "TestNft")
    accept_tokens(bench.w3, bench.vault, nft.address, limit=2)
    for id, who in ((1, bench.owner), (2, bench.stranger), (3, bench.owner)):
        transact(bench.w3, nft.functions.mint(who, id))
    for who in (bench.owner, bench.stranger):
        transact(bench.w3, nft.functions.setApprovalForAll(bench.vault.address, True), who)
    return nft


def test_an_nft_waits_its_delay_on_the_way_out(chain: Anvil, bench: Bench, nft: Contract) -> None:
    call, vault = bench.vault.functions, bench.vault
    named = {"account": ACCOUNT, "owner": bench.owner, "token": nft.address, "id": 1}

    def event(kind: Callable[[], Any], receipt: Any) -> dict[str, Any]:
        (found,) = kind().process_receipt(receipt, DISCARD)
        return dict(found["args"])

    receipt = transact(bench.w3, call.depositNft(ACCOUNT, nft.address, 1), bench.owner)
    assert event(vault.events.NftDeposited, receipt) == named
    assert nft.functions.ownerOf(1).call() == vault.address
    assert call.nft(nft.address, 1).call() == (ACCOUNT, bench.owner, 0)
    bench.refuse(call.claimNft(nft.address, 1, bench.owner), "unknown request")
    bench.refuse(call.cancelNft(nft.address, 1), "unknown request")

    receipt = transact(bench.w3, call.requestNft(nft.address, 1), bench.owner)
    claimable = bench.now + DELAY
    assert event(vault.events.NftWithdrawalRequested, receipt) == {**named, "claimableAt": claimable}
    bench.refuse(call.requestNft(nft.address, 1), "requested already")
    receipt = transact(bench.w3, call.cancelNft(nft.address, 1), bench.owner)
    assert event(vault.events.NftWithdrawalCancelled, receipt) == named
    transact(bench.w3, call.requestNft(nft.address, 1), bench.owner)
    bench.refuse(call.claimNft(nft.address, 1, bench.owner), "too early")
    pass_time(chain, DELAY)
    bench.refuse(call.claimNft(nft.address, 1, ZERO), "recipient")
    bench.refuse(call.claimNft(nft.address, 1, vault.address), "recipient")
    receipt = transact(bench.w3, call.claimNft(nft.address, 1, bench.to), bench.owner)
    assert event(vault.events.NftWithdrawalClaimed, receipt) == {**named, "to": bench.to}
    assert nft.functions.ownerOf(1).call() == bench.to
    assert call.nft(nft.address, 1).call() == (bytes(32), ZERO, 0)
    assert call.totalDeposited(nft.address).call() == 0


def test_an_nft_is_its_depositors_and_nobody_elses(chain: Anvil, bench: Bench, nft: Contract) -> None:
    call = bench.vault.functions
    bench.refuse(call.depositNft(OTHER_ACCOUNT, nft.address, 1), "not the owner", bench.stranger)
    bench.refuse(call.depositNft(bytes(32), nft.address, 1), "zero account")
    transact(bench.w3, call.depositNft(ACCOUNT, nft.address, 1), bench.owner)
    transact(bench.w3, call.depositNft(ACCOUNT, nft.address, 2), bench.stranger)
    for function in (call.requestNft(nft.address, 2), call.cancelNft(nft.address, 2)):
        bench.refuse(function, "not the depositor")
    bench.refuse(call.claimNft(nft.address, 2, bench.owner), "not the depositor")
    bench.refuse(call.requestNft(nft.address, 3), "unknown NFT")
    bench.refuse(call.depositNft(ACCOUNT, nft.address, 3), "limit")

    # A piece that was burnt and minted anew is not what was deposited.
    transact(bench.w3, nft.functions.burn(1))
    transact(bench.w3, nft.functions.mint(bench.stranger, 1))
    accept_tokens(bench.w3, bench.vault, nft.address, limit=9)
    bench.refuse(call.depositNft(OTHER_ACCOUNT, nft.address, 1), "deposited already", bench.stranger)


def test_an_nft_comes_in_through_its_own_door_alone(bench: Bench, nft: Contract) -> None:
    call = bench.vault.functions
    bench.refuse(nft.functions.safeTransferFrom(bench.owner, bench.vault.address, 1), "revert")
    bench.refuse(call.deposit(ACCOUNT, nft.address, 1), "token not accepted")
    bench.refuse(call.depositNft(ACCOUNT, bench.token.address, 1), "token not accepted")
    other = compile_and_deploy(bench.w3, "TestNft")
    bench.refuse(call.depositNft(ACCOUNT, other.address, 1), "token not accepted")
    transact(bench.w3, nft.functions.set(True, False))
    bench.refuse(call.depositNft(ACCOUNT, nft.address, 1), "nothing arrived")


def test_a_hold_keeps_nfts_in_and_a_transfer_cannot_call_back(chain: Anvil, bench: Bench, nft: Contract) -> None:
    call = bench.vault.functions
    for id in (1, 3):
        transact(bench.w3, call.depositNft(ACCOUNT, nft.address, id), bench.owner)
        transact(bench.w3, call.requestNft(nft.address, id), bench.owner)
    until = bench.now + 500
    transact(bench.w3, bench.hold(until, 5))
    pass_time(chain, DELAY)
    bench.refuse(call.claimNft(nft.address, 1, bench.to), "held")
    pass_time(chain, 500)
    transact(bench.w3, nft.functions.mint(nft.address, 99))
    transact(bench.w3, nft.functions.set(False, True))
    bench.refuse(call.claimNft(nft.address, 1, bench.to), "revert")
    transact(bench.w3, nft.functions.set(False, False))
    bench.refuse(call.claimNft(nft.address, 1, bench.registry.address), "revert")  # it receives no NFTs
    transact(bench.w3, call.claimNft(nft.address, 1, bench.to), bench.owner)
    assert nft.functions.ownerOf(3).call() == bench.vault.address


# ---- whatever the order ----

STEPS = ("deposit", "request", "cancel", "claim", "permit", "permit-request", "hold", "wait")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(1, 5)), max_size=14))
def test_nothing_leaves_but_by_the_rules_whatever_the_order(
    chain: Anvil, bench: Bench, steps: list[tuple[str, int]]
) -> None:
    """Compare with a plain ledger: what is there, what is asked back, and until when it is held."""
    snapshot = chain.rpc("evm_snapshot")
    call, token = bench.vault.functions, bench.token.address
    total, requests, next_id, held, nonce, epoch = 700, dict[int, tuple[int, int]](), 1, 0, 0, 0

    def succeeds(function: Any) -> bool:
        try:
            transact(bench.w3, function, bench.owner)
        except Web3Exception:
            return False
        return True

    for action, number in steps:
        amount, free = number * 60, total - sum(amount for amount, _ in requests.values())
        match action:
            case "deposit":
                assert succeeds(call.deposit(ACCOUNT, token, number))
                total += number
            case "request":
                assert succeeds(call.request(ACCOUNT, token, amount)) == (amount <= free)
                if amount <= free:
                    requests[next_id] = (amount, bench.now + DELAY)
                    next_id += 1
            case "cancel":
                assert succeeds(call.cancel(number)) == (number in requests)
                requests.pop(number, None)
            case "claim":
                passed = succeeds(call.claim(number, bench.to))
                ripe = number in requests and bench.now >= max(requests[number][1], held)
                assert passed == ripe
                if passed:
                    total -= requests.pop(number)[0]
            case "permit" | "permit-request":
                nonce += 1
                use = number if action == "permit-request" else 0
                permit = bench.permit(amount=amount, nonce=nonce.to_bytes(32, "big"), epoch=epoch + number - 2 + 10)
                passed = succeeds(bench.withdraw(permit, use))
                known = not use or use in requests
                there = amount <= free + (requests[use][0] if use and use in requests else 0)
                assert passed == (known and there and (bench.now >= held or permit.epoch > epoch + 10))
                if passed:
                    requests.pop(use, None)
                    total -= amount
            case "hold":
                epoch += 1
                until = bench.now + 40 * number
                assert succeeds(bench.hold(until, epoch + 10))
                held = max(held, until)
            case "wait":
                pass_time(chain, 20 * number)
        assert bench.position() == (total + 50, sum(amount for amount, _ in requests.values()))
        assert bench.token.functions.balanceOf(bench.vault.address).call() == total + 50
        assert call.totalDeposited(token).call() == total + 50
    chain.rpc("evm_revert", snapshot)


# ---- with the registry itself ----


def test_the_registry_decides_who_the_quorum_is(chain: Anvil, bench: Bench) -> None:
    epoch_seconds, salt = 10, b"\x5a" * 32
    members = tuple(FIRST.members)
    spec = EvmSpec(members, 3, bench.now + 10**6, salt, {}, epoch_seconds=epoch_seconds)
    registry = deploy_registry(bench.w3, spec)
    id = bytes(registry.functions.deploymentId().call())
    vault = deploy_vault(bench.w3, DELAY, registry)
    accept_tokens(bench.w3, vault, bench.token.address)
    transact(bench.w3, bench.token.functions.approve(vault.address, 1000), bench.owner)
    transact(bench.w3, vault.functions.deposit(ACCOUNT, bench.token.address, 200), bench.owner)
    here = bench._replace(vault=vault)
    assert vault.functions.deploymentId().call() == id
    assert vault.functions.DOMAIN_SEPARATOR().call() == registry.functions.DOMAIN_SEPARATOR().call()

    epoch = here.now // epoch_seconds
    permit = here.permit(vault=vault.address, amount=100, epoch=epoch)
    here.refuse(here.withdraw(permit), "sign")  # signed for another deployment
    here.refuse(here.withdraw(permit, deployment_id=id, indices=(0, 1)), "signatures")
    here.refuse(here.withdraw(permit, deployment_id=id, quorum=SECOND), "sign")
    here.refuse(here.withdraw(permit.but(epoch=epoch + 10), deployment_id=id), "future")
    transact(bench.w3, here.withdraw(permit, deployment_id=id), bench.owner)
    here.refuse(here.withdraw(permit, deployment_id=id), "nonce used")

    # A reorganisation raises the floor: what rests on older epochs is void, in vaults too.
    header = Header(epoch, b"\x01" * 32, here.now, here.now + 600, floor=epoch)
    transact(bench.w3, registry.functions.post(*FIRST.certify(header, id, (0, 1, 2))))
    older = permit.but(epoch=epoch - 1, nonce=b"\x0b" * 32)
    here.refuse(here.withdraw(older, deployment_id=id), "floor")

    # The next set takes over at its epoch, and the older one still signs for the epochs before.
    activation = here.now // epoch_seconds + 3
    rotation = {
        "setId": 2,
        "members": SECOND.members,
        "threshold": 3,
        "activationEpoch": activation,
        "notAfter": here.now + 10**6,
    }
    digest = typed_digest("RotateSet", ROTATE_FIELDS, rotation, id)
    transact(bench.w3, registry.functions.rotate(tuple(rotation.values()), *sign(FIRST, digest)))
    pass_time(chain, 30)
    old = permit.but(epoch=activation - 1, nonce=b"\x0c" * 32, amount=10)
    new = permit.but(epoch=activation, nonce=b"\x0d" * 32, amount=10)
    here.refuse(here.withdraw(new, deployment_id=id, quorum=FIRST), "sign")
    here.refuse(here.withdraw(old, deployment_id=id, quorum=SECOND), "sign")
    transact(bench.w3, here.withdraw(new, deployment_id=id, quorum=SECOND), bench.owner)
    transact(bench.w3, here.withdraw(old, deployment_id=id, quorum=FIRST), bench.owner)
    assert here.position() == (80, 0)


def test_the_solidity_interface_is_the_contracts_own() -> None:
    source = (ROOT / "proofs" / "contracts" / "ICollateralVault.sol").read_text(encoding="utf-8")
    request = {
        "language": "Solidity",
        "sources": {"ICollateralVault.sol": {"content": source}},
        "settings": {"outputSelection": {"*": {"*": ["abi"]}}},
    }
    done = subprocess.run(["node", SOLIDITY], input=json.dumps(request), capture_output=True, text=True, check=True)
    output = json.loads(done.stdout)["output"]
    assert not output.get("errors")
    theirs = output["contracts"]["ICollateralVault.sol"]["ICollateralVault"]["abi"]

    def kind(part: dict[str, Any]) -> str:
        inner = ",".join(kind(each) for each in part.get("components", ()))
        return part["type"].replace("tuple", f"({inner})") + " indexed" * part.get("indexed", False)

    def parts(entry: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(map(kind, entry.get(way, ()))) for way in ("inputs", "outputs"))

    def surface(abi: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
        return {
            (e["type"], e["name"], e.get("stateMutability"), *parts(e))
            for e in abi
            if e["type"] in ("function", "event")
        }

    assert surface(theirs) == surface(load("CollateralVault")[0])
