"""Reading what is stored: the newest of a project, a stretch of time, and what arrives.

Used by `log_view`. Every page is a query of its own, so that a reader who pauses (a pager
in a terminal) holds no snapshot: on SQLite that would keep the WAL growing, on PostgreSQL
dead rows from being removed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import sqlalchemy as sa

from httpbridge.log_store.log_rows import LogFilter, Position, StoredLog, between, matches
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import logs
from httpbridge.log_store.tail import arrivals, newest_cursor

NEWEST_COUNT = 100
"""How many entries are shown when no start is given."""

PAGE_ROWS = 1000


async def read(
    store: ReadStore, selection: LogFilter, pause: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[StoredLog]:
    """Yield what is stored, newest last; without a start the newest NEWEST_COUNT. Raises as ReadStore does.

    With `pause`, go on for ever: await it, then yield what became visible meanwhile,
    in the order of arrival, each entry once.
    """
    cursor = await newest_cursor(store)
    listed = set()
    async for log in _newest(store, selection) if selection.since is None else _pages(store, selection):
        if log.id > cursor.id - store.late_ids:  # it may have arrived during the listing
            listed.add(log.id)
        yield log
    while pause is not None:
        await pause()
        last, cursor = cursor, await newest_cursor(store)
        found = await store.rows(arrivals(selection, last.id - store.late_ids, last, cursor))
        new = [id_ for (id_,) in reversed(found) if id_ not in listed]
        for start in range(0, len(new), PAGE_ROWS):
            page = sa.select(logs).where(logs.c.id.in_(new[start : start + PAGE_ROWS])).order_by(logs.c.id)
            for row in await store.rows(page):
                yield StoredLog(*row)
        listed.clear()


async def _newest(store: ReadStore, selection: LogFilter) -> AsyncIterator[StoredLog]:
    newest_first = _matching(selection, selection.begin).order_by(logs.c.timestamp.desc(), logs.c.id.desc())
    for row in reversed(await store.rows(newest_first.limit(NEWEST_COUNT))):
        yield StoredLog(*row)


async def _pages(store: ReadStore, selection: LogFilter) -> AsyncIterator[StoredLog]:
    begin = selection.begin
    while page := await store.rows(_matching(selection, begin).order_by(logs.c.timestamp, logs.c.id).limit(PAGE_ROWS)):
        for row in page:
            yield StoredLog(*row)
        begin = Position(page[-1].timestamp, page[-1].id + 1)


def _matching(selection: LogFilter, begin: Position) -> sa.Select[tuple[object, ...]]:
    return sa.select(logs).where(*between(selection.project_id, begin, selection.end), *matches(selection))
