"""What `httpbridge erase` and `httpbridge retention` do and print."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from authsvc.runtime.commands import note, plain, show
from httpbridge.cli.terminal import ProgressLine, counted
from httpbridge.log_store.erasure import Erasure, Receipt, described
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import ProjectData, Retention, project_data_of, set_retention
from httpbridge.log_store.second_writer import SecondWriter
from httpbridge.log_store.selection import LogFilter
from httpbridge.text import byte_text, rfc3339


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[tuple[SecondWriter, ReadStore]]:
    """Open a store that a bridge has made. Raises StoreSetupError."""
    reader = ReadStore(url)
    writer = SecondWriter(url)
    try:
        reader.check_exists()
        yield writer, reader
    finally:
        await reader.close()
        await writer.close()


async def erase_logs(
    url: str, selection: LogFilter, *, by: str, is_dry: bool, confirm: Callable[[str], None] | None
) -> None:
    """Say how many entries would go, have that confirmed, erase them, and print a receipt. Raises as the stores do."""
    project = plain(selection.project_id)
    async with _opened(url) as (writer, reader):
        progress = ProgressLine()
        erasure = Erasure(writer, reader, selection)
        number = await erasure.count(lambda found: progress.update(lambda: f"{counted(found)} found"))
        progress.clear()
        would = f"{counted(number)} of project {project} would go: {plain(described(selection))}"
        if is_dry:
            show(would)
            return
        note(would)
        if confirm is not None:
            confirm(selection.project_id)
        progress = ProgressLine()
        receipt = await erasure.run(by, lambda gone: progress.update(lambda: f"{gone:,} of {counted(number)} erased"))
        progress.clear()
        show(receipt_text(receipt, is_sqlite=writer.is_sqlite))


def receipt_text(receipt: Receipt, *, is_sqlite: bool) -> str:
    """Return what the command prints in the end, in two lines."""
    if not is_sqlite:
        left = "no query finds any of it; PostgreSQL overwrites it in its files and its WAL in its own time"
    elif receipt.is_scrubbed:
        left = "nothing of it is left in the database's file and its WAL"
    else:
        left = "the WAL still has some of it, as somebody reads the store: erase again when nobody does"
    return (
        f"erased {counted(receipt.entries)} of project {plain(receipt.project_id)}: {plain(receipt.selection)};"
        f" by {plain(receipt.by)} at {rfc3339(receipt.erased_at)}\n{left}"
    )


async def change_retention(url: str, project_id: str, given: Mapping[str, int | None]) -> None:
    """Set those of a project's limits that are given, by the names of `set_retention`. Raises as the stores do."""
    async with _opened(url) as (writer, reader):
        await project_data_of(reader)  # which says whether this is a log store
        await writer.transact(lambda connection: set_retention(connection, project_id, **given))


async def show_retention(url: str, for_all: Retention, project_id: str | None) -> None:
    """Print what holds, for all projects or one, and what was dropped. Raises as ReadStore does."""
    async with _opened(url) as (_, reader):
        found = await project_data_of(reader)
    if project_id is None:
        bytes_max = byte_text(for_all.store_bytes_max) if for_all.store_bytes_max else "no limit"
        show(f"all projects: {_days(for_all.days)} (HTTPBRIDGE_RETENTION_DAYS, as it is set here)")
        show(f"the whole store: {bytes_max} (HTTPBRIDGE_STORE_BYTES_MAX, as it is set here)")
        for name in sorted(found):
            show(_line(found[name], for_all))
    else:
        show(_line(found.get(project_id) or ProjectData(project_id), for_all))


def _line(data: ProjectData, for_all: Retention) -> str:
    days = f"{_days(for_all.days)}, as all" if data.retention_days is None else _days(data.retention_days)
    bytes_max = "no limit of bytes" if data.bytes_max is None else f"at most {data.bytes_max:,} bytes"
    line = f"{plain(data.project_id)}: {days}; {bytes_max}"
    if data.dropped_at is not None:
        at = rfc3339(datetime.fromtimestamp(data.dropped_at, UTC))
        line += f"; dropped so far {counted(data.dropped_entries)}, {byte_text(data.dropped_bytes)}, last at {at}"
    return line


def _days(days: int) -> str:
    return f"kept for {counted(days, 'day', 'days')}" if days else "kept for ever"
