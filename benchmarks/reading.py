"""How fast are stored logs read?"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.rig import newest_page, row_table
from benchmarks.rig.log_files import PROJECTS, RARE, fill, hourly_chunks, merged_chunks, project, spread
from benchmarks.rig.newest_page import Pages
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, ratio, run
from benchmarks.rig.row_table import RowQueries
from httpbridge.log_store.queries import PAGE_ROWS, LogQueries
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter
from httpbridge.logs import Level

ENTRIES = 300_000
MANY, MANY_QUICK = 10_000_000, 1_000_000
WEEK = timedelta(days=7)
START = datetime(2026, 1, 5, tzinfo=UTC)
BARS = 84
"""Of two hours, as the Logs page shows a week."""
ROUNDS, ROUNDS_QUICK = 15, 3
PAGES = 50
"""A round of one contender."""

CHUNKS, ROWS = "chunks", "rows"

HOW = f"""\
{ENTRIES:,} entries of {PROJECTS} projects, spread over a week, are in merged chunks, as they are some seconds after
they were received; and in a plain table of SQLite, with a row for each and an index by project and time. Both are asked
for the newest {PAGE_ROWS} errors of a project, for how many entries of each level {BARS} stretches of its week have,
and for a word that three of its entries have. Both answer by way of SQLAlchemy and aiosqlite, with the same objects.
Then processes of their own read the newest {PAGE_ROWS} entries of a project, where all projects together have
{ENTRIES:,} entries and where they have {MANY:,}, a chunk of each project for each hour; their memory is the resident
set at its peak."""


async def main(pace: Pace) -> Report:
    with TemporaryDirectory(prefix="bench-") as directory:
        compared = await _compare(Path(directory), ROUNDS_QUICK if pace.is_quick else ROUNDS)
        pages = await _newest(Path(directory), MANY_QUICK if pace.is_quick else MANY, pace.rounds)
    rows: list[tuple[str, list[float | None]]] = []
    measured: dict[str, float | None] = {}
    for name, question in (
        ("read_newest", f"the newest {PAGE_ROWS} errors of a project"),
        ("read_histogram", "histogram of a project's week"),
        ("read_text", "a word in a project"),
    ):
        chunks, table = compared[name, CHUNKS], compared[name, ROWS]
        measured[name] = ratio(chunks, table)
        rows.append((question, [1000 * median_of(chunks), 1000 * median_of(table), measured[name]]))
    few, many = pages.values()
    measured["page_many"] = ratio([each.seconds for each in many], [each.seconds for each in few])
    measured["page_memory"] = ratio([each.peak_kib for each in many], [each.peak_kib for each in few])
    sizes: list[tuple[str, list[float | None]]] = [
        (
            f"{entries:,} entries",
            [1000 * median_of([each.seconds for each in seen]), median_of([each.peak_kib for each in seen]) / 1024],
        )
        for entries, seen in pages.items()
    ]
    tables = [
        Table(f"{ENTRIES:,} entries", [("chunks, ms", ".2f"), ("rows, ms", ".2f"), ("ratio", ".3f")], rows),
        Table(f"the newest {PAGE_ROWS} of a project", [("ms", ".2f"), ("memory, MiB", ".1f")], sizes),
    ]
    return Report(__doc__ or "", HOW, tables, measured)


async def _compare(directory: Path, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return how many seconds each question took either."""
    chunk_file, row_file = directory / "chunks.db", directory / "rows.db"
    await fill(chunk_file, merged_chunks(spread(ENTRIES, START, WEEK)))
    row_table.fill(row_file, spread(ENTRIES, START, WEEK))
    store = ReadStore(f"sqlite:///{chunk_file}")
    queries = LogQueries(store, monotonic=time.monotonic)
    name = project(PROJECTS // 2)
    edges = [START + number * WEEK / BARS for number in range(BARS + 1)]
    errors = LogFilter(project_id=name, levels=frozenset([Level.ERROR]))

    async def timed(ask: Callable[[], Awaitable[Any]]) -> float:
        began = time.perf_counter()
        await ask()
        return time.perf_counter() - began

    async with RowQueries(row_file) as row_queries:
        asked: dict[tuple[str, str], Callable[[], Awaitable[Any]]] = {
            ("read_newest", CHUNKS): lambda: queries.page(errors),
            ("read_newest", ROWS): lambda: row_queries.newest(name, Level.ERROR, PAGE_ROWS + 1),
            ("read_histogram", CHUNKS): lambda: queries.histogram(LogFilter(project_id=name), edges),
            ("read_histogram", ROWS): lambda: row_queries.histogram(name, START, START + WEEK, BARS),
            ("read_text", CHUNKS): lambda: queries.page(LogFilter(project_id=name, text=RARE)),
            ("read_text", ROWS): lambda: row_queries.containing(name, RARE, PAGE_ROWS + 1),
        }
        await _check_answers(asked)
        results = await interleaved({key: partial(timed, ask) for key, ask in asked.items()}, rounds)
    await store.close()
    return results


async def _check_answers(asked: dict[tuple[str, str], Callable[[], Awaitable[Any]]]) -> None:
    """Fail where chunks answer something else than rows."""
    for name in ("read_newest", "read_text"):
        page, rows = await asked[name, CHUNKS](), await asked[name, ROWS]()
        ours, theirs = ([one.log.trace_id for one in some] for some in (page.rows, rows[:PAGE_ROWS]))
        assert ours, name
        assert ours == theirs, name
    buckets = await asked["read_histogram", CHUNKS]()
    counts = {(number, level): count for number, each in enumerate(buckets) for level, count in each.counts.items()}
    assert counts == {(number, Level(level)): count for number, level, count in await asked["read_histogram", ROWS]()}


async def _newest(directory: Path, many: int, rounds: int) -> dict[int, list[Pages]]:
    files = {entries: directory / f"{entries}.db" for entries in (ENTRIES, many)}
    stored = {await fill(file, hourly_chunks(entries, START)): file for entries, file in files.items()}
    name = project(PROJECTS // 2)
    return await interleaved(
        {entries: partial(newest_page.measure, file, name, PAGES) for entries, file in stored.items()}, rounds
    )


if __name__ == "__main__":
    run(main)
