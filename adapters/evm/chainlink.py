"""Chainlink aggregators: ``latestRoundData()`` and ``decimals()`` at the pinned block.

``answeredInRound`` is deprecated and ignored; an answer at a configured bound is the fusion's business.
Source: Chainlink AggregatorV3Interface.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from adapters.evm.abi import Answer, Call, decode_uint, selector
from aggregator.domain.price import Quote
from aggregator.domain.rows import SourceRow

LATEST_ROUND_DATA = selector("latestRoundData()")
DECIMALS = selector("decimals()")


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
