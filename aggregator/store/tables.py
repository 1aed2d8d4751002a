"""The tables. Unsigned 256-bit integers are zero-padded text, times are Unix seconds, digests are 0x hex.

Values that are only ever read whole (a margin with its components, a reading) are one JSON text each; what is searched
for, ordered by or held unique is a column. Nothing here depends on SQLite.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from aggregator.domain.units import UINT256_MAX

_DIGITS = len(str(UINT256_MAX))


class U256(TypeDecorator[int]):
    """An integer in [0, 2**256) as zero-padded decimal text: exact everywhere, and ordered as the numbers are."""

    impl = String(_DIGITS)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if not 0 <= value <= UINT256_MAX:
            raise ValueError(f"{value} is outside [0, 2**256)")
        return f"{value:0{_DIGITS}d}"

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


class Table(SQLModel):
    """Base of the tables; constraints get names by rule, because migrations must be able to name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class AccountTable(Table, table=True):
    """An account. ``label`` is null, not empty, where there is none: labels are unique."""

    __tablename__ = "account"

    id: str = Field(primary_key=True, max_length=66)
    salt: str = Field(max_length=66)
    controller: str
    kind: str
    home: str
    label: str | None = Field(default=None, unique=True)


class LinkTable(Table, table=True):
    """The append-only links log: the only truth about who backs which account, and how it is shared out."""

    __tablename__ = "link"
    __table_args__ = (UniqueConstraint("account", "member", "kind", "nonce"),)

    position: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    account: str = Field(foreign_key="account.id", index=True, max_length=66)
    controller: str
    member: str = Field(index=True)
    nonce: int = Field(sa_type=U256)
    expiry: int = Field(sa_type=U256)  # a signed uint64; people sign 2**64 - 1 for "never"
    invite_signature: str
    accept_signature: str
    recorded_at: int = Field(sa_type=BigInteger)
    kind: str = Field(default="link", sa_column_kwargs={"server_default": "link"})
    shares: str = Field(default="", sa_type=Text, sa_column_kwargs={"server_default": text("''")})


class RotationTable(Table, table=True):
    """A set of attestors after the genesis set, with the signatures of the set before it."""

    __tablename__ = "rotation"

    set_id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    activation_epoch: int = Field(sa_type=BigInteger)
    not_after: int = Field(sa_type=BigInteger)
    threshold: int
    members: str = Field(sa_type=Text)  # [0x, ...]
    signatures: str = Field(sa_type=Text)  # [[index, r, vs], ...]


class ReadingTable(Table, table=True):
    """What one reader read of one chain at one block, of the accounts it has not read anew since."""

    __tablename__ = "reading"

    reader: str = Field(primary_key=True)
    chain: str = Field(primary_key=True)
    height: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    time: int = Field(sa_type=BigInteger)
    content: str = Field(sa_type=Text)  # Reading


class EpochTable(Table, table=True):
    """Header, body and certificate of one epoch: the log. Never pruned."""

    __tablename__ = "epoch"
    __table_args__ = (Index(None, "certified", "epoch"),)

    epoch: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    certified: bool
    cut_time: int = Field(sa_type=BigInteger)
    root: str
    floor: int = Field(sa_type=BigInteger)
    set_id: int = Field(sa_type=BigInteger)
    produced_at: int = Field(sa_type=BigInteger)
    valid_until: int = Field(sa_type=BigInteger)
    body: str
    cut_digest: str
    price_digest: str
    policy_digest: str
    risk_digest: str
    state_digest: str
    accounts_root: str
    leaf_count: int = Field(sa_type=BigInteger)
    previous: str
    digest: str
    attestations: str = Field(sa_type=Text)  # [[index, r, vs], ...]
    refusals: str = Field(sa_type=Text)
    chains: str = Field(sa_type=Text)
    findings: str = Field(sa_type=Text)


class MarginTable(Table, table=True):
    """One account's margin at one epoch."""

    __tablename__ = "margin"

    epoch: int = Field(primary_key=True, foreign_key="epoch.epoch", sa_type=BigInteger)
    account: str = Field(primary_key=True, max_length=66)
    ordinal: int  # place in the epoch's report
    content: str = Field(sa_type=Text)  # AccountMargin


class LeavesTable(Table, table=True):
    """Every leaf of one epoch in the order of the commitment; a proof needs all of them."""

    __tablename__ = "leaves"

    epoch: int = Field(primary_key=True, foreign_key="epoch.epoch", sa_type=BigInteger)
    content: str = Field(sa_type=Text)  # [LeafValues, ...]


class PreimageTable(Table, table=True):
    """A canonical text by its Keccak-256; most epochs share policy and risk texts with the one before."""

    __tablename__ = "preimage"

    digest: str = Field(primary_key=True, max_length=66)
    content: str = Field(sa_type=Text)


class EpochPreimageTable(Table, table=True):
    """Which texts an epoch rests on."""

    __tablename__ = "epoch_preimage"

    epoch: int = Field(primary_key=True, foreign_key="epoch.epoch", sa_type=BigInteger)
    name: str = Field(primary_key=True)
    digest: str = Field(foreign_key="preimage.digest", index=True, max_length=66)


class PostingTable(Table, table=True):
    """One certificate on its way to one destination."""

    __tablename__ = "posting"
    __table_args__ = (Index(None, "destination", "state", "epoch"),)

    epoch: int = Field(primary_key=True, sa_type=BigInteger)
    destination: str = Field(primary_key=True)
    state: str
    transaction: str
    cost: int = Field(sa_type=BigInteger)
    detail: str = Field(sa_type=Text)
    updated_at: int = Field(sa_type=BigInteger)


class HaltTable(Table, table=True):
    """The log of chains halted by a reorganisation and resumed by hand; at most one per party and chain stands."""

    __tablename__ = "halt"
    __table_args__ = (
        Index(
            "uq_halt_standing",
            "party",
            "chain",
            unique=True,
            sqlite_where=text("resumed_at IS NULL"),
            postgresql_where=text("resumed_at IS NULL"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True)
    party: str
    chain: str
    cause: str = Field(sa_type=Text)
    halted_at: int = Field(sa_type=BigInteger)
    resumed_at: int | None = Field(default=None, sa_type=BigInteger)
    resumed_by: str = ""
    reason: str = Field(default="", sa_type=Text)


class LatencyTable(Table, table=True):
    """One measured leg. Many are written and they are soon forgotten: the key must not run out, so it has 64 bits."""

    __tablename__ = "latency"
    __table_args__ = (Index(None, "measured_at"), Index(None, "chain", "leg", "measured_at"))

    # Only a column of the very type INTEGER counts up by itself on SQLite, where it has 64 bits too.
    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    )
    leg: str
    chain: str
    seconds: float
    measured_at: int = Field(sa_type=BigInteger)
