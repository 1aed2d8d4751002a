"""The rules by which one attestor signs permits and holds: every refusal, and what it never forgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey
from solders.keypair import Keypair

from aggregator.domain.budgets import Drawn, PermitRecord
from aggregator.domain.certificate import Attestation, State
from aggregator.domain.errors import RefusedError
from aggregator.domain.report import LeafValues
from aggregator.domain.snapshot import DEBT_UNREADABLE, Finding, Position
from aggregator.domain.units import USD
from aggregator.service.committed import Committed, listed_permits
from aggregator.service.permits import Newest, Vantage, hold_until, read_permit, to_list, verify_permits
from aggregator.service.workbench import Computed
from proofs.hashing import keccak256
from proofs.permits import Hold, PermitTerms, chain_word, hold_digest, permit_digest, request_text
from proofs.sets import AttestorSet
from proofs.signing import recover
from tests.strategies import CUT_TIME, ETH, EVM, SOLANA, USDC, account_id, debt, position, quotes, view, world
from tests.unit.service.permit_world import (
    BOUNDS,
    CONTROLLER,
    DEPLOYMENT,
    DOLLAR,
    EPOCH,
    EPOCH_SECONDS,
    FUNDS,
    GROUP,
    NOW,
    SIGNERS,
    SLACK,
    TO,
    UNTIL,
    VAULT,
    Attesting,
    asked,
    newest_of,
)

HERE = "0x" + keccak256(EVM.encode()).hex()


@pytest.fixture
async def attestor(tmp_path: Path) -> AsyncIterator[Attesting]:
    made = Attesting(tmp_path / "one", newest=newest_of(FUNDS, debt(1, USDC, 100.0)))
    yield made
    await made.close()


def words(permit: PermitRecord) -> PermitTerms:
    account, nonce = (bytes.fromhex(text[2:]) for text in (permit.account, permit.nonce))
    return PermitTerms(
        *(account, permit.chain, permit.vault, permit.asset, permit.amount, permit.to, nonce),
        *(permit.epoch, permit.expiry),
    )


def document(permit: PermitRecord) -> dict[str, Any]:
    return permit._asdict() | {"amount": str(permit.amount)}


async def refused(attestor: Attesting, permit: PermitRecord | dict[str, Any], rule: str) -> str:
    before = await attestor.permits.outstanding()
    with pytest.raises(RefusedError) as caught:
        await attestor.permits.sign(permit if isinstance(permit, dict) else document(permit))
    assert caught.value.rule == rule
    assert await attestor.permits.outstanding() == before
    return caught.value.reason


def signer_of(signature: Attestation, digest: bytes) -> str:
    return "0x" + recover(digest, signature.r, signature.vs).hex()


def registry(posted: int = EPOCH) -> Position:
    """Return what a registry says of an account that has drawn nothing."""
    asset = f"{EVM}/usd"
    row = Position(account_id(1), EVM, "registry", f"{EVM}/registry:x", 0, asset, 0, "debt")
    return row._replace(drawn=Drawn(posted, 1))


def with_budget(budget: int, epoch: int = EPOCH) -> LeafValues:
    return LeafValues(account_id(1), HERE, epoch, 0, 0, 0, 0, 0, budget, CUT_TIME, CUT_TIME + 300, 0)


async def test_a_permit_that_leaves_enough_is_signed_and_remembered(attestor: Attesting) -> None:
    permit = asked()
    signature = await attestor.permits.sign(document(permit))
    assert signature.index == 0
    assert signer_of(signature, permit_digest(words(permit).permit, DEPLOYMENT)) == SIGNERS[0].address
    assert await attestor.permits.outstanding() == (permit,)
    assert await attestor.permits.sign(document(permit)) == signature  # a repeat


async def test_all_outstanding_permits_count_together_also_after_a_restart(attestor: Attesting) -> None:
    for nonce in (1, 2):
        await attestor.permits.sign(document(asked(350 * DOLLAR, nonce=nonce)))
    await attestor.close()
    attestor.open()
    reason = await refused(attestor, asked(350 * DOLLAR, nonce=3), "free_collateral")
    assert account_id(1) in reason
    # Those that the newest epoch's state lists are pending in its positions already, and are not taken off twice.
    listed = await attestor.permits.outstanding()
    rows = FUNDS._replace(pending=700 * DOLLAR), debt(1, USDC, 100.0)
    attestor.newest = newest_of(*rows, permits=listed)
    await attestor.permits.sign(document(asked(100 * DOLLAR, nonce=4)))
    await refused(attestor, asked(100 * DOLLAR, nonce=5), "free_collateral")


async def test_two_at_once_do_not_pass_each_other(attestor: Attesting) -> None:
    wanted = [asked(500 * DOLLAR, nonce=nonce) for nonce in (1, 2)]
    answers = await asyncio.gather(*(attestor.permits.sign(document(p)) for p in wanted), return_exceptions=True)
    assert sorted(type(answer) for answer in answers if isinstance(answer, RefusedError)) == [RefusedError]
    assert len(await attestor.permits.outstanding()) == 1


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("amount", {"amount": 0}),
        ("amount", {"amount": "1e6"}),
        ("amount", {"amount": 1.0}),
        ("amount", {"amount": True}),
        ("amount", {"amount": "1" * 40}),
        ("vault", {"vault": VAULT.upper()}),
        ("asset", {"asset": ETH}),
        ("asset", {"asset": f"eip155:1/erc20:{VAULT}"}),
        ("to", {"to": "0x12"}),
        ("nonce", {"nonce": "0x12"}),
        ("nonce", {"nonce": "0x" + "AB" * 32}),
        ("account", {"account": "alice"}),
        ("epoch", {"epoch": None}),
        ("expiry", {"expiry": -1}),
        ("request", {"request": 7}),
        ("document", {"extra": 7}),
    ],
)
async def test_malformed_terms_are_refused_by_name(attestor: Attesting, field: str, changes: dict[str, Any]) -> None:
    await refused(attestor, document(asked()) | changes, field)


async def test_a_missing_field_is_refused_by_name(attestor: Attesting) -> None:
    for name in PermitRecord._fields:
        without = document(asked())
        del without[name]
        await refused(attestor, without, name)


async def test_a_document_reads_back_as_the_permit(attestor: Attesting) -> None:
    permit = asked(2**100)
    assert read_permit(document(permit)) == read_permit(permit._asdict()) == permit


async def test_only_configured_vaults(attestor: Attesting) -> None:
    other = "0x" + "a2" * 20
    reason = await refused(attestor, asked(vault=other), "vault")
    assert other in reason
    assert VAULT in reason


@pytest.mark.parametrize("epoch", [EPOCH - 3, EPOCH + 1])
async def test_an_epoch_that_is_not_the_newest_is_refused(attestor: Attesting, epoch: int) -> None:
    reason = await refused(attestor, asked(epoch=epoch), "epoch")
    assert f"{epoch} given, the newest certified is {EPOCH}" in reason


async def test_an_epoch_just_before_the_newest_is_taken(attestor: Attesting) -> None:
    await attestor.permits.sign(document(asked(epoch=EPOCH - 2)))


async def test_before_the_first_epoch_nothing_is_signed(attestor: Attesting) -> None:
    attestor.newest = None
    await refused(attestor, asked(), "epoch")


async def test_who_has_no_seat_in_the_epochs_set_does_not_sign(attestor: Attesting) -> None:
    others = AttestorSet(1, GROUP.members[1:], 3, 0, GROUP.not_after)
    attestor.permits._ground = replace(attestor.ground, group=lambda epoch: others)
    reason = await refused(attestor, asked(), "member")
    assert SIGNERS[0].address in reason


async def test_an_account_that_the_epoch_does_not_hold_is_refused(attestor: Attesting) -> None:
    await refused(attestor, asked(account=account_id(9)), "account")


async def test_only_the_controller_can_ask(attestor: Attesting) -> None:
    await refused(attestor, asked(key=PrivateKey(b"\x09" * 32)), "request")
    await refused(attestor, asked()._replace(to=VAULT), "request")
    await refused(attestor, asked()._replace(request="0x12"), "request")
    await refused(attestor, asked()._replace(request="eip1271:0x12"), "request")


async def test_a_controller_on_solana_asks_with_a_text(attestor: Attesting) -> None:
    wallet = Keypair.from_seed(b"\x08" * 32)
    attestor.newest = newest_of(FUNDS, controller=f"{SOLANA}:{wallet.pubkey()}")
    permit = asked()
    signature = wallet.sign_message(request_text(words(permit), DEPLOYMENT))
    await attestor.permits.sign(document(permit._replace(request=str(signature))))
    await refused(attestor, permit, "request")
    await refused(attestor, asked(nonce=2)._replace(request=str(signature)), "request")


@pytest.mark.parametrize("expiry", [NOW, NOW - 1, NOW + 3601])
async def test_a_permit_lives_from_now_to_the_lifetime(attestor: Attesting, expiry: int) -> None:
    reason = await refused(attestor, asked(expiry=expiry), "expiry")
    assert str(expiry) in reason
    assert str(NOW + 3600) in reason


async def test_what_does_not_lie_in_the_vault_is_refused(attestor: Attesting) -> None:
    reason = await refused(attestor, asked(1_001 * DOLLAR), "amount")
    assert f"{1_001 * DOLLAR} given, {1_000 * DOLLAR} lie" in reason
    # The same token somewhere else is not in the vault.
    elsewhere = FUNDS._replace(quantity=1, amount=1), FUNDS._replace(origin="0x" + "a2" * 20)
    attestor.newest = newest_of(*elsewhere)
    await refused(attestor, asked(2), "amount")


async def test_free_collateral_must_not_fall_below_zero(attestor: Attesting) -> None:
    await refused(attestor, asked(1_000 * DOLLAR), "free_collateral")
    attestor.newest = newest_of(FUNDS, debt(1, USDC, 100.0), position(1, ETH, 5.0))
    await attestor.permits.sign(document(asked(1_000 * DOLLAR)))


async def test_an_account_that_is_unknown_lets_nothing_go(attestor: Attesting) -> None:
    finding = Finding(DEBT_UNREADABLE, account_id(1), "it may owe any amount")
    attestor.newest = newest_of(FUNDS, findings=(finding,))
    await refused(attestor, asked(1), "status")


async def test_what_may_still_be_drawn_stays_covered(attestor: Attesting) -> None:
    attestor.newest = newest_of(FUNDS)
    await attestor.grants.note(EPOCH, CUT_TIME + 300, [with_budget(500 * USD)])
    reason = await refused(attestor, asked(600 * DOLLAR), "budgets")
    assert "500" in reason
    await attestor.permits.sign(document(asked(300 * DOLLAR, nonce=2)))

    # A statement that was signed for an epoch not certified yet counts as well.
    await attestor.grants.note(EPOCH + 1, CUT_TIME + 302, [with_budget(690 * USD, EPOCH + 1)])
    await refused(attestor, asked(50 * DOLLAR, nonce=3), "budgets")
    # A registry that holds a newer epoch than the larger budget's frees what that gave.
    attestor.newest = newest_of(FUNDS, registry(EPOCH + 2))
    await attestor.permits.sign(document(asked(600 * DOLLAR, nonce=4)))


async def test_what_counts_nothing_any_more_stays_while_an_old_budget_rests_on_it(attestor: Attesting) -> None:
    """A request makes collateral count 0 at once; the budget that was given on it may be drawn until it ends."""
    attestor.newest = newest_of(FUNDS._replace(pending=FUNDS.amount), registry(posted=EPOCH - 1))
    await attestor.grants.note(EPOCH - 1, CUT_TIME + 300, [with_budget(950 * USD, EPOCH - 1)])
    reason = await refused(attestor, asked(1_000 * DOLLAR), "budgets")
    assert "950" in reason
    attestor.newest = newest_of(FUNDS._replace(pending=FUNDS.amount), registry(posted=EPOCH))
    await attestor.permits.sign(document(asked(1_000 * DOLLAR)))


async def test_a_budget_is_over_only_where_its_registry_was_read_after_it(attestor: Attesting) -> None:
    """It ran out by the clock, and what was drawn at its very end is in no block that was read."""
    ends = CUT_TIME - 30
    await attestor.grants.note(EPOCH, ends, [with_budget(950 * USD)._replace(valid_until=ends)])
    for age in (119, 30 - BOUNDS[EVM] + 1):
        attestor.newest = newest_of(FUNDS, registry(), views=(view(EVM, age), view(SOLANA)))
        await refused(attestor, asked(900 * DOLLAR), "budgets")
    attestor.newest = newest_of(FUNDS, registry(), views=(view(EVM, 30 - BOUNDS[EVM]), view(SOLANA)))
    await attestor.permits.sign(document(asked(900 * DOLLAR)))


async def test_a_registry_that_was_not_read_lately_lets_nothing_go(attestor: Attesting) -> None:
    newest = newest_of(FUNDS, registry()._replace(seen=3))
    of = view(EVM, 300, status="stale")
    assert of.block is not None
    stale = replace(of, block=of.block._replace(height=3))
    attestor.newest = Newest(replace(newest.epoch, snapshot=replace(newest.epoch.snapshot, carried=(stale,))), ())
    assert EVM in await refused(attestor, asked(1), "registry")
    fresh = replace(stale, status="ok")
    attestor.newest = Newest(replace(newest.epoch, snapshot=replace(newest.epoch.snapshot, carried=(fresh,))), ())
    await attestor.permits.sign(document(asked(1)))


async def test_an_epoch_that_has_run_out_is_no_ground(attestor: Attesting) -> None:
    attestor.clock.time = CUT_TIME + 299
    await attestor.permits.sign(document(asked(100)))
    for days in (0, 30):
        attestor.clock.time = now = CUT_TIME + 300 + days * 86_400
        reason = await refused(attestor, asked(100, nonce=2, expiry=now + 600), "epoch")
        assert f"was valid until {CUT_TIME + 300}, it is {now}" in reason
        attestor.newest = newest_of(FUNDS, debt(1, USDC, 2_000.0))
        await hold_refused(attestor, hold(), "epoch")


async def test_a_set_that_is_handing_over_lets_nothing_go(attestor: Attesting) -> None:
    """What the next set is not told of must not count any more when it takes over."""
    after = AttestorSet(2, GROUP.members, 3, EPOCH + 1, GROUP.not_after)
    seconds = (NOW + 1_000) // (EPOCH + 1)  # it takes over in about 1,000 s
    activation = (EPOCH + 1) * seconds
    attestor.permits._ground = replace(
        attestor.ground, group=lambda epoch: GROUP if epoch <= EPOCH else after, epoch_seconds=seconds
    )
    last = activation - SLACK[EVM] - 1
    reason = await refused(attestor, asked(1, nonce=2, expiry=last + 1), "set")
    assert f"demands set 1, in force at {activation} is set 2" in reason
    await attestor.permits.sign(document(asked(1, nonce=2, expiry=last)))
    attestor.clock.time = activation
    newest = newest_of(FUNDS)
    seen = replace(newest.epoch.snapshot, valid_until=activation + 300)
    attestor.newest = Newest(replace(newest.epoch, snapshot=seen), ())
    await refused(attestor, asked(1, nonce=3, expiry=activation + 5), "set")


async def test_a_permit_that_the_state_lists_already_is_not_taken_off_twice(attestor: Attesting) -> None:
    """It is listed as soon as it is asked for, which may be before this attestor is."""
    permit = asked(850 * DOLLAR)
    attestor.newest = newest_of(FUNDS._replace(pending=permit.amount), debt(1, USDC, 100.0), permits=[permit])
    await attestor.permits.sign(document(permit))


async def test_one_account_cannot_take_the_nonces_of_others(attestor: Attesting) -> None:
    other = FUNDS._replace(account=account_id(2))
    newest = newest_of(FUNDS, other)
    accounts = tuple(replace(a, controller=CONTROLLER) for a in newest.epoch.snapshot.accounts)
    attestor.newest = Newest(
        replace(newest.epoch, snapshot=replace(newest.epoch.snapshot, accounts=accounts)), newest.permits
    )
    for number in (1, 2):
        await attestor.permits.sign(document(asked(100 + number, account=account_id(number))))


@pytest.mark.parametrize("spelt", [str.upper, lambda text: text[2:], lambda text: "0X" + text[2:].upper()])
async def test_another_spelling_of_a_request_is_the_same_one(attestor: Attesting, spelt: Any) -> None:
    permit = asked()
    first = await attestor.permits.sign(document(permit))
    assert await attestor.permits.sign(document(permit._replace(request=spelt(permit.request)))) == first
    assert await attestor.permits.outstanding() == (permit,)
    await refused(attestor, asked(nonce=2)._replace(request=permit.request + " "), "request")


async def test_one_nonce_is_one_permit(attestor: Attesting) -> None:
    await attestor.permits.sign(document(asked(100)))
    reason = await refused(attestor, asked(101), "watermark")
    assert asked().nonce in reason


async def test_a_record_that_fails_leaves_no_signature(attestor: Attesting, monkeypatch: pytest.MonkeyPatch) -> None:
    signed: list[bytes] = []
    monkeypatch.setattr(
        attestor.permits, "_ground", replace(attestor.ground, signer=_Counting(signed)), raising=True
    )  # fmt: skip

    async def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(attestor.book, "note", broken)
    with pytest.raises(OSError, match="disk full"):
        await attestor.permits.sign(document(asked()))
    assert signed == []


class _Counting:
    address = SIGNERS[0].address

    def __init__(self, signed: list[bytes]) -> None:
        self._signed = signed

    def sign(self, digest: bytes) -> tuple[bytes, bytes]:
        self._signed.append(digest)
        return SIGNERS[0].sign(digest)


async def test_a_permit_is_outstanding_until_its_use_must_have_been_seen(attestor: Attesting) -> None:
    permit = asked(expiry=NOW + 100)
    await attestor.permits.sign(document(permit))
    bound = SLACK[EVM]
    assert await attestor.permits.outstanding(NOW + 100 + bound) == (permit,)
    assert await attestor.permits.outstanding(NOW + 101 + bound) == ()


async def test_the_next_permit_counts_one_whose_use_its_epoch_does_not_show(attestor: Attesting) -> None:
    await attestor.permits.sign(document(asked(800 * DOLLAR, expiry=NOW + 20)))
    attestor.clock.time = CUT_TIME + 290  # past its end, and past the slack after the clock's NOW
    assert await attestor.permits.outstanding() == ()
    await refused(attestor, asked(800 * DOLLAR, nonce=2, expiry=CUT_TIME + 900), "free_collateral")


# ---- holds ----


def hold(until: int = UNTIL, **changes: Any) -> dict[str, Any]:
    return {"account": account_id(1), "chain": EVM, "vault": VAULT, "until": until, "epoch": EPOCH} | changes


async def hold_refused(attestor: Attesting, wanted: dict[str, Any], rule: str) -> str:
    with pytest.raises(RefusedError) as caught:
        await attestor.holds.sign(wanted)
    assert caught.value.rule == rule
    return caught.value.reason


@pytest.mark.parametrize("owed", [960.0, 1_200.0])  # unhealthy or worse
async def test_an_account_in_trouble_is_held(attestor: Attesting, owed: float) -> None:
    attestor.newest = newest_of(FUNDS, debt(1, USDC, owed))
    signature = await attestor.holds.sign(hold())
    words = Hold(bytes.fromhex(account_id(1)[2:]), chain_word(EVM), bytes(12) + bytes.fromhex(VAULT[2:]), UNTIL, EPOCH)
    assert signer_of(signature, hold_digest(words, DEPLOYMENT)) == SIGNERS[0].address
    attestor.clock.time += 200  # whoever asks later, asks for the same
    assert await attestor.holds.sign(hold()) == signature
    before = hold_until(EPOCH - 1, EPOCH_SECONDS)
    attestor.holds._ground = replace(attestor.ground, group=lambda epoch: GROUP)
    await attestor.holds.sign(hold(before, epoch=EPOCH - 1))


async def test_a_healthy_account_is_not_held(attestor: Attesting) -> None:
    reason = await hold_refused(attestor, hold(), "status")
    assert "healthy" in reason


async def test_an_unknown_account_is_held_only_while_somebody_may_lose(attestor: Attesting) -> None:
    finding = Finding(DEBT_UNREADABLE, account_id(1), "it may owe any amount")
    attestor.newest = newest_of(FUNDS, findings=(finding,))
    assert "unknown" in await hold_refused(attestor, hold(), "status")
    await attestor.grants.note(EPOCH, CUT_TIME + 300, [with_budget(1)])
    await attestor.holds.sign(hold())
    attestor.newest = newest_of(FUNDS, debt(1, USDC, 1.0), findings=(finding,))
    await attestor.holds.sign(hold(hold_until(EPOCH - 1, EPOCH_SECONDS), epoch=EPOCH - 1))


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("until", {"until": UNTIL - 1}),
        ("until", {"until": UNTIL + 1}),
        ("until", {"until": 2**64}),
        ("until", {"until": "soon"}),
        ("epoch", {"epoch": EPOCH + 1}),
        ("epoch", {"epoch": EPOCH - 3}),
        ("vault", {"vault": TO}),
        ("vault", {"chain": SOLANA}),
        ("account", {"account": account_id(9)}),
        ("account", {"account": "0x12"}),
        ("document", {"amount": 7}),
    ],
)
async def test_every_other_hold_is_refused(attestor: Attesting, rule: str, changes: dict[str, Any]) -> None:
    attestor.newest = newest_of(FUNDS, debt(1, USDC, 2_000.0))
    await hold_refused(attestor, hold(**changes), rule)


async def test_a_permit_and_a_hold_of_one_key_do_not_collide(attestor: Attesting) -> None:
    await attestor.permits.sign(document(asked()))
    attestor.newest = newest_of(FUNDS, debt(1, USDC, 2_000.0))
    await attestor.holds.sign(hold())


# ---- what a proposed state lists ----


async def test_a_state_that_lists_what_controllers_asked_for_is_taken(attestor: Attesting) -> None:
    own, others = asked(100), asked(200, nonce=2)
    accounts = attestor.newest.epoch.snapshot.accounts if attestor.newest else ()
    verify_permits([own, others], [own], [others], accounts, CUT_TIME, attestor.ground)
    verify_permits([], [], [], accounts, CUT_TIME, attestor.ground)
    gone = asked(1, nonce=3, expiry=CUT_TIME - SLACK[EVM] - 1)
    verify_permits([], [], [gone], accounts, CUT_TIME, attestor.ground)


async def test_a_permit_of_the_last_state_cannot_be_left_out_while_it_counts(attestor: Attesting) -> None:
    """Whoever proposes, and whoever attests, after a rotation: the state before says what is out."""
    listed = asked(100, expiry=CUT_TIME - SLACK[EVM])
    accounts = attestor.newest.epoch.snapshot.accounts if attestor.newest else ()
    with pytest.raises(RefusedError, match="not listed any more") as caught:
        verify_permits([], [], [listed], accounts, CUT_TIME, attestor.ground)
    assert caught.value.rule == "permits"
    text, _ = Committed().text(State((), (), {}, permits=(listed, asked(2**100, nonce=2))), None)
    assert listed_permits(text) == (listed, asked(2**100, nonce=2))
    assert listed_permits("") == ()
    later = asked(5, nonce=9)
    assert to_list([later], listed_permits(text), CUT_TIME, SLACK) == tuple(sorted((*listed_permits(text), later)))
    assert to_list([], [listed], CUT_TIME + 1, SLACK) == ()


@pytest.mark.parametrize(
    ("listed", "own", "reason"),
    [
        ([], [asked(100)], "was signed and may be used"),
        ([asked(200)], [asked(100)], "was signed and may be used"),
        ([asked(100, nonce=2), asked(100)], [], "ascend"),
        ([asked(100), asked(100)], [], "ascend"),
        ([asked(100)._replace(amount=99)], [], "request"),
        ([asked(100, key=PrivateKey(b"\x09" * 32))], [], "request"),
        ([asked(100, account=account_id(9))], [], "no account"),
        ([asked(100, vault=TO)], [], "vault"),
        ([asked(100, expiry=CUT_TIME - SLACK[EVM] - 1)], [], "expired"),
        ([asked(100)._replace(nonce="0x12")], [], "nonce"),
    ],
)
async def test_a_state_that_lists_anything_else_is_refused(
    attestor: Attesting, listed: list[PermitRecord], own: list[PermitRecord], reason: str
) -> None:
    accounts = attestor.newest.epoch.snapshot.accounts if attestor.newest else ()
    with pytest.raises(RefusedError, match=reason) as caught:
        verify_permits(listed, own, [], accounts, CUT_TIME, attestor.ground)
    assert caught.value.rule == "permits"


# ---- the epoch that they stand on ----


async def test_an_epoch_counts_once_it_is_certified(tmp_path: Path) -> None:
    vantage = Vantage(world())
    attestor = Attesting(tmp_path / "one")
    attestor.permits._ground = replace(attestor.ground, newest=vantage.newest)
    await refused(attestor, asked(), "epoch")

    def attest(number: int, digest: bytes, permits: tuple[PermitRecord, ...] = ()) -> None:
        epoch = newest_of(FUNDS).epoch
        seen = replace(epoch.snapshot, epoch=number)
        computed = Computed(seen, epoch.report, (), None, {}, {})  # type: ignore[arg-type]
        vantage.attested(digest, computed, quotes(), (), State(seen.accounts, (), {}, permits=permits))

    attest(EPOCH, b"a", (asked(5),))
    await refused(attestor, asked(), "epoch")
    vantage.certified(b"unknown")
    assert vantage.newest() is None
    vantage.certified(b"a")
    assert vantage.newest() is not None
    assert vantage.newest().permits == (asked(5),)  # type: ignore[union-attr]
    await attestor.permits.sign(document(asked(nonce=2)))

    # Of two statements proposed for one epoch, the certified one is it; an older one changes nothing afterwards.
    attest(EPOCH + 2, b"b")
    attest(EPOCH + 2, b"c", (asked(6),))
    attest(EPOCH + 1, b"d")
    vantage.certified(b"c")
    vantage.certified(b"d")
    vantage.certified(b"b")
    found = vantage.newest()
    assert found is not None
    assert (found.epoch.snapshot.epoch, found.permits) == (EPOCH + 2, (asked(6),))
    await attestor.close()
