"""The connection to the key service's database: SQLite or PostgreSQL, and how each begins a transaction.

`store` and `lease_store` share one Database; `app` and the command line open it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from authsvc.client.database_url import DatabaseUrlError, parse_database_url
from authsvc.client.environment import ConfigurationError
from authsvc.client.postgres import (
    Postgres,
    check_settings,
    separate,
)
from authsvc.client.postgres_files import SetupError
from authsvc.database_errors import available, reason
from authsvc.errors import StoreUnavailableError
from authsvc.point_reads import PointReads, PostgresReads, Row, SqliteReads

_BUSY_TIMEOUT_SECONDS = 5
_POOL_TIMEOUT_SECONDS = 5
_COMMAND_TIMEOUT_SECONDS = 5
_LISTENING_CHECK_SECONDS = 30.0
_SYNCHRONOUS_FULL = 2
_MIGRATION_LOCK = 0x6474_6175  # any number that nothing else locks in this database


class Instant(sa.TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite has no zones, so there it is stored without."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return what the driver takes."""
        return value.replace(tzinfo=None) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return what the driver gave, in UTC whatever zone the server's session has."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


class Database:
    """One database. Its three kinds of connection raise StoreUnavailableError while it cannot answer.

    That is a StoreRefusedError where the database's settings would have to be changed.
    """

    def __init__(self, url: str) -> None:
        """Take `sqlite:///FILE` or `postgresql://…`; nothing is connected yet.

        Raises ConfigurationError for another kind of database.
        """
        self._postgres: Postgres | None = None
        try:
            address = parse_database_url(url)
            if isinstance(address, Path):
                self.engine = _sqlite_engine(address)
            else:
                # A standby lags behind: it would say that a revoked key is active. A primary that is demoted
                # restarts, so a look at each connection is enough; behind a pooler, at each transaction.
                self._postgres = Postgres(
                    address,
                    program="authsvc",
                    command_seconds_max=_COMMAND_TIMEOUT_SECONDS,
                    settings={"synchronous_commit": "on"},
                    is_primary=True,
                )
                self.engine = self._postgres.engine(
                    connections_max=10, overflow_max=10, wait_seconds_max=_POOL_TIMEOUT_SECONDS
                )
        except (DatabaseUrlError, SetupError) as error:
            raise ConfigurationError(f"AUTHSVC_DATABASE_URL: {error}") from None
        self.is_sqlite = self._postgres is None
        self._statements = self.engine.execution_options(sqlite_begin=None)
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        # SQLite's writers wait for each other anyway, by polling; within a process they queue here instead, in order.
        self._turn = asyncio.Lock() if self.is_sqlite else nullcontext()
        self._point_reads: list[PointReads] = []

    async def open(self) -> None:
        """Connect, and make sure that what is committed stays.

        Raises ConfigurationError, StoreRefusedError for settings that are not durable, StoreUnavailableError.
        """
        if self.is_sqlite:
            async with available():
                _make_file(self.engine.url)
        async with self.statement() as connection:
            if not self.is_sqlite:
                await check_settings(connection)
            elif (value := (await connection.execute(sa.text("PRAGMA synchronous"))).scalar_one()) != _SYNCHRONOUS_FULL:
                raise ConfigurationError(
                    "AUTHSVC_DATABASE_URL: the database would lose what it committed: "
                    f"synchronous is {value}, and must be {_SYNCHRONOUS_FULL}"
                )

    @property
    def notifies(self) -> bool:
        """Whether `listen` is told of what other processes commit."""
        return self._postgres is not None and not self._postgres.is_pooled

    async def close(self) -> None:
        """Close the connections."""
        for reads in self._point_reads:
            await reads.close()
        await self.engine.dispose()

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection on which each statement stands for itself."""
        async with available(), _connected(self._statements) as connection:
            if not self.is_sqlite:
                await separate(connection)
            yield connection

    def point_reads(self, sql: str) -> PointReads:
        """Return what runs a statement for some values; `{}` in it is the list of them, as in `IN {}`."""
        reads: PointReads
        if self._postgres is None:
            reads = SqliteReads(self._connect_sqlite, sql.format("({})"), self._read)
        else:
            reads = PostgresReads(self._postgres.connect, sql.replace("IN {}", "= ANY($1)"), self._read)
        self._point_reads.append(reads)
        return reads

    def _connect_sqlite(self) -> sqlite3.Connection:
        (file,), options = self.engine.dialect.create_connect_args(self.engine.url)
        connection = sqlite3.connect(file, timeout=0, isolation_level=None, uri=options.get("uri", False))
        connection.execute("PRAGMA query_only=ON")
        return connection

    async def _read(self, sql: str, parameters: tuple[Any, ...]) -> Sequence[Row]:
        for retry in (True, False):
            try:
                async with self.statement() as connection:
                    return (await connection.exec_driver_sql(sql, parameters)).all()
            except StoreUnavailableError as error:
                # The pool may hold connections that the database closed long ago; it has dropped them all by now.
                if not (retry and getattr(error.__cause__, "connection_invalidated", False)):
                    raise
        raise AssertionError("the second try returns or raises")

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction: on SQLite, of one snapshot."""
        async with available(), _connected(self.engine) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction that writes, committed at the end unless the body raises or rolls back."""
        async with self._turn, available(), _connected(self._writing) as connection:
            await connection.begin()
            yield connection
            await connection.commit()

    async def listen(self, channel: str, notified: Callable[[], None]) -> None:
        """Call `notified` at each notification of PostgreSQL, and once at first; return when the connection is lost.

        At once, and without a call, behind a pooler, where no session is ours to be notified.
        """
        async with self.statement() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            if driver.is_pooled:
                return
            lost = asyncio.Event()
            driver.add_termination_listener(lambda _: lost.set())
            try:
                await driver.add_listener(channel, lambda *_: notified())
                notified()
                while not lost.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LISTENING_CHECK_SECONDS):
                            await lost.wait()
                            return
                    await driver.execute("SELECT 1")  # a server may be gone without a word
            except Exception as error:  # past SQLAlchemy, which turns the driver's exceptions into its own
                raise StoreUnavailableError(reason(error)) from error
            finally:
                await connection.invalidate()  # it must not go back to the pool listening

    async def migrate(self, upgrade: Callable[[sa.Connection], None]) -> None:
        """Run `upgrade` in one transaction that no other process's migration overlaps."""
        async with self.writing() as connection:
            if not self.is_sqlite:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            await connection.run_sync(upgrade)

    async def schema_version(self) -> str | None:
        """Return the Alembic revision that the database is at; None for an empty database."""
        async with self.reading() as connection:
            if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table("alembic_version")):
                return None
            return (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar()


def _sqlite_engine(path: Path) -> AsyncEngine:
    engine = create_async_engine(
        sa.URL.create("sqlite+aiosqlite", database=str(path)),
        hide_parameters=True,
        pool_timeout=_POOL_TIMEOUT_SECONDS,
        connect_args={"timeout": _BUSY_TIMEOUT_SECONDS},
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _make_file(url: sa.URL) -> None:
    """Make the file of SQLite if there is none, for this user only: what SQLite puts beside it takes its mode over."""
    if url.database and not url.database.startswith("file:"):  # a URI, which is not a path
        Path(url.database).touch(mode=0o600)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock before anything is read: a transaction that reads first and then writes would
    # fail, or write what it read too long ago.
    if mode := connection.get_execution_options().get("sqlite_begin", "DEFERRED"):
        connection.exec_driver_sql(f"BEGIN {mode}")


@asynccontextmanager
async def _connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Give a connection. On SQLite it is made and given back to the end, even when its user is cancelled meanwhile.

    Otherwise the driver leaves its thread behind, to meet a closed event loop at the end of the process.
    """
    connection = engine.connect()
    if engine.dialect.name != "sqlite":
        async with connection:
            yield connection
        return
    try:
        await _to_the_end(connection.start())
        yield connection
    finally:
        if connection.sync_connection is not None:
            await _to_the_end(connection.close())


async def _to_the_end(operation: Coroutine[Any, Any, object]) -> None:
    """Finish before a cancellation counts, however often it is repeated."""
    task = asyncio.create_task(operation)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    failed = task.exception()
    if cancelled is not None:
        raise cancelled
    if failed is not None:
        raise failed
