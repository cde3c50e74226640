"""What may not stay goes, on SQLite files and PostgreSQL, and nothing else does."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from authsvc.runtime.database_url import sqlite_url
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.maintenance import Maintenance, MaintenanceLimits
from httpbridge.log_store.merging import MergeLimits, Merger
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import NO_LIMITS, Retainer, Retention, project_data_of, set_retention
from httpbridge.log_store.schema import NowSeconds, chunks, log_store
from httpbridge.log_store.sink import MaintainedStore, SqlSink, open_sink, store_at
from httpbridge.log_store.sqlite_writes import RECLAIMED_PAGES
from tests.contract.test_log_sink import Clock, batch, query, stored_messages
from tests.stored_chunks import incompressible

DAY = 86_400
KEYS = sa.text("SELECT project_id, key FROM idempotency_keys ORDER BY project_id, key")


async def no_pause() -> None:
    return None


class Kept:
    """A store that is written and maintained."""

    def __init__(self, url: str, store: MaintainedStore, sink: SqlSink, reader: ReadStore) -> None:
        self.url, self.store, self.sink, self.reader = url, store, sink, reader

    async def write(self, *messages: str, project_id: str = "demo", days: float = 0) -> None:
        """Store each as a chunk of its own, as if so many days ago."""
        for message in messages:
            await self.sink.write(batch(message, project_id=project_id))
        await self.age(f"id > (SELECT max(id) FROM chunks) - {len(messages)}", days)

    async def age(self, which: str, days: float) -> None:
        await self.run(f"UPDATE chunks SET stored_at = stored_at - {int(days * DAY)} WHERE {which}")

    async def run(self, *statements: str) -> None:
        def work(connection: sa.Connection) -> None:
            for statement in statements:
                connection.exec_driver_sql(statement)

        await self.store.transact(work)

    async def limit(self, project_id: str = "demo", **limits: int | None) -> None:
        await self.store.transact(partial(set_retention, project_id=project_id, **limits))  # type: ignore[arg-type]

    async def retain(self, retention: Retention = NO_LIMITS, **options: Any) -> None:
        await Retainer(self.store, self.reader, retention, pause=no_pause, **options).run()

    async def left(self) -> list[str]:
        return await stored_messages(self.url)


@asynccontextmanager
async def kept_at(url: str) -> AsyncIterator[Kept]:
    store = store_at(url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(url)
    try:
        yield Kept(url, store, sink, reader)
    finally:
        await reader.close()
        await sink.close()


@pytest.fixture
async def kept(database_url: str) -> AsyncIterator[Kept]:
    async with kept_at(database_url) as kept:
        yield kept


async def test_without_limits_everything_stays(kept: Kept) -> None:
    await kept.write("old", days=30_000)
    await kept.write("new")
    await kept.retain()
    assert await kept.left() == ["old", "new"]


async def test_age_counts_from_receipt(kept: Kept) -> None:
    """The entries' own timestamps, all of them of years ago or ahead, mean nothing."""
    await kept.write("older", days=8.1)
    await kept.write("younger", days=6.9)
    await kept.write("of another project", project_id="other", days=7.1)
    with capture_logs() as logged:
        await kept.retain(Retention(days=7))
    assert await kept.left() == ["younger"]
    assert sorted((line["project"], line["entries"], line["reason"], line["log_level"]) for line in logged) == [
        ("demo", 1, "age", "info"),
        ("other", 1, "age", "info"),
    ]


async def test_the_days_of_a_project_go_before_those_of_all(kept: Kept) -> None:
    for name, days in (("short", 1), ("long", 100), ("forever", 0)):
        await kept.limit(name, days=days)
    await kept.limit("again", days=1)
    await kept.limit("again", days=None)
    for name in ("short", "long", "forever", "again", "other"):
        await kept.write(f"{name} 2", project_id=name, days=2.1)
        await kept.write(f"{name} 20", project_id=name, days=20)
        await kept.write(f"{name} 200", project_id=name, days=200)
    await kept.retain(Retention(days=10))
    left = ["again 2", "forever 2", "forever 20", "forever 200", "long 2", "long 20", "other 2"]
    assert sorted(await kept.left()) == left


