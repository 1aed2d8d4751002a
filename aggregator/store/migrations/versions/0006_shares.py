"""The log also says how accounts are shared out among destinations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("link") as batch_op:
        batch_op.add_column(sa.Column("shares", sa.Text(), nullable=False, server_default=sa.text("''")))


def downgrade() -> None:
    # The version before knows no shares: budgets are all at home again.
    op.execute("DELETE FROM link WHERE kind = 'shares'")
    with op.batch_alter_table("link") as batch_op:
        batch_op.drop_column("shares")
