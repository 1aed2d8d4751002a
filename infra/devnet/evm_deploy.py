"""Deploy the contracts of one EVM devnet chain.

Runs while Anvil is in automine, before the chain gets its clock: every transaction is then mined on arrival. Addresses
are returned in lower-case hex, the canonical form of this project; `at` turns one into a contract.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rlp
from web3 import Web3
from web3.contract import Contract
from web3.types import RPCEndpoint

from infra.devnet.aave import Reserve, deploy_aave
from infra.devnet.anvil import POLL_SECONDS, AnvilError, deploy_code, transact
from infra.devnet.artifacts import load

MULTICALL3_FILE = Path(__file__).resolve().parent / "contracts" / "multicall3.json"
FEED_DECIMALS = 8
FEED_BOUND = 1000  # a feed accepts answers within this factor of its first one
LENDER_FUNDING = 10_000_000 * 10**6  # base units of USDC
VENUE_FUNDING = {"usdc": 10_000_000 * 10**6, "weth": 5_000 * 10**18}  # base units
PERP, INVERSE, CALL, PUT = 1, 2, 3, 4  # kinds of IMarginVenue
DAY = 86_400
LISTED = (
    ("perp", PERP, 0),
    ("inverse", INVERSE, 0),
    ("call-near", CALL, 7 * DAY),
    ("put-near", PUT, 7 * DAY),
    ("call-far", CALL, 30 * DAY),
    ("put-far", PUT, 30 * DAY),
)
"""What the example venue lists on ETH/USD, in the order of the ids from 1 on: name, kind, seconds to expiry."""
FUNDING_RATE = 10**9  # longs pay about 3 % of the notional a year
QUOTED_VOLATILITY, QUOTED_SPREAD = 0.7, 0.05
DEVNET_CLASS = 3
NO_LIMIT = 2**256 - 1


@dataclass(frozen=True, slots=True)
class EvmSpec:
    """What to deploy on one EVM chain.

    members: attestor addresses in signer order. threshold: signatures a post needs. not_after: Unix seconds.
    salt: 32 bytes, the same on every chain of the deployment. epoch_seconds, clock_skew, max_lifetime, vault_delay:
    seconds. prices: the first feed answers by symbol (ETH, BTC, USDC), USD with 8 decimals. governance, guardian:
    addresses, "" = account 0. timelock: seconds.
    """

    members: tuple[str, ...]
    threshold: int
    not_after: int
    salt: bytes
    prices: Mapping[str, int]
    epoch_seconds: int = 2
    clock_skew: int = 5
    max_lifetime: int = 3600
    vault_delay: int = 60
    network_class: int = DEVNET_CLASS
    with_aave: bool = True
    with_venue: bool = True
    governance: str = ""
    guardian: str = ""
    timelock: int = 0


def at(w3: Web3, name: str, address: str) -> Contract:
    """Return our contract `name` at an address (any capitalisation)."""
    return w3.eth.contract(address=Web3.to_checksum_address(address), abi=load(name)[0])


def deploy(w3: Web3, name: str, *args: Any) -> Contract:
    """Deploy our contract `name` from account 0 and return it."""
    return deploy_code(w3, *load(name), *args)


def build_multicall3_transaction() -> bytes:
    """Return the signed, chain-free transaction that creates Multicall3 at its canonical address on any chain.

    The signature was chosen, not made from a key (Nick's method), so these bytes are the only ones that do.
    Source: the deployment transaction on Ethereum; the code is MIT-licensed.
    """
    record = json.loads(MULTICALL3_FILE.read_text(encoding="utf-8"))
    initcode = bytes.fromhex(record["initcode"][2:])
    signature = (record["v"], int(record["r"], 16), int(record["s"], 16))
    raw: bytes = rlp.encode([0, record["gasPrice"], record["gas"], b"", 0, initcode, *signature])
    return raw


def deploy_multicall3(w3: Web3) -> str:
    """Create Multicall3 at its canonical address by its presigned transaction and return that address.

    Does nothing where it exists. Raise AnvilError when the chain refuses the transaction.
    """
    record = json.loads(MULTICALL3_FILE.read_text(encoding="utf-8"))
    address = Web3.to_checksum_address(record["address"])
    if w3.eth.get_code(address):
        return str(record["address"]).lower()
    raw = build_multicall3_transaction()
    if Web3.keccak(raw).to_0x_hex() != record["transaction"]:
        raise AnvilError(f"{MULTICALL3_FILE.name} was changed: its transaction no longer has the canonical hash")
    cost = hex(record["gas"] * record["gasPrice"])
    w3.provider.make_request(RPCEndpoint("anvil_setBalance"), [record["deployer"], cost])
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(raw), 30.0, POLL_SECONDS)
    if receipt["status"] != 1 or receipt["contractAddress"] != address:
        raise AnvilError("Multicall3 was not created by its presigned transaction")
    return str(record["address"]).lower()


def deploy_token(w3: Web3, name: str, symbol: str, decimals: int) -> Contract:
    """Deploy an ERC-20 that anyone may mint."""
    return deploy(w3, "TestToken", name, symbol, decimals)


def deploy_feed(w3: Web3, pair: str, answer: int) -> Contract:
    """Deploy a Chainlink-shaped feed, for example "ETH / USD"; answer is USD with 8 decimals."""
    bounds = (max(1, answer // FEED_BOUND), answer * FEED_BOUND)
    return deploy(w3, "PriceFeed", pair, FEED_DECIMALS, answer, *bounds)


def deploy_sequencer_feed(w3: Web3, started_at: int) -> Contract:
    """Deploy a sequencer-uptime feed; started_at: since when the sequencer is up, in Unix seconds."""
    return deploy(w3, "SequencerFeed", started_at)


def deploy_registry(w3: Web3, spec: EvmSpec) -> Contract:
    """Deploy the MarginRegistry of a spec."""
    members = [Web3.to_checksum_address(member) for member in spec.members]
    genesis = (spec.network_class, members, spec.threshold, spec.not_after, spec.salt)
    clock = (spec.epoch_seconds, spec.clock_skew, spec.max_lifetime)
    powers = [Web3.to_checksum_address(power or w3.eth.accounts[0]) for power in (spec.governance, spec.guardian)]
    return deploy(w3, "MarginRegistry", *genesis, *clock, *powers, spec.timelock)


def list_consumer(w3: Web3, registry: Contract, consumer: str) -> None:
    """Let a contract draw at a registry that account 0 governs; it may once the registry's timelock has passed."""
    transact(w3, registry.functions.list(Web3.to_checksum_address(consumer)))


def deploy_vault(w3: Web3, delay: int, registry: Contract) -> Contract:
    """Deploy a CollateralVault of a registry with a withdrawal delay in seconds; it accepts nothing yet."""
    return deploy(w3, "CollateralVault", delay, registry.address)


def accept_tokens(w3: Web3, vault: Contract, *tokens: str, limit: int = NO_LIMIT) -> None:
    """Let tokens (addresses) be deposited in a vault, up to ``limit`` each: base units, pieces of an ERC-721.

    The governance of the vault's registry must be an account of the node, as on every devnet.
    """
    governance = at(w3, "MarginRegistry", vault.functions.registry().call()).functions.governance().call()
    for token in tokens:
        transact(w3, vault.functions.setLimit(Web3.to_checksum_address(token), limit), governance)


def deploy_lender(w3: Web3, registry: Contract, token: Contract, funding: int = LENDER_FUNDING) -> Contract:
    """Deploy an ExampleLender, list it at the registry and mint `funding` base units of its token to it."""
    lender = deploy(w3, "ExampleLender", registry.address, token.address)
    list_consumer(w3, registry, lender.address)
    transact(w3, token.functions.mint(lender.address, funding))
    return lender


def deploy_venue(w3: Web3, lender: Contract, delay: int, tokens: Mapping[str, Contract]) -> Contract:
    """Deploy an ExampleVenue that pays in ``tokens`` (usdc and weth), and mint to it what it pays gains with.

    The lender tells it account ids. delay: seconds between a withdrawal request and its claim.
    """
    venue = deploy(w3, "ExampleVenue", lender.address, delay, [token.address for token in tokens.values()])
    for name, token in tokens.items():
        transact(w3, token.functions.mint(venue.address, VENUE_FUNDING[name]))
    return venue


def list_instruments(w3: Web3, venue: Contract, tokens: Mapping[str, Contract], feed: Contract) -> dict[str, int]:
    """List and quote ``LISTED`` at an ExampleVenue, options at the money; return id by name."""
    price = int(feed.functions.latestAnswer().call())
    now = int(w3.eth.get_block("latest")["timestamp"])
    strike = price // (10 * 10**FEED_DECIMALS) * 10 * 10**FEED_DECIMALS
    underlying = b"ETH/USD".ljust(32, b"\0")
    for id, (_, kind, seconds) in enumerate(LISTED, start=1):
        settlement = tokens["weth" if kind == INVERSE else "usdc"].address
        terms = (strike, now + seconds) if seconds else (0, 0)
        transact(w3, venue.functions.list(kind, underlying, settlement, *terms, feed.address))
        if seconds:
            # At the money an option is worth about 0.4·S·σ·√T (Brenner and Subrahmanyam 1988).
            worth = 0.4 * price * QUOTED_VOLATILITY * (seconds / (365 * DAY)) ** 0.5
            quotes = (int(worth * (1 - QUOTED_SPREAD)), int(worth * (1 + QUOTED_SPREAD)))
            transact(w3, venue.functions.quote(id, *quotes))
        else:
            transact(w3, venue.functions.setFundingRate(id, FUNDING_RATE))
    return {name: id for id, (name, _, _) in enumerate(LISTED, start=1)}


def deploy_evm_chain(w3: Web3, spec: EvmSpec) -> dict[str, str]:
    """Deploy everything of one chain from account 0 and return name -> lower-case address.

    Names: deployer, multicall3, usdc (6 decimals), wbtc (8), weth (18), vault4626 (over usdc), feed_eth, feed_btc,
    feed_usdc, registry, collateral_vault, lender; with the example venue also venue, which lists ``LISTED``; with Aave
    also aave_provider, aave_pool, aave_data_provider, aave_oracle and, for usdc, wbtc and weth each,
    aave_atoken_<token> and aave_debt_<token>.
    """
    usdc = deploy_token(w3, "USD Coin", "USDC", 6)
    wbtc = deploy_token(w3, "Wrapped BTC", "WBTC", 8)
    weth = deploy_token(w3, "Wrapped Ether", "WETH", 18)
    feeds = {symbol: deploy_feed(w3, f"{symbol} / USD", spec.prices[symbol]) for symbol in ("ETH", "BTC", "USDC")}
    registry = deploy_registry(w3, spec)
    contracts = {
        "usdc": usdc,
        "wbtc": wbtc,
        "weth": weth,
        "vault4626": deploy(w3, "TestVault4626", usdc.address, "USD Coin Vault", "vUSDC"),
        "feed_eth": feeds["ETH"],
        "feed_btc": feeds["BTC"],
        "feed_usdc": feeds["USDC"],
        "registry": registry,
        "collateral_vault": deploy_vault(w3, spec.vault_delay, registry),
        "lender": deploy_lender(w3, registry, usdc),
    }
    addresses = {name: str(contract.address).lower() for name, contract in contracts.items()}
    addresses["deployer"] = w3.eth.accounts[0].lower()
    addresses["multicall3"] = deploy_multicall3(w3)
    if spec.with_aave:
        # Risk parameters: Aave v3 on Ethereum at its launch, in basis points. Seeds: enough for others to borrow.
        reserves = (
            Reserve("usdc", usdc, feeds["USDC"], ltv=7400, threshold=7600, bonus=10450, seed=10_000_000 * 10**6),
            Reserve("wbtc", wbtc, feeds["BTC"], ltv=7000, threshold=7500, bonus=10625, seed=100 * 10**8),
            Reserve("weth", weth, feeds["ETH"], ltv=8000, threshold=8250, bonus=10500, seed=5_000 * 10**18),
        )
        addresses |= deploy_aave(w3, reserves)
    held = ("usdc", "wbtc", "weth", "vault4626", *(name for name in addresses if name.startswith("aave_atoken_")))
    accept_tokens(w3, contracts["collateral_vault"], *(addresses[name] for name in held))
    if spec.with_venue:
        tokens = {"usdc": usdc, "weth": weth}
        venue = deploy_venue(w3, contracts["lender"], spec.vault_delay, tokens)
        list_instruments(w3, venue, tokens, feeds["ETH"])
        addresses["venue"] = str(venue.address).lower()
    return addresses
