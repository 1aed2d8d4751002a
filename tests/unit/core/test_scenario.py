"""The scenario model against a second, plain implementation of risk.md §4, and at its boundaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from aggregator.core.contracts import contract_values, implied_vols
from aggregator.core.instruments.option import black76
from aggregator.core.margin import scenario
from aggregator.domain.contracts import CALL, INVERSE, LAYERS, PERP, PUT, Market, Portfolios
from aggregator.domain.policy import PolicyRow
from aggregator.domain.report import INITIAL, MAINTENANCE
from tests.risk_world import FEEDS, LISTED, ROWS, history, hold, listing, market, risk_policy, underlying
from tests.strategies import CUT_TIME, DAY

YEAR = 365 * DAY


def crowd(accounts: int = 12, seed: int = 1) -> Portfolios:
    """Return accounts with 0 to 8 contracts each, every other one with spot; the last is long a near synthetic forward
    and short a far one, so that only the basis between them moves it."""
    rng = np.random.default_rng(seed)
    rows = [
        (account, int(rng.integers(len(LISTED.kind))), float(rng.normal(0, 3e4)))
        for account in range(accounts)
        for _ in range(rng.integers(0, 9))
    ]
    near, far = (find(kind, 3 * DAY) for kind in (CALL, PUT)), (find(kind, 60 * DAY) for kind in (PUT, CALL))
    rows = [row for row in rows if row[0] < accounts - 1]
    rows += [(accounts - 1, i, sign * 1e5) for pair in (near, far) for i, sign in zip(pair, (1, -1), strict=True)]
    spot = rng.exponential(5, (accounts, 3)) * (np.arange(accounts) % 2)[:, None]
    spot[-1] = 0
    return hold(rows, accounts=accounts, spot=spot)


def find(kind: int, left: int) -> int:
    """Return the option on ETH at the money with so many seconds left."""
    of = (LISTED.kind == kind) & (LISTED.strike == 2_000.0) & (LISTED.expiry == CUT_TIME + left)
    return int(np.flatnonzero(of)[0])


class Plain:
    """Risk.md §4 for one account, one scenario and one contract at a time."""

    def __init__(
        self, given: Portfolios, of: Market, policy: PolicyRow, account: int, loose: Sequence[int] = ()
    ) -> None:
        self.market, self.policy, self.row = of, policy, policy.scenario
        self.listed, self.vols = given.instruments, implied_vols(given.instruments, of)
        self.held = [i for i in range(len(given.account)) if given.account[i] == account]
        self.given, self.spot = given, given.spot[account]
        shorts = [n for n in self.held if self.kind(n) in (CALL, PUT) and given.size[n] < 0]
        self.loose = [n for n in self.held if n in loose and n not in shorts]
        self.held = [n for n in self.held if n not in self.loose]

    def kind(self, n: int) -> int:
        return int(self.listed.kind[self.given.instrument[n]])

    def years(self, i: int) -> float:
        return max(0, int(self.listed.expiry[i]) - self.market.now) / YEAR

    def price(self, i: int, move: float, shock: str = "") -> float:
        """Return the undiscounted price of option i."""
        u, t = int(self.listed.underlying[i]), self.years(i)
        terms = self.market.rows[u]
        forward = self.market.spot[u] * math.exp((terms.rate - terms.carry) * t)
        k = math.log(self.listed.strike[i] / forward)
        sigma, days, change, skew = self.vols[i], t * 365, self.row.volatility, self.row.skew
        m = (30 / max(days, change.floor_days)) ** (change.short_power if days <= 30 else change.long_power)
        cap = max(0.0, skew.cap_static + skew.cap_slope * math.sqrt(t))
        tilt = max(-cap, min(cap, k * cap / max(skew.least_width, skew.width * math.sqrt(t))))
        sigma = {
            "": sigma,
            "up": max(sigma * (1 + change.up * m), change.least),
            "down": sigma * max(0.0, 1 - change.down * m),
            "skew+": sigma * (1 + tilt),
            "skew-": sigma * (1 - tilt),
            "smile+": sigma * (1 + abs(tilt)),
            "smile-": sigma * (1 - abs(tilt)),
        }[shock]
        forward *= 1 + move
        return float(black76(forward, self.listed.strike[i], t, sigma, self.listed.kind[i] == CALL))

    def scenarios(self, u: int) -> Iterator[tuple[float, str, float]]:
        """Yield (move, shock, weight)."""
        reach = float(self.market.range[u])
        for step in (0, 0.25, -0.25, 0.5, -0.5, 0.75, -0.75):
            for shock in ("", "up", "down"):
                yield step * reach, shock, 1.0
        yield reach, "up", 1.0
        yield -reach, "up", 1.0
        for tail in self.row.tails:
            yield tail, "up", min(1.0, self.row.damping * reach / abs(tail))
        for shock in ("skew+", "skew-", "smile+", "smile-"):
            yield 0.0, shock, 1.0

    def units(self, n: int) -> float:
        kind, size = self.kind(n), float(self.given.size[n])
        return size if kind == PERP else size / float(self.given.entry[n]) if kind == INVERSE else 0.0

    def options(self, u: int) -> list[int]:
        return [n for n in self.held if self.of(n) == u and self.kind(n) in (CALL, PUT)]

    def of(self, n: int) -> int:
        return int(self.listed.underlying[self.given.instrument[n]])

    def losses(self, u: int) -> list[float]:
        """Return L_{u,s}."""
        rate, discount, lost = self.market.rows[u].rate, self.row.discount, []
        linear = sum(self.units(n) for n in self.held if self.of(n) == u) + self.spot[u]
        for move, shock, weight in self.scenarios(u):
            gain, worth, now = linear * self.market.spot[u] * move, {}, 0.0
            for n in self.options(u):
                i, size = int(self.given.instrument[n]), float(self.given.size[n])
                expiry = int(self.listed.expiry[i])
                worth[expiry] = worth.get(expiry, 0.0) + size * self.price(i, move, shock)
                now += size * self.price(i, 0.0) * math.exp(-rate * self.years(i))
            for expiry, value in worth.items():
                t = max(0, expiry - self.market.now) / YEAR
                plain, r = math.exp(-rate * t), max(rate, 0.0)
                low = discount.base * math.exp(-(r * (1 + discount.long_scale) + discount.long_add) * t)
                high = discount.base_negative * math.exp(-(r * (1 - discount.short_scale) - discount.short_add) * t)
                gain += value * (min(low, plain) if value > 0 else max(min(1.0, high), plain))
            own = sum(max(0.0, self.alone(n, move, shock)) for n in self.loose if self.of(n) == u)
            lost.append(weight * (now - gain + own))
        return lost

    def alone(self, n: int, move: float, shock: str) -> float:
        """Return what a perp or long option loses by itself."""
        u, i, size = self.of(n), int(self.given.instrument[n]), float(self.given.size[n])
        if self.kind(n) not in (CALL, PUT):
            return -self.units(n) * self.market.spot[u] * move
        rate, discount, t = self.market.rows[u].rate, self.row.discount, self.years(i)
        low = discount.base * math.exp(-(max(rate, 0.0) * (1 + discount.long_scale) + discount.long_add) * t)
        plain = math.exp(-rate * t)
        return size * (self.price(i, 0.0) * plain - self.price(i, move, shock) * min(low, plain))

    def change(self, n: int, move: float) -> float:
        """Return by how much a row's value changes at unchanged volatility."""
        i = int(self.given.instrument[n])
        if self.kind(n) not in (CALL, PUT):
            return self.units(n) * float(self.market.spot[self.of(n)]) * move
        plain = math.exp(-self.market.rows[self.of(n)].rate * self.years(i))
        return float(self.given.size[n]) * (self.price(i, move) - self.price(i, 0.0)) * plain

    def basis(self) -> float:
        total = 0.0
        for u in range(len(self.market.feeds)):
            for expiry in {int(self.listed.expiry[self.given.instrument[n]]) for n in self.options(u)}:
                changes = [0.0, 0.0]
                t = max(0, expiry - self.market.now) / YEAR
                for n in self.options(u):
                    i = int(self.given.instrument[n])
                    if self.listed.expiry[i] == expiry:
                        for side, ratio in enumerate((self.row.basis_up, self.row.basis_down)):
                            change = self.price(i, ratio - 1) - self.price(i, 0.0)
                            changes[side] += self.given.size[n] * change * math.exp(-self.market.rows[u].rate * t)
                total += max(0.0, -min(changes)) * (self.row.basis_add + self.row.basis_slope * t)
        for n in self.loose:
            if self.kind(n) in (CALL, PUT):
                falls = [-self.change(n, ratio - 1) for ratio in (self.row.basis_up, self.row.basis_down)]
                rate = self.row.basis_add + self.row.basis_slope * self.years(int(self.given.instrument[n]))
                total += max(0.0, *falls) * rate
        return total

    def shortfall(self) -> float:
        past = self.policy.history
        if past is None:
            return 0.0
        lost = []
        for moves in past.moves:
            gain = 0.0
            for name, move in zip(past.underlyings, moves, strict=True):
                u = self.market.feeds.index(name)
                gain += (sum(self.units(n) for n in self.held if self.of(n) == u) + self.spot[u]) * (
                    self.market.spot[u] * move
                )
                gain += sum(self.change(n, move) for n in self.options(u))
                gain += sum(min(0.0, self.change(n, move)) for n in self.loose if self.of(n) == u)
            lost.append(-gain)
        lost.sort(reverse=True)
        mass = len(lost) * (1 - past.confidence)
        whole = math.floor(mass + 1e-9)
        part = (mass - whole) * lost[whole] if whole < len(lost) else 0.0
        return max(0.0, (sum(lost[:whole]) + part) / mass)

    def scenario(self) -> float:
        """Return Σ R_g."""
        lost = [self.losses(u) for u in range(len(self.market.feeds))]
        total = 0.0
        for group in {(row.group or feed) for feed, row in zip(self.market.feeds, self.market.rows, strict=True)}:
            mine = [u for u, feed in enumerate(self.market.feeds) if (self.market.rows[u].group or feed) == group]
            offset = self.policy.groups[group].offset if group in self.policy.groups else 0.0
            apart = sum(max(lost[u]) for u in mine)
            joint = max(sum(lost[u][s] for u in mine) for s in range(len(lost[0])))
            total += (1 - offset) * apart + offset * joint
        return total

    def naked(self) -> float:
        """Return Σ naked short options · S."""
        net: dict[tuple[int, int, float], float] = {}
        for u in range(len(self.market.feeds)):
            for n in self.options(u):
                i = int(self.given.instrument[n])
                key = (u, int(self.listed.expiry[i]), float(self.listed.strike[i]))
                net[key] = net.get(key, 0.0) + float(self.given.size[n])
        return sum(max(0.0, -size) * self.market.spot[key[0]] for key, size in net.items())

    def perps(self) -> float:
        """Return Σ |perps| · S."""
        total = 0.0
        for u in range(len(self.market.feeds)):
            units, loose = ([self.units(n) for n in rows if self.of(n) == u] for rows in (self.held, self.loose))
            most = max(abs(sum(units) + sum(x for x in loose if x * way > 0)) for way in (1, -1))
            total += most * self.market.spot[u]
        return total


