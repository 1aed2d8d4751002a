"""``crossmargin rotation``: the operators' walk from a plan to destinations that know the new set."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from adapters.approvals import FileApprovals
from adapters.keys import KeySigner
from adapters.watermark import SqliteWatermark
from aggregator import bootstrap
from aggregator.config import load_settings
from aggregator.domain.certificate import Attestation, PostingStatus, SignedPosting
from aggregator.domain.errors import PostingError
from aggregator.service.rotation import RotationRules
from proofs.bundle import parse_set
from proofs.hashing import keccak256
from proofs.sets import Rotation
from tests.cli.conftest import Shell

SIGNERS = [KeySigner(keccak256(b"attestor %d" % i)) for i in range(4)]
NEW = KeySigner(keccak256(b"attestor 4"))
WIRE = "0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc"


class Seat:
    """An attestor's machine: a data folder, and the process that answers."""

    def __init__(self, shell: Shell, folder: Path, i: int) -> None:
        self.name, self.member, self.folder = f"attestor-{i}", bytes.fromhex(SIGNERS[i].address[2:]), folder
        settings = load_settings(shell.config)
        service = {k: v for k, v in shell.document["service"].items() if k != "attestor_keys"}
        own = {"index": i, "key": "attestor", "wire_key": "wire", "listen": "127.0.0.1:8090", "coordinator": WIRE}
        document = shell.document | {
            "service": service | {"data": "."},
            "attestor": own | {"propose_after": 5.0},
        }
        folder.mkdir()
        self.shell = Shell(folder / "attestor.toml", document)
        self.shell.config.write_text(tomli_w.dumps(document))

        async def known() -> tuple[Rotation, ...]:
            return ()

        self.rules = RotationRules(
            SIGNERS[i],
            SqliteWatermark(folder / "record.sqlite3"),
            FileApprovals(folder / "approvals"),
            known,
            deployment=bootstrap.deployment_of(settings),
            epoch_seconds=settings.service.epoch_seconds,
            clock=bootstrap.SystemClock(),
        )

    async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
        assert kind == "rotation"
        return await self.rules.sign(document)


@pytest.fixture
def current(shell: Shell) -> Shell:
    """The filled configuration with a genesis set that is in force now."""
    deployment = shell.document["deployment"] | {"not_after": int(time.time()) + 30 * 86_400}
    shell.document = shell.document | {"deployment": deployment}
    service = shell.document["service"] | {"data": "."}
    shell.config.write_text(tomli_w.dumps(shell.document | {"service": service}))
    return shell


@pytest.fixture
def seats(current: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Seat]:
    made = [Seat(current, tmp_path / f"machine-{i}", i) for i in range(4)]

    @asynccontextmanager
    async def clients(settings: Any) -> AsyncIterator[list[Seat]]:
        yield made

    monkeypatch.setattr(bootstrap, "attestor_clients", clients)
    return made


def plan(shell: Shell, path: Path, *options: str) -> dict[str, Any]:
    replaced = f"{SIGNERS[3].address}={NEW.address}"
    return dict(shell.json("rotation", "plan", "--replace", replaced, "-o", str(path), *options))


