"""What coordinator and attestors say to each other, as bytes: exact, versioned, strictly decoded.

A body is zlib over a frame: the length of a JSON text (4 bytes, big-endian), the text, and the binary parts it counts,
one after the other. The JSON is orjson's own text of its value, so that one value has one encoding; integers beyond 64
bits are decimal text. Leaves travel in the packed form of ``proofs.leaf`` (188 bytes), account ids in 32 bytes.

Every ``decode_`` raises :class:`proofs.errors.FieldError`, which names the field, and nothing else, whatever it is
given; no more than ``limit`` bytes are ever unpacked. Decoding says that a body is well formed, not that it is true.

An epoch travels in one request, or in a few. The first has no leaves, no levels and nothing of the accounts, links and
rotations; :func:`assemble` makes a proposal of it and of the attestor's own replica, or says what is needed besides,
and the next one has that too. Preimages do not travel: whoever checks a digest computes its own text.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args

import orjson

from aggregator.domain.budgets import CLAIMS, Grant, Level, Levels, PermitRecord
from aggregator.domain.certificate import Attestation, Certificate, EpochRecord, LinkKind, LinkRecord, State, to_leaf
from aggregator.domain.errors import RefusedError
from aggregator.domain.latency import LEGS, LatencyTables, Law, LegLaw
from aggregator.domain.links import with_links
from aggregator.domain.report import LeafValues
from aggregator.domain.snapshot import Account, Block, Carried, Cut, Reorg
from aggregator.ports import Signer
from aggregator.service.attest import Proposal
from proofs.document import Node, canonical_json
from proofs.errors import FieldError
from proofs.fields import require_uint
from proofs.hashing import keccak256
from proofs.leaf import PACKED_LENGTH
from proofs.quorum import MAX_MEMBERS, SIGNATURE_LENGTH, IndexedSignature
from proofs.refusals import refusal_digest
from proofs.refusals import verify_refusal as verify_signed_refusal
from proofs.sets import AttestorSet, Rotation
from proofs.statement import HEADER_LENGTH, Header, StatementBody, pack_header, unpack_header

VERSION: Final = 1
EPOCH_LIMIT: Final = 256 << 20
"""Bytes that an epoch's request may unpack to; 100,000 accounts at 3 destinations with the whole log, take half."""
DOCUMENT_LIMIT: Final = 128 << 10
"""Bytes that anything else may unpack to."""
ANSWER_LIMIT: Final = 2 << 20
"""Bytes that an answer may unpack to; grants that are claimed with a refusal take half."""
STATE_LIMIT: Final = 64 << 20
"""Characters of the text behind a state digest; it lists the grants of accounts that are shared out."""
REASON_LIMIT: Final = 6_000
"""Characters of a refusal's text: twenty differences between leaves fit."""

