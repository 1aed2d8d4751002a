"""Both trees against published vectors and a second, naive construction; paths prove what they should and no more."""

from __future__ import annotations

import hashlib

import pytest
from eth_abi import encode
from hypothesis import given
from hypothesis import strategies as st

from proofs import merkle
from proofs.errors import MerkleError, ProofError
from proofs.hashing import keccak256

# The eight leaves and the tree hashes of sizes 1 to 8 in google/certificate-transparency,
# cpp/merkletree/merkle_tree_test.cc.
CT_LEAVES = [
    bytes.fromhex(h)
    for h in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

hash_lists = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=33, unique=True)
entry_lists = st.lists(st.binary(min_size=96, max_size=96), min_size=1, max_size=33, unique_by=lambda e: e[:64]).map(
    sorted
)


def naive_root(hashes: list[bytes]) -> bytes:
    """Build the same tree top down from its shape: node i has children 2i+1 and 2i+2, leaves fill the end reversed."""
    count = len(hashes)
    slots = dict(zip(range(2 * count - 2, count - 2, -1), hashes, strict=True))

    def node(i: int) -> bytes:
        return slots[i] if i in slots else keccak256(b"".join(sorted((node(2 * i + 1), node(2 * i + 2)))))

    return node(0)


def rfc_iteration(entry: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """Return the root by the iterative algorithm of RFC 9162 §2.1.3.2, None where it fails."""
    fn, sn, r = index, size - 1, hashlib.sha256(b"\x00" + entry).digest()
    for p in path:
        if sn == 0:
            return None
        if fn % 2 or fn == sn:
            r = hashlib.sha256(b"\x01" + p + r).digest()
            while not fn % 2 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = hashlib.sha256(b"\x01" + r + p).digest()
        fn, sn = fn >> 1, sn >> 1
    return r if sn == 0 else None


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "big") ^ 1 << bit % (8 * len(data))).to_bytes(len(data), "big")


def test_the_root_is_the_one_openzeppelin_documents() -> None:
    # The example of the README of OpenZeppelin/merkle-tree.
    rows = [("0x" + "1" * 40, 5 * 10**18), ("0x" + "2" * 40, 25 * 10**17)]
    hashes = [keccak256(keccak256(encode(["address", "uint256"], row))) for row in rows]
    assert merkle.root(hashes).hex() == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"


@given(hash_lists)
def test_the_root_is_that_of_a_naive_construction(hashes: list[bytes]) -> None:
    assert merkle.root(hashes) == naive_root(hashes)


@given(hash_lists, st.data())
def test_every_path_verifies_and_no_changed_one_does(hashes: list[bytes], data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(hashes) - 1))
    path, root = list(merkle.proof(hashes, i)), merkle.root(hashes)
    merkle.verify_proof(hashes[i], path, root)
    bit = data.draw(st.integers(0, 255))
    with pytest.raises(MerkleError):
        merkle.verify_proof(flipped(hashes[i], bit), path, root)
    with pytest.raises(MerkleError):
        merkle.verify_proof(hashes[i], path, flipped(root, bit))
    with pytest.raises(MerkleError):
        merkle.verify_proof(hashes[i], [*path, root], root)
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        with pytest.raises(MerkleError):
            merkle.verify_proof(hashes[i], [*path[:at], flipped(path[at], bit), *path[at + 1 :]], root)
        with pytest.raises(MerkleError):
            merkle.verify_proof(hashes[i], path[:-1], root)


def test_the_accounts_tree_hash_is_that_of_certificate_transparency() -> None:
    assert [merkle.tree_hash(CT_LEAVES[:size]).hex() for size in range(1, 9)] == CT_ROOTS
    assert merkle.accounts_root([]) == hashlib.sha256(b"").digest()


@given(entry_lists, st.data())
def test_inclusion_agrees_with_the_rfcs_iteration_and_any_change_fails(
    entries: list[bytes], data: st.DataObject
) -> None:
    size, i = len(entries), data.draw(st.integers(0, len(entries) - 1))
    path, root = list(merkle.accounts_proof(entries, i)), merkle.accounts_root(entries)
    merkle.verify_accounts_inclusion(entries[i], i, size, path, root)
    assert rfc_iteration(entries[i], i, size, path) == root

    bit = data.draw(st.integers(0, 767))
    for index in {0, i - 1, i + 1, size} - {i}:
        with pytest.raises(ProofError):
            merkle.verify_accounts_inclusion(entries[i], index, size, path, root)
    with pytest.raises(MerkleError):
        merkle.verify_accounts_inclusion(flipped(entries[i], bit), i, size, path, root)
    with pytest.raises(MerkleError):
        merkle.verify_accounts_inclusion(entries[i], i, size, [*path, root], root)
    for at in range(len(path)):
        with pytest.raises(MerkleError):
            merkle.verify_accounts_inclusion(
                entries[i], i, size, [*path[:at], flipped(path[at], bit), *path[at + 1 :]], root
            )


@given(entry_lists, st.integers(0, 40), st.integers(0, 40))
def test_no_claimed_size_or_index_is_accepted_that_the_rfcs_iteration_refuses(
    entries: list[bytes], index: int, size: int
) -> None:
    path, root = list(merkle.accounts_proof(entries, 0)), merkle.accounts_root(entries)
    allowed = index < size and rfc_iteration(entries[0], index, size, path) == root
    if allowed:
        merkle.verify_accounts_inclusion(entries[0], index, size, path, root)
    else:
        with pytest.raises(MerkleError):
            merkle.verify_accounts_inclusion(entries[0], index, size, path, root)


def test_an_accounts_tree_out_of_order_or_with_a_pair_twice_is_refused() -> None:
    a, b = (bytes([i]) * 96 for i in (1, 2))
    with pytest.raises(MerkleError, match=r"entries\[1\]"):
        merkle.accounts_root([b, a])
    with pytest.raises(MerkleError, match=r"entries\[1\]"):
        merkle.accounts_root([a, a[:64] + bytes([9]) * 32])


def test_no_leaves_have_no_root() -> None:
    with pytest.raises(MerkleError):
        merkle.root([])
