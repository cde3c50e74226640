"""How busy projects are, for the list of them: the summaries of their newest chunks say it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.chunk import instant_text
from httpbridge.log_store.read_store import Reading, ReadStore, headers, of_readable
from httpbridge.log_store.scan import Scan, instant
from httpbridge.log_store.schema import chunks, values_of
from httpbridge.log_store.selection import LogFilter


class Activity(msgspec.Struct, frozen=True):
    """How busy a project is."""

    last_hour_count: int
    """Entries of the last hour, up to a bound and one more."""
    last_log_time: datetime | None
    """The newest entry's `timestamp`; those that claim to be of the day after tomorrow are not believed."""


async def activity_of(
    store: ReadStore, project_ids: Sequence[str], now: datetime, entries_max: int
) -> dict[str, Activity]:
    """Return how busy each project is, also those without any entry. Raises as ReadStore does."""
    activity = {}
    recent = instant_text(now - timedelta(hours=1))
    async with store.connection() as connection:
        for project_id, last_at in await connection.rows(_last_timestamps(project_ids)):
            if last_at is None or last_at < recent:
                activity[project_id] = Activity(0, last_at and instant(last_at))
            else:
                activity[project_id] = await _activity(connection, project_id, now, entries_max)
    return activity


async def _activity(connection: Reading, project_id: str, now: datetime, entries_max: int) -> Activity:
    until = now + timedelta(days=1)
    scan = Scan(LogFilter(project_id=project_id, until=until))
    since = instant_text(now - timedelta(hours=1))
    newest, number = "", 0
    async for chunk in headers(connection, project_id, scan.begin, scan.end):
        if (newest and chunk.last_at < since) or number > entries_max:
            break
        if chunk.last_at < scan.end and (chunk.last_at < since or since <= chunk.first_at):
            newest = max(newest, chunk.last_at)
            number += chunk.entries if since <= chunk.first_at else 0
        else:
            of_chunk = await of_readable(connection, chunk.id, partial(scan.found, chunk)) or []
            found = [one.timestamp.decode() for one in of_chunk]
            newest = max(newest, *found, "")
            number += sum(timestamp >= since for timestamp in found)
    return Activity(min(number, entries_max + 1), instant(newest) if newest else None)


def _last_timestamps(project_ids: Sequence[str]) -> sa.Select[Any]:
    projects = values_of(project_ids, sa.Text()).cte()
    of_project = sa.select(sa.func.max(chunks.c.last_at)).where(chunks.c.project_id == projects.c.value)
    return sa.select(projects.c.value, of_project.scalar_subquery())
