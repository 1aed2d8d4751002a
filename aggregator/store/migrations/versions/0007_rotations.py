"""Sets of attestors after the genesis set.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the history of rotations."""
    op.create_table(
        "rotation",
        sa.Column("set_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("activation_epoch", sa.BigInteger(), nullable=False),
        sa.Column("not_after", sa.BigInteger(), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("members", sa.Text(), nullable=False),
        sa.Column("signatures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("set_id", name=op.f("pk_rotation")),
    )


def downgrade() -> None:
    """Forget the rotations."""
    op.drop_table("rotation")
