"""The models without scenarios, what contracts are worth, account greeks, and models by name."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from aggregator.core import models
from aggregator.core.contracts import (
    collect_instruments,
    contract_values,
    implied_vols,
    short_option_charges,
    unpriceable,
)
from aggregator.core.greeks import Greeks, row_greeks
from aggregator.core.instruments.option import bsm
from aggregator.core.margin import cross, isolated, tiered, unhedged
from aggregator.domain.contracts import CALL, INVERSE, LAYERS, PERP, PUT
from aggregator.domain.policy import TierRow
from aggregator.domain.report import HIGH, INITIAL, LOW, MID
from tests.risk_world import LISTED, ROWS, SPOT, TIERS, hold, listing, market, risk_policy, underlying
from tests.strategies import CUT_TIME, DAY

ETH = listing((PERP, 0, 0, 0), (INVERSE, 0, 0, 0), (CALL, 0, 2_200.0, 30 * DAY), (PUT, 0, 2_100.0, 30 * DAY))
PERP_LAYER, OPTION_LAYER = LAYERS.index("perps"), LAYERS.index("short options")


def eth_only(**changes: object) -> dict[str, object]:
    return {"ETH/USD": underlying(**changes)}


def test_isolated_positions_do_not_net() -> None:
    given = hold([(0, 0, 1e4), (0, 0, -1e4), (1, 2, -2_000.0), (1, 2, 2_000.0)], instruments=ETH)
    got = isolated.requirement(given, market(), risk_policy())
    assert got.initial == pytest.approx([2e4 * 0.10, 200.0])  # call 200 out of the money: max(300 − 200, 200)
    assert got.maintenance == pytest.approx([2e4 * 0.05, 100.0])
    assert got.rows[INITIAL, 3] == 0  # a long option can lose no more than it is worth
    assert got.binding == ("ETH/USD perp", "ETH/USD call 2200")


def test_cross_positions_net_where_they_are_the_same() -> None:
    rows = [(0, 0, 1e4), (0, 0, -4e3), (1, 2, -2_000.0), (1, 2, 1_000.0), (1, 3, 5_000.0)]
    got = cross.requirement(hold(rows, instruments=ETH), market(), risk_policy())
    assert got.initial == pytest.approx([6e3 * 0.10, 0.5 * 200.0])  # the long put offsets no call
    assert got.rows[INITIAL, :2] == pytest.approx([1_000, -400])


def test_an_inverse_perp_nets_with_a_linear_one_by_what_it_moves_with() -> None:
    """Short 1 linear against long 1,900 USD of inverse opened at 1,900: both move like one unit."""
    given = hold([(0, 0, -2_000.0), (0, 1, 1_900.0)], instruments=ETH)
    got = cross.requirement(given, market(), risk_policy())
    assert got.initial[0] == pytest.approx(0, abs=1e-9)


def test_a_large_perp_has_a_greater_ratio() -> None:
    """The published perp of Drift's tests: 6.15 units at 21,050 under r = 0.1 and imf = 0.001 need 12,940.57."""
    rows = eth_only(size_factor=0.001)
    of = market(rows, spot=np.array([21_050.0]))  # type: ignore[arg-type]
    given = replace(hold([(0, 0, 1.0)], instruments=ETH, at=of), size=np.array([-6.1475409835]))
    for model in (isolated, cross):
        got = model.requirement(given, of, risk_policy(rows))  # type: ignore[arg-type]
        assert got.initial[0] == pytest.approx(12_940.573769, abs=1e-5)
    larger = replace(given, size=given.size * 1e4)
    ratio = cross.requirement(larger, of, risk_policy(rows)).initial[0] / (61_475.409835 * 21_050)  # type: ignore[arg-type]
    assert ratio == pytest.approx(0.08 + 0.001 * math.sqrt(61_475.409835))


@pytest.mark.parametrize(("kind", "initial", "maintenance"), [(CALL, 10, 5), (PUT, 15, 7.5)])
def test_a_short_option_is_charged_as_published(kind: int, initial: float, maintenance: float) -> None:
    """Paradex: spot 100, strike 106."""
    of = replace(market(), spot=np.full(3, 100.0))
    charges = short_option_charges(listing((kind, 0, 106.0, DAY), (PERP, 0, 0, 0)), of)
    assert charges == pytest.approx(np.array([[initial, 0], [maintenance, 0]]))


