"""What the API says to programs: exact numbers with their age, nothing usable that is stale, one shape of error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from eth_abi import decode
from eth_account import Account as Wallet
from eth_account.messages import _hash_eip191_message, encode_typed_data
from eth_utils.abi import function_abi_to_4byte_selector
from prometheus_client import Counter

from aggregator.api import create_app, guard
from aggregator.api.guard import MAX_BODY
from aggregator.domain.certificate import Refusal
from aggregator.domain.errors import Unreachable
from aggregator.domain.snapshot import Finding
from aggregator.service.accounts import AccountBook
from aggregator.store import SqlStore
from infra.devnet.artifacts import load
from proofs.leaf import hash_leaf, unpack
from proofs.merkle import verify_proof
from tests.api.synthetic_epochs import (
    BANDS,
    CHAIN_A,
    CHAIN_B,
    CHAIN_S,
    CUT_TIME,
    LIFETIME,
    SECRET,
    USDC,
    World,
    account_id,
    destination_id,
    make_account,
    make_margin,
    make_record,
    make_records,
)

ALICE = account_id("alice")
SIGNATURES = {"invite_signature": "0x" + "aa" * 65, "accept_signature": "0x" + "bb" * 65}
CONTROLLER = f"{CHAIN_A}:0x{'cc' * 20}"
LINK = {
    "controller": CONTROLLER,
    "member": f"{CHAIN_B}:0x{'dd' * 20}",
    "nonce": 1,
    "expiry": CUT_TIME + 600,
    **SIGNATURES,
}
OPEN = {"controller": CONTROLLER, "salt": "0x" + "01" * 32, "label": "dave"}


async def get(client: httpx.AsyncClient, path: str, status: int = 200) -> dict:  # type: ignore[type-arg]
    answer = await client.get(path)
    assert answer.status_code == status, answer.text
    return answer.json()  # type: ignore[no-any-return]


def error_of(answer: httpx.Response) -> dict[str, str]:
    assert set(answer.json()) == {"error"}
    error: dict[str, str] = answer.json()["error"]
    assert set(error) == {"field", "problem", "remedy"}
    assert error["problem"]
    return error


# margins


async def test_a_margin_is_exact_and_explains_itself(client: httpx.AsyncClient) -> None:
    margin = await get(client, "/v1/accounts/alice/margin")
    assert margin["status"] == "healthy"
    assert margin["equity"] == {"exact": "499912345678", "text": "4,999.12"}
    assert margin["health"] == {"low": 1.9091, "mid": 1.9412, "high": 1.9733}
    assert margin["initial"]["assets"]["text"] == "8,700.00"
    asset, debt = margin["components"]
    assert (asset["amount"], asset["pending"]["text"]) == ({"exact": "10000000000", "text": "10000"}, "1000")
    assert asset["price"] == {
        "feed": "USDC/USD",
        "low": "0.9991",
        "mid": "1",
        "high": "1.0009000000000001",
        "initial": "0.9991",
    }
    assert asset["initial"]["market"] == 0.012345678901234568
    assert (asset["horizon"], asset["age"], asset["control"]) == (1234.5, 14, "seizable")
    assert "withdrawal request" in asset["reason"]
    assert (debt["side"], debt["chain_status"]) == ("debt", "stale")
    legs = {leg["chain"]: leg for leg in margin["chains"]}
    assert legs[CHAIN_A]["finality"] == "12 blocks deep"
    assert legs[CHAIN_A]["age"] == 14
    assert legs[CHAIN_B]["cause"] == "node refused the connection"


async def test_a_fresh_margin_may_be_used_up_to_its_budget(client: httpx.AsyncClient) -> None:
    freshness = (await get(client, "/v1/accounts/alice/margin"))["freshness"]
    assert (freshness["epoch"], freshness["as_of"], freshness["valid_until"]) == (2, CUT_TIME - 14, CUT_TIME + LIFETIME)
    assert (freshness["stale"], freshness["superseded"]) == (False, False)
    assert freshness["usable"] == {"exact": "234567000000", "text": "2,345.67"}


@pytest.mark.parametrize("suffix", ["", "/proof"])
async def test_nothing_is_usable_from_the_second_it_expires(
    client: httpx.AsyncClient, world: World, suffix: str
) -> None:
    world.clock.time = CUT_TIME + LIFETIME - 0.001
    assert (await get(client, f"/v1/accounts/alice/margin{suffix}"))["freshness"]["usable"]["exact"] != "0"
    world.clock.time = float(CUT_TIME + LIFETIME)
    freshness = (await get(client, f"/v1/accounts/alice/margin{suffix}"))["freshness"]
    assert freshness["stale"] is True
    assert freshness["usable"]["exact"] == "0"
    assert "expired" in freshness["usable_reason"]


@pytest.mark.parametrize("suffix", ["", "/proof"])
async def test_nothing_is_usable_that_is_flagged_stale(client: httpx.AsyncClient, suffix: str) -> None:
    view = await get(client, f"/v1/accounts/carol/margin{suffix}")
    assert view["freshness"]["stale"] is True
    assert view["freshness"]["usable"]["exact"] == "0"


async def test_an_older_epoch_can_be_read_but_not_used(client: httpx.AsyncClient) -> None:
    freshness = (await get(client, "/v1/accounts/alice/margin?epoch=1"))["freshness"]
    assert (freshness["epoch"], freshness["superseded"]) == (1, True)
    assert freshness["usable"]["exact"] == "0"


async def test_an_unbounded_price_and_no_requirement_are_null_not_numbers(client: httpx.AsyncClient) -> None:
    carol = await get(client, "/v1/accounts/carol/margin")
    assert carol["components"][0]["price"]["high"] is None
    bob = await get(client, "/v1/accounts/bob/margin")
    assert bob["health"] == {"low": None, "mid": None, "high": None}
    assert bob["flags"] == ["monitored"]


async def test_an_account_without_an_epoch_says_so(client: httpx.AsyncClient, world: World) -> None:
    await world.store.add_account(make_account("dave"), bytes(32))
    error = (await get(client, "/v1/accounts/dave/margin", 404))["error"]
    assert error["field"] == "epoch"
    assert (await get(client, "/v1/accounts/alice/margin?epoch=3", 404))["error"]["field"] == "epoch"  # no quorum


async def test_a_new_epoch_is_seen_at_once(client: httpx.AsyncClient, world: World) -> None:
    await get(client, "/v1/epochs/latest")
    margins = (make_margin(ALICE, 4),)
    await world.store.save_epoch(make_record(4, margins, certified=False))
    assert (await get(client, "/v1/epochs/latest"))["header"]["epoch"] == 2
    await world.store.save_epoch(make_record(4, margins))
    assert (await get(client, "/v1/epochs/latest"))["header"]["epoch"] == 4
    assert (await get(client, "/v1/accounts/alice/margin"))["freshness"]["epoch"] == 4


# proofs, bundles, statements


@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_a_proof_leads_to_the_signed_root(client: httpx.AsyncClient, name: str) -> None:
    view = await get(client, f"/v1/accounts/{name}/margin/proof?destination={CHAIN_S}")
    path = [bytes.fromhex(node[2:]) for node in view["proof"]]
    verify_proof(bytes.fromhex(view["leaf_hash"][2:]), path, bytes.fromhex(view["header"]["root"][2:]))
    data = bytes.fromhex(view["registry"]["data"][2:])
    assert (data[0], data[189], len(data)) == (2, len(path), 190 + 32 * len(path))
    assert hash_leaf(unpack(data[1:189])).hex() == view["leaf_hash"][2:]
    assert view["leaf"]["destination"] == destination_id(CHAIN_S)
    assert [s["index"] for s in view["signatures"]] == [0, 1, 2]


async def test_the_evm_call_is_what_an_abi_library_would_build(client: httpx.AsyncClient) -> None:
    view = await get(client, "/v1/accounts/alice/margin/proof")
    by_id = await get(client, f"/v1/accounts/alice/margin/proof?destination={destination_id(CHAIN_A)}")
    assert view == by_id
    abi = {entry["name"]: entry for entry in load("MarginRegistry")[0] if entry["type"] == "function"}
    for name, field in (("verify", "data"), ("applyLeaf", "apply")):
        assert view["registry"][field][:10] == "0x" + function_abi_to_4byte_selector(abi[name]).hex(), name
    assert view["registry"]["apply"][10:] == view["registry"]["data"][10:]
    leaf_type = "(bytes32,bytes32,uint256,int256,uint256,uint256,uint256,uint256,uint256,uint256,uint256,uint256)"
    leaf, path = decode([leaf_type, "bytes32[]"], bytes.fromhex(view["registry"]["data"][2:])[4:])
    sent = {name: value if value.startswith("0x") else int(value) for name, value in view["leaf"].items()}
    assert ["0x" + v.hex() if isinstance(v, bytes) else v for v in leaf] == list(sent.values())
    assert ["0x" + node.hex() for node in path] == view["proof"]


async def test_a_proof_that_does_not_verify_is_not_served(world: World) -> None:
    object.__setattr__(world.service, "proof", lambda record, i: (bytes(32),))
    transport = httpx.ASGITransport(create_app(world.service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answer = await client.get("/v1/accounts/alice/margin/proof")
    assert answer.status_code == 500
    assert error_of(answer)["problem"] == "the service failed"


async def test_the_statement_is_the_typed_data_that_was_signed(client: httpx.AsyncClient) -> None:
    view = await get(client, "/v1/epochs/2/statement")
    assert view["digest"] == "0x" + make_records()[2].digest.hex()
    typed = view["statement"]
    signable = encode_typed_data(full_message={**typed, "domain": typed["domain"]})
    assert "0x" + _hash_eip191_message(signable).hex().removeprefix("0x") == view["digest"]
    assert "0x" + encode_typed_data(full_message=view["body"]).body.hex().removeprefix("0x") == typed["message"]["body"]


async def test_a_bundle_is_a_file_to_keep(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/accounts/alice/bundle?epoch=1")
    assert answer.json() == {"epoch": 1, "account": ALICE}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == f'attachment; filename="crossmargin-1-{ALICE[2:10]}.json"'


# epochs, chains, prices


async def test_epochs_are_listed_newest_first_in_pages(client: httpx.AsyncClient) -> None:
    page = await get(client, "/v1/epochs?limit=2")
    assert [(e["epoch"], e["certified"], e["signers"]) for e in page["epochs"]] == [
        (3, False, []),
        (2, True, [0, 1, 2]),
    ]
    rest = await get(client, f"/v1/epochs?limit=2&before={page['next']}")
    assert ([e["epoch"] for e in rest["epochs"]], rest["next"]) == ([1], None)


async def test_an_epoch_names_signers_refusals_and_postings(client: httpx.AsyncClient, world: World) -> None:
    epoch = await get(client, "/v1/epochs/3")
    assert epoch["certified"] is False
    unsigned = {"digest": "", "signature": ""}
    assert {"attestor": "attestor-3", "reason": "no answer", **unsigned} in epoch["refusals"]
    latest = await get(client, "/v1/epochs/latest")
    assert latest["header"]["epoch"] == 2
    assert [s["member"] for s in latest["signatures"]] == list(world.service.deployment.members[:3])
    assert {p["destination"]: p["state"] for p in latest["postings"]} == {CHAIN_A: "submitted", CHAIN_S: "failed"}
    assert [p["epoch"] for p in (await client.get("/v1/postings?limit=2")).json()] == [2, 2]


async def test_a_signed_refusal_is_shown_with_its_signature(client: httpx.AsyncClient, world: World) -> None:
    record = make_record(4, (make_margin(ALICE, 4),), certified=False)
    digest, signature = "0x" + record.digest.hex(), "0x" + "11" * 64
    refusal = Refusal("attestor-1", "grants: short", digest, signature)
    await world.store.save_epoch(replace(record, refusals=(refusal,)))
    expected = {"attestor": "attestor-1", "reason": "grants: short", "digest": digest, "signature": signature}
    assert (await get(client, "/v1/epochs/4"))["refusals"] == [expected]
    assert (await get(client, "/v1/epochs?limit=1"))["epochs"][0]["refusals"] == [expected]


async def test_of_an_epoch_learned_from_others_leaves_are_served_and_older_margins(
    client: httpx.AsyncClient, world: World
) -> None:
    """An attestor proposed epoch 4: the coordinator has its statement and leaves, and no margins."""
    learned = make_record(4, (make_margin(ALICE, 4),))
    await world.store.save_epoch(replace(learned, margins=()))
    assert (await get(client, "/v1/epochs/latest"))["header"]["epoch"] == 4
    margin = await get(client, "/v1/accounts/alice/margin")
    fresh = margin["freshness"]
    assert (fresh["epoch"], fresh["superseded"], fresh["usable"]["exact"]) == (2, True, "0")
    assert fresh["usable_reason"] == "epoch 4 replaces it"
    proof = await get(client, "/v1/accounts/alice/margin/proof")
    assert (proof["freshness"]["epoch"], proof["freshness"]["superseded"]) == (4, False)
    assert proof["digest"] == "0x" + learned.digest.hex()
    assert (await get(client, "/v1/accounts/alice/margin/proof?epoch=2"))["freshness"]["epoch"] == 2
    assert (await client.get("/v1/accounts/alice/margin?epoch=4")).status_code == 404
    assert "epoch 4 replaces it" in (await client.get("/accounts/alice")).text
    assert (await client.get("/")).text.count("superseded") == 2, "the overview keeps showing what is known"
    # Of the certificate alone nothing more is known than before.
    alone = make_record(5, (make_margin(ALICE, 5),))
    await world.store.save_epoch(replace(alone, margins=(), leaves=()))
    assert (await get(client, "/v1/accounts/alice/margin/proof"))["freshness"]["epoch"] == 2


async def test_chains_tell_age_rule_and_cause(client: httpx.AsyncClient) -> None:
    a, b, s = (await client.get("/v1/chains")).json()
    assert (a["name"], a["status"], a["age"], a["age_now"], a["block"]["height"]) == ("Anvil A", "ok", 14, 34, 120)
    assert (b["status"], b["block"], b["cause"]) == ("stale", None, "node refused the connection")
    assert s["finality"] == "finalized by its validators"


async def test_a_chain_that_no_epoch_reads_any_more_goes_stale(client: httpx.AsyncClient, world: World) -> None:
    world.clock.time = CUT_TIME - 14 + 600.9
    assert (await client.get("/v1/chains")).json()[0]["status"] == "ok"
    world.clock.time += 0.1
    chain = (await client.get("/v1/chains")).json()[0]
    assert (chain["status"], chain["age_now"], chain["cause"]) == ("stale", 601, "no newer epoch has read it")


async def test_assets_that_cannot_be_relied_on_say_why(client: httpx.AsyncClient, world: World) -> None:
    newest = await world.store.epoch(certified=False)
    assert newest is not None
    known = {"risk": json.dumps({"bands": [band | {"known": True, "opens_risk": True} for band in BANDS]})}

    async def judged(**fields: Any) -> dict[str, tuple[str, str]]:
        header = replace(newest.header, epoch=await world.service.newest_number() + 9 + len(fields))
        await world.store.save_epoch(replace(newest, header=header, **fields))
        return {a["symbol"]: (a["status"], a["cause"]) for a in (await client.get("/v1/assets")).json()}

    assert await judged() == {
        "USDC": ("unknown", "chainlink-usdc: 4000 s old, at most 3600 s allowed"),
        "ETH": ("stale", "node refused the connection"),
    }
    assert (await judged(preimages=known))["USDC"] == ("ok", "1 of 2 sources")
    lie = f"{USDC}: decimals() is 8, configured are 6"
    doubt = Finding("unreadable", "0x" + "11" * 32, lie)
    assert (await judged(preimages=known, findings=(doubt,)))["USDC"] == ("unknown", f"unreadable: {lie}")


async def test_an_asset_that_no_epoch_reads_any_more_goes_stale(client: httpx.AsyncClient, world: World) -> None:
    world.clock.time = CUT_TIME + 100_000
    for asset in (await client.get("/v1/assets")).json():
        assert asset["status"] == "stale"
        assert asset["cause"] in ("no newer epoch has read it", "node refused the connection")


async def test_an_epoch_that_voids_those_before_says_why(client: httpx.AsyncClient, world: World) -> None:
    newest = await world.store.epoch(certified=False)
    assert newest is not None
    number = newest.header.epoch + 1
    reorg = {"chain": CHAIN_A, "height": 90, "was": "0x" + "aa" * 32, "now": "0x" + "bb" * 32}
    header = replace(newest.header, epoch=number, floor=number)
    await world.store.save_epoch(replace(newest, header=header, preimages={"cut": json.dumps({"reorgs": [reorg]})}))
    first, second = (await get(client, "/v1/epochs?limit=2"))["epochs"]
    assert (first["floor"], first["reorgs"]) == (number, [reorg | {"name": "Anvil A"}])
    assert (second["floor"], second["reorgs"]) == (1, [])


async def test_a_replica_reads_the_links_log_on_from_where_it_is(client: httpx.AsyncClient) -> None:
    whole = await get(client, "/v1/links")
    assert ([link["position"] for link in whole["links"]], whole["next"]) == ([1], None)
    assert await get(client, "/v1/links?after=1") == {"links": [], "next": None}
    assert (await client.get("/v1/links?limit=0")).status_code == 422


async def test_prices_come_as_bands(client: httpx.AsyncClient, world: World) -> None:
    prices = await get(client, "/v1/prices")
    eth, usdc = prices["bands"]
    assert (eth["low"], eth["mid"], eth["high"]) == ("2987.5", "3000.25", "3011.125")
    assert (usdc["known"], usdc["high"], usdc["present"]) == (False, None, 1)
    assert prices["stale"] is False
    world.clock.time += LIFETIME
    assert (await get(client, "/v1/prices"))["stale"] is True


async def test_an_empty_store_answers_everything(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path_factory.mktemp('empty') / 'store.db'}")
    object.__setattr__(world.service, "store", store)
    transport = httpx.ASGITransport(create_app(world.service))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        for path in ("/", "/v1/accounts", "/v1/epochs", "/v1/prices", "/v1/postings", "/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        assert {c["status"] for c in (await client.get("/v1/chains")).json()} == {"missing"}
        assert (await client.get("/v1/epochs/latest")).status_code == 404
    await store.close()


async def test_no_answer_carries_a_node_s_url(client: httpx.AsyncClient) -> None:
    paths = ["/", "/accounts/alice", "/openapi.json", "/metrics", "/readyz"]
    paths += [
        f"/v1/{name}" for name in ("chains", "assets", "deployment", "prices", "epochs/2", "accounts/alice/margin")
    ]
    for path in paths:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert "https://node" not in answer.text


# accounts and links


async def test_an_account_is_opened_found_and_linked(client: httpx.AsyncClient) -> None:
    opened = await client.post("/v1/accounts", json=OPEN)
    assert opened.status_code == 201, opened.text
    account = opened.json()
    for reference in (account["id"], account["id"][:10], "dave"):
        assert await get(client, f"/v1/accounts/{reference}") == account
    linked = await client.post("/v1/accounts/dave/links", json={**LINK, "nonce": str(2**64 - 1)})
    assert linked.status_code == 201, linked.text
    assert (linked.json()["nonce"], linked.json()["position"]) == (str(2**64 - 1), 2)
    assert (await client.get("/v1/accounts/dave/links")).json() == [linked.json()]
    assert (await get(client, "/v1/accounts/dave"))["links"] == [LINK["member"]]


async def test_a_link_is_revoked_and_shows_it(client: httpx.AsyncClient, world: World) -> None:
    """Signed as the API says, checked by the service."""
    service = world.service
    chains, destinations = [c.id for c in service.chains], [d.chain for d in service.destinations]
    book = AccountBook(world.store, world.clock, service.deployment_id, chains, destinations)
    object.__setattr__(service, "accounts", book)
    owner, friend = Wallet.from_key(b"\x01" * 32), Wallet.from_key(b"\x02" * 32)
    controller, member = (f"{CHAIN_A}:{key.address.lower()}" for key in (owner, friend))
    opened = await client.post("/v1/accounts", json={**OPEN, "controller": controller})
    assert opened.status_code == 201, opened.text

    async def sign(key: Any, **query: str) -> tuple[dict[str, Any], str]:
        message = await get(client, f"/v1/accounts/dave/links/message?{urlencode({'member': member, **query})}")
        signed = key.sign_message(encode_typed_data(full_message=json.loads(message["message"])))
        assert (message["form"], message["digest"]) == ("eip712", "0x" + bytes(signed.message_hash).hex())
        terms = {"controller": controller, "member": member, "nonce": message["nonce"], "expiry": message["expiry"]}
        return terms, "0x" + bytes(signed.signature).hex()

    terms, invite = await sign(owner, verb="invite")
    _, accept = await sign(friend, verb="accept", expiry=terms["expiry"])
    signatures = {"invite_signature": invite, "accept_signature": accept}
    linked = await client.post("/v1/accounts/dave/links", json={**terms, **signatures})
    assert (linked.status_code, linked.json()["kind"]) == (201, "link"), linked.text
    terms, signature = await sign(friend, verb="revoke", by="member")
    assert terms["nonce"] == "2"
    body = {**terms, "by": "member", "signature": signature}
    wrong = await client.post("/v1/accounts/dave/links/revoke", json={**body, "by": "controller"})
    assert (wrong.status_code, error_of(wrong)["field"]) == (400, "signature")
    revoked = await client.post("/v1/accounts/dave/links/revoke", json=body)
    assert (revoked.status_code, revoked.json()["kind"]) == (201, "revoke"), revoked.text
    assert (revoked.json()["invite_signature"], revoked.json()["accept_signature"]) == ("", signature)
    again = await client.post("/v1/accounts/dave/links/revoke", json=body)
    assert (again.status_code, error_of(again)["field"]) == (409, "member")
    account = await get(client, "/v1/accounts/dave")
    assert (account["links"], account["ending"]) == ([member], [member])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"by": "me"}, "by"),
        ({"signature": "eip1271:0x" + "00" * 4097}, "signature"),
        ({"signature": "pda:0"}, "signature"),
        ({"signature": "hello"}, "signature"),
        ({"nonce": 2**64}, "nonce"),
        ({"surplus": 1}, "surplus"),
    ],
)
async def test_bad_revokes_name_the_field(client: httpx.AsyncClient, changes: dict[str, object], field: str) -> None:
    terms = {name: LINK[name] for name in ("controller", "member", "nonce", "expiry")}
    body = {**terms, "by": "member", "signature": "0x" + "aa" * 65, **changes}
    answer = await client.post("/v1/accounts/alice/links/revoke", json=body)
    assert (answer.status_code, error_of(answer)["field"]) == (422, field)


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ({"verb": "both"}, 422, "verb"),
        ({"by": "me"}, 422, "by"),
        ({"nonce": "-1"}, 422, "nonce"),
        ({"member": "x"}, 422, "member"),
        ({"member": "eip155:10:0x" + "11" * 20}, 400, "member"),
    ],
)
async def test_bad_requests_for_a_message_name_the_field(
    client: httpx.AsyncClient, query: dict[str, str], status: int, field: str
) -> None:
    given = urlencode({"member": LINK["member"], "verb": "revoke"} | query)
    answer = await client.get(f"/v1/accounts/alice/links/message?{given}")
    assert (answer.status_code, error_of(answer)["field"]) == (status, field)


async def test_accounts_are_listed_in_pages(client: httpx.AsyncClient) -> None:
    first = await get(client, "/v1/accounts?limit=2")
    second = await get(client, f"/v1/accounts?limit=2&after={first['next']}")
    listed = [account["label"] for account in first["accounts"] + second["accounts"]]
    assert sorted(listed) == ["alice", "bob", "carol"]
    assert second["next"] is None


async def test_contradictions_are_409_and_name_the_field(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/accounts", json=OPEN)).status_code == 201
    again = await client.post("/v1/accounts", json=OPEN)
    taken = await client.post("/v1/accounts", json={**OPEN, "salt": "0x" + "02" * 32})
    assert (again.status_code, error_of(again)["field"]) == (409, "salt")
    assert (taken.status_code, error_of(taken)["field"]) == (409, "label")
    assert (await client.post("/v1/accounts/dave/links", json=LINK)).status_code == 201
    reused = await client.post("/v1/accounts/dave/links", json=LINK)
    backing = await client.post("/v1/accounts/alice/links", json={**LINK, "nonce": 9})
    assert (reused.status_code, error_of(reused)["field"]) == (409, "nonce")
    assert (backing.status_code, error_of(backing)["field"]) == (409, "member")


async def test_a_chain_that_cannot_be_asked_is_503(client: httpx.AsyncClient, world: World) -> None:
    async def unreachable(*_: object, **__: object) -> None:
        raise Unreachable(CHAIN_A, "no answer in 5 s")

    world.service.accounts.add_link = unreachable  # type: ignore[method-assign]
    answer = await client.post("/v1/accounts/alice/links", json=LINK)
    assert (answer.status_code, error_of(answer)["field"], error_of(answer)["remedy"]) == (503, CHAIN_A, "try again")


# bad input


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/accounts/nobody", 404, "account"),
        ("/v1/accounts/0x" + "0" * 64 + "/margin", 404, "account"),
        ("/v1/accounts/%00", 422, "ref"),
        ("/v1/accounts/alice'%20OR%201=1", 422, "ref"),
        ("/v1/accounts/%3Cscript%3E", 422, "ref"),
        ("/v1/accounts/alice/margin?epoch=99", 404, "epoch"),
        ("/v1/accounts/alice/margin?epoch=-1", 422, "epoch"),
        ("/v1/accounts/alice/margin?epoch=99999999999999999999999", 422, "epoch"),
        ("/v1/accounts/alice/margin?epoch=two", 422, "epoch"),
        ("/v1/accounts/alice/margin/proof?destination=eip155:1", 404, "destination"),
        ("/v1/epochs/99", 404, "epoch"),
        ("/v1/epochs/9999999999999999999", 404, "epoch"),
        ("/v1/epochs/newest", 422, "number"),
        ("/v1/epochs?limit=0", 422, "limit"),
        ("/v1/epochs?limit=101", 422, "limit"),
        ("/v1/postings?limit=1000000", 422, "limit"),
        ("/v1/nothing", 404, "request"),
    ],
)
async def test_bad_paths_and_queries_name_the_field(
    client: httpx.AsyncClient, path: str, status: int, field: str
) -> None:
    answer = await client.get(path)
    assert (answer.status_code, error_of(answer)["field"]) == (status, field)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"controller": "0xabc"}, "controller"),
        ({"controller": None}, "controller"),
        ({"salt": "0x12"}, "salt"),
        ({"salt": 7}, "salt"),
        ({"kind": "bold"}, "kind"),
        ({"label": "<script>"}, "label"),
        ({"label": "\ud800"}, "label"),
        ({"label": "x" * 65}, "label"),
        ({"unknown": 1}, "unknown"),
    ],
)
async def test_bad_bodies_name_the_field(client: httpx.AsyncClient, changes: dict[str, object], field: str) -> None:
    content = json.dumps({**OPEN, **changes})
    answer = await client.post("/v1/accounts", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["field"]) == (422, field)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"nonce": -1}, "nonce"), ({"nonce": 2**64}, "nonce"), ({"expiry": 1.5}, "expiry"), ({"member": "x"}, "member")],
)
async def test_bad_links_name_the_field(client: httpx.AsyncClient, changes: dict[str, object], field: str) -> None:
    answer = await client.post("/v1/accounts/alice/links", json={**LINK, **changes})
    assert (answer.status_code, error_of(answer)["field"]) == (422, field)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"[]", 422),
        (b"\xff\xfe\x00", 400),
        (b"[" * 5_000, 400),
        # In UTF-16 the letter has a byte like a quotation mark, so that the brackets would seem to be in a string.
        (('["\u0122", ' + "[" * 5_000).encode("utf-16-le"), 400),
        (b'{"controller":' * 33 + b"1" + b"}" * 33, 400),
        (b'{"controller":"' + b"a" * MAX_BODY + b'"}', 413),
        (b'{"label": ' + b"9" * 5_000 + b"}", 400),
    ],
)
async def test_hostile_bodies_are_refused(client: httpx.AsyncClient, content: bytes, status: int) -> None:
    answer = await client.post("/v1/accounts", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert len(error_of(answer)["problem"]) < 300


async def test_a_body_in_pieces_is_limited_too(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000

    answer = await client.post("/v1/accounts", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


async def test_a_body_that_never_ends_is_given_up(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)

    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    answer = await client.post("/v1/accounts", content=drip(), headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["field"]) == (408, "body")


async def test_a_form_from_another_site_is_not_json(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/accounts", content=json.dumps(OPEN), headers={"content-type": "text/plain"})
    assert answer.status_code == 422


async def test_wrong_methods_are_405(client: httpx.AsyncClient) -> None:
    answer = await client.delete("/v1/accounts/alice")
    assert (answer.status_code, error_of(answer)["field"]) == (405, "request")
    assert "GET" in answer.headers["allow"]


# operations


async def test_ready_lists_its_reasons(client: httpx.AsyncClient, world: World) -> None:
    assert await get(client, "/readyz") == {"ready": True, "reasons": []}
    world.reasons.append(Finding("no-epoch", "coordinator", "no epoch for 65 s"))
    ready = await get(client, "/readyz", 503)
    assert ready == {
        "ready": False,
        "reasons": [{"code": "no-epoch", "scope": "coordinator", "detail": "no epoch for 65 s"}],
    }
    assert await get(client, "/healthz") == {"alive": True}


async def test_without_its_store_the_service_is_alive_but_not_ready(client: httpx.AsyncClient, world: World) -> None:
    async def broken(*_: object, **__: object) -> Sequence[object]:
        raise OSError("disk I/O error at /secret/path")

    world.store.epochs = broken  # type: ignore[method-assign]
    ready = await get(client, "/readyz", 503)
    assert ready["reasons"] == [{"code": "store-unusable", "scope": "store", "detail": "OSError"}]
    assert (await client.get("/healthz")).status_code == 200
    failed = await client.get("/v1/epochs")
    assert failed.status_code == 500
    assert "secret" not in failed.text


async def test_metrics_are_what_prometheus_reads(client: httpx.AsyncClient) -> None:
    Counter("crossmargin_api_test", "made up").inc(3)
    answer = await client.get("/metrics")
    assert "crossmargin_api_test_total 3.0" in answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")


@pytest.mark.parametrize("path", ["/", "/v1/accounts", "/v1/nothing", "/static/live.js"])
async def test_every_answer_carries_the_guards(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path, headers={"origin": "https://elsewhere.example"})
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


# pages


async def test_pages_escape_everything(client: httpx.AsyncClient, world: World) -> None:
    attack = "<script>alert(1)</script>\" onload='x'"
    margin = make_margin(ALICE, 4)
    hostile = margin.components[0]._replace(symbol=attack, reason=attack, feed=attack)
    margin = make_margin(ALICE, 4, components=(hostile,))
    await world.store.save_epoch(make_record(4, (margin,), refusals=((attack, attack),)))
    for path in ("/", "/accounts/alice"):
        page = (await client.get(path)).text
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "style=" not in page


async def test_a_browser_gets_errors_as_pages(client: httpx.AsyncClient) -> None:
    answer = await client.get("/accounts/nobody", headers={"accept": "text/html"})
    assert answer.status_code == 404
    assert "&#39;nobody&#39; is not known" in answer.text
    assert "crossmargin accounts" in answer.text
