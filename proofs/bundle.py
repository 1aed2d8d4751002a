"""The audit bundle: one JSON file from which anyone checks a statement and its leaves offline.

Format `crossmargin-bundle/2`: canonical JSON (sorted keys, no spaces); byte strings as 0x hex in lower case, amounts of
USD as decimal text, times and counts as integers. Fields of signed structures bear their EIP-712 and ABI names.

    format       "crossmargin-bundle/2"
    deployment   {networkClass, members, threshold, notAfter, salt}
    header       {epoch, root, floor, setId, producedAt, validUntil, body}
    body         {cutDigest, priceDigest, policyDigest, riskDigest, stateDigest, accountsRoot, leafCount, previous}
    signatures   [{index, r, vs}]
    rotations    [{setId, members, threshold, activationEpoch, notAfter, signatures}]
                 sets 2, 3, … as far as the state knew them, each signed by the set before it
    leaves       [{leaf: {…}, proof: [siblings], accounts_index, accounts_path: [nodes]}]
    neighbours   [{account, destination, leaf_hash, accounts_index, accounts_path}]   optional: they prove uniqueness
    history      [{header, body, signatures}]   optional: the statements before this one, newest first
    preimages    {cut, prices, policy, risk, state}: the exact texts whose keccak256 the body commits to, each JSON
    accounts     [{document, index, path}]: that an account is in the state, with its entries of the links log.
                 document: canonical JSON {id, controller, kind, home, links, ending, shares}
    links        [{kind?, account, controller, member, nonce, expiry, salt?, invite?, accept?, accepted_at}]
                 all entries of these accounts in the order of the log. kind: absent (a link, signed by both), "revoke"
                 (signed by the controller, in invite, or by the member, in accept), "end" (of the revoke with the same
                 nonce; signed by nobody) or "shares" (signed by the controller; it has shares and no member).
                 A signature is 0x hex, or eip1271:0x… or pda:<base58> of an address without a key.

The state text names, among others: accounts {count, root}, the RFC 9162 tree over one entry of 96 bytes per account,
ascending: id ‖ keccak256(document) ‖ keccak256(d₁ ‖ … ‖ dₙ), d₁ … dₙ the keccak256 of the canonical JSON of its entries
in links; and rotations, the list of the sets' terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from proofs.document import Node, canonical_json, parse_json
from proofs.errors import BundleError, FieldError
from proofs.leaf import Leaf
from proofs.links import ChainConsent, Consent, LinkTerms, SharesTerms, parse_chain_consent
from proofs.quorum import IndexedSignature
from proofs.sets import AttestorSet, Rotation
from proofs.statement import Deployment, Header, StatementBody

FORMAT = "crossmargin-bundle/2"
MAX_BYTES = 8 * 1024 * 1024
MAX_SET_BYTES = 64 * 1024
PREIMAGES = ("cut", "prices", "policy", "risk", "state")

_SET_FIELDS = ("setId", "members", "threshold", "activationEpoch", "notAfter")

LinkKind = Literal["link", "revoke", "end", "shares"]
_CONSENTS: Mapping[LinkKind, int] = {"link": 2, "revoke": 1, "end": 0, "shares": 1}


@dataclass(frozen=True, slots=True)
class Preimages:
    """The canonical JSON texts behind the body's five digests."""

    cut: str
    prices: str
    policy: str
    risk: str
    state: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A certified statement: header, body and the signatures of a quorum."""

    header: Header
    body: StatementBody
    signatures: tuple[IndexedSignature, ...]


@dataclass(frozen=True, slots=True)
class ProvenLeaf:
    """A leaf with its path to the root and its place in the accounts tree."""

    leaf: Leaf
    proof: tuple[bytes, ...]
    accounts_index: int
    accounts_path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An entry of the accounts tree beside a leaf's: with both, no second entry of the same pair can hide."""

    account: bytes
    destination: bytes
    leaf_hash: bytes
    accounts_index: int
    accounts_path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SignedLink:
    """An entry of the links log; `accepted_at` (Unix seconds) is when the service took it.

    A link has both consents, a revoke the one of the side that revokes, an end none, shares the controller's.
    """

    terms: LinkTerms | SharesTerms
    salt: bytes | None
    invite: Consent | None
    accept: Consent | None
    accepted_at: int
    kind: LinkKind = "link"

    @property
    def chain_consents(self) -> tuple[str, ...]:
        """The addresses (CAIP-10) whose consent only their chain can confirm."""
        member = "" if isinstance(self.terms, SharesTerms) else self.terms.member
        given = ((self.terms.controller, self.invite), (member, self.accept))
        return tuple(who for who, consent in given if isinstance(consent, ChainConsent))


