"""The deployment's identity and the EIP-712 statement its attestors sign.

EIP-712 digest = keccak256(0x1901 ‖ domainSeparator ‖ hashStruct(MarginStatement)); the domain's salt is the deployment
id, so that a signature means one deployment and, without a chain id, the same on every chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from proofs.errors import FieldError
from proofs.fields import require_bytes, require_uint, uint_word
from proofs.hashing import keccak256
from proofs.quorum import MAX_MEMBERS, minimal_threshold

MAINNET, TESTNET, DEVNET = 1, 2, 3
GENESIS_SET_ID = 1
HEADER_LENGTH = 100

DOMAIN_TYPE = "EIP712Domain(string name,string version,bytes32 salt)"
STATEMENT_TYPE = (
    "MarginStatement(uint64 epoch,bytes32 root,uint64 floor,uint32 setId,uint64 producedAt,uint64 validUntil,"
    "bytes32 body)"
)
BODY_TYPE = (
    "StatementBody(bytes32 cutDigest,bytes32 priceDigest,bytes32 policyDigest,bytes32 riskDigest,bytes32 stateDigest,"
    "bytes32 accountsRoot,uint64 leafCount,bytes32 previous)"
)
_DOMAIN_TYPEHASH = keccak256(DOMAIN_TYPE.encode())
_STATEMENT_TYPEHASH = keccak256(STATEMENT_TYPE.encode())
_BODY_TYPEHASH = keccak256(BODY_TYPE.encode())
_NAME_HASH = keccak256(b"crossmargin")
_VERSION_HASH = keccak256(b"1")


@dataclass(frozen=True, slots=True)
class Deployment:
    """The genesis facts that name a deployment.

    Args:
        network_class: 1 mainnet, 2 testnet, 3 devnet.
        members: The genesis attestors' addresses, 20 bytes each, in index order.
        threshold: Signatures needed, at least `minimal_threshold(len(members))`.
        not_after: Unix seconds after which the genesis set no longer signs.
        salt: 32 random bytes.

    Raises:
        FieldError: Naming the field that no registry would accept.
    """

    network_class: int
    members: tuple[bytes, ...]
    threshold: int
    not_after: int
    salt: bytes

    def __post_init__(self) -> None:
        if self.network_class not in (MAINNET, TESTNET, DEVNET):
            raise FieldError("networkClass", f"{self.network_class} given; 1 mainnet, 2 testnet or 3 devnet expected")
        n = len(self.members)
        if not 1 <= n <= MAX_MEMBERS:
            raise FieldError("members", f"{n} given, 1 to {MAX_MEMBERS} expected")
        if n < 4 and self.network_class != DEVNET:
            raise FieldError("members", f"{n} given, at least 4 expected outside a devnet")
        for i, member in enumerate(self.members):
            require_bytes(f"members[{i}]", member, 20)
            if not any(member):
                raise FieldError(f"members[{i}]", "the zero address")
            if member in self.members[:i]:
                raise FieldError(f"members[{i}]", f"0x{member.hex()} is listed twice")
        require_uint("threshold", self.threshold, 256)
        if not minimal_threshold(n) <= self.threshold <= n:
            raise FieldError("threshold", f"{self.threshold} of {n} given, {minimal_threshold(n)} to {n} expected")
        require_uint("notAfter", self.not_after, 256)
        require_bytes("salt", self.salt, 32)

    def members_hash(self) -> bytes:
        """Return the fold h ← keccak256(h ‖ member as a word) over the members, from 32 zero bytes."""
        folded = bytes(32)
        for member in self.members:
            folded = keccak256(folded + bytes(12) + member)
        return folded

    def deployment_id(self) -> bytes:
        """Return keccak256(abi.encode(networkClass, membersHash, threshold, notAfter, salt))."""
        return keccak256(
            uint_word(self.network_class)
            + self.members_hash()
            + uint_word(self.threshold)
            + uint_word(self.not_after)
            + self.salt
        )


@dataclass(frozen=True, slots=True)
class Header:
    """What travels to every chain. Times are Unix seconds; `root` and `body` are 32 bytes.

    Raises:
        FieldError: Naming the field out of range.
    """

    epoch: int
    root: bytes
    floor: int
    set_id: int
    produced_at: int
    valid_until: int
    body: bytes

    def __post_init__(self) -> None:
        require_uint("epoch", self.epoch, 64)
        require_bytes("root", self.root, 32)
        require_uint("floor", self.floor, 64)
        require_uint("setId", self.set_id, 32)
        require_uint("producedAt", self.produced_at, 64)
        require_uint("validUntil", self.valid_until, 64)
        require_bytes("body", self.body, 32)


@dataclass(frozen=True, slots=True)
class StatementBody:
    """What stays off chain and is committed by `Header.body`.

    Raises:
        FieldError: Naming the field out of range.
    """

    cut_digest: bytes
    price_digest: bytes
    policy_digest: bytes
    risk_digest: bytes
    state_digest: bytes
    accounts_root: bytes
    leaf_count: int
    previous: bytes

    def __post_init__(self) -> None:
        require_bytes("cutDigest", self.cut_digest, 32)
        require_bytes("priceDigest", self.price_digest, 32)
        require_bytes("policyDigest", self.policy_digest, 32)
        require_bytes("riskDigest", self.risk_digest, 32)
        require_bytes("stateDigest", self.state_digest, 32)
        require_bytes("accountsRoot", self.accounts_root, 32)
        require_uint("leafCount", self.leaf_count, 64)
        require_bytes("previous", self.previous, 32)


def domain_separator(deployment_id: bytes) -> bytes:
    """Return the EIP-712 domain separator of the deployment; links and statements share it."""
    return keccak256(_DOMAIN_TYPEHASH + _NAME_HASH + _VERSION_HASH + require_bytes("deploymentId", deployment_id, 32))


def typed_digest(deployment_id: bytes, struct_hash: bytes) -> bytes:
    """Return the EIP-712 digest of a struct in the deployment's domain."""
    return keccak256(b"\x19\x01" + domain_separator(deployment_id) + struct_hash)


