"""The two trees of a statement, each as plain as its definition.

`root`: OpenZeppelin's StandardMerkleTree (github.com/OpenZeppelin/merkle-tree, with `sortLeaves: false`), verified on
chain: the leaf hashes, ascending by (account, destination) of their leaves, fill the end of an array of 2n-1 nodes in
reverse, node i is the keccak256 of its two children 2i+1 and 2i+2 in ascending order. A path proves membership.

`accounts_root`: the ordered SHA-256 tree of RFC 9162 §2.1 over entries account ‖ destination ‖ leaf hash in ascending
order, whose paths prove the position too: with its neighbours at hand, that a pair occurs once, or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from proofs.errors import MerkleError
from proofs.fields import require_bytes
from proofs.hashing import keccak256

ENTRY_LENGTH = 96


def root(hashes: Sequence[bytes]) -> bytes:
    """Return the StandardMerkleTree root over 32-byte leaf hashes, in the order given.

    Raises:
        MerkleError: No leaves; a tree of nothing has no root.
    """
    return _standard_nodes(hashes)[0]


def proof(hashes: Sequence[bytes], i: int) -> tuple[bytes, ...]:
    """Return the sibling path, leaf upwards, of the i-th given leaf hash in the tree of `root(hashes)`."""
    nodes = _standard_nodes(hashes)
    if not 0 <= i < len(hashes):
        raise MerkleError("i", f"{i} is not one of {len(hashes)} leaves")
    position = len(nodes) - 1 - i
    path = []
    while position:
        path.append(nodes[position + 1 if position % 2 else position - 1])
        position = (position - 1) // 2
    return tuple(path)


def verify_proof(leaf_hash: bytes, path: Sequence[bytes], expected_root: bytes) -> None:
    """Check that the sibling path leads from `leaf_hash` to `expected_root`.

    Raises:
        MerkleError: Naming `proof`.
    """
    node = require_bytes("leaf_hash", leaf_hash, 32)
    for level, sibling in enumerate(path):
        node = _pair(node, require_bytes(f"proof[{level}]", sibling, 32))
    if node != expected_root:
        raise MerkleError("proof", f"leads to 0x{node.hex()}, the root is 0x{expected_root.hex()}")


def accounts_entry(account: bytes, destination: bytes, leaf_hash: bytes) -> bytes:
    """Return the 96-byte entry account ‖ destination ‖ leaf hash of the accounts tree."""
    return (
        require_bytes("account", account, 32)
        + require_bytes("destination", destination, 32)
        + require_bytes("leaf_hash", leaf_hash, 32)
    )


def accounts_root(entries: Sequence[bytes]) -> bytes:
    """Return the RFC 9162 tree hash over 96-byte entries, strictly ascending by (account, destination).

    Raises:
        MerkleError: Naming the entry that is out of order or repeats an (account, destination).
    """
    for i in range(1, len(entries)):
        if entries[i][:64] <= entries[i - 1][:64]:
            raise MerkleError(f"entries[{i}]", "not above the entry before it by (account, destination)")
    return tree_hash(entries)


def accounts_proof(entries: Sequence[bytes], i: int) -> tuple[bytes, ...]:
    """Return the RFC 9162 inclusion path of the i-th entry."""
    if not 0 <= i < len(entries):
        raise MerkleError("i", f"{i} is not one of {len(entries)} entries")
    return inclusion_path(entries, i)


def verify_accounts_inclusion(entry: bytes, index: int, size: int, path: Sequence[bytes], expected_root: bytes) -> None:
    """Check that the 96-byte `entry` is number `index` of the `size` entries under `expected_root`.

    Raises:
        MerkleError: Naming `entry`, `accounts_index` or `accounts_path`.
    """
    if len(entry) != ENTRY_LENGTH:
        raise MerkleError("entry", f"{len(entry)} bytes given, {ENTRY_LENGTH} expected")
    if not 0 <= index < size:
        raise MerkleError("accounts_index", f"{index} is not one of {size} entries")
    for level, node in enumerate(path):
        require_bytes(f"accounts_path[{level}]", node, 32)
    reached = root_from_path(_entry_hash(entry), index, size, path)
    if reached != expected_root:
        raise MerkleError("accounts_path", f"leads to 0x{reached.hex()}, accountsRoot is 0x{expected_root.hex()}")


def tree_hash(entries: Sequence[bytes]) -> bytes:
    """Return MTH(entries) of RFC 9162 §2.1.1, for entries of any length."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return _entry_hash(entries[0])
    split = _split(len(entries))
    return _node_hash(tree_hash(entries[:split]), tree_hash(entries[split:]))


def inclusion_path(entries: Sequence[bytes], i: int) -> tuple[bytes, ...]:
    """Return PATH(i, entries) of RFC 9162 §2.1.3.1, leaf upwards."""
    if len(entries) == 1:
        return ()
    split = _split(len(entries))
    if i < split:
        return (*inclusion_path(entries[:split], i), tree_hash(entries[split:]))
    return (*inclusion_path(entries[split:], i - split), tree_hash(entries[:split]))


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the tree hash that the path claims, undoing `inclusion_path` from the top.

    Raises:
        MerkleError: The path is not as long as position `index` of `size` demands.
    """
    if size == 1:
        if path:
            raise MerkleError("accounts_path", f"{len(path)} nodes too many")
        return leaf
    if not path:
        raise MerkleError("accounts_path", f"too short for an entry of {size}")
    split = _split(size)
    if index < split:
        return _node_hash(root_from_path(leaf, index, split, path[:-1]), path[-1])
    return _node_hash(path[-1], root_from_path(leaf, index - split, size - split, path[:-1]))


def _standard_nodes(hashes: Sequence[bytes]) -> list[bytes]:
    if not hashes:
        raise MerkleError("hashes", "no leaves")
    for i, leaf_hash in enumerate(hashes):
        require_bytes(f"hashes[{i}]", leaf_hash, 32)
    count = len(hashes)
    nodes = [b""] * (count - 1) + list(reversed(hashes))
    for i in range(count - 2, -1, -1):
        nodes[i] = _pair(nodes[2 * i + 1], nodes[2 * i + 2])
    return nodes


def _pair(a: bytes, b: bytes) -> bytes:
    return keccak256(min(a, b) + max(a, b))


def _split(size: int) -> int:
    """Return the largest power of two below `size`, for `size` ≥ 2."""
    return 1 << (size - 1).bit_length() - 1


def _entry_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
