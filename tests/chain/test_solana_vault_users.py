"""Users of the vault on the local Solana chain, over JSON-RPC: deposit, be held, withdraw by permit."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.instructions import get_associated_token_address

from adapters.solana.layouts import RawAccount
from adapters.solana.programs import VaultRefusal, decode_hold, hold_address
from infra.devnet.svm import SvmServer
from infra.devnet.svm_deploy import SolanaSpec, SolanaUser, deploy_solana
from proofs.hashing import keccak256
from proofs.permits import Hold, Permit, chain_word, hold_digest, permit_digest
from proofs.quorum import IndexedSignature
from proofs.statement import Deployment
from tests.contracts.solana_reference import KEYS_BY_INDEX, sign

pytestmark = pytest.mark.chain

ACCOUNT = b"\x11" * 32


def attest(digest: bytes) -> list[IndexedSignature]:
    return [IndexedSignature.unpack(sign(KEYS_BY_INDEX[i], i, digest)) for i in range(3)]


async def test_a_hold_and_a_permit_travel_as_users_send_them() -> None:
    members = tuple(key.public_key.to_canonical_address() for key in KEYS_BY_INDEX[:4])
    deployment = Deployment(3, members, 3, int(time.time()) + 3_600, b"\x07" * 32)
    deployment_id = deployment.deployment_id()
    with SvmServer(slot_ms=50, finalized_depth=4) as server:
        chain = f"solana:{server.genesis[:32]}"
        payer_key = Keypair()
        spec = SolanaSpec(payer_key, deployment, chain_word(chain), 60, 5, 120, 30)
        at = {name: Pubkey.from_string(key) for name, key in (await deploy_solana(server.url, spec)).items()}
        program, vault, registry, usdc = at["vault_program"], at["vault"], at["registry"], at["usdc_mint"]
        async with SolanaUser(server.url, Keypair()) as user, SolanaUser(server.url, payer_key) as payer:
            await user.airdrop(10**10)
            wallet = await payer.mint_to(usdc, user.address, 1_000)
            await user.deposit(program, vault, ACCOUNT, usdc, 600)

            now = int(time.time())
            hold = Hold(ACCOUNT, chain_word(chain), bytes(vault), now + 3_600, now // 60 - 1)
            await payer.hold(program, registry, hold, attest(hold_digest(hold, deployment_id)))
            found = (await user.client.get_account_info(hold_address(program, vault, ACCOUNT))).value
            assert found is not None
            standing = decode_hold("", RawAccount(found.lamports, str(found.owner), bytes(found.data)), program)
            assert (standing.until, standing.epoch) == (hold.until, hold.epoch)

            asset, to = bytes(usdc), bytes(wallet)
            permit = Permit(
                ACCOUNT, chain_word(chain), bytes(vault), asset, 250, to, keccak256(b"1"), now // 60, now + 600
            )
            older = replace(permit, epoch=hold.epoch)
            with pytest.raises(RuntimeError, match=rf"Custom\({VaultRefusal.HELD:d}\)"):
                await user.withdraw(program, registry, older, attest(permit_digest(older, deployment_id)))
            await user.withdraw(program, registry, permit, attest(permit_digest(permit, deployment_id)))
            assert wallet == get_associated_token_address(user.address, usdc)
            assert (await user.client.get_token_account_balance(wallet)).value.amount == "650"
