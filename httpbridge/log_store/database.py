"""The log store's database, for all who open it: engines of PostgreSQL, and what both drivers' errors mean."""

import sqlite3

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from authsvc.runtime.database_url import PostgresAddress
from authsvc.runtime.postgres import DRIVER_ERRORS, Postgres
from authsvc.runtime.sql import driver_error, is_refusal, reason, sqlite_code
from authsvc.runtime.sqlite_files import FilesLostError
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError

CONNECT_SECONDS_MAX = 5.0
"""For one of an engine's connections to be free."""

COMMIT_SECONDS_MAX = 10.0
"""For one commit, connecting included; after it the outcome counts as unknown and the connection is dropped."""

EXPECTED_ERRORS = (
    *(sa.exc.SQLAlchemyError, sqlite3.Error, FilesLostError, OSError, TimeoutError),
    *DRIVER_ERRORS,
)


def postgres_engine(address: PostgresAddress, *, connections_max: int = 1, **settings: str) -> AsyncEngine:
    """Make an engine for the database, whose sessions have these settings of the server.

    It has at most `connections_max` connections; who wants one more waits for CONNECT_SECONDS_MAX.
    """
    postgres = Postgres(address, program="httpbridge", command_seconds_max=COMMIT_SECONDS_MAX, settings=settings)
    return postgres.engine(connections_max=connections_max, overflow_max=0, wait_seconds_max=CONNECT_SECONDS_MAX)


def translated(error: BaseException, where: str = "") -> Exception:
    """Return what an error is here: StoreSetupError or StoreUnavailableError.

    `where` goes before the driver's words. No text of a row gets into it.
    """
    error = driver_error(error)
    if isinstance(error, StoreSetupError):
        return error
    if isinstance(error, FilesLostError):
        return StoreUnavailableError(str(error))
    code, kind = sqlite_code(error), getattr(error, "sqlite_errorname", type(error).__name__)
    words = f"{where}{reason(error)} ({kind})"
    if is_refusal(error) or code == sqlite3.SQLITE_ERROR:
        return StoreSetupError(f"the log store cannot be used: {words}")
    return StoreUnavailableError(words)
