"""Every command: help, JSON, and what it says when it is given what it cannot use."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer

from aggregator.__main__ import app
from aggregator.bootstrap import deployment_of
from aggregator.config import load_settings
from proofs.links import LinkTerms
from tests.cli.conftest import EPOCHS, Shell
from tests.worlds.documents import ALPHA, BETA, PYTH_SECRET, RPC_SECRET, SOL
from tests.worlds.world import EvmPerson, SolanaPerson

ROOT = Path(__file__).resolve().parents[2]
PRICES = ROOT / "tests/unit/proofs/vectors/pyth_updates.json"


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and every group that does something by itself."""
    context = command.make_context("crossmargin", [], resilient_parsing=True)
    names = command.list_commands(context) if hasattr(command, "list_commands") else ()
    inner = {name: command.get_command(context, name) for name in names}
    if path and (not inner or command.invoke_without_command):
        yield path, command
    for name, below in inner.items():
        yield from commands(below, (*path, name))


ALL = dict(commands(typer.main.get_command(app)))


def test_the_commands_of_this_milestone_exist() -> None:
    assert {" ".join(path) for path in ALL} >= {
        *("run", "check", "margin", "accounts", "accounts open", "accounts message", "accounts link"),
        *("accounts links", "epochs", "export", "verify", "keys create", "keys show", "prices verify"),
    }


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_json_and_explains_itself(path: tuple[str, ...], shell: Shell) -> None:
    command = ALL[path]
    result = shell.bare(*path, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert len(command.help or "") > 20
    context = command.make_context("crossmargin", [], resilient_parsing=True)
    for parameter in command.params:
        shown = parameter.get_help_record(context)
        assert shown is None or shown[1].strip(), f"{parameter.name} is not explained"


@pytest.mark.parametrize("path", [(), ("keys",), ("prices",)], ids=" ".join)
def test_a_group_alone_lists_its_commands(path: tuple[str, ...], shell: Shell) -> None:
    result = shell.bare(*path)
    inner = {p[len(path)] for p in ALL if p[: len(path)] == path}
    assert all(name in result.output for name in inner)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["accounts"], ["epochs"], ["margin", "ada"], ["check"], ["run"], ["export", "ada"]),
        *(["accounts", "links", "ada"], ["accounts", "open", "--controller", "x"]),
    ],
    ids=" ".join,
)
def test_without_configuration_the_remedy_is_named(
    arguments: list[str], shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = shell.bare(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "crossmargin.toml" in result.stderr
    assert "--config" in result.stderr
    assert list((tmp_path / "empty").iterdir()) == [], "a failed command leaves nothing behind"


def test_a_broken_configuration_names_file_key_and_example(shell: Shell) -> None:
    shell.document["policy"].pop("lifetime")
    shell.config.write_text(tomli_w.dumps(shell.document))
    shell.refused(["epochs"], 2, str(shell.config), "policy.lifetime: is missing", "for example policy.lifetime = 60")
    shell.config.write_text("[service")
    shell.refused(["epochs"], 2, str(shell.config), "is not TOML")


def test_a_configuration_here_is_found(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.config.parent)
    result = shell.bare("epochs", "--json")
    assert [e["epoch"] for e in json.loads(result.stdout)] == [*reversed(EPOCHS)]


# --- accounts ---------------------------------------------------------------------------------------------------------


def test_accounts_are_listed_with_their_margins(shell: Shell) -> None:
    listed = {a["label"]: a for a in shell.json("accounts")}
    assert set(listed) == {"ada", "cleo", "watched"}
    assert listed["ada"]["margin"]["status"] == "healthy"
    assert listed["watched"]["margin"]["flags"] == ["monitored"]
    assert len(listed["ada"]["links"]) == 2
    shown = shell("accounts")
    assert shown.exit_code == 0
    for text in ("ada", "cleo", "watched", "risk-bearing", "monitored", listed["ada"]["id"][:12]):
        assert text in shown.stdout


@pytest.mark.parametrize("command", [["margin"], ["export"], ["accounts", "links"]], ids=" ".join)
@pytest.mark.parametrize("reference", ["nobody", "0x12", "0xdeadbeef00", "", "0x" + "00" * 32])
def test_an_unknown_account_is_named(command: list[str], reference: str, shell: Shell) -> None:
    shell.refused([*command, reference], 2, "account", repr(reference), "crossmargin accounts")


def test_an_account_is_found_by_the_beginning_of_its_id(shell: Shell) -> None:
    id = next(a["id"] for a in shell.json("accounts") if a["label"] == "ada")
    assert shell.json("margin", id[:10])["account"] == id == shell.json("margin", id)["account"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--controller", "0x12"], ["controller", "CAIP-10"]),
        (["--controller", f"{ALPHA}:0x12"], ["controller", "40 hex digits"]),
        (["--controller", "eip155:10:0x" + "11" * 20], ["controller", "eip155:10", ALPHA]),
        (["--controller", "bip122:1:x"], ["controller", "bip122"]),
        (["--controller", f"{ALPHA}:0x" + "11" * 20, "--home", "eip155:10"], ["home", "eip155:10", ALPHA]),
        (["--controller", f"{ALPHA}:0x" + "11" * 20, "--kind", "rich"], ["kind", "'rich'", "monitored"]),
        (["--controller", f"{ALPHA}:0x" + "11" * 20, "--salt", "0x1"], ["salt", "64 hex digits"]),
        (["--controller", f"{ALPHA}:0x" + "11" * 20, "--label", "ada"], ["label", "'ada' is taken"]),
    ],
)
def test_an_account_that_cannot_be_opened_names_the_field(options: list[str], says: list[str], shell: Shell) -> None:
    shell.refused(["accounts", "open", *options], 2, *says)
    assert len(shell.json("accounts")) == 3


def _link(shell: Shell, label: str, controller: EvmPerson, member: SolanaPerson, /, **changes: str) -> list[str]:
    """Sign what ``accounts message`` prints; return the arguments of ``accounts link``."""
    settings = load_settings(shell.config)
    id = next(a["id"] for a in shell.json("accounts") if a["label"] == label)
    expiry = int(time.time()) + 600
    terms = LinkTerms(bytes.fromhex(id[2:]), controller.address, member.address, 1, expiry)
    deployment_id = deployment_of(settings).deployment_id()
    for side in ("invite", "accept"):
        printed = shell.json(
            *("accounts", "message", label, "--member", member.address, "--side", side, "--expiry", str(expiry))
        )
        assert printed["expiry"] == expiry
        assert "0x" + deployment_id.hex() in json.dumps(printed["message"])
    given = {
        "member": member.address,
        "invite": controller.sign(deployment_id, "invite", terms),
        "accept": member.sign(deployment_id, "accept", terms),
        "expiry": str(expiry),
    } | changes
    return ["accounts", "link", label, *(part for key, value in given.items() for part in (f"--{key}", value))]


def test_an_account_is_opened_and_linked(shell: Shell) -> None:
    person, member = EvmPerson("new"), SolanaPerson("new member")
    opened = shell.json("accounts", "open", "--controller", person.address, "--label", "new")
    assert opened["home"] == ALPHA
    recorded = shell.json(*_link(shell, "new", person, member))
    assert recorded["member"] == member.address
    [link] = shell.json("accounts", "links", "new")
    assert link == recorded
    assert member.address in shell("accounts", "links", "new").stdout
    shell.refused(["margin", "new"], 2, "epoch", "'newest'")


def test_a_link_for_an_address_already_linked_is_refused(shell: Shell) -> None:
    person, taken = EvmPerson("watched"), SolanaPerson("cleo")
    owner = next(a["id"] for a in shell.json("accounts") if a["label"] == "ada")
    shell.refused(_link(shell, "watched", person, taken), 2, "member", taken.address, "backs account", owner)
    assert len(shell.json("accounts", "links", "watched")) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"invite": "0x1234"}, ["invite_signature", "65 bytes"]),
        ({"invite": "hello"}, ["invite_signature", "65 bytes"]),
        ({"accept": "0OIl"}, ["accept_signature", "base58"]),
        ({"invite": "0x" + "11" * 65}, ["invite", "not signed by"]),
        ({"member": "solana:x"}, ["member", "CAIP-10"]),
        ({"member": "eip155:10:0x" + "11" * 20}, ["member", "eip155:10"]),
        ({"expiry": "1000"}, ["expiry", "later expiry"]),
    ],
)
def test_a_malformed_link_names_the_field(changes: dict[str, str], says: list[str], shell: Shell) -> None:
    arguments = _link(shell, "watched", EvmPerson("watched"), SolanaPerson("new member"), **changes)
    shell.refused(arguments, 2, *says)
    assert len(shell.json("accounts", "links", "watched")) == 1


