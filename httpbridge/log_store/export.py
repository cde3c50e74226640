"""All that is stored of a project, chunk by chunk in the order of commits, while others write, merge and drop.

Chunks are read some at a time, each time in a short transaction of its own, so that no snapshot is held and the memory
is bounded. What was read is remembered as the highest commit of it: merged meanwhile with what was not, a chunk is read
in part.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from httpbridge.log_store.chunk import IDS, ChunkDamagedError, Content, decompressed
from httpbridge.log_store.read_store import ReadStore, header_of
from httpbridge.log_store.scan import Header, Place, Scan
from httpbridge.log_store.schema import chunks, ids_of
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.tail import newest_cursor

_LISTED = 4096
"""Ids that are read at a time, from the index alone."""
_HEADERS = 64
"""Headers that are read at a time."""
_BYTES = 16 * 1024 * 1024
"""Of contents, before they were compressed, that are read at a time, unless one alone has more."""


class Part(NamedTuple):
    """A chunk, and which commits of it are asked for."""

    project_id: str
    row: Any
    """With the columns of its header, and its `size`."""
    compressed: bytes
    after: int
    last: int
    """Those behind `after`, up to and with this one."""

    @property
    def header(self) -> Header:
        """Its header, which is read anew each time."""
        return header_of(self.row[:-1])

    @property
    def is_whole(self) -> bool:
        """Whether all commits of it are asked for."""
        return bool(self.after < self.row.id and self.row.id + self.row.span <= self.last)


class Progress:
    """How far somebody is who reads a project."""

    def __init__(self) -> None:
        self.first = self.last = self.after = 0
        """Commits: where it began, where it ends, and the last one that was read."""

    @property
    def share(self) -> float:
        """About how much of the project was read, 0 to 1."""
        return min(1.0, (self.after - self.first) / max(1, self.last - self.first))


async def read_parts(
    store: ReadStore,
    scan: Scan,
    progress: Progress,
    takes: Callable[[Header], bool] | None = None,
) -> AsyncIterator[list[Part]]:
    """Yield the chunks of a project that had been committed by now, in the order of commits, some at a time.

    Of the scan, only project and time are asked for, and `takes` whether a chunk is wanted. Raises as ReadStore does.
    """
    progress.last = (await newest_cursor(store)).id
    while listed := await store.rows(_ids(scan, progress)):
        progress.first = progress.first or listed[0].id
        is_current = True
        while is_current and listed:
            parts, read, is_current = await _read(store, scan, progress, listed[:_HEADERS], takes)
            listed = listed[read:]
            if parts:
                yield parts
    progress.after = progress.last


def _ids(scan: Scan, progress: Progress) -> sa.Select[Any]:
    last = chunks.c.id + chunks.c.span
    within = sa.select(chunks.c.id, last.label("last")).where(
        chunks.c.project_id == scan.project_id,
        chunks.c.last_at >= scan.begin,
        chunks.c.first_at <= scan.end,
        chunks.c.id <= progress.last,
        last > progress.after,
    )
    # Not by the primary key, by which the chunks of all projects would be gone through.
    return within.order_by(chunks.c.id + 0).limit(_LISTED)


async def _read(
    store: ReadStore, scan: Scan, progress: Progress, listed: list[Any], takes: Callable[[Header], bool] | None
) -> tuple[list[Part], int, bool]:
    """Read the first of the listed chunks, as many as may be at a time.

    Return also how many of these are done with, and whether the others are still as they were listed.
    """
    columns = [chunks.c[name] for name in Header._fields]
    taken: list[tuple[Any, int]] = []
    ids = [row.id for row in listed]
    after, read, size = progress.after, 0, 0
    is_current = True
    async with store.connection() as connection:
        statement = sa.select(*columns, chunks.c.size).where(
            chunks.c.id.in_(ids_of(ids)), chunks.c.project_id == scan.project_id
        )
        found = {row.id: row for row in await connection.rows(statement)}
        for id_, last in listed:
            row = found.get(id_)
            if row is not None and row.id + row.span > after:
                if takes is None or takes(header_of(row[:-1])):
                    if taken and size + row.size > _BYTES:
                        break
                    taken.append((row, after))
                    size += row.size
                after = row.id + row.span
            elif row is None and last > after:  # it is part of another one now, or was dropped
                is_current = False
                break
            read += 1
        contents: dict[int, bytes] = {}
        if taken:
            wanted = [row.id for row, _ in taken]
            statement = sa.select(chunks.c.id, chunks.c.content).where(chunks.c.id.in_(ids_of(wanted)))
            contents = {row.id: row.content for row in await connection.rows(statement)}
    parts = [Part(scan.project_id, row, contents[row.id], before, progress.last) for row, before in taken]
    progress.after = max(after, progress.after)
    return parts, read, is_current


async def work_through(read: AsyncIterator[list[Part]], work: Callable[[list[Part]], None]) -> None:
    """Have a thread work at what is read, in its order, while the next is read. Raises what either raises."""
    working: asyncio.Task[None] | None = None
    try:
        async for parts in read:
            if working is not None:
                await asyncio.shield(working)
            working = asyncio.create_task(asyncio.to_thread(work, parts))
        if working is not None:
            await asyncio.shield(working)
    finally:
        if working is not None:
            await asyncio.wait([working])  # what it works with may be gone afterwards
            working.exception()  # is known by now, or not asked for: whoever waited was cancelled


class Exporter:
    """What matches a filter, as NDJSON: each line of a chunk is one of the export."""

    def __init__(self, store: ReadStore, selection: LogFilter) -> None:
        self._store = store
        self._scan = Scan(selection)
        self._is_all = selection == LogFilter(project_id=selection.project_id)
        self.progress = Progress()

    def parts(self) -> AsyncIterator[list[Part]]:
        """Yield the chunks that may have something; raises as ReadStore does."""
        takes = None if self._is_all else lambda header: self._scan.may_match(header.summary)
        return read_parts(self._store, self._scan, self.progress, takes)

    def write(self, part: Part, write: Callable[[bytes | memoryview], object]) -> tuple[int, int]:
        """Write what matches of a chunk, and return how many entries and bytes that is; for any thread.

        Raises ChunkDamagedError, which names the chunk, also after some of it was written.
        """
        try:
            if part.is_whole and (self._is_all or self._scan.takes_all(part.header)):
                size = 0
                for piece in _lines(part.compressed):
                    write(piece)
                    size += len(piece)
                return part.row.entries, size
            content = Content(part.row.id, part.compressed)
            places = self._places(part, content)
            text = b"".join([b"%b\n" % place.line for place in places])
        except ChunkDamagedError as error:
            raise ChunkDamagedError(error.reason, part.row.id) from None
        write(text)
        return len(places), len(text)

    def _places(self, part: Part, content: Content) -> list[Place]:
        places = self._scan.places(part.header, content)
        if part.is_whole:
            return places
        ids = content.ids
        return [place for place in places if part.after < ids[place.number] // IDS <= part.last]


def _lines(compressed: bytes) -> Iterator[bytes | memoryview]:
    """Yield the lines of a content, piece by piece. Raises ChunkDamagedError, at the latest at the end."""
    is_head = True
    for piece in decompressed(compressed):
        if is_head:
            end = piece.find(b"\n")
            is_head = end < 0
            if not is_head:
                yield memoryview(piece)[end + 1 :]
        else:
            yield piece
    if is_head:
        raise ChunkDamagedError("its content has no head")
