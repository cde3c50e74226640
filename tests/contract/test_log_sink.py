"""What every LogSink promises, on real stores: SQLite files and PostgreSQL."""

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
from httpbridge.errors import BatchRefusedError, StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.database import postgres_engine
from httpbridge.log_store.fair_queue import Bounds
from httpbridge.log_store.rows import Rows
from httpbridge.log_store.schema import log_store, logs
from httpbridge.log_store.sink import SqlSink, Store, open_sql_sink, store_at
from httpbridge.logs import Level, LogBatch, LogEntry
from tests.httpbridge.ingest.test_log_parser import batch_of

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


async def query(url: str, statement: sa.Select[Any]) -> list[dict[str, Any]]:
    """Read the store by a connection of its own."""
    engine = reading_engine(url)
    try:
        async with engine.connect() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]
    finally:
        await engine.dispose()


async def stored_messages(url: str) -> list[str]:
    return [row["message"] for row in await query(url, sa.select(logs.c.message).order_by(logs.c.id))]


@asynccontextmanager
async def sink_on(
    url: str, bounds: Bounds | None = None, monotonic: Callable[[], float] | None = None
) -> AsyncIterator[SqlSink]:
    sink = await open_sql_sink(url, monotonic=monotonic or Clock(), bounds=bounds)
    try:
        yield sink
    finally:
        await sink.close()


async def test_entries_are_read_back_whole_and_exactly(database_url: str) -> None:
    """Every field comes back as it went in; the batch fills in what an entry leaves out."""
    full = LogEntry(
        level=Level.ERROR, message="päng 🚀 \x01 \\ '\" % \n\t", timestamp=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        metadata='{"big": 123456789012345678901234567890, "e": 1.0E+2, "a":1, "a":2}', trace_id="t", span_id="s",
        request_id="r", vercel_id="v", context="c", release="entry",
    )  # fmt: skip
    bare = LogEntry(level=Level.DEBUG, message="")
    async with sink_on(database_url) as sink:
        await sink.write(batch(release="batch", service="sørvice", environment="test", entries=[full, bare]))
    first, second = await query(database_url, sa.select(logs).order_by(logs.c.id))
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


async def test_characters_that_no_store_has_a_place_for_are_stored_as_their_replacement(database_url: str) -> None:
    """U+0000 and halves of surrogate pairs, in whatever field of a body they came."""
    half = r"\ud83d a\u0000b \ude00" + "\udc80"
    names = ("message", "trace_id", "span_id", "request_id", "vercel_id", "context", "release")
    entry = ", ".join(f'"{name}": "{half}"' for name in names)
    entry += f', "level": "info", "metadata": {{"{half}": [1.10, "{half}"]}}'
    body = f'{{"service": "{half}", "environment": "{half}", "release": "{half}", "logs": [{{{entry}}}]}}'
    async with sink_on(database_url) as sink:
        await sink.write(batch_of(body.encode("utf-8", "surrogatepass")))
    (row,) = await query(database_url, sa.select(logs))
    stored = "\ufffd a\ufffdb \ufffd\ufffd"
    assert {row[name] for name in (*names, "service", "environment")} == {stored}
    assert json.loads(row["metadata"]) == {stored: [1.1, stored]}
    assert row["metadata"].count("1.10") == 1


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 200, 1000])
async def test_batches_of_every_size_are_stored_whole_and_in_order(database_url: str, count: int) -> None:
    messages = [str(number) for number in range(count)]
    async with sink_on(database_url) as sink:
        await sink.write(batch(*messages))
    assert await stored_messages(database_url) == messages


@pytest.mark.parametrize(
    "instant",
    [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
    ],
)
async def test_every_instant_of_the_contract_round_trips(database_url: str, instant: datetime) -> None:
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[LogEntry(Level.INFO, "m", timestamp=instant)]))
    (row,) = await query(database_url, sa.select(logs.c.timestamp, sa.cast(logs.c.timestamp, sa.Text).label("text")))
    assert row["timestamp"] == instant
    assert "infinity" not in row["text"]


async def test_timestamps_sort_as_instants(database_url: str) -> None:
    """The index for "newest of a project" is in the order of time."""
    instants = [datetime(year, 5, 6, tzinfo=UTC) for year in (9999, 1, 2026, 999)]
    instants.append(instants[2] + timedelta(microseconds=1))
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[LogEntry(Level.INFO, "m", timestamp=instant) for instant in instants]))
    rows = await query(database_url, sa.select(logs.c.timestamp).order_by(logs.c.timestamp))
    assert [row["timestamp"] for row in rows] == sorted(instants)