@pytest.mark.parametrize("past", [None, history(scale=0.12)], ids=["no history", "history"])
@pytest.mark.parametrize(("share", "seed"), [(0.0, 0), (0.5, 1), (1.0, 2)], ids=["all firm", "some loose", "all loose"])
def test_every_account_matches_the_plain_implementation(past: object, share: float, seed: int) -> None:
    policy = risk_policy(past=past)  # type: ignore[arg-type]
    given, of, row = crowd(), market(), policy.scenario
    loose = np.random.default_rng(seed).random(len(given.size)) < share
    got = scenario.requirement_on(scenario.prepare(given.instruments, of, policy), given, loose if share else None)
    bound = set()
    for account in range(given.accounts):
        plain = Plain(given, of, policy, account, np.flatnonzero(loose).tolist())
        parts = [plain.scenario(), plain.basis(), plain.shortfall()]
        bound.add(int(np.argmax(parts)))
        for level, factor, short, perp in (
            (INITIAL, row.initial_factor, row.short_option_initial, row.perp_initial),
            (MAINTENANCE, row.maintenance_factor, row.short_option_maintenance, row.perp_maintenance),
        ):
            want = [factor * max(parts), plain.naked() * short, plain.perps() * perp]
            layers = got.layers[level, :, account]
            assert [layers[:3].sum(), layers[3], layers[4]] == pytest.approx(want, rel=1e-9, abs=1e-6)
        for level, total in ((INITIAL, got.initial), (MAINTENANCE, got.maintenance)):
            own = got.rows[level, np.flatnonzero(given.account == account)].sum()
            own += got.rows[level, len(given.size) :].reshape(given.accounts, -1)[account].sum()
            assert own == pytest.approx(total[account], rel=1e-9, abs=1e-6)
    if share < 1:  # scenario, basis and tail were all put to the test
        assert bound == {0, 1, 2} if past else {0, 1}


