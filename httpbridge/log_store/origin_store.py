"""How often each origin was seen, by project and hour: written by the bridge, read by the dashboard.

The writer has a connection of its own, so that whatever keeps it waiting keeps no log waiting.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from authsvc.runtime.database_url import parse_database_url
from authsvc.runtime.sql import sqlite_engine, sqlite_uri
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.database import EXPECTED_ERRORS, postgres_engine, translated
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import origin_counts

KEPT_HOURS = 48

BUSY_SECONDS_MAX = 2.0
"""How long a write waits for another one on SQLite."""

CHECKPOINT_PAGES = 8192
"""32 MiB of WAL, twice as much as the sink lets it become: it copies the WAL where that keeps no commit waiting.

Only while all that comes is blocked, and the sink commits nothing, the WAL grows so far.
"""

SEEN_MAX = 500
"""Origins that are read of a project."""


class OriginCount(msgspec.Struct, frozen=True, order=True):
    """Requests from an origin in the hour that begins at `hour` (aware, UTC)."""

    project_id: str
    hour: datetime
    origin: str
    allowed: int
    blocked: int


class SeenOrigin(msgspec.Struct, frozen=True):
    """An origin that a project's requests came from, or one of the labels in `origin_counts`."""

    origin: str
    allowed: int
    """Requests that its list admitted at the time."""
    blocked: int
    """Requests that were answered with 403."""


class SeenOrigins(msgspec.Struct, frozen=True):
    """The origins of a project's requests, and how many there are beside those that were read."""

    origins: Sequence[SeenOrigin]
    others: int


class OriginStore:
    """Adds counts to the table `origin_counts`, which the log store's sink has made."""

    def __init__(self, url: str, check: Callable[[], Awaitable[None]] | None = None) -> None:
        """Connect at the first write. `check` raises StoreUnavailableError while the sink's store takes no writes.

        It is called before each write: where a SQLite file was replaced, connecting to the new one beside the old one's
        WAL would spoil it. Raises StoreSetupError for another kind of address.
        """
        self._check = check
        address = parse_database_url(url)
        if isinstance(address, Path):
            # Made here, a file would stand in the place of one that was moved away.
            self._engine = sqlite_engine(
                sqlite_uri(address),
                f"wal_autocheckpoint={CHECKPOINT_PAGES}",
                begin="IMMEDIATE",
                busy_seconds=BUSY_SECONDS_MAX,
                poolclass=sa.NullPool,
            )
            insert: Any = sqlite.insert(origin_counts)
        else:
            self._engine = postgres_engine(address, lock_timeout=str(int(BUSY_SECONDS_MAX * 1000)))
            insert = postgresql.insert(origin_counts)
        self._upsert = insert.on_conflict_do_update(
            index_elements=["project_id", "hour", "origin"],
            set_={name: origin_counts.c[name] + insert.excluded[name] for name in ("allowed", "blocked")},
        )

    async def add(self, counts: Sequence[OriginCount], now: datetime) -> None:
        """Add to what is stored, all or nothing, and forget what is older than KEPT_HOURS.

        Raises StoreUnavailableError. Then nothing was added, unless the answer to the commit was lost.
        """
        if self._check is not None:
            await self._check()
        try:
            async with self._engine.begin() as connection:
                # In one order, so that two bridges never wait for each other.
                await connection.execute(self._upsert, [msgspec.structs.asdict(count) for count in sorted(counts)])
                expired = origin_counts.c.hour < now - timedelta(hours=KEPT_HOURS)
                await connection.execute(origin_counts.delete().where(expired))
        except EXPECTED_ERRORS as error:
            raise StoreUnavailableError(str(translated(error))) from None

    async def close(self) -> None:
        """Let go of the store."""
        await self._engine.dispose()


async def seen_origins(store: ReadStore, project_id: str, since: datetime) -> SeenOrigins:
    """Return the origins of a project since the hour that `since` lies in, the most frequent first.

    At most SEEN_MAX, and those that were admitted before those that never were, of which anybody can send any number.
    Raises as ReadStore does.
    """
    hour = since.replace(minute=0, second=0, microsecond=0)
    allowed, blocked = sa.func.sum(origin_counts.c.allowed), sa.func.sum(origin_counts.c.blocked)
    statement = (
        sa.select(
            sa.func.count().over(),
            origin_counts.c.origin,
            sa.cast(allowed, sa.BigInteger),
            sa.cast(blocked, sa.BigInteger),
        )
        .where(origin_counts.c.project_id == project_id, origin_counts.c.hour >= hour)
        .group_by(origin_counts.c.origin)
        .order_by((allowed > 0).desc(), (allowed + blocked).desc(), origin_counts.c.origin)
        .limit(SEEN_MAX)
    )
    rows = await store.rows(statement)
    return SeenOrigins([SeenOrigin(*row[1:]) for row in rows], rows[0][0] - len(rows) if rows else 0)
