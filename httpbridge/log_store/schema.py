"""The tables of the log store.

The stores create them themselves, and record the version: a bridge refuses a store that another version made.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from authsvc.runtime.sql import UtcDateTime
from httpbridge.log_store import StoreSetupError

SCHEMA_VERSION = 3
"""1 and 2 had a row for each entry; 3: chunks."""

T = TypeVar("T", int, str)

tables = sa.MetaData()

NOW = {"sqlite": "CAST(strftime('%s', 'now') AS INTEGER)", "postgresql": "CAST(extract(epoch FROM now()) AS bigint)"}
"""Seconds since 1970 by the store's clock."""


class NowSeconds(FunctionElement[int]):
    """Seconds since 1970, by the store's clock."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(NowSeconds)
def _now(_element: NowSeconds, compiler: SQLCompiler, **_options: Any) -> str:
    return f"({NOW[compiler.dialect.name]})"


class _JsonItems(FunctionElement[Any]):
    """What is in a JSON array, as a table."""

    inherit_cache = True


@compiles(_JsonItems, "sqlite")
def _items_sqlite(element: _JsonItems, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **options)})"


@compiles(_JsonItems, "postgresql")
def _items_postgresql(element: _JsonItems, compiler: SQLCompiler, **options: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **options)} AS json))"


def ids_of(ids: Iterable[int]) -> sa.Select[int]:
    """Return a query of these numbers, see `values_of`."""
    return values_of(ids, sa.BigInteger())


def values_of(values: Iterable[T], type_: sa.types.TypeEngine[T]) -> sa.Select[T]:
    """Return a query of these, for `IN`, in a column `value`. Its text is the same however many they are.

    A connection keeps the statements that it prepared: with a parameter for each value they took megabytes.
    """
    items = _JsonItems(sa.literal(msgspec.json.encode(list(values)).decode(), sa.Text)).table_valued("value")
    return sa.select(sa.cast(items.c.value, type_).label("value"))


_Identity = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite has identities of the type INTEGER only
_Timestamp = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

chunks = sa.Table(
    "chunks",
    tables,
    sa.Column("id", _Identity, sa.Identity(), primary_key=True),
    sa.Column("span", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("stored_at", sa.BigInteger, nullable=False, server_default=NowSeconds()),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("first_at", _Timestamp, nullable=False),
    sa.Column("last_at", _Timestamp, nullable=False),
    sa.Column("entries", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("summary", sa.Text, nullable=False),
    # Last: whoever reads the others does not read its pages.
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Index("chunks_of_project", "project_id", "last_at", "id", "first_at", "span", "stored_at"),
    sqlite_autoincrement=True,  # the id of a chunk that went is not given to another
)
"""See `chunk.Chunk`. `version` counts how often it was written anew.

A merged chunk has the id of the first chunk in it, and `id + span` is that of the last one. Of a project these ranges
never overlap. `stored_at` is when the last of it was committed, in seconds since 1970, by the store's clock.
"""

STORED_BYTES = sa.func.length(chunks.c.content) + 512
"""What a chunk takes: its content, and the rest of it roughly."""

WRITTEN_COLUMNS = ["project_id", "first_at", "last_at", "entries", "size", "summary", "content"]
"""The columns of a chunk as a sink makes it, in this order; the store gives the id."""

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

idempotency_keys = sa.Table(
    "idempotency_keys",
    tables,
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("stored_at", sa.BigInteger, nullable=False, server_default=NowSeconds()),
    sa.Index("idempotency_keys_by_age", "project_id", "stored_at"),
    sqlite_with_rowid=False,
)
"""Which batches are stored that came with an idempotency key; see `idempotency`."""

project_data = sa.Table(
    "project_data",
    tables,
    sa.Column("project_id", sa.Text, primary_key=True),
    sa.Column("retention_days", sa.Integer),
    sa.Column("bytes_max", sa.BigInteger),
    sa.Column("dropped_entries", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("dropped_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("dropped_at", sa.BigInteger),
)
"""What a project may have in the store, where that is not what all may, and what retention dropped of it so far."""

erasures = sa.Table(
    "erasures",
    tables,
    sa.Column("id", _Identity, sa.Identity(), primary_key=True),
    sa.Column("project_id", sa.Text, nullable=False, index=True),
    sa.Column("erased_at", sa.BigInteger, nullable=False, server_default=NowSeconds()),
    sa.Column("by", sa.Text, nullable=False),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("entries", sa.BigInteger, nullable=False),
    sa.Column("is_scrubbed", sa.Boolean),
)
"""What was erased, by whom: `selection` says which entries, in words; `is_scrubbed` is NULL until it has ended."""

log_store = sa.Table(
    "log_store",
    tables,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("probes", sa.BigInteger, nullable=False),
    sa.Column("maintainer", sa.Text, nullable=False, server_default=""),
    sa.Column("maintained_until", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)
"""One row: the version of the schema, a counter that probes write to, and who merges and drops chunks, until when."""

PROBE = "UPDATE log_store SET probes = probes + 1 WHERE id = 1"


def create_tables(connection: sa.Connection) -> None:
    """Create what is missing, in the caller's transaction, which keeps other bridges out meanwhile.

    Raises StoreSetupError for a store of another version.
    """
    if sa.inspect(connection).has_table(log_store.name):
        check_version(connection)
    tables.create_all(connection)
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("ALTER TABLE chunks ALTER content SET STORAGE EXTERNAL"))  # it is compressed
    if connection.execute(sa.select(log_store.c.schema_version)).scalar() is None:
        connection.execute(log_store.insert().values(id=1, schema_version=SCHEMA_VERSION, probes=0))


def check_version(connection: sa.Connection) -> None:
    """Raise StoreSetupError for a store of another version, whose tables mean something else."""
    version = connection.execute(sa.select(log_store.c.schema_version)).scalar()
    if version is not None and version > SCHEMA_VERSION:
        raise StoreSetupError(
            f"the log store has schema version {version}, made by a newer httpbridge; this one knows {SCHEMA_VERSION}"
        )
    if version is not None and version < SCHEMA_VERSION:
        raise StoreSetupError(
            f"the log store has schema version {version}, and this httpbridge needs {SCHEMA_VERSION}: write it out with"
            " `httpbridge logs PROJECT --since … --json` of the version that made it, move it away, and read it in with"
            " `httpbridge import`"
        )
