"""The lease protocol's part of the database: the table `leases`, the epoch, and the database's clock.

Each method is a transaction of its own (rule 1 of docs/watch-protocol.md). As the leases are in the shared database,
the promise holds across replicas and restarts, with nothing else to coordinate.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import StoreUnavailableError
from authsvc.runtime.sql import UtcDateTime
from authsvc.storage.database import Database
from authsvc.storage.records import CHANGES_BEHIND_MAX, LeaseRow, StoreState
from authsvc.storage.tables import COUNTER, METADATA

_leases = sa.Table(
    "leases",
    METADATA,
    sa.Column("holder_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("epoch", sa.String(32), nullable=False),
    sa.Column("acknowledged_revision", sa.BigInteger, nullable=False),
    sa.Column("expire_time", UtcDateTime, nullable=False),
    sa.Column("renew_time", UtcDateTime, nullable=False),
    sa.Column("is_released", sa.Boolean, nullable=False),
    sa.Column("since_revision", sa.BigInteger, nullable=False),
)
_COUNTER_ID = 1
_COUNTER_ROW = "SELECT id, epoch, revision FROM revision_counter WHERE id IN {}"


class LeaseStore:
    """The leases of all holders. Every method raises StoreUnavailableError while the database cannot answer."""

    def __init__(self, database: Database, now: Callable[[], datetime], margin_seconds: float) -> None:
        """`now`, aware UTC, is the database's clock on SQLite, whose processes share a machine.

        Rule 12: the margin is added to every lease's duration, for clocks that drift and are set.
        """
        self._database = database
        self._is_sqlite = database.is_sqlite
        self._now = now
        self._margin = timedelta(seconds=margin_seconds)
        insert, greatest = (sqlite.insert, "max") if self._is_sqlite else (postgresql.insert, "greatest")
        self._upsert = _merged(insert(_leases), getattr(sa.func, greatest))
        self._counter = database.prepared_reads(_COUNTER_ROW) if self._is_sqlite else None

    async def renew(self, keep_alives: Sequence[KeepAlive], lease_seconds: float) -> set[str]:
        """Commit the leases of different holders, and return which were refused, having released theirs."""
        async with self._database.writing() as connection:
            state = await self._read_state(connection)
            rows = [
                self._row(keep_alive, state, min(lease_seconds, keep_alive.lease_seconds_max))
                # In the order of their ids, so that two replicas that meet cannot deadlock.
                for keep_alive in sorted(keep_alives, key=lambda it: it.holder_id)
            ]
            kept = {row.holder_id for row in await connection.execute(self._upsert, rows)}
            await self._database.notify(connection)
        return {keep_alive.holder_id for keep_alive in keep_alives} - kept

    async def state(self) -> StoreState:
        """Read epoch, revision and clock."""
        if self._counter is not None:  # four times a second, and for each lease: not worth a thread
            row = (await self._counter.rows([_COUNTER_ID])).get(_COUNTER_ID)
            if row is None:
                raise StoreUnavailableError("revision_counter is empty")
            _, epoch, revision = row
            return _state(epoch, revision, self._now())
        async with self._database.statement() as connection:
            return await self._read_state(connection)

    async def rows(self) -> tuple[list[LeaseRow], StoreState]:
        """Read all leases that are not released, and then the state, whose clock is not too early then (rule 10)."""
        async with self._database.statement() as connection:
            found = await connection.execute(sa.select(_leases).where(sa.not_(_leases.c.is_released)))
            rows = [LeaseRow(**row._mapping) for row in found]
            return rows, await self._read_state(connection)

    async def sweep(self, keep_seconds: float) -> None:
        """Delete leases that expired longer ago than this: several leases, so that a late keep-alive finds its row."""
        async with self._database.writing() as connection:
            expired = (await self._read_state(connection)).time - timedelta(seconds=keep_seconds)
            await connection.execute(_leases.delete().where(_leases.c.expire_time < expired))

    async def renew_epoch(self, lease_seconds: float) -> str:
        """Begin a new epoch, in which every holder forgets all it has; return it.

        Leases may have been lost with the commits, so one row stands in for all of them until they have expired.
        """
        epoch = secrets.token_hex(16)
        async with self._database.writing() as connection:
            await connection.execute(COUNTER.update().values(epoch=epoch))
            state = await self._read_state(connection)
            stand_in = KeepAlive("", secrets.token_hex(16), "whoever watched before the new epoch", 0, 0)
            await connection.execute(_leases.insert().values(self._row(stand_in, state, lease_seconds)))
            await self._database.notify(connection)
        return epoch

    def _row(self, keep_alive: KeepAlive, state: StoreState, lease_seconds: float) -> dict[str, Any]:
        return {
            "holder_id": keep_alive.holder_id,
            "name": keep_alive.name,
            "epoch": keep_alive.epoch,
            "acknowledged_revision": keep_alive.applied_revision,
            "expire_time": state.time + timedelta(seconds=lease_seconds) + self._margin,
            "renew_time": state.time,
            "is_released": keep_alive.is_release,
            "since_revision": state.revision,  # of a row that there is already it stays what it is
        }

    async def _read_state(self, connection: AsyncConnection) -> StoreState:
        clock = [] if self._is_sqlite else [sa.func.clock_timestamp().label("time")]
        row = (await connection.execute(sa.select(COUNTER.c.epoch, COUNTER.c.revision, *clock))).one()
        return _state(row.epoch, row.revision, self._now() if self._is_sqlite else row.time)


def _state(epoch: str, revision: int, time: datetime) -> StoreState:
    return StoreState(epoch, revision, max(0, revision - CHANGES_BEHIND_MAX), time)


def _merged(insert: Any, greatest: Callable[..., Any]) -> Any:
    """Return the statement that writes leases, and returns the ids of those that were not released."""
    new, old = insert.excluded, _leases.c
    # A late keep-alive from another epoch, such as the first one of all, must not take back what is known in this one.
    current = sa.select(COUNTER.c.epoch).scalar_subquery()
    is_late = sa.and_(old.epoch == current, new.epoch != current)
    acknowledged = sa.case(
        (old.epoch == new.epoch, greatest(old.acknowledged_revision, new.acknowledged_revision)),
        (is_late, old.acknowledged_revision),
        else_=new.acknowledged_revision,
    )
    return insert.on_conflict_do_update(
        index_elements=["holder_id"],
        set_={
            "name": new.name,
            "epoch": sa.case((is_late, old.epoch), else_=new.epoch),
            "acknowledged_revision": acknowledged,  # rule 9
            "expire_time": greatest(old.expire_time, new.expire_time),
            "renew_time": new.renew_time,
            "is_released": new.is_released,
        },
        where=sa.not_(old.is_released),  # rule 7
    ).returning(old.holder_id)