def test_the_worst_scenario_is_named() -> None:
    given = hold([(0, 0, -1e4), (1, 0, 1e4), (2, 2, 1.0), (2, 2, -1.0)], accounts=4)
    got = scenario.requirement(given, market(), risk_policy(concentration=0.0))
    assert got.binding == ("ETH/USD +18%, vol up", "ETH/USD -18%, vol up", "", "")
    assert got.initial[2:].tolist() == [0, 0]


def test_a_perp_needs_its_range_and_its_charge() -> None:
    policy = risk_policy(concentration=0.0)
    got = scenario.requirement(hold([(0, 0, 1e4)]), market(), policy)
    assert got.initial[0] == pytest.approx(1e4 * (0.18 + 0.04))
    assert got.maintenance[0] == pytest.approx(1e4 * (0.8 * 0.18 + 0.03))


def test_a_large_perp_is_charged_by_its_size() -> None:
    rows = {"ETH/USD": underlying(size_factor=0.01)}
    policy = risk_policy(rows, concentration=0.0)
    given = hold([(0, 0, 100 * 2_000.0)], instruments=listing((PERP, 0, 0, 0)), at=market(rows))
    got = scenario.requirement(given, market(rows), policy)
    assert got.layers[:, LAYERS.index("perps"), 0] == pytest.approx(
        [2e5 * (0.8 * 0.04 + 0.01 * 10), 2e5 * (0.8 * 0.03 + 0.01 * 10)]
    )


