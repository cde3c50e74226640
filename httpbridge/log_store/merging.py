"""Merging: small chunks of a project, next to each other, become large ones, in the background.

Small commits make small chunks, which take several times the room. `plan` says which to merge: as soon as there are
many, and the few that are left when a project is quiet. Each merge is one transaction, so a reader sees the chunks
before it or the one after it. One process of all that write to a store does it at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from httpbridge.log_store.chunk import Chunk, ChunkDamagedError, merged
from httpbridge.log_store.chunk_writes import StoredChunk, replace
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import WRITTEN_COLUMNS, NowSeconds, chunks, ids_of
from httpbridge.log_store.sink import MaintainedStore

FULL_ENTRIES, FULL_BYTES = 2048, 512 * 1024
"""What a merged chunk has at most, unless one had more already. More is hardly smaller, and slower to search."""

_DAY_SECONDS = 86_400

_log = structlog.get_logger("httpbridge.log_store")


class MergeLimits(msgspec.Struct, frozen=True):
    """When chunks are merged."""

    chunks_min: int = 16
    """So many small chunks in a row are merged at once."""
    age_seconds: int = 30
    """Younger ones are left alone: a live tail finds what it has not seen by the transaction that wrote it."""
    quiet_seconds: int = 600
    """A project without new chunks for so long has what is left of it merged."""
    share: float = 0.1
    """Of the time merging may take."""
    listed_max: int = 2048
    """Chunks of a project that are looked at in a turn, so that a long backlog takes no more memory."""


MERGE_LIMITS = MergeLimits()


class Small(NamedTuple):
    """A chunk, for the plan; the names are those of the columns."""

    id: int
    span: int
    version: int
    stored_at: int
    entries: int
    size: int

    @property
    def is_full(self) -> bool:
        """Whether it is left as it is."""
        return 2 * self.entries > FULL_ENTRIES or 2 * self.size > FULL_BYTES


def plan(found: Sequence[Small], chunks_min: int) -> list[list[Small]]:
    """Return which of a project's chunks, by id, to merge: rows of at least so many small ones, cut where one is full.

    A chunk joins others only if these are as large together: so an entry is written anew a few times at the most. None
    are joined that were stored on different days: retention drops whole chunks.
    """
    merges: list[list[Small]] = []
    for (is_full, _), row in groupby(found, lambda chunk: (chunk.is_full, chunk.stored_at // _DAY_SECONDS)):
        group: list[Small] = []
        for chunk in () if is_full else row:
            if group and not _fits(group, chunk):
                merges.append(group)
                group = []
            group.append(chunk)
        if group:
            merges.append(group)
    return [group for group in map(_without_heads, merges) if len(group) >= chunks_min]


def _fits(group: list[Small], chunk: Small) -> bool:
    return (
        sum(one.entries for one in group) + chunk.entries <= FULL_ENTRIES
        and sum(one.size for one in group) + chunk.size <= FULL_BYTES
    )


def _without_heads(group: list[Small]) -> list[Small]:
    """Leave out first chunks that are larger than all after them: they wait for more."""
    rest = sum(chunk.size for chunk in group)
    for number, chunk in enumerate(group):
        rest -= chunk.size
        if chunk.size <= rest:
            return group[number:]
    return []


class _Project(msgspec.Struct):
    """What is known of a project with small chunks."""

    first_id: int
    """Of the first chunk that may be merged."""
    new: int = 0
    """Chunks since it was last looked at."""
    newest_at: int = 0
    """When the last of them was stored."""


class Merger:
    """Merges the chunks of a store; one process at a time may. Reads by way of `reader`."""

    def __init__(
        self,
        store: MaintainedStore,
        reader: ReadStore,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limits: MergeLimits = MERGE_LIMITS,
    ) -> None:
        """`monotonic` is in seconds."""
        self._store, self._reader = store, reader
        self._monotonic, self._sleep, self._limits = monotonic, sleep, limits
        self._projects: dict[str, _Project] = {}
        self._seen_id = 0

    async def merge(self, *, until: float = float("inf"), is_last: bool = False) -> None:
        """Merge what there is to merge; with `is_last` whatever is small, and without rest. Raises as the stores do.

        At the time `until`, of the clock given, it stops in the middle; the next call goes on with another project.
        """
        now = await self._note_new()
        for project_id, project in list(self._projects.items()):
            is_quiet = is_last or now - project.newest_at > self._limits.quiet_seconds
            if project.new >= (1 if is_quiet else self._limits.chunks_min):
                self._projects[project_id] = self._projects.pop(project_id)
                while await self._merge_project(project_id, project, now, until, is_quiet=is_quiet, is_last=is_last):
                    pass
            if self._monotonic() >= until:
                return

    async def _note_new(self) -> int:
        """Count new chunks by project; return the store's time."""
        async with self._reader.connection() as connection:
            now = (await connection.rows(sa.select(NowSeconds())))[0][0]
            new = sa.select(
                chunks.c.project_id, sa.func.count(), sa.func.min(chunks.c.id), sa.func.max(chunks.c.id),
                sa.func.max(chunks.c.stored_at),
            )  # fmt: skip
            is_small = sa.and_(2 * chunks.c.entries <= FULL_ENTRIES, 2 * chunks.c.size <= FULL_BYTES)
            new = new.where(chunks.c.id > self._seen_id, is_small).group_by(chunks.c.project_id)
            for project_id, number, first_id, last_id, stored_at in await connection.rows(new):
                project = self._projects.setdefault(project_id, _Project(first_id))
                project.new += number
                project.newest_at = max(project.newest_at, stored_at)
                self._seen_id = max(self._seen_id, last_id)
        return int(now)

    async def _merge_project(
        self, project_id: str, project: _Project, now: int, until: float, *, is_quiet: bool, is_last: bool
    ) -> bool:
        """Merge what was listed; return whether to go on at once with what was not."""
        found = listed = await self._small(project_id, project.first_id)
        if not is_last or self._reader.late_ids:  # else a chunk may yet appear between two that are merged
            found = [chunk for chunk in found if chunk.stored_at < now - self._limits.age_seconds]
        merges = plan(found, 2 if is_quiet else self._limits.chunks_min)
        for group in merges:
            began = self._monotonic()
            if began >= until:
                return False
            await self._merge(project_id, group)
            if not is_last:
                await self._sleep((self._monotonic() - began) * (1 / self._limits.share - 1))
        if merges or is_quiet:
            # What is too young yet, or was not listed, is for a later turn.
            is_rest = len(listed) == self._limits.listed_max
            project.new = max(len(listed) - len(found), self._limits.chunks_min if is_rest else 0)
        project.first_id = max((chunk.id + 1 for chunk in found if chunk.is_full), default=project.first_id)
        return is_last and bool(merges) and len(listed) == self._limits.listed_max

    async def _small(self, project_id: str, first_id: int) -> list[Small]:
        columns = sa.select(*(chunks.c[name] for name in Small._fields))
        of_project = columns.where(chunks.c.project_id == project_id, chunks.c.id >= first_id).order_by(chunks.c.id)
        return [Small(*row) for row in await self._reader.rows(of_project.limit(self._limits.listed_max))]

    async def _merge(self, project_id: str, group: list[Small]) -> None:
        columns = sa.select(chunks.c.id, *(chunks.c[name] for name in WRITTEN_COLUMNS))
        of_group = columns.where(chunks.c.id.in_(ids_of(one.id for one in group)))
        rows = await self._reader.rows(of_group.order_by(chunks.c.id))
        parts = [(id_, Chunk(*values)) for id_, *values in rows]
        if len(parts) != len(group):
            return  # somebody else has erased some of it
        try:
            chunk = await asyncio.to_thread(merged, parts)
        except ChunkDamagedError as error:
            _log.error("log_chunk_damaged", project=project_id, ids=[one.id for one in group], reason=str(error))
            return
        first, last = group[0], group[-1]
        stored_at = max(one.stored_at for one in group)
        version = 1 + max(one.version for one in group)
        new = StoredChunk(first.id, last.id + last.span - first.id, version, stored_at, chunk)
        old = [(one.id, one.version) for one in group]
        await self._store.transact(lambda connection: replace(connection, old, new))
