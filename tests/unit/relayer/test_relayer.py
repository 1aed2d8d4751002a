"""The relayer's workflows against a destination in memory, with the real workflow engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregator.domain.certificate import Certificate, EpochRecord, PostedRoot, Posting, PostingStatus, SignedPosting
from aggregator.domain.errors import PostingError, Unreachable
from aggregator.service.relayer import Relayer
from aggregator.service.relayer import relayer as relayer_module
from tests.unit.attest.statements import CHAIN, EPOCH_SECONDS, RealClock, make_deployment, make_record

DEPLOYMENT = make_deployment(4)


class Records:
    """The relayer's part of the store."""

    def __init__(self) -> None:
        self.records: dict[int, EpochRecord] = {}
        self.history: list[Posting] = []

    async def epoch(self, number: int | None = None, *, certified: bool = True) -> EpochRecord | None:
        return self.records.get(number if number is not None else max(self.records))

    async def certificate(self, number: int | None = None) -> Certificate | None:
        record = await self.epoch(number)
        return None if record is None else record.certificate

    async def save_posting(self, posting: Posting) -> None:
        self.history.append(posting)

    def states(self, epoch: int) -> list[str]:
        return [posting.state for posting in self.history if posting.epoch == epoch]

    def last(self, epoch: int) -> Posting:
        return [posting for posting in self.history if posting.epoch == epoch][-1]


class Ledger:
    """A destination whose mining the test controls: nonces, receipts, depth, and a mempool of one account."""

    row: Any = None

    def __init__(self, *, mining: bool = True, solana: bool = False) -> None:
        self.mining, self.solana = mining, solana
        self.nonce = 0
        self.signed: list[tuple[SignedPosting, Certificate]] = []
        self.pool: set[str] = set()
        self.mined: dict[str, str] = {}  # id -> confirmed or final
        self.expired: set[str] = set()
        self.effects: list[int] = []  # epochs, in the order they took effect
        self.latest: PostedRoot | None = None
        self.roots: dict[int, bytes] = {}
        self.submissions: list[str] = []
        self.fail_sign: list[Exception] = []
        self.fail_submit: list[Exception] = []
        self.fail_read: list[Exception] = []

    async def sign(self, certificate: Certificate) -> SignedPosting:
        if self.fail_sign:
            raise self.fail_sign.pop(0)
        if self.latest is not None and certificate.header.epoch <= self.latest.epoch:
            raise PostingError(CHAIN, "the registry refuses: epoch not above the last")
        number = len(self.signed)
        posting = SignedPosting(f"tx{number}", f"0x{number:02x}", nonce=-1 if self.solana else self.nonce)
        self.signed.append((posting, certificate))
        return posting

    async def submit(self, posting: SignedPosting) -> None:
        self.submissions.append(posting.id)
        if self.fail_submit:
            raise self.fail_submit.pop(0)
        if posting.id not in self.mined and posting.id not in self.expired:
            self.pool.add(posting.id)
        if self.mining:
            self.mine()

    def mine(self, state: str = "final") -> None:
        """Mine what is in the pool, the newest offer of a nonce first."""
        for posting, certificate in reversed(self.signed):
            if posting.id in self.pool and (self.solana or posting.nonce == self.nonce):
                self.nonce += 0 if self.solana else 1
                self.mined[posting.id] = state
                self.put(certificate)
        self.pool.clear()

    def put(self, certificate: Certificate) -> None:
        header = certificate.header
        if self.latest is None or header.epoch > self.latest.epoch:
            self.effects.append(header.epoch)
            self.roots.setdefault(header.epoch, header.root)
            self.latest = PostedRoot(header.epoch, header.root, 0, header.produced_at, header.valid_until, 0)

    async def status(self, posting: SignedPosting) -> PostingStatus:
        if posting.id in self.mined:
            return PostingStatus(self.mined[posting.id], 1, 50_000)  # type: ignore[arg-type]
        if posting.id in self.expired:
            return PostingStatus("expired")
        if not self.solana and posting.nonce < self.nonce:
            return PostingStatus("failed", detail="its nonce went to another transaction")
        return PostingStatus("pending")

    async def read_latest(self) -> PostedRoot | None:
        if self.fail_read:
            raise self.fail_read.pop(0)
        return self.latest

    async def read_root(self, epoch: int) -> bytes | None:
        return self.roots.get(epoch)

    async def verify(self, leaf: Any, proof: Any) -> bool:
        raise NotImplementedError

    async def check(self) -> Any:
        return ()

    async def close(self) -> None: ...


