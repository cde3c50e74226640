"""Reading what the SQL sink stored: the newest of a project, a stretch of time, and what arrives.

Used by `log_view`. Every page is a query of its own, so that a reader who pauses (a pager
in a terminal) holds no snapshot: on SQLite that would keep the WAL growing, on PostgreSQL
dead rows from being removed.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from httpbridge.errors import StoreUnavailableError
from httpbridge.logs import Level
from httpbridge.sinks import StoreSetupError
from httpbridge.sinks.postgres_store import EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.sinks.schema import check_version, logs

NEWEST_COUNT = 100
"""How many entries are shown when no start is given."""

PAGE_ROWS = 1000

LATE_IDS = 32_768
"""How far below the newest id PostgreSQL may still make a row visible.

Ids are handed out before the commit, so with several bridges a lower id can appear after
a higher one. A transaction that ends after this many later rows is missed while following
(not by a later listing).
"""


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
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise StoreSetupError("the log store's address is not a URL such as sqlite:///logs.db") from None
    match parsed.get_backend_name():
        case "sqlite":
            path = Path(parsed.database or ":memory:")
            if not path.exists():
                raise StoreSetupError(f"there is no log store at {path}: no bridge has run with it yet")
            file = f"file:{quote(str(path.absolute()))}"
            address = sa.URL.create("sqlite+aiosqlite", database=file, query={"mode": "ro", "uri": "true"})
            return SqlReader(create_async_engine(address, hide_parameters=True), late_ids=0)
        case "postgresql":
            dsn = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
            return SqlReader(postgres_engine(dsn, default_transaction_read_only="on"), late_ids=LATE_IDS)
        case other:
            raise StoreSetupError(f"the log store's address begins with sqlite: or postgresql:, not {other}:")


class SqlReader:
    """Made by `open_sql_reader`. Everything raises StoreUnavailableError when the store cannot be read."""

    def __init__(self, engine: AsyncEngine, *, late_ids: int) -> None:
        """`late_ids`: see LATE_IDS; 0 for a store whose ids become visible in their order."""
        self._engine = engine
        self._late_ids = late_ids

    async def close(self) -> None:
        """Let go of the store."""
        await self._engine.dispose()

    async def read(
        self, selection: Selection, pause: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[StoredLog]:
        """Yield what is stored, newest last; without a start the newest NEWEST_COUNT.

        With `pause`, go on for ever: await it, then yield what became visible meanwhile,
        in the order of arrival, each entry once.
        """
        await self._check()
        newest_id = await self._newest_id()
        seen = {id_ async for id_ in self._ids(selection, newest_id - self._late_ids, newest_id)}
        listing = self._newest(selection) if selection.since is None else self._from(selection, selection.since)
        async for log in listing:
            if log.id > newest_id - self._late_ids:
                seen.add(log.id)
            yield log
        while pause is not None:
            await pause()
            floor, newest_id = newest_id - self._late_ids, await self._newest_id()
            new = [id_ async for id_ in self._ids(selection, floor, newest_id) if id_ not in seen]
            for start in range(0, len(new), PAGE_ROWS):
                page = sa.select(logs).where(logs.c.id.in_(new[start : start + PAGE_ROWS])).order_by(logs.c.id)
                for log in await self._logs(page):
                    yield log
            seen = {id_ for id_ in (*seen, *new) if id_ > newest_id - self._late_ids}

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
        while ids := await self._rows(page.where(logs.c.id > above, logs.c.id <= up_to)):
            for (id_,) in ids:
                yield id_
            above = ids[-1][0]

    async def _newest_id(self) -> int:
        ((id_,),) = await self._rows(sa.select(sa.func.coalesce(sa.func.max(logs.c.id), 0)))
        return int(id_)

    async def _logs(self, statement: sa.Select[Any]) -> list[StoredLog]:
        return [StoredLog(*row) for row in await self._rows(statement)]

    async def _rows(self, statement: sa.Select[Any]) -> list[Any]:
        async with self._reading(), self._engine.connect() as connection:
            return list((await connection.execute(statement)).all())

    async def _check(self) -> None:
        async with self._reading(), self._engine.connect() as connection:
            if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table(logs.name)):
                raise StoreSetupError("the log store has no table of logs: no bridge has run with it yet")
            await connection.run_sync(check_version)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        try:
            yield
        except (*EXPECTED_ERRORS, sqlite3.Error) as error:
            failure = translated(error)
            if isinstance(failure, StoreSetupError):
                raise failure from None
            raise StoreUnavailableError(f"the log store cannot be read: {failure}") from None


def _conditions(selection: Selection) -> list[sa.ColumnElement[bool]]:
    conditions = []
    if selection.since is not None:
        conditions.append(logs.c.timestamp >= selection.since)
    if selection.level is not None:
        conditions.append(logs.c.level == str(selection.level))
    return conditions
