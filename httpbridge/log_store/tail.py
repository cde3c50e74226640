"""What arrives in a project while somebody follows it: the live tail of the dashboard, and `httpbridge logs --follow`.

It goes by commits: a cursor says which had been made at a poll, and the next poll returns the entries of all others.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.chunk import IDS, ChunkDamagedError
from httpbridge.log_store.read_store import Reading, ReadStore, header_of, of_content
from httpbridge.log_store.scan import Found, Header, Scan
from httpbridge.log_store.schema import chunks
from httpbridge.log_store.selection import LogFilter, LogRow, cut

ENTRIES_MAX = 100_000
"""How far back one poll goes, in entries of the project."""

CHARACTERS_MAX = 4_000
"""Of each text of an entry."""

RUNNING_MAX = 200
"""Transactions that a cursor names; it is as long as a header may be."""

_CURSOR = re.compile(rf"[0-9]{{1,18}}(_[0-9]{{1,18}}){{0,{RUNNING_MAX + 1}}}")
_XID_MASK = 0xFFFF_FFFF  # a row knows the lower 32 bits of its transaction


class Cursor(msgspec.Struct, frozen=True):
    """What had arrived at a poll: all that was visible then, no more and no less.

    On SQLite commits become visible in the order of their ids. PostgreSQL gives these out before the commit, so with
    several bridges a lower id may appear after a higher one; there a cursor also knows which transactions were not
    over.
    """

    id: int
    """The highest one of a chunk."""
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
    """Whether some were left out: older ones, or what cannot be read."""


_SQLITE_ID = sa.text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'chunks'")
_POSTGRES_ID = sa.text(
    "SELECT CASE WHEN is_called THEN last_value ELSE 0 END, CAST(pg_current_snapshot() AS text) FROM chunks_id_seq"
)
"""The newest id that was given away: the chunk that had it may have been merged."""


async def newest_cursor(store: ReadStore) -> Cursor:
    """Return the cursor of all that has arrived; its id is 0 when the store is empty."""
    async with store.connection() as connection:
        return await _cursor(connection, store)


async def _cursor(connection: Reading, store: ReadStore) -> Cursor:
    if not store.late_ids:
        return Cursor((await connection.rows(_SQLITE_ID))[0][0])
    ((id_, text),) = await connection.rows(_POSTGRES_ID)
    begin, end, listed = text.split(":")  # "xmin:xmax:xip_list", says PostgreSQL's manual
    running = tuple(map(int, listed.split(","))) if listed else ()
    # Of too many none is named: what ended since the first of them then counts as new, which repeats some of it.
    return Cursor(id_, int(end), running) if len(running) <= RUNNING_MAX else Cursor(id_, int(begin))


class LogTail:
    """Follows one project from behind a cursor on; every entry is returned once."""

    def __init__(self, store: ReadStore, selection: LogFilter, after: Cursor, *, entries_max: int | None = 100) -> None:
        """One poll returns at most `entries_max`; of more, the newest."""
        self._store = store
        self._scan = Scan(selection)
        self._cursor = after
        self._entries_max = entries_max

    async def poll(self) -> Arrivals:
        """Return what became visible since the last poll, texts cut; raises as ReadStore does."""
        found, is_gap = await self.found()
        rows = [cut(one.log(self._scan.project_id), CHARACTERS_MAX) for one in found]
        return Arrivals(rows, self._cursor, is_gap)

    async def found(self) -> tuple[list[Found], bool]:
        """Return the same whole, and whether some were left out."""
        last = self._cursor
        found: list[Found] = []
        searched, is_gap = 0, False
        async with self._store.connection() as connection:
            now = await _cursor(connection, self._store)
            arrived = await connection.rows(_arrived(self._scan.project_id, last, now, self._store.late_ids))
            for row in arrived:
                chunk = header_of(row)
                if searched and searched + chunk.entries > ENTRIES_MAX:
                    is_gap = True
                    break
                if not self._scan.may_match(chunk.summary):
                    continue
                searched += chunk.entries
                try:
                    of_chunk = await of_content(connection, chunk.id, partial(self._scan.found, chunk))
                except ChunkDamagedError:
                    is_gap = True
                    continue
                if chunk.version or last.next_xid is None:  # it may have older ones, too
                    of_chunk = [one for one in of_chunk if last.id < one.id // IDS <= now.id]
                found = of_chunk + found
                if self._entries_max is not None and len(found) > self._entries_max:
                    found, is_gap = found[-self._entries_max :], True
                    break
        self._cursor = now
        return found, is_gap


def _arrived(project_id: str, last: Cursor, now: Cursor, late_ids: int) -> sa.Select[Any]:
    """Select the chunks that are visible at one cursor and were not at the other, or may be, newest first."""
    id_, last_id = chunks.c.id, chunks.c.id + chunks.c.span
    arrived: sa.ColumnElement[bool] = last_id > last.id
    if last.next_xid is not None and now.next_xid is not None and last.next_xid <= now.next_xid:  # of one server
        xid: sa.ColumnElement[int] = sa.literal_column("CAST(CAST(xmin AS TEXT) AS BIGINT)", sa.BigInteger)
        transactions_ago = (sa.literal(now.next_xid, sa.BigInteger) - xid).bitwise_and(_XID_MASK)
        began_since = transactions_ago.between(1, now.next_xid - last.next_xid)
        ended_since = xid.in_([running & _XID_MASK for running in last.running])
        is_running = xid.in_([running & _XID_MASK for running in now.running])
        committed = sa.and_(last_id > last.id - late_ids, sa.or_(began_since, ended_since), sa.not_(is_running))
        # One that was written anew is as old as what is in it.
        arrived = sa.case((chunks.c.version == 0, committed), else_=arrived)
    columns = [chunks.c[name] for name in Header._fields]
    return sa.select(*columns).where(chunks.c.project_id == project_id, arrived).order_by(id_.desc())
