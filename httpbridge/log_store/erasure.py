"""Erasure: entries of a project go, whatever chunk they are in, and nothing readable is left of them in the store.

It takes chunk after chunk, each in a transaction, and begins again with one that was merged meanwhile. What arrives
after it began stays.
"""

from collections.abc import Callable
from functools import partial

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.chunk import without
from httpbridge.log_store.chunk_writes import StoredChunk, replace
from httpbridge.log_store.read_store import ReadStore, content_of, header_of
from httpbridge.log_store.scan import Header, Scan
from httpbridge.log_store.schema import chunks, erasures, idempotency_keys
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import MaintainedStore
from httpbridge.log_store.tail import newest_cursor
from httpbridge.text import rfc3339

_SCRUBS_MAX = 5
"""Attempts; each waits for readers as long as for a lock."""


class Receipt(msgspec.Struct, frozen=True):
    """What was erased, or would be."""

    project_id: str
    selection: str
    """Which entries, in words."""
    entries: int
    is_scrubbed: bool
    """Whether nothing of it is left in the database's files; False on a dry run, and where a reader kept the WAL."""


class Erasure:
    """Erases what a filter selects; see `run`."""

    def __init__(self, store: MaintainedStore, reader: ReadStore, selection: LogFilter) -> None:
        self._store, self._reader, self._selection = store, reader, selection
        self._scan = Scan(selection)

    async def count(self) -> int:
        """Return how many entries would go. Raises as ReadStore does."""
        return await self._each(is_dry=True)

    async def run(self, by: str, noted: Callable[[int], None] = lambda _: None) -> Receipt:
        """Erase, and note it with who asked for it; `noted` is told how many have gone, now and then.

        A whole project loses its idempotency keys with its logs. Raises as the stores do: then some of it may be gone.
        """
        entries = await self._each(noted)
        words = described(self._selection)
        await self._store.transact(partial(_note, selection=self._selection, words=words, by=by, entries=entries))
        return Receipt(self._selection.project_id, words, entries, await self._scrub())

    async def _each(self, noted: Callable[[int], None] = lambda _: None, *, is_dry: bool = False) -> int:
        until = (await newest_cursor(self._reader)).id
        above = entries = 0
        while (header := await self._next(above, until)) is not None:
            gone = await self._from(header, is_dry=is_dry)
            if gone is None:
                continue  # merged meanwhile: with those after it
            entries += gone
            above = header.id + header.span
            noted(entries)
        return entries

    async def _next(self, above: int, until: int) -> Header | None:
        """Return the next chunk that reaches into the time, by id, or None."""
        scan, last_id = self._scan, chunks.c.id + chunks.c.span
        statement = sa.select(*(chunks.c[name] for name in Header._fields)).where(
            chunks.c.project_id == scan.project_id, last_id > above, chunks.c.id <= until,
            chunks.c.last_at >= scan.begin, chunks.c.first_at <= scan.end,
        )  # fmt: skip
        rows = await self._reader.rows(statement.order_by(chunks.c.id).limit(1))
        return header_of(rows[0]) if rows else None

    async def _from(self, header: Header, *, is_dry: bool) -> int | None:
        """Erase from one chunk; return how many entries, or None if it is not as it was."""
        if not self._scan.may_match(header.summary):
            return 0
        async with self._reader.connection() as connection:
            statement = sa.select(chunks.c.version, chunks.c.stored_at).where(chunks.c.id == header.id)
            row = (await connection.execute(statement)).first()
            if row is None or row.version != header.version:
                return None
            content = await content_of(connection, header.id)
        places = self._scan.places(header, content)
        if is_dry or not places:
            return len(places)
        new = None
        if len(places) < header.entries:
            chunk = without(self._scan.project_id, content, places)
            new = StoredChunk(header.id, header.span, header.version + 1, row.stored_at, chunk)
        is_done = await self._store.transact(partial(replace, old=[(header.id, header.version)], new=new))
        return len(places) if is_done else None

    async def _scrub(self) -> bool:
        while await self._store.reclaim():
            pass
        for _ in range(_SCRUBS_MAX):
            if await self._store.scrub():
                return True
        return False


def _note(connection: sa.Connection, selection: LogFilter, words: str, by: str, entries: int) -> None:
    row = {"project_id": selection.project_id, "by": by, "selection": words, "entries": entries}
    connection.execute(erasures.insert().values(row))
    if selection == LogFilter(project_id=selection.project_id):
        connection.execute(idempotency_keys.delete().where(idempotency_keys.c.project_id == selection.project_id))


def described(selection: LogFilter) -> str:
    """Say in words which entries of a project a filter selects."""
    parts = [
        selection.since and f"since {rfc3339(selection.since)}",
        selection.until and f"until {rfc3339(selection.until)}",
        selection.levels and f"level {', '.join(sorted(selection.levels))}",
        selection.service is not None and f"service {selection.service}",
        selection.environment is not None and f"environment {selection.environment}",
        selection.text and f"with the text {selection.text!r}",
    ]
    return "; ".join(part for part in parts if part) or "everything"
