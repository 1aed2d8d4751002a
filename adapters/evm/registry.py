"""MarginRegistry: what consumers on this chain have drawn for each account.

Reads ``used(bytes32 account) -> uint256`` (USD with 8 decimals), ``latest()``, whose first word is the newest epoch
posted here, and ``newestSetId()``. Every account has a position, with nothing drawn too: it says from which epoch on a
budget can still be drawn. What cannot be read may be any debt; so may what comes with an epoch that no registry can
hold yet, as by its word no budget given so far could be drawn any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from adapters.evm.abi import Flow, decode_uint, selector, topic, word_of_hex
from aggregator.domain.budgets import Drawn, newest_postable
from aggregator.domain.snapshot import DEBT_UNREADABLE, Finding, Position, Subject

USED = selector("used(bytes32)")
LATEST = selector("latest()")
NEWEST_SET = selector("newestSetId()")
CONCERNS_ALL = frozenset({topic("Rotated(uint32,address[],uint32,uint64,uint64,bool)")})
"""First topics of the logs after which what was read of every account is out of date: another set is the newest."""

SET_LIMIT, USED_LIMIT = 2**32, 2**128


class Registry:
    """What accounts have drawn at one registry.

    Args:
        chain: CAIP-2.
        address: the registry's.
        epoch_seconds: length of an epoch.
        clock: Unix seconds, at or after the time of every block that is read.
    """

    name = "registry"
    keyed_by = "account"

    def __init__(self, chain: str, address: str, epoch_seconds: int, clock: Callable[[], float] = time.time) -> None:
        self.chain, self._epoch_seconds, self._clock = chain, epoch_seconds, clock
        self.target = address.removeprefix("0x").lower()

    @property
    def watched(self) -> frozenset[str]:
        """Contracts whose logs name whose positions changed: the registry."""
        return frozenset({f"0x{self.target}"})

    def flow(self, subjects: Sequence[Subject]) -> Flow:
        """Yield the newest epoch and set and one call per account; return a position, or a finding for each."""
        latest, newest_set, *answers = yield [
            (self.target, LATEST),
            (self.target, NEWEST_SET),
            *((self.target, USED + word_of_hex(s.account)) for s in subjects),
        ]
        origin, asset = f"0x{self.target}", f"{self.chain}/registry:0x{self.target}"
        posted, set_id = decode_uint(latest), decode_uint(newest_set)
        newest = newest_postable(self._clock(), self._epoch_seconds)
        known = posted is not None and posted <= newest and set_id is not None and 0 < set_id < SET_LIMIT
        unknown = f"latest() says epoch {posted}, the newest that can be is {newest}"
        if posted is None or posted <= newest:
            unknown = "latest() or newestSetId() failed"
        positions: list[Position] = []
        findings: list[Finding] = []
        for subject, answer in zip(subjects, answers, strict=True):
            used = decode_uint(answer)
            if not known or used is None or used >= USED_LIMIT:
                cause = f"used({subject.account}) failed" if known else unknown
                findings.append(Finding(DEBT_UNREADABLE, subject.account, f"registry {origin}: {cause}"))
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