Kind = Literal["epoch", "rotation", "permit", "hold"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Part = Literal["leaves", "levels", "log"]
PARTS: tuple[Part, ...] = get_args(Part)
T = TypeVar("T")

_TEXT, _LONG_TEXT = 256, 16_384  # characters: names and ids; causes, and signatures of contracts
_DEPTH = 8
_STARTS = 63  # bits of a fencing number
_LEAF = struct.Struct(">32s32sQ16s16s16s16s16s16sQQI")
_LEVEL = struct.Struct(">32s16s16s")
_GRANT = struct.Struct(">32s32sQ16sQ")
_OPENED = struct.Struct(">32s32s")
_BODY = struct.Struct(">32s32s32s32s32s32sQ32s")
_BLOBS = {"accounts": 64, "carried": 4, "grants": _GRANT.size, "leaves": PACKED_LENGTH, "levels": 64, "links": 32}
"""Binary parts in the order they travel in, with the bytes that one entry takes."""
_TEXTS = ("cut", "levels", "policy", "prices", "risk", "state")
_SPEED = 1  # of zlib: a higher level takes longer than the bytes it saves take to travel


class Counts(NamedTuple):
    """How many accounts, links and rotations a party has: its log up to here."""

    accounts: int
    links: int
    rotations: int


NOTHING: Final = Counts(0, 0, 0)


class Opened(NamedTuple):
    """An account as it was opened, with the salt that ties it to its controller. Its links are in the log."""

    account: Account
    salt: bytes


class Tail(NamedTuple):
    """What came after ``start`` in the proposer's log. All accounts, not only new ones, if ``start.accounts`` is 0."""

    start: Counts
    accounts: tuple[Opened, ...]
    links: tuple[LinkRecord, ...]
    rotations: tuple[Rotation, ...]


@dataclass(frozen=True, slots=True)
class EpochRequest:
    """A proposal as it travels; parts that were left out are None.

    Args:
        cut: as proposed, but for ``carried``.
        carried: blocks with the places of their accounts in the proposer's, which are ascending.
        counts: of the proposer's log. accounts_digest: SHA-256 over its account ids, ascending.
        state: permits and grants, nothing else.
    """

    header: Header
    body: StatementBody
    digest: bytes
    cut: Cut
    carried: tuple[tuple[Block, tuple[int, ...]], ...]
    updates: tuple[bytes, ...]
    previous: Certificate | None
    previous_state: str
    latency: LatencyTables
    counts: Counts
    accounts_digest: bytes
    state: State
    leaves: tuple[LeafValues, ...] | None = None
    levels: Levels | None = None
    tail: Tail | None = None


class Need(NamedTuple):
    """Which parts the attestor wants sent, and what it has of the log."""

    parts: tuple[Part, ...]  # in the order of PARTS
    have: Counts


class SignedRefusal(NamedTuple):
    """Why an attestor does not sign, signed with its key: EIP-712 ``Refusal`` in the deployment's domain."""

    epoch: int  # 0 where it is no epoch
    digest: bytes  # of the statement, or `document_digest`
    reason: str  # "<rule>: <both values>", at most REASON_LIMIT printable characters
    r: bytes
    vs: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attestor says to anything it is asked to sign."""

    index: int  # the attestor's number in everybody's configuration; its seat in a set may be another
    starts: int  # its fencing number
    result: Attestation | SignedRefusal | Need
    claims: tuple[Grant, ...] = ()  # with a refusal for grants alone: those of its record that were not listed


@dataclass(frozen=True, slots=True)
class Seen:
    """The highest fencing number and epoch that a party saw of an attestor."""

    index: int
    starts: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Status:
    """How far a party is."""

    index: int | None  # None = the coordinator
    starts: int
    highest: int  # epoch it signed, 0 = none
    counts: Counts
    certificate: Certificate | None  # the newest it knows
    seen: tuple[Seen, ...] = ()


# --- proposals ---------------------------------------------------------------------------------------------------


def encode_epoch(
    proposal: Proposal, parts: Iterable[Part] = (), have: Counts = NOTHING, order: Sequence[str] = ()
) -> bytes:
    """Encode a proposal with the named parts.

    Args:
        have: what the receiver has of the log; ``log`` sends what comes after.
        order: account ids in the order they were opened. Without it all accounts are sent to whoever lacks some.

    Raises:
        FieldError: a value that no attestor could read, a leaf beyond 128 bits for example.
    """
    state, cut = proposal.state, proposal.cut
    ids = [account.id for account in state.accounts]
    places = {account: place for place, account in enumerate(ids)}
    counts = Counts(len(ids), len(state.links), len(state.rotations))
    blobs: dict[str, bytes] = {"grants": _pack_grants(state.grants), "carried": _pack_carried(cut.carried, places)}
    value: dict[str, Any] = {
        "header": pack_header(proposal.header).hex(),
        "body": _pack_body(proposal.body).hex(),
        "digest": proposal.digest.hex(),
        "cut": {
            "epoch": cut.epoch,
            "time": cut.cut_time,
            "blocks": [list(block) for block in cut.blocks],
            "gaps": [list(gap) for gap in cut.gaps],
            "carried": [[*carried.block, len(carried.accounts)] for carried in cut.carried],
            "reorgs": [list(reorg) for reorg in cut.reorgs],
        },
        "updates": [update.hex() for update in proposal.updates],
        "previous": None if proposal.previous is None else _certificate_value(proposal.previous),
        "previous_state": proposal.previous_state,
        "latency": [
            [law.leg, law.chain, list(law.law.seconds), [float(p) for p in law.law.chance], law.samples]
            for law in proposal.latency
        ],
        "counts": list(counts),
        "accounts": _digest_ids(ids).hex(),
        "permits": [[*p[:4], str(p.amount), *p[5:]] for p in state.permits],
        "levels": None,
        "log": None,
    }
    wanted = set(parts)
    if "leaves" in wanted:
        blobs["leaves"] = _pack_leaves(proposal.leaves)
    value["leaves"] = "leaves" in wanted
    if "levels" in wanted:
        levels = state.levels
        value["levels"] = [levels.window, [[feed, str(spent)] for feed, spent in levels.spent]]
        blobs["levels"] = _pack_levels(levels.accounts)
    if "log" in wanted:
        value["log"], packed = _pack_log(state, have, counts, order)
        blobs |= packed
    return _close("epoch", value, blobs)


def decode_epoch(body: bytes, limit: int = EPOCH_LIMIT) -> EpochRequest:
    """Decode a proposal, with or without its parts.

    Raises:
        FieldError: names the field at fault.
    """
    node, blobs = _open("epoch", body, limit)
    node.only(
        *("v", "kind", "blobs", "header", "body", "digest", "cut", "updates", "previous", "previous_state", "latency"),
        *("counts", "accounts", "permits", "leaves", "levels", "log"),
    )
    counts = _counts(node.member("counts"))
    cut = node.member("cut")
    cut.only("epoch", "time", "blocks", "gaps", "carried", "reorgs")
    leaves, levels, log = node.member("leaves"), node.optional("levels"), node.optional("log")
    if not isinstance(leaves.value, bool):
        raise FieldError("leaves", "true or false expected")
    for name, there in (
        ("leaves", leaves.value),
        ("levels", levels is not None),
        ("accounts", log is not None),
        ("links", log is not None),
    ):
        if blobs[name] and not there:
            raise FieldError(f"blobs.{name}", "a part that is not announced")
    previous = node.optional("previous")
    return EpochRequest(
        header=unpack_header(_bytes(node.member("header"), HEADER_LENGTH)),
        body=_unpack_body(_bytes(node.member("body"), _BODY.size)),
        digest=_bytes(node.member("digest"), 32),
        cut=Cut(
            _uint(cut.member("epoch")),
            _uint(cut.member("time")),
            tuple(_block(row) for row in cut.member("blocks").items()),
            tuple(_pair(row) for row in cut.member("gaps").items()),
            reorgs=tuple(_reorg(row) for row in cut.member("reorgs").items()),
        ),
        carried=_unpack_carried(cut.member("carried"), blobs["carried"], counts.accounts),
        updates=tuple(_bytes(update) for update in node.member("updates").items()),
        previous=None if previous is None else _certificate(previous),
        previous_state=_text(node.member("previous_state"), STATE_LIMIT),
        latency=tuple(_law(row) for row in node.member("latency").items()),
        counts=counts,
        accounts_digest=_bytes(node.member("accounts"), 32),
        state=State(
            (),
            (),
            {},
            permits=tuple(_permit(row) for row in node.member("permits").items()),
            grants=_unpack_grants(blobs["grants"]),
        ),
        leaves=_unpack_leaves(blobs["leaves"]) if leaves.value else None,
        levels=None if levels is None else _levels(levels, blobs["levels"]),
        tail=None if log is None else _log(log, blobs["accounts"], blobs["links"], counts),
    )


def assemble(
    request: EpochRequest,
    own: State,
    *,
    levels: Levels | None,
    leaves: bool = False,
    order: Sequence[str] = (),
) -> Proposal | Need:
    """Return the proposal that a request stands for on an attestor's own replica, or what is needed for that.

    Args:
        own: the replica's state as stores give it, the request's tail taken in already: accounts ascending, with what
            its links give them.
        levels: one's own, as the newest certified statement left them; None = unknown.
        leaves: whether the leaves are needed. Without them ``Proposal.leaves`` is () where the request has none.
        order: the replica's account ids in the order it learnt them.

    Raises:
        FieldError: the tail lacks what it says it has.
    """
    counts, have = request.counts, Counts(len(own.accounts), len(own.links), len(own.rotations))
    parts: set[Part] = set()
    if leaves and request.leaves is None:
        parts.add("leaves")
    standing = levels if request.levels is None else request.levels
    if standing is None:
        parts.add("levels")
    accounts = _choose_accounts(request, own, order)
    if accounts is None and (request.tail is not None or have.accounts >= counts.accounts):
        # Counts did not tell which accounts the proposer has, so all of them are asked for.
        have = have._replace(accounts=0)
    if accounts is None or have.links < counts.links or have.rotations < counts.rotations:
        if request.tail is not None and (request.tail.start.accounts == 0 or accounts is not None):
            raise FieldError("log", "does not hold what the proposal counts")
        parts.add("log")
    if parts or accounts is None or standing is None:
        return Need(tuple(part for part in PARTS if part in parts), have)
    links = own.links[: counts.links]
    ids = [account.id for account in accounts]
    same = (len(ids), len(links)) == (len(own.accounts), len(own.links))
    return Proposal(
        header=request.header,
        body=request.body,
        digest=request.digest,
        cut=replace(
            request.cut,
            carried=tuple(Carried(block, tuple(ids[place] for place in places)) for block, places in request.carried),
        ),
        leaves=() if request.leaves is None else request.leaves,
        updates=request.updates,
        state=State(
            own.accounts if same else with_links(accounts, links),
            links,
            {account: own.salts[account] for account in ids},
            own.rotations[: counts.rotations],
            request.state.permits,
            request.state.grants,
            standing,
        ),
        previous=request.previous,
        previous_state=request.previous_state,
        latency=request.latency,
    )


def _choose_accounts(request: EpochRequest, own: State, order: Sequence[str]) -> list[Account] | None:
    """Return the proposer's accounts, ascending, as far as the replica has them; None if it cannot tell."""
    known = {account.id: account for account in own.accounts}
    guesses = [list(known), list(order[: request.counts.accounts])]
    if request.tail is not None and request.tail.start.accounts == 0:
        guesses.append([opened.account.id for opened in request.tail.accounts])
    for ids in guesses:
        ids.sort()
        if len(ids) == request.counts.accounts and _digest_ids(ids) == request.accounts_digest:
            return [known[account] for account in ids] if all(account in known for account in ids) else None
    return None


def _digest_ids(ids: Iterable[str]) -> bytes:
    return sha256(b"".join(_id("accounts", account) for account in ids)).digest()


# --- answers -----------------------------------------------------------------------------------------------------


def sign_refusal(signer: Signer, deployment_id: bytes, epoch: int, digest: bytes, error: RefusedError) -> SignedRefusal:
    """Sign why ``digest`` (32 bytes) is not signed; the text is bounded first."""
    reason = bound_text(str(error))
    return SignedRefusal(epoch, digest, reason, *signer.sign(refusal_digest(epoch, digest, reason, deployment_id)))


def verify_refusal(refusal: SignedRefusal, member: bytes, deployment_id: bytes) -> None:
    """Raise FieldError unless ``member`` (20 bytes) signed the refusal."""
    verify_signed_refusal(*refusal[:3], refusal.r + refusal.vs, member, deployment_id)


def bound_text(text: str, limit: int = REASON_LIMIT) -> str:
    """Return ``text`` on one printable line of at most ``limit`` characters."""
    line = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def encode_answer(answer: Answer) -> bytes:
    """Encode an attestor's answer."""
    result = answer.result
    value: dict[str, Any] = {"index": answer.index, "starts": answer.starts}
    if isinstance(result, Attestation):
        value["attestation"] = IndexedSignature(*_as_signature(result)).pack().hex()
    elif isinstance(result, SignedRefusal):
        value["refusal"] = [result.epoch, result.digest.hex(), result.reason, (result.r + result.vs).hex()]
    else:
        value |= {"need": list(result.parts), "have": list(result.have)}
    return _close("answer", value, {"grants": _pack_grants(answer.claims)})


def decode_answer(body: bytes, limit: int = ANSWER_LIMIT) -> Answer:
    """Decode an attestor's answer.

    Raises:
        FieldError: names the field at fault.
    """
    node, blobs = _open("answer", body, limit)
    index, starts = _uint(node.member("index"), 8), _uint(node.member("starts"), _STARTS)
    common = ("v", "kind", "blobs", "index", "starts")
    result: Attestation | SignedRefusal | Need
    if (given := node.optional("attestation")) is not None:
        node.only(*common, "attestation")
        signature = IndexedSignature.unpack(_bytes(given, SIGNATURE_LENGTH))
        result = Attestation(signature.index, signature.r, signature.vs)
    elif (given := node.optional("refusal")) is not None:
        node.only(*common, "refusal")
        epoch, digest, reason, signed = _row(given, 4)
        text = _text(reason, REASON_LIMIT)
        if not text or not text.isprintable():
            raise FieldError(reason.path, "one line of printable text expected")
        signature_bytes = _bytes(signed, 64)
        result = SignedRefusal(_uint(epoch), _bytes(digest, 32), text, signature_bytes[:32], signature_bytes[32:])
    else:
        node.only(*common, "need", "have")
        result = Need(_parts(node.member("need")), _counts(node.member("have")))
    return Answer(index, starts, result, _claims(blobs, result))


def _claims(blobs: Mapping[str, memoryview], result: Attestation | SignedRefusal | Need) -> tuple[Grant, ...]:
    if other := next((name for name, packed in blobs.items() if packed and name != "grants"), ""):
        raise FieldError(f"blobs.{other}", "no part of an answer")
    claims = _unpack_grants(blobs["grants"])
    if claims and not isinstance(result, SignedRefusal):
        raise FieldError("blobs.grants", "claimed by an answer that is no refusal")
    if len(claims) > CLAIMS or any(one >= other for one, other in pairwise(claims)):
        raise FieldError("blobs.grants", f"at most {CLAIMS} grants expected, ascending")
    if not all(claim.budget for claim in claims):
        raise FieldError("blobs.grants", "a grant of nothing")
    return claims


def _parts(node: Node) -> tuple[Part, ...]:
    parts = tuple(_one_of(part, PARTS) for part in node.items())
    if not parts or parts != tuple(part for part in PARTS if part in parts):
        raise FieldError(node.path, f"some of {', '.join(PARTS)} expected, each once and in this order")
    return parts


# --- documents, certificates, status -----------------------------------------------------------------------------


def document_digest(kind: Kind, document: Mapping[str, Any]) -> bytes:
    """Return what names a document in a refusal: keccak256 over its kind and its canonical text."""
    return keccak256(b"crossmargin/document/1\0" + kind.encode() + b"\0" + canonical_json(document).encode())


def encode_document(kind: Kind, document: Mapping[str, Any]) -> bytes:
    """Encode a rotation, permit or hold; what is in it is its own kind's business.

    Raises:
        FieldError: it is no JSON object of texts, integers of 64 bits, booleans, lists and objects.
    """
    _check_document(document)
    return _close(kind, {"document": dict(document)})


def decode_document(kind: Kind, body: bytes, limit: int = DOCUMENT_LIMIT) -> dict[str, Any]:
    """Decode a rotation, permit or hold to the mapping that was encoded.

    Raises:
        FieldError: names the field at fault.
    """
    node, _ = _open(kind, body, limit)
    node.only("v", "kind", "blobs", "document")
    document = node.member("document").value
    _check_document(document)
    assert isinstance(document, dict)
    return document


def _check_document(document: object) -> None:
    if not isinstance(document, Mapping):
        raise FieldError("document", "an object expected")
    level: list[tuple[str, object]] = [("document", document)]
    for _ in range(_DEPTH):
        below: list[tuple[str, object]] = []
        for path, value in level:
            if isinstance(value, Mapping):
                if not all(isinstance(key, str) for key in value):
                    raise FieldError(path, "keys must be text")
                below += [(f"{path}.{key[:40]}", item) for key, item in value.items()]
            elif isinstance(value, (list, tuple)):
                below += [(f"{path}[{i}]", item) for i, item in enumerate(value)]
            elif value is not None and not isinstance(value, (str, bool)):
                if type(value) is not int:
                    raise FieldError(path, f"{type(value).__name__} given; text, an integer or a boolean expected")
                if not -(1 << 63) <= value < 1 << 64:
                    raise FieldError(path, "an integer beyond 64 bits travels as text")
        level = below
        if not level:
            return
    raise FieldError("document", f"nested deeper than {_DEPTH} levels")


def encode_certificate(certificate: Certificate) -> bytes:
    """Encode a certificate alone."""
    return _close("certificate", {"certificate": _certificate_value(certificate)})


def decode_certificate(body: bytes, limit: int = DOCUMENT_LIMIT) -> Certificate:
    """Decode a certificate; whether its signatures are a quorum is for its reader to verify.

    Raises:
        FieldError: names the field at fault.
    """
    node, _ = _open("certificate", body, limit)
    node.only("v", "kind", "blobs", "certificate")
    return _certificate(node.member("certificate"))


def encode_record(record: EpochRecord) -> bytes:
    """Encode a certified epoch: its certificate, leaves and texts. What people are shown besides does not travel."""
    certificate = record.certificate
    if certificate is None:
        raise FieldError("record", "not certified")
    value = {"certificate": _certificate_value(certificate), "cut_time": record.cut_time, "texts": record.preimages}
    return _close("record", value, {"leaves": _pack_leaves(record.leaves)})


def decode_record(body: bytes, limit: int = EPOCH_LIMIT) -> EpochRecord:
    """Decode a certified epoch; whether it is one is for its reader to verify.

    Raises:
        FieldError: names the field at fault.
    """
    node, blobs = _open("record", body, limit)
    node.only("v", "kind", "blobs", "certificate", "cut_time", "texts")
    certificate, texts = _certificate(node.member("certificate")), node.member("texts")
    texts.only(*_TEXTS)
    given = {name: found for name in _TEXTS if (found := texts.optional(name)) is not None}
    return EpochRecord(
        certificate.header,
        certificate.body,
        certificate.digest,
        _uint(node.member("cut_time")),
        certificate.attestations,
        refusals=(),
        chains=(),
        findings=(),
        margins=(),
        leaves=_unpack_leaves(blobs["leaves"]),
        preimages={name: _text(found, STATE_LIMIT) for name, found in given.items()},
    )


def encode_status(status: Status) -> bytes:
    """Encode how far a party is."""
    return _close(
        "status",
        {
            "index": status.index,
            "starts": status.starts,
            "highest": status.highest,
            "counts": list(status.counts),
            "certificate": None if status.certificate is None else _certificate_value(status.certificate),
            "seen": [[seen.index, seen.starts, seen.epoch] for seen in status.seen],
        },
    )


def decode_status(body: bytes, limit: int = DOCUMENT_LIMIT) -> Status:
    """Decode how far a party is.

    Raises:
        FieldError: names the field at fault.
    """
    node, _ = _open("status", body, limit)
    node.only("v", "kind", "blobs", "index", "starts", "highest", "counts", "certificate", "seen")
    index, certificate = node.optional("index"), node.optional("certificate")
    seen = tuple(
        Seen(_uint(i, 8), _uint(starts, _STARTS), _uint(epoch))
        for i, starts, epoch in (_row(row, 3) for row in node.member("seen").items())
    )
    if len(seen) > MAX_MEMBERS or len({s.index for s in seen}) != len(seen):
        raise FieldError("seen", f"at most {MAX_MEMBERS} members expected, each once")
    return Status(
        None if index is None else _uint(index, 8),
        _uint(node.member("starts"), _STARTS),
        _uint(node.member("highest")),
        _counts(node.member("counts")),
        None if certificate is None else _certificate(certificate),
        seen,
    )


# --- frames ------------------------------------------------------------------------------------------------------


def _close(kind: str, value: Mapping[str, Any], blobs: Mapping[str, bytes] | None = None) -> bytes:
    given = blobs or {}
    counts = {name: len(given[name]) // size for name, size in _BLOBS.items() if given.get(name)}
    try:
        text = orjson.dumps({"v": VERSION, "kind": kind, "blobs": counts, **value})
    except (TypeError, ValueError) as error:  # a lone surrogate, an integer beyond 64 bits, objects too deep
        raise FieldError(kind, f"has no JSON text: {error}") from None
    packer = zlib.compressobj(_SPEED)
    pieces = [packer.compress(len(text).to_bytes(4, "big")), packer.compress(text)]
    pieces += [packer.compress(given[name]) for name in counts]
    return b"".join((*pieces, packer.flush()))


def _open(kind: str, body: bytes, limit: int) -> tuple[Node, dict[str, memoryview]]:
    frame = _inflate(body, limit)
    size = int.from_bytes(frame[:4], "big")
    if len(frame) < 4 or len(frame) - 4 < size:
        raise FieldError("body", "ends before its JSON does")
    text = frame[4 : 4 + size]
    try:
        value = orjson.loads(text)
        canonical = isinstance(value, dict) and orjson.dumps(value) == text
    except (ValueError, TypeError, RecursionError):
        raise FieldError("body", "no JSON of ours") from None
    if not canonical:
        raise FieldError("body", "no JSON object in the one encoding there is of it")
    node = Node(value)
    version = _uint(node.member("v"))
    if version != VERSION:
        raise FieldError("v", f"version {version} given, {VERSION} expected")
    if (given := _text(node.member("kind"))) != kind:
        raise FieldError("kind", f"{given[:40]!r} given, {kind!r} expected")
    counts = node.member("blobs")
    counts.only(*_BLOBS)
    blobs, at, view = {}, 4 + size, memoryview(frame)
    for name, each in _BLOBS.items():
        count = counts.optional(name)
        length = 0 if count is None else _uint(count) * each
        if length > len(frame) - at:
            raise FieldError(f"blobs.{name}", f"{length} bytes announced, {len(frame) - at} left")
        blobs[name] = view[at : at + length]
        at += length
    if at != len(frame):
        raise FieldError("body", f"{len(frame) - at} bytes after its end")
    return node, blobs


def _inflate(body: bytes, limit: int) -> bytes:
    packed = zlib.decompressobj()
    try:
        frame = packed.decompress(body, limit + 1)
    except zlib.error:
        raise FieldError("body", "not packed with zlib") from None
    if len(frame) > limit:
        raise FieldError("body", f"unpacks to more than {limit} bytes")
    if not packed.eof or packed.unused_data:
        raise FieldError("body", "cut off, or followed by something")
    return frame


# --- parts of proposals ------------------------------------------------------------------------------------------


def _pack_leaves(leaves: Sequence[LeafValues]) -> bytes:
    packed, ids = bytearray(len(leaves) * _LEAF.size), _Ids()
    for i, leaf in enumerate(leaves):
        try:
            _LEAF.pack_into(
                packed,
                i * _LEAF.size,
                ids["account", leaf.account],
                ids["destination", leaf.destination],
                leaf.epoch,
                leaf.equity.to_bytes(16, "big", signed=True),
                *(amount.to_bytes(16, "big") for amount in leaf[4:9]),
                *leaf[9:12],
            )
        except FieldError as error:
            raise FieldError(f"leaves[{i}].{error.field}", error.reason) from None
        except (struct.error, OverflowError) as error:
            try:
                to_leaf(leaf)  # knows which field it is
            except FieldError as known:
                raise FieldError(f"leaves[{i}].{known.field}", known.reason) from None
            raise FieldError(f"leaves[{i}]", str(error)) from None
    return bytes(packed)


def _unpack_leaves(packed: memoryview) -> tuple[LeafValues, ...]:
    number, shown = int.from_bytes, _Shown()
    return tuple(
        LeafValues(
            *(shown[account], shown[destination], epoch, number(equity, "big", signed=True)),
            *(number(a, "big"), number(b, "big"), number(c, "big"), number(d, "big"), number(budget, "big")),
            *(as_of, valid_until, flags),
        )
        for account, destination, epoch, equity, a, b, c, d, budget, as_of, valid_until, flags in _LEAF.iter_unpack(
            packed
        )
    )


class _Ids(dict[tuple[str, str], bytes]):
    """Ids by field and text, each read once."""

    def __missing__(self, key: tuple[str, str]) -> bytes:
        packed = self[key] = _id(*key)
        return packed


class _Shown(dict[bytes, str]):
    """Ids as text, each made once."""

    def __missing__(self, key: bytes) -> str:
        text = self[key] = "0x" + key.hex()
        return text


def _pack_levels(levels: Sequence[Level]) -> bytes:
    return b"".join(
        _LEVEL.pack(
            _id(f"levels[{i}].account", level.account),
            _word16(f"levels[{i}].base", level.base),
            _word16(f"levels[{i}].peak", level.peak),
        )
        for i, level in enumerate(levels)
    )


def _levels(node: Node, packed: memoryview) -> Levels:
    window, spent = _row(node, 2)
    return Levels(
        _uint(window),
        tuple(
            Level("0x" + account.hex(), int.from_bytes(base, "big"), int.from_bytes(peak, "big"))
            for account, base, peak in _LEVEL.iter_unpack(packed)
        ),
        tuple((_text(feed), _amount(amount)) for feed, amount in (_row(row, 2) for row in spent.items())),
    )


def _pack_grants(grants: Sequence[Grant]) -> bytes:
    return b"".join(
        _GRANT.pack(
            _id(f"grants[{i}].account", grant.account),
            _id(f"grants[{i}].destination", grant.destination),
            require_uint(f"grants[{i}].epoch", grant.epoch, 64),
            _word16(f"grants[{i}].budget", grant.budget),
            require_uint(f"grants[{i}].validUntil", grant.valid_until, 64),
        )
        for i, grant in enumerate(grants)
    )


def _unpack_grants(packed: memoryview) -> tuple[Grant, ...]:
    shown = _Shown()
    return tuple(
        Grant(shown[account], shown[destination], epoch, int.from_bytes(budget, "big"), valid_until)
        for account, destination, epoch, budget, valid_until in _GRANT.iter_unpack(packed)
    )


def _pack_carried(groups: Sequence[Carried], places: Mapping[str, int]) -> bytes:
    try:
        return b"".join(places[account].to_bytes(4, "big") for group in groups for account in group.accounts)
    except KeyError as error:
        raise FieldError("cut.carried", f"{error.args[0]} is no account of the state") from None


def _unpack_carried(node: Node, packed: memoryview, accounts: int) -> tuple[tuple[Block, tuple[int, ...]], ...]:
    places = [place for (place,) in struct.iter_unpack(">I", packed)]
    groups, at = [], 0
    for row in node.items():
        *block, count = _row(row, 6)
        size = _uint(count)
        mine = tuple(places[at : at + size])
        if len(mine) != size or any(place >= accounts for place in mine):
            raise FieldError(row.path, f"{size} places below {accounts} expected")
        groups.append((_block_of(block), mine))
        at += size
    if at != len(places):
        raise FieldError(node.path, f"{at} accounts in groups, {len(places)} given")
    return tuple(groups)


def _pack_log(
    state: State, have: Counts, counts: Counts, order: Sequence[str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    opened = [account for account in order if account in state.salts]
    # Only an order that names all tells what comes after the first so many.
    start = have.accounts if len(opened) == counts.accounts else 0
    if have.accounts >= counts.accounts:
        start = counts.accounts
    by_id = {account.id: account for account in state.accounts}
    accounts = [by_id[account] for account in (opened or by_id)][start:]
    links, rotations = state.links[have.links :], state.rotations[have.rotations :]
    value = {
        "start": [start, min(have.links, counts.links), min(have.rotations, counts.rotations)],
        "accounts": [[a.controller, a.kind, a.home, a.label] for a in accounts],
        "links": [[x.position, *x[2:]] for x in links],
        "rotations": [_rotation_value(rotation) for rotation in rotations],
    }
    return value, {
        "accounts": b"".join(_OPENED.pack(_id("accounts", a.id), state.salts[a.id]) for a in accounts),
        "links": b"".join(_id(f"links[{i}].account", link.account) for i, link in enumerate(links)),
    }


def _log(node: Node, accounts: memoryview, links: memoryview, counts: Counts) -> Tail:
    node.only("start", "accounts", "links", "rotations")
    start = _counts(node.member("start"))
    rows = list(node.member("accounts").items())
    if len(rows) * _OPENED.size != len(accounts):
        raise FieldError("log.accounts", f"{len(rows)} given, ids of {len(accounts) // _OPENED.size}")
    opened = tuple(
        Opened(_account("0x" + account.hex(), row), salt)
        for row, (account, salt) in zip(rows, _OPENED.iter_unpack(accounts), strict=True)
    )
    rows = list(node.member("links").items())
    if len(rows) * 32 != len(links):
        raise FieldError("log.links", f"{len(rows)} given, accounts of {len(links) // 32}")
    entries = tuple(_link("0x" + links[32 * i : 32 * i + 32].hex(), row) for i, row in enumerate(rows))
    rotations = tuple(_rotation(row) for row in node.member("rotations").items())
    ends = Counts(start.accounts + len(opened), start.links + len(entries), start.rotations + len(rotations))
    if ends != counts:
        raise FieldError("log", f"ends at {tuple(ends)}, the proposal counts {tuple(counts)}")
    if len({x.account.id for x in opened}) != len(opened):
        raise FieldError("log.accounts", "one account is given twice")
    return Tail(start, opened, entries, rotations)


def _account(account: str, row: Node) -> Account:
    controller, kind, home, label = _row(row, 4)
    return Account(account, _text(controller), _one_of(kind, ("risk-bearing", "monitored")), _text(home), _text(label))


def _link(account: str, row: Node) -> LinkRecord:
    position, controller, member, nonce, expiry, invite, accept, recorded, kind, shares = _row(row, 10)
    return LinkRecord(
        _uint(position, 63),
        account,
        _text(controller),
        _text(member),
        _uint(nonce),
        _uint(expiry),
        _text(invite, _LONG_TEXT),
        _text(accept, _LONG_TEXT),
        _uint(recorded, 63),
        _one_of(kind, get_args(LinkKind)),
        _text(shares, _LONG_TEXT),
    )


def _rotation_value(rotation: Rotation) -> list[Any]:
    to = rotation.to
    return [
        to.set_id,
        b"".join(to.members).hex(),
        to.threshold,
        to.activation_epoch,
        to.not_after,
        b"".join(signature.pack() for signature in rotation.signatures).hex(),
    ]


def _rotation(row: Node) -> Rotation:
    cells = _row(row, 6)
    set_id, threshold, activation, not_after = (_uint(cells[i]) for i in (0, 2, 3, 4))
    members, signatures = _split(cells[1], 20), _signatures(cells[5])
    try:
        return Rotation(AttestorSet(set_id, members, threshold, activation, not_after), signatures)
    except FieldError as error:
        raise FieldError(f"{row.path}.{error.field}", error.reason) from None


def _permit(row: Node) -> PermitRecord:
    account, chain, vault, asset, amount, to, nonce, epoch, expiry, request = _row(row, 10)
    return PermitRecord(
        _text(account),
        _text(chain),
        _text(vault),
        _text(asset),
        _amount(amount),
        _text(to),
        _text(nonce),
        _uint(epoch),
        _uint(expiry),
        _text(request, _LONG_TEXT),
    )


def _block(row: Node) -> Block:
    return _block_of(_row(row, 5))


def _block_of(cells: Sequence[Node]) -> Block:
    chain, height, digest, parent, time = cells
    return Block(_text(chain), _uint(height), _text(digest), _text(parent), _uint(time))


def _pair(row: Node) -> tuple[str, str]:
    chain, cause = _row(row, 2)
    return _text(chain), _text(cause, _LONG_TEXT)


def _reorg(row: Node) -> Reorg:
    chain, height, was, now = _row(row, 4)
    return Reorg(_text(chain), _uint(height), _text(was), _text(now))


def _law(row: Node) -> LegLaw:
    leg, chain, seconds, chance, samples = _row(row, 5)
    values, weights = tuple(_uint(x) for x in seconds.items()), tuple(_chance(p) for p in chance.items())
    if len(values) != len(weights) or list(values) != sorted(set(values)):
        raise FieldError(seconds.path, f"ascending, one for each of {len(weights)} chances, expected")
    return LegLaw(_one_of(leg, LEGS), _text(chain), Law(values, weights), _uint(samples))


def _chance(node: Node) -> float:
    if type(node.value) is not float or not math.isfinite(node.value) or not 0 < node.value <= 1:
        raise FieldError(node.path, "a number in (0, 1] expected")
    return node.value


# --- statements --------------------------------------------------------------------------------------------------


def _pack_body(body: StatementBody) -> bytes:
    return _BODY.pack(
        body.cut_digest,
        body.price_digest,
        body.policy_digest,
        body.risk_digest,
        body.state_digest,
        body.accounts_root,
        body.leaf_count,
        body.previous,
    )


def _unpack_body(packed: bytes) -> StatementBody:
    return StatementBody(*_BODY.unpack(packed))


def _certificate_value(certificate: Certificate) -> list[str]:
    return [
        pack_header(certificate.header).hex(),
        _pack_body(certificate.body).hex(),
        certificate.digest.hex(),
        b"".join(IndexedSignature(*_as_signature(a)).pack() for a in certificate.attestations).hex(),
    ]


def _certificate(node: Node) -> Certificate:
    header, body, digest, signatures = _row(node, 4)
    return Certificate(
        unpack_header(_bytes(header, HEADER_LENGTH)),
        _unpack_body(_bytes(body, _BODY.size)),
        _bytes(digest, 32),
        tuple(Attestation(s.index, s.r, s.vs) for s in _signatures(signatures)),
    )


def _as_signature(attestation: Attestation) -> tuple[int, bytes, bytes]:
    return attestation.index, attestation.r, attestation.vs


def _signatures(node: Node) -> tuple[IndexedSignature, ...]:
    return tuple(IndexedSignature.unpack(packed) for packed in _split(node, SIGNATURE_LENGTH))


# --- fields ------------------------------------------------------------------------------------------------------


def _row(node: Node, length: int) -> list[Node]:
    cells = list(node.items())
    if len(cells) != length:
        raise FieldError(node.path, f"{len(cells)} entries given, {length} expected")
    return cells


def _split(node: Node, each: int) -> tuple[bytes, ...]:
    packed = _bytes(node)
    if len(packed) % each or len(packed) > MAX_MEMBERS * each:
        raise FieldError(node.path, f"{len(packed)} bytes given, up to {MAX_MEMBERS} times {each} expected")
    return tuple(packed[at : at + each] for at in range(0, len(packed), each))


def _bytes(node: Node, length: int | None = None) -> bytes:
    text = node.text()
    if text.startswith("0x"):
        raise FieldError(node.path, "hex without 0x expected")
    return node.bare_hex_bytes(length)


def _text(node: Node, limit: int = _TEXT) -> str:
    text = node.text()
    if len(text) > limit:
        raise FieldError(node.path, f"{len(text)} characters given, at most {limit} expected")
    return text


def _uint(node: Node, bits: int = 64) -> int:
    return require_uint(node.path, node.value, bits)


def _amount(node: Node) -> int:
    return require_uint(node.path, node.decimal(), 256)


def _counts(node: Node) -> Counts:
    return Counts(*(_uint(cell, 32) for cell in _row(node, 3)))


def _one_of(node: Node, choices: Sequence[Any]) -> Any:
    text = node.text()
    if text not in choices:
        raise FieldError(node.path, f"{text[:40]!r} given; one of {', '.join(choices)} expected")
    return text


def _id(field: str, text: str) -> bytes:
    if text[:2] != "0x" or len(text) != 66:
        raise FieldError(field, f"{text[:80]!r} is no id: 0x and 64 hex digits expected")
    try:
        packed = bytes.fromhex(text[2:])
    except ValueError:
        packed = b""
    if "0x" + packed.hex() != text:
        raise FieldError(field, f"{text!r} is no id: 0x and 64 hex digits in lower case expected")
    return packed


def _word16(field: str, value: int) -> bytes:
    return require_uint(field, value, 128).to_bytes(16, "big")
