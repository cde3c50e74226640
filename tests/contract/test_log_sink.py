"""What every LogSink promises, on real stores: SQLite files, PostgreSQL, and a file by way of its one writer."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import sqlite_engine, sqlite_uri
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import Chunk, instant_text
from httpbridge.log_store.database import postgres_engine
from httpbridge.log_store.fair_queue import Bounds
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import chunks, log_store
from httpbridge.log_store.sink import SqlSink, Store, open_sink, open_sql_sink
from httpbridge.logs import Level, LogBatch, LogEntry
from tests.contract.conftest import written_store
from tests.httpbridge.ingest.test_log_parser import batch_of
from tests.stored_chunks import SELECT, entries_of

RECEIVED_AT = datetime(2026, 11, 23, 20, 15, 0, 123456, tzinfo=UTC)


@dataclass
class Clock:
    """A monotonic clock that stands still until it is moved."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def batch(*messages: str, **changes: Any) -> LogBatch:
    entries = [LogEntry(Level.INFO, message) for message in messages]
    fields: dict[str, Any] = {
        "project_id": "demo", "key_id": "key-1", "received_at": RECEIVED_AT, "service": "api",
        "environment": "production", "release": None, "entries": entries,
    }  # fmt: skip
    return LogBatch(**(fields | changes))


def reading_engine(url: str) -> AsyncEngine:
    address = parse_database_url(url)
    if isinstance(address, Path):
        return sqlite_engine(sqlite_uri(address), begin="DEFERRED", poolclass=sa.NullPool)
    return postgres_engine(address)


async def query(url: str, statement: sa.Executable) -> list[dict[str, Any]]:
    """Read the store by a connection of its own."""
    engine = reading_engine(url)
    try:
        async with engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]
    finally:
        await engine.dispose()


async def stored_entries(url: str) -> list[dict[str, Any]]:
    """Return what is in the chunks of the store, in the order of commits."""
    rows = await query(url, sa.text(SELECT))
    return entries_of((row["id"], row["project_id"], row["content"]) for row in rows)


async def stored_messages(url: str) -> list[str]:
    return [entry["message"] for entry in await stored_entries(url)]


@asynccontextmanager
async def sink_on(
    url: str, bounds: Bounds | None = None, monotonic: Callable[[], float] | None = None
) -> AsyncIterator[SqlSink]:
    sink = await open_sink(written_store(url), monotonic=monotonic or Clock(), bounds=bounds)
    try:
        yield sink
    finally:
        await sink.close()


async def test_long_names_that_each_entry_repeats_hold_nobody_up(written_url: str) -> None:
    """34 kB that become 4 MB: others have a turn after each 64 entries, and all of it is stored."""
    names = {"service": "\x01" * 256, "environment": "\x02" * 256, "release": "\x03" * 128}
    async with sink_on(written_url) as sink:
        writing = sink.write(batch(*map(str, range(1000)), **names))
        turns = 0
        while writing.send(None) is None:  # until it waits for its commit, which closing the sink waits for, too
            turns += 1
        assert turns == 16
        writing.close()
        await sink.write(batch(*map(str, range(1000, 2000)), **names))
    stored = await stored_entries(written_url)
    assert sorted(int(entry["message"]) for entry in stored) == list(range(2000))
    assert {(entry["service"], entry["environment"], entry["release"]) for entry in stored} == {tuple(names.values())}


async def test_entries_are_read_back_whole_and_exactly(written_url: str) -> None:
    """Every field comes back as it went in; the batch fills in what an entry leaves out."""
    full = LogEntry(
        level=Level.ERROR, message="päng 🚀 \x01 \\ '\" % \n\t", timestamp=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        metadata='{"big": 123456789012345678901234567890, "e": 1.0E+2, "a":1, "a":2}', trace_id="t", span_id="s",
        request_id="r", vercel_id="v", context="c", release="entry",
    )  # fmt: skip
    bare = LogEntry(level=Level.DEBUG, message="")
    async with sink_on(written_url) as sink:
        await sink.write(batch(release="batch", service="sørvice", environment="test", entries=[full, bare]))
    first, second = await stored_entries(written_url)
    common = {
        "project_id": "demo", "key_id": "key-1", "received_at": RECEIVED_AT,
        "service": "sørvice", "environment": "test",
    }  # fmt: skip
    assert first == common | {
        "id": first["id"], "level": "error", "message": full.message, "timestamp": full.timestamp,
        "metadata": full.metadata, "trace_id": "t", "span_id": "s", "request_id": "r", "vercel_id": "v", "context": "c",
        "release": "entry",
    }  # fmt: skip
    assert second == common | {
        "id": second["id"], "level": "debug", "message": "", "timestamp": RECEIVED_AT, "metadata": None,
        "trace_id": None, "span_id": None, "request_id": None, "vercel_id": None, "context": None, "release": "batch",
    }  # fmt: skip
    assert first["id"] < second["id"]


