"""The SQL sink: batches in chunks, group commit and a store, and whether that takes writes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
import structlog

from authsvc.runtime.database_url import parse_database_url
from httpbridge.errors import IdempotencyConflictError, StoreUnavailableError
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.encoding import Entries, chunks_of, encode, encode_in_steps, is_long
from httpbridge.log_store.fair_queue import Bounds
from httpbridge.log_store.group_commit import GroupCommit
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.postgres_store import PostgresStore
from httpbridge.log_store.sqlite_store import SqliteStore
from httpbridge.logs import LogBatch

CHECK_FRESH_SECONDS = 1.0
"""For so long the outcome of a write or a probe answers `check`."""

CHECK_WAIT_SECONDS_MAX = 3.0
"""A probe without an answer for so long counts as a refusal; longer than a SQLite commit waits for a lock."""

_THREAD_WEIGHT = 32 * 1024
"""Heavier groups are compressed in a thread."""

_log = structlog.get_logger("httpbridge.log_store")


T = TypeVar("T")


class Store(Protocol):
    """What the sink needs of a database."""

    async def open(self) -> None:
        """Connect and create the tables. Raises StoreSetupError, StoreUnavailableError."""

    async def commit(self, chunks: list[Chunk]) -> list[int]:
        """Store all or none, connecting anew where needed; but what was stored with its idempotency key before.

        Return the places of what is not stored as its key was used with another body. Raises StoreUnavailableError.
        """

    async def probe(self) -> None:
        """Write a little, durably. Raises StoreUnavailableError."""

    async def check(self) -> None:
        """Raise StoreUnavailableError when what is open is not what is found at the address. Writes nothing."""

    async def close(self) -> None:
        """Let go of the database."""


class Transactions(Protocol):
    """What erasure and settings need."""

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Do something in one transaction, between two commits. Raises StoreUnavailableError."""

    async def reclaim(self) -> bool:
        """Give a little free room back to the file system, where there is any; return whether there is more.

        Raises StoreUnavailableError.
        """

    async def scrub(self) -> bool:
        """After that, leave nothing of what was deleted in the write-ahead log; return False where a reader needs it.

        Raises StoreUnavailableError.
        """


class MaintainedStore(Store, Transactions, Protocol):
    """What maintenance needs."""


async def open_sql_sink(url: str, *, monotonic: Callable[[], float], bounds: Bounds | None = None) -> "SqlSink":
    """Open the sink for `sqlite:///path` or `postgresql://…`, in the running event loop.

    A store that is unavailable now is no error: services start in any order, and `check` says so until it is back.
    Raises StoreSetupError for what waiting does not mend.
    """
    return await open_sink(store_at(url), monotonic=monotonic, bounds=bounds)


async def open_sink(store: Store, *, monotonic: Callable[[], float], bounds: Bounds | None = None) -> "SqlSink":
    """Open the sink of a store that is not open yet; likewise."""
    sink = SqlSink(store, monotonic=monotonic, bounds=bounds)
    try:
        await sink.open()
    except BaseException:
        await sink.close()
        raise
    return sink


def store_at(url: str) -> MaintainedStore:
    """Return the store of an address, not opened yet; raise StoreSetupError for another kind of address."""
    address = parse_database_url(url)
    return SqliteStore(address) if isinstance(address, Path) else PostgresStore(address)


class SqlSink:
    """A LogSink; made by `open_sql_sink`."""

    def __init__(self, store: Store, *, monotonic: Callable[[], float], bounds: Bounds | None = None) -> None:
        self._store = store
        self._monotonic = monotonic
        self._group_commit = GroupCommit(self._commit, bounds)
        self._long_turn = asyncio.Lock()
        self._lost: str | None = None
        """Why the store refuses writes, as the last attempt learned it; None while it takes them."""
        self._known_at = float("-inf")
        self._probe: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Try the store; see `open_sql_sink`."""
        with suppress(StoreUnavailableError):
            await self._attempt(self._store.open())

    def write(self, batch: LogBatch, idempotency: IdempotencyKey | None = None) -> Coroutine[Any, Any, None]:
        """See LogSink."""
        if is_long(batch):
            return self._write_long(batch, idempotency)
        entries = encode(batch, idempotency)
        return self._group_commit.submit(entries, entries.weight, batch.project_id)

    async def _write_long(self, batch: LogBatch, idempotency: IdempotencyKey | None) -> None:
        async with self._long_turn:  # megabytes each, of a body that may have had some kB: one at a time
            entries = await encode_in_steps(batch, idempotency)
        await self._group_commit.submit(entries, entries.weight, batch.project_id)

    async def check(self) -> None:
        """See LogSink. A write within the last second is as good as a probe; concurrent checks share one."""
        try:
            async with asyncio.timeout(CHECK_WAIT_SECONDS_MAX):
                if self._monotonic() - self._known_at >= CHECK_FRESH_SECONDS:
                    if self._probe is None or self._probe.done():
                        self._probe = asyncio.create_task(self._probe_store(), name="log store probe")
                    await asyncio.shield(self._probe)
                if self._lost is not None:
                    raise StoreUnavailableError(self._lost)
                await self._store.check()
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {CHECK_WAIT_SECONDS_MAX:g} s") from None

    async def close(self) -> None:
        """See LogSink."""
        try:
            await self._group_commit.close()
        finally:
            if self._probe is not None:
                self._probe.cancel()
                await asyncio.wait([self._probe])
            await self._store.close()

    async def _probe_store(self) -> None:
        with suppress(StoreUnavailableError):
            await self._attempt(self._store.probe())

    async def _commit(self, group: list[Entries]) -> Mapping[int, Exception]:
        # Compression lets others have the interpreter; below, going to a thread would cost more.
        if sum(entries.weight for entries in group) > _THREAD_WEIGHT:
            chunks = await asyncio.to_thread(chunks_of, group)
        else:
            chunks = chunks_of(group)
        conflicts = await self._attempt(self._store.commit(chunks))
        if not conflicts:
            return {}
        keyed = [place for place, entries in enumerate(group) if entries.idempotency is not None]
        return {keyed[place]: IdempotencyConflictError() for place in conflicts}

    async def _attempt(self, writing: Awaitable[T]) -> T:
        """Note what an attempt to write shows, and log the change; never a row's content."""
        try:
            result = await writing
        except StoreUnavailableError as error:
            self._learned(str(error))
            raise
        self._learned(None)
        return result

    def _learned(self, lost: str | None) -> None:
        if lost is not None and self._lost is None:
            _log.warning("log_store_lost", reason=lost)
        elif lost is None and self._lost is not None:
            _log.info("log_store_back")
        self._lost = lost
        self._known_at = self._monotonic()
