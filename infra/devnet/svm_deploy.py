"""Put our programs, two mints, a registry, a vault and a lender on the local Solana chain, and act as its users.

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
from solders.compute_budget import set_compute_unit_limit
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
    build_hold,
    build_limit,
    build_list,
    build_registry_init,
    build_request,
    build_vault_init,
    build_withdraw,
    registry_address,
    vault_address,
)
from infra.devnet.svm_consumer import Lender
from proofs.permits import Hold, Permit
from proofs.quorum import IndexedSignature
from proofs.statement import Deployment

PROGRAMS = Path(__file__).parents[2] / "proofs" / "programs"
LAMPORTS = 10**9
UNITS = 600_000
"""Compute units asked for where signatures are verified; 13 of them take about 360,000."""
USDC_DECIMALS = 6
LENDER_FUNDS = 1_000_000 * 10**USDC_DECIMALS
VAULT_LIMIT = 2**64 - 1
"""Base units of each mint that the vault takes: as many as there can be."""
_TOKEN = Pubkey.from_string(TOKEN_PROGRAM)
_NATIVE = Pubkey.from_string(NATIVE_MINT)


@dataclass(frozen=True, slots=True)
class SolanaSpec:
    """What to deploy.

    Args:
        payer: pays for everything, is the mint authority, the registry's governance and its guardian; it is given
            1,000 SOL.
        deployment: genesis attestors and threshold.
        destination: 32-byte id of this chain as a destination, keccak256 of its CAIP-2 id.
        epoch_seconds, clock_skew, max_lifetime: see `RegistryParameters`.
        vault_delay: seconds between request and claim.
        timelock: seconds until what governance decides takes effect; the lender may draw after it.
    """

    payer: Keypair
    deployment: Deployment
    destination: bytes
    epoch_seconds: int
    clock_skew: int
    max_lifetime: int
    vault_delay: int
    timelock: int = 0

    @property
    def parameters(self) -> RegistryParameters:
        """The registry's parameters."""
        me = self.payer.pubkey()
        times = self.epoch_seconds, self.clock_skew, self.max_lifetime
        return RegistryParameters(self.destination, *times, governance=me, guardian=me, timelock=self.timelock)


def program_id(name: str) -> Pubkey:
    """Return the address a program has on every devnet of ours: the key of the seed sha256("crossmargin/NAME")."""
    return Keypair.from_seed(hashlib.sha256(f"crossmargin/{name}".encode()).digest()).pubkey()


async def deploy_solana(url: str, spec: SolanaSpec) -> dict[str, str]:
    """Deploy on the facade at `url`; return base58 addresses.

    Keys: registry_program, registry, vault_program, vault, links_program, consumer_program, lender (what is listed at
    the registry; it lends USDC), lender_pool (its token account, funded), usdc_mint, sol_mint (wrapped SOL), payer.

    Raises:
        RuntimeError: a transaction failed; its error is named.
    """
    async with SolanaUser(url, spec.payer) as payer:
        await payer.airdrop(1_000 * LAMPORTS)
        for name in ("registry", "vault", "links", "consumer"):
            elf = base64.b64encode((PROGRAMS / f"{name}.so").read_bytes()).decode()
            await steer(url, "x_addProgram", str(program_id(name)), elf)
        registry_program, vault_program, me = program_id("registry"), program_id("vault"), spec.payer.pubkey()
        deployment_id = spec.deployment.deployment_id()
        usdc = await payer.create_mint(USDC_DECIMALS)
        await payer.send([build_registry_init(registry_program, me, spec.deployment, spec.parameters)])
        registry = registry_address(registry_program, deployment_id, spec.parameters)
        vault = vault_address(vault_program, registry, spec.vault_delay)
        await payer.send([build_vault_init(vault_program, me, registry, spec.vault_delay)])
        lender = Lender(program_id("consumer"), registry_program, registry, usdc)
        genesis = (await payer.client.get_genesis_hash()).value
        await payer.send([lender.build_init(me, f"solana:{str(genesis)[:32]}")])
        await payer.send([build_list(registry_program, registry, me, me, lender.address)])
        funds = MintToParams(program_id=_TOKEN, mint=usdc, dest=lender.pool, mint_authority=me, amount=LENDER_FUNDS)
        await payer.send([mint_to(funds)])
        await payer.send([build_limit(vault_program, vault, registry, me, m, VAULT_LIMIT, me) for m in (usdc, _NATIVE)])
    return {
        "registry_program": str(registry_program),
        "registry": str(registry),
        "vault_program": str(vault_program),
        "vault": str(vault),
        "links_program": str(program_id("links")),
        "consumer_program": str(lender.program),
        "lender": str(lender.address),
        "lender_pool": str(lender.pool),
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

    async def hold(self, program: Pubkey, registry: Pubkey, hold: Hold, signatures: Sequence[IndexedSignature]) -> None:
        """Bring a hold to the vault it names."""
        await self.send([set_compute_unit_limit(UNITS), build_hold(program, registry, hold, signatures)])

    async def withdraw(
        self, program: Pubkey, registry: Pubkey, permit: Permit, signatures: Sequence[IndexedSignature]
    ) -> None:
        """Use a permit: `permit.to` is paid at once."""
        withdraw = build_withdraw(program, registry, self.address, permit, signatures)
        await self.send([set_compute_unit_limit(UNITS), withdraw])


async def act(url: str, key: Keypair, what: Callable[[SolanaUser], Awaitable[None]]) -> None:
    """Run `what` as the user with `key`."""
    async with SolanaUser(url, key) as user:
        await what(user)
