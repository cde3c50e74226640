"""The connection to the key service's database: SQLite or PostgreSQL, and how each begins a transaction.

`key_store` and `lease_store` share one Database; `app` and the command line open it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from authsvc.errors import StoreUnavailableError
from authsvc.runtime.database_url import DatabaseUrlError, parse_database_url
from authsvc.runtime.environment import ConfigurationError
from authsvc.runtime.postgres import Postgres, check_settings, separate
from authsvc.runtime.postgres_files import SetupError
from authsvc.runtime.sqlite_files import stamp
from authsvc.storage.errors import available, reason
from authsvc.storage.prepared_reads import PostgresReads, PreparedReads, Row, SqliteReads
from authsvc.storage.sqlite import SqliteFile, Standing, sqlite_engine

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
        self._file: SqliteFile | None = None
        try:
            address = parse_database_url(url)
            if isinstance(address, Path):
                self._file, self.engine = SqliteFile(address), sqlite_engine(address)
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
        self.is_sqlite = self._file is not None
        self.standing = Standing() if self._file is None else self._file.standing
        self._statements = self.engine.execution_options(sqlite_begin=None)
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        # SQLite's writers wait for each other anyway, by polling; within a process they queue here instead, in order.
        self._turn = asyncio.Lock() if self.is_sqlite else nullcontext()
        self._prepared_reads: list[PreparedReads] = []

    async def open(self) -> None:
        """Connect, and make sure that what is committed stays.

        Raises ConfigurationError, StoreRefusedError for settings that are not durable, StoreUnavailableError.
        """
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
        for reads in self._prepared_reads:
            await reads.close()
        await self.engine.dispose()
        if self._file is not None:
            self._file.close()

    @property
    def file(self) -> SqliteFile | None:
        """What the database is on SQLite."""
        return self._file

    def check(self) -> None:
        """Raise StoreLostError when what is read and written is not what the next start would find."""
        if self._file is not None:
            self._file.check()

    @asynccontextmanager
    async def statement(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection on which each statement is a transaction of its own."""
        async with self._in_view(), _connected(self._statements) as connection:
            if not self.is_sqlite:
                await separate(connection)
            yield connection

    def prepared_reads(self, sql: str) -> PreparedReads:
        """Return what runs a statement for some values; `{}` in it is the list of them, as in `IN {}`."""
        reads: PreparedReads
        if self._postgres is None:
            assert self._file is not None  # noqa: S101 - for the type checker
            reads = SqliteReads(self._file.connect, self._file.check_lately, sql.format("({})"), self._read)
        else:
            reads = PostgresReads(self._postgres.connect, sql.replace("IN {}", "= ANY($1)"), self._read)
        self._prepared_reads.append(reads)
        return reads

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
        async with self._in_view(), _connected(self.engine) as connection:
            yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection in a transaction that writes, committed at the end unless the body raises or rolls back.

        If it raises StoreLostError at the end, it was committed to a file that nobody may ever find.
        """
        async with self._turn, self._in_view(), _connected(self._writing) as connection:
            await connection.begin()
            yield connection
            await connection.commit()

    async def stamp(self, connection: AsyncConnection, number: int) -> None:
        """Stamp what is committed: the file of SQLite is known by it from copies of it that are older."""
        if self.is_sqlite:
            await connection.exec_driver_sql(stamp(number))

    @asynccontextmanager
    async def _in_view(self) -> AsyncIterator[None]:
        """Make sure before and after that it is the database that the next start would find."""
        async with available():
            if self._file is not None and not self._file.is_open:
                await asyncio.to_thread(self._file.open)
            self.check()
            try:
                yield
            except Exception:
                self.check()  # nor is it known then that there is no such project
                raise
            self.check()

    async def listen(self, channel: str, notified: Callable[[], None]) -> None:
        """Call `notified` at each notification of PostgreSQL, and once at first; return when the connection is lost.

        Behind a pooler, where no session is ours to be notified, return at once, without a call.
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
