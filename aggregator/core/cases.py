"""Published cases: inputs, numbers that somebody published for them, and what our code makes of them.

A case is ``{"family", "id", "inputs", "expected", "tol": {"abs", "rel"}, "source"}``. ``expected`` is one number, or
one per field; each passes iff ``|computed − expected| ≤ abs + rel·|expected|``. A family maps names and units of its
source to the functions that the service itself values and margins with; no margin or price is computed here.
Conventions: risk.md §11.

Times are years (``T``, ``tau``) or seconds (``T_sec``, ``sec``, over ``year_sec``, by default 365 days).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from aggregator.core import weights
from aggregator.core.contracts import short_option_charges
from aggregator.core.fusion import pyth_aggregate
from aggregator.core.holdings import Legs
from aggregator.core.instruments import option, perp, svi
from aggregator.core.liquidation import auction_discount, liquidation_size
from aggregator.core.margin import health, pmrm1, pmrm2, span, standard
from aggregator.core.risk import backtest, tails
from aggregator.core.risk.impact import almgren
from aggregator.domain.contracts import CALL, PUT, Instruments, Market
from aggregator.domain.policy import UnderlyingRow
from aggregator.domain.units import SECONDS_PER_YEAR, Floats

MOST_OBSERVATIONS = 1_000_000
"""A case that counts more would take all memory."""
MOST_ROWS = 2_000
"""Options and scenarios are multiplied with each other, and take memory likewise."""
ONE = ""
"""The field of cases that expect a single number."""
_PER_BP = 1e4
_CALL_FLAGS = ("isCall", "is_call", "call")
_MISSING: Any = object()

Value = float | None
Family = Callable[["Inputs", Sequence[str]], Mapping[str, Value]]


class Outcome(NamedTuple):
    """A case and what became of it."""

    family: str
    id: str
    source: str
    computed: Value | Mapping[str, Value]  # shaped as ``expected``; None where nothing could be computed
    expected: Any  # as the case gives it
    error: Value | Mapping[str, Value]  # |computed − expected|
    tolerance: Any  # as the case gives it
    passed: bool
    reason: str = ""  # why it failed, if not for the numbers


class Inputs:
    """A case's inputs by name; what is missing or no number is an error that names it."""

    def __init__(self, values: Mapping[str, Any], path: str = "inputs") -> None:
        self._values, self._path = values, path

    def has(self, *names: str) -> bool:
        """Tell whether all of these are given."""
        return all(self._values.get(name) is not None for name in names)

    def names(self) -> list[str]:
        """Return all names, in order."""
        return list(self._values)

    def value(self, *names: str, default: Any = _MISSING) -> Any:
        """Return the first of these that is given."""
        for name in names:
            if self._values.get(name) is not None:
                return self._values[name]
        if default is _MISSING:
            raise ValueError(f"{self._path}.{' or '.join(names)}: missing")
        return default

    def number(self, *names: str, default: Any = _MISSING) -> float:
        """Return the first of these that is given, a finite number."""
        return _number(f"{self._path}.{names[0]}", self.value(*names, default=default))

    def count(self, *names: str, default: Any = _MISSING) -> int:
        """Return the first of these that is given, a whole number that memory can hold as many observations."""
        value = self.number(*names, default=default)
        if value != int(value) or not 0 <= value <= MOST_OBSERVATIONS:
            raise ValueError(f"{self._path}.{names[0]}: must be a whole number from 0 to {MOST_OBSERVATIONS}")
        return int(value)

    def flag(self, *names: str, default: Any = _MISSING) -> bool:
        """Return the first of these that is given, true, false, 1 or 0."""
        return _flag(f"{self._path}.{names[0]}", self.value(*names, default=default))

    def row(self, *names: str, least: int = 0, default: Any = _MISSING) -> Floats:
        """Return the first of these that is given, a list of at least so many numbers."""
        value = _list(f"{self._path}.{names[0]}", self.value(*names, default=default))
        if len(value) < least:
            raise ValueError(f"{self._path}.{names[0]}: must have {least} entries")
        return np.array([_number(f"{self._path}.{names[0]}[{i}]", v) for i, v in enumerate(value)], dtype=np.float64)

    def table(self, name: str, width: int) -> list[list[Any]]:
        """Return a list of lists of at least ``width`` entries."""
        rows = _list(f"{self._path}.{name}", self.value(name, default=[]))
        if len(rows) > MOST_ROWS:
            raise ValueError(f"{self._path}.{name}: {len(rows)} rows; at most {MOST_ROWS} are taken")
        for i, row in enumerate(rows):
            if len(_list(f"{self._path}.{name}[{i}]", row)) < width:
                raise ValueError(f"{self._path}.{name}[{i}]: must have {width} entries")
        return rows

    def column(self, name: str, rows: Sequence[Sequence[Any]], place: int) -> Floats:
        """Return one column of :meth:`table`'s rows as numbers."""
        path = f"{self._path}.{name}"
        return np.array([_number(f"{path}[{i}][{place}]", row[place]) for i, row in enumerate(rows)], dtype=np.float64)

    def groups(self, name: str) -> list[Inputs]:
        """Return a list of objects."""
        items = _list(f"{self._path}.{name}", self.value(name, default=[]))
        paths = [f"{self._path}.{name}[{i}]" for i in range(len(items))]
        return [Inputs(_object(path, item), path) for path, item in zip(paths, items, strict=True)]

    def group(self, name: str) -> Inputs:
        """Return an object; empty where it is missing."""
        return Inputs(_object(f"{self._path}.{name}", self.value(name, default={})), f"{self._path}.{name}")

    def years(self) -> float:
        """Return the time to expiry in years."""
        if self.has("T") or self.has("tau"):
            return self.number("T", "tau")
        return self.number("T_sec", "sec") / self.number("year_sec", default=SECONDS_PER_YEAR)

    def typed(self) -> bool:
        """Tell whether it is given which of call and put is meant."""
        return any(self.has(name) for name in ("type", *_CALL_FLAGS))

    def is_call(self) -> bool:
        """Return whether ``type`` (or ``isCall``, ``call``) says a call."""
        if not self.has("type"):
            return self.flag(*_CALL_FLAGS)
        kind = str(self.value("type")).lower()
        if kind not in ("call", "put", "c", "p"):
            raise ValueError(f"{self._path}.type: {kind!r} is neither call nor put")
        return kind[0] == "c"


