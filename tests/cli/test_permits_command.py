"""``crossmargin permits``: what is asked of the service, in symbols and whole units, and how its answer is shown."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.cli.conftest import Shell
from tests.worlds.documents import ALPHA, USDC

VAULT, TO, NONCE = "0x" + "a1" * 20, "0x" + "c3" * 20, "0x" + "0a" * 32
ASSET = USDC
TERMS = {"asset": ASSET, "amount": "10500000", "vault": VAULT, "to": TO, "nonce": NONCE, "epoch": 7, "expiry": 1_800}
PERMIT = {
    **TERMS,
    "account": "0x" + "01" * 32,
    "chain": ALPHA,
    "digest": "0x" + "dd" * 32,
    "signed": True,
    "signatures": [{"index": i, "r": "0x", "vs": "0x"} for i in (0, 2, 3)],
    "indices": "0x30200",
}
MESSAGE = {**TERMS, "signer": f"{ALPHA}:{TO}", "form": "eip712", "message": '{"typed": 1}', "digest": "0x"}


class Answering:
    """Stands for the service: keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any, dict[str, str]]] = []
        self.answer: Any = None
        self.status = 200

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        path = "/" + url.split("/", 3)[3]
        self.asked.append((method, path, options.get("json"), options.get("params") or {}))
        return httpx.Response(self.status, content=json.dumps(self.answer))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Answering:
    made = Answering()
    monkeypatch.setattr(httpx, "request", made.request)
    return made


def test_a_message_is_printed_with_the_command_that_follows(shell: Shell, service: Answering) -> None:
    service.answer = MESSAGE
    result = shell("permits", "message", "ada", "--amount", "10.5:USDC@alpha", "--to", TO, "--epoch", "7")
    assert result.exit_code == 0, result.output
    (asked,) = service.asked
    query = {"asset": ASSET, "amount": "10500000", "to": TO, "epoch": "7"}
    assert asked == ("GET", "/v1/accounts/ada/permits/message", None, query)
    assert '{"typed": 1}' in result.stdout
    assert f"crossmargin permits request ada --amount 10.5:USDC@alpha --vault {VAULT} --to {TO}" in result.stdout
    assert f"--nonce {NONCE} --epoch 7 --expiry 1800 --signature" in result.stdout
    assert shell.json("permits", "message", "ada", "--amount", "10.5:USDC@alpha", "--to", TO) == MESSAGE


def test_a_request_sends_what_was_signed(shell: Shell, service: Answering) -> None:
    service.answer, signature = PERMIT, "0x" + "11" * 65
    options = ["--amount", "10.5:USDC@alpha", "--to", TO, "--vault", VAULT, "--nonce", NONCE]
    options += ["--epoch", "7", "--expiry", "1800", "--signature", signature]
    result = shell("permits", "request", "ada", *options)
    assert result.exit_code == 0, result.output
    assert service.asked == [("POST", "/v1/accounts/ada/permits", TERMS | {"signature": signature}, {})]
    assert "signed by attestors 0, 2, 3" in result.stdout
    assert shell.json("permits", "request", "ada", *options) == PERMIT

    service.status = 409
    service.answer = {"error": {"field": "quorum", "problem": "0 of 3 signatures; attestor-0: budgets", "remedy": ""}}
    shell.refused(["permits", "request", "ada", *options], 2, "quorum", "attestor-0: budgets")


def test_permits_are_listed_in_whole_units(shell: Shell, service: Answering) -> None:
    service.answer = {"permits": [PERMIT, PERMIT | {"signed": False, "asset": "eip155:9/erc20:0x99", "amount": "7"}]}
    result = shell("permits", "list", "ada")
    assert result.exit_code == 0, result.output
    first, second = (line.split() for line in result.stdout.splitlines() if line.startswith(NONCE[:12]))
    assert first[1:4] == ["10.5", "USDC", TO]
    assert first[-1] == "yes"
    assert second[1:3] == ["7", "eip155:9/erc20:0x99"]
    assert " ".join(second[-2:]) == "no quorum"
    assert shell.json("permits", "list", "ada") == service.answer
    service.answer = {"permits": []}
    assert "No permit" in shell("permits", "list", "ada").stdout


@pytest.mark.parametrize("amount", ["10.5", "10.5:NONE@alpha", "ten:USDC@alpha", "0.0000001:USDC@alpha"])
def test_an_amount_that_says_nothing_is_refused(shell: Shell, service: Answering, amount: str) -> None:
    shell.refused(["permits", "message", "ada", "--amount", amount, "--to", TO], 2, "--amount")
    assert service.asked == []
