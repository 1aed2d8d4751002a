"""``crossmargin margin`` and ``explain``: one account, every number explained."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

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
from aggregator.cli.plot import COLOURS, panels, save
from aggregator.domain.budgets import PARTS
from aggregator.domain.errors import UnknownError
from aggregator.domain.report import (
    LAYER_MEANINGS,
    AccountMargin,
    Component,
    ContractPart,
    Flag,
    Settlement,
    contract_text,
)
from aggregator.domain.snapshot import Account
from aggregator.domain.units import USD, format_amount, format_usd
from proofs.hashing import keccak256

if TYPE_CHECKING:
    from aggregator.config import Settings
    from aggregator.domain.certificate import EpochRecord

T = TypeVar("T")

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
        "hedged": _levels(margin.hedged),
        "layers": [_money(step._asdict(), "initial", "maintenance") for step in margin.layers],
        "greeks": [_money(x._asdict(), "requirement_initial", "requirement_maintenance") for x in margin.greeks],
        "settlements": [
            _money(s._asdict(), *_SETTLED)
            | {"initial": s.initial._asdict(), "maintenance": s.maintenance._asdict()}
            for s in margin.settlements
        ],
        "budgets": [_money(b._asdict(), *_BUDGET) for b in margin.budgets],
        "free_before_draws": str(margin.free_before_draws),
    }  # fmt: skip


_BUDGET = ("budget", "used", "outstanding", "debts", "charge", "unexplained_initial", "unexplained_maintenance")


_SETTLED = ("net", "low_initial", "low_maintenance", "gain_initial", "gain_maintenance", "loss_initial",
            "loss_maintenance")  # fmt: skip


def _money(document: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return JSON with the named amounts as text: they may be larger than a reader's numbers."""
    return document | {name: str(document[name]) for name in names}


def _levels(pair: Iterable[T]) -> dict[str, T]:
    """Return an initial and a maintenance value by name."""
    return dict(zip(("initial", "maintenance"), pair, strict=True))


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
        document["contract"] = (
            {"text": contract_text(c.position), "side": "long" if c.position.side == "asset" else "short"}
            | _money(c.contract._asdict(), "value")
            | {k: _levels(map(str, getattr(c.contract, k))) for k in ("gain", "loss", "requirement", "worst")}
            | {k: _levels(getattr(c.contract, k)) for k in ("price", "bound")}
        )
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
        _print_margin(settings, found, explained, record.header, now)

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
        _print_margin(settings, found, explained, record.header, now)
        _print_explained(explained, record)
        if plot is not None:
            out.print(f"walk drawn: {plot}")

    run_async(work)


def _policy_of(record: EpochRecord) -> dict[str, Any]:
    """Return by which policy an epoch was valued.

    Version and digest of the document are those that ``crossmargin policy`` tells, None where its text is pruned; the
    statement's digest commits to all that decides a number.
    """
    text = record.preimages.get("policy")
    committed = json.loads(text) if text else {}
    return {
        "version": committed.get("policy", {}).get("version"),
        "document_digest": committed.get("document"),
        "statement_digest": "0x" + record.body.policy_digest.hex(),
    }


def _print_margin(settings: Settings, account: Account, m: AccountMargin, header: Any, now: int) -> None:
    name, kind = account.label or account.id, account.kind
    stale = now >= header.valid_until or bool(m.flags & Flag.STALE)
    own = "0x" + keccak256(account.home.encode()).hex()
    home = max(m.leaves, key=lambda leaf: (leaf.destination == own, leaf.budget))
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
    weighed = table(
        "", "", ">W⁺, assets after haircuts", ">W⁻, required", *([">of it for contracts"] if m.model else [])
    )
    for level, assets, owed, required in (
        ("IM", home.assets_initial, home.requirement_initial, m.requirement.initial),
        ("MM", home.assets_maintenance, home.requirement_maintenance, m.requirement.maintenance),
    ):
        weighed.add_row(level, *map(format_usd, (assets, owed, required) if m.model else (assets, owed)))
    out.print(weighed)
    if m.model:
        hedged = ", ".join(k for k, h in zip(("IM", "MM"), m.hedged, strict=True) if h)
        out.print(
            f"contracts require IM {format_usd(m.requirement.initial)}, MM {format_usd(m.requirement.maintenance)}, "
            f"within W⁻ ({m.model} model{', worst at ' + m.binding if m.binding else ''}"
            f"{'; collateral hedges at ' + hedged if hedged else ''})",
            soft_wrap=True,
        )
    names = {c.id: c.name for c in settings.chains}
    _print_budgets(m, names, stale)
    for i, c in enumerate(m.components, start=1):
        chain = names.get(c.position.chain, c.position.chain)
        if c.contract is not None:
            _print_contract(i, chain, c, c.contract)
        else:
            _print_component(i, chain, c)
    for s in m.settlements:
        _print_settlement(names.get(s.chain, s.chain), s)
    if m.layers:
        _print_walk(m)
    for f in m.findings:
        out.print(f"{f.code}: {f.detail}")


