"""One statement that is run very often, prepared, on a connection of its own and past SQLAlchemy.

`store` looks keys up with it, and on SQLite `lease_store` the revision; `database` makes
the reader and closes it. Through SQLAlchemy such a read costs over half a millisecond, and
its database a hundredth of that. Whatever the short way fails with, the read is tried again
the usual way, which knows all errors; the short way is open again with the next read.
"""

import asyncio
import sqlite3
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from authsvc.errors import StoreUnavailableError
from authsvc.runtime.postgres import Connection

Row: TypeAlias = Sequence[Any]
Value: TypeAlias = bytes | int
Rows: TypeAlias = Mapping[Value | None, Row]
"""By their first column: the value that each was found for, None where none was found."""
UsualWay: TypeAlias = Callable[[str, tuple[Any, ...]], Awaitable[Sequence[Row]]]
"""Runs a statement with its parameters on a connection of the pool."""

_VALUES_MAX = 1024
"""In one statement on PostgreSQL."""

_WAITING_VALUES_MAX = 64 * _VALUES_MAX
"""For the statements after the one that is under way."""


class PreparedReads(Protocol):
    """Runs the statement."""

    async def rows(self, values: Sequence[Value]) -> Rows:
        """Return the rows for some values, and perhaps for others; raise what the usual way does.

        They are of one snapshot, which was taken after the call, and there is one at least.
        """

    async def close(self) -> None:
        """Close the connection."""


class SqliteReads:
    """On SQLite, in the event loop's own thread.

    A thread to read in would cost five times what the read does. In WAL mode a reader waits for no writer, nor for
    a checkpoint; where it would have to wait nevertheless, after a crash, it fails at once and goes the usual way.
    What it can wait for is the disk, for a page that is not in the system's cache.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], check: Callable[[], None], sql: str, fallback: UsualWay
    ) -> None:
        """Take a statement that has `{}` where the values' placeholders go; `check` raises where reading is no use."""
        self._connect = connect
        self._check = check
        self._sql = sql
        self._usual_way = fallback
        self._connection: sqlite3.Connection | None = None
        self._prepared: dict[int, str] = {}

    async def rows(self, values: Sequence[Value]) -> Rows:
        """Read now."""
        # Few different statements, so that SQLite has them all prepared: their sizes are powers of two.
        size = 1 << (len(values) - 1).bit_length()
        sql = self._prepared.get(size)
        if sql is None:
            sql = self._prepared[size] = self._sql.format(",".join("?" * size))
        padded = (*values, *[values[-1]] * (size - len(values)))
        self._check()
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.execute("PRAGMA query_only=ON")
            return _by_value(self._connection.execute(sql, padded).fetchall())  # all, which ends the snapshot too
        except sqlite3.Error:
            await self.close()
        return _by_value(await self._usual_way(sql, padded))

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgresReads:
    """On PostgreSQL. While a statement is under way, values gather for the next; one that is idle waits for nobody.

    As in a group commit: what waits is bounded, who goes away leaves nothing behind, and a database that does not
    answer fails all who wait by then, so that nobody waits for several failures.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], sql: str, fallback: UsualWay) -> None:
        """Take a statement with an array of values as its parameter."""
        self._connect = connect
        self._sql = sql
        self._usual_way = fallback
        self._connection: Connection | None = None
        self._run: Callable[[list[Value]], Awaitable[Any]]
        self._waiting: OrderedDict[asyncio.Future[Rows], Sequence[Value]] = OrderedDict()
        self._waiting_values = 0
        self._reading: asyncio.Task[None] | None = None

    async def rows(self, values: Sequence[Value]) -> Rows:
        """Read with all that wait. Raises StoreUnavailableError at once when they are too many."""
        if self._waiting_values + len(values) > _WAITING_VALUES_MAX:
            raise StoreUnavailableError(f"{self._waiting_values} keys wait to be read already")
        done: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        self._waiting[done] = values
        self._waiting_values += len(values)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all())
        try:
            return await done
        finally:
            self._take(done)

    def _take(self, done: asyncio.Future[Rows]) -> Sequence[Value]:
        """Return what waits to be read for this caller, which then waits no longer."""
        values = self._waiting.pop(done, ())
        self._waiting_values -= len(values)
        return values

    def _next_group(self) -> dict[asyncio.Future[Rows], Sequence[Value]]:
        group: dict[asyncio.Future[Rows], Sequence[Value]] = {}
        count = 0
        while self._waiting:
            done, values = next(iter(self._waiting.items()))
            count += len(values)
            if group and count > _VALUES_MAX:
                break
            group[done] = self._take(done)
        return group

    async def _read_all(self) -> None:
        while self._waiting:
            group = self._next_group()
            try:
                rows = _by_value(await self._read([value for values in group.values() for value in values]))
            except Exception as error:  # noqa: BLE001 - each of those who wait raises it
                failed = [*group, *self._waiting] if isinstance(error, StoreUnavailableError) else [*group]
                for done in failed:
                    self._take(done)
                    if not done.done():
                        done.set_exception(error)
            else:
                for done in group:
                    if not done.done():  # its caller has gone
                        done.set_result(rows)

    async def _read(self, values: list[Value]) -> Sequence[Row]:
        try:
            if self._connection is None:
                self._connection = await self._connect()
                self._run = await self._prepared(self._connection)
            rows: Sequence[Row] = await self._run(values)
            if rows:
                return rows
            self._disconnect()  # a standby, which the pooler has turned to
        except TimeoutError as error:  # the usual way would take as long again
            self._disconnect()
            raise StoreUnavailableError("no answer in time") from error
        except Exception:  # noqa: BLE001 - the usual way raises it again, turned into ours
            self._disconnect()
        return await self._usual_way(self._sql, (values,))

    async def _prepared(self, connection: Connection) -> Callable[[list[Value]], Awaitable[Any]]:
        """Return what runs the statement; on a standby, which a pooler may turn to at any time, it finds nothing."""
        sql = self._sql
        if connection.is_pooled:
            sql = f"SELECT * FROM ({sql}) AS found WHERE NOT pg_is_in_recovery()"  # noqa: S608 - no input
        return (await connection.prepare(sql)).fetch

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close(timeout=1.0)


def _by_value(rows: Sequence[Row]) -> Rows:
    return {row[0]: row for row in rows}