def test_the_walk_from_a_plan_to_the_destinations(
    current: Shell, seats: list[Seat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = tmp_path / "rotation.json"
    planned = plan(current, terms, "--in", "600")
    to = parse_set(terms.read_text())
    assert to.members == tuple(bytes.fromhex(s.address[2:]) for s in (*SIGNERS[:3], NEW))
    assert (to.set_id, to.threshold, planned["terms"]["setId"]) == (2, 3, 2)
    shown = current.json("rotation", "show")
    assert [s["state"] for s in shown["sets"]] == ["active"]

    missing = current.json("rotation", "collect", str(terms), code=1)
    assert (missing["kept"], missing["signed"]) == (False, [])
    assert all(r["reason"].startswith("approval: 0x") for r in missing["refusals"])
    assert len(current.json("rotation", "show")["sets"]) == 1

    for seat in seats[:3]:
        done = seat.shell.json("rotation", "approve", str(terms), "--digest", planned["digest"])
        assert (done["state"], done["digest"]) == ("approved", planned["digest"])
        assert seat.shell.json("rotation", "show")["approvals"][0]["digest"] == planned["digest"]
    kept = current.json("rotation", "collect", str(terms))
    assert (kept["kept"], kept["signed"]) == (True, ["attestor-0", "attestor-1", "attestor-2"])
    assert [s["state"] for s in current.json("rotation", "show")["sets"]] == ["active", "to come"]

    class Place:
        def __init__(self, refuses: bool) -> None:
            self.refuses, self.newest = refuses, 1

        async def read_newest_set(self) -> int:
            return self.newest

        async def sign_rotation(self, rotation: Rotation) -> SignedPosting:
            if self.refuses:
                raise PostingError("beta", "the set ended")
            assert rotation.to == to
            return SignedPosting("0x" + "ab" * 32, "0x")

        async def submit(self, posting: SignedPosting) -> None:
            self.newest = 2

        async def status(self, posting: SignedPosting) -> PostingStatus:
            return PostingStatus("confirmed")

    places = {"eip155:1": Place(False), "eip155:2": Place(True)}

    @asynccontextmanager
    async def destinations(settings: Any) -> AsyncIterator[dict[str, Place]]:
        yield places

    monkeypatch.setattr(bootstrap, "destinations_of", destinations)
    found = current.json("rotation", "submit", code=1)
    assert [(d["newest_set"], d["state"]) for d in found] == [(2, "known"), (1, "failed")]
    assert found[1]["detail"] == "beta: the set ended"
    places["eip155:2"].refuses = False
    assert [d["state"] for d in current.json("rotation", "submit")] == ["known", "known"]
    text = current("rotation", "show").stdout
    assert "to come" in text
    assert NEW.address in text


def test_an_approval_is_of_what_was_told_and_can_be_withdrawn(
    current: Shell, seats: list[Seat], tmp_path: Path
) -> None:
    terms, machine = tmp_path / "rotation.json", seats[0].shell
    digest = plan(current, terms)["digest"]
    machine.refused(["rotation", "approve", str(terms), "--digest", "0x" + "00" * 32, "--json"], 2, "these terms have")
    assert machine.json("rotation", "show")["approvals"] == []
    answered = machine("rotation", "approve", str(terms))  # nobody says yes
    assert answered.exit_code == 1
    assert digest in answered.stdout
    assert machine.json("rotation", "approve", str(terms), "--withdraw")["state"] == "was not approved"
    machine.json("rotation", "approve", str(terms), "--digest", digest)
    assert machine.json("rotation", "approve", str(terms), "--withdraw")["state"] == "withdrawn"
    assert machine.json("rotation", "show")["approvals"] == []
    current.refused(["rotation", "approve", str(terms), "--digest", digest], 2, "is not an attestor's")


def test_a_recovered_set_is_approved_on_every_machine_and_adopted(
    current: Shell, seats: list[Seat], tmp_path: Path
) -> None:
    terms = tmp_path / "rotation.json"
    digest = plan(current, terms, "--in", "600")["digest"]
    given = [str(terms), "--digest", digest]
    current.refused(["rotation", "adopt", str(terms)], 1, f"approval: {digest} is not approved on this machine")
    seats[0].shell.json("rotation", "approve", *given)  # as one to be signed
    seats[0].shell.refused(["rotation", "adopt", str(terms)], 2, "is an attestor's")
    asked = current("rotation", "approve", str(terms), "--recovered")  # nobody says yes
    assert asked.exit_code == 1
    assert "shall it be believed without signatures?" in asked.stdout
    current.refused(["rotation", "adopt", str(terms)], 1, "is not approved on this machine")
    for shell in (current, seats[0].shell):
        assert shell.json("rotation", "approve", *given, "--recovered")["state"] == "approved"
    kinds = {(a["kind"], a["digest"]) for a in seats[0].shell.json("rotation", "show")["approvals"]}
    assert kinds == {("rotation", digest), ("recovery", digest)}
    assert current.json("rotation", "adopt", str(terms))["digest"] == digest
    assert [s["state"] for s in current.json("rotation", "show")["sets"]] == ["active", "to come"]
    current.refused(["rotation", "adopt", str(terms)], 1, "set: set 2 given, 3 is next")
    current.json("rotation", "approve", *given, "--recovered", "--withdraw")
    current.refused(["rotation", "show"], 1, "is not known to be a set that governance recovered")


def test_plans_that_cannot_be_are_refused(current: Shell, tmp_path: Path) -> None:
    path = str(tmp_path / "rotation.json")
    for options, says in (
        (["--replace", "0x12=0x34"], "--replace: '0x34' is no address"),
        (["--replace", SIGNERS[0].address], "--replace: '' is no address"),
        (["--add", "nobody"], "--add: 'nobody' is no address"),
        (["--remove", NEW.address], "is not in set 1"),
        (["--add", SIGNERS[0].address], "is listed twice"),
        (["--threshold", "2"], "threshold: 2 of 4"),
    ):
        current.refused(["rotation", "plan", "-o", path, *options], 2, says)
    current.refused(["rotation", "plan", "-o", path, "--in", str(31 * 86_400)], 1, "nobody would sign between")
    current.refused(["rotation", "plan", "-o", str(tmp_path / "no" / "x")], 2, "cannot be written")
    assert not Path(path).exists()


def test_terms_that_were_edited_are_refused_by_field(current: Shell, seats: list[Seat], tmp_path: Path) -> None:
    path = tmp_path / "rotation.json"
    plan(current, path)
    good = json.loads(path.read_text())
    for change, field in (({"threshold": 1}, "threshold"), ({"extra": 1}, "extra"), ({"members": []}, "members")):
        path.write_text(json.dumps(good | change))
        for command in (["rotation", "collect", str(path)], ["rotation", "approve", str(path)]):
            seats[0].shell.refused(command, 2, f"rotation.json: {field}")


def test_attestors_in_the_services_own_process_do_not_rotate(current: Shell, tmp_path: Path) -> None:
    path = tmp_path / "rotation.json"
    plan(current, path)
    current.refused(["rotation", "collect", str(path)], 2, "names no attestors that are processes of their own")


def test_a_set_that_ended_hands_over_to_nobody(shell: Shell, tmp_path: Path) -> None:
    ended = replace(bootstrap.deployment_of(load_settings(shell.config)), not_after=int(time.time()) - 1)
    deployment = shell.document["deployment"] | {"not_after": ended.not_after}
    service = shell.document["service"] | {"data": "."}
    shell.config.write_text(tomli_w.dumps(shell.document | {"service": service, "deployment": deployment}))
    shell.refused(["rotation", "plan", "-o", str(tmp_path / "x")], 1, "not-after: set 1 ended at")
    assert shell.json("rotation", "show")["sets"][0]["state"] == "ended"
    planned = shell.json("rotation", "plan", "-o", str(tmp_path / "x"), "--recovered")  # by governance, who need not
    assert planned["terms"]["setId"] == 2
