"""A statement that is run very often, prepared, on a connection of its own and past SQLAlchemy.

Through SQLAlchemy such a read costs over half a millisecond, and its database a hundredth of that. Whatever it fails
with, it is tried again by a fallback over the pool, which knows all errors; the next read is prepared again.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from authsvc.errors import StoreUnavailableError
from authsvc.runtime.gather import Gather
from authsvc.runtime.postgres import Connection

Row: TypeAlias = Sequence[Any]
Value: TypeAlias = bytes | int
Rows: TypeAlias = Mapping[Value | None, Row]
"""By their first column: the value that each was found for, None where none was found."""
Fallback: TypeAlias = Callable[[str, tuple[Any, ...]], Awaitable[Sequence[Row]]]
"""Runs a statement with its parameters on a connection of the pool."""

_VALUES_MAX = 1024
"""In one statement on PostgreSQL."""

_WAITING_VALUES_MAX = 64 * _VALUES_MAX
"""For the statements after the one that is under way."""


class SqliteReads:
    """On SQLite, in the event loop's own thread: another one would cost five times what the read does.

    In WAL mode a reader waits for no writer, nor for a checkpoint; where it would have to, after a crash, it fails at
    once, and the fallback reads. It can wait for the disk, where a page is not in the system's cache.
    """

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], check: Callable[[], None], sql: str, fallback: Fallback
    ) -> None:
        """Take a statement that has `{}` where the values' placeholders go; `check` raises where reading is no use."""
        self._connect = connect
        self._check = check
        self._sql = sql
        self._fallback = fallback
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
        return _by_value(await self._fallback(sql, padded))

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgresReads:
    """On PostgreSQL. While a statement is under way, values gather for the next one, within bounds (see `Gather`)."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], sql: str, fallback: Fallback) -> None:
        """Take a statement with an array of values as its parameter."""
        self._connect = connect
        self._sql = sql
        self._fallback = fallback
        self._connection: Connection | None = None
        self._run: Callable[[list[Value]], Awaitable[Any]]
        self._reads = Gather(
            self._read,
            size=len,
            group_size_max=_VALUES_MAX,
            waiting_size_max=_WAITING_VALUES_MAX,
            fails_waiting=True,
        )

    async def rows(self, values: Sequence[Value]) -> Rows:
        """Read with all that wait. Raises StoreUnavailableError at once when they are too many."""
        try:
            return await self._reads.ask(values)
        except asyncio.QueueFull:
            raise StoreUnavailableError(f"{self._reads.waiting_size} keys wait to be read already") from None

    async def _read(self, group: list[Sequence[Value]]) -> Rows:
        values = [value for values in group for value in values]
        try:
            if self._connection is None:
                self._connection = await self._connect()
                self._run = await self._prepared(self._connection)
            if rows := await self._run(values):
                return _by_value(rows)
            self._disconnect()  # a standby, which the pooler has turned to
        except TimeoutError as error:  # the fallback would take as long again
            self._disconnect()
            raise StoreUnavailableError("no answer in time") from error
        except Exception:  # noqa: BLE001 - the fallback raises it again, turned into ours
            self._disconnect()
        return _by_value(await self._fallback(self._sql, (values,)))

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
        await self._reads.close()
        if self._connection is not None:
            await self._connection.close(timeout=1.0)


def _by_value(rows: Sequence[Row]) -> Rows:
    return {row[0]: row for row in rows}


PreparedReads: TypeAlias = SqliteReads | PostgresReads
"""Their `rows` for some values, and perhaps for others, are of one snapshot, which was taken after the call.

There is one at least. They raise what the fallback does.
"""
