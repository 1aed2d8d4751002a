"""A second, plain implementation of statements, leaves and trees for the contract tests.

It shares no code with `proofs` or the service: typed data comes from eth-account, words from eth-abi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi import encode
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_keys import keys
from web3 import Web3

LEAF_TYPES = (
    "(bytes32,bytes32,uint64,int256,uint256,uint256,uint256,uint256,uint256,uint64,uint64,uint32)"  # SPEC, "Leaf"
)
STATEMENT_FIELDS = {
    "epoch": "uint64",
    "root": "bytes32",
    "floor": "uint64",
    "setId": "uint32",
    "producedAt": "uint64",
    "validUntil": "uint64",
    "body": "bytes32",
}

ROTATE_FIELDS = {
    "setId": "uint32",
    "members": "address[]",
    "threshold": "uint32",
    "activationEpoch": "uint64",
    "notAfter": "uint64",
}


def keccak(data: bytes) -> bytes:
    return bytes(Web3.keccak(data))


@dataclass(frozen=True)
class Header:
    epoch: int
    root: bytes
    producedAt: int
    validUntil: int
    floor: int = 0
    setId: int = 1
    body: bytes = b"\xbb" * 32

    def as_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in STATEMENT_FIELDS)


@dataclass(frozen=True)
class NextSet:
    """The set that a rotation hands over to."""

    setId: int
    members: tuple[str, ...]
    threshold: int
    activationEpoch: int
    notAfter: int

    def as_tuple(self) -> tuple[Any, ...]:
        return (self.setId, list(self.members), self.threshold, self.activationEpoch, self.notAfter)


@dataclass(frozen=True)
class Leaf:
    account: bytes
    destination: bytes
    epoch: int
    validUntil: int
    equity: int = -5
    assetsInitial: int = 200 * 10**8
    requirementInitial: int = 100 * 10**8
    assetsMaintenance: int = 210 * 10**8
    requirementMaintenance: int = 90 * 10**8
    budget: int = 100 * 10**8
    asOf: int = 1
    flags: int = 0

    def as_tuple(self) -> tuple[Any, ...]:
        return (
            *(self.account, self.destination, self.epoch, self.equity, self.assetsInitial, self.requirementInitial),
            *(self.assetsMaintenance, self.requirementMaintenance, self.budget, self.asOf, self.validUntil, self.flags),
        )

    def hash(self) -> bytes:
        return keccak(keccak(encode([LEAF_TYPES], [self.as_tuple()])))


class Tree:
    """OpenZeppelin's StandardMerkleTree over leaf hashes."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        hashes = sorted(leaf.hash() for leaf in leaves)
        size = 2 * len(hashes) - 1
        self.nodes = [b""] * size
        for i, value in enumerate(hashes):
            self.nodes[size - 1 - i] = value
        for i in range(len(hashes) - 2, -1, -1):
            self.nodes[i] = keccak(b"".join(sorted(self.nodes[2 * i + 1 : 2 * i + 3])))
        self.root = self.nodes[0]

    def proof(self, leaf: Leaf) -> list[bytes]:
        i = self.nodes.index(leaf.hash())
        path = []
        while i:
            path.append(self.nodes[i + 1 if i % 2 else i - 1])
            i = (i - 1) // 2
        return path


def pack_indices(indices: Sequence[int]) -> int:
    return sum(index << (8 * place) for place, index in enumerate(indices))


def typed_digest(name: str, fields: dict[str, str], message: dict[str, Any], deployment_id: bytes) -> bytes:
    """Return the EIP-712 digest of a struct in the deployment's domain, by eth-account."""
    document = {
        "domain": {"name": "crossmargin", "version": "1", "salt": deployment_id},
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "salt", "type": "bytes32"},
            ],
            name: [{"name": field, "type": kind} for field, kind in fields.items()],
        },
        "primaryType": name,
        "message": message,
    }
    return bytes(_hash_eip191_message(encode_typed_data(full_message=document)))


class Quorum:
    """Attestors with fixed test keys."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.keys = [keys.PrivateKey(keccak(f"attestor {seed} {i}".encode())) for i in range(size)]
        self.members = [key.public_key.to_checksum_address() for key in self.keys]

    def digest(self, header: Header, deployment_id: bytes) -> bytes:
        message = {name: getattr(header, name) for name in STATEMENT_FIELDS}
        return typed_digest("MarginStatement", STATEMENT_FIELDS, message, deployment_id)

    def rotation_digest(self, to: NextSet, deployment_id: bytes) -> bytes:
        message = {name: getattr(to, name) for name in ROTATE_FIELDS} | {"members": list(to.members)}
        return typed_digest("RotateSet", ROTATE_FIELDS, message, deployment_id)

    def sign(self, digest: bytes, indices: Sequence[int]) -> list[tuple[bytes, bytes]]:
        signatures = []
        for i in indices:
            signature = self.keys[i].sign_msg_hash(digest)
            vs = signature.s | signature.v << 255
            signatures.append((signature.r.to_bytes(32, "big"), vs.to_bytes(32, "big")))
        return signatures

    def certify(
        self, header: Header, deployment_id: bytes, indices: Sequence[int]
    ) -> tuple[tuple[Any, ...], int, list[tuple[bytes, bytes]]]:
        """Return the arguments of `post`."""
        signatures = self.sign(self.digest(header, deployment_id), indices)
        return header.as_tuple(), pack_indices(indices), signatures

    def certify_rotation(
        self, to: NextSet, deployment_id: bytes, indices: Sequence[int]
    ) -> tuple[tuple[Any, ...], int, list[tuple[bytes, bytes]]]:
        """Return the arguments of `rotate`."""
        signatures = self.sign(self.rotation_digest(to, deployment_id), indices)
        return to.as_tuple(), pack_indices(indices), signatures


def account_id(chain_id: int, controller: str, salt: bytes) -> bytes:
    return keccak(b"crossmargin/account/1" + f"eip155:{chain_id}:{controller.lower()}".encode() + salt)
