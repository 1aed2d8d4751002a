"""The attestor's record beyond epochs: documents, starts, refusals, export and import."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import adapters.watermark as watermark
from adapters.watermark import MISSED_STARTS, Owner, SqliteWatermark
from aggregator.domain.errors import InputError, RefusedError
from aggregator.ports import RefusalNote
from aggregator.service.remote import Fences

A, B = b"\xaa" * 32, b"\xbb" * 32
OWNER = Owner(b"\x11" * 32, "0x" + "22" * 20)


@pytest.fixture
async def record(tmp_path: Path) -> Any:
    opened = SqliteWatermark(tmp_path / "mark", OWNER)
    yield opened
    await opened.close()


@pytest.fixture
async def other(tmp_path: Path) -> Any:
    opened = SqliteWatermark(tmp_path / "other", OWNER)
    yield opened
    await opened.close()


async def test_one_digest_per_document_and_kinds_apart(record: SqliteWatermark) -> None:
    await record.claim_once("permit", "0x01", A)
    await record.claim_once("permit", "0x01", A)
    with pytest.raises(RefusedError, match=r"permit 0x01 was signed as 0xaa.*, not as 0xbb"):
        await record.claim_once("permit", "0x01", B)
    await record.claim_once("permit", "0x02", B)
    await record.claim_once("hold", "0x01", B)


@pytest.mark.parametrize(
    ("kind", "key", "digest"),
    [
        *(("", "k", A), ("Permit", "k", A), ("p" * 33, "k", A), ("permit", "", A), ("permit", "a b", A)),
        *(("permit", "k" * 201, A), ("permit", "k", b""), ("permit", "k", A + b"\0")),
    ],
)
async def test_what_names_no_document_is_refused(record: SqliteWatermark, kind: str, key: str, digest: bytes) -> None:
    with pytest.raises(RefusedError, match="is no document"):
        await record.claim_once(kind, key, digest)


async def test_an_epoch_needs_a_whole_digest(record: SqliteWatermark) -> None:
    with pytest.raises(RefusedError, match="is no statement"):
        await record.claim(7, b"")
    with pytest.raises(RefusedError, match="is no statement"):
        await record.claim(-1, A)


async def test_starts_count_up_across_openings(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        record = SqliteWatermark(tmp_path / "mark", OWNER)
        assert await record.begin() == expected
        assert await record.starts() == expected
        await record.close()


async def test_what_others_saw_only_raises(record: SqliteWatermark) -> None:
    await record.claim(7, A)
    await record.raise_to(starts=5, epoch=9)
    assert await record.begin() == 6
    for digest in (A, B):
        with pytest.raises(RefusedError, match="epoch 9 was signed as something unknown"):
            await record.claim(9, digest)
        with pytest.raises(RefusedError, match="below 9"):
            await record.claim(8, digest)
    await record.raise_to(starts=1, epoch=3)
    assert (await record.starts(), await record.highest()) == (6, 9)
    await record.claim(10, A)


async def test_a_lie_about_starts_does_not_use_them_up(record: SqliteWatermark) -> None:
    await record.raise_to(starts=1 << 200)
    assert await record.begin() == MISSED_STARTS + 1
    with pytest.raises(RefusedError, match="nobody signs epoch"):
        await record.raise_to(epoch=1 << 63)


async def test_a_restored_file_is_fenced_until_others_tell_it(tmp_path: Path) -> None:
    path, fences = tmp_path / "mark", Fences()
    before = SqliteWatermark(path, OWNER)
    fences.verify(0, await before.begin())
    await before.close()
    shutil.copy(path, tmp_path / "backup")
    after = SqliteWatermark(path, OWNER)
    fences.verify(0, await after.begin())
    fences.verify(0, await after.begin())
    await after.claim(8, A)
    fences.saw(0, 8)
    await after.close()

    restored = SqliteWatermark(tmp_path / "backup", OWNER)
    starts = await restored.begin()
    with pytest.raises(RefusedError, match=f"attestor 0 answers with start {starts}, start 3 was seen"):
        fences.verify(0, starts)
    (seen,) = fences.seen()
    await restored.raise_to(starts=seen.starts, epoch=seen.epoch)
    fences.verify(0, await restored.begin())
    with pytest.raises(RefusedError, match="epoch 8 was signed as something unknown"):
        await restored.claim(8, B)
    await restored.close()


async def test_refusals_are_kept_newest_first_and_bounded(
    record: SqliteWatermark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "KEPT_REFUSALS", 3)
    notes = [RefusalNote(i, "epoch", str(i), "leaves: 1 proposed, 0 found") for i in range(5)]
    for note in notes:
        await record.note_refusal(note)
    assert await record.refusals() == (notes[4], notes[3], notes[2])
    assert await record.refusals(limit=1) == (notes[4],)


async def test_old_epochs_are_forgotten_and_stay_refused(
    record: SqliteWatermark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watermark, "KEPT_EPOCHS", 2)
    for epoch in range(1, 6):
        await record.claim(epoch, A)
    assert [row["epoch"] for row in (await record.export())["epochs"]] == [4, 5]
    with pytest.raises(RefusedError, match="epoch 2 is below 5"):
        await record.claim(2, A)


async def test_a_file_has_one_owner(tmp_path: Path) -> None:
    first = SqliteWatermark(tmp_path / "mark", OWNER)
    await first.claim(7, A)
    await first.close()
    for owner, what in (
        (OWNER._replace(deployment_id=b"\x12" * 32), "is of deployment id 0x1111"),
        (OWNER._replace(member="0x" + "33" * 20), "is of member 0x2222"),
    ):
        stranger = SqliteWatermark(tmp_path / "mark", owner)
        with pytest.raises(RefusedError, match=what):
            await stranger.claim(8, A)
        await stranger.close()
    again = SqliteWatermark(tmp_path / "mark", OWNER)
    await again.claim(8, A)
    await again.close()


async def test_an_export_carries_everything_that_binds(record: SqliteWatermark, other: SqliteWatermark) -> None:
    await record.begin()
    await record.claim(7, A)
    await record.raise_to(epoch=9)
    await record.claim_once("hold", "0x01", B)
    await record.note_refusal(RefusalNote(1, "epoch", "7", "clock: late"))
    document = json.loads(json.dumps(await record.export()))
    assert document == {
        "metadata": {
            "interchange_format_version": "1",
            "deployment_id": "0x" + "11" * 32,
            "member": "0x" + "22" * 20,
        },
        "epochs": [{"epoch": 7, "digest": "0x" + "aa" * 32}, {"epoch": 9, "digest": None}],
        "claims": [{"kind": "hold", "key": "0x01", "digest": "0x" + "bb" * 32}],
        "starts": 1,
    }
    await other.import_(document)
    await other.import_(document)  # an identical repeat
    assert await other.export() == document
    with pytest.raises(RefusedError):
        await other.claim(9, A)
    with pytest.raises(RefusedError):
        await other.claim_once("hold", "0x01", A)


async def test_an_import_never_lowers(record: SqliteWatermark, other: SqliteWatermark) -> None:
    await record.claim(3, A)
    document = await record.export()
    for _ in range(4):
        await other.begin()
    await other.claim(9, B)
    await other.claim_once("permit", "0x05", B)
    await other.import_(document)
    assert (await other.starts(), await other.highest()) == (4, 9)
    with pytest.raises(RefusedError):
        await other.claim_once("permit", "0x05", A)
    await other.claim(9, B)


async def test_an_epoch_known_to_one_side_only_as_signed_is_not_signed_again(
    record: SqliteWatermark, other: SqliteWatermark
) -> None:
    await record.claim(7, A)
    await other.raise_to(epoch=7)
    await record.import_(await other.export())
    with pytest.raises(RefusedError, match="something unknown"):
        await record.claim(7, A)


async def test_a_contradiction_imports_nothing(record: SqliteWatermark, other: SqliteWatermark) -> None:
    await record.claim(7, A)
    await other.claim(6, A)
    await other.claim(7, B)
    before = await record.export()
    with pytest.raises(InputError, match=r"epoch 7 is 0xaa.* on record and 0xbb.* in the import"):
        await record.import_(await other.export())
    assert await record.export() == before
    await other.claim_once("permit", "k", B)
    document = {**await other.export(), "epochs": []}
    await record.claim_once("permit", "k", A)
    with pytest.raises(InputError, match=r"permit k is 0xaa.* on record"):
        await record.import_(document)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata": {"interchange_format_version": "2"}}, "metadata.interchange_format_version"),
        ({"metadata": {"deployment_id": "0x" + "12" * 32}}, "metadata.deployment_id"),
        ({"metadata": {"member": "0x" + "33" * 20}}, "metadata.member"),
        ({"metadata": {"more": 1}}, "metadata.more"),
        ({"epochs": [{"epoch": -1, "digest": None}]}, r"epochs\[0\].epoch"),
        ({"epochs": [{"epoch": 1 << 62, "digest": None}]}, r"epochs\[0\].epoch"),
        ({"epochs": [{"epoch": 1, "digest": "0xaa"}]}, r"epochs\[0\].digest"),
        ({"epochs": [{"epoch": 1, "digest": "0x" + c * 64} for c in "ab"]}, r"epochs\[1\]"),
        ({"claims": [{"kind": "permit", "key": "k", "digest": None}]}, r"claims\[0\].digest"),
        ({"claims": [{"kind": "Permit", "key": "k", "digest": "0x" + "aa" * 32}]}, r"claims\[0\]"),
        ({"claims": [{"kind": "permit", "key": "k", "digest": "0x" + c * 64} for c in "ab"]}, r"claims\[1\]"),
        ({"starts": "1"}, "starts"),
        ({"starts": 1 << 62}, "starts"),
        ({"unknown": 1}, "unknown"),
    ],
)
async def test_a_malformed_import_is_refused_by_field(
    record: SqliteWatermark, change: dict[str, Any], field: str
) -> None:
    await record.claim(5, A)
    before = await record.export()
    document = {**before, **change}
    if "metadata" in change:
        document["metadata"] = {**before["metadata"], **change["metadata"]}
    with pytest.raises(InputError, match=f"^{field}: "):
        await record.import_(document)
    with pytest.raises(InputError):
        await record.import_([])
    assert await record.export() == before


async def test_a_record_of_nobody_is_not_exported(tmp_path: Path) -> None:
    record = SqliteWatermark(tmp_path / "mark")
    for work in (record.export(), record.import_({})):
        with pytest.raises(InputError, match="owner"):
            await work
    await record.close()
