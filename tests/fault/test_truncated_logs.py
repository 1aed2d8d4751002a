"""Logs that are left out, by providers of a real chain and over its websocket: faults.md A11."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from pydantic import SecretStr

from adapters.evm.reader import EvmReader
from adapters.evm.watch import EvmWatcher
from adapters.quorum import QuorumReader
from adapters.rpc import EvmEndpoint
from adapters.ws import WsEndpoint
from aggregator.domain.rows import FinalityRow
from aggregator.domain.snapshot import Account
from aggregator.service.collect import Collected, Observer, Rereading
from infra.devnet.anvil import Anvil
from infra.devnet.providers.proxy import FaultProxy
from tests.chain.evm_venues import CHAIN, NAME, WETH, Venues, chain_row, deploy_venues, genesis_of

pytestmark = pytest.mark.chain
ROUND = 4  # epochs in which everybody is read anew
LONG = 3_600  # seconds of an epoch: nobody is read for being old, only for being named, or in turn
OTHERS = tuple("0x" + f"{i:02x}" * 32 for i in range(1, 9))


@pytest.fixture
def venues() -> Iterator[Venues]:
    with Anvil() as anvil:
        yield deploy_venues(anvil)


class Carrying:
    """An observer that reads only who changed, and everybody in turn; through three providers and a websocket."""

    def __init__(self, venues: Venues, proxies: list[FaultProxy]) -> None:
        row = chain_row(
            "",
            genesis=genesis_of(venues.anvil),
            rpc=[p.url for p in proxies],
            quorum=2,
            timeout=5.0,
            finality=FinalityRow(depth=1),
            irreversible=FinalityRow(depth=1),
        )
        adapters = list(venues.adapters().values())
        readers = [EvmReader(row, EvmEndpoint(row, url), adapters, []) for url in row.rpc]
        self.reader = QuorumReader(row, readers, [f"{NAME}[{i}]" for i in range(3)], 2, lambda _: None)
        # The websocket of a provider that leaves logs out: what it conceals, the others tell.
        watched = [venues.names["weth"], venues.names["collateral_vault"]]
        watcher = EvmWatcher(row, WsEndpoint(row, [SecretStr(proxies[0].ws_url)]), watched)
        self.observer = Observer(
            "coordinator", {CHAIN: self.reader}, watchers={CHAIN: watcher}, rereading=Rereading(ROUND, LONG)
        )
        self.venues, self.proxies, self.epoch = venues, proxies, 0
        ids = (venues.account, *OTHERS)
        self.accounts = tuple(Account(a, f"{CHAIN}:{venues.address}", "risk-bearing", CHAIN) for a in sorted(ids))

    async def look(self) -> Collected:
        """Collect the next epoch at a new block."""
        self.epoch += 1
        self.venues.anvil.mine(2)
        now = int(self.venues.anvil.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        return await self.observer.collect(self.epoch, now, self.accounts)

    def held(self, seen: Collected) -> int:
        """Return the WETH in the vault, as it was seen."""
        reading = seen.readings[CHAIN]
        assert reading is not None, seen.causes
        weth = self.venues.asset("weth")
        return sum(p.amount for p in reading.positions if (p.venue, p.asset) == ("vault", weth))

    def carried(self, seen: Collected) -> bool:
        """Return whether the depositor was not read anew."""
        return any(self.venues.account in group.accounts for group in seen.cut.carried)

    async def until_carried(self) -> int:
        """Look until the depositor was carried and is not due next; return what is held."""
        while not self.carried(await self.look()):
            pass
        while self.carried(seen := await self.look()):
            pass
        return self.held(seen)  # just read in its turn: it has a whole round to wait

    def deposit(self) -> None:
        """Deposit one WETH."""
        vault, token, user = self.venues["collateral_vault"], self.venues["weth"], self.venues.user
        for call in (
            token.functions.mint(user, WETH),
            token.functions.approve(vault.address, WETH),
            vault.functions.deposit(bytes.fromhex(self.venues.account[2:]), token.address, WETH),
        ):
            self.venues.w3.eth.wait_for_transaction_receipt(call.transact({"from": user}))


@pytest.fixture
async def carrying(venues: Venues) -> AsyncIterator[Carrying]:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(venues.anvil.url)) for _ in range(3)]
        made = Carrying(venues, proxies)
        stack.push_async_callback(made.observer.close)
        await made.observer.start()
        venues.anvil.mine(2)
        yield made


async def test_who_is_not_named_is_carried(carrying: Carrying) -> None:
    """Else the tests below would show nothing: without logs about it, an account waits for its turn."""
    held = await carrying.until_carried()
    for _ in range(ROUND - 1):
        seen = await carrying.look()
        assert carrying.carried(seen)
        assert carrying.held(seen) == held


@pytest.mark.parametrize("liars", [(0,), (0, 1)], ids=["one leaves logs out", "only one is honest"])
async def test_logs_that_some_leave_out_cost_nothing(carrying: Carrying, liars: tuple[int, ...]) -> None:
    """A11: the honest provider's logs name the account, so it is read anew at once."""
    for i in liars:
        await carrying.proxies[i].turn("truncated-logs")
    before = await carrying.until_carried()
    carrying.deposit()
    seen = await carrying.look()
    assert not carrying.carried(seen)
    assert carrying.held(seen) == before + WETH


async def test_logs_that_all_leave_out_cost_freshness_and_no_more(carrying: Carrying) -> None:
    """A11: nobody names the account, and the rolling sample finds the change within a round."""
    for proxy in carrying.proxies:
        await proxy.turn("truncated-logs")
    before = await carrying.until_carried()
    carrying.deposit()
    found = list[int]()
    for _ in range(ROUND):
        seen = await carrying.look()
        found.append(carrying.held(seen))
        if carrying.carried(seen):
            (group,) = (g for g in seen.cut.carried if carrying.venues.account in g.accounts)
            assert group.block.height < seen.cut.blocks[0].height, "the Cut says how old it is"
            assert found[-1] == before
    assert found[0] == before, "the fault did its work: the change was not seen at once"
    assert found[-1] == before + WETH
