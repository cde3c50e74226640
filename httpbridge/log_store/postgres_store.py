"""The log store in PostgreSQL: one connection, which SQLAlchemy makes, with the schema.

Chunks go through the driver's COPY, a single statement, and so a transaction that is committed before it says it is
done.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.runtime.database_url import PostgresAddress
from authsvc.runtime.postgres import Connection, check_settings
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import Chunk, without_repeats
from httpbridge.log_store.database import COMMIT_SECONDS_MAX, EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.log_store.idempotency import note_in_postgres
from httpbridge.log_store.schema import PROBE, WRITTEN_COLUMNS, create_tables

_SCHEMA_LOCK = 0x6465_6570_6C6F_6773
"""The advisory lock under which one bridge at a time creates the tables: the bytes of `deeplogs`."""


T = TypeVar("T")

_LOCK_SECONDS_MAX = 2.0
"""As long as commits wait for SQLite's lock."""


class PostgresStore:
    """Commits chunks durably to the database of a `postgresql:` URL."""

    def __init__(self, address: PostgresAddress) -> None:
        self._engine = postgres_engine(
            address,
            synchronous_commit="on",
            # Ends on the server, too, what was given up here while it waited for a lock.
            statement_timeout=str(int(COMMIT_SECONDS_MAX * 1000)),
            # A bridge that stopped in the middle of a commit keeps its idempotency keys locked: those of this group
            # wait for them only so long, and its session ends.
            lock_timeout=str(int(_LOCK_SECONDS_MAX * 1000)),
            idle_in_transaction_session_timeout=str(int(COMMIT_SECONDS_MAX * 1000)),
        )
        self._connection: AsyncConnection | None = None
        self._driver: Connection | None = None
        self._turn = asyncio.Lock()  # commits and probes share the connection

    async def open(self) -> None:
        """See `sink.Store`."""
        async with self._lent():
            pass

    async def commit(self, chunks: list[Chunk]) -> list[int]:
        """See `sink.Store`."""
        keys = [chunk.key_row for chunk in chunks if chunk.idempotency is not None]
        async with self._writing() as driver:
            if not keys:
                await _copy(driver, chunks)
                return []
            async with driver.transaction():
                new, conflicts = without_repeats(chunks, await note_in_postgres(driver, keys))
                await _copy(driver, new)
                return conflicts

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """See `sink.MaintainedStore`."""
        async with self._writing():
            assert self._connection is not None  # noqa: S101 - for the type checker
            async with self._connection.begin():
                return await self._connection.run_sync(work)

    async def reclaim(self) -> bool:
        """Nothing: PostgreSQL reuses the room by itself, once it has vacuumed."""
        return False

    async def scrub(self) -> bool:
        """Nothing: what was deleted can be read by no statement; PostgreSQL's vacuum and its WAL are the server's."""
        return True

    async def probe(self) -> None:
        """Write a little, durably. Raises StoreUnavailableError when that fails."""
        async with self._writing() as driver:
            await driver.execute(PROBE)

    async def check(self) -> None:
        """Nothing: a connection knows which database it is to."""

    async def close(self) -> None:
        """Close the connection."""
        async with self._turn:
            await self._disconnect()
        await self._engine.dispose()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[Connection]:
        try:
            async with self._lent() as driver, driver.settled():
                yield driver
        except StoreSetupError as error:  # it was in order when the bridge started
            raise StoreUnavailableError(str(error)) from None

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[Connection]:
        async with self._turn:
            try:
                async with asyncio.timeout(COMMIT_SECONDS_MAX):
                    yield await self._connected()
            except EXPECTED_ERRORS as error:
                await self._disconnect()
                raise translated(error) from None
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


async def _copy(driver: Connection, chunks: list[Chunk]) -> None:
    await driver.copy_records_to_table("chunks", records=[chunk.columns for chunk in chunks], columns=WRITTEN_COLUMNS)
