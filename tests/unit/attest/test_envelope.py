"""The codec between coordinator and attestors: exact both ways, and nothing but FieldError for anything else."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.domain.budgets import Grant, Level, Levels, PermitRecord
from aggregator.domain.certificate import Attestation, LinkRecord, State, to_leaf
from aggregator.domain.errors import RefusedError
from aggregator.domain.latency import Law, LegLaw
from aggregator.domain.links import with_links
from aggregator.domain.report import LeafValues
from aggregator.domain.snapshot import Account, Block, Carried, Cut, Reorg
from aggregator.service import envelope
from aggregator.service.attest import Proposal
from aggregator.service.envelope import (
    NOTHING,
    Answer,
    Counts,
    Need,
    Seen,
    SignedRefusal,
    Status,
    assemble,
    decode_answer,
    decode_certificate,
    decode_document,
    decode_epoch,
    decode_status,
    encode_answer,
    encode_certificate,
    encode_document,
    encode_epoch,
    encode_status,
)
from proofs.errors import FieldError
from proofs.leaf import pack, unpack
from proofs.quorum import IndexedSignature, minimal_threshold
from proofs.sets import AttestorSet, Rotation
from proofs.statement import Header, StatementBody
from tests.unit.attest.statements import certify, make_deployment, make_leaf, make_proposal, make_signers

DEPLOYMENT = make_deployment(4)
EVERYTHING = ("leaves", "levels", "log")
LIMIT = 1 << 20
NO_STATE = State((), (), {})

words = st.binary(min_size=32, max_size=32)
ids = words.map(lambda word: "0x" + word.hex())
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
u32, u64, u128 = (st.integers(0, 2**bits - 1) for bits in (32, 64, 128))
blocks = st.builds(Block, texts, u64, texts, texts, u64)
attestations = st.builds(Attestation, st.integers(0, 31), words, words)
headers = st.builds(Header, u64, words, u64, u32, u64, u64, words)
bodies = st.builds(StatementBody, *[words] * 6, u64, words)
certificates = st.builds(
    envelope.Certificate, headers, bodies, words, st.lists(attestations, max_size=4).map(lambda x: tuple(sorted(x)))
)
leaves = st.builds(
    LeafValues, ids, ids, u64, st.integers(-(2**127), 2**127 - 1), u128, u128, u128, u128, u128, u64, u64, u32
)
signatures = st.builds(IndexedSignature, st.integers(0, 31), words, words)
permits = st.builds(PermitRecord, ids, texts, texts, texts, st.integers(0, 2**256 - 1), texts, ids, u64, u64, texts)
levels = st.builds(
    Levels,
    u64,
    st.lists(st.builds(Level, ids, u128, u128), max_size=3).map(tuple),
    st.lists(st.tuples(texts, st.integers(0, 2**200)), max_size=2).map(tuple),
)


@st.composite
def rotations(draw: st.DrawFn) -> Rotation:
    members = draw(st.lists(st.binary(min_size=20, max_size=20).filter(any), min_size=1, max_size=5, unique=True))
    to = AttestorSet(draw(u32), tuple(members), minimal_threshold(len(members)), draw(u64), draw(u64))
    return Rotation(to, tuple(draw(st.lists(signatures, max_size=3))))


@st.composite
def laws(draw: st.DrawFn) -> LegLaw:
    seconds = sorted(draw(st.sets(u32, min_size=1, max_size=4)))
    chances = [draw(st.floats(0, 1, exclude_min=True)) for _ in seconds]
    leg = draw(st.sampled_from(["block", "relay"]))
    return LegLaw(leg, draw(texts), Law(tuple(seconds), tuple(chances)), draw(u32))


@st.composite
def states(draw: st.DrawFn) -> State:
    opened = sorted(draw(st.sets(ids, max_size=5)))
    kinds = st.sampled_from(["risk-bearing", "monitored"])
    accounts = [Account(account, draw(texts), draw(kinds), draw(texts), draw(texts)) for account in opened]
    count = draw(st.integers(0, 4)) if opened else 0
    links = tuple(
        LinkRecord(
            *(position + 1, draw(st.sampled_from(opened)), draw(texts), f"m{position}", draw(u64), draw(u64)),
            *(draw(texts), draw(texts), draw(u32)),
            *draw(st.sampled_from([("link", ""), ("shares", "eip155:1=7000")])),
        )
        for position in range(count)
    )
    return State(
        with_links(accounts, links),
        links,
        {account: draw(words) for account in opened},
        tuple(draw(st.lists(rotations(), max_size=2))),
        tuple(draw(st.lists(permits, max_size=2))),
        tuple(draw(st.lists(st.builds(Grant, ids, ids, u64, u128, u64), max_size=3))),
        draw(levels),
    )


@st.composite
def proposals(draw: st.DrawFn) -> Proposal:
    state = draw(states())
    everybody = [account.id for account in state.accounts]
    groups = draw(st.lists(st.tuples(blocks, st.sets(st.sampled_from(everybody)) if everybody else st.just(set()))))
    cut = Cut(
        draw(u64),
        draw(u64),
        tuple(draw(st.lists(blocks, max_size=3))),
        tuple(draw(st.lists(st.tuples(texts, texts), max_size=2))),
        tuple(Carried(block, tuple(sorted(accounts))) for block, accounts in groups),
        tuple(draw(st.lists(st.builds(Reorg, texts, u64, texts, texts), max_size=2))),
    )
    return Proposal(
        draw(headers),
        draw(bodies),
        draw(words),
        cut,
        tuple(draw(st.lists(leaves, max_size=4))),
        tuple(draw(st.lists(st.binary(max_size=40), max_size=3))),
        state,
        draw(st.none() | certificates),
        tuple(draw(st.lists(laws(), max_size=2))),
        previous_state=draw(texts),
    )


def with_tail(own: State, request: envelope.EpochRequest) -> State:
    """Take in what came along, as a replica would."""
    tail = request.tail
    if tail is None:
        return own
    accounts = {account.id: account for account in own.accounts} | {x.account.id: x.account for x in tail.accounts}
    links = own.links[: tail.start.links] + tail.links
    return State(
        with_links(sorted(accounts.values(), key=lambda a: a.id), links),
        links,
        {**own.salts, **{x.account.id: x.salt for x in tail.accounts}},
        own.rotations[: tail.start.rotations] + tail.rotations,
    )


def prefix(state: State, accounts: list[str], links: int, rotated: int) -> State:
    """Return a replica that has some accounts, and the beginnings of the logs."""
    log = state.links[:links]
    return State(
        with_links((replace(a, links=(), ending=(), shares=()) for a in state.accounts if a.id in accounts), log),
        log,
        {account: state.salts[account] for account in accounts},
        state.rotations[:rotated],
    )


@given(proposals())
@settings(max_examples=60, deadline=None)
def test_a_whole_proposal_comes_out_as_it_went_in(proposal: Proposal) -> None:
    request = decode_epoch(encode_epoch(proposal, EVERYTHING), LIMIT)
    assert assemble(request, with_tail(NO_STATE, request), levels=None, leaves=True) == proposal


@given(proposals(), st.data())
@settings(max_examples=60, deadline=None)
def test_two_requests_give_every_replica_the_proposal(proposal: Proposal, data: st.DataObject) -> None:
    state = proposal.state
    order = data.draw(st.permutations([account.id for account in state.accounts]))
    has = data.draw(st.integers(0, len(order)))
    own = prefix(
        state,
        order[:has],
        data.draw(st.integers(0, len(state.links) if has == len(order) else 0)),
        data.draw(st.integers(0, len(state.rotations))),
    )
    levels = data.draw(st.none() | st.just(state.levels))
    first = decode_epoch(encode_epoch(proposal), LIMIT)
    assert (first.leaves, first.levels, first.tail) == (None, None, None)
    need = assemble(first, own, levels=levels, leaves=True, order=order[:has])
    assert isinstance(need, Need)
    counts = (len(order), len(state.links), len(state.rotations))
    lacks = (has, len(own.links), len(own.rotations)) != counts
    assert ("log" in need.parts, "levels" in need.parts) == (lacks, levels is None)
    known_order = data.draw(st.sampled_from([order, ()]))
    second = decode_epoch(encode_epoch(proposal, need.parts, need.have, known_order), LIMIT)
    if lacks and known_order:
        assert second.tail is not None
        assert len(second.tail.accounts) == len(order) - has  # nothing is sent twice
    assert assemble(second, with_tail(own, second), levels=levels, leaves=True, order=order) == proposal


def make_state(*accounts: int) -> State:
    opened = [Account(f"0x{n:064x}", "c", "monitored", "h") for n in sorted(accounts)]
    return State(tuple(opened), (), {account.id: b"\x05" * 32 for account in opened})


def test_as_many_other_accounts_are_noticed() -> None:
    proposal = make_proposal(DEPLOYMENT, 7, state=make_state(1, 2))
    request = decode_epoch(encode_epoch(proposal, ("levels",)))
    need = assemble(request, make_state(1, 3), levels=None)
    assert need == Need(("log",), Counts(0, 0, 0))
    request = decode_epoch(encode_epoch(proposal, ("levels", *need.parts), need.have))
    found = assemble(request, with_tail(make_state(1, 3), request), levels=None)
    assert isinstance(found, Proposal)
    assert found.state == proposal.state


def test_a_replica_that_is_ahead_gives_what_the_proposer_had() -> None:
    proposal = make_proposal(DEPLOYMENT, 7, state=make_state(1, 4))
    request = decode_epoch(encode_epoch(proposal, ("levels",)))
    own = make_state(1, 2, 3, 4)
    order = [f"0x{n:064x}" for n in (4, 1, 2, 3)]
    found = assemble(request, own, levels=None, order=order)
    assert isinstance(found, Proposal)
    assert found.state == proposal.state


def test_a_tail_that_lacks_what_it_counts_is_refused() -> None:
    proposal = make_proposal(DEPLOYMENT, 7, state=make_state(1, 2))
    request = decode_epoch(encode_epoch(proposal, ("levels", "log")))
    assert request.tail is not None
    forged = replace(request, tail=request.tail._replace(accounts=request.tail.accounts[:1]))
    with pytest.raises(FieldError, match=r"^log: does not hold"):
        assemble(forged, with_tail(NO_STATE, forged), levels=None)


def test_without_leaves_they_are_not_asked_for_before_they_are_needed() -> None:
    proposal = make_proposal(DEPLOYMENT, 7)
    request = decode_epoch(encode_epoch(proposal, ("levels",)))
    assert assemble(request, NO_STATE, levels=None, leaves=True) == Need(("leaves",), NOTHING)
    found = assemble(request, NO_STATE, levels=None)
    assert isinstance(found, Proposal)
    assert found == replace(proposal, leaves=())


@given(leaves)
def test_leaves_travel_in_the_packed_form_of_the_proofs(leaf: LeafValues) -> None:
    packed = envelope._pack_leaves([leaf])
    assert packed == pack(to_leaf(leaf))
    assert unpack(packed) == to_leaf(leaf)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"equity": 2**127}, "equity"),
        ({"assets_initial": -1}, "assetsInitial"),
        ({"budget": 2**128}, "budget"),
        ({"flags": 2**32}, "flags"),
        ({"as_of": -1}, "asOf"),
        ({"account": "0x12"}, "account"),
        ({"destination": "eip155:1"}, "destination"),
    ],
)
def test_a_leaf_beyond_its_range_is_named(changes: dict[str, Any], field: str) -> None:
    proposal = replace(make_proposal(DEPLOYMENT, 7), leaves=(make_leaf(7), make_leaf(7, 2)._replace(**changes)))
    with pytest.raises(FieldError, match=rf"^leaves\[1\]\.{field}: "):
        encode_epoch(proposal, ("leaves",))


@pytest.mark.parametrize(
    ("state", "field"),
    [
        (State((), (), {}, grants=(Grant("0x" + "11" * 32, "0x" + "22" * 32, 1, 2**128, 1),)), r"grants\[0\].budget"),
        (State((), (), {}, grants=(Grant("0x" + "11" * 32, "0x" + "22" * 32, -1, 1, 1),)), r"grants\[0\].epoch"),
        (State((), (), {}, grants=(Grant("0x" + "AA" * 32, "0x" + "22" * 32, 1, 1, 1),)), r"grants\[0\].account"),
        (State((), (), {}, levels=Levels(1, (Level("0x" + "11" * 32, -1, 0),))), r"levels\[0\].base"),
    ],
)
def test_a_state_beyond_encoding_is_named(state: State, field: str) -> None:
    with pytest.raises(FieldError, match=f"^{field}: "):
        encode_epoch(make_proposal(DEPLOYMENT, 7, state=state), ("levels",))


def test_an_account_carried_but_not_in_the_state_is_named() -> None:
    cut = Cut(7, 14, (), carried=(Carried(Block("c", 1, "h", "p", 1), ("0x" + "11" * 32,)),))
    with pytest.raises(FieldError, match=r"^cut\.carried: 0x1111"):
        encode_epoch(make_proposal(DEPLOYMENT, 7, cut=cut))


# --- anything else ------------------------------------------------------------------------------------------------

SAMPLE = make_proposal(
    DEPLOYMENT,
    7,
    state=replace(
        make_state(1, 2),
        links=(LinkRecord(1, f"0x{1:064x}", "c", "m", 1, 2, "i", "a", 3),),
        rotations=(Rotation(AttestorSet(2, (b"\x01" * 20,), 1, 9, 10), (IndexedSignature(0, b"r" * 32, b"s" * 32),)),),
        permits=(PermitRecord("0x11", "c", "v", "a", 2**70, "t", "0x22", 1, 2, "sig"),),
        grants=(Grant("0x" + "11" * 32, "0x" + "22" * 32, 1, 5, 9),),
        levels=Levels(3, (Level("0x" + "11" * 32, 1, 2),), (("ETH/USD", 2**70),)),
    ),
    cut=Cut(
        7,
        14,
        (Block("eip155:1", 5, "0xaa", "0xbb", 13),),
        (("eip155:2", "dark"),),
        (Carried(Block("eip155:1", 4, "0xcc", "0xdd", 12), (f"0x{1:064x}",)),),
        (Reorg("eip155:1", 3, "0x1", "0x2"),),
    ),
    updates=(b"update",),
    previous=certify(DEPLOYMENT, make_proposal(DEPLOYMENT, 6)),
    latency=(LegLaw("block", "eip155:1", Law((1, 2), (0.5, 0.5)), 3),),
)
DIGEST = b"\x07" * 32
ANSWERS: list[Any] = [
    Attestation(3, b"r" * 32, b"s" * 32),
    SignedRefusal(7, DIGEST, "leaves: 2 proposed, 1 found", b"r" * 32, b"s" * 32),
    Need(("leaves", "log"), Counts(1, 2, 3)),
]
CLAIMED = tuple(Grant("0x" + f"{i:064x}", "0x" + "ab" * 32, 6, 10 * i, 99) for i in range(1, 4))
STATUS = Status(2, 5, 7, Counts(1, 2, 3), SAMPLE.previous, (Seen(1, 4, 6), Seen(3, 9, 7)))
DOCUMENT = {"account": "0x11", "amount": "12", "until": 2**63, "flags": [True, None], "terms": {"a": -1}}
DECODERS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (encode_epoch(SAMPLE, EVERYTHING), decode_epoch),
    *((encode_answer(Answer(2, 9, result)), decode_answer) for result in ANSWERS),
    (encode_status(STATUS), decode_status),
    (encode_certificate(SAMPLE.previous), decode_certificate),  # type: ignore[arg-type]
    (encode_document("permit", DOCUMENT), lambda body: decode_document("permit", body)),
]


def test_everything_else_comes_out_as_it_went_in() -> None:
    for result in ANSWERS:
        assert decode_answer(encode_answer(Answer(2, 9, result))) == Answer(2, 9, result)
    assert decode_status(encode_status(STATUS)) == STATUS
    assert decode_status(encode_status(replace(STATUS, index=None, certificate=None))).index is None
    assert SAMPLE.previous is not None
    assert decode_certificate(encode_certificate(SAMPLE.previous)) == SAMPLE.previous
    assert decode_document("permit", encode_document("permit", DOCUMENT)) == DOCUMENT


@given(st.binary(max_size=200))
def test_noise_is_refused_as_a_field(noise: bytes) -> None:
    for _, decode in DECODERS:
        for body in (noise, zlib.compress(noise), zlib.compress(len(noise).to_bytes(4, "big") + noise)):
            with pytest.raises(FieldError):
                decode(body)


@given(st.sampled_from(DECODERS), st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_another_value_or_a_field_error(
    case: tuple[bytes, Callable[[bytes], object]], data: st.DataObject
) -> None:
    body, decode = case
    frame = bytearray(zlib.decompress(body))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FieldError):
        assert decode(zlib.compress(bytes(frame))) != decode(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def frame_of(value: object, blobs: bytes = b"") -> bytes:
    text = orjson.dumps(value)
    return zlib.compress(len(text).to_bytes(4, "big") + text + blobs)


def opened(body: bytes) -> tuple[Any, bytes]:
    frame = zlib.decompress(body)
    size = int.from_bytes(frame[:4], "big")
    return orjson.loads(frame[4 : 4 + size]), frame[4 + size :]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@given(st.sampled_from(DECODERS), st.data())
@settings(max_examples=400, deadline=None)
def test_any_value_in_any_place_is_read_or_refused_as_a_field(
    case: tuple[bytes, Callable[[bytes], object]], data: st.DataObject
) -> None:
    body, decode = case
    value, blobs = opened(body)
    path = data.draw(st.sampled_from(places(value)))
    other = data.draw(json_values)
    if path:
        at = value
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = other
    else:
        value = other
    with contextlib.suppress(FieldError):  # anything else fails the test
        decode(frame_of(value, blobs))


def changed(body: bytes, **changes: Any) -> bytes:
    value, blobs = opened(body)
    return frame_of({**value, **changes}, blobs)


EPOCH, ANSWER = DECODERS[0][0], DECODERS[1][0]
REFUSAL, NEED = DECODERS[2][0], DECODERS[3][0]


@pytest.mark.parametrize(
    ("decode", "body", "message"),
    [
        (decode_epoch, changed(EPOCH, v=2), "^v: version 2 given, 1 expected"),
        (decode_epoch, ANSWER, "^kind: 'answer' given, 'epoch' expected"),
        (decode_epoch, changed(EPOCH, more=1), "^more: unknown key"),
        (decode_epoch, changed(EPOCH, leaves=False), "^blobs.leaves: a part that is not announced"),
        (decode_epoch, changed(EPOCH, levels=None), "^blobs.levels: a part that is not announced"),
        (decode_epoch, changed(EPOCH, log=None), "^blobs.accounts: a part that is not announced"),
        (decode_epoch, changed(EPOCH, counts=[1, 1, 1]), "^(cut.carried|log)"),
        (decode_epoch, changed(EPOCH, counts=[2, 1, 2]), "^log: ends at"),
        (decode_epoch, changed(EPOCH, header="00"), "^header: 1 bytes given, 100 expected"),
        (decode_epoch, changed(EPOCH, digest="0x" + "00" * 32), "^digest: hex without 0x"),
        (decode_epoch, changed(EPOCH, latency=[["block", "c", [2, 1], [0.5, 0.5], 1]]), r"^latency\[0\]\[2\]"),
        (decode_epoch, changed(EPOCH, latency=[["block", "c", [1], [1.5], 1]]), r"^latency\[0\]\[3\]\[0\]"),
        (decode_epoch, changed(EPOCH, latency=[["steps", "c", [1], [1.0], 1]]), r"^latency\[0\]\[0\]: 'steps'"),
        (decode_epoch, changed(EPOCH, blobs={"leaves": 1 << 60}), "^blobs.leaves: .* announced"),
        (decode_epoch, changed(EPOCH, blobs={}), "^body: .* bytes after its end"),
        (decode_epoch, zlib.compress(b"\0\0\0\x0f" + b'{"v":1 ,"v":1} ' + b""), "one encoding"),
        (decode_epoch, zlib.compress(b"\0\0\0\x0d" + b'{"v":1,"v":1}'), "one encoding"),
        (decode_epoch, zlib.compress(b"\xff\xff\xff\xff{}"), "^body: ends before its JSON"),
        (decode_epoch, EPOCH + b"\0", "^body: cut off, or followed"),
        (decode_epoch, EPOCH[:-1], "^body: cut off, or followed"),
        (decode_answer, changed(REFUSAL, refusal=[7, "07" * 32, "x" * 6001, "00" * 64]), r"^refusal\[2\]: 6001"),
        (decode_answer, changed(REFUSAL, refusal=[7, "07" * 32, "a\nb", "00" * 64]), r"^refusal\[2\]: one line"),
        (decode_answer, changed(REFUSAL, refusal=[7, "07" * 32, "", "00" * 64]), r"^refusal\[2\]: one line"),
        (decode_answer, changed(REFUSAL, attestation="00" * 65), "^refusal: unknown key"),
        (decode_answer, changed(NEED, need=["log", "leaves"]), "^need: some of"),
        (decode_answer, changed(NEED, need=[]), "^need: some of"),
        (decode_answer, changed(NEED, need=["secrets"]), r"^need\[0\]: 'secrets'"),
        (decode_answer, changed(NEED, have=[1, 2]), "^have: 2 entries given, 3 expected"),
        (decode_answer, changed(ANSWER, index=256), "^index: 256 is outside uint8"),
        (decode_answer, changed(ANSWER, starts=1 << 63), "^starts: "),
        (decode_status, changed(encode_status(STATUS), seen=[[1, 2, 3], [1, 2, 3]]), "^seen: "),
        (decode_status, changed(encode_status(STATUS), seen=[[i, 2, 3] for i in range(33)]), "^seen: "),
    ],
)
def test_what_is_wrong_is_named(decode: Callable[[bytes], object], body: bytes, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        decode(body)


def test_a_bomb_is_unpacked_no_further_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zlib.compress(bytes(64 << 20))
    assert len(bomb) < 1 << 17
    asked: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self._real = real()

        def decompress(self, body: bytes, most: int) -> bytes:
            asked.append(most)
            found = self._real.decompress(body, most)
            assert len(found) <= most
            return found

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(FieldError, match=r"^body: unpacks to more than 2097152 bytes"):
        decode_answer(bomb)
    for decode in (decode_status, decode_certificate):
        with pytest.raises(FieldError, match=r"^body: unpacks to more than 131072 bytes"):
            decode(bomb)
    with pytest.raises(FieldError, match=r"^body: unpacks to more than 1048576 bytes"):
        decode_epoch(bomb, LIMIT)
    assert max(asked) == 2 * LIMIT + 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "^document: an object"),
        ({"a": 1.5}, "^document.a: float given"),
        ({"a": {"b": [b"x"]}}, r"^document.a.b\[0\]: bytes given"),
        ({"a": 2**64}, "^document.a: an integer beyond 64 bits"),
        ({1: 2}, "^document: keys must be text"),
        ({"a": "\ud800"}, "^permit: has no JSON text"),
        ({"a": [[[[[[[[[]]]]]]]]]}, "^document: nested deeper"),
    ],
)
def test_documents_are_plain_and_shallow(document: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        encode_document("permit", document)


def test_a_document_is_of_its_kind() -> None:
    with pytest.raises(FieldError, match=r"^kind: 'permit' given, 'hold' expected"):
        decode_document("hold", encode_document("permit", DOCUMENT))
    assert envelope.document_digest("permit", {"a": 1, "b": 2}) == envelope.document_digest("permit", {"b": 2, "a": 1})
    assert envelope.document_digest("permit", DOCUMENT) != envelope.document_digest("hold", DOCUMENT)


def test_a_refusal_is_signed_by_who_refuses() -> None:
    signers = make_signers(2)
    members = [bytes.fromhex(signer.address[2:]) for signer in signers]
    deployment_id = DEPLOYMENT.deployment_id()
    error = RefusedError("leaves", "0x01: budget 2 proposed,\n1 found \ud800" + "x" * 7000)
    refusal = envelope.sign_refusal(signers[0], deployment_id, 7, DIGEST, error)
    assert refusal.reason.startswith("leaves: 0x01: budget 2 proposed, 1 found  xxx")
    assert (len(refusal.reason), refusal.reason.isprintable()) == (envelope.REASON_LIMIT, True)
    envelope.verify_refusal(refusal, members[0], deployment_id)
    for changed_refusal, member, deployment in (
        (refusal, members[1], deployment_id),
        (refusal, members[0], bytes(32)),
        (refusal._replace(reason="leaves: nothing"), members[0], deployment_id),
        (refusal._replace(epoch=8), members[0], deployment_id),
        (refusal._replace(digest=bytes(32)), members[0], deployment_id),
        (refusal._replace(vs=b"\xff" * 32), members[0], deployment_id),
    ):
        with pytest.raises(FieldError, match=r"^refusal\.signature"):
            envelope.verify_refusal(changed_refusal, member, deployment)


def claiming(grants: Sequence[Grant], result: Any = ANSWERS[1]) -> bytes:
    return encode_answer(Answer(2, 5, result, tuple(grants)))


def test_a_refusal_may_claim_grants() -> None:
    answer = Answer(2, 5, ANSWERS[1], CLAIMED)
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (claiming(CLAIMED, ANSWERS[0]), r"^blobs\.grants: claimed by an answer that is no refusal"),
        (claiming(CLAIMED, ANSWERS[2]), r"^blobs\.grants: claimed by an answer that is no refusal"),
        (claiming(CLAIMED[::-1]), r"^blobs\.grants: at most 10000 grants expected, ascending"),
        (claiming((CLAIMED[0], CLAIMED[0])), "ascending"),
        (claiming([CLAIMED[0]._replace(account="0x" + f"{i:064x}") for i in range(10_001)]), "at most 10000"),
        (claiming((CLAIMED[0]._replace(budget=0),)), r"^blobs\.grants: a grant of nothing"),
        (
            frame_of({**opened(claiming(()))[0], "blobs": {"links": 1}}, bytes(32)),
            r"^blobs\.links: no part of an answer",
        ),
    ],
)
def test_claims_are_decoded_strictly(body: bytes, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        decode_answer(body)


def test_a_refusals_digest_is_what_eth_account_signs() -> None:
    from eth_account.messages import _hash_eip191_message, encode_typed_data

    deployment_id = DEPLOYMENT.deployment_id()
    message = encode_typed_data(
        domain_data={"name": "crossmargin", "version": "1", "salt": deployment_id},
        message_types={
            "Refusal": [
                {"name": "epoch", "type": "uint64"},
                {"name": "digest", "type": "bytes32"},
                {"name": "reason", "type": "string"},
            ]
        },
        message_data={"epoch": 7, "digest": DIGEST, "reason": "leaves: ε"},
    )
    assert envelope.refusal_digest(7, DIGEST, "leaves: ε", deployment_id) == bytes(_hash_eip191_message(message))
