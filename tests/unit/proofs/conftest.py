"""A small deployment whose bundle every step of the verifier accepts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from coincurve import PrivateKey
from proofs_world import CUT_TIME, VECTORS, World, address_of, build_preimages, commit
from solders.keypair import Keypair

from proofs import leaf as leaves
from proofs import merkle, statement
from proofs.bundle import Bundle, Neighbour, ProvenLeaf
from proofs.hashing import keccak256


@pytest.fixture(scope="session")
def price_file() -> dict[str, object]:
    raw = (VECTORS / "pyth_updates.json").read_bytes()
    metadata = json.loads((VECTORS / "metadata.json").read_text())
    assert hashlib.sha256(raw).hexdigest() == metadata["pyth_updates.json"]["sha256"]
    return json.loads(raw)


@pytest.fixture(scope="session")
def world() -> World:
    attestors = tuple(PrivateKey(keccak256(b"attestor %d" % i)) for i in range(4))
    deployment = statement.Deployment(
        network_class=statement.DEVNET,
        members=tuple(address_of(key) for key in attestors),
        threshold=3,
        not_after=CUT_TIME + 86_400,
        salt=keccak256(b"salt"),
    )
    return World(attestors, PrivateKey(keccak256(b"controller")), Keypair.from_seed(keccak256(b"member")), deployment)


@pytest.fixture(scope="session")
def bundle(world: World, price_file: dict[str, object]) -> Bundle:
    """Return a bundle of five leaves, of which it carries one with both neighbours, and one earlier statement."""
    epoch = CUT_TIME // 2
    link = world.link(accepted_at=CUT_TIME - 200, expiry=CUT_TIME - 100)
    plain = leaves.Leaf(
        account=link.terms.account,
        destination=keccak256(b"eip155:31337"),
        epoch=epoch,
        equity=-5,
        assets_initial=10**12,
        requirement_initial=9,
        assets_maintenance=10**12 + 1,
        requirement_maintenance=8,
        budget=10**11,
        as_of=CUT_TIME - 2,
        valid_until=CUT_TIME + 60,
        flags=leaves.STALE,
    )
    everyone = [plain, *(replace(plain, account=keccak256(b"account %d" % i), budget=i) for i in range(4))]
    everyone.sort(key=lambda leaf: leaf.account + leaf.destination)
    hashes = [leaves.hash_leaf(leaf) for leaf in everyone]
    entries = [
        merkle.accounts_entry(leaf.account, leaf.destination, h) for leaf, h in zip(everyone, hashes, strict=True)
    ]
    at = everyone.index(plain)
    neighbours = tuple(
        Neighbour(everyone[i].account, everyone[i].destination, hashes[i], i, merkle.accounts_proof(entries, i))
        for i in (at - 1, at + 1)
        if 0 <= i < len(entries)
    )
    preimages = build_preimages(price_file, link)
    body = statement.StatementBody(
        cut_digest=keccak256(preimages.cut.encode()),
        price_digest=keccak256(preimages.prices.encode()),
        policy_digest=keccak256(preimages.policy.encode()),
        risk_digest=keccak256(preimages.risk.encode()),
        state_digest=keccak256(preimages.state.encode()),
        accounts_root=merkle.accounts_root(entries),
        leaf_count=len(entries),
        previous=bytes(32),
    )
    header = statement.Header(
        epoch=epoch - 1,
        root=merkle.root(hashes),
        floor=0,
        set_id=1,
        produced_at=CUT_TIME - 2,
        valid_until=CUT_TIME + 58,
        body=statement.body_hash(body),
    )
    first = world.certify(header, body, (0, 1, 2))
    body = replace(body, previous=statement.digest(header, world.id))
    header = replace(header, epoch=epoch, produced_at=CUT_TIME, body=statement.body_hash(body))
    return Bundle(
        deployment=world.deployment,
        statement=world.certify(header, body, (0, 2, 3)),
        leaves=(ProvenLeaf(plain, merkle.proof(hashes, at), at, merkle.accounts_proof(entries, at)),),
        preimages=preimages,
        links=(link,),
        neighbours=neighbours,
        history=(first,),
        accounts=commit([link])[1],
    )
