"""The tables of the SQL log store.

The schema is small and only ever grows, so the stores create it themselves and record its version: a bridge refuses a
store that a newer version made.
"""

import sqlalchemy as sa

from authsvc.runtime.sql import UtcDateTime
from httpbridge.log_store import StoreSetupError

SCHEMA_VERSION = 2
"""1: logs. 2: origin_counts, too."""

tables = sa.MetaData()

logs = sa.Table(
    "logs",
    tables,
    # SQLite gives AUTOINCREMENT-less ids to the type INTEGER only.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("received_at", UtcDateTime, nullable=False),
    sa.Column("service", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("release", sa.Text),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("timestamp", UtcDateTime, nullable=False),
    # The text as it came, not a JSON type: those change numbers, key order and repeated keys.
    sa.Column("metadata", sa.Text),
    sa.Column("trace_id", sa.Text),
    sa.Column("span_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("vercel_id", sa.Text),
    sa.Column("context", sa.Text),
    sa.Index("logs_newest_of_project", "project_id", "timestamp", "id"),
)

WRITTEN_COLUMNS = [column.name for column in logs.columns if column.name != "id"]
"""The columns of a row as the sink builds it, in this order; the store gives the id."""

origin_counts = sa.Table(
    "origin_counts",
    tables,
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("hour", UtcDateTime, primary_key=True),
    sa.Column("origin", sa.Text, primary_key=True),
    sa.Column("allowed", sa.BigInteger, nullable=False),
    sa.Column("blocked", sa.BigInteger, nullable=False),
    sa.Index("origin_counts_by_hour", "hour"),
    sqlite_with_rowid=False,
)
"""How many requests from an origin were admitted and refused in the hour that begins then."""

log_store = sa.Table(
    "log_store",
    tables,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("probes", sa.BigInteger, nullable=False),
)
"""One row: the version of the schema, and a counter that probes write to."""

PROBE = "UPDATE log_store SET probes = probes + 1 WHERE id = 1"


def create_tables(connection: sa.Connection) -> None:
    """Create what is missing, in the caller's transaction, which keeps other bridges out meanwhile.

    A store of an older version becomes one of this: all that came since are tables of their own.
    Raises StoreSetupError for a store of a newer version.
    """
    tables.create_all(connection)
    check_version(connection)
    version = connection.execute(sa.select(log_store.c.schema_version)).scalar()
    if version is None:
        connection.execute(log_store.insert().values(id=1, schema_version=SCHEMA_VERSION, probes=0))
    elif version < SCHEMA_VERSION:
        connection.execute(log_store.update().values(schema_version=SCHEMA_VERSION))


def check_version(connection: sa.Connection) -> None:
    """Raise StoreSetupError for a store of a newer version, whose tables may mean something else."""
    version = connection.execute(sa.select(log_store.c.schema_version)).scalar()
    if version is not None and version > SCHEMA_VERSION:
        raise StoreSetupError(
            f"the log store has schema version {version}, made by a newer httpbridge; this one knows {SCHEMA_VERSION}"
        )
