"""Retention: whole chunks go, the oldest first, by age or by bytes, as the operator's and each project's settings say.

Age counts from receipt, by the store's clock; a chunk goes when its last entry does. What goes is counted by project in
the same transaction. Transactions are small, and ingestion goes on between them.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from httpbridge.log_store.chunk_writes import FORGOTTEN_MAX, forget, overwriting_less
from httpbridge.log_store.idempotency import KEPT_SECONDS, KEYS_MAX
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import STORED_BYTES, NowSeconds, chunks, idempotency_keys, ids_of, project_data
from httpbridge.log_store.sink import MaintainedStore

_DROPPED_MAX = 64
"""Chunks a transaction."""

_FOUND_MAX = 10_000
_DAY_SECONDS = 86_400

_log = structlog.get_logger("httpbridge.log_store")


class Retention(msgspec.Struct, frozen=True):
    """What may stay; 0 sets no limit."""

    days: int = 0
    """Of every project without days of its own."""
    store_bytes_max: int = 0
    """Of all projects together."""


NO_LIMITS = Retention()


class ProjectData(NamedTuple):
    """A project's own limits, and what was dropped of it. The names are those of the columns."""

    project_id: str
    retention_days: int | None = None
    """None is as all have it, 0 keeps everything."""
    bytes_max: int | None = None
    """As they are stored; None sets no limit."""
    dropped_entries: int = 0
    dropped_bytes: int = 0
    dropped_at: int | None = None
    """When the last of them went, in seconds since 1970."""


async def project_data_of(store: ReadStore) -> dict[str, ProjectData]:
    """Return that of all projects that have any."""
    columns = [project_data.c[name] for name in ProjectData._fields]
    return {row[0]: ProjectData(*row) for row in await store.rows(sa.select(*columns))}


def set_retention(
    connection: sa.Connection,
    project_id: str,
    days: int | msgspec.UnsetType | None = msgspec.UNSET,
    bytes_max: int | msgspec.UnsetType | None = msgspec.UNSET,
) -> None:
    """Set those of a project's own limits that are given, in the caller's transaction; see ProjectData."""
    given = {"retention_days": days, "bytes_max": bytes_max}
    if values := {name: value for name, value in given.items() if value is not msgspec.UNSET}:
        _upsert(connection, project_id, values)


