"""What does it cost to drop a day of old logs?"""

import asyncio
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from authsvc.runtime.logging import LogFormat, LogLevel, configure
from benchmarks.rig import row_table
from benchmarks.rig.log_files import PROJECTS, fill, merged_chunks, project, spread
from benchmarks.rig.report import Pace, Report, Table, median_of, ratio, run
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import Retainer, Retention
from httpbridge.log_store.schema import chunks
from httpbridge.log_store.sqlite_store import SqliteStore
from httpbridge.logs import LogBatch

ENTRIES, ENTRIES_QUICK = 1_000_000, 100_000
"""Of the old day; half as many are of the day after it, and stay."""
DAY = timedelta(days=1)
START = datetime(2026, 1, 5, tzinfo=UTC)

HOW = f"""\
{PROJECTS} projects have {ENTRIES:,} entries of one day, and half as many of the next one, in merged chunks, and in a
plain table of SQLite with a row for each and an index by project and time. The old day is dropped: by the bridge's
retention, without its pauses, in its small transactions; and by a `DELETE` of each project's rows in one transaction.
Both files have the same settings, and keep the free room for what comes next. The bridge then gives it back to the file
system, a little at a time, which moves what is stored behind it: that is the last row, and no part of the ratio."""


async def main(pace: Pace) -> Report:
    configure(LogLevel.ERROR, LogFormat.JSON)  # each project's part in it is a line
    rounds, entries = (1, ENTRIES_QUICK) if pace.is_quick else (pace.rounds - 1, ENTRIES)
    by_chunks, given_back, by_rows = [], [], []
    for _ in range(rounds):
        with TemporaryDirectory(prefix="bench-") as directory:
            dropped, reclaimed = await _drop_chunks(Path(directory) / "chunks.db", entries)
            by_chunks.append(dropped)
            given_back.append(reclaimed)
            by_rows.append(_delete_rows(Path(directory) / "rows.db", entries))
    share = ratio(by_chunks, by_rows)
    rows: list[tuple[str, list[float | None]]] = [
        ("`DELETE` of rows", [median_of(by_rows), 1.0]),
        ("retention of chunks", [median_of(by_chunks), share]),
        ("giving the room back", [median_of(given_back), None]),
    ]
    table = Table(f"a day of {entries:,} entries", [("s", ".3f"), ("ratio", ".3f")], rows)
    return Report(__doc__ or "", HOW, [table], {"retention": share})


def _days(entries: int) -> tuple[Iterator[LogBatch], Iterator[LogBatch]]:
    return spread(entries, START, DAY), spread(entries // 2, START + DAY, DAY)


class _Keeping(SqliteStore):
    """Keeps its free room until it is told to give it back."""

    gives_back = False

    async def reclaim(self) -> bool:
        return self.gives_back and await super().reclaim()


async def _drop_chunks(file: Path, entries: int) -> tuple[float, float]:
    """Return how many seconds it took, and then to give the room back."""
    old, new = map(merged_chunks, _days(entries))
    await fill(file, old)
    store = SqliteStore(file)
    await store.open()
    two_days_ago = chunks.update().values(stored_at=chunks.c.stored_at - 2 * int(DAY.total_seconds()))
    await store.transact(lambda connection: connection.execute(two_days_ago))
    await store.close()
    await fill(file, new)
    store, reader = _Keeping(file), ReadStore(f"sqlite:///{file}")
    await store.open()
    began = time.perf_counter()
    await Retainer(store, reader, Retention(days=1), pause=partial(asyncio.sleep, 0)).run()
    dropped = time.perf_counter()
    store.gives_back = True
    while await store.reclaim():
        pass
    reclaimed = time.perf_counter()
    (left,) = await reader.rows(sa.select(sa.func.sum(chunks.c.entries)))
    assert tuple(left) == (entries // 2 // PROJECTS * PROJECTS,)
    await reader.close()
    await store.close()
    return dropped - began, reclaimed - dropped


def _delete_rows(file: Path, entries: int) -> float:
    """Return how many seconds it took."""
    row_table.fill(file, chain(*_days(entries)))
    began = time.perf_counter()
    deleted = row_table.delete_before(file, [project(number) for number in range(PROJECTS)], START + DAY)
    taken = time.perf_counter() - began
    assert deleted == entries // PROJECTS * PROJECTS
    return taken


if __name__ == "__main__":
    run(main)