def body_hash(body: StatementBody) -> bytes:
    """Return hashStruct(StatementBody), the value of `Header.body`."""
    return keccak256(
        _BODY_TYPEHASH
        + body.cut_digest
        + body.price_digest
        + body.policy_digest
        + body.risk_digest
        + body.state_digest
        + body.accounts_root
        + uint_word(body.leaf_count)
        + body.previous
    )


def digest(header: Header, deployment_id: bytes) -> bytes:
    """Return the 32-byte EIP-712 digest that attestors sign."""
    return typed_digest(
        deployment_id,
        keccak256(
            _STATEMENT_TYPEHASH
            + uint_word(header.epoch)
            + header.root
            + uint_word(header.floor)
            + uint_word(header.set_id)
            + uint_word(header.produced_at)
            + uint_word(header.valid_until)
            + header.body
        ),
    )


def pack_header(header: Header) -> bytes:
    """Return the 100-byte big-endian wire form: epoch, root, floor, setId, producedAt, validUntil, body."""
    return (
        header.epoch.to_bytes(8, "big")
        + header.root
        + header.floor.to_bytes(8, "big")
        + header.set_id.to_bytes(4, "big")
        + header.produced_at.to_bytes(8, "big")
        + header.valid_until.to_bytes(8, "big")
        + header.body
    )


def unpack_header(packed: bytes) -> Header:
    """Read the 100-byte wire form; raise `FieldError` for another length."""
    require_bytes("header", packed, HEADER_LENGTH)
    return Header(
        epoch=int.from_bytes(packed[0:8], "big"),
        root=packed[8:40],
        floor=int.from_bytes(packed[40:48], "big"),
        set_id=int.from_bytes(packed[48:52], "big"),
        produced_at=int.from_bytes(packed[52:60], "big"),
        valid_until=int.from_bytes(packed[60:68], "big"),
        body=packed[68:100],
    )