async def test_characters_that_no_store_has_a_place_for_are_stored_as_their_replacement(written_url: str) -> None:
    """U+0000 and halves of surrogate pairs, in whatever field of a body they came."""
    half = r"\ud83d a\u0000b \ude00" + "\udc80"
    names = ("message", "trace_id", "span_id", "request_id", "vercel_id", "context", "release")
    entry = ", ".join(f'"{name}": "{half}"' for name in names)
    entry += f', "level": "info", "metadata": {{"{half}": [1.10, "{half}"]}}'
    body = f'{{"service": "{half}", "environment": "{half}", "release": "{half}", "logs": [{{{entry}}}]}}'
    async with sink_on(written_url) as sink:
        await sink.write(batch_of(body.encode("utf-8", "surrogatepass")))
    (row,) = await stored_entries(written_url)
    stored = "\ufffd a\ufffdb \ufffd\ufffd"
    assert {row[name] for name in (*names, "service", "environment")} == {stored}
    assert json.loads(row["metadata"]) == {stored: [1.1, stored]}
    assert row["metadata"].count("1.10") == 1


@pytest.mark.parametrize("count", [1, 2, 200, 1000])
async def test_batches_of_every_size_are_stored_whole_and_in_order(written_url: str, count: int) -> None:
    messages = [str(number) for number in range(count)]
    async with sink_on(written_url) as sink:
        await sink.write(batch(*messages))
    assert await stored_messages(written_url) == messages


@pytest.mark.parametrize(
    "instant",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
    ],
)
async def test_every_instant_of_the_contract_round_trips(written_url: str, instant: datetime) -> None:
    async with sink_on(written_url) as sink:
        await sink.write(batch(entries=[LogEntry(Level.INFO, "m", timestamp=instant)]))
    (row,) = await stored_entries(written_url)
    assert row["timestamp"] == instant
    selected = sa.select(chunks.c.first_at, chunks.c.last_at)
    assert await query(written_url, selected) == [dict.fromkeys(("first_at", "last_at"), instant_text(instant))]


async def test_timestamps_sort_as_instants(written_url: str) -> None:
    """The index for "newest of a project" is in the order of time."""
    instants = [datetime(year, 5, 6, tzinfo=UTC) for year in (9999, 1, 2026, 999)]
    instants.append(instants[2] + timedelta(microseconds=1))
    async with sink_on(written_url) as sink:
        for instant in instants:
            await sink.write(batch(entries=[LogEntry(Level.INFO, "m", timestamp=instant)]))
    rows = await query(written_url, sa.select(chunks.c.last_at).order_by(chunks.c.last_at))
    assert [row["last_at"] for row in rows] == [instant_text(instant) for instant in sorted(instants)]


def counted(store: Store) -> list[int]:
    """Note of each commit that the store is asked for how many entries it is of."""
    groups: list[int] = []
    commit = store.commit

    async def commit_counted(chunks: list[Chunk]) -> list[int]:
        groups.append(sum(chunk.entries for chunk in chunks))
        return await commit(chunks)

    store.commit = commit_counted  # type: ignore[method-assign]
    return groups


async def test_concurrent_writes_share_commits(written_url: str) -> None:
    """200 writes at once are stored once each, in a handful of commits."""
    store = written_store(written_url)
    groups = counted(store)
    sink = SqlSink(store, monotonic=Clock(), bounds=None)
    await sink.open()
    await asyncio.gather(*(sink.write(batch(f"{number} a", f"{number} b")) for number in range(200)))
    await sink.close()
    assert len(groups) <= 3
    assert sorted(await stored_messages(written_url)) == sorted(f"{n} {x}" for n in range(200) for x in "ab")


async def test_more_entries_of_a_project_than_a_chunk_has_ids_for_are_several_chunks_of_one_commit(
    written_url: str,
) -> None:
    """All of them are there, in their order, each with an id of its own."""
    store = written_store(written_url)
    groups = counted(store)
    sink = SqlSink(store, monotonic=Clock(), bounds=Bounds(commit_weight_max=10**9, queued_weight_max=10**9))
    await sink.open()
    sent = [[f"{number}/{place}" for place in range(900)] for number in range(10)]
    await asyncio.gather(*(sink.write(batch(*messages)) for messages in sent))
    await sink.close()
    assert groups == [9000]
    entries = await stored_entries(written_url)
    assert [entry["message"] for entry in entries] == [text for messages in sent for text in messages]
    ids = [entry["id"] for entry in entries]
    assert ids == sorted(set(ids))
    rows = await query(written_url, sa.select(chunks.c.entries).order_by(chunks.c.id))
    assert [row["entries"] for row in rows] == [3600, 3600, 1800]


