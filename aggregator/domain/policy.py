"""Risk parameters: everything a valuation depends on besides what was seen (risk.md).

One document, checked as a whole: parameters that depend on each other are never accepted one by one. Its canonical JSON
is committed by policyDigest. Units: USD, years of 365 days for rates, volatility per sqrt(year), seconds for times,
ratios in [0, 1] unless said.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from aggregator.domain.rows import Hex32, Name, Ratio, Row, Seconds
from proofs.hashing import keccak256

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6)]
MOST_JUMPS = 6
"""Of one class: the loss law enumerates all their counts together."""
ModelName = Literal["health", "isolated", "cross", "tiered", "scenario", "pmrm-2", "pmrm-1", "standard", "span", "var"]
"""Margin models: one file each in ``aggregator.core.margin``."""


class JumpRow(Row):
    """A Poisson jump of the loss law: ``rate`` per year, multiplying the value by ``recovery``."""

    rate: Annotated[float, Field(ge=0, le=10_000)]
    recovery: Ratio
    cause: Literal["market", "depeg", "wrapper", "bridge"] = "market"
    """``market`` jumps are those of the price itself, which a scenario grid covers; the others stay with a hedge."""


class LevelRow(Row):
    """What differs between initial and maintenance margin."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)]  # α of the expected shortfall
    haircut: Ratio  # h_pol
    liability_weight: Annotated[float, Field(ge=1)]


class AssetPolicyRow(Row):
    """Risk parameters of a class of assets."""

    volatility: Annotated[float, Field(ge=0, le=10)]  # per sqrt(year)
    jumps: Annotated[tuple[JumpRow, ...], Field(max_length=MOST_JUMPS)] = ()
    daily_volume: Annotated[float, Field(gt=0)]  # ADV, USD
    impact: Annotated[float, Field(ge=0)]  # Y of the liquidity haircut
    protocol_share: Annotated[float, Field(ge=0, le=1e15)] = 0.0  # USD that the protocol may have to sell at once
    liquidation_seconds: Seconds  # auction + bridge
    initial: LevelRow
    maintenance: LevelRow

    @model_validator(mode="after")
    def _initial_is_no_looser(self) -> AssetPolicyRow:
        i, m = self.initial, self.maintenance
        if i.confidence < m.confidence or i.haircut < m.haircut or i.liability_weight < m.liability_weight:
            raise ValueError("initial confidence, haircut and liability_weight must be at least maintenance's")
        return self


class SviRow(Row):
    """One slice of an implied-volatility surface: total variance ``w(k) = a + b(ρ(k−m) + √((k−m)² + σ²))`` of
    log-moneyness ``k = ln(K/F)`` at one tenor (Gatheral's raw parametrisation)."""

    tenor: Annotated[int, Field(gt=0)]  # seconds
    a: Finite
    b: NotNegative
    rho: Annotated[float, Field(gt=-1, lt=1)]
    m: Finite
    sigma: Positive

    @model_validator(mode="after")
    def _is_a_variance(self) -> SviRow:
        if self.a + self.b * self.sigma * math.sqrt(1 - self.rho**2) < 0:
            raise ValueError("a + b·sigma·√(1−rho²), the least total variance, must not be negative")
        if self.b * (1 + abs(self.rho)) > 2:
            raise ValueError("b·(1+|rho|), the slope of the wings, must be at most 2 (Lee's moment formula)")
        return self


class TierRow(Row):
    """One band of the tiered model: of the notional up to ``up_to`` USD, these parts are required."""

    up_to: Positive
    initial: Ratio
    maintenance: Ratio


class UnderlyingRow(Row):
    """What perps and options on one feed are charged. The feed is the row's key in the policy, e.g. ``ETH/USD``."""

    range: Annotated[float, Field(gt=0, lt=1)]  # R_u: the grid's largest move but for the tails
    group: str = ""  # offset group; "" = none
    rate: Annotated[float, Field(ge=-1, le=5)] = 0.0  # r, per year, continuously compounded
    carry: Annotated[float, Field(ge=-1, le=5)] = 0.0  # q: F = S·exp((r−q)T)
    surface: tuple[SviRow, ...] = ()  # ascending by tenor; none = no options are margined on this underlying
    daily_volume: Positive = 1e9  # ADV, USD
    perp_initial: Annotated[float, Field(gt=0, le=1)] = 0.10  # r of the cross model
    perp_maintenance: Annotated[float, Field(gt=0, le=1)] = 0.05
    size_factor: NotNegative = 0.0  # imf of risk.md §4, per sqrt(unit of the underlying)
    tiers: tuple[TierRow, ...] = ()  # ascending; beyond the last its rates go on

    @model_validator(mode="after")
    def _in_order(self) -> UnderlyingRow:
        if self.perp_initial < self.perp_maintenance:
            raise ValueError("perp_initial must be at least perp_maintenance")
        for lower, upper in pairwise(self.tiers):
            if not (lower.up_to < upper.up_to and lower.initial <= upper.initial):
                raise ValueError("tiers must ascend in up_to, and initial must not fall")
            if lower.maintenance > upper.maintenance:
                raise ValueError("tiers: maintenance must not fall")
        if any(tier.initial < tier.maintenance for tier in self.tiers):
            raise ValueError("tiers: initial must be at least maintenance")
        for near, far in pairwise(self.surface):
            if near.tenor >= far.tenor:
                raise ValueError("surface must ascend in tenor")
            if (k := calendar_arbitrage(near, far)) is not None:
                raise ValueError(f"surface: total variance falls from tenor {near.tenor} to {far.tenor} at k={k:.4g}")
        return self


