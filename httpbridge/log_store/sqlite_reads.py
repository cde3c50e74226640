"""Reading a SQLite log store: some connections, each used by a thread of its own, past SQLAlchemy where it is often.

A page of the dashboard is a handful of statements of some microseconds; what costs is to go to a thread and back, and
what is made around a statement. So all that belongs together goes there at once.
"""

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from authsvc.runtime.sql import sqlite_uri
from authsvc.runtime.sqlite_files import FileIdentity, file_identity

_BUSY_SECONDS_MAX = 5.0

_DIALECT = sqlite.dialect(paramstyle="named")

_STEPS = 10_000
"""Of SQLite's machine, between two looks at the clock: 0.2 ms, or a few hundred rows."""


class Prepared:
    """A statement that is run often: its parameters have names, and its text is made once."""

    def __init__(self, statement: sa.Select[Any]) -> None:
        self.statement = statement
        compiled = statement.compile(dialect=_DIALECT)
        self.sqlite_text = str(compiled)
        self.sqlite_parameters = {name: value for name, value in compiled.params.items() if value is not None}


P = ParamSpec("P")
T = TypeVar("T")


class SqliteReader:
    """A connection. It sees one state of the store from its first statement on until `end`."""

    def __init__(self, path: Path, statement_seconds_max: float | None) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log reader")
        self._seconds = statement_seconds_max
        self._ends = math.inf
        """When the statement under way is given up, by the monotonic clock."""
        self._file: FileIdentity | None = None
        self._driver: sqlite3.Connection | None = None
        self._connection: sa.Connection | None = None
        """The same, for SQLAlchemy."""

    async def rows(self, statement: sa.Executable) -> list[Any]:
        """See `read_store.Reading`."""
        return await self._run(self._rows, statement)

    async def prepared(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any]:
        """See `read_store.Reading`."""
        return await self._run(self._fetch, statement, parameters)

    async def fetched(self, statement: Prepared, parameters: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        """See `read_store.Reading`."""
        return await self._run(self._fetched, statement, parameters, work)

    async def run_sync(self, work: Callable[[sa.Connection], T]) -> T:
        """See `read_store.Reading`."""
        return await self._run(self._work, work)

    def end(self) -> "asyncio.Future[None]":
        """Let go of the state that was seen; what is under way comes to its end before that."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._end)

    async def close(self) -> None:
        """Close the connection."""
        await self._run(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments, **more))

    # What follows runs in the thread.

    def _fetch(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any]:
        driver = self._begun()
        self._start_clock()
        return driver.execute(statement.sqlite_text, {**statement.sqlite_parameters, **parameters}).fetchall()

    def _fetched(self, statement: Prepared, parameters: Mapping[str, Any], work: Callable[[Any], T]) -> T:
        ((value,),) = self._fetch(statement, parameters)
        return work(value)

    def _rows(self, statement: sa.Executable) -> list[Any]:
        return self._work(lambda connection: list(connection.execute(statement).all()))

    def _work(self, work: Callable[[sa.Connection], T]) -> T:
        self._begun()
        assert self._connection is not None  # noqa: S101 - for the type checker
        return work(self._connection)

    def _begun(self) -> sqlite3.Connection:
        if self._driver is not None and self._driver.in_transaction:
            return self._driver
        if self._driver is not None and self._file != file_identity(self._path):
            self._disconnect()  # to connect anew, to what is there now
        driver = self._driver or self._connect()
        driver.execute("BEGIN DEFERRED")
        return driver

    def _connect(self) -> sqlite3.Connection:
        self._file = file_identity(self._path)
        uri = sqlite_uri(self._path, "ro")
        # Transactions are ours: the driver would begin none to read, and SQLAlchemy would begin its own.
        driver = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS_MAX, isolation_level=None)
        if self._seconds is not None:
            # A thread works at a statement, which nothing else can stop.
            driver.set_progress_handler(lambda: time.monotonic() >= self._ends, _STEPS)
        self._driver = driver
        engine = sa.create_engine("sqlite://", creator=lambda: driver, poolclass=sa.StaticPool, hide_parameters=True)
        sa.event.listen(engine, "before_cursor_execute", lambda *_: self._start_clock())
        self._connection = engine.connect()
        return driver

    def _start_clock(self) -> None:
        if self._seconds is not None:
            self._ends = time.monotonic() + self._seconds

    def _end(self) -> None:
        self._ends = math.inf
        try:
            if self._connection is not None:
                self._connection.rollback()
            if self._driver is not None:
                self._driver.rollback()
        except (sa.exc.SQLAlchemyError, sqlite3.Error):
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._driver, self._connection = self._connection, None, None
        if connection is not None:
            connection.close()
            connection.engine.dispose()  # closes the driver's too


class SqliteReaders:
    """Lends readers of a file, so many at a time."""

    def __init__(self, path: Path, readers_max: int, statement_seconds_max: float | None) -> None:
        self._make = partial(SqliteReader, path, statement_seconds_max)
        self._places = asyncio.Semaphore(readers_max)
        self._idle: list[SqliteReader] = []

    async def lend(self) -> SqliteReader:
        """Lend one, as soon as one is free."""
        await self._places.acquire()
        return self._idle.pop() if self._idle else self._make()

    def take_back(self, reader: SqliteReader) -> "asyncio.Future[None]":
        """Take it back once it has ended what it does."""
        ended = reader.end()
        ended.add_done_callback(partial(self._note, reader))
        return ended

    async def close(self) -> None:
        """Close those that are not lent."""
        while self._idle:
            await self._idle.pop().close()

    def _note(self, reader: SqliteReader, _ended: object) -> None:
        self._idle.append(reader)
        self._places.release()
