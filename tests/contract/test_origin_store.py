"""What the store of origin counts promises, on SQLite files and PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import origin_store
from httpbridge.log_store.origin_store import OriginCount, OriginStore, SeenOrigin, SeenOrigins, seen_origins
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import origin_counts
from tests.contract.test_log_sink import batch, query, reading_engine, sink_on, stored_messages
from tests.httpbridge.log_store.test_sqlite_store import size

HOUR = datetime(2026, 11, 23, 20, tzinfo=UTC)
NOW = HOUR + timedelta(minutes=15)


@asynccontextmanager
async def stores_on(url: str) -> AsyncIterator[tuple[OriginStore, ReadStore]]:
    """Open a store that a bridge has made."""
    origins, reader = OriginStore(url), ReadStore(url)
    try:
        async with sink_on(url):
            yield origins, reader
    finally:
        await origins.close()
        await reader.close()


async def test_counts_add_up_over_flushes_bridges_and_hours(database_url: str) -> None:
    async with stores_on(database_url) as (store, reader):
        other_bridge = OriginStore(database_url)
        before = HOUR - timedelta(hours=1)
        await store.add(
            [
                OriginCount("demo", HOUR, "https://a.example", 1, 0),
                OriginCount("demo", HOUR, "https://b.example", 0, 5),
                OriginCount("other", HOUR, "https://a.example", 100, 0),
            ],
            NOW,
        )
        await other_bridge.add([OriginCount("demo", HOUR, "https://a.example", 10, 3)], NOW)
        await store.add([OriginCount("demo", before, "https://a.example", 20, 4)], NOW)
        await other_bridge.close()
        a, b = SeenOrigin("https://a.example", 31, 7), SeenOrigin("https://b.example", 0, 5)
        assert await seen_origins(reader, "demo", NOW - timedelta(hours=1)) == SeenOrigins([a, b], 0)
        assert (await seen_origins(reader, "demo", NOW)).origins == [SeenOrigin("https://a.example", 11, 3), b]
        assert await seen_origins(reader, "nobody", NOW) == SeenOrigins([], 0)


async def test_old_counts_are_forgotten(database_url: str) -> None:
    """48 hours are kept, so that 24 can be shown at any time."""
    async with stores_on(database_url) as (store, _):
        for age in (0, 47, 49):
            await store.add([OriginCount("demo", HOUR - timedelta(hours=age), f"https://{age}.example", 1, 0)], NOW)
        await store.add([OriginCount("demo", HOUR, "https://0.example", 1, 0)], NOW)
        rows = await query(database_url, sa.select(origin_counts.c.origin).order_by(origin_counts.c.origin))
        assert [row["origin"] for row in rows] == ["https://0.example", "https://47.example"]


async def test_many_counts_are_added_whole_and_read_bounded(database_url: str) -> None:
    async with stores_on(database_url) as (store, reader):
        await store.add([OriginCount("demo", HOUR, f"https://{n}.example", n, 0) for n in range(1234)], NOW)
        seen = await seen_origins(reader, "demo", NOW)
        assert [origin.allowed for origin in seen.origins] == list(range(1233, 733, -1))
        assert seen.others == 734


async def test_origins_that_are_blocked_push_out_none_that_is_admitted(database_url: str) -> None:
    """Whoever has the key can send any number of them, as often as the rate limit lets through."""
    async with stores_on(database_url) as (store, reader):
        await store.add([OriginCount("demo", HOUR, f"https://{n}.evil.example", 0, 9) for n in range(2400)], NOW)
        await store.add([OriginCount("demo", HOUR, "https://quiet.example", 1, 0)], NOW)
        seen = await seen_origins(reader, "demo", NOW)
        assert seen.origins[0] == SeenOrigin("https://quiet.example", 1, 0)
        assert (len(seen.origins), seen.others) == (500, 1901)


async def test_bridges_that_add_the_same_at_once_all_count(database_url: str) -> None:
    """In whatever order each gives its origins, none waits for another for ever."""
    async with stores_on(database_url) as (_, reader):
        bridges = [OriginStore(database_url) for _ in range(4)]
        counts = [OriginCount("demo", HOUR, f"https://{n}.example", 1, 0) for n in range(300)]
        await asyncio.gather(*(store.add(counts[:: (-1) ** n], NOW) for n, store in enumerate(bridges)))
        await asyncio.gather(*(store.close() for store in bridges))
        assert {origin.allowed for origin in (await seen_origins(reader, "demo", NOW)).origins} == {4}


async def test_a_store_without_the_table_is_unavailable_until_it_is_there(database_url: str) -> None:
    store = OriginStore(database_url)
    with pytest.raises(StoreUnavailableError):
        await store.add([OriginCount("demo", HOUR, "https://a.example", 1, 0)], NOW)
    async with stores_on(database_url) as (_, reader):
        await store.add([OriginCount("demo", HOUR, "https://a.example", 1, 0)], NOW)
        assert (await seen_origins(reader, "demo", NOW)).origins == [SeenOrigin("https://a.example", 1, 0)]
    await store.close()


async def test_a_locked_table_of_counts_keeps_no_log_waiting(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs have a connection of their own, and the counts give up."""
    monkeypatch.setattr(origin_store, "BUSY_SECONDS_MAX", 0.05)
    engine = reading_engine(postgres_url)
    store = OriginStore(postgres_url)
    async with sink_on(postgres_url) as sink, engine.begin() as other:
        await other.execute(sa.text("LOCK TABLE origin_counts"))
        adding = asyncio.create_task(store.add([OriginCount("demo", HOUR, "https://a.example", 1, 0)], NOW))
        await sink.write(batch("stored meanwhile"))
        with pytest.raises(StoreUnavailableError, match="lock timeout"):
            await adding
    await store.close()
    await engine.dispose()
    assert await stored_messages(postgres_url) == ["stored meanwhile"]


@pytest.mark.parametrize(("pages", "is_begun_anew"), [(origin_store.CHECKPOINT_PAGES, False), (200, True)])
async def test_writing_counts_leaves_the_wal_to_the_sink_while_it_is_small(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, pages: int, is_begun_anew: bool
) -> None:
    """A checkpoint in the wrong moment keeps the next log waiting; and where no log comes, somebody has to do it."""
    monkeypatch.setattr(origin_store, "CHECKPOINT_PAGES", pages)
    async with stores_on(sqlite_url) as (store, _):
        path = sqlite_url.removeprefix("sqlite:///") + "-wal"
        counts = [OriginCount("demo", HOUR, f"https://{n}.example", n, 0) for n in range(1000)]
        sizes = []
        for _ in range(90):
            await store.add(counts, NOW)
            sizes.append(size(path))
        assert (sizes[-1] < 5_000_000) is is_begun_anew  # SQLite's own measure is 1,000 pages