@dataclass(frozen=True, slots=True)
class ProvenAccount:
    """An account as the state commits to it, at its place among all accounts."""

    document: str
    index: int
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A parsed, unverified audit bundle; `proofs.verify.verify_bundle` checks it."""

    deployment: Deployment
    statement: Statement
    leaves: tuple[ProvenLeaf, ...]
    preimages: Preimages
    links: tuple[SignedLink, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    history: tuple[Statement, ...] = ()
    rotations: tuple[Rotation, ...] = ()
    accounts: tuple[ProvenAccount, ...] = ()


def parse_bundle(text: str) -> Bundle:
    """Read a bundle's text strictly, checking shapes and ranges, and nothing that needs a hash or a key.

    Raises:
        BundleError: Naming the JSON path at fault. No other error leaves this function.
    """
    try:
        return _decode_bundle(parse_json(text, max_bytes=MAX_BYTES))
    except FieldError as error:
        raise BundleError(error.field, error.reason) from error


def render_bundle(bundle: Bundle) -> str:
    """Return the canonical text of a bundle, which `parse_bundle` reads back to an equal one."""
    document: dict[str, object] = {
        "format": FORMAT,
        "deployment": {
            "networkClass": bundle.deployment.network_class,
            "members": [_hex(member) for member in bundle.deployment.members],
            "threshold": bundle.deployment.threshold,
            "notAfter": bundle.deployment.not_after,
            "salt": _hex(bundle.deployment.salt),
        },
        **_encode_statement(bundle.statement),
        "rotations": [encode_rotation(rotation) for rotation in bundle.rotations],
        "leaves": [
            {
                "leaf": encode_leaf(proven.leaf),
                "proof": [_hex(node) for node in proven.proof],
                "accounts_index": proven.accounts_index,
                "accounts_path": [_hex(node) for node in proven.accounts_path],
            }
            for proven in bundle.leaves
        ],
        "neighbours": [
            {
                "account": _hex(neighbour.account),
                "destination": _hex(neighbour.destination),
                "leaf_hash": _hex(neighbour.leaf_hash),
                "accounts_index": neighbour.accounts_index,
                "accounts_path": [_hex(node) for node in neighbour.accounts_path],
            }
            for neighbour in bundle.neighbours
        ],
        "preimages": {name: getattr(bundle.preimages, name) for name in PREIMAGES},
        "accounts": [
            {"document": proven.document, "index": proven.index, "path": [_hex(node) for node in proven.path]}
            for proven in bundle.accounts
        ],
        "links": [encode_link(link) for link in bundle.links],
        "history": [_encode_statement(statement) for statement in bundle.history],
    }
    return canonical_json(document)


def encode_leaf(leaf: Leaf) -> dict[str, object]:
    """Return the leaf as a JSON object with its ABI names; amounts are text."""
    return {
        "account": _hex(leaf.account),
        "destination": _hex(leaf.destination),
        "epoch": leaf.epoch,
        "equity": str(leaf.equity),
        "assetsInitial": str(leaf.assets_initial),
        "requirementInitial": str(leaf.requirement_initial),
        "assetsMaintenance": str(leaf.assets_maintenance),
        "requirementMaintenance": str(leaf.requirement_maintenance),
        "budget": str(leaf.budget),
        "asOf": leaf.as_of,
        "validUntil": leaf.valid_until,
        "flags": leaf.flags,
    }


def encode_set(to: AttestorSet) -> dict[str, object]:
    """Return a set's terms as a JSON object with the names that are signed."""
    return {
        "setId": to.set_id,
        "members": [_hex(member) for member in to.members],
        "threshold": to.threshold,
        "activationEpoch": to.activation_epoch,
        "notAfter": to.not_after,
    }


