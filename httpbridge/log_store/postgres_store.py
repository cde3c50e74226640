"""The log store in PostgreSQL: one connection, rows through COPY.

The SQL sink's store for `postgresql:` addresses. SQLAlchemy makes the connection and the
schema; rows go through the driver's COPY, a single statement and so one transaction that
is committed before the driver says it is done.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from authsvc.runtime.database_url import PostgresAddress
from authsvc.runtime.postgres import Connection, Postgres, check_settings
from httpbridge.errors import BatchRefusedError, StoreUnavailableError
from httpbridge.log_store.errors import EXPECTED_ERRORS, translated
from httpbridge.log_store.rows import Rows
from httpbridge.log_store.schema import PROBE, WRITTEN_COLUMNS, create_tables

CONNECT_SECONDS_MAX = 5.0
"""For one of an engine's connections to be free."""

COMMIT_SECONDS_MAX = 10.0
"""For one commit, connecting included; after it the outcome counts as unknown and the connection is dropped."""

_SCHEMA_LOCK = 0x6465_6570_6C6F_6773
"""The advisory lock under which one bridge at a time creates the tables: the bytes of `deeplogs`."""


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


_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def _encode_instant(instant: datetime) -> tuple[int]:
    """Microseconds since PostgreSQL's epoch, which is how it keeps a TIMESTAMPTZ."""
    since = instant - _POSTGRES_EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds,)


def _decode_instant(microseconds: tuple[int]) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=microseconds[0])


class PostgresStore:
    """Commits groups of rows durably to the database of a `postgresql:` URL."""

    def __init__(self, address: PostgresAddress) -> None:
        self._engine = postgres_engine(
            address,
            synchronous_commit="on",
            # Ends on the server, too, what was given up here while it waited for a lock.
            statement_timeout=str(int(COMMIT_SECONDS_MAX * 1000)),
        )
        self._connection: AsyncConnection | None = None
        self._driver: Connection | None = None
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

        async def copy(driver: Connection) -> None:
            await driver.copy_records_to_table("logs", records=rows, columns=WRITTEN_COLUMNS)

        await self._write(copy)

    async def probe(self) -> None:
        """Write a little, durably. Raises StoreUnavailableError when that fails."""

        async def count(driver: Connection) -> None:
            await driver.execute(PROBE)

        await self._write(count)

    async def check(self) -> None:
        """Nothing: a connection knows which database it is to."""

    async def close(self) -> None:
        """Close the connection."""
        async with self._turn:
            await self._disconnect()
        await self._engine.dispose()

    async def _write(self, work: Callable[[Connection], Awaitable[None]]) -> None:
        async with self._turn:
            try:
                async with asyncio.timeout(COMMIT_SECONDS_MAX):
                    driver = await self._connected()
                    async with driver.settled():
                        await work(driver)
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

    async def _connected(self) -> Connection:
        """Return the connection; where there is none in order, connect, check the settings and create the tables."""
        if self._driver is not None and not self._driver.is_closed():
            return self._driver
        await self._disconnect()
        self._connection = await self._engine.connect()
        driver = (await self._connection.get_raw_connection()).driver_connection
        assert isinstance(driver, Connection)  # noqa: S101 - for the type checker
        self._driver = driver
        await check_settings(self._connection)
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
