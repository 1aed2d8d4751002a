"""MarginRegistry on a real EVM: what it accepts, every refusal, the ring and the floor."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_abi import encode
from eth_utils.abi import abi_to_signature
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import Web3Exception

import proofs
from infra.devnet import anvil as devnet
from infra.devnet.anvil import Anvil, connect, transact
from infra.devnet.artifacts import load
from infra.devnet.evm_deploy import deploy_registry
from tests.contracts.evm_reference import Header, Leaf, Quorum, Tree, keccak
from tests.contracts.evm_registries import EPOCH_SECONDS, ORDER, SIGNERS, ZERO, World, build_spec, quorum

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]


@pytest.fixture(scope="module")
def now(w3: Web3) -> int:
    return int(w3.eth.get_block("latest")["timestamp"])


@pytest.fixture(scope="module")
def registry(w3: Web3, now: int) -> Contract:
    return deploy_registry(w3, build_spec(now))


@pytest.fixture
def world(chain: Anvil, w3: Web3, registry: Contract, now: int) -> World:
    return World(chain, w3, registry, now)


def test_registry_describes_its_deployment(world: World, now: int) -> None:
    functions = world.registry.functions
    members_hash = bytes(32)
    for member in quorum.members:
        members_hash = keccak(members_hash + bytes(12) + bytes.fromhex(member[2:]))
    words = encode(
        ["uint256", "bytes32", "uint256", "uint256", "bytes32"], [3, members_hash, 3, now + 86400, b"\x5a" * 32]
    )
    assert functions.deploymentId().call() == keccak(words)
    assert functions.destination().call() == keccak(b"eip155:31337")
    genesis = (1, quorum.members, 3, 0, now + 86400)
    assert functions.setOf(1).call() == functions.setAt(world.epoch).call() == genesis
    assert functions.newestSetId().call() == 1
    assert functions.governance().call() == functions.guardian().call() == world.w3.eth.accounts[0]
    assert functions.latest().call() == (0, bytes(32), 0, 0, 0, 0)
    assert functions.rootOf(0).call() == bytes(32)
    header = world.header()
    assert functions.digest(header.as_tuple()).call() == quorum.digest(header, world.deployment_id)


def test_a_quorum_posts_and_its_leaves_verify(world: World) -> None:
    leaf, tree = world.tree(world.epoch)
    header = world.header(root=tree.root, floor=7)
    receipt = world.post(header)

    posted_at = world.w3.eth.get_block(receipt["blockNumber"])["timestamp"]
    latest = (header.epoch, tree.root, 7, header.producedAt, header.validUntil, posted_at)
    assert world.registry.functions.latest().call() == latest
    assert world.registry.functions.rootOf(header.epoch).call() == tree.root
    (event,) = world.registry.events.Posted().process_receipt(receipt)
    assert dict(event["args"]) == {
        "epoch": header.epoch,
        "root": tree.root,
        "body": header.body,
    }
    assert world.verify(leaf, tree.proof(leaf))
    assert not world.verify(replace(leaf, budget=leaf.budget + 1), tree.proof(leaf))
    assert not world.verify(leaf, tree.proof(leaf)[:-1])
    elsewhere = replace(leaf, destination=keccak(b"eip155:1"))
    assert not world.verify(elsewhere, tree.proof(leaf))


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_every_leaf_of_a_tree_verifies(world: World, size: int) -> None:
    leaves = [
        Leaf(keccak(b"%d" % i), world.destination, world.epoch, world.now + 300, equity=i - 3) for i in range(size)
    ]
    tree = Tree(leaves)
    world.post(world.header(root=tree.root))
    assert all(world.verify(leaf, tree.proof(leaf)) for leaf in leaves)


def test_more_signatures_than_the_threshold_are_accepted(world: World) -> None:
    assert world.post(world.header(), signers=(0, 1, 2, 3))["status"] == 1


def test_signatures_must_be_a_sorted_quorum_of_members(world: World) -> None:
    signed = quorum.sign(quorum.digest(world.header(), world.deployment_id), SIGNERS)
    world.refuse_signatures("too few signatures", (0, 1))
    world.refuse_signatures("indices not increasing", (0, 0, 1))
    world.refuse_signatures("indices not increasing", (1, 0, 3))
    world.refuse_signatures("index out of range", (0, 1, 4), signed)
    world.refuse_signatures("index out of range", (0, 1, 255), signed)
    world.refuse_signatures("index out of range", (0, 1, 3, 2), signed)
    world.refuse_signatures("wrong signer", (0, 1, 2), signed)
    stranger = Quorum(4, seed=2).sign(quorum.digest(world.header(), world.deployment_id), SIGNERS)
    world.refuse_signatures("wrong signer", SIGNERS, stranger)


def test_a_high_or_empty_signature_is_refused(world: World) -> None:
    signed = quorum.sign(quorum.digest(world.header(), world.deployment_id), SIGNERS)
    r, vs = signed[0]
    # A mirrored s mostly does not fit the 255 bits of EIP-2098; what fits lies just above half the order.
    for s in (ORDER // 2 + 1, 2**255 - 1):
        world.refuse_signatures("high s", SIGNERS, [(r, s.to_bytes(32, "big")), *signed[1:]])
        world.refuse_signatures("high s", SIGNERS, [(r, (s | 1 << 255).to_bytes(32, "big")), *signed[1:]])
    world.refuse_signatures("wrong signer", SIGNERS, [(r, (ORDER // 2).to_bytes(32, "big")), *signed[1:]])
    world.refuse_signatures("wrong signer", SIGNERS, [(bytes(32), bytes(32)), *signed[1:]])
    world.refuse_signatures("wrong signer", SIGNERS, [(bytes(32), vs), *signed[1:]])


def test_signatures_for_another_statement_or_deployment_are_refused(world: World) -> None:
    header, indices, signed = quorum.certify(world.header(), world.deployment_id, SIGNERS)
    for place, other in enumerate(
        world.header(
            epoch=world.epoch + 1,
            root=b"\x12" * 32,
            floor=1,
            producedAt=world.now - 1,
            validUntil=world.now + 299,
            body=b"\xbc" * 32,
        ).as_tuple()
    ):
        changed = (*header[:place], other, *header[place + 1 :])
        if changed != header:
            world.refuse((changed, indices, signed), "wrong signer")
    world.refuse(quorum.certify(world.header(), b"\x01" * 32, SIGNERS), "wrong signer")


def test_stale_and_future_statements_are_refused(world: World) -> None:
    world.refuse_header("setId", setId=2)
    world.refuse_header("setId", setId=0)
    world.refuse_header("zero root", root=bytes(32))
    world.refuse_header("epoch in the future", epoch=world.epoch + 100)
    world.refuse_header("producedAt in the future", producedAt=world.now + 100)
    world.refuse_header("expired", producedAt=world.now - 100, validUntil=world.now - 1)
    world.refuse_header("lifetime", producedAt=world.now - 400, validUntil=world.now + 300)
    world.refuse_header("lifetime", producedAt=world.now, validUntil=2**64 - 1)
    world.refuse_header("floor above epoch", floor=world.epoch + 1)
    world.refuse_header("epoch not above the last", epoch=0)

    world.post(world.header(floor=5))
    world.refuse_header("epoch not above the last")
    world.refuse_header("epoch not above the last", epoch=world.epoch - 1)
    world.refuse_header("floor below the stored floor", epoch=world.epoch + 1, floor=4)


def test_epoch_may_lead_the_clock_by_two(world: World) -> None:
    at = world.now + 1000
    epoch = at // EPOCH_SECONDS + 2
    late = {"producedAt": at, "validUntil": at + 300}
    ahead = quorum.certify(world.header(epoch=epoch + 1, **late), world.deployment_id, SIGNERS)
    edge = quorum.certify(world.header(epoch=epoch, **late), world.deployment_id, SIGNERS)
    world.chain.rpc("evm_setNextBlockTimestamp", at)
    world.chain.mine()
    # A call is made in the pending block, at this block's time or later: one epoch further can only be too far.
    with pytest.raises(Web3Exception, match="epoch in the future"):
        world.registry.functions.post(*ahead).call(block_identifier="latest")
    assert transact(world.w3, world.registry.functions.post(*edge))["status"] == 1


def test_a_set_past_its_end_cannot_post(world: World) -> None:
    world.chain.rpc("evm_setNextBlockTimestamp", world.now + 86400 + 1)
    world.chain.mine()
    at = world.now + 86400 + 1
    world.refuse_header("set expired", epoch=at // EPOCH_SECONDS, producedAt=at, validUntil=at + 300)


def test_a_registry_refuses_under_another_chain_id(world: World) -> None:
    leaf, tree = world.tree(world.epoch)
    world.post(world.header(root=tree.root))
    assert world.verify(leaf, tree.proof(leaf))
    world.chain.rpc("anvil_setChainId", 31338)
    try:
        world.refuse_header("chain id changed", epoch=world.epoch + 1)
        assert not world.verify(leaf, tree.proof(leaf))
    finally:
        world.chain.rpc("anvil_setChainId", 31337)


def test_the_ring_keeps_64_epochs(world: World) -> None:
    first = world.epoch - 80
    old_leaf, old_tree = world.tree(first)
    world.post(world.header(epoch=first, root=old_tree.root))
    kept_leaf, kept_tree = world.tree(first + 1)
    world.post(world.header(epoch=first + 1, root=kept_tree.root))

    world.post(world.header(epoch=first + 63, root=b"\x22" * 32))
    assert world.verify(old_leaf, old_tree.proof(old_leaf))
    # Never posted, though its slot holds no other root either.
    assert world.registry.functions.rootOf(first + 5).call() == bytes(32)

    # One further: the first epoch leaves the ring, and this one takes its slot.
    world.post(world.header(epoch=first + 64, root=b"\x33" * 32))
    assert not world.verify(old_leaf, old_tree.proof(old_leaf))
    assert world.registry.functions.rootOf(first).call() == bytes(32)
    assert world.registry.functions.rootOf(first + 64).call() == b"\x33" * 32
    assert world.verify(kept_leaf, kept_tree.proof(kept_leaf))

    # Out of the ring, but its slot was not taken: it holds until it expires, a floor rises or the slot is taken.
    world.post(world.header(epoch=first + 66, root=b"\x44" * 32))
    assert world.registry.functions.rootOf(first + 1).call() == bytes(32)
    assert world.verify(kept_leaf, kept_tree.proof(kept_leaf))
    assert world.registry.functions.rootOf(first + 63).call() == b"\x22" * 32
    # The slot of a skipped epoch still holds an older root, which must not pass for it.
    assert world.registry.functions.rootOf(first + 65).call() == bytes(32)


def test_a_jump_over_the_ring_leaves_only_the_newest_epoch(world: World) -> None:
    world.post(world.header(epoch=world.epoch - 500, root=b"\x22" * 32))
    world.post(world.header(epoch=world.epoch - 500 + 64 * 3, root=b"\x33" * 32))
    last = world.epoch - 500 + 64 * 3
    roots = [world.registry.functions.rootOf(epoch).call() for epoch in range(last - 64, last + 2)]
    assert [root for root in roots if root != bytes(32)] == [b"\x33" * 32]


def test_a_floor_makes_older_epochs_unusable(world: World) -> None:
    leaf, tree = world.tree(world.epoch - 10)
    world.post(world.header(epoch=world.epoch - 10, root=tree.root))
    at_floor, floor_tree = world.tree(world.epoch - 9)
    world.post(world.header(epoch=world.epoch - 9, root=floor_tree.root))
    assert world.verify(leaf, tree.proof(leaf))
    world.post(world.header(epoch=world.epoch - 8, floor=world.epoch - 9))
    assert not world.verify(leaf, tree.proof(leaf))
    assert world.verify(at_floor, floor_tree.proof(at_floor))
    assert world.call("rootOf", world.epoch - 10) == bytes(32)
    assert world.call("rootOf", world.epoch - 9) == floor_tree.root
    # A floor that stays wipes nothing; one at its own epoch leaves nothing but that.
    world.post(world.header(epoch=world.epoch - 7, floor=world.epoch - 9))
    assert world.verify(at_floor, floor_tree.proof(at_floor))
    newest, newest_tree = world.tree(world.epoch - 6)
    world.post(world.header(epoch=world.epoch - 6, root=newest_tree.root, floor=world.epoch - 6))
    assert not world.verify(at_floor, floor_tree.proof(at_floor))
    assert world.verify(newest, newest_tree.proof(newest))
    assert not any(any(world.call("rootOf", world.epoch - back)) for back in range(7, 80))


def test_a_rising_floor_reaches_epochs_that_left_the_ring(world: World) -> None:
    first = world.epoch - 200
    old, old_tree = world.tree(first)
    world.post(world.header(epoch=first, root=old_tree.root))
    world.post(world.header(epoch=first + 100))  # which leaves the old one's slot as it was
    assert world.verify(old, old_tree.proof(old))
    world.post(world.header(epoch=first + 101, floor=first + 1))
    assert not world.verify(old, old_tree.proof(old))
    assert world.call("rootOf", first + 100) == b"\x11" * 32


@pytest.mark.parametrize("raised", [False, True])
def test_an_epoch_that_was_not_posted_proves_nothing(world: World, raised: bool) -> None:
    first = world.epoch - 80
    posted, tree = world.tree(first)
    skipped, skipped_tree = world.tree(first + 1)
    world.post(world.header(epoch=first, root=tree.root))
    world.post(world.header(epoch=first + 2, floor=first + 2 if raised else 0))
    assert not world.verify(skipped, skipped_tree.proof(skipped))
    assert world.verify(posted, tree.proof(posted)) is not raised
    same_slot = replace(posted, epoch=first + 64)
    assert not world.verify(same_slot, tree.proof(posted))


def test_the_first_statement_may_have_a_floor(world: World) -> None:
    leaf, tree = world.tree(world.epoch)
    receipt = world.post(world.header(root=tree.root, floor=world.epoch))
    assert receipt["gasUsed"] < 100_000  # nothing to wipe
    assert world.verify(leaf, tree.proof(leaf))


def test_a_leaf_is_usable_until_its_own_end(world: World) -> None:
    """Attestors give every leaf its header's end; what is stored or drawn on also ends with the header."""
    short, short_tree = world.tree(world.epoch - 1, valid_for=100)
    world.post(world.header(epoch=world.epoch - 1, root=short_tree.root))
    newest, newest_tree = world.tree(world.epoch, valid_for=200)
    world.post(world.header(root=newest_tree.root, validUntil=world.now + 150))

    def move_to(seconds: int) -> None:
        world.chain.rpc("evm_setNextBlockTimestamp", world.now + seconds)
        world.chain.mine()

    move_to(90)
    assert world.verify(short, short_tree.proof(short))
    move_to(100)
    assert not world.verify(short, short_tree.proof(short))
    assert world.verify(newest, newest_tree.proof(newest))
    move_to(150)
    assert world.verify(newest, newest_tree.proof(newest))
    world.refused("expired", "applyLeaf", newest.as_tuple(), newest_tree.proof(newest))
    move_to(200)
    assert not world.verify(newest, newest_tree.proof(newest))


