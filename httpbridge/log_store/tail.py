"""What arrives in a project, in the order of arrival: the source of the dashboard's live tail.

One LogTail a stream. Arrival is by `id`, not by `timestamp`, which clients choose.
"""

import re
from collections.abc import Sequence
from typing import Self

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.log_rows import LogFilter, LogRow, cut_columns, matches, row_of
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import logs

ARRIVALS_MAX = 100
"""Entries that one poll returns; of more, the newest."""

IDS_MAX = 100_000
"""How far back one poll goes, in rows of all projects."""

CHARACTERS_MAX = 4_000
"""Of each text of an entry."""

RUNNING_MAX = 200
"""Transactions that a cursor names; it is as long as a header may be."""

_CURSOR = re.compile(rf"[0-9]{{1,18}}(_[0-9]{{1,18}}){{0,{RUNNING_MAX + 1}}}")
_XID_MASK = 0xFFFF_FFFF  # a row knows the lower 32 bits of its transaction


class Cursor(msgspec.Struct, frozen=True):
    """What had arrived at a poll: all that was visible then, no more and no less.

    On SQLite ids become visible in their order. PostgreSQL gives them out before the commit, so with several bridges
    a lower id may appear after a higher one; there a cursor also knows which transactions were not over.
    """

    id: int
    """The highest one."""
    next_xid: int | None = None
    """PostgreSQL: the transactions from here on had not begun."""
    running: tuple[int, ...] = ()
    """PostgreSQL: those before it that were not over."""

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Read `str(cursor)` back; None for anything else."""
        if _CURSOR.fullmatch(text) is None:
            return None
        id_, *xids = map(int, text.split("_"))
        return cls(id_, xids[0], tuple(xids[1:])) if xids else cls(id_)

    def __str__(self) -> str:
        """Write it for a URL or the id of an event."""
        xids = () if self.next_xid is None else (self.next_xid, *self.running)
        return "_".join(map(str, (self.id, *xids)))


class Arrivals(msgspec.Struct, frozen=True):
    """What a poll found."""

    rows: Sequence[LogRow]
    """By id."""
    cursor: Cursor
    """Where the next poll begins; for another LogTail, too."""
    is_gap: bool
    """Whether older ones were left out."""


async def newest_cursor(store: ReadStore) -> Cursor:
    """Return the cursor of all that has arrived; its id is 0 when the store is empty."""
    newest = sa.func.coalesce(sa.func.max(logs.c.id), 0)
    if not store.late_ids:
        ((id_,),) = await store.rows(sa.select(newest))
        return Cursor(id_)
    snapshot = sa.cast(sa.func.pg_current_snapshot(), sa.Text)
    ((id_, text),) = await store.rows(sa.select(newest, snapshot))
    begin, end, listed = text.split(":")  # "xmin:xmax:xip_list", says PostgreSQL's manual
    running = tuple(map(int, listed.split(","))) if listed else ()
    # Of too many none is named: what ended since the first of them then counts as new, which repeats some of it.
    return Cursor(id_, int(end), running) if len(running) <= RUNNING_MAX else Cursor(id_, int(begin))


class LogTail:
    """Follows one project from behind a cursor on; every entry is returned once."""

    def __init__(self, store: ReadStore, selection: LogFilter, after: Cursor) -> None:
        self._store = store
        self._selection = selection
        self._cursor = after

    async def poll(self) -> Arrivals:
        """Return what became visible since the last poll; raises as ReadStore does."""
        last, now = self._cursor, await newest_cursor(self._store)
        floor = max(last.id - self._store.late_ids, now.id - IDS_MAX)
        newest = arrivals(self._selection, floor, last, now).limit(ARRIVALS_MAX + 1)
        ids = [id_ for (id_,) in await self._store.rows(newest)]
        rows = await self._rows(ids[:ARRIVALS_MAX])
        self._cursor = now
        return Arrivals(rows, now, is_gap=floor > last.id or len(ids) > ARRIVALS_MAX)

    async def _rows(self, ids: Sequence[int]) -> list[LogRow]:
        if not ids:
            return []
        statement = sa.select(*cut_columns(CHARACTERS_MAX)).where(logs.c.id.in_(ids)).order_by(logs.c.id)
        return [row_of(row, CHARACTERS_MAX) for row in await self._store.rows(statement)]


def arrivals(selection: LogFilter, above: int, last: Cursor, now: Cursor) -> sa.Select[tuple[int]]:
    """Select the ids of what matches and became visible between two polls, newest first, by the primary key."""
    conditions = [
        logs.c.id > above,
        logs.c.id <= now.id,
        # The concatenation keeps the planner from the index of the project, all of which it would read.
        logs.c.project_id.concat("") == selection.project_id,
        _arrived(last, now),
        *matches(selection),
    ]
    if selection.since is not None:
        conditions.append(logs.c.timestamp >= selection.since)
    if selection.until is not None:
        conditions.append(logs.c.timestamp < selection.until)
    return sa.select(logs.c.id).where(*conditions).order_by(logs.c.id.desc())


def _arrived(last: Cursor, now: Cursor) -> sa.ColumnElement[bool]:
    """Select what is visible at one cursor and was not at the other."""
    if last.next_xid is None or now.next_xid is None or last.next_xid > now.next_xid:  # the last: another server
        return logs.c.id > last.id
    xid: sa.ColumnElement[int] = sa.literal_column("CAST(CAST(xmin AS TEXT) AS BIGINT)", sa.BigInteger)
    transactions_ago = (sa.literal(now.next_xid, sa.BigInteger) - xid).bitwise_and(_XID_MASK)
    began_since = transactions_ago.between(1, now.next_xid - last.next_xid)
    ended_since = xid.in_([running & _XID_MASK for running in last.running])
    is_running = xid.in_([running & _XID_MASK for running in now.running])
    return sa.and_(sa.or_(began_since, ended_since), sa.not_(is_running))
