"""Settings: one TOML file, read once, checked as a whole, frozen.

A broken or missing key raises :class:`ConfigError`, which names the file, the key and an example that would work.
"""

from __future__ import annotations

import tomllib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from aggregator.core.fusion import rank_ratios
from aggregator.domain.errors import ConfigError
from aggregator.domain.ids import (
    canonical_address,
    canonical_feed_address,
    canonical_genesis,
    canonical_pyth_id,
    family_of,
    kinds_of,
    parse_asset_id,
    parse_chain_id,
)
from aggregator.domain.policy import PolicyRow
from aggregator.domain.rows import (
    AssetRow,
    AttestorRow,
    ChainRow,
    DeploymentRow,
    DestinationRow,
    Family,
    FinalityRow,
    KeyName,
    Listen,
    Name,
    OwnAttestorRow,
    PublicationRow,
    PythRow,
    RatioRow,
    Row,
    SourceRow,
    VenueRow,
)
from proofs.errors import FieldError
from proofs.quorum import minimal_threshold
from proofs.statement import DEVNET

EXAMPLES: Mapping[str, str] = {
    "service": "{data = ..., epoch_seconds = 12, listen = ..., attestor_keys = [...], passphrase_file = ...}",
    "service.data": '"/var/lib/crossmargin"',
    "service.epoch_seconds": "12",
    "service.listen": '"127.0.0.1:8080"',
    "service.attestor_keys": '"attestor-0"',
    "service.wire_listen": '"127.0.0.1:8081"',
    "service.wire_key": '"wire-coordinator"',
    "service.passphrase_file": '"/etc/crossmargin/passphrase"',
    "service.clock_skew": "5",
    "service.max_lifetime": "3600",
    "service.keep_epochs": "5000",
    "service.heartbeat_seconds": "0",
    "service.reread_epochs": "64",
    "service.full_read_below": "2000",
    "service.link_cooldown": "7200",
    "attestors": '{index = 0, url = "https://attestor-0.example.org", wire = "0x…"}',
    **{
        f"{table}.{key}": example
        for table in ("attestors", "attestor.peers")
        for key, example in (
            ("index", "0"),
            ("url", '"https://attestor-0.example.org"'),
            ("wire", '"0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc"'),
            ("member", '"0x70997970c51812dc3a010c7d01b50e0d17dc79c8"'),
        )
    },
    "attestor": "{index = 0, key = ..., wire_key = ..., listen = ..., coordinator = ..., propose_after = 6}",
    "attestor.index": "0",
    "attestor.key": '"attestor"',
    "attestor.wire_key": '"wire"',
    "attestor.listen": '"127.0.0.1:8090"',
    "attestor.coordinator": '"0x9965507d1a55bcc2695c58ba16fb37d819b0a4dc"',
    "attestor.coordinator_url": '"https://crossmargin.example.org:8081"',
    "attestor.propose_after": "6",
    "attestor.peers": '{index = 1, url = "https://attestor-1.example.org", wire = "0x…"}',
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
    "chains.ws": '"wss://rpc.example.org"',
    "chains.finality": "{depth = 64}",
    "chains.irreversible": '{tag = "finalized", typical = 900}',
    **{
        f"chains.{rule}.{key}": example
        for rule in ("finality", "irreversible")
        for key, example in (
            ("depth", "64"),
            ("tag", '"finalized"'),
            ("l1", '"eip155:1"'),
            ("origin", '"0x4200000000000000000000000000000000000015"'),
            ("typical", "900"),
        )
    },
    "chains.sequencer": '{feed = "0xfdb631f5ee196f0ed6faa767959853a9f217697d", grace = 3600}',
    "chains.sequencer.feed": '"0xfdb631f5ee196f0ed6faa767959853a9f217697d"',
    "chains.sequencer.grace": "3600",
    "chains.prove": "true",
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
    "ratios": '{feed = "stETH/USD", ratio = "stETH/ETH", base = "ETH/USD", volatility = 0.05}',
    "ratios.feed": '"stETH/USD"',
    "ratios.ratio": '"stETH/ETH"',
    "ratios.base": '"ETH/USD"',
    "ratios.volatility": "0.05",
    "pyth": "{url = ..., guardian_set_index = 4, guardians = [...], emitter_chain = 26, emitter_address = ...}",
    "pyth.url": '"https://hermes.example.org"',
    "pyth.api_key": '"..."',
    "pyth.guardian_set_index": "4",
    "pyth.guardians": '"0x5893b5a76c3f739645648885bdccc06cd70a3cd3"',
    "pyth.emitter_chain": "26",
    "pyth.emitter_address": '"e101faedac5851e32b9b23b5f9411a8c2bac4aae3ed4dd7b811dd1a72ea4aa71"',
    "venues": '{chain = "eip155:1", kind = "wallet"}',
    "venues.chain": '"eip155:1"',
    "venues.kind": '"wallet", "vault", "lender", "aave-v3" or "margin-venue"; on Solana "wallet", "vault" or "links"',
    "venues.addresses": '{vault = "0x5fbdb2315678afecb367f032d93f642f64180aa3"}',
    "venues.addresses.*": '"0x5fbdb2315678afecb367f032d93f642f64180aa3"',
    "destinations": '{chain = "eip155:1", kind = "evm-registry", address = ..., clock_bound = 5, payer_key = ...}',
    "destinations.chain": '"eip155:1"',
    "destinations.kind": '"evm-registry" or "solana-registry"',
    "destinations.address": '"0x5fbdb2315678afecb367f032d93f642f64180aa3"',
    "destinations.clock_bound": "5",
    "destinations.payer_key": '"payer-ethereum"',
    "destinations.program": '"CNmgr5Xe7Bp3gCbsy6MnYxqmRkTDPBcMDTTYmu3XxQ2v"',
    "publications": '{chain = "eip155:1", kind = "eas", address = ..., resolver = ..., payer_key = ...}',
    "publications.chain": '"eip155:1"',
    "publications.kind": '"eas"',
    "publications.address": '"0xa1207f3bba224e2c9c3c6d5af63d0eb1582ce587"',
    "publications.resolver": '"0x5fbdb2315678afecb367f032d93f642f64180aa3"',
    "publications.payer_key": '"payer-eas"',
    "policy": '"policy.toml" (relative to this file), or {version = "2026-01", lifetime = 60, assets = {...}}',
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
    "policy.assets.*.jumps.cause": '"market", "depeg", "wrapper" or "bridge"',
    "policy.assets.*.daily_volume": "1e9",
    "policy.assets.*.impact": "1.0",
    "policy.assets.*.protocol_share": "2e7",
    "policy.assets.*.liquidation_seconds": "900",
    "policy.assets.*.initial": "{confidence = 0.999, haircut = 0.08, liability_weight = 1.05}",
    "policy.assets.*.initial.confidence": "0.999",
    "policy.assets.*.initial.haircut": "0.08",
    "policy.assets.*.initial.liability_weight": "1.05",
    "policy.assets.*.maintenance": "{confidence = 0.99, haircut = 0.04, liability_weight = 1.02}",
    "policy.assets.*.maintenance.confidence": "0.99",
    "policy.assets.*.maintenance.haircut": "0.04",
    "policy.assets.*.maintenance.liability_weight": "1.02",
    "policy.underlyings": "{'ETH/USD' = {range = 0.18}}",
    "policy.underlyings.*": "{range = 0.18, group = 'majors', perp_initial = 0.1, ...}",
    "policy.underlyings.*.range": "0.18",
    "policy.underlyings.*.group": '"majors"',
    "policy.underlyings.*.rate": "0.04",
    "policy.underlyings.*.carry": "0.03",
    "policy.underlyings.*.surface": "{tenor = 2592000, a = 0.01, b = 0.08, rho = -0.1, m = 0.0, sigma = 0.2}",
    "policy.underlyings.*.surface.tenor": "2592000",
    "policy.underlyings.*.surface.a": "0.01",
    "policy.underlyings.*.surface.b": "0.08",
    "policy.underlyings.*.surface.rho": "-0.1",
    "policy.underlyings.*.surface.m": "0.0",
    "policy.underlyings.*.surface.sigma": "0.2",
    "policy.underlyings.*.daily_volume": "5e9",
    "policy.underlyings.*.perp_initial": "0.1",
    "policy.underlyings.*.perp_maintenance": "0.05",
    "policy.underlyings.*.size_factor": "0.0002",
    "policy.underlyings.*.tiers": "{up_to = 1e6, initial = 0.05, maintenance = 0.025}",
    "policy.underlyings.*.tiers.up_to": "1e6",
    "policy.underlyings.*.tiers.initial": "0.05",
    "policy.underlyings.*.tiers.maintenance": "0.025",
    "policy.dollars": '"USDC/USD"',
    "policy.groups": "{majors = {offset = 0.5}}",
    "policy.groups.*": "{offset = 0.5}",
    "policy.groups.*.offset": "0.5",
    "policy.models": '{risk_bearing = "scenario", monitored = "scenario"}',
    "policy.models.risk_bearing": '"scenario"',
    "policy.models.monitored": '"scenario"',
    "policy.scenario": "{maintenance_factor = 0.8, initial_factor = 1.0, ...}",
    "policy.scenario.maintenance_factor": "0.8",
    "policy.scenario.initial_factor": "1.0",
    "policy.scenario.tails": "-0.5",
    "policy.scenario.damping": "0.2",
    "policy.scenario.volatility": "{up = 0.5, down = 0.3, least = 0.4}",
    "policy.scenario.volatility.up": "0.5",
    "policy.scenario.volatility.down": "0.3",
    "policy.scenario.volatility.least": "0.4",
    "policy.scenario.volatility.short_power": "0.3",
    "policy.scenario.volatility.long_power": "0.13",
    "policy.scenario.volatility.floor_days": "1.0",
    "policy.scenario.skew": "{cap_static = 0.25, cap_slope = -0.1}",
    "policy.scenario.skew.cap_static": "0.25",
    "policy.scenario.skew.cap_slope": "-0.1",
    "policy.scenario.skew.least_width": "0.01",
    "policy.scenario.skew.width": "2.4",
    "policy.scenario.discount": "{base = 0.95, base_negative = 1.04}",
    "policy.scenario.discount.base": "0.95",
    "policy.scenario.discount.base_negative": "1.04",
    "policy.scenario.discount.long_scale": "1.0",
    "policy.scenario.discount.long_add": "0.08",
    "policy.scenario.discount.short_scale": "0.5",
    "policy.scenario.discount.short_add": "0.08",
    "policy.scenario.basis_up": "1.045",
    "policy.scenario.basis_down": "0.955",
    "policy.scenario.basis_add": "0.5",
    "policy.scenario.basis_slope": "2.0",
    "policy.scenario.short_option_maintenance": "0.003",
    "policy.scenario.short_option_initial": "0.005",
    "policy.scenario.perp_maintenance": "0.03",
    "policy.scenario.perp_initial": "0.04",
    "policy.scenario.gain_weight_initial": "0.8",
    "policy.scenario.confidence_threshold": "0.55",
    "policy.scenario.confidence_margin": "1.0",
    "policy.scenario.concentration": "1.0",
    "policy.growth": "{account_usd = 1000000.0, account_ratio = 1.0, asset_usd = 50000000.0}",
    "policy.growth.account_usd": "1000000.0",
    "policy.growth.account_ratio": "1.0",
    "policy.growth.asset_usd": "50000000.0",
    "policy.var": '{method = "historical"}',
    "policy.var.method": '"historical"',
    "policy.var.draws": "4096",
    "policy.var.seed": "1",
    "policy.history": "{confidence = 0.975, underlyings = [...], moves = [...]}, as `crossmargin recalibrate` makes it",
    "policy.history.confidence": "0.975",
    "policy.history.underlyings": '"ETH/USD"',
    "policy.history.moves": "[-0.031, 0.012]",
    "policy.provenance": '{series = "eth_usdt_1h_binance", target = "assets.major", sha256 = ..., first = ...}',
    "policy.provenance.series": '"eth_usdt_1h_binance"',
    "policy.provenance.target": '"assets.major"',
    "policy.provenance.sha256": '"0x' + "00" * 32 + '"',
    "policy.provenance.first": "1672531200",
    "policy.provenance.last": "1735686000",
    "policy.provenance.bars": "17544",
    "policy.provenance.missing": "0",
    "policy.provenance.method": '"fhs"',
    "policy.provenance.seed": "1",
}
"""An example for every key; of a list, one element."""
LISTS = frozenset(
    {
        "service.attestor_keys",
        "attestors",
        "attestor.peers",
        "deployment.members",
        "chains",
        "chains.rpc",
        "chains.ws",
        "chains.hold",
    }
    | {"assets", "sources", "ratios", "pyth.guardians", "venues", "destinations", "publications"}
    | {"policy.assets.*.jumps"}
    | {"policy.underlyings.*.surface", "policy.underlyings.*.tiers", "policy.scenario.tails"}
    | {"policy.dollars", "policy.history.underlyings", "policy.history.moves", "policy.provenance"}
)
NAMED = frozenset({"policy.assets", "policy.underlyings", "policy.groups", "venues.addresses"})
"""Tables whose keys the user chooses."""
SOLANA_EXAMPLE = '"4uhcVJyU9pJkvQyS88uRDiswHXSCkY3zQawwpjk2NsNY"'
"""An example of 32 bytes in base58, where EXAMPLES has the EVM form."""
VENUES: Mapping[Family, Mapping[str, tuple[str, ...]]] = {
    "evm": {
        "wallet": (),
        "vault": ("vault",),
        "lender": ("lender",),
        "aave-v3": ("pool", "data_provider"),
        "margin-venue": ("venue",),
    },
    "solana": {"wallet": (), "vault": ("program", "vault"), "links": ("program",)},
}
"""Kinds of venue by family of chain, each with the addresses it needs."""
REGISTRIES: Mapping[Family, str] = {"evm": "evm-registry", "solana": "solana-registry"}


