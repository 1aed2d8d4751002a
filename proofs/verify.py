"""The nine steps by which an audit bundle is checked; the numbers are those of the protocol and of every message.

1 policy, risk and code digests       4 headers hash to the Cut       7 the pure core recomputes the leaves
2 quorum of the set                   5 state proofs give balances    8 the log links back
3 leaf in root; index, uniqueness     6 prices                        9 the chains store this root (online)

A step's outcome never says more than was checked: what no proof supports yet is "not provable yet" and names what it
rests on. A bundle vouches for its own deployment id only: compare that with one you trust.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Literal

from proofs import statement as eip712
from proofs.bundle import (
    MAX_BYTES,
    PREIMAGES,
    Bundle,
    ProvenAccount,
    ProvenLeaf,
    SignedLink,
    Statement,
    encode_link,
    encode_set,
)
from proofs.document import Node, canonical_json, parse_json
from proofs.errors import FieldError, MerkleError, PriceError, ProofError
from proofs.fields import require_uint
from proofs.hashing import keccak256
from proofs.leaf import Leaf, hash_leaf
from proofs.links import SharesTerms, Side, verify_link, verify_revoke, verify_shares
from proofs.merkle import accounts_entry, verify_accounts_inclusion, verify_proof
from proofs.pyth import GuardianSet, PriceMessage, verify_update
from proofs.quorum import verify_quorum
from proofs.sets import AttestorSet, set_at, verify_history

Outcome = Literal["pass", "fail", "not provable yet", "not checked"]

Recompute = Callable[[Bundle], Sequence[Leaf]]
"""Recompute a bundle's leaves from its prices, links, state and balances; `ProofError` where that is impossible."""

ReadRoots = Callable[[Bundle], Mapping[str, bytes]]
"""Read, per destination (CAIP-2), the root its registry stores for the bundle's epoch; `ProofError` on failure."""

TITLES: Mapping[int, str] = {
    1: "policy, risk and code digests",
    2: "quorum of the attestor set",
    3: "leaves in root and accounts tree",
    4: "block headers hash to the Cut",
    5: "state proofs give the balances",
    6: "prices are signed and obey the rule",
    7: "the core recomputes the leaves",
    8: "the log links back",
    9: "the root stored on each chain",
}

