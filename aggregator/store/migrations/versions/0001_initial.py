"""Create every table of version 0.1."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", sa.String(length=66), nullable=False),
        sa.Column("salt", sa.String(length=66), nullable=False),
        sa.Column("controller", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("home", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("label", name=op.f("uq_account_label")),
    )
    op.create_table(
        "epoch",
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("certified", sa.Boolean(), nullable=False),
        sa.Column("cut_time", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.String(), nullable=False),
        sa.Column("floor", sa.BigInteger(), nullable=False),
        sa.Column("set_id", sa.BigInteger(), nullable=False),
        sa.Column("produced_at", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("cut_digest", sa.String(), nullable=False),
        sa.Column("price_digest", sa.String(), nullable=False),
        sa.Column("policy_digest", sa.String(), nullable=False),
        sa.Column("risk_digest", sa.String(), nullable=False),
        sa.Column("state_digest", sa.String(), nullable=False),
        sa.Column("accounts_root", sa.String(), nullable=False),
        sa.Column("leaf_count", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("attestations", sa.Text(), nullable=False),
        sa.Column("refusals", sa.Text(), nullable=False),
        sa.Column("chains", sa.Text(), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", name=op.f("pk_epoch")),
    )
    with op.batch_alter_table("epoch") as batch_op:
        batch_op.create_index(batch_op.f("ix_epoch_certified_epoch"), ["certified", "epoch"], unique=False)

    op.create_table(
        "posting",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("transaction", sa.String(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("epoch", "destination", name=op.f("pk_posting")),
    )
    with op.batch_alter_table("posting") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_posting_destination_state_epoch"), ["destination", "state", "epoch"], unique=False
        )

    op.create_table(
        "preimage",
        sa.Column("digest", sa.String(length=66), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_preimage")),
    )
    op.create_table(
        "reading",
        sa.Column("reader", sa.String(), nullable=False),
        sa.Column("chain", sa.String(), nullable=False),
        sa.Column("height", sa.BigInteger(), nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("reader", "chain", name=op.f("pk_reading")),
    )
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

    op.create_table(
        "epoch_preimage",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(length=66), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["preimage.digest"], name=op.f("fk_epoch_preimage_digest")),
        sa.ForeignKeyConstraint(["epoch"], ["epoch.epoch"], name=op.f("fk_epoch_preimage_epoch")),
        sa.PrimaryKeyConstraint("epoch", "name", name=op.f("pk_epoch_preimage")),
    )
    with op.batch_alter_table("epoch_preimage") as batch_op:
        batch_op.create_index(batch_op.f("ix_epoch_preimage_digest"), ["digest"], unique=False)

    op.create_table(
        "leaves",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["epoch"], ["epoch.epoch"], name=op.f("fk_leaves_epoch")),
        sa.PrimaryKeyConstraint("epoch", name=op.f("pk_leaves")),
    )
    op.create_table(
        "link",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.String(length=66), nullable=False),
        sa.Column("controller", sa.String(), nullable=False),
        sa.Column("member", sa.String(), nullable=False),
        sa.Column("nonce", sa.String(length=78), nullable=False),
        sa.Column("expiry", sa.String(length=78), nullable=False),
        sa.Column("invite_signature", sa.String(), nullable=False),
        sa.Column("accept_signature", sa.String(), nullable=False),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_link_account")),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_link")),
        sa.UniqueConstraint("account", "member", "nonce", name=op.f("uq_link_account_member_nonce")),
    )
    op.create_table(
        "margin",
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("account", sa.String(length=66), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["epoch"], ["epoch.epoch"], name=op.f("fk_margin_epoch")),
        sa.PrimaryKeyConstraint("epoch", "account", name=op.f("pk_margin")),
    )


def downgrade() -> None:
    op.drop_table("margin")
    op.drop_table("link")
    op.drop_table("leaves")
    with op.batch_alter_table("epoch_preimage") as batch_op:
        batch_op.drop_index(batch_op.f("ix_epoch_preimage_digest"))

    op.drop_table("epoch_preimage")
    with op.batch_alter_table("backing") as batch_op:
        batch_op.drop_index(batch_op.f("ix_backing_account"))

    op.drop_table("backing")
    op.drop_table("reading")
    op.drop_table("preimage")
    with op.batch_alter_table("posting") as batch_op:
        batch_op.drop_index(batch_op.f("ix_posting_destination_state_epoch"))

    op.drop_table("posting")
    with op.batch_alter_table("epoch") as batch_op:
        batch_op.drop_index(batch_op.f("ix_epoch_certified_epoch"))

    op.drop_table("epoch")
    op.drop_table("account")