def _print_budgets(m: AccountMargin, names: dict[str, str], stale: bool) -> None:
    """Print what may be drawn where and what stands against it, if anything was drawn or is shared out."""
    if not any(b.charge or (b.share and b.share != PARTS) for b in m.budgets):
        return
    shown = table(
        f"of free collateral before draws {format_usd(m.free_before_draws)} USD", "destination", ">share", ">budget",
        ">drawn", ">still usable from before", ">consumers are owed", ">charged",
    )  # fmt: skip
    for b in m.budgets:
        shown.add_row(
            names.get(b.destination, b.destination), f"{b.share / 100:g}%", format_usd(0 if stale else b.budget),
            *map(format_usd, (b.used, b.outstanding, b.debts, b.charge)),
        )  # fmt: skip
    out.print(shown)
    for b in m.budgets:
        if b.unexplained_initial or b.unexplained_maintenance:
            out.print(
                f"drawn at {names.get(b.destination, b.destination)} that no venue explains: counts as owed, "
                f"IM {format_usd(b.unexplained_initial)}, MM {format_usd(b.unexplained_maintenance)}",
                soft_wrap=True,
            )


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
    out.print(Text(f"    {c.reason}", style="dim"), soft_wrap=True)


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
    out.print(Text(f"    {c.position.asset}", style="dim"), soft_wrap=True)
    for level, i, counted in (("IM", 0, c.counted_initial), ("MM", 1, c.counted_maintenance)):
        at = f"at {_price(part.price[i])} ({part.bound[i]} bound)" if part.bound[i] else "at no known price"
        out.print(
            f"    {level}  {at} worth {format_usd(part.worst[i])}; of the settlement "
            f"{format_usd(part.gain[i] - part.loss[i])}, share of the requirement {format_usd(part.requirement[i])}: "
            f"counts {format_usd(counted)}",
            soft_wrap=True,
        )
    out.print(Text(f"    {c.reason}", style="dim"), soft_wrap=True)


def _price(value: float) -> str:
    """Return a price with as many decimals as its size deserves."""
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:,.6g}"


def _print_settlement(chain: str, s: Settlement) -> None:
    """Print what the contracts of one venue come to, for a pocket calculator like a component."""
    worse = ", ".join(
        f"{level} {format_usd(low)} USD" + (f" = {of.amount:,.8g} {s.unit_symbol}" if of.price else "")
        for level, low, of in (("IM", s.low_initial, s.initial), ("MM", s.low_maintenance, s.maintenance))
    )
    out.print(
        f"\n    {chain} {s.venue}: contracts net {format_usd(s.net)} USD at mid prices, in {s.unit_symbol}; each at "
        f"its worse price {worse}",
        soft_wrap=True,
    )
    for level, of, gain, loss in (
        ("IM", s.initial, s.gain_initial, s.loss_initial),
        ("MM", s.maintenance, s.gain_maintenance, s.loss_maintenance),
    ):
        if of.price == 0:  # stored before its factors were
            formula = f"counts {format_usd(gain - loss)}"
        elif of.amount < 0:
            formula = (
                f"owed {-of.amount:.8f} × {of.price:.8f} × (1+{of.market:.8f} market) × {of.weight:g} weight"
                f" = {format_usd(loss)}"
            )
        else:
            formula = (
                f"{of.amount:.8f} × {of.price:.8f} × (1−{of.market:.8f} market)(1−{of.policy:g} policy) × "
                f"{of.weight:g} gain weight{'' if of.share == 1 else f' × {of.share:g} share'} = {format_usd(gain)}"
            )
        out.print(f"    {level}  {formula}", soft_wrap=True)
    out.print(Text(f"    {s.reason}", style="dim"), soft_wrap=True)


def _print_walk(m: AccountMargin) -> None:
    """Print by which layers of risk equity becomes free collateral and maintenance excess."""
    walk = table("\nFrom equity to what is left, USD", "layer", ">initial", ">maintenance", "what it is")
    walk.add_row("equity, at mid prices", *2 * (format_usd(m.equity),), "")
    for step in m.layers:
        if step.layer == "rounding" and abs(step.initial) + abs(step.maintenance) < USD // 100:
            continue
        meaning = Text(LAYER_MEANINGS.get(step.layer, ""), style="dim")
        walk.add_row(step.layer, format_usd(step.initial), format_usd(step.maintenance), meaning)
    walk.add_row(
        Text("free collateral | maintenance excess", style="bold"),
        format_usd(m.free_collateral),
        format_usd(m.maintenance_excess.low),
    )
    out.print(walk)