_AMOUNTS = (
    *("equity", "assets_initial", "requirement_initial"),
    *("assets_maintenance", "requirement_maintenance", "budget"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One numbered step: its outcome, and the field at fault, what was found or what it rests on."""

    number: int
    title: str
    outcome: Outcome
    detail: str


def verify_bundle(
    bundle: Bundle,
    *,
    now: int | None = None,
    recompute: Recompute | None = None,
    roots: ReadRoots | None = None,
    deployment_id: bytes | None = None,
    recovered: Collection[bytes] = (),
) -> tuple[Step, ...]:
    """Check a bundle and return all nine steps in order; a failed step does not stop the later ones.

    Args:
        bundle: From `parse_bundle`.
        now: Unix seconds; if given, statements from the future fail.
        recompute: The valuation core, for step 7.
        roots: A reader of the destinations, for step 9.
        deployment_id: 32 bytes; if given, the bundle must be of this deployment.
        recovered: Digests of attestor sets that governance put in place without signatures, as the registries say; a
            bundle with another such set fails.
    """
    checks: tuple[Callable[[], tuple[Outcome, str]], ...] = (
        lambda: _check_digests(bundle),
        lambda: _check_quorum(bundle, now, deployment_id, recovered),
        lambda: _check_leaves(bundle),
        lambda: ("not provable yet", "rests on the attestors' own reads: the bundle carries no block headers"),
        lambda: ("not provable yet", "rests on the attestors' own reads: the bundle carries no state proofs"),
        lambda: _check_prices(bundle),
        lambda: _check_recomputation(bundle, recompute),
        lambda: _check_history(bundle, recovered),
        lambda: _check_stored_roots(bundle, roots),
    )
    steps = []
    for number, check in enumerate(checks, start=1):
        outcome: Outcome
        try:
            outcome, detail = check()
        except ProofError as error:
            outcome, detail = "fail", str(error)
        steps.append(Step(number, TITLES[number], outcome, detail))
    return tuple(steps)


def _check_digests(bundle: Bundle) -> tuple[Outcome, str]:
    """Step 1: the header commits to the body, the body to the five texts."""
    header, body = bundle.statement.header, bundle.statement.body
    faults = []
    if eip712.body_hash(body) != header.body:
        faults.append(
            f"header.body: 0x{header.body.hex()} is not the hash of the body, 0x{eip712.body_hash(body).hex()}"
        )
    digests = (body.cut_digest, body.price_digest, body.policy_digest, body.risk_digest, body.state_digest)
    names = ("cutDigest", "priceDigest", "policyDigest", "riskDigest", "stateDigest")
    for preimage, name, digest in zip(PREIMAGES, names, digests, strict=True):
        found = keccak256(getattr(bundle.preimages, preimage).encode())
        if found != digest:
            faults.append(f"preimages.{preimage}: hashes to 0x{found.hex()}, body.{name} is 0x{digest.hex()}")
    if faults:
        return "fail", "; ".join(faults)
    return "pass", f"the header commits to the body, the body to {', '.join(PREIMAGES)}"


def _check_quorum(
    bundle: Bundle, now: int | None, deployment_id: bytes | None, recovered: Collection[bytes]
) -> tuple[Outcome, str]:
    """Step 2: enough members of the set that the epoch demands signed the header."""
    own_id = bundle.deployment.deployment_id()
    if deployment_id is not None and own_id != deployment_id:
        raise FieldError("deployment", f"its id is 0x{own_id.hex()}, 0x{deployment_id.hex()} is expected")
    header = bundle.statement.header
    if now is not None and header.produced_at > now:
        raise FieldError("header.producedAt", f"{header.produced_at} is in the future, it is {now}")
    sets = verify_history(bundle.deployment, bundle.rotations, recovered.__contains__)
    _check_rotations(bundle)
    demanded = _verify_statement(bundle.deployment, sets, bundle.statement, "")
    signers = len(bundle.statement.signatures)
    detail = f"{signers} of {len(demanded.members)} signed (threshold {demanded.threshold})"
    unsigned = [r.to.set_id for r in bundle.rotations if r.recovered and r.to.set_id <= demanded.set_id]
    if bundle.rotations:
        others = "each other one" if unsigned else "each"
        detail += f", set {demanded.set_id} of {len(sets)}, {others} signed by the one before it"
    detail += f", deployment 0x{own_id.hex()}"
    if deployment_id is None:
        detail += " as the bundle states it: compare it with one you trust"
    if now is not None and now >= header.valid_until:
        detail += f"; no longer current, valid until {header.valid_until}"
    if unsigned:
        rests = ", ".join(f"governance's recovery of set {n} (not signed by set {n - 1})" for n in unsigned)
        return "not provable yet", f"rests on {rests}; {detail}"
    return "pass", detail


def _check_rotations(bundle: Bundle) -> None:
    """Refuse a history that is not the one which the state names: one left out would bring an older set back."""
    named = _state(bundle).member("rotations")
    terms = [node.value for node in named.items()]
    carried = [encode_set(rotation.to) for rotation in bundle.rotations]
    if len(terms) != len(carried):
        raise FieldError("rotations", f"{len(carried)} given, {named.path} names {len(terms)}")
    for i, (given, wanted) in enumerate(zip(carried, terms, strict=True)):
        if given != wanted:
            raise FieldError(f"rotations[{i}]", f"not the set that {named.path}[{i}] names")


def _verify_statement(
    deployment: eip712.Deployment, sets: Sequence[AttestorSet], statement: Statement, here: str
) -> AttestorSet:
    """Check that the set which the epoch demands signed; return that set."""
    header = statement.header
    demanded = set_at(sets, header.epoch)
    if header.set_id != demanded.set_id:
        reason = f"{header.set_id} given, epoch {header.epoch} demands set {demanded.set_id} of the {len(sets)} known"
        raise FieldError(f"{here}header.setId", reason)
    if header.produced_at > demanded.not_after:
        raise FieldError(f"{here}header.producedAt", f"{header.produced_at}, the set ended at {demanded.not_after}")
    if header.floor > header.epoch:
        raise FieldError(f"{here}header.floor", f"{header.floor} is above the epoch {header.epoch}")
    if not any(header.root):
        raise FieldError(f"{here}header.root", "zero")
    digest = eip712.digest(header, deployment.deployment_id())
    try:
        verify_quorum(digest, statement.signatures, demanded.members, demanded.threshold)
    except ProofError as error:
        raise type(error)(f"{here}{error.field}", error.reason) from error
    return demanded


def _check_leaves(bundle: Bundle) -> tuple[Outcome, str]:
    """Step 3: each leaf is under the root, at its index of the accounts tree, and no other entry has its pair."""
    if not bundle.leaves:
        return "not checked", "the bundle carries no leaf"
    header, body = bundle.statement.header, bundle.statement.body
    keys: dict[int, tuple[str, bytes]] = {}
    for i, proven in enumerate(bundle.leaves):
        here = f"leaves[{i}]"
        if proven.leaf.epoch != header.epoch:
            raise FieldError(f"{here}.leaf.epoch", f"{proven.leaf.epoch} given, the header's is {header.epoch}")
        leaf_hash = hash_leaf(proven.leaf)
        with_path = accounts_entry(proven.leaf.account, proven.leaf.destination, leaf_hash)
        try:
            verify_proof(leaf_hash, proven.proof, header.root)
            verify_accounts_inclusion(
                with_path, proven.accounts_index, body.leaf_count, proven.accounts_path, body.accounts_root
            )
        except ProofError as error:
            raise MerkleError(f"{here}.{error.field}", error.reason) from error
        _place(keys, proven.accounts_index, here, with_path[:64])
    for i, neighbour in enumerate(bundle.neighbours):
        here = f"neighbours[{i}]"
        entry = accounts_entry(neighbour.account, neighbour.destination, neighbour.leaf_hash)
        try:
            verify_accounts_inclusion(
                entry, neighbour.accounts_index, body.leaf_count, neighbour.accounts_path, body.accounts_root
            )
        except ProofError as error:
            raise MerkleError(f"{here}.{error.field}", error.reason) from error
        _place(keys, neighbour.accounts_index, here, entry[:64])
    ordered = sorted(keys.items())
    for (_, (_, below)), (index, (here, key)) in pairwise(ordered):
        if key <= below:
            raise MerkleError(
                f"{here}.accounts_index", f"entry {index} is not above the one before it: a pair may occur twice"
            )
    lone = [i for i, proven in enumerate(bundle.leaves) if not _is_enclosed(proven, keys, body.leaf_count)]
    detail = f"{len(bundle.leaves)} of {body.leaf_count} leaves are under the root and at their index"
    if lone:
        return "pass", f"{detail}; that leaves[{lone[0]}] is unique rests on the attestors' order: no neighbours given"
    return "pass", f"{detail}, each pair of account and destination between its neighbours"


def _place(keys: dict[int, tuple[str, bytes]], index: int, here: str, key: bytes) -> None:
    if index in keys and keys[index][1] != key:
        raise MerkleError(f"{here}.accounts_index", f"{index} is the place of {keys[index][0]} too")
    keys.setdefault(index, (here, key))


def _is_enclosed(proven: ProvenLeaf, keys: Mapping[int, object], size: int) -> bool:
    before, after = proven.accounts_index - 1, proven.accounts_index + 1
    return (before < 0 or before in keys) and (after == size or after in keys)


def _check_prices(bundle: Bundle) -> tuple[Outcome, str]:
    """Step 6: each Pyth quote is a price of an update that the policy's guardians signed."""
    document = parse_json(bundle.preimages.prices, max_bytes=MAX_BYTES, field="preimages.prices")
    updates = list(document.member("updates").items())
    quotes: dict[str, list[Node]] = {"pyth": [], "chainlink": []}
    for quote in document.member("quotes").items():
        kind = quote.member("kind").text()
        if kind not in quotes:
            raise FieldError(f"{quote.path}.kind", f"{kind[:40]!r} given, pyth or chainlink expected")
        quotes[kind].append(quote)
    signed, read = quotes["pyth"], quotes["chainlink"]
    if not (signed or read or updates):
        return "not checked", "the statement rests on no price"
    prices: Mapping[bytes, Sequence[PriceMessage]] = {}
    if signed or updates:
        policy = parse_json(bundle.preimages.policy, max_bytes=MAX_BYTES, field="preimages.policy")
        prices = _verify_updates(policy.member("pyth"), updates)
    cut_time = document.optional("cut_time")
    found = [_verify_quote(quote, prices) for quote in signed]
    _check_feeds(bundle, (*signed, *read))
    detail = f"{len(signed)} Pyth quotes are among the signed prices of {len(updates)} updates"
    older = 0 if cut_time is None else _check_price_rule(signed, found, cut_time.integer())
    if cut_time is not None:
        detail += f", {len(signed) - older} of them the first at or after the Cut's time"
    if read:
        detail += f"; {len(read)} Chainlink quotes rest on the attestors' own reads of the chain"
    if not signed:
        return "not provable yet", detail
    if cut_time is None:
        detail += "; that each is the first at or after the Cut rests on the attestors (no cut_time given)"
    if older:
        detail += f"; {older} are from before it: whether a newer price was to be had is not checked"
        return "not provable yet", detail
    return "pass", detail


def _verify_updates(pyth: Node, updates: Sequence[Node]) -> dict[bytes, list[PriceMessage]]:
    """Return the updates' prices by feed id, all of them verified."""
    quorum = pyth.optional("quorum")
    try:
        guardian_set = GuardianSet(
            index=pyth.member("guardian_set_index").integer(),
            addresses=tuple(address.hex_bytes(20) for address in pyth.member("guardians").items()),
            quorum=None if quorum is None else quorum.integer(),
        )
    except FieldError as error:
        raise FieldError(error.field.replace("guardian_set.", f"{pyth.path}.", 1), error.reason) from error
    emitter_chain = require_uint(f"{pyth.path}.emitter_chain", pyth.member("emitter_chain").integer(), 16)
    emitter_address = pyth.member("emitter_address").hex_bytes(32)
    prices: dict[bytes, list[PriceMessage]] = {}
    for update in updates:
        try:
            for price in verify_update(update.hex_bytes(), guardian_set, emitter_chain, emitter_address):
                prices.setdefault(price.feed_id, []).append(price)
        except PriceError as error:
            raise PriceError(f"{update.path}.{error.field}", error.reason) from error
    return prices


def _verify_quote(quote: Node, prices: Mapping[bytes, Sequence[PriceMessage]]) -> PriceMessage:
    """Return the signed price that the quote repeats."""
    feed_id = quote.member("feed").bare_hex_bytes(32)
    of_feed = prices.get(feed_id, ())
    if not of_feed:
        raise FieldError(f"{quote.path}.feed", f"no signed price of feed 0x{feed_id.hex()}")
    wanted = {
        "publish_time": quote.member("publish_time").integer(),
        "price": quote.member("price").decimal(),
        "conf": quote.member("conf").decimal(),
        "expo": quote.member("expo").integer(),
        "ema_price": quote.member("ema_price").decimal(),
        "ema_conf": quote.member("ema_conf").decimal(),
    }
    best = min(of_feed, key=lambda price: sum(getattr(price, name) != value for name, value in wanted.items()))
    for name, value in wanted.items():
        if getattr(best, name) != value:
            raise FieldError(f"{quote.path}.{name}", f"{value} given, the signed price says {getattr(best, name)}")
    return best


def _check_feeds(bundle: Bundle, quotes: Sequence[Node]) -> None:
    """Refuse a quote whose feed id is not the one by which the policy's sources know the feed it is used as."""
    policy = parse_json(bundle.preimages.policy, max_bytes=MAX_BYTES, field="preimages.policy")
    ids: dict[tuple[str, ...], str] = {}
    for row in policy.member("sources").items():
        key = tuple(row.member(name).text() for name in ("feed", "name", "kind"))
        if ids.setdefault(key, row.member("id").text()) != row.member("id").text():
            raise FieldError(f"{row.path}.id", f"another id of {key[0]} from {key[1]}")
    for quote in quotes:
        key = tuple(quote.member(name).text() for name in ("name", "source", "kind"))
        if key not in ids:
            raise FieldError(f"{quote.path}.name", f"the policy has no {key[2]} source {key[1]!r} of {key[0]!r}")
        feed = quote.member("feed").text()
        if feed.removeprefix("0x") != ids[key].removeprefix("0x"):
            raise FieldError(f"{quote.path}.feed", f"{feed} given, the policy's id of {key[0]!r} is {ids[key]}")


def _check_price_rule(quotes: Sequence[Node], prices: Sequence[PriceMessage], cut_time: int) -> int:
    """Refuse a price from after the Cut's time that is not the first one; return how many are from before it."""
    older = 0
    for quote, price in zip(quotes, prices, strict=True):
        older += price.publish_time < cut_time
        if price.prev_publish_time >= cut_time:
            raise FieldError(
                f"{quote.path}.publish_time",
                f"{price.publish_time} (after {price.prev_publish_time}) is not the first since the Cut, {cut_time}",
            )
    return older


def _check_recomputation(bundle: Bundle, recompute: Recompute | None) -> tuple[Outcome, str]:
    """Step 7: both sides signed each link, the state holds it, and the core finds the same leaves."""
    links = _check_links(bundle)
    if recompute is None:
        return "not provable yet", f"{links}; the leaves rest on the quorum: this verifier carries no valuation core"
    found = {(leaf.account, leaf.destination): leaf for leaf in recompute(bundle)}
    for i, proven in enumerate(bundle.leaves):
        here, leaf = f"leaves[{i}].leaf", proven.leaf
        own = found.get((leaf.account, leaf.destination))
        if own is None:
            raise FieldError(here, "the core finds no such account and destination")
        for field in fields(Leaf):
            attested, recomputed = getattr(leaf, field.name), getattr(own, field.name)
            same = _within_tolerance(attested, recomputed) if field.name in _AMOUNTS else attested == recomputed
            if not same:
                raise FieldError(f"{here}.{field.name}", f"{attested!r} attested, {recomputed!r} recomputed")
    detail = f"{links}; {len(bundle.leaves)} leaves recomputed within 1e-8 USD and 1e-12 relative"
    return ("not provable yet" if _keyless(bundle) else "pass"), detail


def _state(bundle: Bundle) -> Node:
    return parse_json(bundle.preimages.state, max_bytes=MAX_BYTES, field="preimages.state")


def _check_links(bundle: Bundle) -> str:
    """Check who signed each entry, and that the state commits to the accounts with these entries and no others."""
    deployment_id = bundle.deployment.deployment_id()
    revoked: dict[tuple[bytes, str], int] = {}
    for i, link in enumerate(bundle.links):
        try:
            _verify_entry(deployment_id, link, revoked)
        except ProofError as error:
            raise type(error)(f"links[{i}].{error.field}", error.reason) from error
    _check_accounts(bundle)
    count = Counter(link.kind for link in bundle.links)
    detail = f"{count['link']} committed links signed by both sides"
    if count["revoke"]:
        detail += f", {count['revoke']} revoked by one of them, {count['end']} ended"
    if count["shares"]:
        detail += f", shared out {count['shares']} times by the controller"
    if lacking := _keyless(bundle):
        detail += f"; consent of {', '.join(lacking)} rests on chain state, not provable offline"
    return detail


def _check_accounts(bundle: Bundle) -> None:
    """Check each account against the state's tree, with all of its entries; leaves and links must be of these."""
    if not (bundle.leaves or bundle.links or bundle.accounts):
        return
    tree = _state(bundle).member("accounts")
    count, root = tree.member("count").integer(), tree.member("root").hex_bytes(32)
    proven: set[bytes] = set()
    for i, account in enumerate(bundle.accounts):
        here = f"accounts[{i}]"
        id = _verify_document(bundle, account, f"{here}.document")
        if id in proven:
            raise FieldError(f"{here}.document.id", "is given twice")
        proven.add(id)
        entries = [keccak256(canonical_json(encode_link(e)).encode()) for e in bundle.links if e.terms.account == id]
        entry = id + keccak256(account.document.encode()) + keccak256(b"".join(entries))
        try:
            verify_accounts_inclusion(entry, account.index, count, account.path, root)
        except MerkleError as error:
            if error.field == "accounts_index":
                raise MerkleError(f"{here}.index", error.reason) from error
            reason = f"does not lead from this document and these {len(entries)} links to {tree.path}.root"
            raise MerkleError(f"{here}.path", reason) from error
    named = [(f"leaves[{i}].leaf.account", leaf.leaf.account) for i, leaf in enumerate(bundle.leaves)]
    named += [(f"links[{i}].account", link.terms.account) for i, link in enumerate(bundle.links)]
    for field, id in named:
        if id not in proven:
            raise FieldError(field, "no entry of accounts shows that the state commits to it")


def _verify_document(bundle: Bundle, account: ProvenAccount, field: str) -> bytes:
    """Check that an account's document says of its links and shares what its entries make of them; return its id."""
    document = parse_json(account.document, max_bytes=MAX_BYTES, field=field)
    document.only("id", "controller", "kind", "home", "links", "ending", "shares")
    id, controller = document.member("id").hex_bytes(32), document.member("controller").text()
    backing: dict[str, bool] = {}  # member -> whether it was revoked
    shares = ""
    for i, link in enumerate(bundle.links):
        if link.terms.account != id:
            continue
        if link.terms.controller != controller:
            raise FieldError(f"links[{i}].controller", f"{link.terms.controller}, the account's is {controller}")
        if isinstance(link.terms, SharesTerms):
            shares = link.terms.shares
        elif link.kind == "end":
            backing.pop(link.terms.member, None)
        else:
            backing[link.terms.member] = link.kind == "revoke"
    found = {
        "links": sorted(backing),
        "ending": sorted(member for member, revoked in backing.items() if revoked),
        "shares": shares,
    }
    for name, value in found.items():
        given = document.member(name)
        if given.value != value:
            raise FieldError(given.path, f"{given.value!r} given, its entries make it {value!r}")
    return id


def _verify_entry(deployment_id: bytes, link: SignedLink, revoked: dict[tuple[bytes, str], int]) -> None:
    """Check one entry of the log; `revoked` holds the nonces of the revokes that nothing followed so far."""
    terms, invite, accept = link.terms, link.invite, link.accept
    if isinstance(terms, SharesTerms):
        if invite is None:
            raise FieldError("invite", "missing: nobody signed")
        verify_shares(deployment_id, terms, invite, link.accepted_at, salt=link.salt, ask_chain=True)
        return
    pair = terms.account, terms.member
    if link.kind == "end":
        if revoked.pop(pair, None) != terms.nonce:
            raise FieldError("nonce", f"{terms.nonce} ends no revoke of {terms.member} before it")
        return
    if link.kind == "link" and invite is not None and accept is not None:
        verify_link(deployment_id, terms, invite, accept, link.accepted_at, salt=link.salt, ask_chain=True)
        revoked.pop(pair, None)
        return
    consent = accept if invite is None else invite
    if consent is None:
        raise FieldError("accept", "missing: nobody signed")
    side: Side = "member" if invite is None else "controller"
    verify_revoke(deployment_id, terms, side, consent, link.accepted_at, salt=link.salt, ask_chain=True)
    revoked[pair] = terms.nonce


def _keyless(bundle: Bundle) -> list[str]:
    return sorted({who for link in bundle.links for who in link.chain_consents})


def _within_tolerance(attested: int, recomputed: int) -> bool:
    """Allow one quantum and 1e-12 relative, as attestors do among themselves."""
    return abs(attested - recomputed) <= 1 + max(abs(attested), abs(recomputed)) // 10**12


def _check_history(bundle: Bundle, recovered: Collection[bytes]) -> tuple[Outcome, str]:
    """Step 8: `previous` is the digest of the statement before, as far back as the bundle goes."""
    deployment_id = bundle.deployment.deployment_id()
    sets = verify_history(bundle.deployment, bundle.rotations, recovered.__contains__)
    newer, here = bundle.statement, ""
    for i, older in enumerate(bundle.history):
        there = f"history[{i}]."
        found = eip712.digest(older.header, deployment_id)
        if newer.body.previous != found:
            raise FieldError(f"{here}body.previous", f"0x{newer.body.previous.hex()}, {there[:-1]} is 0x{found.hex()}")
        if eip712.body_hash(older.body) != older.header.body:
            raise FieldError(f"{there}header.body", "not the hash of its body")
        if older.header.epoch >= newer.header.epoch:
            raise FieldError(f"{there}header.epoch", f"{older.header.epoch} is not below {newer.header.epoch}")
        _verify_statement(bundle.deployment, sets, older, there)
        newer, here = older, there
    if not any(newer.body.previous):
        return "pass", f"back to the first of the log, earlier statements carried: {len(bundle.history)}"
    rest = f"states 0x{newer.body.previous.hex()} as the one before, which the bundle does not carry"
    if bundle.history:
        return "pass", f"earlier statements carried: {len(bundle.history)}; the oldest {rest}"
    return "not checked", f"the statement {rest}"


def _check_stored_roots(bundle: Bundle, roots: ReadRoots | None) -> tuple[Outcome, str]:
    """Step 9: the registries store this root."""
    if roots is None:
        return "not checked", "offline"
    stored = roots(bundle)
    if not stored:
        return "not checked", "no destination was read"
    for destination, found in stored.items():
        if found != bundle.statement.header.root:
            raise FieldError(
                "header.root", f"{destination} stores 0x{found.hex()} for epoch {bundle.statement.header.epoch}"
            )
    return "pass", f"stored on {', '.join(stored)}"
