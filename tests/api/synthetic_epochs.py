"""Epoch records made up for tests of the store and the API: right in shape and hashes, with numbers chosen to hurt.

Prices, haircuts and quantities are not a valuation's output; what they must survive is storage and display.
"""

from __future__ import annotations

import json
import math

from aggregator.domain.certificate import Attestation, EpochRecord
from aggregator.domain.report import AccountMargin, Component, Flag, Haircuts, Interval, LeafValues, Status
from aggregator.domain.snapshot import Account, Block, ChainView, Finding, Position, Reading
from proofs.hashing import keccak256
from proofs.leaf import Leaf, hash_leaf
from proofs.merkle import accounts_entry, accounts_root, proof, root
from proofs.statement import Header, StatementBody, body_hash, digest

CHAIN_A, CHAIN_B, CHAIN_S = "eip155:31337", "eip155:31338", "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z"
DESTINATIONS = (CHAIN_A, CHAIN_S)
DEPLOYMENT_ID = keccak256(b"a deployment for tests")
CUT_TIME = 1_800_000_000
LIFETIME = 120
USDC = f"{CHAIN_A}/erc20:0x{'a0' * 20}"
ETH = f"{CHAIN_B}/slip44:60"


def account_id(name: str) -> str:
    return "0x" + keccak256(name.encode()).hex()


def make_account(name: str, *, kind: str = "risk-bearing", label: str | None = None) -> Account:
    controller = f"{CHAIN_A}:0x{keccak256(b'controller ' + name.encode())[:20].hex()}"
    return Account(account_id(name), controller, kind, CHAIN_A, name if label is None else label)  # type: ignore[arg-type]


def destination_id(chain: str) -> str:
    return "0x" + keccak256(chain.encode("ascii")).hex()


def make_component(account: str, *, side: str = "asset", amount: int = 10_000 * 10**6, **changes: object) -> Component:
    position = Position(
        account=account,
        chain=CHAIN_A if side == "asset" else CHAIN_B,
        venue="vault" if side == "asset" else "lender",
        asset=USDC,
        quantity=amount,
        unit=USDC,
        amount=amount,
        side=side,  # type: ignore[arg-type]
        control="seizable" if side == "asset" else "none",
        removal_delay=3600,
        pending=amount // 10 if side == "asset" else 0,
    )
    component = Component(
        position=position,
        symbol="USDC",
        unit_symbol="USDC",
        decimals=6,
        feed="USDC/USD",
        price_low=0.9991,
        price_mid=0.1 + 0.9,
        price_high=1.0009000000000001,
        price_initial=0.9991,
        horizon=1234.5,
        age=14,
        initial=Haircuts(0.0123456789012345678, 0.001, 1e-4, 0.02),
        maintenance=Haircuts(1 / 3, 0.0005, 5e-324, 0.01),
        liability_weight_initial=1.0,
        liability_weight_maintenance=1.0,
        value=amount * 100,
        counted_initial=amount * 87,
        counted_maintenance=amount * 97,
        reason="seizable in the vault; 10% is under a withdrawal request and counts 0 for initial margin",
    )
    return component._replace(**changes)


def make_margin(
    account: str,
    epoch: int,
    *,
    status: Status = "healthy",
    flags: Flag = Flag(0),  # noqa: B008 - an immutable value
    components: tuple[Component, ...] | None = None,
    equity: int = 4_999_12345678,
    budget: int = 2_345_67000000,
    health: tuple[float | None, float | None, float | None] = (1.9091, 1.9412, 1.9733),
    as_of: int = CUT_TIME - 14,
    cut_time: int = CUT_TIME,
) -> AccountMargin:
    if components is None:
        components = (
            make_component(account),
            make_component(account, side="debt", amount=5_000 * 10**6, reason="drawn at the lender; recourse debt"),
        )
    leaves = tuple(
        LeafValues(
            account=account,
            destination=destination_id(chain),
            epoch=epoch,
            equity=equity,
            assets_initial=8_700_00000000,
            requirement_initial=5_000_00000000,
            assets_maintenance=9_700_00000000,
            requirement_maintenance=5_000_00000000,
            budget=budget if chain == CHAIN_A else 0,
            as_of=as_of,
            valid_until=cut_time + LIFETIME,
            flags=int(flags),
        )
        for chain in sorted(DESTINATIONS, key=destination_id)
    )
    return AccountMargin(
        account=account,
        status=status,
        flags=flags,
        equity=equity,
        free_collateral=3_700_00000000,
        maintenance_excess=Interval(4_500_00000000, 4_700_00000000, 4_900_00000000),
        health=health,
        as_of=as_of,
        components=components,
        leaves=leaves,
        findings=(Finding("withdrawal-pending", USDC, "1,000 USDC is under a withdrawal request"),),
    )


