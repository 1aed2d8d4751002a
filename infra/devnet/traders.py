"""Seven traders: whom the demo opens accounts for, what they deposit and trade where, how they sign and borrow."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
from eth_account import Account as EthAccount
from eth_account.signers.local import LocalAccount
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from web3 import Web3
from web3.contract import Contract

from aggregator.domain.snapshot import Account
from aggregator.service.accounts import link_message
from infra.devnet.aave import load_aave
from infra.devnet.anvil import MNEMONIC, transact
from infra.devnet.evm_deploy import LISTED, at
from infra.devnet.svm_deploy import SolanaUser
from infra.devnet.world import EvmChain, World
from proofs.links import account_id

Deposit = tuple[str, str, int]
"""(chain name, what, base units); what = weth, usdc, aweth, vault4626, wsol."""

Trade = tuple[str, int]
"""(instrument of ``LISTED``, size in 1e-18 units, negative = sold)."""

LINK_LIFE = 3600  # seconds a signed link may wait to be recorded


@dataclass(frozen=True)
class Trader:
    """One account of the demo.

    controller: chain name whose key controls the account; its destination holds the budget.
    deposits: into collateral vaults. wallet: left in the linked wallet itself. aave: (supplied WETH, borrowed USDC).
    borrow: share of the budget to draw from the example lender of the controller's chain.
    collateral: deposited at the example venue of the controller's chain, for what ``trades`` buys and sells there.
    """

    label: str
    story: str
    controller: str
    seat: int  # index among Anvil's accounts
    deposits: tuple[Deposit, ...] = ()
    wallet: tuple[Deposit, ...] = ()
    aave: tuple[int, int] | None = None
    kind: str = "risk-bearing"
    borrow: float = 0.0
    collateral: tuple[tuple[str, int], ...] = ()  # (what, base units); what = usdc, weth
    trades: tuple[Trade, ...] = ()
    solana: Keypair = field(default_factory=Keypair)

    @property
    def key(self) -> LocalAccount:
        """Its EVM key, the same on both EVM chains."""
        EthAccount.enable_unaudited_hdwallet_features()
        key: LocalAccount = EthAccount.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{self.seat}")
        return key

    @property
    def salt(self) -> bytes:
        """Its account's salt."""
        return self.seat.to_bytes(32, "big")


WETH, USDC, WSOL = 10**18, 10**6, 10**9
UNIT = 10**18  # of an instrument
ANY_PRICE = 2**255
TRADERS = (
    Trader(
        "meridian",
        "vault deposits on three chains, a loan on one",
        "alpha",
        2,
        (("alpha", "weth", 10 * WETH), ("beta", "usdc", 25_000 * USDC), ("sol", "wsol", 150 * WSOL)),
        wallet=(("alpha", "weth", 2 * WETH),),
        borrow=0.35,
    ),
    Trader(
        "harbor",
        "aTokens and ERC-4626 shares held in a vault",
        "alpha",
        3,
        (("alpha", "aweth", 6 * WETH), ("alpha", "vault4626", 20_000 * USDC)),
    ),
    Trader(
        "solstice",
        "everything on Solana, a loan there too",
        "sol",
        4,
        (("sol", "wsol", 400 * WSOL), ("sol", "usdc", 12_000 * USDC)),
        borrow=0.2,
    ),
    Trader(
        "tightrope",
        "near liquidation: borrows almost all it may",
        "beta",
        5,
        (("beta", "weth", 8 * WETH),),
        borrow=0.97,
    ),
    Trader(
        "lookout",
        "a monitored wallet with real Aave debt",
        "alpha",
        6,
        wallet=(("alpha", "weth", 3 * WETH), ("alpha", "usdc", 4_000 * USDC)),
        aave=(5 * WETH, 8_000 * USDC),
        kind="monitored",
    ),
    Trader(
        "ballast",
        "ether in a vault, hedged by a short perp and bought puts",
        "alpha",
        7,
        (("alpha", "weth", 10 * WETH),),
        collateral=(("usdc", 6_000 * USDC),),
        trades=(("perp", -5 * UNIT), ("put-near", 3 * UNIT)),
    ),
    Trader(
        "squall",
        "an inverse perp, and calls sold without cover",
        "alpha",
        8,
        (("alpha", "usdc", 40_000 * USDC),),
        collateral=(("usdc", 8_000 * USDC), ("weth", WETH)),
        trades=(("inverse", 6_000 * UNIT), ("call-far", -4 * UNIT)),
    ),
)