def test_a_link_is_revoked_by_the_side_that_signs(shell: Shell) -> None:
    person, member = EvmPerson("watched"), EvmPerson("watched").address
    account = next(a["id"] for a in shell.json("accounts") if a["label"] == "watched")
    printed = shell.json("accounts", "message", "watched", "--member", member, "--verb", "revoke", "--by", "member")
    assert (printed["signer"], printed["nonce"], printed["message"]["primaryType"]) == (member, 2, "LinkRevoke")
    terms = LinkTerms(bytes.fromhex(account[2:]), member, member, 2, printed["expiry"])
    deployment_id = deployment_of(load_settings(shell.config)).deployment_id()
    options = ["--member", member, "--nonce", "2", "--expiry", str(printed["expiry"]), "--by", "member"]
    command = ["accounts", "revoke", "watched", *options, "--signature"]
    shell.refused([*command, person.sign(deployment_id, "accept", terms)], 2, "signature", "not signed by")
    recorded = shell.json(*command, person.sign(deployment_id, "revoke", terms))
    assert (recorded["kind"], recorded["invite_signature"]) == ("revoke", "")
    assert shell.json("accounts", "links", "watched")[-1] == recorded
    listed = shell("accounts", "links", "watched").stdout
    assert "revoke" in listed
    assert f"ending: {member}" in listed
    assert next(a["ending"] for a in shell.json("accounts") if a["label"] == "watched") == [member]


