"""Put our programs, two mints, a registry and a vault on the local Solana chain, and act as its users.

The programs are loaded with the facade's own `x_addProgram`, because LiteSVM takes a program only directly; on a
cluster `solana program deploy` does it. Everything after that is ordinary transactions.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solana.rpc.models import TxOpts
from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.message import Message
from solders.pubkey import Pubkey
from solders.system_program import CreateAccountParams, TransferParams, create_account, transfer
from solders.transaction import VersionedTransaction
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    initialize_mint2,
    mint_to,
    sync_native,
)
from spl.token.models import InitializeMint2Params, MintToParams, SyncNativeParams

from adapters.solana.layouts import NATIVE_MINT, TOKEN_PROGRAM
from adapters.solana.programs import (
    RegistryParameters,
    build_cancel,
    build_claim,
    build_deposit,
    build_registry_init,
    build_request,
    build_vault_init,
    registry_address,
    vault_address,
)
from proofs.statement import Deployment

PROGRAMS = Path(__file__).parents[2] / "proofs" / "programs"
LAMPORTS = 10**9
USDC_DECIMALS = 6
_TOKEN = Pubkey.from_string(TOKEN_PROGRAM)
_NATIVE = Pubkey.from_string(NATIVE_MINT)


@dataclass(frozen=True, slots=True)
class SolanaSpec:
    """What to deploy.

    Args:
        payer: pays for everything and is the mint authority; it is given 1,000 SOL.
        deployment: genesis attestors and threshold.
        destination: 32-byte id of this chain as a destination.
        epoch_seconds, clock_skew, max_lifetime: see `RegistryParameters`.
        vault_delay: seconds between request and claim.
    """

    payer: Keypair
    deployment: Deployment
    destination: bytes
    epoch_seconds: int
    clock_skew: int
    max_lifetime: int
    vault_delay: int

    @property
    def parameters(self) -> RegistryParameters:
        """The registry's parameters."""
        return RegistryParameters(self.destination, self.epoch_seconds, self.clock_skew, self.max_lifetime)


def program_id(name: str) -> Pubkey:
    """Return the address a program has on every devnet of ours: the key of the seed sha256("crossmargin/NAME")."""
    return Keypair.from_seed(hashlib.sha256(f"crossmargin/{name}".encode()).digest()).pubkey()


async def deploy_solana(url: str, spec: SolanaSpec) -> dict[str, str]:
    """Deploy on the facade at `url`; return base58 addresses.

    Keys: registry_program, registry, vault_program, vault, links_program, usdc_mint, sol_mint (wrapped SOL), payer.

    Raises:
        RuntimeError: a transaction failed; its error is named.
    """
    async with SolanaUser(url, spec.payer) as payer:
        await payer.airdrop(1_000 * LAMPORTS)
        for name in ("registry", "vault", "links"):
            elf = base64.b64encode((PROGRAMS / f"{name}.so").read_bytes()).decode()
            await steer(url, "x_addProgram", str(program_id(name)), elf)
        registry_program, vault_program, me = program_id("registry"), program_id("vault"), spec.payer.pubkey()
        deployment_id = spec.deployment.deployment_id()
        usdc = await payer.create_mint(USDC_DECIMALS)
        await payer.send([build_registry_init(registry_program, me, spec.deployment, spec.parameters)])
        await payer.send([build_vault_init(vault_program, me, deployment_id, spec.vault_delay)])
    return {
        "registry_program": str(registry_program),
        "registry": str(registry_address(registry_program, deployment_id, spec.parameters)),
        "vault_program": str(vault_program),
        "vault": str(vault_address(vault_program, deployment_id, spec.vault_delay)),
        "links_program": str(program_id("links")),
        "usdc_mint": str(usdc),
        "sol_mint": NATIVE_MINT,
        "payer": str(me),
    }


