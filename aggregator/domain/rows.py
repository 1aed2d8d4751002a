"""Rows of configuration: chains, assets, price sources, venues, destinations. Risk parameters: ``domain.policy``.

Parsed and checked by ``aggregator.config``; frozen afterwards. Times are seconds, ratios are in [0, 1] unless said.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator

Ratio = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/-]*$")]
Hex32 = Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]
Family = Literal["evm", "solana"]


class Row(BaseModel):
    """Frozen, and strict: a misspelt key is an error, not a default, and no number is nan or infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class LatencyLeg(Row):
    """One configured leg of the horizon: its typical length, and an outage of stated, finite length."""

    typical: Seconds
    outage: Seconds = 0
    outage_probability: Ratio = 0.0


class FinalityRow(Row):
    """By which rule a block counts: so many blocks deep, by a tag of the node, or by what its L1 has finalized.

    ``depth`` counts blocks on top. ``tag`` is what the node calls safe or finalized. ``l1`` names the parent chain of a
    rollup, and ``origin`` its contract that tells number() and hash() of the parent's block that a block was derived
    from (``L1Block`` of OP-stack chains). ``typical`` seconds behind the head are normal for the last two.
    """

    depth: Annotated[int, Field(ge=0)] | None = None
    tag: Literal["safe", "finalized"] | None = None
    l1: str | None = None  # CAIP-2
    origin: str | None = None
    typical: Seconds | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> FinalityRow:
        if sum(rule is not None for rule in (self.depth, self.tag, self.l1)) != 1:
            raise ValueError("must give one of depth, tag and l1")
        if (self.l1 is None) != (self.origin is None):
            raise ValueError("origin, the contract that names the L1 block, must be given with l1, and only with it")
        if (self.depth is None) != (self.typical is not None):
            raise ValueError("typical, in seconds, must be given with tag and l1, and only with them")
        return self

    @property
    def text(self) -> str:
        """The rule for people."""
        if self.depth == 0:
            return "the newest block"
        if self.depth is not None:
            return f"{self.depth} block{'s' if self.depth > 1 else ''} deep"
        return f"tag {self.tag}" if self.tag is not None else f"final on its L1 {self.l1}"

    def verify_no_shallower(self, other: FinalityRow) -> None:
        """Raise ValueError if this rule can be compared to ``other`` and holds sooner."""
        depths = self.depth is not None and other.depth is not None and self.depth < other.depth
        if depths or (self.tag, other.tag) == ("safe", "finalized"):
            raise ValueError(f"{self.text} is shallower than finality, {other.text}")


class SequencerRow(Row):
    """A rollup's uptime feed (Chainlink: answer 0 is up, 1 is down) and how long after an outage nothing is trusted."""

    feed: str
    grace: Seconds = 3600


SOLANA_FINALITY_SLOTS = 32
"""A slot is finalized once 31 confirmed ones are on top of it: about 32 slots behind the head."""


