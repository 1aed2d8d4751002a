"""The margin venue read by a real reader at pinned blocks: perps, options and collateral, as the contract has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapters.evm.margin_venue import MarginVenue
from aggregator.domain.snapshot import DEBT_UNREADABLE, Block, Position, Reading, Subject
from infra.devnet.anvil import Anvil
from tests.chain.evm_venues import (
    CHAIN,
    DELAY,
    PRICES,
    TRADES,
    USDC,
    WETH,
    Venues,
    deploy_venues,
    instrument,
    make_reader,
    trade,
)

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]
OTHER = "0x" + "77" * 32


@pytest.fixture(scope="module")
def venues() -> Iterator[Venues]:
    with Anvil() as anvil:
        yield deploy_venues(anvil, trading=True)


@pytest.fixture
def isolated(venues: Venues) -> Iterator[None]:
    snapshot = venues.anvil.rpc("evm_snapshot")
    yield
    venues.anvil.rpc("evm_revert", snapshot)


async def read(venues: Venues, block: Block | None = None) -> Reading:
    """Read the venue for the user and a stranger."""
    reader = make_reader(venues.anvil, [venues.adapters()["margin-venue"]], assets=list(venues.assets().values()))
    subjects = [Subject(venues.account, None), Subject(venues.account, venues.address), Subject(OTHER, None)]
    reading = await reader.read(block or venues.latest(), subjects)
    await reader.close()
    assert {p.account for p in reading.positions} <= {venues.account}
    return reading


def contracts(reading: Reading) -> dict[int, Position]:
    """Return the perps and options by instrument."""
    return {int(p.asset.rpartition("/")[2]): p for p in reading.positions if p.contract.kind}


async def test_perps_and_options_are_read_as_they_were_traded(venues: Venues) -> None:
    reading = await read(venues)
    assert reading.findings == ()
    found = contracts(reading)
    assert {id: p.quantity if p.side == "asset" else -p.quantity for id, p in found.items()} == {
        instrument(name): size for name, size in TRADES
    }
    for name, _ in TRADES:
        p = found[instrument(name)]
        kind, _, term = name.partition("-")
        assert (p.contract.kind, p.contract.underlying) == (kind, "ETH/USD")
        assert p.unit == venues.asset("weth" if kind == "inverse" else "usdc")
        assert (p.amount, p.control, p.removal_delay, p.origin) == (0, "seizable", DELAY, venues.names["venue"])
        assert p.contract.entry == (0 if term else PRICES["ETH"])
        assert p.contract.strike == (PRICES["ETH"] if term else 0)
    assert found[instrument("call-near")].contract.expiry < found[instrument("call-far")].contract.expiry
    assert found[instrument("perp")].contract.funding > 0  # short, while longs pay
    assert found[instrument("inverse")].contract.funding < 0
    cash = {p.asset: p for p in reading.positions if not p.contract.kind}
    assert cash[venues.asset("weth")].amount == WETH
    usdc = cash[venues.asset("usdc")]
    assert (usdc.pending, usdc.control, usdc.removal_delay) == (1_000 * USDC, "seizable", DELAY)


async def test_a_pinned_block_is_read_as_it_was(venues: Venues) -> None:
    then, block = await read(venues), venues.latest()
    trade(venues, "perp", 3 * WETH)
    trade(venues, "put-far", -WETH)
    now = await read(venues)
    assert instrument("perp") not in contracts(now)
    assert contracts(now)[instrument("put-far")].quantity == WETH + WETH // 4
    assert (await read(venues, block)).positions == then.positions


async def test_a_trade_names_its_account_in_the_logs(venues: Venues) -> None:
    reader = make_reader(venues.anvil, [venues.adapters()["margin-venue"]])
    before = venues.latest().height
    trade(venues, "call-far", WETH)
    words = await reader.changes(before + 1, venues.latest().height)
    await reader.close()
    assert words is not None
    assert venues.account in words


async def test_what_changes_for_everybody_names_the_venue_in_the_logs(venues: Venues) -> None:
    reader = make_reader(venues.anvil, [venues.adapters()["margin-venue"]])
    before = venues.latest().height
    venues.run(venues["venue"].functions.setFundingRate(instrument("perp"), 10**9), venues.w3.eth.accounts[0])
    words = await reader.changes(before + 1, venues.latest().height)
    await reader.close()
    assert words is not None
    assert venues.names["venue"].lower() in words
    assert venues.account not in words


async def test_an_option_is_known_to_have_expired_by_the_pinned_block(venues: Venues) -> None:
    """Until what it pays is fixed a short one may owe anything and a long one counts nothing; then it is cash."""
    venue, feed = venues["venue"], venues["feed_eth"]
    expiry = int(venue.functions.instrument(instrument("call-near")).call()[5])
    venues.anvil.rpc("evm_setNextBlockTimestamp", expiry)
    venues.anvil.mine()
    reading = await read(venues)
    near = {instrument("call-near"), instrument("put-near")}
    assert set(contracts(reading)) == {instrument(name) for name, _ in TRADES} - near
    assert {(f.code, f.scope) for f in reading.findings} == {
        (DEBT_UNREADABLE, venues.account),
        ("unreadable", venues.account),
    }
    before = {p.asset: p.amount for p in reading.positions if not p.contract.kind}

    venues.run(feed.functions.setAnswer(PRICES["ETH"] + 100 * 10**8), venues.w3.eth.accounts[0])
    for id in near:
        venues.run(venue.functions.settle(id, int(feed.functions.latestRound().call())))
    reading = await read(venues)
    assert reading.findings == ()
    usdc = venues.asset("usdc")
    settled = {p.asset: p.amount for p in reading.positions if not p.contract.kind}
    assert settled[usdc] == before[usdc] - 2 * 100 * USDC  # two calls sold, a put bought
    for id in near:
        venues.run(venue.functions.collect(bytes.fromhex(venues.account[2:]), id))
    collected = {p.asset: p.amount for p in (await read(venues)).positions if not p.contract.kind}
    assert collected == settled


async def test_a_venue_without_code_may_be_owed_anything(venues: Venues) -> None:
    nowhere = MarginVenue(CHAIN, "0x" + "5e" * 20, venues.assets())
    reader = make_reader(venues.anvil, [nowhere])
    reading = await reader.read(venues.latest(), [Subject(venues.account, None), Subject(OTHER, None)])
    (probe,) = [f for f in await reader.check() if f.scope.endswith("margin-venue")]
    await reader.close()
    assert reading.positions == ()
    assert {(f.code, f.scope) for f in reading.findings} == {(DEBT_UNREADABLE, a) for a in (venues.account, OTHER)}
    assert probe.code == "failed"
