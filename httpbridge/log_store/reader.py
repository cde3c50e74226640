"""Reading what is stored: the newest of a project, a stretch of time, and what arrives.

Used by `log_view`. Every page is a query of its own, so that a reader who pauses (a pager
in a terminal) holds no snapshot: on SQLite that would keep the WAL growing, on PostgreSQL
dead rows from being removed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from heapq import nlargest, nsmallest

from httpbridge.log_store.chunk import IDS
from httpbridge.log_store.read_store import ReadStore, headers, of_content
from httpbridge.log_store.scan import Found, Scan
from httpbridge.log_store.selection import LogFilter, Position, StoredLog
from httpbridge.log_store.tail import LogTail, newest_cursor

NEWEST_COUNT = 100
"""How many entries are shown when no start is given."""

PAGE_ROWS = 2000


async def read(
    store: ReadStore,
    selection: LogFilter,
    pause: Callable[[], Awaitable[None]] | None = None,
    missed: Callable[[], None] = lambda: None,
) -> AsyncIterator[StoredLog]:
    """Yield what is stored, newest last; without a start the newest NEWEST_COUNT. Raises as ReadStore does.

    With `pause`, go on for ever: await it, then yield what became visible meanwhile,
    in the order of arrival, each entry once; `missed` is told where some of that is left out.
    """
    cursor = await newest_cursor(store)
    tail = LogTail(store, selection, cursor, entries_max=None)
    listed = set()
    async for one in _newest(store, selection) if selection.since is None else _pages(store, selection):
        if pause is not None and one.id // IDS > cursor.id - store.late_ids:  # it may have arrived during the listing
            listed.add(one.id)
        yield one.log(selection.project_id)
    while pause is not None:
        await pause()
        found, is_gap = await tail.found()
        if is_gap:
            missed()
        for one in found:
            if one.id not in listed:
                yield one.log(selection.project_id)
        listed.clear()


async def _newest(store: ReadStore, selection: LogFilter) -> AsyncIterator[Found]:
    scan = Scan(selection)
    found: list[Found] = []
    async with store.connection() as connection:
        async for chunk in headers(connection, scan.project_id, scan.begin, scan.end):
            if len(found) == NEWEST_COUNT and found[-1].timestamp.decode() > chunk.last_at:
                break
            if scan.may_match(chunk.summary):
                found += await of_content(connection, chunk.id, partial(scan.found, chunk))
                found = nlargest(NEWEST_COUNT, found, key=_order)
    for one in reversed(found):
        yield one


async def _pages(store: ReadStore, selection: LogFilter) -> AsyncIterator[Found]:
    begin = selection.begin
    while page := await _page(store, Scan(selection, begin)):
        for one in page:
            yield one
        begin = Position(page[-1].position.timestamp, page[-1].id + 1)


async def _page(store: ReadStore, scan: Scan) -> list[Found]:
    found: list[Found] = []
    async with store.connection() as connection:
        async for chunk in headers(connection, scan.project_id, scan.begin, scan.end, oldest_first=True):
            if len(found) == PAGE_ROWS and found[-1].timestamp.decode() < chunk.first_at:
                break
            if scan.may_match(chunk.summary):
                found += await of_content(connection, chunk.id, partial(scan.found, chunk))
                found = nsmallest(PAGE_ROWS, found, key=_order)
    return found


def _order(found: Found) -> tuple[bytes, int]:
    return found[:2]
