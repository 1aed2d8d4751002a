"""Compute units of our Solana programs, measured in the real SVM."""

from __future__ import annotations

from typing import Any

from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey

from adapters.solana.programs import (
    RegistryParameters,
    build_claim,
    build_deposit,
    build_post,
    build_registry_init,
    build_request,
    build_vault_init,
    build_verify,
    registry_address,
    vault_address,
)
from proofs.hashing import keccak256
from proofs.leaf import Leaf, hash_leaf
from proofs.quorum import IndexedSignature
from proofs.statement import Deployment, Header, digest
from tests.contracts.solana_reference import KEYS_BY_INDEX, NOW, World, fold, sign

DEPTH = 20
# sol_secp256k1_recover alone costs 25,000 units (agave, execution budget): what no implementation can go below.
RECOVER = 25_000
# Floors and targets in compute units. A transaction may use 1,400,000.
TARGETS = {3: 90_000}


def measure_cu() -> list[dict[str, Any]]:
    """Return one row {name, value, unit, reference, ratio, target} per instruction.

    value: units of the program's instruction, the compute-budget instruction of 150 units not counted.
    reference: for `post`, k signature recoveries alone; else None. ratio: value / reference.
    target: the most that value may be.
    """
    rows = [_measure_post(n, k) for n, k in ((4, 3), (7, 5), (19, 13))]
    rows.append(_measure_verify())
    rows += _measure_vault()
    return rows


def _row(name: str, value: int, reference: int | None, target: int | None) -> dict[str, Any]:
    ratio = None if reference is None else round(value / reference, 3)
    return {"name": name, "value": value, "unit": "CU", "reference": reference, "ratio": ratio, "target": target}


class _Registry:
    def __init__(self, n: int, threshold: int) -> None:
        self.world = World("registry")
        self.program = self.world.ids["registry"]
        members = tuple(KEYS_BY_INDEX[i].public_key.to_canonical_address() for i in range(n))
        self.deployment = Deployment(3, members, threshold, NOW + 1_000, b"\x5a" * 32)
        self.parameters = RegistryParameters(keccak256(b"solana:devnet"), 2, 5, 120)
        self.address = registry_address(self.program, self.deployment.deployment_id(), self.parameters)
        payer = self.world.payer.pubkey()
        self.world.run(build_registry_init(self.program, payer, self.deployment, self.parameters))

    def post(self, epoch: int, root: bytes, k: int) -> int:
        header = Header(epoch, root, 0, 1, NOW, NOW + 60, bytes(32))
        signed = digest(header, self.deployment.deployment_id())
        signatures = [IndexedSignature.unpack(sign(KEYS_BY_INDEX[i], i, signed)) for i in range(k)]
        return _units(self.world, build_post(self.program, self.address, header, signatures))


def _units(world: World, instruction: Instruction, *signers: Keypair) -> int:
    return int(world.run(instruction, signers=list(signers)).compute_units_consumed()) - 150


def _measure_post(n: int, k: int) -> dict[str, Any]:
    registry = _Registry(n, k)
    registry.post(NOW // 2 - 1, keccak256(b"first"), k)
    return _row(f"solana post, k={k}", registry.post(NOW // 2, keccak256(b"next"), k), RECOVER * k, TARGETS.get(k))


def _measure_verify() -> dict[str, Any]:
    registry, epoch = _Registry(4, 3), NOW // 2
    leaf = Leaf(bytes(32), registry.parameters.destination, epoch, -1, 2, 3, 4, 5, 6, NOW, NOW + 50, 0)
    proof = [keccak256(bytes([i])) for i in range(DEPTH)]
    registry.post(epoch, fold(hash_leaf(leaf), proof), 3)
    done = registry.world.run(build_verify(registry.program, registry.address, leaf, proof))
    assert bytes(done.return_data().data) == b"\x01"
    return _row(f"solana verify, depth {DEPTH}", int(done.compute_units_consumed()) - 150, None, None)


def _measure_vault() -> list[dict[str, Any]]:
    world = World("vault")
    program, owner, account = world.ids["vault"], Keypair(), keccak256(b"account")
    world.svm.airdrop(owner.pubkey(), 10**10)
    vault = vault_address(program, bytes(32), 0)
    world.run(build_vault_init(program, world.payer.pubkey(), bytes(32), 0))
    mint = world.add_mint()
    purse = world.add_tokens(mint, owner.pubkey(), 1_000)
    key: Pubkey = owner.pubkey()
    deposit = build_deposit(program, vault, key, account, mint, purse, 10)
    return [
        _row("solana vault deposit, first", _units(world, deposit, owner), None, None),
        _row("solana vault deposit, later", _units(world, deposit, owner), None, None),
        _row(
            "solana vault request",
            _units(world, build_request(program, vault, key, account, mint, 5), owner),
            None,
            None,
        ),
        _row(
            "solana vault claim",
            _units(world, build_claim(program, vault, key, account, mint, purse), owner),
            None,
            None,
        ),
    ]


if __name__ == "__main__":
    for row in measure_cu():
        print(row)
