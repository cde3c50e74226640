"""How fast are logs exported?"""

import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.rig.log_files import PROJECTS, fill, hourly_chunks, project
from benchmarks.rig.processes import output_of
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, ratio, run
from httpbridge.log_store.export import Exporter, Part, work_through
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.zstandard import zstd

ENTRIES, ENTRIES_QUICK = 10_000_000, 1_000_000
"""Of all projects; one is exported."""
START = datetime(2026, 1, 5, tzinfo=UTC)
ROUNDS = 5

EXPORT, ZSTD = "export", "`zstd -d`"

HOW = f"""\
The entries of one project of {PROJECTS} are written to a file as NDJSON, in the way of `httpbridge export`. The
baseline is the program `zstd -d`, which writes the same bytes to a file, from one that was compressed at the level of
the store. All files are in the page cache, and both run on the load's core. The program's start counts."""


async def main(pace: Pace) -> Report:
    program = shutil.which("zstd")
    if program is None:
        sys.exit("zstd is missing: it is the baseline (on Debian: apt-get install zstd)")
    with TemporaryDirectory(prefix="bench-") as name:
        directory = Path(name)
        database, output = directory / "logs.db", directory / "logs.ndjson"
        compressed, plain = directory / "all.zst", directory / "all.ndjson"
        await fill(database, hourly_chunks(ENTRIES_QUICK if pace.is_quick else ENTRIES, START))
        entries = 0

        async def export() -> float:
            nonlocal entries
            output.unlink(missing_ok=True)
            began = time.perf_counter()
            entries = await _export(database, output)
            return time.perf_counter() - began

        async def decompress() -> float:
            plain.unlink(missing_ok=True)
            began = time.perf_counter()
            await output_of(program, "-d", "-q", compressed, "-o", plain)
            return time.perf_counter() - began

        await export()
        text = output.read_bytes()
        compressed.write_bytes(zstd.compress(text, level=1))
        await decompress()
        assert plain.read_bytes() == text
        turns = {EXPORT: export, ZSTD: decompress}
        taken = await interleaved(turns, pace.rounds if pace.is_quick else ROUNDS)
    share = ratio(taken[ZSTD], taken[EXPORT])
    rows: list[tuple[str, list[float | None]]] = [
        (name, [entries / seconds, len(text) / 2**20 / seconds, share if name == EXPORT else 1.0])
        for name, seconds in ((each, median_of(seconds)) for each, seconds in taken.items())
    ]
    columns = [("entries/s", ",.0f"), ("MiB/s", ",.0f"), ("ratio", ".2f")]
    return Report(__doc__ or "", HOW, [Table(f"{entries:,} entries", columns, rows)], {"export": share})


async def _export(database: Path, output: Path) -> int:
    """Return how many entries were written."""
    store = ReadStore(f"sqlite:///{database}")
    exporter = Exporter(store, LogFilter(project_id=project(PROJECTS // 2)))
    entries = 0
    with output.open("wb", buffering=0) as file:

        def write(parts: list[Part]) -> None:
            nonlocal entries
            for part in parts:
                entries += exporter.write(part, file.write)[0]

        await work_through(exporter.parts(), write)
    await store.close()
    return entries


if __name__ == "__main__":
    run(main)
