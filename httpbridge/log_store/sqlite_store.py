"""The log store in a SQLite file: one connection that writes, used by one thread of its own; another for checkpoints.

Chunks go through the driver itself, all of a commit in one statement: at each one the thread gives the interpreter
lock away, and fights with the event loop to have it back.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from authsvc.runtime.sql import reason
from authsvc.runtime.sqlite_files import FilesLostError, SqliteFiles, stamp
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import Chunk, without_repeats
from httpbridge.log_store.database import EXPECTED_ERRORS, translated
from httpbridge.log_store.idempotency import note_in_sqlite
from httpbridge.log_store.schema import PROBE, create_tables
from httpbridge.log_store.sqlite_writes import (
    RECLAIMED_PAGES,
    connect,
    engine_of,
    insert_chunks,
    is_one_statement,
    reclaim,
    scrub,
)

CHECKPOINT_BYTES = 16 * 1024 * 1024
"""After about so much new WAL it is copied into the database: four times SQLite's own measure, and so less often."""

_WAL_CHECKPOINTS_MAX = 4
"""After so many times as much new WAL while a checkpoint is under way, commits wait for it: the disk may be slow."""

_PATIENT_WEIGHT = 256 * 1024
"""Heavier groups wait for a checkpoint under way: else others wait, 40 to 120 ms, for copying those after it."""

_WAL_CHECKPOINTS_NORMAL = 8
"""A WAL of so many times as much, with something in it that cannot be copied, is what a reader makes of it."""

_COMMIT_WAL_BYTES = 16 * 1024
"""What a commit of one small chunk adds to the WAL: a page of each table and index that it touches."""

_ROOM_BYTES_MIN = 64 * 1024 * 1024
"""On the disk: what the WAL and the file may grow by in some commits of the largest batches. Less is not ready."""

T = TypeVar("T")

_log = structlog.get_logger("httpbridge.log_store")