def test_a_leaf_that_names_another_epoch_does_not_verify(world: World) -> None:
    leaf, tree = world.tree(world.epoch - 1)
    world.post(world.header(root=tree.root))  # the tree of one epoch posted as another
    assert not world.verify(leaf, tree.proof(leaf))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": 2}, "threshold below quorum"),
        ({"threshold": 5}, "threshold above members"),
        ({"members": (*quorum.members[:3], quorum.members[0])}, "duplicate member"),
        ({"members": (*quorum.members[:3], ZERO)}, "zero member"),
        ({"members": ()}, "too few members"),
        ({"members": tuple(quorum.members[:3]), "network_class": 1, "timelock": 86400}, "too few members"),
        ({"members": tuple(quorum.members[:3]), "network_class": 2, "timelock": 86400}, "too few members"),
        ({"network_class": 0}, "networkClass"),
        ({"network_class": 4}, "networkClass"),
        ({"not_after": 1}, "notAfter passed"),
        ({"not_after": 2**40, "network_class": 1}, "notAfter too far"),
        ({"epoch_seconds": 0}, "epochSeconds"),
        ({"max_lifetime": 0}, "maxLifetime"),
        ({"clock_skew": 2**32}, "clockSkew"),
        ({"not_after": 2**64}, "notAfter too far"),
        ({"governance": ZERO}, "zero governance"),
        ({"timelock": 30 * 86400 + 1}, "timelock"),
        ({"timelock": 86399, "network_class": 1}, "timelock"),
        ({"timelock": 86399, "network_class": 2}, "timelock"),
    ],
)
def test_a_weak_deployment_is_refused(w3: Web3, now: int, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Web3Exception, match=reason):
        deploy_registry(w3, build_spec(now, **changes))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 10, 19, 32])
