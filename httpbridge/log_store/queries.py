"""What the dashboard asks of the stored logs: pages, histograms, facets, activity, one entry.

What arrives is `tail`'s. Every query names one project and a stretch of its entries. The summaries of chunks answer
what they can; the contents of others are searched, the newest first, under a budget of entries and seconds. Where that
is used up, the answer says how far it got, and the next one goes on there.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.activity import Activity, activity_of
from httpbridge.log_store.chunk import IDS, LEVEL, TIMESTAMP, ChunkDamagedError, Content, instant_text
from httpbridge.log_store.read_store import Reading, ReadStore, content_of, headers, of_content, of_readable
from httpbridge.log_store.scan import Found, Header, Place, Scan, found_at, instant
from httpbridge.log_store.schema import chunks
from httpbridge.log_store.search_budget import Budget
from httpbridge.log_store.selection import ID_MAX, LogFilter, LogRow, Position, cut
from httpbridge.log_store.summary import LEVELS
from httpbridge.logs import Level

PAGE_ROWS = 100

LIST_CHARACTERS_MAX = 4_000
"""Of each text of an entry in a page of many."""

ROW_CHARACTERS_MAX = 200_000
"""Of each text of an entry by itself."""

_LETTER_LEVELS = {ord(level[0]): level for level in LEVELS}


class QueryLimits(msgspec.Struct, frozen=True):
    """How far queries go."""

    entries_max: int = 1_000_000
    """Searched at a time: half of them by a page and half by its chart, or all by a page without one."""
    search_seconds_max: float = 2.0
    """After so long a search stops at the next chunk, whatever entries are left to it."""
    facet_chunks_max: int = 256
    """Services and environments are those of so many chunks, the newest."""
    facets_max: int = 200
    """So many of each at most."""
    activity_entries_max: int = 10_000
    """A project's recent logs are counted so far."""
    counted_entries_max: int = 1_000
    """Entries of a stretch of time are counted so far."""


QUERY_LIMITS = QueryLimits()


class LogPage(msgspec.Struct, frozen=True):
    """Entries, newest first, and where to go on."""

    rows: Sequence[LogRow]
    older: Position | None
    """For `before` of the next page; None when there is nothing older."""
    has_more_to_search: bool
    """Whether the page ends at `older` because the budget was used up, not because it is full."""
    searched_rows: int
    """How many entries were looked at, at least."""
    is_damaged: bool
    """Whether chunks were left out that cannot be read."""


class Bucket(msgspec.Struct, frozen=True):
    """The matching entries of a stretch of time, by level; levels without any are absent."""

    start: datetime
    end: datetime
    """The first instant after."""
    counts: dict[Level, int]
    reached: Position | None = None
    """Where the count stopped when the budget was used up: not all that is older is counted. None: all is."""


