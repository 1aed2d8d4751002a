"""Agreement on ancestry, on what is irreversible, on what changed and on the sequencer: a minority decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.quorum import Disputed, NoQuorum
from aggregator.domain.errors import Unavailable, Unreachable
from aggregator.domain.snapshot import FROZEN
from tests.unit.adapters.quorum_world import ACCOUNTS, CUT, HEAD, HONEST, POSITIONS, FakeProvider, Quorum, block, make

BLOCK_FAULTS = ("dead", "stale", "wrong-chain", "garbage", "unhandled", "fork", "ahead")
DOWN = f"{FROZEN}: the sequencer is down since 2026-01-01 00:00:00 UTC; it counts again 3600 s after it is back"


def minorities(faults: Sequence[str]) -> st.SearchStrategy[tuple[list[str], int]]:
    """Draw providers of which as many are good as must agree."""

    def of(count: int) -> st.SearchStrategy[tuple[list[str], int]]:
        return st.integers(count // 2 + 1, count).flatmap(
            lambda need: st.tuples(
                st.lists(st.sampled_from(faults), min_size=count - need, max_size=count - need).flatmap(
                    lambda bad: st.permutations([*bad, *[""] * need])
                ),
                st.just(need),
            )
        )

    return st.integers(2, 6).flatmap(of)


@given(minorities(BLOCK_FAULTS), st.integers(HEAD - 50, HEAD), st.integers(0, 5))
async def test_a_minority_changes_no_ancestry(case: tuple[list[str], int], first: int, more: int) -> None:
    faults, need = case
    last = min(HEAD, first + more)
    quorum = make(*faults, need=need)
    assert await quorum.reader.headers(first, last) == tuple(block(h) for h in range(first, last + 1))
    assert await quorum.reader.irreversible() == block(HEAD - 10)
    assert {d.provider for d in quorum.disputes} <= {f"alpha[{i}]" for i, fault in enumerate(faults) if fault}


async def test_who_has_another_ancestry_is_on_record_once_at_the_block_where_it_begins() -> None:
    quorum = make("", "fork", "")
    await quorum.reader.headers(HEAD - 3, HEAD)
    (dispute,) = quorum.disputes
    assert (dispute.provider, dispute.height, dispute.agreed) == ("alpha[1]", HEAD - 3, True)
    split = make("", "fork", "dead")
    with pytest.raises(
        Disputed, match=r"fewer than 2 of 3 providers hold one block: alpha\[0\]: holds .*alpha\[2\]: can"
    ):
        await split.reader.headers(HEAD - 3, HEAD)
    assert [d.agreed for d in split.disputes] == [False]


@pytest.mark.parametrize("ask", ["headers", "irreversible"])
async def test_too_few_answers_are_no_answer(ask: str) -> None:
    reader = make("", "dead", "dead").reader
    with pytest.raises(NoQuorum, match="fewer than 2 of 3"):
        await (reader.headers(1, 2) if ask == "headers" else reader.irreversible())


@pytest.mark.parametrize("ask", ["block_at", "headers"])
async def test_that_the_chain_is_shorter_now_is_for_enough_providers_to_say(ask: str) -> None:
    def make_shorter(*faults: str) -> Quorum:
        quorum = make(*faults)
        for provider in quorum.providers[:2]:
            provider.head = HEAD - 5
        return quorum

    async def question(quorum: Quorum) -> object:
        reader = quorum.reader
        return await (reader.block_at(HEAD) if ask == "block_at" else reader.headers(HEAD - 7, HEAD))

    shorter = make_shorter("", "", "")
    with pytest.raises(Unavailable, match=r"fewer than 2 of 3 providers have block.*alpha\[2\]: has it"):
        await question(shorter)
    with pytest.raises(Unavailable):
        await question(make_shorter("", "", "dead"))
    for too_few in (make_shorter("", "dead", ""), make_shorter("", "dead", "dead")):
        with pytest.raises(NoQuorum):
            await question(too_few)
    assert shorter.disputes == []


async def test_irreversible_is_what_enough_providers_have_reached() -> None:
    quorum = make("", "", "")
    for provider, depth in zip(quorum.providers, (10, 14, 30), strict=True):
        provider.depth = depth
    assert await quorum.reader.irreversible() == block(HEAD - 14)
    assert quorum.disputes == []


async def test_nobody_alone_decides_what_is_irreversible() -> None:
    quorum = make("ahead", "", "")
    quorum.providers[1].depth = 14
    assert await quorum.reader.irreversible() == block(HEAD - 10)
    low = make("stale", "stale", "")
    assert (await low.reader.irreversible()).height < HEAD - 10


# A11: logs that are left out


@given(minorities(("dead", "garbage", "omits")))
async def test_logs_that_some_leave_out_hide_nothing(case: tuple[list[str], int]) -> None:
    faults, need = case
    assert await make(*faults, need=need).reader.changes(1, 2) == frozenset(ACCOUNTS[:2])


async def test_what_any_provider_saw_change_counts() -> None:
    quorum = make("", "", "")
    quorum.providers[2].changed = frozenset(ACCOUNTS[4:5])
    assert await quorum.reader.changes(1, 2) == frozenset((*ACCOUNTS[:2], ACCOUNTS[4]))


@pytest.mark.parametrize("faults", [("", "dead", "dead"), ("", "unhandled", "dead"), ("unhandled",) * 3])
async def test_where_too_few_can_tell_everybody_is_read(faults: Sequence[str]) -> None:
    assert await make(*faults).reader.changes(1, 2) is None


# A13: the sequencer


async def frozen(quorum: Quorum, *causes: str) -> str:
    for provider, cause in zip(quorum.providers, causes, strict=True):
        provider.frozen = cause
    reading = await quorum.observe()
    # The sequencer is no position: nothing else may change.
    positions, findings = tuple(sorted(HONEST.positions)), tuple(sorted(HONEST.findings))
    seen = replace(reading, positions=tuple(sorted(reading.positions)), findings=tuple(sorted(reading.findings)))
    assert seen == replace(HONEST, positions=positions, findings=findings, frozen=reading.frozen)
    return reading.frozen


async def test_one_provider_neither_freezes_nor_thaws_a_chain() -> None:
    assert await frozen(make("", "", ""), DOWN, DOWN, DOWN) == DOWN
    lies = make("", "", "")
    assert await frozen(lies, DOWN, "", DOWN) == DOWN
    assert [d.provider for d in lies.disputes] == ["alpha[1]"]
    assert await frozen(make("", "", ""), "", "", DOWN) == ""


@pytest.mark.parametrize("causes", [(DOWN, "", ""), ("", DOWN, ""), (DOWN, f"{FROZEN}: another", "")])
async def test_in_doubt_a_chain_is_frozen(causes: Sequence[str]) -> None:
    quorum = make("", "", "dead") if causes[2] == "" and "another" not in causes[1] else make("", "", "")
    assert (await frozen(quorum, *causes)).startswith(f"{FROZEN}: fewer than 2 of 3 providers agree on the sequencer")


# Measured


async def test_the_lag_is_the_median_of_those_that_took_part() -> None:
    quorum = make("", "", "", "dead", need=3)
    for provider, depth in zip(quorum.providers, (10, 10**9, 30, 5), strict=True):
        provider.depth = depth
    await quorum.observe()
    assert quorum.reader.finality_lag == 60.0  # of 20, 60 and what a liar says


@pytest.mark.parametrize("faults", [("", "", "dead"), ("", "", "stale"), ("", "", "fork")])
async def test_a_lie_about_the_head_does_not_stretch_the_lag_where_one_is_out(faults: Sequence[str]) -> None:
    quorum = make(*faults)
    quorum.providers[1].depth = 10**9
    await quorum.reader.pin(CUT)
    assert quorum.reader.finality_lag == 20.0
    for provider in quorum.providers:
        provider.fault, provider.depth = "dead", 10**9
    with pytest.raises(NoQuorum):
        await quorum.reader.pin(CUT)
    assert quorum.reader.finality_lag == 20.0  # as of the last pin that was agreed on


async def test_a_lag_that_fewer_than_needed_tell_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = property(lambda self: 4.0 if self.number == 0 else None)
    monkeypatch.setattr(FakeProvider, "finality_lag", known)
    quorum = make("", "", "")
    assert quorum.reader.finality_lag is None
    await quorum.reader.pin(CUT)
    assert quorum.reader.finality_lag is None


async def test_one_provider_alone_is_asked_as_it_is() -> None:
    quorum = make("")
    reader, provider = quorum.reader, quorum.providers[0]
    assert await reader.irreversible() == block(HEAD - 10)
    assert await reader.headers(1, 3) == (block(1), block(2), block(3))
    assert await reader.changes(1, 3) == frozenset(ACCOUNTS[:2])
    assert reader.finality_lag == provider.finality_lag
    provider.fault = "dead"
    with pytest.raises(Unreachable):
        await reader.headers(1, 3)


# Positions of one asset at two places


async def test_deposits_of_one_asset_in_two_vaults_are_compared_vault_by_vault() -> None:
    two = (POSITIONS[0]._replace(origin="0x" + "a1" * 20), POSITIONS[0]._replace(origin="0x" + "a2" * 20, amount=7))
    quorum = make("", "", "")
    for provider in quorum.providers:
        provider.positions = (*two, *POSITIONS[1:])
    quorum.providers[1].positions = (two[0], two[1]._replace(amount=700), *POSITIONS[1:])
    quorum.providers[2].fault = "dead"
    reading = await quorum.observe()
    assert two[0] in reading.positions
    assert not any(p.origin == two[1].origin for p in reading.positions)
    assert "disputed" in {f.code for f in reading.findings}
