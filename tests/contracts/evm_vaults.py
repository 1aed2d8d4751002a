"""Vaults under test: a stand-in for their registry, and what a quorum signs, by eth-account's typed data."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eth_account.messages import _hash_eip191_message, encode_typed_data
from web3 import Web3
from web3.contract import Contract

from infra.devnet.anvil import deploy_code
from tests.contracts.evm_reference import Quorum, keccak, pack_indices

DEPLOYMENT_ID = b"\x0d" * 32
PERMIT_FIELDS = {
    "account": "bytes32",
    "chain": "bytes32",
    "vault": "bytes32",
    "asset": "bytes32",
    "amount": "uint256",
    "to": "bytes32",
    "nonce": "bytes32",
    "epoch": "uint64",
    "expiry": "uint64",
}
HOLD_FIELDS = {"account": "bytes32", "chain": "bytes32", "vault": "bytes32", "until": "uint64", "epoch": "uint64"}


def compile_and_deploy(w3: Web3, name: str, *args: Any) -> Contract:
    """Deploy one of the contracts below `vyper`."""
    source = Path(__file__).parent / "vyper" / f"{name}.vy"
    compiled = importlib.import_module("vyper").compile_code(source.read_text(), output_formats=["abi", "bytecode"])
    return deploy_code(w3, compiled["abi"], compiled["bytecode"], *args)


def deploy_quorum_stub(w3: Web3, first: Quorum, second: Quorum, threshold: int = 3) -> Contract:
    """Deploy what stands for a registry; account 0 is its governance."""
    return compile_and_deploy(w3, "QuorumStub", DEPLOYMENT_ID, first.members, second.members, threshold)


def typed_digest(type_: str, fields: dict[str, str], values: dict[str, Any], deployment_id: bytes) -> bytes:
    """Return eth-account's digest of typed data in the deployment's domain."""
    message = {
        "domain": {"name": "crossmargin", "version": "1", "salt": deployment_id},
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "salt", "type": "bytes32"},
            ],
            type_: [{"name": name, "type": kind} for name, kind in fields.items()],
        },
        "primaryType": type_,
        "message": values,
    }
    return bytes(_hash_eip191_message(encode_typed_data(full_message=message)))


def word(address: str) -> bytes:
    """Return an EVM address as a word."""
    return bytes.fromhex(address[2:]).rjust(32, b"\0")


def chain_word(chain_id: int) -> bytes:
    """Return the id of a destination."""
    return keccak(f"eip155:{chain_id}".encode())


@dataclass(frozen=True)
class SignedTerms:
    """A permit as a quorum signs it; what the vault is told leaves out chain and vault."""

    account: bytes
    chain: bytes
    vault: str
    token: str
    amount: int
    to: str
    nonce: bytes
    epoch: int
    expiry: int

    def but(self, **changes: Any) -> SignedTerms:
        return replace(self, **changes)

    def digest(self, deployment_id: bytes = DEPLOYMENT_ID, type_: str = "WithdrawalPermit") -> bytes:
        values = {
            **{name: getattr(self, name) for name in PERMIT_FIELDS if name != "asset"},
            "vault": word(self.vault),
            "asset": word(self.token),
            "to": word(self.to),
        }
        return typed_digest(type_, PERMIT_FIELDS, values, deployment_id)

    def terms(self) -> tuple[Any, ...]:
        return (self.account, self.token, self.amount, self.to, self.nonce, self.epoch, self.expiry)


def hold_digest(account: bytes, chain: bytes, vault: str, until: int, epoch: int) -> bytes:
    """Return the digest of a hold."""
    values = {"account": account, "chain": chain, "vault": word(vault), "until": until, "epoch": epoch}
    return typed_digest("Hold", HOLD_FIELDS, values, DEPLOYMENT_ID)


def sign(quorum: Quorum, digest: bytes, indices: Sequence[int] = (0, 1, 2)) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return packed indices and signatures."""
    return pack_indices(indices), quorum.sign(digest, indices)