class ServiceRow(Row):
    """How the process itself runs. ``data`` is a folder; relative paths are relative to the file."""

    data: str
    epoch_seconds: Annotated[int, Field(ge=1)]
    listen: Listen
    attestor_keys: tuple[Name, ...] = ()  # of attestors in this very process: file names, in member order; devnets only
    wire_key: KeyName | None = None  # authenticates messages to attestors that are processes of their own
    wire_listen: Listen | None = None  # where such attestors tell of certificates that they proposed themselves
    passphrase_file: str
    clock_skew: Annotated[int, Field(ge=0)] = 5  # as the registries were deployed with
    max_lifetime: Annotated[int, Field(gt=0)] = 3600  # as the registries were deployed with
    keep_epochs: Annotated[int, Field(ge=10)] = 5000
    heartbeat_seconds: Annotated[int, Field(ge=0)] = 0  # 0 = post every epoch
    reread_epochs: Annotated[int, Field(ge=1)] = 64  # every account is read anew at least this often
    full_read_below: Annotated[int, Field(ge=0)] = 2000  # with fewer accounts, all are read anew every epoch
    link_cooldown: Annotated[int, Field(ge=0)] = 7200  # seconds at least from a revoke until the link ends


class Settings(Row):
    """Everything ``crossmargin run`` and ``crossmargin attestor run`` depend on."""

    service: ServiceRow
    attestors: tuple[AttestorRow, ...] = ()  # whom a coordinator asks
    attestor: OwnAttestorRow | None = None  # in the file of an attestor
    deployment: DeploymentRow
    chains: tuple[ChainRow, ...] = Field(min_length=1)
    assets: tuple[AssetRow, ...] = Field(min_length=1)
    sources: tuple[SourceRow, ...] = Field(min_length=1)
    ratios: tuple[RatioRow, ...] = ()
    pyth: PythRow | None = None
    venues: tuple[VenueRow, ...] = ()
    destinations: tuple[DestinationRow, ...] = Field(min_length=1)
    publications: tuple[PublicationRow, ...] = ()
    policy: PolicyRow

    def member(self, row: AttestorRow | OwnAttestorRow) -> str | None:
        """Return the address that an attestor signs with, 0x; None where only its key tells."""
        if isinstance(row, AttestorRow) and row.member is not None:
            return row.member
        members = self.deployment.members
        return members[row.index] if row.index < len(members) else None

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


