"""``crossmargin margin``: one account, every number explained."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import (
    STYLES,
    AccountArgument,
    ConfigOption,
    JsonOption,
    app,
    opened,
    out,
    print_json,
    run_async,
    table,
)
from aggregator.config import Settings
from aggregator.domain.errors import UnknownError
from aggregator.domain.report import AccountMargin, Component, Flag
from aggregator.domain.units import format_amount, format_usd


def fraction(value: float | None) -> str:
    """Return a health ratio as people write it."""
    return "∞" if value is None else f"{value:.4f}"


def flag_names(flags: int) -> list[str]:
    """Return the names of the bits that are set."""
    return [name.lower().replace("_", "-") for name, bit in Flag.__members__.items() if flags & bit]


def margin_json(margin: AccountMargin, epoch: int, valid_until: int, now: int) -> dict[str, Any]:
    """Return an account's margin as ``--json`` prints it."""
    stale = now >= valid_until or bool(margin.flags & Flag.STALE)
    return {
        "account": margin.account,
        "epoch": epoch,
        "as_of": margin.as_of,
        "valid_until": valid_until,
        "stale": stale,
        "usable": str(0 if stale else max(leaf.budget for leaf in margin.leaves)),
        "status": margin.status,
        "flags": flag_names(margin.flags),
        "equity": str(margin.equity),
        "free_collateral": str(margin.free_collateral),
        "maintenance_excess": {k: str(v) for k, v in margin.maintenance_excess._asdict().items()},
        "health": dict(zip(("low", "mid", "high"), margin.health, strict=True)),
        "leaves": [
            {k: str(v) if isinstance(v, int) and k not in ("epoch", "as_of", "valid_until", "flags") else v
             for k, v in leaf._asdict().items()}
            for leaf in margin.leaves
        ],
        "components": [_component_json(c) for c in margin.components],
        "findings": [f._asdict() for f in margin.findings],
    }  # fmt: skip


def _component_json(c: Component) -> dict[str, Any]:
    document = c._asdict()
    document["position"] = {
        k: str(v) if k in ("quantity", "amount", "pending") else v for k, v in c.position._asdict().items()
    }
    document["initial"], document["maintenance"] = c.initial._asdict(), c.maintenance._asdict()
    for key in ("value", "counted_initial", "counted_maintenance"):
        document[key] = str(document[key])
    return document


@app.command()
def margin(
    account: AccountArgument,
    epoch: Annotated[int | None, typer.Option(help="Epoch number; default: the newest certified.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Explain one account's margin: every position, price, haircut and what it counts."""

    async def work() -> None:
        async with opened(config) as (settings, store):
            found = await store.account(account)
            answer = await store.margin(found.id, epoch)
            if answer is None:
                raise UnknownError(
                    "epoch", str(epoch) if epoch is not None else "newest", "none certified has this account"
                )
            record, explained = answer
            now = int(time.time())
            if json_output:
                print_json(margin_json(explained, record.header.epoch, record.header.valid_until, now))
                return
            _print_margin(settings, found.label or found.id, found.kind, explained, record.header, now)

    run_async(work)


def _print_margin(settings: Settings, name: str, kind: str, m: AccountMargin, header: Any, now: int) -> None:
    stale = now >= header.valid_until or bool(m.flags & Flag.STALE)
    home = max(m.leaves, key=lambda leaf: leaf.budget)
    out.print(Text.assemble((name, "bold"), f"  {kind}  ", (m.status, STYLES[m.status]), "  ", (
        "STALE: usable 0" if stale else "", "bold yellow")))  # fmt: skip
    out.print(f"epoch {header.epoch}, as of {now - m.as_of} s ago, valid for {max(0, header.valid_until - now)} s more")
    low, mid, high = m.maintenance_excess
    facts = table("", "", ">low", ">mid", ">high")
    facts.add_row("maintenance excess, USD", format_usd(low), format_usd(mid), format_usd(high))
    facts.add_row("health (W+/W-)", *(fraction(h) for h in m.health))
    out.print(facts)
    out.print(
        f"equity {format_usd(m.equity)}   free collateral {format_usd(m.free_collateral)}   "
        f"budget {format_usd(0 if stale else home.budget)} USD (the most that may be drawn at home, in total)"
    )
    if m.flags:
        out.print("flags: " + ", ".join(flag_names(m.flags)))
    names = {c.id: c.name for c in settings.chains}
    for i, c in enumerate(m.components, start=1):
        _print_component(i, names.get(c.position.chain, c.position.chain), c)
    for f in m.findings:
        out.print(f"{f.code}: {f.detail}")


def _print_component(number: int, chain: str, c: Component) -> None:
    """Print one position so that a reader with a pocket calculator gets the same numbers."""
    p = c.position
    debt = p.side == "debt"
    held = c.symbol if p.asset == p.unit else f"{c.symbol} worth {c.unit_symbol}"
    amount, free = format_amount(p.amount, c.decimals), format_amount(p.amount - p.pending, c.decimals)
    out.print(
        Text.assemble(
            f"\n{number:>2}  ", (f"{'owes ' if debt else ''}{amount} {held}", "bold"), f"  {chain} {p.venue}",
            f"  value {format_usd(c.value)}  age {c.age} s  horizon {c.horizon:.0f} s",
        )
    )  # fmt: skip
    quantity = amount if debt else free
    for level, price, cut, weight, share, counted in (
        ("IM", c.price_initial, c.initial, c.liability_weight_initial, c.share_initial, c.counted_initial),
        ("MM", c.price_high if debt else c.price_low, c.maintenance, c.liability_weight_maintenance,
         c.share_maintenance, c.counted_maintenance),
    ):  # fmt: skip
        if debt:
            formula = f"{quantity} × {price:.8f} × (1+{cut.market:.8f} market) × {weight:g} weight"
        else:
            formula = (
                f"{quantity} × {price:.8f} × (1−{cut.market:.8f} market)(1−{cut.liquidity:.8f} liquidity)"
                f"(1−{cut.exit:g} exit)(1−{cut.policy:g} policy)"
            )
        part = "" if share == 1 else f" × {share:.8g} share"
        out.print(f"    {level}  {formula}{part} = {format_usd(counted)}", soft_wrap=True)
    out.print(Text(f"    {c.reason}", style="dim"))
