"""``crossmargin permits``: what is asked of the service, in symbols and whole units, and how its answer is shown."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from adapters.keys import KeySigner
from aggregator import bootstrap
from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import RefusedError
from proofs.hashing import keccak256
from proofs.permits import Hold, chain_word, hold_digest
from tests.cli.conftest import EPOCHS, Shell
from tests.worlds.documents import ALPHA, EPOCH_SECONDS, USDC

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


# ---- holds ----


SIGNERS = [KeySigner(keccak256(b"attestor %d" % i)) for i in range(4)]


class Attestor:
    """Signs every hold, or refuses it."""

    def __init__(self, index: int, deployment_id: bytes, reason: str = "") -> None:
        self.name, self._index, self._reason, self._deployment_id = f"attestor-{index}", index, reason, deployment_id

    async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
        if self._reason:
            raise RefusedError("status", self._reason)
        assert kind == "hold"
        ids = (bytes.fromhex(document["account"][2:]), chain_word(document["chain"]))
        vault = bytes.fromhex(document["vault"][2:]).rjust(32, b"\0")
        hold = Hold(*ids, vault, document["until"], document["epoch"])
        return Attestation(self._index, *SIGNERS[self._index].sign(hold_digest(hold, self._deployment_id)))


def seated(monkeypatch: pytest.MonkeyPatch, *unwilling: int) -> None:
    """Let four attestors be asked; those named refuse."""

    @asynccontextmanager
    async def clients(settings: Any) -> AsyncIterator[list[Attestor]]:
        deployment_id = bootstrap.deployment_of(settings).deployment_id()
        yield [Attestor(i, deployment_id, "it is healthy" if i in unwilling else "") for i in range(4)]

    monkeypatch.setattr(bootstrap, "attestor_clients", clients)


def test_a_hold_is_printed_as_the_vault_takes_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    seated(monkeypatch, 1)
    hold = shell.json("permits", "hold", "ada", "--chain", "alpha")
    assert (hold["chain"], hold["vault"], hold["epoch"]) == (ALPHA, "0x" + "7a" * 20, EPOCHS[-1])
    assert hold["until"] == EPOCHS[-1] * EPOCH_SECONDS + 3600
    assert [signature["index"] for signature in hold["signatures"]] == [0, 2, 3]
    assert hold["indices"] == "0x30200"
    result = shell("permits", "hold", "ada", "--chain", ALPHA, "--vault", "0x" + "7a" * 20)
    assert result.exit_code == 0, result.output
    assert f"hold({hold['account']}, {hold['until']}, {hold['epoch']}, 0x30200, [(" in result.stdout


def test_without_a_quorum_there_is_no_hold(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    seated(monkeypatch, 1, 2, 3)
    shell.refused(["permits", "hold", "ada", "--chain", "alpha"], 1, "1 of 3 signatures", "it is healthy")
    shell.refused(["permits", "hold", "ada", "--chain", "nowhere"], 2, "--chain", "alpha")
    shell.refused(["permits", "hold", "ada", "--chain", "beta"], 2, "--vault", "0 vaults")
    shell.refused(["permits", "hold", "ada", "--chain", "alpha", "--vault", "0x12"], 1, "vault")