def test_concentration_follows_the_published_law_of_impact() -> None:
    rows = {"ETH/USD": underlying(surface=(), daily_volume=1e8)}
    given = hold([(0, 0, 1e6)], instruments=listing((PERP, 0, 0, 0)), at=market(rows))
    got = scenario.requirement(given, market(rows), risk_policy(rows))
    assert got.layers[:, LAYERS.index("concentration"), 0] == pytest.approx([0.06 * 0.1 * 1e6] * 2)


def test_an_unsure_price_asks_for_more_at_initial_margin_only() -> None:
    unsure = market(confidence=np.array([0.5, 0.6, 1.0]))
    given = hold([(0, 0, -1e4), (0, 1, 1e4), (0, 2, 3e3)])  # ETH and BTC, by the order of the listing
    sure = scenario.requirement(given, market(), risk_policy())
    got = scenario.requirement(given, unsure, risk_policy())
    layer = LAYERS.index("confidence")
    eth = [n for n in range(3) if LISTED.underlying[given.instrument[n]] == 0]
    notional = sum(abs(given.size[n] * (2_000 if LISTED.kind[given.instrument[n]] == PERP else 1 / 0.95)) for n in eth)
    assert got.layers[INITIAL, layer, 0] == pytest.approx(0.5 * notional)
    assert got.maintenance.tolist() == sure.maintenance.tolist()


def test_a_large_history_is_valued_in_parts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    given, of, policy = crowd(60), market(), risk_policy(past=history(300, scale=0.12))
    whole = scenario.requirement(given, of, policy)
    monkeypatch.setattr(scenario, "CELLS", 1_500)
    monkeypatch.setattr(scenario, "_KEPT", 0)
    monkeypatch.setattr(scenario, "AT_A_TIME", 3)
    monkeypatch.setattr(scenario, "_VALUED", 7)
    parts = scenario.requirement(given, of, policy)
    for name in ("initial", "maintenance", "layers", "rows"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-6)
    assert parts.binding == whole.binding
    assert any("past moves" in name for name in whole.binding)
    assert any("basis" in name for name in whole.binding)


