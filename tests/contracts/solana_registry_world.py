"""A registry in the real SVM, and everybody who acts on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils import keccak
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.layouts import RawAccount
from adapters.solana.programs import (
    Margin,
    RegistryParameters,
    RegistryRefusal,
    RegistryState,
    build_apply,
    build_draw,
    build_list,
    build_registry_init,
    build_repay,
    build_rotate,
    build_stage,
    decode_drawn,
    decode_margin,
    decode_registry,
    drawn_address,
    margin_address,
    registry_address,
)
from proofs.leaf import unpack
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet
from proofs.statement import Deployment
from tests.contracts.solana_reference import (
    HEADER_TYPES,
    KEYS_BY_INDEX,
    NOW,
    Refused,
    Statement,
    World,
    fold,
    hash_leaf,
    pack_leaf,
    sign,
)

DESTINATION = keccak(b"solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")
ACCOUNT = keccak(b"an account")
SYSTEM = Pubkey.from_string("11111111111111111111111111111111")
GOVERNANCE, GUARDIAN, CONSUMER = (Keypair.from_seed(keccak(who)) for who in (b"governance", b"guardian", b"consumer"))
DAY = 86_400
PARAMETERS = RegistryParameters(
    DESTINATION,
    epoch_seconds=2,
    clock_skew=5,
    max_lifetime=120,
    governance=GOVERNANCE.pubkey(),
    guardian=GUARDIAN.pubkey(),
    timelock=DAY,
)
EPOCH = NOW // 2
ROOT = keccak(b"a root")


def make_set(
    set_id: int, first: int, activation_epoch: int, n: int = 4, threshold: int = 3, **changes: Any
) -> AttestorSet:
    """Return a set of the keys from index `first` on."""
    members = tuple(key.public_key.to_canonical_address() for key in KEYS_BY_INDEX[first : first + n])
    base = AttestorSet(set_id, members, threshold, activation_epoch, NOW + 10 * DAY)
    return replace(base, **changes)


def hash_rotation(to: AttestorSet, deployment_id: bytes) -> bytes:
    """Return the EIP-712 digest of a rotation, as eth_account encodes it."""
    fields = [("setId", "uint32"), ("members", "address[]"), ("threshold", "uint32")]
    fields += [("activationEpoch", "uint64"), ("notAfter", "uint64")]
    message = {
        "types": {
            "EIP712Domain": HEADER_TYPES["EIP712Domain"],
            "RotateSet": [{"name": name, "type": type_} for name, type_ in fields],
        },
        "primaryType": "RotateSet",
        "domain": {"name": "crossmargin", "version": "1", "salt": deployment_id},
        "message": {
            "setId": to.set_id,
            "members": ["0x" + member.hex() for member in to.members],
            "threshold": to.threshold,
            "activationEpoch": to.activation_epoch,
            "notAfter": to.not_after,
        },
    }
    return bytes(_hash_eip191_message(encode_typed_data(full_message=message)))


def sign_rotation(to: AttestorSet, deployment_id: bytes, signers: Sequence[int], first: int = 0) -> list[bytes]:
    """Return signatures by members of the set whose keys begin at index `first`."""
    digest = hash_rotation(to, deployment_id)
    return [sign(KEYS_BY_INDEX[first + i], i, digest) for i in signers]


def make_deployment(n: int = 4, threshold: int = 3, **changes: Any) -> Deployment:
    members = tuple(key.public_key.to_canonical_address() for key in KEYS_BY_INDEX[:n])
    base = Deployment(network_class=3, members=members, threshold=threshold, not_after=NOW + 1_000, salt=b"\x5a" * 32)
    return replace(base, **changes)


class RegistryWorld(World):
    """A world with an initialised registry."""

    def __init__(
        self, deployment: Deployment | None = None, *programs: str, parameters: RegistryParameters = PARAMETERS
    ) -> None:
        super().__init__("registry", *programs)
        self.deployment = deployment or make_deployment()
        self.program = self.ids["registry"]
        self.id = self.deployment.deployment_id()
        self.registry = registry_address(self.program, self.id, parameters)
        self.run(build_registry_init(self.program, self.payer.pubkey(), self.deployment, parameters))

    def state(self) -> RegistryState:
        account = self.account(self.registry)
        raw = RawAccount(account.lamports, str(account.owner), bytes(account.data))
        return decode_registry(str(self.registry), raw, self.program)

    def signatures(self, statement: Statement, indices: Sequence[int] = (0, 1, 2), first: int = 0) -> list[bytes]:
        """Sign by members of the set whose keys begin at index `first`."""
        digest = statement.digest(self.id)
        return [sign(KEYS_BY_INDEX[first + i], i, digest) for i in indices]

    def post(self, statement: Statement, signatures: list[bytes] | None = None) -> int:
        """Post the wire bytes; return the compute units."""
        signed = self.signatures(statement) if signatures is None else signatures
        data = b"\x01" + statement.pack() + bytes([len(signed)]) + b"".join(signed)
        meta = AccountMeta(self.registry, is_signer=False, is_writable=True)
        return self.run(Instruction(self.program, data, [meta])).compute_units_consumed()

    def at(self, seconds: int) -> Statement:
        """Move the clock; return a statement of that second's epoch."""
        self.set_time(seconds)
        return Statement(epoch=seconds // 2, root=ROOT, producedAt=seconds, validUntil=seconds + 60)

    def raw(self, key: Pubkey) -> RawAccount:
        account = self.account(key)
        return RawAccount(account.lamports, str(account.owner), bytes(account.data))

    # ---- sets ----

    def stage(self, to: AttestorSet) -> None:
        self.run(build_stage(self.program, self.registry, self.payer.pubkey(), self.id, to))

    def rotate(self, to: AttestorSet, signatures: Sequence[bytes]) -> None:
        """Hand over to a staged set, by its reference digest."""
        signed = [IndexedSignature.unpack(one) for one in signatures]
        self.run(build_rotate(self.program, self.registry, hash_rotation(to, self.id), signed))

    # ---- budgets ----

    def list_consumer(self, authority: Pubkey | None = None) -> None:
        """List the consumer and let the timelock pass; the clock stands at NOW again afterwards."""
        payer = self.payer.pubkey()
        self.set_time(NOW - PARAMETERS.timelock)
        authority = authority or CONSUMER.pubkey()
        self.run(build_list(self.program, self.registry, payer, GOVERNANCE.pubkey(), authority), signers=[GOVERNANCE])
        self.set_time(NOW)

    def apply(self, leaf: list[Any], proof: list[bytes]) -> int:
        """Apply a leaf; return the compute units."""
        payer = self.payer.pubkey()
        done = self.run(build_apply(self.program, self.registry, payer, unpack(pack_leaf(leaf)), proof))
        return done.compute_units_consumed()

    def draw(self, amount: int, account: bytes = ACCOUNT, consumer: Keypair | None = None) -> int:
        """Draw under a consumer's signature; return the compute units."""
        consumer, payer = consumer or CONSUMER, self.payer.pubkey()
        instruction = build_draw(self.program, self.registry, payer, consumer.pubkey(), account, amount)
        return self.run(instruction, signers=[consumer]).compute_units_consumed()

    def repay(self, amount: int, account: bytes = ACCOUNT, consumer: Keypair | None = None) -> int:
        consumer = consumer or CONSUMER
        instruction = build_repay(self.program, self.registry, consumer.pubkey(), account, amount)
        return self.run(instruction, signers=[consumer]).compute_units_consumed()

    def margin(self, account: bytes = ACCOUNT) -> Margin:
        key = margin_address(self.program, self.registry, account)
        return decode_margin(str(key), self.raw(key), self.program)

    def drawn(self, account: bytes = ACCOUNT, consumer: Keypair | None = None) -> int:
        authority = (consumer or CONSUMER).pubkey()
        key = drawn_address(self.program, self.registry, account, authority)
        state = decode_drawn(str(key), self.raw(key), self.program)
        assert (state.registry, state.account, state.authority) == (str(self.registry), account, str(authority))
        return state.used

    def verify(self, leaf: list[Any], proof: list[bytes]) -> bool:
        data = b"\x02" + pack_leaf(leaf) + bytes([len(proof)]) + b"".join(proof)
        meta = AccountMeta(self.registry, is_signer=False, is_writable=False)
        answer = bytes(self.run(Instruction(self.program, data, [meta])).return_data().data)
        assert answer in (b"\x00", b"\x01")
        return answer == b"\x01"


def make_leaf(epoch: int = EPOCH, **changes: Any) -> list[Any]:
    fields: dict[str, Any] = {
        "account": ACCOUNT,
        "destination": DESTINATION,
        "epoch": epoch,
        "equity": -12_345_678_900,
        "assets_initial": 1,
        "requirement_initial": 2,
        "assets_maintenance": 3,
        "requirement_maintenance": 4,
        "budget": 5,
        "as_of": NOW - 3,
        "valid_until": NOW + 50,
        "flags": 0b100001,
    }
    return list((fields | changes).values())


def post_leaf(world: RegistryWorld, leaf: list[Any], depth: int = 3, **header: Any) -> list[bytes]:
    proof = [keccak(bytes([i])) for i in range(depth)]
    world.post(Statement(epoch=leaf[2], root=fold(hash_leaf(leaf), proof)).but(**header))
    return proof


def refuses(code: RegistryRefusal, action: Callable[[], object]) -> None:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code, caught.value.text