class Retainer:
    """Drops what may not stay. Reads by way of `reader`; `pause` is awaited after each transaction."""

    def __init__(
        self,
        store: MaintainedStore,
        reader: ReadStore,
        retention: Retention,
        *,
        pause: Callable[[], Awaitable[None]],
        keys_max: int = KEYS_MAX,
    ) -> None:
        self._store, self._reader, self._retention, self._pause = store, reader, retention, pause
        self._keys_max = keys_max

    async def run(self) -> None:
        """Drop all that may not stay. Raises as the stores do."""
        of_projects = await project_data_of(self._reader)
        await self._drop_old(of_projects)
        for project in of_projects.values():
            if project.bytes_max:
                await self._drop_above(project.bytes_max, "project_bytes", chunks.c.project_id == project.project_id)
        if self._retention.store_bytes_max:
            await self._drop_above(self._retention.store_bytes_max, "store_bytes", sa.true())
        await self._forget_keys()
        while await self._store.reclaim():
            await self._pause()

    async def _drop_old(self, of_projects: dict[str, ProjectData]) -> None:
        own = {name: data.retention_days for name, data in of_projects.items() if data.retention_days is not None}
        rules = [(days, chunks.c.project_id == name) for name, days in own.items()]
        rules.append((self._retention.days, chunks.c.project_id.not_in(list(own))))
        for days, of_project in rules:
            is_old = chunks.c.stored_at < NowSeconds() - days * _DAY_SECONDS
            found = sa.select(chunks.c.id, chunks.c.version).where(of_project, is_old).limit(_FOUND_MAX)
            while days and (old := sorted(map(tuple, await self._reader.rows(found)))):
                await self._drop(old, "age")

    async def _drop_above(self, bytes_max: int, reason: str, of_project: sa.ColumnElement[bool]) -> None:
        ((total,),) = await self._reader.rows(sa.select(sa.func.sum(STORED_BYTES)).where(of_project))
        columns = (chunks.c.id, chunks.c.version, STORED_BYTES)
        oldest = sa.select(*columns).where(of_project).order_by(chunks.c.id).limit(_FOUND_MAX)
        while (total or 0) > bytes_max:
            old: list[tuple[int, int]] = []
            for id_, version, stored_bytes in await self._reader.rows(oldest):
                if total <= bytes_max:
                    break
                old.append((id_, version))
                total -= stored_bytes
            if not old:  # somebody else dropped or erased what was counted
                break
            await self._drop(old, reason)

    async def _drop(self, old: list[tuple[int, int]], reason: str) -> None:
        """Drop chunks, given by id and version, but for what was written anew meanwhile."""
        dropped: Counter[str] = Counter()
        try:
            for start in range(0, len(old), _DROPPED_MAX):
                some = dict(old[start : start + _DROPPED_MAX])
                dropped += await self._store.transact(partial(_drop, versions=some))
                await self._pause()
        finally:  # also where the lease was lost in the middle
            for project_id, entries in dropped.items():
                log = _log.warning if reason == "store_bytes" else _log.info
                log("logs_dropped", project=project_id, entries=entries, reason=reason)

    async def _forget_keys(self) -> None:
        """Forget idempotency keys that are a day old, and the oldest of those that are too many."""
        keys = idempotency_keys
        ((old,),) = await self._reader.rows(sa.select(NowSeconds() - KEPT_SECONDS))
        known = sa.select(keys.c.project_id, sa.func.count(), sa.func.min(keys.c.stored_at))
        for project_id, number, oldest in await self._reader.rows(known.group_by(keys.c.project_id)):
            of_project = keys.c.project_id == project_id
            expired = 0 if oldest >= old else await self._forget(sa.and_(of_project, keys.c.stored_at < old))
            if number - expired > self._keys_max:
                forgotten = await self._forget(of_project, number - expired - self._keys_max)
                _log.warning("idempotency_keys_forgotten", project=project_id, keys=forgotten)

    async def _forget(self, which: sa.ColumnElement[bool], most: float = math.inf) -> int:
        """Forget the oldest of some keys; return how many."""
        forgotten = 0
        while forgotten < most:
            limit = int(min(FORGOTTEN_MAX, most - forgotten))
            number = await self._store.transact(partial(forget, which=which, limit=limit))
            forgotten += number
            await self._pause()
            if number < limit:
                break
        return forgotten


def _drop(connection: sa.Connection, versions: dict[int, int]) -> Counter[str]:
    """Delete chunks that still have these versions, by id, and count them; return the entries by project."""
    columns = (chunks.c.id, chunks.c.version, chunks.c.project_id, chunks.c.entries, STORED_BYTES)
    found = sa.select(*columns).where(chunks.c.id.in_(ids_of(versions))).with_for_update()
    entries: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    ids = []
    for id_, version, project_id, number, stored_bytes in connection.execute(found).all():
        if versions[id_] == version:
            ids.append(id_)
            entries[project_id] += number
            stored[project_id] += stored_bytes
    with overwriting_less(connection):
        connection.execute(chunks.delete().where(chunks.c.id.in_(ids_of(ids))))
    for project_id, number in entries.items():
        _upsert(
            connection,
            project_id,
            {
                "dropped_entries": project_data.c.dropped_entries + number,
                "dropped_bytes": project_data.c.dropped_bytes + stored[project_id],
                "dropped_at": NowSeconds(),
            },
        )
    return entries


def _upsert(connection: sa.Connection, project_id: str, values: dict[str, Any]) -> None:
    """Change the row of a project, which may not be there yet."""
    of_project = project_data.c.project_id == project_id
    if not connection.execute(sa.select(project_data.c.project_id).where(of_project).with_for_update()).first():
        connection.execute(project_data.insert().values(project_id=project_id))
    connection.execute(project_data.update().where(of_project).values(values))
