"""What the errors of both databases' drivers mean to who writes to the log store, or reads it."""

import sqlite3

import asyncpg
import sqlalchemy as sa

from authsvc.runtime.postgres import DRIVER_ERRORS, driver_error, is_refusal
from authsvc.runtime.postgres_files import SetupError
from httpbridge.errors import BatchRefusedError, StoreUnavailableError
from httpbridge.log_store import StoreSetupError

EXPECTED_ERRORS = (
    *DRIVER_ERRORS, sa.exc.SQLAlchemyError, sqlite3.Error, StoreSetupError, OSError, TimeoutError, UnicodeEncodeError,
)  # fmt: skip

_DATA_CLASSES = ("22", "23", "54")
"""PostgreSQL's of what one batch alone meets: data exception, integrity constraint, program limit exceeded."""
_SQLITE_DATA = {sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH}
_SQLITE_SETUP = {
    sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_ERROR,
}  # fmt: skip


def translated(error: BaseException | None, where: str = "") -> Exception:
    """Return what an error is to the sink: StoreSetupError, BatchRefusedError or StoreUnavailableError.

    `where` goes before the driver's words. No text of a row gets into it.
    """
    error = driver_error(error or Exception())
    if isinstance(error, StoreSetupError):
        return error
    if isinstance(error, SetupError):
        return StoreSetupError(str(error))
    if isinstance(error, UnicodeEncodeError):
        return BatchRefusedError("it cannot hold text that is not valid Unicode")
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_INTERNAL) & 0xFF  # the primary of an extended code
        is_data, is_setup = code in _SQLITE_DATA, code in _SQLITE_SETUP
    else:
        sqlstate = str(getattr(error, "sqlstate", None) or "")
        is_data, is_setup = (
            sqlstate.startswith(_DATA_CLASSES) or isinstance(error, asyncpg.DataError),
            is_refusal(error),
        )
    reason = f"{where}{_reason(error)}"
    if is_data:
        return BatchRefusedError(f"it cannot hold this batch: {type(error).__name__}")
    return StoreSetupError(f"the log store cannot be used: {reason}") if is_setup else StoreUnavailableError(reason)


def _reason(error: BaseException) -> str:
    # Only the first argument: a server's details may quote a row.
    words = (error.strerror if isinstance(error, OSError) else None) or (error.args[0] if error.args else "")
    kind = getattr(error, "sqlite_errorname", type(error).__name__)
    return f"{words or 'no answer in time'} ({kind})"
