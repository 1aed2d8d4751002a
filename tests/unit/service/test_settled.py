"""What changes for everybody at a venue, and is logged for nobody, is read at once: expiries, settlements, funding."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aggregator.domain.snapshot import Account, Contract, Position
from tests.unit.service.test_cycle import margin_of
from tests.worlds.documents import ALPHA, EPOCH_SECONDS, USDC, WETH
from tests.worlds.world import DOLLAR, ETHER, FIRST_EPOCH, SimulatedWorld, vault

ROUND = 6  # epochs in which everybody is read anew
VENUE = "0x" + "e7" * 20


@pytest.fixture
async def carrying(tmp_path: Path) -> AsyncIterator[SimulatedWorld]:
    async with SimulatedWorld(tmp_path, {"service": {"reread_epochs": ROUND, "full_read_below": 0}}) as world:
        yield world


async def deafened(world: SimulatedWorld, **terms: object) -> tuple[Account, int]:
    """Let ada be in a contract, no log reach anybody, and her turn in the round be over; return her, and the epoch.

    An option expires in the epoch after.
    """
    ada = (await world.populate())["ada"]
    number = FIRST_EPOCH + 2
    while number % ROUND != int(ada.id[2:10], 16) % ROUND:
        number += 1
    if "strike" in terms:
        terms["expiry"] = (number + 1) * EPOCH_SECONDS - 1
    contract = Contract(underlying="ETH/USD", **terms)  # type: ignore[arg-type]
    world.chains[ALPHA].put(vault(ada.id, WETH, 10 * ETHER), in_it(ada.id, contract))
    await world.epoch(number - 2)
    record = await world.epoch(number)
    assert [c.position.contract for c in margin_of(record, ada).components if c.position.contract.kind] == [contract]
    for reader in world.everyone(ALPHA):
        reader.deaf = True
    return ada, number


def in_it(account: str, contract: Contract) -> Position:
    listed = f"{ALPHA}/contract:{VENUE}/7"
    return Position(
        account, ALPHA, "margin-venue", listed, 3 * ETHER, USDC, 0, side="debt", origin=VENUE, contract=contract
    )


def paid(account: str) -> Position:
    """Return what a short option cost its writer once it is settled."""
    return Position(account, ALPHA, "margin-venue", USDC, 900 * DOLLAR, USDC, 900 * DOLLAR, side="debt", origin=VENUE)


async def owed_after(world: SimulatedWorld, ada: Account, last: int, epochs: int) -> list[int]:
    """Return by epoch what ada owes her venue in dollars, 0 while she is in the contract yet."""
    owed = []
    for number in range(last + 1, last + 1 + epochs):
        record = await world.epoch(number)
        rows = [c.position for c in margin_of(record, ada).components if c.position.venue == "margin-venue"]
        owed.append(sum(p.amount for p in rows) // DOLLAR)
    return owed


async def test_who_has_an_option_that_expired_is_read_anew_though_nothing_was_logged(carrying: SimulatedWorld) -> None:
    ada, last = await deafened(carrying, kind="call", strike=2_000 * 10**8)
    carrying.chains[ALPHA].put(vault(ada.id, WETH, 10 * ETHER), paid(ada.id))
    assert await owed_after(carrying, ada, last, 3) == [0, 900, 900], "the first epoch's block may be before the expiry"


async def test_a_log_that_names_nobody_has_everybody_there_read_anew(carrying: SimulatedWorld) -> None:
    ada, last = await deafened(carrying, kind="perp", entry=2_000 * 10**8)
    carrying.chains[ALPHA].put(vault(ada.id, WETH, 10 * ETHER), paid(ada.id))
    assert await owed_after(carrying, ada, last, 2) == [0, 0], "nobody says anything"
    for reader in carrying.everyone(ALPHA):
        reader.told = frozenset((VENUE,))
    assert await owed_after(carrying, ada, last + 2, 2) == [900, 900]
