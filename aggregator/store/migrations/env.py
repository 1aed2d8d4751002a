"""Alembic's entry point: migrate the connection it is handed, or open one (``-x url=...``) for a developer.

The URL may name an asynchronous driver or a synchronous one.
"""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from aggregator.store.tables import Table


def migrate(connection: Connection) -> None:
    """Run the migrations that Alembic was asked for on ``connection``."""
    # SQLite cannot alter most of a table in place: batch mode copies it. Elsewhere batch mode alters as usual.
    context.configure(
        connection=connection, target_metadata=Table.metadata, render_as_batch=True, compare_server_default=True
    )
    with context.begin_transaction():
        context.run_migrations()


async def migrate_async(url: str) -> None:
    """Open ``url`` with its asynchronous driver and migrate it."""
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


def main() -> None:
    """Migrate what we were given."""
    if (connection := context.config.attributes.get("connection")) is not None:
        migrate(connection)
        return
    url = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
    if not url:
        raise SystemExit("name the database, for example -x url=sqlite:///dev.db")
    if make_url(url).get_dialect().is_async:
        asyncio.run(migrate_async(url))
        return
    engine = create_engine(url)
    with engine.begin() as opened:
        migrate(opened)
    engine.dispose()


main()
