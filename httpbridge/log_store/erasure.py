"""Erasure: entries of a project go, whatever chunk they are in, and nothing readable is left of them in the store.

It takes chunk after chunk, each in a transaction, and begins again with one that was merged meanwhile. What arrives
after it began stays.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.chunk import IDS, without
from httpbridge.log_store.chunk_writes import FORGOTTEN_MAX, StoredChunk, forget, replace
from httpbridge.log_store.read_store import ReadStore, content_of, header_of
from httpbridge.log_store.scan import Header, Scan
from httpbridge.log_store.schema import chunks, erasures, idempotency_keys
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import Transactions
from httpbridge.text import rfc3339

_LISTED = 256
"""Chunks that are listed at a time."""

_PAUSE_SECONDS = 0.02
"""Between two transactions that forget idempotency keys."""

_SCRUBS_MAX = 20
_SCRUB_PAUSE_SECONDS = 0.3
"""Between two attempts to empty the WAL, each of which keeps others from writing while it waits for readers."""


class Receipt(msgspec.Struct, frozen=True):
    """What was erased."""

    project_id: str
    selection: str
    """Which entries, in words."""
    entries: int
    by: str
    erased_at: datetime
    """By the store's clock; aware and in UTC."""
    is_scrubbed: bool
    """Whether nothing of it is left in the database's files; False where a reader kept the WAL."""


class Erased(NamedTuple):
    """An erasure that was, or is still going on. The names are those of the columns."""

    erased_at: int
    """When it began, in seconds since 1970."""
    by: str
    selection: str
    entries: int
    is_scrubbed: bool | None
    """See Receipt; None while it goes on, and where it was broken off."""