def test_a_message_for_a_solana_side_is_plain_text(shell: Shell) -> None:
    member = SolanaPerson("new member").address
    printed = shell("accounts", "message", "ada", "--member", member, "--side", "accept", "--expiry", "2000000000")
    lines = printed.stdout.splitlines()
    assert lines[0] == "crossmargin link accept"
    assert lines[-1] == "expiry: 2000000000"
    assert f"member: {member}" in lines, "a line that is folded would not be what the wallet must sign"
    assert len(lines) == 7
    shell.refused(
        ["accounts", "message", "ada", "--member", member, "--side", "both"], 2, "verb", "invite, accept, revoke"
    )


# --- margin, epochs ---------------------------------------------------------------------------------------------------


def test_a_margin_explains_itself(shell: Shell) -> None:
    margin = shell.json("margin", "ada")
    assert margin["epoch"] == EPOCHS[-1]
    assert {"as_of", "valid_until", "stale", "free_collateral", "maintenance_excess", "health"} <= margin.keys()
    assert margin["stale"] is True, "the world of this test is long past its valid-until"
    assert {leaf["destination"] for leaf in margin["leaves"]} != set()
    shown = shell("margin", "ada")
    for text in ("ada", "healthy", "10 WETH", "owes 3000 USDC", "5000 USDC", "STALE", "budget 0.00 USD"):
        assert text in shown.stdout
    assert shell.json("margin", "ada", "--epoch", str(EPOCHS[0]))["epoch"] == EPOCHS[0]


