"""A read-only way into the log store: one address, a few connections, errors told in the bridge's words.

Under `reader` (the command `logs`), `queries`, `tail` and `origin_store` (the dashboard). What is asked over one lent
connection sees one state of the store, whatever is merged meanwhile. Nothing is held beyond that, so that nobody who
reads keeps the WAL growing or dead rows alive.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import driver_error, sqlite_code
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import ChunkDamagedError, Content
from httpbridge.log_store.database import EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.log_store.scan import Header
from httpbridge.log_store.schema import check_version, chunks, log_store
from httpbridge.log_store.sqlite_reads import Prepared, SqliteReaders
from httpbridge.log_store.summary import read_summary, unknown

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

_SLOW = "the log store takes too long to answer"

T = TypeVar("T")


class StoreSlowError(StoreUnavailableError):
    """The store is there, and took longer than it may: somebody asked for too much, or too many did."""


class Reading(Protocol):
    """A lent connection. It raises the errors of the driver and of SQLAlchemy, which whoever lends it translates."""

    async def rows(self, statement: sa.Executable) -> list[Any]:
        """Run a statement and return all of its rows."""

    async def prepared(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any]:
        """Run one with these parameters; its rows have no names."""

    async def fetched(self, statement: Prepared, parameters: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        """Run one that returns a single value, and return what a thread makes of that."""

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """Do something with the connection itself."""


class ReadStore:
    """The store at an address (`sqlite:///FILE` or `postgresql://…`); it connects when it is first used.

    Raises StoreSetupError for another kind of address. `statement_seconds_max` is for each statement.
    """

    def __init__(self, url: str, *, connections_max: int = 1, statement_seconds_max: float | None = None) -> None:
        address = parse_database_url(url)
        self._path: Path | None = None
        self._readers: SqliteReaders | None = None
        self._engine: AsyncEngine | None = None
        self._is_checked = False
        self._lent = 0
        self._returned = asyncio.Event()
        self.late_ids = 0
        """See LATE_IDS; 0 for a store whose ids become visible in their order."""
        if isinstance(address, Path):
            self._path = address
            self._readers = SqliteReaders(address, connections_max, statement_seconds_max)
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
        if self._readers is not None:
            await self._readers.close()
        if self._engine is not None:
            await self._engine.dispose()

    def check_exists(self) -> None:
        """Raise StoreSetupError for a SQLite file that does not exist, or is a directory."""
        if self._path is not None and not self._path.exists():
            raise StoreSetupError(f"there is no log store at {self._path}: no bridge has run with it yet")
        if self._path is not None and self._path.is_dir():
            raise StoreSetupError(f"{self._path} is a directory, not a log store")

    async def rows(self, statement: sa.Executable) -> list[Any]:
        """Run one query and return all of its rows; raises as `connection` does."""
        async with self.connection() as reading:
            return await reading.rows(statement)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Reading]:
        """Lend a connection, for statements that follow each other closely.

        Raises StoreSetupError when there is no table of logs yet or a newer version made it, StoreSlowError when a
        statement or the wait for a connection takes too long, and StoreUnavailableError when the store cannot be read.
        """
        self.check_exists()
        try:
            async with self._lending() as reading:
                if not self._is_checked:
                    await reading.run_sync(_check)
                    self._is_checked = True
                yield reading
        except EXPECTED_ERRORS as error:
            if _is_slow(error):
                raise StoreSlowError(_SLOW) from None
            self._is_checked = False  # whatever it was, the store may be another one when it is back
            failure = translated(error)
            if isinstance(failure, StoreSetupError):
                raise failure from None
            raise StoreUnavailableError(f"the log store cannot be read: {failure}") from None

    @asynccontextmanager
    async def _lending(self) -> AsyncIterator[Reading]:
        self._lent += 1
        try:
            reading, give_back = await self._lend()
        except BaseException:
            self._return()
            raise
        try:
            yield reading
        finally:
            # In a task, as whoever is cancelled does not wait for it.
            closing = give_back()
            closing.add_done_callback(self._return)
            if self._engine is not None:
                await asyncio.shield(closing)

    async def _lend(self) -> tuple[Reading, Callable[[], "asyncio.Future[None]"]]:
        """Return a connection, and what takes it back."""
        if self._readers is not None:
            try:
                async with asyncio.timeout(WAIT_SECONDS_MAX):
                    reader = await self._readers.lend()
            except TimeoutError:
                raise StoreSlowError(_SLOW) from None
            return reader, partial(self._readers.take_back, reader)
        assert self._engine is not None  # noqa: S101 - for the type checker
        connection = await self._engine.connect()
        try:
            await connection.execution_options(isolation_level="REPEATABLE READ")
        except BaseException:
            await connection.close()
            raise
        return _PostgresReading(connection), lambda: asyncio.ensure_future(connection.close())

    def _return(self, _closing: object = None) -> None:
        self._lent -= 1
        self._returned.set()


class _PostgresReading:
    """See `Reading`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def rows(self, statement: sa.Executable) -> list[Any]:
        return list((await self._connection.execute(statement)).all())

    async def prepared(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any]:
        return list((await self._connection.execute(statement.statement, parameters)).all())

    async def fetched(self, statement: Prepared, parameters: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        ((value,),) = await self.prepared(statement, parameters)
        return await asyncio.to_thread(work, value)

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._connection.run_sync(work)


def _is_slow(error: BaseException) -> bool:
    is_interrupted = sqlite_code(error) == sqlite3.SQLITE_INTERRUPT
    return is_interrupted or isinstance(driver_error(error), (asyncpg.QueryCanceledError, sa.exc.TimeoutError))


def _check(connection: sa.Connection) -> None:
    if not sa.inspect(connection).has_table(log_store.name):
        raise StoreSetupError("the log store has no table of logs: no bridge has run with it yet")
    check_version(connection)


def _prepared_headers(*, oldest_first: bool, is_next: bool) -> Prepared:
    at = chunks.c.first_at if oldest_first else chunks.c.last_at
    text, number = sa.Text(), sa.BigInteger()
    statement = sa.select(*(chunks.c[name] for name in Header._fields)).where(
        chunks.c.project_id == sa.bindparam("project_id", type_=text),
        chunks.c.last_at >= sa.bindparam("begin", type_=text),
        chunks.c.first_at <= sa.bindparam("end", type_=text),
    )
    if is_next:
        order = sa.tuple_(at, chunks.c.id)
        last = sa.tuple_(sa.bindparam("last_at", type_=text), sa.bindparam("last_id", type_=number))
        statement = statement.where(order > last if oldest_first else order < last)
    ordered = statement.order_by(*((at, chunks.c.id) if oldest_first else (at.desc(), chunks.c.id.desc())))
    return Prepared(ordered.limit(sa.bindparam("number", type_=number)))


_HEADERS = {
    (oldest_first, is_next): _prepared_headers(oldest_first=oldest_first, is_next=is_next)
    for oldest_first in (False, True)
    for is_next in (False, True)
}
_CONTENT = Prepared(sa.select(chunks.c.content).where(chunks.c.id == sa.bindparam("id", type_=sa.BigInteger())))


async def headers(
    reading: Reading, project_id: str, begin: str, end: str, *, oldest_first: bool = False
) -> AsyncIterator[Header]:
    """Yield the chunks of a project that reach into a stretch of time: by their last timestamps, descending.

    Or with `oldest_first` by their first ones, ascending.
    """
    asked: dict[str, Any] = {"project_id": project_id, "begin": begin, "end": end, "number": _HEADERS_MIN}
    is_next = False
    while True:
        rows = await reading.prepared(_HEADERS[oldest_first, is_next], asked)
        header = None
        for row in rows:
            header = header_of(row)
            yield header
        if header is None or len(rows) < asked["number"]:
            return
        is_next = True
        last_at = header.first_at if oldest_first else header.last_at
        asked |= {"last_at": last_at, "last_id": header.id, "number": _HEADERS_MAX}


def header_of(row: Any) -> Header:
    """Make a header of a row with its columns. Without a summary that can be read, the content is looked into."""
    id_, span, version, first_at, last_at, entries, text = row
    try:
        summary = read_summary(text)
    except msgspec.DecodeError:
        summary = unknown(entries)
    return Header(id_, span, version, first_at, last_at, entries, summary)


async def content_of(reading: Reading, chunk_id: int) -> Content:
    """Return the content of a chunk that was seen over the same connection. Raises ChunkDamagedError."""
    return await of_content(reading, chunk_id, lambda content: content)


async def of_content(reading: Reading, chunk_id: int, work: Callable[[Content], T]) -> T:
    """Return what a thread makes of the content of a chunk; see `content_of`."""
    return await reading.fetched(_CONTENT, {"id": chunk_id}, lambda compressed: work(Content(chunk_id, compressed)))


async def of_readable(reading: Reading, chunk_id: int, work: Callable[[Content], T]) -> T | None:
    """Do the same; None for a chunk that is damaged, so that the others can be read."""
    try:
        return await of_content(reading, chunk_id, work)
    except ChunkDamagedError:
        return None
