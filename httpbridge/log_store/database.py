"""The log store's database, for all who open it: engines of PostgreSQL, and what both drivers' errors mean."""

import sqlite3
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from authsvc.runtime.database_url import PostgresAddress
from authsvc.runtime.postgres import DRIVER_ERRORS, Connection, Postgres
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

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def postgres_engine(address: PostgresAddress, *, connections_max: int = 1, **settings: str) -> AsyncEngine:
    """Make an engine for the database, whose sessions have these settings of the server.

    It has at most `connections_max` connections; who wants one more waits for CONNECT_SECONDS_MAX.
    """

    async def set_up(connection: Connection) -> None:
        # The driver's own codec takes the first and the last instant of a datetime for -infinity and infinity.
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=_encode_instant, decoder=_decode_instant
        )

    postgres = Postgres(
        address, program="httpbridge", command_seconds_max=COMMIT_SECONDS_MAX, settings=settings, set_up=set_up
    )
    return postgres.engine(connections_max=connections_max, overflow_max=0, wait_seconds_max=CONNECT_SECONDS_MAX)


def _encode_instant(instant: datetime) -> tuple[int]:
    """Microseconds since PostgreSQL's epoch, which is how it keeps a TIMESTAMPTZ."""
    return ((instant - _POSTGRES_EPOCH) // timedelta(microseconds=1),)


def _decode_instant(microseconds: tuple[int]) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=microseconds[0])


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
