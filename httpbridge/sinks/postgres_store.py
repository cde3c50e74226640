"""The log store in PostgreSQL: one connection, rows through COPY.

The SQL sink's store for `postgresql:` addresses. SQLAlchemy makes the connection and the
schema; rows go through the driver's COPY, a single statement and so one transaction that
is committed before the driver says it is done.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from httpbridge.errors import BatchRefusedError, StoreUnavailableError
from httpbridge.sinks import StoreNotDurableError, StoreSetupError
from httpbridge.sinks.rows import Rows
from httpbridge.sinks.schema import PROBE, WRITTEN_COLUMNS, create_tables

_Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_SECONDS_MAX = 5.0
COMMIT_SECONDS_MAX = 10.0
"""For one commit, connecting included; after it the outcome counts as unknown and the connection is dropped."""

_SCHEMA_LOCK = 0x6465_6570_6C6F_6773
"""The advisory lock under which one bridge at a time creates the tables: the bytes of `deeplogs`."""

_DURABLE = {"fsync": ("on",), "synchronous_commit": ("on", "remote_apply")}

_DATA_CLASSES = ("22", "23", "54")
"""SQLSTATE classes for what a batch contains: data exception, integrity constraint, program limit exceeded."""

_SETUP_ERRORS = (
    asyncpg.InvalidAuthorizationSpecificationError,  # and a wrong password
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
)


EXPECTED_ERRORS = (
    asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, sa.exc.SQLAlchemyError, StoreSetupError,
    OSError, TimeoutError, UnicodeEncodeError,
)  # fmt: skip


def postgres_engine(dsn: str, *, connections_max: int = 1, **settings: str) -> AsyncEngine:
    """Make an engine for the address, which the driver reads itself (so `sslmode` and several hosts work).

    `settings` are server settings of the session. It has at most `connections_max` connections; who wants one more
    waits for CONNECT_SECONDS_MAX. Raises StoreSetupError for an address that is no URL.
    """
    try:
        urlsplit(dsn)  # the driver leaves what this raises as it is, at each connection
    except ValueError:
        raise StoreSetupError("the log store's address is not a URL such as postgresql://USER@HOST/NAME") from None

    # SQLAlchemy passes what it finds in its own URL, which has nothing.
    async def connect(*_: Any, **__: Any) -> _Driver:
        driver = await asyncpg.connect(
            dsn,
            timeout=CONNECT_SECONDS_MAX,
            command_timeout=COMMIT_SECONDS_MAX,
            server_settings={"application_name": "httpbridge", **settings},
        )
        # The driver's own codec takes the first and the last instant of a datetime for -infinity and infinity.
        await driver.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=_encode_instant, decoder=_decode_instant
        )
        return driver

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS_MAX,
        hide_parameters=True,
    )


_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _encode_instant(instant: datetime) -> tuple[int]:
    """Microseconds since PostgreSQL's epoch, which is how it keeps a TIMESTAMPTZ."""
    since = instant - _POSTGRES_EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds,)


def _decode_instant(microseconds: tuple[int]) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=microseconds[0])


class PostgresStore:
    """Commits groups of rows durably to the database of a `postgresql:` URL."""

    def __init__(self, dsn: str) -> None:
        self._engine = postgres_engine(
            dsn,
            synchronous_commit="on",
            # Ends on the server, too, what was given up here while it waited for a lock.
            statement_timeout=str(int(COMMIT_SECONDS_MAX * 1000)),
        )
        self._connection: AsyncConnection | None = None
        self._driver: _Driver | None = None
        self._turn = asyncio.Lock()  # commits and probes share the connection

    def encode_instant(self, instant: datetime) -> datetime:
        """Leave it as it is: the driver takes aware datetimes."""
        return instant

    async def open(self) -> None:
        """Connect, and create the tables.

        Raises StoreSetupError when the server answers and the store cannot be used as it
        is set up, and StoreUnavailableError when the server cannot be reached.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(COMMIT_SECONDS_MAX):
                    await self._connected()
            except EXPECTED_ERRORS as error:
                await self._disconnect()
                raise translated(error) from None

    async def commit(self, group: list[Rows]) -> None:
        """Store all rows of the group or none; see GroupCommit for what it raises."""
        rows = group[0].rows if len(group) == 1 else [row for batch in group for row in batch.rows]

        async def copy(driver: _Driver) -> None:
            await driver.copy_records_to_table("logs", records=rows, columns=WRITTEN_COLUMNS)

        await self._write(copy)

    async def probe(self) -> None:
        """Write a little, durably. Raises StoreUnavailableError when that fails."""

        async def count(driver: _Driver) -> None:
            await driver.execute(PROBE)

        await self._write(count)

    async def check(self) -> None:
        """Nothing: a connection knows which database it is to."""

    async def close(self) -> None:
        """Close the connection."""
        async with self._turn:
            await self._disconnect()
        await self._engine.dispose()

    async def _write(self, work: Callable[[_Driver], Awaitable[None]]) -> None:
        async with self._turn:
            try:
                async with asyncio.timeout(COMMIT_SECONDS_MAX):
                    await work(await self._connected())
            except EXPECTED_ERRORS as error:
                failure = translated(error)
                # A refused statement left nothing behind, if the connection is in order still.
                if isinstance(failure, BatchRefusedError) and self._driver is not None and not self._driver.is_closed():
                    raise failure from None
                await self._disconnect()
                raise StoreUnavailableError(str(failure)) from None
            except BaseException:
                await self._disconnect()
                raise

    async def _connected(self) -> _Driver:
        """Return the connection; where there is none in order, connect, check the settings and create the tables."""
        if self._driver is not None and not self._driver.is_closed():
            return self._driver
        await self._disconnect()
        self._connection = await self._engine.connect()
        driver = (await self._connection.get_raw_connection()).driver_connection
        assert isinstance(driver, asyncpg.Connection)  # noqa: S101 - for the type checker
        self._driver = driver
        for setting, durable in _DURABLE.items():
            value = await driver.fetchval("SELECT current_setting($1)", setting)
            if value not in durable:
                raise StoreNotDurableError(setting, value, " or ".join(durable))
        await self._connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
        await self._connection.run_sync(create_tables)
        await self._connection.commit()
        return driver

    async def _disconnect(self) -> None:
        connection, driver, self._connection, self._driver = self._connection, self._driver, None, None
        if driver is not None:
            driver.terminate()  # at once, whatever state it is in: nothing of ours is under way
        if connection is not None:
            await connection.invalidate()
            await connection.close()


def driver_error(error: BaseException) -> BaseException:
    """Return what the driver raised: SQLAlchemy wraps its errors twice."""
    if isinstance(error, sa.exc.DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def translated(error: BaseException) -> Exception:
    """Say what a driver's error means to the sink; no text of a row gets into it."""
    error = driver_error(error)
    if isinstance(error, StoreSetupError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return BatchRefusedError("The log store cannot hold text that is not valid Unicode")
    if isinstance(error, asyncpg.DataError) or (
        isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "")[:2] in _DATA_CLASSES
    ):
        return BatchRefusedError("The log store cannot hold this batch")
    # Only the first argument: a server's details may quote a row.
    reason = f"{error.args[0] if error.args else 'no answer in time'} ({type(error).__name__})"
    if isinstance(error, _SETUP_ERRORS):
        return StoreSetupError(f"the log store cannot be used: {reason}")
    return StoreUnavailableError(reason)
