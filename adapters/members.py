"""Members without a key of their own: what becomes of their assets when their chain does not confirm that they agree.

The seals of :class:`aggregator.domain.snapshot.Subject` are described in ``aggregator.service.seals``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aggregator.domain.snapshot import Finding, Position, Subject

MEMBER_UNVERIFIED = "member-unverified"
"""Code of the finding, scoped to the account."""


def withhold(
    positions: Sequence[Position], failed: Mapping[Subject, str]
) -> tuple[tuple[Position, ...], tuple[Finding, ...]]:
    """Return the positions without the assets of members that failed, and a finding for each; their debts stand.

    Args:
        failed: by sealed subject, what its chain says instead.
    """
    if not failed:
        return tuple(positions), ()
    out = {(subject.account, subject.address) for subject in failed}
    kept = tuple(p for p in positions if p.side == "debt" or (p.account, p.address) not in out)
    return kept, tuple(
        Finding(MEMBER_UNVERIFIED, subject.account, f"{subject.address}: {why}; its assets count 0, its debts stand")
        for subject, why in sorted(failed.items())
    )