def _number(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: {value!r:.40} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{path}: must be finite")
    return float(value)


def _flag(path: str, value: Any) -> bool:
    if value not in (0, 1):  # True and False are 1 and 0
        raise ValueError(f"{path}: {value!r:.40} is not 1 or 0")
    return bool(value)


def _list(path: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{path}: must be a list")
    return value


def _object(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must be an object")
    return value


def evaluate(case: Any) -> Outcome:
    """Compute a case and judge it. Whatever is wrong with it is a failure with a reason, never an exception."""
    family, name, source = (
        str(case.get(key, "")) if isinstance(case, dict) else "" for key in ("family", "id", "source")
    )
    expected, tolerance = (case.get(key) if isinstance(case, dict) else None for key in ("expected", "tol"))
    try:
        _object("case", case)
        if family not in FAMILIES:
            raise ValueError(f"family: {family!r:.40} is not known; known are {', '.join(sorted(FAMILIES))}")
        wanted = _expected(expected)
        slack = Inputs(_object("tol", tolerance), "tol")
        least, share = slack.number("abs", default=0.0), slack.number("rel", default=0.0)
        if least < 0 or share < 0:
            raise ValueError("tol: must not be negative")
        with np.errstate(all="ignore"):  # limits are documented where they arise; what is no number is told below
            computed = FAMILIES[family](Inputs(_object("inputs", case.get("inputs"))), list(wanted))
        got = {field: _computed(field, computed) for field in wanted}
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        return Outcome(family or "?", name, source, None, expected, None, tolerance, False, reason)
    errors = {field: _error(got[field], value) for field, value in wanted.items()}
    passed = all(_within(errors[field], least, share, value) for field, value in wanted.items())
    strange = [field or "value" for field in wanted if errors[field] is None]
    reason = f"not a finite number: {', '.join(strange)}" if strange else ""
    if ONE in wanted:
        return Outcome(family, name, source, got[ONE], expected, errors[ONE], tolerance, passed, reason)
    return Outcome(family, name, source, got, expected, errors, tolerance, passed, reason)


def evaluate_all(cases: Iterable[Any]) -> list[Outcome]:
    """Evaluate every case, in order."""
    return [evaluate(case) for case in cases]


def summarise(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Count passed and failed cases by family, ascending by family."""
    counts: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        of = counts.setdefault(outcome.family, {"passed": 0, "failed": 0})
        of["passed" if outcome.passed else "failed"] += 1
    return dict(sorted(counts.items()))


def _expected(expected: Any) -> dict[str, float]:
    """Return the expected numbers by field."""
    if not isinstance(expected, dict):
        return {ONE: _wanted("expected", expected)}
    if not expected:
        raise ValueError("expected: must hold at least one number")
    return {str(field): _wanted(f"expected.{field}", value) for field, value in expected.items()}


def _wanted(path: str, value: Any) -> float:
    """Return an expected number; infinities may be expected."""
    return float(value) if isinstance(value, float) and math.isinf(value) else _number(path, value)


def _computed(field: str, values: Mapping[str, Value]) -> float:
    if field not in values:
        known = ", ".join(sorted(name for name in values if name))
        told = f"expected.{field}: not of this family" if field else "expected: must name its fields"
        raise ValueError(told + (f", which has {known}" if known else ""))
    value = values[field]
    return math.inf if value is None else float(value)


def _error(got: float, expected: float) -> float | None:
    if math.isinf(expected):
        return 0.0 if got == expected else None
    return abs(got - expected) if math.isfinite(got) else None


def _within(error: float | None, least: float, share: float, expected: float) -> bool:
    return error is not None and (math.isinf(expected) or error <= least + share * abs(expected))


# ---------------------------------------------------------------------------------------------------------- pricing


def _greeks(values: option.Greeks) -> dict[str, float]:
    named = {name: float(value) for name, value in values._asdict().items()}
    return named | {"theta_day": named["theta"] / 365}


def _sides(of: Callable[[bool], dict[str, float]]) -> dict[str, float]:
    """Return the numbers of call and put, each with its suffix; gamma and vega are the same for both."""
    call, put = of(True), of(False)
    shared = {name: call[name] for name in ("gamma", "vega", "d1", "d2") if name in call}
    suffixed = {f"{name}_c": value for name, value in call.items()} | {f"{name}_p": v for name, v in put.items()}
    return {"call": call["price"], "put": put["price"]} | shared | suffixed


def _bsm(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    spot, strike, t, vol = inputs.number("S"), inputs.number("K"), inputs.years(), inputs.number("vol", "sigma")
    rate, carry = inputs.number("r"), inputs.number("q", default=0.0)

    def of(is_call: bool) -> dict[str, float]:
        return _greeks(option.bsm_greeks(spot, strike, t, vol, rate, carry, is_call))

    values: dict[str, Value] = dict(_sides(of))
    if inputs.typed():
        own = of(inputs.is_call())
        values |= own
        values[ONE] = own["price"]
        if inputs.has("greek"):
            greek = str(inputs.value("greek"))
            if greek not in own:
                raise ValueError(f"inputs.greek: {greek!r} is not known; known are {', '.join(sorted(own))}")
            values[ONE] = own[greek]
    elif inputs.has("greek"):
        values[ONE] = values.get(str(inputs.value("greek")))
        if values[ONE] is None:
            raise ValueError("inputs.type: missing")
    return values


def _discount(inputs: Inputs, t: float) -> float:
    return inputs.number("df") if inputs.has("df") else math.exp(-inputs.number("r", default=0.0) * t)


def _black76(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    forward, strike, t, vol = inputs.number("F"), inputs.number("K"), inputs.years(), inputs.number("vol", "sigma")
    df = _discount(inputs, t)

    def price(is_call: bool) -> float:
        return float(option.black76(forward, strike, t, vol, is_call, df))

    values: dict[str, Value] = {"call": price(True), "put": price(False)}
    for name, is_call in (("call", True), ("put", False)):
        if f"undisc_{name}_delta" in fields:
            values[f"undisc_{name}_delta"] = float(option.black76_greeks(forward, strike, t, vol, is_call).delta)
    typed = inputs.typed()
    if typed:
        values["price"] = values[ONE] = price(inputs.is_call())
    if typed and (inputs.has("greek") or not set(fields) <= values.keys()):
        own = _greeks(option.black76_greeks(forward, strike, t, vol, inputs.is_call(), df))
        values = {**own, **values}
        if inputs.has("greek"):
            values[ONE] = own[str(inputs.value("greek"))]
    return values


def _implied_vol(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    price, strike, t, is_call = inputs.number("price"), inputs.number("K"), inputs.years(), inputs.is_call()
    if inputs.has("F"):
        forward, df = inputs.number("F"), _discount(inputs, t)
        vol = float(option.implied_vol(price, forward, strike, t, is_call, df))
    else:
        rate, carry = inputs.number("r"), inputs.number("q", default=0.0)
        vol = float(option.implied_vol_bsm(price, inputs.number("S"), strike, t, rate, carry, is_call))
    if math.isnan(vol):
        raise ValueError("inputs.price: tells no volatility; it is out of bounds, or has no time value")
    return {ONE: vol, "vol": vol, "implied_vol": vol}


def _svi_vol(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    if inputs.has("k"):
        k = inputs.number("k")
    else:
        strike, forward = inputs.number("K"), inputs.number("F")
        if strike <= 0 or forward <= 0:
            raise ValueError("inputs.K, inputs.F: must be positive")
        k = math.log(strike / forward)
    t = inputs.number("tau") if inputs.has("tau") else inputs.years()
    a, b, rho, m, sigma = (inputs.number(name) for name in ("a", "b", "rho", "m", "sigma"))
    clip = str(inputs.value("k_clip", default="")).lower() not in ("", "0", "false", "none", "no")
    vol = float(svi.slice_vol(k, t, a, b, rho, m, sigma, clip))
    return {ONE: vol, "vol": vol, "w": vol * vol * t, "total_variance": vol * vol * t}


def _price_fusion(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    rows = inputs.table("quotes", 2)
    columns = [inputs.column("quotes", rows, place) for place in (0, 1)]
    exact = [[Decimal(repr(float(value))) for value in column] for column in columns]
    # The rule divides whole numbers; one place more than the quotes have keeps the halves.
    broken = [value for column in exact for value in column if value != value.to_integral_value()]
    places = max((-int(value.as_tuple().exponent) for value in broken), default=-1)
    scale = 10 ** (places + 1)
    price, conf = pyth_aggregate([(int(p * scale), int(c * scale)) for p, c in zip(*exact, strict=True)])
    return {ONE: price / scale, "price": price / scale, "conf": conf / scale}


# ---------------------------------------------------------------------------------------------------------- weights


def _imf_weight(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    kind = str(inputs.value("kind"))
    rules = {"asset": weights.asset_weight, "liability": weights.liability_weight, "perp": weights.liability_weight}
    if kind not in rules:
        raise ValueError(f"inputs.kind: {kind!r:.40} is not known; known are {', '.join(rules)}")
    size = abs(inputs.number("size_tokens", "size"))
    return {ONE: float(rules[kind](inputs.number("weight"), size, inputs.number("imf_factor", "imf")))}


def _perp_margin(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    size, price = inputs.number("size"), inputs.number("price")
    imf = inputs.number("imf_factor", "imf", default=0.0)

    def of(*names: str) -> float:
        return float(weights.perp_margin(size, price, inputs.number(*names), imf))

    values: dict[str, Value] = {ONE: of("init_ratio", "ratio", "margin_ratio", "maint_ratio")}
    if inputs.has("init_ratio"):
        values["IM"] = of("init_ratio")
    if inputs.has("maint_ratio"):
        values["MM"] = of("maint_ratio")
    return values


def _tiered_weight(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    deposits = inputs.number("deposits_tokens") * inputs.number("price", default=1.0)
    start = inputs.number("scale_start_usd", "scale_start")
    return {ONE: float(weights.deposit_weight(inputs.number("initial_weight", "weight"), start, deposits))}


def _portfolio_margin(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    widths, rates = inputs.row("tiers_usd"), inputs.row("rates")
    if inputs.has("notional") or inputs.has("notional_usd"):
        ends = np.cumsum(widths).tolist()
        return {ONE: float(weights.banded(inputs.number("notional", "notional_usd"), ends, rates.tolist()))}
    return {ONE: weights.band_sum(widths.tolist(), rates.tolist())}


def _simm_curvature(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    return {ONE: float(weights.simm_curvature(inputs.number("days")))}


# ------------------------------------------------------------------------------------------- health and liquidation


def _health(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    """Tell the variants apart by what is given; risk.md §11."""
    for level in ("maint", "init"):
        if inputs.has(f"aw_{level}", f"lw_{level}"):
            sides = inputs.number("asset"), inputs.number("liab")
            return {ONE: health.weighted_excess(*sides, inputs.number(f"aw_{level}"), inputs.number(f"lw_{level}"))}
    if inputs.has("aw", "lw"):
        weight = inputs.number("aw"), inputs.number("lw")
        if inputs.has("asset", "liab"):
            return {ONE: health.weighted_usage(inputs.number("asset"), inputs.number("liab"), *weight)}
        return {ONE: health.greatest_loan_to_value(*weight)}
    collateral = _numbers(inputs, "collateral", "collateral_usd", "collateral_value", "total_collateral", "asset")
    thresholds = _numbers(
        inputs, "liquidation_threshold", "liq_threshold", "threshold", "lt", "liquidation_thresholds", "thresholds"
    )
    debt = _numbers(inputs, "debt", "debt_usd", "debt_value", "total_debt", "borrow", "liab")
    if np.all(thresholds > 1):
        thresholds = thresholds / 1e4  # the contract's own unit, basis points
    return {ONE: health.health_factor(collateral, thresholds, float(debt.sum()))}


def _numbers(inputs: Inputs, *names: str) -> Floats:
    """Return a number or a list of numbers as a row."""
    value = inputs.value(*names)
    return inputs.row(*names) if isinstance(value, list) else np.array([inputs.number(*names)])


def _liquidation_size(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    size = liquidation_size(
        inputs.number("shortage"),
        inputs.number("price"),
        inputs.number("margin_ratio"),
        inputs.number("liq_fee", default=0.0),
        inputs.number("insurance_fee", default=0.0),
        inputs.number("quote_price", default=1.0),
    )
    return {ONE: size}


def _auction_discount(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    return {ONE: auction_discount(*(inputs.number(name) for name in ("t", "start", "cutoff", "fast", "slow")))}


def _option_standard(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    side = str(inputs.value("side", default="short"))
    if side != "short":
        raise ValueError(f"inputs.side: {side!r:.40}; the rule is of short options")
    kind, spot, strike = CALL if inputs.is_call() else PUT, inputs.number("S"), inputs.number("K")
    if spot <= 0:
        raise ValueError("inputs.S: must be positive")
    one = Instruments(np.array([kind]), np.zeros(1, np.int64), np.array([strike]), np.ones(1, np.int64))
    market = Market(0, ("",), np.array([spot]), np.ones(1), np.ones(1), (UnderlyingRow(range=0.5),))
    initial, maintenance = short_option_charges(one, market)[:, 0] * abs(inputs.number("size", "qty", default=1.0))
    return {"IM": float(initial), "MM": float(maintenance), ONE: float(initial)}


# --------------------------------------------------------------------------------------------------- margin models

_PMRM2_NAMES = {
    "LINEAR_SCALE_CAP": "linear_cap",
    "LINEAR_CBASE": "linear_slope",
    "ABS_SCALE_CAP": "abs_cap",
    "ABS_CBASE": "abs_slope",
    "MIN_K_STAR": "least_k_star",
    "MIN_WIDTH_SCALE": "width",
    "VOL_PARAM_STATIC": "vol_static",
    "VOL_PARAM_SCALE": "vol_scale",
    "VOLRANGEUP": "vol_up",
    "MIN_VOL_EVAL_SHOCKED": "least_vol",
    "VOLRANGEDOWN": "vol_down",
    "SHORTTERMPOWER": "short_power",
    "LONGTERMPOWER": "long_power",
    "DTE_FLOOR": "floor_days",
    "MM_LOSS_FACTOR": "maintenance_factor",
    "IM_LOSS_FACTOR": "initial_factor",
    "SHORT_RATE_MULTSCALE": "short_scale",
    "LONG_RATE_MULTSCALE": "long_scale",
    "SHORT_RATE_ADDSCALE": "short_add",
    "LONG_RATE_ADDSCALE": "long_add",
    "BASE_STATIC_DISCOUNT": "base",
    "BASE_STATIC_DISCOUNT_NEG": "base_negative",
    "SCENARIO_SPOT_UP": "basis_up",
    "SCENARIO_SPOT_DOWN": "basis_down",
    "BASIS_CONT_ADD_FACTOR": "basis_add",
    "BASIS_CONT_MULT_FACTOR": "basis_slope",
    "PEG_LOSS_THRESHOLD": "peg_threshold",
    "PEG_LOSS_FACTOR": "peg_factor",
    "CONF_THRESHOLD": "confidence_threshold",
    "CONF_MARGIN": "confidence_margin",
    "MM_PERP_PERCENT": "perp_maintenance",
    "IM_PERP_PERCENT": "perp_initial",
    "MM_OPTION_PERCENT": "option_maintenance",
    "IM_OPTION_PERCENT": "option_initial",
}
_VOLATILITIES: dict[str, pmrm2.Volatility] = {
    "up": "up",
    "none": "none",
    "down": "down",
    "linear": "linear",
    "abs": "abs",
}


def _pmrm2_margin(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    constants: dict[str, float] = {}
    groups = inputs.group("par")
    for group in groups.names():
        own = groups.group(group)
        for name in own.names():
            if name not in _PMRM2_NAMES:
                raise ValueError(f"inputs.par.{group}.{name}: not a constant of the model")
            constants[_PMRM2_NAMES[name]] = own.number(name)
    scenarios = []
    for i, row in enumerate(inputs.table("scen", 3)):
        shock = _VOLATILITIES.get(str(row[1]).lower())
        if shock is None:
            raise ValueError(f"inputs.scen[{i}][1]: {row[1]!r:.40} is not known; known are {', '.join(_VOLATILITIES)}")
        move, weight = (_number(f"inputs.scen[{i}][{place}]", row[place]) for place in (0, 2))
        scenarios.append(pmrm2.Scenario(move, shock, weight))
    feeds = {feed.number("sec"): feed for feed in inputs.groups("feeds")}
    rows = inputs.table("opts", 5)
    seconds, strike, is_call, quantity, vol = (inputs.column("opts", rows, place) for place in range(5))
    expiries, place = np.unique(seconds, return_inverse=True)
    if missing := [sec for sec in expiries.tolist() if sec not in feeds]:
        raise ValueError(f"inputs.feeds: none for the options that expire in {missing[0]:g} s")

    def column(*names: str, default: Any = _MISSING) -> Floats:
        return np.array([feeds[sec].number(*names, default=default) for sec in expiries.tolist()], dtype=np.float64)

    spot = inputs.row("spot", least=2)
    perp_ = inputs.group("perp")
    book = pmrm2.Portfolio(
        spot=float(spot[0]),
        confidence=float(spot[1]),
        expiries=pmrm2.Expiries(
            expiries,
            column("fwd", "fwd_var"),
            column("rate", default=0.0),
            column("conf", default=1.0),
            column("fwd_fixed", "fixed", default=0.0),
        ),
        options=Legs(np.ravel(place).astype(np.int64), strike, is_call != 0, quantity, vol),
        perps=(pmrm2.Perp(*(perp_.number(name, default=0.0) for name in ("n", "px", "conf", "upnl", "funding"))),),
        collateral=tuple(
            pmrm2.Collateral(
                own.number("qty"),
                own.number("px"),
                own.number("conf", default=1.0),
                own.flag("risk_cancel", default=False),
                own.number("im_hc"),
                own.number("mm_hc"),
            )
            for own in inputs.groups("coll")
        ),
        cash=inputs.number("cash", default=0.0),
        stable=inputs.number("stable", default=1.0),
    )
    answer = pmrm2.margin(book, scenarios, pmrm2.Parameters(**constants))
    return {
        "IM": answer.initial,
        "MM": answer.maintenance,
        "mtm_plus_cash": answer.value,
        "basis_cont": answer.basis,
        "worst_scenario_pnl": answer.worst,
    }


def _pmrm1_margin(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    rows, feeds = inputs.table("opts", 5), inputs.table("feeds", 4)
    if len(rows) != len(feeds):
        raise ValueError("inputs.feeds: must be parallel to inputs.opts")
    seconds, strike, is_call, quantity, vol = (inputs.column("opts", rows, place) for place in range(5))
    _, fixed, variable, rate = (inputs.column("feeds", feeds, place) for place in range(4))
    own = _confidences("inputs.opts", rows, 5)
    expiries, first, place = np.unique(seconds, return_index=True, return_inverse=True)
    place = np.ravel(place).astype(np.int64)
    least = np.ones(len(expiries))
    np.minimum.at(least, place, np.minimum(own, _confidences("inputs.feeds", feeds, 4)))
    size = inputs.number("perps", default=0.0)
    answer = pmrm1.margin(
        pmrm1.Portfolio(
            spot=inputs.number("spot"),
            confidence=inputs.number("spot_conf", default=1.0),
            expiries=pmrm1.Expiries(expiries, fixed[first], variable[first], rate[first], least),
            options=Legs(place, strike, is_call != 0, quantity, vol),
            perps=np.array([size]),
            perp_price=inputs.number("perp_px", default=inputs.number("spot")),
            perp_confidence=inputs.number("perp_conf", default=1.0),
            base=inputs.number("base", default=0.0),
            cash=inputs.number("cash", default=0.0),
            pnl=inputs.number("upnl", default=0.0) + inputs.number("funding", default=0.0),
            stable=inputs.number("stable", default=1.0),
        )
    )
    return {"IM": answer.initial, "MM": answer.maintenance, "MTM": answer.value, "mtm_plus_cash": answer.value}


def _confidences(path: str, rows: Sequence[Sequence[Any]], place: int) -> Floats:
    """Return a column that may be left out: certain where it is."""
    return np.array(
        [_number(f"{path}[{i}][{place}]", row[place]) if len(row) > place else 1.0 for i, row in enumerate(rows)]
    )


def _srm_margin(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    rows = inputs.table("opts", 9)
    columns = [inputs.column("opts", rows, place) for place in range(1, 9)]
    names = ("ETH", "BTC")
    if unknown := [str(row[0]) for row in rows if row[0] not in names]:
        raise ValueError(f"inputs.opts: {unknown[0]!r:.40} is no market; known are {', '.join(names)}")
    market_of = np.array([names.index(row[0]) for row in rows], dtype=np.int64)
    spot, perp_price = inputs.row("spot", least=2), inputs.row("perp_px", least=2, default=[0.0, 0.0])
    entry = inputs.row("entry", least=2, default=[0.0, 0.0])
    confidence = [*inputs.table("conf", 2), [1.0, 1.0], [1.0, 1.0]]
    indices = [*inputs.table("funding_idx", 2), [0.0, 0.0], [0.0, 0.0]]
    markets = []
    for i, name in enumerate(names):
        size = inputs.number(f"perp_{name.lower()}", default=0.0)
        # By market, as the source orders them: the market's index, then the one at which the account last settled.
        now, then = (_number(f"inputs.funding_idx[{i}]", v) for v in (indices[i][0], indices[i][1]))
        sure = [_number(f"inputs.conf[{i}]", v) for v in confidence[i]]
        pnl = perp.linear_pnl(size, perp_price[i], entry[i]) + perp.funding_accrued(size, now, then)
        markets.append(
            standard.Holdings(
                spot=float(spot[i]),
                confidence=sure[0],
                expiries=_srm_expiries([column[market_of == i] for column in columns]),
                base=inputs.number(f"w{name.lower()}", default=0.0),
                perps=(size,),
                perp_price=float(perp_price[i]),
                perp_confidence=sure[1],
                pnl=float(pnl),
            )
        )
    answer = standard.margin(markets, inputs.number("cash", default=0.0), inputs.number("usdc", default=1.0))
    return {"IM": answer.initial, "MM": answer.maintenance, "MTM": answer.value}


def _srm_expiries(columns: Sequence[Floats]) -> tuple[standard.Expiry, ...]:
    seconds = columns[0]
    made = []
    for sec in np.unique(seconds).tolist():
        _, strike, is_call, quantity, vol, vol_conf, forward, forward_conf = (c[seconds == sec] for c in columns)
        sure = float(min(vol_conf.min(), forward_conf.min()))
        made.append(standard.Expiry(sec, float(forward[0]), strike, is_call != 0, quantity, vol, sure))
    return tuple(made)


def _span_array(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    """Sum the risk arrays of a portfolio: every ``array…`` is the PnL of what its name says, times a quantity."""
    names = [name for name in inputs.names() if name.startswith("array") and not name.endswith("_qty")]
    if not names:
        raise ValueError("inputs.array_…: missing")
    rows = [inputs.row(name) for name in names]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("inputs.array_…: must be of one length")
    given = _numbers(inputs, "qty", "quantities") if inputs.has("qty") or inputs.has("quantities") else np.ones(1)
    quantities = np.broadcast_to(given, (len(rows),)) if len(given) == 1 else given
    if len(quantities) != len(rows):
        raise ValueError(f"inputs.quantities: {len(quantities)} for {len(rows)} arrays")
    array = np.sum([q * row for q, row in zip(quantities, rows, strict=True)], axis=0)
    long, short = span.scan_risk(array), span.scan_risk(-array)
    sold = str(inputs.value("side", "position", default="long")).lower() == "short"
    scan = short if sold else long
    charged = [inputs.number(name, default=0.0) for name in ("intra", "spot", "inter_credit", "som", "nov")]
    total = span.total_margin(scan, *charged)
    return {
        ONE: total,
        "requirement": total,
        "total": total,
        "scan": scan,
        "long": long,
        "short": short,
        "long_requirement": long,
        "short_requirement": short,
        "requirement_long": long,
        "requirement_short": short,
    }


# -------------------------------------------------------------------------------------------------- backtests, tails


def _kupiec(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    test = backtest.kupiec(inputs.count("n", "T"), inputs.count("x"), inputs.number("p"))
    return {ONE: test.statistic, "LR": test.statistic, "LR_uc": test.statistic, "pvalue": test.pvalue}


def _kupiec_region(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    confidence = inputs.number("test_conf", default=0.95)
    low, high = backtest.kupiec_region(inputs.count("T", "n"), inputs.number("p"), confidence)
    return {"lo_exclusive": low, "hi_exclusive": high}


def _christoffersen(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    n00, n01, n10, n11 = (inputs.count(name) for name in ("n00", "n01", "n10", "n11"))
    n = inputs.count("n", default=n00 + n01 + n10 + n11 + 1)
    x = inputs.count("x", default=n01 + n11)
    both = {"LR_cc", "LR_uc"} & set(fields)
    p = inputs.number("p") if both or inputs.has("p") else 0.5  # independence does not depend on it
    test, coverage = backtest.christoffersen(n, x, p, n00, n01, n10, n11), backtest.kupiec(n, x, p)
    main = test.independence if "LR_ind" in fields and "LR_cc" not in fields else test.conditional
    return {
        ONE: main.statistic,
        "pvalue": main.pvalue,
        "LR_cc": test.conditional.statistic,
        "pvalue_cc": test.conditional.pvalue,
        "LR_ind": test.independence.statistic,
        "pvalue_ind": test.independence.pvalue,
        "LR_uc": coverage.statistic,
        "pvalue_uc": coverage.pvalue,
    }


def _traffic_light(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    n, p = inputs.count("n", "T", default=250), inputs.number("p", default=0.01)
    yellow, red = backtest.zone_bounds(n, p)
    values: dict[str, Value] = {"yellow_from": yellow, "red_from": red}
    if inputs.has("x"):
        light = backtest.traffic_light(n, inputs.count("x"), p)
        values |= {
            "cum_prob_pct": 100 * light.cumulative,
            "plus_factor": light.plus_factor,
            "zone": light.zone,
            "frtb_multiplier": light.multiplier,
        }
    return values


def _var_es(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    if inputs.has("V", "daily_vol"):
        sd = inputs.number("V") * inputs.number("daily_vol") * math.sqrt(inputs.number("days", default=1.0))
    else:
        sd = inputs.number("sd") * math.sqrt(inputs.number("days", default=1.0))
    if inputs.has("z"):
        var = tails.normal_var(sd, float(ndtr(inputs.number("z"))))
        return {ONE: var, "VaR": var, "VaR_normal": var}
    alpha = inputs.number("alpha")
    values: dict[str, Value] = {
        "VaR_normal": tails.normal_var(sd, alpha),
        "ES_normal": tails.normal_es(sd, alpha),
        ONE: tails.normal_var(sd, alpha),
    }
    if inputs.has("nu"):
        nu = inputs.number("nu")
        own = sd
        if not inputs.flag("t_scaled_to_sd", default=True):
            own = sd * math.sqrt(nu / (nu - 2))  # sd is the scale itself
        for name in (f"t{nu:g}", "t"):
            values[f"VaR_{name}"] = tails.student_var(own, nu, alpha)
            values[f"ES_{name}"] = tails.student_es(own, nu, alpha)
    return values


def _market_impact(inputs: Inputs, fields: Sequence[str]) -> dict[str, Value]:
    sigma = inputs.number("daily_vol_pct") / 100
    constants = [inputs.number(name) for name in ("gamma", "eta", "delta", "beta") if inputs.has(name)]
    if len(constants) not in (0, 4):
        raise ValueError("inputs.gamma, eta, delta, beta: give all of them or none")
    permanent, temporary, cost = almgren(
        sigma,
        inputs.number("X_over_V"),
        inputs.number("T_days", default=1.0),
        inputs.number("shares_out_m") / inputs.number("ADV_m"),
        *constants,
    )
    values: dict[str, Value] = {}
    for name, value in (("I", permanent), ("K", temporary), ("J", cost)):
        values[f"{name}_bp"] = _PER_BP * float(value)
        values[f"{name}_over_sigma"] = float(value) / sigma
    if not inputs.has("T_days"):
        values = {name: value for name, value in values.items() if name.startswith("I")}
    return values


FAMILIES: Mapping[str, Family] = {
    "bsm_price": _bsm,
    "bsm_greek": _bsm,
    "bsm_full": _bsm,
    "black76_price": _black76,
    "implied_vol": _implied_vol,
    "svi_vol": _svi_vol,
    "price_fusion": _price_fusion,
    "imf_weight": _imf_weight,
    "perp_margin": _perp_margin,
    "tiered_weight": _tiered_weight,
    "portfolio_margin": _portfolio_margin,
    "simm_curvature_sf": _simm_curvature,
    "health": _health,
    "liquidation_size": _liquidation_size,
    "auction_discount": _auction_discount,
    "option_standard_margin": _option_standard,
    "pmrm2_margin": _pmrm2_margin,
    "pmrm1_margin": _pmrm1_margin,
    "srm_margin": _srm_margin,
    "span_array": _span_array,
    "kupiec_pof": _kupiec,
    "kupiec_region": _kupiec_region,
    "christoffersen": _christoffersen,
    "basel_traffic_light": _traffic_light,
    "var_es_closed": _var_es,
    "market_impact": _market_impact,
}
"""Every family, and what it is computed by."""
