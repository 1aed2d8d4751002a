"""Bad providers between us and real chains: what each fault (faults.md, A rows) may change, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from solders.keypair import Keypair

from adapters.evm.reader import EvmReader
from adapters.keys import show_key
from adapters.quorum import Dispute, Disputed, NoQuorum, QuorumReader
from adapters.rpc import OPENS_AFTER, EvmEndpoint, SolanaEndpoint
from adapters.solana.native import NativeWallet
from adapters.solana.reader import SolanaReader
from adapters.solana.spl_token import SplTokenWallet
from aggregator.bootstrap import build_reader, dispute_log, key_path, list_disputes
from aggregator.config import Settings, parse_settings
from aggregator.domain.errors import SourceError, WrongChain
from aggregator.domain.rows import AssetRow, ChainRow, LatencyLeg
from aggregator.domain.snapshot import DEBT_UNREADABLE, INFORMATIONAL, Reading, Subject
from infra.devnet.anvil import Anvil
from infra.devnet.providers.proxy import GARBAGE, FaultProxy, Mode
from infra.devnet.svm.process import SvmServer
from infra.devnet.svm_deploy import SolanaUser, act, steer
from tests.chain.evm_venues import CHAIN, NAME, TRADES, Venues, chain_row, deploy_venues, genesis_of, make_reader
from tests.worlds import documents

pytestmark = pytest.mark.chain
TIMEOUT = 3.0
FAR = 2**40  # a cut time after everything

FAILS: dict[Mode, str] = {
    "dead": "cannot be reached|not asked for",
    "slow": "no answer in the time there was",
    "stale": r"stale",
    "wrong-chain": "answers for chain id 31338, configured is 31337",
    "garbage": "is not JSON-RPC",
    "gzip-bomb": "larger than",
    "slow-loris": "no answer in the time there was",
    "429": "HTTP status 429|not asked for",
    "500": "HTTP status 500|not asked for",
}
"""Modes in which a provider fails at the pin, and the cause that must be given."""


SIZES = {size for _, size in TRADES}
MOST = 16  # positions that the example venue allows an account
SIZE_LIES: dict[str, Callable[[int], int]] = {
    "doubled": lambda amount: amount * 2 if amount in SIZES else amount,
    "turned round": lambda amount: -amount if amount in SIZES else amount,
}
"""What a provider may say of perps and options, and be right in all else."""


def about_tokens(lie: Callable[[int], int]) -> Callable[[int], int]:
    """Return a lie that spares perps and options: their sizes, and how many the venue allows."""
    return lambda amount: amount if amount in {*SIZES, MOST} else lie(amount)


@dataclass
class Providers:
    """Three providers, which are one node behind three proxies, read as a quorum of two."""

    proxies: list[FaultProxy]
    reader: QuorumReader
    disputes: list[Dispute]
    subjects: list[Subject]
    honest: Callable[[], Any]

    async def observe(self) -> Reading:
        pinned = await self.reader.pin(FAR)
        reading, quotes = await asyncio.gather(self.reader.read(pinned, self.subjects), self.reader.read_quotes(pinned))
        return replace(reading, quotes=quotes)

    async def turn(self, *modes: Mode) -> None:
        for proxy, mode in zip(self.proxies, modes, strict=True):
            await proxy.turn(mode)


@pytest.fixture(scope="module")
def venues() -> Iterator[Venues]:
    with Anvil() as anvil:
        yield deploy_venues(anvil, trading=True)


@pytest.fixture(scope="module")
def stranger() -> Iterator[Anvil]:
    with Anvil(chain_id=31338) as anvil:
        yield anvil


@asynccontextmanager
async def evm(venues: Venues, stranger: Anvil, clock: Callable[[], float] | None = None) -> AsyncIterator[Providers]:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(venues.anvil.url, stranger.url)) for _ in range(3)]
        urls = [f"{p.url}/?key=secret-key" for p in proxies]
        row = chain_row("", genesis=genesis_of(venues.anvil), timeout=TIMEOUT, rpc=urls, quorum=2)
        adapters, feeds, disputes = list(venues.adapters().values()), venues.feeds(), list[Dispute]()
        more = {"clock": clock} if clock else {}
        readers = [EvmReader(row, EvmEndpoint(row, url, **more), adapters, feeds) for url in row.rpc]
        reader = QuorumReader(row, readers, [f"{NAME}[{i}]" for i in range(3)], 2, disputes.append)
        stack.push_async_callback(reader.close)
        subjects = [Subject(venues.account, None), Subject(venues.account, venues.address)]

        async def honest() -> Reading:
            direct = make_reader(venues.anvil, adapters, feeds)
            pinned = await direct.pin(FAR)
            reading = await direct.read(pinned, subjects)
            quotes = await direct.read_quotes(pinned)
            await direct.close()
            return replace(reading, quotes=quotes)

        yield Providers(proxies, reader, disputes, subjects, honest)


@pytest.fixture
async def providers(venues: Venues, stranger: Anvil) -> AsyncIterator[Providers]:
    async with evm(venues, stranger) as made:
        yield made


def advance(venues: Venues, blocks: int = 1, seconds: int = 60) -> None:
    """Make the chain go on: enough time for a provider that stays behind to be stale."""
    venues.anvil.rpc("evm_increaseTime", seconds)
    venues.anvil.mine(blocks)


def verify_never_better(reading: Reading, honest: Reading) -> None:
    """No asset above the honest one, no debt below it, nothing missing without a word on its account.

    A contract is as it is or not there: what is missing may be a debt or a hedge, and its account must be so marked.
    """
    marked = {f.scope for f in reading.findings if f.code not in INFORMATIONAL}
    blind = {f.scope for f in reading.findings if f.code == DEBT_UNREADABLE}
    true = {(p.account, p.venue, p.asset, p.side, p.address): p for p in honest.positions}
    seen = {(p.account, p.venue, p.asset, p.side, p.address): p for p in reading.positions}
    for key, p in seen.items():
        assert p == true.get(key) or (p.side == "debt" and not p.contract.kind and p.account in marked)
        assert p.side == "asset" or p.amount >= (true[key].amount if key in true else 0)
    for key, p in true.items():
        may_be_missing = p.account in blind if p.contract.kind else p.side == "asset" and p.account in marked
        assert key in seen or may_be_missing
    assert set(reading.quotes) <= set(honest.quotes)


def verify_secret_free(*texts: str) -> None:
    for text in texts:
        assert "secret-key" not in text
        assert "127.0.0.1" not in text


async def test_the_honest_world_has_something_to_lose(providers: Providers) -> None:
    """Without this the cases below could hold for want of anything to change."""
    honest = await providers.honest()
    assert {p.side for p in honest.positions} == {"asset", "debt"}
    assert {p.venue for p in honest.positions} == {"wallet", "vault", "lender", "aave-v3", "margin-venue"}
    assert {(p.contract.kind, p.side) for p in honest.positions if p.contract.kind} == {
        ("perp", "debt"), ("inverse", "asset"), ("call", "asset"), ("call", "debt"), ("put", "asset"), ("put", "debt"),
    }  # fmt: skip
    assert len(honest.quotes) == 3
    assert await providers.observe() == honest
    assert providers.disputes == []
    assert providers.reader.failed == {}


# One bad provider of three changes nothing (A3, A5, A7, A8, A9, A10, A14)


@pytest.mark.parametrize("mode", FAILS)
@pytest.mark.parametrize("who", [0, 2])
async def test_one_failing_provider_changes_nothing_and_is_named(
    providers: Providers, venues: Venues, mode: Mode, who: int
) -> None:
    await providers.proxies[who].turn(mode)
    advance(venues)
    assert await providers.observe() == await providers.honest()
    (name,) = providers.reader.failed
    assert name == f"{NAME}[{who}]"
    assert any(part in providers.reader.failed[name] for part in FAILS[mode].split("|"))
    assert providers.disputes == []


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_never_yields_a_position(providers: Providers, what: str) -> None:
    honest = await providers.honest()
    for proxy in providers.proxies:
        proxy.garbage = GARBAGE[what]
    await providers.turn("pass", "garbage", "pass")
    assert await providers.observe() == honest
    await providers.turn("garbage", "garbage", "pass")
    with pytest.raises(SourceError) as caught:
        await providers.observe()
    assert f"{NAME}[0]: " in str(caught.value)
    assert f"{NAME}[1]: " in str(caught.value)
    verify_secret_free(str(caught.value))


async def test_one_liar_of_three_changes_nothing_but_a_record(providers: Providers) -> None:
    honest = await providers.honest()
    await providers.turn("pass", "pass", "lying")
    assert await providers.observe() == honest
    (dispute,) = [d for d in providers.disputes if d.about.startswith("position")]
    assert (dispute.provider, dispute.others, dispute.agreed) == (f"{NAME}[2]", (f"{NAME}[0]", f"{NAME}[1]"), True)
    assert dispute.block == honest.block.hash
    assert dispute.value != dispute.expected


async def test_a_provider_from_the_future_is_outvoted(providers: Providers, venues: Venues) -> None:
    honest = await providers.honest()
    await providers.turn("future", "pass", "pass")
    assert (await providers.reader.pin(honest.block.time + 1)) == honest.block
    assert f"{NAME}[0]" in providers.reader.failed
    assert {d.provider for d in providers.disputes} <= {f"{NAME}[0]"}


# Two bad ones: an error or a zero that says so, never another number (A4)


@pytest.mark.parametrize("mode", FAILS)
async def test_two_failing_providers_are_an_error_that_names_both(
    providers: Providers, venues: Venues, mode: Mode
) -> None:
    await providers.turn(mode, "pass", "dead")
    advance(venues)
    with pytest.raises(NoQuorum) as caught:
        await providers.observe()
    problem = str(caught.value)
    assert problem.startswith(f"{NAME}: fewer than 2 of 3 providers ")
    said = {i: problem.partition(f"{NAME}[{i}]: ")[2].partition(f"; {NAME}[")[0] for i in range(3)}
    assert any(part in said[0] for part in FAILS[mode].split("|"))
    assert "cannot be reached" in said[2]
    assert caught.value.retryable
    verify_secret_free(problem)


@pytest.mark.parametrize("lie", [0, 10])
@pytest.mark.parametrize("others", [("pass", "dead"), ("dead", "pass"), ("pass", "lying")])
async def test_a_liar_among_too_few_yields_disputed_zeros(
    providers: Providers, lie: int, others: tuple[Mode, Mode]
) -> None:
    honest = await providers.honest()
    providers.proxies[0].lie = about_tokens(lambda amount: amount * lie)
    providers.proxies[2].lie = about_tokens(lambda amount: amount * 3 + 1)
    await providers.turn("lying", *others)
    reading = await providers.observe()
    verify_never_better(reading, honest)
    assert reading.block == honest.block
    (finding,) = [f for f in reading.findings if f.code == "disputed"]
    assert finding.scope == providers.subjects[0].account
    assert f"{NAME}[0] says" in finding.detail
    assert "2 of 3 providers" in finding.detail
    wallet = [p for p in reading.positions if p.venue == "wallet"]
    assert wallet == []  # each of them is in dispute, so that none counts
    debts = {(p.venue, p.asset): p.amount for p in reading.positions if p.side == "debt"}
    owed = [p for p in honest.positions if p.side == "debt" and not p.contract.kind]
    assert all(debts[p.venue, p.asset] >= p.amount for p in owed)
    assert {d.agreed for d in providers.disputes} == {False}


@pytest.mark.parametrize("how", SIZE_LIES)
async def test_a_liar_about_contracts_changes_nothing_but_a_record(providers: Providers, how: str) -> None:
    honest = await providers.honest()
    providers.proxies[1].lie = SIZE_LIES[how]
    await providers.turn("pass", "lying", "pass")
    assert await providers.observe() == honest
    (dispute,) = providers.disputes
    assert (dispute.provider, dispute.agreed) == (f"{NAME}[1]", True)
    assert "/contract:" in dispute.about
    assert dispute.field == ("quantity" if how == "doubled" else "presence")


@pytest.mark.parametrize("how", SIZE_LIES)
@pytest.mark.parametrize("others", [("pass", "dead"), ("dead", "pass")])
async def test_contracts_in_dispute_are_none_and_their_account_opens_no_risk(
    providers: Providers, how: str, others: tuple[Mode, Mode]
) -> None:
    honest = await providers.honest()
    providers.proxies[0].lie = SIZE_LIES[how]
    await providers.turn("lying", *others)
    reading = await providers.observe()
    verify_never_better(reading, honest)
    assert list(reading.positions) == sorted(p for p in honest.positions if not p.contract.kind)
    account = providers.subjects[0].account
    blind = [f for f in reading.findings if f.code == DEBT_UNREADABLE]
    assert {f.scope for f in blind} == {account}
    assert len(blind) == len({f.detail for f in blind}) == len(TRADES) * (1 if how == "doubled" else 2)
    (finding,) = [f for f in reading.findings if f.code == "disputed"]
    assert finding.scope == account
    assert "the account opens no risk meanwhile" in finding.detail


async def test_only_the_liar_left_is_refused(providers: Providers) -> None:
    await providers.turn("dead", "lying", "dead")
    with pytest.raises(NoQuorum, match=r"\[0\]: cannot be reached.*\[1\]: pins block.*\[2\]: cannot be reached"):
        await providers.observe()


async def test_all_of_another_chain_halt_the_adapter(providers: Providers) -> None:
    await providers.turn("wrong-chain", "wrong-chain", "wrong-chain")
    with pytest.raises(WrongChain, match=r"\[0\]: .*31338.*\[1\]: .*31338.*\[2\]: "):
        await providers.observe()


async def test_two_histories_are_a_dispute(providers: Providers, venues: Venues) -> None:
    honest = await providers.honest()
    await providers.turn("future", "pass", "dead")
    providers.proxies[0].shift = 1
    with pytest.raises(Disputed, match=rf"\[0\]: pins block {honest.block.height}.*\[1\]: pins block"):
        await providers.reader.pin(FAR)
    (dispute,) = providers.disputes
    assert (dispute.field, dispute.agreed) == ("time", False)


async def test_time_that_runs_backwards_is_refused(providers: Providers, venues: Venues) -> None:
    await providers.observe()
    advance(venues)
    for proxy in providers.proxies:
        proxy.shift = -3_600
    await providers.turn("future", "future", "future")
    with pytest.raises(NoQuorum, match=r"\[0\]: block \d+ at \d+ contradicts block"):
        await providers.reader.pin(FAR)
    await providers.turn("pass", "pass", "future")
    assert await providers.observe() == await providers.honest()


async def test_a_height_that_is_not_the_pinned_one_is_refused(providers: Providers) -> None:
    """A6: a node that runs the call elsewhere is found out by the block number in the batch."""
    honest = await providers.honest()
    elsewhere = honest.block._replace(height=honest.block.height - 1)
    with pytest.raises(NoQuorum, match=r"\[0\]: multicall ran at another height.*\[1\]: multicall ran.*\[2\]: "):
        await providers.reader.read(elsewhere, providers.subjects)


# Coming back, and not being asked


@pytest.mark.parametrize("mode", ["dead", "stale", "wrong-chain", "lying", "500"])
async def test_a_provider_that_is_right_again_takes_part_again(
    providers: Providers, venues: Venues, mode: Mode
) -> None:
    await providers.turn("pass", mode, "pass")
    advance(venues)
    assert await providers.observe() == await providers.honest()
    await providers.turn("dead", "pass", "pass")
    providers.disputes.clear()
    deadline = asyncio.get_running_loop().time() + 30
    while True:  # its breaker may have to wait
        try:
            reading = await providers.observe()
            break
        except NoQuorum:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)
    assert reading == await providers.honest()
    assert providers.disputes == []


async def test_a_dead_provider_is_soon_not_asked_any_more(venues: Venues, stranger: Anvil) -> None:
    now = 1_000.0
    async with evm(venues, stranger, clock=lambda: now) as providers:
        await providers.turn("pass", "dead", "pass")
        for _ in range(OPENS_AFTER):
            await providers.observe()
        asked = providers.proxies[1].requests.total()
        honest = await providers.honest()
        for _ in range(5):
            assert await providers.observe() == honest
        assert providers.proxies[1].requests.total() == asked
        assert "not asked for" in providers.reader.failed[f"{NAME}[1]"]
        await providers.turn("pass", "pass", "dead")
        now += 60
        assert await providers.observe() == honest
        assert providers.proxies[1].requests.total() > asked


async def test_a_hanging_provider_is_given_up_and_then_not_asked(
    venues: Venues, stranger: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.rpc.FIRST_DELAY", 1e12)  # no trial while we look
    async with evm(venues, stranger) as providers:
        await providers.turn("slow", "pass", "pass")
        honest = await providers.honest()
        for _ in range(OPENS_AFTER):
            assert await providers.observe() == honest
        asked = providers.proxies[0].requests.total()
        for _ in range(5):
            assert await providers.observe() == honest
        assert providers.proxies[0].requests.total() == asked


async def test_a_block_by_height_needs_agreement_too(providers: Providers) -> None:
    head = (await providers.honest()).block
    await providers.turn("future", "pass", "pass")
    assert await providers.reader.block_at(head.height) == head
    assert [d.provider for d in providers.disputes] == [f"{NAME}[0]"]
    await providers.turn("future", "pass", "dead")
    with pytest.raises(Disputed, match=r"\[0\]: holds block .*\[1\]: holds block .*\[2\]: cannot be reached"):
        await providers.reader.block_at(head.height)


async def test_the_check_says_who_is_bad(providers: Providers) -> None:
    await providers.turn("pass", "500", "pass")
    findings = await providers.reader.check()
    assert {f.scope for f in findings if f.code == "failed"} == {f"{NAME}[1]"}
    (agreement,) = [f for f in findings if f.scope == f"{NAME} quorum"]
    assert agreement.code == "ok"
    assert f"{NAME}[1]" in agreement.detail
    verify_secret_free(*(f.detail for f in findings))


# As configured


def protect(settings: Settings) -> None:
    """Give the key that signs disputes its passphrase."""
    Path(settings.service.passphrase_file).write_text("for the key that signs them")


def recorded(data: str) -> list[str]:
    return Path(data, "disputes.jsonl").read_text("utf-8").splitlines()


async def test_a_configured_quorum_keeps_its_disputes(venues: Venues, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(venues.anvil.url)) for _ in range(3)]
        text = json.dumps(documents.make_document(tmp_path))
        token = documents.USDC.rpartition(":")[2]
        document = json.loads(text.replace(token, venues.names["usdc"]))
        document["chains"][0] |= {
            "rpc": [p.url for p in proxies],
            "genesis": genesis_of(venues.anvil),
            "quorum": 2,
            "timeout": TIMEOUT,
        }
        document["venues"] = [{"chain": CHAIN, "kind": "wallet"}]
        settings = parse_settings(document)
        protect(settings)
        advance(venues, 3)  # what the venues hold is final
        reader = build_reader(settings, settings.chains[0], "attestor-0")
        stack.push_async_callback(reader.close)
        await proxies[2].turn("lying")
        labels = {"chain": settings.chains[0].id, "provider": f"{settings.chains[0].name}[2]"}
        before = REGISTRY.get_sample_value("crossmargin_disputes_total", labels) or 0
        reading = await reader.read(await reader.pin(FAR), [Subject(venues.account, venues.address)])
        assert venues["usdc"].functions.balanceOf(venues.user).call() in {p.amount for p in reading.positions}
        dispute_log(settings).flush()
        (line,) = recorded(settings.service.data)
        assert json.loads(line)["record"]["provider"] == labels["provider"]
        assert json.loads(line)["record"]["party"] == "attestor-0"
        assert REGISTRY.get_sample_value("crossmargin_disputes_total", labels) == before + 1
        verify_secret_free(line)
        (entry,) = list_disputes(settings)
        assert (entry.problem, entry.signer) == ("", show_key(key_path(settings, "evidence")))


# Solana


OWNER = Keypair.from_seed(b"\x31" * 32)
SOL_AMOUNT, TOKEN_AMOUNT = 7 * 10**9, 123_456
ACCOUNT = "0x" + "5a" * 32


@pytest.fixture(scope="module")
def svm() -> Iterator[SvmServer]:
    with SvmServer(slot_ms=100, finalized_depth=4) as server:
        yield server


@pytest.fixture(scope="module")
def mint(svm: SvmServer) -> str:
    """A token of which the owner has some, in a finalized block."""
    made: list[str] = []

    async def fund(user: SolanaUser) -> None:
        await user.airdrop(SOL_AMOUNT)
        token = await user.create_mint(6)
        await user.mint_to(token, user.address, TOKEN_AMOUNT)
        made.append(str(token))

    asyncio.run(act(svm.url, OWNER, fund))
    svm.call("x_advance", 20)
    return made[0]


@pytest.fixture
async def solana(svm: SvmServer, mint: str) -> AsyncIterator[Providers]:
    with SvmServer() as other:
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(FaultProxy(svm.url, other.url)) for _ in range(3)]
            chain = f"solana:{svm.genesis[:32]}"
            row = ChainRow(
                id=chain,
                name=NAME,
                family="solana",
                rpc=tuple(p.url for p in proxies),  # type: ignore[arg-type]
                genesis=svm.genesis,
                block_seconds=0.1,
                max_age=60,
                timeout=TIMEOUT,
                hold=(LatencyLeg(typical=1),),
                requests_per_second=1_000,
                quorum=2,
            )
            assets = {
                a.id: a
                for a in (
                    AssetRow(
                        id=f"{chain}/slip44:501", symbol="SOL", kind="native", decimals=9, feed="SOL/USD", policy="x"
                    ),
                    AssetRow(
                        id=f"{chain}/token:{mint}", symbol="USDC", kind="spl", decimals=6, feed="USDC/USD", policy="x"
                    ),
                )
            }
            adapters = [NativeWallet(chain, assets), SplTokenWallet(chain, assets)]
            disputes: list[Dispute] = []
            readers = [SolanaReader(row, SolanaEndpoint(row, url), adapters) for url in row.rpc]
            reader = QuorumReader(row, readers, [f"{NAME}[{i}]" for i in range(3)], 2, disputes.append)
            stack.push_async_callback(reader.close)

            def honest() -> dict[str, int]:
                lamports = svm.call("getBalance", str(OWNER.pubkey()))["value"]
                return {f"{chain}/slip44:501": lamports, f"{chain}/token:{mint}": TOKEN_AMOUNT}

            yield Providers(proxies, reader, disputes, [Subject(ACCOUNT, str(OWNER.pubkey()))], honest)


def amounts(reading: Reading) -> dict[str, int]:
    return {p.asset: p.amount for p in reading.positions}


SOLANA_FAILS: dict[Mode, str] = {
    "dead": "cannot be reached",
    "slow": "no answer in the time there was",
    "stale": "stale",
    "wrong-chain": "the node's genesis is",
    "garbage": "cannot be decoded",
    "429": "cannot be reached",
    "gzip-bomb": "is packed, which was not asked for",
}


@pytest.mark.parametrize("mode", SOLANA_FAILS)
async def test_solana_one_failing_provider_changes_nothing(solana: Providers, svm: SvmServer, mode: Mode) -> None:
    await solana.turn("pass", mode, "pass")
    await steer(svm.url, "x_advance", 20, 30)
    reading = await solana.observe()
    assert amounts(reading) == solana.honest()
    assert reading.findings == ()
    assert list(solana.reader.failed) == [f"{NAME}[1]"]
    assert SOLANA_FAILS[mode] in solana.reader.failed[f"{NAME}[1]"]
    assert solana.disputes == []


async def test_solana_the_pin_is_what_enough_have_reached(solana: Providers, svm: SvmServer) -> None:
    await solana.proxies[0].turn("stale")
    await steer(svm.url, "x_advance", 2)
    await solana.proxies[1].turn("stale")
    await steer(svm.url, "x_advance", 2)
    behind, ahead = (proxy.remembered for proxy in solana.proxies[:2])
    assert behind < ahead < svm.call("getSlot")
    assert (await solana.reader.pin(FAR)).height == ahead  # one has passed it, one is at it, one has not come there
    await solana.proxies[2].turn("dead")
    assert (await solana.reader.pin(FAR)).height == behind


async def test_solana_one_liar_changes_nothing_but_a_record(solana: Providers) -> None:
    await solana.turn("lying", "pass", "pass")
    reading = await solana.observe()
    assert amounts(reading) == solana.honest()
    assert reading.findings == ()
    (dispute,) = solana.disputes
    assert (dispute.provider, dispute.agreed, dispute.count) == (f"{NAME}[0]", True, 2)


async def test_solana_a_liar_among_two_yields_disputed_zeros(solana: Providers) -> None:
    await solana.turn("lying", "pass", "dead")
    reading = await solana.observe()
    assert reading.positions == ()
    (finding,) = reading.findings
    assert (finding.code, finding.scope) == ("disputed", ACCOUNT)
    assert f"{NAME}[1] says" in finding.detail
    assert [d.agreed for d in solana.disputes] == [False]


async def test_solana_two_failing_providers_are_an_error_that_names_both(solana: Providers) -> None:
    await solana.turn("wrong-chain", "pass", "dead")
    with pytest.raises(
        NoQuorum, match=r"\[0\]: the node's genesis is .*\[1\]: pins block .*\[2\]: .*cannot be reached"
    ):
        await solana.observe()
