"""The EVM adapters on real contracts: what each venue really holds and owes, asked for by its own ABI beside us."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import pytest
from web3 import Web3

from adapters.evm.aave_v3 import AaveV3
from adapters.evm.lender import Lender
from adapters.evm.vault import Vault
from adapters.evm.wallet import Wallet
from aggregator.domain.errors import Garbage
from aggregator.domain.price import Quote
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import Finding, Position, Reading, Subject
from infra.devnet.anvil import Anvil
from infra.devnet.evm_deploy import deploy_feed
from tests.chain.evm_venues import CHAIN, DELAY, NAME, PRICES, RATE_CAP, USDC, WETH, Venues, deploy_venues, make_reader

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]
STRANGER = "0x" + "9a" * 20


@pytest.fixture(scope="module")
def venues() -> Iterator[Venues]:
    with Anvil() as anvil:
        yield deploy_venues(anvil)


@pytest.fixture
def isolated(venues: Venues) -> Iterator[None]:
    snapshot = venues.anvil.rpc("evm_snapshot")
    yield
    venues.anvil.rpc("evm_revert", snapshot)


async def read(
    venues: Venues, name: str, assets: dict[str, AssetRow] | None = None, *, check_decimals: bool = False
) -> Reading:
    """Read one venue for the user and a stranger at the newest block."""
    described = list(assets.values()) if assets and check_decimals else None
    reader = make_reader(venues.anvil, [venues.adapters(assets)[name]], assets=described)
    other = "0x" + "77" * 32
    subjects = [
        Subject(venues.account, None),
        Subject(venues.account, venues.address),
        Subject(other, None),
        Subject(other, STRANGER),
    ]
    reading = await reader.read(venues.latest(), subjects)
    await reader.close()
    assert {p.account for p in reading.positions} <= {venues.account}
    assert {p.chain for p in reading.positions} <= {CHAIN}
    return reading


def by_asset(reading: Reading, side: str = "asset") -> dict[str, Position]:
    found = {p.asset: p for p in reading.positions if p.side == side}
    assert len(found) == sum(p.side == side for p in reading.positions)
    return found


async def test_a_wallet_holds_native_coin_and_tokens_of_any_decimals(venues: Venues) -> None:
    reading = await read(venues, "wallet")
    assert reading.findings == ()
    held = by_asset(reading)
    assert held[venues.asset("native")].amount == venues.w3.eth.get_balance(venues.user) == 3 * WETH + 7
    for name in ("usdc", "wbtc", "weth"):
        position = held[venues.asset(name)]
        assert position.amount == position.quantity == venues[name].functions.balanceOf(venues.user).call() > 0
        assert position.unit == position.asset
        assert (position.control, position.removal_delay, position.pending) == ("none", 0, 0)
        assert position.address == venues.address
    assert held[venues.asset("usdc")].amount == 1_234_567_891 + 5_000 * USDC + 75 * USDC
    # aTokens belong to the Aave adapter: reading them here too would count them twice.
    assert venues.asset("aave_atoken_weth") not in held


async def test_a_donation_raises_shares_only_to_the_rate_cap(venues: Venues) -> None:
    position = by_asset(await read(venues, "wallet"))[venues.asset("vault4626")]
    shares = venues["vault4626"].functions.balanceOf(venues.user).call()
    worth = venues["vault4626"].functions.convertToAssets(shares).call()
    capped = int(Fraction(shares * USDC, 10**9) * Fraction(str(RATE_CAP)))
    assert (position.quantity, position.unit) == (shares, venues.asset("usdc"))
    assert position.amount == capped < worth

    loose = venues.assets()
    row = loose[venues.asset("vault4626")]
    loose[row.id] = row.model_copy(update={"rate_cap": 2.0})
    assert by_asset(await read(venues, "wallet", loose))[row.id].amount == worth


async def test_a_token_without_code_is_a_finding_never_a_zero(venues: Venues) -> None:
    assets = venues.assets()
    usdc = assets[venues.asset("usdc")]
    absent = usdc.model_copy(update={"id": f"{CHAIN}/erc20:0x{'5e' * 20}"})
    reading = await read(venues, "wallet", {absent.id: absent, usdc.id: usdc})
    assert set(by_asset(reading)) == {usdc.id}
    assert {(f.code, f.scope) for f in reading.findings} == {("unreadable", p) for p in _accounts(venues)}
    assert all(absent.id in f.detail for f in reading.findings)


async def test_a_token_described_with_other_decimals_counts_nothing(venues: Venues) -> None:
    """Else a slip of the pen makes a holding a million million times too large."""
    assets = venues.assets()
    weth, usdc = venues.asset("weth"), venues.asset("usdc")
    assets[weth] = assets[weth].model_copy(update={"decimals": 6})
    reading = await read(venues, "wallet", assets, check_decimals=True)
    held = by_asset(reading)
    assert weth not in held
    assert usdc in held
    assert ("unreadable", venues.account, f"{weth}: decimals() is 18, configured are 6") in reading.findings
    assets[usdc] = assets[usdc].model_copy(update={"decimals": 18})
    reading = await read(venues, "lender", assets, check_decimals=True)
    assert reading.positions == ()
    assert {f.code for f in reading.findings} == {"debt-unreadable"}


def _accounts(venues: Venues) -> set[str]:
    return {venues.account, "0x" + "77" * 32}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("0x60006000fd", "reverts"),
        ("0xfe", "consumes all gas"),
        ("0x60016000526001601ff3", "returns one byte"),
        ("0x60406000f3", "returns two words"),
    ],
)
async def test_a_token_that_misbehaves_spoils_only_itself(venues: Venues, code: str, why: str) -> None:
    venues.anvil.rpc("anvil_setCode", venues.names["wbtc"], code)
    venues.anvil.mine()
    reading = await read(venues, "wallet")
    held = by_asset(reading)
    assert venues.asset("wbtc") not in held, why
    assert {venues.asset("usdc"), venues.asset("weth"), venues.asset("native")} <= set(held)
    assert {f.scope for f in reading.findings} == _accounts(venues)
    assert all(venues.asset("wbtc") in f.detail for f in reading.findings)


async def test_shares_that_do_not_convert_count_nothing_and_say_so(venues: Venues) -> None:
    # Any balance, but convertToAssets reverts: PUSH4 selector of balanceOf, compare, return the calldata size.
    code = "0x60003560e01c6370a0823114601357600080fd5b3660005260206000f3"
    venues.anvil.rpc("anvil_setCode", venues.names["vault4626"], code)
    venues.anvil.mine()
    reader = make_reader(venues.anvil, [venues.adapters()["wallet"]])
    reading = await reader.read(venues.latest(), [Subject(venues.account, venues.address)])
    await reader.close()
    assert venues.asset("vault4626") not in by_asset(reading)
    (finding,) = reading.findings
    assert (finding.code, finding.scope) == ("unreadable", venues.account)
    assert "conversion" in finding.detail


async def test_the_vault_shows_deposits_pending_withdrawals_and_its_delay(venues: Venues) -> None:
    reading = await read(venues, "vault")
    assert reading.findings == ()
    held = by_asset(reading)
    weth = held[venues.asset("weth")]
    account = bytes.fromhex(venues.account[2:])
    total, pending = venues["collateral_vault"].functions.position(account, venues["weth"].address).call()
    assert (weth.quantity, weth.amount, weth.pending) == (total, total, pending) == (4 * WETH, 4 * WETH, WETH)
    assert (weth.control, weth.removal_delay, weth.address) == ("seizable", DELAY, "")

    shares = held[venues.asset("vault4626")]
    assert (shares.quantity, shares.unit) == (200 * 10**9, venues.asset("usdc"))
    assert (shares.amount, shares.pending) == (210 * USDC, 52 * USDC + USDC // 2)  # the cap, not the donation

    receipt = held[venues.asset("aave_atoken_weth")]
    (total, _) = venues["collateral_vault"].functions.position(account, venues["aave_atoken_weth"].address).call()
    assert (receipt.quantity, receipt.amount, receipt.unit) == (total, total, venues.asset("weth"))
    assert set(held) == {venues.asset(name) for name in ("weth", "vault4626", "aave_atoken_weth")}


async def test_a_vault_without_code_backs_nobody_and_says_so(venues: Venues) -> None:
    reader = make_reader(venues.anvil, [Vault(CHAIN, STRANGER, venues.assets())])
    reading = await reader.read(venues.latest(), [Subject(venues.account, None)])
    await reader.close()
    assert reading.positions == ()
    assert [(f.code, f.scope) for f in reading.findings] == [("unreadable", venues.account)]
    assert STRANGER in reading.findings[0].detail


async def test_the_lender_is_owed_what_it_lent(venues: Venues) -> None:
    reading = await read(venues, "lender")
    (position,) = reading.positions
    owed = venues["lender"].functions.debtOf(bytes.fromhex(venues.account[2:])).call()
    assert position.side == "debt"
    assert (position.asset, position.amount, position.netting) == (venues.asset("usdc"), owed, "")
    assert owed == 75 * USDC
    assert reading.findings == ()


async def test_a_lender_whose_token_is_unknown_stops_the_reading(venues: Venues) -> None:
    without = {a: row for a, row in venues.assets().items() if row.kind == "native"}
    for lender in (Lender(CHAIN, venues.names["lender"], without), Lender(CHAIN, STRANGER, venues.assets())):
        reader = make_reader(venues.anvil, [lender])
        with pytest.raises(Garbage, match=rf"^{NAME}: lender 0x[0-9a-f]{{40}}: token\(\)"):
            await reader.read(venues.latest(), [Subject(venues.account, None)])
        await reader.close()


async def test_aave_agrees_with_the_pool_itself(venues: Venues) -> None:
    reading = await read(venues, "aave-v3")
    (supply,), (debt,) = by_asset(reading).values(), by_asset(reading, "debt").values()
    assert (supply.asset, supply.unit) == (venues.asset("aave_atoken_weth"), venues.asset("weth"))
    assert supply.amount == venues["aave_atoken_weth"].functions.balanceOf(venues.user).call()
    assert (debt.asset, debt.unit) == (venues.asset("usdc"), venues.asset("usdc"))
    assert debt.amount == venues["aave_debt_usdc"].functions.balanceOf(venues.user).call() >= 5_000 * USDC
    pool = venues.pool.address.lower()
    assert supply.netting == debt.netting == f"aave-v3:{CHAIN}:{pool}:{venues.address}"
    assert supply.origin == debt.origin == pool
    assert supply.address == debt.address == venues.address

    collateral, owed, _, threshold, _, health = venues.pool.functions.getUserAccountData(venues.user).call()
    value = supply.amount * PRICES["ETH"] / WETH
    debt_value = debt.amount * PRICES["USDC"] / USDC
    assert value == pytest.approx(collateral, rel=1e-9)
    assert debt_value == pytest.approx(owed, rel=1e-9)
    assert value * threshold / 10**4 / debt_value == pytest.approx(health / 10**18, rel=1e-6)
    (finding,) = reading.findings  # the stranger has no debt, hence no health
    assert (finding.code, finding.scope) == ("venue-health", venues.account)
    assert f"{health / 1e18:.4f}" in finding.detail


async def test_an_aave_reserve_that_is_not_configured_is_named(venues: Venues) -> None:
    assets = {a: row for a, row in venues.assets().items() if a != venues.asset("usdc")}
    reading = await read(venues, "aave-v3", assets)
    assert ("unknown-asset", venues.account) in {(f.code, f.scope) for f in reading.findings}
    # The debt stays in the reading: what we cannot price must not vanish.
    assert by_asset(reading, "debt")[venues.asset("usdc")].amount >= 5_000 * USDC


async def test_a_pool_without_code_stops_the_reading(venues: Venues) -> None:
    reader = make_reader(venues.anvil, [AaveV3(CHAIN, STRANGER, STRANGER, venues.assets())])
    with pytest.raises(Garbage, match=rf"^{NAME}: aave-v3 pool {STRANGER}"):
        await reader.read(venues.latest(), [Subject(venues.account, venues.address)])
    await reader.close()


async def test_all_venues_together_give_what_each_gives_alone(venues: Venues) -> None:
    reader = make_reader(venues.anvil, list(venues.adapters().values()))
    subjects = [Subject(venues.account, None), Subject(venues.account, venues.address)]
    reading = await reader.read(venues.latest(), subjects)
    await reader.close()
    alone = [await read(venues, name) for name in venues.adapters()]
    assert sorted(reading.positions) == sorted(p for one in alone for p in one.positions)
    assert {p.venue for p in reading.positions} == {"wallet", "vault", "lender", "aave-v3"}


async def test_more_calls_than_one_request_takes_are_put_together_in_order(venues: Venues) -> None:
    count = 2_600
    addresses = [f"0x{i:040x}" for i in range(1, count)] + [venues.address]
    usdc = venues.assets()[venues.asset("usdc")]
    venues.run(venues["usdc"].functions.mint(Web3.to_checksum_address(f"0x{1_500:040x}"), 5))
    reader = make_reader(venues.anvil, [Wallet(CHAIN, {usdc.id: usdc}, venues.multicall)])
    reading = await reader.read(venues.latest(), [Subject(f"0x{i:064x}", a) for i, a in enumerate(addresses)])
    await reader.close()
    held = venues["usdc"].functions.balanceOf(venues.user).call()
    assert {(p.address, p.amount) for p in reading.positions} == {(f"0x{1_500:040x}", 5), (venues.address, held)}
    assert reading.findings == ()


async def test_many_addresses_in_a_venue_with_costly_calls_are_all_read(venues: Venues) -> None:
    """One request with all these calls would need more gas than a node grants an eth_call."""
    count = 400
    adapter = venues.adapters()["aave-v3"]
    reader = make_reader(venues.anvil, [adapter])
    subjects = [Subject(f"0x{i:064x}", f"0x{i:040x}") for i in range(1, count)]
    reading = await reader.read(venues.latest(), [*subjects, Subject(venues.account, venues.address)])
    await reader.close()
    assert {p.account for p in reading.positions} == {venues.account}
    assert [f.code for f in reading.findings] == ["venue-health"]


# Price feeds


async def quotes(venues: Venues) -> dict[str, Quote]:
    reader = make_reader(venues.anvil, [], venues.feeds())
    found = await reader.read_quotes(venues.latest())
    await reader.close()
    return {quote.feed: quote for quote in found}


async def test_feeds_quote_their_answer_with_its_time(venues: Venues) -> None:
    found = await quotes(venues)
    assert {feed: quote.price for feed, quote in found.items()} == {f"{s}/USD": p for s, p in PRICES.items()}
    _, _, _, updated, _ = venues["feed_eth"].functions.latestRoundData().call()
    eth = found["ETH/USD"]
    assert eth == Quote("ETH/USD", "chainlink-eth", "chainlink", PRICES["ETH"], PRICES["ETH"] // 1000, -8, updated)


@pytest.mark.parametrize("code", ["0x", "0x60006000fd", "0x60206000f3", "0x60a06000f3"])
async def test_a_feed_that_fails_is_absent_not_zero(venues: Venues, code: str) -> None:
    venues.anvil.rpc("anvil_setCode", venues.names["feed_btc"], code)
    venues.anvil.mine()
    assert set(await quotes(venues)) == {"ETH/USD", "USDC/USD"}
    reader = make_reader(venues.anvil, [], venues.feeds())
    assert Finding("failed", f"{NAME} BTC/USD", "does not answer") in await reader.check()
    await reader.close()


async def test_decimals_are_the_feeds_own(venues: Venues) -> None:
    feed = deploy_feed(venues.w3, "X / USD", 5)
    (row,) = [f.model_copy(update={"id": f"{CHAIN}:{feed.address}"}) for f in venues.feeds()[:1]]
    reader = make_reader(venues.anvil, [], [row])
    (quote,) = await reader.read_quotes(venues.latest())
    await reader.close()
    assert (quote.price, quote.expo) == (5, -8)


async def test_a_check_reports_each_venue_on_its_own(venues: Venues) -> None:
    adapters = list(venues.adapters().values())
    reader = make_reader(venues.anvil, [*adapters, Lender(CHAIN, STRANGER, venues.assets())], venues.feeds())
    findings = await reader.check()
    await reader.close()
    assert [f.scope for f in findings if f.code == "failed"] == [f"{NAME} lender"]
    good = {f.scope for f in findings if f.code == "ok"}
    assert good >= {NAME, f"{NAME} wallet", f"{NAME} vault", f"{NAME} aave-v3", f"{NAME} ETH/USD"}
