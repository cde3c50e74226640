"""What arrives in a project, in the order of arrival: the source of the dashboard's live tail.

Called by `dashboard/log_stream`, one LogTail a stream. Arrival is by `id`, not by `timestamp`, which clients choose.
"""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from httpbridge.sinks.log_rows import LogFilter, LogRow, cut_columns, matches, row_of
from httpbridge.sinks.read_store import ReadStore
from httpbridge.sinks.schema import logs

ARRIVALS_MAX = 100
"""Entries that one look returns; of more, the newest."""

IDS_MAX = 100_000
"""How far back one look goes, in rows of all projects."""

CHARACTERS_MAX = 4_000
"""Of each text of an entry."""


class Arrivals(msgspec.Struct, frozen=True):
    """What a look found."""

    rows: Sequence[LogRow]
    """By id."""
    id: int
    """Where the next look begins; for another LogTail, too."""
    is_gap: bool
    """Whether older ones were left out."""


async def newest_id(store: ReadStore) -> int:
    """Return the highest id in the store, 0 when it is empty."""
    ((id_,),) = await store.rows(sa.select(sa.func.coalesce(sa.func.max(logs.c.id), 0)))
    return int(id_)


class LogTail:
    """Follows one project from behind an id on; every entry is returned once."""

    def __init__(self, store: ReadStore, selection: LogFilter, after_id: int) -> None:
        self._store = store
        self._selection = selection
        self._begin_id = self._id = after_id
        self._seen: frozenset[int] = frozenset()
        """Those returned whose ids the next look sees again."""

    async def look(self) -> Arrivals:
        """Return what became visible since the last look; raises as ReadStore does."""
        newest = await newest_id(self._store)
        # An id can become visible late; see LATE_IDS. But nothing from before the beginning is new.
        above = max(self._id - self._store.late_ids, self._begin_id)
        floor = max(above, newest - IDS_MAX)
        ids = await self._ids(floor, newest)
        rows = await self._rows([id_ for id_ in ids[:ARRIVALS_MAX] if id_ not in self._seen])
        is_gap = floor > self._id or any(id_ not in self._seen for id_ in ids[ARRIVALS_MAX:])
        self._id = max(newest, self._id)
        self._seen = frozenset(id_ for id_ in ids if id_ > self._id - self._store.late_ids)
        return Arrivals(rows, self._id, is_gap)

    async def _ids(self, above: int, up_to: int) -> list[int]:
        """Return the ids that match, newest first, read by the primary key."""
        selection = self._selection
        # The concatenation keeps the planner from the index of the project, all of which it would read.
        statement = sa.select(logs.c.id).where(
            logs.c.project_id.concat("") == selection.project_id, logs.c.id > above, logs.c.id <= up_to
        )
        if selection.since is not None:
            statement = statement.where(logs.c.timestamp >= selection.since)
        if selection.until is not None:
            statement = statement.where(logs.c.timestamp < selection.until)
        if (condition := matches(selection)) is not None:
            statement = statement.where(condition)
        return [id_ for (id_,) in await self._store.rows(statement.order_by(logs.c.id.desc()))]

    async def _rows(self, ids: Sequence[int]) -> list[LogRow]:
        if not ids:
            return []
        statement = sa.select(*cut_columns(CHARACTERS_MAX)).where(logs.c.id.in_(ids)).order_by(logs.c.id)
        return [row_of(row, CHARACTERS_MAX) for row in await self._store.rows(statement)]
