"""Epoch records made up for tests of the store and the API: right in shape and hashes, with numbers chosen to hurt.

Prices, haircuts and quantities are not a valuation's output; what they must survive is storage and display.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from aggregator.api import ApiService
from aggregator.domain.certificate import Attestation, EpochRecord, LinkRecord, Posting, Refusal
from aggregator.domain.latency import LatencyReport, Leg
from aggregator.domain.report import AccountMargin, Component, Flag, Haircuts, Interval, LeafValues, Status
from aggregator.domain.rows import AssetRow, ChainRow, DeploymentRow, DestinationRow, SourceRow
from aggregator.domain.snapshot import Account, Block, ChainView, Finding, Position, Reading
from aggregator.ports import Store
from aggregator.service.accounts import AccountBook
from aggregator.service.latency import report_latency
from aggregator.store.halts import SqlHalts
from aggregator.store.latencies import SqlLatencies
from aggregator.store.sql import SqlStore
from proofs.hashing import keccak256
from proofs.leaf import Leaf, hash_leaf
from proofs.merkle import accounts_entry, accounts_root, proof, root
from proofs.statement import Deployment, Header, StatementBody, body_hash, digest

CHAIN_A, CHAIN_B, CHAIN_S = "eip155:31337", "eip155:31338", "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z"
DESTINATIONS = (CHAIN_A, CHAIN_S)
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


def deployment_id() -> bytes:
    row = make_rows()["deployment"]
    members = tuple(bytes.fromhex(member[2:]) for member in row.members)
    return Deployment(3, members, row.threshold, row.not_after, bytes.fromhex(row.salt[2:])).deployment_id()


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
        "low": 2987.5,
        "mid": 3000.25,
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
    attestations = tuple(Attestation(i, keccak256(b"r%d" % i), keccak256(b"vs%d" % i)) for i in (0, 1, 2) if certified)
    return EpochRecord(
        header=header,
        body=body,
        digest=digest(header, deployment_id()),
        cut_time=cut_time,
        attestations=attestations,
        refusals=tuple(Refusal(*refusal) for refusal in refusals),
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


SECRET = "key-that-must-not-leave"
MEMBERS = tuple("0x" + keccak256(b"attestor %d" % i)[:20].hex() for i in range(4))


def make_rows() -> dict[str, Any]:
    """Return configuration rows whose RPC URLs carry a secret."""
    hold = ({"typical": 60},)

    def chain(id_: str, name: str, family: str, depth: int) -> ChainRow:
        rpc = (f"https://node/{SECRET}",)
        row = {"id": id_, "name": name, "family": family, "rpc": rpc, "genesis": "0x00", "finality": {"depth": depth}}
        return ChainRow.model_validate({**row, "block_seconds": 1.0, "max_age": 600, "hold": hold})

    def destination(chain_id: str, kind: str, address: str) -> DestinationRow:
        row = {"chain": chain_id, "kind": kind, "address": address, "clock_bound": 5, "payer_key": "relayer"}
        return DestinationRow.model_validate(row)

    return {
        "chains": (
            chain(CHAIN_A, "Anvil A", "evm", 12),
            chain(CHAIN_B, "Anvil B", "evm", 0),
            chain(CHAIN_S, "Solana local", "solana", 0),
        ),
        "assets": (
            AssetRow(id=USDC, symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="stable"),
            AssetRow(id=ETH, symbol="ETH", kind="native", decimals=18, feed="ETH/USD", policy="major"),
        ),
        "sources": (
            SourceRow(name="pyth-eth", feed="ETH/USD", kind="pyth", id="ff" * 32),
            SourceRow(name="chainlink-eth", feed="ETH/USD", kind="chainlink", id=f"{CHAIN_A}:0x{'0c' * 20}"),
        ),
        "destinations": (
            destination(CHAIN_A, "evm-registry", "0x" + "5f" * 20),
            destination(CHAIN_S, "solana-registry", "Reg1stry" + "1" * 36),
        ),
        "deployment": DeploymentRow(
            network_class=3, members=MEMBERS, threshold=3, not_after=CUT_TIME + 86_400, salt="0x" + "07" * 32
        ),
    }


class StandingClock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.time = CUT_TIME + 20.5

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class TrustingAccounts(AccountBook):
    """Accounts whose links' signatures nobody checks; everything else is as it is."""

    def __init__(self, store: Store, clock: StandingClock, rows: dict[str, Any]) -> None:
        chains, destinations = [row.id for row in rows["chains"]], [row.chain for row in rows["destinations"]]
        super().__init__(store, clock, bytes(32), chains, destinations)
        self.store = store

    async def open_account(self, controller: str, salt: str, kind: str, home: str | None, label: str) -> Account:
        id_ = "0x" + keccak256((controller + salt).encode()).hex()
        account = Account(id_, controller, kind, home or CHAIN_A, label)  # type: ignore[arg-type]
        await self.store.add_account(account, bytes.fromhex(salt[2:]))
        return account

    async def add_link(
        self,
        account: str,
        controller: str,
        member: str,
        nonce: int,
        expiry: int,
        invite_signature: str,
        accept_signature: str,
    ) -> LinkRecord:
        record = LinkRecord(
            -1, account, controller, member, nonce, expiry, invite_signature, accept_signature, CUT_TIME
        )
        return await self.store.append_link(record)


