"""What an EVM destination signs and how it reads answers, against independent encoders; no network."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from hexbytes import HexBytes
from pydantic import SecretStr
from web3 import Web3

import proofs
from adapters.destinations.evm import (
    GWEI,
    EvmRegistryDestination,
    Transaction,
    build_post,
    build_rotate,
    decode_revert,
    decode_transaction,
    sign_transaction,
)
from adapters.keys import KeySigner
from aggregator.domain.errors import Garbage, InputError, NodeRefused, PostingError
from aggregator.domain.rows import ChainRow, DestinationRow, FinalityRow, LatencyLeg
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, Rotation
from tests.unit.attest.statements import CHAIN, certify, make_deployment, make_proposal, make_signers

DEPLOYMENT = make_deployment(4)
CERTIFICATE = certify(DEPLOYMENT, make_proposal(DEPLOYMENT, 900_000_000))
PAYER = KeySigner(b"\x07" * 32)
REGISTRY = "0x" + "ab" * 20


class Node:
    """Answers as told: a value, or an error to raise; a list is used up one by one."""

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "eth_getTransactionCount": "0x5",
            "eth_estimateGas": "0xc350",
            "eth_maxPriorityFeePerGas": hex(GWEI),
            "eth_getBlockByNumber": {"baseFeePerGas": hex(10 * GWEI)},
            "eth_blockNumber": "0x64",
        } | answers
        self.sent: list[str] = []

    async def call(self, method: str, params: Any) -> Any:
        answer = self.answers[method]
        if method == "eth_sendRawTransaction":
            self.sent.append(params[0])
            if answer is None:
                return "0x" + Web3.keccak(hexstr=params[0]).hex()
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None: ...


def make_destination(node: Node, finality: FinalityRow | None = None, **options: Any) -> EvmRegistryDestination:
    row = DestinationRow(chain=CHAIN, kind="evm-registry", address=REGISTRY, clock_bound=5, payer_key="payer")
    chain = ChainRow(
        id=CHAIN,
        name="devnet",
        family="evm",
        rpc=(SecretStr("http://localhost"),),
        genesis="0x00",
        block_seconds=1,
        finality=finality or FinalityRow(depth=3),
        max_age=60,
        hold=(LatencyLeg(typical=1),),
    )
    return EvmRegistryDestination(row, chain, node, options.pop("payer", PAYER), DEPLOYMENT, **options)


def refused(message: str, data: object = None) -> NodeRefused:
    return NodeRefused("devnet", -32000, message, data)


def revert(reason: str) -> NodeRefused:
    data = "0x08c379a0" + encode(["string"], [reason]).hex()
    return NodeRefused("devnet", 3, "execution reverted", data)


def test_calldata_is_what_the_registrys_own_abi_gives() -> None:
    contract = contract_abi()
    header = CERTIFICATE.header
    fields = (
        header.epoch,
        header.root,
        header.floor,
        header.set_id,
        header.produced_at,
        header.valid_until,
        header.body,
    )
    signatures = [[a.r, a.vs] for a in CERTIFICATE.attestations]
    expected = contract.encode_abi("post", [fields, 0x020100, signatures])
    assert "0x" + build_post(CERTIFICATE).hex() == expected


def contract_abi() -> Any:
    artifact = Path(proofs.__file__).parent / "contracts" / "build" / "MarginRegistry.json"
    return Web3().eth.contract(abi=json.loads(artifact.read_text())["abi"])


def make_rotation(size: int = 4) -> Rotation:
    members = tuple(bytes([i + 1]) * 20 for i in range(size))
    signatures = tuple(IndexedSignature(i, bytes([i]) * 32, bytes([i + 1]) * 32) for i in (0, 2, 3))
    return Rotation(AttestorSet(2, members, size, 900_000_100, 1_900_000_000), signatures)


def test_the_calldata_of_a_rotation_is_what_the_registrys_own_abi_gives() -> None:
    rotation = make_rotation()
    to = rotation.to
    fields = (2, [Web3.to_checksum_address(m) for m in to.members], to.threshold, to.activation_epoch, to.not_after)
    signatures = [[s.r, s.vs] for s in rotation.signatures]
    assert "0x" + build_rotate(rotation).hex() == contract_abi().encode_abi("rotate", [fields, 0x030200, signatures])


async def test_a_rotation_is_signed_and_replaced_like_a_posting() -> None:
    destination = make_destination(Node(eth_sendRawTransaction=None))
    first = await destination.sign_rotation(make_rotation(7))
    offer = decode_transaction(bytes.fromhex(first.raw[2:]))
    assert (offer.nonce, offer.to.hex(), offer.data) == (5, REGISTRY[2:], build_rotate(make_rotation(7)))
    await destination.submit(first)
    again = decode_transaction(bytes.fromhex((await destination.sign_rotation(make_rotation(7))).raw[2:]))
    assert again.nonce == 5
    assert again.fee_cap * 8 >= offer.fee_cap * 9
    assert again.gas > 163_154  # what it took: tests/bench/gas.py
    with pytest.raises(PostingError, match="the registry refuses: activation in the past"):
        await make_destination(Node(eth_estimateGas=revert("activation in the past"))).sign_rotation(make_rotation())


async def test_the_newest_set_is_read() -> None:
    assert await make_destination(Node(eth_call="0x" + f"{7:064x}")).read_newest_set() == 7
    with pytest.raises(Garbage):
        await make_destination(Node(eth_call="0x" + f"{2**32:064x}")).read_newest_set()


def test_a_signed_transaction_is_what_eth_account_reads() -> None:
    transaction = Transaction(31337, 5, GWEI, 21 * GWEI, 62_500, bytes.fromhex(REGISTRY[2:]), b"\x01\x02")
    raw = sign_transaction(transaction, PAYER)
    assert Account.recover_transaction(raw).lower() == PAYER.address
    read = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
    assert (read["chainId"], read["nonce"], read["gas"], read["value"]) == (31337, 5, 62_500, 0)
    assert (read["maxPriorityFeePerGas"], read["maxFeePerGas"]) == (GWEI, 21 * GWEI)
    assert decode_transaction(raw) == transaction


async def test_signing_again_replaces_the_nonce_at_a_higher_price_up_to_the_cap() -> None:
    destination = make_destination(Node(), fee_cap=28 * GWEI)
    offers = []
    for _ in range(3):
        posting = await destination.sign(CERTIFICATE)
        offers.append(decode_transaction(bytes.fromhex(posting.raw[2:])))
        assert posting.nonce == 5
    assert [offer.fee_cap / GWEI for offer in offers] == [21.0, 23.625, 26.578125]
    assert all(b.fee_cap * 8 >= a.fee_cap * 9 and b.tip * 8 >= a.tip * 9 for a, b in itertools.pairwise(offers))
    with pytest.raises(PostingError, match="the cap is") as caught:
        await destination.sign(CERTIFICATE)
    assert caught.value.retryable


async def test_a_replacement_has_gas_for_an_epoch_whose_ring_slot_is_empty() -> None:
    # Three signatures took 51,807 gas in a slot in use, 68,907 in an empty one and 85,971 as the first posting ever.
    destination = make_destination(Node(eth_estimateGas=hex(51_807)))
    first = decode_transaction(bytes.fromhex((await destination.sign(CERTIFICATE)).raw[2:]))
    second = decode_transaction(bytes.fromhex((await destination.sign(CERTIFICATE)).raw[2:]))
    assert len(CERTIFICATE.attestations) == 3
    assert first.nonce == second.nonce
    assert first.gas < 68_907 < 85_971 < second.gas
    dear = make_destination(Node(eth_estimateGas=hex(200_000)))
    gas = [decode_transaction(bytes.fromhex((await dear.sign(CERTIFICATE)).raw[2:])).gas for _ in range(2)]
    assert gas == [250_000, 250_000]


async def test_a_new_nonce_starts_at_the_market_price_again() -> None:
    destination = make_destination(Node(eth_getTransactionCount=["0x5", "0x6"]))
    first, second = await destination.sign(CERTIFICATE), await destination.sign(CERTIFICATE)
    fees = [decode_transaction(bytes.fromhex(p.raw[2:])).fee_cap for p in (first, second)]
    assert (first.nonce, second.nonce) == (5, 6)
    assert fees[0] == fees[1]


async def test_what_was_offered_before_a_restart_is_learnt_from_the_posting() -> None:
    first = await make_destination(Node()).sign(CERTIFICATE)
    restarted = make_destination(Node(eth_sendRawTransaction=None))
    await restarted.submit(first)
    second = await restarted.sign(CERTIFICATE)
    fees = [decode_transaction(bytes.fromhex(p.raw[2:])).fee_cap for p in (first, second)]
    assert fees[1] * 8 >= fees[0] * 9


@pytest.mark.parametrize("error", [revert("epoch not above the last"), refused("reverted", {"data": revert("x").data})])
async def test_a_revert_is_told_in_the_registrys_words_and_is_final(error: NodeRefused) -> None:
    with pytest.raises(
        PostingError, match=r"eip155:31337: the registry refuses: (epoch not above the last|x)"
    ) as caught:
        await make_destination(Node(eth_estimateGas=error)).sign(CERTIFICATE)
    assert not caught.value.retryable


@pytest.mark.parametrize("message", ["already known", "nonce too low: next 6, tx 5", "transaction already imported"])
async def test_sending_again_is_harmless(message: str) -> None:
    destination = make_destination(Node(eth_sendRawTransaction=refused(message)))
    await destination.submit(await destination.sign(CERTIFICATE))


@pytest.mark.parametrize(
    ("message", "retryable"),
    [
        ("replacement transaction underpriced", True),
        ("max fee per gas less than block base fee", True),
        ("insufficient funds for gas * price + value", False),
        ("intrinsic gas too low", False),
    ],
)
async def test_what_a_node_refuses_says_whether_signing_again_helps(message: str, retryable: bool) -> None:
    destination = make_destination(Node(eth_sendRawTransaction=refused(message)))
    with pytest.raises(PostingError) as caught:
        await destination.submit(await destination.sign(CERTIFICATE))
    assert caught.value.retryable is retryable


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ({"eth_getTransactionReceipt": None}, "pending"),
        ({"eth_getTransactionReceipt": {"blockNumber": None}}, "pending"),
        ({"eth_getTransactionReceipt": None, "eth_getTransactionCount": "0x6"}, "failed"),
        ({"eth_getTransactionReceipt": {"blockNumber": "0x62", "gasUsed": "0x9", "status": "0x1"}}, "confirmed"),
        ({"eth_getTransactionReceipt": {"blockNumber": "0x61", "gasUsed": "0x9", "status": "0x1"}}, "final"),
        (
            {
                "eth_getTransactionReceipt": {"blockNumber": "0x61", "gasUsed": "0x9", "status": "0x0"},
                "eth_call": revert("expired"),
            },
            "failed",
        ),
    ],
)
async def test_status_reads_nonce_receipt_and_depth(answers: dict[str, Any], state: str) -> None:
    posting = await make_destination(Node()).sign(CERTIFICATE)
    status = await make_destination(Node(**answers)).status(posting)
    assert status.state == state
    if "eth_call" in answers:
        assert (status.height, status.cost, status.detail) == (0x61, 9, "the registry refuses: expired")


@pytest.mark.parametrize(
    ("rule", "tag"),
    [
        (FinalityRow(tag="safe", typical=9), "safe"),
        (FinalityRow(tag="finalized", typical=9), "finalized"),
        (FinalityRow(l1="eip155:1", origin="0x" + "15" * 20, typical=9), "finalized"),
    ],
    ids=["safe", "finalized", "by its L1"],
)
async def test_where_a_tag_says_what_is_final_the_node_is_asked(rule: FinalityRow, tag: str) -> None:
    class Tagged(Node):
        newest: object = None

        async def call(self, method: str, params: Any) -> Any:
            if method == "eth_getBlockByNumber" and params == [tag, False]:
                return self.newest
            return await super().call(method, params)

    posting = await make_destination(Node()).sign(CERTIFICATE)
    receipt = {"blockNumber": "0x61", "gasUsed": "0x9", "status": "0x1"}
    node = Tagged(eth_getTransactionReceipt=receipt)
    destination = make_destination(node, rule)
    for newest, state in ((None, "confirmed"), ({"number": "0x60"}, "confirmed"), ({"number": "0x61"}, "final")):
        node.newest = newest
        assert (await destination.status(posting)).state == state


@pytest.mark.parametrize("answer", ["0x", "0x01", None, "zz", 7])
async def test_an_answer_that_does_not_decode_is_garbage(answer: Any) -> None:
    with pytest.raises(Garbage):
        await make_destination(Node(eth_call=answer)).read_latest()
    with pytest.raises(Garbage):
        await make_destination(Node(eth_getTransactionCount=None)).sign(CERTIFICATE)


def test_an_attestors_key_never_pays() -> None:
    with pytest.raises(InputError, match="payer_key: payer is an attestor's key"):
        make_destination(Node(), payer=make_signers(1)[0])


@pytest.mark.parametrize("data", [None, "", "0x", "0x08c379a0", "0x08c379a0ff", "0x08c379a0zz", {"data": None}, 5])
def test_malformed_revert_data_has_no_reason(data: object) -> None:
    assert decode_revert(data) is None
