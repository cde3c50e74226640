"""What the errors of both databases' drivers mean to the key service. Called by `database`."""

import errno
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import exc

from authsvc.errors import StoreRefusedError, StoreUnavailableError
from authsvc.runtime.postgres import DRIVER_ERRORS, driver_error, is_refusal

_PASSING = ("08", "25006", "3F000", "40", "42P01", "53", "55", "57", "58")
"""PostgreSQL's classes of errors that pass: no connection, a server that takes no writes (yet), no schema or table (of
a database whose dump is yet to be restored), conflict with another transaction, no room, something in use, cancelled or
going down, a fault of its system."""
_PASSING_KINDS = (exc.OperationalError, exc.InterfaceError, exc.InternalError)
"""What drivers themselves raise: SQLite's of locks and disks, asyncpg's of connections, and of a standby."""
_REFUSING_FILES = {
    errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EPERM, errno.EROFS,
}  # fmt: skip
_REFUSING_SQLITE = {
    sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}  # fmt: skip
"""What waiting does not mend: of the system, about a file, and of SQLite."""


@asynccontextmanager
async def available() -> AsyncIterator[None]:
    """Turn what drivers raise while the database is unavailable into StoreUnavailableError."""
    try:
        yield
    except (
        exc.DBAPIError,
        exc.TimeoutError,
        exc.NoResultFound,
        OSError,
        TimeoutError,
        sqlite3.Error,
        *DRIVER_ERRORS,
    ) as error:
        if _is_refusal(error):
            raise StoreRefusedError(reason(error)) from error
        if isinstance(error, exc.DBAPIError):
            sqlstate = str(getattr(error.orig, "sqlstate", None) or "")
            passes = isinstance(error, _PASSING_KINDS) or sqlstate.startswith(_PASSING)
            if not (passes or error.connection_invalidated):
                raise
        raise StoreUnavailableError(reason(error)) from error


def _is_refusal(error: BaseException) -> bool:
    error = driver_error(error)
    if isinstance(error, sqlite3.Error):  # the primary of an extended code
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF in _REFUSING_SQLITE
    if isinstance(error, OSError):  # without a file's name it is one of the network
        return error.filename is not None and error.errno in _REFUSING_FILES
    return is_refusal(error)


def reason(error: Exception) -> str:
    """Return the server's or the system's own words: they name roles and databases, never a password."""
    cause = driver_error(error)
    words = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    return words.partition("\n")[0] or type(cause).__name__