async def steer(url: str, method: str, *params: Any) -> Any:
    """Call one of the facade's `x_` methods; return its result. Raises RuntimeError."""
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.post(url, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    answer = response.json()
    if "error" in answer:
        raise RuntimeError(f"{method}: {answer['error']['message']}")
    return answer["result"]


class SolanaUser:
    """One key on the chain; an async context manager.

    Each method returns when its transaction is confirmed, and raises RuntimeError when it failed.
    """

    def __init__(self, url: str, key: Keypair) -> None:
        self.key = key
        self.client = AsyncClient(url, commitment=Confirmed)

    async def __aenter__(self) -> SolanaUser:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.client.close()

    @property
    def address(self) -> Pubkey:
        """The user's address."""
        return self.key.pubkey()

    async def airdrop(self, lamports: int) -> None:
        """Receive lamports."""
        signature = (await self.client.request_airdrop(self.address, lamports)).value
        await self.client.confirm_transaction(signature, Confirmed, sleep_seconds=0.05)

    async def send(self, instructions: Sequence[Instruction], signers: Sequence[Keypair] = ()) -> str:
        """Send one transaction paid by this user; return its signature once confirmed."""
        latest = (await self.client.get_latest_blockhash(Confirmed)).value
        message = Message.new_with_blockhash(list(instructions), self.address, latest.blockhash)
        transaction = VersionedTransaction(message, [self.key, *signers])
        options = TxOpts(skip_preflight=True, preflight_commitment=Confirmed)
        signature = (await self.client.send_raw_transaction(bytes(transaction), options)).value
        await self.client.confirm_transaction(
            signature, Confirmed, sleep_seconds=0.05, last_valid_block_height=latest.last_valid_block_height
        )
        status = (await self.client.get_signature_statuses([signature])).value[0]
        if status is None or status.err is not None:
            raise RuntimeError(f"transaction {signature} failed: {status.err if status else 'it vanished'}")
        return str(signature)

    async def create_mint(self, decimals: int) -> Pubkey:
        """Create an SPL mint with this user as mint and freeze authority; return its address."""
        mint, size = Keypair(), 82
        rent = (await self.client.get_minimum_balance_for_rent_exemption(size)).value
        await self.send(
            [
                create_account(
                    CreateAccountParams(
                        from_pubkey=self.address, to_pubkey=mint.pubkey(), lamports=rent, space=size, owner=_TOKEN
                    )
                ),
                initialize_mint2(
                    InitializeMint2Params(
                        decimals=decimals,
                        program_id=_TOKEN,
                        mint=mint.pubkey(),
                        mint_authority=self.address,
                        freeze_authority=self.address,
                    )
                ),
            ],
            [mint],
        )
        return mint.pubkey()

    async def mint_to(self, mint: Pubkey, owner: Pubkey, amount: int) -> Pubkey:
        """Mint `amount` base units to `owner`; return its associated token account."""
        target = get_associated_token_address(owner, mint)
        await self.send(
            [
                create_idempotent_associated_token_account(self.address, owner, mint),
                mint_to(
                    MintToParams(program_id=_TOKEN, mint=mint, dest=target, mint_authority=self.address, amount=amount)
                ),
            ]
        )
        return target

    async def wrap_sol(self, lamports: int) -> Pubkey:
        """Turn lamports into wrapped SOL; return the associated token account that holds it."""
        target = get_associated_token_address(self.address, _NATIVE)
        await self.send(
            [
                create_idempotent_associated_token_account(self.address, self.address, _NATIVE),
                transfer(TransferParams(from_pubkey=self.address, to_pubkey=target, lamports=lamports)),
                sync_native(SyncNativeParams(program_id=_TOKEN, account=target)),
            ]
        )
        return target

    async def deposit(self, program: Pubkey, vault: Pubkey, account: bytes, mint: Pubkey, amount: int) -> None:
        """Deposit from the associated token account for a margin account (32 bytes)."""
        source = get_associated_token_address(self.address, mint)
        await self.send([build_deposit(program, vault, self.address, account, mint, source, amount)])

    async def request(self, program: Pubkey, vault: Pubkey, account: bytes, mint: Pubkey, amount: int) -> None:
        """Ask for `amount` back."""
        await self.send([build_request(program, vault, self.address, account, mint, amount)])

    async def cancel(self, program: Pubkey, vault: Pubkey, account: bytes, mint: Pubkey) -> None:
        """Take the open request back."""
        await self.send([build_cancel(program, vault, self.address, account, mint)])

    async def claim(self, program: Pubkey, vault: Pubkey, account: bytes, mint: Pubkey) -> None:
        """Receive what was requested, into the associated token account."""
        target = get_associated_token_address(self.address, mint)
        await self.send(
            [
                create_idempotent_associated_token_account(self.address, self.address, mint),
                build_claim(program, vault, self.address, account, mint, target),
            ]
        )


async def act(url: str, key: Keypair, what: Callable[[SolanaUser], Awaitable[None]]) -> None:
    """Run `what` as the user with `key`."""
    async with SolanaUser(url, key) as user:
        await what(user)
