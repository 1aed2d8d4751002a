"""Headers and state proofs: real ones lead to what the chain held, and nothing that was changed leads anywhere else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
import rlp
from hypothesis import given
from hypothesis import strategies as st
from proofs_world import VECTORS

from proofs import state_proof
from proofs.errors import FieldError, ProofError, StateError
from proofs.hashing import keccak256
from proofs.state_proof import (
    EMPTY_CODE,
    EMPTY_ROOT,
    build_header,
    decode_rlp,
    encode_rlp,
    verify_account,
    verify_header,
    verify_storage,
)


def load() -> dict[str, Any]:
    raw = (VECTORS / "state_proofs.json").read_bytes()
    metadata = json.loads((VECTORS / "metadata.json").read_text())
    assert hashlib.sha256(raw).hexdigest() == metadata["state_proofs.json"]["sha256"]
    return json.loads(raw)


RECORDED = load()
HEADERS = {f"{h['network']} {h['number']}": h for h in RECORDED["headers"]}
PROOFS = {p["address"][:10]: p for p in RECORDED["proofs"]}
HEADER = HEADERS["ethereum 21925176"]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:])


def nodes(texts: list[str]) -> list[bytes]:
    return [unhex(text) for text in texts]


# headers


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_real_headers_of_many_chains_hash_and_say_what_they_say(header: dict[str, Any]) -> None:
    found = verify_header(build_header(header["fields"]), unhex(header["hash"]))
    assert (found.number, found.time, "0x" + found.state_root.hex()) == (
        header["number"],
        header["time"],
        header["state_root"],
    )


def test_a_header_with_fields_yet_unknown_is_read_all_the_same() -> None:
    items = decode_rlp("header", build_header(HEADER["fields"]))
    assert isinstance(items, list)
    newer = encode_rlp([*items, b"\x07", [b"a", b"list"]])
    assert verify_header(newer, keccak256(newer)).number == HEADER["number"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"stateRoot": None}, "stateRoot"),
        ({"stateRoot": "0x12"}, "stateRoot"),
        ({"number": "18"}, "number"),
        ({"number": "0x 1"}, "number"),
        ({"number": "0x-1"}, "number"),
        ({"gasUsed": 21_000}, "gasUsed"),
        ({"difficulty": "0x1" + "00" * 32}, "difficulty"),
        ({"baseFeePerGas": None}, "baseFeePerGas"),
    ],
)
def test_fields_that_make_no_header_are_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(StateError, match=rf"^header\.{field}:"):
        build_header(HEADER["fields"] | change)


def test_another_header_is_refused() -> None:
    encoded, block_hash = build_header(HEADER["fields"]), unhex(HEADER["hash"])
    with pytest.raises(StateError, match="does not hash"):
        verify_header(build_header(HEADER["fields"] | {"timestamp": "0x1"}), block_hash)
    with pytest.raises(StateError, match="at most"):
        verify_header(encoded + bytes(state_proof.HEADER_LIMIT), block_hash)
    with pytest.raises(FieldError, match="block_hash"):
        verify_header(encoded, block_hash[1:])
    for other in (encode_rlp([b"\x01"] * 14), encode_rlp(b"\x01" * 40), encode_rlp([b"\x01"] * 15)):
        with pytest.raises(StateError, match=r"^header"):
            verify_header(other, keccak256(other))


# real proofs


@pytest.mark.parametrize("proof", PROOFS.values(), ids=PROOFS)
def test_real_proofs_lead_to_what_the_chain_held(proof: dict[str, Any]) -> None:
    account = verify_account(unhex(proof["state_root"]), unhex(proof["address"]), nodes(proof["accountProof"]))
    if not proof["exists"]:
        assert account is None
        return
    assert account is not None
    assert (account.nonce, account.balance) == (proof["nonce"], int(proof["balance"]))
    for slot in proof["storage"]:
        assert verify_storage(account.storage_root, unhex(slot["key"]), nodes(slot["proof"])) == int(slot["value"])


def test_a_header_and_its_proof_make_one_chain() -> None:
    proof = next(p for p in RECORDED["proofs"] if p["state_root"] == HEADER["state_root"])
    header = verify_header(build_header(HEADER["fields"]), unhex(HEADER["hash"]))
    account = verify_account(header.state_root, unhex(proof["address"]), nodes(proof["accountProof"]))
    assert account is not None
    assert account.balance == int(proof["balance"])


@pytest.mark.parametrize("proof", PROOFS.values(), ids=PROOFS)
def test_every_node_is_needed(proof: dict[str, Any]) -> None:
    given_nodes = nodes(proof["accountProof"])
    for i in range(len(given_nodes)):
        with pytest.raises(StateError, match="accountProof: lacks the node"):
            verify_account(unhex(proof["state_root"]), unhex(proof["address"]), given_nodes[:i] + given_nodes[i + 1 :])


@given(st.data())
def test_no_changed_byte_changes_what_is_proven(data: st.DataObject) -> None:
    proof = data.draw(st.sampled_from(list(PROOFS.values())))
    given_nodes = nodes(proof["accountProof"])
    i = data.draw(st.integers(0, len(given_nodes) - 1))
    at = data.draw(st.integers(0, len(given_nodes[i]) - 1))
    changed = bytearray(given_nodes[i])
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateError, match="lacks the node"):
        verify_account(
            unhex(proof["state_root"]),
            unhex(proof["address"]),
            [*given_nodes[:i], bytes(changed), *given_nodes[i + 1 :]],
        )


# tries made here, with another RLP encoder


class Trie:
    """A Merkle-Patricia tree over hashed keys; built to be read, not to be fast."""

    def __init__(self, values: Mapping[bytes, bytes]) -> None:
        self.nodes: dict[bytes, bytes] = {}
        keyed = {keccak256(key).hex(): value for key, value in values.items()}
        encoded = rlp.encode(self._build(keyed)) if keyed else b"\x80"
        self.root = keccak256(encoded)
        self.nodes[self.root] = encoded

    def _build(self, values: dict[str, bytes]) -> Any:
        if len(values) == 1:
            ((path, value),) = values.items()
            return [self._prefix(path, True), value]
        shared = 0
        while len({path[shared] for path in values}) == 1:
            shared += 1
        if shared:
            some = next(iter(values))[:shared]
            return [self._prefix(some, False), self._refer({p[shared:]: v for p, v in values.items()})]
        branch = [{p[1:]: v for p, v in values.items() if p[0] == digit} for digit in "0123456789abcdef"]
        return [*(self._refer(part) if part else b"" for part in branch), b""]

    def _refer(self, values: dict[str, bytes]) -> Any:
        node = self._build(values)
        encoded = rlp.encode(node)
        if len(encoded) < 32:
            return node
        self.nodes[keccak256(encoded)] = encoded
        return keccak256(encoded)

    @staticmethod
    def _prefix(path: str, leaf: bool) -> bytes:
        odd = len(path) % 2
        return bytes.fromhex(f"{2 * leaf + odd}{'' if odd else '0'}{path}")


slots = st.integers(0, 2**256 - 1).map(lambda n: n.to_bytes(32, "big"))
values = st.integers(1, 2**256 - 1)


@given(st.dictionaries(slots, values, max_size=40), slots)
def test_every_slot_is_proven_and_every_absence(stored: dict[bytes, int], other: bytes) -> None:
    trie = Trie({slot: rlp.encode(value) for slot, value in stored.items()})
    for slot in (*list(stored)[:5], other):
        assert verify_storage(trie.root, slot, list(trie.nodes.values())) == stored.get(slot, 0)


@given(st.dictionaries(slots.map(lambda s: s[:20]), st.tuples(values, values), min_size=1, max_size=8))
def test_accounts_are_proven_with_all_their_fields(stored: dict[bytes, tuple[int, int]]) -> None:
    trie = Trie({a: rlp.encode([nonce, balance, EMPTY_ROOT, EMPTY_CODE]) for a, (nonce, balance) in stored.items()})
    for address, (nonce, balance) in stored.items():
        account = verify_account(trie.root, address, list(trie.nodes.values()))
        assert account == state_proof.AccountState(nonce, balance, EMPTY_ROOT, EMPTY_CODE)


def test_an_empty_trie_holds_nothing() -> None:
    assert verify_storage(EMPTY_ROOT, bytes(32), []) == 0
    assert verify_account(EMPTY_ROOT, bytes(20), []) is None


# what no honest node says

SLOT = bytes(32)
PATH = keccak256(SLOT)
VALUE = encode_rlp(b"\x2a" * 32)


def leaf(path: bytes = PATH) -> list[Any]:
    return [b"\x20" + path, VALUE]


MALFORMED: dict[str, bytes] = {
    "a string": encode_rlp(b"a" * 40),
    "three items": encode_rlp([b"a" * 40, b"", b""]),
    "a branch with a value": encode_rlp([b""] * 16 + [b"v" * 40]),
    "bytes after it": encode_rlp([b""] * 17) + b"\0",
    "a prefix that is none": encode_rlp([b"\x40" + PATH, VALUE]),
    "padding in the prefix": encode_rlp([b"\x25" + PATH, VALUE]),
    "no prefix": encode_rlp([b"", VALUE]),
    "a short leaf": encode_rlp([b"\x20" + PATH[:5], VALUE]),
    "an extension over everything": encode_rlp([b"\x00" + PATH, b"r" * 32]),
    "an empty extension": encode_rlp([b"\x00", b"r" * 32]),
    "an extension to nothing": encode_rlp([b"\x00" + PATH[:4], b""]),
    "a reference of 31 bytes": encode_rlp([b"r" * 31] * 16 + [b""]),
    "an empty value": encode_rlp([b"\x20" + PATH, b""]),
    "a list for a value": encode_rlp([b"\x20" + PATH, [b"v" * 40]]),
    "a stored zero": encode_rlp([b"\x20" + PATH, b"\x80"]),
    "a value with leading zeros": encode_rlp([b"\x20" + PATH, encode_rlp(b"\x00\x01")]),
    "a value of 33 bytes": encode_rlp([b"\x20" + PATH, encode_rlp(b"\x01" * 33)]),
    "a large node inside its parent": encode_rlp([[b"a" * 40, b"b"]] * 16 + [b""]),
    "a length with leading zeros": b"\xf9\x00\x02\x80\x80",
    "a long form for a short list": b"\xf8\x02\x80\x80",
    "a byte not encoded as itself": b"\xc3\x81\x05\x80",
    "an item longer than its list": b"\xc2\x83abc",
    "an end too early": encode_rlp(leaf())[:-1],
    "nothing": b"",
    "lists in lists": bytes(range(0xC0 + 54, 0xC0 - 1, -1)),
}


@pytest.mark.parametrize("node", MALFORMED.values(), ids=MALFORMED)
def test_malformed_nodes_are_refused(node: bytes) -> None:
    with pytest.raises(ProofError):
        verify_storage(keccak256(node), SLOT, [node])


def test_a_small_node_outside_its_parent_is_refused() -> None:
    small = encode_rlp([b"\x20" + PATH[16:], b"\x01"])
    assert len(small) < 32
    parent = encode_rlp([b"\x00" + PATH[:16], keccak256(small)])
    with pytest.raises(StateError, match="outside its parent"):
        verify_storage(keccak256(parent), SLOT, [parent, small])
    inside = encode_rlp([b"\x00" + PATH[:16], [b"\x20" + PATH[16:], b"\x01"]])
    assert verify_storage(keccak256(inside), SLOT, [inside]) == 1


def test_a_record_that_is_no_account_is_refused() -> None:
    address = bytes(20)

    def verify(record: bytes) -> None:
        node = encode_rlp([b"\x20" + keccak256(address), record])
        verify_account(keccak256(node), address, [node])

    verify(encode_rlp([b"", b"\x01", EMPTY_ROOT, EMPTY_CODE]))
    for record, field in (
        (b"\xc0" * 40, "account"),
        (encode_rlp([b"", b"", EMPTY_ROOT]), "account"),
        (encode_rlp([b"", b"\x00", EMPTY_ROOT, EMPTY_CODE]), "account.balance"),
        (encode_rlp([[], b"", EMPTY_ROOT, EMPTY_CODE]), "account.nonce"),
        (encode_rlp([b"", b"", b"\x01" * 31, EMPTY_CODE]), "account.storageHash"),
        (encode_rlp([b"", b"", EMPTY_ROOT, [b""]]), "account.codeHash"),
    ):
        with pytest.raises(StateError) as refusal:
            verify(record)
        assert refusal.value.field == field


def test_proofs_are_bounded() -> None:
    with pytest.raises(StateError, match="at most 130"):
        verify_storage(EMPTY_ROOT, SLOT, [b""] * 131)
    with pytest.raises(StateError, match=r"storageProof\[1\].*at most"):
        verify_storage(EMPTY_ROOT, SLOT, [b"", bytes(state_proof.NODE_LIMIT + 1)])
    for root, slot in ((bytes(31), SLOT), (bytes(32), bytes(31))):
        with pytest.raises(FieldError):
            verify_storage(root, slot, [])


@given(st.binary(max_size=200))
def test_rlp_has_one_encoding(encoded: bytes) -> None:
    try:
        item = decode_rlp("x", encoded)
    except StateError:
        return
    assert encode_rlp(item) == encoded == rlp.encode(item)
