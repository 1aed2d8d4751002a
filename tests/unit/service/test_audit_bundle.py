"""An audit bundle of a real epoch: passes as exported, and fails after any change."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aggregator.bootstrap import build_bundle
from aggregator.domain.errors import UnknownError
from aggregator.service import bundle
from aggregator.service.bundle import export_bundle
from proofs import verify
from proofs.bundle import PREIMAGES, parse_bundle
from proofs.document import canonical_json
from proofs.errors import BundleError
from proofs.verify import Step, verify_bundle
from tests.worlds.world import FIRST_EPOCH, SimulatedWorld

CHECKED = (1, 2, 3, 6)


@pytest.fixture
async def exported(world: SimulatedWorld, accounts: Any) -> str:
    await world.epoch(FIRST_EPOCH)
    record = await world.epoch(FIRST_EPOCH + 1)
    return await build_bundle(world.store, world.deployment, record, accounts["ada"].id)


def outcomes(text: str, world: SimulatedWorld) -> dict[int, Step]:
    steps = verify_bundle(parse_bundle(text), deployment_id=world.deployment.deployment_id())
    return {step.number: step for step in steps}


def fails(text: str, world: SimulatedWorld) -> bool:
    """Say whether a bundle is refused at the door or by a step."""
    try:
        return any(step.outcome == "fail" for step in outcomes(text, world).values())
    except BundleError as error:
        return error.field != ""  # refused at the door, by name


async def test_a_bundle_passes_every_step_that_exists(world: SimulatedWorld, exported: str) -> None:
    steps = outcomes(exported, world)
    assert {n: steps[n].outcome for n in CHECKED} == dict.fromkeys(CHECKED, "pass")
    assert all(step.outcome != "fail" for step in steps.values())
    assert {n: steps[n].outcome for n in (4, 5)} == dict.fromkeys((4, 5), "not provable yet")
    assert "4 of 4 signed" in steps[2].detail
    assert "3 Pyth quotes" in steps[6].detail
    assert "2 committed links signed by both sides" in steps[7].detail
    assert "each pair of account and destination between its neighbours" in steps[3].detail


async def test_a_bundle_holds_no_secret(world: SimulatedWorld, exported: str) -> None:
    from tests.worlds.documents import PYTH_SECRET, RPC_SECRET

    assert RPC_SECRET not in exported
    assert PYTH_SECRET not in exported
    assert "example.org" not in exported
    assert "payer-" not in exported


async def test_another_deployment_is_not_trusted(world: SimulatedWorld, exported: str) -> None:
    steps = verify_bundle(parse_bundle(exported), deployment_id=b"\x01" * 32)
    assert steps[1].outcome == "fail"
    assert "deployment" in steps[1].detail


async def test_the_same_epoch_exports_the_same_bytes(world: SimulatedWorld, accounts: Any, exported: str) -> None:
    record = await world.store.epoch(FIRST_EPOCH + 1)
    assert record is not None
    again = await build_bundle(world.store, world.deployment, record, accounts["ada"].id)
    assert again == exported


async def test_a_bundle_is_hashed_off_the_loop(
    world: SimulatedWorld, accounts: Any, exported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await world.store.epoch(FIRST_EPOCH + 1)
    assert record is not None
    threads: list[threading.Thread] = []

    def note(*arguments: Any) -> str:
        threads.append(threading.current_thread())
        return export_bundle(*arguments)

    monkeypatch.setattr(bundle, "export_bundle", note)
    assert await build_bundle(world.store, world.deployment, record, accounts["ada"].id) == exported
    assert threading.current_thread() not in threads
    assert len(threads) == 1


async def test_a_bundle_of_an_epoch_gone_by_shows_the_state_of_then(
    world: SimulatedWorld, accounts: Any, exported: str
) -> None:
    """What was opened, linked and revoked since is not in it, and does not break it."""
    record = await world.store.epoch(FIRST_EPOCH + 1)
    assert record is not None
    links = await world.store.links(accounts["ada"].id)
    await world.store.append_link(links[0]._replace(kind="revoke", nonce=links[0].nonce + 1, accept_signature=""))
    late = replace(accounts["ada"], id="0x" + "99" * 32, label="late", links=())
    await world.store.add_account(late, bytes(32))
    assert await build_bundle(world.store, world.deployment, record, accounts["ada"].id) == exported


async def test_an_account_without_a_leaf_has_no_bundle(world: SimulatedWorld, exported: str) -> None:
    record = await world.store.epoch()
    assert record is not None
    with pytest.raises(UnknownError, match=r"no certified leaf|is not known"):
        await build_bundle(world.store, world.deployment, record, "0x" + "77" * 32)


def flips(text: str) -> Iterator[str]:
    """Yield hex text with each of its bytes changed in one bit."""
    raw = bytearray.fromhex(text[2:])
    for i in range(len(raw)):
        raw[i] ^= 1 << (i % 8)
        yield "0x" + raw.hex()
        raw[i] ^= 1 << (i % 8)


def mutations(value: Any) -> Iterator[Any]:
    """Yield changed values of one field."""
    if isinstance(value, str) and value.startswith("0x"):
        yield from flips(value)
    elif isinstance(value, str):
        yield str(int(value) + 1)
        yield str(int(value) - 1)
    else:
        yield value + 1
        if value:
            yield value - 1


def places(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (path, container, key) of every field of header, body, signatures, leaves and their proofs."""
    for part in ("header", "body"):
        for key in document[part]:
            yield f"{part}.{key}", document[part], key
    for i, signature in enumerate(document["signatures"]):
        for key in signature:
            yield f"signatures[{i}].{key}", signature, key
    for i, leaf in enumerate(document["leaves"]):
        for key in leaf["leaf"]:
            yield f"leaves[{i}].leaf.{key}", leaf["leaf"], key
        yield f"leaves[{i}].accounts_index", leaf, "accounts_index"
        for list_name in ("proof", "accounts_path"):
            for j in range(len(leaf[list_name])):
                yield f"leaves[{i}].{list_name}[{j}]", leaf[list_name], j  # type: ignore[misc]