def encode_rotation(rotation: Rotation) -> dict[str, object]:
    """Return a rotation as a JSON object: the new set's terms, and the signatures of the set before it."""
    return encode_set(rotation.to) | {"signatures": [_encode_signature(s) for s in rotation.signatures]}


def parse_set(text: str) -> AttestorSet:
    """Read a set's terms as `encode_set` gives them; raise `FieldError` naming the JSON path at fault."""
    node = parse_json(text, max_bytes=MAX_SET_BYTES)
    node.only(*_SET_FIELDS)
    return _decode_set(node)


def parse_rotation(text: str) -> Rotation:
    """Read a rotation as `encode_rotation` gives it; raise `FieldError` naming the JSON path at fault."""
    return _decode_rotation(parse_json(text, max_bytes=MAX_SET_BYTES))


def encode_link(link: SignedLink) -> dict[str, object]:
    """Return an entry of the log as a JSON object: as it stands in a bundle, and as the state commits to it."""
    encoded: dict[str, object] = {
        "account": _hex(link.terms.account),
        "controller": link.terms.controller,
        "nonce": link.terms.nonce,
        "expiry": link.terms.expiry,
        "accepted_at": link.accepted_at,
    }
    if isinstance(link.terms, SharesTerms):
        encoded["shares"] = link.terms.shares
    else:
        encoded["member"] = link.terms.member
    if link.kind != "link":
        encoded["kind"] = link.kind
    if link.salt is not None:
        encoded["salt"] = _hex(link.salt)
    for name, consent in (("invite", link.invite), ("accept", link.accept)):
        if consent is not None:
            encoded[name] = _hex(consent) if isinstance(consent, bytes) else str(consent)
    return encoded


def _decode_bundle(top: Node) -> Bundle:
    given = top.member("format").text()
    if given != FORMAT:
        raise FieldError("format", f"{given[:40]!r} given, {FORMAT!r} expected")
    top.only(
        *(
            "format",
            "deployment",
            "header",
            "body",
            "signatures",
            "rotations",
            "leaves",
            "neighbours",
            "preimages",
            "accounts",
            "links",
            "history",
        )
    )
    neighbours, history = top.optional("neighbours"), top.optional("history")
    return Bundle(
        deployment=_decode_deployment(top.member("deployment")),
        statement=_decode_statement(top),
        leaves=tuple(_decode_proven_leaf(node) for node in top.member("leaves").items()),
        preimages=_decode_preimages(top.member("preimages")),
        links=tuple(_decode_link(node) for node in top.member("links").items()),
        neighbours=() if neighbours is None else tuple(_decode_neighbour(node) for node in neighbours.items()),
        history=() if history is None else tuple(_decode_earlier(node) for node in history.items()),
        rotations=tuple(_decode_rotation(node) for node in top.member("rotations").items()),
        accounts=tuple(_decode_account(node) for node in top.member("accounts").items()),
    )


def _decode_deployment(node: Node) -> Deployment:
    node.only("networkClass", "members", "threshold", "notAfter", "salt")
    with _fields_of(node):
        return Deployment(
            network_class=node.member("networkClass").integer(),
            members=tuple(member.hex_bytes(20) for member in node.member("members").items()),
            threshold=node.member("threshold").integer(),
            not_after=node.member("notAfter").integer(),
            salt=node.member("salt").hex_bytes(32),
        )


def _decode_earlier(node: Node) -> Statement:
    node.only("header", "body", "signatures")
    return _decode_statement(node)


def _decode_statement(node: Node) -> Statement:
    return Statement(
        header=_decode_header(node.member("header")),
        body=_decode_body(node.member("body")),
        signatures=tuple(_decode_signature(signature) for signature in node.member("signatures").items()),
    )


