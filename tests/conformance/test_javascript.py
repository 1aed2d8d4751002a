"""Digests and trees equal those of the JavaScript libraries that wallets and contracts' front ends use."""

from __future__ import annotations

import json
import random
import subprocess
from typing import Any

import pytest
from eth_abi import encode

from aggregator.core.commitment import build_commitment, proof
from aggregator.domain.report import LeafValues
from infra.devnet.anvil import NODE_MODULES
from proofs import merkle
from proofs.leaf import Leaf, hash_leaf
from proofs.links import LinkTerms, SharesTerms, link_digest, shares_digest
from proofs.permits import Hold, Permit, hold_digest, permit_digest, request_digest
from proofs.refusals import refusal_digest
from proofs.sets import AttestorSet, rotation_digest
from proofs.statement import Header, StatementBody, body_hash, digest, typed_digest

SEED = random.Random(5)
DEPLOYMENT = SEED.randbytes(32)
LEAF_TYPES = ["bytes32", "bytes32", "uint64", "int256", *5 * ["uint256"], "uint64", "uint64", "uint32"]
WORD = SEED.randbytes
BODY = StatementBody(*(WORD(32) for _ in range(6)), 2**64 - 1, WORD(32))
HEADER = Header(2**63, WORD(32), 7, 2**32 - 1, 1_700_000_000, 2**64 - 1, body_hash(BODY))
TERMS = LinkTerms(WORD(32), "eip155:1:0x" + WORD(20).hex(), "eip155:10:0x" + WORD(20).hex(), 3, 2**64 - 1)
SET = AttestorSet(2, tuple(WORD(20) for _ in range(7)), 5, 2**40, 2**41)
HOLD = Hold(WORD(32), WORD(32), bytes(12) + WORD(20), 2**40, 9)
PERMIT = Permit(
    WORD(32), WORD(32), bytes(12) + WORD(20), bytes(12) + WORD(20), 2**128 - 1, WORD(32), WORD(32), 9, 2**33
)
SHARES = SharesTerms(WORD(32), TERMS.controller, "eip155:1=7000,eip155:10=3000", 4, 2**63)
PERMIT_FIELDS = "account:bytes32 chain:bytes32 vault:bytes32 asset:bytes32 amount:uint256 to:bytes32 nonce:bytes32"
PERMIT_FIELDS += " epoch:uint64 expiry:uint64"
PERMIT_VALUES = (PERMIT.account, PERMIT.chain, PERMIT.vault, PERMIT.asset, PERMIT.amount, PERMIT.to, PERMIT.nonce, 9)
PERMIT_VALUES += (PERMIT.expiry,)
LINK_FIELDS = "account:bytes32 controller:string member:string nonce:uint64 expiry:uint64"
LINK_VALUES = (TERMS.account, TERMS.controller, TERMS.member, TERMS.nonce, TERMS.expiry)


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, tuple):
        return [_value(v) for v in value]
    return str(value)


def _typed(primary: str, fields: str, values: tuple[Any, ...]) -> dict[str, Any]:
    pairs = [field.split(":") for field in fields.split()]
    return {
        "domain": {"name": "crossmargin", "version": "1", "salt": _value(DEPLOYMENT)},
        "types": {primary: [{"name": n, "type": t} for n, t in pairs]},
        "primaryType": primary,
        "message": {n: _value(v) for (n, _), v in zip(pairs, values, strict=True)},
    }