class World:
    """One store, one ledger, and relayers that come and go."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger, self.records = folder, ledger, Records()
        self.first = int(time.time()) // EPOCH_SECONDS
        self.relayer: Relayer | None = None

    async def start(self, **options: Any) -> None:
        options = {"poll_seconds": 0.02, "bump_seconds": 60.0} | options
        self.relayer = Relayer(
            self.records, {CHAIN: self.ledger}, RealClock(), self.folder / "relayer.sqlite3", **options
        )
        await self.relayer.start()

    async def stop(self) -> None:
        if self.relayer is not None:
            await self.relayer.stop()

    async def offer(self, number: int, **header: int) -> int:
        epoch = self.first + number
        record = make_record(DEPLOYMENT, epoch, header=header)
        self.records.records[epoch] = record
        assert self.relayer is not None
        await self.relayer.offer(record)
        return epoch

    async def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.records.history, self.ledger.submissions)
            await asyncio.sleep(0.01)

    async def reaches(self, epoch: int, state: str) -> None:
        await self.until(lambda: state in self.records.states(epoch))


@asynccontextmanager
async def world(folder: Path, ledger: Ledger | None = None, **options: Any) -> AsyncIterator[World]:
    made = World(folder, ledger or Ledger())
    await made.start(**options)
    try:
        yield made
    finally:
        await made.stop()


async def test_a_certificate_is_signed_sent_and_seen_to_be_final(tmp_path: Path) -> None:
    seen: list[Posting] = []
    async with world(tmp_path, on_posting=seen.append) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "final")
        assert w.records.states(epoch) == ["waiting", "signed", "submitted", "final"]
        assert w.records.last(epoch).transaction == "tx0"
        assert w.records.last(epoch).cost == 50_000
        assert seen == w.records.history


async def test_what_the_registry_holds_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger()
    async with world(tmp_path, ledger) as w:
        ledger.roots[w.first] = b"\x66" * 32  # a registry that keeps something else than it was sent
        epoch = await w.offer(0)
        await w.reaches(epoch, "failed")
        assert "0x" + "66" * 32 in w.records.last(epoch).detail


async def test_uncertified_and_repeated_epochs_are_not_posted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        epoch = await w.offer(1)
        await w.reaches(epoch, "final")
        assert w.relayer is not None
        await w.relayer.offer(replace(w.records.records[epoch], attestations=()))
        await w.offer(1)
        await w.offer(0)
        await w.reaches(await w.offer(2), "final")
        assert w.ledger.effects == [epoch, epoch + 1]
        assert len(w.ledger.signed) == 2


async def test_one_is_in_the_air_and_only_the_newest_follows(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "submitted")
        for number in (1, 2, 3):
            await w.offer(number)
        await asyncio.sleep(0.2)
        assert len(ledger.signed) == 1
        ledger.mining = True
        ledger.mine()
        await w.reaches(first + 3, "final")
        assert ledger.effects == [first, first + 3]
        assert len(ledger.signed) == 2


async def test_the_next_may_fly_once_the_last_is_mined_though_not_final(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "submitted")
        ledger.mine("confirmed")
        second = await w.offer(1)
        await w.reaches(second, "submitted")
        assert w.records.states(first)[-1] == "confirmed"
        ledger.mined["tx0"] = "final"
        ledger.mine("final")
        await w.reaches(first, "final")
        await w.reaches(second, "final")


async def test_a_stuck_posting_is_signed_again_on_its_nonce(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger, bump_seconds=0.1) as w:
        epoch = await w.offer(0)
        await w.until(lambda: len(ledger.signed) == 3)
        assert {posting.nonce for posting, _ in ledger.signed} == {0}
        ledger.mine()
        await w.reaches(epoch, "final")
        assert ledger.effects == [epoch]


async def test_a_stuck_posting_gives_way_to_a_newer_epoch_on_the_same_nonce(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger, bump_seconds=0.3) as w:
        first = await w.offer(0)
        await w.reaches(first, "submitted")
        second = await w.offer(1)
        await w.reaches(first, "superseded")
        await w.reaches(second, "submitted")
        assert [posting.nonce for posting, _ in ledger.signed] == [0, 0]
        ledger.mine()
        await w.reaches(second, "final")
        assert ledger.effects == [second]


async def test_an_expired_certificate_gives_way_without_waiting_for_the_bump(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0, valid_until=int(time.time()) + 2)
        await w.reaches(first, "submitted")
        second = await w.offer(1)
        await w.reaches(first, "superseded")
        ledger.mine()
        await w.reaches(second, "submitted")


async def test_an_expired_blockhash_is_signed_again(tmp_path: Path) -> None:
    ledger = Ledger(mining=False, solana=True)
    async with world(tmp_path, ledger) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "submitted")
        assert len(ledger.signed) == 1
        ledger.pool.clear()
        ledger.expired.add("tx0")
        await w.until(lambda: len(ledger.signed) == 2)
        await w.until(lambda: "tx1" in ledger.pool)
        ledger.mine()
        await w.reaches(epoch, "final")
        assert ledger.effects == [epoch]


async def test_an_expired_blockhash_gives_way_to_a_newer_epoch(tmp_path: Path) -> None:
    ledger = Ledger(mining=False, solana=True)
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "submitted")
        second = await w.offer(1)
        ledger.pool.clear()
        ledger.expired.add("tx0")
        await w.reaches(first, "superseded")
        await w.until(lambda: "tx1" in ledger.pool)
        ledger.mine()
        await w.reaches(second, "final")
        assert ledger.effects == [second]


async def test_a_displaced_nonce_is_signed_anew_unless_another_relayer_posted_the_epoch(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "submitted")
        ledger.pool.clear()
        ledger.nonce += 1  # some other transaction of the payer
        await w.until(lambda: len(ledger.signed) == 2)
        await w.until(lambda: "tx1" in ledger.pool)
        ledger.mine()
        await w.reaches(first, "final")
        second = await w.offer(1)
        await w.reaches(second, "submitted")
        ledger.pool.clear()
        ledger.nonce += 1
        ledger.put(w.records.records[second].certificate)  # type: ignore[arg-type]
        await w.reaches(second, "confirmed")
        assert "another relayer" in w.records.last(second).detail
        assert ledger.effects == [first, second]


async def test_a_reorganisation_sends_the_same_bytes_again(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "submitted")
        ledger.mine("confirmed")
        await w.reaches(epoch, "confirmed")
        ledger.mined.clear()
        ledger.nonce, ledger.latest = 0, None
        await w.until(lambda: w.records.last(epoch).detail == "a reorganisation dropped it")
        await w.until(lambda: "tx0" in ledger.pool)
        ledger.mine()
        await w.reaches(epoch, "final")
        assert len(ledger.signed) == 1


async def test_a_refusal_is_a_failure_with_its_reason_and_the_next_epoch_goes_on(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.fail_sign = [PostingError(CHAIN, "the registry refuses: wrong signer")]
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "failed")
        assert "wrong signer" in w.records.last(first).detail
        await w.reaches(await w.offer(1), "final")


async def test_an_unfunded_payer_fails_the_posting(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.fail_submit = [PostingError(CHAIN, "payer 0x07 has insufficient funds")]
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "failed")
        assert "insufficient funds" in w.records.last(first).detail
        await w.reaches(await w.offer(1), "final")


async def test_a_node_that_is_away_for_a_while_costs_nothing_but_time(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.fail_read = [Unreachable("devnet", "down")] * 2
    ledger.fail_sign = [Unreachable("devnet", "down")] * 2
    ledger.fail_submit = [Unreachable("devnet", "down")] * 2
    async with world(tmp_path, ledger) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "final")
        assert ledger.effects == [epoch]
        assert len(ledger.signed) == 1


async def test_an_underpriced_posting_is_signed_again(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.fail_submit = [PostingError(CHAIN, "replacement transaction underpriced", retryable=True)]
    async with world(tmp_path, ledger) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "final")
        assert len(ledger.signed) == 2


async def test_at_the_fee_cap_it_waits_for_what_is_out(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger, bump_seconds=0.05) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "submitted")
        ledger.fail_sign = [PostingError(CHAIN, "the cap is reached", retryable=True)] * 10_000
        await w.until(lambda: len(ledger.fail_sign) < 9_998)
        ledger.mine()
        await w.reaches(epoch, "final")
        assert ledger.effects == [epoch]


async def test_an_attempt_mined_while_the_next_is_signed_counts_as_ours(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger, bump_seconds=0.2) as w:
        epoch = await w.offer(0)
        await w.reaches(epoch, "submitted")
        sign = ledger.sign

        async def sign_too_late(certificate: Certificate) -> SignedPosting:
            ledger.mine()
            return await sign(certificate)

        ledger.sign = sign_too_late  # type: ignore[method-assign]
        await w.reaches(epoch, "final")
        assert w.records.last(epoch).transaction == "tx0"


async def test_an_epoch_that_another_relayer_posts_meanwhile_is_no_failure(tmp_path: Path) -> None:
    """Where only sending tells of the registry's refusal, as on Solana."""
    ledger = Ledger(solana=True)
    async with world(tmp_path, ledger) as w:

        async def submit_too_late(posting: SignedPosting) -> None:
            ledger.put(w.records.records[w.first].certificate)  # type: ignore[arg-type]
            raise PostingError(CHAIN, "the registry refuses: EPOCH_NOT_NEWER (20)")

        ledger.submit = submit_too_late  # type: ignore[method-assign]
        epoch = await w.offer(0)
        await w.reaches(epoch, "confirmed")
        assert "failed" not in w.records.states(epoch)
        assert "another relayer" in w.records.last(epoch).detail


