"""Every EVM venue on a real Anvil with holdings of every kind, and readers over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from web3 import Web3
from web3.contract import Contract

from adapters.evm.aave_v3 import AaveV3
from adapters.evm.lender import Lender
from adapters.evm.margin_venue import MarginVenue
from adapters.evm.reader import EvmAdapter, EvmReader
from adapters.evm.vault import Vault
from adapters.evm.wallet import Wallet
from adapters.rpc import EvmEndpoint
from aggregator.domain.rows import AssetRow, ChainRow, LatencyLeg, SourceRow
from aggregator.domain.snapshot import Block
from infra.devnet.aave import load_aave
from infra.devnet.anvil import Anvil, connect, transact
from infra.devnet.evm_deploy import LISTED, EvmSpec, at, deploy_evm_chain
from tests.contracts.evm_reference import Header, Leaf, Quorum, Tree, account_id, keccak

CHAIN = "eip155:31337"
NAME = "anvil-one"
SALT = b"\x07" * 32
PRICES = {"ETH": 3000 * 10**8, "BTC": 60_000 * 10**8, "USDC": 10**8}
DELAY = 60
USDC, WBTC, WETH = 10**6, 10**8, 10**18
RATE_CAP = 1.05
FOREVER = 2**40


def chain_row(url: str, genesis: str = "0x" + "00" * 32, **changes: Any) -> ChainRow:
    """Return the row of an Anvil chain; the address carries a key that no message may show."""
    fields: dict[str, Any] = {
        "id": CHAIN,
        "name": NAME,
        "family": "evm",
        "rpc": (SecretStr(f"{url}/?key=secret-key"),),
        "genesis": genesis,
        "block_seconds": 1,
        "max_age": 60,
        "hold": (LatencyLeg(typical=1),),
        "requests_per_second": 1000,
    }
    return ChainRow(**{**fields, **changes})


def genesis_of(anvil: Anvil) -> str:
    """Return the hash of block 0."""
    return str(anvil.rpc("eth_getBlockByNumber", "0x0", False)["hash"])


def make_reader(
    anvil: Anvil,
    adapters: list[EvmAdapter] | None = None,
    feeds: list[SourceRow] | None = None,
    assets: list[AssetRow] | None = None,
    **changes: Any,
) -> EvmReader:
    """Build a reader over a real endpoint of ``anvil``."""
    row = chain_row(anvil.url, **{"genesis": genesis_of(anvil), **changes})
    return EvmReader(row, EvmEndpoint(row, row.rpc[0]), adapters or [], feeds or [], assets or [])


@dataclass
class Venues:
    """One chain with everything deployed, and one user with a holding or debt in each venue."""

    anvil: Anvil
    w3: Web3
    names: dict[str, str]
    user: Any  # checksummed address
    account: str  # its account id

    def __getitem__(self, name: str) -> Contract:
        artifact = {
            "vault4626": "TestVault4626",
            "collateral_vault": "CollateralVault",
            "lender": "ExampleLender",
            "venue": "ExampleVenue",
        }
        kind = "PriceFeed" if name.startswith("feed_") else artifact.get(name, "TestToken")
        return at(self.w3, kind, self.names[name])

    @property
    def pool(self) -> Contract:
        """Aave's pool."""
        return self.w3.eth.contract(Web3.to_checksum_address(self.names["aave_pool"]), abi=load_aave("Pool")["abi"])

    @property
    def address(self) -> str:
        """The user, canonical."""
        return str(self.user).lower()

    @property
    def multicall(self) -> str:
        """Multicall3."""
        return self.names["multicall3"]

    def asset(self, name: str) -> str:
        """Return the CAIP-19 id of a token."""
        return f"{CHAIN}/slip44:60" if name == "native" else f"{CHAIN}/erc20:{self.names[name]}"

    def assets(self) -> dict[str, AssetRow]:
        """Return a row per asset of the chain."""

        def row(name: str, kind: Any, decimals: int, feed: str, **more: Any) -> AssetRow:
            symbol = name.removeprefix("aave_atoken_")
            return AssetRow(
                id=self.asset(name), symbol=symbol, kind=kind, decimals=decimals, feed=feed, policy="x", **more
            )

        return {
            a.id: a
            for a in (
                row("native", "native", 18, "ETH/USD"),
                row("usdc", "erc20", 6, "USDC/USD"),
                row("wbtc", "erc20", 8, "BTC/USD"),
                row("weth", "erc20", 18, "ETH/USD"),
                row("vault4626", "erc4626", 9, "USDC/USD", underlying=self.asset("usdc"), rate_cap=RATE_CAP),
                row("aave_atoken_weth", "atoken", 18, "ETH/USD", underlying=self.asset("weth")),
                row("aave_atoken_usdc", "atoken", 6, "USDC/USD", underlying=self.asset("usdc")),
            )
        }

    def adapters(self, assets: dict[str, AssetRow] | None = None) -> dict[str, EvmAdapter]:
        """Return every adapter by name."""
        assets = self.assets() if assets is None else assets
        names = self.names
        made: list[EvmAdapter] = [
            Wallet(CHAIN, assets, self.multicall),
            Vault(CHAIN, names["collateral_vault"], assets),
            Lender(CHAIN, names["lender"], assets),
            AaveV3(CHAIN, names["aave_pool"], names["aave_data_provider"], assets),
            *([MarginVenue(CHAIN, names["venue"], assets)] if "venue" in names else []),
        ]
        return {adapter.name: adapter for adapter in made}

    def feeds(self) -> list[SourceRow]:
        """Return the chain's price feeds."""
        return [
            SourceRow(
                name=f"chainlink-{symbol.lower()}",
                feed=f"{symbol}/USD",
                kind="chainlink",
                id=f"{CHAIN}:{self.names[f'feed_{symbol.lower()}']}",
                relative_conf=0.001,
            )
            for symbol in ("ETH", "BTC", "USDC")
        ]

    def latest(self) -> Block:
        """Return the newest block."""
        body = self.anvil.rpc("eth_getBlockByNumber", "latest", False)
        return Block(CHAIN, int(body["number"], 16), body["hash"], body["parentHash"], int(body["timestamp"], 16))

    def run(self, function: Any, sender: Any = None) -> None:
        """Send a transaction, by default from the user."""
        transact(self.w3, function, sender or self.user)

    def acquire(self, name: str, amount: int, spender: Any) -> None:
        """Mint a token to the user and approve ``spender``."""
        self.run(self[name].functions.mint(self.user, amount))
        self.run(self[name].functions.approve(spender, amount))


