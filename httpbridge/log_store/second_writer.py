"""Writing to a log store beside its bridge, now and then: erasures, and what projects may keep.

A `SqliteStore` is not for that: it is made for the process that stores logs, and closing it would take away the locks
of other connections in the same process.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import sqlite_engine, sqlite_uri
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.database import COMMIT_SECONDS_MAX, EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.log_store.sqlite_writes import reclaim, scrub

_CHECKPOINT_PAGES = 8192
"""Of WAL, as for counts of origins: the bridge copies it sooner where one runs."""

_BUSY_SECONDS_MAX = 10.0
"""How long a transaction waits for those of a bridge, longer than they for each other: nobody waits for this one."""

T = TypeVar("T")


class SecondWriter:
    """`sink.Transactions` on a store that a bridge has made, over a connection for each; whoever uses it reads first.

    Raises StoreSetupError for another kind of address.
    """

    def __init__(self, url: str) -> None:
        address = parse_database_url(url)
        self.is_sqlite = isinstance(address, Path)
        if isinstance(address, Path):
            self._engine = sqlite_engine(
                sqlite_uri(address),
                "synchronous=FULL",
                "secure_delete=ON",
                f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
                begin="IMMEDIATE",
                busy_seconds=_BUSY_SECONDS_MAX,
                poolclass=sa.NullPool,
            )
        else:
            timeout = str(int(COMMIT_SECONDS_MAX * 1000))
            self._engine = postgres_engine(address, synchronous_commit="on", statement_timeout=timeout)

    async def close(self) -> None:
        """Let go of the store."""
        await self._engine.dispose()

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """See `sink.Transactions`."""
        async with self._connection() as connection, connection.begin():
            return await connection.run_sync(work)

    async def reclaim(self) -> bool:
        """See `sink.Transactions`."""
        return await self._on_sqlite(reclaim)

    async def scrub(self) -> bool:
        """See `sink.Transactions`."""
        return not self.is_sqlite or await self._on_sqlite(scrub)

    async def _on_sqlite(self, work: Callable[[Any], bool]) -> bool:
        """Do something outside of transactions, with the driver's connection."""
        if not self.is_sqlite:
            return False
        async with self._connection() as connection:
            return await connection.run_sync(lambda synchronous: work(synchronous.connection.dbapi_connection))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                yield connection
        except EXPECTED_ERRORS as error:
            failure = translated(error)
            if isinstance(failure, StoreSetupError):
                raise failure from None
            raise StoreUnavailableError(str(failure)) from None
