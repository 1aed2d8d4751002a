"""Compute units of our Solana programs, measured in the real SVM."""

from __future__ import annotations

from typing import Any

from solders.account import Account
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.transaction_metadata import TransactionMetadata

from adapters.solana.programs import (
    RegistryParameters,
    build_apply,
    build_claim,
    build_deposit,
    build_draw,
    build_hold,
    build_list,
    build_post,
    build_registry_init,
    build_repay,
    build_request,
    build_rotate,
    build_stage,
    build_verify,
    build_withdraw,
    registry_address,
)
from infra.devnet.svm_consumer import Lender
from proofs.hashing import keccak256
from proofs.leaf import Leaf, hash_leaf
from proofs.links import Caip10, account_id
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, rotation_digest
from proofs.statement import Deployment, Header, digest
from tests.contracts.solana_reference import KEYS_BY_INDEX, NOW, World, fold, sign
from tests.contracts.solana_vault_world import ACCOUNT, DELAY, EPOCH, TOKEN_2022, SetRow, VaultWorld, signed

CHAIN = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"
DEPTH = 20
# sol_secp256k1_recover alone costs 25,000 units (agave, execution budget): what no implementation can go below.
RECOVER = 25_000
# Floors and targets in compute units. A transaction may use 1,400,000.
TARGETS = {3: 90_000}


def measure_cu() -> list[dict[str, Any]]:
    """Return one row {name, value, unit, reference, ratio, target} per instruction.

    value: units of the program's instruction, the compute-budget instruction of 150 units not counted.
    reference: for `post` and `rotate`, k signature recoveries alone; else None. ratio: value / reference.
    target: the most that value may be.
    """
    rows = [_measure_post(n, k) for n, k in ((4, 3), (7, 5), (19, 13))]
    rows += [_measure_post(n, k, rotated=True) for n, k in ((4, 3), (7, 5))]
    rows += _measure_rotate(4, 3) + _measure_rotate(19, 13)
    rows += _measure_budgets()
    rows += _measure_vault()
    return rows


def _row(name: str, value: int, reference: int | None, target: int | None) -> dict[str, Any]:
    ratio = None if reference is None else round(value / reference, 3)
    return {"name": name, "value": value, "unit": "CU", "reference": reference, "ratio": ratio, "target": target}


