"""Shares in the links log: nonces of their own per account, and a database of the version before."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

import aggregator.store
from aggregator.domain.budgets import NO_LEVELS, Share
from aggregator.domain.certificate import LinkRecord
from aggregator.domain.errors import ConflictError
from aggregator.store import SqlStore
from tests.api.synthetic_epochs import CHAIN_A, CUT_TIME, make_account

ALICE, BOB = make_account("alice"), make_account("bob")


def shares(account: str, nonce: int, what: str = f"{CHAIN_A}=5000") -> LinkRecord:
    return LinkRecord(-1, account, ALICE.controller, "", nonce, 2**64 - 1, "0xaa", "", CUT_TIME, "shares", what)


async def test_the_newest_shares_count_and_nonces_rise_within_an_account(tmp_path: Path) -> None:
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'store.db'}")
    await store.add_account(ALICE, bytes(32))
    await store.add_account(BOB, b"\x01" * 32)
    await store.append_link(shares(ALICE.id, 7))
    await store.append_link(shares(BOB.id, 1))
    second = await store.append_link(shares(ALICE.id, 8, f"{CHAIN_A}=1"))
    assert second.position == 3
    for used in (0, 7, 8):
        with pytest.raises(ConflictError, match="sign with nonce 9"):
            await store.append_link(shares(ALICE.id, used))
    assert (await store.account(ALICE.id)).shares == (Share(CHAIN_A, 1),)
    state = await store.state()
    assert {a.id: a.shares for a in state.accounts} == {
        ALICE.id: (Share(CHAIN_A, 1),),
        BOB.id: (Share(CHAIN_A, 5_000),),
    }
    assert state.levels == NO_LEVELS
    assert await store.preimage("state") == ""
    await store.close()


async def test_a_log_without_shares_goes_on_and_back(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    config = Config()
    config.set_main_option("script_location", str(Path(aggregator.store.__file__).with_name("migrations")))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0005")
        connection.execute(text("INSERT INTO account VALUES ('0x01', '0x02', 'c', 'risk-bearing', 'h', NULL)"))
        connection.execute(text("INSERT INTO link VALUES (1, '0x01', 'c', 'm', '1', '9', 'i', 'a', 5, 'link')"))
        command.upgrade(config, "0006")
        assert connection.execute(text("SELECT shares FROM link")).all() == [("",)]
        connection.execute(text("INSERT INTO link VALUES (2, '0x01', 'c', '', '1', '9', 'i', '', 5, 'shares', 's')"))
        command.downgrade(config, "0005")
        assert connection.execute(text("SELECT position, kind FROM link")).all() == [(1, "link")]
    engine.dispose()
