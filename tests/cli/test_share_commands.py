"""``crossmargin accounts share``: what the controller signs, recorded and shown; refusals name the field."""

from __future__ import annotations

from aggregator.bootstrap import deployment_of
from aggregator.config import load_settings
from proofs.links import SharesTerms, shares_digest
from tests.cli.conftest import Shell
from tests.worlds.world import EvmPerson


def test_an_account_is_shared_out_and_shown(shell: Shell) -> None:
    person = EvmPerson("watched")
    known = next(a for a in shell.json("accounts") if a["label"] == "watched")
    assert "100%" in shell("accounts", "share", "show", "watched").stdout
    text = f"{known['home']}=2500"
    printed = shell.json("accounts", "share", "message", "watched", text)
    assert (printed["verb"], printed["signer"], printed["nonce"]) == ("shares", person.address, 1)
    settings = load_settings(shell.config)
    terms = SharesTerms(bytes.fromhex(known["id"][2:]), person.address, text, 1, printed["expiry"])
    digest = shares_digest(deployment_of(settings).deployment_id(), terms)
    assert printed["digest"] == "0x" + digest.hex()
    raw = person.key.sign_recoverable(digest, hasher=None)
    signature = "0x" + (raw[:64] + bytes([27 + raw[64]])).hex()
    command = ["accounts", "share", "record", "watched", text, "--nonce", "1", "--expiry", str(printed["expiry"])]
    shell.refused([*command, "--signature", "0x" + "11" * 65], 2, "signature")
    shell.refused(["accounts", "share", "message", "watched", "eip155:99=1"], 2, "shares", "destinations")
    shell.refused(["accounts", "share", "message", "watched", "nonsense"], 2, "shares", "parts of 10,000")
    recorded = shell.json(*command, "--signature", signature)
    assert (recorded["kind"], recorded["shares"]) == ("shares", text)
    assert shell.json("accounts", "share", "show", "watched")["shares"] == {known["home"]: 2_500}
    assert "25%" in shell("accounts", "share", "show", "watched").stdout
    assert text in shell("accounts", "links", "watched").stdout.replace("\n", "")