def test_bands_are_marginal_and_the_last_rate_goes_on() -> None:
    """OKX's published ladder: 10 million need 202,500 at 0.75, 1.75 and 2.5% of bands of 1, 4 and 5 million."""
    bands = ((1e6, 0.0075), (5e6, 0.0175), (1e7, 0.025))
    tiers = tuple(TierRow(up_to=end, initial=rate, maintenance=rate / 2) for end, rate in bands)
    rows = eth_only(tiers=tiers)
    of = market(rows)  # type: ignore[arg-type]
    given = hold([(0, 0, -1e7), (1, 0, 2e7), (2, 0, 1e6)], instruments=ETH, at=of)
    got = tiered.requirement(given, of, risk_policy(rows))  # type: ignore[arg-type]
    assert got.initial == pytest.approx([202_500, 202_500 + 250_000, 7_500])
    assert got.maintenance == pytest.approx(got.initial / 2)


def test_tiers_count_net_perps_and_net_short_options() -> None:
    rows = eth_only(tiers=TIERS)
    of, policy = market(rows), risk_policy(rows)  # type: ignore[arg-type]
    held = [(0, 0, 8e3), (0, 0, -2e3), (0, 2, -6e3), (0, 2, 1e3), (0, 3, 9e9)]
    got = tiered.requirement(hold(held, instruments=ETH, at=of), of, policy)
    assert got.initial[0] == pytest.approx(1e4 * 0.05 + 1e3 * 0.1)
    assert got.layers[INITIAL, [PERP_LAYER, OPTION_LAYER], 0] == pytest.approx(got.initial[0] * np.array([6, 5]) / 11)


def test_an_underlying_without_tiers_has_one_rate() -> None:
    got = tiered.requirement(hold([(0, 0, 1e4)], instruments=ETH), market(), risk_policy())
    assert (got.initial[0], got.maintenance[0]) == (pytest.approx(1e3), pytest.approx(500))


def test_without_a_model_of_contracts_all_of_them_is_required() -> None:
    given = hold([(0, 0, 1e4), (0, 0, -1e4), (0, 2, -1e3), (0, 2, 5e3)], instruments=ETH, spot=np.array([[9.0, 0, 0]]))
    for got in (
        unhedged.requirement(given, market(), risk_policy()),
        models.MODELS["health"](given, market(), risk_policy()),
    ):
        assert got.initial[0] == got.maintenance[0] == pytest.approx(2.1e4)


def test_every_model_of_a_policy_is_there_and_another_is_refused_loudly() -> None:
    given = hold([(0, 0, 1e4)], instruments=ETH)
    for name in ("health", "isolated", "cross", "tiered", "scenario", "pmrm-2", "pmrm-1", "standard", "span"):
        assert models.requirement(name, given, market(), risk_policy()).initial[0] > 0
    with pytest.raises(models.UnknownModelError, match="no margin model 'sapn'"):
        models.find_model("sapn")


def test_a_contract_is_worth_its_adverse_and_favourable_bound() -> None:
    """Long loses at p⁻, short at p⁺; an inverse perp pays size·(S/entry − 1) USD; funding is added as it is."""
    given = replace(
        hold([(0, 0, 2_000.0), (0, 0, -2_000.0), (0, 1, 1_900.0), (0, 1, -1_900.0)], instruments=ETH),
        funding=np.array([5.0, 0, 0, -1]),
    )
    of = market()
    got = contract_values(given, of, of.spot * 0.9, of.spot * 1.1)
    assert got[MID] == pytest.approx([105, -100, 100, -101])
    assert got[LOW] == pytest.approx([-95, -300, -100, -301])
    assert got[HIGH] == pytest.approx([305, 100, 300, 99])


def test_an_option_is_worth_its_price_on_our_surface() -> None:
    given, of = hold([(0, 2, 2_000.0), (1, 3, -2_000.0)], instruments=ETH), market()
    got = contract_values(given, of, of.spot * 0.99, of.spot * 1.01)
    vols = implied_vols(ETH, of)
    for n, (i, sign) in enumerate(((2, 1), (3, -1))):
        for end, price in ((LOW, 1_980.0), (MID, 2_000.0), (HIGH, 2_020.0)):  # a short put too loses as the price falls
            want = bsm(price, ETH.strike[i], 30 / 365, vols[i], 0.05, 0.0, ETH.kind[i] == CALL)
            assert got[end, n] == pytest.approx(sign * float(want))


