"""A small valid configuration, as the document that a TOML file would give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.devnet import hermes
from infra.devnet.world import PYTH_IDS

ALPHA, BETA, SOL = "eip155:31337", "eip155:31338", "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z"
SOL_GENESIS = "4uhcVJyU9pJkvQyS88uRDiswHXSCkY3zQawwpjk2NsNY"
SOL_REGISTRY = "BgBhcaacS7vo3JXBvCYAyJwXa6EoR3UZHUJgD45f3dxh"
RPC_SECRET = "rpc-key-5e0f2a"
PYTH_SECRET = "hermes-key-77b1"
LIFETIME, MAX_LIFETIME = 60, 600
EPOCH_SECONDS = 2

WETH = f"{ALPHA}/erc20:0x{'e1' * 20}"
USDC = f"{ALPHA}/erc20:0x{'c1' * 20}"
SHARES = f"{ALPHA}/erc20:0x{'5a' * 20}"
BETA_ETH = f"{BETA}/slip44:60"
BETA_USDC = f"{BETA}/erc20:0x{'c2' * 20}"
LAMPORTS = f"{SOL}/slip44:501"


def chain(id: str, name: str, **changes: Any) -> dict[str, Any]:
    """Return one chain's table."""
    solana = id.startswith("solana")
    return {
        "id": id,
        "name": name,
        "family": "solana" if solana else "evm",
        "rpc": [f"https://rpc.example.org/v2/{RPC_SECRET}"],
        "genesis": SOL_GENESIS if id == SOL else "0x" + "11" * 32,
        "block_seconds": 1,
        **({} if solana else {"finality": {"depth": 2}}),
        "max_age": 14,
        "timeout": 0.5,  # seconds of a real clock: enough for a busy machine, and what a hanging node costs a test
        "hold": [{"typical": 8}, {"typical": 8, "outage": 900, "outage_probability": 0.00005}],
    } | changes


def asset(id: str, symbol: str, kind: str, decimals: int, feed: str, policy: str, **more: Any) -> dict[str, Any]:
    """Return one asset's table."""
    return {
        "id": id,
        "symbol": symbol,
        "kind": kind,
        "decimals": decimals,
        "feed": feed,
        "policy": policy,
    } | more


def _policy(volatility: float, initial: float, maintenance: float, jumps: Sequence[tuple[float, float]]) -> Any:
    return {
        "volatility": volatility,
        "jumps": [{"rate": rate, "recovery": recovery} for rate, recovery in jumps],
        "daily_volume": 1e9,
        "impact": 1.0,
        "liquidation_seconds": 900,
        "initial": {"confidence": 0.999, "haircut": initial, "liability_weight": 1.05},
        "maintenance": {"confidence": 0.99, "haircut": maintenance, "liability_weight": 1.02},
    }


def make_document(
    data: Path | str = "data",
    members: Sequence[str] = tuple(f"0x{i:040x}" for i in range(1, 5)),
    *,
    not_after: int = 2_000_000_000,
) -> dict[str, Any]:
    """Return a configuration of three chains, two price sources per feed and four attestors; every call a new one."""
    guardians: Any = hermes.guardian_set()
    feeds = ("ETH/USD", "SOL/USD", "USDC/USD")
    sources: list[dict[str, Any]] = []
    for i, feed in enumerate(feeds):
        sources.append(
            {"name": "pyth", "feed": feed, "kind": "pyth", "id": PYTH_IDS[feed], "weight": 2.0, "max_age": 20}
        )
        sources += [
            {
                "name": f"chainlink-{name}",
                "feed": feed,
                "kind": "chainlink",
                "id": f"{id}:0x{i + 1:040x}",
                "max_age": 60,
                "relative_conf": 0.0005,
            }
            for id, name in ((ALPHA, "alpha"), (BETA, "beta"))
        ]
    return {
        "service": {
            "data": str(data),
            "epoch_seconds": EPOCH_SECONDS,
            "listen": "127.0.0.1:8080",
            "attestor_keys": [f"attestor-{i}" for i in range(len(members))],
            "passphrase_file": str(Path(data) / "passphrase"),
            "max_lifetime": MAX_LIFETIME,
        },
        "deployment": {
            "network_class": 3,
            "members": list(members),
            "threshold": 3,
            "not_after": not_after,
            "salt": "0x" + "5a" * 32,
        },
        "pyth": {
            "url": "https://hermes.example.org",
            "api_key": PYTH_SECRET,
            "guardian_set_index": guardians["guardian_set"]["index"],
            "guardians": list(guardians["guardian_set"]["addresses"]),
            "emitter_chain": guardians["emitter_chain"],
            "emitter_address": guardians["emitter_address"][2:],
        },
        "chains": [chain(ALPHA, "alpha"), chain(BETA, "beta"), chain(SOL, "sol")],
        "assets": [
            asset(WETH, "WETH", "erc20", 18, "ETH/USD", "major"),
            asset(USDC, "USDC", "erc20", 6, "USDC/USD", "stable"),
            asset(SHARES, "vUSDC", "erc4626", 9, "USDC/USD", "stable", underlying=USDC, rate_cap=1.5),
            asset(BETA_ETH, "ETH", "native", 18, "ETH/USD", "major"),
            asset(BETA_USDC, "USDC", "erc20", 6, "USDC/USD", "stable"),
            asset(LAMPORTS, "SOL", "native", 9, "SOL/USD", "major"),
        ],
        "sources": sources,
        "venues": [
            {"chain": ALPHA, "kind": "vault", "addresses": {"vault": "0x" + "7a" * 20}},
            {"chain": SOL, "kind": "wallet"},
        ],
        "destinations": [
            {
                "chain": id,
                "kind": "solana-registry" if id == SOL else "evm-registry",
                "address": SOL_REGISTRY if id == SOL else "0x" + "9e" * 20,
                "clock_bound": 5,
                "payer_key": f"payer-{i}",
            }
            for i, id in enumerate((ALPHA, BETA, SOL))
        ],
        "policy": {
            "version": "worlds-1",
            "lifetime": LIFETIME,
            "assets": {
                "major": _policy(0.80, 0.08, 0.04, [(6.0, 0.92), (0.5, 0.75)]),
                "stable": _policy(0.02, 0.01, 0.005, [(0.2, 0.88)]),
            },
        },
    }
