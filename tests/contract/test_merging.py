"""Merging on real stores: no reader and no crash sees an entry twice, or misses one."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from httpbridge.log_store.merging import FULL_ENTRIES, MergeLimits, Merger, Small, plan
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.schema import chunks
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import open_sink, open_sql_sink, store_at
from httpbridge.log_store.tail import LogTail, newest_cursor
from tests.contract.test_log_sink import Clock, batch

EVERYTHING = LogFilter(project_id="demo", since=datetime(1, 1, 1, tzinfo=UTC))
PROJECTS = ["demo", "a", "b", "c", "d"]
AT_ONCE = MergeLimits(chunks_min=4, age_seconds=-9)

WRITE_AND_MERGE = """
import asyncio, itertools, os, signal, sys
from httpbridge.log_store.merging import Merger
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.sink import open_sink, store_at
from tests.contract.test_log_sink import Clock, batch
from tests.contract.test_merging import AT_ONCE, PROJECTS

async def main(url, name, killed_in):
    store = store_at(url)
    transact = store.transact
    turns = itertools.count(1)

    def and_killed(work, connection):
        result = work(connection)
        if next(turns) == int(killed_in):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    store.transact = lambda work: transact(lambda connection: and_killed(work, connection))
    sink = await open_sink(store, monotonic=Clock())
    merger = Merger(store, ReadStore(url), monotonic=Clock(), limits=AT_ONCE)

    async def write():
        for number in itertools.count():
            await asyncio.gather(
                *(sink.write(batch(f"{name} {number} a", f"{name} {number} b", project_id=id_)) for id_ in PROJECTS)
            )
            print(number, flush=True)

    async def merge():
        while True:
            await merger.merge()

    await asyncio.gather(write(), merge())

asyncio.run(main(*sys.argv[1:]))
"""


async def messages(reader: ReadStore, project_id: str = "demo") -> list[str]:
    selection = LogFilter(project_id=project_id, since=EVERYTHING.since)
    return [log.message async for log in read(reader, selection)]


async def chunk_entries(reader: ReadStore) -> list[int]:
    return [entries for (entries,) in await reader.rows(sa.select(chunks.c.entries).order_by(chunks.c.id))]


async def test_a_writer_that_is_killed_while_it_merges_loses_and_repeats_nothing(
    database_url: str, is_long: bool
) -> None:
    """Each life ends within the transaction of a merge, of which those before are done."""
    await (await open_sql_sink(database_url, monotonic=Clock())).close()
    reader = ReadStore(database_url)
    expected: set[str] = set()
    lives = 20 if is_long else 2
    for life in range(lives):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITE_AND_MERGE, database_url, str(life), str(2 + life), stdout=PIPE
        )
        answered, _ = await process.communicate()
        assert process.returncode == -signal.SIGKILL
        for line in answered.splitlines():
            expected |= {f"{life} {int(line)} a", f"{life} {int(line)} b"}
        for project_id in PROJECTS:
            found = await messages(reader, project_id)
            assert len(found) == len(set(found))
            # At most one batch more: the one that was stored, and not answered.
            assert expected <= set(found)
            assert len(set(found) - expected) <= 2 * (life + 1)
    assert max(await chunk_entries(reader)) > 2
    await reader.close()


async def test_a_query_that_is_under_way_is_not_disturbed(database_url: str) -> None:
    """One state of the store is seen over one connection, before the merge and after it."""
    store = store_at(database_url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(database_url, connections_max=2)
    merger = Merger(store, reader, monotonic=Clock(), limits=AT_ONCE)
    for number in range(8):
        await sink.write(batch(str(number)))
    tail = LogTail(reader, EVERYTHING, await newest_cursor(reader))
    ids = [log.id async for log in read(reader, EVERYTHING)]
    async with reader.connection() as connection:
        before = await connection.rows(sa.select(chunks.c.id))
        await merger.merge()
        assert await connection.rows(sa.select(chunks.c.id)) == before
    assert await chunk_entries(reader) == [8]
    assert [log.id async for log in read(reader, EVERYTHING)] == ids
    assert (await tail.poll()).rows == []  # what was merged has not arrived again
    await sink.write(batch("new"))
    assert [row.log.message for row in (await tail.poll()).rows] == ["new"]
    await reader.close()
    await sink.close()


async def test_two_who_merge_the_same_chunks_merge_them_once(database_url: str) -> None:
    """The lease should not let it happen; the versions do not."""
    store = store_at(database_url)
    sink = await open_sink(store, monotonic=Clock())
    readers = [ReadStore(database_url) for _ in range(2)]
    mergers = [Merger(store, reader, monotonic=Clock(), limits=AT_ONCE) for reader in readers]
    for number in range(12):
        await sink.write(batch(str(number)))
    await asyncio.gather(*(merger.merge() for merger in mergers))
    assert await messages(readers[0]) == [str(number) for number in range(12)]
    assert await chunk_entries(readers[0]) == [12]
    for reader in readers:
        await reader.close()
    await sink.close()


def small(*entries: int, stored_at: int = 0) -> list[Small]:
    return [Small(number, 0, 0, stored_at, number_of, 100 * number_of) for number, number_of in enumerate(entries)]


@pytest.mark.parametrize(
    ("entries", "chunks_min", "merges"),
    [
        ([], 2, []),
        ([1], 2, []),
        ([1, 1], 2, [[0, 1]]),
        ([1, 1, 1], 4, []),
        ([FULL_ENTRIES, 1, 1, FULL_ENTRIES, 1], 2, [[1, 2]]),
        ([1, FULL_ENTRIES, 1], 2, []),
        ([50, 1, 1, 1], 3, [[1, 2, 3]]),
        ([3, 1, 1, 1], 3, [[0, 1, 2, 3]]),
        ([FULL_ENTRIES // 2] * 3, 2, [[0, 1]]),
    ],
)
def test_what_is_merged(entries: list[int], chunks_min: int, merges: list[list[int]]) -> None:
    assert [[chunk.id for chunk in group] for group in plan(small(*entries), chunks_min)] == merges


def test_what_was_stored_on_different_days_is_not_merged() -> None:
    late = [chunk._replace(id=chunk.id + 10, stored_at=86_400) for chunk in small(1, 1)]
    assert [[chunk.id for chunk in group] for group in plan([*small(1, 1), *late], 2)] == [[0, 1], [10, 11]]


def test_an_entry_is_written_anew_a_few_times_at_most() -> None:
    """A project's chunks of one entry each become full ones; how often each is written again is logarithmic."""
    found: list[Small] = []
    written = 0
    for number in range(3 * FULL_ENTRIES):
        found.append(Small(number, 0, 0, 0, 1, 300))
        for group in plan(found, 16):
            entries, size = sum(one.entries for one in group), sum(one.size for one in group)
            written += entries
            first = found.index(group[0])
            found[first : first + len(group)] = [Small(group[0].id, 0, 1, 0, entries, size)]
    assert written <= 4 * 3 * FULL_ENTRIES
    assert len(found) <= 3 * 16 + 8


