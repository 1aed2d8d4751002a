"""``crossmargin policy``: the parameter set in force, its version and digest; and how one is written."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from aggregator.cli.frame import ConfigOption, JsonOption, app, guarded, out, print_json, settings_of, table
from aggregator.cli.history import name_duration
from aggregator.config import load_policy, parse_policy
from aggregator.domain.errors import ConflictError, InputError
from aggregator.domain.policy import PolicyRow, SviRow, policy_digest


@app.command()
def policy(
    check: Annotated[Path | None, typer.Option(help="Check this document instead of the configured one.")] = None,
    write: Annotated[Path | None, typer.Option(help="Also write it, complete, to a new file.")] = None,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show the risk parameters in force, their version and digest."""

    def work() -> None:
        shown = load_policy(check) if check is not None else settings_of(config).policy
        remarks = list(remarks_on(shown))
        if write is not None:
            _write_new(write, shown)
        if json_output:
            document = shown.model_dump(mode="json")
            print_json(
                {"version": shown.version, "digest": policy_digest(shown), "remarks": remarks, "policy": document}
            )
            return
        _print(shown)
        for remark in remarks:
            out.print(Text(f"remark: {remark}", style="yellow"))
        if check is not None:
            out.print(f"{check} is valid")
        if write is not None:
            out.print(f"written to {write}")

    guarded(work)


def remarks_on(policy: PolicyRow) -> Iterator[str]:
    """Yield what is allowed and yet worth a second look."""
    for name, row in policy.assets.items():
        if not row.initial.haircut and row.initial.liability_weight == 1 and not row.volatility and not row.jumps:
            yield f"assets.{name}: is lent against itself without end: no haircut, no weight, no risk"
    for name in policy.groups:
        members = [feed for feed, row in policy.underlyings.items() if row.group == name]
        if len(members) == 1:
            yield f"groups.{name}: only {members[0]} is in it, so that nothing offsets"
    for feed, under in policy.underlyings.items():
        for svi in under.surface:
            if (k := arbitrage_of(svi)) is not None:
                yield (
                    f"underlyings.{feed}.surface: the tenor of {name_duration(svi.tenor)} has butterfly arbitrage at "
                    f"k={k:g} (negative density)"
                )
    if policy.underlyings and policy.history is None:
        yield "history: there is none, so that the scenario model has no ES term; crossmargin recalibrate makes one"


def arbitrage_of(svi: SviRow) -> float | None:
    """Return a log-moneyness with a negative density, by Durrleman's condition; None if there is none up to ±1.5.

    ``g(k) = (1 − k·w'/2w)² − (w'²/4)(1/w + 1/4) + w''/2 ≥ 0`` (Gatheral and Jacquier 2014, lemma 2.2).
    """
    for step in range(-60, 61):
        k = step / 40
        x = k - svi.m
        root = math.sqrt(x * x + svi.sigma**2)
        w = svi.a + svi.b * (svi.rho * x + root)
        slope, bend = svi.b * (svi.rho + x / root), svi.b * svi.sigma**2 / root**3
        if w <= 0 or (1 - k * slope / (2 * w)) ** 2 - slope**2 / 4 * (1 / w + 0.25) + bend / 2 < -1e-12:
            return k
    return None


def _percent(value: float) -> str:
    return f"{100 * value:.4g}"


