"""ExampleVenue on a real EVM: who may do what, what trades pay, and that what IMarginVenue shows is what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sha3 import keccak_256
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import Web3Exception

from infra.devnet import artifacts
from infra.devnet.anvil import Anvil, transact
from infra.devnet.evm_deploy import (
    CALL,
    DAY,
    INVERSE,
    PERP,
    PUT,
    EvmSpec,
    deploy,
    deploy_feed,
    deploy_lender,
    deploy_registry,
    deploy_token,
    deploy_venue,
)
from tests.contracts.evm_reference import Quorum, account_id

pytestmark = [pytest.mark.chain, pytest.mark.usefixtures("isolated")]

SALT, DELAY = b"\x07" * 32, 600
USD, USDC, UNIT = 10**8, 10**6, 10**18
PRICE = 3_000 * USD
FEED = b"ETH/USD".ljust(32, b"\0")
ANY = 2**255  # a limit that buys at any price; 0 sells at any
INTERFACE = Path(__file__).resolve().parents[2] / "proofs" / "contracts" / "IMarginVenue.sol"


@dataclass
class Market:
    """A venue with one instrument of each kind, and an account with collateral in both tokens."""

    chain: Anvil
    w3: Web3
    tokens: dict[str, Contract]
    feed: Contract
    venue: Contract
    ids: dict[str, int]
    expiry: int
    user: Any
    account: bytes

    def run(self, function: Any, sender: Any = None) -> Any:
        return transact(self.w3, function, sender or self.user)

    def trade(self, name: str, change: int, limit: int | None = None, sender: Any = None) -> Any:
        limit = (ANY if change > 0 else 0) if limit is None else limit
        return self.run(self.venue.functions.trade(self.account, self.ids[name], change, limit), sender)

    def reprice(self, price: int) -> None:
        transact(self.w3, self.feed.functions.setAnswer(price))

    def balance(self, token: str = "usdc") -> tuple[int, int, int]:
        """Return (amount, pending, owed)."""
        for address, *rest in self.venue.functions.balancesOf(self.account).call():
            if address == self.tokens[token].address:
                return tuple(rest)  # type: ignore[return-value]
        return 0, 0, 0

    def positions(self) -> dict[int, tuple[int, int, int]]:
        """Return (size, entry, funding) by instrument."""
        total, page = self.venue.functions.positionsOf(self.account, 0, 32).call()
        assert total == len(page) == len({p[0] for p in page})
        return {id: tuple(rest) for id, *rest in page}  # type: ignore[misc]

    def at(self, time: int) -> None:
        self.chain.rpc("evm_setNextBlockTimestamp", time)


@pytest.fixture(scope="module")
def market(chain: Anvil, w3: Web3) -> Market:
    now = int(w3.eth.get_block("latest")["timestamp"])
    registry = deploy_registry(w3, EvmSpec(tuple(Quorum(4).members), 3, now + DAY, SALT, {}))
    tokens = {"usdc": deploy_token(w3, "USD Coin", "USDC", 6), "weth": deploy_token(w3, "Wrapped Ether", "WETH", 18)}
    feed = deploy_feed(w3, "ETH / USD", PRICE)
    venue = deploy_venue(w3, deploy_lender(w3, registry, tokens["usdc"]), DELAY, tokens)
    ids, expiry = {}, now + 7 * DAY
    for name, kind in (("perp", PERP), ("inverse", INVERSE), ("call", CALL), ("put", PUT)):
        terms = (PRICE, expiry) if kind in (CALL, PUT) else (0, 0)
        settlement = tokens["weth" if kind == INVERSE else "usdc"].address
        transact(w3, venue.functions.list(kind, FEED, settlement, *terms, feed.address))
        ids[name] = int(venue.functions.instrumentCount().call())
        if kind in (CALL, PUT):
            transact(w3, venue.functions.quote(ids[name], 100 * USD, 110 * USD))
    user = w3.eth.accounts[3]
    made = Market(chain, w3, tokens, feed, venue, ids, expiry, user, account_id(31337, user, SALT))
    made.run(venue.functions.open(made.account, SALT))
    for name, amount in (("usdc", 10_000 * USDC), ("weth", UNIT)):
        made.run(tokens[name].functions.mint(user, amount))
        made.run(tokens[name].functions.approve(venue.address, 2**256 - 1))
        made.run(venue.functions.deposit(made.account, tokens[name].address, amount))
    return made


def refuse(function: Any, sender: Any, reason: str) -> None:
    with pytest.raises(Web3Exception, match=reason):
        function.call({"from": sender})


# The interface


def declared() -> tuple[dict[str, str], dict[str, str]]:
    """Return the interface's functions (signature to outputs) and events (signature to indexed names)."""
    text = re.sub(r"///?[^\n]*", "", INTERFACE.read_text(encoding="utf-8"))
    structs = {
        found[1]: "(" + ",".join(field.split()[0] for field in found[2].split(";") if field.strip()) + ")"
        for found in re.finditer(r"struct (\w+) \{(.*?)\}", text, re.DOTALL)
    }

    def types(parameters: str) -> str:
        words = [parameter.split()[0] for parameter in parameters.split(",") if parameter.strip()]
        return ",".join(
            structs.get(word.removesuffix("[]"), word.removesuffix("[]")) + word[len(word.rstrip("[]")) :]
            for word in words
        )

    functions = {
        f"{found[1]}({types(found[2])})": types(found[3] or "")
        for found in re.finditer(r"function (\w+)\((.*?)\)[^;]*?(?:returns \((.*?)\))?;", text, re.DOTALL)
    }
    events = {
        f"{found[1]}({types(found[2])})": ",".join(
            parameter.split()[2] for parameter in found[2].split(",") if " indexed " in parameter
        )
        for found in re.finditer(r"event (\w+)\((.*?)\);", text, re.DOTALL)
    }
    return functions, events


