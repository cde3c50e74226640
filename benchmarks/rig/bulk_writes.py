"""Entries a second into a log store: through the sink, and through its driver's bulk path alone. A process of its own.

Usage: python -m benchmarks.rig.bulk_writes sink | driver URL ENTRIES_A_BATCH ROWS_A_COMMIT SECONDS

The driver writes the chunk that the sink made of the same batch, into the table that the sink created, with the
settings that the sink's durability rests on: `sqlite3.executemany` in a transaction, or asyncpg's COPY. SQLite's log is
copied into the database as rarely as the sink does it; what is left of it at the end, about one such copy at the most,
neither pays for.
"""

import asyncio
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvloop

from benchmarks.rig.processes import SERVER_CORE, output_of
from benchmarks.rig.traffic import body
from httpbridge.ingest.log_parser import parse
from httpbridge.log_store.fair_queue import Bounds
from httpbridge.log_store.schema import WRITTEN_COLUMNS
from httpbridge.log_store.sink import open_sql_sink
from httpbridge.log_store.sqlite_store import CHECKPOINT_BYTES
from httpbridge.logs import LogBatch

_IN_FLIGHT = 4
"""Batches that wait for the sink: enough that it never waits for the next."""

_COLUMNS = ", ".join(WRITTEN_COLUMNS)
_INSERT = f"INSERT INTO chunks ({_COLUMNS}) VALUES ({', '.join('?' * len(WRITTEN_COLUMNS))})"
_SELECT = f"SELECT {_COLUMNS} FROM chunks LIMIT 1"


class Written(msgspec.Struct, frozen=True):
    """How many rows were committed, in how much time, and what they cost this process."""

    rows: int
    seconds: float
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        return self.rows / self.seconds


async def measure(kind: str, url: str, entries: int, rows: int, seconds: float) -> Written:
    """Run the process on the servers' core."""
    arguments = [kind, url, str(entries), str(rows), str(seconds)]
    output = await output_of(sys.executable, "-m", "benchmarks.rig.bulk_writes", *arguments, core=SERVER_CORE)
    return msgspec.json.decode(output, type=Written)


def _batch(entries: int) -> LogBatch:
    steps = parse(
        body(entries), project_id="project-0000000", key_id="key_0123456789abcdef", received_at=datetime.now(UTC)
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            batch: LogBatch = end.value
            return batch


async def _write_through_sink(url: str, entries: int, rows: int, seconds: float) -> Written:
    """Keep the sink busy with batches, of which each commit takes as many as come to `rows`."""
    assert entries == rows, "a commit takes one batch: it is over the weight that a commit may have"
    batch = _batch(entries)
    sink = await open_sql_sink(url, monotonic=time.monotonic, bounds=Bounds(commit_weight_max=1))
    written = 0

    async def write_on(stop: float) -> None:
        nonlocal written
        while time.perf_counter() < stop:
            await sink.write(batch)
            written += entries

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(write_on(started + seconds) for _ in range(_IN_FLIGHT)))
    result = Written(written, time.perf_counter() - started, time.process_time() - cpu)
    await sink.close()
    return result


async def _chunk_of_sink(url: str, entries: int) -> None:
    """Have the sink create its tables and store one batch."""
    sink = await open_sql_sink(url, monotonic=time.monotonic)
    await sink.write(_batch(entries))
    await sink.close()


async def _repeat(
    commit: Callable[[list[Any]], Awaitable[None]], chunks: list[Any], count: int, entries: int, seconds: float
) -> Written:
    transaction = chunks * (count // entries)
    written = 0
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() < started + seconds:
        await commit(transaction)
        written += count
    return Written(written, time.perf_counter() - started, time.process_time() - cpu)


async def _write_through_sqlite3(path: str, entries: int, count: int, seconds: float) -> Written:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_BYTES // page_bytes}")

        async def commit(rows: list[Any]) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows)
            connection.execute("COMMIT")

        return await _repeat(commit, connection.execute(_SELECT).fetchall(), count, entries, seconds)


async def _write_through_asyncpg(url: str, entries: int, count: int, seconds: float) -> Written:
    connection = await asyncpg.connect(url)
    try:
        rows = [tuple(row) for row in await connection.fetch(_SELECT)]

        async def commit(rows: list[Any]) -> None:
            await connection.copy_records_to_table("chunks", records=rows, columns=WRITTEN_COLUMNS)

        return await _repeat(commit, rows, count, entries, seconds)
    finally:
        await connection.close()


async def _main(kind: str, url: str, entries: int, rows: int, seconds: float) -> Written:
    is_sqlite = url.startswith("sqlite:")
    if not is_sqlite:  # every measurement begins with an empty table
        connection = await asyncpg.connect(url)
        await connection.execute("DROP TABLE IF EXISTS chunks")
        await connection.close()
    if kind == "sink":
        return await _write_through_sink(url, entries, rows, seconds)
    await _chunk_of_sink(url, entries)
    if is_sqlite:
        return await _write_through_sqlite3(url.removeprefix("sqlite:///"), entries, rows, seconds)
    return await _write_through_asyncpg(url, entries, rows, seconds)


if __name__ == "__main__":
    _kind, _url, _entries, _rows, _seconds = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as _runner:
        _result = _runner.run(_main(_kind, _url, int(_entries), int(_rows), float(_seconds)))
    print(msgspec.json.encode(_result).decode())
