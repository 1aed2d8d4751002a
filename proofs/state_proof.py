"""Ethereum block headers and state proofs: what an account or a storage slot held at a block whose hash is trusted.

Header and tries: Ethereum Yellow Paper, sections 4.3 and appendices B (RLP), C (hex prefix) and D (Merkle-Patricia
tree); `eth_getProof`: EIP-1186. Everything that is not canonical is refused, and nothing that a proof *says* is used:
only nodes that are reached from the trusted root by their own hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from proofs.errors import StateError
from proofs.fields import require_bytes
from proofs.hashing import keccak256

EMPTY_ROOT = keccak256(b"\x80")
EMPTY_CODE = keccak256(b"")

HEADER_LIMIT = 1 << 16  # bytes; extraData of some chains carries the signatures of all validators
NODE_LIMIT = 1 << 10  # bytes; a full branch has 532
NODES_LIMIT = 130  # one per nibble of a 32-byte key, and as many that are given although their parents hold them
_DEPTH_LIMIT = 16  # of lists; nodes of less than 32 bytes lie inside their parents

Item: TypeAlias = "bytes | list[Item]"

_WORD = -1  # an integer, in as few bytes as it has
_ANY = -2  # bytes of any length
_FIELDS = (
    ("parentHash", 32),
    ("sha3Uncles", 32),
    ("miner", 20),
    ("stateRoot", 32),
    ("transactionsRoot", 32),
    ("receiptsRoot", 32),
    ("logsBloom", 256),
    ("difficulty", _WORD),
    ("number", _WORD),
    ("gasLimit", _WORD),
    ("gasUsed", _WORD),
    ("timestamp", _WORD),
    ("extraData", _ANY),
    ("mixHash", 32),
    ("nonce", 8),
)
"""Of every header, in order, by their names in JSON-RPC; _LATER follow as far as the chain has come."""
_LATER = (
    ("baseFeePerGas", _WORD),  # EIP-1559
    ("withdrawalsRoot", 32),  # EIP-4895
    ("blobGasUsed", _WORD),  # EIP-4844
    ("excessBlobGas", _WORD),
    ("parentBeaconBlockRoot", 32),  # EIP-4788
    ("requestsHash", 32),  # EIP-7685
    ("blockAccessListHash", 32),  # EIP-7928
    ("slotNumber", _WORD),  # EIP-7843
)


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """What is needed of a block header. Roots and hashes are 32 bytes, `time` is in Unix seconds."""

    parent: bytes
    state_root: bytes
    number: int
    time: int


@dataclass(frozen=True, slots=True)
class AccountState:
    """One account as the state trie holds it; `balance` in wei."""

    nonce: int
    balance: int
    storage_root: bytes
    code_hash: bytes


NO_ACCOUNT = AccountState(0, 0, EMPTY_ROOT, EMPTY_CODE)
"""What an address without a record counts as."""


# --- RLP ------------------------------------------------------------------------------------------------------------


def encode_rlp(item: Item) -> bytes:
    """Encode bytes and lists of them."""
    if isinstance(item, bytes):
        return item if len(item) == 1 and item[0] < 0x80 else _prefix(len(item), 0x80) + item
    body = b"".join(map(encode_rlp, item))
    return _prefix(len(body), 0xC0) + body


def decode_rlp(field: str, encoded: bytes) -> Item:
    """Decode one item that fills `encoded`; raise `StateError` naming `field` unless it is the canonical encoding."""
    item, end = _decode(field, encoded, 0, 0)
    if end != len(encoded):
        raise StateError(field, f"{len(encoded) - end} bytes follow the RLP item")
    return item


def _prefix(length: int, base: int) -> bytes:
    if length < 56:
        return bytes([base + length])
    size = _minimal(length)
    return bytes([base + 55 + len(size)]) + size


def _minimal(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _decode(field: str, encoded: bytes, at: int, depth: int) -> tuple[Item, int]:
    if at >= len(encoded):
        raise StateError(field, "the RLP ends early")
    if depth > _DEPTH_LIMIT:
        raise StateError(field, f"RLP lists lie more than {_DEPTH_LIMIT} deep")
    first = encoded[at]
    if first < 0x80:
        return encoded[at : at + 1], at + 1
    is_list = first >= 0xC0
    length, at = first - (0xC0 if is_list else 0x80), at + 1
    if length > 55:
        size = length - 55
        digits = encoded[at : at + size]
        length, at = int.from_bytes(digits, "big"), at + size
        if len(digits) < size or digits[0] == 0 or length < 56:
            raise StateError(field, "an RLP length is not canonical")
    end = at + length
    if end > len(encoded):
        raise StateError(field, "the RLP ends early")
    if not is_list:
        if length == 1 and encoded[at] < 0x80:
            raise StateError(field, "a single byte is not encoded as itself")
        return encoded[at:end], end
    items: list[Item] = []
    while at < end:
        item, at = _decode(field, encoded, at, depth + 1)
        items.append(item)
    if at != end:
        raise StateError(field, "an RLP item is longer than the list it is in")
    return items, end


def _uint(field: str, item: Item) -> int:
    if not isinstance(item, bytes) or len(item) > 32 or item[:1] == b"\0":
        raise StateError(field, "is not an integer in canonical RLP")
    return int.from_bytes(item, "big")


# --- headers --------------------------------------------------------------------------------------------------------


def build_header(fields: Mapping[str, object]) -> bytes:
    """Return the RLP of a header from its fields as JSON-RPC gives them, which a node need not do truthfully.

    Later fields are taken as far as they are present. A chain that puts others in its headers gives an encoding that
    does not hash to the block's hash.

    Raises:
        StateError: a field is missing or malformed, or a later one is present without those before it.
    """
    items: list[Item] = [_encode_field(name, size, fields.get(name)) for name, size in _FIELDS]
    ended = ""
    for name, size in _LATER:
        if fields.get(name) is None:
            ended = ended or name
        elif ended:
            raise StateError(f"header.{ended}", f"is missing, though {name} is present")
        else:
            items.append(_encode_field(name, size, fields[name]))
    return encode_rlp(items)


def _encode_field(name: str, size: int, value: object) -> bytes:
    field = f"header.{name}"
    if not isinstance(value, str) or not value.startswith("0x"):
        raise StateError(field, "0x and hex digits expected")
    digits = value[2:]
    if size == _WORD:
        digits = digits.lstrip("0")
        digits = "0" * (len(digits) % 2) + digits
    try:
        decoded = bytes.fromhex(digits)
    except ValueError:
        raise StateError(field, "0x and hex digits expected") from None
    if 2 * len(decoded) != len(digits) or (size >= 0 and len(decoded) != size) or (size == _WORD and len(decoded) > 32):
        raise StateError(field, f"{len(decoded)} bytes given" + (f", {size} expected" if size >= 0 else ""))
    return decoded


def verify_header(encoded: bytes, block_hash: bytes) -> BlockHeader:
    """Return what a header says, if it is the one that `block_hash` is of. Fields after the known ones are allowed.

    Raises:
        StateError: it is another header, or none.
    """
    require_bytes("block_hash", block_hash, 32)
    if len(encoded) > HEADER_LIMIT:
        raise StateError("header", f"{len(encoded)} bytes given, at most {HEADER_LIMIT} expected")
    if keccak256(encoded) != block_hash:
        raise StateError("header", "does not hash to the block's hash")
    items = decode_rlp("header", encoded)
    if not isinstance(items, list) or len(items) < len(_FIELDS):
        raise StateError("header", f"is not an RLP list of at least {len(_FIELDS)} fields")
    index = {name: i for i, (name, _) in enumerate(_FIELDS)}

    def hash_of(name: str) -> bytes:
        item = items[index[name]]
        if not isinstance(item, bytes) or len(item) != 32:
            raise StateError(f"header.{name}", "is not a 32-byte hash")
        return item

    return BlockHeader(
        parent=hash_of("parentHash"),
        state_root=hash_of("stateRoot"),
        number=_uint("header.number", items[index["number"]]),
        time=_uint("header.timestamp", items[index["timestamp"]]),
    )


# --- state ----------------------------------------------------------------------------------------------------------


def verify_account(state_root: bytes, address: bytes, proof: Sequence[bytes]) -> AccountState | None:
    """Return the account at `address` under `state_root`, None if the proof shows that there is no record.

    Args:
        proof: nodes of the state trie on the way, in any order; those inside their parents may be given or left out.

    Raises:
        StateError: naming `accountProof` or a field of `account`: the nodes show neither, or are not canonical.
    """
    require_bytes("address", address, 20)
    record = _find("accountProof", state_root, keccak256(address), proof)
    if record is None:
        return None
    items = decode_rlp("account", record)
    if not isinstance(items, list) or len(items) != 4:
        raise StateError("account", "is not an RLP list of nonce, balance, storageHash and codeHash")
    nonce, balance, storage_root, code_hash = items
    for name, item in (("storageHash", storage_root), ("codeHash", code_hash)):
        if not isinstance(item, bytes) or len(item) != 32:
            raise StateError(f"account.{name}", "is not a 32-byte hash")
    assert isinstance(storage_root, bytes)
    assert isinstance(code_hash, bytes)
    return AccountState(_uint("account.nonce", nonce), _uint("account.balance", balance), storage_root, code_hash)


def verify_storage(storage_root: bytes, slot: bytes, proof: Sequence[bytes]) -> int:
    """Return the value of a 32-byte `slot` under an account's `storage_root`, 0 if the proof shows it was never set.

    Raises:
        StateError: naming `storageProof` or `value`: the nodes show neither, or are not canonical.
    """
    require_bytes("slot", slot, 32)
    record = _find("storageProof", storage_root, keccak256(slot), proof)
    if record is None:
        return 0
    value = _uint("value", decode_rlp("value", record))
    if value == 0:
        raise StateError("value", "is a stored zero; a trie holds none")
    return value


def _find(field: str, root: bytes, key: bytes, proof: Sequence[bytes]) -> bytes | None:
    """Return the value at `key`, None if the nodes show that there is none."""
    require_bytes("root", root, 32)
    if len(proof) > NODES_LIMIT:
        raise StateError(field, f"{len(proof)} nodes given, at most {NODES_LIMIT} expected")
    for i, encoded in enumerate(proof):
        if len(encoded) > NODE_LIMIT:
            raise StateError(f"{field}[{i}]", f"{len(encoded)} bytes given, at most {NODE_LIMIT} expected")
    if root == EMPTY_ROOT:
        return None
    nodes, path = {keccak256(encoded): encoded for encoded in proof}, _nibbles(key)
    reference: Item = root
    while True:
        if reference == b"":
            return None
        node = _node(field, nodes, reference, is_root=reference is root)
        if len(node) == 17:
            if not path or node[16] != b"":
                raise StateError(field, "a branch holds a value; keys of one length leave none there")
            reference, path = node[path[0]], path[1:]
            continue
        if len(node) != 2:
            raise StateError(field, f"a node has {len(node)} items, 2 or 17 expected")
        is_leaf, part = _hex_prefix(field, node[0])
        # A leaf ends the path and an extension does not: a node of another depth belongs to no trie of such keys.
        if (len(part) != len(path)) if is_leaf else not 0 < len(part) < len(path):
            raise StateError(field, "a leaf or extension has a part of another length than is left of the key")
        if node[1] == b"":
            raise StateError(field, "a leaf or extension leads to nothing")
        if part != path[: len(part)]:
            return None
        if is_leaf:
            if not isinstance(node[1], bytes):
                raise StateError(field, "a leaf's value is a list")
            return node[1]
        reference, path = node[1], path[len(part) :]


def _node(field: str, nodes: Mapping[bytes, bytes], reference: Item, *, is_root: bool) -> list[Item]:
    """Return the node that a reference leads to: itself, or the one with that hash."""
    if isinstance(reference, list):
        if len(encode_rlp(reference)) >= 32:
            raise StateError(field, "a node of 32 bytes or more lies inside its parent")
        return reference
    if len(reference) != 32:
        raise StateError(field, f"a reference of {len(reference)} bytes, 32 expected")
    encoded = nodes.get(reference)
    if encoded is None:
        raise StateError(field, f"lacks the node 0x{reference.hex()}")
    if len(encoded) < 32 and not is_root:
        raise StateError(field, "a node of less than 32 bytes lies outside its parent")
    node = decode_rlp(field, encoded)
    if not isinstance(node, list):
        raise StateError(field, "a node is no list")
    return node


def _nibbles(key: Iterable[int]) -> tuple[int, ...]:
    return tuple(nibble for byte in key for nibble in (byte >> 4, byte & 15))


def _hex_prefix(field: str, item: Item) -> tuple[bool, tuple[int, ...]]:
    """Return whether a node is a leaf, and its part of the key."""
    if not isinstance(item, bytes) or not item or item[0] > 0x3F or (not item[0] & 0x10 and item[0] & 0x0F):
        raise StateError(field, "a part of the key is not in hex-prefix encoding")
    nibbles = _nibbles(item)
    return bool(item[0] & 0x20), nibbles[1:] if item[0] & 0x10 else nibbles[2:]