def _print_explained(m: AccountMargin, record: EpochRecord) -> None:
    """Print what ``explain`` tells beyond ``margin``."""
    if assets := [
        (number, c)
        for number, c in enumerate(m.components, start=1)
        if c.contract is None and c.position.side == "asset"
    ]:
        names = [name for name in assets[0][1].explained_initial._fields if name != "zeros"]
        shares = table(
            "\nWhat haircuts are made of: share of each cause in what does not count, %",
            ">", "asset", "venue", "", ">haircut", *(f">{n}" for n in names), "zeroed by",
        )  # fmt: skip
        for number, c in assets:
            for level, cut, part in (
                ("IM", c.initial, c.explained_initial),
                ("MM", c.maintenance, c.explained_maintenance),
            ):
                kept = (1 - cut.market) * (1 - cut.liquidity) * (1 - cut.exit) * (1 - cut.policy)
                cells = (f"{100 * getattr(part, name):.1f}" for name in names)
                row = (str(number), c.symbol, c.position.venue) if level == "IM" else ("", "", "")
                shares.add_row(*row, level, f"{1 - kept:.4%}", *cells, ", ".join(part.zeros))
        out.print(shares)
        out.print(
            Text("Shares are of log(1−h); what is zeroed leaves them to the other causes.", style="dim"), soft_wrap=True
        )
    if m.greeks:
        greeks = table(
            "\nGreeks of the contracts", "underlying", ">spot", ">range", ">delta", ">gamma", ">vega per 1%",
            ">theta per day", ">rho per 1%", ">hedged by collateral",
        )  # fmt: skip
        for x in m.greeks:
            greeks.add_row(
                x.underlying, f"{x.spot:,.2f}", f"±{x.range:.1%}", f"{x.delta:,.4g}", f"{x.gamma:,.4g}",
                f"{x.vega / 100:,.2f}", f"{x.theta / 365:,.2f}", f"{x.rho / 100:,.2f}",
                f"{x.hedge:,.4g} {x.underlying.partition('/')[0]}",
            )  # fmt: skip
        out.print(greeks)
    policy = _policy_of(record)
    out.print(
        f"\npolicy {policy['version'] or '(text pruned)'}, policy document digest "
        f"{policy['document_digest'] or '(text pruned)'}",
        soft_wrap=True,
    )
    out.print(
        f"statement policyDigest (with chains, assets, sources and code) {policy['statement_digest']}", soft_wrap=True
    )


def _draw_walk(name: str, epoch: int, m: AccountMargin) -> Any:
    """Return the walks from equity to free collateral and to maintenance excess, side by side.

    The axes are cut to what the walk passes: from zero, equity would dwarf every layer.
    """
    drawn, axes = panels(
        f"{name}, epoch {epoch}: from equity to free collateral and maintenance excess", "USD, axis cut", 2
    )
    steps = [step for step in m.layers if step.layer != "rounding"]
    ends = (
        ("initial", "free collateral", m.free_collateral),
        ("maintenance", "maintenance excess", m.maintenance_excess.low),
    )
    for panel, (level, end, left) in zip(axes, ends, strict=True):
        changes = [getattr(step, level) for step in steps]
        marks = list(accumulate(changes, initial=m.equity))
        last = len(steps) + 1
        panel.plot(
            [x / USD for x in (marks[0], left)], [0, last], "|", color="#24292f", markersize=16, markeredgewidth=3
        )
        panel.barh(
            range(1, last),
            [change / USD for change in changes],
            0.6,
            left=[mark / USD for mark in marks[:-1]],
            color=[COLOURS[1] if change < 0 else COLOURS[2] for change in changes],
        )
        spread = (max(*marks, left) - min(*marks, left)) / USD or 1.0
        lowest, highest = min(*marks, left) / USD, max(*marks, left) / USD
        panel.set_xlim(lowest - 0.08 * spread, highest + 0.45 * spread)
        texts = [(max(a, b), b - a) for a, b in pairwise(marks)]
        for row, (at, text) in enumerate(
            [
                (m.equity, format_usd(m.equity)),
                *((at, format_usd(change).replace("-", "−")) for at, change in texts),
                (left, format_usd(left).replace("-", "−")),
            ]
        ):
            panel.text(at / USD + 0.03 * spread, row, text, va="center", fontsize=9)
        panel.set_yticks(range(last + 1), ["equity", *(step.layer for step in steps), "left"])
        panel.set_ylim(last + 0.6, -0.6)
        panel.xaxis.set_major_locator(_ticks())
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.set_title(f"{level}: to {end}", loc="left", fontsize=10)
    return drawn


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=4)