async def test_at_the_end_only_what_no_commit_can_fall_into_is_merged(database_url: str) -> None:
    """On PostgreSQL another bridge's chunk may have its id by now, and be seen later: ranges of ids never overlap."""
    store = store_at(database_url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(database_url)
    for number in range(3):
        await sink.write(batch(str(number)))
    await Merger(store, reader, monotonic=Clock()).merge(is_last=True)
    assert await chunk_entries(reader) == ([3] if database_url.startswith("sqlite") else [1, 1, 1])
    await reader.close()
    await sink.close()


async def test_merging_ends_in_time_and_goes_on_with_others(database_url: str) -> None:
    store = store_at(database_url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(database_url)
    clock = Clock()

    async def rest(seconds: float) -> None:
        clock.seconds += 1

    for project_id in ("a", "b"):
        for _ in range(2):
            await sink.write(batch(*["x"] * 1000, project_id=project_id))
            await sink.write(batch(*["x"] * 1000, project_id=project_id))
    merger = Merger(store, reader, monotonic=clock, sleep=rest, limits=MergeLimits(chunks_min=2, age_seconds=-9))
    merges = []
    for _ in range(4):
        await merger.merge(until=clock.seconds + 1)
        rows = await reader.rows(sa.select(chunks.c.project_id).where(chunks.c.entries > 1000))
        merges.append(sorted(project_id for (project_id,) in rows))
    assert merges == [["a"], ["a", "b"], ["a", "a", "b"], ["a", "a", "b", "b"]]
    await reader.close()
    await sink.close()


async def test_a_long_backlog_is_merged_in_turns(database_url: str) -> None:
    """Though nothing new arrives between them."""
    store = store_at(database_url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(database_url)
    for number in range(10):
        await sink.write(batch(str(number)))
    limits = MergeLimits(chunks_min=2, age_seconds=-9, listed_max=4)
    merger = Merger(store, reader, monotonic=Clock(), limits=limits)
    turns = []
    for _ in range(4):
        await merger.merge()
        turns.append(await chunk_entries(reader))
    assert turns == [[4, 1, 1, 1, 1, 1, 1], [4, 3, 1, 1, 1], [9, 1], [9, 1]]
    assert await messages(reader) == [str(number) for number in range(10)]
    await reader.close()
    await sink.close()


async def test_what_was_too_young_is_merged_later(database_url: str) -> None:
    """Though nothing new arrives until then."""
    store = store_at(database_url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(database_url)
    merger = Merger(store, reader, monotonic=Clock(), limits=MergeLimits(chunks_min=4, age_seconds=30))

    async def write(number: int) -> None:
        for _ in range(number):
            await sink.write(batch("x"))

    async def grow_older() -> None:
        older = sa.update(chunks).values(stored_at=chunks.c.stored_at - 60)
        await store.transact(lambda connection: connection.execute(older).rowcount)

    await write(4)
    await merger.merge()
    assert await chunk_entries(reader) == [1, 1, 1, 1]
    await grow_older()
    await write(4)
    await merger.merge()
    assert await chunk_entries(reader) == [4, 1, 1, 1, 1]
    await grow_older()
    await merger.merge()
    assert await chunk_entries(reader) == [8]
    await reader.close()
    await sink.close()