def expand(entry: dict[str, Any]) -> str:
    kind = str(entry["type"])
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(expand(part) for part in entry["components"]) + ")" + kind[5:]


def test_the_example_has_every_function_and_event_of_the_interface() -> None:
    abi, _ = artifacts.load("ExampleVenue")
    functions, events = declared()
    exported = {
        f"{e['name']}({','.join(map(expand, e['inputs']))})": ",".join(map(expand, e["outputs"]))
        for e in abi
        if e["type"] == "function"
    }
    logged = {
        f"{e['name']}({','.join(map(expand, e['inputs']))})": ",".join(i["name"] for i in e["inputs"] if i["indexed"])
        for e in abi
        if e["type"] == "event"
    }
    assert len(functions) == 8
    assert len(events) == 6
    assert functions.items() <= exported.items()
    assert events.items() <= logged.items()


def test_it_says_that_it_speaks_the_interface(market: Market) -> None:
    identity = 0
    for signature in declared()[0]:
        identity ^= int.from_bytes(keccak_256(signature.encode()).digest()[:4], "big")
    answers = market.venue.functions.supportsInterface
    assert answers(identity.to_bytes(4, "big")).call()
    assert answers(bytes.fromhex("01ffc9a7")).call()
    assert not answers(b"\xff" * 4).call()
    assert market.venue.functions.marginVenueVersion().call() == 1
    assert market.venue.functions.removalDelay().call() == DELAY


def test_instruments_are_told_as_they_were_listed(market: Market) -> None:
    for name, kind in (("perp", 1), ("inverse", 2), ("call", 3), ("put", 4)):
        terms = (PRICE, market.expiry) if kind > 2 else (0, 0)
        settlement = market.tokens["weth" if kind == 2 else "usdc"].address
        told = market.venue.functions.instrument(market.ids[name]).call()
        assert tuple(told) == (kind, 1, FEED, settlement, *terms, 0)
    refuse(market.venue.functions.instrument(99), market.user, "unknown instrument")


def test_positions_come_in_pages(market: Market) -> None:
    for name in ("perp", "inverse", "call", "put"):
        market.trade(name, UNIT)
    every = market.venue.functions.positionsOf(market.account, 0, 32).call()[1]
    assert [p[0] for p in every] == [market.ids[n] for n in ("perp", "inverse", "call", "put")]
    for first, count, expected in ((0, 3, every[:3]), (3, 3, every[3:]), (4, 3, []), (0, 0, []), (1, 2, every[1:3])):
        assert market.venue.functions.positionsOf(market.account, first, count).call() == [4, expected]