HEADER_FIELDS = "epoch:uint64 root:bytes32 floor:uint64 setId:uint32 producedAt:uint64 validUntil:uint64 body:bytes32"
HEADER_VALUES = (HEADER.epoch, HEADER.root, HEADER.floor, HEADER.set_id, HEADER.produced_at, HEADER.valid_until)
BODY_FIELDS = "cutDigest:bytes32 priceDigest:bytes32 policyDigest:bytes32 riskDigest:bytes32 stateDigest:bytes32"
BODY_FIELDS += " accountsRoot:bytes32 leafCount:uint64 previous:bytes32"
BODY_VALUES = (BODY.cut_digest, BODY.price_digest, BODY.policy_digest, BODY.risk_digest, BODY.state_digest)
BODY_VALUES += (BODY.accounts_root, BODY.leaf_count, BODY.previous)
SIGNED: list[tuple[str, bytes, dict[str, Any]]] = [
    ("statement", digest(HEADER, DEPLOYMENT), _typed("MarginStatement", HEADER_FIELDS, (*HEADER_VALUES, HEADER.body))),
    ("body", typed_digest(DEPLOYMENT, HEADER.body), _typed("StatementBody", BODY_FIELDS, BODY_VALUES)),
    (
        "rotation",
        rotation_digest(SET, DEPLOYMENT),
        _typed(
            "RotateSet",
            "setId:uint32 members:address[] threshold:uint32 activationEpoch:uint64 notAfter:uint64",
            (SET.set_id, SET.members, SET.threshold, SET.activation_epoch, SET.not_after),
        ),
    ),
    (
        "hold",
        hold_digest(HOLD, DEPLOYMENT),
        _typed(
            "Hold",
            "account:bytes32 chain:bytes32 vault:bytes32 until:uint64 epoch:uint64",
            (HOLD.account, HOLD.chain, HOLD.vault, HOLD.until, HOLD.epoch),
        ),
    ),
    ("permit", permit_digest(PERMIT, DEPLOYMENT), _typed("WithdrawalPermit", PERMIT_FIELDS, PERMIT_VALUES)),
    ("permit request", request_digest(PERMIT, DEPLOYMENT), _typed("PermitRequest", PERMIT_FIELDS, PERMIT_VALUES)),
    (
        "shares",
        shares_digest(DEPLOYMENT, SHARES),
        _typed(
            "BudgetShares",
            "account:bytes32 controller:string shares:string nonce:uint64 expiry:uint64",
            (SHARES.account, SHARES.controller, SHARES.shares, SHARES.nonce, SHARES.expiry),
        ),
    ),
    (
        "refusal",
        refusal_digest(9, HEADER.body, "leaves: 1 proposed, 0 found", DEPLOYMENT),
        _typed(
            "Refusal",
            "epoch:uint64 digest:bytes32 reason:string",
            (9, HEADER.body, "leaves: 1 proposed, 0 found"),
        ),
    ),
    ("invite", link_digest(DEPLOYMENT, "invite", TERMS), _typed("LinkInvite", LINK_FIELDS, LINK_VALUES)),
    ("accept", link_digest(DEPLOYMENT, "accept", TERMS), _typed("LinkAccept", LINK_FIELDS, LINK_VALUES)),
]


def _leaves(count: int) -> list[LeafValues]:
    made = [
        LeafValues(
            "0x" + SEED.randbytes(32).hex(),
            "0x" + SEED.randbytes(32).hex(),
            SEED.randrange(2**64),
            SEED.randrange(-(2**127), 2**127),
            *(SEED.randrange(2**128) for _ in range(5)),
            SEED.randrange(2**64),
            SEED.randrange(2**64),
            SEED.randrange(2**32),
        )
        for _ in range(count)
    ]
    return sorted(made)


def compare(typed: list[dict[str, Any]], leaves: list[LeafValues]) -> dict[str, Any]:
    made = build_commitment(leaves)
    request = {
        "typed": typed,
        "tree": {
            "types": LEAF_TYPES,
            "leaves": [[_value(v) if not isinstance(v, str) else v for v in leaf] for leaf in leaves],
            "root": _value(made.root),
            "proofs": [[_value(node) for node in proof(made, i)] for i in range(len(leaves))],
        },
    }
    script = NODE_MODULES.parent / "compare.mjs"
    done = subprocess.run(["node", script], input=json.dumps(request), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 100])
def test_openzeppelins_tree_is_ours_in_both_directions(count: int) -> None:
    leaves = _leaves(count)
    answer = compare([], leaves)
    made = build_commitment(leaves)
    assert answer["root"] == _value(made.root)
    assert answer["accepted"] == [True] * count
    for leaf, theirs in zip(leaves, answer["proofs"], strict=True):
        path = [bytes.fromhex(node[2:]) for node in theirs]
        hashed = hash_leaf(Leaf(bytes.fromhex(leaf.account[2:]), bytes.fromhex(leaf.destination[2:]), *leaf[2:]))
        merkle.verify_proof(hashed, path, made.root)


def test_a_changed_leaf_is_not_openzeppelins() -> None:
    leaves = _leaves(5)
    made = build_commitment(leaves)
    changed = leaves[2]._replace(budget=leaves[2].budget ^ 1)
    values = [bytes.fromhex(changed.account[2:]), bytes.fromhex(changed.destination[2:]), *changed[2:]]
    assert build_commitment([*leaves[:2], changed, *leaves[3:]]).root != made.root
    assert len(encode(LEAF_TYPES, values)) == 384
    assert compare([], [*leaves[:2], changed, *leaves[3:]])["root"] != _value(made.root)


def test_every_signed_type_hashes_as_in_viem() -> None:
    answer = compare([typed for _, _, typed in SIGNED], _leaves(1))
    for (name, ours, _), theirs in zip(SIGNED, answer["digests"], strict=True):
        assert _value(ours) == theirs, name
