"""Settings: one TOML file, read once, checked as a whole, frozen.

A broken or missing key raises :class:`ConfigError`, which names the file, the key and an example that would work.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from aggregator.domain.errors import ConfigError
from aggregator.domain.rows import (
    AssetRow,
    ChainRow,
    DeploymentRow,
    DestinationRow,
    Name,
    PolicyRow,
    PythRow,
    Row,
    SourceRow,
    VenueRow,
)

EXAMPLES: Mapping[str, str] = {
    "service": "{data = ..., epoch_seconds = 12, listen = ..., attestor_keys = [...], passphrase_file = ...}",
    "service.data": '"/var/lib/crossmargin"',
    "service.epoch_seconds": "12",
    "service.listen": '"127.0.0.1:8080"',
    "service.attestor_keys": '"attestor-0"',
    "service.passphrase_file": '"/etc/crossmargin/passphrase"',
    "service.clock_skew": "5",
    "service.max_lifetime": "3600",
    "service.keep_epochs": "5000",
    "service.heartbeat_seconds": "0",
    "deployment": "{network_class = 1, members = [...], threshold = 3, not_after = 1900000000, salt = ...}",
    "deployment.members": '"0x70997970c51812dc3a010c7d01b50e0d17dc79c8"',
    "deployment.threshold": "3",
    "deployment.network_class": "3",
    "deployment.not_after": "1900000000",
    "deployment.salt": '"0x' + "00" * 32 + '"',
    "chains": '{id = "eip155:1", name = "ethereum", family = "evm", rpc = [...], ...}',
    "chains.id": '"eip155:1" or "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"',
    "chains.name": '"ethereum"',
    "chains.family": '"evm" or "solana"',
    "chains.rpc": '"https://rpc.example.org"',
    "chains.genesis": '"0xd4e56740f876aef8c010b86a40d5f56745a118d0906a34e69aec8c0db1cb8fa3"',
    "chains.block_seconds": "12",
    "chains.finality_depth": "64",
    "chains.multicall": '"0xca11bde05977b3631167028862be2a173976ca11"',
    "chains.max_age": "120",
    "chains.hold": "{typical = 60, outage = 3600, outage_probability = 0.001}",
    "chains.hold.typical": "60",
    "chains.hold.outage": "3600",
    "chains.hold.outage_probability": "0.001",
    "chains.timeout": "5.0",
    "chains.requests_per_second": "50",
    "chains.quorum": "2",
    "assets": '{id = ..., symbol = "USDC", kind = "erc20", decimals = 6, feed = "USDC/USD", policy = "stable"}',
    "assets.id": '"eip155:1/erc20:0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"',
    "assets.symbol": '"USDC"',
    "assets.kind": '"erc20"',
    "assets.decimals": "6",
    "assets.feed": '"USDC/USD"',
    "assets.policy": '"stable"',
    "assets.underlying": '"eip155:1/erc20:0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"',
    "assets.rate_cap": "1.5",
    "sources": '{name = "pyth", feed = "USDC/USD", kind = "pyth", id = ...}',
    "sources.name": '"pyth"',
    "sources.feed": '"USDC/USD"',
    "sources.kind": '"pyth" or "chainlink"',
    "sources.id": '"ff61491a931112ddf1bd8147cd1b641375f79f5825126d665480874634fd0ace"',
    "sources.weight": "1.0",
    "sources.max_age": "60",
    "sources.floor": "0.01",
    "sources.cap": "1000000",
    "sources.relative_conf": "0.0005",
    "pyth": "{url = ..., guardian_set_index = 4, guardians = [...], emitter_chain = 26, emitter_address = ...}",
    "pyth.url": '"https://hermes.example.org"',
    "pyth.api_key": '"..."',
    "pyth.guardian_set_index": "4",
    "pyth.guardians": '"0x5893b5a76c3f739645648885bdccc06cd70a3cd3"',
    "pyth.emitter_chain": "26",
    "pyth.emitter_address": '"e101faedac5851e32b9b23b5f9411a8c2bac4aae3ed4dd7b811dd1a72ea4aa71"',
    "venues": '{chain = "eip155:1", kind = "wallet"}',
    "venues.chain": '"eip155:1"',
    "venues.kind": '"wallet", "vault", "lender" or "aave-v3"',
    "venues.addresses": '{vault = "0x..."}',
    "venues.addresses.*": '"0x..."',
    "destinations": '{chain = "eip155:1", kind = "evm-registry", address = ..., clock_bound = 5, payer_key = ...}',
    "destinations.chain": '"eip155:1"',
    "destinations.kind": '"evm-registry" or "solana-registry"',
    "destinations.address": '"0x5fbdb2315678afecb367f032d93f642f64180aa3"',
    "destinations.clock_bound": "5",
    "destinations.payer_key": '"payer-ethereum"',
    "policy": '{version = "2026-01", lifetime = 60, assets = {...}}',
    "policy.version": '"2026-01"',
    "policy.confidence_multiple": "2.12",
    "policy.staleness_multiple": "1.0",
    "policy.min_sources": "2",
    "policy.max_spread": "0.2",
    "policy.exit_epsilon": "0.0001",
    "policy.lifetime": "60",
    "policy.assets": "{stable = {...}}",
    "policy.assets.*": "{volatility = 0.8, daily_volume = 1e9, impact = 1.0, ...}",
    "policy.assets.*.volatility": "0.8",
    "policy.assets.*.jumps": "{rate = 0.5, recovery = 0.75}",
    "policy.assets.*.jumps.rate": "0.5",
    "policy.assets.*.jumps.recovery": "0.75",
    "policy.assets.*.daily_volume": "1e9",
    "policy.assets.*.impact": "1.0",
    "policy.assets.*.liquidation_seconds": "900",
    "policy.assets.*.initial": "{confidence = 0.999, haircut = 0.08, liability_weight = 1.05}",
    "policy.assets.*.initial.confidence": "0.999",
    "policy.assets.*.initial.haircut": "0.08",
    "policy.assets.*.initial.liability_weight": "1.05",
    "policy.assets.*.maintenance": "{confidence = 0.99, haircut = 0.04, liability_weight = 1.02}",
    "policy.assets.*.maintenance.confidence": "0.99",
    "policy.assets.*.maintenance.haircut": "0.04",
    "policy.assets.*.maintenance.liability_weight": "1.02",
}
"""An example for every key; of a list, one element."""
LISTS = frozenset(
    {"service.attestor_keys", "deployment.members", "chains", "chains.rpc", "chains.hold", "assets", "sources"}
    | {"pyth.guardians", "venues", "destinations", "policy.assets.*.jumps"}
)
NAMED = frozenset({"policy.assets", "venues.addresses"})
"""Tables whose keys the user chooses."""


class ServiceRow(Row):
    """How the process itself runs. ``data`` is a folder; relative paths are relative to the file."""

    data: str
    epoch_seconds: Annotated[int, Field(ge=1)]
    listen: Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")]
    attestor_keys: tuple[Name, ...] = Field(min_length=1)  # file names below <data>/keys, in member order
    passphrase_file: str
    clock_skew: Annotated[int, Field(ge=0)] = 5  # as the registries were deployed with
    max_lifetime: Annotated[int, Field(gt=0)] = 3600  # as the registries were deployed with
    keep_epochs: Annotated[int, Field(ge=10)] = 5000
    heartbeat_seconds: Annotated[int, Field(ge=0)] = 0  # 0 = post every epoch


class Settings(Row):
    """Everything ``crossmargin run`` depends on."""

    service: ServiceRow
    deployment: DeploymentRow
    chains: tuple[ChainRow, ...] = Field(min_length=1)
    assets: tuple[AssetRow, ...] = Field(min_length=1)
    sources: tuple[SourceRow, ...] = Field(min_length=1)
    pyth: PythRow | None = None
    venues: tuple[VenueRow, ...] = ()
    destinations: tuple[DestinationRow, ...] = Field(min_length=1)
    policy: PolicyRow

    def chain(self, id_or_name: str) -> ChainRow | None:
        """Return the chain with this CAIP-2 id or name, if configured."""
        return next((c for c in self.chains if id_or_name in (c.id, c.name)), None)


def _key(location: Iterable[int | str]) -> tuple[str, str]:
    """Return the key as a user would write it, and an example of its value."""
    shown, plain, element = "", "", False
    for part in location:
        element = isinstance(part, int)
        if element:
            shown += f"[{part}]"
        else:
            shown += f".{part}" if shown else str(part)
            name = "*" if plain in NAMED else str(part)
            plain += f".{name}" if plain else name
    example = EXAMPLES.get(plain, "")
    return shown, f"[{example}]" if example and plain in LISTS and not element else example


def _unique(file: str, table: str, key: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for i, value in enumerate(values):
        if value in seen:
            raise ConfigError(file, f"{table}[{i}].{key}", f"{value!r} is given twice")
        seen.add(value)


def _check_references(file: str, s: Settings) -> None:
    """Check what one row alone cannot know: every reference leads somewhere."""
    _unique(file, "chains", "id", (c.id for c in s.chains))
    _unique(file, "chains", "name", (c.name for c in s.chains))
    _unique(file, "assets", "id", (a.id for a in s.assets))
    _unique(file, "destinations", "chain", (d.chain for d in s.destinations))
    _unique(file, "sources", "feed and name", (f"{x.feed} {x.name}" for x in s.sources))
    chains, feeds = {c.id for c in s.chains}, {x.feed for x in s.sources}
    assets = {a.id: a for a in s.assets}

    def known(table: str, i: int, key: str, value: str, among: Iterable[str]) -> None:
        names = sorted(among)
        if value not in names:
            raise ConfigError(file, f"{table}[{i}].{key}", f"{value!r} is not among those configured", repr(names[0]))

    for i, a in enumerate(s.assets):
        known("assets", i, "id", a.id.partition("/")[0], chains)
        known("assets", i, "feed", a.feed, feeds)
        known("assets", i, "policy", a.policy, s.policy.assets)
        if a.underlying is not None:
            known("assets", i, "underlying", a.underlying, assets)
            if assets[a.underlying].underlying is not None:
                raise ConfigError(file, f"assets[{i}].underlying", "is itself a receipt: name the final asset")
            if assets[a.underlying].feed != a.feed:
                raise ConfigError(file, f"assets[{i}].feed", "must be the feed of the underlying asset", repr(a.feed))
    for i, x in enumerate(s.sources):
        if x.kind == "chainlink":
            known("sources", i, "id", x.id.rpartition(":")[0], chains)
        elif s.pyth is None:
            raise ConfigError(
                file, "pyth", "is missing, and a pyth source is configured", "[pyth] with url and guardians"
            )
    for i, v in enumerate(s.venues):
        known("venues", i, "chain", v.chain, chains)
    for i, d in enumerate(s.destinations):
        known("destinations", i, "chain", d.chain, chains)
    if len(s.service.attestor_keys) > len(s.deployment.members):
        raise ConfigError(file, "service.attestor_keys", "names more keys than deployment.members has members")
    if s.policy.lifetime > s.service.max_lifetime:
        raise ConfigError(
            file,
            "policy.lifetime",
            "is above service.max_lifetime; the registries would refuse it",
            str(s.service.max_lifetime),
        )


def parse_settings(document: Mapping[str, Any], file: str = "configuration") -> Settings:
    """Check a parsed TOML document as a whole.

    Raises:
        ConfigError: names ``file``, the first key at fault and an example.
    """
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        shown, example = _key(first["loc"])
        problem = {"missing": "is missing", "extra_forbidden": "is not a known key"}.get(first["type"], first["msg"])
        raise ConfigError(file, shown or "document", problem, example) from None
    _check_references(file, settings)
    return settings


def load_settings(path: Path) -> Settings:
    """Read and check the TOML file at ``path``.

    Raises:
        ConfigError: the file is missing, not TOML, or wrong in a key.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), "file", "does not exist; name one with --config or CROSSMARGIN_CONFIG") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "file", f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), "file", f"is not TOML: {error}") from None
    settings = parse_settings(document, str(path))
    here = path.resolve().parent
    paths = {name: str(here / getattr(settings.service, name)) for name in ("data", "passphrase_file")}
    return settings.model_copy(update={"service": settings.service.model_copy(update=paths)})
