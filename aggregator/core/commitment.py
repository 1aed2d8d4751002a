"""Commit to leaves: encode, hash and build both trees, fast and batched.

The verifier's encoding and trees are ``proofs.leaf`` and ``proofs.merkle``; nothing is shared on purpose, and a test
compares the two byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sha3 import keccak_256

from aggregator.domain.errors import InputError
from aggregator.domain.report import LeafValues

# Amounts are limited to 128 bits, so that every leaf fits the Solana wire too.
_UINT64, _INT128, _UINT128, _UINT32 = (0, 2**64), (-(2**127), 2**127), (0, 2**128), (0, 2**32)
_RANGES = (_UINT64, _INT128, *5 * (_UINT128,), _UINT64, _UINT64, _UINT32)


@dataclass(frozen=True, slots=True)
class Commitment:
    """Roots over leaves, and what their proofs are cut from. Hashes are 32 raw bytes."""

    root: bytes  # of the tree registries verify against
    accounts_root: bytes  # of the log of (account, destination, leaf hash)
    hashes: tuple[bytes, ...]  # leaf hashes, in the order of the leaves given
    tree: tuple[bytes, ...]  # 2n - 1 nodes, root first (OpenZeppelin StandardMerkleTree)
    tree_index: tuple[int, ...]  # of each leaf in ``tree``
    log: tuple[tuple[bytes, ...], ...]  # levels of the accounts log (RFC 9162), hashed entries first
    log_index: tuple[int, ...]  # of each leaf among the entries, ascending by (account, destination)

    @property
    def leaf_count(self) -> int:
        """How many leaves are committed to."""
        return len(self.hashes)


def build_commitment(leaves: Sequence[LeafValues]) -> Commitment:
    """Commit to the leaves.

    Raises:
        InputError: no leaves, two for one (account, destination), or a field outside its ABI type.
    """
    if not leaves:
        raise InputError("leaves", "there are none", "commit to at least one account and destination")
    encoded = [encode_leaf(leaf) for leaf in leaves]
    hashes = [_keccak(_keccak(data)) for data in encoded]
    order = sorted(range(len(encoded)), key=encoded.__getitem__)  # the words begin with (account, destination)
    for first, second in pairwise(order):
        if encoded[first][:64] == encoded[second][:64]:
            leaf = leaves[first]
            raise InputError("leaves", f"two for account {leaf.account} at {leaf.destination}", "give one each")
    tree, tree_index = _build_tree(hashes)
    log = _build_log([encoded[i][:64] + hashes[i] for i in order])
    log_index = [0] * len(order)
    for place, leaf_number in enumerate(order):
        log_index[leaf_number] = place
    return Commitment(
        root=tree[0],
        accounts_root=log[-1][0],
        hashes=tuple(hashes),
        tree=tuple(tree),
        tree_index=tuple(tree_index),
        log=log,
        log_index=tuple(log_index),
    )


def proof(commitment: Commitment, index: int) -> tuple[bytes, ...]:
    """Return the sibling path of leaf ``index`` (in the order given to :func:`build_commitment`), leaf to root."""
    node, path = commitment.tree_index[index], []
    while node:
        path.append(commitment.tree[node + 1 if node % 2 else node - 1])
        node = (node - 1) // 2
    return tuple(path)


def accounts_path(commitment: Commitment, index: int) -> tuple[bytes, ...]:
    """Return the RFC 9162 inclusion path, leaf to root, of leaf ``index``; its place is ``log_index[index]``."""
    place, path = commitment.log_index[index], []
    for level in commitment.log[:-1]:
        if place ^ 1 < len(level):
            path.append(level[place ^ 1])
        place //= 2
    return tuple(path)


def encode_leaf(leaf: LeafValues) -> bytes:
    """ABI-encode a leaf: 12 words.

    Raises:
        InputError: naming the field that does not fit its type.
    """
    try:
        head = bytes.fromhex(leaf.account[2:]) + bytes.fromhex(leaf.destination[2:])
        numbers = leaf[2:]
        for value, (low, high) in zip(numbers, _RANGES, strict=True):
            if not low <= value < high:
                raise OverflowError
        words = [value.to_bytes(32, "big", signed=value < 0) for value in numbers]
    except (OverflowError, ValueError, AttributeError, TypeError):
        raise _misfit(leaf) from None
    if len(head) != 64 or leaf.account[:2] != "0x" or leaf.destination[:2] != "0x":
        raise _misfit(leaf)
    return head + b"".join(words)


def digest_text(value: object) -> tuple[str, bytes]:
    """Return the canonical JSON of ``value`` and its keccak256.

    Canonical: keys sorted, no spaces, UTF-8 unescaped. Mappings, sequences, strings, integers, booleans and None only.

    Raises:
        TypeError: for anything else, above all floats, whose text differs between writers: give decimal text.
    """
    text = json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text, _keccak(text.encode())


def _plain(value: object, path: str) -> object:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path}: key {key!r} is no string")
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{path}: {type(value).__name__} has no canonical text; give a string or an integer")


def _misfit(leaf: LeafValues) -> InputError:
    for name in ("account", "destination"):
        text = getattr(leaf, name)
        if not (isinstance(text, str) and len(text) == 66 and text[:2] == "0x" and _is_hex(text[2:])):
            return InputError(f"leaf.{name}", f"{text!r} is not 32 bytes", "give 0x and 64 hex digits")
    for name, value, (low, high) in zip(leaf._fields[2:], leaf[2:], _RANGES, strict=True):
        if not isinstance(value, int) or not low <= value < high:
            return InputError(f"leaf.{name}", f"{value!r} is outside [{low}, {high})", f"account {leaf.account}")
    return InputError("leaf", "cannot be encoded", f"account {leaf.account}")


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in text)


def _build_tree(hashes: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
    """Lay sorted hashes out from the end, then fill parents: node i hashes the sorted pair 2i+1, 2i+2."""
    count = len(hashes)
    tree = [b""] * (2 * count - 1)
    places = [0] * count
    for rank, leaf_number in enumerate(sorted(range(count), key=hashes.__getitem__)):
        place = 2 * count - 2 - rank
        tree[place], places[leaf_number] = hashes[leaf_number], place
    for node in range(count - 2, -1, -1):
        left, right = tree[2 * node + 1], tree[2 * node + 2]
        tree[node] = _keccak(left + right if left < right else right + left)
    return tree, places


def _build_log(entries: Sequence[bytes]) -> tuple[tuple[bytes, ...], ...]:
    """Pair neighbours and carry an odd last node up: the shape of RFC 9162, built bottom-up."""
    sha256 = hashlib.sha256
    level = [sha256(b"\0" + entry).digest() for entry in entries]
    levels = [tuple(level)]
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [sha256(b"\1" + level[i] + level[i + 1]).digest() for i in range(0, len(level) - 1, 2)] + odd
        levels.append(tuple(level))
    return tuple(levels)


def _keccak(data: bytes) -> bytes:
    return bytes(keccak_256(data).digest())
