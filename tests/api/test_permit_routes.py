"""Permits over HTTP: what is sent reaches whoever collects them, and every answer says what a vault needs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from aggregator.api import create_app
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import InputError, RefusedError
from aggregator.domain.permits import PermitMessage, SignedPermit
from proofs.permits import PermitTerms, permit_digest
from tests.api.synthetic_epochs import World

CHAIN = "eip155:31337"
VAULT, TO, TOKEN = ("0x" + byte * 20 for byte in ("a1", "c3", "b2"))
NONCE, SIGNATURE = "0x" + "0a" * 32, "0x" + "11" * 65
BODY: dict[str, Any] = {
    "asset": f"{CHAIN}/erc20:{TOKEN}",
    "amount": str(2**100),
    "vault": VAULT,
    "to": TO,
    "nonce": NONCE,
    "epoch": 7,
    "expiry": 1_800_000_000,
    "signature": SIGNATURE,
}


class Collecting:
    """Stands for whoever asks the attestors."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.signed: tuple[SignedPermit, ...] = ()
        self.error: Exception | None = None

    async def message(self, account: str, asset: str, amount: int, to: str, *rest: Any) -> PermitMessage:
        self.asked.append((account, asset, amount, to, *rest))
        permit = PermitRecord(account, CHAIN, VAULT, asset, amount, to, NONCE, 7, 1_800_000_000, "")
        return PermitMessage(permit, f"{CHAIN}:{TO}", "", {"primaryType": "PermitRequest"}, "0x" + "dd" * 32)

    async def collect_permit(self, permit: PermitRecord) -> SignedPermit:
        if self.error is not None:
            raise self.error
        self.asked.append(permit)
        attestations = tuple(Attestation(i, bytes([i]) * 32, bytes([i + 1]) * 32) for i in (0, 2, 3))
        self.signed = (SignedPermit(permit, attestations),)
        return self.signed[0]

    async def permits(self, account: str) -> tuple[SignedPermit, ...]:
        return self.signed


@pytest.fixture
def collecting() -> Collecting:
    return Collecting()


@pytest.fixture
async def asking(world: World, collecting: Collecting) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(replace(world.service, permits=collecting))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as opened:
        yield opened


async def account_of(client: httpx.AsyncClient) -> str:
    return str((await client.get("/v1/accounts")).json()["accounts"][0]["id"])


async def test_a_permit_comes_with_what_its_vault_takes(
    asking: httpx.AsyncClient, collecting: Collecting, world: World
) -> None:
    account = await account_of(asking)
    answer = await asking.post(f"/v1/accounts/{account}/permits", json=BODY)
    assert answer.status_code == 201
    (permit,) = collecting.asked
    assert permit == PermitRecord(account, CHAIN, VAULT, BODY["asset"], 2**100, TO, NONCE, 7, 1_800_000_000, SIGNATURE)
    view = answer.json()
    words = PermitTerms(
        *(bytes.fromhex(account[2:]), CHAIN, VAULT, BODY["asset"], 2**100, TO, bytes.fromhex(NONCE[2:])),
        *(7, 1_800_000_000),
    )
    assert view["digest"] == "0x" + permit_digest(words.permit, world.service.deployment_id).hex()
    assert view["amount"] == str(2**100)
    assert "request" not in view
    assert view["signed"]
    assert view["indices"] == hex(0 | 2 << 8 | 3 << 16)
    assert view["signatures"][1] == {"index": 2, "r": "0x" + "02" * 32, "vs": "0x" + "03" * 32}
    listed = (await asking.get(f"/v1/accounts/{account}/permits")).json()
    assert listed == {"permits": [view]}


async def test_a_message_says_what_is_signed_and_what_to_send(
    asking: httpx.AsyncClient, collecting: Collecting
) -> None:
    account = await account_of(asking)
    query = {"asset": BODY["asset"], "amount": "5", "to": TO}
    answer = await asking.get(f"/v1/accounts/{account}/permits/message", params=query)
    assert answer.status_code == 200
    view = answer.json()
    assert (view["form"], view["digest"], view["nonce"], view["vault"]) == ("eip712", "0x" + "dd" * 32, NONCE, VAULT)
    assert '"PermitRequest"' in view["message"]
    assert collecting.asked == [(account, BODY["asset"], 5, TO, None, None, None, None)]
    query |= {"vault": VAULT, "nonce": NONCE, "epoch": "7", "expiry": "9"}
    await asking.get(f"/v1/accounts/{account}/permits/message", params=query)
    assert collecting.asked[1][4:] == (VAULT, NONCE, 7, 9)


@pytest.mark.parametrize(
    ("error", "status", "field"),
    [
        (RefusedError("quorum", "0 of 3 signatures; attestor-0: budgets"), 409, "quorum"),
        (InputError("expiry", "is too late"), 400, "expiry"),
    ],
)
async def test_a_refusal_says_who_and_why(
    asking: httpx.AsyncClient, collecting: Collecting, error: Exception, status: int, field: str
) -> None:
    collecting.error = error
    answer = await asking.post(f"/v1/accounts/{await account_of(asking)}/permits", json=BODY)
    assert answer.status_code == status
    assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("amount", "0"), ("amount", "1" * 40), ("amount", "1e5"), ("nonce", "0x12"), ("epoch", -1), ("signature", "")],
)
async def test_a_malformed_body_is_refused_by_field(asking: httpx.AsyncClient, field: str, value: Any) -> None:
    answer = await asking.post(f"/v1/accounts/{await account_of(asking)}/permits", json=BODY | {field: value})
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == field


async def test_where_nobody_asks_attestors_it_says_so(client: httpx.AsyncClient) -> None:
    account = await account_of(client)
    for answer in (
        await client.get(f"/v1/accounts/{account}/permits"),
        await client.post(f"/v1/accounts/{account}/permits", json=BODY),
    ):
        assert answer.status_code == 409
        assert answer.json()["error"]["field"] == "permits"
    assert (await client.get("/v1/accounts/nobody/permits")).status_code == 404