@dataclass
class World:
    """A service and what stands behind it."""

    service: ApiService
    store: Store
    clock: StandingClock
    reasons: list[Finding]


def make_records() -> dict[int, EpochRecord]:
    """Make epochs 1 to 3, of which 3 has no quorum: alice is healthy, bob watched, carol in trouble."""
    alice, bob, carol = make_account("alice"), make_account("bob", kind="monitored"), make_account("carol")

    def margins(epoch: int) -> tuple[AccountMargin, ...]:
        debt = make_component(carol.id, side="debt", amount=9_000 * 10**6, reason="drawn at the lender")
        idle = make_component(
            carol.id, reason="not seizable: counts 0", counted_initial=0, counted_maintenance=0, **UNKNOWN_PRICE
        )
        return (
            make_margin(alice.id, epoch),
            make_margin(bob.id, epoch, flags=Flag.MONITORED, budget=0, health=(None, None, None), status="unknown"),
            make_margin(
                carol.id,
                epoch,
                status="unhealthy",
                flags=Flag.STALE | Flag.PARTIAL,
                components=(idle, debt),
                health=(0.9349, 0.9998, 1.0412),
                equity=-1_234_56000000,
            ),
        )

    return {
        number: make_record(
            number,
            margins(number),
            certified=number != 3,
            refusals=(("attestor-3", "no answer"), ("attestor-1", "leaf 0: equity above own")) if number == 3 else (),
        )
        for number in (1, 2, 3)
    }


async def fill(store: Store) -> None:
    """Store the accounts, one link, the epochs of ``make_records`` and three postings."""
    alice, bob, carol = make_account("alice"), make_account("bob", kind="monitored"), make_account("carol")
    for i, account in enumerate((alice, bob, carol)):
        await store.add_account(account, bytes([i]) * 32)
    member = f"{CHAIN_A}:0x{'22' * 20}"
    signatures = ("0x" + "aa" * 65, "0x" + "bb" * 65)
    await store.append_link(LinkRecord(0, alice.id, alice.controller, member, 1, 2**64 - 1, *signatures, CUT_TIME))
    for record in make_records().values():
        await store.save_epoch(record)
    await store.save_posting(Posting(1, CHAIN_A, "final", "0x" + "f1" * 32, 48_211, "", CUT_TIME))
    await store.save_posting(Posting(2, CHAIN_A, "submitted", "0x" + "f2" * 32, 0, "", CUT_TIME + 5))
    await store.save_posting(Posting(2, CHAIN_S, "failed", "", 0, "payer has 0 lamports", CUT_TIME + 5))


async def make_bundle(record: EpochRecord, account: str) -> str:
    return json.dumps({"epoch": record.header.epoch, "account": account})


def make_world(store: SqlStore) -> World:
    """Build a service over a store that ``fill`` filled."""
    clock, reasons, rows = StandingClock(), list[Finding](), make_rows()

    async def latency(seconds: int, chain: str | None = None, leg: Leg | None = None) -> LatencyReport:
        return await report_latency(
            SqlLatencies(store),
            rows["chains"],
            rows["destinations"],
            now=clock.now(),
            epsilon=1e-4,
            seconds=seconds,
            chain=chain,
            leg=leg,
        )

    service = ApiService(
        store=store,
        accounts=TrustingAccounts(store, clock, rows),
        halts=SqlHalts(store),
        latency=latency,
        clock=clock,
        bundle=make_bundle,
        proof=make_path,
        readiness=lambda: reasons,
        **rows,
    )
    return World(service, store, clock, reasons)


UNKNOWN_PRICE: dict[str, Any] = {"price_low": 0.0, "price_high": math.inf, "price_initial": 0.0}
