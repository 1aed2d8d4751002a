"""The breaker in front of a node, under a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from adapters.rpc import ATTEMPTS, FIRST_DELAY, IN_FLIGHT, LONGEST_DELAY, OPENS_AFTER, Breaker, EvmEndpoint
from aggregator.domain.errors import Garbage, NodeRefused, SourceError, Unavailable, Unreachable
from tests.chain.evm_venues import chain_row


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


PATIENCE = 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("alpha", PATIENCE, clock, draw=max)


def call(breaker: Breaker, outcome: BaseException | None = None) -> None:
    with breaker.guard():
        if outcome is not None:
            raise outcome


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(Unreachable, match=r"^alpha: down$"):
            call(breaker, Unreachable("alpha", "down"))


def test_it_opens_after_failures_in_a_row_and_says_since_when_and_why(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, OPENS_AFTER)
    clock.now += 0.25
    with pytest.raises(Unreachable) as caught:
        call(breaker)
    assert str(caught.value) == (
        "alpha: not asked for 0.2 s, after 3 failures in a row (the last: down); next try in 0.8 s"
    )


@pytest.mark.parametrize(
    "answer", [None, Garbage("alpha", "x"), NodeRefused("alpha", 3, "x"), Unavailable("alpha", "x")]
)
def test_any_answer_starts_the_count_again(breaker: Breaker, answer: SourceError | None) -> None:
    fail(breaker, OPENS_AFTER - 1)
    if answer is None:
        call(breaker)
    else:
        with pytest.raises(type(answer)):
            call(breaker, answer)
    fail(breaker, OPENS_AFTER - 1)
    assert not breaker.is_open


def give_up(breaker: Breaker, clock: Clock, waited: float) -> None:
    def hang() -> None:
        with breaker.guard():
            clock.now += waited
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        hang()


@pytest.mark.parametrize(("waited", "opens"), [(PATIENCE, True), (PATIENCE / 2, False)])
def test_a_call_given_up_counts_if_it_waited_long_enough(
    breaker: Breaker, clock: Clock, waited: float, opens: bool
) -> None:
    for _ in range(OPENS_AFTER):
        give_up(breaker, clock, waited)
    assert breaker.is_open == opens


def test_the_delay_doubles_with_every_failed_trial_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, OPENS_AFTER)
    delays = []
    for _ in range(8):
        start = clock.now
        while True:  # the calls before are refused without asking
            clock.now += 0.5
            try:
                call(breaker, Unreachable("alpha", "still down"))
            except Unreachable as error:
                if error.problem == "still down":
                    break
        delays.append(clock.now - start)
    assert delays == [FIRST_DELAY, 2, 4, 8, *[LONGEST_DELAY] * 4]
    assert LONGEST_DELAY <= 10  # a chain whose providers were all gone is noticed soon after they are back


@given(st.floats(0, 1), st.floats(1, 100))
def test_each_wait_is_the_part_of_the_delay_that_was_drawn(part: float, longest: float) -> None:
    clock = Clock()
    breaker = Breaker("alpha", PATIENCE, clock, longest=longest, draw=lambda low, high: low + part * (high - low))
    fail(breaker, OPENS_AFTER)
    delay = FIRST_DELAY
    for _ in range(8):
        if part > 0.01:
            clock.now += 0.99 * part * delay
            with pytest.raises(Unreachable, match="not asked for"):
                call(breaker, Unreachable("alpha", "still down"))
        clock.now += part * delay
        with pytest.raises(Unreachable, match="still down"):
            call(breaker, Unreachable("alpha", "still down"))
        delay = min(2 * delay, longest)


def test_one_trial_at_a_time_and_its_success_closes(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, OPENS_AFTER)
    clock.now += FIRST_DELAY
    with breaker.guard() as trial:
        assert trial
        with pytest.raises(Unreachable, match="a trial is under way"):
            call(breaker)
    assert not breaker.is_open
    fail(breaker, OPENS_AFTER)
    clock.now += FIRST_DELAY  # the delay, too, starts again
    call(breaker)
    assert not breaker.is_open


def test_calls_that_began_before_it_opened_do_not_lengthen_the_delay(breaker: Breaker, clock: Clock) -> None:
    def late() -> None:
        with breaker.guard():
            fail(breaker, OPENS_AFTER)
            raise Unreachable("alpha", "late")

    with pytest.raises(Unreachable, match="late"):
        late()
    clock.now += FIRST_DELAY
    call(breaker)
    assert not breaker.is_open


def endpoint(clock: Clock, behaviour: Callable[[int], Awaitable[object]]) -> EvmEndpoint:
    """An endpoint whose node is ``behaviour``, told how often it has been asked."""
    row = chain_row("http://unused", timeout=5)
    made = EvmEndpoint(row, SecretStr("http://unused"), clock)
    asked = 0

    async def once(method: str, params: object) -> object:
        nonlocal asked
        asked += 1
        return await behaviour(asked)

    made._once = once  # type: ignore[method-assign, assignment]
    return made


async def test_an_endpoint_stops_asking_and_asks_once_when_it_is_time(clock: Clock) -> None:
    seen: list[int] = []

    async def down(count: int) -> object:
        seen.append(count)
        raise Unreachable("anvil-one", "cannot be reached")

    node = endpoint(clock, down)
    for _ in range(OPENS_AFTER):
        with pytest.raises(Unreachable, match=r"cannot be reached$"):
            await node.call("eth_chainId", [])
    assert len(seen) == OPENS_AFTER * ATTEMPTS
    for _ in range(5):
        with pytest.raises(Unreachable, match="not asked for"):
            await node.call("eth_chainId", [])
    assert len(seen) == OPENS_AFTER * ATTEMPTS
    clock.now += FIRST_DELAY
    with pytest.raises(Unreachable, match=r"cannot be reached$"):
        await node.call("eth_chainId", [])
    assert len(seen) == OPENS_AFTER * ATTEMPTS + 1  # a trial is not tried again


async def test_calls_that_queued_while_it_opened_do_not_ask(clock: Clock) -> None:
    seen: list[int] = []
    full = asyncio.Event()

    async def hangs(count: int) -> object:
        seen.append(count)
        if count == IN_FLIGHT:
            full.set()
        await asyncio.Event().wait()
        return None

    node = endpoint(clock, hangs)
    calls = [asyncio.create_task(node.call("eth_chainId", [])) for _ in range(100)]
    await full.wait()
    clock.now += 60.0  # they hung for as long as anybody waits
    for given_up in calls[:OPENS_AFTER]:
        given_up.cancel()
    refused = await asyncio.gather(*calls[IN_FLIGHT:], return_exceptions=True)
    assert all("not asked for" in str(r) for r in refused)
    assert len(seen) == IN_FLIGHT
    for hung in calls:
        hung.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_given_up_at_once_say_nothing_of_the_node(clock: Clock) -> None:
    """A quorum reached without this reader's answer cancels it; that must not blind it."""

    async def hangs(_: int) -> object:
        await asyncio.Event().wait()
        return None

    node = endpoint(clock, hangs)
    calls = [asyncio.create_task(node.call("eth_chainId", [])) for _ in range(OPENS_AFTER + 1)]
    await asyncio.sleep(0)
    for given_up in calls:
        given_up.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert not node._breaker.is_open


async def test_an_endpoint_that_is_back_answers_all(clock: Clock) -> None:
    async def back(count: int) -> object:
        if count <= OPENS_AFTER * ATTEMPTS:
            raise Unreachable("anvil-one", "cannot be reached")
        return count

    node = endpoint(clock, back)
    for _ in range(OPENS_AFTER):
        with pytest.raises(Unreachable):
            await node.call("eth_chainId", [])
    clock.now += FIRST_DELAY
    assert await node.call("eth_chainId", []) == OPENS_AFTER * ATTEMPTS + 1
    answers = await asyncio.gather(*(node.call("eth_chainId", []) for _ in range(20)))
    assert len(set(answers)) == 20