def test_the_smallest_threshold_is_the_byzantine_quorum(w3: Web3, now: int, size: int) -> None:
    members = tuple(Quorum(size, seed=3).members)
    faulty = (size - 1) // 3
    smallest = (size + faulty) // 2 + 1
    assert deploy_registry(w3, build_spec(now, members=members, threshold=smallest)).address
    with pytest.raises(Web3Exception, match="threshold below quorum"):
        deploy_registry(w3, build_spec(now, members=members, threshold=smallest - 1))


def test_the_deployment_id_is_the_same_on_another_chain(now: int, registry: Contract) -> None:
    with Anvil(chain_id=31339) as other:
        w3 = connect(other.url)
        twin = deploy_registry(w3, build_spec(now))
        assert twin.functions.deploymentId().call() == registry.functions.deploymentId().call()
        assert twin.functions.destination().call() == keccak(b"eip155:31339")
        header = Header(now // EPOCH_SECONDS, b"\x11" * 32, producedAt=now, validUntil=now + 300)
        arguments = quorum.certify(header, registry.functions.deploymentId().call(), SIGNERS)
        assert transact(w3, twin.functions.post(*arguments))["status"] == 1


def test_calldata_that_no_encoder_makes_is_refused(world: World) -> None:
    leaf, tree = world.tree(world.epoch)
    header = world.header(root=tree.root)
    good = world.registry.encode_abi("post", list(quorum.certify(header, world.deployment_id, SIGNERS)))
    words = bytes.fromhex(good[2:])

    def refused(data: bytes) -> bool:
        try:
            world.w3.eth.call({"to": world.registry.address, "data": "0x" + data.hex()})
        except Web3Exception:
            return True
        return False

    assert not refused(words)
    assert refused(words[:-1])
    assert refused(words[:-64])
    assert refused(words[:4])
    assert refused(b"")
    # One bit above the 64 (or 32) of every number of the header, whatever was signed.
    for place in (0, 2, 3, 4, 5):
        dirty = bytearray(words)
        dirty[4 + 32 * place + 23] |= 1
        assert refused(bytes(dirty))
        dirty = bytearray(words)
        dirty[4 + 32 * place] |= 0x80
        assert refused(bytes(dirty))
    # More signatures than there is room for, or than there are.
    for length in (33, 2**255):
        longer = bytearray(words)
        longer[4 + 9 * 32 : 4 + 10 * 32] = length.to_bytes(32, "big")
        assert refused(bytes(longer))
    world.post(header)
    proof = tree.proof(leaf)
    words = bytes.fromhex(world.registry.encode_abi("verify", [leaf.as_tuple(), proof])[2:])
    answer = world.w3.eth.call({"to": world.registry.address, "data": "0x" + words.hex()})
    assert int.from_bytes(answer, "big") == 1
    for place in (2, 9, 10, 11):
        dirty = bytearray(words)
        dirty[4 + 32 * place] |= 0x80
        assert int.from_bytes(world.w3.eth.call({"to": world.registry.address, "data": "0x" + dirty.hex()}), "big") == 0


def test_the_code_fits_a_contract(world: World) -> None:
    assert len(world.w3.eth.get_code(world.registry.address)) <= 24_576  # EIP-170


def test_the_solidity_interface_is_the_contracts() -> None:
    source = Path(proofs.__file__).parent / "contracts" / "IMarginRegistry.sol"
    request = {
        "language": "Solidity",
        "sources": {source.name: {"content": source.read_text()}},
        "settings": {"outputSelection": {"*": {"*": ["abi"]}}},
    }
    script = Path(devnet.__file__).parent / "solidity.mjs"
    done = subprocess.run(["node", script], input=json.dumps(request), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)["output"]
    assert not answer.get("errors")

    def describe(abi: list[Any]) -> set[Any]:
        described = set()
        for entry in abi:
            if entry["type"] == "function":
                outputs = abi_to_signature({**entry, "inputs": entry["outputs"]})
                described.add((abi_to_signature(entry), outputs, entry["stateMutability"]))
            elif entry["type"] == "event":
                described.add((abi_to_signature(entry), tuple(i["indexed"] for i in entry["inputs"])))
        return described

    interface = answer["contracts"][source.name]["IMarginRegistry"]["abi"]
    assert describe(interface) == describe(load("MarginRegistry")[0])