class _Registry:
    """A registry with `n` attestors; its second set, of the next `n` keys, is active where `rotated`."""

    def __init__(self, n: int, threshold: int, *programs: str, rotated: bool = False) -> None:
        self.world = World("registry", *programs)
        self.program = self.world.ids["registry"]
        self.first = n if rotated else 0
        self.set_id = 2 if rotated else 1
        deployment = Deployment(3, _members(0, n), threshold, NOW + 1_000, b"\x5a" * 32)
        self.id, payer = deployment.deployment_id(), self.world.payer.pubkey()
        times = {"epoch_seconds": 2, "clock_skew": 5, "max_lifetime": 120, "timelock": 0}
        parameters = RegistryParameters(keccak256(CHAIN.encode()), governance=payer, guardian=payer, **times)
        self.destination = parameters.destination
        self.address = registry_address(self.program, self.id, parameters)
        self.world.run(build_registry_init(self.program, payer, deployment, parameters))
        if rotated:
            self.rotate(AttestorSet(2, _members(n, n), threshold, NOW // 2 - 1, NOW + 1_000))

    def rotate(self, to: AttestorSet) -> tuple[int, int]:
        """Stage and rotate to a set, before its activation; return the units of both."""
        digest, payer = rotation_digest(to, self.id), self.world.payer.pubkey()
        self.world.set_time(2 * to.activation_epoch - 10)
        staging = _units(self.world, build_stage(self.program, self.address, payer, self.id, to))
        signatures = [IndexedSignature.unpack(sign(KEYS_BY_INDEX[i], i, digest)) for i in range(to.threshold)]
        rotating = _units(self.world, build_rotate(self.program, self.address, digest, signatures))
        self.world.set_time(NOW)
        return staging, rotating

    def post(self, epoch: int, root: bytes, k: int) -> int:
        header = Header(epoch, root, 0, self.set_id, NOW, NOW + 60, bytes(32))
        signed = digest(header, self.id)
        signatures = [IndexedSignature.unpack(sign(KEYS_BY_INDEX[self.first + i], i, signed)) for i in range(k)]
        return _units(self.world, build_post(self.program, self.address, header, signatures))

    def prove(self, epoch: int, account: bytes) -> tuple[Leaf, list[bytes]]:
        """Post a root with one leaf of an account, DEPTH below it; return the leaf and its proof."""
        leaf = Leaf(account, self.destination, epoch, -1, 2, 3, 4, 5, 10**12, NOW, NOW + 50, 0)
        proof = [keccak256(bytes([i])) for i in range(DEPTH)]
        self.post(epoch, fold(hash_leaf(leaf), proof), 3)
        return leaf, proof


def _members(first: int, n: int) -> tuple[bytes, ...]:
    return tuple(key.public_key.to_canonical_address() for key in KEYS_BY_INDEX[first : first + n])


def _units(world: World, instruction: Instruction, *signers: Keypair) -> int:
    return int(world.run(instruction, signers=list(signers)).compute_units_consumed()) - 150


def _measure_post(n: int, k: int, *, rotated: bool = False) -> dict[str, Any]:
    registry = _Registry(n, k, rotated=rotated)
    registry.post(NOW // 2 - 1, keccak256(b"first"), k)
    name = f"solana post, k={k}" + (", rotated set" if rotated else "")
    return _row(name, registry.post(NOW // 2, keccak256(b"next"), k), RECOVER * k, TARGETS.get(k))


def _measure_rotate(n: int, k: int) -> list[dict[str, Any]]:
    to = AttestorSet(2, _members(0, n), k, NOW // 2 + 10, NOW + 1_000)
    staging, rotating = _Registry(n, k).rotate(to)
    return [
        _row(f"solana stage, n={n}", staging, None, None),
        _row(f"solana rotate, k={k}", rotating, RECOVER * k, None),
    ]


def _measure_budgets() -> list[dict[str, Any]]:
    registry, controller = _Registry(4, 3, "consumer"), Keypair()
    world, key = registry.world, controller.pubkey()
    account = account_id(str(Caip10("solana", CHAIN.partition(":")[2], bytes(key))), bytes(32))
    leaf, proof = registry.prove(NOW // 2, account)
    payer, program, address = world.payer.pubkey(), registry.program, registry.address
    done = world.run(build_verify(program, address, leaf, proof))
    assert bytes(done.return_data().data) == b"\x01"
    rows = [("verify", int(done.compute_units_consumed()) - 150)]
    rows.append(("apply, first", _units(world, build_apply(program, address, payer, leaf, proof))))
    leaf, proof = registry.prove(NOW // 2 + 1, account)
    rows.append(("apply, later", _units(world, build_apply(program, address, payer, leaf, proof))))

    authority = Keypair()
    world.run(build_list(program, address, payer, payer, authority.pubkey()))
    for name, amount in (("draw, first", 5), ("draw, later", 6)):
        draw = build_draw(program, address, payer, authority.pubkey(), account, amount)
        rows.append((name, _units(world, draw, authority)))
    repay = build_repay(program, address, authority.pubkey(), account, 3)
    rows.append(("repay", _units(world, repay, authority)))

    mint = world.add_mint()
    lender = Lender(world.ids["consumer"], program, address, mint)
    world.run(lender.build_init(payer, CHAIN))
    world.run(build_list(program, address, payer, payer, lender.address))
    world.svm.airdrop(key, 10**10)
    purse = world.add_tokens(mint, key, 0)
    pool = world.account(lender.pool)
    filled = bytes(pool.data)[:64] + (100).to_bytes(8, "little") + bytes(pool.data)[72:]
    world.svm.set_account(lender.pool, Account(pool.lamports, filled, pool.owner))
    for name, amount in (("lender borrow by CPI, first", 5), ("lender borrow by CPI, later", 6)):
        rows.append((name, _units(world, lender.build_borrow(key, account, bytes(32), purse, amount), controller)))
    rows.append(("lender repay by CPI", _units(world, lender.build_repay(key, account, purse, 3), controller)))
    deep = f", depth {DEPTH}"
    return [_row(f"solana {n}{deep if n[:5] in ('verif', 'apply') else ''}", units, None, None) for n, units in rows]


def _measure_vault() -> list[dict[str, Any]]:
    world = VaultWorld()
    owner, program, vault, mint = world.alice, world.program, world.vault, world.mint
    key, purse = owner.pubkey(), world.purse[owner.pubkey()]
    deposit = build_deposit(program, vault, key, ACCOUNT, mint, purse, 100)
    extended = world.add_extended_mint(18, 19)
    world.set_limit(1_000, extended)
    target = world.add_extended_tokens(extended, key, 1_000)
    other = build_deposit(program, vault, key, ACCOUNT, extended, target, 100, TOKEN_2022)
    measured: list[tuple[str, Instruction, Keypair]] = [
        ("deposit, first", deposit, owner),
        ("deposit, later", deposit, owner),
        ("deposit, first of a Token-2022 mint", other, owner),
        ("deposit, later of a Token-2022 mint", other, owner),
        ("request", build_request(program, vault, key, ACCOUNT, mint, 5), owner),
        ("claim", build_claim(program, vault, key, ACCOUNT, mint, purse), owner),
        ("limit", world.limit(10**6), world.governance),
    ]
    rows = []
    for name, instruction, signer in measured:
        world.set_time(NOW + DELAY if name == "claim" else NOW)
        rows.append(_row(f"solana vault {name}", _units(world, instruction, signer), None, None))
    for n, k in ((4, 3), (19, 13)):
        world.change_registry(newest=SetRow(n=n, threshold=k))
        permit = world.make_permit(amount=10, nonce=keccak256(b"%d" % k))
        withdraw = build_withdraw(program, world.registry, key, permit, signed(permit, range(k)))
        rows.append(_row(f"solana vault withdraw, k={k}", _execute(world, withdraw, owner), RECOVER * k, None))
        hold = world.make_hold(epoch=EPOCH - 20 + k)  # older than the permits
        bring = build_hold(program, world.registry, hold, signed(hold, range(k)))
        rows.append(_row(f"solana vault hold, k={k}", _execute(world, bring), RECOVER * k, None))
    return rows


def _execute(world: World, instruction: Instruction, *signers: Keypair) -> int:
    """Like `_units`, without the packet's limit: 13 signatures of a permit need a lookup table."""
    result = world.svm.send_transaction(world.transaction(instruction, signers=list(signers)))
    assert isinstance(result, TransactionMetadata), result
    return int(result.compute_units_consumed()) - 150


if __name__ == "__main__":
    for row in measure_cu():
        print(row)
