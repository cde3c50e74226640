"""What tests of the whole store put into it, and read from it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import sqlite_engine, sqlite_uri
from httpbridge.log_store.chunk import Chunk, merged
from httpbridge.log_store.chunk_writes import StoredChunk, replace
from httpbridge.log_store.database import postgres_engine
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import WRITTEN_COLUMNS, chunks
from httpbridge.log_store.sink import MaintainedStore, SqlSink, open_sql_sink, store_at
from httpbridge.logs import Level, LogBatch, LogEntry

AT = datetime(2026, 11, 23, 20, 15, tzinfo=UTC)


def made(*messages: str, project_id: str = "demo", service: str = "api", minute: int = 0, **fields: Any) -> LogBatch:
    """Make a batch of entries with these messages; its minute is that of their timestamps."""
    entries = [
        LogEntry(Level.ERROR if "bad" in message else Level.INFO, message, AT + timedelta(minutes=minute), **fields)
        for message in messages
    ]
    return LogBatch(project_id, "key-1", AT, service, "production", None, entries)


@asynccontextmanager
async def sink_at(url: str) -> AsyncIterator[SqlSink]:
    sink = await open_sql_sink(url, monotonic=lambda: 0.0)
    try:
        yield sink
    finally:
        await sink.close()


@asynccontextmanager
async def reading(url: str) -> AsyncIterator[ReadStore]:
    store = ReadStore(url)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def maintaining(url: str) -> AsyncIterator[MaintainedStore]:
    store = store_at(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def chunk_rows(store: ReadStore, project_id: str = "demo") -> list[Any]:
    """Return the project's chunks, by id."""
    columns = [chunks.c[name] for name in ("id", "span", "version", "stored_at", *WRITTEN_COLUMNS)]
    return await store.rows(sa.select(*columns).where(chunks.c.project_id == project_id).order_by(chunks.c.id))


async def merge(maintained: MaintainedStore, rows: Sequence[Any]) -> None:
    """Merge these chunks, which are next to each other."""
    first, last = rows[0], rows[-1]
    chunk = merged([(row.id, Chunk(*row[4:])) for row in rows])
    new = StoredChunk(first.id, last.id + last.span - first.id, 1 + max(row.version for row in rows), 0, chunk)
    old = [(row.id, row.version) for row in rows]
    assert await maintained.transact(lambda connection: replace(connection, old, new))


async def change(url: str, statement: str, **values: Any) -> None:
    """Change the store as nothing of it does."""
    address = parse_database_url(url)
    engine = (
        sqlite_engine(sqlite_uri(address), begin="IMMEDIATE") if isinstance(address, Path) else postgres_engine(address)
    )
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text(statement), values)
    finally:
        await engine.dispose()
