"""The same store on a real PostgreSQL, for nothing in it may depend on SQLite. Skips where there is no server."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from aggregator.domain.certificate import LinkRecord
from aggregator.domain.errors import ConflictError
from aggregator.store import SqlStore
from aggregator.store.tables import Table
from tests.api.synthetic_epochs import CHAIN_A, account_id, fill, make_reading, make_records

pytest.importorskip("psycopg", reason="NO POSTGRESQL: install the extra [postgres] to check the store on it")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server of our own that listens on a socket in a directory of its own."""
    initdb, pg_ctl = shutil.which("initdb"), shutil.which("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("NO POSTGRESQL: put initdb and pg_ctl on the PATH to check the store on it")
    user = None
    home = tmp_path_factory.mktemp("pg")
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("NO POSTGRESQL: running as root without a user postgres")
        shutil.chown(home, user)
        for parent in home.parents:
            if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)  # pytest's directories are closed to others
    data = str(home / "data")

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=home)

    run(initdb, "-D", data, "-A", "trust", "-U", "postgres")
    # An empty listen_addresses opens no TCP port; the server's own output must not hold our pipe open.
    run(pg_ctl, "-D", data, "-o", f"-k {home} -c listen_addresses=''", "-l", str(home / "log"), "-w", "start")
    yield f"postgresql://postgres@/postgres?host={home}"
    run(pg_ctl, "-D", data, "-m", "immediate", "stop")


async def test_the_store_keeps_its_word_on_postgresql(url: str) -> None:
    one, other = await asyncio.gather(SqlStore.open(url), SqlStore.open(url))
    await fill(one)
    for number, record in make_records().items():
        assert await other.epoch(number, certified=False) == record
    async with one._engine.connect() as connection:
        drift = await connection.run_sync(lambda c: compare_metadata(MigrationContext.configure(c), Table.metadata))
    assert drift == []
    assert (await other.account(account_id("alice")[:12])).label == "alice"
    await one.save_readings("coordinator", [make_reading(CHAIN_A, 2)])
    assert await other.readings("coordinator") == {CHAIN_A: (make_reading(CHAIN_A, 2),)}
    assert {chain: posting.epoch for chain, posting in (await other.latest_postings()).items()} == {CHAIN_A: 1}

    # Without a lock on the whole database races are real: constraints and a second look decide them.
    member = f"{CHAIN_A}:0x{'77' * 20}"
    outcomes = await asyncio.gather(
        *(
            store.append_link(LinkRecord(0, account_id(name), "c", member, nonce, 2**64 - 1, "x", "y", 1))
            for nonce in range(1, 4)
            for store, name in ((one, "alice"), (other, "bob"))
        ),
        return_exceptions=True,
    )
    assert {type(outcome) for outcome in outcomes} == {LinkRecord, ConflictError}
    logged = await one.links()
    assert [link.position for link in logged] == list(range(1, len(logged) + 1))
    assert len({link.account for link in logged if link.member == member}) == 1

    assert await one.prune(keep_epochs=1) == 1
    assert await other.margin(account_id("alice"), 1) is None
    assert await other.margin(account_id("alice"), 2) is not None  # the newest certified
    assert (await other.certificate()) == make_records()[2].certificate
    assert (await other.state()).links == logged
    assert len(await other.epochs()) == 3
    await one.close()
    await other.close()