class Desk:
    """Acts for the traders: deposits, opens accounts through the API, signs links, borrows against proofs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.api = httpx.Client(base_url=world.url, timeout=10)

    def chain(self, name: str) -> EvmChain:
        """Return an EVM chain by name."""
        return self.world.alpha if name == "alpha" else self.world.beta

    def address(self, trader: Trader, chain: str) -> str:
        """Return a trader's CAIP-10 address on a chain."""
        if chain == "sol":
            return f"{self.world.sol}:{trader.solana.pubkey()}"
        return f"{self.chain(chain).id}:{trader.key.address.lower()}"

    def account(self, trader: Trader) -> str:
        """Return the id that a trader's account has or will have."""
        return "0x" + account_id(self.address(trader, trader.controller), trader.salt).hex()

    # --- on chain, before the clocks start ---------------------------------------------------------------------------

    def deposit_all(self) -> None:
        """Fund every trader and make every deposit."""
        for trader in TRADERS:
            for chain in self.world.chains:  # Anvil's 10,000 ETH each would drown everything else
                chain.node.rpc("anvil_setBalance", trader.key.address, hex(3 * WETH // 2))
            for name in ("alpha", "beta"):
                mine = [d for d in trader.deposits if d[0] == name]
                kept = [d for d in trader.wallet if d[0] == name]
                if mine or kept:
                    self._deposit_evm(trader, self.chain(name), mine, kept)
            if trader.aave:
                self._borrow_from_aave(trader, *trader.aave)
            if trader.trades:
                self._trade(trader)
        asyncio.run(self._deposit_solana())

    def _deposit_evm(self, trader: Trader, chain: EvmChain, deposits: list[Deposit], kept: list[Deposit]) -> None:
        w3 = chain.w3
        who = trader.key.address
        vault = at(w3, "CollateralVault", chain.contracts["collateral_vault"])
        account = bytes.fromhex(self.account(trader)[2:])
        for _, what, amount in kept:
            transact(w3, at(w3, "TestToken", chain.contracts[what]).functions.mint(who, amount))
        for _, what, amount in deposits:
            token, held = self._acquire(w3, chain, who, what, amount)
            transact(w3, token.functions.approve(vault.address, held), who)
            transact(w3, vault.functions.deposit(account, token.address, held), who)

    @staticmethod
    def _acquire(w3: Web3, chain: EvmChain, who: Any, what: str, amount: int) -> tuple[Contract, int]:
        """Mint, or mint and wrap, ``amount``; return the token held and how much of it."""
        if what in ("weth", "usdc", "wbtc"):
            token = at(w3, "TestToken", chain.contracts[what])
            transact(w3, token.functions.mint(who, amount))
            return token, amount
        if what == "vault4626":
            usdc = at(w3, "TestToken", chain.contracts["usdc"])
            vault = at(w3, "TestVault4626", chain.contracts["vault4626"])
            transact(w3, usdc.functions.mint(who, amount))
            transact(w3, usdc.functions.approve(vault.address, amount), who)
            transact(w3, vault.functions.deposit(amount, who), who)
            # Somebody's interest: from now on a share is worth a little more than one.
            transact(w3, usdc.functions.mint(vault.address, amount // 50))
            return vault, int(vault.functions.balanceOf(who).call())
        Desk._supply(w3, chain, who, amount)
        atoken = at(w3, "TestToken", chain.contracts["aave_atoken_weth"])  # the ERC-20 part is the same
        return atoken, int(atoken.functions.balanceOf(who).call())

    @staticmethod
    def _supply(w3: Web3, chain: EvmChain, who: Any, amount: int) -> Contract:
        pool_address = Web3.to_checksum_address(chain.contracts["aave_pool"])
        pool = w3.eth.contract(pool_address, abi=load_aave("Pool")["abi"])
        weth = at(w3, "TestToken", chain.contracts["weth"])
        transact(w3, weth.functions.mint(who, amount))
        transact(w3, weth.functions.approve(pool.address, amount), who)
        transact(w3, pool.functions.supply(weth.address, amount, who, 0), who)
        return pool

    def _borrow_from_aave(self, trader: Trader, supplied: int, borrowed: int) -> None:
        chain = self.world.alpha
        w3, who = chain.w3, trader.key.address
        pool = self._supply(w3, chain, who, supplied)
        usdc = Web3.to_checksum_address(chain.contracts["usdc"])
        transact(w3, pool.functions.borrow(usdc, borrowed, 2, 0, who), who)

    def _trade(self, trader: Trader) -> None:
        """Deposit collateral at the example venue, and buy and sell there at what it asks and bids."""
        chain = self.chain(trader.controller)
        w3, who, account = chain.w3, trader.key.address, bytes.fromhex(self.account(trader)[2:])
        venue = at(w3, "ExampleVenue", chain.contracts["venue"])
        transact(w3, venue.functions.open(account, trader.salt), who)
        for what, amount in trader.collateral:
            token, held = self._acquire(w3, chain, who, what, amount)
            transact(w3, token.functions.approve(venue.address, held), who)
            transact(w3, venue.functions.deposit(account, token.address, held), who)
        ids = {name: id for id, (name, _, _) in enumerate(LISTED, start=1)}
        for name, size in trader.trades:
            limit = ANY_PRICE if size > 0 else 0
            transact(w3, venue.functions.trade(account, ids[name], size, limit), who)

    async def _deposit_solana(self) -> None:
        url, names = self.world.svm.url, self.world.solana
        program, vault = (Pubkey.from_string(names[n]) for n in ("vault_program", "vault"))
        usdc, wsol = Pubkey.from_string(names["usdc_mint"]), Pubkey.from_string(names["sol_mint"])
        async with SolanaUser(url, self.world.solana_payer_key) as bank:
            for trader in TRADERS:
                mine = [d for d in trader.deposits if d[0] == "sol"]
                if not mine:
                    continue
                account = bytes.fromhex(self.account(trader)[2:])
                async with SolanaUser(url, trader.solana) as user:
                    wrapped = sum(amount for _, what, amount in mine if what == "wsol")
                    await user.airdrop(wrapped + 2 * WSOL)
                    for _, what, amount in mine:
                        if what == "wsol":
                            await user.wrap_sol(amount)
                        else:
                            await bank.mint_to(usdc, user.address, amount)
                        await user.deposit(program, vault, account, wsol if what == "wsol" else usdc, amount)

    # --- through the API ---------------------------------------------------------------------------------------------

    def open_all(self) -> None:
        """Open the accounts and link every address, both sides signing."""
        for trader in TRADERS:
            self._open(trader)

    def _open(self, trader: Trader) -> None:
        controller = self.address(trader, trader.controller)
        opened = self._post(
            "/v1/accounts",
            {"controller": controller, "salt": "0x" + trader.salt.hex(), "kind": trader.kind, "label": trader.label},
        )
        account = Account(opened["id"], controller, opened["kind"], opened["home"])
        chains = dict.fromkeys([trader.controller, *(d[0] for d in (*trader.deposits, *trader.wallet))])
        for nonce, chain in enumerate(chains, start=1):
            member = self.address(trader, chain)
            expiry = int(time.time()) + LINK_LIFE
            self._post(
                f"/v1/accounts/{account.id}/links",
                {
                    "controller": controller,
                    "member": member,
                    "nonce": nonce,
                    "expiry": expiry,
                    "invite_signature": self._sign(trader, account, member, nonce, expiry, "invite"),
                    "accept_signature": self._sign(trader, account, member, nonce, expiry, "accept"),
                },
            )

    def share(self, trader: Trader, parts: Mapping[str, int]) -> str:
        """Let a trader sign how its margin is shared out: chain name -> parts of 10,000; return the signed text."""
        by_chain = sorted((self.address(trader, name).rpartition(":")[0], n) for name, n in parts.items())
        shares = ",".join(f"{chain}={n}" for chain, n in by_chain)
        reference = self.account(trader)
        wanted = self.get(f"/v1/accounts/{reference}/shares/message?shares={quote(shares)}")
        text = wanted["message"]
        signature = self._sign_message(trader, json.loads(text) if wanted["form"] == "eip712" else text)
        body = {"controller": wanted["signer"], "shares": shares, "nonce": wanted["nonce"], "expiry": wanted["expiry"]}
        self._post(f"/v1/accounts/{reference}/shares", body | {"signature": signature})
        return shares

    @staticmethod
    def _sign_message(trader: Trader, message: str | dict[str, Any]) -> str:
        if isinstance(message, str):
            return str(trader.solana.sign_message(message.encode()))
        return "0x" + trader.key.sign_typed_data(full_message=message).signature.hex().removeprefix("0x")

    def _sign(self, trader: Trader, account: Account, member: str, nonce: int, expiry: int, side: str) -> str:
        deployment_id = self.world.deployment.deployment_id()
        message = link_message(deployment_id, account, member, nonce, expiry, side)
        return self._sign_message(trader, message.typed or message.text)

    def _post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        response = self.api.post(path, json=dict(body))
        if response.status_code != 201:
            raise RuntimeError(f"POST {path}: {response.status_code} {response.text}")
        document: dict[str, Any] = response.json()
        return document

    def get(self, path: str) -> Any:
        """Return a JSON document of the API."""
        response = self.api.get(path)
        response.raise_for_status()
        return response.json()

    # --- on chain, while it runs -------------------------------------------------------------------------------------

    @staticmethod
    def posted_epoch(chain: EvmChain) -> int:
        """Return the epoch that an EVM registry holds."""
        w3 = chain.w3
        return int(at(w3, "MarginRegistry", chain.contracts["registry"]).functions.latest().call()[0])

    def close(self) -> None:
        """Close the HTTP client."""
        self.api.close()
