"""What the questions about the store are asked of: as it would be, had it come by way of the bridge and been merged."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.rig.log_files import CHUNK_ENTRIES, PROJECTS, fill, hourly_chunks, merged_chunks, project, spread
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.queries import LogQueries
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter

START = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("chunks", "each", "hours"),
    [
        (merged_chunks(spread(PROJECTS * 50, START, timedelta(hours=5))), 50, 5),
        (hourly_chunks(PROJECTS * CHUNK_ENTRIES * 3, START), 3 * CHUNK_ENTRIES, 3),
    ],
    ids=["merged", "hourly"],
)
async def test_each_project_has_its_entries_evenly_over_the_time(
    chunks: Iterator[Chunk], each: int, hours: int, tmp_path: Path
) -> None:
    assert await fill(tmp_path / "logs.db", chunks) == PROJECTS * each
    store = ReadStore(f"sqlite:///{tmp_path}/logs.db")
    queries = LogQueries(store, monotonic=time.monotonic)
    page = await queries.page(LogFilter(project_id=project(7)), rows_max=each)
    assert page.older is None
    instants = [one.log.timestamp for one in reversed(page.rows)]
    assert len(instants) == each
    step = timedelta(hours=hours) / each
    assert all(abs(instant - START - number * step) < step / 2 for number, instant in enumerate(instants))
    assert len({one.log.trace_id for one in page.rows}) == min(each, CHUNK_ENTRIES)
    edges = [START + timedelta(hours=hour) for hour in range(hours + 1)]
    counts = [sum(each.counts.values()) for each in await queries.histogram(LogFilter(project_id=project(7)), edges)]
    assert counts == [each // hours] * hours
    await store.close()