def test_every_change_names_the_account_in_a_topic(market: Market) -> None:
    usdc = market.tokens["usdc"].address
    market.run(market.tokens["usdc"].functions.mint(market.user, USDC))
    for function in (
        market.venue.functions.deposit(market.account, usdc, USDC),
        market.venue.functions.trade(market.account, market.ids["perp"], UNIT, ANY),
        market.venue.functions.request(market.account, usdc, USDC),
        market.venue.functions.cancel(1),
    ):
        receipt = market.run(function)
        own = [log for log in receipt["logs"] if log["address"] == market.venue.address]
        assert own
        assert all(bytes(log["topics"][1]) == market.account for log in own)


# Collateral


def test_collateral_leaves_by_its_controller_after_the_delay(market: Market) -> None:
    venue, usdc, stranger = market.venue.functions, market.tokens["usdc"], market.w3.eth.accounts[4]
    refuse(venue.open(market.account, SALT), stranger, "not the controller")
    refuse(venue.request(market.account, usdc.address, 1), stranger, "not the controller")
    refuse(venue.request(market.account, usdc.address, 10_000 * USDC + 1), market.user, "margin")
    market.run(venue.request(market.account, usdc.address, 4_000 * USDC))
    assert market.balance() == (10_000 * USDC, 4_000 * USDC, 0)
    refuse(venue.claim(1, stranger), market.user, "too early")
    market.run(venue.request(market.account, usdc.address, 1))
    market.run(venue.cancel(2))
    asked = int(venue.requests(1).call()[3])
    market.at(asked)
    refuse(venue.claim(1, stranger), stranger, "not the controller")
    market.at(asked + 1)
    market.run(venue.claim(1, stranger))
    assert usdc.functions.balanceOf(stranger).call() == 4_000 * USDC
    assert market.balance() == (6_000 * USDC, 0, 0)
    refuse(venue.claim(1, stranger), market.user, "unknown request")


def test_what_positions_need_by_then_is_not_paid_out(market: Market) -> None:
    market.run(market.venue.functions.request(market.account, market.tokens["usdc"].address, 9_000 * USDC))
    market.trade("perp", 3 * UNIT)  # needs 900 of the thousand
    market.reprice(PRICE - 100 * USD)
    market.at(int(market.venue.functions.requests(1).call()[3]))
    market.chain.mine()
    market.reprice(PRICE - 100 * USD)
    refuse(market.venue.functions.claim(1, market.user), market.user, "margin")
    assert market.balance() == (10_000 * USDC, 9_000 * USDC, 0)


def test_a_pause_stops_trades_and_claims(market: Market) -> None:
    venue, owner = market.venue.functions, market.w3.eth.accounts[0]
    market.run(venue.request(market.account, market.tokens["usdc"].address, 1))
    refuse(venue.setPaused(True), market.user, "not the owner")
    market.run(venue.setPaused(True), owner)
    assert venue.paused().call()
    refuse(venue.trade(market.account, market.ids["perp"], UNIT, ANY), market.user, "paused")
    refuse(venue.claim(1, market.user), market.user, "paused")


# Trading


def test_only_the_controller_trades_within_margin_and_limit(market: Market) -> None:
    venue, stranger = market.venue.functions, market.w3.eth.accounts[4]
    perp = market.ids["perp"]
    refuse(venue.trade(market.account, perp, UNIT, ANY), stranger, "not the controller")
    refuse(venue.trade(market.account, 99, UNIT, ANY), market.user, "unknown instrument")
    refuse(venue.trade(market.account, perp, 0, ANY), market.user, "size")
    refuse(venue.trade(market.account, perp, UNIT, PRICE - 1), market.user, "limit")
    refuse(venue.trade(market.account, perp, -UNIT, PRICE + 1), market.user, "limit")
    refuse(venue.trade(market.account, perp, 34 * UNIT, ANY), market.user, "margin")
    refuse(venue.trade(market.account, market.ids["call"], -50 * UNIT, 0), market.user, "margin")
    market.trade("perp", 33 * UNIT, PRICE)
    market.chain.rpc("evm_increaseTime", 3_601)
    market.chain.mine()
    refuse(venue.trade(market.account, perp, -UNIT, 0), market.user, "no price")


