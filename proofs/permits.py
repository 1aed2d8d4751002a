"""Holds and withdrawal permits: what a quorum signs to a vault, EIP-712 in the deployment's domain.

Both move or hold value, so both name one chain and one vault. `chain` is keccak256 of the CAIP-2 text; an EVM address
is a word (12 zero bytes before it), a Solana address its 32 bytes. The epoch decides which set of attestors must sign.

A permit is asked for by the account's controller, who signs the same terms: EIP-712 on EVM chains, on Solana a text
with Ed25519, as for links.
"""

from __future__ import annotations

from dataclasses import dataclass

from proofs.ed25519 import verify_ed25519
from proofs.errors import FieldError, SignatureError
from proofs.fields import require_bytes, require_uint, uint_word
from proofs.hashing import keccak256
from proofs.links import parse_caip10
from proofs.signing import recover_rsv
from proofs.statement import typed_digest

HOLD_TYPE = "Hold(bytes32 account,bytes32 chain,bytes32 vault,uint64 until,uint64 epoch)"
_PERMIT_FIELDS = (
    "(bytes32 account,bytes32 chain,bytes32 vault,bytes32 asset,uint256 amount,bytes32 to,bytes32 nonce,"
    "uint64 epoch,uint64 expiry)"
)
PERMIT_TYPE = "WithdrawalPermit" + _PERMIT_FIELDS
REQUEST_TYPE = "PermitRequest" + _PERMIT_FIELDS


@dataclass(frozen=True, slots=True)
class Hold:
    """No withdrawal of an account leaves a vault before `until` (Unix seconds). Ids are 32 bytes."""

    account: bytes
    chain: bytes
    vault: bytes
    until: int
    epoch: int

    def __post_init__(self) -> None:
        for name in ("account", "chain", "vault"):
            require_bytes(name, getattr(self, name), 32)
        require_uint("until", self.until, 64)
        require_uint("epoch", self.epoch, 64)


@dataclass(frozen=True, slots=True)
class Permit:
    """`amount` base units of `asset` may leave a vault for `to` at once, until `expiry` (Unix seconds)."""

    account: bytes
    chain: bytes
    vault: bytes
    asset: bytes
    amount: int
    to: bytes
    nonce: bytes
    epoch: int
    expiry: int

    def __post_init__(self) -> None:
        for name in ("account", "chain", "vault", "asset", "to", "nonce"):
            require_bytes(name, getattr(self, name), 32)
        require_uint("amount", self.amount, 128)
        require_uint("epoch", self.epoch, 64)
        require_uint("expiry", self.expiry, 64)


@dataclass(frozen=True, slots=True)
class PermitTerms:
    """A permit as people write it; `permit` is what is signed.

    Args:
        account: The 32-byte account id.
        chain: CAIP-2 of the vault.
        vault: Its canonical address, without the chain.
        asset: CAIP-19 of the token.
        amount: Base units, more than 0 (u128).
        to: Who receives it, a canonical address on the same chain.
        nonce: 32 bytes that no other permit has.
        epoch: Of the statement that it rests on (u64).
        expiry: Unix seconds until which the vault pays (u64).

    Raises:
        FieldError: Naming the field that is malformed, not canonical or of another chain.
    """

    account: bytes
    chain: str
    vault: str
    asset: str
    amount: int
    to: str
    nonce: bytes
    epoch: int
    expiry: int

    def __post_init__(self) -> None:
        if self.permit.amount == 0:
            raise FieldError("amount", "0 given, more than 0 expected")

    @property
    def permit(self) -> Permit:
        """The same terms in words."""
        return Permit(
            self.account,
            chain_word(self.chain),
            address_word(self.chain, self.vault, "vault"),
            asset_word(self.chain, self.asset),
            self.amount,
            address_word(self.chain, self.to, "to"),
            self.nonce,
            self.epoch,
            self.expiry,
        )


