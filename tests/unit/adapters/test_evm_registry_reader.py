"""The registry's adapter: every account has a position that says what was drawn and from which epoch on more can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from eth_abi import encode
from eth_utils.abi import abi_to_signature

import proofs
from adapters.evm.abi import Answer, selector, topic
from adapters.evm.reader import decode_log_words
from adapters.evm.registry import CONCERNS_ALL, Registry
from aggregator.domain.budgets import Drawn
from aggregator.domain.snapshot import DEBT_UNREADABLE, Finding, Position, Subject

CHAIN, ADDRESS = "eip155:31337", "0x" + "ab" * 20
ACCOUNTS = tuple("0x" + two * 32 for two in ("11", "22", "33"))
SUBJECTS = tuple(Subject(account, None) for account in ACCOUNTS)
PERIOD, NOW = 60, 900 * 60 + 59.9
LATEST = encode(["uint64", "bytes32", "uint64", "uint64", "uint64", "uint64"], [900, b"\x01" * 32, 3, 4, 5, 6])
SET = encode(["uint256"], [2])
USED = [encode(["uint256"], [amount]) for amount in (0, 7 * 10**8, 2**128 - 1)]


def read(answers: Sequence[Answer], now: float = NOW) -> tuple[tuple[Position, ...], tuple[Finding, ...]]:
    flow = Registry(CHAIN, ADDRESS.upper().replace("X", "x"), PERIOD, lambda: now).flow(SUBJECTS)
    asked = next(flow)
    target = ADDRESS[2:]
    used = [(target, selector("used(bytes32)") + account[2:]) for account in ACCOUNTS]
    assert list(asked) == [(target, selector("latest()")), (target, selector("newestSetId()")), *used]
    try:
        flow.send(answers)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it asks once")


def test_every_account_has_a_position() -> None:
    positions, findings = read([LATEST, SET, *USED])
    assert findings == ()
    asset = f"{CHAIN}/registry:{ADDRESS}"
    place = {"side": "debt", "origin": ADDRESS, "drawn": Drawn(posted=900, set_id=2)}
    assert positions == tuple(
        Position(account, CHAIN, "registry", asset, used, asset, used, **place)  # type: ignore[arg-type]
        for account, used in zip(ACCOUNTS, (0, 7 * 10**8, 2**128 - 1), strict=True)
    )


def test_before_the_first_statement_nothing_was_posted() -> None:
    positions, _ = read([bytes(192), SET, *USED])
    assert {p.drawn for p in positions} == {Drawn(posted=0, set_id=2)}


@pytest.mark.parametrize("answer", [None, b"", bytes(31), encode(["uint256"], [2**128])])
def test_what_cannot_be_read_of_an_account_may_be_any_debt(answer: Answer) -> None:
    positions, findings = read([LATEST, SET, USED[0], answer, USED[2]])
    assert [p.account for p in positions] == [ACCOUNTS[0], ACCOUNTS[2]]
    (finding,) = findings
    assert (finding.code, finding.scope) == (DEBT_UNREADABLE, ACCOUNTS[1])
    assert ADDRESS in finding.detail


@pytest.mark.parametrize(
    ("latest", "newest_set"),
    [(None, SET), (LATEST, None), (b"\x01" * 32, SET), (LATEST, bytes(32)), (LATEST, b"\xff" * 32), (b"", SET)],
)
def test_without_the_newest_epoch_and_set_no_account_is_read(latest: Answer, newest_set: Answer) -> None:
    positions, findings = read([latest, newest_set, *USED])
    assert positions == ()
    assert [(f.code, f.scope) for f in findings] == [(DEBT_UNREADABLE, account) for account in ACCOUNTS]


@pytest.mark.parametrize(("ahead", "believed"), [(2, True), (3, False), (2**64 - 901, False), (2**200, False)])
def test_an_epoch_that_cannot_be_posted_yet_may_hide_any_debt(ahead: int, believed: bool) -> None:
    """Believed, it would say that no budget given so far can be drawn any more."""
    latest = (900 + ahead).to_bytes(32, "big") + LATEST[32:]
    positions, findings = read([latest, SET, *USED])
    assert (len(positions), len(findings)) == ((3, 0) if believed else (0, 3))
    assert all(
        f.code == DEBT_UNREADABLE and f"epoch {900 + ahead}, the newest that can be is 902" in f.detail
        for f in findings
    )
    assert len(read([LATEST, SET, *USED], NOW - 2 * PERIOD)[0]) == 3
    assert read([LATEST, SET, *USED], NOW - 3 * PERIOD)[0] == ()


def test_the_registrys_logs_are_watched() -> None:
    registry = Registry(CHAIN, ADDRESS, PERIOD)
    assert (registry.name, registry.keyed_by, registry.watched) == ("registry", "account", frozenset({ADDRESS}))


def test_a_rotation_concerns_everybody_and_a_draw_its_account() -> None:
    artifact = json.loads((Path(proofs.__file__).parent / "contracts/build/MarginRegistry.json").read_text())
    topics = {e["name"]: topic(abi_to_signature(e)) for e in artifact["abi"] if e["type"] == "event"}
    assert frozenset({topics["Rotated"]}) == CONCERNS_ALL

    def words_of(event: str, *more: str) -> set[str]:
        log = {"address": ADDRESS, "topics": [topics[event], *more], "data": "0x", "blockNumber": "0x5"}
        return decode_log_words("devnet", [log], frozenset({ADDRESS}), 1, 9)

    assert ADDRESS in words_of("Rotated", "0x" + "00" * 31 + "02")
    drawn = words_of("Drawn", ACCOUNTS[1], "0x" + "00" * 12 + "cc" * 20)
    assert ACCOUNTS[1] in drawn
    assert ADDRESS not in drawn