async def test_a_merged_chunk_goes_when_its_last_entry_does(kept: Kept) -> None:
    await kept.write(*map(str, range(5)))
    merger = Merger(kept.store, kept.reader, monotonic=Clock(), limits=MergeLimits(chunks_min=2, age_seconds=-9))
    await merger.merge(is_last=True)
    await kept.age("TRUE", 3.1)
    await kept.retain(Retention(days=4))
    assert len(await kept.left()) == 5
    await kept.retain(Retention(days=3))
    assert await kept.left() == []


async def test_above_the_bytes_of_a_project_its_oldest_go(kept: Kept) -> None:
    texts = [incompressible(2000) for _ in range(10)]
    await kept.write(*texts)
    await kept.write(*texts[:2], project_id="other")
    await kept.limit(bytes_max=10_000)
    await kept.retain()
    left = await kept.left()
    assert 2 <= len(left) - 2 <= 6
    assert left == [*texts[len(texts) + 2 - len(left) :], *texts[:2]]
    stored = await query(kept.url, sa.text("SELECT sum(length(content)) AS n FROM chunks WHERE project_id = 'demo'"))
    assert int(stored[0]["n"]) <= 10_000
    await kept.retain()
    assert await kept.left() == left


async def test_above_the_bytes_of_the_store_the_oldest_of_all_go_loudly(kept: Kept) -> None:
    texts = [incompressible(2000) for _ in range(12)]
    for number, text in enumerate(texts):
        await kept.write(text, project_id=f"p{number % 3}")
    with capture_logs() as logged:
        await kept.retain(Retention(store_bytes_max=12_000))
    left = await kept.left()
    assert left == texts[len(texts) - len(left) :]
    assert 3 <= len(left) < 8
    assert {(line["event"], line["log_level"], line["reason"]) for line in logged} == {
        ("logs_dropped", "warning", "store_bytes")
    }
    assert sum(line["entries"] for line in logged) == len(texts) - len(left)


async def test_the_bytes_of_the_store_are_those_of_its_file(tmp_path: Path) -> None:
    """Nearly: pages are not full, and other tables have some."""
    path = tmp_path / "logs.db"
    most = 1_000_000
    async with kept_at(sqlite_url(path)) as kept:
        for number in range(60):  # of one page each, and of many
            await kept.write(incompressible(300 if number % 2 else 60_000), project_id=f"p{number % 3}")
        assert await kept.store.scrub()
        assert path.stat().st_size > 1.3 * most
        await kept.retain(Retention(store_bytes_max=most))
        assert await kept.store.scrub()
        assert 0.8 * most < path.stat().st_size <= 1.1 * most


async def test_bytes_that_somebody_else_frees_end_the_search(kept: Kept) -> None:
    """Counted, and erased before they are looked at."""
    await kept.write("a", "b")
    rows, reader = kept.reader.rows, kept.reader

    async def rows_then_gone(statement: Any) -> list[Any]:
        found = await rows(statement)
        await kept.run("DELETE FROM chunks")
        return found

    reader.rows = rows_then_gone  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        await kept.retain(Retention(store_bytes_max=1))


async def test_a_chunk_that_was_written_anew_meanwhile_is_looked_at_again(kept: Kept) -> None:
    """It may have what is not old: after a lease ran out, somebody else merges."""
    await kept.write("old", days=5)
    rows, reader = kept.reader.rows, kept.reader
    is_changed = False

    async def rows_then_merged(statement: Any) -> list[Any]:
        nonlocal is_changed
        found = await rows(statement)
        if not is_changed and "version" in statement.selected_columns:
            is_changed = True
            await kept.run("UPDATE chunks SET version = version + 1")
            await kept.age("TRUE", -5)
        return found

    reader.rows = rows_then_merged  # type: ignore[method-assign]
    await kept.retain(Retention(days=1))
    assert is_changed
    assert await kept.left() == ["old"]


async def test_what_was_dropped_is_counted(kept: Kept) -> None:
    await kept.write("a", "b", "c", days=3)
    await kept.write("other", project_id="other")
    await kept.retain(Retention(days=1))
    (data,) = (await project_data_of(kept.reader)).values()
    ((now,),) = await kept.reader.rows(sa.select(sa.text("max(stored_at) FROM chunks")))
    assert (data.project_id, data.dropped_entries, data.retention_days, data.bytes_max) == ("demo", 3, None, None)
    assert 3 * 512 < data.dropped_bytes < 3 * 1024
    assert data.dropped_at is not None
    assert now <= data.dropped_at <= now + 20
    await kept.limit(days=1)
    await kept.write("d", days=2)
    await kept.retain()
    data = (await project_data_of(kept.reader))["demo"]
    assert (data.dropped_entries, data.retention_days) == (4, 1)