class LogQueries:
    """Raises StoreSetupError and StoreUnavailableError, as ReadStore does. `monotonic` is in seconds."""

    def __init__(self, store: ReadStore, *, monotonic: Callable[[], float], limits: QueryLimits = QUERY_LIMITS) -> None:
        self._store = store
        self._monotonic = monotonic
        self.limits = limits

    async def page(
        self,
        selection: LogFilter,
        before: Position | None = None,
        rows_max: int = PAGE_ROWS,
        *,
        is_counted: bool = False,
    ) -> LogPage:
        """Return the newest matching entries, or those before a position; `is_counted`: beside their `histogram`."""
        scan = Scan(selection, end=before)
        budget = self._budget(is_shared=is_counted)
        found: list[Found] = []
        is_damaged, reached = False, ""
        """Entries after `reached` are all found."""
        async with self._store.connection() as connection:
            async for chunk in headers(connection, scan.project_id, scan.begin, scan.end):
                if len(found) > rows_max and found[-1].timestamp.decode() > chunk.last_at:
                    break
                if not scan.may_match(chunk.summary):
                    continue
                if not budget.allows(chunk, scan.end):
                    reached = chunk.last_at
                    break
                try:
                    found = await _newest(connection, scan, chunk, found, rows_max + 1)
                except ChunkDamagedError:
                    is_damaged = True
        found = [one for one in found if one.timestamp.decode() > reached]
        rows = [cut(one.log(scan.project_id), LIST_CHARACTERS_MAX) for one in found[:rows_max]]
        older = None
        if len(found) > rows_max:
            older, reached = rows[-1].position, ""
        elif reached:
            older = Position(instant(reached), ID_MAX)
        return LogPage(rows, older, bool(reached), budget.searched, is_damaged)

    async def histogram(self, selection: LogFilter, edges: Sequence[datetime]) -> list[Bucket]:
        """Count the matching entries between each two of the edges, which ascend; oldest first.

        Buckets that the budget did not reach are absent, from the oldest on.
        """
        scan = Scan(selection, Position(edges[0], 0), Position(edges[-1], 0))
        budget = self._budget(is_shared=True)
        texts = [instant_text(edge) for edge in edges]
        counts: list[Counter[Level]] = [Counter() for _ in edges[1:]]
        reached: Position | None = None
        async with self._store.connection() as connection:
            async for chunk in headers(connection, scan.project_id, scan.begin, scan.end):
                if not scan.may_match(chunk.summary):
                    continue
                known = scan.counts(chunk, texts)
                if known is None:
                    if not budget.allows(chunk, scan.end):
                        reached = Position(instant(chunk.last_at), ID_MAX)
                        break
                    known = await _counts(connection, scan, chunk, texts)
                for (bucket, level), number in known:
                    counts[bucket][level] += number
        first = 0 if reached is None else max(0, bisect_right(edges, reached.timestamp) - 1)
        return [
            Bucket(edges[number], edges[number + 1], dict(counts[number]), reached if number == first else None)
            for number in range(first, len(counts))
        ]

    async def countable_since(self, selection: LogFilter) -> datetime | None:
        """Return from when on `histogram` has entries enough in its budget, or None when it has for all of them.

        What summaries answer costs nothing of it.
        """
        if not selection.text:
            return None
        scan = Scan(selection)
        entries, newest = 0, ""
        async with self._store.connection() as connection:
            async for chunk in headers(connection, scan.project_id, scan.begin, scan.end):
                if scan.may_match(chunk.summary):
                    reached = min(chunk.last_at, scan.end)
                    if entries + chunk.entries > self.limits.entries_max // 2 and reached < newest:
                        return instant(reached) + timedelta(microseconds=1)
                    newest = newest or reached
                    entries += chunk.entries
        return None

    async def count(self, selection: LogFilter) -> int:
        """Return how many entries the filter's time has, whatever else it says, up to the bound and one more."""
        scan = _time_alone(selection)
        number = 0
        async with self._store.connection() as connection:
            async for chunk in headers(connection, scan.project_id, scan.begin, scan.end):
                if scan.spans(chunk):
                    number += chunk.entries
                else:
                    number += len(await of_readable(connection, chunk.id, partial(scan.places, chunk)) or [])
                if number > self.limits.counted_entries_max:
                    return self.limits.counted_entries_max + 1
        return number

    async def facets(self, selection: LogFilter) -> tuple[list[str], list[str]]:
        """Return the services and the environments of the newest chunks in the filter's time, each sorted."""
        scan = _time_alone(selection)
        services: set[str] = set()
        environments: set[str] = set()
        read, most = 0, self.limits.facets_max
        async with self._store.connection() as connection:
            async for chunk in headers(connection, scan.project_id, scan.begin, scan.end):
                summary = chunk.summary
                if scan.spans(chunk) and summary.services and summary.environments:
                    services.update(summary.services)
                    environments.update(summary.environments)
                else:
                    for one in await of_readable(connection, chunk.id, partial(scan.found, chunk)) or []:
                        log = one.log(scan.project_id)
                        services.add(log.service)
                        environments.add(log.environment)
                read += 1
                if read == self.limits.facet_chunks_max or len(services | environments) > 2 * most:
                    break
        return sorted(services)[:most], sorted(environments)[:most]

    async def oldest(self, project_id: str, since: datetime | None = None) -> datetime | None:
        """Return the `timestamp` of the oldest entry, or of the oldest since an instant."""
        scan = Scan(LogFilter(project_id=project_id, since=since))
        oldest: str | None = None
        async with self._store.connection() as connection:
            async for chunk in headers(connection, project_id, scan.begin, scan.end, oldest_first=True):
                if oldest is not None and oldest <= chunk.first_at:
                    break
                if scan.begin <= chunk.first_at:
                    oldest = chunk.first_at
                    break
                found = await of_readable(connection, chunk.id, partial(scan.found, chunk)) or []
                oldest = min([one.timestamp.decode() for one in found] + ([oldest] if oldest else []), default=None)
        return None if oldest is None else instant(oldest)

    async def row(self, project_id: str, id_: int) -> LogRow | None:
        """Return one entry of the project, its texts cut at ROW_CHARACTERS_MAX."""
        commit = id_ // IDS
        statement = sa.select(chunks.c.id).where(
            chunks.c.project_id == project_id, chunks.c.id <= commit, chunks.c.id + chunks.c.span >= commit
        )
        async with self._store.connection() as connection:
            rows = await connection.rows(statement)
            if not rows:
                return None
            content = await content_of(connection, rows[0].id)
        if id_ not in content.ids:
            return None
        place = content.ids.index(id_)
        return cut(found_at(content, Place(place, content.lines[place])).log(project_id), ROW_CHARACTERS_MAX)

    async def activity(self, project_ids: Sequence[str], now: datetime) -> dict[str, Activity]:
        """Return how busy each project is, also those without any entry."""
        return await activity_of(self._store, project_ids, now, self.limits.activity_entries_max)

    def _budget(self, *, is_shared: bool) -> Budget:
        entries = self.limits.entries_max // 2 if is_shared else self.limits.entries_max
        return Budget(entries, self.limits.search_seconds_max, self._monotonic)


def _time_alone(selection: LogFilter) -> Scan:
    return Scan(LogFilter(project_id=selection.project_id, since=selection.since, until=selection.until))


async def _newest(connection: Reading, scan: Scan, chunk: Header, found: list[Found], number: int) -> list[Found]:
    """Return the newest of what was found and what a chunk has, newest first."""

    def newest(content: Content) -> list[Found]:
        return sorted([*found, *scan.found(chunk, content, number)], key=_order, reverse=True)[:number]

    return await of_content(connection, chunk.id, newest)


def _order(found: Found) -> tuple[bytes, int]:
    return found[:2]


async def _counts(
    connection: Reading, scan: Scan, chunk: Header, edges: list[str]
) -> list[tuple[tuple[int, Level], int]]:
    """Count what matches by bucket and level."""

    def count(content: Content) -> Counter[tuple[int, Level]]:
        limits = [edge.encode() for edge in edges]
        return Counter(
            (bisect_right(limits, place.line[TIMESTAMP]) - 1, _LETTER_LEVELS[place.line[LEVEL]])
            for place in scan.places(chunk, content)
        )

    return list((await of_readable(connection, chunk.id, count) or Counter[tuple[int, Level]]()).items())
