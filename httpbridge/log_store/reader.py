"""Reading what the SQL sink stored: the newest of a project, a stretch of time, and what arrives.

Used by `log_view`. Every page is a query of its own, so that a reader who pauses (a pager
in a terminal) holds no snapshot: on SQLite that would keep the WAL growing, on PostgreSQL
dead rows from being removed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import logs
from httpbridge.logs import Level

NEWEST_COUNT = 100
"""How many entries are shown when no start is given."""

PAGE_ROWS = 1000


class StoredLog(msgspec.Struct, frozen=True):
    """A row of `logs`; the names are the columns'. Instants are aware and in UTC, `metadata` is JSON text."""

    id: int
    project_id: str
    key_id: str
    received_at: datetime
    service: str
    environment: str
    release: str | None
    level: str
    message: str
    timestamp: datetime
    metadata: str | None
    trace_id: str | None
    span_id: str | None
    request_id: str | None
    vercel_id: str | None
    context: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries: of one project, from an instant on (of their `timestamp`), of exactly one level."""

    project_id: str
    since: datetime | None = None
    level: Level | None = None


def open_sql_reader(url: str) -> "SqlReader":
    """Make a reader of the store at the sink's address; it connects when it is first used, read-only.

    Raises StoreSetupError for an address of another kind, and for a SQLite file that
    does not exist.
    """
    store = ReadStore(url)
    store.check_exists()
    return SqlReader(store)


class SqlReader:
    """Made by `open_sql_reader`. Everything raises StoreUnavailableError when the store cannot be read."""

    def __init__(self, store: ReadStore) -> None:
        self._store = store

    async def close(self) -> None:
        """Let go of the store."""
        await self._store.close()

    async def read(
        self, selection: Selection, pause: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[StoredLog]:
        """Yield what is stored, newest last; without a start the newest NEWEST_COUNT.

        With `pause`, go on for ever: await it, then yield what became visible meanwhile,
        in the order of arrival, each entry once.
        """
        newest_id = await self._newest_id()
        seen = {id_ async for id_ in self._ids(selection, newest_id - self._store.late_ids, newest_id)}
        listing = self._newest(selection) if selection.since is None else self._from(selection, selection.since)
        async for log in listing:
            if log.id > newest_id - self._store.late_ids:
                seen.add(log.id)
            yield log
        while pause is not None:
            await pause()
            floor, newest_id = newest_id - self._store.late_ids, await self._newest_id()
            new = [id_ async for id_ in self._ids(selection, floor, newest_id) if id_ not in seen]
            for start in range(0, len(new), PAGE_ROWS):
                page = sa.select(logs).where(logs.c.id.in_(new[start : start + PAGE_ROWS])).order_by(logs.c.id)
                for log in await self._logs(page):
                    yield log
            seen = {id_ for id_ in (*seen, *new) if id_ > newest_id - self._store.late_ids}

    async def _newest(self, selection: Selection) -> AsyncIterator[StoredLog]:
        statement = sa.select(logs).where(logs.c.project_id == selection.project_id, *_conditions(selection))
        newest_first = statement.order_by(logs.c.timestamp.desc(), logs.c.id.desc()).limit(NEWEST_COUNT)
        for log in reversed(await self._logs(newest_first)):
            yield log

    async def _from(self, selection: Selection, since: datetime) -> AsyncIterator[StoredLog]:
        position = sa.tuple_(logs.c.timestamp, logs.c.id)
        after: tuple[datetime, int] = (since, -1)
        oldest_first = (
            sa.select(logs)
            .where(logs.c.project_id == selection.project_id, *_conditions(selection))
            .order_by(logs.c.timestamp, logs.c.id)
            .limit(PAGE_ROWS)
        )
        while page := await self._logs(oldest_first.where(position > after)):
            for log in page:
                yield log
            after = (page[-1].timestamp, page[-1].id)

    async def _ids(self, selection: Selection, above: int, up_to: int) -> AsyncIterator[int]:
        # The concatenation keeps the planner from the index of the project, all of which it would read.
        of_project = logs.c.project_id.concat("") == selection.project_id
        page = sa.select(logs.c.id).where(of_project, *_conditions(selection)).order_by(logs.c.id).limit(PAGE_ROWS)
        while ids := await self._store.rows(page.where(logs.c.id > above, logs.c.id <= up_to)):
            for (id_,) in ids:
                yield id_
            above = ids[-1][0]

    async def _newest_id(self) -> int:
        ((id_,),) = await self._store.rows(sa.select(sa.func.coalesce(sa.func.max(logs.c.id), 0)))
        return int(id_)

    async def _logs(self, statement: sa.Select[Any]) -> list[StoredLog]:
        return [StoredLog(*row) for row in await self._store.rows(statement)]


def _conditions(selection: Selection) -> list[sa.ColumnElement[bool]]:
    conditions = []
    if selection.since is not None:
        conditions.append(logs.c.timestamp >= selection.since)
    if selection.level is not None:
        conditions.append(logs.c.level == str(selection.level))
    return conditions