def _refusal(file: str, place: Iterable[int | str], problem: str, example: str = "") -> ConfigError:
    key, usual = _key(place)
    return ConfigError(file, key, problem, example or usual)


def _require_unique(file: str, table: str, key: str, values: Iterable[Hashable], problem: str = "") -> None:
    """Check that no row of ``table`` repeats another's value; ``key`` is where the user would change it."""
    seen: set[Hashable] = set()
    for i, value in enumerate(values):
        if value in seen:
            raise _refusal(
                file, (*table.split("."), i, *([key] if key else [])), problem or f"{value!r} is given twice"
            )
        seen.add(value)


def _canonical(file: str, s: Settings) -> Settings:
    """Return the settings with every id and address checked by itself and in canonical form."""

    @contextmanager
    def at(*place: int | str, example: str = "") -> Iterator[None]:
        try:
            yield
        except FieldError as error:
            raise _refusal(file, place, error.reason, example) from None

    def address(family: Family, text: str, *place: int | str) -> str:
        with at(*place, example=SOLANA_EXAMPLE if family == "solana" else ""):
            return canonical_address(family, text)

    def chain(i: int, row: ChainRow) -> ChainRow:
        with at("chains", i, "id"):
            id = parse_chain_id(row.id)
        if family_of(id) != row.family:
            raise _refusal(file, ("chains", i, "family"), f"{row.family!r} does not fit {id}", f'"{family_of(id)}"')
        with at("chains", i, "genesis", example=SOLANA_EXAMPLE if row.family == "solana" else ""):
            genesis = canonical_genesis(row.family, row.genesis)
        multicall = address("evm", row.multicall, "chains", i, "multicall")
        given = [k for k in ("finality", "irreversible", "sequencer", "prove") if k in row.model_fields_set]
        if row.family == "solana":
            if given:
                problem = "is for EVM chains; on Solana what validators finalized is the rule: leave it out"
                raise _refusal(file, ("chains", i, given[0]), problem)
            return row.model_copy(update={"id": id, "genesis": genesis})
        if "finality" not in given:
            raise _refusal(file, ("chains", i, "finality"), "is missing")
        rules: dict[str, Row] = {k: rule(i, k, getattr(row, k)) for k in ("finality", "irreversible")}
        if row.sequencer is not None:
            feed = address("evm", row.sequencer.feed, "chains", i, "sequencer", "feed")
            rules["sequencer"] = row.sequencer.model_copy(update={"feed": feed})
        return row.model_copy(update={"id": id, "genesis": genesis, "multicall": multicall, **rules})

    def rule(i: int, key: str, row: FinalityRow) -> FinalityRow:
        if row.l1 is None or row.origin is None:
            return row
        with at("chains", i, key, "l1"):
            l1 = parse_chain_id(row.l1)
        return row.model_copy(update={"l1": l1, "origin": address("evm", row.origin, "chains", i, key, "origin")})

    def asset(i: int, row: AssetRow) -> AssetRow:
        with at("assets", i, "id"):
            id = parse_asset_id(row.id)
        if row.kind not in (fitting := kinds_of(id)):
            problem = f"{row.kind!r} does not fit {id}: {' or '.join(fitting)} expected"
            raise _refusal(file, ("assets", i, "kind"), problem, f'"{fitting[0]}"')
        if row.underlying is None:
            return row.model_copy(update={"id": str(id)})
        with at("assets", i, "underlying"):
            underlying = parse_asset_id(row.underlying)
        if underlying.chain != id.chain:
            problem = f"is on {underlying.chain}, the receipt on {id.chain}; a receipt redeems where it is"
            raise _refusal(file, ("assets", i, "underlying"), problem)
        return row.model_copy(update={"id": str(id), "underlying": str(underlying)})

    def source(i: int, row: SourceRow) -> SourceRow:
        pyth = row.kind == "pyth"
        with at("sources", i, "id", example="" if pyth else '"eip155:1:0x5f4ec3df9cbd43714fe2740f5e3616155c5b8419"'):
            return row.model_copy(update={"id": (canonical_pyth_id if pyth else canonical_feed_address)(row.id)})

    def venue(i: int, row: VenueRow) -> VenueRow:
        with at("venues", i, "chain"):
            family = family_of(row.chain)
        kinds = VENUES[family]
        if row.kind not in kinds:
            problem = f"{row.kind!r} cannot be read on {row.chain}; known there: {', '.join(kinds)}"
            raise _refusal(file, ("venues", i, "kind"), problem, '"wallet"')
        needed = kinds[row.kind]
        value = SOLANA_EXAMPLE if family == "solana" else EXAMPLES["venues.addresses.*"]
        for name in needed:
            if name not in row.addresses:
                raise _refusal(file, ("venues", i, "addresses", name), "is missing", value)
        if surplus := sorted(row.addresses.keys() - set(needed)):
            expected = ", ".join(needed) or "none"
            problem = f"{surplus[0]!r} is no address of a {row.kind} on {row.chain}: {expected} expected"
            example = "{" + ", ".join(f"{name} = {value}" for name in needed) + "}"
            raise _refusal(file, ("venues", i, "addresses"), problem, example)
        addresses = {n: address(family, row.addresses[n], "venues", i, "addresses", n) for n in needed}
        return row.model_copy(update={"addresses": addresses})

    def destination(i: int, row: DestinationRow) -> DestinationRow:
        with at("destinations", i, "chain"):
            family = family_of(row.chain)
        if row.kind != REGISTRIES[family]:
            problem = f"{row.kind!r} cannot be on {row.chain}"
            raise _refusal(file, ("destinations", i, "kind"), problem, f'"{REGISTRIES[family]}"')
        if row.program is not None and family == "evm":
            raise _refusal(file, ("destinations", i, "program"), "is for Solana: leave it out")
        program = None if row.program is None else address(family, row.program, "destinations", i, "program")
        place = address(family, row.address, "destinations", i, "address")
        return row.model_copy(update={"address": place, "program": program})

    def publication(i: int, row: PublicationRow) -> PublicationRow:
        with at("publications", i, "chain"):
            if family_of(row.chain) != "evm":
                raise _refusal(file, ("publications", i, "chain"), "EAS is on EVM chains", '"eip155:1"')
        places = {name: address("evm", getattr(row, name), "publications", i, name) for name in ("address", "resolver")}
        return row.model_copy(update=places)

    def attestor(place: tuple[int | str, ...], row: AttestorRow) -> AttestorRow:
        member = None if row.member is None else address("evm", row.member, *place, "member")
        return row.model_copy(update={"wire": address("evm", row.wire, *place, "wire"), "member": member})

    members = tuple(address("evm", m, "deployment", "members", i) for i, m in enumerate(s.deployment.members))
    own = s.attestor
    if own is not None:
        peers = tuple(attestor(("attestor", "peers", i), row) for i, row in enumerate(own.peers))
        coordinator = address("evm", own.coordinator, "attestor", "coordinator")
        own = own.model_copy(update={"coordinator": coordinator, "peers": peers})
    tables: dict[str, Any] = {
        "attestors": tuple(attestor(("attestors", i), row) for i, row in enumerate(s.attestors)),
        "attestor": own,
        "deployment": s.deployment.model_copy(update={"members": members}),
        "chains": tuple(chain(i, row) for i, row in enumerate(s.chains)),
        "assets": tuple(asset(i, row) for i, row in enumerate(s.assets)),
        "sources": tuple(source(i, row) for i, row in enumerate(s.sources)),
        "venues": tuple(venue(i, row) for i, row in enumerate(s.venues)),
        "destinations": tuple(destination(i, row) for i, row in enumerate(s.destinations)),
        "publications": tuple(publication(i, row) for i, row in enumerate(s.publications)),
    }
    if s.pyth is not None:
        guardians = tuple(address("evm", g, "pyth", "guardians", i) for i, g in enumerate(s.pyth.guardians))
        tables["pyth"] = s.pyth.model_copy(update={"guardians": guardians})
    return s.model_copy(update=tables)


