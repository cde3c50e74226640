"""The newest page of a project, again and again. A process of its own, so that its memory is that of the reader.

Usage: python -m benchmarks.rig.newest_page FILE PROJECT TIMES

Prints a line of JSON.
"""

import asyncio
import resource
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from benchmarks.rig.processes import SERVER_CORE, output_of
from httpbridge.log_store.queries import PAGE_ROWS, LogQueries
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter


class Pages(msgspec.Struct, frozen=True):
    """How long the quickest took, and how much memory the process had at the most."""

    seconds: float
    peak_kib: int


async def measure(file: Path, project: str, times: int) -> Pages:
    """Run the process on the servers' core."""
    output = await output_of(
        sys.executable, "-m", "benchmarks.rig.newest_page", file, project, str(times), core=SERVER_CORE
    )
    return msgspec.json.decode(output, type=Pages)


async def _read(file: str, project: str, times: int) -> Pages:
    store = ReadStore(f"sqlite:///{file}")
    queries = LogQueries(store, monotonic=time.monotonic)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        page = await queries.page(LogFilter(project_id=project))
        taken.append(time.perf_counter() - began)
        assert len(page.rows) == PAGE_ROWS
    await store.close()
    return Pages(min(taken), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as _runner:
        print(msgspec.json.encode(_runner.run(_read(sys.argv[1], sys.argv[2], int(sys.argv[3])))).decode())