@pytest.mark.parametrize("strike", [1_900.0, 2_000.0, 2_100.0])
@pytest.mark.parametrize("kind", [CALL, PUT])
def test_what_a_short_option_needs_does_not_fall_toward_its_expiry(kind: int, strike: float) -> None:
    """It moves in full until its venue settles it; only its time value passes, and nothing at the expiry itself."""
    seconds = [3_600, 1_801, 1_799, 900, 60, 1, 0, -60]
    listed = listing(*((kind, 0, strike, left) for left in seconds))
    given, of = hold([(n, n, -2_000.0) for n in range(len(seconds))], instruments=listed), market()
    need = scenario.requirement(given, of, risk_policy(concentration=0.0)).layers[:, :3].sum(axis=1)
    worth = -contract_values(given, of, of.spot, of.spot)[1]
    for level in (INITIAL, MAINTENANCE):
        assert (np.diff(need[level] + worth) <= 0.01).all()  # what it is worth and may cost: time value only passes
        assert need[level, -1] == pytest.approx(need[level, -2]) == pytest.approx(need[level, -3], rel=1e-3)
        assert (need[level] >= need[level, -1] - (worth - worth[-1]) - 0.01).all()
    intrinsic = max(0.0, 2_000 - strike if kind == CALL else strike - 2_000)
    move = 360 - max(0.0, (strike - 2_000 if kind == CALL else 2_000 - strike))
    assert need[INITIAL, -1] == pytest.approx(max(0.0, move))
    assert worth[-1] == pytest.approx(intrinsic)


def test_what_may_be_gone_covers_nothing_and_is_charged_itself() -> None:
    policy = risk_policy(concentration=0.0, perp_initial=0.0, perp_maintenance=0.0)
    listed = listing((PERP, 0, 0.0, 0), (CALL, 0, 2_000.0, 20 * DAY), (PERP, 1, 0.0, 0))
    grid = scenario.prepare(listed, market(), policy)

    def need(rows: list[tuple[int, float]], loose: list[bool] | None = None) -> float:
        given = hold([(0, *row) for row in rows], instruments=listed)
        return float(scenario.requirement_on(grid, given, None if loose is None else np.array(loose)).initial[0])

    assert need([(0, 1e4), (0, -1e4)]) == 0
    assert need([(0, 1e4), (0, -1e4)], [False, True]) == need([(0, 1e4)]) == pytest.approx(1_800)
    assert need([(0, 1e4), (0, -1e4)], [True, True]) == need([(0, 1e4)])  # either may be gone, and the other stay
    assert need([(1, -1e4), (1, 1e4)], [False, True]) == pytest.approx(need([(1, -1e4)]))
    assert need([(1, -1e4)], [True]) == need([(1, -1e4)])  # what is owed stays
    # Of two underlyings that offset by 40%: each without its hedge apart, and together the worst of the common moves.
    rows = [(0, 1e4), (0, -1e4), (2, 1e4), (2, -1e4)]
    assert need(rows, [False, True, True, False]) == pytest.approx(0.6 * (1_800 + 1_500) + 0.4 * 1_800)
    assert need(rows, [False, True, True, False]) >= need([(0, 1e4), (2, -1e4)])


def test_a_range_beyond_everything_leaves_a_price_of_zero() -> None:
    got = scenario.requirement(hold([(0, 0, 1e4)]), market(range=np.array([1.5, 0.15, 0.1])), risk_policy())
    assert got.layers[INITIAL, 0, 0] == pytest.approx(1e4)


def test_no_rows_and_no_accounts() -> None:
    none = hold([], accounts=2, instruments=listing())
    got = scenario.requirement(none, market(), risk_policy(past=history()))
    assert got.initial.tolist() == [0, 0]
    assert got.binding == ("", "")
    assert got.rows.shape == (2, 6)
    nobody = hold([], accounts=0)
    assert scenario.requirement(nobody, market(), risk_policy()).initial.shape == (0,)