def _check_duplicates(file: str, s: Settings) -> None:
    """Check that nothing is given twice: it would count twice, vote twice, or hide the other."""
    _require_unique(file, "chains", "id", (c.id for c in s.chains))
    _require_unique(file, "chains", "name", (c.name for c in s.chains))
    _require_unique(file, "assets", "id", (a.id for a in s.assets))
    natives = (a.id.partition("/")[0] if a.kind == "native" else a.id for a in s.assets)
    _require_unique(file, "assets", "id", natives, "is a second native coin of its chain; the first counts already")
    _require_unique(file, "ratios", "feed", (r.feed for r in s.ratios))
    _require_unique(file, "sources", "name", (f"{x.feed} {x.name}" for x in s.sources))
    ids = ((x.feed, x.id) for x in s.sources)
    _require_unique(file, "sources", "id", ids, "is another source of this feed; it would vote twice")
    pyth = ((x.id,) if x.kind == "pyth" else (x.feed, x.name) for x in s.sources)
    _require_unique(file, "sources", "id", pyth, "is the Pyth id of another feed")
    venues = ((v.chain, v.kind, tuple(sorted(v.addresses.items()))) for v in s.venues)
    _require_unique(file, "venues", "", venues, "is an earlier venue again; its positions would count twice")
    _require_unique(file, "destinations", "chain", (d.chain for d in s.destinations))
    _require_unique(file, "publications", "chain", (p.chain for p in s.publications))
    _require_unique(file, "service.attestor_keys", "", s.service.attestor_keys)
    for table, rows in _attestor_tables(s):
        for key in ("index", "url"):
            _require_unique(file, table, key, (getattr(row, key) for row in rows))
        _require_unique(file, table, "wire", (row.wire for row in rows))
        _require_unique(file, table, "member", (m for row in rows if (m := s.member(row))))
    _require_unique(file, "deployment.members", "", s.deployment.members)
    if s.pyth is not None:
        _require_unique(file, "pyth.guardians", "", s.pyth.guardians)