def _decode_header(node: Node) -> Header:
    node.only("epoch", "root", "floor", "setId", "producedAt", "validUntil", "body")
    with _fields_of(node):
        return Header(
            epoch=node.member("epoch").integer(),
            root=node.member("root").hex_bytes(32),
            floor=node.member("floor").integer(),
            set_id=node.member("setId").integer(),
            produced_at=node.member("producedAt").integer(),
            valid_until=node.member("validUntil").integer(),
            body=node.member("body").hex_bytes(32),
        )


def _decode_body(node: Node) -> StatementBody:
    node.only(
        *("cutDigest", "priceDigest", "policyDigest", "riskDigest", "stateDigest"),
        *("accountsRoot", "leafCount", "previous"),
    )
    with _fields_of(node):
        return StatementBody(
            cut_digest=node.member("cutDigest").hex_bytes(32),
            price_digest=node.member("priceDigest").hex_bytes(32),
            policy_digest=node.member("policyDigest").hex_bytes(32),
            risk_digest=node.member("riskDigest").hex_bytes(32),
            state_digest=node.member("stateDigest").hex_bytes(32),
            accounts_root=node.member("accountsRoot").hex_bytes(32),
            leaf_count=node.member("leafCount").integer(),
            previous=node.member("previous").hex_bytes(32),
        )


def _decode_set(node: Node) -> AttestorSet:
    with _fields_of(node):
        return AttestorSet(
            set_id=node.member("setId").integer(),
            members=tuple(member.hex_bytes(20) for member in node.member("members").items()),
            threshold=node.member("threshold").integer(),
            activation_epoch=node.member("activationEpoch").integer(),
            not_after=node.member("notAfter").integer(),
        )


def _decode_rotation(node: Node) -> Rotation:
    node.only(*_SET_FIELDS, "signatures")
    signatures = tuple(_decode_signature(signature) for signature in node.member("signatures").items())
    return Rotation(_decode_set(node), signatures)


def _decode_signature(node: Node) -> IndexedSignature:
    node.only("index", "r", "vs")
    with _fields_of(node):
        return IndexedSignature(
            index=node.member("index").integer(),
            r=node.member("r").hex_bytes(32),
            vs=node.member("vs").hex_bytes(32),
        )


def _decode_proven_leaf(node: Node) -> ProvenLeaf:
    node.only("leaf", "proof", "accounts_index", "accounts_path")
    return ProvenLeaf(
        leaf=_decode_leaf(node.member("leaf")),
        proof=_decode_path(node.member("proof")),
        accounts_index=node.member("accounts_index").integer(),
        accounts_path=_decode_path(node.member("accounts_path")),
    )


def _decode_leaf(node: Node) -> Leaf:
    node.only(
        *("account", "destination", "epoch", "equity", "assetsInitial", "requirementInitial", "assetsMaintenance"),
        *("requirementMaintenance", "budget", "asOf", "validUntil", "flags"),
    )
    with _fields_of(node):
        return Leaf(
            account=node.member("account").hex_bytes(32),
            destination=node.member("destination").hex_bytes(32),
            epoch=node.member("epoch").integer(),
            equity=node.member("equity").decimal(),
            assets_initial=node.member("assetsInitial").decimal(),
            requirement_initial=node.member("requirementInitial").decimal(),
            assets_maintenance=node.member("assetsMaintenance").decimal(),
            requirement_maintenance=node.member("requirementMaintenance").decimal(),
            budget=node.member("budget").decimal(),
            as_of=node.member("asOf").integer(),
            valid_until=node.member("validUntil").integer(),
            flags=node.member("flags").integer(),
        )


def _decode_neighbour(node: Node) -> Neighbour:
    node.only("account", "destination", "leaf_hash", "accounts_index", "accounts_path")
    return Neighbour(
        account=node.member("account").hex_bytes(32),
        destination=node.member("destination").hex_bytes(32),
        leaf_hash=node.member("leaf_hash").hex_bytes(32),
        accounts_index=node.member("accounts_index").integer(),
        accounts_path=_decode_path(node.member("accounts_path")),
    )


def _decode_path(node: Node) -> tuple[bytes, ...]:
    return tuple(sibling.hex_bytes(32) for sibling in node.items())


