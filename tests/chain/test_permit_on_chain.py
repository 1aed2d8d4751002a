"""From a controller's signature to the payment: attestors with files of their own, registry and vault on Anvil."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from web3 import Web3
from web3.exceptions import Web3Exception

from adapters.permit_book import SqlitePermitBook
from aggregator.domain.certificate import Attestation
from aggregator.domain.permits import HoldRecord
from aggregator.service.permits import Newest, PermitDesk, collect_hold, hold_until
from infra.devnet.anvil import Anvil, connect, transact
from infra.devnet.evm_deploy import EvmSpec, accept_tokens, at, deploy_registry, deploy_token, deploy_vault
from proofs.quorum import minimal_threshold
from proofs.statement import Deployment
from tests.contracts.evm_reference import pack_indices
from tests.strategies import EVM, USDC, account_id, debt
from tests.unit.service import permit_world
from tests.unit.service.permit_world import (
    BOUNDS,
    DOLLAR,
    EPOCH,
    FUNDS,
    GROUP,
    SLACK,
    Accounts,
    Attesting,
    asked,
    newest_of,
)

pytestmark = pytest.mark.chain
SALT = b"\x5a" * 32


def wire(attestations: tuple[Attestation, ...]) -> tuple[int, list[tuple[bytes, bytes]]]:
    return pack_indices([a.index for a in attestations]), [(a.r, a.vs) for a in attestations]


def running(newest: Newest, now: int) -> Newest:
    """Return an epoch as if it were in force at ``now``."""
    return newest._replace(epoch=replace(newest.epoch, snapshot=replace(newest.epoch.snapshot, valid_until=now + 300)))


async def test_a_quorums_permit_and_hold_are_what_the_vault_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Anvil() as anvil:
        w3 = connect(anvil.url)
        now = int(w3.eth.get_block("latest")["timestamp"])
        threshold = minimal_threshold(len(GROUP.members))
        deployment = Deployment(3, GROUP.members, threshold, now + 10**6, SALT)
        monkeypatch.setattr(permit_world, "DEPLOYMENT", deployment.deployment_id())
        members = tuple("0x" + member.hex() for member in GROUP.members)
        registry = deploy_registry(w3, EvmSpec(members, threshold, now + 10**6, SALT, {}))
        vault = deploy_vault(w3, 60, registry)
        assert bytes(vault.functions.deploymentId().call()) == deployment.deployment_id()
        address, depositor, to = str(vault.address).lower(), w3.eth.accounts[1], w3.eth.accounts[2]

        # The token has to be where the valuation knows it.
        token = Web3.to_checksum_address(USDC.rpartition(":")[2])
        anvil.rpc("anvil_setCode", token, w3.eth.get_code(deploy_token(w3, "USD Coin", "USDC", 6).address).hex())
        usdc = at(w3, "TestToken", token)
        accept_tokens(w3, vault, token)
        account = bytes.fromhex(account_id(1)[2:])
        transact(w3, usdc.functions.mint(depositor, 1_000 * DOLLAR))
        transact(w3, usdc.functions.approve(vault.address, 1_000 * DOLLAR), depositor)
        transact(w3, vault.functions.deposit(account, token, 1_000 * DOLLAR), depositor)

        seconds = now // EPOCH
        monkeypatch.setattr(permit_world, "EPOCH_SECONDS", seconds)  # so that it is EPOCH now, on this chain
        newest = running(newest_of(FUNDS._replace(origin=address), debt(1, USDC, 100.0)), now)
        clock = permit_world.Clock()
        clock.time = float(now)
        attestors = [Attesting(tmp_path / f"attestor-{i}", i, clock, newest, vault=address) for i in range(4)]
        book = SqlitePermitBook(tmp_path / "permits.sqlite")

        async def number() -> int | None:
            return EPOCH

        owner = next(a for a in newest.epoch.snapshot.accounts if a.id == account_id(1))
        desk = PermitDesk(
            *(deployment.deployment_id(), Accounts(owner), book, attestors, lambda epoch: GROUP, number),
            *(lambda: newest, attestors[0].grants, {EVM: {address}}, BOUNDS, SLACK, clock),
        )
        wanted = asked(300 * DOLLAR, vault=address, to=str(to).lower(), expiry=now + 3000)
        signed = await desk.collect_permit(wanted)
        terms = (account, token, wanted.amount, to, bytes.fromhex(wanted.nonce[2:]), EPOCH, wanted.expiry)
        withdraw = vault.functions.withdraw(terms, 0, *wire(signed.attestations))

        # A hold of the same epoch stops it.
        for attestor in attestors:
            attestor.newest = running(newest_of(FUNDS._replace(origin=address), debt(1, USDC, 2_000.0)), now)
        snapshot = anvil.rpc("evm_snapshot")
        until = hold_until(EPOCH, seconds)
        held = await collect_hold(
            attestors, deployment.deployment_id(), GROUP, HoldRecord(account_id(1), EVM, address, until, EPOCH)
        )
        transact(w3, vault.functions.hold(account, until, EPOCH, *wire(held.attestations)), to)
        assert list(vault.functions.holds(account).call()) == [until, EPOCH]
        with pytest.raises(Web3Exception, match="held"):
            withdraw.call({"from": depositor})
        anvil.rpc("evm_revert", snapshot)

        transact(w3, withdraw, depositor)
        assert usdc.functions.balanceOf(to).call() == 300 * DOLLAR
        assert vault.functions.position(account, token).call() == [700 * DOLLAR, 0]
        for file in (book, *attestors):
            await file.close()