class Erasure:
    """Erases what a filter selects; see `run`."""

    def __init__(
        self,
        store: Transactions,
        reader: ReadStore,
        selection: LogFilter,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store, self._reader, self._selection, self._sleep = store, reader, selection, sleep
        self._scan = Scan(selection)
        self._is_of_time = selection == LogFilter(
            project_id=selection.project_id, since=selection.since, until=selection.until
        )
        self._erasure_id: int | None = None
        """The row of the one under way."""

    async def run(self, by: str, noted: Callable[[int], None] = lambda _: None) -> Receipt:
        """Erase, and note it with who asked for it; `noted` is told how many have gone, now and then.

        A whole project loses its idempotency keys with its logs. Raises as the stores do: then some of it may be gone,
        and is noted as such.
        """
        words = described(self._selection)
        noted_words = described(self._selection, is_text_told=False)
        row = {"project_id": self._selection.project_id, "by": by, "selection": noted_words, "entries": 0}
        self._erasure_id, begun_at, until = await self._store.transact(partial(_begin, row=row))
        entries = await self._each(until, noted)
        if self._selection == LogFilter(project_id=self._selection.project_id):
            await self._forget_keys(begun_at)
        is_scrubbed = await self._scrub()
        ended = erasures.update().where(erasures.c.id == self._erasure_id).values(is_scrubbed=is_scrubbed)
        await self._store.transact(lambda connection: connection.execute(ended))
        erased_at = datetime.fromtimestamp(begun_at, UTC)
        return Receipt(self._selection.project_id, words, entries, by, erased_at, is_scrubbed)

    async def count(self, noted: Callable[[int], None] = lambda _: None) -> int:
        """Return how many entries would go. Raises as ReadStore does."""
        ((until,),) = await self._reader.rows(_last_id(self._selection.project_id))
        return await self._each(until or 0, noted, is_dry=True)

    async def _each(self, until: int, noted: Callable[[int], None], *, is_dry: bool = False) -> int:
        above = entries = 0
        while listed := await self._next(above, until):
            for header in listed:
                gone = await self._from(header, until, is_dry=is_dry)
                if gone is None:
                    break  # merged meanwhile: with those after it
                entries += gone
                above = header.id + header.span
                noted(entries)
        return entries

    async def _next(self, above: int, until: int) -> list[Header]:
        """Return the next chunks that reach into the time, by id."""
        scan, last_id = self._scan, chunks.c.id + chunks.c.span
        statement = sa.select(*(chunks.c[name] for name in Header._fields)).where(
            chunks.c.project_id == scan.project_id, last_id > above, chunks.c.id <= until,
            chunks.c.last_at >= scan.begin, chunks.c.first_at <= scan.end,
        )  # fmt: skip
        return list(map(header_of, await self._reader.rows(statement.order_by(chunks.c.id).limit(_LISTED))))

    async def _from(self, header: Header, until: int, *, is_dry: bool) -> int | None:
        """Erase from one chunk; return how many entries, or None if it is not as it was."""
        is_older = header.id + header.span <= until  # else it was merged with what arrived meanwhile
        if not self._scan.may_match(header.summary):
            return 0
        async with self._reader.connection() as connection:
            statement = sa.select(chunks.c.version, chunks.c.stored_at).where(chunks.c.id == header.id)
            (row,) = await connection.rows(statement) or [None]
            if row is None or row.version != header.version:
                return None
            is_all = is_older and self._is_of_time and self._scan.spans(header)
            content = None if is_all else await content_of(connection, header.id)
        if content is None:
            places = list(range(header.entries))
        else:
            places = [place.number for place in self._scan.places(header, content)]
            if not is_older:
                places = [place for place in places if content.ids[place] // IDS <= until]
        if is_dry or not places:
            return len(places)
        new = None
        if content is not None and len(places) < header.entries:
            chunk = without(self._scan.project_id, content, places)
            new = StoredChunk(header.id, header.span, header.version + 1, row.stored_at, chunk)
        old = [(header.id, header.version)]
        is_done = await self._store.transact(
            partial(_replace, old=old, new=new, erasure_id=self._erasure_id, entries=len(places))
        )
        return len(places) if is_done else None

    async def _forget_keys(self, until: int) -> None:
        """Forget the project's keys, but for those of batches that came since."""
        keys = idempotency_keys
        which = sa.and_(keys.c.project_id == self._selection.project_id, keys.c.stored_at <= until)
        while await self._store.transact(partial(forget, which=which, limit=FORGOTTEN_MAX)) == FORGOTTEN_MAX:
            await self._sleep(_PAUSE_SECONDS)

    async def _scrub(self) -> bool:
        while await self._store.reclaim():
            pass
        for _ in range(_SCRUBS_MAX):
            if await self._store.scrub():
                return True
            await self._sleep(_SCRUB_PAUSE_SECONDS)
        return False


async def erasures_of(store: ReadStore, project_id: str, most: int) -> list[Erased]:
    """Return a project's erasures, the newest first. Raises as ReadStore does."""
    columns = [erasures.c[name] for name in Erased._fields]
    found = sa.select(*columns).where(erasures.c.project_id == project_id).order_by(erasures.c.id.desc()).limit(most)
    return [Erased(*row) for row in await store.rows(found)]


def _begin(connection: sa.Connection, row: dict[str, Any]) -> tuple[int, int, int]:
    """Note an erasure that begins; return its id, when that is, and the last chunk that there is by then."""
    made = connection.execute(erasures.insert().values(row).returning(erasures.c.id, erasures.c.erased_at)).one()
    return made.id, made.erased_at, connection.execute(_last_id(row["project_id"])).scalar() or 0


def _last_id(project_id: str) -> sa.Select[Any]:
    return sa.select(sa.func.max(chunks.c.id + chunks.c.span)).where(chunks.c.project_id == project_id)


def _replace(
    connection: sa.Connection, old: list[tuple[int, int]], new: StoredChunk | None, erasure_id: int | None, entries: int
) -> bool:
    """Put a chunk in the place of another, and count what has gone with that."""
    if not replace(connection, old, new):
        return False
    more = erasures.update().where(erasures.c.id == erasure_id).values(entries=erasures.c.entries + entries)
    connection.execute(more)
    return True


def described(selection: LogFilter, *, is_text_told: bool = True) -> str:
    """Say in words which entries of a project a filter selects.

    What is stored must not repeat a text that was erased, so it is not told there.
    """
    text = repr(selection.text) if is_text_told else f"of {len(selection.text)} characters"
    parts = [
        selection.since and f"since {rfc3339(selection.since)}",
        selection.until and f"until {rfc3339(selection.until)}",
        selection.levels and f"level {', '.join(sorted(selection.levels))}",
        selection.service is not None and f"service {selection.service}",
        selection.environment is not None and f"environment {selection.environment}",
        selection.text and f"with {'the' if is_text_told else 'a'} text {text}",
    ]
    return "; ".join(part for part in parts if part) or "everything"