def _check_references(file: str, s: Settings) -> None:
    """Check that every reference leads somewhere."""
    chains, feeds = {c.id for c in s.chains}, {x.feed for x in s.sources} | {r.feed for r in s.ratios}
    assets = {a.id: a for a in s.assets}

    def known(table: str, i: int, key: str, value: str, among: Iterable[str]) -> None:
        names = sorted(among)
        if value not in names:
            example = f'"{names[0]}"' if names else ""
            raise _refusal(file, (table, i, key), f"{value!r} is not among those configured", example)

    def known_parent(i: int, key: str, chain: ChainRow, l1: str) -> None:
        """Check that ``l1`` is an EVM chain that does not settle, through others, on ``chain`` itself."""
        parent = s.chain(l1)
        if parent is None or parent.family != "evm":
            others = [c.id for c in s.chains if c.family == "evm" and c.id != chain.id]
            problem = f"its L1 {l1!r} is not among the EVM chains configured"
            raise _refusal(file, ("chains", i, key, "l1"), problem, f'"{others[0]}"' if others else "")
        above: set[str] = set()
        waiting: list[str | None] = [l1]
        while waiting:
            row = s.chain(waiting.pop() or "")
            if row is None or row.id in above:
                continue
            if row.id == chain.id:
                raise _refusal(file, ("chains", i, key, "l1"), f"{l1!r} is, in the end, settled on {chain.id} itself")
            above.add(row.id)
            waiting += [row.finality.l1, row.irreversible.l1]

    for i, c in enumerate(s.chains):
        for key, rule in (("finality", c.finality), ("irreversible", c.irreversible)):
            if rule.l1 is not None:
                known_parent(i, key, c, rule.l1)
        if c.finality.l1 and c.irreversible.l1 and c.finality.l1 != c.irreversible.l1:
            problem = f"is another L1 than that of finality, {c.finality.l1}; a chain settles on one"
            raise _refusal(file, ("chains", i, "irreversible", "l1"), problem, f'"{c.finality.l1}"')
    for i, a in enumerate(s.assets):
        if (chain := a.id.partition("/")[0]) not in chains:
            raise _refusal(file, ("assets", i, "id"), f"its chain {chain!r} is not among those configured")
        known("assets", i, "feed", a.feed, feeds)
        if "/" in a.feed and not a.feed.endswith("/USD"):
            problem = f"{a.feed!r}, which prices {a.symbol}, is not in USD; name a feed that is, of [[ratios]] say"
            usd = sorted(feed for feed in feeds if feed.endswith("/USD"))
            raise _refusal(file, ("assets", i, "feed"), problem, f'"{usd[0]}"' if usd else "")
        known("assets", i, "policy", a.policy, s.policy.assets)
        if a.underlying is not None:
            known("assets", i, "underlying", a.underlying, assets)
            if assets[a.underlying].underlying is not None:
                raise _refusal(file, ("assets", i, "underlying"), "is itself a receipt: name the final asset")
            if (feed := assets[a.underlying].feed) != a.feed:
                raise _refusal(file, ("assets", i, "feed"), "must be the feed of the underlying asset", f'"{feed}"')
    for i, x in enumerate(s.sources):
        if x.kind == "chainlink" and (chain := x.id.rpartition(":")[0]) not in chains:
            raise _refusal(
                file,
                ("sources", i, "id"),
                f"its chain {chain!r} is not among those configured",
                f'"{min(chains)}:0x5f4ec3df9cbd43714fe2740f5e3616155c5b8419"',
            )
        if x.kind == "pyth" and s.pyth is None:
            raise _refusal(file, ("pyth",), "is missing, and a pyth source is configured")
    sourced = {x.feed for x in s.sources}
    for i, r in enumerate(s.ratios):
        if r.feed in sourced:
            problem = f"{r.feed!r} has sources of its own; a feed is derived or sourced, not both"
            raise _refusal(file, ("ratios", i, "feed"), problem)
        known("ratios", i, "ratio", r.ratio, feeds)
        known("ratios", i, "base", r.base, feeds)
    try:
        rank_ratios(s.ratios)
    except ValueError as error:
        raise _refusal(file, ("ratios",), str(error).removeprefix("ratios: ")) from None
    for feed in s.policy.underlyings:
        if feed not in feeds:
            problem = f"no source gives prices of it; there are sources of {', '.join(sorted(feeds))}"
            raise _refusal(file, ("policy", "underlyings", feed), problem)
    for i, feed in enumerate(s.policy.dollars):
        if feed not in feeds:
            problem = f"{feed!r} is no feed; there are {', '.join(sorted(feeds))}"
            raise _refusal(file, ("policy", "dollars", i), problem)
    for i, v in enumerate(s.venues):
        known("venues", i, "chain", v.chain, chains)
    for i, d in enumerate(s.destinations):
        known("destinations", i, "chain", d.chain, chains)
    for i, p in enumerate(s.publications):
        known("publications", i, "chain", p.chain, chains)


