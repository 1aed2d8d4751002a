"""What one party collected, turned into a report, leaves and the digests that a statement commits to.

Coordinator and attestors go through the same workbench, each with an observer of its own, so a proposal differs from a
recomputation only in who chose the Cut and fetched the price updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aggregator.core.budgets import next_levels
from aggregator.core.commitment import Commitment, build_commitment, digest_text
from aggregator.core.latency import build_tables, hold_legs, tables_json
from aggregator.core.permits import apply_permits
from aggregator.core.pipeline import compute_report, leaves
from aggregator.core.reconcile import reconcile
from aggregator.core.tables import World, delay_nodes
from aggregator.domain.book import LARGEST_BUDGET
from aggregator.domain.budgets import Levels, levels_text
from aggregator.domain.certificate import State
from aggregator.domain.latency import LatencyTables
from aggregator.domain.policy import policy_digest
from aggregator.domain.price import Quote
from aggregator.domain.report import LeafValues, MarginReport
from aggregator.domain.rows import PythRow, Row
from aggregator.domain.snapshot import Block, ChainView, Cut, Reading, Snapshot
from aggregator.service.collect import Collected
from aggregator.service.committed import Committed
from proofs.hashing import keccak256

CODE_VERSION = "0.1.0"


def skew(chains: Sequence[ChainView]) -> int:
    """Return the seconds between the oldest and the newest block of a Cut, of the chains that are read."""
    times = [v.block.time for v in chains if v.block is not None and v.status == "ok"]
    return max(times) - min(times) if times else 0


def _texts(value: Any) -> Any:
    """Return JSON data with floats as their shortest exact text, so that its digest does not depend on a printer."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(k): _texts(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_texts(v) for v in value]
    return value


def _row(row: Row, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude=set(without))


@dataclass(frozen=True, slots=True)
class Computed:
    """A report with the digests and leaves that a statement commits to."""

    snapshot: Snapshot
    report: MarginReport
    leaves: tuple[LeafValues, ...]
    commitment: Commitment
    preimages: Mapping[str, str]  # besides those that the body commits to: ``levels``, what the statement leaves
    digests: Mapping[str, bytes]


