"""What the dashboard asks of the stored logs: pages, histograms, facets, activity, one row.

What arrives is `tail`'s. Every query names one project and a stretch of its entries, which the index bounds, and looks
at a bounded number of rows. What the index does not know (level, service, text) is searched stretch by stretch under a
budget of rows and seconds; where that is used up, the answer says how far it got, and the next one goes on there.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.log_rows import LogFilter, LogRow, Position, between, cut_columns, matches, row_of
from httpbridge.log_store.read_store import ReadStore, StoreSlowError
from httpbridge.log_store.schema import logs
from httpbridge.logs import Level

PAGE_ROWS = 100

TEXT_ROWS_MAX = 100_000
"""Rows searched for a text at a time: half of them by a page and half by its chart, or all by a page without one."""

ROWS_MAX = 250_000
"""Rows looked at for anything cheaper than a text at a time: on SQLite 0.2 to 0.4 s, measured."""

SEARCH_SECONDS_MAX = 2.0
"""After so long a search stops at the next stretch, whatever rows are left to it."""

STRETCH_ROWS_MIN, STRETCH_ROWS_MAX = 500, 20_000
"""A search begins with short stretches, as rows may have 5 MiB, and doubles them while they are quick."""

STRETCH_SECONDS_MAX = 0.2
"""After a slower stretch the next one is no longer."""

FACET_ROWS_MAX, FACETS_MAX = 20_000, 200
"""Services and environments are those of so many newest rows; so many pairs of them at most."""

ACTIVITY_LOGS_MAX = 10_000
"""A project's recent logs are counted so far: 0.2 s for a hundred busy projects, measured."""

_ACTIVITY_PROJECTS = 500
"""Projects a statement."""

ENTRIES_COUNTED_MAX = 1_000
"""Entries of a stretch of time are counted so far."""

LIST_CHARACTERS_MAX = 4_000
"""Of each text of an entry in a page of many."""

ROW_CHARACTERS_MAX = 200_000
"""Of each text of an entry by itself."""


class LogPage(msgspec.Struct, frozen=True):
    """Entries, newest first, and where to go on."""

    rows: Sequence[LogRow]
    older: Position | None
    """For `before` of the next page; None when there is nothing older."""
    has_more_to_search: bool
    """Whether the page ends at `older` because the budget was used up, not because it is full."""
    searched_rows: int
    """How many rows were looked at, at least."""


class Bucket(msgspec.Struct, frozen=True):
    """The matching entries of a stretch of time, by level; levels without any are absent."""

    start: datetime
    end: datetime
    """The first instant after."""
    counts: dict[Level, int]
    reached: Position | None = None
    """Where the count stopped when the budget was used up: what is older in it is not counted. None: all is."""


class Activity(msgspec.Struct, frozen=True):
    """How busy a project is."""

    last_hour_count: int
    """Entries of the last hour, up to ACTIVITY_LOGS_MAX and one more."""
    last_log_time: datetime | None
    """The newest entry's `timestamp`; those that claim to be of the day after tomorrow are not believed."""


@dataclass(slots=True)
class _Budget:
    rows: int
    deadline: float
    monotonic: Callable[[], float]
    stretch: int = 0
    began: float = 0.0

    def next_stretch(self) -> int:
        """Return how many rows to look at next."""
        now = self.monotonic()
        if self.stretch == 0:
            self.stretch = STRETCH_ROWS_MIN
        elif now - self.began <= STRETCH_SECONDS_MAX:
            self.stretch = min(2 * self.stretch, STRETCH_ROWS_MAX)
        self.began = now
        return min(self.stretch, self.rows)

    @property
    def is_used_up(self) -> bool:
        return self.rows <= 0 or self.monotonic() >= self.deadline


