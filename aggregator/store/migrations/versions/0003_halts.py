"""Chains halted by a reorganisation below their finality, and resumed by hand."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "halt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("party", sa.String(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("halted_at", sa.BigInteger(), nullable=False),
        sa.Column("resumed_at", sa.BigInteger(), nullable=True),
        sa.Column("resumed_by", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_halt")),
    )
    stands = sa.text("resumed_at IS NULL")
    op.create_index(
        "uq_halt_standing", "halt", ["party", "chain"], unique=True, sqlite_where=stands, postgresql_where=stands
    )


def downgrade() -> None:
    op.drop_index("uq_halt_standing", "halt")
    op.drop_table("halt")