def test_an_overdue_option_is_worth_its_intrinsic_value() -> None:
    late = listing((CALL, 0, 1_900.0, 0), (PUT, 0, 1_900.0, -DAY))
    of = market()
    got = contract_values(hold([(0, 0, 2_000.0), (0, 1, 2_000.0)], instruments=late), of, of.spot * 0.9, of.spot)
    assert got.tolist() == [[0, 0], [100, 0], [100, 100]]


def test_a_band_that_is_none_is_refused() -> None:
    of = market()
    for low, high in ((of.spot * 1.1, of.spot * 1.2), (of.spot * math.nan, of.spot), (of.spot, of.spot * math.inf)):
        with pytest.raises(ValueError, match="low, high"):
            contract_values(hold([(0, 0, 1.0)]), of, low, high)


def test_an_inverse_perp_without_an_entry_is_refused() -> None:
    given = hold([(0, 1, 1e3)], instruments=ETH)
    with pytest.raises(ValueError, match=r"portfolios\.entry"):
        contract_values(replace(given, entry=given.entry * 0), market(), market().spot, market().spot)


def test_what_has_no_mark_is_found() -> None:
    rows = {**ROWS, "GOLD/USD": underlying(surface=())}
    of = listing(
        (PERP, 2, 0, 0), (CALL, 2, 3e3, DAY), (CALL, 0, 3e3, 31 * 365 * DAY), (PUT, 0, 0, DAY), (PUT, 0, 1, DAY)
    )
    assert unpriceable(of, market(rows)).tolist() == [False, True, True, True, False]


def test_rows_share_the_instruments_they_agree_on() -> None:
    kind, of = np.array([CALL, PERP, CALL, PUT]), np.array([1, 0, 1, 1])
    got, index = collect_instruments(kind, of, np.array([5.0, 0, 5, 5]), np.array([CUT_TIME, 0, CUT_TIME, CUT_TIME]))
    assert got.kind.tolist() == [PERP, CALL, PUT]
    assert index.tolist() == [1, 0, 1, 2]


def test_greeks_add_up_to_the_derivatives_of_what_the_account_holds() -> None:
    far = np.flatnonzero((LISTED.kind < CALL) | (LISTED.expiry == CUT_TIME + 60 * DAY))
    given = hold([(n % 2, int(i), 1e4 * (-1) ** n) for n, i in enumerate(far)])
    of = market()
    place = given.account * 3 + LISTED.underlying[given.instrument]
    got = Greeks(*(np.bincount(place, column, 6).reshape(2, 3) for column in row_greeks(given, of)))
    vols = implied_vols(given.instruments, of)

    def worth(u: int, shift: float) -> np.ndarray:
        """Return each account's worth with the price of u moved, volatilities held."""
        price = of.spot + shift * (np.arange(3) == u)
        total = np.zeros(2)
        for n, i in enumerate(given.instrument):
            v, entry = LISTED.underlying[i], given.entry[n]
            if LISTED.kind[i] in (CALL, PUT):
                t, row = (LISTED.expiry[i] - CUT_TIME) / (365 * DAY), of.rows[v]
                unit = bsm(price[v], LISTED.strike[i], t, vols[i], row.rate, row.carry, LISTED.kind[i] == CALL)
                total[given.account[n]] += given.size[n] * float(unit)
            else:
                scale = 1 / entry if LISTED.kind[i] == INVERSE else 1.0
                total[given.account[n]] += given.size[n] * scale * (price[v] - entry)
        return total

    for u, spot in enumerate(SPOT.values()):
        h = spot * 1e-4
        up, here, down = (worth(u, shift) for shift in (h, 0.0, -h))
        np.testing.assert_allclose(got.delta[:, u], (up - down) / (2 * h), rtol=1e-5)
        np.testing.assert_allclose(got.gamma[:, u], (up - 2 * here + down) / h**2, rtol=1e-3)
    assert (got.vega != 0).all()
    assert (np.sign(got.theta) == -np.sign(got.gamma))[:, 0].all()


def test_an_overdue_option_has_a_delta_and_nothing_else() -> None:
    late = listing((CALL, 0, 1_900.0, -5), (CALL, 0, 2_100.0, 0))
    got = row_greeks(hold([(0, 0, 2_000.0), (0, 1, 2_000.0)], instruments=late), market())
    assert got.delta.tolist() == [1, 0]
    assert not any(column.any() for column in (got.gamma, got.vega, got.theta, got.rho, got.volatility))
    assert got.mark.tolist() == [100, 0]