async def test_every_changed_byte_fails(world: SimulatedWorld, exported: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of header, body, signatures and leaves; the prices and links, unchanged here, are verified once."""
    for pure in ("verify_update", "verify_link"):
        monkeypatch.setattr(verify, pure, cache(getattr(verify, pure)))
    document = json.loads(exported)
    survived, tried = [], 0
    for path, container, key in places(document):
        original = container[key]
        for changed in mutations(original):
            container[key] = changed
            tried += 1
            if not fails(canonical_json(document), world):
                survived.append((path, changed))
        container[key] = original
    assert not fails(canonical_json(document), world)
    assert survived == []
    assert tried > 900


@pytest.mark.parametrize("name", PREIMAGES)
async def test_every_changed_preimage_fails(world: SimulatedWorld, exported: str, name: str) -> None:
    """Every hundredth character, and the ends: a digest does not care where."""
    document = json.loads(exported)
    original = document["preimages"][name]
    for i in sorted({0, len(original) - 1, *range(0, len(original), max(1, len(original) // 60))}):
        other = "1" if original[i] != "1" else "2"
        document["preimages"][name] = original[:i] + other + original[i + 1 :]
        assert fails(canonical_json(document), world), (name, i)
    document["preimages"][name] = original + " "
    assert fails(canonical_json(document), world)


async def test_a_changed_link_fails(world: SimulatedWorld, exported: str) -> None:
    document = json.loads(exported)
    for link in document["links"]:
        for key, changed in (
            ("nonce", link["nonce"] + 1),
            ("expiry", link["expiry"] + 1),
            ("accepted_at", link["accepted_at"] + 1),
            ("account", "0x" + "11" * 32),
            ("salt", "0x" + "22" * 32),
            ("invite", "0x" + "33" * 65),
        ):
            original, link[key] = link[key], changed
            assert fails(canonical_json(document), world), key
            link[key] = original


async def test_signatures_cannot_be_dropped_below_the_threshold_or_repeated(
    world: SimulatedWorld, exported: str
) -> None:
    document = json.loads(exported)
    signatures = document["signatures"]
    document["signatures"] = signatures[:3]
    assert not fails(canonical_json(document), world)
    for wrong in (signatures[:2], [*signatures[:2], signatures[1]], signatures[::-1], []):
        document["signatures"] = wrong
        assert fails(canonical_json(document), world)


async def test_exported_files_are_the_same_anywhere(world: SimulatedWorld, exported: str, tmp_path: Path) -> None:
    """Canonical text survives a file, and a JSON printer does not change what it says."""
    path = tmp_path / "bundle.json"
    path.write_text(exported, "utf-8")
    assert not fails(path.read_text("utf-8"), world)
    assert not fails(json.dumps(json.loads(exported), indent=4), world)
