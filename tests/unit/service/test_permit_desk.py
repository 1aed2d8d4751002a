"""How the coordinator collects permits and holds: a quorum or nothing, and nothing that was perhaps signed is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from adapters.permit_book import SqlitePermitBook
from aggregator.domain.budgets import PermitRecord
from aggregator.domain.certificate import Attestation
from aggregator.domain.errors import ConflictError, InputError, RefusedError, UnknownError, Unreachable
from aggregator.domain.permits import HoldRecord, SignedPermit
from aggregator.domain.report import LeafValues
from aggregator.domain.snapshot import Account
from aggregator.domain.units import USD
from aggregator.service.permits import MOST_ASKED, Newest, PermitDesk, collect_hold
from proofs.permits import Hold, PermitTerms, chain_word, hold_digest, permit_digest
from proofs.quorum import IndexedSignature, verify_quorum
from tests.strategies import CUT_TIME, ETH, EVM, SOLANA, SUSDC, USDC, account_id, debt
from tests.unit.service.permit_world import (
    BOUNDS,
    CONTROLLER,
    DEPLOYMENT,
    DOLLAR,
    EPOCH,
    FUNDS,
    GROUP,
    NOW,
    SLACK,
    TO,
    UNTIL,
    VAULT,
    Accounts,
    Attesting,
    Clock,
    asked,
    newest_of,
)

HERE = "0x" + chain_word(EVM).hex()


class Lying:
    """An attestor that answers with something else."""

    name = "liar"

    def __init__(self, answer: Attestation | Exception) -> None:
        self._answer = answer

    async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@dataclass
class Office:
    desk: PermitDesk
    book: SqlitePermitBook
    attestors: list[Attesting]
    clock: Clock
    askers: list[Any]
    turn: asyncio.Lock
    newest: Newest | None  # what the coordinator computed itself


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    newest, clock = newest_of(FUNDS, debt(1, USDC, 100.0)), Clock()
    attestors = [Attesting(tmp_path / f"attestor-{i}", i, clock, newest) for i in range(4)]
    book = SqlitePermitBook(tmp_path / "permits.sqlite")
    askers: list[Any] = list(attestors)

    async def number() -> int | None:
        return EPOCH

    account = next(a for a in newest.epoch.snapshot.accounts if a.id == account_id(1))
    turn = asyncio.Lock()
    desk = PermitDesk(
        DEPLOYMENT,
        Accounts(account),  # type: ignore[arg-type]
        book,
        askers,
        lambda epoch: GROUP,
        number,
        lambda: made.newest,
        attestors[0].grants,
        {EVM: {VAULT}},
        BOUNDS,
        SLACK,
        clock,
        seconds=60,
        turn=turn,
    )
    made = Office(desk, book, attestors, clock, askers, turn, newest)
    yield made
    for file in (book, *attestors):
        await file.close()


def digest_of(permit: PermitRecord) -> bytes:
    account, nonce = (bytes.fromhex(text[2:]) for text in (permit.account, permit.nonce))
    terms = PermitTerms(
        *(account, permit.chain, permit.vault, permit.asset, permit.amount, permit.to, nonce),
        *(permit.epoch, permit.expiry),
    )
    return permit_digest(terms.permit, DEPLOYMENT)


def require_quorum(digest: bytes, attestations: tuple[Attestation, ...]) -> None:
    signatures = [IndexedSignature(a.index, a.r, a.vs) for a in attestations]
    verify_quorum(digest, signatures, GROUP.members, GROUP.threshold)


async def test_a_quorum_signs_and_the_permit_is_listed_from_then_on(office: Office) -> None:
    permit = asked()
    signed = await office.desk.collect_permit(permit)
    require_quorum(digest_of(permit), signed.attestations)
    assert [a.index for a in signed.attestations] == [0, 1, 2, 3]
    assert await office.desk.permits(account_id(1)) == (signed,)
    assert await office.desk.permits(account_id(2)) == ()
    assert await office.desk.outstanding() == (permit,)
    assert await office.desk.outstanding(permit.expiry + SLACK[EVM]) == (permit,)
    assert await office.desk.outstanding(permit.expiry + SLACK[EVM] + 1) == ()
    # The same one again is the same answer, whoever is there to be asked.
    office.askers.clear()
    assert await office.desk.collect_permit(permit) == signed


async def test_three_of_four_are_enough_and_two_are_not(office: Office) -> None:
    office.attestors[0].silent = True
    signed = await office.desk.collect_permit(asked())
    assert [a.index for a in signed.attestations] == [1, 2, 3]
    office.attestors[1].silent = True
    with pytest.raises(RefusedError, match="2 of 3 signatures; attestor-0: no answer in time") as refused:
        await office.desk.collect_permit(asked(100, nonce=2))
    assert refused.value.rule == "quorum"
    # Two attestors have signed it, so that every statement must list it.
    assert await office.desk.outstanding() == (asked(100, nonce=2), asked())
    assert SignedPermit(asked(100, nonce=2)) in await office.desk.permits(account_id(1))
    office.attestors[1].silent = False
    assert (await office.desk.collect_permit(asked(100, nonce=2))).attestations


async def test_who_never_answers_is_not_waited_for(office: Office) -> None:
    class Stuck:
        name = "stuck"

        async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
            await asyncio.Event().wait()
            raise AssertionError

    office.askers[:] = [Stuck()]
    office.desk._seconds = 0.01
    with pytest.raises(RefusedError, match="stuck: no answer in time"):
        await office.desk.collect_permit(asked())
    assert await office.desk.outstanding() == (asked(),)


async def test_what_everybody_refuses_is_forgotten_and_says_why(office: Office) -> None:
    office.newest = newest_of(FUNDS)  # they know of a debt that the coordinator does not
    with pytest.raises(RefusedError, match=r"0 of 3 signatures; attestor-0: free_collateral") as refused:
        await office.desk.collect_permit(asked(1_000 * DOLLAR))
    assert "attestor-3: free_collateral" in refused.value.reason
    assert await office.desk.outstanding() == ()


async def test_what_somebody_may_have_signed_is_not_forgotten(office: Office) -> None:
    office.newest = newest_of(FUNDS)
    office.attestors[2].silent = True
    for _ in range(2):  # nor when everybody refuses it the next time
        with pytest.raises(RefusedError, match="0 of 3"):
            await office.desk.collect_permit(asked(1_000 * DOLLAR))
        office.attestors[2].silent = False
        assert len(await office.desk.outstanding()) == 1


@pytest.mark.parametrize(
    ("rule", "permit"),
    [
        ("amount", asked(10**30)),
        ("free_collateral", asked(1_000 * DOLLAR)),
        ("epoch", asked(epoch=EPOCH - 3)),
        ("epoch", asked(epoch=EPOCH + 1)),
    ],
)
async def test_nobody_is_asked_about_what_the_coordinator_knows_better(
    office: Office, rule: str, permit: PermitRecord
) -> None:
    office.askers[:] = [Lying(AssertionError("asked"))]
    with pytest.raises(RefusedError) as refused:
        await office.desk.collect_permit(permit)
    assert refused.value.rule == rule
    assert await office.desk.outstanding() == ()
    office.newest = newest_of(FUNDS._replace(account=account_id(2)))
    with pytest.raises(RefusedError) as refused:
        await office.desk.collect_permit(asked())
    assert refused.value.rule == "account"
    office.newest = None
    with pytest.raises(UnknownError, match="epoch"):
        await office.desk.collect_permit(asked())


async def test_budgets_are_known_to_the_coordinator_too(office: Office) -> None:
    leaf = LeafValues(account_id(1), HERE, EPOCH, 0, 0, 0, 0, 0, 800 * USD, CUT_TIME, CUT_TIME + 300, 0)
    await office.attestors[0].grants.note(EPOCH, CUT_TIME + 300, [leaf])
    office.askers[:] = [Lying(AssertionError("asked"))]
    with pytest.raises(RefusedError, match="budgets"):
        await office.desk.collect_permit(asked(400 * DOLLAR))


class Slow:
    """An attestor that has not answered yet."""

    name = "slow"

    def __init__(self) -> None:
        self.answer, self.asked = asyncio.Event(), asyncio.Event()

    async def ask(self, kind: str, document: Mapping[str, Any]) -> Attestation:
        self.asked.set()
        await self.answer.wait()
        raise RefusedError("status", "no")


async def test_no_epoch_waits_for_an_attestor_and_every_epoch_lists_what_is_being_asked_for(office: Office) -> None:
    slow = Slow()
    office.askers[:] = [slow]
    collecting = asyncio.create_task(office.desk.collect_permit(asked()))
    await slow.asked.wait()
    assert not office.turn.locked()
    assert await office.desk.outstanding() == (asked(),)
    # Another one of the account waits for nobody either: it is told to come back.
    with pytest.raises(ConflictError, match="being asked for one of this account"):
        await office.desk.collect_permit(asked(1, nonce=2))
    # A round that has listed it lasts until it is over: it is not taken out meanwhile.
    await office.turn.acquire()
    slow.answer.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert await office.desk.outstanding() == (asked(),)
    office.turn.release()
    with pytest.raises(RefusedError, match="status: no"):
        await collecting
    assert await office.desk.outstanding() == ()


async def test_a_permit_is_not_noted_while_a_round_goes_on(office: Office) -> None:
    await office.turn.acquire()
    collecting = asyncio.create_task(office.desk.collect_permit(asked()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert await office.desk.outstanding() == ()
    office.turn.release()
    assert (await collecting).attestations


async def test_few_permits_of_an_account_may_be_open(office: Office) -> None:
    for nonce in (1, 2, 3):
        await office.desk.collect_permit(asked(1, nonce=nonce, expiry=NOW + 100 * nonce))
    fourth = asked(1, nonce=4, expiry=NOW + 2_000)
    with pytest.raises(ConflictError, match="3 of the account may still be used") as refused:
        await office.desk.collect_permit(fourth)
    assert f"expires at {NOW + 100}" in refused.value.remedy
    # One of the three again is an answer, not another one.
    assert (await office.desk.collect_permit(asked(1, nonce=2, expiry=NOW + 200))).attestations
    office.clock.time = NOW + 101
    assert (await office.desk.collect_permit(fourth)).attestations


async def test_few_accounts_are_served_at_a_time(office: Office) -> None:
    slow = Slow()
    office.askers[:] = [slow]
    rows = [FUNDS._replace(account=account_id(n)) for n in range(1, MOST_ASKED + 2)]
    newest = newest_of(*rows)
    accounts = tuple(replace(a, controller=CONTROLLER) for a in newest.epoch.snapshot.accounts)
    snapshot = replace(newest.epoch.snapshot, accounts=accounts)
    office.newest = Newest(replace(newest.epoch, snapshot=snapshot), ())
    office.desk._store = _Several(accounts)  # type: ignore[assignment]
    wanted = [asked(1, account=account.id) for account in accounts]
    collecting = [asyncio.create_task(office.desk.collect_permit(permit)) for permit in wanted[:-1]]
    await slow.asked.wait()
    with pytest.raises(ConflictError, match=f"{MOST_ASKED} are being asked for"):
        await office.desk.collect_permit(wanted[-1])
    slow.answer.set()
    answers = await asyncio.gather(*collecting, return_exceptions=True)
    assert {type(answer).__mro__[1] for answer in answers} == {RefusedError}
    with pytest.raises(RefusedError, match="status: no"):
        await office.desk.collect_permit(wanted[-1])


class _Several:
    def __init__(self, accounts: tuple[Account, ...]) -> None:
        self._accounts = {account.id: account for account in accounts}

    async def account(self, reference: str) -> Account:
        return self._accounts[reference]


async def test_another_spelling_of_a_request_is_the_same_one(office: Office) -> None:
    signed = await office.desk.collect_permit(asked())
    office.askers.clear()
    assert await office.desk.collect_permit(asked()._replace(request="0x" + asked().request[2:].upper())) == signed


async def test_bad_answers_cost_nobody_but_their_sender(office: Office) -> None:
    other = await office.attestors[3].ask("permit", asked(7, nonce=9)._asdict())
    taken = await office.attestors[1].ask("permit", asked()._asdict())
    for answer, problem in (
        (other, "bad signature"),  # of another permit
        (Attestation(2, taken.r, taken.vs), "bad signature"),
        (Attestation(9, taken.r, taken.vs), "index 9"),
        (Unreachable("liar", "cannot be reached"), "cannot be reached"),
    ):
        office.askers[:] = [*office.attestors[:2], Lying(answer)]
        with pytest.raises(RefusedError, match=rf"2 of 3 signatures; liar: .*{problem}"):
            await office.desk.collect_permit(asked())
        # One attestor under two names is one signature.
        office.askers[:] = [*office.attestors[:2], office.attestors[1], Lying(answer)]
        with pytest.raises(RefusedError, match="2 of 3"):
            await office.desk.collect_permit(asked())
    office.askers[:] = [*office.attestors[:3], Lying(other)]
    require_quorum(digest_of(asked()), (await office.desk.collect_permit(asked())).attestations)


@pytest.mark.parametrize(
    ("field", "permit"),
    [
        ("request", asked()._replace(to=VAULT)),
        ("expiry", asked(expiry=NOW + 3601)),
        ("expiry", asked(expiry=NOW)),
        ("vault", asked(vault=TO)),
        ("nonce", asked()._replace(nonce="0x12")),
        ("asset", asked()._replace(asset=ETH)),
    ],
)
async def test_nobody_is_asked_about_what_cannot_be(office: Office, field: str, permit: PermitRecord) -> None:
    office.askers[:] = [Lying(AssertionError("asked"))]
    with pytest.raises(InputError) as refused:
        await office.desk.collect_permit(permit)
    assert refused.value.field == field
    assert await office.desk.outstanding() == ()


async def test_one_nonce_is_one_permit(office: Office) -> None:
    await office.desk.collect_permit(asked(100))
    with pytest.raises(RefusedError, match="nonce"):
        await office.desk.collect_permit(asked(101))


async def test_a_message_fills_in_what_is_left_out(office: Office) -> None:
    made = await office.desk.message(account_id(1), USDC, 5, TO)
    permit = made.permit
    assert (permit.vault, permit.epoch, permit.expiry, permit.chain) == (VAULT, EPOCH, NOW + 3600, EVM)
    assert made.signer == CONTROLLER
    assert made.digest.startswith("0x")
    other = await office.desk.message(account_id(1), USDC, 5, TO)
    assert other.permit.nonce != permit.nonce
    again = await office.desk.message(account_id(1), USDC, 5, TO, VAULT, permit.nonce, EPOCH, NOW + 3600)
    assert again == made
    for field, asset, amount, to in (("asset", ETH, 5, TO), ("amount", USDC, 0, TO), ("to", USDC, 5, "0x1")):
        with pytest.raises(InputError) as refused:
            await office.desk.message(account_id(1), asset, amount, to)
        assert refused.value.field == field
    with pytest.raises(InputError) as refused:
        await office.desk.message(account_id(1), SUSDC, 5, TO)  # no vault is known there
    assert refused.value.field == "vault"
    assert SOLANA in str(refused.value)


async def test_a_hold_is_collected_like_a_permit(office: Office) -> None:
    hold = HoldRecord(account_id(1), EVM, VAULT, UNTIL, EPOCH)
    with pytest.raises(RefusedError, match="healthy"):
        await collect_hold(office.askers, DEPLOYMENT, GROUP, hold)
    for attestor in office.attestors:
        attestor.newest = newest_of(FUNDS, debt(1, USDC, 2_000.0))
    office.attestors[0].silent = office.attestors[1].silent = True
    with pytest.raises(RefusedError, match="2 of 3 signatures"):
        await collect_hold(office.askers, DEPLOYMENT, GROUP, hold)
    # Asked again, later: those that signed sign the same, and it becomes whole.
    office.attestors[0].silent = False
    office.clock.time += 100
    signed = await collect_hold(office.askers, DEPLOYMENT, GROUP, hold)
    words = Hold(bytes.fromhex(account_id(1)[2:]), chain_word(EVM), bytes(12) + bytes.fromhex(VAULT[2:]), UNTIL, EPOCH)
    assert (signed.hold, signed.digest) == (hold, hold_digest(words, DEPLOYMENT))
    require_quorum(signed.digest, signed.attestations)
    with pytest.raises(RefusedError, match="vault"):
        await collect_hold(office.askers, DEPLOYMENT, GROUP, hold._replace(vault="0x12"))


async def test_before_the_first_epoch_there_is_nothing_to_ask_for(office: Office) -> None:
    async def none() -> int | None:
        return None

    office.desk._newest = none
    with pytest.raises(UnknownError, match="epoch"):
        await office.desk.message(account_id(1), USDC, 5, TO)
    with pytest.raises(UnknownError, match="epoch"):
        await office.desk.collect_permit(asked())


async def test_two_permits_of_disjoint_askers_cannot_both_pass(office: Office) -> None:
    """Any two quorums share an attestor, and it has both on its record."""
    wanted = [asked(500 * DOLLAR, nonce=nonce) for nonce in (1, 2)]
    desks = []
    for left_out in (0, 3):
        askers = [a for i, a in enumerate(office.attestors) if i != left_out]
        desk = PermitDesk(
            *(DEPLOYMENT, office.desk._store, office.book, askers, lambda epoch: GROUP, office.desk._newest),
            *(office.desk._seen, office.attestors[0].grants, {EVM: {VAULT}}, BOUNDS, SLACK, office.clock),
        )
        desks.append(desk)
    answers = await asyncio.gather(
        *(desk.collect_permit(permit) for desk, permit in zip(desks, wanted, strict=True)), return_exceptions=True
    )
    assert sum(isinstance(answer, SignedPermit) for answer in answers) <= 1
    assert any(isinstance(answer, RefusedError) for answer in answers)


# ---- the book ----


async def test_the_book_survives_and_refuses_another_permit_of_a_nonce(tmp_path: Path) -> None:
    book = SqlitePermitBook(tmp_path / "book.sqlite")
    first, second = asked(2**100, nonce=2), asked(5, nonce=1, expiry=NOW + 10)
    attestation = Attestation(3, b"\x01" * 32, b"\x02" * 32)
    await book.note(first)
    await book.note(second, (attestation,))
    await book.note(second)  # a repeat without signatures does not lose them
    with pytest.raises(RefusedError) as refused:
        await book.note(first._replace(amount=6))
    assert refused.value.rule == "nonce"
    await book.close()
    book = SqlitePermitBook(tmp_path / "book.sqlite")
    assert await book.since(0) == (SignedPermit(second, (attestation,)), SignedPermit(first))
    other = first._replace(account=account_id(2))  # has nonces of its own
    await book.note(other)
    assert await book.since(0, account_id(2)) == (SignedPermit(other),)
    await book.drop(other)
    assert await book.since(NOW + 11) == (SignedPermit(first),)
    assert await book.since(0, account_id(2)) == ()
    await book.drop(second)  # somebody signed it
    await book.drop(first)
    assert await book.since(0) == (SignedPermit(second, (attestation,)),)
    await book.forget(NOW + 11)
    assert await book.since(0) == ()
    await book.close()
