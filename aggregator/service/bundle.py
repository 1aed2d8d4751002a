"""The audit bundle of one account at one epoch, assembled from what the store kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aggregator.core.commitment import accounts_path, build_commitment, proof
from aggregator.domain.certificate import EpochRecord, LinkRecord, State, to_leaf
from aggregator.domain.errors import UnknownError
from aggregator.domain.links import with_links
from aggregator.domain.report import LeafValues
from aggregator.service.accounts import decode_signature
from aggregator.service.seals import to_shares, to_terms
from proofs.bundle import Bundle, Neighbour, Preimages, ProvenAccount, ProvenLeaf, SignedLink, Statement, render_bundle
from proofs.leaf import hash_leaf
from proofs.quorum import IndexedSignature
from proofs.statement import Deployment

if TYPE_CHECKING:
    from aggregator.service.committed import Committed


def to_signed_link(record: LinkRecord, salt: bytes) -> SignedLink:
    """Return a record of the links log as it stands in a bundle."""
    invite, accept = record.invite_signature, record.accept_signature
    return SignedLink(
        to_shares(record) if record.kind == "shares" else to_terms(record),
        salt,
        decode_signature(record.controller, invite, "invite_signature") if invite else None,
        decode_signature(record.member, accept, "accept_signature") if accept else None,
        record.recorded_at,
        record.kind,
    )


def leaf_proof(record: EpochRecord, index: int) -> tuple[bytes, ...]:
    """Return the sibling path of leaf ``index`` of an epoch to its root."""
    return proof(build_commitment(record.leaves), index)


def export_bundle(
    record: EpochRecord,
    account: str,
    deployment: Deployment,
    state: State,
    history: Sequence[EpochRecord] = (),
    committed: Committed | None = None,
) -> str:
    """Return the canonical text of the bundle for ``account`` (its leaves of every destination).

    Args:
        record: a certified epoch with all its leaves.
        state: accounts, links log and rotations, of then or of any time since.
        history: earlier certified epochs, newest first, as far back as the log link is to be shown.
        committed: remembers digests of accounts and links; without it all are computed, 0.1 ms each.

    Raises:
        UnknownError: the epoch has no leaf of the account, or is not certified.
    """
    from aggregator.service import committed as commits  # here: it commits to links as `to_signed_link` gives them

    mine = [i for i, leaf in enumerate(record.leaves) if leaf.account == account]
    if not mine or record.certificate is None:
        raise UnknownError("epoch", str(record.header.epoch), "the account has no certified leaf in it")
    commitment = build_commitment(record.leaves)
    order = sorted(range(len(record.leaves)), key=lambda i: _entry_key(record.leaves[i]))
    place = {i: index for index, i in enumerate(order)}
    beside = {place[i] + step for i in mine for step in (-1, 1)} - {place[i] for i in mine}
    neighbours = [order[p] for p in sorted(beside) if 0 <= p < len(order)]
    preimages, then = record.preimages, _state_of(record, state)
    proven = (committed or commits.Committed()).prove(then, account)
    bundle = Bundle(
        deployment=deployment,
        statement=_statement(record),
        leaves=tuple(
            ProvenLeaf(to_leaf(record.leaves[i]), proof(commitment, i), place[i], tuple(accounts_path(commitment, i)))
            for i in mine
        ),
        preimages=Preimages(**{name: preimages[name] for name in ("cut", "prices", "policy", "risk", "state")}),
        links=tuple(to_signed_link(link, then.salts[link.account]) for link in then.links if link.account == account),
        neighbours=tuple(
            Neighbour(
                (leaf := to_leaf(record.leaves[i])).account,
                leaf.destination,
                hash_leaf(leaf),
                place[i],
                tuple(accounts_path(commitment, i)),
            )
            for i in neighbours
        ),
        history=tuple(_statement(h) for h in history),
        rotations=then.rotations,
        accounts=(ProvenAccount(proven.document, proven.index, proven.path),),
    )
    return render_bundle(bundle)


def _state_of(record: EpochRecord, state: State) -> State:
    """Return ``state`` as it was at an epoch: logs only grow, and every account has leaves from its first epoch on."""
    committed = json.loads(record.preimages["state"])
    links = state.links[: committed["links"]["count"]]
    named = {leaf.account for leaf in record.leaves}
    accounts = with_links((a for a in state.accounts if a.id in named), links)
    return State(accounts, links, state.salts, state.rotations[: len(committed["rotations"])])


def _entry_key(leaf: LeafValues) -> tuple[str, str]:
    return leaf.account, leaf.destination


def _statement(record: EpochRecord) -> Statement:
    return Statement(
        record.header, record.body, tuple(IndexedSignature(a.index, a.r, a.vs) for a in record.attestations)
    )
