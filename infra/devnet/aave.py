"""Deploy the real Aave v3 from the artifacts of npm's `@aave/core-v3`.

The package is under BUSL-1.1, which allows tests: it is a dev dependency of the devnet, never part of this repository
or of anything shipped. The order of steps follows the setters that `PoolAddressesProvider` and `PoolConfigurator`
require (contracts/protocol in that package).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_typing import ChecksumAddress
from web3 import Web3
from web3.contract import Contract

from infra.devnet.anvil import NODE_MODULES, AnvilError, deploy_code, transact

ARTIFACTS = NODE_MODULES / "@aave" / "core-v3" / "artifacts" / "contracts"
ZERO: ChecksumAddress = Web3.to_checksum_address("0x" + "00" * 20)
RAY = 10**27
MAX_UINT = 2**256 - 1
USD_UNIT = 10**8  # the oracle's base currency: USD with 8 decimals
RESERVE_FACTOR = 1000  # basis points
ADDRESS_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Reserve:
    """One asset of the market.

    name: key in the result. token, feed: contracts. ltv, threshold, bonus: basis points (bonus above 10,000).
    seed: base units that account 0 mints and supplies so that others can borrow.
    """

    name: str
    token: Contract
    feed: Contract
    ltv: int
    threshold: int
    bonus: int
    seed: int


@cache
def _find_artifacts() -> dict[str, str]:
    if not ARTIFACTS.is_dir():
        raise AnvilError("the Aave artifacts (node_modules/@aave/core-v3) are missing: run `make install`")
    return {path.stem: str(path) for path in ARTIFACTS.rglob("*.json") if not path.name.endswith(".dbg.json")}


@cache
def load_aave(name: str) -> dict[str, Any]:
    """Return a Hardhat artifact of the package: abi, bytecode, linkReferences."""
    with open(_find_artifacts()[name], encoding="utf-8") as file:
        artifact: dict[str, Any] = json.load(file)
        return artifact


class _Market:
    """Deploys the package's contracts on one chain, each library once."""

    def __init__(self, w3: Web3) -> None:
        self.w3 = w3
        self._libraries: dict[str, str] = {}

    def deploy(self, name: str, *args: Any) -> Contract:
        artifact = load_aave(name)
        return deploy_code(self.w3, artifact["abi"], self._link(artifact), *args)

    def at(self, name: str, address: ChecksumAddress) -> Contract:
        return self.w3.eth.contract(address=address, abi=load_aave(name)["abi"])

    def send(self, contract: Contract, function: str, *args: Any) -> None:
        transact(self.w3, contract.functions[function](*args))

    def _link(self, artifact: dict[str, Any]) -> str:
        """Return the bytecode with the addresses of the libraries in their places."""
        code: str = artifact["bytecode"]
        for libraries in artifact["linkReferences"].values():
            for library, places in libraries.items():
                if library not in self._libraries:
                    self._libraries[library] = self.deploy(library).address[2:].lower()
                for place in places:
                    start = 2 + 2 * place["start"]
                    code = code[:start] + self._libraries[library] + code[start + ADDRESS_DIGITS :]
        return code


def deploy_aave(w3: Web3, reserves: Sequence[Reserve]) -> dict[str, str]:
    """Deploy a market with our tokens and price feeds, owned by account 0, and return name -> lower-case address.

    Names: aave_provider, aave_pool, aave_data_provider, aave_oracle, and aave_atoken_<name>, aave_debt_<name>
    (variable debt) for every reserve.
    """
    market = _Market(w3)
    owner = w3.eth.accounts[0]

    provider = market.deploy("PoolAddressesProvider", "crossmargin devnet", owner)
    market.send(provider, "setACLAdmin", owner)
    acl = market.deploy("ACLManager", provider.address)
    market.send(provider, "setACLManager", acl.address)
    market.send(acl, "addPoolAdmin", owner)
    data_provider = market.deploy("AaveProtocolDataProvider", provider.address)
    market.send(provider, "setPoolDataProvider", data_provider.address)
    market.send(provider, "setPoolImpl", market.deploy("Pool", provider.address).address)
    market.send(provider, "setPoolConfiguratorImpl", market.deploy("PoolConfigurator").address)
    pool = market.at("Pool", provider.functions.getPool().call())
    configurator = market.at("PoolConfigurator", provider.functions.getPoolConfigurator().call())
    oracle = market.deploy(
        "AaveOracle",
        provider.address,
        [reserve.token.address for reserve in reserves],
        [reserve.feed.address for reserve in reserves],
        ZERO,
        ZERO,
        USD_UNIT,
    )
    market.send(provider, "setPriceOracle", oracle.address)
    _list_reserves(market, provider, pool, configurator, reserves)

    addresses = {
        "aave_provider": provider.address,
        "aave_pool": pool.address,
        "aave_data_provider": data_provider.address,
        "aave_oracle": oracle.address,
    }
    for reserve in reserves:
        atoken, _, debt = data_provider.functions.getReserveTokensAddresses(reserve.token.address).call()
        addresses[f"aave_atoken_{reserve.name}"] = atoken
        addresses[f"aave_debt_{reserve.name}"] = debt
        market.send(reserve.token, "mint", owner, reserve.seed)
        market.send(reserve.token, "approve", pool.address, MAX_UINT)
        market.send(pool, "supply", reserve.token.address, reserve.seed, owner, 0)
    return {name: str(address).lower() for name, address in addresses.items()}


def _list_reserves(
    market: _Market, provider: Contract, pool: Contract, configurator: Contract, reserves: Sequence[Reserve]
) -> None:
    """List the reserves with one interest rate strategy and configure them as collateral and for borrowing."""
    # Optimal usage 80 %; variable slopes 4 % and 75 %; stable slopes 0.5 % and 75 %, offsets 1 % and 8 %, ratio 20 %.
    percent = RAY // 100
    rates = (80, 0, 4, 75)
    strategy = market.deploy(
        "DefaultReserveInterestRateStrategy",
        provider.address,
        *(rate * percent for rate in rates),
        percent // 2,
        75 * percent,
        percent,
        8 * percent,
        20 * percent,
    )
    implementations = [
        market.deploy(name, pool.address).address for name in ("AToken", "StableDebtToken", "VariableDebtToken")
    ]
    treasury = market.w3.eth.accounts[0]
    rows = []
    for reserve in reserves:
        symbol = reserve.token.functions.symbol().call()
        names = (f"Aave {symbol}", f"a{symbol}", f"Aave variable debt {symbol}", f"variableDebt{symbol}")
        stable_names = (f"Aave stable debt {symbol}", f"stableDebt{symbol}")
        decimals = reserve.token.functions.decimals().call()
        token = (strategy.address, reserve.token.address, treasury, ZERO)
        rows.append((*implementations, decimals, *token, *names, *stable_names, b"\x10"))
    market.send(configurator, "initReserves", rows)
    for reserve in reserves:
        address = reserve.token.address
        limits = (reserve.ltv, reserve.threshold, reserve.bonus)
        market.send(configurator, "configureReserveAsCollateral", address, *limits)
        market.send(configurator, "setReserveBorrowing", address, True)
        market.send(configurator, "setReserveFactor", address, RESERVE_FACTOR)
