"""Measured legs of latency."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "latency",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("leg", sa.String(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("measured_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latency")),
    )
    with op.batch_alter_table("latency") as batch_op:
        batch_op.create_index(batch_op.f("ix_latency_measured_at"), ["measured_at"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_latency_chain_leg_measured_at"), ["chain", "leg", "measured_at"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("latency") as batch_op:
        batch_op.drop_index(batch_op.f("ix_latency_chain_leg_measured_at"))
        batch_op.drop_index(batch_op.f("ix_latency_measured_at"))

    op.drop_table("latency")
