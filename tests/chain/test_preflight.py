"""`crossmargin check` against a real chain: its websockets, the keys, the data folder, and what still is waited for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.bootstrap import EVIDENCE_KEY, evidence_signer, preflight
from aggregator.config import parse_settings
from aggregator.domain.snapshot import Finding
from infra.devnet.anvil import Anvil
from infra.devnet.svm.process import SvmServer
from tests.chain.evm_venues import genesis_of
from tests.worlds.documents import make_document

pytestmark = pytest.mark.chain


@pytest.fixture(scope="module")
def alpha() -> Iterator[Anvil]:
    with Anvil(31337) as node:
        yield node


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Anvil]:
    with Anvil(31999) as node:
        yield node


@pytest.fixture(scope="module")
def svm() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=100) as server:
        yield server


async def check(document: dict[str, Any]) -> tuple[dict[str, Finding], list[frozenset[str]]]:
    """Return what is found by its scope, and what was waited for at each step."""
    waited: list[frozenset[str]] = []
    findings = await preflight(parse_settings(document), waited.append)
    return {finding.scope: finding for finding in findings}, waited


def key_files(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{EVIDENCE_KEY}.json"))


@pytest.fixture
def document(tmp_path: Path, alpha: Anvil, svm: SvmServer) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(make_document(tmp_path / "data")))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "passphrase").write_text("secret")
    made["pyth"]["url"] = "http://127.0.0.1:1"
    for row in made["chains"]:
        row |= {"rpc": ["http://127.0.0.1:1"], "timeout": 2.0}
    made["chains"][0] |= {"rpc": [alpha.url], "genesis": genesis_of(alpha)}
    return made


async def test_a_websocket_is_asked_for_its_chain_and_a_subscription(
    document: dict[str, Any], alpha: Anvil, elsewhere: Anvil, svm: SvmServer
) -> None:
    urls = [node.url.replace("http", "ws") for node in (alpha, elsewhere)]
    document["chains"][0]["ws"] = [*urls, "ws://127.0.0.1:1"]
    document["chains"][2]["ws"] = [svm.ws_url]
    found, waited = await check(document)
    listening = [names for names in waited if any("websocket" in name for name in names)]
    assert all({"alpha", "pyth", "data", "keys"} <= names for names in listening), "nothing else runs meanwhile"
    assert found["alpha websocket[0]"].code == "ok"
    assert found["alpha websocket[1]"].code == "failed"
    assert "answers for chain id 0x7cff" in found["alpha websocket[1]"].detail
    assert (found["alpha websocket[2]"].code, "cannot be opened" in found["alpha websocket[2]"].detail) == (
        "failed",
        True,
    )
    assert found["sol websocket[0]"].code == "ok"


async def test_the_data_folder_and_the_evidence_key_are_looked_at(document: dict[str, Any], tmp_path: Path) -> None:
    found, waited = await check(document)
    assert (found["data"].code, found["evidence"].code) == ("ok", "ok")
    assert "made by the first run" in found["evidence"].detail
    assert key_files(tmp_path) == [], "a check makes no key"
    assert {"alpha", "beta", "pyth", "data", "keys"} <= waited[0], "all are asked at once"
    assert waited[-1] == frozenset()

    address = evidence_signer(parse_settings(document)).address
    found, _ = await check(document)
    assert address in found["evidence"].detail
    (tmp_path / "data" / "keys" / f"{EVIDENCE_KEY}.json").write_text("no key")
    document["service"]["passphrase_file"] = str(tmp_path / "data" / "nowhere")
    found, _ = await check(document)
    assert found["evidence"].code == "failed"

    document["service"]["data"] = str(tmp_path / "data" / "passphrase" / "below")
    found, _ = await check(document)
    assert found["data"].code == "failed"
