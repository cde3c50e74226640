"""The baseline of the store's questions: a plain table with a row for each entry, and an index by project and time.

It is asked by way of the same SQLAlchemy and aiosqlite as the product's store, and makes the same objects of its rows.
Instants are microseconds since 1970.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from authsvc.runtime.sql import sqlite_engine, sqlite_uri
from httpbridge.log_store.chunk import instant_of, microseconds
from httpbridge.log_store.queries import LIST_CHARACTERS_MAX
from httpbridge.log_store.selection import LogRow, StoredLog, cut
from httpbridge.log_store.sqlite_writes import connect
from httpbridge.logs import Level, LogBatch

_ROWS_A_TRANSACTION = 100

rows = sa.Table(
    "rows",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("service", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("release", sa.Text),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("metadata", sa.Text),
    sa.Column("trace_id", sa.Text),
    sa.Column("span_id", sa.Text),
    sa.Column("request_id", sa.Text),
    sa.Column("vercel_id", sa.Text),
    sa.Column("context", sa.Text),
    sa.Index("rows_of_project", "project_id", "timestamp"),
)
"""The columns are those of a StoredLog, in its order."""


def fill(path: Path, batches: Iterable[LogBatch]) -> None:
    """Make a file with the table, as durable as the product's, and write all entries to it."""
    columns = rows.columns.keys()[1:]
    insert = f"INSERT INTO rows ({','.join(columns)}) VALUES ({','.join('?' * len(columns))})"
    with closing(connect(path)) as connection:
        for statement in (sa.schema.CreateTable(rows), *map(sa.schema.CreateIndex, rows.indexes)):
            connection.execute(str(statement))
        connection.execute("BEGIN IMMEDIATE")
        for number, batch in enumerate(batches, 1):
            connection.executemany(insert, _rows(batch))
            if number % _ROWS_A_TRANSACTION == 0:
                connection.execute("COMMIT")
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")


def _rows(batch: LogBatch) -> Iterable[tuple[Any, ...]]:
    received_at = microseconds(batch.received_at)
    for one in batch.entries:
        yield (
            batch.project_id, batch.key_id, received_at, batch.service, batch.environment, one.release or batch.release,
            one.level.value, one.message, microseconds(one.timestamp or batch.received_at), one.metadata,
            one.trace_id, one.span_id, one.request_id, one.vercel_id, one.context,
        )  # fmt: skip


def delete_before(path: Path, project_ids: Sequence[str], instant: datetime) -> int:
    """Delete what is older, by the index, in one transaction; return how many rows that is."""
    with closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        deleted = 0
        for project_id in project_ids:
            statement = "DELETE FROM rows WHERE project_id = ? AND timestamp < ?"
            deleted += connection.execute(statement, (project_id, microseconds(instant))).rowcount
        connection.execute("COMMIT")
        return deleted


class RowQueries:
    """Asks what the product's `LogQueries` is asked."""

    def __init__(self, path: Path) -> None:
        self._engine = sqlite_engine(sqlite_uri(path, "ro"), begin="DEFERRED", pool_size=1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engine.dispose()

    async def newest(self, project_id: str, level: Level, rows_max: int) -> list[LogRow]:
        """Return the newest entries of a level."""
        return await self._logs(project_id, rows.c.level == level.value, rows_max)

    async def containing(self, project_id: str, text: str, rows_max: int) -> list[LogRow]:
        """Return the newest entries with a text, in any case of ASCII."""
        texts = (rows.c.message, rows.c.metadata, rows.c.trace_id, rows.c.request_id)
        return await self._logs(project_id, sa.or_(*(column.contains(text) for column in texts)), rows_max)

    async def histogram(self, project_id: str, since: datetime, until: datetime, bars: int) -> list[tuple[Any, ...]]:
        """Count the entries of as many stretches of time by level."""
        first, last = microseconds(since), microseconds(until)
        bucket = (rows.c.timestamp - first) // ((last - first) // bars)
        within = sa.and_(rows.c.project_id == project_id, rows.c.timestamp >= first, rows.c.timestamp < last)
        statement = sa.select(bucket, rows.c.level, sa.func.count()).where(within).group_by(bucket, rows.c.level)
        return [tuple(row) for row in await self._read(statement)]

    async def _logs(self, project_id: str, matches: sa.ColumnElement[bool], rows_max: int) -> list[LogRow]:
        statement = sa.select(rows).where(rows.c.project_id == project_id, matches)
        newest = statement.order_by(rows.c.timestamp.desc(), rows.c.id.desc()).limit(rows_max)
        return [cut(_log(row), LIST_CHARACTERS_MAX) for row in await self._read(newest)]

    async def _read(self, statement: sa.Select[Any]) -> list[Any]:
        async with self._engine.connect() as connection:
            return list((await connection.execute(statement)).all())


def _log(row: Any) -> StoredLog:
    id_, project_id, key_id, received_at, service, environment, release, level, message, timestamp, *others = row
    return StoredLog(
        id_, project_id, key_id, instant_of(received_at), service, environment, release, level, message,
        instant_of(timestamp), *others,
    )  # fmt: skip
