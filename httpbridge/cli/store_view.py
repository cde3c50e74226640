"""What `httpbridge store` and `httpbridge store check` print."""

import msgspec

from authsvc.runtime.commands import note, plain, show
from httpbridge.cli.terminal import ProgressLine, counted
from httpbridge.log_store.chunk import ChunkDamagedError
from httpbridge.log_store.export import Part, Progress, read_parts, work_through
from httpbridge.log_store.inspection import check_chunk, projects, usage
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.scan import Scan
from httpbridge.log_store.selection import LogFilter
from httpbridge.text import byte_text

_HEADER = ("project", "entries", "stored", "of entries", "ratio", "chunks", "oldest", "newest")
_NUMBERS = range(1, 6)


async def show_usage(url: str, *, as_json: bool) -> None:
    """Print what the store at `url` has of each project. Raises as ReadStore does."""
    store = ReadStore(url)
    try:
        found = await usage(store)
    finally:
        await store.close()
    if as_json:
        rows = [msgspec.structs.asdict(one) | {"ratio": round(one.ratio, 4)} for one in found]
        show(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    if not found:
        note("nothing is stored")
        return
    table = [_HEADER]
    table += [
        (
            plain(one.project_id), f"{one.entries:,}", byte_text(one.bytes_stored), byte_text(one.bytes_of_entries),
            f"{one.ratio:.2f}", f"{one.chunks:,}", one.oldest[:19] + "Z", one.newest[:19] + "Z",
        )
        for one in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = zip(row, widths, strict=True)
        words = [
            cell.rjust(width) if place in _NUMBERS else cell.ljust(width) for place, (cell, width) in enumerate(cells)
        ]
        show("  ".join(words).rstrip())


async def check_chunks(url: str) -> int:
    """Check every chunk of the store at `url`, and print those that are damaged; return how many that are.

    Raises as ReadStore does.
    """
    store = ReadStore(url)
    line = ProgressLine()
    chunks = entries = size = damaged = 0

    def check(parts: list[Part]) -> None:
        nonlocal chunks, entries, size, damaged
        for part in parts:
            try:
                check_chunk(part)
            except ChunkDamagedError as error:
                damaged += 1
                line.clear()
                show(
                    f"chunk {part.row.id} of project {plain(part.project_id)}, {part.row.entries:,} entries from"
                    f" {part.row.first_at} to {part.row.last_at}: {error.reason}"
                )
            chunks += 1
            entries += part.row.entries
            size += part.row.size
        line.update(lambda: f"{counted(chunks, 'chunk', 'chunks')}, {line.amounts(entries, size)}")

    try:
        for project_id in await projects(store):
            await work_through(read_parts(store, Scan(LogFilter(project_id=project_id)), Progress()), check)
    finally:
        line.clear()
        await store.close()
    note(f"checked {counted(chunks, 'chunk', 'chunks')}, {line.amounts(entries, size)}: {damaged:,} damaged")
    return damaged
