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
    "service.data": '"/var/lib/crossmargin"',
    "service.epoch_seconds": "12",
    "service.listen": '"127.0.0.1:8080"',
    "service.attestor_keys": '["attestor-0", "attestor-1", "attestor-2", "attestor-3"]',
    "service.passphrase_file": '"/etc/crossmargin/passphrase"',
    "deployment.members": '["0x70997970c51812dc3a010c7d01b50e0d17dc79c8", ...]',
    "deployment.threshold": "3",
    "deployment.network_class": "3",
    "deployment.not_after": "1800000000",
    "deployment.salt": '"0x' + "00" * 32 + '"',
    "chains.id": '"eip155:1" or "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"',
    "chains.rpc": '["https://rpc.example.org"]',
    "chains.family": '"evm" or "solana"',
    "chains.max_age": "120",
    "chains.hold": "[{typical = 60, outage = 3600, outage_probability = 0.001}]",
    "assets.id": '"eip155:1/erc20:0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"',
    "assets.kind": '"erc20"',
    "assets.decimals": "6",
    "assets.feed": '"USDC/USD"',
    "sources.kind": '"pyth" or "chainlink"',
    "sources.id": '"ff61491a931112ddf1bd8147cd1b641375f79f5825126d665480874634fd0ace"',
    "pyth.url": '"https://hermes.example.org"',
    "destinations.kind": '"evm-registry" or "solana-registry"',
    "policy.lifetime": "60",
}


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
    """Return the key as a user would write it, and without indices to look an example up."""
    shown, plain = "", []
    for part in location:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += f".{part}" if shown else part
            plain.append(part)
    return shown, ".".join(plain)


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
        for asset in v.assets:
            known("venues", i, "assets", asset, assets)
    for i, d in enumerate(s.destinations):
        known("destinations", i, "chain", d.chain, chains)
    if len(s.service.attestor_keys) > len(s.deployment.members):
        raise ConfigError(file, "service.attestor_keys", "names more keys than deployment.members has members")
    if s.policy.lifetime > s.service.max_lifetime:
        raise ConfigError(file, "policy.lifetime", "is above service.max_lifetime; the registries would refuse it")


def parse_settings(document: Mapping[str, Any], file: str = "configuration") -> Settings:
    """Check a parsed TOML document as a whole.

    Raises:
        ConfigError: names ``file``, the first key at fault and an example.
    """
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        shown, plain = _key(first["loc"])
        problem = {"missing": "is missing", "extra_forbidden": "is not a known key"}.get(first["type"], first["msg"])
        raise ConfigError(file, shown or "document", problem, EXAMPLES.get(plain, "")) from None
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
    return parse_settings(document, str(path))
