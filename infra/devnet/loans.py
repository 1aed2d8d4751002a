"""Loans of the demo: what the example lenders of all three chains lend against budgets, and what they refuse."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from solders.instruction import Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.instructions import create_idempotent_associated_token_account, get_associated_token_address
from web3.exceptions import Web3Exception

from adapters.solana.layouts import RawAccount
from adapters.solana.programs import RegistryRefusal, build_apply, decode_registry
from infra.devnet.anvil import AnvilError, transact
from infra.devnet.evm_deploy import at
from infra.devnet.svm_consumer import Lender
from infra.devnet.svm_deploy import SolanaUser
from infra.devnet.traders import USDC, Desk, Trader
from infra.devnet.world import EvmChain, World
from proofs.leaf import Leaf

TRIES, PAUSE = 20, 0.7
"""A newer root voids older budgets, so a loan that was under way when one came is asked for again."""
TIP = 20 * 10**9  # wei per gas: into its block before the next posting, which would void the leaf it borrows on


class LoanError(RuntimeError):
    """A loan did not come about; the message is the lender's, or the registry's behind it."""


Choose = Callable[[int], int]
"""From what is left of a budget (1e-8 USD) to base units of USDC."""


def share_of(part: float) -> Choose:
    """Return a choice of ``part`` of what is left, in whole dollars."""
    return lambda left: int(left * part) // 100 // USDC * USDC


def above(amount: int) -> Choose:
    """Return a choice of ``amount`` base units more than what is left."""
    return lambda left: left // 100 + amount


class Loans:
    """Borrows for the traders, at the lender of a chain, with the newest leaf that its registry knows."""

    def __init__(self, world: World, desk: Desk) -> None:
        self._world, self._desk = world, desk
        self._opened: set[tuple[str, str]] = set()

    def borrow(self, trader: Trader, chain: str, choose: Choose) -> int:
        """Borrow at the lender of a chain (its name); return base units of USDC.

        Raises:
            LoanError: the lender refused, time and again.
        """
        attempt = self._borrow_on_solana if chain == "sol" else self._borrow_on_evm
        problem = "never tried"
        for _ in range(TRIES):
            try:
                return attempt(trader, chain, choose)
            except (LoanError, Web3Exception, AnvilError, RuntimeError) as error:
                problem = _explain(error)
                if "budget" in problem:
                    break
                time.sleep(PAUSE)
        raise LoanError(problem) from None

    def left(self, trader: Trader, chain: str) -> int:
        """Return what may still be drawn at a chain by the newest leaf its registry can be shown, 1e-8 USD."""
        leaf, _ = self._leaf(trader, chain)
        return max(0, leaf.budget - self.used(trader, chain))

    def used(self, trader: Trader, chain: str) -> int:
        """Return what consumers of a chain have drawn, 1e-8 USD."""
        account = self._desk.account(trader)
        margin = self._desk.get(f"/v1/accounts/{account}/margin")
        row = next(b for b in margin["budgets"] if b["destination"] == self._chain_id(chain))
        return int(row["used"]["exact"])

    # --- EVM ---------------------------------------------------------------------------------------------------------

    def _borrow_on_evm(self, trader: Trader, name: str, choose: Choose) -> int:
        chain, who = self._desk.chain(name), trader.key.address
        lender = at(chain.w3, "ExampleLender", chain.contracts["lender"])
        registry = at(chain.w3, "MarginRegistry", chain.contracts["registry"])
        account = bytes.fromhex(self._desk.account(trader)[2:])
        if (trader.label, name) not in self._opened:
            home = self._desk.chain(trader.controller)
            opening = (
                lender.functions.open(account, trader.salt)
                if home is chain
                else lender.functions.openFrom(int(home.id.partition(":")[2]), account, trader.salt)
            )
            transact(chain.w3, opening, who)
            self._opened.add((trader.label, name))
        leaf, proof = self._leaf(trader, name)
        amount = choose(max(0, leaf.budget - int(registry.functions.used(account).call())))
        values = dataclasses.astuple(leaf)
        loan = lender.functions.borrow(values, proof, amount)
        loan.call({"from": who})  # says why, should it be refused
        transact(chain.w3, loan, who, tip=TIP)
        return amount

    # --- Solana ------------------------------------------------------------------------------------------------------

    def _borrow_on_solana(self, trader: Trader, name: str, choose: Choose) -> int:
        leaf, proof = self._leaf(trader, name)
        amount = choose(max(0, leaf.budget - self.used(trader, name)))
        names = {key: Pubkey.from_string(value) for key, value in self._world.solana.items()}
        lender = Lender(names["consumer_program"], names["registry_program"], names["registry"], names["usdc_mint"])
        owner = trader.solana.pubkey()
        to = get_associated_token_address(owner, names["usdc_mint"])
        first = [create_idempotent_associated_token_account(owner, owner, names["usdc_mint"])]
        loan = [
            build_apply(names["registry_program"], names["registry"], owner, leaf, proof),
            lender.build_borrow(owner, leaf.account, trader.salt, to, amount),
        ]
        asyncio.run(_send(self._world.svm.url, trader.solana, first))
        asyncio.run(_send(self._world.svm.url, trader.solana, loan))
        return amount

    # --- leaves ------------------------------------------------------------------------------------------------------

    def _leaf(self, trader: Trader, chain: str) -> tuple[Leaf, list[bytes]]:
        """Return a trader's leaf at a chain, of the epoch that its registry holds, with its proof."""
        epoch = self.posted_epoch(chain)
        where = f"destination={self._chain_id(chain)}&epoch={epoch}"
        proof = self._desk.get(f"/v1/accounts/{self._desk.account(trader)}/margin/proof?{where}")
        return decode_proof(proof)

    def posted_epoch(self, chain: str) -> int:
        """Return the newest epoch that a chain's registry holds."""
        if chain != "sol":
            return self._desk.posted_epoch(self._desk.chain(chain))
        registry, program = self._world.solana["registry"], self._world.solana["registry_program"]
        return asyncio.run(_posted_on_solana(self._world.svm.url, registry, program))

    def _chain_id(self, chain: str) -> str:
        return self._world.sol if chain == "sol" else self._evm(chain).id

    def _evm(self, chain: str) -> EvmChain:
        return self._desk.chain(chain)


