"""An attestor's own copy of the log: what it takes over, when it keeps it, and what nobody makes it forget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator.domain.certificate import Certificate, LinkRecord, State
from aggregator.domain.errors import ConflictError, RefusedError
from aggregator.domain.links import with_links
from aggregator.domain.snapshot import Account
from aggregator.service.attest import Proposal
from aggregator.service.committed import Committed
from aggregator.service.replica import Replica, to_record, verify_record
from aggregator.store import SqlStore
from proofs.hashing import keccak256
from tests.unit.attest.statements import EPOCH_SECONDS, ManualClock, certify, make_deployment, make_leaf, make_proposal

EPOCH = 900_000_000
NOW = EPOCH * EPOCH_SECONDS
CHAIN = "eip155:31337"
DEPLOYMENT = make_deployment(4)
ACCOUNTS = tuple(Account(f"0x{i:064x}", f"{CHAIN}:0x{i:040x}", "risk-bearing", CHAIN) for i in (1, 2))
SALTS = {account.id: bytes([i]) * 32 for i, account in enumerate(ACCOUNTS)}


def link(position: int, **changes: Any) -> LinkRecord:
    account = ACCOUNTS[0]
    record = LinkRecord(
        position, account.id, account.controller, f"{CHAIN}:0x{position:040x}", 1, 2**40, "0x" + "11" * 65,
        "0x" + "22" * 65, NOW - 100 + position,
    )  # fmt: skip
    return record._replace(**changes)


def state(*links: LinkRecord, accounts: tuple[Account, ...] = ACCOUNTS) -> State:
    return State(with_links(accounts, links), links, {a.id: SALTS[a.id] for a in accounts})


def propose(given: State, epoch: int = EPOCH, **changes: Any) -> Proposal:
    text, digest = Committed().text(given, None)
    made = make_proposal(DEPLOYMENT, epoch, body={"state_digest": digest}, **changes)
    return replace(made, state=given, preimages={"state": text})


def computed(proposal: Proposal) -> Any:
    """Return what an attestor computes that agrees with everything."""
    return SimpleNamespace(
        digests={"state": proposal.body.state_digest},
        preimages=dict(proposal.preimages),
        leaves=proposal.leaves,
        snapshot=SimpleNamespace(chains=()),
        report=SimpleNamespace(findings=()),
    )


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(f"sqlite:///{tmp_path / 'replica.db'}")
    yield opened
    await opened.close()


@pytest.fixture
def replica(store: SqlStore) -> Replica:
    return Replica(store, ManualClock(NOW), skew=5, epoch_seconds=EPOCH_SECONDS)


async def adopt(replica: Replica, proposal: Proposal) -> Certificate:
    """Have a proposal examined and certified."""
    await replica.extended(proposal)
    replica.attested(proposal, computed(proposal))
    certificate = certify(DEPLOYMENT, proposal)
    await replica.certified(certificate)
    return certificate


async def test_what_a_proposal_brings_is_kept_once_it_is_certified_and_not_before(
    replica: Replica, store: SqlStore
) -> None:
    proposal = propose(state(link(1), link(2)))
    seen = await replica.extended(proposal)
    assert seen.links == proposal.state.links
    assert seen.accounts == proposal.state.accounts
    replica.attested(proposal, computed(proposal))
    assert (await store.state()).links == ()
    other = certify(DEPLOYMENT, propose(state(link(1)), EPOCH + 1))
    await replica.certified(other)
    assert (await store.state()).links == (), "another statement was certified"
    await replica.certified(certify(DEPLOYMENT, proposal))
    kept = await store.state()
    assert (kept.links, kept.accounts, kept.salts) == (proposal.state.links, proposal.state.accounts, SALTS)
    record = await store.epoch(EPOCH)
    assert record is not None
    assert (record.leaves, record.preimages) == (proposal.leaves, dict(proposal.preimages))


async def test_two_logs_that_were_shown_and_not_certified_divide_nobody(replica: Replica, store: SqlStore) -> None:
    shown = propose(state(link(1)))
    await replica.extended(shown)
    replica.attested(shown, computed(shown))
    another = propose(state(link(1, nonce=9)), EPOCH + 1)
    await adopt(replica, another)
    assert (await store.state()).links == another.state.links


async def test_a_different_entry_at_a_position_on_record_is_refused(replica: Replica) -> None:
    await adopt(replica, propose(state(link(1), link(2))))
    with pytest.raises(RefusedError, match=r"^state: link 2: .* nonce 9 proposed, .* nonce 1 on record"):
        await replica.extended(propose(state(link(1), link(2, nonce=9)), EPOCH + 1))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([link(2)], "link 2 proposed, 1 expected"),
        ([link(1), link(2, recorded_at=NOW - 200)], r"link 2: recorded at \d+"),
        ([link(1, recorded_at=NOW + 6)], r"link 1: recorded at \d+"),
        ([link(1, account=f"0x{9:064x}")], "account .* is not known"),
        ([link(1), link(2, member=link(1).member, account=ACCOUNTS[1].id)], "backs account"),
        ([link(1, kind="revoke")], "does not back"),
    ],
)
async def test_entries_that_may_not_follow_are_refused(replica: Replica, entries: list[LinkRecord], says: str) -> None:
    given = State(ACCOUNTS, tuple(entries), SALTS)
    with pytest.raises(RefusedError, match=says):
        await replica.extended(replace(make_proposal(DEPLOYMENT, EPOCH), state=given))


async def test_an_account_without_its_salt_is_refused(replica: Replica) -> None:
    given = State(ACCOUNTS, (), {})
    with pytest.raises(RefusedError, match="comes without its salt"):
        await replica.extended(replace(make_proposal(DEPLOYMENT, EPOCH), state=given))


async def test_only_the_coordinator_adds_to_the_log(replica: Replica) -> None:
    proposal = replace(propose(state(link(1))), extends=False)
    with pytest.raises(RefusedError, match="only the coordinator records"):
        await replica.extended(proposal)
    await adopt(replica, propose(state(link(1))))
    assert (await replica.extended(replace(proposal, extends=False))).links == (link(1),)


async def test_what_a_quorum_has_certified_anybody_may_bring(replica: Replica) -> None:
    """An attestor that was away is behind the log, and the coordinator may be gone."""
    before = propose(state(link(1)))
    text = before.preimages["state"]
    proposal = replace(
        propose(state(link(1)), EPOCH + 1), extends=False, previous=certify(DEPLOYMENT, before), previous_state=text
    )
    assert (await replica.extended(proposal)).links == (link(1),)
    for changes in ({"previous_state": text + " "}, {"previous": None}, {"state": state(link(1), link(2))}):
        with pytest.raises(RefusedError, match="only the coordinator records"):
            await replica.extended(replace(proposal, **changes))


async def test_a_state_that_is_not_the_one_committed_to_is_not_kept(replica: Replica, store: SqlStore) -> None:
    proposal = replace(propose(state(link(1))), state=state(link(1), link(2)))
    replica.attested(proposal, computed(propose(proposal.state)))
    await replica.certified(certify(DEPLOYMENT, proposal))
    assert (await store.state()).links == ()
    assert await store.certificate(EPOCH) is not None


async def test_a_copy_takes_no_log_with_a_gap(store: SqlStore) -> None:
    with pytest.raises(ConflictError, match="links"):
        await store.adopt(state(link(2)))


def test_a_peers_record_is_believed_as_far_as_the_certificate_goes() -> None:
    proposal = propose(state())
    certificate = certify(DEPLOYMENT, proposal)
    given = replace(
        to_record(certificate, NOW), leaves=proposal.leaves, preimages={"state": proposal.preimages["state"]}
    )
    assert verify_record(given, certificate) == given
    other = certify(DEPLOYMENT, propose(state(), EPOCH + 1))
    for wrong, says in (
        (to_record(other, NOW), "given"),
        (replace(given, leaves=(make_leaf(EPOCH, 7),)), "over its leaves"),
        (replace(given, leaves=()), "over its leaves"),
        (replace(given, preimages={"state": "{}"}), "a text is not"),
        (replace(given, preimages={"levels": "{}"}), "a text is not"),
    ):
        with pytest.raises(RefusedError, match=f"^record: .*{says}"):
            verify_record(wrong, certificate)
    assert keccak256(given.preimages["state"].encode()) == certificate.body.state_digest