def _decode_preimages(node: Node) -> Preimages:
    node.only(*PREIMAGES)
    texts: Mapping[str, str] = {name: node.member(name).text() for name in PREIMAGES}
    for name, text in texts.items():
        parse_json(text, max_bytes=MAX_BYTES, field=f"{node.path}.{name}")
    return Preimages(**texts)


def _decode_account(node: Node) -> ProvenAccount:
    node.only("document", "index", "path")
    document = node.member("document").text()
    parse_json(document, max_bytes=MAX_BYTES, field=f"{node.path}.document")
    return ProvenAccount(document, node.member("index").integer(), _decode_path(node.member("path")))


def _decode_link(node: Node) -> SignedLink:
    kind = _decode_kind(node)
    subject = "shares" if kind == "shares" else "member"
    node.only("kind", "account", "controller", subject, "nonce", "expiry", "salt", "invite", "accept", "accepted_at")
    salt = node.optional("salt")
    with _fields_of(node):
        terms = (SharesTerms if kind == "shares" else LinkTerms)(
            node.member("account").hex_bytes(32),
            node.member("controller").text(),
            node.member(subject).text(),
            node.member("nonce").integer(),
            node.member("expiry").integer(),
        )
    invite, accept = (_decode_consent(node.optional(name)) for name in ("invite", "accept"))
    if sum(consent is not None for consent in (invite, accept)) != _CONSENTS[kind]:
        raise FieldError(node.path, f"a {kind} carries {_CONSENTS[kind]} of invite and accept")
    if kind == "shares" and invite is None:
        raise FieldError(f"{node.path}.invite", "missing: the controller alone signs shares")
    return SignedLink(
        terms=terms,
        salt=None if salt is None else salt.hex_bytes(32),
        invite=invite,
        accept=accept,
        accepted_at=node.member("accepted_at").integer(),
        kind=kind,
    )


def _decode_kind(node: Node) -> LinkKind:
    given = node.optional("kind")
    if given is None:
        return "link"
    kinds: Mapping[str, LinkKind] = {"revoke": "revoke", "end": "end", "shares": "shares"}
    text = given.text()
    if text not in kinds:
        raise FieldError(given.path, f"{text[:40]!r} given, revoke, end, shares or nothing expected")
    return kinds[text]


def _decode_consent(node: Node | None) -> Consent | None:
    if node is None:
        return None
    text = node.text()
    return node.hex_bytes() if text.startswith("0x") else _decode_chain_consent(node, text)


def _decode_chain_consent(node: Node, text: str) -> ChainConsent:
    consent = parse_chain_consent(text, node.path)
    if consent is None or str(consent) != text:
        raise FieldError(node.path, f"{text[:40]!r} is not 0x hex, eip1271:0x… or pda:<base58>")
    return consent


@contextmanager
def _fields_of(node: Node) -> Iterator[None]:
    """Turn the bare field names of a type's own checks into JSON paths."""
    try:
        yield
    except FieldError as error:
        if not node.path or error.field.startswith(f"{node.path}."):
            raise
        raise FieldError(f"{node.path}.{error.field}", error.reason) from error


def _encode_statement(statement: Statement) -> dict[str, object]:
    header, body = statement.header, statement.body
    return {
        "header": {
            "epoch": header.epoch,
            "root": _hex(header.root),
            "floor": header.floor,
            "setId": header.set_id,
            "producedAt": header.produced_at,
            "validUntil": header.valid_until,
            "body": _hex(header.body),
        },
        "body": {
            "cutDigest": _hex(body.cut_digest),
            "priceDigest": _hex(body.price_digest),
            "policyDigest": _hex(body.policy_digest),
            "riskDigest": _hex(body.risk_digest),
            "stateDigest": _hex(body.state_digest),
            "accountsRoot": _hex(body.accounts_root),
            "leafCount": body.leaf_count,
            "previous": _hex(body.previous),
        },
        "signatures": [_encode_signature(s) for s in statement.signatures],
    }


def _encode_signature(signature: IndexedSignature) -> dict[str, object]:
    return {"index": signature.index, "r": _hex(signature.r), "vs": _hex(signature.vs)}


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"
