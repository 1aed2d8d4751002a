"""Agreement among providers: what a minority of bad ones changes (nothing), and what a majority can (never upwards)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.quorum import Disputed, NoQuorum, QuorumReader
from aggregator.domain.errors import Garbage, SourceError, Unreachable, WrongChain
from aggregator.domain.snapshot import DEBT_UNREADABLE, INFORMATIONAL, Contract, Finding, Position, Reading
from tests.unit.adapters.quorum_world import (
    ACCOUNTS,
    CHAIN,
    CUT,
    FAULTS,
    FINDINGS,
    HEAD,
    HONEST,
    POSITIONS,
    QUOTES,
    SUBJECTS,
    USDC,
    Quorum,
    block,
    held,
    make,
    row,
)

LIES = ("inflates", "omits", "forgets-debt", "hides-trouble", "invents-debt")


def verify_never_better(reading: Reading, honest: Reading = HONEST) -> None:
    """No asset above the honest one, no debt below it, and nothing left out without a word on its account."""
    marked = {f.scope for f in reading.findings if f.code not in INFORMATIONAL}
    true = {(p.account, p.venue, p.asset, p.side): p for p in honest.positions}
    seen = {(p.account, p.venue, p.asset, p.side): p for p in reading.positions}
    assert len(seen) == len(reading.positions)
    for key, p in seen.items():
        if p.side == "asset":
            assert p == true[key]
        else:
            assert p.amount >= (true[key].amount if key in true else 0)
            assert p == true.get(key) or p.account in marked
    for key, p in true.items():
        if key not in seen:
            assert p.side == "asset"
            assert p.account in marked
    assert {f.scope for f in honest.findings if f.code not in INFORMATIONAL} <= marked
    assert set(reading.quotes) <= set(honest.quotes)


async def attempt(quorum: Quorum) -> tuple[Reading | None, str]:
    """Return the reading, or None and why there is none."""
    try:
        return await quorum.observe(), ""
    except SourceError as error:
        return None, str(error)


@st.composite
def assignments(draw: st.DrawFn) -> tuple[tuple[str, ...], int]:
    count = draw(st.integers(2, 6))
    need = draw(st.integers(count // 2 + 1, count))
    return tuple(draw(st.sampled_from(("", *FAULTS))) for _ in range(count)), need


@given(assignments())
async def test_bad_providers_change_nothing_while_few_and_never_help_when_many(
    case: tuple[tuple[str, ...], int],
) -> None:
    faults, need = case
    quorum = make(*faults, need=need)
    bad = [f"alpha[{i}]" for i, fault in enumerate(faults) if fault]
    if len(bad) <= len(faults) - need:
        assert await quorum.observe() == HONEST
        assert quorum.reader.failed.keys() <= set(bad)
        assert {d.provider for d in quorum.disputes} <= set(bad)
        assert {f"alpha[{i}]" for i, fault in enumerate(faults) if fault in LIES} <= {
            d.provider for d in quorum.disputes
        }
        return
    reading, problem = await attempt(quorum)
    if reading is None:
        assert any(name in problem for name in bad)
        assert "secret-key" not in problem
    else:
        assert reading.block == HONEST.block
        verify_never_better(reading)


@given(assignments(), st.data())
async def test_switching_a_provider_off_never_helps(case: tuple[tuple[str, ...], int], data: st.DataObject) -> None:
    faults, need = case
    off = data.draw(st.integers(0, len(faults) - 1))
    before, after = make(*faults, need=need), make(*faults, need=need)
    after.providers[off].fault = "dead"
    (first, _), (second, _) = await attempt(before), await attempt(after)
    if first is None:
        assert second is None
    if first is None or second is None:
        return
    assets = {p[:4]: p.amount for p in first.positions if p.side == "asset"}
    debts = {p[:5]: p.amount for p in second.positions if p.side == "debt"}
    assert all(p.amount <= assets.get(p[:4], 0) for p in second.positions if p.side == "asset")
    assert all(debts.get(p[:5], 0) >= min(p.amount, _owed(p[:5])) for p in first.positions if p.side == "debt")


def _owed(key: tuple[object, ...]) -> int:
    return next((p.amount for p in POSITIONS if p[:5] == key and p.side == "debt"), 0)


# A3, A4, A6: lies


async def test_one_liar_of_three_leaves_a_record_and_nothing_else() -> None:
    quorum = make("", "inflates", "")
    assert await quorum.observe() == HONEST
    position, quote = sorted(quorum.disputes, key=lambda d: d.about)
    assert (position.provider, position.others, position.agreed) == ("alpha[1]", ("alpha[0]", "alpha[2]"), True)
    assert (position.height, position.block) == (HEAD, block(HEAD).hash)
    assert (position.field, position.value, position.expected) == ("amount", "30000", "1000")
    assert position.about.split()[:2] == ["position", ACCOUNTS[0]]
    assert position.count == 2 * len(ACCOUNTS)
    digests = dict(position.digests)
    assert digests["alpha[0]"] == digests["alpha[2]"] != digests["alpha[1]"]
    assert (quote.provider, quote.field, quote.value, quote.expected) == ("alpha[1]", "price", "9000", "3000")


async def test_a_liar_and_one_honest_provider_leave_only_what_both_say() -> None:
    quorum = make("", "omits", "dead")
    reading = await quorum.observe()
    mine = ACCOUNTS[1]
    assert [p for p in reading.positions if p.account != mine] == sorted(p for p in POSITIONS if p.account != mine)
    assert [p for p in reading.positions if p.account == mine] == [held(mine, USDC, 301, "debt", "lender")]
    (finding,) = [f for f in reading.findings if f.code == "disputed"]
    assert finding.scope == mine
    assert "at lender: alpha[0] says 301, alpha[1] says 0; the highest counts; and 2 more" in finding.detail
    assert "2 of 3 providers of alpha must agree" in finding.detail
    (dispute,) = [d for d in quorum.disputes if d.about.startswith("position")]
    assert not dispute.agreed
    assert (dispute.field, dispute.value) == ("presence", "absent")
    assert reading.quotes == QUOTES[:1]  # the other feed is absent


async def test_a_debt_in_dispute_counts_at_the_highest_claim() -> None:
    for faults in (("invents-debt", "", "dead"), ("", "invents-debt", "dead")):
        reading = await make(*faults).observe()
        (debt,) = [p for p in reading.positions if p.side == "debt" and p.venue == "lender" and p.asset != USDC]
        assert debt.amount == 7 + faults.index("invents-debt")
        assert {f.scope for f in reading.findings if f.code == "disputed"} == {debt.account}


PERP = held(ACCOUNTS[0], f"{CHAIN}/contract:0x{'77' * 20}/1", 0, "debt", "margin-venue")._replace(
    quantity=3, unit=USDC, address="", contract=Contract("perp", "ETH/USD", entry=3_000 * 10**8, funding=-7)
)
SAID_OF_PERP = {
    "another size": PERP._replace(quantity=4),
    "the other side": PERP._replace(side="asset"),
    "another entry": PERP._replace(contract=PERP.contract._replace(entry=1)),
    "another funding": PERP._replace(contract=PERP.contract._replace(funding=7)),
    "nothing": None,
}
"""What a provider may say of a short perp; none of it is the safe end of the other."""


def with_perps(quorum: Quorum, *told: Position | None) -> Quorum:
    """Let every provider tell of one more position, or of none."""
    for provider, perp in zip(quorum.providers, told, strict=True):
        provider.positions = (*POSITIONS, perp) if perp else POSITIONS
    return quorum


@pytest.mark.parametrize("how", SAID_OF_PERP)
async def test_a_contract_that_enough_agree_on_stands(how: str) -> None:
    quorum = with_perps(make("", "", ""), PERP, SAID_OF_PERP[how], PERP)
    reading = await quorum.observe()
    assert (PERP in reading.positions, reading.findings) == (True, FINDINGS)
    assert len(reading.positions) == len(POSITIONS) + 1
    assert {(d.provider, d.agreed) for d in quorum.disputes} == {("alpha[1]", True)}


@pytest.mark.parametrize("how", SAID_OF_PERP)
@pytest.mark.parametrize("lying", [0, 1])
async def test_a_contract_in_dispute_is_none_and_its_account_may_owe_anything(how: str, lying: int) -> None:
    told = [PERP, PERP, None]
    told[lying] = SAID_OF_PERP[how]
    quorum = with_perps(make("", "", "dead"), *told)
    reading = await quorum.observe()
    assert reading.positions == tuple(sorted(POSITIONS))
    (disputed,) = [f for f in reading.findings if f.code == "disputed"]
    assert disputed.scope == PERP.account
    assert "the account opens no risk meanwhile" in disputed.detail
    blind = [f for f in reading.findings if f.code == DEBT_UNREADABLE]
    assert {f.scope for f in blind} == {PERP.account}
    assert all(PERP.asset in f.detail for f in blind)
    assert len(blind) == (2 if how == "the other side" else 1)
    assert {d.agreed for d in quorum.disputes} == {False}
    if how == "another size":
        sizes = ["alpha[0] says 3", "alpha[1] says 4"] if lying else ["alpha[0] says 4", "alpha[1] says 3"]
        assert ", ".join(sizes) in blind[0].detail


async def test_what_one_provider_cannot_read_stays_marked_when_they_differ_on_why() -> None:
    """Three providers that each fail in words of their own must not add up to a clean zero."""
    quorum = make("hides-trouble", "hides-trouble", "")
    quorum.providers[1].number = len(ACCOUNTS)  # of the same account as the first
    reading = await quorum.observe()
    assert ACCOUNTS[0] in {f.scope for f in reading.findings if f.code == "disputed"}
    assert FINDINGS[0] in reading.findings
    verify_never_better(reading)


async def test_mixed_heights_fail_the_provider_that_read_them() -> None:
    assert await make("mixed-heights", "", "").observe() == HONEST
    with pytest.raises(NoQuorum, match=r"alpha\[0\]: multicall ran at another height.*alpha\[1\]: cannot be reached"):
        await make("mixed-heights", "dead", "").observe()


# A5, A7, A14: the pin


async def test_the_pin_is_the_newest_block_that_enough_hold() -> None:
    quorum = make("", "", "")
    for heads, expected in (((10, 9, 8), 9), ((10, 10, 7), 10), ((8, 9, 10), 9), ((7, 7, 9), 7)):
        for provider, head in zip(quorum.providers, heads, strict=True):
            provider.head = HEAD - 20 + head
        assert await make_like(quorum).pin(CUT) == block(HEAD - 20 + expected)
    assert quorum.disputes == []


def make_like(quorum: Quorum) -> QuorumReader:
    """Return a reader over the same providers, without memory."""
    names = [f"alpha[{i}]" for i in range(3)]
    return QuorumReader(quorum.reader.row, quorum.providers, names, 2, quorum.disputes.append)


async def test_a_stale_provider_counts_as_failed() -> None:
    quorum = make("", "stale", "")
    assert await quorum.observe() == HONEST
    assert quorum.reader.failed == {"alpha[1]": "stale: its newest final block is 4000 s behind"}
    with pytest.raises(NoQuorum, match=r"alpha\[0\]: cannot be reached.*alpha\[1\]: stale at block .*4000 s behind"):
        await make("dead", "stale", "").observe()


async def test_a_halted_chain_is_not_a_stale_provider() -> None:
    quorum = make("", "", "")
    for provider in quorum.providers:
        provider.head = 10
    assert await quorum.reader.pin(CUT) == block(10)


async def test_a_provider_of_another_chain_is_left_out_until_it_is_right_again() -> None:
    quorum = make("", "", "wrong-chain")
    for _ in range(2):
        assert await quorum.observe() == HONEST
        assert quorum.reader.failed == {"alpha[2]": "the node answers for chain id 666, configured is 31337"}
    quorum.providers[2].fault, quorum.providers[0].fault = "", "dead"
    assert await quorum.observe() == HONEST
    quorum.providers[1].fault = "wrong-chain"
    with pytest.raises(NoQuorum, match=r"alpha\[1\]: the node answers for chain id 666"):
        await quorum.reader.pin(CUT)
    with pytest.raises(WrongChain, match=r"alpha\[0\].*alpha\[1\]"):
        await make("wrong-chain", "wrong-chain").reader.pin(CUT)


async def test_identity_needs_the_quorum_too() -> None:
    await make("", "", "wrong-chain").reader.verify_identity()
    with pytest.raises(NoQuorum, match=r"alpha\[1\]: cannot be reached.*alpha\[2\]: the node answers for chain id"):
        await make("", "dead", "wrong-chain").reader.verify_identity()
    with pytest.raises(WrongChain):
        await make("wrong-chain", "wrong-chain").reader.verify_identity()


async def test_two_final_blocks_of_one_height_are_a_dispute() -> None:
    quorum = make("", "fork")
    with pytest.raises(Disputed, match=rf"alpha\[0\]: pins block {HEAD} .*alpha\[1\]: pins block {HEAD} "):
        await quorum.reader.pin(CUT)
    assert [(d.provider, d.field, d.agreed) for d in quorum.disputes] == [("alpha[1]", "hash", False)]


async def test_time_that_runs_backwards_is_refused() -> None:
    quorum = make("", "", "")
    await quorum.reader.pin(CUT)
    quorum.providers[1].fault = "backdates"
    quorum.providers[1].head = HEAD + 1
    late = block(HEAD + 1)
    with pytest.raises(Garbage, match="time does not run backwards"):
        await quorum.reader._verify_time(quorum.providers[0], late._replace(time=block(HEAD).time - 1), CUT + 10)
    assert await quorum.reader.pin(CUT) == block(HEAD)


@pytest.mark.parametrize("faults", [("",), ("", "")])
async def test_an_agreed_block_later_in_height_and_earlier_in_time_is_refused(faults: tuple[str, ...]) -> None:
    quorum = make(*faults)
    await quorum.reader.pin(CUT)
    for provider in quorum.providers:

        async def pin(cut_time: int) -> object:
            return block(HEAD + 1)._replace(time=CUT - 500)

        provider.pin = pin  # type: ignore[method-assign, assignment]
    with pytest.raises(SourceError, match="contradicts block 10000"):
        await quorum.reader.pin(CUT)


async def test_after_a_reorganisation_the_last_pin_is_no_measure_of_time() -> None:
    quorum = make("", "", "")
    await quorum.reader.pin(CUT)
    for provider in quorum.providers:

        async def pin(cut_time: int) -> object:
            return block(HEAD + 1, 7)._replace(time=CUT - 2)

        async def block_at(height: int) -> object:
            return block(height, 7)

        provider.pin, provider.block_at = pin, block_at  # type: ignore[method-assign, assignment]
    assert (await quorum.reader.pin(CUT)).height == HEAD + 1


# Liveness


async def test_a_provider_that_hangs_is_not_waited_for() -> None:
    quorum = make("hangs", "", "", timeout=0.4)
    assert await quorum.observe() == HONEST
    assert list(quorum.reader.failed) == ["alpha[0]"]
    with pytest.raises(NoQuorum, match=r"alpha\[0\]: no answer in the time there was; alpha\[1\]: cannot be reached"):
        await make("hangs", "dead", "", timeout=0.1).observe()


async def test_bytes_that_break_one_reader_do_not_break_the_others() -> None:
    assert await make("unhandled", "", "").observe() == HONEST


# One provider, check, close, configuration


async def test_one_provider_alone_is_read_as_it_is() -> None:
    assert await make("").observe() == HONEST
    with pytest.raises(Unreachable, match=r"^alpha: cannot be reached"):
        await make("dead").observe()
    assert (await make("inflates").observe()).positions != POSITIONS


async def test_the_check_names_each_provider_and_their_agreement() -> None:
    findings = await make("", "wrong-chain", "").reader.check()
    assert [f.scope for f in findings] == ["alpha[0]", "alpha[1]", "alpha[2]", "alpha quorum"]
    assert findings[-1].code == "ok"
    assert "alpha[1]: the node answers for chain id 666" in findings[-1].detail
    split = make("stale", "", "fork")
    assert (await split.reader.check())[-1].code == "failed"


async def test_the_check_leaves_what_only_begins_like_the_chain_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    quorum = make("", "", "")

    async def check() -> tuple[Finding, ...]:
        return (
            Finding("failed", "alpha wallet", "alphabet:1/slip44:60: unreadable"),
            Finding("failed", "alpha", "alpha: cannot be reached"),
            Finding("failed", "alpha:beta", "alphas"),
        )

    for provider in quorum.providers:
        monkeypatch.setattr(provider, "check", check)
    found = [(f.scope, f.detail) for f in await quorum.reader.check()]
    assert found[3:6] == [
        ("alpha[1] wallet", "alphabet:1/slip44:60: unreadable"),
        ("alpha[1]", "alpha[1]: cannot be reached"),
        ("alpha:beta", "alphas"),
    ]


async def test_all_are_closed() -> None:
    quorum = make("", "dead", "")
    await quorum.reader.close()
    assert all(p.closed for p in quorum.providers)


async def test_solana_nodes_that_were_a_slot_apart_are_asked_again() -> None:
    quorum = make("", "", family="solana", id="solana:x")
    ahead = quorum.providers[1]
    ahead.positions = tuple(p._replace(amount=p.amount + 1) if p.account == ACCOUNTS[0] else p for p in POSITIONS)
    original = ahead.read

    async def read(pinned: object, subjects: object) -> Reading:
        reading = await original(pinned, subjects)  # type: ignore[arg-type]
        ahead.positions = POSITIONS
        return reading

    ahead.read = read  # type: ignore[method-assign, assignment]
    reading = await quorum.reader.read(block(HEAD), SUBJECTS)
    assert set(reading.positions) == set(POSITIONS)
    assert set(reading.findings) == set(FINDINGS)
    assert quorum.disputes == []


@pytest.mark.parametrize(("count", "quorum"), [(3, 1), (3, 4), (4, 2), (1, 2), (2, 1), (1, 0)])
def test_a_quorum_below_a_majority_or_above_all_is_refused(count: int, quorum: int) -> None:
    with pytest.raises(ValidationError) as caught:
        row(count, quorum)
    assert caught.value.errors()[0]["loc"] == ("quorum",)
    assert "secret-key" not in str(caught.value)


def test_a_provider_given_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="twice"):
        row(2, 2, rpc=("https://rpc.example.org", "https://rpc.example.org"))


def test_the_reader_itself_refuses_less_than_a_majority() -> None:
    with pytest.raises(ValueError, match="no majority"):
        QuorumReader(row(3, 2), make("", "", "").providers, ["a", "b", "c"], 1, lambda _: None)
