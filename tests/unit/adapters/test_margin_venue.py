"""The margin venue's adapter: what is well said is read word for word, and nothing else ever looks like a number."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from eth_abi import encode
from hypothesis import given
from hypothesis import strategies as st

from adapters.evm.abi import Call, selector
from adapters.evm.margin_venue import PAGE, MarginVenue
from aggregator.domain.rows import AssetRow
from aggregator.domain.snapshot import DEBT_UNREADABLE, Contract, Finding, Position, Subject

CHAIN, VENUE = "eip155:31337", "0x" + "7e" * 20
USDC, WETH, SHARE, STRANGE = ("0x" + two * 20 for two in ("c0", "ee", "5a", "99"))
ME, OTHER, NOBODY = ("0x" + two * 32 for two in ("ab", "cd", "77"))
SUBJECTS = tuple(Subject(account, None) for account in (ME, OTHER, NOBODY))
UNIT, USD = 10**18, 10**8
ETH = b"ETH/USD".ljust(32, b"\0")
ROWS = "(uint256,int256,uint256,int256)[]"
VECTOR = json.loads(
    (Path(__file__).resolve().parents[2] / "conformance/vectors/evm/anvil_margin-venue.json").read_text()
)


def asset(address: str, kind: str, decimals: int, feed: str, **more: Any) -> AssetRow:
    fields = {"id": f"{CHAIN}/erc20:{address}", "symbol": "X", "kind": kind, "decimals": decimals, "feed": feed}
    return AssetRow.model_validate({**fields, "policy": "p", **more})


ASSETS = {
    row.id: row
    for row in (
        asset(USDC, "erc20", 6, "USDC/USD"),
        asset(WETH, "erc20", 18, "ETH/USD"),
        asset(SHARE, "erc4626", 9, "USDC/USD", underlying=f"{CHAIN}/erc20:{USDC}", rate_cap=1.1),
    )
}
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Said:
    """What a venue says: (instrument, size, entry, funding), (token, amount, pending, owed), and terms by id."""

    version: int = 1
    delay: int = 600
    paused: int = 0
    most: int = 64
    positions: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    balances: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    instruments: Mapping[int, Row] = field(default_factory=dict)
    worth: int = 2  # base units of the underlying per share

    def answer(self, call: Call) -> bytes | None:
        """Encode one answer with eth-abi, as a contract would."""
        target, data = call
        ask, words = data[:8], [int(data[i : i + 64], 16) for i in range(8, len(data), 64)]
        if ask == selector("convertToAssets(uint256)"):
            return encode(["uint256"], [words[0] * self.worth])
        assert target == VENUE[2:]
        account = f"0x{words[0]:064x}" if words else ""
        match ask:
            case _ if ask == selector("marginVenueVersion()"):
                return encode(["uint256"], [self.version])
            case _ if ask == selector("removalDelay()"):
                return encode(["uint256"], [self.delay])
            case _ if ask == selector("paused()"):
                return encode(["uint256"], [self.paused])
            case _ if ask == selector("maxPositions()"):
                return encode(["uint256"], [self.most])
            case _ if ask == selector("balancesOf(bytes32)"):
                rows = self.balances.get(account, ())
                return encode(["(address,uint256,uint256,uint256)[]"], [rows])
            case _ if ask == selector("positionsOf(bytes32,uint256,uint256)"):
                rows = self.positions.get(account, ())
                page = rows[words[1] : words[1] + words[2]]
                return encode(["uint256", ROWS], [len(rows), page])
            case _ if ask == selector("instrument(uint256)"):
                terms = self.instruments.get(words[0])
                kinds = ["uint8", "uint8", "bytes32", "address", "uint256", "uint64", "uint256"]
                return None if terms is None else encode(kinds, terms)
        raise AssertionError(ask)


PERP, INVERSE = (1, 1, ETH, USDC, 0, 0, 0), (2, 1, ETH, WETH, 0, 0, 0)
CALL, PUT = (3, 1, ETH, USDC, 3_000 * USD, 2_000_000_000, 0), (4, 1, ETH, USDC, 2_500 * USD, 2_000_000_000, 0)
GOOD = Said(
    positions={
        ME: [(1, -5 * UNIT, 3_000 * USD, -7), (2, 900 * UNIT, 2_900 * USD, 11), (3, 2 * UNIT, 0, 0), (4, -UNIT, 0, 0)],
        OTHER: [(1, UNIT, 3_100 * USD, 0)],
    },
    balances={ME: [(USDC, 500, 20, 0), (WETH, 0, 0, 9), (SHARE, 100, 40, 0)], OTHER: [(USDC, 1, 0, 0)]},
    instruments={1: PERP, 2: INVERSE, 3: CALL, 4: PUT},
)


def read(
    said: Said,
    subjects: Sequence[Subject] = SUBJECTS,
    change: Callable[[Call, bytes | None], bytes | None] | None = None,
) -> tuple[tuple[Position, ...], tuple[Finding, ...]]:
    """Drive the adapter; every call may be answered otherwise by ``change``."""
    flow = MarginVenue(CHAIN, VENUE.upper().replace("X", "x"), ASSETS).flow(subjects)
    try:
        calls = next(flow)
        while True:
            answers = [said.answer(call) for call in calls]
            calls = flow.send([change(c, a) for c, a in zip(calls, answers, strict=True)] if change else answers)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def of(positions: Sequence[Position], account: str) -> list[Position]:
    return [p for p in positions if p.account == account]


def verify_blind(said: Said, why: str) -> None:
    """Nothing of ME counts and one finding says that it may owe anything; OTHER is read as ever."""
    positions, findings = read(said)
    assert of(positions, ME) == []
    assert [p.contract.kind for p in of(positions, OTHER)] == ["", "perp"]
    (finding,) = findings
    assert (finding.code, finding.scope) == (DEBT_UNREADABLE, ME)
    assert VENUE in finding.detail
    assert why in finding.detail


def mine(*rows: Row, **terms: Row) -> Said:
    """Return GOOD with other positions of ME, and other terms of instruments (``i3=…``)."""
    instruments = {**GOOD.instruments, **{int(name[1:]): row for name, row in terms.items()}}
    return replace(GOOD, positions={**GOOD.positions, ME: rows or GOOD.positions[ME]}, instruments=instruments)


def test_positions_and_balances_are_read_as_they_are_told() -> None:
    positions, findings = read(GOOD)
    assert findings == ()
    usdc, weth = f"{CHAIN}/erc20:{USDC}", f"{CHAIN}/erc20:{WETH}"
    place = {"control": "seizable", "removal_delay": 600, "origin": VENUE}
    cash = (ME, CHAIN, "margin-venue")
    assert of(positions, ME) == [
        Position(*cash, usdc, 500, usdc, 500, pending=20, **place),  # type: ignore[arg-type]
        Position(*cash, weth, 9, weth, 9, side="debt", origin=VENUE),
        Position(*cash, f"{CHAIN}/erc20:{SHARE}", 100, usdc, 0, pending=0, **place),  # type: ignore[arg-type]
        *(
            Position(*cash, f"{CHAIN}/contract:{VENUE}/{id}", size, unit, 0, side=side, contract=contract, **place)  # type: ignore[arg-type]
            for id, size, unit, side, contract in (
                (1, 5 * UNIT, usdc, "debt", Contract("perp", "ETH/USD", entry=3_000 * USD, funding=-7)),
                (2, 900 * UNIT, weth, "asset", Contract("inverse", "ETH/USD", entry=2_900 * USD, funding=11)),
                (3, 2 * UNIT, usdc, "asset", Contract("call", "ETH/USD", 3_000 * USD, 2_000_000_000)),
                (4, UNIT, usdc, "debt", Contract("put", "ETH/USD", 2_500 * USD, 2_000_000_000)),
            )
        ),
    ]
    assert of(positions, NOBODY) == []
    # Whom it is read beside makes no difference.
    for subject in SUBJECTS:
        assert read(GOOD, [subject])[0] == tuple(of(positions, subject.account))


def test_every_instrument_is_asked_for_once_and_only_if_somebody_is_in_it() -> None:
    said = replace(GOOD, instruments={**GOOD.instruments, 5: PERP})
    asked: list[Call] = []
    read(said, change=lambda call, answer: asked.append(call) or answer)
    terms = [int(data[8:], 16) for _, data in asked if data.startswith(selector("instrument(uint256)"))]
    assert terms == [1, 2, 3, 4]
    assert len(asked) == 4 + 2 * len(SUBJECTS) + len(terms) + 2  # two conversions: all shares, pending ones


def test_accounts_with_many_positions_are_read_by_pages() -> None:
    rows = [(id, UNIT * (-1) ** id, 3_000 * USD, 0) for id in range(1, 2 * PAGE + 6)]
    said = mine(*rows, **{f"i{id}": PERP for id, *_ in rows})
    said = replace(said, most=2 * PAGE + 5)
    positions, findings = read(said)
    assert findings == ()
    contracts = [p for p in of(positions, ME) if p.contract.kind]
    assert [int(p.asset.rpartition("/")[2]) for p in contracts] == [id for id, *_ in rows]
    assert [p.side for p in contracts] == ["asset" if size > 0 else "debt" for _, size, *_ in rows]
    verify_blind(replace(said, most=2 * PAGE + 4), "69 positions, more than the 68")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(1, 0, 3_000 * USD, 0)], "size 0"),
        ([(1, 2**127, 3_000 * USD, 0)], "of size"),
        ([(1, -(2**255), 3_000 * USD, 0)], "of size"),
        ([(1, UNIT, 2**80, 0)], "absurd entry"),
        ([(1, UNIT, USD, -(2**127))], "absurd entry or funding"),
        ([(1, UNIT, 0, 0)], "without an entry"),
        ([(3, UNIT, USD, 0)], "an option with an entry"),
        ([(3, UNIT, 0, 1)], "an option with an entry price or funding"),
        ([(1, UNIT, USD, 0), (2, UNIT, USD, 0), (1, -UNIT, USD, 0)], "two positions in one instrument"),
        ([(77, UNIT, USD, 0)], "instrument 77"),
        ([(i, UNIT, USD, 0) for i in range(65)], "65 positions, more than the 64"),
    ],
)
def test_a_position_that_none_can_be_makes_its_account_blind(rows: list[Row], why: str) -> None:
    verify_blind(mine(*rows), why)


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ((0, *CALL[1:]), "kind 0"),
        ((5, *CALL[1:]), "kind 5"),
        ((3, 0, *CALL[2:]), "in state 0"),
        ((3, 4, *CALL[2:]), "in state 4"),
        ((3, 1, b"ETH/\xd0\xa3SD".ljust(32, b"\0"), *CALL[3:]), "ASCII"),
        ((3, 1, b"ETH/USD\0x".ljust(32, b"\0"), *CALL[3:]), "ASCII"),
        ((3, 1, b"\0ETH/USD".ljust(32, b"\0"), *CALL[3:]), "ASCII"),
        ((3, 1, b"ETH USD".ljust(32, b"\0"), *CALL[3:]), "ASCII"),
        ((3, 1, bytes(32), *CALL[3:]), "ASCII"),
        ((*CALL[:3], STRANGE, *CALL[4:]), f"{STRANGE}, which is no configured"),
        ((*CALL[:3], SHARE, *CALL[4:]), f"{SHARE}, which is no configured"),
        ((*CALL[:4], 0, *CALL[5:]), "strike 0"),
        ((*CALL[:4], 2**80, *CALL[5:]), "strike"),
        ((*CALL[:5], 0, 0), "expiry 0"),
        ((*CALL[:5], 2**40, 0), "expiry"),
        ((*CALL[:6], 1), "state 1 that pays 1"),
        ((3, 3, *CALL[2:6], 2**127), "that pays"),
    ],
)
def test_an_instrument_that_none_can_be_makes_who_is_in_it_blind(terms: Row, why: str) -> None:
    verify_blind(mine(i3=terms), why)


@pytest.mark.parametrize(
    ("kind", "terms", "why"),
    [
        (2, (2, 1, ETH, USDC, 0, 0, 0), "an inverse perp on ETH/USD that settles in"),
        (2, (2, 1, ETH, WETH, 5, 0, 0), "a perp in state 1 with a strike"),
        (2, (2, 1, ETH, WETH, 0, 5, 0), "a perp in state 1"),
        (2, (2, 3, ETH, WETH, 0, 0, 0), "a perp in state 3"),
        (2, (2, 1, ETH, WETH, 0, 0, 5), "payout"),
    ],
)
def test_a_perp_has_the_terms_of_a_perp(kind: int, terms: Row, why: str) -> None:
    verify_blind(mine(**{f"i{kind}": terms}), why)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(USDC, 5, 6, 0)], "more pending"),
        ([(USDC, 5, 0, 1)], "both had and owed"),
        ([(USDC, 5, 0, 0), (USDC, 6, 0, 0)], "two balances"),
        ([(f"0x{i:040x}", 1, 0, 0) for i in range(17)], "too long"),
        ([(SHARE, 0, 0, 5)], "a debt in shares"),
    ],
)
def test_a_balance_that_none_can_be_makes_its_account_blind(rows: list[Row], why: str) -> None:
    verify_blind(replace(GOOD, balances={**GOOD.balances, ME: rows}), why)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": 2}, "marginVenueVersion() is 2"),
        ({"version": 0}, "marginVenueVersion() is 0"),
        ({"paused": 2}, "paused()"),
        ({"most": 0}, "maxPositions() is 0"),
        ({"most": 257}, "maxPositions() is 257"),
    ],
)
def test_a_venue_that_cannot_be_understood_may_be_owed_anything_by_anybody(changed: dict[str, Any], why: str) -> None:
    positions, findings = read(replace(GOOD, **changed))
    assert positions == ()
    assert [(f.code, f.scope) for f in findings] == [(DEBT_UNREADABLE, s.account) for s in SUBJECTS]
    assert all(why in f.detail for f in findings)


def test_what_a_paused_venue_has_to_pay_cannot_be_taken() -> None:
    honest, _ = read(GOOD)
    positions, findings = read(replace(GOOD, paused=1))
    assert [p._replace(control="none") for p in honest] == list(positions)
    assert {(f.code, f.scope) for f in findings} == {("venue-health", ME), ("venue-health", OTHER)}


def test_a_token_that_is_not_configured_is_told_beside_its_position() -> None:
    rows = [(STRANGE, 5, 0, 0), ("0x" + "98" * 20, 0, 0, 7)]
    positions, findings = read(replace(GOOD, balances={**GOOD.balances, ME: rows}))
    spot = [p for p in of(positions, ME) if not p.contract.kind]
    assert [(p.side, p.amount, p.asset[-40:]) for p in spot] == [("asset", 5, "99" * 20), ("debt", 7, "98" * 20)]
    assert [(f.code, f.scope) for f in findings] == [("unknown-asset", ME)] * 2


def test_shares_are_worth_what_they_convert_to_up_to_the_cap() -> None:
    rows = [(SHARE, 5 * 10**9, 10**9, 0)]
    said = replace(GOOD, positions={}, balances={ME: rows}, worth=1)
    ((position,), ()) = read(said)
    assert (position.quantity, position.amount, position.pending) == (5 * 10**9, 5_500_000, 1_100_000)
    lost = selector("convertToAssets(uint256)")
    positions, (finding,) = read(said, change=lambda call, answer: None if call[1].startswith(lost) else answer)
    assert positions == ()
    assert (finding.code, finding.scope) == ("unreadable", ME)


@pytest.mark.parametrize(
    ("size", "payout", "cash", "expected"),
    [
        (2 * UNIT, 150, 500, ("asset", 800, 20)),
        (-2 * UNIT, 150, 500, ("asset", 200, 20)),
        (-2 * UNIT, 245, 500, ("asset", 10, 10)),
        (-3 * UNIT, 200, 500, ("debt", 100, 0)),
        (UNIT // 3, 100, 500, ("asset", 533, 20)),  # 33.3 rounds down
        (-UNIT // 3, 100, 500, ("asset", 466, 20)),  # and what is owed up
        (-2 * UNIT, 250, 500, None),
        (5 * UNIT, 0, 500, ("asset", 500, 20)),
    ],
)
def test_what_a_settled_option_pays_is_cash(size: int, payout: int, cash: int, expected: Row | None) -> None:
    said = mine((3, size, 0, 0), i3=(3, 3, *CALL[2:6], payout))
    said = replace(said, balances={ME: [(USDC, cash, 20, 0)]})
    positions, findings = read(said, [SUBJECTS[0]])
    assert findings == ()
    assert [(p.side, p.amount, p.pending) for p in positions] == ([expected] if expected else [])
    assert all(p.contract.kind == "" and p.quantity == p.amount for p in positions)


def test_an_expired_option_is_worth_nothing_certain_until_it_is_settled() -> None:
    expired = mine(i3=(3, 2, *CALL[2:]))
    positions, (finding,) = read(expired)
    assert [p.contract.kind for p in of(positions, ME)] == ["", "", "", "perp", "inverse", "put"]
    assert (finding.code, finding.scope) == ("unreadable", ME)
    positions, (finding,) = read(mine(i4=(4, 2, *PUT[2:])))
    assert [p.contract.kind for p in of(positions, ME)] == ["", "", "", "perp", "inverse", "call"]
    assert (finding.code, finding.scope) == (DEBT_UNREADABLE, ME)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(["uint256", ROWS], [1, [(1, UNIT, USD, 0)]])[:-1],
        encode(["uint256", ROWS], [1, [(1, UNIT, USD, 0)]]) + bytes(32),
        encode(["uint256", ROWS], [2, [(1, UNIT, USD, 0)]]),
        encode(["uint256", ROWS], [0, [(1, UNIT, USD, 0)]]),
        encode(["uint256", ROWS], [2**255, []]),
        encode(["uint256", "uint256", "uint256"], [0, 32, 0]),
        encode(["uint256", "uint256", "uint256"], [0, 64, 2**255]),
        encode([f"(uint256,{ROWS})"], [(1, [(1, UNIT, USD, 0)])]),
        b"\x01",
        None,
    ],
)
def test_a_page_of_another_shape_is_no_page(encoded: bytes | None) -> None:
    ask = selector("positionsOf(bytes32,uint256,uint256)") + ME[2:]
    positions, (finding,) = read(GOOD, change=lambda call, answer: encoded if call[1].startswith(ask) else answer)
    assert of(positions, ME) == []
    assert (finding.code, finding.scope) == (DEBT_UNREADABLE, ME)


# What the example venue on Anvil said


def test_recorded_bytes_with_any_word_changed_never_lose_a_debt_in_silence() -> None:
    """Flip bits of every answered word: what is read has as many positions, or a finding tells that it has not."""
    answers = {
        tuple(key.split(":")): bytes.fromhex(returned[2:]) for key, returned in VECTOR["answers"].items() if returned
    }
    assets = {row["id"]: AssetRow(**row) for row in VECTOR["assets"]}
    subjects = [Subject(*s) for s in VECTOR["subjects"]]

    def drive(changed: Mapping[Any, bytes]) -> tuple[tuple[Position, ...], tuple[Finding, ...]]:
        flow = MarginVenue(CHAIN, VECTOR["arguments"][0], assets).flow(subjects)
        try:
            calls = next(flow)
            while True:
                calls = flow.send([changed.get(call) for call in calls])
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    honest, found = drive(answers)
    assert found == ()
    for call, good in answers.items():
        for at in range(0, len(good), 32):
            for bit in (0, 7, 128, 255):
                word = int.from_bytes(good[at : at + 32], "big") ^ (1 << bit)
                positions, findings = drive({**answers, call: good[:at] + word.to_bytes(32, "big") + good[at + 32 :]})
                assert len(positions) == len(honest) or findings, (call, at, bit)
                assert all(p.quantity > 0 for p in positions)


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_whatever_a_venue_says_is_read_or_named(seed: int, spoiled: int) -> None:
    """Spoil some answers at random: rows of the right kind, or a finding on the account, and nobody else is touched."""
    random = Random(seed)
    honest, _ = read(GOOD)
    touched: set[str] = set()

    def change(call: Call, answer: bytes | None) -> bytes | None:
        if answer is None or random.random() > spoiled / 8 or ME[2:] not in call[1]:
            return answer
        touched.add(ME)
        at, junk = random.randrange(len(answer) + 1), random.randbytes(random.choice((1, 31, 32, 64)))
        return random.choice(
            (None, b"", answer[:at], junk, answer + junk, answer[:at] + junk + answer[at + len(junk) :])
        )

    positions, findings = read(GOOD, change=change)
    assert of(positions, OTHER) == of(honest, OTHER)
    assert {f.scope for f in findings} <= touched
    assert {f.code for f in findings} <= {DEBT_UNREADABLE, "unreadable", "unknown-asset"}
    for p in of(positions, ME):
        kind = p.contract.kind
        assert kind in ("", "perp", "inverse", "call", "put")
        assert 0 < p.quantity < 2**256
        assert 0 <= p.pending <= p.amount
        assert (kind == "") == (p.contract == Contract())
        if kind:
            assert p.amount == 0
            assert (p.contract.entry > 0) == (kind in ("perp", "inverse"))
            assert (p.contract.strike > 0) == (p.contract.expiry > 0) == (kind in ("call", "put"))
