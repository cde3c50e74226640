"""What `httpbridge export` writes."""

from httpbridge.cli.output_file import Writable
from httpbridge.cli.terminal import ProgressLine
from httpbridge.log_store.export import Exporter, Part, work_through
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter


async def export_logs(url: str, selection: LogFilter, target: Writable) -> str:
    """Write what the store at `url` has of it as NDJSON, in the order of commits; return how much that is, in words.

    Raises StoreSetupError and StoreUnavailableError as ReadStore does, ChunkDamagedError, and what writing raises.
    """
    store = ReadStore(url)
    exporter = Exporter(store, selection)
    line = ProgressLine()
    entries = size = 0

    def write(parts: list[Part]) -> None:
        nonlocal entries, size
        for part in parts:
            count, length = exporter.write(part, target.write)
            entries += count
            size += length
        line.update(lambda: f"{exporter.progress.share:4.0%}  {line.amounts(entries, size)}")

    try:
        await work_through(exporter.parts(), write)
    finally:
        line.clear()
        await store.close()
    if entries:
        return f"exported {line.amounts(entries, size)}"
    is_all = selection == LogFilter(project_id=selection.project_id)
    return f"no logs of project {selection.project_id}{'' if is_all else ' match'}"