SVI_WIDTH = 4.0
"""A slice of a surface is flat beyond this many √(a + bσ): nothing is quoted there."""
_STEP, _FEWEST, _MOST = 0.01, 100, 20_000  # of k, and the samples on either side of 0


def flat_beyond(slice: SviRow) -> float:
    """Return the |k| from which on a slice is flat."""
    return SVI_WIDTH * math.sqrt(max(0.0, slice.a + slice.b * slice.sigma))


def total_variance(slice: SviRow, k: float) -> float:
    """Return w(k) of one slice as options are priced by it: flat beyond :func:`flat_beyond`, never negative."""
    return float(_variances(slice, np.array(k)))


def _variances(slice: SviRow, k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    end = flat_beyond(slice)
    x = np.clip(k, -end, end) - slice.m
    return np.maximum(slice.a + slice.b * (slice.rho * x + np.hypot(x, slice.sigma)), 0.0)


def calendar_arbitrage(near: SviRow, far: SviRow) -> float | None:
    """Return a log-moneyness at which total variance falls from one tenor to the next; None if there is none.

    Between tenors total variance is linear in the tenor, so that it falls in between exactly where it falls from one
    slice to the other. Either slice is sampled over all of it that is not flat, every 0.01 or finer, and at its ends,
    its middle and its least: beyond the wider one both are flat, and nothing changes any more.
    """
    samples = [np.zeros(1)]
    for row in (near, far):
        end = flat_beyond(row)
        count = min(_MOST, max(_FEWEST, math.ceil(end / _STEP)))
        least = row.m - row.rho * row.sigma / math.sqrt(1 - row.rho**2)
        samples += [np.linspace(-end, end, 2 * count + 1), np.array([row.m, least])]
    k = np.concatenate(samples)
    fall = _variances(near, k) - _variances(far, k)
    at = int(fall.argmax())
    return float(k[at]) if fall[at] > 1e-12 else None


class VolatilityShockRow(Row):
    """By how much implied volatility is shocked: up σ(1 + up·m) floored at ``least``, down σ·max(0, 1 − down·m), with
    ``m = (30 d / max(t, floor_days))**p``, p = ``short_power`` up to 30 days and ``long_power`` beyond."""

    up: NotNegative = 0.5
    down: Ratio = 0.3
    least: NotNegative = 0.4
    short_power: NotNegative = 0.30
    long_power: NotNegative = 0.13
    floor_days: Positive = 1.0


class SkewRow(Row):
    """Two scenarios at fixed spot: σ·(1 + clip(k·cap/k*, ±cap)), ``cap = cap_static + cap_slope·√T`` (never negative),
    ``k* = max(least_width, width·√T)``, k = ln(K/F) or its absolute value."""

    cap_static: Ratio = 0.25
    cap_slope: Annotated[float, Field(ge=-1, le=1)] = -0.1
    least_width: Positive = 0.01
    width: Positive = 2.4


class DiscountRow(Row):
    """Static discount by the sign of an expiry's shocked value: ``D⁺ = base·exp(−(r⁺·(1+long_scale) + long_add)·T)``,
    ``D⁻ = min(1, base_negative·exp(−(r⁺·(1−short_scale) − short_add)·T))``."""

    base: Annotated[float, Field(gt=0, le=1)] = 0.95
    base_negative: Annotated[float, Field(ge=1, le=2)] = 1.04
    long_scale: NotNegative = 1.0
    long_add: NotNegative = 0.08
    short_scale: NotNegative = 0.5
    short_add: NotNegative = 0.08


class ScenarioRow(Row):
    """Parameters of the scenario model (risk.md §4)."""

    maintenance_factor: Annotated[float, Field(gt=0)] = 0.8  # f
    initial_factor: Annotated[float, Field(gt=0)] = 1.0
    tails: tuple[Annotated[float, Field(gt=-1, le=10)], ...] = (-0.66, -0.33, 0.5, 1.0, 2.0, 3.0)  # moves δ beyond R_u
    damping: Annotated[float, Field(gt=0, le=1)] = 0.2  # κ: a tail at δ weighs min(1, κ·R_u/|δ|)
    volatility: VolatilityShockRow = VolatilityShockRow()
    skew: SkewRow = SkewRow()
    discount: DiscountRow = DiscountRow()
    basis_up: Annotated[float, Field(gt=1, le=2)] = 1.045
    basis_down: Annotated[float, Field(gt=0, lt=1)] = 0.955
    basis_add: NotNegative = 0.5
    basis_slope: NotNegative = 2.0  # per year
    short_option_maintenance: Ratio = 0.003  # o, of spot, per naked short option
    short_option_initial: Ratio = 0.005
    perp_maintenance: Ratio = 0.03  # π, of spot, per unit of |perp|
    perp_initial: Ratio = 0.04
    gain_weight_initial: Ratio = 0.8  # of what contracts are worth to the account, for initial margin
    confidence_threshold: Ratio = 0.55  # below it, (1−score)·confidence_margin of the notional is required on top
    confidence_margin: NotNegative = 1.0
    concentration: NotNegative = 1.0  # Y of Y·σ_day·√(N/ADV)·N

    @model_validator(mode="after")
    def _initial_is_no_looser(self) -> ScenarioRow:
        pairs = ("factor", "{}_factor"), ("short_option", "short_option_{}"), ("perp", "perp_{}")
        for name, pattern in pairs:
            initial, maintenance = (getattr(self, pattern.format(level)) for level in ("initial", "maintenance"))
            if initial < maintenance:
                raise ValueError(f"{name}: initial must be at least maintenance")
        if any(tail == 0 for tail in self.tails):
            raise ValueError("tails must not hold 0")
        return self


class OffsetGroupRow(Row):
    """Underlyings whose losses may offset: ``R_g = (1−λ)ΣL_u + λ max_s ΣL_{u,s}``."""

    offset: Annotated[float, Field(ge=0, lt=1)]  # λ, e.g. at most the square of the stressed correlation


class HistoryRow(Row):
    """Joint relative moves of the underlyings that ES is taken over (risk.md §5), as ``recalibrate`` makes them."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.975
    underlyings: tuple[str, ...] = Field(min_length=1)
    moves: tuple[tuple[Annotated[float, Field(gt=-1, le=10)], ...], ...] = Field(min_length=20, max_length=5000)

    @model_validator(mode="after")
    def _one_move_each(self) -> HistoryRow:
        if any(len(row) != len(self.underlyings) for row in self.moves):
            raise ValueError("every row of moves must have one number per underlying")
        if len(set(self.underlyings)) < len(self.underlyings):
            raise ValueError("underlyings must not repeat")
        return self


PARAMETRIC_CONFIDENCE = 0.95
"""The least confidence of ``var.method = "parametric"``."""


class VarRow(Row):
    """How the margin model ``var`` computes (risk.md §5)."""

    method: Literal["historical", "parametric"] = "historical"
    """``historical``: ES of all moves of ``history``, priced in full. ``parametric``: the greater of the VaR of
    delta, gamma and vega by Cornish-Fisher, and ES over normal moves of which the worst 5% are priced in full."""
    draws: Annotated[int, Field(ge=256, le=65_536)] = 4_096  # normal moves; a power of two
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1  # of their scrambling

    @model_validator(mode="after")
    def _draws_balance(self) -> VarRow:
        if self.draws & (self.draws - 1):
            raise ValueError("draws must be a power of two")
        return self


class ProvenanceRow(Row):
    """Where a parameter set came from: one price history that ``recalibrate`` used."""

    series: Name
    target: Annotated[str, Field(max_length=64)]  # what it set, e.g. ``assets.major`` or ``underlyings.ETH/USD``
    sha256: Hex32  # of the file, as it was read
    first: Seconds  # Unix seconds of its first bar used
    last: Seconds
    bars: Annotated[int, Field(gt=0)]
    missing: Seconds = 0  # bars that are not there between first and last
    method: Literal["", "fhs", "copula"] = ""  # how joint moves were made of it, for ``history``
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None  # of the draws, if they are drawn


class ModelsRow(Row):
    """Which margin model contracts of which class of accounts are charged by."""

    risk_bearing: ModelName = "scenario"
    monitored: ModelName = "scenario"


class GrowthRow(Row):
    """How much budgets may grow within an hour; reductions apply at once, and recovery is no growth."""

    account_usd: NotNegative  # an account's budgets together, USD, and on top of that ...
    account_ratio: Annotated[float, Field(ge=0, le=100)] = 0.0  # ... this part of the most attested the hour before
    asset_usd: Annotated[float, Field(ge=0, le=1e9)]  # of all budgets together, by the feed of what stands behind

    @model_validator(mode="after")
    def _lets_somebody_grow(self) -> GrowthRow:
        if self.account_usd == 0 or self.asset_usd == 0:
            # A ratio of nothing is nothing: no account would ever get its first budget.
            raise ValueError("account_usd and asset_usd must be positive, or nobody ever gets a budget")
        return self


class PolicyRow(Row):
    """Everything a valuation depends on besides what was seen. Its canonical JSON is committed by policyDigest."""

    version: Name
    confidence_multiple: Annotated[float, Field(ge=0)] = 2.12  # m of risk.md §1
    staleness_multiple: Annotated[float, Field(ge=0)] = 1.0  # κ of risk.md §1
    min_sources: Annotated[int, Field(ge=1)] = 2
    max_spread: Annotated[float, Field(gt=0, le=1)] = 0.20  # above: no new risk
    exit_epsilon: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    lifetime: Annotated[int, Field(gt=0)]  # valid_until = cut_time + lifetime
    assets: dict[str, AssetPolicyRow]
    underlyings: dict[str, UnderlyingRow] = Field(default_factory=dict)  # by feed
    dollars: tuple[str, ...] = ()  # feeds of tokens that pay a dollar each, so that contracts may settle in them
    groups: dict[str, OffsetGroupRow] = Field(default_factory=dict)
    models: ModelsRow = ModelsRow()
    scenario: ScenarioRow = ScenarioRow()
    var: VarRow = VarRow()
    history: HistoryRow | None = None
    growth: GrowthRow | None = None  # None = budgets are not capped
    provenance: Annotated[tuple[ProvenanceRow, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _refers_to_itself(self) -> PolicyRow:
        for feed, row in self.underlyings.items():
            if row.group and row.group not in self.groups:
                raise ValueError(f"underlyings.{feed}.group: {row.group!r} is no row of groups")
            if any(abs(tail) <= row.range for tail in self.scenario.tails):
                raise ValueError(
                    f"scenario.tails must lie beyond the range of every underlying; {feed} has {row.range:g}"
                )
        for feed in self.dollars:
            if feed in self.underlyings:
                raise ValueError(f"dollars: {feed} is a row of underlyings; what pays its own worth is no dollar")
        if len(set(self.dollars)) < len(self.dollars):
            raise ValueError("dollars: a feed is given twice")
        members = Counter(row.group for row in self.underlyings.values())
        if idle := [name for name in self.groups if not members[name]]:
            raise ValueError(f"groups.{idle[0]}: no row of underlyings names it; remove it, or name it there")
        return self

    @model_validator(mode="after")
    def _serves_its_models(self) -> PolicyRow:
        used = {self.models.risk_bearing, self.models.monitored}
        covered = set(self.history.underlyings) if self.history else set()
        if unknown := sorted(covered - set(self.underlyings)):
            raise ValueError(f"history.underlyings: {unknown[0]!r} is no row of underlyings")
        if "var" in used:
            if self.history is None:
                raise ValueError("models: var needs history; `crossmargin recalibrate` makes one")
            if bare := sorted(set(self.underlyings) - covered):
                raise ValueError(f"history.underlyings: models has var, and {bare[0]!r} of underlyings is not here")
            if self.var.method == "parametric" and self.history.confidence < PARAMETRIC_CONFIDENCE:
                raise ValueError(
                    f"history.confidence: must be at least {PARAMETRIC_CONFIDENCE:g} where var.method is parametric, "
                    "which prices no more than the worst 5% of moves in full"
                )
        for feed, row in self.underlyings.items():
            if "tiered" in used and not row.tiers:
                raise ValueError(f"underlyings.{feed}.tiers: models has tiered, and there are no tiers")
        return self


def canonical_policy(policy: PolicyRow) -> str:
    """Return the canonical JSON of a policy, the part ``policy`` of what policyDigest commits to.

    Keys sorted, no spaces, UTF-8; numbers that are no integers as their shortest exact decimal text.
    """
    return json.dumps(_exact(policy.model_dump(mode="json")), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def policy_digest(policy: PolicyRow) -> str:
    """Return keccak256 of :func:`canonical_policy`: ``0x`` and 64 hex digits."""
    return "0x" + keccak256(canonical_policy(policy).encode()).hex()


def _exact(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return value
