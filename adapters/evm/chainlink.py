"""Chainlink aggregators: ``latestRoundData()`` and ``decimals()`` at the pinned block.

``answeredInRound`` is deprecated and ignored; an answer at a configured bound is the fusion's business.
A rollup's uptime feed has the same interface: answer 0 says that the sequencer is up, 1 that it is down, ``startedAt``
since when, and 0 there that the feed has not been set up.
Source: Chainlink AggregatorV3Interface; docs.chain.link, "L2 Sequencer Uptime Feeds".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import UTC, datetime

from adapters.evm.abi import Answer, Call, decode_uint, selector
from aggregator.domain.price import Quote
from aggregator.domain.rows import SequencerRow, SourceRow
from aggregator.domain.snapshot import FROZEN, Block

LATEST_ROUND_DATA = selector("latestRoundData()")
DECIMALS = selector("decimals()")
LAST_TIME = 2**40  # seconds; a time beyond is none


def quotes_flow(rows: Sequence[SourceRow]) -> Generator[Sequence[Call], Sequence[Answer], tuple[Quote, ...]]:
    """Yield two calls per feed; return the quotes that are well formed. A feed that fails is absent."""
    targets = [row.id.rpartition(":")[2].removeprefix("0x").lower() for row in rows]
    answers = yield [(t, data) for t in targets for data in (LATEST_ROUND_DATA, DECIMALS)]
    quotes: list[Quote] = []
    for i, row in enumerate(rows):
        answer, updated = decode_uint(answers[2 * i], 1), decode_uint(answers[2 * i], 3)
        decimals = decode_uint(answers[2 * i + 1])
        if answer is None or updated is None or decimals is None or decimals > 36 or not 0 < answer < 2**127:
            continue
        quotes.append(
            Quote(
                row.feed,
                row.name,
                "chainlink",
                answer,
                round(answer * row.relative_conf),
                -decimals,
                min(updated, 2**62),
            )
        )
    return tuple(quotes)


def sequencer_flow(row: SequencerRow, block: Block) -> Generator[Sequence[Call], Sequence[Answer], str]:
    """Yield one call; return why nothing on the rollup may be relied on at ``block``, "" where it may.

    A feed that does not answer, or not as such feeds do, tells nothing: that too is a cause.
    """
    (answer,) = yield [(row.feed.removeprefix("0x").lower(), LATEST_ROUND_DATA)]
    status, since = decode_uint(answer, 1), decode_uint(answer, 2)
    rule = f"it counts again {row.grace} s after it is back"
    if status is None or since is None or status > 1 or since > LAST_TIME:
        return f"{FROZEN}: the sequencer's uptime feed {row.feed} cannot be read; {rule}"
    if since == 0:
        return f"{FROZEN}: the sequencer's uptime feed {row.feed} has not been set up; {rule}"
    if status == 1:
        return f"{FROZEN}: the sequencer is down since {_utc(since)}; {rule}"
    if block.time - since <= row.grace:
        return f"{FROZEN}: the sequencer is back since {_utc(since)}; it counts again after {_utc(since + row.grace)}"
    return ""


def _utc(time: int) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
