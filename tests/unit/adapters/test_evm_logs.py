"""What logs tell about who changed: every word of every log or an admission that it cannot be told, never a value."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evm.reader import LOG_BLOCKS, LOG_LIMIT, LOG_QUERIES, EvmReader, decode_log_words
from aggregator.domain.errors import Garbage, NodeRefused
from proofs.hashing import keccak256
from tests.chain.evm_venues import NAME, chain_row

TOKEN, VAULT = "0x" + "c1" * 20, "0x" + "7a" * 20
WATCHED = frozenset((TOKEN, VAULT))
words = st.binary(min_size=32, max_size=32)


def log(height: int = 5, topics: Sequence[bytes] = (), data: bytes = b"") -> dict[str, Any]:
    """Return one log as nodes give them."""
    return {
        "address": TOKEN.upper().replace("X", "x"),
        "topics": ["0x" + t.hex() for t in topics],
        "data": "0x" + data.hex(),
        "blockNumber": hex(height),
        "removed": False,
    }


@given(st.lists(st.tuples(st.lists(words, max_size=4), st.lists(words, max_size=5), st.binary(max_size=31))))
def test_every_word_of_topics_and_data_is_told(logs: list[tuple[list[bytes], list[bytes], bytes]]) -> None:
    given_ = [log(topics=topics, data=b"".join(data) + rest) for topics, data, rest in logs]
    expected = {"0x" + word.hex() for topics, data, _ in logs for word in (*topics, *data)}
    assert decode_log_words(NAME, given_, WATCHED, 5, 5) == expected


def test_words_are_lower_case_however_they_are_written() -> None:
    shouted = log(topics=[b"\xab" * 32], data=b"\xcd" * 32)
    shouted |= {"topics": ["0x" + "AB" * 32], "data": "0x" + "CD" * 32}
    assert decode_log_words(NAME, [shouted], WATCHED, 5, 5) == {"0x" + "ab" * 32, "0x" + "cd" * 32}


@pytest.mark.parametrize(
    ("event", "all_there"),
    [
        ("InstrumentSettled(uint256,uint256)", True),
        ("FundingChanged(uint256)", True),
        ("Paused(bool)", True),
        ("InstrumentListed(uint256,uint8,bytes32,address,uint256,uint64)", False),
        ("PositionChanged(bytes32,uint256,int256,uint256)", False),
    ],
)
def test_a_log_that_names_nobody_names_its_contract_where_it_concerns_everybody_there(
    event: str, all_there: bool
) -> None:
    first, id = keccak256(event.encode()), b"\x07".rjust(32, b"\0")
    told = decode_log_words(NAME, [log(topics=[first, id])], WATCHED, 5, 5)
    assert told == {"0x" + first.hex(), "0x" + id.hex(), *([TOKEN] if all_there else [])}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"removed": True}, "removed"),
        ({"removed": "no"}, "removed"),
        ({"address": "0x" + "66" * 20}, "not of a contract that was asked for"),
        ({"blockNumber": "0x4"}, "not of a block that was asked for"),
        ({"blockNumber": "0x8"}, "not of a block that was asked for"),
        ({"blockNumber": None}, "quantity"),
        ({"blockNumber": 5}, "quantity"),
        ({"topics": ["0x12"]}, "topics"),
        ({"topics": ["0x" + "11" * 32] * 5}, "topics"),
        ({"topics": "0x" + "11" * 32}, "topics"),
        ({"data": "11" * 32}, "data"),
        ({"data": "0xzz"}, "malformed"),
        ({"data": None}, "without its fields"),
        ({"topics": [None]}, "without its fields"),
        ({"address": 5}, "without its fields"),
    ],
)
def test_a_log_that_is_malformed_or_unasked_for_is_garbage(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Garbage, match=says):
        decode_log_words(NAME, [log(), log() | changes], WATCHED, 5, 7)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("0x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(tuple(log())), inner, max_size=5),
    max_leaves=12,
)


@given(JUNK | st.dictionaries(st.sampled_from(tuple(log())), JUNK).map(lambda changes: [log() | changes]))
def test_junk_is_garbage_or_a_set_of_words(junk: Any) -> None:
    try:
        found = decode_log_words(NAME, junk, WATCHED, 5, 5)
    except Garbage:
        return
    assert all(len(word) == 66 for word in found)


@dataclass
class Node:
    """A node with ``per_block`` logs per block, which refuses more than ``limit`` logs or ``span`` blocks at once."""

    per_block: int = 1
    limit: int = 10**9
    span: int = 10**9
    refusal: str = "query returned more than 10000 results"
    asked: list[tuple[int, int]] = field(default_factory=list)

    async def call(self, method: str, params: Sequence[Any]) -> Any:
        assert method == "eth_getLogs"
        assert params[0]["address"] == sorted(WATCHED)
        first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        self.asked.append((first, last))
        if last - first >= self.span or (last - first + 1) * self.per_block > self.limit:
            raise NodeRefused(NAME, -32000, f"eth_getLogs: {self.refusal}")
        made = [(height, i) for height in range(first, last + 1) for i in range(self.per_block)]
        return [log(height, [height.to_bytes(16, "big") + i.to_bytes(16, "big")]) for height, i in made]

    async def close(self) -> None: ...

    def changes(self, first: int, last: int, watched: frozenset[str] = WATCHED) -> frozenset[str] | None:
        class Watching:
            name, keyed_by = "v", "address"

            def __init__(self) -> None:
                self.watched = watched

            def flow(self, subjects: Any) -> Any: ...

        return asyncio.run(EvmReader(chain_row("http://unused"), self, [Watching()], []).changes(first, last))


@given(first=st.integers(0, 10), more=st.integers(0, 60), span=st.integers(1, 70), limit=st.integers(3, 200))
def test_a_range_that_a_node_refuses_is_asked_in_parts(first: int, more: int, span: int, limit: int) -> None:
    node = Node(per_block=3, limit=limit, span=span)
    seen = node.changes(first, first + more)
    assert len(node.asked) <= LOG_QUERIES
    if seen is None:
        assert len(node.asked) == LOG_QUERIES
    else:
        assert len(seen) == 3 * (more + 1)


def test_what_cannot_be_told_is_not_called_unchanged() -> None:
    assert Node(limit=0).changes(1, 9) is None  # not even one block
    assert Node(per_block=LOG_LIMIT + 1).changes(1, 1) is None
    assert Node().changes(1, 9, frozenset()) is None  # nothing to ask about
    far = Node()
    assert far.changes(1, 1 + LOG_BLOCKS) is None
    assert far.asked == []


def test_another_refusal_is_no_reason_to_ask_again() -> None:
    node = Node(span=1, refusal="method not found")
    with pytest.raises(NodeRefused, match="method not found"):
        node.changes(1, 9)
    assert node.asked == [(1, 9)]


def test_many_words_are_too_many() -> None:
    class Wordy(Node):
        async def call(self, method: str, params: Sequence[Any]) -> Any:
            return [log(1, data=b"".join(i.to_bytes(32, "big") for i in range(100_001)))]

    assert Wordy().changes(1, 1) is None
