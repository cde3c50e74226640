"""A read-only way into the log store: one address, a few connections, errors told in the bridge's words.

Under `reader` (the command `logs`), `queries`, `tail` and `origin_store` (the dashboard). Nothing is held
between two statements, so that nobody who reads keeps the WAL growing or dead rows alive.
"""

import math
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import driver_error, sqlite_code, sqlite_engine, sqlite_uri
from authsvc.runtime.sqlite_files import file_identity
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.database import EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.log_store.schema import check_version, logs

LATE_IDS = 32_768
"""How far below the newest id PostgreSQL may still make a row visible.

Ids are handed out before the commit, so with several bridges a lower id can appear after
a higher one. A transaction that ends after this many later rows is missed while following
(not by a later listing).
"""

WAIT_SECONDS_MAX = 5.0
"""How long a statement waits for one of the connections."""

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
        """Let go of the store."""
        await self._engine.dispose()

    def check_exists(self) -> None:
        """Raise StoreSetupError for a SQLite file that does not exist, or is a directory."""
        if self._path is not None and not self._path.exists():
            raise StoreSetupError(f"there is no log store at {self._path}: no bridge has run with it yet")
        if self._path is not None and self._path.is_dir():
            raise StoreSetupError(f"{self._path} is a directory, not a log store")

    async def rows(self, statement: sa.Select[Any]) -> list[Any]:
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
            async with self._engine.connect() as connection:
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


def _sqlite_engine(path: Path, connections_max: int) -> AsyncEngine:
    engine = sqlite_engine(
        sqlite_uri(path, "ro"), pool_size=connections_max, max_overflow=0, pool_timeout=WAIT_SECONDS_MAX
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
    if not sa.inspect(connection).has_table(logs.name):
        raise StoreSetupError("the log store has no table of logs: no bridge has run with it yet")
    check_version(connection)
