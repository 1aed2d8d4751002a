"""MarginRegistry: what consumers on this chain have drawn for each account.

Reads ``used(bytes32 account) -> uint256`` (USD with 8 decimals), ``latest()``, whose first word is the newest epoch
posted here, and ``newestSetId()``. Every account has a position, with nothing drawn too: it says from which epoch on a
budget can still be drawn. What cannot be read may be any debt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adapters.evm.abi import Flow, decode_uint, selector, topic, word_of_hex
from aggregator.domain.budgets import Drawn
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import DEBT_UNREADABLE, Finding, Position, Subject

USED = selector("used(bytes32)")
LATEST = selector("latest()")
NEWEST_SET = selector("newestSetId()")
CONCERNS_ALL = frozenset({topic("Rotated(uint32,address[],uint32,uint64,uint64,bool)")})
"""First topics of the logs after which what was read of every account is out of date: another set is the newest."""

SET_LIMIT, EPOCH_LIMIT, USED_LIMIT = 2**32, 2**64, 2**128


class Registry:
    """What accounts have drawn at one registry."""

    name = "registry"
    keyed_by = "account"

    def __init__(self, chain: str, address: str, assets: Mapping[str, AssetRow] | None = None) -> None:
        """Read the registry at ``address``; it needs no ``assets``, what it counts is dollars."""
        self.chain = chain
        self.target = address.removeprefix("0x").lower()

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the registry."""
        return frozenset({f"0x{self.target}"})

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the newest epoch and set and one call per account; return a position, or a findingfor each."""
        latest, newest_set, *answers = yield [
            (self.target, LATEST),
            (self.target, NEWEST_SET),
            *((self.target, USED + word_of_hex(s.account)) for s in subjects),
        ]
        origin, asset = f"0x{self.target}", f"{self.chain}/registry:0x{self.target}"
        posted, set_id = decode_uint(latest), decode_uint(newest_set)
        known = posted is not None and posted < EPOCH_LIMIT and set_id is not None and 0 < set_id < SET_LIMIT
        positions: list[Position] = []
        findings: list[Finding] = []
        for subject, answer in zip(subjects, answers, strict=True):
            used = decode_uint(answer)
            if not known or used is None or used >= USED_LIMIT:
                failed = f"used({subject.account})" if known else "latest() or newestSetId()"
                findings.append(Finding(DEBT_UNREADABLE, subject.account, f"{failed} failed at registry {origin}"))
                continue
            positions.append(
                Position(
                    subject.account,
                    self.chain,
                    self.name,
                    asset,
                    used,
                    asset,
                    used,
                    side="debt",
                    origin=origin,
                    drawn=Drawn(posted=posted or 0, set_id=set_id or 0),
                )
            )
        return tuple(positions), tuple(findings)
