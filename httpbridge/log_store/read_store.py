"""A read-only way into the log store: one address, a few connections, errors told in the bridge's words.

Under `reader` (the command `logs`), `queries`, `tail` and `origin_store` (the dashboard). What is asked over one lent
connection sees one state of the store, whatever is merged meanwhile. Nothing is held beyond that, so that nobody who
reads keeps the WAL growing or dead rows alive.
"""

import asyncio
import math
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import driver_error, sqlite_code, sqlite_engine, sqlite_uri
from authsvc.runtime.sqlite_files import file_identity
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import ChunkDamagedError, Content
from httpbridge.log_store.database import EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.log_store.scan import Header
from httpbridge.log_store.schema import check_version, chunks, log_store
from httpbridge.log_store.summary import read_summary

LATE_IDS = 32_768
"""How far below the newest id PostgreSQL may still make a chunk visible.

Ids are handed out before the commit, so with several bridges a lower id can appear after
a higher one. A transaction that ends after this many later chunks is missed while following
(not by a later listing).
"""

WAIT_SECONDS_MAX = 5.0
"""How long a statement waits for one of the connections."""

_CLOSE_SECONDS_MAX = 10.0
"""For what is lent to come back: twice as long as a statement of the dashboard may take."""

_HEADERS_MIN, _HEADERS_MAX = 16, 256
"""Read at a time: few at first, as the newest page needs no more."""

_STEPS = 10_000
"""Of SQLite's machine, between two looks at the clock: 0.2 ms, or a few hundred rows."""


class StoreSlowError(StoreUnavailableError):
    """The store is there, and took longer than it may: somebody asked for too much, or too many did."""


class ReadStore:
    """The store at an address (`sqlite:///FILE` or `postgresql://…`); it connects when it is first used.

    Raises StoreSetupError for another kind of address. `statement_seconds_max` is for each statement.
    """

    def __init__(self, url: str, *, connections_max: int = 1, statement_seconds_max: float | None = None) -> None:
        address = parse_database_url(url)
        self._path: Path | None = None
        self._is_checked = False
        self._lent = 0
        self._returned = asyncio.Event()
        self.late_ids = 0
        """See LATE_IDS; 0 for a store whose ids become visible in their order."""
        if isinstance(address, Path):
            self._path = address
            self._engine = _sqlite_engine(address, connections_max)
            if statement_seconds_max is not None:
                _limit_statements(self._engine, statement_seconds_max)
        else:
            settings = {"default_transaction_read_only": "on"}
            if statement_seconds_max is not None:
                settings["statement_timeout"] = str(int(statement_seconds_max * 1000))
            self._engine = postgres_engine(address, connections_max=connections_max, **settings)
            self.late_ids = LATE_IDS

    async def close(self) -> None:
        """Let go of the store once what is lent has come back: the pool would forget it, and leave it open."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS_MAX):
                while self._lent:
                    self._returned.clear()
                    await self._returned.wait()
        await self._engine.dispose()

    def check_exists(self) -> None:
        """Raise StoreSetupError for a SQLite file that does not exist, or is a directory."""
        if self._path is not None and not self._path.exists():
            raise StoreSetupError(f"there is no log store at {self._path}: no bridge has run with it yet")
        if self._path is not None and self._path.is_dir():
            raise StoreSetupError(f"{self._path} is a directory, not a log store")

    async def rows(self, statement: sa.Executable) -> list[Any]:
        """Run one query and return all of its rows; raises as `connection` does."""
        async with self.connection() as connection:
            return list((await connection.execute(statement)).all())

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection, for statements that follow each other closely.

        Raises StoreSetupError when there is no table of logs yet or a newer version made it, StoreSlowError when a
        statement or the wait for a connection takes too long, and StoreUnavailableError when the store cannot be read.
        """
        self.check_exists()
        try:
            async with self._lending() as connection:
                if self._path is None:
                    await connection.execution_options(isolation_level="REPEATABLE READ")
                if not self._is_checked:
                    await connection.run_sync(_check)
                    self._is_checked = True
                yield connection
        except EXPECTED_ERRORS as error:
            if _is_slow(error):
                raise StoreSlowError("the log store takes too long to answer") from None
            self._is_checked = False  # whatever it was, the store may be another one when it is back
            failure = translated(error)
            if isinstance(failure, StoreSetupError):
                raise failure from None
            raise StoreUnavailableError(f"the log store cannot be read: {failure}") from None

    @asynccontextmanager
    async def _lending(self) -> AsyncIterator[AsyncConnection]:
        self._lent += 1
        try:
            connection = await self._engine.connect()
        except BaseException:
            self._return()
            raise
        try:
            yield connection
        finally:
            # In a task, as whoever is cancelled does not wait for it.
            closing = asyncio.ensure_future(connection.close())
            closing.add_done_callback(self._return)
            await asyncio.shield(closing)

    def _return(self, _closing: object = None) -> None:
        self._lent -= 1
        self._returned.set()