def _check_rules(file: str, s: Settings) -> None:
    """Check what registries, attestors and clocks demand of several keys together."""
    n, d = len(s.deployment.members), s.deployment
    for i, member in enumerate(d.members):
        if int(member, 16) == 0:
            raise _refusal(file, ("deployment", "members", i), "is the zero address, which nobody can sign for")
    if n < 4 and d.network_class != DEVNET:
        problem = f"has {n}; outside a devnet (network_class 3) at least 4 are needed to bear one that is faulty"
        raise _refusal(file, ("deployment", "members"), problem)
    if not minimal_threshold(n) <= d.threshold <= n:
        problem = f"is {d.threshold}; with {n} members it must be from {minimal_threshold(n)} to {n}"
        raise _refusal(file, ("deployment", "threshold"), problem, str(minimal_threshold(n)))
    _check_attestors(file, s)
    for i, destination in enumerate(s.destinations):
        if destination.payer_key in s.service.attestor_keys:
            problem = f"{destination.payer_key!r} is also in service.attestor_keys; a payer needs a key of its own"
            raise _refusal(file, ("destinations", i, "payer_key"), problem)
    for place, listen in (
        (("service", "listen"), s.service.listen),
        (("service", "wire_listen"), s.service.wire_listen),
        (("attestor", "listen"), s.attestor.listen if s.attestor else None),
    ):
        if listen is not None and int(listen.rpartition(":")[2]) > 65535:
            raise _refusal(file, place, f"{listen!r} has a port above 65535")
    if s.policy.lifetime > s.service.max_lifetime:
        problem = "is above service.max_lifetime; the registries would refuse it"
        raise _refusal(file, ("policy", "lifetime"), problem, str(s.service.max_lifetime))
    lag = max(d.clock_bound for d in s.destinations)
    if s.service.link_cooldown < (least := s.service.max_lifetime + lag):
        problem = (
            f"is {s.service.link_cooldown}; it must be at least service.max_lifetime plus the largest clock_bound "
            f"({least}), or a statement that still counts an address could outlive its link"
        )
        raise _refusal(file, ("service", "link_cooldown"), problem, str(least))
    for i, c in enumerate(s.chains):
        if c.timeout >= s.policy.lifetime / 2:
            problem = (
                f"is {c.timeout:g} s; it must be below half of policy.lifetime ({s.policy.lifetime} s), "
                "or one slow node outlasts a statement"
            )
            raise _refusal(file, ("chains", i, "timeout"), problem, f"{min(5.0, s.policy.lifetime / 4):g}")


