"""SQL databases, for the stores of both services: instants, SQLite engines, and what drivers' errors mean.

Connections to PostgreSQL are `postgres`'s.
"""

import asyncio
import errno
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from authsvc.runtime.database_url import SetupError

LOSES = "the database would lose what it committed"

_REFUSING_CLASSES = ("28", "3D", "42501")
"""PostgreSQL's classes of errors that waiting does not mend: a role or password, a database, a right to a table."""
_REFUSING_SQLITE = {
    sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}  # fmt: skip
_REFUSING_FILES = {
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
"""The same of SQLite, and of the system about a file."""


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An instant, aware and in UTC: TIMESTAMPTZ in PostgreSQL, text with microseconds and without a zone in SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Leave the zone out where the database has no room for it."""
        return value if value is None or dialect.name != "sqlite" else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return it in UTC, whatever zone the server's session has."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def sqlite_uri(path: Path, mode: str = "rw") -> str:
    """Return what SQLite opens a file by that is there already: never a new one in the place of one moved away.

    With the mode `ro`, nothing is made beside a file that nobody can write: it is on a read-only file system, and all
    that was committed is in it.
    """
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    if mode == "ro":
        wal = path.with_name(f"{path.name}-wal")
        try:
            if os.statvfs(path).f_flag & os.ST_RDONLY and not (wal.exists() and wal.stat().st_size):
                uri += "&immutable=1"
        except OSError:
            pass  # opening it says so
    return uri


def sqlite_engine(uri: str, *pragmas: str, begin: str = "", busy_seconds: float = 5.0, **options: Any) -> AsyncEngine:
    """Return an engine for a file, whose new connections run the pragmas.

    A transaction begins with `BEGIN` and the execution option `sqlite_begin`, or else `begin`; without either, each
    statement is one. IMMEDIATE takes the write lock before anything is read: a transaction that reads first and then
    writes would fail, or write what it read too long ago.
    """
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=uri, query={"uri": "true"}),
        hide_parameters=True,
        # The driver begins nothing by itself.
        connect_args={"async_creator_fn": _connect, "timeout": busy_seconds, "isolation_level": None},
        **options,
    )

    def set_up(connection: Any, _record: object) -> None:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    def begin_as_told(connection: sa.Connection) -> None:
        if mode := connection.get_execution_options().get("sqlite_begin", begin):
            connection.exec_driver_sql(f"BEGIN {mode}")

    sa.event.listen(engine.sync_engine, "connect", set_up)
    sa.event.listen(engine.sync_engine, "begin", begin_as_told)
    return engine


async def _connect(database: str, **options: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(database, **options)
    thread = connection._thread
    thread.daemon = True
    try:
        return await connection
    except BaseException:
        # The thread answers once more: a loop that is closed by then would make it print a traceback.
        await asyncio.to_thread(thread.join)
        raise


def check_durable(connection: Any) -> None:
    """Raise SetupError for a connection to SQLite that would lose what it commits."""
    for setting, needed in (("journal_mode", "wal"), ("synchronous", 2)):
        ((value,),) = connection.execute(f"PRAGMA {setting}").fetchall()
        if value != needed:
            raise SetupError(f"{LOSES}: {setting} is {value}, and must be {needed}")


def driver_error(error: BaseException) -> BaseException:
    """Return what the driver raised: SQLAlchemy wraps its errors twice."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def sqlstate(error: BaseException) -> str:
    """Return PostgreSQL's code of an error, empty for another one's."""
    return str(getattr(driver_error(error), "sqlstate", None) or "")


def sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary code of an error, None for another one's."""
    error = driver_error(error)
    if not isinstance(error, sqlite3.Error):
        return None
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF


def is_refusal(error: BaseException) -> bool:
    """Say whether waiting does not mend it."""
    error = driver_error(error)
    if isinstance(error, OSError):  # without a file's name it is one of the network
        return error.filename is not None and error.errno in _REFUSING_FILES
    refuses = sqlstate(error).startswith(_REFUSING_CLASSES) or sqlite_code(error) in _REFUSING_SQLITE
    return isinstance(error, SetupError) or refuses


def reason(error: BaseException) -> str:
    """Return the first line of the server's or system's own words: roles and databases, no password, no row's text."""
    error = driver_error(error)
    words = (error.strerror if isinstance(error, OSError) else None) or str(error)
    without_words = "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
    return words.partition("\n")[0] or without_words
