"""The connection to the key service's database: SQLite or PostgreSQL, and how each begins a transaction.

`store` and `lease_store` share one Database; `app` and the command line open it.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from authsvc.client.environment import ConfigurationError
from authsvc.client.sqlite_files import stamp
from authsvc.errors import StoreRefusedError, StoreUnavailableError
from authsvc.point_reads import PointReads, PostgresReads, Row, SqliteReads
from authsvc.sqlite import SqliteFile, Standing, sqlite_engine, sqlite_path

_POOL_TIMEOUT_SECONDS = 5
_COMMAND_TIMEOUT_SECONDS = 5
_LISTENING_CHECK_SECONDS = 30.0
_PASSING = ("08", "25006", "3F000", "40", "42P01", "53", "55", "57", "58")
"""PostgreSQL's classes of errors that pass: no connection, a server that takes no writes (yet), no schema or table (of
a database whose dump is yet to be restored), conflict with another transaction, no room, something in use, cancelled or
going down, a fault of its system."""
_PASSING_KINDS = (exc.OperationalError, exc.InterfaceError, exc.InternalError)
"""What drivers themselves raise: SQLite's of locks and disks, asyncpg's of connections, and of a standby."""
_REFUSING = ("28", "3D", "42501")
"""Those that do not: a role or password that is wrong, no such database, no right to a table."""
_DURABLE: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "sqlite": ("PRAGMA {}", {"synchronous": ("2",)}),  # FULL
    "postgresql": ("SHOW {}", {"fsync": ("on",), "synchronous_commit": ("on", "remote_apply")}),
}
"""How to ask for a setting, and its values with which a commit survives a crash of the machine."""
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
        self.engine, self._file = _engine(url)
        self.is_sqlite = self._file is not None
        self.standing = Standing() if self._file is None else self._file.standing
        # A single statement needs no transaction: three round trips to the database become one.
        self._statements = (
            self.engine.execution_options(sqlite_begin=None)
            if self.is_sqlite
            else self.engine.execution_options(isolation_level="AUTOCOMMIT")
        )
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        # SQLite's writers wait for each other anyway, by polling; within a process they queue here instead, in order.
        self._turn = asyncio.Lock() if self.is_sqlite else nullcontext()
        self._point_reads: list[PointReads] = []

    async def open(self) -> None:
        """Connect, and make sure that what is committed stays.

        Raises ConfigurationError for a setting that is not durable, StoreUnavailableError.
        """
        ask, settings = _DURABLE[self.engine.dialect.name]
        async with self.statement() as connection:
            for setting, durable in settings.items():
                value = str((await connection.execute(sa.text(ask.format(setting)))).scalar_one())
                if value not in durable:
                    raise ConfigurationError(
                        f"AUTHSVC_DATABASE_URL: the database would lose what it committed: {setting} is {value}, "
                        f"and must be {' or '.join(durable)}"
                    )

    async def close(self) -> None:
        """Close the connections."""
        for reads in self._point_reads:
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
        """Give a connection on which each statement stands for itself."""
        async with self._in_view(), _connected(self._statements) as connection:
            yield connection

    def point_reads(self, sql: str) -> PointReads:
        """Return what runs a statement for some values; `{}` in it is the list of them, as in `IN {}`."""
        reads: PointReads
        if self._file is not None:
            reads = SqliteReads(self._file.connect, self._file.check_lately, sql.format("({})"), self._read)
        else:
            reads = PostgresReads(self._connect_postgres, sql.replace("IN {}", "= ANY($1)"), self._read)
        self._point_reads.append(reads)
        return reads

    async def _connect_postgres(self) -> Any:
        pooled = await self.engine.raw_connection()
        driver = pooled.driver_connection
        pooled.detach()
        return driver

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

        Where it raises StoreLostError at the end, it was committed to what nobody may ever find.
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
        async with _available():
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
        """Call `notified` at each notification of PostgreSQL, and once at first; return when the connection is lost."""
        async with self.statement() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
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
                raise StoreUnavailableError(_reason(error)) from error
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


def _engine(url: str) -> tuple[AsyncEngine, SqliteFile | None]:
    try:
        parsed = sa.make_url(url)
        urlsplit(url)  # finds broken brackets, which the driver would at each connection
    except (exc.ArgumentError, ValueError):  # the latter also for a port
        raise ConfigurationError("AUTHSVC_DATABASE_URL: not a database URL") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        path = sqlite_path(parsed.database)
        return sqlite_engine(path), SqliteFile(path)
    if backend == "postgresql":
        try:
            engine = create_async_engine(
                parsed.set(drivername="postgresql+asyncpg"),
                hide_parameters=True,
                pool_size=10,
                pool_timeout=_POOL_TIMEOUT_SECONDS,
                connect_args={
                    "timeout": _COMMAND_TIMEOUT_SECONDS,
                    "command_timeout": _COMMAND_TIMEOUT_SECONDS,
                    # A standby lags behind: it would say that a revoked key is active. A primary that is demoted
                    # restarts, so a look at each connection is enough.
                    "target_session_attrs": "primary",
                    "server_settings": {"application_name": "authsvc", "synchronous_commit": "on"},
                },
            )
        except exc.ArgumentError as error:  # such as several hosts without ports
            raise ConfigurationError(f"AUTHSVC_DATABASE_URL: {error}") from None
        return engine, None
    raise ConfigurationError("AUTHSVC_DATABASE_URL: expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")


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


@asynccontextmanager
async def _available() -> AsyncIterator[None]:
    """Turn what drivers raise while the database is out of reach into StoreUnavailableError."""
    try:
        yield
    except (exc.TimeoutError, exc.NoResultFound, OSError, TimeoutError, sqlite3.Error) as error:
        raise StoreUnavailableError(_reason(error)) from error
    except exc.DBAPIError as error:
        sqlstate = str(getattr(error.orig, "sqlstate", None) or "")
        if sqlstate.startswith(_REFUSING):
            raise StoreRefusedError(_reason(error)) from error
        passes = isinstance(error, _PASSING_KINDS) or sqlstate.startswith(_PASSING)
        if passes or error.connection_invalidated:
            raise StoreUnavailableError(_reason(error)) from error
        raise


def _reason(error: Exception) -> str:
    """Return the server's own words, which SQLAlchemy wraps twice: they name roles and databases, never a password."""
    driver = getattr(error, "orig", None)
    cause = getattr(driver, "__cause__", None) or driver or error
    return str(cause).partition("\n")[0] or type(cause).__name__
