"""Whether an asset or a feed can be relied on now, by the newest epoch: for those who list them, not for statements."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from aggregator.domain.certificate import EpochRecord
from aggregator.domain.rows import AssetRow, ChainRow

NO_EPOCH, NO_NEWER = "no epoch yet", "no newer epoch has read it"
_DOUBTS = ("disputed", "unreadable", "debt-unreadable", "token-2022")
"""Codes of findings about an asset, scoped to an account; their detail begins with the asset's id."""


class Standing(NamedTuple):
    """``cause`` says why it is not ok, or what is short of perfect."""

    status: Literal["ok", "unknown", "stale"]
    cause: str = ""


def judge_asset(asset: AssetRow, chain: ChainRow | None, record: EpochRecord | None, now: float) -> Standing:
    """Say whether the newest epoch could count an asset, and whether it is still the newest word.

    Args:
        chain: the asset's, as configured; None where it is not.
        now: Unix seconds.
    """
    if record is None:
        return Standing("unknown", NO_EPOCH)
    feed = judge_feed(asset.feed, record, now)
    if feed.status == "unknown":
        return feed
    for code in _DOUBTS:
        for finding in record.findings:
            if finding.code == code and finding.detail.startswith((f"{asset.id}:", f"{asset.id} ")):
                return Standing("unknown", f"{code}: {finding.detail}")
    view = next((view for view in record.chains if view.chain == asset.id.partition("/")[0]), None)
    if view is None or view.block is None:
        return Standing("stale", view.cause if view else "its chain was never read")
    if view.status != "ok":
        return Standing("stale", view.cause)
    if chain is not None and now - view.block.time > chain.max_age:
        return Standing("stale", NO_NEWER)
    return feed


def judge_feed(feed: str, record: EpochRecord | None, now: float) -> Standing:
    """Say whether the newest epoch knew a price of ``feed``, at most until its statement expires.

    Args:
        now: Unix seconds.
    """
    if record is None:
        return Standing("unknown", NO_EPOCH)
    missing = next((f for f in record.findings if (f.code, f.scope) == ("price-unknown", feed)), None)
    if missing is not None:
        return Standing("unknown", missing.detail)
    if now >= record.header.valid_until:
        return Standing("stale", NO_NEWER)
    bands = json.loads(record.preimages.get("risk", "{}")).get("bands", [])
    band = next((band for band in bands if band["feed"] == feed), None)
    if band is None:
        return Standing("ok")
    if not band["known"]:
        return Standing("unknown", band["detail"])
    short = "" if band["opens_risk"] else f"no new risk may be opened on it: {band['detail']}"
    if not short and int(band["present"]) < int(band["configured"]):
        short = f"{band['present']} of {band['configured']} sources"
    return Standing("ok", short)