def chain_word(chain: str) -> bytes:
    """Return keccak256 of a chain's CAIP-2 text, as registries and vaults compute it of themselves."""
    return keccak256(chain.encode())


def address_word(chain: str, address: str, field: str = "address") -> bytes:
    """Return a canonical address on a chain (CAIP-2) as 32 bytes.

    Raises:
        FieldError: Naming `field`.
    """
    parsed = parse_caip10(f"{chain}:{address}", field)
    # Two spellings would be two records of one permit.
    if (canonical := str(parsed)) != f"{chain}:{address}":
        raise FieldError(field, f"{address} is not canonical: write {canonical.removeprefix(f'{chain}:')}")
    return parsed.address.rjust(32, b"\0")


def asset_word(chain: str, asset: str) -> bytes:
    """Return the token that a CAIP-19 asset of a chain (CAIP-2) names as 32 bytes.

    Raises:
        FieldError: Naming `asset`: of another chain, or no token.
    """
    place, _, name = asset.partition("/")
    if place != chain:
        raise FieldError("asset", f"{asset} is not on {chain}")
    kind, _, token = name.partition(":")
    expected = "erc20" if chain.startswith("eip155:") else "token"
    if kind != expected:
        raise FieldError("asset", f"{asset} is no token: {chain}/{expected}:<address> expected")
    return address_word(chain, token, "asset")


def hold_digest(hold: Hold, deployment_id: bytes) -> bytes:
    """Return the digest that attestors sign for a hold."""
    words = hold.account + hold.chain + hold.vault + uint_word(hold.until) + uint_word(hold.epoch)
    return typed_digest(deployment_id, keccak256(keccak256(HOLD_TYPE.encode()) + words))


def permit_digest(permit: Permit, deployment_id: bytes) -> bytes:
    """Return the digest that attestors sign for a permit."""
    return _digest(PERMIT_TYPE, permit, deployment_id)


def request_digest(permit: Permit, deployment_id: bytes) -> bytes:
    """Return the digest that the account's controller signs to ask for a permit with these terms."""
    return _digest(REQUEST_TYPE, permit, deployment_id)


def request_text(terms: PermitTerms, deployment_id: bytes) -> bytes:
    """Return the UTF-8 text that a controller on Solana signs to ask for a permit; it ends without a newline."""
    return "\n".join(
        (
            "crossmargin withdrawal permit",
            f"deployment: 0x{require_bytes('deploymentId', deployment_id, 32).hex()}",
            f"account: 0x{terms.account.hex()}",
            f"chain: {terms.chain}",
            f"vault: {terms.vault}",
            f"asset: {terms.asset}",
            f"amount: {terms.amount}",
            f"to: {terms.to}",
            f"nonce: 0x{terms.nonce.hex()}",
            f"epoch: {terms.epoch}",
            f"expiry: {terms.expiry}",
        )
    ).encode()


def verify_request(terms: PermitTerms, controller: str, signature: bytes, deployment_id: bytes) -> None:
    """Check that the controller (CAIP-10) of an account asks for a permit: 65 bytes r, s, v on EVM, 64 on Solana.

    Raises:
        SignatureError: Naming `request`.
    """
    signer = parse_caip10(controller, "controller")
    try:
        if signer.namespace == "eip155":
            recovered = recover_rsv(request_digest(terms.permit, deployment_id), signature)
            if recovered != signer.address:
                raise SignatureError("signature", f"recovers to 0x{recovered.hex()}")
        else:
            verify_ed25519(signer.address, request_text(terms, deployment_id), signature)
    except SignatureError as error:
        raise SignatureError("request", f"not signed by {signer} over these terms ({error})") from error


def _digest(type_: str, p: Permit, deployment_id: bytes) -> bytes:
    words = p.account + p.chain + p.vault + p.asset + uint_word(p.amount) + p.to + p.nonce
    words += uint_word(p.epoch) + uint_word(p.expiry)
    return typed_digest(deployment_id, keccak256(keccak256(type_.encode()) + words))