def leaf_hash(values: LeafValues) -> bytes:
    account, destination = bytes.fromhex(values.account[2:]), bytes.fromhex(values.destination[2:])
    return hash_leaf(Leaf(account, destination, *values[2:]))


def make_path(record: EpochRecord, i: int) -> tuple[bytes, ...]:
    return proof([leaf_hash(values) for values in record.leaves], i)


BANDS = [
    {
        "feed": "ETH/USD",
        "low": "2987.5",
        "mid": "3000.25",
        "high": "3011.125",
        "known": True,
        "present": 2,
        "configured": 2,
        "opens_risk": True,
        "detail": "",
    },
    {
        "feed": "USDC/USD",
        "low": "0",
        "mid": "1",
        "high": "Infinity",
        "known": False,
        "present": 1,
        "configured": 2,
        "opens_risk": False,
        "detail": "chainlink-usdc: 4000 s old, at most 3600 s allowed",
    },
]


def make_record(
    epoch: int,
    margins: tuple[AccountMargin, ...],
    *,
    certified: bool = True,
    cut_time: int = CUT_TIME,
    previous: bytes = bytes(32),
    refusals: tuple[tuple[str, str], ...] = (("attestor-3", "leaf 0: equity 1 above own 0"),),
) -> EpochRecord:
    margins = tuple(sorted(margins, key=lambda m: m.account))
    leaves = tuple(leaf for margin in margins for leaf in margin.leaves)
    hashes = [leaf_hash(leaf) for leaf in leaves]
    entries = [
        accounts_entry(bytes.fromhex(leaf.account[2:]), bytes.fromhex(leaf.destination[2:]), hashed)
        for leaf, hashed in zip(leaves, hashes, strict=True)
    ]
    preimages = {
        "cut": json.dumps({"epoch": epoch, "cut_time": cut_time}),
        "prices": json.dumps({"updates": ["0x504e4155"], "epoch": epoch}),
        "policy": json.dumps({"version": "devnet-1"}),
        "risk": json.dumps({"bands": BANDS, "cells": []}),
        "state": json.dumps({"accounts": [margin.account for margin in margins]}),
    }
    body = StatementBody(
        cut_digest=keccak256(preimages["cut"].encode()),
        price_digest=keccak256(preimages["prices"].encode()),
        policy_digest=keccak256(preimages["policy"].encode()),
        risk_digest=keccak256(preimages["risk"].encode()),
        state_digest=keccak256(preimages["state"].encode()),
        accounts_root=accounts_root(entries),
        leaf_count=len(leaves),
        previous=previous,
    )
    header = Header(
        epoch=epoch,
        root=root(hashes) if hashes else keccak256(b"nothing"),
        floor=1,
        set_id=1,
        produced_at=cut_time + 2,
        valid_until=cut_time + LIFETIME,
        body=body_hash(body),
    )
    attestations = tuple(
        Attestation(i, keccak256(b"r%d" % i), keccak256(b"vs%d" % i)) for i in (0, 1, 2) if certified
    )
    return EpochRecord(
        header=header,
        body=body,
        digest=digest(header, DEPLOYMENT_ID),
        cut_time=cut_time,
        attestations=attestations,
        refusals=refusals,
        chains=(
            ChainView(CHAIN_A, "ok", "", Block(CHAIN_A, 120, "0x" + "11" * 32, "0x" + "10" * 32, cut_time - 14), 14),
            ChainView(CHAIN_B, "stale", "node refused the connection", None, 0),
            ChainView(CHAIN_S, "ok", "", Block(CHAIN_S, 2**40, "5" * 44, "4" * 44, cut_time - 3), 3),
        ),
        findings=(Finding("chain-stale", CHAIN_B, "last block is 900 s old, at most 600 s allowed"),),
        margins=margins,
        leaves=leaves,
        preimages=preimages,
    )


def make_reading(chain: str, height: int) -> Reading:
    position = make_component(account_id("alice")).position
    huge = position._replace(quantity=2**256 - 1, amount=2**256 - 1, pending=2**53 + 1)
    return Reading(
        Block(chain, height, f"0x{height:064x}", f"0x{height - 1:064x}", CUT_TIME),
        (position, huge),
        (Finding("read-twice", chain, "a finding"),),
    )


UNKNOWN_PRICE = {"price_low": 0.0, "price_high": math.inf, "price_initial": 0.0}
