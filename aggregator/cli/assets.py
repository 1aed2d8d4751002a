"""``crossmargin assets``: which assets and feeds can be relied on by the newest epoch, and why not."""

from __future__ import annotations

import time
from typing import Any

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    opened,
    out,
    print_json,
    run_async,
    styled,
    table,
)
from aggregator.domain.standing import judge_asset, judge_feed


@app.command()
def assets(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """List configured assets and price feeds with their status in the newest epoch, and its cause."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            record = await store.epoch(certified=False)
        now = time.time()
        names = {row.id: row.name for row in settings.chains}
        rows: list[dict[str, str]] = []
        for asset in settings.assets:
            chain = asset.id.partition("/")[0]
            standing = judge_asset(asset, settings.chain(chain), record, now)
            rows.append(
                {"id": asset.id, "symbol": asset.symbol, "chain": names.get(chain, chain), "feed": asset.feed}
                | standing._asdict()
            )
        feeds: list[dict[str, Any]] = []
        for feed in sorted({source.feed for source in settings.sources}):
            sources = [source.name for source in settings.sources if source.feed == feed]
            feeds.append({"feed": feed, "sources": sources} | judge_feed(feed, record, now)._asdict())
        if json_output:
            print_json({"epoch": record.header.epoch if record else None, "assets": rows, "feeds": feeds})
            return
        title = f"epoch {record.header.epoch}, {int(now) - record.cut_time} s ago" if record else "no epoch yet"
        shown = table(title, "asset", "chain", "feed", "status", "cause", "id")
        for listed in rows:
            cells: list[str] = [listed[name] for name in ("symbol", "chain", "feed", "status", "cause", "id")]
            shown.add_row(*cells[:3], styled(cells[3]), *cells[4:])
        out.print(shown)
        priced = table("", "feed", "status", "cause", "sources")
        for feed_row in feeds:
            named = ", ".join(feed_row["sources"])
            priced.add_row(feed_row["feed"], styled(feed_row["status"]), feed_row["cause"], named)
        out.print(priced)

    run_async(work)
