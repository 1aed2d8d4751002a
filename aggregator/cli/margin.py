"""``crossmargin margin`` and ``explain``: one account, every number explained."""

from __future__ import annotations

import json
import time
from pathlib import Path
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
from aggregator.cli.plot import COLOURS, figure, save
from aggregator.config import Settings
from aggregator.domain.certificate import EpochRecord
from aggregator.domain.errors import UnknownError
from aggregator.domain.report import AccountMargin, Component, ContractPart, Flag, contract_text
from aggregator.domain.snapshot import Account
from aggregator.domain.units import USD, format_amount, format_usd

EpochOption = Annotated[int | None, typer.Option(help="Epoch number; default: the newest certified.")]


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
        "requirement": {k: str(v) for k, v in margin.requirement._asdict().items()},
        "model": margin.model,
        "binding": margin.binding,
        "hedged": dict(zip(("initial", "maintenance"), margin.hedged, strict=True)),
        "layers": [_money(step._asdict(), "initial", "maintenance") for step in margin.layers],
        "greeks": [_money(x._asdict(), "requirement_initial", "requirement_maintenance") for x in margin.greeks],
        "settlements": [_money(s._asdict(), *_SETTLED) for s in margin.settlements],
    }  # fmt: skip


_SETTLED = ("net", "low_initial", "low_maintenance", "gain_initial", "gain_maintenance", "loss_initial",
            "loss_maintenance")  # fmt: skip


