"""The connection to the key service's database: SQLite or PostgreSQL, and how each begins a transaction."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from authsvc.errors import StoreRefusedError, StoreUnavailableError
from authsvc.runtime.database_url import SetupError, parse_database_url
from authsvc.runtime.environment import ConfigurationError
from authsvc.runtime.postgres import DRIVER_ERRORS, Postgres, check_settings, separate
from authsvc.runtime.sql import check_durable, is_refusal, reason, sqlstate
from authsvc.runtime.sqlite_files import stamp
from authsvc.storage.prepared_reads import PostgresReads, PreparedReads, Row, SqliteReads
from authsvc.storage.sqlite import SqliteFile

CHANNEL = "authsvc"
"""PostgreSQL's notification channel: something was committed that a replica may be waiting for."""

_POOL_TIMEOUT_SECONDS = 5
_COMMAND_TIMEOUT_SECONDS = 5
_LISTENING_CHECK_SECONDS = 30.0
_MIGRATION_LOCK = 0x6474_6175  # any number that nothing else locks in this database

_PASSING = ("08", "25006", "3F000", "40", "42P01", "53", "55", "57", "58")
"""PostgreSQL's classes of errors that pass: no connection, a server that takes no writes (yet), no schema or table (of
a database whose dump is yet to be restored), conflict with another transaction, no room, something in use, cancelled or
going down, a fault of its system."""
_PASSING_KINDS = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)
"""What drivers themselves raise: SQLite's of locks and disks, asyncpg's of connections, and of a standby."""
_DATABASE_ERRORS = (
    *(sa.exc.DBAPIError, sa.exc.TimeoutError, sa.exc.NoResultFound, OSError, TimeoutError, sqlite3.Error),
    *DRIVER_ERRORS,
)


@asynccontextmanager
async def _available() -> AsyncIterator[None]:
    """Turn what drivers raise while the database is unavailable into StoreUnavailableError."""
    try:
        yield
    except _DATABASE_ERRORS as error:
        if is_refusal(error):
            raise StoreRefusedError(reason(error)) from error
        if isinstance(error, sa.exc.DBAPIError):
            passes = isinstance(error, _PASSING_KINDS) or sqlstate(error).startswith(_PASSING)
            if not (passes or error.connection_invalidated):
                raise
        raise StoreUnavailableError(reason(error)) from error


class Database:
    """One database. Its connections raise StoreUnavailableError while it cannot answer.

    That is a StoreRefusedError where waiting does not help.
    """

    def __init__(self, url: str) -> None:
        """Take `sqlite:///FILE` or `postgresql://…`; raise ConfigurationError for another kind of database."""
        self._postgres: Postgres | None = None
        self.file: SqliteFile | None = None
        """What the database is on SQLite."""
        try:
            address = parse_database_url(url)
            if isinstance(address, Path):
                self.file = SqliteFile(address)
                self.engine = self.file.engine()
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
        except SetupError as error:
            raise ConfigurationError(f"AUTHSVC_DATABASE_URL: {error}") from None
        self.is_sqlite = self.file is not None
        self._statements = self.engine.execution_options(sqlite_begin=None)
        self._writing = self.engine.execution_options(sqlite_begin="IMMEDIATE")
        # SQLite's writers wait for each other anyway, by polling; within a process they queue here instead, in order.
        self._turn = asyncio.Lock() if self.is_sqlite else nullcontext()
        self._prepared_reads: list[PreparedReads] = []

    async def open(self) -> None:
        """Connect; raise StoreRefusedError for settings that would lose commits, StoreUnavailableError."""
        async with self.statement() as connection:
            if not self.is_sqlite:
                await check_settings(connection)
            else:
                await connection.run_sync(lambda sync: check_durable(sync.connection.dbapi_connection))

    @property
    def notifies(self) -> bool:
        """Whether `listen` is told of what other processes commit."""
        return self._postgres is not None and not self._postgres.is_pooled

    async def close(self) -> None:
        """Close the connections."""
        for reads in self._prepared_reads:
            await reads.close()
        await self.engine.dispose()
        if self.file is not None:
            self.file.close()

    @property
    def is_lost(self) -> bool:
        """Whether the last look at the files of SQLite found others: for those who ask too often to look themselves."""
        return self.file is not None and self.file.lost is not None

    def check(self) -> None:
        """Raise StoreLostError when what is read and written is not what the next start would find."""
        if self.file is not None:
            self.file.check()

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
            assert self.file is not None  # noqa: S101 - for the type checker
            reads = SqliteReads(self.file.connect, self.file.check_lately, sql.format("({})"), self._read)
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
        """Give a connection in a transaction that writes, committed at the end unless the body raises or rolls back."""
        async with self._turn, self._in_view(), _connected(self._writing) as connection:
            await connection.begin()
            yield connection
            await connection.commit()

    async def stamp(self, connection: AsyncConnection, number: int) -> None:
        """Stamp what is committed: the file of SQLite is known by it from copies of it that are older."""
        if self.is_sqlite:
            await connection.exec_driver_sql(stamp(number))

    async def notify(self, connection: AsyncConnection) -> None:
        """Tell those who listen, with the commit; not at all if there is none."""
        if not self.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))

    @asynccontextmanager
    async def _in_view(self) -> AsyncIterator[None]:
        """Make sure before and after that it is the database that the next start would find."""
        async with _available():
            if self.file is not None and not self.file.is_open:
                await asyncio.to_thread(self.file.open)
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
        assert self._postgres is not None  # noqa: S101 - for the type checker
        if self._postgres.is_pooled:  # by the newest connection
            return
        async with _available():
            connection = await self._postgres.connect()
            try:
                if connection.is_pooled:
                    return
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _: lost.set())
                await connection.add_listener(channel, lambda *_: notified())
                notified()
                while not lost.is_set():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LISTENING_CHECK_SECONDS):
                            await lost.wait()
                            return
                    await connection.execute("SELECT 1")  # a server may be gone without a word
            finally:
                connection.terminate()

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