def deploy_venues(anvil: Anvil, *, trading: bool = False) -> Venues:
    """Deploy everything and give the user holdings and debts in every venue, each of another size.

    trading: also deploy the example venue and give the user every kind of position there.
    """
    w3, quorum = connect(anvil.url), Quorum(4)
    now = int(w3.eth.get_block("latest")["timestamp"])
    spec = EvmSpec(
        tuple(quorum.members), 3, now + 86_400, SALT, PRICES, epoch_seconds=2, vault_delay=DELAY, with_venue=trading
    )
    names = deploy_evm_chain(w3, spec)
    user = w3.eth.accounts[3]
    of = Venues(anvil, w3, names, user, "0x" + account_id(31337, user, SALT).hex())
    account = bytes.fromhex(of.account[2:])
    vault, shares, pool = of["collateral_vault"], of["vault4626"], of.pool

    # ERC-4626: 1,000 USDC deposited, then 100 donated: a share is worth a tenth more, above the cap of a twentieth.
    of.acquire("usdc", 1_000 * USDC, shares.address)
    of.run(shares.functions.deposit(1_000 * USDC, user))
    of.run(of["usdc"].functions.mint(shares.address, 100 * USDC))

    # Aave: 10 WETH supplied, 5,000 USDC owed.
    of.acquire("weth", 10 * WETH, pool.address)
    of.run(pool.functions.supply(of["weth"].address, 10 * WETH, user, 0))
    of.run(pool.functions.borrow(of["usdc"].address, 5_000 * USDC, 2, 0, user))

    # The vault: WETH with a part requested back, shares with a part requested back, aTokens.
    of.acquire("weth", 4 * WETH, vault.address)
    for name, amount in (("weth", 4 * WETH), ("vault4626", 200 * 10**9), ("aave_atoken_weth", 2 * WETH)):
        if name != "weth":
            of.run(of[name].functions.approve(vault.address, amount))
        of.run(vault.functions.deposit(account, of[name].address, amount))
    of.run(vault.functions.request(account, of["weth"].address, WETH))
    of.run(vault.functions.request(account, shares.address, 50 * 10**9))

    # Wallet: what is left over of the above, and these.
    for name, amount in (("usdc", 1_234_567_891), ("wbtc", 50_000_001), ("weth", 2 * WETH + 1)):
        of.run(of[name].functions.mint(user, amount))

    _borrow_from_lender(of, quorum, 75 * USDC)
    if trading:
        _trade(of)
    anvil.rpc("anvil_setBalance", user, hex(3 * WETH + 7))
    anvil.mine()
    return of


TRADES = (
    ("perp", -3 * WETH),
    ("inverse", 1_500 * WETH),
    ("call-near", -2 * WETH),
    ("put-near", WETH // 2),
    ("call-far", WETH),
    ("put-far", -WETH // 4),
)
"""What the user is in at the venue: instrument, size."""


def instrument(name: str) -> int:
    """Return the id of an instrument that the venue lists."""
    return 1 + [listed for listed, _, _ in LISTED].index(name)


def trade(of: Venues, name: str, change: int, account: str | None = None) -> None:
    """Buy or sell at whatever price the venue asks."""
    limit = 2**255 if change > 0 else 0
    of.run(of["venue"].functions.trade(bytes.fromhex((account or of.account)[2:]), instrument(name), change, limit))


def _trade(of: Venues) -> None:
    """Give the user collateral at the venue, a part of it requested back, and every kind of position."""
    venue, account = of["venue"], bytes.fromhex(of.account[2:])
    of.run(venue.functions.open(account, SALT))
    for name, amount in (("usdc", 20_000 * USDC), ("weth", WETH)):
        of.acquire(name, amount, venue.address)
        of.run(venue.functions.deposit(account, of[name].address, amount))
    for name, change in TRADES:
        trade(of, name, change)
    of.run(venue.functions.request(account, of["usdc"].address, 1_000 * USDC))
    of.anvil.rpc("evm_increaseTime", 1_800)  # funding accrues


def _borrow_from_lender(of: Venues, quorum: Quorum, amount: int) -> None:
    """Open the account at the lender, post a leaf with a budget, borrow."""
    lender, registry = of["lender"], at(of.w3, "MarginRegistry", of.names["registry"])
    account = bytes.fromhex(of.account[2:])
    of.run(lender.functions.open(account, SALT))
    now = int(of.w3.eth.get_block("latest")["timestamp"])
    leaf = Leaf(account, keccak(CHAIN.encode()), now // 2, now + 200, budget=100 * 10**8)
    tree = Tree([leaf])
    header = Header(leaf.epoch, tree.root, now, now + 300)
    deployment_id = registry.functions.deploymentId().call()
    of.run(registry.functions.post(*quorum.certify(header, deployment_id, (0, 1, 2))))
    of.run(lender.functions.borrow(leaf.as_tuple(), tree.proof(leaf), amount))
