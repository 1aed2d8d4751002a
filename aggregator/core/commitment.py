"""Commit to leaves: encode, hash and build both trees, fast and batched, and update them where few leaves change.

Both trees hold the leaves ascending by (account, destination): for the registries' tree that is OpenZeppelin's
StandardMerkleTree with ``sortLeaves: false``. Sorted by their hashes, as that library does by default for the sake of
multiproofs, one changed leaf would move the others, and nothing of a tree could be kept (docs/adr/0016-leaf-order.md).

The verifier's encoding and trees are ``proofs.leaf`` and ``proofs.merkle``; nothing is shared on purpose, and a test
compares the two byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
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
    tree: tuple[bytes, ...]  # 2n - 1 nodes, root first; the leaf at place p is node 2n - 2 - p
    log: tuple[tuple[bytes, ...], ...]  # levels of the accounts log (RFC 9162), hashed entries first
    places: tuple[int, ...]  # of each leaf, ascending by (account, destination)

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
    hashes = hash_leaves(encoded)
    order = sorted(range(len(encoded)), key=encoded.__getitem__)  # the words begin with (account, destination)
    for first, second in pairwise(order):
        if encoded[first][:64] == encoded[second][:64]:
            leaf = leaves[first]
            raise InputError("leaves", f"two for account {leaf.account} at {leaf.destination}", "give one each")
    tree = build_tree([hashes[i] for i in order])
    log = _build_log([encoded[i][:64] + hashes[i] for i in order])
    places = [0] * len(order)
    for place, i in enumerate(order):
        places[i] = place
    return Commitment(tree[0], log[-1][0], tuple(hashes), tuple(tree), log, tuple(places))


def update_commitment(commitment: Commitment, changed: Mapping[int, LeafValues]) -> Commitment:
    """Commit to the same leaves but for ``changed`` (by index): only what lies above those is hashed again.

    Account and destination of a leaf stay what they were.

    Raises:
        InputError: a field outside its ABI type. IndexError: no such leaf.
    """
    if not changed:
        return commitment
    count = commitment.leaf_count
    if not 0 <= min(changed) <= max(changed) < count:
        raise IndexError(f"leaves 0 to {count - 1} are committed to, {sorted(changed)} given")
    encoded = [encode_leaf(leaf) for leaf in changed.values()]
    fresh = hash_leaves(encoded)
    places = [commitment.places[i] for i in changed]
    hashes = list(commitment.hashes)
    for i, value in zip(changed, fresh, strict=True):
        hashes[i] = value
    tree = update_tree(commitment.tree, dict(zip(places, fresh, strict=True)))
    entries = {p: words[:64] + value for p, words, value in zip(places, encoded, fresh, strict=True)}
    log = _update_log(commitment.log, entries)
    return Commitment(tree[0], log[-1][0], tuple(hashes), tuple(tree), log, commitment.places)


def hash_leaves(encoded: Sequence[bytes]) -> list[bytes]:
    """Return keccak256(keccak256(words)) of every encoded leaf: hashed twice, no inner node passes for a leaf."""
    return [keccak_256(keccak_256(words).digest()).digest() for words in encoded]


def proof(commitment: Commitment, index: int) -> tuple[bytes, ...]:
    """Return the sibling path of leaf ``index`` (in the order given to :func:`build_commitment`), leaf to root."""
    if not 0 <= index < commitment.leaf_count:
        raise IndexError(f"leaves 0 to {commitment.leaf_count - 1} are committed to, {index} asked for")
    node, path = len(commitment.tree) - 1 - commitment.places[index], []
    while node:
        path.append(commitment.tree[node + 1 if node % 2 else node - 1])
        node = (node - 1) // 2
    return tuple(path)


def accounts_path(commitment: Commitment, index: int) -> tuple[bytes, ...]:
    """Return the RFC 9162 inclusion path, leaf to root, of leaf ``index``; its place is ``places[index]``."""
    place, path = commitment.places[index], []
    for level in commitment.log[:-1]:
        if place ^ 1 < len(level):
            path.append(level[place ^ 1])
        place //= 2
    return tuple(path)


def entries_root(entries: Sequence[bytes]) -> bytes:
    """Return the RFC 9162 root over entries of any length, in the order given."""
    return _build_log(entries)[-1][0] if entries else hashlib.sha256(b"").digest()


def entries_path(entries: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the RFC 9162 inclusion path, leaf to root, of the entry at ``index``."""
    place, path = index, []
    for level in _build_log(entries)[:-1]:
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


def build_tree(hashes: Sequence[bytes]) -> list[bytes]:
    """Return the 2n - 1 nodes over n leaf hashes, by place.

    Node i hashes its children 2i + 1 and 2i + 2, the lesser one first; the leaves fill the end in reverse. A level is
    hashed at once: its nodes lie side by side.
    """
    count = len(hashes)
    tree = [b""] * (count - 1) + list(reversed(hashes))
    for first, last in _levels(count):
        below = tree[2 * first + 1 : 2 * last + 1]
        tree[first:last] = [
            keccak_256(a + b if a < b else b + a).digest() for a, b in zip(below[::2], below[1::2], strict=True)
        ]
    return tree


def update_tree(tree: Sequence[bytes], changed: Mapping[int, bytes]) -> list[bytes]:
    """Return the nodes of ``tree`` after leaf hashes were ``changed`` (by place of the leaf)."""
    nodes, end = list(tree), len(tree) - 1
    for i, value in changed.items():
        nodes[end - i] = value
    # Children come after their parents, and the leaves lie on two levels at most.
    touched = {(end - i - 1) // 2 for i in changed} - {-1}
    while touched:
        deepest = 1 << (max(touched) + 1).bit_length() - 1  # the first node of its level, plus one
        for node in (level := {node for node in touched if node + 1 >= deepest}):
            a, b = nodes[2 * node + 1], nodes[2 * node + 2]
            nodes[node] = keccak_256(a + b if a < b else b + a).digest()
        touched = touched - level | {(node - 1) // 2 for node in level} - {-1}
    return nodes


def _levels(count: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of the inner nodes of every level, the lowest level first."""
    last = count - 1
    while last > 0:
        first = (1 << last.bit_length() - 1) - 1
        yield first, last
        last = first


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


def _update_log(levels: Sequence[Sequence[bytes]], entries: Mapping[int, bytes]) -> tuple[tuple[bytes, ...], ...]:
    """Return the levels after entries (by place) were changed."""
    sha256 = hashlib.sha256
    fresh = {place: sha256(b"\0" + entry).digest() for place, entry in entries.items()}
    made: list[tuple[bytes, ...]] = []
    for level in levels:
        nodes = list(level)
        for place, value in fresh.items():
            nodes[place] = value
        made.append(tuple(nodes))
        fresh = {
            place: sha256(b"\1" + nodes[2 * place] + nodes[2 * place + 1]).digest()
            if 2 * place + 1 < len(nodes)
            else nodes[2 * place]
            for place in {place // 2 for place in fresh}
        }
    return tuple(made)


def _keccak(data: bytes) -> bytes:
    return bytes(keccak_256(data).digest())