def _attestor_tables(s: Settings) -> list[tuple[str, tuple[AttestorRow, ...]]]:
    return [("attestors", s.attestors), ("attestor.peers", s.attestor.peers if s.attestor else ())]


def _check_attestors(file: str, s: Settings) -> None:
    """Check who attests, and that every key has one role."""
    service, own, members = s.service, s.attestor, s.deployment.members
    named = [k for k, given in (("attestor_keys", service.attestor_keys), ("attestors", s.attestors)) if given]
    if own is not None and (named or service.wire_key):
        raise _refusal(file, ("attestor",), "is an attestor's own table; a coordinator's keys are in another file")
    if own is None and len(named) != 1:
        problem = "are both given; attestors are in this process or in their own" if named else "is missing"
        key = ("attestors",) if s.deployment.network_class != DEVNET or named else ("service", "attestor_keys")
        raise _refusal(file, key, f"with service.attestor_keys {problem}" if named else problem)
    if service.attestor_keys and s.deployment.network_class != DEVNET:
        problem = "are for devnets (network_class 3); elsewhere attestors are processes of their own: see [[attestors]]"
        raise _refusal(file, ("service", "attestor_keys"), problem)
    if len(service.attestor_keys) > len(members):
        raise _refusal(file, ("service", "attestor_keys"), "names more keys than deployment.members has members")
    if (service.wire_key is None) == bool(s.attestors):
        problem = "is missing, and attestors are configured" if s.attestors else "is given, and there are no attestors"
        raise _refusal(file, ("service", "wire_key"), problem)
    if service.wire_listen is not None and service.wire_key is None:
        raise _refusal(file, ("service", "wire_listen"), "is given, and there are no attestors to listen to")
    if own is not None and own.index in {row.index for row in own.peers}:
        raise _refusal(file, ("attestor", "peers"), f"names index {own.index}, which is this attestor itself")
    signers = set(members) | {row.member for _, rows in _attestor_tables(s) for row in rows if row.member}
    for table, rows in _attestor_tables(s):
        for i, row in enumerate(rows):
            if s.member(row) is None:
                problem = f"is missing; {row.index} is no place in deployment.members, which has {len(members)}"
                raise _refusal(file, (*table.split("."), i, "member"), problem)
            if row.wire in signers:
                raise _refusal(
                    file, (*table.split("."), i, "wire"), "is an attestor's address; messages need a key of their own"
                )
    if own is not None and own.coordinator in signers:
        raise _refusal(file, ("attestor", "coordinator"), "is an attestor's address; messages need a key of their own")
    keys = [
        ("service.wire_key", service.wire_key),
        *((f"service.attestor_keys[{i}]", k) for i, k in enumerate(service.attestor_keys)),
    ]
    keys += [("attestor.key", own.key), ("attestor.wire_key", own.wire_key)] if own else []
    payers = [("destinations", d.payer_key) for d in s.destinations] + [
        ("publications", p.payer_key) for p in s.publications
    ]
    keys += [] if own else [(f"{table}[{i}].payer_key", key) for i, (table, key) in enumerate(payers)]
    roles: dict[str, str] = {}
    for at, name in keys:
        role = at.partition("[")[0].rpartition(".")[2]
        if name is not None and roles.setdefault(name, role) != role:
            parts = at.replace("[", ".").replace("]", "").split(".")
            problem = f"{name!r} is also the {roles[name]}; every role needs a key of its own"
            raise _refusal(file, tuple(int(p) if p.isdigit() else p for p in parts), problem)