def test_a_linear_perp_pays_what_the_price_moved(market: Market) -> None:
    market.trade("perp", 2 * UNIT)
    market.reprice(PRICE + 300 * USD)
    market.trade("perp", UNIT)  # (2·3000 + 3300) / 3
    assert market.positions() == {market.ids["perp"]: (3 * UNIT, 3_100 * USD, 0)}
    market.reprice(PRICE + 200 * USD)
    market.trade("perp", -UNIT)
    assert market.positions() == {market.ids["perp"]: (2 * UNIT, 3_100 * USD, 0)}
    assert market.balance()[0] == 10_100 * USDC
    market.trade("perp", -3 * UNIT)  # through zero: two gain 100 each, one is short from here
    assert market.positions() == {market.ids["perp"]: (-UNIT, 3_200 * USD, 0)}
    assert market.balance()[0] == 10_300 * USDC
    market.reprice(PRICE + 250 * USD)
    market.trade("perp", UNIT)
    assert market.positions() == {}
    assert market.balance() == (10_250 * USDC, 0, 0)


def test_an_inverse_perp_pays_in_the_underlying(market: Market) -> None:
    market.trade("inverse", 1_000 * UNIT)
    market.reprice(PRICE * 2)
    market.trade("inverse", 1_000 * UNIT)
    ((size, entry, _),) = market.positions().values()
    assert (size, entry) == (2_000 * UNIT, 4_000 * USD)  # harmonic: 2 / (1/3000 + 1/6000)
    market.trade("inverse", -2_000 * UNIT)
    gained = Fraction(2_000) * (Fraction(1, 4_000) - Fraction(1, 6_000)) * UNIT
    assert market.balance("weth")[0] == UNIT + gained.__floor__()
    assert market.balance()[0] == 10_000 * USDC


def test_a_loss_beyond_the_balance_is_owed(market: Market) -> None:
    market.trade("perp", 30 * UNIT)
    market.reprice(PRICE - 400 * USD)
    market.trade("perp", -30 * UNIT)
    assert market.balance() == (0, 0, 2_000 * USDC)
    refuse(market.venue.functions.trade(market.account, market.ids["perp"], 1, ANY), market.user, "margin")


def test_longs_pay_shorts_funding_while_time_passes(market: Market) -> None:
    rate = 10**10  # 1e-8 of the notional per second
    owner, perp = market.w3.eth.accounts[0], market.ids["perp"]
    refuse(market.venue.functions.setFundingRate(perp, rate), market.user, "not the owner")
    market.run(market.venue.functions.setFundingRate(perp, rate), owner)
    market.trade("perp", -4 * UNIT)
    began = market.w3.eth.get_block("latest")["timestamp"]
    market.at(began + 1_000)
    market.chain.mine()
    due = 4 * 3_000 * USDC * 1_000 // 10**8
    assert market.positions()[perp] == (-4 * UNIT, PRICE, due)
    market.at(began + 2_000)
    market.trade("perp", -UNIT)
    assert market.positions()[perp] == (-5 * UNIT, PRICE, 0)
    assert market.balance()[0] == 10_000 * USDC + 2 * due


def test_options_trade_at_the_quote_and_pay_the_first_price_after_expiry(market: Market) -> None:
    venue = market.venue.functions
    market.trade("call", 2 * UNIT, 110 * USD)
    market.trade("put", -UNIT, 100 * USD)
    assert market.balance()[0] == (10_000 - 220 + 100) * USDC
    assert market.positions() == {market.ids["call"]: (2 * UNIT, 0, 0), market.ids["put"]: (-UNIT, 0, 0)}
    refuse(venue.settle(market.ids["call"], 2**64 + 1), market.user, "not to be settled")

    market.at(market.expiry)
    market.chain.mine()
    for name in ("call", "put"):
        assert venue.instrument(market.ids[name]).call()[1] == 2
        refuse(venue.trade(market.account, market.ids[name], 1, ANY), market.user, "expired")
        refuse(venue.collect(market.account, market.ids[name]), market.user, "not settled")
    market.reprice(PRICE + 150 * USD)
    market.reprice(PRICE + 500 * USD)
    newest = int(market.feed.functions.latestRound().call())
    refuse(venue.settle(market.ids["call"], newest), market.user, "not the first")
    refuse(venue.settle(market.ids["call"], newest - 2), market.user, "before the expiry")
    for name, payout in (("call", 150 * USDC), ("put", 0)):
        market.run(venue.settle(market.ids[name], newest - 1), market.w3.eth.accounts[5])
        assert tuple(venue.instrument(market.ids[name]).call()[i] for i in (1, 6)) == (3, payout)
        market.run(venue.collect(market.account, market.ids[name]), market.w3.eth.accounts[5])
    assert market.positions() == {}
    assert market.balance()[0] == (9_880 + 300) * USDC