@pytest.mark.parametrize("command", ["margin", "export"])
def test_an_unknown_epoch_is_named(command: str, shell: Shell) -> None:
    shell.refused([command, "ada", "--epoch", "7"], 2, "epoch", "'7'")
    shell.refused([command, "ada", "--epoch", "0"], 2, "epoch", "'0'")
    assert shell(command, "ada", "--epoch", "last").exit_code == 2


def test_epochs_show_signers_and_postings(shell: Shell) -> None:
    newest, first = shell.json("epochs")
    assert (newest["epoch"], first["epoch"]) == (EPOCHS[1], EPOCHS[0])
    assert newest["signers"] == [0, 1, 2, 3]
    assert [p["destination"] for p in newest["postings"]] == [ALPHA]
    assert first["postings"] == []
    shown = shell("epochs", "--limit", "1").stdout
    assert str(EPOCHS[1]) in shown
    assert str(EPOCHS[0]) not in shown
    assert "alpha confirmed" in shown
    assert shell("epochs", "--limit", "0").exit_code == 2


# --- export, verify ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(shell: Shell, tmp_path: Path) -> Path:
    path = tmp_path / "ada.json"
    written = shell.json("export", "ada", "-o", str(path))
    assert written == {"file": str(path), "epoch": EPOCHS[-1], "bytes": path.stat().st_size}
    return path


def test_an_exported_bundle_verifies(shell: Shell, bundle: Path) -> None:
    trusted = "0x" + deployment_of(load_settings(shell.config)).deployment_id().hex()
    result = shell.bare("verify", str(bundle), "--deployment", trusted, "--json")
    assert result.exit_code == 0
    outcomes = {step["step"]: step["outcome"] for step in json.loads(result.stdout)}
    assert sorted(outcomes) == list(range(1, 10))
    assert {outcomes[n] for n in (1, 2, 3, 6)} == {"pass"}
    assert {outcomes[n] for n in (4, 5, 7)} == {"not provable yet"}
    shown = shell.bare("verify", str(bundle))
    assert shown.exit_code == 0
    assert "not provable yet" in shown.stdout


def test_export_without_a_file_prints_the_bundle(shell: Shell, bundle: Path) -> None:
    result = shell("export", "ada")
    assert result.stdout.strip() == bundle.read_text().strip()
    assert result.stderr == ""


def test_export_to_nowhere_says_so(shell: Shell, tmp_path: Path) -> None:
    shell.refused(["export", "ada", "-o", str(tmp_path / "no" / "such" / "file")], 2, "--output", "cannot be written")


@pytest.mark.parametrize(
    ("change", "step", "names"),
    [
        (lambda d: d["leaves"][0]["leaf"].update(equity="1"), 3, "leaves[0]"),
        (lambda d: d["header"].update(validUntil=d["header"]["validUntil"] + 1), 2, "signatures"),
        (lambda d: d["body"].update(riskDigest="0x" + "11" * 32), 1, "riskDigest"),
        (lambda d: d["preimages"].update(policy=d["preimages"]["policy"] + " "), 1, "preimages.policy"),
        (lambda d: d["links"][0].update(nonce=9), 7, "links[0]"),
        (lambda d: d["signatures"][1].update(r="0x" + "11" * 32), 2, "signatures"),
    ],
    ids=["leaf", "header", "body", "preimage", "link", "signature"],
)
def test_a_tampered_bundle_exits_1_and_names_the_field(
    shell: Shell, bundle: Path, change: Any, step: int, names: str
) -> None:
    document = json.loads(bundle.read_text())
    change(document)
    bundle.write_text(json.dumps(document))
    result = shell.bare("verify", str(bundle), "--json")
    assert result.exit_code == 1
    failed = {s["step"]: s["detail"] for s in json.loads(result.stdout) if s["outcome"] == "fail"}
    assert names in failed[step]
    assert "fail" in shell.bare("verify", str(bundle)).stdout