def _explain(error: Exception) -> str:
    """Return why a lender, or the registry behind it, refused, in its own words."""
    said = str(error.args[0]) if isinstance(error, Web3Exception) and error.args else str(error)
    code = re.search(r"Custom\((\d+)\)", said)
    if code is None:
        return said.removeprefix("execution reverted: ")
    known = {refusal.value: refusal.name for refusal in RegistryRefusal}
    return known.get(int(code[1]), said).lower().replace("_", " ")


def decode_proof(proof: Mapping[str, Any]) -> tuple[Leaf, list[bytes]]:
    """Return the leaf and the path of an API proof."""
    given = proof["leaf"]
    names = [*("epoch", "equity", "assets_initial", "requirement_initial", "assets_maintenance")]
    names += ["requirement_maintenance", "budget", "as_of", "valid_until", "flags"]
    ids = bytes.fromhex(given["account"][2:]), bytes.fromhex(given["destination"][2:])
    return Leaf(*ids, *(int(given[n]) for n in names)), [bytes.fromhex(node[2:]) for node in proof["proof"]]


async def _send(url: str, key: Keypair, instructions: list[Instruction]) -> None:
    async with SolanaUser(url, key) as user:
        await user.send(instructions)


async def _posted_on_solana(url: str, registry: str, program: str) -> int:
    async with SolanaUser(url, Keypair()) as user:
        answer = (await user.client.get_account_info(Pubkey.from_string(registry))).value
    if answer is None:
        raise LoanError(f"there is no registry at {registry}")
    raw = RawAccount(answer.lamports, str(answer.owner), bytes(answer.data))
    return decode_registry(registry, raw, Pubkey.from_string(program)).epoch