class SqliteStore:
    """Commits chunks durably to one file, as long as that is found by its name.

    A file that was moved, removed or replaced while it is open takes no more chunks: nobody would find them. Once it is
    back in its place it takes them again. Another file in its place is for the next start to open: SQLite knows a
    file's WAL by its name alone, and so must not have two of one name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = SqliteFiles(path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log store")
        self._checkpointer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._connection: sqlite3.Connection | None = None
        self._new_wal_bytes = 0
        """About so much was written since the last checkpoint."""
        self._is_disk_full = False
        self._is_wal_held = False
        """Whether a reader keeps the WAL growing, as the last checkpoint found."""
        self._checkpoint: Future[None] | None = None
        """The one under way."""

    async def open(self) -> None:
        """See `sink.Store`; unavailable is what is locked, or on a full disk."""
        await self._in_thread(self._open)

    async def commit(self, chunks: list[Chunk]) -> list[int]:
        """See `sink.Store`."""
        weight = sum(len(chunk.content) for chunk in chunks)
        if weight > _PATIENT_WEIGHT and (checkpoint := self._checkpoint) is not None:
            await asyncio.wait([asyncio.wrap_future(checkpoint)])
        conflicts: list[int] = await self._in_thread(self._insert, chunks, weight)
        return conflicts

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """See `sink.MaintainedStore`."""
        result: T = await self._in_thread(self._transact, work)
        return result

    async def reclaim(self) -> bool:
        """See `sink.MaintainedStore`."""
        return bool(await self._in_thread(self._reclaim))

    async def scrub(self) -> bool:
        """See `sink.MaintainedStore`."""
        return bool(await self._in_thread(self._scrub))

    async def probe(self) -> None:
        """Write a little, durably. Raises StoreUnavailableError when that fails."""
        await self._in_thread(self._probe)

    async def check(self) -> None:
        """Raise StoreUnavailableError when what is open is not what is found by the file's name, or the disk is full.

        A nearly full one takes a probe still, and many a small batch, but not all that clients may send.
        """
        await self._in_thread(self._check_files)
        await self._in_thread(self._check_room)

    async def close(self) -> None:
        """Close the file, after what is under way. Nobody else in this process may have it open by then."""
        await asyncio.get_running_loop().run_in_executor(self._checkpointer, lambda: None)
        self._checkpointer.shutdown(wait=False)
        await self._in_thread(self._disconnect)
        self._files.close()
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # What follows runs in the thread.

    def _open(self) -> sqlite3.Connection:
        try:
            if self._files.is_open:
                self._files.check_main()
            elif lost := self._files.lone_wal():
                raise StoreSetupError(lost)
            self._connection = connection = connect(self._path)
            with engine_of(connection).begin() as begun:
                create_tables(begun)
            self._files.note(connection)
            _stamp(connection)
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except EXPECTED_ERRORS as error:
            self._disconnect()
            raise self._translated(error) from None
        return connection

    def _check_files(self) -> None:
        """Raise StoreUnavailableError when what would be written could not be found."""
        if self._connection is not None:
            try:
                self._files.check()
            except (FilesLostError, sqlite3.Error, OSError) as error:
                raise StoreUnavailableError(str(self._translated(error))) from None

    def _check_room(self) -> None:
        disk = os.statvfs(self._path.parent)
        free_bytes = disk.f_bavail * disk.f_frsize
        is_full = free_bytes < _ROOM_BYTES_MIN
        if is_full and not self._is_disk_full:
            _log.warning("log_disk_nearly_full", path=str(self._path), free_bytes=free_bytes)
        self._is_disk_full = is_full
        if is_full:
            raise StoreUnavailableError(f"{self._path.parent} has {free_bytes >> 20} MiB left on its disk")

    def _insert(self, chunks: list[Chunk], weight: int) -> list[int]:
        conflicts: list[int] = []
        keys = [chunk.key_row for chunk in chunks if chunk.idempotency is not None]
        with self._writing(weight) as connection:
            if not keys and is_one_statement(len(chunks)):
                insert_chunks(connection, chunks)
                return conflicts
            connection.execute("BEGIN IMMEDIATE")
            if keys:
                chunks, conflicts = without_repeats(chunks, note_in_sqlite(connection, keys))
            insert_chunks(connection, chunks)
            connection.execute("COMMIT")
        return conflicts

    def _probe(self) -> None:
        with self._writing(0) as connection:
            connection.execute(PROBE)

    def _transact(self, work: Callable[[sa.Connection], T]) -> T:
        with self._writing(_COMMIT_WAL_BYTES) as connection, engine_of(connection).begin() as begun:
            return work(begun)

    def _reclaim(self) -> bool:
        with self._writing(RECLAIMED_PAGES * 4096) as connection:
            return reclaim(connection)

    def _scrub(self) -> bool:
        with self._writing(0) as connection:
            return scrub(connection)

    @contextmanager
    def _writing(self, weight: int) -> Iterator[sqlite3.Connection]:
        """Lend the connection for something that is about as large; raise what `sink.Store` says."""
        try:
            connection = self._connection or self._open()
        except StoreSetupError as error:  # it was in order when the bridge started
            raise StoreUnavailableError(str(error)) from None
        try:
            self._files.check_paths()
            yield connection
            self._files.check_main()  # again: it may have been replaced meanwhile
        except FilesLostError as error:
            raise StoreUnavailableError(str(error)) from None
        except (sqlite3.Error, sa.exc.SQLAlchemyError, OSError) as error:
            # A new connection knows nothing of the old one's trouble.
            self._disconnect()
            raise StoreUnavailableError(str(self._translated(error))) from None
        self._new_wal_bytes += _COMMIT_WAL_BYTES + weight
        if self._checkpoint is None and self._new_wal_bytes > CHECKPOINT_BYTES:
            with suppress(sqlite3.Error):
                _stamp(connection)
            self._checkpoint = self._checkpointer.submit(self._copy_wal)
        elif self._checkpoint is not None and self._new_wal_bytes > _WAL_CHECKPOINTS_MAX * CHECKPOINT_BYTES:
            # Behind this commit in the thread's queue, so that its callers have their answer first.
            self._thread.submit(wait, [self._checkpoint])

    def _copy_wal(self) -> None:
        """Copy the WAL into the database, in a thread and over a connection of its own, while commits go on.

        Within a commit, as SQLite would do it by itself, whoever waits for that commit would pay for it.
        """
        try:
            # To connect would make a file. Its content was looked at for the commit before this, over the connection
            # that two threads must not use at once.
            self._files.check_main()
            with closing(connect(self._path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (sqlite3.Error, OSError, StoreSetupError, FilesLostError) as error:
            # All that was answered is in the WAL; the next commit finds out whether the store is in order.
            _log.warning("checkpoint_failed", reason=reason(error))
        finally:
            self._thread.submit(self._restart_wal)

    def _restart_wal(self) -> None:
        """Copy what little was committed meanwhile; with nothing left to copy, the next commit starts the WAL anew.

        Unless somebody reads: what was committed after a reader began is not copied before it ends, and with it the
        WAL goes on. No reader can be turned out, but the log tells of it.
        """
        self._new_wal_bytes = 0
        self._checkpoint = None
        if (connection := self._connection) is not None:
            with suppress(sqlite3.Error):
                ((is_busy, pages, copied),) = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                ((page_bytes,),) = connection.execute("PRAGMA page_size").fetchall()
                if not is_busy:  # with a checkpoint of the counts of origins, which then knows what this one does not
                    self._note_wal(pages * page_bytes, has_rest=copied < pages)

    def _note_wal(self, wal_bytes: int, *, has_rest: bool) -> None:
        is_large = wal_bytes > _WAL_CHECKPOINTS_NORMAL * CHECKPOINT_BYTES
        if is_large and has_rest and not self._is_wal_held:
            self._is_wal_held = True
            _log.warning(
                "log_wal_held", file=str(self._files.wal_path), bytes=wal_bytes, by="a reader of the log store"
            )
        elif self._is_wal_held and not is_large:
            self._is_wal_held = False
            _log.info("log_wal_released")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._files.settle()
            with suppress(sqlite3.Error):
                connection.close()

    def _translated(self, error: BaseException) -> Exception:
        return translated(error, f"{self._path}: ")


def _stamp(connection: sqlite3.Connection) -> None:
    """Tell the file that a checkpoint makes from those that were copied before."""
    connection.execute("BEGIN IMMEDIATE")
    ((number,),) = connection.execute("PRAGMA user_version").fetchall()
    connection.execute(stamp(number + 1))
    connection.execute("COMMIT")
