"""The one process that writes to a SQLite log store for several workers: `httpbridge log-writer`.

`cli` runs it. Workers send it their chunks (`writer_client`), which it commits, again in groups: as with one
process, one connection writes logs and another one counts of origins, and no others wait for SQLite's lock.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog

from authsvc.runtime.logging import traceback_without_text
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.fair_queue import Bounds
from httpbridge.log_store.group_commit import GroupCommit
from httpbridge.log_store.maintenance import Maintenance
from httpbridge.log_store.origin_store import OriginStore
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import NO_LIMITS, Retention
from httpbridge.log_store.sink import Store, store_at
from httpbridge.log_store.writer_client import (
    BUFFER_BYTES,
    LENGTH_BYTES,
    AddCounts,
    Answer,
    Check,
    Message,
    Probe,
    WriteChunks,
    received,
)

_BOUNDS = Bounds(turn_weight=Bounds().commit_weight_max)
"""What a worker brings is a group of light batches, or a heavy one: a turn lets the whole group pass."""

_log = structlog.get_logger("httpbridge.log_store")


async def serve_writer(
    url: str, path: Path, stop: asyncio.Event, started: Callable[[], None], retention: Retention = NO_LIMITS
) -> None:
    """Listen on `path` for workers and write to the SQLite store at `url`, until `stop` is set.

    A store that is unavailable now is no error, as workers are told so until it is back. Raises StoreSetupError.
    """
    store = store_at(url)
    writer = Writer(store, OriginStore(url, store.probe))
    maintenance = Maintenance(store, ReadStore(url), retention, monotonic=time.monotonic)
    try:
        with suppress(StoreUnavailableError):
            await store.open()
        listener = await asyncio.start_unix_server(writer.serve, path, limit=BUFFER_BYTES)
        try:
            maintenance.start()
            started()
            await stop.wait()
        finally:
            listener.close()
    finally:
        await writer.hang_up()
        await maintenance.close()
        await writer.close()


class Writer:
    """What workers' messages do. Each worker waits for its answers, so what waits here is bounded by their number."""

    def __init__(self, store: Store, origins: OriginStore) -> None:
        """Both stay closed until they are used, and are closed by `close`."""
        self._store = store
        self._origins = origins
        self._commits = GroupCommit(self._commit, _BOUNDS)
        self._workers: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one worker's messages until it hangs up."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        self._workers[task] = writer
        try:
            while True:
                message = self._decoder.decode(await received(reader))
                answer = self._encoder.encode(await self._answer(message, f"worker {id(task)}"))
                if writer.is_closing():  # it was hung up on, and uvloop would raise
                    return
                writer.write(len(answer).to_bytes(LENGTH_BYTES, "big") + answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return  # it has ended, or was killed
        finally:
            del self._workers[task]
            writer.transport.abort()

    async def hang_up(self) -> None:
        """Hang up on all workers, and commit what was taken."""
        for writer in self._workers.values():
            writer.transport.abort()
        await self._commits.close()
        if self._workers:
            await asyncio.wait(self._workers)

    async def close(self) -> None:
        """Hang up, and let go of the store."""
        try:
            await self.hang_up()
        finally:
            await self._origins.close()  # first, as `SqliteStore.close` says
            await self._store.close()

    async def _answer(self, message: Message, worker: str) -> Answer:
        try:
            return await self._do(message, worker)
        except StoreUnavailableError as error:
            return Answer(str(error))
        except Exception as error:  # noqa: BLE001 - a defect, and the other messages shall be stored
            _log.error("unexpected_error", error=type(error).__qualname__, traceback=traceback_without_text(error))
            return Answer("the log writer failed")

    async def _commit(self, group: list[WriteChunks]) -> Mapping[int, Exception]:
        conflicts = await self._store.commit([chunk for message in group for chunk in message.chunks])
        if conflicts:
            places = [(number, place) for number, one in enumerate(group) for place in range(len(one.chunks))]
            for conflict in conflicts:
                number, place = places[conflict]
                group[number].conflicts.append(place)
        return {}

    async def _do(self, message: Message, worker: str) -> Answer:
        match message:
            case WriteChunks():
                # A project has one turn with what all workers bring of it alone, and each worker one with the rest.
                await self._commits.submit(message, message.weight, message.project_id or worker)
                return Answer(conflicts=message.conflicts)
            case AddCounts(counts, now):
                await self._origins.add(counts, now)
            case Probe():
                await self._store.probe()
            case Check():
                await self._store.check()
        return Answer()