def counted(store: Store) -> list[int]:
    """Note of each commit that the store is asked for how many batches it is of."""
    groups: list[int] = []
    commit = store.commit

    async def commit_counted(group: list[Rows]) -> None:
        groups.append(len(group))
        await commit(group)

    store.commit = commit_counted  # type: ignore[method-assign]
    return groups


async def test_concurrent_writes_share_commits(database_url: str) -> None:
    """200 writes at once are stored once each, in a handful of commits."""
    store = store_at(database_url)
    groups = counted(store)
    sink = SqlSink(store, monotonic=Clock(), bounds=None)
    await sink.open()
    await asyncio.gather(*(sink.write(batch(f"{number} a", f"{number} b")) for number in range(200)))
    await sink.close()
    assert len(groups) <= 3
    assert sorted(await stored_messages(database_url)) == sorted(f"{n} {x}" for n in range(200) for x in "ab")


async def test_a_batch_that_the_store_refuses_fails_alone(database_url: str) -> None:
    """Nobody pays for another's poison: the others of its commit are stored, once."""
    async with sink_on(database_url) as sink:
        poisoned = {3, 17, 18}
        outcomes = await asyncio.gather(
            *(
                sink.write(batch(f"{number} a", "\ud800" if number in poisoned else f"{number} b"))
                for number in range(32)
            ),
            return_exceptions=True,
        )
        assert {n for n, outcome in enumerate(outcomes) if isinstance(outcome, BatchRefusedError)} == poisoned
        assert all(outcome is None for n, outcome in enumerate(outcomes) if n not in poisoned)
        await sink.write(batch("after"))
    expected = [f"{n} {x}" for n in range(32) if n not in poisoned for x in "ab"]
    assert sorted(await stored_messages(database_url)) == sorted([*expected, "after"])


async def test_what_postgresql_itself_refuses_fails_alone(postgres_url: str) -> None:
    """The same where the server finds the poison: U+0000."""
    async with sink_on(postgres_url) as sink:
        outcomes = await asyncio.gather(
            sink.write(batch("a")), sink.write(batch("b", "\0")), sink.write(batch("c")), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), BatchRefusedError, type(None)]
        await sink.check()
    assert sorted(await stored_messages(postgres_url)) == ["a", "c"]


async def test_a_cancelled_writer_undoes_nothing(database_url: str) -> None:
    """The write of a caller that went away is stored, and its neighbours notice nothing."""
    async with sink_on(database_url) as sink:
        writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(3)]
        await asyncio.sleep(0)  # all three are queued
        writes[1].cancel()
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [type(None), asyncio.CancelledError, type(None)]
    assert await stored_messages(database_url) == ["0", "1", "2"]


async def test_close_stores_what_was_accepted_and_nothing_after(database_url: str) -> None:
    sink = await open_sql_sink(database_url, monotonic=Clock(), bounds=Bounds(commit_weight_max=1))
    writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(10)]
    await asyncio.sleep(0)
    await sink.close()
    await asyncio.gather(*writes)
    with pytest.raises(StoreUnavailableError):
        await sink.write(batch("late"))
    assert await stored_messages(database_url) == [str(number) for number in range(10)]


async def test_a_full_queue_refuses_at_once(database_url: str) -> None:
    async with sink_on(database_url, Bounds(queued_items_max=4)) as sink:
        writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(3)]
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), StoreUnavailableError]
    assert await stored_messages(database_url) == ["0", "1"]


async def test_a_store_of_a_newer_version_is_refused(database_url: str) -> None:
    async with sink_on(database_url):
        pass
    engine = reading_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE log_store SET schema_version = 999"))
    await engine.dispose()
    with pytest.raises(StoreSetupError, match="schema version 999, made by a newer httpbridge"):
        await open_sql_sink(database_url, monotonic=Clock())


async def test_several_bridges_may_start_at_once_on_an_empty_store(database_url: str) -> None:
    sinks = await asyncio.gather(*(open_sql_sink(database_url, monotonic=Clock()) for _ in range(6)))
    try:
        for sink in sinks:
            await sink.check()
        await asyncio.gather(*(sink.write(batch(str(number))) for number, sink in enumerate(sinks)))
    finally:
        await asyncio.gather(*(sink.close() for sink in sinks))
    assert sorted(await stored_messages(database_url)) == [str(number) for number in range(6)]


async def test_a_check_writes_at_most_once_a_second(database_url: str) -> None:
    """Not at all within a second of a write; else once for all that ask at the same time."""
    clock = Clock()

    async def probes() -> int:
        (row,) = await query(database_url, sa.select(log_store.c.probes))
        count: int = row["probes"]
        return count

    async with sink_on(database_url, monotonic=clock) as sink:
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