async def test_a_sqlite_file_becomes_smaller(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    async with kept_at(sqlite_url(path)) as kept:
        for _ in range(3):
            await kept.sink.write(batch(*(incompressible(10_000) for _ in range(300))))
        assert await kept.store.scrub()
        full = path.stat().st_size
        assert full > 6_000_000
        await kept.age("id < 3", 2)
        await kept.retain(Retention(days=1))
        assert await kept.store.scrub()
        assert path.stat().st_size < 0.4 * full
        assert len(await kept.left()) == 300


async def test_a_sqlite_file_that_cannot_shrink_is_left_as_it_is(tmp_path: Path) -> None:
    """Made by `sqlite3 .dump`, say: what is free in it is used again."""
    path = tmp_path / "logs.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE before (n)")
    async with kept_at(sqlite_url(path)) as kept:
        await kept.write(*(incompressible(20_000) for _ in range(3)), days=2)
        async with asyncio.timeout(20):
            await kept.retain(Retention(days=1))
        assert await kept.left() == []


def free_pages(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        ((pages,),) = connection.execute("PRAGMA freelist_count")
    return int(pages)


async def test_much_room_is_given_back_at_a_time(tmp_path: Path) -> None:
    """The driver would stop the statement at its first page."""
    path = tmp_path / "logs.db"
    async with kept_at(sqlite_url(path)) as kept:
        await kept.sink.write(batch(*(incompressible(10_000) for _ in range(300))))
        await kept.run("DELETE FROM chunks")
        full = free_pages(path)
        assert full > RECLAIMED_PAGES
        assert await kept.store.reclaim()
        assert free_pages(path) == full - RECLAIMED_PAGES


async def test_a_clean_stop_merges_what_is_left_and_leaves_no_room_free(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    async with kept_at(sqlite_url(path)) as kept:
        await kept.write(*(incompressible(10_000) for _ in range(20)))
        maintained = Maintained(kept.url)
        await maintained.start()
        await maintained.close()
        assert len(await query(kept.url, sa.text("SELECT id FROM chunks"))) == 1
        assert free_pages(path) == 0
        assert len(await kept.left()) == 20


def key(name: str) -> IdempotencyKey:
    return IdempotencyKey(name, sha256(name.encode()).digest())


async def keys_of(kept: Kept) -> list[tuple[str, str]]:
    return [(row["project_id"], row["key"]) for row in await query(kept.url, KEYS)]


async def test_idempotency_keys_of_a_day_ago_are_forgotten(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are."""
    monkeypatch.setattr("httpbridge.log_store.retention.FORGOTTEN_MAX", 3)
    for number in range(10):
        await kept.sink.write(batch("a"), key(f"old {number}"))
    await kept.run(f"UPDATE idempotency_keys SET stored_at = stored_at - {DAY + 10}")
    for number in range(4):
        await kept.sink.write(batch("a"), key(f"new {number}"))
    await kept.run(f"UPDATE idempotency_keys SET stored_at = stored_at - {DAY - 60} WHERE key = 'new 0'")
    await kept.retain()
    assert await keys_of(kept) == [("demo", f"new {number}") for number in range(4)]


async def test_of_too_many_idempotency_keys_the_oldest_are_forgotten(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.retention.FORGOTTEN_MAX", 3)
    for number in range(12):
        await kept.sink.write(batch("a"), key(f"{number:02}"))
        await kept.run(f"UPDATE idempotency_keys SET stored_at = stored_at - {1000 - number} WHERE key = '{number:02}'")
    await kept.sink.write(batch("a", project_id="other"), key("few"))
    with capture_logs() as logged:
        await kept.retain(keys_max=4)
    assert await keys_of(kept) == [*(("demo", f"{number:02}") for number in range(8, 12)), ("other", "few")]
    assert [(line["event"], line["project"], line["keys"]) for line in logged] == [
        ("idempotency_keys_forgotten", "demo", 8)
    ]


# One of several processes at a time.


class Turns:
    """A sleep that lasts until the test says so."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def sleep(self, seconds: float) -> None:
        if seconds < 1:
            await self.pause()
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(ended)
        await ended

    async def pause(self) -> None:
        """Rest within a turn."""

    async def one(self) -> None:
        """Let it have one turn, to its end."""
        (await self._waiting.get()).set_result(None)
        self._waiting.put_nowait(await self._waiting.get())


NO_MERGES = MergeLimits(chunks_min=100, quiet_seconds=2**40)
NO_WAITING = MaintenanceLimits(retention_seconds=0)


class Maintained:
    """A process that maintains a store."""

    def __init__(
        self,
        url: str,
        turns: Turns | None = None,
        merge_limits: MergeLimits = NO_MERGES,
        limits: MaintenanceLimits = NO_WAITING,
    ) -> None:
        self.turns = turns or Turns()
        self.clock = Clock()
        self.store = store_at(url)
        self.maintenance = Maintenance(
            self.store,
            ReadStore(url),
            Retention(days=1),
            monotonic=self.clock,
            sleep=self.turns.sleep,
            limits=limits,
            merge_limits=merge_limits,
        )

    async def start(self) -> None:
        await self.store.open()
        self.maintenance.start()

    async def close(self) -> None:
        await self.maintenance.close()
        await self.store.close()

    async def one_turn(self) -> None:
        """Start, have one turn, and end."""
        await self.start()
        try:
            await self.turns.one()
        finally:
            await self.close()


async def test_one_of_two_maintains_and_the_other_takes_over(kept: Kept) -> None:
    first, second = Maintained(kept.url), Maintained(kept.url)
    for one in (first, second):
        await one.start()

    async def drops(one: Maintained) -> bool:
        await kept.write("old", days=2)
        await one.turns.one()
        is_dropped = await kept.left() == []
        await kept.run("DELETE FROM chunks")
        return is_dropped

    try:
        assert await drops(first)
        assert not await drops(second)
        assert await drops(first)
        await kept.run("UPDATE log_store SET maintained_until = maintained_until - 120")  # killed, a while ago
        assert await drops(second)
        assert not await drops(first)
        await second.maintenance.close()
        assert await drops(first)
    finally:
        await first.maintenance.close()
        for one in (first, second):
            await one.store.close()


async def test_retention_goes_before_a_backlog_of_merging(kept: Kept) -> None:
    """What is to be dropped is gone before the first merge, which is what may take long."""
    at_merges: list[list[str]] = []

    class Noting(Turns):
        async def pause(self) -> None:
            rows = await kept.reader.rows(sa.select(sa.func.count()).where(chunks.c.version > 0))
            if rows[0][0]:
                at_merges.append(await kept.left())

    merge_limits = MergeLimits(chunks_min=2, age_seconds=-9)
    maintained = Maintained(kept.url, Noting(), merge_limits, MaintenanceLimits())
    await kept.write("old", days=2, project_id="another")
    for project_id in ("a", "b"):
        await kept.write("1", "2", "3", "4", project_id=project_id)
    await maintained.one_turn()
    assert [sorted(left) for left in at_merges] == [sorted("11223344")] * 2


async def test_a_turn_that_takes_long_keeps_the_lease(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpbridge.log_store.retention._DROPPED_MAX", 1)
    lasting: list[bool] = []

    class Slow(Turns):
        async def pause(self) -> None:
            maintained.clock.seconds += 25
            await kept.run("UPDATE log_store SET maintained_until = maintained_until - 25")
            now = sa.select(NowSeconds() < log_store.c.maintained_until)
            lasting.append((await kept.reader.rows(now))[0][0])

    maintained = Maintained(kept.url, Slow())
    await kept.write(*map(str, range(9)), days=2)
    await maintained.one_turn()
    assert len(lasting) >= 9
    assert all(lasting)


async def test_who_has_lost_the_lease_stops_at_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped for long, say, and then going on in the middle."""
    monkeypatch.setattr("httpbridge.log_store.retention._DROPPED_MAX", 1)

    class Stopped(Turns):
        async def pause(self) -> None:
            maintained.clock.seconds += 100
            await kept.run(
                f"UPDATE log_store SET maintainer = 'another', maintained_until = {2**40}",
            )

    maintained = Maintained(kept.url, Stopped())
    await kept.write(*map(str, range(9)), days=2)
    await maintained.start()
    try:
        await maintained.turns.one()
        assert len(await kept.left()) == 8
        await maintained.turns.one()
    finally:
        await maintained.close()
    assert len(await kept.left()) == 8
