"""Look-ups on PostgreSQL past SQLAlchemy: what gathers while one is under way, and what happens when it hangs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from authsvc.errors import StoreUnavailableError
from authsvc.runtime.database_url import PostgresAddress, parse_database_url
from authsvc.runtime.postgres import Connection, Postgres
from authsvc.storage.prepared_reads import PostgresReads, Row

# A value's row says how many were asked for with it.
SQL = "SELECT value, cardinality($1::bytea[]) FROM things WHERE value = ANY($1)"


class Things:
    """A table with one value, and a reader of it that gives up a statement after so many seconds."""

    def __init__(self, url: str, statement_seconds_max: float) -> None:
        self.connects = 0
        self._url = url
        address = parse_database_url(url)
        assert isinstance(address, PostgresAddress)
        self._postgres = Postgres(address, program="tests", command_seconds_max=statement_seconds_max, settings={})
        self.reads = PostgresReads(self._connect, SQL, self._usual_way)

    async def _connect(self) -> Connection:
        self.connects += 1
        return await self._postgres.connect()

    async def _usual_way(self, sql: str, parameters: tuple[Any, ...]) -> Sequence[Row]:
        raise AssertionError("nothing fails here that the usual way is for")

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Let all statements about the table hang, and one of ours be under way."""
        connection = await asyncpg.connect(self._url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE things")
                yield
        finally:
            await connection.close()

    def ask(self, *values: bytes) -> "asyncio.Task[int]":
        """Return how many values were asked for with these."""

        async def asked() -> int:
            rows = await self.reads.rows(values)
            return int(rows[b"here"][1])

        return asyncio.create_task(asked())


@asynccontextmanager
async def things(url: str, statement_seconds_max: float = 60.0) -> AsyncIterator[Things]:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE things AS SELECT 'here'::bytea AS value")
    await connection.close()
    made = Things(url, statement_seconds_max)
    try:
        yield made
    finally:
        await made.reads.close()


async def test_what_is_asked_during_a_statement_goes_into_the_next(postgres_url: str) -> None:
    async with things(postgres_url) as table:
        async with table.locked():
            asking = [table.ask(b"here")]
            await asyncio.sleep(0)  # for it to be under way
            asking += [table.ask(b"here", b"there") for _ in range(600)]
            await asyncio.sleep(0)
        assert await asyncio.gather(*asking) == [1, *[1024] * 512, *[176] * 88]
        assert table.connects == 1


async def test_who_goes_away_leaves_nothing_behind(postgres_url: str) -> None:
    """Neither is it read, nor does it count to what may wait."""
    async with things(postgres_url) as table:
        async with table.locked():
            first = table.ask(b"here")
            await asyncio.sleep(0)
            for _ in range(20):
                gone = [table.ask(*[b"gone"] * 100) for _ in range(250)]
                await asyncio.sleep(0)
                for task in gone:
                    task.cancel()
                await asyncio.wait(gone)
            last = table.ask(b"here")
            await asyncio.sleep(0)
        assert [await first, await last] == [1, 1]


async def test_what_waits_is_bounded_and_beyond_that_callers_are_told_at_once(postgres_url: str) -> None:
    async with things(postgres_url) as table:
        async with table.locked():
            asking = [table.ask(b"here")]
            await asyncio.sleep(0)
            asking += [table.ask(*[b"here"] * 1024) for _ in range(64)]
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailableError) as refused:
                await table.ask(b"here")
            assert refused.value.reason == "65536 keys wait to be read already"
            asking.pop().cancel()
            await asyncio.sleep(0)
            asking.append(table.ask(b"here"))
            await asyncio.sleep(0)
        assert await asyncio.gather(*asking) == [1, *[1024] * 63, 1]


async def test_a_database_that_hangs_fails_all_who_wait_at_once_and_is_tried_again(postgres_url: str) -> None:
    """One group after the other they would each wait for as long."""
    async with things(postgres_url, statement_seconds_max=1.0) as table:
        async with table.locked():
            asking = [table.ask(b"here")]
            await asyncio.sleep(0)
            asking += [table.ask(*[b"here"] * 1024) for _ in range(3)]
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            assert [getattr(outcome, "reason", outcome) for outcome in outcomes] == ["no answer in time"] * 4
            assert table.connects == 1
        assert await table.ask(b"here") == 1
        assert table.connects == 2
