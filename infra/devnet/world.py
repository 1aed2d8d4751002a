"""The devnet: three real chains, a price publisher, deployed contracts, keys, and the configuration that names them.

Everything lives in one temporary folder and dies with the process that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w
from web3 import Web3

from adapters.keys import create_key, create_solana_key, load_solana_key
from infra.devnet.anvil import Anvil, connect, find_free_port, verify_port_free
from infra.devnet.attestors import ITERATIONS, Attestors
from infra.devnet.eas import deploy_eas
from infra.devnet.evm_deploy import EvmSpec, at, deploy_evm_chain, deploy_feed, deploy_sequencer_feed
from infra.devnet.hermes import PublisherProcess
from infra.devnet.providers.process import Providers
from infra.devnet.svm.process import SvmServer
from infra.devnet.svm_deploy import SolanaSpec, deploy_solana
from proofs.statement import DEVNET, Deployment

EPOCH_SECONDS = 2
LIFETIME = 60
CLOCK_SKEW = 5
MAX_LIFETIME = 600
VAULT_DELAY = 120
MAX_AGE = 18
REREAD_EPOCHS = 2  # between two fresh readings of an account that nobody saw change
MEMBERS, THRESHOLD = 4, 3
SOL_SLOT_MS, SOL_FINALIZED = 400, 8  # as long as on mainnet; final sooner
PROVIDERS, QUORUM = 3, 2  # per chain: how many, and how many must agree
SEQUENCER_GRACE = 20
FEEDER_SECONDS = 2.0
PYTH_IDS = {
    "ETH/USD": "ff61491a931112ddf1bd8147cd1b641375f79f5825126d665480874634fd0ace",
    "BTC/USD": "e62df6c8b4a85fe1a67db44dc12de5db330f7ac66b72dc658afedf0f4a415b43",
    "SOL/USD": "ef0d8b6fda2ceba41da15d4095d1da392a0d2f8ed0c6c7bc0f4cfac8c280b56d",
    "USDC/USD": "eaa020c61cc479712813461ce153894a96a6c00b21ed0cfc2798d1f9a9e9c94a",
}
ALPHA, BETA = "eip155:31337", "eip155:31338"
PAYER_WEI, PAYER_LAMPORTS = 10**21, 10**12
SYSTEM_PROGRAM = "1" * 32
WRAPPED_SOL = "So11111111111111111111111111111111111111112"
Say = Callable[[str], None]


@dataclass
class EvmChain:
    """A running Anvil with what was deployed on it.

    depth, irreversible: blocks on top of one that the Cut may pin, and of one that nothing may replace any more.
    reorg, deep_reorg: blocks to replace so that certified ones are among them; so that irreversible ones are too.
    """

    id: str
    name: str
    node: Anvil
    block_seconds: int
    depth: int
    irreversible: int
    reorg: int
    deep_reorg: int
    has_sequencer: bool = False
    ready_height: int = 0  # of its newest block when its clock was started: what is below was set up by us
    contracts: dict[str, str] = field(default_factory=dict)
    genesis: str = ""

    @property
    def w3(self) -> Web3:
        """A synchronous client."""
        return connect(self.node.url)


class World:
    """Start with ``with World(...) as world``; ``world.config`` is the TOML file for the service.

    Args:
        listen_port: the service's port; None picks a free one.
        say: told what happens, for people.
    """

    def __init__(self, listen_port: int | None = None, say: Say = lambda _: None) -> None:
        if listen_port is not None:
            verify_port_free(listen_port)
        self.listen_port = listen_port or find_free_port()
        self.say = say
        # The newest certified Cut is up to some eight seconds old and names a block that was final then.
        self.alpha = EvmChain(ALPHA, "alpha", Anvil(31337, block_time=1, accounts=12), 1, 3, 16, 13, 26)
        self.beta = EvmChain(BETA, "beta", Anvil(31338, block_time=2, accounts=12), 2, 2, 9, 7, 15, has_sequencer=True)
        self.svm = SvmServer(slot_ms=SOL_SLOT_MS, finalized_depth=SOL_FINALIZED)
        self.hermes = PublisherProcess()
        self.providers = Providers(PROVIDERS)
        self.attestors = Attestors(Path(), 0)
        self.solana: dict[str, Any] = {}
        self.sol = ""  # CAIP-2
        self.folder = Path()
        self.config = Path()
        self.policy = Path()  # the document that the configuration names, which recalibrate may replace
        self.started_at = 0
        self.prices_silent = False
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._feeder_stop = threading.Event()
        self._feeder: threading.Thread | None = None

    @property
    def chains(self) -> tuple[EvmChain, EvmChain]:
        """Both EVM chains."""
        return self.alpha, self.beta

    @property
    def url(self) -> str:
        """Where the service listens."""
        return f"http://127.0.0.1:{self.listen_port}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="crossmargin-devnet-")
        self.folder = Path(self._temporary.name)
        self.say("starting two EVM chains, one Solana chain and the price publisher")
        self._make_keys()
        with ThreadPoolExecutor(8) as pool:
            starting = [pool.submit(c.node.start) for c in self.chains]
            # These two here: Linux ties a child's life to the thread that starts it.
            self.svm.start()
            self.hermes.start()
            for started in starting:
                started.result()
            alpha, beta = self.alpha.node.url, self.beta.node.url
            nodes = {"alpha": (alpha, beta), "beta": (beta, alpha), "sol": (self.svm.url, "")}
            self.providers.start(nodes, self.folder / "providers.log")
            self.say("deploying contracts and programs")
            prices = self.prices()
            deploying: list[Future[None]] = [pool.submit(self._deploy_evm, c, prices) for c in self.chains]
            deploying.append(pool.submit(self._deploy_solana))
            for job in deploying:
                job.result()
        self._write_config()

    def start_clocks(self) -> None:
        """Let the EVM chains mine by the clock from now on; until then every transaction is mined on arrival."""
        for c in self.chains:
            c.ready_height = int(c.node.rpc("eth_blockNumber"), 16)
            c.node.start_blocks()
        self._feeder = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._feeder.start()

    def stop(self) -> None:
        """Stop every process and remove the folder."""
        self._feeder_stop.set()
        if self._feeder is not None:
            self._feeder.join(5)
        nodes = (self.svm.stop, self.alpha.node.stop, self.beta.node.stop)
        for stop in (self.attestors.stop, self.providers.stop, self.hermes.stop, *nodes):
            with contextlib.suppress(Exception):  # one that does not stop must not keep the others running
                stop()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def pids(self) -> list[int]:
        """Return the process ids of everything started here."""
        nodes = (self.svm.pid, self.alpha.node.pid, self.beta.node.pid)
        return [p for p in (self.hermes.pid, self.providers.pid, *nodes) if p]

    # --- deployment ------------------------------------------------------------------------------------------------

    def _make_keys(self) -> None:
        keys = self.folder / "keys"
        keys.mkdir(mode=0o700)
        self.attestors = Attestors(self.folder, MEMBERS)
        passphrase = secrets.token_hex(16)
        self.passphrase_file = self.folder / "passphrase"
        self.passphrase_file.touch(mode=0o600)
        self.passphrase_file.write_text(passphrase, "utf-8")
        self.members = [attestor.member for attestor in self.attestors.all]
        self.wire = create_key(keys / "wire-coordinator.json", passphrase, role="wire", iterations=ITERATIONS)
        self.door = f"127.0.0.1:{find_free_port()}"
        paying = partial(create_key, passphrase=passphrase, role="relayer", iterations=ITERATIONS)
        self.payers = {c.id: paying(keys / f"payer-{c.name}.json") for c in self.chains}
        self.publisher = paying(keys / "payer-eas.json")
        create_solana_key(keys / "payer-sol.json", passphrase, iterations=ITERATIONS)
        self.solana_payer_key = load_solana_key(keys / "payer-sol.json", passphrase).keypair
        self.started_at = int(time.time())
        self.deployment = Deployment(
            DEVNET,
            tuple(bytes.fromhex(m[2:]) for m in self.members),
            THRESHOLD,
            self.started_at + 90 * 86_400,
            secrets.token_bytes(32),
        )

    def prices(self) -> dict[str, int]:
        """Return the publisher's newest prices, USD with 8 decimals, by feed."""
        query = "&".join(f"ids[]={i}" for i in PYTH_IDS.values())
        url = f"{self.hermes.url}/v2/updates/price/latest?{query}&encoding=hex&parsed=true"
        with urllib.request.urlopen(url, timeout=5) as response:
            parsed = json.load(response)["parsed"]
        by_id = {p["id"]: p["price"] for p in parsed}
        return {feed: int(by_id[i]["price"]) * 10 ** (8 + by_id[i]["expo"]) for feed, i in PYTH_IDS.items()}

    def _deploy_evm(self, chain: EvmChain, prices: dict[str, int]) -> None:
        w3 = chain.w3
        first = {"ETH": prices["ETH/USD"], "BTC": prices["BTC/USD"], "USDC": prices["USDC/USD"]}
        spec = EvmSpec(
            members=tuple(self.members),
            threshold=THRESHOLD,
            not_after=self.deployment.not_after,
            salt=self.deployment.salt,
            prices=first,
            epoch_seconds=EPOCH_SECONDS,
            clock_skew=CLOCK_SKEW,
            max_lifetime=MAX_LIFETIME,
            vault_delay=VAULT_DELAY,
            with_aave=chain is self.alpha,
            with_venue=chain is self.alpha,
        )
        chain.contracts = deploy_evm_chain(w3, spec)
        chain.contracts["feed_sol"] = str(deploy_feed(w3, "SOL / USD", prices["SOL/USD"]).address).lower()
        if chain.has_sequencer:
            up_since = self.started_at - 86_400
            chain.contracts["sequencer_feed"] = str(deploy_sequencer_feed(w3, up_since).address).lower()
        if chain is self.beta:
            chain.contracts |= deploy_eas(w3, at(w3, "MarginRegistry", chain.contracts["registry"]))
            chain.node.rpc("anvil_setBalance", self.publisher, hex(PAYER_WEI))
        chain.genesis = Web3.to_hex(w3.eth.get_block(0)["hash"])
        self.fund_payer(chain.name, True)

    def _deploy_solana(self) -> None:
        self.sol = f"solana:{self.svm.genesis[:32]}"
        spec = SolanaSpec(
            payer=self.solana_payer_key,
            deployment=self.deployment,
            destination=Web3.keccak(text=self.sol),
            epoch_seconds=EPOCH_SECONDS,
            clock_skew=CLOCK_SKEW,
            max_lifetime=MAX_LIFETIME,
            vault_delay=VAULT_DELAY,
        )
        self.solana = asyncio.run(deploy_solana(self.svm.url, spec))

    # --- prices ----------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Carry the publisher's prices to the Chainlink-style feeds, as their own nodes would."""
        while not self._feeder_stop.wait(FEEDER_SECONDS):
            if self.prices_silent:
                continue
            with contextlib.suppress(Exception):  # a halted chain or a publisher that is down: the feeds age, visibly
                prices = self.prices()
                for chain in self.chains:
                    self._set_feeds(chain, prices)

    @staticmethod
    def _set_feeds(chain: EvmChain, prices: dict[str, int]) -> None:
        w3 = chain.w3
        sender = w3.eth.accounts[0]
        if w3.eth.get_transaction_count(sender, "pending") > w3.eth.get_transaction_count(sender, "latest"):
            return  # the chain has not mined the last round: do not pile up
        for feed, price in prices.items():
            contract = at(w3, "PriceFeed", chain.contracts["feed_" + feed.partition("/")[0].lower()])
            contract.functions.setAnswer(price).transact({"from": sender, "gas": 200_000})

    def shock(self, factor: str, feeds: list[str]) -> None:
        """Multiply prices by ``factor`` (decimal text) from the next update on."""
        body = json.dumps({"feeds": feeds, "factor": factor}).encode()
        request = urllib.request.Request(
            f"{self.hermes.url}/x/shock", body, {"content-type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=5):
            pass

    def silence_prices(self, silent: bool) -> None:
        """Let the publisher stop, or go on; the feeds on the chains stop with it."""
        order = "pause" if silent else "resume"
        request = urllib.request.Request(f"{self.hermes.url}/x/{order}", b"", method="POST")
        with urllib.request.urlopen(request, timeout=5):
            self.prices_silent = silent

    def set_sequencer(self, chain: EvmChain, *, up: bool) -> None:
        """Let the uptime feed of ``chain`` say, from its next block on, that the sequencer is up or down."""
        w3 = chain.w3
        feed = at(w3, "SequencerFeed", chain.contracts["sequencer_feed"])
        feed.functions.setAnswer(0 if up else 1).transact({"from": w3.eth.accounts[0], "gas": 200_000})

    def fund_payer(self, chain: str, funded: bool) -> None:
        """Give the account that pays for the service's postings on ``chain`` (a name) all it needs, or nothing."""
        if chain == "sol":
            lamports = PAYER_LAMPORTS if funded else 1
            body = {"lamports": lamports, "owner": SYSTEM_PROGRAM}
            self.svm.call("x_setAccount", str(self.solana_payer_key.pubkey()), body)
            return
        evm = next(c for c in self.chains if c.name == chain)
        evm.node.rpc("anvil_setBalance", self.payers[evm.id], hex(PAYER_WEI if funded else 0))

    # --- configuration ---------------------------------------------------------------------------------------------

    def _write_config(self) -> None:
        self.policy = self.folder / "policy.toml"
        self.policy.write_text(tomli_w.dumps(self._policy()), "utf-8")
        self.config = self.folder / "crossmargin.toml"
        settings = self.settings()
        self.config.write_text(tomli_w.dumps(settings), "utf-8")
        self.attestors.write_configs(settings, self.wire, self.door)

    def publish_config(self, place: Path) -> None:
        """Copy the configuration to where the command line looks for a running demo's."""
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.config, place)

    def settings(self) -> dict[str, Any]:
        """Return the configuration document of this devnet."""
        signers = json.loads(urllib.request.urlopen(f"{self.hermes.url}/x/guardians", timeout=5).read())
        return {
            "service": {
                "data": str(self.folder),
                "epoch_seconds": EPOCH_SECONDS,
                "listen": f"127.0.0.1:{self.listen_port}",
                "wire_key": "wire-coordinator",
                "wire_listen": self.door,
                "passphrase_file": str(self.passphrase_file),
                "clock_skew": CLOCK_SKEW,
                "max_lifetime": MAX_LIFETIME,
                # As if there were very many accounts: who is not seen to change is carried from an older block.
                "full_read_below": 0,
                "reread_epochs": REREAD_EPOCHS,
            },
            "attestors": self.attestors.rows(),
            "deployment": {
                "network_class": DEVNET,
                "members": self.members,
                "threshold": THRESHOLD,
                "not_after": self.deployment.not_after,
                "salt": "0x" + self.deployment.salt.hex(),
            },
            "pyth": {
                "url": self.hermes.url,
                "guardian_set_index": signers["guardian_set"]["index"],
                "guardians": signers["guardian_set"]["addresses"],
                "emitter_chain": signers["emitter_chain"],
                "emitter_address": signers["emitter_address"].removeprefix("0x"),
            },
            "chains": [self._evm_chain(c) for c in self.chains] + [self._solana_chain()],
            "assets": [a for c in self.chains for a in self._evm_assets(c)] + self._solana_assets(),
            "sources": self._sources(),
            "venues": [v for c in self.chains for v in self._evm_venues(c)] + self._solana_venues(),
            "destinations": [
                *(
                    {
                        "chain": c.id,
                        "kind": "evm-registry",
                        "address": c.contracts["registry"],
                        "clock_bound": 5,
                        "payer_key": f"payer-{c.name}",
                    }
                    for c in self.chains
                ),
                {
                    "chain": self.sol,
                    "kind": "solana-registry",
                    "address": self.solana["registry"],
                    "program": self.solana["registry_program"],
                    "clock_bound": 5,
                    "payer_key": "payer-sol",
                },
            ],
            "publications": [
                {
                    "chain": self.beta.id,
                    "kind": "eas",
                    "address": self.beta.contracts["eas"],
                    "resolver": self.beta.contracts["eas_resolver"],
                    "payer_key": "payer-eas",
                }
            ],
            "policy": str(self.policy),  # in full: the configuration is also read at another place, a copy of it
        }

    def _evm_chain(self, c: EvmChain) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": c.id,
            "name": c.name,
            "family": "evm",
            "rpc": self.providers.urls(c.name),
            "ws": self.providers.ws_urls(c.name),
            "quorum": QUORUM,
            "genesis": c.genesis,
            "block_seconds": c.block_seconds,
            "finality": {"depth": c.depth},
            "irreversible": {"depth": c.irreversible},
            "prove": True,
            "max_age": MAX_AGE,
            "timeout": 5.0,
            "requests_per_second": 200,
            # finality and read; relay, with one transaction in 20,000 meeting a quarter of an hour of outage
            "hold": [
                {"typical": 8},
                {"typical": 8, "outage": 900, "outage_probability": 0.00005},
            ],
        }
        if c.has_sequencer:
            row["sequencer"] = {"feed": c.contracts["sequencer_feed"], "grace": SEQUENCER_GRACE}
        return row

    def _solana_chain(self) -> dict[str, Any]:
        return {
            "id": self.sol,
            "name": "sol",
            "family": "solana",
            "rpc": self.providers.urls("sol"),
            "ws": self.providers.ws_urls("sol"),
            "quorum": QUORUM,
            "genesis": self.svm.genesis,
            "block_seconds": SOL_SLOT_MS / 1000,
            "max_age": MAX_AGE,
            "timeout": 5.0,
            "requests_per_second": 200,
            "hold": [{"typical": 6}, {"typical": 6, "outage": 900, "outage_probability": 0.00005}],
        }

    def _evm_assets(self, c: EvmChain) -> list[dict[str, Any]]:
        def erc20(name: str) -> str:
            return f"{c.id}/erc20:{c.contracts[name]}"

        rows: list[dict[str, Any]] = [
            {
                "id": f"{c.id}/slip44:60",
                "symbol": "ETH",
                "kind": "native",
                "decimals": 18,
                "feed": "ETH/USD",
                "policy": "major",
            },
            self._asset(erc20("weth"), "WETH", "erc20", 18, "ETH/USD", "major"),
            self._asset(erc20("wbtc"), "WBTC", "erc20", 8, "BTC/USD", "major"),
            self._asset(erc20("usdc"), "USDC", "erc20", 6, "USDC/USD", "stable"),
            self._asset(erc20("vault4626"), "vUSDC", "erc4626", 9, "USDC/USD", "stable-receipt")
            | {"underlying": erc20("usdc"), "rate_cap": 1.5},
        ]
        for token, symbol, decimals, feed in (
            ("weth", "aWETH", 18, "ETH/USD"),
            ("wbtc", "aWBTC", 8, "BTC/USD"),
            ("usdc", "aUSDC", 6, "USDC/USD"),
        ):
            if (atoken := f"aave_atoken_{token}") in c.contracts:
                policy = "stable-receipt" if token == "usdc" else "major-receipt"
                rows.append(
                    self._asset(erc20(atoken), symbol, "atoken", decimals, feed, policy) | {"underlying": erc20(token)}
                )
        return rows

    @staticmethod
    def _asset(id: str, symbol: str, kind: str, decimals: int, feed: str, policy: str) -> dict[str, Any]:
        return {"id": id, "symbol": symbol, "kind": kind, "decimals": decimals, "feed": feed, "policy": policy}

    def _solana_assets(self) -> list[dict[str, Any]]:
        usdc = f"{self.sol}/token:{self.solana['usdc_mint']}"
        return [
            self._asset(f"{self.sol}/slip44:501", "SOL", "native", 9, "SOL/USD", "alt"),
            self._asset(f"{self.sol}/token:{WRAPPED_SOL}", "wSOL", "spl", 9, "SOL/USD", "alt"),
            self._asset(usdc, "USDC", "spl", 6, "USDC/USD", "stable"),
        ]

    def _sources(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for feed, pyth_id in PYTH_IDS.items():
            symbol = feed.partition("/")[0].lower()
            rows.append({"name": "pyth", "feed": feed, "kind": "pyth", "id": pyth_id, "weight": 2.0, "max_age": 20})
            rows += [
                {
                    "name": f"chainlink-{c.name}",
                    "feed": feed,
                    "kind": "chainlink",
                    "id": f"{c.id}:{c.contracts['feed_' + symbol]}",
                    "weight": 1.0,
                    "max_age": 60,
                    "relative_conf": 0.0005,
                }
                for c in self.chains
            ]
        return rows

    @staticmethod
    def _evm_venues(c: EvmChain) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {"chain": c.id, "kind": "wallet"},
            {"chain": c.id, "kind": "vault", "addresses": {"vault": c.contracts["collateral_vault"]}},
            {"chain": c.id, "kind": "lender", "addresses": {"lender": c.contracts["lender"]}},
        ]
        if "aave_pool" in c.contracts:
            addresses = {"pool": c.contracts["aave_pool"], "data_provider": c.contracts["aave_data_provider"]}
            rows.append({"chain": c.id, "kind": "aave-v3", "addresses": addresses})
        if "venue" in c.contracts:
            rows.append({"chain": c.id, "kind": "margin-venue", "addresses": {"venue": c.contracts["venue"]}})
        return rows

    def _solana_venues(self) -> list[dict[str, Any]]:
        vault = {"program": self.solana["vault_program"], "vault": self.solana["vault"]}
        return [
            {"chain": self.sol, "kind": "wallet"},
            {"chain": self.sol, "kind": "vault", "addresses": vault},
            {"chain": self.sol, "kind": "links", "addresses": {"program": self.solana["links_program"]}},
        ]

    @staticmethod
    def _policy() -> dict[str, Any]:
        def asset(volatility: float, volume: float, initial: float, maintenance: float, jumps: Any) -> dict[str, Any]:
            return {
                "volatility": volatility,
                "jumps": [{"rate": rate, "recovery": recovery} for rate, recovery in jumps],
                "daily_volume": volume,
                "impact": 1.0,
                "liquidation_seconds": 900,
                "initial": {"confidence": 0.999, "haircut": initial, "liability_weight": 1.05},
                "maintenance": {"confidence": 0.99, "haircut": maintenance, "liability_weight": 1.02},
            }

        def slice(days: int, volatility: float, rho: float = -0.15, eta: float = 1.2) -> dict[str, Any]:
            """Return one tenor of a surface free of arbitrage: SSVI, Gatheral and Jacquier (2014), §4."""
            theta = volatility**2 * days / 365
            phi = eta / math.sqrt(theta * (1 + theta))
            return {
                "tenor": days * 86_400,
                "a": round(theta * (1 - rho**2) / 2, 9),
                "b": round(theta * phi / 2, 9),
                "rho": rho,
                "m": round(-rho / phi, 9),
                "sigma": round(math.sqrt(1 - rho**2) / phi, 9),
            }

        def underlying(
            reach: float, volatility: float, volume: float, size_factor: float, first: tuple[float, float]
        ) -> dict[str, Any]:
            initial, maintenance = first
            return {
                "range": reach,
                "group": "majors",
                "rate": 0.04,
                "carry": 0.0,
                "surface": [slice(days, volatility) for days in (1, 7, 30, 90, 365)],
                "daily_volume": volume,
                "perp_initial": 2 * initial,
                "perp_maintenance": 2 * maintenance,
                "size_factor": size_factor,
                "tiers": [
                    {"up_to": up_to, "initial": initial * k, "maintenance": maintenance * k}
                    for up_to, k in ((1e6, 1), (1e7, 2), (1e8, 4))
                ],
            }

        crash = [(6.0, 0.92), (0.5, 0.75)]
        depeg = [(0.2, 0.88)]
        return {
            "version": "devnet-1",
            "lifetime": LIFETIME,
            "assets": {
                "major": asset(0.80, 5e9, 0.08, 0.04, crash),
                "major-receipt": asset(0.80, 1e9, 0.10, 0.05, crash),
                "stable": asset(0.02, 5e9, 0.01, 0.005, depeg),
                "stable-receipt": asset(0.02, 5e8, 0.03, 0.015, depeg),
                # What `crossmargin recalibrate` makes of SOL/USDT from August 2020 to 2024; as a major it is too cheap.
                "alt": asset(1.324, 2e9, 0.12, 0.06, [(9.12, 0.9533), (3.19, 0.8944), (0.23, 0.5123)]),
            },
            "underlyings": {
                "BTC/USD": underlying(0.15, 0.50, 1e10, 2e-3, (0.05, 0.025)),
                "ETH/USD": underlying(0.18, 0.65, 5e9, 2e-4, (0.05, 0.025)),
                "SOL/USD": underlying(0.22, 0.85, 2e9, 2e-5, (0.10, 0.05)),
            },
            "dollars": ["USDC/USD"],
            "groups": {"majors": {"offset": 0.4}},
            "models": {"risk_bearing": "scenario", "monitored": "scenario"},
            "scenario": {"maintenance_factor": 0.8, "initial_factor": 1.0, "gain_weight_initial": 0.8},
            # Far above what the traders have: each of them gets all of its first budget at once.
            "growth": {"account_usd": 1e6, "account_ratio": 1.0, "asset_usd": 5e7},
        }
