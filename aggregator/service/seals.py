"""Seals: what shows on a chain that an address without a key agrees, in a form that a reader can check there.

``eip1271:<digest>:<signature>``, hex: the address must answer ``isValidSignature(digest, signature)`` with its magic.
``pda:<record>:<verb>:<deployment>:<controller>:<nonce>:<expiry>``: the links program must hold, at the base58 address,
this record of this member and account; ``controller`` is the keccak of its CAIP-10 text, ids are hex, numbers decimal.
"""

from __future__ import annotations

from collections.abc import Iterable

from aggregator.domain.certificate import LinkRecord
from aggregator.domain.links import backings
from aggregator.domain.snapshot import Subject
from proofs.hashing import keccak256
from proofs.links import (
    ChainConsent,
    LinkTerms,
    SharesTerms,
    Side,
    Verb,
    encode_base58,
    link_digest,
    parse_chain_consent,
    shares_digest,
)


def to_terms(record: LinkRecord) -> LinkTerms:
    """Return what the sides of a record sign.

    Raises:
        FieldError: a field is out of range or not canonical.
    """
    account = bytes.fromhex(record.account.removeprefix("0x"))
    return LinkTerms(account, record.controller, record.member, record.nonce, record.expiry)


def to_shares(record: LinkRecord) -> SharesTerms:
    """Return what the controller signs of a record of kind shares.

    Raises:
        FieldError: a field is out of range or not canonical.
    """
    account = bytes.fromhex(record.account.removeprefix("0x"))
    return SharesTerms(account, record.controller, record.shares, record.nonce, record.expiry)


def seal_of(deployment_id: bytes, record: LinkRecord) -> str:
    """Return the seal of a link's member, "" where the member has a key of its own."""
    text = record.accept_signature
    if record.kind != "link" or ":" not in text:  # nearly every link; signatures of keys have no colon
        return ""
    consent = parse_chain_consent(text, "accept_signature")
    return "" if consent is None else build_seal(deployment_id, "accept", to_terms(record), consent)


def seals(deployment_id: bytes, log: Iterable[LinkRecord]) -> dict[str, str]:
    """Return the seals of the members without a key that back an account by ``log``, by member (CAIP-10).

    A member whose link is revoked has none: its assets count 0 whatever its chain says.
    """
    found = {
        member: seal_of(deployment_id, backing.link)
        for member, backing in backings(log).items()
        if backing.revoke is None
    }
    return {member: seal for member, seal in found.items() if seal}


def questions(deployment_id: bytes, record: LinkRecord) -> list[tuple[Side, str, Subject]]:
    """Return what chains must be asked before ``record`` may be believed: per side, the chain and a sealed subject."""
    if record.kind == "shares":
        consent = parse_chain_consent(record.invite_signature) if ":" in record.invite_signature else None
        if consent is None:
            return []
        chain, _, address = record.controller.rpartition(":")
        digest = shares_digest(deployment_id, to_shares(record))
        seal = f"eip1271:{digest.hex()}:{consent.data.hex()}"  # no other address without a key can sign shares
        return [("controller", chain, Subject(record.account, address, seal))]
    given: tuple[tuple[Side, Verb, str, str], ...] = (
        ("controller", "invite", record.controller, record.invite_signature),
        ("member", "accept", record.member, record.accept_signature),
    )
    asked: list[tuple[Side, str, Subject]] = []
    for side, verb, who, text in given:
        consent = parse_chain_consent(text) if ":" in text else None
        if consent is not None:
            chain, _, address = who.rpartition(":")
            seal = build_seal(deployment_id, "revoke" if record.kind == "revoke" else verb, to_terms(record), consent)
            asked.append((side, chain, Subject(record.account, address, seal)))
    return asked


def build_seal(deployment_id: bytes, verb: Verb, terms: LinkTerms, consent: ChainConsent) -> str:
    """Return the seal of one consent to ``terms``."""
    if consent.kind == "eip1271":
        return f"eip1271:{link_digest(deployment_id, verb, terms).hex()}:{consent.data.hex()}"
    controller = keccak256(terms.controller.encode()).hex()
    record = encode_base58(consent.data)
    return f"pda:{record}:{verb}:{deployment_id.hex()}:{controller}:{terms.nonce}:{terms.expiry}"
