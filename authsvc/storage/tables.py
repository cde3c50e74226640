"""The tables of projects, keys and changes, for queries; a test compares them with what `migrations` makes."""

import sqlalchemy as sa

from authsvc.runtime.sql import UtcDateTime

METADATA = sa.MetaData()
COUNTER = sa.Table(
    "revision_counter",
    METADATA,
    sa.Column("id", sa.SmallInteger, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.String(32), nullable=False),
)
projects = sa.Table(
    "projects",
    METADATA,
    sa.Column("project_id", sa.String(63), primary_key=True),
    sa.Column("origins", sa.JSON, nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
)
keys = sa.Table(
    "keys",
    METADATA,
    sa.Column("key_id", sa.String(20), primary_key=True),
    sa.Column("project_id", sa.String(63), nullable=False),
    sa.Column("digest", sa.LargeBinary(32), nullable=False),
    sa.Column("create_revision", sa.BigInteger, nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
    sa.Column("revoke_time", UtcDateTime),
)
changes = sa.Table(
    "changes",
    METADATA,
    sa.Column("revision", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("project_id", sa.String(63), nullable=False),
    sa.Column("invalidated_digests", sa.JSON, nullable=False),
    sa.Column("caller", sa.String(128), nullable=False),
    sa.Column("create_time", UtcDateTime, nullable=False),
)