def _sqlite_engine(path: Path, connections_max: int) -> AsyncEngine:
    engine = sqlite_engine(
        sqlite_uri(path, "ro"),
        begin="DEFERRED",
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS_MAX,
    )

    def note_file(_driver: object, record: Any) -> None:
        record.info["file"] = file_identity(path)

    def check_file(_driver: object, record: Any, _proxy: object) -> None:
        if record.info["file"] != file_identity(path):
            raise sa.exc.DisconnectionError  # the pool connects anew, to what is there now

    sa.event.listen(engine.sync_engine, "connect", note_file)
    sa.event.listen(engine.sync_engine, "checkout", check_file)
    return engine


def _limit_statements(engine: AsyncEngine, seconds: float) -> None:
    """Have SQLite give up a statement after so long: a thread works at it, which nothing else can stop."""

    def set_up(driver: Any, record: Any) -> None:
        record.info["ends"] = ends = [math.inf]  # when, by the monotonic clock
        driver.run_async(lambda sqlite: sqlite.set_progress_handler(lambda: time.monotonic() >= ends[0], _STEPS))

    def begin(connection: sa.Connection, *_: Any) -> None:
        connection.info["ends"][0] = time.monotonic() + seconds

    sa.event.listen(engine.sync_engine, "connect", set_up)
    sa.event.listen(engine.sync_engine, "before_cursor_execute", begin)


def _is_slow(error: BaseException) -> bool:
    is_interrupted = sqlite_code(error) == sqlite3.SQLITE_INTERRUPT
    return is_interrupted or isinstance(driver_error(error), (asyncpg.QueryCanceledError, sa.exc.TimeoutError))


def _check(connection: sa.Connection) -> None:
    if not sa.inspect(connection).has_table(log_store.name):
        raise StoreSetupError("the log store has no table of logs: no bridge has run with it yet")
    check_version(connection)


async def headers(
    connection: AsyncConnection, project_id: str, begin: str, end: str, *, oldest_first: bool = False
) -> AsyncIterator[Header]:
    """Yield the chunks of a project that reach into a stretch of time: by their last timestamps, descending.

    Or with `oldest_first` by their first ones, ascending.
    """
    at = chunks.c.first_at if oldest_first else chunks.c.last_at
    order = sa.tuple_(at, chunks.c.id)
    columns = [chunks.c[name] for name in Header._fields]
    within = sa.select(*columns).where(
        chunks.c.project_id == project_id, chunks.c.last_at >= begin, chunks.c.first_at <= end
    )
    within = within.order_by(*((at, chunks.c.id) if oldest_first else (at.desc(), chunks.c.id.desc())))
    statement, number = within, _HEADERS_MIN
    while True:
        rows = (await connection.execute(statement.limit(number))).all()
        for row in rows:
            yield header_of(row)
        if len(rows) < number:
            return
        last = (rows[-1].first_at if oldest_first else rows[-1].last_at, rows[-1].id)
        statement = within.where(order > last if oldest_first else order < last)
        number = _HEADERS_MAX


def header_of(row: Any) -> Header:
    """Make a header of a row with its columns."""
    id_, span, version, first_at, last_at, entries, summary = row
    try:
        return Header(id_, span, version, first_at, last_at, entries, read_summary(summary))
    except msgspec.DecodeError:
        raise ChunkDamagedError("its summary cannot be read") from None


async def content_of(connection: AsyncConnection, chunk_id: int) -> Content:
    """Return the content of a chunk that was seen over the same connection. Raises ChunkDamagedError."""
    statement = sa.select(chunks.c.content).where(chunks.c.id == chunk_id)
    compressed = (await connection.execute(statement)).scalar_one()
    return await asyncio.to_thread(Content, chunk_id, compressed)