def _money(document: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return JSON with the named amounts as text: they may be larger than a reader's numbers."""
    return document | {name: str(document[name]) for name in names}


def _component_json(c: Component) -> dict[str, Any]:
    document = c._asdict()
    document["position"] = {
        k: str(v) if k in ("quantity", "amount", "pending") else v for k, v in c.position._asdict().items()
    }
    document["position"]["contract"] = _money(c.position.contract._asdict(), "strike", "entry", "funding")
    document["initial"], document["maintenance"] = c.initial._asdict(), c.maintenance._asdict()
    document["explained_initial"] = c.explained_initial._asdict()
    document["explained_maintenance"] = c.explained_maintenance._asdict()
    if c.contract is not None:
        parts = {k: [str(x) for x in getattr(c.contract, k)] for k in ("gain", "loss", "requirement")}
        document["contract"] = _money(c.contract._asdict(), "value") | parts | {"text": contract_text(c.position)}
    for key in ("value", "counted_initial", "counted_maintenance"):
        document[key] = str(document[key])
    return document


async def _fetch(
    account: str, epoch: int | None, config: Path | None
) -> tuple[Settings, Account, EpochRecord, AccountMargin]:
    async with opened(config) as (settings, store):
        found = await store.account(account)
        answer = await store.margin(found.id, epoch)
        if answer is None:
            raise UnknownError(
                "epoch", str(epoch) if epoch is not None else "newest", "none certified has this account"
            )
        return settings, found, *answer


@app.command()
def margin(
    account: AccountArgument,
    epoch: EpochOption = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Explain one account's margin: every position, price, haircut and what it counts."""

    async def work() -> None:
        settings, found, record, explained = await _fetch(account, epoch, config)
        now = int(time.time())
        if json_output:
            print_json(margin_json(explained, record.header.epoch, record.header.valid_until, now))
            return
        _print_margin(settings, found.label or found.id, found.kind, explained, record.header, now)

    run_async(work)


@app.command()
def explain(
    account: AccountArgument,
    epoch: EpochOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the walk from equity to free collateral into this .png or .svg file.")
    ] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Explain one account in full: the walk from equity to free collateral by layer of risk, greeks, and the policy."""

    async def work() -> None:
        settings, found, record, explained = await _fetch(account, epoch, config)
        name, now = found.label or found.id, int(time.time())
        if plot is not None:
            save(_draw_walk(name, record.header.epoch, explained), plot)
        if json_output:
            document = margin_json(explained, record.header.epoch, record.header.valid_until, now)
            print_json(document | {"policy": _policy_of(record)})
            return
        _print_margin(settings, name, found.kind, explained, record.header, now)
        _print_explained(explained, record)
        if plot is not None:
            out.print(f"walk drawn: {plot}")

    run_async(work)


def _policy_of(record: EpochRecord) -> dict[str, Any]:
    """Return the name of the policy that an epoch was valued by, where it is still kept, and its digest."""
    text = record.preimages.get("policy")
    version = json.loads(text)["policy"]["version"] if text else None
    return {"version": version, "digest": "0x" + record.body.policy_digest.hex()}


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
    if m.model:
        hedged = ", ".join(k for k, h in zip(("IM", "MM"), m.hedged, strict=True) if h)
        out.print(
            f"contracts require IM {format_usd(m.requirement.initial)}, MM {format_usd(m.requirement.maintenance)} "
            f"({m.model} model{', worst at ' + m.binding if m.binding else ''}"
            f"{'; collateral hedges at ' + hedged if hedged else ''})",
            soft_wrap=True,
        )
    names = {c.id: c.name for c in settings.chains}
    for i, c in enumerate(m.components, start=1):
        chain = names.get(c.position.chain, c.position.chain)
        if c.contract is not None:
            _print_contract(i, chain, c, c.contract)
        else:
            _print_component(i, chain, c)
    for s in m.settlements:
        counted = s.gain_initial - s.loss_initial, s.gain_maintenance - s.loss_maintenance
        out.print(
            f"\n    {names.get(s.chain, s.chain)} {s.venue}: contracts net {format_usd(s.net)} in {s.unit_symbol}, "
            f"at worse prices IM {format_usd(s.low_initial)} MM {format_usd(s.low_maintenance)}; counted "
            f"IM {format_usd(counted[0])} MM {format_usd(counted[1])}",
            soft_wrap=True,
        )
        out.print(Text(f"    {s.reason}", style="dim"))
    if m.layers:
        _print_walk(m)
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


def _print_contract(number: int, chain: str, c: Component, part: ContractPart) -> None:
    """Print one perp or option: its mark and value, how it moves, and what it counts."""
    out.print(
        Text.assemble(
            f"\n{number:>2}  ", (contract_text(c.position), "bold"), f"  {chain} {c.position.venue}",
            f"  mark {part.mark:,.2f}  value {format_usd(part.value)}  delta {part.delta:,.4g}",
            f"  vol {part.volatility:.1%}" if part.volatility else "", f"  age {c.age} s",
        ),
        soft_wrap=True,
    )  # fmt: skip
    for level, i, counted in (("IM", 0, c.counted_initial), ("MM", 1, c.counted_maintenance)):
        out.print(
            f"    {level}  of the settlement {format_usd(part.gain[i] - part.loss[i])}, share of the requirement "
            f"{format_usd(part.requirement[i])}: counts {format_usd(counted)}",
            soft_wrap=True,
        )
    out.print(Text(f"    {c.reason}", style="dim"))


def _print_walk(m: AccountMargin) -> None:
    """Print by which layers of risk equity becomes free collateral and maintenance excess."""
    walk = table("\nFrom equity to what is left, USD", "layer", ">initial", ">maintenance")
    walk.add_row("equity, at mid prices", *2 * (format_usd(m.equity),))
    for step in m.layers:
        if step.layer == "rounding" and abs(step.initial) + abs(step.maintenance) < USD // 100:
            continue
        walk.add_row(step.layer, format_usd(step.initial), format_usd(step.maintenance))
    walk.add_row(
        Text("free collateral | maintenance excess", style="bold"),
        format_usd(m.free_collateral),
        format_usd(m.maintenance_excess.low),
    )
    out.print(walk)


def _print_explained(m: AccountMargin, record: EpochRecord) -> None:
    """Print what ``explain`` tells beyond ``margin``."""
    if assets := [c for c in m.components if c.contract is None and c.position.side == "asset"]:
        names = [name for name in assets[0].explained_initial._fields if name != "zeros"]
        shares = table(
            "\nWhat haircuts are made of, on log(1−h)", "asset", "", ">kept", *(f">{n}" for n in names), "not at all"
        )
        for c in assets:
            for level, cut, part in (
                ("IM", c.initial, c.explained_initial),
                ("MM", c.maintenance, c.explained_maintenance),
            ):
                kept = (1 - cut.market) * (1 - cut.liquidity) * (1 - cut.exit) * (1 - cut.policy)
                cells = (f"{getattr(part, name):.1%}" for name in names)
                shares.add_row(c.symbol if level == "IM" else "", level, f"{kept:.4%}", *cells, ", ".join(part.zeros))
        out.print(shares)
    if m.greeks:
        greeks = table(
            "\nGreeks of the contracts", "underlying", ">spot", ">range", ">delta", ">gamma", ">vega per 1%",
            ">theta per day", ">rho per 1%", ">hedge", ">hedge IM", ">hedge MM",
        )  # fmt: skip
        for x in m.greeks:
            greeks.add_row(
                x.underlying, f"{x.spot:,.2f}", f"±{x.range:.1%}", f"{x.delta:,.4g}", f"{x.gamma:,.4g}",
                f"{x.vega / 100:,.2f}", f"{x.theta / 365:,.2f}", f"{x.rho / 100:,.2f}", f"{x.hedge:,.4g}",
                format_usd(x.requirement_initial), format_usd(x.requirement_maintenance),
            )  # fmt: skip
        out.print(greeks)
    policy = _policy_of(record)
    out.print(f"\npolicy {policy['version'] or '(text pruned)'}, digest {policy['digest']}", soft_wrap=True)


def _draw_walk(name: str, epoch: int, m: AccountMargin) -> Any:
    """Return a waterfall from equity to free collateral, with the walk to maintenance excess beside it."""
    drawn, axes = figure(f"{name}, epoch {epoch}: from equity to free collateral", "", "USD")
    steps = [step for step in m.layers if step.layer != "rounding"]
    labels = ["equity", *(step.layer for step in steps), "left"]
    for place, (level, left) in enumerate((("initial", m.free_collateral), ("maintenance", m.maintenance_excess.low))):
        base = m.equity / USD
        bottoms, heights = [0.0], [base]
        for step in steps:
            change = getattr(step, level) / USD
            bottoms.append(base)
            heights.append(change)
            base += change
        bottoms.append(0.0)
        heights.append(left / USD)
        where = [i + 0.4 * (place - 0.5) for i in range(len(labels))]
        axes.bar(where, heights, 0.38, bottom=bottoms, color=COLOURS[place], label=level)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right")
    axes.axhline(0.0, color="#24292f", linewidth=0.8)
    axes.legend(frameon=False)
    return drawn
