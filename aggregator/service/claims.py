"""Grants that a proposer never heard of: whose word it takes, so that the next statement lists them.

An attestor refuses a proposal that lists less than the budgets it signed itself (``StateRules``). It may have signed
them for another proposer whose statement found no quorum: then nobody else knows them, and every proposal would be
refused until they expire. So a refusal brings them along, and the proposer believes it. That is safe whoever says it:
a grant that is listed is charged, so it only lowers what may be drawn, and a claim that nobody signed is charged for
nothing, to the account's cost alone. What has to be listed, the attestors of the quorum see to as before.

For that cost no more is believed than a quorum needs: a faulty attestor may claim fortunes. Whoever signed, or refused
for another reason, is not waited for; as many of those that claim as the threshold is short of then are believed, and
one at least: the cheapest. Whoever was believed and claims again stands behind those that were not: else one that
claims a little each time would stand before honest ones for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from aggregator.domain.budgets import Grant
from aggregator.service.attest import Quorum


class Bounds(NamedTuple):
    """What a claim can be about at all."""

    accounts: Collection[str]  # ids of those that are shared out
    destinations: Collection[str] | None  # 0x ids; None = any
    epoch: int  # that was asked for; what is of it or later was never signed before it
    after: float  # Unix seconds: what ends by then cannot be drawn any more
    until: float  # Unix seconds: no statement signed by now ends later

    def admits(self, grant: Grant) -> bool:
        """Say whether an attestor can have signed ``grant``, and whether it still matters."""
        somewhere = self.destinations is None or grant.destination in self.destinations
        known = somewhere and grant.account in self.accounts
        return known and 0 < grant.epoch < self.epoch and self.after < grant.valid_until <= self.until


class Claims:
    """What one proposer remembers of those that claimed; for as long as the process, over all its proposals."""

    def __init__(self) -> None:
        self._believed: Counter[bytes] = Counter()

    def take(self, quorum: Quorum, threshold: int, bounds: Bounds) -> tuple[Grant, ...]:
        """Return the grants to be learned after a round, none where it found its quorum.

        Args:
            threshold: signatures that the statement needed.
        """
        for member in quorum.signers:
            del self._believed[member]
        if quorum.signed >= threshold:
            return ()
        claims = _admitted(quorum.claims, bounds)
        satisfied = quorum.signed + len(quorum.refused - claims.keys())
        ordered = sorted(claims, key=lambda member: (self._believed[member], _total(claims[member]), member))
        chosen = ordered[: max(1, threshold - satisfied)]
        self._believed.update(chosen)
        return tuple(sorted({grant for member in chosen for grant in claims[member]}))


def _admitted(claims: Mapping[bytes, tuple[Grant, ...]], bounds: Bounds) -> dict[bytes, list[Grant]]:
    admitted = {member: [g for g in given if bounds.admits(g)] for member, given in claims.items()}
    return {member: given for member, given in admitted.items() if given}


def _total(claims: Collection[Grant]) -> int:
    return sum(grant.budget for grant in claims)