def test_hedging_spot_alone_is_charged_its_range_and_allocated_to_itself() -> None:
    given = hold([], accounts=1, spot=np.array([[2.0, 0.0, 1.0]]))
    got = scenario.requirement(given, market(), risk_policy())
    assert got.initial[0] == pytest.approx(2 * 2_000 * 0.18 + 3_000 * 0.10)
    assert got.rows[INITIAL] == pytest.approx([720, 0, 300])


def test_sizes_of_1e30_stay_finite() -> None:
    given = hold([(0, i, 1e30 * (-1) ** i) for i in range(len(LISTED.kind))])
    got = scenario.requirement(given, market(), risk_policy(past=history()))
    assert np.isfinite(got.initial).all()
    assert got.initial[0] > 1e30


@pytest.mark.parametrize("name", ["size", "entry", "spot"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused_by_name(name: str, value: float) -> None:
    given = hold([(0, 0, 1e4)])
    with pytest.raises(ValueError, match=rf"portfolios\.{name}"):
        scenario.requirement(replace(given, **{name: getattr(given, name) * 0 + value}), market(), risk_policy())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spot": np.array([0.0, 1.0, 1.0])}, r"market\.spot"),
        ({"spot": np.array([math.nan, 1.0, 1.0])}, r"market\.spot"),
        ({"range": np.zeros(3)}, r"market\.range"),
        ({"confidence": np.full(3, 1.5)}, r"market\.confidence"),
        ({"range": np.full(2, 0.1)}, r"market\.range"),
    ],
)
def test_a_market_that_is_none_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scenario.requirement(hold([(0, 0, 1e4)]), replace(market(), **changes), risk_policy())


@pytest.mark.parametrize(
    "instruments", [listing((CALL, 0, 2e3, DAY)), listing((PUT, 0, 2e3, 40 * YEAR)), listing((PUT, 0, 0.0, DAY))]
)
def test_options_without_a_mark_are_refused(instruments: object) -> None:
    rows = dict(ROWS)
    if instruments.expiry[0] == CUT_TIME + DAY and instruments.strike[0]:  # type: ignore[attr-defined]
        rows["ETH/USD"] = underlying(group="majors", surface=())
    with pytest.raises(ValueError, match="unpriceable"):
        scenario.prepare(instruments, market(rows), risk_policy(rows))  # type: ignore[arg-type]


def test_a_grid_serves_its_own_instruments_only() -> None:
    grid = scenario.prepare(listing((PERP, 0, 0, 0)), market(), risk_policy())
    with pytest.raises(ValueError, match="not those of the grid"):
        scenario.requirement_on(grid, hold([(0, 0, 1.0)]))


def test_the_grid_has_its_published_shape() -> None:
    """31 scenarios of PMRM-2's shape, with both skews applied both ways; tails damped by κ·R/|δ|."""
    policy = risk_policy()
    grid = scenario.build_scenarios(market(), policy.scenario)
    assert grid.move.shape == (3, 7 * 3 + 2 + 6 + 4)
    assert grid.move[0, 0] == 0
    tail = int(np.flatnonzero(grid.move[0] == 3.0)[0])
    assert grid.weight[0, tail] == pytest.approx(0.2 * 0.18 / 3)
    assert len(grid.words(FEEDS)[2]) == grid.move.shape[1]


@pytest.mark.parametrize("past", [None, history(scale=0.12)], ids=["no history", "history"])
@pytest.mark.parametrize("loose", [False, True])
def test_a_row_is_allocated_what_its_growth_costs(past: object, loose: bool) -> None:
    """Euler: where the binding scenario stays the same, growing a row by ε costs ε times its allocation."""
    policy = risk_policy(past=past, concentration=0.0, short_option_initial=0.0, short_option_maintenance=0.0)  # type: ignore[arg-type]
    given, step = crowd(), 1e-7
    grid = scenario.prepare(given.instruments, market(), policy)
    some = np.random.default_rng(5).random(len(given.size)) < 0.4 if loose else None
    base = scenario.requirement_on(grid, given, some)
    for n in range(0, len(given.size), 3):
        grown = given.size.copy()
        grown[n] *= 1 + step
        more = scenario.requirement_on(grid, replace(given, size=grown), some).initial - base.initial
        scale = base.initial[given.account[n]]
        assert more.sum() / step == pytest.approx(base.rows[INITIAL, n], rel=1e-4, abs=1e-5 * scale)
