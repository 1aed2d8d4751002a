"""Readings are kept per block, so that an epoch writes only what it read anew.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the height part of the key. Kept readings are only a memory of the last epochs: they are read again."""
    op.drop_table("reading")
    op.create_table(
        "reading",
        sa.Column("reader", sa.String(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("height", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("reader", "chain", "height", name=op.f("pk_reading")),
    )


def downgrade() -> None:
    """Return to one reading per chain."""
    op.drop_table("reading")
    op.create_table(
        "reading",
        sa.Column("reader", sa.String(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("reader", "chain", name=op.f("pk_reading")),
    )
