"""Links end: entries of the log have a kind, and the log alone says who backs which account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("link") as batch_op:
        batch_op.add_column(sa.Column("kind", sa.String(), nullable=False, server_default="link"))
        batch_op.drop_constraint(batch_op.f("uq_link_account_member_nonce"), type_="unique")
        batch_op.create_unique_constraint(
            batch_op.f("uq_link_account_member_kind_nonce"), ["account", "member", "kind", "nonce"]
        )
        batch_op.create_index(batch_op.f("ix_link_account"), ["account"], unique=False)
        batch_op.create_index(batch_op.f("ix_link_member"), ["member"], unique=False)
    with op.batch_alter_table("backing") as batch_op:
        batch_op.drop_index(batch_op.f("ix_backing_account"))
    op.drop_table("backing")


def downgrade() -> None:
    op.create_table(
        "backing",
        sa.Column("member", sa.String(), nullable=False),
        sa.Column("account", sa.String(length=66), nullable=False),
        sa.Column("nonce", sa.String(length=78), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_backing_account")),
        sa.PrimaryKeyConstraint("member", name=op.f("pk_backing")),
    )
    with op.batch_alter_table("backing") as batch_op:
        batch_op.create_index(batch_op.f("ix_backing_account"), ["account"], unique=False)
    # The version before knows no entries but links: addresses that were revoked back their accounts again.
    op.execute("DELETE FROM link WHERE kind <> 'link'")
    op.execute("INSERT INTO backing SELECT member, MIN(account), MAX(nonce) FROM link GROUP BY member")
    with op.batch_alter_table("link") as batch_op:
        batch_op.drop_index(batch_op.f("ix_link_member"))
        batch_op.drop_index(batch_op.f("ix_link_account"))
        batch_op.drop_constraint(batch_op.f("uq_link_account_member_kind_nonce"), type_="unique")
        batch_op.create_unique_constraint(batch_op.f("uq_link_account_member_nonce"), ["account", "member", "nonce"])
        batch_op.drop_column("kind")