def _print(shown: PolicyRow) -> None:
    out.print(Text.assemble("policy ", (shown.version, "bold"), f"  policy document digest {policy_digest(shown)}"))
    rules = (
        f"statements live {shown.lifetime} s; prices: p ± {shown.confidence_multiple:g}·c, staleness × "
        f"{shown.staleness_multiple:g}, at least {shown.min_sources} sources, no new risk above "
        f"{_percent(shown.max_spread)}% between the bounds; exit gate ε = {shown.exit_epsilon:g}"
    )
    out.print(rules)
    columns = (">σ %/√yr", "jumps (per year × kept)", ">ADV USD", ">impact", ">liquidation", ">α IM %", ">MM")
    assets = table("assets", "row", *columns, ">haircut IM %", ">MM", ">debt weight IM", ">MM")
    for name, row in sorted(shown.assets.items()):
        jumps = ", ".join(
            f"{j.rate:g} × {j.recovery:g}" + ("" if j.cause == "market" else f" {j.cause}") for j in row.jumps
        )
        i, m = row.initial, row.maintenance
        assets.add_row(
            name, _percent(row.volatility), jumps or "none", f"{row.daily_volume:,.0f}", f"{row.impact:g}",
            f"{row.liquidation_seconds} s", _percent(i.confidence), _percent(m.confidence), _percent(i.haircut),
            _percent(m.haircut), f"{i.liability_weight:g}", f"{m.liability_weight:g}",
        )  # fmt: skip
    out.print(assets)
    if shown.underlyings:
        figures = (">range %", "group", ">r %", ">q %", "surface", ">perps IM %", ">MM", ">imf")
        under = table("underlyings", "feed", *figures, "tiers to USD: IM/MM %")
        for feed, u in sorted(shown.underlyings.items()):
            tenors = ", ".join(name_duration(s.tenor) for s in u.surface)
            tiers = ", ".join(f"{t.up_to:.3g}: {_percent(t.initial)}/{_percent(t.maintenance)}" for t in u.tiers)
            under.add_row(
                feed, _percent(u.range), u.group or "none", _percent(u.rate), _percent(u.carry), tenors or "none",
                _percent(u.perp_initial), _percent(u.perp_maintenance), f"{u.size_factor:g}", tiers or "none",
            )  # fmt: skip
        out.print(under)
    groups = ", ".join(f"{name} λ = {row.offset:g}" for name, row in sorted(shown.groups.items()))
    s = shown.scenario
    out.print(f"offset groups: {groups or 'none'}")
    out.print(f"models: {shown.models.risk_bearing} for risk-bearing accounts, {shown.models.monitored} for monitored")
    tails = ", ".join(f"{100 * tail:+.3g}%" for tail in s.tails)
    out.print(
        f"scenarios: f IM {s.initial_factor:g} MM {s.maintenance_factor:g}, tails {tails} at κ {s.damping:g}, gains at "
        f"{_percent(s.gain_weight_initial)}% for IM"
    )
    if shown.history is not None:
        h = shown.history
        out.print(f"history: {len(h.moves)} dates of {', '.join(h.underlyings)}, ES at {_percent(h.confidence)}%")
    for p in shown.provenance:
        out.print(f"{p.target}: from {p.series}, {p.bars:,} returns, {p.missing} bars missing, sha256 {p.sha256[:18]}…")


# --- documents --------------------------------------------------------------------------------------------------------


def render_policy(policy: PolicyRow) -> str:
    """Return a policy as a TOML document that reads back as the same row."""
    head = f"# Risk parameters, version {policy.version}, digest {policy_digest(policy)}.\n"
    head += "# Written by crossmargin; every key is explained in infra/config/policy.toml.\n"
    document = policy.model_dump(mode="json", exclude_none=True)
    text = head + "\n".join(_render(document, ()))
    assert parse_policy(tomllib.loads(text)) == policy
    return text + "\n"


def _render(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    if path and (len(inner) < len(table) or not table):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in table.items():
        if key not in inner:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        yield from _render(value, (*path, key))


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("-", "").replace("_", "").isalnum() else _string(name)


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        if any(isinstance(item, list | dict) for item in value):
            return "[\n" + "".join(f"  {_value(item)},\n" for item in value) + "]"
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return repr(value)


def _write_new(path: Path, policy: PolicyRow) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(render_policy(policy))
    except FileExistsError:
        remedy = "name a new file; recalibrate --apply replaces the one in force"
        raise InputError("--write", f"{path} exists", remedy) from None
    except OSError as error:
        raise InputError("--write", f"{path} cannot be written: {error.strerror}") from None


def replace_policy(path: Path, old: PolicyRow, new: PolicyRow) -> Path:
    """Put a new policy document in the place of the old one, all or nothing; return where the old one is kept.

    The new document is complete on disk before it takes the name, and a crash leaves one of the two. The old document
    stays beside it as ``<name>-<version>.toml``.

    Args:
        path: the document in force.
        old: what it held when the new one was made.

    Raises:
        ConflictError: it holds something else by now, or somebody else is replacing it.
        InputError: the files cannot be written, or another document stands where the old one would be kept.
    """
    kept = path.with_name(f"{path.stem}-{old.version.replace('/', '_').replace(' ', '_')}{path.suffix}")
    try:
        with path.open("rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(str(path), "is being replaced by somebody else", "try again") from None
            before = held.read()
            # By name, not by handle: whoever replaced it meanwhile left this handle on the document of before.
            if path.read_bytes() != before or policy_digest(load_policy(path)) != policy_digest(old):
                problem = "was changed since it was read; nothing was written"
                raise ConflictError(str(path), problem, "look at it with crossmargin policy, and recalibrate again")
            if kept.exists() and kept.read_bytes() != before:
                raise InputError(str(kept), "holds another document of that version", "move it away")
            _write_whole(kept, before)
            _write_whole(path, render_policy(new).encode())
    except OSError as error:
        raise InputError(str(path), f"cannot be replaced: {error.strerror}") from None
    return kept


def _write_whole(path: Path, content: bytes) -> None:
    """Write through a temporary file in the same folder, on disk before it takes the name."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