def test_a_written_option_costs_what_it_pays(market: Market) -> None:
    market.trade("put", -3 * UNIT)
    market.at(market.expiry + 5)
    market.reprice(PRICE - 1_000 * USD)
    market.run(market.venue.functions.settle(market.ids["put"], int(market.feed.functions.latestRound().call())))
    market.run(market.venue.functions.collect(market.account, market.ids["put"]))
    assert market.balance()[0] == (10_000 + 300 - 3_000) * USDC


def test_a_position_is_readable_though_its_feed_fails(market: Market) -> None:
    market.trade("perp", UNIT)
    market.chain.rpc("anvil_setCode", market.feed.address, "0xfe")
    market.chain.mine()
    assert set(market.positions()) == {market.ids["perp"]}
    assert market.balance()[0] == 10_000 * USDC


def test_a_full_account_takes_no_more_positions(market: Market) -> None:
    owner = market.w3.eth.accounts[0]
    most = market.venue.functions.maxPositions().call()
    for _ in range(most):
        listed = market.venue.functions.list(
            CALL, FEED, market.tokens["usdc"].address, PRICE, market.expiry, market.feed.address
        )
        market.run(listed, owner)
        id = int(market.venue.functions.instrumentCount().call())
        market.run(market.venue.functions.quote(id, 1, 1), owner)
        market.run(market.venue.functions.trade(market.account, id, UNIT, ANY))
    refuse(market.venue.functions.trade(market.account, market.ids["call"], UNIT, ANY), market.user, "too many")
    assert len(market.positions()) == most


def test_terms_that_make_no_sense_are_not_listed(market: Market) -> None:
    owner, feed, usdc = market.w3.eth.accounts[0], market.feed.address, market.tokens["usdc"].address
    for arguments, why in (
        ((5, FEED, usdc, 0, 0, feed), "kind"),
        ((CALL, FEED, usdc, 0, market.expiry, feed), "strike"),
        ((PUT, FEED, usdc, PRICE, 1, feed), "expiry"),
        ((PERP, FEED, usdc, PRICE, 0, feed), "a perp has no strike"),
        ((PERP, FEED, feed, 0, 0, feed), "settlement"),
        ((PERP, bytes(32), usdc, 0, 0, feed), "underlying"),
    ):
        refuse(market.venue.functions.list(*arguments), owner, why)
    refuse(market.venue.functions.list(PERP, FEED, usdc, 0, 0, feed), market.user, "not the owner")
    with pytest.raises(Web3Exception, match="token twice"):
        deploy(market.w3, "ExampleVenue", usdc, DELAY, [usdc, usdc])


changes = st.lists(
    st.tuples(st.sampled_from(("perp", "inverse")), st.integers(-3, 3).filter(bool), st.integers(1_000, 5_000)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=5)
@given(trades=changes)
def test_no_sequence_of_trades_pays_more_than_the_price_moved(
    market: Market, trades: list[tuple[str, int, int]]
) -> None:
    """Beside exact fractions: what the account ends with is what it gained, less at most a unit of rounding a trade."""
    snapshot = market.chain.rpc("evm_snapshot")
    exact = {"usdc": Fraction(10_000 * USDC), "weth": Fraction(UNIT)}
    gained, sizes = {"perp": Fraction(0), "inverse": Fraction(0)}, {"perp": 0, "inverse": 0}
    for name, change, price in [*trades, ("perp", 0, 3_000), ("inverse", 0, 3_000)]:
        market.reprice(price * USD)
        size = (change or -sizes[name]) * (UNIT // 100 if name == "perp" else 10 * UNIT) if change else -sizes[name]
        if size == 0:
            continue
        market.trade(name, size)
        sizes[name] += size
        gained[name] -= Fraction(size, UNIT) * (price if name == "perp" else -Fraction(1, price))
    exact["usdc"] += gained["perp"] * USDC
    exact["weth"] += gained["inverse"] * UNIT
    assert market.positions() == {}
    for token, expected in exact.items():
        paid = market.balance(token)[0]
        assert paid <= expected
        # An average is rounded to 1e-8 USD, a payment to a base unit.
        assert expected - paid <= len(trades) * (2 if token == "usdc" else 10**9)
    market.chain.rpc("evm_revert", snapshot)