R = TypeVar("R", bound=Row)


def _validated(model: type[R], document: Mapping[str, Any], file: str, table: str = "") -> R:
    """Return the document as a row; ``table`` is where the document stands in a configuration, "" for all of it."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        shown, example = _key((table, *first["loc"]) if table else first["loc"])
        problem = {"missing": "is missing", "extra_forbidden": "is not a known key"}.get(first["type"], first["msg"])
        problem = problem.removeprefix("Value error, ")
        shown = shown.removeprefix(table).removeprefix(".")
        raise ConfigError(file, shown or "document", problem, example) from None


def parse_settings(document: Mapping[str, Any], file: str = "configuration") -> Settings:
    """Check a parsed TOML document as a whole.

    Raises:
        ConfigError: names ``file``, the first key at fault and an example.
    """
    settings = _canonical(file, _validated(Settings, document, file))
    for check in (_check_duplicates, _check_references, _check_rules):
        check(file, settings)
    return settings


def parse_policy(document: Mapping[str, Any], file: str = "policy") -> PolicyRow:
    """Check a parsed policy document as a whole: what ``[policy]`` holds, or a file of its own.

    Raises:
        ConfigError: names ``file``, the first key at fault and an example.
    """
    return _validated(PolicyRow, document, file, "policy")


def load_policy(path: Path) -> PolicyRow:
    """Read and check the policy document at ``path``.

    Raises:
        ConfigError: the file is missing, not TOML, or wrong in a key.
    """
    return parse_policy(_read_toml(path, "does not exist; a policy document is expected there"), str(path))


def policy_path(path: Path) -> Path | None:
    """Return where the policy document of the configuration at ``path`` is; None if it is a table inside."""
    named = _read_toml(path, _NO_CONFIG).get("policy")
    return path.resolve().parent / named if isinstance(named, str) else None


_NO_CONFIG = "does not exist; name one with --config or CROSSMARGIN_CONFIG"


def _read_toml(path: Path, absent: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), "file", absent) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "file", f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), "file", f"is not TOML: {error}") from None
    except RecursionError:  # in Python code alone, which ends so before it could crash
        raise ConfigError(str(path), "file", "is nested too deeply") from None


def load_settings(path: Path) -> Settings:
    """Read and check the TOML file at ``path``, and the policy document that it may name.

    Raises:
        ConfigError: a file is missing, not TOML, or wrong in a key.
    """
    document = _read_toml(path, _NO_CONFIG)
    if isinstance(named := document.get("policy"), str):
        document["policy"] = load_policy(path.resolve().parent / named)
    settings = parse_settings(document, str(path))
    here = path.resolve().parent
    paths = {name: str(here / getattr(settings.service, name)) for name in ("data", "passphrase_file")}
    return settings.model_copy(update={"service": settings.service.model_copy(update=paths)})