class LogQueries:
    """Raises StoreSetupError and StoreUnavailableError, as ReadStore does. `monotonic` is in seconds."""

    def __init__(self, store: ReadStore, *, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._monotonic = monotonic

    async def page(
        self,
        selection: LogFilter,
        before: Position | None = None,
        rows_max: int = PAGE_ROWS,
        *,
        is_counted: bool = False,
    ) -> LogPage:
        """Return the newest matching entries, or those before a position; `is_counted`: beside their `histogram`."""
        end = selection.end if before is None else min(before, selection.end)
        budget = self._budget(selection, is_shared=is_counted)
        budget_rows = budget.rows
        found: list[LogRow] = []
        async with self._store.connection() as connection:
            columns = sa.select(*cut_columns(LIST_CHARACTERS_MAX)).where(*matches(selection))
            while True:
                stretch_rows = budget.next_stretch()
                within = between(selection.project_id, selection.begin, end)
                begin = await _stretch_begin(connection, within, stretch_rows)
                within = between(selection.project_id, begin or selection.begin, end)
                statement = _newest_first(columns.where(*within)).limit(rows_max + 1 - len(found))
                rows = (await connection.execute(statement)).all()
                found += (row_of(row, LIST_CHARACTERS_MAX) for row in rows)
                budget.rows -= stretch_rows
                searched = budget_rows - budget.rows
                if len(found) > rows_max:
                    return LogPage(found[:rows_max], found[rows_max - 1].position, False, searched)
                if begin is None:
                    return LogPage(found, None, False, searched)
                if budget.is_used_up:
                    return LogPage(found, begin, True, searched)
                end = begin

    async def histogram(self, selection: LogFilter, edges: Sequence[datetime]) -> list[Bucket]:
        """Count the matching entries between each two of the edges, which ascend; oldest first.

        Buckets that the budget did not reach are absent, from the oldest on.
        """
        budget = self._budget(selection, is_shared=True)
        buckets: list[Bucket] = []
        async with self._store.connection() as connection:
            for start, end in reversed(list(pairwise(edges))):
                if budget.is_used_up:
                    break
                buckets.append(await _bucket(connection, selection, start, end, budget))
        return buckets[::-1]

    async def countable_since(self, selection: LogFilter) -> datetime | None:
        """Return from when on `histogram` has rows enough in its budget.

        None when it has for all that the filter spans, or where the store takes too long to find out: `histogram`
        then says how far it got.
        """
        within = between(selection.project_id, selection.begin, selection.end)
        newest = _newest_first(sa.select(logs.c.timestamp).where(*within))
        last_and_next = newest.offset(_rows_max(selection, is_shared=True) - 1).limit(2)
        try:
            rows: list[tuple[datetime]] = await self._store.rows(last_and_next)
        except StoreSlowError:
            return None
        return rows[0][0] if len(rows) > 1 else None

    async def count(self, selection: LogFilter) -> int:
        """Return how many entries the filter's time has, whatever else it says, up to the bound and one more."""
        within = between(selection.project_id, selection.begin, selection.end)
        first = sa.select(sa.literal(1)).select_from(logs).where(*within).limit(ENTRIES_COUNTED_MAX + 1)
        ((number,),) = await self._store.rows(sa.select(sa.func.count()).select_from(first.subquery()))
        return int(number)

    async def facets(self, selection: LogFilter) -> tuple[list[str], list[str]]:
        """Return the services and the environments of the newest entries in the filter's time, each sorted."""
        within = between(selection.project_id, selection.begin, selection.end)
        newest = _newest_first(sa.select(logs.c.service, logs.c.environment).where(*within)).limit(FACET_ROWS_MAX)
        pairs = await self._store.rows(sa.select(newest.subquery()).distinct().limit(FACETS_MAX))
        return sorted({service for service, _ in pairs}), sorted({environment for _, environment in pairs})

    async def oldest(self, project_id: str, since: datetime | None = None) -> datetime | None:
        """Return the `timestamp` of the oldest entry, or of the oldest since an instant."""
        statement = sa.select(sa.func.min(logs.c.timestamp)).where(logs.c.project_id == project_id)
        if since is not None:
            statement = statement.where(logs.c.timestamp >= since)
        rows: list[tuple[datetime | None]] = await self._store.rows(statement)
        return rows[0][0]

    async def row(self, project_id: str, id_: int) -> LogRow | None:
        """Return one entry of the project, its texts cut at ROW_CHARACTERS_MAX."""
        statement = sa.select(*cut_columns(ROW_CHARACTERS_MAX))
        rows = await self._store.rows(statement.where(logs.c.id == id_, logs.c.project_id == project_id))
        return row_of(rows[0], ROW_CHARACTERS_MAX) if rows else None

    async def activity(self, project_ids: Sequence[str], now: datetime) -> dict[str, Activity]:
        """Return how busy each project is, also those without any entry."""
        activity = {}
        for start in range(0, len(project_ids), _ACTIVITY_PROJECTS):
            statement = _activity(project_ids[start : start + _ACTIVITY_PROJECTS], now)
            for project_id, count, last_log_time in await self._store.rows(statement):
                activity[project_id] = Activity(count, last_log_time)
        return activity

    def _budget(self, selection: LogFilter, *, is_shared: bool) -> _Budget:
        rows = _rows_max(selection, is_shared=is_shared)
        return _Budget(rows, self._monotonic() + SEARCH_SECONDS_MAX, self._monotonic)


def _rows_max(selection: LogFilter, *, is_shared: bool) -> int:
    if not selection.text:
        return ROWS_MAX
    return TEXT_ROWS_MAX // 2 if is_shared else TEXT_ROWS_MAX


def _newest_first(statement: sa.Select[Any]) -> sa.Select[Any]:
    return statement.order_by(logs.c.timestamp.desc(), logs.c.id.desc())


async def _stretch_begin(connection: Any, within: Sequence[Any], rows: int) -> Position | None:
    """Return where the newest so many entries begin, read from the index alone; None when there are fewer."""
    statement = _newest_first(sa.select(logs.c.timestamp, logs.c.id).where(*within)).offset(rows - 1).limit(1)
    position = (await connection.execute(statement)).first()
    return None if position is None else Position(*position)


async def _bucket(connection: Any, selection: LogFilter, start: datetime, end: datetime, budget: _Budget) -> Bucket:
    """Count stretch by stretch, the newest first, as far as the budget goes."""
    begin = max(Position(start, 0), selection.begin)
    stop = min(Position(end, 0), selection.end)
    totals: Counter[Level] = Counter()
    while True:
        stretch_rows = budget.next_stretch()
        within = between(selection.project_id, begin, stop)
        counts = (await connection.execute(_counts(selection, within, stretch_rows))).one()
        totals.update({level: counts._mapping[level.value] for level in Level})
        budget.rows -= counts.scanned
        # Where there are more: the place of the last one that was looked at.
        reached = await _stretch_begin(connection, within, stretch_rows) if counts.scanned == stretch_rows else None
        if reached is None or budget.is_used_up:
            if reached is not None:
                older = between(selection.project_id, begin, reached)
                reached = None if await _stretch_begin(connection, older, 1) is None else reached
            return Bucket(start, end, {level: number for level, number in totals.items() if number}, reached)
        stop = reached


def _counts(selection: LogFilter, within: Sequence[Any], rows_max: int) -> sa.Select[Any]:
    """Count matching entries by level among the newest of a stretch, and how many were looked at."""
    # Counted by a column of its own, and not by leaving rows out: the limit is on those looked at.
    level = sa.case((sa.and_(sa.true(), *matches(selection)), logs.c.level)).label("level")
    newest = _newest_first(sa.select(level).where(*within)).limit(rows_max).subquery()
    of_levels = [sa.func.count().filter(newest.c.level == level.value).label(level.value) for level in Level]
    columns: list[sa.ColumnElement[Any]] = [sa.func.count().label("scanned"), *of_levels]
    return sa.select(*columns).select_from(newest)


def _activity(project_ids: Sequence[str], now: datetime) -> sa.Select[Any]:
    projects = sa.values(sa.column("project_id", sa.Text), name="projects").data([(id_,) for id_ in project_ids]).cte()
    of_project = (logs.c.project_id == projects.c.project_id, logs.c.timestamp < now + timedelta(days=1))
    recent = sa.select(sa.literal(1)).where(*of_project, logs.c.timestamp >= now - timedelta(hours=1))
    counted = recent.limit(ACTIVITY_LOGS_MAX + 1).correlate(projects).subquery()
    count = sa.select(sa.func.count()).select_from(counted).scalar_subquery()
    last = sa.select(sa.func.max(logs.c.timestamp)).where(*of_project).correlate(projects).scalar_subquery()
    return sa.select(projects.c.project_id, count, last)
