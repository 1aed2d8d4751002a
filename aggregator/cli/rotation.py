"""``crossmargin rotation``: hand over to another set of attestors, step by step and each step by a person."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli.frame import (
    ConfigOption,
    JsonOption,
    app,
    bootstrap,
    fail,
    guarded,
    opened,
    out,
    print_json,
    read_file,
    run_async,
    settings_of,
    styled,
    table,
    user_name,
)
from aggregator.domain.errors import InputError
from proofs.bundle import encode_set, parse_set
from proofs.errors import FieldError
from proofs.sets import AttestorSet, rotation_digest, verify_history

if TYPE_CHECKING:
    from aggregator.config import Settings

rotation_app = typer.Typer(help="Hand over to another set of attestors.", no_args_is_help=True)
app.add_typer(rotation_app, name="rotation")

DAY = 86_400
TermsArgument = Annotated[Path, typer.Argument(help="The file that crossmargin rotation plan wrote.")]


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _address(text: str, option: str) -> bytes:
    try:
        address = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        address = b""
    if len(address) != 20:
        raise InputError(option, f"{text!r} is no address", "give 0x and 40 hex digits")
    return address


def _replacements(pairs: list[str]) -> dict[bytes, bytes]:
    replaced = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        replaced[_address(old, "--replace")] = _address(new, "--replace")
    return replaced


def _read_terms(path: Path) -> AttestorSet:
    try:
        return parse_set(read_file(path))
    except FieldError as error:
        raise InputError(f"{path}: {error.field}", error.reason, "plan it anew: crossmargin rotation plan") from None


def _terms(settings: Settings, to: AttestorSet) -> dict[str, Any]:
    digest = rotation_digest(to, bootstrap.deployment_of(settings).deployment_id())
    return {"digest": "0x" + digest.hex(), "terms": encode_set(to)}


def _print_terms(settings: Settings, to: AttestorSet) -> None:
    start = to.activation_epoch * settings.service.epoch_seconds
    out.print(f"set {to.set_id}: {to.threshold} of {len(to.members)} sign")
    for i, member in enumerate(to.members):
        out.print(f"  {i:>2}  0x{member.hex()}")
    out.print(f"from epoch {to.activation_epoch} ({_time(start)}) until {_time(to.not_after)}")
    out.print(f"digest {_terms(settings, to)['digest']}")


@rotation_app.command("plan")
def rotation_plan(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write the terms to.")] = Path("rotation.json"),
    replace: Annotated[
        list[str] | None, typer.Option(help="OLD=NEW: NEW takes the place of member OLD; may be repeated.")
    ] = None,
    add: Annotated[list[str] | None, typer.Option(help="An address that joins; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A member that leaves; may be repeated.")] = None,
    threshold: Annotated[int | None, typer.Option(help="How many must sign; default: the least allowed.")] = None,
    start: Annotated[int, typer.Option("--in", min=1, help="Seconds from now until the new set signs.")] = DAY,
    recovered: Annotated[
        bool, typer.Option(help="For governance to put in place: the newest set may have ended, and need not sign.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, max=90, help="Days that the new set may serve.")] = 90,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Plan the next set: the newest one with changes, or unchanged to serve for another term."""
    from aggregator.service.rotation import plan_set, verify_terms

    async def work() -> tuple[Settings, AttestorSet]:
        async with opened(config) as (settings, store):
            deployment, seconds = bootstrap.deployment_of(settings), settings.service.epoch_seconds
            known, now = bootstrap.recovered_here(settings), int(time.time())
            sets = verify_history(deployment, await store.rotations(), known)
            epoch = -(-(now + start) // seconds)
            to = plan_set(
                sets,
                replace=_replacements(replace or []),
                add=[_address(a, "--add") for a in add or []],
                remove=[_address(a, "--remove") for a in remove or []],
                threshold=threshold,
                activation_epoch=epoch,
                not_after=epoch * seconds + days * DAY,
            )
            verify_terms(to, sets, deployment, now=now, epoch_seconds=seconds, recovered=recovered)
            return settings, to

    settings, to = run_async(work)
    try:
        output.write_text(json.dumps(encode_set(to), indent=2) + "\n", "utf-8")
    except OSError as error:
        fail(f"--output: {output} cannot be written: {error.strerror}", 2)
    if json_output:
        print_json(_terms(settings, to) | {"file": str(output)})
    else:
        _print_terms(settings, to)
        out.print(f"wrote {output}: give it to every operator, and tell them the digest another way")


@rotation_app.command("approve")
def rotation_approve(
    terms: TermsArgument,
    digest: Annotated[
        str | None, typer.Option(help="The digest you were told, instead of being asked whether it is this one.")
    ] = None,
    recovered: Annotated[
        bool,
        typer.Option(help="Believe these terms without signatures: governance put them in force on every registry."),
    ] = False,
    withdraw: Annotated[bool, typer.Option(help="Forget the approval instead.")] = False,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Let the attestor of this machine sign exactly these terms; or, recovered, let this machine believe them."""
    from aggregator.service.rotation import KIND, RECOVERY

    kind, shall = (RECOVERY, "believed without signatures") if recovered else (KIND, "signed")

    def work() -> None:
        settings, to = settings_of(config), _read_terms(terms)
        if settings.attestor is None and not recovered:
            raise InputError("--config", "is not an attestor's", "run this on the attestor's machine, with its file")
        shown, approvals = _terms(settings, to), bootstrap.approvals_of(settings)
        raw = bytes.fromhex(shown["digest"][2:])
        if not json_output:
            _print_terms(settings, to)
        if withdraw:
            done = "withdrawn" if approvals.withdraw(kind, raw) else "was not approved"
        else:
            if digest is None:
                typer.confirm(f"Is this the digest that you were told, and shall it be {shall}?", abort=True)
            elif digest.lower() != shown["digest"]:
                raise InputError("--digest", f"{digest} given, these terms have {shown['digest']}", "find out why")
            approvals.approve(kind, raw, encode_set(to), now=int(time.time()), by=user_name())
            done = "approved"
        if json_output:
            print_json(shown | {"state": done})
        else:
            out.print(done)

    guarded(work)


@rotation_app.command("collect")
def rotation_collect(
    terms: TermsArgument,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each attestor.")] = 30.0,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Ask every attestor for its signature, and keep the rotation once a quorum signed; exits 1 without one."""
    from aggregator.service.rotation import Collected, collect_rotation

    async def work() -> Collected:
        to = _read_terms(terms)
        async with opened(config) as (settings, store), bootstrap.attestor_clients(settings) as clients:
            history, deployment = await store.rotations(), bootstrap.deployment_of(settings)
            recovered = bootstrap.recovered_here(settings)
            found = await collect_rotation(to, clients, history, deployment, timeout=timeout, recovered=recovered)
            if found.rotation is not None:
                await store.save_rotations([found.rotation])
            return found

    found = run_async(work)
    if json_output:
        refusals = [{"attestor": name, "reason": reason} for name, reason in found.refusals]
        print_json({"kept": found.rotation is not None, "signed": list(found.signed), "refusals": refusals})
    else:
        for name in found.signed:
            out.print(f"{name}: signed")
        for name, reason in found.refusals:
            out.print(f"{name}: {reason}")
        out.print("kept; now: crossmargin rotation submit" if found.rotation else "no quorum: nothing is kept")
    if found.rotation is None:
        raise typer.Exit(1)


@rotation_app.command("adopt")
def rotation_adopt(
    terms: TermsArgument,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Keep a set that governance recovered on the registries, without signatures; approve it first."""
    from aggregator.service.rotation import adopt_set

    async def work() -> dict[str, Any]:
        to = _read_terms(terms)
        async with opened(config) as (settings, store):
            if settings.attestor is not None:
                raise InputError("--config", "is an attestor's", "run this at the coordinator: attestors learn from it")
            deployment, recovered = bootstrap.deployment_of(settings), bootstrap.recovered_here(settings)
            rotation = adopt_set(to, await store.rotations(), deployment, recovered, now=time.time())
            await store.save_rotations([rotation])
            return _terms(settings, to)

    found = run_async(work)
    if json_output:
        print_json(found)
    else:
        out.print(f"kept: set {found['terms']['setId']}, {found['digest']}; attestors follow that approved it as well")


@rotation_app.command("submit")
def rotation_submit(
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for each transaction.")] = 60.0,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Tell every destination of the rotations that it does not know yet; exits 1 if one does not know them then."""
    from aggregator.service.rotation import Submitted, submit_rotations

    async def work() -> tuple[Submitted, ...]:
        async with opened(config) as (settings, store), bootstrap.destinations_of(settings) as destinations:
            return await submit_rotations(
                await store.rotations(), destinations, bootstrap.SystemClock(), timeout=timeout
            )

    found = run_async(work)
    if json_output:
        print_json([one._asdict() for one in found])
    else:
        shown = table("", "destination", ">set", "state", "transaction", "detail")
        for one in found:
            shown.add_row(one.destination, str(one.newest_set), styled(one.state), one.transaction, one.detail)
        out.print(shown)
    if any(one.state != "known" for one in found):
        raise typer.Exit(1)


@rotation_app.command("show")
def rotation_show(config: ConfigOption = None, json_output: JsonOption = False) -> None:
    """Show the sets of attestors, which of them signs now, and what is approved on this machine."""
    from aggregator.service.rotation import describe_sets

    async def work() -> tuple[Settings, list[tuple[AttestorSet, str]]]:
        async with opened(config) as (settings, store):
            recovered = bootstrap.recovered_here(settings)
            sets = verify_history(bootstrap.deployment_of(settings), await store.rotations(), recovered)
            return settings, describe_sets(sets, time.time(), settings.service.epoch_seconds)

    settings, sets = run_async(work)
    approvals = guarded(lambda: bootstrap.approvals_of(settings).list())
    if json_output:
        print_json(
            {
                "sets": [encode_set(s) | {"state": state} for s, state in sets],
                "approvals": [approval._asdict() for approval in approvals],
            }
        )
        return
    shown = table("", ">set", "state", "signs", "from epoch", "until", "members")
    for s, state in sets:
        signs, members = f"{s.threshold} of {len(s.members)}", "\n".join(f"0x{m.hex()}" for m in s.members)
        shown.add_row(str(s.set_id), state, signs, str(s.activation_epoch), _time(s.not_after), members)
    out.print(shown)
    for approval in approvals:
        out.print(f"approved here: {approval.kind} {approval.digest} on {_time(approval.approved_at)} by {approval.by}")
