"""How a SQLite log store is written to: its connections, and chunks past SQLAlchemy."""

import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from authsvc.runtime.sql import check_durable
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.schema import WRITTEN_COLUMNS

BUSY_SECONDS_MAX = 2.0
"""How long a commit waits for another process's lock before it is a 503."""

STATEMENT_CHUNKS_MAX = 64
"""Chunks a statement: together below the 999 parameters that every SQLite takes."""

RECLAIMED_PAGES = 500
"""At a time: two MiB, some milliseconds."""

_SCRUB_MILLISECONDS_MAX = 200
"""How long an attempt waits for readers: meanwhile nobody can write."""


def connect(path: Path) -> sqlite3.Connection:
    """Open the log store's file for writing. Raises sqlite3.Error, OSError and SetupError."""
    # Transactions are ours: the driver would begin them late, and not IMMEDIATE.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS_MAX, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file
        if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            # To the end, where it is written: the driver drops the failure of a statement that it leaves before.
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=FULL")
        # What was erased or merged is in no page that stays. FAST would leave some of it in pages that a transaction
        # frees and uses again.
        connection.execute("PRAGMA secure_delete=ON").fetchall()
        connection.execute("PRAGMA wal_autocheckpoint=0")  # see `SqliteStore`
        connection.execute("PRAGMA journal_size_limit=67108864")  # a WAL that once was larger gives the room back
        check_durable(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def engine_of(connection: sqlite3.Connection) -> sa.Engine:
    """Return an engine that has only this connection, and takes the write lock when a transaction begins."""
    engine = sa.create_engine("sqlite://", creator=lambda: connection, poolclass=sa.StaticPool)
    sa.event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def insert_chunks(connection: sqlite3.Connection, chunks: Sequence[Chunk]) -> None:
    """Insert chunks, in a transaction unless `is_one_statement`.

    The driver keeps statements prepared, and SQLite keeps what each was given last, so there are only a few: for one
    chunk, two, four, and so on.
    """
    start = 0
    while start < len(chunks):
        size = min(STATEMENT_CHUNKS_MAX, 1 << ((len(chunks) - start).bit_length() - 1))
        some = chunks[start : start + size]
        connection.execute(_insert(size), [value for chunk in some for value in chunk.columns])
        start += size


def is_one_statement(chunks: int) -> bool:
    """Whether so many are inserted by one statement, which is a transaction by itself."""
    return chunks <= STATEMENT_CHUNKS_MAX and chunks.bit_count() == 1


@cache
def _insert(chunks: int) -> str:
    row = f"({','.join('?' * len(WRITTEN_COLUMNS))})"
    return f"INSERT INTO chunks ({','.join(WRITTEN_COLUMNS)}) VALUES {','.join([row] * chunks)}"  # noqa: S608 - no input


def reclaim(connection: Any) -> bool:
    """See `sink.Transactions`; the connection is the driver's, or SQLAlchemy's over it.

    A file that was not made here may not be able to shrink.
    """
    ((before,),) = connection.execute("PRAGMA freelist_count").fetchall()
    # A script is stepped through to its end; the driver would stop this statement at its first page.
    script = f"PRAGMA incremental_vacuum({RECLAIMED_PAGES})"
    if isinstance(connection, sqlite3.Connection):
        connection.executescript(script)
    else:
        connection.run_async(lambda driver: driver.executescript(script))
    ((after,),) = connection.execute("PRAGMA freelist_count").fetchall()
    return bool(0 < after < before)


def scrub(connection: sqlite3.Connection) -> bool:
    """See `sink.Transactions`."""
    ((milliseconds,),) = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute(f"PRAGMA busy_timeout={_SCRUB_MILLISECONDS_MAX}").fetchall()
    try:
        ((is_busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        connection.execute(f"PRAGMA busy_timeout={milliseconds}").fetchall()
    return not is_busy