@pytest.mark.parametrize("where", ["read_latest", "get_workflow_status", "start_workflow"])
async def test_no_trouble_of_any_kind_ends_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    ledger = Ledger()
    troubles: list[Exception] = [OSError("disk full"), ZeroDivisionError(), RuntimeError("the workflows' file")]
    async with world(tmp_path, ledger) as w:
        if where == "read_latest":
            ledger.fail_read = list(troubles)
        else:
            name = f"{where}_async"
            good = getattr(relayer_module.DBOS, name)

            async def fail_at_first(*args: Any, **kwargs: Any) -> Any:
                if troubles:
                    raise troubles.pop()
                return await good(*args, **kwargs)

            monkeypatch.setattr(relayer_module.DBOS, name, fail_at_first)
        epoch = await w.offer(0)
        await w.reaches(epoch, "final")
        assert w.ledger.effects == [epoch]


async def test_a_defect_fails_its_epoch_and_not_the_next(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.fail_sign = [ZeroDivisionError()]
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "failed")
        assert w.records.last(first).detail == "defect: ZeroDivisionError"
        await w.reaches(await w.offer(1), "final")


async def test_stopped_in_the_air_it_resumes_without_signing_again(tmp_path: Path) -> None:
    ledger = Ledger(mining=False)
    async with world(tmp_path, ledger) as w:
        first = await w.offer(0)
        await w.reaches(first, "submitted")
        await w.stop()
        ledger.pool.clear()  # the node forgot it, too
        await asyncio.to_thread(lambda: None)  # the loop's thread pool works after a stop
        ledger.mining = True
        await w.start()
        second = await w.offer(1)  # offered before the first is recovered: it waits its turn
        await w.reaches(first, "final")
        await w.reaches(second, "final")
        assert ledger.effects == [first, second]
        assert [posting.id for posting, _ in ledger.signed] == ["tx0", "tx1"]


async def test_a_store_in_trouble_costs_no_posting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as w:

        async def fail(_: Posting) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(w.records, "save_posting", fail)
        epoch = await w.offer(0)
        await w.until(lambda: w.ledger.effects == [epoch])


async def test_two_destinations_do_not_wait_for_each_other(tmp_path: Path) -> None:
    stuck, swift = Ledger(mining=False), Ledger()
    records = Records()
    relayer = Relayer(
        records, {"eip155:1": stuck, "eip155:10": swift}, RealClock(), tmp_path / "r.sqlite3", poll_seconds=0.02
    )
    await relayer.start()
    try:
        epoch = int(time.time()) // EPOCH_SECONDS
        for number in (epoch, epoch + 1):
            records.records[number] = make_record(DEPLOYMENT, number)
            await relayer.offer(records.records[number])
            deadline = time.monotonic() + 20
            while number not in swift.effects:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
        assert stuck.effects == []
    finally:
        await relayer.stop()