async def test_a_commit_of_many_projects_is_stored_whole(written_url: str) -> None:
    """Of more than SQLite takes in one statement."""
    async with sink_on(written_url) as sink:
        await asyncio.gather(*(sink.write(batch(f"{n}", project_id=f"p{n}")) for n in range(200)))
    entries = await stored_entries(written_url)
    assert [(entry["project_id"], entry["message"]) for entry in entries] == [(f"p{n}", f"{n}") for n in range(200)]


async def test_a_cancelled_writer_undoes_nothing(written_url: str) -> None:
    """The write of a caller that went away is stored, and its neighbours notice nothing."""
    async with sink_on(written_url) as sink:
        writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(3)]
        await asyncio.sleep(0)  # all three are queued
        writes[1].cancel()
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), asyncio.CancelledError, type(None)]
    assert await stored_messages(written_url) == ["0", "1", "2"]


async def test_close_stores_what_was_accepted_and_nothing_after(written_url: str) -> None:
    sink = await open_sink(written_store(written_url), monotonic=Clock(), bounds=Bounds(commit_weight_max=1))
    writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(10)]
    await asyncio.sleep(0)
    await sink.close()
    await asyncio.gather(*writes)
    with pytest.raises(StoreUnavailableError):
        await sink.write(batch("late"))
    assert await stored_messages(written_url) == [str(number) for number in range(10)]


async def test_a_full_queue_refuses_at_once(written_url: str) -> None:
    async with sink_on(written_url, Bounds(queued_items_max=4)) as sink:
        writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(3)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), StoreUnavailableError]
    assert await stored_messages(written_url) == ["0", "1"]


async def test_a_store_of_a_newer_version_is_refused(database_url: str) -> None:
    async with sink_on(database_url):
        pass
    engine = reading_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE log_store SET schema_version = 999"))
    await engine.dispose()
    with pytest.raises(StoreSetupError, match="schema version 999, made by a newer httpbridge"):
        await open_sql_sink(database_url, monotonic=Clock())


def make_file(url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).touch()


@pytest.mark.parametrize("version", [1, 2])
async def test_a_store_of_rows_is_refused_and_the_way_out_named(database_url: str, version: int) -> None:
    """By the sink and by whoever reads. Nothing in it is changed."""
    make_file(database_url)
    engine = reading_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE log_store (id INTEGER, schema_version INTEGER, probes INTEGER)"))
        await connection.execute(sa.text(f"INSERT INTO log_store VALUES (1, {version}, 7)"))
        await connection.execute(sa.text("CREATE TABLE logs (message TEXT)"))
    message = rf"schema version {version}, .* needs 3: .*`httpbridge logs PROJECT .*--json`.*`httpbridge import`"
    with pytest.raises(StoreSetupError, match=message):
        await open_sql_sink(database_url, monotonic=Clock())
    reader = ReadStore(database_url)
    with pytest.raises(StoreSetupError, match=message):
        await reader.rows(sa.select(chunks.c.id))
    await reader.close()
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    await engine.dispose()
    assert sorted(names) == ["log_store", "logs"]
    assert await query(database_url, sa.text("SELECT * FROM log_store")) == [
        {"id": 1, "schema_version": version, "probes": 7}
    ]


async def test_several_bridges_may_start_at_once_on_an_empty_store(written_url: str) -> None:
    sinks = await asyncio.gather(*(open_sink(written_store(written_url), monotonic=Clock()) for _ in range(6)))
    try:
        for sink in sinks:
            await sink.check()
        await asyncio.gather(*(sink.write(batch(str(number))) for number, sink in enumerate(sinks)))
    finally:
        await asyncio.gather(*(sink.close() for sink in sinks))
    assert sorted(await stored_messages(written_url)) == [str(number) for number in range(6)]


async def test_a_check_writes_at_most_once_a_second(written_url: str) -> None:
    """Not at all within a second of a write; else once for all that ask at the same time."""
    clock = Clock()

    async def probes() -> int:
        (row,) = await query(written_url, sa.select(log_store.c.probes))
        count: int = row["probes"]
        return count

    async with sink_on(written_url, monotonic=clock) as sink:
        clock.seconds = 100
        await sink.write(batch("m"))
        clock.seconds += 0.9
        await sink.check()
        assert await probes() == 0
        clock.seconds += 0.2
        await asyncio.gather(*(sink.check() for _ in range(10)))
        await sink.check()
        assert await probes() == 1
        clock.seconds += 1
        await sink.check()
        assert await probes() == 2