class Workbench:
    """Turns what one observer collected into digests and leaves. Pure but for the observer it is given."""

    def __init__(self, world: World, pyth: PythRow | None, lifetime: int) -> None:
        self.world, self.lifetime = world, lifetime
        self.committed = Committed()
        self.configured = build_tables((), world.chains, world.destinations)  # what counts before anything is measured
        # URLs and keys are an operator's own; what is committed is what decides a number.
        secret = frozenset({"rpc", "ws", "prove", "timeout", "requests_per_second"})
        policy = {
            "code_version": CODE_VERSION,
            "policy": _row(world.policy),
            "document": policy_digest(world.policy),  # of the row above alone: what people compare
            "chains": [_row(c, without=secret) for c in world.chains],
            "assets": [_row(a) for _, a in sorted(world.assets.items())],
            "sources": [_row(s) for s in world.sources],
            "ratios": [_row(r) for r in world.ratios],
            "destinations": [_row(d, without=frozenset({"payer_key"})) for d in world.destinations],
            "pyth": None if pyth is None else self._guardians(pyth),
        }
        self._policy = digest_text(_texts(policy))  # once: it is long with a history of moves, and does not change

    @staticmethod
    def _guardians(pyth: PythRow) -> dict[str, Any]:
        return _row(pyth, without=frozenset({"url", "api_key"})) | {"emitter_address": "0x" + pyth.emitter_address}

    def compute(
        self,
        seen: Collected,
        quotes: Sequence[Quote],
        updates: Sequence[bytes],
        state: State,
        previous: Mapping[str, Reading],
        latency: LatencyTables = (),
        signed: Sequence[LeafValues] | None = None,
    ) -> Computed:
        """Reconcile, value and commit.

        Args:
            previous: an observer's last reading per chain.
            state: with what else decides budgets: ``rotations``, ``permits``, ``grants`` (a proposer's from its
                :class:`aggregator.ports.GrantBook`, an attestor's as proposed and checked) and ``levels`` (of the
                newest certified statement: ``Store.state`` has them).
            latency: the measured laws that the proposer chose; an attestor has compared them with its own.
            signed: an attestor's: the leaves as proposed, of which the levels left are made, as these are what grows
                next; None = one's own.
        """
        cut, accounts = seen.cut, state.accounts
        latency = latency or self.configured
        snapshot = reconcile(
            cut, seen.readings, previous, accounts, self.world.chains, cut.cut_time + self.lifetime, seen.causes
        )
        snapshot = replace(
            snapshot,
            positions=apply_permits(snapshot.positions, state.permits),
            grants=state.grants,
            set_id=max((r.to.set_id for r in state.rotations if r.to.activation_epoch <= cut.epoch), default=1),
        )
        report = compute_report(snapshot, quotes, self.world, hold_legs(latency, self.world.chains), state.levels)
        committed = leaves(report)
        left = self._left(report, state.levels, committed if signed is None else signed)
        parts = {
            "cut": digest_text(_texts(self._cut(cut, snapshot))),
            "prices": digest_text(_texts(self._prices(cut, quotes, updates))),
            "policy": self._policy,
            "risk": digest_text(_texts(self._risk(report, latency))),
            "state": self.committed.text(state, left),
        }
        preimages = {name: text for name, (text, _) in parts.items()}
        if left is not None:
            preimages["levels"] = levels_text(left)
        digests = {name: digest for name, (_, digest) in parts.items()}
        return Computed(snapshot, report, committed, build_commitment(committed), preimages, digests)

    @staticmethod
    def _cut(cut: Cut, snapshot: Snapshot) -> dict[str, Any]:
        def fields(block: Block | None) -> dict[str, Any] | None:
            return None if block is None else dict(zip(block._fields, block, strict=True))

        return {
            "epoch": cut.epoch,
            "cut_time": cut.cut_time,
            "skew": skew(snapshot.chains),
            "chains": [
                {"chain": v.chain, "status": v.status, "cause": v.cause, "age": v.age, "block": fields(v.block)}
                for v in snapshot.chains
            ],
            # Who is carried is committed by a digest: the names would outgrow everything else.
            "carried": [
                {
                    "block": fields(c.block),
                    "count": len(c.accounts),
                    "accounts": "0x" + keccak256(b"".join(bytes.fromhex(a[2:]) for a in c.accounts)).hex(),
                }
                for c in cut.carried
            ],
            "reorgs": [dict(zip(r._fields, r, strict=True)) for r in cut.reorgs],
        }

    def _prices(self, cut: Cut, quotes: Sequence[Quote], updates: Sequence[bytes]) -> dict[str, Any]:
        ids = {(s.feed, s.name): s.id for s in self.world.sources}
        return {
            "cut_time": cut.cut_time,
            "updates": ["0x" + u.hex() for u in updates],
            "quotes": [
                {
                    "feed": ids[q.feed, q.source],
                    "name": q.feed,
                    "source": q.source,
                    "kind": q.kind,
                    "price": str(q.price),
                    "conf": str(q.conf),
                    "expo": q.expo,
                    "publish_time": q.publish_time,
                    "ema_price": str(q.ema_price),
                    "ema_conf": str(q.ema_conf),
                }
                for q in sorted(quotes)
            ],
        }

    @staticmethod
    def _risk(report: MarginReport, latency: LatencyTables) -> dict[str, Any]:
        return {
            "latency": tables_json(latency),
            # Carried views come after the chains' own and have no bound of their own.
            "holds": [
                {"chain": chain, "seconds": int(seconds)}
                | dict(zip(("nodes", "chances"), delay_nodes(report.tables, c), strict=True))
                for c, (chain, seconds) in enumerate(zip(report.book.chains, report.tables.hold, strict=False))
            ],
            "bands": [dict(zip(b._fields, b, strict=True)) for b in report.prices],
            "cells": [dict(zip(c._fields, c, strict=True)) for c in report.cells],
        }

    @staticmethod
    def _left(report: MarginReport, levels: Levels, signed: Sequence[LeafValues]) -> Levels | None:
        """Return the levels that a statement with leaves ``signed`` leaves; None without growth caps."""
        if report.growth is None:
            return None
        accounts = [account.id for account in report.accounts]
        total = dict.fromkeys(accounts, 0)
        for leaf in signed:
            if leaf.budget and leaf.account in total:  # as proposed: whatever is out of range is refused beside this
                total[leaf.account] += min(max(leaf.budget, 0), LARGEST_BUDGET)
        column = np.fromiter(total.values(), dtype=np.int64, count=len(accounts))
        return next_levels(levels, report.cut_time, accounts, column, report.growth, report.book.feeds)
