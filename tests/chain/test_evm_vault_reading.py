"""The vault's adapter on a real vault: what a permit took, what is held, NFTs, and vaults of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from web3.contract import Contract

from adapters.evm.vault import Vault
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Block, Reading, Subject
from infra.devnet.anvil import Anvil, connect, transact
from infra.devnet.evm_deploy import accept_tokens, deploy_multicall3, deploy_token, deploy_vault
from tests.chain.evm_venues import CHAIN, make_reader
from tests.contracts.evm_reference import Quorum
from tests.contracts.evm_vaults import (
    DEPLOYMENT_ID,
    SignedTerms,
    chain_word,
    compile_and_deploy,
    deploy_quorum_stub,
    hold_digest,
    sign,
)

pytestmark = pytest.mark.chain
ACCOUNT, OTHER = b"\x01" * 32, b"\x02" * 32
ATTESTORS, DELAY = Quorum(4), 60


class Place(NamedTuple):
    anvil: Anvil
    vault: Contract
    token: Contract

    async def read(self, deployment_id: bytes | None = DEPLOYMENT_ID) -> Reading:
        address = str(self.token.address).lower()
        row = AssetRow(
            id=f"{CHAIN}/erc20:{address}", symbol="USDC", kind="erc20", decimals=6, feed="USDC/USD", policy="x"
        )
        adapter = Vault(CHAIN, str(self.vault.address), {row.id: row}, deployment_id)
        reader = make_reader(self.anvil, [adapter])
        body = self.anvil.rpc("eth_getBlockByNumber", "latest", False)
        block = Block(CHAIN, int(body["number"], 16), body["hash"], body["parentHash"], int(body["timestamp"], 16))
        reading = await reader.read(block, [Subject("0x" + a.hex(), None) for a in (ACCOUNT, OTHER)])
        await reader.close()
        return reading


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with Anvil() as anvil:
        w3 = connect(anvil.url)
        deploy_multicall3(w3)
        vault = deploy_vault(w3, DELAY, deploy_quorum_stub(w3, ATTESTORS, Quorum(4, seed=2)))
        token = deploy_token(w3, "USD Coin", "USDC", 6)
        nft = compile_and_deploy(w3, "TestNft")
        owner = w3.eth.accounts[1]
        accept_tokens(w3, vault, token.address, nft.address)
        transact(w3, token.functions.mint(owner, 1000))
        transact(w3, token.functions.approve(vault.address, 1000), owner)
        transact(w3, vault.functions.deposit(ACCOUNT, token.address, 900), owner)
        transact(w3, vault.functions.request(ACCOUNT, token.address, 300), owner)
        for id in (1, 2):
            transact(w3, nft.functions.mint(owner, id))
        transact(w3, nft.functions.setApprovalForAll(vault.address, True), owner)
        transact(w3, vault.functions.depositNft(ACCOUNT, nft.address, 1), owner)
        transact(w3, vault.functions.depositNft(OTHER, nft.address, 2), owner)
        now = int(w3.eth.get_block("latest")["timestamp"])
        until = now + 1000
        held = hold_digest(ACCOUNT, chain_word(31337), vault.address, until, 5)
        transact(w3, vault.functions.hold(ACCOUNT, until, 5, *sign(ATTESTORS, held)), owner)
        permit = SignedTerms(
            *(ACCOUNT, chain_word(31337), vault.address, token.address, 100, owner, b"\x0a" * 32, 6), now + 600
        )
        transact(w3, vault.functions.withdraw(permit.terms(), 0, *sign(ATTESTORS, permit.digest())), owner)
        yield Place(anvil, vault, token)


async def test_what_is_held_stays_pending_and_what_a_permit_took_is_gone(place: Place) -> None:
    reading = await place.read()
    (position,) = reading.positions
    assert reading.findings == ()
    assert (position.account, position.quantity, position.amount) == ("0x" + ACCOUNT.hex(), 800, 800)
    assert (position.pending, position.control, position.removal_delay) == (300, "seizable", DELAY)
    assert position.origin == str(place.vault.address).lower()
    assert (await place.read(None)).positions == reading.positions


async def test_a_vault_of_another_deployment_backs_nobody(place: Place) -> None:
    reading = await place.read(b"\x0e" * 32)
    assert reading.positions == ()
    assert {f.scope for f in reading.findings} == {"0x" + ACCOUNT.hex(), "0x" + OTHER.hex()}
    assert all("0x" + DEPLOYMENT_ID.hex() in f.detail and "0x" + "0e" * 32 in f.detail for f in reading.findings)


def test_a_vault_that_names_no_deployment_backs_nobody() -> None:
    flow = Vault(CHAIN, "0x" + "aa" * 20, {}, DEPLOYMENT_ID).flow([Subject("0x" + ACCOUNT.hex(), None)])
    assert len(next(flow)) == 2
    with pytest.raises(StopIteration) as stopped:
        flow.send([DELAY.to_bytes(32, "big"), None])
    positions, (finding,) = stopped.value.value
    assert positions == ()
    assert "deploymentId() is nothing" in finding.detail
