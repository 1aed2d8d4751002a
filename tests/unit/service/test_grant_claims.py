"""Grants that a proposer never heard of: claimed by attestors, believed as far as a quorum needs, listed next time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.grants import SqliteGrants
from aggregator.domain.budgets import Grant, all_uncovered, staircase, uncovered
from aggregator.domain.certificate import EpochRecord, LinkRecord, State
from aggregator.domain.errors import DissentError
from aggregator.domain.snapshot import Account
from aggregator.service import state_rules
from aggregator.service.attest import Quorum
from aggregator.service.claims import Bounds, Claims
from aggregator.service.state_rules import StateRules
from proofs.hashing import keccak256
from proofs.quorum import minimal_threshold
from tests.unit.service.test_shares import LATER, OWNER, SALT, proposal, share, whole
from tests.worlds.documents import ALPHA
from tests.worlds.world import FIRST_EPOCH, SimulatedWorld

ONE, TWO, STRANGER = ("0x" + f"{n:02x}" * 32 for n in (1, 2, 3))
HERE, THERE = "0x" + "aa" * 32, "0x" + "bb" * 32
BOUNDS = Bounds({ONE, TWO}, {HERE, THERE}, 9, after=1_000, until=2_000)
MEMBERS = [bytes([i]) * 20 for i in range(7)]


def grant(budget: int, account: str = ONE, place: str = HERE, epoch: int = 7, until: int = 1_500) -> Grant:
    return Grant(account, place, epoch, budget, until)


def asked(claims: dict[int, list[Grant]], signers: set[int], others: Collection[int] = ()) -> Quorum:
    """Return a round without a quorum: who signed, who refused otherwise, and who claims what."""
    return Quorum(
        (),
        (),
        len(signers),
        (),
        frozenset(MEMBERS[i] for i in signers),
        frozenset(MEMBERS[i] for i in {*others, *claims}),
        {MEMBERS[i]: tuple(given) for i, given in claims.items()},
    )


# --- whom to believe -------------------------------------------------------------------------------------------------


def test_no_more_is_believed_than_a_quorum_needs_and_the_cheapest_first() -> None:
    huge, small, smaller = grant(10**30), grant(500), grant(100, TWO)
    claims = {1: [small], 2: [smaller], 3: [huge]}
    assert Claims().take(asked(claims, {0}), 3, BOUNDS) == tuple(sorted((small, smaller)))
    assert Claims().take(asked({1: [small], 3: [huge]}, {0, 2}), 3, BOUNDS) == (small,)
    # Who refuses otherwise is not waited for, but one more at least is believed: else it could stop everybody.
    assert Claims().take(asked({1: [small], 3: [huge]}, {0}, {2}), 3, BOUNDS) == (small,)
    assert Claims().take(asked({1: [small]}, {0, 2}, {3}), 3, BOUNDS) == (small,)


def test_with_a_quorum_nothing_is_believed() -> None:
    assert Claims().take(asked({3: [grant(5)]}, {0, 1, 2}), 3, BOUNDS) == ()


@pytest.mark.parametrize(
    "claim",
    [
        grant(5, until=1_000),
        grant(5, until=2_001),
        grant(5, epoch=9),
        grant(5, epoch=10),
        grant(5, epoch=0),
        grant(5, STRANGER),
        grant(5, place="0x" + "cc" * 32),
    ],
    ids=["expired", "ends later than any", "of this epoch", "to come", "epoch 0", "no account", "no destination"],
)
def test_what_nobody_can_have_signed_is_not_believed(claim: Grant) -> None:
    assert Claims().take(asked({1: [claim]}, {0, 2}), 3, BOUNDS) == ()
    assert Claims().take(asked({1: [claim, grant(6)]}, {0, 2}), 3, BOUNDS) == (grant(6),)


def test_who_claims_a_little_every_time_does_not_stand_before_the_others() -> None:
    claims, honest = Claims(), grant(500)
    assert claims.take(asked({1: [honest], 3: [grant(1)]}, {0, 2}), 3, BOUNDS) == (grant(1),)
    assert claims.take(asked({1: [honest], 3: [grant(2)]}, {0, 2}), 3, BOUNDS) == (honest,)
    # Whoever signed is as good as new.
    claims.take(asked({}, {0, 1, 2, 3}), 3, BOUNDS)
    assert claims.take(asked({1: [honest], 3: [grant(3)]}, {0, 2}), 3, BOUNDS) == (grant(3),)


GRANTS = st.builds(
    grant,
    st.integers(1, 10**6),
    st.sampled_from([ONE, TWO]),
    st.sampled_from([HERE, THERE]),
    st.integers(1, 8),
    st.integers(1_001, 2_000),
)


@given(st.sampled_from([4, 7]), st.data())
def test_within_a_few_epochs_there_is_a_quorum_whatever_the_faulty_claim(n: int, data: st.DataObject) -> None:
    threshold, faulty = minimal_threshold(n), data.draw(st.sets(st.integers(0, n - 1), max_size=(n - 1) // 3))
    own = {i: staircase(data.draw(st.lists(GRANTS, max_size=4))) for i in range(n) if i not in faulty}
    claims, known = Claims(), set[Grant]()
    for _ in range(n + 1):
        listed = staircase(known)
        signers = {i for i, mine in own.items() if uncovered(mine, listed) is None}
        for i in signers:  # what the attestors of a quorum hold is listed: nothing can be drawn twice
            assert uncovered(own[i], listed) is None
        if len(signers) >= threshold:
            return
        said = {i: list(all_uncovered(mine, listed)) for i, mine in own.items() if i not in signers}
        others = set()
        for i in faulty:
            habit = data.draw(st.sampled_from(["claims", "refuses", "signs", "is silent"]))
            if habit == "claims":
                said[i] = data.draw(st.lists(GRANTS | st.just(grant(10**37)), min_size=1, max_size=3))
            elif habit == "refuses":
                others.add(i)
            elif habit == "signs":
                signers.add(i)
        if len(signers) >= threshold:
            return
        learned = claims.take(asked(said, signers, others), threshold, BOUNDS)
        assert learned
        assert set(learned) <= {g for given_ in said.values() for g in given_}
        known.update(learned)
    raise AssertionError("never certified")


# --- what attestors claim ---------------------------------------------------------------------------------------------


async def test_a_refusal_brings_what_is_missing_and_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = LinkRecord(1, ONE, OWNER.address, "", 1, LATER, "0x", "", 1, "shares", f"{ALPHA}=1")
    book = SqliteGrants(tmp_path / "grants.db", 30)
    rules = StateRules(bytes(32), 60, None, book)
    mine, listed = grant(5, until=1_100), grant(7, place=THERE, until=1_100)
    await book.learn([mine, listed])
    with pytest.raises(DissentError) as caught:
        await rules._verify_grants(proposal(State((), (signed,), {}, grants=(listed,))))
    assert caught.value.claims == (mine,)
    monkeypatch.setattr(state_rules, "CLAIMS", 2)
    many = [grant(5, place="0x" + f"{i:064x}", until=1_100) for i in range(3)]
    await book.learn(many)
    with pytest.raises(DissentError) as caught:
        await rules._verify_grants(proposal(State((), (signed,), {}, grants=(listed, mine))))
    assert caught.value.claims == tuple(many[:2])
    await book.close()


# --- the whole way ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def books(
    world: SimulatedWorld, accounts: dict[str, Account], tmp_path: Path
) -> AsyncIterator[list[SqliteGrants]]:
    """Give coordinator (first) and attestors a record each."""
    async with AsyncExitStack() as closing:
        made = [SqliteGrants(tmp_path / f"grants-{i}.sqlite3", 30) for i in range(5)]
        for book in made:
            closing.push_async_callback(book.close)
        world.cycle._grants = made[0]
        for attestor, book in zip(world.attestors, made[1:], strict=True):
            attestor._grants = book
            world.state_rules[attestor.name]._grants = book
        yield made


def listed(record: EpochRecord) -> tuple[Grant, ...]:
    rows = json.loads(record.preimages["state"])["grants"]
    return tuple(Grant(a, d, epoch, int(budget), until) for a, d, epoch, budget, until in rows)


async def test_the_epoch_after_unheard_of_grants_certifies(world: SimulatedWorld, books: list[SqliteGrants]) -> None:
    """Two attestors signed failover proposals that nobody heard of; a third one makes a fortune up."""
    account = await world.book.open_account(OWNER.address, SALT, "risk-bearing", None, "mine")
    await share(world, account, OWNER, whole(world))
    before = await world.epoch(FIRST_EPOCH)
    assert len(before.attestations) == 4
    here, there = sorted({leaf.destination for leaf in before.leaves})[:2]
    until = before.header.valid_until - 1
    unheard = [Grant(account.id, here, FIRST_EPOCH, 700, until), Grant(account.id, there, FIRST_EPOCH, 900, until)]
    fortune = Grant(account.id, here, FIRST_EPOCH, 10**30, until)
    for book, claim in zip(books[2:], (*unheard, fortune), strict=True):
        await book.learn([claim])

    refused = await world.epoch(FIRST_EPOCH + 1)
    assert refused.attestations == ()
    assert sorted(r.attestor for r in refused.refusals) == [f"attestor-{i}" for i in (1, 2, 3)]
    assert all(r.reason.startswith("grants: ") for r in refused.refusals)

    after = await world.epoch(FIRST_EPOCH + 2)
    assert [a.index for a in after.attestations] == [0, 1, 2]
    assert [r.attestor for r in after.refusals] == ["attestor-3"]
    assert set(unheard) <= set(listed(after))
    assert fortune not in listed(after)
    for index in (0, 1, 2):
        own = await books[1 + index].outstanding(after.cut_time, [account.id], after.header.epoch)
        assert uncovered(own, listed(after)) is None, index
    assert keccak256(after.preimages["state"].encode()) == after.body.state_digest