def test_a_bundle_of_another_deployment_exits_1(shell: Shell, bundle: Path) -> None:
    result = shell.bare("verify", str(bundle), "--deployment", "0x" + "11" * 32, "--json")
    assert result.exit_code == 1
    assert "deployment" in next(s["detail"] for s in json.loads(result.stdout) if s["outcome"] == "fail")
    result = shell.bare("verify", str(bundle), "--deployment", "0x11")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--deployment" in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not json", "JSON"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"{}", "format"),
        (b'{"format": "other"}', "format"),
        (b'{"format": "crossmargin-bundle/2"}', "missing"),
        (b"[" * 100_000, "nested"),
        (b'{"a": 1, "a": 2}', "twice"),
    ],
)
def test_a_file_that_is_no_bundle_exits_2(shell: Shell, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    result = shell.bare("verify", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert shell.bare("verify", str(tmp_path / "missing.json")).exit_code == 2
    assert shell.bare("verify", str(tmp_path)).exit_code == 2


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "address"),
    [(["--role", "attestor"], r"0x[0-9a-f]{40}"), (["--solana"], "[1-9A-HJ-NP-Za-km-z]{43,44}")],
)
def test_a_key_is_created_shown_and_never_overwritten(
    shell: Shell, tmp_path: Path, options: list[str], address: str
) -> None:
    passphrase, path = tmp_path / "passphrase", tmp_path / "key.json"
    passphrase.write_text("correct horse")
    create = ["keys", "create", str(path), *options, "--passphrase-file", str(passphrase)]
    made = json.loads(shell.bare(*create, "--json").stdout)
    assert re.fullmatch(address, made["address"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    assert b"correct horse" not in content
    again = shell.bare(*create)
    assert again.exit_code == 2
    assert "not overwritten" in again.stderr
    assert path.read_bytes() == content
    assert json.loads(shell.bare("keys", "show", str(path), "--json").stdout) == made
    assert shell.bare("keys", "show", str(path)).stdout.strip() == made["address"]
    path.chmod(0o644)
    opened = shell.bare("keys", "show", str(path))
    assert opened.exit_code == 2
    assert "chmod 600" in opened.stderr


def test_keys_that_cannot_be_used_say_why(shell: Shell, tmp_path: Path) -> None:
    empty, wire = tmp_path / "empty", ("--role", "wire")
    empty.touch()
    for arguments, says in (
        (["show", str(tmp_path / "none.json")], "does not exist"),
        (["create", str(tmp_path / "k"), *wire, "--passphrase-file", str(tmp_path / "none")], "cannot be read"),
        (["create", str(tmp_path / "k"), *wire, "--passphrase-file", str(empty)], "passphrase: is empty"),
        (["create", str(tmp_path / "no" / "k"), *wire, "--passphrase-file", str(PRICES)], "cannot be created"),
    ):
        result = shell.bare("keys", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr
    assert not (tmp_path / "k").exists()


# --- prices -----------------------------------------------------------------------------------------------------------


def _verify_prices(shell: Shell, path: Path, code: int) -> list[dict[str, Any]]:
    result = shell.bare("prices", "verify", str(path), "--json")
    assert result.exit_code == code, result.output
    assert result.stderr == ""
    return list(json.loads(result.stdout))


def test_recorded_pyth_updates_verify(shell: Shell) -> None:
    results = _verify_prices(shell, PRICES, 0)
    assert len(results) == len(json.loads(PRICES.read_text())["updates"])
    assert all(r["ok"] and r["prices"] for r in results)
    shown = shell.bare("prices", "verify", str(PRICES))
    assert shown.exit_code == 0
    assert "failed" not in shown.stdout


@pytest.mark.parametrize("place", [0.0, 0.02, 0.3, 0.6, 0.75, 0.9, 0.999])
def test_one_flipped_byte_in_a_pyth_update_fails(shell: Shell, tmp_path: Path, place: float) -> None:
    document = json.loads(PRICES.read_text())
    raw = bytearray.fromhex(document["updates"][0]["update_hex"].removeprefix("0x"))
    raw[int(place * len(raw))] ^= 1
    document["updates"][0]["update_hex"] = raw.hex()
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(document))
    broken, *rest = _verify_prices(shell, path, 1)
    assert not broken["ok"]
    assert broken["problem"]
    assert broken["name"] == document["updates"][0]["name"]
    assert all(r["ok"] for r in rest), "the failure is scoped"
    shown = shell.bare("prices", "verify", str(path))
    assert shown.exit_code == 1
    assert broken["name"] in shown.stdout


@pytest.mark.parametrize("field", ["price", "conf", "expo", "publish_time"])
def test_an_expected_value_that_differs_is_named(shell: Shell, tmp_path: Path, field: str) -> None:
    document = json.loads(PRICES.read_text())
    entry = next(u for u in document["updates"] if u.get("expected"))
    entry["expected"][0][field] = int(entry["expected"][0][field]) + 1
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(document))
    [failed] = [r for r in _verify_prices(shell, path, 1) if not r["ok"]]
    assert failed["name"] == entry["name"]
    assert field in failed["problem"]
    assert "expected" in failed["problem"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.pop("guardian_set"), "guardian_set"),
        (lambda d: d["guardian_set"]["addresses"].append("0x12"), "guardian_set.addresses[19]"),
        (lambda d: d.pop("updates"), "updates"),
        (lambda d: d.update(updates=[]), "updates"),
        (lambda d: d["updates"][0].update(update_hex="xyz"), "updates[0].update_hex"),
        (lambda d: d.update(emitter_chain=-1), "emitter_chain"),
    ],
)
def test_a_malformed_price_file_exits_2(shell: Shell, tmp_path: Path, change: Any, says: str) -> None:
    document = json.loads(PRICES.read_text())
    change(document)
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(document))
    result = shell.bare("prices", "verify", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr


def test_a_price_file_that_is_none_exits_2(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    for content in ("", "[]", "{", '"x"', "1e999"):
        path.write_text(content)
        result = shell.bare("prices", "verify", str(path))
        assert (result.exit_code, result.stdout) == (2, ""), content
        assert "Traceback" not in result.stderr


# --- the process ------------------------------------------------------------------------------------------------------


def process(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "CROSSMARGIN_CONFIG"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "aggregator", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, cwd=cwd or ROOT, env=environment
    )


def test_as_a_process_json_is_all_of_stdout(shell: Shell) -> None:
    done = process("margin", "ada", "--json", "--config", str(shell.config))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["epoch"] == EPOCHS[-1]


def test_as_a_process_an_error_is_all_of_stderr(shell: Shell) -> None:
    done = process("margin", "nobody", "--json", "--config", str(shell.config))
    assert (done.returncode, done.stdout) == (2, "")
    assert "'nobody' is not known" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_scopes_each_failure_and_tells_no_secret(shell: Shell) -> None:
    """Nothing runs on the chains' ports, no key file exists: every part says so, and the rest is still looked at."""
    for row in shell.document["chains"]:
        row["rpc"] = [f"http://127.0.0.1:1/v2/{RPC_SECRET}"]
    shell.document["pyth"]["url"] = "http://127.0.0.1:1"
    shell.config.write_text(tomli_w.dumps(shell.document))
    (shell.config.parent / "passphrase").write_text("x")
    done = process("check", "--json", "--config", str(shell.config))
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)
    assert {f["scope"] for f in findings if f["code"] == "ok"} == {"data", "evidence"}
    text = json.dumps(findings) + done.stderr
    assert RPC_SECRET not in text
    assert PYTH_SECRET not in text
    scopes = " ".join(f["scope"] for f in findings)
    for part in ("pyth", "attestor-0", "attestor-3", ALPHA, BETA, SOL):
        assert part in scopes