class ChainRow(Row):
    """One chain. What the Cut pins is final by ``finality``; on Solana the finalized commitment is the only rule."""

    id: str  # CAIP-2
    name: Name
    family: Family
    rpc: tuple[SecretStr, ...] = Field(min_length=1)
    ws: tuple[SecretStr, ...] = ()  # websockets that tell what changed, in no order: hints, never values
    genesis: str  # hash of block 0 (EVM), genesis hash (Solana)
    block_seconds: Annotated[float, Field(gt=0)]
    finality: FinalityRow = FinalityRow(depth=0)
    irreversible: FinalityRow = Field(default_factory=lambda data: data["finality"])  # below it nothing may change
    sequencer: SequencerRow | None = None
    multicall: str = "0xca11bde05977b3631167028862be2a173976ca11"
    max_age: Annotated[int, Field(gt=0)]  # older than this, a leg counts 0 in `low`
    hold: tuple[LatencyLeg, ...] = Field(min_length=1)  # legs until a Hold lands on this chain
    timeout: Annotated[float, Field(gt=0, le=120)] = 5.0
    requests_per_second: Annotated[int, Field(gt=0)] = 50
    quorum: Annotated[int, Field(ge=1, validate_default=True)] = 1  # providers in ``rpc`` that must agree
    prove: bool = False  # check what is read against state proofs too (EIP-1186), where nodes give them

    @property
    def finality_seconds(self) -> float:
        """How far the newest final block normally is behind the head."""
        if self.family == "solana":
            return SOLANA_FINALITY_SLOTS * self.block_seconds
        rule = self.finality
        return rule.depth * self.block_seconds if rule.depth is not None else float(rule.typical or 0)

    @property
    def finality_text(self) -> str:
        """By which rule a block counts, for people."""
        return "finalized by its validators" if self.family == "solana" else self.finality.text

    @field_validator("rpc", "ws")
    @classmethod
    def _each_provider_once(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if len(set(urls)) < len(urls):
            raise ValueError("names one provider twice; it would agree with itself")
        return urls

    @field_validator("ws")
    @classmethod
    def _websockets(cls, urls: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for i, url in enumerate(urls):
            if not url.get_secret_value().startswith(("ws://", "wss://")):
                raise ValueError(f"the URL at {i} must begin with wss:// or ws://")
        return urls

    @field_validator("irreversible")
    @classmethod
    def _no_shallower_than_finality(cls, rule: FinalityRow, info: ValidationInfo) -> FinalityRow:
        if (finality := info.data.get("finality")) is not None:
            rule.verify_no_shallower(finality)
        return rule

    @field_validator("quorum")
    @classmethod
    def _a_majority_of_the_configured(cls, quorum: int, info: ValidationInfo) -> int:
        count = len(info.data.get("rpc", ()))
        if count and not count // 2 + 1 <= quorum <= count:
            raise ValueError(f"with {count} in rpc it must be from {count // 2 + 1}, a majority, to {count}")
        return quorum


class AssetRow(Row):
    """One asset on one chain. ``policy`` names its row of risk parameters, ``feed`` its price."""

    id: str  # CAIP-19
    symbol: Name
    kind: Literal["native", "erc20", "erc4626", "atoken", "spl"]
    decimals: Annotated[int, Field(ge=0, le=36)]
    feed: str
    policy: str
    underlying: str | None = None  # CAIP-19; receipts are valued through it
    rate_cap: Annotated[float, Field(gt=0)] | None = None  # most underlying per share that is ever credited

    @model_validator(mode="after")
    def _receipts_name_their_underlying(self) -> AssetRow:
        if (self.kind in ("erc4626", "atoken")) != (self.underlying is not None):
            raise ValueError("underlying must be given for erc4626 and atoken assets, and only for them")
        if (self.kind == "erc4626") != (self.rate_cap is not None):
            raise ValueError("rate_cap must be given for erc4626 assets, and only for them")
        return self


class SourceRow(Row):
    """One price source of one feed. ``id`` is a Pyth feed id or ``<CAIP-2 chain>:<aggregator address>``."""

    name: Name
    feed: str
    kind: Literal["pyth", "chainlink"]
    id: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    max_age: Annotated[int, Field(gt=0)] = 60
    floor: float | None = None  # an answer at or below is absent (the feed's own minimum)
    cap: float | None = None
    relative_conf: Ratio = 0.0  # assumed confidence of a source that gives none


class RatioRow(Row):
    """A feed that is the product of two: ``stETH/ETH`` times ``ETH/USD`` is ``stETH/USD``. Units must cancel."""

    feed: str  # has no sources of its own
    ratio: str
    base: str
    volatility: Annotated[float, Field(ge=0, le=10)]  # of the ratio, per sqrt(year): widens its band by age

    @model_validator(mode="after")
    def _units_cancel(self) -> RatioRow:
        (top, between), (common, quote) = (_units(name) for name in (self.ratio, self.base))
        if between != common or (top, quote) != _units(self.feed):
            raise ValueError(f"{self.ratio} times {self.base} is no {self.feed}: the units do not cancel")
        return self


def _units(feed: str) -> tuple[str, str]:
    """Return what a feed prices and in what: BASE/QUOTE."""
    base, slash, quote = feed.partition("/")
    if not (base and slash and quote) or "/" in quote:
        raise ValueError(f"{feed!r} must be BASE/QUOTE, e.g. ETH/USD")
    return base, quote


class PythRow(Row):
    """Where Pyth updates come from and who signs them."""

    url: str
    api_key: SecretStr | None = None
    guardian_set_index: int
    guardians: tuple[str, ...] = Field(min_length=1)
    emitter_chain: int
    emitter_address: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class VenueRow(Row):
    """One venue on one chain that a protocol adapter reads. ``addresses`` are the adapter's own names."""

    chain: str
    kind: Name  # wallet, vault, aave-v3, lender, ...
    addresses: dict[str, str] = {}


class DestinationRow(Row):
    """One place certificates are posted to."""

    chain: str
    kind: Literal["evm-registry", "solana-registry"]
    address: str  # the registry: a contract, or an account of the registry program
    clock_bound: Seconds  # the most its clock may lag behind true time
    payer_key: str  # name of a key file; never shared with an attestor
    program: str | None = None  # on Solana, of the registry: changes of its accounts are listened to


Wire = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/\S*)?$", max_length=200)]  # no credentials: it is shown
KeyName = Annotated[str, Field(min_length=1, max_length=1000)]  # a file's name below <data>/keys, or pkcs11:… or kms:…
Listen = Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")]


class AttestorRow(Row):
    """An attestor in a process of its own, as the coordinator and the other attestors reach it.

    ``index`` is its place in the genesis set; one that joins by a rotation has any number above, and names its
    ``member``, the address that it signs with. ``wire`` is the address of the key that authenticates its messages.
    """

    index: Annotated[int, Field(ge=0, lt=32)]
    url: Url
    wire: Wire
    member: Wire | None = None

    @property
    def name(self) -> str:
        """Its name, for people."""
        return f"attestor-{self.index}"


class OwnAttestorRow(Row):
    """What one attestor process is. ``key`` signs statements, ``wire_key`` messages; they are never the same key."""

    index: Annotated[int, Field(ge=0, lt=32)]
    key: KeyName
    wire_key: KeyName
    listen: Listen
    coordinator: Wire  # the address of the coordinator's wire key
    coordinator_url: Url | None = None  # where it is told certificates that others proposed
    propose_after: Annotated[float, Field(gt=0, le=600)]  # seconds after the cut, and again per place in the order
    peers: tuple[AttestorRow, ...] = ()

    @property
    def name(self) -> str:
        """Its name, for people."""
        return f"attestor-{self.index}"


class PublicationRow(Row):
    """One place certificates are published at, beside the registries: nothing can be drawn on them there."""

    chain: str
    kind: Literal["eas"]
    address: str  # the attestation service
    resolver: str  # our schema's resolver, which takes only what a quorum signed
    payer_key: str  # name of a key file; never shared with an attestor

    @property
    def name(self) -> str:
        """Its name among destinations."""
        return f"{self.chain}/{self.kind}"


class DeploymentRow(Row):
    """The parts of the deployment id (protocol.md, "Statement")."""

    network_class: Literal[1, 2, 3]
    members: tuple[str, ...] = Field(min_length=1, max_length=32)
    threshold: Annotated[int, Field(ge=1)]
    not_after: int
    salt: Hex32
